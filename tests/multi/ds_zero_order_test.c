/* What happens when: gradients are reduced while the backward pass goes on, in one order on all ranks; parameters are
   fetched ahead of their use; and each field that moves these moments. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"

enum { N = 4, NUMEL = 4096, WORLD = 2 };

typedef struct player player;
typedef struct scene {
    const char *zero;
    void (*body)(player *p, ds_zero *z); /* of each rank */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int returned[WORLD]; /* gradients that each rank's call has come back from */
    int limit[WORLD];    /* gradients that each rank may give */
    ds_comm_kind kind;
    bool during;   /* a reduction is expected while gradients still come */
    bool shorter;  /* the first two passes fetch everything twice */
    size_t bucket; /* elements; 0: those of one parameter */
    bool reversed; /* parameters are registered in the other order */
    const char *load, *save;
} scene;

struct player {
    scene *s;
    ds_comm *comm;
    int rank;
    uint64_t calls[N + 1], fetch_calls[2 * N]; /* reductions (gathers) made by then, once they stood still */
    size_t bytes[3];                           /* of buckets */
    ds_zero_stats stats;
    float values[N][NUMEL];
    char message[600], refusal[600];
};

static uint64_t calls_of(ds_zero *z, ds_comm_kind kind) {
    ds_zero_stats s;
    ds_zero_get_stats(z, &s);
    return s.comm.calls[kind];
}

/* Waits until a call was made in the background, at most so many ms. */
static uint64_t settle(ds_zero *z, ds_comm_kind kind, uint64_t expected, int most) {
    for (int i = 0; i < most && calls_of(z, kind) < expected; i++) dsi_sleep(NULL, 1000000);
    dsi_sleep(NULL, 2000000); /* and no more than that */
    return calls_of(z, kind);
}

static ds_zero *engine(const scene *s, ds_comm *comm, void **slots, ds_config **config, ds_error *e) {
    static const char *const names[N] = {"a", "b", "c", "d"};
    char text[1024];
    ds_config_options o;
    ds_zero_param params[N];
    ds_zero_desc d;
    ds_zero *z = NULL;
    memset(&o, 0, sizeof o);
    memset(&d, 0, sizeof d);
    memset(params, 0, sizeof params);
    o.world_size = WORLD;
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"zero_optimization\": "
             "{%s, \"reduce_bucket_size\": %d}}",
             s->zero, s->bucket ? (int)s->bucket : NUMEL);
    if (ds_config_parse(text, strlen(text), &o, config, e)) return NULL;
    for (int i = 0; i < N; i++) {
        params[i].name = names[s->reversed ? N - 1 - i : i];
        params[i].dims = 1;
        params[i].shape[0] = NUMEL;
        params[i].slot = &slots[i];
    }
    d.config = *config;
    d.comm = comm;
    d.params = params;
    d.n_params = N;
    return ds_zero_create(&d, &z, e) ? NULL : z;
}

