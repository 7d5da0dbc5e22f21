/* ds_optim.h - v0.1.0 - fused optimizers, gradient clipping, loss scaling and learning-rate schedules - public domain or MIT-0

   DO THIS
     #define DS_IMPLEMENTATION     in one C or C++ file, before
     #include "ds_optim.h"         and link with -lm -lpthread

   SYNOPSIS (a whole trainer's step: unscale, norm, overflow check, clip, update, 16-bit weights)

     ds_optim_params group;                          // plain struct of all parameters of all optimizers
     ds_optim_params_default("AdamW", &group);       // the documents' defaults for that type
     group.lr = 3e-4, group.weight_decay = 0.1;
     ds_optim_tensor tensors[] = {{"wte", 50257, 768, 0}, {"ln.bias", 1, 768, 0}};   // name, rows, cols, group
     ds_optim_desc desc = {0};
     desc.type = "AdamW";
     desc.groups = &group, desc.group_count = 1;
     desc.tensors = tensors, desc.tensor_count = 2;
     desc.own_states = true;                         // the header keeps moments and fp32 masters
     ds_error error = {DS_OK, ""};
     ds_optim *o;
     if (ds_optim_create(&desc, &o, &error)) puts(error.message);
     ...
     ds_optim_io io[] = {{w0, DS_F32, g0, DS_F32}, {w1, DS_F32, g1, DS_F32}};
     ds_optim_options options = {1.0};               // clip to norm 1
     ds_optim_report report;
     ds_optim_step(o, io, &options, &report);        // DS_OK also for a skipped step: report.skipped

   OPTIMIZERS          states (fp32, per element)               bytes read + written per element, fp32 throughout
     Adam, AdamW       exp_avg exp_avg_sq                       16 + 12
     SGD               momentum_buffer (if momentum)            12 + 8 (8 + 4 without)
     Adagrad           exp_avg_sq                               12 + 8
     Lion              exp_avg                                  12 + 8
     Lamb              exp_avg exp_avg_sq                       28 + 12, two passes: the trust ratio needs whole norms
     Muon              momentum_buffer (matrices) or as AdamW   12 + 8 and the matrix products
     OneBitAdam        exp_avg exp_avg_sq                       16 + 12 and the compressed average
     ZeroOneAdam       exp_avg exp_avg_sq momentum_accumulator  20 + 16 and the compressed average
     OneBitLamb        exp_avg exp_avg_sq exp_avg_sq_fresh      36 + 20 and the compressed average
   A 16-bit gradient reads 2 bytes less, a 16-bit copy of the weights writes 2 more, a global norm (clipping, overflow
   check) reads the gradient once more. "Adam" decays decoupled, as AdamW, unless adam_w_mode is false. Lion takes the sign
   bit of its direction, as DeepSpeed on a CPU does: an exact zero moves a parameter by lr like any other.

   OPTIONS  DS_OPTIM_SIMD  1   in the implementation's file: 0 leaves out AVX2 and AVX-512 (else chosen at run time)

   WHAT IT DOES NOT DO
   It does not reduce gradients between ranks, own a training loop, or read files. Moments are fp32. eps 0 is taken at its
   word: where exp_avg_sq is 0 the update divides by zero, as in PyTorch. Muon knows no heads or expert groups: register
   each as a tensor.

   CONCEPTS
   tensor   a logical tensor, registered at create in a fixed order: name, shape, group. Its elements are cut only at
            multiples of DS_GRAIN (1,024), so that a rank, a thread or a disk block can hold a part of it.
   slice    a part of one tensor for one call: where its master weights, states and gradient lie just now. Memory
            belongs to the caller; nothing is kept after the call.
   step     begin, apply as often as needed in any order and cutting, end. end advances the step count t; cancel does not.
   work     what an optimizer needs to see: single grains (Adam), norms over the tensor first (LAMB: measure all slices,
            combine, then apply), or the whole tensor in one slice (Muon's matrices, the 1-bit family).
   factor   every gradient is multiplied by inv_scale * clip_coefficient as it is read: never a separate pass.
   Results depend on neither cutting, order, threads nor SIMD level: one formula, sums of products through explicit
   fused multiply-adds only, so contraction has nothing to contract; denormals are kept (flush-to-zero is refused).
   Parallel matrix products keep the order of each sum. The 16-bit output rounds to nearest even. Constants of a step are
   made in double and rounded to fp32 once, so that a moment is up to 2 ulp from the same step in double throughout. What
   comes out as NaN is NaN everywhere, but its sign and payload are the machine's and not part of this promise.

   STEP BY STEP for an engine that partitions
     1. ds_optim_norm_grains over each slice's gradient; gather the grains; ds_optim_norm_tree per tensor; add the
        tensors' sums in registration order; norm = sqrt. Not finite: the step is skipped.
     2. ds_loss_scaler_update(overflow); skipped: drop the gradients, go on.
     3. ds_optim_begin(o, 1 / scale, ds_optim_clip_coefficient(norm, max_norm), norm)
     4. tensors whose ds_optim_tensor_work() is .._BY_NORM: ds_optim_measure(slices), once all are done ds_optim_combine
     5. ds_optim_apply(slices); 6. ds_optim_end; 7. ds_optim_schedule_step

   MEMORY   The object itself, one copy of the descriptor's tables, and (own_states) the states. Muon keeps scratch for
   its largest matrix, LAMB two doubles per grain, the 1-bit family its error feedback. All of it is taken at create.
   ds_optim_memory() states it, and ds_optim_device_memory() what is desc.device's; no later call allocates.
   own_states lays large arrays at different places of a page and asks for huge pages. Do so too where you own them:
   arrays whose addresses modulo 4,096 differ by a few cache lines only cost up to a third of the speed. 16-bit weights
   that begin at a multiple of 64, in slices of a million elements or more, are written past the caches.

   1-BIT    follows DeepSpeed 0.19.6: the first step only counts (its gradient has no effect), there is no bias correction,
   and while ds_optim_wants_local_gradients() the gradient must not be averaged over ranks. Slices are whole tensors, in
   one order on all ranks. With kernels moments, errors and what is averaged stay on the device, with the CPU's bits when
   desc.average has them (ds_comm_one_bit_all_reduce_on). Clipping is for the warm-up: log id 4 says so in the first step
   that asks for it, and from the first step with local gradients on it is refused, whatever the norm. One rank without
   desc.average computes what DeepSpeed does at world size 1: OneBitAdam and OneBitLamb apply their masks, ZeroOneAdam has
   none and leaves exp_avg as it is between two updates of the variance. OneBitLamb with freeze_step 0 or 1 begins its
   compressed phase with exp_avg_sq_fresh as it is (zero).

   ERRORS   Each call returns ds_status; ds_optim_error() has the text. Log ids: 1 error feedback reset at another world
   size (warning), 2 SIMD level chosen (debug), 3 step skipped (info), 4 clipping will be refused (warning).

   THREADS  One thread at a time per object. desc.threads starts a pool, or desc.tasks plugs in yours. Pure functions
   (norms, casts, schedules, scaler) may be called from anywhere.

   CONFIG KEYS  optimizer.type, optimizer.params.*, scheduler.type, scheduler.params.*, gradient_clipping, fp16.loss_scale,
   initial_scale_power, loss_scale_window, hysteresis, consecutive_hysteresis, min_loss_scale (an engine maps them). */
#if defined(DS_IMPLEMENTATION) && !defined(DS_OPTIM_IMPLEMENTATION)
#define DS_OPTIM_IMPLEMENTATION
#endif
#ifndef DS_OPTIM_H
#define DS_OPTIM_H
#define DS_OPTIM_VERSION 100 /* major * 10000 + minor * 100 + patch */

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

#if defined(DS_STATIC) && !defined(DS_OPTIM_IMPLEMENTATION)
#error "ds: DS_STATIC needs the implementation in the same file; define DS_IMPLEMENTATION before including ds_optim.h"
#endif
#ifdef __cplusplus
extern "C" {
#endif

#define DS_OPTIM_MAX_STATES 3

/* ---- hyper-parameters ---- */

/* How Muon orthogonalises. */
typedef enum ds_optim_ns { DS_OPTIM_NS_GRAM = 0, DS_OPTIM_NS_STANDARD = 1 } ds_optim_ns;

/* All documented parameters of all optimizers; each reads its own. Fill with ds_optim_params_default, then change:
   here a zero is a value, not a default. One per parameter group. [cfg: optimizer.params] */
typedef struct ds_optim_params {
    double lr, beta1, beta2, eps, weight_decay;
    bool adam_w_mode;            /* Adam, Muon's Adam: decoupled decay; false: L2 */
    bool torch_adam;             /* betas in double, as PyTorch; false: in fp32, as DeepSpeed (0.999 is 0.99900001) */
    bool bias_correction;        /* Adam, Lamb */
    bool nesterov;               /* SGD, with momentum and without dampening; Muon */
    bool eps_inside_sqrt;        /* Lamb */
    double momentum, dampening;  /* SGD; momentum also Muon */
    double max_coeff, min_coeff; /* Lamb, OneBitLamb: range of the trust ratio */
    double max_grad_norm;        /* Lamb: clips to this norm by itself; 0: off */
    int64_t freeze_step;         /* OneBitAdam, OneBitLamb: steps of warm-up */
    int64_t var_freeze_step;     /* ZeroOneAdam: the variance is fixed after this step */
    int64_t var_update_scaler;   /* ZeroOneAdam: variance updates until their interval doubles */
    int64_t local_step_scaler;   /* ZeroOneAdam: steps until the interval of synchronisation doubles */
    int64_t local_step_clipper;  /* ZeroOneAdam: its largest value */
    double coeff_beta;           /* OneBitLamb: average of the trust ratio in warm-up */
    double factor_max, factor_min, factor_threshold; /* OneBitLamb: range of its factor, and of one step's change */
    double adam_lr;          /* Muon: base rate of the tensors that Adam takes, scheduled like lr; negative: lr */
    double ns_a, ns_b, ns_c; /* Muon: coefficients of Newton-Schulz */
    int ns_steps;            /* Muon */
    ds_optim_ns ns_method;   /* Muon */
} ds_optim_params;

/* Defaults of a built-in type (case is ignored, as in DeepSpeed). DS_ERR_INPUT for an unknown name. Thread-safe. */
DS_API ds_status ds_optim_params_default(const char *type, ds_optim_params *out);

/* ---- what is optimised ---- */

typedef enum ds_optim_muon { DS_OPTIM_MUON_AUTO = 0, DS_OPTIM_MUON_ON = 1, DS_OPTIM_MUON_OFF = 2 } ds_optim_muon;

/* A logical tensor of rows x cols elements, row-major; a vector has rows 1. Sizes 0 and 1 are fine. The name is
   copied, and no other tensor's. */
typedef struct ds_optim_tensor {
    const char *name;
    size_t rows, cols;
    size_t group;           /* index into desc.groups */
    ds_dtype weights_dtype; /* own_states: dtype of ds_optim_io.weights; a 16-bit one gets a master of its own */
    ds_optim_muon muon; /* Muon: AUTO takes rows > 1 and cols > 1 whose name lacks "embed", "wte", "wpe", "lm_head" */
} ds_optim_tensor;

/* Where a part of a tensor lies during one call. `begin` is a multiple of DS_GRAIN, and so is count but at the tensor's
   end. Pointers need the alignment of their element only. grad and weights16 may not overlap master or states. */
typedef struct ds_optim_slice {
    size_t tensor, begin, count;
    float *master;
    float *state[DS_OPTIM_MAX_STATES]; /* as many as ds_optim_state_count(tensor) */
    const void *grad;
    ds_dtype grad_dtype;      /* DS_F32, DS_F16, DS_BF16 */
    void *weights16;          /* receives the new weights in 16 bits; may be NULL */
    ds_dtype weights16_dtype; /* DS_F16, DS_BF16 */
    bool on_host;             /* with kernels: host memory, which the CPU updates; all slices of a call alike */
} ds_optim_slice;

/* What an optimizer must see of a tensor at once. */
typedef enum ds_optim_work {
    DS_OPTIM_BY_GRAIN = 0,     /* apply at once */
    DS_OPTIM_BY_NORM = 1,      /* measure every slice of the tensor, combine, then apply */
    DS_OPTIM_WHOLE = 2,        /* apply with one slice that is the whole tensor */
    DS_OPTIM_WHOLE_BY_NORM = 3 /* measure, combine and apply, with slices that are whole tensors (OneBitLamb) */
} ds_optim_work;

/* One call of a table's function. Constants are those of this step. */
typedef struct ds_optim_pass {
    const ds_optim_params *params; /* of the tensor's group, with the lr in force */
    const ds_optim_tensor *tensor;
    size_t begin;          /* first element of this part */
    int64_t step;          /* t, from 1 */
    double norm[2];        /* BY_NORM, in update: square roots of the two combined sums */
    void *ctx;             /* the table's */
    const ds_group *group; /* desc.group: a WHOLE update may exchange over it */
    struct ds_optim *o;    /* for ds_optim_pass_average */
} ds_optim_pass;

/* An optimizer of the user's own; the built-in ones are entries of the same table. `update` gets one grain (WHOLE: the
   tensor), the gradient in fp32, unscaled and clipped; it may run on several threads for different parts, and must treat
   each element alike for results not to depend on the cutting. Any status but DS_OK ends the call that led there with it;
   what other parts were given stays, and the step is to be cancelled. `measure` (BY_NORM) may change states, not master, and
   writes two partial sums of the grain, whatever they are. Of the parameters only lr is checked for a table of the user's.
   A compressed optimizer is WHOLE, on the calling thread, in the order of the slices: local_gradients says which steps
   take the rank's own gradient, and `compresses` lets update call ds_optim_pass_average. */
typedef struct ds_optim_table {
    const char *name;
    ds_optim_work work;
    size_t state_count;
    const char *state_names[DS_OPTIM_MAX_STATES]; /* of each state */
    void (*measure)(const ds_optim_pass *pass, const float *grad, const float *master, float *const *state,
                    size_t count, double sums[2]);
    ds_status (*update)(const ds_optim_pass *pass, const float *grad, float *master, float *const *state, size_t count);
    void *ctx;
    bool (*local_gradients)(void *ctx,
                            int64_t step); /* for step t to come; alike on all ranks. NULL: all are averaged */
    bool compresses;                       /* WHOLE: error feedback is kept for each tensor, as the 1-bit family's */
} ds_optim_table;

/* The average over ranks with one bit per element that the 1-bit optimizers use in their compressed phase; NULL members:
   the header's own over desc.group. buffer, worker_error: count elements, a multiple of 8 * ranks; server_error:
   count / ranks. Replaces buffer by the average of what the ranks sent. (Tang et al. 2021) With kernels they are device
   memory, to be read after what `stream` has to do, and several ranks need an average of the caller's. */
typedef struct ds_optim_average {
    ds_status (*average)(void *ctx, float *buffer, float *worker_error, float *server_error, size_t count,
                         void *stream); /* NULL without kernels */
    void *ctx;
} ds_optim_average;

/* c = alpha * op(a) * op(b) + beta * c, row-major, for Muon: a BLAS of yours. NULL: the header's own product, whose
   results do not depend on threads or SIMD level. */
typedef struct ds_optim_gemm {
    void (*gemm)(void *ctx, bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, float alpha,
                 const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc);
    void *ctx;
} ds_optim_gemm;

typedef enum ds_optim_level {
    DS_OPTIM_LEVEL_BEST = 0,
    DS_OPTIM_LEVEL_SCALAR = 1,
    DS_OPTIM_LEVEL_AVX2 = 2,
    DS_OPTIM_LEVEL_AVX512 = 3
} ds_optim_level;

/* Constants of one Adam step, as every formula takes them; made by the header in double, rounded once. */
typedef struct ds_optim_adam {
    float factor;                 /* of the gradient */
    float beta1, one_minus_beta1; /* 1 - beta: exact for the rounded beta, or (torch_adam) rounded itself */
    float beta2, one_minus_beta2;
    float l2;              /* weight decay added to the gradient */
    float decay;           /* -lr * weight decay, decoupled */
    float root_correction; /* 1 / sqrt(1 - beta2^t) */
    float eps, step_size;  /* step_size: -lr / (1 - beta1^t) */
} ds_optim_adam;

/* Constants of one step for every built-in optimizer; one per parameter group (two for Muon: matrices, and the rest by
   Adam). The last two members are the header's own. */
typedef struct ds_optim_constants {
    ds_optim_adam adam;
    float beta1, one_minus_beta1, beta2, one_minus_beta2;
    float l2, decay, minus_lr, eps_in, eps_out, momentum, gain;
    bool nesterov, first;
    double rate; /* Lamb: lr with its bias corrections */
    const struct dsi_optim_simd *simd;
    struct ds_optim *o;
} ds_optim_constants;

/* What a kernel does to each slice. LAMB takes two: MEASURE updates the moments and sums squares of weights and of the
   direction by grain, UPDATE takes the direction times `rate`. The 1-bit family: WARM updates the moments and takes their
   direction times `rate`. 0/1 Adam's local steps: MOVE takes it too and adds it to state[2]; UNDO takes state[2] back and
   turns it into units of the momentum; REDO makes the momentum of it and takes it again, `rate` being the sum of the rates.
   LAMB: `grad` is the averaged momentum times `rate`; it becomes the momentum, state[2] the variance that it implies, and
   sums are the squares of the direction without and with weight decay and the largest ratio of the two variances. */
typedef enum ds_optim_rule {
    DS_OPTIM_RULE_ADAM = 0,
    DS_OPTIM_RULE_SGD = 1,
    DS_OPTIM_RULE_ADAGRAD = 2,
    DS_OPTIM_RULE_LION = 3,
    DS_OPTIM_RULE_LAMB_MEASURE = 4,
    DS_OPTIM_RULE_LAMB_UPDATE = 5,
    DS_OPTIM_RULE_ONE_BIT_WARM = 6,
    DS_OPTIM_RULE_ONE_BIT_MOVE = 7,
    DS_OPTIM_RULE_ONE_BIT_UNDO = 8,
    DS_OPTIM_RULE_ONE_BIT_REDO = 9,
    DS_OPTIM_RULE_ONE_BIT_LAMB = 10
} ds_optim_rule;

/* A slice with what its rule needs besides. */
typedef struct ds_optim_part {
    ds_optim_slice slice;
    float rate;   /* LAMB_UPDATE: -rate * trust ratio; ONE_BIT_*: as said above */
    double *sums; /* LAMB_MEASURE: two for each of the slice's grains; ONE_BIT_LAMB: three */
} ds_optim_part;

/* GPU kernels over the same formulas; ds_kernels.cu fills it. All pointers are device memory; calls order work on the
   stream and return. Elements, rounding and bits are those of the CPU's function of the same name. A `per_grain` that is
   not finite says that its grain overflowed: norm and check are one read. */
typedef struct ds_optim_kernels {
    void *ctx;
    /* all parts in one launch: gradient times constants->adam.factor, formula, 16-bit weights */
    ds_status (*update)(void *ctx, ds_optim_rule rule, const ds_optim_constants *constants, const ds_optim_part *parts,
                        size_t count, void *stream);
    ds_status (*norm_grains)(void *ctx, const void *grad, ds_dtype dtype, size_t count, float factor, double *per_grain,
                             void *stream);
    ds_status (*norm_tree)(void *ctx, double *grains, size_t n, void *stream); /* the sum is left in grains[0] */
    ds_status (*cast)(void *ctx, void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count,
                      void *stream);
    ds_status (*accumulate)(void *ctx, void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count,
                            void *stream);
    ds_status (*scale)(void *ctx, void *x, ds_dtype dtype, float factor, size_t count, void *stream);
    /* Muon's parts, row-major: y = x * a + y * b (x may be y); c = alpha * a * op(b) + beta * c with k in order; `to` =
       `from` (rows, cols) transposed; what is below c's diagonal = what is above it, and `add` to each of the diagonal */
    ds_status (*mix)(void *ctx, float *y, const float *x, float a, float b, size_t count, void *stream);
    ds_status (*multiply)(void *ctx, bool transpose_b, size_t m, size_t n, size_t k, float alpha, const float *a,
                          const float *b, float beta, float *c, void *stream);
    ds_status (*transpose)(void *ctx, float *to, const float *from, size_t rows, size_t cols, void *stream);
    ds_status (*mirror)(void *ctx, float *c, size_t n, float add, void *stream);
} ds_optim_kernels;

/* Both are defined in ds_kernels.cu, which nvcc compiles: the kernels above, and CUDA as a ds_device. Their functions
   may be called from any thread, and are of the GPU that was current when the table was filled. */
extern void ds_cuda_optim_kernels(ds_optim_kernels *out);
extern void ds_cuda_device(ds_device *out);

/* ---- the optimizer ---- */

typedef struct ds_optim_desc {
    const char *type; /* "AdamW", ... or the name of one of `tables` */
    const ds_optim_params *groups;
    size_t group_count;
    const ds_optim_tensor *tensors;
    size_t tensor_count;
    bool own_states;              /* the header keeps states and masters; needed by ds_optim_step */
    const ds_optim_table *tables; /* user's own optimizers */
    size_t table_count;
    ds_optim_level level; /* for tests: a level that the machine lacks is DS_ERR_UNSUPPORTED */
    unsigned threads;     /* built-in pool, the caller included; 0 and 1: none. Ignored when tasks is set */
    ds_tasks tasks;
    ds_group group; /* BY_NORM partials, the 1-bit average, ds_optim_step's norms; zeroed: one rank */
    ds_optim_average average;
    ds_optim_gemm gemm;
    const float *const *masks;       /* 1-bit family: exp_avg_mask per tensor, whole, the caller's; may be NULL, and
                                        with kernels must be */
    const ds_optim_kernels *kernels; /* Adam, AdamW, SGD, Adagrad, Lion, Lamb: slices are device memory unless they say
                                        on_host. Muon (`gemm` is not called), 1-bit family: with all_on_device */
    const ds_device *device;         /* with kernels, for all but the first five: where sums and scratch are */
    bool all_on_device;              /* no slice will be on_host */
    ds_allocator allocator;
    ds_logger logger;
} ds_optim_desc;

typedef struct ds_optim ds_optim;

/* Copies all of desc but hooks' targets, masks and kernels. On failure *out is NULL and error says why; an unknown type
   is answered with the list of names. */
DS_API ds_status ds_optim_create_(const ds_optim_desc *desc, ds_optim **out, ds_error *error, int version, size_t size);
static inline ds_status ds_optim_create(const ds_optim_desc *desc, ds_optim **out, ds_error *error) {
    return ds_optim_create_(desc, out, error, DS_OPTIM_VERSION, sizeof(ds_optim_desc));
}
DS_API void ds_optim_destroy(ds_optim *o);                /* NULL is fine */
DS_API const ds_error *ds_optim_error(const ds_optim *o); /* of the last call that failed */

/* Facts that hold from create on. `tensor` is the index in desc.tensors, which ds_optim_find gives for a name (SIZE_MAX:
   there is none); names are unique. */
DS_API size_t ds_optim_find(const ds_optim *o, const char *name);
DS_API size_t ds_optim_tensor_count(const ds_optim *o);
DS_API const char *ds_optim_tensor_name(const ds_optim *o, size_t tensor);
DS_API ds_optim_work ds_optim_tensor_work(const ds_optim *o, size_t tensor);
DS_API size_t ds_optim_state_count(const ds_optim *o, size_t tensor);
DS_API const char *ds_optim_state_name(const ds_optim *o, size_t tensor, size_t k); /* "exp_avg"; as in PyTorch */
DS_API size_t ds_optim_state_count_max(const ds_optim *o);
DS_API size_t ds_optim_memory(const ds_optim *o);                        /* bytes of desc.allocator */
DS_API size_t ds_optim_device_memory(const ds_optim *o, size_t *pinned); /* bytes of desc.device */
DS_API ds_optim_level ds_optim_simd_level(const ds_optim *o);
DS_API const char *ds_optim_type_name(const ds_optim *o); /* in the documents' spelling */

/* Rates and betas in force for the next step. */
DS_API double ds_optim_lr(const ds_optim *o, size_t group);
DS_API ds_status ds_optim_set_lr(ds_optim *o, size_t group, double lr);
DS_API const ds_optim_params *ds_optim_group_params(const ds_optim *o, size_t group);
DS_API ds_status ds_optim_set_group_params(ds_optim *o, size_t group, const ds_optim_params *params);

/* From a WHOLE update of a table that compresses: x, all elements of the tensor, becomes the ranks' average with one bit per
   element, times the tensor's mask; desc.average, or the header's own over desc.group. Collective. Alone (one rank and no
   desc.average) only the mask acts. Error feedback is ds_optim_error_buffer's. DS_ERR_STATE for another table. */
DS_API ds_status ds_optim_pass_average(const ds_optim_pass *pass, float *x);

/* True in the 1-bit optimizers' compressed phase (and where a user's table says so): the next step takes this rank's own gradient instead of the average. */
DS_API bool ds_optim_wants_local_gradients(const ds_optim *o);
/* ZeroOneAdam on several ranks, once its local steps have begun: the step after which all ranks hold the same parameters
   again, to the rounding of the local steps that it undoes; 0: they do now. */
DS_API int64_t ds_optim_local_until(const ds_optim *o);
/* True when clipping may not be used from the next step on (the 1-bit optimizers after their freeze). ds_optim_step with a
   max_norm, and begin with a coefficient below 1 or a max_grad_norm, are then refused, whatever the norm. */
DS_API bool ds_optim_refuses_clipping(const ds_optim *o);

/* Steps taken so far; t of the next step is this plus 1. Counts, a schedule's too, end at 2^53 and stay there. */
DS_API int64_t ds_optim_step_count(const ds_optim *o);
DS_API ds_status ds_optim_set_step_count(ds_optim *o, int64_t count);

/* One step over slices. inv_scale: 1 / (loss scale * ...), neither 0 nor infinite in fp32; clip_coefficient: <= 1; their
   product multiplies each gradient in fp32. grad_norm: of the unscaled gradient, needed only by Lamb's max_grad_norm (else
   0). DS_ERR_STATE out of order, DS_ERR_ARGUMENT for a slice off the grain or without its pointers; nothing is changed then.
   No account is kept of what was applied: an element that two calls of one step give is updated twice. */
DS_API ds_status ds_optim_begin(ds_optim *o, double inv_scale, double clip_coefficient, double grad_norm);
DS_API ds_status ds_optim_measure(ds_optim *o, const ds_optim_slice *slices, size_t count); /* BY_NORM tensors only */
DS_API ds_status ds_optim_measure_on(ds_optim *o, const ds_optim_slice *slices, size_t count, void *stream);
DS_API ds_status ds_optim_combine(ds_optim *o); /* collective over group */
DS_API ds_status ds_optim_apply(ds_optim *o, const ds_optim_slice *slices, size_t count);
DS_API ds_status ds_optim_apply_on(ds_optim *o, const ds_optim_slice *slices, size_t count, void *stream); /* kernels */
DS_API ds_status ds_optim_end(ds_optim *o);
DS_API void ds_optim_cancel(ds_optim *o); /* t stays; what was applied stays applied */

/* ---- the simple path (own_states) ---- */

typedef struct ds_optim_io {
    void *weights; /* updated in place; its dtype is that of the tensor's weights_dtype */
    ds_dtype weights_dtype;
    const void *grad;
    ds_dtype grad_dtype;
} ds_optim_io;

typedef enum ds_optim_skip { DS_OPTIM_STEPPED = 0, DS_OPTIM_OVERFLOW = 1 } ds_optim_skip;

typedef struct ds_loss_scaler ds_loss_scaler;

typedef struct ds_optim_options {
    double max_norm;        /* clip to this global norm; 0: off; else positive [cfg: gradient_clipping] */
    ds_loss_scaler *scaler; /* its scale multiplied the loss; updated; may be NULL */
    bool unchecked;         /* no norm, no overflow check: reads the gradient once. Not with max_norm or scaler */
} ds_optim_options;

typedef struct ds_optim_report {
    ds_optim_skip skipped;
    size_t overflow_tensor;  /* first tensor whose gradient was not finite; SIZE_MAX: none */
    double grad_norm;        /* unscaled, before clipping; infinity when skipped, 0 when unchecked */
    double clip_coefficient; /* 1: not clipped */
    double loss_scale;       /* that multiplied this step's loss */
} ds_optim_report;

/* The whole step for one rank: io has one entry per registered tensor, in order. options, report may be NULL. A skipped
   step is DS_OK; DS_ERR_NUMERIC when it overflowed at the smallest loss scale. Collective over desc.group: all ranks skip
   when one overflowed, and the largest of their norms is reported and clipped by (unchecked: no rank asks another). */
DS_API ds_status ds_optim_step(ds_optim *o, const ds_optim_io *io, const ds_optim_options *options,
                               ds_optim_report *report);

/* State k of a tensor, fp32, all its elements (own_states; else NULL). ds_optim_own_master: the fp32 weights of a
   16-bit tensor, NULL for others; the first step takes them from the weights unless they are set before with
   ds_optim_set_master, and until then there are none: NULL. These are what a checkpoint holds, by name, independent of
   partitioning. */
DS_API float *ds_optim_own_state(ds_optim *o, size_t tensor, size_t k);
DS_API float *ds_optim_own_master(ds_optim *o, size_t tensor);
DS_API ds_status ds_optim_set_master(ds_optim *o, size_t tensor, const float *values);
/* The same by name: state "exp_avg" (or "master") of tensor "wte", to be written out or filled, with its count of elements;
   NULL and 0 when there is none. A master that is not there yet is set with ds_optim_set_master. */
DS_API float *ds_optim_named_state(ds_optim *o, const char *tensor, const char *state, size_t *count);

/* ---- saving ---- */

/* What the object itself remembers: step count, schedule, the 1-bit family's counters and factors by tensor. The same bytes
   on every rank, little-endian. load: DS_ERR_INPUT when they are of another optimizer; tensors may be other ones, and for the
   1-bit family in another order on one rank (it needs the same names and shapes, for an added one would be out of step, and
   on several ranks the same order, which their error feedback goes by). Bytes of
   before 0.1.0's release, without names, load into the same tensors in the same order. */
DS_API size_t ds_optim_save_bytes(const ds_optim *o);
DS_API void ds_optim_save(const ds_optim *o, void *bytes);
DS_API ds_status ds_optim_load(ds_optim *o, const void *bytes, size_t count);

/* The 1-bit family's error feedback, of this rank alone: buffers i < count (NULL and 0 from there), `which` 0 worker, 1 server, 2 what OneBitLamb's
   padding holds. Contents may be saved and written back through the pointer (with kernels, of desc.device's memory) at the
   same world size. After a resume at another size call ds_optim_reset_errors (or skip loading: they start as zero), which
   logs id 1; only a device can fail there. */
DS_API size_t ds_optim_error_buffers(const ds_optim *o);
DS_API float *ds_optim_error_buffer(ds_optim *o, size_t i, int which, size_t *count);
DS_API ds_status ds_optim_reset_errors(ds_optim *o);

/* ---- norms and clipping; pure ---- */

/* Sum of squares of each grain of `count` elements: per_grain[ceil(count / DS_GRAIN)]. Each element is widened to fp32,
   multiplied by factor in fp32, squared and added in fp64 in 16 fixed lanes. NaN and infinity carry through. */
DS_API void ds_optim_norm_grains(const void *grad, ds_dtype dtype, size_t count, float factor, double *per_grain);
/* Sum of n partials in a binary tree: neighbours are added level by level, an odd one moves up. Overwrites grains. */
DS_API double ds_optim_norm_tree(double *grains, size_t n);
/* 1 / max(1, (norm + 1e-6) / max_norm), as DeepSpeed's ZeRO does; 1 when max_norm is 0. */
DS_API double ds_optim_clip_coefficient(double norm, double max_norm);

/* ---- elementwise; exact by definition, at the best SIMD level; arrays may not overlap, but to == from where `to` has
   no larger elements ---- */

/* DS_F32, DS_F16, DS_BF16 in any pair; to nearest even. */
DS_API ds_status ds_optim_cast(void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count);
/* to[i] += from[i], in fp32, rounded once to to_dtype. */
DS_API ds_status ds_optim_accumulate(void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count);
/* x[i] *= factor, in fp32, rounded once to dtype. */
DS_API ds_status ds_optim_scale(void *x, ds_dtype dtype, float factor, size_t count);

/* ---- loss scaling ---- */

/* [cfg: fp16.*] */
typedef struct ds_loss_scaler_params {
    bool dynamic;
    double initial;              /* the static scale, or 2^initial_scale_power */
    int64_t window;              /* loss_scale_window */
    int64_t hysteresis;          /* overflows until the scale shrinks */
    bool consecutive_hysteresis; /* a good step refills it */
    double minimum;              /* min_loss_scale */
    double factor;               /* 2 */
    bool go_on_at_minimum;       /* false: an overflow at the minimum is DS_ERR_NUMERIC */
} ds_loss_scaler_params;

/* Plain data: copy it, save it, restore it. */
struct ds_loss_scaler {
    ds_loss_scaler_params params;
    double scale;      /* multiply the loss of the next step by this */
    int64_t iteration; /* steps seen */
    int64_t last_overflow;
    int64_t hysteresis_left;
    int64_t skipped; /* steps that overflowed */
};

/* dynamic, 2^16, window 1000, hysteresis 2, minimum 1, factor 2: the documents' fp16 section. */
DS_API void ds_loss_scaler_params_default(ds_loss_scaler_params *out);
/* params NULL: scale 1 for ever (fp32, bf16). DS_ERR_ARGUMENT with a sentence for a scale that is not positive and
   finite, a window below 1. */
DS_API ds_status ds_loss_scaler_init(ds_loss_scaler *s, const ds_loss_scaler_params *params, ds_error *error);
/* After each step, with the overflow of any rank. Divide this step's gradients by the scale from before this call. DS_OK,
   or DS_ERR_NUMERIC: overflow at the minimum, training cannot go on. */
DS_API ds_status ds_loss_scaler_update(ds_loss_scaler *s, bool overflow);

/* ---- schedules ---- */

typedef enum ds_schedule_kind {
    DS_SCHEDULE_NONE = 0, /* the group's own rate */
    DS_SCHEDULE_WARMUP = 1,
    DS_SCHEDULE_WARMUP_DECAY = 2,
    DS_SCHEDULE_WARMUP_COSINE = 3,
    DS_SCHEDULE_ONE_CYCLE = 4,
    DS_SCHEDULE_RANGE_TEST = 5,
    DS_SCHEDULE_CUSTOM = 6
} ds_schedule_kind;

/* One schedule, for one group. Plain data; fill with ds_schedule_default. [cfg: scheduler.params] */
typedef struct ds_schedule {
    ds_schedule_kind kind;
    double warmup_min_lr, warmup_max_lr; /* Warmup*; a negative maximum: the group's own rate */
    int64_t warmup_num_steps, total_num_steps;
    bool warmup_linear;                               /* warmup_type "linear"; else log */
    double warmup_min_ratio, cos_min_ratio;           /* WarmupCosineLR */
    double cycle_min_lr, cycle_max_lr, decay_lr_rate; /* OneCycle */
    double cycle_first_step_size, cycle_second_step_size;
    bool cycle_symmetric; /* the default: the second half is as long as the first, cycle_second_step_size is not read */
    int64_t cycle_first_stair_count, cycle_second_stair_count; /* second negative: as the first */
    double decay_step_size;
    bool cycle_momentum;
    double cycle_min_mom, cycle_max_mom, decay_mom_rate;
    double lr_range_test_min_lr, lr_range_test_step_rate; /* LRRangeTest; a negative minimum: the group's own rate */
    int64_t lr_range_test_step_size;
    bool lr_range_test_staircase;
    int64_t
        resumed; /* steps that the schedule begins behind (last_batch_iteration + 1): until the next, rates are kept */
    double (*custom)(void *ctx, int64_t k, double base_lr); /* DS_SCHEDULE_CUSTOM: a finite rate, else begin refuses */
    void *ctx;
} ds_schedule;

/* Defaults of a type: "WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle" or "1Cycle", "LRRangeTest" (case is
   ignored). DS_ERR_INPUT with the names for another. Thread-safe, as all of these. */
DS_API ds_status ds_schedule_default(const char *type, ds_schedule *out, ds_error *error);
DS_API ds_status ds_schedule_check(const ds_schedule *s, ds_error *error);
/* The rate after k scheduler steps, so the one that optimizer step k (from 0) uses. base_lr: the group's own. */
DS_API double ds_schedule_lr(const ds_schedule *s, int64_t k, double base_lr);
/* Likewise beta1 (and beta2, which becomes 0.99); false and nothing written when this schedule cycles none. */
DS_API bool ds_schedule_betas(const ds_schedule *s, int64_t k, double *beta1, double *beta2);

/* Attaches a schedule to a group and sets its rate (and betas) for the scheduler's current step count, 0 at first; one that
   is resumed sets the count instead, which all groups share, and no rate. The group's lr at create is its base rate. */
DS_API ds_status ds_optim_set_schedule(ds_optim *o, size_t group, const ds_schedule *schedule);
/* After each optimizer step that was not skipped: advances the count and sets all groups' rates. */
DS_API void ds_optim_schedule_step(ds_optim *o);
DS_API int64_t ds_optim_schedule_count(const ds_optim *o);
DS_API ds_status ds_optim_set_schedule_count(ds_optim *o, int64_t count);

#ifdef __cplusplus
}
#endif
#endif /* DS_OPTIM_H */

