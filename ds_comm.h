/* ds_comm.h - v0.1.0 - collectives between ranks: threads, shared memory, MPI, NCCL - public domain or MIT-0 */
/*
DO THIS

    #define DS_COMM_IMPLEMENTATION
    #include "ds_comm.h"

in one C or C++ file, link with -lpthread -lm, and include it plainly elsewhere. MPI is compiled in where that file is
built with mpicc and -DDS_COMM_USE_MPI=1; NCCL is opened at run time; nothing else is needed (an older glibc: -ldl).

SYNOPSIS (every rank runs this; `ds run -n 2`, torchrun, mpirun and srun all say who is who)

    ds_error error = {DS_OK, ""};
    ds_comm_desc desc = {0};                            // backend "auto", ranks from the launcher's variables
    ds_comm *comm = NULL;
    float gradients[1000];
    if (ds_comm_create(&desc, &comm, &error)) return fail(error.message);
    fill(gradients, ds_comm_rank(comm));
    if (ds_comm_all_reduce(comm, gradients, gradients, 1000, DS_F32, DS_COMM_AVERAGE))
        return fail(ds_comm_error(comm)->message);      // names the rank, the call and what went wrong
    ds_comm_destroy(comm);

OPTIONS (macros of the implementing file)

    DS_COMM_USE_MPI    0    1: includes <mpi.h> and builds the backend "mpi"
    DS_COMM_SIMD       1    0: leaves the code for AVX2 out, which is chosen at run time; the bits are the same
    DS_STATIC          -    defined: every function is private to the file

WHAT IT DOES NOT DO. It starts no processes (ds run, mpirun, srun, torchrun do). It does not encrypt or authenticate:
"shm" refuses other users, a network is as safe as its MPI. It never retries a failed communicator: training restarts
from a checkpoint. send and receive match in order, without wildcards. The compressed calls and the one for tables with few
filled rows take host memory only. It reads no hostfile: mpirun and srun start ranks on several machines.

CONCEPTS

A communicator is an ordered set of ranks 0..world-1. Every rank makes the same collective calls in the same order with
the same count, type, operation, root and ds_comm_tag. Counts are elements. A process may have any number of communicators;
`ds_comm_split` makes one from another. Names of backends:

    self      one rank; every call is a copy
    threads   ranks are threads of one process (ds_comm_threads_create); pointers are read directly
    shm       processes of one user on one Linux machine: an anonymous memory file, handed over a local socket
    mpi       whatever MPI reaches; non-blocking point-to-point messages, polled
    nccl      GPUs: grouped ncclSend and ncclRecv of a libnccl (2.14 or later) that is opened at run time
    auto      one rank: self. desc.device and a libnccl: nccl. Started by mpirun and MPI compiled in: mpi. All ranks on
              this machine: shm. Else an error that says why each was refused; the same goes to the log
    or your own messages: desc.transport

Sums are the same bits on every backend. A reducing call is an all-to-all of pieces, then a sum on the rank that owns the
piece, then (all_reduce) a gather of the pieces. The sum of W inputs is one binary tree over rank numbers: neighbours are
added level by level, ((0+1)+(2+3))+..., and an odd one out moves up unchanged; for 5 ranks ((0+1)+(2+3))+4. fp16, bf16
and fp32 are added in fp32, fp64 in fp64, each rounded once to the output type; integers wrap around and are exact.
average divides the sum by the number of ranks before that rounding. min and max give NaN when any input is NaN.
A call with `native` set leaves a sum to MPI or NCCL, in their order: other bits, and not the same on other backends.
Beside these there are a 1-bit all-reduce, block-quantized collectives and one for tables with few filled rows; the
first two trade bits for bytes, and their errors are stated with them.

STEP BY STEP

1. Fill a ds_comm_desc; zeroes are right for most. Rank and world come from it or from the launcher, see
   ds_comm_resolve_env for the precedence.
2. Memory from ds_comm_alloc is read by the peers in place; under "shm" anything else passes through a staging buffer
   (one more copy). Both work everywhere.
3. Call collectives, or fill a ds_comm_call and ds_comm_start it; then ds_comm_wait. Calls of one communicator run in
   the order they were made, started or not. Started ones run on a thread that the first start creates.
4. ds_comm_destroy. A rank that leaves while others still wait for it makes their calls fail, not hang.

MEMORY. Made at create: under "shm" desc.stage_bytes per rank (4 MiB) of shared memory, touched when first used, and an
address range for ds_comm_alloc of desc.arena_bytes per rank that costs nothing until allocated. Message backends have
one scratch buffer of stage_bytes. After the first calls of a trace nothing is allocated. Nothing is left behind in
/dev/shm, however a process ends: the memory has no name.

SPEED. `ds bench comm` measures it beside this machine's memory. From ds_comm_alloc memory an all_reduce reads and writes
each byte once (between two ranks 4 S bytes in all), from other memory it is copied once more. Waiting ranks look at a
counter for some microseconds, then give their core to whoever wants it, then sleep; where ranks outnumber cores they sleep
at once. Buffers of 8 MiB and more are copied past the caches. The 1-bit all-reduce sends a 32nd of
the bytes and moves about 36 bytes of memory for each element: it pays where the link is slower than a ninth of what one
rank's memory gives, so between machines, not between processes of one; and each of its calls crosses the link four times, so
that with many small tensors a long delay takes back what the bytes save (tests/multi/train_gpt_hosts_test.sh).

ERRORS. A wait has a deadline (desc.timeout, 300 s); ds_comm_create takes a second or two more to tell all who is missing. A rank that was killed is noticed within half a second (shm) and
named; a rank that never came, one that calls something else, one that left or called ds_comm_abort are named, with
the call and its number. Then the communicator is dead: this and each later call returns the same status and text. Only
wrong arguments, found before anything was sent (DS_ERR_ARGUMENT), leave it alive. Under "threads" and "shm" a call that
failed returns when no other rank is at this one's memory any more, so that it may be freed. A process that was stopped there
is waited for a second; then ds_comm_alloc gives nothing out again that was freed.
Log ids: 1 backend chosen, 2 backend refused, 3 communicator ready, 4 communicator failed, 5 arena made smaller,
6 comms log, 7 environment, 8 no native sum for a call that asked for one.

THREADS. One thread at a time per communicator; different communicators are independent. ds_comm_abort,
ds_comm_get_stats and ds_comm_rank/world may be called from any thread at any time.

DEVICE MEMORY. A ds_comm_call with on_device set gives memory of desc.device (ds_kernels.cu: ds_cuda_device). The call
waits for its `stream` first, and what it wrote is there when it returns. "nccl", and "mpi" with desc.cuda_aware, send
such memory as it is; the other backends copy it through the host, and so do sums without desc.kernels. Same bits.

NCCL. Rank 0 sends the unique id over MASTER_ADDR:MASTER_PORT, or one of the seven ports after it where the launcher
listens there itself. Make the rank's GPU the current one before create. Host memory works too, by a copy on the device.
There is one ncclComm for all that is split from a communicator: use one thread for all of them, and one that fails
ends the others; native sums are for communicators of all its ranks in their order. Whoever is late to it cannot be told from others in the same call, so all who were awaited are named.

MPI. It is started with MPI_THREAD_MULTIPLE unless it runs already, and ended with the last communicator of the family
that started it, so destroy that family last, or call MPI_Init and MPI_Finalize yourself. After a timeout it is not
ended: it would wait for the messages that were given up, and may still read and write their buffers. Exit; mpirun then ends
the other ranks. Native sums are
MPI_Iallreduce and MPI_Ireduce of host memory, polled like the rest, for communicators of all ranks in their order.

CONFIG KEYS that this header can serve: communication_data_type and fp32_allreduce (dtype of a call),
prescale_gradients and gradient_predivide_factor (scale before, DS_COMM_SUM, scale after), sparse_gradients,
zero_quantized_weights, zero_quantized_gradients, comms_logger, comm_backend_name, cuda_aware, ds.native_reduce.
*/
#if defined(DS_IMPLEMENTATION) && !defined(DS_COMM_IMPLEMENTATION)
#define DS_COMM_IMPLEMENTATION
#endif
#ifndef DS_COMM_H
#define DS_COMM_H
#define DS_COMM_VERSION 100 /* major * 10000 + minor * 100 + patch */

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

#if defined(DS_STATIC) && !defined(DS_COMM_IMPLEMENTATION)
#error "ds: DS_STATIC needs the implementation in the same file; define DS_IMPLEMENTATION before including ds_comm.h"
#endif
#ifdef __cplusplus
extern "C" {
#endif

/*---- who is who -----------------------------------------------------------------------------------------------*/

/* One process's place, as a launcher's variables tell it. */
typedef struct ds_comm_env {
    int rank, world;             /* 0, 1 when no launcher spoke */
    int local_rank, local_world; /* on this machine; -1 when unknown */
    char master_addr[256];       /* "" when unknown */
    int master_port;             /* 0 when unknown */
    char run_id[128];            /* the same on each rank of a run and different between runs of one user at a time */
    const char *source;          /* "torchrun", "Open MPI", "PMI", "MVAPICH2", "Slurm", "none" */
} ds_comm_env;

/* Reads the launcher's variables, first complete set wins:
     1. RANK WORLD_SIZE [LOCAL_RANK, LOCAL_WORLD_SIZE or LOCAL_SIZE] [MASTER_ADDR MASTER_PORT]: torchrun, deepspeed, ds run
     2. OMPI_COMM_WORLD_RANK _SIZE _LOCAL_RANK _LOCAL_SIZE: Open MPI's mpirun
     3. PMI_RANK PMI_SIZE [MPI_LOCALRANKID MPI_LOCALNRANKS]: MPICH, Intel MPI
     4. MV2_COMM_WORLD_RANK _SIZE _LOCAL_RANK _LOCAL_SIZE: MVAPICH2
     5. SLURM_PROCID with SLURM_STEP_NUM_TASKS [SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE]: srun only. sbatch and salloc
        export SLURM_NTASKS to programs that they start once, so that one is not trusted
     6. none: rank 0 of 1
   MASTER_ADDR and MASTER_PORT are read in each case. run_id comes from DS_RUN_ID, else TORCHELASTIC_RUN_ID with the
   restart count, else the launcher's job id, else MASTER_PORT, else the parent process. Half a set, text that is no
   number, a rank outside the world, or two sets that disagree are DS_ERR_INPUT and the text names the variables (Slurm's
   is not compared: under srun, mpirun and torchrun start ranks of their own).
   `get` looks a name up (NULL: getenv), its texts last until the call returns; `out` is written on every path. Thread safety: as getenv. */
DS_API ds_status ds_comm_resolve_env(const char *(*get)(void *ctx, const char *name), void *ctx, ds_comm_env *out,
                                     ds_error *error);

/*---- a communicator -------------------------------------------------------------------------------------------*/

typedef struct ds_comm ds_comm;

/* Your own messages. `exchange` moves, for each of `count` parts, send_bytes to the peer and receive_bytes from it
   (either may be 0), all at once, and returns when all are through. Messages between two ranks on one channel arrive
   in order; those of different channels must not meet. Past `deadline` (ds_clock time, INT64_MAX never) it returns
   DS_ERR_TIMEOUT with `done` set on the parts that did finish; other failures likewise with a text. It is never called
   by two threads at once for one communicator; with `concurrent` false, never from another thread than the caller's
   (ds_comm_start then runs the call at once). A rank that stops tells the others by a message of another size than they
   may expect: one that is not receive_bytes long is a failure, and so must keep its bounds. */
typedef struct ds_comm_part {
    int peer;
    const void *send;
    void *receive;
    size_t send_bytes, receive_bytes;
    bool done;
    bool on_device; /* the memory is the device's; only where the transport says `device` */
} ds_comm_part;
struct ds_comm_sum;
typedef struct ds_comm_transport {
    const char *name;
    void *ctx;
    ds_status (*exchange)(void *ctx, unsigned channel, ds_comm_part *parts, int count, int64_t deadline,
                          ds_error *error);
    void (*close)(void *ctx); /* at the last destroy; may be NULL */
    bool concurrent;
    bool device; /* takes device memory as it is */
    /* Sums in an order of the transport's own, for ds_comm_call.native; NULL: none. `sums` says whether `sum` takes it,
       alike on every rank. */
    bool (*sums)(void *ctx, const struct ds_comm_sum *sum);
    ds_status (*sum)(void *ctx, const struct ds_comm_sum *sum, int64_t deadline, ds_error *error);
} ds_comm_transport;

/* The comms log. [cfg: comms_logger.enabled, .verbose, .prof_all, .prof_ops, .debug] */
typedef struct ds_comm_log_options {
    bool enabled;
    bool verbose;                  /* a line per call */
    bool debug;                    /* the line also says rank, call number and backend */
    bool only;                     /* keep only the operations named in `operations` (prof_all false) */
    const char *const *operations; /* "all_reduce", ... as ds_comm_kind_name */
    int operation_count;
} ds_comm_log_options;

typedef struct ds_comm_desc {
    const char *backend; /* "auto" (NULL), self, shm, mpi, nccl, user (needs `transport`) [cfg: comm_backend_name] */
    int world;           /* 0: rank, world and run id come from ds_comm_resolve_env */
    int rank;
    int local_world;    /* ranks on this machine; 0: from the environment, else unknown */
    const char *run_id; /* "shm": what the ranks of this communicator have in common; NULL: from the environment */
    int64_t timeout;    /* ns that any wait may last; 0: 300 s; negative: for ever */
    size_t stage_bytes; /* staging or scratch memory per rank; 0: 4 MiB */
    size_t arena_bytes; /* "shm": address range per rank for ds_comm_alloc; 0: as large as this machine's memory */
    const ds_comm_transport *transport;    /* copied */
    ds_device device;                      /* for calls with on_device set, and for "nccl"; zeroed: host memory only */
    const struct ds_comm_kernels *kernels; /* copied; NULL: sums of device memory are made on the host */
    bool cuda_aware;                       /* MPI takes device memory as it is [cfg: optimizer.params.cuda_aware] */
    const char *nccl_library;              /* NULL: libnccl.so.2 */
    ds_comm_log_options log;
    ds_allocator allocator;
    ds_logger logger;
    ds_clock clock; /* for deadlines; futexes sleep in real time */
} ds_comm_desc;

/* Connects this process with the others; collective. On failure *out is NULL. Ownership: ds_comm_destroy. */
DS_API ds_status ds_comm_create_(const ds_comm_desc *desc, size_t desc_bytes, int version, ds_comm **out,
                                 ds_error *error);
static inline ds_status ds_comm_create(const ds_comm_desc *desc, ds_comm **out, ds_error *error) {
    return ds_comm_create_(desc, sizeof *desc, DS_COMM_VERSION, out, error);
}

/* Makes `world` connected communicators in this process; out[r] is for the thread that plays rank r, and is destroyed
   by it or by anyone after it. `desc` gives timeout and hooks, which all ranks' threads then use at once. */
DS_API ds_status ds_comm_threads_create_(const ds_comm_desc *desc, size_t desc_bytes, int version, int world,
                                         ds_comm **out, ds_error *error);
static inline ds_status ds_comm_threads_create(const ds_comm_desc *desc, int world, ds_comm **out, ds_error *error) {
    return ds_comm_threads_create_(desc, sizeof *desc, DS_COMM_VERSION, world, out, error);
}

/* Sub-communicators: ranks that give the same color share one, ordered by key, then by rank. A negative color takes
   part and gets NULL. Collective over `comm`, which stays usable; either may be destroyed first. A duplicate is
   color 0, key 0. The failure of one leaves the other alone. */
DS_API ds_status ds_comm_split(ds_comm *comm, int color, int key, ds_comm **out, ds_error *error);

/* Not collective: waits for calls in flight, tells the others that this rank has left, frees. NULL is fine. */
DS_API void ds_comm_destroy(ds_comm *comm);

DS_API int ds_comm_rank(const ds_comm *comm);
DS_API int ds_comm_world(const ds_comm *comm);
DS_API const char *ds_comm_backend(const ds_comm *comm); /* "self", "threads", "shm", "mpi", "nccl" or transport.name */
/* The status and text of the last failed call; status DS_OK and "" before any. Valid until the next call. */
DS_API const ds_error *ds_comm_error(const ds_comm *comm);

/* Tells the other ranks that this one cannot go on: their present and later calls return DS_ERR_PEER with `message`.
   This rank's calls return it too. Any thread; never blocks for long (message backends: at most a second). */
DS_API void ds_comm_abort(ds_comm *comm, const char *message);

/* The ranks as a ds_group, for headers that ask for small exchanges. Valid as long as `comm`. */
DS_API ds_group ds_comm_group(ds_comm *comm);

/* Page-aligned memory that peers can read and write in place. Not collective; not zeroed ("shm": zeroed). NULL when
   there is none. Thread safety: as calls on `comm`. Must be freed before `comm` is destroyed. Free returns false, under
   "shm", for memory that is not of ds_comm_alloc, and leaves it alone. */
DS_API void *ds_comm_alloc(ds_comm *comm, size_t bytes);
DS_API bool ds_comm_free(ds_comm *comm, void *memory, size_t bytes);

/*---- collectives ----------------------------------------------------------------------------------------------*/

typedef enum ds_comm_op { DS_COMM_SUM = 0, DS_COMM_AVERAGE = 1, DS_COMM_MIN = 2, DS_COMM_MAX = 3 } ds_comm_op;
typedef enum ds_comm_kind {
    DS_COMM_BARRIER = 0,
    DS_COMM_ALL_REDUCE = 1,
    DS_COMM_REDUCE = 2,
    DS_COMM_REDUCE_SCATTER = 3,
    DS_COMM_ALL_GATHER = 4,
    DS_COMM_BROADCAST = 5,
    DS_COMM_ALL_TO_ALL = 6,
    DS_COMM_GATHER = 7,
    DS_COMM_SCATTER = 8,
    DS_COMM_SEND = 9,
    DS_COMM_RECEIVE = 10
} ds_comm_kind;
#define DS_COMM_KIND_COUNT 11
DS_API const char *ds_comm_kind_name(ds_comm_kind kind); /* "all_reduce" */

/* One call as data, for ds_comm_start; the functions below say what the fields mean for each kind. */
typedef struct ds_comm_call {
    ds_comm_kind kind;
    const void *in;
    void *out;
    size_t count;
    const size_t *counts;         /* NULL: equal parts of `count` */
    const size_t *receive_counts; /* all_to_all with `counts` */
    ds_dtype dtype;
    ds_dtype out_dtype; /* reduce_scatter: also DS_F32 for half types */
    ds_comm_op op;
    int root;       /* or the peer of send and receive */
    bool on_device; /* in and out are memory of desc.device, which is read once what `stream` has to do is done */
    void *stream;
    /* all_reduce, reduce, reduce_scatter with DS_COMM_SUM: MPI's or NCCL's own sum, in whatever order it likes: outside the
       promise of equal bits. Where the backend has none for this call it is the usual one, and the log says so once. */
    bool native;
} ds_comm_call;

/* Collective calls block until this rank's `out` is complete and its `in` may be reused. `counts` has one number per
   rank, the same numbers on every rank, zeros allowed; parts lie one after the other in rank order. `in` and `out` are
   either the same memory (in place, as said), or do not overlap; both are aligned to their element size. NULL is fine
   where the count is 0. Integer averages, and sums of DS_BOOL, are DS_ERR_ARGUMENT; min and max of it are and / or.
   Bytes that each rank sends ("theory"; W ranks, S bytes of the whole buffer, p its own part) are with each. */

/* out = op over all ranks' in[count]. In place: out == in. 2 S (W-1)/W, as a ring; up to 512 bytes: S (W-1). */
DS_API ds_status ds_comm_all_reduce(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype,
                                    ds_comm_op op);
/* The same with `out` on the root only (ignored elsewhere). The root nothing, others S. */
DS_API ds_status ds_comm_reduce(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype, ds_comm_op op,
                                int root);
/* Rank r gets out = op over part r of all ranks' `in`. counts NULL: parts of `count`; else `count` is ignored. out_dtype
   is dtype, or DS_F32 with DS_F16 or DS_BF16 input: then the sum is not rounded. In place (equal types): out == in + the
   offset of part r. S - p. */
DS_API ds_status ds_comm_reduce_scatter(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                        ds_dtype dtype, ds_dtype out_dtype, ds_comm_op op);
/* out = all ranks' parts in rank order; this rank's part is in[count] or in[counts[rank]]. In place: in == out + the
   offset of the own part. p (W-1). */
DS_API ds_status ds_comm_all_gather(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                    ds_dtype dtype);
/* Everyone's data[count] becomes the root's. Root S (W-1). */
DS_API ds_status ds_comm_broadcast(ds_comm *comm, void *data, size_t count, ds_dtype dtype, int root);
/* Part r of `in` goes to rank r; out gets the parts for this rank in rank order; `count` elements each. Not in place.
   S (W-1)/W. */
DS_API ds_status ds_comm_all_to_all(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype);
/* Uneven: send_counts[r] go to rank r and receive_counts[r] come from it; they must match the peer's. S - p. */
DS_API ds_status ds_comm_all_to_all_uneven(ds_comm *comm, const void *in, const size_t *send_counts, void *out,
                                           const size_t *receive_counts, ds_dtype dtype);
/* The root gets all parts in rank order (out ignored elsewhere). In place at the root as all_gather. Others p. */
DS_API ds_status ds_comm_gather(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                ds_dtype dtype, int root);
/* Part r of the root's `in` (ignored elsewhere) goes to rank r. In place at the root: out == in + its offset. Root S - p. */
DS_API ds_status ds_comm_scatter(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                 ds_dtype dtype, int root);
/* Returns after every rank has called it. */
DS_API ds_status ds_comm_barrier(ds_comm *comm);
/* One message between two ranks, in order per pair. send returns when `data` may be reused: a short message may then still
   be on its way, and that nobody receives it shows in a later call. */
DS_API ds_status ds_comm_send(ds_comm *comm, const void *data, size_t count, ds_dtype dtype, int to);
DS_API ds_status ds_comm_receive(ds_comm *comm, void *data, size_t count, ds_dtype dtype, int from);

/* Begins a call and returns. Its buffers and count arrays must stay until ds_comm_wait has returned for this handle or
   a later one; calls complete in order. Blocks while 1,024 are waiting; the first takes 94 KB for these and a thread. Where
   the backend cannot work in the background (self; nccl; MPI without MPI_THREAD_MULTIPLE; a transport not `concurrent`) it
   does the call at once. */
typedef uint64_t ds_comm_handle;
DS_API ds_status ds_comm_start(ds_comm *comm, const ds_comm_call *call, ds_comm_handle *handle);
DS_API ds_status ds_comm_wait(ds_comm *comm, ds_comm_handle handle); /* UINT64_MAX: for all that were started */
/* *done says whether wait would return at once; a failed call is done. */
DS_API ds_status ds_comm_test(ds_comm *comm, ds_comm_handle handle, bool *done);
/* A call as ds_comm_start takes it, blocking. */
DS_API ds_status ds_comm_run(ds_comm *comm, const ds_comm_call *call);
/* What this rank's next calls are about, say the number of a tensor, until the next ds_comm_tag; at first 0. It is compared
   as counts and types are: calls of one shape in another order are DS_ERR_PEER, not another tensor's bytes. Thread
   safety: as the calls. */
DS_API void ds_comm_tag(ds_comm *comm, uint32_t tag);

/* A sum for ds_comm_transport.sum. Counts are elements; in may be out (reduce_scatter: the own part of in). */
typedef struct ds_comm_sum {
    unsigned channel;
    const int *ranks; /* of the communicator's ranks: their numbers in the transport */
    int rank, world;
    ds_comm_kind kind; /* all_reduce, reduce, reduce_scatter */
    const void *in;
    void *out;
    const size_t *starts; /* reduce_scatter: where each rank's part begins; starts[world] is the whole */
    size_t count;         /* of the whole */
    ds_dtype dtype;
    int root;
    bool on_device;
} ds_comm_sum;

/* The sum of `count` elements of `inputs` arrays in the order above, as each collective does it: fp16, bf16 or fp32 in,
   fp32 out. out may be one of fp32 inputs. Pure; any thread. */
DS_API void ds_comm_tree_sum_f32(float *out, const void *const *inputs, int input_count, ds_dtype dtype, size_t count);

/* all_reduce of a table of `rows` rows of `width` elements of which each rank filled few, as the gradient of an embedding:
   in place, the same bits as ds_comm_all_reduce. Sends the index and values of rows that are not all zero bits, unless
   the whole table is fewer bytes over all ranks; *sparse (may be NULL) says which. Per rank 32 (W-1), then (W-1) (8 +
   width * element size) per own row, counted under all_gather. Sum and average. Memory that it needs grows with the
   rows and is kept. [cfg: sparse_gradients] */
DS_API ds_status ds_comm_sparse_all_reduce(ds_comm *comm, void *table, size_t rows, size_t width, ds_dtype dtype,
                                           ds_comm_op op, bool *sparse);

/* The same for a table of fp32, fp16 or bf16 in memory of desc.device, by desc.kernels, with the same bits and bytes on the
   wire; without kernels, or beyond DS_COMM_KERNEL_RANKS ranks, the whole table is reduced. Rows that some rank filled are
   summed `piece` at a time (from 1 on, alike on all ranks), which bounds the scratch: device_bytes of the device's memory,
   host_bytes of the host's, best pinned; both aligned to 16. The table is read after what `stream` has to do, and the sums
   are there when the stream is through; scratch may be used again at once. */
typedef struct ds_comm_sparse {
    size_t device_bytes, host_bytes;
} ds_comm_sparse;
DS_API ds_comm_sparse ds_comm_sparse_sizes(int world, size_t rows, size_t width, ds_dtype dtype, size_t piece);
DS_API ds_status ds_comm_sparse_all_reduce_on(ds_comm *comm, void *table, size_t rows, size_t width, ds_dtype dtype,
                                              ds_comm_op op, size_t piece, void *device, void *host, bool *sparse,
                                              void *stream);

/*---- compressed collectives: outside the promise of equal sums ---------------------------------------------------*/

/* The 1-bit all-reduce of 1-bit Adam (arXiv:2102.02888), 0/1 Adam and 1-bit LAMB, with error feedback. The buffer is
   padded with zeros to `padded` elements, a multiple of W * 8 W / gcd(W, 8). Each rank adds its worker error and sends a
   sign per element (8 per byte, first element in the highest bit, 1 for >= 0) and the scale |b| / sqrt(padded). Rank r
   averages chunk r of all ranks, adds its server error, and sends that on the same way. What a sign and scale lose stays
   in the errors. Wire: per rank 2 (padded/8 (W-1)/W) + 8 (W-1) bytes, counted under all_to_all and all_gather. */
typedef struct ds_comm_one_bit {
    size_t padded, chunk; /* elements; chunk = padded / W */
    size_t scratch_bytes;
} ds_comm_one_bit;
DS_API ds_comm_one_bit ds_comm_one_bit_sizes(int world, size_t count);
/* out[count] from every rank's in[count] (may be the same memory). worker_error[padded] and server_error[chunk] start as
   zeros and are kept by the caller from call to call; scratch has scratch_bytes, aligned to 16. Collective. */
DS_API ds_status ds_comm_one_bit_all_reduce(ds_comm *comm, const float *in, float *out, size_t count,
                                            float *worker_error, float *server_error, void *scratch);
/* The same where all of these are memory of desc.device, by desc.kernels (else DS_ERR_UNSUPPORTED), with the same bits:
   `in` is read after what `stream` has to do, and `out` is there when the stream is through. Scales go by all_gathers of
   their own: as many bytes, in four calls. */
DS_API size_t ds_comm_one_bit_scratch_on(int world, size_t count);
DS_API ds_status ds_comm_one_bit_all_reduce_on(ds_comm *comm, const float *in, float *out, size_t count,
                                               float *worker_error, float *server_error, void *scratch, void *stream);

/* Block quantization, as ZeRO++ has it (arXiv:2306.10209): `count` fp16, bf16 or fp32 values in `groups` equal groups of
   consecutive ones. 8 bits: a signed byte each; 4 bits: two in a byte, the first in the upper half. Symmetric:
   params[g] = largest magnitude / 2^(bits-1), value = q * params[g]; asymmetric: params[2g] is the step and
   params[2g + 1] the middle of the group's range, value = q * step + middle. The error is at most half a step, and one
   step at the top of the range. With a NaN in it a group's step is NaN, and so is all that comes of it. Groups hold an even number of values at 4 bits. Pure; any thread. */
typedef struct ds_comm_blocks {
    int bits; /* 8 or 4 */
    bool asymmetric;
    size_t groups;
} ds_comm_blocks;
DS_API void ds_comm_quantize(ds_comm_blocks form, const void *in, ds_dtype dtype, size_t count, int8_t *packed,
                             float *params);
DS_API void ds_comm_dequantize(ds_comm_blocks form, const int8_t *packed, const float *params, void *out,
                               ds_dtype dtype, size_t count);

/* Bytes of scratch for the two calls below, aligned to 16: W ranks in all, `count` values and `groups` groups per rank. */
DS_API size_t ds_comm_quantized_scratch(int world, size_t count, size_t groups);
/* all_gather of parts of `count` values as symmetric int8 in `groups` groups each: a quarter of the bytes of fp32. Every
   rank gets the same values, its own part as the others see it. [cfg: zero_optimization.zero_quantized_weights] */
DS_API ds_status ds_comm_quantized_all_gather(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype,
                                              size_t groups, void *scratch);
/* reduce_scatter in two hops of symmetric int4: inside `node`, then among the ranks of equal place in each node, `across`
   (NULL: one node). in has a part of `count` values for each rank, in order of across-rank * node size + node-rank, each
   cut in `groups` groups; out = the sum over all ranks of this rank's part / divisor. Sums are rounded to dtype after
   each addition, in rank order. [cfg: zero_optimization.zero_quantized_gradients] */
DS_API ds_status ds_comm_quantized_reduce_scatter(ds_comm *node, ds_comm *across, const void *in, void *out,
                                                  size_t count, ds_dtype dtype, size_t groups, float divisor,
                                                  void *scratch);

/* The two where in, out and scratch are memory of desc.device, by desc.kernels (else DS_ERR_UNSUPPORTED), with the same
   bits: `in` is read after what `stream` has to do, and `out` is there when the stream is through. The second one's
   divisor is 1. Scratch: `devices` ranks of each of `nodes` nodes. */
DS_API size_t ds_comm_quantized_scratch_on(int devices, int nodes, size_t count, size_t groups);
DS_API ds_status ds_comm_quantized_all_gather_on(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype,
                                                 size_t groups, void *scratch, void *stream);
DS_API ds_status ds_comm_quantized_reduce_scatter_on(ds_comm *node, ds_comm *across, const void *in, void *out,
                                                     size_t count, ds_dtype dtype, size_t groups, void *scratch,
                                                     void *stream);

/* The same arithmetic on a GPU, for a caller whose buffers are there; ds_kernels.cu fills it. All pointers are device
   memory; calls order work on the stream and return. All bits are those of the functions above. */
#define DS_COMM_KERNEL_RANKS 64
#define DS_COMM_NO_ROW       0xFFFFFFFFu
typedef struct ds_comm_kernels {
    void *ctx;
    /* error[count] += in[count]; signs and scale of error[padded], which keeps what they lose. grains: padded / 1,024,
       rounded up, of scratch. count 0: error is compressed as it is (the server's turn). */
    ds_status (*compress)(void *ctx, float *error, const float *in, size_t count, size_t padded, uint8_t *signs,
                          float *scale, double *grains, void *stream);
    /* error[chunk] += the mean over ranks of sign * scale; signs: (world, chunk / 8) */
    ds_status (*average)(void *ctx, float *error, const uint8_t *signs, const float *scales, int world, size_t chunk,
                         void *stream);
    ds_status (*expand)(void *ctx, float *to, const uint8_t *signs, const float *scale, size_t count, void *stream);
    ds_status (*quantize)(void *ctx, ds_comm_blocks form, const void *in, ds_dtype dtype, size_t count, int8_t *packed,
                          float *params, void *stream);
    ds_status (*dequantize)(void *ctx, ds_comm_blocks form, const int8_t *packed, const float *params, void *out,
                            ds_dtype dtype, size_t count, void *stream);
    /* out[count] = op over `input_count` arrays of fp16, bf16 or fp32, in the order of sums above; at most
       DS_COMM_KERNEL_RANKS of them; `inputs` itself is host memory */
    ds_status (*sum)(void *ctx, const void *const *inputs, int input_count, ds_dtype dtype, void *out,
                     ds_dtype out_dtype, ds_comm_op op, size_t count, void *stream);
    /* flags[rows] = 1 where a row is not all zero bits, else 0 */
    ds_status (*flag_rows)(void *ctx, const void *table, size_t rows, size_t row_bytes, uint8_t *flags, void *stream);
    /* to[i] = from[rows[i]], or zeros where that is DS_COMM_NO_ROW; to[rows[i]] = from[i], each row once */
    ds_status (*gather_rows)(void *ctx, void *to, const void *from, const uint32_t *rows, size_t count,
                             size_t row_bytes, void *stream);
    ds_status (*scatter_rows)(void *ctx, void *to, const void *from, const uint32_t *rows, size_t count,
                              size_t row_bytes, void *stream);
} ds_comm_kernels;
extern void ds_cuda_comm_kernels(ds_comm_kernels *out); /* in ds_kernels.cu */

/*---- figures --------------------------------------------------------------------------------------------------*/

/* Since create, of this rank. Bytes are payload given to other ranks as in the formulas above. Any thread. */
typedef struct ds_comm_stats {
    uint64_t calls[DS_COMM_KIND_COUNT];
    uint64_t bytes_sent[DS_COMM_KIND_COUNT];
    uint64_t bytes_received[DS_COMM_KIND_COUNT];
    uint64_t
        staged_bytes; /* copied because the memory was not ds_comm_alloc's, or a device's that peers do not reach */
    int64_t wait_ns;  /* time spent waiting for other ranks */
    int64_t busy_ns;  /* time inside calls, waiting included */
} ds_comm_stats;
DS_API void ds_comm_get_stats(const ds_comm *comm, ds_comm_stats *out);

/* The comms log, when desc.log.enabled: one entry for each operation and number of bytes of its whole buffer. `only`
   leaves out the others. [cfg: comms_logger] */
typedef struct ds_comm_log_entry {
    ds_comm_kind kind;
    uint64_t bytes, count;
    int64_t total_ns, wait_ns; /* inside the calls; of it, waiting for other ranks */
} ds_comm_log_entry;
/* Logs the calls from now on, as desc.log does from create on; what is split from `comm` later is logged too. Names in
   `operations` that are no operation are DS_ERR_ARGUMENT, and none is logged. Not collective. */
DS_API ds_status ds_comm_log_start(ds_comm *comm, const ds_comm_log_options *options);
/* Writes the entries in the order of their first call, at most `room`, and returns how many there are (at most 256;
   sizes beyond that are not kept). Waits for calls in flight. */
DS_API size_t ds_comm_log_entries(ds_comm *comm, ds_comm_log_entry *out, size_t room);
/* Writes a table, line by line: per operation and size the count, total and average latency, algorithm and bus
   bandwidth (all_reduce counts its bytes twice, the bus (W-1)/W of them, as nccl-tests does). With `stragglers` it is
   collective and adds how long this rank took beyond the quickest one. */
DS_API ds_status ds_comm_log_summary(ds_comm *comm, bool stragglers, void (*line)(void *ctx, const char *text),
                                     void *ctx);

#ifdef __cplusplus
}
#endif
#endif /* DS_COMM_H */