static void wait_for(scene *s, int rank, int gradients) {
    pthread_mutex_lock(&s->lock);
    while (s->limit[rank] < gradients) pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
}
static void tell(scene *s, int rank, int returned, int other_limit) {
    pthread_mutex_lock(&s->lock);
    s->returned[rank] = returned;
    if (s->limit[1 - rank] < other_limit) s->limit[1 - rank] = other_limit;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if ((call) != DS_OK) {                                                                                         \
            snprintf(p->message, sizeof p->message, "%s: %s", #call, ds_zero_error(z)->message);                       \
            return;                                                                                                    \
        }                                                                                                              \
    } while (0)

/* Rank 0 gives gradient k and comes back; only then may rank 1 give its own; then both see bucket k reduced, and only then
   gradient k + 1 comes. */
static void play(player *p, ds_zero *z) {
    scene *s = p->s;
    static float gradient[NUMEL];
    uint64_t before = calls_of(z, s->kind);
    MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
    for (int k = 0; k < N; k++) {
        wait_for(s, p->rank, k + 1);
        MUST(ds_zero_grad(z, (size_t)(N - 1 - k), gradient, NULL));
        tell(s, p->rank, k + 1, p->rank == 0 ? k + 1 : k + 2);
        if (p->rank == 1) continue;
        wait_for(s, 0, k + 2); /* rank 1 has given its own */
        p->calls[k] = settle(z, s->kind, before + (uint64_t)k + 1, s->during ? 10000 : 20) - before;
    }
    MUST(ds_zero_end(z));
    p->calls[N] = calls_of(z, s->kind) - before;
    MUST(ds_zero_step(z, NULL));
}

/* Partitioned parameters: the ranks vote at fetch k + 1, and bucket k is reduced before gradient k + 1 comes. */
static void play_parts(player *p, ds_zero *z) {
    static float gradient[NUMEL];
    uint64_t before = calls_of(z, DS_COMM_REDUCE_SCATTER);
    MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
    for (int k = 0; k < N; k++) {
        MUST(ds_zero_fetch(z, (size_t)(N - 1 - k), NULL));
        p->calls[k] = settle(z, DS_COMM_REDUCE_SCATTER, before + (uint64_t)k, 10000) - before;
        MUST(ds_zero_grad(z, (size_t)(N - 1 - k), gradient, NULL));
        MUST(ds_zero_release(z, (size_t)(N - 1 - k)));
    }
    MUST(ds_zero_end(z));
    p->calls[N] = calls_of(z, DS_COMM_REDUCE_SCATTER) - before;
    MUST(ds_zero_step(z, NULL));
}

static void meet(player *p, int meeting) {
    tell(p->s, p->rank, meeting, meeting);
    wait_for(p->s, p->rank, meeting);
}

static void *on_rank(void *arg) {
    player *p = (player *)arg;
    void *slots[N];
    ds_error error = {DS_OK, ""};
    ds_config *config = NULL;
    ds_zero *z = engine(p->s, p->comm, slots, &config, &error);
    if (z)
        p->s->body(p, z);
    else
        snprintf(p->message, sizeof p->message, "create: %s", error.message);
    tell(p->s, p->rank, 1000, 1000); /* whoever waits for more */
    ds_zero_destroy(z);
    ds_comm_destroy(p->comm);
    ds_config_free(config);
    return NULL;
}

static void on_ranks(scene *s, player *p, void (*body)(player *p, ds_zero *z)) {
    ds_comm *comms[WORLD] = {NULL, NULL};
    pthread_t threads[WORLD];
    ds_comm_desc d;
    memset(&d, 0, sizeof d);
    memset(p, 0, WORLD * sizeof *p);
    d.timeout = 30000000000;
    CHECK(ds_comm_threads_create(&d, WORLD, comms, NULL) == DS_OK);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    s->body = body;
    s->limit[0] = 1;
    s->limit[1] = 0;
    for (int r = 0; r < WORLD; r++) {
        p[r].s = s;
        p[r].comm = comms[r];
        p[r].rank = r;
        pthread_create(&threads[r], NULL, on_rank, &p[r]);
    }
    for (int r = 0; r < WORLD; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < WORLD; r++)
        if (!CHECK(p[r].message[0] == 0)) printf("  rank %d: %s\n", r, p[r].message);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
}

static void reductions(void) {
    static const struct {
        const char *zero;
        bool during; /* the backward pass */
    } rows[] = {
        {"\"stage\": 0, \"overlap_comm\": true", true},
        {"\"stage\": 1, \"overlap_comm\": true", true},
        {"\"stage\": 1, \"overlap_comm\": true, \"grad_hooks\": false", false},
        {"\"stage\": 2, \"overlap_comm\": true", true},
        {"\"stage\": 3", true}, /* overlap_comm is the default there */
    };
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) TEST_NAMED(rows[k].zero) {
            scene s;
            player p[WORLD];
            memset(&s, 0, sizeof s);
            s.zero = rows[k].zero;
            s.during = rows[k].during;
            s.kind = k == 0 ? DS_COMM_ALL_REDUCE : DS_COMM_REDUCE_SCATTER;
            on_ranks(&s, p, play);
            for (int i = 0; i < N; i++) CHECK_EQ(p[0].calls[i], rows[k].during ? i + 1 : 0);
            CHECK_EQ(p[0].calls[N], N);
        }
    TEST(stage 3 partitioned : a bucket is reduced before the next gradient comes) {
        scene s;
        player p[WORLD];
        memset(&s, 0, sizeof s);
        s.zero = "\"stage\": 3, \"stage3_param_persistence_threshold\": 0";
        on_ranks(&s, p, play_parts);
        for (int k = 0; k <= N; k++) CHECK_EQ(p[0].calls[k], k);
    }
}

