/* ds_checkpoint.h - v0.1.0 - checkpoints that commit atomically and reshard; a safetensors reader and writer - public domain or MIT-0

DO THIS
    In one C or C++ file:
        #define DS_CHECKPOINT_IMPLEMENTATION
        #include "ds_checkpoint.h"
    Elsewhere include it without the macro. Link with -lpthread.

SYNOPSIS
        ds_checkpoint_desc desc = {0};
        ds_checkpoint_writer *writer;
        ds_error error = {DS_OK, ""};
        size_t shape[2] = {16, 8};
        ds_checkpoint_tensor tensor = {"weight", DS_F32, shape, 2, 0, 128, weight, NULL, NULL};
        desc.folder = "checkpoints";
        if (ds_checkpoint_begin(&desc, "step100", &writer, &error)) return fail(error.message);
        ds_checkpoint_add(writer, &tensor);
        ds_checkpoint_set_integer(writer, "step", 100);
        if (ds_checkpoint_commit(writer, &error)) return fail(error.message);
        ...
        ds_checkpoint *saved;
        if (ds_checkpoint_open(&desc, NULL, &saved, &error)) return fail(error.message);
        ds_checkpoint_read(saved, "weight", 0, 128, DS_F32, weight);
        ds_checkpoint_close(saved);

OPTIONS
    DS_IMPLEMENTATION, DS_CHECKPOINT_IMPLEMENTATION   off   in the one file that implements
    DS_STATIC                                         off   private to that file; wherever a ds header is included

WHAT IT DOES NOT DO
    It knows no model and no optimizer: it stores named tensors and named values. It runs no code from a file: of a .pt
    file's pickle it takes data, and a name that it does not know is an error. It follows no link inside a checkpoint.

CONCEPTS
    A logical tensor has a name, a dtype and a shape. Each rank saves a flat range of it; any reader, at any number of
    ranks, asks for any range. Nothing is converted in between, so a checkpoint of any world loads into any other.

    On disk:  FOLDER/latest                      the name of the newest tag
              FOLDER/TAG/manifest.json           shards with sizes and checksums, values; ends with its own checksum
              FOLDER/TAG/rank-00000.safetensors  what rank 0 saved, and so on
    A shard is a safetensors file. Its __metadata__ holds for each tensor `ds:NAME` = "BEGIN SHAPE CHECKSUMS": where the
    stored elements begin in the whole tensor of that shape, and a CRC-32C for each MiB of them. The manifest holds the
    CRC-32C of each shard's header, so that every byte of a checkpoint is under a checksum that is under the manifest's.

    Commit: everything is written to FOLDER/TAG.tmp and synced; when all ranks have succeeded, the shards' headers are
    read back and checked, the manifest is written, the folder renamed to TAG, and `latest` replaced. A process killed at
    any moment leaves the previous checkpoint or the new one. A tag that exists is moved to TAG.old and removed after the
    new one stands.

STEP BY STEP
    Saving, on every rank: begin, add the rank's parts, set values (rank 0's count), commit. To give up: abandon.
    Saving while training goes on: desc.background; commit copies the data and returns, a thread writes; call finish, on
    every rank, before the next save: only then the tag stands. ds_checkpoint_done tells whether finish would wait.
    Loading: open, find or at, read, close. ds_checkpoint_verify reads everything.
    Other formats: ds_checkpoint_open_path opens one of ours, a .safetensors file, an index of such files or a DeepSpeed
    checkpoint, all with the same calls. ds_safetensors_write and ds_deepspeed_write write them.

MEMORY
    A writer holds the list of its parts and 1 MiB; with `background` also a copy of the data. A reader holds the shards'
    headers and 1 MiB. From desc.allocator, but for what qsort may take.

ERRORS AND LOG
    A damaged file is DS_ERR_CORRUPT and named with the tensor; what is no checkpoint is DS_ERR_INPUT; a full disk is
    DS_ERR_SPACE. A failed save names the rank, and the previous checkpoint stands. Files may be hostile: any bytes give an
    error or data, never undefined behaviour, and no size in a file is believed before it is compared with the file's.
    Log ids: 1 ranks gave different tags, 2 `latest` is unusable and another tag was opened, 3 an old tag could not be
    removed, 4 a save that was cut short was put right.

THREADS
    One thread at a time per writer or reader; different ones are independent. With `background` the thread calls
    desc.files and nothing else of the caller's; the group is used by begin, commit, finish and abandon alone.

CONFIG KEYS COVERED
    checkpoint.tag_validation, checkpoint.use_node_local_storage, checkpoint.load_universal (for DeepSpeed's folders:
    `latest_universal` is read in place of `latest`; ours load at any world size without it).
*/
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
    const char *folder; /* holds tags and `latest`; made when it is not there */
    ds_group group;     /* the ranks that save together; zeroed: one */
    int tag_validation; /* 0 Warn, 1 Ignore, 2 Fail: tags that differ between ranks [cfg: checkpoint.tag_validation] */
    bool node_local;    /* every node has its own folder [cfg: checkpoint.use_node_local_storage] */
    int local_rank;     /* with node_local: rank 0 of a node makes folders and commits */
    int keep_last;      /* complete tags to keep, the oldest go after a commit; 0: all */
    bool background;    /* commit copies the data, a thread writes, ds_checkpoint_finish waits and commits */
    ds_allocator allocator;
    ds_logger logger;
    ds_files files;
    ds_clock clock;
    bool load_universal; /* of DeepSpeed's folders take `latest_universal` [cfg: checkpoint.load_universal] */
} ds_checkpoint_desc;

typedef struct ds_checkpoint_writer ds_checkpoint_writer;

DS_API ds_status ds_checkpoint_begin_(const ds_checkpoint_desc *desc, size_t desc_bytes, int version, const char *tag,
                                      ds_checkpoint_writer **out, ds_error *error);
/* Begins folder/tag. Collective, as are commit, finish and abandon. The tag is a plain file name of at most 200 bytes,
   not starting with a dot; where ranks differ and tag_validation allows it, rank 0's counts. Descriptor and hooks are
   copied. On failure *out is NULL and all ranks return an error.
   Errors: DS_ERR_ARGUMENT, DS_ERR_INPUT (tags differ under Fail), DS_ERR_MEMORY, DS_ERR_IO, DS_ERR_SPACE. */
static inline ds_status ds_checkpoint_begin(const ds_checkpoint_desc *desc, const char *tag, ds_checkpoint_writer **out,
                                            ds_error *error) {
    return ds_checkpoint_begin_(desc, sizeof *desc, DS_CHECKPOINT_VERSION, tag, out, error);
}

/* A logical tensor, or a flat range of one: elements [begin, begin + count) of the row-major whole. */
typedef struct ds_checkpoint_tensor {
    const char *name; /* UTF-8, not empty */
    ds_dtype dtype;
    const size_t *shape; /* (dims) of the whole tensor */
    int dims;            /* 0..8; 0 is a scalar */
    size_t begin, count;
    const void *data; /* count elements; NULL: `read` gives them piece by piece */
    /* Elements of the whole tensor: at most 65,536 at a time, in order, each piece but the last a multiple of 1,024
       long. Called during commit on the calling thread. A status other than DS_OK ends the commit. */
    ds_status (*read)(void *ctx, size_t begin, size_t count, void *out);
    void *ctx;
} ds_checkpoint_tensor;

