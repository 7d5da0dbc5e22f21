/* ds_monitor.h - v0.1.0 - training metrics to CSV and TensorBoard; a live progress line, SVG curves - public domain or MIT-0

DO THIS
    In one C or C++ file:
        #define DS_MONITOR_IMPLEMENTATION
        #include "ds_monitor.h"
    Elsewhere include it without the macro. Link with -lpthread.

SYNOPSIS
        ds_monitor_desc desc = {0};
        ds_monitor *monitor;
        ds_error error = {DS_OK, ""};
        desc.csv.enabled = desc.tensorboard.enabled = true;
        desc.csv.output_path = desc.tensorboard.output_path = "runs";
        desc.csv.job_name = desc.tensorboard.job_name = "first";
        if (ds_monitor_create(&desc, &monitor, &error)) return fail(error.message);
        ds_monitor_write(monitor, "Train/Samples/train_loss", 2.5, 1024);
        ds_monitor_destroy(monitor);

OPTIONS
    DS_IMPLEMENTATION, DS_MONITOR_IMPLEMENTATION   off   in the one file that implements
    DS_STATIC                                      off   private to that file; wherever a ds header is included

WHAT IT DOES NOT DO
    It sends nothing over a network and starts no thread. It does not print: the progress line is text for you to print.

CONCEPTS
    A tag names a series ("Train/Samples/lr"); a value stands at a step, for DeepSpeed's tags the samples seen so far.
    CSV: one file per tag, <output_path>/<job_name>/<tag with / and space as _>.csv, appended to. Each process begins with
    the line step,<last part of the tag>; lines end in CR LF; values are the shortest text that reads back the same double.
    TensorBoard: one events.out.tfevents file per process in <output_path>/<job_name>, scalars in fp32.
    Only rank 0 writes; on other ranks every call succeeds and does nothing.

STEP BY STEP
    1. Fill a ds_monitor_desc. 2. ds_monitor_create makes the folders. 3. ds_monitor_write; as an engine's callback pass
    ds_monitor_event with the monitor as its context. 4. ds_monitor_destroy writes what is buffered.

MEMORY
    A few hundred bytes per tag and a 16 KiB buffer per file, from desc.allocator; nothing after a tag's first value.

ERRORS
    A full or broken disk does not end a training: the first failure is logged (id 1), kept, and returned by every later
    call; values after it are dropped. Create fails when a folder cannot be made.

THREADS
    One thread at a time per monitor; different monitors are independent.

CONFIG KEYS COVERED
    tensorboard.enabled, .output_path, .job_name; csv_monitor.enabled, .output_path, .job_name.
*/
#if defined(DS_IMPLEMENTATION) && !defined(DS_MONITOR_IMPLEMENTATION)
#define DS_MONITOR_IMPLEMENTATION
#endif
#ifndef DS_MONITOR_H
#define DS_MONITOR_H
#define DS_MONITOR_VERSION 100 /* major * 10000 + minor * 100 + patch */

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

#if defined(DS_STATIC) && !defined(DS_MONITOR_IMPLEMENTATION)
#error "ds: DS_STATIC needs the implementation in the same file; define DS_IMPLEMENTATION before including ds_monitor.h"
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* Where metrics go. Each writer that is enabled gets every value. [cfg: tensorboard, csv_monitor, wandb, comet] */
typedef struct ds_monitor_writer {
    bool enabled;
    const char *output_path; /* NULL or "": the working folder */
    const char *job_name;    /* NULL: "DeepSpeedJobName" */
} ds_monitor_writer;

typedef struct ds_monitor_desc {
    int rank; /* only rank 0 writes */
    ds_monitor_writer tensorboard, csv;
    ds_allocator allocator;
    ds_logger logger;
    ds_files files;
    ds_clock clock;
    double (*wall)(void *ctx); /* seconds since 1970, for TensorBoard; NULL: the system's */
    void *wall_ctx;
} ds_monitor_desc;

typedef struct ds_monitor ds_monitor;

DS_API ds_status ds_monitor_create_(const ds_monitor_desc *desc, size_t desc_bytes, int version, ds_monitor **out,
                                    ds_error *error);
static inline ds_status ds_monitor_create(const ds_monitor_desc *desc, ds_monitor **out, ds_error *error) {
    return ds_monitor_create_(desc, sizeof *desc, DS_MONITOR_VERSION, out, error);
}
DS_API void ds_monitor_destroy(ds_monitor *monitor); /* flushes; NULL is allowed */
DS_API const ds_error *ds_monitor_error(const ds_monitor *monitor);

/* One value, at `step` (for DeepSpeed's tags: samples so far). Buffered; the first failure to write is kept, returned by
   every later call, and logged once: training goes on without it. */
