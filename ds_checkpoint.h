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
    stored elements begin in the whole tensor of that shape, and a CRC-32C for each 256 KiB. The manifest holds the
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
    checkpoint, all with the same calls. ds_safetensors_write exports, ds_deepspeed_write writes what DeepSpeed reads.

MEMORY
    A writer holds the list of its parts and 256 KiB; for a file with data of 16 MiB or more 8 MiB besides (in huge pages
    unless desc.allocator is yours), from which eight threads write past the page cache (O_DIRECT) where the file system
    lets them; with `background` also a copy of the data. A reader holds the shards' headers and 256 KiB. From
    desc.allocator, but for what qsort may take.

ERRORS AND LOG
    A damaged file is DS_ERR_CORRUPT and named with the tensor; what is no checkpoint is DS_ERR_INPUT; a full disk is
    DS_ERR_SPACE. A failed save names the rank, and the previous checkpoint stands. Files may be hostile: any bytes give an
    error or data, never undefined behaviour, and no size in a file is believed before it is compared with the file's.
    Log ids: 1 ranks gave different tags, 2 `latest` is unusable and another tag was opened, 3 an old tag could not be
    removed, 4 a save that was cut short was put right, 5 a save's size and time, 6 the file system refused O_DIRECT.

THREADS
    One thread at a time per writer or reader; different ones are independent. One job saves into a folder at a time: where
    two do, saves fail. Threads of the header's own call desc.files (with `background` all of it, else `write` for files of
    16 MiB and more and `read` for parts of 4 MiB and more) and nothing else of the caller's; the group is used by begin,
    commit, finish and abandon alone.

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
/* Begins folder/tag. Collective, as are commit, finish and abandon. The tag is a plain file name of at most 200 bytes of
   UTF-8 not starting with a dot; where ranks differ and tag_validation allows it, rank 0's counts. Descriptor and hooks are
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
/* Whether a tensor may be called this: UTF-8, not empty, not __metadata__. Pure. */
DS_API bool ds_checkpoint_good_name(const char *name);
/* A named value in the manifest; rank 0's count (with node_local each node's local rank 0's). Keys are unique. Text is
   UTF-8, bytes are anything (kilobytes: they are kept as text; what is larger is better a tensor of DS_U8). */
DS_API ds_status ds_checkpoint_set_text(ds_checkpoint_writer *writer, const char *key, const char *value);
DS_API ds_status ds_checkpoint_set_number(ds_checkpoint_writer *writer, const char *key, double value);
DS_API ds_status ds_checkpoint_set_integer(ds_checkpoint_writer *writer, const char *key, int64_t value);
DS_API ds_status ds_checkpoint_set_bytes(ds_checkpoint_writer *writer, const char *key, const void *data, size_t bytes);
/* Writes this rank's shard, syncs, and lets the group's first rank write manifest, rename and point `latest` to the tag.
   On failure of any rank all return an error that names it and the previous checkpoint stands. (Should the file system fail
   for good between the last rename and its sync, `latest` may name the new one, which is whole.) Frees the writer, but
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
/* Opens whatever is at `path`: a folder of tags or one tag's folder, ours or DeepSpeed's (stages 1, 2, 3 and universal:
   fp32 weights, what is not trained as it is, and the optimizer's states as optimizer.STATE.NAME; stage 0: the weights as they
   are); a .safetensors file; an index
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

/* An open checkpoint as one that DeepSpeed 0.19 reads, at folder/tag, committed as our own are. Stage 0: a universal
   checkpoint, named by `latest_universal`, from which DeepSpeed goes on training at any world size and stage (stage 3 at up
   to `ranks`), its "checkpoint": {"load_universal": true}. Stages 1 to 3: the files of `ranks` ranks (0: one), which its
   zero_to_fp32.py reads. Weights and states are fp32; tensors that have no state (when some have) go as buffers. The first
   group's rate goes along, betas and the like are DeepSpeed's configuration's, and its loss scale starts anew. The hooks are those of `from`.
   Errors: DS_ERR_ARGUMENT, DS_ERR_UNSUPPORTED (a dtype that torch lacks, a name that is no folder's), and those of
   ds_checkpoint_read and ds_checkpoint_commit. */
DS_API ds_status ds_deepspeed_write(ds_checkpoint *from, const char *folder, const char *tag, int stage, int ranks,
                                    ds_error *error);

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
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
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
#define DSI_JSON_DEPTH       1000                 /* containers inside each other */
#define DSI_JSON_NUMBER_ROOM 32                   /* bytes that a printed number needs at most, its NUL included */
#define DSI_JSON_BYTES       ((size_t)0x7FFFFFFE) /* of a text at most */

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
    char *end, *spare; /* strings with escapes are decoded to `spare`, so that lines can be counted in the text */
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

/* Whole numbers of up to 5,120 bits. An exact comparison needs 4,000 at most: 800 digits and a shift by 1,075, or 2^54 times
   10^1161. */
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
    if (carry) big->limb[big->used++] = (uint32_t)carry;
}
DSI_FN void dsi_json_big_ten(dsi_json_big *big, int power) {
    for (; power >= 9; power -= 9) dsi_json_big_mul_add(big, 1000000000u, 0);
    for (; power > 0; power--) dsi_json_big_mul_add(big, 10, 0);
}
DSI_FN void dsi_json_big_shift(dsi_json_big *big, int bits) {
    uint32_t words = (uint32_t)bits / 32;
    dsi_json_big_mul_add(big, 1u << (bits % 32), 0);
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

/* The upper half of a 128-bit product, cut, with its top bit set; *exponent counts the bits dropped. */
DSI_FN uint64_t dsi_json_mul_high(uint64_t a, uint64_t b, int *exponent, uint64_t *error) {
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 wide;
    wide product = (wide)a * b;
    uint64_t high = (uint64_t)(product >> 64), low = (uint64_t)product;
#else
    uint64_t a1 = a >> 32, a0 = a & 0xFFFFFFFFu, b1 = b >> 32, b0 = b & 0xFFFFFFFFu;
    uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (middle & 0xFFFFFFFFu);
    uint64_t high = a1 * b1 + (middle >> 32) + (other >> 32), low = other << 32;
#endif
    *exponent += 64;
    *error += 2; /* what b lacks, and what the lower half held */
    if (!(high >> 63)) {
        high = high << 1 | low >> 63;
        *exponent -= 1;
        *error *= 2;
    }
    return high;
}

/* Decides between mantissa and mantissa + 1 (in units of 2^exponent) for a decimal number: its digits, without the
   point, times 10^ten, against the middle. Digits beyond 800 only say that the number is larger than what they follow. */
DSI_FN bool dsi_json_round_up(const char *digits, size_t length, int64_t ten, uint64_t mantissa, int exponent) {
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
        dsi_json_big_ten(&number, (int)ten);
    else
        dsi_json_big_ten(&middle, (int)-ten);
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
DSI_FN double dsi_json_nearest(const char *digits, size_t length, int64_t ten, uint64_t lead, int64_t lead_ten,
                               bool cut) {
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
    k = (int)(lead_ten + 23 * 16) / 16 - 23;
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

/* Takes digits into *lead, eight at a time; more than 19 wrap around. Returns the end of the digits. */
DSI_FN const char *dsi_json_take_digits(const char *at, uint64_t *lead) {
    uint64_t sum = *lead;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    for (;; at += 8) {
        uint64_t v;
        memcpy(&v, at, 8);
        if (((v & 0xF0F0F0F0F0F0F0F0u) | ((v + 0x0606060606060606u) & 0xF0F0F0F0F0F0F0F0u) >> 4) != 0x3333333333333333u)
            break;
        v = (v & 0x0F0F0F0F0F0F0F0Fu) * (10 * 256 + 1) >> 8;
        v = (v & 0x00FF00FF00FF00FFu) * (100 * 65536 + 1) >> 16;
        sum = 100000000 * sum + ((v & 0x0000FFFF0000FFFFu) * (((uint64_t)10000 << 32) + 1) >> 32);
    }
#endif
    for (; (unsigned)(*at - '0') <= 9; at++) sum = 10 * sum + (unsigned)(*at - '0');
    *lead = sum;
    return at;
}

/* The first 19 digits of a longer number, zeros in front not counted. Returns how many follow; *cut: not all are zeros. */
DSI_FN int64_t dsi_json_cut(const char *digits, const char *end, uint64_t *lead, bool *cut) {
    int64_t skipped = 0;
    int seen = 0;
    *lead = 0;
    for (; digits < end; digits++) {
        if (*digits == '.') continue;
        if (seen < 19) {
            *lead = 10 * *lead + (uint64_t)(*digits - '0');
            seen += *lead != 0;
        } else {
            skipped++;
            *cut |= *digits != '0';
        }
    }
    return skipped;
}

/* A number at `at`, a digit or '-', with eight bytes that may be read behind it. Fills the node's type, length and value;
   NULL, or what is wrong with it at *stop. */
DSI_FN const char *dsi_json_read_number(const char *at, dsi_json_node *node, const char **stop) {
    bool negative = *at == '-', real = false, cut = false;
    const char *digits = at + negative, *end, *p = digits;
    int64_t power = 0, skipped = 0, exponent = 0;
    uint64_t lead = 0;
    *stop = p;
    if (*p < '0' || *p > '9') return "expected a digit after '-'";
    if (*p == '0' && p[1] >= '0' && p[1] <= '9') return "a number may not start with 0";
    p = dsi_json_take_digits(p, &lead);
    if (*p == '.') {
        const char *point = p;
        p = dsi_json_take_digits(point + 1, &lead);
        power = point + 1 - p;
        real = true;
        if (!power) return *stop = p, "expected a digit after the decimal point";
    }
    end = p;
    if (end - digits - real - (*digits == '0') > 19) skipped = dsi_json_cut(digits, end, &lead, &cut);
    if (*p == 'e' || *p == 'E') {
        bool minus = *++p == '-';
        p += *p == '-' || *p == '+';
        if (*p < '0' || *p > '9') return *stop = p, "expected a digit in the exponent";
        for (; *p >= '0' && *p <= '9'; p++)
            if (exponent < INT64_C(10000000000)) exponent = 10 * exponent + (*p - '0');
        power += minus ? -exponent : exponent;
        real = true;
    }
    *stop = p;
    node->length = (uint32_t)(p - at);
    if (!real && !skipped && lead <= (uint64_t)INT64_MAX + negative && !(negative && !lead)) {
        node->type = DSI_JSON_INT;
        node->as.integer = negative ? (int64_t)(0 - lead) : (int64_t)lead;
        return NULL;
    }
    node->type = DSI_JSON_REAL;
    node->as.real = dsi_json_nearest(digits, (size_t)(end - digits), power, lead, power + skipped, cut);
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

/* Notes what is wrong at `at`, and returns NULL. */
DSI_FN char *dsi_json_fail(dsi_json_reader *r, const char *at, const char *why) {
    r->doc->fault = (size_t)(at - r->doc->text);
    r->doc->why = why;
    return NULL;
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

/* The functions from here on read at `at`, and return where they stopped, or NULL after a failure. */

/* One escape; `at` is behind the backslash. Appends what it means to r->spare. */
DSI_FN char *dsi_json_escape(dsi_json_reader *r, char *at) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *found = *at ? strchr(from, *at) : NULL;
    uint32_t code, low;
    if (found) {
        *r->spare++ = to[found - from];
        return at + 1;
    }
    if (*at != 'u') return dsi_json_fail(r, at - 1, "unknown escape in a string");
    code = dsi_json_hex(at + 1);
    if (code == UINT32_MAX) return dsi_json_fail(r, at - 1, "\\u needs four hexadecimal digits");
    if (code >= 0xDC00 && code <= 0xDFFF) return dsi_json_fail(r, at - 1, "the second half of a surrogate pair alone");
    at += 5;
    if (code >= 0xD800 && code <= 0xDBFF) {
        low = at[0] == '\\' && at[1] == 'u' ? dsi_json_hex(at + 2) : 0;
        if (low < 0xDC00 || low > 0xDFFF) return dsi_json_fail(r, at - 6, "the first half of a surrogate pair alone");
        code = 0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF);
        at += 6;
    }
    if (code < 0x80)
        *r->spare++ = (char)code;
    else {
        unsigned count = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        *r->spare++ = (char)(code >> 6 * count | (0xFFu << (7 - count) & 0xFF));
        while (count-- > 0) *r->spare++ = (char)(0x80 | (code >> 6 * count & 0x3F));
    }
    return at;
}

/* Steps over the plain bytes of a string to a quote, a backslash, a control or non-ASCII byte. The text's copy is padded
   with zeros, so that reading past its end is safe and stops there. */
DSI_FN char *dsi_json_plain(char *at) {
#if defined(__SSE2__)
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'), blank = _mm_set1_epi8(' ');
    for (;; at += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)at);
        __m128i special = _mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, slash));
        int mask = _mm_movemask_epi8(_mm_or_si128(special, _mm_cmplt_epi8(v, blank))); /* signed: 0x80 and above too */
        if (mask) return at + __builtin_ctz((unsigned)mask);
    }
#else
    const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
    for (;; at += 8) {
        uint64_t v, quote, slash;
        memcpy(&v, at, 8);
        quote = v ^ (ones * '"');
        slash = v ^ (ones * '\\');
        if ((((quote - ones) & ~quote) | ((slash - ones) & ~slash) | ((v - ones * 0x20) & ~v) | v) & tops) break;
    }
    while ((unsigned char)*at >= 0x20 && (unsigned char)*at < 0x80 && *at != '"' && *at != '\\') at++;
    return at;
#endif
}

/* A string; `at` is at its opening quote. */
DSI_FN char *dsi_json_read_string(dsi_json_reader *r, char *at, dsi_json_node *node) {
    char *open = at, *out = NULL, *from = ++at;
    node->type = DSI_JSON_STRING;
    for (;;) {
        unsigned char c;
        at = dsi_json_plain(at);
        c = (unsigned char)*at;
        if (c == '"' && !out) break;
        if (c >= 0x80) {
            unsigned length = dsi_json_utf8(at);
            if (!length) return dsi_json_fail(r, at, "malformed UTF-8 in a string");
            at += length;
            continue;
        }
        if (c < 0x20) {
            if (at >= r->end) return dsi_json_fail(r, open, "this string does not end");
            return dsi_json_fail(r, at, "a control character in a string must be escaped");
        }
        if (!out) out = r->spare;
        memcpy(r->spare, from, (size_t)(at - from));
        r->spare += at - from;
        at++;
        if (c == '"') {
            *r->spare++ = 0;
            node->as.text = out;
            node->length = (uint32_t)(r->spare - 1 - out);
            return at;
        }
        if (!(at = dsi_json_escape(r, at))) return NULL;
        from = at;
    }
    *at = 0;
    node->as.text = from;
    node->length = (uint32_t)(at - from);
    return at + 1;
}