/* Declares this rank's part of a tensor; names are unique per rank, and over all ranks the parts of a tensor must cover
   it once. Name and shape are copied; the data must stay until commit returns. A failed add makes commit fail. */
DS_API ds_status ds_checkpoint_add(ds_checkpoint_writer *writer, const ds_checkpoint_tensor *tensor);
/* A named value in the manifest; rank 0's count (with node_local each node's local rank 0's). Keys are unique. Text is
   UTF-8, bytes are anything (kilobytes: they are kept as text; what is larger is better a tensor of DS_U8). */
DS_API ds_status ds_checkpoint_set_text(ds_checkpoint_writer *writer, const char *key, const char *value);
DS_API ds_status ds_checkpoint_set_number(ds_checkpoint_writer *writer, const char *key, double value);
DS_API ds_status ds_checkpoint_set_integer(ds_checkpoint_writer *writer, const char *key, int64_t value);
DS_API ds_status ds_checkpoint_set_bytes(ds_checkpoint_writer *writer, const char *key, const void *data, size_t bytes);
/* Writes this rank's shard, syncs, and lets the group's first rank write manifest, rename and point `latest` to the tag.
   On failure of any rank all return an error that names it and the previous checkpoint stands. Frees the writer, but
   when it succeeds with `background` (then ds_checkpoint_finish does). */
DS_API ds_status ds_checkpoint_commit(ds_checkpoint_writer *writer, ds_error *error);
/* Waits for the thread and commits; frees the writer. Errors as commit's. */
DS_API ds_status ds_checkpoint_finish(ds_checkpoint_writer *writer, ds_error *error);
/* Whether this rank's thread has ended. Not collective. */
DS_API bool ds_checkpoint_done(const ds_checkpoint_writer *writer);
/* Removes what was begun and frees the writer, which may be NULL. Not after a commit that freed it. */
DS_API void ds_checkpoint_abandon(ds_checkpoint_writer *writer);
DS_API const ds_error *ds_checkpoint_writer_error(const ds_checkpoint_writer *writer);

/*---- loading --------------------------------------------------------------------------------------------------*/

typedef struct ds_checkpoint ds_checkpoint; /* an open checkpoint, read-only */

DS_API ds_status ds_checkpoint_open_(const ds_checkpoint_desc *desc, size_t desc_bytes, int version, const char *tag,
                                     ds_checkpoint **out, ds_error *error);
/* Opens folder/tag; tag NULL: what `latest` names, or when that is damaged the newest complete one, said in the log.
   Verifies manifest and shard headers; data is verified as it is read. Not collective.
   Errors: DS_ERR_INPUT (none there), DS_ERR_CORRUPT (names the file), DS_ERR_IO, DS_ERR_MEMORY. */
static inline ds_status ds_checkpoint_open(const ds_checkpoint_desc *desc, const char *tag, ds_checkpoint **out,
                                           ds_error *error) {
    return ds_checkpoint_open_(desc, sizeof *desc, DS_CHECKPOINT_VERSION, tag, out, error);
}
DS_API ds_status ds_checkpoint_open_path_(const ds_checkpoint_desc *desc, size_t desc_bytes, int version,
                                          const char *path, ds_checkpoint **out, ds_error *error);
/* Opens whatever is at `path`: a folder of tags or one tag's folder, ours or DeepSpeed's (stages 1, 2, 3 and universal;
   its fp32 weights, and its optimizer's states as optimizer.STATE.NAME); a .safetensors file; an index
   (model.safetensors.index.json), or a folder that holds one. desc->folder is not used.
   Errors: as ds_checkpoint_open's; DS_ERR_UNSUPPORTED for a dtype or a layout that this header has no type for. */
static inline ds_status ds_checkpoint_open_path(const ds_checkpoint_desc *desc, const char *path, ds_checkpoint **out,
                                                ds_error *error) {
    return ds_checkpoint_open_path_(desc, sizeof *desc, DS_CHECKPOINT_VERSION, path, out, error);
}
DS_API void ds_checkpoint_close(ds_checkpoint *checkpoint); /* may be NULL */
DS_API const ds_error *ds_checkpoint_error(const ds_checkpoint *checkpoint);
DS_API const char *ds_checkpoint_tag(const ds_checkpoint *checkpoint); /* of a file: its path */

typedef enum ds_checkpoint_format {
    DS_CHECKPOINT_OURS = 0,
    DS_CHECKPOINT_SAFETENSORS = 1,
    DS_CHECKPOINT_DEEPSPEED = 2,
    DS_CHECKPOINT_DEEPSPEED_UNIVERSAL = 3
} ds_checkpoint_format;
DS_API ds_checkpoint_format ds_checkpoint_get_format(const ds_checkpoint *checkpoint);

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
/* Elements [begin, begin + count) of the whole tensor, from whichever shards hold them, converted to `dtype`: to itself,
   and between the four floating types, to nearest even. Reads on in order cost no byte twice.
   Errors: DS_ERR_INPUT (no such tensor), DS_ERR_ARGUMENT (range, dtype), DS_ERR_CORRUPT (names tensor and file), DS_ERR_IO.
   `out` may have been written in part. */
DS_API ds_status ds_checkpoint_read(ds_checkpoint *checkpoint, const char *name, size_t begin, size_t count,
                                    ds_dtype dtype, void *out);
/* Checks every byte of every shard against its checksum. */
DS_API ds_status ds_checkpoint_verify(ds_checkpoint *checkpoint);

typedef struct ds_checkpoint_shard_info {
    const char *name; /* of the file, until close */
    uint64_t bytes;
    bool missing; /* of another node (use_node_local_storage) */
} ds_checkpoint_shard_info;
DS_API size_t ds_checkpoint_shard_count(const ds_checkpoint *checkpoint);
DS_API ds_status ds_checkpoint_shard_at(const ds_checkpoint *checkpoint, size_t index, ds_checkpoint_shard_info *out);

/* Values of the manifest (of a safetensors file: its metadata, as text; of DeepSpeed: engine.step, engine.samples and
   others); DS_ERR_INPUT when absent or of another kind. Text and bytes are the checkpoint's own. */
DS_API ds_status ds_checkpoint_get_text(const ds_checkpoint *checkpoint, const char *key, const char **value);
DS_API ds_status ds_checkpoint_get_number(const ds_checkpoint *checkpoint, const char *key, double *value);
DS_API ds_status ds_checkpoint_get_integer(const ds_checkpoint *checkpoint, const char *key, int64_t *value);
DS_API ds_status ds_checkpoint_get_bytes(const ds_checkpoint *checkpoint, const char *key, const void **data,
                                         size_t *bytes);