DS_API ds_status ds_monitor_write(ds_monitor *monitor, const char *tag, double value, int64_t step);
DS_API ds_status ds_monitor_flush(ds_monitor *monitor);
/* The same as an engine's event callback: ctx is the monitor. */
DS_API void ds_monitor_event(void *monitor, const char *tag, double value, int64_t step);

/*---- for people -----------------------------------------------------------------------------------------------*/

/* A curve for ds_monitor_svg: points in the order drawn. */
typedef struct ds_monitor_curve {
    const char *label;
    const double *x, *y; /* (count); NaN breaks the line */
    size_t count;
    bool faint;      /* a thin pale line, as for raw values behind their smoothed curve */
    bool marks;      /* a dot at each point */
    unsigned colour; /* 1 to 6; 0: by its place */
} ds_monitor_curve;

/* A plot as one self-contained SVG file: axes with round ticks, grid, legend, curves in colours that differ in print
   too. Written beside the target and renamed. */
DS_API ds_status ds_monitor_svg(const char *path, const char *title, const char *x_label, const char *y_label,
                                const ds_monitor_curve *curves, size_t count, const ds_monitor_desc *hooks,
                                ds_error *error);

/* One line about a running training. `live`: for a terminal, over itself: a carriage return, a bar, the text cut to
   `columns`, no newline; otherwise a plain line. Pure formatting, NUL-terminated; the caller prints. Returns its length. */
typedef struct ds_monitor_progress {
    int64_t step, steps;
    double loss, lr, grad_norm, tokens_per_second;
    size_t resident_bytes;
    int64_t elapsed; /* ns since the first step began */
} ds_monitor_progress;
DS_API size_t ds_monitor_progress_line(const ds_monitor_progress *progress, bool live, int columns, char *out,
                                       size_t room);

#ifdef __cplusplus
}
#endif
#endif /* DS_MONITOR_H */

