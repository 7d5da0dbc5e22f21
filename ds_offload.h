/* ds_offload.h - v0.1.0 - tensors to host memory and NVMe and back, asynchronously - public domain or MIT-0

DO THIS
    In one C or C++ file:
        #define DS_OFFLOAD_IMPLEMENTATION
        #include "ds_offload.h"
    Elsewhere include it without the macro. Link with -lpthread -ldl. libaio is opened at run time where it is installed;
    without it the kernel's own calls, and without those a thread that reads and writes, do the same.

SYNOPSIS (examples/05_offload.c)
        ds_offload_desc desc = {0};
        ds_offload *store;
        ds_offload_id id;
        ds_offload_ticket ticket;
        desc.folder = "/local_nvme";
        if (ds_offload_create(&desc, &store, &error)) return fail(error.message);
        ds_offload_add(store, "layer0.exp_avg", bytes, DS_OFFLOAD_NVME, &id);
        ds_offload_start_write(store, id, 0, bytes, memory, &ticket);
        ... compute ...
        if (ds_offload_wait(store, ticket)) return fail(ds_offload_error(store)->message);
        ds_offload_read(store, id, 0, bytes, memory);
        ds_offload_destroy(store);

OPTIONS
    DS_IMPLEMENTATION, DS_OFFLOAD_IMPLEMENTATION   off   in the one file that implements
    DS_OFFLOAD_USE_LIBAIO                          1     in that file; 0: never look for libaio
    DS_DEBUG                                       0     in that file; 1: checksums whether asked for or not
    DS_STATIC                                      off   private to that file; wherever a ds header is included

WHAT IT DOES NOT DO
    It keeps nothing after a crash: a swap file is scratch (ds_checkpoint.h keeps things). It does not compress. A named
    file that another program cuts short and the store then writes behind reads as zeros there; checksums tell.

CONCEPTS
    A store is one file per rank and the tensors in it. The file is anonymous: it has no name, and is gone with the process
    however that ends. Space is reserved when a tensor is added, so a full disk is found before training, not in it.
    A transfer moves a range of a tensor. It is cut into blocks of block_size; thread_count workers share the blocks; each
    keeps up to queue_depth requests in the air. Every event's result is looked at: what came back short is resumed, EINTR
    and EAGAIN are tried again for as long as a wait may last, anything else fails the transfer with file, offset, tensor.
    Three tiers: DS_OFFLOAD_HOST stays in memory, DS_OFFLOAD_NVME in the file; DS_OFFLOAD_SPILL has its blocks in memory
    as far as desc.max_in_cpu reaches, and those used least recently in the file, written there only when they changed.
    O_DIRECT moves aligned memory (4,096 bytes: offset in the tensor, address and size) without a copy; the rest goes
    through bounce buffers, and a write of part of a block reads the block first. A file system that refuses O_DIRECT
    gets buffered reads and writes, and the log says so. Memory in huge pages is moved up to twice as fast: the store's
    own large buffers are (not those of desc.allocator), and ds_offload_huge asks for them behind yours.
    Order. Transfers that touch the same blocks of the disk, at least one of them writing, or the same memory, at least one of
    them reading into it, take effect in the order of their starts; others may overtake each other. So a buffer may be read
    into again as soon as its write has been started.

STEP BY STEP
    1. ds_offload_create, with desc.probe for a look at the disk's speed. 2. ds_offload_add, while nothing is under way. 3. start and wait; up to 1,024 transfers may be
    started and not yet waited for. 4. ds_offload_destroy, which waits for what is under way.

MEMORY
    ds_offload_memory(&desc) says what create takes from desc.allocator: tables, two bounce buffers of block_size for each
    thread, and max_in_cpu. Tensors of DS_OFFLOAD_HOST come on top. Of desc.file_bytes checksums take 4 bytes for each 4,096,
    and with max_in_cpu each block takes 24. With pin_memory host memory is locked, or comes from desc.device.

ERRORS
    ds_offload_error(store) has the text. Log ids: 1 ready, 2 O_DIRECT refused, 3 engine refused, 4 memory not locked,
    5 what the probe measured.
    A transfer of DS_OFFLOAD_SPILL that fails takes those with it that were started after it and had not run; each says so,
    no data is lost, and all may be started again.

THREADS
    One thread at a time per store. Worker threads block all signals.

CONFIG KEYS COVERED
    zero_optimization.offload_*.nvme_path, .pin_memory, offload_param.max_in_cpu; aio.block_size, .queue_depth, .thread_count,
    .intra_op_parallelism, .single_submit, .overlap_events.
*/
#if defined(DS_IMPLEMENTATION) && !defined(DS_OFFLOAD_IMPLEMENTATION)
#define DS_OFFLOAD_IMPLEMENTATION
#endif
#ifndef DS_OFFLOAD_H
#define DS_OFFLOAD_H
#define DS_OFFLOAD_VERSION 100 /* major * 10000 + minor * 100 + patch */

#ifndef DS_OFFLOAD_USE_LIBAIO
#define DS_OFFLOAD_USE_LIBAIO 1
#endif

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

#if defined(DS_STATIC) && !defined(DS_OFFLOAD_IMPLEMENTATION)
#error "ds: DS_STATIC needs the implementation in the same file; define DS_IMPLEMENTATION before including ds_offload.h"
#endif
#ifdef __cplusplus
extern "C" {
#endif

/*---- a store --------------------------------------------------------------------------------------------------*/

typedef struct ds_offload ds_offload; /* opaque, never moves */

typedef enum ds_offload_tier {
    DS_OFFLOAD_HOST = 0, /* in memory */
    DS_OFFLOAD_NVME = 1, /* in the file */
    DS_OFFLOAD_SPILL =
        2 /* in memory as far as desc.max_in_cpu reaches; the blocks used least recently are in the file */
} ds_offload_tier;
typedef enum ds_offload_engine {
    DS_OFFLOAD_ENGINE_AUTO = 0,   /* libaio, else the kernel's own calls, else threads; each refusal is logged */
    DS_OFFLOAD_ENGINE_LIBAIO = 1, /* DS_OFFLOAD_USE_LIBAIO 1 */
    DS_OFFLOAD_ENGINE_KERNEL = 2, /* io_submit and its like as system calls */
    DS_OFFLOAD_ENGINE_THREADS = 3 /* plain reads and writes on a pool */
} ds_offload_engine;

/* The calls of asynchronous I/O, for tests and other engines. NULL members: the engine's own. Each returns -errno on
   failure. Requests are plain reads and writes. */
typedef struct ds_offload_request {
    int fd;
    bool write;
    void *buffer;
    size_t bytes;
    int64_t offset;
    void *user;     /* given back with the event */
    int64_t result; /* of the event: bytes or -errno */
} ds_offload_request;
typedef struct ds_offload_aio {
    void *ctx;
    int (*setup)(void *ctx, unsigned depth, void **queue);
    void (*teardown)(void *ctx, void *queue);
    int (*submit)(void *ctx, void *queue, ds_offload_request **requests, int count); /* number taken, may be fewer */
    int (*events)(void *ctx, void *queue, int at_least, int at_most, ds_offload_request **done, int64_t timeout);
} ds_offload_aio;

typedef struct ds_offload_desc {
    const char *folder; /* where the swap file goes; NULL: no disk tier [cfg: ...offload_*.nvme_path] */
    const char *name;   /* file name to keep in `folder`; NULL: anonymous, gone with the process however it ends */
    int rank;           /* in messages, and in the file's name */
    bool pin_memory;    /* lock host tensors in memory, or take the device's pinned [cfg: ...offload_*.pin_memory] */
    size_t max_in_cpu;  /* bytes of memory for tensors of DS_OFFLOAD_SPILL, in whole blocks, taken at create
                           [cfg: zero_optimization.offload_param.max_in_cpu] */
    ds_offload_engine engine;
    size_t block_size;     /* bytes of one request; 0: 1 MiB [cfg: aio.block_size] */
    unsigned queue_depth;  /* requests in flight per thread; 0: 8 [cfg: aio.queue_depth] */
    unsigned thread_count; /* threads that share one transfer; 0: 1 [cfg: aio.thread_count] */
    bool single_submit;    /* hand requests to the kernel one by one [cfg: aio.single_submit] */
    bool no_overlap;       /* wait for a batch before submitting the next [cfg: aio.overlap_events false] */
    bool buffered;         /* do not ask for O_DIRECT */
    bool checksums;        /* CRC-32C of every block, checked when it is read; always with DS_DEBUG 1 */
    int64_t timeout;       /* ns that a wait may last; 0: 60 s; negative: for ever */
    int64_t probe;         /* ns that create measures the disk's bandwidth for, half writing, half reading; 0: not */
    size_t tensors; /* tables for so many tensors, which take so many bytes of the file, are taken at create; what is */
    size_t file_bytes;  /* added beyond that makes them grow. A tensor's bytes count in whole 4,096, one of */
                        /* DS_OFFLOAD_SPILL from a block's start in whole blocks */
    ds_offload_aio aio; /* all members or none */
    ds_device device;   /* its pinned_alloc and pinned_release are used when pin_memory is set; else mlock */
    ds_allocator allocator;
    ds_logger logger;
    ds_clock clock;
    ds_files files;
} ds_offload_desc;

/* Opens a store. With a folder: that it exists, may be written, and what kind of I/O it takes is tried first.
   Errors: DS_ERR_IO, DS_ERR_SPACE with path and reason. Not collective. */
DS_API ds_status ds_offload_create_(const ds_offload_desc *desc, size_t desc_bytes, int version, ds_offload **out,
                                    ds_error *error);
static inline ds_status ds_offload_create(const ds_offload_desc *desc, ds_offload **out, ds_error *error) {
    return ds_offload_create_(desc, sizeof *desc, DS_OFFLOAD_VERSION, out, error);
}
/* Bytes that create takes from the allocator and keeps: tables, bounce buffers, memory of max_in_cpu. A tensor takes its
   name besides (with a zero byte at the end), one of DS_OFFLOAD_HOST its bytes, one beyond desc.tensors and desc.file_bytes
   more room in tables. */
DS_API size_t ds_offload_memory(const ds_offload_desc *desc);
DS_API void ds_offload_destroy(ds_offload *store); /* waits for what is in flight; NULL is allowed */
DS_API const ds_error *ds_offload_error(const ds_offload *store);

/* Adds a tensor of `bytes` bytes that reads as zeros until it is written; space is reserved now, so that a full disk is
   an error here (DS_ERR_SPACE). `name` is copied. */
typedef uint32_t ds_offload_id;
DS_API ds_status ds_offload_add(ds_offload *store, const char *name, size_t bytes, ds_offload_tier tier,
                                ds_offload_id *id);

/* Moves bytes [offset, offset + bytes) of a tensor; any offset, size and address, aligned ones without a copy. A started
   transfer's buffer must stay until its wait, and after DS_ERR_TIMEOUT until a later wait or, from ds_offload_read and
   ds_offload_write, until ds_offload_destroy. Transfers of overlapping ranges take effect in the order of their starts.
   Tickets are never 0, may be waited for once, in any order; a failed transfer says file, offset and tensor. */
typedef uint64_t ds_offload_ticket;
DS_API ds_status ds_offload_start_read(ds_offload *store, ds_offload_id id, size_t offset, size_t bytes, void *to,
                                       ds_offload_ticket *ticket);
DS_API ds_status ds_offload_start_write(ds_offload *store, ds_offload_id id, size_t offset, size_t bytes,
                                        const void *from, ds_offload_ticket *ticket);
DS_API ds_status ds_offload_wait(ds_offload *store, ds_offload_ticket ticket);
DS_API ds_status ds_offload_test(ds_offload *store, ds_offload_ticket ticket, bool *done);
DS_API ds_status ds_offload_read(ds_offload *store, ds_offload_id id, size_t offset, size_t bytes, void *to);
DS_API ds_status ds_offload_write(ds_offload *store, ds_offload_id id, size_t offset, size_t bytes, const void *from);

/* Locks memory of the caller's own (page-aligned) so that it is never paged out; DS_ERR_IO when the limit is reached
   (RLIMIT_MEMLOCK): the memory is usable all the same. */
DS_API ds_status ds_offload_pin(void *memory, size_t bytes, ds_error *error);
DS_API void ds_offload_unpin(void *memory, size_t bytes);

/* Asks for huge pages (2 MiB) behind memory of the caller's own, before its first touch; only whole ones, so not a byte more
   is resident. O_DIRECT from and to them is up to twice as fast as with pages of 4,096 bytes, each of which is a piece of
   its own in a request to the disk. Where the system refuses, nothing changes. */
DS_API void ds_offload_huge(void *memory, size_t bytes);

typedef struct ds_offload_stats {
    uint64_t reads, writes;             /* transfers started */
    uint64_t requests;                  /* handed to the kernel */
    uint64_t bytes_read, bytes_written; /* from and to the disk */
    size_t file_bytes;                  /* reserved */
    size_t host_bytes, host_peak;       /* of tensors held in memory, of max_in_cpu, and bounce buffers */
    uint64_t hits, misses, spills;    /* blocks of DS_OFFLOAD_SPILL: found in memory, not found, written out for room */
    uint64_t probe_write, probe_read; /* bytes per second that desc.probe measured */
    bool direct;                      /* O_DIRECT is in force */
    ds_offload_engine engine;
} ds_offload_stats;
DS_API void ds_offload_get_stats(const ds_offload *store, ds_offload_stats *out);
DS_API const char *ds_offload_engine_name(ds_offload_engine engine); /* "libaio", ... */

#ifdef __cplusplus
}
#endif
#endif /* DS_OFFLOAD_H */

