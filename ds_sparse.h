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
   values have the same heads and tokens. No GPU. Masks have no gradient; the relative bias has one.

   CONCEPTS
   layout     which blocks of block x block scores exist, for each head. Made once, never changed, shared by any number
              of attention objects and threads. ds_sparse_layout_from_map takes one of your own.
   attention  scores = scale * q.k + relative bias + masks, in the kept blocks; softmax over each row; times v. What
              lies outside the kept blocks is not computed and counts as minus infinity.
   causal     desc.causal: a token sees itself and what is before it. A unidirectional layout alone works in whole
              blocks: tokens see all of their own block (and of global blocks that start there). Language models want
              both.
   no answer  a token that may see nothing (all masked, or no block in its row) gets zeros, an lse of minus infinity,
              and passes no gradient on.
   length     io.seq_len may be shorter than the layout's: the rest is as if masked, and never read or written. For a
              sequence that is no multiple of the block, make the layout for ds_sparse_padded(seq_len, block).
   lse        log of the sum of exponentials of each row, the only thing that backward needs from forward besides
              q, k, v and out. No buffer of tokens x tokens exists.
   Results depend on neither threads nor SIMD level: each sum has one order, products reach sums through explicit fused
   multiply-adds only, and the exponential is a polynomial of its own (error below 2 ulp; below e^-87 it is 0). A head
   of a batch does not depend on what else is in the batch. q is multiplied by scale before the product, in fp32.

   RANDOM BLOCKS  Row r of head h draws from splitmix64 started at seed + 0x9E3779B97F4A7C15 * (1 + h * 2^32 + r), by
   Floyd's method: for j = columns - count .. columns - 1 take t = floor(top 32 bits * (j + 1) / 2^32), or j when t is
   drawn already. Columns are all blocks; bigbird, unidirectional: those up to the diagonal (so more than one random
   block fails at row 0, as in DeepSpeed). One draw serves all heads unless different_layout_per_head. The same on any
   machine.

   MEMORY   The layout: 8 bytes for each kept block of each different head, and 16 for each row. The attention object,
   for each thread: backward 6 (forward only: 2) x seq_len x head_dim floats, and one block's scratch. Taken at create;
   ds_sparse_memory() states it; no later call allocates. The caller keeps lse: 4 bytes a token and head.

   ERRORS   Each call returns ds_status; the text is in the ds_error given, or ds_sparse_error(). Log ids: 1 SIMD level
   chosen (debug).

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

/* Each mode reads its own fields. Fill with ds_sparse_params_default, then change: here a zero is a value, not a default.
   Lists belong to the caller and are read during the call only. [cfg: sparse_attention] */
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

typedef struct ds_sparse_layout ds_sparse_layout;

/* Defaults of a mode by its name in the configuration: heads 1, block 16, num_local_blocks 4, num_global_blocks 1,
   local_window_blocks [4], global_block_indices [0], num_sliding_window_blocks 3, one pattern, bidirectional
   (local_sliding_window: unidirectional); num_random_blocks 0 as the configuration has it (DeepSpeed's class for bigbird
   says 1). DS_ERR_INPUT with the names for another. Thread-safe, as are all functions on layouts. */
DS_API ds_status ds_sparse_params_default(const char *mode, ds_sparse_params *out, ds_error *error);
DS_API const char *ds_sparse_mode_name(ds_sparse_mode mode);
/* Whether a layout can be made for some length: DS_ERR_INPUT or DS_ERR_ARGUMENT with the rule that is broken. */
DS_API ds_status ds_sparse_params_check(const ds_sparse_params *params, ds_error *error);
/* The least multiple of block that holds seq_len tokens; 0 when block is 0 or it does not fit a size_t. */
DS_API size_t ds_sparse_padded(size_t seq_len, size_t block);

/* Makes the layout for sequences of seq_len tokens, a positive multiple of params->block. allocator: NULL for malloc; it is
   copied. DS_ERR_INPUT: a rule of the mode is broken (the check above), the length is no multiple of the block, or windows,
   global or random blocks do not fit the length. DS_ERR_MEMORY. *out is NULL then. */
DS_API ds_status ds_sparse_layout_create_(const ds_sparse_params *params, size_t seq_len, const ds_allocator *allocator,
                                          ds_sparse_layout **out, ds_error *error, int version, size_t size);
static inline ds_status ds_sparse_layout_create(const ds_sparse_params *params, size_t seq_len,
                                                const ds_allocator *allocator, ds_sparse_layout **out,
                                                ds_error *error) {
    return ds_sparse_layout_create_(params, seq_len, allocator, out, error, DS_SPARSE_VERSION,
                                    sizeof(ds_sparse_params));
}
/* A layout of your own. map: (patterns, n, n) bytes with n = seq_len / block, not 0 where a block is kept; patterns is 1 or
   divides the work by head h taking pattern h mod patterns. Not kept. Errors as above. */
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
/* Draws the heads side by side, one square for each block, as an SVG document, handed to `write` in pieces. Equal heads
   are drawn once. */
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
    bool forward_only;              /* a third of the memory; backward is DS_ERR_STATE */
    ds_sparse_level level;          /* for tests: a level that the machine lacks is DS_ERR_UNSUPPORTED */
    unsigned threads;               /* built-in pool, the caller included; 0 and 1: none. Ignored when tasks is set */
    ds_tasks tasks;
    ds_allocator allocator;
    ds_logger logger;
} ds_sparse_desc;

typedef struct ds_sparse ds_sparse;

/* How a mask acts. ADD: its values are added to the scores. MUL: where it is 0 the score is minus infinity. */
typedef enum ds_sparse_mask { DS_SPARSE_ADD = 0, DS_SPARSE_MUL = 1 } ds_sparse_mask;

/* Distance in elements from one batch item, head, token to the next; elements of a token's head are adjacent. All zero:
   (batch, heads, seq_len, head_dim) without gaps. For a fused (token, 3, head, head_dim) buffer: row 3 * heads * head_dim,
   head head_dim. */
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
    float *lse; /* (batch, heads, seq_len); may be NULL in forward; backward reads it */

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
    float *d_relative;     /* backward: overwritten with that of relative, summed over the batch; may be NULL */
} ds_sparse_io;

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
DS_API const ds_error *ds_sparse_error(const ds_sparse *s); /* of the last call that failed */
DS_API size_t ds_sparse_memory(const ds_sparse *s);         /* bytes that the object holds */
DS_API ds_sparse_level ds_sparse_simd_level(const ds_sparse *s);
/* Floating-point operations of one forward (4 a score and head_dim) or backward (10) over the scores in kept blocks that
   are not past the length nor wholly behind the causal mask; for figures against a machine's peak. */
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