#if (defined(DS_OPTIM_IMPLEMENTATION) || defined(DS_OPTIM_FORMULAS)) && !defined(DSI_OPTIM_FORMULAS_DONE)
#define DSI_OPTIM_FORMULAS_DONE
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

// >>formulas
// Each update is written once, over operations dsi_optim_L_fma, .._L_mul, ... where L is x1 (float), x8 (AVX2), x16 (AVX-512)
// or cu (CUDA). Products reach sums through fma alone, so there is nothing a compiler could contract, and every L gives
// the same bits. `c` is the struct of constants; DSI_OPTIM_K(L, field) is one of them in L's type.
#define DSI_OPTIM_K(L, field) dsi_optim_##L##_set(c.field)

#define DSI_OPTIM_MOMENTS(L, g, m, v)                                                                                  \
    m = dsi_optim_##L##_fma(g, DSI_OPTIM_K(L, one_minus_beta1), dsi_optim_##L##_mul(m, DSI_OPTIM_K(L, beta1)));        \
    v = dsi_optim_##L##_fma(dsi_optim_##L##_mul(g, g), DSI_OPTIM_K(L, one_minus_beta2),                                \
                            dsi_optim_##L##_mul(v, DSI_OPTIM_K(L, beta2)));

#define DSI_OPTIM_ADAM(L, g, p, m, v)                                                                                  \
    if (c.l2 != 0) g = dsi_optim_##L##_fma(p, DSI_OPTIM_K(L, l2), g);                                                  \
    DSI_OPTIM_MOMENTS(L, g, m, v)                                                                                      \
    if (c.decay != 0) p = dsi_optim_##L##_fma(p, DSI_OPTIM_K(L, decay), p);                                            \
    p = dsi_optim_##L##_fma(                                                                                           \
        dsi_optim_##L##_div(                                                                                           \
            m, dsi_optim_##L##_fma(dsi_optim_##L##_sqrt(v), DSI_OPTIM_K(L, root_correction), DSI_OPTIM_K(L, eps))),    \
        DSI_OPTIM_K(L, step_size), p);

// as torch.optim.SGD: the first momentum is the gradient itself
#define DSI_OPTIM_SGD(L, g, p, m)                                                                                      \
    if (c.l2 != 0) g = dsi_optim_##L##_fma(p, DSI_OPTIM_K(L, l2), g);                                                  \
    if (c.first)                                                                                                       \
        m = g;                                                                                                         \
    else                                                                                                               \
        m = dsi_optim_##L##_fma(g, DSI_OPTIM_K(L, gain), dsi_optim_##L##_mul(m, DSI_OPTIM_K(L, momentum)));            \
    if (c.nesterov)                                                                                                    \
        g = dsi_optim_##L##_fma(m, DSI_OPTIM_K(L, momentum), g);                                                       \
    else                                                                                                               \
        g = m;                                                                                                         \
    p = dsi_optim_##L##_fma(g, DSI_OPTIM_K(L, minus_lr), p);

#define DSI_OPTIM_ADAGRAD(L, g, p, v)                                                                                  \
    if (c.l2 != 0) g = dsi_optim_##L##_fma(p, DSI_OPTIM_K(L, l2), g);                                                  \
    v = dsi_optim_##L##_fma(g, g, v);                                                                                  \
    p = dsi_optim_##L##_fma(                                                                                           \
        dsi_optim_##L##_div(g, dsi_optim_##L##_add(dsi_optim_##L##_sqrt(v), DSI_OPTIM_K(L, eps_out))),                 \
        DSI_OPTIM_K(L, minus_lr), p);

// the sign is the sign bit's, as in DeepSpeed's kernel for CPUs: an exact zero moves the parameter too; NaN stays NaN
#define DSI_OPTIM_LION(L, g, p, m)                                                                                     \
    dsi_optim_##L##_t u =                                                                                              \
        dsi_optim_##L##_fma(g, DSI_OPTIM_K(L, one_minus_beta1), dsi_optim_##L##_mul(m, DSI_OPTIM_K(L, beta1)));        \
    if (c.decay != 0) p = dsi_optim_##L##_fma(p, DSI_OPTIM_K(L, decay), p);                                            \
    p = dsi_optim_##L##_fma(dsi_optim_##L##_sign(u), DSI_OPTIM_K(L, minus_lr), p);                                     \
    m = dsi_optim_##L##_fma(g, DSI_OPTIM_K(L, one_minus_beta2), dsi_optim_##L##_mul(m, DSI_OPTIM_K(L, beta2)));

// LAMB's direction, before the trust ratio
#define DSI_OPTIM_TRUST(L, u, p, m, v)                                                                                 \
    u = dsi_optim_##L##_div(m,                                                                                         \
                            dsi_optim_##L##_add(dsi_optim_##L##_sqrt(dsi_optim_##L##_add(v, DSI_OPTIM_K(L, eps_in))),  \
                                                DSI_OPTIM_K(L, eps_out)));                                             \
    if (c.l2 != 0) u = dsi_optim_##L##_fma(p, DSI_OPTIM_K(L, l2), u);

#endif /* DSI_OPTIM_FORMULAS_DONE */

#if defined(DS_OPTIM_IMPLEMENTATION) && !defined(DS_OPTIM_IMPL_DONE)
#define DS_OPTIM_IMPL_DONE
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

#include <float.h>
#include <math.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "ds_optim.h: fp32 arithmetic with more precision than fp32 would give other bits; use SSE (-mfpmath=sse)"
#endif
#ifndef DS_OPTIM_SIMD
#define DS_OPTIM_SIMD 1
#endif
#if DS_OPTIM_SIMD && defined(__x86_64__) && defined(__GNUC__)
#define DSI_OPTIM_X86 1
#include <immintrin.h>
#else
#define DSI_OPTIM_X86 0
#endif

// >>simd
#define dsi_optim_x1_t            float
#define dsi_optim_x1_load(from)   (*(from))
#define dsi_optim_x1_store(to, x) (*(to) = (x))
#define dsi_optim_x1_set(x)       (x)
#define dsi_optim_x1_add(a, b)    ((a) + (b))
#define dsi_optim_x1_mul(a, b)    ((a) * (b))
#define dsi_optim_x1_div(a, b)    ((a) / (b))
#define dsi_optim_x1_sqrt(a)      sqrtf(a)
#define dsi_optim_x1_fma(a, b, c) fmaf(a, b, c)
#define dsi_optim_x1_sign(a)      ((a) != (a) ? (a) : copysignf(1.0f, a))

#define dsi_optim_x8_t            __m256
#define dsi_optim_x8_load(from)   _mm256_loadu_ps(from)
#define dsi_optim_x8_store(to, x) _mm256_storeu_ps(to, x)
#define dsi_optim_x8_set(x)       _mm256_set1_ps(x)
#define dsi_optim_x8_add(a, b)    _mm256_add_ps(a, b)
#define dsi_optim_x8_mul(a, b)    _mm256_mul_ps(a, b)
#define dsi_optim_x8_div(a, b)    _mm256_div_ps(a, b)
#define dsi_optim_x8_sqrt(a)      _mm256_sqrt_ps(a)
#define dsi_optim_x8_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define dsi_optim_x8_sign(a)                                                                                           \
    _mm256_blendv_ps(a, _mm256_or_ps(_mm256_and_ps(a, _mm256_set1_ps(-0.0f)), _mm256_set1_ps(1.0f)),                   \
                     _mm256_cmp_ps(a, a, _CMP_ORD_Q))

#define dsi_optim_x16_t            __m512
#define dsi_optim_x16_load(from)   _mm512_loadu_ps(from)
#define dsi_optim_x16_store(to, x) _mm512_storeu_ps(to, x)
#define dsi_optim_x16_set(x)       _mm512_set1_ps(x)
#define dsi_optim_x16_add(a, b)    _mm512_add_ps(a, b)
#define dsi_optim_x16_mul(a, b)    _mm512_mul_ps(a, b)
#define dsi_optim_x16_div(a, b)    _mm512_div_ps(a, b)
#define dsi_optim_x16_sqrt(a)      _mm512_sqrt_ps(a)
#define dsi_optim_x16_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define dsi_optim_x16_sign(a)                                                                                          \
    _mm512_mask_blend_ps(                                                                                              \
        _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a,                                                                       \
        _mm512_castsi512_ps(_mm512_or_si512(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(INT32_MIN)),    \
                                            _mm512_castps_si512(_mm512_set1_ps(1.0f)))))

// A part's gradient on its way in and its 16-bit weights on their way out: converted in registers, so that memory is
// touched once.
typedef struct dsi_optim_feed {
    const void *grad;
    ds_dtype grad_dtype, out_dtype;
    float factor; // of the gradient
    bool past; // `out` is aligned, and so large that its lines are written past the caches, which else read them first
    void *out; // NULL: no 16-bit weights
} dsi_optim_feed;

// One rule of ds_optim_rule, ADAM to LION; `one` and `two` are the states, NULL where there is none.
typedef void dsi_optim_update(const ds_optim_constants *k, const dsi_optim_feed *f, float *p, float *one, float *two,
                              size_t n);
// The kernels of one level. Arrays may have any alignment; n is any number.
typedef struct dsi_optim_simd {
    ds_optim_level level;
    size_t tile_columns;
    dsi_optim_update *const *update; // by rule
    // p += a * trust(p, m, v)
    void (*lamb)(const ds_optim_constants *k, const dsi_optim_feed *f, float *p, const float *m, const float *v,
                 float a, size_t n);
    void (*moments)(const ds_optim_constants *k, const float *grad, float *m, float *v, size_t n);
    // moments, and the sums of squares of p and of what trust would give
    void (*measure)(const ds_optim_constants *k, const dsi_optim_feed *f, const float *p, float *m, float *v, size_t n,
                    double sums[2]);
    void (*trust)(const ds_optim_constants *k, float *u, const float *p, const float *m, const float *v, size_t n);
    void (*mix)(float *y, const float *x, float a, float b, size_t n); // y = x * a + y * b
    void (*add)(float *y, const float *x, size_t n);
    double (*norm)(const dsi_optim_feed *f, size_t n);                        // sum of the gradient's squares
    void (*norm_two)(const dsi_optim_feed *f, size_t apart, double norms[2]); // of two grains
    void (*widen)(float *to, const void *from, ds_dtype dtype, float factor, size_t n);
    void (*narrow)(void *to, ds_dtype dtype, const float *from, size_t n); // to 16 bits
    void (*tile)(const float *a, const float *b, size_t k, float *c); // c (6, columns) = a (k, 6)^T * b (k, columns)
} dsi_optim_simd;

// The lanes of a sum of squares: element i goes to lane i mod 16, and lanes fold by halves.
static double dsi_optim_fold(double *lane) {
    for (int i = 0; i < 8; i++) lane[i] += lane[i + 8];
    for (int i = 0; i < 4; i++) lane[i] += lane[i + 4];
    for (int i = 0; i < 2; i++) lane[i] += lane[i + 2];
    return lane[0] + lane[1];
}
static dsi_optim_feed dsi_optim_feed_of(const float *grad) {
    dsi_optim_feed f = {grad, DS_F32, DS_F32, 1.0f, false, NULL};
    return f;
}
static dsi_optim_feed dsi_optim_feed_at(const dsi_optim_feed *f, size_t i) {
    dsi_optim_feed rest = *f;
    rest.grad = (const char *)f->grad + i * DS_DTYPE_SIZE(f->grad_dtype);
    if (f->out) rest.out = (char *)f->out + i * DS_DTYPE_SIZE(f->out_dtype);
    return rest;
}
static double dsi_optim_squares(const dsi_optim_simd *simd, const float *x, size_t n) {
    const dsi_optim_feed f = dsi_optim_feed_of(x);
    return simd->norm(&f, n);
}
static inline float dsi_optim_x1_grad(const dsi_optim_feed *f, size_t i) {
    const uint16_t *half = (const uint16_t *)f->grad;
    if (f->grad_dtype == DS_F32) return ((const float *)f->grad)[i] * f->factor;
    return (f->grad_dtype == DS_BF16 ? dsi_f32_of_bf16(half[i]) : dsi_f32_of_f16(half[i])) * f->factor;
}
static inline void dsi_optim_x1_give(const dsi_optim_feed *f, size_t i, float p) {
    uint16_t *half = (uint16_t *)f->out;
    if (half) half[i] = f->out_dtype == DS_BF16 ? dsi_bf16_of_f32(p) : dsi_f16_of_f32(p);
}
static void dsi_optim_norm_from(double *lane, const dsi_optim_feed *f, size_t i, size_t n) {
    for (size_t at = 0; i < n; i++, at++) {
        const double x = (double)dsi_optim_x1_grad(f, i);
        lane[at % 16] += x * x; // exact: 24 + 24 bits fit in 53
    }
}
static double dsi_optim_norm_x1_plain(const dsi_optim_feed *f, size_t n) {
    double lane[16] = {0};
    dsi_optim_norm_from(lane, f, 0, n);
    return dsi_optim_fold(lane);
}
static void dsi_optim_norm_two_x1_plain(const dsi_optim_feed *f, size_t apart, double norms[2]) {
    const dsi_optim_feed second = dsi_optim_feed_at(f, apart);
    norms[0] = dsi_optim_norm_x1_plain(f, DS_GRAIN), norms[1] = dsi_optim_norm_x1_plain(&second, DS_GRAIN);
}
static void dsi_optim_tile_x1(const float *a, const float *b, size_t k, float *c) {
    memset(c, 0, sizeof(float) * 6 * 8);
    for (size_t l = 0; l < k; l++)
        for (size_t i = 0; i < 6; i++)
            for (size_t j = 0; j < 8; j++) c[i * 8 + j] = fmaf(a[l * 6 + i], b[l * 8 + j], c[i * 8 + j]);
}

static void dsi_optim_measure_from(const ds_optim_constants *k, const dsi_optim_feed *f, const float *weights,
                                   float *moment, float *variance, size_t i, size_t n, double lanes[2][16]) {
    const ds_optim_constants c = *k;
    for (size_t at = 0; i < n; i++, at++) {
        float g = dsi_optim_x1_grad(f, i), p = weights[i], m = moment[i], v = variance[i], u;
        DSI_OPTIM_MOMENTS(x1, g, m, v)
        moment[i] = m;
        variance[i] = v;
        DSI_OPTIM_TRUST(x1, u, p, m, v)
        lanes[0][at % 16] += (double)p * (double)p;
        lanes[1][at % 16] += (double)u * (double)u;
    }
}
static void dsi_optim_measure_x1_plain(const ds_optim_constants *k, const dsi_optim_feed *f, const float *weights,
                                       float *moment, float *variance, size_t n, double sums[2]) {
    double lanes[2][16] = {{0}, {0}};
    dsi_optim_measure_from(k, f, weights, moment, variance, 0, n, lanes);
    sums[0] = dsi_optim_fold(lanes[0]), sums[1] = dsi_optim_fold(lanes[1]);
}

// The elementwise kernels of a level; what is left of a vector's width goes to x1.
// A level's loops go one of two ways: `ahead` asks for what lies a grain ahead, `plain` leaves that to the hardware. Where
// AVX2 is the best level (Zen 3), and on Intel's processors with AVX-512 (Sapphire Rapids), its prefetcher stops at each
// page of each stream, and a grain is time enough. AMD's with AVX-512 (Zen 4) go on by themselves; asking costs a sixth.
#define DSI_OPTIM_FETCH_plain(f, i) ((void)0)
#define DSI_OPTIM_FETCH_ahead(f, i)                                                                                    \
    __builtin_prefetch((const void *)((uintptr_t)(f).grad + ((i) + DS_GRAIN) * DS_DTYPE_SIZE((f).grad_dtype)), 0)
#define DSI_OPTIM_PULL_plain(L, from) dsi_optim_##L##_load(from)
#define DSI_OPTIM_PULL_ahead(L, from)                                                                                  \
    (__builtin_prefetch((const void *)((uintptr_t)(from) + DS_GRAIN * sizeof(float)), 1), dsi_optim_##L##_load(from))
// GCC trusts code of one file to cope with upper halves in use, in which all that is not of vectors waits on Intel.
#define DSI_OPTIM_LEAVE_x1()  ((void)0)
#define DSI_OPTIM_LEAVE_x8()  _mm256_zeroupper()
#define DSI_OPTIM_LEAVE_x16() _mm256_zeroupper()
#define DSI_OPTIM_WIDTH(L)    (sizeof(dsi_optim_##L##_t) / sizeof(float))
#define DSI_OPTIM_EACH(L)     for (; n - i >= DSI_OPTIM_WIDTH(L); i += DSI_OPTIM_WIDTH(L))
// One rule: loads, formula, stores. ONE and TWO say which states it has: 1, 0, or (SGD) `one`, which may be NULL.
#define DSI_OPTIM_UPDATE(L, WAY, TARGET, name, CONSTANTS, constants, ONE, TWO, FORMULA)                                \
    TARGET static void dsi_optim_##name##_##L##_##WAY(const ds_optim_constants *k, const dsi_optim_feed *feed,         \
                                                      float *weights, float *one, float *two, size_t n) {              \
        const CONSTANTS c = constants;                                                                                 \
        const dsi_optim_feed f = *feed;                                                                                \
        size_t i = 0;                                                                                                  \
        DSI_OPTIM_EACH(L) {                                                                                            \
            DSI_OPTIM_FETCH_##WAY(f, i);                                                                               \
            dsi_optim_##L##_t g = dsi_optim_##L##_grad(&f, i), p = DSI_OPTIM_PULL_##WAY(L, weights + i), m = g, v = g; \
            if (ONE) m = DSI_OPTIM_PULL_##WAY(L, one + i);                                                             \
            if (TWO) v = DSI_OPTIM_PULL_##WAY(L, two + i);                                                             \
            FORMULA                                                                                                    \
            dsi_optim_##L##_store(weights + i, p);                                                                     \
            dsi_optim_##L##_give(&f, i, p);                                                                            \
            if (ONE) dsi_optim_##L##_store(one + i, m);                                                                \
            if (TWO) dsi_optim_##L##_store(two + i, v);                                                                \
        }                                                                                                              \
        const dsi_optim_feed rest = dsi_optim_feed_at(&f, i);                                                          \
        if (i < n)                                                                                                     \
            DSI_OPTIM_LEAVE_##L(),                                                                                     \
                dsi_optim_##name##_x1_plain(k, &rest, weights + i, ONE ? one + i : NULL, TWO ? two + i : NULL, n - i); \
    }
// what is the same either way
#define DSI_OPTIM_COMMON(L, TARGET)                                                                                    \
    TARGET static void dsi_optim_mix_##L(float *y, const float *x, float a, float b, size_t n) {                       \
        size_t i = 0;                                                                                                  \
        DSI_OPTIM_EACH(L)                                                                                              \
        dsi_optim_##L##_store(                                                                                         \
            y + i, dsi_optim_##L##_fma(dsi_optim_##L##_load(x + i), dsi_optim_##L##_set(a),                            \
                                       dsi_optim_##L##_mul(dsi_optim_##L##_load(y + i), dsi_optim_##L##_set(b))));     \
        if (i < n) DSI_OPTIM_LEAVE_##L(), dsi_optim_mix_x1(y + i, x + i, a, b, n - i);                                 \
    }                                                                                                                  \
    TARGET static void dsi_optim_add_##L(float *y, const float *x, size_t n) {                                         \
        size_t i = 0;                                                                                                  \
        DSI_OPTIM_EACH(L)                                                                                              \
        dsi_optim_##L##_store(y + i, dsi_optim_##L##_add(dsi_optim_##L##_load(y + i), dsi_optim_##L##_load(x + i)));   \
        if (i < n) DSI_OPTIM_LEAVE_##L(), dsi_optim_add_x1(y + i, x + i, n - i);                                       \
    }                                                                                                                  \
    TARGET static void dsi_optim_widen_##L(float *to, const void *from, ds_dtype dtype, float factor, size_t n) {      \
        const dsi_optim_feed f = {from, dtype, DS_F32, factor, false, NULL};                                           \
        size_t i = 0;                                                                                                  \
        DSI_OPTIM_EACH(L) dsi_optim_##L##_store(to + i, dsi_optim_##L##_grad(&f, i));                                  \
        if (i < n)                                                                                                     \
            DSI_OPTIM_LEAVE_##L(), dsi_optim_widen_x1(to + i, dsi_optim_feed_at(&f, i).grad, dtype, factor, n - i);    \
    }                                                                                                                  \
    TARGET static void dsi_optim_narrow_##L(void *to, ds_dtype dtype, const float *from, size_t n) {                   \
        const dsi_optim_feed f = {NULL, DS_F32, dtype, 1.0f, false, to};                                               \
        size_t i = 0;                                                                                                  \
        DSI_OPTIM_EACH(L) dsi_optim_##L##_give(&f, i, dsi_optim_##L##_load(from + i));                                 \
        if (i < n) DSI_OPTIM_LEAVE_##L(), dsi_optim_narrow_x1(dsi_optim_feed_at(&f, i).out, dtype, from + i, n - i);   \
    }
