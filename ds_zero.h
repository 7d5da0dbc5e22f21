/* ds_zero.h - v0.1.0 - ZeRO stages 0-3 around a training loop of your own, driven by a DeepSpeed JSON - public domain or MIT-0

DO THIS
    In one C or C++ file:
        #define DS_IMPLEMENTATION
        #include "ds_zero.h"
    It includes ds_config.h, ds_comm.h, ds_optim.h, ds_offload.h, ds_checkpoint.h and ds_monitor.h from its own folder.
    Link with -lpthread -lm -ldl. Elsewhere include it without the macro.

SYNOPSIS (examples/04_zero.c is the whole program)
        ds_zero_param params[2] = {...};                  name, shape, dtype, slot, init or data
        ds_zero_desc desc = {0};
        desc.config = config;                             from ds_config_parse
        desc.comm = comm;                                 from ds_comm_create; NULL is one rank
        desc.params = params, desc.n_params = 2;
        if (ds_zero_create(&desc, &zero, &error)) ...
        for (;;) {
            for (int i = 0; i < accumulation; i++) {
                ds_zero_begin(zero, DS_ZERO_TRAIN);       one micro-batch
                ds_zero_fetch(zero, 0, NULL);             now *params[0].slot is the whole tensor
                ... forward and backward, times ds_zero_loss_scale(zero) ...
                ds_zero_grad(zero, 0, gradient, NULL);    the micro-batch's mean gradient
                ds_zero_release(zero, 0);
                ds_zero_loss(zero, loss);
                ds_zero_end(zero);
            }
            ds_zero_step(zero, &report);                  report.loss, .lr, .grad_norm, .skipped, ...
        }
        ds_zero_destroy(zero);

OPTIONS
    DS_IMPLEMENTATION, DS_ZERO_IMPLEMENTATION   off   in the one file that implements
    DS_STATIC                                   off   all of ds private to that file; wherever a ds header is included

WHAT IT DOES NOT DO
    It knows no model, owns no loop, builds no graph, starts no process. It does not touch the model's activations.
    No pipeline or tensor parallelism of its own: give each data-parallel group its own engine, and model_group to let the
    norm and overflow span the model's parts.

CONCEPTS
    A parameter is a logical tensor that every rank registers in the same order. `*slot` is where the model finds it:
    set at stages 0 to 2 for the engine's life, at stage 3 between fetch and release.
    Parts. A tensor is cut in grains of 1,024 elements; rank r of W owns the grains from floor((g*r + k)/W) to
    floor((g*(r+1) + k)/W), where k spreads the remainders. At stages 1 to 3 a rank keeps the optimizer's states of its own
    part alone, at 2 and 3 the gradients too, at 3 the parameters too. At stage 0 every rank owns everything.
    So each rank copies a like share of each tensor. LAMB's parts exchange two numbers per grain in each step.
    A matrix that Muon orthogonalises is not cut: it belongs to the rank that has the fewest elements so far, and nothing
    more is sent; ranks then differ by up to the largest matrix, and several in a row may be one rank's, which then copies
    alone what a bucket holds. zero_optimization.round_robin_gradients deals them out in turn at stages 1 and 2: neighbours
    are different ranks', which copy at once; sums of elements may be less even. No bit of the result depends on it.
    The 1-bit optimizers work at stage 0: in their compressed phase gradients are not reduced at all, the optimizer averages
    its momenta with one bit per element, report.grad_norm is the root of the ranks' mean square, and nothing is clipped.
    ZeroOneAdam's ranks differ between two averages, and a save there is refused; after one they agree to the rounding of
    the local steps that it undoes, and a checkpoint has each rank's own values, too. A freeze_step of 1 freezes a variance of
    zero, as in DeepSpeed, whose first step only counts, too: give the warm-up as many steps as the variance needs.
    Small parameters stay whole at stage 3. [cfg: zero_optimization.stage3_param_persistence_threshold]
    Buckets. Gradients are copied as they come into buckets of zero_optimization.reduce_bucket_size elements (one tensor each
    when contiguous_gradients is false), which are reduced in a fixed order, while the backward goes on (overlap_comm). At stages
    0 and 1 every bucket has memory of its own (that is the full gradient which these stages hold), at 2 and 3 two take turns;
    of one rank, which has nothing to reduce, these have no more than 262,144 elements, or the largest tensor. The first
    training pass uses the reverse order of registration, later ones the order in which rank 0 saw the gradients complete.
    Numbers. In each micro-batch the ranks' gradients are summed in fp32 over one binary tree of rank numbers, rounded to
    the communication type, and added to an accumulator, rounded to its type also where a step has one micro-batch and needs none. Parameters come out the same to the last bit at every stage, for
    every bucket size, offload device, thread count and with overlap on or off.
    ds.reduce_at_boundary adds a step's micro-batches on each rank and reduces once; stages 0 and 1 only, which then share
    bits with each other. ds.world_invariant keeps all sums in one fp32 tree over (micro-batch, rank), so that world sizes
    that are powers of two come out the same too, given the same samples: leaf micro * world + rank of a step's batch.
    ds.native_reduce leaves the sums to MPI or NCCL, in their order: less to do, and none of these promises.
    The gradient is divided once, inside the optimizer's update, by accumulation * world * the scale of the loss; in fp16,
    whose sums would overflow, by accumulation in the factor of the loss and by world before it is sent, as DeepSpeed does
    at stages 1 to 3 (not with ds.world_invariant, which keeps bits).
    ZeRO++ (arXiv:2306.10209). zero_quantized_weights: stage 3 gathers parameters as bytes with a scale for 256 of them, and
    the model computes with these. zero_hpz_partition_size P: P ranks in a row are a node, which keeps a copy of what it
    gathered, 1/P on each rank, and gathers from that until the next update. zero_quantized_gradients: gradients are
    reduced in four bits, inside the node, then across; stages 2 and 3. Quantized results are repeatable, also over
    a save and a load, but depend on buckets and ranks.
    Gathers. At stages 1 and 2 (and of what stays whole at stage 3) a step returns when all ranks have the new parameters.
    ds.gather_in_background lets it return before: parameters from 4,096 elements up to allgather_bucket_size travel while the
    next pass computes, in the order of registration, which had better be that of the forward pass. A fetch waits for its own
    and those before it. The model must then fetch all that it reads, as at stage 3: slot and data show the new values between
    fetch and release only. A gather that fails is an error of the call that waits for it, the next step at the latest, and
    nobody's at destroy: read, save or load before. Where ds_comm_start does the call at once (NCCL) the key hides nothing.
    Traces. The order of fetches is recorded per kind of pass; at stage 3 what comes next is fetched ahead within
    stage3_prefetch_bucket_size. Another order than last time is no error: it loses the prefetch until the next pass.
    A gradient that does not come counts as zero, on whichever ranks (an expert that a rank's batch did not use).
    At stage 3 gathers and reductions are one sequence of calls, so all ranks fetch in one order (DS_ERR_PEER names the
    parameter where one does not), and give what they give of a gradient between the same fetches: before a reduction they
    vote, and a rank that comes to the next fetch without a gradient that others have is taken to leave it out. They vote at
    fetches: a backward pass without any hides less of its reductions. A vote is a byte of each rank, which the stats do
    not count.
    What comes behind one that is left out on all ranks (before stage 3: on one) waits for the end of the micro-batch in
    memory beyond the plan, at most that of the whole gradient.
    Tiers. Without a GPU "device" is an account in host memory: offload_optimizer and offload_param move what they name
    to the pinned host tier or to a file, and ds_zero_plan says how many bytes go where. With states on nvme the gradient
    accumulators are on disk, too; sub_group_size elements of each array are in memory at a time, in as many sets of buffers
    as the pipelines use, or as offload_optimizer.buffer_count (when given) holds, at most 16. What is summed for the first
    sub-groups waits in these sets and never goes to disk (with LAMB it does); other sums of small tensors that are
    neighbours move together. Without an allocator of yours the sets lie in huge pages, which a disk moves faster; one of
    yours may call ds_offload_huge. With pipeline_read all sets
    are filled during a step's last backward pass. With pipeline_write a step returns before its update is over: whether it
    counts, its norm and rate are settled, and a parameter is updated when the next pass fetches it, or all before that pass's
    first gradient, so that the disk works while the model computes; read, save and load find all updated, and what fails
    is the error of the call that waits for it. (Tensors that stay whole are updated in the step, and where one of these is
    of fp32 all of 16 bits, too; with LAMB, Muon or an optimizer of the client all are.) ns_step counts the step's own part
    of this. ratio: states of this part of the elements are offloaded, those of the others stay. fast_init: initial values
    go to disk through these buffers, many at once.
    Parameters on nvme are read through offload_param's buffer_count buffers of buffer_size elements, none larger or more
    than needed; max_in_cpu elements of them stay in memory (in whole aio.block_size), and 1e9 is the default: 0 has all on disk.
    What the files themselves take (bounce buffers, tables) is in the plan's host bytes.

ON A GPU
        ds_device device;                                 ds_kernels.cu: ds_cuda_device(&device)
        ds_optim_kernels kernels;                         ds_cuda_optim_kernels(&kernels)
        desc.device = &device, desc.kernels = &kernels;
    Parameters, gradients, buckets and what is not offloaded are the device's memory: slots, gradients and buffers that the
    model gives and gets point there. No CUDA type shows; link ds_kernels.o, or fill the tables yourself. Ranks need a
    communicator whose ds_comm_desc.device is set, and .kernels to sum there and for the 1-bit family: "nccl" sends device
    memory as it is, others copy it through the host. The results have the CPU's bits.
    Every call that takes a stream orders its work after what that stream has to do, and returns before it is done: the
    gradient that ds_zero_grad was given may be written again by work that comes on the stream later. Use one stream, or
    order others after it. What was released may still be read by work that is on the stream of the last call already.
    Copies between host and device have streams of their own and pinned memory on the host's side, so that parameters from
    offload_param come while the model computes, and new weights go up while the CPU updates the next piece. With
    offload_optimizer gradients come down bucket by bucket and the CPU updates (with ratio both sides do); a sub-group is
    then at most 4 Mi elements. The CPU also updates, from states in host memory, for an optimizer that the kernels lack
    (log id 12): one of your own, and Muon with some of its states offloaded. With sparse_gradients kernels find, send and
    add the rows, if the communicator has .kernels.

STEP BY STEP
    1. ds_config_parse the JSON; ds_zero_unclaimed(config) names keys that nothing acts on: stop there.
    2. ds_comm_create. 3. ds_zero_plan tells the memory. 4. ds_zero_create, on every rank alike.
    5. The loop above. Evaluation: begin with DS_ZERO_EVALUATE, fetch, compute, release, end; allowed between
       micro-batches. 6. ds_zero_save and ds_zero_load, on every rank alike.

MEMORY
    Everything comes from desc.allocator; without one from malloc, and parameters and gradients of ranks that are processes of
    one machine from the memory that they share (ds_comm_alloc), of the same sizes. ds_zero_stats tells bytes in use and their
    high water by class and tier. From the second step of an unchanged trace on nothing is allocated. desc.limit refuses a plan
    that is too large for a tier, with its largest item and the cheapest change of zero_optimization that would fit (nvme also
    wants its nvme_path). What costs least speed is tried first: buckets of 1,000,000 elements; a higher stage; buckets of
    100,000 and 1,000, by which a message has few tensors; at stage 3 stage3_max_live_parameters from 100,000,000 down by
    tens to 0, and stage3_param_persistence_threshold likewise, which gather more often; then states on the CPU, parameters
    on the CPU, states on nvme, parameters on nvme, each with the same, where sub_group_size, both sections' buffers and
    max_in_cpu shrink along; what is offloaded is not taken back to the device. Only the keys that must change are named.
    stage3_prefetch_bucket_size and stage3_max_reuse_distance change no bytes. Whole parameters at stage 3 stand in one piece of
    memory, each on pages of its own: of the whole model, or of the worst choice of parameters that the window lets in at once.

ERRORS
    Each call returns a ds_status; ds_zero_error(zero) has the text, naming the parameter. Misuse (a gradient too many, a step
    too early, a release without fetch) changes nothing. An engine or room for an answer that is NULL is DS_ERR_ARGUMENT, and
    harmless where no status can be given. After an error of a collective, of the disk or of a client's update the engine is
    dead: every later call returns the same error, and the last checkpoint is what remains. A step skipped for overflow is not an
    error: report.skipped. Log ids: 2 step skipped, 3 a parameter that finds no room in the window's memory, 4 memory not pinned,
    5 reduction at the step's boundary, 9 fewer swap buffers than the pipelines want, 6 times of a
    step (wall_clock_breakdown), 7 the step (every steps_per_print), 8 the state at create (dump_state), 10 a load of
    what is not ds's own, 11 another comm_backend_name than the communicator's, 12 the CPU updates for the GPU,
    14 round_robin_gradients, where the optimizer takes no tensor whole and there is nothing to deal out.

THREADS
    One thread at a time per engine. Several engines may live in one process.

CONFIG KEYS
    ds_zero_claims() lists every key that this header and what it wires act on. Where the documents and DeepSpeed differ,
    ds_config.h says what stands. Beside those: gradients are divided by the scale that multiplied the loss (DeepSpeed
    divides by the new one on the step where the scale grows); there is no optimizer step at construction (DeepSpeed's
    16-bit stage 0 makes one on zero gradients), and that stage has hysteresis and an end at the smallest scale, and divides
    before it sums, as the others; fp32 and bf16 at stage 0 check for overflow as the other stages do; norms beyond fp32's
    range are right, and clip (DeepSpeed's become infinite, or zero); with Muon the norm is the gradients' (DeepSpeed's
    under ZeRO is that of the orthogonalised update).
*/
#if defined(DS_IMPLEMENTATION) && !defined(DS_ZERO_IMPLEMENTATION)
#define DS_ZERO_IMPLEMENTATION
#endif
#ifndef DS_ZERO_H
#define DS_ZERO_H
#define DS_ZERO_VERSION 100 /* major * 10000 + minor * 100 + patch */

#include "ds_config.h"
#include "ds_comm.h"
#include "ds_optim.h"
#include "ds_offload.h"
#include "ds_checkpoint.h"
#include "ds_monitor.h"

/*== ds block: core 1 == the same text in every ds_*.h; its home is ds_config.h, `make blocks` copies it ==*/
#if defined(DS_CORE_BLOCK) && DS_CORE_BLOCK != 1
#error "ds: headers of two versions meet in this file; vendor all ds_*.h from one release"
#endif
#ifndef DS_CORE_BLOCK
#define DS_CORE_BLOCK 1
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Linkage of every public function. DS_STATIC (define it wherever a ds header is included in that file) makes the
   whole of ds private to one file; the implementation must then be in the same file. */
#ifdef DS_STATIC
#define DS_API static __attribute__((unused))
#else
#define DS_API extern
#endif

/* What a call came to. Zero is success; -1..-19 is misuse or wrong input, -20..-39 the environment (memory, disk,
   device, peers), -40..-59 a numeric event. The text is in the ds_error that the call or its object fills. */
typedef enum ds_status {
    DS_OK = 0,
    DS_ERR_ARGUMENT = -1,    /* an argument or descriptor field is out of its range */
    DS_ERR_STATE = -2,       /* a right call at the wrong time */
    DS_ERR_VERSION = -3,     /* header and implementation are of different versions */
    DS_ERR_INPUT = -4,       /* text or file from outside is malformed or contradicts itself */
    DS_ERR_UNSUPPORTED = -5, /* not built in, or not possible on this machine */
    DS_ERR_MEMORY = -20,
    DS_ERR_IO = -21,      /* the operating system refused or failed */
    DS_ERR_SPACE = -22,   /* a disk or quota is full */
    DS_ERR_CORRUPT = -23, /* data came back other than it was written */
    DS_ERR_TIMEOUT = -24, /* a deadline passed */
    DS_ERR_PEER = -25,    /* another rank died or called something else */
    DS_ERR_DEVICE = -26,
    DS_ERR_NUMERIC = -40 /* training cannot go on: e.g. an overflow at the smallest loss scale */
} ds_status;
#define DS_IS_MISUSE(status)      ((status) <= -1 && (status) >= -19)
#define DS_IS_ENVIRONMENT(status) ((status) <= -20 && (status) >= -39)
#define DS_IS_NUMERIC(status)     ((status) <= -40 && (status) >= -59)

/* Owned by the caller; zero-initialise it once. A call writes it only when it fails: one line of UTF-8 without a
   newline that says what failed, where, what was expected and what was found. */
typedef struct ds_error {
    ds_status status;
    char message[508];
} ds_error;

/* Element types. Sizes in bytes: DS_DTYPE_SIZE. Half types round to nearest even. */
typedef enum ds_dtype {
    DS_F32 = 0,
    DS_F16 = 1,
    DS_BF16 = 2,
    DS_F64 = 3,
    DS_I8 = 4,
    DS_U8 = 5,
    DS_I16 = 6,
    DS_U16 = 7,
    DS_I32 = 8,
    DS_U32 = 9,
    DS_I64 = 10,
    DS_U64 = 11,
    DS_BOOL = 12
} ds_dtype;
#define DS_DTYPE_COUNT       13
#define DS_DTYPE_SIZE(dtype) ((size_t)("\4\2\2\10\1\1\2\2\4\4\10\10\1"[(dtype)]))

/* Partitions, buckets, sub-groups and swap splits of a tensor start at multiples of this many elements. */
#define DS_GRAIN 1024

/* Memory. A zeroed struct means malloc and free. `alloc` returns NULL on failure; `align` is a power of two, at
   least 16; `release` gets the same bytes and align. Thread safety: as the object that uses it. */
typedef struct ds_allocator {
    void *(*alloc)(void *ctx, size_t bytes, size_t align);
    void (*release)(void *ctx, void *memory, size_t bytes, size_t align);
    void *ctx;
} ds_allocator;

/* Log lines. A NULL `log` is silence; errors are still returned. `message` ends without a newline and is valid
   during the call only; `id` is a number that the header's manual lists. May be called from any thread of the object. */
typedef enum ds_log_level { DS_LOG_ERROR = 0, DS_LOG_WARNING = 1, DS_LOG_INFO = 2, DS_LOG_DEBUG = 3 } ds_log_level;
typedef struct ds_logger {
    void (*log)(void *ctx, const char *header, int level, int id, const char *message);
    void *ctx;
} ds_logger;

/* Parallel work. A NULL `parallel_for` is a plain loop on the calling thread. It must call
   body(arg, begin, end, worker) over disjoint ranges that cover [0, count), each a multiple of `grain` long but for
   the last, with worker < workers and no two ranges at once on one worker, and return after the last one ends. */
typedef struct ds_tasks {
    void (*parallel_for)(void *ctx, size_t count, size_t grain,
                         void (*body)(void *arg, size_t begin, size_t end, unsigned worker), void *arg);
    void *ctx;
    unsigned workers; /* 0 counts as 1 */
} ds_tasks;

/* Time. Zeroed means CLOCK_MONOTONIC and nanosleep. */
typedef struct ds_clock {
    int64_t (*now)(void *ctx); /* ns since some fixed moment; never goes back */
    void (*sleep)(void *ctx, int64_t ns);
    void *ctx;
} ds_clock;

/* Files. Every member left NULL is the system's own call. Each returns -errno on failure, else 0 or what is said.
   A seam for fault injection and for file systems of your own. Thread safety: members may be called at once. */
typedef struct ds_files {
    void *ctx;
    int (*open)(void *ctx, const char *path, int flags, unsigned mode); /* a descriptor >= 0 */
    int (*close)(void *ctx, int fd);
    int64_t (*read)(void *ctx, int fd, void *buffer, size_t bytes, int64_t offset);        /* bytes; 0 at the end */
    int64_t (*write)(void *ctx, int fd, const void *buffer, size_t bytes, int64_t offset); /* bytes, may be short */
    int (*sync)(void *ctx, int fd);                                                        /* fsync */
    int (*truncate)(void *ctx, int fd, int64_t bytes);
    int (*reserve)(void *ctx, int fd, int64_t offset, int64_t bytes); /* fallocate */
    int64_t (*size)(void *ctx, int fd);
    int (*exists)(void *ctx, const char *path); /* 0 no, 1 file, 2 folder, 3 other; symlinks are not followed */
    int (*rename)(void *ctx, const char *from, const char *to);
    int (*unlink)(void *ctx, const char *path);
    int (*mkdir)(void *ctx, const char *path, unsigned mode);
    int (*rmdir)(void *ctx, const char *path);
    int (*list)(void *ctx, const char *path, void (*entry)(void *arg, const char *name), void *arg);
} ds_files;

/* A device's memory and order of work. NULL members: see the header that uses them. A stream is the backend's own
   handle (cudaStream_t as void *; NULL its default stream). Calls order work on a stream and may return before it is
   done; `synchronize` waits. Source and destination of `copy` may be device, pinned or plain memory. */
typedef struct ds_device {
    void *ctx;
    ds_status (*alloc)(void *ctx, size_t bytes, void **memory);
    void (*release)(void *ctx, void *memory, size_t bytes);
    ds_status (*pinned_alloc)(void *ctx, size_t bytes, void **memory);
    void (*pinned_release)(void *ctx, void *memory, size_t bytes);
    ds_status (*copy)(void *ctx, void *to, const void *from, size_t bytes, void *stream);
    ds_status (*fill)(void *ctx, void *to, int byte, size_t bytes, void *stream);
    ds_status (*stream_create)(void *ctx, void **stream);
    void (*stream_destroy)(void *ctx, void *stream);
    ds_status (*event_create)(void *ctx, void **event);
    void (*event_destroy)(void *ctx, void *event);
    ds_status (*event_record)(void *ctx, void *event, void *stream);
    ds_status (*event_wait)(void *ctx, void *event, void *stream); /* the stream waits, not the caller */
    ds_status (*event_done)(void *ctx, void *event, bool *done);
    ds_status (*synchronize)(void *ctx, void *stream);
    const char *(*describe)(void *ctx); /* name of the device, and the last error's text */
} ds_device;

/* The ranks that share an object, for small exchanges. `exchange` gives each rank all ranks' `bytes` bytes in rank
   order: all is (size, bytes). Every rank must call it alike. Zeroed means one rank. */
typedef struct ds_group {
    ds_status (*exchange)(void *ctx, const void *mine, void *all, size_t bytes);
    void *ctx;
    int rank;
    int size; /* 0 counts as 1 */
} ds_group;
#endif
/*== end of ds block: core ==*/

#if defined(DS_STATIC) && !defined(DS_ZERO_IMPLEMENTATION)
#error "ds: DS_STATIC needs the implementation in the same file; define DS_IMPLEMENTATION before including ds_zero.h"
#endif
#ifdef __cplusplus
extern "C" {
#endif

typedef struct ds_zero ds_zero; /* an engine; opaque, never moves */

#define DS_ZERO_MAX_DIMS 8

/* One parameter. The struct and its strings are copied at create; `slot`, `data` (stages 0 to 2) and `init`'s context
   must outlive the engine. All ranks give the same list but for the pointers slot, data, init and ctx; a parameter has data
   on all of them or on none. */
typedef struct ds_zero_param {
    const char *name; /* unique, UTF-8 without control characters, not __metadata__ or optimizer.*; as in checkpoints */
    size_t shape[DS_ZERO_MAX_DIMS]; /* row-major; its product is the number of elements, 0 is allowed */
    int dims;                       /* 0: a scalar */
    ds_dtype dtype;    /* what the model computes with: ds_zero_model_dtype(config), or DS_F32 to stay in fp32 */
    size_t group;      /* index into ds_zero_desc.groups; 0 when there are none */
    bool frozen;       /* no gradient, no states */
    bool replicated;   /* every rank of model_group holds the same: its squares count once in the norm */
    int contributions; /* gradients per micro-batch, more than one for tied weights; 0 counts as 1 */
    bool sparse;       /* a table of which a micro-batch uses few rows (the first dimension), as an embedding: with
                          sparse_gradients only rows that are not zero travel [cfg: sparse_gradients] */
    void **slot;       /* receives the address of the whole tensor; NULL when the parameter is not fetched */
    void *data; /* initial values in `dtype`; at stages 0 to 2 the model's own memory, updated in place. At stage 3
                           read at create only. NULL: the engine's memory, filled by init */
    void (*init)(void *ctx, size_t begin, size_t count, float *out); /* elements [begin, begin + count) in fp32; NULL
                                                                        without data: zeros */
    void *ctx;
} ds_zero_param;

/* What differs between parameter groups; a negative value takes the configuration's, one that is not finite is refused. */
typedef struct ds_zero_group {
    double lr;
    double weight_decay;
} ds_zero_group;

typedef enum ds_zero_pass { DS_ZERO_TRAIN = 0, DS_ZERO_EVALUATE = 1, DS_ZERO_GENERATE = 2 } ds_zero_pass;

/* What memory is for, and where it is. "Device" is the tier of computation: GPU memory with a device table, else the
   unpinned host memory that plays its part; "host" is what an offload section puts in CPU memory; "disk" is swap files. */
typedef enum ds_zero_class {
    DS_ZERO_PARAMS = 0,  /* parameters, or this rank's parts of them */
    DS_ZERO_GRADS,       /* gradient accumulators, and at stages 0 and 1 the micro-batch's full gradient */
    DS_ZERO_STATES,      /* fp32 master weights and the optimizer's moments */
    DS_ZERO_GATHERED,    /* whole parameters between fetch and release at stage 3 */
    DS_ZERO_BUCKETS,     /* communication and swap buffers */
    DS_ZERO_BOOKKEEPING, /* tables, names, traces */
    DS_ZERO_CLASSES
} ds_zero_class;
typedef enum ds_zero_tier { DS_ZERO_DEVICE = 0, DS_ZERO_HOST = 1, DS_ZERO_DISK = 2, DS_ZERO_TIERS } ds_zero_tier;

typedef struct ds_zero_bytes {
    size_t bytes[DS_ZERO_CLASSES][DS_ZERO_TIERS];
} ds_zero_bytes;

typedef struct ds_zero_desc {
    const ds_config *config;     /* resolved; read at create only */
    ds_comm *comm;               /* duplicated for this engine; NULL: one rank */
    const ds_zero_param *params; /* (n_params) */
    size_t n_params;
    const ds_zero_group *groups; /* (n_groups); NULL: one group from the configuration */
    size_t n_groups;
    size_t largest_fetch; /* elements that the model holds fetched at once at stage 3, beyond
                             stage3_max_live_parameters; 0: the largest parameter */
    size_t
        limit[DS_ZERO_TIERS]; /* bytes that this rank may hold in each tier; 0: no limit. A plan beyond it is refused */
    size_t gradient_buffers;  /* of ds_zero_grad_buffer that the model holds at once; more are allocated as needed */
    const ds_optim_table *optimizer; /* the client's own; NULL: optimizer.type */
    const ds_device *device; /* the GPU of this rank, every member set; NULL: host memory plays its part. Copied */
    const ds_optim_kernels *kernels;                          /* with device: its kernels, every member set; copied */
    double (*schedule)(void *ctx, int64_t step, double base); /* the client's own learning rate of optimizer step
                                                                 0, 1, ...; NULL: scheduler.type */
    void *schedule_ctx;
    ds_group model_group; /* ranks that hold the other parts of the model (tensor or pipeline parallelism): the
                             gradients' norm and overflow span it. Used once in each step. Zeroed: none */
    void (*event)(void *ctx, const char *tag, double value, int64_t samples); /* the documents' scalars, on rank 0 */
    void *event_ctx;
    ds_allocator allocator;
    ds_logger logger;
    ds_tasks tasks;
    ds_clock clock;
    ds_files files;
    ds_offload_aio aio; /* asynchronous I/O of the swap files; zeroed: the best that works here */
    int64_t probe;      /* ns that create measures the bandwidth of each swap folder for; 0: not */
} ds_zero_desc;

/* What a step did. Norm and loss are those of the whole batch, the same on every rank. */
typedef struct ds_zero_report {
    int64_t step;          /* optimizer steps taken or skipped, this one included: 1, 2, ... */
    int64_t skipped_steps; /* so far */
    int64_t samples;       /* samples seen over all ranks */
    double loss;           /* mean of ds_zero_loss over micro-batches and ranks; NaN when none was given */
    double lr;             /* group 0, as used by this step */
    double momentum;       /* beta1 or momentum of group 0 */
    double grad_norm;      /* before clipping, unscaled; infinity when a gradient is not finite */
    double loss_scale;     /* that multiplied this step's losses */
    double next_loss_scale;
    bool skipped;          /* for overflow: parameters and states are as before */
    size_t overflow_param; /* index of the first parameter whose gradient was not finite, when skipped; SIZE_MAX: it is
                              in another part of the model */
    bool stop;             /* some rank called ds_zero_stop before this step */
    int64_t ns_forward, ns_backward, ns_reduce, ns_step; /* wall clock of this rank since the last step */
} ds_zero_report;

typedef struct ds_zero_stats {
    ds_zero_bytes now, peak;
    size_t gathered_elements_peak;  /* stage 3: elements of whole parameters held at once */
    size_t fetches, fetches_waited; /* stage 3: those that found their parameter absent or still on its way */
    size_t buckets;                 /* reductions per micro-batch */
    size_t allocations;             /* calls of the allocator since create began */
    ds_offload_stats swap;          /* zero without an nvme device */
    ds_comm_stats comm;             /* of calls that are over */
    ds_comm_stats node,
        across; /* beside it, with zero_hpz_partition_size: between ranks of a node, and of like place */
} ds_zero_stats;

/* The type that parameters and activations have under this configuration: DS_F16, DS_BF16 or DS_F32.
   [cfg: fp16.enabled, bf16.enabled] */
DS_API ds_dtype ds_zero_model_dtype(const ds_config *config);

/* Keys that this header and its wiring act on: `*n` paths, static. A path of an object claims all below it. */
DS_API const char *const *ds_zero_claims(size_t *n);

/* Names each given key that nothing acts on, in one message. DS_ERR_UNSUPPORTED when there is one. A program that trains
   calls it after parsing and stops there. `extra` adds keys that the program itself reads. */
DS_API ds_status ds_zero_unclaimed(const ds_config *config, const char *const *extra, size_t n_extra, ds_error *error);

/* ds_wire_<leaf>: turn configuration keys into a leaf's descriptor; fields that no key names are left as they were.
   Errors: DS_ERR_INPUT with the key's path. Thread-safe. */
DS_API ds_status ds_wire_comm(const ds_config *config, ds_comm_desc *desc, ds_error *error);
/* `params` receives the parameters of a group; the descriptor's type is set, or its tables with `client`'s own. */
DS_API ds_status ds_wire_optim(const ds_config *config, const ds_optim_table *client, ds_optim_desc *desc,
                               ds_optim_params *params, ds_error *error);
DS_API ds_status ds_wire_schedule(const ds_config *config, ds_schedule *schedule, ds_error *error);
DS_API ds_status ds_wire_loss_scaler(const ds_config *config, ds_loss_scaler_params *params, ds_error *error);
/* `parameters`: from offload_param, else from offload_optimizer; aio in both. */
DS_API ds_status ds_wire_offload(const ds_config *config, bool parameters, ds_offload_desc *desc, ds_error *error);
DS_API ds_status ds_wire_checkpoint(const ds_config *config, ds_checkpoint_desc *desc, ds_error *error);
DS_API ds_status ds_wire_monitor(const ds_config *config, ds_monitor_desc *desc, ds_error *error);

/* Bytes by class and tier that an engine of this descriptor will hold on this rank, before anything is allocated. `rank`
   and `world` need no communicator; desc->comm is not used. What the allocator then gives for training is this to the
   byte, while gradients come in the order of the pass before: one that comes before its bucket is open waits in a buffer of
   its own until the pass ends, or in one that desc->gradient_buffers counts in; at stage 3, while a pass has no more than
   four fetches for each parameter, holds no more at once than stage3_max_live_parameters + desc->largest_fetch elements,
   and, where that is not
   the whole model, releases first what it fetched last (of those with no fetch between their releases any): else gaps may be
   too short between what is held, which cannot move, and a parameter gets memory of its own (log id 3); a larger
   largest_fetch prevents that. Saving and loading take more for their time. Errors: as
   ds_zero_create's for the descriptor; DS_ERR_MEMORY when desc->limit is exceeded: the text has the largest item and the
   cheapest change that would fit, and *out is written. */
DS_API ds_status ds_zero_plan(const ds_zero_desc *desc, int rank, int world, ds_zero_bytes *out, ds_error *error);

DS_API ds_status ds_zero_create_(const ds_zero_desc *desc, size_t desc_bytes, int version, ds_zero **out,
                                 ds_error *error);
/* Makes an engine; collective over desc->comm. On failure *out is NULL and nothing is held.
   Errors: DS_ERR_ARGUMENT (descriptor), DS_ERR_INPUT (configuration, ranks that registered different parameters or have
   different values of a key that they must have alike), DS_ERR_MEMORY, and those of disk and communication. */
static inline ds_status ds_zero_create(const ds_zero_desc *desc, ds_zero **out, ds_error *error) {
    return ds_zero_create_(desc, sizeof *desc, DS_ZERO_VERSION, out, error);
}
/* Not collective, but waits for what is under way. NULL is allowed. Parameters in the engine's memory are gone, those in the
   model's own stay. */
DS_API void ds_zero_destroy(ds_zero *zero);
/* The last failure of this engine; valid until the next call. */
DS_API const ds_error *ds_zero_error(const ds_zero *zero);

/* A pass opens and closes: one micro-batch of training, or one evaluation or generation. At the end of a training pass a
   gradient that did not come counts as zero with ignore_unused_parameters, else DS_ERR_STATE names it and the pass stays
   open. Passes do not nest. [cfg: zero_optimization.ignore_unused_parameters] */
DS_API ds_status ds_zero_begin(ds_zero *zero, ds_zero_pass pass);
DS_API ds_status ds_zero_end(ds_zero *zero);

/* Makes parameter `index` whole and sets its slot; returns when it may be read on `stream`. Fetches count: each needs one
   release. At stage 3 collective, so every rank fetches in the same order; at stages 0 to 2 it only counts, and with
   ds.gather_in_background waits for what the last step sent of this parameter, as it does of one that stays whole at stage
   3. [cfg: ds.gather_in_background] */
DS_API ds_status ds_zero_fetch(ds_zero *zero, size_t index, void *stream);
/* The last release of a parameter that is not kept whole sets its slot to NULL. A copy of that pointer may not be used any
   more, which a build with AddressSanitizer reports. DS_ERR_STATE when it is not fetched. */
DS_API ds_status ds_zero_release(ds_zero *zero, size_t index);

/* Multiply the loss by this before the backward pass: 1 but for fp16, where it is the loss scale over
   gradient_accumulation_steps (with ds.world_invariant the loss scale). [cfg: fp16.loss_scale] */
DS_API double ds_zero_loss_scale(const ds_zero *zero);

/* Gives one contribution to the gradient of `index`: (numel) elements of the parameter's dtype, of the micro-batch's mean
   loss times the scale. Copied. May start a reduction, and wait for the other
   ranks: where overlap_comm is false, and for the memory of a bucket that they have yet to reduce. DS_ERR_STATE for one contribution too many, and at stage 3 for one
   that comes after a fetch before which another rank gave its own. */
DS_API ds_status ds_zero_grad(ds_zero *zero, size_t index, const void *gradient, void *stream);
/* The same without a buffer of your own: write (numel) elements to *buffer, then call ready. One buffer at a time per
   parameter; the memory is the engine's until ready. On failure *buffer stays as it was. */
DS_API ds_status ds_zero_grad_buffer(ds_zero *zero, size_t index, void **buffer);
DS_API ds_status ds_zero_grad_ready(ds_zero *zero, size_t index, void *stream);

/* The micro-batch's loss on this rank, not scaled; for the report and the monitor only. In its pass, or after the last one
   and before the step; DS_ERR_STATE in a pass that does not train. */
DS_API ds_status ds_zero_loss(ds_zero *zero, double loss);
/* Asks all ranks to stop: the flag travels with the next step's overflow flag, so that every rank sees report.stop at
   the same step. May be called from a signal handler. */
DS_API void ds_zero_stop(ds_zero *zero);

/* The optimizer's step; after gradient_accumulation_steps training passes, else DS_ERR_STATE. Collective. `report` may
   be NULL. DS_ERR_NUMERIC: an overflow at the smallest loss scale. [cfg: gradient_clipping, fp16, optimizer, scheduler] */
DS_API ds_status ds_zero_step(ds_zero *zero, ds_zero_report *report);

DS_API ds_status ds_zero_get_stats(const ds_zero *zero, ds_zero_stats *out);
/* The comms log of the engine's communicators as ds_comm_log_summary writes it; collective. [cfg: comms_logger] */
DS_API ds_status ds_zero_comm_summary(ds_zero *zero, void (*line)(void *ctx, const char *text), void *ctx);
DS_API int64_t ds_zero_steps(const ds_zero *zero); /* taken or skipped */
DS_API int64_t ds_zero_samples(const ds_zero *zero);
DS_API int ds_zero_rank(const ds_zero *zero);
DS_API int ds_zero_world(const ds_zero *zero);

/* Copies elements [begin, begin + count) of a parameter's fp32 value (the master where there is one) or of optimizer
   state `state` (0, 1, ...; -1 is the value) to `out` on every rank. Collective; between passes. */
DS_API ds_status ds_zero_read(ds_zero *zero, size_t index, int state, size_t begin, size_t count, float *out);

/* Saves everything under folder/tag: values, states, schedule, loss scaler, counters, and `client_bytes` of the caller's own
   per rank 0. Collective; between steps. The folder's `latest` names the tag once all is on disk; until then the previous
   one stands. Tag NULL: global_step<N>. With ds.save_in_background it copies all to host memory and returns while a thread
   writes, and the tag stands after ds_zero_save_finish; with ds.keep_last older tags go. [cfg: checkpoint] */
DS_API ds_status ds_zero_save(ds_zero *zero, const char *folder, const char *tag, const void *client,
                              size_t client_bytes);
/* Waits for a save in the background and commits it; without one it does nothing. Collective; the next save, a load and
   destroy do it too. Errors: those of the save, and the previous checkpoint stands. [cfg: ds.save_in_background] */
DS_API ds_status ds_zero_save_finish(ds_zero *zero);
/* Loads what ds_zero_save wrote at any stage and offload, and any world size unless elastic_checkpoint is given as false.
   With tag NULL `folder` is whatever ds_checkpoint_open_path opens: of a checkpoint of DeepSpeed (ZeRO or universal) the
   weights, states and counters are taken, of safetensors the weights alone; tensors that the engine lacks are left.
   A loss scale and what goes with it is taken where both sides have one.
   Tag NULL: the latest complete one. `*client` is allocated with the engine's allocator and stays its own until the next
   load or destroy. Collective; between steps. [cfg: zero_optimization.elastic_checkpoint]
   On failure nothing is changed, unless the message says that the engine is dead.
   Errors: DS_ERR_INPUT (no checkpoint, or of another model: names the first difference), DS_ERR_CORRUPT (names the file). */
DS_API ds_status ds_zero_load(ds_zero *zero, const char *folder, const char *tag, const void **client,
                              size_t *client_bytes);
/* Writes one safetensors file of the parameters in the model's dtype, for other tools. Collective. At stage 3 only with
   stage3_gather_16bit_weights_on_model_save. [cfg: zero_optimization.stage3_gather_16bit_weights_on_model_save] */
DS_API ds_status ds_zero_save_16bit_model(ds_zero *zero, const char *path);

#ifdef __cplusplus
}
#endif
#endif /* DS_ZERO_H */

#if defined(DS_ZERO_IMPLEMENTATION) && !defined(DS_ZERO_IMPL_DONE)
#define DS_ZERO_IMPL_DONE
/*== ds block: base 1 == home: ds_config.h ==*/
#if defined(DSI_BASE_BLOCK) && DSI_BASE_BLOCK != 1
#error "ds: implementations of two versions meet in this file; vendor all ds_*.h from one release"
#endif
#ifndef DSI_BASE_BLOCK
#define DSI_BASE_BLOCK 1
#if defined(__linux__) && defined(__STRICT_ANSI__) && !defined(_GNU_SOURCE)
#error                                                                                                                 \
    "ds: with -std=c99 define _GNU_SOURCE before the first #include of the file that implements ds (or use -std=gnu99)"
#endif
#ifdef __FAST_MATH__
#error "ds: do not compile ds implementations with -ffast-math; results would depend on the compiler"
#endif
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define DSI_FN                  static __attribute__((unused))
#define DSI_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define DSI_FN static
#define DSI_PRINTF(text, first)
#endif

/* Formats into a fixed buffer; a text that does not fit is cut before a UTF-8 character, never inside one. */
DSI_FN void dsi_vformat(char *out, size_t room, const char *format, va_list args) {
    int length = vsnprintf(out, room, format, args);
    if (length < 0) out[0] = 0;
    if (length >= 0 && (size_t)length >= room) {
        size_t end = room - 1;
        while (end && ((unsigned char)out[end - 1] & 0xC0) == 0x80) end--;
        if (end && (unsigned char)out[end - 1] >= 0xC0) out[end - 1] = 0;
    }
}

/* Fills `error` (which may be NULL) and returns the status, so that a caller can `return dsi_fail(...)`. */
DSI_PRINTF(3, 4) DSI_FN ds_status dsi_fail(ds_error *error, ds_status status, const char *format, ...) {
    if (error) {
        va_list args;
        va_start(args, format);
        error->status = status;
        dsi_vformat(error->message, sizeof error->message, format, args);
        va_end(args);
    }
    return status;
}

DSI_PRINTF(5, 6)
DSI_FN void dsi_log(const ds_logger *logger, const char *header, int level, int id, const char *format, ...) {
    if (logger && logger->log) {
        char message[1024];
        va_list args;
        va_start(args, format);
        dsi_vformat(message, sizeof message, format, args);
        va_end(args);
        logger->log(logger->ctx, header, level, id, message);
    }
}

/* a * b, or SIZE_MAX when that does not fit; an allocation of SIZE_MAX bytes always fails. */
DSI_FN size_t dsi_mul(size_t a, size_t b) {
    return b && a > SIZE_MAX / b ? SIZE_MAX : a * b;
}
DSI_FN size_t dsi_add(size_t a, size_t b) {
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}
DSI_FN size_t dsi_round_up(size_t n, size_t multiple) {
    size_t rest = n % multiple;
    return rest ? dsi_add(n, multiple - rest) : n;
}

/* Zero bytes are given one, so that NULL always means failure; release needs the same numbers as alloc. */
DSI_FN void *dsi_alloc_aligned(const ds_allocator *a, size_t bytes, size_t align) {
    void *memory = NULL;
    if (bytes > SIZE_MAX / 2) return NULL;
    if (bytes == 0) bytes = 1;
    if (a && a->alloc) return a->alloc(a->ctx, bytes, align);
    if (align <= 16) return malloc(bytes);
    return posix_memalign(&memory, align, bytes) ? NULL : memory;
}
DSI_FN void dsi_release_aligned(const ds_allocator *a, void *memory, size_t bytes, size_t align) {
    if (!memory) return;
    if (bytes == 0) bytes = 1;
    if (a && a->alloc) {
        if (a->release) a->release(a->ctx, memory, bytes, align);
    } else
        free(memory);
}
DSI_FN void *dsi_alloc(const ds_allocator *a, size_t bytes) {
    return dsi_alloc_aligned(a, bytes, 16);
}
DSI_FN void *dsi_alloc_zero(const ds_allocator *a, size_t bytes) {
    void *memory = dsi_alloc_aligned(a, bytes, 16);
    if (memory) memset(memory, 0, bytes);
    return memory;
}
DSI_FN void dsi_release(const ds_allocator *a, void *memory, size_t bytes) {
    dsi_release_aligned(a, memory, bytes, 16);
}
#endif
/*== end of ds block: base ==*/
/*== ds block: threads 1 == home: ds_comm.h ==*/
#if defined(DSI_THREADS_BLOCK) && DSI_THREADS_BLOCK != 1
#error "ds: implementations of two versions meet in this file; vendor all ds_*.h from one release"
#endif
#ifndef DSI_THREADS_BLOCK
#define DSI_THREADS_BLOCK 1
#include <errno.h>
#include <pthread.h>
#include <time.h>

DSI_FN int64_t dsi_now(const ds_clock *clock) {
    struct timespec t;
    if (clock && clock->now) return clock->now(clock->ctx);
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
DSI_FN void dsi_sleep(const ds_clock *clock, int64_t ns) {
    struct timespec t;
    if (clock && clock->sleep) {
        clock->sleep(clock->ctx, ns);
        return;
    }
    t.tv_sec = (time_t)(ns / 1000000000);
    t.tv_nsec = (long)(ns % 1000000000);
    nanosleep(&t, NULL);
}
/* The moment `timeout` ns from now; a negative timeout never comes. */
DSI_FN int64_t dsi_deadline(const ds_clock *clock, int64_t timeout) {
    int64_t now = dsi_now(clock);
    return timeout < 0 || timeout > INT64_MAX - now ? INT64_MAX : now + timeout;
}

/* A pool that implements ds_tasks. One parallel_for at a time; the caller works too, as worker 0. Ranges are cut in
   equal shares of whole grains, so that which elements share a range depends on count, grain and workers alone. */
typedef struct dsi_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    pthread_t *threads;
    unsigned workers, started, left;
    unsigned long turn;
    bool stop;
    size_t count, grain;
    void (*body)(void *arg, size_t begin, size_t end, unsigned worker);
    void *arg;
    ds_allocator allocator;
} dsi_pool;
typedef struct dsi_pool_start {
    dsi_pool *pool;
    unsigned worker;
} dsi_pool_start;

DSI_FN void dsi_pool_share(dsi_pool *p, unsigned worker) {
    size_t grains = p->count / p->grain + (p->count % p->grain != 0);
    size_t begin = grains / p->workers * worker + (worker < grains % p->workers ? worker : grains % p->workers);
    size_t end = begin + grains / p->workers + (worker < grains % p->workers);
    begin *= p->grain;
    end = end * p->grain < p->count ? end * p->grain : p->count;
    if (begin < end) p->body(p->arg, begin, end, worker);
}
DSI_FN void *dsi_pool_main(void *arg) {
    dsi_pool *p = ((dsi_pool_start *)arg)->pool;
    unsigned worker = ((dsi_pool_start *)arg)->worker;
    unsigned long seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (p->turn == seen && !p->stop) pthread_cond_wait(&p->wake, &p->lock);
        if (p->stop) break;
        seen = p->turn;
        pthread_mutex_unlock(&p->lock);
        dsi_pool_share(p, worker);
        pthread_mutex_lock(&p->lock);
        if (--p->left == 0) pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}
DSI_FN void dsi_pool_for(void *ctx, size_t count, size_t grain,
                         void (*body)(void *arg, size_t begin, size_t end, unsigned worker), void *arg) {
    dsi_pool *p = (dsi_pool *)ctx;
    pthread_mutex_lock(&p->lock);
    p->count = count;
    p->grain = grain ? grain : 1;
    p->body = body;
    p->arg = arg;
    p->left = p->workers - 1;
    p->turn++;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    dsi_pool_share(p, 0);
    pthread_mutex_lock(&p->lock);
    while (p->left) pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}
DSI_FN size_t dsi_pool_bytes(unsigned workers) {
    return sizeof(dsi_pool) + workers * (sizeof(pthread_t) + sizeof(dsi_pool_start));
}
DSI_FN void dsi_pool_destroy(dsi_pool *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->started; i++) pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    {
        ds_allocator allocator = p->allocator;
        dsi_release(&allocator, p, dsi_pool_bytes(p->workers));
    }
}
/* `workers` counts the caller and is at least 1; workers - 1 threads are started. NULL when memory or threads fail. */
DSI_FN dsi_pool *dsi_pool_create(const ds_allocator *allocator, unsigned workers) {
    dsi_pool *p = (dsi_pool *)dsi_alloc_zero(allocator, dsi_pool_bytes(workers));
    dsi_pool_start *starts;
    if (!p) return NULL;
    if (allocator) p->allocator = *allocator;
    p->threads = (pthread_t *)(void *)(p + 1);
    starts = (dsi_pool_start *)(void *)(p->threads + workers);
    p->workers = workers;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    for (unsigned i = 0; i + 1 < workers; i++) {
        starts[i].pool = p;
        starts[i].worker = i + 1;
        if (pthread_create(&p->threads[i], NULL, dsi_pool_main, &starts[i]) != 0) {
            dsi_pool_destroy(p);
            return NULL;
        }
        p->started++;
    }
    return p;
}
#endif
/*== end of ds block: threads ==*/
#include <math.h>
#if defined(__SANITIZE_ADDRESS__)
#define DSI_ZERO_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DSI_ZERO_ASAN 1
#endif
#endif
#ifndef DSI_ZERO_ASAN
#define DSI_ZERO_ASAN 0
#endif
#if DSI_ZERO_ASAN
#include <sanitizer/asan_interface.h>
#endif

// >>structs

#define DSI_ZERO_HASH   14695981039346656037u /* FNV-1a begins with it */
#define DSI_ZERO_ALIGN  4096                  /* of every tensor memory: a page, and one block of O_DIRECT */
#define DSI_ZERO_HUGE   (2u << 20)            /* of memory that large pages are asked for */
#define DSI_ZERO_CHUNK  65536                 /* elements that pass through the scratch buffer at a time */
#define DSI_ZERO_STAGE  (1u << 22)            /* most elements of a sub-group that passes between a GPU and the host */
#define DSI_ZERO_DIRECT 65536 /* a tensor of so many elements is gathered in place, smaller ones are packed together */
#define DSI_ZERO_LATER  4096  /* and of so many in the background, where the time of a call does not show */
#define DSI_ZERO_APART  256   /* transfers after which those of the sets are waited for; a store tells 1,024 apart */
#define DSI_ZERO_NONE   SIZE_MAX
#define DSI_ZERO_GROUP  256                       /* values that share one scale in quantized messages */
#define DSI_ZERO_HOME   (1 + DS_OPTIM_MAX_STATES) /* index of parameters' parts among the arrays on disk */
#define DSI_ZERO_GRAD   (2 + DS_OPTIM_MAX_STATES) /* and of gradient accumulators */
#define DSI_ZERO_LANES  8                         /* buffers through which gradients go to disk */
#define DSI_ZERO_LANE   262144                    /* elements of one, where a part has as many */
#define DSI_ZERO_SETS   16                        /* sets of swap buffers, at most */

typedef enum dsi_zero_where {
    DSI_ZERO_ABSENT = 0,
    DSI_ZERO_READING, /* its part is on the way from the swap file into place */
    DSI_ZERO_GATHERING,
    DSI_ZERO_LIVE
} dsi_zero_where;

typedef struct dsi_zero_param {
    char *name;
    size_t shape[DS_ZERO_MAX_DIMS];
    int dims;
    ds_dtype dtype;
    size_t bytes_each;    /* of one element */
    size_t group, tensor; /* tensor: index in the optimizer; DSI_ZERO_NONE when frozen */
    int contributions;
    void **slot;
    size_t numel, grains, turn; /* turn: k of the parts' formula */
    size_t owner;               /* the one part that has the whole tensor; DSI_ZERO_NONE: all have their share */
    bool uncut;                 /* the optimizer takes the tensor as a whole */
    bool replicated;            /* the same on all ranks of the model group */
    size_t own_begin, own_count;
    size_t norm_at; /* of its first grain among the own ones */
    size_t shard;   /* where the own part stands in the arrays of states and accumulators, in elements */
    size_t place;   /* in z->order */
    size_t home;    /* where the own part stands in z->home, in bytes; stage 3, not whole */
    bool whole;     /* kept whole on every rank */
    bool external;  /* in the model's own memory */
    bool sparse;    /* reduced by rows, in a bucket of its own */
    char *full;     /* the whole tensor, or NULL */
    ds_comm_handle gather;
    /* stage 3 */
    dsi_zero_where where;
    int fetches;
    size_t spot; /* its own place in the arena, where all have one */
    bool loose;  /* `full` did not fit the arena */
    uint64_t sweep;
    size_t near, near_begin; /* the part of the node's copy: where in z->near in bytes, first element */
    size_t *near_counts;     /* (near_parts): elements of each rank of the node */
    bool near_valid;         /* since the last update */
    bool from_near;          /* the gather under way */
    size_t reads;            /* buffers of the pool with a piece of it */
    size_t *counts;          /* (parts): elements of each rank's part */
    /* gradient of this micro-batch */
    size_t bucket, piece; /* piece: first of (parts) entries in z->piece_offset */
    int given;
    size_t after;                /* stage 3: fetches before its last gradient */
    char *stash;                 /* a gradient that came before its bucket was open, in the wire type */
    char *own;                   /* memory for that until the pass ends, where no buffer was free */
    struct dsi_zero_param *idle; /* the next one whose `own` is not in use */
    char *lent;                  /* memory that the model writes a gradient to, in the parameter's type */
    void *ready;                 /* on a GPU: an event, of the copy of the own part to its place */
} dsi_zero_param;

typedef struct dsi_zero_bucket {
    size_t first, count; /* in z->bucket_order */
    size_t elements;
    size_t stride;  /* quantized gradients: elements of each rank's part; else 0 */
    size_t missing; /* parameters whose gradient is not complete */
    size_t after;   /* stage 3: fetches before the last gradient of it, */
    size_t due; /* and before its reduction is put to the vote: as many as it took in the pass before, at first none */
    size_t offset; /* stages 0 and 1: where it stands in the gradient memory, in elements */
    ds_comm_handle handle;
} dsi_zero_bucket;

typedef struct dsi_zero_trace {
    uint32_t *fetched; /* parameters in the order of their fetches */
    size_t count, room;
    size_t held;   /* most bytes of parameters that the pass holds at a time */
    bool recorded; /* the trace is that of a whole pass and may be relied on */
} dsi_zero_trace;

/* A run of shard space whose states are updated together, and the bytes of z->home that go with it. */
typedef struct dsi_zero_sub {
    size_t begin, end;
    size_t home_begin, home_end;
} dsi_zero_sub;

/* Memory of one sub-group while its arrays are swapped in. */
typedef struct dsi_zero_set {
    float *array[1 + DS_OPTIM_MAX_STATES]; /* the master and the states */
    char *home, *grad;
    ds_offload_ticket ticket[2 * (3 + DS_OPTIM_MAX_STATES)]; /* what it held goes out, what it holds next comes in */
    int of[2 * (3 + DS_OPTIM_MAX_STATES)];                   /* the store of each ticket */
    size_t tickets;
} dsi_zero_set;

/* A buffer of the pool through which parts of parameters come from disk; taken in turn, so that the oldest read is the
   one that is waited for. [cfg: zero_optimization.offload_param.buffer_count, .buffer_size] */
typedef struct dsi_zero_buffer {
    char *memory, *to;
    size_t bytes, param;
    ds_offload_ticket ticket; /* 0: free */
} dsi_zero_buffer;

/* On a GPU: room on the side that updates a sub-group (0 the host, 1 the device) for what lives on the other one: its
   parameters, then its gradients. Two take turns, each with a stream for its copies. */
typedef struct dsi_zero_stage {
    char *side[2];
    char *half; /* DSI_ZERO_CHUNK elements of a gradient on its way to the host */
    void *stream;
} dsi_zero_stage;

typedef struct dsi_zero_lane {
    char *memory;
    ds_offload_ticket ticket; /* of a write, or of a read ahead; 0: none */
} dsi_zero_lane;

struct ds_zero {
    ds_error error;
    bool dead;
    ds_allocator allocator;
    ds_logger logger;
    ds_tasks tasks;
    ds_clock clock;
    ds_files files;
    ds_offload_aio aio;
    void (*event)(void *ctx, const char *tag, double value, int64_t samples);
    void *event_ctx;

    bool gpu; /* the tier of computation is a device's memory */
    ds_device device;
    ds_optim_kernels kernels;
    bool updates;            /* the kernels have this optimizer */
    bool acc_down;           /* gradients accumulate off the device */
    void *stream, *fetching; /* the engine's own: gradients and updates; parameters on their way to be whole */
    void *caller;            /* stream of the last call that gave one */
    void *mark;              /* an event */
    dsi_zero_stage stages[2];
    size_t side_bytes[2], side_grad[2]; /* of a stage's side; where gradients begin in it */
    double *norm_device;                /* (own_grains) */
    float *part_device;                 /* (DSI_ZERO_CHUNK) of a gradient that is scaled on its way in */

    ds_comm *comm;          /* NULL: one rank */
    ds_comm *node, *across; /* ZeRO++: the ranks of this node, those of the same place in each; NULL: one node */
    ds_comm *votes;         /* stage 3: whether the next bucket is reduced; NULL: no parameter is gathered */
    int rank, world;
    size_t parts, part; /* of the states: world and rank, at stage 0 one and zero */

    /* the configuration's */
    int stage, accumulation;
    int64_t samples_per_step;
    ds_dtype model_dtype, wire, acc_dtype;
    size_t reduce_bucket, gather_bucket, prefetch, max_live, max_reuse, persistence, sub_group;
    bool boundary, invariant; /* ds.reduce_at_boundary, ds.world_invariant */
    bool native;              /* ds.native_reduce */
    bool gathers_later;       /* ds.gather_in_background */
    bool shares;              /* what ranks send and receive lies in memory that they share */
    size_t near_parts;        /* ranks of a node that share a copy of the parameters; 1: none is kept */
    bool quantize_weights, quantize_gradients;
    bool by_norm, one_bit; /* of the optimizer */
    bool clients;          /* it is the client's own */
    bool local;            /* this step's gradients are not reduced: the optimizer averages its momenta by itself */
    size_t levels;         /* accumulators: one, with world_invariant one for each bit of the micro-batch's number */
    bool overlap, contiguous, sparse, elastic, ignore_unused, gather_by_broadcast, reduce_whole, hooks, gather_on_save,
        load_fp32, fp16, round_robin;
    double clipping, before_reduce; /* before_reduce: factor of the gradients on the way into their bucket */
    ds_zero_tier state_tier, param_tier;
    bool pin_states, pin_params, pipeline_read, pipeline_write;

    dsi_zero_param *params;
    size_t n_params, n_train;
    size_t *order;        /* (n_train): parameters as their parts stand in shard space */
    size_t *bucket_order; /* (n_train) */
    size_t *piece_offset; /* (n_train, parts): where each rank's piece stands in its bucket, in elements */
    size_t *part_counts;  /* (n_params, parts) */
    size_t *counts;       /* (world): scratch */
    char *names;
    size_t names_bytes;

    size_t shard_half, shard_total; /* elements: parts with a master come first */
    size_t home_bytes, train_elements, total_grains, own_grains, largest;
    size_t n_states;
    char *home;
    float *array[1 + DS_OPTIM_MAX_STATES]; /* master and states from element `cut` on; NULL on disk */
    float *kept[1 + DS_OPTIM_MAX_STATES];  /* and before it: on the device */
    size_t cut;                            /* [cfg: zero_optimization.offload_optimizer.ratio] */
    char *acc;                             /* NULL: on disk, or the reduced gradient stays in its bucket */
    bool acc_disk;
    char *swap; /* memory of sets and lanes */
    size_t swap_bytes;
    dsi_zero_lane lanes[DSI_ZERO_LANES];
    size_t lane, lane_used, lane_elements; /* lanes taken and used so far; between them are those that read ahead */
    size_t sum_next[2];                    /* the next to read ahead: a tensor in bucket_order, and where in it */
    dsi_zero_buffer *pool_buffers;         /* (n_pool) */
    char *pool_memory;
    size_t n_pool, pool_bytes, pool_next;
    char *resident; /* memory of whole parameters that the engine owns */
    size_t resident_bytes;
    dsi_zero_sub *subs;
    size_t n_subs, sub_elements, sub_home_bytes;
    dsi_zero_set sets[DSI_ZERO_SETS];
    size_t n_sets, turn, set_limit; /* set_limit: buffer_count of states when given */
    size_t ahead;                   /* sub-groups whose arrays are read before the step, each into its own set */
    size_t since;                   /* transfers since one of a set was started */
    size_t updated;                 /* tensors of z->order that have the last step's values */
    size_t told;                    /* those that all ranks know to have them; a rank may be further */
    size_t next_sub, next_place;    /* the sub-group to update next, and the first tensor in it */
    size_t in_step;                 /* tensors of z->order that a step itself updates */
    int64_t probe;
    bool fast_init;
    double ratio;
    size_t pool_count, pool_elements, max_in_cpu; /* as configured */
    size_t spill_bytes;                           /* of max_in_cpu that is used */
    bool measuring; /* the pass over sub-groups before the update: states change, parameters do not */
    ds_optim_slice *slices;

    /* gradients */
    char *bucket_memory;
    size_t bucket_capacity, n_slots; /* elements of one slot, slots */
    dsi_zero_bucket *buckets;
    size_t n_buckets, opened, launched, finished; /* buckets of this micro-batch in their order */
    size_t vote_from;                             /* no vote on the next bucket before so many fetches */
    uint32_t *arrival;                            /* (n_train): parameters as their gradients completed */
    size_t n_arrived;
    bool trained, reordered; /* a training pass has ended; the buckets have its order */
    char **pool;             /* (2 n_train): stashes not in use */
    size_t n_pooled;
    dsi_zero_param *idle; /* the first one whose `own` is not in use */
    size_t n_stashes;     /* made at create */

    /* stage 3 */
    char *near, *quantized;                               /* the node's copy; buffers of quantized messages */
    size_t near_bytes, quantized_bytes, quantized_values; /* values: of one rank's part, at most */
    size_t *near_counts;                                  /* (n_params, near_parts) */
    char *arena;
    size_t arena_bytes;
    bool own_spots;   /* the arena has room for all parameters at once */
    uint32_t *blocks; /* parameters in the arena by address */
    size_t n_blocks;
    size_t live_elements, live_peak, fetches, fetches_waited;
    dsi_zero_trace traces[3];
    size_t position; /* in the trace: the next fetch */
    uint64_t sweep;  /* number of the last look ahead */
    bool following;

    float *scratch;    /* (DSI_ZERO_CHUNK) */
    char *gather_pack; /* small tensors on their way to all ranks after a step */
    size_t gather_pack_elements;
    double *norm_own, *norm_all, *norm_tensor;
    struct dsi_zero_ballot *spanned; /* (model.size) */
    size_t *cursors;

    ds_optim *optim;
    char *one_bit_scratch;
    char *rows_device, *rows_host; /* of sparse tables on a GPU */
    size_t rows_bytes[2];
    size_t one_bit_bytes;
    ds_group model; /* the other parts of the model; size 0 or 1: none */
    ds_loss_scaler scaler;
    ds_offload *store[2];                        /* of states and of parameters; may be the same */
    ds_offload_id disk[3 + DS_OPTIM_MAX_STATES]; /* master, states, home, gradients */
    ds_checkpoint_desc checkpoint;
    ds_checkpoint_writer *saving; /* in the background, until ds_zero_save_finish */
    char *agree;                  /* (world) errors */

    int pass; /* -1: none open */
    int micro;
    int64_t step, skipped, samples;
    double *losses; /* (accumulation): of the micro-batches */
    int64_t loss_count;
    int stop;
    int64_t t_begin, t_gradient, ns_forward, ns_backward, ns_reduce;
    bool clocks; /* wall_clock_breakdown */
    int64_t print_every;

    ds_zero_bytes now, peak;
    const char *item[DS_ZERO_TIERS]; /* the largest one */
    size_t item_bytes[DS_ZERO_TIERS];
    size_t allocations;
    void *client;
    size_t client_bytes;
};

// >>memory

/* A failure names its rank first: this one, or the one that it names already. */
static void dsi_zero_sign(ds_error *error, int rank) {
    const ds_error said = *error;
    if (strncmp(said.message, "rank ", 5) != 0)
        snprintf(error->message, sizeof error->message, "rank %d: %.480s", rank, said.message);
}

static ds_status dsi_zero_fail(ds_zero *z, ds_status status, const char *format, ...) DSI_PRINTF(3, 4);
static ds_status dsi_zero_fail(ds_zero *z, ds_status status, const char *format, ...) {
    va_list args;
    if (z->dead) return z->error.status;
    va_start(args, format);
    z->error.status = status;
    dsi_vformat(z->error.message, sizeof z->error.message, format, args);
    va_end(args);
    dsi_zero_sign(&z->error, z->rank);
    return status;
}

/* An error from which the ranks cannot come back together. The first one stays. */
static ds_status dsi_zero_die(ds_zero *z, ds_status status, const char *what, const char *why) {
    if (z->dead) return z->error.status;
    dsi_zero_fail(z, status, "%s: %s; the engine cannot go on", what, why);
    z->dead = true;
    if (z->comm) ds_comm_abort(z->comm, z->error.message);
    if (z->votes) ds_comm_abort(z->votes, z->error.message);
    return status;
}

static ds_status dsi_zero_failed_on(ds_zero *z, ds_comm *comm, const char *doing, const char *name) {
    char what[480];
    snprintf(what, sizeof what, "%s%s%.160s", doing, name ? " of " : "", name ? name : "");
    return dsi_zero_die(z, ds_comm_error(comm)->status, what, ds_comm_error(comm)->message);
}

static ds_status dsi_zero_comm_failed(ds_zero *z, const char *doing, const char *name) {
    return dsi_zero_failed_on(z, z->comm, doing, name);
}

/* On a GPU what the engine itself works with is in host memory. */
static ds_zero_tier dsi_zero_near(const ds_zero *z) {
    return z->gpu ? DS_ZERO_HOST : DS_ZERO_DEVICE;
}
static ds_zero_tier dsi_zero_acc_tier(const ds_zero *z) {
    bool down = z->gpu ? z->acc_down : z->state_tier != DS_ZERO_DEVICE;
    return down ? DS_ZERO_HOST : DS_ZERO_DEVICE;
}

static void dsi_zero_count(ds_zero *z, ds_zero_class c, ds_zero_tier t, size_t bytes) {
    z->now.bytes[c][t] += bytes;
    if (z->now.bytes[c][t] > z->peak.bytes[c][t]) z->peak.bytes[c][t] = z->now.bytes[c][t];
}

/* Host memory that a GPU copies from and to: all buffers, and what pin_memory names. */
static bool dsi_zero_pinned(const ds_zero *z, ds_zero_class c, ds_zero_tier t) {
    if (!z->gpu || t != DS_ZERO_HOST || c == DS_ZERO_BOOKKEEPING) return false;
    return c == DS_ZERO_BUCKETS || (c == DS_ZERO_PARAMS ? z->pin_params : z->pin_states);
}

/* Parameters and gradients, which the other ranks then read in place. */
static bool dsi_zero_shared(const ds_zero *z, ds_zero_class c, ds_zero_tier t) {
    return z->shares && t == DS_ZERO_DEVICE && c != DS_ZERO_BOOKKEEPING && c != DS_ZERO_STATES;
}

/* Host memory of the engine's own that is worth large pages: a disk moves these several times as fast. */
static bool dsi_zero_huge(const ds_zero *z, ds_zero_class c, ds_zero_tier t, size_t bytes) {
    return t == DS_ZERO_HOST && bytes >= DSI_ZERO_HUGE && !z->allocator.alloc && !dsi_zero_pinned(z, c, t);
}

static void *dsi_zero_get(ds_zero *z, ds_zero_class c, ds_zero_tier t, size_t bytes) {
    void *memory = NULL;
    if (bytes == 0) return NULL;
    z->allocations++;
    if (z->gpu && t == DS_ZERO_DEVICE)
        memory = z->device.alloc(z->device.ctx, bytes, &memory) ? NULL : memory;
    else if (dsi_zero_pinned(z, c, t))
        memory = z->device.pinned_alloc(z->device.ctx, bytes, &memory) ? NULL : memory;
    else if (!dsi_zero_shared(z, c, t) || !(memory = ds_comm_alloc(z->comm, bytes)))
        memory = dsi_alloc_aligned(&z->allocator, bytes,
                                   c == DS_ZERO_BOOKKEEPING        ? 16
                                   : dsi_zero_huge(z, c, t, bytes) ? DSI_ZERO_HUGE
                                                                   : DSI_ZERO_ALIGN);
    if (memory) dsi_zero_count(z, c, t, bytes);
    return memory;
}

static void dsi_zero_put(ds_zero *z, ds_zero_class c, ds_zero_tier t, void *memory, size_t bytes) {
    if (!memory) return;
    z->now.bytes[c][t] -= bytes;
    if (z->gpu && t == DS_ZERO_DEVICE)
        z->device.release(z->device.ctx, memory, bytes);
    else if (dsi_zero_pinned(z, c, t))
        z->device.pinned_release(z->device.ctx, memory, bytes);
    else if (!dsi_zero_shared(z, c, t) || !ds_comm_free(z->comm, memory, bytes))
        dsi_release_aligned(&z->allocator, memory, bytes, c == DS_ZERO_BOOKKEEPING ? 16 : DSI_ZERO_ALIGN);
}

static void *dsi_zero_table(ds_zero *z, size_t count, size_t each) {
    size_t bytes = dsi_mul(count, each);
    void *memory = dsi_zero_get(z, DS_ZERO_BOOKKEEPING, dsi_zero_near(z), bytes);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

static void dsi_zero_untable(ds_zero *z, void *memory, size_t count, size_t each) {
    dsi_zero_put(z, DS_ZERO_BOOKKEEPING, dsi_zero_near(z), memory, dsi_mul(count, each));
}

// >>device: what happens to memory of the tier of computation. Each is a plain loop on host memory, or ordered on a stream
// of the GPU and perhaps not done at return. What fails there kills the engine, and the call under way says so at its end.

static ds_status dsi_zero_ended(const ds_zero *z, ds_status status) {
    return !status && z->dead ? z->error.status : status;
}
static void dsi_zero_said(ds_zero *z, ds_status status, const char *doing) {
    char what[64];
    if (!status) return;
    snprintf(what, sizeof what, "rank %d: %s on the GPU", z->rank, doing);
    dsi_zero_die(z, status, what, z->device.describe(z->device.ctx));
}
static void dsi_zero_copy(ds_zero *z, void *to, const void *from, size_t bytes, void *stream) {
    if (bytes == 0 || z->dead) return;
    if (z->gpu)
        dsi_zero_said(z, z->device.copy(z->device.ctx, to, from, bytes, stream), "copy");
    else
        memcpy(to, from, bytes);
}
static void dsi_zero_sync(ds_zero *z, void *stream) {
    if (z->gpu && !z->dead) dsi_zero_said(z, z->device.synchronize(z->device.ctx, stream), "work");
}
/* Between memory of any kind; done at return. */
static void dsi_zero_copy_now(ds_zero *z, void *to, const void *from, size_t bytes) {
    dsi_zero_copy(z, to, from, bytes, z->stream);
    dsi_zero_sync(z, z->stream);
}
static void dsi_zero_clear(ds_zero *z, void *memory, size_t bytes, void *stream) {
    if (bytes == 0 || z->dead) return;
    if (z->gpu)
        dsi_zero_said(z, z->device.fill(z->device.ctx, memory, 0, bytes, stream), "fill");
    else
        memset(memory, 0, bytes);
}
/* What is ordered on stream `then` from now on comes after what is on `first`. */
static void dsi_zero_follow(ds_zero *z, void *first, void *then) {
    ds_status status;
    if (!z->gpu || z->dead) return;
    status = z->device.event_record(z->device.ctx, z->mark, first);
    dsi_zero_said(z, status ? status : z->device.event_wait(z->device.ctx, z->mark, then), "order");
}
/* `gpu` says where the memory of the next four is. */
static void dsi_zero_cast(ds_zero *z, bool gpu, void *to, ds_dtype t, const void *from, ds_dtype f, size_t count) {
    if (!gpu)
        (void)ds_optim_cast(to, t, from, f, count);
    else if (count && !z->dead)
        dsi_zero_said(z, z->kernels.cast(z->kernels.ctx, to, t, from, f, count, z->stream), "cast");
}
static void dsi_zero_accumulate(ds_zero *z, bool gpu, void *to, ds_dtype t, const void *from, ds_dtype f, size_t n) {
    if (!gpu)
        (void)ds_optim_accumulate(to, t, from, f, n);
    else if (n && !z->dead)
        dsi_zero_said(z, z->kernels.accumulate(z->kernels.ctx, to, t, from, f, n, z->stream), "accumulation");
}
static void dsi_zero_scale(ds_zero *z, bool gpu, float *x, float factor, size_t count) {
    if (!gpu)
        (void)ds_optim_scale(x, DS_F32, factor, count);
    else if (!z->dead)
        dsi_zero_said(z, z->kernels.scale(z->kernels.ctx, x, DS_F32, factor, count, z->stream), "scaling");
}
static void dsi_zero_norms(ds_zero *z, bool gpu, const void *grad, ds_dtype dtype, size_t count, double *per_grain) {
    if (!gpu)
        ds_optim_norm_grains(grad, dtype, count, 1.0f, per_grain);
    else if (count && !z->dead)
        dsi_zero_said(z, z->kernels.norm_grains(z->kernels.ctx, grad, dtype, count, 1.0f, per_grain, z->stream),
                      "norm");
}
static ds_status dsi_zero_make_streams(ds_zero *z, ds_error *error) {
    void **const streams[] = {&z->stream, &z->fetching, &z->stages[0].stream, &z->stages[1].stream};
    ds_status status = z->gpu ? z->device.event_create(z->device.ctx, &z->mark) : DS_OK;
    for (size_t i = 0; i < 4 && z->gpu && !status; i++) status = z->device.stream_create(z->device.ctx, streams[i]);
    for (size_t i = 0; i < z->n_params && z->gpu && !status; i++)
        if (!z->params[i].whole) status = z->device.event_create(z->device.ctx, &z->params[i].ready);
    if (!status) return DS_OK;
    return dsi_fail(error, status, "rank %d: no streams and events: %.400s", z->rank,
                    z->device.describe(z->device.ctx));
}
static void dsi_zero_end_streams(const ds_zero *z) {
    void *const streams[] = {z->stream, z->fetching, z->stages[0].stream, z->stages[1].stream};
    if (z->mark) z->device.event_destroy(z->device.ctx, z->mark);
    for (size_t i = 0; i < 4; i++)
        if (streams[i]) z->device.stream_destroy(z->device.ctx, streams[i]);
    for (size_t i = 0; i < z->n_params && z->params; i++)
        if (z->params[i].ready) z->device.event_destroy(z->device.ctx, z->params[i].ready);
}

// >>parts

/* Part r of W of a tensor of g grains is [(g*r + k) / W, (g*(r+1) + k) / W) in grains, 0 <= k < W. The parts stand in
   rank order, cover the tensor, and differ by at most one grain; k moves the larger ones from tensor to tensor, so that
   the sums over all tensors are even too. Products are taken apart so that they cannot overflow. */
static size_t dsi_zero_even_cut(const dsi_zero_param *p, size_t parts, size_t r) {
    size_t grain = p->grains / parts * r + (p->grains % parts * r + p->turn % parts) / parts;
    size_t element = grain * DS_GRAIN;
    return r == 0 ? 0 : r < parts && element < p->numel ? element : p->numel;
}

static size_t dsi_zero_cut(const dsi_zero_param *p, size_t parts, size_t r) {
    if (p->owner != DSI_ZERO_NONE) return r <= p->owner ? 0 : p->numel;
    return dsi_zero_even_cut(p, parts, r);
}

static void dsi_zero_part(const ds_zero *z, const dsi_zero_param *p, size_t r, size_t *begin, size_t *count) {
    *begin = dsi_zero_cut(p, z->parts, r);
    *count = dsi_zero_cut(p, z->parts, r + 1) - *begin;
}

static size_t dsi_zero_grains(size_t elements) {
    return elements / DS_GRAIN + (elements % DS_GRAIN != 0);
}

static bool dsi_zero_has_master(const dsi_zero_param *p) {
    return p->dtype != DS_F32;
}

/* Shard space: the own parts one after another, each from a grain's start, those with a master first. z->home holds the
   parts of parameters that are not kept whole, in the same order, frozen ones last. */
static void dsi_zero_layout_shard(ds_zero *z) {
    size_t at = 0, home = 0, n = 0;
    for (int round = 0; round < 6; round++) {
        for (size_t i = 0; i < z->n_params; i++) {
            dsi_zero_param *p = &z->params[i];
            int class_ = p->tensor == DSI_ZERO_NONE ? 2 : dsi_zero_has_master(p) ? 0 : 1;
            if (2 * class_ + !p->whole != round) continue;
            if (!p->whole) {
                p->home = home;
                home += dsi_round_up(p->own_count * p->bytes_each, DSI_ZERO_ALIGN);
            }
            if (class_ == 2) continue;
            p->shard = at;
            at += dsi_zero_grains(p->own_count) * DS_GRAIN;
            p->place = n;
            z->order[n++] = i;
        }
        if (round == 1) z->shard_half = at;
    }
    z->shard_total = at;
    z->home_bytes = home;
    z->updated = z->told = n;
}

/* Where in shard space offloading begins: states of the elements before it stay on the device. Not inside of a tensor that
   the optimizer takes as a whole. [cfg: zero_optimization.offload_optimizer.ratio] */
static void dsi_zero_layout_cut(ds_zero *z) {
    double keep = z->state_tier == DS_ZERO_DEVICE ? 0.0 : 1.0 - z->ratio;
    z->cut = (size_t)((double)(z->shard_total / DS_GRAIN) * keep) * DS_GRAIN;
    for (size_t i = 0; i < z->n_train; i++) {
        const dsi_zero_param *p = &z->params[z->order[i]];
        size_t end = p->shard + dsi_zero_grains(p->own_count) * DS_GRAIN;
        if (p->uncut && p->shard < z->cut && end > z->cut) z->cut = end;
    }
}

/* Cuts shard space in sub-groups, but never a tensor that the optimizer takes as a whole. [cfg: zero_optimization.sub_group_size] */
static size_t dsi_zero_layout_subs(ds_zero *z, dsi_zero_sub *subs) {
    size_t step = z->sub_group / DS_GRAIN * DS_GRAIN, n = 0, cursor = 0;
    if (step == 0) step = DS_GRAIN;
    z->sub_elements = z->sub_home_bytes = 0;
    for (size_t begin = 0; begin < z->shard_total; n++) {
        dsi_zero_sub sub;
        sub.begin = begin;
        sub.end = z->shard_total - begin < step ? z->shard_total : begin + step;
        if (begin < z->cut && sub.end > z->cut) sub.end = z->cut;
        sub.home_begin = DSI_ZERO_NONE;
        sub.home_end = 0;
        while (cursor < z->n_train) {
            const dsi_zero_param *p = &z->params[z->order[cursor]];
            size_t end = p->shard + dsi_zero_grains(p->own_count) * DS_GRAIN;
            if (p->uncut && p->shard < sub.end && end > sub.end) sub.end = end;
            if (!p->whole && p->own_count && p->shard < sub.end) {
                size_t from = p->shard > sub.begin ? 0 : sub.begin - p->shard;
                size_t to = sub.end - p->shard < p->own_count ? sub.end - p->shard : p->own_count;
                size_t a = p->home + from * p->bytes_each, b = p->home + to * p->bytes_each;
                if (sub.home_begin == DSI_ZERO_NONE) sub.home_begin = a;
                sub.home_end = b;
            }
            if (end > sub.end) break;
            cursor++;
        }
        if (sub.home_begin == DSI_ZERO_NONE) sub.home_begin = sub.home_end;
        if (sub.end - sub.begin > z->sub_elements) z->sub_elements = sub.end - sub.begin;
        if (sub.home_end > sub.home_begin && sub.home_end - sub.home_begin > z->sub_home_bytes)
            z->sub_home_bytes = sub.home_end - sub.home_begin;
        if (subs) subs[n] = sub;
        begin = sub.end;
    }
    return n;
}

/* Whether the next parameter in z->bucket_order goes into the bucket, too. */
static bool dsi_zero_shares_bucket(const ds_zero *z, const dsi_zero_bucket *b, size_t i) {
    const dsi_zero_param *last = &z->params[z->bucket_order[i - 1]], *next = &z->params[z->bucket_order[i]];
    return z->contiguous && !last->sparse && !next->sparse && b->elements + next->numel <= z->reduce_bucket;
}

/* Quantized gradients travel in parts of one length: that of the rank with the most, in whole groups; else 0. */
static size_t dsi_zero_stride(const ds_zero *z, const dsi_zero_bucket *b) {
    size_t longest = 0;
    if (!z->quantize_gradients || z->parts == 1 || z->params[z->bucket_order[b->first]].sparse) return 0;
    for (size_t r = 0; r < z->parts; r++) {
        size_t sum = 0;
        for (size_t j = 0; j < b->count; j++) sum += z->params[z->bucket_order[b->first + j]].counts[r];
        if (sum > longest) longest = sum;
    }
    return dsi_round_up(longest, DSI_ZERO_GROUP);
}

/* Cuts z->bucket_order in buckets of whole tensors and places each rank's pieces in them: rank by rank, and within a rank
   tensor by tensor, which is what a reduce-scatter wants. */
static void dsi_zero_layout_buckets(ds_zero *z) {
    size_t total = 0;
    z->n_buckets = 0;
    for (size_t i = 0; i < z->n_train;) {
        dsi_zero_bucket *b = &z->buckets[z->n_buckets];
        size_t at = 0;
        memset(b, 0, sizeof *b);
        b->first = i;
        b->offset = total;
        do b->elements += z->params[z->bucket_order[i++]].numel;
        while (i < z->n_train && dsi_zero_shares_bucket(z, b, i));
        b->count = i - b->first;
        b->stride = dsi_zero_stride(z, b);
        if (b->stride) b->elements = b->stride * z->parts;
        for (size_t r = 0; r < z->parts; r++) {
            if (b->stride) at = r * b->stride;
            for (size_t j = 0; j < b->count; j++) {
                dsi_zero_param *p = &z->params[z->bucket_order[b->first + j]];
                p->bucket = z->n_buckets;
                z->piece_offset[p->piece + r] = at;
                at += p->counts[r];
            }
        }
        total += b->elements;
        z->n_buckets++;
    }
}

/* Until a training pass tells another: that of registration reversed. */
static void dsi_zero_first_order(ds_zero *z) {
    z->trained = z->reordered = false;
    z->n_arrived = 0;
    for (size_t i = 0, n = z->n_train; i < z->n_params; i++)
        if (z->params[i].tensor != DSI_ZERO_NONE) z->bucket_order[--n] = i;
    dsi_zero_layout_buckets(z);
}

// >>tiers: where arrays live, and their swapping

static ds_status dsi_zero_disk_failed(ds_zero *z, int store, ds_status status, const char *doing, const char *name) {
    char what[256];
    snprintf(what, sizeof what, "%s of '%.160s'", doing, name);
    return dsi_zero_die(z, status, what, ds_offload_error(z->store[store])->message);
}

/* Memory of element `at` of an array (0 the master, 1 and up the states), or NULL when that is on disk. */
static float *dsi_zero_at(const ds_zero *z, size_t array, size_t at) {
    if (at < z->cut) return z->kept[array] + at;
    return z->array[array] ? z->array[array] + (at - z->cut) : NULL;
}

/* Elements of an array on the device, and those that are offloaded. */
static size_t dsi_zero_kept(const ds_zero *z, size_t array) {
    return array == 0 && z->shard_half < z->cut ? z->shard_half : z->cut;
}
static size_t dsi_zero_moved(const ds_zero *z, size_t array) {
    return (array == 0 ? z->shard_half : z->shard_total) - dsi_zero_kept(z, array);
}

/* Reads (or writes) elements [begin, begin + count) of a parameter's own part: array -1 the fp32 value, else a state. */
static ds_status dsi_zero_own_io(ds_zero *z, bool write, const dsi_zero_param *p, int array, size_t begin, size_t count,
                                 float *values) {
    size_t at = p->shard + (begin - p->own_begin), offset;
    float *memory = NULL;
    ds_offload_id id;
    ds_status status;
    int store = 0;
    if (array < 0 && !dsi_zero_has_master(p)) {
        store = 1;
        if (p->whole)
            memory = (float *)(void *)p->full + begin;
        else if (z->home)
            memory = (float *)(void *)(z->home + p->home) + (begin - p->own_begin);
        id = z->disk[DSI_ZERO_HOME];
        offset = p->home + (begin - p->own_begin) * sizeof(float);
    } else {
        if (at < z->cut && count > z->cut - at) {
            size_t first = z->cut - at;
            if ((status = dsi_zero_own_io(z, write, p, array, begin, first, values))) return status;
            return dsi_zero_own_io(z, write, p, array, begin + first, count - first, values + first);
        }
        memory = dsi_zero_at(z, (size_t)(array + 1), at);
        id = z->disk[array + 1];
        offset = memory ? 0 : (at - z->cut) * sizeof(float);
    }
    if (memory) {
        dsi_zero_copy_now(z, write ? memory : values, write ? values : memory, count * sizeof(float));
        return dsi_zero_ended(z, DS_OK);
    }
    status = write ? ds_offload_write(z->store[store], id, offset, count * sizeof(float), values)
                   : ds_offload_read(z->store[store], id, offset, count * sizeof(float), values);
    return status ? dsi_zero_disk_failed(z, store, status, write ? "swap-out" : "swap-in", p->name) : DS_OK;
}

/* The model's own bytes of a parameter from element `begin` on: anywhere in a whole one, else in the own part. */
static ds_status dsi_zero_own_raw(ds_zero *z, bool write, dsi_zero_param *p, size_t begin, size_t bytes, char *values) {
    size_t at = (begin - (p->whole ? 0 : p->own_begin)) * p->bytes_each;
    char *memory = p->whole ? p->full : z->home ? z->home + p->home : NULL;
    ds_status status;
    if (memory) {
        dsi_zero_copy_now(z, write ? memory + at : values, write ? values : memory + at, bytes);
        return dsi_zero_ended(z, DS_OK);
    }
    status = write ? ds_offload_write(z->store[1], z->disk[DSI_ZERO_HOME], p->home + at, bytes, values)
                   : ds_offload_read(z->store[1], z->disk[DSI_ZERO_HOME], p->home + at, bytes, values);
    return status ? dsi_zero_disk_failed(z, 1, status, write ? "swap-out" : "swap-in", p->name) : DS_OK;
}

/* fp32 values of the own part: the master's or the parameter's own widened (array -1), or a state's. */
static ds_status dsi_zero_own_value(ds_zero *z, dsi_zero_param *p, int array, size_t begin, size_t count, float *out) {
    char raw[4096];
    if (p->tensor != DSI_ZERO_NONE || p->dtype == DS_F32) return dsi_zero_own_io(z, false, p, array, begin, count, out);
    for (size_t done = 0; done < count;) {
        size_t n = count - done < sizeof raw / 4 ? count - done : sizeof raw / 4;
        ds_status status = dsi_zero_own_raw(z, false, p, begin + done, n * p->bytes_each, raw);
        if (status) return status;
        (void)ds_optim_cast(out + done, DS_F32, raw, p->dtype, n);
        done += n;
    }
    return DS_OK;
}

/* Writes the model's own copy of elements of the own part (those with a master only), rounding from fp32. */
static ds_status dsi_zero_own_round(ds_zero *z, dsi_zero_param *p, size_t begin, size_t count, const float *values) {
    uint16_t rounded[2048];
    for (size_t done = 0; done < count;) {
        size_t n = count - done < 2048 ? count - done : 2048;
        size_t at = (begin + done - p->own_begin) * 2;
        ds_status status;
        (void)ds_optim_cast(rounded, p->dtype, values + done, DS_F32, n);
        if (p->whole || z->home)
            dsi_zero_copy_now(z, p->whole ? p->full + (begin + done) * 2 : z->home + p->home + at, rounded, n * 2);
        else if ((status = ds_offload_write(z->store[1], z->disk[DSI_ZERO_HOME], p->home + at, n * 2, rounded)))
            return dsi_zero_disk_failed(z, 1, status, "swap-out", p->name);
        done += n;
    }
    return DS_OK;
}

static ds_status dsi_zero_set_wait(ds_zero *z, dsi_zero_set *set) {
    ds_status first = DS_OK;
    int store = 0;
    for (size_t i = 0; i < set->tickets; i++) {
        ds_status status = ds_offload_wait(z->store[set->of[i]], set->ticket[i]);
        if (status && !first) first = status, store = set->of[i];
    }
    set->tickets = 0;
    return first ? dsi_zero_disk_failed(z, store, first, "swap", "optimizer states") : DS_OK;
}

static size_t dsi_zero_acc_bytes(const ds_zero *z) {
    return DS_DTYPE_SIZE(z->acc_dtype);
}

typedef enum dsi_zero_way { DSI_ZERO_IN, DSI_ZERO_IN_GRADIENTS, DSI_ZERO_OUT } dsi_zero_way;

/* Starts moving a sub-group's arrays that live on disk between there and the set's buffers. A half-type home is only
   written: the update makes it anew from the master. Gradients are only read. */
static ds_status dsi_zero_set_start(ds_zero *z, dsi_zero_set *set, const dsi_zero_sub *sub, dsi_zero_way way) {
    bool write = way == DSI_ZERO_OUT;
    z->since = 0;
    for (size_t a = 0; a <= DSI_ZERO_GRAD; a++) {
        bool home = a == DSI_ZERO_HOME, grad = a == DSI_ZERO_GRAD, state = !home && !grad;
        int store = home ? 1 : 0;
        size_t each = grad ? dsi_zero_acc_bytes(z) : sizeof(float), skip = state ? z->cut : 0;
        size_t last = a == 0 && sub->end > z->shard_half ? z->shard_half : sub->end;
        size_t begin = home ? sub->home_begin : sub->begin < skip ? 0 : (sub->begin - skip) * each;
        size_t end = home ? sub->home_end : last < skip ? 0 : (last - skip) * each;
        void *buffer = home ? (void *)set->home : grad ? (void *)set->grad : (void *)set->array[a];
        ds_status status;
        if (grad != (way == DSI_ZERO_IN_GRADIENTS) || (write && z->measuring && (a == 0 || home))) continue;
        if (!buffer || end <= begin || (home && !write && sub->end <= z->shard_half)) continue;
        status = write ? ds_offload_start_write(z->store[store], z->disk[a], begin, end - begin, buffer,
                                                &set->ticket[set->tickets])
                       : ds_offload_start_read(z->store[store], z->disk[a], begin, end - begin, buffer,
                                               &set->ticket[set->tickets]);
        if (status) return dsi_zero_disk_failed(z, store, status, "swap", "optimizer states");
        set->of[set->tickets++] = store;
    }
    return DS_OK;
}

/* While the last backward pass of a step goes on, the first sub-groups' arrays come from the disk, each after what its set
   held has gone there; their gradients are not there yet. [cfg: zero_optimization.offload_optimizer.pipeline_read] */
static ds_status dsi_zero_read_ahead(ds_zero *z) {
    ds_status status = DS_OK;
    if (!z->pipeline_read || z->micro + 1 < z->accumulation) return DS_OK;
    for (; z->ahead < z->n_sets && !status; z->ahead++)
        status = dsi_zero_set_start(z, &z->sets[z->ahead], &z->subs[z->ahead], DSI_ZERO_IN);
    return status;
}

static ds_status dsi_zero_sets_wait(ds_zero *z) {
    ds_status status = DS_OK;
    for (size_t i = 0; i < z->n_sets && !status; i++) status = dsi_zero_set_wait(z, &z->sets[i]);
    return status;
}

/* Before one more transfer: a store tells only so many apart, so that what the sets have under way is waited for when many
   others came after it, as in a generation. */
static ds_status dsi_zero_keep_pace(ds_zero *z) {
    if (++z->since < DSI_ZERO_APART) return DS_OK;
    z->since = 0;
    return dsi_zero_sets_wait(z);
}

static ds_status dsi_zero_lane_wait(ds_zero *z, dsi_zero_lane *lane, const char *doing) {
    ds_status status = lane->ticket ? ds_offload_wait(z->store[0], lane->ticket) : DS_OK;
    lane->ticket = 0;
    return status ? dsi_zero_disk_failed(z, 0, status, doing, "gradients") : DS_OK;
}

/* The next lane, free to be filled. */
static ds_status dsi_zero_lane_take(ds_zero *z, dsi_zero_lane **lane) {
    *lane = &z->lanes[z->lane++ % DSI_ZERO_LANES];
    return dsi_zero_lane_wait(z, *lane, "swap-out");
}

/* All gradients that went to disk are there. */
static ds_status dsi_zero_lanes_land(ds_zero *z) {
    ds_status status = DS_OK;
    for (size_t i = 0; i < DSI_ZERO_LANES && !status; i++) status = dsi_zero_lane_wait(z, &z->lanes[i], "swap-out");
    return status;
}

static ds_status dsi_zero_buffer_land(ds_zero *z, dsi_zero_buffer *b) {
    ds_status status;
    if (!b->ticket) return DS_OK;
    if ((status = ds_offload_wait(z->store[1], b->ticket)))
        return dsi_zero_disk_failed(z, 1, status, "swap-in", z->params[b->param].name);
    dsi_zero_copy(z, b->to, b->memory, b->bytes, z->fetching);
    dsi_zero_sync(z, z->fetching);
    z->params[b->param].reads--;
    b->ticket = 0;
    return DS_OK;
}

/* Starts bringing the own part of a parameter from disk to its place, piece by piece through the pool. */
static ds_status dsi_zero_pool_read(ds_zero *z, dsi_zero_param *p) {
    size_t bytes = p->own_count * p->bytes_each;
    for (size_t at = 0; at < bytes; at += z->pool_bytes) {
        dsi_zero_buffer *b = &z->pool_buffers[z->pool_next++ % z->n_pool];
        ds_status status = dsi_zero_buffer_land(z, b);
        if (!status) status = dsi_zero_keep_pace(z);
        if (status) return status;
        b->param = (size_t)(p - z->params);
        b->to = p->full + p->own_begin * p->bytes_each + at;
        b->bytes = bytes - at < z->pool_bytes ? bytes - at : z->pool_bytes;
        status =
            ds_offload_start_read(z->store[1], z->disk[DSI_ZERO_HOME], p->home + at, b->bytes, b->memory, &b->ticket);
        if (status) return dsi_zero_disk_failed(z, 1, status, "swap-in", p->name);
        p->reads++;
    }
    return DS_OK;
}

static ds_status dsi_zero_pool_land(ds_zero *z, const dsi_zero_param *p) {
    ds_status status = DS_OK;
    for (size_t i = 0; p->reads && i < z->n_pool && !status; i++)
        if (z->pool_buffers[i].ticket && z->pool_buffers[i].param == (size_t)(p - z->params))
            status = dsi_zero_buffer_land(z, &z->pool_buffers[i]);
    return status;
}

// >>arena: whole parameters at stage 3

static size_t dsi_zero_room(const dsi_zero_param *p) {
    return dsi_round_up(p->numel * p->bytes_each, DSI_ZERO_ALIGN);
}

/* Whether the model may touch memory; where it may not, AddressSanitizer reports it. */
static void dsi_zero_guard(const ds_zero *z, const void *memory, size_t bytes, bool allowed) {
#if DSI_ZERO_ASAN
    if (z->gpu || !memory) return;
    if (allowed)
        __asan_unpoison_memory_region(memory, bytes);
    else
        __asan_poison_memory_region(memory, bytes);
#else
    (void)z, (void)memory, (void)bytes, (void)allowed;
#endif
}

/* A place in the arena: a parameter's own, or the first gap in [begin, end) between those that stand there, which are kept in
   order of address. */
static bool dsi_zero_arena_take(ds_zero *z, dsi_zero_param *p, size_t begin, size_t end) {
    size_t need = dsi_zero_room(p), at = z->own_spots ? p->spot : begin, i = 0;
    if (z->own_spots) end = at + need;
    for (; i < z->n_blocks; i++) {
        const dsi_zero_param *other = &z->params[z->blocks[i]];
        size_t from = (size_t)(other->full - z->arena), to = from + dsi_zero_room(other);
        if (from >= at && from - at >= need) break;
        if (to > at) at = to;
    }
    if (end < at || end - at < need) return false;
    memmove(z->blocks + i + 1, z->blocks + i, (z->n_blocks - i) * sizeof *z->blocks);
    z->blocks[i] = (uint32_t)(p - z->params);
    z->n_blocks++;
    p->full = z->arena + at;
    dsi_zero_guard(z, p->full, need, true);
    return true;
}

/* Where in a smaller arena that begins which a parameter may take that nobody holds: behind room for all that the pass held at
   once when it was recorded. Before it are held ones alone, and where the last fetched is the first released they leave no
   gaps: what the model fetches then finds its place, whatever was fetched ahead or kept for later. */
static size_t dsi_zero_arena_floor(const ds_zero *z) {
    size_t held = z->following ? z->traces[z->pass].held : SIZE_MAX;
    if (z->own_spots) return 0;
    return held < z->arena_bytes ? held : z->arena_bytes;
}

/* A fetch of `p` is to come. */
static void dsi_zero_arena_note(ds_zero *z, const dsi_zero_param *p) {
    size_t held = p->fetches ? 0 : dsi_zero_room(p), *most = &z->traces[z->pass].held;
    for (size_t i = 0; i < z->n_blocks && !z->own_spots; i++)
        if (z->params[z->blocks[i]].fetches) held += dsi_zero_room(&z->params[z->blocks[i]]);
    if (held > *most || z->traces[z->pass].count == 0) *most = held;
}

static void dsi_zero_arena_drop(ds_zero *z, dsi_zero_param *p) {
    dsi_zero_follow(z, z->caller, z->fetching); /* what the model has ordered may still read it */
    if (p->loose) {
        dsi_zero_guard(z, p->full, dsi_zero_room(p), true);
        dsi_zero_put(z, DS_ZERO_GATHERED, DS_ZERO_DEVICE, p->full, dsi_zero_room(p));
    } else {
        size_t i = 0;
        while (&z->params[z->blocks[i]] != p) i++;
        z->n_blocks--;
        memmove(z->blocks + i, z->blocks + i + 1, (z->n_blocks - i) * sizeof *z->blocks);
    }
    z->live_elements -= p->numel;
    p->full = NULL;
    p->loose = false;
    p->where = DSI_ZERO_ABSENT;
    if (p->slot) *p->slot = NULL;
}

/* Drops whole parameters that nobody holds until `elements` more fit the window, the one needed last first. */
static void dsi_zero_evict(ds_zero *z, size_t elements) {
    while (z->live_elements && dsi_add(z->live_elements, elements) > z->max_live) {
        dsi_zero_param *victim = NULL;
        for (size_t i = 0; i < z->n_blocks; i++) {
            dsi_zero_param *p = &z->params[z->blocks[i]];
            if (p->where == DSI_ZERO_LIVE && p->fetches == 0 && (!victim || p->numel > victim->numel)) victim = p;
        }
        if (!victim) return;
        dsi_zero_arena_drop(z, victim);
    }
}

static size_t dsi_zero_near_count(const ds_zero *z, const dsi_zero_param *p) {
    return p->near_counts[(size_t)z->rank % z->near_parts];
}

static ds_status dsi_zero_gather_wait(ds_zero *z, dsi_zero_param *p) {
    ds_comm *comm = p->from_near ? z->node : z->comm;
    if (p->gather && ds_comm_wait(comm, p->gather)) return dsi_zero_failed_on(z, comm, "gather", p->name);
    p->gather = 0;
    p->where = DSI_ZERO_LIVE;
    if (z->near_counts && !p->near_valid) { /* the node has it until the next update [cfg: ...hpz_partition_size] */
        dsi_zero_copy(z, z->near + p->near, p->full + p->near_begin * p->bytes_each,
                      dsi_zero_near_count(z, p) * p->bytes_each, z->fetching);
        p->near_valid = true;
    }
    return dsi_zero_ended(z, DS_OK);
}

/* ds.gather_in_background: a whole parameter has all that the last step sent. What nobody fetched is there by the next step's
   norm, which comes behind it. */
static ds_status dsi_zero_arrived(ds_zero *z, dsi_zero_param *p) {
    ds_comm_handle gather = p->gather;
    p->gather = 0;
    return gather && ds_comm_wait(z->comm, gather) ? dsi_zero_comm_failed(z, "gather of updated parameters", p->name)
                                                   : DS_OK;
}
static ds_status dsi_zero_all_arrived(ds_zero *z) {
    ds_status status = DS_OK;
    for (size_t i = 0; i < z->n_params && !status; i++)
        if (z->params[i].whole) status = dsi_zero_arrived(z, &z->params[i]);
    return status;
}

/* Drops all that nobody holds, also what is still on its way. */
static ds_status dsi_zero_drop_all(ds_zero *z) {
    for (size_t i = 0; i < z->n_params; i++) {
        dsi_zero_param *p = &z->params[i];
        ds_status status = DS_OK;
        if (p->whole || !p->full || p->fetches) continue;
        if ((status = dsi_zero_pool_land(z, p))) return status;
        if (p->where == DSI_ZERO_GATHERING && (status = dsi_zero_gather_wait(z, p))) return status;
        dsi_zero_arena_drop(z, p);
    }
    return DS_OK;
}

static void dsi_zero_placed(ds_zero *z, const dsi_zero_param *p) {
    z->live_elements += p->numel;
    if (z->live_elements > z->live_peak) z->live_peak = z->live_elements;
}

/* Memory for what the model fetches. */
static ds_status dsi_zero_place(ds_zero *z, dsi_zero_param *p) {
    size_t floor = dsi_zero_arena_floor(z);
    if (!dsi_zero_arena_take(z, p, floor, z->arena_bytes) && !dsi_zero_arena_take(z, p, 0, floor)) {
        ds_status status = dsi_zero_drop_all(z);
        if (status) return status;
        p->loose = !dsi_zero_arena_take(z, p, 0, z->arena_bytes);
    }
    if (p->loose) {
        p->full = (char *)dsi_zero_get(z, DS_ZERO_GATHERED, DS_ZERO_DEVICE, dsi_zero_room(p));
        p->loose = p->full != NULL;
        if (!p->full)
            return dsi_zero_fail(z, DS_ERR_MEMORY, "parameter '%s': no memory for its %zu bytes", p->name,
                                 dsi_zero_room(p));
        dsi_log(
            &z->logger, "ds_zero", DS_LOG_DEBUG, 3,
            "parameter '%s' does not fit the arena of %zu bytes beside what is held; desc.largest_fetch is too small",
            p->name, z->arena_bytes);
    }
    dsi_zero_placed(z, p);
    return DS_OK;
}

/* What a gather is about: ranks that fetch in another order are told, where shapes alone would not tell. */
static uint32_t dsi_zero_tag(const ds_zero *z, const dsi_zero_param *p) {
    return (uint32_t)(p - z->params) + 1;
}

/* All parts as signed bytes with a scale for each group: parts of one length, with zeros behind the shorter ones.
   [cfg: zero_optimization.zero_quantized_weights] */
static ds_status dsi_zero_gather_quantized(ds_zero *z, dsi_zero_param *p) {
    size_t n = 0, own = p->own_count * p->bytes_each;
    char *all = z->quantized, *mine, *scratch;
    ds_status status;
    for (size_t r = 0; r < z->parts; r++)
        if (p->counts[r] > n) n = p->counts[r];
    n = dsi_round_up(n, DSI_ZERO_GROUP);
    mine = all + z->parts * n * p->bytes_each;
    dsi_zero_copy(z, mine, p->full + p->own_begin * p->bytes_each, own, z->fetching);
    dsi_zero_clear(z, mine + own, n * p->bytes_each - own, z->fetching);
    scratch = mine + n * p->bytes_each;
    ds_comm_tag(z->comm, dsi_zero_tag(z, p));
    if (z->gpu)
        status =
            ds_comm_quantized_all_gather_on(z->comm, mine, all, n, p->dtype, n / DSI_ZERO_GROUP, scratch, z->fetching);
    else
        status = ds_comm_quantized_all_gather(z->comm, mine, all, n, p->dtype, n / DSI_ZERO_GROUP, scratch);
    ds_comm_tag(z->comm, 0);
    if (status) return dsi_zero_comm_failed(z, "gather", p->name);
    for (size_t r = 0; r < z->parts; r++)
        dsi_zero_copy(z, p->full + dsi_zero_cut(p, z->parts, r) * p->bytes_each, all + r * n * p->bytes_each,
                      p->counts[r] * p->bytes_each, z->fetching);
    return DS_OK;
}

/* First half of a gather: the own part comes to its place in the whole tensor. */
static ds_status dsi_zero_gather_read(ds_zero *z, dsi_zero_param *p) {
    size_t bytes = p->own_count * p->bytes_each;
    ds_status status;
    if (!p->full && (status = dsi_zero_place(z, p))) return status;
    p->where = DSI_ZERO_READING;
    p->from_near = z->near_counts && p->near_valid; /* z->near is NULL where all of a rank's shares are empty */
    if (p->from_near)
        dsi_zero_copy(z, p->full + p->near_begin * p->bytes_each, z->near + p->near,
                      dsi_zero_near_count(z, p) * p->bytes_each, z->fetching);
    else if (bytes && !z->home)
        return dsi_zero_pool_read(z, p);
    else
        dsi_zero_copy(z, p->full + p->own_begin * p->bytes_each, z->home + p->home, bytes, z->fetching);
    if (z->gpu && !z->dead) dsi_zero_said(z, z->device.event_record(z->device.ctx, p->ready, z->fetching), "order");
    return dsi_zero_ended(z, DS_OK);
}

/* Second half: all parts in place, each from its rank. Started, not waited for. */
static ds_status dsi_zero_gather_start(ds_zero *z, dsi_zero_param *p) {
    ds_comm *comm = p->from_near ? z->node : z->comm;
    ds_comm_call call;
    ds_status status;
    if ((status = dsi_zero_pool_land(z, p))) return status;
    p->where = DSI_ZERO_GATHERING;
    p->gather = 0;
    if (z->parts == 1) return DS_OK;
    if (z->quantize_weights && !p->from_near) return dsi_zero_gather_quantized(z, p);
    memset(&call, 0, sizeof call);
    call.kind = DS_COMM_ALL_GATHER;
    call.in = p->full + (p->from_near ? p->near_begin : p->own_begin) * p->bytes_each;
    call.out = p->full;
    call.counts = p->from_near ? p->near_counts : p->counts;
    call.dtype = p->dtype;
    call.on_device = z->gpu;
    call.stream = z->fetching;
    ds_comm_tag(comm, dsi_zero_tag(z, p));
    status = z->overlap ? ds_comm_start(comm, &call, &p->gather) : ds_comm_run(comm, &call);
    ds_comm_tag(comm, 0);
    return status ? dsi_zero_failed_on(z, comm, "gather", p->name) : DS_OK;
}

static ds_status dsi_zero_catch_up(ds_zero *z, size_t count);
static ds_status dsi_zero_all_catch_up(ds_zero *z, size_t count);

/* Brings what the trace says comes next: gathers within the prefetch window, reads from disk within twice that. How far
   depends on counts alone, so that all ranks start the same gathers in the same order. While an update is left over, that
   is one tensor where it has a way to go: it overlaps with the computation on this one. */
static ds_status dsi_zero_prefetch(ds_zero *z) {
    const dsi_zero_trace *t = &z->traces[z->pass];
    bool disk = z->param_tier == DS_ZERO_DISK; /* z->home is NULL also on a rank that owns nothing */
    size_t window = 0, limit = disk ? 2 * z->prefetch : z->prefetch;
    if (!z->following || !z->prefetch) return DS_OK;
    if (z->told < z->n_train && z->position < t->count && (z->parts > 1 || disk)) {
        ds_status status = dsi_zero_all_catch_up(z, z->params[t->fetched[z->position]].place + 1);
        if (status) return status;
    }
    z->sweep++;
    for (size_t i = z->position; i < t->count && window < limit; i++) {
        dsi_zero_param *p = &z->params[t->fetched[i]];
        ds_status status = DS_OK;
        if (p->fetches || p->sweep == z->sweep) continue;
        p->sweep = z->sweep; /* counts once */
        if (window + p->numel > limit || (p->tensor != DSI_ZERO_NONE && p->place >= z->told)) break;
        if (p->where == DSI_ZERO_ABSENT) {
            if (dsi_add(z->live_elements, p->numel) > z->max_live) break;
            if (!dsi_zero_arena_take(z, p, dsi_zero_arena_floor(z), z->arena_bytes)) break;
            dsi_zero_placed(z, p);
            status = dsi_zero_gather_read(z, p);
        }
        if (!status && p->where == DSI_ZERO_READING && window + p->numel <= z->prefetch)
            status = dsi_zero_gather_start(z, p);
        if (status) return status;
        window += p->numel;
    }
    return DS_OK;
}

static ds_status dsi_zero_trace_add(ds_zero *z, size_t index) {
    dsi_zero_trace *t = &z->traces[z->pass];
    dsi_zero_arena_note(z, &z->params[index]);
    if (t->recorded) {
        if (z->position < t->count && t->fetched[z->position] == index) {
            z->position++;
            return DS_OK;
        }
        z->following = t->recorded = false; /* another order: record again from here on */
        t->count = z->position;
    }
    if (t->count == t->room) {
        size_t room = 2 * t->room;
        uint32_t *more = (uint32_t *)dsi_zero_table(z, room, sizeof *more);
        if (!more) return dsi_zero_fail(z, DS_ERR_MEMORY, "no memory for a trace of %zu fetches", room);
        memcpy(more, t->fetched, t->count * sizeof *more);
        dsi_zero_untable(z, t->fetched, t->room, sizeof *more);
        t->fetched = more;
        t->room = room;
    }
    t->fetched[t->count++] = (uint32_t)index;
    z->position = t->count;
    return DS_OK;
}

/* Elements fetched between now and the parameter's next use in this pass; SIZE_MAX when there is none, or when it may not
   stay where it is. */
static size_t dsi_zero_next_use(const ds_zero *z, const dsi_zero_param *p) {
    const dsi_zero_trace *t = &z->traces[z->pass];
    size_t between = 0;
    if (!z->following || p->loose || (size_t)(p->full - z->arena) < dsi_zero_arena_floor(z)) return SIZE_MAX;
    for (size_t i = z->position; i < t->count && between <= z->max_reuse; i++) {
        if (&z->params[t->fetched[i]] == p) return between;
        between += z->params[t->fetched[i]].numel;
    }
    return SIZE_MAX;
}

// >>gradients

static char *dsi_zero_bucket_at(const ds_zero *z, size_t bucket) {
    size_t each = DS_DTYPE_SIZE(z->wire);
    if (z->stage <= 1) return z->bucket_memory + z->buckets[bucket].offset * each;
    return z->bucket_memory + bucket % z->n_slots * z->bucket_capacity * each;
}

/* from -> to with conversion, first multiplied by z->before_reduce; `add` to what is there, rounded to the wire type. */
static void dsi_zero_copy_in(ds_zero *z, char *to, const char *from, ds_dtype dtype, size_t count, bool add) {
    size_t each = DS_DTYPE_SIZE(z->wire), from_each = DS_DTYPE_SIZE(dtype);
    float here[1024], *part = z->gpu ? z->part_device : here;
    size_t room = z->gpu ? DSI_ZERO_CHUNK : 1024;
    if (!add && z->before_reduce == 1.0 && dtype == z->wire) {
        dsi_zero_copy(z, to, from, count * each, z->stream);
        return;
    }
    if (z->before_reduce == 1.0) {
        if (add)
            dsi_zero_accumulate(z, z->gpu, to, z->wire, from, dtype, count);
        else
            dsi_zero_cast(z, z->gpu, to, z->wire, from, dtype, count);
        return;
    }
    for (size_t done = 0; done < count;) {
        size_t n = count - done < room ? count - done : room;
        dsi_zero_cast(z, z->gpu, part, DS_F32, from + done * from_each, dtype, n);
        dsi_zero_scale(z, z->gpu, part, (float)z->before_reduce, n);
        if (add)
            dsi_zero_accumulate(z, z->gpu, to + done * each, z->wire, part, DS_F32, n);
        else
            dsi_zero_cast(z, z->gpu, to + done * each, z->wire, part, DS_F32, n);
        done += n;
    }
}

/* One contribution into the bucket, piece by piece. */
static void dsi_zero_fill(ds_zero *z, const dsi_zero_param *p, const char *gradient, ds_dtype dtype, bool add) {
    char *bucket = dsi_zero_bucket_at(z, p->bucket);
    size_t each = DS_DTYPE_SIZE(z->wire), from = 0;
    for (size_t r = 0; r < z->parts; r++) {
        dsi_zero_copy_in(z, bucket + z->piece_offset[p->piece + r] * each, gradient + from * DS_DTYPE_SIZE(dtype),
                         dtype, p->counts[r], add);
        from += p->counts[r];
    }
}

/* A stash, which has the bucket's type already, into the bucket. */
static void dsi_zero_move(ds_zero *z, const dsi_zero_param *p) {
    char *bucket = dsi_zero_bucket_at(z, p->bucket);
    size_t each = DS_DTYPE_SIZE(z->wire), from = 0;
    for (size_t r = 0; r < z->parts; r++) {
        dsi_zero_copy(z, bucket + z->piece_offset[p->piece + r] * each, p->stash + from * each, p->counts[r] * each,
                      z->stream);
        from += p->counts[r];
    }
}

static size_t dsi_zero_stash_bytes(const ds_zero *z) {
    return dsi_round_up((z->largest ? z->largest : 1) * 4, DSI_ZERO_ALIGN); /* all may be empty, and each is lent */
}

/* Buffers that are lent are all as large as the largest gradient in fp32 and are kept for the next micro-batch when given back. */
static ds_status dsi_zero_stash_take(ds_zero *z, const dsi_zero_param *p, char **stash) {
    if (*stash) return DS_OK;
    if (z->n_pooled) {
        *stash = z->pool[--z->n_pooled];
        return DS_OK;
    }
    *stash = (char *)dsi_zero_get(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, dsi_zero_stash_bytes(z));
    return *stash ? DS_OK
                  : dsi_zero_fail(z, DS_ERR_MEMORY, "parameter '%s': no memory for its gradient, %zu bytes", p->name,
                                  dsi_zero_stash_bytes(z));
}

static void dsi_zero_stash_give(ds_zero *z, char **stash) {
    if (!*stash) return;
    z->pool[z->n_pooled++] = *stash;
    *stash = NULL;
}

static size_t dsi_zero_own_bytes(const ds_zero *z, const dsi_zero_param *p) {
    return dsi_round_up(p->numel ? p->numel * DS_DTYPE_SIZE(z->wire) : 1, DSI_ZERO_ALIGN);
}

/* What waits for its bucket waits in a buffer that is free, else in one of its own size, which serves all of that size: where
   many wait, because one before them does not come, that is no more than the whole gradient. */
static ds_status dsi_zero_wait_take(ds_zero *z, dsi_zero_param *p) {
    dsi_zero_param **link = &z->idle;
    if (p->stash) return DS_OK;
    while (*link && dsi_zero_own_bytes(z, *link) != dsi_zero_own_bytes(z, p)) link = &(*link)->idle;
    if (*link) {
        dsi_zero_param *from = *link;
        *link = from->idle;
        p->stash = from->own;
        from->own = NULL;
        p->own = p->stash;
        return DS_OK;
    }
    if (z->n_pooled) return dsi_zero_stash_take(z, p, &p->stash);
    p->stash = p->own = (char *)dsi_zero_get(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, dsi_zero_own_bytes(z, p));
    return p->own ? DS_OK
                  : dsi_zero_fail(z, DS_ERR_MEMORY, "parameter '%s': no memory for its gradient, %zu bytes", p->name,
                                  dsi_zero_own_bytes(z, p));
}

static void dsi_zero_wait_give(ds_zero *z, dsi_zero_param *p) {
    if (!p->own || p->stash != p->own) {
        dsi_zero_stash_give(z, &p->stash);
        return;
    }
    p->stash = NULL;
    p->idle = z->idle;
    z->idle = p;
}

/* Such memory is beyond the plan, and the next pass has its buckets in this one's order. */
static void dsi_zero_wait_end(ds_zero *z) {
    for (; z->idle; z->idle = z->idle->idle) {
        dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->idle->own, dsi_zero_own_bytes(z, z->idle));
        z->idle->own = NULL;
    }
}

/* With reduce_at_boundary whole gradients, in the buckets' layout; else the own parts, in shard space. */
static size_t dsi_zero_acc_elements(const ds_zero *z) {
    return z->boundary ? z->train_elements : z->shard_total * z->levels;
}

/* world_invariant: a micro-batch's sum over ranks is a complete subtree of the tree over all leaves, micro-batch by
   micro-batch. Level k holds a finished subtree of 2^k of them, as a binary counter's bit k; a carry adds two. The last
   micro-batch adds what is left from the smallest up, into level 0. `piece` is used up. */
static void dsi_zero_carry(ds_zero *z, bool gpu, size_t at, float *piece, size_t count) {
    float *level = (float *)(void *)z->acc + at;
    bool last = z->micro + 1 == z->accumulation;
    unsigned m = (unsigned)z->micro, k = 0;
    for (; m >> k & 1u || (last && m >> k); k++)
        if (m >> k & 1u) dsi_zero_accumulate(z, gpu, piece, DS_F32, level + k * z->shard_total, DS_F32, count);
    dsi_zero_cast(z, gpu, level + (last ? 0 : k * z->shard_total), DS_F32, piece, DS_F32, count);
}

/* `count` elements of a reduced gradient, into the accumulator in memory from element `at` of shard space on. */
static void dsi_zero_add_up(ds_zero *z, bool gpu, size_t at, char *piece, size_t count) {
    char *acc = z->acc + at * dsi_zero_acc_bytes(z);
    if (z->invariant)
        dsi_zero_carry(z, gpu, at, (float *)(void *)piece, count);
    else if (z->micro == 0)
        dsi_zero_cast(z, gpu, acc, z->acc_dtype, piece, z->wire, count);
    else
        dsi_zero_accumulate(z, gpu, acc, z->acc_dtype, piece, z->wire, count);
}

/* The host's copy of the chunk of a gradient at element `at`; the next chunk is on its way when this returns. */
static char *dsi_zero_pull(ds_zero *z, const char *from, size_t count, size_t each, size_t at) {
    size_t k = at / DSI_ZERO_CHUNK;
    for (size_t c = k ? k + 1 : 0; c <= k + 1 && c * DSI_ZERO_CHUNK < count; c++) {
        dsi_zero_stage *stage = &z->stages[c % 2];
        size_t n = count - c * DSI_ZERO_CHUNK < DSI_ZERO_CHUNK ? count - c * DSI_ZERO_CHUNK : DSI_ZERO_CHUNK;
        if (k == 0) dsi_zero_follow(z, z->stream, stage->stream);
        dsi_zero_copy(z, stage->half, from + c * DSI_ZERO_CHUNK * each, n * each, stage->stream);
    }
    dsi_zero_sync(z, z->stages[k % 2].stream);
    return z->stages[k % 2].half;
}

typedef struct dsi_zero_ballot { /* what each rank tells the others before an update; its losses follow */
    int64_t loss_count;
    int64_t stop;
    double squares; /* stage 0: of this rank's gradient, which is not that of the others when it is not reduced */
    int64_t bad;    /* stage 0: the first parameter whose gradient is not finite; INT64_MAX: none */
} dsi_zero_ballot;

static size_t dsi_zero_head(const ds_zero *z) { /* in doubles */
    return sizeof(dsi_zero_ballot) / sizeof(double) + (size_t)z->accumulation;
}

/* Whole grains: a part has its last one to itself, and they are what the disk takes without reading first. */
static ds_status dsi_zero_acc_io(ds_zero *z, bool write, dsi_zero_lane *lane, size_t at, size_t count) {
    size_t each = dsi_zero_acc_bytes(z);
    ds_status status = count ? dsi_zero_keep_pace(z) : DS_OK;
    if (status || count == 0) return status; /* a rank that owns nothing has no such array */
    if (write)
        status = ds_offload_start_write(z->store[0], z->disk[DSI_ZERO_GRAD], at * each, count * each, lane->memory,
                                        &lane->ticket);
    else
        status = ds_offload_start_read(z->store[0], z->disk[DSI_ZERO_GRAD], at * each, count * each, lane->memory,
                                       &lane->ticket);
    return status ? dsi_zero_disk_failed(z, 0, status, write ? "swap-out" : "swap-in", "gradients") : DS_OK;
}

static void dsi_zero_acc_add(ds_zero *z, char *sum, const char *piece, size_t count, bool add, double *norms) {
    if (add)
        (void)ds_optim_accumulate(sum, z->acc_dtype, piece, z->wire, count);
    else
        (void)ds_optim_cast(sum, z->acc_dtype, piece, z->wire, count);
    if (norms) ds_optim_norm_grains(sum, z->acc_dtype, count, 1.0f, norms);
}

/* The sub-groups whose gradients are summed in the sets that the step begins with, and never go to disk. An optimizer that
   measures first takes all sub-groups twice. */
static size_t dsi_zero_kept_subs(const ds_zero *z) {
    return z->by_norm ? 0 : z->n_sets;
}

/* Where these end in shard space; with world_invariant only the last micro-batch's sum is theirs. */
static size_t dsi_zero_kept_end(const ds_zero *z) {
    size_t kept = z->invariant && z->micro + 1 < z->accumulation ? 0 : dsi_zero_kept_subs(z);
    return kept ? z->subs[kept - 1].end : 0;
}

/* What one lane moves: a piece of a tensor's own part, or the own parts of tensors that are neighbours in a bucket and in
   shard space, too. */
typedef struct dsi_zero_run {
    size_t first, count; /* tensors in z->bucket_order */
    size_t at;           /* in the first one's own part */
    size_t begin, end;   /* in shard space, in whole grains */
} dsi_zero_run;

/* Elements of the run's k-th tensor. */
static size_t dsi_zero_run_count(const ds_zero *z, const dsi_zero_run *run, size_t k) {
    size_t count = z->params[z->bucket_order[run->first + k]].own_count - (k ? 0 : run->at);
    return count < z->lane_elements ? count : z->lane_elements;
}

/* The run at `next` (which tensor, and where in its own part), and moves that on. */
static dsi_zero_run dsi_zero_next_run(const ds_zero *z, size_t next[2]) {
    const dsi_zero_param *p = &z->params[z->bucket_order[next[0]]];
    dsi_zero_run run;
    run.first = next[0];
    run.count = 1;
    run.at = next[1];
    run.begin = p->shard + run.at;
    run.end = run.begin + dsi_zero_grains(dsi_zero_run_count(z, &run, 0)) * DS_GRAIN;
    next[1] += z->lane_elements;
    if (next[1] < p->own_count) return run;
    next[0]++;
    next[1] = 0;
    while (!z->invariant && next[0] < z->n_train && z->params[z->bucket_order[next[0]]].bucket == p->bucket) {
        const dsi_zero_param *q = &z->params[z->bucket_order[next[0]]];
        size_t room = dsi_zero_grains(q->own_count) * DS_GRAIN;
        if (run.end - run.begin + room > z->lane_elements) break;
        if (q->shard + room == run.begin)
            run.begin = q->shard;
        else if (q->shard == run.end)
            run.end += room;
        else
            break;
        run.count++;
        next[0]++;
    }
    return run;
}

/* Starts reading the sums that are on disk and that the micro-batch's gradients will be added to, as many as there are lanes,
   in the order in which dsi_zero_sum_bucket comes to them: at the first gradient, and whenever a lane is used. */
static ds_status dsi_zero_sums_ahead(ds_zero *z) {
    size_t kept = dsi_zero_kept_end(z);
    ds_status status = DS_OK;
    if (!z->acc_disk || z->invariant || z->micro == 0) return DS_OK;
    while (z->sum_next[0] < z->n_train && z->lane - z->lane_used < DSI_ZERO_LANES && !status) {
        dsi_zero_run run = dsi_zero_next_run(z, z->sum_next);
        size_t begin = run.begin > kept ? run.begin : kept;
        dsi_zero_lane *lane;
        if (run.end <= begin) continue; /* its sum waits in a set */
        status = dsi_zero_lane_take(z, &lane);
        if (!status) status = dsi_zero_acc_io(z, false, lane, begin, run.end - begin);
    }
    return status;
}

/* world_invariant: adds the subtrees on disk that this one completes to `piece`; *level: where the sum belongs. */
static ds_status dsi_zero_carry_swap(ds_zero *z, size_t at, float *piece, size_t count, size_t *level) {
    bool last = z->micro + 1 == z->accumulation;
    unsigned m = (unsigned)z->micro, k = 0;
    ds_status status = DS_OK;
    for (; !status && (m >> k & 1u || (last && m >> k)); k++) {
        dsi_zero_lane *lane;
        if (!(m >> k & 1u)) continue;
        if ((status = dsi_zero_lane_take(z, &lane))) break;
        status = dsi_zero_acc_io(z, false, lane, k * z->shard_total + at, dsi_round_up(count, DS_GRAIN));
        if (!status) status = dsi_zero_lane_wait(z, lane, "swap-in");
        (void)ds_optim_accumulate(piece, DS_F32, lane->memory, DS_F32, count);
    }
    *level = last ? 0 : k;
    return status;
}

/* One piece of a gradient into its sums: in the sets that keep them, and behind those in the memory of a lane, which begins
   at element `begin` of shard space. */
static void dsi_zero_sum_piece(ds_zero *z, const dsi_zero_param *p, const char *piece, size_t in, size_t count,
                               char *memory, size_t begin) {
    bool last = z->micro + 1 == z->accumulation, add = !z->invariant && z->micro;
    double *norms = last ? z->norm_own + dsi_zero_head(z) + p->norm_at + in / DS_GRAIN : NULL;
    size_t kept = dsi_zero_kept_end(z), each = dsi_zero_acc_bytes(z);
    for (size_t g = 0, done = 0, n; done < count; done += n) {
        size_t at = p->shard + in + done;
        char *sum;
        n = count - done;
        if (at < kept) {
            while (z->subs[g].end <= at) g++;
            sum = z->sets[g].grad + (at - z->subs[g].begin) * each;
            if (n > z->subs[g].end - at) n = z->subs[g].end - at;
        } else
            sum = memory + (at - begin) * each;
        dsi_zero_acc_add(z, sum, piece + done * DS_DTYPE_SIZE(z->wire), n, add, norms ? norms + done / DS_GRAIN : NULL);
    }
}

/* A reduced bucket into accumulators on disk, run by run through the lanes. */
static ds_status dsi_zero_sum_bucket(ds_zero *z, size_t b) {
    const dsi_zero_bucket *bucket = &z->buckets[b];
    size_t next[2], kept = dsi_zero_kept_end(z), each = DS_DTYPE_SIZE(z->wire), level = 0;
    bool add = !z->invariant && z->micro;
    ds_status status = dsi_zero_sums_ahead(z);
    next[0] = bucket->first;
    next[1] = 0;
    while (next[0] < bucket->first + bucket->count && !status) {
        dsi_zero_run run = dsi_zero_next_run(z, next);
        size_t begin = run.begin > kept ? run.begin : kept;
        dsi_zero_lane *lane = NULL;
        if (run.end > begin && add) {
            lane = &z->lanes[z->lane_used++ % DSI_ZERO_LANES];
            status = dsi_zero_lane_wait(z, lane, "swap-in");
        }
        for (size_t k = 0; k < run.count && !status; k++) {
            const dsi_zero_param *p = &z->params[z->bucket_order[run.first + k]];
            size_t in = k ? 0 : run.at, n = dsi_zero_run_count(z, &run, k);
            char *piece = dsi_zero_bucket_at(z, b) + z->piece_offset[p->piece + z->part] * each;
            piece = z->gpu ? dsi_zero_pull(z, piece, p->own_count, each, in) : piece + in * each;
            status = dsi_zero_ended(z, DS_OK);
            if (!status && z->invariant) status = dsi_zero_carry_swap(z, run.begin, (float *)(void *)piece, n, &level);
            if (!status && run.end > begin && !lane) {
                status = dsi_zero_lane_take(z, &lane);
                z->lane_used = z->lane;
            }
            if (!status) dsi_zero_sum_piece(z, p, piece, in, n, lane ? lane->memory : NULL, begin);
        }
        if (lane && !status) status = dsi_zero_acc_io(z, true, lane, level * z->shard_total + begin, run.end - begin);
        if (!status) status = dsi_zero_sums_ahead(z);
    }
    return status;
}

/* Whether a reduced gradient loses bits in the accumulator's type. */
static bool dsi_zero_acc_rounds(const ds_zero *z) {
    return z->acc_dtype != z->wire && z->acc_dtype != DS_F32;
}

/* A reduced piece that needs no accumulator, rounded where it lies as if it had been in one. */
static void dsi_zero_round_piece(ds_zero *z, char *piece, size_t count) {
    uint16_t here[1024];
    void *part = z->gpu ? (void *)z->part_device : (void *)here;
    size_t each = DS_DTYPE_SIZE(z->wire), room = z->gpu ? DSI_ZERO_CHUNK : 1024;
    for (size_t done = 0, n; done < count; done += n) {
        n = count - done < room ? count - done : room;
        dsi_zero_cast(z, z->gpu, part, z->acc_dtype, piece + done * each, z->wire, n);
        dsi_zero_cast(z, z->gpu, piece + done * each, z->wire, part, z->acc_dtype, n);
    }
}

/* Takes a reduced bucket's own pieces into the accumulators. */
static ds_status dsi_zero_bucket_finish(ds_zero *z, size_t b) {
    dsi_zero_bucket *bucket = &z->buckets[b];
    size_t each = DS_DTYPE_SIZE(z->wire);
    int64_t start = dsi_now(&z->clock);
    if (bucket->handle && ds_comm_wait(z->comm, bucket->handle))
        return dsi_zero_comm_failed(z, "gradient reduction", NULL);
    bucket->handle = 0;
    z->ns_reduce += dsi_now(&z->clock) - start;
    if (z->acc_disk) return dsi_zero_sum_bucket(z, b);
    for (size_t j = 0; (z->acc ? !z->boundary : dsi_zero_acc_rounds(z)) && j < bucket->count; j++) {
        const dsi_zero_param *p = &z->params[z->bucket_order[bucket->first + j]];
        char *piece = dsi_zero_bucket_at(z, b) + z->piece_offset[p->piece + z->part] * each;
        if (!z->acc) {
            dsi_zero_round_piece(z, piece, p->own_count);
            continue;
        }
        if (!z->acc_down) {
            dsi_zero_add_up(z, z->gpu, p->shard, piece, p->own_count);
            continue;
        }
        for (size_t at = 0; at < p->own_count; at += DSI_ZERO_CHUNK) {
            size_t n = p->own_count - at < DSI_ZERO_CHUNK ? p->own_count - at : DSI_ZERO_CHUNK;
            char *chunk = dsi_zero_pull(z, piece, p->own_count, each, at);
            if (z->dead) return z->error.status;
            dsi_zero_add_up(z, false, p->shard + at, chunk, n);
        }
    }
    return dsi_zero_ended(z, DS_OK);
}

/* reduce_at_boundary: this rank's own sum over micro-batches; true when it is complete and in the bucket. */
static bool dsi_zero_bucket_add(ds_zero *z, const dsi_zero_bucket *bucket, char *memory) {
    char *sum = z->acc + bucket->offset * dsi_zero_acc_bytes(z);
    if (z->micro == 0)
        dsi_zero_cast(z, z->gpu, sum, z->acc_dtype, memory, z->wire, bucket->elements);
    else
        dsi_zero_accumulate(z, z->gpu, sum, z->acc_dtype, memory, z->wire, bucket->elements);
    if (z->micro + 1 < z->accumulation) return false;
    dsi_zero_cast(z, z->gpu, memory, z->wire, sum, z->acc_dtype, bucket->elements);
    return true;
}

/* Rows of a sparse table that are summed at a time on a GPU. */
static size_t dsi_zero_rows_at_once(const dsi_zero_param *p) {
    const size_t rows = p->shape[0], most = DSI_ZERO_CHUNK / (p->numel / rows) + 1;
    return rows < most ? rows : most;
}

/* Two hops of four bits: inside the node, then across. [cfg: zero_optimization.zero_quantized_gradients] */
static ds_status dsi_zero_reduce_quantized(ds_zero *z, const dsi_zero_bucket *bucket, char *memory) {
    size_t each = DS_DTYPE_SIZE(z->wire), n = bucket->stride;
    ds_comm *node = z->node ? z->node : z->comm;
    ds_status status;
    for (size_t r = 0; r < z->parts; r++) { /* nothing of the last bucket's may share a scale with this one's */
        size_t used = 0;
        for (size_t j = 0; j < bucket->count; j++) used += z->params[z->bucket_order[bucket->first + j]].counts[r];
        dsi_zero_clear(z, memory + (r * n + used) * each, (n - used) * each, z->stream);
    }
    if (z->gpu)
        status = ds_comm_quantized_reduce_scatter_on(node, z->across, memory, z->quantized, n, z->wire,
                                                     n / DSI_ZERO_GROUP, z->quantized + n * each, z->stream);
    else
        status = ds_comm_quantized_reduce_scatter(node, z->across, memory, z->quantized, n, z->wire, n / DSI_ZERO_GROUP,
                                                  1.0f, z->quantized + n * each);
    if (status) return dsi_zero_failed_on(z, node, "gradient reduction", NULL);
    dsi_zero_copy(z, memory + z->part * n * each, z->quantized, n * each, z->stream);
    return DS_OK;
}

static ds_status dsi_zero_bucket_launch(ds_zero *z, size_t b) {
    dsi_zero_bucket *bucket = &z->buckets[b];
    char *memory = dsi_zero_bucket_at(z, b);
    size_t *counts = z->counts + (b % z->n_slots) * (size_t)z->world;
    const dsi_zero_param *first = &z->params[z->bucket_order[bucket->first]];
    ds_comm_call call;
    ds_status status;
    int64_t start = dsi_now(&z->clock);
    bucket->handle = 0;
    if (z->boundary && z->acc && !dsi_zero_bucket_add(z, bucket, memory)) return DS_OK;
    if (z->world == 1 || z->local) return DS_OK;
    memset(&call, 0, sizeof call);
    call.in = memory;
    call.out = memory;
    call.dtype = call.out_dtype = z->wire;
    call.op = DS_COMM_SUM;
    call.on_device = z->gpu;
    call.stream = z->stream;
    call.native = z->native;
    if (first->sparse) { /* alone in its bucket, which is the whole table */
        size_t rows = first->shape[0];
        status =
            z->gpu ? ds_comm_sparse_all_reduce_on(z->comm, memory, rows, first->numel / rows, z->wire, DS_COMM_SUM,
                                                  dsi_zero_rows_at_once(first), z->rows_device, z->rows_host, NULL,
                                                  z->stream)
                   : ds_comm_sparse_all_reduce(z->comm, memory, rows, first->numel / rows, z->wire, DS_COMM_SUM, NULL);
        if (status) return dsi_zero_comm_failed(z, "gradient reduction", first->name);
        z->ns_reduce += dsi_now(&z->clock) - start;
        return DS_OK;
    }
    if (bucket->stride) {
        if ((status = dsi_zero_reduce_quantized(z, bucket, memory))) return status;
        z->ns_reduce += dsi_now(&z->clock) - start;
        return DS_OK;
    }
    if (z->stage == 0 || z->reduce_whole) {
        call.kind = DS_COMM_ALL_REDUCE;
        call.count = bucket->elements;
    } else {
        call.kind = DS_COMM_REDUCE_SCATTER;
        call.counts = counts;
        call.out = memory + z->piece_offset[first->piece + z->part] * DS_DTYPE_SIZE(z->wire);
        memset(counts, 0, (size_t)z->world * sizeof *counts);
        for (size_t j = 0; j < bucket->count; j++)
            for (size_t r = 0; r < z->parts; r++) counts[r] += z->params[z->bucket_order[bucket->first + j]].counts[r];
    }
    if (z->overlap ? ds_comm_start(z->comm, &call, &bucket->handle) : ds_comm_run(z->comm, &call))
        return dsi_zero_comm_failed(z, "gradient reduction", NULL);
    z->ns_reduce += dsi_now(&z->clock) - start;
    return DS_OK;
}

static void dsi_zero_complete(ds_zero *z, dsi_zero_param *p);

static bool dsi_zero_bucket_stashed(const ds_zero *z, const dsi_zero_bucket *bucket) {
    for (size_t j = 0; j < bucket->count; j++)
        if (z->params[z->bucket_order[bucket->first + j]].stash) return true;
    return false;
}

/* Opens buckets: all that need not wait, those up to `wanted`, and those with a gradient that came too early, which moves in from
   its stash: left there, the gradients behind it would be stashed, too. A bucket takes the slot of the one n_slots before it,
   which must have been launched and is waited for here: not before it must be, or nothing would overlap. */
static ds_status dsi_zero_open_buckets(ds_zero *z, size_t wanted) {
    while (z->opened < z->n_buckets) {
        dsi_zero_bucket *bucket = &z->buckets[z->opened];
        if (z->opened >= z->n_slots && z->opened > wanted && !dsi_zero_bucket_stashed(z, bucket)) return DS_OK;
        if (z->opened >= z->n_slots) {
            ds_status status;
            if (z->opened - z->n_slots >= z->launched) return DS_OK;
            if ((status = dsi_zero_bucket_finish(z, z->finished))) return status;
            z->finished++;
        }
        bucket->missing = bucket->count;
        bucket->after = 0;
        z->opened++;
        for (size_t j = 0; j < bucket->count; j++) {
            dsi_zero_param *p = &z->params[z->bucket_order[bucket->first + j]];
            if (!p->stash) continue;
            dsi_zero_move(z, p);
            dsi_zero_wait_give(z, p);
            dsi_zero_complete(z, p);
        }
    }
    return DS_OK;
}

/* What did not come counts as zero. */
static void dsi_zero_fill_missing(ds_zero *z, dsi_zero_bucket *bucket) {
    size_t each = DS_DTYPE_SIZE(z->wire);
    char *memory = dsi_zero_bucket_at(z, (size_t)(bucket - z->buckets));
    for (size_t j = 0; j < bucket->count; j++) {
        const dsi_zero_param *p = &z->params[z->bucket_order[bucket->first + j]];
        for (size_t r = 0; p->given == 0 && r < z->parts; r++)
            dsi_zero_clear(z, memory + z->piece_offset[p->piece + r] * each, p->counts[r] * each, z->stream);
    }
    bucket->missing = 0;
}

/* At stage 3 reductions and gathers are one sequence of calls, and what a rank has of the gradients must not change it. So
   ranks vote before each reduction, on a communicator beside that sequence, which is as far on all of them: when they come
   to the next fetch or to the end, after as many fetches as the bucket took in the pass before; or before that, when a
   gradient needs the bucket's memory. One that has the bucket says yes, and for how many fetches. One yes is enough, and the
   others give zeros for what they lack; where all say no the question is put again at the fetch after this one. */
static ds_status dsi_zero_vote(ds_zero *z, dsi_zero_bucket *bucket, bool *launch) {
    const size_t since = z->position - bucket->after;
    const uint8_t vote = bucket->missing ? 0 : (uint8_t)(UINT8_MAX - (since < UINT8_MAX ? since : UINT8_MAX - 1));
    uint8_t most = 0;
    if (ds_comm_all_reduce(z->votes, &vote, &most, 1, DS_U8, z->ignore_unused ? DS_COMM_MAX : DS_COMM_MIN))
        return dsi_zero_failed_on(z, z->votes, "vote on the next reduction of gradients", NULL);
    *launch = most != 0;
    if (*launch)
        bucket->due = z->position - (size_t)(UINT8_MAX - most);
    else
        z->vote_from = z->position + 1;
    return DS_OK;
}

typedef enum dsi_zero_moment { DSI_ZERO_GIVEN, DSI_ZERO_PRESSED, DSI_ZERO_FETCH, DSI_ZERO_END } dsi_zero_moment;

/* Whether the next bucket's turn has come. */
static ds_status dsi_zero_launches(ds_zero *z, dsi_zero_bucket *bucket, dsi_zero_moment moment, bool *launch) {
    bool ready = bucket->missing == 0, agreed = false;
    bool due = z->position >= bucket->due && z->position >= z->vote_from;
    bool votes = z->votes && (due || moment == DSI_ZERO_END);
    ds_status status = DS_OK;
    if (votes && (moment >= DSI_ZERO_FETCH || (ready && moment == DSI_ZERO_PRESSED)))
        status = dsi_zero_vote(z, bucket, &agreed);
    *launch = moment == DSI_ZERO_END || agreed || (ready && z->hooks && !z->votes);
    return status;
}

/* Launches buckets in order: the next one when it is complete, at the end all; opening one may complete it from stashes. The
   next one is opened by its first gradient, so that the model computes until then; where ranks vote on it, at once. At stage 1
   without grad_hooks reductions wait for the end of the micro-batch. [cfg: zero_optimization.grad_hooks] */
static ds_status dsi_zero_launch_buckets(ds_zero *z, dsi_zero_moment moment) {
    const bool opens = z->votes || moment == DSI_ZERO_END;
    ds_status status = opens ? dsi_zero_open_buckets(z, z->launched) : DS_OK;
    while (!status && z->launched < z->opened) {
        dsi_zero_bucket *bucket = &z->buckets[z->launched];
        bool launch;
        status = dsi_zero_launches(z, bucket, moment, &launch);
        if (status || !launch) return status;
        if ((status = dsi_zero_all_catch_up(z, z->n_train))) return status;
        if (bucket->missing) dsi_zero_fill_missing(z, bucket);
        status = dsi_zero_bucket_launch(z, z->launched++);
        if (!status) status = dsi_zero_open_buckets(z, opens ? z->launched : 0);
    }
    return status;
}

static void dsi_zero_complete(ds_zero *z, dsi_zero_param *p) {
    dsi_zero_bucket *bucket = &z->buckets[p->bucket];
    if (p->given != p->contributions) return;
    bucket->missing--;
    if (p->after > bucket->after) bucket->after = p->after;
}

/* Takes one contribution: into the bucket if that is open, else into a stash of the same type and rounding. */
static ds_status dsi_zero_contribute(ds_zero *z, dsi_zero_param *p, const char *gradient, ds_dtype dtype) {
    ds_status status;
    if (p->bucket >= z->opened && (status = dsi_zero_open_buckets(z, p->bucket))) return status;
    if (p->bucket >= z->opened && z->votes) {
        status = dsi_zero_launch_buckets(z, DSI_ZERO_PRESSED);
        if (!status) status = dsi_zero_open_buckets(z, p->bucket);
        if (status) return status;
    }
    if (p->bucket < z->opened)
        dsi_zero_fill(z, p, gradient, dtype, p->given > 0);
    else {
        if ((status = dsi_zero_wait_take(z, p))) return status;
        dsi_zero_copy_in(z, p->stash, gradient, dtype, p->numel, p->given > 0);
    }
    p->given++;
    p->after = z->position;
    if (p->given == p->contributions && !z->reordered && z->micro == 0)
        z->arrival[z->n_arrived++] = (uint32_t)(p - z->params);
    if (p->bucket < z->opened) dsi_zero_complete(z, p);
    return dsi_zero_launch_buckets(z, DSI_ZERO_GIVEN);
}

// >>passes

static ds_status dsi_zero_alive(ds_zero *z) {
    if (!z) return DS_ERR_ARGUMENT;
    return z->dead ? z->error.status : DS_OK;
}

static ds_status dsi_zero_param_of(ds_zero *z, size_t index, const char *doing, dsi_zero_param **out) {
    ds_status status = dsi_zero_alive(z);
    if (status) return status;
    if (index >= z->n_params)
        return dsi_zero_fail(z, DS_ERR_ARGUMENT, "%s: parameter %zu of %zu", doing, index, z->n_params);
    *out = &z->params[index];
    if (z->pass < 0)
        return dsi_zero_fail(z, DS_ERR_STATE, "%s of '%s' outside of a pass; call ds_zero_begin first", doing,
                             (*out)->name);
    return DS_OK;
}

static void dsi_zero_adopt_order(ds_zero *z) {
    z->reordered = true;
    for (size_t i = 0; i < z->n_train; i++) z->bucket_order[i] = z->arrival[i];
    dsi_zero_layout_buckets(z);
}

/* Buckets in the order in which rank 0 saw gradients complete, so that they launch while the backward goes on. */
static ds_status dsi_zero_reorder(ds_zero *z) {
    for (size_t i = 0; i < z->n_train && z->n_arrived < z->n_train; i++) { /* what gave no gradient comes last */
        bool there = false;
        for (size_t j = 0; j < z->n_arrived && !there; j++) there = z->arrival[j] == z->bucket_order[i];
        if (!there) z->arrival[z->n_arrived++] = (uint32_t)z->bucket_order[i];
    }
    if (z->world > 1 && ds_comm_broadcast(z->comm, z->arrival, z->n_train, DS_U32, 0))
        return dsi_zero_comm_failed(z, "agreement on the gradients' order", NULL);
    dsi_zero_adopt_order(z);
    return DS_OK;
}

DS_API ds_status ds_zero_begin(ds_zero *z, ds_zero_pass pass) {
    ds_status status = dsi_zero_alive(z);
    if (status) return status;
    if ((int)pass < 0 || (int)pass > 2) return dsi_zero_fail(z, DS_ERR_ARGUMENT, "ds_zero_begin: pass %d", (int)pass);
    if (z->pass >= 0) return dsi_zero_fail(z, DS_ERR_STATE, "ds_zero_begin: the last pass is still open");
    if (pass == DS_ZERO_TRAIN && z->micro == z->accumulation)
        return dsi_zero_fail(z, DS_ERR_STATE,
                             "ds_zero_begin: %d micro-batches have been given (gradient_accumulation_steps); the "
                             "step is due",
                             z->accumulation);
    if (pass == DS_ZERO_TRAIN) {
        bool may = z->micro == 0 || !z->boundary; /* the sums of this step stand in the buckets' layout */
        if (!z->reordered && z->trained && may && (status = dsi_zero_reorder(z))) return status;
        z->opened = z->launched = z->finished = z->vote_from = 0;
        z->sum_next[0] = z->sum_next[1] = 0;
        for (size_t i = 0; i < z->n_params; i++) z->params[i].given = 0;
        z->t_begin = dsi_now(&z->clock);
        z->t_gradient = 0;
        z->local = z->one_bit && ds_optim_wants_local_gradients(z->optim);
    }
    z->pass = (int)pass;
    z->position = 0;
    z->following = z->traces[pass].recorded;
    if (!z->following) z->traces[pass].count = 0;
    return dsi_zero_ended(z, pass == DS_ZERO_TRAIN ? dsi_zero_open_buckets(z, 0) : DS_OK);
}

DS_API ds_status ds_zero_fetch(ds_zero *z, size_t index, void *stream) {
    dsi_zero_param *p = NULL;
    ds_status status = dsi_zero_param_of(z, index, "fetch", &p);
    if (status) return status;
    z->caller = stream;
    if (p->whole) {
        if ((status = dsi_zero_arrived(z, p))) return status;
        dsi_zero_follow(z, z->stream, stream);
        p->fetches++;
        return dsi_zero_ended(z, DS_OK);
    }
    if (z->votes && z->pass == DS_ZERO_TRAIN && (status = dsi_zero_launch_buckets(z, DSI_ZERO_FETCH))) return status;
    if ((status = dsi_zero_trace_add(z, index))) return status;
    if (p->tensor != DSI_ZERO_NONE && (status = dsi_zero_all_catch_up(z, p->place + 1))) return status;
    z->fetches++;
    if (p->fetches == 0 && p->where != DSI_ZERO_LIVE) {
        z->fetches_waited++;
        if (p->where == DSI_ZERO_ABSENT) {
            dsi_zero_evict(z, p->numel);
            status = dsi_zero_gather_read(z, p);
        }
        if (!status && p->where == DSI_ZERO_READING) status = dsi_zero_gather_start(z, p);
        if (!status) status = dsi_zero_gather_wait(z, p);
        if (status) return status;
    }
    p->fetches++;
    dsi_zero_guard(z, p->full, dsi_zero_room(p), true);
    if (p->slot) *p->slot = p->full;
    if (z->gpu) dsi_zero_said(z, z->device.event_wait(z->device.ctx, p->ready, stream), "order");
    return dsi_zero_ended(z, dsi_zero_prefetch(z));
}

DS_API ds_status ds_zero_release(ds_zero *z, size_t index) {
    dsi_zero_param *p = NULL;
    ds_status status = dsi_zero_param_of(z, index, "release", &p);
    if (status) return status;
    if (p->fetches == 0) return dsi_zero_fail(z, DS_ERR_STATE, "release of '%s', which is not fetched", p->name);
    if (--p->fetches > 0 || p->whole) return DS_OK;
    if (p->slot) *p->slot = NULL;
    dsi_zero_guard(z, p->full, dsi_zero_room(p), false);
    if (z->live_elements > z->max_live || dsi_zero_next_use(z, p) > z->max_reuse) dsi_zero_arena_drop(z, p);
    return dsi_zero_ended(z, DS_OK);
}

static ds_status dsi_zero_end_gradients(ds_zero *z) {
    ds_status status;
    for (size_t i = 0; i < z->n_params; i++) {
        dsi_zero_param *p = &z->params[i];
        if (p->tensor == DSI_ZERO_NONE || p->given == p->contributions) continue;
        if (p->bucket < z->launched) { /* too late */
            dsi_zero_stash_give(z, &p->lent);
            continue;
        }
        if (p->lent)
            return dsi_zero_fail(z, DS_ERR_STATE,
                                 "end of pass: the gradient buffer of '%s' was taken but not declared ready", p->name);
        if (!z->ignore_unused)
            return dsi_zero_fail(z, DS_ERR_STATE,
                                 "end of pass: parameter '%s' got %d of %d gradients, and "
                                 "zero_optimization.ignore_unused_parameters is false",
                                 p->name, p->given, p->contributions);
    }
    if ((status = dsi_zero_all_catch_up(z, z->n_train))) return status;
    if ((status = dsi_zero_launch_buckets(z, DSI_ZERO_END))) return status;
    while (z->finished < z->n_buckets) {
        if ((status = dsi_zero_bucket_finish(z, z->finished))) return status;
        z->finished++;
    }
    return DS_OK;
}

DS_API ds_status ds_zero_end(ds_zero *z) {
    ds_status status = dsi_zero_alive(z);
    if (status) return status;
    if (z->pass < 0) return dsi_zero_fail(z, DS_ERR_STATE, "ds_zero_end: no pass is open");
    for (size_t i = 0; i < z->n_params; i++)
        if (z->params[i].fetches)
            return dsi_zero_fail(z, DS_ERR_STATE, "end of pass: parameter '%s' is still fetched (%d times)",
                                 z->params[i].name, z->params[i].fetches);
    if (z->pass == DS_ZERO_TRAIN) {
        int64_t now;
        if ((status = dsi_zero_end_gradients(z))) return status;
        if (z->idle) dsi_zero_sync(z, z->stream);
        dsi_zero_wait_end(z);
        now = dsi_now(&z->clock);
        if (!z->t_gradient) z->t_gradient = now;
        z->ns_forward += z->t_gradient - z->t_begin;
        z->ns_backward += now - z->t_gradient;
        z->micro++;
        z->trained = true;
    }
    if ((status = dsi_zero_drop_all(z))) return status;
    z->traces[z->pass].recorded = z->traces[z->pass].count > 0;
    if (z->following) z->traces[z->pass].count = z->position;
    z->pass = -1;
    return dsi_zero_ended(z, DS_OK);
}

static ds_status dsi_zero_grad_of(ds_zero *z, size_t index, const char *doing, dsi_zero_param **out) {
    ds_status status = dsi_zero_param_of(z, index, doing, out);
    if (status) return status;
    if (z->pass != DS_ZERO_TRAIN)
        return dsi_zero_fail(z, DS_ERR_STATE, "%s of '%s' in a pass that does not train", doing, (*out)->name);
    if ((*out)->tensor == DSI_ZERO_NONE)
        return dsi_zero_fail(z, DS_ERR_STATE, "%s of '%s', which is frozen", doing, (*out)->name);
    if ((*out)->given == (*out)->contributions)
        return dsi_zero_fail(z, DS_ERR_STATE, "%s of '%s': it has its %d gradients of this micro-batch already", doing,
                             (*out)->name, (*out)->contributions);
    if ((*out)->bucket < z->launched)
        return dsi_zero_fail(
            z, DS_ERR_STATE,
            "%s of '%s' after the other ranks' was reduced, with zeros for this rank's: at stage 3 a gradient comes "
            "between the same fetches on all ranks, or not at all",
            doing, (*out)->name);
    if (!z->t_gradient) z->t_gradient = dsi_now(&z->clock);
    status = dsi_zero_catch_up(z, z->n_train); /* the accumulators are to be written */
    if (!status) status = dsi_zero_sums_ahead(z);
    return status ? status : dsi_zero_read_ahead(z);
}

/* The engine reads after what `stream` has to do, and what comes on it then finds the memory free. */
static ds_status dsi_zero_take(ds_zero *z, dsi_zero_param *p, const char *gradient, void *stream) {
    ds_status status;
    z->caller = stream;
    dsi_zero_follow(z, stream, z->stream);
    status = dsi_zero_contribute(z, p, gradient, p->dtype);
    dsi_zero_follow(z, z->stream, stream);
    return dsi_zero_ended(z, status);
}

DS_API ds_status ds_zero_grad(ds_zero *z, size_t index, const void *gradient, void *stream) {
    dsi_zero_param *p = NULL;
    ds_status status = dsi_zero_grad_of(z, index, "gradient", &p);
    if (status) return status;
    if (p->lent && p->given + 1 == p->contributions)
        return dsi_zero_fail(z, DS_ERR_STATE, "gradient of '%s' while its gradient buffer is taken; declare that ready",
                             p->name);
    if (!gradient && p->numel) return dsi_zero_fail(z, DS_ERR_ARGUMENT, "gradient of '%s' is NULL", p->name);
    return dsi_zero_take(z, p, (const char *)gradient, stream);
}

DS_API ds_status ds_zero_grad_buffer(ds_zero *z, size_t index, void **buffer) {
    dsi_zero_param *p = NULL;
    ds_status status = dsi_zero_grad_of(z, index, "gradient buffer", &p);
    if (status) return status;
    if (!buffer) return dsi_zero_fail(z, DS_ERR_ARGUMENT, "ds_zero_grad_buffer of '%s': buffer is NULL", p->name);
    if (p->lent) return dsi_zero_fail(z, DS_ERR_STATE, "gradient buffer of '%s' is taken already", p->name);
    if ((status = dsi_zero_stash_take(z, p, &p->lent))) return status;
    dsi_zero_follow(z, z->stream, z->caller);
    *buffer = p->lent;
    return dsi_zero_ended(z, DS_OK);
}

DS_API ds_status ds_zero_grad_ready(ds_zero *z, size_t index, void *stream) {
    dsi_zero_param *p = NULL;
    ds_status status = dsi_zero_grad_of(z, index, "gradient", &p);
    if (status) return status;
    if (!p->lent) return dsi_zero_fail(z, DS_ERR_STATE, "gradient of '%s' is ready without a buffer", p->name);
    status = dsi_zero_take(z, p, p->lent, stream);
    if (!status) dsi_zero_stash_give(z, &p->lent);
    return status;
}

DS_API double ds_zero_loss_scale(const ds_zero *z) {
    if (!z) return 1.0;
    return z->fp16 && !z->invariant ? z->scaler.scale / z->accumulation : z->scaler.scale;
}

DS_API ds_status ds_zero_loss(ds_zero *z, double loss) {
    ds_status status = dsi_zero_alive(z);
    if (status) return status;
    if (z->pass > DS_ZERO_TRAIN) return dsi_zero_fail(z, DS_ERR_STATE, "ds_zero_loss in a pass that does not train");
    z->losses[z->micro < z->accumulation ? z->micro : z->accumulation - 1] += loss;
    z->loss_count++;
    return DS_OK;
}

DS_API void ds_zero_stop(ds_zero *z) {
    if (z) __atomic_store_n(&z->stop, 1, __ATOMIC_RELAXED);
}

// >>step

static size_t dsi_zero_models(const ds_zero *z) {
    return z->model.size > 1 ? (size_t)z->model.size : 1;
}

/* Where the reduced gradient of a parameter's own part lies; NULL: on disk. */
static const char *dsi_zero_reduced(const ds_zero *z, const dsi_zero_param *p, ds_dtype *dtype) {
    bool sums = (z->acc || z->acc_disk) && !z->boundary;
    *dtype = sums ? z->acc_dtype : z->wire;
    if (z->acc_disk) return NULL;
    if (sums) return z->acc + p->shard * dsi_zero_acc_bytes(z);
    return dsi_zero_bucket_at(z, p->bucket) + z->piece_offset[p->piece + z->part] * DS_DTYPE_SIZE(z->wire);
}

/* Whether that place is on a GPU. */
static bool dsi_zero_reduced_near(const ds_zero *z) {
    return z->gpu && !z->acc_down;
}

/* Scratch of a tree: one tensor's grains, or all losses. */
static size_t dsi_zero_norm_room(const ds_zero *z) {
    size_t grains = dsi_zero_grains(z->largest) + z->parts, losses = dsi_mul((size_t)z->accumulation, (size_t)z->world);
    return grains > losses ? grains : losses;
}

/* Counts the votes: `all` holds each rank's ballot, losses and (stages 1 to 3) grains, in rank order. The losses are leaves
   of the tree over all micro-batches, m * world + rank, so that their sum depends on the samples alone. */
static void dsi_zero_tally(ds_zero *z, const double *all, dsi_zero_ballot *total, double *loss) {
    size_t head = dsi_zero_head(z), votes = sizeof *total / sizeof(double), at = 0;
    memset(total, 0, sizeof *total);
    total->bad = INT64_MAX;
    for (int r = 0; r < z->world; r++) {
        dsi_zero_ballot one;
        memcpy(&one, all + at, sizeof one);
        total->loss_count += one.loss_count;
        total->stop |= one.stop;
        total->squares += one.squares;
        if (one.bad < total->bad) total->bad = one.bad;
        for (int m = 0; m < z->accumulation; m++) z->norm_tensor[m * z->world + r] = all[at + votes + (size_t)m];
        z->cursors[r] = at + head;
        at += z->world > 1 ? z->counts[r] : 0;
    }
    *loss = ds_optim_norm_tree(z->norm_tensor, (size_t)z->accumulation * (size_t)z->world);
}

/* The sum of all squares from z->cursors on, and the first parameter whose gradient is not finite. */
static double dsi_zero_squares(ds_zero *z, const double *all, int64_t *bad) {
    double sum = 0.0;
    *bad = INT64_MAX;
    for (size_t i = 0; i < z->n_params; i++) {
        const dsi_zero_param *p = &z->params[i];
        double squares;
        size_t k = 0;
        if (p->tensor == DSI_ZERO_NONE) continue;
        for (size_t r = 0; r < z->parts; r++) {
            size_t grains = dsi_zero_grains(p->counts[r]);
            memcpy(z->norm_tensor + k, all + z->cursors[r], grains * sizeof(double));
            z->cursors[r] += grains;
            k += grains;
        }
        squares = ds_optim_norm_tree(z->norm_tensor, k);
        if (!isfinite(squares) && *bad == INT64_MAX) *bad = (int64_t)i;
        if (!p->replicated || z->model.rank == 0) sum += squares;
    }
    return sum;
}

/* The other parts of the model add their squares; what one of them finds not finite, or asks to stop for, all do. */
static ds_status dsi_zero_span(ds_zero *z, dsi_zero_ballot *total) {
    ds_status status;
    if (z->model.size < 2) return DS_OK;
    status = z->model.exchange(z->model.ctx, total, z->spanned, sizeof *total);
    if (status) {
        char why[64];
        snprintf(why, sizeof why, "model_group.exchange returned %d", (int)status);
        return dsi_zero_die(z, status, "norm over the model's parts", why);
    }
    total->squares = 0.0;
    for (int r = 0; r < z->model.size; r++) {
        total->squares += z->spanned[r].squares;
        total->stop |= z->spanned[r].stop;
        if (z->spanned[r].bad != INT64_MAX && total->bad == INT64_MAX) total->bad = INT64_MAX - 1; /* not one of ours */
    }
    return DS_OK;
}

/* The squares of this rank's grains, behind room for its ballot. */
static size_t dsi_zero_measure(ds_zero *z) {
    size_t head = dsi_zero_head(z), n = 0;
    bool near = dsi_zero_reduced_near(z);
    for (size_t i = 0; i < z->n_params; i++) {
        const dsi_zero_param *p = &z->params[i];
        ds_dtype dtype;
        const char *gradient;
        if (p->tensor == DSI_ZERO_NONE) continue;
        gradient = dsi_zero_reduced(z, p, &dtype);
        if (gradient) /* else they were computed on the way to disk */
            dsi_zero_norms(z, near, gradient, dtype, p->own_count, (near ? z->norm_device : z->norm_own + head) + n);
        n += dsi_zero_grains(p->own_count);
    }
    if (near) dsi_zero_copy_now(z, z->norm_own + head, z->norm_device, n * sizeof(double));
    return head + n;
}

/* The global norm: each rank has the fp64 squares of its grains; all get all, put each tensor's grains in order, and add
   them in a binary tree, tensors in the order of registration. So it has the same bits however the grains were spread. At
   stage 0 each rank has all grains; where gradients are not reduced (the 1-bit optimizers), the ranks' mean is taken. */
static ds_status dsi_zero_norm(ds_zero *z, dsi_zero_ballot *total, double *loss) {
    size_t head = dsi_zero_head(z);
    dsi_zero_ballot mine;
    const double *all = z->norm_own;
    if (z->acc_disk && dsi_zero_lanes_land(z)) return z->error.status;
    (void)dsi_zero_measure(z);
    memset(&mine, 0, sizeof mine);
    mine.loss_count = z->loss_count;
    mine.stop = __atomic_load_n(&z->stop, __ATOMIC_RELAXED);
    z->cursors[0] = head;
    if (z->stage == 0) mine.squares = dsi_zero_squares(z, z->norm_own, &mine.bad);
    memcpy(z->norm_own, &mine, sizeof mine);
    memcpy(z->norm_own + sizeof mine / sizeof(double), z->losses, (size_t)z->accumulation * sizeof(double));
    if (z->world > 1) {
        for (int r = 0; r < z->world; r++) {
            z->counts[r] = head;
            for (size_t i = 0; i < z->n_params && z->stage > 0; i++)
                if (z->params[i].tensor != DSI_ZERO_NONE) z->counts[r] += dsi_zero_grains(z->params[i].counts[r]);
        }
        if (ds_comm_all_gather(z->comm, z->norm_own, z->norm_all, 0, z->counts, DS_F64))
            return dsi_zero_comm_failed(z, "exchange of norms", NULL);
        all = z->norm_all;
    }
    dsi_zero_tally(z, all, total, loss);
    if (z->stage > 0)
        total->squares = dsi_zero_squares(z, all, &total->bad);
    else
        total->squares = z->local ? total->squares / z->world : mine.squares;
    return dsi_zero_span(z, total);
}

/* A run of one parameter's own part that lies in a sub-group. */
typedef struct dsi_zero_piece {
    dsi_zero_param *p;
    size_t in, at, count; /* elements: from the own part's begin, from the sub-group's, of the run */
    char *own;            /* the model's value of it */
    bool own_near;        /* which is the device's memory */
} dsi_zero_piece;

/* The next one that is not empty; `cursor` walks z->order and stays where the next sub-group begins. */
static bool dsi_zero_next_piece(const ds_zero *z, const dsi_zero_sub *sub, const dsi_zero_set *set, size_t *cursor,
                                bool *done, dsi_zero_piece *piece) {
    while (!*done && *cursor < z->n_train) {
        dsi_zero_param *p = piece->p = &z->params[z->order[*cursor]];
        size_t room = dsi_zero_grains(p->own_count) * DS_GRAIN;
        size_t from = p->shard > sub->begin ? p->shard : sub->begin;
        size_t to = p->shard + room < sub->end ? p->shard + room : sub->end;
        if (p->shard + room > sub->end)
            *done = true;
        else
            (*cursor)++;
        if (from >= to) continue;
        piece->in = from - p->shard;
        piece->at = from - sub->begin;
        piece->count = to - p->shard < p->own_count ? to - from : p->own_count - piece->in;
        piece->own_near = z->gpu && (p->whole || (z->home && z->param_tier == DS_ZERO_DEVICE));
        piece->own = p->whole  ? p->full + (p->own_begin + piece->in) * p->bytes_each
                     : z->home ? z->home + p->home + piece->in * p->bytes_each
                               : set->home + (p->home + piece->in * p->bytes_each - sub->home_begin);
        return true;
    }
    return false;
}

/* Whether the device updates a sub-group. */
static bool dsi_zero_sub_near(const ds_zero *z, const dsi_zero_sub *sub) {
    return z->updates && (z->state_tier == DS_ZERO_DEVICE || sub->begin < z->cut);
}

/* Where the side that updates has a run's value and its gradient: their own place, or in the stage. */
static char *dsi_zero_own_place(const dsi_zero_piece *piece, const dsi_zero_stage *stage, bool near) {
    return piece->own_near == near ? piece->own : stage->side[near] + piece->at * sizeof(float);
}
static char *dsi_zero_grad_place(const ds_zero *z, const dsi_zero_piece *piece, const dsi_zero_set *set,
                                 const dsi_zero_stage *stage, bool near, ds_dtype *dtype) {
    const char *reduced = dsi_zero_reduced(z, piece->p, dtype);
    size_t each = DS_DTYPE_SIZE(*dtype);
    if (near != dsi_zero_reduced_near(z)) return stage->side[near] + z->side_grad[near] + piece->at * each;
    return reduced ? (char *)(uintptr_t)reduced + piece->in * each : set->grad + piece->at * each;
}

/* Brings what the side that updates a sub-group lacks to its stage, or takes new values back from there. A master that the
   update starts from is there already. */
static void dsi_zero_stage_move(ds_zero *z, const dsi_zero_sub *sub, const dsi_zero_set *set, dsi_zero_stage *stage,
                                size_t cursor, bool back) {
    bool near = dsi_zero_sub_near(z, sub), done = false, swap = near != dsi_zero_reduced_near(z);
    dsi_zero_piece piece;
    while (dsi_zero_next_piece(z, sub, set, &cursor, &done, &piece)) {
        size_t bytes = piece.count * piece.p->bytes_each;
        char *place = dsi_zero_own_place(&piece, stage, near);
        bool moves = back ? !z->measuring : !dsi_zero_has_master(piece.p);
        ds_dtype dtype;
        if (place != piece.own && moves)
            dsi_zero_copy(z, back ? piece.own : place, back ? place : piece.own, bytes, stage->stream);
        if (back || !swap) continue;
        place = dsi_zero_grad_place(z, &piece, set, stage, near, &dtype);
        const char *from = dsi_zero_reduced(z, piece.p, &dtype);
        from = from ? from + piece.in * DS_DTYPE_SIZE(dtype) : set->grad + piece.at * DS_DTYPE_SIZE(dtype);
        dsi_zero_copy(z, place, from, piece.count * DS_DTYPE_SIZE(dtype), stage->stream);
    }
}

/* Slices of the own parts that lie in a sub-group, over arrays that begin at its first element; `cursor` walks z->order. */
static size_t dsi_zero_slices(ds_zero *z, const dsi_zero_sub *sub, const dsi_zero_set *set, const dsi_zero_stage *stage,
                              size_t *cursor) {
    bool near = dsi_zero_sub_near(z, sub), done = false;
    dsi_zero_piece piece;
    size_t n = 0;
    while (dsi_zero_next_piece(z, sub, set, cursor, &done, &piece)) {
        ds_optim_slice *s = &z->slices[n++];
        char *own = dsi_zero_own_place(&piece, stage, near);
        memset(s, 0, sizeof *s);
        s->tensor = piece.p->tensor;
        s->begin = piece.p->own_begin + piece.in;
        s->count = piece.count;
        if (dsi_zero_has_master(piece.p)) {
            s->master = set->array[0] + piece.at;
            s->weights16 = own;
            s->weights16_dtype = piece.p->dtype;
        } else
            s->master = (float *)(void *)own;
        for (size_t k = 0; k < z->n_states; k++) s->state[k] = set->array[1 + k] + piece.at;
        s->grad = dsi_zero_grad_place(z, &piece, set, stage, near, &s->grad_dtype);
        s->on_host = !near;
    }
    return n;
}

/* Updates one sub-group, or measures it. What goes to the other side may be under way at return. */
static ds_status dsi_zero_update_sub(ds_zero *z, const dsi_zero_sub *sub, const dsi_zero_set *set,
                                     dsi_zero_stage *stage, size_t *cursor) {
    bool near = dsi_zero_sub_near(z, sub);
    size_t before = *cursor, n;
    ds_status status;
    dsi_zero_sync(z, stage->stream); /* its last turn */
    dsi_zero_follow(z, z->stream, stage->stream);
    if (z->gpu) dsi_zero_stage_move(z, sub, set, stage, before, false);
    if (near)
        dsi_zero_follow(z, stage->stream, z->stream);
    else
        dsi_zero_sync(z, stage->stream);
    if ((status = dsi_zero_ended(z, DS_OK))) return status;
    n = dsi_zero_slices(z, sub, set, stage, cursor);
    status = z->measuring ? ds_optim_measure_on(z->optim, z->slices, n, z->stream)
                          : ds_optim_apply_on(z->optim, z->slices, n, z->stream);
    if (status) return dsi_zero_die(z, status, "optimizer step", ds_optim_error(z->optim)->message);
    if (near) dsi_zero_follow(z, z->stream, stage->stream);
    if (z->gpu) dsi_zero_stage_move(z, sub, set, stage, before, true);
    if (near && z->n_sets)
        dsi_zero_sync(z, stage->stream); /* the set goes on to the disk, and takes what comes from there */
    return dsi_zero_ended(z, DS_OK);
}

/* The set through which a sub-group is updated: arrays in memory are pointed into, those on disk have buffers. */
static dsi_zero_set dsi_zero_view(const ds_zero *z, const dsi_zero_sub *sub, const dsi_zero_set *buffers) {
    dsi_zero_set view = *buffers;
    for (size_t a = 0; a <= z->n_states; a++)
        if (sub->begin < z->cut || z->array[a]) view.array[a] = dsi_zero_at(z, a, sub->begin);
    return view;
}

/* Starts reading sub-group g into its set; the store does it after what that wrote last. */
static ds_status dsi_zero_sub_read(ds_zero *z, size_t g, size_t ahead) {
    dsi_zero_set *set = &z->sets[g % z->n_sets];
    ds_status status = g < ahead ? DS_OK : dsi_zero_set_start(z, set, &z->subs[g], DSI_ZERO_IN);
    if (status) return status;
    return g < dsi_zero_kept_subs(z) ? DS_OK : dsi_zero_set_start(z, set, &z->subs[g], DSI_ZERO_IN_GRADIENTS);
}

/* The update walks the sub-groups, and may stop between two of them and go on later. What is on disk streams through sets
   of buffers, sub-group g through set g % n_sets, so that reading the next ones, updating this one and writing the last go
   on at once: a set is read into again one sub-group after its write began.
   [cfg: zero_optimization.offload_optimizer.pipeline_read, .pipeline_write] */
static ds_status dsi_zero_update_begin(ds_zero *z) {
    size_t ahead = z->ahead, first = z->pipeline_read ? z->n_sets : z->n_sets > 0;
    ds_status status = DS_OK;
    z->ahead = z->updated = z->told = z->next_sub = z->next_place = 0;
    for (size_t g = 0; g < first && !status; g++) status = dsi_zero_sub_read(z, g, ahead);
    return status;
}

static ds_status dsi_zero_update_next(ds_zero *z) {
    size_t g = z->next_sub++, next = g + 1;
    dsi_zero_set none, view, *set = z->n_sets ? &z->sets[g % z->n_sets] : &none;
    bool disk = z->n_sets > 0;
    ds_status status;
    memset(&none, 0, sizeof none);
    if (z->pipeline_read) next = g + z->n_sets - (z->pipeline_write ? 1 : 0);
    if (disk && (status = dsi_zero_set_wait(z, set))) return status;
    view = dsi_zero_view(z, &z->subs[g], set);
    status = dsi_zero_update_sub(z, &z->subs[g], &view, &z->stages[g % 2], &z->next_place);
    if (status || !disk) return status;
    if ((status = dsi_zero_set_start(z, set, &z->subs[g], DSI_ZERO_OUT))) return status;
    if (!z->pipeline_write && (status = dsi_zero_set_wait(z, set))) return status;
    if (z->pipeline_read && next < z->n_sets) return DS_OK; /* the update began with that */
    return next < z->n_subs ? dsi_zero_sub_read(z, next, 0) : DS_OK;
}

/* Goes on until the first `count` tensors of z->order are new. */
static ds_status dsi_zero_update_to(ds_zero *z, size_t count) {
    size_t end = count < z->n_train ? z->params[z->order[count]].shard : z->shard_total;
    ds_status status = DS_OK;
    while (z->next_sub < z->n_subs && z->subs[z->next_sub].begin < end && !status) status = dsi_zero_update_next(z);
    for (size_t i = 0; i < 2; i++) dsi_zero_follow(z, z->stages[i].stream, z->stream);
    if ((status = dsi_zero_ended(z, status))) {
        ds_optim_cancel(z->optim);
        return status;
    }
    z->updated = count;
    if (count < z->n_train || z->measuring) return DS_OK;
    status = ds_optim_end(z->optim); /* it is open */
    return status ? dsi_zero_die(z, status, "optimizer step", ds_optim_error(z->optim)->message) : DS_OK;
}

/* Where the disk holds the states and pipeline_write allows it, a step ends before its update does: a tensor is updated when
   it is first fetched, so that the disk reads and writes while the next pass computes. What is left is done before the
   first gradient of a pass, and before anything else looks at values or states. Tensors that every rank has whole come first
   in z->order: the step does and gathers those. */
static ds_status dsi_zero_catch_up(ds_zero *z, size_t count) {
    ds_status status;
    if (count <= z->updated) return DS_OK;
    status = dsi_zero_update_to(z, count);
    dsi_zero_follow(z, z->stream, z->fetching);
    return dsi_zero_ended(z, status);
}

/* The same in a call that all ranks make alike, so that they start the same gathers: a gradient is one rank's own. */
static ds_status dsi_zero_all_catch_up(ds_zero *z, size_t count) {
    if (count > z->told) z->told = count;
    return dsi_zero_catch_up(z, count);
}

/* The last step is done, and all sub-groups are on disk. */
static ds_status dsi_zero_settle(ds_zero *z) {
    ds_status status = dsi_zero_all_catch_up(z, z->n_train);
    if (!status) status = dsi_zero_all_arrived(z);
    return status ? status : dsi_zero_sets_wait(z);
}

/* One all-gather, or with allgather_partitions false a broadcast from each rank; where `later` is given it is started, and
   *later is what to wait for. [cfg: ...allgather_partitions] */
static ds_status dsi_zero_gather_all(ds_zero *z, char *memory, const size_t *counts, ds_dtype dtype,
                                     ds_comm_handle *later) {
    size_t each = DS_DTYPE_SIZE(dtype), at = 0, own = 0;
    ds_comm_call call;
    memset(&call, 0, sizeof call);
    call.dtype = dtype;
    call.on_device = z->gpu;
    call.stream = later ? z->fetching : z->stream;
    for (int r = 0; r < z->rank; r++) own += counts[r];
    if (!z->gather_by_broadcast) {
        call.kind = DS_COMM_ALL_GATHER;
        call.in = memory + own * each;
        call.out = memory;
        call.counts = counts;
        return (later ? ds_comm_start(z->comm, &call, later) : ds_comm_run(z->comm, &call))
                   ? dsi_zero_comm_failed(z, "gather of updated parameters", NULL)
                   : DS_OK;
    }
    call.kind = DS_COMM_BROADCAST;
    for (int r = 0; r < z->world; r++) {
        call.in = call.out = memory + at * each;
        call.count = counts[r];
        call.root = r;
        if (counts[r] && (later ? ds_comm_start(z->comm, &call, later) : ds_comm_run(z->comm, &call)))
            return dsi_zero_comm_failed(z, "broadcast of updated parameters", NULL);
        at += counts[r];
    }
    return DS_OK;
}

/* Small tensors, or a window of one large tensor, packed rank by rank: what[r] says how many elements of each. */
typedef struct dsi_zero_pack {
    size_t first, last; /* parameters */
    size_t begin;       /* in each rank's part, of a large one */
    size_t limit;       /* elements of each rank's part, of a large one */
} dsi_zero_pack;

static size_t dsi_zero_pack_count(const dsi_zero_param *p, size_t r, const dsi_zero_pack *pack) {
    size_t left = p->counts[r] > pack->begin ? p->counts[r] - pack->begin : 0;
    return left < pack->limit ? left : pack->limit;
}

static bool dsi_zero_small(const ds_zero *z, const dsi_zero_param *p) {
    return p->numel < (z->gathers_later ? DSI_ZERO_LATER : DSI_ZERO_DIRECT);
}

static bool dsi_zero_packed(const ds_zero *z, const dsi_zero_param *p, ds_dtype dtype) {
    return p->whole && p->tensor != DSI_ZERO_NONE && p->dtype == dtype && dsi_zero_small(z, p) &&
           p->numel <= z->gather_bucket;
}

static ds_status dsi_zero_gather_pack(ds_zero *z, const dsi_zero_pack *pack, ds_dtype dtype, bool small) {
    size_t each = DS_DTYPE_SIZE(dtype), at = 0;
    for (size_t r = 0; r < z->parts; r++) {
        z->counts[r] = 0;
        for (size_t i = pack->first; i <= pack->last; i++) {
            const dsi_zero_param *p = &z->params[i];
            size_t n, begin;
            if (small && !dsi_zero_packed(z, p, dtype)) continue;
            n = dsi_zero_pack_count(p, r, pack);
            begin = dsi_zero_cut(p, z->parts, r) + pack->begin;
            if (r == z->part) dsi_zero_copy(z, z->gather_pack + at * each, p->full + begin * each, n * each, z->stream);
            at += n;
            z->counts[r] += n;
        }
    }
    if (dsi_zero_gather_all(z, z->gather_pack, z->counts, dtype, NULL)) return z->error.status;
    at = 0;
    for (size_t r = 0; r < z->parts; r++)
        for (size_t i = pack->first; i <= pack->last; i++) {
            const dsi_zero_param *p = &z->params[i];
            size_t n, begin;
            if (small && !dsi_zero_packed(z, p, dtype)) continue;
            n = dsi_zero_pack_count(p, r, pack);
            begin = dsi_zero_cut(p, z->parts, r) + pack->begin;
            if (r != z->part) dsi_zero_copy(z, p->full + begin * each, z->gather_pack + at * each, n * each, z->stream);
            at += n;
        }
    return DS_OK;
}

/* After an update each rank has its own parts of whole parameters; all get all. Small tensors are packed together, then the
   others gathered in place, and no call moves more than allgather_bucket_size elements.
   [cfg: zero_optimization.allgather_bucket_size, ds.gather_in_background] */
static ds_status dsi_zero_gather_updated(ds_zero *z) {
    ds_dtype types[2] = {DS_F32, DS_F32};
    ds_status status = DS_OK;
    if (z->parts == 1) return DS_OK;
    types[1] = z->model_dtype;
    for (int t = 0; t < (z->model_dtype == DS_F32 ? 1 : 2) && !status; t++) {
        dsi_zero_pack pack;
        size_t elements = 0;
        memset(&pack, 0, sizeof pack);
        pack.limit = SIZE_MAX;
        for (size_t i = 0; i < z->n_params; i++) {
            const dsi_zero_param *p = &z->params[i];
            if (!dsi_zero_packed(z, p, types[t])) continue;
            if (elements && elements + p->numel > z->gather_pack_elements) {
                if ((status = dsi_zero_gather_pack(z, &pack, types[t], true))) break;
                elements = 0;
            }
            if (elements == 0) pack.first = i;
            pack.last = i;
            elements += p->numel;
        }
        if (elements && !status) status = dsi_zero_gather_pack(z, &pack, types[t], true);
    }
    for (size_t i = 0; i < z->n_params && !status; i++) {
        dsi_zero_param *p = &z->params[i];
        if (!p->whole || p->tensor == DSI_ZERO_NONE || dsi_zero_packed(z, p, p->dtype)) continue;
        if (p->numel <= z->gather_bucket)
            status = dsi_zero_gather_all(z, p->full, p->counts, p->dtype, z->gathers_later ? &p->gather : NULL);
        else {
            dsi_zero_pack pack;
            size_t step = z->gather_pack_elements / z->parts, longest = 0;
            for (size_t r = 0; r < z->parts; r++)
                if (p->counts[r] > longest) longest = p->counts[r];
            pack.first = pack.last = i;
            pack.limit = step;
            for (pack.begin = 0; pack.begin < longest && !status; pack.begin += step)
                status = dsi_zero_gather_pack(z, &pack, p->dtype, false);
        }
    }
    return status;
}

static void dsi_zero_tell(ds_zero *z, const char *tag, double value, int64_t samples) {
    if (z->event && z->rank == 0) z->event(z->event_ctx, tag, value, samples);
}

/* The node's copies of what has changed are old. */
static void dsi_zero_forget_near(ds_zero *z) {
    for (size_t i = 0; i < z->n_params; i++)
        if (z->params[i].tensor != DSI_ZERO_NONE) z->params[i].near_valid = false;
}

/* The documents' tags: of the step, the times of its micro-batches together. [cfg: wall_clock_breakdown] */
static void dsi_zero_tell_clocks(ds_zero *z, const ds_zero_report *r) {
    int64_t inner = r->ns_backward > r->ns_reduce ? r->ns_backward - r->ns_reduce : 0;
    dsi_zero_tell(z, "Train/Samples/elapsed_time_ms_forward", (double)r->ns_forward * 1e-6, r->samples);
    dsi_zero_tell(z, "Train/Samples/elapsed_time_ms_backward", (double)r->ns_backward * 1e-6, r->samples);
    dsi_zero_tell(z, "Train/Samples/elapsed_time_ms_backward_inner", (double)inner * 1e-6, r->samples);
    dsi_zero_tell(z, "Train/Samples/elapsed_time_ms_backward_allreduce", (double)r->ns_reduce * 1e-6, r->samples);
    dsi_zero_tell(z, "Train/Samples/elapsed_time_ms_step", (double)r->ns_step * 1e-6, r->samples);
    dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 6,
            "step %lld: forward %.2f ms, backward %.2f ms, of it reduction %.2f ms, step %.2f ms", (long long)r->step,
            (double)r->ns_forward * 1e-6, (double)r->ns_backward * 1e-6, (double)r->ns_reduce * 1e-6,
            (double)r->ns_step * 1e-6);
}

/* [cfg: steps_per_print] */
static void dsi_zero_tell_step(ds_zero *z, const ds_zero_report *r) {
    if (z->rank == 0 && z->print_every > 0 && r->step % z->print_every == 0)
        dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 7, "step=%lld, skipped=%lld, loss=%g, lr=%g, mom=%g, loss scale=%g",
                (long long)r->step, (long long)r->skipped_steps, r->loss, r->lr, r->momentum, r->loss_scale);
}

static ds_status dsi_zero_apply(ds_zero *z, double norm, double inverse) {
    double coefficient = ds_optim_clip_coefficient(norm, z->clipping);
    ds_status status = ds_optim_begin(z->optim, inverse, coefficient, norm);
    if (status) return dsi_zero_fail(z, status, "optimizer step: %s", ds_optim_error(z->optim)->message);
    if (z->by_norm) { /* LAMB: the norms of whole tensors, from the parts of all ranks */
        z->measuring = true;
        if (!(status = dsi_zero_update_begin(z))) status = dsi_zero_update_to(z, z->n_train);
        z->measuring = false;
        if (!status && (status = ds_optim_combine(z->optim)))
            dsi_zero_die(z, status, "optimizer step", ds_optim_error(z->optim)->message);
    }
    if (!status) status = dsi_zero_update_begin(z);
    if (status) {
        ds_optim_cancel(z->optim);
        return status;
    }
    if ((status = dsi_zero_update_to(z, z->in_step))) return status;
    z->told = z->in_step;
    dsi_zero_follow(z, z->stream, z->fetching);
    if ((status = dsi_zero_gather_updated(z))) return status;
    dsi_zero_forget_near(z);
    ds_optim_schedule_step(z->optim);
    return DS_OK;
}

DS_API ds_status ds_zero_step(ds_zero *z, ds_zero_report *report) {
    ds_status status = dsi_zero_alive(z), scaled;
    dsi_zero_ballot total;
    ds_zero_report r;
    double loss = 0.0, inverse;
    const char *culprit;
    size_t bad;
    int64_t start, before;
    memset(&r, 0, sizeof r);
    memset(&total, 0, sizeof total);
    if (report) *report = r;
    if (status) return status;
    start = dsi_now(&z->clock);
    before = z->samples;
    if (z->pass >= 0) return dsi_zero_fail(z, DS_ERR_STATE, "ds_zero_step: a pass is still open");
    if (z->micro < z->accumulation)
        return dsi_zero_fail(z, DS_ERR_STATE, "ds_zero_step: %d of %d micro-batches were given", z->micro,
                             z->accumulation);
    dsi_zero_follow(z, z->caller, z->stream); /* the model may still read what is updated */
    if ((status = dsi_zero_ended(z, dsi_zero_norm(z, &total, &loss)))) return status;
    inverse = 1.0 / (ds_zero_loss_scale(z) * z->accumulation * (z->local ? 1 : z->world) * z->before_reduce);
    r.lr = ds_optim_lr(z->optim, 0);
    r.momentum = strcmp(ds_optim_type_name(z->optim), "SGD") == 0 ? ds_optim_group_params(z->optim, 0)->momentum
                                                                  : ds_optim_group_params(z->optim, 0)->beta1;
    r.loss = total.loss_count ? loss / (double)total.loss_count : (double)NAN;
    r.stop = total.stop != 0;
    r.loss_scale = z->scaler.scale;
    r.grad_norm = isfinite(total.squares) ? sqrt(total.squares) * inverse : (double)INFINITY;
    r.skipped = total.bad != INT64_MAX;
    bad = total.bad < (int64_t)z->n_params ? (size_t)total.bad : SIZE_MAX;
    culprit = bad == SIZE_MAX ? "(in another part of the model)" : z->params[bad].name;
    r.overflow_param = r.skipped ? bad : 0;
    if (!r.skipped && (status = dsi_zero_apply(z, r.grad_norm, inverse))) return status;
    scaled = ds_loss_scaler_update(&z->scaler, r.skipped);
    if (r.skipped)
        dsi_log(&z->logger, "ds_zero", DS_LOG_WARNING, 2,
                "step %lld skipped: the gradient of '%s' is not finite at loss scale %g; next scale %g",
                (long long)z->step + 1, culprit, r.loss_scale, z->scaler.scale);
    z->step++;
    z->skipped += r.skipped;
    z->samples += z->samples_per_step;
    z->micro = 0;
    if (total.loss_count) dsi_zero_tell(z, "Train/Samples/train_loss", r.loss, before);
    dsi_zero_tell(z, "Train/Samples/lr", ds_optim_lr(z->optim, 0), z->samples);
    if (z->fp16) dsi_zero_tell(z, "Train/Samples/loss_scale", z->scaler.scale, z->samples);
    r.step = z->step;
    r.skipped_steps = z->skipped;
    r.samples = z->samples;
    r.next_loss_scale = z->scaler.scale;
    r.ns_forward = z->ns_forward;
    r.ns_backward = z->ns_backward;
    r.ns_reduce = z->ns_reduce;
    r.ns_step = dsi_now(&z->clock) - start;
    if (z->clocks) dsi_zero_tell_clocks(z, &r);
    dsi_zero_tell_step(z, &r);
    z->ns_forward = z->ns_backward = z->ns_reduce = 0;
    memset(z->losses, 0, (size_t)z->accumulation * sizeof *z->losses);
    z->loss_count = 0;
    if (report) *report = r;
    if (scaled)
        return dsi_zero_fail(z, scaled,
                             "step %lld: the gradient of '%s' is not finite at the smallest loss scale, %g; training "
                             "cannot go on",
                             (long long)z->step, culprit, r.loss_scale);
    return dsi_zero_ended(z, DS_OK);
}

// >>reading and checkpoints

DS_API ds_status ds_zero_read(ds_zero *z, size_t index, int state, size_t begin, size_t count, float *out) {
    dsi_zero_param *p;
    ds_status status = dsi_zero_alive(z);
    if (status) return status;
    if (index >= z->n_params)
        return dsi_zero_fail(z, DS_ERR_ARGUMENT, "ds_zero_read: parameter %zu of %zu", index, z->n_params);
    p = &z->params[index];
    if (z->pass >= 0) return dsi_zero_fail(z, DS_ERR_STATE, "ds_zero_read of '%s' while a pass is open", p->name);
    if (begin > p->numel || count > p->numel - begin || state < -1 ||
        (state >= 0 && ((size_t)state >= z->n_states || p->tensor == DSI_ZERO_NONE)))
        return dsi_zero_fail(z, DS_ERR_ARGUMENT, "ds_zero_read of '%s': state %d, elements %zu + %zu of %zu", p->name,
                             state, begin, count, p->numel);
    if (!out && count) return dsi_zero_fail(z, DS_ERR_ARGUMENT, "ds_zero_read of '%s': out is NULL", p->name);
    if ((status = dsi_zero_settle(z))) return status;
    for (size_t r = 0; r < z->parts; r++) {
        size_t from, n, to;
        dsi_zero_part(z, p, r, &from, &n);
        to = from + n < begin + count ? from + n : begin + count;
        if (from < begin) from = begin;
        if (from >= to) continue;
        if (r == z->part && (status = dsi_zero_own_value(z, p, state, from, to - from, out + (from - begin))))
            return status;
        if (z->parts == 1) continue;
        ds_comm_tag(z->comm, dsi_zero_tag(z, p) + (uint32_t)(state + 1) * 0x9E3779B1u + (uint32_t)from * 0x85EBCA6Bu);
        status = ds_comm_broadcast(z->comm, out + (from - begin), to - from, DS_F32, (int)r);
        ds_comm_tag(z->comm, 0);
        if (status) return dsi_zero_comm_failed(z, "read", p->name);
    }
    return DS_OK;
}

/* All ranks come to one answer: the first rank that failed, in its words. */
static ds_status dsi_zero_agree(ds_zero *z, ds_status status, const char *doing) {
    ds_error mine, *all = (ds_error *)(void *)z->agree;
    memset(&mine, 0, sizeof mine);
    if (status) mine = z->error;
    if (z->world == 1) return status;
    if (ds_comm_all_gather(z->comm, &mine, all, sizeof mine, NULL, DS_U8)) return dsi_zero_comm_failed(z, doing, NULL);
    for (int r = 0; r < z->world; r++)
        if (all[r].status) {
            if (r != z->rank) dsi_zero_fail(z, all[r].status, "%s", all[r].message);
            return all[r].status;
        }
    return DS_OK;
}

typedef struct dsi_zero_source { /* what a checkpoint's writer reads from */
    ds_zero *z;
    dsi_zero_param *p;
    int array;
} dsi_zero_source;

static ds_status dsi_zero_source_read(void *ctx, size_t begin, size_t count, void *out) {
    dsi_zero_source *s = (dsi_zero_source *)ctx;
    size_t each = s->p->bytes_each;
    if (s->p->tensor != DSI_ZERO_NONE) return dsi_zero_own_io(s->z, false, s->p, s->array, begin, count, (float *)out);
    return dsi_zero_own_raw(s->z, false, s->p, begin, count * each, (char *)out);
}

/* The name of a tensor in a checkpoint: the parameter's own for its value, "optimizer.<state>.<name>" for a state. */
static const char *dsi_zero_saved_name(const ds_zero *z, const dsi_zero_param *p, int array, char *room, size_t bytes) {
    if (array < 0) return p->name;
    snprintf(room, bytes, "optimizer.%s.%s", ds_optim_state_name(z->optim, p->tensor, (size_t)array), p->name);
    return room;
}

/* The 1-bit optimizers' error feedback belongs to a rank: row `rank` of a tensor that has one for each. */
static size_t dsi_zero_errors(ds_zero *z) {
    return z->world > 1 ? 3 * ds_optim_error_buffers(z->optim) : 0;
}

static float *dsi_zero_error_row(ds_zero *z, size_t k, ds_checkpoint_tensor *t, char *name, size_t room) {
    static const char *const kinds[3] = {"worker_error", "server_error", "padding"};
    size_t count = 0;
    float *memory = ds_optim_error_buffer(z->optim, k / 3, (int)(k % 3), &count);
    snprintf(name, room, "optimizer.1bit.%s.%zu", kinds[k % 3], k / 3);
    memset(t, 0, sizeof *t);
    t->name = name;
    t->begin = count * (size_t)z->rank;
    t->count = count;
    return memory;
}

static ds_status dsi_zero_error_read(void *ctx, size_t begin, size_t count, void *out) {
    dsi_zero_source *s = (dsi_zero_source *)ctx;
    size_t row = 0;
    const float *memory = ds_optim_error_buffer(s->z->optim, (size_t)s->array / 3, s->array % 3, &row);
    dsi_zero_copy_now(s->z, out, memory + (begin - row * (size_t)s->z->rank), count * sizeof(float));
    return dsi_zero_ended(s->z, DS_OK);
}

/* A tensor of which each rank has a row: `t` has its name and this rank's part. */
static ds_status dsi_zero_save_row(ds_zero *z, ds_checkpoint_writer *w, ds_checkpoint_tensor *t,
                                   dsi_zero_source *source) {
    size_t shape[2];
    shape[0] = (size_t)z->world;
    shape[1] = t->count;
    source->z = z;
    t->dtype = DS_F32;
    t->shape = shape;
    t->dims = 2;
    t->ctx = source;
    if (ds_checkpoint_add(w, t) == DS_OK) return DS_OK;
    return dsi_zero_fail(z, ds_checkpoint_writer_error(w)->status, "%s", ds_checkpoint_writer_error(w)->message);
}

static ds_status dsi_zero_save_errors(ds_zero *z, ds_checkpoint_writer *w, dsi_zero_source *sources) {
    for (size_t k = 0; k < dsi_zero_errors(z); k++) {
        ds_checkpoint_tensor t;
        ds_status status;
        (void)dsi_zero_error_row(z, k, &t, (char *)z->scratch, DSI_ZERO_CHUNK);
        sources[k].array = (int)k;
        t.read = dsi_zero_error_read;
        if ((status = dsi_zero_save_row(z, w, &t, &sources[k]))) return status;
    }
    return DS_OK;
}

/* Through the scratch, as the buffer may be the device's. At another world size the feedback starts from zero. */
static ds_status dsi_zero_load_errors(ds_zero *z, ds_checkpoint *c) {
    for (size_t k = 0; k < dsi_zero_errors(z); k++) {
        char name[64];
        ds_checkpoint_tensor t;
        ds_checkpoint_info info;
        float *memory = dsi_zero_error_row(z, k, &t, name, sizeof name);
        if (ds_checkpoint_find(c, name, &info) || info.shape[0] != (size_t)z->world) {
            ds_status status = ds_optim_reset_errors(z->optim);
            return status ? dsi_zero_die(z, status, "load", ds_optim_error(z->optim)->message) : DS_OK;
        }
        for (size_t at = 0; at < t.count; at += DSI_ZERO_CHUNK) {
            size_t n = t.count - at < DSI_ZERO_CHUNK ? t.count - at : DSI_ZERO_CHUNK;
            if (ds_checkpoint_read(c, name, t.begin + at, n, DS_F32, z->scratch))
                return dsi_zero_fail(z, ds_checkpoint_error(c)->status, "load: %.480s",
                                     ds_checkpoint_error(c)->message);
            dsi_zero_copy_now(z, memory + at, z->scratch, n * sizeof(float));
        }
    }
    return dsi_zero_ended(z, DS_OK);
}

/* ZeroOneAdam undoes local steps to a rounding, which is another on each rank: so that a resumed run has the same bits, each
   rank's own parameters are kept, too. */
static bool dsi_zero_drifts(const ds_zero *z) {
    return z->world > 1 && strcmp(ds_optim_type_name(z->optim), "ZeroOneAdam") == 0;
}

static void dsi_zero_apart_name(const ds_zero *z, const dsi_zero_param *p, char *name, size_t room) {
    snprintf(name, room, "optimizer.1bit.parameter.%zu", (size_t)(p - z->params));
}

static ds_status dsi_zero_apart_read(void *ctx, size_t begin, size_t count, void *out) {
    dsi_zero_source *s = (dsi_zero_source *)ctx;
    return dsi_zero_own_io(s->z, false, s->p, -1, begin - s->p->numel * (size_t)s->z->rank, count, (float *)out);
}

static ds_status dsi_zero_save_apart(ds_zero *z, ds_checkpoint_writer *w, dsi_zero_source *sources) {
    for (size_t i = 0; dsi_zero_drifts(z) && i < z->n_params; i++) {
        ds_checkpoint_tensor t;
        ds_status status;
        dsi_zero_param *p = &z->params[i];
        if (p->tensor == DSI_ZERO_NONE) continue;
        memset(&t, 0, sizeof t);
        dsi_zero_apart_name(z, p, (char *)z->scratch, DSI_ZERO_CHUNK);
        sources->p = p;
        t.name = (char *)z->scratch;
        t.begin = p->numel * (size_t)z->rank;
        t.count = p->numel;
        t.read = dsi_zero_apart_read;
        if ((status = dsi_zero_save_row(z, w, &t, sources++))) return status;
    }
    return dsi_zero_save_errors(z, w, sources);
}

static ds_status dsi_zero_save_tensors(ds_zero *z, ds_checkpoint_writer *w, dsi_zero_source *sources) {
    char *name = (char *)z->scratch;
    for (size_t i = 0; i < z->n_params; i++) {
        dsi_zero_param *p = &z->params[i];
        int arrays = p->tensor == DSI_ZERO_NONE ? 0 : (int)ds_optim_state_count(z->optim, p->tensor);
        for (int a = -1; a < arrays; a++) {
            ds_checkpoint_tensor t;
            memset(&t, 0, sizeof t);
            sources->z = z;
            sources->p = p;
            sources->array = a;
            t.name = dsi_zero_saved_name(z, p, a, name, DSI_ZERO_CHUNK);
            t.dtype = p->tensor == DSI_ZERO_NONE ? p->dtype : DS_F32;
            t.shape = p->shape;
            t.dims = p->dims;
            t.begin = dsi_zero_cut(p, (size_t)z->world, (size_t)z->rank);
            t.count = dsi_zero_cut(p, (size_t)z->world, (size_t)z->rank + 1) - t.begin;
            t.read = dsi_zero_source_read;
            t.ctx = sources++;
            if (ds_checkpoint_add(w, &t))
                return dsi_zero_fail(z, ds_checkpoint_writer_error(w)->status, "%s",
                                     ds_checkpoint_writer_error(w)->message);
        }
    }
    return dsi_zero_save_apart(z, w, sources);
}

static uint64_t dsi_zero_hash(uint64_t hash, const void *bytes, size_t count) { /* FNV-1a */
    for (size_t i = 0; i < count; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
    return hash;
}

/* The first of n words that is not the same on all ranks, or n. There is room for 2 n. */
static ds_status dsi_zero_compare(ds_zero *z, uint64_t *words, size_t n, size_t *differs, ds_error *error) {
    for (size_t i = 0; i < n; i++) words[n + i] = ~words[i];
    if (ds_comm_all_reduce(z->comm, words, words, 2 * n, DS_U64, DS_COMM_MAX))
        return dsi_fail(error, ds_comm_error(z->comm)->status, "%.500s", ds_comm_error(z->comm)->message);
    for (*differs = 0; *differs < n && words[*differs] == ~words[n + *differs];) ++*differs;
    return DS_OK;
}

/* Of the parameters' names in their order, and which of them train. */
static uint64_t dsi_zero_names(const ds_zero *z) {
    uint64_t hash = DSI_ZERO_HASH;
    for (size_t i = 0; i < z->n_params; i++) {
        const unsigned char end = z->params[i].tensor == DSI_ZERO_NONE;
        hash = dsi_zero_hash(hash, z->params[i].name, strlen(z->params[i].name));
        hash = dsi_zero_hash(hash, &end, 1);
    }
    return hash;
}

static const struct {
    const char *key;
    size_t offset;
} dsi_zero_saved[] = {
    {"engine.step", offsetof(ds_zero, step)},
    {"engine.skipped", offsetof(ds_zero, skipped)},
    {"engine.samples", offsetof(ds_zero, samples)},
    {"loss_scaler.iteration", offsetof(ds_zero, scaler.iteration)},
    {"loss_scaler.last_overflow", offsetof(ds_zero, scaler.last_overflow)},
    {"loss_scaler.hysteresis_left", offsetof(ds_zero, scaler.hysteresis_left)},
    {"loss_scaler.skipped", offsetof(ds_zero, scaler.skipped)},
};
#define DSI_ZERO_SAVED    (sizeof dsi_zero_saved / sizeof dsi_zero_saved[0])
#define DSI_ZERO_COUNTERS 3 /* of them; the others go with a loss scale */

static ds_status dsi_zero_save_values(ds_zero *z, ds_checkpoint_writer *w, const void *client, size_t client_bytes) {
    size_t bytes = ds_optim_save_bytes(z->optim), order_bytes = 8 + 4 * z->n_train, all = bytes + order_bytes;
    unsigned char *saved = (unsigned char *)dsi_alloc(&z->allocator, all), *order = saved + bytes;
    ds_status status = DS_OK;
    if (!saved) return dsi_zero_fail(z, DS_ERR_MEMORY, "save: no memory for %zu bytes of the optimizer's own", all);
    ds_optim_save(z->optim, saved);
    for (size_t i = 0; i < (z->fp16 ? DSI_ZERO_SAVED : DSI_ZERO_COUNTERS) && !status; i++) {
        int64_t value;
        memcpy(&value, (const char *)z + dsi_zero_saved[i].offset, sizeof value);
        status = ds_checkpoint_set_integer(w, dsi_zero_saved[i].key, value);
    }
    if (!status && z->fp16) status = ds_checkpoint_set_number(w, "loss_scaler.scale", z->scaler.scale);
    if (!status) status = ds_checkpoint_set_integer(w, "engine.world", z->world);
    if (!status) status = ds_checkpoint_set_integer(w, "engine.stage", z->stage);
    if (!status) status = ds_checkpoint_set_text(w, "optimizer.type", ds_optim_type_name(z->optim));
    if (!status) status = ds_checkpoint_set_integer(w, "optimizer.step", ds_optim_step_count(z->optim));
    if (!status) status = ds_checkpoint_set_integer(w, "optimizer.schedule", ds_optim_schedule_count(z->optim));
    if (!status) status = ds_checkpoint_set_number(w, "optimizer.lr", ds_optim_lr(z->optim, 0)); /* for other tools */
    if (!status && z->reordered) {
        const uint64_t names = dsi_zero_names(z);
        for (size_t k = 0; k < 8; k++) order[k] = (unsigned char)(names >> 8 * k);
        for (size_t i = 0; i < z->n_train; i++)
            for (size_t k = 0; k < 4; k++) order[8 + 4 * i + k] = (unsigned char)(z->bucket_order[i] >> 8 * k);
        status = ds_checkpoint_set_bytes(w, "engine.order", order, order_bytes);
    }
    if (!status) status = ds_checkpoint_set_bytes(w, "optimizer.state", saved, bytes);
    if (!status) status = ds_checkpoint_set_bytes(w, "client", client, client_bytes);
    dsi_release(&z->allocator, saved, all);
    if (status) return dsi_zero_fail(z, status, "%s", ds_checkpoint_writer_error(w)->message);
    return DS_OK;
}

static ds_checkpoint_desc dsi_zero_checkpoint_desc(ds_zero *z, const char *folder) {
    ds_checkpoint_desc d = z->checkpoint;
    d.folder = folder;
    if (z->comm) d.group = ds_comm_group(z->comm);
    d.allocator = z->allocator;
    d.logger = z->logger;
    d.files = z->files;
    d.clock = z->clock;
    return d;
}

/* This rank's number among those of its machine: each machine's first writes what its ranks share.
   [cfg: checkpoint.use_node_local_storage] */
static ds_status dsi_zero_local_rank(ds_zero *z, int *local) {
    ds_error mine, *all = (ds_error *)(void *)z->agree; /* room for a name of each rank */
    *local = 0;
    if (z->world == 1 || !z->checkpoint.node_local) return DS_OK;
    memset(&mine, 0, sizeof mine);
    (void)gethostname(mine.message, sizeof mine.message - 1);
    if (ds_comm_all_gather(z->comm, &mine, all, sizeof mine, NULL, DS_U8)) return dsi_zero_comm_failed(z, "save", NULL);
    for (int r = 0; r < z->rank; r++) *local += strcmp(all[r].message, mine.message) == 0;
    return DS_OK;
}

/* What failed in a checkpoint; where the ranks lost each other the communicator knows why. */
static ds_status dsi_zero_checkpoint_failed(ds_zero *z, ds_status status, const char *doing, const char *message) {
    if (z->comm && DS_IS_ENVIRONMENT(ds_comm_error(z->comm)->status)) return dsi_zero_comm_failed(z, doing, NULL);
    return dsi_zero_fail(z, status, "%s: %.480s", doing, message);
}

DS_API ds_status ds_zero_save_finish(ds_zero *z) {
    ds_checkpoint_writer *w = z ? z->saving : NULL;
    ds_error error;
    ds_status status;
    memset(&error, 0, sizeof error);
    if (!z) return DS_ERR_ARGUMENT;
    if (!w) return DS_OK;
    z->saving = NULL;
    status = ds_checkpoint_finish(w, &error);
    return status ? dsi_zero_checkpoint_failed(z, status, "save", error.message) : DS_OK;
}

DS_API ds_status ds_zero_save(ds_zero *z, const char *folder, const char *tag, const void *client,
                              size_t client_bytes) {
    ds_status status = dsi_zero_alive(z);
    ds_checkpoint_desc d;
    ds_checkpoint_writer *w = NULL;
    dsi_zero_source *sources;
    size_t n_sources;
    char made[64];
    ds_error error;
    memset(&error, 0, sizeof error);
    if (status) return status;
    if (!client && client_bytes)
        return dsi_zero_fail(z, DS_ERR_ARGUMENT, "ds_zero_save: client is NULL, and client_bytes %zu", client_bytes);
    if (z->pass >= 0 || z->micro)
        return dsi_zero_fail(z, DS_ERR_STATE, "ds_zero_save: in the middle of a step (%d micro-batches given)",
                             z->micro);
    if (ds_optim_local_until(z->optim))
        return dsi_zero_fail(z, DS_ERR_STATE,
                             "ds_zero_save: between two averages of ZeroOneAdam each rank has parameters of its own; "
                             "save after step %lld of the optimizer, which took %lld",
                             (long long)ds_optim_local_until(z->optim), (long long)ds_optim_step_count(z->optim));
    n_sources = z->n_params * (2 + DS_OPTIM_MAX_STATES) + dsi_zero_errors(z);
    snprintf(made, sizeof made, "global_step%lld", (long long)z->step);
    if ((status = ds_zero_save_finish(z)) || (status = dsi_zero_settle(z))) return status;
    if (z->trained && !z->reordered && (status = dsi_zero_reorder(z))) return status;
    d = dsi_zero_checkpoint_desc(z, folder);
    if ((status = dsi_zero_local_rank(z, &d.local_rank))) return status;
    status = ds_checkpoint_begin(&d, tag ? tag : made, &w, &error);
    if (status) return dsi_zero_checkpoint_failed(z, status, "save", error.message);
    sources = (dsi_zero_source *)dsi_zero_table(z, n_sources, sizeof *sources);
    if (!sources && n_sources) status = dsi_zero_fail(z, DS_ERR_MEMORY, "save: no memory");
    if (!status) status = dsi_zero_save_tensors(z, w, sources);
    if (!status) status = dsi_zero_save_values(z, w, client, client_bytes);
    status = dsi_zero_agree(z, status, "save");
    if (status)
        ds_checkpoint_abandon(w);
    else if ((status = ds_checkpoint_commit(w, &error)) != DS_OK)
        status = dsi_zero_checkpoint_failed(z, status, "save", error.message);
    else if (d.background)
        z->saving = w;
    dsi_zero_untable(z, sources, n_sources, sizeof *sources);
    return status;
}

/* A checkpoint may not hold more than the model: names the first tensor that is too many. Of the optimizer's only the 1-bit
   ones' error feedback may be there or not. */
static ds_status dsi_zero_load_extra(ds_zero *z, ds_checkpoint *c, size_t expected) {
    const char *extra = NULL;
    size_t count = ds_checkpoint_count(c);
    for (size_t i = 0; i < ds_checkpoint_count(c); i++) {
        ds_checkpoint_info info;
        bool known = false;
        (void)ds_checkpoint_at(c, i, &info);
        if (strncmp(info.name, "optimizer.1bit.", 15) == 0) count--;
        if (extra || strncmp(info.name, "optimizer.", 10) == 0) continue;
        for (size_t k = 0; k < z->n_params && !known; k++) known = strcmp(z->params[k].name, info.name) == 0;
        if (!known) extra = info.name;
    }
    if (count == expected) return DS_OK;
    return dsi_zero_fail(
        z, DS_ERR_INPUT,
        "load: checkpoint '%s' is of another model: it has %zu tensors where this one has %zu, among them "
        "'%.200s'",
        ds_checkpoint_tag(c), count, expected, extra ? extra : "optimizer.");
}

/* What a checkpoint brings beside the weights. One of DeepSpeed has the states in the same names, but not the words of
   the optimizer; a file of weights has neither. */
typedef enum dsi_zero_brings { DSI_ZERO_BRINGS_ALL, DSI_ZERO_BRINGS_STATES, DSI_ZERO_BRINGS_WEIGHTS } dsi_zero_brings;

static dsi_zero_brings dsi_zero_load_brings(const ds_checkpoint *c) {
    ds_checkpoint_info info;
    const char *type;
    if (ds_checkpoint_get_text(c, "optimizer.type", &type) == DS_OK) return DSI_ZERO_BRINGS_ALL;
    for (size_t i = 0; ds_checkpoint_at(c, i, &info) == DS_OK; i++)
        if (strncmp(info.name, "optimizer.", 10) == 0) return DSI_ZERO_BRINGS_STATES;
    return DSI_ZERO_BRINGS_WEIGHTS;
}

static int dsi_zero_load_arrays(const ds_zero *z, const dsi_zero_param *p, dsi_zero_brings brings) {
    if (p->tensor == DSI_ZERO_NONE || brings == DSI_ZERO_BRINGS_WEIGHTS) return 0;
    return (int)ds_optim_state_count(z->optim, p->tensor);
}

/* Before anything is changed: every parameter is there in its shape, and the optimizer is the same. */
static ds_status dsi_zero_load_check(ds_zero *z, ds_checkpoint *c, dsi_zero_brings brings) {
    const char *type = "";
    char *name = (char *)z->scratch;
    size_t expected = 0;
    int64_t world = z->world;
    if (!z->elastic && ds_checkpoint_get_integer(c, "engine.world", &world) == DS_OK && world != z->world)
        return dsi_zero_fail(z, DS_ERR_INPUT,
                             "load: checkpoint '%s' was saved by %lld ranks, and here are %d; "
                             "zero_optimization.elastic_checkpoint is false",
                             ds_checkpoint_tag(c), (long long)world, z->world);
    for (size_t i = 0; i < z->n_params; i++) {
        const dsi_zero_param *p = &z->params[i];
        int arrays = dsi_zero_load_arrays(z, p, brings);
        for (int a = -1; a < arrays; a++) {
            ds_checkpoint_info info;
            const char *saved = dsi_zero_saved_name(z, p, a, name, DSI_ZERO_CHUNK);
            bool same;
            expected++;
            if (ds_checkpoint_find(c, saved, &info))
                return dsi_zero_fail(
                    z, DS_ERR_INPUT,
                    "load: checkpoint '%s' is of another model or optimizer: it has no tensor '%.200s'",
                    ds_checkpoint_tag(c), saved);
            same = info.dims == p->dims;
            for (int k = 0; same && k < p->dims; k++) same = info.shape[k] == p->shape[k];
            if (!same)
                return dsi_zero_fail(z, DS_ERR_INPUT,
                                     "load: checkpoint '%s' is of another model: tensor '%.200s' has %zu elements in "
                                     "%d dimensions, expected %zu in %d",
                                     ds_checkpoint_tag(c), saved, info.numel, info.dims, p->numel, p->dims);
        }
    }
    if (brings == DSI_ZERO_BRINGS_STATES && ds_optim_error_buffers(z->optim))
        return dsi_zero_fail(z, DS_ERR_UNSUPPORTED, "load: checkpoint '%s' lacks what %s keeps beside its states",
                             ds_checkpoint_tag(c), ds_optim_type_name(z->optim));
    if (brings != DSI_ZERO_BRINGS_ALL) return DS_OK; /* what else is there, such as buffers, is not the engine's */
    (void)ds_checkpoint_get_text(c, "optimizer.type", &type);
    if (strcmp(type, ds_optim_type_name(z->optim)) != 0)
        return dsi_zero_fail(z, DS_ERR_INPUT, "load: checkpoint '%s' was trained with optimizer %s, expected %s",
                             ds_checkpoint_tag(c), type, ds_optim_type_name(z->optim));
    return dsi_zero_load_extra(z, c, expected);
}

/* As if the values came from the model's own copy. [cfg: zero_optimization.load_from_fp32_weights false] */
static void dsi_zero_round(float *values, ds_dtype dtype, size_t count) {
    uint16_t half[1024];
    for (size_t done = 0; done < count;) {
        size_t n = count - done < 1024 ? count - done : 1024;
        (void)ds_optim_cast(half, dtype, values + done, DS_F32, n);
        (void)ds_optim_cast(values + done, DS_F32, half, dtype, n);
        done += n;
    }
}

/* `name` holds row after row of the parameter's array; `row` is where the one to load begins. */
static ds_status dsi_zero_load_tensor(ds_zero *z, ds_checkpoint *c, dsi_zero_param *p, int array, const char *name,
                                      size_t row) {
    bool frozen = p->tensor == DSI_ZERO_NONE;
    size_t begin = frozen && p->whole ? 0 : p->own_begin,
           end = frozen && p->whole ? p->numel : p->own_begin + p->own_count;
    for (size_t at = begin; at < end;) {
        size_t n = end - at < DSI_ZERO_CHUNK ? end - at : DSI_ZERO_CHUNK;
        ds_status status = ds_checkpoint_read(c, name, row + at, n, frozen ? p->dtype : DS_F32, z->scratch);
        if (status) return dsi_zero_fail(z, status, "load: %.480s", ds_checkpoint_error(c)->message);
        if (frozen)
            status = dsi_zero_own_raw(z, true, p, at, n * p->bytes_each, (char *)z->scratch);
        else {
            if (array < 0 && dsi_zero_has_master(p) && !z->load_fp32) dsi_zero_round(z->scratch, p->dtype, n);
            status = dsi_zero_own_io(z, true, p, array, at, n, z->scratch);
            if (!status && array < 0 && dsi_zero_has_master(p)) status = dsi_zero_own_round(z, p, at, n, z->scratch);
        }
        if (status) return status;
        at += n;
    }
    return DS_OK;
}

/* The rank's own values of a parameter, where the checkpoint has those of as many ranks. */
static ds_status dsi_zero_load_apart(ds_zero *z, ds_checkpoint *c, dsi_zero_param *p) {
    char name[64];
    ds_checkpoint_info info;
    if (!dsi_zero_drifts(z) || p->tensor == DSI_ZERO_NONE) return DS_OK;
    dsi_zero_apart_name(z, p, name, sizeof name);
    if (ds_checkpoint_find(c, name, &info) || info.shape[0] != (size_t)z->world) return DS_OK;
    return dsi_zero_load_tensor(z, c, p, -1, name, p->numel * (size_t)z->rank);
}

/* What the optimizer remembers; a failure changes nothing. */
static ds_status dsi_zero_load_optimizer(ds_zero *z, ds_checkpoint *c, dsi_zero_brings brings) {
    const void *bytes = NULL;
    size_t count = 0;
    int64_t step, schedule;
    ds_status status = brings == DSI_ZERO_BRINGS_ALL ? ds_checkpoint_get_bytes(c, "optimizer.state", &bytes, &count)
                       : brings == DSI_ZERO_BRINGS_STATES ? ds_checkpoint_get_integer(c, "optimizer.step", &step)
                                                          : DS_OK;
    if (status) return dsi_zero_fail(z, status, "load: %.480s", ds_checkpoint_error(c)->message);
    if (brings == DSI_ZERO_BRINGS_WEIGHTS) return DS_OK;
    if (brings == DSI_ZERO_BRINGS_STATES) {
        if (ds_checkpoint_get_integer(c, "optimizer.schedule", &schedule)) schedule = step;
        if (!(status = ds_optim_set_step_count(z->optim, step)))
            status = ds_optim_set_schedule_count(z->optim, schedule);
    } else
        status = ds_optim_load(z->optim, bytes, count);
    if (status) return dsi_zero_fail(z, status, "load: %.480s", ds_optim_error(z->optim)->message);
    return DS_OK;
}

/* The order of buckets with which the run went on that saved this; what has none, or one of other parameters, learns it from
   its next pass. Only sums of quantized gradients depend on it. */
static void dsi_zero_load_order(ds_zero *z, const ds_checkpoint *c) {
    const void *bytes = NULL;
    const unsigned char *in;
    size_t count = 0;
    uint64_t names = 0;
    dsi_zero_first_order(z);
    if (ds_checkpoint_get_bytes(c, "engine.order", &bytes, &count) || count != 8 + 4 * z->n_train) return;
    in = (const unsigned char *)bytes;
    for (size_t k = 0; k < 8; k++) names |= (uint64_t)in[k] << 8 * k;
    if (names != dsi_zero_names(z)) return;
    for (size_t i = 0; i < z->n_params; i++) z->params[i].given = 0;
    for (size_t i = 0; i < z->n_train; i++) {
        uint32_t index = 0;
        for (size_t k = 0; k < 4; k++) index |= (uint32_t)in[8 + 4 * i + k] << 8 * k;
        if (index >= z->n_params || z->params[index].tensor == DSI_ZERO_NONE || z->params[index].given++) return;
        z->arrival[i] = index;
    }
    dsi_zero_adopt_order(z);
}

/* Counters that are there, and the loss scaler's state where both the checkpoint and this engine have a scale. */
static void dsi_zero_load_values(ds_zero *z, const ds_checkpoint *c, dsi_zero_brings brings) {
    double scale;
    bool scaled = z->fp16 && ds_checkpoint_get_number(c, "loss_scaler.scale", &scale) == DS_OK;
    if (brings == DSI_ZERO_BRINGS_WEIGHTS) return;
    for (size_t i = 0; i < (scaled ? DSI_ZERO_SAVED : DSI_ZERO_COUNTERS); i++) {
        int64_t value;
        if (ds_checkpoint_get_integer(c, dsi_zero_saved[i].key, &value) == DS_OK)
            memcpy((char *)z + dsi_zero_saved[i].offset, &value, sizeof value);
    }
    if (scaled) z->scaler.scale = scale;
    if (brings == DSI_ZERO_BRINGS_ALL) dsi_zero_load_order(z, c);
}

/* The caller's own bytes; a failure changes nothing. */
static ds_status dsi_zero_load_client(ds_zero *z, ds_checkpoint *c) {
    const void *bytes = NULL;
    size_t count = 0;
    void *client;
    if (ds_checkpoint_get_bytes(c, "client", &bytes, &count) || !count) return DS_OK;
    client = dsi_alloc(&z->allocator, count);
    if (!client) return dsi_zero_fail(z, DS_ERR_MEMORY, "load: no memory for %zu bytes of client state", count);
    memcpy(client, bytes, count);
    dsi_release(&z->allocator, z->client, z->client_bytes);
    z->client = client;
    z->client_bytes = count;
    return DS_OK;
}

/* Each rank has found the latest complete tag by itself: a file system may show them different ones. */
static ds_status dsi_zero_load_same(ds_zero *z, const ds_checkpoint *c) {
    const char *tag = ds_checkpoint_tag(c);
    int64_t at[2] = {0, 0};
    uint64_t hash[2];
    size_t differs;
    if (z->world == 1) return DS_OK;
    (void)ds_checkpoint_get_integer(c, "engine.step", &at[0]);
    (void)ds_checkpoint_get_integer(c, "engine.samples", &at[1]);
    hash[0] = dsi_zero_hash(dsi_zero_hash(DSI_ZERO_HASH, tag, strlen(tag)), at, sizeof at);
    if (dsi_zero_compare(z, hash, 1, &differs, NULL)) return dsi_zero_comm_failed(z, "load", NULL);
    if (differs == 1) return DS_OK;
    return dsi_zero_fail(z, DS_ERR_INPUT,
                         "load: rank %d opened '%.300s' (step %lld), and another rank another checkpoint", z->rank, tag,
                         (long long)at[0]);
}

DS_API ds_status ds_zero_load(ds_zero *z, const char *folder, const char *tag, const void **client,
                              size_t *client_bytes) {
    ds_status status = dsi_zero_alive(z);
    ds_checkpoint_desc d;
    ds_checkpoint *c = NULL;
    dsi_zero_brings brings = DSI_ZERO_BRINGS_ALL;
    ds_error error;
    memset(&error, 0, sizeof error);
    if (client) *client = NULL;
    if (client_bytes) *client_bytes = 0;
    if (status) return status;
    if (z->pass >= 0 || z->micro) return dsi_zero_fail(z, DS_ERR_STATE, "ds_zero_load: in the middle of a step");
    if ((status = ds_zero_save_finish(z)) || (status = dsi_zero_settle(z))) return status;
    z->ahead = 0; /* of a step that was skipped */
    d = dsi_zero_checkpoint_desc(z, folder);
    status = tag ? ds_checkpoint_open(&d, tag, &c, &error) : ds_checkpoint_open_path(&d, folder, &c, &error);
    if (status)
        status = dsi_zero_checkpoint_failed(z, status, "load", error.message);
    else {
        brings = dsi_zero_load_brings(c);
        status = dsi_zero_load_check(z, c, brings);
    }
    if ((status = dsi_zero_agree(z, status, "load")) || (status = dsi_zero_load_same(z, c))) {
        ds_checkpoint_close(c);
        return status;
    }
    status = dsi_zero_load_client(z, c);
    if (!status) status = dsi_zero_load_optimizer(z, c, brings);
    if ((status = dsi_zero_agree(z, status, "load"))) {
        ds_checkpoint_close(c);
        return status;
    }
    for (size_t i = 0; i < z->n_params && !status; i++) {
        dsi_zero_param *p = &z->params[i];
        int arrays = dsi_zero_load_arrays(z, p, brings);
        char name[512];
        for (int a = -1; a < arrays && !status; a++)
            status = dsi_zero_load_tensor(z, c, p, a, dsi_zero_saved_name(z, p, a, name, sizeof name), 0);
        if (!status) status = dsi_zero_load_apart(z, c, p);
    }
    if (!status) status = dsi_zero_load_errors(z, c);
    if (!status) dsi_zero_load_values(z, c, brings);
    if (!status && brings != DSI_ZERO_BRINGS_ALL && z->rank == 0)
        dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 10, "loaded '%s', which is not ds's own: %s", ds_checkpoint_tag(c),
                brings == DSI_ZERO_BRINGS_STATES ? "weights, the optimizer's states and counters" : "weights alone");
    ds_checkpoint_close(c);
    if ((status = dsi_zero_agree(z, status, "load"))) {
        ds_error failed = z->error;
        if (z->dead) return status;
        dsi_zero_fail(z, status, "%s; the engine cannot go on", failed.message);
        z->dead = true; /* on all ranks, which have agreed on it: none needs to be told */
        return status;
    }
    dsi_zero_follow(z, z->stream, z->fetching);
    if ((status = dsi_zero_ended(z, dsi_zero_gather_updated(z))) || (status = dsi_zero_all_arrived(z))) return status;
    for (size_t i = 0; i < z->n_params; i++) z->params[i].near_valid = false;
    if (client) *client = z->client;
    if (client_bytes) *client_bytes = z->client_bytes;
    return DS_OK;
}

typedef struct dsi_zero_export { /* rank 0 writes; the others serve its reads until it says that there are no more */
    ds_zero *z;
    size_t index;
} dsi_zero_export;

static ds_status dsi_zero_export_read(void *ctx, size_t begin, size_t count, void *out) {
    dsi_zero_export *e = (dsi_zero_export *)ctx;
    const dsi_zero_param *p = &e->z->params[e->index];
    for (size_t done = 0; done < count;) {
        size_t n = count - done < DSI_ZERO_CHUNK ? count - done : DSI_ZERO_CHUNK;
        uint64_t order[3];
        ds_status status;
        order[0] = e->index;
        order[1] = begin + done;
        order[2] = n;
        if (e->z->parts > 1 && ds_comm_broadcast(e->z->comm, order, 3, DS_U64, 0))
            return dsi_zero_comm_failed(e->z, "export", NULL);
        if ((status = ds_zero_read(e->z, e->index, -1, begin + done, n, e->z->scratch))) return status;
        (void)ds_optim_cast((char *)out + done * p->bytes_each, p->dtype, e->z->scratch, DS_F32, n);
        done += n;
    }
    return DS_OK;
}

static ds_status dsi_zero_export_serve(ds_zero *z) {
    for (;;) {
        uint64_t order[3];
        ds_status status;
        if (ds_comm_broadcast(z->comm, order, 3, DS_U64, 0)) return dsi_zero_comm_failed(z, "export", NULL);
        if (order[2] == 0) return DS_OK;
        if ((status = ds_zero_read(z, (size_t)order[0], -1, (size_t)order[1], (size_t)order[2], z->scratch)))
            return status;
    }
}

static ds_status dsi_zero_export_write(ds_zero *z, const char *path) {
    ds_checkpoint_tensor *tensors = (ds_checkpoint_tensor *)dsi_zero_table(z, z->n_params, sizeof *tensors);
    dsi_zero_export *sources = (dsi_zero_export *)dsi_zero_table(z, z->n_params, sizeof *sources);
    static const char *const metadata[2] = {"format", "pt"};
    ds_status status = DS_OK;
    ds_error error;
    memset(&error, 0, sizeof error);
    if ((!tensors || !sources) && z->n_params) status = dsi_zero_fail(z, DS_ERR_MEMORY, "export: no memory");
    for (size_t i = 0; i < z->n_params && !status; i++) {
        dsi_zero_param *p = &z->params[i];
        sources[i].z = z;
        sources[i].index = i;
        tensors[i].name = p->name;
        tensors[i].dtype = p->dtype;
        tensors[i].shape = p->shape;
        tensors[i].dims = p->dims;
        tensors[i].count = p->numel;
        tensors[i].read = dsi_zero_export_read;
        tensors[i].ctx = &sources[i];
    }
    if (!status) {
        ds_checkpoint_desc d = dsi_zero_checkpoint_desc(z, NULL);
        status = ds_safetensors_write(path, tensors, z->n_params, metadata, 1, 0, &d, &error);
        if (status) status = dsi_zero_fail(z, status, "export: %.480s", error.message);
    }
    dsi_zero_untable(z, sources, z->n_params, sizeof *sources);
    dsi_zero_untable(z, tensors, z->n_params, sizeof *tensors);
    return status;
}

DS_API ds_status ds_zero_save_16bit_model(ds_zero *z, const char *path) {
    ds_status status = dsi_zero_alive(z);
    uint64_t end[3] = {0, 0, 0};
    if (status) return status;
    if (z->pass >= 0) return dsi_zero_fail(z, DS_ERR_STATE, "ds_zero_save_16bit_model: a pass is open");
    if (z->stage == 3 && !z->gather_on_save)
        return dsi_zero_fail(
            z, DS_ERR_STATE,
            "ds_zero_save_16bit_model: stage 3 needs zero_optimization.stage3_gather_16bit_weights_on_model_save");
    if (z->rank == 0) {
        status = dsi_zero_export_write(z, path);
        if (z->parts > 1 && !z->dead && ds_comm_broadcast(z->comm, end, 3, DS_U64, 0))
            return dsi_zero_comm_failed(z, "export", NULL);
    } else if (z->parts > 1)
        status = dsi_zero_export_serve(z);
    return z->dead ? z->error.status : dsi_zero_agree(z, status, "export");
}

// >>create

DS_API ds_dtype ds_zero_model_dtype(const ds_config *c) {
    return !c ? DS_F32 : c->fp16.enabled ? DS_F16 : c->bf16.enabled ? DS_BF16 : DS_F32;
}

/* "fp16", "bf16" or "fp32" in any case, as ds_config has checked. */
static ds_dtype dsi_zero_dtype(const char *name) {
    return (name[0] | 32) == 'b' ? DS_BF16 : name[2] == '1' ? DS_F16 : DS_F32;
}

/* Whether the file gives a value other than null for a key. */
static bool dsi_zero_given(const ds_config *c, const char *path) {
    ds_config_origin origin = DS_CONFIG_DEFAULT;
    (void)ds_config_where(c, path, &origin, NULL, NULL);
    return origin != DS_CONFIG_DEFAULT;
}

/* ZeRO++: the ranks of a node are zero_hpz_partition_size in a row. */
static ds_status dsi_zero_check_plus(ds_zero *z, ds_error *error) {
    size_t world = (size_t)z->world;
    if (z->near_parts < 1) z->near_parts = 1;
    if (z->near_parts > 1 && z->stage != 3)
        return dsi_fail(error, DS_ERR_INPUT,
                        "zero_optimization.zero_hpz_partition_size: needs stage 3, and the stage is %d", z->stage);
    if (z->quantize_weights && z->stage != 3)
        return dsi_fail(error, DS_ERR_INPUT,
                        "zero_optimization.zero_quantized_weights: needs stage 3, and the stage is %d", z->stage);
    if (z->quantize_gradients && z->stage < 2)
        return dsi_fail(error, DS_ERR_INPUT,
                        "zero_optimization.zero_quantized_gradients: needs stage 2 or 3, and the stage is %d",
                        z->stage);
    if (z->near_parts > 1 && world % z->near_parts)
        return dsi_fail(error, DS_ERR_INPUT,
                        "zero_optimization.zero_hpz_partition_size: %zu ranks do not divide the world of %zu",
                        z->near_parts, world);
    if (z->quantize_gradients && z->reduce_whole)
        return dsi_fail(error, DS_ERR_INPUT,
                        "zero_optimization.zero_quantized_gradients: needs reduce_scatter, which is false");
    if (z->invariant && (z->quantize_weights || z->quantize_gradients))
        return dsi_fail(error, DS_ERR_INPUT, "ds.world_invariant: cannot be combined with zero_optimization.%s",
                        z->quantize_weights ? "zero_quantized_weights" : "zero_quantized_gradients");
    return DS_OK;
}

/* What the engine itself takes from the configuration. */
static ds_status dsi_zero_configure(ds_zero *z, const ds_config *c, ds_error *error) {
    ds_status status;
    z->stage = (int)c->zero_optimization.stage;
    z->model_dtype = ds_zero_model_dtype(c);
    z->fp16 = c->fp16.enabled;
    z->accumulation = (int)c->gradient_accumulation_steps;
    z->samples_per_step = (int64_t)c->train_batch_size;
    z->clipping = c->gradient_clipping;
    z->clocks = c->wall_clock_breakdown;
    z->print_every = (int64_t)c->steps_per_print;
    z->reduce_bucket = c->zero_optimization.reduce_bucket_size;
    if (z->world == 1 && z->stage >= 2 && z->reduce_bucket > DSI_ZERO_LANE)
        z->reduce_bucket = DSI_ZERO_LANE; /* nothing to reduce: a gradient goes on to its sum as soon as it may */
    z->gather_bucket = c->zero_optimization.allgather_bucket_size;
    z->gather_by_broadcast = !c->zero_optimization.allgather_partitions;
    z->reduce_whole = !c->zero_optimization.reduce_scatter;
    z->overlap = c->zero_optimization.overlap_comm;
    z->hooks = z->stage != 1 || c->zero_optimization.grad_hooks;
    z->contiguous = c->zero_optimization.contiguous_gradients;
    z->sparse = c->sparse_gradients;
    z->round_robin = c->zero_optimization.round_robin_gradients && (z->stage == 1 || z->stage == 2);
    z->elastic = c->zero_optimization.elastic_checkpoint || !dsi_zero_given(c, "zero_optimization.elastic_checkpoint");
    z->load_fp32 = c->zero_optimization.load_from_fp32_weights;
    z->ignore_unused = c->zero_optimization.ignore_unused_parameters;
    z->prefetch = c->zero_optimization.stage3_prefetch_bucket_size;
    z->max_live = c->zero_optimization.stage3_max_live_parameters;
    z->max_reuse = c->zero_optimization.stage3_max_reuse_distance;
    z->persistence = c->zero_optimization.stage3_param_persistence_threshold;
    z->sub_group = c->zero_optimization.sub_group_size;
    z->gather_on_save = c->zero_optimization.stage3_gather_16bit_weights_on_model_save;
    z->before_reduce = 1.0;
    if (z->fp16 && !c->ds.world_invariant) z->before_reduce = 1.0 / z->world;
    if (c->prescale_gradients) z->before_reduce = 1.0 / c->gradient_predivide_factor;
    z->wire = z->model_dtype;
    if (c->fp32_allreduce) z->wire = DS_F32;
    if (c->communication_data_type) z->wire = dsi_zero_dtype(c->communication_data_type);
    z->acc_dtype = z->model_dtype;
    if (c->data_types.grad_accum_dtype) z->acc_dtype = dsi_zero_dtype(c->data_types.grad_accum_dtype);
    z->boundary = c->ds.reduce_at_boundary;
    z->native = c->ds.native_reduce;
    z->gathers_later = c->ds.gather_in_background;
    z->invariant = c->ds.world_invariant;
    z->levels = 1;
    if (z->invariant) {
        if ((c->communication_data_type && z->wire != DS_F32) ||
            (c->data_types.grad_accum_dtype && z->acc_dtype != DS_F32))
            return dsi_fail(
                error, DS_ERR_INPUT,
                "ds.world_invariant: sums are fp32 from rank to rank and micro-batch to micro-batch; take out "
                "%s",
                c->communication_data_type && z->wire != DS_F32 ? "communication_data_type"
                                                                : "data_types.grad_accum_dtype");
        if (z->boundary)
            return dsi_fail(error, DS_ERR_INPUT, "ds.reduce_at_boundary: cannot be combined with ds.world_invariant");
        z->wire = z->acc_dtype = DS_F32;
        for (int m = z->accumulation - 1; m > 1; m >>= 1) z->levels++;
    }
    z->near_parts = c->zero_optimization.zero_hpz_partition_size;
    z->quantize_weights = c->zero_optimization.zero_quantized_weights;
    z->quantize_gradients = c->zero_optimization.zero_quantized_gradients;
    if ((status = dsi_zero_check_plus(z, error))) return status;
    if (z->boundary && z->stage > 1)
        return dsi_fail(error, DS_ERR_INPUT, "ds.reduce_at_boundary: needs stage 0 or 1, and the stage is %d",
                        z->stage);
    if (z->boundary)
        dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 5,
                "ds.reduce_at_boundary: one reduction per step; stages 0 and 1 share bits with each other only");
    z->state_tier = z->param_tier = DS_ZERO_DEVICE;
    if (c->zero_optimization.offload_optimizer.device == DS_CONFIG_CPU) z->state_tier = DS_ZERO_HOST;
    if (c->zero_optimization.offload_optimizer.device == DS_CONFIG_NVME) z->state_tier = DS_ZERO_DISK;
    if (c->zero_optimization.offload_param.device == DS_CONFIG_CPU) z->param_tier = DS_ZERO_HOST;
    if (c->zero_optimization.offload_param.device == DS_CONFIG_NVME) z->param_tier = DS_ZERO_DISK;
    z->pin_states = c->zero_optimization.offload_optimizer.pin_memory && z->state_tier != DS_ZERO_DEVICE;
    z->pin_params = c->zero_optimization.offload_param.pin_memory && z->param_tier != DS_ZERO_DEVICE;
    z->pipeline_read = c->zero_optimization.offload_optimizer.pipeline_read;
    z->pipeline_write = c->zero_optimization.offload_optimizer.pipeline_write;
    z->fast_init = c->zero_optimization.offload_optimizer.fast_init;
    z->ratio = c->zero_optimization.offload_optimizer.ratio;
    z->pool_count = c->zero_optimization.offload_param.buffer_count;
    z->pool_elements = c->zero_optimization.offload_param.buffer_size;
    z->max_in_cpu = c->zero_optimization.offload_param.max_in_cpu;
    {
        ds_config_origin origin = DS_CONFIG_DEFAULT;
        (void)ds_config_where(c, "zero_optimization.offload_optimizer.buffer_count", &origin, NULL, NULL);
        z->set_limit = origin == DS_CONFIG_GIVEN ? c->zero_optimization.offload_optimizer.buffer_count : SIZE_MAX;
    }
    if (z->stage == 0 && z->state_tier != DS_ZERO_DEVICE)
        return dsi_fail(error, DS_ERR_INPUT,
                        "zero_optimization.offload_optimizer.device: needs stage 1, 2 or 3, and the stage is 0");
    if (z->stage < 3 && z->state_tier == DS_ZERO_DISK)
        return dsi_fail(error, DS_ERR_INPUT,
                        "zero_optimization.offload_optimizer.device: nvme needs stage 3, and the stage is %d",
                        z->stage);
    if (z->stage < 3 && z->param_tier != DS_ZERO_DEVICE)
        return dsi_fail(error, DS_ERR_INPUT,
                        "zero_optimization.offload_param.device: needs stage 3, and the stage is %d", z->stage);
    if (z->accumulation < 1 || z->samples_per_step < 1)
        return dsi_fail(
            error, DS_ERR_INPUT,
            "gradient_accumulation_steps is %d and train_batch_size %lld: the configuration is not resolved",
            z->accumulation, (long long)z->samples_per_step);
    return ds_wire_checkpoint(c, &z->checkpoint, error);
}

static ds_status dsi_zero_no_memory(ds_zero *z, ds_error *error, const char *what) {
    return dsi_fail(error, DS_ERR_MEMORY, "rank %d: no memory for %s", z->rank, what);
}

/* A checkpoint has the states as optimizer.<state>.<name>, and an error is one line. */
static bool dsi_zero_good_name(const char *name) {
    if (!ds_checkpoint_good_name(name) || strncmp(name, "optimizer.", 10) == 0) return false;
    while (*name && (unsigned char)*name >= 0x20 && *name != 0x7F) name++;
    return !*name;
}

/* Copies and checks the parameters. */
static ds_status dsi_zero_register(ds_zero *z, const ds_zero_desc *d, ds_error *error) {
    char *names;
    for (size_t i = 0; i < d->n_params; i++) {
        if (!d->params[i].name || !d->params[i].name[0])
            return dsi_fail(error, DS_ERR_ARGUMENT, "parameter %zu has no name", i);
        if (!dsi_zero_good_name(d->params[i].name))
            return dsi_fail(error, DS_ERR_ARGUMENT,
                            "parameter %zu: its name is none for a checkpoint; expected UTF-8 without control "
                            "characters, not __metadata__, not optimizer.*",
                            i);
        z->names_bytes += strlen(d->params[i].name) + 1;
    }
    z->params = (dsi_zero_param *)dsi_zero_table(z, z->n_params, sizeof *z->params);
    z->names = (char *)dsi_zero_table(z, z->names_bytes, 1);
    z->part_counts = (size_t *)dsi_zero_table(z, dsi_mul(z->n_params, (size_t)z->world), sizeof(size_t));
    if (z->n_params && (!z->params || !z->names || !z->part_counts))
        return dsi_zero_no_memory(z, error, "the table of parameters");
    names = z->names;
    for (size_t i = 0; i < z->n_params; i++) {
        const ds_zero_param *from = &d->params[i];
        dsi_zero_param *p = &z->params[i];
        size_t bytes = strlen(from->name) + 1;
        p->name = (char *)memcpy(names, from->name, bytes);
        names += bytes;
        for (size_t j = 0; j < i; j++)
            if (strcmp(z->params[j].name, p->name) == 0)
                return dsi_fail(error, DS_ERR_ARGUMENT, "parameters %zu and %zu are both called '%s'", j, i, p->name);
        if (from->dims < 0 || from->dims > DS_ZERO_MAX_DIMS)
            return dsi_fail(error, DS_ERR_ARGUMENT, "parameter '%s': %d dimensions, at most %d", p->name, from->dims,
                            DS_ZERO_MAX_DIMS);
        if (from->dtype != DS_F32 && from->dtype != z->model_dtype)
            return dsi_fail(
                error, DS_ERR_ARGUMENT,
                "parameter '%s': dtype %d; under this configuration it is %d (ds_zero_model_dtype) or DS_F32", p->name,
                (int)from->dtype, (int)z->model_dtype);
        if (from->group >= (d->n_groups ? d->n_groups : 1))
            return dsi_fail(error, DS_ERR_ARGUMENT, "parameter '%s': group %zu of %zu", p->name, from->group,
                            d->n_groups);
        if (from->contributions < 0)
            return dsi_fail(error, DS_ERR_ARGUMENT, "parameter '%s': %d contributions; 0 is one", p->name,
                            from->contributions);
        p->dims = from->dims;
        p->numel = 1;
        for (int k = 0; k < from->dims; k++) {
            p->shape[k] = from->shape[k];
            p->numel = dsi_mul(p->numel, from->shape[k]);
        }
        if (p->numel > SIZE_MAX / 16)
            return dsi_fail(error, DS_ERR_ARGUMENT, "parameter '%s': its shape overflows", p->name);
        p->dtype = from->dtype;
        p->bytes_each = DS_DTYPE_SIZE(from->dtype);
        p->group = from->group;
        p->contributions = from->contributions > 0 ? from->contributions : 1;
        p->sparse = from->sparse && z->sparse && from->dims > 0 && p->numel && !from->frozen;
        p->slot = from->slot;
        p->grains = dsi_zero_grains(p->numel);
        p->whole = z->stage < 3 || p->numel <= z->persistence;
        p->external = from->data && z->stage < 3;
        if (p->external) p->full = (char *)from->data;
        p->replicated = from->replicated;
        p->tensor = from->frozen ? DSI_ZERO_NONE : z->n_train++;
        if (from->frozen) continue;
        p->piece = p->tensor * z->parts;
        if (p->contributions > 1 && z->stage >= 2) z->n_stashes++; /* the first may come before its bucket opens */
        z->train_elements += p->numel;
        z->total_grains += p->grains;
        if (p->numel > z->largest) z->largest = p->numel;
    }
    return DS_OK;
}

/* What the optimizer asks of the other ranks: LAMB's norms, and the 1-bit average. */
static ds_status dsi_zero_exchange(void *ctx, const void *mine, void *all, size_t bytes) {
    ds_zero *z = (ds_zero *)ctx;
    if (ds_comm_all_gather(z->comm, mine, all, bytes, NULL, DS_U8))
        return dsi_zero_comm_failed(z, "exchange of the optimizer's norms", NULL);
    return DS_OK;
}
static ds_status dsi_zero_average(void *ctx, float *buffer, float *worker_error, float *server_error, size_t count,
                                  void *stream) {
    ds_zero *z = (ds_zero *)ctx;
    ds_status status;
    if (z->updates)
        status = ds_comm_one_bit_all_reduce_on(z->comm, buffer, buffer, count, worker_error, server_error,
                                               z->one_bit_scratch, stream);
    else
        status =
            ds_comm_one_bit_all_reduce(z->comm, buffer, buffer, count, worker_error, server_error, z->one_bit_scratch);
    if (status) return dsi_zero_comm_failed(z, "compressed average of momenta", NULL);
    return DS_OK;
}

/* What the kernels do not have is updated by the CPU, from states in host memory. */
static ds_status dsi_zero_create_optimizer(ds_zero *z, ds_optim_desc *o, ds_error *error) {
    ds_status status = ds_optim_create(o, &z->optim, error);
    z->updates = z->gpu && !status;
    if (!z->gpu || status != DS_ERR_UNSUPPORTED) return status;
    o->kernels = NULL;
    o->all_on_device = false;
    if ((status = ds_optim_create(o, &z->optim, error))) return status;
    z->ratio = 1.0;
    if (z->state_tier != DS_ZERO_DEVICE) return DS_OK;
    z->state_tier = DS_ZERO_HOST;
    dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 12, "the GPU has no kernels for %s: the CPU updates",
            ds_optim_type_name(z->optim));
    return DS_OK;
}

static ds_status dsi_zero_make_optimizer(ds_zero *z, const ds_zero_desc *d, ds_error *error) {
    size_t n_groups = d->n_groups ? d->n_groups : 1;
    ds_optim_tensor *tensors = (ds_optim_tensor *)dsi_zero_table(z, z->n_train, sizeof *tensors);
    ds_optim_params *groups = (ds_optim_params *)dsi_zero_table(z, n_groups, sizeof *groups);
    ds_optim_params base;
    ds_optim_desc o;
    ds_schedule schedule;
    ds_status status = DS_OK;
    memset(&o, 0, sizeof o);
    memset(&schedule, 0, sizeof schedule);
    o.tasks = z->tasks;
    o.allocator = z->allocator;
    o.logger = z->logger;
    o.kernels = z->gpu ? &z->kernels : NULL;
    o.device = z->gpu ? &z->device : NULL;
    o.all_on_device = z->gpu && z->state_tier == DS_ZERO_DEVICE;
    if (z->world > 1) {
        o.group.exchange = dsi_zero_exchange;
        o.group.ctx = z;
        o.group.rank = z->rank;
        o.group.size = z->world;
        o.average.average = dsi_zero_average;
        o.average.ctx = z;
    }
    if ((!tensors && z->n_train) || !groups) status = dsi_zero_no_memory(z, error, "the optimizer's tensors");
    if (!status) status = ds_wire_optim(d->config, d->optimizer, &o, &base, error);
    if (!status) status = ds_wire_schedule(d->config, &schedule, error);
    for (size_t i = 0; i < n_groups && !status; i++) {
        groups[i] = base;
        if (d->groups && (!isfinite(d->groups[i].lr) || !isfinite(d->groups[i].weight_decay)))
            status = dsi_fail(error, DS_ERR_ARGUMENT, "group %zu: lr %g, weight_decay %g: not finite", i,
                              d->groups[i].lr, d->groups[i].weight_decay);
        if (d->groups && d->groups[i].lr >= 0) groups[i].lr = d->groups[i].lr;
        if (d->groups && d->groups[i].weight_decay >= 0) groups[i].weight_decay = d->groups[i].weight_decay;
    }
    for (size_t i = 0; i < z->n_params && tensors; i++) {
        const dsi_zero_param *p = &z->params[i];
        ds_optim_tensor *t;
        if (p->tensor == DSI_ZERO_NONE) continue;
        t = &tensors[p->tensor];
        t->name = p->name;
        t->rows = p->dims >= 2 ? p->shape[0] : 1;
        t->cols = t->rows ? p->numel / t->rows : 0;
        t->group = p->group;
    }
    if (d->schedule) {
        schedule.kind = DS_SCHEDULE_CUSTOM;
        schedule.custom = d->schedule;
        schedule.ctx = d->schedule_ctx;
    }
    o.groups = groups;
    o.group_count = n_groups;
    o.tensors = tensors;
    o.tensor_count = z->n_train;
    if (!status) status = dsi_zero_create_optimizer(z, &o, error);
    for (size_t i = 0; i < n_groups && !status && schedule.kind != DS_SCHEDULE_NONE; i++)
        if ((status = ds_optim_set_schedule(z->optim, i, &schedule)))
            dsi_fail(error, status, "scheduler: %.480s", ds_optim_error(z->optim)->message);
    z->clients = d->optimizer != NULL; /* which may look at the learning rate while it updates */
    z->one_bit =
        !status && (ds_optim_error_buffers(z->optim) > 0 || (d->optimizer && d->optimizer->local_gradients != NULL));
    if (z->one_bit && z->parts > 1)
        status =
            dsi_fail(error, DS_ERR_UNSUPPORTED,
                     "optimizer.type: %s averages gradients itself, over ranks that each hold all states; it works "
                     "at stage 0, and zero_optimization.stage is %d",
                     ds_optim_type_name(z->optim), z->stage);
    if (z->one_bit && (z->clipping > 0 || base.max_grad_norm > 0) && !status)
        status = dsi_fail(
            error, DS_ERR_UNSUPPORTED, "%s: %s cannot clip once its compressed phase has begun; take it out",
            z->clipping > 0 ? "gradient_clipping" : "optimizer.params.max_grad_norm", ds_optim_type_name(z->optim));
    if (!status) z->n_states = ds_optim_state_count_max(z->optim);
    dsi_zero_untable(z, groups, n_groups, sizeof *groups);
    dsi_zero_untable(z, tensors, z->n_train, sizeof *tensors);
    return status;
}

/* Several nodes, each of several ranks. One node's copy would be the parts themselves. */
static bool dsi_zero_nodes(const ds_zero *z) {
    return z->near_parts > 1 && z->near_parts < (size_t)z->world;
}

/* A tensor that the optimizer takes as a whole goes to the rank with the fewest elements so far, or to the next rank in
   turn. [cfg: zero_optimization.round_robin_gradients] */
static ds_status dsi_zero_deal(const ds_zero *z, dsi_zero_param *p, size_t *load, size_t *dealt, ds_error *error) {
    if (z->quantize_weights || z->quantize_gradients)
        return dsi_fail(error, DS_ERR_UNSUPPORTED,
                        "zero_optimization.%s: parts must be of like length, and %s takes '%s' whole",
                        z->quantize_weights ? "zero_quantized_weights" : "zero_quantized_gradients",
                        ds_optim_type_name(z->optim), p->name);
    p->owner = z->round_robin ? (*dealt)++ % z->parts : 0;
    for (size_t r = 1; r < z->parts && !z->round_robin; r++)
        if (load[r] < load[p->owner]) p->owner = r;
    load[p->owner] += p->numel;
    return DS_OK;
}

/* What this rank keeps of its node's copy of each parameter that is gathered. */
static ds_status dsi_zero_share_near(ds_zero *z, ds_error *error) {
    if (!dsi_zero_nodes(z) || !z->n_params) return DS_OK;
    z->near_counts = (size_t *)dsi_zero_table(z, dsi_mul(z->n_params, z->near_parts), sizeof(size_t));
    if (!z->near_counts) return dsi_zero_no_memory(z, error, "the table of parts");
    for (size_t i = 0; i < z->n_params; i++) {
        dsi_zero_param *p = &z->params[i];
        if (p->whole) continue;
        p->near_counts = z->near_counts + i * z->near_parts;
        p->near_begin = dsi_zero_even_cut(p, z->near_parts, (size_t)z->rank % z->near_parts);
        p->near = z->near_bytes;
        for (size_t r = 0; r < z->near_parts; r++)
            p->near_counts[r] = dsi_zero_even_cut(p, z->near_parts, r + 1) - dsi_zero_even_cut(p, z->near_parts, r);
        z->near_bytes += dsi_round_up(dsi_zero_near_count(z, p) * p->bytes_each, DSI_ZERO_ALIGN);
    }
    return DS_OK;
}

/* Who has which part. */
static ds_status dsi_zero_share(ds_zero *z, ds_error *error) {
    size_t turn = 0, dealt = 0, *load = (size_t *)dsi_zero_table(z, z->parts, sizeof *load);
    ds_status status = load ? DS_OK : dsi_zero_no_memory(z, error, "the table of parts");
    for (size_t i = 0; i < z->n_params && !status; i++) {
        dsi_zero_param *p = &z->params[i];
        ds_optim_work work = p->tensor == DSI_ZERO_NONE ? DS_OPTIM_BY_GRAIN : ds_optim_tensor_work(z->optim, p->tensor);
        p->uncut = work == DS_OPTIM_WHOLE || work == DS_OPTIM_WHOLE_BY_NORM;
        z->by_norm |= work == DS_OPTIM_BY_NORM || work == DS_OPTIM_WHOLE_BY_NORM;
        p->owner = DSI_ZERO_NONE;
        if (p->uncut && z->parts > 1) status = dsi_zero_deal(z, p, load, &dealt, error);
        p->turn = turn;
        if (p->owner == DSI_ZERO_NONE) turn = (turn + p->grains) % z->parts;
        p->counts = z->part_counts + i * z->parts;
        for (size_t r = 0; r < z->parts; r++) {
            size_t begin;
            dsi_zero_part(z, p, r, &begin, &p->counts[r]);
            if (r == z->part) p->own_begin = begin, p->own_count = p->counts[r];
            if (!p->whole && z->quantize_weights && p->counts[r] > z->quantized_values)
                z->quantized_values = p->counts[r];
        }
        p->norm_at = z->own_grains;
        if (p->tensor != DSI_ZERO_NONE) z->own_grains += dsi_zero_grains(p->own_count);
    }
    dsi_zero_untable(z, load, z->parts, sizeof *load);
    if (!status && z->round_robin && !dealt)
        dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 14,
                "zero_optimization.round_robin_gradients: each rank copies a like share of each tensor in any case");
    return status ? status : dsi_zero_share_near(z, error);
}

/* What stages hold, by side: bit 0 parameters of the other side, bit 1 gradients. */
static unsigned dsi_zero_stage_of(const ds_zero *z, bool near) {
    bool some = near ? z->updates && (z->state_tier == DS_ZERO_DEVICE || z->cut) : z->state_tier != DS_ZERO_DEVICE;
    bool own = near ? z->param_tier != DS_ZERO_DEVICE : true;
    if (!z->gpu || !some) return 0;
    return (unsigned)own + 2u * (near != dsi_zero_reduced_near(z));
}

/* The layouts, and the tables that hold them. */
static ds_status dsi_zero_make_tables(ds_zero *z, ds_error *error) {
    bool staged;
    z->order = (size_t *)dsi_zero_table(z, z->n_train, sizeof(size_t));
    z->bucket_order = (size_t *)dsi_zero_table(z, z->n_train, sizeof(size_t));
    z->piece_offset = (size_t *)dsi_zero_table(z, dsi_mul(z->n_train, z->parts), sizeof(size_t));
    z->buckets = (dsi_zero_bucket *)dsi_zero_table(z, z->n_train, sizeof *z->buckets);
    z->arrival = (uint32_t *)dsi_zero_table(z, z->n_train, sizeof *z->arrival);
    z->blocks = (uint32_t *)dsi_zero_table(z, z->n_params, sizeof *z->blocks);
    z->pool = (char **)dsi_zero_table(z, 2 * z->n_train + z->n_stashes, sizeof *z->pool);
    if (z->n_train &&
        (!z->order || !z->bucket_order || !z->piece_offset || !z->buckets || !z->arrival || !z->blocks || !z->pool))
        return dsi_zero_no_memory(z, error, "the engine's tables");
    for (int k = 0; k < 3 && z->stage == 3 && z->n_params; k++) {
        z->traces[k].room = 4 * z->n_params;
        z->traces[k].fetched = (uint32_t *)dsi_zero_table(z, z->traces[k].room, sizeof(uint32_t));
        if (!z->traces[k].fetched) return dsi_zero_no_memory(z, error, "the engine's tables");
    }
    dsi_zero_layout_shard(z);
    dsi_zero_first_order(z);
    z->bucket_capacity = z->train_elements < z->reduce_bucket ? z->train_elements : z->reduce_bucket;
    if (z->bucket_capacity < z->largest) z->bucket_capacity = z->largest;
    if (z->quantize_gradients && z->parts > 1) { /* the longest part, times ranks: each tensor may add a grain to it */
        size_t part = z->bucket_capacity / z->parts + z->n_train * DS_GRAIN;
        if (part > z->bucket_capacity) part = z->bucket_capacity;
        part = dsi_round_up(part, DSI_ZERO_GROUP);
        z->bucket_capacity = part * z->parts;
        if (part > z->quantized_values) z->quantized_values = part;
    }
    z->n_slots = z->stage <= 1 ? z->n_train : z->overlap && z->n_buckets > 1 ? 2 : 1;
    dsi_zero_layout_cut(z);
    z->acc_down = z->gpu && z->state_tier != DS_ZERO_DEVICE && !z->boundary;
    staged = dsi_zero_stage_of(z, false) || dsi_zero_stage_of(z, true);
    if (staged && z->sub_group > DSI_ZERO_STAGE) z->sub_group = DSI_ZERO_STAGE;
    z->n_subs = dsi_zero_layout_subs(z, NULL);
    for (int side = 0; side < 2; side++) {
        unsigned holds = dsi_zero_stage_of(z, side);
        z->side_grad[side] = holds & 1u ? z->sub_elements * sizeof(float) : 0;
        z->side_bytes[side] = z->side_grad[side] + (holds & 2u ? z->sub_elements * sizeof(float) : 0);
    }
    z->subs = (dsi_zero_sub *)dsi_zero_table(z, z->n_subs, sizeof *z->subs);
    z->slices = (ds_optim_slice *)dsi_zero_table(z, z->n_train + 1, sizeof *z->slices);
    z->counts = (size_t *)dsi_zero_table(z, dsi_mul((size_t)z->world, z->n_slots + 1), sizeof(size_t));
    z->cursors = (size_t *)dsi_zero_table(z, (size_t)z->world, sizeof(size_t));
    z->agree = (char *)dsi_zero_table(z, (size_t)z->world, sizeof(ds_error));
    z->spanned = (struct dsi_zero_ballot *)dsi_zero_table(z, dsi_zero_models(z), sizeof *z->spanned);
    if ((z->n_subs && !z->subs) || !z->slices || !z->counts || !z->cursors || !z->agree || !z->spanned)
        return dsi_zero_no_memory(z, error, "the engine's tables");
    dsi_zero_layout_subs(z, z->subs);
    return DS_OK;
}

/* Whether no member of a table of functions is NULL. */
static bool dsi_zero_full(const void *functions, size_t bytes) {
    static void (*const none)(void) = NULL;
    bool full = true;
    for (size_t at = 0; at < bytes; at += sizeof none)
        full &= memcmp((const char *)functions + at, &none, sizeof none) != 0;
    return full;
}

static ds_status dsi_zero_take_device(ds_zero *z, const ds_zero_desc *d, ds_error *error) {
    const ds_device *v = d->device;
    const ds_optim_kernels *k = d->kernels;
    if (!v && !k) return DS_OK;
    if (!v || !k || !dsi_zero_full(&v->alloc, sizeof *v - offsetof(ds_device, alloc)) ||
        !dsi_zero_full(&k->update, sizeof *k - offsetof(ds_optim_kernels, update)))
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "ds_zero: device and kernels are given together, with every member (ds_kernels.cu fills them)");
    z->gpu = true;
    z->device = *v;
    z->kernels = *k;
    return DS_OK;
}

/* Everything but tensor memory: the plan stops here, create goes on. */
static ds_status dsi_zero_prepare(const ds_zero_desc *d, int rank, int world, ds_zero **out, ds_error *error) {
    ds_allocator allocator;
    ds_zero *z;
    ds_status status;
    size_t pinned;
    *out = NULL;
    if (!d || !d->config) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_zero: the descriptor has no config");
    if (d->n_params && !d->params)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_zero: params is NULL, n_params is %zu", d->n_params);
    if (world < 1 || rank < 0 || rank >= world)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_zero: rank %d of %d", rank, world);
    if (d->n_params >= UINT32_MAX) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_zero: %zu parameters", d->n_params);
    allocator = d->allocator;
    z = (ds_zero *)dsi_alloc_zero(&allocator, sizeof *z);
    if (!z) return dsi_fail(error, DS_ERR_MEMORY, "rank %d: no memory for an engine", rank);
    *out = z;
    z->allocator = allocator;
    z->allocations = 1;
    if ((status = dsi_zero_take_device(z, d, error))) return status;
    dsi_zero_count(z, DS_ZERO_BOOKKEEPING, dsi_zero_near(z), sizeof *z);
    z->logger = d->logger;
    z->tasks = d->tasks;
    z->clock = d->clock;
    z->files = d->files;
    z->aio = d->aio;
    z->model = d->model_group;
    if (z->model.size > 1 && (!z->model.exchange || z->model.rank < 0 || z->model.rank >= z->model.size))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_zero: model_group has rank %d of %d%s", z->model.rank,
                        z->model.size, z->model.exchange ? "" : " and no exchange");
    z->event = d->event;
    z->probe = d->probe;
    z->event_ctx = d->event_ctx;
    z->rank = rank;
    z->world = world;
    z->n_params = d->n_params;
    z->pass = -1;
    z->n_stashes = d->gradient_buffers;
    if ((status = dsi_zero_configure(z, d->config, error))) return status;
    if (d->config->world_size != (size_t)world)
        return dsi_fail(error, DS_ERR_INPUT, "the configuration was resolved for %d ranks and there are %d",
                        (int)d->config->world_size, world);
    z->parts = z->stage == 0 ? 1 : (size_t)world;
    z->part = z->stage == 0 ? 0 : (size_t)rank;
    if ((status = dsi_zero_register(z, d, error))) return status;
    if ((status = dsi_zero_make_optimizer(z, d, error))) return status;
    dsi_zero_count(z, DS_ZERO_BOOKKEEPING, dsi_zero_near(z), ds_optim_memory(z->optim));
    if ((status = dsi_zero_share(z, error))) return status;
    dsi_zero_count(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, ds_optim_device_memory(z->optim, &pinned));
    dsi_zero_count(z, DS_ZERO_BUCKETS, DS_ZERO_HOST, pinned);
    {
        ds_loss_scaler_params scaling;
        (void)ds_wire_loss_scaler(d->config, &scaling, error);
        if ((status = ds_loss_scaler_init(&z->scaler, z->fp16 ? &scaling : NULL, error))) return status;
    }
    return dsi_zero_make_tables(z, error);
}

/* The tensor memory, one row each. With `take` false it is only counted. */
static ds_status dsi_zero_memory_row(ds_zero *z, bool take, void **memory, ds_zero_class c, ds_zero_tier t,
                                     size_t bytes, const char *what, ds_error *error) {
    if (bytes == 0) return DS_OK;
    if (bytes > z->item_bytes[t]) z->item[t] = what, z->item_bytes[t] = bytes;
    if (t == DS_ZERO_DISK) return DS_OK; /* dsi_zero_store_tables counts, in the file's blocks */
    if (!take) {
        dsi_zero_count(z, c, t, bytes);
        return DS_OK;
    }
    *memory = dsi_zero_get(z, c, t, bytes);
    if (!*memory)
        return dsi_fail(error, DS_ERR_MEMORY, "rank %d: no memory for %s, %zu bytes%s%.300s", z->rank, what, bytes,
                        z->gpu ? "; " : "", z->gpu ? z->device.describe(z->device.ctx) : "");
    if (dsi_zero_huge(z, c, t, bytes)) ds_offload_huge(*memory, bytes);
    if (t == DS_ZERO_DEVICE)
        dsi_zero_clear(z, *memory, bytes, z->stream);
    else
        memset(*memory, 0, bytes);
    if (!z->gpu && t == DS_ZERO_HOST && (c == DS_ZERO_PARAMS ? z->pin_params : z->pin_states)) {
        ds_error refused;
        if (ds_offload_pin(*memory, bytes, &refused))
            dsi_log(&z->logger, "ds_zero", DS_LOG_WARNING, 4, "%s stay unpinned: %.400s", what, refused.message);
    }
    return DS_OK;
}

/* Room for all parameters, or for the worst choice of them whose elements fit the window: each begins on a page, so that small
   ones take more than their share. The worst choice is a knapsack's; its bound is that of parts of parameters, taken by bytes
   for each element, and of it whole pages: that is no more than the largest parameter too much. */
static size_t dsi_zero_arena_size(ds_zero *z, const ds_zero_desc *d) {
    size_t total = 0, elements = 0, window, largest = d->largest_fetch;
    double low = 0.0, high = DSI_ZERO_ALIGN, most;
    for (size_t i = 0; i < z->n_params; i++) {
        dsi_zero_param *p = &z->params[i];
        if (p->whole) continue;
        p->spot = total;
        total += dsi_zero_room(p);
        elements += p->numel;
        if (!d->largest_fetch && p->numel > largest) largest = p->numel;
    }
    window = dsi_add(z->max_live, largest);
    z->own_spots = elements <= window;
    if (z->own_spots) return total;
    for (int turn = 0; turn < 50; turn++) { /* the bytes for an element of which the window has no more room */
        double rate = 0.5 * (low + high), dearer = 0.0;
        for (size_t i = 0; i < z->n_params; i++) {
            const dsi_zero_param *p = &z->params[i];
            if (!p->whole && (double)dsi_zero_room(p) > rate * (double)p->numel) dearer += (double)p->numel;
        }
        if (dearer > (double)window)
            low = rate;
        else
            high = rate;
    }
    most = high * (double)window;
    for (size_t i = 0; i < z->n_params; i++) {
        const dsi_zero_param *p = &z->params[i];
        double more = (double)dsi_zero_room(p) - high * (double)p->numel;
        if (!p->whole && more > 0.0) most += more;
    }
    return (size_t)(most + 1.0) / DSI_ZERO_ALIGN * DSI_ZERO_ALIGN;
}

/* The swap file of states (which 0) or of parameters; one file serves both when both sections name the same folder. */
static ds_status dsi_zero_store_desc(const ds_zero *z, const ds_config *c, int which, ds_offload_desc *o, bool *shared,
                                     ds_error *error) {
    ds_offload_desc other;
    ds_status status;
    memset(o, 0, sizeof *o);
    memset(&other, 0, sizeof other);
    if ((status = ds_wire_offload(c, which == 1, o, error))) return status;
    *shared = z->param_tier == DS_ZERO_DISK && z->state_tier == DS_ZERO_DISK &&
              !ds_wire_offload(c, which == 0, &other, NULL) && strcmp(o->folder, other.folder) == 0;
    o->max_in_cpu = 0;
    if (z->param_tier == DS_ZERO_DISK && (which == 1 || *shared)) {
        size_t most = dsi_mul(z->max_in_cpu, DS_DTYPE_SIZE(z->model_dtype));
        size_t all = dsi_round_up(z->home_bytes, dsi_round_up(o->block_size, DSI_ZERO_ALIGN));
        o->max_in_cpu = most < all ? most : all;
    }
    o->rank = z->rank;
    o->allocator = z->allocator;
    o->logger = z->logger;
    o->clock = z->clock;
    o->files = z->files;
    o->aio = z->aio;
    return DS_OK;
}

/* The name of the k-th state: the first tensor that has so many says it, for under Muon a matrix has fewer than the others. */
static const char *dsi_zero_state_name(const ds_zero *z, size_t k) {
    const char *name = NULL;
    for (size_t t = 0; t < z->n_train && !name; t++) name = ds_optim_state_name(z->optim, t, k);
    return name ? name : "state";
}

/* Array `a` on disk: its bytes, 0 when it is in memory or there is none; its store and its name there. */
static size_t dsi_zero_disk_array(const ds_zero *z, size_t a, int *store, const char **name) {
    bool home = a == DSI_ZERO_HOME, grad = a == DSI_ZERO_GRAD;
    size_t bytes = home               ? z->home_bytes
                   : grad             ? dsi_zero_acc_elements(z) * dsi_zero_acc_bytes(z)
                   : a <= z->n_states ? dsi_zero_moved(z, a) * 4
                                      : 0;
    *store = home;
    if ((home ? z->param_tier : z->state_tier) != DS_ZERO_DISK || !bytes) return 0;
    *name = home ? "parameters" : grad ? "gradients" : a ? dsi_zero_state_name(z, a - 1) : "master";
    return bytes;
}

/* How many tensors a store will have, and where its file ends: what each adds to that is `counted` for its class. Returns the
   bytes of their names. */
static size_t dsi_zero_store_tables(ds_zero *z, int which, bool shared, bool counted, ds_offload_desc *o) {
    size_t names = 0, block = dsi_round_up(o->block_size, DSI_ZERO_ALIGN);
    for (size_t a = 0; a <= DSI_ZERO_GRAD; a++) {
        const char *name;
        int store;
        size_t bytes = dsi_zero_disk_array(z, a, &store, &name), unit, end;
        if (!bytes || (store != which && !shared)) continue;
        unit = store && o->max_in_cpu / block ? block : DSI_ZERO_ALIGN;
        o->tensors++;
        end = dsi_round_up(dsi_round_up(o->file_bytes, unit) + bytes, unit);
        if (counted)
            dsi_zero_count(z,
                           a == DSI_ZERO_HOME   ? DS_ZERO_PARAMS
                           : a == DSI_ZERO_GRAD ? DS_ZERO_GRADS
                                                : DS_ZERO_STATES,
                           DS_ZERO_DISK, end - o->file_bytes);
        o->file_bytes = end;
        names += strlen(name) + 1;
    }
    return names;
}

/* What the stores will take. */
static ds_status dsi_zero_count_stores(ds_zero *z, const ds_config *c, ds_error *error) {
    for (int which = 0; which < 2; which++) {
        ds_offload_desc o;
        size_t spill, block, names;
        bool shared;
        ds_status status;
        if ((which ? z->param_tier : z->state_tier) != DS_ZERO_DISK) continue;
        if ((status = dsi_zero_store_desc(z, c, which, &o, &shared, error))) return status;
        if (which == 1 && shared) continue;
        block = dsi_round_up(o.block_size, DSI_ZERO_ALIGN);
        spill = o.max_in_cpu / block * block;
        z->spill_bytes += spill;
        dsi_zero_count(z, DS_ZERO_PARAMS, DS_ZERO_HOST, spill);
        names = dsi_zero_store_tables(z, which, shared, true, &o);
        dsi_zero_count(z, DS_ZERO_BUCKETS, DS_ZERO_HOST, ds_offload_memory(&o) + names - spill);
    }
    return DS_OK;
}

/* Elements of a lane: the largest own part, and where parts are small DSI_ZERO_CHUNK together, as far as there are so many; but
   no more than DSI_ZERO_LANE. From a GPU they come in chunks. */
static size_t dsi_zero_lane_size(const ds_zero *z) {
    size_t most = z->gpu ? DSI_ZERO_CHUNK : DSI_ZERO_LANE;
    size_t size = z->shard_total < DSI_ZERO_CHUNK ? z->shard_total : DSI_ZERO_CHUNK;
    for (size_t i = 0; i < z->n_train; i++) {
        size_t own = dsi_round_up(z->params[z->order[i]].own_count, DS_GRAIN);
        if (own > size) size = own;
    }
    return size < most ? size : most;
}

/* How many sets of swap buffers the pipelines want and buffer_count allows. */
static ds_status dsi_zero_size_sets(ds_zero *z, ds_error *error) {
    size_t wanted = 1u + z->pipeline_read + z->pipeline_write, each = 1 + z->n_states + (z->shard_half > 0);
    z->acc_disk = z->state_tier == DS_ZERO_DISK;
    if (z->acc_disk && z->set_limit != SIZE_MAX && z->pipeline_read && z->set_limit / each > wanted)
        wanted = z->set_limit / each < DSI_ZERO_SETS ? z->set_limit / each : DSI_ZERO_SETS;
    if (!z->acc_disk && z->param_tier != DS_ZERO_DISK) wanted = 0;
    if (z->acc_disk && z->set_limit < each)
        return dsi_fail(
            error, DS_ERR_INPUT,
            "zero_optimization.offload_optimizer.buffer_count: %zu, and this optimizer needs %zu (gradient, "
            "%zu states%s)",
            z->set_limit, each, z->n_states, z->shard_half ? ", fp32 master" : "");
    if (z->acc_disk && wanted > z->set_limit / each) {
        wanted = z->set_limit / each;
        dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 9,
                "zero_optimization.offload_optimizer.buffer_count: %zu buffers are %zu sets of %zu; a set for reading "
                "ahead, one for updating and one for writing behind would overlap all three",
                z->set_limit, wanted, each);
    }
    /* what is updated late decides what is gathered when: alike on ranks of more and of fewer sub-groups */
    z->in_step = z->acc_disk && z->pipeline_write && !z->by_norm && !z->clients ? 0 : z->n_train;
    z->n_sets = wanted < z->n_subs ? wanted : z->n_subs;
    if (z->n_sets == 1) z->pipeline_read = z->pipeline_write = false;
    if (z->acc_disk) z->lane_elements = dsi_zero_lane_size(z);
    for (size_t k = 0; k < z->n_train; k++) {
        const dsi_zero_param *p = &z->params[z->order[k]];
        if (p->whole && z->in_step <= k) z->in_step = k + 1;
        if (p->uncut) z->in_step = z->n_train;
    }
    return DS_OK;
}

/* The pool of parameters: no more and no larger buffers than there are parts to read. */
static ds_status dsi_zero_size_pool(ds_zero *z, ds_error *error) {
    size_t largest = 0, pieces = 0, most = dsi_mul(z->pool_elements, DS_DTYPE_SIZE(z->model_dtype));
    if (z->param_tier != DS_ZERO_DISK) return DS_OK;
    if (z->pool_count == 0 || z->pool_elements == 0)
        return dsi_fail(error, DS_ERR_INPUT, "zero_optimization.offload_param.buffer_%s: 0, and the device is nvme",
                        z->pool_count ? "size" : "count");
    for (size_t i = 0; i < z->n_params; i++)
        if (!z->params[i].whole && z->params[i].own_count * z->params[i].bytes_each > largest)
            largest = z->params[i].own_count * z->params[i].bytes_each;
    z->pool_bytes = dsi_round_up(most < largest ? most : largest, DSI_ZERO_ALIGN);
    for (size_t i = 0; i < z->n_params && z->pool_bytes; i++)
        if (!z->params[i].whole)
            pieces += dsi_round_up(z->params[i].own_count * z->params[i].bytes_each, z->pool_bytes) / z->pool_bytes;
    z->n_pool = pieces < z->pool_count ? pieces : z->pool_count;
    z->pool_buffers = (dsi_zero_buffer *)dsi_zero_table(z, z->n_pool, sizeof *z->pool_buffers);
    return z->n_pool && !z->pool_buffers ? dsi_fail(error, DS_ERR_MEMORY, "rank %d: no memory for a pool", z->rank)
                                         : DS_OK;
}

/* What the largest sparse table needs on a GPU. */
static void dsi_zero_size_rows(ds_zero *z) {
    for (size_t i = 0; i < z->n_params && z->gpu && z->world > 1; i++) {
        const dsi_zero_param *p = &z->params[i];
        ds_comm_sparse most;
        if (!p->sparse) continue;
        most = ds_comm_sparse_sizes(z->world, p->shape[0], p->numel / p->shape[0], z->wire, dsi_zero_rows_at_once(p));
        if (most.device_bytes > z->rows_bytes[0]) z->rows_bytes[0] = most.device_bytes;
        if (most.host_bytes > z->rows_bytes[1]) z->rows_bytes[1] = most.host_bytes;
    }
}

/* Where the sets' arrays and the lanes stand in z->swap: one behind the other, so that large pages can hold them. With
   `memory` NULL their bytes are only counted. */
static size_t dsi_zero_place_swap(ds_zero *z, char *memory) {
    size_t acc = dsi_round_up(z->sub_elements * dsi_zero_acc_bytes(z), DSI_ZERO_ALIGN), at = 0;
    for (size_t s = 0; s < z->n_sets; s++) {
        dsi_zero_set *set = &z->sets[s];
        for (size_t n = 0; n <= z->n_states && z->acc_disk; n++) {
            if (!dsi_zero_moved(z, n)) continue;
            if (memory) set->array[n] = (float *)(void *)(memory + at);
            at += z->sub_elements * sizeof(float);
        }
        if (memory && z->param_tier == DS_ZERO_DISK && z->sub_home_bytes) set->home = memory + at;
        if (z->param_tier == DS_ZERO_DISK) at += dsi_round_up(z->sub_home_bytes, DSI_ZERO_ALIGN);
        if (memory && z->acc_disk) set->grad = memory + at;
        if (z->acc_disk) at += acc;
    }
    for (size_t n = 0; n < DSI_ZERO_LANES && z->acc_disk; n++) {
        if (memory) z->lanes[n].memory = memory + at;
        at += dsi_round_up(z->lane_elements * dsi_zero_acc_bytes(z), DSI_ZERO_ALIGN);
    }
    return at;
}

static ds_status dsi_zero_memory(ds_zero *z, const ds_zero_desc *d, bool take, ds_error *error) {
    ds_zero_tier states = z->state_tier, gradients = dsi_zero_acc_tier(z), near = dsi_zero_near(z);
    size_t each = DS_DTYPE_SIZE(z->wire), small = 0, big = 0, n = 0;
    ds_status status = DS_OK;
    z->resident_bytes = 0;
    for (size_t i = 0; i < z->n_params; i++) {
        const dsi_zero_param *p = &z->params[i];
        if (p->whole && !p->external) z->resident_bytes += dsi_zero_room(p);
        if (p->whole && p->tensor != DSI_ZERO_NONE && p->numel > z->gather_bucket)
            big = z->gather_bucket;
        else if (p->whole && p->tensor != DSI_ZERO_NONE && dsi_zero_small(z, p))
            small += p->numel;
    }
    z->gather_pack_elements = small < z->gather_bucket ? small : z->gather_bucket;
    if (z->gather_pack_elements < big) z->gather_pack_elements = big;
    if (z->gather_pack_elements && z->gather_pack_elements < z->parts) z->gather_pack_elements = z->parts;
    if (z->parts == 1) z->gather_pack_elements = 0;
    z->arena_bytes = z->stage == 3 ? dsi_zero_arena_size(z, d) : 0;
    if ((status = dsi_zero_size_sets(z, error))) return status;
    if ((status = dsi_zero_size_pool(z, error))) return status;
    if ((status = dsi_zero_count_stores(z, d->config, error))) return status;
    if (z->acc_disk) gradients = DS_ZERO_DISK;
#define DSI_ZERO_ROW(memory, c, t, bytes, what)                                                                        \
    if (!status) {                                                                                                     \
        void *taken_ = NULL;                                                                                           \
        status = dsi_zero_memory_row(z, take, &taken_, c, t, bytes, what, error);                                      \
        memcpy(&(memory), &taken_, sizeof taken_);                                                                     \
    }
    DSI_ZERO_ROW(z->resident, DS_ZERO_PARAMS, DS_ZERO_DEVICE, z->resident_bytes, "whole parameters")
    DSI_ZERO_ROW(z->home, DS_ZERO_PARAMS, z->param_tier, z->home_bytes, "parts of parameters")
    for (n = 0; n <= z->n_states; n++) {
        const char *what = n ? "optimizer states" : "fp32 master weights";
        DSI_ZERO_ROW(z->kept[n], DS_ZERO_STATES, DS_ZERO_DEVICE, dsi_zero_kept(z, n) * 4, what)
        DSI_ZERO_ROW(z->array[n], DS_ZERO_STATES, states, dsi_zero_moved(z, n) * 4, what)
    }
    if (z->stage >= 2 || z->accumulation > 1 || z->acc_down) {
        DSI_ZERO_ROW(z->acc, DS_ZERO_GRADS, gradients, dsi_zero_acc_elements(z) * dsi_zero_acc_bytes(z),
                     "gradient accumulators")
    }
    if (z->stage <= 1) {
        DSI_ZERO_ROW(z->bucket_memory, DS_ZERO_GRADS, DS_ZERO_DEVICE, z->train_elements * each, "gradients")
    } else {
        DSI_ZERO_ROW(z->bucket_memory, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->n_slots * z->bucket_capacity * each,
                     "gradient buckets")
    }
    z->swap_bytes = dsi_zero_place_swap(z, NULL);
    DSI_ZERO_ROW(z->swap, DS_ZERO_BUCKETS, DS_ZERO_HOST, z->swap_bytes, "swap buffers")
    if (z->swap) (void)dsi_zero_place_swap(z, z->swap);
    DSI_ZERO_ROW(z->pool_memory, DS_ZERO_BUCKETS, DS_ZERO_HOST, z->n_pool * z->pool_bytes, "offload_param buffers")
    for (n = 0; n < z->n_pool && z->pool_memory; n++) z->pool_buffers[n].memory = z->pool_memory + n * z->pool_bytes;
    for (n = 0; n < z->n_stashes; n++) {
        char *stash = NULL;
        DSI_ZERO_ROW(stash, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, dsi_zero_stash_bytes(z), "gradient buffers")
        dsi_zero_stash_give(z, &stash);
    }
    DSI_ZERO_ROW(z->arena, DS_ZERO_GATHERED, DS_ZERO_DEVICE, z->arena_bytes, "gathered parameters")
    DSI_ZERO_ROW(z->gather_pack, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->gather_pack_elements * 4, "updated parameters")
    DSI_ZERO_ROW(z->scratch, DS_ZERO_BUCKETS, near, DSI_ZERO_CHUNK * sizeof(float), "scratch")
    for (n = 0; n < 2 && !status; n++) {
        dsi_zero_stage *stage = &z->stages[n];
        DSI_ZERO_ROW(stage->side[0], DS_ZERO_BUCKETS, DS_ZERO_HOST, z->side_bytes[0], "what passes to the host")
        DSI_ZERO_ROW(stage->side[1], DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->side_bytes[1], "what passes to the device")
        if (z->acc_down) {
            DSI_ZERO_ROW(stage->half, DS_ZERO_BUCKETS, DS_ZERO_HOST, DSI_ZERO_CHUNK * sizeof(float),
                         "gradients on their way to the host")
        }
    }
    if (dsi_zero_reduced_near(z)) {
        DSI_ZERO_ROW(z->norm_device, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->own_grains * sizeof(double), "norms")
    }
    if (z->gpu && (z->before_reduce != 1.0 || (z->stage <= 1 && dsi_zero_acc_rounds(z)))) {
        DSI_ZERO_ROW(z->part_device, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, DSI_ZERO_CHUNK * sizeof(float), "scratch")
    }
    n = dsi_zero_head(z);
    DSI_ZERO_ROW(z->norm_own, DS_ZERO_BOOKKEEPING, near, (n + z->own_grains) * sizeof(double), "norms")
    DSI_ZERO_ROW(z->norm_all, DS_ZERO_BOOKKEEPING, near,
                 (n * (size_t)z->world + z->total_grains + z->n_train * z->parts) * sizeof(double), "norms")
    DSI_ZERO_ROW(z->norm_tensor, DS_ZERO_BOOKKEEPING, near, dsi_zero_norm_room(z) * sizeof(double), "norms")
    for (n = 0; n < (z->one_bit && z->world > 1 ? ds_optim_error_buffers(z->optim) : 0); n++) {
        size_t count = 0, bytes;
        (void)ds_optim_error_buffer(z->optim, n, 0, &count);
        bytes = z->updates ? ds_comm_one_bit_scratch_on(z->world, count)
                           : ds_comm_one_bit_sizes(z->world, count).scratch_bytes;
        if (bytes > z->one_bit_bytes) z->one_bit_bytes = bytes;
    }
    DSI_ZERO_ROW(z->near, DS_ZERO_PARAMS, DS_ZERO_DEVICE, z->near_bytes, "the node's copy of parameters")
    if (z->quantized_values && z->parts > 1) {
        size_t values = dsi_round_up(z->quantized_values, DSI_ZERO_GROUP);
        z->quantized_bytes = dsi_mul(values, (z->parts + 1) * sizeof(float)) +
                             ds_comm_quantized_scratch(z->world, values, values / DSI_ZERO_GROUP);
        if (z->gpu) { /* what ds_comm_quantized_scratch_on adds */
            size_t nodes = dsi_zero_nodes(z) ? (size_t)z->world / z->near_parts : 1;
            z->quantized_bytes += dsi_mul(values, 2 * nodes * sizeof(float));
        }
    }
    DSI_ZERO_ROW(z->quantized, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->quantized_bytes, "quantized messages")
    dsi_zero_size_rows(z);
    DSI_ZERO_ROW(z->rows_device, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->rows_bytes[0], "rows of sparse gradients")
    DSI_ZERO_ROW(z->rows_host, DS_ZERO_BUCKETS, DS_ZERO_HOST, z->rows_bytes[1], "indices of sparse gradients")
    DSI_ZERO_ROW(z->one_bit_scratch, DS_ZERO_BUCKETS, z->updates ? DS_ZERO_DEVICE : near, z->one_bit_bytes,
                 "the compressed average")
    DSI_ZERO_ROW(z->losses, DS_ZERO_BOOKKEEPING, near, (size_t)z->accumulation * sizeof(double), "losses")
#undef DSI_ZERO_ROW
    return status;
}

/* The plan, its largest items, and the first tier that is too full (DS_ZERO_TIERS: none). */
typedef struct dsi_zero_plan {
    ds_zero_bytes bytes;
    const char *item[DS_ZERO_TIERS];
    size_t item_bytes[DS_ZERO_TIERS], total[DS_ZERO_TIERS];
    int full;
} dsi_zero_plan;

static ds_status dsi_zero_plan_one(const ds_zero_desc *desc, int rank, int world, dsi_zero_plan *plan,
                                   ds_error *error) {
    ds_zero *z = NULL;
    ds_status status = dsi_zero_prepare(desc, rank, world, &z, error);
    memset(plan, 0, sizeof *plan);
    if (!status) status = dsi_zero_memory(z, desc, false, error);
    if (!status) {
        plan->bytes = z->peak;
        memcpy(plan->item, z->item, sizeof plan->item);
        memcpy(plan->item_bytes, z->item_bytes, sizeof plan->item_bytes);
        plan->full = DS_ZERO_TIERS;
        for (int t = DS_ZERO_TIERS - 1; t >= 0; t--) {
            for (int c = 0; c < DS_ZERO_CLASSES; c++) plan->total[t] += z->peak.bytes[c][t];
            if (desc->limit[t] && plan->total[t] > desc->limit[t]) plan->full = t;
        }
    }
    if (z) z->arena_bytes = z->n_sets = 0;
    ds_zero_destroy(z);
    return status;
}

/* Changes to try, the one that costs least time first: smaller messages, more partitioning (all but free), messages of few
   tensors, a window that gathers parameters again, then slower tiers, each with the same. */
typedef struct dsi_zero_change {
    int stage, from, to; /* at least; rows of dsi_zero_sizes */
    ds_config_device states, params;
} dsi_zero_change;
static const dsi_zero_change dsi_zero_changes[] = {
    {0, 1, 1, DS_CONFIG_NONE, DS_CONFIG_NONE}, {1, 0, 0, DS_CONFIG_NONE, DS_CONFIG_NONE},
    {2, 0, 1, DS_CONFIG_NONE, DS_CONFIG_NONE}, {3, 1, 1, DS_CONFIG_NONE, DS_CONFIG_NONE},
    {2, 2, 3, DS_CONFIG_NONE, DS_CONFIG_NONE}, {3, 4, 9, DS_CONFIG_NONE, DS_CONFIG_NONE},
    {1, 0, 0, DS_CONFIG_CPU, DS_CONFIG_NONE},  {2, 1, 1, DS_CONFIG_CPU, DS_CONFIG_NONE},
    {3, 1, 9, DS_CONFIG_CPU, DS_CONFIG_NONE},  {3, 1, 9, DS_CONFIG_CPU, DS_CONFIG_CPU},
    {3, 1, 9, DS_CONFIG_NVME, DS_CONFIG_NONE}, {3, 1, 9, DS_CONFIG_NVME, DS_CONFIG_CPU},
    {3, 1, 9, DS_CONFIG_NVME, DS_CONFIG_NVME},
};
static const struct {
    size_t messages, window; /* at most: elements of buckets and buffers, and of what stage 3 holds gathered */
} dsi_zero_sizes[] = {
    {SIZE_MAX, SIZE_MAX}, {1000000, SIZE_MAX}, {100000, SIZE_MAX}, {1000, SIZE_MAX}, {1000000, 100000000},
    {1000000, 10000000},  {1000000, 1000000},  {1000000, 0},       {100000, 0},      {1000, 0},
};

/* A change in words, key by key; `leave` has a bit for each key to leave as it is. */
typedef struct dsi_zero_words {
    char *text;
    size_t room, at;
    unsigned leave;
} dsi_zero_words;
enum {
    DSI_ZERO_SAY_LIVE,
    DSI_ZERO_SAY_PERSIST,
    DSI_ZERO_SAY_PARAM_COUNT,
    DSI_ZERO_SAY_PARAM_SIZE,
    DSI_ZERO_SAY_IN_CPU,
    DSI_ZERO_SAY_COUNT,
    DSI_ZERO_SAY_SUBS,
    DSI_ZERO_SAY_GATHER,
    DSI_ZERO_SAY_REDUCE,
    DSI_ZERO_SAY_PARAMS,
    DSI_ZERO_SAY_STATES,
    DSI_ZERO_SAY_STAGE,
    DSI_ZERO_SAYS
};

/* True when the key is to be changed. */
static bool dsi_zero_say(dsi_zero_words *w, int which, const char *key, const char *value) {
    int n;
    if (w->leave >> which & 1u) return false;
    n = snprintf(w->text + w->at, w->room - w->at, "%s%s %s", w->at ? ", " : "", key, value);
    w->at = w->at + (size_t)n < w->room ? w->at + (size_t)n : w->room - 1;
    return true;
}

static void dsi_zero_say_size(dsi_zero_words *w, int which, const char *key, size_t *value, size_t most) {
    char digits[24];
    snprintf(digits, sizeof digits, "%zu", most);
    if (*value > most && dsi_zero_say(w, which, key, digits)) *value = most;
}

/* Makes a change to a copy of the configuration and says what it is. */
static void dsi_zero_try(ds_config *c, const dsi_zero_change *change, int size, dsi_zero_words *w) {
    static const char *const devices[] = {"none", "cpu", "nvme"};
    static const char stages[] = "0\0001\0002\0003";
    size_t messages = dsi_zero_sizes[size].messages, window = dsi_zero_sizes[size].window;
    ds_config_origin overlap = DS_CONFIG_DEFAULT, count = DS_CONFIG_DEFAULT;
    w->at = 0;
    w->text[0] = 0;
    (void)ds_config_where(c, "zero_optimization.overlap_comm", &overlap, NULL, NULL);
    (void)ds_config_where(c, "zero_optimization.offload_optimizer.buffer_count", &count, NULL, NULL);
    if (c->zero_optimization.stage < change->stage &&
        dsi_zero_say(w, DSI_ZERO_SAY_STAGE, "stage", &stages[2 * change->stage])) {
        c->zero_optimization.stage = change->stage;
        if (overlap != DS_CONFIG_GIVEN) c->zero_optimization.overlap_comm = change->stage == 3;
    }
    dsi_zero_say_size(w, DSI_ZERO_SAY_REDUCE, "reduce_bucket_size", &c->zero_optimization.reduce_bucket_size, messages);
    dsi_zero_say_size(w, DSI_ZERO_SAY_GATHER, "allgather_bucket_size", &c->zero_optimization.allgather_bucket_size,
                      messages);
    if (c->zero_optimization.stage == 3) {
        dsi_zero_say_size(w, DSI_ZERO_SAY_LIVE, "stage3_max_live_parameters",
                          &c->zero_optimization.stage3_max_live_parameters, window);
        dsi_zero_say_size(w, DSI_ZERO_SAY_PERSIST, "stage3_param_persistence_threshold",
                          &c->zero_optimization.stage3_param_persistence_threshold, window);
    }
    if (change->states != DS_CONFIG_NONE && c->zero_optimization.offload_optimizer.device != change->states &&
        dsi_zero_say(w, DSI_ZERO_SAY_STATES, "offload_optimizer.device", devices[change->states])) {
        c->zero_optimization.offload_optimizer.device = change->states;
        if (!c->zero_optimization.offload_optimizer.nvme_path) c->zero_optimization.offload_optimizer.nvme_path = ".";
    }
    if (c->zero_optimization.offload_optimizer.device == DS_CONFIG_NVME) {
        size_t *buffers = &c->zero_optimization.offload_optimizer.buffer_count;
        dsi_zero_say_size(w, DSI_ZERO_SAY_SUBS, "sub_group_size", &c->zero_optimization.sub_group_size, messages);
        if (size && count == DS_CONFIG_GIVEN && *buffers != 5 && /* one set of any optimizer's */
            dsi_zero_say(w, DSI_ZERO_SAY_COUNT, "offload_optimizer.buffer_count", "5"))
            *buffers = 5;
    }
    if (change->params != DS_CONFIG_NONE && c->zero_optimization.offload_param.device != change->params &&
        dsi_zero_say(w, DSI_ZERO_SAY_PARAMS, "offload_param.device", devices[change->params])) {
        c->zero_optimization.offload_param.device = change->params;
        if (!c->zero_optimization.offload_param.nvme_path) c->zero_optimization.offload_param.nvme_path = ".";
    }
    if (c->zero_optimization.offload_param.device == DS_CONFIG_NVME) {
        dsi_zero_say_size(w, DSI_ZERO_SAY_PARAM_SIZE, "offload_param.buffer_size",
                          &c->zero_optimization.offload_param.buffer_size, messages);
        if (messages < 1000000)
            dsi_zero_say_size(w, DSI_ZERO_SAY_PARAM_COUNT, "offload_param.buffer_count",
                              &c->zero_optimization.offload_param.buffer_count, 1);
        dsi_zero_say_size(w, DSI_ZERO_SAY_IN_CPU, "offload_param.max_in_cpu",
                          &c->zero_optimization.offload_param.max_in_cpu, window);
    }
}

static bool dsi_zero_fits(const ds_zero_desc *desc, int rank, int world, const dsi_zero_change *change, int size,
                          dsi_zero_words *w) {
    ds_config c = *desc->config;
    ds_zero_desc d = *desc;
    dsi_zero_plan plan;
    memset(&d.logger, 0, sizeof d.logger);
    d.config = &c;
    dsi_zero_try(&c, change, size, w);
    return dsi_zero_plan_one(&d, rank, world, &plan, NULL) == DS_OK && plan.full == DS_ZERO_TIERS;
}

/* The first change that fits, less the keys of it that need not change. */
static bool dsi_zero_advice(const ds_zero_desc *desc, int rank, int world, char *text, size_t room) {
    dsi_zero_words w = {text, room, 0, 0};
    for (size_t k = 0; k < sizeof dsi_zero_changes / sizeof dsi_zero_changes[0]; k++) {
        const dsi_zero_change *change = &dsi_zero_changes[k];
        for (int size = change->from; size <= change->to; size++) {
            if (!dsi_zero_fits(desc, rank, world, change, size, &w)) continue;
            for (unsigned before = ~0u; before != w.leave;) { /* a key may be idle once another one is out */
                before = w.leave;
                for (int key = 0; key < DSI_ZERO_SAYS; key++) {
                    unsigned with = w.leave;
                    w.leave |= 1u << key;
                    if (!dsi_zero_fits(desc, rank, world, change, size, &w)) w.leave = with;
                }
            }
            return dsi_zero_fits(desc, rank, world, change, size, &w);
        }
    }
    return false;
}

DS_API ds_status ds_zero_plan(const ds_zero_desc *desc, int rank, int world, ds_zero_bytes *out, ds_error *error) {
    static const char *const tiers[DS_ZERO_TIERS] = {"on the device", "in host memory", "on disk"};
    dsi_zero_plan plan;
    char advice[320];
    bool found;
    ds_status status;
    if (!out) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_zero_plan: out is NULL");
    status = dsi_zero_plan_one(desc, rank, world, &plan, error);
    *out = plan.bytes;
    if (status || plan.full == DS_ZERO_TIERS) return status;
    found = dsi_zero_advice(desc, rank, world, advice, sizeof advice);
    return dsi_fail(error, DS_ERR_MEMORY,
                    "rank %d: the plan needs %zu bytes of memory %s and the limit is %zu; its largest item is %s, %zu "
                    "bytes; %s%s%s",
                    rank, plan.total[plan.full], tiers[plan.full], desc->limit[plan.full], plan.item[plan.full],
                    plan.item_bytes[plan.full], found ? "zero_optimization with " : "", found ? advice : "",
                    found ? " would fit" : "no stage, offload or smaller size would make it fit");
}

static ds_status dsi_zero_open_stores(ds_zero *z, const ds_config *c, ds_error *error) {
    ds_status status = DS_OK;
    for (int which = 0; which < 2 && !status; which++) {
        ds_offload_desc o;
        bool shared;
        if ((which ? z->param_tier : z->state_tier) != DS_ZERO_DISK) continue;
        if ((status = dsi_zero_store_desc(z, c, which, &o, &shared, error))) return status;
        o.probe = z->probe;
        (void)dsi_zero_store_tables(z, which, shared, false, &o);
        if (which == 1 && shared)
            z->store[1] = z->store[0];
        else
            status = ds_offload_create(&o, &z->store[which], error);
    }
    for (size_t a = 0; a <= DSI_ZERO_GRAD && !status; a++) {
        const char *name;
        int which;
        size_t bytes = dsi_zero_disk_array(z, a, &which, &name);
        if (!bytes) continue;
        status = ds_offload_add(z->store[which], name, bytes,
                                which && z->spill_bytes ? DS_OFFLOAD_SPILL : DS_OFFLOAD_NVME, &z->disk[a]);
        if (status)
            return dsi_fail(error, status, "rank %d: %.460s", z->rank, ds_offload_error(z->store[which])->message);
    }
    return status;
}

/* fast_init: a set of swap buffers takes a piece of a parameter's values, and its writes are waited for when its turn comes
   again. False: this parameter has nothing on disk that is written this way.
   [cfg: zero_optimization.offload_optimizer.fast_init] */
static bool dsi_zero_fast(const ds_zero *z, const dsi_zero_param *p) {
    if (!z->fast_init || !z->n_sets || p->tensor == DSI_ZERO_NONE) return false;
    if (!dsi_zero_has_master(p)) return z->sets[0].home && !p->whole;
    return z->sets[0].array[0] && p->shard >= z->cut;
}
static size_t dsi_zero_fast_chunk(const ds_zero *z, const dsi_zero_param *p) {
    size_t chunk = z->sub_elements;
    if (!p->whole && !z->home && z->sub_home_bytes / p->bytes_each < chunk) chunk = z->sub_home_bytes / p->bytes_each;
    return chunk > DS_GRAIN ? chunk / DS_GRAIN * DS_GRAIN : chunk;
}
static ds_status dsi_zero_fast_start(ds_zero *z, dsi_zero_set *set, dsi_zero_param *p, size_t begin, size_t count,
                                     const float *values) {
    size_t in = begin - p->own_begin;
    bool master = dsi_zero_has_master(p);
    ds_status status;
    if (master) {
        status = ds_offload_start_write(z->store[0], z->disk[0], (p->shard + in - z->cut) * sizeof(float),
                                        count * sizeof(float), values, &set->ticket[0]);
        if (status) return dsi_zero_disk_failed(z, 0, status, "swap-out", p->name);
        set->of[set->tickets++] = 0;
    }
    if (p->whole || z->home) return dsi_zero_own_round(z, p, begin, count, values);
    if (master) (void)ds_optim_cast(set->home, p->dtype, values, DS_F32, count);
    status =
        ds_offload_start_write(z->store[1], z->disk[DSI_ZERO_HOME], p->home + in * p->bytes_each, count * p->bytes_each,
                               master ? (const void *)set->home : values, &set->ticket[set->tickets]);
    if (status) return dsi_zero_disk_failed(z, 1, status, "swap-out", p->name);
    set->of[set->tickets++] = 1;
    return DS_OK;
}

/* Values that are the device's or plain memory, in fp32 on the host. */
static void dsi_zero_widen(ds_zero *z, float *out, const char *from, ds_dtype dtype, size_t count) {
    char raw[4096];
    size_t each = DS_DTYPE_SIZE(dtype), room = sizeof raw / each;
    if (dtype == DS_F32) dsi_zero_copy_now(z, out, from, count * sizeof(float));
    for (size_t done = 0; dtype != DS_F32 && done < count; done += room) {
        size_t n = count - done < room ? count - done : room;
        dsi_zero_copy_now(z, raw, from + done * each, n * each);
        if (!z->dead) (void)ds_optim_cast(out + done, DS_F32, raw, dtype, n);
    }
}

/* Rank 0's initial values are everyone's. A value that comes from `init` is computed by each rank for what it holds. */
static ds_status dsi_zero_initialise(ds_zero *z, const ds_zero_param *from, dsi_zero_param *p) {
    size_t begin = p->whole ? 0 : p->own_begin, end = p->whole ? p->numel : p->own_begin + p->own_count;
    ds_status status = DS_OK;
    bool fast = dsi_zero_fast(z, p) && !(from->data && z->world > 1); /* broadcasts are in pieces alike on all ranks */
    size_t chunk = fast ? dsi_zero_fast_chunk(z, p) : DSI_ZERO_CHUNK;
    if (from->data && z->world > 1) begin = 0, end = p->numel;
    for (size_t at = begin; at < end && !status;) {
        dsi_zero_set *set = fast ? &z->sets[z->turn++ % z->n_sets] : NULL;
        size_t n = end - at < chunk ? end - at : chunk;
        size_t a = at > p->own_begin ? at : p->own_begin;
        size_t b = at + n < p->own_begin + p->own_count ? at + n : p->own_begin + p->own_count;
        float *values = !fast ? z->scratch : dsi_zero_has_master(p) ? set->array[0] : (float *)(void *)set->home;
        if (fast && (status = dsi_zero_set_wait(z, set))) return status;
        if (from->data) {
            dsi_zero_widen(z, values, (const char *)from->data + at * p->bytes_each, p->dtype, n);
            if (z->world > 1 && ds_comm_broadcast(z->comm, values, n, DS_F32, 0))
                return dsi_zero_comm_failed(z, "initial values", p->name);
        } else if (from->init)
            from->init(from->ctx, at, n, values);
        else
            memset(values, 0, n * sizeof *values);
        if (p->whole && dsi_zero_has_master(p)) status = dsi_zero_own_round(z, p, at, n, values);
        if (p->whole && !dsi_zero_has_master(p))
            dsi_zero_copy_now(z, p->full + at * sizeof(float), values, n * sizeof(float));
        if (status || z->dead) return dsi_zero_ended(z, status);
        if (a < b && fast)
            status = dsi_zero_fast_start(z, set, p, a, b - a, values + (a - at));
        else if (a < b && p->tensor != DSI_ZERO_NONE) {
            status = dsi_zero_own_io(z, true, p, -1, a, b - a, values + (a - at));
            if (!status && dsi_zero_has_master(p)) status = dsi_zero_own_round(z, p, a, b - a, values + (a - at));
        } else if (a < b && !p->whole) {
            (void)ds_optim_cast(values, p->dtype, values + (a - at), DS_F32, b - a);
            status = dsi_zero_own_raw(z, true, p, a, (b - a) * p->bytes_each, (char *)values);
        }
        at += n;
    }
    return status;
}

/* Keys that decide which calls the ranks make of each other or what comes out, so that they are alike on all ranks; beginnings
   of paths. What concerns one rank's own disk and memory is its own. */
static const char *const dsi_zero_alike[] = {
    "train_batch_size",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
    "bf16.",
    "fp16.",
    "communication_data_type",
    "fp32_allreduce",
    "data_types.",
    "optimizer.",
    "scheduler.",
    "zero_optimization.",
    "checkpoint.use_node_local_storage",
    "comms_logger.enabled",
    "comms_logger.prof_",
    "ds.reduce_at_boundary",
    "ds.world_invariant",
    "ds.native_reduce",
    "ds.gather_in_background",
};
static const char *const dsi_zero_own_keys[] = {"nvme_path",
                                                "pin_memory",
                                                "buffer_count",
                                                "buffer_size",
                                                "max_in_cpu",
                                                "pipeline_read",
                                                "fast_init",
                                                "ratio",
                                                "cpuadam_cores_perc",
                                                "elastic_checkpoint",
                                                "log_trace_cache_warnings"};

enum { DSI_ZERO_CELLS = 64 };
typedef struct dsi_zero_digest { /* keys lie in cells by their paths' hash, and within a cell in cells again, thrice */
    uint64_t words[2 * DSI_ZERO_CELLS]; /* of each cell's keys and values, at a level */
    size_t level, cell[3];              /* the cell that is looked into at the levels before this one */
    char path[160], value[160];         /* at level 3: the first key there */
} dsi_zero_digest;
static void dsi_zero_digest_row(void *ctx, const ds_config_row *row) {
    dsi_zero_digest *d = (dsi_zero_digest *)ctx;
    const char *last = strrchr(row->path, '.');
    bool alike = false;
    uint64_t hash;
    size_t cell[3];
    for (size_t i = 0; i < sizeof dsi_zero_alike / sizeof dsi_zero_alike[0]; i++)
        alike |= strncmp(row->path, dsi_zero_alike[i], strlen(dsi_zero_alike[i])) == 0;
    for (size_t i = 0; i < sizeof dsi_zero_own_keys / sizeof dsi_zero_own_keys[0] && last; i++)
        if (strcmp(last + 1, dsi_zero_own_keys[i]) == 0) return;
    if (!alike) return;
    hash = dsi_zero_hash(DSI_ZERO_HASH, row->path, strlen(row->path));
    for (size_t k = 0; k < 3; k++) cell[k] = (size_t)(hash >> 16 * (k + 1) & (DSI_ZERO_CELLS - 1));
    hash = dsi_zero_hash(hash, row->value, strlen(row->value));
    for (size_t k = 0; k < d->level; k++)
        if (cell[k] != d->cell[k]) return;
    if (d->level < 3) /* in any order: keys that are passed on stand in that of the file */
        d->words[cell[d->level]] += dsi_zero_hash(DSI_ZERO_HASH, &hash, sizeof hash);
    else if (!d->path[0]) {
        snprintf(d->path, sizeof d->path, "%s", row->path);
        snprintf(d->value, sizeof d->value, "%s", row->value);
    }
}

/* Of what the descriptor tells beside the configuration: parameters, groups' rates, an optimizer of the client's. */
static uint64_t dsi_zero_registered(const ds_zero *z, const ds_zero_desc *d, size_t n_groups) {
    const size_t others[] = {d->largest_fetch, dsi_zero_models(z), n_groups, d->schedule != NULL};
    const char *type = ds_optim_type_name(z->optim);
    uint64_t hash = dsi_zero_hash(dsi_zero_names(z), others, sizeof others);
    hash = dsi_zero_hash(hash, type, strlen(type));
    for (size_t i = 0; i < n_groups; i++) {
        const ds_optim_params *p = ds_optim_group_params(z->optim, i);
        const double rates[] = {p->lr + 0.0, p->weight_decay + 0.0}; /* no negative zero */
        hash = dsi_zero_hash(hash, rates, sizeof rates);
    }
    if (d->optimizer) {
        const ds_optim_table *t = d->optimizer;
        const size_t facts[] = {(size_t)t->work, t->state_count, t->compresses, t->measure != NULL,
                                t->local_gradients != NULL};
        hash = dsi_zero_hash(hash, facts, sizeof facts);
        for (size_t k = 0; k < t->state_count; k++)
            hash = dsi_zero_hash(hash, t->state_names[k], strlen(t->state_names[k]));
    }
    for (size_t i = 0; i < z->n_params; i++) {
        const dsi_zero_param *p = &z->params[i];
        const size_t facts[] = {
            p->numel, (size_t)p->dtype, p->tensor,     (size_t)p->contributions, p->group,
            p->whole, p->sparse,        p->replicated, (size_t)p->dims,          d->params[i].data != NULL};
        hash = dsi_zero_hash(hash, facts, sizeof facts);
        hash = dsi_zero_hash(hash, p->shape, (size_t)p->dims * sizeof p->shape[0]);
    }
    return hash;
}

/* Ranks that registered different parameters, or that differ in a setting that must be alike, would hang or train nonsense.
   Cells of keys are compared, then the cells in the first that differs, so that a rank can name the key. */
static ds_status dsi_zero_same_everywhere(ds_zero *z, const ds_zero_desc *d, ds_error *error) {
    const size_t n_groups = d->n_groups ? d->n_groups : 1;
    uint64_t registered[2];
    dsi_zero_digest digest;
    ds_status status = DS_OK;
    size_t differs;
    memset(&digest, 0, sizeof digest);
    for (; digest.level < 4; digest.level++) {
        memset(digest.words, 0, sizeof digest.words);
        if (ds_config_explain(d->config, dsi_zero_digest_row, &digest))
            return dsi_zero_no_memory(z, error, "a value of the configuration");
        if (digest.level == 3) break;
        if ((status = dsi_zero_compare(z, digest.words, DSI_ZERO_CELLS, &differs, error))) return status;
        if (digest.level == 0 && differs == DSI_ZERO_CELLS) break;
        digest.cell[digest.level] = differs;
    }
    if (digest.path[0])
        return dsi_fail(error, DS_ERR_INPUT, "rank %d: %s is %s here, and something else on another rank", z->rank,
                        digest.path, digest.value);
    if (digest.level)
        return dsi_fail(error, DS_ERR_INPUT, "rank %d: a key that another rank's configuration has is not in this one",
                        z->rank);
    registered[0] = dsi_zero_registered(z, d, n_groups);
    if ((status = dsi_zero_compare(z, registered, 1, &differs, error)) || differs == 1) return status;
    return dsi_fail(
        error, DS_ERR_INPUT,
        "rank %d: the ranks registered different parameters, groups, optimizers or descriptors (%zu parameters "
        "in %zu groups and %s here)",
        z->rank, z->n_params, n_groups, ds_optim_type_name(z->optim));
}

/* Before any rank waits for the others inside an engine's own communicator: whether all came this far. */
static ds_status dsi_zero_all_ready(const ds_zero_desc *d, ds_status status, ds_error *error) {
    int64_t first[2];
    if (!d || !d->comm) return status;
    first[0] = status ? ds_comm_rank(d->comm) : INT64_MAX;
    first[1] = status;
    if (ds_comm_all_reduce(d->comm, first, first, 2, DS_I64, DS_COMM_MIN))
        return dsi_fail(error, ds_comm_error(d->comm)->status, "%s", ds_comm_error(d->comm)->message);
    if (!status && first[0] != INT64_MAX)
        return dsi_fail(error, DS_ERR_PEER, "rank %d: rank %lld could not create its engine and says why",
                        ds_comm_rank(d->comm), (long long)first[0]);
    return status;
}

/* What the configuration says of communication, on the engine's own communicators. */
static ds_status dsi_zero_log_comm(ds_zero *z, const ds_config *c, ds_error *error) {
    ds_comm *const comms[] = {z->comm, z->node, z->across};
    ds_comm_desc desc;
    ds_status status;
    memset(&desc, 0, sizeof desc);
    (void)ds_wire_comm(c, &desc, error);
    if (!z->comm) return DS_OK;
    if (desc.backend && strcmp(desc.backend, ds_comm_backend(z->comm)) != 0)
        dsi_log(&z->logger, "ds_zero", DS_LOG_WARNING, 11, "optimizer.params.comm_backend_name is %s, the ranks use %s",
                desc.backend, ds_comm_backend(z->comm));
    for (int i = 0; i < 3 && desc.log.enabled; i++)
        if (comms[i] && (status = ds_comm_log_start(comms[i], &desc.log)) != DS_OK)
            return dsi_fail(error, status, "comms_logger.prof_ops: %s", ds_comm_error(comms[i])->message);
    return DS_OK;
}

/* The 1-bit optimizers' average must find the kernels when it is first called, many steps from here. */
static ds_status dsi_zero_check_average(ds_zero *z, ds_error *error) {
    ds_status status;
    if (!z->updates || !z->one_bit || !z->comm) return DS_OK;
    status = ds_comm_one_bit_all_reduce_on(z->comm, NULL, NULL, 0, NULL, NULL, NULL, NULL);
    if (!status) return DS_OK;
    return dsi_fail(error, status, "optimizer.type: %s on a GPU: %.400s", ds_optim_type_name(z->optim),
                    ds_comm_error(z->comm)->message);
}

static ds_status dsi_zero_build(ds_zero *z, const ds_zero_desc *d, ds_error *error) {
    ds_status status;
    size_t at = 0;
    if (d->comm && ds_comm_split(d->comm, 0, 0, &z->comm, error)) return error->status;
    if (z->comm && (status = dsi_zero_same_everywhere(z, d, error))) return status;
    for (size_t i = 0; i < z->n_params && z->world > 1 && !z->votes; i++)
        if (!z->params[i].whole && ds_comm_split(z->comm, 0, 0, &z->votes, error)) return error->status;
    if (dsi_zero_nodes(z)) {
        int size = (int)z->near_parts;
        if (ds_comm_split(z->comm, z->rank / size, z->rank, &z->node, error) ||
            ds_comm_split(z->comm, z->rank % size, z->rank, &z->across, error))
            return error->status;
    }
    z->shares = z->comm && !z->gpu && !z->allocator.alloc && strcmp(ds_comm_backend(z->comm), "shm") == 0;
    status = dsi_zero_log_comm(z, d->config, error);
    if (!status) status = dsi_zero_check_average(z, error);
    if (!status) status = dsi_zero_make_streams(z, error);
    if (!status) status = dsi_zero_memory(z, d, true, error);
    if (!status && z->dead) status = dsi_fail(error, z->error.status, "%s", z->error.message);
    if (!status) status = dsi_zero_open_stores(z, d->config, error);
    if (status) dsi_zero_fail(z, status, "%s", error->message);
    if (z->comm && (status = dsi_zero_agree(z, status, "create")))
        return dsi_fail(error, status, "%s", z->error.message);
    if (status) return status;
    for (size_t i = 0; i < z->n_params; i++) {
        dsi_zero_param *p = &z->params[i];
        if (p->whole && !p->external && p->numel) {
            p->full = z->resident + at;
            at += dsi_zero_room(p);
        }
        if (p->whole && p->slot) *p->slot = p->full;
        if ((status = dsi_zero_initialise(z, &d->params[i], p))) return dsi_fail(error, status, "%s", z->error.message);
    }
    for (size_t i = 0; i < z->n_sets; i++)
        if ((status = dsi_zero_set_wait(z, &z->sets[i]))) return dsi_fail(error, status, "%s", z->error.message);
    return DS_OK;
}

/* The resolved configuration, line by line, and what the engine holds. [cfg: dump_state] */
static ds_status dsi_zero_dump(ds_zero *z, const ds_config *c, ds_error *error) {
    static const char *const classes[DS_ZERO_CLASSES] = {"parameters", "gradients", "states",
                                                         "gathered",   "buckets",   "bookkeeping"};
    size_t bytes = ds_config_print(c, NULL, 0) + 1;
    char *text = (char *)dsi_alloc(&z->allocator, bytes), *line = text, *end;
    if (!text) return dsi_fail(error, DS_ERR_MEMORY, "rank %d: no memory for the text of dump_state", z->rank);
    ds_config_print(c, text, bytes);
    for (; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = 0;
        dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 8, "%s", line);
    }
    dsi_release(&z->allocator, text, bytes);
    dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 8,
            "stage %d, rank %d of %d, optimizer %s, %zu parameters (%zu trained, %zu elements), %zu buckets", z->stage,
            z->rank, z->world, ds_optim_type_name(z->optim), z->n_params, z->n_train, z->train_elements, z->n_buckets);
    for (int k = 0; k < DS_ZERO_CLASSES; k++)
        dsi_log(&z->logger, "ds_zero", DS_LOG_INFO, 8, "%s: %zu bytes on the device, %zu in host memory, %zu on disk",
                classes[k], z->now.bytes[k][DS_ZERO_DEVICE], z->now.bytes[k][DS_ZERO_HOST],
                z->now.bytes[k][DS_ZERO_DISK]);
    return DS_OK;
}

DS_API ds_status ds_zero_create_(const ds_zero_desc *desc, size_t desc_bytes, int version, ds_zero **out,
                                 ds_error *error) {
    ds_error local;
    ds_status status;
    ds_zero *z = NULL;
    int rank = 0, world = 1;
    memset(&local, 0, sizeof local);
    if (!error) error = &local;
    if (!out) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_zero_create: out is NULL");
    *out = NULL;
    if (version != DS_ZERO_VERSION || desc_bytes != sizeof(ds_zero_desc))
        return dsi_fail(error, DS_ERR_VERSION,
                        "ds_zero.h: header version %d with a descriptor of %zu bytes, implementation %d with %zu",
                        version, desc_bytes, DS_ZERO_VERSION, sizeof(ds_zero_desc));
    if (desc && desc->comm) rank = ds_comm_rank(desc->comm), world = ds_comm_world(desc->comm);
    status = dsi_zero_prepare(desc, rank, world, &z, error);
    if (!status && (desc->limit[0] || desc->limit[1] || desc->limit[2])) {
        ds_zero_bytes planned;
        status = ds_zero_plan(desc, rank, world, &planned, error);
    }
    status = dsi_zero_all_ready(desc, status, error);
    if (!status) status = dsi_zero_build(z, desc, error);
    if (!status && desc->config->dump_state && z->rank == 0 && z->logger.log)
        status = dsi_zero_dump(z, desc->config, error);
    if (status) {
        if (DS_IS_ENVIRONMENT(status)) dsi_zero_sign(error, rank);
        ds_zero_destroy(z);
        return status;
    }
    *out = z;
    return DS_OK;
}

DS_API void ds_zero_destroy(ds_zero *z) {
    ds_zero_tier states, gradients, near;
    if (!z) return;
    states = z->state_tier;
    gradients = dsi_zero_acc_tier(z);
    near = dsi_zero_near(z);
    (void)ds_zero_save_finish(z);
    if (z->comm) (void)ds_comm_wait(z->comm, UINT64_MAX);
    ds_comm_destroy(z->votes);
    ds_comm_destroy(z->across);
    ds_comm_destroy(z->node);
    for (size_t i = 0; i < z->n_params && z->params; i++) {
        dsi_zero_param *p = &z->params[i];
        dsi_zero_guard(z, p->loose ? p->full : NULL, dsi_zero_room(p), true);
        if (p->loose) dsi_zero_put(z, DS_ZERO_GATHERED, DS_ZERO_DEVICE, p->full, dsi_zero_room(p));
        if (p->slot && !p->external) *p->slot = NULL;
        dsi_zero_wait_give(z, p);
        dsi_zero_stash_give(z, &p->lent);
    }
    dsi_zero_wait_end(z);
    while (z->n_pooled)
        dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->pool[--z->n_pooled], dsi_zero_stash_bytes(z));
    dsi_zero_untable(z, z->pool, 2 * z->n_train + z->n_stashes, sizeof *z->pool);
    if (z->store[1] != z->store[0]) ds_offload_destroy(z->store[1]);
    ds_offload_destroy(z->store[0]);
    ds_optim_destroy(z->optim);
    dsi_zero_put(z, DS_ZERO_PARAMS, DS_ZERO_DEVICE, z->resident, z->resident_bytes);
    dsi_zero_put(z, DS_ZERO_PARAMS, z->param_tier, z->home, z->home_bytes);
    for (size_t n = 0; n <= DS_OPTIM_MAX_STATES; n++) {
        dsi_zero_put(z, DS_ZERO_STATES, DS_ZERO_DEVICE, z->kept[n], dsi_zero_kept(z, n) * 4);
        dsi_zero_put(z, DS_ZERO_STATES, states, z->array[n], dsi_zero_moved(z, n) * 4);
    }
    dsi_zero_put(z, DS_ZERO_GRADS, gradients, z->acc, dsi_zero_acc_elements(z) * dsi_zero_acc_bytes(z));
    dsi_zero_put(z, z->stage <= 1 ? DS_ZERO_GRADS : DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->bucket_memory,
                 (z->stage <= 1 ? z->train_elements : z->n_slots * z->bucket_capacity) * DS_DTYPE_SIZE(z->wire));
    dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_HOST, z->swap, z->swap_bytes);
    dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_HOST, z->pool_memory, z->n_pool * z->pool_bytes);
    dsi_zero_untable(z, z->pool_buffers, z->n_pool, sizeof *z->pool_buffers);
    dsi_zero_guard(z, z->arena, z->arena_bytes, true);
    dsi_zero_put(z, DS_ZERO_GATHERED, DS_ZERO_DEVICE, z->arena, z->arena_bytes);
    dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->gather_pack, z->gather_pack_elements * 4);
    dsi_zero_put(z, DS_ZERO_PARAMS, DS_ZERO_DEVICE, z->near, z->near_bytes);
    dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->quantized, z->quantized_bytes);
    dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->rows_device, z->rows_bytes[0]);
    dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_HOST, z->rows_host, z->rows_bytes[1]);
    dsi_zero_put(z, DS_ZERO_BUCKETS, z->updates ? DS_ZERO_DEVICE : near, z->one_bit_scratch, z->one_bit_bytes);
    dsi_zero_put(z, DS_ZERO_BUCKETS, near, z->scratch, DSI_ZERO_CHUNK * sizeof(float));
    for (size_t n = 0; n < 2; n++) {
        dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_HOST, z->stages[n].side[0], z->side_bytes[0]);
        dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->stages[n].side[1], z->side_bytes[1]);
        dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_HOST, z->stages[n].half, DSI_ZERO_CHUNK * sizeof(float));
    }
    dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->norm_device, z->own_grains * sizeof(double));
    dsi_zero_put(z, DS_ZERO_BUCKETS, DS_ZERO_DEVICE, z->part_device, DSI_ZERO_CHUNK * sizeof(float));
    ds_comm_destroy(z->comm); /* what is shared is given back before */
    dsi_zero_end_streams(z);
    {
        size_t n = dsi_zero_head(z);
        dsi_zero_untable(z, z->norm_own, n + z->own_grains, sizeof(double));
        dsi_zero_untable(z, z->norm_all, n * (size_t)z->world + z->total_grains + z->n_train * z->parts,
                         sizeof(double));
        dsi_zero_untable(z, z->norm_tensor, dsi_zero_norm_room(z), sizeof(double));
        dsi_zero_untable(z, z->losses, (size_t)z->accumulation, sizeof(double));
    }
    for (int k = 0; k < 3; k++) dsi_zero_untable(z, z->traces[k].fetched, z->traces[k].room, sizeof(uint32_t));
    dsi_zero_untable(z, z->spanned, dsi_zero_models(z), sizeof *z->spanned);
    dsi_zero_untable(z, z->agree, (size_t)z->world, sizeof(ds_error));
    dsi_zero_untable(z, z->cursors, (size_t)z->world, sizeof(size_t));
    dsi_zero_untable(z, z->counts, dsi_mul((size_t)z->world, z->n_slots + 1), sizeof(size_t));
    dsi_zero_untable(z, z->slices, z->n_train + 1, sizeof *z->slices);
    dsi_zero_untable(z, z->subs, z->n_subs, sizeof *z->subs);
    dsi_zero_untable(z, z->blocks, z->n_params, sizeof *z->blocks);
    dsi_zero_untable(z, z->arrival, z->n_train, sizeof *z->arrival);
    dsi_zero_untable(z, z->buckets, z->n_train, sizeof *z->buckets);
    dsi_zero_untable(z, z->piece_offset, dsi_mul(z->n_train, z->parts), sizeof(size_t));
    dsi_zero_untable(z, z->bucket_order, z->n_train, sizeof(size_t));
    dsi_zero_untable(z, z->order, z->n_train, sizeof(size_t));
    dsi_zero_untable(z, z->part_counts, dsi_mul(z->n_params, (size_t)z->world), sizeof(size_t));
    dsi_zero_untable(z, z->near_counts, dsi_mul(z->n_params, z->near_parts), sizeof(size_t));
    dsi_zero_untable(z, z->names, z->names_bytes, 1);
    dsi_zero_untable(z, z->params, z->n_params, sizeof *z->params);
    dsi_release(&z->allocator, z->client, z->client_bytes);
    {
        ds_allocator allocator = z->allocator;
        dsi_release(&allocator, z, sizeof *z);
    }
}

DS_API const ds_error *ds_zero_error(const ds_zero *z) {
    static const ds_error none = {DS_ERR_ARGUMENT, "ds_zero: the engine is NULL"};
    return z ? &z->error : &none;
}
DS_API int64_t ds_zero_steps(const ds_zero *z) {
    return z ? z->step : 0;
}
DS_API int64_t ds_zero_samples(const ds_zero *z) {
    return z ? z->samples : 0;
}
DS_API int ds_zero_rank(const ds_zero *z) {
    return z ? z->rank : 0;
}
DS_API int ds_zero_world(const ds_zero *z) {
    return z ? z->world : 0;
}

DS_API ds_status ds_zero_comm_summary(ds_zero *z, void (*line)(void *ctx, const char *text), void *ctx) {
    ds_comm *comms[3];
    if (!z) return DS_ERR_ARGUMENT;
    if (!line) return dsi_zero_fail(z, DS_ERR_ARGUMENT, "ds_zero_comm_summary: line is NULL");
    comms[0] = z->comm;
    comms[1] = z->node;
    comms[2] = z->across;
    for (int i = 0; i < 3; i++)
        if (comms[i] && ds_comm_log_summary(comms[i], true, line, ctx))
            return dsi_zero_failed_on(z, comms[i], "comms log", NULL);
    return DS_OK;
}
DS_API ds_status ds_zero_get_stats(const ds_zero *z, ds_zero_stats *out) {
    if (!out) return DS_ERR_ARGUMENT;
    memset(out, 0, sizeof *out);
    if (!z) return DS_ERR_ARGUMENT;
    out->now = z->now;
    out->peak = z->peak;
    out->gathered_elements_peak = z->live_peak;
    out->fetches = z->fetches;
    out->fetches_waited = z->fetches_waited;
    out->buckets = z->n_buckets;
    out->allocations = z->allocations;
    for (int i = 0; i < 2; i++) {
        ds_offload_stats one;
        if (!z->store[i] || (i == 1 && z->store[1] == z->store[0])) continue;
        ds_offload_get_stats(z->store[i], &one);
        if (i == 0 || !z->store[0])
            out->swap = one;
        else {
            out->swap.reads += one.reads;
            out->swap.writes += one.writes;
            out->swap.requests += one.requests;
            out->swap.bytes_read += one.bytes_read;
            out->swap.bytes_written += one.bytes_written;
            out->swap.file_bytes += one.file_bytes;
            out->swap.host_bytes += one.host_bytes;
            out->swap.host_peak += one.host_peak;
        }
    }
    if (z->comm) ds_comm_get_stats(z->comm, &out->comm);
    if (z->node) ds_comm_get_stats(z->node, &out->node);
    if (z->across) ds_comm_get_stats(z->across, &out->across);
    return DS_OK;
}

// >>wiring

/* Every key that this header, its wiring and the leaves act on. A key that is not here stops a program that trains. */
static const char *const dsi_zero_claimed[] = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "prescale_gradients",
    "gradient_predivide_factor",
    "communication_data_type",
    "fp32_allreduce",
    "data_types.grad_accum_dtype",
    "sparse_gradients",
    "ds.reduce_at_boundary",
    "ds.native_reduce",
    "ds.world_invariant",
    "ds.gather_in_background",
    "ds.save_in_background",
    "ds.keep_last",
    "optimizer.type",
    "optimizer.params",
    "scheduler.type",
    "scheduler.params",
    "steps_per_print",
    "wall_clock_breakdown",
    "dump_state",
    "fp16.enabled",
    "fp16.loss_scale",
    "fp16.initial_scale_power",
    "fp16.loss_scale_window",
    "fp16.hysteresis",
    "fp16.consecutive_hysteresis",
    "fp16.min_loss_scale",
    "bf16.enabled",
    "zero_optimization.stage",
    "zero_optimization.allgather_partitions",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_scatter",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.contiguous_gradients",
    "zero_optimization.load_from_fp32_weights",
    "zero_optimization.ignore_unused_parameters",
    "zero_optimization.elastic_checkpoint",
    "zero_optimization.round_robin_gradients",
    "zero_optimization.sub_group_size",
    "zero_optimization.grad_hooks",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save",
    "zero_optimization.zero_hpz_partition_size",
    "zero_optimization.zero_quantized_weights",
    "zero_optimization.zero_quantized_gradients",
    "zero_optimization.offload_optimizer.device",
    "zero_optimization.offload_optimizer.nvme_path",
    "zero_optimization.offload_optimizer.pin_memory",
    "zero_optimization.offload_optimizer.buffer_count",
    "zero_optimization.offload_optimizer.fast_init",
    "zero_optimization.offload_optimizer.ratio",
    "zero_optimization.offload_optimizer.pipeline_read",
    "zero_optimization.offload_optimizer.pipeline_write",
    "zero_optimization.offload_param.device",
    "zero_optimization.offload_param.nvme_path",
    "zero_optimization.offload_param.pin_memory",
    "zero_optimization.offload_param.buffer_count",
    "zero_optimization.offload_param.buffer_size",
    "zero_optimization.offload_param.max_in_cpu",
    "zero_optimization.cpu_offload",
    "zero_optimization.cpu_offload_param",
    "zero_optimization.cpu_offload_use_pin_memory",
    "aio.block_size",
    "aio.queue_depth",
    "aio.thread_count",
    "aio.intra_op_parallelism",
    "aio.single_submit",
    "aio.overlap_events",
    "checkpoint.tag_validation",
    "checkpoint.load_universal",
    "checkpoint.use_node_local_storage",
    "tensorboard.enabled",
    "tensorboard.output_path",
    "tensorboard.job_name",
    "csv_monitor.enabled",
    "csv_monitor.output_path",
    "csv_monitor.job_name",
    "comms_logger.enabled",
    "comms_logger.verbose",
    "comms_logger.prof_all",
    "comms_logger.prof_ops",
    "comms_logger.debug",
};

DS_API const char *const *ds_zero_claims(size_t *n) {
    if (n) *n = sizeof dsi_zero_claimed / sizeof dsi_zero_claimed[0];
    return dsi_zero_claimed;
}

typedef struct dsi_zero_unclaimed {
    char *text;
    size_t room, length, count;
} dsi_zero_unclaimed;

static void dsi_zero_unclaimed_key(void *ctx, const char *path, int line, int column) {
    dsi_zero_unclaimed *u = (dsi_zero_unclaimed *)ctx;
    if (u->length >= u->room) return;
    u->length += (size_t)snprintf(u->text + u->length, u->room - u->length, "%s%s (%d:%d)", u->count++ ? ", " : "",
                                  path, line, column);
}

DS_API ds_status ds_zero_unclaimed(const ds_config *config, const char *const *extra, size_t n_extra, ds_error *error) {
    const char *claims[256];
    char text[400];
    size_t n;
    const char *const *own = ds_zero_claims(&n);
    dsi_zero_unclaimed u;
    memset(&u, 0, sizeof u);
    u.text = text;
    u.room = sizeof text;
    if (!config || (!extra && n_extra))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_zero_unclaimed: %s is NULL", config ? "extra" : "config");
    if (n_extra > 256 - n)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_zero_unclaimed: %zu extra keys, at most %zu", n_extra, 256 - n);
    memcpy(claims, own, n * sizeof *claims);
    if (n_extra) memcpy(claims + n, extra, n_extra * sizeof *claims);
    if (ds_config_unclaimed(config, claims, n + n_extra, dsi_zero_unclaimed_key, &u) == 0) return DS_OK;
    return dsi_fail(error, DS_ERR_UNSUPPORTED,
                    "the configuration gives keys that nothing in this program acts on: %s; take them out", text);
}

static ds_status dsi_zero_wire_null(const char *name, const ds_config *c, ds_error *error) {
    return dsi_fail(error, DS_ERR_ARGUMENT, "ds_wire_%s: %s is NULL", name, c ? "the descriptor" : "config");
}
DS_API ds_status ds_wire_comm(const ds_config *c, ds_comm_desc *desc, ds_error *error) {
    if (!c || !desc) return dsi_zero_wire_null("comm", c, error);
    if (dsi_zero_given(c, "optimizer.params.comm_backend_name")) desc->backend = c->optimizer.params.comm_backend_name;
    desc->cuda_aware = c->optimizer.params.cuda_aware;
    desc->log.enabled = c->comms_logger.enabled;
    desc->log.verbose = c->comms_logger.verbose;
    desc->log.debug = c->comms_logger.debug;
    desc->log.only = !c->comms_logger.prof_all;
    desc->log.operations = c->comms_logger.prof_ops.at;
    desc->log.operation_count = (int)c->comms_logger.prof_ops.count;
    return DS_OK;
}

DS_API ds_status ds_wire_optim(const ds_config *c, const ds_optim_table *client, ds_optim_desc *desc,
                               ds_optim_params *p, ds_error *error) {
    const char *type;
    if (!c || !desc || !p) return dsi_zero_wire_null("optim", c, error);
    type = c->optimizer.type;
    if (client) {
        desc->tables = client;
        desc->table_count = 1;
        desc->type = client->name;
        type = NULL;
    } else {
        if (!type)
            return dsi_fail(error, DS_ERR_INPUT,
                            "optimizer.type: missing, and the program supplies no optimizer of its own");
        desc->type = type;
    }
    if (ds_optim_params_default(type ? type : "AdamW", p)) { /* ds_optim_create has the list of names */
        ds_optim_desc unknown = *desc;
        ds_optim *none = NULL;
        (void)ds_optim_params_default("AdamW", p);
        unknown.groups = p;
        unknown.group_count = 1;
        unknown.tensor_count = 0;
        return ds_optim_create(&unknown, &none, error);
    }
#define DSI_ZERO_TAKE(key, field)                                                                                      \
    if (dsi_zero_given(c, "optimizer.params." #key)) p->field = c->optimizer.params.key;
    DSI_ZERO_TAKE(lr, lr)
    DSI_ZERO_TAKE(eps, eps)
    DSI_ZERO_TAKE(weight_decay, weight_decay)
    DSI_ZERO_TAKE(momentum, momentum)
    DSI_ZERO_TAKE(dampening, dampening)
    DSI_ZERO_TAKE(nesterov, nesterov)
    DSI_ZERO_TAKE(torch_adam, torch_adam)
    DSI_ZERO_TAKE(adam_w_mode, adam_w_mode)
    DSI_ZERO_TAKE(bias_correction, bias_correction)
    DSI_ZERO_TAKE(max_coeff, max_coeff)
    DSI_ZERO_TAKE(min_coeff, min_coeff)
    DSI_ZERO_TAKE(max_grad_norm, max_grad_norm)
    DSI_ZERO_TAKE(eps_inside_sqrt, eps_inside_sqrt)
    DSI_ZERO_TAKE(freeze_step, freeze_step)
    DSI_ZERO_TAKE(var_freeze_step, var_freeze_step)
    DSI_ZERO_TAKE(var_update_scaler, var_update_scaler)
    DSI_ZERO_TAKE(local_step_scaler, local_step_scaler)
    DSI_ZERO_TAKE(local_step_clipper, local_step_clipper)
    DSI_ZERO_TAKE(coeff_beta, coeff_beta)
    DSI_ZERO_TAKE(factor_max, factor_max)
    DSI_ZERO_TAKE(factor_min, factor_min)
    DSI_ZERO_TAKE(factor_threshold, factor_threshold)
#undef DSI_ZERO_TAKE
    if (c->optimizer.params.amsgrad && !client)
        return dsi_fail(
            error, DS_ERR_UNSUPPORTED,
            "optimizer.params.amsgrad: expected false, as no optimizer of ds (or DeepSpeed's own) keeps the "
            "maximum of the squares; got true");
    if (type && (type[0] | 32) == 'm') { /* where the file has null, ds_config has put lr */
        p->lr = c->optimizer.params.muon_lr;
        p->adam_lr = c->optimizer.params.adam_lr;
    }
    if (dsi_zero_given(c, "optimizer.params.ns_steps")) p->ns_steps = (int)c->optimizer.params.ns_steps;
    if (dsi_zero_given(c, "optimizer.params.betas")) {
        p->beta1 = c->optimizer.params.betas[0];
        p->beta2 = c->optimizer.params.betas[1];
    }
    return DS_OK;
}

DS_API ds_status ds_wire_schedule(const ds_config *c, ds_schedule *s, ds_error *error) {
    ds_status status;
    if (!c || !s) return dsi_zero_wire_null("schedule", c, error);
    memset(s, 0, sizeof *s);
    if (!c->scheduler.type) return DS_OK;
    if ((status = ds_schedule_default(c->scheduler.type, s, error))) return status;
    s->warmup_min_lr = c->scheduler.params.warmup_min_lr;
    /* 0 may be null, for which ds_config has put the optimizer's rate where the file has an optimizer */
    if (dsi_zero_given(c, "scheduler.params.warmup_max_lr") &&
        (c->scheduler.params.warmup_max_lr > 0 || c->optimizer.type || s->kind != DS_SCHEDULE_WARMUP))
        s->warmup_max_lr = c->scheduler.params.warmup_max_lr;
    s->warmup_num_steps = c->scheduler.params.warmup_num_steps;
    s->warmup_linear = strcmp(c->scheduler.params.warmup_type, "linear") == 0;
    s->total_num_steps = c->scheduler.params.total_num_steps;
    s->warmup_min_ratio = c->scheduler.params.warmup_min_ratio;
    s->cos_min_ratio = c->scheduler.params.cos_min_ratio;
    s->cycle_min_lr = c->scheduler.params.cycle_min_lr;
    s->cycle_max_lr = c->scheduler.params.cycle_max_lr;
    s->decay_lr_rate = c->scheduler.params.decay_lr_rate;
    s->cycle_first_step_size = c->scheduler.params.cycle_first_step_size;
    s->cycle_second_step_size = c->scheduler.params.cycle_second_step_size;
    s->cycle_symmetric = false; /* ds_config has filled in the second half */
    s->cycle_first_stair_count = c->scheduler.params.cycle_first_stair_count;
    s->cycle_second_stair_count = c->scheduler.params.cycle_second_stair_count;
    s->decay_step_size = c->scheduler.params.decay_step_size;
    s->cycle_momentum = c->scheduler.params.cycle_momentum;
    s->cycle_min_mom = c->scheduler.params.cycle_min_mom;
    s->cycle_max_mom = c->scheduler.params.cycle_max_mom;
    s->decay_mom_rate = c->scheduler.params.decay_mom_rate;
    s->lr_range_test_min_lr = c->scheduler.params.lr_range_test_min_lr;
    s->lr_range_test_step_size = c->scheduler.params.lr_range_test_step_size;
    s->lr_range_test_step_rate = c->scheduler.params.lr_range_test_step_rate;
    s->lr_range_test_staircase = c->scheduler.params.lr_range_test_staircase;
    s->resumed = c->scheduler.params.last_batch_iteration + 1;
    return ds_schedule_check(s, error);
}

DS_API ds_status ds_wire_loss_scaler(const ds_config *c, ds_loss_scaler_params *p, ds_error *error) {
    if (!c || !p) return dsi_zero_wire_null("loss_scaler", c, error);
    ds_loss_scaler_params_default(p);
    p->dynamic = c->fp16.loss_scale == 0.0;
    p->initial = p->dynamic ? ldexp(1.0, (int)c->fp16.initial_scale_power) : c->fp16.loss_scale;
    p->window = (int64_t)c->fp16.loss_scale_window;
    p->hysteresis = (int64_t)c->fp16.hysteresis;
    p->consecutive_hysteresis = c->fp16.consecutive_hysteresis;
    p->minimum = (double)c->fp16.min_loss_scale;
    return DS_OK;
}

DS_API ds_status ds_wire_offload(const ds_config *c, bool parameters, ds_offload_desc *d, ds_error *error) {
    ds_config_device device;
    if (!c || !d) return dsi_zero_wire_null("offload", c, error);
    device = parameters ? c->zero_optimization.offload_param.device : c->zero_optimization.offload_optimizer.device;
    d->folder =
        parameters ? c->zero_optimization.offload_param.nvme_path : c->zero_optimization.offload_optimizer.nvme_path;
    d->pin_memory =
        parameters ? c->zero_optimization.offload_param.pin_memory : c->zero_optimization.offload_optimizer.pin_memory;
    if (device == DS_CONFIG_NVME && !d->folder)
        return dsi_fail(error, DS_ERR_INPUT, "zero_optimization.%s.nvme_path: missing, and the device is nvme",
                        parameters ? "offload_param" : "offload_optimizer");
    d->block_size = c->aio.block_size;
    d->queue_depth = (unsigned)c->aio.queue_depth;
    d->thread_count = (unsigned)c->aio.intra_op_parallelism; /* resolved: thread_count where it is not given */
    d->single_submit = c->aio.single_submit;
    d->no_overlap = !c->aio.overlap_events;
    return DS_OK;
}

DS_API ds_status ds_wire_checkpoint(const ds_config *c, ds_checkpoint_desc *d, ds_error *error) {
    const char *tag;
    if (!c || !d) return dsi_zero_wire_null("checkpoint", c, error);
    tag = c->checkpoint.tag_validation;
    d->tag_validation = !tag ? 0 : (tag[0] | 32) == 'i' ? 1 : (tag[0] | 32) == 'f' ? 2 : 0;
    d->node_local = c->checkpoint.use_node_local_storage;
    d->load_universal = c->checkpoint.load_universal;
    d->background = c->ds.save_in_background;
    d->keep_last = (int)c->ds.keep_last;
    return DS_OK;
}

DS_API ds_status ds_wire_monitor(const ds_config *c, ds_monitor_desc *d, ds_error *error) {
    if (!c || !d) return dsi_zero_wire_null("monitor", c, error);
    d->tensorboard.enabled = c->tensorboard.enabled;
    d->tensorboard.output_path = c->tensorboard.output_path;
    d->tensorboard.job_name = c->tensorboard.job_name;
    d->csv.enabled = c->csv_monitor.enabled;
    d->csv.output_path = c->csv_monitor.output_path;
    d->csv.job_name = c->csv_monitor.job_name;
    return DS_OK;
}

#undef DSI_ZERO_ASAN
#undef DSI_ZERO_HASH
#undef DSI_ZERO_ALIGN
#undef DSI_ZERO_HUGE
#undef DSI_ZERO_APART
#undef DSI_ZERO_CHUNK
#undef DSI_ZERO_STAGE
#undef DSI_ZERO_DIRECT
#undef DSI_ZERO_LATER
#undef DSI_ZERO_NONE
#undef DSI_ZERO_GROUP
#undef DSI_ZERO_HOME
#undef DSI_ZERO_GRAD
#undef DSI_ZERO_LANES
#undef DSI_ZERO_LANE
#undef DSI_ZERO_SETS
#undef DSI_ZERO_SAVED
#undef DSI_ZERO_COUNTERS
#endif /* DS_ZERO_IMPL_DONE */

/*
  This software is available under two licences; choose whichever you prefer.

  ------------------------------------------------------------------------------
  ALTERNATIVE A - MIT No Attribution (MIT-0)

  Copyright (c) 2026 the ds authors

  Permission is hereby granted, free of charge, to any person obtaining a copy of
  this software and associated documentation files (the "Software"), to deal in
  the Software without restriction, including without limitation the rights to
  use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies
  of the Software, and to permit persons to whom the Software is furnished to do
  so.

  THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
  IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
  FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
  AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
  LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
  OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
  SOFTWARE.

  ------------------------------------------------------------------------------
  ALTERNATIVE B - Public domain (www.unlicense.org)

  This is free and unencumbered software released into the public domain.

  Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
  software, either in source code form or as a compiled binary, for any purpose,
  commercial or non-commercial, and by any means.

  In jurisdictions that recognize copyright laws, the author or authors of this
  software dedicate any and all copyright interest in the software to the public
  domain. We make this dedication for the benefit of the public at large and to
  the detriment of our heirs and successors. We intend this dedication to be an
  overt act of relinquishment in perpetuity of all present and future rights to
  this software under copyright law.

  THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
  IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
  FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
  AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN
  ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION
  WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
*/