/* Rank 1 gives nothing until rank 0 came back with two gradients, whose reductions cannot end before. */
static void ahead(player *p, ds_zero *z) {
    static float gradient[NUMEL];
    uint64_t before = calls_of(z, DS_COMM_REDUCE_SCATTER);
    MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
    if (p->rank) wait_for(p->s, 1, 2);
    for (int k = 0; k < N; k++) {
        MUST(ds_zero_grad(z, (size_t)(N - 1 - k), gradient, NULL));
        if (p->rank || k != 1) continue;
        p->calls[1] = calls_of(z, DS_COMM_REDUCE_SCATTER) - before;
        tell(p->s, 0, 2, 2);
    }
    MUST(ds_zero_end(z));
    p->calls[N] = calls_of(z, DS_COMM_REDUCE_SCATTER) - before;
    MUST(ds_zero_step(z, NULL));
}
static void two_at_once(void) {
    TEST(stage 2 : a gradient does not wait for the reduction of the one before) {
        scene s;
        player p[WORLD];
        memset(&s, 0, sizeof s);
        s.zero = "\"stage\": 2, \"overlap_comm\": true";
        on_ranks(&s, p, ahead);
        CHECK_EQ(p[0].calls[1], 0);
        CHECK_EQ(p[0].calls[N], N);
    }
}

/* Gradients in order, then twice with each two the other way round; p->bytes is the most that the buckets held until each pass's end. */
static void swapped(player *p, ds_zero *z) {
    static float gradient[NUMEL];
    for (int pass = 0; pass < 3; pass++) {
        uint64_t before = calls_of(z, DS_COMM_REDUCE_SCATTER);
        MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
        for (int k = 0; k < N; k++) {
            MUST(ds_zero_grad(z, (size_t)(N - 1 - (pass ? k ^ 1 : k)), gradient, NULL));
            p->calls[k] = calls_of(z, DS_COMM_REDUCE_SCATTER) - before;
        }
        MUST(ds_zero_end(z));
        MUST(ds_zero_step(z, NULL));
        ds_zero_get_stats(z, &p->stats);
        p->bytes[pass] = p->stats.peak.bytes[DS_ZERO_BUCKETS][DS_ZERO_DEVICE];
    }
}
static void one_too_early(void) {
    TEST(stage 2 : behind a gradient that came too early no other waits) {
        scene s;
        player p[WORLD];
        memset(&s, 0, sizeof s);
        s.zero = "\"stage\": 2, \"overlap_comm\": false";
        on_ranks(&s, p, swapped);
        CHECK_EQ(p[0].calls[0], 0);
        for (int k = 1; k < N; k++) CHECK_EQ(p[0].calls[k], k / 2 * 2 + (k % 2 ? 2 : 0));
        CHECK_EQ(p[0].bytes[1], p[0].bytes[0] + NUMEL * sizeof(float));
        CHECK_EQ(p[0].bytes[2], p[0].bytes[1]);
        CHECK_EQ(p[0].stats.now.bytes[DS_ZERO_BUCKETS][DS_ZERO_DEVICE], p[0].bytes[0]);
    }
}