#if defined(DS_COMM_IMPLEMENTATION) && !defined(DS_COMM_IMPL_DONE)
#define DS_COMM_IMPL_DONE
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
/*== ds block: half 1 == home: ds_optim.h ==*/
#if defined(DSI_HALF_BLOCK) && DSI_HALF_BLOCK != 1
#error "ds: implementations of two versions meet in this file; vendor all ds_*.h from one release"
#endif
#ifndef DSI_HALF_BLOCK
#define DSI_HALF_BLOCK 1
/* fp16 and bf16 <-> fp32 in integer arithmetic: the same bits on every machine, denormals kept, ties to even. NaN
   stays NaN (quiet); a value beyond the largest half becomes infinity. */
#if defined(__CUDACC__)
#define DSI_HALF_FN static inline __host__ __device__
#elif defined(__GNUC__)
#define DSI_HALF_FN static inline __attribute__((unused))
#else
#define DSI_HALF_FN static inline
#endif
DSI_HALF_FN float dsi_f32_of_bits(uint32_t bits) {
    union {
        uint32_t u;
        float f;
    } both;
    both.u = bits;
    return both.f;
}
DSI_HALF_FN uint32_t dsi_bits_of_f32(float value) {
    union {
        uint32_t u;
        float f;
    } both;
    both.f = value;
    return both.u;
}
DSI_HALF_FN float dsi_f32_of_bf16(uint16_t h) {
    return dsi_f32_of_bits((uint32_t)h << 16);
}
DSI_HALF_FN uint16_t dsi_bf16_of_f32(float value) {
    uint32_t u = dsi_bits_of_f32(value);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}
DSI_HALF_FN float dsi_f32_of_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1Fu, fraction = h & 0x3FFu;
    if (exponent == 31) return dsi_f32_of_bits(sign | 0x7F800000u | (fraction ? 0x400000u : 0u) | fraction << 13);
    if (exponent) return dsi_f32_of_bits(sign | (exponent + 112u) << 23 | fraction << 13);
    /* zero and denormals: fraction * 2^-24, exact in fp32 */
    return sign ? -((float)fraction * 5.9604644775390625e-8f) : (float)fraction * 5.9604644775390625e-8f;
}
DSI_HALF_FN uint16_t dsi_f16_of_f32(float value) {
    uint32_t u = dsi_bits_of_f32(value), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* rounds to 65536 or more */
    if (magnitude >= 0x38800000u)
        return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xFFFu + ((u >> 13) & 1u)) >> 13));
    if (magnitude < 0x33000000u) return (uint16_t)sign; /* below half the smallest denormal */
    {
        uint32_t shift = 126u - (magnitude >> 23), fraction = (magnitude & 0x7FFFFFu) | 0x800000u;
        uint32_t kept = fraction >> shift, rest = fraction & ((1u << shift) - 1u), middle = 1u << (shift - 1u);
        return (uint16_t)(sign | (kept + (rest > middle || (rest == middle && (kept & 1u)))));
    }
}
#endif
/*== end of ds block: half ==*/
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

#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <sched.h>
#include <unistd.h>
#ifdef __linux__
#include <dlfcn.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#endif
#ifndef DS_COMM_USE_MPI
#define DS_COMM_USE_MPI 0
#endif
#if DS_COMM_USE_MPI
#include <mpi.h>
#endif
#ifndef DS_COMM_SIMD
#define DS_COMM_SIMD 1
#endif
#if DS_COMM_SIMD && defined(__x86_64__) && defined(__GNUC__)
#define DSI_COMM_X86  1
#define DSI_COMM_AVX2 __attribute__((target("avx2,f16c"))) /* no fma: products and sums must stay apart */
#include <immintrin.h>
#else
#define DSI_COMM_X86 0
#endif

#define DSI_COMM_LOAD(word)         __atomic_load_n(word, __ATOMIC_SEQ_CST)
#define DSI_COMM_STORE(word, value) __atomic_store_n(word, value, __ATOMIC_SEQ_CST)

// clang-format off
#define DSI_COMM_BLOCK 256 /* elements summed at a time, so that partial sums stay in the first cache */
#define DSI_COMM_LEVELS 32 /* depth of the tree over up to 2^31 ranks, with one spare */
#define DSI_COMM_SMALL 512 /* bytes that travel inside the announcement of a call */
#define DSI_COMM_QUEUE 1024 /* started calls that may wait */
#define DSI_COMM_LARGE ((size_t)8 << 20) /* bytes of a buffer that passes the caches by */
#define DSI_COMM_LINE 64   /* cache line */
#define DSI_COMM_PAGE 4096 /* alignment of everything that is mapped */
#define DSI_COMM_ENTRIES 256 /* of the comms log */
#define DSI_COMM_PORTS 8 /* from MASTER_PORT on, for NCCL's id */
#define DSI_COMM_TEXT 400  /* reason given to ds_comm_abort */
#define DSI_COMM_ABORTED 12     /* kinds beyond ds_comm_kind, seen in signs only */
#define DSI_COMM_GATHER_SUMS 13
#define DSI_COMM_NO_ROOM 1 /* what a rank of a split without memory says instead of an address */
// clang-format on

// >>simd: conversions and signs, eight at a time where the machine can; what is left goes to the plain loops

#if DSI_COMM_X86
static bool dsi_comm_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); /* all that have both have f16c */
}
/* eight elements of fp32 or a half type */
DSI_COMM_AVX2 static inline __m256 dsi_comm_load8(const void *p, ds_dtype dtype, size_t i) {
    const char *at = (const char *)p + i * DS_DTYPE_SIZE(dtype);
    if (dtype == DS_F32) return _mm256_loadu_ps((const float *)(const void *)at);
    {
        const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)at);
        if (dtype == DS_F16) return _mm256_cvtph_ps(h);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
    }
}
/* a half type; bf16 by the integer rule of dsi_bf16_of_f32 */
DSI_COMM_AVX2 static inline __m128i dsi_comm_half8(__m256 x, ds_dtype dtype) {
    const __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i even = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i r =
        _mm256_blendv_epi8(_mm256_srli_epi32(even, 16), _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    if (dtype == DS_F16) return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
DSI_COMM_AVX2 static size_t dsi_comm_widen_avx2(float *to, const void *from, ds_dtype dtype, size_t n) {
    size_t i = 0;
    if (dtype == DS_F16)
        for (; n - i >= 8; i += 8) _mm256_storeu_ps(to + i, dsi_comm_load8(from, DS_F16, i));
    else
        for (; n - i >= 8; i += 8) _mm256_storeu_ps(to + i, dsi_comm_load8(from, DS_BF16, i));
    return i;
}
DSI_COMM_AVX2 static size_t dsi_comm_narrow_avx2(uint16_t *to, const float *from, ds_dtype dtype, size_t n) {
    size_t i = 0;
    for (; n - i >= 8; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(to + i), dsi_comm_half8(_mm256_loadu_ps(from + i), dtype));
    return i;
}
/* Two inputs of one type in one pass: (a + b) * factor, which is exact for the factors 1 and 1/2, to each output. */
#define DSI_COMM_PAIR(dtype, out_dtype)                                                                                \
    for (; n - i >= 8; i += 8) {                                                                                       \
        const __m256 x = _mm256_mul_ps(_mm256_add_ps(dsi_comm_load8(a, dtype, i), dsi_comm_load8(b, dtype, i)), by);   \
        if (out_dtype == DS_F32) {                                                                                     \
            _mm256_storeu_ps((float *)first + i, x);                                                                   \
            _mm256_storeu_ps((float *)last + i, x);                                                                    \
        } else {                                                                                                       \
            const __m128i h = dsi_comm_half8(x, out_dtype);                                                            \
            _mm_storeu_si128((__m128i *)(void *)((uint16_t *)first + i), h);                                           \
            _mm_storeu_si128((__m128i *)(void *)((uint16_t *)last + i), h);                                            \
        }                                                                                                              \
    }
DSI_COMM_AVX2 static size_t dsi_comm_pair_avx2(const void *a, const void *b, ds_dtype dtype, void *first, void *last,
                                               ds_dtype out_dtype, float factor, size_t n) {
    const __m256 by = _mm256_set1_ps(factor);
    size_t i = 0;
    if (dtype == DS_F32) {
        DSI_COMM_PAIR(DS_F32, DS_F32)
    } else if (dtype == DS_BF16 && out_dtype == DS_BF16) {
        DSI_COMM_PAIR(DS_BF16, DS_BF16)
    } else if (dtype == DS_BF16) {
        DSI_COMM_PAIR(DS_BF16, DS_F32)
    } else if (out_dtype == DS_F16) {
        DSI_COMM_PAIR(DS_F16, DS_F16)
    } else {
        DSI_COMM_PAIR(DS_F16, DS_F32)
    }
    return i;
}
/* error += in (which may be NULL), and each lane gets the squares of every sixteenth element. */
DSI_COMM_AVX2 static size_t dsi_comm_feed_avx2(float *error, const float *in, size_t n, double *lane) {
    __m256d sum[4];
    size_t i = 0;
    for (int j = 0; j < 4; j++) sum[j] = _mm256_loadu_pd(lane + 4 * j);
    for (; n - i >= 16; i += 16)
        for (int j = 0; j < 4; j += 2) {
            float *to = error + i + 4 * j;
            __m256 x = _mm256_loadu_ps(to);
            __m256d a, b;
            if (in) x = _mm256_add_ps(x, _mm256_loadu_ps(in + i + 4 * j));
            if (in) _mm256_storeu_ps(to, x);
            a = _mm256_cvtps_pd(_mm256_castps256_ps128(x)), b = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
            sum[j] = _mm256_add_pd(sum[j], _mm256_mul_pd(a, a));
            sum[j + 1] = _mm256_add_pd(sum[j + 1], _mm256_mul_pd(b, b));
        }
    for (int j = 0; j < 4; j++) _mm256_storeu_pd(lane + 4 * j, sum[j]);
    return i;
}
/* One byte of signs for eight elements, the first in the highest bit; what sign and scale leave over stays in x. */
DSI_COMM_AVX2 static size_t dsi_comm_signs_avx2(float *x, size_t n, float scale, unsigned char *signs) {
    const __m256 plus = _mm256_set1_ps(scale), minus = _mm256_set1_ps(-scale);
    const __m256i back = _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i), up = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GE_OQ);
        signs[i / 8] = (unsigned char)_mm256_movemask_ps(_mm256_permutevar8x32_ps(up, back));
        _mm256_storeu_ps(x + i, _mm256_sub_ps(v, _mm256_blendv_ps(minus, plus, up)));
    }
    return i;
}
DSI_COMM_AVX2 static size_t dsi_comm_expand_avx2(float *to, const unsigned char *signs, float scale, size_t n) {
    const __m256 plus = _mm256_set1_ps(scale), minus = _mm256_set1_ps(-scale);
    const __m256i bit = _mm256_setr_epi32(128, 64, 32, 16, 8, 4, 2, 1);
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        const __m256i set = _mm256_and_si256(_mm256_set1_epi32(signs[i / 8]), bit);
        _mm256_storeu_ps(to + i, _mm256_blendv_ps(minus, plus, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit))));
    }
    return i;
}
/* The least and the largest of what they are and n values from `from` on, in whole vectors; *low is NaN when one is. */
DSI_COMM_AVX2 static size_t dsi_comm_largest_avx2(const void *in, ds_dtype dtype, size_t from, size_t n, float *low,
                                                  float *high) {
    __m256 least = _mm256_set1_ps(*low), most = _mm256_set1_ps(*high), odd = _mm256_setzero_ps();
    float lane[2][8];
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        const __m256 x = dsi_comm_load8(in, dtype, from + i);
        least = _mm256_min_ps(x, least), most = _mm256_max_ps(x, most);
        odd = _mm256_or_ps(odd, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    }
    _mm256_storeu_ps(lane[0], least), _mm256_storeu_ps(lane[1], most);
    for (int j = 0; j < 8; j++) {
        if (lane[0][j] < *low) *low = lane[0][j];
        if (lane[1][j] > *high) *high = lane[1][j];
    }
    if (_mm256_movemask_ps(odd)) *low = NAN;
    return i;
}
/* x * scale, rounded and clipped to [-half, half - 1]: a byte each, or two in a byte with the first in the upper half. */
DSI_COMM_AVX2 static size_t dsi_comm_quantize_avx2(const void *in, ds_dtype dtype, size_t from, size_t n, float scale,
                                                   float half, int8_t *packed) {
    const __m256 by = _mm256_set1_ps(scale), bottom = _mm256_set1_ps(-half), top = _mm256_set1_ps(half - 1);
    const __m256i byte = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                          -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i pair = _mm256_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 8, -1, -1,
                                          -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        __m256 x = _mm256_mul_ps(dsi_comm_load8(in, dtype, from + i), by);
        __m256i q;
        x = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        q = _mm256_cvtps_epi32(_mm256_min_ps(top, _mm256_max_ps(bottom, x)));
        if (half > 8) {
            const __m256i b = _mm256_shuffle_epi8(q, byte);
            const int two[2] = {_mm256_extract_epi32(b, 0), _mm256_extract_epi32(b, 4)};
            memcpy(packed + i, two, 8);
        } else {
            const __m256i nibble = _mm256_and_si256(q, _mm256_set1_epi32(15));
            const __m256i b =
                _mm256_shuffle_epi8(_mm256_or_si256(_mm256_slli_epi64(nibble, 4), _mm256_srli_epi64(nibble, 32)), pair);
            const int four = (_mm256_extract_epi32(b, 0) & 0xFFFF) | (int)((unsigned)_mm256_extract_epi32(b, 4) << 16);
            memcpy(packed + i / 2, &four, 4);
        }
    }
    return i;
}
DSI_COMM_AVX2 static size_t dsi_comm_dequantize_avx2(const int8_t *packed, float step, void *out, ds_dtype dtype,
                                                     size_t from, size_t n) {
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        const __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)(packed + i));
        const __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_set1_ps(step));
        if (dtype == DS_F32)
            _mm256_storeu_ps((float *)out + from + i, x);
        else
            _mm_storeu_si128((__m128i *)(void *)((uint16_t *)out + from + i), dsi_comm_half8(x, dtype));
    }
    return i;
}
/* Past the caches, which spares reading what is overwritten; both begin at a vector. What is read goes through them: on a
   Sapphire Rapids, lines fetched with the hint NTA cost the core that wrote them six times as much at its next store. */
DSI_COMM_AVX2 static void dsi_comm_stream_avx2(char *to, const char *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) {
        __m256i a, b;
        _mm_prefetch(from + i + 1024, _MM_HINT_T0);
        a = _mm256_loadu_si256((const __m256i *)(const void *)(from + i));
        b = _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 32));
        _mm256_stream_si256((__m256i *)(void *)(to + i), a);
        _mm256_stream_si256((__m256i *)(void *)(to + i + 32), b);
    }
    _mm_sfence(); /* before others are told */
}
#endif

/* memcpy; `large` says that the whole of it is more than a cache keeps for its reader. */
static void dsi_comm_copy(char *to, const char *from, size_t bytes, bool large) {
#if DSI_COMM_X86
    if (large && bytes >= DSI_COMM_PAGE && dsi_comm_avx2()) {
        size_t head = (DSI_COMM_LINE - (uintptr_t)to % DSI_COMM_LINE) % DSI_COMM_LINE;
        size_t body = (bytes - head) / DSI_COMM_LINE * DSI_COMM_LINE;
        memcpy(to, from, head);
        dsi_comm_stream_avx2(to + head, from + head, body);
        memcpy(to + head + body, from + head + body, bytes - head - body);
        return;
    }
#endif
    (void)large;
    memcpy(to, from, bytes);
}
static float dsi_comm_f32_load(const void *p, ds_dtype dtype, size_t i) {
    if (dtype == DS_BF16) return dsi_f32_of_bf16(((const uint16_t *)p)[i]);
    if (dtype == DS_F16) return dsi_f32_of_f16(((const uint16_t *)p)[i]);
    return ((const float *)p)[i];
}
static void dsi_comm_widen(float *to, const uint16_t *from, ds_dtype dtype, size_t n) {
    size_t i = 0;
#if DSI_COMM_X86
    if (dsi_comm_avx2()) i = dsi_comm_widen_avx2(to, from, dtype, n);
#endif
    for (; i < n; i++) to[i] = dsi_comm_f32_load(from, dtype, i);
}
static void dsi_comm_narrow(uint16_t *to, const float *from, ds_dtype dtype, size_t n) {
    size_t i = 0;
#if DSI_COMM_X86
    if (dsi_comm_avx2()) i = dsi_comm_narrow_avx2(to, from, dtype, n);
#endif
    for (; i < n; i++) to[i] = dtype == DS_BF16 ? dsi_bf16_of_f32(from[i]) : dsi_f16_of_f32(from[i]);
}

// >>sum: the binary tree over rank numbers

/* `count` elements from `begin` on, as the type that sums them: in place where they have it already, else in `room`. */
static const float *dsi_comm_view_f32(float *room, const void *p, ds_dtype dtype, size_t begin, size_t count) {
    if (dtype == DS_F32) return (const float *)p + begin;
    dsi_comm_widen(room, (const uint16_t *)p + begin, dtype, count);
    return room;
}
static const double *dsi_comm_view_f64(double *room, const void *p, ds_dtype dtype, size_t begin, size_t count) {
    (void)room;
    (void)dtype;
    (void)count;
    return (const double *)p + begin;
}
/* Signed values keep their sign, so that sums of both kinds are made in unsigned arithmetic, which wraps. */
static const uint64_t *dsi_comm_view_u64(uint64_t *room, const void *p, ds_dtype dtype, size_t begin, size_t count) {
    for (size_t i = 0; i < count; i++) {
        size_t at = begin + i;
        switch (dtype) {
        case DS_BOOL: room[i] = ((const uint8_t *)p)[at] != 0; break;
        case DS_U8: room[i] = ((const uint8_t *)p)[at]; break;
        case DS_U16: room[i] = ((const uint16_t *)p)[at]; break;
        case DS_U32: room[i] = ((const uint32_t *)p)[at]; break;
        case DS_I8: room[i] = (uint64_t)((const int8_t *)p)[at]; break;
        case DS_I16: room[i] = (uint64_t)((const int16_t *)p)[at]; break;
        case DS_I32: room[i] = (uint64_t)((const int32_t *)p)[at]; break;
        default: room[i] = ((const uint64_t *)p)[at]; break;
        }
    }
    return room;
}
static const int64_t *dsi_comm_view_i64(int64_t *room, const void *p, ds_dtype dtype, size_t begin, size_t count) {
    return (const int64_t *)dsi_comm_view_u64((uint64_t *)room, p, dtype, begin, count);
}

/* combine: to = a op b, where to may be a. A whole block is added in vectors, lane by lane, so the bits are the same.
   fold: the tree by a binary counter. Leaf i is merged with the finished subtree to its left as often as i has
   trailing ones; what is left over at the end is joined from the right. Returns the result, which is an input itself
   when there is only one. */
#define DSI_COMM_FOLD(T, tag)                                                                                          \
    typedef T dsi_comm_vector_##tag __attribute__((vector_size(16), aligned(sizeof(T)), may_alias));                   \
    static void dsi_comm_combine_##tag(T *to, const T *a, const T *b, size_t count, ds_comm_op op) {                   \
        if (op == DS_COMM_MIN)                                                                                         \
            for (size_t i = 0; i < count; i++) to[i] = b[i] < a[i] || !(b[i] == b[i]) ? b[i] : a[i];                   \
        else if (op == DS_COMM_MAX)                                                                                    \
            for (size_t i = 0; i < count; i++) to[i] = b[i] > a[i] || !(b[i] == b[i]) ? b[i] : a[i];                   \
        else if (count == DSI_COMM_BLOCK)                                                                              \
            for (size_t i = 0; i < DSI_COMM_BLOCK; i += 16 / sizeof(T))                                                \
                *(dsi_comm_vector_##tag *)(void *)(to + i) = *(const dsi_comm_vector_##tag *)(const void *)(a + i) +   \
                                                             *(const dsi_comm_vector_##tag *)(const void *)(b + i);    \
        else                                                                                                           \
            for (size_t i = 0; i < count; i++) to[i] = a[i] + b[i];                                                    \
    }                                                                                                                  \
    static const T *dsi_comm_fold_##tag(T(*level)[DSI_COMM_BLOCK], const void *const *inputs, int input_count,         \
                                        ds_dtype dtype, size_t begin, size_t count, ds_comm_op op) {                   \
        const T *view[DSI_COMM_LEVELS];                                                                                \
        int depth = 0;                                                                                                 \
        for (int i = 0; i < input_count; i++) {                                                                        \
            view[depth] = dsi_comm_view_##tag(level[depth], inputs[i], dtype, begin, count);                           \
            for (unsigned merge = (unsigned)i; merge & 1; merge >>= 1) {                                               \
                depth--;                                                                                               \
                dsi_comm_combine_##tag(level[depth], view[depth], view[depth + 1], count, op);                         \
                view[depth] = level[depth];                                                                            \
            }                                                                                                          \
            depth++;                                                                                                   \
        }                                                                                                              \
        for (; depth > 1; depth--) {                                                                                   \
            dsi_comm_combine_##tag(level[depth - 2], view[depth - 2], view[depth - 1], count, op);                     \
            view[depth - 2] = level[depth - 2];                                                                        \
        }                                                                                                              \
        return view[0];                                                                                                \
    }
DSI_COMM_FOLD(float, f32)
DSI_COMM_FOLD(double, f64)
DSI_COMM_FOLD(uint64_t, u64)
DSI_COMM_FOLD(int64_t, i64) /* min and max only */

/* A power of two has an exact reciprocal, so that the product is the quotient. */
#define DSI_COMM_DIVIDE(T, tag)                                                                                        \
    static void dsi_comm_divide_##tag(T *to, const T *from, int divisor, size_t count) {                               \
        const bool exact = (divisor & (divisor - 1)) == 0;                                                             \
        const T by = (T)divisor, inverse = 1 / by;                                                                     \
        size_t i = 0;                                                                                                  \
        for (; count - i >= 16 / sizeof(T); i += 16 / sizeof(T)) {                                                     \
            const dsi_comm_vector_##tag x = *(const dsi_comm_vector_##tag *)(const void *)(from + i);                  \
            *(dsi_comm_vector_##tag *)(void *)(to + i) = exact ? x * inverse : x / by;                                 \
        }                                                                                                              \
        for (; i < count; i++) to[i] = from[i] / by;                                                                   \
    }
DSI_COMM_DIVIDE(float, f32)
DSI_COMM_DIVIDE(double, f64)

typedef struct dsi_comm_sum {
    const void *const *inputs; /* one per rank */
    void *const *outputs;      /* the same result goes to each */
    int input_count, output_count;
    ds_dtype dtype, out_dtype;
    ds_comm_op op;
} dsi_comm_sum;

static void dsi_comm_sum_f32(const dsi_comm_sum *s, size_t begin, size_t count) {
    float level[DSI_COMM_LEVELS][DSI_COMM_BLOCK], average[DSI_COMM_BLOCK];
    const float *r = dsi_comm_fold_f32(level, s->inputs, s->input_count, s->dtype, begin, count, s->op);
    if (s->op == DS_COMM_AVERAGE) {
        dsi_comm_divide_f32(average, r, s->input_count, count);
        r = average;
    }
    for (int o = 0; o < s->output_count; o++) {
        void *to = (char *)s->outputs[o] + begin * DS_DTYPE_SIZE(s->out_dtype);
        if (s->out_dtype == DS_F32)
            memmove(to, r, count * sizeof *r);
        else if (o)
            memcpy(to, (char *)s->outputs[0] + begin * sizeof(uint16_t), count * sizeof(uint16_t));
        else
            dsi_comm_narrow((uint16_t *)to, r, s->out_dtype, count);
    }
}
static void dsi_comm_sum_f64(const dsi_comm_sum *s, size_t begin, size_t count) {
    double level[DSI_COMM_LEVELS][DSI_COMM_BLOCK], average[DSI_COMM_BLOCK];
    const double *r = dsi_comm_fold_f64(level, s->inputs, s->input_count, s->dtype, begin, count, s->op);
    if (s->op == DS_COMM_AVERAGE) {
        dsi_comm_divide_f64(average, r, s->input_count, count);
        r = average;
    }
    for (int o = 0; o < s->output_count; o++) memmove((double *)s->outputs[o] + begin, r, count * sizeof *r);
}
static void dsi_comm_sum_u64(const dsi_comm_sum *s, size_t begin, size_t count) {
    uint64_t level[DSI_COMM_LEVELS][DSI_COMM_BLOCK];
    bool is_signed = s->dtype == DS_I8 || s->dtype == DS_I16 || s->dtype == DS_I32 || s->dtype == DS_I64;
    const uint64_t *r;
    if (is_signed && s->op != DS_COMM_SUM)
        r = (const uint64_t *)dsi_comm_fold_i64((int64_t(*)[DSI_COMM_BLOCK])level, s->inputs, s->input_count, s->dtype,
                                                begin, count, s->op);
    else
        r = dsi_comm_fold_u64(level, s->inputs, s->input_count, s->dtype, begin, count, s->op);
    for (int o = 0; o < s->output_count; o++)
        for (size_t i = 0; i < count; i++) switch (DS_DTYPE_SIZE(s->dtype)) {
            case 1: ((uint8_t *)s->outputs[o])[begin + i] = (uint8_t)r[i]; break;
            case 2: ((uint16_t *)s->outputs[o])[begin + i] = (uint16_t)r[i]; break;
            case 4: ((uint32_t *)s->outputs[o])[begin + i] = (uint32_t)r[i]; break;
            default: ((uint64_t *)s->outputs[o])[begin + i] = r[i]; break;
            }
}

/* How many elements the vectors have done: of sums and averages of two, which are most there are. */
static size_t dsi_comm_sum_pair(const dsi_comm_sum *s, size_t count) {
#if DSI_COMM_X86
    if (s->input_count == 2 && s->op <= DS_COMM_AVERAGE && s->dtype <= DS_BF16 && dsi_comm_avx2())
        return dsi_comm_pair_avx2(s->inputs[0], s->inputs[1], s->dtype, s->outputs[0], s->outputs[s->output_count - 1],
                                  s->out_dtype, s->op == DS_COMM_AVERAGE ? 0.5f : 1.0f, count);
#endif
    (void)s, (void)count;
    return 0;
}
static void dsi_comm_sum_run(const dsi_comm_sum *s, size_t count) {
    size_t i = dsi_comm_sum_pair(s, count);
    for (; i < count; i += DSI_COMM_BLOCK) {
        size_t n = count - i < DSI_COMM_BLOCK ? count - i : DSI_COMM_BLOCK;
        if (s->dtype == DS_F32 || s->dtype == DS_F16 || s->dtype == DS_BF16)
            dsi_comm_sum_f32(s, i, n);
        else if (s->dtype == DS_F64)
            dsi_comm_sum_f64(s, i, n);
        else
            dsi_comm_sum_u64(s, i, n);
    }
}

DS_API void ds_comm_tree_sum_f32(float *out, const void *const *inputs, int input_count, ds_dtype dtype, size_t count) {
    void *output = out;
    dsi_comm_sum s;
    s.inputs = inputs;
    s.outputs = &output;
    s.input_count = input_count;
    s.output_count = 1;
    s.dtype = dtype;
    s.out_dtype = DS_F32;
    s.op = DS_COMM_SUM;
    if (input_count > 0) dsi_comm_sum_run(&s, count);
}

// >>types: what ranks share, and what each has for itself

/* What a rank is about to do. All ranks of a collective must agree on it; it is also what a message backend sends. */
typedef struct dsi_comm_sign {
    uint64_t number; /* of the collective, from 1 */
    uint64_t count, counts_hash;
    uint64_t bytes; /* that the reader of this sign will get; message backends and send only */
    uint32_t kind, dtype, out_dtype, op;
    int32_t root;
    uint32_t native; /* 0 no, 1 in host memory, 2 in device memory */
    uint32_t tag, reserved;
} dsi_comm_sign;

/* A seat's announcement of a call. There are two, used in turn: a rank announces call n + 2 after everyone announced
   n + 1, which they do after they are done with n, so a reader's announcement is never overwritten. */
typedef struct dsi_comm_notice {
    dsi_comm_sign sign;
    uint64_t in_address, out_address; /* where the peers reach the memory; 0: nowhere */
    uint64_t most;                    /* bytes of the longest message to another rank */
    uint32_t small, reserved;         /* 1: `in` is in data[] */
    unsigned char data[DSI_COMM_SMALL];
} dsi_comm_notice;

/* One rank's place in a room. Counters only grow; each has one writer. */
typedef struct dsi_comm_seat {
    uint64_t posted;       /* number of the last notice */
    uint64_t filled, done; /* rounds of staged data written, rounds read */
    uint32_t bell, asleep; /* the futex of this rank, and whether it sleeps on it */
    uint32_t left;
    uint32_t inside; /* this rank is at the others' own memory */
    int32_t process;
    char line[DSI_COMM_LINE];
    dsi_comm_notice notice[2];
} dsi_comm_seat;

/* A queue of two messages from one rank to another. */
typedef struct dsi_comm_slot {
    dsi_comm_sign sign;
    uint64_t address, offset, bytes;
} dsi_comm_slot; /* followed by the room's pair_bytes */
typedef struct dsi_comm_pair {
    uint64_t posted;
    char line1[DSI_COMM_LINE - 8];
    uint64_t taken;
    char line2[DSI_COMM_LINE - 8];
} dsi_comm_pair; /* followed by two slots */

/* What ranks have in common under "threads" and "shm"; offsets count from the room. */
typedef struct dsi_comm_room {
    struct dsi_comm_room *next; /* of its owner: rooms that others have not left yet */
    uint64_t world, bytes, seats, tables, pairs, stages, stage_bytes, pair_bytes, pair_stride;
    uint32_t left;                    /* ranks that destroyed their communicator */
    uint32_t abort_state, abort_rank; /* 0 none, 1 being written, 2 there */
    char abort_text[DSI_COMM_TEXT];
} dsi_comm_room;

/* The processes that share memory, and this process's part of it; threads share one of these. Counted references: the
   communicators that were split from one another. */
typedef struct dsi_comm_span {
    size_t begin, bytes;
} dsi_comm_span;
typedef struct dsi_comm_family {
    ds_allocator allocator;
    int references;
    /* shm */
    int file, rank, world;
    char *base;
    size_t mapped, arena, arena_bytes; /* offset of rank 0's arena, bytes of each */
    pthread_mutex_t lock;
    dsi_comm_span *spans; /* used parts of the own arena, by address */
    size_t span_count, span_room;
    dsi_comm_room *rooms; /* that others may still be in */
    uint32_t haunted;     /* a stopped process may still be at the arena: nothing of it is given out again */
    /* messages */
    ds_comm_transport transport;
    unsigned next_channel;
} dsi_comm_family;

typedef struct dsi_comm_queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    ds_comm_call calls[DSI_COMM_QUEUE];
    uint32_t tags[DSI_COMM_QUEUE];
    uint64_t submitted, completed;
    bool stop;
} dsi_comm_queue;

struct ds_comm {
    int rank, world;
    char name[32];
    dsi_comm_family *family;
    dsi_comm_room *room; /* NULL: messages, or alone */
    bool owns_room;
    unsigned channel;
    int *family_rank;        /* of each rank: its number in the first communicator */
    uint64_t number, rounds; /* collectives announced, staged rounds so far */
    uint64_t handles;
    uint32_t tag; /* of the caller's next calls */
    int spins,
        pauses; /* most looks at a counter before a sleep, 0 where ranks share cores; and those of the next wait */
    int64_t timeout;
    size_t stage_bytes;
    char *scratch;
    size_t scratch_bytes;
    char *sparse; /* rows of ds_comm_sparse_all_reduce */
    size_t sparse_bytes;
    char *pinned; /* host copies of device buffers */
    size_t pinned_bytes;
    char *device_scratch; /* stage_bytes */
    ds_device device;
    ds_comm_kernels kernels;
    const void **views; /* world of each */
    void **targets;
    size_t *tables; /* for the plan of the call that runs, and for checking one that is started: 3 * (world + 1) each */
    dsi_comm_sign *signs; /* message backends: those received; [world] is the one to send per peer */
    ds_comm_part *messages;
    size_t tables_bytes;
    uint32_t dead, abort_state;
    bool shouted;        /* message backends: the abort was sent */
    bool native_refused; /* and said so */
    char abort_text[DSI_COMM_TEXT];
    ds_error fault; /* why the communicator ended; written once, by the thread that runs calls, before `dead` */
    ds_error error; /* what ds_comm_error shows; of the caller's thread */
    dsi_comm_queue *queue;
    ds_comm_stats stats;
    bool log_verbose, log_debug;
    unsigned logged;            /* a bit for each kind that the comms log keeps */
    ds_comm_log_entry *entries; /* DSI_COMM_ENTRIES when the comms log is on */
    size_t entry_count;
    ds_allocator allocator;
    ds_logger logger;
    ds_clock clock;
};

/* A call with everything derived from it. A message from rank p to rank d is part of p's `in`; `parts` are byte
   offsets. */
typedef struct dsi_comm_plan {
    ds_comm_call call;
    dsi_comm_sign sign;
    size_t size;     /* of an element */
    size_t in_bytes; /* of `in` and `out` that this rank uses */
    size_t out_bytes;
    size_t total;          /* bytes of the whole buffer */
    bool reduces;          /* parts are summed, not copied */
    bool shared;           /* each receiver gets the same bytes */
    bool whole;            /* small all_reduce: everyone sums everything */
    bool uneven;           /* all_to_all with its own tables */
    bool push;             /* the sum is written into everyone's `out` */
    size_t *parts;         /* byte offsets of the parts, world + 1 */
    size_t *gives, *takes; /* uneven: offsets in `in` and in `out`, world + 1 each */
    char *out;             /* where this rank's own result starts */
} dsi_comm_plan;
typedef struct dsi_comm_message {
    size_t from, bytes, to; /* offset in the sender's `in`, length, offset in the receiver's `out` */
} dsi_comm_message;