#define DSI_OPTIM_LEVEL(L, WAY, TARGET, LEVEL, TILE)                                                                   \
    DSI_OPTIM_UPDATE(L, WAY, TARGET, adam, ds_optim_adam, k->adam, 1, 1, DSI_OPTIM_ADAM(L, g, p, m, v))                \
    DSI_OPTIM_UPDATE(L, WAY, TARGET, sgd, ds_optim_constants, *k, one, 0, DSI_OPTIM_SGD(L, g, p, m))                   \
    DSI_OPTIM_UPDATE(L, WAY, TARGET, adagrad, ds_optim_constants, *k, 1, 0, DSI_OPTIM_ADAGRAD(L, g, p, m))             \
    DSI_OPTIM_UPDATE(L, WAY, TARGET, lion, ds_optim_constants, *k, 1, 0, DSI_OPTIM_LION(L, g, p, m))                   \
    TARGET static void dsi_optim_lamb_##L##_##WAY(const ds_optim_constants *k, const dsi_optim_feed *feed,             \
                                                  float *weights, const float *moment, const float *variance, float a, \
                                                  size_t n) {                                                          \
        const ds_optim_constants c = *k;                                                                               \
        const dsi_optim_feed f = *feed;                                                                                \
        size_t i = 0;                                                                                                  \
        DSI_OPTIM_EACH(L) {                                                                                            \
            dsi_optim_##L##_t p = DSI_OPTIM_PULL_##WAY(L, weights + i), m = DSI_OPTIM_PULL_##WAY(L, moment + i);       \
            dsi_optim_##L##_t v = DSI_OPTIM_PULL_##WAY(L, variance + i), u;                                            \
            DSI_OPTIM_TRUST(L, u, p, m, v)                                                                             \
            p = dsi_optim_##L##_fma(u, dsi_optim_##L##_set(a), p);                                                     \
            dsi_optim_##L##_store(weights + i, p);                                                                     \
            dsi_optim_##L##_give(&f, i, p);                                                                            \
        }                                                                                                              \
        const dsi_optim_feed rest = dsi_optim_feed_at(&f, i);                                                          \
        if (i < n)                                                                                                     \
            DSI_OPTIM_LEAVE_##L(), dsi_optim_lamb_x1_plain(k, &rest, weights + i, moment + i, variance + i, a, n - i); \
    }                                                                                                                  \
    TARGET static void dsi_optim_moments_##L##_##WAY(const ds_optim_constants *k, const float *grad, float *moment,    \
                                                     float *variance, size_t n) {                                      \
        const ds_optim_constants c = *k;                                                                               \
        size_t i = 0;                                                                                                  \
        DSI_OPTIM_EACH(L) {                                                                                            \
            dsi_optim_##L##_t g = DSI_OPTIM_PULL_##WAY(L, grad + i), m = DSI_OPTIM_PULL_##WAY(L, moment + i);          \
            dsi_optim_##L##_t v = DSI_OPTIM_PULL_##WAY(L, variance + i);                                               \
            DSI_OPTIM_MOMENTS(L, g, m, v)                                                                              \
            dsi_optim_##L##_store(moment + i, m);                                                                      \
            dsi_optim_##L##_store(variance + i, v);                                                                    \
        }                                                                                                              \
        if (i < n) DSI_OPTIM_LEAVE_##L(), dsi_optim_moments_x1_plain(k, grad + i, moment + i, variance + i, n - i);    \
    }                                                                                                                  \
    TARGET static void dsi_optim_trust_##L##_##WAY(const ds_optim_constants *k, float *update, const float *weights,   \
                                                   const float *moment, const float *variance, size_t n) {             \
        const ds_optim_constants c = *k;                                                                               \
        size_t i = 0;                                                                                                  \
        DSI_OPTIM_EACH(L) {                                                                                            \
            dsi_optim_##L##_t p = DSI_OPTIM_PULL_##WAY(L, weights + i), m = DSI_OPTIM_PULL_##WAY(L, moment + i);       \
            dsi_optim_##L##_t v = DSI_OPTIM_PULL_##WAY(L, variance + i), u;                                            \
            DSI_OPTIM_TRUST(L, u, p, m, v)                                                                             \
            dsi_optim_##L##_store(update + i, u);                                                                      \
        }                                                                                                              \
        if (i < n)                                                                                                     \
            DSI_OPTIM_LEAVE_##L(),                                                                                     \
                dsi_optim_trust_x1_plain(k, update + i, weights + i, moment + i, variance + i, n - i);                 \
    }                                                                                                                  \
    static dsi_optim_update *const dsi_optim_updates_##L##_##WAY[] = {                                                 \
        dsi_optim_adam_##L##_##WAY, dsi_optim_sgd_##L##_##WAY, dsi_optim_adagrad_##L##_##WAY,                          \
        dsi_optim_lion_##L##_##WAY};                                                                                   \
    DSI_OPTIM_TABLE(L, WAY, LEVEL, TILE)
// clang-format off
#define DSI_OPTIM_TABLE(L, WAY, LEVEL, TILE) \
    static const dsi_optim_simd dsi_optim_##L##_##WAY = { \
        LEVEL, TILE, dsi_optim_updates_##L##_##WAY, dsi_optim_lamb_##L##_##WAY, dsi_optim_moments_##L##_##WAY, dsi_optim_measure_##L##_##WAY, dsi_optim_trust_##L##_##WAY, \
        dsi_optim_mix_##L, dsi_optim_add_##L, dsi_optim_norm_##L##_##WAY, dsi_optim_norm_two_##L##_##WAY, dsi_optim_widen_##L, \
        dsi_optim_narrow_##L, dsi_optim_tile_##L};
// clang-format on

DSI_OPTIM_COMMON(x1, )
DSI_OPTIM_LEVEL(x1, plain, , DS_OPTIM_LEVEL_SCALAR, 8)

// LAMB's first pass in vectors: one step of a level's width, and sixteen elements, a round of the lanes, at a time.
#define DSI_OPTIM_MEASURE_AT(L, WAY, at, half)                                                                         \
    {                                                                                                                  \
        DSI_OPTIM_FETCH_##WAY(f, at);                                                                                  \
        dsi_optim_##L##_t g = dsi_optim_##L##_grad(&f, at), p = DSI_OPTIM_PULL_##WAY(L, weights + (at));               \
        dsi_optim_##L##_t m = DSI_OPTIM_PULL_##WAY(L, moment + (at)), v = DSI_OPTIM_PULL_##WAY(L, variance + (at)), u; \
        DSI_OPTIM_MOMENTS(L, g, m, v)                                                                                  \
        dsi_optim_##L##_store(moment + (at), m);                                                                       \
        dsi_optim_##L##_store(variance + (at), v);                                                                     \
        DSI_OPTIM_TRUST(L, u, p, m, v)                                                                                 \
        dsi_optim_##L##_square(squares[0] + (half), squares[0] + (half) + 1, p);                                       \
        dsi_optim_##L##_square(squares[1] + (half), squares[1] + (half) + 1, u);                                       \
    }
#define DSI_OPTIM_MEASURE_x8(WAY)  DSI_OPTIM_MEASURE_AT(x8, WAY, i, 0) DSI_OPTIM_MEASURE_AT(x8, WAY, i + 8, 2)
#define DSI_OPTIM_MEASURE_x16(WAY) DSI_OPTIM_MEASURE_AT(x16, WAY, i, 0)
#define DSI_OPTIM_MEASURE(L, WAY, TARGET, SUMS)                                                                        \
    TARGET static void dsi_optim_measure_##L##_##WAY(const ds_optim_constants *k, const dsi_optim_feed *feed,          \
                                                     const float *weights, float *moment, float *variance, size_t n,   \
                                                     double sums[2]) {                                                 \
        const ds_optim_constants c = *k;                                                                               \
        const dsi_optim_feed f = *feed;                                                                                \
        SUMS squares[2][4] = {{{0}, {0}, {0}, {0}}, {{0}, {0}, {0}, {0}}};                                             \
        double lanes[2][16];                                                                                           \
        size_t i = 0;                                                                                                  \
        for (; n - i >= 16; i += 16) {                                                                                 \
            DSI_OPTIM_MEASURE_##L(WAY)                                                                                 \
        }                                                                                                              \
        dsi_optim_##L##_lanes(lanes[0], squares[0]), dsi_optim_##L##_lanes(lanes[1], squares[1]);                      \
        dsi_optim_measure_from(k, &f, weights, moment, variance, i, n, lanes);                                         \
        sums[0] = dsi_optim_fold(lanes[0]), sums[1] = dsi_optim_fold(lanes[1]);                                        \
    }
// A gradient's norm. The loop stands here for each dtype, as it would wait for a branch.
#define DSI_OPTIM_NORM_AT(L, WAY, at, half, sums)                                                                      \
    DSI_OPTIM_FETCH_##WAY(f, at);                                                                                      \
    dsi_optim_##L##_square((sums) + (half), (sums) + (half) + 1, dsi_optim_##L##_grad(&f, at));
#define DSI_OPTIM_NORM_x8(WAY, at, sums)                                                                               \
    DSI_OPTIM_NORM_AT(x8, WAY, at, 0, sums) DSI_OPTIM_NORM_AT(x8, WAY, (at) + 8, 2, sums)
#define DSI_OPTIM_NORM_x16(WAY, at, sums) DSI_OPTIM_NORM_AT(x16, WAY, at, 0, sums)
#define DSI_OPTIM_NORM_BF16(L, WAY, TARGET, SUMS)                                                                      \
    TARGET static size_t dsi_optim_norm_bf16_##L##_##WAY(const dsi_optim_feed *f, size_t n, SUMS *sums) {              \
        dsi_optim_odd_even_##L a;                                                                                      \
        size_t i = 0;                                                                                                  \
        memset(&a, 0, sizeof a);                                                                                       \
        for (; n - i >= 16; i += 16) DSI_OPTIM_FETCH_##WAY(*f, i), dsi_optim_##L##_odd_even(&a, f, i);                 \
        dsi_optim_##L##_together(&a, sums);                                                                            \
        return i;                                                                                                      \
    }                                                                                                                  \
    TARGET static void dsi_optim_norm_bf16_two_##L##_##WAY(const dsi_optim_feed *f, size_t apart, SUMS *one,           \
                                                           SUMS *two) {                                                \
        dsi_optim_odd_even_##L a, b;                                                                                   \
        memset(&a, 0, sizeof a), memset(&b, 0, sizeof b);                                                              \
        for (size_t i = 0; i < DS_GRAIN; i += 16)                                                                      \
            DSI_OPTIM_FETCH_##WAY(*f, i), dsi_optim_##L##_odd_even(&a, f, i), DSI_OPTIM_FETCH_##WAY(*f, i + apart),    \
                dsi_optim_##L##_odd_even(&b, f, i + apart);                                                            \
        dsi_optim_##L##_together(&a, one), dsi_optim_##L##_together(&b, two);                                          \
    }
#define DSI_OPTIM_NORM_TWO(L, WAY)                                                                                     \
    for (size_t i = 0; i < DS_GRAIN; i += 16) {                                                                        \
        DSI_OPTIM_NORM_##L(WAY, i, one) DSI_OPTIM_NORM_##L(WAY, i + apart, two)                                        \
    }
#define DSI_OPTIM_NORM(L, WAY, TARGET, SUMS)                                                                           \
    TARGET static double dsi_optim_norm_##L##_##WAY(const dsi_optim_feed *feed, size_t n) {                            \
        dsi_optim_feed f = *feed;                                                                                      \
        SUMS sums[4] = {{0}, {0}, {0}, {0}};                                                                           \
        double lane[16];                                                                                               \
        size_t i = 0;                                                                                                  \
        if (f.grad_dtype == DS_F32) {                                                                                  \
            for (f.grad_dtype = DS_F32; n - i >= 16; i += 16) {                                                        \
                DSI_OPTIM_NORM_##L(WAY, i, sums)                                                                       \
            }                                                                                                          \
        } else if (f.grad_dtype == DS_F16) {                                                                           \
            for (f.grad_dtype = DS_F16; n - i >= 16; i += 16) {                                                        \
                DSI_OPTIM_NORM_##L(WAY, i, sums)                                                                       \
            }                                                                                                          \
        } else                                                                                                         \
            i = dsi_optim_norm_bf16_##L##_##WAY(&f, n, sums);                                                          \
        if (i == n) return dsi_optim_##L##_fold(sums);                                                                 \
        dsi_optim_##L##_lanes(lane, sums);                                                                             \
        DSI_OPTIM_LEAVE_##L();                                                                                         \
        dsi_optim_norm_from(lane, feed, i, n);                                                                         \
        return dsi_optim_fold(lane);                                                                                   \
    }                                                                                                                  \
    TARGET static void dsi_optim_norm_two_##L##_##WAY(const dsi_optim_feed *feed, size_t apart, double norms[2]) {     \
        dsi_optim_feed f = *feed;                                                                                      \
        SUMS one[4] = {{0}, {0}, {0}, {0}}, two[4] = {{0}, {0}, {0}, {0}};                                             \
        if (f.grad_dtype == DS_F32) {                                                                                  \
            f.grad_dtype = DS_F32;                                                                                     \
            DSI_OPTIM_NORM_TWO(L, WAY)                                                                                 \
        } else if (f.grad_dtype == DS_F16) {                                                                           \
            f.grad_dtype = DS_F16;                                                                                     \
            DSI_OPTIM_NORM_TWO(L, WAY)                                                                                 \
        } else                                                                                                         \
            dsi_optim_norm_bf16_two_##L##_##WAY(&f, apart, one, two);                                                  \
        norms[0] = dsi_optim_##L##_fold(one), norms[1] = dsi_optim_##L##_fold(two);                                    \
    }

#if DSI_OPTIM_X86
#define DSI_OPTIM_AVX2   __attribute__((target("avx2,fma,f16c")))
#define DSI_OPTIM_AVX512 __attribute__((target("avx512f,avx2,fma,f16c")))

// bf16 by the integer rule of dsi_bf16_of_f32; the instruction for it would flush denormals
DSI_OPTIM_AVX2 static __m128i dsi_optim_bf16_x8(__m256 x) {
    const __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i r = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
DSI_OPTIM_AVX2 static inline __m256 dsi_optim_x8_grad(const dsi_optim_feed *f, size_t i) {
    const __m256 factor = _mm256_set1_ps(f->factor);
    __m128i h;
    if (f->grad_dtype == DS_F32) return _mm256_mul_ps(_mm256_loadu_ps((const float *)f->grad + i), factor);
    h = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)f->grad + i));
    if (f->grad_dtype == DS_F16) return _mm256_mul_ps(_mm256_cvtph_ps(h), factor);
    return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)), factor);
}
DSI_OPTIM_AVX2 static inline void dsi_optim_x8_give(const dsi_optim_feed *f, size_t i, __m256 p) {
    __m128i *out = (__m128i *)(void *)((uint16_t *)f->out + i), half;
    if (!f->out) return;
    half = f->out_dtype == DS_F16 ? _mm256_cvtps_ph(p, _MM_FROUND_TO_NEAREST_INT) : dsi_optim_bf16_x8(p);
    if (f->past) {
        _mm_stream_si128(out, half);
        return;
    }
    __builtin_prefetch((const void *)((uintptr_t)out + 2 * DS_GRAIN), 1);
    _mm_storeu_si128(out, half);
}
DSI_OPTIM_AVX2 static inline void dsi_optim_x8_square(__m256d *low, __m256d *high, __m256 x) {
    const __m256d l = _mm256_cvtps_pd(_mm256_castps256_ps128(x)), h = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    *low = _mm256_fmadd_pd(l, l, *low), *high = _mm256_fmadd_pd(h, h, *high);
}
DSI_OPTIM_AVX2 static inline void dsi_optim_x8_lanes(double *lane, const __m256d *sums) {
    for (int i = 0; i < 4; i++) _mm256_storeu_pd(lane + 4 * i, sums[i]);
}
// dsi_optim_fold in registers
DSI_OPTIM_AVX2 static inline double dsi_optim_x8_fold(const __m256d *sums) {
    const __m256d four = _mm256_add_pd(_mm256_add_pd(sums[0], sums[2]), _mm256_add_pd(sums[1], sums[3]));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
// A word of two bf16 is two fp32 after a shift or a mask, so their sums are apart until the end.
typedef struct dsi_optim_odd_even_x8 {
    __m256d even[2], odd[2];
} dsi_optim_odd_even_x8;
DSI_OPTIM_AVX2 static inline void dsi_optim_x8_odd_even(dsi_optim_odd_even_x8 *a, const dsi_optim_feed *f, size_t i) {
    const __m256i upper = _mm256_set1_epi32((int)0xFFFF0000);
    const __m256 factor = _mm256_set1_ps(f->factor);
    const __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)f->grad + i));
    const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
    const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
    dsi_optim_x8_square(a->even, a->even + 1, _mm256_mul_ps(even, factor));
    dsi_optim_x8_square(a->odd, a->odd + 1, _mm256_mul_ps(odd, factor));
}
DSI_OPTIM_AVX2 static inline void dsi_optim_x8_together(const dsi_optim_odd_even_x8 *a, __m256d *sums) {
    for (int k = 0; k < 2; k++) {
        const __m256d low = _mm256_unpacklo_pd(a->even[k], a->odd[k]), high = _mm256_unpackhi_pd(a->even[k], a->odd[k]);
        sums[2 * k] = _mm256_permute2f128_pd(low, high, 0x20);
        sums[2 * k + 1] = _mm256_permute2f128_pd(low, high, 0x31);
    }
}

// Six rows of two vectors stay in registers over the whole of k, so each element is one chain of fused multiply-adds
// in the order of k, at any width.
#define DSI_OPTIM_TILE(L, TARGET)                                                                                      \
    TARGET static void dsi_optim_tile_##L(const float *a, const float *b, size_t k, float *c) {                        \
        const size_t w = DSI_OPTIM_WIDTH(L);                                                                           \
        dsi_optim_##L##_t b0, b1, e, c00 = dsi_optim_##L##_set(0), c01 = c00, c10 = c00, c11 = c00, c20 = c00,         \
                                     c21 = c00, c30 = c00, c31 = c00, c40 = c00, c41 = c00, c50 = c00, c51 = c00;      \
        for (size_t l = 0; l < k; l++, a += 6, b += 2 * w) {                                                           \
            b0 = dsi_optim_##L##_load(b), b1 = dsi_optim_##L##_load(b + w);                                            \
            e = dsi_optim_##L##_set(a[0]), c00 = dsi_optim_##L##_fma(e, b0, c00),                                      \
            c01 = dsi_optim_##L##_fma(e, b1, c01);                                                                     \
            e = dsi_optim_##L##_set(a[1]), c10 = dsi_optim_##L##_fma(e, b0, c10),                                      \
            c11 = dsi_optim_##L##_fma(e, b1, c11);                                                                     \
            e = dsi_optim_##L##_set(a[2]), c20 = dsi_optim_##L##_fma(e, b0, c20),                                      \
            c21 = dsi_optim_##L##_fma(e, b1, c21);                                                                     \
            e = dsi_optim_##L##_set(a[3]), c30 = dsi_optim_##L##_fma(e, b0, c30),                                      \
            c31 = dsi_optim_##L##_fma(e, b1, c31);                                                                     \
            e = dsi_optim_##L##_set(a[4]), c40 = dsi_optim_##L##_fma(e, b0, c40),                                      \
            c41 = dsi_optim_##L##_fma(e, b1, c41);                                                                     \
            e = dsi_optim_##L##_set(a[5]), c50 = dsi_optim_##L##_fma(e, b0, c50),                                      \
            c51 = dsi_optim_##L##_fma(e, b1, c51);                                                                     \
        }                                                                                                              \
        dsi_optim_##L##_store(c, c00), dsi_optim_##L##_store(c + w, c01);                                              \
        dsi_optim_##L##_store(c + 2 * w, c10), dsi_optim_##L##_store(c + 3 * w, c11);                                  \
        dsi_optim_##L##_store(c + 4 * w, c20), dsi_optim_##L##_store(c + 5 * w, c21);                                  \
        dsi_optim_##L##_store(c + 6 * w, c30), dsi_optim_##L##_store(c + 7 * w, c31);                                  \
        dsi_optim_##L##_store(c + 8 * w, c40), dsi_optim_##L##_store(c + 9 * w, c41);                                  \
        dsi_optim_##L##_store(c + 10 * w, c50), dsi_optim_##L##_store(c + 11 * w, c51);                                \
    }

// gcc's own AVX-512 intrinsics: don't-care operands look uninitialised, and (-O0) all-ones masks change sign
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#endif
DSI_OPTIM_AVX512 static __m256i dsi_optim_bf16_x16(__m512 x) {
    const __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}
DSI_OPTIM_AVX512 static inline __m512 dsi_optim_x16_grad(const dsi_optim_feed *f, size_t i) {
    const __m512 factor = _mm512_set1_ps(f->factor);
    __m256i h;
    if (f->grad_dtype == DS_F32) return _mm512_mul_ps(_mm512_loadu_ps((const float *)f->grad + i), factor);
    h = _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)f->grad + i));
    if (f->grad_dtype == DS_F16) return _mm512_mul_ps(_mm512_cvtph_ps(h), factor);
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)), factor);
}
DSI_OPTIM_AVX512 static inline void dsi_optim_x16_give(const dsi_optim_feed *f, size_t i, __m512 p) {
    __m256i *out = (__m256i *)(void *)((uint16_t *)f->out + i), half;
    if (!f->out) return;
    half = f->out_dtype == DS_F16 ? _mm512_cvtps_ph(p, _MM_FROUND_TO_NEAREST_INT) : dsi_optim_bf16_x16(p);
    if (f->past)
        _mm256_stream_si256(out, half);
    else
        _mm256_storeu_si256(out, half);
}
DSI_OPTIM_AVX512 static inline void dsi_optim_x16_square(__m512d *low, __m512d *high, __m512 x) {
    const __m512d l = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d h = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1)));
    *low = _mm512_fmadd_pd(l, l, *low), *high = _mm512_fmadd_pd(h, h, *high); // the two may be one
}
DSI_OPTIM_AVX512 static inline void dsi_optim_x16_lanes(double *lane, const __m512d *sums) {
    _mm512_storeu_pd(lane, sums[0]), _mm512_storeu_pd(lane + 8, sums[1]);
}
DSI_OPTIM_AVX512 static inline double dsi_optim_x16_fold(const __m512d *sums) {
    const __m512d eight = _mm512_add_pd(sums[0], sums[1]);
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
typedef struct dsi_optim_odd_even_x16 {
    __m512d even, odd;
} dsi_optim_odd_even_x16;
// a conversion fills a vector from half a one, so what it takes is loaded by halves
DSI_OPTIM_AVX512 static inline void dsi_optim_x16_odd_even(dsi_optim_odd_even_x16 *a, const dsi_optim_feed *f,
                                                           size_t i) {
    const __m256i upper = _mm256_set1_epi32((int)0xFFFF0000);
    const __m256 factor = _mm256_set1_ps(f->factor);
    const __m256i pairs = _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)f->grad + i));
    const __m512d e = _mm512_cvtps_pd(_mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), factor));
    const __m512d o = _mm512_cvtps_pd(_mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(pairs, upper)), factor));
    a->even = _mm512_fmadd_pd(e, e, a->even), a->odd = _mm512_fmadd_pd(o, o, a->odd);
}
DSI_OPTIM_AVX512 static inline void dsi_optim_x16_together(const dsi_optim_odd_even_x16 *a, __m512d *sums) {
    const __m512i first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11),
                  second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    sums[0] = _mm512_permutex2var_pd(a->even, first, a->odd);
    sums[1] = _mm512_permutex2var_pd(a->even, second, a->odd);
}
DSI_OPTIM_TILE(x8, DSI_OPTIM_AVX2)
DSI_OPTIM_TILE(x16, DSI_OPTIM_AVX512)
DSI_OPTIM_COMMON(x8, DSI_OPTIM_AVX2)
DSI_OPTIM_MEASURE(x8, ahead, DSI_OPTIM_AVX2, __m256d)
DSI_OPTIM_NORM_BF16(x8, ahead, DSI_OPTIM_AVX2, __m256d)
DSI_OPTIM_NORM(x8, ahead, DSI_OPTIM_AVX2, __m256d)
DSI_OPTIM_LEVEL(x8, ahead, DSI_OPTIM_AVX2, DS_OPTIM_LEVEL_AVX2, 16)
DSI_OPTIM_COMMON(x16, DSI_OPTIM_AVX512)
#define DSI_OPTIM_X16(WAY)                                                                                             \
    DSI_OPTIM_MEASURE(x16, WAY, DSI_OPTIM_AVX512, __m512d)                                                             \
    DSI_OPTIM_NORM_BF16(x16, WAY, DSI_OPTIM_AVX512, __m512d)                                                           \
    DSI_OPTIM_NORM(x16, WAY, DSI_OPTIM_AVX512, __m512d)                                                                \
    DSI_OPTIM_LEVEL(x16, WAY, DSI_OPTIM_AVX512, DS_OPTIM_LEVEL_AVX512, 32)
DSI_OPTIM_X16(plain)
DSI_OPTIM_X16(ahead)
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

