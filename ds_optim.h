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
     ds_error error = {0};
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
   check) reads the gradient once more. "Adam" decays decoupled, as AdamW, unless adam_w_mode is false.

   OPTIONS  DS_OPTIM_SIMD  1   in the implementation's file: 0 leaves out AVX2 and AVX-512 (else chosen at run time)

   WHAT IT DOES NOT DO
   It does not reduce gradients between ranks, own a training loop, or read files. 16-bit moments are not kept.

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
   Parallel matrix products keep the order of each sum. The 16-bit output rounds to nearest even.

   STEP BY STEP for an engine that partitions
     1. ds_optim_norm_grains over each slice's gradient; gather the grains; ds_optim_norm_tree per tensor; add the
        tensors' sums in registration order; norm = sqrt. Not finite: the step is skipped.
     2. ds_loss_scaler_update(overflow); skipped: drop the gradients, go on.
     3. ds_optim_begin(o, 1 / scale, ds_optim_clip_coefficient(norm, max_norm), norm)
     4. if ds_optim_work() of a tensor is DS_OPTIM_BY_NORM: ds_optim_measure(slices), once all are done ds_optim_combine
     5. ds_optim_apply(slices); 6. ds_optim_end; 7. ds_optim_schedule_step

   MEMORY   The object itself, one copy of the descriptor's tables, and (own_states) the states. Muon keeps scratch for
   its largest matrix, LAMB two doubles per grain, the 1-bit family its error feedback. All of it is taken at create.
   ds_optim_memory() states it; no later call allocates.

   ERRORS   Each call returns ds_status; ds_optim_error() has the text. Log ids: 1 error feedback reset at another world
   size (warning), 2 SIMD level chosen (debug), 3 step skipped (info).

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
    bool bias_correction;        /* Adam, Lamb */
    bool nesterov;               /* SGD, Muon */
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
    double adam_lr;                                  /* Muon: rate of the tensors that Adam takes; negative: lr */
    double ns_a, ns_b, ns_c;                         /* Muon: coefficients of Newton-Schulz */
    int ns_steps;                                    /* Muon */
    ds_optim_ns ns_method;                           /* Muon */
} ds_optim_params;

/* Defaults of a built-in type (case is ignored, as in DeepSpeed). DS_ERR_INPUT for an unknown name. Thread-safe. */
DS_API ds_status ds_optim_params_default(const char *type, ds_optim_params *out);

/* ---- what is optimised ---- */

typedef enum ds_optim_muon { DS_OPTIM_MUON_AUTO = 0, DS_OPTIM_MUON_ON = 1, DS_OPTIM_MUON_OFF = 2 } ds_optim_muon;

/* A logical tensor of rows x cols elements, row-major; a vector has rows 1. Sizes 0 and 1 are fine. The name is copied. */
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
} ds_optim_slice;

/* What an optimizer must see of a tensor at once. */
typedef enum ds_optim_work {
    DS_OPTIM_BY_GRAIN = 0, /* apply at once */
    DS_OPTIM_BY_NORM = 1,  /* measure every slice of the tensor, combine, then apply */
    DS_OPTIM_WHOLE = 2     /* apply with one slice that is the whole tensor */
} ds_optim_work;

/* One call of a table's function. Constants are those of this step. */
typedef struct ds_optim_pass {
    const ds_optim_params *params; /* of the tensor's group, with the lr in force */
    const ds_optim_tensor *tensor;
    size_t begin;   /* first element of this part */
    int64_t step;   /* t, from 1 */
    double norm[2]; /* BY_NORM, in update: square roots of the two combined sums */
    void *ctx;      /* the table's */
} ds_optim_pass;

/* An optimizer of the user's own; the built-in ones are entries of the same table. `update` gets one grain (WHOLE: the
   tensor), the gradient in fp32, unscaled and clipped; it may run on several threads for different parts, and must treat
   each element alike for results not to depend on the cutting. `measure` (BY_NORM) may change states, not master, and
   writes two partial sums of the grain. */
typedef struct ds_optim_table {
    const char *name;
    ds_optim_work work;
    size_t state_count;
    const char *state_names[DS_OPTIM_MAX_STATES];
    void (*measure)(const ds_optim_pass *pass, const float *grad, const float *master, float *const *state,
                    size_t count, double sums[2]);
    void (*update)(const ds_optim_pass *pass, const float *grad, float *master, float *const *state, size_t count);
    void *ctx;
} ds_optim_table;

/* The average over ranks with one bit per element that the 1-bit optimizers use in their compressed phase; NULL members:
   the header's own over desc.group. buffer, worker_error: count elements, a multiple of 8 * ranks; server_error:
   count / ranks. Replaces buffer by the average of what the ranks sent. (Tang et al. 2021) */