DS_API const char *ds_comm_kind_name(ds_comm_kind kind) {
    static const char *const names[] = {"barrier",   "all_reduce", "reduce",        "reduce_scatter", "all_gather",
                                        "broadcast", "all_to_all", "gather",        "scatter",        "send",
                                        "receive",   "start",      "ds_comm_abort", "all_reduce"};
    return (unsigned)kind < sizeof names / sizeof *names ? names[kind] : "unknown";
}
static const char *dsi_comm_op_name(uint32_t op) {
    static const char *const names[] = {"sum", "average", "min", "max"};
    return op < 4 ? names[op] : "?";
}
static const char *dsi_comm_dtype_name(uint32_t dtype) {
    static const char *const names[] = {"f32", "f16", "bf16", "f64", "i8",  "u8",  "i16",
                                        "u16", "i32", "u32",  "i64", "u64", "bool"};
    return dtype < DS_DTYPE_COUNT ? names[dtype] : "?";
}

/* Appends to a text of `at` characters and returns its new length. */
DSI_PRINTF(4, 5) static size_t dsi_comm_put(char *out, size_t room, size_t at, const char *format, ...) {
    va_list args;
    va_start(args, format);
    dsi_vformat(out + at, room - at, format, args);
    va_end(args);
    return at + strlen(out + at);
}
/* "all_reduce(count 8, f32, sum)" */
static void dsi_comm_describe(const dsi_comm_sign *s, char *out, size_t room) {
    size_t at = dsi_comm_put(out, room, 0, "%s(", ds_comm_kind_name((ds_comm_kind)s->kind));
    bool reduces = s->kind == DS_COMM_ALL_REDUCE || s->kind == DS_COMM_REDUCE || s->kind == DS_COMM_REDUCE_SCATTER;
    bool rooted = s->kind == DS_COMM_REDUCE || s->kind == DS_COMM_BROADCAST || s->kind == DS_COMM_GATHER ||
                  s->kind == DS_COMM_SCATTER || s->kind == DS_COMM_SEND || s->kind == DS_COMM_RECEIVE;
    if (s->kind != DS_COMM_BARRIER && s->kind != DSI_COMM_ABORTED) {
        if (s->counts_hash)
            at = dsi_comm_put(out, room, at, "counts #%08x, ", (unsigned)s->counts_hash);
        else
            at = dsi_comm_put(out, room, at, "count %llu, ", (unsigned long long)s->count);
        at = dsi_comm_put(out, room, at, "%s", dsi_comm_dtype_name(s->dtype));
        if (s->out_dtype != s->dtype) at = dsi_comm_put(out, room, at, " to %s", dsi_comm_dtype_name(s->out_dtype));
        if (reduces) at = dsi_comm_put(out, room, at, ", %s%s", s->native ? "native " : "", dsi_comm_op_name(s->op));
        if (rooted) at = dsi_comm_put(out, room, at, s->kind >= DS_COMM_SEND ? ", peer %d" : ", root %d", s->root);
        if (s->tag) at = dsi_comm_put(out, room, at, ", tag %u", (unsigned)s->tag);
    }
    dsi_comm_put(out, room, at, ")");
}
static bool dsi_comm_same(const dsi_comm_sign *a, const dsi_comm_sign *b) {
    return a->number == b->number && a->kind == b->kind && a->count == b->count && a->counts_hash == b->counts_hash &&
           a->tag == b->tag && a->dtype == b->dtype && a->out_dtype == b->out_dtype && a->op == b->op &&
           a->root == b->root && a->native == b->native;
}

// >>plan: what a call means, in messages

static bool dsi_comm_reduces(ds_comm_kind kind) {
    return kind == DS_COMM_ALL_REDUCE || kind == DS_COMM_REDUCE || kind == DS_COMM_REDUCE_SCATTER;
}

/* Rank's offsets for an uneven all_to_all, one table per notice. */
static uint64_t *dsi_comm_table_of(const ds_comm *c, int rank, uint64_t number) {
    return (uint64_t *)(void *)((char *)c->room + c->room->tables) +
           ((size_t)rank * 2 + (number & 1)) * ((size_t)c->world + 1);
}

/* The bytes that go from one rank to another; to itself too. */
static dsi_comm_message dsi_comm_message_of(const ds_comm *c, const dsi_comm_plan *plan, int from, int to) {
    const size_t *parts = plan->parts;
    dsi_comm_message m = {0, 0, 0};
    int root = plan->call.root;
    if (plan->whole || (plan->call.kind == DS_COMM_BROADCAST && from == root))
        m.bytes = plan->total;
    else if (plan->uneven && c->room) {
        const uint64_t *table = dsi_comm_table_of(c, from, plan->sign.number);
        m.from = (size_t)table[to];
        m.bytes = (size_t)(table[to + 1] - table[to]);
        m.to = plan->takes[from];
    } else if (plan->uneven) {
        const size_t *table = from == c->rank ? plan->gives : plan->takes;
        int at = from == c->rank ? to : from;
        m.from = plan->gives[to];
        m.bytes = table[at + 1] - table[at];
        m.to = plan->takes[from];
    } else if (plan->reduces || plan->call.kind == DS_COMM_ALL_TO_ALL ||
               (plan->call.kind == DS_COMM_SCATTER && from == root)) {
        m.from = parts[to];
        m.bytes = parts[to + 1] - parts[to];
        if (plan->call.kind == DS_COMM_ALL_TO_ALL) m.to = parts[from];
    } else if (plan->call.kind == DS_COMM_ALL_GATHER || (plan->call.kind == DS_COMM_GATHER && to == root)) {
        m.bytes = parts[from + 1] - parts[from];
        m.to = parts[from];
    }
    return m;
}

static bool dsi_comm_overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return a_bytes && b_bytes && x < y + b_bytes && y < x + a_bytes;
}

/* Byte offsets of parts given by counts, or of equal ones; false when they do not fit a size_t. */
static bool dsi_comm_offsets(size_t *offsets, int world, const size_t *counts, size_t count, size_t size) {
    offsets[0] = 0;
    for (int r = 0; r < world; r++) {
        size_t end = dsi_add(offsets[r], dsi_mul(counts ? counts[r] : count, size));
        if (end > SIZE_MAX / 2) return false;
        offsets[r + 1] = end;
    }
    return true;
}

/* What a wrong argument is called; the communicator stays alive. */
DSI_PRINTF(3, 4)
static ds_status dsi_comm_refuse(ds_comm *c, const ds_comm_call *call, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    dsi_vformat(text, sizeof text, format, args);
    va_end(args);
    return dsi_fail(&c->error, DS_ERR_ARGUMENT, "%s on rank %d: %s", ds_comm_kind_name(call->kind), c->rank, text);
}

static ds_status dsi_comm_check_types(ds_comm *c, const ds_comm_call *call) {
    bool reduces = dsi_comm_reduces(call->kind), half = call->dtype == DS_F16 || call->dtype == DS_BF16;
    if ((unsigned)call->kind >= DS_COMM_KIND_COUNT)
        return dsi_comm_refuse(c, call, "kind %d is unknown", (int)call->kind);
    if ((unsigned)call->dtype >= DS_DTYPE_COUNT)
        return dsi_comm_refuse(c, call, "dtype %d is unknown", (int)call->dtype);
    if (call->root < 0 || call->root >= c->world)
        return dsi_comm_refuse(c, call, "root or peer %d is not in [0, %d)", call->root, c->world);
    if (call->kind >= DS_COMM_SEND && call->root == c->rank)
        return dsi_comm_refuse(c, call, "the peer is this rank itself");
    if (reduces) {
        bool integer = call->dtype >= DS_I8;
        if ((unsigned)call->op > DS_COMM_MAX) return dsi_comm_refuse(c, call, "operation %d is unknown", (int)call->op);
        if (call->op == DS_COMM_AVERAGE && integer) return dsi_comm_refuse(c, call, "integers have no average");
        if (call->op == DS_COMM_SUM && call->dtype == DS_BOOL)
            return dsi_comm_refuse(c, call, "bool has no sum; use max");
        if (call->kind == DS_COMM_REDUCE_SCATTER && call->out_dtype != call->dtype &&
            !(half && call->out_dtype == DS_F32))
            return dsi_comm_refuse(c, call, "the output type must be %s%s", dsi_comm_dtype_name((uint32_t)call->dtype),
                                   half ? " or f32" : "");
    }
    return DS_OK;
}

static uint64_t dsi_comm_hash(const size_t *counts, int world) {
    uint64_t h = 0xCBF29CE484222325u;
    for (int r = 0; r < world; r++) h = (h ^ (uint64_t)counts[r]) * 0x100000001B3u ^ h >> 29;
    return h | 1;
}

/* Offsets and lengths. */
static ds_status dsi_comm_plan_parts(ds_comm *c, dsi_comm_plan *plan) {
    const ds_comm_call *call = &plan->call;
    int w = c->world, me = c->rank;
    bool root = call->root == me, fits = true;
    size_t unit = 64 / plan->size, part;
    plan->in_bytes = plan->out_bytes = plan->total = dsi_mul(call->count, plan->size);
    switch (call->kind) {
    case DS_COMM_ALL_REDUCE:
        plan->whole = plan->total <= DSI_COMM_SMALL;
        part = dsi_round_up(call->count / (size_t)w + (call->count % (size_t)w != 0), unit);
        for (int r = 0; r <= w; r++) {
            size_t at = dsi_mul((size_t)r, part);
            plan->parts[r] = (at < call->count ? at : call->count) * plan->size;
        }
        break;
    case DS_COMM_REDUCE:
        for (int r = 0; r <= w; r++) plan->parts[r] = r <= call->root ? 0 : plan->total;
        if (!root) plan->out_bytes = 0;
        break;
    case DS_COMM_ALL_TO_ALL:
        if (plan->uneven) {
            fits = dsi_comm_offsets(plan->gives, w, call->counts, 0, plan->size) &&
                   dsi_comm_offsets(plan->takes, w, call->receive_counts, 0, plan->size);
            plan->in_bytes = plan->total = plan->gives[w];
            plan->out_bytes = plan->takes[w];
            break;
        } /* fall through */
    case DS_COMM_REDUCE_SCATTER:
    case DS_COMM_ALL_GATHER:
    case DS_COMM_GATHER:
    case DS_COMM_SCATTER:
        fits = dsi_comm_offsets(plan->parts, w, call->counts, call->count, plan->size);
        if (!fits) break;
        plan->total = plan->parts[w];
        part = plan->parts[me + 1] - plan->parts[me];
        plan->in_bytes = call->kind == DS_COMM_ALL_GATHER || call->kind == DS_COMM_GATHER ? part : plan->total;
        plan->out_bytes =
            call->kind == DS_COMM_ALL_GATHER || call->kind == DS_COMM_GATHER || call->kind == DS_COMM_ALL_TO_ALL
                ? plan->total
                : part / plan->size * DS_DTYPE_SIZE(call->out_dtype);
        if (call->kind == DS_COMM_GATHER && !root) plan->out_bytes = 0;
        if (call->kind == DS_COMM_SCATTER && !root) plan->in_bytes = 0;
        break;
    case DS_COMM_BROADCAST:
        if (!root) plan->in_bytes = 0;
        break;
    case DS_COMM_SEND: plan->out_bytes = 0; break;
    case DS_COMM_RECEIVE: plan->in_bytes = 0; break;
    case DS_COMM_BARRIER: plan->in_bytes = plan->out_bytes = plan->total = 0; break;
    }
    if (!fits || plan->total > SIZE_MAX / 2) return dsi_comm_refuse(c, call, "the counts do not fit into memory");
    return DS_OK;
}

/* Checks a call and derives its plan; nothing is sent. */
static ds_status dsi_comm_plan_make(ds_comm *c, const ds_comm_call *call, uint32_t tag, size_t *tables,
                                    dsi_comm_plan *plan) {
    size_t in_place;
    ds_status status;
    memset(plan, 0, sizeof *plan);
    plan->call = *call;
    plan->parts = tables;
    plan->gives = tables + (c->world + 1);
    plan->takes = tables + 2 * (c->world + 1);
    if (call->kind != DS_COMM_REDUCE_SCATTER) plan->call.out_dtype = call->dtype;
    if (!dsi_comm_reduces(call->kind)) plan->call.op = DS_COMM_SUM;
    if (call->kind == DS_COMM_ALL_REDUCE || call->kind == DS_COMM_REDUCE_SCATTER || call->kind == DS_COMM_ALL_GATHER ||
        call->kind == DS_COMM_ALL_TO_ALL || call->kind == DS_COMM_BARRIER)
        plan->call.root = 0;
    if ((status = dsi_comm_check_types(c, &plan->call)) != DS_OK) return status;
    plan->size = DS_DTYPE_SIZE(call->dtype);
    plan->reduces = dsi_comm_reduces(call->kind);
    plan->uneven = call->kind == DS_COMM_ALL_TO_ALL && call->counts;
    plan->shared = call->kind == DS_COMM_ALL_GATHER || call->kind == DS_COMM_GATHER ||
                   call->kind == DS_COMM_BROADCAST || call->kind == DS_COMM_REDUCE;
    if (plan->uneven && !call->receive_counts) return dsi_comm_refuse(c, call, "receive_counts is NULL");
    if ((status = dsi_comm_plan_parts(c, plan)) != DS_OK) return status;
    if ((plan->in_bytes && !call->in) || (plan->out_bytes && !call->out))
        return dsi_comm_refuse(c, call, "%s is NULL", plan->in_bytes && !call->in ? "in" : "out");
    if (call->on_device && !c->device.copy)
        return dsi_comm_refuse(c, call, "device memory, but the communicator has no device (desc.device)");
    in_place = call->kind == DS_COMM_REDUCE_SCATTER || call->kind == DS_COMM_SCATTER ? plan->parts[c->rank] : 0;
    if (dsi_comm_overlap(call->in, plan->in_bytes, call->out, plan->out_bytes) &&
        (call->kind == DS_COMM_ALL_TO_ALL || plan->call.out_dtype != call->dtype ||
         ((call->kind == DS_COMM_ALL_GATHER || call->kind == DS_COMM_GATHER)
              ? (const char *)call->in != (const char *)call->out + plan->parts[c->rank]
              : (const char *)call->in + in_place != (const char *)call->out)))
        return dsi_comm_refuse(c, call, "in and out overlap");
    plan->out = (char *)call->out;
    plan->sign.kind = (uint32_t)call->kind;
    plan->sign.dtype = (uint32_t)call->dtype;
    plan->sign.out_dtype = (uint32_t)plan->call.out_dtype;
    plan->sign.op = (uint32_t)plan->call.op;
    plan->sign.root = plan->call.root;
    plan->sign.tag = tag;
    plan->sign.count = plan->uneven || call->counts ? 0 : call->count;
    plan->sign.counts_hash = call->counts && !plan->uneven ? dsi_comm_hash(call->counts, c->world) : 0;
    return DS_OK;
}

// >>room: shared memory of threads or processes, and waiting in it

static dsi_comm_seat *dsi_comm_seat_of(const ds_comm *c, int rank) {
    return (dsi_comm_seat *)(void *)((char *)c->room + c->room->seats) + rank;
}
static dsi_comm_pair *dsi_comm_pair_of(const ds_comm *c, int from, int to) {
    return (dsi_comm_pair *)(void *)((char *)c->room + c->room->pairs +
                                     ((size_t)from * (size_t)c->world + (size_t)to) * c->room->pair_stride);
}
static dsi_comm_slot *dsi_comm_slot_of(const ds_comm *c, dsi_comm_pair *pair, uint64_t turn) {
    return (dsi_comm_slot *)(void *)((char *)(pair + 1) + (turn & 1) * (sizeof(dsi_comm_slot) + c->room->pair_bytes));
}
static char *dsi_comm_stage_of(const ds_comm *c, int rank, uint64_t round) {
    return (char *)c->room + c->room->stages + (size_t)rank * c->room->stage_bytes +
           (round & 1) * (c->room->stage_bytes / 2);
}

/* Lays a room out for `world` ranks; a stage of 0 bytes is for threads, which reach every address. */
static dsi_comm_room dsi_comm_room_plan(int world, size_t stage_bytes) {
    dsi_comm_room r;
    size_t w = (size_t)world, pair = 256 * 1024 / w;
    memset(&r, 0, sizeof r);
    r.world = w;
    r.stage_bytes = stage_bytes;
    r.pair_bytes = !stage_bytes || pair < DSI_COMM_SMALL ? DSI_COMM_SMALL : pair > 32768 ? 32768 : pair / 64 * 64;
    r.pair_stride = sizeof(dsi_comm_pair) + 2 * (sizeof(dsi_comm_slot) + r.pair_bytes);
    r.seats = dsi_round_up(sizeof r, DSI_COMM_LINE);
    r.tables = r.seats + w * sizeof(dsi_comm_seat);
    r.pairs = dsi_round_up(r.tables + w * 2 * (w + 1) * sizeof(uint64_t), DSI_COMM_LINE);
    r.stages = dsi_round_up(r.pairs + w * w * r.pair_stride, DSI_COMM_PAGE);
    r.bytes = dsi_round_up(r.stages + w * stage_bytes, DSI_COMM_PAGE);
    return r;
}

/* An address as peers understand it: under threads itself, under shm its offset in the family's memory. */
static uint64_t dsi_comm_address(const ds_comm *c, const void *p) {
    const dsi_comm_family *f = c->family;
    if (!f->base) return (uint64_t)(uintptr_t)p;
    if ((const char *)p < f->base || (const char *)p >= f->base + f->mapped) return 0;
    return (uint64_t)((const char *)p - f->base);
}
static char *dsi_comm_pointer(const ds_comm *c, uint64_t address) {
    return c->family->base ? c->family->base + address : (char *)(uintptr_t)address;
}

static void dsi_comm_futex(uint32_t *word, bool wake, uint32_t value, int64_t ns) {
#ifdef __linux__
    struct timespec t;
    t.tv_sec = (time_t)(ns / 1000000000);
    t.tv_nsec = (long)(ns % 1000000000);
    syscall(SYS_futex, word, wake ? 1 : 0, wake ? INT_MAX : (int)value, wake ? NULL : &t, NULL, 0);
#else
    (void)word, (void)value;
    if (!wake) dsi_sleep(NULL, ns < 50000 ? ns : 50000);
#endif
}
static void dsi_comm_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Wakes every rank that sleeps. What they wait for was stored before, and they looked at it after they said that they
   sleep: one of the two sees the other. */
static void dsi_comm_ring(ds_comm *c) {
    for (int r = 0; r < c->world; r++) {
        dsi_comm_seat *seat = dsi_comm_seat_of(c, r);
        if (r != c->rank && DSI_COMM_LOAD(&seat->asleep)) {
            __atomic_fetch_add(&seat->bell, 1, __ATOMIC_SEQ_CST);
            dsi_comm_futex(&seat->bell, true, 0, 0);
        }
    }
}