/* Gathers that were started by each fetch of the second pass, which has a trace to follow. */
static void fetch(player *p, ds_zero *z) {
    static float gradient[NUMEL];
    for (int pass = 0; pass < 2; pass++) {
        uint64_t before = calls_of(z, DS_COMM_ALL_GATHER);
        MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
        for (int k = 0; k < 2 * N; k++) {
            size_t i = (size_t)(k < N ? k : 2 * N - 1 - k);
            MUST(ds_zero_fetch(z, i, NULL));
            p->fetch_calls[k] = calls_of(z, DS_COMM_ALL_GATHER) - before;
            if (k >= N) MUST(ds_zero_grad(z, i, gradient, NULL));
            MUST(ds_zero_release(z, i));
        }
        MUST(ds_zero_end(z));
        MUST(ds_zero_step(z, NULL));
    }
    ds_zero_get_stats(z, &p->stats);
}

/* Rank 1 gives nothing in the first pass, rank 0 leaves out a gradient in the others, which in the last one comes after the
   next fetch; p->refusal is what that call said. At stage 3 the ranks also have an exchange of their own between two fetches,
   rank 1 before its gradient and rank 0 after it. */
static void uneven(player *p, ds_zero *z) {
    static const int without[3] = {N, 1, 3};
    const bool partial = strstr(p->s->zero, "\"stage\": 3") != NULL;
    int meetings = 1;
    float gradient[NUMEL];
    ds_zero_get_stats(z, &p->stats);
    p->bytes[0] = p->stats.now.bytes[DS_ZERO_BUCKETS][DS_ZERO_DEVICE];
    for (int pass = 0; pass < 3; pass++) {
        bool late = false;
        MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
        for (int i = N - 1; i >= 0; i--) {
            for (int k = 0; k < NUMEL; k++) gradient[k] = (float)((k + i * 7 + pass * 31 + p->rank * 13) % 17 - 8);
            MUST(ds_zero_fetch(z, (size_t)i, NULL));
            if (late && ds_zero_grad(z, 3, gradient, NULL) != DS_OK)
                snprintf(p->refusal, sizeof p->refusal, "%s", ds_zero_error(z)->message);
            if (partial && p->rank) meet(p, ++meetings);
            late = pass == 2 && p->rank == 0 && i == 3 && partial;
            if (p->rank ? pass > 0 : without[pass] != i) MUST(ds_zero_grad(z, (size_t)i, gradient, NULL));
            if (partial && !p->rank) meet(p, ++meetings);
            MUST(ds_zero_release(z, (size_t)i));
        }
        MUST(ds_zero_end(z));
        MUST(ds_zero_step(z, NULL));
    }
    for (int i = 0; i < N; i++) MUST(ds_zero_read(z, (size_t)i, -1, 0, NUMEL, p->values[i]));
    ds_zero_get_stats(z, &p->stats);
}

/* ignore_unused_parameters false: rank 0 has not "b" at the end of the pass, is told so, and gives it. */
static void owing(player *p, ds_zero *z) {
    static float gradient[NUMEL];
    MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
    for (int i = N - 1; i >= 0; i--) {
        MUST(ds_zero_fetch(z, (size_t)i, NULL));
        if (p->rank || i != 1) MUST(ds_zero_grad(z, (size_t)i, gradient, NULL));
        MUST(ds_zero_release(z, (size_t)i));
    }
    if (p->rank == 0 && ds_zero_end(z) == DS_ERR_STATE) {
        snprintf(p->refusal, sizeof p->refusal, "%s", ds_zero_error(z)->message);
        MUST(ds_zero_grad(z, 1, gradient, NULL));
    }
    MUST(ds_zero_end(z));
    MUST(ds_zero_step(z, NULL));
}

