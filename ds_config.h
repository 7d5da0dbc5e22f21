/* ds_config.h - v0.1.0 - a DeepSpeed JSON configuration, parsed, checked and resolved; and a JSON parser - public domain or MIT-0

   DO THIS
       #define DS_CONFIG_IMPLEMENTATION   in one C or C++ file, before
       #include "ds_config.h"             and the include alone in all others.

   SYNOPSIS
       static void say(void *ctx, const ds_config_problem *p) {
           fprintf((FILE *)ctx, "%d:%d: %s: %s\n", p->line, p->column, p->path, p->message);
       }
       ...
       ds_config_options options = {0};
       ds_config *config;
       ds_error error = {DS_OK, ""};
       options.world_size = 8;
       options.problem = say;
       options.ctx = stderr;
       if (ds_config_parse(text, strlen(text), &options, &config, &error)) return 1;
       if (config->zero_optimization.stage == 3) ...
       if (config->zero_optimization.offload_optimizer.device == DS_CONFIG_NVME) ...
       ds_config_free(config);
     The JSON reader alone:
       ds_json *json;
       ds_json_node list, v;
       double number, sum = 0;
       if (ds_json_parse(text, strlen(text), NULL, &json, &error)) return 1;   error.message: "line:column: what"
       list = ds_json_get(json, ds_json_get(json, 0, "data"), "list");
       for (v = ds_json_first(json, list); v != DS_JSON_NO_NODE; v = ds_json_next(json, list, v))
           if (ds_json_number(json, v, &number)) sum += number;
       ds_json_free(json);

   OPTIONS  (define before including)
       DS_CONFIG_IMPLEMENTATION  -  this file implements ds_config.h; DS_IMPLEMENTATION: every ds header
       DS_STATIC                 -  all functions are private to the file; wherever the header is included in it

   WHAT IT DOES NOT DO
       It opens no file, reads no environment variable and prints nothing. It does not know which keys the rest of a
       program acts on: ask ds_config_unclaimed. It does not look at paths, devices or the model.

   CONCEPTS
       Key: what the documents call a key, by its path ("zero_optimization.stage"). One table, DS_CONFIG_KEYS below, has
       them all, of every vintage of the reference; the struct ds_config, the defaults, the reader, the printer and the
       lists for people are made from it. A key of a named object (a compression group, a curriculum metric) has its own
       table, and its path the object's name.
       Value: 0, 5e8, "auto" and null are values, not absences. null is what the table says: mostly "not set".
       Origin: default, given, derived or auto; ds_config_where tells it for each key, with line and column.
       World size: the number of data-parallel ranks, an argument. The batch keys are resolved for it.

   STEP BY STEP
       1. ds_config_parse. The text may hold comments and trailing commas, as DeepSpeed's own reader allows, unless
          options.strict_json. Unknown keys are errors; options.unknown makes them warnings or ignores them.
       2. Read config->... ; text values point into the configuration.
       3. ds_config_unclaimed with the lists of claims that your headers export; stop when a key is left.
       4. ds_config_print or ds_config_explain for a log.
       Batch keys: train_batch_size = train_micro_batch_size_per_gpu * gradient_accumulation_steps * world size. Any two
       give the third; train_batch_size alone, or the micro batch alone, takes an accumulation of 1; accumulation alone
       is an error. A contradiction is answered with the equation and the nearest triples that work.
       "auto": filled in from options.hints. Without its hint it is an error where a value is needed (batch keys,
       gradient_clipping, optimizer and scheduler parameters); in zero_optimization, fp16 and bf16 it is the default.
       A batch key with "auto" that the two others determine needs no hint.

   MEMORY
       One allocation for ds_config_parse (about 50 bytes for each comma, colon and bracket of the text, three times the
       text, some 600 bytes for each object, and 24 KiB), one for ds_json_parse, given back by the free functions;
       ds_config_explain makes one for a long value. No recursion; nesting is bounded by options.max_depth, text by
       options.max_bytes.

   SPEED
       On one core of an AMD EPYC: a configuration of 11 KB parsed, checked and resolved in 30 us; JSON at 0.9 GB/s, 0.58
       of yyjson's speed. `ds bench config` measures both.

   ERRORS
       options.problem gets every problem of a file, ds_error the first. DS_ERR_INPUT: the text is wrong.
       DS_ERR_MEMORY. DS_ERR_VERSION: header and implementation differ. There are no log lines.

   THREADS
       Functions share nothing. A configuration or document never changes once made; any number of threads may read it.

   DECISIONS, where the documents, their vintages and DeepSpeed's code disagree
       Defaults: the newest document that states one, if some release had it, else the code of 0.19.6. So
       gradient_clipping 0, steps_per_print 10, fp16.initial_scale_power 16, fp16.min_loss_scale 1, contiguous_gradients
       true, overlap_comm true at stage 3 only, stage3_prefetch_bucket_size 5e7, stage3_param_persistence_threshold 1e5,
       sub_group_size 1e9, offload device none, pin_memory false, range_calibration dynamic. But flops_profiler.top_modules
       is 1, as in all code, not 3, as in one document.
       Refused here, accepted by DeepSpeed: unknown keys in any section, also among the parameters of an optimizer or
       scheduler that it implements; duplicate keys however the text came; values of another type that Python would
       convert ("5" or true for 5, 1 for true); numbers, modes and types without meaning in sections that it does not
       look at; Hjson (no quotes, no commas, a byte order mark, None); lists of rates per group in a scheduler; "auto"
       where nothing fills it in (amp's too, which older integrations fill for Apex); a zero byte in a text; nvme without
       nvme_path; offload_param below stage 3; offload_optimizer at stage 0, or on nvme below stage 3; amp with ZeRO,
       fp16 or bf16; 1-bit optimizers with ZeRO; a partition size of ZeRO++ or MiCS that does not divide the world size;
       an absent total_num_steps, cycle_min_lr or cycle_max_lr; the names of its Python fields (max_live_parameters for
       stage3_max_live_parameters); elastic batches of no sample.
       Accepted here, refused by newer DeepSpeed: amp, sparse_gradients, sparse_attention, curriculum_learning,
       progressive_layer_drop, eigenvalue, elasticity and compression_training (which 0.19.8 dropped);
       zero_optimization.grad_hooks; a section without its `enabled`, which is off; with elasticity the very batch sizes
       that it gives (the documents want none), so that a printed configuration can be read.
       As DeepSpeed's code, not its documents: cpu_offload at stage 3 too. A foreign optimizer takes any parameter; those
       that ours have too are held to their types. Free in form, so unchecked (type JSON in the table): zenflow,
       zeropp_loco_param, checkpoint.writer, autotuning.arg_mappings and model_info, pipeline.stages.
       Lifted: train_batch_size required; the micro batch together with accumulation; ZeRO with fp16 or with Adam only.
       As DeepSpeed: optimizer names that it implements become lower case, data types fp16, bf16, fp32; fp16 and bf16
       together are an error; what the documents call mandatory for snip_momentum has defaults; wall_clock_breakdown
       is on with the flops profiler; an absent optimizer is accepted; elasticity gives the batch sizes; null for a
       section is an error but where it means absence (aio, bf16, comms_logger, sparse_attention, the offload
       sections, params).
       aio.thread_count counts (DeepSpeed reads only intra_op_parallelism, its newer name). Values stay where the
       documents have them: fp16_mixed_quantize is an object, modules always a list, the parameters of amp,
       curriculum_learning and progressive_layer_drop beside `enabled`. cpu_offload_use_pin_memory becomes pin_memory.
       Sections that are off or absent keep and show their values (DeepSpeed drops some of them).

   KEYS COVERED
       All of the four reference documents; see DS_CONFIG_KEYS. */
#if defined(DS_IMPLEMENTATION) && !defined(DS_CONFIG_IMPLEMENTATION)
#define DS_CONFIG_IMPLEMENTATION
#endif
#ifndef DS_CONFIG_H
#define DS_CONFIG_H
#define DS_CONFIG_VERSION 100 /* major * 10000 + minor * 100 + patch */

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

#if defined(DS_STATIC) && !defined(DS_CONFIG_IMPLEMENTATION)
#error "ds: DS_STATIC needs the implementation in the same file; define DS_IMPLEMENTATION before including ds_config.h"
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* >>json: a JSON reader and writer, used by the rest and useful alone. */
typedef struct ds_json ds_json; /* a document; immutable once read, so that many threads may look at it */
typedef enum ds_json_type {
    DS_JSON_NONE = 0, /* no such node */
    DS_JSON_NULL = 1,
    DS_JSON_BOOL = 2,
    DS_JSON_NUMBER = 3,
    DS_JSON_STRING = 4,
    DS_JSON_ARRAY = 5,
    DS_JSON_OBJECT = 6
} ds_json_type;
/* A value of a document is a number; the root is 0. DS_JSON_NO_NODE stands for what is not there, and every function
   takes it: a chain such as ds_json_get(d, ds_json_get(d, 0, "a"), "b") needs no checks between. */
typedef uint32_t ds_json_node;
#define DS_JSON_NO_NODE UINT32_MAX

typedef struct ds_json_options {
    bool comments;          /* also accept comments: two slashes, #, and the block comments of C */
    bool trailing_commas;   /* also accept a comma before a closing bracket */
    unsigned max_depth;     /* containers inside each other; 0: 1000 */
    size_t max_bytes;       /* 0: 1 GiB; the text must be shorter than 2 GiB */
    ds_allocator allocator; /* one allocation, given back by ds_json_free */
} ds_json_options;

/* Reads a text, RFC 8259 to the letter unless options (may be NULL) say otherwise. The text is copied. On failure
   *out is NULL and error says "line:column: what". Strings are checked to be UTF-8; numbers are rounded correctly and a
   number beyond the range of a double is an error; nothing depends on the locale. Duplicate keys are kept: ds_json_get
   finds the first, ds_json_duplicate the second. */
DS_API ds_status ds_json_parse(const char *text, size_t bytes, const ds_json_options *options, ds_json **out,
                               ds_error *error);
DS_API void ds_json_free(ds_json *json); /* NULL is fine */
DS_API ds_json_type ds_json_typeof(const ds_json *json, ds_json_node node);
DS_API size_t ds_json_count(const ds_json *json, ds_json_node node); /* elements or members; 0 for other types */
/* The value of a member by key, or an element by index (members count too); the first takes O(members), the second
   O(index): walk with ds_json_first and ds_json_next instead. */
DS_API ds_json_node ds_json_get(const ds_json *json, ds_json_node object, const char *key);
DS_API ds_json_node ds_json_at(const ds_json *json, ds_json_node container, size_t index);
/* for (v = ds_json_first(d, c); v != DS_JSON_NO_NODE; v = ds_json_next(d, c, v)) visits the values of a container. */
DS_API ds_json_node ds_json_first(const ds_json *json, ds_json_node container);
DS_API ds_json_node ds_json_next(const ds_json *json, ds_json_node container, ds_json_node value);
/* The key of a value that came from an object. */
DS_API const char *ds_json_key(const ds_json *json, ds_json_node object, ds_json_node value, size_t *bytes);
/* The first key of the document that repeats one of its object, or DS_JSON_NO_NODE. */
DS_API ds_json_node ds_json_duplicate(const ds_json *json);
/* Values. NULL, or false with *value 0, when the type is another. Strings end with a NUL; `bytes` (may be NULL) tells
   of NULs inside. ds_json_integer takes numbers that are whole as written, exactly: 5e8 and 32.0, not 5.5. */
DS_API const char *ds_json_string(const ds_json *json, ds_json_node node, size_t *bytes);
DS_API bool ds_json_number(const ds_json *json, ds_json_node node, double *value);
DS_API bool ds_json_integer(const ds_json *json, ds_json_node node, int64_t *value);
DS_API bool ds_json_bool(const ds_json *json, ds_json_node node, bool *value);
/* Where a value stands in the text, both from 1; columns count characters. */
DS_API void ds_json_position(const ds_json *json, ds_json_node node, int *line, int *column);

/* Writing. Set out, room and indent (spaces a level; 0: one line), zero the rest; what exceeds the room is counted in
   `length` but not stored, and no NUL is added. A key is NULL for an element of an array and for the root. */
typedef struct ds_json_writer {
    char *out;
    size_t room, length;
    unsigned indent, depth;
    bool comma; /* private */
} ds_json_writer;
DS_API void ds_json_write_open(ds_json_writer *writer, const char *key, char bracket); /* '{' or '[' */
DS_API void ds_json_write_close(ds_json_writer *writer, char bracket);                 /* '}' or ']' */
DS_API void ds_json_write_null(ds_json_writer *writer, const char *key);
DS_API void ds_json_write_bool(ds_json_writer *writer, const char *key, bool value);
DS_API void ds_json_write_integer(ds_json_writer *writer, const char *key, int64_t value);
/* The shortest text that reads back as the same double; null for infinities and NaN. */
DS_API void ds_json_write_number(ds_json_writer *writer, const char *key, double value);
DS_API void ds_json_write_string(ds_json_writer *writer, const char *key, const char *text); /* NULL: null */

/* >>config */
typedef enum ds_config_device { DS_CONFIG_NONE = 0, DS_CONFIG_CPU = 1, DS_CONFIG_NVME = 2 } ds_config_device;

/* Lists; `at` is NULL when count is 0. */
typedef struct ds_config_ints {
    const int64_t *at;
    size_t count;
} ds_config_ints;
typedef struct ds_config_texts {
    const char *const *at;
    size_t count;
} ds_config_texts;
typedef struct ds_config_textlists {
    const ds_config_texts *at;
    size_t count;
} ds_config_textlists;

/* >>table: every key, in the order in which it is printed.
   KEY(type, path of the section with its final dot, name, default, accepted, seen in, status, what it does)
     type      BOOL INT SIZE REAL TEXT DEVICE; PAIR two numbers; INTS TEXTS TEXTLISTS lists; JSON any value, as its text;
               METRICS and the three kinds of GROUPS: named objects with the keys of their own tables below
     accepted  "" anything of the type; ">0", ">=1", "0..1", "0<..<1" a range; "a|b" a choice ("~a|b": in any case);
               a leading "?" admits null, which is stored as 0, false, NULL or an empty list
     seen in   the vintages of the reference that have it, oldest first: 0, 1, 3 and the short one 2; "" only in code
     status    "" in force; "ds" our extension
   OLD(type, section, name, accepted, seen in, the key that replaces it, what it does) is a former spelling.
   OPEN and CLOSE bracket a section; its status: "?" admits null (as if absent), "open" other keys, which are kept. */