/* Writes the reason why this communicator ends where all ranks look; the first reason stands. */
static void dsi_comm_post_abort(ds_comm *c, const char *text) {
    uint32_t none = 0;
    uint32_t *state = c->room ? &c->room->abort_state : &c->abort_state;
    if (__atomic_compare_exchange_n(state, &none, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        char *to = c->room ? c->room->abort_text : c->abort_text;
        if (c->room) c->room->abort_rank = (uint32_t)c->rank;
        snprintf(to, DSI_COMM_TEXT, "%s", text);
        DSI_COMM_STORE(state, 2);
        if (c->room) dsi_comm_ring(c);
    }
}

/* Ends the communicator with a text of this rank's own, and tells the others. */
DSI_PRINTF(3, 4) static ds_status dsi_comm_break(ds_comm *c, ds_status status, const char *format, ...) {
    char text[sizeof c->error.message];
    va_list args;
    va_start(args, format);
    dsi_vformat(text, sizeof text, format, args);
    va_end(args);
    dsi_fail(&c->fault, status, "%s", text);
    DSI_COMM_STORE(&c->dead, 1);
    dsi_log(&c->logger, "ds_comm", DS_LOG_ERROR, 4, "%s", text);
    if (c->room) dsi_comm_post_abort(c, text);
    return status;
}

/* DS_OK while nobody has ended the communicator. */
static ds_status dsi_comm_check(ds_comm *c) {
    uint32_t state;
    if (DSI_COMM_LOAD(&c->dead)) return c->fault.status;
    state = DSI_COMM_LOAD(c->room ? &c->room->abort_state : &c->abort_state);
    if (!state) return DS_OK;
    for (int i = 0; state == 1 && i < 1000; i++) { /* being written; who does it may have been killed */
        dsi_sleep(NULL, 100000);
        state = DSI_COMM_LOAD(c->room ? &c->room->abort_state : &c->abort_state);
    }
    {
        const char *text = c->room ? c->room->abort_text : c->abort_text;
        int rank = c->room ? (int)c->room->abort_rank : c->rank;
        dsi_fail(&c->fault, DS_ERR_PEER, "rank %d stopped: %s", rank, text);
        DSI_COMM_STORE(&c->dead, 1);
        dsi_log(&c->logger, "ds_comm", DS_LOG_ERROR, 4, "%s", c->fault.message);
    }
    return DS_ERR_PEER;
}

/* Under shm each process holds a lock on its byte of the memory file, which the kernel drops when the process ends,
   however it ends: no process number is trusted, and a zombie counts as gone. */
static bool dsi_comm_gone(const ds_comm *c, int rank) {
#ifdef __linux__
    struct flock lock;
    if (!c->family->base || rank == c->rank) return false;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = c->family_rank[rank];
    lock.l_len = 1;
    return fcntl(c->family->file, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
#else
    (void)c, (void)rank;
    return false;
#endif
}

/* The process of a rank of the first communicator, whose room is at the beginning of the family's memory. */
static int dsi_comm_process(const ds_comm *c, int rank) {
    const dsi_comm_room *room = (const dsi_comm_room *)(const void *)c->family->base;
    return room ? (int)((const dsi_comm_seat *)(const void *)((const char *)room + room->seats))[rank].process : 0;
}

/* The text of a wait that took too long: who is not there, and where they are instead. */
static ds_status dsi_comm_late(ds_comm *c, const dsi_comm_sign *sign, int peer, const char *what) {
    char call[160], there[160], ranks[120] = "";
    size_t at = 0, absent = 0;
    dsi_comm_seat *seat = dsi_comm_seat_of(c, peer);
    dsi_comm_sign last = seat->notice[DSI_COMM_LOAD(&seat->posted) & 1].sign;
    dsi_comm_describe(sign, call, sizeof call);
    if (sign->kind == DS_COMM_SEND || sign->kind == DS_COMM_RECEIVE || DSI_COMM_LOAD(&seat->posted) >= sign->number)
        return dsi_comm_break(c, DS_ERR_TIMEOUT, "rank %d waited %.1f s in %s for rank %d to %s", c->rank,
                              (double)c->timeout * 1e-9, call, peer, what);
    for (int r = 0; r < c->world; r++)
        if (DSI_COMM_LOAD(&dsi_comm_seat_of(c, r)->posted) < sign->number) {
            at = dsi_comm_put(ranks, sizeof ranks, at, at ? ", %d" : "%d", r);
            absent++;
        }
    dsi_comm_describe(&last, there, sizeof there);
    if (!last.number) snprintf(there, sizeof there, "nothing");
    return dsi_comm_break(
        c, DS_ERR_TIMEOUT,
        "rank %d waited %.1f s in %s, call %llu; %s %s never came (the last call of rank %d: %s, %llu)", c->rank,
        (double)c->timeout * 1e-9, call, (unsigned long long)sign->number, absent == 1 ? "rank" : "ranks", ranks, peer,
        there, (unsigned long long)last.number);
}

/* A rank that died or left will not reach `value` any more, unless it did so just before. */
static ds_status dsi_comm_lost(ds_comm *c, const dsi_comm_sign *sign, int peer, uint64_t *word, uint64_t value) {
    bool left = DSI_COMM_LOAD(&dsi_comm_seat_of(c, peer)->left) != 0, gone = !left && dsi_comm_gone(c, peer);
    char call[160], who[64] = "", others[120] = "";
    size_t at = 0;
    int first = c->family_rank[peer];
    if ((!left && !gone) || DSI_COMM_LOAD(word) >= value) return DS_OK;
    dsi_comm_describe(sign, call, sizeof call);
    if (first != peer || c->world != c->family->world) snprintf(who, sizeof who, "rank %d before the split, ", first);
    if (left)
        return dsi_comm_break(c, DS_ERR_PEER,
                              "rank %d%s%.*s%s destroyed its communicator; rank %d waits for it in %s, call %llu", peer,
                              *who ? " (" : "", *who ? (int)strlen(who) - 2 : 0, who, *who ? ")" : "", c->rank, call,
                              (unsigned long long)sign->number);
    for (int r = 0; r < c->world; r++) /* of two, one ended because of the other */
        if (r != peer && dsi_comm_gone(c, r)) at = dsi_comm_put(others, sizeof others, at, ", so did rank %d", r);
    return dsi_comm_break(c, DS_ERR_PEER, "rank %d (%sprocess %d) died%s; rank %d waits for it in %s, call %llu", peer,
                          who, dsi_comm_process(c, first), others, c->rank, call, (unsigned long long)sign->number);
}

/* Waits until another rank's counter reaches `value`: a short spin where every rank can have a core, then a while in which
   others that want this core get it, then asleep. Wakes by itself now and then to see whether that rank still lives. */
static ds_status dsi_comm_await(ds_comm *c, const dsi_comm_sign *sign, int peer, uint64_t *word, uint64_t value,
                                const char *what) {
    dsi_comm_seat *me = dsi_comm_seat_of(c, c->rank);
    int64_t begin, deadline, looked;
    ds_status status = DS_OK;
    if (DSI_COMM_LOAD(word) >= value) return DS_OK;
    begin = looked = dsi_now(&c->clock);
    deadline = dsi_deadline(&c->clock, c->timeout);
    for (int i = 0; i < c->pauses && DSI_COMM_LOAD(word) < value; i++) dsi_comm_pause();
    /* Where it was in vain, the peer may be waiting for this very core: the next spin is shorter. */
    if (DSI_COMM_LOAD(word) >= value)
        c->pauses = c->pauses * 2 < c->spins ? c->pauses * 2 : c->spins;
    else
        c->pauses = c->pauses / 2 > c->spins / 32 ? c->pauses / 2 : c->spins / 32;
    for (int i = 0; i < c->spins && DSI_COMM_LOAD(word) < value; i++) sched_yield();
    while (DSI_COMM_LOAD(word) < value) {
        uint32_t bell = DSI_COMM_LOAD(&me->bell);
        int64_t now;
        DSI_COMM_STORE(&me->asleep, 1);
        if (DSI_COMM_LOAD(word) < value && dsi_comm_check(c) == DS_OK)
            dsi_comm_futex(&me->bell, false, bell, 100000000);
        DSI_COMM_STORE(&me->asleep, 0);
        if (DSI_COMM_LOAD(word) >= value) break;
        if ((status = dsi_comm_check(c)) != DS_OK) break;
        now = dsi_now(&c->clock);
        if (now - looked < 200000000 && now < deadline) continue;
        looked = now;
        status = dsi_comm_lost(c, sign, peer, word, value);
        if (!status && now >= deadline && DSI_COMM_LOAD(word) < value) status = dsi_comm_late(c, sign, peer, what);
        if (status) break;
    }
    __atomic_fetch_add(&c->stats.wait_ns, dsi_now(&c->clock) - begin, __ATOMIC_RELAXED);
    return status;
}

/* Announces the call and waits until every rank has announced the same one. */
static ds_status dsi_comm_room_meet(ds_comm *c, dsi_comm_plan *plan, size_t most) {
    dsi_comm_seat *me = dsi_comm_seat_of(c, c->rank);
    dsi_comm_notice *notice = &me->notice[plan->sign.number & 1];
    notice->sign = plan->sign;
    notice->most = most;
    notice->small = most && plan->in_bytes <= DSI_COMM_SMALL;
    notice->in_address = most ? dsi_comm_address(c, plan->call.in) : 0;
    notice->out_address = plan->push ? dsi_comm_address(c, plan->call.out) : 0;
    if (notice->small) memcpy(notice->data, plan->call.in, plan->in_bytes);
    if (plan->uneven) {
        uint64_t *table = dsi_comm_table_of(c, c->rank, plan->sign.number);
        for (int r = 0; r <= c->world; r++) table[r] = plan->gives[r];
    }
    DSI_COMM_STORE(&me->posted, plan->sign.number);
    dsi_comm_ring(c);
    for (int i = 1; i < c->world; i++) {
        int peer = (c->rank + i) % c->world;
        dsi_comm_seat *seat = dsi_comm_seat_of(c, peer);
        const dsi_comm_sign *other = &seat->notice[plan->sign.number & 1].sign;
        ds_status status = dsi_comm_await(c, &plan->sign, peer, &seat->posted, plan->sign.number, "come");
        if (status) return status;
        if (!dsi_comm_same(other, &plan->sign)) {
            char mine[160], theirs[160];
            dsi_comm_describe(&plan->sign, mine, sizeof mine);
            dsi_comm_describe(other, theirs, sizeof theirs);
            return dsi_comm_break(c, DS_ERR_PEER, "call %llu differs: rank %d is in %s, rank %d in %s",
                                  (unsigned long long)plan->sign.number, c->rank, mine, peer, theirs);
        }
    }
    return DS_OK;
}

static const dsi_comm_notice *dsi_comm_notice_of(const ds_comm *c, const dsi_comm_plan *plan, int rank) {
    return &dsi_comm_seat_of(c, rank)->notice[plan->sign.number & 1];
}
static bool dsi_comm_staged(const dsi_comm_notice *notice) {
    return notice->most && !notice->small && !notice->in_address;
}

/* Writes this rank's bytes of one round into its stage. */
static ds_status dsi_comm_fill(ds_comm *c, const dsi_comm_plan *plan, size_t chunk, size_t round) {
    dsi_comm_seat *me = dsi_comm_seat_of(c, c->rank);
    uint64_t turn = c->rounds + round;
    size_t skip = round * chunk;
    for (int i = 1; turn >= 2 && i < c->world; i++) { /* the same half was read two rounds ago */
        int peer = (c->rank + i) % c->world;
        ds_status status =
            dsi_comm_await(c, &plan->sign, peer, &dsi_comm_seat_of(c, peer)->done, turn - 1, "read its part");
        if (status) return status;
    }
    for (int i = 1; i < c->world; i++) {
        int peer = (c->rank + i) % c->world;
        dsi_comm_message m = dsi_comm_message_of(c, plan, c->rank, peer);
        size_t n = m.bytes <= skip ? 0 : m.bytes - skip < chunk ? m.bytes - skip : chunk;
        if (!n) continue;
        memcpy(dsi_comm_stage_of(c, c->rank, turn) + (plan->shared ? 0 : chunk * (size_t)peer),
               (const char *)plan->call.in + m.from + skip, n);
        __atomic_fetch_add(&c->stats.staged_bytes, n, __ATOMIC_RELAXED);
        if (plan->shared) break;
    }
    DSI_COMM_STORE(&me->filled, turn + 1);
    dsi_comm_ring(c);
    return DS_OK;
}

/* Where this rank reads the bytes of `peer` in this round. */
static const char *dsi_comm_source(const ds_comm *c, const dsi_comm_plan *plan, int peer, size_t from, size_t chunk,
                                   size_t round) {
    const dsi_comm_notice *notice = dsi_comm_notice_of(c, plan, peer);
    if (peer == c->rank) return (const char *)plan->call.in + from + round * chunk;
    if (notice->small) return (const char *)notice->data + from + round * chunk;
    if (notice->in_address) return dsi_comm_pointer(c, notice->in_address) + from + round * chunk;
    return dsi_comm_stage_of(c, peer, c->rounds + round) + (plan->shared ? 0 : chunk * (size_t)c->rank);
}

/* Calls on memory that the host does not reach. */
static void dsi_comm_message_shout(ds_comm *c);
/* Ends the communicator for a reason that the other ranks cannot see, and tells them. */
static ds_status dsi_comm_device_failed(ds_comm *c, ds_status status) {
    const char *why = c->device.describe ? c->device.describe(c->device.ctx) : "the device failed";
    dsi_comm_break(c, status, "rank %d: %.300s", c->rank, why);
    if (!c->room) {
        dsi_comm_post_abort(c, c->fault.message);
        dsi_comm_message_shout(c);
    }
    return status;
}
static ds_status dsi_comm_device_wait(ds_comm *c, void *stream) {
    ds_status status = c->device.synchronize ? c->device.synchronize(c->device.ctx, stream) : DS_OK;
    return status ? dsi_comm_device_failed(c, status) : DS_OK;
}
static ds_status dsi_comm_device_copy(ds_comm *c, void *to, const void *from, size_t bytes, void *stream) {
    ds_status status = bytes ? c->device.copy(c->device.ctx, to, from, bytes, stream) : DS_OK;
    return status ? dsi_comm_device_failed(c, status) : dsi_comm_device_wait(c, stream);
}
static char *dsi_comm_device_scratch(ds_comm *c) {
    void *memory = NULL;
    ds_status status;
    if (c->device_scratch) return c->device_scratch;
    status = c->device.alloc(c->device.ctx, c->stage_bytes, &memory);
    if (status) (void)dsi_comm_device_failed(c, status);
    return c->device_scratch = (char *)memory;
}
/* Host memory for copies of device buffers, kept; pinned where the device can. */
static void dsi_comm_pinned_give(ds_comm *c) {
    if (c->pinned && c->device.pinned_alloc)
        c->device.pinned_release(c->device.ctx, c->pinned, c->pinned_bytes);
    else
        dsi_release(&c->allocator, c->pinned, c->pinned_bytes);
    c->pinned = NULL;
    c->pinned_bytes = 0;
}
static ds_status dsi_comm_pinned_room(ds_comm *c, size_t bytes) {
    void *memory = NULL;
    ds_status status = DS_OK;
    if (bytes <= c->pinned_bytes) return DS_OK;
    dsi_comm_pinned_give(c);
    if (c->device.pinned_alloc)
        status = c->device.pinned_alloc(c->device.ctx, bytes, &memory);
    else if (!(memory = dsi_alloc(&c->allocator, bytes)))
        status = DS_ERR_MEMORY;
    if (status) return dsi_comm_device_failed(c, status);
    c->pinned = (char *)memory;
    c->pinned_bytes = bytes;
    return DS_OK;
}
/* Whether the peers' messages, and the sums, take device memory. */
static bool dsi_comm_device_direct(const ds_comm *c, const dsi_comm_plan *plan) {
    if (c->world > 1 && (c->room || !c->family->transport.device)) return false;
    return !plan->reduces || (c->kernels.sum && plan->call.dtype <= DS_BF16 && c->world <= DS_COMM_KERNEL_RANKS);
}

static ds_status dsi_comm_add(ds_comm *c, const dsi_comm_plan *plan, size_t elements) {
    dsi_comm_sum s;
    if (plan->call.on_device) {
        ds_status status = c->kernels.sum(c->kernels.ctx, c->views, c->world, plan->call.dtype, c->targets[0],
                                          plan->call.out_dtype, plan->call.op, elements, plan->call.stream);
        return status ? dsi_comm_device_failed(c, status) : dsi_comm_device_wait(c, plan->call.stream);
    }
    s.inputs = c->views;
    s.outputs = c->targets;
    s.input_count = c->world;
    s.output_count = plan->push ? c->world : 1;
    s.dtype = plan->call.dtype;
    s.out_dtype = plan->call.out_dtype;
    s.op = plan->call.op;
    dsi_comm_sum_run(&s, elements);
    return DS_OK;
}

/* Whoever reads or writes the others' own memory says so, and does not begin once a rank has given up. One that gives up
   does not return, and so frees nothing, before the others are out. A thread is waited for, a process that was stopped
   in there for a second. */
static ds_status dsi_comm_enter(ds_comm *c) {
    DSI_COMM_STORE(&dsi_comm_seat_of(c, c->rank)->inside, 1);
    return dsi_comm_check(c);
}
/* What was read is right when nobody has given up by now. */
static ds_status dsi_comm_leave(ds_comm *c) {
    DSI_COMM_STORE(&dsi_comm_seat_of(c, c->rank)->inside, 0);
    return dsi_comm_check(c);
}
static void dsi_comm_see_out(ds_comm *c) {
    int64_t deadline = dsi_deadline(NULL, 1000000000);
    for (int r = 0; r < c->world; r++)
        while (DSI_COMM_LOAD(&dsi_comm_seat_of(c, r)->inside) && !dsi_comm_gone(c, r)) {
            if (c->family->base && dsi_now(NULL) >= deadline) {
                DSI_COMM_STORE(&c->family->haunted, 1);
                return;
            }
            dsi_sleep(NULL, 100000);
        }
}

/* Takes this rank's bytes of one round out of all peers. */
static ds_status dsi_comm_take(ds_comm *c, const dsi_comm_plan *plan, size_t chunk, size_t round) {
    dsi_comm_seat *me = dsi_comm_seat_of(c, c->rank);
    bool enters = plan->uneven || plan->total > DSI_COMM_SMALL; /* the rest lies in the notices */
    size_t skip = round * chunk, n = 0;
    ds_status status = DS_OK;
    for (int i = 1; i < c->world && !status; i++) {
        int peer = (c->rank + i) % c->world;
        if (dsi_comm_staged(dsi_comm_notice_of(c, plan, peer)))
            status = dsi_comm_await(c, &plan->sign, peer, &dsi_comm_seat_of(c, peer)->filled, c->rounds + round + 1,
                                    "write its part");
    }
    if (!status && enters) status = dsi_comm_enter(c);
    for (int i = 0; i < c->world && !status; i++) {
        int peer = (c->rank + i) % c->world;
        dsi_comm_message m = dsi_comm_message_of(c, plan, peer, c->rank);
        n = m.bytes <= skip ? 0 : m.bytes - skip < chunk ? m.bytes - skip : chunk;
        if (!n) continue;
        if (plan->push)
            c->targets[peer] = dsi_comm_pointer(c, dsi_comm_notice_of(c, plan, peer)->out_address) + m.from + skip;
        if (plan->reduces)
            c->views[peer] = dsi_comm_source(c, plan, peer, m.from, chunk, round);
        else if (peer != c->rank)
            dsi_comm_copy(plan->out + m.to + skip, dsi_comm_source(c, plan, peer, m.from, chunk, round), n,
                          plan->total >= DSI_COMM_LARGE);
    }
    if (plan->reduces && n && !status) {
        if (!plan->push) c->targets[0] = plan->out + skip / plan->size * DS_DTYPE_SIZE(plan->call.out_dtype);
        (void)dsi_comm_add(c, plan, n / plan->size);
    }
    if (enters) {
        ds_status left = dsi_comm_leave(c);
        if (!status) status = left;
    }
    if (status) return status;
    DSI_COMM_STORE(&me->done, c->rounds + round + 1);
    dsi_comm_ring(c);
    return DS_OK;
}

/* The work of a call after everyone met. Ranks read each other's memory where they reach it; the others write chunk by
   chunk into their stage, half of it while the other half is read. The number of rounds follows from the notices, so
   all ranks agree on it. */
static ds_status dsi_comm_room_carry(ds_comm *c, dsi_comm_plan *plan, size_t most) {
    const dsi_comm_notice *mine = dsi_comm_notice_of(c, plan, c->rank);
    size_t half = (size_t)c->room->stage_bytes / 2, longest = 0, rounds;
    size_t chunk = plan->shared ? half : half / (size_t)c->world / 64 * 64;
    bool staged = false, reached = plan->push;
    ds_status status = DS_OK;
    for (int r = 0; r < c->world; r++) {
        const dsi_comm_notice *notice = dsi_comm_notice_of(c, plan, r);
        staged |= dsi_comm_staged(notice);
        reached &= notice->out_address != 0 && !dsi_comm_staged(notice);
        if (notice->most > longest) longest = (size_t)notice->most;
    }
    if (plan->push && !reached) plan->push = false;
    if (!staged) chunk = longest;
    rounds = longest ? (longest - 1) / chunk + 1 : 0;
    staged = dsi_comm_staged(mine);
    if (rounds && staged) status = dsi_comm_fill(c, plan, chunk, 0);
    for (size_t k = 0; k < rounds && !status; k++) {
        if (staged && k + 1 < rounds) status = dsi_comm_fill(c, plan, chunk, k + 1);
        if (!status) status = dsi_comm_take(c, plan, chunk, k);
    }
    c->rounds += rounds;
    if (plan->push || (most && !staged && !mine->small)) /* others may still be in this rank's own memory */
        for (int i = 1; i < c->world && !status; i++) {
            int peer = (c->rank + i) % c->world;
            status = dsi_comm_await(c, &plan->sign, peer, &dsi_comm_seat_of(c, peer)->done, c->rounds, "read its part");
        }
    return status;
}

/* A message through the pair's two slots: small or private ones are copied through them, the rest is read in place. */
static ds_status dsi_comm_room_send(ds_comm *c, const dsi_comm_plan *plan) {
    dsi_comm_pair *pair = dsi_comm_pair_of(c, c->rank, plan->call.root);
    size_t room = (size_t)c->room->pair_bytes, at = 0, total = plan->total;
    uint64_t address = total > room ? dsi_comm_address(c, plan->call.in) : 0;
    do {
        uint64_t turn = pair->posted;
        dsi_comm_slot *slot = dsi_comm_slot_of(c, pair, turn);
        size_t n = address ? total : total - at < room ? total - at : room;
        ds_status status =
            turn < 2 ? DS_OK : dsi_comm_await(c, &plan->sign, plan->call.root, &pair->taken, turn - 1, "receive");
        if (status) return status;
        slot->sign = plan->sign;
        slot->sign.bytes = total;
        slot->address = address;
        slot->offset = at;
        slot->bytes = n;
        if (!address && n) memcpy(slot + 1, (const char *)plan->call.in + at, n);
        DSI_COMM_STORE(&pair->posted, turn + 1);
        dsi_comm_ring(c);
        at += n;
    } while (at < total);
    return address ? dsi_comm_await(c, &plan->sign, plan->call.root, &pair->taken, pair->posted, "receive") : DS_OK;
}
static ds_status dsi_comm_room_receive(ds_comm *c, const dsi_comm_plan *plan) {
    dsi_comm_pair *pair = dsi_comm_pair_of(c, plan->call.root, c->rank);
    size_t at = 0, n;
    do {
        uint64_t turn = pair->taken;
        dsi_comm_slot *slot = dsi_comm_slot_of(c, pair, turn);
        ds_status status = dsi_comm_await(c, &plan->sign, plan->call.root, &pair->posted, turn + 1, "send");
        if (status) return status;
        if (slot->sign.bytes != plan->total || slot->sign.dtype != plan->sign.dtype)
            return dsi_comm_break(c, DS_ERR_PEER, "rank %d receives %zu bytes of %s, but rank %d sends %llu of %s",
                                  c->rank, plan->total, dsi_comm_dtype_name(plan->sign.dtype), plan->call.root,
                                  (unsigned long long)slot->sign.bytes, dsi_comm_dtype_name(slot->sign.dtype));
        n = (size_t)slot->bytes;
        if (slot->address) status = dsi_comm_enter(c);
        if (n && !status)
            dsi_comm_copy(plan->out + slot->offset,
                          slot->address ? dsi_comm_pointer(c, slot->address) : (char *)(slot + 1), n,
                          plan->total >= DSI_COMM_LARGE);
        if (slot->address) status = dsi_comm_leave(c);
        if (status) return status;
        DSI_COMM_STORE(&pair->taken, turn + 1);
        dsi_comm_ring(c);
        at += n;
    } while (at < plan->total);
    return DS_OK;
}

// >>messages: backends that send instead of sharing memory

/* All parts at once; a failure ends the communicator with the ranks that were not heard of. */
static ds_status dsi_comm_exchange(ds_comm *c, const dsi_comm_sign *sign, int count, const char *what) {
    char ranks[120] = "", call[160];
    size_t at = 0;
    ds_error error = {DS_OK, ""};
    ds_status status;
    int64_t begin = dsi_now(&c->clock);
    if (!count) return DS_OK;
    for (int i = 0; i < count; i++) c->messages[i].done = false;
    status = c->family->transport.exchange(c->family->transport.ctx, c->channel, c->messages, count,
                                           dsi_deadline(&c->clock, c->timeout), &error);
    __atomic_fetch_add(&c->stats.wait_ns, dsi_now(&c->clock) - begin, __ATOMIC_RELAXED);
    if (!status) return DS_OK;
    for (int i = 0; i < count; i++)
        if (!c->messages[i].done) {
            int peer = -1;
            for (int r = 0; r < c->world; r++)
                if (c->family_rank[r] == c->messages[i].peer) peer = r;
            at = dsi_comm_put(ranks, sizeof ranks, at, at ? ", %d" : "%d", peer);
        }
    dsi_comm_describe(sign, call, sizeof call);
    if (status == DS_ERR_TIMEOUT)
        return dsi_comm_break(c, status, "rank %d waited %.1f s in %s, call %llu, for the %s of: rank %s", c->rank,
                              (double)c->timeout * 1e-9, call, (unsigned long long)sign->number, what, ranks);
    return dsi_comm_break(c, status, "rank %d in %s, call %llu, %s with rank %s: %s", c->rank, call,
                          (unsigned long long)sign->number, what, ranks, error.message);
}
static ds_comm_part *dsi_comm_part_for(ds_comm *c, int *count, int peer) {
    ds_comm_part *part = &c->messages[(*count)++];
    memset(part, 0, sizeof *part);
    part->peer = c->family_rank[peer];
    return part;
}

/* Reads a sign that should be like ours: the peer may have stopped, or be somewhere else. */
static ds_status dsi_comm_read_sign(ds_comm *c, const dsi_comm_sign *mine, const dsi_comm_sign *other, int peer,
                                    size_t bytes) {
    char here[160], there[160];
    int count = 0;
    if (other->kind == DSI_COMM_ABORTED) {
        ds_comm_part *part = dsi_comm_part_for(c, &count, peer);
        ds_status status;
        memset(c->abort_text, 0, sizeof c->abort_text);
        part->receive = c->abort_text;
        part->receive_bytes = sizeof c->abort_text;
        status = dsi_comm_exchange(c, mine, count, "reason to stop");
        c->abort_text[sizeof c->abort_text - 1] = 0;
        return status ? status : dsi_comm_break(c, DS_ERR_PEER, "rank %d stopped: %s", peer, c->abort_text);
    }
    if (mine->kind < DS_COMM_SEND || mine->kind > DS_COMM_RECEIVE
            ? dsi_comm_same(mine, other) && other->bytes == bytes
            : other->kind == DS_COMM_SEND && other->dtype == mine->dtype && other->bytes == bytes)
        return DS_OK;
    dsi_comm_describe(mine, here, sizeof here);
    dsi_comm_describe(other, there, sizeof there);
    return dsi_comm_break(
        c, DS_ERR_PEER, "call %llu differs: rank %d is in %s and expects %zu bytes, rank %d is in %s and sends %llu",
        (unsigned long long)mine->number, c->rank, here, bytes, peer, there, (unsigned long long)other->bytes);
}

static ds_status dsi_comm_message_meet(ds_comm *c, dsi_comm_plan *plan) {
    ds_status status;
    int count = 0;
    for (int r = 0; r < c->world; r++) {
        ds_comm_part *part;
        if (r == c->rank) continue;
        part = dsi_comm_part_for(c, &count, r);
        c->signs[c->world + r] = plan->sign;
        c->signs[c->world + r].bytes = dsi_comm_message_of(c, plan, c->rank, r).bytes;
        part->send = &c->signs[c->world + r];
        part->receive = &c->signs[r];
        part->send_bytes = part->receive_bytes = sizeof(dsi_comm_sign);
    }
    status = dsi_comm_exchange(c, &plan->sign, count, "call");
    for (int r = 0; r < c->world && !status; r++)
        if (r != c->rank)
            status =
                dsi_comm_read_sign(c, &plan->sign, &c->signs[r], r, dsi_comm_message_of(c, plan, r, c->rank).bytes);
    return status;
}

/* One exchange, and for sums one per chunk, received side by side into the scratch memory. */
static ds_status dsi_comm_message_carry(ds_comm *c, dsi_comm_plan *plan) {
    size_t longest = 0, chunk, rounds, n = 0;
    char *scratch = c->scratch;
    ds_status status = DS_OK;
    for (int p = 0; p < c->world; p++)
        for (int d = plan->reduces ? 0 : c->rank; d < (plan->reduces ? c->world : c->rank + 1); d++) {
            size_t bytes = dsi_comm_message_of(c, plan, p, d).bytes;
            if (p != d && bytes > longest) longest = bytes;
        }
    if (plan->reduces && plan->call.on_device && (scratch = dsi_comm_device_scratch(c)) == NULL) return c->fault.status;
    chunk = plan->reduces ? c->stage_bytes / (size_t)c->world / 64 * 64 : SIZE_MAX;
    rounds = !plan->reduces ? 1 : longest ? (longest - 1) / chunk + 1 : 0;
    for (size_t k = 0; k < rounds && !status; k++) {
        size_t skip = plan->reduces ? k * chunk : 0;
        int count = 0;
        for (int r = 0; r < c->world; r++) {
            dsi_comm_message out = dsi_comm_message_of(c, plan, c->rank, r),
                             in = dsi_comm_message_of(c, plan, r, c->rank);
            size_t out_n = out.bytes <= skip ? 0 : out.bytes - skip < chunk ? out.bytes - skip : chunk;
            size_t in_n = in.bytes <= skip ? 0 : in.bytes - skip < chunk ? in.bytes - skip : chunk;
            char *to = NULL;
            if (plan->reduces) {
                n = in_n;
                to = scratch + (size_t)r * chunk;
                c->views[r] = r == c->rank && in_n ? (const char *)plan->call.in + in.from + skip : to;
            } else if (in_n)
                to = plan->out + in.to;
            if (r == c->rank || (!out_n && !in_n)) continue;
            {
                ds_comm_part *part = dsi_comm_part_for(c, &count, r);
                part->send = out_n ? (const char *)plan->call.in + out.from + skip : NULL;
                part->receive = in_n ? to : NULL;
                part->send_bytes = out_n;
                part->receive_bytes = in_n;
                part->on_device = plan->call.on_device;
            }
        }
        status = dsi_comm_exchange(c, &plan->sign, count, "data");
        if (!status && plan->reduces && n) {
            c->targets[0] = plan->out + skip / plan->size * DS_DTYPE_SIZE(plan->call.out_dtype);
            status = dsi_comm_add(c, plan, n / plan->size);
        }
    }
    return status;
}

static ds_status dsi_comm_message_pass(ds_comm *c, dsi_comm_plan *plan) {
    bool sends = plan->call.kind == DS_COMM_SEND;
    int count = 0, peer = plan->call.root;
    ds_comm_part *part = dsi_comm_part_for(c, &count, peer);
    ds_status status;
    c->signs[c->world + peer] = plan->sign;
    c->signs[c->world + peer].bytes = plan->total;
    if (sends)
        part->send = &c->signs[c->world + peer], part->send_bytes = sizeof(dsi_comm_sign);
    else
        part->receive = &c->signs[peer], part->receive_bytes = sizeof(dsi_comm_sign);
    status = dsi_comm_exchange(c, &plan->sign, count, sends ? "receive" : "send");
    if (!status && !sends) status = dsi_comm_read_sign(c, &plan->sign, &c->signs[peer], peer, plan->total);
    if (status || !plan->total) return status;
    count = 0;
    part = dsi_comm_part_for(c, &count, peer);
    part->on_device = plan->call.on_device;
    if (sends)
        part->send = plan->call.in, part->send_bytes = plan->total;
    else
        part->receive = plan->call.out, part->receive_bytes = plan->total;
    return dsi_comm_exchange(c, &plan->sign, count, sends ? "receive" : "send");
}

/* Says that this rank stops, in place of the call that the others expect. Best effort, a second at most. */
static void dsi_comm_message_shout(ds_comm *c) {
    int64_t deadline = dsi_deadline(&c->clock, 1000000000);
    dsi_comm_sign sign;
    if (DSI_COMM_LOAD(&c->abort_state) != 2 || c->shouted || c->world == 1) return;
    c->shouted = true;
    memset(&sign, 0, sizeof sign);
    sign.kind = DSI_COMM_ABORTED;
    for (int round = 0; round < 2; round++) {
        int count = 0;
        for (int r = 0; r < c->world; r++)
            if (r != c->rank) {
                ds_comm_part *part = dsi_comm_part_for(c, &count, r);
                part->send = round ? (const void *)c->abort_text : (const void *)&sign;
                part->send_bytes = round ? sizeof c->abort_text : sizeof sign;
            }
        if (c->family->transport.exchange(c->family->transport.ctx, c->channel, c->messages, count, deadline, NULL))
            return;
    }
}

// >>log: the comms log

static bool dsi_comm_log_kinds(const ds_comm_log_options *o, unsigned *logged, ds_error *error) {
    *logged = o->enabled && !o->only ? ~0u : 0;
    for (int i = 0; o->only && i < o->operation_count; i++) {
        int kind = 0;
        while (kind < DS_COMM_KIND_COUNT && strcmp(o->operations[i], ds_comm_kind_name((ds_comm_kind)kind)) != 0)
            kind++;
        if (kind == DS_COMM_KIND_COUNT) {
            dsi_fail(error, DS_ERR_ARGUMENT, "ds_comm: comms log: there is no operation \"%.60s\"", o->operations[i]);
            return false;
        }
        *logged |= o->enabled ? 1u << kind : 0;
    }
    return true;
}
static ds_status dsi_comm_log_set(ds_comm *c, const ds_comm_log_options *o, ds_error *error) {
    unsigned logged;
    if (!dsi_comm_log_kinds(o, &logged, error)) return DS_ERR_ARGUMENT;
    if (!c->entries && o->enabled)
        c->entries = (ds_comm_log_entry *)dsi_alloc(&c->allocator, DSI_COMM_ENTRIES * sizeof *c->entries);
    if (!c->entries && o->enabled) return dsi_fail(error, DS_ERR_MEMORY, "ds_comm: no memory for the comms log");
    c->logged = logged;
    c->log_verbose = o->verbose;
    c->log_debug = o->debug;
    return DS_OK;
}
/* Gbit/s of the algorithm and of the bus. */
static void dsi_comm_rates(const ds_comm *c, ds_comm_kind kind, double bytes, double ns, double *algorithm,
                           double *bus) {
    double share = (double)(c->world - 1) / c->world;
    bool parted = kind == DS_COMM_ALL_REDUCE || kind == DS_COMM_REDUCE_SCATTER || kind == DS_COMM_ALL_GATHER ||
                  kind == DS_COMM_ALL_TO_ALL;
    *algorithm = ns > 0 ? bytes * (kind == DS_COMM_ALL_REDUCE ? 2 : 1) * 8 / ns : 0;
    *bus = parted ? *algorithm * share : *algorithm;
}
static void dsi_comm_size_text(double bytes, char *out, size_t room) {
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB"};
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++) bytes /= 1024;
    snprintf(out, room, "%.*f %s", unit ? 1 : 0, bytes, units[unit]);
}
static void dsi_comm_note(ds_comm *c, ds_comm_kind kind, uint64_t bytes, int64_t ns, int64_t wait_ns) {
    ds_comm_log_entry *e = c->entries, *end = e + c->entry_count;
    if (!c->entries || !(c->logged >> kind & 1)) return;
    while (e < end && (e->kind != kind || e->bytes != bytes)) e++;
    if (e == end && c->entry_count < DSI_COMM_ENTRIES) {
        memset(e, 0, sizeof *e);
        e->kind = kind;
        e->bytes = bytes;
        c->entry_count++;
        end++;
    }
    if (e < end) {
        e->count++;
        e->total_ns += ns;
        e->wait_ns += wait_ns;
    }
    if (c->log_verbose) {
        char size[32], where[96] = "";
        double algorithm, bus;
        dsi_comm_rates(c, kind, (double)bytes, (double)ns, &algorithm, &bus);
        dsi_comm_size_text((double)bytes, size, sizeof size);
        if (c->log_debug)
            snprintf(where, sizeof where, " | rank: %d | call: %llu | backend: %s", c->rank,
                     (unsigned long long)c->number, c->name);
        dsi_log(&c->logger, "ds_comm", DS_LOG_INFO, 6,
                "comm op: %s | time (ms): %.3f | msg size: %s | algbw (Gbps): %.2f | busbw (Gbps): %.2f%s",
                ds_comm_kind_name(kind), (double)ns * 1e-6, size, algorithm, bus, where);
    }
}

// >>run: one call from beginning to end

static void dsi_comm_count(ds_comm *c, const dsi_comm_plan *plan, ds_comm_kind kind) {
    uint64_t sent = 0, received = 0;
    if (kind == DS_COMM_SEND)
        sent = plan->total;
    else if (kind == DS_COMM_RECEIVE)
        received = plan->total;
    else
        for (int r = 0; r < c->world; r++)
            if (r != c->rank) {
                sent += dsi_comm_message_of(c, plan, c->rank, r).bytes;
                received += dsi_comm_message_of(c, plan, r, c->rank).bytes;
            }
    if (plan->push) { /* and the sums, which it wrote into the others' memory */
        size_t part = plan->parts[c->rank + 1] - plan->parts[c->rank];
        sent += part * (uint64_t)(c->world - 1);
        received += plan->total - part;
    }
    __atomic_fetch_add(&c->stats.bytes_sent[kind], sent, __ATOMIC_RELAXED);
    __atomic_fetch_add(&c->stats.bytes_received[kind], received, __ATOMIC_RELAXED);
}

/* Meet, move, sum. */
static ds_status dsi_comm_collect(ds_comm *c, dsi_comm_plan *plan, ds_comm_kind counted) {
    dsi_comm_message own;
    size_t most = 0;
    ds_status status;
    plan->sign.number = ++c->number;
    if (c->room && plan->uneven)
        for (int r = 0; r < c->world; r++) {
            if (r != c->rank && plan->gives[r + 1] - plan->gives[r] > most) most = plan->gives[r + 1] - plan->gives[r];
        }
    else
        for (int r = 0; r < c->world; r++) {
            size_t bytes = dsi_comm_message_of(c, plan, c->rank, r).bytes;
            if (r != c->rank && bytes > most) most = bytes;
        }
    if (c->world > 1) {
        status = c->room ? dsi_comm_room_meet(c, plan, most) : dsi_comm_message_meet(c, plan);
        if (status) return status;
    }
    if (plan->uneven) {
        for (int r = 0; r < c->world; r++) {
            size_t bytes = dsi_comm_message_of(c, plan, r, c->rank).bytes;
            if (bytes != plan->takes[r + 1] - plan->takes[r])
                return dsi_comm_break(
                    c, DS_ERR_PEER, "all_to_all, call %llu: rank %d expects %zu bytes from rank %d, which sends %zu",
                    (unsigned long long)plan->sign.number, c->rank, plan->takes[r + 1] - plan->takes[r], r, bytes);
        }
    }
    own = dsi_comm_message_of(c, plan, c->rank, c->rank);
    if (c->world == 1 && plan->reduces && own.bytes) {
        c->views[0] = (const char *)plan->call.in + own.from;
        c->targets[0] = plan->out;
        plan->push = false;
        return dsi_comm_add(c, plan, own.bytes / plan->size);
    } else if (!plan->reduces && own.bytes && plan->out + own.to != (const char *)plan->call.in + own.from) {
        if (!plan->call.on_device)
            dsi_comm_copy(plan->out + own.to, (const char *)plan->call.in + own.from, own.bytes,
                          plan->total >= DSI_COMM_LARGE);
        else if ((status = dsi_comm_device_copy(c, plan->out + own.to, (const char *)plan->call.in + own.from,
                                                own.bytes, plan->call.stream)) != DS_OK)
            return status;
    }
    status = c->world == 1 ? DS_OK : c->room ? dsi_comm_room_carry(c, plan, most) : dsi_comm_message_carry(c, plan);
    if (!status) dsi_comm_count(c, plan, counted);
    return status;
}

/* all_reduce beyond what one announcement holds: every rank sums its part, then either it has written it everywhere
   already, or the parts are gathered. */
static ds_status dsi_comm_all_reduce_parts(ds_comm *c, dsi_comm_plan *plan) {
    ds_status status;
    plan->push = c->room && c->world > 1;
    plan->out = (char *)plan->call.out + plan->parts[c->rank];
    status = dsi_comm_collect(c, plan, DS_COMM_ALL_REDUCE);
    if (status || plan->push || c->world == 1) return status;
    plan->call.kind = DS_COMM_ALL_GATHER;
    plan->sign.kind = DSI_COMM_GATHER_SUMS;
    plan->reduces = false;
    plan->shared = true;
    plan->call.in = plan->out;
    plan->out = (char *)plan->call.out;
    plan->in_bytes = plan->parts[c->rank + 1] - plan->parts[c->rank];
    return dsi_comm_collect(c, plan, DS_COMM_ALL_REDUCE);
}

/* The backend's own sum. */
static bool dsi_comm_native_plan(ds_comm *c, const dsi_comm_plan *plan, ds_comm_sum *sum) {
    const ds_comm_call *call = &plan->call;
    if (!call->native || !plan->reduces || call->op != DS_COMM_SUM || c->world == 1) return false;
    memset(sum, 0, sizeof *sum);
    sum->channel = c->channel;
    sum->ranks = c->family_rank;
    sum->rank = c->rank;
    sum->world = c->world;
    sum->kind = call->kind;
    sum->in = call->in;
    sum->out = call->out;
    sum->starts = plan->takes; /* not used otherwise by a reduction */
    for (int r = 0; r <= c->world; r++) plan->takes[r] = plan->parts[r] / plan->size;
    sum->count = plan->total / plan->size;
    sum->dtype = call->dtype;
    sum->root = call->root;
    sum->on_device = call->on_device;
    if (!c->room && c->family->transport.sums && call->out_dtype == call->dtype &&
        c->family->transport.sums(c->family->transport.ctx, sum))
        return true;
    if (!c->native_refused)
        dsi_log(&c->logger, "ds_comm", DS_LOG_INFO, 8,
                "backend %s has no sum of its own for %s of %s: sums are in the fixed order", c->name,
                ds_comm_kind_name(call->kind), dsi_comm_dtype_name(call->dtype));
    c->native_refused = true;
    return false;
}
static ds_status dsi_comm_native_run(ds_comm *c, dsi_comm_plan *plan, const ds_comm_sum *sum) {
    ds_error error = {DS_OK, ""};
    char text[160];
    int64_t begin;
    ds_status status;
    plan->whole = false;
    plan->sign.number = ++c->number;
    if ((status = dsi_comm_message_meet(c, plan)) != DS_OK) return status;
    begin = dsi_now(&c->clock);
    if (sum->count)
        status = c->family->transport.sum(c->family->transport.ctx, sum, dsi_deadline(&c->clock, c->timeout), &error);
    __atomic_fetch_add(&c->stats.wait_ns, dsi_now(&c->clock) - begin, __ATOMIC_RELAXED);
    dsi_comm_describe(&plan->sign, text, sizeof text);
    if (status)
        return dsi_comm_break(c, status, "rank %d in %s, call %llu: %s", c->rank, text,
                              (unsigned long long)plan->sign.number, error.message);
    plan->push = plan->call.kind == DS_COMM_ALL_REDUCE; /* counted as a ring: pieces there, sums back */
    dsi_comm_count(c, plan, plan->call.kind);
    return DS_OK;
}

static ds_status dsi_comm_execute(ds_comm *c, const ds_comm_call *call, uint32_t tag);
static ds_status dsi_comm_through_host(ds_comm *c, const ds_comm_call *call, const dsi_comm_plan *plan) {
    size_t in_bytes = plan->in_bytes, out_bytes = plan->out_bytes, at = dsi_round_up(in_bytes, DSI_COMM_LINE);
    ds_comm_call host = *call;
    ds_status status = dsi_comm_pinned_room(c, at + out_bytes);
    if (!status) status = dsi_comm_device_copy(c, c->pinned, call->in, in_bytes, call->stream);
    host.in = c->pinned;
    host.out = c->pinned + at;
    host.on_device = false;
    if (!status) status = dsi_comm_execute(c, &host, plan->sign.tag);
    __atomic_fetch_add(&c->stats.staged_bytes, in_bytes + out_bytes, __ATOMIC_RELAXED);
    return status ? status : dsi_comm_device_copy(c, call->out, c->pinned + at, out_bytes, call->stream);
}

static ds_status dsi_comm_execute(ds_comm *c, const ds_comm_call *call, uint32_t tag) {
    int64_t begin = dsi_now(&c->clock), waited = c->stats.wait_ns, spent;
    dsi_comm_plan plan;
    ds_comm_sum sum;
    bool native;
    ds_status status = dsi_comm_check(c);
    if (status && !c->room) dsi_comm_message_shout(c);
    if (status) return status;
    if ((status = dsi_comm_plan_make(c, call, tag, c->tables, &plan)) != DS_OK) return status;
    native = dsi_comm_native_plan(c, &plan, &sum);
    if (call->on_device && !native && !dsi_comm_device_direct(c, &plan)) return dsi_comm_through_host(c, call, &plan);
    if (call->on_device && (status = dsi_comm_device_wait(c, call->stream)) != DS_OK) return status;
    if (call->kind == DS_COMM_SEND || call->kind == DS_COMM_RECEIVE) {
        plan.sign.number = c->number;
        status = !c->room                     ? dsi_comm_message_pass(c, &plan)
                 : call->kind == DS_COMM_SEND ? dsi_comm_room_send(c, &plan)
                                              : dsi_comm_room_receive(c, &plan);
        if (!status) dsi_comm_count(c, &plan, call->kind);
    } else if (native) {
        plan.sign.native = call->on_device ? 2 : 1;
        status = dsi_comm_native_run(c, &plan, &sum);
    } else if (call->kind == DS_COMM_ALL_REDUCE && !plan.whole)
        status = dsi_comm_all_reduce_parts(c, &plan);
    else
        status = dsi_comm_collect(c, &plan, call->kind);
    if (status && c->room) dsi_comm_see_out(c);
    __atomic_fetch_add(&c->stats.calls[call->kind], 1, __ATOMIC_RELAXED);
    spent = dsi_now(&c->clock) - begin;
    __atomic_fetch_add(&c->stats.busy_ns, spent, __ATOMIC_RELAXED);
    if (!status) dsi_comm_note(c, call->kind, plan.total, spent, c->stats.wait_ns - waited);
    return status;
}

// >>queue: calls that run in the background

/* Where all processors compute, a thread that seldom has something to do, but then something that others wait for, should have
   its turn at once: it asks for short ones. Linux 6.12 and later keep to that; elsewhere nothing changes. */
static void dsi_comm_short_turns(void) {
#ifdef SYS_sched_setattr
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } now;
    memset(&now, 0, sizeof now);
    if (syscall(SYS_sched_getattr, 0, &now, (unsigned)sizeof now, 0u) != 0 || now.policy != SCHED_OTHER) return;
    now.size = sizeof now;
    now.runtime = 100000; /* ns, the least */
    (void)syscall(SYS_sched_setattr, 0, &now, 0u);
#endif
}

static void *dsi_comm_queue_main(void *arg) {
    ds_comm *c = (ds_comm *)arg;
    dsi_comm_queue *q = c->queue;
    dsi_comm_short_turns();
    pthread_mutex_lock(&q->lock);
    for (;;) {
        while (q->submitted == q->completed && !q->stop) pthread_cond_wait(&q->changed, &q->lock);
        if (q->submitted == q->completed) break;
        {
            ds_comm_call call = q->calls[q->completed % DSI_COMM_QUEUE];
            uint32_t tag = q->tags[q->completed % DSI_COMM_QUEUE];
            pthread_mutex_unlock(&q->lock);
            dsi_comm_execute(c, &call, tag); /* a failure ends the communicator; wait returns it */
            pthread_mutex_lock(&q->lock);
        }
        q->completed++;
        pthread_cond_broadcast(&q->changed);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}
static ds_status dsi_comm_queue_make(ds_comm *c) {
    dsi_comm_queue *q = (dsi_comm_queue *)dsi_alloc_zero(&c->allocator, sizeof *q);
    if (!q) return dsi_fail(&c->error, DS_ERR_MEMORY, "ds_comm_start: no memory for the queue (%zu bytes)", sizeof *q);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->changed, NULL);
    c->queue = q;
    if (pthread_create(&q->thread, NULL, dsi_comm_queue_main, c)) {
        pthread_cond_destroy(&q->changed);
        pthread_mutex_destroy(&q->lock);
        c->queue = NULL;
        dsi_release(&c->allocator, q, sizeof *q);
        return dsi_fail(&c->error, DS_ERR_IO, "ds_comm_start: the system refused a thread");
    }
    return DS_OK;
}
/* Waits until `count` started calls are complete. Where all processors are busy, who is woken takes the processor of the thread
   that woke it, and keeps it for its turn: with more to do that thread goes first, or the peers would wait for a turn, too. */
static void dsi_comm_queue_wait(dsi_comm_queue *q, uint64_t count) {
    bool slept = false, more;
    pthread_mutex_lock(&q->lock);
    if (count > q->submitted) count = q->submitted;
    while (q->completed < count) {
        pthread_cond_wait(&q->changed, &q->lock);
        slept = true;
    }
    more = q->completed < q->submitted;
    pthread_mutex_unlock(&q->lock);
    if (slept && more) sched_yield();
}
static void dsi_comm_queue_end(ds_comm *c) {
    dsi_comm_queue *q = c->queue;
    if (!q) return;
    pthread_mutex_lock(&q->lock);
    q->stop = true;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
    pthread_join(q->thread, NULL);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
    c->queue = NULL;
    dsi_release(&c->allocator, q, sizeof *q);
}

/* The status of the communicator, with its text where the caller finds it. */
static ds_status dsi_comm_state(ds_comm *c) {
    if (!DSI_COMM_LOAD(&c->dead)) return DS_OK;
    c->error = c->fault;
    return c->error.status;
}