#define STAGE3 "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"overlap_comm\": false, "
static void unused(void) {
    static const char *const rows[] = {
        "\"stage\": 2, \"overlap_comm\": true",
        STAGE3 "\"stage3_prefetch_bucket_size\": 0, \"stage3_max_live_parameters\": 0",
        "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"stage3_prefetch_bucket_size\": 8192",
    };
    static player p[3][WORLD];
    for (int k = 0; k < 3; k++) TEST_NAMED(rows[k]) {
            scene s;
            memset(&s, 0, sizeof s);
            s.zero = rows[k];
            on_ranks(&s, p[k], uneven);
            for (int r = 0; r < WORLD; r++) CHECK(memcmp(p[k][r].values, p[0][0].values, sizeof p[0][0].values) == 0);
            if (k)
                CHECK_HAS(p[k][0].refusal, "gradient of 'd' after the other ranks' was reduced");
            else
                CHECK(p[k][0].refusal[0] == 0);
            CHECK(p[k][1].refusal[0] == 0);
            CHECK_EQ(p[k][0].stats.now.bytes[DS_ZERO_BUCKETS][0], p[k][0].bytes[0]); /* what waited is not kept */
        }
    for (int k = 0; k < 3; k++) TEST(ignore_unused_parameters false : what is missing is named and may still be given) {
            scene s;
            char zero[300];
            memset(&s, 0, sizeof s);
            snprintf(zero, sizeof zero, "%s, \"ignore_unused_parameters\": false", rows[k]);
            s.zero = zero;
            on_ranks(&s, p[k], owing);
            CHECK(strstr(p[k][0].refusal, "parameter 'b' got 0 of 1 gradients") != NULL);
            CHECK(p[k][1].refusal[0] == 0);
        }
}

/* In the first two passes gradients come after all fetches, or everything is fetched twice; in the others a gradient comes
   after each fetch. */
static void sooner(player *p, ds_zero *z) {
    static float gradient[NUMEL];
    for (int pass = 0; pass < 4; pass++) {
        uint64_t before = calls_of(z, DS_COMM_REDUCE_SCATTER);
        const bool late = pass < 2 && !p->s->shorter;
        MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
        for (size_t i = 0; i < N && pass < 2 && !late; i++) {
            MUST(ds_zero_fetch(z, i, NULL));
            MUST(ds_zero_release(z, i));
        }
        for (int k = 0; k < N; k++) {
            MUST(ds_zero_fetch(z, (size_t)(N - 1 - k), NULL));
            p->calls[k] = calls_of(z, DS_COMM_REDUCE_SCATTER) - before;
            if (!late) MUST(ds_zero_grad(z, (size_t)(N - 1 - k), gradient, NULL));
            MUST(ds_zero_release(z, (size_t)(N - 1 - k)));
        }
        for (int i = N - 1; i >= 0 && late; i--) MUST(ds_zero_grad(z, (size_t)i, gradient, NULL));
        MUST(ds_zero_end(z));
        p->calls[N] = calls_of(z, DS_COMM_REDUCE_SCATTER) - before;
        MUST(ds_zero_step(z, NULL));
    }
}

static void relearned(void) {
    for (int shorter = 0; shorter < 2; shorter++)
        TEST_NAMED(shorter
                       ? "stage 3: a reduction comes as soon as its gradients do, after passes that were longer"
                       : "stage 3: a reduction comes as soon as its gradients do, after passes where they came late") {
            scene s;
            static player p[WORLD];
            memset(&s, 0, sizeof s);
            s.zero = STAGE3 "\"stage3_prefetch_bucket_size\": 0";
            s.shorter = shorter;
            on_ranks(&s, p, sooner);
            for (int k = 0; k <= N; k++) CHECK_EQ(p[0].calls[k], k);
        }
}

/* Gradients come from "d" to "a", each after its fetch. */
static void by_name(player *p, ds_zero *z) {
    static float gradient[NUMEL];
    if (p->s->load) MUST(ds_zero_load(z, p->s->load, NULL, NULL, NULL));
    for (int pass = 0; pass < 3; pass++) {
        uint64_t before = calls_of(z, DS_COMM_REDUCE_SCATTER);
        MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
        for (int k = 0; k < N; k++) {
            size_t i = (size_t)(p->s->reversed ? k : N - 1 - k);
            MUST(ds_zero_fetch(z, i, NULL));
            p->calls[k] = calls_of(z, DS_COMM_REDUCE_SCATTER) - before;
            MUST(ds_zero_grad(z, i, gradient, NULL));
            MUST(ds_zero_release(z, i));
        }
        MUST(ds_zero_end(z));
        MUST(ds_zero_step(z, NULL));
    }
    if (p->s->save) MUST(ds_zero_save(z, p->s->save, NULL, NULL, 0));
}