// clang-format off
#define DS_CONFIG_KEYS(OPEN, KEY, OLD, CLOSE) \
KEY(SIZE, , train_batch_size, "null", "?>=1", "0123", "", "samples per optimizer step over all ranks: micro batch * accumulation * world size") \
KEY(SIZE, , train_micro_batch_size_per_gpu, "null", "?>=1", "0123", "", "samples that one rank processes in one forward and backward pass") \
KEY(SIZE, , gradient_accumulation_steps, "null", "?>=1", "0123", "", "micro-batches whose gradients are averaged into one optimizer step") \
OPEN(, optimizer, "") \
KEY(TEXT, optimizer., type, "null", "?", "0123", "", "Adam, AdamW, SGD, Adagrad, Lion, Lamb, Muon, OneBitAdam, OneBitLamb, ZeroOneAdam, or a foreign name") \
OPEN(optimizer., params, "?open") \
KEY(REAL, optimizer.params., lr, "0.001", ">=0", "0123", "", "learning rate") \
KEY(PAIR, optimizer.params., betas, "[0.9, 0.999]", "0..<1", "0123", "", "decay of the running averages of gradient and square") \
KEY(REAL, optimizer.params., eps, "1e-8", ">=0", "0123", "", "added to the denominator") \
KEY(REAL, optimizer.params., weight_decay, "0", ">=0", "0123", "", "weight decay") \
KEY(REAL, optimizer.params., momentum, "0", ">=0", "2", "", "SGD, Muon: momentum") \
KEY(REAL, optimizer.params., dampening, "0", "", "", "", "SGD: dampening of the momentum") \
KEY(BOOL, optimizer.params., nesterov, "false", "", "", "", "SGD, Muon: Nesterov momentum") \
KEY(BOOL, optimizer.params., amsgrad, "false", "", "", "", "Adam: AMSGrad's maximum of the squares") \
KEY(BOOL, optimizer.params., torch_adam, "false", "", "1", "", "Adam: use the plain implementation instead of the fused one") \
KEY(BOOL, optimizer.params., adam_w_mode, "true", "", "1", "", "Adam: decoupled weight decay (AdamW) instead of L2") \
KEY(BOOL, optimizer.params., bias_correction, "true", "", "13", "", "Adam, Lamb and their kin: correct the bias of the first steps") \
KEY(REAL, optimizer.params., max_coeff, "10", ">0", "13", "", "Lamb: upper bound of the scaling coefficient") \
KEY(REAL, optimizer.params., min_coeff, "0.01", ">=0", "13", "", "Lamb: lower bound of the scaling coefficient") \
KEY(REAL, optimizer.params., max_grad_norm, "0", ">=0", "", "", "Lamb: clip to this norm by itself; 0 is off") \
KEY(BOOL, optimizer.params., eps_inside_sqrt, "false", "", "", "", "Lamb: add eps under the root") \
KEY(INT, optimizer.params., freeze_step, "100000", ">=0", "13", "", "1-bit optimizers: steps before communication is compressed") \
KEY(BOOL, optimizer.params., cuda_aware, "false", "", "13", "", "1-bit optimizers: the MPI library supports CUDA-aware communication") \
KEY(TEXT, optimizer.params., comm_backend_name, "nccl", "", "13", "", "1-bit optimizers: backend of the communication") \
KEY(REAL, optimizer.params., coeff_beta, "0.9", "0..<1", "13", "", "OneBitLamb: decay of the averages of the lamb coefficient") \
KEY(REAL, optimizer.params., factor_max, "4", ">0", "13", "", "OneBitLamb: largest scaling factor of the frozen coefficient") \
KEY(REAL, optimizer.params., factor_min, "0.5", ">0", "13", "", "OneBitLamb: smallest scaling factor of the frozen coefficient") \
KEY(REAL, optimizer.params., factor_threshold, "0.1", ">0", "13", "", "OneBitLamb: how much the factor may change in a step") \
KEY(INT, optimizer.params., var_freeze_step, "100000", ">=0", "3", "", "ZeroOneAdam: the variance is fixed after this step") \
KEY(INT, optimizer.params., var_update_scaler, "16", ">=1", "3", "", "ZeroOneAdam: variance updates until their interval doubles") \
KEY(INT, optimizer.params., local_step_scaler, "32678", ">=1", "3", "", "ZeroOneAdam: steps until the interval of local steps doubles") \
KEY(INT, optimizer.params., local_step_clipper, "16", ">=1", "3", "", "ZeroOneAdam: the largest interval of local steps") \
KEY(REAL, optimizer.params., muon_lr, "null", "?>=0", "", "", "Muon: rate of the matrices; null: lr") \
KEY(REAL, optimizer.params., adam_lr, "null", "?>=0", "", "", "Muon: rate of the tensors that Adam updates; null: lr") \
KEY(INT, optimizer.params., ns_steps, "5", ">=1", "", "", "Muon: iterations of Newton-Schulz") \
CLOSE(optimizer., params) \
KEY(BOOL, optimizer., legacy_fusion, "false", "", "", "", "use the former fused optimizer wrapper") \
CLOSE(, optimizer) \
OPEN(, scheduler, "") \
KEY(TEXT, scheduler., type, "null", "?", "0123", "", "WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle (also 1Cycle), LRRangeTest, or a foreign name") \
OPEN(scheduler., params, "?open") \
KEY(REAL, scheduler.params., warmup_min_lr, "0", ">=0", "0123", "", "rate at the start of the warm-up") \
KEY(REAL, scheduler.params., warmup_max_lr, "null", "?>=0", "0123", "", "rate at its end; null: the optimizer's lr (WarmupDecayLR: 0.001)") \
KEY(INT, scheduler.params., warmup_num_steps, "1000", ">=0", "0123", "", "steps of the warm-up") \
KEY(TEXT, scheduler.params., warmup_type, "log", "", "", "", "shape of the warm-up, log or linear; another name is log") \
KEY(INT, scheduler.params., total_num_steps, "0", ">=0", "2", "", "WarmupDecayLR, WarmupCosineLR: steps of the whole schedule") \
KEY(REAL, scheduler.params., warmup_min_ratio, "0", ">=0", "", "", "WarmupCosineLR: first rate as a part of lr") \
KEY(REAL, scheduler.params., cos_min_ratio, "0.0001", ">=0", "", "", "WarmupCosineLR: last rate as a part of lr") \
KEY(REAL, scheduler.params., cycle_min_lr, "0", ">=0", "", "", "OneCycle: lowest rate of the cycle") \
KEY(REAL, scheduler.params., cycle_max_lr, "0", ">=0", "", "", "OneCycle: highest rate of the cycle") \
KEY(REAL, scheduler.params., decay_lr_rate, "0", ">=0", "", "", "OneCycle: decay of the rate after the cycle") \
KEY(REAL, scheduler.params., cycle_first_step_size, "2000", ">0", "", "", "OneCycle: steps of the rising half") \
KEY(REAL, scheduler.params., cycle_second_step_size, "null", "?>=0", "", "", "OneCycle: steps of the falling half; null: as the first") \
KEY(INT, scheduler.params., cycle_first_stair_count, "0", ">=0", "", "", "OneCycle: stairs in the rising half; 0: continuous") \
KEY(INT, scheduler.params., cycle_second_stair_count, "null", "?>=0", "", "", "OneCycle: stairs in the falling half; null: as the first") \
KEY(REAL, scheduler.params., decay_step_size, "0", ">=0", "", "", "OneCycle: interval of the decay; 0: none") \
KEY(BOOL, scheduler.params., cycle_momentum, "true", "", "", "", "OneCycle: cycle the momentum against the rate") \
KEY(REAL, scheduler.params., cycle_min_mom, "0.8", ">=0", "", "", "OneCycle: lowest momentum") \
KEY(REAL, scheduler.params., cycle_max_mom, "0.9", ">=0", "", "", "OneCycle: highest momentum") \
KEY(REAL, scheduler.params., decay_mom_rate, "0", ">=0", "", "", "OneCycle: decay of the momentum after the cycle") \
KEY(REAL, scheduler.params., lr_range_test_min_lr, "0.001", ">=0", "", "", "LRRangeTest: first rate") \
KEY(INT, scheduler.params., lr_range_test_step_size, "2000", ">=1", "", "", "LRRangeTest: interval") \
KEY(REAL, scheduler.params., lr_range_test_step_rate, "1", ">=0", "", "", "LRRangeTest: growth in an interval") \
KEY(BOOL, scheduler.params., lr_range_test_staircase, "false", "", "", "", "LRRangeTest: rise in stairs") \
KEY(INT, scheduler.params., last_batch_iteration, "-1", ">=-1", "", "", "step that the schedule starts after") \
CLOSE(scheduler., params) \
CLOSE(, scheduler) \
KEY(TEXT, , communication_data_type, "null", "?~fp16|bf16|fp32", "3", "", "type in which gradients are averaged; null: that of the training") \
KEY(TEXT, , seq_parallel_communication_data_type, "fp32", "?~fp16|bf16|fp32", "", "", "type of communication in sequence parallelism") \
KEY(BOOL, , fp32_allreduce, "false", "", "01", "", "average gradients with 32-bit values") \
KEY(BOOL, , prescale_gradients, "false", "", "01", "", "scale gradients before averaging them") \
KEY(REAL, , gradient_predivide_factor, "1", ">0", "013", "", "divide gradients by this before averaging, multiply after") \
KEY(TEXT, , gradient_allreduce_op, "mean", "~mean|sum", "", "", "how gradients of ranks are combined") \
KEY(BOOL, , sparse_gradients, "false", "", "013", "", "send gradients of embeddings as rows that are not zero") \
KEY(BOOL, , disable_allgather, "false", "", "", "", "former switch of the all-gather of parameters") \
KEY(REAL, , gradient_clipping, "0", ">=0", "012", "", "clip gradients to this global norm; 0: off") \
OPEN(, fp16, "") \
KEY(BOOL, fp16., enabled, "false", "", "0123", "", "train in 16-bit floating point with fp32 master weights") \
KEY(BOOL, fp16., auto_cast, "false", "", "", "", "convert inputs to fp16") \
KEY(REAL, fp16., loss_scale, "0", ">=0", "0123", "", "fixed loss scale; 0: dynamic") \
KEY(INT, fp16., initial_scale_power, "16", ">=0", "0123", "", "the dynamic scale starts at 2 to this power") \
KEY(INT, fp16., loss_scale_window, "1000", "", "0123", "", "good steps before the scale is doubled") \
KEY(INT, fp16., hysteresis, "2", "", "0123", "", "overflows before the scale is halved") \
KEY(BOOL, fp16., consecutive_hysteresis, "false", "", "3", "", "refill the hysteresis at a step without overflow") \
KEY(INT, fp16., min_loss_scale, "1", "", "012", "", "smallest dynamic scale") \
KEY(BOOL, fp16., fp16_master_weights_and_grads, "false", "", "", "", "keep master weights and gradients in fp16") \
CLOSE(, fp16) \
OPEN(, bf16, "?") \
KEY(BOOL, bf16., enabled, "false", "", "23", "", "train in bfloat16 with fp32 master weights") \
KEY(BOOL, bf16., immediate_grad_update, "false", "", "", "", "add gradients to fp32 as soon as they are made") \
KEY(BOOL, bf16., check_grad_overflow, "true", "", "", "", "skip a step whose gradients are not finite") \
KEY(BOOL, bf16., bf16_master_weights_and_grads, "false", "", "", "", "keep master weights and gradients in bf16") \
KEY(BOOL, bf16., bf16_optimizer_states, "false", "", "", "", "keep optimizer states in bf16") \
CLOSE(, bf16) \
OPEN(, amp, "open") \
KEY(BOOL, amp., enabled, "false", "", "013", "", "Apex's automatic mixed precision; its other keys are passed on") \
KEY(TEXT, amp., opt_level, "null", "?", "01", "", "Apex's level, O0 to O3") \
CLOSE(, amp) \
OPEN(, torch_autocast, "") \
KEY(BOOL, torch_autocast., enabled, "false", "", "", "", "PyTorch's autocast") \
KEY(TEXT, torch_autocast., dtype, "null", "?~fp16|bf16|fp32", "", "", "its type") \
KEY(TEXTS, torch_autocast., lower_precision_safe_modules, "null", "?", "", "", "modules that may run in the lower precision") \
CLOSE(, torch_autocast) \
OPEN(, data_types, "") \
KEY(TEXT, data_types., grad_accum_dtype, "null", "?~fp16|bf16|fp32", "3", "", "type in which gradients are accumulated; null: that of the model") \
KEY(TEXT, data_types., param_dtype, "null", "?", "", "", "type of the parameters") \
KEY(TEXT, data_types., buffer_dtype, "null", "?", "", "", "type of the buffers") \
KEY(JSON, data_types., keep_in_fp32_modules, "\"auto\"", "?", "", "", "modules that stay in fp32") \
CLOSE(, data_types) \
OPEN(, zero_optimization, "") \
KEY(INT, zero_optimization., stage, "0", "0..3", "0123", "", "partitions nothing (0), optimizer states (1), and gradients (2), and parameters (3)") \
KEY(BOOL, zero_optimization., allgather_partitions, "true", "", "013", "", "gather updated parameters by all-gather instead of broadcasts") \
KEY(SIZE, zero_optimization., allgather_bucket_size, "500000000", ">=0", "0123", "", "elements gathered at a time") \
KEY(BOOL, zero_optimization., overlap_comm, "null", "?", "0123", "", "reduce gradients during the backward pass; null: at stage 3") \
KEY(BOOL, zero_optimization., reduce_scatter, "true", "", "0123", "", "average gradients by reduce-scatter instead of all-reduce") \
KEY(SIZE, zero_optimization., reduce_bucket_size, "500000000", ">=1", "0123", "", "elements reduced at a time") \
KEY(BOOL, zero_optimization., use_multi_rank_bucket_allreduce, "true", "", "", "", "reduce buckets that belong to several ranks at once") \
KEY(BOOL, zero_optimization., contiguous_gradients, "true", "", "0123", "", "copy gradients to a contiguous buffer as they are produced") \
KEY(BOOL, zero_optimization., compute_grad_norm, "true", "", "", "", "compute the gradients' norm") \
KEY(BOOL, zero_optimization., load_from_fp32_weights, "true", "", "3", "", "take master weights from the checkpoint's fp32 copies") \
KEY(BOOL, zero_optimization., grad_hooks, "true", "", "3", "", "stage 1: reduce during the backward pass by hooks") \
KEY(BOOL, zero_optimization., elastic_checkpoint, "false", "", "13", "", "write checkpoints that another world size can load") \
KEY(BOOL, zero_optimization., round_robin_gradients, "false", "", "3", "", "stages 1, 2: share the copying of gradients to CPU memory among ranks") \
OPEN(zero_optimization., offload_param, "?") \
KEY(DEVICE, zero_optimization.offload_param., device, "none", "none|cpu|nvme", "123", "", "where parameters live") \
KEY(TEXT, zero_optimization.offload_param., nvme_path, "null", "?", "13", "", "folder of the swap files") \
KEY(BOOL, zero_optimization.offload_param., pin_memory, "false", "", "23", "", "keep them in page-locked memory") \
KEY(SIZE, zero_optimization.offload_param., buffer_count, "5", ">=0", "13", "", "buffers in the pool for nvme") \
KEY(SIZE, zero_optimization.offload_param., buffer_size, "100000000", ">=0", "13", "", "elements in a buffer of the pool") \
KEY(SIZE, zero_optimization.offload_param., max_in_cpu, "1000000000", ">=0", "13", "", "elements kept in CPU memory when offloading to nvme") \
CLOSE(zero_optimization., offload_param) \
OPEN(zero_optimization., offload_optimizer, "?") \
KEY(DEVICE, zero_optimization.offload_optimizer., device, "none", "none|cpu|nvme", "123", "", "where optimizer states live; the update then runs on the CPU") \
KEY(TEXT, zero_optimization.offload_optimizer., nvme_path, "null", "?", "13", "", "folder of the swap files") \
KEY(BOOL, zero_optimization.offload_optimizer., pin_memory, "false", "", "123", "", "keep them in page-locked memory") \
KEY(SIZE, zero_optimization.offload_optimizer., buffer_count, "4", ">=0", "13", "", "buffers in the pool for nvme, at least the states of a parameter") \
KEY(BOOL, zero_optimization.offload_optimizer., fast_init, "false", "", "13", "", "initialise faster when offloading to nvme") \
KEY(REAL, zero_optimization.offload_optimizer., ratio, "1", "0..1", "3", "", "part of the parameters whose update runs on the CPU; below 1 at stage 3 only") \
KEY(BOOL, zero_optimization.offload_optimizer., pipeline_read, "false", "", "", "", "read the next tile during the update") \
KEY(BOOL, zero_optimization.offload_optimizer., pipeline_write, "false", "", "", "", "write the last tile during the update") \
KEY(REAL, zero_optimization.offload_optimizer., cpuadam_cores_perc, "0.8", "0..1", "", "", "part of the cores for SuperOffload's update") \
KEY(BOOL, zero_optimization.offload_optimizer., super_offload, "false", "", "", "", "SuperOffload") \
CLOSE(zero_optimization., offload_optimizer) \
KEY(JSON, zero_optimization., zenflow, "null", "?", "", "", "settings of ZenFlow") \
KEY(SIZE, zero_optimization., sub_group_size, "1000000000", ">=1", "123", "", "elements of a group of parameters that is updated at once") \
KEY(SIZE, zero_optimization., stage3_max_live_parameters, "1000000000", ">=0", "13", "", "elements that may be gathered at once") \
KEY(SIZE, zero_optimization., stage3_max_reuse_distance, "1000000000", ">=0", "13", "", "keep a parameter that is used again within this many elements") \
KEY(SIZE, zero_optimization., stage3_prefetch_bucket_size, "50000000", ">=0", "123", "", "elements fetched ahead") \
KEY(SIZE, zero_optimization., stage3_param_persistence_threshold, "100000", ">=0", "123", "", "parameters with fewer elements are not partitioned") \
KEY(SIZE, zero_optimization., stage3_model_persistence_threshold, "9223372036854775807", ">=0", "", "", "elements that may stay unpartitioned in all") \
KEY(BOOL, zero_optimization., stage3_gather_16bit_weights_on_model_save, "false", "", "23", "", "consolidate weights before saving a 16-bit model") \
KEY(SIZE, zero_optimization., stage3_module_granularity_threshold, "0", ">=0", "", "", "modules with a finer granularity are fetched whole") \
KEY(BOOL, zero_optimization., stage3_use_all_reduce_for_fetch_params, "false", "", "", "", "fetch parameters by all-reduce") \
KEY(BOOL, zero_optimization., stage3_allgather_sequential, "false", "", "", "", "gather one parameter at a time") \
KEY(BOOL, zero_optimization., ignore_unused_parameters, "true", "", "3", "", "a parameter without a gradient counts as zero instead of ending the training") \
KEY(BOOL, zero_optimization., legacy_stage1, "false", "", "", "", "the former stage 1") \
KEY(BOOL, zero_optimization., parameter_alignment, "false", "", "", "", "align parameters in the flat buffer") \
KEY(SIZE, zero_optimization., zero_hpz_partition_size, "1", ">=0", "3", "", "ZeRO++: ranks that share a secondary copy of the parameters") \
KEY(BOOL, zero_optimization., zero_quantized_weights, "false", "", "3", "", "ZeRO++: gather quantized weights") \
KEY(BOOL, zero_optimization., zero_quantized_nontrainable_weights, "false", "", "", "", "ZeRO++: keep frozen weights quantized") \
KEY(BOOL, zero_optimization., zero_quantized_gradients, "false", "", "3", "", "ZeRO++: reduce quantized gradients") \
KEY(JSON, zero_optimization., zeropp_loco_param, "null", "?", "", "", "ZeRO++: error feedback of quantized gradients") \
KEY(INT, zero_optimization., mics_shard_size, "-1", ">=-1", "", "", "MiCS: ranks in a partition; -1: off") \
KEY(BOOL, zero_optimization., mics_hierarchical_params_gather, "false", "", "", "", "MiCS: gather in two levels") \
KEY(BOOL, zero_optimization., memory_efficient_linear, "true", "", "", "", "linear layers that save memory at stage 3") \
KEY(BOOL, zero_optimization., pipeline_loading_checkpoint, "false", "", "", "", "load checkpoints in a pipeline") \
KEY(BOOL, zero_optimization., override_module_apply, "true", "", "", "", "gather parameters in a module's apply") \
KEY(BOOL, zero_optimization., log_trace_cache_warnings, "false", "", "", "", "warn when the order of fetches changes") \
KEY(BOOL, zero_optimization., enable_sanity_checks, "false", "", "", "", "check the engine's state as it runs") \
KEY(BOOL, zero_optimization., save_muon_momentum_buffer_in_memory, "false", "", "", "", "Muon: keep the momentum in memory") \
OLD(BOOL, zero_optimization., cpu_offload, "?", "13", "zero_optimization.offload_optimizer.device", "offload optimizer memory and computation to the CPU") \
OLD(BOOL, zero_optimization., cpu_offload_param, "?", "", "zero_optimization.offload_param.device", "offload parameters to the CPU") \
OLD(BOOL, zero_optimization., cpu_offload_use_pin_memory, "?", "", "zero_optimization.offload_optimizer.pin_memory", "page-locked memory for cpu_offload") \
OLD(BOOL, zero_optimization., stage3_gather_fp16_weights_on_model_save, "", "1", "zero_optimization.stage3_gather_16bit_weights_on_model_save", "consolidate weights before saving") \
CLOSE(, zero_optimization) \
OLD(SIZE, , allgather_size, ">=0", "", "zero_optimization.allgather_bucket_size", "bucket size beside \"zero_optimization\": true") \
OPEN(, aio, "?") \
KEY(SIZE, aio., block_size, "1048576", ">=1", "3", "", "bytes of one I/O request") \
KEY(SIZE, aio., queue_depth, "8", ">=1", "3", "", "requests in flight") \
KEY(SIZE, aio., thread_count, "1", ">=1", "3", "", "threads that submit requests for one tensor") \
KEY(SIZE, aio., intra_op_parallelism, "null", "?>=1", "", "", "the newer name of thread_count; null: as that") \
KEY(BOOL, aio., single_submit, "false", "", "3", "", "submit requests one by one") \
KEY(BOOL, aio., overlap_events, "true", "", "3", "", "submit without waiting for earlier requests") \
KEY(BOOL, aio., use_gds, "false", "", "", "", "GPUDirect storage") \
CLOSE(, aio) \
KEY(BOOL, , zero_allow_untested_optimizer, "false", "", "", "", "let ZeRO run with an optimizer of the client") \
KEY(BOOL, , zero_force_ds_cpu_optimizer, "true", "", "", "", "demand the CPU optimizer when offloading") \
KEY(SIZE, , steps_per_print, "10", "?>=0", "013", "", "report progress every so many steps; null or 0: never") \
KEY(BOOL, , wall_clock_breakdown, "false", "", "01", "", "time the forward, backward and update phases") \
KEY(BOOL, , memory_breakdown, "false", "", "", "", "report memory in each phase") \
KEY(BOOL, , dump_state, "false", "", "01", "", "print the state after initialisation") \
KEY(BOOL, , dataloader_drop_last, "false", "", "", "", "drop an incomplete last batch") \
KEY(BOOL, , managed_gradient_accumulation, "true", "", "", "", "the engine divides by the accumulation steps") \
KEY(BOOL, , disable_python_gc, "false", "", "", "", "Python's garbage collection off") \
KEY(TEXT, , log_level, "null", "?", "", "", "least level of log lines") \
KEY(SIZE, , sequence_parallel_size, "1", ">=1", "", "", "ranks that share a sequence") \
KEY(BOOL, , use_data_before_expert_parallelism, "false", "", "", "", "order of data and expert groups") \
KEY(JSON, , graph_harvesting, "false", "?", "", "", "capture CUDA graphs") \
OPEN(, timers, "") \
OPEN(timers., throughput, "") \
KEY(BOOL, timers.throughput., enabled, "true", "", "", "", "measure throughput") \
KEY(BOOL, timers.throughput., synchronized, "true", "", "", "", "synchronise the device for it") \
CLOSE(timers., throughput) \
CLOSE(, timers) \
OPEN(, flops_profiler, "") \
KEY(BOOL, flops_profiler., enabled, "false", "", "1", "", "count floating-point operations") \
KEY(INT, flops_profiler., profile_step, "1", ">=0", "13", "", "step that is profiled") \
KEY(INT, flops_profiler., module_depth, "-1", ">=-1", "13", "", "depth of modules that are printed; -1: all") \
KEY(INT, flops_profiler., top_modules, "1", ">=0", "1", "", "modules listed at each depth") \
KEY(BOOL, flops_profiler., detailed, "true", "", "1", "", "print the whole profile") \
KEY(TEXT, flops_profiler., output_file, "null", "?", "", "", "file for the profile; null: the log") \
KEY(REAL, flops_profiler., recompute_fwd_factor, "0", ">=0", "", "", "forward passes that recomputation adds") \
CLOSE(, flops_profiler) \
OPEN(, autotuning, "") \
KEY(BOOL, autotuning., enabled, "false", "", "3", "", "search for a fast configuration") \
KEY(TEXT, autotuning., results_dir, "autotuning_results", "?", "3", "", "folder of the results") \
KEY(TEXT, autotuning., exps_dir, "autotuning_exps", "?", "3", "", "folder of the experiments") \
KEY(BOOL, autotuning., overwrite, "true", "", "3", "", "repeat experiments whose results exist") \
KEY(TEXT, autotuning., metric, "throughput", "~throughput|latency|flops", "3", "", "what to rank by") \
KEY(TEXT, autotuning., metric_path, "null", "?", "", "", "file with the metric") \
KEY(INT, autotuning., start_profile_step, "3", ">=0", "3", "", "first step that is measured") \
KEY(INT, autotuning., end_profile_step, "5", ">=0", "3", "", "last step that is measured") \
KEY(BOOL, autotuning., fast, "true", "", "3", "", "tune ZeRO stages and micro batches only") \
KEY(SIZE, autotuning., max_train_batch_size, "null", "?>=1", "3", "", "largest batch tried") \
KEY(SIZE, autotuning., min_train_batch_size, "1", ">=1", "", "", "smallest batch tried") \
KEY(SIZE, autotuning., max_train_micro_batch_size_per_gpu, "1024", ">=1", "", "", "largest micro batch tried") \
KEY(SIZE, autotuning., min_train_micro_batch_size_per_gpu, "1", ">=1", "", "", "smallest micro batch tried") \
KEY(SIZE, autotuning., mp_size, "1", ">=1", "3", "", "model-parallel size") \
KEY(SIZE, autotuning., num_tuning_micro_batch_sizes, "3", ">=1", "3", "", "micro batches tried") \
KEY(TEXT, autotuning., tuner_type, "gridsearch", "gridsearch|random|model_based", "3", "", "search") \
KEY(INT, autotuning., tuner_early_stopping, "5", ">=0", "3", "", "experiments without a gain before it stops") \
KEY(INT, autotuning., tuner_num_trials, "50", ">=0", "3", "", "experiments at most") \
KEY(JSON, autotuning., arg_mappings, "null", "?", "3", "", "names of the program's own arguments") \
KEY(JSON, autotuning., model_info, "null", "?", "", "", "figures of the model") \
KEY(TEXT, autotuning., model_info_path, "null", "?", "", "", "file with them") \
CLOSE(, autotuning) \
OPEN(, activation_checkpointing, "") \
KEY(BOOL, activation_checkpointing., partition_activations, "false", "", "013", "", "partition activations over model-parallel ranks") \
KEY(BOOL, activation_checkpointing., cpu_checkpointing, "false", "", "013", "", "move partitioned activations to the CPU") \
KEY(BOOL, activation_checkpointing., contiguous_memory_optimization, "false", "", "013", "", "copy partitioned activations to one buffer") \
KEY(SIZE, activation_checkpointing., number_checkpoints, "null", "?>=0", "013", "", "checkpoints that the buffer is made for") \
KEY(BOOL, activation_checkpointing., synchronize_checkpoint_boundary, "false", "", "013", "", "synchronise the device at each checkpoint") \
KEY(BOOL, activation_checkpointing., profile, "false", "", "013", "", "time each checkpointed function") \
CLOSE(, activation_checkpointing) \
OPEN(, sparse_attention, "?") \
KEY(TEXT, sparse_attention., mode, "fixed", "dense|fixed|bigbird|bslongformer|variable", "13", "", "structure of the sparsity") \
KEY(SIZE, sparse_attention., block, "16", ">=1", "13", "", "side of a block") \
KEY(BOOL, sparse_attention., different_layout_per_head, "false", "", "13", "", "each head may get its own layout") \
KEY(SIZE, sparse_attention., num_local_blocks, "4", ">=1", "13", "", "fixed: blocks of a local window") \
KEY(SIZE, sparse_attention., num_global_blocks, "1", ">=0", "13", "", "fixed, bigbird: blocks of a window that represent it") \
KEY(TEXT, sparse_attention., attention, "bidirectional", "unidirectional|bidirectional", "13", "", "fixed, variable: which tokens attend") \
KEY(BOOL, sparse_attention., horizontal_global_attention, "false", "", "13", "", "fixed, variable: global blocks attend to all") \
KEY(SIZE, sparse_attention., num_different_global_patterns, "1", ">=1", "13", "", "fixed: layouts of global attention over heads") \
KEY(SIZE, sparse_attention., num_random_blocks, "0", ">=0", "13", "", "variable, bigbird: random blocks in a row") \
KEY(INTS, sparse_attention., local_window_blocks, "[4]", ">=0", "13", "", "variable: blocks of each local window; the last for the rest") \
KEY(INTS, sparse_attention., global_block_indices, "[0]", ">=0", "13", "", "variable, bslongformer: global blocks, or starts of global windows") \
KEY(INTS, sparse_attention., global_block_end_indices, "null", "?>=0", "13", "", "variable, bslongformer: ends of global windows, exclusive") \
KEY(SIZE, sparse_attention., num_sliding_window_blocks, "3", ">=0", "13", "", "bigbird, bslongformer: blocks of the sliding window") \
CLOSE(, sparse_attention) \
OPEN(, data_efficiency, "") \
KEY(BOOL, data_efficiency., enabled, "false", "", "3", "", "data sampling and routing") \
KEY(INT, data_efficiency., seed, "1234", "", "3", "", "seed of the sampling") \
OPEN(data_efficiency., data_routing, "") \
KEY(BOOL, data_efficiency.data_routing., enabled, "false", "", "3", "", "random layerwise token dropping") \
OPEN(data_efficiency.data_routing., random_ltd, "") \
KEY(BOOL, data_efficiency.data_routing.random_ltd., enabled, "false", "", "3", "", "random-LTD") \
KEY(SIZE, data_efficiency.data_routing.random_ltd., total_layer_num, "null", "?>=1", "3", "", "layers of the model") \
KEY(SIZE, data_efficiency.data_routing.random_ltd., random_ltd_layer_num, "null", "?>=0", "3", "", "layers that drop tokens") \
KEY(INTS, data_efficiency.data_routing.random_ltd., random_ltd_layer_id, "null", "?>=0", "3", "", "their numbers") \
KEY(TEXT, data_efficiency.data_routing.random_ltd., model_mask_name, "null", "?", "3", "", "name of the attention mask") \
KEY(TEXT, data_efficiency.data_routing.random_ltd., model_type, "null", "?decoder|encoder", "3", "", "kind of model") \
KEY(SIZE, data_efficiency.data_routing.random_ltd., micro_batch_size, "null", "?>=1", "", "", "micro batch of training") \
KEY(SIZE, data_efficiency.data_routing.random_ltd., global_batch_size, "null", "?>=1", "", "", "batch of training") \
KEY(TEXT, data_efficiency.data_routing.random_ltd., hidden_state_order, "null", "?batch_seq_dim|seq_batch_dim", "3", "", "order of the hidden state's dimensions") \
OPEN(data_efficiency.data_routing.random_ltd., random_ltd_schedule, "") \
KEY(SIZE, data_efficiency.data_routing.random_ltd.random_ltd_schedule., min_value, "null", "?>=0", "3", "", "tokens kept at step 0") \
KEY(SIZE, data_efficiency.data_routing.random_ltd.random_ltd_schedule., max_value, "null", "?>=0", "3", "", "tokens kept at the end") \
KEY(TEXT, data_efficiency.data_routing.random_ltd.random_ltd_schedule., schedule_type, "null", "?fixed_linear", "3", "", "shape of the schedule") \
OPEN(data_efficiency.data_routing.random_ltd.random_ltd_schedule., schedule_config, "") \
KEY(INT, data_efficiency.data_routing.random_ltd.random_ltd_schedule.schedule_config., require_steps, "null", "?>=1", "3", "", "steps from the first to the last value") \
KEY(SIZE, data_efficiency.data_routing.random_ltd.random_ltd_schedule.schedule_config., seq_per_step, "null", "?>=1", "3", "", "the length is a multiple of this") \
CLOSE(data_efficiency.data_routing.random_ltd.random_ltd_schedule., schedule_config) \
CLOSE(data_efficiency.data_routing.random_ltd., random_ltd_schedule) \
OPEN(data_efficiency.data_routing.random_ltd., layer_token_lr_schedule, "open") \
KEY(BOOL, data_efficiency.data_routing.random_ltd.layer_token_lr_schedule., enabled, "false", "", "", "", "learning rate by consumed tokens") \
CLOSE(data_efficiency.data_routing.random_ltd., layer_token_lr_schedule) \
CLOSE(data_efficiency.data_routing., random_ltd) \
CLOSE(data_efficiency., data_routing) \
OPEN(data_efficiency., data_sampling, "") \
KEY(BOOL, data_efficiency.data_sampling., enabled, "false", "", "3", "", "sample by difficulty") \
KEY(SIZE, data_efficiency.data_sampling., num_epochs, "1000", ">=1", "3", "", "epochs of the data at most") \
KEY(SIZE, data_efficiency.data_sampling., num_workers, "0", ">=0", "3", "", "workers of the data loader") \
KEY(BOOL, data_efficiency.data_sampling., pin_memory, "false", "", "", "", "page-locked batches") \
OPEN(data_efficiency.data_sampling., curriculum_learning, "") \
KEY(BOOL, data_efficiency.data_sampling.curriculum_learning., enabled, "false", "", "3", "", "curriculum learning") \
KEY(TEXT, data_efficiency.data_sampling.curriculum_learning., data_cluster_path, "null", "?", "3", "", "folder of the clusters' indices") \
KEY(METRICS, data_efficiency.data_sampling.curriculum_learning., curriculum_metrics, "null", "?", "3", "", "metrics of difficulty by name") \
CLOSE(data_efficiency.data_sampling., curriculum_learning) \
OPEN(data_efficiency.data_sampling., dynamic_batching, "") \
KEY(BOOL, data_efficiency.data_sampling.dynamic_batching., enabled, "false", "", "", "", "batches by tokens") \
KEY(TEXT, data_efficiency.data_sampling.dynamic_batching., metrics_path, "null", "?", "", "", "file with the lengths") \
KEY(TEXT, data_efficiency.data_sampling.dynamic_batching., lr_scaling_method, "linear", "?", "", "", "how the rate follows the batch") \
KEY(SIZE, data_efficiency.data_sampling.dynamic_batching., min_batch_size, "1", ">=1", "", "", "smallest batch") \
KEY(SIZE, data_efficiency.data_sampling.dynamic_batching., max_batch_size, "null", "?>=1", "", "", "largest batch") \
KEY(SIZE, data_efficiency.data_sampling.dynamic_batching., max_tokens, "null", "?>=1", "", "", "tokens of a batch") \
KEY(TEXT, data_efficiency.data_sampling.dynamic_batching., sequence_picking_order, "dataloader", "", "", "", "order of sequences") \
KEY(BOOL, data_efficiency.data_sampling.dynamic_batching., verbose, "false", "", "", "", "log the batches") \
CLOSE(data_efficiency.data_sampling., dynamic_batching) \
CLOSE(data_efficiency., data_sampling) \
CLOSE(, data_efficiency) \
OPEN(, curriculum_learning, "") \
KEY(BOOL, curriculum_learning., enabled, "false", "", "3", "", "the legacy curriculum") \
KEY(TEXT, curriculum_learning., curriculum_type, "null", "?", "3", "", "metric of difficulty, e.g. seqlen") \
KEY(INT, curriculum_learning., min_difficulty, "null", "?>=0", "3", "", "difficulty at the first step") \
KEY(INT, curriculum_learning., max_difficulty, "null", "?>=0", "3", "", "difficulty at the end") \
KEY(TEXT, curriculum_learning., schedule_type, "null", "?fixed_linear|fixed_root|fixed_discrete|custom", "3", "", "shape of the schedule") \
OPEN(curriculum_learning., schedule_config, "") \
KEY(INT, curriculum_learning.schedule_config., total_curriculum_step, "null", "?>=1", "3", "", "steps from the first to the last difficulty") \
KEY(INT, curriculum_learning.schedule_config., difficulty_step, "null", "?>=1", "3", "", "the difficulty is a multiple of this") \
KEY(INT, curriculum_learning.schedule_config., root_degree, "null", "?>=1", "3", "", "fixed_root: degree of the root") \
KEY(INTS, curriculum_learning.schedule_config., difficulty, "null", "?>=0", "3", "", "fixed_discrete: difficulties") \
KEY(INTS, curriculum_learning.schedule_config., max_step, "null", "?>=0", "3", "", "fixed_discrete: last step of each") \
CLOSE(curriculum_learning., schedule_config) \
CLOSE(, curriculum_learning) \
OPEN(, progressive_layer_drop, "") \
KEY(BOOL, progressive_layer_drop., enabled, "false", "", "", "", "drop layers progressively") \
KEY(REAL, progressive_layer_drop., theta, "1", "0..1", "", "", "smallest keep ratio") \
KEY(REAL, progressive_layer_drop., gamma, "0.001", ">=0", "", "", "how fast it falls") \
CLOSE(, progressive_layer_drop) \
OPEN(, eigenvalue, "") \
KEY(BOOL, eigenvalue., enabled, "false", "", "3", "", "eigenvalues of the Hessian's blocks") \
KEY(BOOL, eigenvalue., verbose, "false", "", "", "", "log them") \
KEY(INT, eigenvalue., max_iter, "100", ">=1", "", "", "iterations at most") \
KEY(REAL, eigenvalue., tol, "0.01", ">=0", "", "", "tolerance") \
KEY(REAL, eigenvalue., stability, "1e-6", ">=0", "", "", "added to denominators") \
KEY(INT, eigenvalue., gas_boundary_resolution, "1", ">=1", "", "", "optimizer steps between computations") \
KEY(TEXT, eigenvalue., layer_name, "bert.encoder.layer", "", "", "", "module whose layers are taken") \
KEY(INT, eigenvalue., layer_num, "0", ">=0", "", "", "its layers") \
CLOSE(, eigenvalue) \
OPEN(, tensorboard, "") \
KEY(BOOL, tensorboard., enabled, "false", "", "3", "", "write event files for TensorBoard") \
KEY(TEXT, tensorboard., output_path, "", "?", "3", "", "folder; empty or null: beside the program") \
KEY(TEXT, tensorboard., job_name, "DeepSpeedJobName", "", "3", "", "folder of this job in it") \
CLOSE(, tensorboard) \
OPEN(, csv_monitor, "") \
KEY(BOOL, csv_monitor., enabled, "false", "", "3", "", "write CSV files") \
KEY(TEXT, csv_monitor., output_path, "", "?", "3", "", "folder; empty or null: beside the program") \
KEY(TEXT, csv_monitor., job_name, "DeepSpeedJobName", "", "3", "", "folder of this job in it") \
CLOSE(, csv_monitor) \
OPEN(, wandb, "") \
KEY(BOOL, wandb., enabled, "false", "", "3", "", "log to Weights & Biases") \
KEY(TEXT, wandb., group, "null", "?", "3", "", "group of the run") \
KEY(TEXT, wandb., team, "null", "?", "3", "", "team of the project") \
KEY(TEXT, wandb., project, "deepspeed", "", "3", "", "project") \
CLOSE(, wandb) \
OPEN(, comet, "") \
KEY(BOOL, comet., enabled, "false", "", "3", "", "log to Comet") \
KEY(TEXT, comet., workspace, "null", "?", "3", "", "workspace") \
KEY(TEXT, comet., project, "null", "?", "3", "", "project") \
KEY(SIZE, comet., samples_log_interval, "100", ">=1", "3", "", "samples between submissions") \
KEY(TEXT, comet., experiment_name, "null", "?", "3", "", "name of the experiment") \
KEY(TEXT, comet., api_key, "null", "?", "3", "", "API key; better kept out of the file") \
KEY(TEXT, comet., experiment_key, "null", "?", "3", "", "key of the experiment, 32 to 50 letters and digits") \
KEY(BOOL, comet., online, "null", "?", "3", "", "send to the server, or store locally; null: the library's choice, online") \
KEY(TEXT, comet., mode, "null", "?get|create|get_or_create", "3", "", "how the experiment is started; null: get_or_create") \
CLOSE(, comet) \
OPEN(, elasticity, "") \
KEY(BOOL, elasticity., enabled, "false", "", "3", "", "choose batch sizes that fit many world sizes") \
KEY(SIZE, elasticity., max_train_batch_size, "2000", ">=1", "3", "", "largest batch") \
KEY(INTS, elasticity., micro_batch_sizes, "[2, 4, 6]", ">=1", "3", "", "acceptable micro batches") \
KEY(SIZE, elasticity., min_gpus, "1", ">=1", "3", "", "fewest GPUs") \
KEY(SIZE, elasticity., max_gpus, "10000", "1..100000", "3", "", "most GPUs") \
KEY(INT, elasticity., min_time, "0", ">=0", "3", "", "minutes before the next change; 0: unknown") \
KEY(REAL, elasticity., version, "0.2", "0..0.2", "3", "", "version of the logic: 0.1 or 0.2") \
KEY(BOOL, elasticity., ignore_non_elastic_batch_info, "false", "", "3", "", "ignore batch sizes outside this section") \
KEY(SIZE, elasticity., num_gpus_per_node, "1", ">=1", "3", "", "GPUs of a node (version 0.2)") \
KEY(SIZE, elasticity., model_parallel_size, "1", ">=1", "3", "", "model-parallel size (version 0.2)") \
KEY(BOOL, elasticity., prefer_larger_batch, "true", "", "", "", "prefer the batch nearest to the largest") \
OLD(BOOL, elasticity., prefer_large_batch, "", "3", "elasticity.prefer_larger_batch", "prefer the batch nearest to the largest") \
CLOSE(, elasticity) \
OPEN(, comms_logger, "?") \
KEY(BOOL, comms_logger., enabled, "false", "", "3", "", "log communication") \
KEY(BOOL, comms_logger., verbose, "false", "", "3", "", "a line for each operation") \
KEY(BOOL, comms_logger., prof_all, "true", "", "3", "", "profile all operations") \
KEY(BOOL, comms_logger., debug, "false", "", "3", "", "add the caller's name") \
KEY(TEXTS, comms_logger., prof_ops, "[]", "", "3", "", "operations to profile when not all") \
CLOSE(, comms_logger) \
OPEN(, compression_training, "") \
OPEN(compression_training., layer_reduction, "") \
KEY(BOOL, compression_training.layer_reduction., enabled, "false", "", "3", "", "keep some layers of a teacher") \
KEY(SIZE, compression_training.layer_reduction., keep_number_layer, "null", "?>=1", "3", "", "layers kept") \
KEY(TEXT, compression_training.layer_reduction., module_name_prefix, "null", "?", "3", "", "common prefix of the layers' names") \
KEY(INTS, compression_training.layer_reduction., teacher_layer, "null", "?>=0", "3", "", "the teacher's layer for each") \
KEY(TEXTS, compression_training.layer_reduction., other_module_name, "null", "?", "3", "", "other modules taken over") \
CLOSE(compression_training., layer_reduction) \
OPEN(compression_training., weight_quantization, "") \
OPEN(compression_training.weight_quantization., shared_parameters, "") \
KEY(BOOL, compression_training.weight_quantization.shared_parameters., enabled, "false", "", "3", "", "quantize weights") \
KEY(BOOL, compression_training.weight_quantization.shared_parameters., quantizer_kernel, "false", "", "3", "", "the kernel for 4 bits and more; with the fp16 optimizer only") \
KEY(INT, compression_training.weight_quantization.shared_parameters., schedule_offset, "0", ">=0", "3", "", "first step") \
KEY(SIZE, compression_training.weight_quantization.shared_parameters., quantize_groups, "1", ">=1", "3", "", "groups of a matrix with a scale each") \
KEY(BOOL, compression_training.weight_quantization.shared_parameters., quantize_verbose, "false", "", "3", "", "log it") \
KEY(TEXT, compression_training.weight_quantization.shared_parameters., quantization_type, "symmetric", "symmetric|asymmetric", "3", "", "algorithm") \
KEY(TEXT, compression_training.weight_quantization.shared_parameters., rounding, "nearest", "nearest|stochastic", "3", "", "rounding") \
KEY(BOOL, compression_training.weight_quantization.shared_parameters., quantize_weight_in_forward, "false", "", "3", "", "in the forward pass instead of the optimizer; for fp32 training") \
OPEN(compression_training.weight_quantization.shared_parameters., fp16_mixed_quantize, "") \
KEY(BOOL, compression_training.weight_quantization.shared_parameters.fp16_mixed_quantize., enabled, "false", "", "3", "", "mix fp16 and quantized values") \
KEY(REAL, compression_training.weight_quantization.shared_parameters.fp16_mixed_quantize., quantize_change_ratio, "0.001", "0..1", "3", "", "how fast the quantized part grows to 1") \
CLOSE(compression_training.weight_quantization.shared_parameters., fp16_mixed_quantize) \
CLOSE(compression_training.weight_quantization., shared_parameters) \
KEY(WEIGHT_GROUPS, compression_training.weight_quantization., different_groups, "null", "?", "3", "", "sets of modules by name") \
CLOSE(compression_training., weight_quantization) \
OPEN(compression_training., activation_quantization, "") \
OPEN(compression_training.activation_quantization., shared_parameters, "") \
KEY(BOOL, compression_training.activation_quantization.shared_parameters., enabled, "false", "", "3", "", "quantize activations") \
KEY(TEXT, compression_training.activation_quantization.shared_parameters., quantization_type, "symmetric", "symmetric|asymmetric", "3", "", "algorithm") \
KEY(TEXT, compression_training.activation_quantization.shared_parameters., range_calibration, "dynamic", "dynamic|static", "3", "", "range by token or image, or fixed") \
KEY(INT, compression_training.activation_quantization.shared_parameters., schedule_offset, "1000", ">=0", "3", "", "first step") \
CLOSE(compression_training.activation_quantization., shared_parameters) \
KEY(ACTIVATION_GROUPS, compression_training.activation_quantization., different_groups, "null", "?", "3", "", "sets of modules by name") \
CLOSE(compression_training., activation_quantization) \
OPEN(compression_training., sparse_pruning, "") \
OPEN(compression_training.sparse_pruning., shared_parameters, "") \
KEY(BOOL, compression_training.sparse_pruning.shared_parameters., enabled, "false", "", "3", "", "prune single weights or blocks") \
KEY(INT, compression_training.sparse_pruning.shared_parameters., schedule_offset, "1000", ">=0", "3", "", "first step") \
KEY(INT, compression_training.sparse_pruning.shared_parameters., schedule_offset_end, "null", "?>=0", "3", "", "last step (snip_momentum); null: schedule_offset") \
KEY(INT, compression_training.sparse_pruning.shared_parameters., schedule_offset_stride, "1", ">=1", "3", "", "steps between prunings (snip_momentum)") \
KEY(TEXT, compression_training.sparse_pruning.shared_parameters., method, "l1", "l1|topk|snip_momentum", "3", "", "method") \
KEY(TEXT, compression_training.sparse_pruning.shared_parameters., block_pattern, "4x1", "", "3", "", "NxM or N:M (snip_momentum)") \
KEY(REAL, compression_training.sparse_pruning.shared_parameters., dense_ratio, "0.1", "0<..<1", "3", "", "part that stays (snip_momentum)") \
KEY(TEXTS, compression_training.sparse_pruning.shared_parameters., excluded_modules, "[]", "", "3", "", "modules left alone (snip_momentum)") \
CLOSE(compression_training.sparse_pruning., shared_parameters) \
KEY(PRUNING_GROUPS, compression_training.sparse_pruning., different_groups, "null", "?", "3", "", "sets of modules by name") \
CLOSE(compression_training., sparse_pruning) \
OPEN(compression_training., row_pruning, "") \
OPEN(compression_training.row_pruning., shared_parameters, "") \
KEY(BOOL, compression_training.row_pruning.shared_parameters., enabled, "false", "", "3", "", "prune rows") \
KEY(INT, compression_training.row_pruning.shared_parameters., schedule_offset, "1000", ">=0", "3", "", "first step") \
KEY(TEXT, compression_training.row_pruning.shared_parameters., method, "l1", "l1|topk", "3", "", "method") \
CLOSE(compression_training.row_pruning., shared_parameters) \
KEY(PRUNING_GROUPS, compression_training.row_pruning., different_groups, "null", "?", "3", "", "sets of modules by name") \
CLOSE(compression_training., row_pruning) \
OPEN(compression_training., head_pruning, "") \
OPEN(compression_training.head_pruning., shared_parameters, "") \
KEY(BOOL, compression_training.head_pruning.shared_parameters., enabled, "false", "", "3", "", "prune attention heads") \
KEY(INT, compression_training.head_pruning.shared_parameters., schedule_offset, "1000", ">=0", "3", "", "first step") \
KEY(TEXT, compression_training.head_pruning.shared_parameters., method, "topk", "topk", "3", "", "method; the documents have one") \
KEY(SIZE, compression_training.head_pruning.shared_parameters., num_heads, "null", "?>=1", "3", "", "heads of the model") \
CLOSE(compression_training.head_pruning., shared_parameters) \
KEY(PRUNING_GROUPS, compression_training.head_pruning., different_groups, "null", "?", "3", "", "sets of modules by name") \
CLOSE(compression_training., head_pruning) \
OPEN(compression_training., channel_pruning, "") \
OPEN(compression_training.channel_pruning., shared_parameters, "") \
KEY(BOOL, compression_training.channel_pruning.shared_parameters., enabled, "false", "", "3", "", "prune channels of convolutions") \
KEY(INT, compression_training.channel_pruning.shared_parameters., schedule_offset, "1000", ">=0", "3", "", "first step") \
KEY(TEXT, compression_training.channel_pruning.shared_parameters., method, "l1", "l1|topk", "3", "", "method") \
CLOSE(compression_training.channel_pruning., shared_parameters) \
KEY(PRUNING_GROUPS, compression_training.channel_pruning., different_groups, "null", "?", "3", "", "sets of modules by name") \
CLOSE(compression_training., channel_pruning) \
CLOSE(, compression_training) \
OPEN(, checkpoint, "") \
KEY(TEXT, checkpoint., tag_validation, "WARN", "~IGNORE|WARN|FAIL", "3", "", "what to do when ranks disagree about a checkpoint's tag") \
KEY(BOOL, checkpoint., load_universal, "false", "", "", "", "load a universal checkpoint") \
KEY(BOOL, checkpoint., use_node_local_storage, "false", "", "3", "", "each node keeps its own files") \
OPEN(checkpoint., parallel_write, "") \
KEY(BOOL, checkpoint.parallel_write., pipeline_stage, "false", "", "", "", "pipeline stages write in parallel") \
CLOSE(checkpoint., parallel_write) \
KEY(BOOL, checkpoint., checkpoint_serialization, "true", "", "", "", "serialise tensors") \
KEY(JSON, checkpoint., writer, "null", "?", "", "", "settings of the writer") \
CLOSE(, checkpoint) \
OPEN(, pipeline, "open") \
KEY(JSON, pipeline., stages, "\"auto\"", "?", "", "", "pipeline stages") \
KEY(TEXT, pipeline., partition, "best", "", "", "", "how layers are split") \
KEY(BOOL, pipeline., seed_layers, "false", "", "", "", "seed each layer") \
KEY(INT, pipeline., activation_checkpoint_interval, "0", ">=0", "", "", "layers between checkpoints") \
KEY(BOOL, pipeline., pipe_partitioned, "true", "", "", "", "partition activations between stages") \
KEY(BOOL, pipeline., grad_partitioned, "true", "", "", "", "partition gradients between stages") \
CLOSE(, pipeline) \
OPEN(, hybrid_engine, "") \
KEY(BOOL, hybrid_engine., enabled, "false", "", "", "", "switch between training and generation") \
KEY(SIZE, hybrid_engine., max_out_tokens, "512", ">=1", "", "", "tokens generated at most") \
KEY(SIZE, hybrid_engine., inference_tp_size, "1", ">=1", "", "", "tensor parallelism of generation") \
KEY(BOOL, hybrid_engine., release_inference_cache, "false", "", "", "", "free the cache after generation") \
KEY(BOOL, hybrid_engine., pin_parameters, "true", "", "", "", "keep parameters in place") \
KEY(SIZE, hybrid_engine., tp_gather_partition_size, "8", ">=1", "", "", "ranks gathered at a time") \
KEY(BOOL, hybrid_engine., enable_cuda_graph, "false", "", "", "", "CUDA graphs for generation") \
CLOSE(, hybrid_engine) \
OPEN(, ds, "") \
KEY(BOOL, ds., reduce_at_boundary, "false", "", "", "ds", "stages 0 and 1 reduce once per optimizer step instead of each micro-batch") \
KEY(BOOL, ds., native_reduce, "false", "", "", "ds", "reductions of MPI or NCCL, outside the promise of one result") \
KEY(BOOL, ds., world_invariant, "false", "", "", "ds", "the same bits at each world size that is a power of two") \
KEY(BOOL, ds., gather_in_background, "false", "", "", "ds", "updated parameters travel while the next pass computes; each is read between fetch and release alone") \
KEY(BOOL, ds., save_in_background, "false", "", "", "ds", "a thread writes the checkpoint while training goes on") \
KEY(SIZE, ds., keep_last, "0", "0..1000000", "", "ds", "complete checkpoints that a save leaves; 0: all") \
CLOSE(, ds)

