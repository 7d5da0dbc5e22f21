/* The engine when the disk or another rank fails: an error that says what and where, no hang, a dead engine that goes on saying
   so, nothing leaked. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"
#include <limits.h>

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
static int b_rename(void *x, const char *a, const char *b) {
    return fails(x) ? -((broken_files *)x)->error : dsi_sys_rename(NULL, a, b);
}
static int b_mkdir(void *x, const char *p, unsigned m) {
    return fails(x) ? -((broken_files *)x)->error : dsi_sys_mkdir(NULL, p, m);
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
    d.files.open = b_open;
    d.files.read = b_read;
    d.files.write = b_write;
    d.files.sync = b_sync;
    d.files.rename = b_rename;
    d.files.mkdir = b_mkdir;
    d.files.ctx = &b;
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

/*---- collectives, over messages of which the n-th exchange fails: some, all with DS_TEST_KILLS -----------------*/

typedef struct letter {
    struct letter *next;
    size_t bytes;
    unsigned channel;
    int from, to;
    char data[];
} letter;

typedef struct post {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    letter *first, *last;
} post;

typedef struct mailman {
    post *office;
    int rank;
    long at, seen;
} mailman;

static void drop(post *o, int from, int to, unsigned channel, const void *data, size_t bytes) {
    letter *l = (letter *)calloc(1, sizeof *l + bytes);
    l->bytes = bytes;
    l->channel = channel;
    l->from = from;
    l->to = to;
    if (bytes) memcpy(l->data, data, bytes);
    if (o->last)
        o->last->next = l;
    else
        o->first = l;
    o->last = l;
    pthread_cond_broadcast(&o->changed);
}

/* The first letter from there to here on this channel, taken out; NULL when there is none. */
static letter *pick(post *o, int from, int to, unsigned channel) {
    letter *before = NULL;
    for (letter *l = o->first; l; before = l, l = l->next) {
        if (l->from != from || l->to != to || l->channel != channel) continue;
        if (before)
            before->next = l->next;
        else
            o->first = l->next;
        if (o->last == l) o->last = before;
        return l;
    }
    return NULL;
}

static ds_status exchange(void *ctx, unsigned channel, ds_comm_part *parts, int n, int64_t deadline, ds_error *error) {
    mailman *m = (mailman *)ctx;
    post *o = m->office;
    ds_status status = DS_OK;
    if (++m->seen == m->at) return dsi_fail(error, DS_ERR_IO, "the cable was cut");
    pthread_mutex_lock(&o->lock);
    for (int i = 0; i < n; i++)
        if (parts[i].send_bytes) drop(o, m->rank, parts[i].peer, channel, parts[i].send, parts[i].send_bytes);
    for (int i = 0; i < n && !status; i++) {
        letter *l = NULL;
        while (parts[i].receive_bytes && !(l = pick(o, parts[i].peer, m->rank, channel))) {
            struct timespec until;
            if (dsi_now(NULL) > deadline) {
                status = dsi_fail(error, DS_ERR_TIMEOUT, "no letter came");
                break;
            }
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 20000000;
            if (until.tv_nsec >= 1000000000) until.tv_nsec -= 1000000000, until.tv_sec++;
            pthread_cond_timedwait(&o->changed, &o->lock, &until);
        }
        if (l && parts[i].receive_bytes >= l->bytes) memcpy(parts[i].receive, l->data, l->bytes);
        free(l);
        parts[i].done = !status;
    }
    pthread_mutex_unlock(&o->lock);
    return status;
}

typedef struct message_rank {
    mailman man;
    const char *zero;
    ds_status status;
    ds_error error;
    bool hung, agreed;
} message_rank;

static void *run_messages(void *arg) {
    message_rank *a = (message_rank *)arg;
    void *slots[N];
    ds_zero_param params[N];
    ds_config *c = config_for(2, a->zero);
    ds_comm_transport transport;
    ds_comm_desc cd;
    ds_zero_desc d;
    ds_comm *comm = NULL;
    ds_zero *z = NULL;
    memset(&transport, 0, sizeof transport);
    memset(&cd, 0, sizeof cd);
    memset(&d, 0, sizeof d);
    describe(params, slots);
    transport.name = "letters";
    transport.ctx = &a->man;
    transport.exchange = exchange;
    cd.backend = "user";
    cd.world = 2;
    cd.rank = a->man.rank;
    cd.timeout = 2000000000;
    cd.transport = &transport;
    d.config = c;
    d.params = params;
    d.n_params = N;
    a->status = ds_comm_create(&cd, &comm, &a->error);
    d.comm = comm;
    if (!a->status) a->status = ds_zero_create(&d, &z, &a->error);
    for (int k = 0; k < 2 && !a->status; k++)
        if ((a->status = step(z))) a->error = *ds_zero_error(z);
    a->agreed = true;
    if (a->status && z) { /* dead, and saying so */
        a->agreed = ds_zero_begin(z, DS_ZERO_TRAIN) == a->status && ds_zero_step(z, NULL) == a->status &&
                    ds_zero_save(z, "build/nowhere", NULL, NULL, 0) == a->status &&
                    strcmp(ds_zero_error(z)->message, a->error.message) == 0;
    }
    ds_zero_destroy(z);
    ds_comm_destroy(comm);
    ds_config_free(c);
    return NULL;
}

static long on_messages(const char *zero, long at, message_rank *r) {
    post office;
    pthread_t threads[2];
    memset(&office, 0, sizeof office);
    memset(r, 0, 2 * sizeof *r);
    pthread_mutex_init(&office.lock, NULL);
    pthread_cond_init(&office.changed, NULL);
    for (int k = 0; k < 2; k++) {
        r[k].man.office = &office;
        r[k].man.rank = k;
        r[k].man.at = k == 1 ? at : 0;
        r[k].zero = zero;
        pthread_create(&threads[k], NULL, run_messages, &r[k]);
    }
    for (int k = 0; k < 2; k++) pthread_join(threads[k], NULL);
    for (letter *l = office.first, *next; l; l = next) next = l->next, free(l);
    pthread_mutex_destroy(&office.lock);
    pthread_cond_destroy(&office.changed);
    return r[1].man.seen;
}

static void messages(void) {
    static const char *const zeros[] = {
        "\"stage\": 1", "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"reduce_bucket_size\": 1"};
    for (size_t k = 0; k < 2; k++) {
        char name[96];
        snprintf(name, sizeof name, "each exchange between ranks fails in turn: %zu", k);
        TEST_NAMED(name) {
            message_rank r[2];
            long total = on_messages(zeros[k], 0, r), stride = getenv("DS_TEST_KILLS") ? 1 : total / 6 + 1;
            CHECK(r[0].status == DS_OK && r[1].status == DS_OK && total > 20);
            for (long at = 1 + (long)k; at <= total; at += stride) {
                (void)on_messages(zeros[k], at, r);
                if (!CHECK(r[1].status != DS_OK && r[1].error.message[0] && r[1].agreed))
                    printf("  exchange %ld of %ld, rank 1: %d %s\n", at, total, (int)r[1].status, r[1].error.message);
                CHECK_HAS(r[1].error.message, "the cable was cut");
                /* the other one is told, or notices, unless it had all it needed */
                if (!CHECK(r[0].agreed && (r[0].status == DS_OK || DS_IS_ENVIRONMENT(r[0].status))))
                    printf("  exchange %ld of %ld, rank 0: %d %s\n", at, total, (int)r[0].status, r[0].error.message);
            }
        }
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    disk();
    ranks();
    retries();
    messages();
    return test_end();
}
