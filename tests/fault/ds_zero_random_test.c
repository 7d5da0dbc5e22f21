/* Random schedules of passes, fetches, releases, gradients and steps, right and wrong ones, against a model of what must
   hold: what is refused, what a slot shows, and that what comes out is the plain engine's, bit for bit. All ranks draw the
   same schedule, but each leaves out gradients of its own choice. Environment: DS_TEST_SCHEDULES, how many (default 300). */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"

enum { N = 5, ACCUMULATION = 2, MAX_WORLD = 3 };
static const size_t sizes[N] = {3000, 10, 1024, 0, 5000};
static const char *const names[N] = {"v", "w", "x", "y", "z"};
enum { FROZEN = 1, TIED = 2 };

static float initial(size_t i, size_t e) {
    return (float)((e * 37 + i * 11) % 101) * 0.01f - 0.5f;
}
static void init(void *ctx, size_t begin, size_t count, float *out) {
    for (size_t k = 0; k < count; k++) out[k] = initial((size_t)(uintptr_t)ctx, begin + k);
}
static float gradient(size_t i, size_t e, int rank, int64_t pass, int contribution) {
    uint64_t state = e * 1000003u + i * 7919u + (uint64_t)rank * 104729u + (uint64_t)pass * 1299709u +
                     (uint64_t)contribution * 32452843u;
    return (float)(test_uniform(&state) - 0.5);
}

typedef struct walker {
    ds_comm *comm, *plain_comm;
    int rank, world;
    uint64_t seed;
    char message[700];
} walker;

/* Gradients of a parameter that a rank gives in a pass at most. */
static int most_given(const walker *w, size_t i, int64_t pass, int rank) {
    uint64_t state = w->seed + i * 7919u + (uint64_t)pass * 1299709u + (uint64_t)rank * 104729u;
    int draw = (int)(test_random(&state) % 16);
    return w->world > 1 && draw < 3 ? draw % 2 : 2;
}
static bool some_leave_out(const walker *w, size_t i, int64_t pass) {
    bool some = false;
    for (int r = 0; r < w->world; r++) some |= most_given(w, i, pass, r) < 2;
    return some;
}

/* What must hold. */
typedef struct state {
    int pass, micro; /* -1: none open */
    int fetches[N], given[N];
    bool lent[N];
    int64_t passes; /* training passes so far: their gradients' seed */
} state;

static const char *const zeros[] = {
    "\"stage\": 0",
    "\"stage\": 1, \"reduce_bucket_size\": 2000",
    "\"stage\": 2, \"overlap_comm\": true, \"reduce_bucket_size\": 3000",
    "\"stage\": 2, \"overlap_comm\": false, \"reduce_bucket_size\": 1",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"stage3_max_live_parameters\": 4000, "
    "\"stage3_prefetch_bucket_size\": 3500",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 100, \"stage3_max_live_parameters\": 0, "
    "\"stage3_max_reuse_distance\": 0, \"reduce_bucket_size\": 1",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": "
    "\"build\"}, \"stage3_max_live_parameters\": 6000",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 1024, \"offload_optimizer\": "
    "{\"device\": \"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": true, \"pipeline_write\": true}",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 100, \"sub_group_size\": 2048, "
    "\"stage3_max_live_parameters\": 6000, \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": "
    "\"build\", \"pipeline_write\": true}, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": "
    "\"build\", \"max_in_cpu\": 0}",
};

static ds_zero *engine(const walker *w, const char *zero, ds_comm *comm, void **slots, ds_config **config,
                       ds_error *e) {
    char text[1024];
    ds_config_options o;
    ds_zero_param params[N];
    ds_zero_desc d;
    ds_zero *z = NULL;
    memset(&o, 0, sizeof o);
    memset(&d, 0, sizeof d);
    memset(params, 0, sizeof params);
    o.world_size = (size_t)w->world;
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": %d, \"optimizer\": {\"type\": "
             "\"AdamW\", \"params\": {\"lr\": 0.01}}, \"zero_optimization\": {%s, \"ignore_unused_parameters\": true}}",
             ACCUMULATION, zero);
    if (ds_config_parse(text, strlen(text), &o, config, e)) return NULL;
    for (size_t i = 0; i < N; i++) {
        params[i].name = names[i];
        params[i].dims = 1;
        params[i].shape[0] = sizes[i];
        params[i].slot = &slots[i];
        params[i].init = init;
        params[i].ctx = (void *)(uintptr_t)i;
        params[i].frozen = i == FROZEN;
        params[i].contributions = i == TIED ? 2 : 1;
    }
    d.config = *config;
    d.comm = comm;
    d.params = params;
    d.n_params = N;
    return ds_zero_create(&d, &z, e) ? NULL : z;
}

