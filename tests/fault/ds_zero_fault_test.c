/* The engine when the disk or another rank fails: an error that says what and where, no hang, a dead engine that goes on saying
   so, nothing leaked. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"
#include "../post.h"
#include <limits.h>

enum { N = 3, NUMEL = 5000 };
static float gradient[NUMEL];

static void init(void *ctx, size_t begin, size_t count, float *out) {
    (void)ctx;
    for (size_t i = 0; i < count; i++) out[i] = (float)((begin + i) % 7);
}

/* Plain reads and writes of which the n-th fails, or with `dies` all from there on. */
typedef struct trouble {
    long at, seen;
    bool dies;
    ds_offload_request *queue[256];
    int count;
} trouble;
static int setup(void *ctx, unsigned depth, void **queue) {
    return (void)depth, *queue = ctx, 0;
}
static void teardown(void *ctx, void *queue) {
    (void)ctx, (void)queue;
}
static int submit(void *ctx, void *queue, ds_offload_request **r, int count) {
    trouble *t = (trouble *)ctx;
    (void)queue;
    for (int i = 0; i < count; i++) {
        long now = __atomic_add_fetch(&t->seen, 1, __ATOMIC_RELAXED),
             fails_at = __atomic_load_n(&t->at, __ATOMIC_RELAXED);
        if (now == fails_at || (t->dies && fails_at && now > fails_at))
            r[i]->result = -EIO;
        else
            r[i]->result = r[i]->write ? dsi_sys_write(NULL, r[i]->fd, r[i]->buffer, r[i]->bytes, r[i]->offset)
                                       : dsi_sys_read(NULL, r[i]->fd, r[i]->buffer, r[i]->bytes, r[i]->offset);
        t->queue[t->count++] = r[i];
    }
    return count;
}
static int events(void *ctx, void *queue, int least, int most, ds_offload_request **done, int64_t timeout) {
    trouble *t = (trouble *)ctx;
    int n = t->count < most ? t->count : most;
    (void)queue, (void)least, (void)timeout;
    memcpy(done, t->queue, (size_t)n * sizeof *done);
    t->count -= n;
    memmove(t->queue, t->queue + n, (size_t)t->count * sizeof *done);
    return n;
}

static ds_config *config_for(size_t world, const char *zero) {
    char text[1024];
    ds_config_options o;
    ds_config *c = NULL;
    ds_error e = {DS_OK, ""};
    memset(&o, 0, sizeof o);
    o.world_size = world;
    snprintf(
        text, sizeof text,
        "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"zero_optimization\": {%s}}",
        zero);
    if (!CHECK(ds_config_parse(text, strlen(text), &o, &c, &e) == DS_OK)) printf("  %s\n", e.message);
    return c;
}

static void describe(ds_zero_param *p, void **slots) {
    static const char *const names[N] = {"alpha", "beta", "gamma"};
    memset(p, 0, N * sizeof *p);
    for (int i = 0; i < N; i++) {
        p[i].name = names[i];
        p[i].dims = 1;
        p[i].shape[0] = NUMEL;
        p[i].slot = &slots[i];
        p[i].init = init;
    }
}

/* One step; the first failure. */
static ds_status step(ds_zero *z) {
    ds_status s = ds_zero_begin(z, DS_ZERO_TRAIN);
    for (size_t i = 0; i < N && !s; i++) {
        s = ds_zero_fetch(z, i, NULL);
        if (!s) s = ds_zero_grad(z, i, gradient, NULL);
        if (!s) s = ds_zero_release(z, i);
    }
    if (!s) s = ds_zero_end(z);
    return s ? s : ds_zero_step(z, NULL);
}

static void disk(void) {
    long total = 0;
    for (long at = 0; at <= total; at++) {
        char name[64];
        snprintf(name, sizeof name, "request %ld to the disk fails", at);
        TEST_NAMED(name) {
            void *slots[N];
            ds_zero_param params[N];
            ds_config *c = config_for(
                1, "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 4096,"
                   "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": true,"
                   "\"pipeline_write\": true}, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"build\"}");
            ds_zero_desc d;
            ds_zero *z = NULL;
            ds_error e = {DS_OK, ""};
            trouble t;
            ds_status s;
            memset(&t, 0, sizeof t);
            memset(&d, 0, sizeof d);
            describe(params, slots);
            d.config = c;
            d.params = params;
            d.n_params = N;
            d.aio.ctx = &t;
            d.aio.setup = setup;
            d.aio.teardown = teardown;
            d.aio.submit = submit;
            d.aio.events = events;
            t.at = at;
            s = ds_zero_create(&d, &z, &e);
            for (int k = 0; k < 2 && !s; k++)
                if ((s = step(z))) e = *ds_zero_error(z);
            if (!s) { /* the last writes of a step are waited for at the next use of what they wrote */
                float value;
                if ((s = ds_zero_read(z, 0, 0, 0, 1, &value))) e = *ds_zero_error(z);
            }
            if (at == 0) {
                CHECK(s == DS_OK);
                total = t.seen;
                CHECK(total > 20);
            } else {
                CHECK(s == DS_ERR_IO);
                CHECK_HAS(e.message, "rank 0");
                CHECK_HAS(e.message, "'build'");
                CHECK_HAS(e.message, "offset");
                CHECK_HAS(e.message, "Input/output error");
                if (z) {
                    CHECK_HAS(e.message, "cannot go on");
                    CHECK(ds_zero_begin(z, DS_ZERO_TRAIN) == DS_ERR_IO && ds_zero_step(z, NULL) == DS_ERR_IO);
                    CHECK(ds_zero_save(z, "build/nowhere", NULL, NULL, 0) == DS_ERR_IO);
                    CHECK_STR(ds_zero_error(z)->message, e.message);
                }
            }
            ds_zero_destroy(z);
            ds_config_free(c);
        }
    }
}