#if defined(DS_OFFLOAD_IMPLEMENTATION) && !defined(DS_OFFLOAD_IMPL_DONE)
#define DS_OFFLOAD_IMPL_DONE
#ifndef DS_DEBUG
#define DS_DEBUG 0
#endif
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
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#if DS_OFFLOAD_USE_LIBAIO
#include <dlfcn.h>
#endif

// >>structs

#define DSI_OFFLOAD_UNIT                                                                                               \
    4096 /* of offsets in the file, of checksums, and of O_DIRECT unless the file system wants more */
#define DSI_OFFLOAD_TRANSFERS 1024 /* started and not yet waited for */
#define DSI_OFFLOAD_BOUNCES   2    /* buffers of a worker; a block that needs one waits for it */
#if defined(O_DIRECT)
#define DSI_OFFLOAD_DIRECT O_DIRECT
#elif defined(__O_DIRECT) /* gnu99 without _GNU_SOURCE: glibc's own name; the number differs between machines */
#define DSI_OFFLOAD_DIRECT __O_DIRECT
#else
#define DSI_OFFLOAD_DIRECT 040000
#endif
#ifndef O_TMPFILE
#define DSI_OFFLOAD_TMPFILE (020000000 | O_DIRECTORY)
#else
#define DSI_OFFLOAD_TMPFILE O_TMPFILE
#endif

typedef struct dsi_offload_tensor {
    char *name;
    size_t bytes, offset; /* offset in the file */
    char *memory;         /* DS_OFFLOAD_HOST */
    bool spills;
} dsi_offload_tensor;

/* DS_OFFLOAD_SPILL. Each block of such a tensor is a page, and max_in_cpu is cut into frames that hold pages. The caller's
   thread decides at a transfer's start which page gets which frame, so that what is kept depends on the order of calls
   alone; workers then move the data. A page's frame is not changed while a transfer that touches the page is under way, and
   each transfer runs after the last one that touched its pages, or the pages that its frames held. */
#define DSI_OFFLOAD_NOWHERE SIZE_MAX
typedef struct dsi_offload_page {
    size_t frame;  /* that it has or will have; DSI_OFFLOAD_NOWHERE: it is in the file */
    uint64_t last; /* transfer that touches it */
    bool written;  /* the worker's: it holds something other than zeros */
} dsi_offload_page;
typedef struct dsi_offload_frame {
    char *memory;
    size_t page;   /* that has or will have it */
    uint64_t used; /* last transfer */
    size_t holds;  /* the worker's: the page that is really there */
    bool dirty;    /* the worker's: the file does not have this */
} dsi_offload_frame;

typedef enum dsi_offload_fault {
    DSI_OFFLOAD_FINE = 0,
    DSI_OFFLOAD_ERRNO,
    DSI_OFFLOAD_ENDED, /* a read got nothing */
    DSI_OFFLOAD_SHORT, /* a write put nothing */
    DSI_OFFLOAD_CHANGED,
    DSI_OFFLOAD_STOPPED
} dsi_offload_fault;

typedef struct dsi_offload_transfer {
    bool used, done, write, spills, alone; /* alone: nobody will wait for it */
    uint64_t number;
    ds_offload_id id;
    char *memory;
    size_t begin, end; /* in the file */
    uint64_t after;    /* a transfer that must be done first: it touches the same blocks; 0: none */
    unsigned left;     /* workers that have not passed it */
    dsi_offload_fault fault;
    int code;
    size_t fault_at;
} dsi_offload_transfer;

/* One block of a transfer on its way. A block that the caller's memory does not cover, or that lies askew in it, goes
   through `bounce`; such a write reads the block first when it changes only part of it. */
typedef struct dsi_offload_slot {
    ds_offload_request request;
    size_t at, bytes, done; /* of the block in the file */
    int64_t patience;       /* until when it is sent again when told so; 0: it was not told so yet */
    char *memory, *bounce;
    dsi_offload_frame *frame; /* that the block passes through, or NULL */
    size_t page;
    bool busy, filling; /* filling: the read before a write */
    bool unsent;        /* the kernel would not take the request yet */
} dsi_offload_slot;

typedef struct dsi_offload_worker {
    ds_offload *store;
    pthread_t thread;
    bool started;
    unsigned index;
    void *queue;
    dsi_offload_slot *slots;
    ds_offload_request **batch; /* (2 * depth): to submit, and done */
    char *bounce[DSI_OFFLOAD_BOUNCES];
    bool bouncing[DSI_OFFLOAD_BOUNCES];
    uint64_t passed;         /* transfers */
    unsigned flying, unsent; /* requests in the kernel, and those that it would not take yet */
    int dead;                /* why the queue gives no more events; what is left in it may still move data */
} dsi_offload_worker;

struct ds_offload {
    ds_error error;
    ds_allocator allocator;
    ds_logger logger;
    ds_clock clock;
    ds_files files;
    ds_offload_aio aio;
    ds_offload_engine engine;
    char *path; /* of the file, or of its folder when it is anonymous */
    size_t path_bytes;
    int rank, fd;
    bool named, direct, single_submit, no_overlap, pin, checksums;
    size_t unit, block, file_bytes;
    unsigned depth, n_workers;
    int64_t timeout;
    dsi_offload_tensor *tensors;
    size_t n_tensors, tensor_room;
    uint32_t *sums; /* of each unit of the file; 0: not written yet */
    size_t sum_room;
    dsi_offload_page *pages; /* of each block of the file */
    size_t page_room;
    dsi_offload_frame *frames;
    size_t n_frames;
    char *frame_memory;
    uint64_t last_spill; /* newest transfer of a tensor that spills */
    bool broken;         /* one of them failed: frames may not hold what was decided */
    ds_device device;
    dsi_offload_transfer *transfers; /* (DSI_OFFLOAD_TRANSFERS), by number */
    uint64_t started;                /* numbers from 1 on */
    dsi_offload_worker *workers;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    bool locks, stop;
    ds_offload_stats stats;
};

// >>messages

static const char *dsi_offload_place(const ds_offload *s) {
    return s->path ? s->path : "(no file)";
}

static ds_status dsi_offload_refuse(ds_offload *s, int code, const char *doing) {
    ds_status status = code == -ENOSPC || code == -EDQUOT || code == -EFBIG ? DS_ERR_SPACE
                       : code == -ENOMEM                                    ? DS_ERR_MEMORY
                                                                            : DS_ERR_IO;
    return dsi_fail(&s->error, status, "offload: rank %d cannot %s '%.300s': %s", s->rank, doing, dsi_offload_place(s),
                    strerror(-code));
}

static ds_status dsi_offload_report(ds_offload *s, const dsi_offload_transfer *t) {
    const dsi_offload_tensor *tensor = &s->tensors[t->id];
    bool write = t->write;
    ds_status status = DS_ERR_IO;
    static const char *const reasons[] = {
        "",
        "",
        "the file ends early",
        "the system took no more bytes",
        "the data is not what was written (checksum)",
        "not done, for an earlier transfer through the same memory failed; start it again"};
    const char *why = t->fault == DSI_OFFLOAD_ERRNO ? strerror(t->code) : reasons[t->fault];
    if (t->fault == DSI_OFFLOAD_CHANGED)
        status = DS_ERR_CORRUPT;
    else if (t->fault == DSI_OFFLOAD_ERRNO && t->code == ENOMEM)
        status = DS_ERR_MEMORY;
    else if (t->fault == DSI_OFFLOAD_ERRNO && (t->code == ENOSPC || t->code == EDQUOT || t->code == EFBIG))
        status = DS_ERR_SPACE;
    if (t->spills && (t->fault_at < t->begin / s->block * s->block || t->fault_at >= dsi_round_up(t->end, s->block)))
        for (size_t i = 0; i < s->n_tensors; i++) /* what was written out to make room is another's */
            if (s->tensors[i].spills && t->fault_at >= s->tensors[i].offset &&
                t->fault_at - s->tensors[i].offset < dsi_round_up(s->tensors[i].bytes, s->block))
                tensor = &s->tensors[i], write = true;
    return dsi_fail(&s->error, status, "offload: rank %d: %s of tensor '%.100s', file '%.200s', offset %zu: %s",
                    s->rank, write ? "write" : "read", tensor->name, dsi_offload_place(s), t->fault_at, why);
}

// >>engines

DS_API const char *ds_offload_engine_name(ds_offload_engine engine) {
    static const char *const names[] = {"auto", "libaio", "kernel aio", "threads"};
    return (unsigned)engine < 4 ? names[engine] : "unknown";
}

/* The kernel's own structures, declared here because <linux/aio_abi.h> and <libaio.h> give them the same names. */
typedef struct dsi_offload_iocb {
    uint64_t data;
    uint32_t key, rw_flags;
    uint16_t opcode; /* 0 read, 1 write */
    int16_t priority;
    uint32_t fd;
    uint64_t buffer, bytes;
    int64_t offset;
    uint64_t reserved;
    uint32_t flags, result_fd;
} dsi_offload_iocb;
typedef struct dsi_offload_event {
    uint64_t data, object;
    int64_t result, result2;
} dsi_offload_event;

