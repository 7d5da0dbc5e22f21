/* ds.gather_in_background: a step returns while updated parameters are still on their way, a fetch waits for its own, and
   all else is as without the key. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"
#include "../post.h"

enum { N = 5, MOST = 16384, STEPS = 4, MAX_WORLD = 3 };
static const size_t sizes[N] = {8192, 100, 12288, 4096, MOST}; /* the second is packed */
static const char *const names[N] = {"first", "small", "second", "third", "wide"};

typedef struct scene {
    const char *zero, *ds, *other; /* other: rank 1's own ds; NULL: the same */
    const char *precision;         /* a section, or "" */
    int world;
    bool still;     /* rank 0 holds the second's letters in the second step, and gives them out later */
    bool unfetched; /* some passes leave parameters out */
    post office;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int met;
} scene;

typedef struct player {
    scene *s;
    mailman man;
    uint16_t half[MOST];
    float gradient[MOST];
    uint64_t seen[STEPS][N]; /* what each slot had, by its hash */
    uint64_t gathers;        /* in all steps */
    bool waited;             /* the fetch of the second came after its letters were let go */
    bool planned;
    char message[600];
} player;

/* All ranks come here for the n-th time. */
static void meet(scene *s, int n) {
    pthread_mutex_lock(&s->lock);
    s->met++;
    pthread_cond_broadcast(&s->changed);
    while (s->met < n * s->world) pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static void *let_go(void *arg) {
    post *o = (post *)arg;
    dsi_sleep(NULL, 30000000);
    post_hold(o, 0);
    return NULL;
}

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if ((call) != DS_OK) {                                                                                         \
            snprintf(p->message, sizeof p->message, "%s: %s", #call, ds_zero_error(z)->message);                       \
            return;                                                                                                    \
        }                                                                                                              \
    } while (0)

static void train(player *p, ds_zero *z, void *const *slots, size_t each) {
    scene *s = p->s;
    for (int step = 0; step < STEPS; step++) {
        pthread_t later;
        bool holds = s->still && step == 2; /* what the second step sent */
        MUST(ds_zero_begin(z, DS_ZERO_TRAIN));
        for (size_t i = 0; i < N; i++) {
            if (s->unfetched && (size_t)step % N == i) continue;
            if (i == 2 && holds && p->man.rank == 0) pthread_create(&later, NULL, let_go, &s->office);
            MUST(ds_zero_fetch(z, i, NULL));
            if (i == 2 && holds) {
                pthread_mutex_lock(&s->office.lock);
                p->waited = s->office.held == 0;
                pthread_mutex_unlock(&s->office.lock);
                if (p->man.rank == 0) pthread_join(later, NULL);
            }
            p->seen[step][i] = dsi_zero_hash(1, slots[i], sizes[i] * each);
            MUST(ds_zero_release(z, i));
        }
        for (size_t i = N; i-- > 0;) {
            for (size_t e = 0; e < sizes[i]; e++)
                p->gradient[e] =
                    (float)((e * 7919 + i * 31 + (size_t)p->man.rank * 17 + (size_t)step) % 1000) / 1000.0f;
            if (each == 2) ds_optim_cast(p->half, DS_BF16, p->gradient, DS_F32, sizes[i]);
            MUST(ds_zero_grad(z, i, each == 2 ? (void *)p->half : p->gradient, NULL));
        }
        MUST(ds_zero_end(z));
        if (s->still && step == 1) {
            meet(s, 1);
            if (p->man.rank == 0) post_hold(&s->office, sizes[2] / 2 * each);
            meet(s, 2);
        }
        MUST(ds_zero_step(z, NULL));
    }
    if (!s->still) MUST(ds_zero_read(z, 0, -1, 0, 0, NULL)); /* all are over, or else under way at destroy */
}

static void *on_rank(void *arg) {
    player *p = (player *)arg;
    char text[1024];
    void *slots[N];
    ds_comm_transport transport = post_transport(&p->man);
    ds_error error = {DS_OK, ""};
    ds_config_options o;
    ds_comm_desc c;
    ds_zero_param params[N];
    ds_zero_desc d;
    ds_zero_stats stats;
    ds_zero_bytes plan;
    ds_config *config = NULL;
    ds_comm *comm = NULL;
    ds_zero *z = NULL;
    memset(&o, 0, sizeof o);
    memset(&c, 0, sizeof c);
    memset(&d, 0, sizeof d);
    memset(params, 0, sizeof params);
    memset(&stats, 0, sizeof stats);
    transport.concurrent = true;
    o.world_size = (size_t)p->s->world;
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, %s \"ds\": {%s}, "
             "\"zero_optimization\": {%s}}",
             p->s->precision, p->s->other && p->man.rank == 1 ? p->s->other : p->s->ds, p->s->zero);
    c.backend = "user";
    c.world = p->s->world;
    c.rank = p->man.rank;
    c.timeout = 20000000000;
    c.transport = &transport;
    if (!ds_config_parse(text, strlen(text), &o, &config, &error)) ds_comm_create(&c, &comm, &error);
    for (size_t i = 0; i < N; i++) {
        params[i].name = names[i];
        params[i].dims = 1;
        params[i].shape[0] = sizes[i];
        params[i].dtype = ds_zero_model_dtype(config);
        params[i].slot = &slots[i];
    }
    d.config = config;
    d.comm = comm;
    d.params = params;
    d.n_params = N;
    if (!error.status) (void)(ds_zero_plan(&d, c.rank, c.world, &plan, &error) || ds_zero_create(&d, &z, &error));
    if (z)
        train(p, z, slots, DS_DTYPE_SIZE(params[0].dtype));
    else
        snprintf(p->message, sizeof p->message, "create: %s", error.message);
    if (p->message[0]) post_cut(&p->s->office);
    ds_zero_get_stats(z, &stats);
    p->gathers = stats.comm.calls[DS_COMM_ALL_GATHER] + stats.comm.calls[DS_COMM_BROADCAST];
    p->planned = z && memcmp(&plan, &stats.peak, sizeof plan) == 0;
    ds_zero_destroy(z);
    ds_comm_destroy(comm);
    ds_config_free(config);
    return NULL;
}

