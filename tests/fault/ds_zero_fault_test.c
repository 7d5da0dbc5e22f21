/* The engine when the disk or another rank fails: an error that says what and where, no hang, a dead engine that goes on saying
   so, nothing leaked. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"

enum { N = 3, NUMEL = 5000 };
static float gradient[NUMEL];

static void init(void *ctx, size_t begin, size_t count, float *out) {
    (void)ctx;
    for (size_t i = 0; i < count; i++) out[i] = (float)((begin + i) % 7);
}

/* Plain reads and writes of which the n-th fails. */
typedef struct trouble {
    long at, seen;
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
        if (__atomic_add_fetch(&t->seen, 1, __ATOMIC_RELAXED) == __atomic_load_n(&t->at, __ATOMIC_RELAXED))
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
    if (a->leaves_after < 0 && a->rank == 1) params[1].shape[0]++; /* another model */
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
        for (int leaves = -1; leaves < 3; leaves++) {
            char name[64];
            snprintf(name, sizeof name, "stage %d: rank 1 %s %d", stage,
                     leaves < 0 ? "has another model" : "leaves after step", leaves);
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
                    of[r].zero = zeros[stage];
                    of[r].rank = r;
                    of[r].leaves_after = leaves;
                    pthread_create(&threads[r], NULL, run_rank, &of[r]);
                }
                for (int r = 0; r < 2; r++) pthread_join(threads[r], NULL);
                if (leaves < 0) {
                    CHECK(of[0].status == DS_ERR_INPUT && of[1].status == DS_ERR_INPUT);
                    CHECK_HAS(of[0].error.message, "registered different parameters");
                } else {
                    CHECK(of[1].status == DS_OK);
                    CHECK(of[0].status == DS_ERR_PEER);
                    CHECK_HAS(of[0].error.message, "rank 1");
                }
            }
        }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    disk();
    ranks();
    return test_end();
}