// The kernels of `level`, or NULL where the machine lacks it.
static const dsi_optim_simd *dsi_optim_kernels_of(ds_optim_level level) {
    const bool best = level == DS_OPTIM_LEVEL_BEST;
#if DSI_OPTIM_X86
    __builtin_cpu_init();
    if ((best || level == DS_OPTIM_LEVEL_AVX512) && __builtin_cpu_supports("avx512f"))
        return __builtin_cpu_is("intel") ? &dsi_optim_x16_ahead : &dsi_optim_x16_plain;
    if ((best || level == DS_OPTIM_LEVEL_AVX2) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return &dsi_optim_x8_ahead;
#endif
    return best || level == DS_OPTIM_LEVEL_SCALAR ? &dsi_optim_x1_plain : NULL;
}

// >>norms and casts
static bool dsi_optim_is_float(ds_dtype dtype) {
    return dtype == DS_F32 || dtype == DS_F16 || dtype == DS_BF16;
}
static const void *dsi_optim_at(const void *base, ds_dtype dtype, size_t i) {
    return (const char *)base + i * DS_DTYPE_SIZE(dtype);
}
static size_t dsi_optim_grains(size_t count) {
    return count / DS_GRAIN + (count % DS_GRAIN != 0);
}
// The gradient as every formula takes it: fp32, times factor. Uses `buffer` (a grain) unless it is so already.
static const float *dsi_optim_grad(const dsi_optim_simd *simd, const void *grad, ds_dtype dtype, float factor, size_t n,
                                   float *buffer) {
    if (dtype == DS_F32 && factor == 1.0f) return (const float *)grad;
    simd->widen(buffer, grad, dtype, factor, n);
    return buffer;
}
// Of each grain; `step` apart lie the results. A lane's sum is one chain of additions, which is slower than the memory, so two
// grains go at a time: one of the first half and one of the second, as the processor fetches ahead for each of two distant
// streams and is misled by two near ones.
enum { DSI_OPTIM_NORM_HALF = 128 }; // grains
static void dsi_optim_norms(const dsi_optim_simd *simd, const void *grad, ds_dtype dtype, size_t count, float factor,
                            double *per_grain, size_t step) {
    const dsi_optim_feed f = {grad, dtype, DS_F32, factor, false, NULL};
    const size_t half = count / (2 * DS_GRAIN), twice = half < DSI_OPTIM_NORM_HALF ? 0 : half;
    double two[2];
    for (size_t g = 0; g < twice; g++) {
        const dsi_optim_feed part = dsi_optim_feed_at(&f, g * DS_GRAIN);
        simd->norm_two(&part, half * DS_GRAIN, two);
        per_grain[g * step] = two[0], per_grain[(g + half) * step] = two[1];
    }
    for (size_t i = 2 * twice * DS_GRAIN; i < count; i += DS_GRAIN) {
        const dsi_optim_feed part = dsi_optim_feed_at(&f, i);
        per_grain[i / DS_GRAIN * step] = simd->norm(&part, count - i < DS_GRAIN ? count - i : DS_GRAIN);
    }
}
DS_API void ds_optim_norm_grains(const void *grad, ds_dtype dtype, size_t count, float factor, double *per_grain) {
    dsi_optim_norms(dsi_optim_kernels_of(DS_OPTIM_LEVEL_BEST), grad, dtype, count, factor, per_grain, 1);
}
// `step` apart lie the partials, so that LAMB's pairs need no copy.
static double dsi_optim_tree(double *sums, size_t n, size_t step) {
    if (n == 0) return 0;
    for (; n > 1; n = n / 2 + n % 2) {
        for (size_t i = 0; i < n / 2; i++) sums[i * step] = sums[2 * i * step] + sums[(2 * i + 1) * step];
        if (n % 2) sums[n / 2 * step] = sums[(n - 1) * step];
    }
    return sums[0];
}
DS_API double ds_optim_norm_tree(double *grains, size_t n) {
    return dsi_optim_tree(grains, n, 1);
}
DS_API double ds_optim_clip_coefficient(double norm, double max_norm) {
    double excess = max_norm > 0 ? (norm + 1e-6) / max_norm : 0;
    return excess > 1 ? 1 / excess : 1;
}
// to = from * factor, or to += from, by grains: in fp32, rounded once.
static ds_status dsi_optim_elementwise(void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, float factor,
                                       bool adds, size_t count) {
    const dsi_optim_simd *simd = dsi_optim_kernels_of(DS_OPTIM_LEVEL_BEST);
    float result[DS_GRAIN], buffer[DS_GRAIN];
    if (!dsi_optim_is_float(to_dtype) || !dsi_optim_is_float(from_dtype)) return DS_ERR_ARGUMENT;
    for (size_t i = 0; i < count; i += DS_GRAIN) {
        const size_t n = count - i < DS_GRAIN ? count - i : DS_GRAIN;
        void *out = (char *)to + i * DS_DTYPE_SIZE(to_dtype);
        float *wide = to_dtype == DS_F32 ? (float *)out : result;
        const void *in = dsi_optim_at(from, from_dtype, i);
        const float *x = dsi_optim_grad(simd, in, from_dtype, factor, n, adds ? buffer : wide);
        if (adds && to_dtype != DS_F32) simd->widen(wide, out, to_dtype, 1.0f, n);
        if (adds) simd->add(wide, x, n), x = wide;
        if (to_dtype != DS_F32) simd->narrow(out, to_dtype, x, n);
    }
    return DS_OK;
}
DS_API ds_status ds_optim_cast(void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count) {
    if (to_dtype != from_dtype || !dsi_optim_is_float(to_dtype))
        return dsi_optim_elementwise(to, to_dtype, from, from_dtype, 1.0f, false, count);
    if (count && to != from) memmove(to, from, count * DS_DTYPE_SIZE(to_dtype));
    return DS_OK;
}
DS_API ds_status ds_optim_accumulate(void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count) {
    return dsi_optim_elementwise(to, to_dtype, from, from_dtype, 1.0f, true, count);
}
DS_API ds_status ds_optim_scale(void *x, ds_dtype dtype, float factor, size_t count) {
    return dsi_optim_elementwise(x, dtype, x, dtype, factor, false, count);
}

// >>object
enum {
    DSI_OPTIM_MATRIX = 1,
    DSI_OPTIM_ONE_BIT = 2,
    DSI_OPTIM_BETAS = 4,
    DSI_OPTIM_LOCAL_STEPS = 8
}; // facts of a built-in optimizer
typedef struct dsi_optim_item dsi_optim_item;
// The sum of a grain that no rank measured: a NaN with bits that no arithmetic makes.
static const uint64_t dsi_optim_unmeasured = 0xFFF84453F0505401u;
static bool dsi_optim_measured(const double *sum) {
    return memcmp(sum, &dsi_optim_unmeasured, sizeof *sum) != 0;
}

// A built-in optimizer: an entry of the table that users extend, and what only the built-in ones need.
typedef struct dsi_optim_entry {
    ds_optim_table table; // without `update`: the built-in ones take a feed
    unsigned facts;
    int rule; // of the kernels; -1: whole tensors alone
    // one grain, 16-bit weights included; NULL: the rule's dsi_optim_simd.update
    void (*fed)(const ds_optim_pass *pass, const dsi_optim_feed *feed, float *master, float *const *state,
                size_t count);
    // WHOLE: the tensor at once, with its gradient in fp32
    ds_status (*whole)(ds_optim *o, dsi_optim_item *item, const ds_optim_slice *slice, float *grad);
} dsi_optim_entry;

enum { DSI_OPTIM_SCALARS = 6 };
struct dsi_optim_item {
    ds_optim_tensor tensor;
    size_t count, grains, first_grain; // first_grain: in the object's table of sums
    const ds_optim_table *table;
    const dsi_optim_entry *entry; // NULL for a user's table
    const ds_optim_constants *constants;
    size_t state_count;
    ds_optim_pass pass;
    float *state[DS_OPTIM_MAX_STATES], *master; // own_states
    bool master_set;
    double scalar[DSI_OPTIM_SCALARS]; // of the 1-bit family
    size_t error_begin;               // into the object's error feedback (OneBitLamb: into the fused buffer)
    size_t padded;
};

typedef struct dsi_optim_block {
    struct dsi_optim_block *next;
    size_t bytes, align;
} dsi_optim_block;

// What ranks tell each other of their gradients.
typedef struct dsi_optim_ballot {
    double norm;
    uint64_t overflow; // the first tensor that is not finite, or UINT64_MAX
} dsi_optim_ballot;

struct ds_optim {
    ds_optim_desc desc;
    const ds_optim_table *table;
    const dsi_optim_entry *entry;
    const dsi_optim_simd *simd;
    ds_error error;
    dsi_optim_block *blocks;
    size_t bytes, large_blocks;
    bool no_memory; // dsi_optim_take gave NULL; from then on it gives no more, and create fails at its end
    dsi_pool *pool;
    ds_tasks tasks;
    ds_optim_params *groups;
    double *base_lr;
    ds_schedule *schedules;
    int64_t schedule_count, step;
    dsi_optim_item *items, **by_name; // by_name: sorted
    ds_optim_constants *constants;    // two per group
    size_t grains;
    double *sums, *all_sums; // two per grain
    bool open, combined, clipping_told;
    float *gradient;                   // of the largest whole tensor
    ds_optim_part *parts;              // with kernels
    char *device_memory;               // sums of grains, then scratch of Muon or the 1-bit family
    double *device_sums, *pinned_sums; // the former, and on their way back
    size_t device_bytes, sum_bytes;
    void *stream;            // of the call that is open
    ds_status device_status; // the first that was not DS_OK in it
    size_t failed;           // 1 + the tensor whose update failed first in it
    ds_status failed_status;
    float *matrices[2], *squares[4], *packed_rows, *packed_columns; // Muon's scratch
    float *worker_error, *server_error, *average;                   // the 1-bit family's
    unsigned char *packed, *all_packed;
    size_t error_count;
    dsi_optim_ballot *ballots; // one per rank, for ds_optim_step
};

// Large arrays begin at different places of a page, eight cache lines apart, none of them where malloc or posix_memalign
// puts what the caller has: arrays that run along together at nearly one place cost up to a third of the speed. (A
// store delays the loads that follow it within the next few lines of a page, and AMD's first cache can hold only one of
// two lines at the same place when some bits of their addresses hash alike, as they do with arrays of 64 MiB.) Huge
// pages give another tenth; where the system refuses them, nothing is lost.
static void *dsi_optim_take(ds_optim *o, size_t count, size_t size) {
    const bool large = dsi_mul(count, size) >= 65536;
    const size_t lead = large ? 512 * (1 + o->large_blocks++ % 7) : 64, align = large ? 4096 : 64;
    const size_t bytes = dsi_add(dsi_mul(count, size), lead);
    dsi_optim_block *block =
        o->no_memory ? NULL : (dsi_optim_block *)dsi_alloc_aligned(&o->desc.allocator, bytes, align);
    o->no_memory = !block;
    if (!block) return NULL;
#ifdef MADV_HUGEPAGE
    if (large && !o->desc.allocator.alloc) (void)madvise(block, bytes, MADV_HUGEPAGE);
#endif
    memset(block, 0, bytes);
    block->next = o->blocks;
    block->bytes = bytes, block->align = align;
    o->blocks = block;
    o->bytes += bytes;
    return (char *)block + lead;
}
static int dsi_optim_ranks(const ds_optim *o) {
    return o->desc.group.size > 1 ? o->desc.group.size : 1;
}
static bool dsi_optim_is(const ds_optim *o, unsigned fact) {
    return o->entry && (o->entry->facts & fact) != 0;
}

static bool dsi_optim_same(const char *a, const char *b) {
    for (; *a && *b; a++, b++) {
        char x = *a >= 'A' && *a <= 'Z' ? (char)(*a + 32) : *a, y = *b >= 'A' && *b <= 'Z' ? (char)(*b + 32) : *b;
        if (x != y) return false;
    }
    return *a == *b;
}

static void dsi_optim_parallel(const ds_optim *o, size_t count,
                               void (*body)(void *arg, size_t begin, size_t end, unsigned worker), void *arg) {
    if (!count) return;
    if (o->tasks.parallel_for && count > 1)
        o->tasks.parallel_for(o->tasks.ctx, count, 1, body, arg);
    else
        body(arg, 0, count, 0);
}

// >>table
static const ds_optim_constants *dsi_optim_k(const ds_optim_pass *pass) {
    return (const ds_optim_constants *)pass->ctx;
}
// LAMB (You et al. 2020): the direction's length is set to the weights', tensor by tensor.
static void dsi_optim_measure_lamb(const ds_optim_pass *pass, const float *grad, const float *master,
                                   float *const *state, size_t count, double sums[2]) {
    const dsi_optim_feed f = dsi_optim_feed_of(grad);
    dsi_optim_k(pass)->simd->measure(dsi_optim_k(pass), &f, master, state[0], state[1], count, sums);
}
static double dsi_optim_trust_ratio(const ds_optim_params *p, const double norm[2]) {
    double ratio = norm[0] / norm[1];
    if (norm[0] == 0 || norm[1] == 0) return 1;
    return ratio > p->max_coeff ? p->max_coeff : ratio < p->min_coeff ? p->min_coeff : ratio;
}
static void dsi_optim_fed_lamb(const ds_optim_pass *pass, const dsi_optim_feed *f, float *master, float *const *state,
                               size_t count) {
    const ds_optim_constants *k = dsi_optim_k(pass);
    k->simd->lamb(k, f, master, state[0], state[1], (float)(-k->rate * dsi_optim_trust_ratio(pass->params, pass->norm)),
                  count);
}

// >>matrix
// c = alpha * a * op(b) + beta * c, row-major, a (m, k). a is packed once in panels of six rows, b by each worker in panels
// of a tile's columns; k is never cut, so each element is one chain of fused multiply-adds. Of a result known to be
// symmetric only the tiles that touch the upper half are computed, then mirrored.
typedef struct dsi_optim_product {
    const dsi_optim_simd *simd;
    size_t m, n, k;
    float alpha, beta;
    const float *a, *b;
    float *c, *packed, *panels; // panels: one of k * 32 for each worker
    bool transpose, symmetric;
} dsi_optim_product;

static void dsi_optim_pack_share(void *arg, size_t begin, size_t end, unsigned worker) {
    const dsi_optim_product *x = (const dsi_optim_product *)arg;
    (void)worker;
    for (size_t panel = begin; panel < end; panel++) {
        float *to = x->packed + panel * 6 * x->k;
        for (size_t row = 0; row < 6; row++) {
            const bool inside = panel * 6 + row < x->m;
            const float *from = inside ? x->a + (panel * 6 + row) * x->k : NULL;
            for (size_t l = 0; l < x->k; l++) to[l * 6 + row] = inside ? from[l] : 0;
        }
    }
}
static void dsi_optim_pack_columns(const dsi_optim_product *x, size_t column, size_t width, float *to) {
    const size_t tile = x->simd->tile_columns;
    for (size_t l = 0; l < x->k; l++)
        for (size_t j = width; j < tile; j++) to[l * tile + j] = 0;
    if (x->transpose) {
        for (size_t j = 0; j < width; j++)
            for (size_t l = 0; l < x->k; l++) to[l * tile + j] = x->b[(column + j) * x->k + l];
    } else
        for (size_t l = 0; l < x->k; l++) memcpy(to + l * tile, x->b + l * x->n + column, width * sizeof(float));
}
static void dsi_optim_product_share(void *arg, size_t begin, size_t end, unsigned worker) {
    const dsi_optim_product *x = (const dsi_optim_product *)arg;
    const size_t tile = x->simd->tile_columns;
    float *panel = x->panels + (size_t)worker * x->k * 32, out[6 * 32];
    for (size_t t = begin; t < end; t++) {
        const size_t column = t * tile, width = x->n - column < tile ? x->n - column : tile;
        dsi_optim_pack_columns(x, column, width, panel);
        for (size_t row = 0; row < x->m && !(x->symmetric && row >= column + width); row += 6) {
            x->simd->tile(x->packed + row * x->k, panel, x->k, out);
            for (size_t i = 0; i < 6 && row + i < x->m; i++) {
                float *c = x->c + (row + i) * x->n + column;
                if (x->beta == 0)
                    x->simd->widen(c, out + i * tile, DS_F32, x->alpha, width);
                else
                    x->simd->mix(c, out + i * tile, x->alpha, x->beta, width);
            }
        }
    }
}
// Parts of the optimizers that take whole tensors, here or by the kernels, in the same order and with the same bits. On a
// device the rest of a call does nothing once something failed.
static bool dsi_optim_by_kernels(const ds_optim *o) {
    return o->desc.kernels && o->desc.all_on_device;
}
#define DSI_OPTIM_ON_DEVICE(call)                                                                                      \
    do {                                                                                                               \
        const ds_optim_kernels *const table = o->desc.kernels;                                                         \
        const ds_device *const device = o->desc.device;                                                                \
        (void)table, (void)device;                                                                                     \
        if (!o->device_status) o->device_status = (call);                                                              \
    } while (0)
static void dsi_optim_move(ds_optim *o, float *to, const float *from, size_t count) {
    if (dsi_optim_by_kernels(o))
        DSI_OPTIM_ON_DEVICE(device->copy(device->ctx, to, from, count * sizeof(float), o->stream));
    else
        memcpy(to, from, count * sizeof(float));
}
static void dsi_optim_clear(ds_optim *o, float *x, size_t count) {
    if (dsi_optim_by_kernels(o))
        DSI_OPTIM_ON_DEVICE(device->fill(device->ctx, x, 0, count * sizeof(float), o->stream));
    else
        memset(x, 0, count * sizeof(float));
}
static void dsi_optim_times(ds_optim *o, float *x, float factor, size_t count) {
    if (dsi_optim_by_kernels(o))
        DSI_OPTIM_ON_DEVICE(table->scale(table->ctx, x, DS_F32, factor, count, o->stream));
    else
        o->simd->widen(x, x, DS_F32, factor, count);
}
static void dsi_optim_mix(ds_optim *o, float *y, const float *x, float a, float b, size_t count) {
    if (dsi_optim_by_kernels(o))
        DSI_OPTIM_ON_DEVICE(table->mix(table->ctx, y, x, a, b, count, o->stream));
    else
        o->simd->mix(y, x, a, b, count);
}
static void dsi_optim_transpose(ds_optim *o, float *to, const float *from, size_t rows, size_t cols) {
    if (dsi_optim_by_kernels(o))
        DSI_OPTIM_ON_DEVICE(table->transpose(table->ctx, to, from, rows, cols, o->stream));
    else
        for (size_t i = 0; i < rows; i++)
            for (size_t j = 0; j < cols; j++) to[j * rows + i] = from[i * cols + j];
}
static void dsi_optim_mirror(ds_optim *o, float *c, size_t n, float add) {
    if (dsi_optim_by_kernels(o)) {
        DSI_OPTIM_ON_DEVICE(table->mirror(table->ctx, c, n, add, o->stream));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++) c[i * n + j] = c[j * n + i];
        c[i * n + i] += add;
    }
}
// One rule over one slice; its 16-bit weights are made at the end of the step.
static void dsi_optim_rule(ds_optim *o, ds_optim_rule rule, const ds_optim_slice *s, float rate) {
    ds_optim_part part;
    memset(&part, 0, sizeof part);
    part.slice = *s;
    part.slice.weights16 = NULL;
    part.rate = rate;
    if (s->count)
        DSI_OPTIM_ON_DEVICE(table->update(table->ctx, rule, o->items[s->tensor].constants, &part, 1, o->stream));
}
// Of the device's sums the first `count`, on the host; valid unless something failed.
static const double *dsi_optim_sums(ds_optim *o, size_t count) {
    DSI_OPTIM_ON_DEVICE(device->copy(device->ctx, o->pinned_sums, o->device_sums, count * sizeof(double), o->stream));
    DSI_OPTIM_ON_DEVICE(device->synchronize(device->ctx, o->stream));
    return o->pinned_sums;
}
// The sum of squares, as norms are summed; not finite exactly when an element is not.
static double dsi_optim_sum_of_squares(ds_optim *o, const dsi_optim_item *item, const float *x) {
    double *const sums = o->sums + 2 * item->first_grain;
    const double *sum;
    if (!dsi_optim_by_kernels(o)) {
        dsi_optim_norms(o->simd, x, DS_F32, item->count, 1.0f, sums, 1);
        return dsi_optim_tree(sums, item->grains, 1);
    }
    DSI_OPTIM_ON_DEVICE(table->norm_grains(table->ctx, x, DS_F32, item->count, 1.0f, o->device_sums, o->stream));
    DSI_OPTIM_ON_DEVICE(table->norm_tree(table->ctx, o->device_sums, item->grains, o->stream));
    sum = dsi_optim_sums(o, 1);
    return o->device_status ? 0 : *sum;
}
static void dsi_optim_multiply(ds_optim *o, bool transpose, bool symmetric, size_t m, size_t n, size_t k, float alpha,
                               const float *a, const float *b, float beta, float *c) {
    dsi_optim_product x;
    if (dsi_optim_by_kernels(o)) {
        DSI_OPTIM_ON_DEVICE(table->multiply(table->ctx, transpose, m, n, k, alpha, a, b, beta, c, o->stream));
        if (symmetric) dsi_optim_mirror(o, c, n, -0.0f);
        return;
    }
    if (o->desc.gemm.gemm) {
        o->desc.gemm.gemm(o->desc.gemm.ctx, false, transpose, m, n, k, alpha, a, k, b, transpose ? k : n, beta, c, n);
        return;
    }
    x.simd = o->simd, x.m = m, x.n = n, x.k = k, x.alpha = alpha, x.beta = beta;
    x.a = a, x.b = b, x.c = c, x.transpose = transpose, x.symmetric = symmetric;
    x.packed = o->packed_rows, x.panels = o->packed_columns;
    dsi_optim_parallel(o, (m + 5) / 6, dsi_optim_pack_share, &x);
    dsi_optim_parallel(o, (n + o->simd->tile_columns - 1) / o->simd->tile_columns, dsi_optim_product_share, &x);
    if (symmetric) dsi_optim_mirror(o, c, n, -0.0f); // which adds nothing, to a zero of either sign too
}

static ds_status dsi_optim_device_failed(ds_optim *o) {
    const ds_device *d = o->desc.device;
    return dsi_fail(&o->error, o->device_status, "ds_optim: the device kernel failed%s%.300s",
                    d && d->describe ? ": " : "", d && d->describe ? d->describe(d->ctx) : "");
}

// Newton-Schulz: with X X^T = R, each step is X = Z X, Z = aI + bR + cR^2, which drives X's singular values to about one.
static void dsi_optim_newton_schulz_plain(ds_optim *o, const ds_optim_params *p, float *x, float *y, size_t n,
                                          size_t m) {
    float *r = o->squares[0], *z = o->squares[1], *in = x, *out = y;
    for (int i = 0; i < p->ns_steps; i++) {
        float *swap = in;
        dsi_optim_multiply(o, true, true, n, n, m, 1, in, in, 0, r);
        dsi_optim_move(o, z, r, n * n);
        dsi_optim_multiply(o, false, true, n, n, n, (float)p->ns_c, r, r, (float)p->ns_b, z);
        dsi_optim_move(o, out, in, n * m);
        dsi_optim_multiply(o, false, false, n, m, n, 1, z, in, (float)p->ns_a, out);
        in = out, out = swap;
    }
    if (in != x) dsi_optim_move(o, x, in, n * m);
}
// The Gram form keeps R (n, n) and the product Q of all Z, and touches X (n, m) only at the end; once on the way it starts
// afresh from X, since R = Z R Z drifts from X X^T in fp32.
static void dsi_optim_newton_schulz_gram(ds_optim *o, const ds_optim_params *p, float *x, float *y, size_t n,
                                         size_t m) {
    float *r = o->squares[0], *z = o->squares[1], *q = o->squares[2], *t = o->squares[3];
    dsi_optim_multiply(o, true, true, n, n, m, 1, x, x, 0, r);
    for (int i = 0; i < p->ns_steps; i++) {
        const bool fresh = i == 0 || i == 2;
        if (i == 2) {
            dsi_optim_multiply(o, false, false, n, m, n, 1, q, x, 0, y);
            dsi_optim_move(o, x, y, n * m);
            dsi_optim_multiply(o, true, true, n, n, m, 1, x, x, 0, r);
        }
        dsi_optim_move(o, z, r, n * n);
        dsi_optim_multiply(o, false, true, n, n, n, (float)p->ns_c, r, r, (float)p->ns_b, z);
        dsi_optim_mirror(o, z, n, (float)p->ns_a);
        if (fresh)
            dsi_optim_move(o, q, z, n * n);
        else {
            dsi_optim_multiply(o, false, true, n, n, n, 1, z, q, 0, t);
            dsi_optim_move(o, q, t, n * n);
        }
        if (i + 1 < p->ns_steps && i != 1) {
            dsi_optim_multiply(o, false, true, n, n, n, 1, z, r, 0, t);
            dsi_optim_multiply(o, false, true, n, n, n, 1, t, z, 0, r);
        }
    }
    if (p->ns_steps) {
        dsi_optim_multiply(o, false, false, n, m, n, 1, q, x, 0, y);
        dsi_optim_move(o, x, y, n * m);
    }
}
// Orthogonalises update (rows, cols) in place.
static void dsi_optim_orthogonalize(ds_optim *o, const dsi_optim_item *item, float *update) {
    const ds_optim_params *p = item->pass.params;
    const size_t rows = item->tensor.rows, cols = item->tensor.cols;
    const bool tall = rows > cols;
    const size_t n = tall ? cols : rows, m = tall ? rows : cols, count = n * m;
    float *x = tall ? o->matrices[0] : update, *y = o->matrices[1];
    dsi_optim_times(o, update, (float)(1 / (sqrt(dsi_optim_sum_of_squares(o, item, update)) + 1e-7)), count);
    if (tall) dsi_optim_transpose(o, x, update, rows, cols);
    if (p->ns_method == DS_OPTIM_NS_GRAM && n != m)
        dsi_optim_newton_schulz_gram(o, p, x, y, n, m);
    else
        dsi_optim_newton_schulz_plain(o, p, x, y, n, m);
    if (tall) dsi_optim_transpose(o, update, x, cols, rows);
}
// Muon (Jordan 2024). A gradient that is not finite leaves the momentum alone and goes into the weights as it is.
static ds_status dsi_optim_whole_muon(ds_optim *o, dsi_optim_item *item, const ds_optim_slice *s, float *grad) {
    const ds_optim_params *p = item->pass.params;
    const float beta = (float)p->momentum, rest = (float)(1 - p->momentum);
    const size_t rows = item->tensor.rows, cols = item->tensor.cols;
    double shape = rows > cols ? sqrt((double)rows / (double)cols) : 1;
    if (!s->count) return DS_OK;
    if (dsi_optim_sum_of_squares(o, item, grad) <= DBL_MAX) {
        dsi_optim_mix(o, s->state[0], grad, rest, beta, s->count);
        if (p->nesterov)
            dsi_optim_mix(o, grad, s->state[0], beta, rest, s->count);
        else
            dsi_optim_move(o, grad, s->state[0], s->count);
        dsi_optim_orthogonalize(o, item, grad);
    } else
        shape = 1;
    if (item->constants->decay != 0) dsi_optim_mix(o, s->master, s->master, item->constants->decay, 1, s->count);
    dsi_optim_mix(o, s->master, grad, (float)(-p->lr * shape), 1, s->count);
    return DS_OK;
}
// One allocation of device memory: sums of grains, then what else an optimizer needs there.
static ds_status dsi_optim_device_take(ds_optim *o, size_t sums, size_t floats) {
    const ds_device *d = o->desc.device;
    void *memory = NULL;
    ds_status status;
    o->sum_bytes = dsi_round_up(dsi_mul(sums, sizeof(double)), 256);
    o->device_bytes = dsi_add(o->sum_bytes, dsi_mul(floats, sizeof(float)));
    if ((status = d->alloc(d->ctx, o->device_bytes, &memory))) return status;
    o->device_memory = (char *)memory, o->device_sums = (double *)memory;
    if (!sums) return DS_OK;
    if ((status = d->pinned_alloc(d->ctx, o->sum_bytes, &memory))) return status;
    o->pinned_sums = (double *)memory;
    return DS_OK;
}
static ds_status dsi_optim_device_matrices(ds_optim *o, size_t whole, size_t square) {
    const size_t each = dsi_round_up(whole, 64), side = dsi_round_up(square, 64);
    const ds_status status =
        dsi_optim_device_take(o, dsi_optim_grains(whole), dsi_add(dsi_mul(3, each), dsi_mul(4, side)));
    float *at = (float *)(void *)(o->device_memory + o->sum_bytes);
    if (status) return status;
    o->gradient = at, o->matrices[0] = at + each, o->matrices[1] = at + 2 * each;
    for (size_t i = 0; i < 4; i++) o->squares[i] = at + 3 * each + i * side;
    return DS_OK;
}
static ds_status dsi_optim_matrix_scratch(ds_optim *o) {
    size_t whole = 0, square = 0, longest = 0;
    for (size_t i = 0; i < o->desc.tensor_count; i++) {
        const dsi_optim_item *item = &o->items[i];
        const size_t rows = item->tensor.rows, cols = item->tensor.cols, n = rows < cols ? rows : cols;
        if (!item->entry || item->entry->whole != dsi_optim_whole_muon) continue;
        if (dsi_mul(n, n) > square) square = n * n;
        if (rows > longest) longest = rows;
        if (cols > longest) longest = cols;
        if (item->count > whole) whole = item->count;
    }
    if (!whole) return DS_OK;
    if (dsi_optim_by_kernels(o)) return dsi_optim_device_matrices(o, whole, square);
    for (int i = 0; i < 2; i++) o->matrices[i] = (float *)dsi_optim_take(o, whole, sizeof(float));
    for (int i = 0; i < 4; i++) o->squares[i] = (float *)dsi_optim_take(o, square, sizeof(float));
    if (o->desc.gemm.gemm) return DS_OK;
    // rows are packed in sixes, with the last panel filled up
    o->packed_rows = (float *)dsi_optim_take(o, dsi_add(whole, dsi_mul(6, longest)), sizeof(float));
    o->packed_columns = (float *)dsi_optim_take(o, dsi_mul(dsi_mul(longest, 32), o->tasks.workers), sizeof(float));
    return DS_OK;
}

// >>one bit
// 1-bit Adam (Tang et al. 2021), 0/1 Adam (Lu et al. 2022), 1-bit LAMB (Li et al. 2021), as DeepSpeed 0.19.6 has them: the
// first step only counts; no bias correction; after the warm-up ranks exchange signs, with error feedback.
enum { DSI_OPTIM_INTERVAL, DSI_OPTIM_COUNTER, DSI_OPTIM_LOCAL_INTERVAL, DSI_OPTIM_LOCAL_COUNTER, DSI_OPTIM_RATES };
enum { DSI_OPTIM_COEFF, DSI_OPTIM_FACTOR, DSI_OPTIM_SCALING, DSI_OPTIM_RMS };