/* Steps over blanks and, where accepted, comments. At a comment that does not end it stops. */
DSI_FN char *dsi_json_skip_more(const dsi_json_reader *r, char *at) {
    for (;;) {
        char *p;
        while (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r') at++;
        if (!(r->flags & DSI_JSON_COMMENTS) || (*at != '/' && *at != '#')) return at;
        p = at;
        if (*p == '#' || p[1] == '/') {
            while (p < r->end && *p != '\n') p++;
        } else if (p[1] == '*') {
            for (p += 2; p < r->end && (*p != '*' || p[1] != '/'); p++) {}
            if (p >= r->end) return at;
            p += 2;
        } else
            return at;
        at = p;
    }
}
static inline char *dsi_json_skip(const dsi_json_reader *r, char *at) {
    if (*at == ' ') at++;
    return *at > ' ' && *at != '/' && *at != '#' ? at : dsi_json_skip_more(r, at);
}

DSI_FN const char *dsi_json_no_value(const dsi_json_reader *r, const char *p) {
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

/* One value; a container is opened and becomes r->parent. */
DSI_FN char *dsi_json_read_value(dsi_json_reader *r, char *at) {
    dsi_json_node *node = r->doc->nodes + r->doc->count;
    const char *stop, *why;
    at = dsi_json_skip(r, at);
    node->offset = (uint32_t)(at - r->doc->text);
    node->next = ++r->doc->count;
    if (*at == '"') return dsi_json_read_string(r, at, node);
    node->length = 0;
    node->as.integer = 0;
    if (*at == '{' || *at == '[') {
        node->type = *at == '{' ? DSI_JSON_OBJECT : DSI_JSON_ARRAY;
        node->next = r->parent;
        r->parent = r->doc->count - 1;
        if (++r->depth > r->max_depth) return dsi_json_fail(r, at, "too many containers inside each other");
        return at + 1;
    }
    if (!memcmp(at, "true", 4)) return node->type = DSI_JSON_TRUE, at + 4;
    if (!memcmp(at, "false", 5)) return node->type = DSI_JSON_FALSE, at + 5;
    if (!memcmp(at, "null", 4)) return node->type = DSI_JSON_NULL, at + 4;
    if ((*at < '0' || *at > '9') && (*at != '-' || at[1] == 'I')) return dsi_json_fail(r, at, dsi_json_no_value(r, at));
    why = dsi_json_read_number(at, node, &stop);
    if (why) return dsi_json_fail(r, stop, why);
    return at + (stop - at);
}

DSI_FN char *dsi_json_read_key(dsi_json_reader *r, char *at) {
    dsi_json_node *node = r->doc->nodes + r->doc->count;
    if (*at != '"') return dsi_json_fail(r, at, "expected a key in double quotes");
    node->offset = (uint32_t)(at - r->doc->text);
    node->next = ++r->doc->count;
    if (!(at = dsi_json_read_string(r, at, node))) return NULL;
    at = dsi_json_skip(r, at);
    if (*at != ':') return dsi_json_fail(r, at, "expected ':' after the key");
    return at + 1;
}

/* What follows a value (or, `opened`, an opening bracket), up to the next one: commas, closing brackets, the next key.
   At the end of the text r->depth is 0. */
DSI_FN char *dsi_json_read_rest(dsi_json_reader *r, char *at, bool opened) {
    for (;; opened = false) {
        dsi_json_node *parent;
        char close;
        at = dsi_json_skip(r, at);
        if (!r->depth) return at < r->end ? dsi_json_fail(r, at, "the text goes on after its value") : at;
        parent = r->doc->nodes + r->parent;
        close = parent->type == DSI_JSON_OBJECT ? '}' : ']';
        if (!opened) {
            parent->length++;
            if (*at == ',') {
                at = dsi_json_skip(r, at + 1);
                opened = true;
                if (*at == close && !(r->flags & DSI_JSON_COMMAS))
                    return dsi_json_fail(r, at, "a comma before the closing bracket");
            } else if (*at != close)
                return dsi_json_fail(r, at, close == '}' ? "expected ',' or '}'" : "expected ',' or ']'");
        }
        if (*at != close) return close == '}' ? dsi_json_read_key(r, at) : at;
        at++;
        r->parent = parent->next;
        parent->next = r->doc->count;
        r->depth--;
    }
}

/* Bytes of memory that dsi_json_read needs: at most one node for each comma, colon and opening bracket and one more,
   the copy of the text, and room for decoded strings. */
DSI_FN size_t dsi_json_room(const char *text, size_t bytes) {
    size_t nodes = 2, i = 0;
#if defined(__SSE2__)
    const __m128i comma = _mm_set1_epi8(','), colon = _mm_set1_epi8(':'), bit = _mm_set1_epi8(0x20),
                  brace = _mm_set1_epi8('{'), zero = _mm_setzero_si128();
    __m128i sum = zero; /* two counts */
    uint64_t halves[2];
    for (; i + 16 <= bytes; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(text + i));
        __m128i found = _mm_or_si128(_mm_cmpeq_epi8(v, comma), _mm_cmpeq_epi8(v, colon)); /* -1 in each such byte */
        found = _mm_or_si128(found, _mm_cmpeq_epi8(_mm_or_si128(v, bit), brace));
        sum = _mm_add_epi64(sum, _mm_sad_epu8(_mm_sub_epi8(zero, found), zero));
    }
    memcpy(halves, &sum, sizeof halves);
    nodes += (size_t)(halves[0] + halves[1]);
#else
    const uint64_t low = 0x7F7F7F7F7F7F7F7Fu, ones = 0x0101010101010101u;
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
#endif
    for (; i < bytes; i++) nodes += text[i] == ',' || text[i] == ':' || text[i] == '[' || text[i] == '{';
    return dsi_add(dsi_mul(nodes, sizeof(dsi_json_node)), dsi_add(memchr(text, '\\', bytes) ? 2 * bytes : bytes, 16));
}

/* Reads a text of at most DSI_JSON_BYTES into `memory` of dsi_json_room bytes, aligned to 8. False: doc->fault and doc->why say where and why. */
DSI_FN bool dsi_json_read(dsi_json *doc, void *memory, size_t room, const char *text, size_t bytes, unsigned flags,
                          unsigned max_depth) {
    dsi_json_reader r;
    size_t copies = memchr(text, '\\', bytes) ? 2 * bytes : bytes;
    char *at;
    memset(doc, 0, sizeof *doc);
    memset(&r, 0, sizeof r);
    doc->nodes = (dsi_json_node *)memory;
    doc->text = (char *)memory + (room - copies - 16);
    doc->bytes = bytes;
    r.doc = doc;
    memcpy(doc->text, text, bytes);
    memset(doc->text + bytes, 0, 16);
    r.end = doc->text + bytes;
    r.spare = r.end + 8;
    r.max_depth = max_depth;
    r.flags = flags;
    at = doc->text;
    do {
        uint32_t before = r.depth;
        at = dsi_json_read_value(&r, at);
        if (at) at = dsi_json_read_rest(&r, at, r.depth > before);
    } while (at && r.depth);
    return at != NULL;
}

/* Line and column, both from 1; a column is a UTF-8 character. */
DSI_FN void dsi_json_position(const dsi_json *doc, size_t offset, int *line, int *column) {
    *line = *column = 1;
    for (size_t i = 0; i < offset; i++) {
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
    size_t room, fault;
    const char *why;
    void *memory;
    int line, column;
    memset(doc, 0, sizeof *doc);
    if (bytes > DSI_JSON_BYTES)
        return dsi_fail(error, DS_ERR_INPUT, "1:1: the text has %zu bytes, 2 GiB or more", bytes);
    room = dsi_json_room(text, bytes);
    memory = dsi_alloc(allocator, room);
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
    size_t left = sink->length < sink->room ? sink->room - sink->length : 0;
    if (left) memcpy(sink->out + sink->length, text, bytes < left ? bytes : left);
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
#include <sys/mman.h>

// >>calls: files and lists

#define DSI_CHECKPOINT_BLOCK      ((size_t)1 << 18) /* bytes under one checksum: they stay in a core's cache meanwhile */
#define DSI_CHECKPOINT_TWO        ((size_t)16)      /* blocks that are worth a second thread */
#define DSI_CHECKPOINT_LARGE      ((size_t)16 << 20) /* data of a file that is written past the page cache */
#define DSI_CHECKPOINT_BUCKETS    ((size_t)8)
#define DSI_CHECKPOINT_BUCKET     ((size_t)1 << 20)
#define DSI_CHECKPOINT_PAGE       ((size_t)2 << 20) /* a huge page: O_DIRECT from one is up to twice as fast */
#define DSI_CHECKPOINT_SECTOR     ((size_t)4096)    /* what O_DIRECT asks of addresses, sizes and offsets */
#define DSI_CHECKPOINT_CHUNK      ((size_t)65536)   /* elements that ds_checkpoint_tensor.read gives at once */
#define DSI_CHECKPOINT_PATH       4096
#define DSI_CHECKPOINT_FOLDER     3072 /* bytes of a path from outside; the rest is for what is below it */
#define DSI_CHECKPOINT_TAG        200
#define DSI_CHECKPOINT_HEADER     100000000u /* the format's own limit; a manifest's and a pickle's too */
#define DSI_CHECKPOINT_OPEN       64         /* files kept open by a reader */
#define DSI_CHECKPOINT_NONE       SIZE_MAX
#define DSI_CHECKPOINT_SHARD_NAME 40
#if defined(O_DIRECT)
#define DSI_CHECKPOINT_DIRECT O_DIRECT
#elif defined(__O_DIRECT)
#define DSI_CHECKPOINT_DIRECT __O_DIRECT /* gnu99 without _GNU_SOURCE shows only this */
#else
#define DSI_CHECKPOINT_DIRECT 0 /* then the page cache is between, and nothing else differs */
#endif

static ds_status dsi_checkpoint_failed(ds_error *error, int64_t result, const char *doing, const char *path) {
    const int code = (int)-result;
    const ds_status status = code == ENOSPC || code == EDQUOT ? DS_ERR_SPACE
                             : code == ENOMEM                 ? DS_ERR_MEMORY
                                                              : DS_ERR_IO;
    return dsi_fail(error, status, "%s '%.300s': %s", doing, path, strerror(code));
}
static ds_status dsi_checkpoint_no_memory(ds_error *error, const char *what) {
    return dsi_fail(error, DS_ERR_MEMORY, "no memory for %s", what);
}

/* An array that grows by doubling. Items are zeroed; their addresses change as it grows. */
typedef struct dsi_checkpoint_list {
    char *items;
    size_t count, room, each;
} dsi_checkpoint_list;

static void *dsi_checkpoint_push(const ds_allocator *a, dsi_checkpoint_list *list, size_t n) {
    const size_t needed = dsi_add(list->count, n);
    if (needed > list->room) {
        const size_t room = needed > 2 * list->room ? dsi_add(needed, 8) : 2 * list->room;
        char *items = (char *)dsi_alloc(a, dsi_mul(room, list->each));
        if (!items) return NULL;
        if (list->count) memcpy(items, list->items, list->count * list->each);
        dsi_release(a, list->items, list->room * list->each);
        list->items = items;
        list->room = room;
    }
    memset(list->items + list->count * list->each, 0, n * list->each);
    list->count = needed;
    return list->items + (needed - n) * list->each;
}
static void dsi_checkpoint_list_free(const ds_allocator *a, dsi_checkpoint_list *list) {
    dsi_release(a, list->items, list->room * list->each);
    list->items = NULL;
    list->count = list->room = 0;
}
static char *dsi_checkpoint_copy_text(const ds_allocator *a, const char *text) {
    const size_t bytes = strlen(text) + 1;
    char *copy = (char *)dsi_alloc(a, bytes);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}
static void dsi_checkpoint_free_text(const ds_allocator *a, const char *text) {
    if (text) dsi_release(a, (void *)(uintptr_t)text, strlen(text) + 1);
}

/* Finds items of a list by name; an item's first member is `const char *name`. Open addressing, at most half full. */
typedef struct dsi_checkpoint_index {
    size_t *slots; /* item + 1; 0 is empty */
    size_t room;
} dsi_checkpoint_index;

static const char *dsi_checkpoint_name(const dsi_checkpoint_list *list, size_t i) {
    const char *name;
    memcpy(&name, list->items + i * list->each, sizeof name);
    return name;
}
static size_t dsi_checkpoint_slot(const dsi_checkpoint_index *index, const dsi_checkpoint_list *list,
                                  const char *name) {
    size_t at = dsi_crc32c(0, name, strlen(name)) & (index->room - 1);
    while (index->slots[at] && strcmp(dsi_checkpoint_name(list, index->slots[at] - 1), name) != 0)
        at = (at + 1) & (index->room - 1);
    return at;
}
static size_t dsi_checkpoint_lookup(const dsi_checkpoint_index *index, const dsi_checkpoint_list *list,
                                    const char *name) {
    size_t found;
    if (!index->room) return DSI_CHECKPOINT_NONE;
    found = index->slots[dsi_checkpoint_slot(index, list, name)];
    return found ? found - 1 : DSI_CHECKPOINT_NONE;
}
/* Enters the list's last item. */
static bool dsi_checkpoint_enter(const ds_allocator *a, dsi_checkpoint_index *index, const dsi_checkpoint_list *list) {
    if (2 * list->count > index->room) {
        dsi_checkpoint_index wider;
        wider.room = index->room ? 2 * index->room : 64;
        wider.slots = (size_t *)dsi_alloc_zero(a, wider.room * sizeof(size_t));
        if (!wider.slots) return false;
        for (size_t i = 0; i + 1 < list->count; i++)
            wider.slots[dsi_checkpoint_slot(&wider, list, dsi_checkpoint_name(list, i))] = i + 1;
        dsi_release(a, index->slots, index->room * sizeof(size_t));
        *index = wider;
    }
    index->slots[dsi_checkpoint_slot(index, list, dsi_checkpoint_name(list, list->count - 1))] = list->count;
    return true;
}
static void dsi_checkpoint_index_free(const ds_allocator *a, dsi_checkpoint_index *index) {
    dsi_release(a, index->slots, index->room * sizeof(size_t));
    index->slots = NULL;
    index->room = 0;
}

/* folder/name, or folder alone. Ours fit; one that does not (folders below ours that go too deep) is no path at all. */
static void dsi_checkpoint_join(char out[DSI_CHECKPOINT_PATH], const char *folder, const char *name) {
    const size_t folder_bytes = strlen(folder), name_bytes = strlen(name);
    out[0] = 0;
    if (folder_bytes + name_bytes + 2 > DSI_CHECKPOINT_PATH) return;
    memcpy(out, folder, folder_bytes);
    if (name_bytes) out[folder_bytes] = '/';
    memcpy(out + folder_bytes + (name_bytes != 0), name, name_bytes + 1);
}
/* "a/b.safetensors" -> "a" and "b.safetensors". */
static const char *dsi_checkpoint_split(const char *path, char folder[DSI_CHECKPOINT_PATH]) {
    const char *slash = strrchr(path, '/');
    snprintf(folder, DSI_CHECKPOINT_PATH, "%.*s", slash ? (int)(slash - path + (slash == path)) : 1,
             slash ? path : ".");
    return slash ? slash + 1 : path;
}

/* Whether a path from outside is a text of a length that leaves room for names below it. */
static bool dsi_checkpoint_good_path(const char *path) {
    return path && path[0] && strlen(path) <= DSI_CHECKPOINT_FOLDER;
}

static ds_status dsi_checkpoint_put(const ds_checkpoint_desc *d, int fd, const char *path, const void *data,
                                    size_t bytes, uint64_t offset, ds_error *error) {
    const char *p = (const char *)data;
    while (bytes) {
        const int64_t n = d->files.write(d->files.ctx, fd, p, bytes, (int64_t)offset);
        if (n < 0) {
            ds_error why;
            dsi_checkpoint_failed(&why, n, "write to", path);
            return dsi_fail(error, why.status, "%.400s (at byte %llu)", why.message, (unsigned long long)offset);
        }
        if (n == 0 || (uint64_t)n > bytes)
            return dsi_fail(error, DS_ERR_IO, "write to '%.300s': nothing was written at byte %llu", path,
                            (unsigned long long)offset);
        p += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return DS_OK;
}
static ds_status dsi_checkpoint_take(const ds_checkpoint_desc *d, int fd, const char *path, void *out, size_t bytes,
                                     uint64_t offset, ds_error *error) {
    char *p = (char *)out;
    while (bytes) {
        const int64_t n = d->files.read(d->files.ctx, fd, p, bytes, (int64_t)offset);
        if (n < 0) return dsi_checkpoint_failed(error, n, "read", path);
        if (n == 0 || (uint64_t)n > bytes)
            return dsi_fail(error, DS_ERR_CORRUPT, "'%.300s' ends at byte %llu; %zu more were expected", path,
                            (unsigned long long)offset, bytes);
        p += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return DS_OK;
}

static ds_status dsi_checkpoint_sync_folder(const ds_checkpoint_desc *d, const char *path, ds_error *error) {
    const int fd = d->files.open(d->files.ctx, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    int result;
    if (fd < 0) return dsi_checkpoint_failed(error, fd, "open the folder", path);
    result = d->files.sync(d->files.ctx, fd);
    d->files.close(d->files.ctx, fd);
    if (result < 0 && result != -EINVAL) /* some file systems cannot sync a folder */
        return dsi_checkpoint_failed(error, result, "sync the folder", path);
    return DS_OK;
}
/* Syncs and closes a written file; its first failure counts. After a failed sync nothing may be retried on it. */
static ds_status dsi_checkpoint_close_written(const ds_checkpoint_desc *d, int fd, const char *path, ds_status status,
                                              ds_error *error) {
    int result = status ? 0 : d->files.sync(d->files.ctx, fd);
    if (result < 0) status = dsi_checkpoint_failed(error, result, "sync", path);
    result = d->files.close(d->files.ctx, fd);
    if (result < 0 && !status) status = dsi_checkpoint_failed(error, result, "close", path);
    return status;
}
static int dsi_checkpoint_create(const ds_checkpoint_desc *d, const char *path) {
    return d->files.open(d->files.ctx, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
}
static ds_status dsi_checkpoint_write_file(const ds_checkpoint_desc *d, const char *path, const char *text,
                                           size_t bytes, ds_error *error) {
    const int fd = dsi_checkpoint_create(d, path);
    if (fd < 0) return dsi_checkpoint_failed(error, fd, "create", path);
    return dsi_checkpoint_close_written(d, fd, path, dsi_checkpoint_put(d, fd, path, text, bytes, 0, error), error);
}
/* Replaces folder/name by a new file in one step: folder/name.tmp, synced and renamed. */
static ds_status dsi_checkpoint_replace_file(const ds_checkpoint_desc *d, const char *folder, const char *name,
                                             const char *text, size_t bytes, ds_error *error) {
    char path[DSI_CHECKPOINT_PATH], made[DSI_CHECKPOINT_PATH];
    ds_status status;
    int result;
    dsi_checkpoint_join(path, folder, name);
    snprintf(made, sizeof made, "%.4000s.tmp", path);
    status = dsi_checkpoint_write_file(d, made, text, bytes, error);
    if (!status && (result = d->files.rename(d->files.ctx, made, path)) < 0)
        status = dsi_checkpoint_failed(error, result, "rename to", path);
    if (status) d->files.unlink(d->files.ctx, made);
    return status ? status : dsi_checkpoint_sync_folder(d, folder, error);
}

/* A file's whole text; it must be a plain file, or a link to one where links are allowed, of at most `limit` bytes. */
static ds_status dsi_checkpoint_read_file(const ds_checkpoint_desc *d, const char *path, bool links, size_t limit,
                                          char **text, size_t *bytes, ds_error *error) {
    ds_status status;
    int64_t size;
    int fd, kind = d->files.exists(d->files.ctx, path);
    *text = NULL;
    *bytes = 0;
    if (kind < 0) return dsi_checkpoint_failed(error, kind, "look at", path);
    if (kind != 1 && !(kind == 3 && links))
        return dsi_fail(error, kind ? DS_ERR_CORRUPT : DS_ERR_INPUT, "'%.300s' %s", path,
                        kind ? "is not a plain file" : "is not there");
    fd = d->files.open(d->files.ctx, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (links ? 0 : O_NOFOLLOW), 0);
    if (fd < 0) return dsi_checkpoint_failed(error, fd, "open", path);
    size = d->files.size(d->files.ctx, fd);
    if (size < 0)
        status = dsi_checkpoint_failed(error, size, "measure", path);
    else if ((uint64_t)size > limit)
        status = dsi_fail(error, DS_ERR_CORRUPT, "'%.300s' has %lld bytes, more than the %zu it may have", path,
                          (long long)size, limit);
    else if (!(*text = (char *)dsi_alloc(&d->allocator, (size_t)size + 1)))
        status = dsi_checkpoint_no_memory(error, path);
    else {
        *bytes = (size_t)size;
        (*text)[*bytes] = 0;
        status = dsi_checkpoint_take(d, fd, path, *text, *bytes, 0, error);
    }
    d->files.close(d->files.ctx, fd);
    if (status) {
        dsi_release(&d->allocator, *text, *bytes + 1);
        *text = NULL;
    }
    return status;
}

/* The names in a folder, one after the other with their NULs. */
typedef struct dsi_checkpoint_names {
    const ds_allocator *allocator;
    dsi_checkpoint_list text;
    bool failed;
} dsi_checkpoint_names;
static void dsi_checkpoint_take_name(void *arg, const char *name) {
    dsi_checkpoint_names *names = (dsi_checkpoint_names *)arg;
    const size_t bytes = strlen(name) + 1;
    char *to = names->failed ? NULL : (char *)dsi_checkpoint_push(names->allocator, &names->text, bytes);
    if (to)
        memcpy(to, name, bytes);
    else
        names->failed = true;
}
static ds_status dsi_checkpoint_list_folder(const ds_checkpoint_desc *d, const char *path, dsi_checkpoint_names *names,
                                            ds_error *error) {
    int result;
    memset(names, 0, sizeof *names);
    names->allocator = &d->allocator;
    names->text.each = 1;
    result = d->files.list(d->files.ctx, path, dsi_checkpoint_take_name, names);
    if (result >= 0 && !names->failed) return DS_OK;
    dsi_checkpoint_list_free(&d->allocator, &names->text);
    return result < 0 ? dsi_checkpoint_failed(error, result, "list", path)
                      : dsi_checkpoint_no_memory(error, "a list of files");
}
static const char *dsi_checkpoint_next_name(const dsi_checkpoint_names *names, size_t *at) {
    const char *name = names->text.items + *at;
    if (*at >= names->text.count) return NULL;
    *at += strlen(name) + 1;
    return name;
}

/* Removes a file or a folder with what is in it, the manifest first: a tag without it is no tag. Links are removed, not
   followed. What is not there is fine. */
static ds_status dsi_checkpoint_remove(const ds_checkpoint_desc *d, const char *path, int depth, ds_error *error) {
    dsi_checkpoint_names names;
    char inner[DSI_CHECKPOINT_PATH];
    const char *name;
    ds_status status;
    size_t at = 0;
    int result = d->files.exists(d->files.ctx, path);
    if (result == 0) return DS_OK;
    if (result < 0) return dsi_checkpoint_failed(error, result, "look at", path);
    if (result != 2) {
        result = d->files.unlink(d->files.ctx, path);
        return result < 0 && result != -ENOENT ? dsi_checkpoint_failed(error, result, "remove", path) : DS_OK;
    }
    if (depth == 0) return dsi_fail(error, DS_ERR_IO, "remove '%.300s': its folders go too deep to be ours", path);
    dsi_checkpoint_join(inner, path, "manifest.json");
    status = dsi_checkpoint_remove(d, inner, depth - 1, error);
    if (!status) status = dsi_checkpoint_list_folder(d, path, &names, error);
    if (status) return status;
    while (!status && (name = dsi_checkpoint_next_name(&names, &at)) != NULL) {
        dsi_checkpoint_join(inner, path, name);
        status = dsi_checkpoint_remove(d, inner, depth - 1, error);
    }
    dsi_checkpoint_list_free(&d->allocator, &names.text);
    if (!status && (result = d->files.rmdir(d->files.ctx, path)) < 0)
        status = dsi_checkpoint_failed(error, result, "remove the folder", path);
    return status;
}
#define DSI_CHECKPOINT_DEPTH 4

/* Makes a folder and those above it. */
static ds_status dsi_checkpoint_make_folder(const ds_checkpoint_desc *d, const char *path, ds_error *error) {
    char part[DSI_CHECKPOINT_PATH];
    const size_t length = strlen(path);
    for (size_t i = 1; i <= length; i++) {
        int result;
        if (path[i] && path[i] != '/') continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (d->files.exists(d->files.ctx, part) == 2) continue;
        result = d->files.mkdir(d->files.ctx, part, 0777);
        if (result < 0 && result != -EEXIST) return dsi_checkpoint_failed(error, result, "make the folder", part);
    }
    return DS_OK;
}

/* A name that is one component of a path and none of ours: a tag, or a shard in an index. */
static bool dsi_checkpoint_plain_name(const char *name, size_t limit) {
    const size_t length = strlen(name);
    if (!length || length > limit || name[0] == '.') return false;
    for (size_t i = 0; i < length; i++)
        if (name[i] == '/' || name[i] == '\\' || (unsigned char)name[i] < 32) return false;
    return true;
}
/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF. */
static bool dsi_checkpoint_utf8(const char *text) {
    const unsigned char *p = (const unsigned char *)text;
    while (*p) {
        const int more = *p < 0x80                 ? 0
                         : *p >= 0xC2 && *p < 0xE0 ? 1
                         : (*p & 0xF0) == 0xE0     ? 2
                         : *p >= 0xF0 && *p < 0xF5 ? 3
                                                   : -1;
        if (more < 0 || (*p == 0xE0 && p[1] < 0xA0) || (*p == 0xED && p[1] > 0x9F) || (*p == 0xF0 && p[1] < 0x90) ||
            (*p == 0xF4 && p[1] > 0x8F))
            return false;
        p++;
        for (int i = 0; i < more; i++)
            if ((*p++ & 0xC0) != 0x80) return false;
    }
    return true;
}
DS_API bool ds_checkpoint_good_name(const char *name) {
    return name && name[0] && dsi_checkpoint_utf8(name) && strcmp(name, "__metadata__") != 0;
}
static bool dsi_checkpoint_ends(const char *text, const char *end) {
    const size_t length = strlen(text), n = strlen(end);
    return length >= n && !strcmp(text + length - n, end);
}
static bool dsi_checkpoint_good_tag(const char *tag) {
    return tag && dsi_checkpoint_plain_name(tag, DSI_CHECKPOINT_TAG) && dsi_checkpoint_utf8(tag) &&
           !dsi_checkpoint_ends(tag, ".tmp") && !dsi_checkpoint_ends(tag, ".old") && strcmp(tag, "latest") != 0 &&
           strcmp(tag, "latest_universal") != 0;
}

// >>dtypes

/* The format's names; those without a type of ours are known by their size alone. */
static const struct {
    const char *name;
    int bits, dtype;
} dsi_checkpoint_dtypes[] = {
    {"F32", 32, DS_F32},    {"F16", 16, DS_F16}, {"BF16", 16, DS_BF16}, {"F64", 64, DS_F64}, {"I8", 8, DS_I8},
    {"U8", 8, DS_U8},       {"I16", 16, DS_I16}, {"U16", 16, DS_U16},   {"I32", 32, DS_I32}, {"U32", 32, DS_U32},
    {"I64", 64, DS_I64},    {"U64", 64, DS_U64}, {"BOOL", 8, DS_BOOL},  {"F4", 4, -1},       {"F6_E2M3", 6, -1},
    {"F6_E3M2", 6, -1},     {"F8_E5M2", 8, -1},  {"F8_E4M3", 8, -1},    {"F8_E8M0", 8, -1},  {"F8_E4M3FNUZ", 8, -1},
    {"F8_E5M2FNUZ", 8, -1}, {"C64", 64, -1},
};
#define DSI_CHECKPOINT_DTYPES (sizeof dsi_checkpoint_dtypes / sizeof dsi_checkpoint_dtypes[0])

/* The product of a shape; false when it does not fit. */
static bool dsi_checkpoint_numel(const size_t *shape, int dims, size_t *numel) {
    bool fits = true, empty = false;
    *numel = 1;
    for (int i = 0; i < dims; i++) {
        if (shape[i] == 0)
            empty = true;
        else if (*numel > SIZE_MAX / shape[i])
            fits = false;
        else
            *numel *= shape[i];
    }
    if (empty) *numel = 0;
    return fits;
}

/* To fp32 in such a way that a second rounding, to 16 bits, comes out as one from the double: towards zero, with the
   last bit set when anything was lost (round to odd). */
static float dsi_checkpoint_to_odd(double value) {
    float f = (float)value;
    uint32_t bits = dsi_bits_of_f32(f);
    if ((double)f == value || value != value) return f;
    if (((double)f > value) == (value > 0)) bits--; /* went away from zero */
    return dsi_f32_of_bits(bits | 1u);
}
static bool dsi_checkpoint_is_float(ds_dtype t) {
    return t == DS_F32 || t == DS_F16 || t == DS_BF16 || t == DS_F64;
}
static void dsi_checkpoint_convert(void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t n) {
    if (to_dtype == from_dtype) {
        memcpy(to, from, n * DS_DTYPE_SIZE(to_dtype));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        double value = from_dtype == DS_F64    ? ((const double *)from)[i]
                       : from_dtype == DS_F32  ? (double)((const float *)from)[i]
                       : from_dtype == DS_BF16 ? (double)dsi_f32_of_bf16(((const uint16_t *)from)[i])
                                               : (double)dsi_f32_of_f16(((const uint16_t *)from)[i]);
        if (to_dtype == DS_F64)
            ((double *)to)[i] = value;
        else if (to_dtype == DS_F32)
            ((float *)to)[i] = (float)value;
        else if (to_dtype == DS_BF16)
            ((uint16_t *)to)[i] = dsi_bf16_of_f32(dsi_checkpoint_to_odd(value));
        else
            ((uint16_t *)to)[i] = dsi_f16_of_f32(dsi_checkpoint_to_odd(value));
    }
}

// >>safetensors: writing

/* A part that is written: its place in the file, and its checksums. Background saves hold the data in `copy`. */
typedef struct dsi_checkpoint_item {
    const char *name; /* in key */
    char *key;        /* "ds:NAME" */
    ds_checkpoint_tensor tensor;
    size_t shape[8], numel, bytes, offset;
    uint32_t *sums;
    void *copy;
} dsi_checkpoint_item;

static size_t dsi_checkpoint_blocks(size_t bytes) {
    return bytes / DSI_CHECKPOINT_BLOCK + (bytes % DSI_CHECKPOINT_BLOCK != 0);
}
static void dsi_checkpoint_item_free(const ds_allocator *a, dsi_checkpoint_item *item) {
    dsi_checkpoint_free_text(a, item->key);
    dsi_release(a, item->sums, dsi_checkpoint_blocks(item->bytes) * sizeof(uint32_t));
    dsi_release(a, item->copy, item->bytes);
    memset(item, 0, sizeof *item);
}
static void dsi_checkpoint_items_free(const ds_allocator *a, dsi_checkpoint_list *items) {
    for (size_t i = 0; i < items->count; i++)
        dsi_checkpoint_item_free(a, (dsi_checkpoint_item *)(void *)items->items + i);
    dsi_checkpoint_list_free(a, items);
}

/* Checks a declared tensor and adds it to the items. */
static ds_status dsi_checkpoint_declare(const ds_allocator *a, dsi_checkpoint_list *items, dsi_checkpoint_index *index,
                                        const ds_checkpoint_tensor *t, ds_error *error) {
    dsi_checkpoint_item *item;
    size_t numel = 0;
    if (!t || !ds_checkpoint_good_name(t->name))
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "a tensor cannot be called '%.200s'; expected a name in UTF-8, not __metadata__",
                        t && t->name ? t->name : "");
    if ((int)t->dtype < 0 || (int)t->dtype >= DS_DTYPE_COUNT || t->dims < 0 || t->dims > 8 || (t->dims && !t->shape))
        return dsi_fail(error, DS_ERR_ARGUMENT, "tensor '%.200s': dtype %d, %d dimensions", t->name, (int)t->dtype,
                        t->dims);
    if (!dsi_checkpoint_numel(t->shape, t->dims, &numel) || numel > (SIZE_MAX >> 8))
        return dsi_fail(error, DS_ERR_ARGUMENT, "tensor '%.200s': its shape is too large", t->name);
    if (t->begin > numel || t->count > numel - t->begin || (t->count && !t->data && !t->read))
        return dsi_fail(error, DS_ERR_ARGUMENT, "tensor '%.200s': elements %zu + %zu of %zu%s", t->name, t->begin,
                        t->count, numel, t->data || t->read ? "" : ", and neither data nor read");
    if (dsi_checkpoint_lookup(index, items, t->name) != DSI_CHECKPOINT_NONE)
        return dsi_fail(error, DS_ERR_ARGUMENT, "tensor '%.200s' was added twice", t->name);
    item = (dsi_checkpoint_item *)dsi_checkpoint_push(a, items, 1);
    if (!item) return dsi_checkpoint_no_memory(error, "a list of tensors");
    item->bytes = t->count * DS_DTYPE_SIZE(t->dtype);
    item->sums = (uint32_t *)dsi_alloc_zero(a, dsi_checkpoint_blocks(item->bytes) * sizeof(uint32_t));
    item->key = (char *)dsi_alloc(a, strlen(t->name) + 4);
    if (item->key) {
        memcpy(item->key, "ds:", 3);
        memcpy(item->key + 3, t->name, strlen(t->name) + 1);
        item->name = item->key + 3;
    }
    if (!item->sums || !item->key || !dsi_checkpoint_enter(a, index, items)) {
        dsi_checkpoint_item_free(a, item);
        items->count--;
        return dsi_checkpoint_no_memory(error, t->name);
    }
    item->tensor = *t;
    item->tensor.name = item->name;
    item->numel = numel;
    for (int i = 0; i < t->dims; i++) item->shape[i] = t->shape[i];
    return DS_OK;
}

/* Where each part's data goes: 8-byte types first, so that every part is aligned. Returns the sum. */
static size_t dsi_checkpoint_place(dsi_checkpoint_item *items, size_t count) {
    size_t at = 0;
    for (size_t size = 8; size; size /= 2)
        for (size_t i = 0; i < count; i++)
            if (DS_DTYPE_SIZE(items[i].tensor.dtype) == size) {
                items[i].offset = at;
                at = dsi_add(at, items[i].bytes);
            }
    return at;
}

static void dsi_checkpoint_put_size(dsi_json_sink *s, size_t value) {
    char text[24];
    snprintf(text, sizeof text, "%zu", value);
    dsi_json_puts(s, text);
}
static void dsi_checkpoint_put_shape(dsi_json_sink *s, const size_t *shape, int dims) {
    for (int i = 0; i < dims; i++) {
        if (i) dsi_json_puts(s, ",");
        dsi_checkpoint_put_size(s, shape[i]);
    }
}
static void dsi_checkpoint_put_member(dsi_json_sink *s, bool *first, const char *key) {
    if (!*first) dsi_json_puts(s, ",");
    *first = false;
    dsi_json_put_string(s, key, strlen(key));
    dsi_json_puts(s, ":");
}

/* The header's JSON, padded so that the data starts at a multiple of 8. Checksums have a fixed width: the text is as
   long before they are known as after. */
static void dsi_checkpoint_print_header(dsi_json_sink *s, const dsi_checkpoint_item *items, size_t count,
                                        const char *const *metadata, size_t pairs) {
    bool first = true;
    dsi_json_puts(s, "{\"__metadata__\":{");
    for (size_t i = 0; i < pairs; i++) {
        dsi_checkpoint_put_member(s, &first, metadata[2 * i]);
        dsi_json_put_string(s, metadata[2 * i + 1], strlen(metadata[2 * i + 1]));
    }
    for (size_t i = 0; i < count; i++) {
        const dsi_checkpoint_item *item = &items[i];
        char text[24];
        dsi_checkpoint_put_member(s, &first, item->key);
        dsi_json_puts(s, "\"");
        dsi_checkpoint_put_size(s, item->tensor.begin);
        dsi_json_puts(s, " ");
        dsi_checkpoint_put_shape(s, item->shape, item->tensor.dims);
        dsi_json_puts(s, " ");
        for (size_t b = 0; b < dsi_checkpoint_blocks(item->bytes); b++) {
            snprintf(text, sizeof text, "%08x", (unsigned)item->sums[b]);
            dsi_json_puts(s, text);
        }
        dsi_json_puts(s, "\"");
    }
    dsi_json_puts(s, "}");
    for (size_t i = 0; i < count; i++) {
        const dsi_checkpoint_item *item = &items[i];
        const size_t flat[1] = {item->tensor.count};
        const bool whole = item->tensor.count == item->numel;
        dsi_json_puts(s, ",");
        dsi_json_put_string(s, item->name, strlen(item->name));
        dsi_json_puts(s, ":{\"dtype\":\"");
        dsi_json_puts(s, dsi_checkpoint_dtypes[item->tensor.dtype].name);
        dsi_json_puts(s, "\",\"shape\":[");
        dsi_checkpoint_put_shape(s, whole ? item->shape : flat, whole ? item->tensor.dims : 1);
        dsi_json_puts(s, "],\"data_offsets\":[");
        dsi_checkpoint_put_size(s, item->offset);
        dsi_json_puts(s, ",");
        dsi_checkpoint_put_size(s, item->offset + item->bytes);
        dsi_json_puts(s, "]}");
    }
    dsi_json_puts(s, "}");
    while (s->length % 8) dsi_json_puts(s, " ");
}

/* A file from its first byte to its last. A large one goes past the page cache: its bytes gather in buckets, and each bucket
   that is full is written by its own thread, so that the disk has several requests at a time, while others fill. */
typedef struct dsi_checkpoint_bucket {
    struct dsi_checkpoint_stream *stream;
    char *data;
    size_t bytes;
    uint64_t at; /* in the file */
    bool full, threaded;
    ds_error why;
    pthread_t thread;
    pthread_cond_t turn; /* its thread waits while it is not full, who fills it while it is */
} dsi_checkpoint_bucket;
typedef struct dsi_checkpoint_stream {
    const ds_checkpoint_desc *d;
    const char *path;
    int fd, direct; /* direct: the same file past the page cache; negative: it is small, or that is refused */
    uint64_t at;
    bool stop;
    pthread_mutex_t lock;
    dsi_checkpoint_bucket buckets[DSI_CHECKPOINT_BUCKETS];
} dsi_checkpoint_stream;

/* What the direct descriptor does not take (less than a sector, or a file system with wishes of its own) the other one
   takes, or it names what is wrong. */
static void dsi_checkpoint_bucket_write(dsi_checkpoint_bucket *b) {
    const dsi_checkpoint_stream *s = b->stream;
    const ds_files *f = &s->d->files;
    const size_t whole = b->bytes / DSI_CHECKPOINT_SECTOR * DSI_CHECKPOINT_SECTOR;
    int64_t n = whole ? f->write(f->ctx, s->direct, b->data, whole, (int64_t)b->at) : 0;
    if (n < 0 || (uint64_t)n > whole) n = 0;
    dsi_checkpoint_put(s->d, s->fd, s->path, b->data + n, b->bytes - (size_t)n, b->at + (uint64_t)n, &b->why);
}
static void *dsi_checkpoint_bucket_run(void *arg) {
    dsi_checkpoint_bucket *b = (dsi_checkpoint_bucket *)arg;
    dsi_checkpoint_stream *s = b->stream;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!b->full && !s->stop) pthread_cond_wait(&b->turn, &s->lock);
        if (!b->full) break;
        pthread_mutex_unlock(&s->lock);
        dsi_checkpoint_bucket_write(b);
        pthread_mutex_lock(&s->lock);
        b->full = false;
        pthread_cond_signal(&b->turn);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}
/* Hands a bucket to its thread; where there is none it is written here. */
static void dsi_checkpoint_bucket_send(dsi_checkpoint_bucket *b) {
    if (!b->threaded) {
        dsi_checkpoint_bucket_write(b);
        return;
    }
    pthread_mutex_lock(&b->stream->lock);
    b->full = true;
    pthread_cond_signal(&b->turn);
    pthread_mutex_unlock(&b->stream->lock);
}
/* `memory`: of the buckets; NULL for a small file. */
static void dsi_checkpoint_stream_begin(dsi_checkpoint_stream *s, const ds_checkpoint_desc *d, int fd, const char *path,
                                        char *memory) {
    memset(s, 0, sizeof *s);
    s->d = d;
    s->path = path;
    s->fd = fd;
    s->direct =
        !memory ? -1 : d->files.open(d->files.ctx, path, O_WRONLY | DSI_CHECKPOINT_DIRECT | O_CLOEXEC | O_NOFOLLOW, 0);
    if (s->direct < 0) return;
    pthread_mutex_init(&s->lock, NULL);
    for (size_t i = 0; i < DSI_CHECKPOINT_BUCKETS; i++) {
        dsi_checkpoint_bucket *b = &s->buckets[i];
        b->stream = s;
        b->data = memory + i * DSI_CHECKPOINT_BUCKET;
        pthread_cond_init(&b->turn, NULL);
        b->threaded = pthread_create(&b->thread, NULL, dsi_checkpoint_bucket_run, b) == 0;
    }
}
static ds_status dsi_checkpoint_stream_put(dsi_checkpoint_stream *s, const char *from, size_t bytes, ds_error *error) {
    if (s->direct < 0) {
        const uint64_t at = s->at;
        s->at += bytes;
        return dsi_checkpoint_put(s->d, s->fd, s->path, from, bytes, at, error);
    }
    while (bytes) {
        dsi_checkpoint_bucket *b = &s->buckets[s->at / DSI_CHECKPOINT_BUCKET % DSI_CHECKPOINT_BUCKETS];
        const size_t inside = (size_t)(s->at % DSI_CHECKPOINT_BUCKET), room = DSI_CHECKPOINT_BUCKET - inside;
        const size_t n = bytes < room ? bytes : room;
        if (!inside) {
            pthread_mutex_lock(&s->lock);
            while (b->full) pthread_cond_wait(&b->turn, &s->lock);
            pthread_mutex_unlock(&s->lock);
            if (b->why.status) return dsi_fail(error, b->why.status, "%s", b->why.message);
            b->at = s->at;
        }
        memcpy(b->data + inside, from, n);
        b->bytes = inside + n;
        if (n == room) dsi_checkpoint_bucket_send(b);
        from += n;
        bytes -= n;
        s->at += n;
    }
    return DS_OK;
}
static ds_status dsi_checkpoint_stream_end(dsi_checkpoint_stream *s, ds_status status, ds_error *error) {
    if (s->direct < 0) return status;
    if (!status && s->at % DSI_CHECKPOINT_BUCKET)
        dsi_checkpoint_bucket_send(&s->buckets[s->at / DSI_CHECKPOINT_BUCKET % DSI_CHECKPOINT_BUCKETS]);
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    for (size_t i = 0; i < DSI_CHECKPOINT_BUCKETS; i++) pthread_cond_signal(&s->buckets[i].turn);
    pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < DSI_CHECKPOINT_BUCKETS; i++) {
        dsi_checkpoint_bucket *b = &s->buckets[i];
        if (b->threaded) pthread_join(b->thread, NULL);
        pthread_cond_destroy(&b->turn);
        if (b->why.status && !status) status = dsi_fail(error, b->why.status, "%s", b->why.message);
    }
    pthread_mutex_destroy(&s->lock);
    s->d->files.close(s->d->files.ctx, s->direct);
    return status;
}

/* One part's data in blocks, with their checksums. */
static ds_status dsi_checkpoint_put_item(dsi_checkpoint_stream *s, dsi_checkpoint_item *item, char *stage,
                                         ds_error *error) {
    const ds_checkpoint_tensor *t = &item->tensor;
    const size_t each = DS_DTYPE_SIZE(t->dtype);
    for (size_t at = 0; at < item->bytes; at += DSI_CHECKPOINT_BLOCK) {
        const size_t n = item->bytes - at < DSI_CHECKPOINT_BLOCK ? item->bytes - at : DSI_CHECKPOINT_BLOCK;
        const char *from = t->data ? (const char *)t->data + at : stage;
        ds_status status = DS_OK;
        for (size_t e = 0; !t->data && e < n / each && !status; e += DSI_CHECKPOINT_CHUNK) {
            const size_t m = n / each - e < DSI_CHECKPOINT_CHUNK ? n / each - e : DSI_CHECKPOINT_CHUNK;
            status = t->read(t->ctx, t->begin + at / each + e, m, stage + e * each);
            if (status)
                return dsi_fail(error, status, "tensor '%.200s': its elements %zu.. could not be read (status %d)",
                                t->name, t->begin + at / each + e, (int)status);
        }
        item->sums[at / DSI_CHECKPOINT_BLOCK] = dsi_crc32c(0, from, n);
        status = dsi_checkpoint_stream_put(s, from, n, error);
        if (status) return status;
    }
    return DS_OK;
}

/* What a shard's writer needs of memory, taken by the thread that owns the object: one that writes in the background calls no
   allocator. */
typedef struct dsi_checkpoint_room {
    char *header, *stage,
        *buckets; /* the file up to its data; a block of DSI_CHECKPOINT_BLOCK bytes; of a large file */
    size_t header_bytes, data;
    int refused; /* what asking for the way past the page cache gave; 0: nothing did */
} dsi_checkpoint_room;

/* The buckets' alignment: a caller's allocator is asked for no more than O_DIRECT needs. */
static size_t dsi_checkpoint_bucket_align(const ds_allocator *a) {
    return a->alloc ? DSI_CHECKPOINT_SECTOR : DSI_CHECKPOINT_PAGE;
}
static void dsi_checkpoint_room_free(const ds_allocator *a, dsi_checkpoint_room *room) {
    dsi_release_aligned(a, room->buckets, DSI_CHECKPOINT_BUCKETS * DSI_CHECKPOINT_BUCKET,
                        dsi_checkpoint_bucket_align(a));
    dsi_release_aligned(a, room->stage, DSI_CHECKPOINT_BLOCK, 64);
    dsi_release(a, room->header, room->header_bytes);
    memset(room, 0, sizeof *room);
}
static ds_status dsi_checkpoint_room_take(const ds_checkpoint_desc *d, const char *path, dsi_checkpoint_item *items,
                                          size_t count, const char *const *metadata, size_t pairs,
                                          dsi_checkpoint_room *room, ds_error *error) {
    dsi_json_sink sink = {NULL, 0, 0};
    memset(room, 0, sizeof *room);
    room->data = dsi_checkpoint_place(items, count);
    dsi_checkpoint_print_header(&sink, items, count, metadata, pairs);
    if (sink.length > DSI_CHECKPOINT_HEADER)
        return dsi_fail(error, DS_ERR_ARGUMENT, "'%.300s': %zu tensors are more than a safetensors header holds", path,
                        count);
    room->header_bytes = sink.length + 8;
    room->header = (char *)dsi_alloc(&d->allocator, room->header_bytes);
    room->stage = (char *)dsi_alloc_aligned(&d->allocator, DSI_CHECKPOINT_BLOCK, 64);
    if (room->data >= DSI_CHECKPOINT_LARGE)
        room->buckets = (char *)dsi_alloc_aligned(&d->allocator, DSI_CHECKPOINT_BUCKETS * DSI_CHECKPOINT_BUCKET,
                                                  dsi_checkpoint_bucket_align(&d->allocator));
#ifdef MADV_HUGEPAGE
    if (room->buckets && !d->allocator.alloc)
        (void)madvise(room->buckets, DSI_CHECKPOINT_BUCKETS * DSI_CHECKPOINT_BUCKET, MADV_HUGEPAGE);
#endif
    if (room->header && room->stage && (room->buckets || room->data < DSI_CHECKPOINT_LARGE)) return DS_OK;
    dsi_checkpoint_room_free(&d->allocator, room);
    return dsi_checkpoint_no_memory(error, path);
}

/* Header, data and sync of one file. *header_sum is the checksum of the 8 + N bytes before the data; blanks stand in its
   place until all checksums are known. */
static ds_status dsi_checkpoint_write_shard(const ds_checkpoint_desc *d, const char *path, dsi_checkpoint_item *items,
                                            size_t count, const char *const *metadata, size_t pairs,
                                            dsi_checkpoint_room *room, uint64_t *bytes, uint32_t *header_sum,
                                            ds_error *error) {
    dsi_json_sink sink = {room->header + 8, room->header_bytes - 8, 0};
    const int fd = dsi_checkpoint_create(d, path);
    ds_status status = DS_OK;
    dsi_checkpoint_stream stream;
    int reserved;
    if (fd < 0) return dsi_checkpoint_failed(error, fd, "create", path);
    *bytes = (uint64_t)room->header_bytes + room->data;
    reserved = d->files.reserve(d->files.ctx, fd, 0, (int64_t)*bytes); /* a full disk is found before the work */
    if (reserved < 0 && reserved != -EOPNOTSUPP && reserved != -EINVAL && reserved != -ENOSYS)
        status = dsi_checkpoint_failed(error, reserved, "reserve space for", path);
    dsi_checkpoint_stream_begin(&stream, d, fd, path, room->buckets);
    room->refused = room->buckets && stream.direct < 0 ? stream.direct : 0;
    memset(room->header, ' ', room->header_bytes);
    if (!status) status = dsi_checkpoint_stream_put(&stream, room->header, room->header_bytes, error);
    for (size_t size = 8; size; size /= 2) /* as they were placed */
        for (size_t i = 0; i < count && !status; i++)
            if (DS_DTYPE_SIZE(items[i].tensor.dtype) == size)
                status = dsi_checkpoint_put_item(&stream, &items[i], room->stage, error);
    status = dsi_checkpoint_stream_end(&stream, status, error);
    dsi_checkpoint_print_header(&sink, items, count, metadata, pairs);
    for (int i = 0; i < 8; i++) room->header[i] = (char)((uint64_t)sink.length >> 8 * i & 255);
    *header_sum = dsi_crc32c(0, room->header, room->header_bytes);
    if (!status) status = dsi_checkpoint_put(d, fd, path, room->header, room->header_bytes, 0, error);
    return dsi_checkpoint_close_written(d, fd, path, status, error);
}

// >>reading: parts of tensors in files

typedef struct dsi_checkpoint_shard {
    const char *name; /* of the file, below the reader's folder; owned */
    uint64_t bytes, data;
    int fd; /* or -1 */
    bool missing;
    dsi_json header;
} dsi_checkpoint_shard;

/* Elements [begin, begin + count) of a tensor lie at `offset` of a shard. `sums`: 8 hex digits for each block, or NULL. */
typedef struct dsi_checkpoint_part {
    size_t tensor, shard, begin, count;
    uint64_t offset;
    const char *sums;
    size_t entry; /* of a zip file, whose own checksum is checked once; or NONE */
} dsi_checkpoint_part;

/* A file in a zip file. */
typedef struct dsi_checkpoint_entry {
    const char *name; /* without the archive's root folder */
    size_t shard;
    uint64_t offset, bytes;
    uint32_t sum;
    bool checked;
} dsi_checkpoint_entry;

typedef struct dsi_checkpoint_tensor_ {
    const char *name;
    ds_dtype dtype;
    int dims;
    size_t shape[8], numel;
    size_t first, parts; /* in the list of parts, once sorted */
    size_t seen;         /* last shard that named it, + 1 */
} dsi_checkpoint_tensor_;

struct ds_checkpoint {
    ds_checkpoint_desc desc;
    ds_checkpoint_format format;
    char folder[DSI_CHECKPOINT_PATH], tag[DSI_CHECKPOINT_PATH];
    dsi_checkpoint_list shards, tensors, parts, values, texts; /* texts: char *, owned */
    dsi_checkpoint_index index;                                /* of tensors */
    dsi_checkpoint_list entries;                               /* of zip files */
    dsi_json manifest;
    bool node_local;
    int64_t sequence;
    size_t files_open;
    char *block; /* the block read last, of part and number; */
    size_t block_part, block_number;
    ds_error *error; /* in the same memory; written through const pointers too */
    ds_error error_room;
};

static dsi_checkpoint_shard *dsi_checkpoint_shard_of(const ds_checkpoint *c, size_t i) {
    return (dsi_checkpoint_shard *)(void *)c->shards.items + i;
}
static dsi_checkpoint_tensor_ *dsi_checkpoint_tensor_of(const ds_checkpoint *c, size_t i) {
    return (dsi_checkpoint_tensor_ *)(void *)c->tensors.items + i;
}
static dsi_checkpoint_part *dsi_checkpoint_part_of(const ds_checkpoint *c, size_t i) {
    return (dsi_checkpoint_part *)(void *)c->parts.items + i;
}

static ds_checkpoint *dsi_checkpoint_new(const ds_checkpoint_desc *d, ds_error *error) {
    ds_checkpoint *c = (ds_checkpoint *)dsi_alloc_zero(&d->allocator, sizeof *c);
    if (!c) return dsi_checkpoint_no_memory(error, "a checkpoint's reader"), (ds_checkpoint *)NULL;
    c->desc = *d;
    c->desc.files = dsi_files(&d->files);
    c->shards.each = sizeof(dsi_checkpoint_shard);
    c->tensors.each = sizeof(dsi_checkpoint_tensor_);
    c->parts.each = sizeof(dsi_checkpoint_part);
    c->values.each = sizeof(ds_checkpoint_value);
    c->texts.each = sizeof(char *);
    c->entries.each = sizeof(dsi_checkpoint_entry);
    c->block_part = DSI_CHECKPOINT_NONE;
    c->error = &c->error_room;
    return c;
}

/* Gives back all but the reader itself, so that it can try another tag. */
static void dsi_checkpoint_clear(ds_checkpoint *c) {
    const ds_allocator *a = &c->desc.allocator;
    for (size_t i = 0; i < c->shards.count; i++) {
        dsi_checkpoint_shard *shard = dsi_checkpoint_shard_of(c, i);
        if (shard->fd >= 0) c->desc.files.close(c->desc.files.ctx, shard->fd);
        dsi_json_unload(a, &shard->header);
        dsi_checkpoint_free_text(a, shard->name);
    }
    for (size_t i = 0; i < c->texts.count; i++) dsi_checkpoint_free_text(a, ((char **)(void *)c->texts.items)[i]);
    dsi_checkpoint_list_free(a, &c->shards);
    dsi_checkpoint_list_free(a, &c->tensors);
    dsi_checkpoint_list_free(a, &c->parts);
    dsi_checkpoint_list_free(a, &c->values);
    dsi_checkpoint_list_free(a, &c->texts);
    dsi_checkpoint_list_free(a, &c->entries);
    dsi_checkpoint_index_free(a, &c->index);
    dsi_json_unload(a, &c->manifest);
    dsi_release_aligned(a, c->block, DSI_CHECKPOINT_BLOCK, 64);
    c->block = NULL;
    c->block_part = DSI_CHECKPOINT_NONE;
    c->files_open = 0;
    c->node_local = false;
}
DS_API void ds_checkpoint_close(ds_checkpoint *c) {
    if (!c) return;
    dsi_checkpoint_clear(c);
    {
        const ds_allocator a = c->desc.allocator;
        dsi_release(&a, c, sizeof *c);
    }
}

/* A text that lives as long as the reader; NULL when memory is short. */
static const char *dsi_checkpoint_keep(ds_checkpoint *c, const char *prefix, const char *text) {
    const size_t n = strlen(prefix), m = strlen(text);
    char **slot = (char **)dsi_checkpoint_push(&c->desc.allocator, &c->texts, 1);
    if (!slot) return NULL;
    *slot = (char *)dsi_alloc(&c->desc.allocator, n + m + 1);
    if (!*slot) return NULL;
    memcpy(*slot, prefix, n);
    memcpy(*slot + n, text, m + 1);
    return *slot;
}

/* 0 when folder/name is not there, 1 a file, 2 a folder, 3 other; `path` gets its path. */
static int dsi_checkpoint_has(const ds_checkpoint *c, const char *folder, const char *name,
                              char path[DSI_CHECKPOINT_PATH]) {
    dsi_checkpoint_join(path, folder, name);
    return c->desc.files.exists(c->desc.files.ctx, path);
}

static ds_status dsi_checkpoint_add_shard(ds_checkpoint *c, const char *name, ds_error *error) {
    dsi_checkpoint_shard *shard = (dsi_checkpoint_shard *)dsi_checkpoint_push(&c->desc.allocator, &c->shards, 1);
    if (!shard) return dsi_checkpoint_no_memory(error, "a list of shards");
    shard->fd = -1;
    shard->name = dsi_checkpoint_copy_text(&c->desc.allocator, name);
    return shard->name ? DS_OK : dsi_checkpoint_no_memory(error, "a list of shards");
}

/* Opens a shard's file when it is not; beyond a number of them the others are closed. In our own checkpoints and below
   them a link is refused; a file that the user names may be one (as in Hugging Face's cache). */
static ds_status dsi_checkpoint_open_shard(ds_checkpoint *c, dsi_checkpoint_shard *shard,
                                           char path[DSI_CHECKPOINT_PATH], ds_error *error) {
    const bool links = c->format == DS_CHECKPOINT_SAFETENSORS;
    const ds_files *f = &c->desc.files;
    int kind;
    dsi_checkpoint_join(path, c->folder, shard->name);
    if (shard->fd >= 0) return DS_OK;
    kind = f->exists(f->ctx, path);
    if (kind < 0) return dsi_checkpoint_failed(error, kind, "look at", path);
    if (kind == 0) return dsi_fail(error, DS_ERR_CORRUPT, "'%.300s' is missing", path);
    if (kind != 1 && !(kind == 3 && links))
        return dsi_fail(error, DS_ERR_CORRUPT, "'%.300s' is not a plain file", path);
    for (size_t i = 0; c->files_open >= DSI_CHECKPOINT_OPEN && i < c->shards.count; i++) {
        dsi_checkpoint_shard *other = dsi_checkpoint_shard_of(c, i);
        if (other->fd < 0) continue;
        f->close(f->ctx, other->fd);
        other->fd = -1;
        c->files_open--;
    }
    shard->fd = f->open(f->ctx, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (links ? 0 : O_NOFOLLOW), 0);
    if (shard->fd < 0) {
        const int result = shard->fd;
        shard->fd = -1;
        return dsi_checkpoint_failed(error, result, "open", path);
    }
    c->files_open++;
    return DS_OK;
}
static ds_status dsi_checkpoint_measure_shard(ds_checkpoint *c, dsi_checkpoint_shard *shard,
                                              char path[DSI_CHECKPOINT_PATH], ds_error *error) {
    ds_status status = dsi_checkpoint_open_shard(c, shard, path, error);
    int64_t size;
    if (status) return status;
    size = c->desc.files.size(c->desc.files.ctx, shard->fd);
    if (size < 0) return dsi_checkpoint_failed(error, size, "measure", path);
    shard->bytes = (uint64_t)size;
    return DS_OK;
}

/* Enters a part; the tensor is made at its first one, and must be the same in all. */
static ds_status dsi_checkpoint_add_part(ds_checkpoint *c, const char *name, ds_dtype dtype, const size_t *shape,
                                         int dims, const dsi_checkpoint_part *part, ds_error *error) {
    const ds_allocator *a = &c->desc.allocator;
    size_t at = dsi_checkpoint_lookup(&c->index, &c->tensors, name);
    dsi_checkpoint_tensor_ *t;
    dsi_checkpoint_part *to;
    if (at == DSI_CHECKPOINT_NONE) {
        t = (dsi_checkpoint_tensor_ *)dsi_checkpoint_push(a, &c->tensors, 1);
        if (!t) return dsi_checkpoint_no_memory(error, "a list of tensors");
        at = c->tensors.count - 1;
        t->name = name;
        t->dtype = dtype;
        t->dims = dims;
        for (int i = 0; i < dims; i++) t->shape[i] = shape[i];
        dsi_checkpoint_numel(shape, dims, &t->numel);
        if (!dsi_checkpoint_enter(a, &c->index, &c->tensors)) {
            c->tensors.count--;
            return dsi_checkpoint_no_memory(error, "a list of tensors");
        }
    }
    t = dsi_checkpoint_tensor_of(c, at);
    if (t->dtype != dtype || t->dims != dims || (dims && memcmp(t->shape, shape, (size_t)dims * sizeof *shape) != 0))
        return dsi_fail(error, DS_ERR_INPUT, "tensor '%.200s' has another dtype or shape in '%.200s' than elsewhere",
                        name, dsi_checkpoint_shard_of(c, part->shard)->name);
    if (part->begin > t->numel || part->count > t->numel - part->begin)
        return dsi_fail(error, DS_ERR_INPUT, "tensor '%.200s': '%.200s' holds elements %zu + %zu of %zu", name,
                        dsi_checkpoint_shard_of(c, part->shard)->name, part->begin, part->count, t->numel);
    if (!part->count) return DS_OK;
    to = (dsi_checkpoint_part *)dsi_checkpoint_push(a, &c->parts, 1);
    if (!to) return dsi_checkpoint_no_memory(error, "a list of tensors");
    *to = *part;
    to->tensor = at;
    return DS_OK;
}

static int dsi_checkpoint_order_parts(const void *a, const void *b) {
    const dsi_checkpoint_part *x = (const dsi_checkpoint_part *)a, *y = (const dsi_checkpoint_part *)b;
    if (x->tensor != y->tensor) return x->tensor < y->tensor ? -1 : 1;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}
/* Sorts the parts and requires that they cover every tensor once; with `gaps` not all of it. */
static ds_status dsi_checkpoint_settle(ds_checkpoint *c, bool gaps, ds_error *error) {
    const char *where = c->format == DS_CHECKPOINT_SAFETENSORS ? c->tag : c->folder;
    size_t at = 0;
    if (c->parts.count) qsort(c->parts.items, c->parts.count, c->parts.each, dsi_checkpoint_order_parts);
    for (size_t i = 0; i < c->tensors.count; i++) {
        dsi_checkpoint_tensor_ *t = dsi_checkpoint_tensor_of(c, i);
        size_t end = 0;
        t->first = at;
        for (; at < c->parts.count && dsi_checkpoint_part_of(c, at)->tensor == i; at++) {
            const dsi_checkpoint_part *part = dsi_checkpoint_part_of(c, at);
            if (part->begin < end)
                return dsi_fail(error, DS_ERR_INPUT,
                                "'%.200s': tensor '%.120s': element %zu is in two shards, '%.80s' the second", where,
                                t->name, part->begin, dsi_checkpoint_shard_of(c, part->shard)->name);
            if (part->begin > end && !gaps) break;
            end = part->begin + part->count;
            t->parts++;
        }
        if (end < t->numel && !gaps)
            return dsi_fail(error, DS_ERR_INPUT,
                            "'%.200s': tensor '%.150s': elements from %zu on are in no shard (it has %zu)", where,
                            t->name, end, t->numel);
    }
    c->block = (char *)dsi_alloc_aligned(&c->desc.allocator, DSI_CHECKPOINT_BLOCK, 64);
    return c->block ? DS_OK : dsi_checkpoint_no_memory(error, "a block");
}

// >>safetensors: reading

typedef struct dsi_checkpoint_header { /* while a header is read */
    ds_checkpoint *c;
    const dsi_json *doc;
    size_t shard;
    const char *path;
    uint32_t metadata, cursor; /* key that is looked at first: notes stand in the order of the tensors */
    uint32_t at;               /* its number */
    dsi_checkpoint_list ranges;
    ds_error *error;
} dsi_checkpoint_header;

static ds_status dsi_checkpoint_malformed(const dsi_checkpoint_header *h, const char *name, const char *what) {
    return dsi_fail(h->error, DS_ERR_INPUT, "'%.250s': tensor '%.150s': %s", h->path, name, what);
}

/* The note on a tensor in the metadata; NULL when there is none. */
static const char *dsi_checkpoint_note(dsi_checkpoint_header *h, const char *name) {
    const dsi_json_node *nodes = h->doc->nodes;
    const uint32_t count = h->metadata == DSI_JSON_NONE ? 0 : nodes[h->metadata].length;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t key = h->cursor;
        if (++h->at == count) {
            h->at = 0;
            h->cursor = h->metadata + 1;
        } else
            h->cursor = nodes[key + 1].next;
        if (!strncmp(nodes[key].as.text, "ds:", 3) && !strcmp(nodes[key].as.text + 3, name))
            return nodes[key + 1].as.text;
    }
    return NULL;
}
static bool dsi_checkpoint_digits(const char **text, size_t *value) {
    const char *p = *text;
    *value = 0;
    if (*p < '0' || *p > '9' || (*p == '0' && p[1] >= '0' && p[1] <= '9')) return false;
    for (; *p >= '0' && *p <= '9'; p++) {
        const size_t digit = (size_t)(*p - '0');
        if (*value > (SIZE_MAX - digit) / 10) return false;
        *value = 10 * *value + digit;
    }
    *text = p;
    return true;
}
static int dsi_checkpoint_hex(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}
/* "BEGIN SHAPE CHECKSUMS": where the stored elements are in the whole tensor, and its shape. */
static bool dsi_checkpoint_read_note(const char *note, size_t bytes, dsi_checkpoint_part *part, size_t shape[8],
                                     int *dims) {
    const size_t digits = 8 * dsi_checkpoint_blocks(bytes);
    size_t n = 0;
    *dims = 0;
    if (!dsi_checkpoint_digits(&note, &part->begin) || *note++ != ' ') return false;
    while (*note != ' ') {
        if (*dims == 8 || (*dims && *note++ != ',') || !dsi_checkpoint_digits(&note, &shape[*dims])) return false;
        ++*dims;
    }
    part->sums = ++note;
    while (dsi_checkpoint_hex(note[n]) >= 0) n++;
    return n == digits && !note[n];
}

/* One array of whole numbers. */
static bool dsi_checkpoint_numbers(const dsi_json *doc, uint32_t array, size_t *out, uint32_t room, uint32_t *count) {
    uint32_t v = array + 1;
    *count = 0;
    if (doc->nodes[array].type != DSI_JSON_ARRAY) return false;
    *count = doc->nodes[array].length;
    for (uint32_t i = 0; i < *count; i++, v = doc->nodes[v].next) {
        const dsi_json_node *node = &doc->nodes[v];
        if (node->type != DSI_JSON_INT || node->as.integer < 0 || (uint64_t)node->as.integer > SIZE_MAX) return false;
        if (i < room) out[i] = (size_t)node->as.integer;
    }
    return true;
}

static ds_status dsi_checkpoint_read_entry(dsi_checkpoint_header *h, uint32_t key) {
    const dsi_json *doc = h->doc;
    const char *name = doc->nodes[key].as.text, *dtype = NULL, *note;
    const dsi_checkpoint_shard *shard = dsi_checkpoint_shard_of(h->c, h->shard);
    uint32_t fields[3] = {DSI_JSON_NONE, DSI_JSON_NONE, DSI_JSON_NONE}, k = key + 2, dims32, two;
    static const char *const field_names[3] = {"dtype", "shape", "data_offsets"};
    size_t shape[8], whole[8], range[2], numel = 1, type = 0, bits, *kept, at;
    dsi_checkpoint_part part;
    ds_status status;
    int dims;
    if (strlen(name) != doc->nodes[key].length) return dsi_checkpoint_malformed(h, name, "its name holds a NUL");
    if (doc->nodes[key + 1].type != DSI_JSON_OBJECT) return dsi_checkpoint_malformed(h, name, "not an object");
    for (uint32_t i = 0; i < doc->nodes[key + 1].length; i++, k = doc->nodes[k + 1].next)
        for (int f = 0; f < 3; f++) {
            if (strcmp(doc->nodes[k].as.text, field_names[f]) != 0) continue;
            if (fields[f] != DSI_JSON_NONE) return dsi_checkpoint_malformed(h, name, "a field is there twice");
            fields[f] = k + 1;
        }
    for (int f = 0; f < 3; f++)
        if (fields[f] == DSI_JSON_NONE)
            return dsi_checkpoint_malformed(h, name, "dtype, shape or data_offsets is missing");
    dtype = dsi_json_text(doc, fields[0]);
    while (dtype && type < DSI_CHECKPOINT_DTYPES && strcmp(dsi_checkpoint_dtypes[type].name, dtype) != 0) type++;
    if (!dtype || type == DSI_CHECKPOINT_DTYPES) return dsi_checkpoint_malformed(h, name, "unknown dtype");
    if (!dsi_checkpoint_numbers(doc, fields[1], shape, 8, &dims32))
        return dsi_checkpoint_malformed(h, name, "shape is not a list of sizes");
    if (!dsi_checkpoint_numbers(doc, fields[2], range, 2, &two) || two != 2)
        return dsi_checkpoint_malformed(h, name, "data_offsets is not a pair of positions");
    if (dims32 > 8)
        return dsi_fail(h->error, DS_ERR_UNSUPPORTED,
                        "'%.250s': tensor '%.150s' has %u dimensions, at most 8 can be read", h->path, name, dims32);
    dims = (int)dims32;
    bits = (size_t)dsi_checkpoint_dtypes[type].bits;
    if (!dsi_checkpoint_numel(shape, dims, &numel) || numel > SIZE_MAX / bits)
        return dsi_checkpoint_malformed(h, name, "its shape is too large");
    if (range[1] < range[0] || (numel * bits) % 8 || range[1] - range[0] != numel * bits / 8)
        return dsi_checkpoint_malformed(h, name, "data_offsets do not fit dtype and shape");
    if (dsi_checkpoint_dtypes[type].dtype < 0)
        return dsi_fail(h->error, DS_ERR_UNSUPPORTED, "'%.250s': tensor '%.150s' is of dtype %s, which cannot be read",
                        h->path, name, dtype);
    at = dsi_checkpoint_lookup(&h->c->index, &h->c->tensors, name);
    if (at != DSI_CHECKPOINT_NONE && dsi_checkpoint_tensor_of(h->c, at)->seen == h->shard + 1)
        return dsi_checkpoint_malformed(h, name, "it is there twice");
    memset(&part, 0, sizeof part);
    part.shard = h->shard;
    part.entry = DSI_CHECKPOINT_NONE;
    part.count = numel;
    part.offset = shard->data + range[0];
    memcpy(whole, shape, sizeof whole);
    note = dsi_checkpoint_note(h, name);
    if (note && !dsi_checkpoint_read_note(note, range[1] - range[0], &part, whole, &dims))
        return dsi_checkpoint_malformed(h, name, "its note of part and checksums is malformed");
    if (!dsi_checkpoint_numel(whole, dims, &numel) || numel > (SIZE_MAX >> 8))
        return dsi_checkpoint_malformed(h, name, "its whole shape is too large");
    kept = (size_t *)dsi_checkpoint_push(&h->c->desc.allocator, &h->ranges, 1);
    if (!kept) return dsi_checkpoint_no_memory(h->error, "a header");
    kept[0] = range[0];
    kept[1] = range[1];
    status =
        dsi_checkpoint_add_part(h->c, name, (ds_dtype)dsi_checkpoint_dtypes[type].dtype, whole, dims, &part, h->error);
    if (!status)
        dsi_checkpoint_tensor_of(h->c, dsi_checkpoint_lookup(&h->c->index, &h->c->tensors, name))->seen = h->shard + 1;
    return status;
}

static ds_status dsi_checkpoint_read_metadata(dsi_checkpoint_header *h, uint32_t node) {
    const dsi_json *doc = h->doc;
    uint32_t k = node + 1;
    if (doc->nodes[node].type == DSI_JSON_NULL) return DS_OK;
    if (h->metadata != DSI_JSON_NONE || doc->nodes[node].type != DSI_JSON_OBJECT)
        return dsi_fail(h->error, DS_ERR_INPUT, "'%.300s': __metadata__ is no object, or is there twice", h->path);
    for (uint32_t i = 0; i < doc->nodes[node].length; i++, k = doc->nodes[k + 1].next)
        if (doc->nodes[k + 1].type != DSI_JSON_STRING)
            return dsi_fail(h->error, DS_ERR_INPUT, "'%.300s': metadata '%.100s' is not a string", h->path,
                            doc->nodes[k].as.text);
    h->metadata = node;
    h->cursor = node + 1;
    return DS_OK;
}

static int dsi_checkpoint_order_ranges(const void *a, const void *b) {
    const size_t *x = (const size_t *)a, *y = (const size_t *)b;
    if (x[0] != y[0]) return x[0] < y[0] ? -1 : 1;
    return x[1] < y[1] ? -1 : x[1] > y[1];
}

/* What a header's JSON says, entered as parts. */
static ds_status dsi_checkpoint_read_entries(dsi_checkpoint_header *h) {
    const dsi_json *doc = h->doc;
    const dsi_checkpoint_shard *shard = dsi_checkpoint_shard_of(h->c, h->shard);
    uint32_t k = 1;
    ds_status status = DS_OK;
    size_t end = 0, *ranges;
    for (uint32_t i = 0; i < doc->nodes[0].length && !status; i++, k = doc->nodes[k + 1].next)
        if (!strcmp(doc->nodes[k].as.text, "__metadata__")) status = dsi_checkpoint_read_metadata(h, k + 1);
    k = 1;
    for (uint32_t i = 0; i < doc->nodes[0].length && !status; i++, k = doc->nodes[k + 1].next)
        if (strcmp(doc->nodes[k].as.text, "__metadata__") != 0) status = dsi_checkpoint_read_entry(h, k);
    if (status) return status;
    ranges = (size_t *)(void *)h->ranges.items;
    if (h->ranges.count) qsort(ranges, h->ranges.count, h->ranges.each, dsi_checkpoint_order_ranges);
    for (size_t i = 0; i < h->ranges.count; i++) {
        if (ranges[2 * i] != end)
            return dsi_fail(h->error, DS_ERR_INPUT, "'%.300s': its tensors %s at byte %zu of the data", h->path,
                            ranges[2 * i] > end ? "leave a hole" : "overlap", end);
        end = ranges[2 * i + 1];
    }
    if (shard->data + end != shard->bytes)
        return dsi_fail(h->error, DS_ERR_INPUT, "'%.300s' has %llu bytes, its header describes %llu", h->path,
                        (unsigned long long)shard->bytes, (unsigned long long)(shard->data + end));
    return DS_OK;
}

/* Opens shard `index`, checks its header and enters its tensors. sum: what the manifest says of the header, or NULL. */
static ds_status dsi_checkpoint_read_shard(ds_checkpoint *c, size_t index, const uint32_t *sum, ds_error *error) {
    const ds_allocator *a = &c->desc.allocator;
    dsi_checkpoint_shard *shard = dsi_checkpoint_shard_of(c, index);
    char path[DSI_CHECKPOINT_PATH], *text;
    unsigned char length[8];
    uint64_t n = 0;
    dsi_checkpoint_header h;
    ds_status status = dsi_checkpoint_measure_shard(c, shard, path, error);
    ds_error why;
    if (status) return status;
    if (shard->bytes < 8)
        return dsi_fail(error, DS_ERR_INPUT, "'%.300s' has %llu bytes, too few for safetensors", path,
                        (unsigned long long)shard->bytes);
    if ((status = dsi_checkpoint_take(&c->desc, shard->fd, path, length, 8, 0, error))) return status;
    for (int i = 0; i < 8; i++) n |= (uint64_t)length[i] << 8 * i;
    if (n < 2 || n > DSI_CHECKPOINT_HEADER || n > shard->bytes - 8)
        return dsi_fail(error, DS_ERR_INPUT, "'%.300s': a header of %llu bytes in a file of %llu", path,
                        (unsigned long long)n, (unsigned long long)shard->bytes);
    shard->data = n + 8;
    text = (char *)dsi_alloc(a, (size_t)n + 8);
    if (!text) return dsi_checkpoint_no_memory(error, path);
    memcpy(text, length, 8);
    status = dsi_checkpoint_take(&c->desc, shard->fd, path, text + 8, (size_t)n, 8, error);
    if (!status && sum && dsi_crc32c(0, text, (size_t)n + 8) != *sum)
        status = dsi_fail(error, DS_ERR_CORRUPT,
                          "'%.300s' is damaged: its header has another checksum than the manifest says", path);
    if (!status && text[8] != '{')
        status = dsi_fail(error, DS_ERR_INPUT, "'%.300s': its header does not start with '{'", path);
    if (!status && (status = dsi_json_load(a, text + 8, (size_t)n, 0, &shard->header, &why)))
        dsi_fail(error, status, "'%.250s': header %.200s", path, why.message);
    dsi_release(a, text, (size_t)n + 8);
    if (status) return status;
    memset(&h, 0, sizeof h);
    h.c = c;
    h.doc = &shard->header;
    h.shard = index;
    h.path = path;
    h.metadata = DSI_JSON_NONE;
    h.ranges.each = 2 * sizeof(size_t);
    h.error = error;
    status = dsi_checkpoint_read_entries(&h);
    dsi_checkpoint_list_free(a, &h.ranges);
    return status;
}

// >>manifest

static void dsi_checkpoint_put_tail(dsi_json_sink *s, uint32_t sum) {
    char tail[40];
    snprintf(tail, sizeof tail, ",\n\"crc32c\": \"%08x\"\n}\n", (unsigned)sum);
    dsi_json_puts(s, tail);
}
#define DSI_CHECKPOINT_TAIL 25u /* bytes of it */

/* Reads folder/manifest.json: checksum, JSON, format. The folder itself must be one. */
static ds_status dsi_checkpoint_read_manifest(const ds_checkpoint_desc *d, const char *folder, dsi_json *doc,
                                              ds_error *error) {
    char path[DSI_CHECKPOINT_PATH], tail[40], *text;
    dsi_json_sink sink = {tail, sizeof tail, 0};
    const char *format;
    ds_status status;
    size_t bytes;
    ds_error why;
    memset(doc, 0, sizeof *doc);
    dsi_checkpoint_join(path, folder, "manifest.json");
    status = dsi_checkpoint_read_file(d, path, false, DSI_CHECKPOINT_HEADER, &text, &bytes, error);
    if (status) return status;
    if (bytes >= DSI_CHECKPOINT_TAIL) dsi_checkpoint_put_tail(&sink, dsi_crc32c(0, text, bytes - DSI_CHECKPOINT_TAIL));
    if (!sink.length || memcmp(text + bytes - DSI_CHECKPOINT_TAIL, tail, DSI_CHECKPOINT_TAIL) != 0)
        status = dsi_fail(error, DS_ERR_CORRUPT, "'%.300s' is damaged: it does not end with its checksum", path);
    else if ((status = dsi_json_load(&d->allocator, text, bytes, 0, doc, &why)) != DS_OK)
        dsi_fail(error, status, "'%.300s': %.150s", path, why.message);
    dsi_release(&d->allocator, text, bytes + 1);
    if (status) return status;
    format = dsi_json_text(doc, dsi_json_get(doc, 0, "format"));
    if (!format || strcmp(format, "ds checkpoint 1") != 0) {
        status = dsi_fail(error, DS_ERR_INPUT, "'%.300s': its format is '%.40s', expected 'ds checkpoint 1'", path,
                          format ? format : "");
        dsi_json_unload(&d->allocator, doc);
    }
    return status;
}

static ds_status dsi_checkpoint_bad_manifest(const ds_checkpoint *c, const char *what, ds_error *error) {
    return dsi_fail(error, DS_ERR_INPUT, "'%.300s/manifest.json': %s is missing or wrong", c->folder, what);
}

/* The manifest's values into the list; the texts stay in the document, where hex is decoded in place. */
static ds_status dsi_checkpoint_read_values(ds_checkpoint *c, uint32_t object, ds_error *error) {
    static const char *const kinds[4] = {"text", "number", "integer", "bytes"};
    const dsi_json *doc = &c->manifest;
    uint32_t k = object + 1;
    if (object == DSI_JSON_NONE || doc->nodes[object].type != DSI_JSON_OBJECT)
        return dsi_checkpoint_bad_manifest(c, "values", error);
    for (uint32_t i = 0; i < doc->nodes[object].length; i++, k = doc->nodes[k + 1].next) {
        ds_checkpoint_value *v = (ds_checkpoint_value *)dsi_checkpoint_push(&c->desc.allocator, &c->values, 1);
        const uint32_t inner = k + 1, node = k + 3;
        const char *text;
        char *to;
        bool good = doc->nodes[inner].type == DSI_JSON_OBJECT && doc->nodes[inner].length == 1;
        if (!v) return dsi_checkpoint_no_memory(error, "the manifest's values");
        v->key = doc->nodes[k].as.text;
        for (v->kind = 0; good && strcmp(doc->nodes[k + 2].as.text, kinds[v->kind]) != 0;)
            if (++v->kind == 4) good = false;
        if (!good) return dsi_checkpoint_bad_manifest(c, v->key, error);
        text = dsi_json_text(doc, node);
        if (v->kind == 1 && text) { /* what JSON has no number for */
            v->number = !strcmp(text, "inf") ? HUGE_VAL : !strcmp(text, "-inf") ? -HUGE_VAL : HUGE_VAL - HUGE_VAL;
        } else if (v->kind == 1)
            good = dsi_json_real(doc, node, &v->number);
        else if (v->kind == 2)
            good = dsi_json_integer(doc, node, &v->integer);
        else if ((good = text != NULL)) {
            v->data = text;
            v->bytes = doc->nodes[node].length;
        }
        if (v->kind == 3 && good) {
            to = doc->text + (text - doc->text);
            good = v->bytes % 2 == 0;
            v->bytes /= 2;
            for (size_t b = 0; b < v->bytes && good; b++) {
                const int high = dsi_checkpoint_hex(text[2 * b]), low = dsi_checkpoint_hex(text[2 * b + 1]);
                good = high >= 0 && low >= 0;
                to[b] = (char)(16 * high + low);
            }
        }
        if (!good) return dsi_checkpoint_bad_manifest(c, v->key, error);
    }
    return DS_OK;
}

static void dsi_checkpoint_shard_name(char out[DSI_CHECKPOINT_SHARD_NAME], size_t rank) {
    snprintf(out, DSI_CHECKPOINT_SHARD_NAME, "rank-%05zu.safetensors", rank);
}
static bool dsi_checkpoint_read_sum(const char *text, uint32_t *sum) {
    *sum = 0;
    for (int i = 0; i < 8; i++) {
        if (!text || dsi_checkpoint_hex(text[i]) < 0) return false;
        *sum = *sum << 4 | (uint32_t)dsi_checkpoint_hex(text[i]);
    }
    return true;
}
/* The shards that the manifest lists: names as they must be, sizes, header checksums. */
static ds_status dsi_checkpoint_read_shards(ds_checkpoint *c, uint32_t array, ds_error *error) {
    const dsi_json *doc = &c->manifest;
    uint32_t v = array + 1;
    if (array == DSI_JSON_NONE || doc->nodes[array].type != DSI_JSON_ARRAY)
        return dsi_checkpoint_bad_manifest(c, "shards", error);
    for (uint32_t i = 0; i < doc->nodes[array].length; i++, v = doc->nodes[v].next) {
        const char *file = dsi_json_text(doc, dsi_json_get(doc, v, "file"));
        char expected[DSI_CHECKPOINT_SHARD_NAME], path[DSI_CHECKPOINT_PATH];
        dsi_checkpoint_shard *shard;
        ds_status status;
        int64_t bytes;
        uint32_t sum;
        dsi_checkpoint_shard_name(expected, i);
        if (!file || strcmp(file, expected) != 0 || !dsi_json_integer(doc, dsi_json_get(doc, v, "bytes"), &bytes) ||
            !dsi_checkpoint_read_sum(dsi_json_text(doc, dsi_json_get(doc, v, "header_crc32c")), &sum))
            return dsi_checkpoint_bad_manifest(c, expected, error);
        if ((status = dsi_checkpoint_add_shard(c, file, error))) return status;
        shard = dsi_checkpoint_shard_of(c, i);
        dsi_checkpoint_join(path, c->folder, file);
        if (c->node_local && c->desc.files.exists(c->desc.files.ctx, path) == 0) {
            shard->missing = true;
            shard->bytes = (uint64_t)bytes;
            continue;
        }
        if ((status = dsi_checkpoint_measure_shard(c, shard, path, error))) return status;
        if (shard->bytes != (uint64_t)bytes)
            return dsi_fail(error, DS_ERR_CORRUPT, "'%.300s' is damaged: it has %llu bytes, the manifest says %lld",
                            path, (unsigned long long)shard->bytes, (long long)bytes);
        if ((status = dsi_checkpoint_read_shard(c, i, &sum, error))) return status;
    }
    return DS_OK;
}

/* Opens one tag's folder, c->folder. */
static ds_status dsi_checkpoint_open_folder(ds_checkpoint *c, ds_error *error) {
    const ds_files *f = &c->desc.files;
    const char *tag;
    uint32_t node;
    int kind = f->exists(f->ctx, c->folder);
    ds_status status;
    if (kind < 0) return dsi_checkpoint_failed(error, kind, "look at", c->folder);
    if (kind != 2) return dsi_fail(error, DS_ERR_INPUT, "'%.300s' is no folder", c->folder);
    c->format = DS_CHECKPOINT_OURS;
    status = dsi_checkpoint_read_manifest(&c->desc, c->folder, &c->manifest, error);
    if (status) return status;
    tag = dsi_json_text(&c->manifest, dsi_json_get(&c->manifest, 0, "tag"));
    if (!dsi_checkpoint_good_tag(tag)) return dsi_checkpoint_bad_manifest(c, "tag", error);
    snprintf(c->tag, sizeof c->tag, "%s", tag);
    node = dsi_json_get(&c->manifest, 0, "node_local");
    c->node_local = node != DSI_JSON_NONE && c->manifest.nodes[node].type == DSI_JSON_TRUE;
    if (!dsi_json_integer(&c->manifest, dsi_json_get(&c->manifest, 0, "sequence"), &c->sequence))
        return dsi_checkpoint_bad_manifest(c, "sequence", error);
    status = dsi_checkpoint_read_values(c, dsi_json_get(&c->manifest, 0, "values"), error);
    if (!status) status = dsi_checkpoint_read_shards(c, dsi_json_get(&c->manifest, 0, "shards"), error);
    return status ? status : dsi_checkpoint_settle(c, c->node_local, error);
}

/* Opens folder/tag, or folder/tag.old when a save of the same tag was cut short between two renames. */
static ds_status dsi_checkpoint_open_tag(ds_checkpoint *c, const char *folder, const char *tag, ds_error *error) {
    char name[DSI_CHECKPOINT_TAG + 8];
    ds_status status;
    int kind;
    dsi_checkpoint_join(c->folder, folder, tag);
    kind = c->desc.files.exists(c->desc.files.ctx, c->folder);
    if (kind < 0) return dsi_checkpoint_failed(error, kind, "look at", c->folder);
    if (kind == 0) {
        char old[DSI_CHECKPOINT_PATH];
        snprintf(name, sizeof name, "%s.old", tag);
        dsi_checkpoint_join(old, folder, name);
        if (c->desc.files.exists(c->desc.files.ctx, old) == 2) {
            memcpy(c->folder, old, sizeof old);
            dsi_log(&c->desc.logger, "ds_checkpoint", DS_LOG_WARNING, 4,
                    "a save of '%s' was cut short; its previous version is opened", tag);
        } else
            return dsi_fail(error, DS_ERR_INPUT, "there is no checkpoint '%.200s' in '%.250s'", tag, folder);
    }
    status = dsi_checkpoint_open_folder(c, error);
    if (!status && strcmp(c->tag, tag) != 0)
        status =
            dsi_fail(error, DS_ERR_INPUT, "'%.300s' holds the checkpoint of another tag, '%.100s'", c->folder, c->tag);
    return status;
}

/* The complete tags of a folder, newest first: names into `names`, offsets and sequence numbers into `list`. */
typedef struct dsi_checkpoint_seen {
    int64_t sequence;
    char tag[DSI_CHECKPOINT_TAG + 1];
} dsi_checkpoint_seen;
static int dsi_checkpoint_order_seen(const void *a, const void *b) {
    const dsi_checkpoint_seen *x = (const dsi_checkpoint_seen *)a, *y = (const dsi_checkpoint_seen *)b;
    if (x->sequence != y->sequence) return x->sequence < y->sequence ? 1 : -1;
    return strcmp(x->tag, y->tag);
}
static ds_status dsi_checkpoint_tags(const ds_checkpoint_desc *d, const char *folder, dsi_checkpoint_list *seen,
                                     ds_error *error) {
    dsi_checkpoint_names names;
    const char *name;
    size_t at = 0;
    ds_status status = dsi_checkpoint_list_folder(d, folder, &names, error);
    memset(seen, 0, sizeof *seen);
    seen->each = sizeof(dsi_checkpoint_seen);
    if (status) return status;
    while (!status && (name = dsi_checkpoint_next_name(&names, &at)) != NULL) {
        char tag[DSI_CHECKPOINT_TAG + 8], path[DSI_CHECKPOINT_PATH];
        dsi_checkpoint_seen *one;
        int64_t sequence;
        dsi_json doc;
        ds_error why; /* most are no failures of ours */
        if (strlen(name) > DSI_CHECKPOINT_TAG + 4) continue;
        snprintf(tag, sizeof tag, "%s", name);
        if (dsi_checkpoint_ends(tag, ".old")) tag[strlen(tag) - 4] = 0;
        dsi_checkpoint_join(path, folder, name);
        if (!dsi_checkpoint_good_tag(tag) || d->files.exists(d->files.ctx, path) != 2) continue;
        status = dsi_checkpoint_read_manifest(d, path, &doc, &why);
        if (status == DS_ERR_MEMORY) {
            dsi_fail(error, status, "%s", why.message);
            break;
        }
        if (status) { /* not one of ours, or damaged */
            status = DS_OK;
            continue;
        }
        if (dsi_json_integer(&doc, dsi_json_get(&doc, 0, "sequence"), &sequence) && sequence < INT64_MAX) {
            one = (dsi_checkpoint_seen *)dsi_checkpoint_push(&d->allocator, seen, 1);
            if (one) {
                one->sequence = sequence;
                memcpy(one->tag, tag, sizeof one->tag);
            } else
                status = dsi_checkpoint_no_memory(error, "a list of checkpoints");
        }
        dsi_json_unload(&d->allocator, &doc);
    }
    dsi_checkpoint_list_free(&d->allocator, &names.text);
    if (status)
        dsi_checkpoint_list_free(&d->allocator, seen);
    else if (seen->count)
        qsort(seen->items, seen->count, seen->each, dsi_checkpoint_order_seen);
    return status;
}

/* What a file such as `latest` names: a tag in `out`, else an error. */
static ds_status dsi_checkpoint_read_latest(const ds_checkpoint_desc *d, const char *folder, const char *file,
                                            char out[DSI_CHECKPOINT_TAG + 1], ds_error *error) {
    char path[DSI_CHECKPOINT_PATH], *text;
    size_t bytes;
    ds_status status;
    out[0] = 0;
    dsi_checkpoint_join(path, folder, file);
    status = dsi_checkpoint_read_file(d, path, false, DSI_CHECKPOINT_TAG + 2, &text, &bytes, error);
    if (status) return status;
    {
        size_t n = bytes;
        while (n && (text[n - 1] == '\n' || text[n - 1] == '\r')) n--;
        if (n <= DSI_CHECKPOINT_TAG && strlen(text) == bytes) {
            memcpy(out, text, n);
            out[n] = 0;
        }
    }
    dsi_release(&d->allocator, text, bytes + 1);
    if (dsi_checkpoint_good_tag(out)) return DS_OK;
    out[0] = 0;
    return dsi_fail(error, DS_ERR_CORRUPT, "'%.300s' names no tag", path);
}
static bool dsi_checkpoint_try_another(ds_status status) {
    return status == DS_ERR_CORRUPT || status == DS_ERR_INPUT;
}

/* `latest`, or else the newest that opens. */
static ds_status dsi_checkpoint_open_latest(ds_checkpoint *c, const char *folder, ds_error *error) {
    char tag[DSI_CHECKPOINT_TAG + 1];
    dsi_checkpoint_list seen;
    ds_error first;
    ds_status status = dsi_checkpoint_read_latest(&c->desc, folder, "latest", tag, &first);
    if (!status) {
        status = dsi_checkpoint_open_tag(c, folder, tag, &first);
        if (!status) return DS_OK;
        dsi_checkpoint_clear(c);
    }
    if (dsi_checkpoint_try_another(status) && c->desc.files.exists(c->desc.files.ctx, folder) == 2) {
        status = dsi_checkpoint_tags(&c->desc, folder, &seen, error);
        if (status) return status;
        status = first.status;
        for (size_t i = 0; i < seen.count && dsi_checkpoint_try_another(status); i++) {
            const dsi_checkpoint_seen *one = (const dsi_checkpoint_seen *)(void *)seen.items + i;
            ds_error why;
            if (!strcmp(one->tag, tag)) continue;
            status = dsi_checkpoint_open_tag(c, folder, one->tag, &why);
            if (!status)
                dsi_log(&c->desc.logger, "ds_checkpoint", DS_LOG_WARNING, 2, "opened '%s' instead: %s", one->tag,
                        first.message);
            else {
                dsi_checkpoint_clear(c);
                if (!dsi_checkpoint_try_another(status)) first = why;
            }
        }
        dsi_checkpoint_list_free(&c->desc.allocator, &seen);
    }
    if (status && first.status == DS_ERR_INPUT && !tag[0])
        return dsi_fail(error, DS_ERR_INPUT, "there is no checkpoint in '%.400s'", folder);
    return status ? dsi_fail(error, first.status, "%s", first.message) : DS_OK;
}

static ds_status dsi_checkpoint_check_call(const ds_checkpoint_desc *desc, size_t desc_bytes, int version,
                                           ds_error *error) {
    if (version != DS_CHECKPOINT_VERSION || desc_bytes != sizeof *desc)
        return dsi_fail(
            error, DS_ERR_VERSION,
            "ds_checkpoint: called with version %d and a descriptor of %zu bytes, the implementation is of %d and %zu",
            version, desc_bytes, DS_CHECKPOINT_VERSION, sizeof *desc);
    return DS_OK;
}

DS_API ds_status ds_checkpoint_open_(const ds_checkpoint_desc *desc, size_t desc_bytes, int version, const char *tag,
                                     ds_checkpoint **out, ds_error *error) {
    ds_status status = dsi_checkpoint_check_call(desc, desc_bytes, version, error);
    ds_checkpoint *c;
    if (out) *out = NULL;
    if (status) return status;
    if (!desc || !out || !dsi_checkpoint_good_path(desc->folder))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_checkpoint_open: needs a folder with a name of at most %d bytes",
                        DSI_CHECKPOINT_FOLDER);
    if (tag && !dsi_checkpoint_good_tag(tag))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_checkpoint_open: '%.100s' cannot be a tag", tag);
    c = dsi_checkpoint_new(desc, error);
    if (!c) return DS_ERR_MEMORY;
    status =
        tag ? dsi_checkpoint_open_tag(c, desc->folder, tag, error) : dsi_checkpoint_open_latest(c, desc->folder, error);
    c->desc.folder = NULL; /* the caller's text */
    if (status)
        ds_checkpoint_close(c);
    else
        *out = c;
    return status;
}

// >>reading: values and ranges

DS_API const ds_error *ds_checkpoint_error(const ds_checkpoint *c) {
    return c->error;
}
DS_API const char *ds_checkpoint_tag(const ds_checkpoint *c) {
    return c->tag;
}
DS_API ds_checkpoint_format ds_checkpoint_get_format(const ds_checkpoint *c) {
    return c->format;
}
DS_API size_t ds_checkpoint_count(const ds_checkpoint *c) {
    return c->tensors.count;
}
DS_API size_t ds_checkpoint_shard_count(const ds_checkpoint *c) {
    return c->shards.count;
}
DS_API size_t ds_checkpoint_value_count(const ds_checkpoint *c) {
    return c->values.count;
}
DS_API ds_status ds_checkpoint_shard_at(const ds_checkpoint *c, size_t index, ds_checkpoint_shard_info *out) {
    memset(out, 0, sizeof *out);
    if (index >= c->shards.count)
        return dsi_fail(c->error, DS_ERR_ARGUMENT, "ds_checkpoint_shard_at: %zu of %zu", index, c->shards.count);
    out->name = dsi_checkpoint_shard_of(c, index)->name;
    out->bytes = dsi_checkpoint_shard_of(c, index)->bytes;
    out->missing = dsi_checkpoint_shard_of(c, index)->missing;
    return DS_OK;
}
DS_API ds_status ds_checkpoint_value_at(const ds_checkpoint *c, size_t index, ds_checkpoint_value *out) {
    memset(out, 0, sizeof *out);
    if (index >= c->values.count)
        return dsi_fail(c->error, DS_ERR_ARGUMENT, "ds_checkpoint_value_at: %zu of %zu", index, c->values.count);
    memcpy(out, c->values.items + index * c->values.each, sizeof *out);
    return DS_OK;
}
static ds_status dsi_checkpoint_get(const ds_checkpoint *c, const char *key, int kind, ds_checkpoint_value *out) {
    static const char *const kinds[4] = {"a text", "a number", "an integer", "bytes"};
    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < c->values.count; i++) {
        const ds_checkpoint_value *v = (const ds_checkpoint_value *)(void *)c->values.items + i;
        if (strcmp(v->key, key) != 0) continue;
        if (v->kind != kind)
            return dsi_fail(c->error, DS_ERR_INPUT, "checkpoint '%.200s': value '%.100s' is %s, expected %s", c->tag,
                            key, kinds[v->kind], kinds[kind]);
        *out = *v;
        return DS_OK;
    }
    return dsi_fail(c->error, DS_ERR_INPUT, "checkpoint '%.200s' has no value '%.100s'", c->tag, key);
}
DS_API ds_status ds_checkpoint_get_text(const ds_checkpoint *c, const char *key, const char **value) {
    ds_checkpoint_value v;
    const ds_status status = dsi_checkpoint_get(c, key, 0, &v);
    *value = (const char *)v.data;
    return status;
}
DS_API ds_status ds_checkpoint_get_number(const ds_checkpoint *c, const char *key, double *value) {
    ds_checkpoint_value v;
    const ds_status status = dsi_checkpoint_get(c, key, 1, &v);
    *value = v.number;
    return status;
}
DS_API ds_status ds_checkpoint_get_integer(const ds_checkpoint *c, const char *key, int64_t *value) {
    ds_checkpoint_value v;
    const ds_status status = dsi_checkpoint_get(c, key, 2, &v);
    *value = v.integer;
    return status;
}
static int64_t dsi_checkpoint_value_or(const ds_checkpoint *c, const char *key, int64_t otherwise) {
    int64_t value;
    return ds_checkpoint_get_integer(c, key, &value) ? otherwise : value;
}
DS_API ds_status ds_checkpoint_get_bytes(const ds_checkpoint *c, const char *key, const void **data, size_t *bytes) {
    ds_checkpoint_value v;
    const ds_status status = dsi_checkpoint_get(c, key, 3, &v);
    *data = v.data;
    *bytes = v.bytes;
    return status;
}

DS_API ds_status ds_checkpoint_at(const ds_checkpoint *c, size_t index, ds_checkpoint_info *out) {
    const dsi_checkpoint_tensor_ *t;
    memset(out, 0, sizeof *out);
    if (index >= c->tensors.count)
        return dsi_fail(c->error, DS_ERR_ARGUMENT, "ds_checkpoint_at: tensor %zu of %zu", index, c->tensors.count);
    t = dsi_checkpoint_tensor_of(c, index);
    out->name = t->name;
    out->dtype = t->dtype;
    out->dims = t->dims;
    memcpy(out->shape, t->shape, sizeof out->shape);
    out->numel = t->numel;
    out->parts = t->parts;
    return DS_OK;
}
DS_API ds_status ds_checkpoint_find(const ds_checkpoint *c, const char *name, ds_checkpoint_info *out) {
    const size_t at = dsi_checkpoint_lookup(&c->index, &c->tensors, name);
    if (at != DSI_CHECKPOINT_NONE) return ds_checkpoint_at(c, at, out);
    memset(out, 0, sizeof *out);
    return dsi_fail(c->error, DS_ERR_INPUT, "checkpoint '%.200s' has no tensor '%.200s'", c->tag, name);
}

/* CRC-32 as zip has it (reflected 0xEDB88320), eight bytes at a time; the tables cost less than a page of data does. */
static uint32_t dsi_checkpoint_crc32(uint32_t crc, const char *data, size_t bytes) {
    const unsigned char *p = (const unsigned char *)data;
    uint32_t table[8][256];
    for (uint32_t i = 0; i < 256; i++) {
        table[0][i] = i;
        for (int k = 0; k < 8; k++) table[0][i] = table[0][i] >> 1 ^ (table[0][i] & 1 ? 0xEDB88320u : 0);
    }
    for (int k = 1; k < 8; k++)
        for (int i = 0; i < 256; i++) table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
    for (crc = ~crc; bytes >= 8; bytes -= 8, p += 8) {
        crc ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        crc = table[7][crc & 255] ^ table[6][crc >> 8 & 255] ^ table[5][crc >> 16 & 255] ^ table[4][crc >> 24] ^
              table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
    }
    for (; bytes; bytes--) crc = crc >> 8 ^ table[0][(crc ^ *p++) & 255];
    return ~crc;
}
/* A zip entry is under one checksum: all of it is read when its first byte is asked for. */
static ds_status dsi_checkpoint_check_entry(ds_checkpoint *c, size_t index, const char *path, ds_error *error) {
    dsi_checkpoint_entry *e;
    uint32_t sum = 0;
    if (index == DSI_CHECKPOINT_NONE) return DS_OK;
    e = (dsi_checkpoint_entry *)(void *)c->entries.items + index;
    if (e->checked) return DS_OK;
    c->block_part = DSI_CHECKPOINT_NONE;
    for (uint64_t at = 0; at < e->bytes; at += DSI_CHECKPOINT_BLOCK) {
        const size_t n = e->bytes - at < DSI_CHECKPOINT_BLOCK ? (size_t)(e->bytes - at) : DSI_CHECKPOINT_BLOCK;
        const ds_status status = dsi_checkpoint_take(&c->desc, dsi_checkpoint_shard_of(c, e->shard)->fd, path, c->block,
                                                     n, e->offset + at, error);
        if (status) return status;
        sum = dsi_checkpoint_crc32(sum, c->block, n);
    }
    if (sum != e->sum)
        return dsi_fail(error, DS_ERR_CORRUPT, "'%.200s' is damaged: its entry '%.80s' does not have its checksum",
                        path, e->name);
    e->checked = true;
    return DS_OK;
}

static size_t dsi_checkpoint_part_bytes(const ds_checkpoint *c, const dsi_checkpoint_part *part) {
    return part->count * DS_DTYPE_SIZE(dsi_checkpoint_tensor_of(c, part->tensor)->dtype);
}
/* Blocks of a part whose file is open, read and checked by one or two threads, which take them by turns: while one works out
   a checksum, the other reads. */
typedef struct dsi_checkpoint_span {
    const ds_checkpoint *c;
    const dsi_checkpoint_part *part;
    const char *path;
    char *out;
    size_t first, end; /* numbers of blocks */
    size_t next;       /* taken atomically */
    int failed;        /* the same */
} dsi_checkpoint_span;
typedef struct dsi_checkpoint_lane {
    dsi_checkpoint_span *span;
    size_t number; /* of the block that failed */
    ds_error why;
} dsi_checkpoint_lane;

/* Reads one block and checks it. */
static ds_status dsi_checkpoint_check_block(const dsi_checkpoint_span *s, size_t number, ds_error *error) {
    const ds_checkpoint *c = s->c;
    const size_t at = number * DSI_CHECKPOINT_BLOCK, rest = dsi_checkpoint_part_bytes(c, s->part) - at;
    const size_t bytes = rest < DSI_CHECKPOINT_BLOCK ? rest : DSI_CHECKPOINT_BLOCK;
    const uint64_t offset = s->part->offset + at;
    const char *name = dsi_checkpoint_tensor_of(c, s->part->tensor)->name;
    char *out = s->out + (number - s->first) * DSI_CHECKPOINT_BLOCK;
    uint32_t sum;
    ds_error why;
    const ds_status status = dsi_checkpoint_take(&c->desc, dsi_checkpoint_shard_of(c, s->part->shard)->fd, s->path, out,
                                                 bytes, offset, &why);
    if (status) return dsi_fail(error, status, "tensor '%.150s': %.300s", name, why.message);
    if (!s->part->sums ||
        (dsi_checkpoint_read_sum(s->part->sums + 8 * number, &sum) && dsi_crc32c(0, out, bytes) == sum))
        return DS_OK;
    return dsi_fail(error, DS_ERR_CORRUPT,
                    "tensor '%.150s' is damaged: bytes %llu to %llu of '%.250s' do not have their checksum", name,
                    (unsigned long long)offset, (unsigned long long)(offset + bytes - 1), s->path);
}
static void *dsi_checkpoint_lane_run(void *arg) {
    dsi_checkpoint_lane *lane = (dsi_checkpoint_lane *)arg;
    dsi_checkpoint_span *s = lane->span;
    while (!__atomic_load_n(&s->failed, __ATOMIC_RELAXED)) {
        const size_t number = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
        if (number >= s->end) break;
        if (!dsi_checkpoint_check_block(s, number, &lane->why)) continue;
        lane->number = number;
        __atomic_store_n(&s->failed, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}
/* Blocks [first, end) of a part to `out`. Of several that are damaged the first is named, whichever thread met it. */
static ds_status dsi_checkpoint_read_blocks(ds_checkpoint *c, const dsi_checkpoint_part *part, size_t first, size_t end,
                                            char *out) {
    char path[DSI_CHECKPOINT_PATH];
    dsi_checkpoint_span span = {c, part, path, out, first, end, first, 0};
    dsi_checkpoint_lane lanes[2] = {{&span, end, {DS_OK, ""}}, {&span, end, {DS_OK, ""}}};
    const ds_error *why = &lanes[0].why;
    pthread_t thread;
    ds_status status = dsi_checkpoint_open_shard(c, dsi_checkpoint_shard_of(c, part->shard), path, &lanes[0].why);
    if (!status) status = dsi_checkpoint_check_entry(c, part->entry, path, &lanes[0].why);
    if (status)
        return dsi_fail(c->error, status, "tensor '%.150s': %.300s", dsi_checkpoint_tensor_of(c, part->tensor)->name,
                        why->message);
    if (end - first < DSI_CHECKPOINT_TWO || pthread_create(&thread, NULL, dsi_checkpoint_lane_run, &lanes[1]) != 0)
        dsi_checkpoint_lane_run(&lanes[0]);
    else {
        dsi_checkpoint_lane_run(&lanes[0]);
        pthread_join(thread, NULL);
    }
    if (!span.failed) return DS_OK;
    if (lanes[1].number < lanes[0].number) why = &lanes[1].why;
    return dsi_fail(c->error, why->status, "%s", why->message);
}

/* Elements [begin, begin + count) of a part. Whole blocks of the same dtype go straight to `out`, all at once. */
static ds_status dsi_checkpoint_read_part(ds_checkpoint *c, size_t index, size_t begin, size_t count, ds_dtype dtype,
                                          char *out) {
    const dsi_checkpoint_part *part = dsi_checkpoint_part_of(c, index);
    const ds_dtype from = dsi_checkpoint_tensor_of(c, part->tensor)->dtype;
    const size_t each = DS_DTYPE_SIZE(from), per_block = DSI_CHECKPOINT_BLOCK / each;
    while (count) {
        const size_t number = begin / per_block, inside = begin % per_block;
        const bool last = begin + count == part->count;
        size_t n = per_block - inside < count ? per_block - inside : count;
        ds_status status;
        if (!inside && from == dtype && (n == per_block || last)) {
            const size_t blocks = count / per_block + (last && count % per_block);
            n = blocks * per_block < count ? blocks * per_block : count;
            status = dsi_checkpoint_read_blocks(c, part, number, number + blocks, out);
            if (status) return status;
        } else {
            if (c->block_part != index || c->block_number != number) {
                c->block_part = DSI_CHECKPOINT_NONE;
                status = dsi_checkpoint_read_blocks(c, part, number, number + 1, c->block);
                if (status) return status;
                c->block_part = index;
                c->block_number = number;
            }
            dsi_checkpoint_convert(out, dtype, c->block + inside * each, from, n);
        }
        begin += n;
        count -= n;
        out += n * DS_DTYPE_SIZE(dtype);
    }
    return DS_OK;
}

DS_API ds_status ds_checkpoint_read(ds_checkpoint *c, const char *name, size_t begin, size_t count, ds_dtype dtype,
                                    void *out) {
    const size_t at = dsi_checkpoint_lookup(&c->index, &c->tensors, name);
    const dsi_checkpoint_tensor_ *t;
    char *to = (char *)out;
    size_t low, high;
    if (at == DSI_CHECKPOINT_NONE)
        return dsi_fail(c->error, DS_ERR_INPUT, "checkpoint '%.200s' has no tensor '%.200s'", c->tag, name);
    t = dsi_checkpoint_tensor_of(c, at);
    if (begin > t->numel || count > t->numel - begin || (count && !out))
        return dsi_fail(c->error, DS_ERR_ARGUMENT, "ds_checkpoint_read: tensor '%.200s': elements %zu + %zu of %zu",
                        name, begin, count, t->numel);
    if ((int)dtype < 0 || (int)dtype >= DS_DTYPE_COUNT ||
        (dtype != t->dtype && !(dsi_checkpoint_is_float(dtype) && dsi_checkpoint_is_float(t->dtype))))
        return dsi_fail(c->error, DS_ERR_ARGUMENT,
                        "ds_checkpoint_read: tensor '%.200s' is of dtype %s and cannot be read as dtype %d", name,
                        dsi_checkpoint_dtypes[t->dtype].name, (int)dtype);
    for (low = t->first, high = t->first + t->parts; low < high;) { /* the first part that ends behind `begin` */
        const size_t middle = low + (high - low) / 2;
        const dsi_checkpoint_part *part = dsi_checkpoint_part_of(c, middle);
        if (part->begin + part->count <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    for (; count; low++) {
        const dsi_checkpoint_part *part = dsi_checkpoint_part_of(c, low);
        size_t n;
        ds_status status;
        if (low >= t->first + t->parts || part->begin > begin)
            return dsi_fail(c->error, DS_ERR_INPUT,
                            "tensor '%.200s': element %zu is on another node; bring its shards to '%.200s'", name,
                            begin, c->folder);
        n = part->begin + part->count - begin < count ? part->begin + part->count - begin : count;
        status = dsi_checkpoint_read_part(c, low, begin - part->begin, n, dtype, to);
        if (status) return status;
        begin += n;
        count -= n;
        to += n * DS_DTYPE_SIZE(dtype);
    }
    return DS_OK;
}

DS_API ds_status ds_checkpoint_verify(ds_checkpoint *c) {
    c->block_part = DSI_CHECKPOINT_NONE;
    for (size_t i = 0; i < c->parts.count; i++) {
        const dsi_checkpoint_part *part = dsi_checkpoint_part_of(c, i);
        const size_t blocks = dsi_checkpoint_blocks(dsi_checkpoint_part_bytes(c, part));
        for (size_t b = 0; b < blocks; b++) {
            const ds_status status = dsi_checkpoint_read_blocks(c, part, b, b + 1, c->block);
            if (status) return status;
        }
    }
    return DS_OK;
}

// >>saving

/* What ranks tell each other at every step of a save. */
typedef struct dsi_checkpoint_word {
    ds_error error;
    uint64_t bytes;
    uint32_t header_sum;
    char tag[DSI_CHECKPOINT_TAG + 4];
} dsi_checkpoint_word;

struct ds_checkpoint_writer {
    ds_checkpoint_desc desc;
    size_t ranks;
    bool leader;        /* makes folders and commits */
    const char *latest; /* the file that names the tag */
    char folder[DSI_CHECKPOINT_PATH], made[DSI_CHECKPOINT_PATH], final[DSI_CHECKPOINT_PATH], old[DSI_CHECKPOINT_PATH];
    char tag[DSI_CHECKPOINT_TAG + 1], previous[DSI_CHECKPOINT_TAG + 1]; /* previous: what `latest` named */
    dsi_checkpoint_list items, values;
    dsi_checkpoint_index index;
    dsi_checkpoint_word mine, *words;
    dsi_checkpoint_room room;
    int published; /* what to take back, bits: 1 old version moved, 2 new one in place, 4 `latest` replaced */
    int64_t started;
    ds_error error; /* the first failure of add and set */
    pthread_t thread;
    bool threaded, committed;
    int done; /* set by the thread, atomically */
};

typedef struct dsi_checkpoint_setting {
    const char *key; /* owned, as is the text; bytes as hex, numbers as JSON */
    const char *kind, *text;
    bool quoted;
} dsi_checkpoint_setting;

/* Every rank's status; the first that failed is everyone's, with its rank. */
static ds_status dsi_checkpoint_agree(ds_checkpoint_writer *w, ds_error *error) {
    const ds_group *g = &w->desc.group;
    if (w->ranks == 1)
        w->words[0] = w->mine;
    else {
        const ds_status status = g->exchange(g->ctx, &w->mine, w->words, sizeof w->mine);
        if (status)
            return dsi_fail(error, status, "checkpoint '%.200s': the exchange between ranks failed (status %d)%s%.150s",
                            w->tag, (int)status, w->mine.error.status ? "; this rank: " : "",
                            w->mine.error.status ? w->mine.error.message : "");
    }
    for (size_t r = 0; r < w->ranks; r++)
        if (w->words[r].error.status) {
            if (w->ranks == 1) return dsi_fail(error, w->words[r].error.status, "%s", w->words[r].error.message);
            return dsi_fail(error, w->words[r].error.status, "rank %zu: %.480s", r, w->words[r].error.message);
        }
    return DS_OK;
}
/* The same before there is memory: statuses alone. */
static ds_status dsi_checkpoint_agree_start(const ds_group *g, size_t ranks, ds_status mine, ds_error *error) {
    int32_t all[1024], word = (int32_t)mine;
    ds_status status;
    if (ranks == 1 || ranks > sizeof all / sizeof all[0]) return mine;
    status = g->exchange(g->ctx, &word, all, sizeof word);
    if (status)
        return mine ? mine
                    : dsi_fail(error, status, "ds_checkpoint_begin: the exchange between ranks failed (status %d)",
                               (int)status);
    for (size_t r = 0; r < ranks && !mine; r++)
        if (all[r])
            return dsi_fail(error, (ds_status)all[r], "ds_checkpoint_begin: rank %zu could not begin (status %d)", r,
                            (int)all[r]);
    return mine;
}

static void dsi_checkpoint_writer_free(ds_checkpoint_writer *w) {
    const ds_allocator a = w->desc.allocator;
    for (size_t i = 0; i < w->values.count; i++) {
        dsi_checkpoint_setting *v = (dsi_checkpoint_setting *)(void *)w->values.items + i;
        dsi_checkpoint_free_text(&a, v->key);
        dsi_checkpoint_free_text(&a, v->text);
    }
    dsi_checkpoint_list_free(&a, &w->values);
    dsi_checkpoint_items_free(&a, &w->items);
    dsi_checkpoint_index_free(&a, &w->index);
    dsi_checkpoint_room_free(&a, &w->room);
    dsi_release(&a, w->words, w->ranks * sizeof *w->words);
    dsi_release(&a, w, sizeof *w);
}

static void dsi_checkpoint_paths(ds_checkpoint_writer *w) {
    char name[DSI_CHECKPOINT_TAG + 8];
    dsi_checkpoint_join(w->final, w->folder, w->tag);
    snprintf(name, sizeof name, "%s.tmp", w->tag);
    dsi_checkpoint_join(w->made, w->folder, name);
    snprintf(name, sizeof name, "%s.old", w->tag);
    dsi_checkpoint_join(w->old, w->folder, name);
}

/* All ranks take rank 0's tag, or refuse. */
static ds_status dsi_checkpoint_one_tag(ds_checkpoint_writer *w, ds_error *error) {
    ds_status status;
    snprintf(w->mine.tag, sizeof w->mine.tag, "%s", w->tag);
    status = dsi_checkpoint_agree(w, error);
    if (status) return status;
    for (size_t r = 1; r < w->ranks; r++) {
        if (!strcmp(w->words[r].tag, w->words[0].tag)) continue;
        if (w->desc.tag_validation == 2)
            return dsi_fail(error, DS_ERR_INPUT, "checkpoint tags differ: '%.150s' on rank 0, '%.150s' on rank %zu",
                            w->words[0].tag, w->words[r].tag, r);
        if (w->desc.tag_validation == 0 && w->desc.group.rank == 0)
            dsi_log(&w->desc.logger, "ds_checkpoint", DS_LOG_WARNING, 1,
                    "checkpoint tags differ: '%s' on rank 0, which counts, '%s' on rank %zu", w->words[0].tag,
                    w->words[r].tag, r);
    }
    snprintf(w->tag, sizeof w->tag, "%.200s", w->words[0].tag);
    dsi_checkpoint_paths(w);
    return DS_OK;
}

/* Puts right what a killed save of this tag left, and makes the folder to write in. */
static ds_status dsi_checkpoint_prepare(ds_checkpoint_writer *w, ds_error *error) {
    const ds_checkpoint_desc *d = &w->desc;
    ds_status status = dsi_checkpoint_make_folder(d, w->folder, error);
    int result;
    if (!status && d->files.exists(d->files.ctx, w->old) == 2) {
        if (d->files.exists(d->files.ctx, w->final) == 0) {
            result = d->files.rename(d->files.ctx, w->old, w->final);
            if (result < 0) return dsi_checkpoint_failed(error, result, "rename", w->old);
            dsi_log(&d->logger, "ds_checkpoint", DS_LOG_WARNING, 4,
                    "a save of '%s' was cut short; its previous version is back", w->tag);
        } else
            status = dsi_checkpoint_remove(d, w->old, DSI_CHECKPOINT_DEPTH, error);
    }
    if (!status) status = dsi_checkpoint_remove(d, w->made, DSI_CHECKPOINT_DEPTH, error);
    if (!status && (result = d->files.mkdir(d->files.ctx, w->made, 0777)) < 0)
        status = dsi_checkpoint_failed(error, result, "make the folder", w->made);
    return status;
}

static ds_status dsi_checkpoint_check_begin(const ds_checkpoint_desc *d, const char *tag, ds_error *error) {
    if (!dsi_checkpoint_good_path(d->folder))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_checkpoint_begin: needs a folder with a name of at most %d bytes",
                        DSI_CHECKPOINT_FOLDER);
    if (!dsi_checkpoint_good_tag(tag))
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_checkpoint_begin: '%.100s' cannot be a tag", tag ? tag : "(NULL)");
    if (d->tag_validation < 0 || d->tag_validation > 2 || d->keep_last < 0)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_checkpoint_begin: tag_validation %d, keep_last %d",
                        d->tag_validation, d->keep_last);
    return DS_OK;
}

DS_API ds_status ds_checkpoint_begin_(const ds_checkpoint_desc *desc, size_t desc_bytes, int version, const char *tag,
                                      ds_checkpoint_writer **out, ds_error *error) {
    ds_status status = dsi_checkpoint_check_call(desc, desc_bytes, version, error);
    ds_checkpoint_writer *w = NULL;
    size_t ranks;
    if (out) *out = NULL;
    if (status) return status;
    if (!desc || !out || desc->group.rank < 0 ||
        (desc->group.size > 1 && (!desc->group.exchange || desc->group.rank >= desc->group.size)))
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "ds_checkpoint_begin: needs a descriptor, a place for the writer and a whole group");
    ranks = desc->group.size > 1 ? (size_t)desc->group.size : 1;
    status = dsi_checkpoint_check_begin(desc, tag, error);
    if (!status) {
        w = (ds_checkpoint_writer *)dsi_alloc_zero(&desc->allocator, sizeof *w);
        if (w) w->words = (dsi_checkpoint_word *)dsi_alloc_zero(&desc->allocator, dsi_mul(ranks, sizeof *w->words));
        if (!w || !w->words) status = dsi_checkpoint_no_memory(error, "a checkpoint's writer");
    }
    status = dsi_checkpoint_agree_start(&desc->group, ranks, status, error);
    if (status) {
        if (w) dsi_release(&desc->allocator, w->words, ranks * sizeof *w->words);
        dsi_release(&desc->allocator, w, sizeof *w);
        return status;
    }
    w->desc = *desc;
    w->desc.files = dsi_files(&desc->files);
    w->latest = "latest";
    w->ranks = ranks;
    w->leader = desc->node_local ? desc->local_rank == 0 : desc->group.rank == 0;
    w->items.each = sizeof(dsi_checkpoint_item);
    w->values.each = sizeof(dsi_checkpoint_setting);
    w->started = dsi_now(&w->desc.clock);
    snprintf(w->folder, sizeof w->folder, "%s", desc->folder);
    w->desc.folder = w->folder;
    snprintf(w->tag, sizeof w->tag, "%s", tag);
    status = dsi_checkpoint_one_tag(w, error);
    if (!status) {
        if (w->leader) dsi_checkpoint_prepare(w, &w->mine.error);
        status = dsi_checkpoint_agree(w, error);
    }
    if (status)
        dsi_checkpoint_writer_free(w);
    else
        *out = w;
    return status;
}

static ds_status dsi_checkpoint_keep_error(ds_checkpoint_writer *w, const ds_error *error) {
    if (!w->error.status && !w->committed) w->error = *error; /* a thread may read it from then on */
    return error->status;
}
DS_API const ds_error *ds_checkpoint_writer_error(const ds_checkpoint_writer *w) {
    return &w->error;
}
DS_API ds_status ds_checkpoint_add(ds_checkpoint_writer *w, const ds_checkpoint_tensor *tensor) {
    ds_error error;
    const ds_status status = w->committed
                                 ? dsi_fail(&error, DS_ERR_STATE, "ds_checkpoint_add after commit")
                                 : dsi_checkpoint_declare(&w->desc.allocator, &w->items, &w->index, tensor, &error);
    return status ? dsi_checkpoint_keep_error(w, &error) : DS_OK;
}

/* Takes `text`, which is owned from here on; NULL means that there was no memory for it. */
static ds_status dsi_checkpoint_set(ds_checkpoint_writer *w, const char *key, const char *kind, char *text,
                                    bool quoted) {
    const ds_allocator *a = &w->desc.allocator;
    dsi_checkpoint_setting *v;
    ds_error error;
    ds_status status = DS_OK;
    if (w->committed)
        status = dsi_fail(&error, DS_ERR_STATE, "a value is set after commit");
    else if (!key || !key[0] || !dsi_checkpoint_utf8(key))
        status = dsi_fail(&error, DS_ERR_ARGUMENT, "a value needs a key in UTF-8");
    else if (!text)
        status = dsi_checkpoint_no_memory(&error, key);
    for (size_t i = 0; i < w->values.count && !status; i++)
        if (!strcmp(dsi_checkpoint_name(&w->values, i), key))
            status = dsi_fail(&error, DS_ERR_ARGUMENT, "value '%.200s' was set twice", key);
    if (!status && (v = (dsi_checkpoint_setting *)dsi_checkpoint_push(a, &w->values, 1)) != NULL) {
        v->key = dsi_checkpoint_copy_text(a, key);
        v->kind = kind;
        v->text = text;
        v->quoted = quoted;
        if (v->key) return DS_OK;
        w->values.count--;
    }
    dsi_checkpoint_free_text(a, text);
    if (!status) dsi_checkpoint_no_memory(&error, key);
    return dsi_checkpoint_keep_error(w, &error);
}
DS_API ds_status ds_checkpoint_set_text(ds_checkpoint_writer *w, const char *key, const char *value) {
    ds_error error;
    if (!value || !dsi_checkpoint_utf8(value)) {
        dsi_fail(&error, DS_ERR_ARGUMENT, "value '%.200s' is no text in UTF-8", key ? key : "");
        return dsi_checkpoint_keep_error(w, &error);
    }
    return dsi_checkpoint_set(w, key, "text", dsi_checkpoint_copy_text(&w->desc.allocator, value), true);
}
DS_API ds_status ds_checkpoint_set_number(ds_checkpoint_writer *w, const char *key, double value) {
    char number[DSI_JSON_NUMBER_ROOM];
    const bool finite = value - value == 0;
    dsi_json_print_real(value, number);
    return dsi_checkpoint_set(w, key, "number",
                              dsi_checkpoint_copy_text(&w->desc.allocator, finite      ? number
                                                                           : value > 0 ? "inf"
                                                                           : value < 0 ? "-inf"
                                                                                       : "nan"),
                              !finite);
}
DS_API ds_status ds_checkpoint_set_integer(ds_checkpoint_writer *w, const char *key, int64_t value) {
    char number[DSI_JSON_NUMBER_ROOM];
    snprintf(number, sizeof number, "%lld", (long long)value);
    return dsi_checkpoint_set(w, key, "integer", dsi_checkpoint_copy_text(&w->desc.allocator, number), false);
}
DS_API ds_status ds_checkpoint_set_bytes(ds_checkpoint_writer *w, const char *key, const void *data, size_t bytes) {
    char *text = (char *)dsi_alloc(&w->desc.allocator, dsi_add(dsi_mul(2, bytes), 1));
    for (size_t i = 0; text && i < bytes; i++) {
        const unsigned char byte = ((const unsigned char *)data)[i];
        text[2 * i] = "0123456789abcdef"[byte >> 4];
        text[2 * i + 1] = "0123456789abcdef"[byte & 15];
    }
    if (text) text[2 * bytes] = 0;
    return dsi_checkpoint_set(w, key, "bytes", text, true);
}

static void dsi_checkpoint_print_manifest(const ds_checkpoint_writer *w, int64_t sequence, dsi_json_sink *s) {
    bool first = true;
    dsi_json_puts(s, "{\n\"format\": \"ds checkpoint 1\",\n\"tag\": ");
    dsi_json_put_string(s, w->tag, strlen(w->tag));
    dsi_json_puts(s, ",\n\"sequence\": ");
    dsi_json_put_integer(s, sequence);
    dsi_json_puts(s, w->desc.node_local ? ",\n\"node_local\": true,\n\"shards\": [\n"
                                        : ",\n\"node_local\": false,\n\"shards\": [\n");
    for (size_t r = 0; r < w->ranks; r++) {
        char name[DSI_CHECKPOINT_SHARD_NAME], line[128];
        dsi_checkpoint_shard_name(name, r);
        snprintf(line, sizeof line, "{\"file\": \"%s\", \"bytes\": %llu, \"header_crc32c\": \"%08x\"}%s\n", name,
                 (unsigned long long)w->words[r].bytes, (unsigned)w->words[r].header_sum, r + 1 < w->ranks ? "," : "");
        dsi_json_puts(s, line);
    }
    dsi_json_puts(s, "],\n\"values\": {");
    for (size_t i = 0; i < w->values.count; i++) {
        const dsi_checkpoint_setting *v = (const dsi_checkpoint_setting *)(void *)w->values.items + i;
        dsi_checkpoint_put_member(s, &first, v->key);
        dsi_json_puts(s, " {\"");
        dsi_json_puts(s, v->kind);
        dsi_json_puts(s, "\": ");
        if (v->quoted)
            dsi_json_put_string(s, v->text, strlen(v->text));
        else
            dsi_json_puts(s, v->text);
        dsi_json_puts(s, "}");
    }
    dsi_json_puts(s, "}");
}

/* Opens the written shards as a reader would: their headers, and that the parts cover every tensor. */
static ds_status dsi_checkpoint_review(ds_checkpoint_writer *w, ds_error *error) {
    ds_checkpoint *c = dsi_checkpoint_new(&w->desc, error);
    ds_status status = DS_OK;
    if (!c) return DS_ERR_MEMORY;
    memcpy(c->folder, w->made, sizeof c->folder);
    for (size_t r = 0; r < w->ranks && !status; r++) {
        char name[DSI_CHECKPOINT_SHARD_NAME], path[DSI_CHECKPOINT_PATH];
        dsi_checkpoint_shard_name(name, r);
        dsi_checkpoint_join(path, w->made, name);
        status = dsi_checkpoint_add_shard(c, name, error);
        if (!status && w->desc.node_local && w->desc.files.exists(w->desc.files.ctx, path) == 0) continue;
        if (!status) status = dsi_checkpoint_read_shard(c, r, &w->words[r].header_sum, error);
        if (!status && dsi_checkpoint_shard_of(c, r)->bytes != w->words[r].bytes)
            status = dsi_fail(error, DS_ERR_CORRUPT, "'%.300s' has another size than rank %zu wrote", path, r);
    }
    if (!status) status = dsi_checkpoint_settle(c, w->desc.node_local, error);
    ds_checkpoint_close(c);
    return status;
}

/* The manifest, after the review; then all is on disk but not yet in place. */
static ds_status dsi_checkpoint_write_manifest(ds_checkpoint_writer *w, ds_error *error) {
    const ds_checkpoint_desc *d = &w->desc;
    dsi_json_sink sink = {NULL, 0, 0};
    char path[DSI_CHECKPOINT_PATH];
    dsi_checkpoint_list seen;
    int64_t sequence = 1;
    size_t bytes;
    ds_status status = dsi_checkpoint_review(w, error);
    if (!status) status = dsi_checkpoint_tags(d, w->folder, &seen, error);
    if (status) return status;
    if (seen.count) sequence = ((const dsi_checkpoint_seen *)(void *)seen.items)->sequence + 1;
    dsi_checkpoint_list_free(&d->allocator, &seen);
    dsi_checkpoint_print_manifest(w, sequence, &sink);
    bytes = sink.length + DSI_CHECKPOINT_TAIL;
    dsi_checkpoint_join(path, w->made, "manifest.json");
    if (bytes > DSI_CHECKPOINT_HEADER)
        return dsi_fail(error, DS_ERR_ARGUMENT, "the manifest of '%.200s' would have %zu bytes", w->tag, bytes);
    sink.out = (char *)dsi_alloc(&d->allocator, bytes);
    if (!sink.out) return dsi_checkpoint_no_memory(error, "the manifest");
    sink.room = bytes;
    sink.length = 0;
    dsi_checkpoint_print_manifest(w, sequence, &sink);
    dsi_checkpoint_put_tail(&sink, dsi_crc32c(0, sink.out, sink.length));
    status = dsi_checkpoint_write_file(d, path, sink.out, bytes, error);
    dsi_release(&d->allocator, sink.out, bytes);
    return status ? status : dsi_checkpoint_sync_folder(d, w->made, error);
}

/* Puts the folder in place and `latest` to it. */
static ds_status dsi_checkpoint_publish(ds_checkpoint_writer *w, ds_error *error) {
    const ds_checkpoint_desc *d = &w->desc;
    ds_error none;
    ds_status status;
    int result = d->files.exists(d->files.ctx, w->final);
    if (result < 0) return dsi_checkpoint_failed(error, result, "look at", w->final);
    dsi_checkpoint_read_latest(d, w->folder, w->latest, w->previous, &none);
    if (result) {
        result = d->files.rename(d->files.ctx, w->final, w->old);
        if (result < 0) return dsi_checkpoint_failed(error, result, "rename", w->final);
        w->published = 1;
    }
    result = d->files.rename(d->files.ctx, w->made, w->final);
    if (result < 0) return dsi_checkpoint_failed(error, result, "rename", w->made);
    w->published |= 2;
    status = dsi_checkpoint_sync_folder(d, w->folder, error);
    if (status) return status;
    w->published |= 4;
    return dsi_checkpoint_replace_file(d, w->folder, w->latest, w->tag, strlen(w->tag), error);
}
/* After a failure of any rank: the folder as it was, as far as the file system still obeys. */
static void dsi_checkpoint_take_back(ds_checkpoint_writer *w) {
    const ds_checkpoint_desc *d = &w->desc;
    char path[DSI_CHECKPOINT_PATH];
    if (w->published & 4) {
        if (w->previous[0])
            dsi_checkpoint_replace_file(d, w->folder, w->latest, w->previous, strlen(w->previous), NULL);
        else {
            dsi_checkpoint_join(path, w->folder, w->latest);
            d->files.unlink(d->files.ctx, path);
        }
    }
    if (w->published & 2) d->files.rename(d->files.ctx, w->final, w->made);
    if (w->published & 1) d->files.rename(d->files.ctx, w->old, w->final);
    dsi_checkpoint_remove(d, w->made, DSI_CHECKPOINT_DEPTH, NULL);
    if (w->published) dsi_checkpoint_sync_folder(d, w->folder, NULL);
}

/* After a commit: the replaced version, and tags beyond keep_last. What fails here is logged and no failure of the save. */
static void dsi_checkpoint_clean_up(ds_checkpoint_writer *w) {
    const ds_checkpoint_desc *d = &w->desc;
    dsi_checkpoint_list seen;
    ds_error error;
    char path[DSI_CHECKPOINT_PATH];
    if (w->published & 1 && dsi_checkpoint_remove(d, w->old, DSI_CHECKPOINT_DEPTH, &error))
        dsi_log(&d->logger, "ds_checkpoint", DS_LOG_WARNING, 3, "the replaced version stays: %s", error.message);
    if (!d->keep_last) return;
    if (dsi_checkpoint_tags(d, w->folder, &seen, &error)) {
        dsi_log(&d->logger, "ds_checkpoint", DS_LOG_WARNING, 3, "old checkpoints stay: %s", error.message);
        return;
    }
    for (size_t i = (size_t)d->keep_last; i < seen.count; i++) {
        const char *tag = ((const dsi_checkpoint_seen *)(void *)seen.items)[i].tag;
        dsi_checkpoint_join(path, w->folder, tag);
        if (strcmp(tag, w->tag) != 0 && dsi_checkpoint_remove(d, path, DSI_CHECKPOINT_DEPTH, &error))
            dsi_log(&d->logger, "ds_checkpoint", DS_LOG_WARNING, 3, "checkpoint '%s' stays: %s", tag, error.message);
    }
    dsi_checkpoint_list_free(&d->allocator, &seen);
}

static void dsi_checkpoint_my_path(const ds_checkpoint_writer *w, char *path) {
    char name[DSI_CHECKPOINT_SHARD_NAME];
    dsi_checkpoint_shard_name(name, (size_t)w->desc.group.rank);
    dsi_checkpoint_join(path, w->made, name);
}
static void dsi_checkpoint_write_mine(ds_checkpoint_writer *w) {
    char path[DSI_CHECKPOINT_PATH];
    dsi_checkpoint_my_path(w, path);
    if (w->error.status)
        w->mine.error = w->error;
    else
        dsi_checkpoint_write_shard(&w->desc, path, (dsi_checkpoint_item *)(void *)w->items.items, w->items.count, NULL,
                                   0, &w->room, &w->mine.bytes, &w->mine.header_sum, &w->mine.error);
}

/* All that follows the shards. Frees the writer. */
static ds_status dsi_checkpoint_conclude(ds_checkpoint_writer *w, ds_error *error) {
    uint64_t bytes = 0;
    ds_status status = dsi_checkpoint_agree(w, error);
    if (w->room.refused)
        dsi_log(&w->desc.logger, "ds_checkpoint", DS_LOG_INFO, 6, "'%.300s' takes no direct writes: %s", w->folder,
                strerror(-w->room.refused));
    if (!status) {
        for (size_t r = 0; r < w->ranks; r++) bytes += w->words[r].bytes;
        if (w->leader) dsi_checkpoint_write_manifest(w, &w->mine.error);
        status = dsi_checkpoint_agree(w, error);
    }
    if (!status) {
        if (w->leader) dsi_checkpoint_publish(w, &w->mine.error);
        status = dsi_checkpoint_agree(w, error);
    }
    if (w->leader) {
        if (status)
            dsi_checkpoint_take_back(w);
        else
            dsi_checkpoint_clean_up(w);
    }
    if (!status && w->desc.group.rank == 0)
        dsi_log(&w->desc.logger, "ds_checkpoint", DS_LOG_INFO, 5, "saved '%s': %llu bytes in %.3f s", w->tag,
                (unsigned long long)bytes, (double)(dsi_now(&w->desc.clock) - w->started) / 1e9);
    dsi_checkpoint_writer_free(w);
    return status;
}

/* Copies the data of a background save, so that training may change it. */
static ds_status dsi_checkpoint_copy_data(ds_checkpoint_writer *w, ds_error *error) {
    for (size_t i = 0; i < w->items.count; i++) {
        dsi_checkpoint_item *item = (dsi_checkpoint_item *)(void *)w->items.items + i;
        ds_checkpoint_tensor *t = &item->tensor;
        const size_t each = DS_DTYPE_SIZE(t->dtype);
        item->copy = dsi_alloc(&w->desc.allocator, item->bytes);
        if (!item->copy) return dsi_checkpoint_no_memory(error, "the copy of a background save");
        if (t->data && item->bytes) memcpy(item->copy, t->data, item->bytes);
        for (size_t e = 0; !t->data && e < t->count; e += DSI_CHECKPOINT_CHUNK) {
            const size_t n = t->count - e < DSI_CHECKPOINT_CHUNK ? t->count - e : DSI_CHECKPOINT_CHUNK;
            const ds_status status = t->read(t->ctx, t->begin + e, n, (char *)item->copy + e * each);
            if (status)
                return dsi_fail(error, status, "tensor '%.200s': its elements %zu.. could not be read (status %d)",
                                t->name, t->begin + e, (int)status);
        }
        t->data = item->copy;
    }
    return DS_OK;
}
static void *dsi_checkpoint_thread(void *arg) {
    ds_checkpoint_writer *w = (ds_checkpoint_writer *)arg;
    dsi_checkpoint_write_mine(w);
    __atomic_store_n(&w->done, 1, __ATOMIC_RELEASE);
    return NULL;
}

DS_API ds_status ds_checkpoint_commit(ds_checkpoint_writer *w, ds_error *error) {
    char path[DSI_CHECKPOINT_PATH];
    if (!w) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_checkpoint_commit: no writer");
    if (w->committed)
        return dsi_fail(error, DS_ERR_STATE, "ds_checkpoint_commit: called before; ds_checkpoint_finish comes next");
    w->committed = true;
    if (!w->error.status && w->desc.background) dsi_checkpoint_copy_data(w, &w->error);
    if (!w->error.status) {
        dsi_checkpoint_my_path(w, path);
        dsi_checkpoint_room_take(&w->desc, path, (dsi_checkpoint_item *)(void *)w->items.items, w->items.count, NULL, 0,
                                 &w->room, &w->error);
    }
    if (!w->desc.background) {
        dsi_checkpoint_write_mine(w);
        return dsi_checkpoint_conclude(w, error);
    }
    w->threaded = pthread_create(&w->thread, NULL, dsi_checkpoint_thread, w) == 0;
    if (!w->threaded) dsi_checkpoint_thread(w); /* no thread: the same, only not beside the training */
    return DS_OK;
}
static void dsi_checkpoint_join_thread(ds_checkpoint_writer *w) {
    if (w->threaded) pthread_join(w->thread, NULL);
    w->threaded = false;
}
DS_API ds_status ds_checkpoint_finish(ds_checkpoint_writer *w, ds_error *error) {
    if (!w || !w->committed)
        return dsi_fail(error, DS_ERR_STATE, "ds_checkpoint_finish: nothing was committed in the background");
    dsi_checkpoint_join_thread(w);
    return dsi_checkpoint_conclude(w, error);
}
DS_API bool ds_checkpoint_done(const ds_checkpoint_writer *w) {
    return __atomic_load_n(&w->done, __ATOMIC_ACQUIRE) != 0;
}
DS_API void ds_checkpoint_abandon(ds_checkpoint_writer *w) {
    if (!w) return;
    dsi_checkpoint_join_thread(w);
    memset(&w->mine.error, 0, sizeof w->mine.error);
    dsi_checkpoint_agree(w, NULL); /* nobody writes any more */
    if (w->leader) dsi_checkpoint_remove(&w->desc, w->made, DSI_CHECKPOINT_DEPTH, NULL);
    dsi_checkpoint_writer_free(w);
}

// >>safetensors: exporting

static ds_status dsi_checkpoint_export_file(const ds_checkpoint_desc *d, const char *folder, const char *name,
                                            dsi_checkpoint_item *items, size_t count, const char *const *metadata,
                                            size_t pairs, ds_error *error) {
    char path[DSI_CHECKPOINT_PATH], made[DSI_CHECKPOINT_PATH];
    uint64_t bytes;
    uint32_t sum;
    dsi_checkpoint_room room;
    ds_status status;
    int result;
    dsi_checkpoint_join(path, folder, name);
    snprintf(made, sizeof made, "%.4000s.tmp", path);
    status = dsi_checkpoint_room_take(d, made, items, count, metadata, pairs, &room, error);
    if (status) return status;
    status = dsi_checkpoint_write_shard(d, made, items, count, metadata, pairs, &room, &bytes, &sum, error);
    dsi_checkpoint_room_free(&d->allocator, &room);
    if (!status && (result = d->files.rename(d->files.ctx, made, path)) < 0)
        status = dsi_checkpoint_failed(error, result, "rename to", path);
    if (status) d->files.unlink(d->files.ctx, made);
    return status ? status : dsi_checkpoint_sync_folder(d, folder, error);
}

/* The first item of the shard after the one that begins with `first`. */
static size_t dsi_checkpoint_shard_end(const dsi_checkpoint_item *items, size_t count, size_t first, size_t limit) {
    size_t bytes = 0, i = first;
    for (; i < count && (i == first || items[i].bytes <= limit - bytes); i++) {
        bytes = items[i].bytes > limit ? limit : bytes + items[i].bytes;
    }
    return i;
}
static void dsi_checkpoint_print_index(dsi_json_sink *s, const dsi_checkpoint_item *items, size_t count, size_t limit,
                                       size_t shards, const char *stem, int stem_bytes) {
    size_t total = 0, shard = 0;
    bool first = true;
    for (size_t i = 0; i < count; i++) total += items[i].bytes;
    dsi_json_puts(s, "{\n\"metadata\": {\"total_size\": ");
    dsi_checkpoint_put_size(s, total);
    dsi_json_puts(s, "},\n\"weight_map\": {");
    for (size_t i = 0, end = 0; i < count; i++) {
        char name[DSI_CHECKPOINT_PATH];
        if (i == end) {
            end = dsi_checkpoint_shard_end(items, count, i, limit);
            shard++;
        }
        snprintf(name, sizeof name, "%.*s-%05zu-of-%05zu.safetensors", stem_bytes, stem, shard, shards);
        dsi_checkpoint_put_member(s, &first, items[i].name);
        dsi_json_put_string(s, name, strlen(name));
    }
    dsi_json_puts(s, "}\n}\n");
}

static ds_status dsi_checkpoint_export_shards(const ds_checkpoint_desc *d, const char *folder, const char *stem,
                                              int stem_bytes, dsi_checkpoint_item *items, size_t count,
                                              const char *const *metadata, size_t pairs, size_t limit,
                                              ds_error *error) {
    dsi_json_sink sink = {NULL, 0, 0};
    char name[DSI_CHECKPOINT_PATH];
    size_t shards = 0, bytes;
    ds_status status = DS_OK;
    for (size_t i = 0; i < count; shards++) i = dsi_checkpoint_shard_end(items, count, i, limit);
    for (size_t i = 0, shard = 0; i < count && !status;) {
        const size_t end = dsi_checkpoint_shard_end(items, count, i, limit);
        snprintf(name, sizeof name, "%.*s-%05zu-of-%05zu.safetensors", stem_bytes, stem, ++shard, shards);
        status = dsi_checkpoint_export_file(d, folder, name, items + i, end - i, metadata, pairs, error);
        i = end;
    }
    if (status) return status;
    dsi_checkpoint_print_index(&sink, items, count, limit, shards, stem, stem_bytes);
    bytes = sink.length;
    sink.out = (char *)dsi_alloc(&d->allocator, bytes);
    if (!sink.out) return dsi_checkpoint_no_memory(error, "an index");
    sink.room = bytes;
    sink.length = 0;
    dsi_checkpoint_print_index(&sink, items, count, limit, shards, stem, stem_bytes);
    snprintf(name, sizeof name, "%.*s.safetensors.index.json", stem_bytes, stem);
    status = dsi_checkpoint_replace_file(d, folder, name, sink.out, bytes, error);
    dsi_release(&d->allocator, sink.out, bytes);
    return status;
}

DS_API ds_status ds_safetensors_write(const char *path, const ds_checkpoint_tensor *tensors, size_t count,
                                      const char *const *metadata, size_t metadata_pairs, size_t max_shard_bytes,
                                      const ds_checkpoint_desc *hooks, ds_error *error) {
    ds_checkpoint_desc d;
    dsi_checkpoint_list items;
    dsi_checkpoint_index index;
    char folder[DSI_CHECKPOINT_PATH];
    const char *name;
    size_t bytes = 0;
    ds_status status = DS_OK;
    memset(&d, 0, sizeof d);
    memset(&items, 0, sizeof items);
    memset(&index, 0, sizeof index);
    if (hooks) d = *hooks;
    d.files = dsi_files(hooks ? &hooks->files : NULL);
    items.each = sizeof(dsi_checkpoint_item);
    if (!dsi_checkpoint_good_path(path) || dsi_checkpoint_ends(path, "/") || (count && !tensors) ||
        (metadata_pairs && !metadata))
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "ds_safetensors_write: '%.100s' is no path of a file, or tensors are missing",
                        path ? path : "(NULL)");
    name = dsi_checkpoint_split(path, folder);
    for (size_t i = 0; i < 2 * metadata_pairs; i++)
        if (!metadata[i] || !dsi_checkpoint_utf8(metadata[i]))
            return dsi_fail(error, DS_ERR_ARGUMENT, "ds_safetensors_write: metadata %zu is no text in UTF-8", i / 2);
    for (size_t i = 0; i < count && !status; i++) {
        status = dsi_checkpoint_declare(&d.allocator, &items, &index, &tensors[i], error);
        if (!status && tensors[i].count != ((dsi_checkpoint_item *)(void *)items.items)[i].numel)
            status = dsi_fail(error, DS_ERR_ARGUMENT,
                              "ds_safetensors_write: tensor '%.200s' is not whole: %zu elements of %zu",
                              tensors[i].name, tensors[i].count, ((dsi_checkpoint_item *)(void *)items.items)[i].numel);
        if (!status) bytes = dsi_add(bytes, ((dsi_checkpoint_item *)(void *)items.items)[i].bytes);
    }
    if (!status) {
        const bool ends = dsi_checkpoint_ends(name, ".safetensors");
        if (max_shard_bytes && bytes > max_shard_bytes)
            status = dsi_checkpoint_export_shards(&d, folder, name, (int)strlen(name) - (ends ? 12 : 0),
                                                  (dsi_checkpoint_item *)(void *)items.items, count, metadata,
                                                  metadata_pairs, max_shard_bytes, error);
        else
            status = dsi_checkpoint_export_file(&d, folder, name, (dsi_checkpoint_item *)(void *)items.items, count,
                                                metadata, metadata_pairs, error);
    }
    dsi_checkpoint_items_free(&d.allocator, &items);
    dsi_checkpoint_index_free(&d.allocator, &index);
    return status;
}

// >>zip: the container of .pt files

static uint64_t dsi_checkpoint_little(const char *p, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)(unsigned char)p[i] << 8 * i;
    return value;
}
static ds_status dsi_checkpoint_bad_zip(const char *path, const char *what, ds_error *error) {
    return dsi_fail(error, DS_ERR_INPUT, "'%.300s': no zip file as torch writes it: %s", path, what);
}