/* The call that leads on to the next step: chance alone would hardly ever close a pass. */
static int tidy(const state *m, size_t *i) {
    for (size_t k = 0; k < N; k++) {
        if (m->pass >= 0 && (m->fetches[k] || m->lent[k])) {
            *i = k;
            return m->fetches[k] ? 5 : 10;
        }
    }
    return m->pass >= 0 ? 1 : m->micro == ACCUMULATION ? 11 : 0;
}

#define MUST(condition, what)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            snprintf(w->message, sizeof w->message, "operation %d, %s, parameter %zu: %s (%s)", op, what, i,           \
                     #condition, ds_zero_error(z)->message);                                                           \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)

/* The plain engine's step with the gradients that were given, in order. */
static ds_status mirror(ds_zero *plain, const walker *w, int64_t pass, const int *given, float *values) {
    ds_status status = ds_zero_begin(plain, DS_ZERO_TRAIN);
    for (size_t i = N; i-- > 0 && !status;)
        for (int k = 0; k < given[i] && k < most_given(w, i, pass, w->rank) && !status; k++) {
            for (size_t e = 0; e < sizes[i]; e++) values[e] = gradient(i, e, w->rank, pass, k);
            status = ds_zero_grad(plain, i, values, NULL);
        }
    return status ? status : ds_zero_end(plain);
}

static void *walk(void *arg) {
    walker *w = (walker *)arg;
    uint64_t random = w->seed;
    void *slots[N] = {0}, *plain_slots[N] = {0}, *lent[N] = {0};
    ds_error error = {DS_OK, ""};
    ds_config *config = NULL, *plain_config = NULL;
    const char *zero = zeros[test_random(&random) % (sizeof zeros / sizeof zeros[0])];
    float *values = (float *)malloc(5000 * sizeof *values);
    ds_zero *z = engine(w, zero, w->comm, slots, &config, &error);
    ds_zero *plain = z ? engine(w, zeros[0], w->plain_comm, plain_slots, &plain_config, &error) : NULL;
    bool partial = strstr(zero, "\"stage\": 3") != NULL;
    bool own_order = !partial && test_random(&random) % 2; /* of the gradients, on each rank */
    state m;
    int op = -1;
    size_t i = 0;
    memset(&m, 0, sizeof m);
    m.pass = -1;
    if (!plain) {
        snprintf(w->message, sizeof w->message, "create: %s", error.message);
        goto done;
    }
    for (int turn = 0; turn < 400 || m.pass >= 0; turn++) { /* others may wait for a pass to end */
        ds_status s;
        bool train, whole;
        op = (int)(test_random(&random) % 12);
        i = test_random(&random) % N;
        if (turn >= 400 || (turn & 16 && test_random(&random) % 4)) op = tidy(&m, &i);
        if (own_order && op >= 7 && op <= 10) op = 8, i = (i + (size_t)w->rank) % N;
        train = m.pass == DS_ZERO_TRAIN;
        whole = !partial || sizes[i] == 0 || (strstr(zero, "threshold\": 100") && sizes[i] <= 100);
        if (op == 0) {
            int pass = (int)(test_random(&random) % 4);
            if (pass == 3) pass = DS_ZERO_TRAIN;
            s = ds_zero_begin(z, (ds_zero_pass)pass);
            if (m.pass >= 0 || (pass == DS_ZERO_TRAIN && m.micro == ACCUMULATION))
                MUST(s == DS_ERR_STATE, "begin");
            else {
                MUST(s == DS_OK, "begin");
                m.pass = pass;
                memset(m.given, 0, sizeof m.given);
            }
        } else if (op == 1) {
            bool held = false;
            size_t owed = N;
            for (size_t k = 0; k < N; k++) held |= m.fetches[k] > 0;
            for (size_t k = 0; k < N; k++)
                if (m.lent[k] && train && owed == N) owed = k;
            s = ds_zero_end(z);
            if (m.pass < 0 || held || owed < N) {
                MUST(s == DS_ERR_STATE, "end");
                MUST(m.pass < 0 || held || strstr(ds_zero_error(z)->message, names[owed]), "end");
            } else {
                MUST(s == DS_OK, "end");
                if (train) {
                    MUST(mirror(plain, w, m.passes, m.given, values) == DS_OK, "the plain engine's pass");
                    m.micro++;
                    m.passes++;
                }
                m.pass = -1;
            }
        } else if (op <= 4) {
            s = ds_zero_fetch(z, i, NULL);
            MUST(s == (m.pass < 0 ? DS_ERR_STATE : DS_OK), "fetch");
            if (!s) m.fetches[i]++;
            if (!s && sizes[i]) MUST(slots[i] && memcmp(slots[i], plain_slots[i], sizes[i] * 4) == 0, "fetch");
        } else if (op <= 6) {
            s = ds_zero_release(z, i);
            MUST(s == (m.pass < 0 || !m.fetches[i] ? DS_ERR_STATE : DS_OK), "release");
            if (!s) m.fetches[i]--;
            if (!s && m.fetches[i] == 0 && !whole) MUST(slots[i] == NULL, "release");
        } else if (op <= 8) {
            bool right = train && i != FROZEN && m.given[i] + m.lent[i] < (i == TIED ? 2 : 1);
            for (size_t e = 0; e < sizes[i]; e++) values[e] = gradient(i, e, w->rank, m.passes, m.given[i]);
            if (right && m.given[i] >= most_given(w, i, m.passes, w->rank)) {
                m.given[i]++;
                continue;
            }
            if (!right && some_leave_out(w, i, m.passes)) continue;
            s = ds_zero_grad(z, i, values, NULL);
            MUST(s == (right ? DS_OK : DS_ERR_STATE), "gradient");
            MUST(right || m.pass < 0 || strstr(ds_zero_error(z)->message, names[i]), "gradient");
            if (!s) m.given[i]++;
        } else if (op == 9) {
            bool right = train && i != FROZEN && m.given[i] < (i == TIED ? 2 : 1) && !m.lent[i];
            void *buffer = NULL;
            if (some_leave_out(w, i, m.passes)) continue;
            s = ds_zero_grad_buffer(z, i, &buffer);
            MUST(s == (right ? DS_OK : DS_ERR_STATE), "gradient buffer");
            MUST((buffer != NULL) == right, "gradient buffer");
            if (right) m.lent[i] = true, lent[i] = buffer;
        } else if (op == 10) {
            bool right = train && i != FROZEN && m.given[i] < (i == TIED ? 2 : 1) && m.lent[i];
            if (right)
                for (size_t e = 0; e < sizes[i]; e++)
                    ((float *)lent[i])[e] = gradient(i, e, w->rank, m.passes, m.given[i]);
            s = ds_zero_grad_ready(z, i, NULL);
            MUST(s == (right ? DS_OK : DS_ERR_STATE), "gradient ready");
            if (right) m.lent[i] = false, m.given[i]++;
        } else {
            ds_zero_report r, p;
            s = ds_zero_step(z, &r);
            MUST(s == (m.pass >= 0 || m.micro < ACCUMULATION ? DS_ERR_STATE : DS_OK), "step");
            if (s) continue;
            MUST(ds_zero_step(plain, &p) == DS_OK, "step");
            MUST(memcmp(&r.grad_norm, &p.grad_norm, sizeof r.grad_norm) == 0 && r.step == p.step, "step");
            m.micro = 0;
        }
    }
done:
    if (w->message[0] && w->comm) { /* the others would wait */
        ds_comm_abort(w->comm, "gave up");
        ds_comm_abort(w->plain_comm, "gave up");
    }
    ds_zero_destroy(z);
    ds_zero_destroy(plain);
    ds_comm_destroy(w->comm);
    ds_comm_destroy(w->plain_comm);
    ds_config_free(config);
    ds_config_free(plain_config);
    free(values);
    return NULL;
}

