/* ds_comm.h - v0.1.0 - collectives between ranks: threads, shared memory, MPI - public domain or MIT-0 */
/*
DO THIS

    #define DS_COMM_IMPLEMENTATION
    #include "ds_comm.h"

in one C or C++ file, link with -lpthread, and include it plainly elsewhere. MPI is compiled in where that file is
built with mpicc and -DDS_COMM_USE_MPI=1; nothing else is needed.

SYNOPSIS (every rank runs this; `ds run -n 2`, torchrun, mpirun and srun all say who is who)

    ds_error error = {DS_OK, ""};
    ds_comm_desc desc = {0};                            // backend "auto", ranks from the launcher's variables
    ds_comm *comm = NULL;
    float gradients[1000];
    if (ds_comm_create(&desc, &comm, &error)) return fail(error.message);
    fill(gradients, ds_comm_rank(comm));
    if (ds_comm_all_reduce(comm, gradients, gradients, 1000, DS_F32, DS_COMM_AVERAGE))
        return fail(ds_comm_error(comm)->message);      // names the rank, the call and what went wrong
    ds_comm_destroy(comm);

OPTIONS (macros of the implementing file)

    DS_COMM_USE_MPI    0    1: includes <mpi.h> and builds the backend "mpi"
    DS_STATIC          -    defined: every function is private to the file

WHAT IT DOES NOT DO. It starts no processes (ds run, mpirun, srun, torchrun do). It does not encrypt or authenticate:
"shm" refuses other users, a network is as safe as its MPI. It never retries a failed communicator: training restarts
from a checkpoint. send and receive have no tags and no wildcard.

CONCEPTS

A communicator is an ordered set of ranks 0..world-1. Every rank makes the same collective calls in the same order with
the same count, type, operation and root. Counts are elements. A process may have any number of communicators;
`ds_comm_split` makes one from another. Names of backends:

    self      one rank; every call is a copy
    threads   ranks are threads of one process (ds_comm_threads_create); pointers are read directly
    shm       processes of one user on one Linux machine: an anonymous memory file, handed over a local socket
    mpi       whatever MPI reaches; non-blocking point-to-point messages, polled
    auto      one rank: self. Started by mpirun and MPI compiled in: mpi. All ranks on this machine: shm. Else an error
              that says why each was refused; the same goes to the log
    or your own messages: desc.transport

Sums are the same bits on every backend. A reducing call is an all-to-all of pieces, then a sum on the rank that owns the
piece, then (all_reduce) a gather of the pieces. The sum of W inputs is one binary tree over rank numbers: neighbours are
added level by level, ((0+1)+(2+3))+..., and an odd one out moves up unchanged; for 5 ranks ((0+1)+(2+3))+4. fp16, bf16
and fp32 are added in fp32, fp64 in fp64, each rounded once to the output type; integers wrap around and are exact.
average divides the sum by the number of ranks before that rounding. min and max give NaN when any input is NaN.

STEP BY STEP

1. Fill a ds_comm_desc; zeroes are right for most. Rank and world come from it or from the launcher, see
   ds_comm_resolve_env for the precedence.
2. Memory from ds_comm_alloc is read by the peers in place; under "shm" anything else passes through a staging buffer
   (one more copy). Both work everywhere.
3. Call collectives, or fill a ds_comm_call and ds_comm_start it; then ds_comm_wait. Calls of one communicator run in
   the order they were made, started or not. Started ones run on a thread that the first start creates.
4. ds_comm_destroy. A rank that leaves while others still wait for it makes their calls fail, not hang.

MEMORY. Made at create: under "shm" desc.stage_bytes per rank (4 MiB) of shared memory, touched when first used, and an
address range for ds_comm_alloc of desc.arena_bytes per rank that costs nothing until allocated. Message backends grow
one scratch buffer to stage_bytes. After the first calls of a trace nothing is allocated. Nothing is left behind in
/dev/shm, however a process ends: the memory has no name.

ERRORS. A wait has a deadline (desc.timeout, 300 s). A rank that was killed is noticed within half a second (shm) and
named; a rank that never came, one that calls something else, one that left or called ds_comm_abort are named, with
the call and its number. Then the communicator is dead: this and each later call returns the same status and text. Only
wrong arguments, found before anything was sent (DS_ERR_ARGUMENT), leave it alive.
Log ids: 1 backend chosen, 2 backend refused, 3 communicator ready, 4 communicator failed, 5 arena made smaller,
6 comms log, 7 environment.

THREADS. One thread at a time per communicator; different communicators are independent. ds_comm_abort, ds_comm_stats
and ds_comm_rank/world may be called from any thread at any time.

CONFIG KEYS that the engine maps onto this header: communication_data_type, fp32_allreduce, prescale_gradients,
gradient_predivide_factor, comms_logger, timeouts and the backend under "ds".
*/
#if defined(DS_IMPLEMENTATION) && !defined(DS_COMM_IMPLEMENTATION)
#define DS_COMM_IMPLEMENTATION
#endif
#ifndef DS_COMM_H
#define DS_COMM_H
#define DS_COMM_VERSION 100 /* major * 10000 + minor * 100 + patch */

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