/* One record of the central directory; *used gets its length. */
static ds_status dsi_checkpoint_zip_entry(ds_checkpoint *c, size_t index, const char *path, const char *record,
                                          size_t room, uint64_t directory, size_t *used, ds_error *error) {
    dsi_checkpoint_entry *e;
    size_t name_bytes, extra_bytes, at;
    uint64_t packed, offset;
    char local[30], name[512];
    ds_status status;
    if (room < 46 || dsi_checkpoint_little(record, 4) != 0x02014B50u)
        return dsi_checkpoint_bad_zip(path, "its directory is cut or damaged", error);
    name_bytes = (size_t)dsi_checkpoint_little(record + 28, 2);
    extra_bytes = (size_t)dsi_checkpoint_little(record + 30, 2);
    *used = 46 + name_bytes + extra_bytes + (size_t)dsi_checkpoint_little(record + 32, 2);
    if (*used > room || name_bytes >= sizeof name)
        return dsi_checkpoint_bad_zip(path, "its directory is cut or a name too long", error);
    memcpy(name, record + 46, name_bytes);
    name[name_bytes] = 0;
    e = (dsi_checkpoint_entry *)dsi_checkpoint_push(&c->desc.allocator, &c->entries, 1);
    if (!e) return dsi_checkpoint_no_memory(error, path);
    e->shard = index;
    e->name = dsi_checkpoint_keep(c, "", strchr(name, '/') ? strchr(name, '/') + 1 : name);
    if (!e->name) return dsi_checkpoint_no_memory(error, path);
    if (dsi_checkpoint_little(record + 8, 2) & 1) return dsi_checkpoint_bad_zip(path, "it is encrypted", error);
    if (dsi_checkpoint_little(record + 10, 2) != 0)
        return dsi_checkpoint_bad_zip(path, "an entry is compressed", error);
    e->sum = (uint32_t)dsi_checkpoint_little(record + 16, 4);
    packed = dsi_checkpoint_little(record + 20, 4);
    e->bytes = dsi_checkpoint_little(record + 24, 4);
    offset = dsi_checkpoint_little(record + 42, 4);
    for (at = 46 + name_bytes;
         at + 4 <= 46 + name_bytes + extra_bytes;) { /* zip64 puts what does not fit in extra fields */
        const size_t id = (size_t)dsi_checkpoint_little(record + at, 2),
                     n = (size_t)dsi_checkpoint_little(record + at + 2, 2);
        const char *field = record + at + 4, *end = field + n;
        at += 4 + n;
        if (id != 1 || at > 46 + name_bytes + extra_bytes) continue;
        if (e->bytes == 0xFFFFFFFFu && end - field >= 8) e->bytes = dsi_checkpoint_little(field, 8), field += 8;
        if (packed == 0xFFFFFFFFu && end - field >= 8) packed = dsi_checkpoint_little(field, 8), field += 8;
        if (offset == 0xFFFFFFFFu && end - field >= 8) offset = dsi_checkpoint_little(field, 8);
    }
    if (packed != e->bytes || offset > directory || directory - offset < 30)
        return dsi_checkpoint_bad_zip(path, "an entry lies about its size or place", error);
    status = dsi_checkpoint_take(&c->desc, dsi_checkpoint_shard_of(c, index)->fd, path, local, 30, offset, error);
    if (status) return status;
    e->offset = offset + 30 + dsi_checkpoint_little(local + 26, 2) + dsi_checkpoint_little(local + 28, 2);
    if (dsi_checkpoint_little(local, 4) != 0x04034B50u || e->offset > directory || e->bytes > directory - e->offset)
        return dsi_checkpoint_bad_zip(path, "an entry lies about its size or place", error);
    return DS_OK;
}