typedef struct ds_checkpoint_value {
    const char *key;
    int kind;         /* 0 text, 1 number, 2 integer, 3 bytes */
    const void *data; /* text or bytes */
    size_t bytes;
    double number;
    int64_t integer;
} ds_checkpoint_value;
DS_API size_t ds_checkpoint_value_count(const ds_checkpoint *checkpoint);
DS_API ds_status ds_checkpoint_value_at(const ds_checkpoint *checkpoint, size_t index, ds_checkpoint_value *out);

/*---- other formats --------------------------------------------------------------------------------------------*/

/* One file of whole tensors that other tools open, or with max_shard_bytes and more data than that, path's
   NAME-00001-of-0000N.safetensors beside it and NAME.safetensors.index.json. Written beside the target, synced, renamed.
   tensors[i].begin is 0 and count the whole; metadata is (metadata_pairs) keys and values by turns. Of `hooks` (may be
   NULL) the allocator and the files are used. */
DS_API ds_status ds_safetensors_write(const char *path, const ds_checkpoint_tensor *tensors, size_t count,
                                      const char *const *metadata, size_t metadata_pairs, size_t max_shard_bytes,
                                      const ds_checkpoint_desc *hooks, ds_error *error);
/* A DeepSpeed checkpoint of all that `from` holds: folder/TAG. world 0: a universal one with `latest_universal`, from
   which DeepSpeed trains on at any number of ranks; else a ZeRO-2 one of that many ranks with `latest`, which its
   zero_to_fp32.py reads. `from` holds fp32 weights NAME and states optimizer.exp_avg.NAME, optimizer.exp_avg_sq.NAME. */