typedef struct ds_optim_average {
    ds_status (*average)(void *ctx, float *buffer, float *worker_error, float *server_error, size_t count);
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
    float beta1, one_minus_beta1; /* beta and 1 - beta, each rounded from double */
    float beta2, one_minus_beta2;
    float l2;              /* weight decay added to the gradient */
    float decay;           /* -lr * weight decay, decoupled */
    float root_correction; /* 1 / sqrt(1 - beta2^t) */
    float eps, step_size;  /* step_size: -lr / (1 - beta1^t) */
} ds_optim_adam;

/* GPU kernels over the same formulas; ds_kernels.cu fills it. All pointers are device memory; calls order work on the
   stream and return. Elements, rounding and bits are those of the CPU. */
typedef struct ds_optim_kernels {
    void *ctx;
    ds_status (*adam)(void *ctx, const ds_optim_adam *constants, const ds_optim_slice *slice, void *stream);
    ds_status (*norm_grains)(void *ctx, const void *grad, ds_dtype dtype, size_t count, float factor, double *per_grain,
                             void *stream);
    ds_status (*cast)(void *ctx, void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count,
                      void *stream);
} ds_optim_kernels;

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
    ds_group group; /* BY_NORM partials and the 1-bit average; zeroed: one rank */
    ds_optim_average average;
    ds_optim_gemm gemm;
    const float *const *masks; /* OneBitAdam: exp_avg_mask per tensor, whole tensors, kept by the caller; may be NULL */
    const ds_optim_kernels *kernels; /* Adam and AdamW: slices are device memory */
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

/* Facts that hold from create on. `tensor` is the index in desc.tensors. */
DS_API ds_optim_work ds_optim_tensor_work(const ds_optim *o, size_t tensor);
DS_API size_t ds_optim_state_count(const ds_optim *o, size_t tensor);
DS_API const char *ds_optim_state_name(const ds_optim *o, size_t tensor, size_t k); /* "exp_avg"; as in PyTorch */
DS_API size_t ds_optim_state_count_max(const ds_optim *o);
DS_API size_t ds_optim_memory(const ds_optim *o); /* bytes that the object holds */
DS_API ds_optim_level ds_optim_simd_level(const ds_optim *o);
DS_API const char *ds_optim_type_name(const ds_optim *o); /* in the documents' spelling */

/* Rates and betas in force for the next step. */
DS_API double ds_optim_lr(const ds_optim *o, size_t group);
DS_API ds_status ds_optim_set_lr(ds_optim *o, size_t group, double lr);
DS_API const ds_optim_params *ds_optim_group_params(const ds_optim *o, size_t group);
DS_API ds_status ds_optim_set_group_params(ds_optim *o, size_t group, const ds_optim_params *params);

/* True in the 1-bit optimizers' compressed phase: the next step takes this rank's own gradient instead of the average. */
DS_API bool ds_optim_wants_local_gradients(const ds_optim *o);
/* True when clipping may not be used from the next step on (the 1-bit optimizers after their freeze). */
DS_API bool ds_optim_refuses_clipping(const ds_optim *o);

/* Steps taken so far; t of the next step is this plus 1. */
DS_API int64_t ds_optim_step_count(const ds_optim *o);
DS_API ds_status ds_optim_set_step_count(ds_optim *o, int64_t count);

/* One step over slices. inv_scale: 1 / (loss scale * ...); clip_coefficient: <= 1; their product multiplies each
   gradient in fp32. grad_norm: of the unscaled gradient, needed only by Lamb's max_grad_norm (else 0). DS_ERR_STATE out
   of order, DS_ERR_ARGUMENT for a slice off the grain or without its pointers; nothing is changed then. */
DS_API ds_status ds_optim_begin(ds_optim *o, double inv_scale, double clip_coefficient, double grad_norm);
DS_API ds_status ds_optim_measure(ds_optim *o, const ds_optim_slice *slices, size_t count); /* BY_NORM tensors only */
DS_API ds_status ds_optim_combine(ds_optim *o);                                             /* collective over group */
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
    double max_norm;        /* clip to this global norm; 0: off [cfg: gradient_clipping] */
    ds_loss_scaler *scaler; /* its scale multiplied the loss; updated; may be NULL */
    bool unchecked;         /* no norm, no overflow check: reads the gradient once. Not with max_norm or scaler */
} ds_optim_options;

typedef struct ds_optim_report {
    ds_optim_skip skipped;
    size_t overflow_tensor;  /* first tensor whose gradient was not finite; SIZE_MAX: none */
    double grad_norm;        /* unscaled, before clipping; 0 when unchecked */
    double clip_coefficient; /* 1: not clipped */
    double loss_scale;       /* that multiplied this step's loss */
} ds_optim_report;