/* Finds the central directory: its record at the file's end, or the 64-bit one before it. */
static ds_status dsi_checkpoint_zip_end(ds_checkpoint *c, const dsi_checkpoint_shard *shard, const char *path,
                                        char *tail, size_t room, uint64_t *count, uint64_t *bytes, uint64_t *offset,
                                        ds_error *error) {
    size_t at;
    char wide[56];
    ds_status status;
    uint64_t where;
    if (room < 22) return dsi_checkpoint_bad_zip(path, "it is too short", error);
    status = dsi_checkpoint_take(&c->desc, shard->fd, path, tail, room, shard->bytes - room, error);
    if (status) return status;
    for (at = room - 22;; at--) {
        if (dsi_checkpoint_little(tail + at, 4) == 0x06054B50u &&
            dsi_checkpoint_little(tail + at + 20, 2) == room - at - 22)
            break;
        if (at == 0) return dsi_checkpoint_bad_zip(path, "it has no end record", error);
    }
    *count = dsi_checkpoint_little(tail + at + 10, 2);
    *bytes = dsi_checkpoint_little(tail + at + 12, 4);
    *offset = dsi_checkpoint_little(tail + at + 16, 4);
    if (*count == 0xFFFF || *bytes == 0xFFFFFFFFu || *offset == 0xFFFFFFFFu) {
        if (at < 20 || dsi_checkpoint_little(tail + at - 20, 4) != 0x07064B50u)
            return dsi_checkpoint_bad_zip(path, "its 64-bit end record is missing", error);
        where = dsi_checkpoint_little(tail + at - 12, 8);
        if (where > shard->bytes || shard->bytes - where < 56)
            return dsi_checkpoint_bad_zip(path, "its 64-bit end record is elsewhere", error);
        if ((status = dsi_checkpoint_take(&c->desc, shard->fd, path, wide, 56, where, error))) return status;
        if (dsi_checkpoint_little(wide, 4) != 0x06064B50u)
            return dsi_checkpoint_bad_zip(path, "its 64-bit end record is damaged", error);
        *count = dsi_checkpoint_little(wide + 32, 8);
        *bytes = dsi_checkpoint_little(wide + 40, 8);
        *offset = dsi_checkpoint_little(wide + 48, 8);
    }
    if (*offset > shard->bytes || *bytes > shard->bytes - *offset || *count > *bytes / 46)
        return dsi_checkpoint_bad_zip(path, "its directory is not where it should be", error);
    return DS_OK;
}
static ds_status dsi_checkpoint_read_zip(ds_checkpoint *c, size_t index, const char *path, ds_error *error) {
    const ds_allocator *a = &c->desc.allocator;
    const dsi_checkpoint_shard *shard = dsi_checkpoint_shard_of(c, index);
    uint64_t count = 0, bytes = 0, offset = 0;
    const size_t room = shard->bytes < 65557 ? (size_t)shard->bytes : 65557;
    char *text = (char *)dsi_alloc(a, room);
    ds_status status = text ? dsi_checkpoint_zip_end(c, shard, path, text, room, &count, &bytes, &offset, error)
                            : dsi_checkpoint_no_memory(error, path);
    size_t at = 0, used = 0;
    dsi_release(a, text, room);
    if (status) return status;
    text = (char *)dsi_alloc(a, (size_t)bytes);
    if (!text) return dsi_checkpoint_no_memory(error, path);
    status = dsi_checkpoint_take(&c->desc, shard->fd, path, text, (size_t)bytes, offset, error);
    for (uint64_t i = 0; i < count && !status; i++) {
        status = dsi_checkpoint_zip_entry(c, index, path, text + at, (size_t)bytes - at, offset, &used, error);
        at += used;
    }
    dsi_release(a, text, (size_t)bytes);
    return status;
}
static size_t dsi_checkpoint_zip_find(const ds_checkpoint *c, size_t shard, const char *folder, const char *name) {
    const size_t n = strlen(folder);
    for (size_t i = 0; i < c->entries.count; i++) {
        const dsi_checkpoint_entry *e = (const dsi_checkpoint_entry *)(void *)c->entries.items + i;
        if (e->shard == shard && !strncmp(e->name, folder, n) && !strcmp(e->name + n, name)) return i;
    }
    return DSI_CHECKPOINT_NONE;
}

