/* ds_checkpoint.h - v0.1.0 - checkpoints that commit atomically and reshard; a safetensors reader and writer - public domain or MIT-0 */
#if defined(DS_IMPLEMENTATION) && !defined(DS_CHECKPOINT_IMPLEMENTATION)
#define DS_CHECKPOINT_IMPLEMENTATION
#endif
#ifndef DS_CHECKPOINT_H
#define DS_CHECKPOINT_H
#define DS_CHECKPOINT_VERSION 100 /* major * 10000 + minor * 100 + patch */

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

#if defined(DS_STATIC) && !defined(DS_CHECKPOINT_IMPLEMENTATION)
#error                                                                                                                 \
    "ds: DS_STATIC needs the implementation in the same file; define DS_IMPLEMENTATION before including ds_checkpoint.h"
#endif
#ifdef __cplusplus
extern "C" {
#endif

/*---- saving ---------------------------------------------------------------------------------------------------*/

/* How a folder is used; shared by saving and loading. */
typedef struct ds_checkpoint_desc {
    const char *folder; /* holds tags and `latest` */
    ds_group group;     /* the ranks that save or load together; zeroed: one */
    int tag_validation; /* 0 Warn, 1 Ignore, 2 Fail: tags that differ between ranks [cfg: checkpoint.tag_validation] */
    bool node_local;    /* every node has its own folder [cfg: checkpoint.use_node_local_storage] */
    int local_rank;     /* with node_local: rank 0 of a node makes folders and commits */
    int keep_last;      /* complete tags to keep, the oldest go after a commit; 0: all */
    bool background;    /* write and commit on a thread; ds_checkpoint_finish waits */
    ds_allocator allocator;
    ds_logger logger;
    ds_files files;
    ds_clock clock;
} ds_checkpoint_desc;

typedef struct ds_checkpoint_writer ds_checkpoint_writer;

/* Begins folder/tag. Collective, as are commit and abandon. The tag is a plain file name. */
DS_API ds_status ds_checkpoint_begin_(const ds_checkpoint_desc *desc, size_t desc_bytes, int version,
                                               const char *tag, ds_checkpoint_writer **out, ds_error *error);
static inline ds_status ds_checkpoint_begin(const ds_checkpoint_desc *desc, const char *tag, ds_checkpoint_writer **out,
                                            ds_error *error) {
    return ds_checkpoint_begin_(desc, sizeof *desc, DS_CHECKPOINT_VERSION, tag, out, error);
}

/* A logical tensor, or a flat range of one: elements [begin, begin + count) of the row-major whole. */
typedef struct ds_checkpoint_tensor {
    const char *name;
    ds_dtype dtype;
    const size_t *shape; /* (dims) of the whole tensor */
    int dims;
    size_t begin, count;
    const void *data; /* count elements; NULL: `read` gives them piece by piece */
    ds_status (*read)(void *ctx, size_t begin, size_t count, void *out); /* elements of the whole tensor */
    void *ctx;
} ds_checkpoint_tensor;

/* Declares this rank's part of a tensor; names are unique per rank, and over all ranks the parts of a tensor must cover
   it once. Data is read during commit (background: copied there first). */
DS_API ds_status ds_checkpoint_add(ds_checkpoint_writer *writer, const ds_checkpoint_tensor *tensor);
/* A named value in the manifest; rank 0's count. Text is UTF-8, bytes are anything. */
DS_API ds_status ds_checkpoint_set_text(ds_checkpoint_writer *writer, const char *key, const char *value);
DS_API ds_status ds_checkpoint_set_number(ds_checkpoint_writer *writer, const char *key, double value);
DS_API ds_status ds_checkpoint_set_integer(ds_checkpoint_writer *writer, const char *key, int64_t value);
DS_API ds_status ds_checkpoint_set_bytes(ds_checkpoint_writer *writer, const char *key, const void *data, size_t bytes);
/* Writes this rank's shard, syncs, and lets the group's first rank write manifest, rename and point `latest` to the tag.
   On failure of any rank all return an error that names it and the previous checkpoint stands. Frees the writer, but
   with `background` (then ds_checkpoint_finish does). */
DS_API ds_status ds_checkpoint_commit(ds_checkpoint_writer *writer, ds_error *error);
DS_API ds_status ds_checkpoint_finish(ds_checkpoint_writer *writer, ds_error *error);
DS_API void ds_checkpoint_abandon(ds_checkpoint_writer *writer);
DS_API const ds_error *ds_checkpoint_writer_error(const ds_checkpoint_writer *writer);

/*---- loading --------------------------------------------------------------------------------------------------*/

typedef struct ds_checkpoint ds_checkpoint; /* an open checkpoint, read-only */

/* Opens folder/tag; tag NULL: what `latest` names, or when that is damaged the newest complete one, said in the log.
   Verifies manifest and shard headers; data is verified as it is read. Not collective.
   Errors: DS_ERR_INPUT (none there), DS_ERR_CORRUPT (names the file). */
DS_API ds_status ds_checkpoint_open_(const ds_checkpoint_desc *desc, size_t desc_bytes, int version,
                                              const char *tag, ds_checkpoint **out, ds_error *error);
static inline ds_status ds_checkpoint_open(const ds_checkpoint_desc *desc, const char *tag, ds_checkpoint **out,
                                           ds_error *error) {
    return ds_checkpoint_open_(desc, sizeof *desc, DS_CHECKPOINT_VERSION, tag, out, error);
}
DS_API void ds_checkpoint_close(ds_checkpoint *checkpoint);
DS_API const ds_error *ds_checkpoint_error(const ds_checkpoint *checkpoint);
DS_API const char *ds_checkpoint_tag(const ds_checkpoint *checkpoint);

typedef struct ds_checkpoint_info {
    const char *name; /* the checkpoint's own, until close */
    ds_dtype dtype;
    size_t shape[8];
    int dims;
    size_t numel;
    size_t parts; /* shards that hold a piece */
} ds_checkpoint_info;
DS_API size_t ds_checkpoint_count(const ds_checkpoint *checkpoint);
DS_API ds_status ds_checkpoint_at(const ds_checkpoint *checkpoint, size_t index, ds_checkpoint_info *out);
/* DS_ERR_INPUT when there is none of that name. */
DS_API ds_status ds_checkpoint_find(const ds_checkpoint *checkpoint, const char *name, ds_checkpoint_info *out);
/* Elements [begin, begin + count) of the whole tensor, from whichever shards hold them, converted to `dtype`. */
DS_API ds_status ds_checkpoint_read(ds_checkpoint *checkpoint, const char *name, size_t begin, size_t count,
                                    ds_dtype dtype, void *out);
/* Checks every byte of every shard against its checksum. */
DS_API ds_status ds_checkpoint_verify(ds_checkpoint *checkpoint);
/* Values of the manifest; DS_ERR_INPUT when absent or of another kind. Text and bytes are the checkpoint's own. */
DS_API ds_status ds_checkpoint_get_text(const ds_checkpoint *checkpoint, const char *key, const char **value);
DS_API ds_status ds_checkpoint_get_number(const ds_checkpoint *checkpoint, const char *key, double *value);
DS_API ds_status ds_checkpoint_get_integer(const ds_checkpoint *checkpoint, const char *key, int64_t *value);
DS_API ds_status ds_checkpoint_get_bytes(const ds_checkpoint *checkpoint, const char *key, const void **data,
                                         size_t *bytes);

/*---- safetensors ----------------------------------------------------------------------------------------------*/

/* One file (or with max_shard_bytes shards and an index) of whole tensors that other tools open; written beside the
   target and renamed. tensors[i].begin is 0 and count the whole. */
DS_API ds_status ds_safetensors_write(const char *path, const ds_checkpoint_tensor *tensors, size_t count,
                                      const char *const *metadata, size_t metadata_pairs, size_t max_shard_bytes,
                                      const ds_checkpoint_desc *hooks, ds_error *error);

#ifdef __cplusplus
}
#endif
#endif /* DS_CHECKPOINT_H */

