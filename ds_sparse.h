/* ds_sparse.h - v0.1.0 - block-sparse attention: layouts, forward and backward, on a CPU - public domain or MIT-0

   DO THIS
     #define DS_IMPLEMENTATION     in one C or C++ file, before
     #include "ds_sparse.h"        and link with -lm -lpthread

   SYNOPSIS (attention of 8 heads over 4,096 tokens, each block of 64 seeing its neighbours and a few global blocks)

     ds_sparse_params p;
     ds_sparse_params_default("bigbird", &p, NULL);  // the documents' defaults for that mode
     p.heads = 8, p.block = 64;
     ds_error error = {0};
     ds_sparse_layout *layout;
     if (ds_sparse_layout_create(&p, 4096, NULL, &layout, &error)) puts(error.message);
     ds_sparse_desc desc = {0};
     desc.layout = layout, desc.head_dim = 64, desc.threads = 2;
     ds_sparse *s;
     if (ds_sparse_create(&desc, &s, &error)) puts(error.message);
     ds_sparse_io io = {0};
     io.batch = 4, io.q = q, io.k = k, io.v = v, io.out = out, io.lse = lse;     // fp32, (batch, head, token, head_dim)
     ds_sparse_forward(s, &io);
     io.d_out = d_out, io.d_q = d_q, io.d_k = d_k, io.d_v = d_v;
     ds_sparse_backward(s, &io);
     ds_sparse_destroy(s), ds_sparse_layout_destroy(layout);

   MODES                   which blocks (row: queries, column: keys) are kept
     dense                 all
     fixed                 local windows of num_local_blocks; the last num_global_blocks of each window are columns
                           that all rows see. Head h takes pattern h mod num_different_global_patterns: the one that
                           many groups further left in the window. (Child et al. 2019)
     variable              windows of local_window_blocks, the last size repeated; global columns by index or range;
                           num_random_blocks in each row
     bigbird               a sliding window of num_sliding_window_blocks, the first num_global_blocks as rows and
                           columns, num_random_blocks in each row. (Zaheer et al. 2020)
     bslongformer          a sliding window, global rows and columns by index or range. (Beltagy et al. 2020)
     local_sliding_window  a sliding window only; unidirectional by default
   Layouts equal those of DeepSpeed 0.19.6 block for block, random draws aside (below); ds layout --svg draws them.

   OPTIONS  DS_SPARSE_SIMD  1   in the implementation's file: 0 leaves out AVX2 and AVX-512 (else chosen at run time)

   WHAT IT DOES NOT DO
   No projections, no dropout, no cross-attention, no cache for generation, no heads that share keys: queries, keys and
   values have the same heads and tokens. Masks have no gradient; the relative bias has one.

   CONCEPTS
   layout     which blocks of block x block scores exist, for each head. Made once, never changed, shared by any number
              of attention objects and threads. ds_sparse_layout_from_map takes one of your own.
   attention  scores = scale * q.k + relative bias + masks, in the kept blocks; softmax over each row; times v. What
              lies outside the kept blocks is not computed and counts as minus infinity.
   causal     desc.causal: a token sees itself and what is before it. A unidirectional layout alone works in whole
              blocks: tokens see all of their own block (and of global blocks that start there). Language models want
              both.
   no answer  a token that may see nothing (all masked, or no block in its row) gets zeros, an lse of minus infinity
              and 0, and passes no gradient on.
   length     io.seq_len may be shorter than the layout's: the rest is as if masked, and never read or written. For a
              sequence that is no multiple of the block, make the layout for ds_sparse_padded(seq_len, block).
   lse        log of the sum of exponentials of each row, the only thing that backward needs from forward besides
              q, k, v and out. No buffer of tokens x tokens exists. It is two floats whose sum it is, the largest score
              and the log of the sum against that, so that no mask hides the sum: a row all of whose scores are near
              -1e9 has right gradients, as near as fp32 holds such scores (q.k is lost in them, as in PyTorch: the row
              attends evenly). Say "never" with minus infinity.
   Results depend on neither threads nor SIMD level: each sum has one order, products reach sums through explicit fused
   multiply-adds only, and the exponential is a polynomial of its own (error below 2 ulp; below e^-87 it is 0). A head
   of a batch does not depend on what else is in the batch. scale multiplies q (forward) or k (backward) before the product, in fp32.

   RANDOM BLOCKS  Row r of head h draws from splitmix64 whose state starts at the first number that splitmix64 gives when
   started at seed + 0x9E3779B97F4A7C15 * (1 + h * 2^32 + r), by Floyd's method: for j = columns - count .. columns - 1 take t = floor(top 32 bits * (j + 1) / 2^32), or j when t is
   drawn already. Columns are all blocks; bigbird, unidirectional: those up to the diagonal (so more than one random
   block fails at row 0, as in DeepSpeed). One draw serves all heads unless different_layout_per_head. The same on any
   machine.

   MEMORY   The layout: 8 bytes for each kept block of each different head, and 16 for each row. The attention object,
   for each thread: backward 6 (forward only: 2) x seq_len x head_dim floats, and one block's scratch. Taken at create;
   ds_sparse_memory() states it; no later call allocates. The caller keeps lse: 8 bytes a token and head.

   ERRORS   Each call returns ds_status; the text is in the ds_error given, or ds_sparse_error(). Log ids: 1 SIMD level
   chosen (debug).

   GPU  desc.kernels (ds_cuda_sparse_kernels of ds_kernels.cu) and desc.device: tensors are device memory, and
   ds_sparse_forward_on orders work on a stream. Blocks of a multiple of 16, head_dim up to 128, no d_relative.

   THREADS  One thread at a time per attention object. desc.threads starts a pool, or desc.tasks plugs in yours. Layouts
   are read-only once made.

   CONFIG KEYS  sparse_attention.* (a program or an engine maps them: field for field of ds_sparse_params). */
#if defined(DS_IMPLEMENTATION) && !defined(DS_SPARSE_IMPLEMENTATION)
#define DS_SPARSE_IMPLEMENTATION
#endif
#ifndef DS_SPARSE_H
#define DS_SPARSE_H
#define DS_SPARSE_VERSION 100 /* major * 10000 + minor * 100 + patch */

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

#if defined(DS_STATIC) && !defined(DS_SPARSE_IMPLEMENTATION)
#error "ds: DS_STATIC needs the implementation in the same file; define DS_IMPLEMENTATION before including ds_sparse.h"
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* ---- layouts ---- */

/* [cfg: sparse_attention.mode] */
typedef enum ds_sparse_mode {
    DS_SPARSE_DENSE = 0,
    DS_SPARSE_FIXED = 1,
    DS_SPARSE_VARIABLE = 2,
    DS_SPARSE_BIGBIRD = 3,
    DS_SPARSE_BSLONGFORMER = 4,
    DS_SPARSE_LOCAL_SLIDING_WINDOW = 5,
    DS_SPARSE_CUSTOM = 6 /* a layout from a map; not a mode to create one by */
} ds_sparse_mode;

/* Each mode reads its own fields. Fill with ds_sparse_params_default, then change: here a zero is a value, not a
   default. Lists belong to the caller and are read during the call only. [cfg: sparse_attention] */
typedef struct ds_sparse_params {
    ds_sparse_mode mode;
    size_t heads;
    size_t block;                         /* side of a block in tokens, 1 .. DS_SPARSE_MAX_BLOCK */
    bool different_layout_per_head;       /* fixed with patterns and random blocks: one layout for each head */
    size_t num_local_blocks;              /* fixed: blocks of a local window; num_global_blocks divides it */
    size_t num_global_blocks;             /* fixed: blocks of a window that all see; bigbird: first rows and columns */
    bool unidirectional;                  /* attention "unidirectional": blocks see none after them */
    bool horizontal_global_attention;     /* fixed, variable: global blocks see all; not unidirectional */
    size_t num_different_global_patterns; /* fixed: over heads; more than 1 needs different_layout_per_head */
    size_t num_random_blocks;             /* variable, bigbird: in each row; may fall on blocks that are kept anyway */
    const int64_t *local_window_blocks;   /* variable: sizes of windows; the last, not 0, for all that follow */
    size_t local_window_count;            /* at least 1 */
    const int64_t *global_block_indices;  /* variable, bslongformer: blocks, or first blocks of ranges */
    size_t global_count;                  /* of the list above; those beyond the sequence are skipped */
    const int64_t *global_block_end_indices; /* as long as global_block_indices: ends of ranges, exclusive; or NULL */
    size_t global_end_count;
    size_t num_sliding_window_blocks; /* bigbird, bslongformer, local_sliding_window: reaches half of it to each side */
    uint64_t seed;                    /* of random blocks */
} ds_sparse_params;
#define DS_SPARSE_MAX_BLOCK 1024
#define DS_SPARSE_MAX_HEADS 65536

typedef struct ds_sparse_layout ds_sparse_layout;

/* Defaults of a mode by its name in the configuration: heads 1, block 16, num_local_blocks 4, num_global_blocks 1,
   local_window_blocks [4], global_block_indices [0], num_sliding_window_blocks 3, one pattern, bidirectional
   (local_sliding_window: unidirectional); num_random_blocks 0 as the configuration has it (DeepSpeed's class for
   bigbird says 1). DS_ERR_INPUT with the names for another. Thread-safe, as are all functions on layouts. */
DS_API ds_status ds_sparse_params_default(const char *mode, ds_sparse_params *out, ds_error *error);
DS_API const char *ds_sparse_mode_name(ds_sparse_mode mode);
/* Sets params->unidirectional from the configuration's text: "unidirectional" or "bidirectional", else DS_ERR_INPUT;
   for bslongformer any other text counts as bidirectional, as in DeepSpeed. [cfg: sparse_attention.attention] */
DS_API ds_status ds_sparse_params_attention(ds_sparse_params *params, const char *attention, ds_error *error);
/* Whether a layout can be made for some length: DS_ERR_INPUT or DS_ERR_ARGUMENT with the rule that is broken. */
DS_API ds_status ds_sparse_params_check(const ds_sparse_params *params, ds_error *error);
/* The least multiple of block that holds seq_len tokens; 0 when block is 0 or it does not fit a size_t. */
DS_API size_t ds_sparse_padded(size_t seq_len, size_t block);

/* Makes the layout for sequences of seq_len tokens, a positive multiple of params->block. allocator: NULL for malloc;
   it is copied. DS_ERR_INPUT: a rule of the mode is broken (the check above), the length is no multiple of the block,
   or windows, global or random blocks do not fit the length. DS_ERR_MEMORY. *out is NULL then. */
DS_API ds_status ds_sparse_layout_create_(const ds_sparse_params *params, size_t seq_len, const ds_allocator *allocator,
                                          ds_sparse_layout **out, ds_error *error, int version, size_t size);
static inline ds_status ds_sparse_layout_create(const ds_sparse_params *params, size_t seq_len,
                                                const ds_allocator *allocator, ds_sparse_layout **out,
                                                ds_error *error) {
    return ds_sparse_layout_create_(params, seq_len, allocator, out, error, DS_SPARSE_VERSION,
                                    sizeof(ds_sparse_params));
}
/* A layout of your own. map: (patterns, n, n) bytes with n = seq_len / block, not 0 where a block is kept; head h has
   pattern h mod patterns. The map is read during the call only. Errors as above. */
DS_API ds_status ds_sparse_layout_from_map(const uint8_t *map, size_t patterns, size_t heads, size_t seq_len,
                                           size_t block, const ds_allocator *allocator, ds_sparse_layout **out,
                                           ds_error *error);
/* NULL is fine. No attention object may use it any more. */
DS_API void ds_sparse_layout_destroy(ds_sparse_layout *layout);

typedef struct ds_sparse_info {
    ds_sparse_mode mode;
    size_t heads, seq_len, block;
    size_t blocks;   /* in a row: seq_len / block */
    size_t patterns; /* head h has pattern h mod patterns */
    size_t kept;     /* blocks kept, all heads together */
    double density;  /* kept / (heads * blocks * blocks) */
} ds_sparse_info;
DS_API void ds_sparse_layout_info(const ds_sparse_layout *layout, ds_sparse_info *out);
/* The kept columns of a row of blocks, ascending; the pointer lives as long as the layout. */
DS_API const uint32_t *ds_sparse_layout_row(const ds_sparse_layout *layout, size_t head, size_t row, size_t *count);
/* Draws the heads side by side, one square for each block, with mode, sizes, density and a legend in words, as an SVG
   document, handed to `write` in pieces. Equal heads are drawn once. */
DS_API void ds_sparse_layout_svg(const ds_sparse_layout *layout,
                                 void (*write)(void *ctx, const char *text, size_t bytes), void *ctx);

/* ---- attention ---- */

typedef enum ds_sparse_level {
    DS_SPARSE_LEVEL_BEST = 0,
    DS_SPARSE_LEVEL_SCALAR = 1,
    DS_SPARSE_LEVEL_AVX2 = 2,
    DS_SPARSE_LEVEL_AVX512 = 3
} ds_sparse_level;

typedef struct ds_sparse_desc {
    const ds_sparse_layout *layout; /* must outlive the object */
    size_t head_dim;                /* 1 .. 4096 */
    float scale;                    /* 0: 1 / sqrt(head_dim) */
    bool causal;                    /* token i sees tokens 0 .. i only, also inside blocks */
    size_t relative_reach;          /* the largest ds_sparse_io.relative_reach whose gradient will be asked for */
    bool forward_only;              /* a third of the memory; backward is DS_ERR_STATE */
    ds_sparse_level level;          /* for tests: a level that the machine lacks is DS_ERR_UNSUPPORTED */
    unsigned threads;               /* built-in pool, the caller included; 0 and 1: none. Ignored when tasks is set */
    ds_tasks tasks;
    const struct ds_sparse_kernels *kernels; /* tensors are device memory from now on; needs device */
    const ds_device *device;                 /* keeps the layout's lists */
    ds_allocator allocator;
    ds_logger logger;
} ds_sparse_desc;

typedef struct ds_sparse ds_sparse;

/* How a mask acts. ADD: its values are added to the scores. MUL: where it is 0 the score is minus infinity. */
typedef enum ds_sparse_mask { DS_SPARSE_ADD = 0, DS_SPARSE_MUL = 1 } ds_sparse_mask;

/* Distance in elements from one batch item, head, token to the next; elements of a token's head are adjacent. All zero:
   (batch, heads, seq_len, head_dim) without gaps. For a fused (token, 3, head, head_dim) buffer: row 3 * heads *
   head_dim, head head_dim. */
typedef struct ds_sparse_strides {
    size_t batch, head, row;
} ds_sparse_strides;

/* One call. Pointers need the alignment of their element only; outputs may overlap nothing. */
typedef struct ds_sparse_io {
    size_t batch;                /* 0 counts as 1 */
    size_t seq_len;              /* 0: the layout's; else at most that */
    ds_dtype dtype;              /* DS_F32, DS_F16, DS_BF16: of all of q .. d_v; sums are fp32 */
    ds_sparse_strides strides;   /* of q, k, v, d_q, d_k, d_v */
    ds_sparse_strides o_strides; /* of out, d_out */
    const void *q, *k, *v;
    void *out;  /* backward reads it */
    float *lse; /* (batch, heads, seq_len, 2), see CONCEPTS; may be NULL in forward; backward reads it */

    const float *key_mask; /* (batch, seq_len) over keys (padding), or NULL */
    ds_sparse_mask key_mask_mode;
    const float *mask; /* element (b, h, i, j) at b * mask_batch + h * mask_head + i * mask_row + j, or NULL */
    size_t mask_batch, mask_head; /* 0: shared by batch items, by heads */
    size_t mask_row;              /* 0: seq_len */
    ds_sparse_mask mask_mode;
    const float *relative; /* (heads, 2 * relative_reach + 1), or NULL: added to the score of query i and key j is */
    size_t relative_reach; /* element relative_reach + clamp(j - i, -relative_reach, relative_reach) */

    const void *d_out;     /* backward: gradient of out */
    void *d_q, *d_k, *d_v; /* backward: overwritten with the gradients */
    /* backward: overwritten with that of relative, summed over the batch; may be NULL. fp32 always, but with 16-bit types it
       comes from out as rounded to them: each row adds an error of up to 2^-8 (bf16; fp16 2^-11) of sum |d_out * out| */
    float *d_relative;
} ds_sparse_io;

/* What kernels read of a layout and its attention; the four lists are device memory: of row r of pattern p, columns
   row_start[p * blocks + r] .. row_start[p * blocks + r + 1], and the same turned. */
typedef struct ds_sparse_grid {
    const size_t *row_start, *column_start;
    const uint32_t *columns, *rows;
    size_t heads, patterns, blocks, block, head_dim;
    float scale;
    bool causal;
} ds_sparse_grid;