// >>pickle: data out of a .pt file; nothing in it is ever called

/* A machine of a stack and a memo over values in one array. Containers are chains of cells: a list's elements, a dict's
   keys and values by turns. A global is a name from a list, else the file is refused; what torch would call with it is
   done here by its name. */
enum {
    DSI_CHECKPOINT_PICKLE_NONE,
    DSI_CHECKPOINT_PICKLE_BOOL,
    DSI_CHECKPOINT_PICKLE_INT,
    DSI_CHECKPOINT_PICKLE_REAL,
    DSI_CHECKPOINT_PICKLE_TEXT,
    DSI_CHECKPOINT_PICKLE_SEQUENCE,
    DSI_CHECKPOINT_PICKLE_DICT,
    DSI_CHECKPOINT_PICKLE_GLOBAL,
    DSI_CHECKPOINT_PICKLE_OBJECT,
    DSI_CHECKPOINT_PICKLE_STORAGE,
    DSI_CHECKPOINT_PICKLE_TENSOR,
    DSI_CHECKPOINT_PICKLE_MARK
};
typedef struct dsi_checkpoint_pickle_value {
    int type;
    uint32_t first, last, count; /* cells of a container; object: first is its state's value + 1; tensor: its number */
    union {
        int64_t integer;
        double real;
        const char *text; /* in the pickle or kept, with a NUL */
    } as;
} dsi_checkpoint_pickle_value;
typedef struct dsi_checkpoint_pickle_cell {
    uint32_t value, next; /* next: cell + 1 */
} dsi_checkpoint_pickle_cell;
typedef struct dsi_checkpoint_pickle_tensor {
    ds_dtype dtype;
    size_t entry, numel, offset, shape[8], count; /* storage's entry and elements; then the view's */
    int dims;
    bool contiguous;
} dsi_checkpoint_pickle_tensor;
typedef struct dsi_checkpoint_pickle {
    ds_checkpoint *c;
    size_t shard;
    const char *path;
    char *text;
    size_t bytes, at;
    dsi_checkpoint_list values, cells, tensors, stack, memo;
    ds_error *error;
} dsi_checkpoint_pickle;