/* A queue of libaio (opened at run time) or of the system calls that it wraps. */
typedef struct dsi_offload_queue {
    void *context, *library;
    int (*setup)(int depth, void **context);
    int (*destroy)(void *context);
    int (*submit)(void *context, long count, dsi_offload_iocb **list);
    int (*events)(void *context, long at_least, long at_most, dsi_offload_event *events, struct timespec *timeout);
    unsigned depth;
    ds_allocator allocator;
    dsi_offload_event *done;
    dsi_offload_iocb *blocks;
    dsi_offload_iocb **list;
} dsi_offload_queue;

#if defined(__linux__)
static int dsi_offload_sys_setup(int depth, void **context) {
    return syscall(SYS_io_setup, depth, context) < 0 ? -errno : 0;
}
static int dsi_offload_sys_destroy(void *context) {
    return syscall(SYS_io_destroy, context) < 0 ? -errno : 0;
}
static int dsi_offload_sys_submit(void *context, long count, dsi_offload_iocb **list) {
    long n = syscall(SYS_io_submit, context, count, list);
    return n < 0 ? -errno : (int)n;
}
static int dsi_offload_sys_events(void *context, long at_least, long at_most, dsi_offload_event *events,
                                  struct timespec *timeout) {
    long n = syscall(SYS_io_getevents, context, at_least, at_most, events, timeout);
    return n < 0 ? -errno : (int)n;
}
#endif

static size_t dsi_offload_queue_bytes(unsigned depth) {
    return sizeof(dsi_offload_queue) +
           depth * (sizeof(dsi_offload_event) + sizeof(dsi_offload_iocb) + sizeof(dsi_offload_iocb *));
}

static bool dsi_offload_bind(dsi_offload_queue *q, ds_offload_engine engine) {
#if DS_OFFLOAD_USE_LIBAIO
    if (engine == DS_OFFLOAD_ENGINE_LIBAIO) {
        void *symbol;
        q->library = dlopen("libaio.so.1", RTLD_NOW | RTLD_LOCAL);
        if (!q->library) q->library = dlopen("libaio.so", RTLD_NOW | RTLD_LOCAL);
        if (!q->library) return false;
#define DSI_OFFLOAD_BIND(field, name)                                                                                  \
    symbol = dlsym(q->library, name);                                                                                  \
    if (!symbol) return dlclose(q->library), false;                                                                    \
    memcpy(&q->field, &symbol, sizeof symbol);
        DSI_OFFLOAD_BIND(setup, "io_setup")
        DSI_OFFLOAD_BIND(destroy, "io_destroy")
        DSI_OFFLOAD_BIND(submit, "io_submit")
        DSI_OFFLOAD_BIND(events, "io_getevents")
#undef DSI_OFFLOAD_BIND
        return true;
    }
#endif
#if defined(__linux__)
    if (engine == DS_OFFLOAD_ENGINE_KERNEL) {
        q->setup = dsi_offload_sys_setup;
        q->destroy = dsi_offload_sys_destroy;
        q->submit = dsi_offload_sys_submit;
        q->events = dsi_offload_sys_events;
        return true;
    }
#endif
    return false;
}

static int dsi_offload_queue_setup(void *ctx, unsigned depth, void **queue) {
    const ds_offload *s = (const ds_offload *)ctx;
    dsi_offload_queue *q = (dsi_offload_queue *)dsi_alloc_zero(&s->allocator, dsi_offload_queue_bytes(depth));
    int code = -ENOSYS;
    if (!q) return -ENOMEM;
    q->allocator = s->allocator;
    q->depth = depth;
    q->done = (dsi_offload_event *)(void *)(q + 1);
    q->blocks = (dsi_offload_iocb *)(void *)(q->done + depth);
    q->list = (dsi_offload_iocb **)(void *)(q->blocks + depth);
    if (dsi_offload_bind(q, s->engine)) {
        code = q->setup((int)depth, &q->context);
        if (code == 0) {
            *queue = q;
            return 0;
        }
#if DS_OFFLOAD_USE_LIBAIO
        if (q->library) dlclose(q->library);
#endif
    }
    dsi_release(&s->allocator, q, dsi_offload_queue_bytes(depth));
    return code;
}
static void dsi_offload_queue_teardown(void *ctx, void *queue) {
    dsi_offload_queue *q = (dsi_offload_queue *)queue;
    ds_allocator allocator = q->allocator;
    (void)ctx;
    (void)q->destroy(q->context);
#if DS_OFFLOAD_USE_LIBAIO
    if (q->library) dlclose(q->library);
#endif
    dsi_release(&allocator, q, dsi_offload_queue_bytes(q->depth));
}
static int dsi_offload_queue_submit(void *ctx, void *queue, ds_offload_request **requests, int count) {
    dsi_offload_queue *q = (dsi_offload_queue *)queue;
    (void)ctx;
    for (int i = 0; i < count; i++) {
        dsi_offload_iocb *b = &q->blocks[i];
        memset(b, 0, sizeof *b);
        b->data = (uint64_t)(uintptr_t)requests[i];
        b->opcode = requests[i]->write;
        b->fd = (uint32_t)requests[i]->fd;
        b->buffer = (uint64_t)(uintptr_t)requests[i]->buffer;
        b->bytes = requests[i]->bytes;
        b->offset = requests[i]->offset;
        q->list[i] = b;
    }
    return q->submit(q->context, count, q->list);
}
static int dsi_offload_queue_events(void *ctx, void *queue, int at_least, int at_most, ds_offload_request **done,
                                    int64_t timeout) {
    dsi_offload_queue *q = (dsi_offload_queue *)queue;
    struct timespec t;
    int n;
    (void)ctx;
    t.tv_sec = (time_t)(timeout / 1000000000);
    t.tv_nsec = (long)(timeout % 1000000000);
    n = q->events(q->context, at_least, at_most, q->done, &t);
    for (int i = 0; i < n; i++) {
        done[i] = (ds_offload_request *)(uintptr_t)q->done[i].data;
        done[i]->result = q->done[i].result;
    }
    return n;
}

/* Plain reads and writes on the worker's own thread: submit does them, events hands them back. As much memory as a queue
   of the kernel's, so that what a store takes does not depend on which one works. */
typedef struct dsi_offload_plain {
    ds_offload_request **done;
    int count, depth;
} dsi_offload_plain;
static int dsi_offload_plain_setup(void *ctx, unsigned depth, void **queue) {
    const ds_offload *s = (const ds_offload *)ctx;
    dsi_offload_plain *q = (dsi_offload_plain *)dsi_alloc_zero(&s->allocator, dsi_offload_queue_bytes(depth));
    if (!q) return -ENOMEM;
    q->done = (ds_offload_request **)(void *)(q + 1);
    q->depth = (int)depth;
    *queue = q;
    return 0;
}
static void dsi_offload_plain_teardown(void *ctx, void *queue) {
    const ds_offload *s = (const ds_offload *)ctx;
    dsi_offload_plain *q = (dsi_offload_plain *)queue;
    dsi_release(&s->allocator, q, dsi_offload_queue_bytes((unsigned)q->depth));
}
static int dsi_offload_plain_submit(void *ctx, void *queue, ds_offload_request **requests, int count) {
    const ds_offload *s = (const ds_offload *)ctx;
    dsi_offload_plain *q = (dsi_offload_plain *)queue;
    for (int i = 0; i < count; i++) {
        ds_offload_request *r = requests[i];
        r->result = r->write ? s->files.write(s->files.ctx, r->fd, r->buffer, r->bytes, r->offset)
                             : s->files.read(s->files.ctx, r->fd, r->buffer, r->bytes, r->offset);
        q->done[q->count++] = r;
    }
    return count;
}
static int dsi_offload_plain_events(void *ctx, void *queue, int at_least, int at_most, ds_offload_request **done,
                                    int64_t timeout) {
    dsi_offload_plain *q = (dsi_offload_plain *)queue;
    int n = q->count < at_most ? q->count : at_most;
    (void)ctx;
    (void)at_least;
    (void)timeout;
    memcpy(done, q->done, (size_t)n * sizeof *done);
    q->count -= n;
    memmove(q->done, q->done + n, (size_t)q->count * sizeof *done);
    return n;
}

static void dsi_offload_take_engine(ds_offload *s, ds_offload_engine engine) {
    bool plain = engine == DS_OFFLOAD_ENGINE_THREADS;
    s->engine = engine;
    s->aio.ctx = s;
    s->aio.setup = plain ? dsi_offload_plain_setup : dsi_offload_queue_setup;
    s->aio.teardown = plain ? dsi_offload_plain_teardown : dsi_offload_queue_teardown;
    s->aio.submit = plain ? dsi_offload_plain_submit : dsi_offload_queue_submit;
    s->aio.events = plain ? dsi_offload_plain_events : dsi_offload_queue_events;
}

// >>checksums

static void dsi_offload_sum(ds_offload *s, const char *memory, size_t at, size_t bytes) {
    for (size_t k = 0; k < bytes; k += DSI_OFFLOAD_UNIT) {
        uint32_t crc = dsi_crc32c(0, memory + k, DSI_OFFLOAD_UNIT);
        s->sums[(at + k) / DSI_OFFLOAD_UNIT] = crc ? crc : 1;
    }
}

/* What is being written is not known until that has succeeded: after a failure it may be the old or the new. */
static void dsi_offload_forget(ds_offload *s, size_t at, size_t bytes) {
    memset(s->sums + at / DSI_OFFLOAD_UNIT, 0, bytes / DSI_OFFLOAD_UNIT * sizeof *s->sums);
}

/* The offset of the first unit that changed, or SIZE_MAX. A unit never written reads as zeros and is not checked. */
static size_t dsi_offload_changed(const ds_offload *s, const char *memory, size_t at, size_t bytes) {
    for (size_t k = 0; k < bytes; k += DSI_OFFLOAD_UNIT) {
        uint32_t known = s->sums[(at + k) / DSI_OFFLOAD_UNIT], crc;
        if (!known) continue;
        crc = dsi_crc32c(0, memory + k, DSI_OFFLOAD_UNIT);
        if ((crc ? crc : 1) != known) return at + k;
    }
    return SIZE_MAX;
}

// >>worker

/* A transfer is cut into blocks, and the blocks of one transfer are dealt to the workers in runs. Each worker keeps up to
   `depth` requests in the air, looks at every event's result, resumes what came back short, and goes to the next transfer
   when its run is through. A transfer is done when every worker has passed it. */

static bool dsi_offload_faulty(const dsi_offload_transfer *t) {
    return __atomic_load_n(&t->fault, __ATOMIC_RELAXED) != DSI_OFFLOAD_FINE;
}

static void dsi_offload_set_fault(dsi_offload_worker *w, dsi_offload_transfer *t, dsi_offload_fault fault, int code,
                                  size_t at) {
    pthread_mutex_lock(&w->store->lock);
    if (!t->fault) {
        t->code = code;
        t->fault_at = at;
        __atomic_store_n(&t->fault, fault, __ATOMIC_RELAXED);
    }
    w->store->broken |= t->spills;
    pthread_mutex_unlock(&w->store->lock);
}

static void dsi_offload_aim(dsi_offload_slot *slot, bool write) {
    slot->request.write = write;
    slot->request.buffer = slot->memory + slot->done;
    slot->request.bytes = slot->bytes - slot->done;
    slot->request.offset = (int64_t)(slot->at + slot->done);
}