DS_API void ds_comm_tag(ds_comm *comm, uint32_t tag) {
    comm->tag = tag;
}
DS_API ds_status ds_comm_run(ds_comm *comm, const ds_comm_call *call) {
    ds_status status;
    if (comm->queue) dsi_comm_queue_wait(comm->queue, comm->queue->submitted);
    status = dsi_comm_execute(comm, call, comm->tag);
    return status && DSI_COMM_LOAD(&comm->dead) ? dsi_comm_state(comm) : status;
}
DS_API ds_status ds_comm_start(ds_comm *comm, const ds_comm_call *call, ds_comm_handle *handle) {
    dsi_comm_queue *q;
    dsi_comm_plan plan;
    ds_status status;
    *handle = 0;
    if (comm->world == 1 || (!comm->room && !comm->family->transport.concurrent)) return ds_comm_run(comm, call);
    if ((status = dsi_comm_state(comm)) != DS_OK) return status;
    status = dsi_comm_plan_make(comm, call, comm->tag, comm->tables + 3 * (comm->world + 1), &plan);
    if (status || (!comm->queue && (status = dsi_comm_queue_make(comm)) != DS_OK)) return status;
    q = comm->queue;
    pthread_mutex_lock(&q->lock);
    while (q->submitted - q->completed == DSI_COMM_QUEUE) pthread_cond_wait(&q->changed, &q->lock);
    q->calls[q->submitted % DSI_COMM_QUEUE] = *call;
    q->tags[q->submitted % DSI_COMM_QUEUE] = comm->tag;
    *handle = ++q->submitted;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
    sched_yield(); /* the call's first message leaves before the caller computes on, also where all processors are busy */
    return DS_OK;
}
DS_API ds_status ds_comm_wait(ds_comm *comm, ds_comm_handle handle) {
    if (comm->queue) dsi_comm_queue_wait(comm->queue, handle);
    return dsi_comm_state(comm);
}
DS_API ds_status ds_comm_test(ds_comm *comm, ds_comm_handle handle, bool *done) {
    *done = true;
    if (comm->queue) {
        pthread_mutex_lock(&comm->queue->lock);
        *done = comm->queue->completed >= handle;
        pthread_mutex_unlock(&comm->queue->lock);
    }
    return *done ? dsi_comm_state(comm) : DS_OK;
}

DS_API ds_status ds_comm_log_start(ds_comm *comm, const ds_comm_log_options *options) {
    if (comm->queue) dsi_comm_queue_wait(comm->queue, comm->queue->submitted);
    return dsi_comm_log_set(comm, options, &comm->error);
}
DS_API size_t ds_comm_log_entries(ds_comm *comm, ds_comm_log_entry *out, size_t room) {
    if (comm->queue) dsi_comm_queue_wait(comm->queue, comm->queue->submitted);
    for (size_t i = 0; i < comm->entry_count && i < room; i++) out[i] = comm->entries[i];
    return comm->entry_count;
}
DS_API ds_status ds_comm_log_summary(ds_comm *comm, bool stragglers, void (*line)(void *ctx, const char *text),
                                     void *ctx) {
    size_t count = ds_comm_log_entries(comm, NULL, 0);
    char text[256], size[32];
    snprintf(text, sizeof text, "%-16s %12s %10s %18s %16s %18s %18s%s", "Comm. Op", "Message Size", "Count",
             "Total Latency(ms)", "Avg Latency(ms)", "tput_avg (Gbps)", "busbw_avg (Gbps)",
             stragglers ? "  Straggler(ms)" : "");
    line(ctx, text);
    for (size_t i = 0; i < count; i++) {
        const ds_comm_log_entry e = comm->entries[i];
        double algorithm, bus, ms = (double)e.total_ns * 1e-6;
        int64_t least = e.total_ns;
        if (stragglers && e.kind < DS_COMM_SEND) {
            ds_comm_log_entry *entries = comm->entries;
            ds_status status;
            comm->entries = NULL; /* the question itself is not logged */
            status = ds_comm_all_reduce(comm, &e.total_ns, &least, 1, DS_I64, DS_COMM_MIN);
            comm->entries = entries;
            if (status) return status;
        }
        dsi_comm_rates(comm, e.kind, (double)e.bytes * (double)e.count, (double)e.total_ns, &algorithm, &bus);
        dsi_comm_size_text((double)e.bytes, size, sizeof size);
        snprintf(text, sizeof text, "%-16s %12s %10llu %18.3f %16.3f %18.2f %18.2f", ds_comm_kind_name(e.kind), size,
                 (unsigned long long)e.count, ms, ms / (double)e.count, algorithm, bus);
        if (stragglers) {
            size_t at = strlen(text);
            snprintf(text + at, sizeof text - at, "  %13.3f", (double)(e.total_ns - least) * 1e-6);
        }
        line(ctx, text);
    }
    return DS_OK;
}

// The named calls fill in the data form.
static ds_comm_call dsi_comm_call_of(ds_comm_kind kind, const void *in, void *out, size_t count, ds_dtype dtype) {
    ds_comm_call call;
    memset(&call, 0, sizeof call);
    call.kind = kind;
    call.in = in;
    call.out = out;
    call.count = count;
    call.dtype = call.out_dtype = dtype;
    return call;
}
DS_API ds_status ds_comm_all_reduce(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype,
                                    ds_comm_op op) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_ALL_REDUCE, in, out, count, dtype);
    call.op = op;
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_reduce(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype, ds_comm_op op,
                                int root) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_REDUCE, in, out, count, dtype);
    call.op = op;
    call.root = root;
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_reduce_scatter(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                        ds_dtype dtype, ds_dtype out_dtype, ds_comm_op op) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_REDUCE_SCATTER, in, out, count, dtype);
    call.counts = counts;
    call.out_dtype = out_dtype;
    call.op = op;
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_all_gather(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                    ds_dtype dtype) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_ALL_GATHER, in, out, count, dtype);
    call.counts = counts;
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_broadcast(ds_comm *comm, void *data, size_t count, ds_dtype dtype, int root) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_BROADCAST, data, data, count, dtype);
    call.root = root;
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_all_to_all(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_ALL_TO_ALL, in, out, count, dtype);
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_all_to_all_uneven(ds_comm *comm, const void *in, const size_t *send_counts, void *out,
                                           const size_t *receive_counts, ds_dtype dtype) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_ALL_TO_ALL, in, out, 0, dtype);
    call.counts = send_counts;
    call.receive_counts = receive_counts;
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_gather(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                ds_dtype dtype, int root) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_GATHER, in, out, count, dtype);
    call.counts = counts;
    call.root = root;
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_scatter(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                 ds_dtype dtype, int root) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_SCATTER, in, out, count, dtype);
    call.counts = counts;
    call.root = root;
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_barrier(ds_comm *comm) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_BARRIER, NULL, NULL, 0, DS_U8);
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_send(ds_comm *comm, const void *data, size_t count, ds_dtype dtype, int to) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_SEND, data, NULL, count, dtype);
    call.root = to;
    return ds_comm_run(comm, &call);
}
DS_API ds_status ds_comm_receive(ds_comm *comm, void *data, size_t count, ds_dtype dtype, int from) {
    ds_comm_call call = dsi_comm_call_of(DS_COMM_RECEIVE, NULL, data, count, dtype);
    call.root = from;
    return ds_comm_run(comm, &call);
}

static ds_status dsi_comm_group_exchange(void *ctx, const void *mine, void *all, size_t bytes) {
    return ds_comm_all_gather((ds_comm *)ctx, mine, all, bytes, NULL, DS_U8);
}
DS_API ds_group ds_comm_group(ds_comm *comm) {
    ds_group group;
    group.exchange = dsi_comm_group_exchange;
    group.ctx = comm;
    group.rank = comm->rank;
    group.size = comm->world;
    return group;
}
DS_API int ds_comm_rank(const ds_comm *comm) {
    return comm->rank;
}
DS_API int ds_comm_world(const ds_comm *comm) {
    return comm->world;
}
DS_API const char *ds_comm_backend(const ds_comm *comm) {
    return comm->name;
}
DS_API const ds_error *ds_comm_error(const ds_comm *comm) {
    return &comm->error;
}
DS_API void ds_comm_abort(ds_comm *comm, const char *message) {
    dsi_comm_post_abort(comm, message ? message : "ds_comm_abort");
}
DS_API void ds_comm_get_stats(const ds_comm *comm, ds_comm_stats *out) {
    for (int k = 0; k < DS_COMM_KIND_COUNT; k++) {
        out->calls[k] = __atomic_load_n(&comm->stats.calls[k], __ATOMIC_RELAXED);
        out->bytes_sent[k] = __atomic_load_n(&comm->stats.bytes_sent[k], __ATOMIC_RELAXED);
        out->bytes_received[k] = __atomic_load_n(&comm->stats.bytes_received[k], __ATOMIC_RELAXED);
    }
    out->staged_bytes = __atomic_load_n(&comm->stats.staged_bytes, __ATOMIC_RELAXED);
    out->wait_ns = __atomic_load_n(&comm->stats.wait_ns, __ATOMIC_RELAXED);
    out->busy_ns = __atomic_load_n(&comm->stats.busy_ns, __ATOMIC_RELAXED);
}

// >>sparse

static bool dsi_comm_zero_row(const char *row, size_t bytes) {
    return bytes == 0 || (row[0] == 0 && memcmp(row, row + 1, bytes - 1) == 0);
}
/* Room for `bytes` in the kept buffer, with what it holds. */
static ds_status dsi_comm_sparse_room(ds_comm *c, size_t bytes) {
    char *room;
    if (bytes <= c->sparse_bytes) return DS_OK;
    room = (char *)dsi_alloc(&c->allocator, bytes);
    if (!room) { /* the others wait for this rank's rows */
        ds_comm_abort(c, "ds_comm_sparse_all_reduce: no memory");
        return dsi_fail(&c->error, DS_ERR_MEMORY, "ds_comm_sparse_all_reduce: no memory for %zu bytes", bytes);
    }
    if (c->sparse) memcpy(room, c->sparse, c->sparse_bytes);
    dsi_release(&c->allocator, c->sparse, c->sparse_bytes);
    c->sparse = room;
    c->sparse_bytes = bytes;
    return DS_OK;
}
/* Adds the gathered rows into the table: for each row that any rank sent, the tree over all ranks, where a rank that did
   not send it adds a row of zeros, as it does in the whole table. `counts` gets used up. */
static void dsi_comm_sparse_add(ds_comm *c, char *table, size_t width, ds_dtype dtype, ds_comm_op op, size_t *counts,
                                const uint64_t *indices, const char *values, const char *zeros) {
    size_t row_bytes = width * DS_DTYPE_SIZE(dtype), *next = counts + c->world;
    dsi_comm_sum s;
    s.inputs = c->views;
    s.outputs = c->targets;
    s.input_count = c->world;
    s.output_count = 1;
    s.dtype = s.out_dtype = dtype;
    s.op = op;
    next[0] = 0;
    for (int r = 0; r < c->world; r++) counts[r] = next[r + 1] = next[r] + counts[r]; /* where the rank's rows end */
    for (;;) {
        uint64_t row = UINT64_MAX;
        for (int r = 0; r < c->world; r++)
            if (next[r] < counts[r] && indices[next[r]] < row) row = indices[next[r]];
        if (row == UINT64_MAX) break;
        for (int r = 0; r < c->world; r++) {
            bool has = next[r] < counts[r] && indices[next[r]] == row;
            c->views[r] = has ? values + next[r]++ * row_bytes : zeros;
        }
        c->targets[0] = table + (size_t)row * row_bytes;
        dsi_comm_sum_run(&s, width);
    }
}
/* What a rank brings; all but the first must be alike, as no later call shows them to the others. */
typedef struct dsi_comm_table {
    uint64_t filled, rows, width;
    uint32_t dtype, op;
} dsi_comm_table;
static ds_status dsi_comm_sparse_meet(ds_comm *c, const dsi_comm_table *mine, dsi_comm_table *all, size_t *counts) {
    ds_status status = ds_comm_all_gather(c, mine, all, sizeof *mine, NULL, DS_U8);
    for (int r = 0; r < c->world && !status; r++) {
        const dsi_comm_table *t = &all[r];
        counts[r] = (size_t)t->filled;
        if (t->rows == mine->rows && t->width == mine->width && t->dtype == mine->dtype && t->op == mine->op) continue;
        (void)dsi_comm_break(c, DS_ERR_PEER,
                             "call %llu differs: rank %d is in sparse_all_reduce(%llu rows of %llu %s, %s), rank %d "
                             "has %llu of %llu %s, %s",
                             (unsigned long long)c->number, c->rank, (unsigned long long)mine->rows,
                             (unsigned long long)mine->width, dsi_comm_dtype_name(mine->dtype),
                             dsi_comm_op_name(mine->op), r, (unsigned long long)t->rows, (unsigned long long)t->width,
                             dsi_comm_dtype_name(t->dtype), dsi_comm_op_name(t->op));
        return dsi_comm_state(c);
    }
    return status;
}
DS_API ds_status ds_comm_sparse_all_reduce(ds_comm *comm, void *table, size_t rows, size_t width, ds_dtype dtype,
                                           ds_comm_op op, bool *sparse) {
    dsi_comm_table own_table = {0, 0, 0, 0, 0};
    size_t w = (size_t)comm->world, size = (unsigned)dtype < DS_DTYPE_COUNT ? DS_DTYPE_SIZE(dtype) : 1;
    size_t row_bytes = dsi_mul(width, size), head = (2 * w + 1) * sizeof(size_t), total = 0, own = 0, at = 0;
    const size_t first = head + w * sizeof own_table;
    ds_status status;
    size_t *counts;
    uint64_t *indices;
    char *values, *mine;
    if (sparse) *sparse = false;
    if (op != DS_COMM_SUM && op != DS_COMM_AVERAGE)
        return dsi_fail(&comm->error, DS_ERR_ARGUMENT, "ds_comm_sparse_all_reduce: the operation is sum or average");
    if ((unsigned)dtype > DS_F64 || (!table && rows) || dsi_mul(rows, row_bytes) > SIZE_MAX / 4)
        return ds_comm_all_reduce(comm, table, table, dsi_mul(rows, width), dtype, op);
    for (size_t i = 0; i < rows; i++) own += !dsi_comm_zero_row((const char *)table + i * row_bytes, row_bytes);
    if ((status = dsi_comm_sparse_room(comm, first)) != DS_OK) return status;
    counts = (size_t *)(void *)comm->sparse;
    own_table.filled = own;
    own_table.rows = rows;
    own_table.width = width;
    own_table.dtype = (uint32_t)dtype;
    own_table.op = (uint32_t)op;
    status = dsi_comm_sparse_meet(comm, &own_table, (dsi_comm_table *)(void *)(comm->sparse + head), counts);
    if (status) return status;
    for (size_t r = 0; r < w; r++) total += counts[r];
    if (w == 1 || dsi_mul(total, row_bytes + sizeof *indices) >= 2 * rows * row_bytes)
        return ds_comm_all_reduce(comm, table, table, rows * width, dtype, op);
    {
        /* counts | all indices | all values | own indices | own values | zeros */
        size_t all = dsi_mul(total + own, sizeof *indices + row_bytes);
        if ((status = dsi_comm_sparse_room(comm, dsi_add(head, dsi_add(all, row_bytes)))) != DS_OK) return status;
    }
    counts = (size_t *)(void *)comm->sparse;
    indices = (uint64_t *)(void *)(comm->sparse + head);
    mine = (char *)(indices + total + own);
    values = mine + own * row_bytes;
    memset(values + total * row_bytes, 0, row_bytes);
    for (size_t i = 0; i < rows; i++) {
        const char *row = (const char *)table + i * row_bytes;
        if (dsi_comm_zero_row(row, row_bytes)) continue;
        indices[total + at] = i;
        memcpy(mine + at++ * row_bytes, row, row_bytes);
    }
    if ((status = ds_comm_all_gather(comm, indices + total, indices, 0, counts, DS_U64)) != DS_OK) return status;
    for (size_t r = 0; r < w; r++) counts[r] *= width;
    if ((status = ds_comm_all_gather(comm, mine, values, 0, counts, dtype)) != DS_OK) return status;
    for (size_t r = 0; r < w; r++) counts[r] /= width;
    dsi_comm_sparse_add(comm, (char *)table, width, dtype, op, counts, indices, values, values + total * row_bytes);
    if (sparse) *sparse = true;
    return DS_OK;
}

// >>compressed

DS_API ds_comm_one_bit ds_comm_one_bit_sizes(int world, size_t count) {
    ds_comm_one_bit sizes;
    size_t w = (size_t)(world > 0 ? world : 1), shared = w & 7 ? w & 3 ? w & 1 ? 1 : 2 : 4 : 8; /* gcd(w, 8) */
    sizes.padded = dsi_round_up(count, w * (8 * w / shared));
    sizes.chunk = sizes.padded / w;
    /* scales and signs sent, those received, one block of values per rank */
    sizes.scratch_bytes =
        dsi_round_up(w * sizeof(float) + sizes.padded / 8, 16) * 2 + w * DSI_COMM_BLOCK * sizeof(float);
    return sizes;
}

/* A sum of squares in the one order of norms: sixteen lanes of a grain, which fold by halves, and a binary tree over grains. */
typedef struct dsi_comm_norm {
    double lane[16], level[DSI_COMM_LEVELS * 2];
    size_t count; /* elements so far */
} dsi_comm_norm;
static void dsi_comm_norm_grain(dsi_comm_norm *s) {
    size_t grain = (s->count - 1) / DS_GRAIN, l = 0;
    double sum;
    for (size_t half = 8; half; half /= 2)
        for (size_t j = 0; j < half; j++) s->lane[j] += s->lane[j + half];
    for (sum = s->lane[0]; grain >> l & 1; l++) sum = s->level[l] + sum;
    s->level[l] = sum;
    memset(s->lane, 0, sizeof s->lane);
}
static double dsi_comm_norm_end(dsi_comm_norm *s) {
    const size_t grains = s->count / DS_GRAIN + (s->count % DS_GRAIN != 0);
    double sum = 0;
    bool some = false;
    if (s->count % DS_GRAIN) dsi_comm_norm_grain(s);
    for (size_t l = 0; grains >> l; l++) {
        if (!(grains >> l & 1)) continue;
        sum = some ? s->level[l] + sum : s->level[l];
        some = true;
    }
    return sum;
}
/* error += in (which may be NULL), whose squares go on with the sum. */
static void dsi_comm_feed(dsi_comm_norm *s, float *error, const float *in, size_t count) {
    while (count) {
        const size_t at = s->count % DS_GRAIN, n = count < DS_GRAIN - at ? count : DS_GRAIN - at;
        size_t i = 0;
#if DSI_COMM_X86
        if (dsi_comm_avx2() && at % 16 == 0) i = dsi_comm_feed_avx2(error, in, n, s->lane);
#endif
        for (; i < n; i++) {
            if (in) error[i] += in[i];
            s->lane[(at + i) % 16] += (double)error[i] * (double)error[i];
        }
        s->count += n;
        if (s->count % DS_GRAIN == 0) dsi_comm_norm_grain(s);
        error += n, count -= n;
        if (in) in += n;
    }
}
/* Packs the signs of `x` and leaves there what they and the scale |x| / sqrt(count), which is returned, have lost. */
static float dsi_comm_compress(float *x, size_t count, dsi_comm_norm *squares, unsigned char *signs) {
    float scale;
    size_t i = 0;
    scale = count ? (float)sqrt(dsi_comm_norm_end(squares) / (double)count) : 0.0f;
#if DSI_COMM_X86
    if (dsi_comm_avx2()) i = dsi_comm_signs_avx2(x, count, scale, signs);
#endif
    for (; i < count; i += 8) {
        unsigned bits = 0;
        for (size_t j = 0; j < 8; j++) {
            bits = bits << 1 | (x[i + j] >= 0);
            x[i + j] -= x[i + j] >= 0 ? scale : -scale;
        }
        signs[i / 8] = (unsigned char)bits;
    }
    return scale;
}
static void dsi_comm_expand(float *to, const unsigned char *signs, float scale, size_t count) {
    size_t i = 0;
#if DSI_COMM_X86
    if (dsi_comm_avx2()) i = dsi_comm_expand_avx2(to, signs, scale, count);
#endif
    for (; i < count; i++) to[i] = signs[i / 8] >> (7 - i % 8) & 1 ? scale : -scale;
}

DS_API ds_status ds_comm_one_bit_all_reduce(ds_comm *comm, const float *in, float *out, size_t count,
                                            float *worker_error, float *server_error, void *scratch) {
    const ds_comm_one_bit sizes = ds_comm_one_bit_sizes(comm->world, count);
    const size_t bytes = sizes.padded / 8, part = sizes.chunk / 8, each = sizeof(float) + part;
    unsigned char *mine = (unsigned char *)scratch, *theirs = mine + dsi_round_up(each * (size_t)comm->world, 16);
    float *values = (float *)(void *)(theirs + (theirs - mine)), scale;
    float level[DSI_COMM_LEVELS][DSI_COMM_BLOCK], average[DSI_COMM_BLOCK];
    dsi_comm_norm squares, server_squares;
    ds_status status;
    memset(&squares, 0, sizeof squares), memset(&server_squares, 0, sizeof server_squares);
    dsi_comm_feed(&squares, worker_error, in, count);
    dsi_comm_feed(&squares, worker_error + count, NULL, sizes.padded - count);
    scale = dsi_comm_compress(worker_error, sizes.padded, &squares, theirs);
    for (size_t at = 0; at < bytes; at += part) { /* a message: the scale, then signs */
        unsigned char *to = mine + at / part * each;
        memcpy(to, &scale, sizeof scale);
        memcpy(to + sizeof scale, theirs + at, part);
    }
    if (!part) return DS_OK;
    if ((status = ds_comm_all_to_all(comm, mine, theirs, each, DS_U8)) != DS_OK) return status;
    for (size_t begin = 0; begin < sizes.chunk; begin += DSI_COMM_BLOCK) {
        size_t n = sizes.chunk - begin < DSI_COMM_BLOCK ? sizes.chunk - begin : DSI_COMM_BLOCK;
        for (int r = 0; r < comm->world; r++) {
            const unsigned char *from = theirs + (size_t)r * each;
            memcpy(&scale, from, sizeof scale);
            dsi_comm_expand(values + (size_t)r * n, from + sizeof scale + begin / 8, scale, n);
            comm->views[r] = values + (size_t)r * n;
        }
        dsi_comm_divide_f32(average, dsi_comm_fold_f32(level, comm->views, comm->world, DS_F32, 0, n, DS_COMM_SUM),
                            comm->world, n);
        dsi_comm_feed(&server_squares, server_error + begin, average, n);
    }
    scale = dsi_comm_compress(server_error, sizes.chunk, &server_squares, mine + sizeof scale);
    memcpy(mine, &scale, sizeof scale);
    if ((status = ds_comm_all_gather(comm, mine, theirs, each, NULL, DS_U8)) != DS_OK) return status;
    for (size_t i = 0; i < count; i += sizes.chunk) {
        const unsigned char *from = theirs + i / sizes.chunk * each;
        memcpy(&scale, from, sizeof scale);
        dsi_comm_expand(out + i, from + sizeof scale, scale, count - i < sizes.chunk ? count - i : sizes.chunk);
    }
    return DS_OK;
}

static void dsi_comm_value_store(void *p, ds_dtype dtype, size_t i, float x) {
    if (dtype == DS_BF16)
        ((uint16_t *)p)[i] = dsi_bf16_of_f32(x);
    else if (dtype == DS_F16)
        ((uint16_t *)p)[i] = dsi_f16_of_f32(x);
    else
        ((float *)p)[i] = x;
}
static float dsi_comm_rounded(float x, ds_dtype dtype) {
    return dtype == DS_BF16  ? dsi_f32_of_bf16(dsi_bf16_of_f32(x))
           : dtype == DS_F16 ? dsi_f32_of_f16(dsi_f16_of_f32(x))
                             : x;
}

/* One group that begins at value `first`. The step is rounded through its reciprocal, as the kernels of ZeRO++ do. */
static void dsi_comm_quantize_group(ds_comm_blocks form, const void *in, ds_dtype dtype, size_t from, size_t count,
                                    int8_t *packed, size_t first, float *params) {
    float low = dsi_comm_f32_load(in, dtype, from), high = low, middle = 0, range, scale = 1;
    const float half = form.bits == 8 ? 128.0f : 8.0f;
    size_t done = 0;
#if DSI_COMM_X86
    const bool vectors = !form.asymmetric && first % 2 == 0 && dsi_comm_avx2();
    if (vectors) done = dsi_comm_largest_avx2(in, dtype, from, count, &low, &high);
#endif
    for (size_t i = done; i < count; i++) {
        float x = dsi_comm_f32_load(in, dtype, from + i);
        low = x < low || x != x ? x : low; /* stays NaN */
        high = x > high ? x : high;
    }
    if (form.asymmetric && low == low) middle = (high + low) / 2;
    range = form.asymmetric ? high - low : 2 * (high > -low ? high : -low);
    if (low == low && range > 0) scale = 2 * half / range;
    params[0] = low == low ? 1 / scale : NAN;
    if (form.asymmetric) params[1] = middle;
    done = 0;
#if DSI_COMM_X86
    if (vectors)
        done =
            dsi_comm_quantize_avx2(in, dtype, from, count, scale, half, packed + (form.bits == 8 ? first : first / 2));
#endif
    for (size_t i = done; i < count; i++) {
        float q = rintf((dsi_comm_f32_load(in, dtype, from + i) - middle) * scale);
        int value = (int)(q < -half ? -half : q > half - 1 ? half - 1 : q == q ? q : 0); /* NaN: 0, as by vectors */
        size_t at = first + i;
        if (form.bits == 8)
            packed[at] = (int8_t)value;
        else if (at % 2 == 0)
            packed[at / 2] = (int8_t)(value * 16);
        else
            packed[at / 2] = (int8_t)((packed[at / 2] & 0xF0) | (value & 0x0F));
    }
}
static float dsi_comm_dequantize_one(ds_comm_blocks form, const int8_t *packed, size_t at, const float *params) {
    int q = packed[form.bits == 8 ? at : at / 2];
    if (form.bits == 4) q = at % 2 == 0 ? q >> 4 : (int)(((unsigned)q & 15u) ^ 8u) - 8;
    if (!form.asymmetric) return (float)q * params[0];
    return (float)((double)q * (double)params[0] + (double)params[1]); /* the product is exact, contracted or not */
}
DS_API void ds_comm_quantize(ds_comm_blocks form, const void *in, ds_dtype dtype, size_t count, int8_t *packed,
                             float *params) {
    size_t each = form.groups ? count / form.groups : 0;
    for (size_t g = 0; each && g < form.groups; g++)
        dsi_comm_quantize_group(form, in, dtype, g * each, each, packed, g * each,
                                params + g * (form.asymmetric ? 2 : 1));
}
DS_API void ds_comm_dequantize(ds_comm_blocks form, const int8_t *packed, const float *params, void *out,
                               ds_dtype dtype, size_t count) {
    size_t each = form.groups ? count / form.groups : 0;
    for (size_t g = 0; each && g < form.groups; g++) {
        size_t done = 0;
#if DSI_COMM_X86
        if (form.bits == 8 && !form.asymmetric && dsi_comm_avx2())
            done = dsi_comm_dequantize_avx2(packed + g * each, params[g], out, dtype, g * each, each);
#endif
        for (size_t i = g * each + done; i < (g + 1) * each; i++)
            dsi_comm_value_store(out, dtype, i,
                                 dsi_comm_dequantize_one(form, packed, i, params + g * (form.asymmetric ? 2 : 1)));
    }
}

DS_API size_t ds_comm_quantized_scratch(int world, size_t count, size_t groups) {
    size_t w = (size_t)world, values = dsi_round_up(dsi_mul(w, count), 16);
    /* packed values and parameters of all ranks, sent and received, and a group's sums */
    return dsi_add(dsi_mul(2, values), dsi_mul(dsi_add(dsi_mul(2 * w, groups), count), sizeof(float)));
}
static ds_status dsi_comm_check_groups(ds_comm *c, size_t count, ds_dtype dtype, size_t groups, size_t multiple) {
    if (dtype != DS_F32 && dtype != DS_F16 && dtype != DS_BF16)
        return dsi_fail(&c->error, DS_ERR_ARGUMENT, "quantized collective: dtype %s; expected f32, f16 or bf16",
                        dsi_comm_dtype_name((uint32_t)dtype));
    if (count && (!groups || count % groups || count / groups % multiple))
        return dsi_fail(&c->error, DS_ERR_ARGUMENT,
                        "quantized collective: %zu values do not make %zu equal groups of a multiple of %zu", count,
                        groups, multiple);
    return DS_OK;
}
DS_API ds_status ds_comm_quantized_all_gather(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype,
                                              size_t groups, void *scratch) {
    ds_comm_blocks form = {8, false, groups};
    size_t w = (size_t)comm->world, values = dsi_round_up(w * count, 16);
    int8_t *packed = (int8_t *)scratch;
    float *params = (float *)(void *)(packed + 2 * values), *mine = params + groups * (size_t)comm->rank;
    ds_status status = dsi_comm_check_groups(comm, count, dtype, groups, 1);
    if (status) return status;
    ds_comm_quantize(form, in, dtype, count, packed + count * (size_t)comm->rank, mine);
    status = ds_comm_all_gather(comm, packed + count * (size_t)comm->rank, packed, count, NULL, DS_I8);
    if (!status) status = ds_comm_all_gather(comm, mine, params, groups, NULL, DS_F32);
    form.groups = groups * w;
    if (!status) ds_comm_dequantize(form, packed, params, out, dtype, count * w);
    return status;
}

DS_API ds_status ds_comm_quantized_reduce_scatter(ds_comm *node, ds_comm *across, const void *in, void *out,
                                                  size_t count, ds_dtype dtype, size_t groups, float divisor,
                                                  void *scratch) {
    const ds_comm_blocks form = {4, false, groups};
    size_t devices = (size_t)node->world, nodes = across ? (size_t)across->world : 1;
    size_t values = dsi_round_up(devices * nodes * count, 16), each = groups ? count / groups : 0;
    int8_t *packed = (int8_t *)scratch, *got = packed + values;
    float *params = (float *)(void *)(packed + 2 * values), *got_params = params + devices * nodes * groups;
    ds_status status = dsi_comm_check_groups(node, count, dtype, groups, 2);
    if (status) return status;
    /* parts in order of the device that sums them, then of the node */
    for (size_t z = 0; z < devices * nodes; z++) {
        size_t at = z % devices * nodes + z / devices;
        for (size_t g = 0; g < groups; g++)
            dsi_comm_quantize_group(form, in, dtype, z * count + g * each, each, packed, at * count + g * each,
                                    params + at * groups + g);
    }
    status = ds_comm_all_to_all(node, packed, got, nodes * count / 2, DS_I8);
    if (!status) status = ds_comm_all_to_all(node, params, got_params, nodes * groups, DS_F32);
    if (status) return status;
    for (size_t g = 0; g < nodes * groups; g++) { /* the devices' sum, quantized again */
        float *sum = got_params + devices * nodes * groups;
        for (size_t i = 0; i < each; i++) {
            float x = 0;
            for (size_t d = 0; d < devices; d++)
                x = dsi_comm_rounded(
                    x + dsi_comm_rounded(dsi_comm_dequantize_one(form, got + d * (nodes * count / 2), g * each + i,
                                                                 got_params + d * nodes * groups + g),
                                         dtype),
                    dtype);
            sum[i] = x;
        }
        dsi_comm_quantize_group(form, sum, DS_F32, 0, each, packed, g * each, params + g);
    }
    if (across) {
        status = ds_comm_all_to_all(across, packed, got, count / 2, DS_I8);
        if (!status) status = ds_comm_all_to_all(across, params, got_params, groups, DS_F32);
        if (status) return dsi_fail(&node->error, status, "%s", across->error.message);
    }
    for (size_t i = 0; i < count; i++) {
        const int8_t *from = across ? got : packed;
        const float *steps = across ? got_params : params;
        float x = 0;
        for (size_t n = 0; n < nodes; n++)
            x = dsi_comm_rounded(
                x + dsi_comm_rounded(
                        dsi_comm_dequantize_one(form, from + n * (count / 2), i, steps + n * groups + i / each), dtype),
                dtype);
        dsi_comm_value_store(out, dtype, i, x / divisor);
    }
    return DS_OK;
}

/* What the calls on device memory below are made of. */
static ds_status dsi_comm_run_on(ds_comm *c, ds_comm_kind kind, const void *in, void *out, size_t count, ds_dtype dtype,
                                 void *stream) {
    ds_comm_call call;
    memset(&call, 0, sizeof call);
    call.kind = kind;
    call.in = in, call.out = out, call.count = count, call.dtype = dtype;
    call.on_device = true, call.stream = stream;
    return ds_comm_run(c, &call);
}
static ds_status dsi_comm_kernel(ds_comm *c, ds_status status) {
    if (!status) return DS_OK;
    (void)dsi_comm_device_failed(c, status);
    return dsi_comm_state(c);
}

static size_t dsi_comm_one_bit_grains(size_t padded) {
    return padded / DS_GRAIN + (padded % DS_GRAIN != 0);
}
DS_API size_t ds_comm_one_bit_scratch_on(int world, size_t count) {
    const size_t padded = ds_comm_one_bit_sizes(world, count).padded;
    /* sums by grain; a scale for each rank and one's own; signs sent and received */
    return dsi_add(dsi_mul(dsi_comm_one_bit_grains(padded), sizeof(double)),
                   ((size_t)(world > 0 ? world : 1) + 1) * sizeof(float) + padded / 8 * 2);
}
DS_API ds_status ds_comm_one_bit_all_reduce_on(ds_comm *comm, const float *in, float *out, size_t count,
                                               float *worker_error, float *server_error, void *scratch, void *stream) {
    const ds_comm_kernels *k = &comm->kernels;
    const ds_comm_one_bit sizes = ds_comm_one_bit_sizes(comm->world, count);
    const size_t bytes = sizes.padded / 8, part = sizes.chunk / 8;
    double *const grains = (double *)scratch;
    float *const scales = (float *)(void *)(grains + dsi_comm_one_bit_grains(sizes.padded));
    float *const scale = scales + comm->world;
    uint8_t *const mine = (uint8_t *)(scale + 1), *const theirs = mine + bytes;
    ds_status status;
    if (!comm->device.copy || !k->compress || !k->average || !k->expand)
        return dsi_fail(&comm->error, DS_ERR_UNSUPPORTED,
                        "1-bit all-reduce on device memory: the communicator lacks desc.device or desc.kernels");
    if (!part) return DS_OK;
    status =
        dsi_comm_kernel(comm, k->compress(k->ctx, worker_error, in, count, sizes.padded, mine, scale, grains, stream));
    if (!status) status = dsi_comm_run_on(comm, DS_COMM_ALL_TO_ALL, mine, theirs, part, DS_U8, stream);
    if (!status) status = dsi_comm_run_on(comm, DS_COMM_ALL_GATHER, scale, scales, 1, DS_F32, stream);
    if (!status)
        status =
            dsi_comm_kernel(comm, k->average(k->ctx, server_error, theirs, scales, comm->world, sizes.chunk, stream));
    if (!status)
        status =
            dsi_comm_kernel(comm, k->compress(k->ctx, server_error, NULL, 0, sizes.chunk, mine, scale, grains, stream));
    if (!status) status = dsi_comm_run_on(comm, DS_COMM_ALL_GATHER, mine, theirs, part, DS_U8, stream);
    if (!status) status = dsi_comm_run_on(comm, DS_COMM_ALL_GATHER, scale, scales, 1, DS_F32, stream);
    for (size_t i = 0, r = 0; i < count && !status; i += sizes.chunk, r++)
        status = dsi_comm_kernel(comm, k->expand(k->ctx, out + i, theirs + r * part, scales + r,
                                                 count - i < sizes.chunk ? count - i : sizes.chunk, stream));
    return status;
}

