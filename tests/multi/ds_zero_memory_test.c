/* What the kernel says that training takes: a process's own memory (Pss of /proc/self/smaps_rollup, where a page that n
   processes share counts as 1/n) grows by no more than ds_zero_plan's device and host bytes and 4 MiB, at every stage, with
   and without offload, on one rank, on ranks that are threads and on ranks that are processes.
   And what the allocator gives is the plan to the byte, in each class and tier, for random models, configurations and orders
   of fetches that keep within the window. Environment: DS_TEST_PLANS, how many (default 150); DS_TEST_PLAN, one alone. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "tests/test.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum { TENSORS = 4, NUMEL = 500000, WORLD = 2, STEPS = 2, SPOTS = 4 * STEPS + 1, MARGIN = 4 << 20 };
typedef enum backend { ALONE, THREADS, PROCESSES } backend;

typedef struct rank_seen {
    size_t before, at[SPOTS], planned; /* before the engine, at places of the training, and the plan */
    char message[508];
} rank_seen;

static float gradient[NUMEL];

/* Bytes of this process; 0 where the kernel does not say. */
static size_t taken(void) {
    char line[256];
    unsigned long kib = 0;
    FILE *f = fopen("/proc/self/smaps_rollup", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Pss: %lu kB", &kib) == 1) break;
    if (f) fclose(f);
    return (size_t)kib << 10;
}

static void init(void *ctx, size_t begin, size_t count, float *out) {
    (void)ctx;
    for (size_t i = 0; i < count; i++) out[i] = (float)((begin + i) % 101) * 0.01f;
}

/* All ranks stand still while each looks. */
static ds_status look(ds_comm *comm, size_t *bytes) {
    ds_status status = comm ? ds_comm_barrier(comm) : DS_OK;
    *bytes = taken();
    return status || !comm ? status : ds_comm_barrier(comm);
}

static ds_status train(ds_zero *z, ds_comm *comm, rank_seen *o) {
    size_t spot = 0;
    ds_status s = look(comm, &o->at[spot++]);
    for (int step = 0; step < STEPS && !s; step++) {
        s = ds_zero_begin(z, DS_ZERO_TRAIN);
        for (size_t i = 0; i < TENSORS && !s; i++) s = ds_zero_fetch(z, i, NULL);
        if (!s) s = look(comm, &o->at[spot++]);
        for (size_t i = TENSORS; i-- > 0 && !s;) {
            s = ds_zero_grad(z, i, gradient, NULL);
            if (!s) s = ds_zero_release(z, i);
            if (!s && i == TENSORS / 2) s = look(comm, &o->at[spot++]);
        }
        if (!s) s = ds_zero_end(z);
        if (!s) s = look(comm, &o->at[spot++]);
        if (!s) s = ds_zero_step(z, NULL);
        if (!s) s = look(comm, &o->at[spot++]);
    }
    return s;
}

static void run_rank(ds_comm *comm, int rank, int world, const char *zero, rank_seen *o) {
    static const char *const names[TENSORS] = {"a", "b", "c", "d"};
    char text[700];
    void *slots[TENSORS];
    ds_zero_param params[TENSORS];
    ds_config_options options;
    ds_config *config = NULL;
    ds_error error = {DS_OK, ""};
    ds_zero_bytes plan;
    ds_zero_desc d;
    ds_zero *z = NULL;
    memset(params, 0, sizeof params);
    memset(&options, 0, sizeof options);
    memset(&d, 0, sizeof d);
    options.world_size = (size_t)world;
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"aio\": {\"block_size\": "
             "65536}, \"zero_optimization\": {%s, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": "
             "100000, \"reduce_bucket_size\": 600000, \"allgather_bucket_size\": 600000}}",
             zero);
    for (size_t i = 0; i < TENSORS; i++) {
        params[i].name = names[i];
        params[i].dims = 1;
        params[i].shape[0] = NUMEL;
        params[i].slot = &slots[i];
        params[i].init = init;
    }
    d.params = params;
    d.n_params = TENSORS;
    d.comm = comm;
    if (!ds_config_parse(text, strlen(text), &options, &config, &error)) {
        d.config = config;
        if (!ds_zero_plan(&d, rank, world, &plan, &error) && !look(comm, &o->before) &&
            !ds_zero_create(&d, &z, &error)) {
            for (int c = 0; c < DS_ZERO_CLASSES; c++)
                o->planned += plan.bytes[c][DS_ZERO_DEVICE] + plan.bytes[c][DS_ZERO_HOST];
            if (train(z, comm, o)) error = *ds_zero_error(z);
        }
    }
    snprintf(o->message, sizeof o->message, "%s", error.message);
    ds_zero_destroy(z);
    ds_config_free(config);
}