DS_API ds_status ds_deepspeed_write(ds_checkpoint *from, const char *folder, const char *tag, int world,
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
/*== ds block: json 1 == home: ds_config.h ==*/
#if defined(DSI_JSON_BLOCK) && DSI_JSON_BLOCK != 1
#error "ds: implementations of two versions meet in this file; vendor all ds_*.h from one release"
#endif
#ifndef DSI_JSON_BLOCK
#define DSI_JSON_BLOCK 1
/* RFC 8259. Reading gives a flat array of nodes in the order of the text, without recursion: a container is followed by
   all it holds, and `next` steps over it. An object holds key, value, key, value; a key is a string node. Strings are
   UTF-8, end with a NUL (and may hold others), and live in the document's copy of the text. Typical use:
       dsi_json doc;
       status = dsi_json_load(allocator, text, bytes, 0, &doc, error);
       node = dsi_json_get(&doc, 0, "step");               the root is node 0; DSI_JSON_NONE when there is none
       dsi_json_unload(allocator, &doc);
   For each member of object o:   for (i = 0, k = o + 1; i < nodes[o].length; i++, k = nodes[k + 1].next) key k, value k + 1
   For each element of array a:   for (i = 0, v = a + 1; i < nodes[a].length; i++, v = nodes[v].next) */
enum {
    DSI_JSON_NULL,
    DSI_JSON_FALSE,
    DSI_JSON_TRUE,
    DSI_JSON_INT,  /* digits alone, in the range of int64_t: as.integer; "-0" is REAL */
    DSI_JSON_REAL, /* every other number: as.real, correctly rounded */
    DSI_JSON_STRING,
    DSI_JSON_ARRAY,
    DSI_JSON_OBJECT
};
enum {
    DSI_JSON_COMMENTS = 1, /* also accept line comments with // or #, and block comments */
    DSI_JSON_COMMAS = 2    /* also accept one comma after the last element or member */
};
#define DSI_JSON_NONE        UINT32_MAX
#define DSI_JSON_DEPTH       1000 /* containers inside each other */
#define DSI_JSON_NUMBER_ROOM 32   /* bytes that a printed number needs at most, its NUL included */

typedef struct dsi_json_node {
    uint32_t offset; /* of its first byte in the text */
    uint32_t next;   /* the node after it and all it holds; while a container is open, the one around it */
    uint32_t length; /* string: bytes; number: bytes of its text; array: elements; object: members */
    uint32_t type;
    union {
        int64_t integer;
        double real;
        const char *text;
    } as;
} dsi_json_node;

typedef struct dsi_json {
    dsi_json_node *nodes;
    uint32_t count;
    char *text; /* the copy; the closing quotes of strings without escapes are NUL in it, line ends stay */
    size_t bytes;
    size_t fault; /* where reading failed, and why; NULL after success */
    const char *why;
    void *memory; /* dsi_json_load's */
    size_t room;
} dsi_json;

typedef struct dsi_json_reader {
    dsi_json *doc;
    char *at, *end, *spare; /* strings with escapes are decoded to `spare`, so that lines can be counted in the text */
    uint32_t parent, depth, max_depth, flags;
} dsi_json_reader;

/* The power 10^(16 k), k = -23..19, is about dsi_json_tens[k + 23] * 2^(floor(log2(10^(16 k))) - 63). */
static const uint64_t dsi_json_tens[43] = {
    0xB8E1CBC28BEF0B69u, 0xCD42A11346F34F7Du, 0xE3E27A444D8D98B8u, 0xFD00B897478238D1u, 0x8C71DCD9BA0B4926u,
    0x9BECCE62836AC577u, 0xAD1C8EAB5EE43B67u, 0xC0314325637A193Au, 0xD5605FCDCF32E1D7u, 0xECE53CEC4A314EBEu,
    0x8380DEA93DA4BC60u, 0x91FF83775423CC06u, 0xA21727DB38CB0030u, 0xB3F4E093DB73A093u, 0xC7CABA6E7C5382C9u,
    0xDDD0467C64BCE4A1u, 0xF64335BCF065D37Du, 0x88B402F7FD75539Bu, 0x97C560BA6B0919A6u, 0xA87FEA27A539E9A5u,
    0xBB127C53B17EC159u, 0xCFB11EAD453994BAu, 0xE69594BEC44DE15Bu, 0x8000000000000000u, 0x8E1BC9BF04000000u,
    0x9DC5ADA82B70B59Eu, 0xAF298D050E4395D7u, 0xC2781F49FFCFA6D5u, 0xD7E77A8F87DAF7FCu, 0xEFB3AB16C59B14A3u,
    0x850FADC09923329Eu, 0x93BA47C980E98CE0u, 0xA402B9C5A8D3A6E7u, 0xB616A12B7FE617AAu, 0xCA28A291859BBF93u,
    0xE070F78D3927556Bu, 0xF92E0C3537826146u, 0x8A5296FFE33CC930u, 0x9991A6F3D6BF1766u, 0xAA7EEBFB9DF9DE8Eu,
    0xBD49D14AA79DBC82u, 0xD226FC195C6A2F8Cu, 0xE950DF20247C83FDu};

/* Whole numbers of up to 5,120 bits, enough for 800 digits times 10^342: what an exact comparison can need. */
#define DSI_JSON_LIMBS 160
typedef struct dsi_json_big {
    uint32_t limb[DSI_JSON_LIMBS]; /* least significant first */
    uint32_t used;
} dsi_json_big;

DSI_FN void dsi_json_big_set(dsi_json_big *big, uint64_t value) {
    big->used = 0;
    for (; value; value >>= 32) big->limb[big->used++] = (uint32_t)value;
}
DSI_FN void dsi_json_big_mul_add(dsi_json_big *big, uint32_t factor, uint32_t addend) {
    uint64_t carry = addend;
    for (uint32_t i = 0; i < big->used; i++) {
        carry += (uint64_t)big->limb[i] * factor;
        big->limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry && big->used < DSI_JSON_LIMBS) big->limb[big->used++] = (uint32_t)carry;
}
DSI_FN void dsi_json_big_ten(dsi_json_big *big, int power) {
    for (; power >= 9; power -= 9) dsi_json_big_mul_add(big, 1000000000u, 0);
    for (; power > 0; power--) dsi_json_big_mul_add(big, 10, 0);
}
DSI_FN void dsi_json_big_shift(dsi_json_big *big, int bits) {
    uint32_t words = (uint32_t)bits / 32;
    dsi_json_big_mul_add(big, 1u << (bits % 32), 0);
    if (!big->used || big->used + words > DSI_JSON_LIMBS) return;
    memmove(big->limb + words, big->limb, big->used * sizeof big->limb[0]);
    memset(big->limb, 0, words * sizeof big->limb[0]);
    big->used += words;
}
DSI_FN int dsi_json_big_compare(const dsi_json_big *a, const dsi_json_big *b) {
    if (a->used != b->used) return a->used < b->used ? -1 : 1;
    for (uint32_t i = a->used; i-- > 0;)
        if (a->limb[i] != b->limb[i]) return a->limb[i] < b->limb[i] ? -1 : 1;
    return 0;
}
/* a + b against c */
DSI_FN int dsi_json_big_compare_sum(const dsi_json_big *a, const dsi_json_big *b, const dsi_json_big *c) {
    dsi_json_big sum;
    uint64_t carry = 0;
    uint32_t most = a->used > b->used ? a->used : b->used;
    sum.used = 0;
    for (uint32_t i = 0; i < most || carry; i++) {
        carry += (uint64_t)(i < a->used ? a->limb[i] : 0) + (i < b->used ? b->limb[i] : 0);
        sum.limb[sum.used++] = (uint32_t)carry;
        carry >>= 32;
    }
    return dsi_json_big_compare(&sum, c);
}
/* a - b, where a >= b */
DSI_FN void dsi_json_big_subtract(dsi_json_big *a, const dsi_json_big *b) {
    int64_t borrow = 0;
    for (uint32_t i = 0; i < a->used; i++) {
        borrow += (int64_t)a->limb[i] - (i < b->used ? b->limb[i] : 0);
        a->limb[i] = (uint32_t)(borrow & 0xFFFFFFFF);
        borrow = borrow < 0 ? -1 : 0;
    }
    while (a->used && !a->limb[a->used - 1]) a->used--;
}

/* The upper half of a 128-bit product, rounded, with its top bit set; *exponent counts the bits dropped. */
DSI_FN uint64_t dsi_json_mul_high(uint64_t a, uint64_t b, int *exponent, uint64_t *error) {
    uint64_t a1 = a >> 32, a0 = a & 0xFFFFFFFFu, b1 = b >> 32, b0 = b & 0xFFFFFFFFu;
    uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (middle & 0xFFFFFFFFu);
    uint64_t high = a1 * b1 + (middle >> 32) + (other >> 32);
    *exponent += 64;
    *error += 2; /* what b lacks, and what the lower half held */
    if (!(high >> 63)) {
        high = high << 1 | (other >> 31 & 1);
        *exponent -= 1;
        *error *= 2;
    }
    return high;
}

/* Decides between mantissa and mantissa + 1 (in units of 2^exponent) for a decimal number: its digits, without the
   point, times 10^ten, against the middle. Digits beyond 800 only say that the number is larger than what they follow. */
DSI_FN bool dsi_json_round_up(const char *digits, size_t length, int ten, uint64_t mantissa, int exponent) {
    dsi_json_big number, middle;
    size_t seen = 0;
    int order;
    bool more = false;
    dsi_json_big_set(&number, 0);
    dsi_json_big_set(&middle, 2 * mantissa + 1);
    for (size_t i = 0; i < length; i++) {
        if (digits[i] == '.') continue;
        if (seen < 800) {
            dsi_json_big_mul_add(&number, 10, (uint32_t)(digits[i] - '0'));
            seen += number.used != 0;
        } else {
            ten++;
            more |= digits[i] != '0';
        }
    }
    exponent--; /* of the doubled middle */
    if (ten > 0)
        dsi_json_big_ten(&number, ten);
    else
        dsi_json_big_ten(&middle, -ten);
    if (exponent > 0)
        dsi_json_big_shift(&middle, exponent);
    else
        dsi_json_big_shift(&number, -exponent);
    order = dsi_json_big_compare(&number, &middle);
    return order > 0 || (order == 0 && (more || (mantissa & 1)));
}

/* Zero bits above the highest one of a number above 0. */
DSI_FN int dsi_json_zeros(uint64_t value) {
#if defined(__GNUC__)
    return __builtin_clzll(value);
#else
    int zeros = 0;
    for (; !(value >> 63); value <<= 1) zeros++;
    return zeros;
#endif
}

DSI_FN double dsi_json_double(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The double nearest to a decimal number, ties to even: `lead` is its first 19 digits at most, times 10^lead_ten;
   `cut` says that more follow. Works on a 64-bit product with a known error, and exactly where that cannot decide.
   Returns infinity when it is too large. The idea is that of strtod in Grisu's paper (Loitsch, 2010). */
DSI_FN double dsi_json_nearest(const char *digits, size_t length, int ten, uint64_t lead, int lead_ten, bool cut) {
    // clang-format off
    static const uint64_t small[16] = {
        1u, 10u, 100u, 1000u, 10000u, 100000u, 1000000u, 10000000u, 100000000u, 1000000000u, 10000000000u,
        100000000000u, 1000000000000u, 10000000000000u, 100000000000000u, 1000000000000000u};
    // clang-format on
    const uint64_t infinite = (uint64_t)0x7FF << 52;
    uint64_t error = cut ? 1 : 0, power, mantissa, rest, half, bits;
    int exponent = 0, power_exponent = 0, shift = 11, biased, k;
    if (!lead || lead_ten < -361) return 0;
    if (lead_ten > 308) return dsi_json_double(infinite);
    exponent = -dsi_json_zeros(lead);
    lead <<= -exponent;
    error <<= -exponent;
    k = (lead_ten + 23 * 16) / 16 - 23;
    power = small[lead_ten - 16 * k];
    power_exponent = -dsi_json_zeros(power);
    power <<= -power_exponent;
    exponent += power_exponent;
    lead = dsi_json_mul_high(lead, power, &exponent, &error);
    exponent += (16 * k * 217706 + (1 << 30)) / 65536 - (1 << 14) - 63; /* floor(log2(10^(16 k))) - 63 */
    lead = dsi_json_mul_high(lead, dsi_json_tens[k + 23], &exponent, &error);
    biased = exponent + 63 + 1023;
    if (biased >= 2047) return dsi_json_double(infinite);
    if (biased < 1) { /* a denormal number keeps fewer bits */
        shift += 1 - biased;
        biased = 1;
    }
    if (shift > 64) return 0;
    mantissa = shift == 64 ? 0 : lead >> shift;
    rest = shift == 64 ? lead : lead & (((uint64_t)1 << shift) - 1);
    half = (uint64_t)1 << (shift - 1);
    if (rest > half ? rest - half > error : half - rest > error)
        mantissa += rest > half;
    else
        mantissa += dsi_json_round_up(digits, length, ten, mantissa, exponent + shift);
    bits = ((uint64_t)(biased - 1) << 52) + mantissa;
    return dsi_json_double(bits);
}

/* A number at `at`. Fills the node's type, length and value; NULL, or what is wrong with it at *stop. */
DSI_FN const char *dsi_json_read_number(const char *at, dsi_json_node *node, const char **stop) {
    const char *p = at + (*at == '-'), *digits = p, *end;
    uint64_t lead = 0;
    int64_t power = 0;
    int seen = 0, skipped = 0, fraction = 0;
    bool negative = *at == '-', real = negative && *p == '0', cut = false, quick = true, minus;
    *stop = p;
    if (*p < '0' || *p > '9') return negative ? "expected a digit after '-'" : "expected a value";
    if (*p == '0' && p[1] >= '0' && p[1] <= '9') return "a number may not start with 0";
    /* up to 18 digits at full speed; more wrap around, and are read again below */
    for (end = p; (unsigned)(*end - '0') <= 9; end++) lead = 10 * lead + (unsigned)(*end - '0');
    if (*end == '.') {
        const char *point = end++;
        for (; (unsigned)(*end - '0') <= 9; end++) lead = 10 * lead + (unsigned)(*end - '0');
        power = point + 1 - end;
        quick = power < 0;
    }
    if (quick && end - p <= 18) {
        fraction = power < 0;
        real |= fraction != 0;
        p = end;
    } else
        lead = 0, power = 0;
    for (;; p++) {
        unsigned digit = (unsigned)(*p - '0');
        if (*p == '.' && !fraction) {
            fraction = 1;
            real = true;
            if (p[1] < '0' || p[1] > '9') return *stop = p + 1, "expected a digit after the decimal point";
            continue;
        }
        if (digit > 9) break;
        if (seen < 19) {
            lead = 10 * lead + digit;
            seen += lead != 0;
            power -= fraction;
        } else {
            skipped++;
            cut |= digit != 0;
            power += 1 - fraction;
        }
    }
    end = p;
    node->type = DSI_JSON_REAL;
    if (*p == 'e' || *p == 'E') {
        int64_t exponent = 0;
        real = true;
        minus = *++p == '-';
        p += *p == '-' || *p == '+';
        if (*p < '0' || *p > '9') return *stop = p, "expected a digit in the exponent";
        for (; *p >= '0' && *p <= '9'; p++)
            if (exponent < 100000000) exponent = 10 * exponent + (*p - '0');
        power += minus ? -exponent : exponent;
    }
    *stop = p;
    node->length = (uint32_t)(p - at);
    if (!real && !skipped && lead <= (uint64_t)INT64_MAX + (negative ? 1 : 0)) {
        node->type = DSI_JSON_INT;
        node->as.integer = negative ? (int64_t)(0 - lead) : (int64_t)lead;
        return NULL;
    }
    if (power > 100000) power = 100000;
    if (power < -100000) power = -100000;
    node->as.real = dsi_json_nearest(digits, (size_t)(end - digits), (int)power - skipped, lead, (int)power, cut);
    if (negative) node->as.real = -node->as.real;
    return node->as.real - node->as.real == 0 ? NULL : (*stop = at, "the number is too large for a double");
}

/* Bytes of the UTF-8 character at `at` (a byte of 0x80 or more); 0 when it is malformed, overlong or a surrogate. */
DSI_FN unsigned dsi_json_utf8(const char *text) {
    const unsigned char *at = (const unsigned char *)text;
    unsigned c = at[0];
    if ((at[1] & 0xC0) != 0x80) return 0;
    if (c >= 0xC2 && c <= 0xDF) return 2;
    if ((at[2] & 0xC0) != 0x80) return 0;
    if (c == 0xE0 ? at[1] >= 0xA0 : c == 0xED ? at[1] < 0xA0 : c > 0xE0 && c <= 0xEF) return 3;
    if ((at[3] & 0xC0) != 0x80) return 0;
    return (c == 0xF0 ? at[1] >= 0x90 : c == 0xF4 ? at[1] < 0x90 : c > 0xF0 && c < 0xF4) ? 4 : 0;
}

DSI_FN bool dsi_json_fail(dsi_json_reader *r, const char *at, const char *why) {
    r->doc->fault = (size_t)(at - r->doc->text);
    r->doc->why = why;
    return false;
}

/* Four hex digits; UINT32_MAX when they are not. */
DSI_FN uint32_t dsi_json_hex(const char *at) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t c = (unsigned char)at[i], letter = c | 0x20;
        if (c >= '0' && c <= '9')
            value = value << 4 | (c - '0');
        else if (letter >= 'a' && letter <= 'f')
            value = value << 4 | (letter - 'a' + 10);
        else
            return UINT32_MAX;
    }
    return value;
}