/* The keys of one object of each named kind; paths are relative to it. */
#define DS_CONFIG_METRIC_KEYS(OPEN, KEY, CLOSE) \
KEY(TEXT, , index_to_sample_path, "null", "?", "3", "", "file from index to samples") \
KEY(TEXT, , index_to_metric_path, "null", "?", "3", "", "file from index to metric") \
KEY(TEXT, , difficulty_type, "null", "?value|percentile", "3", "", "difficulty by value or percentile") \
KEY(TEXT, , clustering_type, "null", "?schedule_based|single_cluster", "3", "", "how samples are clustered") \
KEY(INT, , min_difficulty, "null", "?>=0", "3", "", "difficulty at the first step") \
KEY(INT, , max_difficulty, "null", "?>=0", "3", "", "difficulty at the end") \
KEY(TEXT, , schedule_type, "null", "?fixed_linear|fixed_root|fixed_discrete|custom", "3", "", "shape of the schedule") \
OPEN(, schedule_config, "") \
KEY(INT, schedule_config., total_curriculum_step, "null", "?>=1", "3", "", "steps from the first to the last difficulty") \
KEY(INT, schedule_config., difficulty_step, "null", "?>=1", "3", "", "the difficulty is a multiple of this") \
KEY(INT, schedule_config., root_degree, "null", "?>=1", "3", "", "fixed_root: degree of the root") \
KEY(INTS, schedule_config., difficulty, "null", "?>=0", "3", "", "fixed_discrete: difficulties") \
KEY(INTS, schedule_config., max_step, "null", "?>=0", "3", "", "fixed_discrete: last step of each") \
CLOSE(, schedule_config)
#define DS_CONFIG_WEIGHT_GROUP_KEYS(OPEN, KEY, CLOSE) \
OPEN(, params, "") \
KEY(INT, params., start_bits, "null", "?>=1", "3", "", "bits at the first step") \
KEY(INT, params., target_bits, "null", "?>=1", "3", "", "bits at the end") \
KEY(INT, params., quantization_period, "1", ">=0", "3", "", "steps until there is a bit less") \
CLOSE(, params) \
KEY(TEXTS, , modules, "[\"*\"]", "", "3", "", "modules of the set; *: all") \
KEY(TEXTLISTS, , related_modules, "null", "?", "3", "", "modules that follow them")
#define DS_CONFIG_ACTIVATION_GROUP_KEYS(OPEN, KEY, CLOSE) \
OPEN(, params, "") \
KEY(INT, params., bits, "null", "?>=1", "3", "", "bits") \
CLOSE(, params) \
KEY(TEXTS, , modules, "[\"*\"]", "", "3", "", "modules of the set; *: all") \
KEY(TEXTLISTS, , related_modules, "null", "?", "3", "", "modules that follow them")
#define DS_CONFIG_PRUNING_GROUP_KEYS(OPEN, KEY, CLOSE) \
OPEN(, params, "") \
KEY(REAL, params., dense_ratio, "null", "?0..1", "3", "", "part that stays") \
CLOSE(, params) \
KEY(TEXTS, , modules, "[\"*\"]", "", "3", "", "modules of the set; *: all") \
KEY(TEXTLISTS, , related_modules, "null", "?", "3", "", "modules that follow them")
// clang-format on

#define DS_CONFIG_BOOL(name)                                                       bool name
#define DS_CONFIG_INT(name)                                                        int64_t name
#define DS_CONFIG_SIZE(name)                                                       size_t name
#define DS_CONFIG_REAL(name)                                                       double name
#define DS_CONFIG_PAIR(name)                                                       double name[2]
#define DS_CONFIG_TEXT(name)                                                       const char *name
#define DS_CONFIG_JSON(name)                                                       const char *name
#define DS_CONFIG_DEVICE(name)                                                     ds_config_device name
#define DS_CONFIG_INTS(name)                                                       ds_config_ints name
#define DS_CONFIG_TEXTS(name)                                                      ds_config_texts name
#define DS_CONFIG_TEXTLISTS(name)                                                  ds_config_textlists name
#define DS_CONFIG_METRICS(name)                                                    ds_config_metrics name
#define DS_CONFIG_WEIGHT_GROUPS(name)                                              ds_config_weight_groups name
#define DS_CONFIG_ACTIVATION_GROUPS(name)                                          ds_config_activation_groups name
#define DS_CONFIG_PRUNING_GROUPS(name)                                             ds_config_pruning_groups name
#define DS_CONFIG_FIELD(type, section, name, initial, accepted, seen, status, doc) DS_CONFIG_##type(name);
#define DS_CONFIG_OLD(type, section, name, accepted, seen, newer, doc)
#define DS_CONFIG_OPEN(section, name, status) struct {
#define DS_CONFIG_CLOSE(section, name)                                                                                 \
    }                                                                                                                  \
    name;

/* Named objects: the keys of their tables, and their name. */
typedef struct ds_config_metric {
    const char *name;
    DS_CONFIG_METRIC_KEYS(DS_CONFIG_OPEN, DS_CONFIG_FIELD, DS_CONFIG_CLOSE)
} ds_config_metric;
typedef struct ds_config_weight_group {
    const char *name;
    DS_CONFIG_WEIGHT_GROUP_KEYS(DS_CONFIG_OPEN, DS_CONFIG_FIELD, DS_CONFIG_CLOSE)
} ds_config_weight_group;
typedef struct ds_config_activation_group {
    const char *name;
    DS_CONFIG_ACTIVATION_GROUP_KEYS(DS_CONFIG_OPEN, DS_CONFIG_FIELD, DS_CONFIG_CLOSE)
} ds_config_activation_group;
typedef struct ds_config_pruning_group {
    const char *name;
    DS_CONFIG_PRUNING_GROUP_KEYS(DS_CONFIG_OPEN, DS_CONFIG_FIELD, DS_CONFIG_CLOSE)
} ds_config_pruning_group;
typedef struct ds_config_metrics {
    const ds_config_metric *at;
    size_t count;
} ds_config_metrics;
typedef struct ds_config_weight_groups {
    const ds_config_weight_group *at;
    size_t count;
} ds_config_weight_groups;
typedef struct ds_config_activation_groups {
    const ds_config_activation_group *at;
    size_t count;
} ds_config_activation_groups;
typedef struct ds_config_pruning_groups {
    const ds_config_pruning_group *at;
    size_t count;
} ds_config_pruning_groups;

/* The configuration: one member for each key of the table, nested as in the JSON, e.g.
   config->zero_optimization.offload_optimizer.device. Everything points into one block of memory that
   ds_config_free gives back. Nothing changes it after ds_config_parse: many threads may read it. */
typedef struct ds_config {
    size_t world_size;
    DS_CONFIG_KEYS(DS_CONFIG_OPEN, DS_CONFIG_FIELD, DS_CONFIG_OLD, DS_CONFIG_CLOSE)
    const struct ds_config_state *state; /* private: where each value came from */
} ds_config;

/* Sources of "auto", as the Hugging Face integration fills them in. `given` names the members that are set. */
enum {
    DS_CONFIG_HINT_MICRO_BATCH = 1 << 0,   /* per_device_train_batch_size */
    DS_CONFIG_HINT_ACCUMULATION = 1 << 1,  /* gradient_accumulation_steps */
    DS_CONFIG_HINT_MAX_GRAD_NORM = 1 << 2, /* gradient_clipping */
    DS_CONFIG_HINT_LEARNING_RATE = 1 << 3, /* optimizer lr, warmup_max_lr */
    DS_CONFIG_HINT_BETAS = 1 << 4,         /* adam_beta1, adam_beta2 */
    DS_CONFIG_HINT_EPSILON = 1 << 5,       /* adam_epsilon */
    DS_CONFIG_HINT_WEIGHT_DECAY = 1 << 6,
    DS_CONFIG_HINT_WARMUP_STEPS = 1 << 7,   /* warmup_num_steps; 0 becomes 1 */
    DS_CONFIG_HINT_TRAINING_STEPS = 1 << 8, /* total_num_steps */
    DS_CONFIG_HINT_HIDDEN_SIZE = 1 << 9,    /* h: reduce_bucket_size h*h, stage3_prefetch_bucket_size 0.9*h*h,
                                               stage3_param_persistence_threshold 10*h */
    DS_CONFIG_HINT_FP16 = 1 << 10,          /* fp16.enabled */
    DS_CONFIG_HINT_BF16 = 1 << 11           /* bf16.enabled */
};
typedef struct ds_config_hints {
    unsigned given; /* DS_CONFIG_HINT_... */
    size_t micro_batch, accumulation, hidden_size;
    double max_grad_norm, learning_rate, betas[2], epsilon, weight_decay;
    int64_t warmup_steps, training_steps;
    bool fp16, bf16;
} ds_config_hints;

/* One thing wrong (or, as a warning, doubtful) with a file. Valid during the call. */
typedef struct ds_config_problem {
    int level;        /* DS_LOG_ERROR or DS_LOG_WARNING */
    const char *path; /* e.g. "zero_optimization.stage"; "" for the text as a whole */
    int line, column; /* from 1; 0: nowhere in the text */
    const char *message;
} ds_config_problem;

enum { DS_CONFIG_UNKNOWN_ERROR = 0, DS_CONFIG_UNKNOWN_WARN = 1, DS_CONFIG_UNKNOWN_IGNORE = 2 };
typedef struct ds_config_options {
    size_t world_size;                                            /* data-parallel ranks; 0: 1 */
    int unknown;                                                  /* what an unknown key is: DS_CONFIG_UNKNOWN_... */
    bool strict_json;                                             /* refuse comments and trailing commas */
    const ds_config_hints *hints;                                 /* for "auto"; NULL: none */
    size_t max_bytes;                                             /* of the text; 0: 16 MiB */
    unsigned max_depth;                                           /* 0: 100 */
    ds_allocator allocator;                                       /* one allocation */
    void (*problem)(void *ctx, const ds_config_problem *problem); /* each problem, in the order found; may be NULL */
    void *ctx;
} ds_config_options;

/* Reads, checks and resolves a configuration for options->world_size ranks (options may be NULL). All problems of the
   text are found in one call and given to options->problem; `error` holds the first and how many follow. On failure
   *out is NULL. DS_ERR_INPUT: the text is wrong; DS_ERR_MEMORY: the one allocation failed. Thread safety: any number
   of calls at once. */
DS_API ds_status ds_config_parse_(const char *text, size_t bytes, const ds_config_options *options, ds_config **out,
                                  ds_error *error, int version, size_t options_size);
static inline ds_status ds_config_parse(const char *text, size_t bytes, const ds_config_options *options,
                                        ds_config **out, ds_error *error) {
    return ds_config_parse_(text, bytes, options, out, error, DS_CONFIG_VERSION, sizeof(ds_config_options));
}
DS_API void ds_config_free(ds_config *config); /* NULL is fine */

/* The resolved configuration as one JSON object with the documents' nesting and every known key, indented, with a final
   newline. Like snprintf: stores at most room bytes (room 0: out may be NULL), a NUL last, and returns the length.
   Reading it again gives the same configuration, at the same world size. */
DS_API size_t ds_config_print(const ds_config *config, char *out, size_t room);

typedef enum ds_config_origin {
    DS_CONFIG_DEFAULT = 0, /* not in the file */
    DS_CONFIG_GIVEN = 1,   /* as in the file */
    DS_CONFIG_DERIVED = 2, /* computed from other keys */
    DS_CONFIG_AUTO = 3     /* "auto" in the file, filled in from the hints or by default */
} ds_config_origin;
typedef struct ds_config_row {
    const char *path, *value; /* value: as JSON */
    ds_config_origin origin;
    int line, column; /* of the value in the file; 0 when it is not there */
    const char *doc;
} ds_config_row;
/* Each effective value with where it came from. Rows are valid during the call. DS_ERR_MEMORY: a value needed room. */
DS_API ds_status ds_config_explain(const ds_config *config, void (*row)(void *ctx, const ds_config_row *row),
                                   void *ctx);
/* The origin of one key and its place (line, column may be NULL; 0 when not in the file). False: no such key. Named
   objects are reached by their name: "compression_training.weight_quantization.different_groups.wq1.params.start_bits". */
DS_API bool ds_config_where(const ds_config *config, const char *path, ds_config_origin *origin, int *line,
                            int *column);

/* Calls `unclaimed` for each key that the file gives and that no claim covers, and returns their count. A claim is the
   path of a key, or of a section, which covers all below it. A program that trains calls this with the lists that its
   headers export, and stops when something is left, so that no key is silently without effect. */
DS_API size_t ds_config_unclaimed(const ds_config *config, const char *const *claims, size_t count,
                                  void (*unclaimed)(void *ctx, const char *path, int line, int column), void *ctx);

/* The table of keys, for documentation and tools. Strings are valid during the call. */
typedef struct ds_config_key {
    const char *path;     /* "*" stands for the name of a named object */
    const char *type;     /* BOOL, SIZE, ...: see the table */
    const char *initial;  /* default */
    const char *accepted; /* range or choice */
    const char *expected; /* type, range and choice in words: "a whole number of at least 1, or null" */
    const char *seen;     /* vintages of the reference */
    const char *status;   /* "", "ds", or "old" */
    const char *newer;    /* the key that replaces an old one, else "" */
    const char *doc;
} ds_config_key;
DS_API void ds_config_keys(void (*key)(void *ctx, const ds_config_key *key), void *ctx);

/* DeepSpeed's estimates of model-state memory, in bytes, for a model trained in 16 bits with Adam
   (estimate_zero2/zero3_model_states_mem_needs). Zero means: gpus_per_node 1, nodes 1, buffer_factor 1.5. A value that
   exceeds size_t is SIZE_MAX. */