typedef struct member {
    ds_comm *comm;
    const char *zero;
    int rank;
    rank_seen *seen;
} member;
static void *member_main(void *arg) {
    member *m = (member *)arg;
    run_rank(m->comm, m->rank, WORLD, m->zero, m->seen);
    ds_comm_destroy(m->comm);
    return NULL;
}

static void threads(const char *zero, rank_seen *seen) {
    ds_comm *comms[WORLD];
    pthread_t ids[WORLD];
    member members[WORLD];
    ds_comm_desc d;
    memset(&d, 0, sizeof d);
    if (ds_comm_threads_create(&d, WORLD, comms, NULL)) return;
    for (int r = 0; r < WORLD; r++) {
        member m = {comms[r], zero, r, &seen[r]};
        members[r] = m;
        pthread_create(&ids[r], NULL, member_main, &members[r]);
    }
    for (int r = 0; r < WORLD; r++) pthread_join(ids[r], NULL);
}

static void process(int rank, const char *zero, rank_seen *seen) {
    char id[64];
    ds_comm_desc d;
    ds_comm *comm = NULL;
    ds_error error = {DS_OK, ""};
    memset(&d, 0, sizeof d);
    snprintf(id, sizeof id, "memory %ld", (long)getppid());
    d.backend = "shm";
    d.run_id = id;
    d.world = d.local_world = WORLD;
    d.rank = rank;
    d.timeout = (int64_t)60 * 1000000000;
    if (ds_comm_create(&d, &comm, &error) == DS_OK)
        run_rank(comm, rank, WORLD, zero, seen);
    else
        snprintf(seen->message, sizeof seen->message, "%s", error.message);
    ds_comm_destroy(comm);
}