static bool dsi_optim_zero_one(const ds_optim *o) {
    return dsi_optim_is(o, DSI_OPTIM_LOCAL_STEPS);
}
static bool dsi_optim_fused(const ds_optim *o) {
    return dsi_optim_is(o, DSI_OPTIM_ONE_BIT) && o->table->measure != NULL;
}
static int64_t dsi_optim_freeze_step(const ds_optim *o) {
    int64_t step = dsi_optim_zero_one(o) ? o->groups[0].var_freeze_step + 1 : o->groups[0].freeze_step;
    return step > 2 ? step : 2; // the first step never freezes
}
// Does OneBitLamb take the fresh variance in step t? As in DeepSpeed no step of its own does when freeze_step is 0 or 1:
// it begins at zero then.
static bool dsi_optim_takes_fresh(const ds_optim *o, int64_t t) {
    return t == o->groups[0].freeze_step;
}
static bool dsi_optim_frozen(const ds_optim *o) {
    return o->step >= dsi_optim_freeze_step(o);
}
// Does the step to come work on whole tensors? 0/1 Adam always, once it has begun.
static bool dsi_optim_compressing(const ds_optim *o) {
    return dsi_optim_zero_one(o) ? o->step > 0 : dsi_optim_frozen(o);
}
// Does it keep error feedback?
static bool dsi_optim_compresses(const ds_optim *o) {
    return dsi_optim_is(o, DSI_OPTIM_ONE_BIT) || o->table->compresses;
}
DS_API bool ds_optim_wants_local_gradients(const ds_optim *o) {
    if (o->table->local_gradients) return o->table->local_gradients(o->table->ctx, o->step + 1);
    if (!dsi_optim_is(o, DSI_OPTIM_ONE_BIT) || !o->desc.tensor_count) return false;
    if (dsi_optim_frozen(o)) return true;
    return dsi_optim_zero_one(o) && (o->step + 1) % (int64_t)o->items[0].scalar[DSI_OPTIM_INTERVAL] != 0;
}
DS_API int64_t ds_optim_local_until(const ds_optim *o) {
    if (!dsi_optim_zero_one(o) || o->desc.group.size < 2) return 0;
    for (size_t i = 0; i < o->desc.tensor_count; i++) {
        const double *scalar = o->items[i].scalar;
        const int64_t scaler = o->items[i].pass.params->local_step_scaler;
        const int64_t most = o->items[i].pass.params->local_step_clipper;
        int64_t interval = (int64_t)scalar[DSI_OPTIM_LOCAL_INTERVAL], step = o->step;
        int64_t left = scaler - (int64_t)scalar[DSI_OPTIM_LOCAL_COUNTER]; // steps until the interval doubles
        if (!o->items[i].count || scalar[DSI_OPTIM_RATES] == 0) continue;
        for (; (step / interval + 1) * interval > step + left && interval != most; left = scaler)
            step += left, interval = 2 * interval < most ? 2 * interval : most;
        return (step / interval + 1) * interval;
    }
    return 0;
}
DS_API bool ds_optim_refuses_clipping(const ds_optim *o) {
    return ds_optim_wants_local_gradients(o);
}

// One bit per element, the highest first: set for b >= 0. What the sign and the scale miss stays in `error`.
static float dsi_optim_signs(const dsi_optim_simd *simd, const float *b, size_t n, unsigned char *bits, float *error) {
    double sum = 0;
    float scale;
    for (size_t i = 0; i < n; i += DS_GRAIN) sum += dsi_optim_squares(simd, b + i, n - i < DS_GRAIN ? n - i : DS_GRAIN);
    scale = (float)(sqrt(sum) / sqrt((double)n));
    for (size_t i = 0; i < n; i += 8) {
        unsigned byte = 0;
        for (size_t j = 0; j < 8; j++) {
            const bool up = b[i + j] >= 0;
            byte = byte << 1 | up;
            error[i + j] = up ? b[i + j] - scale : b[i + j] + scale;
        }
        bits[i / 8] = (unsigned char)byte;
    }
    return scale;
}
static bool dsi_optim_sign(const unsigned char *bits, size_t i) {
    return bits[i / 8] >> (7 - i % 8) & 1;
}
// Each rank sends its signs and one scale; rank r adds up chunk r, and sends its signs and scale in turn.
static ds_status dsi_optim_compress(ds_optim *o, float *b, float *worker_error, float *server_error, size_t n) {
    const size_t ranks = (size_t)dsi_optim_ranks(o), chunk = n / ranks, rank = (size_t)o->desc.group.rank;
    const size_t bytes = sizeof(float) + n / 8, part = sizeof(float) + chunk / 8;
    float *own = b + rank * chunk, scale;
    ds_status status;
    if (o->desc.average.average)
        return o->desc.average.average(o->desc.average.ctx, b, worker_error, server_error, n, o->stream);
    if (ranks == 1 || !n) return DS_OK;
    o->simd->add(b, worker_error, n);
    scale = dsi_optim_signs(o->simd, b, n, o->packed + sizeof scale, worker_error);
    memcpy(o->packed, &scale, sizeof scale);
    status = o->desc.group.exchange(o->desc.group.ctx, o->packed, o->all_packed, bytes);
    if (status) return status;
    memset(own, 0, chunk * sizeof(float));
    for (size_t r = 0; r < ranks; r++) {
        const unsigned char *bits = o->all_packed + r * bytes + sizeof scale;
        memcpy(&scale, o->all_packed + r * bytes, sizeof scale);
        scale /= (float)ranks;
        for (size_t i = 0; i < chunk; i++) own[i] += dsi_optim_sign(bits, rank * chunk + i) ? scale : -scale;
    }
    o->simd->add(own, server_error, chunk);
    scale = dsi_optim_signs(o->simd, own, chunk, o->packed + sizeof scale, server_error);
    memcpy(o->packed, &scale, sizeof scale);
    status = o->desc.group.exchange(o->desc.group.ctx, o->packed, o->all_packed, part);
    for (size_t r = 0; r < ranks && !status; r++) {
        memcpy(&scale, o->all_packed + r * part, sizeof scale);
        for (size_t i = 0; i < chunk; i++)
            b[r * chunk + i] = dsi_optim_sign(o->all_packed + r * part + sizeof scale, i) ? scale : -scale;
    }
    return status;
}
// Is there nobody to average with?
static bool dsi_optim_alone(const ds_optim *o) {
    return dsi_optim_ranks(o) == 1 && !o->desc.average.average;
}
static void dsi_optim_mask(const ds_optim *o, const dsi_optim_item *item, float *x) {
    const float *mask = o->desc.masks ? o->desc.masks[item - o->items] : NULL;
    for (size_t i = 0; mask && i < item->count; i++) x[i] *= mask[i];
}
// x (count elements of the item) becomes its compressed average, times the mask. Alone it stays as it is, but for the
// mask of OneBitAdam, which in DeepSpeed is not the average's.
static ds_status dsi_optim_average_item(ds_optim *o, const dsi_optim_item *item, float *x) {
    const size_t server = item->error_begin / (size_t)dsi_optim_ranks(o);
    ds_status status;
    if (dsi_optim_alone(o)) {
        if (!dsi_optim_zero_one(o)) dsi_optim_mask(o, item, x);
        return DS_OK;
    }
    dsi_optim_move(o, o->average, x, item->count);
    dsi_optim_clear(o, o->average + item->count, item->padded - item->count);
    if (o->device_status) return o->device_status;
    status =
        dsi_optim_compress(o, o->average, o->worker_error + item->error_begin, o->server_error + server, item->padded);
    if (status)
        return dsi_fail(&o->error, status, "ds_optim_apply: the compressed average of \"%s\" failed",
                        item->tensor.name);
    dsi_optim_move(o, x, o->average, item->count);
    dsi_optim_mask(o, item, x);
    return DS_OK;
}
DS_API ds_status ds_optim_pass_average(const ds_optim_pass *pass, float *x) {
    const dsi_optim_item *item = (const dsi_optim_item *)(const void *)pass->tensor; // its first member
    if (!item->table->compresses)
        return dsi_fail(&pass->o->error, DS_ERR_STATE, "ds_optim_pass_average: table \"%s\" does not say `compresses`",
                        item->table->name);
    return item->count ? dsi_optim_average_item(pass->o, item, x) : DS_OK;
}
// master -= rate * (m / (sqrt(v) + eps) + decay * master); `moved` (may be NULL, else state[2]) gets the same change.
static void dsi_optim_direct(ds_optim *o, const ds_optim_slice *s, float minus_rate, float *moved) {
    const ds_optim_constants *k = o->items[s->tensor].constants;
    float direction[DS_GRAIN];
    if (dsi_optim_by_kernels(o)) {
        dsi_optim_rule(o, moved ? DS_OPTIM_RULE_ONE_BIT_MOVE : DS_OPTIM_RULE_LAMB_UPDATE, s, minus_rate);
        return;
    }
    for (size_t i = 0; i < s->count; i += DS_GRAIN) {
        const size_t n = s->count - i < DS_GRAIN ? s->count - i : DS_GRAIN;
        k->simd->trust(k, direction, s->master + i, s->state[0] + i, s->state[1] + i, n);
        k->simd->mix(s->master + i, direction, minus_rate, 1, n);
        if (moved) k->simd->mix(moved + i, direction, minus_rate, 1, n);
    }
}
static ds_status dsi_optim_whole_one_bit_adam(ds_optim *o, dsi_optim_item *item, const ds_optim_slice *s, float *grad) {
    const ds_optim_constants *k = item->constants;
    ds_status status;
    if (!s->count) return DS_OK;
    dsi_optim_mix(o, s->state[0], grad, k->one_minus_beta1, k->beta1, s->count);
    if ((status = dsi_optim_average_item(o, item, s->state[0])) != DS_OK) return status;
    dsi_optim_direct(o, s, k->minus_lr, NULL);
    return DS_OK;
}
// The accumulated local change, in units of the momentum, is averaged; the local steps are undone and done again alike.
static void dsi_optim_undo(ds_optim *o, const ds_optim_slice *s, float eps) {
    float *moved = s->state[2];
    if (dsi_optim_by_kernels(o)) {
        dsi_optim_rule(o, DS_OPTIM_RULE_ONE_BIT_UNDO, s, 0);
        return;
    }
    o->simd->mix(s->master, moved, -1, 1, s->count);
    for (size_t i = 0; i < s->count; i++) moved[i] *= sqrtf(s->state[1][i]) + eps;
}
static void dsi_optim_redo(ds_optim *o, const ds_optim_slice *s, float eps, float rates) {
    float *moved = s->state[2];
    if (dsi_optim_by_kernels(o)) {
        dsi_optim_rule(o, DS_OPTIM_RULE_ONE_BIT_REDO, s, rates);
        return;
    }
    for (size_t i = 0; i < s->count; i++) {
        s->state[0][i] = -(moved[i] / rates);
        s->master[i] += moved[i] / (sqrtf(s->state[1][i]) + eps);
    }
    memset(moved, 0, s->count * sizeof(float));
}
static ds_status dsi_optim_synchronize(ds_optim *o, dsi_optim_item *item, const ds_optim_slice *s) {
    ds_status status;
    dsi_optim_undo(o, s, item->constants->eps_out);
    if ((status = dsi_optim_average_item(o, item, s->state[2])) != DS_OK) return status;
    dsi_optim_redo(o, s, item->constants->eps_out, (float)item->scalar[DSI_OPTIM_RATES]);
    item->scalar[DSI_OPTIM_RATES] = 0;
    return DS_OK;
}
// A step of the variance, too: the kernel takes the gradient as it came.
static void dsi_optim_warm(ds_optim *o, const ds_optim_slice *s, const float *grad) {
    const ds_optim_constants *k = o->items[s->tensor].constants;
    if (dsi_optim_by_kernels(o)) {
        dsi_optim_rule(o, DS_OPTIM_RULE_ONE_BIT_WARM, s, k->minus_lr);
        return;
    }
    o->simd->moments(k, grad, s->state[0], s->state[1], s->count);
    dsi_optim_direct(o, s, k->minus_lr, NULL);
}
static ds_status dsi_optim_whole_zero_one(ds_optim *o, dsi_optim_item *item, const ds_optim_slice *s, float *grad) {
    const ds_optim_constants *k = item->constants;
    const ds_optim_params *p = item->pass.params;
    const int64_t t = o->step + 1;
    const bool frozen = dsi_optim_frozen(o);
    ds_status status = DS_OK;
    double *scalar = item->scalar;
    if (!frozen && t % (int64_t)scalar[DSI_OPTIM_INTERVAL] == 0) {
        dsi_optim_warm(o, s, grad);
        scalar[DSI_OPTIM_COUNTER]++;
        if (scalar[DSI_OPTIM_COUNTER] == (double)p->var_update_scaler)
            scalar[DSI_OPTIM_COUNTER] = 0, scalar[DSI_OPTIM_INTERVAL] *= 2;
        return DS_OK;
    }
    if (!frozen && s->count && (status = dsi_optim_average_item(o, item, grad))) return status;
    if (frozen || !dsi_optim_alone(o)) dsi_optim_mix(o, s->state[0], grad, k->one_minus_beta1, k->beta1, s->count);
    if (frozen) scalar[DSI_OPTIM_RATES] += p->lr;
    dsi_optim_direct(o, s, k->minus_lr, frozen ? s->state[2] : NULL);
    if (!frozen) return DS_OK;
    if (t % (int64_t)scalar[DSI_OPTIM_LOCAL_INTERVAL] == 0 && s->count) status = dsi_optim_synchronize(o, item, s);
    if (status) return status;
    if (++scalar[DSI_OPTIM_LOCAL_COUNTER] == (double)p->local_step_scaler) {
        const double twice = 2 * scalar[DSI_OPTIM_LOCAL_INTERVAL], most = (double)p->local_step_clipper;
        scalar[DSI_OPTIM_LOCAL_COUNTER] = 0;
        scalar[DSI_OPTIM_LOCAL_INTERVAL] = twice < most ? twice : most;
    }
    return DS_OK;
}

// 1-bit LAMB, compressed phase: all momenta, each scaled to one size, share a buffer whose padding lives on.
static void dsi_optim_fuse(ds_optim *o, const ds_optim_slice *s, const float *grad) {
    const dsi_optim_item *item = &o->items[s->tensor];
    float *fused = o->average + item->error_begin;
    dsi_optim_move(o, fused, s->state[0], s->count);
    dsi_optim_mix(o, fused, grad, item->constants->one_minus_beta1, item->constants->beta1, s->count);
    dsi_optim_times(o, fused, (float)item->scalar[DSI_OPTIM_SCALING], s->count);
}
static ds_status dsi_optim_average_fused(ds_optim *o) {
    ds_status status = dsi_optim_compress(o, o->average, o->worker_error, o->server_error, o->error_count);
    return status ? dsi_fail(&o->error, status, "ds_optim_combine: the compressed average failed") : DS_OK;
}
// The variance that the averaged momenta imply is compared with the frozen one; their largest ratio, kept in bounds,
// scales the trust ratio that the warm-up averaged.
static double dsi_optim_lamb_factor(const ds_optim_params *p, double factor, double last) {
    factor = factor > p->factor_max ? p->factor_max : factor < p->factor_min ? p->factor_min : factor;
    if (factor > last * (1 + p->factor_threshold)) factor = last * (1 + p->factor_threshold);
    if (factor < last * (1 - p->factor_threshold)) factor = last * (1 - p->factor_threshold);
    return factor;
}
// Takes the averaged momentum and the variance that it implies. Squares of the direction without and with weight decay, and
// the largest ratio, are added up grain by grain.
typedef struct dsi_optim_found {
    double plain, squares, ratio;
} dsi_optim_found;
static dsi_optim_found dsi_optim_imply(ds_optim *o, const dsi_optim_item *item, const ds_optim_slice *s) {
    const ds_optim_constants *k = item->constants;
    const float *mask = o->desc.masks ? o->desc.masks[s->tensor] : NULL, *fused = o->average + item->error_begin;
    const float scaling = (float)item->scalar[DSI_OPTIM_SCALING];
    dsi_optim_found found = {0, 0, 0};
    ds_optim_constants plain = *k;
    float fresh[DS_GRAIN], direction[DS_GRAIN];
    plain.l2 = 0;
    for (size_t at = 0; at < s->count; at += DS_GRAIN) {
        const size_t n = s->count - at < DS_GRAIN ? s->count - at : DS_GRAIN;
        float *m = s->state[0] + at, *v = s->state[1] + at, *real = s->state[2] + at;
        for (size_t i = 0; i < n; i++) fresh[i] = direction[i] = fused[at + i] / scaling * (mask ? mask[at + i] : 1);
        o->simd->mix(direction, m, -k->beta1, 1, n); // the gradient that would have led there
        for (size_t i = 0; i < n; i++) direction[i] /= k->one_minus_beta1, direction[i] *= direction[i];
        o->simd->mix(real, direction, k->one_minus_beta2, k->beta2, n);
        memcpy(m, fresh, n * sizeof(float));
        for (size_t i = 0; i < n; i++) {
            double ratio = (double)((sqrtf(v[i]) + k->eps_out) / (sqrtf(real[i]) + k->eps_out));
            if (ratio > found.ratio) found.ratio = ratio;
        }
        o->simd->trust(&plain, direction, s->master + at, m, v, n);
        found.plain += dsi_optim_squares(o->simd, direction, n);
        o->simd->trust(k, direction, s->master + at, m, v, n);
        found.squares += dsi_optim_squares(o->simd, direction, n);
    }
    return found;
}
// Sets the factor of this step.
static void dsi_optim_compare(dsi_optim_item *item, const dsi_optim_found *found) {
    const ds_optim_params *p = item->pass.params;
    double factor = found->ratio;
    if (p->weight_decay > 0) {
        double share = sqrt(found->plain) / sqrt(found->squares);
        if (!(share < 1)) share = 1;
        factor = factor * share + (1 - share);
    }
    item->scalar[DSI_OPTIM_FACTOR] = dsi_optim_lamb_factor(p, factor, item->scalar[DSI_OPTIM_FACTOR]);
}
static float dsi_optim_compressed_rate(const dsi_optim_item *item) {
    return (float)(-item->pass.params->lr * item->scalar[DSI_OPTIM_COEFF] * item->scalar[DSI_OPTIM_FACTOR]);
}
static ds_status dsi_optim_whole_one_bit_lamb(ds_optim *o, dsi_optim_item *item, const ds_optim_slice *s, float *grad) {
    dsi_optim_found found;
    (void)grad;
    if (!s->count) return DS_OK;
    found = dsi_optim_imply(o, item, s);
    dsi_optim_compare(item, &found);
    dsi_optim_direct(o, s, dsi_optim_compressed_rate(item), NULL);
    return DS_OK;
}

// After a step: trust ratios are averaged, and at the freeze the momenta's sizes are taken.
static void dsi_optim_end_lamb(ds_optim *o) {
    const bool last = o->step == dsi_optim_freeze_step(o);
    double all = 0;
    size_t count = 0;
    if (o->step < 2 || o->step > dsi_optim_freeze_step(o)) return;
    for (size_t i = 0; i < o->desc.tensor_count; i++) {
        dsi_optim_item *item = &o->items[i];
        const ds_optim_params *p = item->pass.params;
        double ratio = dsi_optim_trust_ratio(p, item->pass.norm), *scalar = item->scalar;
        if (!item->count) continue;
        if (ratio != 1) scalar[DSI_OPTIM_COEFF] = p->coeff_beta * scalar[DSI_OPTIM_COEFF] + (1 - p->coeff_beta) * ratio;
        if (!last) continue;
        scalar[DSI_OPTIM_RMS] =
            sqrt(dsi_optim_tree(o->sums + 2 * item->first_grain, item->grains, 2)) / sqrt((double)item->count);
        all += scalar[DSI_OPTIM_RMS];
        count++;
    }
    for (size_t i = 0; last && i < o->desc.tensor_count; i++) {
        double *scalar = o->items[i].scalar;
        scalar[DSI_OPTIM_SCALING] = scalar[DSI_OPTIM_RMS] > 0 ? all / (double)count / scalar[DSI_OPTIM_RMS] : 1;
    }
}
// Rare, so that a device is waited for.
static ds_status dsi_optim_clear_errors(ds_optim *o) {
    o->device_status = DS_OK;
    dsi_optim_clear(o, o->worker_error, o->error_count);
    dsi_optim_clear(o, o->server_error, o->error_count / (size_t)dsi_optim_ranks(o));
    if (dsi_optim_by_kernels(o)) DSI_OPTIM_ON_DEVICE(device->synchronize(device->ctx, o->stream));
    return o->device_status ? dsi_optim_device_failed(o) : DS_OK;
}
// Called when the step count has advanced.
static ds_status dsi_optim_one_bit_end(ds_optim *o) {
    if (dsi_optim_fused(o)) dsi_optim_end_lamb(o);
    if (dsi_optim_zero_one(o) && o->step == dsi_optim_freeze_step(o))
        return dsi_optim_clear_errors(o); // they change their meaning
    return DS_OK;
}
// Sums for each grain: two of LAMB's measure, three of its compressed phase. All begins as zero.
static ds_status dsi_optim_one_bit_device(ds_optim *o, size_t whole, size_t average) {
    const ds_device *d = o->desc.device;
    const size_t sums = dsi_optim_fused(o) ? dsi_mul(3, o->grains) : 0, errors = dsi_round_up(o->error_count, 64);
    const size_t server = dsi_round_up(o->error_count / (size_t)dsi_optim_ranks(o), 64);
    const size_t floats = dsi_add(dsi_add(dsi_round_up(whole, 64), errors), dsi_add(server, average));
    ds_status status = dsi_optim_device_take(o, sums, floats);
    if (status) return status;
    o->gradient = (float *)(void *)(o->device_memory + o->sum_bytes);
    o->worker_error = o->gradient + dsi_round_up(whole, 64);
    o->server_error = o->worker_error + errors;
    o->average = o->server_error + server;
    status = d->fill(d->ctx, o->device_memory, 0, o->device_bytes, NULL);
    return status ? status : d->synchronize(d->ctx, NULL);
}
static ds_status dsi_optim_one_bit_scratch(ds_optim *o) {
    const size_t ranks = (size_t)dsi_optim_ranks(o);
    const size_t divider = ranks * (ranks % 8 == 0   ? ranks
                                    : ranks % 4 == 0 ? 2 * ranks
                                    : ranks % 2 == 0 ? 4 * ranks
                                                     : 8 * ranks);
    size_t elements = 0, largest = 0, whole = 0;
    if (!dsi_optim_compresses(o)) return DS_OK;
    for (size_t i = 0; i < o->desc.tensor_count; i++) {
        dsi_optim_item *item = &o->items[i];
        item->padded = dsi_round_up(item->count, divider);
        item->error_begin = elements;
        elements += dsi_optim_fused(o) ? item->count : item->padded;
        if (item->padded > largest) largest = item->padded;
        if (item->count > whole) whole = item->count;
        if (dsi_optim_fused(o))
            item->scalar[DSI_OPTIM_FACTOR] = 1;
        else
            item->scalar[DSI_OPTIM_INTERVAL] = item->scalar[DSI_OPTIM_LOCAL_INTERVAL] = 1;
    }
    o->error_count = dsi_round_up(elements, divider);
    if (dsi_optim_fused(o)) largest = o->error_count;
    if (dsi_optim_by_kernels(o)) return dsi_optim_one_bit_device(o, whole, largest);
    o->worker_error = (float *)dsi_optim_take(o, o->error_count, sizeof(float));
    o->server_error = (float *)dsi_optim_take(o, o->error_count / ranks, sizeof(float));
    o->average = (float *)dsi_optim_take(o, largest, sizeof(float));
    o->packed = (unsigned char *)dsi_optim_take(o, largest / 8 + sizeof(float), 1);
    o->all_packed = (unsigned char *)dsi_optim_take(o, largest / 8 + sizeof(float), ranks);
    return DS_OK;
}
DS_API size_t ds_optim_error_buffers(const ds_optim *o) {
    if (!dsi_optim_compresses(o)) return 0;
    return dsi_optim_fused(o) && o->desc.tensor_count ? 1 : o->desc.tensor_count;
}
DS_API float *ds_optim_error_buffer(ds_optim *o, size_t i, int which, size_t *count) {
    const size_t ranks = (size_t)dsi_optim_ranks(o);
    const bool fused = dsi_optim_fused(o), there = i < ds_optim_error_buffers(o);
    const size_t begin = fused || !there ? 0 : o->items[i].error_begin;
    const size_t n = !there ? 0 : fused ? o->error_count : o->items[i].padded;
    *count = 0;
    if (!there) return NULL;
    if (which == 2) { // the padding of OneBitLamb's shared buffer
        const dsi_optim_item *last = &o->items[o->desc.tensor_count - 1];
        const size_t used = fused ? last->error_begin + last->count : n;
        *count = n - used;
        return o->average + (fused ? used : 0);
    }
    *count = which ? n / ranks : n;
    return which ? o->server_error + begin / ranks : o->worker_error + begin;
}
DS_API ds_status ds_optim_reset_errors(ds_optim *o) {
    if (!dsi_optim_compresses(o)) return DS_OK;
    dsi_log(&o->desc.logger, "ds_optim", DS_LOG_WARNING, 1,
            "the error feedback of %s starts from zero: it belongs to one world size", ds_optim_type_name(o));
    return dsi_optim_clear_errors(o);
}

static void dsi_optim_fed_one_bit_adam(const ds_optim_pass *pass, const dsi_optim_feed *f, float *master,
                                       float *const *state, size_t count) {
    const ds_optim_constants *k = dsi_optim_k(pass);
    float buffer[DS_GRAIN];
    const float *grad = dsi_optim_grad(k->simd, f->grad, f->grad_dtype, f->factor, count, buffer);
    k->simd->moments(k, grad, state[0], state[1], count);
    k->simd->lamb(k, f, master, state[0], state[1], k->minus_lr, count);
}
static void dsi_optim_fed_one_bit_lamb(const ds_optim_pass *pass, const dsi_optim_feed *f, float *master,
                                       float *const *state, size_t count) {
    const ds_optim_constants *k = dsi_optim_k(pass);
    const dsi_optim_item *item = (const dsi_optim_item *)(const void *)pass->tensor; // its first member
    dsi_optim_fed_lamb(pass, f, master, state, count);
    if (pass->step != dsi_optim_freeze_step(k->o)) return;
    if (dsi_optim_takes_fresh(k->o, pass->step)) memcpy(state[2], state[1], count * sizeof(float));
    k->o->sums[2 * (item->first_grain + pass->begin / DS_GRAIN)] = dsi_optim_squares(k->simd, state[0], count);
}
// clang-format off
static const dsi_optim_entry dsi_optim_entries[] = {
    {{"Adam",        DS_OPTIM_BY_GRAIN,      2, {"exp_avg", "exp_avg_sq", NULL},                   NULL,                   NULL, NULL, NULL, false}, DSI_OPTIM_BETAS, DS_OPTIM_RULE_ADAM, NULL, NULL},
    {{"AdamW",       DS_OPTIM_BY_GRAIN,      2, {"exp_avg", "exp_avg_sq", NULL},                   NULL,                   NULL, NULL, NULL, false}, DSI_OPTIM_BETAS, DS_OPTIM_RULE_ADAM, NULL, NULL},
    {{"SGD",         DS_OPTIM_BY_GRAIN,      1, {"momentum_buffer", NULL, NULL},                   NULL,                   NULL, NULL, NULL, false}, 0, DS_OPTIM_RULE_SGD, NULL, NULL},
    {{"Adagrad",     DS_OPTIM_BY_GRAIN,      1, {"exp_avg_sq", NULL, NULL},                        NULL,                   NULL, NULL, NULL, false}, 0, DS_OPTIM_RULE_ADAGRAD, NULL, NULL},
    {{"Lion",        DS_OPTIM_BY_GRAIN,      1, {"exp_avg", NULL, NULL},                           NULL,                   NULL, NULL, NULL, false}, DSI_OPTIM_BETAS, DS_OPTIM_RULE_LION, NULL, NULL},
    {{"Lamb",        DS_OPTIM_BY_NORM,       2, {"exp_avg", "exp_avg_sq", NULL},                   dsi_optim_measure_lamb, NULL, NULL, NULL, false}, DSI_OPTIM_BETAS, DS_OPTIM_RULE_LAMB_UPDATE, dsi_optim_fed_lamb, NULL},
    {{"Muon",        DS_OPTIM_WHOLE,         1, {"momentum_buffer", NULL, NULL},                   NULL,                   NULL, NULL, NULL, false}, DSI_OPTIM_MATRIX, -1, NULL, dsi_optim_whole_muon},
    {{"OneBitAdam",  DS_OPTIM_WHOLE,         2, {"exp_avg", "exp_avg_sq", NULL},                   NULL,                   NULL, NULL, NULL, false}, DSI_OPTIM_ONE_BIT | DSI_OPTIM_BETAS, DS_OPTIM_RULE_ONE_BIT_WARM, dsi_optim_fed_one_bit_adam, dsi_optim_whole_one_bit_adam},
    {{"ZeroOneAdam", DS_OPTIM_WHOLE,         3, {"exp_avg", "exp_avg_sq", "momentum_accumulator"}, NULL,                   NULL, NULL, NULL, false}, DSI_OPTIM_ONE_BIT | DSI_OPTIM_LOCAL_STEPS | DSI_OPTIM_BETAS, DS_OPTIM_RULE_ONE_BIT_WARM, dsi_optim_fed_one_bit_adam, dsi_optim_whole_zero_one},
    {{"OneBitLamb",  DS_OPTIM_WHOLE_BY_NORM, 3, {"exp_avg", "exp_avg_sq", "exp_avg_sq_fresh"},     dsi_optim_measure_lamb, NULL, NULL, NULL, false}, DSI_OPTIM_ONE_BIT | DSI_OPTIM_BETAS, DS_OPTIM_RULE_LAMB_UPDATE, dsi_optim_fed_one_bit_lamb, dsi_optim_whole_one_bit_lamb},
};
// clang-format on
enum { DSI_OPTIM_ENTRIES = sizeof dsi_optim_entries / sizeof *dsi_optim_entries };