/* One escape; r->at is behind the backslash. Appends what it means to r->spare. */
DSI_FN bool dsi_json_escape(dsi_json_reader *r) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *found = *r->at ? strchr(from, *r->at) : NULL;
    uint32_t code, low;
    if (found) {
        *r->spare++ = to[found - from];
        r->at++;
        return true;
    }
    if (*r->at != 'u') return dsi_json_fail(r, r->at - 1, "unknown escape in a string");
    code = dsi_json_hex(r->at + 1);
    if (code == UINT32_MAX) return dsi_json_fail(r, r->at - 1, "\\u needs four hexadecimal digits");
    if (code >= 0xDC00 && code <= 0xDFFF)
        return dsi_json_fail(r, r->at - 1, "the second half of a surrogate pair alone");
    r->at += 5;
    if (code >= 0xD800 && code <= 0xDBFF) {
        low = r->at[0] == '\\' && r->at[1] == 'u' ? dsi_json_hex(r->at + 2) : 0;
        if (low < 0xDC00 || low > 0xDFFF)
            return dsi_json_fail(r, r->at - 6, "the first half of a surrogate pair alone");
        code = 0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF);
        r->at += 6;
    }
    if (code < 0x80)
        *r->spare++ = (char)code;
    else {
        unsigned count = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        *r->spare++ = (char)(code >> 6 * count | (0xFFu << (7 - count) & 0xFF));
        while (count-- > 0) *r->spare++ = (char)(0x80 | (code >> 6 * count & 0x3F));
    }
    return true;
}

/* Steps over the plain bytes of a string, eight at a time, to a quote, a backslash, a control or non-ASCII byte. The
   text's copy is padded, so that reading past its end is safe. */