static void on_ranks(scene *s, player *p) {
    pthread_t threads[MAX_WORLD];
    post_open(&s->office);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    s->met = 0;
    memset(p, 0, MAX_WORLD * sizeof *p);
    for (int r = 0; r < s->world; r++) {
        p[r].s = s;
        p[r].man.office = &s->office;
        p[r].man.rank = r;
        pthread_create(&threads[r], NULL, on_rank, &p[r]);
    }
    for (int r = 0; r < s->world; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < s->world; r++)
        if (!CHECK(s->other ? p[r].message[0] != 0 : p[r].message[0] == 0)) printf("  rank %d: %s\n", r, p[r].message);
    post_close(&s->office);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
}

static player plain[MAX_WORLD], later[MAX_WORLD];
static const char *const stages[] = {"\"stage\": 1", "\"stage\": 2",
                                     "\"stage\": 3, \"stage3_param_persistence_threshold\": 20000"};
#define KEY "\"gather_in_background\": true"

static void held(void) {
    for (int k = 0; k < 6; k++) {
        char name[200];
        scene s;
        memset(&s, 0, sizeof s);
        s.world = 2;
        s.zero = stages[k % 3];
        s.precision = k < 3 ? "" : "\"bf16\": {\"enabled\": true},";
        snprintf(name, sizeof name, "a step returns while gathers wait, a fetch does not: %s %s", s.zero, s.precision);
        TEST_NAMED(name) {
            s.ds = "";
            on_ranks(&s, plain);
            s.ds = KEY;
            s.still = true;
            on_ranks(&s, later);
            for (int r = 0; r < 2; r++) {
                CHECK(later[r].waited);
                CHECK(later[r].planned);
                CHECK(memcmp(later[r].seen, plain[0].seen, sizeof plain[0].seen) == 0);
            }
        }
    }
}

static void same(void) {
    static const struct {
        const char *zero;
        int more; /* calls in a step than without the key */
    } rows[] = {{"", 4},
                {", \"overlap_comm\": true, \"reduce_bucket_size\": 5000", 4},
                {", \"allgather_partitions\": false", -1},
                {", \"allgather_bucket_size\": 10000", -1},
                {", \"offload_optimizer\": {\"device\": \"cpu\"}", 4}};
    for (int k = 0; k < 2 * 3 * (int)(sizeof rows / sizeof rows[0]); k++) {
        char name[320], zero[200];
        scene s;
        memset(&s, 0, sizeof s);
        s.world = 2 + k % 2;
        snprintf(zero, sizeof zero, "%s%s", stages[k / 2 % 3], rows[k / 6].zero);
        s.zero = zero;
        s.precision = k % 4 < 2 ? "" : "\"bf16\": {\"enabled\": true},";
        s.unfetched = k % 5 == 0;
        snprintf(name, sizeof name, "the same bits in each slot at each fetch: world %d %s %s", s.world, zero,
                 s.precision);
        TEST_NAMED(name) {
            s.ds = "";
            on_ranks(&s, plain);
            s.ds = KEY;
            on_ranks(&s, later);
            for (int r = 0; r < s.world; r++) {
                CHECK(later[r].planned);
                CHECK(memcmp(later[r].seen, plain[0].seen, sizeof plain[0].seen) == 0);
                if (rows[k / 6].more >= 0)
                    CHECK_EQ(later[r].gathers, plain[r].gathers + (uint64_t)(STEPS * rows[k / 6].more));
            }
        }
    }
}

static void unlike(void) {
    TEST(ranks that have another value of the key each are told at create) {
        scene s;
        memset(&s, 0, sizeof s);
        s.world = 2;
        s.zero = stages[0];
        s.precision = "";
        s.ds = KEY;
        s.other = "";
        on_ranks(&s, later);
        CHECK_HAS(later[0].message, "rank 0: ds.gather_in_background is true here");
        CHECK_HAS(later[1].message, "rank 1: ds.gather_in_background is false here");
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    unlike();
    held();
    same();
    return test_end();
}