#if defined(DS_STATIC) && !defined(DS_COMM_IMPLEMENTATION)
#error "ds: DS_STATIC needs the implementation in the same file; define DS_IMPLEMENTATION before including ds_comm.h"
#endif
#ifdef __cplusplus
extern "C" {
#endif

/*---- who is who -----------------------------------------------------------------------------------------------*/

/* One process's place, as a launcher's variables tell it. */
typedef struct ds_comm_env {
    int rank, world;             /* 0, 1 when no launcher spoke */
    int local_rank, local_world; /* on this machine; -1 when unknown */
    char master_addr[256];       /* "" when unknown */
    int master_port;             /* 0 when unknown */
    char run_id[128];            /* the same on each rank of a run and different between runs of one user at a time */
    const char *source;          /* "torchrun", "Open MPI", "PMI", "MVAPICH2", "Slurm", "none" */
} ds_comm_env;

/* Reads the launcher's variables, first complete set wins:
     1. RANK WORLD_SIZE [LOCAL_RANK, LOCAL_WORLD_SIZE or LOCAL_SIZE] [MASTER_ADDR MASTER_PORT]: torchrun, deepspeed, ds run
     2. OMPI_COMM_WORLD_RANK _SIZE _LOCAL_RANK _LOCAL_SIZE: Open MPI's mpirun
     3. PMI_RANK PMI_SIZE [MPI_LOCALRANKID MPI_LOCALNRANKS]: MPICH, Intel MPI
     4. MV2_COMM_WORLD_RANK _SIZE _LOCAL_RANK _LOCAL_SIZE: MVAPICH2
     5. SLURM_PROCID with SLURM_STEP_NUM_TASKS [SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE]: srun only. sbatch and salloc
        export SLURM_NTASKS to programs that they start once, so that one is not trusted
     6. none: rank 0 of 1
   MASTER_ADDR and MASTER_PORT are read in each case. run_id comes from DS_RUN_ID, else TORCHELASTIC_RUN_ID with the
   restart count, else the launcher's job id, else MASTER_PORT, else the parent process. Half a set, text that is no
   number, a rank outside the world, or two sets that disagree are DS_ERR_INPUT and the text names the variables.
   `get` looks a name up (NULL: getenv); `out` is written on every path. Thread safety: as getenv. */
DS_API ds_status ds_comm_resolve_env(const char *(*get)(void *ctx, const char *name), void *ctx, ds_comm_env *out,
                                     ds_error *error);

/*---- a communicator -------------------------------------------------------------------------------------------*/

typedef struct ds_comm ds_comm;

/* Your own messages. `exchange` moves, for each of `count` parts, send_bytes to the peer and receive_bytes from it
   (either may be 0), all at once, and returns when all are through. Messages between two ranks on one channel arrive
   in order; those of different channels must not meet. Past `deadline` (ds_clock time, INT64_MAX never) it returns
   DS_ERR_TIMEOUT with `done` set on the parts that did finish; other failures likewise with a text. It is never called
   by two threads at once for one communicator; with `concurrent` false, never from another thread than the caller's
   (ds_comm_start then runs the call at once). */
typedef struct ds_comm_part {
    int peer;
    const void *send;
    void *receive;
    size_t send_bytes, receive_bytes;
    bool done;
} ds_comm_part;
typedef struct ds_comm_transport {
    const char *name;
    void *ctx;
    ds_status (*exchange)(void *ctx, unsigned channel, ds_comm_part *parts, int count, int64_t deadline,
                          ds_error *error);
    void (*close)(void *ctx); /* at the last destroy; may be NULL */
    bool concurrent;
} ds_comm_transport;

/* The comms log. [cfg: comms_logger.enabled, .verbose, .prof_all, .prof_ops, .debug] */
typedef struct ds_comm_log_options {
    bool enabled;
    bool verbose;                  /* a line per call */
    bool debug;                    /* the line also says rank, call number and backend */
    bool only;                     /* keep only the operations named in `operations` (prof_all false) */
    const char *const *operations; /* "all_reduce", ... as ds_comm_kind_name */
    int operation_count;
} ds_comm_log_options;

typedef struct ds_comm_desc {
    const char *backend; /* "auto" (NULL), "self", "shm", "mpi", "user" (needs `transport`) [cfg: comm_backend_name] */
    int world;           /* 0: rank, world and run id come from ds_comm_resolve_env */
    int rank;
    int local_world;    /* ranks on this machine; 0: from the environment, else unknown */
    const char *run_id; /* "shm": what the ranks of this communicator have in common; NULL: from the environment */
    int64_t timeout;    /* ns that any wait may last; 0: 300 s; negative: for ever */
    size_t stage_bytes; /* staging or scratch memory per rank; 0: 4 MiB */
    size_t arena_bytes; /* "shm": address range per rank for ds_comm_alloc; 0: as large as this machine's memory */
    const ds_comm_transport *transport; /* copied */
    ds_comm_log_options log;
    ds_allocator allocator;
    ds_logger logger;
    ds_clock clock; /* for deadlines; futexes sleep in real time */
} ds_comm_desc;

/* Connects this process with the others; collective. On failure *out is NULL. Ownership: ds_comm_destroy. */
DS_API ds_status dsi_comm_create(const ds_comm_desc *desc, size_t desc_bytes, int version, ds_comm **out,
                                 ds_error *error);
static inline ds_status ds_comm_create(const ds_comm_desc *desc, ds_comm **out, ds_error *error) {
    return dsi_comm_create(desc, sizeof *desc, DS_COMM_VERSION, out, error);
}

/* Makes `world` connected communicators in this process; out[r] is for the thread that plays rank r, and is destroyed
   by it or by anyone after it. `desc` gives timeout and hooks, which all ranks' threads then use at once. */
DS_API ds_status dsi_comm_threads_create(const ds_comm_desc *desc, size_t desc_bytes, int version, int world,
                                         ds_comm **out, ds_error *error);
static inline ds_status ds_comm_threads_create(const ds_comm_desc *desc, int world, ds_comm **out, ds_error *error) {
    return dsi_comm_threads_create(desc, sizeof *desc, DS_COMM_VERSION, world, out, error);
}

/* Sub-communicators: ranks that give the same color share one, ordered by key, then by rank. A negative color takes
   part and gets NULL. Collective over `comm`, which stays usable; either may be destroyed first. A duplicate is
   color 0, key 0. The failure of one leaves the other alone. */
DS_API ds_status ds_comm_split(ds_comm *comm, int color, int key, ds_comm **out, ds_error *error);

/* Not collective: waits for calls in flight, tells the others that this rank has left, frees. NULL is fine. */
DS_API void ds_comm_destroy(ds_comm *comm);

DS_API int ds_comm_rank(const ds_comm *comm);
DS_API int ds_comm_world(const ds_comm *comm);
DS_API const char *ds_comm_backend(const ds_comm *comm); /* "self", "threads", "shm", "mpi" or transport.name */
/* The status and text of the last failed call; status DS_OK and "" before any. Valid until the next call. */
DS_API const ds_error *ds_comm_error(const ds_comm *comm);

/* Tells the other ranks that this one cannot go on: their present and later calls return DS_ERR_PEER with `message`.
   This rank's calls return it too. Any thread; never blocks for long (message backends: at most a second). */
DS_API void ds_comm_abort(ds_comm *comm, const char *message);

/* The ranks as a ds_group, for headers that ask for small exchanges. Valid as long as `comm`. */
DS_API ds_group ds_comm_group(ds_comm *comm);

/* Page-aligned memory that peers can read and write in place. Not collective; not zeroed ("shm": zeroed). NULL when
   there is none. Thread safety: as calls on `comm`. Must be freed before `comm` is destroyed. */
DS_API void *ds_comm_alloc(ds_comm *comm, size_t bytes);
DS_API void ds_comm_free(ds_comm *comm, void *memory, size_t bytes);

/*---- collectives ----------------------------------------------------------------------------------------------*/

typedef enum ds_comm_op { DS_COMM_SUM = 0, DS_COMM_AVERAGE = 1, DS_COMM_MIN = 2, DS_COMM_MAX = 3 } ds_comm_op;
typedef enum ds_comm_kind {
    DS_COMM_BARRIER = 0,
    DS_COMM_ALL_REDUCE = 1,
    DS_COMM_REDUCE = 2,
    DS_COMM_REDUCE_SCATTER = 3,
    DS_COMM_ALL_GATHER = 4,
    DS_COMM_BROADCAST = 5,
    DS_COMM_ALL_TO_ALL = 6,
    DS_COMM_GATHER = 7,
    DS_COMM_SCATTER = 8,
    DS_COMM_SEND = 9,
    DS_COMM_RECEIVE = 10
} ds_comm_kind;
#define DS_COMM_KIND_COUNT 11
DS_API const char *ds_comm_kind_name(ds_comm_kind kind); /* "all_reduce" */

/* One call as data, for ds_comm_start; the functions below say what the fields mean for each kind. */
typedef struct ds_comm_call {
    ds_comm_kind kind;
    const void *in;
    void *out;
    size_t count;
    const size_t *counts;         /* NULL: equal parts of `count` */
    const size_t *receive_counts; /* all_to_all with `counts` */
    ds_dtype dtype;
    ds_dtype out_dtype; /* reduce_scatter: also DS_F32 for half types */
    ds_comm_op op;
    int root; /* or the peer of send and receive */
} ds_comm_call;

/* Collective calls block until this rank's `out` is complete and its `in` may be reused. `counts` has one number per
   rank, the same numbers on every rank, zeros allowed; parts lie one after the other in rank order. `in` and `out` are
   either the same memory (in place, as said), or do not overlap; both are aligned to their element size. NULL is fine
   where the count is 0. Integer averages, and sums of DS_BOOL, are DS_ERR_ARGUMENT; min and max of it are and / or.
   Bytes that each rank sends ("theory"; W ranks, S bytes of the whole buffer, p its own part) are with each. */

/* out = op over all ranks' in[count]. In place: out == in. 2 S (W-1)/W, as a ring; up to 512 bytes: S (W-1). */
DS_API ds_status ds_comm_all_reduce(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype,
                                    ds_comm_op op);
/* The same with `out` on the root only (ignored elsewhere). Root S (W-1)/W, others S. */
DS_API ds_status ds_comm_reduce(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype, ds_comm_op op,
                                int root);
/* Rank r gets out = op over part r of all ranks' `in`. counts NULL: parts of `count`; else `count` is ignored. out_dtype
   is dtype, or DS_F32 with DS_F16 or DS_BF16 input: then the sum is not rounded. In place (equal types): out == in + the
   offset of part r. S - p. */
DS_API ds_status ds_comm_reduce_scatter(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                        ds_dtype dtype, ds_dtype out_dtype, ds_comm_op op);
/* out = all ranks' parts in rank order; this rank's part is in[count] or in[counts[rank]]. In place: in == out + the
   offset of the own part. p (W-1). */
DS_API ds_status ds_comm_all_gather(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                    ds_dtype dtype);
/* Everyone's data[count] becomes the root's. Root S (W-1). */
DS_API ds_status ds_comm_broadcast(ds_comm *comm, void *data, size_t count, ds_dtype dtype, int root);
/* Part r of `in` goes to rank r; out gets the parts for this rank in rank order; `count` elements each. Not in place.
   S (W-1)/W. */
DS_API ds_status ds_comm_all_to_all(ds_comm *comm, const void *in, void *out, size_t count, ds_dtype dtype);
/* Uneven: send_counts[r] go to rank r and receive_counts[r] come from it; they must match the peer's. S - p. */
DS_API ds_status ds_comm_all_to_all_uneven(ds_comm *comm, const void *in, const size_t *send_counts, void *out,
                                           const size_t *receive_counts, ds_dtype dtype);
/* The root gets all parts in rank order (out ignored elsewhere). In place at the root as all_gather. Others p. */
DS_API ds_status ds_comm_gather(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                ds_dtype dtype, int root);
/* Part r of the root's `in` (ignored elsewhere) goes to rank r. In place at the root: out == in + its offset. Root S - p. */
DS_API ds_status ds_comm_scatter(ds_comm *comm, const void *in, void *out, size_t count, const size_t *counts,
                                 ds_dtype dtype, int root);
/* Returns after every rank has called it. */
DS_API ds_status ds_comm_barrier(ds_comm *comm);
/* One message between two ranks, in order per pair. Both block until it is through. */
DS_API ds_status ds_comm_send(ds_comm *comm, const void *data, size_t count, ds_dtype dtype, int to);
DS_API ds_status ds_comm_receive(ds_comm *comm, void *data, size_t count, ds_dtype dtype, int from);

/* Begins a call and returns. Its buffers and count arrays must stay until ds_comm_wait has returned for this handle or
   a later one; calls complete in order. Blocks while 64 are waiting. Where the backend cannot work in the background
   (self; MPI without MPI_THREAD_MULTIPLE; a transport not `concurrent`) it does the call at once. */
typedef uint64_t ds_comm_handle;
DS_API ds_status ds_comm_start(ds_comm *comm, const ds_comm_call *call, ds_comm_handle *handle);
DS_API ds_status ds_comm_wait(ds_comm *comm, ds_comm_handle handle);
/* *done says whether wait would return at once; a failed call is done. */
DS_API ds_status ds_comm_test(ds_comm *comm, ds_comm_handle handle, bool *done);
/* A call as ds_comm_start takes it, blocking. */
DS_API ds_status ds_comm_run(ds_comm *comm, const ds_comm_call *call);

/* The sum of `count` elements of `inputs` arrays in the order above, as each collective does it: fp16, bf16 or fp32 in,
   fp32 out. out may be one of fp32 inputs. Pure; any thread. */
DS_API void ds_comm_tree_sum_f32(float *out, const void *const *inputs, int input_count, ds_dtype dtype, size_t count);

/*---- figures --------------------------------------------------------------------------------------------------*/

/* Since create, of this rank. Bytes are payload given to other ranks as in the formulas above. Any thread. */
typedef struct ds_comm_stats {
    uint64_t calls[DS_COMM_KIND_COUNT];
    uint64_t bytes_sent[DS_COMM_KIND_COUNT];
    uint64_t bytes_received[DS_COMM_KIND_COUNT];
    uint64_t staged_bytes; /* copied through the staging buffer because the memory was not ds_comm_alloc's */
    int64_t wait_ns;       /* time spent waiting for other ranks */
    int64_t busy_ns;       /* time inside calls, waiting included */
} ds_comm_stats;
DS_API void ds_comm_get_stats(const ds_comm *comm, ds_comm_stats *out);

#ifdef __cplusplus
}
#endif
#endif /* DS_COMM_H */

#if defined(DS_COMM_IMPLEMENTATION) && !defined(DS_COMM_IMPL_DONE)
#define DS_COMM_IMPL_DONE
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

#endif /* DS_COMM_IMPL_DONE */

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