typedef struct ds_config_memory_desc {
    int stage; /* 2 (also for what 0 and 1 would need at most) or 3 */
    size_t params, largest_layer, gpus_per_node, nodes;
    bool offload_optimizer, offload_param; /* to the CPU; the second at stage 3 with the first */
    bool keep_init;                        /* stage 3: parameters are not partitioned while the model is built */
    double buffer_factor;                  /* share of additional buffers */
} ds_config_memory_desc;
DS_API void ds_config_memory(const ds_config_memory_desc *desc, size_t *cpu_bytes, size_t *gpu_bytes);

#ifdef __cplusplus
}
#endif
#endif /* DS_CONFIG_H */

#if defined(DS_CONFIG_IMPLEMENTATION) && !defined(DS_CONFIG_IMPL_DONE)
#define DS_CONFIG_IMPL_DONE
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

/* >>json: the public reader and writer over the json block */
struct ds_json {
    dsi_json doc;
    ds_allocator allocator;
    size_t bytes; /* of the one allocation */
};

DS_API ds_status ds_json_parse(const char *text, size_t bytes, const ds_json_options *options, ds_json **out,
                               ds_error *error) {
    size_t head = dsi_round_up(sizeof(ds_json), 16), room, limit;
    unsigned flags = 0, depth;
    char *memory;
    ds_json *json;
    if (out) *out = NULL;
    if (!text || !out) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_json_parse: text or out is NULL");
    limit = options && options->max_bytes ? options->max_bytes : (size_t)1 << 30;
    if (limit > DSI_JSON_BYTES) limit = DSI_JSON_BYTES;
    depth = options && options->max_depth ? options->max_depth : DSI_JSON_DEPTH;
    if (options && options->comments) flags |= DSI_JSON_COMMENTS;
    if (options && options->trailing_commas) flags |= DSI_JSON_COMMAS;
    if (bytes > limit) return dsi_fail(error, DS_ERR_INPUT, "1:1: the text has %zu bytes, more than %zu", bytes, limit);
    room = dsi_json_room(text, bytes);
    memory = (char *)dsi_alloc(options ? &options->allocator : NULL, dsi_add(head, room));
    if (!memory) return dsi_fail(error, DS_ERR_MEMORY, "no memory for a JSON text (%zu bytes)", dsi_add(head, room));
    json = (ds_json *)(void *)memory;
    memset(json, 0, sizeof *json);
    if (options) json->allocator = options->allocator;
    json->bytes = head + room;
    if (!dsi_json_read(&json->doc, memory + head, room, text, bytes, flags, depth)) {
        int line, column;
        const char *why = json->doc.why;
        dsi_json_position(&json->doc, json->doc.fault, &line, &column);
        ds_json_free(json);
        return dsi_fail(error, DS_ERR_INPUT, "%d:%d: %s", line, column, why);
    }
    *out = json;
    return DS_OK;
}

DS_API void ds_json_free(ds_json *json) {
    ds_allocator allocator;
    if (!json) return;
    allocator = json->allocator;
    dsi_release(&allocator, json, json->bytes);
}

DS_API ds_json_type ds_json_typeof(const ds_json *json, ds_json_node node) {
    static const ds_json_type types[] = {DS_JSON_NULL,   DS_JSON_BOOL,   DS_JSON_BOOL,  DS_JSON_NUMBER,
                                         DS_JSON_NUMBER, DS_JSON_STRING, DS_JSON_ARRAY, DS_JSON_OBJECT};
    return node == DS_JSON_NO_NODE ? DS_JSON_NONE : types[json->doc.nodes[node].type];
}

DS_API size_t ds_json_count(const ds_json *json, ds_json_node node) {
    return ds_json_typeof(json, node) >= DS_JSON_ARRAY ? json->doc.nodes[node].length : 0;
}

DS_API ds_json_node ds_json_get(const ds_json *json, ds_json_node object, const char *key) {
    return dsi_json_get(&json->doc, object, key);
}

DS_API ds_json_node ds_json_first(const ds_json *json, ds_json_node container) {
    if (ds_json_count(json, container) == 0) return DS_JSON_NO_NODE;
    return container + 1 + (json->doc.nodes[container].type == DSI_JSON_OBJECT);
}

DS_API ds_json_node ds_json_next(const ds_json *json, ds_json_node container, ds_json_node value) {
    const dsi_json_node *nodes = json->doc.nodes;
    uint32_t next = nodes[value].next;
    if (next >= nodes[container].next) return DS_JSON_NO_NODE;
    return next + (nodes[container].type == DSI_JSON_OBJECT);
}

DS_API ds_json_node ds_json_at(const ds_json *json, ds_json_node container, size_t index) {
    ds_json_node value = ds_json_first(json, container);
    for (; value != DS_JSON_NO_NODE && index; index--) value = ds_json_next(json, container, value);
    return value;
}

DS_API const char *ds_json_key(const ds_json *json, ds_json_node object, ds_json_node value, size_t *bytes) {
    if (bytes) *bytes = 0;
    if (ds_json_typeof(json, object) != DS_JSON_OBJECT || value == DS_JSON_NO_NODE) return NULL;
    return ds_json_string(json, value - 1, bytes);
}

DS_API const char *ds_json_string(const ds_json *json, ds_json_node node, size_t *bytes) {
    const char *text = dsi_json_text(&json->doc, node);
    if (bytes) *bytes = text ? json->doc.nodes[node].length : 0;
    return text;
}

DS_API bool ds_json_number(const ds_json *json, ds_json_node node, double *value) {
    return dsi_json_real(&json->doc, node, value);
}

DS_API bool ds_json_integer(const ds_json *json, ds_json_node node, int64_t *value) {
    return dsi_json_integer(&json->doc, node, value);
}

DS_API bool ds_json_bool(const ds_json *json, ds_json_node node, bool *value) {
    *value = node != DS_JSON_NO_NODE && json->doc.nodes[node].type == DSI_JSON_TRUE;
    return ds_json_typeof(json, node) == DS_JSON_BOOL;
}

DS_API void ds_json_position(const ds_json *json, ds_json_node node, int *line, int *column) {
    *line = *column = 0;
    if (node != DS_JSON_NO_NODE) dsi_json_position(&json->doc, json->doc.nodes[node].offset, line, column);
}

/* The key of an object that repeats one before it and stands first in the text. With `order`, room for its members, they are
   sorted by length and text, so that equal ones are neighbours: heap sort, since the text may come from anyone. Without it,
   each is compared with each. */
static int dsi_config_compare_keys(const dsi_json_node *nodes, uint32_t a, uint32_t b) {
    int order;
    if (nodes[a].length != nodes[b].length) return nodes[a].length < nodes[b].length ? -1 : 1;
    order = memcmp(nodes[a].as.text, nodes[b].as.text, nodes[a].length);
    return order ? order : a < b ? -1 : a > b;
}
static void dsi_config_sift(const dsi_json_node *nodes, uint32_t *order, uint32_t at, uint32_t count) {
    for (;;) {
        uint32_t child = 2 * at + 1, swap;
        if (child >= count) return;
        if (child + 1 < count && dsi_config_compare_keys(nodes, order[child], order[child + 1]) < 0) child++;
        if (dsi_config_compare_keys(nodes, order[at], order[child]) >= 0) return;
        swap = order[at];
        order[at] = order[child];
        order[child] = swap;
        at = child;
    }
}
static bool dsi_config_same_key(const dsi_json_node *nodes, uint32_t a, uint32_t b) {
    return nodes[a].length == nodes[b].length && !memcmp(nodes[a].as.text, nodes[b].as.text, nodes[a].length);
}
static uint32_t dsi_config_repeated(const dsi_json *doc, uint32_t object, uint32_t *order, uint32_t after) {
    const dsi_json_node *nodes = doc->nodes;
    uint32_t count = nodes[object].length, found = DSI_JSON_NONE, k = object + 1, i, j;
    for (i = 0; i < count; i++, k = nodes[k + 1].next) {
        if (order) order[i] = k;
        for (j = object + 1; !order && j < k; j = nodes[j + 1].next)
            if (k > after && dsi_config_same_key(nodes, j, k)) return k;
    }
    if (!order) return found;
    for (i = count / 2; i-- > 0;) dsi_config_sift(nodes, order, i, count);
    for (i = count; i-- > 1;) {
        uint32_t swap = order[0];
        order[0] = order[i];
        order[i] = swap;
        dsi_config_sift(nodes, order, 0, i);
    }
    for (i = 1; i < count; i++)
        if (order[i] > after && order[i] < found && dsi_config_same_key(nodes, order[i - 1], order[i]))
            found = order[i];
    return found;
}

DS_API ds_json_node ds_json_duplicate(const ds_json *json) {
    const dsi_json *doc = &json->doc;
    for (uint32_t object = 0; object < doc->count; object++) {
        uint32_t *order = NULL, found, count = doc->nodes[object].length;
        if (doc->nodes[object].type != DSI_JSON_OBJECT) continue;
        if (count > 16) order = (uint32_t *)dsi_alloc(&json->allocator, count * sizeof *order);
        found = dsi_config_repeated(doc, object, order, 0);
        dsi_release(&json->allocator, order, count * sizeof *order);
        if (found != DSI_JSON_NONE) return found;
    }
    return DS_JSON_NO_NODE;
}

/* The writer's sink for one token; `comma` separates it from what stands before on its level. */
static void dsi_config_put(ds_json_writer *w, const char *text, size_t bytes) {
    dsi_json_sink sink;
    sink.out = w->out;
    sink.room = w->room;
    sink.length = w->length;
    dsi_json_put(&sink, text, bytes);
    w->length = sink.length;
}
static void dsi_config_put_text(ds_json_writer *w, const char *text, size_t bytes) {
    dsi_json_sink sink;
    sink.out = w->out;
    sink.room = w->room;
    sink.length = w->length;
    dsi_json_put_string(&sink, text, bytes);
    w->length = sink.length;
}
static void dsi_config_line(ds_json_writer *w) {
    if (w->indent) {
        dsi_config_put(w, "\n", 1);
        for (unsigned i = 0; i < w->depth * w->indent; i++) dsi_config_put(w, " ", 1);
    }
}
static void dsi_config_begin(ds_json_writer *w, const char *key, size_t bytes) {
    if (w->comma) dsi_config_put(w, w->indent ? "," : ", ", w->indent ? 1 : 2);
    if (w->depth) dsi_config_line(w);
    if (key) {
        dsi_config_put_text(w, key, bytes);
        dsi_config_put(w, ": ", 2);
    }
    w->comma = true;
}
/* A value that is JSON already. */
static void dsi_config_write_raw(ds_json_writer *w, const char *key, const char *text) {
    dsi_config_begin(w, key, key ? strlen(key) : 0);
    dsi_config_put(w, text, strlen(text));
}

DS_API void ds_json_write_open(ds_json_writer *w, const char *key, char bracket) {
    dsi_config_begin(w, key, key ? strlen(key) : 0);
    dsi_config_put(w, &bracket, 1);
    w->depth++;
    w->comma = false;
}
DS_API void ds_json_write_close(ds_json_writer *w, char bracket) {
    w->depth--;
    if (w->comma) dsi_config_line(w);
    dsi_config_put(w, &bracket, 1);
    w->comma = true;
}
DS_API void ds_json_write_null(ds_json_writer *w, const char *key) {
    dsi_config_write_raw(w, key, "null");
}
DS_API void ds_json_write_bool(ds_json_writer *w, const char *key, bool value) {
    dsi_config_write_raw(w, key, value ? "true" : "false");
}
DS_API void ds_json_write_integer(ds_json_writer *w, const char *key, int64_t value) {
    char number[DSI_JSON_NUMBER_ROOM];
    snprintf(number, sizeof number, "%lld", (long long)value);
    dsi_config_write_raw(w, key, number);
}
DS_API void ds_json_write_number(ds_json_writer *w, const char *key, double value) {
    char number[DSI_JSON_NUMBER_ROOM];
    dsi_json_print_real(value, number);
    dsi_config_write_raw(w, key, number);
}
DS_API void ds_json_write_string(ds_json_writer *w, const char *key, const char *text) {
    dsi_config_begin(w, key, key ? strlen(key) : 0);
    dsi_config_put_text(w, text, text ? strlen(text) : 0);
}

/* A node of a document and all it holds, as it was written: numbers keep their text. */
static void dsi_config_write_node(ds_json_writer *w, const dsi_json *doc, uint32_t root) {
    const dsi_json_node *nodes = doc->nodes;
    uint32_t open[DSI_JSON_DEPTH + 1], depth = 0, node = root;
    static const char *const words[] = {"null", "false", "true"};
    for (;;) {
        const dsi_json_node *n = nodes + node;
        while (depth && node >= nodes[open[depth - 1]].next)
            ds_json_write_close(w, nodes[open[--depth]].type == DSI_JSON_OBJECT ? '}' : ']');
        if (node >= nodes[root].next) return;
        if (depth && nodes[open[depth - 1]].type == DSI_JSON_OBJECT) {
            dsi_config_begin(w, n->as.text, n->length);
            n = nodes + ++node;
        } else if (depth)
            dsi_config_begin(w, NULL, 0);
        if (n->type >= DSI_JSON_ARRAY) {
            dsi_config_put(w, n->type == DSI_JSON_OBJECT ? "{" : "[", 1);
            w->depth++;
            w->comma = false;
            open[depth++] = node;
        } else if (n->type == DSI_JSON_STRING)
            dsi_config_put_text(w, n->as.text, n->length);
        else if (n->type >= DSI_JSON_INT)
            dsi_config_put(w, doc->text + n->offset, n->length);
        else
            dsi_config_put(w, words[n->type], strlen(words[n->type]));
        node++;
    }
}

/* >>table: the rows that the reader, the printer and the lists walk */
enum { DSI_CONFIG_IS_KEY, DSI_CONFIG_IS_OLD, DSI_CONFIG_IS_OPEN, DSI_CONFIG_IS_CLOSE };
enum {
    DSI_CONFIG_BOOL,
    DSI_CONFIG_INT,
    DSI_CONFIG_SIZE,
    DSI_CONFIG_REAL,
    DSI_CONFIG_PAIR,
    DSI_CONFIG_TEXT,
    DSI_CONFIG_JSON,
    DSI_CONFIG_DEVICE,
    DSI_CONFIG_INTS,
    DSI_CONFIG_TEXTS,
    DSI_CONFIG_TEXTLISTS,
    DSI_CONFIG_METRICS,
    DSI_CONFIG_WEIGHT_GROUPS,
    DSI_CONFIG_ACTIVATION_GROUPS,
    DSI_CONFIG_PRUNING_GROUPS
};
typedef struct dsi_config_row {
    const char *path;
    uint16_t name, length; /* where the last name starts, and bytes of the whole path */
    uint8_t kind, type;
    uint32_t offset;                                      /* in the struct */
    const char *initial, *accepted, *seen, *status, *doc; /* status of an old key: what replaces it */
} dsi_config_row;

/* Each stringises its own arguments, so that a macro of the program with the name of a key does no harm. */
// clang-format off
#define DSI_CONFIG_KEY(type, section, name, initial, accepted, seen, status, doc) \
    {#section #name, sizeof(#section) - 1, sizeof(#section #name) - 1, DSI_CONFIG_IS_KEY, DSI_CONFIG_##type, \
     (uint32_t)offsetof(DSI_CONFIG_OF, section name), initial, accepted, seen, status, doc},
#define DSI_CONFIG_OLD(type, section, name, accepted, seen, newer, doc) \
    {#section #name, sizeof(#section) - 1, sizeof(#section #name) - 1, DSI_CONFIG_IS_OLD, DSI_CONFIG_##type, \
     0, "", accepted, seen, newer, doc},