/* Attention on a GPU, for blocks of a multiple of 16 tokens and head_dim up to 128; ds_kernels.cu fills it. Calls order work
   on the stream and return. fp32 by fused multiply-adds; fp16 and, from sm_80, bf16 on tensor cores, probabilities rounded
   to that type before the second product. No d_relative. Repeatable, but not the CPU's bits. */
typedef struct ds_sparse_kernels {
    void *ctx;
    ds_status (*forward)(void *ctx, const ds_sparse_grid *grid, const ds_sparse_io *io, void *stream);
    ds_status (*backward)(void *ctx, const ds_sparse_grid *grid, const ds_sparse_io *io, void *stream);
} ds_sparse_kernels;
extern void ds_cuda_sparse_kernels(ds_sparse_kernels *out); /* in ds_kernels.cu */

/* *out is NULL when it fails: DS_ERR_ARGUMENT, DS_ERR_UNSUPPORTED, DS_ERR_MEMORY, DS_ERR_VERSION. */
DS_API ds_status ds_sparse_create_(const ds_sparse_desc *desc, ds_sparse **out, ds_error *error, int version,
                                   size_t size);
static inline ds_status ds_sparse_create(const ds_sparse_desc *desc, ds_sparse **out, ds_error *error) {
    return ds_sparse_create_(desc, out, error, DS_SPARSE_VERSION, sizeof(ds_sparse_desc));
}
DS_API void ds_sparse_destroy(ds_sparse *s); /* NULL is fine */
/* Reads q, k, v and masks; writes out and lse. DS_ERR_ARGUMENT: a pointer is missing, the length or dtype is wrong. */
DS_API ds_status ds_sparse_forward(ds_sparse *s, const ds_sparse_io *io);
/* After a forward with the same q, k, v, masks and bias: reads them, out, lse and d_out; writes d_q, d_k, d_v. */
DS_API ds_status ds_sparse_backward(ds_sparse *s, const ds_sparse_io *io);
/* The same on a stream of desc.device. Without kernels the stream is not read. */
DS_API ds_status ds_sparse_forward_on(ds_sparse *s, const ds_sparse_io *io, void *stream);
DS_API ds_status ds_sparse_backward_on(ds_sparse *s, const ds_sparse_io *io, void *stream);
DS_API const ds_error *ds_sparse_error(const ds_sparse *s); /* of the last call that failed */
DS_API size_t ds_sparse_memory(const ds_sparse *s);         /* bytes that the object holds */
DS_API ds_sparse_level ds_sparse_simd_level(const ds_sparse *s);
/* Floating-point operations of one forward (4 a score and head_dim) or backward (10) over the scores in kept blocks
   that are not past the length nor wholly behind the causal mask; for figures against a machine's peak. */
DS_API double ds_sparse_flops(const ds_sparse *s, size_t batch, size_t seq_len, bool backward);

#ifdef __cplusplus
}
#endif
#endif /* DS_SPARSE_H */

#if defined(DS_SPARSE_IMPLEMENTATION) && !defined(DS_SPARSE_IMPL_DONE)
#define DS_SPARSE_IMPL_DONE
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

#include <math.h>
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "ds_sparse.h: fp32 arithmetic with more precision than fp32 would give other bits; use SSE (-mfpmath=sse)"
#endif
#ifndef DS_SPARSE_SIMD
#define DS_SPARSE_SIMD 1
#endif
#if DS_SPARSE_SIMD && defined(__x86_64__) && defined(__GNUC__)
#define DSI_SPARSE_X86 1
#include <immintrin.h>
#else
#define DSI_SPARSE_X86 0
#endif

// >>params
static const char *const dsi_sparse_modes[] = {
    "dense", "fixed", "variable", "bigbird", "bslongformer", "local_sliding_window", "custom"};
static const int64_t dsi_sparse_windows[] = {4}, dsi_sparse_globals[] = {0};

DS_API const char *ds_sparse_mode_name(ds_sparse_mode mode) {
    return (unsigned)mode <= DS_SPARSE_CUSTOM ? dsi_sparse_modes[mode] : "?";
}
DS_API ds_status ds_sparse_params_default(const char *mode, ds_sparse_params *out, ds_error *error) {
    memset(out, 0, sizeof *out);
    for (int i = DS_SPARSE_DENSE; i < DS_SPARSE_CUSTOM; i++) {
        if (!mode || strcmp(mode, dsi_sparse_modes[i])) continue;
        out->mode = (ds_sparse_mode)i;
        out->heads = 1;
        out->block = 16;
        out->num_local_blocks = 4;
        out->num_global_blocks = 1;
        out->unidirectional = i == DS_SPARSE_LOCAL_SLIDING_WINDOW;
        out->num_different_global_patterns = 1;
        out->local_window_blocks = dsi_sparse_windows;
        out->local_window_count = 1;
        out->global_block_indices = dsi_sparse_globals;
        out->global_count = 1;
        out->num_sliding_window_blocks = 3;
        return DS_OK;
    }
    return dsi_fail(error, DS_ERR_INPUT,
                    "ds_sparse: no mode is named \"%s\"; there are dense, fixed, variable, bigbird, bslongformer, "
                    "local_sliding_window",
                    mode ? mode : "");
}
DS_API ds_status ds_sparse_params_attention(ds_sparse_params *params, const char *attention, ds_error *error) {
    const bool before = attention && !strcmp(attention, "unidirectional");
    if (!before && params->mode != DS_SPARSE_BSLONGFORMER && (!attention || strcmp(attention, "bidirectional")))
        return dsi_fail(error, DS_ERR_INPUT,
                        "ds_sparse: attention must be \"unidirectional\" or \"bidirectional\"; got \"%s\"",
                        attention ? attention : "");
    params->unidirectional = before;
    return DS_OK;
}

static ds_status dsi_sparse_check_fixed(const ds_sparse_params *p, ds_error *error) {
    const size_t local = p->num_local_blocks, global = p->num_global_blocks,
                 patterns = p->num_different_global_patterns;
    if (!global || !local || local % global)
        return dsi_fail(
            error, DS_ERR_INPUT,
            "ds_sparse: fixed: num_global_blocks must divide num_local_blocks %zu, both at least 1; got %zu", local,
            global);
    if (patterns < 1 || patterns > local / global)
        return dsi_fail(error, DS_ERR_INPUT,
                        "ds_sparse: fixed: num_different_global_patterns must be 1 to num_local_blocks / "
                        "num_global_blocks = %zu; got %zu",
                        local / global, patterns);
    if (patterns > 1 && !p->different_layout_per_head)
        return dsi_fail(error, DS_ERR_INPUT,
                        "ds_sparse: fixed: num_different_global_patterns %zu needs different_layout_per_head",
                        patterns);
    return DS_OK;
}
static ds_status dsi_sparse_check_globals(const ds_sparse_params *p, ds_error *error) {
    const int64_t *begin = p->global_block_indices, *end = p->global_block_end_indices;
    if (p->global_count && !begin)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: global_block_indices is NULL; expected %zu numbers",
                        p->global_count);
    if (end && p->global_end_count != p->global_count)
        return dsi_fail(error, DS_ERR_INPUT,
                        "ds_sparse: global_block_end_indices must be as long as global_block_indices: %zu; got %zu",
                        p->global_count, p->global_end_count);
    for (size_t i = 0; i < p->global_count; i++) {
        if (begin[i] < 0)
            return dsi_fail(error, DS_ERR_INPUT, "ds_sparse: global_block_indices[%zu] must be at least 0; got %lld", i,
                            (long long)begin[i]);
        if (end && end[i] <= begin[i])
            return dsi_fail(error, DS_ERR_INPUT,
                            "ds_sparse: global_block_end_indices[%zu] must be above its start %lld; got %lld", i,
                            (long long)begin[i], (long long)end[i]);
    }
    return DS_OK;
}
static ds_status dsi_sparse_check_windows(const ds_sparse_params *p, ds_error *error) {
    if (!p->local_window_count || !p->local_window_blocks)
        return dsi_fail(error, DS_ERR_INPUT, "ds_sparse: variable: local_window_blocks needs at least one size");
    for (size_t i = 0; i < p->local_window_count; i++)
        if (p->local_window_blocks[i] < (i + 1 == p->local_window_count))
            return dsi_fail(error, DS_ERR_INPUT,
                            "ds_sparse: variable: local_window_blocks[%zu] must be at least %d%s; got %lld", i,
                            i + 1 == p->local_window_count, i + 1 == p->local_window_count ? " (the last repeats)" : "",
                            (long long)p->local_window_blocks[i]);
    return DS_OK;
}
DS_API ds_status ds_sparse_params_check(const ds_sparse_params *p, ds_error *error) {
    ds_status status = DS_OK;
    if (p->mode < DS_SPARSE_DENSE || p->mode >= DS_SPARSE_CUSTOM)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: mode %d is none to create a layout by", (int)p->mode);
    if (!p->heads || p->heads > DS_SPARSE_MAX_HEADS)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: heads must be 1 to %d; got %zu", DS_SPARSE_MAX_HEADS,
                        p->heads);
    if (!p->block || p->block > DS_SPARSE_MAX_BLOCK)
        return dsi_fail(error, DS_ERR_INPUT, "ds_sparse: block must be 1 to %d; got %zu", DS_SPARSE_MAX_BLOCK,
                        p->block);
    if (p->unidirectional && p->horizontal_global_attention &&
        (p->mode == DS_SPARSE_FIXED || p->mode == DS_SPARSE_VARIABLE))
        return dsi_fail(error, DS_ERR_INPUT, "ds_sparse: %s: horizontal_global_attention needs bidirectional attention",
                        dsi_sparse_modes[p->mode]);
    if (p->mode == DS_SPARSE_FIXED) status = dsi_sparse_check_fixed(p, error);
    if (p->mode == DS_SPARSE_VARIABLE) status = dsi_sparse_check_windows(p, error);
    if (!status && (p->mode == DS_SPARSE_VARIABLE || p->mode == DS_SPARSE_BSLONGFORMER))
        status = dsi_sparse_check_globals(p, error);
    return status;
}
DS_API size_t ds_sparse_padded(size_t seq_len, size_t block) {
    size_t padded = block ? dsi_round_up(seq_len, block) : 0;
    return padded == SIZE_MAX ? 0 : padded;
}

// >>rows: one row of blocks at a time, as bytes
// Everything below marks what row `row` of pattern `pattern` keeps among n columns. `on` starts as zeros.
typedef struct dsi_sparse_source {
    const ds_sparse_params *params;
    const uint8_t *map; // of the user's own, instead of params
    size_t n;
} dsi_sparse_source;