static dsi_checkpoint_pickle_value *dsi_checkpoint_pickle_at(const dsi_checkpoint_pickle *p, uint32_t i) {
    return (dsi_checkpoint_pickle_value *)(void *)p->values.items + i;
}
static ds_status dsi_checkpoint_pickle_bad(dsi_checkpoint_pickle *p, const char *what) {
    return dsi_fail(p->error, DS_ERR_INPUT, "'%.250s': its pickle cannot be read at byte %zu: %.150s", p->path, p->at,
                    what);
}
static void dsi_checkpoint_pickle_free(dsi_checkpoint_pickle *p) {
    const ds_allocator *a = &p->c->desc.allocator;
    dsi_checkpoint_list_free(a, &p->values);
    dsi_checkpoint_list_free(a, &p->cells);
    dsi_checkpoint_list_free(a, &p->tensors);
    dsi_checkpoint_list_free(a, &p->stack);
    dsi_checkpoint_list_free(a, &p->memo);
    dsi_release(a, p->text, p->bytes + 1);
    p->text = NULL;
}

/* A new value, on the stack; NULL when memory is short. */
static dsi_checkpoint_pickle_value *dsi_checkpoint_pickle_push(dsi_checkpoint_pickle *p, int type) {
    const ds_allocator *a = &p->c->desc.allocator;
    uint32_t *slot = (uint32_t *)dsi_checkpoint_push(a, &p->stack, 1);
    dsi_checkpoint_pickle_value *v = slot ? (dsi_checkpoint_pickle_value *)dsi_checkpoint_push(a, &p->values, 1) : NULL;
    if (!v) {
        dsi_checkpoint_no_memory(p->error, p->path);
        return NULL;
    }
    *slot = (uint32_t)p->values.count - 1;
    v->type = type;
    return v;
}
static uint32_t dsi_checkpoint_pickle_top(const dsi_checkpoint_pickle *p, size_t depth) { /* depth < stack.count */
    return ((const uint32_t *)(void *)p->stack.items)[p->stack.count - 1 - depth];
}
static ds_status dsi_checkpoint_pickle_append(dsi_checkpoint_pickle *p, uint32_t container, uint32_t value) {
    dsi_checkpoint_pickle_cell *cell =
        (dsi_checkpoint_pickle_cell *)dsi_checkpoint_push(&p->c->desc.allocator, &p->cells, 1);
    dsi_checkpoint_pickle_value *v = dsi_checkpoint_pickle_at(p, container);
    if (!cell) return dsi_checkpoint_no_memory(p->error, p->path);
    cell->value = value;
    if (v->last)
        ((dsi_checkpoint_pickle_cell *)(void *)p->cells.items)[v->last - 1].next = (uint32_t)p->cells.count;
    else
        v->first = (uint32_t)p->cells.count;
    v->last = (uint32_t)p->cells.count;
    v->count++;
    return DS_OK;
}
/* Values above the topmost mark; -1 when there is none. */
static int64_t dsi_checkpoint_pickle_marked(const dsi_checkpoint_pickle *p) {
    for (size_t n = 0; n < p->stack.count; n++)
        if (dsi_checkpoint_pickle_at(p, dsi_checkpoint_pickle_top(p, n))->type == DSI_CHECKPOINT_PICKLE_MARK)
            return (int64_t)n;
    return -1;
}
/* Takes the topmost n values, and `below` more, off; the n become elements of `container`. */
static ds_status dsi_checkpoint_pickle_gather(dsi_checkpoint_pickle *p, uint32_t container, size_t n, size_t below) {
    const size_t from = p->stack.count - n;
    for (size_t i = 0; i < n; i++) {
        const ds_status status =
            dsi_checkpoint_pickle_append(p, container, ((const uint32_t *)(void *)p->stack.items)[from + i]);
        if (status) return status;
    }
    p->stack.count = from - below;
    return DS_OK;
}
/* A sequence of the topmost n values in their place; `below`: a mark goes with them. */
static ds_status dsi_checkpoint_pickle_tuple(dsi_checkpoint_pickle *p, size_t n, size_t below) {
    uint32_t made;
    ds_status status;
    if (!dsi_checkpoint_pickle_push(p, DSI_CHECKPOINT_PICKLE_SEQUENCE)) return DS_ERR_MEMORY;
    made = dsi_checkpoint_pickle_top(p, 0);
    p->stack.count--;
    status = dsi_checkpoint_pickle_gather(p, made, n, below);
    if (!status)
        ((uint32_t *)(void *)p->stack.items)[p->stack.count++] = made; /* its place is free: n + below + 1 were there */
    return status;
}

/* Element i of a sequence, or the value under a text key of a dict; UINT32_MAX when there is none. */
static uint32_t dsi_checkpoint_pickle_element(const dsi_checkpoint_pickle *p, uint32_t sequence, size_t i) {
    const dsi_checkpoint_pickle_cell *cells = (const dsi_checkpoint_pickle_cell *)(void *)p->cells.items;
    uint32_t cell;
    if (sequence == UINT32_MAX || dsi_checkpoint_pickle_at(p, sequence)->type != DSI_CHECKPOINT_PICKLE_SEQUENCE)
        return UINT32_MAX;
    cell = dsi_checkpoint_pickle_at(p, sequence)->first;
    for (; cell && i; i--) cell = cells[cell - 1].next;
    return cell ? cells[cell - 1].value : UINT32_MAX;
}
static uint32_t dsi_checkpoint_pickle_get(const dsi_checkpoint_pickle *p, uint32_t dict, const char *key,
                                          int64_t number) {
    const dsi_checkpoint_pickle_cell *cells = (const dsi_checkpoint_pickle_cell *)(void *)p->cells.items;
    uint32_t found = UINT32_MAX;
    if (dict == UINT32_MAX || dsi_checkpoint_pickle_at(p, dict)->type != DSI_CHECKPOINT_PICKLE_DICT) return UINT32_MAX;
    for (uint32_t k = dsi_checkpoint_pickle_at(p, dict)->first; k; k = cells[cells[k - 1].next - 1].next) {
        const dsi_checkpoint_pickle_value *v = dsi_checkpoint_pickle_at(p, cells[k - 1].value);
        if (key ? v->type == DSI_CHECKPOINT_PICKLE_TEXT && !strcmp(v->as.text, key)
                : v->type == DSI_CHECKPOINT_PICKLE_INT && v->as.integer == number)
            found = cells[cells[k - 1].next - 1].value; /* the last of equal keys counts */
    }
    return found;
}
static bool dsi_checkpoint_pickle_integer(const dsi_checkpoint_pickle *p, uint32_t value, int64_t *out) {
    const dsi_checkpoint_pickle_value *v = value == UINT32_MAX ? NULL : dsi_checkpoint_pickle_at(p, value);
    *out = 0;
    if (!v || (v->type != DSI_CHECKPOINT_PICKLE_INT && v->type != DSI_CHECKPOINT_PICKLE_BOOL)) return false;
    *out = v->as.integer;
    return true;
}
static const dsi_checkpoint_pickle_tensor *dsi_checkpoint_pickle_tensor_of(const dsi_checkpoint_pickle *p,
                                                                           uint32_t value) {
    if (value == UINT32_MAX || dsi_checkpoint_pickle_at(p, value)->type != DSI_CHECKPOINT_PICKLE_TENSOR) return NULL;
    return (const dsi_checkpoint_pickle_tensor *)(void *)p->tensors.items + dsi_checkpoint_pickle_at(p, value)->first;
}
/* A sequence of sizes; -1 when it is none or has more than 8. */
static int dsi_checkpoint_pickle_sizes(const dsi_checkpoint_pickle *p, uint32_t sequence, size_t out[8]) {
    int n = 0;
    if (sequence == UINT32_MAX || dsi_checkpoint_pickle_at(p, sequence)->type != DSI_CHECKPOINT_PICKLE_SEQUENCE ||
        dsi_checkpoint_pickle_at(p, sequence)->count > 8)
        return -1;
    for (; n < (int)dsi_checkpoint_pickle_at(p, sequence)->count; n++) {
        int64_t value;
        if (!dsi_checkpoint_pickle_integer(p, dsi_checkpoint_pickle_element(p, sequence, (size_t)n), &value) ||
            value < 0)
            return -1;
        out[n] = (size_t)value;
    }
    return n;
}

static const struct {
    const char *name;
    int dtype;
} dsi_checkpoint_pickle_storages[] = {
    {"torch FloatStorage", DS_F32},  {"torch HalfStorage", DS_F16}, {"torch BFloat16Storage", DS_BF16},
    {"torch DoubleStorage", DS_F64}, {"torch CharStorage", DS_I8},  {"torch ByteStorage", DS_U8},
    {"torch ShortStorage", DS_I16},  {"torch IntStorage", DS_I32},  {"torch LongStorage", DS_I64},
    {"torch BoolStorage", DS_BOOL},
};
#define DSI_CHECKPOINT_STORAGES (sizeof dsi_checkpoint_pickle_storages / sizeof dsi_checkpoint_pickle_storages[0])
static const char *const dsi_checkpoint_pickle_known[] = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch._tensor _rebuild_from_type_v2",
    "torch Tensor",
    "torch.nn.parameter Parameter",
    "torch Size",
    "torch device",
    "torch float32",
    "torch float16",
    "torch bfloat16",
    "torch float64",
    "torch int64",
    "torch int32",
    "collections OrderedDict",
    "collections defaultdict",
    "builtins dict",
    "builtins list",
    "builtins set",
    "builtins int",
    "builtins float",
    "argparse Namespace",
    "deepspeed.runtime.zero.config ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler LossScaler",
    "deepspeed.runtime.fp16.loss_scaler DynamicLossScaler",
    "deepspeed.utils.tensor_fragment fragment_address",
};
static ds_status dsi_checkpoint_pickle_global(dsi_checkpoint_pickle *p, const char *module, const char *name) {
    dsi_checkpoint_pickle_value *v;
    char both[256];
    bool known = false;
    if (!strcmp(module, "__builtin__")) module = "builtins"; /* its name in Python 2, which protocol 2 keeps */
    snprintf(both, sizeof both, "%.120s %.120s", module, name);
    for (size_t i = 0; i < DSI_CHECKPOINT_STORAGES; i++) known |= !strcmp(both, dsi_checkpoint_pickle_storages[i].name);
    for (size_t i = 0; i < sizeof dsi_checkpoint_pickle_known / sizeof *dsi_checkpoint_pickle_known; i++)
        known |= !strcmp(both, dsi_checkpoint_pickle_known[i]);
    if (!known)
        return dsi_fail(p->error, DS_ERR_UNSUPPORTED,
                        "'%.200s': its pickle asks for '%.200s', which is not known and is never called", p->path,
                        both);
    v = dsi_checkpoint_pickle_push(p, DSI_CHECKPOINT_PICKLE_GLOBAL);
    if (!v) return DS_ERR_MEMORY;
    v->as.text = dsi_checkpoint_keep(p->c, "", both);
    return v->as.text ? DS_OK : dsi_checkpoint_no_memory(p->error, p->path);
}
static bool dsi_checkpoint_pickle_named(const dsi_checkpoint_pickle *p, uint32_t value, const char *name) {
    return value != UINT32_MAX && dsi_checkpoint_pickle_at(p, value)->type == DSI_CHECKPOINT_PICKLE_GLOBAL &&
           !strcmp(dsi_checkpoint_pickle_at(p, value)->as.text, name);
}

/* ('storage', StorageType, key, location, elements) becomes a storage: a tensor without a view. */
static ds_status dsi_checkpoint_pickle_storage(dsi_checkpoint_pickle *p) {
    const uint32_t id = dsi_checkpoint_pickle_top(p, 0), type = dsi_checkpoint_pickle_element(p, id, 1),
                   key = dsi_checkpoint_pickle_element(p, id, 2);
    const dsi_checkpoint_entry *entry;
    dsi_checkpoint_pickle_tensor *t;
    dsi_checkpoint_pickle_value *v;
    int64_t numel;
    int dtype = -1;
    for (size_t i = 0; i < DSI_CHECKPOINT_STORAGES; i++)
        if (dsi_checkpoint_pickle_named(p, type, dsi_checkpoint_pickle_storages[i].name))
            dtype = dsi_checkpoint_pickle_storages[i].dtype;
    if (dtype < 0 || key == UINT32_MAX || dsi_checkpoint_pickle_at(p, key)->type != DSI_CHECKPOINT_PICKLE_TEXT ||
        !dsi_checkpoint_pickle_integer(p, dsi_checkpoint_pickle_element(p, id, 4), &numel) || numel < 0)
        return dsi_checkpoint_pickle_bad(p, "a storage is not described as torch does");
    t = (dsi_checkpoint_pickle_tensor *)dsi_checkpoint_push(&p->c->desc.allocator, &p->tensors, 1);
    if (!t) return dsi_checkpoint_no_memory(p->error, p->path);
    t->dtype = (ds_dtype)dtype;
    t->numel = (size_t)numel;
    t->entry = dsi_checkpoint_zip_find(p->c, p->shard, "data/", dsi_checkpoint_pickle_at(p, key)->as.text);
    if (t->entry == DSI_CHECKPOINT_NONE) return dsi_checkpoint_pickle_bad(p, "a storage is not in the file");
    entry = (const dsi_checkpoint_entry *)(void *)p->c->entries.items + t->entry;
    if (t->numel > entry->bytes / DS_DTYPE_SIZE(t->dtype))
        return dsi_checkpoint_pickle_bad(p, "a storage is shorter than it is said to be");
    p->stack.count--;
    v = dsi_checkpoint_pickle_push(p, DSI_CHECKPOINT_PICKLE_STORAGE);
    if (v) v->first = (uint32_t)p->tensors.count - 1;
    return v ? DS_OK : DS_ERR_MEMORY;
}
/* (storage, offset, sizes, strides, ...) becomes a tensor, pushed. */
static ds_status dsi_checkpoint_pickle_rebuild(dsi_checkpoint_pickle *p, uint32_t args) {
    const uint32_t storage = dsi_checkpoint_pickle_element(p, args, 0);
    size_t shape[8], strides[8], expected = 1;
    const int dims = dsi_checkpoint_pickle_sizes(p, dsi_checkpoint_pickle_element(p, args, 2), shape);
    dsi_checkpoint_pickle_tensor *t;
    dsi_checkpoint_pickle_value *v;
    int64_t offset;
    if (storage == UINT32_MAX || dsi_checkpoint_pickle_at(p, storage)->type != DSI_CHECKPOINT_PICKLE_STORAGE ||
        dims < 0 || dsi_checkpoint_pickle_sizes(p, dsi_checkpoint_pickle_element(p, args, 3), strides) != dims ||
        !dsi_checkpoint_pickle_integer(p, dsi_checkpoint_pickle_element(p, args, 1), &offset) || offset < 0)
        return dsi_checkpoint_pickle_bad(p, "a tensor is not described as torch does");
    t = (dsi_checkpoint_pickle_tensor *)dsi_checkpoint_push(&p->c->desc.allocator, &p->tensors, 1);
    if (!t) return dsi_checkpoint_no_memory(p->error, p->path);
    *t = ((const dsi_checkpoint_pickle_tensor *)(void *)p->tensors.items)[dsi_checkpoint_pickle_at(p, storage)->first];
    t->dims = dims;
    t->offset = (size_t)offset;
    t->contiguous = true;
    if (!dsi_checkpoint_numel(shape, dims, &t->count)) return dsi_checkpoint_pickle_bad(p, "a tensor is too large");
    for (int i = dims - 1; i >= 0; i--) {
        t->shape[i] = shape[i];
        if (shape[i] > 1 && strides[i] != expected) t->contiguous = false;
        expected *= shape[i];
    }
    if (t->count && t->contiguous && (t->offset > t->numel || t->count > t->numel - t->offset))
        return dsi_checkpoint_pickle_bad(p, "a tensor reaches beyond its storage");
    v = dsi_checkpoint_pickle_push(p, DSI_CHECKPOINT_PICKLE_TENSOR);
    if (v) v->first = (uint32_t)p->tensors.count - 1;
    return v ? DS_OK : DS_ERR_MEMORY;
}
/* What `callable` called with `args` would give, pushed. */
static ds_status dsi_checkpoint_pickle_reduce(dsi_checkpoint_pickle *p, uint32_t callable, uint32_t args) {
    const uint32_t first = dsi_checkpoint_pickle_element(p, args, 0);
    uint32_t *slot;
    uint32_t same = UINT32_MAX;
    for (int i = 0; dsi_checkpoint_pickle_named(p, callable, "torch._tensor _rebuild_from_type_v2") && i < 2; i++) {
        callable = dsi_checkpoint_pickle_element(p, args, 0);
        args = dsi_checkpoint_pickle_element(p, args, 2);
    }
    if (dsi_checkpoint_pickle_named(p, callable, "torch._utils _rebuild_tensor_v2"))
        return dsi_checkpoint_pickle_rebuild(p, args);
    if (dsi_checkpoint_pickle_named(p, callable, "torch._utils _rebuild_parameter") ||
        dsi_checkpoint_pickle_named(p, callable, "torch Size") ||
        dsi_checkpoint_pickle_named(p, callable, "deepspeed.runtime.zero.config ZeroStageEnum") ||
        dsi_checkpoint_pickle_named(p, callable, "builtins int"))
        same = first;
    if (same != UINT32_MAX) {
        slot = (uint32_t *)dsi_checkpoint_push(&p->c->desc.allocator, &p->stack, 1);
        if (slot) *slot = same;
        return slot ? DS_OK : dsi_checkpoint_no_memory(p->error, p->path);
    }
    if (dsi_checkpoint_pickle_named(p, callable, "collections OrderedDict") ||
        dsi_checkpoint_pickle_named(p, callable, "builtins dict") ||
        dsi_checkpoint_pickle_named(p, callable, "collections defaultdict"))
        return dsi_checkpoint_pickle_push(p, DSI_CHECKPOINT_PICKLE_DICT) ? DS_OK : DS_ERR_MEMORY;
    if (callable == UINT32_MAX || dsi_checkpoint_pickle_at(p, callable)->type != DSI_CHECKPOINT_PICKLE_GLOBAL)
        return dsi_checkpoint_pickle_bad(p, "what is called is no name");
    return dsi_checkpoint_pickle_push(p, DSI_CHECKPOINT_PICKLE_OBJECT) ? DS_OK : DS_ERR_MEMORY;
}

static ds_status dsi_checkpoint_pickle_need(dsi_checkpoint_pickle *p, size_t values) {
    return p->stack.count >= values ? DS_OK : dsi_checkpoint_pickle_bad(p, "its stack is empty");
}
static ds_status dsi_checkpoint_pickle_bytes(dsi_checkpoint_pickle *p, size_t n, const char **out) {
    if (n > p->bytes - p->at) return dsi_checkpoint_pickle_bad(p, "it ends in the middle");
    *out = p->text + p->at;
    p->at += n;
    return DS_OK;
}
static ds_status dsi_checkpoint_pickle_number(dsi_checkpoint_pickle *p, int bytes, uint64_t *value) {
    const char *from = NULL;
    const ds_status status = dsi_checkpoint_pickle_bytes(p, (size_t)bytes, &from);
    *value = status ? 0 : dsi_checkpoint_little(from, bytes);
    return status;
}
static ds_status dsi_checkpoint_pickle_push_integer(dsi_checkpoint_pickle *p, int type, int64_t value) {
    dsi_checkpoint_pickle_value *v = dsi_checkpoint_pickle_push(p, type);
    if (v) v->as.integer = value;
    return v ? DS_OK : DS_ERR_MEMORY;
}
/* A string of n bytes; kept apart, since what follows it in the pickle is code. */
static ds_status dsi_checkpoint_pickle_push_text(dsi_checkpoint_pickle *p, uint64_t n) {
    const char *from = NULL;
    dsi_checkpoint_pickle_value *v;
    char **slot;
    ds_status status = n > SIZE_MAX / 2 ? dsi_checkpoint_pickle_bad(p, "a string is too long")
                                        : dsi_checkpoint_pickle_bytes(p, (size_t)n, &from);
    if (status) return status;
    slot = (char **)dsi_checkpoint_push(&p->c->desc.allocator, &p->c->texts, 1);
    if (slot && memchr(from, 0, (size_t)n)) n = strlen(from); /* the reader frees by strlen */
    if (slot) *slot = (char *)dsi_alloc(&p->c->desc.allocator, (size_t)n + 1);
    if (!slot || !*slot) return dsi_checkpoint_no_memory(p->error, p->path);
    memcpy(*slot, from, (size_t)n);
    (*slot)[n] = 0;
    {
        const char *text = *slot;
        v = dsi_checkpoint_pickle_push(p, DSI_CHECKPOINT_PICKLE_TEXT);
        if (v) v->as.text = text;
    }
    return v ? DS_OK : DS_ERR_MEMORY;
}
static ds_status dsi_checkpoint_pickle_line(dsi_checkpoint_pickle *p, char out[128]) {
    const char *end = (const char *)memchr(p->text + p->at, '\n', p->bytes - p->at);
    const size_t n = end ? (size_t)(end - (p->text + p->at)) : 128;
    if (n >= 128) return dsi_checkpoint_pickle_bad(p, "a name does not end");
    memcpy(out, p->text + p->at, n);
    out[n] = 0;
    p->at += n + 1;
    return DS_OK;
}
static ds_status dsi_checkpoint_pickle_remember(dsi_checkpoint_pickle *p, uint64_t index) {
    uint32_t *memo;
    if (dsi_checkpoint_pickle_need(p, 1)) return DS_ERR_INPUT;
    if (index > p->bytes) return dsi_checkpoint_pickle_bad(p, "its memo is too large");
    if (index >= p->memo.count) {
        const size_t from = p->memo.count;
        if (!dsi_checkpoint_push(&p->c->desc.allocator, &p->memo, (size_t)index + 1 - from))
            return dsi_checkpoint_no_memory(p->error, p->path);
    }
    memo = (uint32_t *)(void *)p->memo.items;
    memo[index] = dsi_checkpoint_pickle_top(p, 0) + 1;
    return DS_OK;
}
static ds_status dsi_checkpoint_pickle_recall(dsi_checkpoint_pickle *p, uint64_t index) {
    uint32_t *slot, value;
    if (index >= p->memo.count || !(value = ((const uint32_t *)(void *)p->memo.items)[index]))
        return dsi_checkpoint_pickle_bad(p, "its memo lacks a value");
    slot = (uint32_t *)dsi_checkpoint_push(&p->c->desc.allocator, &p->stack, 1);
    if (!slot) return dsi_checkpoint_no_memory(p->error, p->path);
    *slot = value - 1;
    return DS_OK;
}
/* The marked values go into the dict or list below the mark. */
static ds_status dsi_checkpoint_pickle_extend(dsi_checkpoint_pickle *p, int type, bool marked, size_t n) {
    uint32_t container;
    const int64_t found = marked ? dsi_checkpoint_pickle_marked(p) : (int64_t)n;
    const size_t below = marked ? 1 : 0;
    if (found < 0 || p->stack.count < (size_t)found + below + 1)
        return dsi_checkpoint_pickle_bad(p, "nothing to add to");
    container = dsi_checkpoint_pickle_top(p, (size_t)found + below);
    if (dsi_checkpoint_pickle_at(p, container)->type ==
        DSI_CHECKPOINT_PICKLE_OBJECT) { /* its contents do not matter here */
        p->stack.count -= (size_t)found + below;
        return DS_OK;
    }
    if (dsi_checkpoint_pickle_at(p, container)->type != type || (type == DSI_CHECKPOINT_PICKLE_DICT && found % 2))
        return dsi_checkpoint_pickle_bad(p, "values are added to what is no container for them");
    return dsi_checkpoint_pickle_gather(p, container, (size_t)found, below);
}

/* Opcodes of numbers and texts; *known false for others. */
static ds_status dsi_checkpoint_pickle_scalar(dsi_checkpoint_pickle *p, int op, bool *known) {
    uint64_t n = 0, bits = 0;
    const char *from = NULL;
    dsi_checkpoint_pickle_value *v;
    ds_status status = DS_OK;
    *known = true;
    switch (op) {
    case 'N': return dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_NONE, 0);
    case 0x88: return dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_BOOL, 1);
    case 0x89: return dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_BOOL, 0);
    case 'J':
        status = dsi_checkpoint_pickle_number(p, 4, &n);
        return status ? status : dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_INT, (int32_t)(uint32_t)n);
    case 'K':
        status = dsi_checkpoint_pickle_number(p, 1, &n);
        return status ? status : dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_INT, (int64_t)n);
    case 'M':
        status = dsi_checkpoint_pickle_number(p, 2, &n);
        return status ? status : dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_INT, (int64_t)n);
    case 0x8A: /* two's complement of n bytes */
        if ((status = dsi_checkpoint_pickle_number(p, 1, &n)) ||
            (n > 8 && (status = dsi_checkpoint_pickle_bad(p, "an integer has more than 64 bits"))) ||
            (status = dsi_checkpoint_pickle_bytes(p, (size_t)n, &from)))
            return status;
        bits = dsi_checkpoint_little(from, (int)n);
        if (n && n < 8 && from[n - 1] & 0x80) bits |= ~(uint64_t)0 << 8 * n;
        return dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_INT, (int64_t)bits);
    case 'G':
        if ((status = dsi_checkpoint_pickle_bytes(p, 8, &from))) return status;
        for (int i = 0; i < 8; i++) bits = bits << 8 | (unsigned char)from[i];
        v = dsi_checkpoint_pickle_push(p, DSI_CHECKPOINT_PICKLE_REAL);
        if (v) memcpy(&v->as.real, &bits, 8);
        return v ? DS_OK : DS_ERR_MEMORY;
    case 'X':
    case 'T':
    case 'B': status = dsi_checkpoint_pickle_number(p, 4, &n); break;
    case 0x8C:
    case 'U':
    case 'C': status = dsi_checkpoint_pickle_number(p, 1, &n); break;
    case 0x8D: status = dsi_checkpoint_pickle_number(p, 8, &n); break;
    default: *known = false; return DS_OK;
    }
    return status ? status : dsi_checkpoint_pickle_push_text(p, n);
}
/* Opcodes of containers, the memo and the stack. */
static ds_status dsi_checkpoint_pickle_structure(dsi_checkpoint_pickle *p, int op, bool *known) {
    ds_status status;
    uint64_t n = 0;
    int64_t marked;
    *known = true;
    switch (op) {
    case '(': return dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_MARK, 0);
    case ')':
    case ']':
    case 0x8F: return dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_SEQUENCE, 0);
    case '}': return dsi_checkpoint_pickle_push_integer(p, DSI_CHECKPOINT_PICKLE_DICT, 0);
    case 't':
        if ((marked = dsi_checkpoint_pickle_marked(p)) < 0)
            return dsi_checkpoint_pickle_bad(p, "a tuple without a mark");
        return dsi_checkpoint_pickle_tuple(p, (size_t)marked, 1);
    case 0x85:
    case 0x86:
    case 0x87:
        status = dsi_checkpoint_pickle_need(p, (size_t)(op - 0x84));
        return status ? status : dsi_checkpoint_pickle_tuple(p, (size_t)(op - 0x84), 0);
    case 'a': return dsi_checkpoint_pickle_extend(p, DSI_CHECKPOINT_PICKLE_SEQUENCE, false, 1);
    case 'e':
    case 0x90: return dsi_checkpoint_pickle_extend(p, DSI_CHECKPOINT_PICKLE_SEQUENCE, true, 0);
    case 's': return dsi_checkpoint_pickle_extend(p, DSI_CHECKPOINT_PICKLE_DICT, false, 2);
    case 'u': return dsi_checkpoint_pickle_extend(p, DSI_CHECKPOINT_PICKLE_DICT, true, 0);
    case 'q':
        status = dsi_checkpoint_pickle_number(p, 1, &n);
        return status ? status : dsi_checkpoint_pickle_remember(p, n);
    case 'r':
        status = dsi_checkpoint_pickle_number(p, 4, &n);
        return status ? status : dsi_checkpoint_pickle_remember(p, n);
    case 0x94: return dsi_checkpoint_pickle_remember(p, p->memo.count);
    case 'h':
        status = dsi_checkpoint_pickle_number(p, 1, &n);
        return status ? status : dsi_checkpoint_pickle_recall(p, n);
    case 'j':
        status = dsi_checkpoint_pickle_number(p, 4, &n);
        return status ? status : dsi_checkpoint_pickle_recall(p, n);
    case '0':
        status = dsi_checkpoint_pickle_need(p, 1);
        if (!status) p->stack.count--;
        return status;
    default: *known = false; return DS_OK;
    }
}
/* Opcodes that name or would call something. */
static ds_status dsi_checkpoint_pickle_name(dsi_checkpoint_pickle *p, int op, bool *known) {
    char module[128], name[128];
    uint32_t one, two;
    ds_status status;
    *known = true;
    switch (op) {
    case 'c':
        if ((status = dsi_checkpoint_pickle_line(p, module)) || (status = dsi_checkpoint_pickle_line(p, name)))
            return status;
        return dsi_checkpoint_pickle_global(p, module, name);
    case 0x93:
        if ((status = dsi_checkpoint_pickle_need(p, 2))) return status;
        one = dsi_checkpoint_pickle_top(p, 1);
        two = dsi_checkpoint_pickle_top(p, 0);
        if (dsi_checkpoint_pickle_at(p, one)->type != DSI_CHECKPOINT_PICKLE_TEXT ||
            dsi_checkpoint_pickle_at(p, two)->type != DSI_CHECKPOINT_PICKLE_TEXT)
            return dsi_checkpoint_pickle_bad(p, "a name is no text");
        p->stack.count -= 2;
        return dsi_checkpoint_pickle_global(p, dsi_checkpoint_pickle_at(p, one)->as.text,
                                            dsi_checkpoint_pickle_at(p, two)->as.text);
    case 'R':
    case 0x81:
        if ((status = dsi_checkpoint_pickle_need(p, 2))) return status;
        one = dsi_checkpoint_pickle_top(p, 1);
        two = dsi_checkpoint_pickle_top(p, 0);
        p->stack.count -= 2;
        return dsi_checkpoint_pickle_reduce(p, one, two);
    case 'b':
        if ((status = dsi_checkpoint_pickle_need(p, 2))) return status;
        one = dsi_checkpoint_pickle_top(p, 1);
        if (dsi_checkpoint_pickle_at(p, one)->type == DSI_CHECKPOINT_PICKLE_OBJECT)
            dsi_checkpoint_pickle_at(p, one)->first = dsi_checkpoint_pickle_top(p, 0) + 1;
        p->stack.count--;
        return DS_OK;
    case 'Q': status = dsi_checkpoint_pickle_need(p, 1); return status ? status : dsi_checkpoint_pickle_storage(p);
    default: *known = false; return DS_OK;
    }
}

/* Reads data.pkl of a .pt file; *root is the value that it holds. */
static ds_status dsi_checkpoint_pickle_load(dsi_checkpoint_pickle *p, ds_checkpoint *c, size_t shard, const char *path,
                                            uint32_t *root, ds_error *error) {
    const size_t index = dsi_checkpoint_zip_find(c, shard, "", "data.pkl");
    const dsi_checkpoint_entry *entry;
    ds_status status;
    p->shard = shard;
    p->path = path;
    p->error = error;
    p->values.each = sizeof(dsi_checkpoint_pickle_value);
    p->cells.each = sizeof(dsi_checkpoint_pickle_cell);
    p->tensors.each = sizeof(dsi_checkpoint_pickle_tensor);
    p->stack.each = p->memo.each = sizeof(uint32_t);
    if (index == DSI_CHECKPOINT_NONE) return dsi_checkpoint_bad_zip(path, "it holds no data.pkl", error);
    entry = (const dsi_checkpoint_entry *)(void *)c->entries.items + index;
    if (entry->bytes > DSI_CHECKPOINT_HEADER) return dsi_checkpoint_bad_zip(path, "its data.pkl is too large", error);
    p->bytes = (size_t)entry->bytes;
    p->text = (char *)dsi_alloc(&c->desc.allocator, p->bytes + 1);
    if (!p->text) return dsi_checkpoint_no_memory(error, path);
    p->text[p->bytes] = 0;
    status = dsi_checkpoint_take(&c->desc, dsi_checkpoint_shard_of(c, shard)->fd, path, p->text, p->bytes,
                                 entry->offset, error);
    if (!status && dsi_checkpoint_crc32(0, p->text, p->bytes) != entry->sum)
        status = dsi_fail(error, DS_ERR_CORRUPT, "'%.300s' is damaged: its data.pkl does not have its checksum", path);
    while (!status) {
        bool known = false;
        const char *skipped;
        int op;
        if (p->at >= p->bytes) return dsi_checkpoint_pickle_bad(p, "it does not end with a stop");
        op = (unsigned char)p->text[p->at++];
        if (op == '.') break;
        if (op == 0x80 || op == 0x95) {
            status = dsi_checkpoint_pickle_bytes(p, op == 0x80 ? 1 : 8, &skipped);
            continue;
        }
        status = dsi_checkpoint_pickle_scalar(p, op, &known);
        if (!known) status = dsi_checkpoint_pickle_structure(p, op, &known);
        if (!known) status = dsi_checkpoint_pickle_name(p, op, &known);
        if (!known) status = dsi_checkpoint_pickle_bad(p, "an opcode that torch does not write");
    }
    if (!status) status = dsi_checkpoint_pickle_need(p, 1);
    if (!status) *root = dsi_checkpoint_pickle_top(p, 0);
    return status;
}