DSI_FN char *dsi_json_plain(char *at) {
    const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
    for (;; at += 8) {
        uint64_t v, quote, slash, special;
        memcpy(&v, at, 8);
        quote = v ^ (ones * '"');
        slash = v ^ (ones * '\\');
        special = (((quote - ones) & ~quote) | ((slash - ones) & ~slash) | ((v - ones * 0x20) & ~v) | v) & tops;
        if (!special) continue;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        return at + (__builtin_ctzll(special) >> 3);
#else
        while ((unsigned char)*at >= 0x20 && (unsigned char)*at < 0x80 && *at != '"' && *at != '\\') at++;
        return at;
#endif
    }
}

/* A string; r->at is at its opening quote. */
DSI_FN bool dsi_json_read_string(dsi_json_reader *r, dsi_json_node *node) {
    char *open = r->at, *out = NULL, *from = ++r->at;
    node->type = DSI_JSON_STRING;
    for (;;) {
        char *at = r->at = dsi_json_plain(r->at);
        unsigned char c = (unsigned char)*at;
        if (c >= 0x80) {
            unsigned length = dsi_json_utf8(at);
            if (!length) return dsi_json_fail(r, at, "malformed UTF-8 in a string");
            r->at += length;
            continue;
        }
        if (c < 0x20) {
            if (at >= r->end) return dsi_json_fail(r, open, "this string does not end");
            return dsi_json_fail(r, at, "a control character in a string must be escaped");
        }
        if (c == '"' && !out) break;
        if (!out) out = r->spare;
        memcpy(r->spare, from, (size_t)(at - from));
        r->spare += at - from;
        r->at++;
        if (c == '"') {
            *r->spare++ = 0;
            node->as.text = out;
            node->length = (uint32_t)(r->spare - 1 - out);
            return true;
        }
        if (!dsi_json_escape(r)) return false;
        from = r->at;
    }
    *r->at++ = 0;
    node->as.text = from;
    node->length = (uint32_t)(r->at - 1 - from);
    return true;
}