static const dsi_optim_entry *dsi_optim_find(const char *type) {
    for (size_t i = 0; i < DSI_OPTIM_ENTRIES; i++)
        if (dsi_optim_same(type, dsi_optim_entries[i].table.name)) return &dsi_optim_entries[i];
    return NULL;
}
DS_API ds_status ds_optim_params_default(const char *type, ds_optim_params *out) {
    static const ds_optim_params base = {1e-3, 0.9, 0.999, 1e-8, 0,  true,   false,   true,   false, false,
                                         0,    0,   10,    0.01, 0,  100000, 100000,  16,     32678, 16,
                                         0.9,  4.0, 0.5,   0.1,  -1, 3.4445, -4.7750, 2.0315, 5,     DS_OPTIM_NS_GRAM};
    const dsi_optim_entry *entry = type ? dsi_optim_find(type) : NULL;
    *out = base;
    if (!entry) return DS_ERR_INPUT;
    if (dsi_optim_same(type, "Adagrad")) out->lr = 1e-2, out->eps = 1e-10;
    if (entry->facts & DSI_OPTIM_MATRIX)
        out->lr = 0.02, out->momentum = 0.95, out->nesterov = true, out->beta2 = 0.95, out->eps = 1e-10;
    return DS_OK;
}

// >>create
static bool dsi_optim_range(double x, double low, double high) {
    return x >= low && x <= high; // false for NaN
}
// Parameters must make sense; beta may be above 1 only where a schedule puts it. Of a user's table nothing is known but
// that it has a rate.
static ds_status dsi_optim_check_params(const ds_optim_params *p, const dsi_optim_entry *entry, size_t group,
                                        ds_error *error) {
    // the last number before 1 in the type that beta is used in
    const double below_one = p->torch_adam ? 1 - DBL_EPSILON / 2 : 0.99999994;
    const char *bad = NULL;
    double value = 0;
    // clang-format off
    const struct { const char *name; double value, low, high; } rows[] = {
        {"lr", p->lr, 0, DBL_MAX}, {"beta1", p->beta1, 0, below_one}, {"beta2", p->beta2, 0, below_one}, {"eps", p->eps, 0, DBL_MAX},
        {"weight_decay", p->weight_decay, 0, DBL_MAX}, {"momentum", p->momentum, 0, DBL_MAX},
        {"dampening", p->dampening, -DBL_MAX, DBL_MAX}, {"min_coeff", p->min_coeff, 0, p->max_coeff},
        {"max_coeff", p->max_coeff, 0, DBL_MAX}, {"max_grad_norm", p->max_grad_norm, 0, DBL_MAX},
        {"freeze_step", (double)p->freeze_step, 0, 1e18}, {"var_freeze_step", (double)p->var_freeze_step, 0, 1e18},
        {"var_update_scaler", (double)p->var_update_scaler, 1, 1e18},
        {"local_step_scaler", (double)p->local_step_scaler, 1, 1e18},
        {"local_step_clipper", (double)p->local_step_clipper, 1, 1e18}, {"coeff_beta", p->coeff_beta, 0, 1},
        {"factor_min", p->factor_min, 0, p->factor_max}, {"factor_max", p->factor_max, 0, DBL_MAX},
        {"factor_threshold", p->factor_threshold, 0, DBL_MAX}, {"ns_steps", (double)p->ns_steps, 0, 1000},
        {"adam_lr", p->adam_lr, -DBL_MAX, DBL_MAX},
    };
    // clang-format on
    for (size_t i = 0; i < (entry ? sizeof rows / sizeof *rows : 1) && !bad; i++)
        if (!dsi_optim_range(rows[i].value, rows[i].low, rows[i].high)) bad = rows[i].name, value = rows[i].value;
    if (bad)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: group %zu: %s is %g, out of its range", group, bad, value);
    if (!entry || entry->rule != DS_OPTIM_RULE_SGD || !p->nesterov || (p->momentum > 0 && p->dampening == 0))
        return DS_OK;
    return dsi_fail(error, DS_ERR_ARGUMENT,
                    "ds_optim: group %zu: nesterov with momentum %g and dampening %g; it needs one above "
                    "0 and the other 0",
                    group, p->momentum, p->dampening);
}

// As many names as fit, and how many more there are.
static ds_status dsi_optim_unknown(const ds_optim_desc *desc, ds_error *error) {
    const size_t all = DSI_OPTIM_ENTRIES + desc->table_count;
    char names[400] = "";
    size_t n = 0, i = 0;
    for (; i < all; i++) {
        const char *name =
            i < DSI_OPTIM_ENTRIES ? dsi_optim_entries[i].table.name : desc->tables[i - DSI_OPTIM_ENTRIES].name;
        if (strlen(name) > sizeof names - 32 - n) break;
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", i ? ", " : "", name);
    }
    if (i < all) snprintf(names + n, sizeof names - n, " and %zu more", all - i);
    return dsi_fail(error, DS_ERR_INPUT, "ds_optim: no optimizer is named \"%.50s\"; there are %s",
                    desc->type ? desc->type : "", names);
}

// Everything that can be said about a descriptor before memory is taken.
static ds_status dsi_optim_check(const ds_optim_desc *d, ds_error *error) {
    volatile float tiny = FLT_MIN;
    volatile float flushed = tiny * 0.5f;
    if (flushed == 0) // so is a denormal to this comparison when denormals are read as zeros
        return dsi_fail(error, DS_ERR_UNSUPPORTED,
                        "ds_optim: this thread flushes denormals to zero (MXCSR FTZ or DAZ); results would differ "
                        "between machines. Clear it before training");
    if (!d->groups || !d->group_count)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: no parameter group; at least one is needed");
    if (d->tensor_count && !d->tensors) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: tensors is NULL");
    for (size_t i = 0; i < d->tensor_count; i++) {
        const ds_optim_tensor *t = &d->tensors[i];
        if (!t->name) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: tensor %zu has no name", i);
        if (t->group >= d->group_count)
            return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: tensor \"%s\" is in group %zu of %zu", t->name, t->group,
                            d->group_count);
        if (dsi_mul(t->rows, t->cols) > SIZE_MAX / 8)
            return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: tensor \"%s\" of %zu x %zu elements is too large",
                            t->name, t->rows, t->cols);
        if (!dsi_optim_is_float(t->weights_dtype))
            return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: tensor \"%s\": weights are fp32, fp16 or bf16", t->name);
    }
    for (size_t i = 0; i < d->table_count; i++)
        if (!d->tables || !d->tables[i].name)
            return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: table %zu of %zu has no name", i, d->table_count);
    if (d->group.size > 1 && !d->group.exchange)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: a group of %d ranks without exchange", d->group.size);
    return DS_OK;
}
static ds_status dsi_optim_check_table(const ds_optim_table *t, ds_error *error) {
    bool fits = t->update && t->state_count <= DS_OPTIM_MAX_STATES && t->work <= DS_OPTIM_WHOLE &&
                (t->work == DS_OPTIM_BY_NORM) == (t->measure != NULL) && (!t->compresses || t->work == DS_OPTIM_WHOLE);
    for (size_t k = 0; fits && k < t->state_count; k++) fits = t->state_names[k] != NULL;
    if (fits) return DS_OK;
    return dsi_fail(
        error, DS_ERR_ARGUMENT,
        "ds_optim: table \"%s\" needs update, at most %d states with their names, measure exactly for BY_NORM, "
        "and compresses for WHOLE only",
        t->name, DS_OPTIM_MAX_STATES);
}

static bool dsi_optim_is_hidden(const ds_optim_tensor *t) {
    static const char *const outer[] = {"embed", "wte", "wpe", "lm_head"};
    if (t->muon != DS_OPTIM_MUON_AUTO) return t->muon == DS_OPTIM_MUON_ON;
    for (size_t i = 0; i < sizeof outer / sizeof *outer; i++)
        if (strstr(t->name, outer[i])) return false;
    return t->rows > 1 && t->cols > 1;
}

static void dsi_optim_copy_text(ds_optim *o, const char **to, const char *text) {
    const size_t length = strlen(text) + 1;
    char *copy = (char *)dsi_optim_take(o, length, 1);
    if (copy) *to = (const char *)memcpy(copy, text, length);
}
// Of the user's array and its texts nothing is needed after create.
static void dsi_optim_copy_table(ds_optim *o, const ds_optim_table *table) {
    ds_optim_table *copy = (ds_optim_table *)dsi_optim_take(o, 1, sizeof *copy);
    if (!copy) return;
    o->table = (const ds_optim_table *)memcpy(copy, table, sizeof *copy);
    for (size_t k = 0; k < table->state_count; k++)
        dsi_optim_copy_text(o, &copy->state_names[k], table->state_names[k]);
    dsi_optim_copy_text(o, &copy->name, table->name);
}
static int dsi_optim_compare_names(const void *a, const void *b) {
    const dsi_optim_item *x = *(dsi_optim_item *const *)a, *y = *(dsi_optim_item *const *)b;
    return strcmp(x->tensor.name, y->tensor.name);
}
// States are told apart by their tensors' names.
static ds_status dsi_optim_sort_names(ds_optim *o, ds_error *error) {
    const size_t n = o->desc.tensor_count;
    o->by_name = (dsi_optim_item **)dsi_optim_take(o, n, sizeof *o->by_name);
    if (!o->by_name) return DS_ERR_MEMORY;
    for (size_t i = 0; i < n; i++) o->by_name[i] = &o->items[i];
    qsort(o->by_name, n, sizeof *o->by_name, dsi_optim_compare_names);
    for (size_t i = 1; i < n; i++)
        if (dsi_optim_compare_names(&o->by_name[i - 1], &o->by_name[i]) == 0)
            return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: tensors %zu and %zu are both named \"%s\"",
                            (size_t)(o->by_name[i - 1] - o->items), (size_t)(o->by_name[i] - o->items),
                            o->by_name[i]->tensor.name);
    return DS_OK;
}
// Copies groups and tensors, and settles which optimizer takes each tensor.
static ds_status dsi_optim_register(ds_optim *o, const ds_optim_desc *d) {
    const size_t groups = d->group_count;
    o->groups = (ds_optim_params *)dsi_optim_take(o, groups, sizeof *o->groups);
    o->base_lr = (double *)dsi_optim_take(o, groups, sizeof *o->base_lr);
    o->schedules = (ds_schedule *)dsi_optim_take(o, groups, sizeof *o->schedules);
    o->constants = (ds_optim_constants *)dsi_optim_take(o, dsi_mul(2, groups), sizeof *o->constants);
    o->items = (dsi_optim_item *)dsi_optim_take(o, d->tensor_count, sizeof *o->items);
    if (o->no_memory) return DS_ERR_MEMORY;
    for (size_t g = 0; g < groups; g++) o->groups[g] = d->groups[g], o->base_lr[g] = d->groups[g].lr;
    for (size_t i = 0; i < d->tensor_count; i++) {
        dsi_optim_item *item = &o->items[i];
        bool aux = dsi_optim_is(o, DSI_OPTIM_MATRIX) && !dsi_optim_is_hidden(&d->tensors[i]);
        item->tensor = d->tensors[i];
        dsi_optim_copy_text(o, &item->tensor.name, d->tensors[i].name);
        item->count = item->tensor.rows * item->tensor.cols;
        item->grains = dsi_optim_grains(item->count);
        item->first_grain = o->grains;
        o->grains += item->grains;
        item->entry = aux ? &dsi_optim_entries[0] : o->entry;
        item->table = item->entry ? &item->entry->table : o->table;
        item->constants = &o->constants[2 * item->tensor.group + aux];
        item->state_count = item->table->state_count;
        if (item->entry && item->entry->rule == DS_OPTIM_RULE_SGD && o->groups[item->tensor.group].momentum == 0)
            item->state_count = 0;
        item->pass.params = &o->groups[item->tensor.group];
        item->pass.tensor = &item->tensor;
        item->pass.group = &o->desc.group, item->pass.o = o;
        item->pass.ctx = item->entry ? (void *)&o->constants[2 * item->tensor.group + aux] : item->table->ctx;
    }
    return DS_OK;
}

static void dsi_optim_own(ds_optim *o) {
    for (size_t i = 0; i < o->desc.tensor_count; i++) {
        dsi_optim_item *item = &o->items[i];
        for (size_t k = 0; k < item->state_count; k++)
            item->state[k] = (float *)dsi_optim_take(o, item->count, sizeof(float));
        if (item->tensor.weights_dtype != DS_F32) item->master = (float *)dsi_optim_take(o, item->count, sizeof(float));
    }
}

// Scratch for the largest tensor of each kind, so that no step allocates.
static void dsi_optim_scratch(ds_optim *o) {
    const size_t ranks = (size_t)dsi_optim_ranks(o);
    size_t whole = 0;
    bool by_norm = false;
    for (size_t i = 0; i < o->desc.tensor_count; i++) {
        const dsi_optim_item *item = &o->items[i];
        if (item->table->work >= DS_OPTIM_WHOLE && item->count > whole) whole = item->count;
        if (item->table->measure) by_norm = true;
    }
    if (whole && !dsi_optim_by_kernels(o)) o->gradient = (float *)dsi_optim_take(o, whole, sizeof(float));
    if (by_norm || dsi_optim_is(o, DSI_OPTIM_MATRIX) || o->desc.own_states)
        o->sums = (double *)dsi_optim_take(o, dsi_mul(o->grains, 2), sizeof(double));
    if (o->desc.own_states && ranks > 1) o->ballots = (dsi_optim_ballot *)dsi_optim_take(o, ranks, sizeof *o->ballots);
    if (by_norm && ranks > 1)
        o->all_sums = (double *)dsi_optim_take(o, dsi_mul(dsi_mul(o->grains, 2), ranks), sizeof(double));
}

static ds_status dsi_optim_device_scratch(ds_optim *o) {
    if (!o->desc.kernels) return DS_OK;
    o->parts = (ds_optim_part *)dsi_optim_take(o, o->desc.tensor_count, sizeof(ds_optim_part));
    if (!o->table->measure || dsi_optim_fused(o)) return DS_OK; // the latter has them
    return dsi_optim_device_take(o, dsi_mul(2, o->grains), 0);
}
static ds_status dsi_optim_check_kernels(const ds_optim_desc *d, const dsi_optim_entry *entry, ds_error *error) {
    if (!d->kernels) return DS_OK;
    if (!entry || d->own_states || (entry->whole && !d->all_on_device))
        return dsi_fail(error, DS_ERR_UNSUPPORTED,
                        "ds_optim: device kernels serve Adam, AdamW, SGD, Adagrad, Lion and Lamb over slices only, and "
                        "Muon and the 1-bit family with all_on_device");
    if ((entry->whole || entry->table.measure) && !d->device)
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "ds_optim: the kernels of Lamb, Muon and the 1-bit family need desc.device");
    if ((entry->facts & DSI_OPTIM_ONE_BIT) && (d->masks || (d->group.size > 1 && !d->average.average)))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: with kernels the 1-bit family %s",
                        d->masks ? "takes no masks" : "needs desc.average for several ranks");
    return DS_OK;
}

static void dsi_optim_workers(ds_optim *o) {
    if (o->desc.tasks.parallel_for)
        o->tasks = o->desc.tasks;
    else if (o->desc.threads > 1) {
        o->pool = dsi_pool_create(&o->desc.allocator, o->desc.threads);
        if (!o->pool) o->no_memory = true;
        o->bytes += dsi_pool_bytes(o->desc.threads);
        o->tasks.parallel_for = dsi_pool_for;
        o->tasks.ctx = o->pool;
        o->tasks.workers = o->desc.threads;
    }
    if (!o->tasks.workers) o->tasks.workers = 1;
}

DS_API ds_status ds_optim_create_(const ds_optim_desc *desc, ds_optim **out, ds_error *error, int version,
                                  size_t size) {
    const ds_optim_table *table = NULL;
    const dsi_optim_entry *entry;
    ds_optim *o;
    ds_status status;
    bool named;
    if (!out) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: out is NULL");
    *out = NULL;
    if (version != DS_OPTIM_VERSION || size != sizeof(ds_optim_desc))
        return dsi_fail(error, DS_ERR_VERSION,
                        "ds_optim: the caller was compiled with version %d of the header, the implementation is %d",
                        version, DS_OPTIM_VERSION);
    if (!desc) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_optim: desc is NULL");
    if ((status = dsi_optim_check(desc, error)) != DS_OK) return status;
    entry = desc->type ? dsi_optim_find(desc->type) : NULL;
    for (size_t i = 0; desc->type && i < desc->table_count; i++)
        if (strcmp(desc->type, desc->tables[i].name) == 0) table = &desc->tables[i], entry = NULL;
    if (!table && !entry) return dsi_optim_unknown(desc, error);
    if (table && (status = dsi_optim_check_table(table, error)) != DS_OK) return status;
    for (size_t g = 0; g < desc->group_count; g++)
        if ((status = dsi_optim_check_params(&desc->groups[g], entry, g, error)) != DS_OK) return status;
    if ((status = dsi_optim_check_kernels(desc, entry, error)) != DS_OK) return status;
    if (!dsi_optim_kernels_of(desc->level))
        return dsi_fail(error, DS_ERR_UNSUPPORTED, "ds_optim: this machine lacks the SIMD level that is forced (%d)",
                        (int)desc->level);
    o = (ds_optim *)dsi_alloc_zero(&desc->allocator, sizeof *o);
    if (!o) return dsi_fail(error, DS_ERR_MEMORY, "ds_optim: no memory for the object (%zu bytes)", sizeof *o);
    o->desc = *desc;
    o->bytes = sizeof *o;
    o->entry = entry;
    o->table = entry ? &entry->table : table;
    o->simd = dsi_optim_kernels_of(desc->level);
    if (table) dsi_optim_copy_table(o, table);
    status = dsi_optim_register(o, desc);
    if (!status) status = dsi_optim_sort_names(o, error);
    named = status != DS_ERR_ARGUMENT;
    if (!status) dsi_optim_workers(o), dsi_optim_scratch(o);
    if (!status) status = dsi_optim_matrix_scratch(o);
    if (!status) status = dsi_optim_one_bit_scratch(o);
    if (!status) status = dsi_optim_device_scratch(o);
    if (!status && desc->own_states) dsi_optim_own(o);
    if (!status && o->no_memory) status = DS_ERR_MEMORY;
    if (status) {
        if (named)
            dsi_fail(error, status, "ds_optim: no memory for %s's states and scratch (%zu bytes so far)",
                     ds_optim_type_name(o), o->bytes);
        ds_optim_destroy(o);
        return status;
    }
    o->desc.groups = NULL, o->desc.tensors = NULL, o->desc.tables = NULL, o->desc.type = NULL;
    dsi_log(&o->desc.logger, "ds_optim", DS_LOG_DEBUG, 2, "%s over %zu tensors, %s", ds_optim_type_name(o),
            o->desc.tensor_count,
            o->simd->level == DS_OPTIM_LEVEL_AVX512 ? "AVX-512"
            : o->simd->level == DS_OPTIM_LEVEL_AVX2 ? "AVX2"
                                                    : "scalar");
    *out = o;
    return DS_OK;
}

DS_API void ds_optim_destroy(ds_optim *o) {
    const ds_device *d;
    if (!o) return;
    d = o->desc.device;
    dsi_pool_destroy(o->pool);
    if (o->device_memory) d->release(d->ctx, o->device_memory, o->device_bytes);
    if (o->pinned_sums) d->pinned_release(d->ctx, o->pinned_sums, o->sum_bytes);
    while (o->blocks) {
        dsi_optim_block *block = o->blocks;
        o->blocks = block->next;
        dsi_release_aligned(&o->desc.allocator, block, block->bytes, block->align);
    }
    {
        ds_allocator allocator = o->desc.allocator;
        dsi_release(&allocator, o, sizeof *o);
    }
}

DS_API const ds_error *ds_optim_error(const ds_optim *o) {
    return &o->error;
}
DS_API size_t ds_optim_find(const ds_optim *o, const char *name) {
    size_t begin = 0, end = o->desc.tensor_count;
    while (begin < end) {
        const size_t middle = begin + (end - begin) / 2;
        const int order = strcmp(name, o->by_name[middle]->tensor.name);
        if (order == 0) return (size_t)(o->by_name[middle] - o->items);
        if (order < 0)
            end = middle;
        else
            begin = middle + 1;
    }
    return SIZE_MAX;
}
DS_API size_t ds_optim_tensor_count(const ds_optim *o) {
    return o->desc.tensor_count;
}
DS_API const char *ds_optim_tensor_name(const ds_optim *o, size_t tensor) {
    return o->items[tensor].tensor.name;
}
DS_API ds_optim_work ds_optim_tensor_work(const ds_optim *o, size_t tensor) {
    return o->items[tensor].table->work;
}
DS_API size_t ds_optim_state_count(const ds_optim *o, size_t tensor) {
    return o->items[tensor].state_count;
}
DS_API const char *ds_optim_state_name(const ds_optim *o, size_t tensor, size_t k) {
    return k < o->items[tensor].state_count ? o->items[tensor].table->state_names[k] : NULL;
}
DS_API size_t ds_optim_state_count_max(const ds_optim *o) {
    size_t most = 0;
    for (size_t i = 0; i < o->desc.tensor_count; i++)
        if (o->items[i].state_count > most) most = o->items[i].state_count;
    return most;
}
DS_API size_t ds_optim_memory(const ds_optim *o) {
    return o->bytes;
}
DS_API size_t ds_optim_device_memory(const ds_optim *o, size_t *pinned) {
    *pinned = o->sum_bytes;
    return o->device_bytes;
}
DS_API ds_optim_level ds_optim_simd_level(const ds_optim *o) {
    return o->simd->level;
}
DS_API const char *ds_optim_type_name(const ds_optim *o) {
    return o->table->name;
}
DS_API double ds_optim_lr(const ds_optim *o, size_t group) {
    return o->groups[group].lr;
}
DS_API const ds_optim_params *ds_optim_group_params(const ds_optim *o, size_t group) {
    return &o->groups[group];
}
DS_API ds_status ds_optim_set_lr(ds_optim *o, size_t group, double lr) {
    if (group >= o->desc.group_count || !dsi_optim_range(lr, 0, DBL_MAX))
        return dsi_fail(&o->error, DS_ERR_ARGUMENT, "ds_optim_set_lr: group %zu of %zu, rate %g", group,
                        o->desc.group_count, lr);
    o->groups[group].lr = lr;
    return DS_OK;
}
DS_API ds_status ds_optim_set_group_params(ds_optim *o, size_t group, const ds_optim_params *params) {
    ds_status status;
    if (group >= o->desc.group_count || o->open)
        return dsi_fail(&o->error, DS_ERR_ARGUMENT, "ds_optim_set_group_params: group %zu of %zu, or a step is open",
                        group, o->desc.group_count);
    if ((status = dsi_optim_check_params(params, o->entry, group, &o->error)) != DS_OK) return status;
    if (o->entry && o->entry->rule == DS_OPTIM_RULE_SGD && (params->momentum == 0) != (o->groups[group].momentum == 0))
        return dsi_fail(&o->error, DS_ERR_STATE,
                        "ds_optim_set_group_params: momentum decides whether SGD has a state, "
                        "so it cannot become or cease to be 0");
    o->groups[group] = *params;
    return DS_OK;
}
DS_API int64_t ds_optim_step_count(const ds_optim *o) {
    return o->step;
}
// A count of steps is exact in double to 2^53, where it stays.
static bool dsi_optim_countable(int64_t count) {
    return count >= 0 && count <= (int64_t)1 << 53;
}
DS_API ds_status ds_optim_set_step_count(ds_optim *o, int64_t count) {
    if (!dsi_optim_countable(count) || o->open)
        return dsi_fail(&o->error, DS_ERR_ARGUMENT,
                        "ds_optim_set_step_count: %lld is not in 0..2^53, or a step is open", (long long)count);
    o->step = count;
    return DS_OK;
}

// >>step
// Constants are made in double and rounded once; t is exact to 2^53.
static void dsi_optim_prepare(ds_optim *o, size_t group, bool aux, float factor) {
    ds_optim_constants *k = &o->constants[2 * group + aux];
    const ds_optim_params *p = &o->groups[group];
    const double t = (double)(o->step + 1), base = o->base_lr[group];
    const double lr = aux && p->adam_lr >= 0 ? p->adam_lr * (base > 0 ? p->lr / base : 1) : p->lr;
    // each constant is consistent with the beta that the moments really use
    const double beta1 = p->torch_adam ? p->beta1 : (double)(float)p->beta1;
    const double beta2 = p->torch_adam ? p->beta2 : (double)(float)p->beta2;
    const double c1 = p->bias_correction ? 1 - pow(beta1, t) : 1, c2 = p->bias_correction ? 1 - pow(beta2, t) : 1;
    const bool one_bit = dsi_optim_is(o, DSI_OPTIM_ONE_BIT), lamb = o->table->measure && !one_bit;
    const bool decoupled = p->adam_w_mode || (o->entry && strcmp(o->entry->table.name, "AdamW") == 0);
    k->simd = o->simd;
    k->o = o;
    k->beta1 = (float)beta1, k->one_minus_beta1 = (float)(1 - beta1);
    k->beta2 = (float)beta2, k->one_minus_beta2 = (float)(1 - beta2);
    k->l2 = (float)p->weight_decay;
    k->decay = (float)(-lr * p->weight_decay);
    k->minus_lr = (float)-lr;
    k->eps_in = (float)(lamb && p->eps_inside_sqrt ? p->eps : 0);
    k->eps_out = (float)(lamb && p->eps_inside_sqrt ? 0 : p->eps);
    k->momentum = (float)p->momentum, k->gain = (float)(1 - p->dampening);
    k->nesterov = p->nesterov, k->first = o->step == 0 || p->momentum == 0;
    k->rate = one_bit ? lr : lr * sqrt(c2) / c1;
    k->adam.factor = factor;
    k->adam.beta1 = k->beta1, k->adam.one_minus_beta1 = k->one_minus_beta1;
    k->adam.beta2 = k->beta2, k->adam.one_minus_beta2 = k->one_minus_beta2;
    k->adam.l2 = decoupled ? 0 : k->l2;
    k->adam.decay = decoupled ? k->decay : 0;
    k->adam.root_correction = (float)(1 / sqrt(c2));
    k->adam.eps = (float)p->eps;
    k->adam.step_size = (float)(-lr / c1);
}

// LAMB's max_grad_norm, which clips beside the caller's own.
static double dsi_optim_own_clip(const ds_optim *o, size_t group) {
    return o->table->measure ? o->groups[group].max_grad_norm : 0;
}
// Gradients are multiplied in fp32, where a factor of 0 would drop them all, and infinity make them all overflow.
static ds_status dsi_optim_check_factor(ds_optim *o, const char *call, double inv_scale) {
    const float factor = (float)inv_scale;
    if (factor > 0 && factor <= FLT_MAX) return DS_OK;
    return dsi_fail(&o->error, DS_ERR_ARGUMENT,
                    "%s: gradients are multiplied by %g (1 / loss scale), which is %g in fp32 and must be positive and "
                    "finite there",
                    call, inv_scale, (double)factor);
}
// Whatever the norm: a limit that would only bite one day must not stop a run on that day.
static ds_status dsi_optim_refuse_clipping(ds_optim *o, const char *call) {
    return dsi_fail(&o->error, DS_ERR_UNSUPPORTED,
                    "%s: %s cannot clip while it takes local gradients (step %lld), whatever the norm: set max_norm "
                    "and max_grad_norm to 0",
                    call, ds_optim_type_name(o), (long long)o->step + 1);
}
DS_API ds_status ds_optim_begin(ds_optim *o, double inv_scale, double clip_coefficient, double grad_norm) {
    ds_status status;
    if (o->open)
        return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_begin: the step before was neither ended nor cancelled");
    if (!dsi_optim_range(inv_scale, 0, DBL_MAX) || !dsi_optim_range(clip_coefficient, 0, 1) || inv_scale == 0 ||
        !dsi_optim_range(grad_norm, 0, DBL_MAX))
        return dsi_fail(&o->error, DS_ERR_ARGUMENT,
                        "ds_optim_begin: inv_scale %g must be positive, clip_coefficient %g in 0..1, grad_norm %g not "
                        "negative, all finite; skip a step that overflowed",
                        inv_scale, clip_coefficient, grad_norm);
    if ((status = dsi_optim_check_factor(o, "ds_optim_begin", inv_scale)) != DS_OK) return status;
    for (size_t g = 0; g < o->desc.group_count; g++)
        if (!dsi_optim_range(o->groups[g].lr, -DBL_MAX, DBL_MAX) ||
            !dsi_optim_range(o->groups[g].beta1, -DBL_MAX, DBL_MAX))
            return dsi_fail(
                &o->error, DS_ERR_ARGUMENT,
                "ds_optim_begin: group %zu: its schedule gives the rate %g and beta1 %g, which must be finite", g,
                o->groups[g].lr, o->groups[g].beta1);
    for (size_t g = 0; g < o->desc.group_count; g++) {
        const double clip = clip_coefficient * ds_optim_clip_coefficient(grad_norm, dsi_optim_own_clip(o, g));
        if ((clip < 1 || dsi_optim_own_clip(o, g) > 0) && ds_optim_refuses_clipping(o))
            return dsi_optim_refuse_clipping(o, "ds_optim_begin");
        for (int aux = 0; aux < 2; aux++) dsi_optim_prepare(o, g, aux != 0, (float)(inv_scale * clip));
    }
    for (size_t i = 0; i < o->desc.tensor_count; i++) o->items[i].pass.step = o->step + 1;
    for (size_t i = 0; o->table->measure && i < 2 * o->grains; i++)
        memcpy(&o->sums[i], &dsi_optim_unmeasured, sizeof *o->sums);
    o->open = true;
    o->combined = false;
    return DS_OK;
}