/* A scene at stage 3 that saves to a folder of its own, and its end. */
static void open_scene(scene *s, char *folder) {
    memset(s, 0, sizeof *s);
    s->zero = STAGE3 "\"stage3_prefetch_bucket_size\": 0";
    CHECK(mkdtemp(folder) != NULL);
    s->save = folder;
}
static void close_scene(const char *folder) {
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
}

static void loaded(void) {
    TEST(a checkpoint of parameters that were registered in another order does not tell the order of reductions) {
        static player p[WORLD];
        char folder[] = "/tmp/ds_zero_XXXXXX";
        scene s;
        open_scene(&s, folder);
        on_ranks(&s, p, by_name);
        s.save = NULL;
        s.load = folder;
        s.reversed = true;
        on_ranks(&s, p, by_name);
        for (int k = 0; k < N; k++) CHECK_EQ(p[0].calls[k], k);
        close_scene(folder);
    }
}

/* Saves two tags and then wants another one than the other rank, as where a file system shows them different folders. */
static void two_tags(player *p, ds_zero *z) {
    static const char *const tags[] = {"first", "second"};
    static float gradient[NUMEL];
    for (int k = 0; k < 2; k++) {
        MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
        for (size_t i = 0; i < N; i++) {
            MUST(ds_zero_fetch(z, i, NULL));
            MUST(ds_zero_grad(z, i, gradient, NULL));
            MUST(ds_zero_release(z, i));
        }
        MUST(ds_zero_end(z));
        MUST(ds_zero_step(z, NULL));
        MUST(ds_zero_save(z, p->s->save, tags[k], NULL, 0));
    }
    if (ds_zero_load(z, p->s->save, tags[p->rank], NULL, NULL) == DS_ERR_INPUT)
        snprintf(p->refusal, sizeof p->refusal, "%s", ds_zero_error(z)->message);
    CHECK_EQ(ds_zero_steps(z), 2);
    MUST(ds_zero_load(z, p->s->save, tags[0], NULL, NULL));
    CHECK_EQ(ds_zero_steps(z), 1);
}

static void tags(void) {
    TEST(a load of two checkpoints at once is refused and changes nothing) {
        static player p[WORLD];
        char folder[] = "/tmp/ds_zero_XXXXXX";
        scene s;
        open_scene(&s, folder);
        on_ranks(&s, p, two_tags);
        CHECK(strstr(p[0].refusal, "rank 0 opened 'first' (step 1), and another rank another checkpoint") != NULL);
        CHECK(strstr(p[1].refusal, "rank 1 opened 'second' (step 2), and another rank another checkpoint") != NULL);
        close_scene(folder);
    }
}

/* Rank 1 leaves out the gradient of "a", which comes before the other parameters are fetched. */
static void first_left_out(player *p, ds_zero *z) {
    float gradient[NUMEL];
    for (int k = 0; k < NUMEL; k++) gradient[k] = (float)((k + p->rank * 13) % 17 - 8);
    for (int step = 0; step < 4; step++) {
        MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
        for (size_t i = 0; i < N; i++) {
            MUST(ds_zero_fetch(z, i, NULL));
            if (p->rank == 0 || i > 0) MUST(ds_zero_grad(z, i, gradient, NULL));
            MUST(ds_zero_release(z, i));
        }
        MUST(ds_zero_end(z));
        MUST(ds_zero_step(z, NULL));
    }
    for (size_t i = 0; i < N; i++) MUST(ds_zero_read(z, i, -1, 0, NUMEL, p->values[i]));
}

static void left_over(void) {
    TEST(pipeline_write : a rank that gives no gradient prefetches what the others do) {
        static player plain[WORLD], p[WORLD];
        char zero[400], folder[] = "/tmp/ds_zero_XXXXXX";
        scene s;
        memset(&s, 0, sizeof s);
        s.zero = "\"stage\": 0";
        on_ranks(&s, plain, first_left_out);
        CHECK(mkdtemp(folder) != NULL);
        snprintf(zero, sizeof zero,
                 "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 1024, "
                 "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"%s\", \"pipeline_read\": true, "
                 "\"pipeline_write\": true}",
                 folder);
        s.zero = zero;
        s.bucket = 2 * NUMEL;
        on_ranks(&s, p, first_left_out);
        for (int r = 0; r < WORLD; r++) CHECK(memcmp(p[r].values, plain[0].values, sizeof p[r].values) == 0);
        CHECK(rmdir(folder) == 0);
    }
}