/* A step that left its update to the calls after it; the disk fails in the first of these, whichever it is. */
static void left_update(void) {
    static const char *const calls[] = {"a fetch",
                                        "a gradient",
                                        "the end of a pass without gradients",
                                        "a read",
                                        "a save",
                                        "a load",
                                        "an export",
                                        "an evaluation's fetch",
                                        "destroy"};
    for (int call = 0; call < 9; call++) {
        char name[96];
        snprintf(name, sizeof name, "the disk fails under an update that was left: %s", calls[call]);
        TEST_NAMED(name) {
            char folder[] = "/tmp/ds_zero_XXXXXX", command[96];
            void *slots[N];
            ds_zero_param params[N];
            ds_config *c = config_for(
                1, "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 1024, "
                   "\"stage3_gather_16bit_weights_on_model_save\": true, \"offload_optimizer\": {\"device\": "
                   "\"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": true, \"pipeline_write\": true}");
            ds_zero_desc d;
            ds_zero *z = NULL;
            ds_error e = {DS_OK, ""};
            test_memory m;
            trouble t;
            float value;
            ds_status s = DS_OK;
            memset(&t, 0, sizeof t);
            memset(&m, 0, sizeof m);
            memset(&d, 0, sizeof d);
            describe(params, slots);
            d.config = c;
            d.params = params;
            d.n_params = N;
            d.allocator.alloc = test_alloc;
            d.allocator.release = test_release;
            d.allocator.ctx = &m;
            d.aio.ctx = &t;
            d.aio.setup = setup;
            d.aio.teardown = teardown;
            d.aio.submit = submit;
            d.aio.events = events;
            CHECK(mkdtemp(folder) != NULL);
            if (!CHECK(ds_zero_create(&d, &z, &e) == DS_OK)) break;
            CHECK(step(z) == DS_OK && ds_zero_save(z, folder, NULL, NULL, 0) == DS_OK && step(z) == DS_OK);
            t.dies = true;
            __atomic_store_n(&t.at, __atomic_load_n(&t.seen, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
            if (call < 3) s = ds_zero_begin(z, DS_ZERO_TRAIN);
            if (call == 7) s = ds_zero_begin(z, DS_ZERO_EVALUATE);
            CHECK(s == DS_OK);
            s = call == 0 || call == 7 ? ds_zero_fetch(z, N - 1, NULL)
                : call == 1            ? ds_zero_grad(z, 0, gradient, NULL)
                : call == 2            ? ds_zero_end(z)
                : call == 3            ? ds_zero_read(z, 0, -1, 0, 1, &value)
                : call == 4            ? ds_zero_save(z, folder, "second", NULL, 0)
                : call == 5            ? ds_zero_load(z, folder, NULL, NULL, NULL)
                : call == 6            ? ds_zero_save_16bit_model(z, "build/none.safetensors")
                                       : DS_OK;
            if (call < 8) {
                CHECK(s == DS_ERR_IO);
                CHECK_HAS(ds_zero_error(z)->message, "rank 0: swap of 'optimizer states'");
                CHECK_HAS(ds_zero_error(z)->message, "the engine cannot go on");
                CHECK(ds_zero_begin(z, DS_ZERO_TRAIN) == DS_ERR_IO &&
                      ds_zero_read(z, 0, -1, 0, 1, &value) == DS_ERR_IO);
            }
            ds_zero_destroy(z);
            CHECK(m.live == 0 && m.mismatches == 0);
            ds_config_free(c);
            snprintf(command, sizeof command, "test ! -e %s/second && rm -r %s", folder, folder); /* and no such save */
            CHECK(system(command) == 0);
        }
    }
}

typedef struct rank_of {
    ds_comm *comm;
    const char *zero;
    int rank, leaves_after; /* steps, then fetches */
    ds_status status;
    ds_error error;
} rank_of;

static void *run_rank(void *arg) {
    rank_of *a = (rank_of *)arg;
    void *slots[N];
    ds_zero_param params[N];
    ds_config *c = config_for(2, a->zero);
    ds_zero_desc d;
    ds_zero *z = NULL;
    memset(&d, 0, sizeof d);
    describe(params, slots);
    if (a->leaves_after == -1 && a->rank == 1) params[1].shape[0]++; /* another model */
    d.config = c;
    d.comm = a->comm;
    d.params = params;
    d.n_params = N;
    a->status = ds_zero_create(&d, &z, &a->error);
    for (int k = 0; k < 4 && !a->status; k++) {
        if (a->rank == 1 && k == a->leaves_after) break;
        if ((a->status = step(z))) a->error = *ds_zero_error(z);
    }
    if (a->status && z) CHECK(ds_zero_begin(z, DS_ZERO_TRAIN) == a->status);
    ds_zero_destroy(z);
    ds_comm_destroy(a->comm);
    ds_config_free(c);
    return NULL;
}

static void ranks(void) {
    static const char *const zeros[] = {"\"stage\": 0", "\"stage\": 1", "\"stage\": 2, \"overlap_comm\": true",
                                        "\"stage\": 3, \"stage3_param_persistence_threshold\": 0"};
    for (int stage = 0; stage < 4; stage++)
        for (int leaves = -3; leaves < 3; leaves++) {
            char name[80], other[128];
            snprintf(name, sizeof name, "stage %d: rank 1 %s %d", stage,
                     leaves == -3   ? "has another key of its own"
                     : leaves == -2 ? "has another setting"
                     : leaves == -1 ? "has another model"
                                    : "leaves after step",
                     leaves);
            TEST_NAMED(name) {
                ds_comm *comms[2] = {NULL, NULL};
                ds_comm_desc d;
                rank_of of[2];
                pthread_t threads[2];
                memset(&d, 0, sizeof d);
                memset(of, 0, sizeof of);
                d.timeout = 20000000000;
                CHECK(ds_comm_threads_create(&d, 2, comms, NULL) == DS_OK);
                for (int r = 0; r < 2; r++) {
                    of[r].comm = comms[r];
                    snprintf(other, sizeof other, "%s, %s", zeros[stage],
                             leaves == -2 ? "\"stage3_prefetch_bucket_size\": 7" : "\"elastic_checkpoint\": false");
                    of[r].zero = leaves < -1 && r == 1 ? other : zeros[stage];
                    of[r].rank = r;
                    of[r].leaves_after = leaves;
                    pthread_create(&threads[r], NULL, run_rank, &of[r]);
                }
                for (int r = 0; r < 2; r++) pthread_join(threads[r], NULL);
                if (leaves == -3)
                    CHECK(of[0].status == DS_OK && of[1].status == DS_OK);
                else if (leaves < 0) {
                    CHECK(of[0].status == DS_ERR_INPUT && of[1].status == DS_ERR_INPUT);
                    CHECK_HAS(of[0].error.message,
                              leaves == -1 ? "registered different parameters"
                                           : "rank 0: zero_optimization.stage3_prefetch_bucket_size is 50000000 here, "
                                             "and something else on another rank");
                } else {
                    CHECK(of[1].status == DS_OK);
                    CHECK(of[0].status == DS_ERR_PEER);
                    CHECK_HAS(of[0].error.message, "rank 1");
                }
            }
        }
}

/*---- memory and files, in training, saving, loading and exporting -----------------------------------------------*/

typedef struct broken_files { /* the n-th call that reaches the disk fails */
    long at, seen;
    int error;
} broken_files;
static bool fails(void *ctx) {
    broken_files *b = (broken_files *)ctx;
    return __atomic_add_fetch(&b->seen, 1, __ATOMIC_RELAXED) == b->at;
}
static int b_open(void *x, const char *p, int flags, unsigned m) {
    return fails(x) ? -((broken_files *)x)->error : dsi_sys_open(NULL, p, flags, m);
}
static int64_t b_read(void *x, int fd, void *b, size_t n, int64_t at) {
    return fails(x) ? -((broken_files *)x)->error : dsi_sys_read(NULL, fd, b, n, at);
}
static int64_t b_write(void *x, int fd, const void *b, size_t n, int64_t at) {
    return fails(x) ? -((broken_files *)x)->error : dsi_sys_write(NULL, fd, b, n, at);
}
static int b_sync(void *x, int fd) {
    (void)fd; /* nothing here is meant to last */
    return fails(x) ? -((broken_files *)x)->error : 0;
}
static int no_sync(void *x, int fd) {
    return (void)x, (void)fd, 0;
}
static int b_rename(void *x, const char *a, const char *b) {
    return fails(x) ? -((broken_files *)x)->error : dsi_sys_rename(NULL, a, b);
}
static int b_mkdir(void *x, const char *p, unsigned m) {
    return fails(x) ? -((broken_files *)x)->error : dsi_sys_mkdir(NULL, p, m);
}
static void break_files(ds_files *f, broken_files *b) {
    f->ctx = b;
    f->open = b_open;
    f->read = b_read;
    f->write = b_write;
    f->sync = b_sync;
    f->rename = b_rename;
    f->mkdir = b_mkdir;
}

typedef struct session {
    ds_zero *z;
    ds_status expected; /* of the one failure */
    int failures;
    bool good, dead;
} session;

/* One call. When it fails, it says what is wrong, and succeeds when it is made again: nothing has changed. Only a checkpoint
   that stops being readable half-way ends the engine, which then goes on saying so. */
#define CALL(call)                                                                                                     \
    do {                                                                                                               \
        ds_status s_ = (call);                                                                                         \
        if (s_) {                                                                                                      \
            a->failures++;                                                                                             \
            if (!CHECK(s_ == a->expected && (!a->z->dead || strncmp(#call, "ds_zero_load", 12) == 0)))                 \
                printf("  %s: %s\n", #call, ds_zero_error(a->z)->message);                                             \
            CHECK(ds_zero_error(a->z)->message[0] && ds_zero_error(a->z)->status == s_);                               \
            CHECK(!a->z->dead || ds_zero_begin(a->z, DS_ZERO_TRAIN) == s_);                                            \
            a->dead = a->z->dead;                                                                                      \
            if (!a->dead) s_ = (call);                                                                                 \
            if (!CHECK(a->dead || s_ == DS_OK)) printf("  again, %s: %s\n", #call, ds_zero_error(a->z)->message);      \
        }                                                                                                              \
        a->good = a->good && !s_;                                                                                      \
    } while (0)

/* Training that needs more memory than was foreseen: parameters beyond the window, traces that grow, gradients before their
   buckets; a checkpoint, and back. */
static void train(session *a, const char *folder, const char *file, float *values) {
    for (int k = 0; k < 2 && a->good; k++) {
        CALL(ds_zero_begin(a->z, DS_ZERO_TRAIN));
        for (size_t n = 0; n < 10 && a->good; n++)
            for (size_t i = 0; i < N && a->good; i++) CALL(ds_zero_fetch(a->z, i, NULL));
        for (size_t i = 0; i < N && a->good; i++) {
            void *buffer = NULL;
            CALL(ds_zero_grad_buffer(a->z, i, &buffer));
            if (buffer) memcpy(buffer, gradient, sizeof gradient);
        }
        for (size_t i = 0; i < N && a->good; i++) CALL(ds_zero_grad_ready(a->z, i, NULL));
        for (size_t n = 0; n < 10 && a->good; n++)
            for (size_t i = 0; i < N && a->good; i++) CALL(ds_zero_release(a->z, i));
        CALL(ds_zero_end(a->z));
        if (a->good) CALL(ds_zero_step(a->z, NULL));
        if (a->good) CALL(ds_zero_save(a->z, folder, NULL, "client", 6));
    }
    if (a->good) CALL(ds_zero_load(a->z, folder, NULL, NULL, NULL));
    if (a->good) CALL(ds_zero_save_16bit_model(a->z, file));
    for (size_t i = 0; i < N && a->good; i++) CALL(ds_zero_read(a->z, i, -1, 0, NUMEL, values + i * NUMEL));
}

static const char *const sessions[] = {
    "\"stage\": 0",
    "\"stage\": 2, \"reduce_bucket_size\": 1",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"stage3_max_live_parameters\": 0, "
    "\"reduce_bucket_size\": 1, "
    "\"stage3_gather_16bit_weights_on_model_save\": true",
};

/* Runs one session with the n-th allocation after create, or the n-th call to the disk, failing; the calls there were. */
static long one_session(const char *zero, size_t memory_at, long file_at, int error, float *values, int *failures) {
    char folder[] = "/tmp/ds_zero_XXXXXX", file[64], command[64];
    void *slots[N];
    ds_zero_param params[N];
    ds_config *c = config_for(1, zero);
    ds_zero_desc d;
    ds_error e = {DS_OK, ""};
    test_memory m;
    broken_files b;
    session a;
    size_t created;
    memset(&d, 0, sizeof d);
    memset(&m, 0, sizeof m);
    memset(&b, 0, sizeof b);
    memset(&a, 0, sizeof a);
    CHECK(mkdtemp(folder) != NULL);
    snprintf(file, sizeof file, "%s/model.safetensors", folder);
    describe(params, slots);
    d.config = c;
    d.params = params;
    d.n_params = N;
    d.largest_fetch = 1;
    d.allocator.alloc = test_alloc;
    d.allocator.release = test_release;
    d.allocator.ctx = &m;
    break_files(&d.files, &b);
    a.good = true;
    a.expected = memory_at ? DS_ERR_MEMORY : error == ENOSPC ? DS_ERR_SPACE : DS_ERR_IO;
    if (!CHECK(ds_zero_create(&d, &a.z, &e) == DS_OK)) return 0;
    created = m.calls;
    b.seen = 0;
    b.at = file_at;
    b.error = error;
    m.fail_at = memory_at ? created + memory_at : 0;
    train(&a, folder, file, values);
    *failures = a.dead ? -1 : a.failures;
    ds_zero_destroy(a.z);
    CHECK_EQ(m.live, 0);
    CHECK_EQ(m.mismatches, 0);
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
    ds_config_free(c);
    return memory_at || !file_at ? (long)(m.calls - created) : b.seen;
}

static void retries(void) {
    static float expected[N * NUMEL], got[N * NUMEL];
    for (size_t k = 0; k < sizeof sessions / sizeof sessions[0]; k++) {
        char name[96];
        snprintf(name, sizeof name, "every allocation of training and checkpoints fails in turn, setting %zu", k);
        TEST_NAMED(name) {
            int failures = 0;
            long total = one_session(sessions[k], 0, 0, 0, expected, &failures);
            CHECK(failures == 0 && total > 20);
            for (long at = 1; at <= total; at++) {
                long seen;
                memset(got, 0, sizeof got);
                seen = one_session(sessions[k], (size_t)at, 0, 0, got, &failures);
                if (!CHECK(seen > 0 && memcmp(expected, got, sizeof got) == 0)) printf("  allocation %ld\n", at);
            }
        }
        snprintf(name, sizeof name, "every call to the disk of saving and loading fails in turn, setting %zu", k);
        TEST_NAMED(name) {
            int failures = 0;
            long total = one_session(sessions[k], 0, LONG_MAX, 0, expected, &failures);
            long dead = 0;
            CHECK(failures == 0 && total > 20);
            for (long at = 1; at <= total; at++) {
                memset(got, 0, sizeof got);
                (void)one_session(sessions[k], 0, at, at % 2 ? EIO : ENOSPC, got, &failures);
                if (!CHECK(failures <= 1 && (failures < 0 || memcmp(expected, got, sizeof got) == 0)))
                    printf("  call %ld\n", at);
                dead += failures < 0;
            }
            CHECK(dead > 0 && dead < total / 4);
        }
    }
}

/*---- a story of everything that an engine does, on ranks whose cable is cut, or whose disk fails, at its n-th use: some n,
  all with DS_TEST_KILLS -----------------------------------------------------------------------------------------*/

typedef struct plot { /* what a story is about */
    const char *name, *zero, *more;
    int world;
    bool half; /* bf16 */
} plot;

/* What fails, at its n-th use: rank 1's exchange, or the last rank's request to the disk, call to files or allocation. */
typedef struct blow {
    long cable, disk, files;
    bool dies; /* the disk: all requests from there on */
    size_t memory;
} blow;

enum { S_TABLE, S_MATRIX, S_FROZEN, S_TINY, S_LARGE, S_N };
static const size_t story_shape[S_N][2] = {{40, 50}, {30, 90}, {2100, 1}, {3, 1}, {5000, 1}};
static uint16_t half_gradient[NUMEL];

static void describe_story(ds_zero_param *p, void **slots, const plot *t) {
    static const char *const names[S_N] = {"table", "matrix", "frozen", "tiny", "large"};
    memset(p, 0, S_N * sizeof *p);
    for (int i = 0; i < S_N; i++) {
        p[i].name = names[i];
        p[i].dims = story_shape[i][1] > 1 ? 2 : 1;
        p[i].shape[0] = story_shape[i][0];
        p[i].shape[1] = story_shape[i][1];
        p[i].dtype = t->half ? DS_BF16 : DS_F32;
        p[i].slot = &slots[i];
        p[i].init = init;
    }
    p[S_TABLE].sparse = true;
    p[S_TINY].dtype = DS_F32; /* beside 16-bit ones */
    p[S_FROZEN].frozen = true;
    p[S_LARGE].contributions = 2;
}

static ds_config *story_config(const plot *t) {
    char text[2000];
    ds_config_options o;
    ds_config *c = NULL;
    ds_error e = {DS_OK, ""};
    memset(&o, 0, sizeof o);
    o.world_size = (size_t)t->world;
    snprintf(text, sizeof text,
             "{%s %s %s \"train_micro_batch_size_per_gpu\": 1, \"aio\": {\"block_size\": 4096}, "
             "\"gradient_accumulation_steps\": 2, \"zero_optimization\": {\"stage3_param_persistence_threshold\": 100, "
             "\"sub_group_size\": 1024, %s}}",
             t->half ? "\"bf16\": {\"enabled\": true}," : "", t->more,
             strstr(t->more, "\"optimizer\"") ? "" : "\"optimizer\": {\"type\": \"AdamW\"},", t->zero);
    if (!CHECK(ds_config_parse(text, strlen(text), &o, &c, &e) == DS_OK)) printf("  %s\n", e.message);
    return c;
}

static void no_line(void *ctx, const char *text) {
    (void)ctx, (void)text;
}
static void no_log(void *ctx, const char *header, int level, int id, const char *message) {
    (void)ctx, (void)header, (void)level, (void)id, (void)message;
}

/* Everything an engine does, until something fails: that call and its status. */
#define DO(call)                                                                                                       \
    do {                                                                                                               \
        if ((s = (call))) return *at = #call, s;                                                                       \
    } while (0)
static ds_status story(ds_zero *z, const plot *t, const char *folder, const char **at) {
    const void *g = t->half ? (const void *)half_gradient : gradient, *client = NULL;
    char file[96];
    float values[10], before[S_N][3];
    size_t bytes = 0;
    ds_status s;
    snprintf(file, sizeof file, "%s/model.safetensors", folder);
    for (int step = 0; step < 3; step++) {
        for (int micro = 0; micro < 2; micro++) {
            DO(ds_zero_begin(z, DS_ZERO_TRAIN));
            for (size_t i = 0; i < S_N; i++) {
                DO(ds_zero_fetch(z, i, NULL));
                DO(ds_zero_release(z, i));
            }
            DO(ds_zero_grad(z, S_LARGE, g, NULL)); /* tied: the first of two, before all others */
            for (size_t i = S_N; i-- > 0;) {
                DO(ds_zero_fetch(z, i, NULL));
                if (i != S_FROZEN && i != S_TINY) DO(ds_zero_grad(z, i, g, NULL)); /* the tiny one has none */
                DO(ds_zero_release(z, i));
            }
            DO(ds_zero_loss(z, 1.0));
            DO(ds_zero_end(z));
        }
        DO(ds_zero_begin(z, DS_ZERO_EVALUATE));
        for (size_t i = 0; i < S_N; i++) {
            DO(ds_zero_fetch(z, i, NULL));
            DO(ds_zero_release(z, i));
        }
        DO(ds_zero_end(z));
        DO(ds_zero_begin(z, DS_ZERO_EVALUATE)); /* and one that ends early: what was fetched ahead is let go */
        DO(ds_zero_fetch(z, 0, NULL));
        DO(ds_zero_release(z, 0));
        DO(ds_zero_end(z));
        DO(ds_zero_step(z, NULL));
        if (step == 1) DO(ds_zero_save(z, folder, NULL, "client", 6)); /* while the last writes to the disk go on */
        if (step == 2) DO(ds_zero_load(z, folder, NULL, &client, &bytes));
        for (size_t i = 0; i < S_N; i++) {
            DO(ds_zero_read(z, i, -1, 0, i == S_TINY ? 3 : 10, values));
            if (i == S_FROZEN && values[9] != 7.0f) return *at = "frozen values", DS_ERR_CORRUPT;
        }
        if (step == 1) DO(ds_zero_save_finish(z));
    }
    if (bytes != 6 || memcmp(client, "client", 6) != 0) return *at = "client state", DS_ERR_CORRUPT;
    DO(ds_zero_save_16bit_model(z, file));
    for (size_t i = 0; i < S_N; i++) DO(ds_zero_read(z, i, -1, 0, 3, before[i]));
    DO(ds_zero_load(z, file, NULL, NULL, NULL)); /* weights alone, in the model's types */
    for (size_t i = 0; i < S_N; i++) {
        DO(ds_zero_read(z, i, -1, 0, 3, values));
        for (size_t k = 0; k < 3; k++)
            if (values[k] != (t->half && i != S_TINY ? dsi_f32_of_bf16(dsi_bf16_of_f32(before[i][k])) : before[i][k]))
                return *at = "exported values", DS_ERR_CORRUPT;
    }
    DO(ds_zero_comm_summary(z, no_line, NULL));
    return DS_OK;
}

/* A save, but not of an export. */
static bool saves(const char *call) {
    return strncmp(call, "ds_zero_save(", 13) == 0 || strncmp(call, "ds_zero_save_finish(", 20) == 0;
}

typedef struct story_rank {
    mailman man;
    const plot *t;
    const char *folder, *at; /* `at`: the call that failed */
    trouble disk;
    broken_files files;
    test_memory memory;
    ds_status status;
    ds_error error;
    size_t created;            /* allocations by then */
    bool agreed, alive, again; /* again: the save that failed was made a second time */
} story_rank;

static void *run_story(void *arg) {
    story_rank *a = (story_rank *)arg;
    void *slots[S_N];
    float frozen[2100];
    uint16_t halves[2100];
    ds_zero_param params[S_N];
    ds_config *c = story_config(a->t);
    ds_comm_transport transport = post_transport(&a->man);
    ds_comm_desc cd;
    ds_zero_desc d;
    ds_comm *comm = NULL;
    ds_zero *z = NULL;
    memset(&cd, 0, sizeof cd);
    memset(&d, 0, sizeof d);
    describe_story(params, slots, a->t);
    for (size_t i = 0; i < 2100; i++) frozen[i] = a->man.rank ? 3.0f : 7.0f;
    for (size_t i = 0; i < 2100; i++) halves[i] = dsi_bf16_of_f32(frozen[i]);
    params[S_FROZEN].data = a->t->half ? (void *)halves : frozen; /* rank 0's are everyone's */
    transport.concurrent = strstr(a->t->more, "gather_in_background") != NULL;
    cd.backend = "user";
    cd.world = a->t->world;
    cd.rank = a->man.rank;
    cd.timeout = 20000000000;
    cd.transport = &transport;
    d.config = c;
    d.params = params;
    d.n_params = S_N;
    d.allocator.alloc = test_alloc;
    d.allocator.release = test_release;
    d.allocator.ctx = &a->memory;
    d.files.sync = no_sync;
    if (a->files.at) break_files(&d.files, &a->files);
    d.logger.log = no_log;
    d.aio.ctx = &a->disk;
    d.aio.setup = setup;
    d.aio.teardown = teardown;
    d.aio.submit = submit;
    d.aio.events = events;
    a->at = "ds_comm_create";
    if (cd.world > 1) a->status = ds_comm_create(&cd, &comm, &a->error);
    d.comm = comm;
    if (!a->status) {
        a->at = "ds_zero_create";
        a->status = ds_zero_create(&d, &z, &a->error);
        a->created = a->memory.calls;
    }
    a->agreed = true;
    if (z && (a->status = story(z, a->t, a->folder, &a->at))) {
        a->error = *ds_zero_error(z);
        a->alive = !z->dead;
        a->agreed = a->error.status == a->status;
        if (z->dead) /* and saying so */
            a->agreed = a->agreed && ds_zero_begin(z, DS_ZERO_TRAIN) == a->status && ds_zero_end(z) == a->status &&
                        ds_zero_fetch(z, 0, NULL) == a->status && ds_zero_step(z, NULL) == a->status &&
                        ds_zero_loss(z, 1.0) == a->status && ds_zero_read(z, 0, -1, 0, 0, NULL) == a->status &&
                        ds_zero_save(z, "build/nowhere", NULL, NULL, 0) == a->status &&
                        ds_zero_load(z, "build/nowhere", NULL, NULL, NULL) == a->status &&
                        ds_zero_save_16bit_model(z, "build/nowhere") == a->status &&
                        strcmp(ds_zero_error(z)->message, a->error.message) == 0;
        else if (saves(a->at))
            a->again = ds_zero_save(z, a->folder, NULL, "client", 6) == DS_OK && ds_zero_save_finish(z) == DS_OK;
    }
    ds_zero_destroy(z);
    ds_comm_destroy(comm);
    ds_config_free(c);
    if (a->memory.live || a->memory.mismatches) a->agreed = false;
    if (a->status) post_cut(a->man.office); /* who gave up is gone */
    return NULL;
}

static void tell_story(const plot *t, blow b, story_rank *r) {
    char folder[] = "/tmp/ds_zero_XXXXXX", command[64];
    post office;
    pthread_t threads[4];
    memset(r, 0, 4 * sizeof *r);
    post_open(&office);
    CHECK(mkdtemp(folder) != NULL);
    for (int k = 0; k < t->world; k++) {
        r[k].man.office = &office;
        r[k].man.rank = k;
        r[k].man.at = k == 1 ? b.cable : 0;
        r[k].t = t;
        r[k].folder = folder;
        if (k + 1 < t->world) continue;
        r[k].disk.at = b.disk;
        r[k].disk.dies = b.dies;
        r[k].files.at = b.files;
        r[k].files.error = EIO;
        r[k].memory.fail_at = b.memory;
    }
    for (int k = 0; k < t->world; k++) {
        if (t->world > 1)
            pthread_create(&threads[k], NULL, run_story, &r[k]);
        else
            run_story(&r[k]);
    }
    for (int k = 0; k < t->world && t->world > 1; k++) pthread_join(threads[k], NULL);
    post_close(&office);
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
}

#define ON_DISK                                                                                                        \
    "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": true, "                \
    "\"pipeline_write\": true, \"fast_init\": true}, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": "        \
    "\"build\", "                                                                                                      \
    "\"max_in_cpu\": 0, \"buffer_count\": 2, \"buffer_size\": 1024}"
#define EXPORTS "\"stage3_gather_16bit_weights_on_model_save\": true"
static const plot plots[] = {
    {"stage 0", "\"stage\": 0", "\"sparse_gradients\": true,", 2, false},
    {"stage 0, 1-bit", "\"stage\": 0", "\"optimizer\": {\"type\": \"OneBitAdam\", \"params\": {\"freeze_step\": 2}},",
     2, false},
    {"stage 1, packed", "\"stage\": 1, \"allgather_bucket_size\": 3000, \"reduce_bucket_size\": 3000", "", 2, true},
    {"stage 2, broadcasts",
     "\"stage\": 2, \"allgather_partitions\": false, \"reduce_bucket_size\": 1, \"overlap_comm\": true", "", 2, false},
    {"stage 2, gathers in the background", "\"stage\": 2", "\"ds\": {\"gather_in_background\": true},", 2, true},
    {"stage 2, quantized", "\"stage\": 2, \"zero_quantized_gradients\": true",
     "\"ds\": {\"save_in_background\": true, \"keep_last\": 1},", 2, true},
    {"stage 2, LAMB", "\"stage\": 2",
     "\"optimizer\": {\"type\": \"Lamb\"}, \"comms_logger\": {\"enabled\": true}, \"checkpoint\": "
     "{\"use_node_local_storage\": true},",
     2, false},
    {"stage 3", "\"stage\": 3, \"reduce_bucket_size\": 1, \"stage3_max_live_parameters\": 4000, " EXPORTS,
     "\"wall_clock_breakdown\": true,", 2, true},
    {"stage 3, nodes", "\"stage\": 3, \"zero_hpz_partition_size\": 2, \"zero_quantized_weights\": true, " EXPORTS,
     "\"comms_logger\": {\"enabled\": true},", 4, false},
    {"stage 3, on disk", "\"stage\": 3, " ON_DISK ", " EXPORTS, "", 2, true},
};
/* what one rank does to the disk */
static const plot disk_plots[] = {
    {"all in bf16", "\"stage\": 3, " ON_DISK ", " EXPORTS, "", 1, true},
    {"all in fp32, world_invariant", "\"stage\": 3, " ON_DISK ", " EXPORTS, "\"ds\": {\"world_invariant\": true},", 1,
     false},
    {"states, no pipelines",
     "\"stage\": 3, \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\", \"ratio\": 0.5}, " EXPORTS,
     "", 1, true},
    {"parameters",
     "\"stage\": 3, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"build\", \"max_in_cpu\": "
     "2000}, " EXPORTS,
     "\"dump_state\": true,", 1, false},
    {"states of LAMB", "\"stage\": 3, " ON_DISK ", " EXPORTS, "\"optimizer\": {\"type\": \"Lamb\"},", 1, false},
};

static void messages(void) {
    static story_rank r[4];
    for (size_t k = 0; k < sizeof plots / sizeof plots[0]; k++) {
        const plot *t = &plots[k];
        char name[96];
        snprintf(name, sizeof name, "each exchange between ranks fails in turn: %s", t->name);
        TEST_NAMED(name) {
            long total, stride;
            tell_story(t, (blow){.files = LONG_MAX}, r);
            for (int i = 0; i < t->world; i++)
                if (!CHECK(r[i].status == DS_OK && r[i].agreed))
                    printf("  rank %d, %s: %s\n", i, r[i].at, r[i].error.message);
            total = r[1].man.seen;
            stride = getenv("DS_TEST_KILLS") ? 1 : total / 50 + 1;
            CHECK(total > 20);
            for (long at = 1 + (long)k % stride; at <= total; at += stride) {
                tell_story(t, (blow){.cable = at}, r);
                if (!CHECK(r[1].status != DS_OK && r[1].agreed && !r[1].alive &&
                           strstr(r[1].error.message, "the cable was cut")))
                    printf("  exchange %ld of %ld, rank 1, %s: %d %s\n", at, total, r[1].at, (int)r[1].status,
                           r[1].error.message);
                for (int i = 0; i < t->world; i++) /* the others notice, unless they had all they needed */
                    if (!CHECK(r[i].agreed && (r[i].status == DS_OK || DS_IS_ENVIRONMENT(r[i].status))))
                        printf("  exchange %ld of %ld, rank %d, %s: %d %s\n", at, total, i, r[i].at, (int)r[i].status,
                               r[i].error.message);
            }
        }
    }
}

/* As in disk(), over everything that an engine does; of one request, and of all from there on. */
static void disk_stories(void) {
    static story_rank r[4];
    for (size_t k = 0; k < 2 * sizeof disk_plots / sizeof disk_plots[0]; k++) {
        const plot *t = &disk_plots[k / 2];
        bool dies = k % 2;
        char name[96];
        snprintf(name, sizeof name, "requests to the disk fail %s: %s", dies ? "from one on" : "in turn", t->name);
        TEST_NAMED(name) {
            long total, stride;
            tell_story(t, (blow){.files = LONG_MAX}, r);
            if (!CHECK(r->status == DS_OK && r->agreed)) printf("  %s: %s\n", r->at, r->error.message);
            total = r->disk.seen;
            stride = getenv("DS_TEST_KILLS") ? 1 : total / (dies ? 40 : 120) + 1;
            CHECK(total > 20);
            for (long at = 1; at <= total; at += stride) {
                tell_story(t, (blow){.disk = at, .dies = dies}, r);
                if (!CHECK(r->status == DS_ERR_IO && r->agreed && !r->alive && strstr(r->error.message, "'build'") &&
                           strstr(r->error.message, "Input/output error")))
                    printf("  request %ld of %ld, %s: %d %s\n", at, total, r->at, (int)r->status, r->error.message);
            }
        }
    }
}

/* Calls to files of one of two ranks fail in turn: a save that fails leaves an engine that saves, on both. */
static void file_stories(void) {
    static story_rank r[4];
    static const char *const names[] = {"stage 0, 1-bit", "stage 1, packed", "stage 2, quantized", "stage 3, on disk"};
    for (size_t k = 0; k < sizeof plots / sizeof plots[0]; k++) {
        const plot *t = &plots[k];
        char name[96];
        bool told = false;
        for (size_t i = 0; i < 4; i++) told |= strcmp(t->name, names[i]) == 0;
        if (!told) continue;
        snprintf(name, sizeof name, "calls to files of one rank fail in turn: %s", t->name);
        TEST_NAMED(name) {
            long total, saved = 0, dead = 0, without = 0;
            tell_story(t, (blow){.files = LONG_MAX}, r);
            total = r[1].files.seen;
            CHECK(r[0].status == DS_OK && r[1].status == DS_OK && total > 10);
            for (long at = 1; at <= total; at++) {
                bool both;
                tell_story(t, (blow){.files = at}, r);
                both = r[1].status == DS_ERR_IO && DS_IS_ENVIRONMENT(r[0].status) && r[0].agreed && r[1].agreed &&
                       strcmp(r[0].at, r[1].at) == 0;
                if (both && r[1].alive && saves(r[1].at)) both = r[0].again && r[1].again, saved++;
                dead += r[1].status && !r[1].alive;
                if (r[0].status == DS_OK && r[1].status == DS_OK)
                    CHECK(without++ < 2); /* a checkpoint is found without `latest` */
                else if (!CHECK(both))
                    printf("  call %ld of %ld: %s: %d %s; %s: %d %s\n", at, total, r[0].at, (int)r[0].status,
                           r[0].error.message, r[1].at, (int)r[1].status, r[1].error.message);
            }
            CHECK(saved > 0 && dead > 0 && dead < total / 2);
        }
    }
}

/* Allocations of the last rank fail in turn, from create on: it says so, and the others do not wait for it. */
static void memory_stories(const plot *list, size_t count) {
    static story_rank r[4];
    for (size_t k = 0; k < count; k++) {
        const plot *t = &list[k];
        int last = t->world - 1, without = 0;
        char name[96];
        snprintf(name, sizeof name, "allocations fail in turn: %s", t->name);
        TEST_NAMED(name) {
            size_t total, stride;
            tell_story(t, (blow){.files = LONG_MAX}, r);
            total = r[last].memory.calls;
            stride = getenv("DS_TEST_KILLS") ? 1 : total / 60 + 1;
            CHECK(r[last].status == DS_OK && total > r[last].created && r[last].created > 20);
            for (size_t at = 1; at <= total; at += stride) {
                bool did_without; /* a checkpoint is found without `latest`, too */
                tell_story(t, (blow){.memory = at}, r);
                did_without = r[last].status == DS_OK && !without++;
                if (!CHECK(did_without || (r[last].status == DS_ERR_MEMORY && r[last].agreed &&
                                           strstr(r[last].error.message, "memory"))))
                    printf("  allocation %zu of %zu, %s: %d %s\n", at, total, r[last].at, (int)r[last].status,
                           r[last].error.message);
                for (int i = 0; i < last; i++)
                    if (!CHECK(r[i].agreed && (did_without ? r[i].status == DS_OK : DS_IS_ENVIRONMENT(r[i].status))))
                        printf("  allocation %zu of %zu, rank %d, %s: %d %s\n", at, total, i, r[i].at, (int)r[i].status,
                               r[i].error.message);
            }
        }
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    for (int i = 0; i < NUMEL; i++) half_gradient[i] = dsi_bf16_of_f32((float)(i % 13) * 0.01f - 0.05f);
    disk();
    left_update();
    ranks();
    retries();
    messages();
    disk_stories();
    file_stories();
    memory_stories(plots, sizeof plots / sizeof plots[0]);
    memory_stories(disk_plots, sizeof disk_plots / sizeof disk_plots[0]);
    return test_end();
}