static void dsi_sparse_mark(uint8_t *on, size_t n, size_t begin, size_t end) {
    if (end > n) end = n;
    if (begin < end) memset(on + begin, 1, end - begin);
}
// A window of blocks that see each other, up to themselves when unidirectional.
static void dsi_sparse_window(const ds_sparse_params *p, size_t n, size_t row, size_t begin, size_t end, uint8_t *on) {
    if (begin <= row && row < end) dsi_sparse_mark(on, n, begin, p->unidirectional ? row + 1 : end);
}
// Blocks [begin, end) that rows see, all of them or from the first of these blocks on; horizontal: and that see all.
static void dsi_sparse_columns(const ds_sparse_params *p, size_t n, size_t row, size_t begin, size_t end, uint8_t *on) {
    if (!p->unidirectional || row >= begin) dsi_sparse_mark(on, n, begin, end);
    if (p->horizontal_global_attention && begin <= row && row < end) dsi_sparse_mark(on, n, 0, n);
}
static void dsi_sparse_row_fixed(const ds_sparse_params *p, size_t n, size_t pattern, size_t row, uint8_t *on) {
    const size_t local = p->num_local_blocks, global = p->num_global_blocks;
    const size_t first = local - (1 + pattern % p->num_different_global_patterns) * global;
    const size_t whole = n - n % local, window = row - row % local;
    dsi_sparse_window(p, n, row, window, dsi_add(window, local), on);
    for (size_t i = first; i < whole; i += local) dsi_sparse_columns(p, n, row, i, i + global, on);
    if (whole < n) {
        // A short last window: its usual place, but not past the end. DeepSpeed computes n - global, and where that is
        // below zero Python's slices count it from the end.
        size_t start = dsi_add(whole, first);
        if (global <= n && start > n - global) start = n - global;
        if (global > n) start = global - n < n ? n - (global - n) : 0;
        dsi_sparse_columns(p, n, row, start, global <= n ? start + global : n, on);
    }
}
// Globals by index or by range; those that begin past the end are skipped.
static size_t dsi_sparse_global(const ds_sparse_params *p, size_t n, size_t i, size_t *end) {
    const uint64_t begin = (uint64_t)p->global_block_indices[i];
    const uint64_t last = p->global_block_end_indices ? (uint64_t)p->global_block_end_indices[i] : begin + 1;
    *end = last < n ? (size_t)last : n;
    return begin < n ? (size_t)begin : n;
}
static void dsi_sparse_row_variable(const ds_sparse_params *p, size_t n, size_t row, uint8_t *on) {
    size_t begin = 0, size = 0;
    for (size_t i = 0; i < p->local_window_count && begin < n; i++) {
        size = (uint64_t)p->local_window_blocks[i] < n ? (size_t)p->local_window_blocks[i] : n;
        dsi_sparse_window(p, n, row, begin, begin + size < n ? begin + size : n, on);
        begin += size;
    }
    if (row >= begin) { // the last size repeats; begin < n, so it is the last that the loop saw
        begin = row - (row - begin) % size;
        dsi_sparse_window(p, n, row, begin, begin + size, on);
    }
    for (size_t i = 0; i < p->global_count; i++) {
        size_t end, start = dsi_sparse_global(p, n, i, &end);
        dsi_sparse_columns(p, n, row, start, end, on);
    }
}
static void dsi_sparse_row_sliding(const ds_sparse_params *p, size_t n, size_t row, uint8_t *on) {
    const size_t half = p->num_sliding_window_blocks / 2;
    dsi_sparse_mark(on, n, row > half ? row - half : 0, dsi_add(row, dsi_add(half, 1)));
}
// Random blocks: the manual states the generator. Bit 1 of a byte is what was drawn, until it is merged into bit 0.
static uint64_t dsi_sparse_random(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
static void dsi_sparse_row_random(const ds_sparse_params *p, size_t head, size_t row, size_t columns, uint8_t *on) {
    uint64_t state = p->seed + 0x9E3779B97F4A7C15u * (1 + ((uint64_t)head << 32) + row);
    if (!p->num_random_blocks) return;
    state = dsi_sparse_random(&state); // from the first state on, rows would draw each other's numbers one later
    for (size_t j = columns - p->num_random_blocks; j < columns; j++) {
        size_t t = (size_t)((dsi_sparse_random(&state) >> 32) * (j + 1) >> 32);
        if (on[t] & 2) t = j;
        on[t] |= 2;
    }
    for (size_t j = 0; j < columns; j++) on[j] = on[j] != 0;
}
static void dsi_sparse_row(const dsi_sparse_source *source, size_t pattern, size_t row, uint8_t *on) {
    const ds_sparse_params *p = source->params;
    const size_t n = source->n;
    if (!p) {
        const uint8_t *from = source->map + (pattern * n + row) * n;
        for (size_t j = 0; j < n; j++) on[j] = from[j] != 0;
        return;
    }
    memset(on, 0, n);
    switch (p->mode) {
    case DS_SPARSE_FIXED: dsi_sparse_row_fixed(p, n, pattern, row, on); break;
    case DS_SPARSE_VARIABLE:
        dsi_sparse_row_random(p, pattern, row, n, on);
        dsi_sparse_row_variable(p, n, row, on);
        break;
    case DS_SPARSE_BIGBIRD:
        dsi_sparse_row_random(p, pattern, row, p->unidirectional ? row + 1 : n, on);
        dsi_sparse_row_sliding(p, n, row, on);
        dsi_sparse_mark(on, n, 0, row < p->num_global_blocks ? n : p->num_global_blocks);
        break;
    case DS_SPARSE_BSLONGFORMER:
        dsi_sparse_row_sliding(p, n, row, on);
        for (size_t i = 0; i < p->global_count; i++) {
            size_t end, start = dsi_sparse_global(p, n, i, &end);
            dsi_sparse_mark(on, n, start, end);
            if (start <= row && row < end) dsi_sparse_mark(on, n, 0, n);
        }
        break;
    case DS_SPARSE_LOCAL_SLIDING_WINDOW: dsi_sparse_row_sliding(p, n, row, on); break;
    default: dsi_sparse_mark(on, n, 0, n); break;
    }
    // the modes whose globals are rows too lose what lies after the diagonal in one go
    if (p->unidirectional && p->mode >= DS_SPARSE_BIGBIRD && row + 1 < n) memset(on + row + 1, 0, n - row - 1);
}

// >>layout
// Kept blocks by row (for forward, and the gradient of q) and by column (for those of k and v), for all patterns.
struct ds_sparse_layout {
    ds_sparse_info info;
    ds_allocator allocator;
    size_t bytes;
    size_t *row_start, *column_start; // (patterns * blocks + 1)
    uint32_t *columns, *rows;         // (kept of all patterns)
};

// The errors that depend on the length.
static ds_status dsi_sparse_check_length(const ds_sparse_params *p, size_t n, ds_error *error) {
    const char *const mode = dsi_sparse_modes[p->mode];
    const bool draws = p->mode == DS_SPARSE_VARIABLE || p->mode == DS_SPARSE_BIGBIRD;
    if (draws && p->num_random_blocks > n)
        return dsi_fail(error, DS_ERR_INPUT,
                        "ds_sparse: %s: num_random_blocks must be at most the %zu of a row; got %zu", mode, n,
                        p->num_random_blocks);
    if (p->mode == DS_SPARSE_BIGBIRD && p->unidirectional && p->num_random_blocks > 1)
        return dsi_fail(error, DS_ERR_INPUT,
                        "ds_sparse: bigbird: unidirectional attention draws up to the diagonal, and row 0 has 1 block "
                        "there; num_random_blocks must be at most 1, got %zu",
                        p->num_random_blocks);
    if (p->mode >= DS_SPARSE_BIGBIRD && p->num_sliding_window_blocks > n)
        return dsi_fail(error, DS_ERR_INPUT,
                        "ds_sparse: %s: num_sliding_window_blocks must be at most the %zu of a row; got %zu", mode, n,
                        p->num_sliding_window_blocks);
    if (p->mode == DS_SPARSE_BIGBIRD && p->num_global_blocks > n)
        return dsi_fail(error, DS_ERR_INPUT,
                        "ds_sparse: bigbird: num_global_blocks must be at most the %zu of a row; got %zu", n,
                        p->num_global_blocks);
    return DS_OK;
}
static size_t dsi_sparse_patterns(const ds_sparse_params *p) {
    const bool draws = p->mode == DS_SPARSE_VARIABLE || p->mode == DS_SPARSE_BIGBIRD;
    if (!p->different_layout_per_head) return 1;
    if (p->mode == DS_SPARSE_FIXED)
        return p->heads < p->num_different_global_patterns ? p->heads : p->num_different_global_patterns;
    return draws && p->num_random_blocks ? p->heads : 1;
}
// Fills both lists from the rows; `on` is scratch of n bytes.
static void dsi_sparse_fill(ds_sparse_layout *l, const dsi_sparse_source *source, uint8_t *on) {
    const size_t n = source->n;
    size_t kept = 0;
    for (size_t p = 0; p < l->info.patterns; p++) {
        size_t *const count = l->column_start + p * n, before = kept;
        memset(count, 0, n * sizeof *count);
        for (size_t i = 0; i < n; i++) {
            l->row_start[p * n + i] = kept;
            dsi_sparse_row(source, p, i, on);
            for (size_t j = 0; j < n; j++)
                if (on[j]) l->columns[kept++] = (uint32_t)j, count[j]++;
        }
        for (size_t j = 0, start = before; j < n; j++) { // counts become starts
            const size_t here = count[j];
            count[j] = start;
            start += here;
        }
        for (size_t i = 0; i < n; i++)
            for (size_t e = l->row_start[p * n + i]; e < (i + 1 < n ? l->row_start[p * n + i + 1] : kept); e++)
                l->rows[count[l->columns[e]]++] = (uint32_t)i;
        memmove(count + 1, count, (n - 1) * sizeof *count); // each has advanced to the next one's start
        count[0] = before;
    }
    l->row_start[l->info.patterns * n] = l->column_start[l->info.patterns * n] = kept;
}
static ds_status dsi_sparse_build(const dsi_sparse_source *source, ds_sparse_info *info, const ds_allocator *allocator,
                                  ds_sparse_layout **out, ds_error *error) {
    const size_t n = source->n, rows = dsi_mul(info->patterns, n);
    size_t kept = 0, bytes;
    uint8_t *on = (uint8_t *)dsi_alloc(allocator, n);
    ds_sparse_layout *l;
    if (!on) return dsi_fail(error, DS_ERR_MEMORY, "ds_sparse: no memory for a row of %zu blocks", n);
    for (size_t r = 0; r < rows; r++) {
        dsi_sparse_row(source, r / n, r % n, on);
        for (size_t j = 0; j < n; j++) kept += on[j];
    }
    bytes = dsi_add(sizeof *l, dsi_add(dsi_mul(dsi_add(rows, 1), 2 * sizeof(size_t)), dsi_mul(kept, 8)));
    l = (ds_sparse_layout *)dsi_alloc_zero(allocator, bytes);
    if (l) {
        l->info = *info;
        if (allocator) l->allocator = *allocator;
        l->bytes = bytes;
        l->row_start = (size_t *)(void *)(l + 1);
        l->column_start = l->row_start + rows + 1;
        l->columns = (uint32_t *)(void *)(l->column_start + rows + 1);
        l->rows = l->columns + kept;
        dsi_sparse_fill(l, source, on);
        for (size_t h = 0; h < info->heads; h++) {
            const size_t p = h % info->patterns;
            l->info.kept += l->row_start[(p + 1) * n] - l->row_start[p * n];
        }
        l->info.density = (double)l->info.kept / ((double)info->heads * (double)n * (double)n);
    }
    dsi_release(allocator, on, n);
    *out = l;
    return l ? DS_OK : dsi_fail(error, DS_ERR_MEMORY, "ds_sparse: no memory for a layout of %zu bytes", bytes);
}
static ds_status dsi_sparse_check_shape(size_t seq_len, size_t block, ds_sparse_info *info, ds_error *error) {
    if (!seq_len || seq_len % block)
        return dsi_fail(error, DS_ERR_INPUT,
                        "ds_sparse: the sequence length must be a positive multiple of the block %zu; got %zu (see "
                        "ds_sparse_padded)",
                        block, seq_len);
    if (seq_len / block > UINT32_MAX / 2)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: %zu blocks in a row; at most 2^31 - 1 are possible",
                        seq_len / block);
    info->seq_len = seq_len;
    info->block = block;
    info->blocks = seq_len / block;
    return DS_OK;
}
DS_API ds_status ds_sparse_layout_create_(const ds_sparse_params *params, size_t seq_len, const ds_allocator *allocator,
                                          ds_sparse_layout **out, ds_error *error, int version, size_t size) {
    ds_sparse_info info;
    dsi_sparse_source source;
    ds_status status;
    memset(&info, 0, sizeof info);
    memset(&source, 0, sizeof source);
    *out = NULL;
    if (version != DS_SPARSE_VERSION || size != sizeof *params)
        return dsi_fail(error, DS_ERR_VERSION, "ds_sparse: the header is version %d, the implementation %d", version,
                        DS_SPARSE_VERSION);
    if ((status = ds_sparse_params_check(params, error)) != DS_OK) return status;
    if ((status = dsi_sparse_check_shape(seq_len, params->block, &info, error)) != DS_OK) return status;
    if ((status = dsi_sparse_check_length(params, info.blocks, error)) != DS_OK) return status;
    info.mode = params->mode;
    info.heads = params->heads;
    info.patterns = dsi_sparse_patterns(params);
    source.params = params;
    source.n = info.blocks;
    return dsi_sparse_build(&source, &info, allocator, out, error);
}
DS_API ds_status ds_sparse_layout_from_map(const uint8_t *map, size_t patterns, size_t heads, size_t seq_len,
                                           size_t block, const ds_allocator *allocator, ds_sparse_layout **out,
                                           ds_error *error) {
    ds_sparse_info info;
    dsi_sparse_source source;
    ds_status status;
    memset(&info, 0, sizeof info);
    memset(&source, 0, sizeof source);
    *out = NULL;
    if (!map || heads > DS_SPARSE_MAX_HEADS || !patterns || patterns > heads || !block || block > DS_SPARSE_MAX_BLOCK)
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "ds_sparse_layout_from_map: expected a map, 1 to heads = %zu patterns and a block of 1 to %d; "
                        "got %s, %zu, %zu",
                        heads, DS_SPARSE_MAX_BLOCK, map ? "a map" : "NULL", patterns, block);
    if ((status = dsi_sparse_check_shape(seq_len, block, &info, error)) != DS_OK) return status;
    info.mode = DS_SPARSE_CUSTOM;
    info.heads = heads;
    info.patterns = patterns;
    source.map = map;
    source.n = info.blocks;
    return dsi_sparse_build(&source, &info, allocator, out, error);
}
DS_API void ds_sparse_layout_destroy(ds_sparse_layout *layout) {
    if (layout) {
        const ds_allocator allocator = layout->allocator;
        dsi_release(&allocator, layout, layout->bytes);
    }
}
DS_API void ds_sparse_layout_info(const ds_sparse_layout *layout, ds_sparse_info *out) {
    *out = layout->info;
}
DS_API const uint32_t *ds_sparse_layout_row(const ds_sparse_layout *layout, size_t head, size_t row, size_t *count) {
    const size_t *start = layout->row_start + (head % layout->info.patterns) * layout->info.blocks + row;
    *count = start[1] - start[0];
    return layout->columns + start[0];
}

// >>svg
typedef struct dsi_sparse_pen {
    void (*write)(void *ctx, const char *text, size_t bytes);
    void *ctx;
} dsi_sparse_pen;
DSI_PRINTF(2, 3) static void dsi_sparse_draw(const dsi_sparse_pen *pen, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    dsi_vformat(text, sizeof text, format, args);
    va_end(args);
    pen->write(pen->ctx, text, strlen(text));
}
DS_API void ds_sparse_layout_svg(const ds_sparse_layout *layout,
                                 void (*write)(void *ctx, const char *text, size_t bytes), void *ctx) {
    const ds_sparse_info *info = &layout->info;
    const size_t n = info->blocks, step = n + 2, width = info->patterns * step + 2;
    const dsi_sparse_pen pen = {write, ctx};
    const double f = (double)step / 26; // height of letters; a user unit is a block
    dsi_sparse_draw(&pen,
                    "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 %.6g %zu %.6g\" width=\"%zu\" "
                    "font-family=\"sans-serif\" font-size=\"%.6g\">\n"
                    "<title>%s: %zu heads, %zu tokens in blocks of %zu, %.4g of the scores kept</title>\n",
                    2 - 6.4 * f, width, (double)n + 10.6 * f, info->patterns * 480, f, ds_sparse_mode_name(info->mode),
                    info->heads, info->seq_len, info->block, info->density);
    dsi_sparse_draw(&pen,
                    "<rect x=\"0\" y=\"%.6g\" width=\"%zu\" height=\"%.6g\" fill=\"#fff\"/>\n"
                    "<text x=\"2\" y=\"%.6g\">%s, %zu head%s, %zu tokens</text>\n"
                    "<text x=\"2\" y=\"%.6g\">blocks of %zu tokens, density %.4g</text>\n",
                    2 - 6.4 * f, width, (double)n + 10.6 * f, 2 - 4.6 * f, ds_sparse_mode_name(info->mode), info->heads,
                    info->heads == 1 ? "" : "s", info->seq_len, 2 - 3.1 * f, info->block, info->density);
    for (size_t p = 0; p < layout->info.patterns; p++) {
        const size_t x = 2 + p * step;
        dsi_sparse_draw(
            &pen,
            "<g><title>head %zu</title>\n<rect x=\"%zu\" y=\"2\" width=\"%zu\" height=\"%zu\" fill=\"#eef\"/>"
            "\n<path fill=\"#247\" d=\"",
            p, x, n, n);
        for (size_t i = 0; i < n; i++) { // a run of kept blocks is one rectangle
            size_t count;
            const uint32_t *columns = ds_sparse_layout_row(layout, p, i, &count);
            for (size_t e = 0, run; e < count; e += run) {
                for (run = 1; e + run < count && columns[e + run] == columns[e] + run;) run++;
                dsi_sparse_draw(&pen, "M%zu %zuh%zuv1h-%zuz", x + columns[e], i + 2, run, run);
            }
        }
        dsi_sparse_draw(&pen, "\"/></g>\n");
        dsi_sparse_draw(&pen, "<text x=\"%zu\" y=\"%.6g\">", x, 2 - 0.6 * f);
        if (info->patterns == 1)
            dsi_sparse_draw(&pen, "every head</text>\n");
        else if (info->patterns == info->heads)
            dsi_sparse_draw(&pen, "head %zu</text>\n", p);
        else
            dsi_sparse_draw(&pen, "head %zu, and each %zu further</text>\n", p, info->patterns);
    }
    dsi_sparse_draw(&pen,
                    "<rect x=\"2\" y=\"%.6g\" width=\"%.6g\" height=\"%.6g\" fill=\"#247\"/>"
                    "<text x=\"%.6g\" y=\"%.6g\">kept: queries down, keys across</text>\n</svg>\n",
                    (double)n + 2 + 1.2 * f, f, f, 2 + 1.6 * f, (double)n + 2 + 2.1 * f);
}

// >>simd
// A dot product runs in 16 lanes that fold by halves, and the softmax of a query goes along one lane: so x1 (plain C),
// x8 (AVX2) and x16 (AVX-512) give the same bits. Matrix products need no such care: each element is one chain of fma.
#define DSI_SPARSE_LANES 16
#define DSI_SPARSE_ROWS  8    // blocks are padded to this many rows
#define DSI_SPARSE_STRIP 32   // blocks that forward takes at once, at most
#define DSI_SPARSE_SPINS 1024 // that a caller waits for its workers before it sleeps
#if DSI_SPARSE_X86
#define DSI_SPARSE_PAUSE _mm_pause()
#else
#define DSI_SPARSE_PAUSE (void)0
#endif

// What coming products are the first to read, where memory may be all that has it: a product asks the cache for its share
// as it goes, line by line between its fused multiply-adds. More at once than a core can wait for would be dropped.
typedef struct dsi_sparse_asks {
    size_t count;
    const float *from[DSI_SPARSE_STRIP + 1]; // (rows, width)
    size_t row[DSI_SPARSE_STRIP + 1];
} dsi_sparse_asks;
typedef struct dsi_sparse_share { // a part of such a list
    const float *const *from;
    const size_t *row;
    size_t count, rows, width;
} dsi_sparse_share;

typedef struct dsi_sparse_simd {
    ds_sparse_level level;
    // c (rows, columns) (+)= a * b; element (i, l) of a at a[i * a_row + l * a_step]; rows by 8, columns by 16
    void (*product)(const float *a, size_t a_row, size_t a_step, const float *b, size_t b_row, size_t depth, float *c,
                    size_t c_row, size_t rows, size_t columns, bool add, const dsi_sparse_share *share);
    // 16 queries (lanes) over n keys, `step` apart: x becomes exp(x - largest), after largest took them in; shrink is
    // what that makes of the sum so far
    void (*softmax)(float *x, size_t step, size_t n, float *largest, float *sum, float *shrink);
    // x: scores to probabilities; d: their gradients to those of the scores
    void (*gradients)(float *x, float *d, const float *lse, float delta, size_t n);
    void (*multiply)(float *x, float factor, size_t n);
    float (*dot)(const float *a, const float *b, size_t n);
    void (*widen)(float *to, const void *from, ds_dtype dtype, float factor, size_t n);  // any n
    void (*narrow)(void *to, ds_dtype dtype, const float *from, float factor, size_t n); // any n
    // (rows, any columns) of `from` times factor, turned; rows by 8
    void (*turn)(float *to, size_t to_row, const float *from, size_t from_row, size_t rows, size_t columns,
                 float factor);
} dsi_sparse_simd;