static void fetches(void) {
    static const struct {
        const char *name, *zero;
        int gathers[2 * N]; /* after each fetch */
        size_t peak;
    } rows[] = {
        {"no prefetch and no cache: one gather for each fetch",
         STAGE3
         "\"stage3_prefetch_bucket_size\": 0, \"stage3_max_reuse_distance\": 0, \"stage3_max_live_parameters\": 0",
         {1, 2, 3, 4, 5, 6, 7, 8},
         NUMEL},
        {"stage3_max_reuse_distance: what is used again soon stays",
         STAGE3 "\"stage3_prefetch_bucket_size\": 0, \"stage3_max_reuse_distance\": 8192",
         {1, 2, 3, 4, 4, 4, 5, 6},
         2 * NUMEL},
        {"stage3_max_live_parameters: unless there is no room",
         STAGE3 "\"stage3_prefetch_bucket_size\": 0, \"stage3_max_reuse_distance\": 8192, "
                "\"stage3_max_live_parameters\": 4096",
         {1, 2, 3, 4, 4, 5, 6, 7},
         NUMEL},
        {"stage3_prefetch_bucket_size: what comes next is there before it is asked for",
         STAGE3 "\"stage3_prefetch_bucket_size\": 8192, \"stage3_max_reuse_distance\": 0",
         {3, 4, 5, 6, 6, 7, 7, 7},
         3 * NUMEL},
    };
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) TEST_NAMED(rows[k].name) {
            scene s;
            player p[WORLD];
            memset(&s, 0, sizeof s);
            s.zero = rows[k].zero;
            on_ranks(&s, p, fetch);
            for (int i = 0; i < 2 * N; i++) CHECK_EQ(p[0].fetch_calls[i], rows[k].gathers[i]);
            CHECK_EQ(p[0].stats.gathered_elements_peak, rows[k].peak);
        }
}

/* Rank 1 fetches, or reads, tensors of one shape in another order. */
static void other_order(player *p, ds_zero *z) {
    const bool reads = p->s->during;
    float got[NUMEL];
    ds_status status = reads ? DS_OK : ds_zero_begin(z, DS_ZERO_EVALUATE);
    for (int k = 0; k < 2 && !status; k++) {
        const size_t i = (size_t)(k ^ p->rank);
        status = reads ? ds_zero_read(z, i, -1, 0, NUMEL, got) : ds_zero_fetch(z, i, NULL);
        if (!status && !reads) status = ds_zero_release(z, i);
    }
    p->calls[0] = status == DS_ERR_PEER;
    snprintf(p->refusal, sizeof p->refusal, "%s", ds_zero_error(z)->message);
}
static void orders(void) {
    static const char *const rows[] = {STAGE3 "\"stage3_prefetch_bucket_size\": 0",
                                       "\"stage\": 3, \"stage3_param_persistence_threshold\": 0",
                                       STAGE3 "\"zero_quantized_weights\": true", "\"stage\": 1"};
    for (int k = 0; k < 4; k++) TEST(ranks that fetch or read in another order are told) {
            scene s;
            player p[WORLD];
            memset(&s, 0, sizeof s);
            s.zero = rows[k];
            s.during = k == 3;
            on_ranks(&s, p, other_order);
            for (int r = 0; r < WORLD; r++) {
                char doing[64];
                snprintf(doing, sizeof doing, "rank %d: %s of %c", r, s.during ? "read" : "gather", 'a' + r);
                CHECK_EQ(p[r].calls[0], 1);
                CHECK_HAS(p[r].refusal, doing);
                CHECK_HAS(p[r].refusal, "tag ");
            }
        }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    reductions();
    two_at_once();
    one_too_early();
    fetches();
    unused();
    orders();
    relearned();
    left_over();
    loaded();
    tags();
    return test_end();
}