DS_API size_t ds_comm_quantized_scratch_on(int devices, int nodes, size_t count, size_t groups) {
    return dsi_add(ds_comm_quantized_scratch(devices * nodes, count, groups),
                   dsi_mul(2 * sizeof(float) * (size_t)nodes, count));
}
static ds_status dsi_comm_check_device(ds_comm *c, size_t count, ds_dtype dtype, size_t groups, size_t multiple) {
    if (!c->device.copy || !c->kernels.quantize || !c->kernels.dequantize || !c->kernels.sum)
        return dsi_fail(&c->error, DS_ERR_UNSUPPORTED,
                        "quantized collective on device memory: the communicator lacks desc.device or desc.kernels");
    return dsi_comm_check_groups(c, count, dtype, groups, multiple);
}
DS_API ds_status ds_comm_quantized_all_gather_on(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype,
                                                 size_t groups, void *scratch, void *stream) {
    const ds_comm_kernels *k = &comm->kernels;
    ds_comm_blocks form = {8, false, groups};
    size_t w = (size_t)comm->world, values = dsi_round_up(w * count, 16);
    int8_t *packed = (int8_t *)scratch, *own = packed + count * (size_t)comm->rank;
    float *params = (float *)(void *)(packed + 2 * values), *mine = params + groups * (size_t)comm->rank;
    ds_status status = dsi_comm_check_device(comm, count, dtype, groups, 1);
    if (!status) status = dsi_comm_kernel(comm, k->quantize(k->ctx, form, in, dtype, count, own, mine, stream));
    if (!status) status = dsi_comm_run_on(comm, DS_COMM_ALL_GATHER, own, packed, count, DS_I8, stream);
    if (!status) status = dsi_comm_run_on(comm, DS_COMM_ALL_GATHER, mine, params, groups, DS_F32, stream);
    form.groups = groups * w;
    if (status) return status;
    return dsi_comm_kernel(comm, k->dequantize(k->ctx, form, packed, params, out, dtype, count * w, stream));
}

/* sum = that of `ranks` arrays of n quantized values, rounded to dtype after each addition, in order. */
static ds_status dsi_comm_sum_packed(ds_comm *c, size_t ranks, size_t groups, size_t n, const int8_t *packed,
                                     const float *params, void *sum, void *one, ds_dtype dtype, void *stream) {
    const ds_comm_kernels *k = &c->kernels;
    const ds_comm_blocks form = {4, false, groups};
    const void *both[2];
    ds_status status = DS_OK;
    both[0] = sum, both[1] = one;
    for (size_t r = 0; r < ranks && !status; r++) {
        status =
            k->dequantize(k->ctx, form, packed + r * (n / 2), params + r * groups, r ? one : sum, dtype, n, stream);
        if (r && !status) status = k->sum(k->ctx, both, 2, dtype, sum, dtype, DS_COMM_SUM, n, stream);
    }
    return dsi_comm_kernel(c, status);
}
DS_API ds_status ds_comm_quantized_reduce_scatter_on(ds_comm *node, ds_comm *across, const void *in, void *out,
                                                     size_t count, ds_dtype dtype, size_t groups, void *scratch,
                                                     void *stream) {
    const ds_comm_kernels *k = &node->kernels;
    ds_comm_blocks form = {4, false, groups};
    size_t devices = (size_t)node->world, nodes = across ? (size_t)across->world : 1;
    size_t values = dsi_round_up(devices * nodes * count, 16), n = nodes * count;
    int8_t *packed = (int8_t *)scratch, *got = packed + values;
    float *params = (float *)(void *)(packed + 2 * values), *got_params = params + devices * nodes * groups;
    float *sum = got_params + devices * nodes * groups + count, *one = sum + n;
    ds_status status = dsi_comm_check_device(node, count, dtype, groups, 2);
    for (size_t z = 0; z < devices * nodes && !status; z++) {
        size_t at = z % devices * nodes + z / devices;
        status =
            dsi_comm_kernel(node, k->quantize(k->ctx, form, (const char *)in + z * count * DS_DTYPE_SIZE(dtype), dtype,
                                              count, packed + at * count / 2, params + at * groups, stream));
    }
    if (!status) status = dsi_comm_run_on(node, DS_COMM_ALL_TO_ALL, packed, got, n / 2, DS_I8, stream);
    if (!status) status = dsi_comm_run_on(node, DS_COMM_ALL_TO_ALL, params, got_params, nodes * groups, DS_F32, stream);
    if (!status)
        status = dsi_comm_sum_packed(node, devices, nodes * groups, n, got, got_params, sum, one, dtype, stream);
    form.groups = nodes * groups;
    if (!status) status = dsi_comm_kernel(node, k->quantize(k->ctx, form, sum, dtype, n, packed, params, stream));
    if (!status && across) {
        status = dsi_comm_run_on(across, DS_COMM_ALL_TO_ALL, packed, got, count / 2, DS_I8, stream);
        if (!status) status = dsi_comm_run_on(across, DS_COMM_ALL_TO_ALL, params, got_params, groups, DS_F32, stream);
        if (status) return dsi_fail(&node->error, status, "%s", across->error.message);
    }
    if (status) return status;
    return dsi_comm_sum_packed(node, nodes, groups, count, across ? got : packed, across ? got_params : params, out,
                               one, dtype, stream);
}

// >>sparse rows on a device

/* On a device the host has only flags and indices: it merges the ranks' rows, a piece at a time, and kernels do the rest. */
typedef struct dsi_comm_rows {
    ds_comm *comm;
    char *table;
    size_t rows, width, row_bytes, piece;
    ds_dtype dtype;
    ds_comm_op op;
    void *stream;
    /* of the device: this rank's flags, then what `moves` says, rows to send (and sums), rows of all, one of each rank */
    uint8_t *device_flags;
    uint32_t *device_moves;
    char *mine, *values, *spread;
    /* of the host: what all ranks bring, the next row of each and where they end, indices of all and then this rank's, flags,
       and (piece) rows of the union, (piece) of this rank's, (world, piece) places in `values` */
    dsi_comm_table *tables;
    size_t *next, *ends, *counts;
    uint64_t *indices;
    uint8_t *flags;
    uint32_t *moves;
} dsi_comm_rows;

/* Cuts scratch into the parts above; both begin at NULL when only sizes are asked for. */
static ds_comm_sparse dsi_comm_rows_place(dsi_comm_rows *s, size_t world, char *device, char *host) {
    const size_t moves = dsi_round_up(dsi_mul(dsi_mul(world + 2, s->piece), sizeof(uint32_t)), 16);
    const size_t piece = dsi_round_up(dsi_mul(s->piece, s->row_bytes), 16), all = dsi_round_up(s->rows, 16);
    const size_t heads = dsi_round_up(world * sizeof *s->tables + (3 * world + 1) * sizeof(size_t), 16);
    ds_comm_sparse sizes;
    sizes.device_bytes = dsi_add(dsi_add(all, moves), dsi_mul(2 * world + 1, piece));
    sizes.host_bytes = dsi_add(dsi_add(heads, dsi_mul(3 * sizeof *s->indices, all)), dsi_add(all, moves));
    if (!device) return sizes;
    s->device_flags = (uint8_t *)device;
    s->device_moves = (uint32_t *)(void *)(device + all);
    s->mine = device + all + moves;
    s->values = s->mine + piece;
    s->spread = s->values + world * piece;
    s->tables = (dsi_comm_table *)(void *)host;
    s->next = (size_t *)(void *)(s->tables + world);
    s->ends = s->next + world;
    s->counts = s->ends + world;
    s->indices = (uint64_t *)(void *)(host + heads);
    s->flags = (uint8_t *)(s->indices + 3 * all);
    s->moves = (uint32_t *)(void *)(s->flags + all);
    return sizes;
}
DS_API ds_comm_sparse ds_comm_sparse_sizes(int world, size_t rows, size_t width, ds_dtype dtype, size_t piece) {
    dsi_comm_rows s;
    memset(&s, 0, sizeof s);
    s.rows = rows;
    s.row_bytes = dsi_mul(width, DS_DTYPE_SIZE(dtype));
    s.piece = piece;
    return dsi_comm_rows_place(&s, world > 0 ? (size_t)world : 1, NULL, NULL);
}

/* Flags come to the host and become this rank's indices, behind room for those of all. */
static ds_status dsi_comm_rows_find(dsi_comm_rows *s, size_t *own) {
    ds_comm *c = s->comm;
    const ds_comm_kernels *k = &c->kernels;
    uint64_t *mine = s->indices + 2 * s->rows;
    ds_status status =
        dsi_comm_kernel(c, k->flag_rows(k->ctx, s->table, s->rows, s->row_bytes, s->device_flags, s->stream));
    if (!status) status = dsi_comm_device_copy(c, s->flags, s->device_flags, s->rows, s->stream);
    *own = 0;
    for (size_t i = 0; i < s->rows && !status; i++)
        if (s->flags[i]) mine[(*own)++] = i;
    return status ? dsi_comm_state(c) : DS_OK;
}
/* The next rows of the union, at most a piece: fills `moves` and counts, and returns how many there are. */
static size_t dsi_comm_rows_merge(dsi_comm_rows *s) {
    const size_t world = (size_t)s->comm->world;
    uint32_t *united = s->moves, *own = united + s->piece, *places = own + s->piece;
    size_t n = 0, sent = 0;
    memset(s->counts, 0, world * sizeof *s->counts);
    for (; n < s->piece; n++) {
        uint64_t row = UINT64_MAX;
        for (size_t r = 0; r < world; r++)
            if (s->next[r] < s->ends[r] && s->indices[s->next[r]] < row) row = s->indices[s->next[r]];
        if (row == UINT64_MAX) break;
        united[n] = (uint32_t)row;
        for (size_t r = 0; r < world; r++) {
            const bool has = s->next[r] < s->ends[r] && s->indices[s->next[r]] == row;
            places[r * s->piece + n] = has ? (uint32_t)s->counts[r] : DS_COMM_NO_ROW;
            if (has && r == (size_t)s->comm->rank) own[s->counts[r]] = (uint32_t)row;
            s->next[r] += has;
            s->counts[r] += has;
        }
    }
    for (size_t r = 0; r < world; r++) { /* ranks' rows stand one behind the other in `values` */
        for (size_t i = 0; i < n; i++)
            if (places[r * s->piece + i] != DS_COMM_NO_ROW) places[r * s->piece + i] += (uint32_t)sent;
        sent += s->counts[r];
    }
    return n;
}
/* A piece of n rows: to the others, beside theirs (a rank without a row has zeros there), added, and back. The call in the
   middle waits for the stream, so that `moves` may be written again after it. */
static ds_status dsi_comm_rows_sum(dsi_comm_rows *s, size_t n) {
    ds_comm *c = s->comm;
    const ds_comm_kernels *k = &c->kernels;
    const size_t world = (size_t)c->world, sent = s->counts[c->rank];
    const uint32_t *own = s->device_moves + s->piece, *places = own + s->piece;
    ds_status status = dsi_comm_kernel(c, c->device.copy(c->device.ctx, s->device_moves, s->moves,
                                                         (world + 2) * s->piece * sizeof *s->moves, s->stream));
    if (!status)
        status = dsi_comm_kernel(c, k->gather_rows(k->ctx, s->mine, s->table, own, sent, s->row_bytes, s->stream));
    for (size_t r = 0; r < world; r++) s->counts[r] *= s->width;
    if (!status) {
        ds_comm_call call;
        memset(&call, 0, sizeof call);
        call.kind = DS_COMM_ALL_GATHER;
        call.in = s->mine, call.out = s->values, call.counts = s->counts, call.dtype = s->dtype;
        call.on_device = true, call.stream = s->stream;
        status = ds_comm_run(c, &call);
    }
    for (size_t r = 0; r < world && !status; r++) {
        c->views[r] = s->spread + r * s->piece * s->row_bytes;
        status = dsi_comm_kernel(c, k->gather_rows(k->ctx, s->spread + r * s->piece * s->row_bytes, s->values,
                                                   places + r * s->piece, n, s->row_bytes, s->stream));
    }
    if (!status)
        status = dsi_comm_kernel(
            c, k->sum(k->ctx, c->views, c->world, s->dtype, s->mine, s->dtype, s->op, n * s->width, s->stream));
    if (status) return status;
    return dsi_comm_kernel(c, k->scatter_rows(k->ctx, s->table, s->mine, s->device_moves, n, s->row_bytes, s->stream));
}
DS_API ds_status ds_comm_sparse_all_reduce_on(ds_comm *comm, void *table, size_t rows, size_t width, ds_dtype dtype,
                                              ds_comm_op op, size_t piece, void *device, void *host, bool *sparse,
                                              void *stream) {
    const ds_comm_kernels *k = &comm->kernels;
    const size_t w = (size_t)comm->world;
    const bool able = k->flag_rows && k->gather_rows && k->scatter_rows && k->sum && comm->device.copy &&
                      comm->world <= DS_COMM_KERNEL_RANKS && rows < DS_COMM_NO_ROW;
    dsi_comm_table own_table = {0, 0, 0, 0, 0};
    dsi_comm_rows s;
    size_t own = 2 * rows, total = 0, n; /* a rank that cannot says so by more rows than pay */
    ds_status status = DS_OK;
    if (sparse) *sparse = false;
    if ((op != DS_COMM_SUM && op != DS_COMM_AVERAGE) || (unsigned)dtype > DS_BF16 || !piece || !device || !host)
        return dsi_fail(&comm->error, DS_ERR_ARGUMENT,
                        "ds_comm_sparse_all_reduce_on: a sum or average of fp32, fp16 or bf16 with scratch, in pieces "
                        "of 1 row or more");
    memset(&s, 0, sizeof s);
    s.comm = comm, s.table = (char *)table, s.rows = rows, s.width = width, s.piece = piece;
    s.row_bytes = dsi_mul(width, DS_DTYPE_SIZE(dtype));
    s.dtype = dtype, s.op = op, s.stream = stream;
    (void)dsi_comm_rows_place(&s, w, (char *)device, (char *)host);
    if (able && (status = dsi_comm_rows_find(&s, &own)) != DS_OK) return status;
    own_table.filled = own, own_table.rows = rows, own_table.width = width;
    own_table.dtype = (uint32_t)dtype, own_table.op = (uint32_t)op;
    if ((status = dsi_comm_sparse_meet(comm, &own_table, s.tables, s.counts)) != DS_OK) return status;
    for (size_t r = 0; r < w; r++) {
        s.next[r] = total;
        s.ends[r] = total += s.counts[r];
    }
    if (w == 1 || dsi_mul(total, s.row_bytes + sizeof *s.indices) >= 2 * rows * s.row_bytes) {
        ds_comm_call call;
        memset(&call, 0, sizeof call);
        call.kind = DS_COMM_ALL_REDUCE, call.in = call.out = table, call.count = rows * width;
        call.dtype = dtype, call.op = op, call.on_device = true, call.stream = stream;
        return ds_comm_run(comm, &call);
    }
    status = ds_comm_all_gather(comm, s.indices + 2 * rows, s.indices, 0, s.counts, DS_U64);
    while (!status && (n = dsi_comm_rows_merge(&s)) != 0) status = dsi_comm_rows_sum(&s, n);
    if (sparse) *sparse = !status;
    return status;
}

// >>environment

static const char *dsi_comm_getenv(void *ctx, const char *name) {
    (void)ctx;
    return getenv(name);
}
typedef struct dsi_comm_reader {
    const char *(*get)(void *ctx, const char *name);
    void *ctx;
    ds_error *error;
    ds_status status; /* of the first wrong variable */
} dsi_comm_reader;

/* A variable's number; `missing` when it is not set or empty. */
static int dsi_comm_number(dsi_comm_reader *r, const char *name, int missing) {
    const char *text = r->get(r->ctx, name), *p = text;
    long value = 0;
    if (!text || !*text) return missing;
    for (; *p >= '0' && *p <= '9' && value <= INT_MAX; p++) value = value * 10 + (*p - '0');
    if (*p || value > INT_MAX) {
        if (!r->status)
            r->status = dsi_fail(r->error, DS_ERR_INPUT, "%s is \"%.60s\"; expected a number from 0 to %d", name, text,
                                 INT_MAX);
        return missing;
    }
    return (int)value;
}

/* Names of rank, world, local rank, local world. */
typedef struct dsi_comm_launcher {
    const char *name, *rank, *world, *local_rank, *local_world;
} dsi_comm_launcher;

/* SLURM_STEP_TASKS_PER_NODE, "2(x3),1": the entry of this node. */
static int dsi_comm_slurm_tasks(const char *text, int node) {
    while (text && *text) {
        char *end;
        long tasks = strtol(text, &end, 10), times = 1;
        if (end == text || tasks < 1 || tasks > INT_MAX) return -1;
        if (end[0] == '(' && end[1] == 'x') {
            times = strtol(end + 2, &end, 10);
            if (times < 1 || *end++ != ')') return -1;
        }
        if (node < times) return (int)tasks;
        node -= (int)times;
        text = *end == ',' ? end + 1 : NULL;
    }
    return -1;
}

/* What the ranks of one run have in common and no other run of this user has now. */
static void dsi_comm_run_id(dsi_comm_reader *r, ds_comm_env *out) {
    static const char *const jobs[] = {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "SLURM_JOB_ID"};
    const char *id = r->get(r->ctx, "DS_RUN_ID"), *more;
    if (id && *id) {
        snprintf(out->run_id, sizeof out->run_id, "%s", id);
        return;
    }
    id = r->get(r->ctx, "TORCHELASTIC_RUN_ID");
    if (id && *id && strcmp(id, "none") != 0) {
        more = r->get(r->ctx, "TORCHELASTIC_RESTART_COUNT");
        snprintf(out->run_id, sizeof out->run_id, "elastic %.60s %.20s %d", id, more ? more : "", out->master_port);
        return;
    }
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs && strcmp(out->source, "torchrun") != 0; i++) {
        id = r->get(r->ctx, jobs[i]);
        more = r->get(r->ctx, "SLURM_STEP_ID");
        if (id && *id) {
            snprintf(out->run_id, sizeof out->run_id, "job %.80s %.20s", id, more ? more : "");
            return;
        }
    }
    if (out->master_port)
        snprintf(out->run_id, sizeof out->run_id, "port %d", out->master_port);
    else
        snprintf(out->run_id, sizeof out->run_id, "parent %ld", (long)getppid());
}

DS_API ds_status ds_comm_resolve_env(const char *(*get)(void *ctx, const char *name), void *ctx, ds_comm_env *out,
                                     ds_error *error) {
    static const dsi_comm_launcher launchers[] = {
        {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
        {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
         "OMPI_COMM_WORLD_LOCAL_SIZE"},
        {"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
        {"MVAPICH2", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK",
         "MV2_COMM_WORLD_LOCAL_SIZE"},
        {"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""}};
    dsi_comm_reader r;
    const dsi_comm_launcher *chosen = NULL;
    const char *text;
    memset(out, 0, sizeof *out);
    r.get = get ? get : dsi_comm_getenv;
    r.ctx = ctx;
    r.error = error;
    r.status = DS_OK;
    out->world = 1;
    out->local_rank = out->local_world = -1;
    out->source = "none";
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers && !r.status; i++) {
        const dsi_comm_launcher *l = &launchers[i];
        int world = dsi_comm_number(&r, l->world, -1);
        int rank = i == 4 && world < 0 ? -1 : dsi_comm_number(&r, l->rank, -1); /* sbatch sets SLURM_PROCID alone */
        if (r.status) return r.status;
        if (rank < 0 && world < 0) continue;
        if (rank < 0 || world < 0)
            return dsi_fail(error, DS_ERR_INPUT, "%s is set but %s is not; a launcher sets both",
                            rank < 0 ? l->world : l->rank, rank < 0 ? l->rank : l->world);
        if (world < 1 || rank >= world)
            return dsi_fail(error, DS_ERR_INPUT, "%s is %d but %s is %d; a rank is below the world size", l->rank, rank,
                            l->world, world);
        if (chosen && i != 4 && (rank != out->rank || world != out->world))
            return dsi_fail(error, DS_ERR_INPUT, "%s, %s say rank %d of %d, but %s, %s say rank %d of %d", chosen->rank,
                            chosen->world, out->rank, out->world, l->rank, l->world, rank, world);
        if (chosen) continue;
        chosen = l;
        out->source = l->name;
        out->rank = rank;
        out->world = world;
        out->local_rank = dsi_comm_number(&r, l->local_rank, -1);
        if (*l->local_world) out->local_world = dsi_comm_number(&r, l->local_world, -1);
        if (i == 0 && out->local_world < 0) out->local_world = dsi_comm_number(&r, "LOCAL_SIZE", -1);
        if (i == 4)
            out->local_world =
                dsi_comm_slurm_tasks(r.get(ctx, "SLURM_STEP_TASKS_PER_NODE"), dsi_comm_number(&r, "SLURM_NODEID", 0));
        if (!r.status && out->local_world >= 0 && (out->local_world > world || out->local_rank >= out->local_world))
            return dsi_fail(error, DS_ERR_INPUT, "local rank %d of %d does not fit into a world of %d (%s)",
                            out->local_rank, out->local_world, world, l->name);
    }
    text = r.get(ctx, "MASTER_ADDR");
    snprintf(out->master_addr, sizeof out->master_addr, "%s", text ? text : "");
    out->master_port = dsi_comm_number(&r, "MASTER_PORT", 0);
    if (!r.status && out->master_port > 65535)
        return dsi_fail(error, DS_ERR_INPUT, "MASTER_PORT is %d; a port is at most 65535", out->master_port);
    if (!r.status) dsi_comm_run_id(&r, out);
    return r.status;
}

// >>create: what every backend needs

static void dsi_comm_family_release(dsi_comm_family *f) {
    ds_allocator allocator = f->allocator;
    if (__atomic_sub_fetch(&f->references, 1, __ATOMIC_SEQ_CST)) return;
    if (f->transport.close) f->transport.close(f->transport.ctx);
    while (!f->base && f->rooms) {
        dsi_comm_room *room = f->rooms;
        f->rooms = room->next;
        dsi_release_aligned(&allocator, room, (size_t)room->bytes, DSI_COMM_LINE);
    }
#ifdef __linux__
    if (f->base) munmap(f->base, f->mapped);
    if (f->file >= 0) close(f->file);
#endif
    dsi_release(&allocator, f->spans, f->span_room * sizeof *f->spans);
    pthread_mutex_destroy(&f->lock);
    dsi_release(&allocator, f, sizeof *f);
}
static dsi_comm_family *dsi_comm_family_make(const ds_allocator *allocator, int rank, int world) {
    dsi_comm_family *f = (dsi_comm_family *)dsi_alloc_zero(allocator, sizeof *f);
    if (!f) return NULL;
    f->allocator = *allocator;
    f->references = 1;
    f->file = -1;
    f->rank = rank;
    f->world = world;
    f->next_channel = 1;
    pthread_mutex_init(&f->lock, NULL);
    return f;
}

/* The arrays of one communicator lie behind it in one allocation. */
static size_t dsi_comm_bytes(int world) {
    size_t w = (size_t)world;
    return sizeof(ds_comm) + w * (sizeof(void *) * 2 + sizeof(ds_comm_part) + 2 * sizeof(dsi_comm_sign) + sizeof(int)) +
           6 * (w + 1) * sizeof(size_t);
}
/* A communicator without a way to others yet; takes one reference of the family when it succeeds. */
static ds_comm *dsi_comm_make(const ds_comm_desc *desc, dsi_comm_family *family, const char *name, int rank,
                              int world) {
    size_t w = (size_t)world;
    ds_comm *c = (ds_comm *)dsi_alloc_zero(&desc->allocator, dsi_comm_bytes(world));
    if (!c) return NULL;
    c->views = (const void **)(void *)(c + 1);
    c->targets = (void **)(void *)(c->views + w);
    c->tables = (size_t *)(void *)(c->targets + w);
    c->signs = (dsi_comm_sign *)(void *)(c->tables + 6 * (w + 1));
    c->messages = (ds_comm_part *)(void *)(c->signs + 2 * w);
    c->family_rank = (int *)(void *)(c->messages + w);
    for (int r = 0; r < world; r++) c->family_rank[r] = r;
    c->rank = rank;
    c->world = world;
    c->family = family;
    snprintf(c->name, sizeof c->name, "%s", name);
    c->timeout = desc->timeout ? desc->timeout : 300 * (int64_t)1000000000;
    c->stage_bytes = desc->stage_bytes ? desc->stage_bytes : (size_t)4 << 20;
    if (c->stage_bytes < 512 * w) c->stage_bytes = 512 * w;
    c->stage_bytes = dsi_round_up(c->stage_bytes, 2 * DSI_COMM_PAGE);
    c->spins = sysconf(_SC_NPROCESSORS_ONLN) >= world ? 512 : 0;
    c->pauses = c->spins;
    c->allocator = desc->allocator;
    c->logger = desc->logger;
    c->clock = desc->clock;
    c->device = desc->device;
    if (desc->kernels) c->kernels = *desc->kernels;
    if (dsi_comm_log_set(c, &desc->log, NULL)) { /* the names were checked before */
        dsi_release(&desc->allocator, c, dsi_comm_bytes(world));
        return NULL;
    }
    return c;
}
static void dsi_comm_unmake(ds_comm *c) {
    ds_allocator allocator = c->allocator;
    dsi_release(&allocator, c->entries, DSI_COMM_ENTRIES * sizeof *c->entries);
    dsi_release_aligned(&allocator, c->scratch, c->scratch_bytes, DSI_COMM_LINE);
    dsi_release(&allocator, c->sparse, c->sparse_bytes);
    dsi_comm_pinned_give(c);
    if (c->device_scratch) c->device.release(c->device.ctx, c->device_scratch, c->stage_bytes);
    dsi_release(&allocator, c, dsi_comm_bytes(c->world));
}
static bool dsi_comm_make_scratch(ds_comm *c) {
    c->scratch = (char *)dsi_alloc_aligned(&c->allocator, c->stage_bytes, DSI_COMM_LINE);
    if (c->scratch) c->scratch_bytes = c->stage_bytes;
    return c->scratch != NULL;
}
static void dsi_comm_sit(ds_comm *c, dsi_comm_room *room) {
    c->room = room;
    DSI_COMM_STORE(&dsi_comm_seat_of(c, c->rank)->process, (int32_t)getpid());
}

/* Parts of the own arena, first fit. `commit` takes the pages now, so that a lack of memory is NULL and not a signal. */
static void *dsi_comm_arena_take(dsi_comm_family *f, size_t bytes, bool commit) {
    size_t i, at = 0, begin = f->arena + (size_t)f->rank * f->arena_bytes;
    void *memory = NULL;
    bytes = dsi_round_up(bytes ? bytes : 1, DSI_COMM_PAGE);
    pthread_mutex_lock(&f->lock);
    if (f->span_count == f->span_room) {
        size_t room = f->span_room ? f->span_room * 2 : 16;
        dsi_comm_span *spans = (dsi_comm_span *)dsi_alloc(&f->allocator, room * sizeof *spans);
        if (!spans) goto out;
        if (f->span_count) memcpy(spans, f->spans, f->span_count * sizeof *spans);
        dsi_release(&f->allocator, f->spans, f->span_room * sizeof *f->spans);
        f->spans = spans;
        f->span_room = room;
    }
    for (i = 0; i < f->span_count && f->spans[i].begin - at < bytes; i++) at = f->spans[i].begin + f->spans[i].bytes;
    if (bytes > f->arena_bytes || at > f->arena_bytes - bytes) goto out;
#ifdef __linux__
    if (commit && posix_fallocate(f->file, (off_t)(begin + at), (off_t)bytes)) goto out;
#endif
    memmove(f->spans + i + 1, f->spans + i, (f->span_count - i) * sizeof *f->spans);
    f->spans[i].begin = at;
    f->spans[i].bytes = bytes;
    f->span_count++;
    memory = f->base + begin + at;
out:
    pthread_mutex_unlock(&f->lock);
    return memory;
}
static bool dsi_comm_arena_give(dsi_comm_family *f, void *memory) {
    size_t at = (size_t)((char *)memory - f->base) - f->arena - (size_t)f->rank * f->arena_bytes;
    bool found = false;
    pthread_mutex_lock(&f->lock);
    for (size_t i = 0; i < f->span_count && !found; i++) {
        found = f->spans[i].begin == at;
        if (found && !DSI_COMM_LOAD(&f->haunted)) {
#ifdef __linux__
            madvise(memory, f->spans[i].bytes, MADV_REMOVE); /* gives the pages back */
#endif
            memmove(f->spans + i, f->spans + i + 1, (f->span_count - i - 1) * sizeof *f->spans);
            f->span_count--;
        }
    }
    pthread_mutex_unlock(&f->lock);
    return found;
}

/* Takes back the rooms that everyone has left by now; `room` (or NULL) is one more that this rank is done with. */
static void dsi_comm_rooms_give(dsi_comm_family *f, dsi_comm_room *room) {
    dsi_comm_room **at, *empty = NULL;
    pthread_mutex_lock(&f->lock);
    if (room) {
        room->next = f->rooms;
        f->rooms = room;
    }
    for (at = &f->rooms; *at;) {
        room = *at;
        if (DSI_COMM_LOAD(&room->left) == room->world) {
            *at = room->next;
            room->next = empty;
            empty = room;
        } else
            at = &room->next;
    }
    pthread_mutex_unlock(&f->lock);
    while (empty) {
        room = empty;
        empty = room->next;
        if (f->base)
            dsi_comm_arena_give(f, room);
        else
            dsi_release_aligned(&f->allocator, room, (size_t)room->bytes, DSI_COMM_LINE);
    }
}

DS_API void *ds_comm_alloc(ds_comm *comm, size_t bytes) {
    if (comm->family->base) return dsi_comm_arena_take(comm->family, bytes, true);
    return dsi_alloc_aligned(&comm->allocator, bytes, DSI_COMM_PAGE);
}
DS_API bool ds_comm_free(ds_comm *comm, void *memory, size_t bytes) {
    if (!memory) return true;
    if (comm->family->base) return dsi_comm_arena_give(comm->family, memory);
    dsi_release_aligned(&comm->allocator, memory, bytes, DSI_COMM_PAGE);
    return true;
}

DS_API void ds_comm_destroy(ds_comm *comm) {
    dsi_comm_family *family;
    if (!comm) return;
    family = comm->family;
    dsi_comm_queue_end(comm);
    if (comm->room) {
        DSI_COMM_STORE(&dsi_comm_seat_of(comm, comm->rank)->left, 1);
        dsi_comm_ring(comm);
        __atomic_add_fetch(&comm->room->left, 1, __ATOMIC_SEQ_CST);
        if (comm->owns_room) dsi_comm_rooms_give(family, comm->room);
    } else
        dsi_comm_message_shout(comm);
    dsi_comm_unmake(comm);
    dsi_comm_family_release(family);
}

// >>threads: ranks of one process

static dsi_comm_room *dsi_comm_room_make(const ds_allocator *allocator, int world) {
    dsi_comm_room plan = dsi_comm_room_plan(world, 0);
    dsi_comm_room *room = (dsi_comm_room *)dsi_alloc_aligned(allocator, (size_t)plan.bytes, DSI_COMM_LINE);
    if (!room) return NULL;
    memset(room, 0, (size_t)plan.bytes);
    *room = plan;
    return room;
}

static ds_status dsi_comm_check_desc(const ds_comm_desc *desc, size_t desc_bytes, int version, ds_error *error) {
    unsigned logged;
    if (version != DS_COMM_VERSION || desc_bytes != sizeof *desc)
        return dsi_fail(
            error, DS_ERR_VERSION,
            "ds_comm: the caller was compiled with version %d and a ds_comm_desc of %zu bytes, the implementation "
            "is version %d with %zu",
            version, desc_bytes, DS_COMM_VERSION, sizeof *desc);
    if (!desc) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_comm: the descriptor is NULL");
    if (!dsi_comm_log_kinds(&desc->log, &logged, error)) return DS_ERR_ARGUMENT;
    if (desc->device.copy &&
        (!desc->device.alloc || !desc->device.release || !desc->device.pinned_alloc != !desc->device.pinned_release))
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "ds_comm: desc.device has copy, but not each of alloc and release, or one of the pinned pair");
    return DS_OK;
}

DS_API ds_status ds_comm_threads_create_(const ds_comm_desc *desc, size_t desc_bytes, int version, int world,
                                         ds_comm **out, ds_error *error) {
    dsi_comm_family *family;
    dsi_comm_room *room;
    ds_status status = dsi_comm_check_desc(desc, desc_bytes, version, error);
    for (int r = 0; !status && r < world; r++) out[r] = NULL;
    if (status) return status;
    if (world < 1 || world > 4096)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_comm_threads_create: world is %d; expected 1 to 4096", world);
    family = dsi_comm_family_make(&desc->allocator, 0, world);
    room = family ? dsi_comm_room_make(&desc->allocator, world) : NULL;
    if (family) family->rooms = room;
    for (int r = 0; room && r < world; r++) {
        out[r] = dsi_comm_make(desc, family, "threads", r, world);
        if (!out[r]) {
            while (r--) {
                dsi_comm_unmake(out[r]);
                out[r] = NULL;
            }
            room = NULL;
        }
    }
    if (!room) {
        if (family) dsi_comm_family_release(family);
        return dsi_fail(error, DS_ERR_MEMORY, "ds_comm_threads_create: no memory for %d ranks", world);
    }
    family->references = world;
    for (int r = 0; r < world; r++) dsi_comm_sit(out[r], room);
    return DS_OK;
}

// >>shm: processes of one machine
#ifdef __linux__

/* What ranks tell each other while they connect; rank 0 sends the memory file along. */
typedef struct dsi_comm_hello {
    uint32_t magic;
    int32_t status, rank, world, process;
    uint64_t run; /* hash of the run id */
    uint64_t stage_bytes, arena, arena_bytes, mapped;
    char id[128]; /* of NCCL */
    char text[360];
} dsi_comm_hello;
/* Where the ranks find rank 0: under shm a socket with a name, for NCCL a port of MASTER_ADDR. */
typedef struct dsi_comm_point {
    struct sockaddr_storage address;
    socklen_t length;
    bool tcp;
    int port;      /* with tcp: the first of DSI_COMM_PORTS */
    char *id;      /* with tcp: what rank 0 hands out, else NULL */
    char name[96]; /* for texts */
} dsi_comm_point;
typedef struct dsi_comm_credentials { /* struct ucred, which hides without _GNU_SOURCE */
    pid_t process;
    uid_t user;
    gid_t group;
} dsi_comm_credentials;

static ds_status dsi_comm_tell(int socket, const dsi_comm_hello *hello, int file) {
    struct msghdr m;
    struct iovec part;
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    memset(&m, 0, sizeof m);
    memset(&control, 0, sizeof control);
    part.iov_base = (void *)(uintptr_t)hello;
    part.iov_len = sizeof *hello;
    m.msg_iov = &part;
    m.msg_iovlen = 1;
    if (file >= 0) {
        struct cmsghdr *c;
        m.msg_control = control.bytes;
        m.msg_controllen = sizeof control.bytes;
        c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &file, sizeof file);
    }
    return sendmsg(socket, &m, MSG_NOSIGNAL) == (ssize_t)sizeof *hello ? DS_OK : DS_ERR_IO;
}
/* DS_OK, DS_ERR_TIMEOUT, or DS_ERR_PEER when the other side is gone. */
static ds_status dsi_comm_hear(const ds_clock *clock, int socket, dsi_comm_hello *hello, int *file, int64_t deadline) {
    struct msghdr m;
    struct iovec part;
    struct pollfd poll_one;
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    ssize_t got;
    poll_one.fd = socket;
    poll_one.events = POLLIN;
    for (;;) {
        int n = poll(&poll_one, 1, 50);
        if (n > 0) break;
        if (dsi_now(clock) >= deadline) return DS_ERR_TIMEOUT;
    }
    memset(&m, 0, sizeof m);
    memset(&control, 0, sizeof control);
    part.iov_base = hello;
    part.iov_len = sizeof *hello;
    m.msg_iov = &part;
    m.msg_iovlen = 1;
    m.msg_control = control.bytes;
    m.msg_controllen = sizeof control.bytes;
    got = recvmsg(socket, &m, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    if (got != (ssize_t)sizeof *hello || hello->magic != DS_COMM_VERSION + 0x64730000u) return DS_ERR_PEER;
    hello->text[sizeof hello->text - 1] = 0;
    if (file && m.msg_controllen >= CMSG_LEN(sizeof(int)) && CMSG_FIRSTHDR(&m)->cmsg_type == SCM_RIGHTS)
        memcpy(file, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof *file);
    return DS_OK;
}

static uint64_t dsi_comm_run_hash(const char *run_id, int world) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (const char *p = run_id; *p; p++) hash = (hash ^ (unsigned char)*p) * 0x100000001B3u;
    return (hash ^ (uint64_t)world) * 0x100000001B3u;
}
static dsi_comm_hello dsi_comm_hello_make(const ds_comm *c, const ds_comm_desc *desc) {
    dsi_comm_hello hello;
    memset(&hello, 0, sizeof hello);
    hello.magic = DS_COMM_VERSION + 0x64730000u;
    hello.run = dsi_comm_run_hash(desc->run_id, c->world);
    hello.rank = c->rank;
    hello.world = c->world;
    hello.process = (int32_t)getpid();
    return hello;
}
/* A name of the kernel's own name space for sockets: it needs no folder and ends with its process. */
static dsi_comm_point dsi_comm_meeting_point(const char *run_id, int world) {
    dsi_comm_point p;
    struct sockaddr_un *address = (struct sockaddr_un *)(void *)&p.address;
    int n;
    memset(&p, 0, sizeof p);
    address->sun_family = AF_UNIX;
    n = snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "ds-comm-%lu-%016llx", (unsigned long)geteuid(),
                 (unsigned long long)dsi_comm_run_hash(run_id, world));
    p.length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    snprintf(p.name, sizeof p.name, "run id \"%.80s\"", run_id);
    return p;
}
static ds_status dsi_comm_port_of(const ds_comm_env *env, char *id, dsi_comm_point *p, ds_error *error) {
    struct addrinfo hints, *found = NULL;
    char port[16];
    int failed;
    memset(p, 0, sizeof *p);
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    snprintf(port, sizeof port, "%d", env->master_port);
    if ((failed = getaddrinfo(env->master_addr, port, &hints, &found)) != 0)
        return dsi_fail(error, DS_ERR_IO, "ds_comm: MASTER_ADDR \"%.100s\": %s", env->master_addr,
                        gai_strerror(failed));
    memcpy(&p->address, found->ai_addr, found->ai_addrlen);
    p->length = found->ai_addrlen;
    p->tcp = true;
    p->port = env->master_port;
    p->id = id;
    snprintf(p->name, sizeof p->name, "%.60s:%d", env->master_addr, env->master_port);
    freeaddrinfo(found);
    return DS_OK;
}
/* Launchers listen on MASTER_PORT themselves (torchrun's store does), so the next ones are tried as well. */
static void dsi_comm_try_port(dsi_comm_point *p, int turn) {
    int ports = p->port + DSI_COMM_PORTS > 65536 ? 65536 - p->port : DSI_COMM_PORTS;
    uint16_t port = htons((uint16_t)(p->port + turn % ports));
    if (!p->tcp) return;
    if (p->address.ss_family == AF_INET6)
        memcpy((char *)&p->address + offsetof(struct sockaddr_in6, sin6_port), &port, sizeof port);
    else
        memcpy((char *)&p->address + offsetof(struct sockaddr_in, sin_port), &port, sizeof port);
}
/* A connected socket whose reads end after a second, or -1. */
static int dsi_comm_reach(const dsi_comm_point *p) {
    int s = socket(p->address.ss_family, (p->tcp ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int failed = 0;
    socklen_t bytes = sizeof failed;
    struct timeval second;
    struct pollfd one;
    if (s < 0) return -1;
    one.fd = s;
    one.events = POLLOUT;
    second.tv_sec = 1;
    second.tv_usec = 0;
    if (connect(s, (const struct sockaddr *)(const void *)&p->address, p->length) &&
        (errno != EINPROGRESS || poll(&one, 1, 1000) < 1 || getsockopt(s, SOL_SOCKET, SO_ERROR, &failed, &bytes) ||
         failed)) {
        close(s);
        return -1;
    }
    (void)fcntl(s, F_SETFL, 0);
    (void)setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    return s;
}
/* Whether the other side may take part; over TCP the run id has to do. */
static bool dsi_comm_same_user(const dsi_comm_point *p, int socket, int *process) {
    dsi_comm_credentials who;
    socklen_t bytes = sizeof who;
    if (p->tcp) return true;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &who, &bytes) || who.user != geteuid()) return false;
    *process = (int)who.process;
    return true;
}