#if defined(DS_CHECKPOINT_IMPLEMENTATION) && !defined(DS_CHECKPOINT_IMPL_DONE)
#define DS_CHECKPOINT_IMPL_DONE
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
/*== ds block: files 1 == home: ds_offload.h ==*/
#if defined(DSI_FILES_BLOCK) && DSI_FILES_BLOCK != 1
#error "ds: implementations of two versions meet in this file; vendor all ds_*.h from one release"
#endif
#ifndef DSI_FILES_BLOCK
#define DSI_FILES_BLOCK 1
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
/* The system's own calls behind ds_files; a call that a signal interrupts is made again. */
DSI_FN int dsi_sys_result(int result) {
    return result < 0 ? -errno : result;
}
DSI_FN int dsi_sys_open(void *ctx, const char *path, int flags, unsigned mode) {
    int fd;
    (void)ctx;
    do fd = open(path, flags, (mode_t)mode);
    while (fd < 0 && errno == EINTR);
    return dsi_sys_result(fd);
}
DSI_FN int dsi_sys_close(void *ctx, int fd) {
    (void)ctx;
    return close(fd) < 0 && errno != EINTR ? -errno : 0; /* Linux has closed it even when interrupted */
}
DSI_FN int64_t dsi_sys_read(void *ctx, int fd, void *buffer, size_t bytes, int64_t offset) {
    ssize_t n;
    (void)ctx;
    do n = pread(fd, buffer, bytes, (off_t)offset);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (int64_t)n;
}
DSI_FN int64_t dsi_sys_write(void *ctx, int fd, const void *buffer, size_t bytes, int64_t offset) {
    ssize_t n;
    (void)ctx;
    do n = pwrite(fd, buffer, bytes, (off_t)offset);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (int64_t)n;
}
DSI_FN int dsi_sys_sync(void *ctx, int fd) {
    return (void)ctx, dsi_sys_result(fsync(fd));
}
DSI_FN int dsi_sys_truncate(void *ctx, int fd, int64_t bytes) {
    return (void)ctx, dsi_sys_result(ftruncate(fd, (off_t)bytes));
}
DSI_FN int dsi_sys_reserve(void *ctx, int fd, int64_t offset, int64_t bytes) {
    int failed;
    (void)ctx;
    do failed = posix_fallocate(fd, (off_t)offset, (off_t)bytes);
    while (failed == EINTR);
    return -failed;
}
DSI_FN int64_t dsi_sys_size(void *ctx, int fd) {
    struct stat s;
    (void)ctx;
    return fstat(fd, &s) < 0 ? -errno : (int64_t)s.st_size;
}
DSI_FN int dsi_sys_exists(void *ctx, const char *path) {
    struct stat s;
    (void)ctx;
    if (lstat(path, &s) < 0) return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
    return S_ISREG(s.st_mode) ? 1 : S_ISDIR(s.st_mode) ? 2 : 3;
}
DSI_FN int dsi_sys_rename(void *ctx, const char *from, const char *to) {
    return (void)ctx, dsi_sys_result(rename(from, to));
}
DSI_FN int dsi_sys_unlink(void *ctx, const char *path) {
    return (void)ctx, dsi_sys_result(unlink(path));
}
DSI_FN int dsi_sys_mkdir(void *ctx, const char *path, unsigned mode) {
    return (void)ctx, dsi_sys_result(mkdir(path, (mode_t)mode));
}
DSI_FN int dsi_sys_rmdir(void *ctx, const char *path) {
    return (void)ctx, dsi_sys_result(rmdir(path));
}
DSI_FN int dsi_sys_list(void *ctx, const char *path, void (*entry)(void *arg, const char *name), void *arg) {
    DIR *folder = opendir(path);
    struct dirent *e;
    int failed;
    (void)ctx;
    if (!folder) return -errno;
    while (errno = 0, (e = readdir(folder)) != NULL)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) entry(arg, e->d_name);
    failed = errno;
    closedir(folder);
    return -failed;
}
/* `given` with every NULL member replaced by the system's call; given may be NULL. */
DSI_FN ds_files dsi_files(const ds_files *given) {
    ds_files f;
    memset(&f, 0, sizeof f);
    if (given) f = *given;
    if (!f.open) f.open = dsi_sys_open;
    if (!f.close) f.close = dsi_sys_close;
    if (!f.read) f.read = dsi_sys_read;
    if (!f.write) f.write = dsi_sys_write;
    if (!f.sync) f.sync = dsi_sys_sync;
    if (!f.truncate) f.truncate = dsi_sys_truncate;
    if (!f.reserve) f.reserve = dsi_sys_reserve;
    if (!f.size) f.size = dsi_sys_size;
    if (!f.exists) f.exists = dsi_sys_exists;
    if (!f.rename) f.rename = dsi_sys_rename;
    if (!f.unlink) f.unlink = dsi_sys_unlink;
    if (!f.mkdir) f.mkdir = dsi_sys_mkdir;
    if (!f.rmdir) f.rmdir = dsi_sys_rmdir;
    if (!f.list) f.list = dsi_sys_list;
    return f;
}
#endif
/*== end of ds block: files ==*/
/*== ds block: crc32c 1 == home: ds_checkpoint.h ==*/
#if defined(DSI_CRC32C_BLOCK) && DSI_CRC32C_BLOCK != 1
#error "ds: implementations of two versions meet in this file; vendor all ds_*.h from one release"
#endif
#ifndef DSI_CRC32C_BLOCK
#define DSI_CRC32C_BLOCK 1
#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#endif
/* CRC-32C (Castagnoli, reflected 0x82F63B78), as in iSCSI, ext4 and TensorBoard: crc32c of "123456789" is 0xE3069283.
   Start with 0; feed a text in pieces by passing the last result on. The table costs 8 shifts a byte to derive. */
DSI_FN uint32_t dsi_crc32c_portable(uint32_t crc, const unsigned char *p, size_t bytes) {
    while (bytes--) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1u ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
    }
    return crc;
}
#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("sse4.2"))) DSI_FN uint32_t dsi_crc32c_sse42(uint32_t crc, const unsigned char *p, size_t bytes) {
    uint64_t wide = crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    while (bytes--) crc = _mm_crc32_u8(crc, *p++);
    return crc;
}
#endif
DSI_FN uint32_t dsi_crc32c(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("sse4.2")) return ~dsi_crc32c_sse42(~crc, p, bytes);
#endif
    return ~dsi_crc32c_portable(~crc, p, bytes);
}
#endif
/*== end of ds block: crc32c ==*/

#endif /* DS_CHECKPOINT_IMPL_DONE */

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