// Is this tensor, in this step, taken as a whole?
static bool dsi_optim_now_whole(const ds_optim *o, const dsi_optim_item *item) {
    if (item->table->work < DS_OPTIM_WHOLE) return false;
    return !dsi_optim_is(o, DSI_OPTIM_ONE_BIT) || dsi_optim_compressing(o);
}

static ds_status dsi_optim_check_slices(ds_optim *o, const char *call, const ds_optim_slice *slices, size_t count) {
    if (!o->open) return dsi_fail(&o->error, DS_ERR_STATE, "%s: no step is open; call ds_optim_begin", call);
    for (size_t i = 0; i < count; i++) {
        const ds_optim_slice *s = &slices[i];
        const dsi_optim_item *item;
        const char *wrong = NULL;
        if (s->tensor >= o->desc.tensor_count)
            return dsi_fail(&o->error, DS_ERR_ARGUMENT, "%s: slice %zu is of tensor %zu of %zu", call, i, s->tensor,
                            o->desc.tensor_count);
        item = &o->items[s->tensor];
        if (s->begin > item->count || s->count > item->count - s->begin)
            wrong = "reaches past the tensor's end";
        else if (s->begin % DS_GRAIN || (s->count % DS_GRAIN && s->begin + s->count != item->count))
            wrong = "is not cut at a multiple of DS_GRAIN";
        else if (item->table->work >= DS_OPTIM_WHOLE && s->count != item->count)
            wrong = "must be the whole tensor for this optimizer";
        else if (s->count && (!s->master || !s->grad))
            wrong = "lacks master or grad";
        else if (!dsi_optim_is_float(s->grad_dtype))
            wrong = "has a gradient that is not fp32, fp16 or bf16";
        else if (s->weights16 && s->weights16_dtype != DS_F16 && s->weights16_dtype != DS_BF16)
            wrong = "has weights16 that are not fp16 or bf16";
        else if (s->on_host != slices[0].on_host || (s->on_host && o->desc.all_on_device))
            wrong = "is of host memory, and the first one or desc.all_on_device says otherwise";
        for (size_t k = 0; !wrong && k < item->state_count; k++)
            if (s->count && !s->state[k]) wrong = "lacks a state";
        if (wrong)
            return dsi_fail(&o->error, DS_ERR_ARGUMENT, "%s: slice %zu (\"%s\" of %zu elements, from %zu, %zu long) %s",
                            call, i, item->tensor.name, item->count, s->begin, s->count, wrong);
    }
    return DS_OK;
}

// What is done to each grain. WIDEN and NARROW serve tensors that are taken whole: their gradient in fp32, and their 16-bit
// weights.
typedef enum dsi_optim_what {
    DSI_OPTIM_NORM,
    DSI_OPTIM_WIDEN,
    DSI_OPTIM_NARROW,
    DSI_OPTIM_MEASURE,
    DSI_OPTIM_UPDATE
} dsi_optim_what;
typedef struct dsi_optim_job {
    ds_optim *o;
    const ds_optim_slice *slices;
    size_t count;
    dsi_optim_what what;
    float factor; // DSI_OPTIM_NORM
} dsi_optim_job;

static size_t dsi_optim_slice_grains(const dsi_optim_job *job, const ds_optim_slice *s) {
    return job->what >= DSI_OPTIM_MEASURE && dsi_optim_now_whole(job->o, &job->o->items[s->tensor])
               ? 0
               : dsi_optim_grains(s->count);
}

// Of the updates that fail in a call, on whatever threads, the first is kept.
static void dsi_optim_note(ds_optim *o, const dsi_optim_item *item, ds_status status) {
    size_t none = 0;
    const size_t tensor = 1 + (size_t)(item - o->items);
    if (status && __atomic_compare_exchange_n(&o->failed, &none, tensor, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        o->failed_status = status;
}
static ds_status dsi_optim_failed(ds_optim *o) {
    if (!o->failed) return DS_OK;
    if (o->error.status == o->failed_status) return o->failed_status; // a call of the header's, which said more
    return dsi_fail(&o->error, o->failed_status, "ds_optim_apply: table \"%s\" failed on \"%s\" (status %d)",
                    o->table->name, o->items[o->failed - 1].tensor.name, (int)o->failed_status);
}
enum { DSI_OPTIM_PAST_CACHES = 1 << 20 }; // elements of a slice
static void dsi_optim_grain(const dsi_optim_job *job, const ds_optim_slice *s, size_t grain) {
    ds_optim *o = job->o;
    const dsi_optim_item *item = &o->items[s->tensor];
    const size_t at = grain * DS_GRAIN, n = s->count - at < DS_GRAIN ? s->count - at : DS_GRAIN;
    double *sums = o->sums ? o->sums + 2 * (item->first_grain + s->begin / DS_GRAIN + grain) : NULL;
    const float factor = item->constants->adam.factor;
    float buffer[DS_GRAIN], *state[DS_OPTIM_MAX_STATES] = {NULL, NULL, NULL};
    dsi_optim_feed f = {
        dsi_optim_at(s->grad, s->grad_dtype, at), s->grad_dtype, s->weights16_dtype, factor, false, NULL};
    ds_optim_pass pass;
    if (s->weights16) f.out = (char *)s->weights16 + at * DS_DTYPE_SIZE(s->weights16_dtype);
    f.past = s->count >= DSI_OPTIM_PAST_CACHES && (uintptr_t)f.out % 64 == 0;
    pass = item->pass;
    pass.begin = s->begin + at;
    for (size_t k = 0; k < item->state_count; k++) state[k] = s->state[k] + at;
    if (job->what == DSI_OPTIM_WIDEN)
        o->simd->widen(o->gradient + at, f.grad, f.grad_dtype, factor, n);
    else if (job->what == DSI_OPTIM_NARROW)
        o->simd->narrow(f.out, f.out_dtype, s->master + at, n);
    else if (job->what == DSI_OPTIM_MEASURE && item->entry) // LAMB's, which takes the gradient as it is
        o->simd->measure(item->constants, &f, s->master + at, state[0], state[1], n, sums);
    else if (job->what == DSI_OPTIM_MEASURE) {
        const float *grad = dsi_optim_grad(o->simd, f.grad, f.grad_dtype, factor, n, buffer);
        item->table->measure(&pass, grad, s->master + at, state, n, sums);
    } else if (dsi_optim_is(o, DSI_OPTIM_ONE_BIT) && o->step == 0) { // that step only counts
        if (f.out) o->simd->narrow(f.out, f.out_dtype, s->master + at, n);
    } else if (item->entry && item->entry->fed)
        item->entry->fed(&pass, &f, s->master + at, state, n);
    else if (item->entry)
        o->simd->update[item->entry->rule](item->constants, &f, s->master + at, state[0], state[1], n);
    else {
        const float *grad = dsi_optim_grad(o->simd, f.grad, f.grad_dtype, factor, n, buffer);
        dsi_optim_note(o, item, item->table->update(&pass, grad, s->master + at, state, n));
        if (f.out) o->simd->narrow(f.out, f.out_dtype, s->master + at, n);
    }
}

static void dsi_optim_norm_of(const dsi_optim_job *job, const ds_optim_slice *s, size_t begin, size_t end) {
    const size_t at = begin * DS_GRAIN, n = (end * DS_GRAIN < s->count ? end * DS_GRAIN : s->count) - at;
    const ds_optim *o = job->o;
    double *sums = o->sums + 2 * (o->items[s->tensor].first_grain + s->begin / DS_GRAIN + begin);
    dsi_optim_norms(o->simd, dsi_optim_at(s->grad, s->grad_dtype, at), s->grad_dtype, n, job->factor, sums, 2);
}

// Grains of all slices in one row, cut among the workers.
static void dsi_optim_share(void *arg, size_t begin, size_t end, unsigned worker) {
    const dsi_optim_job *job = (const dsi_optim_job *)arg;
    size_t first = 0;
    (void)worker;
    for (size_t i = 0; i < job->count && first < end; i++) {
        const size_t n = dsi_optim_slice_grains(job, &job->slices[i]), from = begin > first ? begin - first : 0;
        const size_t to = end - first < n ? end - first : n;
        if (job->what == DSI_OPTIM_NORM && from < to) dsi_optim_norm_of(job, &job->slices[i], from, to);
        for (size_t g = from; g < to && job->what != DSI_OPTIM_NORM; g++) dsi_optim_grain(job, &job->slices[i], g);
        first += n;
    }
#if DSI_OPTIM_X86
    _mm_sfence(); // what went past the caches is there for other threads too
#endif
}
static void dsi_optim_run(ds_optim *o, dsi_optim_what what, float factor, const ds_optim_slice *slices, size_t count) {
    dsi_optim_job job;
    size_t grains = 0;
    job.o = o, job.slices = slices, job.count = count, job.what = what, job.factor = factor;
    for (size_t i = 0; i < count; i++) grains += dsi_optim_slice_grains(&job, &slices[i]);
    dsi_optim_parallel(o, grains, dsi_optim_share, &job);
}

// A tensor as a whole: its gradient in fp32, the optimizer's own parallelism, the 16-bit weights.
static ds_status dsi_optim_whole(ds_optim *o, const ds_optim_slice *s) {
    dsi_optim_item *item = &o->items[s->tensor];
    ds_optim_pass pass = item->pass;
    ds_status status;
    dsi_optim_run(o, DSI_OPTIM_WIDEN, 0, s, 1);
    if (item->entry)
        status = item->entry->whole(o, item, s, o->gradient);
    else {
        dsi_optim_note(o, item, item->table->update(&pass, o->gradient, s->master, s->state, s->count));
        status = dsi_optim_failed(o);
    }
    if (!status && s->weights16) dsi_optim_run(o, DSI_OPTIM_NARROW, 0, s, 1);
    return status;
}
static void dsi_optim_give_on_device(ds_optim *o, const ds_optim_slice *s) {
    if (s->weights16 && s->count)
        DSI_OPTIM_ON_DEVICE(
            table->cast(table->ctx, s->weights16, s->weights16_dtype, s->master, DS_F32, s->count, o->stream));
}
static ds_status dsi_optim_whole_on_device(ds_optim *o, bool measure, const ds_optim_slice *s) {
    dsi_optim_item *item = &o->items[s->tensor];
    ds_status status = DS_OK;
    DSI_OPTIM_ON_DEVICE(table->cast(table->ctx, o->gradient, DS_F32, s->grad, s->grad_dtype, s->count, o->stream));
    dsi_optim_times(o, o->gradient, item->constants->adam.factor, s->count);
    if (measure)
        dsi_optim_fuse(o, s, o->gradient);
    else if (!(status = item->entry->whole(o, item, s, o->gradient)))
        dsi_optim_give_on_device(o, s);
    return status;
}
// 1-bit LAMB's last step of the warm-up: as dsi_optim_fed_one_bit_lamb.
static void dsi_optim_freeze_on_device(ds_optim *o, const ds_optim_slice *s) {
    const dsi_optim_item *item = &o->items[s->tensor];
    const double *sums;
    if (!s->count) return;
    if (dsi_optim_takes_fresh(o, o->step + 1)) dsi_optim_move(o, s->state[2], s->state[1], s->count);
    DSI_OPTIM_ON_DEVICE(table->norm_grains(table->ctx, s->state[0], DS_F32, s->count, 1.0f, o->device_sums, o->stream));
    sums = dsi_optim_sums(o, item->grains);
    for (size_t g = 0; g < item->grains && !o->device_status; g++) o->sums[2 * (item->first_grain + g)] = sums[g];
}

static bool dsi_optim_takes_kernels(const ds_optim *o, const ds_optim_slice *slices, size_t count) {
    return o->desc.kernels && count && !slices[0].on_host;
}
static void dsi_optim_part_of(ds_optim *o, ds_optim_rule rule, const ds_optim_slice *s, ds_optim_part *part) {
    const dsi_optim_item *item = &o->items[s->tensor];
    const ds_optim_constants *k = item->constants;
    part->slice = *s;
    part->rate = k->minus_lr, part->sums = NULL;
    if (rule == DS_OPTIM_RULE_LAMB_MEASURE) part->sums = o->device_sums + 2 * (item->first_grain + s->begin / DS_GRAIN);
    if (rule == DS_OPTIM_RULE_LAMB_UPDATE)
        part->rate = dsi_optim_now_whole(o, item)
                         ? dsi_optim_compressed_rate(item)
                         : (float)(-k->rate * dsi_optim_trust_ratio(item->pass.params, item->pass.norm));
    if (rule == DS_OPTIM_RULE_ONE_BIT_LAMB) {
        part->slice.grad = o->average + item->error_begin, part->slice.grad_dtype = DS_F32;
        part->rate = (float)item->scalar[DSI_OPTIM_SCALING];
        part->sums = o->device_sums + 3 * item->first_grain;
    }
}
// Slices that share constants, and so a rule, are one call of the table. A negative rule: their optimizer's, of those that are
// not taken whole.
static void dsi_optim_by_rule(ds_optim *o, int given, const ds_optim_slice *slices, size_t count) {
    for (size_t g = 0; g < 2 * o->desc.group_count; g++) {
        const ds_optim_constants *k = &o->constants[g];
        ds_optim_rule rule = (ds_optim_rule)given;
        size_t n = 0;
        for (size_t i = 0; i < count; i++) {
            const dsi_optim_item *item = &o->items[slices[i].tensor];
            if (item->constants != k || !slices[i].count || (given < 0 && dsi_optim_now_whole(o, item))) continue;
            if (given < 0) rule = (ds_optim_rule)item->entry->rule;
            dsi_optim_part_of(o, rule, &slices[i], &o->parts[n]);
            if (++n < o->desc.tensor_count) continue;
            DSI_OPTIM_ON_DEVICE(table->update(table->ctx, rule, k, o->parts, n, o->stream));
            n = 0;
        }
        if (n) DSI_OPTIM_ON_DEVICE(table->update(table->ctx, rule, k, o->parts, n, o->stream));
    }
}
// 1-bit LAMB's compressed phase: as dsi_optim_whole_one_bit_lamb, all tensors at once.
static void dsi_optim_lamb_on_device(ds_optim *o, const ds_optim_slice *slices, size_t count) {
    const double *sums;
    dsi_optim_by_rule(o, DS_OPTIM_RULE_ONE_BIT_LAMB, slices, count);
    sums = dsi_optim_sums(o, 3 * o->grains);
    for (size_t i = 0; i < count && !o->device_status; i++) {
        dsi_optim_item *item = &o->items[slices[i].tensor];
        dsi_optim_found found = {0, 0, 0};
        for (const double *at = sums + 3 * item->first_grain; at < sums + 3 * (item->first_grain + item->grains);
             at += 3) {
            found.plain += at[0], found.squares += at[1];
            if (at[2] > found.ratio) found.ratio = at[2];
        }
        if (item->count) dsi_optim_compare(item, &found);
    }
    if (!o->device_status) dsi_optim_by_rule(o, DS_OPTIM_RULE_LAMB_UPDATE, slices, count);
}
static ds_status dsi_optim_on_device(ds_optim *o, bool measure, const ds_optim_slice *slices, size_t count,
                                     void *stream) {
    const bool compressed = dsi_optim_fused(o) && dsi_optim_compressing(o);
    ds_status status = DS_OK;
    o->stream = stream, o->device_status = DS_OK;
    if (dsi_optim_is(o, DSI_OPTIM_ONE_BIT) && o->step == 0) { // as on the CPU, that step does no more
        for (size_t i = 0; i < count; i++) dsi_optim_give_on_device(o, &slices[i]);
    } else if (compressed && !measure) {
        dsi_optim_lamb_on_device(o, slices, count);
    } else {
        for (size_t i = 0; i < count && !status; i++)
            if (dsi_optim_now_whole(o, &o->items[slices[i].tensor]))
                status = dsi_optim_whole_on_device(o, measure, &slices[i]);
        if (!status && !compressed) dsi_optim_by_rule(o, measure ? DS_OPTIM_RULE_LAMB_MEASURE : -1, slices, count);
    }
    for (size_t i = 0; i < count && !measure && dsi_optim_fused(o) && o->step + 1 == dsi_optim_freeze_step(o); i++)
        dsi_optim_freeze_on_device(o, &slices[i]);
    return o->device_status ? dsi_optim_device_failed(o) : status;
}
static ds_status dsi_optim_measure_on_device(ds_optim *o, const ds_optim_slice *slices, size_t count, void *stream) {
    const ds_status status = dsi_optim_on_device(o, true, slices, count, stream);
    const double *sums;
    if (status || (dsi_optim_fused(o) && dsi_optim_compressing(o))) return status; // the latter fused momenta
    sums = dsi_optim_sums(o, 2 * o->grains);
    if (o->device_status) return dsi_optim_device_failed(o);
    for (size_t i = 0; i < count; i++) {
        const size_t at = 2 * (o->items[slices[i].tensor].first_grain + slices[i].begin / DS_GRAIN);
        memcpy(o->sums + at, sums + at, 2 * sizeof(double) * dsi_optim_grains(slices[i].count));
    }
    return DS_OK;
}

DS_API ds_status ds_optim_measure(ds_optim *o, const ds_optim_slice *slices, size_t count) {
    return ds_optim_measure_on(o, slices, count, NULL);
}
DS_API ds_status ds_optim_measure_on(ds_optim *o, const ds_optim_slice *slices, size_t count, void *stream) {
    ds_status status = dsi_optim_check_slices(o, "ds_optim_measure", slices, count);
    if (status) return status;
    for (size_t i = 0; i < count; i++)
        if (!o->items[slices[i].tensor].table->measure)
            return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_measure: \"%s\" needs no norms",
                            o->items[slices[i].tensor].tensor.name);
    if (o->combined) return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_measure: norms were combined already");
    if (dsi_optim_is(o, DSI_OPTIM_ONE_BIT) && o->step == 0) return DS_OK;
    if (dsi_optim_takes_kernels(o, slices, count)) return dsi_optim_measure_on_device(o, slices, count, stream);
    dsi_optim_run(o, DSI_OPTIM_MEASURE, 0, slices, count);
    for (size_t i = 0; i < count; i++)
        if (dsi_optim_now_whole(o, &o->items[slices[i].tensor])) {
            dsi_optim_run(o, DSI_OPTIM_WIDEN, 0, &slices[i], 1);
            dsi_optim_fuse(o, &slices[i], o->gradient);
        }
    return DS_OK;
}

// A grain counts once, however many ranks measured it: the lowest rank's numbers stand.
static ds_status dsi_optim_gather(ds_optim *o) {
    const size_t n = 2 * o->grains, ranks = (size_t)dsi_optim_ranks(o);
    ds_status status;
    if (ranks == 1 || !n) return DS_OK;
    status = o->desc.group.exchange(o->desc.group.ctx, o->sums, o->all_sums, n * sizeof(double));
    if (status) return dsi_fail(&o->error, status, "ds_optim_combine: the exchange of norms failed");
    for (size_t i = 0; i < n; i++)
        for (size_t r = ranks; r--;)
            if (dsi_optim_measured(&o->all_sums[r * n + i])) o->sums[i] = o->all_sums[r * n + i];
    return DS_OK;
}
DS_API ds_status ds_optim_combine(ds_optim *o) {
    ds_status status;
    if (!o->open || o->combined)
        return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_combine: no step is open, or it was combined already");
    if (dsi_optim_is(o, DSI_OPTIM_ONE_BIT) && (o->step == 0 || dsi_optim_compressing(o))) {
        if (o->table->measure && o->step > 0 && (status = dsi_optim_average_fused(o)) != DS_OK) return status;
        o->combined = true;
        return DS_OK;
    }
    if ((status = dsi_optim_gather(o)) != DS_OK) return status;
    for (size_t i = 0; i < o->desc.tensor_count; i++) {
        dsi_optim_item *item = &o->items[i];
        double *sums = o->sums + 2 * item->first_grain;
        if (!item->table->measure) continue;
        for (size_t g = 0; g < item->grains; g++)
            if (!dsi_optim_measured(&sums[2 * g]))
                return dsi_fail(&o->error, DS_ERR_STATE,
                                "ds_optim_combine: elements %zu on of \"%s\" were not measured", g * DS_GRAIN,
                                item->tensor.name);
        item->pass.norm[0] = sqrt(dsi_optim_tree(sums, item->grains, 2));
        item->pass.norm[1] = sqrt(dsi_optim_tree(sums + 1, item->grains, 2));
    }
    o->combined = true;
    return DS_OK;
}

DS_API ds_status ds_optim_apply_on(ds_optim *o, const ds_optim_slice *slices, size_t count, void *stream) {
    ds_status status = dsi_optim_check_slices(o, "ds_optim_apply", slices, count);
    if (status) return status;
    for (size_t i = 0; i < count; i++)
        if (o->items[slices[i].tensor].table->measure && !o->combined)
            return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_apply: \"%s\" needs ds_optim_measure and combine first",
                            o->items[slices[i].tensor].tensor.name);
    if (dsi_optim_takes_kernels(o, slices, count)) return dsi_optim_on_device(o, false, slices, count, stream);
    o->failed = 0;
    if (!o->entry) o->error.status = DS_OK; // so that a text of before is not taken for this call's
    dsi_optim_run(o, DSI_OPTIM_UPDATE, 0, slices, count);
    status = dsi_optim_failed(o);
    for (size_t i = 0; i < count && !status; i++)
        if (dsi_optim_now_whole(o, &o->items[slices[i].tensor])) status = dsi_optim_whole(o, &slices[i]);
    return status;
}
DS_API ds_status ds_optim_apply(ds_optim *o, const ds_optim_slice *slices, size_t count) {
    return ds_optim_apply_on(o, slices, count, NULL);
}
DS_API ds_status ds_optim_end(ds_optim *o) {
    if (!o->open) return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_end: no step is open");
    if (dsi_optim_countable(o->step + 1)) o->step++; // its own save is read again
    o->open = false;
    return dsi_optim_one_bit_end(o);
}
DS_API void ds_optim_cancel(ds_optim *o) {
    o->open = false;
}

// >>simple path
static ds_optim_slice dsi_optim_slice_of(ds_optim *o, const ds_optim_io *io, size_t i) {
    const dsi_optim_item *item = &o->items[i];
    ds_optim_slice s;
    memset(&s, 0, sizeof s);
    s.tensor = i;
    s.count = item->count;
    s.master = item->master ? item->master : (float *)io->weights;
    for (size_t k = 0; k < item->state_count; k++) s.state[k] = item->state[k];
    s.grad = io->grad, s.grad_dtype = io->grad_dtype;
    if (item->master) s.weights16 = io->weights, s.weights16_dtype = io->weights_dtype;
    return s;
}
static ds_status dsi_optim_check_io(ds_optim *o, const ds_optim_io *io) {
    if (!o->desc.own_states)
        return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_step: the object was created without own_states");
    if (o->open) return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_step: a step is open");
    for (size_t i = 0; i < o->desc.tensor_count; i++)
        if (io[i].weights_dtype != o->items[i].tensor.weights_dtype || !dsi_optim_is_float(io[i].grad_dtype) ||
            (o->items[i].count && (!io[i].weights || !io[i].grad)))
            return dsi_fail(&o->error, DS_ERR_ARGUMENT,
                            "ds_optim_step: \"%s\" lacks weights or gradient, or has them in another type than it was "
                            "registered with",
                            o->items[i].tensor.name);
    return DS_OK;
}
// All tensors, in batches, so that many small ones are shared among the workers.
static ds_status dsi_optim_pass_over(ds_optim *o, const ds_optim_io *io, dsi_optim_what what, float factor) {
    enum { BATCH = 64 };
    ds_optim_slice slices[BATCH];
    ds_status status = DS_OK;
    for (size_t i = 0; i < o->desc.tensor_count && !status;) {
        size_t n = 0;
        for (; i < o->desc.tensor_count && n < BATCH; i++) slices[n++] = dsi_optim_slice_of(o, &io[i], i);
        if (what == DSI_OPTIM_NORM)
            dsi_optim_run(o, what, factor, slices, n);
        else if (what == DSI_OPTIM_MEASURE)
            status = ds_optim_measure(o, slices, n);
        else
            status = ds_optim_apply(o, slices, n);
    }
    return status;
}
// The global norm, and the first tensor whose share of it is not finite.
static double dsi_optim_global_norm(ds_optim *o, const ds_optim_io *io, float inv_scale, size_t *overflow) {
    double sum = 0;
    *overflow = SIZE_MAX;
    (void)dsi_optim_pass_over(o, io, DSI_OPTIM_NORM, inv_scale);
    for (size_t i = 0; i < o->desc.tensor_count; i++) {
        double part = dsi_optim_tree(o->sums + 2 * o->items[i].first_grain, o->items[i].grains, 2);
        if (!(part <= DBL_MAX) && *overflow == SIZE_MAX) *overflow = i;
        sum += part;
    }
    return sqrt(sum);
}

// Ranks must skip and clip alike, even where each has a gradient of its own: the largest norm stands for all, and the first
// tensor that overflowed on any of them.
static ds_status dsi_optim_agree(ds_optim *o, double *norm, size_t *overflow) {
    dsi_optim_ballot mine;
    ds_status status;
    if (!o->ballots) return DS_OK;
    memset(&mine, 0, sizeof mine);
    mine.norm = *norm, mine.overflow = *overflow == SIZE_MAX ? UINT64_MAX : *overflow;
    status = o->desc.group.exchange(o->desc.group.ctx, &mine, o->ballots, sizeof mine);
    if (status) return dsi_fail(&o->error, status, "ds_optim_step: the exchange of norms failed");
    for (size_t r = 0; r < (size_t)dsi_optim_ranks(o); r++) {
        if (!(o->ballots[r].norm <= *norm)) *norm = o->ballots[r].norm; // NaN, too
        if (o->ballots[r].overflow < *overflow) *overflow = (size_t)o->ballots[r].overflow;
    }
    if (*overflow != SIZE_MAX) *norm = INFINITY;
    return DS_OK;
}