/* Makes a slot ready for the block [at, at + bytes). False when all bounce buffers are in use. */
static bool dsi_offload_prepare(dsi_offload_worker *w, dsi_offload_slot *slot, const dsi_offload_transfer *t, size_t at,
                                size_t bytes) {
    ds_offload *s = w->store;
    bool covered = at >= t->begin && at + bytes <= t->end;
    char *direct = covered ? t->memory + (at - t->begin) : NULL;
    slot->bounce = NULL;
    slot->memory = direct;
    if (!direct || (s->direct && (uintptr_t)direct % s->unit != 0)) {
        int i = 0;
        while (i < DSI_OFFLOAD_BOUNCES && w->bouncing[i]) i++;
        if (i == DSI_OFFLOAD_BOUNCES) return false;
        w->bouncing[i] = true;
        slot->memory = slot->bounce = w->bounce[i];
        if (t->write && covered) memcpy(slot->bounce, direct, bytes);
    }
    slot->at = at;
    slot->bytes = bytes;
    slot->done = 0;
    slot->patience = 0;
    slot->frame = NULL;
    slot->filling = t->write && !covered;
    if (t->write && !slot->filling && s->sums) dsi_offload_forget(s, at, bytes);
    dsi_offload_aim(slot, t->write && !slot->filling);
    return slot->busy = true;
}

static void dsi_offload_free(dsi_offload_worker *w, dsi_offload_slot *slot) {
    for (int i = 0; i < DSI_OFFLOAD_BOUNCES && slot->bounce; i++)
        if (w->bounce[i] == slot->bounce) w->bouncing[i] = false;
    slot->bounce = NULL;
    slot->busy = slot->unsent = false;
}

/* The part of the caller's memory that a block holds. */
static void dsi_offload_overlap(const dsi_offload_slot *slot, const dsi_offload_transfer *t, size_t *from,
                                size_t *bytes) {
    size_t a = slot->at > t->begin ? slot->at : t->begin,
           b = slot->at + slot->bytes < t->end ? slot->at + slot->bytes : t->end;
    *from = a;
    *bytes = b - a;
}

/* Aims a slot at a page's place in the file, from or to its frame. */
static bool dsi_offload_page_io(dsi_offload_worker *w, dsi_offload_slot *slot, size_t page, bool write) {
    ds_offload *s = w->store;
    slot->at = page * s->block;
    slot->bytes = s->block;
    slot->done = 0;
    slot->patience = 0;
    slot->memory = slot->frame->memory;
    if (write && s->sums) dsi_offload_forget(s, slot->at, slot->bytes);
    dsi_offload_aim(slot, write);
    return slot->busy = true;
}

/* Goes on with a block that passes through a frame: what the frame holds of another page is written out, what a write does
   not replace is read, and the data is copied. True: there is a request to submit. */
static bool dsi_offload_page_go(dsi_offload_worker *w, dsi_offload_slot *slot, const dsi_offload_transfer *t) {
    ds_offload *s = w->store;
    dsi_offload_frame *f = slot->frame;
    size_t at = slot->page * s->block, from, bytes;
    char *caller;
    if (f->holds != slot->page) {
        bool whole = t->write && t->begin <= at && t->end >= at + s->block;
        if (f->holds != DSI_OFFLOAD_NOWHERE && f->dirty) return dsi_offload_page_io(w, slot, f->holds, true);
        f->holds = DSI_OFFLOAD_NOWHERE;
        if (!whole && s->pages[slot->page].written) return dsi_offload_page_io(w, slot, slot->page, false);
        if (!whole) memset(f->memory, 0, s->block);
        f->holds = slot->page;
    }
    slot->at = at;
    slot->bytes = s->block;
    dsi_offload_overlap(slot, t, &from, &bytes);
    caller = t->memory + (from - t->begin);
    if (t->write) {
        memcpy(f->memory + (from - at), caller, bytes);
        f->dirty = s->pages[slot->page].written = true;
    } else
        memcpy(caller, f->memory + (from - at), bytes);
    return slot->busy = false;
}

/* Bytes of a tensor that spills are counted where they move; a transfer of another is counted when it starts. */
static void dsi_offload_count(dsi_offload_worker *w, const dsi_offload_slot *slot) {
    ds_offload *s = w->store;
    bool write = slot->request.write;
    pthread_mutex_lock(&s->lock);
    s->stats.spills += write && slot->frame;
    *(write ? &s->stats.bytes_written : &s->stats.bytes_read) += slot->bytes;
    pthread_mutex_unlock(&s->lock);
}

/* A page moved between its frame and the file. */
static bool dsi_offload_page_moved(dsi_offload_worker *w, dsi_offload_slot *slot, const dsi_offload_transfer *t) {
    bool spilled = slot->request.write;
    slot->frame->dirty = false;
    if (!spilled) slot->frame->holds = slot->page;
    return dsi_offload_page_go(w, slot, t);
}

/* Whether a request that was told to come again is sent again: as long as a wait may last, but not for ever, so that a
   store can be given back. */
static bool dsi_offload_again(dsi_offload_worker *w, dsi_offload_slot *slot) {
    ds_offload *s = w->store;
    if (slot->request.result != -EINTR && slot->request.result != -EAGAIN) return false;
    if (!slot->patience)
        slot->patience = dsi_deadline(&s->clock, s->timeout);
    else if (dsi_now(&s->clock) > slot->patience)
        return false;
    else
        dsi_sleep(&s->clock, 100000);
    return true;
}

/* Takes an event. True: the slot has more to do and is to be submitted again. */
static bool dsi_offload_settle(dsi_offload_worker *w, dsi_offload_slot *slot, dsi_offload_transfer *t) {
    ds_offload *s = w->store;
    int64_t n = slot->request.result;
    size_t from, bytes, changed;
    if (dsi_offload_again(w, slot)) return true;
    if (s->direct && n > 0 && n < (int64_t)s->unit && !slot->patience) /* too short to go on from: once more */
        return slot->patience = dsi_deadline(&s->clock, s->timeout), true;
    if (n < 0) return dsi_offload_set_fault(w, t, DSI_OFFLOAD_ERRNO, (int)-n, slot->at + slot->done), false;
    if ((size_t)n < slot->request.bytes && s->direct) n -= n % (int64_t)s->unit; /* go on from where O_DIRECT can */
    if (n == 0)
        return dsi_offload_set_fault(w, t, slot->request.write ? DSI_OFFLOAD_SHORT : DSI_OFFLOAD_ENDED, 0,
                                     slot->at + slot->done),
               false;
    slot->done += (size_t)n;
    if (slot->done < slot->bytes) return dsi_offload_aim(slot, slot->request.write), true;
    if (t->spills) dsi_offload_count(w, slot);
    if (slot->request.write) {
        if (s->sums) dsi_offload_sum(s, slot->memory, slot->at, slot->bytes);
        return slot->frame ? dsi_offload_page_moved(w, slot, t) : false;
    }
    if (s->sums && (changed = dsi_offload_changed(s, slot->memory, slot->at, slot->bytes)) != SIZE_MAX)
        return dsi_offload_set_fault(w, t, DSI_OFFLOAD_CHANGED, 0, changed), false;
    if (slot->frame) return dsi_offload_page_moved(w, slot, t);
    dsi_offload_overlap(slot, t, &from, &bytes);
    if (slot->filling) { /* the block is here: change its part and write it */
        memcpy(slot->bounce + (from - slot->at), t->memory + (from - t->begin), bytes);
        if (s->sums) dsi_offload_forget(s, slot->at, slot->bytes);
        slot->filling = false;
        slot->done = 0;
        dsi_offload_aim(slot, true);
        return true;
    }
    if (slot->bounce) memcpy(t->memory + (from - t->begin), slot->bounce + (from - slot->at), bytes);
    return false;
}

/* Hands requests to the kernel; what it does not take now (EAGAIN, or fewer than asked) is offered again. */
static bool dsi_offload_submit(dsi_offload_worker *w, dsi_offload_transfer *t, int count) {
    ds_offload *s = w->store;
    int sent = 0;
    int64_t deadline = dsi_deadline(&s->clock, s->timeout);
    while (sent < count) {
        int n = s->aio.submit(s->aio.ctx, w->queue, w->batch + sent, s->single_submit ? 1 : count - sent);
        if (n > 0) {
            sent += n;
            w->flying += (unsigned)n;
            continue;
        }
        if ((n == 0 || n == -EAGAIN || n == -EINTR) && dsi_now(&s->clock) < deadline) {
            if (w->flying) break; /* room comes with the next event */
            dsi_sleep(&s->clock, 100000);
            continue;
        }
        dsi_offload_set_fault(w, t, DSI_OFFLOAD_ERRNO, n ? -n : EAGAIN, ((dsi_offload_slot *)w->batch[sent]->user)->at);
        for (int i = sent; i < count; i++) dsi_offload_free(w, (dsi_offload_slot *)w->batch[i]->user);
        return false;
    }
    for (int i = sent; i < count; i++) ((dsi_offload_slot *)w->batch[i]->user)->unsent = true;
    w->unsent += (unsigned)(count - sent);
    pthread_mutex_lock(&s->lock);
    s->stats.requests += (uint64_t)sent;
    pthread_mutex_unlock(&s->lock);
    return true;
}

/* Gives blocks from `*at` on to a slot until one needs a request. False: no more can be given now. */
static bool dsi_offload_deal(dsi_offload_worker *w, dsi_offload_slot *slot, const dsi_offload_transfer *t, size_t *at,
                             size_t stop) {
    ds_offload *s = w->store;
    while (*at < stop) {
        size_t bytes = stop - *at < s->block ? stop - *at : s->block;
        dsi_offload_page *page = t->spills ? &s->pages[*at / s->block] : NULL;
        if (page && page->frame != DSI_OFFLOAD_NOWHERE) {
            slot->frame = &s->frames[page->frame];
            slot->page = *at / s->block;
            (void)dsi_offload_page_go(w, slot, t);
        } else if (!dsi_offload_prepare(w, slot, t, *at, bytes))
            return false;
        else if (page && t->write)
            page->written = true;
        *at += bytes;
        if (slot->busy) return true;
    }
    return false;
}

/* Which blocks of a transfer are this worker's: [*at, *stop). */
static void dsi_offload_share(const dsi_offload_worker *w, const dsi_offload_transfer *t, size_t *at, size_t *stop) {
    const ds_offload *s = w->store;
    size_t unit = t->spills ? s->block : s->unit;
    size_t first = t->begin / unit * unit, end = dsi_round_up(t->end, unit);
    size_t blocks = (end - first) / s->block + ((end - first) % s->block != 0);
    size_t each = blocks / s->n_workers, extra = blocks % s->n_workers;
    *at = first + (each * w->index + (w->index < extra ? w->index : extra)) * s->block;
    *stop = *at + (each + (w->index < extra)) * s->block;
    if (*stop > end) *stop = end;
}