#define DSI_CONFIG_OPEN(section, name, status) \
    {#section #name, sizeof(#section) - 1, sizeof(#section #name) - 1, DSI_CONFIG_IS_OPEN, 0, 0, "", "", "", status, ""},
#define DSI_CONFIG_CLOSE(section, name) \
    {#section #name, sizeof(#section) - 1, sizeof(#section #name) - 1, DSI_CONFIG_IS_CLOSE, 0, 0, "", "", "", "", ""},
// clang-format on
#define DSI_CONFIG_OF ds_config
static const dsi_config_row dsi_config_rows[] = {
    DS_CONFIG_KEYS(DSI_CONFIG_OPEN, DSI_CONFIG_KEY, DSI_CONFIG_OLD, DSI_CONFIG_CLOSE)};
#undef DSI_CONFIG_OF
#define DSI_CONFIG_OF ds_config_metric
static const dsi_config_row dsi_config_metric_rows[] = {
    DS_CONFIG_METRIC_KEYS(DSI_CONFIG_OPEN, DSI_CONFIG_KEY, DSI_CONFIG_CLOSE)};
#undef DSI_CONFIG_OF
#define DSI_CONFIG_OF ds_config_weight_group
static const dsi_config_row dsi_config_weight_rows[] = {
    DS_CONFIG_WEIGHT_GROUP_KEYS(DSI_CONFIG_OPEN, DSI_CONFIG_KEY, DSI_CONFIG_CLOSE)};
#undef DSI_CONFIG_OF
#define DSI_CONFIG_OF ds_config_activation_group
static const dsi_config_row dsi_config_activation_rows[] = {
    DS_CONFIG_ACTIVATION_GROUP_KEYS(DSI_CONFIG_OPEN, DSI_CONFIG_KEY, DSI_CONFIG_CLOSE)};
#undef DSI_CONFIG_OF
#define DSI_CONFIG_OF ds_config_pruning_group
static const dsi_config_row dsi_config_pruning_rows[] = {
    DS_CONFIG_PRUNING_GROUP_KEYS(DSI_CONFIG_OPEN, DSI_CONFIG_KEY, DSI_CONFIG_CLOSE)};
#undef DSI_CONFIG_OF

typedef struct dsi_config_table {
    const dsi_config_row *rows;
    uint32_t count;
    size_t bytes; /* of the struct */
} dsi_config_table;
#define DSI_CONFIG_COUNT(rows) ((uint32_t)(sizeof(rows) / sizeof((rows)[0])))
/* first the configuration itself, then the named objects in the order of their types */
static const dsi_config_table dsi_config_tables[5] = {
    {dsi_config_rows, DSI_CONFIG_COUNT(dsi_config_rows), sizeof(ds_config)},
    {dsi_config_metric_rows, DSI_CONFIG_COUNT(dsi_config_metric_rows), sizeof(ds_config_metric)},
    {dsi_config_weight_rows, DSI_CONFIG_COUNT(dsi_config_weight_rows), sizeof(ds_config_weight_group)},
    {dsi_config_activation_rows, DSI_CONFIG_COUNT(dsi_config_activation_rows), sizeof(ds_config_activation_group)},
    {dsi_config_pruning_rows, DSI_CONFIG_COUNT(dsi_config_pruning_rows), sizeof(ds_config_pruning_group)}};
#define DSI_CONFIG_MAIN_ROWS DSI_CONFIG_COUNT(dsi_config_rows)
#define DSI_CONFIG_MOST_ROWS 20 /* of a named object's table */

/* What became of a key: its node in the file, or DSI_JSON_NONE. */
typedef struct dsi_config_mark {
    uint32_t node;
    uint8_t origin, null;
} dsi_config_mark;

/* One object being filled: the configuration, or a named object in it. `object` starts with its name then. */
typedef struct dsi_config_scope {
    const dsi_config_table *table;
    char *object;
    dsi_config_mark *marks;
    const char *prefix;   /* of its paths: "" or one with a final dot */
    uint32_t row;         /* of the main table, for a named object */
    const uint16_t *ends; /* for each OPEN row, its CLOSE */
    uint32_t node;        /* in the file */
} dsi_config_scope;

struct ds_config_state {
    dsi_json doc;
    ds_allocator allocator;
    size_t bytes;             /* of the one allocation */
    dsi_config_scope *scopes; /* the first is the configuration */
    uint32_t scope_count, scope_room;
};

#define DSI_CONFIG_MOST_PROBLEMS 100 /* that are reported one by one */
typedef struct dsi_config_parser {
    const ds_config_options *options;
    ds_config *config;
    struct ds_config_state *state;
    char *arena, *arena_end;
    const uint16_t *ends[5];
    ds_error *error;
    size_t errors, said, unsaid; /* unsaid: errors that follow from a refused value */
    bool ruling;                 /* all values are read, and the rules between them are being applied */
    size_t refused_count;
    uint32_t refused[DSI_CONFIG_MOST_PROBLEMS]; /* nodes of values and keys that were not taken */
} dsi_config_parser;

/* >>reader */

/* Memory from the one block, zeroed. Its size was computed from the text, so that it cannot run out. */
static void *dsi_config_take(dsi_config_parser *p, size_t bytes) {
    char *memory = p->arena;
    bytes = dsi_round_up(bytes, 8);
    if (bytes > (size_t)(p->arena_end - p->arena)) return NULL;
    p->arena += bytes;
    memset(memory, 0, bytes);
    return memory;
}

/* The path of a node, found from the root down; cut to the room. */
static void dsi_config_path_of(const dsi_json *doc, uint32_t node, char *out, size_t room) {
    const dsi_json_node *nodes = doc->nodes;
    uint32_t at = 0;
    size_t length = 0;
    out[0] = 0;
    while (at != node && length + 8 < room) {
        bool object = nodes[at].type == DSI_JSON_OBJECT;
        uint32_t child = at + 1, index = 0;
        for (; node >= nodes[object ? child + 1 : child].next; index++) child = nodes[object ? child + 1 : child].next;
        if (object)
            length += (size_t)snprintf(out + length, room - length, "%s%s", length ? "." : "", nodes[child].as.text);
        else
            length += (size_t)snprintf(out + length, room - length, "[%u]", (unsigned)index);
        if (object && node == child) return;
        at = object ? child + 1 : child;
    }
}

/* Makes one line of UTF-8 of a text: a control character is a blank then, half a character a question mark. */
static void dsi_config_one_line(char *text) {
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        unsigned length = c < 0x80 ? 1 : dsi_json_utf8(text);
        if (c < 0x20 || c == 0x7F)
            *text = ' ';
        else if (length == 0)
            *text = '?';
        else
            text += length - 1;
    }
}

static dsi_config_mark *dsi_config_mark_of(const dsi_config_parser *p, const char *path);

/* A key's name in a text, not as a part of a longer one; a path, not as the end of a longer one either. */
static bool dsi_config_names(const char *text, const char *name, bool path) {
    static const char word[] = "_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t length = strlen(name);
    for (const char *s = length ? strstr(text, name) : NULL; s; s = strstr(s + 1, name)) {
        bool begins = s == text || !(strchr(word, s[-1]) || (path && s[-1] == '.'));
        if (begins && (!s[length] || !strchr(word, s[length]))) return true;
    }
    return false;
}

/* Does a rule at `path` name, there or in its text, a key whose value was refused? It would see the default in its place. Of
   another section than the rule's own the text has the whole path. */
static bool dsi_config_spoilt(const dsi_config_parser *p, const char *path, const char *text) {
    for (size_t i = 0; i < p->refused_count; i++) {
        char refused[200];
        const char *name = refused;
        dsi_config_path_of(&p->state->doc, p->refused[i], refused, sizeof refused);
        refused[strcspn(refused, "[")] = 0;
        if (strchr(refused, '.') && !strncmp(path, refused, strcspn(refused, ".") + 1))
            name = strrchr(refused, '.') + 1;
        if (dsi_config_names(path, name, name == refused) || dsi_config_names(text, name, name == refused)) return true;
    }
    return false;
}

/* Reports one problem at a node (DSI_JSON_NONE: nowhere). path NULL: the node's own. */
DSI_PRINTF(5, 6)
static void dsi_config_say(dsi_config_parser *p, int level, const char *path, uint32_t node, const char *format, ...) {
    char message[400], own[200];
    ds_config_problem problem;
    va_list args;
    va_start(args, format);
    dsi_vformat(message, sizeof message, format, args);
    va_end(args);
    if (level == DS_LOG_ERROR) p->errors++;
    if (p->ruling && level == DS_LOG_ERROR && path && dsi_config_spoilt(p, path, message)) {
        p->unsaid++;
        return;
    }
    if (!p->ruling && level == DS_LOG_ERROR && node != DSI_JSON_NONE && p->refused_count < DSI_CONFIG_MOST_PROBLEMS)
        p->refused[p->refused_count++] = node;
    if (++p->said > DSI_CONFIG_MOST_PROBLEMS && p->errors != 1) return;
    if (path)
        snprintf(own, sizeof own, "%s", path);
    else
        dsi_config_path_of(&p->state->doc, node, own, sizeof own);
    dsi_config_one_line(message);
    dsi_config_one_line(own);
    path = own;
    problem.level = level;
    problem.path = path;
    problem.line = problem.column = 0;
    if (node != DSI_JSON_NONE)
        dsi_json_position(&p->state->doc, p->state->doc.nodes[node].offset, &problem.line, &problem.column);
    problem.message = message;
    if (level == DS_LOG_ERROR && p->errors == 1) {
        if (problem.line)
            dsi_fail(p->error, DS_ERR_INPUT, "%d:%d: %s: %s", problem.line, problem.column, path, message);
        else
            dsi_fail(p->error, DS_ERR_INPUT, "%s: %s", path, message);
    }
    if (p->options->problem && p->said <= DSI_CONFIG_MOST_PROBLEMS) p->options->problem(p->options->ctx, &problem);
}

/* The row of a key in the section that opens at row `open` (UINT32_MAX: the table itself), or UINT32_MAX. */
static uint32_t dsi_config_find(const dsi_config_scope *scope, uint32_t open, const char *name, size_t length) {
    const dsi_config_row *rows = scope->table->rows;
    for (uint32_t i = open + 1; i < scope->table->count && rows[i].kind != DSI_CONFIG_IS_CLOSE; i++) {
        size_t own = (size_t)rows[i].length - rows[i].name;
        if (own == length && !memcmp(rows[i].path + rows[i].name, name, length)) return i;
        if (rows[i].kind == DSI_CONFIG_IS_OPEN) i = scope->ends[i];
    }
    return UINT32_MAX;
}

/* The row of a whole path in the main table, which must be there. */
static uint32_t dsi_config_row_of(const char *path) {
    size_t length = strlen(path);
    const dsi_config_row *row = dsi_config_rows;
    while (row->length != length || row->kind == DSI_CONFIG_IS_CLOSE || memcmp(row->path, path, length)) row++;
    return (uint32_t)(row - dsi_config_rows);
}
static dsi_config_mark *dsi_config_mark_of(const dsi_config_parser *p, const char *path) {
    return p->state->scopes[0].marks + dsi_config_row_of(path);
}
static bool dsi_config_given(const dsi_config_parser *p, const char *path) {
    return dsi_config_mark_of(p, path)->node != DSI_JSON_NONE;
}
/* Where an error about a key is shown: at the key, or at the innermost section of its path that the file has. */
static uint32_t dsi_config_place(const dsi_config_parser *p, const char *path) {
    char part[256];
    char *end = part;
    snprintf(part, sizeof part, "%s", path);
    while (end) {
        uint32_t node = dsi_config_mark_of(p, part)->node;
        if (node != DSI_JSON_NONE) return node;
        end = strrchr(part, '.');
        if (end) *end = 0;
    }
    return DSI_JSON_NONE;
}
/* An error, or a warning, at a key of the main table. */
#define DSI_CONFIG_REFUSE(p, path, ...) dsi_config_say(p, DS_LOG_ERROR, path, dsi_config_place(p, path), __VA_ARGS__)
#define DSI_CONFIG_DOUBT(p, path, ...)  dsi_config_say(p, DS_LOG_WARNING, path, dsi_config_place(p, path), __VA_ARGS__)

/* Edits between two names: insert, delete, replace, swap of neighbours; case counts half. */
static int dsi_config_distance(const char *a, size_t m, const char *b, size_t n) {
    int before[65], row[65], next[65];
    if (m > 64) return 1000; /* and no name of ours is that long */
    for (size_t j = 0; j <= n; j++) before[j] = row[j] = 2 * (int)j;
    for (size_t i = 1; i <= m; i++) {
        next[0] = 2 * (int)i;
        for (size_t j = 1; j <= n; j++) {
            int x = a[i - 1], y = b[j - 1], cost = x == y ? 0 : (x | 32) == (y | 32) ? 1 : 2, best = row[j - 1] + cost;
            if (row[j] + 2 < best) best = row[j] + 2;
            if (next[j - 1] + 2 < best) best = next[j - 1] + 2;
            if (i > 1 && j > 1 && x == b[j - 2] && a[i - 2] == y && before[j - 2] + 2 < best) best = before[j - 2] + 2;
            next[j] = best;
        }
        memcpy(before, row, sizeof before);
        memcpy(row, next, sizeof row);
    }
    return row[n];
}

/* Where the named objects that a table describes stand. */
static const char *dsi_config_objects_of(const dsi_config_table *table) {
    const dsi_config_row *row = dsi_config_rows;
    if (table == dsi_config_tables) return "";
    while (row->type != DSI_CONFIG_METRICS + (table - dsi_config_tables) - 1) row++;
    return row->path;
}
/* Says in which section of a table a key of that name belongs; `from` is the table of the object in which it stands. */
static bool dsi_config_belongs(dsi_config_parser *p, const dsi_config_table *from, const dsi_config_table *table,
                               int level, uint32_t key) {
    const dsi_json_node *n = p->state->doc.nodes + key;
    const char *const objects = table == from ? "" : dsi_config_objects_of(table);
    for (uint32_t i = 0; i < table->count; i++) {
        const dsi_config_row *row = table->rows + i;
        int section = row->name ? row->name - 1 : 0;
        if (row->kind == DSI_CONFIG_IS_CLOSE || (size_t)row->length - row->name != n->length) continue;
        if (memcmp(row->path + row->name, n->as.text, n->length)) continue;
        if (table == dsi_config_tables && !section)
            dsi_config_say(p, level, NULL, key, "unknown key here; it belongs at the top level");
        else if (table == dsi_config_tables || (section && table == from))
            dsi_config_say(p, level, NULL, key, "unknown key here; it belongs in \"%.*s\"", section, row->path);
        else if (section)
            dsi_config_say(p, level, NULL, key, "unknown key here; it belongs in \"%.*s\" of one of \"%s\"", section,
                           row->path, objects);
        else if (table == from)
            dsi_config_say(p, level, NULL, key, "unknown key here; it belongs one level up");
        else
            dsi_config_say(p, level, NULL, key, "unknown key here; it belongs in one of \"%s\"", objects);
        return true;
    }
    return false;
}

/* An unknown key: the section where it belongs, or the nearest known one. */
static void dsi_config_unknown(dsi_config_parser *p, const dsi_config_scope *scope, uint32_t open, uint32_t key) {
    const dsi_json_node *n = p->state->doc.nodes + key;
    const dsi_config_row *rows = scope->table->rows, *best = NULL;
    int level = p->options->unknown == DS_CONFIG_UNKNOWN_WARN ? DS_LOG_WARNING : DS_LOG_ERROR, distance = 1000;
    bool told;
    if (p->options->unknown == DS_CONFIG_UNKNOWN_IGNORE) return;
    if (p->said >= DSI_CONFIG_MOST_PROBLEMS && p->errors) { /* no search for what is not shown */
        p->errors += level == DS_LOG_ERROR;
        p->said++;
        return;
    }
    for (uint32_t i = open + 1; i < scope->table->count && rows[i].kind != DSI_CONFIG_IS_CLOSE; i++) {
        const char *name = rows[i].path + rows[i].name;
        int d = dsi_config_distance(n->as.text, n->length, name, (size_t)rows[i].length - rows[i].name);
        if (n->length > 5 && strlen(name) > n->length && !strcmp(name + strlen(name) - n->length, n->as.text)) d = 1;
        if (d < distance && rows[i].kind != DSI_CONFIG_IS_OLD) {
            distance = d;
            best = rows + i;
        }
        if (rows[i].kind == DSI_CONFIG_IS_OPEN) i = scope->ends[i];
    }
    if (best && distance <= (n->length < 4 ? 2 : 2 * (int)(n->length + 2) / 4)) {
        dsi_config_say(p, level, NULL, key, "unknown key; did you mean \"%s\"?", best->path + best->name);
        return;
    }
    /* "enabled" is in most of them; the object's own table comes first */
    told = strcmp(n->as.text, "enabled") && dsi_config_belongs(p, scope->table, scope->table, level, key);
    for (int i = 0; i < 5 && !told && strcmp(n->as.text, "enabled"); i++)
        told = dsi_config_belongs(p, scope->table, dsi_config_tables + i, level, key);
    if (!told) dsi_config_say(p, level, NULL, key, "unknown key");
}

/* What a file holds where something else was expected, in words. */
static const char *dsi_config_got(const dsi_json *doc, uint32_t node, char out[120]) {
    const dsi_json_node *n = doc->nodes + node;
    if (n->type == DSI_JSON_STRING)
        snprintf(out, 120, "the text \"%.90s\"", n->as.text);
    else if (n->type == DSI_JSON_ARRAY) { /* as it stands in the file, if that is short */
        ds_json_writer w;
        memset(&w, 0, sizeof w);
        w.out = out;
        w.room = 100;
        dsi_config_write_node(&w, doc, node);
        snprintf(out + (w.length < 100 ? w.length : 96), 24, "%s", w.length < 100 ? "" : "...]");
    } else if (n->type == DSI_JSON_OBJECT)
        snprintf(out, 120, "an object");
    else if (n->type >= DSI_JSON_INT)
        snprintf(out, 120, "%.*s", n->length > 90 ? 90 : (int)n->length, doc->text + n->offset);
    else
        snprintf(out, 120, "%s", n->type == DSI_JSON_NULL ? "null" : n->type == DSI_JSON_TRUE ? "true" : "false");
    return out;
}

/* A number of the table, with nothing behind it that belongs to one; *whole for the types INT and SIZE. */
static double dsi_config_number(const char **text, int64_t *whole) {
    dsi_json_node node;
    const char *stop, *from = *text;
    char copy[48]; /* a number is read with eight bytes of padding */
    size_t n = 0;
    memset(copy, 0, sizeof copy);
    while (from[n] == '-' || (from[n] >= '0' && from[n] <= '9') || from[n] == 'e' ||
           (from[n] == '.' && from[n + 1] != '.'))
        copy[n] = from[n], n++;
    *text += n;
    dsi_json_read_number(copy, &node, &stop);
    *whole = node.as.integer;
    return node.type == DSI_JSON_INT ? (double)node.as.integer : node.as.real;
}

/* A number in a message: no locale's comma. */
static const char *dsi_config_decimal(double value, char out[32]) {
    ds_json_writer w;
    memset(&w, 0, sizeof w);
    w.out = out;
    w.room = 31;
    ds_json_write_number(&w, NULL, value);
    out[w.length] = 0;
    if (w.length > 2 && !strcmp(out + w.length - 2, ".0")) out[w.length - 2] = 0;
    return out;
}

/* The numbers that a row accepts, from ">=1", ">0", "0..1", "0..<1", "0<..<1". */
typedef struct dsi_config_range {
    double low, high;
    bool has_low, has_high, low_open, high_open;
} dsi_config_range;
static dsi_config_range dsi_config_range_of(const char *accepted) {
    dsi_config_range range;
    int64_t whole;
    memset(&range, 0, sizeof range);
    if (*accepted == '?') accepted++;
    if (*accepted == '>') {
        range.has_low = true;
        range.low_open = accepted[1] != '=';
        accepted += range.low_open ? 1 : 2;
        range.low = dsi_config_number(&accepted, &whole);
    } else if (*accepted) {
        range.has_low = range.has_high = true;
        range.low = dsi_config_number(&accepted, &whole);
        range.low_open = *accepted == '<';
        accepted += range.low_open ? 3 : 2;
        range.high_open = *accepted == '<';
        accepted += range.high_open;
        range.high = dsi_config_number(&accepted, &whole);
    }
    return range;
}
static bool dsi_config_in_range(const dsi_config_range *r, double value) {
    if (r->has_low && (r->low_open ? value <= r->low : value < r->low)) return false;
    return !r->has_high || (r->high_open ? value < r->high : value <= r->high);
}

/* "a whole number of at least 1": what a row expects. */
static const char *dsi_config_expected(const dsi_config_row *row, char out[256]) {
    static const char *const names[] = {"true or false",
                                        "a whole number",
                                        "a whole number",
                                        "a number",
                                        "a list of two numbers",
                                        "a text",
                                        "a value",
                                        "one of",
                                        "a list of whole numbers",
                                        "a list of texts",
                                        "a list of lists of texts",
                                        "an object of metrics by name",
                                        "an object of groups by name",
                                        "an object of groups by name",
                                        "an object of groups by name"};
    const char *accepted = row->accepted + (row->accepted[0] == '?'),
               *null = row->accepted[0] == '?' ? ", or null" : "";
    char low[32], high[32];
    dsi_config_range r;
    if (*accepted == '~') accepted++;
    if (strchr(accepted, '|') || (row->type == DSI_CONFIG_TEXT && *accepted)) {
        snprintf(out, 256, "one of %s%s", accepted, null);
        return out;
    }
    r = dsi_config_range_of(accepted);
    if (r.has_low && r.has_high)
        snprintf(out, 256, "%s from %s%s to %s%s%s", names[row->type], dsi_config_decimal(r.low, low),
                 r.low_open ? " (excluded)" : "", dsi_config_decimal(r.high, high), r.high_open ? " (excluded)" : "",
                 null);
    else if (r.has_low)
        snprintf(out, 256, "%s %s %s%s", names[row->type], r.low_open ? "above" : "of at least",
                 dsi_config_decimal(r.low, low), null);
    else
        snprintf(out, 256, "%s%s", names[row->type], null);
    return out;
}

/* A number of a size that no integer of 64 bits has, where a whole one is expected. */
static bool dsi_config_too_wide(const dsi_config_row *row, const dsi_json *doc, uint32_t node) {
    const dsi_json_node *n = doc->nodes + node;
    const double edge = 9223372036854775808.0;
    return (row->type == DSI_CONFIG_INT || row->type == DSI_CONFIG_SIZE) && n->type == DSI_JSON_REAL &&
           (n->as.real >= edge || n->as.real < -edge);
}

/* How many bytes two texts have in common, up to `length`; with any_case a letter is its other case. */
static size_t dsi_config_common(const char *a, const char *b, size_t length, bool any_case) {
    size_t n = 0;
    for (; n < length; n++) {
        bool letter = any_case && (a[n] | 32) >= 'a' && (a[n] | 32) <= 'z';
        if (a[n] != b[n] && !(letter && (a[n] | 32) == (b[n] | 32))) break;
    }
    return n;
}

/* The index of a text among "a|b|c", or -1; "~" in front: in any case. *choice is its canonical spelling. */
static int dsi_config_choice(const char *accepted, const char *text, const char **choice, size_t *bytes) {
    size_t length = strlen(text);
    bool any_case = *accepted == '~';
    if (any_case) accepted++;
    for (int index = 0;; index++) {
        size_t n = strcspn(accepted, "|");
        if (n == length && dsi_config_common(accepted, text, n, any_case) == n) {
            *choice = accepted;
            *bytes = n;
            return index;
        }
        if (!accepted[n]) return -1;
        accepted += n + 1;
    }
}

/* The canonical names of data types; DeepSpeed takes several spellings. */
static const char *dsi_config_dtype(const char *text) {
    const char *choice = "";
    size_t bytes;
    if (dsi_config_choice("~float16|half", text, &choice, &bytes) >= 0) return "fp16";
    if (dsi_config_choice("~bfloat16", text, &choice, &bytes) >= 0) return "bf16";
    if (dsi_config_choice("~float32|float", text, &choice, &bytes) >= 0) return "fp32";
    return text;
}

/* Stores a text of a key with its choices canonical. NULL: it is none of them. */
static const char *dsi_config_text(dsi_config_parser *p, const dsi_config_row *row, const char *text) {
    const char *accepted = row->accepted + (row->accepted[0] == '?'), *choice = text;
    size_t bytes = 0;
    char *copy;
    if (!*accepted) return text;
    if (!strncmp(accepted, "~fp16", 5)) text = dsi_config_dtype(text);
    if (dsi_config_choice(accepted, text, &choice, &bytes) < 0) return NULL;
    if (!strncmp(text, choice, bytes)) return text;
    copy = (char *)dsi_config_take(p, bytes + 1);
    memcpy(copy, choice, bytes);
    return copy;
}

/* Stores a number that is whole where the type wants it so. */
static bool dsi_config_store_number(const dsi_config_row *row, char *to, int64_t whole, bool is_whole, double real) {
    size_t size = (size_t)whole;
    if (row->type == DSI_CONFIG_REAL)
        memcpy(to, &real, sizeof real);
    else if (!is_whole)
        return false;
    else if (row->type == DSI_CONFIG_INT)
        memcpy(to, &whole, sizeof whole);
    else if (whole < 0 || (uint64_t)whole > SIZE_MAX)
        return false;
    else
        memcpy(to, &size, sizeof size);
    return true;
}
/* The same for a number that must be in the row's range. */
static bool dsi_config_set_number(const dsi_config_row *row, char *to, int64_t whole, bool is_whole, double real) {
    dsi_config_range range = dsi_config_range_of(row->accepted);
    return dsi_config_in_range(&range, real) && dsi_config_store_number(row, to, whole, is_whole, real);
}

static bool dsi_config_set_ints(dsi_config_parser *p, const dsi_config_row *row, char *to, uint32_t node) {
    const dsi_json *doc = &p->state->doc;
    dsi_config_range range = dsi_config_range_of(row->accepted);
    uint32_t count = doc->nodes[node].length, v = node + 1;
    int64_t *at;
    ds_config_ints ints;
    if (doc->nodes[node].type != DSI_JSON_ARRAY) return false;
    at = (int64_t *)dsi_config_take(p, count * sizeof *at);
    for (uint32_t i = 0; i < count; i++, v = doc->nodes[v].next)
        if (!dsi_json_integer(doc, v, at + i) || !dsi_config_in_range(&range, (double)at[i])) return false;
    ints.at = count ? at : NULL;
    ints.count = count;
    memcpy(to, &ints, sizeof ints);
    return true;
}

/* A list of texts; a single text counts as a list of one, as the documents' defaults ("*") do. */
static bool dsi_config_set_texts(dsi_config_parser *p, char *to, uint32_t node) {
    const dsi_json *doc = &p->state->doc;
    bool single = doc->nodes[node].type == DSI_JSON_STRING;
    uint32_t count = single ? 1 : doc->nodes[node].length, v = single ? node : node + 1;
    const char **at;
    ds_config_texts texts;
    if (!single && doc->nodes[node].type != DSI_JSON_ARRAY) return false;
    at = (const char **)dsi_config_take(p, count * sizeof *at);
    for (uint32_t i = 0; i < count; i++, v = doc->nodes[v].next)
        if (!(at[i] = dsi_json_text(doc, v))) return false;
    texts.at = count ? at : NULL;
    texts.count = count;
    memcpy(to, &texts, sizeof texts);
    return true;
}

static bool dsi_config_set_textlists(dsi_config_parser *p, char *to, uint32_t node) {
    const dsi_json *doc = &p->state->doc;
    uint32_t count = doc->nodes[node].length, v = node + 1;
    ds_config_texts *at;
    ds_config_textlists lists;
    if (doc->nodes[node].type != DSI_JSON_ARRAY) return false;
    at = (ds_config_texts *)dsi_config_take(p, count * sizeof *at);
    for (uint32_t i = 0; i < count; i++, v = doc->nodes[v].next)
        if (!dsi_config_set_texts(p, (char *)(at + i), v)) return false;
    lists.at = count ? at : NULL;
    lists.count = count;
    memcpy(to, &lists, sizeof lists);
    return true;
}

static bool dsi_config_set_json(dsi_config_parser *p, char *to, uint32_t node) {
    ds_json_writer w;
    const char *text;
    memset(&w, 0, sizeof w);
    dsi_config_write_node(&w, &p->state->doc, node);
    w.room = w.length;
    w.out = (char *)dsi_config_take(p, w.length + 1);
    w.length = 0;
    w.comma = false;
    dsi_config_write_node(&w, &p->state->doc, node);
    text = w.out;
    memcpy(to, &text, sizeof text);
    return true;
}

/* Null, where a row admits it: the zero of its type. */
static const size_t dsi_config_sizes[] = {sizeof(bool),
                                          sizeof(int64_t),
                                          sizeof(size_t),
                                          sizeof(double),
                                          2 * sizeof(double),
                                          sizeof(char *),
                                          sizeof(char *),
                                          sizeof(ds_config_device),
                                          sizeof(ds_config_ints),
                                          sizeof(ds_config_texts),
                                          sizeof(ds_config_textlists),
                                          sizeof(ds_config_metrics),
                                          sizeof(ds_config_metrics),
                                          sizeof(ds_config_metrics),
                                          sizeof(ds_config_metrics)};

/* Stores the value of a key, all types but named objects. False: it is not what the row expects. */
static bool dsi_config_set(dsi_config_parser *p, const dsi_config_row *row, char *to, uint32_t node) {
    const dsi_json *doc = &p->state->doc;
    const dsi_json_node *n = doc->nodes + node;
    const char *text = dsi_json_text(doc, node), *choice;
    double pair[2];
    int64_t whole;
    size_t bytes;
    dsi_config_range range;
    ds_config_device device;
    switch (row->type) {
    case DSI_CONFIG_BOOL:
        return n->type == DSI_JSON_FALSE || n->type == DSI_JSON_TRUE ? *(bool *)(void *)to = n->type == DSI_JSON_TRUE,
                                                                                      true : false;
    case DSI_CONFIG_INT:
    case DSI_CONFIG_SIZE:
    case DSI_CONFIG_REAL: {
        bool is_whole = dsi_json_integer(doc, node, &whole);
        return dsi_json_real(doc, node, pair) && dsi_config_set_number(row, to, whole, is_whole, pair[0]);
    }
    case DSI_CONFIG_PAIR:
        range = dsi_config_range_of(row->accepted);
        if (n->type != DSI_JSON_ARRAY || n->length != 2) return false;
        if (!dsi_json_real(doc, node + 1, pair) || !dsi_json_real(doc, doc->nodes[node + 1].next, pair + 1))
            return false;
        if (!dsi_config_in_range(&range, pair[0]) || !dsi_config_in_range(&range, pair[1])) return false;
        memcpy(to, pair, sizeof pair);
        return true;
    case DSI_CONFIG_TEXT:
        text = text ? dsi_config_text(p, row, text) : NULL;
        if (text) memcpy(to, &text, sizeof text);
        return text != NULL;
    case DSI_CONFIG_DEVICE:
        whole = text ? dsi_config_choice(row->accepted, text, &choice, &bytes) : -1;
        device = (ds_config_device)(whole < 0 ? 0 : whole);
        memcpy(to, &device, sizeof device);
        return whole >= 0;
    case DSI_CONFIG_INTS: return dsi_config_set_ints(p, row, to, node);
    case DSI_CONFIG_TEXTS: return dsi_config_set_texts(p, to, node);
    case DSI_CONFIG_TEXTLISTS: return dsi_config_set_textlists(p, to, node);
    default: return dsi_config_set_json(p, to, node);
    }
}

/* Stores a row's default. Lists in the table hold at most three numbers, or "*". */
static void dsi_config_set_default(dsi_config_parser *p, const dsi_config_row *row, char *to, dsi_config_mark *mark) {
    static const char *const all[] = {"*"};
    const char *text = row->initial;
    double real[3];
    size_t count = 0;
    int64_t whole;
    mark->node = DSI_JSON_NONE;
    mark->origin = DS_CONFIG_DEFAULT;
    mark->null = !strcmp(text, "null");
    if (mark->null || row->kind != DSI_CONFIG_IS_KEY) return;
    if (*text == '[' && row->type != DSI_CONFIG_TEXTS)
        for (text++; *text != ']'; text += *text == ',' ? 2 : 0) real[count++] = dsi_config_number(&text, &whole);
    text = row->initial;
    if (row->type == DSI_CONFIG_BOOL)
        *(bool *)(void *)to = *text == 't';
    else if (row->type == DSI_CONFIG_PAIR)
        memcpy(to, real, 2 * sizeof real[0]);
    else if (row->type == DSI_CONFIG_TEXT || row->type == DSI_CONFIG_JSON)
        memcpy(to, &text, sizeof text);
    else if (row->type == DSI_CONFIG_INTS) {
        int64_t *at = (int64_t *)dsi_config_take(p, count * sizeof *at);
        ds_config_ints ints;
        for (size_t i = 0; i < count; i++) at[i] = (int64_t)real[i];
        ints.at = at;
        ints.count = count;
        memcpy(to, &ints, sizeof ints);
    } else if (row->type == DSI_CONFIG_TEXTS && text[1] == '"') {
        ds_config_texts texts;
        texts.at = all;
        texts.count = 1;
        memcpy(to, &texts, sizeof texts);
    } else if (row->type <= DSI_CONFIG_REAL) {
        real[0] = dsi_config_number(&text, &whole);
        dsi_config_store_number(row, to, whole, true, real[0]);
    }
}
static void dsi_config_defaults(dsi_config_parser *p, const dsi_config_scope *scope) {
    for (uint32_t i = 0; i < scope->table->count; i++)
        dsi_config_set_default(p, scope->table->rows + i, scope->object + scope->table->rows[i].offset,
                               scope->marks + i);
}

/* What "auto" stands for in the Hugging Face integration: the value for a key, and the hint it needs (0: none). */
static bool dsi_config_auto_value(const ds_config_hints *h, const char *path, unsigned *hint, double value[2]) {
    static const struct {
        const char *path;
        unsigned hint;
    } sources[] = {{"gradient_clipping", DS_CONFIG_HINT_MAX_GRAD_NORM},
                   {"optimizer.params.lr", DS_CONFIG_HINT_LEARNING_RATE},
                   {"optimizer.params.betas", DS_CONFIG_HINT_BETAS},
                   {"optimizer.params.eps", DS_CONFIG_HINT_EPSILON},
                   {"optimizer.params.weight_decay", DS_CONFIG_HINT_WEIGHT_DECAY},
                   {"scheduler.params.warmup_min_lr", 0},
                   {"scheduler.params.warmup_max_lr", DS_CONFIG_HINT_LEARNING_RATE},
                   {"scheduler.params.warmup_num_steps", DS_CONFIG_HINT_WARMUP_STEPS},
                   {"scheduler.params.total_num_steps", DS_CONFIG_HINT_TRAINING_STEPS},
                   {"zero_optimization.reduce_bucket_size", DS_CONFIG_HINT_HIDDEN_SIZE},
                   {"zero_optimization.stage3_prefetch_bucket_size", DS_CONFIG_HINT_HIDDEN_SIZE},
                   {"zero_optimization.stage3_param_persistence_threshold", DS_CONFIG_HINT_HIDDEN_SIZE},
                   {"fp16.enabled", DS_CONFIG_HINT_FP16},
                   {"bf16.enabled", DS_CONFIG_HINT_BF16}};
    double size = (double)h->hidden_size;
    size_t i = 0, count = sizeof sources / sizeof sources[0];
    while (i < count && strcmp(path, sources[i].path)) i++;
    if (i == count) return false;
    *hint = sources[i].hint;
    value[0] = value[1] = 0;
    switch (i) {
    case 0: value[0] = h->max_grad_norm; break;
    case 1:
    case 6: value[0] = h->learning_rate; break;
    case 2: memcpy(value, h->betas, sizeof h->betas); break;
    case 3: value[0] = h->epsilon; break;
    case 4: value[0] = h->weight_decay; break;
    case 7: value[0] = h->warmup_steps ? (double)h->warmup_steps : 1; break;
    case 8: value[0] = (double)h->training_steps; break;
    case 9: value[0] = size * size; break;
    case 10: value[0] = (double)(int64_t)(0.9 * size * size); break;
    case 11: value[0] = 10 * size; break;
    case 12: value[0] = h->fp16; break;
    case 13: value[0] = h->bf16; break;
    default: break;
    }
    return true;
}
static const char *dsi_config_hint_name(unsigned hint) {
    static const char *const names[] = {"micro_batch",    "accumulation", "max_grad_norm", "learning_rate",
                                        "betas",          "epsilon",      "weight_decay",  "warmup_steps",
                                        "training_steps", "hidden_size",  "fp16",          "bf16"};
    int bit = 0;
    while (!(hint >> bit & 1)) bit++;
    return names[bit];
}

/* The sections in which "auto" without a hint means the default, as DeepSpeed takes it. */
static bool dsi_config_auto_is_default(const char *path) {
    static const char *const sections[] = {"zero_optimization.", "fp16.",  "bf16.",  "comms_logger.",  "tensorboard.",
                                           "csv_monitor.",       "wandb.", "comet.", "hybrid_engine.", "timers."};
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++)
        if (!strncmp(path, sections[i], strlen(sections[i]))) return true;
    return false;
}

/* A key whose value is "auto". The batch keys wait for the resolver. */
static void dsi_config_auto(dsi_config_parser *p, const dsi_config_scope *scope, uint32_t i, uint32_t node) {
    char number[32];
    static const ds_config_hints none = {0, 0, 0, 0, 0, 0, {0, 0}, 0, 0, 0, 0, false, false};
    const ds_config_hints *hints = p->options->hints ? p->options->hints : &none;
    const dsi_config_row *row = scope->table->rows + i;
    char *to = scope->object + row->offset, expected[256];
    double value[2];
    unsigned hint = 0;
    bool right, main_table = scope->table == dsi_config_tables;
    scope->marks[i].node = node;
    scope->marks[i].origin = DS_CONFIG_AUTO;
    if (main_table && i < 3) return;
    if (!main_table || !dsi_config_auto_value(hints, row->path, &hint, value)) {
        if (dsi_config_auto_is_default(row->path)) return;
        dsi_config_say(p, DS_LOG_ERROR, NULL, node, "\"auto\" has no source for this key; expected %s",
                       dsi_config_expected(row, expected));
        return;
    }
    if (hint && !(hints->given & hint)) {
        if (dsi_config_auto_is_default(row->path)) return;
        dsi_config_say(p, DS_LOG_ERROR, row->path, node,
                       "\"auto\" needs the hint \"%s\", which the program did not give", dsi_config_hint_name(hint));
        return;
    }
    scope->marks[i].null = 0;
    if (row->type == DSI_CONFIG_BOOL)
        *(bool *)(void *)to = value[0] != 0;
    else if (row->type == DSI_CONFIG_PAIR)
        memcpy(to, value, sizeof value);
    else {
        right = value[0] == (double)(int64_t)value[0];
        if (!dsi_config_set_number(row, to, (int64_t)value[0], right, value[0]))
            dsi_config_say(p, DS_LOG_ERROR, row->path, node, "the hint \"%s\" is %s, expected %s",
                           dsi_config_hint_name(hint), dsi_config_decimal(value[0], number),
                           dsi_config_expected(row, expected));
    }
}