static float dsi_sparse_fold(float *lane) {
    for (int half = DSI_SPARSE_LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

#define dsi_sparse_x1_t               float
#define dsi_sparse_x1_width           ((size_t)1)
#define dsi_sparse_x1_load(from)      (*(from))
#define dsi_sparse_x1_store(to, x)    (*(to) = (x))
#define dsi_sparse_x1_set(x)          (x)
#define dsi_sparse_x1_add(a, b)       ((a) + (b))
#define dsi_sparse_x1_sub(a, b)       ((a) - (b))
#define dsi_sparse_x1_mul(a, b)       ((a) * (b))
#define dsi_sparse_x1_fma(a, b, c)    fmaf(a, b, c)
#define dsi_sparse_x1_max(a, b)       ((a) > (b) ? (a) : (b))
#define dsi_sparse_x1_min(a, b)       ((a) < (b) ? (a) : (b))
#define dsi_sparse_x1_power(z)        dsi_f32_of_bits((dsi_bits_of_f32(z) + 127u) << 23)
#define dsi_sparse_x1_unless(x, y, z) ((x) < (y) ? 0.0f : (z))

#define dsi_sparse_x8_t            __m256
#define dsi_sparse_x8_width        ((size_t)8)
#define dsi_sparse_x8_load(from)   _mm256_loadu_ps(from)
#define dsi_sparse_x8_store(to, x) _mm256_storeu_ps(to, x)
#define dsi_sparse_x8_set(x)       _mm256_set1_ps(x)
#define dsi_sparse_x8_add(a, b)    _mm256_add_ps(a, b)
#define dsi_sparse_x8_sub(a, b)    _mm256_sub_ps(a, b)
#define dsi_sparse_x8_mul(a, b)    _mm256_mul_ps(a, b)
#define dsi_sparse_x8_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define dsi_sparse_x8_max(a, b)    _mm256_max_ps(a, b)
#define dsi_sparse_x8_min(a, b)    _mm256_min_ps(a, b)
#define dsi_sparse_x8_power(z)                                                                                         \
    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(z), _mm256_set1_epi32(127)), 23))
#define dsi_sparse_x8_unless(x, y, z) _mm256_and_ps(_mm256_cmp_ps(x, y, _CMP_NLT_UQ), z)

#define dsi_sparse_x16_t            __m512
#define dsi_sparse_x16_width        ((size_t)16)
#define dsi_sparse_x16_load(from)   _mm512_loadu_ps(from)
#define dsi_sparse_x16_store(to, x) _mm512_storeu_ps(to, x)
#define dsi_sparse_x16_set(x)       _mm512_set1_ps(x)
#define dsi_sparse_x16_add(a, b)    _mm512_add_ps(a, b)
#define dsi_sparse_x16_sub(a, b)    _mm512_sub_ps(a, b)
#define dsi_sparse_x16_mul(a, b)    _mm512_mul_ps(a, b)
#define dsi_sparse_x16_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define dsi_sparse_x16_max(a, b)    _mm512_max_ps(a, b)
#define dsi_sparse_x16_min(a, b)    _mm512_min_ps(a, b)
#define dsi_sparse_x16_power(z)                                                                                        \
    _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_castps_si512(z), _mm512_set1_epi32(127)), 23))
#define dsi_sparse_x16_unless(x, y, z) _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, y, _CMP_NLT_UQ), z)

// e^x for x up to 88: x = n ln 2 + r, |r| <= ln 2 / 2, e^r - 1 by a polynomial (Cephes), e^x = 2^n + 2^n (e^r - 1).
// Adding 1.5 * 2^23 rounds to an integer and leaves n in the low bits, which become the exponent. Its last step is an
// fma, so that a sum of exponentials adds no product. NaN stays NaN.
#define DSI_SPARSE_EXP(L, x, y)                                                                                        \
    {                                                                                                                  \
        const dsi_sparse_##L##_t magic = dsi_sparse_##L##_set(12582912.0f);                                            \
        const dsi_sparse_##L##_t e = dsi_sparse_##L##_min(dsi_sparse_##L##_set(88.0f), x);                             \
        const dsi_sparse_##L##_t z = dsi_sparse_##L##_fma(e, dsi_sparse_##L##_set(1.44269504f), magic);                \
        const dsi_sparse_##L##_t whole = dsi_sparse_##L##_sub(z, magic);                                               \
        const dsi_sparse_##L##_t power = dsi_sparse_##L##_power(z);                                                    \
        dsi_sparse_##L##_t r = dsi_sparse_##L##_fma(whole, dsi_sparse_##L##_set(-0.693145752f), e), p;                 \
        r = dsi_sparse_##L##_fma(whole, dsi_sparse_##L##_set(-1.42860677e-6f), r);                                     \
        p = dsi_sparse_##L##_set(1.9875691500e-4f);                                                                    \
        p = dsi_sparse_##L##_fma(p, r, dsi_sparse_##L##_set(1.3981999507e-3f));                                        \
        p = dsi_sparse_##L##_fma(p, r, dsi_sparse_##L##_set(8.3334519073e-3f));                                        \
        p = dsi_sparse_##L##_fma(p, r, dsi_sparse_##L##_set(4.1665795894e-2f));                                        \
        p = dsi_sparse_##L##_fma(p, r, dsi_sparse_##L##_set(1.6666665459e-1f));                                        \
        p = dsi_sparse_##L##_fma(p, r, dsi_sparse_##L##_set(5.0000001201e-1f));                                        \
        p = dsi_sparse_##L##_fma(p, dsi_sparse_##L##_mul(r, r), r);                                                    \
        y = dsi_sparse_##L##_unless(x, dsi_sparse_##L##_set(-87.0f), dsi_sparse_##L##_fma(p, power, power));           \
    }

// The kernels over rows, for one level.
#define DSI_SPARSE_LEVEL(L, TARGET)                                                                                    \
    TARGET static void dsi_sparse_softmax_##L(float *x, size_t step, size_t n, float *largest, float *sum,             \
                                              float *shrink) {                                                         \
        const dsi_sparse_##L##_t lowest = dsi_sparse_##L##_set(-3.40282347e38f);                                       \
        for (size_t w = 0; w < DSI_SPARSE_LANES; w += dsi_sparse_##L##_width) {                                        \
            const dsi_sparse_##L##_t before = dsi_sparse_##L##_load(largest + w);                                      \
            dsi_sparse_##L##_t m = before, odd = before, total = dsi_sparse_##L##_set(0.0f), shift, d, y;              \
            for (size_t k = 0; k + 1 < n; k += 2) {                                                                    \
                m = dsi_sparse_##L##_max(dsi_sparse_##L##_load(x + k * step + w), m);                                  \
                odd = dsi_sparse_##L##_max(dsi_sparse_##L##_load(x + (k + 1) * step + w), odd);                        \
            }                                                                                                          \
            if (n % 2) m = dsi_sparse_##L##_max(dsi_sparse_##L##_load(x + (n - 1) * step + w), m);                     \
            m = dsi_sparse_##L##_max(m, odd);                                                                          \
            shift = dsi_sparse_##L##_unless(m, lowest, m);                                                             \
            d = dsi_sparse_##L##_sub(before, shift);                                                                   \
            DSI_SPARSE_EXP(L, d, y)                                                                                    \
            dsi_sparse_##L##_store(largest + w, m);                                                                    \
            dsi_sparse_##L##_store(shrink + w, y);                                                                     \
            for (size_t k = 0; k < n; k++) {                                                                           \
                float *const at = x + k * step + w;                                                                    \
                d = dsi_sparse_##L##_sub(dsi_sparse_##L##_load(at), shift);                                            \
                DSI_SPARSE_EXP(L, d, y)                                                                                \
                dsi_sparse_##L##_store(at, y);                                                                         \
                total = dsi_sparse_##L##_add(total, y);                                                                \
            }                                                                                                          \
            y = dsi_sparse_##L##_load(shrink + w);                                                                     \
            dsi_sparse_##L##_store(sum + w, dsi_sparse_##L##_fma(dsi_sparse_##L##_load(sum + w), y, total));           \
        }                                                                                                              \
    }                                                                                                                  \
    TARGET static void dsi_sparse_gradients_##L(float *x, float *g, const float *lse, float delta, size_t n) {         \
        const dsi_sparse_##L##_t most = dsi_sparse_##L##_set(lse[0]), sum = dsi_sparse_##L##_set(lse[1]);              \
        const dsi_sparse_##L##_t t = dsi_sparse_##L##_set(delta);                                                      \
        for (size_t i = 0; i < n; i += dsi_sparse_##L##_width) {                                                       \
            const dsi_sparse_##L##_t d =                                                                               \
                dsi_sparse_##L##_sub(dsi_sparse_##L##_sub(dsi_sparse_##L##_load(x + i), most), sum);                   \
            dsi_sparse_##L##_t y;                                                                                      \
            DSI_SPARSE_EXP(L, d, y)                                                                                    \
            dsi_sparse_##L##_store(x + i, y);                                                                          \
            dsi_sparse_##L##_store(g + i,                                                                              \
                                   dsi_sparse_##L##_mul(y, dsi_sparse_##L##_sub(dsi_sparse_##L##_load(g + i), t)));    \
        }                                                                                                              \
    }                                                                                                                  \
    TARGET static void dsi_sparse_multiply_##L(float *x, float factor, size_t n) {                                     \
        const dsi_sparse_##L##_t f = dsi_sparse_##L##_set(factor);                                                     \
        for (size_t i = 0; i < n; i += dsi_sparse_##L##_width)                                                         \
            dsi_sparse_##L##_store(x + i, dsi_sparse_##L##_mul(dsi_sparse_##L##_load(x + i), f));                      \
    }                                                                                                                  \
    TARGET static float dsi_sparse_dot_##L(const float *a, const float *b, size_t n) {                                 \
        float lane[DSI_SPARSE_LANES];                                                                                  \
        for (size_t w = 0; w < DSI_SPARSE_LANES; w += dsi_sparse_##L##_width) {                                        \
            dsi_sparse_##L##_t sum = dsi_sparse_##L##_set(0.0f);                                                       \
            for (size_t i = w; i < n; i += DSI_SPARSE_LANES)                                                           \
                sum = dsi_sparse_##L##_fma(dsi_sparse_##L##_load(a + i), dsi_sparse_##L##_load(b + i), sum);           \
            dsi_sparse_##L##_store(lane + w, sum);                                                                     \
        }                                                                                                              \
        return dsi_sparse_fold(lane);                                                                                  \
    }                                                                                                                  \
    static const dsi_sparse_simd dsi_sparse_##L = {                                                                    \
        DSI_SPARSE_LEVEL_##L,     dsi_sparse_product_##L,  dsi_sparse_softmax_##L,                                     \
        dsi_sparse_gradients_##L, dsi_sparse_multiply_##L, dsi_sparse_dot_##L,                                         \
        dsi_sparse_widen_##L,     dsi_sparse_narrow_##L,   dsi_sparse_turn_##L};

#define DSI_SPARSE_LEVEL_x1  DS_SPARSE_LEVEL_SCALAR
#define DSI_SPARSE_LEVEL_x8  DS_SPARSE_LEVEL_AVX2
#define DSI_SPARSE_LEVEL_x16 DS_SPARSE_LEVEL_AVX512

static void dsi_sparse_product_x1(const float *a, size_t a_row, size_t a_step, const float *b, size_t b_row,
                                  size_t depth, float *c, size_t c_row, size_t rows, size_t columns, bool add,
                                  const dsi_sparse_share *share) {
    (void)share; // memory is fast enough for it
    for (size_t i = 0; i < rows; i++) {
        float *const to = c + i * c_row;
        if (!add) memset(to, 0, columns * sizeof *to);
        for (size_t l = 0; l < depth; l++) {
            const float e = a[i * a_row + l * a_step];
            for (size_t j = 0; j < columns; j++) to[j] = fmaf(e, b[l * b_row + j], to[j]);
        }
    }
}
static void dsi_sparse_widen_x1(float *to, const void *from, ds_dtype dtype, float factor, size_t n) {
    const uint16_t *half = (const uint16_t *)from;
    if (dtype == DS_BF16)
        for (size_t i = 0; i < n; i++) to[i] = dsi_f32_of_bf16(half[i]) * factor;
    else if (dtype == DS_F16)
        for (size_t i = 0; i < n; i++) to[i] = dsi_f32_of_f16(half[i]) * factor;
    else
        for (size_t i = 0; i < n; i++) to[i] = ((const float *)from)[i] * factor;
}
static void dsi_sparse_narrow_x1(void *to, ds_dtype dtype, const float *from, float factor, size_t n) {
    uint16_t *half = (uint16_t *)to;
    if (dtype == DS_BF16)
        for (size_t i = 0; i < n; i++) half[i] = dsi_bf16_of_f32(from[i] * factor);
    else if (dtype == DS_F16)
        for (size_t i = 0; i < n; i++) half[i] = dsi_f16_of_f32(from[i] * factor);
    else
        for (size_t i = 0; i < n; i++) ((float *)to)[i] = from[i] * factor;
}
static void dsi_sparse_turn_x1(float *to, size_t to_row, const float *from, size_t from_row, size_t rows,
                               size_t columns, float factor) {
    for (size_t e = 0; e < columns; e++)
        for (size_t r = 0; r < rows; r++) to[e * to_row + r] = from[r * from_row + e] * factor;
}
DSI_SPARSE_LEVEL(x1, )

#if DSI_SPARSE_X86
#define DSI_SPARSE_AVX2   __attribute__((target("avx2,fma,f16c")))
#define DSI_SPARSE_AVX512 __attribute__((target("avx512f,avx2,fma,f16c")))
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // GCC's own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

// Conversions of 16-bit types. bf16 is rounded by the integer rule of dsi_bf16_of_f32; the instruction for it would
// flush denormals.
DSI_SPARSE_AVX2 static __m128i dsi_sparse_bf16_x8(__m256 x) {
    const __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i r = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
// GCC trusts code of one file to cope with upper halves in use, in which scalar code waits on Intel: _mm256_zeroupper.
DSI_SPARSE_AVX2 static void dsi_sparse_widen_x8(float *to, const void *from, ds_dtype dtype, float factor, size_t n) {
    const uint16_t *half = (const uint16_t *)from;
    const __m256 f = _mm256_set1_ps(factor);
    size_t i = 0;
    if (dtype == DS_F32) {
        for (; n - i >= 8; i += 8) _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_loadu_ps((const float *)from + i), f));
        _mm256_zeroupper();
        dsi_sparse_widen_x1(to + i, (const float *)from + i, dtype, factor, n - i);
        return;
    }
    for (; n - i >= 8; i += 8) {
        const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(half + i));
        const __m256 x =
            dtype == DS_F16 ? _mm256_cvtph_ps(h) : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
        _mm256_storeu_ps(to + i, _mm256_mul_ps(x, f));
    }
    _mm256_zeroupper();
    dsi_sparse_widen_x1(to + i, half + i, dtype, factor, n - i);
}
DSI_SPARSE_AVX2 static void dsi_sparse_narrow_x8(void *to, ds_dtype dtype, const float *from, float factor, size_t n) {
    uint16_t *half = (uint16_t *)to;
    const __m256 f = _mm256_set1_ps(factor);
    size_t i = 0;
    if (dtype == DS_F32) {
        for (; n - i >= 8; i += 8) _mm256_storeu_ps((float *)to + i, _mm256_mul_ps(_mm256_loadu_ps(from + i), f));
        _mm256_zeroupper();
        dsi_sparse_narrow_x1((float *)to + i, dtype, from + i, factor, n - i);
        return;
    }
    for (; n - i >= 8; i += 8) {
        const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(from + i), f);
        _mm_storeu_si128((__m128i *)(void *)(half + i),
                         dtype == DS_F16 ? _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT) : dsi_sparse_bf16_x8(x));
    }
    _mm256_zeroupper();
    dsi_sparse_narrow_x1(half + i, dtype, from + i, factor, n - i);
}
// 8 x 8 at a time: halves of two rows four apart meet in a vector, pairs and then fours of lanes change places.
DSI_SPARSE_AVX2 static __m256 dsi_sparse_halves_x8(const float *low, const float *high, __m256 factor) {
    return _mm256_mul_ps(_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1),
                         factor);
}
DSI_SPARSE_AVX2 static void dsi_sparse_turn_x8(float *to, size_t to_row, const float *from, size_t from_row,
                                               size_t rows, size_t columns, float factor) {
    const __m256 f = _mm256_set1_ps(factor);
    size_t e = 0;
    for (; columns - e >= 4; e += 4)
        for (size_t r = 0; r < rows; r += 8) {
            const float *x = from + r * from_row + e;
            const __m256 a = dsi_sparse_halves_x8(x, x + 4 * from_row, f);
            const __m256 b = dsi_sparse_halves_x8(x + from_row, x + 5 * from_row, f);
            const __m256 c = dsi_sparse_halves_x8(x + 2 * from_row, x + 6 * from_row, f);
            const __m256 d = dsi_sparse_halves_x8(x + 3 * from_row, x + 7 * from_row, f);
            const __m256 ab = _mm256_unpacklo_ps(a, b), ab2 = _mm256_unpackhi_ps(a, b);
            const __m256 cd = _mm256_unpacklo_ps(c, d), cd2 = _mm256_unpackhi_ps(c, d);
            _mm256_storeu_ps(to + e * to_row + r, _mm256_shuffle_ps(ab, cd, 0x44));
            _mm256_storeu_ps(to + (e + 1) * to_row + r, _mm256_shuffle_ps(ab, cd, 0xEE));
            _mm256_storeu_ps(to + (e + 2) * to_row + r, _mm256_shuffle_ps(ab2, cd2, 0x44));
            _mm256_storeu_ps(to + (e + 3) * to_row + r, _mm256_shuffle_ps(ab2, cd2, 0xEE));
        }
    dsi_sparse_turn_x1(to + e * to_row, to_row, from + e, from_row, rows, columns - e, factor);
}
// they are bound by memory, so the wider level has no versions of its own
#define dsi_sparse_widen_x16  dsi_sparse_widen_x8
#define dsi_sparse_narrow_x16 dsi_sparse_narrow_x8
#define dsi_sparse_turn_x16   dsi_sparse_turn_x8