/* This worker's run of a transfer. */
static void dsi_offload_run(dsi_offload_worker *w, dsi_offload_transfer *t) {
    ds_offload *s = w->store;
    size_t at, stop;
    dsi_offload_share(w, t, &at, &stop);
    if (w->dead) dsi_offload_set_fault(w, t, DSI_OFFLOAD_ERRNO, w->dead, t->begin);
    while (((at < stop || w->unsent) && !dsi_offload_faulty(t)) || w->flying) {
        int count = 0, n;
        bool more = !dsi_offload_faulty(t) && !(s->no_overlap && w->flying);
        w->unsent = 0;
        for (unsigned i = 0; i < s->depth; i++) { /* again what was not taken, then new blocks into free slots */
            dsi_offload_slot *slot = &w->slots[i];
            if (slot->busy ? slot->unsent : more && (more = dsi_offload_deal(w, slot, t, &at, stop)))
                w->batch[count++] = &slot->request;
        }
        for (int i = 0; i < count; i++) ((dsi_offload_slot *)w->batch[i]->user)->unsent = false;
        if (count) (void)dsi_offload_submit(w, t, count);
        if (!w->flying) continue;
        n = s->aio.events(s->aio.ctx, w->queue, s->no_overlap ? (int)w->flying : 1, (int)w->flying, w->batch + s->depth,
                          1000000000);
        if (n < 0 && n != -EINTR && n != -EAGAIN) { /* the queue itself is broken: nothing more will come of it */
            dsi_offload_set_fault(w, t, DSI_OFFLOAD_ERRNO, w->dead = -n, at < stop ? at : t->begin);
            w->flying = 0;
            break;
        }
        count = 0;
        for (int i = 0; i < n; i++) {
            dsi_offload_slot *slot = (dsi_offload_slot *)w->batch[s->depth + (unsigned)i]->user;
            w->flying--;
            if (dsi_offload_settle(w, slot, t))
                w->batch[count++] = &slot->request;
            else
                dsi_offload_free(w, slot);
        }
        if (count) (void)dsi_offload_submit(w, t, count);
    }
    w->unsent = 0;
    for (unsigned i = 0; i < s->depth; i++) dsi_offload_free(w, &w->slots[i]);
}

static dsi_offload_transfer *dsi_offload_number(ds_offload *s, uint64_t number) {
    return &s->transfers[number % DSI_OFFLOAD_TRANSFERS];
}

/* Under the lock. A slot of the table that has another number now was waited for, so that transfer is over. */
static bool dsi_offload_over(ds_offload *s, uint64_t number) {
    const dsi_offload_transfer *t = dsi_offload_number(s, number);
    return number == 0 || t->number != number || t->done;
}

static void *dsi_offload_main(void *arg) {
    dsi_offload_worker *w = (dsi_offload_worker *)arg;
    ds_offload *s = w->store;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        dsi_offload_transfer *t;
        if (w->passed == s->started) {
            if (s->stop) break;
            pthread_cond_wait(&s->wake, &s->lock);
            continue;
        }
        t = dsi_offload_number(s, w->passed + 1);
        if (t->number != w->passed + 1) { /* left out: its place in the table is taken by one not waited for yet */
            w->passed++;
            continue;
        }
        if (!dsi_offload_over(s, t->after)) { /* older, so every worker will come through it */
            pthread_cond_wait(&s->wake, &s->lock);
            continue;
        }
        if (t->spills && s->broken && !t->fault) {
            t->fault_at = t->begin;
            __atomic_store_n(&t->fault, DSI_OFFLOAD_STOPPED, __ATOMIC_RELAXED);
        }
        pthread_mutex_unlock(&s->lock);
        if (t->begin < t->end) dsi_offload_run(w, t);
        pthread_mutex_lock(&s->lock);
        w->passed++;
        if (--t->left == 0) {
            t->done = true;
            t->used = !t->alone;
            pthread_cond_broadcast(&s->wake);
            pthread_cond_broadcast(&s->done);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

// >>host memory

/* Zeroed; the device's pinned memory or locked when the store pins. NULL, and the message, when there is none. */
static char *dsi_offload_take_host(ds_offload *s, size_t bytes, const char *what) {
    void *memory = NULL;
    bool device = s->pin && s->device.pinned_alloc;
    if (bytes == 0) bytes = DSI_OFFLOAD_UNIT;
    if (!device)
        memory = dsi_alloc_aligned(&s->allocator, bytes, DSI_OFFLOAD_UNIT);
    else if (s->device.pinned_alloc(s->device.ctx, bytes, &memory))
        memory = NULL;
    if (!memory) {
        dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no %smemory for %.200s, %zu bytes", device ? "pinned " : "", what,
                 bytes);
        return NULL;
    }
    if (!device && !s->allocator.alloc) ds_offload_huge(memory, bytes);
    memset(memory, 0, bytes);
    if (s->pin && !device && ds_offload_pin(memory, bytes, NULL))
        dsi_log(&s->logger, "ds_offload", DS_LOG_WARNING, 4,
                "%s: not pinned, for the limit on locked memory is reached (ulimit -l)", what);
    s->stats.host_peak = s->stats.host_bytes += bytes; /* nothing is given back before the end */
    return (char *)memory;
}

static void dsi_offload_give_host(ds_offload *s, char *memory, size_t bytes) {
    if (!memory) return;
    if (bytes == 0) bytes = DSI_OFFLOAD_UNIT;
    if (s->pin && s->device.pinned_alloc) {
        if (s->device.pinned_release) s->device.pinned_release(s->device.ctx, memory, bytes);
        return;
    }
    if (s->pin) ds_offload_unpin(memory, bytes);
    dsi_release_aligned(&s->allocator, memory, bytes, DSI_OFFLOAD_UNIT);
}

static ds_status dsi_offload_make_frames(ds_offload *s) {
    if (s->n_frames == 0) return DS_OK;
    s->frames = (dsi_offload_frame *)dsi_alloc_zero(&s->allocator, s->n_frames * sizeof *s->frames);
    if (!s->frames) return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for a table of %zu", s->n_frames);
    s->frame_memory = dsi_offload_take_host(s, s->n_frames * s->block, "max_in_cpu");
    if (!s->frame_memory) return s->error.status;
    for (size_t i = 0; i < s->n_frames; i++) {
        s->frames[i].memory = s->frame_memory + i * s->block;
        s->frames[i].page = s->frames[i].holds = DSI_OFFLOAD_NOWHERE;
    }
    return DS_OK;
}

// >>tables

/* Room for `needed` entries in an array: at first for just these; false leaves it as it was. */
static bool dsi_offload_grow(ds_offload *s, void **array, size_t *room, size_t needed, size_t each) {
    size_t more = *room ? *room : needed;
    void *bigger;
    if (needed <= *room) return true;
    while (more < needed) more *= 2;
    bigger = dsi_alloc_zero(&s->allocator, dsi_mul(more, each));
    if (!bigger) return false;
    if (*room) memcpy(bigger, *array, *room * each);
    dsi_release(&s->allocator, *array, *room * each);
    *array = bigger;
    *room = more;
    return true;
}

static bool dsi_offload_grow_tensors(ds_offload *s, size_t count) {
    void *tensors = s->tensors;
    bool grown = dsi_offload_grow(s, &tensors, &s->tensor_room, count, sizeof *s->tensors);
    s->tensors = (dsi_offload_tensor *)tensors;
    return grown;
}

/* Checksums of a file of so many bytes. */
static bool dsi_offload_grow_sums(ds_offload *s, size_t bytes) {
    void *sums = s->sums;
    bool grown =
        !s->checksums || dsi_offload_grow(s, &sums, &s->sum_room,
                                          dsi_round_up(bytes, DSI_OFFLOAD_UNIT) / DSI_OFFLOAD_UNIT, sizeof *s->sums);
    s->sums = (uint32_t *)sums;
    return grown;
}

static bool dsi_offload_grow_pages(ds_offload *s, size_t count) {
    size_t room = s->page_room;
    void *pages = s->pages;
    bool grown = dsi_offload_grow(s, &pages, &s->page_room, count, sizeof *s->pages);
    s->pages = (dsi_offload_page *)pages;
    for (; room < s->page_room; room++) s->pages[room].frame = DSI_OFFLOAD_NOWHERE;
    return grown;
}

static size_t dsi_offload_pages(const ds_offload_desc *d, size_t block, size_t frames) {
    return frames ? dsi_round_up(d->file_bytes, block) / block : 0;
}

/* Bytes that the probe moves at once. */
static size_t dsi_offload_probe_bytes(size_t block, unsigned depth, unsigned workers) {
    size_t bytes = dsi_mul((size_t)depth * workers, block), most = (size_t)64 << 20;
    return bytes < most ? bytes : most > block ? most : block;
}

/* Tables are for the tensor of the probe too. */
static void dsi_offload_tables(const ds_offload_desc *d, size_t block, unsigned depth, unsigned workers,
                               size_t *tensors, size_t *file_bytes) {
    size_t probe = d->probe > 0 ? dsi_offload_probe_bytes(block, depth, workers) : 0;
    *tensors = d->tensors ? d->tensors : d->probe > 0;
    *file_bytes = d->file_bytes > probe ? d->file_bytes : probe;
}

static ds_status dsi_offload_make_tables(ds_offload *s, const ds_offload_desc *d) {
    size_t tensors, file_bytes;
    dsi_offload_tables(d, s->block, s->depth, s->n_workers, &tensors, &file_bytes);
    if (!dsi_offload_grow_tensors(s, tensors) || !dsi_offload_grow_sums(s, file_bytes) ||
        !dsi_offload_grow_pages(s, dsi_offload_pages(d, s->block, s->n_frames)))
        return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for tables of %zu tensors in %zu bytes",
                        d->tensors, d->file_bytes);
    return DS_OK;
}

// >>create