// >>DeepSpeed: reading

/* Opens folder/name as a shard and reads its pickle. */
static ds_status dsi_checkpoint_deepspeed_load(ds_checkpoint *c, const char *name, dsi_checkpoint_pickle *p,
                                               char path[DSI_CHECKPOINT_PATH], uint32_t *root, ds_error *error) {
    const size_t shard = c->shards.count;
    ds_status status = dsi_checkpoint_add_shard(c, name, error);
    memset(p, 0, sizeof *p); /* the caller frees it whatever comes */
    p->c = c;
    if (!status) status = dsi_checkpoint_measure_shard(c, dsi_checkpoint_shard_of(c, shard), path, error);
    if (!status) status = dsi_checkpoint_read_zip(c, shard, path, error);
    return status ? status : dsi_checkpoint_pickle_load(p, c, shard, path, root, error);
}
/* Elements [from, from + count) of a tensor in a file are elements [begin, ..) of the logical tensor prefix + name. */
static ds_status dsi_checkpoint_deepspeed_part(dsi_checkpoint_pickle *p, const dsi_checkpoint_pickle_tensor *t,
                                               size_t from, size_t begin, size_t count, const char *prefix,
                                               const char *name, const size_t *shape, int dims, ds_error *error) {
    const dsi_checkpoint_entry *entry = (const dsi_checkpoint_entry *)(void *)p->c->entries.items + t->entry;
    const char *kept;
    dsi_checkpoint_part part;
    char whole[1024];
    size_t at;
    if (!t->contiguous)
        return dsi_fail(error, DS_ERR_UNSUPPORTED, "'%.250s': tensor '%.150s' is stored with strides", p->path, name);
    if (from > t->count || count > t->count - from)
        return dsi_fail(error, DS_ERR_INPUT, "'%.250s': tensor '%.150s' needs elements %zu + %zu of a partition of %zu",
                        p->path, name, from, count, t->count);
    if (strlen(prefix) + strlen(name) >= sizeof whole)
        return dsi_fail(error, DS_ERR_UNSUPPORTED, "'%.250s': a name is too long", p->path);
    memcpy(whole, prefix, strlen(prefix));
    memcpy(whole + strlen(prefix), name, strlen(name) + 1);
    at = dsi_checkpoint_lookup(&p->c->index, &p->c->tensors, whole);
    kept = at == DSI_CHECKPOINT_NONE ? dsi_checkpoint_keep(p->c, "", whole) : dsi_checkpoint_tensor_of(p->c, at)->name;
    if (!kept) return dsi_checkpoint_no_memory(error, name);
    memset(&part, 0, sizeof part);
    part.shard = p->shard;
    part.begin = begin;
    part.count = count;
    part.entry = t->entry;
    part.offset = entry->offset + (uint64_t)(t->offset + from) * DS_DTYPE_SIZE(t->dtype);
    return dsi_checkpoint_add_part(p->c, kept, t->dtype, shape, dims, &part, error);
}

typedef struct dsi_checkpoint_deepspeed {
    ds_checkpoint *c;
    dsi_checkpoint_pickle model; /* the first rank's model states */
    uint32_t root;
    char model_path[DSI_CHECKPOINT_PATH];
    int64_t stage, ranks;
    size_t passed[64]; /* elements of each group in the ranks before (stages 1, 2) */
    bool failed;       /* no memory for a value */
    ds_error *error;
} dsi_checkpoint_deepspeed;

/* A value; its kind is number for the loss scale, else integer. */
static ds_checkpoint_value *dsi_checkpoint_deepspeed_value(dsi_checkpoint_deepspeed *d, const char *key,
                                                           int64_t integer) {
    ds_checkpoint_value *v = (ds_checkpoint_value *)dsi_checkpoint_push(&d->c->desc.allocator, &d->c->values, 1);
    d->failed |= !v;
    if (!v) return NULL;
    v->key = key;
    v->kind = 2;
    v->integer = integer;
    return v;
}
/* What a dynamic loss scaler holds; of a static one the scale. */
static void dsi_checkpoint_deepspeed_scaler(dsi_checkpoint_deepspeed *d, const dsi_checkpoint_pickle *p,
                                            uint32_t scaler) {
    static const char *const from[] = {"cur_iter", "last_overflow_iter", "cur_hysteresis"};
    static const char *const to[] = {"loss_scaler.iteration", "loss_scaler.last_overflow",
                                     "loss_scaler.hysteresis_left"};
    ds_checkpoint_value *v;
    uint32_t state, scale;
    int64_t value;
    if (scaler == UINT32_MAX || dsi_checkpoint_pickle_at(p, scaler)->type != DSI_CHECKPOINT_PICKLE_OBJECT ||
        !dsi_checkpoint_pickle_at(p, scaler)->first)
        return;
    state = dsi_checkpoint_pickle_at(p, scaler)->first - 1;
    scale = dsi_checkpoint_pickle_get(p, state, "cur_scale", 0);
    for (int i = 0; i < 3; i++)
        if (dsi_checkpoint_pickle_integer(p, dsi_checkpoint_pickle_get(p, state, from[i], 0), &value))
            dsi_checkpoint_deepspeed_value(d, to[i], value);
    if (scale == UINT32_MAX) return;
    value = 0;
    if (dsi_checkpoint_pickle_at(p, scale)->type != DSI_CHECKPOINT_PICKLE_REAL &&
        !dsi_checkpoint_pickle_integer(p, scale, &value))
        return;
    v = dsi_checkpoint_deepspeed_value(d, "loss_scaler.scale", 0);
    if (!v) return;
    v->kind = 1;
    v->number = value ? (double)value : dsi_checkpoint_pickle_at(p, scale)->as.real;
}

/* A rank's flat partition of a group: what of each parameter lies in it. Stages 1 and 2 cut the concatenated group, stage
   3 each parameter, into ceil(numel / ranks). */
static ds_status dsi_checkpoint_deepspeed_partition(dsi_checkpoint_deepspeed *d, dsi_checkpoint_pickle *p,
                                                    const dsi_checkpoint_pickle_tensor *t, const char *prefix,
                                                    uint32_t shapes, int64_t rank, size_t start, size_t length) {
    const dsi_checkpoint_pickle *m = &d->model;
    const dsi_checkpoint_pickle_cell *cells = (const dsi_checkpoint_pickle_cell *)(void *)m->cells.items;
    size_t at = 0;
    ds_status status = DS_OK;
    for (uint32_t k = dsi_checkpoint_pickle_at(m, shapes)->first; k && !status; k = cells[cells[k - 1].next - 1].next) {
        const dsi_checkpoint_pickle_value *name = dsi_checkpoint_pickle_at(m, cells[k - 1].value);
        size_t shape[8], numel, begin, end, from;
        const int dims = dsi_checkpoint_pickle_sizes(m, cells[cells[k - 1].next - 1].value, shape);
        if (name->type != DSI_CHECKPOINT_PICKLE_TEXT || dims < 0 || !dsi_checkpoint_numel(shape, dims, &numel) ||
            numel > SIZE_MAX >> 8)
            return dsi_fail(d->error, DS_ERR_INPUT, "'%.300s': its param_shapes are not as DeepSpeed writes them",
                            d->model_path);
        if (d->stage == 3) {
            const size_t each = numel / (size_t)d->ranks + (numel % (size_t)d->ranks != 0);
            begin = each > numel / (size_t)(rank ? rank : 1) ? numel : each * (size_t)rank;
            end = numel - begin < each ? numel : begin + each;
            from = at;
            at += each;
        } else {
            begin = start > at ? start - at : 0;
            end = start + length > at ? start + length - at : 0;
            if (end > numel) end = numel;
            from = at + begin - (at + begin < start ? at + begin : start);
            at += numel;
            if (begin >= end) {
                if (numel || rank) continue;
                begin = end = from = 0;
            }
        }
        status =
            dsi_checkpoint_deepspeed_part(p, t, from, begin, end - begin, prefix, name->as.text, shape, dims, d->error);
    }
    return status;
}
/* One rank's optimizer file: the fp32 weights and every state that is as long. */
static ds_status dsi_checkpoint_deepspeed_rank(dsi_checkpoint_deepspeed *d, const char *file, int64_t rank) {
    dsi_checkpoint_pickle p;
    char path[DSI_CHECKPOINT_PATH];
    uint32_t root = UINT32_MAX, states, flats, optimizer,
             shapes = dsi_checkpoint_pickle_get(&d->model, d->root, "param_shapes", 0);
    ds_status status = dsi_checkpoint_deepspeed_load(d->c, file, &p, path, &root, d->error);
    int64_t stage = 0, parts = 0;
    if (status) goto done;
    states = dsi_checkpoint_pickle_get(&p, root, "optimizer_state_dict", 0);
    if (!dsi_checkpoint_pickle_integer(&p, dsi_checkpoint_pickle_get(&p, states, "zero_stage", 0), &stage))
        stage = file[0] == 'b'; /* BF16_Optimizer cuts as stage 1 does, and names no stage */
    {
        const uint32_t count = dsi_checkpoint_pickle_get(&p, states, "partition_count", 0);
        if (!dsi_checkpoint_pickle_integer(&p, count, &parts))
            dsi_checkpoint_pickle_integer(&p, dsi_checkpoint_pickle_element(&p, count, 0), &parts);
    }
    if (stage < 1 || stage > 3 || parts < 1 || parts > 100000 || (rank && (stage != d->stage || parts != d->ranks))) {
        status = dsi_fail(d->error, DS_ERR_INPUT, "'%.250s': ZeRO stage %lld in %lld partitions, expected %lld in %lld",
                          path, (long long)stage, (long long)parts, (long long)d->stage, (long long)d->ranks);
        goto done;
    }
    d->stage = stage;
    d->ranks = parts;
    if (!rank) dsi_checkpoint_deepspeed_scaler(d, &p, dsi_checkpoint_pickle_get(&p, states, "loss_scaler", 0));
    flats =
        dsi_checkpoint_pickle_get(&p, states, stage == 3 ? "fp32_flat_groups" : "single_partition_of_fp32_groups", 0);
    optimizer = dsi_checkpoint_pickle_get(&p, states, stage == 3 ? "optimizer_state_dict" : "base_optimizer_state", 0);
    for (uint32_t g = 0; !status; g++) {
        const uint32_t group = dsi_checkpoint_pickle_element(&d->model, shapes, g);
        const dsi_checkpoint_pickle_tensor *flat =
            dsi_checkpoint_pickle_tensor_of(&p, dsi_checkpoint_pickle_element(&p, flats, g));
        const dsi_checkpoint_pickle_cell *cells = (const dsi_checkpoint_pickle_cell *)(void *)p.cells.items;
        const uint32_t state =
            dsi_checkpoint_pickle_get(&p, dsi_checkpoint_pickle_get(&p, optimizer, "state", 0), NULL, (int64_t)g);
        if (group == UINT32_MAX) break;
        if (!flat || g >= 64 || dsi_checkpoint_pickle_at(&d->model, group)->type != DSI_CHECKPOINT_PICKLE_DICT) {
            status = dsi_fail(d->error, DS_ERR_INPUT, "'%.300s' has no fp32 partition of parameter group %u", path, g);
            break;
        }
        status = dsi_checkpoint_deepspeed_partition(d, &p, flat, "", group, rank, d->passed[g], flat->count);
        for (uint32_t k = state == UINT32_MAX ? 0 : dsi_checkpoint_pickle_at(&p, state)->first; k && !status;
             k = cells[cells[k - 1].next - 1].next) {
            const dsi_checkpoint_pickle_value *key = dsi_checkpoint_pickle_at(&p, cells[k - 1].value);
            const dsi_checkpoint_pickle_tensor *t =
                dsi_checkpoint_pickle_tensor_of(&p, cells[cells[k - 1].next - 1].value);
            char prefix[128];
            if (key->type != DSI_CHECKPOINT_PICKLE_TEXT || !t || t->count < flat->count || strlen(key->as.text) > 80)
                continue;
            snprintf(prefix, sizeof prefix, "optimizer.%.80s.", key->as.text);
            status = dsi_checkpoint_deepspeed_partition(d, &p, t, prefix, group, rank, d->passed[g], flat->count);
        }
        d->passed[g] += flat->count;
    }
done:
    dsi_checkpoint_pickle_free(&p);
    return status;
}

/* Parameters that are not trained, at stage 3: each rank's model file holds ceil(numel / ranks) elements of each. */
static ds_status dsi_checkpoint_deepspeed_frozen(dsi_checkpoint_deepspeed *d, int64_t rank) {
    const dsi_checkpoint_pickle *m = &d->model;
    const uint32_t shapes = dsi_checkpoint_pickle_get(m, d->root, "frozen_param_shapes", 0);
    const dsi_checkpoint_pickle_cell *cells = (const dsi_checkpoint_pickle_cell *)(void *)m->cells.items;
    dsi_checkpoint_pickle other, *p = rank ? &other : &d->model;
    char file[96], path[DSI_CHECKPOINT_PATH];
    uint32_t root = d->root, fragments;
    ds_status status = DS_OK;
    if (shapes == UINT32_MAX || dsi_checkpoint_pickle_at(m, shapes)->type != DSI_CHECKPOINT_PICKLE_DICT) return DS_OK;
    snprintf(file, sizeof file, "zero_pp_rank_%lld_mp_rank_00_model_states.pt", (long long)rank);
    if (rank) status = dsi_checkpoint_deepspeed_load(d->c, file, p, path, &root, d->error);
    fragments = status ? UINT32_MAX : dsi_checkpoint_pickle_get(p, root, "frozen_param_fragments", 0);
    for (uint32_t k = dsi_checkpoint_pickle_at(m, shapes)->first; k && !status; k = cells[cells[k - 1].next - 1].next) {
        const dsi_checkpoint_pickle_value *name = dsi_checkpoint_pickle_at(m, cells[k - 1].value);
        const dsi_checkpoint_pickle_tensor *t = NULL;
        size_t shape[8], numel = 0, each, begin;
        const int dims = dsi_checkpoint_pickle_sizes(m, cells[cells[k - 1].next - 1].value, shape);
        if (name->type == DSI_CHECKPOINT_PICKLE_TEXT && dims >= 0 && dsi_checkpoint_numel(shape, dims, &numel) &&
            numel <= SIZE_MAX >> 8)
            t = dsi_checkpoint_pickle_tensor_of(p, dsi_checkpoint_pickle_get(p, fragments, name->as.text, 0));
        each = numel / (size_t)d->ranks + (numel % (size_t)d->ranks != 0);
        begin = each * (size_t)rank < numel ? each * (size_t)rank : numel;
        status = t ? dsi_checkpoint_deepspeed_part(p, t, 0, begin, numel - begin < each ? numel - begin : each, "",
                                                   name->as.text, shape, dims, d->error)
                   : dsi_fail(d->error, DS_ERR_INPUT, "'%.250s/%s' lacks its part of a frozen parameter", d->c->folder,
                              file);
    }
    if (rank) dsi_checkpoint_pickle_free(&other);
    return status;
}

/* Whole tensors of the model: its buffers and what is not trained, but no second names of what is; `buffers`: only those. */
static ds_status dsi_checkpoint_deepspeed_module(dsi_checkpoint_deepspeed *d, bool buffers) {
    dsi_checkpoint_pickle *m = &d->model;
    const uint32_t module = dsi_checkpoint_pickle_get(m, d->root, "module", 0);
    const uint32_t names = dsi_checkpoint_pickle_get(m, d->root, "buffer_names", 0);
    const uint32_t shared = dsi_checkpoint_pickle_get(m, d->root, "shared_params", 0);
    const dsi_checkpoint_pickle_cell *cells = (const dsi_checkpoint_pickle_cell *)(void *)m->cells.items;
    ds_status status = DS_OK;
    if (module == UINT32_MAX || dsi_checkpoint_pickle_at(m, module)->type != DSI_CHECKPOINT_PICKLE_DICT) return DS_OK;
    for (uint32_t k = dsi_checkpoint_pickle_at(m, module)->first; k && !status; k = cells[cells[k - 1].next - 1].next) {
        const dsi_checkpoint_pickle_value *name = dsi_checkpoint_pickle_at(m, cells[k - 1].value);
        const dsi_checkpoint_pickle_tensor *t = dsi_checkpoint_pickle_tensor_of(m, cells[cells[k - 1].next - 1].value);
        bool wanted = !buffers;
        if (name->type != DSI_CHECKPOINT_PICKLE_TEXT || !t) continue;
        if (dsi_checkpoint_pickle_get(m, shared, name->as.text, 0) != UINT32_MAX) continue;
        for (uint32_t i = 0; !wanted && dsi_checkpoint_pickle_element(m, names, i) != UINT32_MAX; i++) {
            const dsi_checkpoint_pickle_value *v =
                dsi_checkpoint_pickle_at(m, dsi_checkpoint_pickle_element(m, names, i));
            wanted = v->type == DSI_CHECKPOINT_PICKLE_TEXT && !strcmp(v->as.text, name->as.text);
        }
        if (wanted && dsi_checkpoint_lookup(&d->c->index, &d->c->tensors, name->as.text) == DSI_CHECKPOINT_NONE)
            status =
                dsi_checkpoint_deepspeed_part(m, t, 0, 0, t->count, "", name->as.text, t->shape, t->dims, d->error);
    }
    return status;
}

static ds_status dsi_checkpoint_deepspeed_values(dsi_checkpoint_deepspeed *d) {
    static const char *const from[] = {"global_steps", "skipped_steps", "global_samples", "dp_world_size"};
    static const char *const to[] = {"engine.step", "engine.skipped", "engine.samples", "engine.world"};
    const uint32_t schedule = dsi_checkpoint_pickle_get(&d->model, d->root, "lr_scheduler", 0);
    int64_t value;
    for (int i = 0; i < 4; i++)
        if (dsi_checkpoint_pickle_integer(&d->model, dsi_checkpoint_pickle_get(&d->model, d->root, from[i], 0), &value))
            dsi_checkpoint_deepspeed_value(d, to[i], value);
    value = dsi_checkpoint_value_or(d->c, "engine.step", -1);
    if (value >= 0)
        dsi_checkpoint_deepspeed_value(d, "optimizer.step", value - dsi_checkpoint_value_or(d->c, "engine.skipped", 0));
    if (dsi_checkpoint_pickle_integer(
            &d->model, dsi_checkpoint_pickle_get(&d->model, schedule, "last_batch_iteration", 0), &value))
        dsi_checkpoint_deepspeed_value(d, "optimizer.schedule", value + 1);
    return d->failed ? dsi_checkpoint_no_memory(d->error, "values") : DS_OK;
}

/* zero/NAME/{fp32,exp_avg,...}.pt of a universal checkpoint. */
static ds_status dsi_checkpoint_deepspeed_universal(dsi_checkpoint_deepspeed *d) {
    const uint32_t groups = dsi_checkpoint_pickle_get(&d->model, d->root, "param_shapes", 0);
    const dsi_checkpoint_pickle_cell *cells = (const dsi_checkpoint_pickle_cell *)(void *)d->model.cells.items;
    ds_status status = DS_OK;
    for (uint32_t g = 0; dsi_checkpoint_pickle_element(&d->model, groups, g) != UINT32_MAX && !status; g++) {
        const uint32_t group = dsi_checkpoint_pickle_element(&d->model, groups, g);
        if (dsi_checkpoint_pickle_at(&d->model, group)->type != DSI_CHECKPOINT_PICKLE_DICT)
            return dsi_fail(d->error, DS_ERR_INPUT, "'%.300s': its param_shapes are not as DeepSpeed writes them",
                            d->model_path);
        for (uint32_t k = dsi_checkpoint_pickle_at(&d->model, group)->first; k && !status;
             k = cells[cells[k - 1].next - 1].next) {
            const dsi_checkpoint_pickle_value *name = dsi_checkpoint_pickle_at(&d->model, cells[k - 1].value);
            size_t shape[8];
            const int dims = dsi_checkpoint_pickle_sizes(&d->model, cells[cells[k - 1].next - 1].value, shape);
            static const char *const files[] = {"fp32", "exp_avg",       "exp_avg_sq", "momentum_buffer",
                                                "sum",  "max_exp_avg_sq"};
            if (name->type != DSI_CHECKPOINT_PICKLE_TEXT || dims < 0 || !dsi_checkpoint_plain_name(name->as.text, 255))
                return dsi_fail(d->error, DS_ERR_INPUT, "'%.300s': a parameter's name is no file's name",
                                d->model_path);
            for (int f = 0; f < 6 && !status; f++) {
                char file[400], path[DSI_CHECKPOINT_PATH], prefix[64] = "";
                const dsi_checkpoint_pickle_tensor *t;
                uint32_t root = UINT32_MAX;
                dsi_checkpoint_pickle p;
                snprintf(file, sizeof file, "zero/%.255s/%s.pt", name->as.text, files[f]);
                if (f) snprintf(prefix, sizeof prefix, "optimizer.%s.", files[f]);
                if (f && dsi_checkpoint_has(d->c, d->c->folder, file, path) != 1) continue;
                status = dsi_checkpoint_deepspeed_load(d->c, file, &p, path, &root, d->error);
                if (!status) {
                    t = dsi_checkpoint_pickle_tensor_of(&p, root); /* stage 3's are bare, the others in a dict */
                    if (!t) t = dsi_checkpoint_pickle_tensor_of(&p, dsi_checkpoint_pickle_get(&p, root, "param", 0));
                    status = t ? dsi_checkpoint_deepspeed_part(&p, t, 0, 0, t->count, prefix, name->as.text, shape,
                                                               dims, d->error)
                               : dsi_fail(d->error, DS_ERR_INPUT, "'%.300s' holds no tensor", path);
                }
                dsi_checkpoint_pickle_free(&p);
            }
        }
    }
    return status;
}

static ds_status dsi_checkpoint_deepspeed_open(ds_checkpoint *c, ds_error *error) {
    static const char *const models[] = {"mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"};
    char path[DSI_CHECKPOINT_PATH], name[96];
    const char *prefix = "";
    dsi_checkpoint_deepspeed *d;
    ds_status status;
    bool universal, which;
    if (dsi_checkpoint_has(c, c->folder, "mp_rank_01_model_states.pt", path) == 1)
        return dsi_fail(error, DS_ERR_UNSUPPORTED, "'%.300s' is of a model in several tensor-parallel parts",
                        c->folder);
    c->format = DS_CHECKPOINT_DEEPSPEED;
    snprintf(c->tag, sizeof c->tag, "%s", dsi_checkpoint_split(c->folder, path));
    d = (dsi_checkpoint_deepspeed *)dsi_alloc_zero(&c->desc.allocator, sizeof *d);
    if (!d) return dsi_checkpoint_no_memory(error, "a checkpoint's reader");
    d->c = c;
    d->error = error;
    d->model.c = c;
    which = dsi_checkpoint_has(c, c->folder, models[0], path) != 1;
    status = dsi_checkpoint_deepspeed_load(c, models[which], &d->model, d->model_path, &d->root, error);
    universal = dsi_checkpoint_has(c, c->folder, "zero", path) == 2;
    if (!status && universal) {
        const uint32_t world = dsi_checkpoint_pickle_get(&d->model, d->root, "dp_world_size", 0);
        c->format = DS_CHECKPOINT_DEEPSPEED_UNIVERSAL;
        if (!dsi_checkpoint_pickle_integer(&d->model, world, &d->ranks) || d->ranks < 1 || d->ranks > 100000)
            d->ranks = 1;
        status = dsi_checkpoint_deepspeed_universal(d);
    } else if (!status) {
        if (dsi_checkpoint_has(c, c->folder, "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", path) == 1)
            prefix = "bf16_";
        snprintf(name, sizeof name, "%szero_pp_rank_0_mp_rank_00_optim_states.pt", prefix);
        d->ranks = dsi_checkpoint_has(c, c->folder, name, path) == 1; /* none: stage 0 */
        for (int64_t r = 0; r < d->ranks && !status; r++) {
            snprintf(name, sizeof name, "%szero_pp_rank_%lld_mp_rank_00_optim_states.pt", prefix, (long long)r);
            status = dsi_checkpoint_deepspeed_rank(d, name, r);
        }
    }
    for (int64_t r = 0; r < d->ranks && which && !status; r++) status = dsi_checkpoint_deepspeed_frozen(d, r);
    if (!status) status = dsi_checkpoint_deepspeed_module(d, which); /* stage 3's have no weights here */
    if (!status) status = dsi_checkpoint_deepspeed_values(d);
    dsi_checkpoint_pickle_free(&d->model);
    dsi_release(&c->desc.allocator, d, sizeof *d);
    return status ? status : dsi_checkpoint_settle(c, false, error);
}

// >>DeepSpeed: writing

/* What a storage of a .pt file holds. */
typedef struct dsi_checkpoint_storage {
    const char *prefix; /* "", or "optimizer.STATE."; NULL: `number` */
    size_t tensor;      /* of `from`; NONE: the flat partition of `rank` */
    size_t numel;
    ds_dtype dtype;
    int rank;
    float number;
} dsi_checkpoint_storage;

/* A checkpoint that is written for DeepSpeed, and in it one .pt file at a time: its pickle is made first and names the
   storages that are written behind it. The first failure stays, and what follows it does nothing. */
typedef struct dsi_checkpoint_pt {
    ds_checkpoint_writer w; /* for its folders and the commit */
    ds_checkpoint *from;
    int stage, ranks; /* stage 0: universal */
    bool *trained;    /* (tensors of `from`) */
    size_t partition; /* elements of a rank's flat partition */
    dsi_checkpoint_list prefixes /* of dsi_checkpoint_state */, pickle, storages, header, directory;
    char path[DSI_CHECKPOINT_PATH], *block;
    int fd;
    uint64_t at, entry, data; /* of the file: where it ends; where the entry and its data begin */
    uint64_t entries;
    uint32_t sum;
    ds_status status;
    ds_error *error;
} dsi_checkpoint_pt;
typedef struct dsi_checkpoint_state {
    char text[96]; /* "optimizer.STATE."; the first is "", for the weights */
} dsi_checkpoint_state;

static const char *dsi_checkpoint_pt_prefix(const dsi_checkpoint_pt *p, size_t i) {
    return ((const dsi_checkpoint_state *)(const void *)p->prefixes.items)[i].text;
}
static void dsi_checkpoint_pt_bytes(dsi_checkpoint_pt *p, dsi_checkpoint_list *list, const void *data, size_t n) {
    void *to;
    if (!n || p->status) return;
    to = dsi_checkpoint_push(&p->w.desc.allocator, list, n);
    if (to)
        memcpy(to, data, n * list->each);
    else
        p->status = dsi_checkpoint_no_memory(p->error, p->w.final);
}
static void dsi_checkpoint_pt_little(dsi_checkpoint_pt *p, dsi_checkpoint_list *list, uint64_t value, int bytes) {
    char text[8];
    for (int i = 0; i < bytes; i++) text[i] = (char)(value >> 8 * i & 255);
    dsi_checkpoint_pt_bytes(p, list, text, (size_t)bytes);
}
/* Opcodes, and the lines of globals. */
static void dsi_checkpoint_pt_code(dsi_checkpoint_pt *p, const char *code) {
    dsi_checkpoint_pt_bytes(p, &p->pickle, code, strlen(code));
}
static void dsi_checkpoint_pt_text(dsi_checkpoint_pt *p, const char *text) {
    dsi_checkpoint_pt_code(p, "X");
    dsi_checkpoint_pt_little(p, &p->pickle, strlen(text), 4);
    dsi_checkpoint_pt_code(p, text);
}
static void dsi_checkpoint_pt_integer(dsi_checkpoint_pt *p, int64_t value) {
    const bool small = value >= INT32_MIN && value <= INT32_MAX;
    dsi_checkpoint_pt_code(p, small ? "J" : "\x8A\x08");
    dsi_checkpoint_pt_little(p, &p->pickle, (uint64_t)value, small ? 4 : 8);
}
/* A dict's key and what follows it: the code of its value, or a number. */
static void dsi_checkpoint_pt_key(dsi_checkpoint_pt *p, const char *key, const char *code) {
    dsi_checkpoint_pt_text(p, key);
    dsi_checkpoint_pt_code(p, code);
}
static void dsi_checkpoint_pt_count(dsi_checkpoint_pt *p, const char *key, int64_t value) {
    dsi_checkpoint_pt_text(p, key);
    dsi_checkpoint_pt_integer(p, value);
}
static void dsi_checkpoint_pt_number(dsi_checkpoint_pt *p, const char *key, double value) {
    uint64_t bits;
    char text[9] = "G";
    memcpy(&bits, &value, sizeof bits);
    for (int i = 0; i < 8; i++) text[1 + i] = (char)(bits >> 8 * (7 - i) & 255);
    dsi_checkpoint_pt_text(p, key);
    dsi_checkpoint_pt_bytes(p, &p->pickle, text, sizeof text);
}
static void dsi_checkpoint_pt_sizes(dsi_checkpoint_pt *p, const size_t *sizes, int dims) {
    dsi_checkpoint_pt_code(p, "(");
    for (int i = 0; i < dims; i++) dsi_checkpoint_pt_integer(p, (int64_t)sizes[i]);
    dsi_checkpoint_pt_code(p, "t");
}
/* A tensor over a new storage of its own. */
static void dsi_checkpoint_pt_tensor(dsi_checkpoint_pt *p, const dsi_checkpoint_storage *s, const size_t *shape,
                                     int dims) {
    size_t strides[8], stride = 1, type = 0;
    char key[24];
    while (type < DSI_CHECKPOINT_STORAGES && dsi_checkpoint_pickle_storages[type].dtype != (int)s->dtype) type++;
    if (type == DSI_CHECKPOINT_STORAGES) {
        if (!p->status)
            p->status =
                dsi_fail(p->error, DS_ERR_UNSUPPORTED, "tensor '%.200s' is of dtype %s, which torch lacks",
                         dsi_checkpoint_tensor_of(p->from, s->tensor)->name, dsi_checkpoint_dtypes[s->dtype].name);
        return;
    }
    snprintf(key, sizeof key, "%zu", p->storages.count);
    dsi_checkpoint_pt_bytes(p, &p->storages, s, 1);
    dsi_checkpoint_pt_code(p, "ctorch._utils\n_rebuild_tensor_v2\n((");
    dsi_checkpoint_pt_key(p, "storage", "ctorch\n");
    dsi_checkpoint_pt_code(p, dsi_checkpoint_pickle_storages[type].name + strlen("torch "));
    dsi_checkpoint_pt_code(p, "\n");
    dsi_checkpoint_pt_text(p, key);
    dsi_checkpoint_pt_count(p, "cpu", (int64_t)s->numel);
    dsi_checkpoint_pt_code(p, "tQ");
    dsi_checkpoint_pt_integer(p, 0);
    dsi_checkpoint_pt_sizes(p, shape, dims);
    for (int i = dims - 1; i >= 0; i--) {
        strides[i] = stride;
        stride *= shape[i] ? shape[i] : 1;
    }
    dsi_checkpoint_pt_sizes(p, strides, dims);
    dsi_checkpoint_pt_code(p, "\x89}tR");
}
/* Tensor i of `from`, or its state. */
static void dsi_checkpoint_pt_whole(dsi_checkpoint_pt *p, size_t i, const char *prefix) {
    const dsi_checkpoint_tensor_ *t = dsi_checkpoint_tensor_of(p->from, i);
    dsi_checkpoint_storage s = {prefix, i, t->numel, DS_F32, 0, 0};
    if (!p->trained[i]) s.dtype = t->dtype;
    dsi_checkpoint_pt_tensor(p, &s, t->shape, t->dims);
}
static void dsi_checkpoint_pt_flat(dsi_checkpoint_pt *p, const char *prefix, int rank) {
    const dsi_checkpoint_storage s = {prefix, DSI_CHECKPOINT_NONE, p->partition, DS_F32, rank, 0};
    dsi_checkpoint_pt_tensor(p, &s, &p->partition, 1);
}
/* The optimizer's count of steps, as torch has it: a scalar. */
static void dsi_checkpoint_pt_step(dsi_checkpoint_pt *p) {
    dsi_checkpoint_storage s = {NULL, 0, 1, DS_F32, 0, 0};
    s.number = (float)dsi_checkpoint_value_or(p->from, "optimizer.step",
                                              dsi_checkpoint_value_or(p->from, "engine.step", 0) -
                                                  dsi_checkpoint_value_or(p->from, "engine.skipped", 0));
    dsi_checkpoint_pt_tensor(p, &s, NULL, 0);
}