DS_API ds_status ds_optim_step(ds_optim *o, const ds_optim_io *io, const ds_optim_options *options,
                               ds_optim_report *report) {
    static const ds_optim_options none = {0, NULL, false};
    const ds_optim_options *p = options ? options : &none;
    ds_optim_report local, *r = report ? report : &local;
    ds_status status = dsi_optim_check_io(o, io);
    bool clips = p->max_norm > 0;
    r->skipped = DS_OPTIM_STEPPED, r->overflow_tensor = SIZE_MAX, r->grad_norm = 0, r->clip_coefficient = 1;
    r->loss_scale = p->scaler ? p->scaler->scale : 1;
    if (status) return status;
    if (!dsi_optim_range(p->max_norm, 0, INFINITY))
        return dsi_fail(&o->error, DS_ERR_ARGUMENT, "ds_optim_step: max_norm is %g; 0 is off, else it is positive",
                        p->max_norm);
    if ((status = dsi_optim_check_factor(o, "ds_optim_step", 1 / r->loss_scale)) != DS_OK) return status;
    for (size_t g = 0; g < o->desc.group_count; g++) clips = clips || dsi_optim_own_clip(o, g) > 0;
    if (p->unchecked && (clips || p->scaler))
        return dsi_fail(&o->error, DS_ERR_ARGUMENT,
                        "ds_optim_step: unchecked leaves out the norm that max_norm, max_grad_norm or a scaler needs");
    if (clips && ds_optim_refuses_clipping(o)) return dsi_optim_refuse_clipping(o, "ds_optim_step");
    if (clips && dsi_optim_is(o, DSI_OPTIM_ONE_BIT) && !o->clipping_told) {
        o->clipping_told = true;
        dsi_log(
            &o->desc.logger, "ds_optim", DS_LOG_WARNING, 4,
            "%s clips in its warm-up only: a step with max_norm or max_grad_norm is refused from the one on that takes "
            "local gradients (%lld at the latest)",
            ds_optim_type_name(o), (long long)dsi_optim_freeze_step(o) + 1);
    }
    for (size_t i = 0; i < o->desc.tensor_count; i++) {
        dsi_optim_item *item = &o->items[i];
        if (!item->master || item->master_set) continue;
        o->simd->widen(item->master, io[i].weights, io[i].weights_dtype, 1.0f, item->count);
        item->master_set = true;
    }
    if (!p->unchecked) {
        r->grad_norm = dsi_optim_global_norm(o, io, (float)(1 / r->loss_scale), &r->overflow_tensor);
        if ((status = dsi_optim_agree(o, &r->grad_norm, &r->overflow_tensor)) != DS_OK) return status;
        r->clip_coefficient = ds_optim_clip_coefficient(r->grad_norm, p->max_norm);
        if (!(r->grad_norm <= DBL_MAX))
            r->skipped = DS_OPTIM_OVERFLOW, r->clip_coefficient = 1, r->grad_norm = (double)INFINITY;
    }
    if (r->skipped) {
        const char *name = o->items[r->overflow_tensor].tensor.name;
        dsi_log(&o->desc.logger, "ds_optim", DS_LOG_INFO, 3, "step skipped: the gradient of \"%s\" is not finite",
                name);
        if (p->scaler && ds_loss_scaler_update(p->scaler, true))
            return dsi_fail(&o->error, DS_ERR_NUMERIC,
                            "ds_optim_step: the gradient of \"%s\" overflows at the smallest loss scale, %g", name,
                            p->scaler->scale);
        return DS_OK;
    }
    status = ds_optim_begin(o, 1 / r->loss_scale, r->clip_coefficient, r->grad_norm);
    if (!status && o->table->measure) status = dsi_optim_pass_over(o, io, DSI_OPTIM_MEASURE, 0);
    if (!status && o->table->measure) status = ds_optim_combine(o);
    if (!status) status = dsi_optim_pass_over(o, io, DSI_OPTIM_UPDATE, 0);
    if (status) {
        ds_optim_cancel(o);
        return status;
    }
    (void)ds_optim_end(o); /* it is open */
    return p->scaler ? ds_loss_scaler_update(p->scaler, false) : DS_OK;
}

DS_API float *ds_optim_own_state(ds_optim *o, size_t tensor, size_t k) {
    return k < o->items[tensor].state_count ? o->items[tensor].state[k] : NULL;
}
DS_API float *ds_optim_own_master(ds_optim *o, size_t tensor) {
    return o->items[tensor].master_set ? o->items[tensor].master : NULL;
}
DS_API float *ds_optim_named_state(ds_optim *o, const char *tensor, const char *state, size_t *count) {
    const size_t i = ds_optim_find(o, tensor);
    float *found = NULL;
    if (i != SIZE_MAX && strcmp(state, "master") == 0) found = ds_optim_own_master(o, i);
    for (size_t k = 0; i != SIZE_MAX && k < o->items[i].state_count; k++)
        if (strcmp(state, o->items[i].table->state_names[k]) == 0) found = o->items[i].state[k];
    *count = found ? o->items[i].count : 0;
    return found;
}
DS_API ds_status ds_optim_set_master(ds_optim *o, size_t tensor, const float *values) {
    dsi_optim_item *item = &o->items[tensor];
    if (!item->master)
        return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_set_master: \"%s\" has no master of its own",
                        item->tensor.name);
    memcpy(item->master, values, item->count * sizeof(float));
    item->master_set = true;
    return DS_OK;
}

// >>saving
static void dsi_optim_put64(unsigned char *out, size_t word, uint64_t value) {
    for (int i = 0; i < 8; i++) out[word * 8 + (size_t)i] = (unsigned char)(value >> (8 * i));
}
static uint64_t dsi_optim_get64(const unsigned char *in, size_t word) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value |= (uint64_t)in[word * 8 + (size_t)i] << (8 * i);
    return value;
}
static double dsi_optim_get_double(const unsigned char *in, size_t word) {
    const uint64_t bits = dsi_optim_get64(in, word);
    double value;
    memcpy(&value, &bits, 8);
    return value;
}
// FNV-1a over what the saved words belong to: the optimizer, and each tensor's name and shape.
static uint64_t dsi_optim_hash(uint64_t h, const char *text, size_t a, size_t b) {
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001B3u;
    return ((h ^ a) * 0x100000001B3u ^ b) * 0x100000001B3u;
}
static uint64_t dsi_optim_identity(const ds_optim *o) {
    uint64_t h = dsi_optim_hash(0xCBF29CE484222325u, ds_optim_type_name(o), o->desc.tensor_count, DSI_OPTIM_SCALARS);
    for (size_t i = 0; i < o->desc.tensor_count; i++)
        h = dsi_optim_hash(h, o->items[i].tensor.name, o->items[i].tensor.rows, o->items[i].tensor.cols);
    return h;
}
// Each tensor of the 1-bit family is one word for its name and shape, and its scalars; the first format had these alone, and
// the tensors' identity in the head.
enum { DSI_OPTIM_HEAD = 4, DSI_OPTIM_ROW = 1 + DSI_OPTIM_SCALARS };
static const uint64_t dsi_optim_magic[2] = {0x31305454504F5344u, 0x32305454504F5344u}; // "DSOPTT01", "DSOPTT02"
static uint64_t dsi_optim_kind(const ds_optim *o) {
    return dsi_optim_hash(0xCBF29CE484222325u, ds_optim_type_name(o), 0, DSI_OPTIM_SCALARS);
}
static uint64_t dsi_optim_tensor_kind(const dsi_optim_item *item) {
    return dsi_optim_hash(0xCBF29CE484222325u, item->tensor.name, item->tensor.rows, item->tensor.cols);
}
static size_t dsi_optim_saved_rows(const ds_optim *o) {
    return dsi_optim_is(o, DSI_OPTIM_ONE_BIT) ? o->desc.tensor_count : 0;
}
DS_API size_t ds_optim_save_bytes(const ds_optim *o) {
    return 8 * (DSI_OPTIM_HEAD + dsi_optim_saved_rows(o) * DSI_OPTIM_ROW);
}
DS_API void ds_optim_save(const ds_optim *o, void *bytes) {
    unsigned char *out = (unsigned char *)bytes;
    dsi_optim_put64(out, 0, dsi_optim_magic[1]);
    dsi_optim_put64(out, 1, dsi_optim_kind(o));
    dsi_optim_put64(out, 2, (uint64_t)o->step);
    dsi_optim_put64(out, 3, (uint64_t)o->schedule_count);
    for (size_t i = 0; i < dsi_optim_saved_rows(o); i++) {
        const size_t row = DSI_OPTIM_HEAD + i * DSI_OPTIM_ROW;
        dsi_optim_put64(out, row, dsi_optim_tensor_kind(&o->items[i]));
        for (size_t k = 0; k < DSI_OPTIM_SCALARS; k++) {
            uint64_t word;
            memcpy(&word, &o->items[i].scalar[k], 8);
            dsi_optim_put64(out, row + 1 + k, word);
        }
    }
}
// The word at which a tensor's scalars begin, or 0; most often the order is the same.
static size_t dsi_optim_saved_at(const ds_optim *o, const unsigned char *in, bool first, size_t tensor) {
    const size_t n = dsi_optim_saved_rows(o);
    const uint64_t kind = dsi_optim_tensor_kind(&o->items[tensor]);
    if (first) return DSI_OPTIM_HEAD + tensor * DSI_OPTIM_SCALARS;
    for (size_t k = 0; k < n; k++) {
        const size_t row = DSI_OPTIM_HEAD + (tensor + k) % n * DSI_OPTIM_ROW;
        if (dsi_optim_get64(in, row) == kind) return row + 1;
    }
    return 0;
}
static ds_status dsi_optim_check_saved(ds_optim *o, const unsigned char *in, bool first) {
    if (dsi_optim_get64(in, 1) != (first ? dsi_optim_identity(o) : dsi_optim_kind(o)))
        return dsi_fail(&o->error, DS_ERR_INPUT, "ds_optim_load: saved from another optimizer than %s%s",
                        ds_optim_type_name(o), first ? ", or from other tensors" : "");
    if (!dsi_optim_countable((int64_t)dsi_optim_get64(in, 2)) || !dsi_optim_countable((int64_t)dsi_optim_get64(in, 3)))
        return dsi_fail(&o->error, DS_ERR_INPUT, "ds_optim_load: a step count is not in 0..2^53");
    for (size_t i = 0; i < dsi_optim_saved_rows(o); i++) {
        const size_t at = dsi_optim_saved_at(o, in, first, i);
        if (!at)
            return dsi_fail(&o->error, DS_ERR_INPUT, "ds_optim_load: nothing was saved for \"%s\" of %zu x %zu",
                            o->items[i].tensor.name, o->items[i].tensor.rows, o->items[i].tensor.cols);
        if (!first && at != DSI_OPTIM_HEAD + i * DSI_OPTIM_ROW + 1 && !dsi_optim_alone(o))
            return dsi_fail(
                &o->error, DS_ERR_INPUT,
                "ds_optim_load: \"%s\" was saved at another place, and the error feedback of several ranks goes "
                "by the order of tensors: register them in the order of the save",
                o->items[i].tensor.name);
        for (size_t k = DSI_OPTIM_INTERVAL; k <= DSI_OPTIM_LOCAL_INTERVAL && dsi_optim_zero_one(o);
             k += DSI_OPTIM_LOCAL_INTERVAL - DSI_OPTIM_INTERVAL)
            if (!dsi_optim_range(dsi_optim_get_double(in, at + k), 1, 1e18))
                return dsi_fail(&o->error, DS_ERR_INPUT, "ds_optim_load: \"%s\": an interval of %g steps",
                                o->items[i].tensor.name, dsi_optim_get_double(in, at + k));
    }
    return DS_OK;
}
DS_API ds_status ds_optim_load(ds_optim *o, const void *bytes, size_t count) {
    const unsigned char *in = (const unsigned char *)bytes;
    const size_t n = dsi_optim_saved_rows(o), old = 8 * (DSI_OPTIM_HEAD + n * DSI_OPTIM_SCALARS);
    const bool first = count == old && dsi_optim_get64(in, 0) == dsi_optim_magic[0];
    ds_status status;
    if (o->open) return dsi_fail(&o->error, DS_ERR_STATE, "ds_optim_load: a step is open");
    if (!first && (count != ds_optim_save_bytes(o) || dsi_optim_get64(in, 0) != dsi_optim_magic[1]))
        return dsi_fail(&o->error, DS_ERR_INPUT,
                        "ds_optim_load: %zu bytes are not a saved %s over %zu tensors (%zu bytes)", count,
                        ds_optim_type_name(o), o->desc.tensor_count, ds_optim_save_bytes(o));
    if ((status = dsi_optim_check_saved(o, in, first)) != DS_OK) return status;
    o->step = (int64_t)dsi_optim_get64(in, 2);
    for (size_t i = 0; i < n; i++) {
        const size_t at = dsi_optim_saved_at(o, in, first, i);
        for (size_t k = 0; k < DSI_OPTIM_SCALARS; k++) o->items[i].scalar[k] = dsi_optim_get_double(in, at + k);
    }
    return ds_optim_set_schedule_count(o, (int64_t)dsi_optim_get64(in, 3));
}

// >>loss scaling
DS_API void ds_loss_scaler_params_default(ds_loss_scaler_params *out) {
    static const ds_loss_scaler_params documented = {true, 65536, 1000, 2, false, 1, 2, false};
    *out = documented;
}
DS_API ds_status ds_loss_scaler_init(ds_loss_scaler *s, const ds_loss_scaler_params *params, ds_error *error) {
    memset(s, 0, sizeof *s);
    s->scale = s->params.initial = s->params.minimum = 1;
    s->params.factor = 2, s->params.window = 1000;
    s->last_overflow = -1;
    if (!params) return DS_OK;
    if (!(params->initial > 0 && params->initial <= DBL_MAX))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_loss_scaler: the scale %g must be positive and finite",
                        params->initial);
    if (params->dynamic && (params->window < 1 || !(params->minimum > 0 && params->minimum <= DBL_MAX) ||
                            !(params->factor > 1 && params->factor <= DBL_MAX)))
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "ds_loss_scaler: window %lld must be at least 1, minimum %g positive, factor %g above 1",
                        (long long)params->window, params->minimum, params->factor);
    s->params = *params;
    s->scale = params->initial;
    s->hysteresis_left = params->hysteresis;
    return DS_OK;
}
// Growth waits for window steps after the step that follows an overflow (or the start): window + 1 good ones in all.
DS_API ds_status ds_loss_scaler_update(ds_loss_scaler *s, bool overflow) {
    const ds_loss_scaler_params *p = &s->params;
    ds_status status = DS_OK;
    if (overflow) s->skipped++;
    if (!p->dynamic) return DS_OK;
    if (overflow) {
        if (p->hysteresis != 1 && s->hysteresis_left != 1)
            s->hysteresis_left--;
        else if (s->scale == p->minimum && !p->go_on_at_minimum)
            status = DS_ERR_NUMERIC;
        else
            s->scale = s->scale / p->factor > p->minimum ? s->scale / p->factor : p->minimum;
        s->last_overflow = s->iteration;
    } else {
        int64_t stable = s->iteration - s->last_overflow - 1;
        bool grow = stable > 0 && stable % p->window == 0;
        if (grow || p->consecutive_hysteresis) s->hysteresis_left = p->hysteresis;
        if (grow && s->scale <= DBL_MAX / p->factor) s->scale *= p->factor; // from infinity there is no way back
    }
    s->iteration++;
    return status;
}

// >>schedules
DS_API ds_status ds_schedule_default(const char *type, ds_schedule *out, ds_error *error) {
    static const struct {
        const char *name;
        ds_schedule_kind kind;
    } kinds[] = {{"WarmupLR", DS_SCHEDULE_WARMUP},
                 {"WarmupDecayLR", DS_SCHEDULE_WARMUP_DECAY},
                 {"WarmupCosineLR", DS_SCHEDULE_WARMUP_COSINE},
                 {"OneCycle", DS_SCHEDULE_ONE_CYCLE},
                 {"1Cycle", DS_SCHEDULE_ONE_CYCLE},
                 {"LRRangeTest", DS_SCHEDULE_RANGE_TEST}};
    memset(out, 0, sizeof *out);
    for (size_t i = 0; type && i < sizeof kinds / sizeof *kinds; i++)
        if (dsi_optim_same(type, kinds[i].name)) out->kind = kinds[i].kind;
    out->warmup_max_lr = out->kind == DS_SCHEDULE_WARMUP ? -1 : 0.001;
    out->warmup_num_steps = 1000;
    out->cos_min_ratio = 0.0001;
    out->cycle_first_step_size = 2000;
    out->cycle_symmetric = true;
    out->cycle_second_stair_count = -1;
    out->cycle_momentum = true;
    out->cycle_min_mom = 0.8, out->cycle_max_mom = 0.9;
    out->lr_range_test_min_lr = 0.001, out->lr_range_test_step_rate = 1;
    out->lr_range_test_step_size = 2000;
    if (out->kind != DS_SCHEDULE_NONE) return DS_OK;
    return dsi_fail(error, DS_ERR_INPUT,
                    "ds_schedule: no schedule is named \"%s\"; there are WarmupLR, WarmupDecayLR, WarmupCosineLR, "
                    "OneCycle (1Cycle), LRRangeTest",
                    type ? type : "");
}
DS_API ds_status ds_schedule_check(const ds_schedule *s, ds_error *error) {
    const bool warmup =
        s->kind == DS_SCHEDULE_WARMUP || s->kind == DS_SCHEDULE_WARMUP_DECAY || s->kind == DS_SCHEDULE_WARMUP_COSINE;
    const bool cosine = s->kind == DS_SCHEDULE_WARMUP_COSINE, cycle = s->kind == DS_SCHEDULE_ONE_CYCLE;
    const bool range = s->kind == DS_SCHEDULE_RANGE_TEST, momentum = cycle && s->cycle_momentum;
    // clang-format off
    const struct { bool used; double value; const char *wrong; } numbers[] = {
        {warmup, s->warmup_min_lr, "warmup_min_lr must be finite"}, {warmup, s->warmup_max_lr, "warmup_max_lr must be finite"},
        {cosine, s->warmup_min_ratio, "warmup_min_ratio must be finite"}, {cosine, s->cos_min_ratio, "cos_min_ratio must be finite"},
        {cycle, s->cycle_min_lr, "cycle_min_lr must be finite"}, {cycle, s->cycle_max_lr, "cycle_max_lr must be finite"},
        {cycle, s->decay_lr_rate, "decay_lr_rate must be finite"}, {momentum, s->cycle_min_mom, "cycle_min_mom must be finite"},
        {momentum, s->cycle_max_mom, "cycle_max_mom must be finite"}, {momentum, s->decay_mom_rate, "decay_mom_rate must be finite"},
        {range, s->lr_range_test_min_lr, "lr_range_test_min_lr must be finite"},
        {range, s->lr_range_test_step_rate, "lr_range_test_step_rate must be finite"},
    };
    // clang-format on
    const char *wrong = NULL;
    if (warmup && s->warmup_num_steps < 1) wrong = "warmup_num_steps must be at least 1";
    if ((s->kind == DS_SCHEDULE_WARMUP_DECAY || s->kind == DS_SCHEDULE_WARMUP_COSINE) && s->total_num_steps < 1)
        wrong = "total_num_steps is required and at least 1";
    if (s->kind == DS_SCHEDULE_ONE_CYCLE) {
        if (!(s->cycle_first_step_size > 0))
            wrong = "cycle_first_step_size must be positive";
        else if (!s->cycle_symmetric && !(s->cycle_second_step_size >= 0))
            wrong = "cycle_second_step_size must not be negative";
        else if (s->cycle_first_stair_count < 0)
            wrong = "cycle_first_stair_count must not be negative";
        else if (!(s->decay_step_size >= 0))
            wrong = "decay_step_size must not be negative";
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].used && !dsi_optim_range(numbers[i].value, -DBL_MAX, DBL_MAX)) wrong = numbers[i].wrong;
    if (s->kind == DS_SCHEDULE_RANGE_TEST && s->lr_range_test_step_size < 1)
        wrong = "lr_range_test_step_size must be at least 1";
    if (s->kind == DS_SCHEDULE_CUSTOM && !s->custom) wrong = "custom is NULL";
    if (!dsi_optim_countable(s->resumed)) wrong = "resumed is not in 0..2^53";
    if ((unsigned)s->kind > DS_SCHEDULE_CUSTOM) wrong = "the kind is none of the enum's";
    return wrong ? dsi_fail(error, DS_ERR_ARGUMENT, "ds_schedule: %s", wrong) : DS_OK;
}
// How far the warm-up is at iteration i (k - 1): log(i + 1) / log(n), or i / n. One step counts as two.
static double dsi_optim_schedule_warmup(const ds_schedule *s, int64_t i) {
    double n = (double)(s->warmup_num_steps > 2 ? s->warmup_num_steps : 2);
    return s->warmup_linear ? (double)i / n : 1.0 / log(n) * log((double)(i + 1));
}
static bool dsi_optim_schedule_warming(const ds_schedule *s, int64_t i) {
    return i < (s->warmup_num_steps > 2 ? s->warmup_num_steps : 2);
}
static double dsi_optim_schedule_cosine(const ds_schedule *s, int64_t i) {
    double past, total, ratio;
    const int64_t warmup = s->warmup_num_steps > 2 ? s->warmup_num_steps : 2;
    if (i < 0) return 0;
    if (dsi_optim_schedule_warming(s, i))
        return s->warmup_min_ratio + dsi_optim_schedule_warmup(s, i) * (1 - s->warmup_min_ratio);
    past = (double)(i - warmup + 1);
    total = (double)(s->total_num_steps - warmup);
    ratio = (1 + cos(3.14159265358979323846 * (past < total ? past / total : 1))) / 2;
    ratio = s->cos_min_ratio + (1 - s->cos_min_ratio) * ratio;
    return ratio > 0 ? ratio : 0;
}
static double dsi_optim_schedule_second(const ds_schedule *s) {
    return s->cycle_symmetric ? s->cycle_first_step_size : s->cycle_second_step_size;
}
// 0 at a cycle's ends, 1 at its middle, in stairs if asked.
static double dsi_optim_schedule_cycle(const ds_schedule *s, int64_t k) {
    double total = s->cycle_first_step_size + dsi_optim_schedule_second(s), middle = s->cycle_first_step_size / total;
    double cycle = floor(1 + (double)k / total), x = 1.0 + (double)k / total - cycle;
    bool first = x <= middle;
    double scale = first ? x / middle : (x - 1) / (middle - 1);
    int64_t stairs =
        first || s->cycle_second_stair_count < 0 ? s->cycle_first_stair_count : s->cycle_second_stair_count;
    return stairs > 0 ? floor(scale * (double)stairs + 1e-9) / (double)stairs : scale; // a step begins on its first k
}
// Iterations of decay after the one cycle.
static double dsi_optim_schedule_decayed(const ds_schedule *s, int64_t k) {
    double total = s->cycle_first_step_size + dsi_optim_schedule_second(s);
    return s->decay_step_size == 0 ? 0 : ((double)k - total) / s->decay_step_size;
}
static bool dsi_optim_schedule_in_cycle(const ds_schedule *s, int64_t k) {
    return (double)(k - 1) < s->cycle_first_step_size + dsi_optim_schedule_second(s);
}

DS_API double ds_schedule_lr(const ds_schedule *s, int64_t k, double base_lr) {
    const int64_t i = k - 1;
    double high = s->warmup_max_lr < 0 ? base_lr : s->warmup_max_lr, low = s->warmup_min_lr, ratio, steps;
    switch (s->kind) {
    case DS_SCHEDULE_WARMUP:
    case DS_SCHEDULE_WARMUP_DECAY:
        if (i < 0) return low;
        ratio = 1;
        if (dsi_optim_schedule_warming(s, i))
            ratio = dsi_optim_schedule_warmup(s, i);
        else if (s->kind == DS_SCHEDULE_WARMUP_DECAY) {
            steps = (double)(s->total_num_steps - (s->warmup_num_steps > 2 ? s->warmup_num_steps : 2));
            ratio = (double)(s->total_num_steps - i) / (steps > 1 ? steps : 1);
            if (ratio < 0) ratio = 0;
        }
        return low + (high - low) * ratio;
    case DS_SCHEDULE_WARMUP_COSINE: return base_lr * dsi_optim_schedule_cosine(s, i);
    case DS_SCHEDULE_ONE_CYCLE:
        if (k <= 0) return s->cycle_min_lr;
        if (dsi_optim_schedule_in_cycle(s, k))
            return s->cycle_min_lr + (s->cycle_max_lr - s->cycle_min_lr) * dsi_optim_schedule_cycle(s, k);
        return s->cycle_min_lr / (1 + s->decay_lr_rate * dsi_optim_schedule_decayed(s, k));
    case DS_SCHEDULE_RANGE_TEST:
        steps = (double)k / (double)s->lr_range_test_step_size;
        if (s->lr_range_test_staircase) steps = floor(steps);
        low = s->lr_range_test_min_lr < 0 ? base_lr : s->lr_range_test_min_lr;
        return low * (1 + s->lr_range_test_step_rate * steps);
    case DS_SCHEDULE_CUSTOM: return s->custom(s->ctx, k, base_lr);
    case DS_SCHEDULE_NONE: break;
    }
    return base_lr;
}
DS_API bool ds_schedule_betas(const ds_schedule *s, int64_t k, double *beta1, double *beta2) {
    if (s->kind != DS_SCHEDULE_ONE_CYCLE || !s->cycle_momentum) return false;
    *beta2 = 0.99;
    if (k <= 0)
        *beta1 = s->cycle_min_mom;
    else if (dsi_optim_schedule_in_cycle(s, k))
        *beta1 = s->cycle_max_mom - (s->cycle_max_mom - s->cycle_min_mom) * dsi_optim_schedule_cycle(s, k);
    else
        *beta1 = s->cycle_max_mom * (1 + s->decay_mom_rate * dsi_optim_schedule_decayed(s, k));
    return true;
}

static void dsi_optim_follow(ds_optim *o, size_t group) {
    const ds_schedule *s = &o->schedules[group];
    ds_optim_params *p = &o->groups[group];
    double beta1, beta2;
    if (s->kind == DS_SCHEDULE_NONE) return;
    p->lr = ds_schedule_lr(s, o->schedule_count, o->base_lr[group]);
    if (dsi_optim_is(o, DSI_OPTIM_BETAS) && ds_schedule_betas(s, o->schedule_count, &beta1, &beta2))
        p->beta1 = beta1, p->beta2 = beta2;
}
DS_API ds_status ds_optim_set_schedule(ds_optim *o, size_t group, const ds_schedule *schedule) {
    ds_status status;
    if (group >= o->desc.group_count)
        return dsi_fail(&o->error, DS_ERR_ARGUMENT, "ds_optim_set_schedule: group %zu of %zu", group,
                        o->desc.group_count);
    if ((status = ds_schedule_check(schedule, &o->error)) != DS_OK) return status;
    o->schedules[group] = *schedule;
    if (schedule->resumed > 0)
        o->schedule_count = schedule->resumed;
    else
        dsi_optim_follow(o, group);
    return DS_OK;
}
DS_API ds_status ds_optim_set_schedule_count(ds_optim *o, int64_t count) {
    if (!dsi_optim_countable(count))
        return dsi_fail(&o->error, DS_ERR_ARGUMENT, "ds_optim_set_schedule_count: %lld is not in 0..2^53",
                        (long long)count);
    o->schedule_count = count;
    for (size_t g = 0; g < o->desc.group_count; g++) dsi_optim_follow(o, g);
    return DS_OK;
}
DS_API void ds_optim_schedule_step(ds_optim *o) {
    (void)ds_optim_set_schedule_count(o, o->schedule_count + 1); // which the end of all counts leaves as it is
}
DS_API int64_t ds_optim_schedule_count(const ds_optim *o) {
    return o->schedule_count;
}

#ifndef DS_OPTIM_FORMULAS
#undef DSI_OPTIM_K
#undef DSI_OPTIM_ADAGRAD
#undef DSI_OPTIM_ADAM
#undef DSI_OPTIM_LION
#undef DSI_OPTIM_MOMENTS
#undef DSI_OPTIM_SGD
#undef DSI_OPTIM_TRUST
#endif
#undef DSI_OPTIM_EACH
#undef DSI_OPTIM_FETCH_ahead
#undef DSI_OPTIM_LEAVE_x1
#undef DSI_OPTIM_LEAVE_x8
#undef DSI_OPTIM_LEAVE_x16
#undef DSI_OPTIM_FETCH_plain
#undef DSI_OPTIM_LEVEL
#undef DSI_OPTIM_COMMON
#undef DSI_OPTIM_PULL_ahead
#undef DSI_OPTIM_PULL_plain
#undef DSI_OPTIM_TABLE
#undef DSI_OPTIM_TILE
#undef DSI_OPTIM_UPDATE
#undef DSI_OPTIM_WIDTH
#undef DSI_OPTIM_X16
#undef DSI_OPTIM_X86
#undef dsi_optim_x1_add
#undef dsi_optim_x1_div
#undef dsi_optim_x1_fma
#undef dsi_optim_x1_load
#undef dsi_optim_x1_mul
#undef dsi_optim_x1_set
#undef dsi_optim_x1_sign
#undef dsi_optim_x1_sqrt
#undef dsi_optim_x1_store
#undef dsi_optim_x1_t
#undef dsi_optim_x16_add
#undef dsi_optim_x16_div
#undef dsi_optim_x16_fma
#undef dsi_optim_x16_load
#undef dsi_optim_x16_mul
#undef dsi_optim_x16_set
#undef dsi_optim_x16_sign
#undef dsi_optim_x16_sqrt
#undef dsi_optim_x16_store
#undef dsi_optim_x16_t
#undef dsi_optim_x8_add
#undef dsi_optim_x8_div
#undef dsi_optim_x8_fma
#undef dsi_optim_x8_load
#undef dsi_optim_x8_mul
#undef dsi_optim_x8_set
#undef dsi_optim_x8_sign
#undef dsi_optim_x8_sqrt
#undef dsi_optim_x8_store
#undef dsi_optim_x8_t
#undef DSI_OPTIM_MEASURE
#undef DSI_OPTIM_MEASURE_AT
#undef DSI_OPTIM_ON_DEVICE
#undef DSI_OPTIM_MEASURE_x8
#undef DSI_OPTIM_MEASURE_x16
#undef DSI_OPTIM_NORM
#undef DSI_OPTIM_NORM_AT
#undef DSI_OPTIM_NORM_BF16
#undef DSI_OPTIM_NORM_TWO
#undef DSI_OPTIM_NORM_x8
#undef DSI_OPTIM_NORM_x16
#undef DSI_OPTIM_AVX2
#undef DSI_OPTIM_AVX512

#endif /* DS_OPTIM_IMPL_DONE */

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