/* One key with its value. */
static void dsi_config_key(dsi_config_parser *p, const dsi_config_scope *scope, uint32_t i, uint32_t node) {
    const dsi_json *doc = &p->state->doc;
    const dsi_config_row *row = scope->table->rows + i;
    const char *text = dsi_json_text(doc, node);
    char expected[256], got[120], scratch[16];
    dsi_config_mark *mark = scope->marks + i;
    if (text && row->type != DSI_CONFIG_JSON && !strcmp(text, "auto") && row->kind == DSI_CONFIG_IS_KEY &&
        (row->type != DSI_CONFIG_TEXT || dsi_config_auto_is_default(row->path))) {
        dsi_config_auto(p, scope, i, node);
        return;
    }
    mark->node = node;
    mark->origin = DS_CONFIG_GIVEN;
    mark->null = 0;
    if (doc->nodes[node].type == DSI_JSON_NULL && row->accepted[0] == '?') {
        mark->null = 1;
        if (row->kind == DSI_CONFIG_IS_KEY) memset(scope->object + row->offset, 0, dsi_config_sizes[row->type]);
    } else if (row->kind == DSI_CONFIG_IS_OLD && text && !strcmp(text, "auto"))
        mark->null = 1;
    else if (!dsi_config_set(p, row, row->kind == DSI_CONFIG_IS_OLD ? scratch : scope->object + row->offset, node))
        dsi_config_say(p, DS_LOG_ERROR, NULL, node, "expected %s; got %s%s", dsi_config_expected(row, expected),
                       dsi_config_got(doc, node, got), dsi_config_too_wide(row, doc, node) ? ", beyond 64 bits" : "");
}

/* The objects of a key that holds named ones. Their scopes are appended to the state's, which has room for as many as
   the text has braces, and filled later. */
static void dsi_config_named(dsi_config_parser *p, uint32_t i, uint32_t node) {
    const dsi_json *doc = &p->state->doc;
    dsi_config_scope *main = p->state->scopes;
    const dsi_config_row *row = main->table->rows + i;
    int kind = row->type - DSI_CONFIG_METRICS + 1;
    const dsi_config_table *table = dsi_config_tables + kind;
    uint32_t count = doc->nodes[node].length, k = node + 1, named = 0;
    char got[120], expected[256], *objects;
    ds_config_metrics list; /* all four kinds of lists are alike: a pointer and a count */
    if (doc->nodes[node].type != DSI_JSON_OBJECT) {
        if (doc->nodes[node].type != DSI_JSON_NULL)
            dsi_config_say(p, DS_LOG_ERROR, row->path, node, "expected %s; got %s", dsi_config_expected(row, expected),
                           dsi_config_got(doc, node, got));
        return;
    }
    for (uint32_t j = 0; j < count; j++, k = doc->nodes[k + 1].next)
        if (doc->nodes[k + 1].type == DSI_JSON_OBJECT)
            named++;
        else
            dsi_config_say(p, DS_LOG_ERROR, NULL, k + 1, "expected an object; got %s", dsi_config_got(doc, k + 1, got));
    objects = (char *)dsi_config_take(p, named * table->bytes);
    list.at = named ? (const ds_config_metric *)(void *)objects : NULL;
    list.count = named;
    memcpy(main->object + row->offset, &list, sizeof list);
    main->marks[i].node = node;
    main->marks[i].origin = DS_CONFIG_GIVEN;
    main->marks[i].null = 0;
    k = node + 1;
    for (uint32_t j = 0; j < count; j++, k = doc->nodes[k + 1].next) {
        dsi_config_scope *scope = p->state->scopes + p->state->scope_count;
        size_t length = row->length + doc->nodes[k].length + 3;
        const char *name = doc->nodes[k].as.text;
        char *prefix;
        if (doc->nodes[k + 1].type != DSI_JSON_OBJECT) continue;
        prefix = (char *)dsi_config_take(p, length);
        snprintf(prefix, length, "%s.%s.", row->path, name);
        memcpy(objects, &name, sizeof name);
        p->state->scope_count++;
        scope->table = table;
        scope->ends = p->ends[kind];
        scope->object = objects;
        scope->marks = (dsi_config_mark *)dsi_config_take(p, table->count * sizeof(dsi_config_mark));
        scope->prefix = prefix;
        scope->row = i;
        scope->node = k + 1;
        dsi_config_defaults(p, scope);
        objects += table->bytes;
    }
}

/* A section's value. True: it is an object to go into. */
static bool dsi_config_section(dsi_config_parser *p, const dsi_config_scope *scope, uint32_t i, uint32_t node) {
    const dsi_json *doc = &p->state->doc;
    const dsi_config_row *row = scope->table->rows + i;
    uint32_t type = doc->nodes[node].type;
    char got[120];
    if (type == DSI_JSON_NULL && row->status[0] == '?') return false;
    scope->marks[i].node = node;
    if (type == DSI_JSON_OBJECT) return true;
    if (!strcmp(row->path, "zero_optimization") &&
        (type == DSI_JSON_FALSE || type == DSI_JSON_TRUE)) { /* the first vintage's switch for stage 1 */
        dsi_config_mark *mark = dsi_config_mark_of(p, "zero_optimization.stage");
        p->config->zero_optimization.stage = type == DSI_JSON_TRUE;
        mark->node = node;
        mark->origin = DS_CONFIG_GIVEN;
        dsi_config_say(p, DS_LOG_WARNING, row->path, node, "deprecated; write {\"stage\": %d}", type == DSI_JSON_TRUE);
        return false;
    }
    dsi_config_say(p, DS_LOG_ERROR, NULL, node, "expected an object; got %s", dsi_config_got(doc, node, got));
    return false;
}

/* Walks an object of the file along a table. A section in a section is a frame of the stack: the tables are at most
   eight deep. */
static void dsi_config_object(dsi_config_parser *p, uint32_t scope_index, uint32_t root) {
    const dsi_json_node *nodes = p->state->doc.nodes;
    struct {
        uint32_t key, end, row;
    } stack[10];
    int depth = 0;
    stack[0].key = root + 1;
    stack[0].end = nodes[root].next;
    stack[0].row = UINT32_MAX;
    while (depth >= 0) {
        const dsi_config_scope *scope = p->state->scopes + scope_index;
        const dsi_config_row *rows = scope->table->rows;
        uint32_t key = stack[depth].key, open = stack[depth].row, value, i;
        if (key >= stack[depth].end) {
            depth--;
            continue;
        }
        value = key + 1;
        stack[depth].key = nodes[value].next;
        i = dsi_config_find(scope, open, nodes[key].as.text, nodes[key].length);
        if (i == UINT32_MAX && open == UINT32_MAX && !scope_index && !strcmp(nodes[key].as.text, "bfloat16")) {
            i = dsi_config_row_of("bf16");
            if (dsi_json_get(&p->state->doc, root, "bf16") != DSI_JSON_NONE &&
                nodes[dsi_json_get(&p->state->doc, root, "bf16")].type != DSI_JSON_NULL)
                i = UINT32_MAX;
            else
                dsi_config_say(p, DS_LOG_WARNING, "bfloat16", key, "deprecated; write \"bf16\"");
        }
        if (i == UINT32_MAX) {
            if (open == UINT32_MAX || !strstr(rows[open].status, "open")) dsi_config_unknown(p, scope, open, key);
        } else if (rows[i].kind == DSI_CONFIG_IS_OPEN) {
            if (!dsi_config_section(p, scope, i, value)) continue;
            depth++;
            stack[depth].key = value + 1;
            stack[depth].end = nodes[value].next;
            stack[depth].row = i;
        } else if (rows[i].type >= DSI_CONFIG_METRICS)
            dsi_config_named(p, i, value);
        else
            dsi_config_key(p, scope, i, value);
    }
}

/* What JSON admits and a configuration does not: a key twice, and a zero byte in a text. */
static void dsi_config_soundness(dsi_config_parser *p) {
    const dsi_json *doc = &p->state->doc;
    char *mark = p->arena;
    for (uint32_t at = 0; at < doc->count; at++) {
        const dsi_json_node *n = doc->nodes + at;
        uint32_t *order = NULL, found = 0;
        if (n->type == DSI_JSON_STRING && memchr(n->as.text, 0, n->length))
            dsi_config_say(p, DS_LOG_ERROR, NULL, at, "a text with a zero byte (\\u0000)");
        if (n->type != DSI_JSON_OBJECT) continue;
        if (n->length > 16) order = (uint32_t *)dsi_config_take(p, n->length * sizeof *order);
        while (p->said <= DSI_CONFIG_MOST_PROBLEMS &&
               (found = dsi_config_repeated(doc, at, order, found)) != DSI_JSON_NONE)
            dsi_config_say(p, DS_LOG_ERROR, NULL, found, "duplicate key");
        p->arena = mark;
    }
}

/* >>resolver */