// A tile of c stays in registers while a and b go by: R rows (a macro that lists them) of V vectors (likewise). `lower` is
// the second half of the rows of a: so few strides that general registers hold them.
#define DSI_SPARSE_LIST4(DO, L, V) DO(L, V, 0) DO(L, V, 1) DO(L, V, 2) DO(L, V, 3)
#define DSI_SPARSE_LIST8(DO, L, V) DSI_SPARSE_LIST4(DO, L, V) DO(L, V, 4) DO(L, V, 5) DO(L, V, 6) DO(L, V, 7)
#define DSI_SPARSE_IF1(a)
#define DSI_SPARSE_IF2(a) a
#define DSI_SPARSE_ZERO(L, V, i)                                                                                       \
    dsi_sparse_##L##_t c##i##0 = dsi_sparse_##L##_set(0.0f);                                                           \
    DSI_SPARSE_IF##V(dsi_sparse_##L##_t c##i##1 = c##i##0;)
#define DSI_SPARSE_LOAD(L, V, i)                                                                                       \
    c##i##0 = dsi_sparse_##L##_load(c + i * c_row);                                                                    \
    DSI_SPARSE_IF##V(c##i##1 = dsi_sparse_##L##_load(c + i * c_row + dsi_sparse_##L##_width);)
#define DSI_SPARSE_FMA(L, V, i)                                                                                        \
    e = dsi_sparse_##L##_set((i < half ? a : lower)[i % half * a_row]);                                                \
    c##i##0 = dsi_sparse_##L##_fma(e, b0, c##i##0);                                                                    \
    DSI_SPARSE_IF##V(c##i##1 = dsi_sparse_##L##_fma(e, b1, c##i##1);)
#define DSI_SPARSE_STORE(L, V, i)                                                                                      \
    dsi_sparse_##L##_store(c + i * c_row, c##i##0);                                                                    \
    DSI_SPARSE_IF##V(dsi_sparse_##L##_store(c + i * c_row + dsi_sparse_##L##_width, c##i##1);)
// A tile's part of a share: `rows` rows of each of its blocks, from row `at` on; a new row each `steps` of the depth, and a
// prefetch in each step, `advance` bytes on. Past the last block it goes on into what follows, which does no harm.
typedef struct dsi_sparse_pace {
    const dsi_sparse_share *share;
    size_t at, rows, steps, advance;
} dsi_sparse_pace;
static dsi_sparse_pace dsi_sparse_pace_of(const dsi_sparse_share *share, size_t tiles, size_t depth) {
    dsi_sparse_pace p = {share, 0, (share->rows + tiles - 1) / tiles, 0, 0};
    if (!share->count) return p;
    p.steps = (depth + p.rows * share->count - 1) / (p.rows * share->count);
    p.advance = (share->width * sizeof(float) + p.steps - 1) / p.steps;
    return p;
}
typedef struct dsi_sparse_way {
    size_t left, row; // steps on this row, and the next one
    uintptr_t line;
} dsi_sparse_way;
static inline void dsi_sparse_on(const dsi_sparse_pace *p, dsi_sparse_way *way) {
    if (!way->left) {
        const size_t block = way->row % p->share->count, row = p->at + way->row / p->share->count;
        way->line = (uintptr_t)p->share->from[block] + row * p->share->row[block] * sizeof(float);
        way->left = p->steps;
        way->row++;
    }
    __builtin_prefetch((const void *)way->line);
    way->line += p->advance;
    way->left--;
}
#define DSI_SPARSE_WITH(a) a // a tile with asks, and one without
#define DSI_SPARSE_SANS(a)
#define DSI_SPARSE_TILE(L, R, V, ASKS, TARGET)                                                                         \
    TARGET static inline void dsi_sparse_tile_##L##_##R##_##V##_##ASKS(                                                \
        const float *a, size_t a_row, size_t a_step, const float *b, size_t b_row, size_t depth, float *c,             \
        size_t c_row, bool add, const dsi_sparse_pace *p) {                                                            \
        enum { half = R / 2 };                                                                                         \
        const float *lower = a + half * a_row;                                                                         \
        dsi_sparse_way way = {0, 0, 0};                                                                                \
        DSI_SPARSE_LIST##R(DSI_SPARSE_ZERO, L, V) if (add){DSI_SPARSE_LIST##R(DSI_SPARSE_LOAD, L, V)}(void)p,          \
            (void)way;                                                                                                 \
        for (size_t l = 0; l < depth; l++, a += a_step, lower += a_step, b += b_row) {                                 \
            dsi_sparse_##L##_t e, b0;                                                                                  \
            DSI_SPARSE_IF##V(dsi_sparse_##L##_t b1;) DSI_SPARSE_##ASKS(dsi_sparse_on(p, &way);) b0 =                   \
                dsi_sparse_##L##_load(b);                                                                              \
            DSI_SPARSE_IF##V(b1 = dsi_sparse_##L##_load(b + dsi_sparse_##L##_width);)                                  \
                DSI_SPARSE_LIST##R(DSI_SPARSE_FMA, L, V)                                                               \
        }                                                                                                              \
        DSI_SPARSE_LIST##R(DSI_SPARSE_STORE, L, V)                                                                     \
    }
DSI_SPARSE_TILE(x8, 4, 2, WITH, DSI_SPARSE_AVX2)
DSI_SPARSE_TILE(x8, 4, 2, SANS, DSI_SPARSE_AVX2)
DSI_SPARSE_TILE(x16, 8, 1, WITH, DSI_SPARSE_AVX512)
DSI_SPARSE_TILE(x16, 8, 1, SANS, DSI_SPARSE_AVX512)
DSI_SPARSE_TILE(x16, 8, 2, WITH, DSI_SPARSE_AVX512)
DSI_SPARSE_TILE(x16, 8, 2, SANS, DSI_SPARSE_AVX512)
// The tile at i, j; both kinds are inlined.
#define DSI_SPARSE_TILE_AT(NAME)                                                                                       \
    do {                                                                                                               \
        const float *const a_at = a + i * a_row;                                                                       \
        if (share->count)                                                                                              \
            dsi_sparse_tile_##NAME##_WITH(a_at, a_row, a_step, b + j, b_row, depth, c + i * c_row + j, c_row, add,     \
                                          &p);                                                                         \
        else                                                                                                           \
            dsi_sparse_tile_##NAME##_SANS(a_at, a_row, a_step, b + j, b_row, depth, c + i * c_row + j, c_row, add,     \
                                          &p);                                                                         \
    } while (0)

DSI_SPARSE_AVX2 static void dsi_sparse_product_x8(const float *a, size_t a_row, size_t a_step, const float *b,
                                                  size_t b_row, size_t depth, float *c, size_t c_row, size_t rows,
                                                  size_t columns, bool add, const dsi_sparse_share *share) {
    dsi_sparse_pace p = dsi_sparse_pace_of(share, rows / 4 * (columns / 16), depth);
    for (size_t j = 0; j < columns; j += 16)
        for (size_t i = 0; i < rows; i += 4, p.at += p.rows) DSI_SPARSE_TILE_AT(x8_4_2);
}
DSI_SPARSE_AVX512 static void dsi_sparse_product_x16(const float *a, size_t a_row, size_t a_step, const float *b,
                                                     size_t b_row, size_t depth, float *c, size_t c_row, size_t rows,
                                                     size_t columns, bool add, const dsi_sparse_share *share) {
    dsi_sparse_pace p = dsi_sparse_pace_of(share, rows / 8 * ((columns + 16) / 32), depth);
    size_t j = 0;
    for (; columns - j >= 32; j += 32)
        for (size_t i = 0; i < rows; i += 8, p.at += p.rows) DSI_SPARSE_TILE_AT(x16_8_2);
    for (size_t i = 0; i < rows && j < columns; i += 8, p.at += p.rows) DSI_SPARSE_TILE_AT(x16_8_1);
}
DSI_SPARSE_LEVEL(x8, DSI_SPARSE_AVX2)
DSI_SPARSE_LEVEL(x16, DSI_SPARSE_AVX512)
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

// The kernels of `level`, or NULL where the machine lacks it.
static const dsi_sparse_simd *dsi_sparse_kernels_of(ds_sparse_level level) {
    const bool best = level == DS_SPARSE_LEVEL_BEST;
#if DSI_SPARSE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        if ((best || level == DS_SPARSE_LEVEL_AVX512) && __builtin_cpu_supports("avx512f")) return &dsi_sparse_x16;
        if (best || level == DS_SPARSE_LEVEL_AVX2) return &dsi_sparse_x8;
    }
#endif
    return best || level == DS_SPARSE_LEVEL_SCALAR ? &dsi_sparse_x1 : NULL;
}

// >>object
// A head of a batch item is a "unit". What can be read in place is (dsi_sparse_at); else a unit is packed first: rows padded
// to 8 a block and 16 a token, so that every product reads and writes whole vectors and 16-bit types are widened once.
// Each worker has memory for one: whole units go to workers, and when fewer are left than there are workers, these share
// their rows and columns of blocks.
typedef struct dsi_sparse_unit {
    float *q, *k, *v, *d_out,
        *d_q;                   // (blocks, rows, width); forward has k and v, backward all but v, whose place q takes
    float *k_turned, *v_turned; // (blocks, head_dim, columns); of a whole unit, the block at work
    float *lse, *delta;         // (blocks, rows, 2), (blocks, rows)
    float *d_relative;          // (2 * relative_reach + 1)
} dsi_sparse_unit;
typedef struct dsi_sparse_scratch {
    float *scores; // forward (keys of a strip, columns), turned: a row is a key; backward (rows, columns)
    float *d_scores;
    float *one, *two; // forward: q (head_dim, columns) and out (rows, width); backward: d_k and d_v (rows, width)
    float *largest, *sum, *shrink; // (columns)
    size_t next;                   // item of this worker's share of a loop that nobody took yet, atomically
} dsi_sparse_scratch;

struct ds_sparse {
    ds_sparse_desc desc;
    ds_error error;
    const dsi_sparse_simd *simd;
    dsi_pool *pool;
    ds_tasks tasks;
    unsigned workers;
    size_t heads, block, blocks;
    size_t rows, columns, width; // block padded to 8 and to 16, head_dim padded to 16
    size_t strip;                // column blocks that forward takes at once
    size_t bytes, floats;
    float *memory;
    dsi_sparse_unit *units;
    dsi_sparse_scratch *scratch;
    ds_sparse_grid grid; // with kernels
    void *lists;         // the grid's, one array of the device
    size_t list_bytes;
};

// Hands out parts of the object's one array; with no array yet, only counts.
static float *dsi_sparse_part(ds_sparse *s, size_t count) {
    float *part = s->memory ? s->memory + s->floats : NULL;
    s->floats = dsi_add(s->floats, dsi_round_up(count, 16));
    return part;
}
static void dsi_sparse_lay_out(ds_sparse *s) {
    const size_t tokens = dsi_mul(s->blocks, s->rows), natural = dsi_mul(tokens, s->width);
    const size_t turned = dsi_mul(dsi_mul(s->blocks, s->columns), s->desc.head_dim);
    const size_t tile = s->columns * s->width, scores = s->rows * s->columns;
    const size_t strip = (s->strip * s->block + s->rows - s->block) * s->columns;
    const bool back = !s->desc.forward_only;
    s->floats = 0;
    for (unsigned w = 0; w < s->workers; w++) {
        dsi_sparse_unit *u = &s->units[w];
        dsi_sparse_scratch *x = &s->scratch[w];
        u->k = dsi_sparse_part(s, natural);
        u->v = u->q = dsi_sparse_part(s, natural); // forward's values, backward's queries
        if (back) {
            u->k_turned = dsi_sparse_part(s, turned);
            u->v_turned = dsi_sparse_part(s, turned);
            u->d_out = dsi_sparse_part(s, natural);
            u->d_q = dsi_sparse_part(s, natural);
            u->lse = dsi_sparse_part(s, 2 * tokens);
            u->delta = dsi_sparse_part(s, tokens);
            u->d_relative = dsi_sparse_part(s, dsi_add(dsi_mul(2, s->desc.relative_reach), 1));
        }
        x->scores = dsi_sparse_part(s, strip);
        if (back) x->d_scores = dsi_sparse_part(s, scores);
        x->one = dsi_sparse_part(s, tile);
        x->two = dsi_sparse_part(s, tile);
        x->largest = dsi_sparse_part(s, s->columns);
        x->sum = dsi_sparse_part(s, s->columns);
        x->shrink = dsi_sparse_part(s, s->columns);
    }
}
static ds_status dsi_sparse_check_desc(const ds_sparse_desc *d, ds_error *error) {
    volatile float tiny = 1.17549435e-38f;
    volatile float flushed = tiny * 0.5f;
    volatile float kept = dsi_f32_of_bits(1);
    if (flushed == 0 || kept * 16777216.0f == 0)
        return dsi_fail(error, DS_ERR_UNSUPPORTED,
                        "ds_sparse: this thread flushes denormals to zero (MXCSR FTZ or DAZ); results would differ "
                        "between machines. Clear it before training");
    if (!d->layout) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: layout is NULL");
    if (!d->head_dim || d->head_dim > 4096)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: head_dim must be 1 to 4096; got %zu", d->head_dim);
    if (!(d->scale - d->scale == 0))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: scale must be finite; got %g", (double)d->scale);
    if (d->relative_reach > UINT32_MAX)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: relative_reach must be below 2^32; got %zu",
                        d->relative_reach);
    if (d->threads > 4096)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: threads must be at most 4096; got %u", d->threads);
    return DS_OK;
}
static size_t dsi_sparse_tables(unsigned workers) {
    return workers * (sizeof(dsi_sparse_unit) + sizeof(dsi_sparse_scratch));
}
DS_API void ds_sparse_destroy(ds_sparse *s) {
    if (s) {
        const ds_allocator allocator = s->desc.allocator;
        dsi_pool_destroy(s->pool);
        if (s->lists) s->desc.device->release(s->desc.device->ctx, s->lists, s->list_bytes);
        dsi_release_aligned(&allocator, s->memory, dsi_mul(s->floats, sizeof(float)), 64);
        dsi_release(&allocator, s->units, dsi_sparse_tables(s->workers));
        dsi_release(&allocator, s, sizeof *s);
    }
}
static ds_status dsi_sparse_take(ds_sparse *s, ds_error *error) {
    const ds_allocator *allocator = &s->desc.allocator;
    const bool own = !s->desc.tasks.parallel_for && s->desc.threads > 1;
    s->tasks = s->desc.tasks;
    s->workers = own ? s->desc.threads : s->tasks.parallel_for && s->tasks.workers ? s->tasks.workers : 1;
    s->units = (dsi_sparse_unit *)dsi_alloc_zero(allocator, dsi_sparse_tables(s->workers));
    if (!s->units) return dsi_fail(error, DS_ERR_MEMORY, "ds_sparse: no memory for %u workers", s->workers);
    s->scratch = (dsi_sparse_scratch *)(void *)(s->units + s->workers);
    dsi_sparse_lay_out(s);
    s->memory = (float *)dsi_alloc_aligned(allocator, dsi_mul(s->floats, sizeof(float)), 64);
    if (!s->memory)
        return dsi_fail(error, DS_ERR_MEMORY, "ds_sparse: no memory for %zu bytes of scratch",
                        dsi_mul(s->floats, sizeof(float)));
    dsi_sparse_lay_out(s);
    s->bytes = sizeof *s + dsi_sparse_tables(s->workers) + s->floats * sizeof(float);
    if (own) {
        s->pool = dsi_pool_create(allocator, s->workers);
        if (!s->pool)
            return dsi_fail(error, DS_ERR_MEMORY, "ds_sparse: a pool of %u threads could not be started", s->workers);
        s->bytes += dsi_pool_bytes(s->workers);
        s->tasks.parallel_for = dsi_pool_for;
        s->tasks.ctx = s->pool;
    }
    return DS_OK;
}
// The layout's lists go to the device, one after the other; no scratch of the CPU's is taken then.
static ds_status dsi_sparse_to_device(ds_sparse *s, ds_error *error) {
    const ds_sparse_layout *l = s->desc.layout;
    const ds_device *d = s->desc.device;
    const size_t rows = l->info.patterns * l->info.blocks + 1, kept = l->row_start[rows - 1];
    const size_t starts = rows * sizeof(size_t), list = kept * sizeof(uint32_t);
    ds_sparse_grid *g = &s->grid;
    ds_status status;
    char *to;
    if (!d) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_sparse: kernels need desc.device");
    if (s->block % 16 || s->desc.head_dim > 128)
        return dsi_fail(error, DS_ERR_UNSUPPORTED,
                        "ds_sparse: kernels take blocks of a multiple of 16 and head_dim up to 128; got %zu and %zu",
                        s->block, s->desc.head_dim);
    s->list_bytes = 2 * (starts + list);
    if ((status = d->alloc(d->ctx, s->list_bytes, &s->lists)) != DS_OK)
        return dsi_fail(error, status, "ds_sparse: %zu bytes of device memory: %s", s->list_bytes, d->describe(d->ctx));
    to = (char *)s->lists;
    status = d->copy(d->ctx, to, l->row_start, starts, NULL);
    if (!status) status = d->copy(d->ctx, to + starts, l->column_start, starts, NULL);
    if (!status) status = d->copy(d->ctx, to + 2 * starts, l->columns, list, NULL);
    if (!status) status = d->copy(d->ctx, to + 2 * starts + list, l->rows, list, NULL);
    if (!status) status = d->synchronize(d->ctx, NULL);
    if (status) return dsi_fail(error, status, "ds_sparse: the layout's copy failed: %s", d->describe(d->ctx));
    g->row_start = (const size_t *)(const void *)to;
    g->column_start = (const size_t *)(const void *)(to + starts);
    g->columns = (const uint32_t *)(const void *)(to + 2 * starts);
    g->rows = (const uint32_t *)(const void *)(to + 2 * starts + list);
    g->heads = s->heads, g->patterns = l->info.patterns, g->blocks = s->blocks, g->block = s->block;
    g->head_dim = s->desc.head_dim, g->scale = s->desc.scale, g->causal = s->desc.causal;
    s->bytes = sizeof *s;
    return DS_OK;
}
DS_API ds_status ds_sparse_create_(const ds_sparse_desc *desc, ds_sparse **out, ds_error *error, int version,
                                   size_t size) {
    static const char *const levels[] = {"", "plain C", "AVX2", "AVX-512"};
    ds_status status;
    ds_sparse *s;
    *out = NULL;
    if (version != DS_SPARSE_VERSION || size != sizeof *desc)
        return dsi_fail(error, DS_ERR_VERSION, "ds_sparse: the header is version %d, the implementation %d", version,
                        DS_SPARSE_VERSION);
    if ((status = dsi_sparse_check_desc(desc, error)) != DS_OK) return status;
    if (!dsi_sparse_kernels_of(desc->level))
        return dsi_fail(error, DS_ERR_UNSUPPORTED, "ds_sparse: this machine or build lacks SIMD level %d",
                        (int)desc->level);
    s = (ds_sparse *)dsi_alloc_zero(&desc->allocator, sizeof *s);
    if (!s) return dsi_fail(error, DS_ERR_MEMORY, "ds_sparse: no memory for the object");
    s->desc = *desc;
    if (s->desc.scale == 0) s->desc.scale = 1.0f / sqrtf((float)desc->head_dim);
    s->simd = dsi_sparse_kernels_of(desc->level);
    s->heads = desc->layout->info.heads;
    s->block = desc->layout->info.block;
    s->blocks = desc->layout->info.blocks;
    s->rows = dsi_round_up(s->block, DSI_SPARSE_ROWS);
    s->columns = dsi_round_up(s->block, DSI_SPARSE_LANES);
    s->width = dsi_round_up(desc->head_dim, DSI_SPARSE_LANES);
    // a strip of scores fits the first-level cache
    s->strip = 8192 / (s->rows * s->columns);
    if (!s->strip) s->strip = 1;
    if (s->strip > 512 / s->columns) s->strip = s->columns < 512 ? 512 / s->columns : 1; // DSI_SPARSE_STRIP at most
    if ((status = desc->kernels ? dsi_sparse_to_device(s, error) : dsi_sparse_take(s, error)) != DS_OK) {
        ds_sparse_destroy(s);
        return status;
    }
    dsi_log(&s->desc.logger, "ds_sparse", DS_LOG_DEBUG, 1, "SIMD level: %s", levels[s->simd->level]);
    *out = s;
    return DS_OK;
}
DS_API const ds_error *ds_sparse_error(const ds_sparse *s) {
    return &s->error;
}
DS_API size_t ds_sparse_memory(const ds_sparse *s) {
    return s->bytes;
}
DS_API ds_sparse_level ds_sparse_simd_level(const ds_sparse *s) {
    return s->simd->level;
}