/* The next byte that is neither blank nor, where accepted, in a comment; 0 at the end. */
DSI_FN char dsi_json_peek(dsi_json_reader *r) {
    if ((unsigned char)*r->at > '/') return *r->at;
    for (;;) {
        char *p = r->at;
        while (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r') p++;
        r->at = p;
        if (!(r->flags & DSI_JSON_COMMENTS) || (*p != '/' && *p != '#')) return *p;
        if (*p == '#' || p[1] == '/') {
            while (p < r->end && *p != '\n') p++;
        } else if (p[1] == '*') {
            for (p += 2; p < r->end && (*p != '*' || p[1] != '/'); p++) {}
            if (p >= r->end) return *r->at;
            p += 2;
        } else
            return *p;
        r->at = p;
    }
}

DSI_FN const char *dsi_json_no_value(dsi_json_reader *r) {
    const char *p = r->at;
    if (p >= r->end) return "the text ends where a value should follow";
    if (!strncmp(p, "None", 4)) return "None is Python; did you mean null?";
    if (!strncmp(p, "True", 4)) return "True is Python; did you mean true?";
    if (!strncmp(p, "False", 5)) return "False is Python; did you mean false?";
    if (!strncmp(p, "NaN", 3) || !strncmp(p, "Infinity", 8) || !strncmp(p, "-Infinity", 9))
        return "JSON has no NaN and no infinity";
    if (*p == '\'') return "strings stand in double quotes";
    if (*p == '+' || *p == '.') return "a number starts with a digit or '-'";
    if (*p == '/' || *p == '#')
        return r->flags & DSI_JSON_COMMENTS ? "this comment does not end" : "JSON has no comments";
    if (!strncmp(p, "\xEF\xBB\xBF", 3)) return "the text starts with a byte order mark; save it without one";
    return "expected a value";
}

/* One value at r->at; a container is opened and becomes r->parent. */
DSI_FN bool dsi_json_read_value(dsi_json_reader *r) {
    dsi_json_node *node = r->doc->nodes + r->doc->count;
    const char *stop, *why, c = dsi_json_peek(r);
    node->offset = (uint32_t)(r->at - r->doc->text);
    node->length = 0;
    node->next = ++r->doc->count;
    if (c == '"') return dsi_json_read_string(r, node);
    if (c == '{' || c == '[') {
        node->type = c == '{' ? DSI_JSON_OBJECT : DSI_JSON_ARRAY;
        node->as.integer = 0;
        node->next = r->parent;
        r->parent = r->doc->count - 1;
        if (++r->depth > r->max_depth) return dsi_json_fail(r, r->at, "too many containers inside each other");
        r->at++;
        return true;
    }
    node->as.integer = 0;
    if (c == 't' && !strncmp(r->at, "true", 4)) return node->type = DSI_JSON_TRUE, r->at += 4, true;
    if (c == 'f' && !strncmp(r->at, "false", 5)) return node->type = DSI_JSON_FALSE, r->at += 5, true;
    if (c == 'n' && !strncmp(r->at, "null", 4)) return node->type = DSI_JSON_NULL, r->at += 4, true;
    if (c != '-' && (c < '0' || c > '9')) return dsi_json_fail(r, r->at, dsi_json_no_value(r));
    why = dsi_json_read_number(r->at, node, &stop);
    if (why && !strncmp(r->at, "-I", 2)) return dsi_json_fail(r, r->at, dsi_json_no_value(r));
    if (why) return dsi_json_fail(r, stop, why);
    r->at += stop - r->at;
    return true;
}

DSI_FN bool dsi_json_read_key(dsi_json_reader *r) {
    dsi_json_node *node = r->doc->nodes + r->doc->count;
    if (dsi_json_peek(r) != '"') return dsi_json_fail(r, r->at, "expected a key in double quotes");
    node->offset = (uint32_t)(r->at - r->doc->text);
    node->next = ++r->doc->count;
    if (!dsi_json_read_string(r, node)) return false;
    if (dsi_json_peek(r) != ':') return dsi_json_fail(r, r->at, "expected ':' after the key");
    r->at++;
    return true;
}

/* What follows a value, up to the next one: commas, closing brackets, the next key. *done at the end of the text. */
DSI_FN bool dsi_json_read_rest(dsi_json_reader *r, bool opened, bool *done) {
    *done = false;
    for (;; opened = false) {
        dsi_json_node *parent;
        char c = dsi_json_peek(r), close;
        if (r->parent == DSI_JSON_NONE) {
            if (r->at < r->end) return dsi_json_fail(r, r->at, "the text goes on after its value");
            return *done = true;
        }
        parent = r->doc->nodes + r->parent;
        close = parent->type == DSI_JSON_OBJECT ? '}' : ']';
        if (!opened) {
            parent->length++;
            if (c == ',') {
                r->at++;
                c = dsi_json_peek(r);
                if (c != close) return parent->type == DSI_JSON_OBJECT ? dsi_json_read_key(r) : true;
                if (!(r->flags & DSI_JSON_COMMAS)) return dsi_json_fail(r, r->at, "a comma before the closing bracket");
            } else if (c != close)
                return dsi_json_fail(r, r->at, close == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
        } else if (c != close)
            return parent->type == DSI_JSON_OBJECT ? dsi_json_read_key(r) : true;
        r->at++;
        r->parent = parent->next;
        parent->next = r->doc->count;
        r->depth--;
    }
}

/* Bytes of memory that dsi_json_read needs: at most one node for each comma, colon and opening bracket and one more,
   the copy of the text, and room for decoded strings. */
DSI_FN size_t dsi_json_room(const char *text, size_t bytes) {
    const uint64_t low = 0x7F7F7F7F7F7F7F7Fu, ones = 0x0101010101010101u;
    size_t nodes = 1, i = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t v, comma, colon, brace;
        memcpy(&v, text + i, 8);
        comma = v ^ (ones * ',');
        colon = v ^ (ones * ':');
        brace = (v | (ones * 0x20)) ^ (ones * '{');
        comma = ~(((comma & low) + low) | comma | low);
        colon = ~(((colon & low) + low) | colon | low);
        brace = ~(((brace & low) + low) | brace | low);
        nodes += (size_t)((((comma >> 7) + (colon >> 7) + (brace >> 7)) * ones) >> 56);
    }
    for (; i < bytes; i++) nodes += text[i] == ',' || text[i] == ':' || text[i] == '[' || text[i] == '{';
    return dsi_add(dsi_mul(nodes + 1, sizeof(dsi_json_node)),
                   dsi_add(memchr(text, '\\', bytes) ? 2 * bytes : bytes, 16));
}

/* Reads a text into `memory` of dsi_json_room bytes, aligned to 8. False: doc->fault and doc->why say where and why. */
DSI_FN bool dsi_json_read(dsi_json *doc, void *memory, size_t room, const char *text, size_t bytes, unsigned flags,
                          unsigned max_depth) {
    dsi_json_reader r;
    bool done = false, opened;
    size_t copies = memchr(text, '\\', bytes) ? 2 * bytes : bytes;
    memset(doc, 0, sizeof *doc);
    memset(&r, 0, sizeof r);
    doc->nodes = (dsi_json_node *)memory;
    doc->text = (char *)memory + (room - copies - 16);
    doc->bytes = bytes;
    r.doc = doc;
    if (bytes >= UINT32_MAX / 2) return dsi_json_fail(&r, doc->text, "the text has 2 GiB or more");
    memcpy(doc->text, text, bytes);
    memset(doc->text + bytes, 0, 16);
    r.at = doc->text;
    r.end = doc->text + bytes;
    r.spare = r.end + 8;
    r.parent = DSI_JSON_NONE;
    r.max_depth = max_depth;
    r.flags = flags;
    while (!done) {
        uint32_t before = r.depth;
        if (!dsi_json_read_value(&r)) return false;
        opened = r.depth > before;
        if (!dsi_json_read_rest(&r, opened, &done)) return false;
    }
    return true;
}

/* Line and column, both from 1; a column is a UTF-8 character. */
DSI_FN void dsi_json_position(const dsi_json *doc, size_t offset, int *line, int *column) {
    *line = *column = 1;
    for (size_t i = 0; i < offset && i < doc->bytes; i++) {
        if (doc->text[i] == '\n') {
            ++*line;
            *column = 1;
        } else
            *column += (doc->text[i] & 0xC0) != 0x80;
    }
}

/* The same with memory of its own. The error's text starts with line:column. */
DSI_FN ds_status dsi_json_load(const ds_allocator *allocator, const char *text, size_t bytes, unsigned flags,
                               dsi_json *doc, ds_error *error) {
    size_t room = dsi_json_room(text, bytes), fault;
    const char *why;
    void *memory = dsi_alloc(allocator, room);
    int line, column;
    memset(doc, 0, sizeof *doc);
    if (!memory) return dsi_fail(error, DS_ERR_MEMORY, "no memory for a JSON text (%zu bytes)", room);
    if (dsi_json_read(doc, memory, room, text, bytes, flags, DSI_JSON_DEPTH)) {
        doc->memory = memory;
        doc->room = room;
        return DS_OK;
    }
    fault = doc->fault;
    why = doc->why;
    dsi_json_position(doc, fault, &line, &column);
    dsi_release(allocator, memory, room);
    memset(doc, 0, sizeof *doc);
    doc->fault = fault;
    doc->why = why;
    return dsi_fail(error, DS_ERR_INPUT, "%d:%d: %s", line, column, why);
}
DSI_FN void dsi_json_unload(const ds_allocator *allocator, dsi_json *doc) {
    dsi_release(allocator, doc->memory, doc->room);
    memset(doc, 0, sizeof *doc);
}

/* The value of a key of an object; DSI_JSON_NONE when node is no object (NONE included) or has no such key. */
DSI_FN uint32_t dsi_json_get(const dsi_json *doc, uint32_t node, const char *key) {
    size_t length = strlen(key);
    uint32_t k = node + 1;
    if (node == DSI_JSON_NONE || doc->nodes[node].type != DSI_JSON_OBJECT) return DSI_JSON_NONE;
    for (uint32_t i = 0; i < doc->nodes[node].length; i++, k = doc->nodes[k + 1].next)
        if (doc->nodes[k].length == length && !memcmp(doc->nodes[k].as.text, key, length)) return k + 1;
    return DSI_JSON_NONE;
}

/* A number as a double; false when it is none. */
DSI_FN bool dsi_json_real(const dsi_json *doc, uint32_t node, double *value) {
    const dsi_json_node *n = doc->nodes + node;
    *value = 0;
    if (node == DSI_JSON_NONE || (n->type != DSI_JSON_INT && n->type != DSI_JSON_REAL)) return false;
    *value = n->type == DSI_JSON_INT ? (double)n->as.integer : n->as.real;
    return true;
}

/* A number that is whole as written, exactly: 5e8 and 32.0 are, 5.5 and what exceeds int64_t are not. */
DSI_FN bool dsi_json_integer(const dsi_json *doc, uint32_t node, int64_t *value) {
    const dsi_json_node *n = doc->nodes + node;
    const char *p;
    int64_t whole = 0, power = 0, exponent = 0, zeros = 0;
    bool negative, point = false, minus;
    *value = 0;
    if (node == DSI_JSON_NONE || (n->type != DSI_JSON_INT && n->type != DSI_JSON_REAL)) return false;
    if (n->type == DSI_JSON_INT) return *value = n->as.integer, true;
    p = doc->text + n->offset;
    negative = *p == '-';
    for (p += negative; (*p >= '0' && *p <= '9') || *p == '.'; p++) {
        if (*p == '.') {
            point = true;
            continue;
        }
        power -= point;
        zeros++;
        if (*p == '0') continue;
        for (; whole && zeros; zeros--) { /* the zeros before this digit count only now */
            if (whole > INT64_MAX / 10) return false;
            whole *= 10;
        }
        if (whole > INT64_MAX - (*p - '0')) return false;
        whole += *p - '0';
        zeros = 0;
    }
    if (*p == 'e' || *p == 'E') {
        minus = *++p == '-';
        for (p += *p == '-' || *p == '+'; *p >= '0' && *p <= '9'; p++)
            if (exponent < 100000000) exponent = 10 * exponent + (*p - '0');
        power += minus ? -exponent : exponent;
    }
    if (whole && power + zeros < 0) return false;
    for (power += zeros; whole && power > 0; power--) {
        if (whole > INT64_MAX / 10) return false;
        whole *= 10;
    }
    *value = negative ? -whole : whole;
    return true;
}

/* A string's text, or NULL. */
DSI_FN const char *dsi_json_text(const dsi_json *doc, uint32_t node) {
    return node != DSI_JSON_NONE && doc->nodes[node].type == DSI_JSON_STRING ? doc->nodes[node].as.text : NULL;
}

/* The shortest digits that read back as the same double, and its decimal exponent: 0.d1d2.. * 10^*point. Steele and
   White's free-format algorithm with the bounds of round-half-even. value is finite and above 0. Returns their count. */
DSI_FN int dsi_json_digits(double value, char digits[18], int *point) {
    dsi_json_big number, scale, up, down;
    uint64_t bits, mantissa;
    int exponent, count = 0, k;
    bool even, low, high, narrow;
    memcpy(&bits, &value, sizeof bits);
    exponent = (int)(bits >> 52 & 0x7FF);
    mantissa = bits & (((uint64_t)1 << 52) - 1);
    narrow = mantissa == 0 && exponent > 1; /* the double below is half as far away as the one above */
    if (exponent)
        mantissa |= (uint64_t)1 << 52;
    else
        exponent = 1;
    exponent -= 1075;
    even = !(mantissa & 1);
    dsi_json_big_set(&number, mantissa << (1 + narrow));
    dsi_json_big_set(&scale, (uint64_t)1 << (1 + narrow));
    dsi_json_big_set(&up, (uint64_t)1 << narrow);
    dsi_json_big_set(&down, 1);
    if (exponent > 0) {
        dsi_json_big_shift(&number, exponent);
        dsi_json_big_shift(&up, exponent);
        dsi_json_big_shift(&down, exponent);
    } else
        dsi_json_big_shift(&scale, -exponent);
    /* an estimate of the decimal exponent that is right or one too small */
    for (k = 52; k > 0 && !(mantissa >> k); k--) {}
    k = (int)(((int64_t)(exponent + k) * 78913 + ((int64_t)1 << 32)) / 262144) - (1 << 14);
    if (k > 0)
        dsi_json_big_ten(&scale, k);
    else {
        dsi_json_big_ten(&number, -k);
        dsi_json_big_ten(&up, -k);
        dsi_json_big_ten(&down, -k);
    }
    for (;; k++) {
        int order = dsi_json_big_compare_sum(&number, &up, &scale);
        if (even ? order < 0 : order <= 0) break;
        dsi_json_big_mul_add(&scale, 10, 0);
    }
    *point = k;
    do {
        int digit = 0, order;
        dsi_json_big_mul_add(&number, 10, 0);
        dsi_json_big_mul_add(&up, 10, 0);
        dsi_json_big_mul_add(&down, 10, 0);
        for (; dsi_json_big_compare(&number, &scale) >= 0; digit++) dsi_json_big_subtract(&number, &scale);
        order = dsi_json_big_compare(&number, &down);
        low = even ? order <= 0 : order < 0;
        order = dsi_json_big_compare_sum(&number, &up, &scale);
        high = even ? order >= 0 : order > 0;
        if (high && (!low || dsi_json_big_compare_sum(&number, &number, &scale) >= 0)) digit++;
        digits[count++] = (char)('0' + digit);
    } while (!low && !high);
    return count;
}

/* The shortest text that reads back as the same double; an integral value gets ".0". Infinities and NaN, which JSON
   lacks, are printed as null. Returns the length. */
DSI_FN size_t dsi_json_print_real(double value, char out[DSI_JSON_NUMBER_ROOM]) {
    char digits[18];
    size_t n = 0;
    int count, point, i;
    if (!(value - value == 0)) return memcpy(out, "null", 5), (size_t)4;
    if (value < 0 || (value == 0 && 1 / value < 0)) out[n++] = '-';
    if (value == 0) return memcpy(out + n, "0.0", 4), n + 3;
    count = dsi_json_digits(value < 0 ? -value : value, digits, &point);
    if (point > 17 || point < -4) {
        out[n++] = digits[0];
        if (count > 1) out[n++] = '.';
        for (i = 1; i < count; i++) out[n++] = digits[i];
        return n + (size_t)snprintf(out + n, DSI_JSON_NUMBER_ROOM - n, "e%d", point - 1);
    }
    if (point <= 0) {
        out[n++] = '0';
        out[n++] = '.';
        for (i = point; i < 0; i++) out[n++] = '0';
    }
    for (i = 0; i < count || i < point; i++) {
        if (i == point && point > 0) out[n++] = '.';
        out[n++] = i < count ? digits[i] : '0';
    }
    if (count <= point) {
        out[n++] = '.';
        out[n++] = '0';
    }
    out[n] = 0;
    return n;
}

/* Text being written: what exceeds `room` is counted, not stored, so that a first pass with room 0 measures. */
typedef struct dsi_json_sink {
    char *out;
    size_t room, length;
} dsi_json_sink;

DSI_FN void dsi_json_put(dsi_json_sink *sink, const char *text, size_t bytes) {
    if (bytes <= sink->room && sink->length <= sink->room - bytes) memcpy(sink->out + sink->length, text, bytes);
    sink->length += bytes;
}
DSI_FN void dsi_json_puts(dsi_json_sink *sink, const char *text) {
    dsi_json_put(sink, text, strlen(text));
}
/* A string with its quotes; NULL is null. Bytes are taken as they are, so they should be UTF-8. */
DSI_FN void dsi_json_put_string(dsi_json_sink *sink, const char *text, size_t bytes) {
    size_t from = 0;
    if (!text) {
        dsi_json_puts(sink, "null");
        return;
    }
    dsi_json_put(sink, "\"", 1);
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        char escape[8];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        dsi_json_put(sink, text + from, i - from);
        from = i + 1;
        if (c == '"' || c == '\\')
            snprintf(escape, sizeof escape, "\\%c", c);
        else if (c == '\n')
            memcpy(escape, "\\n", 3);
        else if (c == '\t')
            memcpy(escape, "\\t", 3);
        else
            snprintf(escape, sizeof escape, "\\u%04x", c);
        dsi_json_puts(sink, escape);
    }
    dsi_json_put(sink, text + from, bytes - from);
    dsi_json_put(sink, "\"", 1);
}
DSI_FN void dsi_json_put_real(dsi_json_sink *sink, double value) {
    char number[DSI_JSON_NUMBER_ROOM];
    dsi_json_put(sink, number, dsi_json_print_real(value, number));
}
DSI_FN void dsi_json_put_integer(dsi_json_sink *sink, int64_t value) {
    char number[DSI_JSON_NUMBER_ROOM];
    dsi_json_put(sink, number, (size_t)snprintf(number, sizeof number, "%lld", (long long)value));
}
#endif
/*== end of ds block: json ==*/
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