/* The whole step for one rank: io has one entry per registered tensor, in order. options, report may be NULL. A skipped
   step is DS_OK; DS_ERR_NUMERIC when it overflowed at the smallest loss scale. */
DS_API ds_status ds_optim_step(ds_optim *o, const ds_optim_io *io, const ds_optim_options *options,
                               ds_optim_report *report);

/* State k of a tensor, fp32, all its elements (own_states; else NULL). ds_optim_own_master: the fp32 weights of a
   16-bit tensor, NULL for others; filled from the weights by the first step unless set before with
   ds_optim_set_master. These are what a checkpoint holds, by name, independent of partitioning. */
DS_API float *ds_optim_own_state(ds_optim *o, size_t tensor, size_t k);
DS_API float *ds_optim_own_master(ds_optim *o, size_t tensor);
DS_API ds_status ds_optim_set_master(ds_optim *o, size_t tensor, const float *values);

/* ---- saving ---- */

/* What the object itself remembers: step count, schedule, the 1-bit family's counters and factors. The same bytes on
   every rank, little-endian. load: DS_ERR_INPUT when they are of another optimizer or other tensors. */
DS_API size_t ds_optim_save_bytes(const ds_optim *o);
DS_API void ds_optim_save(const ds_optim *o, void *bytes);
DS_API ds_status ds_optim_load(ds_optim *o, const void *bytes, size_t count);

/* The 1-bit family's error feedback, of this rank alone: buffers i < count, `which` 0 worker, 1 server. Contents may be
   saved and written back through the pointer at the same world size. After a resume at another size call
   ds_optim_reset_errors (or skip loading: they start as zero), which logs id 1. */
DS_API size_t ds_optim_error_buffers(const ds_optim *o);
DS_API float *ds_optim_error_buffer(ds_optim *o, size_t i, int which, size_t *count);
DS_API void ds_optim_reset_errors(ds_optim *o);

/* ---- norms and clipping; pure ---- */

/* Sum of squares of each grain of `count` elements: per_grain[ceil(count / DS_GRAIN)]. Each element is widened to fp32,
   multiplied by factor in fp32, squared and added in fp64 in 16 fixed lanes. NaN and infinity carry through. */
DS_API void ds_optim_norm_grains(const void *grad, ds_dtype dtype, size_t count, float factor, double *per_grain);
/* Sum of n partials in a binary tree: neighbours are added level by level, an odd one moves up. Overwrites grains. */
DS_API double ds_optim_norm_tree(double *grains, size_t n);
/* 1 / max(1, (norm + 1e-6) / max_norm), as DeepSpeed's ZeRO does; 1 when max_norm is 0. */
DS_API double ds_optim_clip_coefficient(double norm, double max_norm);

/* ---- elementwise; exact by definition, at the best SIMD level; arrays may not overlap but where to == from ---- */

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
    bool warmup_linear;                                        /* warmup_type "linear"; else log */
    double warmup_min_ratio, cos_min_ratio;                    /* WarmupCosineLR */
    double cycle_min_lr, cycle_max_lr, decay_lr_rate;          /* OneCycle */
    double cycle_first_step_size, cycle_second_step_size;      /* second negative: as the first */
    int64_t cycle_first_stair_count, cycle_second_stair_count; /* second negative: as the first */
    double decay_step_size;
    bool cycle_momentum;
    double cycle_min_mom, cycle_max_mom, decay_mom_rate;
    double lr_range_test_min_lr, lr_range_test_step_rate; /* LRRangeTest; a negative minimum: the group's own rate */
    int64_t lr_range_test_step_size;
    bool lr_range_test_staircase;
    double (*custom)(void *ctx, int64_t k, double base_lr); /* DS_SCHEDULE_CUSTOM */
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

/* Attaches a schedule to a group and sets its rate (and betas) for the scheduler's current step count, 0 at first. The
   group's lr at create is its base rate. */
DS_API ds_status ds_optim_set_schedule(ds_optim *o, size_t group, const ds_schedule *schedule);
/* After each optimizer step that was not skipped: advances the count and sets all groups' rates. */
DS_API void ds_optim_schedule_step(ds_optim *o);
DS_API int64_t ds_optim_schedule_count(const ds_optim *o);
DS_API ds_status ds_optim_set_schedule_count(ds_optim *o, int64_t count);

#ifdef __cplusplus
}
#endif
#endif /* DS_OPTIM_H */

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
#define DSI_FN                    static __attribute__((unused))
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