// >>call: what every part of one forward or backward needs
typedef struct dsi_sparse_call {
    ds_sparse *s;
    const ds_sparse_io *io;
    size_t batch, tokens, blocks; // tokens and blocks in use
    ds_sparse_strides in, out;
    size_t mask_row;
    size_t element; // bytes
    size_t first;   // unit 0 is this head of all batch items' heads
    bool masked;    // a bias or a mask is there
    bool direct;    // whole blocks of fp32 are read where they are
} dsi_sparse_call;

// Each worker has a share of a loop's items, the same in each call, so that what its cache holds is of use; it takes them in
// runs that become shorter, and then those of the others: a worker that wakes late or is slowed does less.
typedef struct dsi_sparse_loop {
    dsi_sparse_call call;
    void (*body)(const dsi_sparse_call *c, size_t begin, size_t end, unsigned worker);
    size_t count, working; // working atomically
} dsi_sparse_loop;

static size_t dsi_sparse_loop_begin(const dsi_sparse_loop *l, size_t worker) {
    const size_t workers = l->call.s->workers;
    return l->count / workers * worker + l->count % workers * worker / workers;
}
static void dsi_sparse_work(void *arg, size_t begin, size_t end, unsigned worker) {
    dsi_sparse_loop *l = (dsi_sparse_loop *)arg;
    const ds_sparse *s = l->call.s;
    size_t spins = 0;
    (void)begin, (void)end;
    __atomic_fetch_add(&l->working, 1, __ATOMIC_RELAXED);
    for (size_t k = 0; k < s->workers; k++) {
        const size_t owner = (worker + k) % s->workers, last = dsi_sparse_loop_begin(l, owner + 1);
        size_t *const next = &s->scratch[owner].next, from = __atomic_load_n(next, __ATOMIC_RELAXED);
        while (from < last) {
            const size_t run = (last - from) / 2 + 1;
            if (!__atomic_compare_exchange_n(next, &from, from + run, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
                continue;
            l->body(&l->call, from, from + run, worker);
            from = __atomic_load_n(next, __ATOMIC_RELAXED);
        }
    }
    __atomic_fetch_sub(&l->working, 1, __ATOMIC_RELAXED);
    // The others have at most a run to go, which is often less than it takes to fall asleep and be woken.
    for (; worker == 0 && spins < DSI_SPARSE_SPINS; spins++) {
        if (!__atomic_load_n(&l->working, __ATOMIC_RELAXED)) spins += DSI_SPARSE_SPINS / 16;
        DSI_SPARSE_PAUSE;
    }
}
static void dsi_sparse_for(const dsi_sparse_call *c, size_t count,
                           void (*body)(const dsi_sparse_call *c, size_t begin, size_t end, unsigned worker)) {
    const ds_sparse *s = c->s;
    dsi_sparse_loop loop;
    if (!s->tasks.parallel_for) {
        body(c, 0, count, 0);
        return;
    }
    loop.call = *c;
    loop.body = body;
    loop.count = count;
    loop.working = 0;
    for (size_t w = 0; w < s->workers; w++) s->scratch[w].next = dsi_sparse_loop_begin(&loop, w);
    s->tasks.parallel_for(s->tasks.ctx, count < s->workers ? count : s->workers, 1, dsi_sparse_work, &loop);
}
// Item `index` of a loop over units and rows of blocks.
static size_t dsi_sparse_item(const dsi_sparse_call *c, size_t index, size_t *row) {
    *row = index % c->blocks;
    return index / c->blocks;
}
// The memory that a unit is packed into. More units than that is for are there only when nothing is packed.
static const dsi_sparse_unit *dsi_sparse_memory_of(const dsi_sparse_call *c, size_t unit) {
    return &c->s->units[unit % c->s->workers];
}
// The call in which `unit` of this one is packed into the memory of `worker`: its unit of that number.
static dsi_sparse_call dsi_sparse_whole(const dsi_sparse_call *c, size_t unit, unsigned worker) {
    dsi_sparse_call one = *c;
    one.first = c->first + unit - worker; // below 0 it wraps, and back again
    return one;
}
static size_t dsi_sparse_head(const dsi_sparse_call *c, size_t unit) {
    return (c->first + unit) % c->s->heads;
}
static size_t dsi_sparse_item_of_batch(const dsi_sparse_call *c, size_t unit) {
    return (c->first + unit) / c->s->heads;
}
// How many tokens block i really has.
static size_t dsi_sparse_fill_of(const dsi_sparse_call *c, size_t i) {
    const size_t left = c->tokens - i * c->s->block;
    return left < c->s->block ? left : c->s->block;
}
static size_t dsi_sparse_offset(const dsi_sparse_call *c, const ds_sparse_strides *stride, size_t unit, size_t token) {
    return (dsi_sparse_item_of_batch(c, unit) * stride->batch + dsi_sparse_head(c, unit) * stride->head +
            token * stride->row) *
           c->element;
}

// Block i of a tensor, widened, times factor, padded with zeros to (rows, width).
static void dsi_sparse_pack(const dsi_sparse_call *c, const void *from, const ds_sparse_strides *stride, size_t unit,
                            size_t i, float factor, float *to) {
    const ds_sparse *s = c->s;
    const size_t fill = dsi_sparse_fill_of(c, i), d = s->desc.head_dim;
    for (size_t r = 0; r < fill; r++, to += s->width) {
        s->simd->widen(to, (const char *)from + dsi_sparse_offset(c, stride, unit, i * s->block + r), c->io->dtype,
                       factor, d);
        memset(to + d, 0, (s->width - d) * sizeof *to);
    }
    memset(to, 0, (s->rows - fill) * s->width * sizeof *to);
}
// Where block i of a tensor can be read, and floats from row to row: in place, else in `packed`.
static const float *dsi_sparse_at(const dsi_sparse_call *c, const void *from, const ds_sparse_strides *stride,
                                  size_t unit, size_t i, const float *packed, size_t *row) {
    const bool direct = c->direct && dsi_sparse_fill_of(c, i) == c->s->block;
    *row = direct ? stride->row : c->s->width;
    if (!direct) return packed;
    return (const float *)(const void *)((const char *)from + dsi_sparse_offset(c, stride, unit, i * c->s->block));
}
// The same, after packing it where that is needed.
static const float *dsi_sparse_ready(const dsi_sparse_call *c, const void *from, const ds_sparse_strides *stride,
                                     size_t unit, size_t i, float *packed, size_t *row) {
    const float *at = dsi_sparse_at(c, from, stride, unit, i, packed, row);
    if (at == packed) dsi_sparse_pack(c, from, stride, unit, i, 1.0f, packed);
    return at;
}
static void dsi_sparse_unpack(const dsi_sparse_call *c, void *to, const ds_sparse_strides *stride, size_t unit,
                              size_t i, float factor, const float *from, size_t row) {
    const ds_sparse *s = c->s;
    const size_t fill = dsi_sparse_fill_of(c, i);
    for (size_t r = 0; r < fill; r++)
        s->simd->narrow((char *)to + dsi_sparse_offset(c, stride, unit, i * s->block + r), c->io->dtype, from + r * row,
                        factor, s->desc.head_dim);
}
// (rows, width) times factor to (head_dim, columns). Rows past the block are zeros already, and so become the columns up
// to the padded rows.
static void dsi_sparse_turn(const ds_sparse *s, const float *from, size_t width, float factor, float *to) {
    const size_t d = s->desc.head_dim, rows = s->rows, columns = s->columns;
    s->simd->turn(to, columns, from, width, rows, d, factor);
    for (size_t e = 0; rows < columns && e < d; e++) memset(to + e * columns + rows, 0, (columns - rows) * sizeof *to);
}

static void dsi_sparse_add_mask(float *x, size_t step, const float *mask, size_t n, ds_sparse_mask mode) {
    if (mode == DS_SPARSE_ADD)
        for (size_t j = 0; j < n; j++) x[j * step] += mask[j];
    else
        for (size_t j = 0; j < n; j++) x[j * step] = mask[j] == 0 ? -INFINITY : x[j * step];
}
// Where the table of a head holds the bias of query i and key j.
static size_t dsi_sparse_distance(size_t reach, size_t i, size_t j) {
    if (j >= i) return reach + (j - i < reach ? j - i : reach);
    return reach - (i - j < reach ? i - j : reach);
}
// Adds bias and masks to the scores of blocks i and j, and closes what is causally out of sight. That of query r and key
// k is at x[r * x_row + k * step].
static void dsi_sparse_masks(const dsi_sparse_call *c, size_t unit, size_t i, size_t j, float *x, size_t x_row,
                             size_t step) {
    const ds_sparse *s = c->s;
    const ds_sparse_io *io = c->io;
    const size_t h = dsi_sparse_head(c, unit), b = dsi_sparse_item_of_batch(c, unit);
    const size_t q0 = i * s->block, k0 = j * s->block;
    const size_t rows = dsi_sparse_fill_of(c, i), columns = dsi_sparse_fill_of(c, j);
    const bool diagonal = s->desc.causal && i == j;
    if (!c->masked && !diagonal) return;
    for (size_t r = 0; r < rows; r++) {
        float *row = x + r * x_row;
        if (io->relative) {
            const float *table = io->relative + h * (2 * io->relative_reach + 1);
            for (size_t k = 0; k < columns; k++)
                row[k * step] += table[dsi_sparse_distance(io->relative_reach, q0 + r, k0 + k)];
        }
        if (io->key_mask) dsi_sparse_add_mask(row, step, io->key_mask + b * c->tokens + k0, columns, io->key_mask_mode);
        if (io->mask)
            dsi_sparse_add_mask(row, step,
                                io->mask + b * io->mask_batch + h * io->mask_head + (q0 + r) * c->mask_row + k0,
                                columns, io->mask_mode);
        if (diagonal)
            for (size_t k = r + 1; k < columns; k++) row[k * step] = -INFINITY;
    }
}
// How many of n ascending numbers are below `end`.
static size_t dsi_sparse_below(const uint32_t *list, size_t n, size_t end) {
    size_t low = 0;
    if (!n || list[n - 1] < end) return n;
    for (size_t high = n - 1; low < high;) {
        const size_t middle = low + (high - low) / 2;
        if (list[middle] < end)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
// The blocks that row i sees (by_column: that see column i), without those past the length or behind the causal mask.
static const uint32_t *dsi_sparse_seen(const dsi_sparse_call *c, size_t unit, size_t i, bool by_column, size_t *count) {
    const ds_sparse_layout *l = c->s->desc.layout;
    const size_t at = (dsi_sparse_head(c, unit) % l->info.patterns) * l->info.blocks + i;
    const size_t *start = (by_column ? l->column_start : l->row_start) + at;
    const uint32_t *list = (by_column ? l->rows : l->columns) + start[0];
    const size_t end = c->s->desc.causal && !by_column ? i + 1 : c->blocks, all = start[1] - start[0];
    const size_t skipped = c->s->desc.causal && by_column ? dsi_sparse_below(list, all, i) : 0;
    *count = dsi_sparse_below(list, all, end) - skipped;
    return list + skipped;
}

static void dsi_sparse_ask(dsi_sparse_asks *asks, const float *from, size_t row) {
    if (!from) return;
    asks->from[asks->count] = from;
    asks->row[asks->count++] = row;
}
// What products begin .. end - 1 of `all` ask for.
static dsi_sparse_share dsi_sparse_share_of(const ds_sparse *s, const dsi_sparse_asks *asks, size_t begin, size_t end,
                                            size_t all) {
    const size_t first = asks->count * begin / all;
    const dsi_sparse_share share = {asks->from + first, asks->row + first, asks->count * end / all - first, s->rows,
                                    s->width};
    return share;
}

// >>forward
static void dsi_sparse_pack_forward(const dsi_sparse_call *c, size_t begin, size_t end, unsigned worker) {
    const ds_sparse *s = c->s;
    (void)worker;
    for (size_t index = begin; index < end; index++) {
        size_t i, unit = dsi_sparse_item(c, index, &i);
        const dsi_sparse_unit *u = &s->units[unit];
        size_t row;
        dsi_sparse_ready(c, c->io->k, &c->in, unit, i, u->k + i * s->rows * s->width, &row);
        dsi_sparse_ready(c, c->io->v, &c->in, unit, i, u->v + i * s->rows * s->width, &row);
    }
}
// Online softmax (Milakov and Gimelshein 2018): a strip's scores become exponentials against the largest score so far;
// where that grew, what was summed before shrinks.
static void dsi_sparse_strip_softmax(const ds_sparse *s, const dsi_sparse_scratch *x, size_t keys, float *out) {
    for (size_t r = 0; r < s->columns; r += DSI_SPARSE_LANES)
        s->simd->softmax(x->scores + r, s->columns, keys, x->largest + r, x->sum + r, x->shrink + r);
    for (size_t r = 0; out && r < s->block; r++)
        if (x->shrink[r] != 1) s->simd->multiply(out + r * s->width, x->shrink[r], s->width);
}
// Output and log-sum-exp of row i.
static void dsi_sparse_give(const dsi_sparse_call *c, size_t unit, size_t i, const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    for (size_t r = 0; r < dsi_sparse_fill_of(c, i); r++) {
        const float sum = x->sum[r];
        const size_t token = i * s->block + r;
        s->simd->narrow((char *)c->io->out + dsi_sparse_offset(c, &c->out, unit, token), c->io->dtype,
                        x->two + r * s->width, sum == 0 ? 0.0f : 1.0f / sum, s->desc.head_dim);
        if (c->io->lse) {
            float *const lse = c->io->lse + 2 * ((c->first + unit) * c->tokens + token);
            lse[0] = sum == 0 ? -INFINITY : sum > 0 ? x->largest[r] : sum; // not a number stays that
            lse[1] = sum == 0 ? 0.0f : logf(sum);
        }
    }
}
// A row of blocks is taken in strips of what it sees. Row and place of a strip, and where its blocks can be read.
typedef struct dsi_sparse_strip {
    size_t unit, i;
    const uint32_t *list; // what the row sees
    size_t count;
    size_t first, blocks; // of list
    dsi_sparse_asks k, v; // and where they are in place and not yet touched, the row's q and out
} dsi_sparse_strip;

static void dsi_sparse_strip_at(const dsi_sparse_call *c, dsi_sparse_strip *p, size_t first) {
    const ds_sparse *s = c->s;
    const dsi_sparse_unit *u = dsi_sparse_memory_of(c, p->unit);
    p->first = first;
    p->blocks = p->count - first < s->strip ? p->count - first : s->strip;
    p->k.count = p->v.count = p->blocks;
    for (size_t t = 0; t < p->blocks; t++) {
        const size_t j = p->list[first + t], packed = j * s->rows * s->width;
        p->k.from[t] = dsi_sparse_at(c, c->io->k, &c->in, p->unit, j, u->k + packed, &p->k.row[t]);
        p->v.from[t] = dsi_sparse_at(c, c->io->v, &c->in, p->unit, j, u->v + packed, &p->v.row[t]);
    }
}
static void dsi_sparse_strip_first(const dsi_sparse_call *c, dsi_sparse_strip *p, size_t index) {
    const float *q, *out;
    size_t q_row, out_row;
    p->unit = dsi_sparse_item(c, index, &p->i);
    p->list = dsi_sparse_seen(c, p->unit, p->i, false, &p->count);
    dsi_sparse_strip_at(c, p, 0);
    q = dsi_sparse_at(c, c->io->q, &c->in, p->unit, p->i, NULL, &q_row);
    out = dsi_sparse_at(c, c->io->out, &c->out, p->unit, p->i, NULL, &out_row);
    dsi_sparse_ask(&p->k, q, q_row);
    dsi_sparse_ask(&p->v, out, out_row);
}
static void dsi_sparse_begin(const dsi_sparse_call *c, const dsi_sparse_strip *p, const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    size_t row;
    const float *q = dsi_sparse_ready(c, c->io->q, &c->in, p->unit, p->i, x->two, &row);
    dsi_sparse_turn(s, q, row, s->desc.scale, x->one);
    for (size_t r = 0; r < s->columns; r++) x->largest[r] = -INFINITY, x->sum[r] = 0;
    if (!p->count) memset(x->two, 0, s->rows * s->width * sizeof *x->two);
}
// Scores are made turned, keys down and queries across: keys are read where they are, a query's softmax stays in one
// lane, and keys of neighbouring blocks follow each other whatever their number.
static void dsi_sparse_scores(const dsi_sparse_call *c, const dsi_sparse_strip *p, const dsi_sparse_strip *next,
                              const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    for (size_t t = 0; t < p->blocks; t++) { // rows past a block are written over by the next one, or not read
        float *const scores = x->scores + t * s->block * s->columns;
        const dsi_sparse_share share = dsi_sparse_share_of(s, &next->k, t, t + 1, p->blocks);
        s->simd->product(p->k.from[t], p->k.row[t], 1, x->one, s->columns, s->desc.head_dim, scores, s->columns,
                         s->rows, s->columns, false, &share);
        dsi_sparse_masks(c, p->unit, p->i, p->list[p->first + t], scores, 1, s->columns);
    }
}
static void dsi_sparse_values(const dsi_sparse_call *c, const dsi_sparse_strip *p, size_t keys,
                              const dsi_sparse_strip *next, const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    const uint32_t *list = p->list + p->first;
    const bool joined = s->block == s->rows;                           // neighbours in a strip are so among the values,
    const size_t whole = c->direct ? c->tokens / s->block : c->blocks; // but for a last block that is packed apart
    for (size_t t = 0, run, depth; t < p->blocks; t += run) {
        dsi_sparse_share share;
        const float *scores = x->scores + t * s->block * s->columns;
        for (run = 1; joined && t + run < p->blocks && list[t + run] == list[t] + run && list[t] + run < whole;) run++;
        depth = (t + run < p->blocks ? (t + run) * s->block : keys) - t * s->block;
        share = dsi_sparse_share_of(s, &next->v, t, t + run, p->blocks);
        s->simd->product(scores, 1, s->columns, p->v.from[t], p->v.row[t], depth, x->two, s->width, s->rows, s->width,
                         p->first + t > 0, &share);
    }
}
static void dsi_sparse_forward_rows(const dsi_sparse_call *c, size_t begin, size_t end, unsigned worker) {
    const ds_sparse *s = c->s;
    const dsi_sparse_scratch *x = &s->scratch[worker];
    dsi_sparse_strip strips[2];
    size_t index = begin;
    dsi_sparse_strip_first(c, &strips[0], begin);
    for (size_t turn = 0; index < end; turn++) {
        const dsi_sparse_strip *p = &strips[turn % 2];
        dsi_sparse_strip *next = &strips[(turn + 1) % 2];
        const size_t after = p->first + p->blocks;
        next->k.count = next->v.count = 0;
        if (after < p->count) {
            next->unit = p->unit, next->i = p->i, next->list = p->list, next->count = p->count;
            dsi_sparse_strip_at(c, next, after);
        } else if (++index < end)
            dsi_sparse_strip_first(c, next, index);
        if (!p->first) dsi_sparse_begin(c, p, x);
        if (p->blocks) {
            const size_t keys = (p->blocks - 1) * s->block + dsi_sparse_fill_of(c, p->list[after - 1]);
            dsi_sparse_scores(c, p, next, x);
            dsi_sparse_strip_softmax(s, x, keys, p->first ? x->two : NULL);
            dsi_sparse_values(c, p, keys, next, x);
        }
        if (after == p->count) dsi_sparse_give(c, p->unit, p->i, x);
    }
}

// A unit as a whole: packed by the worker that then reads it.
static void dsi_sparse_forward_units(const dsi_sparse_call *c, size_t begin, size_t end, unsigned worker) {
    for (size_t unit = begin; unit < end; unit++) {
        const dsi_sparse_call one = dsi_sparse_whole(c, unit, worker);
        dsi_sparse_pack_forward(&one, worker * c->blocks, (worker + 1) * c->blocks, worker);
        dsi_sparse_forward_rows(&one, worker * c->blocks, (worker + 1) * c->blocks, worker);
    }
}

// >>backward
// With P = exp(scores - lse), delta = sum(d_out * out) for each row and dP = d_out * v^T: d_scores = P * (dP - delta),
// d_q = scale * d_scores * k, d_k = scale * d_scores^T * q, d_v = P^T * d_out. (Dao 2023) P is computed anew from q,
// k and lse. A unit as a whole takes five products for each pair of blocks; when there are fewer units than workers,
// rows (d_q) and columns (d_k, d_v) are shared out instead, at seven. Either way each gradient is summed in the same
// order, so the bits are the same. Scale goes into the turned keys, and into d_k and d_q when they are given.
// What row i brings to its pairs. `out` is packed, where it must be, in the place of a gradient that has not begun.
static void dsi_sparse_pack_row(const dsi_sparse_call *c, size_t unit, size_t i) {
    const ds_sparse *s = c->s;
    const dsi_sparse_unit *u = &s->units[unit];
    const size_t natural = i * s->rows * s->width, fill = dsi_sparse_fill_of(c, i);
    size_t row, d_row;
    const float *out, *d_out;
    dsi_sparse_ready(c, c->io->q, &c->in, unit, i, u->q + natural, &row);
    d_out = dsi_sparse_ready(c, c->io->d_out, &c->out, unit, i, u->d_out + natural, &d_row);
    out = dsi_sparse_ready(c, c->io->out, &c->out, unit, i, u->d_q + natural, &row);
    for (size_t r = 0; r < s->rows; r++) {
        const float *lse = c->io->lse + 2 * ((c->first + unit) * c->tokens + i * s->block + r);
        const bool none = r >= fill || lse[0] == -INFINITY;
        // against +inf every exponential is 0: rows that saw nothing pass nothing on
        u->lse[2 * (i * s->rows + r)] = none ? INFINITY : lse[0];
        u->lse[2 * (i * s->rows + r) + 1] = none ? 0.0f : lse[1];
        u->delta[i * s->rows + r] = s->simd->dot(d_out + r * d_row, out + r * row, s->width);
    }
}
// Keys and values of column j, turned, to `turned` floats from where the unit has them.
static void dsi_sparse_pack_column(const dsi_sparse_call *c, size_t unit, size_t j, size_t turned, float *scratch) {
    const ds_sparse *s = c->s;
    const dsi_sparse_unit *u = &s->units[unit];
    size_t row;
    const float *from = dsi_sparse_ready(c, c->io->k, &c->in, unit, j, u->k + j * s->rows * s->width, &row);
    dsi_sparse_turn(s, from, row, s->desc.scale, u->k_turned + turned);
    from = dsi_sparse_ready(c, c->io->v, &c->in, unit, j, scratch, &row);
    dsi_sparse_turn(s, from, row, 1.0f, u->v_turned + turned);
}
static void dsi_sparse_pack_backward(const dsi_sparse_call *c, size_t begin, size_t end, unsigned worker) {
    const ds_sparse *s = c->s;
    for (size_t index = begin; index < end; index++) {
        size_t i, unit = dsi_sparse_item(c, index, &i);
        dsi_sparse_pack_row(c, unit, i);
        dsi_sparse_pack_column(c, unit, i, i * s->desc.head_dim * s->columns, s->scratch[worker].one);
    }
}
#define DSI_SPARSE_PRODUCTS 5 // of a pair; each asks for its part of `asks`
// Probabilities of blocks i and j in x->scores, gradients of their scores in x->d_scores.
static void dsi_sparse_pair(const dsi_sparse_call *c, size_t unit, size_t i, size_t j, size_t turned,
                            const dsi_sparse_asks *asks, const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    const dsi_sparse_unit *u = &s->units[unit];
    const size_t d = s->desc.head_dim, natural = i * s->rows * s->width;
    dsi_sparse_share share = dsi_sparse_share_of(s, asks, 0, 1, DSI_SPARSE_PRODUCTS);
    size_t row, d_row;
    const float *q = dsi_sparse_at(c, c->io->q, &c->in, unit, i, u->q + natural, &row);
    const float *d_out = dsi_sparse_at(c, c->io->d_out, &c->out, unit, i, u->d_out + natural, &d_row);
    s->simd->product(q, row, 1, u->k_turned + turned, s->columns, d, x->scores, s->columns, s->rows, s->columns, false,
                     &share);
    dsi_sparse_masks(c, unit, i, j, x->scores, s->columns, 1);
    for (size_t r = 0, k0 = dsi_sparse_fill_of(c, j); k0 < s->columns && r < s->rows; r++) // keys past the length
        for (size_t k = k0; k < s->columns; k++) x->scores[r * s->columns + k] = -INFINITY;
    share = dsi_sparse_share_of(s, asks, 1, 2, DSI_SPARSE_PRODUCTS);
    s->simd->product(d_out, d_row, 1, u->v_turned + turned, s->columns, d, x->d_scores, s->columns, s->rows, s->columns,
                     false, &share);
    for (size_t r = 0; r < s->rows; r++)
        s->simd->gradients(x->scores + r * s->columns, x->d_scores + r * s->columns, u->lse + 2 * (i * s->rows + r),
                           u->delta[i * s->rows + r], s->columns);
}
// Where the gradient of q of row i is summed: in place, else in the unit's memory.
static float *dsi_sparse_d_q_at(const dsi_sparse_call *c, size_t unit, size_t i, size_t *row) {
    const float *packed = c->s->units[unit].d_q + i * c->s->rows * c->s->width;
    return (float *)(uintptr_t)dsi_sparse_at(c, c->io->d_q, &c->in, unit, i, packed, row);
}
static void dsi_sparse_add_d_q(const dsi_sparse_call *c, size_t unit, size_t i, size_t j, bool add,
                               const dsi_sparse_asks *asks, const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    size_t row, k_row;
    const float *k = dsi_sparse_at(c, c->io->k, &c->in, unit, j, s->units[unit].k + j * s->rows * s->width, &k_row);
    float *d_q = dsi_sparse_d_q_at(c, unit, i, &row);
    const dsi_sparse_share share = dsi_sparse_share_of(s, asks, 4, 5, DSI_SPARSE_PRODUCTS);
    s->simd->product(x->d_scores, s->columns, 1, k, k_row, s->block, d_q, row, s->rows, s->width, add, &share);
}
static void dsi_sparse_finish_d_q(const dsi_sparse_call *c, size_t unit, size_t i) {
    const ds_sparse *s = c->s;
    size_t row;
    float *d_q = dsi_sparse_d_q_at(c, unit, i, &row);
    dsi_sparse_unpack(c, c->io->d_q, &c->in, unit, i, s->desc.scale, d_q, row);
}
static void dsi_sparse_add_d_kv(const dsi_sparse_call *c, size_t unit, size_t i, bool add, const dsi_sparse_asks *asks,
                                const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    const dsi_sparse_unit *u = &s->units[unit];
    const size_t natural = i * s->rows * s->width;
    dsi_sparse_share share = dsi_sparse_share_of(s, asks, 2, 3, DSI_SPARSE_PRODUCTS);
    size_t row, d_row;
    const float *q = dsi_sparse_at(c, c->io->q, &c->in, unit, i, u->q + natural, &row);
    const float *d_out = dsi_sparse_at(c, c->io->d_out, &c->out, unit, i, u->d_out + natural, &d_row);
    s->simd->product(x->d_scores, 1, s->columns, q, row, s->block, x->one, s->width, s->rows, s->width, add, &share);
    share = dsi_sparse_share_of(s, asks, 3, 4, DSI_SPARSE_PRODUCTS);
    s->simd->product(x->scores, 1, s->columns, d_out, d_row, s->block, x->two, s->width, s->rows, s->width, add,
                     &share);
}
static void dsi_sparse_add_d_relative(const dsi_sparse_call *c, size_t unit, size_t i, size_t j,
                                      const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    const size_t rows = dsi_sparse_fill_of(c, i), columns = dsi_sparse_fill_of(c, j), reach = c->io->relative_reach;
    float *to = s->units[unit].d_relative;
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < columns; k++)
            to[dsi_sparse_distance(reach, i * s->block + r, j * s->block + k)] += x->d_scores[r * s->columns + k];
}
// d_q of a row that has seen no block is 0.
static void dsi_sparse_no_d_q(const dsi_sparse_call *c, size_t unit, size_t i) {
    size_t row;
    float *d_q = dsi_sparse_d_q_at(c, unit, i, &row);
    for (size_t r = 0; r < c->s->rows; r++) memset(d_q + r * row, 0, c->s->width * sizeof *d_q);
    dsi_sparse_finish_d_q(c, unit, i);
}
static void dsi_sparse_backward_row(const dsi_sparse_call *c, size_t unit, size_t i, const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    dsi_sparse_asks none;
    size_t count;
    const uint32_t *list = dsi_sparse_seen(c, unit, i, false, &count);
    none.count = 0;
    if (!count) dsi_sparse_no_d_q(c, unit, i);
    for (size_t e = 0; e < count; e++) {
        dsi_sparse_pair(c, unit, i, list[e], list[e] * s->desc.head_dim * s->columns, &none, x);
        dsi_sparse_add_d_q(c, unit, i, list[e], e > 0, &none, x);
    }
    if (count) dsi_sparse_finish_d_q(c, unit, i);
}
static void dsi_sparse_give_d_kv(const dsi_sparse_call *c, size_t unit, size_t j, size_t pairs,
                                 const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    if (!pairs) {
        memset(x->one, 0, s->rows * s->width * sizeof *x->one);
        memset(x->two, 0, s->rows * s->width * sizeof *x->two);
    }
    dsi_sparse_unpack(c, c->io->d_k, &c->in, unit, j, s->desc.scale, x->one, s->width);
    dsi_sparse_unpack(c, c->io->d_v, &c->in, unit, j, 1.0f, x->two, s->width);
}
static void dsi_sparse_backward_column(const dsi_sparse_call *c, size_t unit, size_t j, const dsi_sparse_scratch *x) {
    const ds_sparse *s = c->s;
    dsi_sparse_asks none;
    size_t count;
    const uint32_t *list = dsi_sparse_seen(c, unit, j, true, &count);
    none.count = 0;
    for (size_t e = 0; e < count; e++) {
        dsi_sparse_pair(c, unit, list[e], j, j * s->desc.head_dim * s->columns, &none, x);
        dsi_sparse_add_d_kv(c, unit, list[e], e > 0, &none, x);
    }
    dsi_sparse_give_d_kv(c, unit, j, count, x);
}
// What the pair after this one is the first to touch, when `left` pairs of the column's list are.
static void dsi_sparse_asks_of(const dsi_sparse_call *c, size_t unit, size_t j, const uint32_t *list, size_t left,
                               dsi_sparse_asks *asks) {
    const ds_sparse_io *io = c->io;
    const void *column[] = {io->d_k, io->d_v, io->k, io->v}, *row[] = {io->q, io->d_q, io->d_out, io->out};
    const size_t next = j + (left == 1);
    size_t count, step;
    asks->count = 0;
    for (int n = 0; n < 4 && left == 1; n++) { // it ends the column, and another begins
        const size_t at = n < 2 ? j : next;
        const float *from = at < c->blocks ? dsi_sparse_at(c, column[n], &c->in, unit, at, NULL, &step) : NULL;
        dsi_sparse_ask(asks, from, step);
    }
    if (next == c->blocks) return;
    list = left == 1 ? dsi_sparse_seen(c, unit, next, true, &count) : list + 1;
    if ((left == 1 && !count) || *dsi_sparse_seen(c, unit, *list, false, &count) != next) return;
    for (int n = 0; n < 4; n++) {
        const float *from = dsi_sparse_at(c, row[n], n < 2 ? &c->in : &c->out, unit, *list, NULL, &step);
        dsi_sparse_ask(asks, from, step);
    }
}
// Column j of a unit that one worker does as a whole: what its pairs give d_q and d_relative too. A row is packed at its
// first column and given at its last, so that with a narrow window all that is touched is in the cache.
static void dsi_sparse_whole_column(const dsi_sparse_call *c, size_t unit, size_t j, const dsi_sparse_scratch *x) {
    dsi_sparse_asks asks;
    size_t pairs, count;
    const uint32_t *list = dsi_sparse_seen(c, unit, j, true, &pairs);
    if (pairs) dsi_sparse_pack_column(c, unit, j, 0, x->one);
    for (size_t e = 0; e < pairs; e++) {
        const size_t i = list[e];
        const uint32_t *row = dsi_sparse_seen(c, unit, i, false, &count);
        if (row[0] == j) dsi_sparse_pack_row(c, unit, i);
        dsi_sparse_asks_of(c, unit, j, list + e, pairs - e, &asks);
        dsi_sparse_pair(c, unit, i, j, 0, &asks, x);
        dsi_sparse_add_d_kv(c, unit, i, e > 0, &asks, x);
        dsi_sparse_add_d_q(c, unit, i, j, row[0] != j, &asks, x);
        if (c->io->d_relative) dsi_sparse_add_d_relative(c, unit, i, j, x);
        if (row[count - 1] == j) dsi_sparse_finish_d_q(c, unit, i);
    }
    dsi_sparse_give_d_kv(c, unit, j, pairs, x);
}
static void dsi_sparse_backward_unit(const dsi_sparse_call *c, size_t unit, const dsi_sparse_scratch *x) {
    const size_t reach = 2 * c->io->relative_reach + 1;
    if (c->io->d_relative) memset(c->s->units[unit].d_relative, 0, reach * sizeof(float));
    for (size_t i = 0; i < c->blocks; i++) {
        size_t count;
        dsi_sparse_seen(c, unit, i, false, &count);
        if (!count) dsi_sparse_no_d_q(c, unit, i);
    }
    for (size_t j = 0; j < c->blocks; j++) dsi_sparse_whole_column(c, unit, j, x);
}
static void dsi_sparse_backward_units(const dsi_sparse_call *c, size_t begin, size_t end, unsigned worker) {
    for (size_t unit = begin; unit < end; unit++) {
        const dsi_sparse_call one = dsi_sparse_whole(c, unit, worker);
        dsi_sparse_backward_unit(&one, worker, &c->s->scratch[worker]);
    }
}
// A unit for each worker, in a memory of its own until their d_relative are summed.
static void dsi_sparse_backward_turn(const dsi_sparse_call *c, size_t begin, size_t end, unsigned worker) {
    for (size_t unit = begin; unit < end; unit++) dsi_sparse_backward_unit(c, unit, &c->s->scratch[worker]);
}
// Rows and columns of units that are packed, by turns.
static void dsi_sparse_backward_parts(const dsi_sparse_call *c, size_t begin, size_t end, unsigned worker) {
    const dsi_sparse_scratch *x = &c->s->scratch[worker];
    for (size_t index = begin; index < end; index++) {
        size_t i, part = dsi_sparse_item(c, index, &i);
        if (part % 2)
            dsi_sparse_backward_column(c, part / 2, i, x);
        else
            dsi_sparse_backward_row(c, part / 2, i, x);
    }
}

// >>run
static void dsi_sparse_strides_of(ds_sparse_strides *to, const ds_sparse_strides *given, const dsi_sparse_call *c) {
    *to = *given;
    if (given->batch || given->head || given->row) return;
    to->row = c->s->desc.head_dim;
    to->head = c->tokens * to->row;
    to->batch = c->s->heads * to->head;
}
static ds_status dsi_sparse_check_io(dsi_sparse_call *c, const char *function, bool back) {
    ds_sparse *s = c->s;
    const ds_sparse_io *io = c->io;
    const char *missing = !io->q                                    ? "q"
                          : !io->k                                  ? "k"
                          : !io->v                                  ? "v"
                          : !io->out                                ? "out"
                          : back && !io->lse                        ? "lse"
                          : back && !io->d_out                      ? "d_out"
                          : back && !io->d_q                        ? "d_q"
                          : back && !io->d_k                        ? "d_k"
                          : back && !io->d_v                        ? "d_v"
                          : back && io->d_relative && !io->relative ? "relative"
                                                                    : NULL;
    if (missing) return dsi_fail(&s->error, DS_ERR_ARGUMENT, "%s: %s is NULL", function, missing);
    if (io->dtype != DS_F32 && io->dtype != DS_F16 && io->dtype != DS_BF16)
        return dsi_fail(&s->error, DS_ERR_ARGUMENT, "%s: dtype must be DS_F32, DS_F16 or DS_BF16; got %d", function,
                        (int)io->dtype);
    if (io->seq_len > s->blocks * s->block)
        return dsi_fail(&s->error, DS_ERR_ARGUMENT, "%s: seq_len must be at most the layout's %zu; got %zu", function,
                        s->blocks * s->block, io->seq_len);
    if (back && io->d_relative && io->relative_reach > s->desc.relative_reach)
        return dsi_fail(&s->error, DS_ERR_ARGUMENT,
                        "%s: relative_reach must be at most the descriptor's %zu for its gradient; got %zu", function,
                        s->desc.relative_reach, io->relative_reach);
    c->batch = io->batch ? io->batch : 1;
    c->tokens = io->seq_len ? io->seq_len : s->blocks * s->block;
    c->blocks = (c->tokens - 1) / s->block + 1;
    c->element = DS_DTYPE_SIZE(io->dtype);
    c->mask_row = io->mask_row ? io->mask_row : c->tokens;
    c->direct = io->dtype == DS_F32 && s->desc.head_dim == s->width && s->block == s->rows;
    c->masked = io->relative || io->key_mask || io->mask;
    dsi_sparse_strides_of(&c->in, &io->strides, c);
    dsi_sparse_strides_of(&c->out, &io->o_strides, c);
    if (c->tokens > 1 && (c->in.row < s->desc.head_dim || c->out.row < s->desc.head_dim))
        return dsi_fail(&s->error, DS_ERR_ARGUMENT,
                        "%s: strides of rows must be at least head_dim %zu; got %zu and %zu", function,
                        s->desc.head_dim, c->in.row, c->out.row);
    return DS_OK;
}
static ds_status dsi_sparse_device(ds_sparse *s, const ds_sparse_io *io, bool back, void *stream) {
    const ds_sparse_kernels *k = s->desc.kernels;
    ds_status status;
    if (io->d_relative && back)
        return dsi_fail(&s->error, DS_ERR_UNSUPPORTED, "ds_sparse_backward: kernels give no d_relative");
    status = (back ? k->backward : k->forward)(k->ctx, &s->grid, io, stream);
    if (!status) return DS_OK;
    return dsi_fail(&s->error, status, "ds_sparse: the device's kernel failed: %s",
                    s->desc.device->describe(s->desc.device->ctx));
}
DS_API ds_status ds_sparse_forward(ds_sparse *s, const ds_sparse_io *io) {
    return ds_sparse_forward_on(s, io, NULL);
}
DS_API ds_status ds_sparse_forward_on(ds_sparse *s, const ds_sparse_io *io, void *stream) {
    dsi_sparse_call c;
    ds_status status;
    size_t units;
    memset(&c, 0, sizeof c);
    c.s = s;
    c.io = io;
    if ((status = dsi_sparse_check_io(&c, "ds_sparse_forward", false)) != DS_OK) return status;
    if (s->desc.kernels) return dsi_sparse_device(s, io, false, stream);
    units = c.batch * s->heads;
    if (!c.direct || c.tokens % s->block) { // whole units for each worker; rows of what is left
        const size_t left = units % s->workers;
        if (units > left) dsi_sparse_for(&c, units - left, dsi_sparse_forward_units);
        c.first = units - left;
        if (left) dsi_sparse_for(&c, left * c.blocks, dsi_sparse_pack_forward);
        units = left;
    }
    if (units) dsi_sparse_for(&c, units * c.blocks, dsi_sparse_forward_rows);
    return DS_OK;
}
// Units in turns, since their d_relative are summed over the batch in its order.
static void dsi_sparse_backward_relative(dsi_sparse_call *c, size_t units) {
    const ds_sparse *s = c->s;
    const size_t reach = 2 * c->io->relative_reach + 1;
    memset(c->io->d_relative, 0, s->heads * reach * sizeof(float));
    for (size_t turn; c->first < units; c->first += turn) {
        turn = units - c->first < s->workers ? units - c->first : s->workers;
        dsi_sparse_for(c, turn, dsi_sparse_backward_turn);
        for (size_t unit = 0; unit < turn; unit++) {
            float *to = c->io->d_relative + dsi_sparse_head(c, unit) * reach;
            for (size_t i = 0; i < reach; i++) to[i] += s->units[unit].d_relative[i];
        }
    }
}
DS_API ds_status ds_sparse_backward(ds_sparse *s, const ds_sparse_io *io) {
    return ds_sparse_backward_on(s, io, NULL);
}
DS_API ds_status ds_sparse_backward_on(ds_sparse *s, const ds_sparse_io *io, void *stream) {
    dsi_sparse_call c;
    ds_status status;
    size_t units, left;
    memset(&c, 0, sizeof c);
    c.s = s;
    c.io = io;
    if (s->desc.forward_only)
        return dsi_fail(&s->error, DS_ERR_STATE, "ds_sparse_backward: the object was created with forward_only");
    if ((status = dsi_sparse_check_io(&c, "ds_sparse_backward", true)) != DS_OK) return status;
    if (s->desc.kernels) return dsi_sparse_device(s, io, true, stream);
    units = c.batch * s->heads;
    left = units % s->workers;
    if (io->d_relative) {
        dsi_sparse_backward_relative(&c, units);
        return DS_OK;
    }
    if (units > left) dsi_sparse_for(&c, units - left, dsi_sparse_backward_units);
    c.first = units - left;
    if (left) dsi_sparse_for(&c, left * c.blocks, dsi_sparse_pack_backward);
    if (left) dsi_sparse_for(&c, 2 * left * c.blocks, dsi_sparse_backward_parts);
    return DS_OK;
}
DS_API double ds_sparse_flops(const ds_sparse *s, size_t batch, size_t seq_len, bool backward) {
    const size_t tokens = seq_len && seq_len < s->blocks * s->block ? seq_len : s->blocks * s->block;
    double pairs = 0;
    dsi_sparse_call c;
    memset(&c, 0, sizeof c);
    c.s = (ds_sparse *)(uintptr_t)s;
    c.tokens = tokens;
    c.blocks = (tokens - 1) / s->block + 1;
    for (size_t h = 0; h < s->heads; h++)
        for (size_t i = 0; i < c.blocks; i++) {
            size_t count;
            dsi_sparse_seen(&c, h, i, false, &count);
            pairs += (double)count;
        }
    return pairs * (double)(batch ? batch : 1) * (double)(s->block * s->block) * (double)s->desc.head_dim *
           (backward ? 10.0 : 4.0);
}

// helper macros end here
#undef DSI_SPARSE_AVX2
#undef DSI_SPARSE_AVX512
#undef DSI_SPARSE_EXP
#undef DSI_SPARSE_FMA
#undef DSI_SPARSE_IF1
#undef DSI_SPARSE_IF2
#undef DSI_SPARSE_LANES
#undef DSI_SPARSE_LEVEL
#undef DSI_SPARSE_LEVEL_x1
#undef DSI_SPARSE_LEVEL_x16
#undef DSI_SPARSE_LEVEL_x8
#undef DSI_SPARSE_LIST4
#undef DSI_SPARSE_LIST8
#undef DSI_SPARSE_LOAD
#undef DSI_SPARSE_PAUSE
#undef DSI_SPARSE_PRODUCTS
#undef DSI_SPARSE_ROWS
#undef DSI_SPARSE_SPINS
#undef DSI_SPARSE_SANS
#undef DSI_SPARSE_STORE
#undef DSI_SPARSE_STRIP
#undef DSI_SPARSE_TILE
#undef DSI_SPARSE_TILE_AT
#undef DSI_SPARSE_WITH
#undef DSI_SPARSE_X86
#undef DSI_SPARSE_ZERO
#undef dsi_sparse_narrow_x16
#undef dsi_sparse_turn_x16
#undef dsi_sparse_widen_x16
#undef dsi_sparse_x16_add
#undef dsi_sparse_x16_fma
#undef dsi_sparse_x16_load
#undef dsi_sparse_x16_max
#undef dsi_sparse_x16_min
#undef dsi_sparse_x16_mul
#undef dsi_sparse_x16_power
#undef dsi_sparse_x16_set
#undef dsi_sparse_x16_store
#undef dsi_sparse_x16_sub
#undef dsi_sparse_x16_t
#undef dsi_sparse_x16_unless
#undef dsi_sparse_x16_width
#undef dsi_sparse_x1_add
#undef dsi_sparse_x1_fma
#undef dsi_sparse_x1_load
#undef dsi_sparse_x1_max
#undef dsi_sparse_x1_min
#undef dsi_sparse_x1_mul
#undef dsi_sparse_x1_power
#undef dsi_sparse_x1_set
#undef dsi_sparse_x1_store
#undef dsi_sparse_x1_sub
#undef dsi_sparse_x1_t
#undef dsi_sparse_x1_unless
#undef dsi_sparse_x1_width
#undef dsi_sparse_x8_add
#undef dsi_sparse_x8_fma
#undef dsi_sparse_x8_load
#undef dsi_sparse_x8_max
#undef dsi_sparse_x8_min
#undef dsi_sparse_x8_mul
#undef dsi_sparse_x8_power
#undef dsi_sparse_x8_set
#undef dsi_sparse_x8_store
#undef dsi_sparse_x8_sub
#undef dsi_sparse_x8_t
#undef dsi_sparse_x8_unless
#undef dsi_sparse_x8_width

#endif /* DS_SPARSE_IMPL_DONE */

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