/* Maps the memory file and marks this rank as alive in it. */
static ds_status dsi_comm_attach(ds_comm *c, size_t mapped, ds_error *error) {
    dsi_comm_family *f = c->family;
    struct flock lock;
    void *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, f->file, 0);
    if (base == MAP_FAILED)
        return dsi_fail(error, DS_ERR_MEMORY, "ds_comm: rank %d cannot map %zu bytes of shared memory: %s", c->rank,
                        mapped, strerror(errno));
    f->base = (char *)base;
    f->mapped = mapped;
    memset(&lock, 0, sizeof lock);
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = c->rank;
    lock.l_len = 1;
    if (fcntl(f->file, F_SETLK, &lock))
        return dsi_fail(error, DS_ERR_IO, "ds_comm: rank %d cannot lock its place: %s", c->rank, strerror(errno));
    return DS_OK;
}

/* Rank 0 makes the memory: the room, then an arena per rank. An address range that does not fit is halved. */
static ds_status dsi_comm_segment_make(ds_comm *c, const ds_comm_desc *desc, ds_error *error) {
    dsi_comm_family *f = c->family;
    dsi_comm_room plan = dsi_comm_room_plan(c->world, c->stage_bytes);
    size_t arena = desc->arena_bytes, pages = (size_t)sysconf(_SC_PHYS_PAGES), asked;
    ds_status status;
    if (!arena) arena = dsi_mul(pages, (size_t)sysconf(_SC_PAGESIZE));
    if (arena > ((size_t)1 << 44) / (size_t)c->world) arena = ((size_t)1 << 44) / (size_t)c->world;
    arena = asked = dsi_round_up(arena, DSI_COMM_PAGE);
    f->file = (int)syscall(SYS_memfd_create, "ds_comm", 1u /* close on exec */);
    if (f->file < 0) return dsi_fail(error, DS_ERR_IO, "ds_comm: memfd_create: %s", strerror(errno));
    for (;; arena = arena / 2 / DSI_COMM_PAGE * DSI_COMM_PAGE) {
        size_t mapped = (size_t)plan.bytes + (size_t)c->world * arena;
        if (ftruncate(f->file, (off_t)mapped) == 0) {
            status = dsi_comm_attach(c, mapped, error);
            if (status != DS_ERR_MEMORY || !arena) break;
        } else if (!arena)
            return dsi_fail(error, DS_ERR_MEMORY, "ds_comm: %zu bytes of shared memory: %s", mapped, strerror(errno));
    }
    if (status) return status;
    if (arena != asked)
        dsi_log(&c->logger, "ds_comm", DS_LOG_WARNING, 5,
                "arena of %zu instead of %zu bytes per rank: no address space", arena, asked);
    f->arena = (size_t)plan.bytes;
    f->arena_bytes = arena;
    if (posix_fallocate(f->file, 0, (off_t)plan.stages))
        return dsi_fail(error, DS_ERR_MEMORY, "ds_comm: no shared memory for %llu bytes",
                        (unsigned long long)plan.stages);
    *(dsi_comm_room *)(void *)f->base = plan;
    return DS_OK;
}

static void dsi_comm_missing(const int *sockets, int world, char *out, size_t room) {
    size_t at = 0;
    out[0] = 0;
    for (int r = 1; r < world; r++)
        if (sockets[r] < 0) at = dsi_comm_put(out, room, at, at ? ", %d" : "%d", r);
}

/* Rank 0 takes one caller in. A second claim of a rank by the same process is its next communicator, which comes too
   early: it is sent away and calls again. */
static ds_status dsi_comm_welcome(ds_comm *c, const ds_comm_desc *desc, const dsi_comm_point *place, int listener,
                                  int *sockets, int *processes, ds_error *error) {
    dsi_comm_hello hello, own = dsi_comm_hello_make(c, desc);
    int process = 0, s = accept(listener, NULL, NULL);
    struct timeval second;
    if (s < 0) return DS_OK;
    second.tv_sec = 1;
    second.tv_usec = 0;
    (void)fcntl(s, F_SETFD, FD_CLOEXEC);
    (void)setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    if (!dsi_comm_same_user(place, s, &process)) {
        dsi_log(&c->logger, "ds_comm", DS_LOG_WARNING, 2, "a process of another user tried to attach");
        close(s);
        return DS_OK;
    }
    if (dsi_comm_hear(&c->clock, s, &hello, NULL, dsi_deadline(&c->clock, 1000000000)) || hello.rank < 1 ||
        hello.rank >= c->world || hello.run != own.run) {
        close(s);
        return DS_OK;
    }
    if (place->tcp) process = hello.process;
    if (sockets[hello.rank] >= 0) {
        int first = processes[hello.rank];
        close(s);
        return first == process ? DS_OK
                                : dsi_fail(error, DS_ERR_PEER, "ds_comm: rank %d is claimed by processes %d and %d",
                                           hello.rank, first, process);
    }
    if (dsi_comm_tell(s, &own, -1)) { /* says that it is at the right place; it calls again */
        close(s);
        return DS_OK;
    }
    sockets[hello.rank] = s;
    processes[hello.rank] = process;
    return DS_OK;
}