static void dsi_checkpoint_pt_write(dsi_checkpoint_pt *p, const void *data, size_t n) {
    if (!p->status) p->status = dsi_checkpoint_put(&p->w.desc, p->fd, p->path, data, n, p->at, p->error);
    p->sum = dsi_checkpoint_crc32(p->sum, (const char *)data, n);
    p->at += n;
}
/* Elements of tensor i, or of its state, which may be missing; more than there are: zeros. */
static void dsi_checkpoint_pt_range(dsi_checkpoint_pt *p, size_t i, const char *prefix, ds_dtype dtype, size_t begin,
                                    size_t count, size_t zeros) {
    const size_t most = DSI_CHECKPOINT_BLOCK / DS_DTYPE_SIZE(dtype);
    const char *name = i == DSI_CHECKPOINT_NONE ? "" : dsi_checkpoint_tensor_of(p->from, i)->name;
    char *whole = p->block + DSI_CHECKPOINT_BLOCK; /* room for a name is behind the block */
    ds_checkpoint_info info;
    memcpy(whole, prefix, strlen(prefix));
    memcpy(whole + strlen(prefix), name, strlen(name) + 1);
    if (count && ds_checkpoint_find(p->from, whole, &info)) zeros += count, count = 0;
    while (count && !p->status) {
        const size_t n = count < most ? count : most;
        p->status = ds_checkpoint_read(p->from, whole, begin, n, dtype, p->block);
        if (p->status) dsi_fail(p->error, p->status, "%s", ds_checkpoint_error(p->from)->message);
        dsi_checkpoint_pt_write(p, p->block, n * DS_DTYPE_SIZE(dtype));
        begin += n;
        count -= n;
    }
    if (zeros) memset(p->block, 0, DSI_CHECKPOINT_BLOCK);
    for (; zeros && !p->status; zeros -= zeros < most ? zeros : most)
        dsi_checkpoint_pt_write(p, p->block, (zeros < most ? zeros : most) * DS_DTYPE_SIZE(dtype));
}
/* What `rank` has of all trained tensors: of stage 3 a part of each, else a part of them laid end to end. */
static void dsi_checkpoint_pt_partition(dsi_checkpoint_pt *p, const char *prefix, size_t rank) {
    const size_t ranks = (size_t)p->ranks, start = rank * p->partition, stop = start + p->partition;
    size_t at = 0, filled = 0;
    for (size_t i = 0; i < p->from->tensors.count && !p->status; i++) {
        const size_t n = dsi_checkpoint_tensor_of(p->from, i)->numel, each = n / ranks + (n % ranks != 0);
        size_t begin = p->stage == 3 ? each * rank : start > at ? start - at : 0;
        size_t end = p->stage == 3 ? begin + each : stop > at ? stop - at : 0;
        if (!p->trained[i]) continue;
        if (begin > n) begin = n;
        if (end > n) end = n;
        if (end > begin || p->stage == 3) {
            const size_t zeros = p->stage == 3 ? each - (end - begin) : 0;
            dsi_checkpoint_pt_range(p, i, prefix, DS_F32, begin, end - begin, zeros);
            filled += end - begin + zeros;
        }
        at += n;
    }
    dsi_checkpoint_pt_range(p, DSI_CHECKPOINT_NONE, "", DS_F32, 0, 0, p->partition - filled);
}

/* An entry of the zip file: its data start at a multiple of 64, as torch's do; sizes and places are always in zip64's
   fields, so that there is one way to write them. */
static void dsi_checkpoint_pt_record(dsi_checkpoint_pt *p, dsi_checkpoint_list *to, const char *name, bool local) {
    const size_t length = strlen(name);
    const uint64_t used = p->entry + 30 + length + 20 + 4;
    dsi_checkpoint_pt_little(p, to, local ? 0x04034B50u : 0x02014B50u, 4);
    dsi_checkpoint_pt_little(p, to, local ? 45 : 45 | 45 << 16, local ? 2 : 4); /* versions */
    dsi_checkpoint_pt_little(p, to, 0, 6);                                      /* flags, stored, time */
    dsi_checkpoint_pt_little(p, to, 0x21, 2);                                   /* 1 January 1980 */
    dsi_checkpoint_pt_little(p, to, p->sum, 4);
    dsi_checkpoint_pt_little(p, to, UINT64_MAX, 8);
    dsi_checkpoint_pt_little(p, to, length, 2);
    dsi_checkpoint_pt_little(p, to, local ? 20 + 4 + (p->data - used) : 28, 2);
    if (!local) {
        dsi_checkpoint_pt_little(p, to, 0, 8);
        dsi_checkpoint_pt_little(p, to, 0, 2);
        dsi_checkpoint_pt_little(p, to, UINT32_MAX, 4);
    }
    dsi_checkpoint_pt_bytes(p, to, name, length);
    dsi_checkpoint_pt_little(p, to, local ? 1 | 16 << 16 : 1 | 24 << 16, 4);
    dsi_checkpoint_pt_little(p, to, p->at - p->data, 8);
    dsi_checkpoint_pt_little(p, to, p->at - p->data, 8);
    if (local) {
        dsi_checkpoint_pt_little(p, to, 'F' | 'B' << 8 | (p->data - used) << 16, 4);
        for (uint64_t i = used; i < p->data; i++) dsi_checkpoint_pt_bytes(p, to, "Z", 1);
    } else
        dsi_checkpoint_pt_little(p, to, p->entry, 8);
}
static void dsi_checkpoint_pt_begin_entry(dsi_checkpoint_pt *p, const char *name) {
    p->entry = p->at;
    p->at = p->data = (p->entry + 30 + strlen(name) + 20 + 4 + 63) / 64 * 64;
    p->sum = 0;
}
static void dsi_checkpoint_pt_end_entry(dsi_checkpoint_pt *p, const char *name) {
    p->header.count = 0;
    dsi_checkpoint_pt_record(p, &p->header, name, true);
    dsi_checkpoint_pt_record(p, &p->directory, name, false);
    p->entries++;
    if (!p->status)
        p->status =
            dsi_checkpoint_put(&p->w.desc, p->fd, p->path, p->header.items, p->header.count, p->entry, p->error);
}
static void dsi_checkpoint_pt_entry(dsi_checkpoint_pt *p, const char *name, const void *data, size_t n) {
    dsi_checkpoint_pt_begin_entry(p, name);
    dsi_checkpoint_pt_write(p, data, n);
    dsi_checkpoint_pt_end_entry(p, name);
}
static void dsi_checkpoint_pt_directory(dsi_checkpoint_pt *p) {
    const uint64_t start = p->at, bytes = p->directory.count;
    dsi_checkpoint_list *to = &p->directory;
    dsi_checkpoint_pt_little(p, to, 0x06064B50u, 4);
    dsi_checkpoint_pt_little(p, to, 44, 8);
    dsi_checkpoint_pt_little(p, to, 45 | 45 << 16, 4);
    dsi_checkpoint_pt_little(p, to, 0, 8);
    dsi_checkpoint_pt_little(p, to, p->entries, 8);
    dsi_checkpoint_pt_little(p, to, p->entries, 8);
    dsi_checkpoint_pt_little(p, to, bytes, 8);
    dsi_checkpoint_pt_little(p, to, start, 8);
    dsi_checkpoint_pt_little(p, to, 0x07064B50u, 8);
    dsi_checkpoint_pt_little(p, to, start + bytes, 8);
    dsi_checkpoint_pt_little(p, to, 1, 4);
    dsi_checkpoint_pt_little(p, to, 0x06054B50u, 8);
    dsi_checkpoint_pt_little(p, to, UINT64_MAX, 8);
    dsi_checkpoint_pt_little(p, to, UINT32_MAX, 4);
    dsi_checkpoint_pt_little(p, to, 0, 2);
    dsi_checkpoint_pt_write(p, to->items, to->count);
}

static void dsi_checkpoint_pt_begin(dsi_checkpoint_pt *p) {
    p->pickle.count = p->storages.count = p->directory.count = 0;
    p->at = p->entries = 0;
    dsi_checkpoint_pt_code(p, "\x80\x02");
}
/* Writes the file whose pickle was made. */
static void dsi_checkpoint_pt_end(dsi_checkpoint_pt *p, const char *name) {
    dsi_checkpoint_pt_code(p, ".");
    if (p->status) return;
    dsi_checkpoint_join(p->path, p->w.made, name);
    p->fd = dsi_checkpoint_create(&p->w.desc, p->path);
    if (p->fd < 0) {
        p->status = dsi_checkpoint_failed(p->error, p->fd, "create", p->path);
        return;
    }
    dsi_checkpoint_pt_entry(p, "archive/data.pkl", p->pickle.items, p->pickle.count);
    dsi_checkpoint_pt_entry(p, "archive/byteorder", "little", 6);
    for (size_t i = 0; i < p->storages.count && !p->status; i++) {
        const dsi_checkpoint_storage *s = (const dsi_checkpoint_storage *)(const void *)p->storages.items + i;
        char entry[48];
        snprintf(entry, sizeof entry, "archive/data/%zu", i);
        dsi_checkpoint_pt_begin_entry(p, entry);
        if (!s->prefix)
            dsi_checkpoint_pt_write(p, &s->number, sizeof s->number);
        else if (s->tensor == DSI_CHECKPOINT_NONE)
            dsi_checkpoint_pt_partition(p, s->prefix, (size_t)s->rank);
        else
            dsi_checkpoint_pt_range(p, s->tensor, s->prefix, s->dtype, 0, s->numel, 0);
        dsi_checkpoint_pt_end_entry(p, entry);
    }
    dsi_checkpoint_pt_entry(p, "archive/version", "3\n", 2);
    dsi_checkpoint_pt_directory(p);
    p->status = dsi_checkpoint_close_written(&p->w.desc, p->fd, p->path, p->status, p->error);
}

/* A rank's model states; stage 3's and a universal checkpoint's other files need no weights. */
static void dsi_checkpoint_pt_model(dsi_checkpoint_pt *p, const char *file, bool weights) {
    const ds_checkpoint *c = p->from;
    const int64_t step = dsi_checkpoint_value_or(c, "engine.step", 0);
    const int64_t skipped = dsi_checkpoint_value_or(c, "engine.skipped", 0);
    dsi_checkpoint_pt_begin(p);
    dsi_checkpoint_pt_code(p, "}(");
    dsi_checkpoint_pt_key(p, "buffer_names", "](");
    for (size_t i = 0; i < c->tensors.count; i++)
        if (!p->trained[i] && strncmp(dsi_checkpoint_tensor_of(c, i)->name, "optimizer.", 10) != 0)
            dsi_checkpoint_pt_text(p, dsi_checkpoint_tensor_of(c, i)->name);
    dsi_checkpoint_pt_code(p, "e");
    dsi_checkpoint_pt_key(p, "module", "}(");
    for (size_t i = 0; i < c->tensors.count; i++) {
        if (p->trained[i] ? !weights : !strncmp(dsi_checkpoint_tensor_of(c, i)->name, "optimizer.", 10)) continue;
        dsi_checkpoint_pt_text(p, dsi_checkpoint_tensor_of(c, i)->name);
        dsi_checkpoint_pt_whole(p, i, "");
    }
    dsi_checkpoint_pt_code(p, "u");
    dsi_checkpoint_pt_key(p, "param_shapes", "](}(");
    for (size_t i = 0; i < c->tensors.count; i++) {
        const dsi_checkpoint_tensor_ *t = dsi_checkpoint_tensor_of(c, i);
        if (!p->trained[i]) continue;
        dsi_checkpoint_pt_key(p, t->name, "ctorch\nSize\n(");
        dsi_checkpoint_pt_sizes(p, t->shape, t->dims);
        dsi_checkpoint_pt_code(p, "tR");
    }
    dsi_checkpoint_pt_code(p, "ue");
    dsi_checkpoint_pt_key(p, "frozen_param_shapes", "N");
    dsi_checkpoint_pt_key(p, "frozen_param_fragments", "N");
    dsi_checkpoint_pt_key(p, "shared_params", "}");
    dsi_checkpoint_pt_key(p, "optimizer", "N");
    dsi_checkpoint_pt_key(p, "lr_scheduler", "}(");
    dsi_checkpoint_pt_count(p, "last_batch_iteration",
                            dsi_checkpoint_value_or(c, "optimizer.schedule", step - skipped) - 1);
    dsi_checkpoint_pt_code(p, "u");
    dsi_checkpoint_pt_count(p, "global_steps", step);
    dsi_checkpoint_pt_count(p, "skipped_steps", skipped);
    dsi_checkpoint_pt_count(p, "global_samples", dsi_checkpoint_value_or(c, "engine.samples", 0));
    dsi_checkpoint_pt_count(p, "dp_world_size", p->ranks);
    dsi_checkpoint_pt_count(p, "mp_world_size", 1);
    dsi_checkpoint_pt_key(p, "ds_config", "}");
    dsi_checkpoint_pt_text(p, "ds_version");
    dsi_checkpoint_pt_text(p, "0.19.6");
    if (!p->stage) {
        dsi_checkpoint_pt_key(p, "universal_checkpoint_info", "}(");
        dsi_checkpoint_pt_number(p, "universal_checkpoint_version", 0.4);
        dsi_checkpoint_pt_code(p, "u");
    }
    dsi_checkpoint_pt_code(p, "u");
    dsi_checkpoint_pt_end(p, file);
}
/* The next step's rate, of the first group; what else a group has DeepSpeed takes from its own configuration. */
static void dsi_checkpoint_pt_groups(dsi_checkpoint_pt *p, int groups) {
    double rate;
    const bool known = ds_checkpoint_get_number(p->from, "optimizer.lr", &rate) == DS_OK;
    dsi_checkpoint_pt_key(p, "param_groups", "](");
    for (int g = 0; g < groups; g++) {
        dsi_checkpoint_pt_code(p, "}(");
        if (known && g == 0) dsi_checkpoint_pt_number(p, "lr", rate);
        dsi_checkpoint_pt_key(p, "params", "](");
        dsi_checkpoint_pt_integer(p, g);
        dsi_checkpoint_pt_code(p, "eu");
    }
    dsi_checkpoint_pt_code(p, "e");
}
/* The state of a base optimizer: its step, and when `rank` >= 0 that rank's partitions. */
static void dsi_checkpoint_pt_optimizer(dsi_checkpoint_pt *p, const char *key, int rank) {
    dsi_checkpoint_pt_key(p, key, "}(");
    dsi_checkpoint_pt_key(p, "state", "}(K");
    dsi_checkpoint_pt_bytes(p, &p->pickle, "\0}(", 3); /* of group 0 */
    dsi_checkpoint_pt_text(p, "step");
    dsi_checkpoint_pt_step(p);
    for (size_t k = 1; k < p->prefixes.count && rank >= 0; k++) {
        const char *prefix = dsi_checkpoint_pt_prefix(p, k);
        char name[96];
        snprintf(name, sizeof name, "%.*s", (int)strlen(prefix) - 11, prefix + 10);
        dsi_checkpoint_pt_text(p, name);
        dsi_checkpoint_pt_flat(p, prefix, rank);
    }
    dsi_checkpoint_pt_code(p, "uu");
    dsi_checkpoint_pt_groups(p, 1);
    dsi_checkpoint_pt_code(p, "u");
}
static void dsi_checkpoint_pt_rank(dsi_checkpoint_pt *p, int rank) {
    char file[96];
    dsi_checkpoint_pt_begin(p);
    dsi_checkpoint_pt_code(p, "}(");
    dsi_checkpoint_pt_key(p, "optimizer_state_dict", "}(");
    dsi_checkpoint_pt_count(p, "zero_stage", p->stage);
    dsi_checkpoint_pt_count(p, "partition_count", p->ranks);
    dsi_checkpoint_pt_key(p, p->stage == 3 ? "fp32_flat_groups" : "single_partition_of_fp32_groups", "](");
    dsi_checkpoint_pt_flat(p, "", rank);
    dsi_checkpoint_pt_code(p, "e");
    dsi_checkpoint_pt_optimizer(p, p->stage == 3 ? "optimizer_state_dict" : "base_optimizer_state", rank);
    dsi_checkpoint_pt_code(p, "uu");
    snprintf(file, sizeof file, "zero_pp_rank_%d_mp_rank_00_optim_states.pt", rank);
    dsi_checkpoint_pt_end(p, file);
}

/* Makes folder made/name, or syncs it. */
static void dsi_checkpoint_pt_folder(dsi_checkpoint_pt *p, const char *name, bool sync) {
    char path[DSI_CHECKPOINT_PATH];
    int result;
    if (p->status) return;
    dsi_checkpoint_join(path, p->w.made, name);
    if (sync)
        p->status = dsi_checkpoint_sync_folder(&p->w.desc, path, p->error);
    else if ((result = p->w.desc.files.mkdir(p->w.desc.files.ctx, path, 0777)) < 0)
        p->status = dsi_checkpoint_failed(p->error, result, "make the folder", path);
}
static void dsi_checkpoint_pt_universal(dsi_checkpoint_pt *p) {
    dsi_checkpoint_pt_folder(p, "zero", false);
    dsi_checkpoint_pt_begin(p);
    dsi_checkpoint_pt_code(p, "}(");
    dsi_checkpoint_pt_groups(p, 64); /* DeepSpeed loads as many groups as are here, and finds tensors by name */
    dsi_checkpoint_pt_optimizer(p, "optimizer_state_dict", -1); /* stage 3 looks here */
    dsi_checkpoint_pt_count(p, "zero_stage", 1);
    dsi_checkpoint_pt_key(p, "overflow", "\x89");
    dsi_checkpoint_pt_text(p, "ds_version");
    dsi_checkpoint_pt_text(p, "0.19.6");
    dsi_checkpoint_pt_code(p, "u");
    dsi_checkpoint_pt_end(p, "zero/optimizer_state.pt");
    for (size_t i = 0; i < p->from->tensors.count && !p->status; i++) {
        const char *name = dsi_checkpoint_tensor_of(p->from, i)->name;
        char folder[300], file[400];
        if (!p->trained[i]) continue;
        if (!dsi_checkpoint_plain_name(name, 255)) {
            p->status = dsi_fail(p->error, DS_ERR_UNSUPPORTED, "tensor '%.200s': its name cannot be a folder's", name);
            return;
        }
        snprintf(folder, sizeof folder, "zero/%.255s", name);
        dsi_checkpoint_pt_folder(p, folder, false);
        for (size_t k = 0; k < p->prefixes.count; k++) {
            const char *prefix = dsi_checkpoint_pt_prefix(p, k);
            snprintf(file, sizeof file, "%s/%.*s.pt", folder, k ? (int)strlen(prefix) - 11 : 4,
                     k ? prefix + 10 : "fp32");
            dsi_checkpoint_pt_begin(p);
            dsi_checkpoint_pt_code(p, "}(");
            dsi_checkpoint_pt_text(p, "param");
            dsi_checkpoint_pt_whole(p, i, prefix);
            dsi_checkpoint_pt_count(p, "cat_dim", 0);
            dsi_checkpoint_pt_code(p, "u");
            dsi_checkpoint_pt_end(p, file);
        }
        dsi_checkpoint_pt_begin(p);
        dsi_checkpoint_pt_step(p);
        snprintf(file, sizeof file, "%s/step.pt", folder);
        dsi_checkpoint_pt_end(p, file);
        dsi_checkpoint_pt_folder(p, folder, true);
    }
    dsi_checkpoint_pt_folder(p, "zero", true);
}

/* Which tensors are trained: those with a state of the optimizer, or when there is none all of a floating type. */
static void dsi_checkpoint_pt_sort(dsi_checkpoint_pt *p) {
    ds_checkpoint *c = p->from;
    dsi_checkpoint_state state;
    size_t all = 0;
    memset(&state, 0, sizeof state);
    dsi_checkpoint_pt_bytes(p, &p->prefixes, &state, 1);
    for (size_t i = 0; i < c->tensors.count && !p->status; i++) {
        const char *name = dsi_checkpoint_tensor_of(c, i)->name;
        const char *end = strncmp(name, "optimizer.", 10) ? NULL : strchr(name + 10, '.');
        const size_t at = end ? dsi_checkpoint_lookup(&c->index, &c->tensors, end + 1) : DSI_CHECKPOINT_NONE;
        bool known = false;
        if (at == DSI_CHECKPOINT_NONE || (size_t)(end + 1 - name) >= sizeof state.text ||
            dsi_checkpoint_tensor_of(c, at)->numel != dsi_checkpoint_tensor_of(c, i)->numel)
            continue;
        p->trained[at] = true;
        snprintf(state.text, sizeof state.text, "%.*s", (int)(end + 1 - name), name);
        for (size_t k = 0; k < p->prefixes.count; k++) known |= !strcmp(dsi_checkpoint_pt_prefix(p, k), state.text);
        if (!known) dsi_checkpoint_pt_bytes(p, &p->prefixes, &state, 1);
    }
    for (size_t i = 0; i < c->tensors.count && !p->status; i++) {
        const dsi_checkpoint_tensor_ *t = dsi_checkpoint_tensor_of(c, i);
        const size_t ranks = (size_t)p->ranks;
        if (p->prefixes.count == 1 && dsi_checkpoint_is_float(t->dtype)) p->trained[i] = true;
        if (p->trained[i] && !dsi_checkpoint_is_float(t->dtype))
            p->status =
                dsi_fail(p->error, DS_ERR_UNSUPPORTED, "tensor '%.200s' is trained, and of no floating type", t->name);
        if (p->trained[i]) p->partition += t->numel / ranks + (t->numel % ranks != 0);
        if (p->trained[i]) all += t->numel;
    }
    if (p->stage < 3) p->partition = dsi_round_up(all, 2 * (size_t)p->ranks) / (size_t)p->ranks;
}
static void dsi_checkpoint_pt_files(dsi_checkpoint_pt *p) {
    const bool three = p->stage == 3 || !p->stage;
    char file[96];
    if (p->stage < 3) dsi_checkpoint_pt_model(p, "mp_rank_00_model_states.pt", true);
    for (int r = 0; r < p->ranks && !p->status; r++) {
        snprintf(file, sizeof file, "zero_pp_rank_%d_mp_rank_00_model_states.pt", r);
        if (three) dsi_checkpoint_pt_model(p, file, false);
        if (p->stage) dsi_checkpoint_pt_rank(p, r);
    }
    if (!p->stage) dsi_checkpoint_pt_universal(p);
    dsi_checkpoint_pt_folder(p, "", true);
}

static ds_status dsi_checkpoint_pt_save(dsi_checkpoint_pt *p, const char *folder, const char *tag) {
    ds_checkpoint_writer *w = &p->w;
    w->desc = p->from->desc;
    w->desc.folder = folder;
    w->latest = p->stage ? "latest" : "latest_universal";
    snprintf(w->folder, sizeof w->folder, "%s", folder);
    snprintf(w->tag, sizeof w->tag, "%s", tag);
    dsi_checkpoint_paths(w);
    p->prefixes.each = sizeof(dsi_checkpoint_state);
    p->storages.each = sizeof(dsi_checkpoint_storage);
    p->pickle.each = p->header.each = p->directory.each = 1;
    dsi_checkpoint_pt_sort(p);
    if (!p->status) p->status = dsi_checkpoint_prepare(w, p->error);
    if (p->status) return p->status;
    dsi_checkpoint_pt_files(p);
    if (!p->status) p->status = dsi_checkpoint_publish(w, p->error);
    if (p->status)
        dsi_checkpoint_take_back(w);
    else
        dsi_checkpoint_clean_up(w);
    return p->status;
}

DS_API ds_status ds_deepspeed_write(ds_checkpoint *from, const char *folder, const char *tag, int stage, int ranks,
                                    ds_error *error) {
    const ds_allocator *a = from ? &from->desc.allocator : NULL;
    const size_t room = from ? from->tensors.count * sizeof(bool) : 0, block = DSI_CHECKPOINT_BLOCK + 4096;
    dsi_checkpoint_pt *p;
    ds_status status;
    if (!from || !dsi_checkpoint_good_path(folder) || !dsi_checkpoint_good_tag(tag) || stage < 0 || stage > 3 ||
        ranks < 0 || ranks > 100000)
        return dsi_fail(error, DS_ERR_ARGUMENT, "ds_deepspeed_write: folder, tag, stage %d or %d ranks are wrong",
                        stage, ranks);
    for (size_t i = 0; i < from->tensors.count; i++)
        if (strlen(dsi_checkpoint_tensor_of(from, i)->name) > 3900)
            return dsi_fail(error, DS_ERR_UNSUPPORTED, "tensor '%.100s...': its name is too long",
                            dsi_checkpoint_tensor_of(from, i)->name);
    p = (dsi_checkpoint_pt *)dsi_alloc_zero(a, sizeof *p);
    if (!p) return dsi_checkpoint_no_memory(error, "a checkpoint's writer");
    p->from = from;
    p->stage = stage;
    p->ranks = ranks ? ranks : 1;
    p->error = error;
    p->trained = (bool *)dsi_alloc_zero(a, room);
    p->block = (char *)dsi_alloc(a, block);
    status = p->trained && p->block ? dsi_checkpoint_pt_save(p, folder, tag)
                                    : dsi_checkpoint_no_memory(error, "a checkpoint's writer");
    dsi_release(a, p->trained, room);
    dsi_release(a, p->block, block);
    dsi_checkpoint_list_free(a, &p->prefixes);
    dsi_checkpoint_list_free(a, &p->pickle);
    dsi_checkpoint_list_free(a, &p->storages);
    dsi_checkpoint_list_free(a, &p->header);
    dsi_checkpoint_list_free(a, &p->directory);
    dsi_release(a, p, sizeof *p);
    return status;
}

// >>opening whatever there is

/* A safetensors file's metadata as values, but for our notes. */
static ds_status dsi_checkpoint_metadata_values(ds_checkpoint *c, ds_error *error) {
    const dsi_json *doc = &dsi_checkpoint_shard_of(c, 0)->header;
    const uint32_t object = dsi_json_get(doc, 0, "__metadata__");
    uint32_t k = object + 1;
    if (object == DSI_JSON_NONE || doc->nodes[object].type != DSI_JSON_OBJECT) return DS_OK;
    for (uint32_t i = 0; i < doc->nodes[object].length; i++, k = doc->nodes[k + 1].next) {
        ds_checkpoint_value *v;
        if (!strncmp(doc->nodes[k].as.text, "ds:", 3)) continue;
        v = (ds_checkpoint_value *)dsi_checkpoint_push(&c->desc.allocator, &c->values, 1);
        if (!v) return dsi_checkpoint_no_memory(error, "metadata");
        v->key = doc->nodes[k].as.text;
        v->data = doc->nodes[k + 1].as.text;
        v->bytes = doc->nodes[k + 1].length;
    }
    return DS_OK;
}
static ds_status dsi_checkpoint_open_safetensors(ds_checkpoint *c, const char *path, ds_error *error) {
    ds_status status;
    const char *name = dsi_checkpoint_split(path, c->folder);
    c->format = DS_CHECKPOINT_SAFETENSORS;
    snprintf(c->tag, sizeof c->tag, "%s", path);
    status = dsi_checkpoint_add_shard(c, name, error);
    if (!status) status = dsi_checkpoint_read_shard(c, 0, NULL, error);
    if (!status) status = dsi_checkpoint_metadata_values(c, error);
    return status ? status : dsi_checkpoint_settle(c, false, error);
}

/* The shards of an index: each file once, then what the index says of each tensor against what the files hold. */
static ds_status dsi_checkpoint_read_index(ds_checkpoint *c, const char *path, uint32_t map, ds_error *error) {
    const dsi_json *doc = &c->manifest;
    dsi_checkpoint_index files;
    uint32_t k = map + 1;
    ds_status status = DS_OK;
    memset(&files, 0, sizeof files);
    if (map == DSI_JSON_NONE || doc->nodes[map].type != DSI_JSON_OBJECT)
        return dsi_fail(error, DS_ERR_INPUT, "'%.300s' has no weight_map", path);
    for (uint32_t i = 0; i < doc->nodes[map].length && !status; i++, k = doc->nodes[k + 1].next) {
        const char *file = dsi_json_text(doc, k + 1);
        if (!file || !dsi_checkpoint_plain_name(file, 255))
            status = dsi_fail(error, DS_ERR_INPUT,
                              "'%.250s': tensor '%.100s' is said to be in '%.100s', which is no file's name", path,
                              doc->nodes[k].as.text, file ? file : "");
        else if (dsi_checkpoint_lookup(&files, &c->shards, file) == DSI_CHECKPOINT_NONE) {
            status = dsi_checkpoint_add_shard(c, file, error);
            if (!status && !dsi_checkpoint_enter(&c->desc.allocator, &files, &c->shards))
                status = dsi_checkpoint_no_memory(error, path);
        }
    }
    for (size_t s = 0; s < c->shards.count && !status; s++) status = dsi_checkpoint_read_shard(c, s, NULL, error);
    if (!status) status = dsi_checkpoint_settle(c, false, error);
    k = map + 1;
    for (uint32_t i = 0; i < doc->nodes[map].length && !status; i++, k = doc->nodes[k + 1].next) {
        const size_t at = dsi_checkpoint_lookup(&c->index, &c->tensors, doc->nodes[k].as.text);
        if (at == DSI_CHECKPOINT_NONE || dsi_checkpoint_tensor_of(c, at)->seen !=
                                             dsi_checkpoint_lookup(&files, &c->shards, doc->nodes[k + 1].as.text) + 1)
            status = dsi_fail(error, DS_ERR_INPUT, "'%.250s': tensor '%.100s' is not in '%.100s'", path,
                              doc->nodes[k].as.text, doc->nodes[k + 1].as.text);
    }
    dsi_checkpoint_index_free(&c->desc.allocator, &files);
    if (!status && c->tensors.count != doc->nodes[map].length)
        status = dsi_fail(error, DS_ERR_INPUT, "'%.300s' lists %u tensors, its shards hold %zu", path,
                          doc->nodes[map].length, c->tensors.count);
    return status;
}
static ds_status dsi_checkpoint_open_index(ds_checkpoint *c, const char *path, ds_error *error) {
    char *text;
    size_t bytes;
    ds_error why;
    ds_status status;
    c->format = DS_CHECKPOINT_SAFETENSORS;
    dsi_checkpoint_split(path, c->folder);
    snprintf(c->tag, sizeof c->tag, "%s", path);
    status = dsi_checkpoint_read_file(&c->desc, path, true, DSI_CHECKPOINT_HEADER, &text, &bytes, error);
    if (status) return status;
    status = dsi_json_load(&c->desc.allocator, text, bytes, 0, &c->manifest, &why);
    if (status) dsi_fail(error, status, "'%.300s': %.150s", path, why.message);
    dsi_release(&c->desc.allocator, text, bytes + 1);
    return status ? status : dsi_checkpoint_read_index(c, path, dsi_json_get(&c->manifest, 0, "weight_map"), error);
}

static ds_status dsi_checkpoint_open_any(ds_checkpoint *c, const char *path, ds_error *error) {
    const ds_files *f = &c->desc.files;
    char inner[DSI_CHECKPOINT_PATH], tag[DSI_CHECKPOINT_TAG + 1];
    const char *latest = "latest";
    int kind = f->exists(f->ctx, path);
    if (kind < 0) return dsi_checkpoint_failed(error, kind, "look at", path);
    if (kind == 0) return dsi_fail(error, DS_ERR_INPUT, "'%.400s' is not there", path);
    if (kind != 2 && dsi_checkpoint_ends(path, ".json")) return dsi_checkpoint_open_index(c, path, error);
    if (kind != 2) return dsi_checkpoint_open_safetensors(c, path, error);
    if (dsi_checkpoint_has(c, path, "manifest.json", inner) > 0) {
        memcpy(c->folder, path, strlen(path) + 1);
        return dsi_checkpoint_open_folder(c, error);
    }
    if (dsi_checkpoint_has(c, path, "mp_rank_00_model_states.pt", inner) > 0 ||
        dsi_checkpoint_has(c, path, "zero_pp_rank_0_mp_rank_00_model_states.pt", inner) > 0) {
        memcpy(c->folder, path, strlen(path) + 1);
        return dsi_checkpoint_deepspeed_open(c, error);
    }
    if (c->desc.load_universal || dsi_checkpoint_has(c, path, latest, inner) <= 0) latest = "latest_universal";
    if (dsi_checkpoint_has(c, path, latest, inner) > 0) {
        ds_error why;
        if (!dsi_checkpoint_read_latest(&c->desc, path, latest, tag, &why)) {
            dsi_checkpoint_join(c->folder, path, tag);
            if (f->exists(f->ctx, c->folder) == 2 && dsi_checkpoint_has(c, c->folder, "manifest.json", inner) == 0)
                return dsi_checkpoint_deepspeed_open(c, error);
        }
        return dsi_checkpoint_open_latest(c, path, error);
    }
    if (dsi_checkpoint_has(c, path, "model.safetensors.index.json", inner) > 0)
        return dsi_checkpoint_open_index(c, inner, error);
    if (dsi_checkpoint_has(c, path, "model.safetensors", inner) > 0)
        return dsi_checkpoint_open_safetensors(c, inner, error);
    return dsi_checkpoint_open_latest(c, path, error);
}
DS_API ds_status ds_checkpoint_open_path_(const ds_checkpoint_desc *desc, size_t desc_bytes, int version,
                                          const char *path, ds_checkpoint **out, ds_error *error) {
    ds_status status = dsi_checkpoint_check_call(desc, desc_bytes, version, error);
    ds_checkpoint *c;
    char trimmed[DSI_CHECKPOINT_PATH];
    size_t n = path ? strlen(path) : 0;
    if (out) *out = NULL;
    if (status) return status;
    if (!desc || !out || !dsi_checkpoint_good_path(path))
        return dsi_fail(error, DS_ERR_ARGUMENT,
                        "ds_checkpoint_open_path: needs a descriptor and a path of at most %d bytes",
                        DSI_CHECKPOINT_FOLDER);
    while (n > 1 && path[n - 1] == '/') n--;
    memcpy(trimmed, path, n);
    trimmed[n] = 0;
    c = dsi_checkpoint_new(desc, error);
    if (!c) return DS_ERR_MEMORY;
    status = dsi_checkpoint_open_any(c, trimmed, error);
    if (status)
        ds_checkpoint_close(c);
    else
        *out = c;
    return status;
}

#undef DSI_CHECKPOINT_BLOCK
#undef DSI_CHECKPOINT_CHUNK
#undef DSI_CHECKPOINT_LARGE
#undef DSI_CHECKPOINT_BUCKETS
#undef DSI_CHECKPOINT_BUCKET
#undef DSI_CHECKPOINT_PAGE
#undef DSI_CHECKPOINT_SECTOR
#undef DSI_CHECKPOINT_DIRECT
#undef DSI_CHECKPOINT_TWO
#undef DSI_CHECKPOINT_PATH
#undef DSI_CHECKPOINT_FOLDER
#undef DSI_CHECKPOINT_TAG
#undef DSI_CHECKPOINT_HEADER
#undef DSI_CHECKPOINT_OPEN
#undef DSI_CHECKPOINT_NONE
#undef DSI_CHECKPOINT_SHARD_NAME
#undef DSI_CHECKPOINT_DEPTH
#undef DSI_CHECKPOINT_DTYPES
#undef DSI_CHECKPOINT_STORAGES
#undef DSI_CHECKPOINT_TAIL

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