int main(int argc, char **argv) {
    const char *text = getenv("DS_TEST_SCHEDULES");
    long count = text ? atol(text) : 300;
    test_begin(argc, argv);
    for (long k = 0; k < count; k++) {
        char name[64];
        snprintf(name, sizeof name, "schedule %ld", k);
        TEST_NAMED(name) {
            int world = 1 + (int)(k % MAX_WORLD);
            walker w[MAX_WORLD];
            pthread_t threads[MAX_WORLD];
            ds_comm *comms[MAX_WORLD] = {0}, *plain[MAX_WORLD] = {0};
            ds_comm_desc d;
            memset(&d, 0, sizeof d);
            memset(w, 0, sizeof w);
            d.timeout = 60000000000;
            if (world > 1) {
                CHECK(ds_comm_threads_create(&d, world, comms, NULL) == DS_OK);
                CHECK(ds_comm_threads_create(&d, world, plain, NULL) == DS_OK);
            }
            for (int r = 0; r < world; r++) {
                w[r].comm = comms[r];
                w[r].plain_comm = plain[r];
                w[r].rank = r;
                w[r].world = world;
                w[r].seed = (uint64_t)k * 7919 + 1;
                pthread_create(&threads[r], NULL, walk, &w[r]);
            }
            for (int r = 0; r < world; r++) pthread_join(threads[r], NULL);
            for (int r = 0; r < world; r++)
                if (!CHECK(w[r].message[0] == 0)) printf("  rank %d: %s\n", r, w[r].message);
        }
    }
    return test_end();
}