#if defined(DS_MONITOR_IMPLEMENTATION) && !defined(DS_MONITOR_IMPL_DONE)
#define DS_MONITOR_IMPL_DONE
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
/* A product of two polynomials modulo that of the checksum; the highest bit is x^0. */
DSI_FN uint32_t dsi_crc32c_product(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 0x80000000u; bit; bit >>= 1) {
        if (a & bit) product ^= b;
        b = b & 1u ? b >> 1 ^ 0x82F63B78u : b >> 1;
    }
    return product;
}
/* x^(8 * bytes): what a checksum is multiplied with when that many bytes follow. */
DSI_FN uint32_t dsi_crc32c_power(size_t bytes) {
    uint32_t power = 0x80000000u, square = 0x00800000u;
    for (; bytes; bytes >>= 1, square = dsi_crc32c_product(square, square))
        if (bytes & 1) power = dsi_crc32c_product(power, square);
    return power;
}
/* The instruction takes three cycles and can begin in each: long texts go in three lanes. */
__attribute__((target("sse4.2"))) DSI_FN uint32_t dsi_crc32c_sse42(uint32_t crc, const unsigned char *p, size_t bytes) {
    uint64_t wide = crc;
    if (bytes >= 24576) {
        const size_t lane = bytes / 24 * 8;
        const uint32_t power = dsi_crc32c_power(lane);
        uint64_t second = 0, third = 0;
        for (size_t i = 0; i < lane; i += 8) {
            uint64_t words[3];
            memcpy(&words[0], p + i, 8);
            memcpy(&words[1], p + lane + i, 8);
            memcpy(&words[2], p + 2 * lane + i, 8);
            wide = _mm_crc32_u64(wide, words[0]);
            second = _mm_crc32_u64(second, words[1]);
            third = _mm_crc32_u64(third, words[2]);
        }
        wide = dsi_crc32c_product((uint32_t)wide, power) ^ (uint32_t)second;
        wide = dsi_crc32c_product((uint32_t)wide, power) ^ (uint32_t)third;
        p += 3 * lane;
        bytes -= 3 * lane;
    }
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
#include <math.h>

// >>structs

#define DSI_MONITOR_BUFFER 16384

/* An appended file. What does not fit the buffer goes to the disk; `offset` is where the buffer will go. */
typedef struct dsi_monitor_file {
    int fd; /* -1: not open */
    int64_t offset;
    size_t used;
    char buffer[DSI_MONITOR_BUFFER];
} dsi_monitor_file;

typedef struct dsi_monitor_tag {
    struct dsi_monitor_tag *next;
    dsi_monitor_file csv;
    size_t bytes; /* of this allocation */
    char name[1]; /* really as long as the tag */
} dsi_monitor_tag;

struct ds_monitor {
    ds_error error;
    ds_allocator allocator;
    ds_logger logger;
    ds_files files;
    ds_clock clock;
    double (*wall)(void *ctx);
    void *wall_ctx;
    bool active, csv, tensorboard;
    char csv_folder[1024], events_folder[1024];
    dsi_monitor_tag *tags;
    dsi_monitor_file *events;
    int64_t flushed; /* when, ns */
};

// >>files

static ds_status dsi_monitor_failed(ds_monitor *m, int code, const char *doing, const char *path) {
    if (m->error.status) return m->error.status;
    dsi_fail(&m->error, code == -ENOSPC || code == -EDQUOT ? DS_ERR_SPACE : DS_ERR_IO,
             "monitor: cannot %s '%.350s': %s", doing, path, strerror(-code));
    dsi_log(&m->logger, "ds_monitor", DS_LOG_ERROR, 1, "%s; metrics are no longer written", m->error.message);
    return m->error.status;
}

static ds_status dsi_monitor_flush_file(ds_monitor *m, dsi_monitor_file *f, const char *path) {
    size_t done = 0;
    while (done < f->used) {
        int64_t n = m->files.write(m->files.ctx, f->fd, f->buffer + done, f->used - done, f->offset);
        if (n <= 0) return dsi_monitor_failed(m, n ? (int)n : -EIO, "write to", path);
        f->offset += n;
        done += (size_t)n;
    }
    f->used = 0;
    return DS_OK;
}

static ds_status dsi_monitor_append(ds_monitor *m, dsi_monitor_file *f, const char *path, const void *data,
                                    size_t bytes) {
    if (bytes > sizeof f->buffer) return dsi_monitor_failed(m, -EMSGSIZE, "write a record to", path);
    if (f->used + bytes > sizeof f->buffer) {
        ds_status status = dsi_monitor_flush_file(m, f, path);
        if (status) return status;
    }
    memcpy(f->buffer + f->used, data, bytes);
    f->used += bytes;
    return DS_OK;
}

static ds_status dsi_monitor_open(ds_monitor *m, dsi_monitor_file *f, const char *path, int flags) {
    f->used = 0;
    f->fd = m->files.open(m->files.ctx, path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);
    if (f->fd < 0) return dsi_monitor_failed(m, f->fd, "open", path);
    f->offset = m->files.size(m->files.ctx, f->fd);
    if (f->offset < 0) return dsi_monitor_failed(m, (int)f->offset, "read the size of", path);
    return DS_OK;
}

static void dsi_monitor_close(ds_monitor *m, dsi_monitor_file *f) {
    if (f->fd >= 0) m->files.close(m->files.ctx, f->fd);
    f->fd = -1;
}

/* output_path/job_name with every folder on the way. */
static ds_status dsi_monitor_folder(ds_monitor *m, const ds_monitor_writer *w, char *out, size_t room) {
    const char *base = w->output_path && w->output_path[0] ? w->output_path : ".";
    const char *job = w->job_name && w->job_name[0] ? w->job_name : "DeepSpeedJobName";
    int n = snprintf(out, room, "%s/%s", base, job);
    if (n < 0 || (size_t)n >= room) return dsi_monitor_failed(m, -ENAMETOOLONG, "make folder", base);
    for (char *p = out + 1;; p++) {
        char kept = *p;
        int code;
        if (kept != '/' && kept != 0) continue;
        *p = 0;
        code = m->files.mkdir(m->files.ctx, out, 0777);
        if (code < 0 && code != -EEXIST && m->files.exists(m->files.ctx, out) != 2)
            return dsi_monitor_failed(m, code, "make folder", out);
        *p = kept;
        if (!kept) return DS_OK;
    }
}

// >>csv

/* The shortest decimal text that reads back as the same double, in Python's manner: 0.001, 1e-05, 2.0, nan, inf. */
static void dsi_monitor_number(double value, char *out, size_t room) {
    int digits = 1, exponent;
    char text[40], *e;
    if (isnan(value) || isinf(value)) {
        snprintf(out, room, "%s", isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    for (; digits < 17; digits++) {
        snprintf(text, sizeof text, "%.*e", digits - 1, value);
        if (strtod(text, NULL) == value) break;
    }
    snprintf(text, sizeof text, "%.*e", digits - 1, value);
    e = strchr(text, 'e');
    exponent = e ? atoi(e + 1) : 0;
    if (exponent >= -4 && exponent < 16) {
        int places = digits - 1 - exponent;
        snprintf(text, sizeof text, "%.*f", places > 0 ? places : 1, value);
    }
    for (char *p = text; *p; p++)
        if (*p == ',') *p = '.'; /* a locale's decimal point */
    snprintf(out, room, "%s", text);
}

static const char *dsi_monitor_csv_path(const ds_monitor *m, const char *tag, char *out, size_t room) {
    size_t n = (size_t)snprintf(out, room, "%s/", m->csv_folder);
    for (; *tag && n + 5 < room; tag++) out[n++] = *tag == '/' || *tag == ' ' ? '_' : *tag;
    snprintf(out + n, room - n, ".csv");
    return out;
}

static ds_status dsi_monitor_csv(ds_monitor *m, dsi_monitor_tag *t, double value, int64_t step) {
    char path[1600], number[40], line[1200];
    int n;
    dsi_monitor_csv_path(m, t->name, path, sizeof path);
    if (t->csv.fd < 0) {
        const char *last = strrchr(t->name, '/');
        ds_status status = dsi_monitor_open(m, &t->csv, path, 0);
        if (status) return status;
        n = snprintf(line, sizeof line, "step,%s\r\n", last ? last + 1 : t->name);
        if ((status = dsi_monitor_append(m, &t->csv, path, line, (size_t)n))) return status;
    }
    dsi_monitor_number(value, number, sizeof number);
    n = snprintf(line, sizeof line, "%lld,%s\r\n", (long long)step, number);
    return dsi_monitor_append(m, &t->csv, path, line, (size_t)n);
}

// >>tensorboard

/* Protocol buffers, the few forms that an event needs. */
typedef struct dsi_monitor_proto {
    unsigned char bytes[1400];
    size_t n;
} dsi_monitor_proto;

static void dsi_monitor_varint(dsi_monitor_proto *p, uint64_t v) {
    for (; v >= 0x80; v >>= 7) p->bytes[p->n++] = (unsigned char)(v | 0x80);
    p->bytes[p->n++] = (unsigned char)v;
}
static void dsi_monitor_fixed(dsi_monitor_proto *p, const void *value, size_t bytes) {
    uint64_t bits = 0;
    if (bytes == 8)
        memcpy(&bits, value, 8);
    else {
        uint32_t word;
        memcpy(&word, value, 4);
        bits = word;
    }
    for (size_t i = 0; i < bytes; i++) p->bytes[p->n++] = (unsigned char)(bits >> (8 * i));
}
static void dsi_monitor_text(dsi_monitor_proto *p, unsigned char field, const void *text, size_t bytes) {
    p->bytes[p->n++] = field;
    dsi_monitor_varint(p, bytes);
    memcpy(p->bytes + p->n, text, bytes);
    p->n += bytes;
}

/* A record: length, its masked checksum, the event, its masked checksum. */
static ds_status dsi_monitor_record(ds_monitor *m, const dsi_monitor_proto *event) {
    dsi_monitor_proto r;
    uint64_t length = event->n;
    uint32_t crc;
    r.n = 0;
    dsi_monitor_fixed(&r, &length, 8);
    crc = dsi_crc32c(0, r.bytes, 8);
    crc = ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
    dsi_monitor_fixed(&r, &crc, 4);
    memcpy(r.bytes + r.n, event->bytes, event->n);
    r.n += event->n;
    crc = dsi_crc32c(0, event->bytes, event->n);
    crc = ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
    dsi_monitor_fixed(&r, &crc, 4);
    return dsi_monitor_append(m, m->events, m->events_folder, r.bytes, r.n);
}

static double dsi_monitor_wall(const ds_monitor *m) {
    struct timespec now;
    if (m->wall) return m->wall(m->wall_ctx);
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void dsi_monitor_event_time(const ds_monitor *m, dsi_monitor_proto *p) {
    double now = dsi_monitor_wall(m);
    p->n = 0;
    p->bytes[p->n++] = 0x09;
    dsi_monitor_fixed(p, &now, 8);
}

static ds_status dsi_monitor_events_open(ds_monitor *m) {
    char path[1600], host[256] = "localhost";
    dsi_monitor_proto p;
    (void)gethostname(host, sizeof host - 1);
    m->events = (dsi_monitor_file *)dsi_alloc_zero(&m->allocator, sizeof *m->events);
    if (!m->events) return dsi_fail(&m->error, DS_ERR_MEMORY, "monitor: no memory for TensorBoard's buffer");
    m->events->fd = -1;
    for (int n = 0; n < 1000; n++) { /* a file of its own, also for several monitors of one process and second */
        ds_status status;
        snprintf(path, sizeof path, "%s/events.out.tfevents.%010lld.%s.%ld.%d", m->events_folder,
                 (long long)dsi_monitor_wall(m), host, (long)getpid(), n);
        if (m->files.exists(m->files.ctx, path) == 1) continue;
        if ((status = dsi_monitor_open(m, m->events, path, O_EXCL))) return status;
        dsi_monitor_event_time(m, &p);
        dsi_monitor_text(&p, 0x1A, "brain.Event:2", 13);
        return dsi_monitor_record(m, &p);
    }
    return dsi_monitor_failed(m, -EEXIST, "make an event file in", m->events_folder);
}

static ds_status dsi_monitor_events(ds_monitor *m, const char *tag, double value, int64_t step) {
    dsi_monitor_proto event, summary, one;
    float scalar = (float)value;
    one.n = summary.n = 0;
    dsi_monitor_text(&one, 0x0A, tag, strlen(tag));
    one.bytes[one.n++] = 0x15;
    dsi_monitor_fixed(&one, &scalar, 4);
    dsi_monitor_text(&summary, 0x0A, one.bytes, one.n);
    dsi_monitor_event_time(m, &event);
    if (step) {
        event.bytes[event.n++] = 0x10;
        dsi_monitor_varint(&event, (uint64_t)step);
    }
    dsi_monitor_text(&event, 0x2A, summary.bytes, summary.n);
    return dsi_monitor_record(m, &event);
}

// >>public

static dsi_monitor_tag *dsi_monitor_find(ds_monitor *m, const char *tag) {
    size_t bytes = sizeof(dsi_monitor_tag) + strlen(tag);
    dsi_monitor_tag *t = m->tags;
    while (t && strcmp(t->name, tag) != 0) t = t->next;
    if (t) return t;
    t = (dsi_monitor_tag *)dsi_alloc_zero(&m->allocator, bytes);
    if (!t) return NULL;
    t->bytes = bytes;
    t->csv.fd = -1;
    memcpy(t->name, tag, strlen(tag) + 1);
    t->next = m->tags;
    m->tags = t;
    return t;
}

DS_API ds_status ds_monitor_create_(const ds_monitor_desc *desc, size_t desc_bytes, int version, ds_monitor **out,
                                    ds_error *error) {
    ds_monitor *m;
    ds_status status = DS_OK;
    *out = NULL;
    if (version != DS_MONITOR_VERSION || desc_bytes != sizeof *desc)
        return dsi_fail(error, DS_ERR_VERSION,
                        "ds_monitor.h: header version %d with a descriptor of %zu bytes, implementation %d with %zu",
                        version, desc_bytes, DS_MONITOR_VERSION, sizeof *desc);
    m = (ds_monitor *)dsi_alloc_zero(&desc->allocator, sizeof *m);
    if (!m) return dsi_fail(error, DS_ERR_MEMORY, "monitor: no memory");
    m->allocator = desc->allocator;
    m->logger = desc->logger;
    m->files = dsi_files(&desc->files);
    m->clock = desc->clock;
    m->wall = desc->wall;
    m->wall_ctx = desc->wall_ctx;
    m->csv = desc->csv.enabled;
    m->tensorboard = desc->tensorboard.enabled;
    m->active = desc->rank == 0 && (m->csv || m->tensorboard);
    m->flushed = dsi_now(&m->clock);
    if (m->active && m->csv) status = dsi_monitor_folder(m, &desc->csv, m->csv_folder, sizeof m->csv_folder);
    if (m->active && m->tensorboard && !status)
        status = dsi_monitor_folder(m, &desc->tensorboard, m->events_folder, sizeof m->events_folder);
    if (m->active && m->tensorboard && !status) status = dsi_monitor_events_open(m);
    if (status) {
        if (error) *error = m->error;
        ds_monitor_destroy(m);
        return status;
    }
    *out = m;
    return DS_OK;
}

DS_API ds_status ds_monitor_flush(ds_monitor *m) {
    char path[1600];
    if (!m->active || m->error.status) return m->error.status;
    m->flushed = dsi_now(&m->clock);
    for (dsi_monitor_tag *t = m->tags; t; t = t->next)
        if (t->csv.used && dsi_monitor_flush_file(m, &t->csv, dsi_monitor_csv_path(m, t->name, path, sizeof path)))
            return m->error.status;
    return m->events ? dsi_monitor_flush_file(m, m->events, m->events_folder) : DS_OK;
}

DS_API void ds_monitor_destroy(ds_monitor *m) {
    if (!m) return;
    (void)ds_monitor_flush(m);
    while (m->tags) {
        dsi_monitor_tag *t = m->tags;
        m->tags = t->next;
        dsi_monitor_close(m, &t->csv);
        dsi_release(&m->allocator, t, t->bytes);
    }
    if (m->events) dsi_monitor_close(m, m->events);
    dsi_release(&m->allocator, m->events, sizeof *m->events);
    {
        ds_allocator allocator = m->allocator;
        dsi_release(&allocator, m, sizeof *m);
    }
}

DS_API const ds_error *ds_monitor_error(const ds_monitor *m) {
    return &m->error;
}

DS_API ds_status ds_monitor_write(ds_monitor *m, const char *tag, double value, int64_t step) {
    dsi_monitor_tag *t;
    if (!m->active || m->error.status) return m->error.status;
    if (!tag || !tag[0] || strlen(tag) > 500) return DS_ERR_ARGUMENT; /* of this call alone: the monitor goes on */
    t = dsi_monitor_find(m, tag);
    if (!t) return dsi_fail(&m->error, DS_ERR_MEMORY, "monitor: no memory for tag '%.300s'", tag);
    if (m->csv && dsi_monitor_csv(m, t, value, step)) return m->error.status;
    if (m->tensorboard && dsi_monitor_events(m, tag, value, step)) return m->error.status;
    if (dsi_now(&m->clock) - m->flushed > 1000000000) return ds_monitor_flush(m); /* so that people can look on */
    return DS_OK;
}

DS_API void ds_monitor_event(void *monitor, const char *tag, double value, int64_t step) {
    (void)ds_monitor_write((ds_monitor *)monitor, tag, value, step);
}

// >>progress

static void dsi_monitor_duration(int64_t ns, char *out, size_t room) {
    long long s = (long long)(ns / 1000000000);
    if (s >= 3600)
        snprintf(out, room, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, room, "%lld:%02lld", s / 60, s % 60);
}

DS_API size_t ds_monitor_progress_line(const ds_monitor_progress *p, bool live, int columns, char *out, size_t room) {
    char body[400], eta[32], bar[24] = "";
    int64_t left = p->step > 0 && p->steps > p->step ? p->elapsed / p->step * (p->steps - p->step) : 0;
    int n, width;
    if (room == 0) return 0;
    dsi_monitor_duration(left, eta, sizeof eta);
    width = p->steps > 999999 ? 9 : p->steps > 9999 ? 6 : 4;
    if (live && columns >= 110) {
        int filled = p->steps > 0 ? (int)(p->step * 20 / p->steps) : 0;
        for (int i = 0; i < 20; i++) bar[i] = i < filled ? '=' : i == filled ? '>' : ' ';
        bar[20] = 0;
    }
    snprintf(body, sizeof body, "%s%s%sstep %*lld/%lld  loss %.4f  lr %.2e  norm %.3g  %.0f tok/s  %.0f MiB  ETA %s",
             bar[0] ? "[" : "", bar, bar[0] ? "] " : "", width, (long long)p->step, (long long)p->steps, p->loss, p->lr,
             p->grad_norm, p->tokens_per_second, (double)p->resident_bytes / 1048576.0, eta);
    if (live)
        n = snprintf(out, room, "\r%.*s\033[K", columns > 1 ? columns - 1 : 1, body);
    else
        n = snprintf(out, room, "%s\n", body);
    return n < 0 ? 0 : (size_t)n < room ? (size_t)n : room - 1;
}

// >>svg

typedef struct dsi_monitor_plot {
    ds_files files;
    char *text;
    size_t used, room;
    bool full;
    double x0, x1, y0, y1;
} dsi_monitor_plot;

DSI_PRINTF(2, 3) static void dsi_monitor_put(dsi_monitor_plot *p, const char *format, ...) {
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(p->text ? p->text + p->used : NULL, p->text ? p->room - p->used : 0, format, args);
    va_end(args);
    if (n > 0) p->used += (size_t)n;
    if (p->text && p->used >= p->room) {
        p->used = p->room ? p->room - 1 : 0;
        p->full = true;
    }
}

static void dsi_monitor_put_escaped(dsi_monitor_plot *p, const char *text) {
    for (; text && *text; text++) {
        if (*text == '&')
            dsi_monitor_put(p, "&amp;");
        else if (*text == '<')
            dsi_monitor_put(p, "&lt;");
        else if (*text == '"')
            dsi_monitor_put(p, "&quot;");
        else
            dsi_monitor_put(p, "%c", *text);
    }
}

/* A step of 1, 2 or 5 times a power of ten that cuts the range in at most `most` parts. */
static double dsi_monitor_tick(double range, int most) {
    double unit = pow(10.0, floor(log10(range / most))), part = range / most / unit;
    return unit * (part <= 1.0 ? 1.0 : part <= 2.0 ? 2.0 : part <= 5.0 ? 5.0 : 10.0);
}

#define DSI_PLOT_LEFT   70
#define DSI_PLOT_TOP    44
#define DSI_PLOT_WIDTH  600
#define DSI_PLOT_HEIGHT 340

static double dsi_monitor_x(const dsi_monitor_plot *p, double x) {
    return DSI_PLOT_LEFT + (x - p->x0) / (p->x1 - p->x0) * DSI_PLOT_WIDTH;
}
static double dsi_monitor_y(const dsi_monitor_plot *p, double y) {
    return DSI_PLOT_TOP + DSI_PLOT_HEIGHT - (y - p->y0) / (p->y1 - p->y0) * DSI_PLOT_HEIGHT;
}

static void dsi_monitor_range(dsi_monitor_plot *p, const ds_monitor_curve *curves, size_t count) {
    bool any = false;
    for (size_t c = 0; c < count; c++)
        for (size_t i = 0; i < curves[c].count; i++) {
            double x = curves[c].x[i], y = curves[c].y[i];
            if (!isfinite(x) || !isfinite(y)) continue;
            if (!any || x < p->x0) p->x0 = x;
            if (!any || x > p->x1) p->x1 = x;
            if (!any || y < p->y0) p->y0 = y;
            if (!any || y > p->y1) p->y1 = y;
            any = true;
        }
    if (!any) p->x0 = p->y0 = 0.0, p->x1 = p->y1 = 1.0;
    if (p->x1 <= p->x0) p->x1 = p->x0 + 1.0;
    if (p->y1 <= p->y0) p->y1 = p->y0 + 1.0;
    {
        double tick = dsi_monitor_tick(p->y1 - p->y0, 8);
        p->y0 = floor(p->y0 / tick) * tick;
        p->y1 = ceil(p->y1 / tick) * tick;
    }
}

static void dsi_monitor_axes(dsi_monitor_plot *p, const char *x_label, const char *y_label) {
    double tick = dsi_monitor_tick(p->y1 - p->y0, 8);
    for (double y = p->y0; y <= p->y1 + tick / 2; y += tick) {
        double at = dsi_monitor_y(p, y);
        dsi_monitor_put(p, "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#e4e4e4\"/>\n", DSI_PLOT_LEFT,
                        DSI_PLOT_LEFT + DSI_PLOT_WIDTH, at, at);
        dsi_monitor_put(p, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", DSI_PLOT_LEFT - 8, at + 4,
                        fabs(y) < tick * 1e-6 ? 0.0 : y);
    }
    tick = dsi_monitor_tick(p->x1 - p->x0, 8);
    for (double x = ceil(p->x0 / tick) * tick; x <= p->x1 + tick * 1e-6; x += tick) {
        double at = dsi_monitor_x(p, x);
        dsi_monitor_put(p, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#333\"/>\n", at, at,
                        DSI_PLOT_TOP + DSI_PLOT_HEIGHT, DSI_PLOT_TOP + DSI_PLOT_HEIGHT + 5);
        dsi_monitor_put(p, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n", at,
                        DSI_PLOT_TOP + DSI_PLOT_HEIGHT + 20, fabs(x) < tick * 1e-6 ? 0.0 : x);
    }
    dsi_monitor_put(p, "<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"#333\"/>\n", DSI_PLOT_LEFT, DSI_PLOT_TOP,
                    DSI_PLOT_TOP + DSI_PLOT_HEIGHT, DSI_PLOT_LEFT + DSI_PLOT_WIDTH);
    dsi_monitor_put(p, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">", DSI_PLOT_LEFT + DSI_PLOT_WIDTH / 2,
                    DSI_PLOT_TOP + DSI_PLOT_HEIGHT + 42);
    dsi_monitor_put_escaped(p, x_label);
    dsi_monitor_put(p, "</text>\n<text transform=\"translate(20 %d) rotate(-90)\" text-anchor=\"middle\">",
                    DSI_PLOT_TOP + DSI_PLOT_HEIGHT / 2);
    dsi_monitor_put_escaped(p, y_label);
    dsi_monitor_put(p, "</text>\n");
}

static const char *const dsi_monitor_colours[] = {"#0b5cad", "#d1495b", "#2e8b57", "#8a5cc2", "#c77f1a", "#444444"};

static const char *dsi_monitor_colour(const ds_monitor_curve *curves, size_t c) {
    return dsi_monitor_colours[(curves[c].colour ? curves[c].colour - 1 : c) % 6];
}

static void dsi_monitor_draw(dsi_monitor_plot *p, const ds_monitor_curve *c, const char *colour) {
    bool down = false;
    dsi_monitor_put(p, "<path fill=\"none\" stroke=\"%s\" stroke-linejoin=\"round\" stroke-width=\"%s\"%s d=\"", colour,
                    c->faint ? "1" : "2", c->faint ? " stroke-opacity=\"0.35\"" : "");
    for (size_t i = 0; i < c->count; i++) {
        bool ok = isfinite(c->x[i]) && isfinite(c->y[i]);
        if (ok)
            dsi_monitor_put(p, "%s%.1f %.1f", down ? "L" : "M", dsi_monitor_x(p, c->x[i]), dsi_monitor_y(p, c->y[i]));
        down = ok;
    }
    dsi_monitor_put(p, "\"/>\n");
    for (size_t i = 0; c->marks && i < c->count; i++)
        if (isfinite(c->x[i]) && isfinite(c->y[i]))
            dsi_monitor_put(p, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n", dsi_monitor_x(p, c->x[i]),
                            dsi_monitor_y(p, c->y[i]), colour);
}

static void dsi_monitor_page(dsi_monitor_plot *p, const char *title, const char *x_label, const char *y_label,
                             const ds_monitor_curve *curves, size_t count) {
    int row = 0;
    p->used = 0;
    dsi_monitor_put(p,
                    "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 700 440\" width=\"700\" height=\"440\" "
                    "font-family=\"Helvetica,Arial,sans-serif\" font-size=\"12\" fill=\"#222\">\n"
                    "<rect width=\"700\" height=\"440\" fill=\"#fff\"/>\n<text x=\"%d\" y=\"26\" font-size=\"16\">",
                    DSI_PLOT_LEFT);
    dsi_monitor_put_escaped(p, title);
    dsi_monitor_put(p, "</text>\n");
    dsi_monitor_axes(p, x_label, y_label);
    for (size_t c = 0; c < count; c++) dsi_monitor_draw(p, &curves[c], dsi_monitor_colour(curves, c));
    for (size_t c = 0; c < count; c++) {
        int y = DSI_PLOT_TOP + 16 + 20 * row;
        if (!curves[c].label) continue;
        row++;
        dsi_monitor_put(p,
                        "<line x1=\"500\" x2=\"524\" y1=\"%d\" y2=\"%d\" stroke=\"%s\" stroke-width=\"%s\"%s/>\n<text "
                        "x=\"532\" y=\"%d\">",
                        y, y, dsi_monitor_colour(curves, c), curves[c].faint ? "1" : "2",
                        curves[c].faint ? " stroke-opacity=\"0.35\"" : "", y + 4);
        dsi_monitor_put_escaped(p, curves[c].label);
        dsi_monitor_put(p, "</text>\n");
    }
    dsi_monitor_put(p, "</svg>\n");
}

static ds_status dsi_monitor_write_page(dsi_monitor_plot *p, const char *path, const char *beside, ds_error *error) {
    int fd = p->files.open(p->files.ctx, beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), code = 0;
    size_t done = 0;
    if (fd < 0) return dsi_fail(error, DS_ERR_IO, "svg: cannot write '%.300s': %s", beside, strerror(-fd));
    while (done < p->used && code >= 0) {
        int64_t n = p->files.write(p->files.ctx, fd, p->text + done, p->used - done, (int64_t)done);
        code = n > 0 ? 0 : n < 0 ? (int)n : -EIO;
        if (n > 0) done += (size_t)n;
    }
    if (p->files.close(p->files.ctx, fd) < 0 && code >= 0) code = -EIO;
    if (code >= 0) code = p->files.rename(p->files.ctx, beside, path);
    if (code >= 0) return DS_OK;
    (void)p->files.unlink(p->files.ctx, beside);
    return dsi_fail(error, code == -ENOSPC ? DS_ERR_SPACE : DS_ERR_IO, "svg: cannot write '%.300s': %s", path,
                    strerror(-code));
}

DS_API ds_status ds_monitor_svg(const char *path, const char *title, const char *x_label, const char *y_label,
                                const ds_monitor_curve *curves, size_t count, const ds_monitor_desc *hooks,
                                ds_error *error) {
    dsi_monitor_plot p;
    char beside[1100];
    ds_status status;
    int n = snprintf(beside, sizeof beside, "%s.tmp", path);
    if (n < 0 || (size_t)n >= sizeof beside)
        return dsi_fail(error, DS_ERR_ARGUMENT, "svg: the path is longer than %zu", sizeof beside - 5);
    memset(&p, 0, sizeof p);
    p.files = dsi_files(hooks ? &hooks->files : NULL);
    dsi_monitor_range(&p, curves, count);
    dsi_monitor_page(&p, title, x_label, y_label, curves, count); /* once for its length */
    p.room = p.used + 1;
    p.text = (char *)dsi_alloc(hooks ? &hooks->allocator : NULL, p.room);
    if (!p.text) return dsi_fail(error, DS_ERR_MEMORY, "svg: no memory for %zu bytes", p.room);
    dsi_monitor_page(&p, title, x_label, y_label, curves, count);
    status = dsi_monitor_write_page(&p, path, beside, error);
    dsi_release(hooks ? &hooks->allocator : NULL, p.text, p.room);
    return status;
}

#undef DSI_MONITOR_BUFFER
#undef DSI_PLOT_LEFT
#undef DSI_PLOT_TOP
#undef DSI_PLOT_WIDTH
#undef DSI_PLOT_HEIGHT

#endif /* DS_MONITOR_IMPL_DONE */

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