/* A value that other keys determine; it counts as derived unless the file gave it. */
static void dsi_config_derived(const dsi_config_parser *p, const char *path) {
    dsi_config_mark *mark = dsi_config_mark_of(p, path);
    if (mark->origin != DS_CONFIG_AUTO) mark->origin = DS_CONFIG_DERIVED;
    mark->null = 0;
}
static bool dsi_config_null(const dsi_config_parser *p, const char *path) {
    return dsi_config_mark_of(p, path)->null;
}
/* A key of the main table that is null, from others. */
#define DSI_CONFIG_DERIVE(p, key, value)                                                                               \
    do {                                                                                                               \
        if (!dsi_config_null(p, #key)) break;                                                                          \
        (p)->config->key = value;                                                                                      \
        dsi_config_derived(p, #key);                                                                                   \
    } while (0)

/* The former spellings: each replaces its new key, and giving both is a contradiction. */
static void dsi_config_old_keys(dsi_config_parser *p) {
    const dsi_config_mark *marks = p->state->scopes[0].marks;
    for (uint32_t i = 0; i < DSI_CONFIG_MAIN_ROWS; i++) {
        const dsi_config_row *row = dsi_config_rows + i;
        const char *section = "zero_optimization.offload_optimizer";
        char *object = (char *)p->config;
        uint32_t target;
        bool offload, on;
        if (row->kind != DSI_CONFIG_IS_OLD || marks[i].node == DSI_JSON_NONE) continue;
        target = dsi_config_row_of(row->status);
        offload = dsi_config_rows[target].type == DSI_CONFIG_DEVICE;
        on = p->state->doc.nodes[marks[i].node].type == DSI_JSON_TRUE;
        if (!strcmp(row->path, "zero_optimization.cpu_offload_param")) section = "zero_optimization.offload_param";
        dsi_config_say(p, DS_LOG_WARNING, row->path, marks[i].node, "deprecated; write \"%s\"", row->status);
        if (offload ? dsi_config_given(p, section) : marks[target].node != DSI_JSON_NONE) {
            dsi_config_say(p, DS_LOG_ERROR, row->path, marks[i].node, "given together with \"%s\", which replaces it",
                           offload ? section : row->status);
            continue;
        }
        if (marks[i].null) continue;
        if (offload) {
            ds_config_device device = on ? DS_CONFIG_CPU : DS_CONFIG_NONE;
            memcpy(object + dsi_config_rows[target].offset, &device, sizeof device);
        } else if (!dsi_config_set(p, row, object + dsi_config_rows[target].offset, marks[i].node))
            continue; /* said already */
        p->state->scopes[0].marks[target].node = marks[i].node;
        p->state->scopes[0].marks[target].origin = DS_CONFIG_GIVEN;
    }
}

/* Appends a triple that multiplies out, unless it is of no sample or exceeds size_t. */
static void dsi_config_offer(char out[500], size_t micro, size_t steps, size_t world) {
    size_t used = strlen(out), total = dsi_mul(dsi_mul(micro, steps), world);
    char one[100];
    snprintf(one, sizeof one, "%zu = %zu * %zu * %zu", total, micro, steps, world);
    if (total && total != SIZE_MAX && !strstr(out, one))
        snprintf(out + used, 500 - used, "%s%s", used ? ", " : "", one);
}
/* A rank's share of samples, in micro batches of the divisor that is nearest to `micro`. */
static void dsi_config_offer_share(char out[500], size_t share, size_t micro, size_t world) {
    size_t best = 1;
    for (size_t d = 1; d <= share && d <= dsi_add(micro, micro) && d <= 1000000; d++)
        if (share % d == 0 && (d > micro ? d - micro : micro - d) < (best > micro ? best - micro : micro - best))
            best = d;
    if (share) dsi_config_offer(out, best, share / best, world);
}

/* A contradiction is answered with the nearest triples: that of micro batch and accumulation; of the total, or where the
   ranks cannot share it of the nearest totals below and above; and of the micro batch, with the total rounded both ways. */
static void dsi_config_mismatch(dsi_config_parser *p, const char *path, size_t total, size_t micro, size_t steps) {
    char offers[500] = "";
    size_t world = p->config->world_size, rank = total / world, low;
    if (!micro) micro = 1;
    if (!steps) steps = 1;
    dsi_config_offer(offers, micro, steps, world);
    dsi_config_offer_share(offers, rank, micro, world);
    if (total % world) dsi_config_offer_share(offers, rank + 1, micro, world);
    low = total / dsi_mul(micro, world);
    if (low != steps) dsi_config_offer(offers, micro, low, world);
    if (low + 1 != steps) dsi_config_offer(offers, micro, low + 1, world);
    DSI_CONFIG_REFUSE(
        p, path,
        "train_batch_size %zu is not train_micro_batch_size_per_gpu %zu * gradient_accumulation_steps %zu * "
        "world size %zu; these work: %s",
        total, micro, steps, world, offers);
}

/* A batch key that is "auto": from its hint, or left to the two others. */
static void dsi_config_batch_hint(dsi_config_parser *p, const char *path, unsigned hint, size_t *value) {
    const ds_config_hints *h = p->options->hints;
    dsi_config_mark *mark = dsi_config_mark_of(p, path);
    if (mark->origin != DS_CONFIG_AUTO || !h || !(h->given & hint)) return;
    *value = hint == DS_CONFIG_HINT_MICRO_BATCH ? h->micro_batch : h->accumulation;
    mark->null = 0;
    if (!*value) DSI_CONFIG_REFUSE(p, path, "the hint \"%s\" is 0, expected at least 1", dsi_config_hint_name(hint));
}

/* "auto" without its hint is right only where the two others tell. */
static void dsi_config_batch_open(dsi_config_parser *p, const char *path, unsigned hint, bool told) {
    if (told || dsi_config_mark_of(p, path)->origin != DS_CONFIG_AUTO || !dsi_config_null(p, path)) return;
    DSI_CONFIG_REFUSE(p, path, "\"auto\" needs the hint \"%s\", which the program did not give",
                      dsi_config_hint_name(hint));
}

/* train_batch_size = micro batch * accumulation * world size. A key that is in the file and null, or was refused, is 0. */
static void dsi_config_batch(dsi_config_parser *p) {
    static const char *const total_key = "train_batch_size", *const micro_key = "train_micro_batch_size_per_gpu",
                             *const steps_key = "gradient_accumulation_steps";
    ds_config *c = p->config;
    size_t world = c->world_size, total, micro, steps;
    size_t errors = p->errors;
    dsi_config_batch_hint(p, micro_key, DS_CONFIG_HINT_MICRO_BATCH, &c->train_micro_batch_size_per_gpu);
    dsi_config_batch_hint(p, steps_key, DS_CONFIG_HINT_ACCUMULATION, &c->gradient_accumulation_steps);
    if (p->errors > errors) return;
    total = c->train_batch_size;
    micro = c->train_micro_batch_size_per_gpu;
    steps = c->gradient_accumulation_steps;
    if ((!total && !dsi_config_null(p, total_key)) || (!micro && !dsi_config_null(p, micro_key)) ||
        (!steps && !dsi_config_null(p, steps_key)))
        return; /* refused, and said so, already */
    dsi_config_batch_open(p, micro_key, DS_CONFIG_HINT_MICRO_BATCH, total && steps);
    dsi_config_batch_open(p, steps_key, DS_CONFIG_HINT_ACCUMULATION, total && micro);
    if (p->errors > errors) return;
    if (!total && !micro) {
        if (dsi_config_mark_of(p, total_key)->origin == DS_CONFIG_AUTO)
            dsi_config_say(p, DS_LOG_ERROR, micro_key, dsi_config_mark_of(p, micro_key)->node,
                           "\"auto\" needs the hint \"micro_batch\", which the program did not give");
        else
            dsi_config_say(p, DS_LOG_ERROR, total_key, dsi_config_mark_of(p, total_key)->node,
                           "needed: train_batch_size or train_micro_batch_size_per_gpu%s",
                           steps ? " (gradient_accumulation_steps alone does not tell the batch)" : "");
        return;
    }
    if (total && total < world) {
        DSI_CONFIG_REFUSE(p, total_key, "%zu samples do not give each of %zu ranks one", total, world);
        return;
    }
    if (!total) {
        if (!steps) c->gradient_accumulation_steps = steps = 1, dsi_config_derived(p, steps_key);
        c->train_batch_size = dsi_mul(dsi_mul(micro, steps), world);
        dsi_config_derived(p, total_key);
        if (c->train_batch_size > INT64_MAX) DSI_CONFIG_REFUSE(p, micro_key, "the batch of all ranks exceeds 64 bits");
        return;
    }
    if (!steps && !micro) c->gradient_accumulation_steps = steps = 1, dsi_config_derived(p, steps_key);
    if (!steps) c->gradient_accumulation_steps = steps = total / micro / world, dsi_config_derived(p, steps_key);
    if (!micro) c->train_micro_batch_size_per_gpu = micro = total / steps / world, dsi_config_derived(p, micro_key);
    if (dsi_mul(dsi_mul(micro, steps), world) != total) dsi_config_mismatch(p, total_key, total, micro, steps);
}

/* What each optimizer and scheduler takes, and where its defaults differ from the table's. */
typedef struct dsi_config_kind {
    const char *name, *params;
    bool lower;      /* DeepSpeed implements it under its name in lower case */
    unsigned states; /* tensors for each parameter: itself, its gradient and what the optimizer keeps */
} dsi_config_kind;
static const dsi_config_kind dsi_config_optimizers[] = {
    {"adam", " lr betas eps weight_decay amsgrad torch_adam adam_w_mode bias_correction ", true, 4},
    {"adamw", " lr betas eps weight_decay amsgrad torch_adam adam_w_mode bias_correction ", true, 4},
    {"lamb", " lr betas eps weight_decay amsgrad bias_correction eps_inside_sqrt max_grad_norm max_coeff min_coeff ",
     true, 4},
    {"lion", " lr betas weight_decay ", true, 3},
    {"adagrad", " lr eps weight_decay ", true, 3},
    {"muon", " lr betas eps weight_decay momentum nesterov muon_lr adam_lr ns_steps ", true, 4},
    {"onebitadam",
     " lr betas eps weight_decay amsgrad bias_correction eps_inside_sqrt max_grad_norm freeze_step cuda_aware "
     "comm_backend_name ",
     true, 4},
    {"onebitlamb",
     " lr betas eps weight_decay amsgrad bias_correction eps_inside_sqrt max_grad_norm max_coeff min_coeff freeze_step "
     "cuda_aware comm_backend_name coeff_beta factor_max factor_min factor_threshold ",
     true, 4},
    {"zerooneadam",
     " lr betas eps weight_decay amsgrad bias_correction eps_inside_sqrt max_grad_norm var_freeze_step "
     "var_update_scaler "
     "local_step_scaler local_step_clipper cuda_aware comm_backend_name ",
     true, 4},
    {"SGD", " lr weight_decay momentum dampening nesterov ", false, 3}};
static const dsi_config_kind dsi_config_schedulers[] = {
    {"WarmupLR", " warmup_min_lr warmup_max_lr warmup_num_steps warmup_type last_batch_iteration ", false, 0},
    {"WarmupDecayLR", " warmup_min_lr warmup_max_lr warmup_num_steps warmup_type total_num_steps last_batch_iteration ",
     false, 0},
    {"WarmupCosineLR",
     " total_num_steps warmup_min_ratio warmup_num_steps cos_min_ratio warmup_type last_batch_iteration ", false, 0},
    {"OneCycle",
     " cycle_min_lr cycle_max_lr decay_lr_rate cycle_first_step_size cycle_second_step_size cycle_first_stair_count "
     "cycle_second_stair_count decay_step_size cycle_momentum cycle_min_mom cycle_max_mom decay_mom_rate "
     "last_batch_iteration ",
     false, 0},
    {"LRRangeTest",
     " lr_range_test_min_lr lr_range_test_step_size lr_range_test_step_rate lr_range_test_staircase "
     "last_batch_iteration ",
     false, 0}};
#define DSI_CONFIG_OPTIMIZERS (sizeof dsi_config_optimizers / sizeof dsi_config_optimizers[0])
#define DSI_CONFIG_SCHEDULERS (sizeof dsi_config_schedulers / sizeof dsi_config_schedulers[0])

/* The kind of a name, in any case; NULL: foreign, or none. */
static const dsi_config_kind *dsi_config_kind_of(const char *name, bool scheduler) {
    const dsi_config_kind *kinds = scheduler ? dsi_config_schedulers : dsi_config_optimizers;
    size_t count = scheduler ? DSI_CONFIG_SCHEDULERS : DSI_CONFIG_OPTIMIZERS;
    for (size_t i = 0; name && i < count; i++) {
        size_t n = strlen(kinds[i].name);
        if (strlen(name) == n && dsi_config_common(kinds[i].name, name, n, true) == n) return kinds + i;
    }
    return NULL;
}
static bool dsi_config_takes(const dsi_config_kind *kind, const char *param) {
    const char *at = kind->params;
    size_t length = strlen(param);
    if (!length || strchr(param, ' ')) return false;
    for (; (at = strstr(at, param)) != NULL; at++)
        if (at[-1] == ' ' && at[length] == ' ') return true;
    return false;
}

/* Parameters given that the kind does not take; the kinds that do are named. */
static void dsi_config_params(dsi_config_parser *p, const dsi_config_kind *kind, bool scheduler) {
    const char *section = scheduler ? "scheduler.params" : "optimizer.params";
    const dsi_config_kind *kinds = scheduler ? dsi_config_schedulers : dsi_config_optimizers;
    size_t count = scheduler ? DSI_CONFIG_SCHEDULERS : DSI_CONFIG_OPTIMIZERS;
    uint32_t open = dsi_config_row_of(section), object = p->state->scopes[0].marks[open].node, k = object + 1;
    const dsi_json_node *nodes = p->state->doc.nodes;
    if (object == DSI_JSON_NONE || nodes[object].type != DSI_JSON_OBJECT) return;
    for (uint32_t i = 0; i < nodes[object].length; i++, k = nodes[k + 1].next) {
        char names[160];
        size_t used = 0;
        const char *name = nodes[k].as.text;
        bool whole = strlen(name) == nodes[k].length; /* no NUL in it */
        if (whole && dsi_config_takes(kind, name)) continue;
        for (size_t j = 0; whole && j < count; j++)
            if (dsi_config_takes(kinds + j, name))
                used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", kinds[j].name);
        if (used && !strcmp(name, "max_grad_norm"))
            dsi_config_say(p, DS_LOG_ERROR, NULL, k, "no parameter of %s; write \"gradient_clipping\" at the top level",
                           kind->name);
        else if (used)
            dsi_config_say(p, DS_LOG_ERROR, NULL, k, "no parameter of %s; it belongs to %s", kind->name, names);
        else
            dsi_config_unknown(p, p->state->scopes, open, k);
    }
}

static void dsi_config_optimizer(dsi_config_parser *p) {
    ds_config *c = p->config;
    const dsi_config_kind *kind = dsi_config_kind_of(c->optimizer.type, false);
    bool own_lr = dsi_config_given(p, "optimizer.params.lr");
    if (kind) {
        c->optimizer.type = kind->lower ? kind->name : c->optimizer.type;
        dsi_config_params(p, kind, false);
        if (!strcmp(kind->name, "adagrad")) {
            if (!own_lr) c->optimizer.params.lr = 0.01;
            if (!dsi_config_given(p, "optimizer.params.eps")) c->optimizer.params.eps = 1e-10;
        }
        if (!strcmp(kind->name, "muon")) {
            if (!own_lr) c->optimizer.params.lr = 0.02;
            if (!dsi_config_given(p, "optimizer.params.momentum")) c->optimizer.params.momentum = 0.95;
            if (!dsi_config_given(p, "optimizer.params.nesterov")) c->optimizer.params.nesterov = true;
        }
        if (!strncmp(kind->name, "onebit", 6) || !strcmp(kind->name, "zerooneadam"))
            if (c->zero_optimization.stage > 0)
                DSI_CONFIG_REFUSE(p, "optimizer.type",
                                  "%s compresses what ZeRO partitions: it needs zero_optimization.stage 0; got %d",
                                  kind->name, (int)c->zero_optimization.stage);
    }
    if (kind && c->zero_optimization.offload_optimizer.device == DS_CONFIG_NVME &&
        c->zero_optimization.offload_optimizer.buffer_count < kind->states)
        DSI_CONFIG_DOUBT(p, "zero_optimization.offload_optimizer.buffer_count",
                         "should be at least %u: what %s has for each parameter", kind->states, kind->name);
    if (!c->optimizer.type) return;
    DSI_CONFIG_DERIVE(p, optimizer.params.muon_lr, c->optimizer.params.lr);
    DSI_CONFIG_DERIVE(p, optimizer.params.adam_lr, c->optimizer.params.lr);
}

static void dsi_config_scheduler(dsi_config_parser *p) {
    ds_config *c = p->config;
    const dsi_config_kind *kind;
    static const char *const needed[3][2] = {{"scheduler.params.total_num_steps", "total_num_steps"},
                                             {"scheduler.params.cycle_min_lr", "cycle_min_lr"},
                                             {"scheduler.params.cycle_max_lr", "cycle_max_lr"}};
    if (c->scheduler.type && !strcmp(c->scheduler.type, "1Cycle")) {
        dsi_config_say(p, DS_LOG_WARNING, "scheduler.type", dsi_config_mark_of(p, "scheduler.type")->node,
                       "deprecated; write \"OneCycle\"");
        c->scheduler.type = "OneCycle";
    }
    kind = dsi_config_kind_of(c->scheduler.type, true);
    if (!kind) return;
    c->scheduler.type = kind->name;
    dsi_config_params(p, kind, true);
    for (int i = 0; i < 3; i++)
        if (dsi_config_takes(kind, needed[i][1]) && !dsi_config_given(p, needed[i][0]))
            dsi_config_say(p, DS_LOG_ERROR, needed[i][0], dsi_config_mark_of(p, "scheduler.type")->node, "needed by %s",
                           kind->name);
    if (strcmp(c->scheduler.params.warmup_type, "log") != 0 && strcmp(c->scheduler.params.warmup_type, "linear") != 0) {
        DSI_CONFIG_DOUBT(p, "scheduler.params.warmup_type", "should be log or linear; \"%.40s\" is taken as log",
                         c->scheduler.params.warmup_type);
        c->scheduler.params.warmup_type = "log";
    }
    if (!strcmp(kind->name, "WarmupDecayLR"))
        DSI_CONFIG_DERIVE(p, scheduler.params.warmup_max_lr, 0.001);
    else if (c->optimizer.type)
        DSI_CONFIG_DERIVE(p, scheduler.params.warmup_max_lr, c->optimizer.params.lr);
    DSI_CONFIG_DERIVE(p, scheduler.params.cycle_second_step_size, c->scheduler.params.cycle_first_step_size);
    DSI_CONFIG_DERIVE(p, scheduler.params.cycle_second_stair_count, c->scheduler.params.cycle_first_stair_count);
}

/* >>rules: what the documents say about several keys at once */
static void dsi_config_precision(dsi_config_parser *p) {
    const ds_config *c = p->config;
    if (c->fp16.enabled && c->bf16.enabled)
        DSI_CONFIG_REFUSE(p, "bf16.enabled", "bf16 cannot be combined with fp16 (fp16.enabled is true too)");
    if (c->amp.enabled && c->fp16.enabled)
        DSI_CONFIG_REFUSE(p, "amp.enabled", "amp cannot be combined with fp16 (fp16.enabled is true too)");
    if (c->amp.enabled && c->bf16.enabled)
        DSI_CONFIG_REFUSE(p, "amp.enabled", "amp cannot be combined with bf16 (bf16.enabled is true too)");
    if (c->amp.enabled && c->zero_optimization.stage > 0)
        DSI_CONFIG_REFUSE(p, "amp.enabled", "amp is not compatible with ZeRO; zero_optimization.stage is %d",
                          (int)c->zero_optimization.stage);
    if (c->fp16.enabled && c->fp16.loss_scale == 0) {
        if (c->fp16.loss_scale_window <= 0)
            DSI_CONFIG_REFUSE(p, "fp16.loss_scale_window", "expected at least 1 with dynamic loss scaling; got %lld",
                              (long long)c->fp16.loss_scale_window);
        if (c->fp16.min_loss_scale <= 0)
            DSI_CONFIG_REFUSE(p, "fp16.min_loss_scale", "expected at least 1 with dynamic loss scaling; got %lld",
                              (long long)c->fp16.min_loss_scale);
        if (c->fp16.initial_scale_power > 1023)
            DSI_CONFIG_REFUSE(p, "fp16.initial_scale_power",
                              "2 to the power of %lld is no finite scale; expected at most 1023",
                              (long long)c->fp16.initial_scale_power);
    }
    if (c->fp16.fp16_master_weights_and_grads && (c->zero_optimization.stage != 2 || !c->fp16.enabled))
        DSI_CONFIG_REFUSE(p, "fp16.fp16_master_weights_and_grads", "needs fp16.enabled and zero_optimization.stage 2");
    if (c->bf16.bf16_optimizer_states && !c->bf16.bf16_master_weights_and_grads)
        DSI_CONFIG_REFUSE(p, "bf16.bf16_optimizer_states", "needs bf16.bf16_master_weights_and_grads");
}

static void dsi_config_offload(dsi_config_parser *p, const char *path, ds_config_device device, const char *nvme_path,
                               int64_t least) {
    char key[80];
    int64_t stage = p->config->zero_optimization.stage;
    snprintf(key, sizeof key, "zero_optimization.%s.device", path);
    if (device == DS_CONFIG_NONE) return;
    if (stage < least)
        DSI_CONFIG_REFUSE(p, key, "%s needs ZeRO stage %d%s; zero_optimization.stage is %d",
                          device == DS_CONFIG_NVME ? "nvme" : "cpu", (int)least, least < 3 ? " or higher" : "",
                          (int)stage);
    if (device == DS_CONFIG_NVME && (!nvme_path || !*nvme_path)) {
        snprintf(key, sizeof key, "zero_optimization.%s.device", path);
        DSI_CONFIG_REFUSE(p, key, "\"nvme\" needs nvme_path, the folder of the swap files");
    }
}

static void dsi_config_zero(dsi_config_parser *p) {
    char number[32];
    ds_config *c = p->config;
    int64_t stage = c->zero_optimization.stage;
    size_t hpz = c->zero_optimization.zero_hpz_partition_size;
    ds_config_device device = c->zero_optimization.offload_optimizer.device;
    dsi_config_offload(p, "offload_param", c->zero_optimization.offload_param.device,
                       c->zero_optimization.offload_param.nvme_path, 3);
    dsi_config_offload(p, "offload_optimizer", device, c->zero_optimization.offload_optimizer.nvme_path,
                       device == DS_CONFIG_NVME ? 3 : 1);
    if (c->zero_optimization.offload_optimizer.ratio < 1 && stage < 3)
        DSI_CONFIG_REFUSE(p, "zero_optimization.offload_optimizer.ratio",
                          "%s needs ZeRO stage 3; zero_optimization.stage is %d",
                          dsi_config_decimal(c->zero_optimization.offload_optimizer.ratio, number), (int)stage);
    if (hpz > 1 && c->world_size % hpz)
        DSI_CONFIG_REFUSE(p, "zero_optimization.zero_hpz_partition_size", "%zu ranks do not divide the world size %zu",
                          hpz, c->world_size);
    if (c->zero_optimization.mics_shard_size > 0 && c->world_size % (size_t)c->zero_optimization.mics_shard_size)
        DSI_CONFIG_REFUSE(p, "zero_optimization.mics_shard_size", "%lld ranks do not divide the world size %zu",
                          (long long)c->zero_optimization.mics_shard_size, c->world_size);
    if (stage == 3 && !strcmp(c->gradient_allreduce_op, "sum"))
        DSI_CONFIG_REFUSE(p, "gradient_allreduce_op", "\"sum\" is not possible at ZeRO stage 3; expected \"mean\"");
    DSI_CONFIG_DERIVE(p, zero_optimization.overlap_comm, stage == 3);
    if (!c->zero_optimization.compute_grad_norm && stage != 1 && stage != 2)
        DSI_CONFIG_REFUSE(p, "zero_optimization.compute_grad_norm",
                          "false needs ZeRO stage 1 or 2; zero_optimization.stage is %d", (int)stage);
    if (c->world_size & (c->world_size - 1) && c->ds.world_invariant)
        DSI_CONFIG_REFUSE(p, "ds.world_invariant", "needs a world size that is a power of two; got %zu", c->world_size);
    if (c->ds.world_invariant && c->ds.native_reduce)
        DSI_CONFIG_REFUSE(p, "ds.native_reduce", "cannot be combined with ds.world_invariant");
    if (c->zero_optimization.round_robin_gradients && stage != 1 && stage != 2)
        DSI_CONFIG_DOUBT(p, "zero_optimization.round_robin_gradients", "acts at ZeRO stages 1 and 2; stage is %d",
                         (int)stage);
    if (c->activation_checkpointing.cpu_checkpointing && !c->activation_checkpointing.partition_activations)
        DSI_CONFIG_DOUBT(p, "activation_checkpointing.cpu_checkpointing", "acts with partition_activations only");
    if (c->ds.reduce_at_boundary && stage > 1)
        DSI_CONFIG_REFUSE(p, "ds.reduce_at_boundary", "stage %d reduces each micro-batch; expected stage 0 or 1",
                          (int)stage);
}

static void dsi_config_attention(dsi_config_parser *p) {
    const ds_config *c = p->config;
    const ds_config_ints *from = &c->sparse_attention.global_block_indices,
                         *to = &c->sparse_attention.global_block_end_indices;
    if (!dsi_config_given(p, "sparse_attention")) return;
    if (!dsi_config_null(p, "sparse_attention.global_block_end_indices") && to->count != from->count)
        DSI_CONFIG_REFUSE(p, "sparse_attention.global_block_end_indices",
                          "must be as long as global_block_indices: %zu; got %zu", from->count, to->count);
    for (size_t i = 0; i < to->count && i < from->count; i++)
        if (to->at[i] <= from->at[i]) {
            DSI_CONFIG_REFUSE(p, "sparse_attention.global_block_end_indices",
                              "each must be above its global_block_indices; got %lld for %lld", (long long)to->at[i],
                              (long long)from->at[i]);
            break;
        }
    if (c->sparse_attention.horizontal_global_attention && strcmp(c->sparse_attention.attention, "bidirectional"))
        DSI_CONFIG_REFUSE(p, "sparse_attention.horizontal_global_attention",
                          "valid only if attention is \"bidirectional\"");
    if (c->sparse_attention.num_different_global_patterns > 1 && !c->sparse_attention.different_layout_per_head)
        DSI_CONFIG_REFUSE(p, "sparse_attention.num_different_global_patterns",
                          "more than 1 needs different_layout_per_head");
    if (!strcmp(c->sparse_attention.mode, "fixed")) {
        if (!c->sparse_attention.num_global_blocks ||
            c->sparse_attention.num_local_blocks % c->sparse_attention.num_global_blocks)
            DSI_CONFIG_REFUSE(p, "sparse_attention.num_global_blocks", "must divide num_local_blocks %zu; got %zu",
                              c->sparse_attention.num_local_blocks, c->sparse_attention.num_global_blocks);
        else if (c->sparse_attention.num_different_global_patterns >
                 c->sparse_attention.num_local_blocks / c->sparse_attention.num_global_blocks)
            DSI_CONFIG_REFUSE(p, "sparse_attention.num_different_global_patterns",
                              "at most num_local_blocks / num_global_blocks = %zu; got %zu",
                              c->sparse_attention.num_local_blocks / c->sparse_attention.num_global_blocks,
                              c->sparse_attention.num_different_global_patterns);
    }
}

/* What a curriculum's schedule needs; `m` has the fields of a metric, as the legacy section does. Warnings: DeepSpeed takes
   the text, and stops when the schedule is made. */
static void dsi_config_curriculum(dsi_config_parser *p, const ds_config_metric *m, const char *prefix, uint32_t node) {
    const char *type = m->schedule_type, *missing = NULL;
    char path[200];
    bool discrete = type && !strcmp(type, "fixed_discrete"), root = type && !strcmp(type, "fixed_root");
    if (type && !strcmp(type, "custom")) return;
    if (!type)
        missing = "schedule_type";
    else if (discrete && !m->schedule_config.difficulty.count)
        missing = "schedule_config.difficulty";
    else if (!discrete && !m->max_difficulty)
        missing = "max_difficulty";
    else if (!discrete && !m->schedule_config.total_curriculum_step)
        missing = "schedule_config.total_curriculum_step";
    else if (!discrete && !m->schedule_config.difficulty_step)
        missing = "schedule_config.difficulty_step";
    else if (root && !m->schedule_config.root_degree)
        missing = "schedule_config.root_degree";
    snprintf(path, sizeof path, "%s%s", prefix, missing ? missing : "max_difficulty");
    if (missing)
        dsi_config_say(p, DS_LOG_WARNING, path, node, "needed by %s", type ? type : "a curriculum that is enabled");
    else if (!discrete && m->max_difficulty < m->min_difficulty)
        dsi_config_say(p, DS_LOG_WARNING, path, node, "must not be less than min_difficulty %lld; got %lld",
                       (long long)m->min_difficulty, (long long)m->max_difficulty);
    if (!discrete || missing || m->schedule_config.max_step.count + 1 == m->schedule_config.difficulty.count) return;
    snprintf(path, sizeof path, "%sschedule_config.max_step", prefix);
    dsi_config_say(p, DS_LOG_WARNING, path, node, "must be one shorter than difficulty, whose length is %zu; got %zu",
                   m->schedule_config.difficulty.count, m->schedule_config.max_step.count);
}
static void dsi_config_curricula(dsi_config_parser *p) {
    const ds_config *c = p->config;
    uint32_t row = dsi_config_row_of("data_efficiency.data_sampling.curriculum_learning.curriculum_metrics");
    if (c->curriculum_learning.enabled) {
        ds_config_metric legacy;
        memset(&legacy, 0, sizeof legacy);
        legacy.schedule_type = c->curriculum_learning.schedule_type;
        legacy.min_difficulty = c->curriculum_learning.min_difficulty;
        legacy.max_difficulty = c->curriculum_learning.max_difficulty;
        legacy.schedule_config.total_curriculum_step = c->curriculum_learning.schedule_config.total_curriculum_step;
        legacy.schedule_config.difficulty_step = c->curriculum_learning.schedule_config.difficulty_step;
        legacy.schedule_config.root_degree = c->curriculum_learning.schedule_config.root_degree;
        legacy.schedule_config.difficulty = c->curriculum_learning.schedule_config.difficulty;
        legacy.schedule_config.max_step = c->curriculum_learning.schedule_config.max_step;
        dsi_config_curriculum(p, &legacy, "curriculum_learning.", dsi_config_mark_of(p, "curriculum_learning")->node);
    }
    for (uint32_t s = 1; c->data_efficiency.data_sampling.curriculum_learning.enabled && s < p->state->scope_count;
         s++) {
        const dsi_config_scope *scope = p->state->scopes + s;
        if (scope->row == row)
            dsi_config_curriculum(p, (const ds_config_metric *)(void *)scope->object, scope->prefix, scope->node);
    }
}

static void dsi_config_routing(dsi_config_parser *p) {
    const ds_config *c = p->config;
    const ds_config_ints *ids = &c->data_efficiency.data_routing.random_ltd.random_ltd_layer_id;
    const size_t layers = c->data_efficiency.data_routing.random_ltd.random_ltd_layer_num,
                 all = c->data_efficiency.data_routing.random_ltd.total_layer_num,
                 low = c->data_efficiency.data_routing.random_ltd.random_ltd_schedule.min_value,
                 high = c->data_efficiency.data_routing.random_ltd.random_ltd_schedule.max_value;
    if (!c->data_efficiency.data_routing.random_ltd.enabled) return;
    if (layers != ids->count)
        DSI_CONFIG_REFUSE(p, "data_efficiency.data_routing.random_ltd.random_ltd_layer_id",
                          "the length must be random_ltd_layer_num %zu; got %zu", layers, ids->count);
    for (size_t i = 0; all && i < ids->count; i++)
        if ((size_t)ids->at[i] >= all) {
            DSI_CONFIG_DOUBT(p, "data_efficiency.data_routing.random_ltd.random_ltd_layer_id",
                             "must be below total_layer_num %zu; got %lld", all, (long long)ids->at[i]);
            break;
        }
    if (high < low)
        DSI_CONFIG_DOUBT(p, "data_efficiency.data_routing.random_ltd.random_ltd_schedule.max_value",
                         "must not be less than min_value %zu; got %zu", low, high);
}

static void dsi_config_data(dsi_config_parser *p) {
    const ds_config *c = p->config;
    dsi_config_curricula(p);
    dsi_config_routing(p);
    if (c->data_efficiency.data_sampling.curriculum_learning.enabled &&
        !c->data_efficiency.data_sampling.curriculum_learning.curriculum_metrics.count)
        DSI_CONFIG_REFUSE(p, "data_efficiency.data_sampling.curriculum_learning.curriculum_metrics",
                          "needed when curriculum_learning is enabled");
    if (c->data_efficiency.data_sampling.dynamic_batching.enabled &&
        !c->data_efficiency.data_sampling.dynamic_batching.max_tokens)
        DSI_CONFIG_REFUSE(p, "data_efficiency.data_sampling.dynamic_batching.max_tokens",
                          "needed when dynamic_batching is enabled");
    if (c->autotuning.results_dir && !*c->autotuning.results_dir)
        DSI_CONFIG_REFUSE(p, "autotuning.results_dir", "expected a folder; got an empty text");
    if (c->autotuning.end_profile_step < c->autotuning.start_profile_step)
        DSI_CONFIG_REFUSE(p, "autotuning.end_profile_step", "must not be less than start_profile_step %lld; got %lld",
                          (long long)c->autotuning.start_profile_step, (long long)c->autotuning.end_profile_step);
    if (c->comet.enabled && c->comet.experiment_key) {
        size_t n = strlen(c->comet.experiment_key);
        bool plain = true;
        for (const char *s = c->comet.experiment_key; *s; s++)
            plain = plain && ((*s >= '0' && *s <= '9') || ((*s | 32) >= 'a' && (*s | 32) <= 'z'));
        if (n < 32 || n > 50 || !plain)
            DSI_CONFIG_DOUBT(p, "comet.experiment_key", "Comet wants 32 to 50 letters and digits; got %zu characters",
                             n);
    }
}

/* Elastic batch sizes, as DeepSpeed computes them: candidates are each micro batch, and their least common multiple,
   times the largest highly composite number that fits; the one that suits most counts of nodes (version 0.1: GPUs) from
   `low` to `high` wins. */
static bool dsi_config_suits(const ds_config_ints *micros, size_t batch, size_t nodes) {
    for (size_t i = 0; i < micros->count; i++)
        if (batch % (size_t)micros->at[i] == 0 && batch / (size_t)micros->at[i] % nodes == 0) return true;
    return false;
}
static size_t dsi_config_elastic_batch(const ds_config_ints *micros, size_t most, size_t low, size_t high,
                                       bool larger) {
    // clang-format off
    static const size_t composite[] = {1, 2, 4, 6, 12, 24, 36, 48, 60, 120, 180, 240, 360, 720, 840, 1260, 1680, 2520, 5040,
        7560, 10080, 15120, 20160, 25200, 27720, 45360, 50400, 55440, 83160, 110880, 166320, 221760, 277200, 332640, 498960,
        554400, 665280, 720720, SIZE_MAX};
    // clang-format on
    size_t common = 1, best = 0, best_count = 0;
    for (size_t i = 0; i < micros->count; i++) {
        size_t a = common, b = (size_t)micros->at[i];
        while (b) {
            size_t rest = a % b;
            a = b;
            b = rest;
        }
        common = dsi_mul(common / a, (size_t)micros->at[i]);
    }
    for (size_t i = 0; i <= micros->count; i++) {
        size_t base = i < micros->count ? (size_t)micros->at[i] : common, k = 0, batch, count = 0;
        if (base > most) continue; /* the common multiple may be */
        while (composite[k + 1] <= most / base) k++;
        batch = base * composite[k];
        for (size_t nodes = low; nodes <= high && nodes <= batch; nodes++)
            count += dsi_config_suits(micros, batch, nodes);
        if (count > best_count || (count && count == best_count && (larger ? batch > best : batch < best))) {
            best = batch;
            best_count = count;
        }
    }
    return best;
}

/* The batch sizes for this world size. Version 0.2 works in nodes; without model parallelism it falls back to what fits the
   ranks at hand. */
static void dsi_config_elastic_resolve(dsi_config_parser *p) {
    ds_config *c = p->config;
    const ds_config_ints *micros = &c->elasticity.micro_batch_sizes;
    bool larger = c->elasticity.prefer_larger_batch, by_nodes = c->elasticity.version > 0.1;
    size_t gpus = by_nodes ? c->elasticity.num_gpus_per_node : 1, parallel = c->elasticity.model_parallel_size,
           node = gpus / parallel, world = c->world_size, most = c->elasticity.max_train_batch_size, micro = 0,
           low = c->elasticity.min_gpus / gpus, high = c->elasticity.max_gpus / gpus, batch = 0;
    bool fits = world % node == 0 && world / parallel % node == 0 && world >= parallel * node;
    for (size_t i = 0; i < micros->count; i++)
        if ((size_t)micros->at[i] > most / node) {
            DSI_CONFIG_REFUSE(p, "elasticity.micro_batch_sizes", "%lld exceeds max_train_batch_size %zu / %zu ranks",
                              (long long)micros->at[i], most, node);
            return;
        }
    if (!low) low = 1;
    if (!high) high = most / node;
    batch = dsi_config_elastic_batch(micros, most / node, low, high, larger);
    fits =
        fits && world / parallel / node >= low && world / node <= high && dsi_config_suits(micros, batch, world / node);
    batch = fits ? batch * node : 0;
    for (size_t i = 0; !fits && by_nodes && parallel == 1 && i < micros->count; i++) {
        size_t one = dsi_mul((size_t)micros->at[i], world), candidate = most / one * one;
        if (!i || (larger ? candidate > batch : candidate < batch)) batch = candidate;
    }
    for (size_t i = 0; i < micros->count; i++)
        if (batch >= world && batch / world % (size_t)micros->at[i] == 0 && (size_t)micros->at[i] > micro)
            micro = (size_t)micros->at[i];
    if (!micro) {
        DSI_CONFIG_REFUSE(p, "elasticity", "no batch of at most %zu samples suits a world size of %zu", most, world);
        return;
    }
    c->train_batch_size = batch;
    c->train_micro_batch_size_per_gpu = micro;
    c->gradient_accumulation_steps = batch / micro / world;
    dsi_config_derived(p, "train_batch_size");
    dsi_config_derived(p, "train_micro_batch_size_per_gpu");
    dsi_config_derived(p, "gradient_accumulation_steps");
}

/* Batch sizes come either from the elasticity section or from the batch keys. True: the former. */
static bool dsi_config_elastic(dsi_config_parser *p) {
    static const char *const batch[] = {"train_batch_size", "train_micro_batch_size_per_gpu",
                                        "gradient_accumulation_steps"};
    static const char inputs[] = "max_train_batch_size, micro_batch_sizes, min_gpus, max_gpus, prefer_larger_batch, "
                                 "prefer_larger, prefer_large_batch, version, model_parallel_size, num_gpus_per_node";
    const ds_config *c = p->config;
    size_t errors = p->errors, parallel = c->elasticity.model_parallel_size;
    const size_t *now[3] = {&c->train_batch_size, &c->train_micro_batch_size_per_gpu, &c->gradient_accumulation_steps};
    size_t given[3] = {*now[0], *now[1], *now[2]};
    char number[32];
    if (!c->elasticity.enabled) return false;
    if (!dsi_config_given(p, "elasticity.max_train_batch_size"))
        DSI_CONFIG_REFUSE(p, "elasticity.max_train_batch_size", "needed when elasticity is enabled");
    if (!dsi_config_given(p, "elasticity.micro_batch_sizes"))
        DSI_CONFIG_REFUSE(p, "elasticity.micro_batch_sizes", "needed when elasticity is enabled");
    if (!c->elasticity.micro_batch_sizes.count || c->elasticity.micro_batch_sizes.count > 16)
        DSI_CONFIG_REFUSE(p, "elasticity.micro_batch_sizes", "expected 1 to 16 of them; got %zu",
                          c->elasticity.micro_batch_sizes.count);
    if (c->elasticity.version != 0.1 && c->elasticity.version != 0.2)
        DSI_CONFIG_REFUSE(p, "elasticity.version", "expected 0.1 or 0.2; got %s",
                          dsi_config_decimal(c->elasticity.version, number));
    if (c->elasticity.max_gpus < c->elasticity.min_gpus)
        DSI_CONFIG_REFUSE(p, "elasticity.max_gpus", "must not be less than min_gpus %zu; got %zu",
                          c->elasticity.min_gpus, c->elasticity.max_gpus);
    if (parallel > 1 && c->elasticity.version < 0.2)
        DSI_CONFIG_REFUSE(p, "elasticity.model_parallel_size", "needs version 0.2; got %s",
                          dsi_config_decimal(c->elasticity.version, number));
    else if (c->elasticity.num_gpus_per_node % parallel)
        DSI_CONFIG_REFUSE(p, "elasticity.model_parallel_size", "must divide num_gpus_per_node %zu; got %zu",
                          c->elasticity.num_gpus_per_node, parallel);
    if (p->errors > errors || dsi_config_spoilt(p, "elasticity.", inputs)) return true;
    dsi_config_elastic_resolve(p);
    for (int i = 0; i < 3; i++)
        if (dsi_config_given(p, batch[i]) && given[i] != *now[i] && given[i] &&
            !c->elasticity.ignore_non_elastic_batch_info)
            DSI_CONFIG_REFUSE(p, batch[i],
                              "elasticity gives %zu here; remove this, or set ignore_non_elastic_batch_info", *now[i]);
    return true;
}

/* Groups of a technique that is on: there must be some, each with what it needs. */
static void dsi_config_groups(dsi_config_parser *p, const char *technique, bool on, bool optional) {
    char path[120];
    uint32_t row;
    snprintf(path, sizeof path, "compression_training.%s.different_groups", technique);
    row = dsi_config_row_of(path);
    if (on && !optional && p->state->scopes[0].marks[row].node == DSI_JSON_NONE)
        DSI_CONFIG_REFUSE(p, path, "needed when %s is enabled", technique);
    for (uint32_t s = 1; on && s < p->state->scope_count; s++) {
        const dsi_config_scope *scope = p->state->scopes + s;
        const dsi_config_row *rows = scope->table->rows;
        if (scope->row != row) continue;
        for (uint32_t i = 0; i < scope->table->count; i++)
            if (!strncmp(rows[i].path, "params.", 7) && scope->marks[i].null) {
                char missing[200];
                snprintf(missing, sizeof missing, "%s%s", scope->prefix, rows[i].path);
                dsi_config_say(p, DS_LOG_ERROR, missing, scope->node, "needed when %s is enabled", technique);
            }
    }
}

/* "4x1", "2:4": two whole numbers of at least 1. */
static bool dsi_config_is_pattern(const char *text) {
    size_t first = strspn(text, "0123456789"), second;
    if (!first || *text == '0' || (text[first] != 'x' && text[first] != ':')) return false;
    text += first + 1;
    second = strspn(text, "0123456789");
    return second && *text != '0' && !text[second];
}

/* Bits only become fewer; the kernel is for 4 and more. */
static void dsi_config_bits(dsi_config_parser *p) {
    const ds_config *c = p->config;
    const uint32_t row = dsi_config_row_of("compression_training.weight_quantization.different_groups");
    const bool on = c->compression_training.weight_quantization.shared_parameters.enabled,
               kernel = c->compression_training.weight_quantization.shared_parameters.quantizer_kernel;
    for (uint32_t s = 1; on && s < p->state->scope_count; s++) {
        const dsi_config_scope *scope = p->state->scopes + s;
        const ds_config_weight_group *g = (const ds_config_weight_group *)(void *)scope->object;
        char path[200];
        if (scope->row != row || !g->params.start_bits || !g->params.target_bits) continue;
        snprintf(path, sizeof path, "%sparams.target_bits", scope->prefix);
        if (g->params.target_bits > g->params.start_bits)
            dsi_config_say(p, DS_LOG_WARNING, path, scope->node, "must not be more than start_bits %lld; got %lld",
                           (long long)g->params.start_bits, (long long)g->params.target_bits);
        if (kernel && g->params.target_bits < 4)
            dsi_config_say(p, DS_LOG_WARNING, path, scope->node, "quantizer_kernel needs at least 4; got %lld",
                           (long long)g->params.target_bits);
    }
}

static void dsi_config_compression(dsi_config_parser *p) {
    ds_config *c = p->config;
    const char *pattern = c->compression_training.sparse_pruning.shared_parameters.block_pattern;
    bool snip = !strcmp(c->compression_training.sparse_pruning.shared_parameters.method, "snip_momentum");
    dsi_config_groups(p, "weight_quantization", c->compression_training.weight_quantization.shared_parameters.enabled,
                      false);
    dsi_config_groups(p, "activation_quantization",
                      c->compression_training.activation_quantization.shared_parameters.enabled, false);
    dsi_config_groups(p, "sparse_pruning", c->compression_training.sparse_pruning.shared_parameters.enabled, snip);
    dsi_config_groups(p, "row_pruning", c->compression_training.row_pruning.shared_parameters.enabled, false);
    dsi_config_groups(p, "head_pruning", c->compression_training.head_pruning.shared_parameters.enabled, false);
    dsi_config_groups(p, "channel_pruning", c->compression_training.channel_pruning.shared_parameters.enabled, false);
    dsi_config_bits(p);
    /* other_module_name may stand instead of module_name_prefix and teacher_layer, or beside them */
    if (c->compression_training.layer_reduction.enabled &&
        (c->compression_training.layer_reduction.teacher_layer.count ||
         !c->compression_training.layer_reduction.other_module_name.count) &&
        c->compression_training.layer_reduction.teacher_layer.count !=
            c->compression_training.layer_reduction.keep_number_layer)
        DSI_CONFIG_REFUSE(p, "compression_training.layer_reduction.teacher_layer",
                          "the length must be keep_number_layer %zu; got %zu",
                          c->compression_training.layer_reduction.keep_number_layer,
                          c->compression_training.layer_reduction.teacher_layer.count);
    if (c->compression_training.weight_quantization.shared_parameters.enabled && !c->fp16.enabled && !c->bf16.enabled &&
        !c->compression_training.weight_quantization.shared_parameters.quantize_weight_in_forward)
        DSI_CONFIG_DOUBT(p, "compression_training.weight_quantization.shared_parameters.quantize_weight_in_forward",
                         "must be true in fp32 training, which has no optimizer that quantizes");
    if (c->compression_training.weight_quantization.shared_parameters.quantizer_kernel && !c->fp16.enabled)
        DSI_CONFIG_REFUSE(p, "compression_training.weight_quantization.shared_parameters.quantizer_kernel",
                          "needs fp16.enabled");
    if (pattern && !dsi_config_is_pattern(pattern))
        DSI_CONFIG_REFUSE(p, "compression_training.sparse_pruning.shared_parameters.block_pattern",
                          "expected N:M or NxM, with whole numbers of at least 1; got \"%.90s\"", pattern);
    DSI_CONFIG_DERIVE(p, compression_training.sparse_pruning.shared_parameters.schedule_offset_end,
                      c->compression_training.sparse_pruning.shared_parameters.schedule_offset);
    if (snip && c->compression_training.sparse_pruning.shared_parameters.schedule_offset_end <
                    c->compression_training.sparse_pruning.shared_parameters.schedule_offset)
        DSI_CONFIG_REFUSE(p, "compression_training.sparse_pruning.shared_parameters.schedule_offset_end",
                          "must not be less than schedule_offset %lld; got %lld",
                          (long long)c->compression_training.sparse_pruning.shared_parameters.schedule_offset,
                          (long long)c->compression_training.sparse_pruning.shared_parameters.schedule_offset_end);
    if (c->compression_training.head_pruning.shared_parameters.enabled &&
        !c->compression_training.head_pruning.shared_parameters.num_heads)
        DSI_CONFIG_REFUSE(p, "compression_training.head_pruning.shared_parameters.num_heads", "must be provided");
}

static void dsi_config_resolve(dsi_config_parser *p) {
    ds_config *c = p->config;
    p->ruling = true;
    dsi_config_old_keys(p);
    if (!dsi_config_elastic(p)) dsi_config_batch(p);
    dsi_config_optimizer(p);
    dsi_config_scheduler(p);
    dsi_config_precision(p);
    dsi_config_zero(p);
    dsi_config_attention(p);
    dsi_config_data(p);
    dsi_config_compression(p);
    if (c->flops_profiler.enabled && !c->wall_clock_breakdown) {
        c->wall_clock_breakdown = true;
        dsi_config_mark_of(p, "wall_clock_breakdown")->origin = DS_CONFIG_DERIVED;
    }
    if (dsi_config_null(p, "aio.intra_op_parallelism")) {
        c->aio.intra_op_parallelism = c->aio.thread_count;
        dsi_config_derived(p, "aio.intra_op_parallelism");
    } else if (!dsi_config_given(p, "aio.thread_count")) {
        c->aio.thread_count = c->aio.intra_op_parallelism;
        dsi_config_derived(p, "aio.thread_count");
    }
}

/* >>parse */

/* Bytes of everything besides the document: the structs and marks, and for each node of the text what a list, a sorted
   key or a named object may take. */
static size_t dsi_config_room(const char *text, size_t bytes, uint32_t *braces) {
    size_t most = 0, named, rows = 0, count = 0;
    const char *at = text, *end = text + bytes;
    for (; (at = (const char *)memchr(at, '{', (size_t)(end - at))) != NULL; at++) count++;
    *braces = (uint32_t)count;
    for (int i = 1; i < 5; i++) {
        rows += dsi_config_tables[i].count;
        if (dsi_config_tables[i].bytes > most) most = dsi_config_tables[i].bytes;
    }
    named = most + DSI_CONFIG_MOST_ROWS * sizeof(dsi_config_mark) + sizeof(dsi_config_scope) + 128 +
            4 * 8; /* its part of the arena, its scope, its prefix, its lists' rounding */
    rows += DSI_CONFIG_MAIN_ROWS;
    return dsi_add(
        dsi_add(sizeof(ds_config) + sizeof(struct ds_config_state) + rows * (sizeof(dsi_config_mark) + 2) + 8192,
                dsi_mul(count + 1, named)),
        dsi_mul(bytes, 3));
}

/* For each OPEN row of a table, its CLOSE. */
static const uint16_t *dsi_config_ends(dsi_config_parser *p, const dsi_config_table *table) {
    uint16_t *ends = (uint16_t *)dsi_config_take(p, table->count * sizeof *ends), open[10];
    int depth = 0;
    for (uint32_t i = 0; i < table->count; i++) {
        if (table->rows[i].kind == DSI_CONFIG_IS_OPEN) open[depth++] = (uint16_t)i;
        if (table->rows[i].kind == DSI_CONFIG_IS_CLOSE) ends[open[--depth]] = (uint16_t)i;
    }
    return ends;
}

static void dsi_config_prepare(dsi_config_parser *p, uint32_t braces) {
    struct ds_config_state *state = p->state;
    dsi_config_scope *scope;
    for (int i = 0; i < 5; i++) p->ends[i] = dsi_config_ends(p, dsi_config_tables + i);
    state->scope_room = braces + 1;
    state->scopes = (dsi_config_scope *)dsi_config_take(p, state->scope_room * sizeof *state->scopes);
    state->scope_count = 1;
    scope = state->scopes;
    scope->table = dsi_config_tables;
    scope->object = (char *)p->config;
    scope->marks = (dsi_config_mark *)dsi_config_take(p, DSI_CONFIG_MAIN_ROWS * sizeof *scope->marks);
    scope->prefix = "";
    scope->ends = p->ends[0];
    dsi_config_defaults(p, scope);
}

/* How many problems were found beyond those that were reported. */
static void dsi_config_say_rest(const dsi_config_parser *p) {
    char message[80];
    ds_config_problem problem;
    if (p->said <= DSI_CONFIG_MOST_PROBLEMS || !p->options->problem) return;
    snprintf(message, sizeof message, "%zu more problems like these", p->said - DSI_CONFIG_MOST_PROBLEMS);
    problem.level = p->errors ? DS_LOG_ERROR : DS_LOG_WARNING;
    problem.path = "";
    problem.line = problem.column = 0;
    problem.message = message;
    p->options->problem(p->options->ctx, &problem);
}

DS_API ds_status ds_config_parse_(const char *text, size_t bytes, const ds_config_options *options, ds_config **out,
                                  ds_error *error, int version, size_t options_size) {
    static const ds_config_options standard = {0, 0, false, NULL, 0, 0, {NULL, NULL, NULL}, NULL, NULL};
    dsi_config_parser parser, *p = &parser;
    size_t room, json_room, limit;
    uint32_t braces;
    char *memory, got[120];
    unsigned depth;
    if (out) *out = NULL;
    if (version != DS_CONFIG_VERSION || options_size != sizeof(ds_config_options))
        return dsi_fail(error, DS_ERR_VERSION, "ds_config.h is version %d here and %d where it is implemented", version,
                        DS_CONFIG_VERSION);
    if (!text || !out) return dsi_fail(error, DS_ERR_ARGUMENT, "ds_config_parse: text or out is NULL");
    memset(p, 0, sizeof *p);
    p->options = options ? options : &standard;
    p->error = error;
    limit = p->options->max_bytes ? p->options->max_bytes : (size_t)16 << 20;
    if (limit > DSI_JSON_BYTES) limit = DSI_JSON_BYTES;
    if (bytes > limit) return dsi_fail(error, DS_ERR_INPUT, "1:1: the text has %zu bytes, more than %zu", bytes, limit);
    depth = p->options->max_depth ? p->options->max_depth : 100;
    if (depth > DSI_JSON_DEPTH) depth = DSI_JSON_DEPTH;
    json_room = dsi_round_up(dsi_json_room(text, bytes), 16);
    room = dsi_add(json_room, dsi_round_up(dsi_config_room(text, bytes, &braces), 16));
    room = dsi_add(room, json_room / sizeof(dsi_json_node) * 24);
    memory = (char *)dsi_alloc(&p->options->allocator, room);
    if (!memory) return dsi_fail(error, DS_ERR_MEMORY, "no memory for a configuration (%zu bytes)", room);
    p->arena = memory + json_room;
    p->arena_end = memory + room;
    p->config = (ds_config *)dsi_config_take(p, sizeof(ds_config));
    p->state = (struct ds_config_state *)dsi_config_take(p, sizeof(struct ds_config_state));
    p->config->state = p->state;
    p->config->world_size = p->options->world_size ? p->options->world_size : 1;
    p->state->allocator = p->options->allocator;
    p->state->bytes = room;
    /* the document ends where the arena starts; its nodes are at the front of the block */
    if (!dsi_json_read(&p->state->doc, memory, json_room, text, bytes,
                       p->options->strict_json ? 0u : DSI_JSON_COMMENTS | DSI_JSON_COMMAS, depth)) {
        p->state->doc.nodes[0].offset = (uint32_t)p->state->doc.fault;
        dsi_config_say(p, DS_LOG_ERROR, "", 0, "%s", p->state->doc.why);
    } else if (p->state->doc.nodes[0].type != DSI_JSON_OBJECT)
        dsi_config_say(p, DS_LOG_ERROR, "", 0, "expected an object; got %s", dsi_config_got(&p->state->doc, 0, got));
    else {
        dsi_config_prepare(p, braces);
        dsi_config_soundness(p);
        for (uint32_t s = 0, root = 0; s < p->state->scope_count; s++) {
            if (s) root = p->state->scopes[s].node;
            dsi_config_object(p, s, root);
        }
        dsi_config_resolve(p);
    }
    dsi_config_say_rest(p);
    if (p->errors) {
        size_t more = p->errors - p->unsaid - 1;
        if (more && error) {
            size_t length = strlen(error->message);
            snprintf(error->message + length, sizeof error->message - length, " (and %zu more)", more);
        }
        ds_config_free(p->config);
        return DS_ERR_INPUT;
    }
    *out = p->config;
    return DS_OK;
}

DS_API void ds_config_free(ds_config *config) {
    ds_allocator allocator;
    if (!config) return;
    allocator = config->state->allocator;
    /* the document's nodes are the front of the one block */
    dsi_release(&allocator, config->state->doc.nodes, config->state->bytes);
}

/* >>printer */
static void dsi_config_write_value(ds_json_writer *w, const char *key, const dsi_config_row *row, const char *from,
                                   bool null) {
    static const char *const devices[] = {"none", "cpu", "nvme"};
    ds_config_ints ints;
    ds_config_texts texts;
    ds_config_textlists lists;
    unsigned indent = w->indent;
    if (null) {
        ds_json_write_null(w, key);
        return;
    }
    switch (row->type) {
    case DSI_CONFIG_BOOL: ds_json_write_bool(w, key, *(const bool *)(const void *)from); return;
    case DSI_CONFIG_INT: ds_json_write_integer(w, key, *(const int64_t *)(const void *)from); return;
    case DSI_CONFIG_SIZE: ds_json_write_integer(w, key, (int64_t) * (const size_t *)(const void *)from); return;
    case DSI_CONFIG_REAL: ds_json_write_number(w, key, *(const double *)(const void *)from); return;
    case DSI_CONFIG_TEXT: ds_json_write_string(w, key, *(const char *const *)(const void *)from); return;
    case DSI_CONFIG_JSON: dsi_config_write_raw(w, key, *(const char *const *)(const void *)from); return;
    case DSI_CONFIG_DEVICE:
        ds_json_write_string(w, key, devices[*(const ds_config_device *)(const void *)from]);
        return;
    default: break;
    }
    ds_json_write_open(w, key, '[');
    w->indent = 0; /* lists stay on their line */
    memcpy(&ints, from, sizeof ints);
    memcpy(&texts, from, sizeof texts);
    memcpy(&lists, from, sizeof lists);
    if (row->type == DSI_CONFIG_PAIR)
        for (int i = 0; i < 2; i++) ds_json_write_number(w, NULL, ((const double *)(const void *)from)[i]);
    else if (row->type == DSI_CONFIG_INTS)
        for (size_t i = 0; i < ints.count; i++) ds_json_write_integer(w, NULL, ints.at[i]);
    else if (row->type == DSI_CONFIG_TEXTS)
        for (size_t i = 0; i < texts.count; i++) ds_json_write_string(w, NULL, texts.at[i]);
    else
        for (size_t i = 0; i < lists.count; i++) {
            ds_json_write_open(w, NULL, '[');
            for (size_t j = 0; j < lists.at[i].count; j++) ds_json_write_string(w, NULL, lists.at[i].at[j]);
            ds_json_write_close(w, ']');
        }
    ds_json_write_close(w, ']');
    w->indent = indent;
}

/* Whether a row is part of the resolved configuration: parameters only of the optimizer and scheduler that are chosen;
   of a foreign one, those that the file gives. */
static bool dsi_config_shown(const ds_config *config, const dsi_config_scope *scope, uint32_t i) {
    const dsi_config_row *row = scope->table->rows + i;
    bool scheduler = !strncmp(row->path, "scheduler.params.", 17);
    const char *type = scheduler ? config->scheduler.type : config->optimizer.type;
    const dsi_config_kind *kind;
    if (row->kind == DSI_CONFIG_IS_OLD) return false;
    if (scope->table != dsi_config_tables || (!scheduler && strncmp(row->path, "optimizer.params.", 17))) return true;
    kind = dsi_config_kind_of(type, scheduler);
    return kind ? dsi_config_takes(kind, row->path + row->name) : scope->marks[i].node != DSI_JSON_NONE;
}

/* The members of an open section that no row knows, as they were written. */
static void dsi_config_write_rest(ds_json_writer *w, const ds_config *config, uint32_t open) {
    const struct ds_config_state *state = config->state;
    const dsi_json_node *nodes = state->doc.nodes;
    uint32_t object = state->scopes[0].marks[open].node, k = object + 1;
    if (object == DSI_JSON_NONE) return;
    for (uint32_t i = 0; i < nodes[object].length; i++, k = nodes[k + 1].next)
        if (dsi_config_find(state->scopes, open, nodes[k].as.text, nodes[k].length) == UINT32_MAX) {
            dsi_config_begin(w, nodes[k].as.text, nodes[k].length);
            dsi_config_write_node(w, &state->doc, k + 1);
        }
}

static void dsi_config_write_scope(ds_json_writer *w, const ds_config *config, const dsi_config_scope *scope) {
    const dsi_config_row *rows = scope->table->rows;
    uint32_t open[10], depth = 0;
    for (uint32_t i = 0; i < scope->table->count; i++) {
        const char *name = rows[i].path + rows[i].name;
        bool params = !strcmp(rows[i].path, "optimizer.params") || !strcmp(rows[i].path, "scheduler.params");
        const char *type = rows[i].path[0] == 'o' ? config->optimizer.type : config->scheduler.type;
        if (rows[i].kind == DSI_CONFIG_IS_OPEN && params && !type && scope->marks[i].node == DSI_JSON_NONE) {
            ds_json_write_null(w, name);
            i = scope->ends[i];
        } else if (rows[i].kind == DSI_CONFIG_IS_OPEN) {
            ds_json_write_open(w, name, '{');
            open[depth++] = i;
        } else if (rows[i].kind == DSI_CONFIG_IS_CLOSE) {
            if (strstr(rows[open[--depth]].status, "open")) dsi_config_write_rest(w, config, open[depth]);
            ds_json_write_close(w, '}');
        } else if (rows[i].type >= DSI_CONFIG_METRICS) {
            ds_json_write_open(w, name, '{');
            for (uint32_t s = 1; s < config->state->scope_count; s++) {
                const dsi_config_scope *named = config->state->scopes + s;
                if (named->row != i) continue;
                ds_json_write_open(w, *(const char *const *)(const void *)named->object, '{');
                dsi_config_write_scope(w, config, named); /* whose table holds no named objects */
                ds_json_write_close(w, '}');
            }
            ds_json_write_close(w, '}');
        } else if (dsi_config_shown(config, scope, i))
            dsi_config_write_value(w, name, rows + i, scope->object + rows[i].offset, scope->marks[i].null);
    }
}

DS_API size_t ds_config_print(const ds_config *config, char *out, size_t room) {
    ds_json_writer w;
    memset(&w, 0, sizeof w);
    w.out = out;
    w.room = room ? room - 1 : 0;
    w.indent = 2;
    ds_json_write_open(&w, NULL, '{');
    dsi_config_write_scope(&w, config, config->state->scopes);
    ds_json_write_close(&w, '}');
    dsi_config_put(&w, "\n", 1);
    if (room) out[w.length < room ? w.length : room - 1] = 0;
    return w.length;
}

/* >>questions: explain, where, unclaimed, keys, memory */
/* One key as --explain shows it: a row, or (row NULL) the node of a member that an open section passes on. */
static ds_status dsi_config_explain_one(const ds_config *config, const dsi_config_scope *scope, uint32_t i,
                                        uint32_t node, ds_config_row *one,
                                        void (*row)(void *ctx, const ds_config_row *row), void *ctx) {
    const dsi_config_row *r = scope->table->rows + i;
    const dsi_json *doc = &config->state->doc;
    bool own = r->kind == DSI_CONFIG_IS_KEY;
    uint32_t place = own ? scope->marks[i].node : node;
    char small[512], path[256], *room = small;
    ds_json_writer w;
    memset(&w, 0, sizeof w);
    w.out = small;
    w.room = sizeof small - 1;
    for (int pass = 0; pass < 2; pass++) { /* a second time where the first showed that more room is needed */
        if (own)
            dsi_config_write_value(&w, NULL, r, scope->object + r->offset, scope->marks[i].null);
        else
            dsi_config_write_node(&w, doc, node);
        if (w.length <= w.room) break;
        {
            size_t length = w.length;
            room = (char *)dsi_alloc(&config->state->allocator, length + 1);
            if (!room) return DS_ERR_MEMORY;
            memset(&w, 0, sizeof w);
            w.out = room;
            w.room = length;
        }
    }
    w.out[w.length] = 0;
    if (own)
        snprintf(path, sizeof path, "%s%s", scope->prefix, r->path);
    else
        snprintf(path, sizeof path, "%s.%s", r->path, doc->nodes[node - 1].as.text);
    dsi_config_one_line(path);
    one->path = path;
    one->value = w.out;
    one->line = one->column = 0;
    if (place != DSI_JSON_NONE) dsi_json_position(doc, doc->nodes[place].offset, &one->line, &one->column);
    row(ctx, one);
    if (room != small) dsi_release(&config->state->allocator, room, w.room + 1);
    return DS_OK;
}

DS_API ds_status ds_config_explain(const ds_config *config, void (*row)(void *ctx, const ds_config_row *row),
                                   void *ctx) {
    const dsi_json_node *nodes = config->state->doc.nodes;
    ds_status status = DS_OK;
    for (uint32_t s = 0; s < config->state->scope_count; s++) {
        const dsi_config_scope *scope = config->state->scopes + s;
        for (uint32_t i = 0; i < scope->table->count && !status; i++) {
            const dsi_config_row *r = scope->table->rows + i;
            uint32_t object = scope->marks[i].node, k = object + 1;
            ds_config_row one;
            one.origin = (ds_config_origin)scope->marks[i].origin;
            one.doc = r->doc;
            if (r->kind == DSI_CONFIG_IS_KEY && r->type < DSI_CONFIG_METRICS && dsi_config_shown(config, scope, i))
                status = dsi_config_explain_one(config, scope, i, 0, &one, row, ctx);
            if (r->kind != DSI_CONFIG_IS_OPEN || object == DSI_JSON_NONE || !strstr(r->status, "open")) continue;
            one.origin = DS_CONFIG_GIVEN;
            one.doc = "passed on as it is";
            for (uint32_t n = 0; n < nodes[object].length && !status; n++, k = nodes[k + 1].next)
                if (dsi_config_find(scope, i, nodes[k].as.text, nodes[k].length) == UINT32_MAX)
                    status = dsi_config_explain_one(config, scope, i, k + 1, &one, row, ctx);
        }
    }
    return status;
}

DS_API bool ds_config_where(const ds_config *config, const char *path, ds_config_origin *origin, int *line,
                            int *column) {
    int own_line, own_column;
    if (!line) line = &own_line;
    if (!column) column = &own_column;
    *line = *column = 0;
    *origin = DS_CONFIG_DEFAULT;
    for (uint32_t s = 0; s < config->state->scope_count; s++) {
        const dsi_config_scope *scope = config->state->scopes + s;
        size_t prefix = strlen(scope->prefix);
        if (strncmp(path, scope->prefix, prefix)) continue;
        for (uint32_t i = 0; i < scope->table->count; i++) {
            if (scope->table->rows[i].kind == DSI_CONFIG_IS_CLOSE || strcmp(scope->table->rows[i].path, path + prefix))
                continue;
            *origin = (ds_config_origin)scope->marks[i].origin;
            if (scope->marks[i].node != DSI_JSON_NONE)
                dsi_json_position(&config->state->doc, config->state->doc.nodes[scope->marks[i].node].offset, line,
                                  column);
            return true;
        }
    }
    return false;
}

/* Whether a claim is the path, or a section of it. */
static bool dsi_config_claimed(const char *const *claims, size_t count, const char *path) {
    for (size_t i = 0; i < count; i++) {
        size_t n = strlen(claims[i]);
        if (!strncmp(claims[i], path, n) && (path[n] == 0 || path[n] == '.')) return true;
    }
    return false;
}

DS_API size_t ds_config_unclaimed(const ds_config *config, const char *const *claims, size_t count,
                                  void (*unclaimed)(void *ctx, const char *path, int line, int column), void *ctx) {
    const dsi_json *doc = &config->state->doc;
    size_t found = 0;
    char path[256];
    int line, column;
    for (uint32_t s = 0; s < config->state->scope_count; s++) {
        const dsi_config_scope *scope = config->state->scopes + s;
        for (uint32_t i = 0; i < scope->table->count; i++) {
            const dsi_config_row *row = scope->table->rows + i;
            uint32_t node = scope->marks[i].node, k = node + 1;
            bool open = row->kind == DSI_CONFIG_IS_OPEN && strstr(row->status, "open") != NULL;
            if (node == DSI_JSON_NONE) continue;
            snprintf(path, sizeof path, "%s%s", scope->prefix, row->path);
            if (dsi_config_claimed(claims, count, path)) continue;
            if (row->kind == DSI_CONFIG_IS_OLD && dsi_config_claimed(claims, count, row->status)) continue;
            /* set by an old key, which is reported itself */
            if (open)
                for (uint32_t j = 0; j < doc->nodes[node].length; j++, k = doc->nodes[k + 1].next) {
                    if (dsi_config_find(scope, i, doc->nodes[k].as.text, doc->nodes[k].length) != UINT32_MAX) continue;
                    snprintf(path, sizeof path, "%s.%s", row->path, doc->nodes[k].as.text);
                    dsi_json_position(doc, doc->nodes[k].offset, &line, &column);
                    if (dsi_config_claimed(claims, count, path)) continue;
                    found++;
                    if (unclaimed) unclaimed(ctx, path, line, column);
                }
            if (row->kind == DSI_CONFIG_IS_OPEN || row->type >= DSI_CONFIG_METRICS) continue;
            found++;
            dsi_json_position(doc, doc->nodes[node].offset, &line, &column);
            if (unclaimed) unclaimed(ctx, path, line, column);
        }
    }
    return found;
}

static const char *dsi_config_type_name(int type) {
    static const char *const names[] = {
        "BOOL",          "INT",  "SIZE",  "REAL",      "PAIR",    "TEXT",          "JSON",
        "DEVICE",        "INTS", "TEXTS", "TEXTLISTS", "METRICS", "WEIGHT_GROUPS", "ACTIVATION_GROUPS",
        "PRUNING_GROUPS"};
    return names[type];
}

DS_API void ds_config_keys(void (*key)(void *ctx, const ds_config_key *key), void *ctx) {
    char path[256], expected[256];
    for (uint32_t i = 0; i < DSI_CONFIG_MAIN_ROWS; i++) {
        const dsi_config_row *row = dsi_config_rows + i;
        const dsi_config_table *table = row->kind == DSI_CONFIG_IS_KEY && row->type >= DSI_CONFIG_METRICS
                                            ? dsi_config_tables + (row->type - DSI_CONFIG_METRICS + 1)
                                            : NULL;
        if (row->kind > DSI_CONFIG_IS_OLD) continue;
        for (uint32_t j = 0; j < (table ? table->count : 1); j++) {
            const dsi_config_row *r = table ? table->rows + j : row;
            ds_config_key one;
            bool old = r->kind == DSI_CONFIG_IS_OLD;
            if (r->kind > DSI_CONFIG_IS_OLD) continue;
            if (table) snprintf(path, sizeof path, "%s.*.%s", row->path, r->path);
            one.path = table ? path : r->path;
            one.type = dsi_config_type_name(r->type);
            one.initial = r->initial;
            one.accepted = r->accepted;
            one.expected = dsi_config_expected(r, expected);
            one.seen = r->seen;
            one.status = old ? "old" : r->status;
            one.newer = old ? r->status : "";
            one.doc = r->doc;
            key(ctx, &one);
        }
    }
}

/* DeepSpeed's estimators multiply in the order params, multiplier, 1 / nodes, factor, in double, and truncate. */
static size_t dsi_config_bytes(double bytes) {
    return bytes >= (double)SIZE_MAX ? SIZE_MAX : (size_t)bytes;
}

DS_API void ds_config_memory(const ds_config_memory_desc *d, size_t *cpu_bytes, size_t *gpu_bytes) {
    size_t per_node = d->gpus_per_node ? d->gpus_per_node : 1, nodes = d->nodes ? d->nodes : 1;
    double params = (double)d->params, factor = d->buffer_factor > 0 ? d->buffer_factor : 1.5, cpu, gpu;
    double ranks = (double)dsi_mul(per_node, nodes), largest = 4 * (double)d->largest_layer;
    double share = 1 / (double)nodes, init = 4 * (double)per_node; /* a copy of the weights by each rank of a node */
    double states = d->offload_param ? 18 : 16;                    /* what offloading moves to the CPU, per parameter */
    if (d->stage < 3) {
        gpu = d->offload_optimizer ? 2 * params : 2 * params + (double)(int64_t)(18 * params / ranks);
        cpu = params * (d->offload_optimizer ? (4 * ranks > 16 ? 4 * ranks : 16) : init) * factor;
    } else if (d->offload_optimizer) {
        gpu = d->offload_param ? largest : largest + (double)(int64_t)(2 * params / ranks);
        cpu = d->keep_init ? params * (init > states * share ? init : states * share) * factor
                           : params * states * share * factor;
    } else {
        gpu = largest + (double)(int64_t)(18 * params / ranks);
        cpu = d->keep_init ? params * init * factor : largest * (double)per_node * factor;
    }
    *gpu_bytes = dsi_config_bytes(gpu);
    *cpu_bytes = dsi_config_bytes(cpu);
}
#undef DSI_CONFIG_KEY
#undef DSI_CONFIG_OLD
#undef DSI_CONFIG_OPEN
#undef DSI_CONFIG_CLOSE
#undef DSI_CONFIG_COUNT
#undef DSI_CONFIG_REFUSE
#undef DSI_CONFIG_DOUBT
#undef DSI_CONFIG_DERIVE
#undef DSI_CONFIG_MAIN_ROWS
#undef DSI_CONFIG_MOST_ROWS
#undef DSI_CONFIG_MOST_PROBLEMS
#undef DSI_CONFIG_OPTIMIZERS
#undef DSI_CONFIG_SCHEDULERS

#endif /* DS_CONFIG_IMPL_DONE */

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