/* Signals are for the program's own threads. */
static int dsi_offload_thread(dsi_offload_worker *w) {
    sigset_t all, before;
    int code;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(&w->thread, NULL, dsi_offload_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

static size_t dsi_offload_path_room(const ds_offload_desc *d) {
    return strlen(d->folder) + (d->name ? strlen(d->name) : 0) + 80;
}

static int dsi_offload_open(ds_offload *s, const ds_offload_desc *d, int direct) {
    int flags = O_RDWR | O_CLOEXEC | direct, fd;
    char *path = s->path;
    size_t folder = strlen(d->folder);
    if (d->name) return s->files.open(s->files.ctx, path, flags | O_CREAT, 0600);
    fd = s->files.open(s->files.ctx, d->folder, flags | DSI_OFFLOAD_TMPFILE, 0600);
    if (fd >= 0 || (fd != -EOPNOTSUPP && fd != -EISDIR && fd != -ENOENT && fd != -EINVAL)) return fd;
    for (int n = 0; n < 100; n++) { /* a name for the moment between its making and its removal */
        snprintf(path, s->path_bytes, "%s/.ds_offload.%ld.%d.%d", d->folder, (long)getpid(), s->rank, n);
        fd = s->files.open(s->files.ctx, path, flags | O_CREAT | O_EXCL, 0600);
        if (fd >= 0 || fd == -EINVAL) (void)s->files.unlink(s->files.ctx, path); /* made, and then O_DIRECT refused */
        path[folder] = 0;
        if (fd != -EEXIST) break;
    }
    return fd;
}

/* Whether this file really takes unbuffered reads and writes of one unit: some file systems say yes at open and no later. */
static int dsi_offload_try(ds_offload *s) {
    char *unit = (char *)dsi_alloc_aligned(&s->allocator, s->unit, s->unit);
    int64_t n;
    if (!unit) return -ENOMEM;
    memset(unit, 0, s->unit);
    n = s->files.write(s->files.ctx, s->fd, unit, s->unit, 0);
    if (n == (int64_t)s->unit) n = s->files.read(s->files.ctx, s->fd, unit, s->unit, 0);
    dsi_release_aligned(&s->allocator, unit, s->unit, s->unit);
    return n == (int64_t)s->unit ? 0 : n < 0 ? (int)n : -EIO;
}

/* A named file is this store's alone: a second one on the same path would write over its data. What an earlier process
   left in it is dropped. */
static int dsi_offload_own(ds_offload *s, const ds_offload_desc *d) {
    if (s->fd < 0 || !d->name) return s->fd;
    if (s->files.open == dsi_sys_open && flock(s->fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) return -EBUSY;
    return s->files.truncate(s->files.ctx, s->fd, 0);
}

static ds_status dsi_offload_open_file(ds_offload *s, const ds_offload_desc *d) {
    int there = s->files.exists(s->files.ctx, d->folder), code;
    size_t room = dsi_offload_path_room(d);
    s->path = (char *)dsi_alloc(&s->allocator, room);
    if (!s->path) return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for a path");
    s->path_bytes = room;
    snprintf(s->path, room, "%s", d->folder);
    if (there == 0) return dsi_offload_refuse(s, -ENOENT, "swap in folder");
    if (there < 0) return dsi_offload_refuse(s, there, "swap in folder");
    if (d->name) {
        snprintf(s->path, room, "%s/%s.rank%d", d->folder, d->name, d->rank);
        s->named = true;
    }
    s->direct = !d->buffered;
    s->fd = dsi_offload_open(s, d, s->direct ? DSI_OFFLOAD_DIRECT : 0);
    code = dsi_offload_own(s, d);
    if (code >= 0) code = dsi_offload_try(s);
    if (s->direct && (code == -EINVAL || code == -EOPNOTSUPP)) {
        dsi_log(&s->logger, "ds_offload", DS_LOG_INFO, 2,
                "'%s' refuses O_DIRECT (%s); reads and writes go through the page cache", s->path, strerror(-code));
        if (s->fd >= 0) s->files.close(s->files.ctx, s->fd);
        s->direct = false;
        s->fd = dsi_offload_open(s, d, 0);
        code = dsi_offload_own(s, d);
        if (code >= 0) code = dsi_offload_try(s);
    }
    if (code == -EBUSY)
        return dsi_fail(&s->error, DS_ERR_STATE, "offload: rank %d: swap file '%.300s' is in use by another store",
                        s->rank, s->path);
    if (code < 0) return dsi_offload_refuse(s, code, "make a swap file in");
    return DS_OK;
}

static ds_status dsi_offload_start_workers(ds_offload *s) {
    static const ds_offload_engine order[] = {DS_OFFLOAD_ENGINE_LIBAIO, DS_OFFLOAD_ENGINE_KERNEL,
                                              DS_OFFLOAD_ENGINE_THREADS};
    bool given = s->aio.setup != NULL, any = s->engine == DS_OFFLOAD_ENGINE_AUTO;
    ds_offload_engine wanted = s->engine;
    int code = -ENOSYS;
    s->workers = (dsi_offload_worker *)dsi_alloc_zero(&s->allocator, s->n_workers * sizeof *s->workers);
    if (!s->workers) return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for %u workers", s->n_workers);
    for (int e = 0; e < 3; e++) { /* an engine works here when it gives every worker a queue */
        unsigned queues = 0;
        if (given)
            e = 2;
        else if (any)
            dsi_offload_take_engine(s, order[e]);
        else if (order[e] == wanted)
            dsi_offload_take_engine(s, wanted);
        else
            continue;
        while (queues < s->n_workers && (code = s->aio.setup(s->aio.ctx, s->depth, &s->workers[queues].queue)) == 0)
            queues++;
        if (code == 0) break;
        s->workers[queues].queue = NULL;
        while (queues-- > 0) {
            s->aio.teardown(s->aio.ctx, s->workers[queues].queue);
            s->workers[queues].queue = NULL;
        }
        dsi_log(&s->logger, "ds_offload", DS_LOG_INFO, 3, "engine %s refused: %s",
                given ? "(the program's own)" : ds_offload_engine_name(order[e]), strerror(-code));
        if (code == -ENOMEM) break;
    }
    if (code) return dsi_offload_refuse(s, code, "start asynchronous I/O for");
    for (unsigned i = 0; i < s->n_workers; i++) {
        dsi_offload_worker *w = &s->workers[i];
        w->store = s;
        w->index = i;
        w->slots = (dsi_offload_slot *)dsi_alloc_zero(&s->allocator, s->depth * sizeof *w->slots);
        w->batch = (ds_offload_request **)dsi_alloc_zero(&s->allocator, 2 * s->depth * sizeof *w->batch);
        if (!w->slots || !w->batch)
            return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for a queue of %u", s->depth);
        for (int k = 0; k < DSI_OFFLOAD_BOUNCES; k++)
            if (!(w->bounce[k] = dsi_offload_take_host(s, s->block, "bounce buffers"))) return s->error.status;
        for (unsigned k = 0; k < s->depth; k++) {
            w->slots[k].request.fd = s->fd;
            w->slots[k].request.user = &w->slots[k];
        }
        code = dsi_offload_thread(w);
        if (code) return dsi_offload_refuse(s, -code, "start a thread for");
        w->started = true;
    }
    return DS_OK;
}

static ds_status dsi_offload_probe(ds_offload *s, int64_t ns);

static ds_status dsi_offload_build(ds_offload *s, const ds_offload_desc *d) {
    pthread_condattr_t monotonic;
    ds_status status;
    if (!d->folder) return DS_OK;
    if ((status = dsi_offload_open_file(s, d))) return status;
    if ((status = dsi_offload_make_frames(s)) || (status = dsi_offload_make_tables(s, d))) return status;
    s->transfers = (dsi_offload_transfer *)dsi_alloc_zero(&s->allocator, DSI_OFFLOAD_TRANSFERS * sizeof *s->transfers);
    if (!s->transfers) return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for the table of transfers");
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, NULL);
    pthread_cond_init(&s->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    s->locks = true;
    if ((status = dsi_offload_start_workers(s))) return status;
    if (d->probe > 0 && (status = dsi_offload_probe(s, d->probe))) return status;
    dsi_log(&s->logger, "ds_offload", DS_LOG_INFO, 1,
            "swapping in '%s': %s, O_DIRECT %s, blocks of %zu bytes, depth %u, %u threads", dsi_offload_place(s),
            ds_offload_engine_name(s->engine), s->direct ? "in force" : "off", s->block, s->depth, s->n_workers);
    return DS_OK;
}

static void dsi_offload_shape(const ds_offload_desc *d, size_t *block, unsigned *depth, unsigned *workers,
                              size_t *frames) {
    *block = dsi_round_up(d->block_size ? d->block_size : 1 << 20, DSI_OFFLOAD_UNIT);
    *depth = d->queue_depth ? d->queue_depth : 8;
    *workers = d->thread_count ? d->thread_count : 1;
    *frames = d->folder ? d->max_in_cpu / *block : 0;
}

DS_API size_t ds_offload_memory(const ds_offload_desc *d) {
    size_t block, frames, tensors, file_bytes, bytes = sizeof(ds_offload);
    unsigned depth, workers;
    dsi_offload_shape(d, &block, &depth, &workers, &frames);
    if (!d->folder) return bytes;
    dsi_offload_tables(d, block, depth, workers, &tensors, &file_bytes);
    bytes += dsi_offload_path_room(d) + DSI_OFFLOAD_TRANSFERS * sizeof(dsi_offload_transfer);
    bytes +=
        workers * (sizeof(dsi_offload_worker) + depth * (sizeof(dsi_offload_slot) + 2 * sizeof(ds_offload_request *)));
    if (!d->aio.setup) bytes += workers * dsi_offload_queue_bytes(depth);
    bytes = dsi_add(bytes, dsi_mul(workers * DSI_OFFLOAD_BOUNCES, d->pin_memory && d->device.pinned_alloc ? 0 : block));
    bytes = dsi_add(bytes, dsi_mul(frames, sizeof(dsi_offload_frame)));
    bytes = dsi_add(bytes, dsi_mul(tensors, sizeof(dsi_offload_tensor)));
    bytes = dsi_add(bytes, dsi_mul(dsi_offload_pages(d, block, frames), sizeof(dsi_offload_page)));
    if (d->checksums || DS_DEBUG) bytes = dsi_add(bytes, dsi_round_up(file_bytes, DSI_OFFLOAD_UNIT) / 1024);
    return dsi_add(bytes, dsi_mul(frames, d->pin_memory && d->device.pinned_alloc ? 0 : block));
}

DS_API ds_status ds_offload_create_(const ds_offload_desc *desc, size_t desc_bytes, int version, ds_offload **out,
                                    ds_error *error) {
    ds_offload *s;
    ds_status status;
    *out = NULL;
    if (version != DS_OFFLOAD_VERSION || desc_bytes != sizeof *desc)
        return dsi_fail(error, DS_ERR_VERSION,
                        "ds_offload.h: header version %d with a descriptor of %zu bytes, implementation %d with %zu",
                        version, desc_bytes, DS_OFFLOAD_VERSION, sizeof *desc);
    if ((unsigned)desc->engine > DS_OFFLOAD_ENGINE_THREADS || desc->queue_depth > 65536 || desc->thread_count > 1024)
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "offload: engine %d, queue_depth %u (at most 65536), thread_count %u (at most 1024)",
                        (int)desc->engine, desc->queue_depth, desc->thread_count);
    s = (ds_offload *)dsi_alloc_zero(&desc->allocator, sizeof *s);
    if (!s) return dsi_fail(error, DS_ERR_MEMORY, "offload: no memory for a store");
    s->allocator = desc->allocator;
    s->logger = desc->logger;
    s->clock = desc->clock;
    s->files = dsi_files(&desc->files);
    s->aio = desc->aio;
    s->engine = desc->engine;
    s->rank = desc->rank;
    s->fd = -1;
    s->single_submit = desc->single_submit;
    s->no_overlap = desc->no_overlap;
    s->pin = desc->pin_memory;
    s->checksums = desc->checksums || DS_DEBUG;
    s->unit = DSI_OFFLOAD_UNIT;
    dsi_offload_shape(desc, &s->block, &s->depth, &s->n_workers, &s->n_frames);
    s->device = desc->device;
    s->timeout = desc->timeout ? desc->timeout : 60000000000;
    status = dsi_offload_build(s, desc);
    if (status) {
        if (error) *error = s->error;
        ds_offload_destroy(s);
        return status;
    }
    *out = s;
    return DS_OK;
}

DS_API void ds_offload_destroy(ds_offload *s) {
    if (!s) return;
    if (s->locks) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_broadcast(&s->wake);
        pthread_mutex_unlock(&s->lock);
    }
    for (unsigned i = 0; s->workers && i < s->n_workers; i++) {
        dsi_offload_worker *w = &s->workers[i];
        if (w->started) pthread_join(w->thread, NULL);
        if (w->queue) s->aio.teardown(s->aio.ctx, w->queue);
        for (int k = 0; k < DSI_OFFLOAD_BOUNCES; k++) dsi_offload_give_host(s, w->bounce[k], s->block);
        dsi_release(&s->allocator, w->slots, s->depth * sizeof *w->slots);
        dsi_release(&s->allocator, w->batch, 2 * s->depth * sizeof *w->batch);
    }
    dsi_release(&s->allocator, s->workers, s->n_workers * sizeof *s->workers);
    if (s->locks) {
        pthread_cond_destroy(&s->done);
        pthread_cond_destroy(&s->wake);
        pthread_mutex_destroy(&s->lock);
    }
    if (s->fd >= 0) s->files.close(s->files.ctx, s->fd);
    for (size_t i = 0; i < s->n_tensors; i++) {
        dsi_offload_tensor *t = &s->tensors[i];
        dsi_offload_give_host(s, t->memory, dsi_round_up(t->bytes, DSI_OFFLOAD_UNIT));
        dsi_release(&s->allocator, t->name, strlen(t->name) + 1);
    }
    dsi_release(&s->allocator, s->tensors, s->tensor_room * sizeof *s->tensors);
    dsi_release(&s->allocator, s->sums, s->sum_room * sizeof *s->sums);
    dsi_release(&s->allocator, s->pages, s->page_room * sizeof *s->pages);
    dsi_release(&s->allocator, s->frames, s->n_frames * sizeof *s->frames);
    dsi_offload_give_host(s, s->frame_memory, s->n_frames * s->block);
    dsi_release(&s->allocator, s->transfers, DSI_OFFLOAD_TRANSFERS * sizeof *s->transfers);
    dsi_release(&s->allocator, s->path, s->path_bytes);
    {
        ds_allocator allocator = s->allocator;
        dsi_release(&allocator, s, sizeof *s);
    }
}

DS_API const ds_error *ds_offload_error(const ds_offload *s) {
    return &s->error;
}

DS_API void ds_offload_get_stats(const ds_offload *s, ds_offload_stats *out) {
    ds_offload *changing = (ds_offload *)(uintptr_t)s; /* the lock is not part of what the caller may not change */
    if (s->locks) pthread_mutex_lock(&changing->lock);
    *out = s->stats;
    out->file_bytes = s->file_bytes;
    out->direct = s->direct && s->fd >= 0;
    out->engine = s->engine;
    if (s->locks) pthread_mutex_unlock(&changing->lock);
}

// >>tensors

/* Space for [begin, end) of the file. A file system that cannot reserve (ext3, for one) has posix_fallocate write single
   bytes, which O_DIRECT refuses; zeros are written here then. Nothing is under way, so a bounce buffer is free. */
static int dsi_offload_reserve(ds_offload *s, size_t begin, size_t end) {
    const size_t first = begin;
    char *zeros = s->workers[0].bounce[0];
    int64_t code = s->files.reserve(s->files.ctx, s->fd, (int64_t)begin, (int64_t)(end - begin));
    if (code != -EINVAL && code != -EOPNOTSUPP) return (int)code;
    memset(zeros, 0, s->block);
    for (code = 0; begin < end && code >= 0; begin += (size_t)code) {
        size_t bytes = end - begin < s->block ? end - begin : s->block;
        code = s->files.write(s->files.ctx, s->fd, zeros, bytes, (int64_t)begin);
        if (code >= 0) code -= code % (int64_t)s->unit;
        if (code == 0) code = -ENOSPC;
    }
    if (code < 0) (void)s->files.truncate(s->files.ctx, s->fd, (int64_t)first);
    return code < 0 ? (int)code : 0;
}

static ds_status dsi_offload_add_file(ds_offload *s, const char *name, size_t bytes) {
    size_t end = dsi_add(s->file_bytes, dsi_round_up(bytes, DSI_OFFLOAD_UNIT));
    int code;
    if (s->fd < 0)
        return dsi_fail(&s->error, DS_ERR_ARGUMENT, "offload: this store has no disk tier (no folder was given)");
    if (end > (size_t)INT64_MAX / 2)
        return dsi_fail(&s->error, DS_ERR_ARGUMENT, "offload: a tensor of %zu bytes", bytes);
    if (!dsi_offload_grow_sums(s, end))
        return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for checksums of %zu bytes", end);
    if (end > s->file_bytes) {
        code = dsi_offload_reserve(s, s->file_bytes, end);
        if (code < 0) {
            char doing[200];
            snprintf(doing, sizeof doing, "reserve %zu bytes at offset %zu for tensor '%.100s' in", end - s->file_bytes,
                     s->file_bytes, name);
            return dsi_offload_refuse(s, code, doing);
        }
    }
    s->file_bytes = end;
    return DS_OK;
}

/* A tensor that spills begins at a block and takes whole blocks of the file; `*offset`: where it begins. */
static ds_status dsi_offload_add_pages(ds_offload *s, const char *name, size_t bytes, size_t *offset) {
    size_t begin = dsi_round_up(s->file_bytes, s->block), end = dsi_add(begin, dsi_round_up(bytes, s->block));
    if (end == SIZE_MAX || !dsi_offload_grow_pages(s, end / s->block))
        return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for a table of %zu bytes", end);
    *offset = begin;
    return dsi_offload_add_file(s, name, end - s->file_bytes);
}

static bool dsi_offload_under_way(ds_offload *s) {
    bool any = false;
    pthread_mutex_lock(&s->lock);
    for (uint64_t k = s->started; k > 0 && s->started - k < DSI_OFFLOAD_TRANSFERS; k--)
        any |= dsi_offload_number(s, k)->used && !dsi_offload_number(s, k)->done;
    pthread_mutex_unlock(&s->lock);
    return any;
}

DS_API ds_status ds_offload_add(ds_offload *s, const char *name, size_t bytes, ds_offload_tier tier,
                                ds_offload_id *id) {
    dsi_offload_tensor t;
    ds_status status;
    memset(&t, 0, sizeof t);
    if (s->locks && dsi_offload_under_way(s))
        return dsi_fail(&s->error, DS_ERR_STATE, "offload: tensor '%.200s' is added while a transfer is under way",
                        name);
    if (!dsi_offload_grow_tensors(s, s->n_tensors + 1))
        return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for tensor '%.200s'", name);
    t.bytes = bytes;
    t.name = (char *)dsi_alloc(&s->allocator, strlen(name) + 1);
    if (!t.name) return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for tensor '%.200s'", name);
    memcpy(t.name, name, strlen(name) + 1);
    t.offset = s->file_bytes;
    t.spills = tier == DS_OFFLOAD_SPILL;
    if (tier == DS_OFFLOAD_HOST)
        status = (t.memory = dsi_offload_take_host(s, dsi_round_up(bytes, DSI_OFFLOAD_UNIT), name)) ? DS_OK
                                                                                                    : s->error.status;
    else
        status = t.spills ? dsi_offload_add_pages(s, name, bytes, &t.offset) : dsi_offload_add_file(s, name, bytes);
    if (status) {
        dsi_release(&s->allocator, t.name, strlen(name) + 1);
        return status;
    }
    s->tensors[s->n_tensors] = t;
    *id = (ds_offload_id)s->n_tensors++;
    return DS_OK;
}

// >>transfers

/* Whether two transfers touch the same memory and one of them reads into it. */
static bool dsi_offload_shares(const dsi_offload_transfer *a, const dsi_offload_transfer *b) {
    uintptr_t x = (uintptr_t)a->memory, y = (uintptr_t)b->memory;
    return !(a->write && b->write) && x < y + (b->end - b->begin) && y < x + (a->end - a->begin);
}

/* The newest transfer under way that touches the same blocks or memory and cannot go along with this one. Blocks of a tensor
   that spills are ordered page by page. */
static uint64_t dsi_offload_conflict(ds_offload *s, const dsi_offload_transfer *t) {
    size_t begin = t->begin / s->unit * s->unit, end = dsi_round_up(t->end, s->unit);
    uint64_t newest = 0;
    for (uint64_t k = s->started; k > 0 && s->started - k < DSI_OFFLOAD_TRANSFERS; k--) {
        const dsi_offload_transfer *o = dsi_offload_number(s, k);
        bool blocks = (o->write || t->write) && o->begin < end && dsi_round_up(o->end, s->unit) > begin && !t->spills;
        if (o->used && !o->done && (blocks || dsi_offload_shares(o, t)) && o->number > newest) newest = o->number;
    }
    return newest;
}

/* Under the lock: waits until a transfer is over. False when the deadline comes first. */
static bool dsi_offload_await(ds_offload *s, uint64_t number, int64_t deadline) {
    while (!dsi_offload_over(s, number)) {
        struct timespec soon; /* in slices, so that a clock of the caller's own decides when the deadline has come */
        clock_gettime(CLOCK_MONOTONIC, &soon);
        soon.tv_nsec += 100000000;
        if (soon.tv_nsec >= 1000000000) soon.tv_nsec -= 1000000000, soon.tv_sec++;
        if (pthread_cond_timedwait(&s->done, &s->lock, &soon) == ETIMEDOUT && !dsi_offload_over(s, number) &&
            dsi_now(&s->clock) > deadline)
            return false;
    }
    return true;
}

static ds_status dsi_offload_late(ds_offload *s, const dsi_offload_transfer *t) {
    return dsi_fail(&s->error, DS_ERR_TIMEOUT,
                    "offload: rank %d: %s of tensor '%.150s', file '%.250s', did not end within %lld ms", s->rank,
                    t->write ? "write" : "read", s->tensors[t->id].name, dsi_offload_place(s),
                    (long long)(s->timeout / 1000000));
}

/* After a failure, and once nothing of theirs is under way: a page has the frame that holds it, or none. */
static bool dsi_offload_mend(ds_offload *s, int64_t deadline) {
    if (!s->broken) return true;
    if (!dsi_offload_await(s, s->last_spill, deadline)) return false; /* workers pass older ones first */
    for (size_t i = 0; i < s->page_room; i++) {
        s->pages[i].frame = DSI_OFFLOAD_NOWHERE;
        s->pages[i].last = 0; /* it may name a transfer that was not started after all */
    }
    for (size_t i = 0; i < s->n_frames; i++) {
        dsi_offload_frame *f = &s->frames[i];
        f->page = f->holds;
        if (f->page != DSI_OFFLOAD_NOWHERE) s->pages[f->page].frame = i;
    }
    s->broken = false;
    return true;
}

/* The frame used least recently that does not have one of the pages [begin, end). */
static dsi_offload_frame *dsi_offload_oldest(ds_offload *s, size_t begin, size_t end) {
    dsi_offload_frame *oldest = NULL;
    for (size_t i = 0; i < s->n_frames; i++) {
        dsi_offload_frame *f = &s->frames[i];
        bool ours = f->page != DSI_OFFLOAD_NOWHERE && f->page >= begin && f->page < end;
        if (!ours && (!oldest || f->used < oldest->used)) oldest = f;
    }
    return oldest;
}

/* Finds frames for the pages of transfer `number`, taking those used least recently; pages beyond what frames there are go
   to the file directly. Waits, seldom, for transfers that still use what is to be moved. */
static bool dsi_offload_place_pages(ds_offload *s, dsi_offload_transfer *t, uint64_t number, int64_t deadline) {
    size_t begin = t->begin / s->block, end = dsi_round_up(t->end, s->block) / s->block;
    for (size_t b = begin; b < end; b++) {
        dsi_offload_page *page = &s->pages[b];
        if (page->last > t->after) t->after = page->last;
        if (page->frame != DSI_OFFLOAD_NOWHERE)
            s->stats.hits++;
        else {
            dsi_offload_frame *oldest = dsi_offload_oldest(s, begin, end);
            s->stats.misses++;
            if (oldest) {
                if (oldest->page != DSI_OFFLOAD_NOWHERE) {
                    dsi_offload_page *out = &s->pages[oldest->page];
                    if (!dsi_offload_await(s, out->last, deadline)) return false;
                    out->frame = DSI_OFFLOAD_NOWHERE;
                    out->last = number;
                }
                if (!dsi_offload_await(s, page->last, deadline)) return false;
                oldest->page = b;
                page->frame = (size_t)(oldest - s->frames);
            }
        }
        page->last = number;
        if (page->frame != DSI_OFFLOAD_NOWHERE) s->frames[page->frame].used = number;
    }
    return true;
}

static void dsi_offload_host_copy(const dsi_offload_tensor *tensor, const dsi_offload_transfer *t, size_t offset,
                                  size_t bytes) {
    if (bytes == 0) return;
    if (t->write)
        memcpy(tensor->memory + offset, t->memory, bytes);
    else
        memcpy(t->memory, tensor->memory + offset, bytes);
}

/* Under the lock. */
static ds_status dsi_offload_enter(ds_offload *s, dsi_offload_transfer *t) {
    uint64_t number = s->started + 1;
    dsi_offload_transfer *slot;
    int64_t deadline = dsi_deadline(&s->clock, s->timeout);
    size_t bytes = t->end - t->begin;
    while (dsi_offload_number(s, number)->used && number - s->started < DSI_OFFLOAD_TRANSFERS) number++;
    slot = dsi_offload_number(s, number);
    if (slot->used)
        return dsi_fail(&s->error, DS_ERR_STATE, "offload: %d transfers were started and not waited for",
                        DSI_OFFLOAD_TRANSFERS);
    t->number = number;
    if (bytes) t->after = dsi_offload_conflict(s, t);
    if (t->spills && bytes) {
        if (!dsi_offload_mend(s, deadline)) return dsi_offload_late(s, t);
        if (!dsi_offload_place_pages(s, t, t->number, deadline)) {
            s->broken = true;
            return dsi_offload_late(s, t);
        }
        s->last_spill = t->number;
    }
    if (!s->tensors[t->id].memory) {
        (*(t->write ? &s->stats.writes : &s->stats.reads))++;
        if (!t->spills) *(t->write ? &s->stats.bytes_written : &s->stats.bytes_read) += bytes;
    }
    *slot = *t;
    s->started = number;
    pthread_cond_broadcast(&s->wake);
    return DS_OK;
}

static ds_status dsi_offload_start(ds_offload *s, ds_offload_id id, size_t offset, size_t bytes, char *memory,
                                   bool write, ds_offload_ticket *ticket) {
    dsi_offload_tensor *tensor;
    dsi_offload_transfer t;
    ds_status status;
    *ticket = 0;
    if (id >= s->n_tensors) return dsi_fail(&s->error, DS_ERR_ARGUMENT, "offload: tensor %u of %zu", id, s->n_tensors);
    tensor = &s->tensors[id];
    if (offset > tensor->bytes || bytes > tensor->bytes - offset || (bytes && !memory))
        return dsi_fail(&s->error, DS_ERR_ARGUMENT, "offload: tensor '%.200s' has %zu bytes; asked for %zu from %zu on",
                        tensor->name, tensor->bytes, bytes, offset);
    memset(&t, 0, sizeof t);
    t.used = true;
    t.write = write;
    t.spills = tensor->spills;
    t.id = id;
    t.memory = memory;
    t.left = s->n_workers;
    if (!tensor->memory) {
        t.begin = tensor->offset + offset;
        t.end = t.begin + bytes;
    }
    if (!s->locks) { /* a store without a disk: all is done */
        dsi_offload_host_copy(tensor, &t, offset, bytes);
        *ticket = UINT64_MAX;
        return DS_OK;
    }
    pthread_mutex_lock(&s->lock);
    status = dsi_offload_enter(s, &t);
    if (!status) *ticket = t.number;
    pthread_mutex_unlock(&s->lock);
    if (!status && tensor->memory) dsi_offload_host_copy(tensor, &t, offset, bytes);
    return status;
}

DS_API ds_status ds_offload_start_read(ds_offload *s, ds_offload_id id, size_t offset, size_t bytes, void *to,
                                       ds_offload_ticket *ticket) {
    return dsi_offload_start(s, id, offset, bytes, (char *)to, false, ticket);
}
DS_API ds_status ds_offload_start_write(ds_offload *s, ds_offload_id id, size_t offset, size_t bytes, const void *from,
                                        ds_offload_ticket *ticket) {
    return dsi_offload_start(s, id, offset, bytes, (char *)(uintptr_t)from, true, ticket); /* read from only */
}

static dsi_offload_transfer *dsi_offload_of(ds_offload *s, ds_offload_ticket ticket) {
    dsi_offload_transfer *t = dsi_offload_number(s, ticket);
    return ticket == 0 || t->number != ticket || !t->used ? NULL : t;
}

DS_API ds_status ds_offload_wait(ds_offload *s, ds_offload_ticket ticket) {
    dsi_offload_transfer *t;
    ds_status status = DS_OK;
    int64_t deadline;
    if (!s->locks && ticket == UINT64_MAX) return DS_OK;
    deadline = dsi_deadline(&s->clock, s->timeout);
    if (s->locks) pthread_mutex_lock(&s->lock);
    t = s->locks ? dsi_offload_of(s, ticket) : NULL;
    if (t && !dsi_offload_await(s, ticket, deadline)) status = dsi_offload_late(s, t);
    if (t && t->done) {
        if (t->fault) status = dsi_offload_report(s, t);
        t->used = false;
    }
    if (s->locks) pthread_mutex_unlock(&s->lock);
    if (!t)
        return dsi_fail(&s->error, DS_ERR_ARGUMENT, "offload: ticket %llu is not that of a transfer under way",
                        (unsigned long long)ticket);
    return status;
}

DS_API ds_status ds_offload_test(ds_offload *s, ds_offload_ticket ticket, bool *done) {
    dsi_offload_transfer *t = NULL;
    *done = !s->locks && ticket == UINT64_MAX;
    if (*done) return DS_OK;
    if (s->locks) {
        pthread_mutex_lock(&s->lock);
        t = dsi_offload_of(s, ticket);
        *done = t && t->done;
        pthread_mutex_unlock(&s->lock);
    }
    return t ? DS_OK
             : dsi_fail(&s->error, DS_ERR_ARGUMENT, "offload: ticket %llu is not that of a transfer under way",
                        (unsigned long long)ticket);
}

/* Nobody has the ticket after a deadline has passed here: the transfer is forgotten when it ends. */
static ds_status dsi_offload_finish(ds_offload *s, ds_offload_ticket ticket) {
    ds_status status = ds_offload_wait(s, ticket);
    if (status == DS_ERR_TIMEOUT) {
        dsi_offload_transfer *t = dsi_offload_number(s, ticket);
        pthread_mutex_lock(&s->lock);
        t->alone = true;
        t->used = !t->done;
        pthread_mutex_unlock(&s->lock);
    }
    return status;
}
DS_API ds_status ds_offload_read(ds_offload *s, ds_offload_id id, size_t offset, size_t bytes, void *to) {
    ds_offload_ticket ticket;
    ds_status status = ds_offload_start_read(s, id, offset, bytes, to, &ticket);
    return status ? status : dsi_offload_finish(s, ticket);
}
DS_API ds_status ds_offload_write(ds_offload *s, ds_offload_id id, size_t offset, size_t bytes, const void *from) {
    ds_offload_ticket ticket;
    ds_status status = ds_offload_start_write(s, id, offset, bytes, from, &ticket);
    return status ? status : dsi_offload_finish(s, ticket);
}

// >>probe

/* Moves `bytes` again and again for `ns`; *rate: bytes per second. */
static ds_status dsi_offload_rate(ds_offload *s, ds_offload_id id, char *memory, size_t bytes, bool write, int64_t ns,
                                  uint64_t *rate) {
    int64_t begin = dsi_now(&s->clock), passed = 0;
    double moved = 0.0;
    ds_status status = DS_OK;
    while (!status && (passed < ns || passed <= 0)) {
        status = write ? ds_offload_write(s, id, 0, bytes, memory) : ds_offload_read(s, id, 0, bytes, memory);
        moved += (double)bytes;
        passed = dsi_now(&s->clock) - begin;
    }
    if (!status) *rate = (uint64_t)(moved / ((double)passed * 1e-9));
    return status;
}

/* Before there is any tensor: a short one of all zeros is written and read, and the file is empty again. */
static ds_status dsi_offload_probe(ds_offload *s, int64_t ns) {
    size_t bytes = dsi_offload_probe_bytes(s->block, s->depth, s->n_workers);
    ds_offload_stats before = s->stats;
    uint64_t rate[2] = {0, 0};
    ds_offload_id id;
    char *memory;
    ds_status status;
    int code;
    memory = (char *)dsi_alloc_aligned(&s->allocator, bytes, DSI_OFFLOAD_UNIT);
    if (!memory) return dsi_fail(&s->error, DS_ERR_MEMORY, "offload: no memory for a probe of %zu bytes", bytes);
    if (!s->allocator.alloc) ds_offload_huge(memory, bytes);
    memset(memory, 0, bytes);
    status = ds_offload_add(s, "(probe)", bytes, DS_OFFLOAD_NVME, &id);
    for (int read = 0; read < 2 && !status; read++)
        status = dsi_offload_rate(s, id, memory, bytes, !read, ns / 2, &rate[read]);
    dsi_release_aligned(&s->allocator, memory, bytes, DSI_OFFLOAD_UNIT);
    if (status) return status;
    dsi_release(&s->allocator, s->tensors[0].name, strlen(s->tensors[0].name) + 1);
    s->n_tensors = s->file_bytes = 0;
    if (s->sums) memset(s->sums, 0, s->sum_room * sizeof *s->sums);
    s->stats = before;
    s->stats.probe_write = rate[0];
    s->stats.probe_read = rate[1];
    if ((code = s->files.truncate(s->files.ctx, s->fd, 0)) < 0) return dsi_offload_refuse(s, code, "empty");
    dsi_log(&s->logger, "ds_offload", DS_LOG_INFO, 5, "'%s': writes at %.2f GB/s, reads at %.2f GB/s%s",
            dsi_offload_place(s), (double)rate[0] * 1e-9, (double)rate[1] * 1e-9,
            s->direct ? "" : ", through the page cache");
    return DS_OK;
}

// >>pages

DS_API ds_status ds_offload_pin(void *memory, size_t bytes, ds_error *error) {
    if (bytes == 0 || mlock(memory, bytes) == 0) return DS_OK;
    return dsi_fail(error, DS_ERR_IO, "offload: cannot lock %zu bytes in memory: %s (see ulimit -l)", bytes,
                    strerror(errno));
}
DS_API void ds_offload_unpin(void *memory, size_t bytes) {
    if (bytes) (void)munlock(memory, bytes);
}
DS_API void ds_offload_huge(void *memory, size_t bytes) {
#ifdef MADV_HUGEPAGE
    const size_t page = (size_t)2 << 20, lead = (size_t)(0 - (uintptr_t)memory) & (page - 1);
    if (bytes >= lead + page) (void)madvise((char *)memory + lead, (bytes - lead) & ~(page - 1), MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

#undef DSI_OFFLOAD_UNIT
#undef DSI_OFFLOAD_TRANSFERS
#undef DSI_OFFLOAD_BOUNCES
#undef DSI_OFFLOAD_NOWHERE
#undef DSI_OFFLOAD_DIRECT
#undef DSI_OFFLOAD_TMPFILE

#endif /* DS_OFFLOAD_IMPL_DONE */

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