/* Ranks in processes of their own, so that what an earlier case freed is not at hand. */
static void run(backend b, const char *zero, rank_seen *seen) {
    int n = b == PROCESSES ? WORLD : 1, status;
    pid_t pids[WORLD];
    memset(seen, 0, WORLD * sizeof *seen);
    fflush(stdout);
    for (int r = 0; r < n; r++)
        if ((pids[r] = fork()) == 0) {
            if (b == ALONE) run_rank(NULL, 0, 1, zero, seen);
            if (b == THREADS) threads(zero, seen);
            if (b == PROCESSES) process(r, zero, &seen[r]);
            test_child_exit(0);
        }
    for (int r = 0; r < n; r++) {
        waitpid(pids[r], &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

enum { MOST = 14, MOST_NUMEL = 5000, MOST_WORLD = 4, MOST_CALLS = 400 };

/* One random case, the same on every rank. A call is a fetch (i), a release (-1 - i) or the gradients of all. */
typedef struct drawn {
    char config[2048];
    ds_zero_param params[MOST];
    size_t n, largest_fetch, window; /* elements that the calls hold at once */
    size_t left_out;                 /* 1 + the parameter that gets no gradient; 0: none */
    int world, stage, accumulation, calls[2][MOST_CALLS], n_calls[2];
    bool any_order, lends;
} drawn;

static uint64_t pick(uint64_t *random, uint64_t below) {
    return test_random(random) % below;
}
static bool chance(uint64_t *random, unsigned percent) {
    return pick(random, 100) < percent;
}
static size_t elements_of(const ds_zero_param *p) {
    return p->shape[0] * p->shape[1];
}

/* Fetches and releases in one pass: the last that was fetched is released first, but for those between whose releases
   nothing is fetched; where the whole model fits, in any order. */
static int draw_calls(const drawn *t, uint64_t *random, size_t threshold, int *calls) {
    int held[MOST_CALLS], times[MOST] = {0}, n_held = 0, n = 0, most = 3 * (int)t->n, turns = (int)pick(random, 150);
    size_t elements = 0;
    for (int turn = 0; turn < turns || n_held; turn++) {
        int i = (int)pick(random, t->n), group = 1 + (int)pick(random, 4);
        size_t counted = elements_of(&t->params[i]) > threshold ? elements_of(&t->params[i]) : 0;
        if (turn < turns && most && chance(random, 55) && (times[i] || elements + counted <= t->window)) {
            if (!times[i]++) elements += counted;
            most--;
            calls[n++] = held[n_held++] = i;
            continue;
        }
        while (group-- && n_held) {
            int top = n_held > group ? n_held - 1 - (int)pick(random, (uint64_t)group + 1) : n_held - 1, j;
            if (t->any_order) top = (int)pick(random, (uint64_t)n_held);
            j = held[top];
            held[top] = held[--n_held];
            calls[n++] = -1 - j;
            if (!--times[j] && elements_of(&t->params[j]) > threshold) elements -= elements_of(&t->params[j]);
        }
    }
    return n;
}

static void draw(drawn *t, uint64_t *random) {
    static const char *const optimizers[] = {"AdamW", "Muon", "Lamb", "SGD", "Lion", "Adagrad", "OneBitAdam"};
    static const char *const devices[] = {"none", "cpu", "nvme"};
    static const char names[MOST][2] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"};
    static const size_t windows[] = {0, 100, 3000, 9000, 20000, 1000000000};
    int precision = (int)pick(random, 3), states = 0, home = 0, optimizer, at = 0;
    size_t threshold = SIZE_MAX, live = windows[pick(random, 6)], largest = 0, sum = 0;
    bool invariant;
    memset(t, 0, sizeof *t);
    t->n = 1 + pick(random, MOST);
    t->world = 1 + (int)pick(random, MOST_WORLD);
    t->stage = chance(random, 60) ? 3 : (int)pick(random, 3);
    t->accumulation = 1 + (int)pick(random, 4);
    t->lends = chance(random, 30);
    optimizer = (int)pick(random, t->stage ? 6 : 7);
    invariant = t->world != 3 && optimizer != 6 && chance(random, 20);
    if (t->stage == 3) {
        threshold = chance(random, 70) ? 0 : pick(random, 3000);
        states = (int)pick(random, 3);
        home = (int)pick(random, 3);
    } else if (t->stage)
        states = (int)pick(random, 2);
    for (size_t i = 0; i < t->n; i++) {
        ds_zero_param *p = &t->params[i];
        int kind = (int)pick(random, 20);
        p->name = names[i];
        p->dims = 2;
        p->shape[0] = kind < 1   ? 0
                      : kind < 5 ? 1 + pick(random, 9)
                      : kind < 8 ? DS_GRAIN * (1 + pick(random, 4))
                                 : 1 + pick(random, MOST_NUMEL);
        p->shape[1] = 1;
        if (kind > 11) {
            p->shape[0] = 1 + pick(random, 70);
            p->shape[1] = 1 + pick(random, 70);
        }
        p->dtype = chance(random, 80) ? (ds_dtype)(precision == 0   ? DS_F32
                                                   : precision == 1 ? DS_BF16
                                                                    : DS_F16)
                                      : DS_F32;
        p->frozen = chance(random, 10);
        p->contributions = chance(random, 10) ? 2 : 1;
        p->sparse = chance(random, 10);
        p->init = init;
        if (elements_of(p) <= threshold) continue;
        sum += elements_of(p);
        if (elements_of(p) > largest) largest = elements_of(p);
    }
    if (chance(random, 30)) t->largest_fetch = largest += pick(random, 6000);
    t->window = live + largest;
    t->any_order = sum <= t->window;
#define ADD(...)     at += snprintf(t->config + at, sizeof t->config - (size_t)at, __VA_ARGS__)
#define PATH(device) (device) == 2 ? ", \"nvme_path\": \"build\"" : ""
#define MAYBE(percent, ...)                                                                                            \
    if (chance(random, percent)) ADD(__VA_ARGS__)
#define BOOLEAN(of) chance(random, 50) ? "true" : "false"
    ADD("{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": %d, \"optimizer\": {\"type\": "
        "\"%s\"}, ",
        t->accumulation, optimizers[optimizer]);
    ADD("\"fp16\": {\"enabled\": %s, \"initial_scale_power\": 4}, \"bf16\": {\"enabled\": %s}, ",
        precision == 2 ? "true" : "false", precision == 1 ? "true" : "false");
    if (invariant) ADD("\"ds\": {\"world_invariant\": true}, ");
    if (!invariant && t->stage < 2 && optimizer != 6) MAYBE(20, "\"ds\": {\"reduce_at_boundary\": true}, ");
    MAYBE(20, "\"sparse_gradients\": true, ");
    MAYBE(10, "\"prescale_gradients\": true, \"gradient_predivide_factor\": 3.0, ");
    if (!invariant && precision) MAYBE(20, "\"communication_data_type\": \"fp32\", ");
    if (!invariant && precision) MAYBE(30, "\"data_types\": {\"grad_accum_dtype\": \"fp32\"}, ");
    ADD("\"zero_optimization\": {\"stage\": %d, \"ignore_unused_parameters\": true", t->stage);
    MAYBE(70, ", \"reduce_bucket_size\": %d", 1 + (int)pick(random, 9000));
    MAYBE(50, ", \"allgather_bucket_size\": %d", 1 + (int)pick(random, 9000));
    MAYBE(30, ", \"contiguous_gradients\": false");
    MAYBE(50, ", \"overlap_comm\": %s", BOOLEAN());
    MAYBE(20, ", \"reduce_scatter\": false");
    MAYBE(20, ", \"allgather_partitions\": false");
    MAYBE(50, ", \"sub_group_size\": %d", 1 + (int)pick(random, 6000));
    if (t->stage == 3) {
        ADD(", \"stage3_max_live_parameters\": %zu, \"stage3_param_persistence_threshold\": %zu", live, threshold);
        MAYBE(80, ", \"stage3_prefetch_bucket_size\": %d", (int)pick(random, 2) * (int)pick(random, 12000));
        MAYBE(80, ", \"stage3_max_reuse_distance\": %d", (int)pick(random, 2) * (int)pick(random, 12000));
        if (t->world % 2 == 0) MAYBE(20, ", \"zero_hpz_partition_size\": 2");
        if (optimizer != 1 && !invariant) MAYBE(20, ", \"zero_quantized_weights\": true");
    }
    if (t->stage == 1 || t->stage == 2) MAYBE(30, ", \"round_robin_gradients\": true");
    if (states) {
        ADD(", \"offload_optimizer\": {\"device\": \"%s\"%s, \"fast_init\": %s", devices[states], PATH(states),
            BOOLEAN());
        MAYBE(50, ", \"pipeline_read\": %s, \"pipeline_write\": %s", BOOLEAN(), BOOLEAN());
        if (t->stage == 3) MAYBE(40, ", \"ratio\": 0.%d", 1 + (int)pick(random, 9));
        MAYBE(30, ", \"buffer_count\": %d", 5 + (int)pick(random, 30));
        ADD("}");
    }
    if (home) {
        ADD(", \"offload_param\": {\"device\": \"%s\"%s", devices[home], PATH(home));
        MAYBE(50, ", \"buffer_count\": %d, \"buffer_size\": %d", 1 + (int)pick(random, 6), 1 + (int)pick(random, 6000));
        MAYBE(60, ", \"max_in_cpu\": %d", (int)pick(random, 2) * (int)pick(random, 20000));
        ADD("}");
    }
    ADD("}}");
#undef ADD
#undef PATH
#undef MAYBE
#undef BOOLEAN
    for (int k = 0; k < 2; k++) t->n_calls[k] = draw_calls(t, random, threshold, t->calls[k]);
}

typedef struct planned_rank {
    const drawn *t;
    ds_comm *comm;
    int rank;
    ds_zero_bytes plan;
    ds_zero_stats stats;
    test_memory memory;
    size_t loose; /* parameters that did not fit the arena */
    char message[600];
} planned_rank;

static void note_loose(void *ctx, const char *header, int level, int id, const char *message) {
    (void)level, (void)message;
    ((planned_rank *)ctx)->loose += id == 3 && strcmp(header, "ds_zero") == 0;
}

static ds_status make_calls(ds_zero *z, const drawn *t, int kind) {
    ds_status s = DS_OK;
    for (int k = 0; k < t->n_calls[kind] && !s; k++) {
        int call = t->calls[kind][k];
        s = call >= 0 ? ds_zero_fetch(z, (size_t)call, NULL) : ds_zero_release(z, (size_t)(-1 - call));
    }
    return s;
}

static ds_status give(ds_zero *z, const drawn *t, size_t i) {
    void *buffer;
    ds_status s;
    if (!t->lends) return ds_zero_grad(z, i, gradient, NULL);
    if ((s = ds_zero_grad_buffer(z, i, &buffer))) return s;
    memset(buffer, 0, elements_of(&t->params[i]) * DS_DTYPE_SIZE(t->params[i].dtype));
    return ds_zero_grad_ready(z, i, NULL);
}

static ds_status train_drawn(ds_zero *z, const drawn *t) {
    ds_status s = DS_OK;
    for (int step = 0; step < 2 && !s; step++) {
        for (int micro = 0; micro < t->accumulation && !s; micro++) {
            if ((s = ds_zero_begin(z, DS_ZERO_TRAIN)) || (s = make_calls(z, t, 0))) return s;
            for (size_t i = t->n; i-- > 0 && !s;)
                if (t->params[i].contributions == 2 && !t->params[i].frozen) s = give(z, t, i);
            for (size_t i = t->n; i-- > 0 && !s;) {
                s = ds_zero_fetch(z, i, NULL);
                if (!s && !t->params[i].frozen && i + 1 != t->left_out) s = give(z, t, i);
                if (!s) s = ds_zero_release(z, i);
            }
            if (!s) s = ds_zero_end(z);
        }
        for (int pass = 0; pass < 2 && !s; pass++)
            if (!(s = ds_zero_begin(z, DS_ZERO_EVALUATE)) && !(s = make_calls(z, t, 1))) s = ds_zero_end(z);
        if (!s) s = ds_zero_step(z, NULL);
    }
    return s;
}

static void *planned_main(void *arg) {
    planned_rank *a = (planned_rank *)arg;
    void *slots[MOST];
    ds_zero_param params[MOST];
    ds_config_options options;
    ds_config *config = NULL;
    ds_error error = {DS_OK, ""};
    ds_zero_desc d;
    ds_zero *z = NULL;
    memset(&options, 0, sizeof options);
    memset(&d, 0, sizeof d);
    memcpy(params, a->t->params, sizeof params);
    for (size_t i = 0; i < MOST; i++) params[i].slot = &slots[i];
    options.world_size = (size_t)a->t->world;
    d.comm = a->comm;
    d.params = params;
    d.n_params = a->t->n;
    d.largest_fetch = a->t->largest_fetch;
    d.gradient_buffers = a->t->lends;
    d.allocator.alloc = test_alloc;
    d.allocator.release = test_release;
    d.allocator.ctx = &a->memory;
    d.logger.log = note_loose;
    d.logger.ctx = a;
    if (ds_config_parse(a->t->config, strlen(a->t->config), &options, &config, &error)) goto done;
    d.config = config;
    if (ds_zero_plan(&d, a->rank, a->t->world, &a->plan, &error)) goto done;
    a->memory.peak = 0;
    if (ds_zero_create(&d, &z, &error)) goto done;
    if (train_drawn(z, a->t)) error = *ds_zero_error(z);
    ds_zero_get_stats(z, &a->stats);
done:
    snprintf(a->message, sizeof a->message, "%s", error.message);
    if (error.status && a->comm) ds_comm_abort(a->comm, "test gave up");
    ds_zero_destroy(z);
    ds_comm_destroy(a->comm);
    ds_config_free(config);
    return NULL;
}

static planned_rank drawn_ranks[MOST_WORLD];

static void run_drawn(const drawn *t) {
    ds_comm *comms[MOST_WORLD] = {0};
    pthread_t ids[MOST_WORLD];
    ds_comm_desc d;
    memset(&d, 0, sizeof d);
    memset(drawn_ranks, 0, sizeof drawn_ranks);
    d.timeout = (int64_t)20 * 1000000000;
    if (t->world > 1 && !CHECK(ds_comm_threads_create(&d, t->world, comms, NULL) == DS_OK)) return;
    for (int r = 0; r < t->world; r++) {
        drawn_ranks[r].t = t;
        drawn_ranks[r].comm = comms[r];
        drawn_ranks[r].rank = r;
        pthread_create(&ids[r], NULL, planned_main, &drawn_ranks[r]);
    }
    for (int r = 0; r < t->world; r++) pthread_join(ids[r], NULL);
}

/* Whether the case was right on every rank. */
static bool to_the_byte(const drawn *t) {
    bool right = true;
    run_drawn(t);
    for (int r = 0; r < t->world; r++) {
        const planned_rank *a = &drawn_ranks[r];
        size_t sum = 0;
        right &= CHECK_STR(a->message, "") && CHECK_EQ(a->loose, 0) && CHECK_EQ(a->memory.live, 0);
        for (int c = 0; c < DS_ZERO_CLASSES; c++)
            for (int k = 0; k < DS_ZERO_TIERS; k++) {
                size_t plan = a->plan.bytes[c][k], peak = a->stats.peak.bytes[c][k];
                right &= test_check(plan == peak, __FILE__, __LINE__,
                                    "rank %d: class %d, tier %d: planned %zu, held %zu", r, c, k, plan, peak);
                if (k != DS_ZERO_DISK) sum += plan;
            }
        right &= CHECK_EQ(a->memory.peak, sum);
    }
    return right;
}

static void add(drawn *t, const char *name, size_t rows, size_t cols) {
    ds_zero_param *p = &t->params[t->n++];
    p->name = name;
    p->dims = 2;
    p->shape[0] = rows, p->shape[1] = cols;
}

/* Three small parameters, of which the trace has the first two ahead of the third; that is then held beside a large and a
   middle one, for which the window has just room. */
static void in_the_way(void) {
    static const char names[5][2] = {"b", "c", "y", "x", "w"};
    static const size_t pages[5] = {1, 1, 1, 4, 3};
    static const int calls[] = {0, -1, 1, -2, 2, 3, 4, -5, -4, -3};
    static drawn t;
    TEST(what is fetched ahead never stands in the way of what is held) {
        memset(&t, 0, sizeof t);
        snprintf(t.config, sizeof t.config,
                 "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"zero_optimization\": "
                 "{\"stage\": 3, \"stage3_max_live_parameters\": 4096, \"stage3_param_persistence_threshold\": 0}}");
        for (size_t i = 0; i < 5; i++) add(&t, names[i], pages[i], 1024);
        t.world = t.accumulation = 1;
        for (int kind = 0; kind < 2; kind++) {
            memcpy(t.calls[kind], calls, sizeof calls);
            t.n_calls[kind] = sizeof calls / sizeof calls[0];
        }
        CHECK(to_the_byte(&t));
    }
    TEST(what is held beyond the window has memory of its own) {
        t.largest_fetch = 1024;
        run_drawn(&t);
        CHECK_STR(drawn_ranks[0].message, "");
        CHECK(drawn_ranks[0].loose > 0);
        CHECK_EQ(drawn_ranks[0].memory.live + drawn_ranks[0].memory.mismatches, 0);
        CHECK_EQ(drawn_ranks[0].plan.bytes[DS_ZERO_GATHERED][0], 5 * 4096);
        CHECK_EQ(drawn_ranks[0].stats.peak.bytes[DS_ZERO_GATHERED][0], 8 * 4096); /* y and x fill it; w */
    }
}

/* Gradients come from the last parameter to the first, and c's does not: b's and a's, of a page each, wait. */
static void behind_a_hole(void) {
    static const char names[4][2] = {"a", "b", "c", "d"};
    static const size_t pages[4] = {1, 1, 1, 64};
    static drawn t;
    TEST(what waits behind a gradient that does not come takes its own size) {
        memset(&t, 0, sizeof t);
        snprintf(t.config, sizeof t.config,
                 "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"zero_optimization\": "
                 "{\"stage\": 2, \"reduce_bucket_size\": 1024}}");
        for (size_t i = 0; i < 4; i++) add(&t, names[i], pages[i], 1024);
        t.world = t.accumulation = 1;
        t.left_out = 3;
        run_drawn(&t);
        CHECK_STR(drawn_ranks[0].message, "");
        CHECK_EQ(drawn_ranks[0].memory.live + drawn_ranks[0].memory.mismatches, 0);
        CHECK_EQ(drawn_ranks[0].stats.peak.bytes[DS_ZERO_BUCKETS][0],
                 drawn_ranks[0].plan.bytes[DS_ZERO_BUCKETS][0] + 2 * 4096);
    }
}

/* Ranks that own little or nothing call what the others call: one parameter or three of a grain each, on four ranks. */
static void nothing_owned(void) {
    static const char names[3][2] = {"a", "b", "c"};
    static const char *const zeros[] = {
        "\"ds\": {\"world_invariant\": true}, \"zero_optimization\": {\"offload_optimizer\": {\"device\": \"nvme\", "
        "\"nvme_path\": \"build\"}, ",
        "\"zero_optimization\": {\"zero_hpz_partition_size\": 2, ",
        "\"zero_optimization\": {\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\", "
        "\"pipeline_write\": true}, ",
    };
    static const int calls[][8] = {{0, -1, 0, -1}, {0, -1, 1, -2, 0, -1, 2, -3}}; /* `a` is dropped between */
    static const size_t numel[] = {1, 1, 1200};
    static drawn t;
    for (size_t k = 0; k < 3; k++)
        for (size_t n = 1; n <= 3; n += 2) {
            char name[96];
            snprintf(name, sizeof name, "ranks that own nothing: case %zu, %zu parameters", k, n);
            TEST_NAMED(name) {
                memset(&t, 0, sizeof t);
                t.accumulation = 2;
                t.world = 4;
                snprintf(t.config, sizeof t.config,
                         "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 2, \"optimizer\": "
                         "{\"type\": \"AdamW\"}, %s\"stage\": 3, \"sub_group_size\": 1024, "
                         "\"stage3_max_reuse_distance\": 0, \"stage3_param_persistence_threshold\": 0}}",
                         zeros[k]);
                for (size_t i = 0; i < n; i++) add(&t, names[i], numel[i], 1);
                for (int kind = 0; kind < 2; kind++) {
                    memcpy(t.calls[kind], calls[n > 1], sizeof calls[0]);
                    t.n_calls[kind] = n > 1 ? 8 : 4;
                }
                CHECK(to_the_byte(&t));
            }
        }
}

static void plans(void) {
    const char *count = getenv("DS_TEST_PLANS"), *one = getenv("DS_TEST_PLAN");
    long n = count ? atol(count) : 150;
    TEST(random plans are what the allocator gives to the byte) {
        for (long k = one ? atol(one) : 0; k < (one ? atol(one) + 1 : n); k++) {
            static drawn t;
            uint64_t random = (uint64_t)k * 1000003u + 17;
            draw(&t, &random);
            if (!to_the_byte(&t)) printf("  DS_TEST_PLAN=%ld: world %d, %s\n", k, t.world, t.config);
        }
    }
}

int main(int argc, char **argv) {
    static const char *const backends[] = {"one rank", "threads", "processes"};
    static const char *const zeros[] = {
        "\"stage\": 0",
        "\"stage\": 1",
        "\"stage\": 2",
        "\"stage\": 3",
        "\"stage\": 1, \"offload_optimizer\": {\"device\": \"cpu\"}",
        "\"stage\": 2, \"offload_optimizer\": {\"device\": \"cpu\"}",
        "\"stage\": 3, \"offload_optimizer\": {\"device\": \"cpu\"}, \"offload_param\": {\"device\": \"cpu\"}",
        "\"stage\": 3, \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": "
        "true, "
        "\"pipeline_write\": true}, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"build\", "
        "\"max_in_cpu\": "
        "300000, \"buffer_size\": 50000}"};
    rank_seen *seen =
        (rank_seen *)mmap(NULL, WORLD * sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    test_begin(argc, argv);
    for (size_t i = 0; i < NUMEL; i++) gradient[i] = (float)(i % 13) * 0.01f - 0.05f;
    for (int b = ALONE; b <= PROCESSES; b++)
        for (size_t k = 0; k < sizeof zeros / sizeof zeros[0]; k++) {
            char name[128];
            snprintf(name, sizeof name, "%s, %.40s%s", backends[b], zeros[k], k > 3 ? " ..." : "");
            TEST_NAMED(name) {
                size_t before = 0, planned = 0, most = 0;
                int counted = b == PROCESSES ? WORLD : 1; /* threads all see the same process */
                if (SANITIZED || taken() == 0) {
                    SKIP(SANITIZED ? "a sanitizer needs memory of its own" : "this kernel has no smaps_rollup");
                    break;
                }
                run((backend)b, zeros[k], seen);
                for (int r = 0; r < WORLD; r++) {
                    CHECK_STR(seen[r].message, "");
                    planned += seen[r].planned;
                }
                for (int r = 0; r < counted; r++) before += seen[r].before;
                for (size_t spot = 0; spot < SPOTS; spot++) {
                    size_t now = 0;
                    for (int r = 0; r < counted; r++) now += seen[r].at[spot];
                    if (now > most) most = now;
                }
                CHECK(planned > 0 && most > before + planned / 2);
                if (!CHECK(most - before <= planned + (size_t)counted * MARGIN))
                    printf("  grown by %zu, planned %zu\n", most - before, planned);
                if (getenv("DS_TEST_FIGURES"))
                    printf("  %s: grown by %.2f MiB, planned %.2f MiB\n", name, (double)(most - before) / 1048576.0,
                           (double)planned / 1048576.0);
            }
        }
    munmap(seen, WORLD * sizeof *seen);
    in_the_way();
    behind_a_hole();
    nothing_owned();
    plans();
    return test_end();
}