/* Waits for everyone to call. After a failure it stays a second longer, to tell those who come in that time. */
static ds_status dsi_comm_host_gather(ds_comm *c, const ds_comm_desc *desc, const dsi_comm_point *place, int listener,
                                      int *sockets, int *processes, ds_error *error) {
    int64_t deadline = dsi_deadline(&c->clock, c->timeout);
    char missing[160];
    int joined = 1;
    ds_status status = DS_OK;
    while (joined < c->world) {
        bool failed = status != DS_OK;
        struct pollfd p;
        p.fd = listener;
        p.events = POLLIN;
        if (poll(&p, 1, 50) > 0) {
            ds_status welcome = dsi_comm_welcome(c, desc, place, listener, sockets, processes, failed ? NULL : error);
            if (!failed) status = welcome;
        }
        joined = 1;
        for (int r = 1; r < c->world; r++) {
            char byte;
            joined += sockets[r] >= 0;
            if (!status && sockets[r] >= 0 && recv(sockets[r], &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
                status = dsi_fail(error, DS_ERR_PEER, "ds_comm: rank %d (process %d) ended while the ranks connected",
                                  r, processes[r]);
        }
        if (dsi_now(&c->clock) >= deadline) {
            if (failed) break;
            dsi_comm_missing(sockets, c->world, missing, sizeof missing);
            if (!status && joined < c->world)
                status =
                    dsi_fail(error, DS_ERR_TIMEOUT, "ds_comm: of %d ranks, rank %s did not connect within %.1f s (%s)",
                             c->world, missing, (double)c->timeout * 1e-9, place->name);
        }
        if (status && !failed) deadline = dsi_deadline(&c->clock, 1000000000);
    }
    return status;
}

static ds_status dsi_comm_host_run(ds_comm *c, const ds_comm_desc *desc, const dsi_comm_point *place, int listener,
                                   int *sockets, int *processes, ds_error *error) {
    ds_status status = dsi_comm_host_gather(c, desc, place, listener, sockets, processes, error);
    int64_t deadline = dsi_deadline(&c->clock, c->timeout);
    dsi_comm_hello hello = dsi_comm_hello_make(c, desc);
    if (!status && !place->id) status = dsi_comm_segment_make(c, desc, error);
    if (place->id) memcpy(hello.id, place->id, sizeof hello.id);
    for (int step = 0; step < 2; step++) { /* the memory, an answer from each, then the start */
        hello.status = (int32_t)status;
        hello.stage_bytes = c->stage_bytes;
        hello.arena = c->family->arena;
        hello.arena_bytes = c->family->arena_bytes;
        hello.mapped = c->family->mapped;
        snprintf(hello.text, sizeof hello.text, "%.350s",
                 status && error ? error->message
                 : status        ? "rank 0 failed"
                                 : "");
        for (int r = 1; r < c->world; r++)
            if (sockets[r] >= 0) (void)dsi_comm_tell(sockets[r], &hello, step || status ? -1 : c->family->file);
        if (status) break;
        for (int r = 1; r < c->world && step == 0; r++) {
            dsi_comm_hello answer;
            /* each answer is read: closing a socket with something unread would destroy what was sent on it */
            ds_status heard = dsi_comm_hear(&c->clock, sockets[r], &answer, NULL, deadline);
            if (heard && !status)
                status = dsi_fail(error, heard, "ds_comm: rank %d (process %d) %s while the ranks connected", r,
                                  processes[r], heard == DS_ERR_TIMEOUT ? "said nothing" : "ended");
            else if (!heard && !status && answer.status)
                status = dsi_fail(error, (ds_status)answer.status, "%s", answer.text);
        }
    }
    return status;
}

static ds_status dsi_comm_bind(ds_comm *c, dsi_comm_point *place, int listener, ds_error *error) {
    int64_t deadline = dsi_deadline(&c->clock, c->timeout < 5000000000 && c->timeout > 0 ? c->timeout : 5000000000);
    int yes = 1;
    (void)setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    for (int turn = 0;; turn++) {
        dsi_comm_try_port(place, turn);
        if (bind(listener, (struct sockaddr *)(void *)&place->address, place->length) == 0) break;
        if (errno != EADDRINUSE)
            return dsi_fail(error, DS_ERR_IO, "ds_comm: bind, %s: %s", place->name, strerror(errno));
        if (dsi_now(&c->clock) >= deadline)
            return dsi_fail(error, DS_ERR_STATE,
                            "ds_comm: another run of this user is connecting (%s); set DS_RUN_ID or MASTER_PORT to "
                            "something else",
                            place->name);
        if (!place->tcp || turn % DSI_COMM_PORTS == DSI_COMM_PORTS - 1) dsi_sleep(&c->clock, 5000000);
    }
    if (listen(listener, c->world)) return dsi_fail(error, DS_ERR_IO, "ds_comm: listen: %s", strerror(errno));
    return DS_OK;
}
static ds_status dsi_comm_host(ds_comm *c, const ds_comm_desc *desc, dsi_comm_point *place, ds_error *error) {
    size_t bytes = (size_t)c->world * 2 * sizeof(int);
    int *sockets = (int *)dsi_alloc(&c->allocator, bytes);
    int listener =
        socket(place->address.ss_family, (place->tcp ? SOCK_STREAM : SOCK_SEQPACKET) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ds_status status = DS_OK;
    if (!sockets)
        status = dsi_fail(error, DS_ERR_MEMORY, "ds_comm: no memory for %d connections", c->world);
    else if (listener < 0)
        status = dsi_fail(error, DS_ERR_IO, "ds_comm: socket: %s", strerror(errno));
    for (int r = 0; sockets && r < c->world; r++) sockets[r] = -1;
    if (!status) status = dsi_comm_bind(c, place, listener, error);
    if (!status) status = dsi_comm_host_run(c, desc, place, listener, sockets, sockets + c->world, error);
    if (listener >= 0) close(listener);
    for (int r = 0; sockets && r < c->world; r++)
        if (sockets[r] >= 0) close(sockets[r]);
    dsi_release(&c->allocator, sockets, bytes);
    return status;
}

/* What rank 0 answers when all are there, or its own time is up; then this rank's own answer and the start. */
static ds_status dsi_comm_join_wait(ds_comm *c, const dsi_comm_point *place, int s, int process, ds_error *error) {
    int64_t deadline = dsi_deadline(&c->clock, c->timeout);
    dsi_comm_hello hello;
    ds_error own = {DS_OK, ""};
    ds_status status;
    if (deadline < INT64_MAX - 2000000000) deadline += 2000000000; /* rank 0's time began before now; and a bit */
    if (dsi_comm_hear(&c->clock, s, &hello, &c->family->file, deadline)) return DS_ERR_STATE;
    if (hello.status) return dsi_fail(error, (ds_status)hello.status, "%s", hello.text);
    if (place->id) {
        memcpy(place->id, hello.id, sizeof hello.id);
        status = DS_OK;
    } else {
        c->family->arena = (size_t)hello.arena;
        c->family->arena_bytes = (size_t)hello.arena_bytes;
        status = dsi_comm_attach(c, (size_t)hello.mapped, &own);
    }
    hello.status = (int32_t)status;
    snprintf(hello.text, sizeof hello.text, "%.350s", own.message);
    if (dsi_comm_tell(s, &hello, -1) || dsi_comm_hear(&c->clock, s, &hello, NULL, deadline))
        return dsi_fail(error, DS_ERR_PEER, "ds_comm: rank 0 (process %d) ended while the ranks connected", process);
    return hello.status ? dsi_fail(error, (ds_status)hello.status, "%s", hello.text) : DS_OK;
}
/* One attempt to join; DS_ERR_STATE means: call again. */
static ds_status dsi_comm_join_once(ds_comm *c, const ds_comm_desc *desc, const dsi_comm_point *place,
                                    ds_error *error) {
    dsi_comm_hello hello = dsi_comm_hello_make(c, desc);
    uint64_t run = hello.run;
    int process = 0, s = dsi_comm_reach(place);
    ds_status status = DS_ERR_STATE;
    if (s < 0) return status;
    if (dsi_comm_same_user(place, s, &process) && dsi_comm_tell(s, &hello, -1) == DS_OK &&
        dsi_comm_hear(&c->clock, s, &hello, NULL, dsi_deadline(&c->clock, 1000000000)) == DS_OK && hello.run == run)
        status = dsi_comm_join_wait(c, place, s, place->tcp ? hello.process : process, error);
    close(s);
    return status;
}
static ds_status dsi_comm_join(ds_comm *c, const ds_comm_desc *desc, dsi_comm_point *place, ds_error *error) {
    int64_t deadline = dsi_deadline(&c->clock, c->timeout);
    ds_status status;
    for (int turn = 0;; turn++) {
        dsi_comm_try_port(place, turn);
        if ((status = dsi_comm_join_once(c, desc, place, error)) != DS_ERR_STATE) return status;
        if (dsi_now(&c->clock) >= deadline)
            return dsi_fail(error, DS_ERR_TIMEOUT, "ds_comm: rank %d of %d found no rank 0 within %.1f s (%s)", c->rank,
                            c->world, (double)c->timeout * 1e-9, place->name);
        dsi_sleep(&c->clock, 2000000);
    }
}
static ds_status dsi_comm_meet(ds_comm *c, const ds_comm_desc *desc, dsi_comm_point *place, ds_error *error) {
    return c->rank == 0 ? dsi_comm_host(c, desc, place, error) : dsi_comm_join(c, desc, place, error);
}
static ds_status dsi_comm_open_shm(ds_comm *c, const ds_comm_desc *desc, ds_error *error) {
    dsi_comm_point place = dsi_comm_meeting_point(desc->run_id, c->world);
    ds_status status = dsi_comm_meet(c, desc, &place, error);
    if (!status) dsi_comm_sit(c, (dsi_comm_room *)(void *)c->family->base);
    return status;
}

// >>nccl: as a transport of messages, from a library opened at run time

/* From nccl.h; its results are 0 for success and 7 for "in progress". */
typedef struct dsi_comm_nccl_id {
    char bytes[128];
} dsi_comm_nccl_id;
typedef struct dsi_comm_nccl_config { /* as of 2.14, which every later version takes */
    size_t size;
    unsigned magic, version;
    int blocking;
} dsi_comm_nccl_config;
typedef struct dsi_comm_nccl {
    int (*get_id)(dsi_comm_nccl_id *id);
    int (*init)(void **comm, int world, dsi_comm_nccl_id id, int rank, dsi_comm_nccl_config *config);
    int (*state)(void *comm, int *result);
    int (*finalize)(void *comm);
    int (*destroy)(void *comm);
    int (*cancel)(void *comm);
    int (*send)(const void *data, size_t count, int type, int peer, void *comm, void *stream);
    int (*receive)(void *data, size_t count, int type, int peer, void *comm, void *stream);
    int (*group_begin)(void);
    int (*group_end)(void);
    const char *(*describe)(int result);
    int (*all_reduce)(const void *in, void *out, size_t count, int type, int op, void *comm, void *stream);
    int (*reduce)(const void *in, void *out, size_t count, int type, int op, int root, void *comm, void *stream);
    int world;
    void *library, *comm, *stream, *event;
    char *stage; /* device copies of host memory */
    size_t stage_bytes;
    int64_t timeout;
    ds_device device;
    ds_allocator allocator;
    ds_clock clock;
} dsi_comm_nccl;

static ds_status dsi_comm_nccl_device(dsi_comm_nccl *n, ds_status status, ds_error *error) {
    return dsi_fail(error, status, "%.300s",
                    n->device.describe ? n->device.describe(n->device.ctx) : "the device failed");
}
static void dsi_comm_nccl_give_up(dsi_comm_nccl *n) {
    if (n->comm) n->cancel(n->comm);
    n->comm = NULL;
}
/* Polls until NCCL is through with what it was asked for and, with `stream`, the device too. */
static ds_status dsi_comm_nccl_poll(dsi_comm_nccl *n, int result, bool stream, int64_t deadline, ds_error *error) {
    ds_status status = DS_OK;
    bool done = false;
    for (int idle = 0; !status; idle++) {
        if ((result == 0 || result == 7) && n->state(n->comm, &result)) result = 1;
        if (result && result != 7) status = dsi_fail(error, DS_ERR_PEER, "NCCL: %s", n->describe(result));
        if (!status && !result && !stream) return DS_OK;
        if (!status && !result) {
            status = n->device.event_done(n->device.ctx, n->event, &done);
            if (status) dsi_comm_nccl_device(n, status, error);
            if (!status && done) return DS_OK;
        }
        if (!status && idle > 100) {
            if (dsi_now(&n->clock) >= deadline) status = dsi_fail(error, DS_ERR_TIMEOUT, "NCCL: the deadline passed");
            dsi_sleep(&n->clock, idle > 2000 ? 200000 : 20000);
        }
    }
    dsi_comm_nccl_give_up(n);
    return status;
}
static void dsi_comm_nccl_close(void *ctx) {
    dsi_comm_nccl *n = (dsi_comm_nccl *)ctx;
    ds_allocator allocator = n->allocator;
    if (n->comm && !dsi_comm_nccl_poll(n, n->finalize(n->comm), false, dsi_deadline(&n->clock, n->timeout), NULL))
        n->destroy(n->comm);
    if (n->stage) n->device.release(n->device.ctx, n->stage, n->stage_bytes);
    if (n->event) n->device.event_destroy(n->device.ctx, n->event);
    if (n->stream) n->device.stream_destroy(n->device.ctx, n->stream);
    dlclose(n->library);
    dsi_release(&allocator, n, sizeof *n);
}

/* Copies what is host memory to the device before, and back after; it lies there part by part. */
static ds_status dsi_comm_nccl_stage(dsi_comm_nccl *n, ds_comm_part *parts, int count, bool back) {
    size_t at = 0;
    ds_status status = DS_OK;
    for (int i = 0; i < count && !status; i++) {
        ds_comm_part *p = &parts[i];
        if (p->on_device) continue;
        if (!back && p->send_bytes)
            status = n->device.copy(n->device.ctx, n->stage + at, p->send, p->send_bytes, n->stream);
        at += dsi_round_up(p->send_bytes, DSI_COMM_LINE);
        if (back && p->receive_bytes)
            status = n->device.copy(n->device.ctx, p->receive, n->stage + at, p->receive_bytes, n->stream);
        at += dsi_round_up(p->receive_bytes, DSI_COMM_LINE);
    }
    return status;
}
static size_t dsi_comm_nccl_need(const ds_comm_part *parts, int count) {
    size_t need = 0;
    for (int i = 0; i < count; i++)
        if (!parts[i].on_device)
            need +=
                dsi_round_up(parts[i].send_bytes, DSI_COMM_LINE) + dsi_round_up(parts[i].receive_bytes, DSI_COMM_LINE);
    return need;
}
static ds_status dsi_comm_nccl_room(dsi_comm_nccl *n, size_t need) {
    void *memory = NULL;
    ds_status status;
    if (need <= n->stage_bytes) return DS_OK;
    if ((status = n->device.alloc(n->device.ctx, need, &memory)) != DS_OK) return status;
    if (n->stage) n->device.release(n->device.ctx, n->stage, n->stage_bytes);
    n->stage = (char *)memory;
    n->stage_bytes = need;
    return DS_OK;
}
static int dsi_comm_nccl_messages(dsi_comm_nccl *n, const ds_comm_part *parts, int count) {
    size_t at = 0;
    int result = n->group_begin(), end;
    for (int i = 0; i < count && !result; i++) {
        const ds_comm_part *p = &parts[i];
        const void *from = p->on_device ? p->send : n->stage + at;
        void *to;
        if (!p->on_device) at += dsi_round_up(p->send_bytes, DSI_COMM_LINE);
        to = p->on_device ? p->receive : n->stage + at;
        if (!p->on_device) at += dsi_round_up(p->receive_bytes, DSI_COMM_LINE);
        if (p->send_bytes) result = n->send(from, p->send_bytes, 0, p->peer, n->comm, n->stream);
        if (result == 7) result = 0;
        if (p->receive_bytes && !result) result = n->receive(to, p->receive_bytes, 0, p->peer, n->comm, n->stream);
        if (result == 7) result = 0;
    }
    end = n->group_end();
    return result ? result : end;
}
/* Waits for what was launched; 0 or 7 is how the launch went. */
static ds_status dsi_comm_nccl_finish(dsi_comm_nccl *n, int result, int64_t deadline, ds_error *error) {
    ds_status status = dsi_comm_nccl_poll(n, result, false, deadline, error);
    if (status) return status;
    if ((status = n->device.event_record(n->device.ctx, n->event, n->stream)) == DS_OK)
        return dsi_comm_nccl_poll(n, 0, true, deadline, error);
    dsi_comm_nccl_give_up(n);
    return dsi_comm_nccl_device(n, status, error);
}
static ds_status dsi_comm_nccl_exchange(void *ctx, unsigned channel, ds_comm_part *parts, int count, int64_t deadline,
                                        ds_error *error) {
    dsi_comm_nccl *n = (dsi_comm_nccl *)ctx;
    ds_status status;
    (void)channel; /* one call at a time, in the same order on both sides */
    if (!n->comm) return dsi_fail(error, DS_ERR_PEER, "NCCL was given up after an earlier failure");
    status = dsi_comm_nccl_room(n, dsi_comm_nccl_need(parts, count));
    if (!status) status = dsi_comm_nccl_stage(n, parts, count, false);
    if (!status) {
        status = dsi_comm_nccl_finish(n, dsi_comm_nccl_messages(n, parts, count), deadline, error);
        if (status) return status;
        status = dsi_comm_nccl_stage(n, parts, count, true);
    }
    if (!status) status = n->device.synchronize(n->device.ctx, n->stream);
    if (status) {
        dsi_comm_nccl_give_up(n);
        return dsi_comm_nccl_device(n, status, error);
    }
    for (int i = 0; i < count; i++) parts[i].done = true;
    return DS_OK;
}

/* NCCL's own sums: on its one ncclComm, so of all ranks in their order. -1: it has no such type. */
static int dsi_comm_nccl_type(ds_dtype dtype) {
    static const signed char types[DS_DTYPE_COUNT] = {7, 6, 9, 8, 0, 1, -1, -1, 2, 3, 4, 5, -1};
    return types[dtype];
}
static bool dsi_comm_nccl_sums(void *ctx, const ds_comm_sum *s) {
    bool all = s->world == ((dsi_comm_nccl *)ctx)->world;
    for (int r = 0; r < s->world; r++) all &= s->ranks[r] == r;
    return all && dsi_comm_nccl_type(s->dtype) >= 0;
}
static int dsi_comm_nccl_launch(dsi_comm_nccl *n, const ds_comm_sum *s, const char *in, char *out) {
    int type = dsi_comm_nccl_type(s->dtype), result, end;
    int first = s->kind == DS_COMM_REDUCE ? s->root : 0, last = s->kind == DS_COMM_REDUCE ? first : s->world - 1;
    if (s->kind == DS_COMM_ALL_REDUCE) return n->all_reduce(in, out, s->count, type, 0, n->comm, n->stream);
    result = n->group_begin(); /* parts may differ in length: each is reduced to its rank */
    for (int r = first; r <= last && !result; r++) {
        size_t begin = s->kind == DS_COMM_REDUCE ? 0 : s->starts[r];
        size_t count = s->kind == DS_COMM_REDUCE ? s->count : s->starts[r + 1] - begin;
        const char *from = in + begin * DS_DTYPE_SIZE(s->dtype);
        if (count) result = n->reduce(from, r == s->rank ? out : NULL, count, type, 0, r, n->comm, n->stream);
        if (result == 7) result = 0;
    }
    end = n->group_end();
    return result ? result : end;
}
static ds_status dsi_comm_nccl_sum(void *ctx, const ds_comm_sum *s, int64_t deadline, ds_error *error) {
    dsi_comm_nccl *n = (dsi_comm_nccl *)ctx;
    size_t size = DS_DTYPE_SIZE(s->dtype), in_bytes = s->count * size, at = dsi_round_up(in_bytes, DSI_COMM_LINE);
    size_t out_bytes = s->kind == DS_COMM_REDUCE_SCATTER ? (s->starts[s->rank + 1] - s->starts[s->rank]) * size
                       : s->kind == DS_COMM_REDUCE && s->root != s->rank ? 0
                                                                         : in_bytes;
    const char *in = (const char *)s->in;
    char *out = (char *)s->out;
    ds_status status = DS_OK;
    if (!n->comm) return dsi_fail(error, DS_ERR_PEER, "NCCL was given up after an earlier failure");
    if (!s->on_device) {
        status = dsi_comm_nccl_room(n, at + out_bytes);
        in = n->stage;
        out = n->stage + at;
        if (!status) status = n->device.copy(n->device.ctx, n->stage, s->in, in_bytes, n->stream);
    }
    if (!status) {
        status = dsi_comm_nccl_finish(n, dsi_comm_nccl_launch(n, s, in, out), deadline, error);
        if (status) return status;
        if (!s->on_device && out_bytes) status = n->device.copy(n->device.ctx, s->out, out, out_bytes, n->stream);
    }
    if (!status) status = n->device.synchronize(n->device.ctx, n->stream);
    if (!status) return DS_OK;
    dsi_comm_nccl_give_up(n);
    return dsi_comm_nccl_device(n, status, error);
}

/* Opens the library; no other rank is heard. */
static ds_status dsi_comm_nccl_open(const ds_comm_desc *desc, ds_comm_transport *out, ds_error *error) {
    static const char *const names[] = {"ncclGetUniqueId",
                                        "ncclCommInitRankConfig",
                                        "ncclCommGetAsyncError",
                                        "ncclCommFinalize",
                                        "ncclCommDestroy",
                                        "ncclCommAbort",
                                        "ncclSend",
                                        "ncclRecv",
                                        "ncclGroupStart",
                                        "ncclGroupEnd",
                                        "ncclGetErrorString",
                                        "ncclAllReduce",
                                        "ncclReduce"};
    const ds_device *d = &desc->device;
    const char *file = desc->nccl_library ? desc->nccl_library : "libnccl.so.2";
    dsi_comm_nccl *n;
    void *library, *entry;
    if (!d->copy || !d->stream_create || !d->stream_destroy || !d->event_create || !d->event_destroy ||
        !d->event_record || !d->event_done || !d->synchronize)
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "ds_comm: the backend nccl needs desc.device with copies, streams and events");
    if (!(library = dlopen(file, RTLD_NOW | RTLD_LOCAL)))
        return dsi_fail(error, DS_ERR_UNSUPPORTED, "ds_comm: %.300s", dlerror());
    n = (dsi_comm_nccl *)dsi_alloc_zero(&desc->allocator, sizeof *n);
    for (size_t i = 0; n && i < sizeof names / sizeof *names; i++) {
        if (!(entry = dlsym(library, names[i]))) {
            dlclose(library);
            dsi_release(&desc->allocator, n, sizeof *n);
            return dsi_fail(error, DS_ERR_UNSUPPORTED, "ds_comm: %s has no %s; NCCL 2.14 or later is needed", file,
                            names[i]);
        }
        memcpy((char *)n + i * sizeof entry, &entry, sizeof entry); /* the members are in the order of the names */
    }
    if (!n) {
        dlclose(library);
        return dsi_fail(error, DS_ERR_MEMORY, "ds_comm: no memory for NCCL");
    }
    n->library = library;
    n->device = desc->device;
    n->allocator = desc->allocator;
    n->clock = desc->clock;
    n->timeout = desc->timeout ? desc->timeout : 300 * (int64_t)1000000000;
    out->name = "nccl";
    out->ctx = n;
    out->exchange = dsi_comm_nccl_exchange;
    out->close = dsi_comm_nccl_close;
    out->concurrent = false;
    out->device = true;
    out->sums = dsi_comm_nccl_sums;
    out->sum = dsi_comm_nccl_sum;
    return DS_OK;
}
/* Rank 0's id goes to all over MASTER_ADDR:MASTER_PORT, then they connect. */
static ds_status dsi_comm_nccl_join(ds_comm *c, const ds_comm_desc *desc, const ds_comm_env *env, ds_error *error) {
    dsi_comm_nccl *n = (dsi_comm_nccl *)c->family->transport.ctx;
    dsi_comm_nccl_config config = {sizeof config, 0xcafebeef, 21400, 0};
    dsi_comm_nccl_id id;
    dsi_comm_point place;
    ds_error why = {DS_OK, ""};
    int result;
    ds_status status;
    if (!*env->master_addr || !env->master_port)
        return dsi_fail(error, DS_ERR_INPUT, "ds_comm: the backend nccl needs MASTER_ADDR and MASTER_PORT");
    memset(&id, 0, sizeof id);
    if (c->rank == 0 && (result = n->get_id(&id)) != 0)
        return dsi_fail(error, DS_ERR_DEVICE, "ds_comm: ncclGetUniqueId: %s", n->describe(result));
    status = dsi_comm_port_of(env, id.bytes, &place, error);
    if (!status) status = dsi_comm_meet(c, desc, &place, error);
    if (!status) status = n->device.stream_create(n->device.ctx, &n->stream);
    if (!status) status = n->device.event_create(n->device.ctx, &n->event);
    if (status) return status;
    n->world = c->world;
    result = n->init(&n->comm, c->world, id, c->rank, &config);
    if (!n->comm)
        return dsi_fail(error, DS_ERR_DEVICE, "ds_comm: rank %d of %d: ncclCommInitRankConfig: %s", c->rank, c->world,
                        n->describe(result));
    status = dsi_comm_nccl_poll(n, result, false, dsi_deadline(&c->clock, c->timeout), &why);
    if (!status) return DS_OK;
    return dsi_fail(error, status, "ds_comm: rank %d of %d, while NCCL connects: %s", c->rank, c->world, why.message);
}
#else
static ds_status dsi_comm_open_shm(ds_comm *c, const ds_comm_desc *desc, ds_error *error) {
    (void)c, (void)desc;
    return dsi_fail(error, DS_ERR_UNSUPPORTED, "ds_comm: the backend shm needs Linux");
}
static ds_status dsi_comm_nccl_open(const ds_comm_desc *desc, ds_comm_transport *out, ds_error *error) {
    (void)desc, (void)out;
    return dsi_fail(error, DS_ERR_UNSUPPORTED, "ds_comm: the backend nccl needs Linux");
}
static ds_status dsi_comm_nccl_join(ds_comm *c, const ds_comm_desc *desc, const ds_comm_env *env, ds_error *error) {
    (void)c, (void)desc, (void)env;
    return dsi_fail(error, DS_ERR_UNSUPPORTED, "ds_comm: the backend nccl needs Linux");
}
#endif

// >>mpi: as a transport of messages
#if DS_COMM_USE_MPI

/* What one communicator has under way. Several may be in calls at once, each from a thread of its own. */
typedef struct dsi_comm_mpi_line {
    struct dsi_comm_mpi_line *next;
    unsigned channel;
    MPI_Comm sums; /* made at its first native sum */
    MPI_Request *requests;
    int *owners; /* the part of each request; -1: a call of all ranks, which cannot be taken back */
    size_t room, used;
} dsi_comm_mpi_line;
typedef struct dsi_comm_mpi {
    MPI_Comm comm;
    pthread_mutex_t lock; /* of `lines` */
    dsi_comm_mpi_line *lines;
    MPI_Op half[2]; /* sums of fp16 and bf16, which MPI does not know */
    int world;
    ds_allocator allocator;
    ds_clock clock;
    bool ours;       /* MPI was initialised here */
    uint32_t broken; /* a request was given up */
} dsi_comm_mpi;

/* NULL without memory. */
static dsi_comm_mpi_line *dsi_comm_mpi_line_of(dsi_comm_mpi *m, unsigned channel, size_t need) {
    dsi_comm_mpi_line *line;
    pthread_mutex_lock(&m->lock);
    for (line = m->lines; line && line->channel != channel; line = line->next) continue;
    if (!line && (line = (dsi_comm_mpi_line *)dsi_alloc_zero(&m->allocator, sizeof *line)) != NULL) {
        line->channel = channel;
        line->sums = MPI_COMM_NULL;
        line->next = m->lines;
        m->lines = line;
    }
    pthread_mutex_unlock(&m->lock);
    if (line && need > line->room) {
        MPI_Request *requests = (MPI_Request *)dsi_alloc(&m->allocator, need * sizeof *requests);
        int *owners = requests ? (int *)dsi_alloc(&m->allocator, need * sizeof *owners) : NULL;
        if (!owners) {
            dsi_release(&m->allocator, requests, need * sizeof *requests);
            return NULL;
        }
        dsi_release(&m->allocator, line->requests, line->room * sizeof *line->requests);
        dsi_release(&m->allocator, line->owners, line->room * sizeof *line->owners);
        line->requests = requests;
        line->owners = owners;
        line->room = need;
    }
    if (line) line->used = 0;
    return line;
}
static void dsi_comm_mpi_close(void *ctx) {
    dsi_comm_mpi *m = (dsi_comm_mpi *)ctx;
    ds_allocator allocator = m->allocator;
    int over = 0;
    MPI_Finalized(&over);
    over |= DSI_COMM_LOAD(&m->broken) != 0; /* with messages under way it would wait for ranks that are gone */
    while (m->lines) {
        dsi_comm_mpi_line *line = m->lines;
        m->lines = line->next;
        if (!over && line->sums != MPI_COMM_NULL) MPI_Comm_free(&line->sums);
        dsi_release(&allocator, line->requests, line->room * sizeof *line->requests);
        dsi_release(&allocator, line->owners, line->room * sizeof *line->owners);
        dsi_release(&allocator, line, sizeof *line);
    }
    for (int i = 0; i < 2 && !over; i++)
        if (m->half[i] != MPI_OP_NULL) MPI_Op_free(&m->half[i]);
    if (!over && m->comm != MPI_COMM_NULL) MPI_Comm_free(&m->comm);
    if (!over && m->ours) MPI_Finalize();
    pthread_mutex_destroy(&m->lock);
    dsi_release(&allocator, m, sizeof *m);
}

/* Gives up what is under way; a part whose messages are all through is done. */
static void dsi_comm_mpi_give_up(dsi_comm_mpi *m, dsi_comm_mpi_line *line, ds_comm_part *parts) {
    for (size_t i = 0; i < line->used; i++)
        if (line->owners[i] >= 0) parts[line->owners[i]].done = true;
    for (size_t i = 0; i < line->used; i++)
        if (line->requests[i] != MPI_REQUEST_NULL) {
            DSI_COMM_STORE(&m->broken, 1);
            if (line->owners[i] < 0) continue;
            parts[line->owners[i]].done = false;
            MPI_Cancel(&line->requests[i]);
            MPI_Request_free(&line->requests[i]);
        }
}
/* Polls until the requests are through; yields for a while, then sleeps between looks. */
static ds_status dsi_comm_mpi_finish(dsi_comm_mpi *m, dsi_comm_mpi_line *line, ds_comm_part *parts, int64_t deadline,
                                     ds_error *error) {
    size_t pending = line->used, idle = 0;
    while (pending) {
        size_t before = pending;
        pending = 0;
        for (size_t i = 0; i < line->used; i++) {
            int flag = 1;
            if (line->requests[i] != MPI_REQUEST_NULL &&
                MPI_Test(&line->requests[i], &flag, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
                dsi_comm_mpi_give_up(m, line, parts);
                DSI_COMM_STORE(&m->broken, 1);
                return dsi_fail(error, DS_ERR_PEER, "MPI_Test failed");
            }
            pending += !flag;
        }
        idle = pending < before ? 0 : idle + 1;
        if (idle > 200) {
            if (dsi_now(&m->clock) >= deadline) break;
            dsi_sleep(&m->clock, idle > 2000 ? 200000 : 20000);
        }
    }
    dsi_comm_mpi_give_up(m, line, parts);
    return pending ? dsi_fail(error, DS_ERR_TIMEOUT, "MPI: the deadline passed") : DS_OK;
}
static ds_status dsi_comm_mpi_refused(dsi_comm_mpi *m, dsi_comm_mpi_line *line, ds_comm_part *parts, const char *call,
                                      ds_error *error) {
    dsi_comm_mpi_give_up(m, line, parts);
    DSI_COMM_STORE(&m->broken, 1);
    return dsi_fail(error, DS_ERR_PEER, "%s failed", call);
}

#define DSI_COMM_MPI_MOST ((size_t)1 << 30) /* MPI counts are int */
static ds_status dsi_comm_mpi_exchange(void *ctx, unsigned channel, ds_comm_part *parts, int count, int64_t deadline,
                                       ds_error *error) {
    dsi_comm_mpi *m = (dsi_comm_mpi *)ctx;
    dsi_comm_mpi_line *line;
    size_t need = 0;
    for (int i = 0; i < count; i++)
        need += parts[i].send_bytes / DSI_COMM_MPI_MOST + parts[i].receive_bytes / DSI_COMM_MPI_MOST + 2;
    if (!(line = dsi_comm_mpi_line_of(m, channel, need)))
        return dsi_fail(error, DS_ERR_MEMORY, "no memory for %zu requests", need);
    for (int sends = 0; sends < 2; sends++) /* receives first, so that no message is unexpected */
        for (int i = 0; i < count; i++) {
            size_t bytes = sends ? parts[i].send_bytes : parts[i].receive_bytes;
            for (size_t at = 0; at < bytes; at += DSI_COMM_MPI_MOST) {
                int n = (int)(bytes - at < DSI_COMM_MPI_MOST ? bytes - at : DSI_COMM_MPI_MOST), failed;
                MPI_Request *request = &line->requests[line->used];
                line->owners[line->used] = i;
                failed = sends ? MPI_Isend((const char *)parts[i].send + at, n, MPI_BYTE, parts[i].peer, (int)channel,
                                           m->comm, request)
                               : MPI_Irecv((char *)parts[i].receive + at, n, MPI_BYTE, parts[i].peer, (int)channel,
                                           m->comm, request);
                if (failed != MPI_SUCCESS)
                    return dsi_comm_mpi_refused(m, line, parts, sends ? "MPI_Isend" : "MPI_Irecv", error);
                line->used++;
            }
        }
    return dsi_comm_mpi_finish(m, line, parts, deadline, error);
}

/* MPI's own sums. */
static void dsi_comm_mpi_add(void *in, void *into, const int *count, ds_dtype dtype) {
    const void *inputs[2];
    dsi_comm_sum s;
    inputs[0] = in, inputs[1] = into;
    s.inputs = inputs;
    s.outputs = &into;
    s.input_count = 2;
    s.output_count = 1;
    s.dtype = s.out_dtype = dtype;
    s.op = DS_COMM_SUM;
    dsi_comm_sum_run(&s, (size_t)*count);
}
static void dsi_comm_mpi_add_f16(void *in, void *into, int *count, MPI_Datatype *type) {
    (void)type;
    dsi_comm_mpi_add(in, into, count, DS_F16);
}
static void dsi_comm_mpi_add_bf16(void *in, void *into, int *count, MPI_Datatype *type) {
    (void)type;
    dsi_comm_mpi_add(in, into, count, DS_BF16);
}
/* Not integers of one and two bytes, which Open MPI's vectors saturate where sums should wrap around. */
static bool dsi_comm_mpi_sums(void *ctx, const ds_comm_sum *s) {
    bool all = s->world == ((dsi_comm_mpi *)ctx)->world;
    for (int r = 0; r < s->world; r++) all &= s->ranks[r] == r;
    return all && !s->on_device && (s->dtype <= DS_F64 || DS_DTYPE_SIZE(s->dtype) >= 4);
}
static ds_status dsi_comm_mpi_sum(void *ctx, const ds_comm_sum *s, int64_t deadline, ds_error *error) {
    const MPI_Datatype types[DS_DTYPE_COUNT] = {MPI_FLOAT,   MPI_UINT16_T, MPI_UINT16_T, MPI_DOUBLE,  MPI_INT8_T,
                                                MPI_UINT8_T, MPI_INT16_T,  MPI_UINT16_T, MPI_INT32_T, MPI_UINT32_T,
                                                MPI_INT64_T, MPI_UINT64_T, MPI_UINT8_T};
    dsi_comm_mpi *m = (dsi_comm_mpi *)ctx;
    size_t size = DS_DTYPE_SIZE(s->dtype);
    int first = s->kind == DS_COMM_REDUCE ? s->root : 0,
        last = s->kind == DS_COMM_REDUCE_SCATTER ? s->world - 1 : first;
    MPI_Op op = s->dtype == DS_F16 || s->dtype == DS_BF16 ? m->half[s->dtype == DS_BF16] : MPI_SUM;
    dsi_comm_mpi_line *line = dsi_comm_mpi_line_of(m, s->channel, s->count / DSI_COMM_MPI_MOST + (size_t)s->world + 1);
    if (!line) return dsi_fail(error, DS_ERR_MEMORY, "no memory for the requests of a sum");
    if (line->sums == MPI_COMM_NULL) { /* MPI's calls of all ranks have no tags: each communicator has one of its own */
        ds_status status;
        if (MPI_Comm_idup(m->comm, &line->sums, line->requests) != MPI_SUCCESS)
            return dsi_comm_mpi_refused(m, line, NULL, "MPI_Comm_idup", error);
        line->owners[0] = -1;
        line->used = 1;
        if ((status = dsi_comm_mpi_finish(m, line, NULL, deadline, error)) != DS_OK) return status;
        line->used = 0;
    }
    for (int r = first; r <= last; r++) { /* reduce_scatter: each part is reduced to its rank, all at once */
        bool parts = s->kind == DS_COMM_REDUCE_SCATTER, whole = s->kind == DS_COMM_ALL_REDUCE;
        size_t begin = parts ? s->starts[r] : 0, end = parts ? s->starts[r + 1] : s->count;
        for (size_t at = begin; at < end; at += DSI_COMM_MPI_MOST) {
            int n = (int)(end - at < DSI_COMM_MPI_MOST ? end - at : DSI_COMM_MPI_MOST), failed;
            const char *in = (const char *)s->in + at * size;
            char *out = (char *)s->out + (at - begin) * size;
            const void *from = (whole || r == s->rank) && in == out ? MPI_IN_PLACE : (const void *)in;
            MPI_Request *request = &line->requests[line->used];
            line->owners[line->used] = -1;
            failed = whole
                         ? MPI_Iallreduce(from, out, n, types[s->dtype], op, line->sums, request)
                         : MPI_Ireduce(from, r == s->rank ? out : NULL, n, types[s->dtype], op, r, line->sums, request);
            if (failed != MPI_SUCCESS)
                return dsi_comm_mpi_refused(m, line, NULL, whole ? "MPI_Iallreduce" : "MPI_Ireduce", error);
            line->used++;
        }
    }
    return dsi_comm_mpi_finish(m, line, NULL, deadline, error);
}

/* Starts MPI unless it runs already, and takes a duplicate of its world. */
static ds_status dsi_comm_mpi_open(const ds_comm_desc *desc, ds_comm_transport *out, int *rank, int *world,
                                   ds_error *error) {
    int64_t timeout = desc->timeout ? desc->timeout : 300 * (int64_t)1000000000;
    dsi_comm_mpi *m = (dsi_comm_mpi *)dsi_alloc_zero(&desc->allocator, sizeof *m);
    dsi_comm_mpi_line *line;
    int started = 0, over = 0, level = MPI_THREAD_SINGLE;
    ds_status status;
    if (!m) return dsi_fail(error, DS_ERR_MEMORY, "ds_comm: no memory for MPI");
    m->allocator = desc->allocator;
    m->clock = desc->clock;
    m->comm = MPI_COMM_NULL;
    m->half[0] = m->half[1] = MPI_OP_NULL;
    MPI_Initialized(&started);
    MPI_Finalized(&over);
    if (over) {
        dsi_release(&desc->allocator, m, sizeof *m);
        return dsi_fail(error, DS_ERR_STATE,
                        "ds_comm: MPI was finalised in this process and cannot start again; keep one "
                        "communicator, or call MPI_Init yourself");
    }
    if (!started) {
        m->ours = MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &level) == MPI_SUCCESS;
        if (!m->ours) {
            dsi_release(&desc->allocator, m, sizeof *m);
            return dsi_fail(error, DS_ERR_IO, "ds_comm: MPI_Init_thread failed");
        }
    }
    pthread_mutex_init(&m->lock, NULL);
    MPI_Query_thread(&level);
    out->name = "mpi";
    out->ctx = m;
    out->exchange = dsi_comm_mpi_exchange;
    out->close = dsi_comm_mpi_close;
    out->concurrent = level == MPI_THREAD_MULTIPLE;
    out->device = desc->cuda_aware;
    out->sums = dsi_comm_mpi_sums;
    out->sum = dsi_comm_mpi_sum;
    MPI_Comm_rank(MPI_COMM_WORLD, rank);
    MPI_Comm_size(MPI_COMM_WORLD, world);
    m->world = *world;
    line = dsi_comm_mpi_line_of(m, 0, 1);
    if (!line)
        status = dsi_fail(error, DS_ERR_MEMORY, "ds_comm: rank %d of %d: no memory for MPI", *rank, *world);
    else if (MPI_Op_create(dsi_comm_mpi_add_f16, 1, &m->half[0]) ||
             MPI_Op_create(dsi_comm_mpi_add_bf16, 1, &m->half[1]))
        status = dsi_fail(error, DS_ERR_PEER, "ds_comm: rank %d of %d: MPI_Op_create failed", *rank, *world);
    else if (MPI_Comm_idup(MPI_COMM_WORLD, &m->comm, line->requests) != MPI_SUCCESS)
        status = dsi_fail(error, DS_ERR_PEER, "ds_comm: rank %d of %d: MPI_Comm_idup failed", *rank, *world);
    else {
        ds_error why = {DS_OK, ""};
        line->owners[0] = -1;
        line->used = 1;
        status = dsi_comm_mpi_finish(m, line, NULL, dsi_deadline(&m->clock, timeout), &why);
        if (status == DS_ERR_TIMEOUT)
            dsi_fail(error, status, "ds_comm: rank %d of %d waited %.1f s for the others to join MPI", *rank, *world,
                     (double)timeout * 1e-9);
        else if (status)
            dsi_fail(error, status, "ds_comm: rank %d of %d, while MPI connects: %s", *rank, *world, why.message);
        else
            MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN);
    }
    if (status) dsi_comm_mpi_close(m);
    return status;
}
#undef DSI_COMM_MPI_MOST
#endif

// >>select: which backend

typedef enum dsi_comm_choice {
    DSI_COMM_SELF,
    DSI_COMM_SHM,
    DSI_COMM_MPI,
    DSI_COMM_NCCL,
    DSI_COMM_USER,
    DSI_COMM_NONE
} dsi_comm_choice;

static bool dsi_comm_is_local(const ds_comm_env *env) {
    const char *a = env->master_addr;
    if (env->local_world > 0) return env->local_world == env->world;
    return !*a || !strcmp(a, "localhost") || !strncmp(a, "127.", 4) || !strcmp(a, "::1");
}

/* Under "auto" with a device, NCCL is opened on the way. */
static dsi_comm_choice dsi_comm_choose(const ds_comm_desc *desc, const ds_comm_env *env, ds_comm_transport *transport,
                                       ds_error *error) {
    static const char *const names[] = {"self", "shm", "mpi", "nccl", "user"};
    const char *name = desc->backend && *desc->backend ? desc->backend : "auto";
    bool launched_by_mpi = strcmp(env->source, "none") != 0 && strcmp(env->source, "torchrun") != 0;
    if (desc->transport) {
        if (strcmp(name, "auto") == 0 || strcmp(name, "user") == 0) return DSI_COMM_USER;
        dsi_fail(error, DS_ERR_ARGUMENT, "ds_comm: a transport is given, but the backend is \"%.40s\"", name);
        return DSI_COMM_NONE;
    }
    if (strcmp(name, "auto") == 0) {
        if (env->world == 1) return DSI_COMM_SELF;
        if (desc->device.copy && dsi_comm_nccl_open(desc, transport, error) == DS_OK) return DSI_COMM_NCCL;
        if (desc->device.copy) dsi_log(&desc->logger, "ds_comm", DS_LOG_INFO, 2, "nccl refused: %s", error->message);
        if (launched_by_mpi && DS_COMM_USE_MPI) return DSI_COMM_MPI;
        if (launched_by_mpi)
            dsi_log(&desc->logger, "ds_comm", DS_LOG_INFO, 2, "mpi refused: not compiled in (DS_COMM_USE_MPI=1)");
        else
            dsi_log(&desc->logger, "ds_comm", DS_LOG_INFO, 2, "mpi refused: the ranks were not started by mpirun");
        if (dsi_comm_is_local(env)) return DSI_COMM_SHM;
        dsi_log(&desc->logger, "ds_comm", DS_LOG_INFO, 2, "shm refused: %d of %d ranks are on this machine",
                env->local_world, env->world);
        dsi_fail(error, DS_ERR_UNSUPPORTED,
                 "ds_comm: no backend for %d ranks: mpi %s; shm needs all ranks on one machine (here: %d, MASTER_ADDR "
                 "\"%.60s\")",
                 env->world, DS_COMM_USE_MPI ? "needs mpirun or srun" : "is not compiled in (DS_COMM_USE_MPI=1)",
                 env->local_world, env->master_addr);
        return DSI_COMM_NONE;
    }
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) {
            if (i == DSI_COMM_MPI && !DS_COMM_USE_MPI) break;
            if (i != DSI_COMM_SELF || env->world == 1) return (dsi_comm_choice)i;
            dsi_fail(error, DS_ERR_ARGUMENT, "ds_comm: the backend self is for one rank; the world has %d (%s)",
                     env->world, env->source);
            return DSI_COMM_NONE;
        }
    if (strcmp(name, "mpi") == 0)
        dsi_fail(error, DS_ERR_UNSUPPORTED, "ds_comm: the backend mpi is not compiled in (mpicc, -DDS_COMM_USE_MPI=1)");
    else if (strcmp(name, "user") == 0)
        dsi_fail(error, DS_ERR_ARGUMENT, "ds_comm: the backend user needs desc.transport");
    else
        dsi_fail(error, DS_ERR_ARGUMENT,
                 "ds_comm: the backend \"%.40s\" is unknown; known: auto, self, shm, mpi, nccl, user%s", name,
                 strcmp(name, "threads") == 0 ? " (threads: ds_comm_threads_create)" : "");
    return DSI_COMM_NONE;
}

/* Rank and world from the descriptor or the launcher. With both, the descriptor stands. */
static ds_status dsi_comm_place(const ds_comm_desc *desc, ds_comm_env *env, ds_error *error) {
    ds_error why = {DS_OK, ""}; /* not the caller's: the descriptor may stand in spite of it */
    ds_status status = ds_comm_resolve_env(NULL, NULL, env, &why);
    if (desc->world < 0 || desc->rank < 0 || (desc->world && desc->rank >= desc->world))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_comm: rank %d of %d is no place", desc->rank, desc->world);
    if (!desc->world && desc->rank)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_comm: rank %d is given without a world", desc->rank);
    if (!desc->world) return status ? dsi_fail(error, status, "%s", why.message) : DS_OK;
    if (status)
        dsi_log(&desc->logger, "ds_comm", DS_LOG_WARNING, 7, "the descriptor says rank %d of %d, and stands: %s",
                desc->rank, desc->world, why.message);
    if (!status && (desc->world != env->world || desc->rank != env->rank) && env->world > 1)
        dsi_log(&desc->logger, "ds_comm", DS_LOG_WARNING, 7, "the descriptor says rank %d of %d, %s says %d of %d",
                desc->rank, desc->world, env->source, env->rank, env->world);
    if (desc->world != env->world) env->local_world = -1;
    env->rank = desc->rank;
    env->world = desc->world;
    if (!status && strcmp(env->source, "none") == 0) env->source = "descriptor";
    if (status) {
        memset(env->master_addr, 0, sizeof env->master_addr);
        snprintf(env->run_id, sizeof env->run_id, "parent %ld", (long)getppid());
        env->source = "descriptor";
    }
    return DS_OK;
}

DS_API ds_status ds_comm_create_(const ds_comm_desc *desc, size_t desc_bytes, int version, ds_comm **out,
                                 ds_error *error) {
    static const char *const names[] = {"self", "shm", "mpi", "nccl", "user"};
    ds_comm_transport transport;
    ds_comm_desc d;
    ds_comm_env env;
    dsi_comm_choice choice;
    dsi_comm_family *family;
    ds_comm *c = NULL;
    ds_status status;
    *out = NULL;
    if ((status = dsi_comm_check_desc(desc, desc_bytes, version, error)) != DS_OK) return status;
    if ((status = dsi_comm_place(desc, &env, error)) != DS_OK) return status;
    d = *desc;
    if (d.local_world) env.local_world = d.local_world;
    if (!d.run_id) d.run_id = env.run_id;
    memset(&transport, 0, sizeof transport);
    {
        ds_error why = {DS_OK, ""};
        choice = dsi_comm_choose(&d, &env, &transport, &why);
        if (choice == DSI_COMM_NONE) {
            dsi_log(&d.logger, "ds_comm", DS_LOG_ERROR, 2, "%s", why.message);
            return dsi_fail(error, why.status, "%s", why.message);
        }
    }
    if (choice == DSI_COMM_USER) transport = *d.transport;
    if (choice == DSI_COMM_NCCL && !transport.ctx && (status = dsi_comm_nccl_open(&d, &transport, error)) != DS_OK)
        return status;
#if DS_COMM_USE_MPI
    if (choice == DSI_COMM_MPI) {
        int rank = 0, world = 1;
        if ((status = dsi_comm_mpi_open(&d, &transport, &rank, &world, error)) != DS_OK) return status;
        if (env.world > 1 && (rank != env.rank || world != env.world)) {
            dsi_comm_mpi_close(transport.ctx);
            return dsi_fail(error, DS_ERR_INPUT, "ds_comm: MPI says rank %d of %d, %s says %d of %d", rank, world,
                            env.source, env.rank, env.world);
        }
        env.rank = rank;
        env.world = world;
    }
#endif
    family = dsi_comm_family_make(&d.allocator, env.rank, env.world);
    if (family) {
        family->transport = transport;
        c = dsi_comm_make(&d, family, choice == DSI_COMM_USER && transport.name ? transport.name : names[choice],
                          env.rank, env.world);
        if (c && transport.exchange && !dsi_comm_make_scratch(c)) {
            dsi_comm_unmake(c);
            c = NULL;
        }
    }
    if (!c) {
        if (family)
            dsi_comm_family_release(family);
        else if (choice != DSI_COMM_USER && transport.close)
            transport.close(transport.ctx);
        return dsi_fail(error, DS_ERR_MEMORY, "ds_comm: no memory for rank %d of %d", env.rank, env.world);
    }
    dsi_log(&d.logger, "ds_comm", DS_LOG_INFO, 1, "rank %d of %d, backend %s (%s)", env.rank, env.world, c->name,
            env.source);
    if (choice == DSI_COMM_SHM) status = dsi_comm_open_shm(c, &d, error);
    if (choice == DSI_COMM_NCCL && c->world > 1) status = dsi_comm_nccl_join(c, &d, &env, error);
    if (status) {
        dsi_log(&d.logger, "ds_comm", DS_LOG_ERROR, 4, "%s", error ? error->message : "the ranks did not connect");
        dsi_comm_unmake(c);
        dsi_comm_family_release(family);
        return status;
    }
    dsi_log(&d.logger, "ds_comm", DS_LOG_INFO, 3, "rank %d of %d is ready", env.rank, env.world);
    *out = c;
    return DS_OK;
}

// >>split

typedef struct dsi_comm_wish {
    int32_t color, key, rank, channel;
} dsi_comm_wish;

/* This rank's part of its new communicator; no other rank is heard. NULL without memory. */
static ds_comm *dsi_comm_split_make(ds_comm *c, const dsi_comm_wish *members, int world, int rank, unsigned channel) {
    ds_comm_desc desc;
    ds_comm *n;
    memset(&desc, 0, sizeof desc);
    desc.timeout = c->timeout;
    desc.stage_bytes = c->stage_bytes;
    desc.allocator = c->allocator;
    desc.logger = c->logger;
    desc.clock = c->clock;
    desc.log.enabled = c->logged != 0;
    desc.log.verbose = c->log_verbose;
    desc.log.debug = c->log_debug;
    desc.device = c->device;
    desc.kernels = &c->kernels;
    n = dsi_comm_make(&desc, c->family, c->name, rank, world);
    if (!n) return NULL;
    for (int r = 0; r < world; r++) n->family_rank[r] = c->family_rank[members[r].rank];
    n->logged = c->logged;
    n->channel = channel;
    if (c->scratch && !dsi_comm_make_scratch(n)) {
        dsi_comm_unmake(n);
        return NULL;
    }
    return n;
}
static dsi_comm_room *dsi_comm_split_room(ds_comm *c, int world) {
    dsi_comm_room plan, *room;
    dsi_comm_rooms_give(c->family, NULL);
    if (!c->family->base) return dsi_comm_room_make(&c->allocator, world);
    plan = dsi_comm_room_plan(world, c->stage_bytes);
    room = (dsi_comm_room *)dsi_comm_arena_take(c->family, (size_t)plan.bytes, false);
    if (room) *room = plan;
    return room;
}

DS_API ds_status ds_comm_split(ds_comm *comm, int color, int key, ds_comm **out, ds_error *error) {
    size_t w = (size_t)comm->world, bytes = w * (sizeof(dsi_comm_wish) * 2 + sizeof(uint64_t));
    dsi_comm_wish mine, *all = (dsi_comm_wish *)dsi_alloc(&comm->allocator, bytes), *members = all ? all + w : NULL;
    uint64_t *addresses = all ? (uint64_t *)(void *)(members + w) : NULL, address = 0;
    int world = 0, rank = 0, channel = 0;
    ds_comm *n = NULL;
    ds_status status;
    *out = NULL;
    if (!all) { /* the others wait for this rank: tell them */
        ds_comm_abort(comm, "ds_comm_split: no memory");
        return dsi_fail(error, DS_ERR_MEMORY, "ds_comm_split: no memory for %zu bytes", bytes);
    }
    mine.color = color;
    mine.key = key;
    mine.rank = comm->rank;
    mine.channel = (int32_t)__atomic_load_n(&comm->family->next_channel, __ATOMIC_SEQ_CST);
    status = ds_comm_all_gather(comm, &mine, all, sizeof mine, NULL, DS_U8);
    for (size_t r = 0; r < w && !status; r++) {
        if (all[r].rank != (int32_t)r) { /* a call of its own that looks like this one */
            (void)dsi_comm_break(comm, DS_ERR_PEER, "call %llu differs: rank %d is in split, rank %d in all_gather",
                                 (unsigned long long)comm->number, comm->rank, (int)r);
            status = dsi_comm_state(comm);
            break;
        }
        if (all[r].channel > channel) channel = all[r].channel;
        if (color >= 0 && all[r].color == color) { /* in order of key, equal ones in order of rank */
            int at = world++;
            for (; at > 0 && members[at - 1].key > all[r].key; at--) members[at] = members[at - 1];
            members[at] = all[r];
        }
    }
    for (int r = 0; r < world; r++)
        if (members[r].rank == comm->rank) rank = r;
    if (!status) {
        if (!comm->room || !comm->family->base)
            __atomic_store_n(&comm->family->next_channel, (unsigned)channel + 1, __ATOMIC_SEQ_CST);
        if (color >= 0) n = dsi_comm_split_make(comm, members, world, rank, (unsigned)channel);
        if (n && rank == 0 && comm->room) {
            dsi_comm_room *room = dsi_comm_split_room(comm, world);
            n->room = room;
            n->owns_room = true;
            address = room ? dsi_comm_address(comm, room) : DSI_COMM_NO_ROOM;
        } else if (color >= 0 && !n)
            address = DSI_COMM_NO_ROOM;
        if (comm->room) status = ds_comm_all_gather(comm, &address, addresses, sizeof address, NULL, DS_U8);
    }
    if (status)
        dsi_fail(error, status, "ds_comm_split: %s", comm->error.message);
    else if (color >= 0 && !n)
        status = dsi_fail(error, DS_ERR_MEMORY, "ds_comm_split: no memory on rank %d", comm->rank);
    else if (color >= 0 && comm->room) {
        for (int r = 0; r < world && !status; r++)
            if (addresses[members[r].rank] == DSI_COMM_NO_ROOM)
                status = dsi_fail(error, DS_ERR_MEMORY, "ds_comm_split: no memory on rank %d", members[r].rank);
        if (!status) dsi_comm_sit(n, (dsi_comm_room *)(void *)dsi_comm_pointer(comm, addresses[members[0].rank]));
    }
    if (status && n) {
        if (n->room && n->owns_room) { /* whoever has its address and not this failure is in it */
            if (!DSI_COMM_LOAD(&comm->dead)) n->room->left = (uint32_t)world;
            dsi_comm_rooms_give(comm->family, n->room);
        }
        dsi_comm_unmake(n);
        n = NULL;
    }
    if (n) __atomic_add_fetch(&comm->family->references, 1, __ATOMIC_SEQ_CST);
    dsi_release(&comm->allocator, all, bytes);
    *out = n;
    return status;
}

#undef DSI_COMM_FOLD
#undef DSI_COMM_BLOCK
#undef DSI_COMM_AVX2
#undef DSI_COMM_DIVIDE
#undef DSI_COMM_LARGE
#undef DSI_COMM_PAIR
#undef DSI_COMM_X86
#undef DSI_COMM_LEVELS
#undef DSI_COMM_SMALL
#undef DSI_COMM_QUEUE
#undef DSI_COMM_LINE
#undef DSI_COMM_PAGE
#undef DSI_COMM_TEXT
#undef DSI_COMM_PORTS
#undef DSI_COMM_ENTRIES
#undef DSI_COMM_ABORTED
#undef DSI_COMM_GATHER_SUMS
#undef DSI_COMM_NO_ROOM
#undef DSI_COMM_LOAD
#undef DSI_COMM_STORE

#endif /* DS_COMM_IMPL_DONE */

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
