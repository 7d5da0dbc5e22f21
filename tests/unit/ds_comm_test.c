/* Collectives over threads, alone and over processes, against a plain model; errors, environment, split, memory. */
#define DS_COMM_IMPLEMENTATION
#include "ds_comm.h"
#include "tests/test.h"
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* A team: the same body on each rank, as threads or as processes over shm. The body returns its failed checks. */
typedef int (*team_body)(ds_comm *comm, void *arg);
typedef struct team_member {
    ds_comm *comm;
    team_body body;
    void *arg;
    int failed;
} team_member;
static void *team_main(void *arg) {
    team_member *m = (team_member *)arg;
    m->failed = m->body(m->comm, m->arg);
    ds_comm_destroy(m->comm);
    return NULL;
}
static int64_t team_timeout = (int64_t)20 * 1000000000;
static ds_comm_desc quick_desc(void) {
    ds_comm_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.timeout = team_timeout;
    desc.stage_bytes = 16384;
    desc.arena_bytes = (size_t)64 << 20;
    return desc;
}
static int team_threads(int world, team_body body, void *arg) {
    ds_comm *comms[64];
    team_member members[64];
    pthread_t threads[64];
    ds_comm_desc desc = quick_desc();
    ds_error error = {DS_OK, ""};
    int failed = 0;
    if (ds_comm_threads_create(&desc, world, comms, &error)) return printf("  %s\n", error.message), 1;
    for (int r = 0; r < world; r++) {
        members[r].comm = comms[r];
        members[r].body = body;
        members[r].arg = arg;
        if (pthread_create(&threads[r], NULL, team_main, &members[r])) return 1;
    }
    for (int r = 0; r < world; r++) {
        pthread_join(threads[r], NULL);
        failed += members[r].failed;
    }
    return failed;
}
static int team_number;
static int team_processes(int world, team_body body, void *arg) {
    pid_t pids[64];
    int failed = 0, status;
    char id[64];
    snprintf(id, sizeof id, "unit %ld %d", (long)getpid(), team_number++);
    fflush(stdout);
    for (int r = 0; r < world; r++) {
        pids[r] = fork();
        if (pids[r] == 0) {
            ds_comm_desc desc = quick_desc();
            ds_comm *comm;
            ds_error error = {DS_OK, ""};
            int bad = 1;
            desc.backend = "shm";
            desc.world = world;
            desc.rank = r;
            desc.run_id = id;
            if (ds_comm_create(&desc, &comm, &error))
                printf("  rank %d: %s\n", r, error.message);
            else {
                bad = body(comm, arg) != 0;
                ds_comm_destroy(comm);
            }
            test_child_exit(bad);
        }
    }
    for (int r = 0; r < world; r++) {
        waitpid(pids[r], &status, 0);
        failed += !WIFEXITED(status) || WEXITSTATUS(status);
    }
    return failed;
}

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            if (bad++ < 3)                                                                                             \
                printf("  rank %d, line %d: %s (%s)\n", ds_comm_rank(comm), __LINE__, #condition,                      \
                       ds_comm_error(comm)->message);                                                                  \
        }                                                                                                              \
    } while (0)

/* ---- values: element i of rank r, in each type, and sums in the documented order ---- */

static const ds_dtype all_types[] = {DS_F32, DS_F16, DS_BF16, DS_F64, DS_I8,  DS_U8,  DS_I16,
                                     DS_U16, DS_I32, DS_U32,  DS_I64, DS_U64, DS_BOOL};

static uint64_t value_bits(ds_dtype dtype, int rank, size_t i) {
    uint64_t seed = (uint64_t)rank * 1000003u + i * 7919u + (uint64_t)dtype, z = test_random(&seed);
    double x = ((double)(z >> 11) * 0x1p-53 - 0.5) * (i % 5 == 0 ? 1000.0 : 1.0);
    uint64_t bits = 0;
    if (dtype == DS_F32) return dsi_bits_of_f32((float)x);
    if (dtype == DS_F16) return dsi_f16_of_f32((float)x);
    if (dtype == DS_BF16) return dsi_bf16_of_f32((float)x);
    if (dtype == DS_F64) {
        memcpy(&bits, &x, 8);
        return bits;
    }
    return dtype == DS_BOOL ? z & 1 : z;
}
static void value_store(void *p, ds_dtype dtype, size_t i, uint64_t bits) {
    size_t size = DS_DTYPE_SIZE(dtype);
    memcpy((char *)p + i * size, &bits, size); /* little endian */
}
static void *fill(void *p, ds_dtype dtype, int rank, size_t first, size_t count) {
    for (size_t i = 0; i < count; i++) value_store(p, dtype, i, value_bits(dtype, rank, first + i));
    return p;
}

/* The tree by its definition: neighbours level by level, an odd one moves up. */
static double tree_f64(double *x, int n) {
    while (n > 1) {
        for (int i = 0; i < n / 2; i++) x[i] = x[2 * i] + x[2 * i + 1];
        if (n & 1) x[n / 2] = x[n - 1];
        n = (n + 1) / 2;
    }
    return x[0];
}
static float tree_f32(float *x, int n) {
    while (n > 1) {
        for (int i = 0; i < n / 2; i++) x[i] = x[2 * i] + x[2 * i + 1];
        if (n & 1) x[n / 2] = x[n - 1];
        n = (n + 1) / 2;
    }
    return x[0];
}
static float half_value(ds_dtype dtype, uint64_t bits) {
    return dtype == DS_F16    ? dsi_f32_of_f16((uint16_t)bits)
           : dtype == DS_BF16 ? dsi_f32_of_bf16((uint16_t)bits)
                              : dsi_f32_of_bits((uint32_t)bits);
}
static int64_t signed_value(ds_dtype dtype, uint64_t bits) {
    switch (dtype) {
    case DS_I8: return (int8_t)bits;
    case DS_I16: return (int16_t)bits;
    case DS_I32: return (int32_t)bits;
    default: return (int64_t)bits;
    }
}
static uint64_t unsigned_value(ds_dtype dtype, uint64_t bits) {
    size_t size = DS_DTYPE_SIZE(dtype);
    return size == 8 ? bits : bits & (((uint64_t)1 << size * 8) - 1);
}
static uint64_t model_reduce(ds_dtype dtype, ds_dtype out, ds_comm_op op, int world, size_t i) {
    float f[64] = {0};
    double d[64] = {0};
    uint64_t result = 0, bits;
    if (dtype == DS_F32 || dtype == DS_F16 || dtype == DS_BF16) {
        float sum;
        for (int r = 0; r < world; r++) f[r] = half_value(dtype, value_bits(dtype, r, i));
        sum = f[0];
        if (op == DS_COMM_SUM || op == DS_COMM_AVERAGE) sum = tree_f32(f, world);
        for (int r = 1; r < world && op >= DS_COMM_MIN; r++)
            if (op == DS_COMM_MIN ? f[r] < sum : f[r] > sum) sum = f[r];
        if (op == DS_COMM_AVERAGE) sum /= (float)world;
        return out == DS_F32 ? dsi_bits_of_f32(sum) : out == DS_F16 ? dsi_f16_of_f32(sum) : dsi_bf16_of_f32(sum);
    }
    if (dtype == DS_F64) {
        double sum;
        for (int r = 0; r < world; r++) {
            bits = value_bits(dtype, r, i);
            memcpy(&d[r], &bits, 8);
        }
        sum = d[0];
        if (op == DS_COMM_SUM || op == DS_COMM_AVERAGE) sum = tree_f64(d, world);
        for (int r = 1; r < world && op >= DS_COMM_MIN; r++)
            if (op == DS_COMM_MIN ? d[r] < sum : d[r] > sum) sum = d[r];
        if (op == DS_COMM_AVERAGE) sum /= world;
        memcpy(&result, &sum, 8);
        return result;
    }
    result = value_bits(dtype, 0, i);
    for (int r = 1; r < world; r++) {
        bits = value_bits(dtype, r, i);
        if (op == DS_COMM_SUM)
            result += bits;
        else if (dtype == DS_I8 || dtype == DS_I16 || dtype == DS_I32 || dtype == DS_I64)
            result = (signed_value(dtype, bits) < signed_value(dtype, result)) == (op == DS_COMM_MIN) ? bits : result;
        else
            result =
                (unsigned_value(dtype, bits) < unsigned_value(dtype, result)) == (op == DS_COMM_MIN) ? bits : result;
    }
    return result;
}
static int differs(const void *p, ds_dtype dtype, size_t i, uint64_t bits) {
    size_t size = DS_DTYPE_SIZE(dtype);
    return memcmp((const char *)p + i * size, &bits, size) != 0;
}

typedef struct matrix_case {
    size_t count;
    ds_dtype dtype;
    int shared, in_place;
} matrix_case;

/* Every collective for one type and count. */
static int matrix_body(ds_comm *comm, void *arg) {
    const matrix_case *t = (const matrix_case *)arg;
    int w = ds_comm_world(comm), me = ds_comm_rank(comm), bad = 0, root = w - 1;
    size_t n = t->count, size = DS_DTYPE_SIZE(t->dtype), bytes = (n * (size_t)w + 64) * 8, wrong;
    char *a = (char *)(t->shared ? ds_comm_alloc(comm, bytes) : malloc(bytes));
    char *b = (char *)(t->shared ? ds_comm_alloc(comm, bytes) : malloc(bytes));
    char *out = t->in_place ? a : b;
    size_t counts[64], begin = 0, total = 0;
    for (int op = 0; op < 4; op++) {
        if (t->dtype >= DS_I8 && op == DS_COMM_AVERAGE) continue;
        if (t->dtype == DS_BOOL && op == DS_COMM_SUM) continue;
        fill(a, t->dtype, me, 0, n);
        EXPECT(ds_comm_all_reduce(comm, a, out, n, t->dtype, (ds_comm_op)op) == DS_OK);
        wrong = 0;
        for (size_t i = 0; i < n; i++)
            wrong += (size_t)differs(out, t->dtype, i, model_reduce(t->dtype, t->dtype, (ds_comm_op)op, w, i));
        EXPECT(wrong == 0);
        fill(a, t->dtype, me, 0, n);
        EXPECT(ds_comm_reduce(comm, a, out, n, t->dtype, (ds_comm_op)op, root) == DS_OK);
        wrong = 0;
        for (size_t i = 0; i < n && me == root; i++)
            wrong += (size_t)differs(out, t->dtype, i, model_reduce(t->dtype, t->dtype, (ds_comm_op)op, w, i));
        EXPECT(wrong == 0);
    }
    /* parts: n of everyone, then rank r gives (r * 7 % 3) * n / 2, so that some are empty */
    for (int uneven = 0; uneven < 2; uneven++) {
        ds_dtype wide = t->dtype == DS_F16 || t->dtype == DS_BF16 ? DS_F32 : t->dtype;
        const size_t *given = uneven ? counts : NULL;
        size_t mine;
        begin = total = 0;
        for (int r = 0; r < w; r++) {
            counts[r] = uneven ? (size_t)(r * 7 % 3) * n / 2 : n;
            if (r < me) begin += counts[r];
            total += counts[r];
        }
        mine = counts[me];
        if (t->dtype != DS_BOOL) {
            for (int widen = 0; widen < (wide == t->dtype ? 1 : 2); widen++) {
                ds_dtype to = widen ? wide : t->dtype;
                char *place = t->in_place && !widen ? a + begin * size : b;
                fill(a, t->dtype, me, 0, total);
                EXPECT(ds_comm_reduce_scatter(comm, a, place, n, given, t->dtype, to, DS_COMM_SUM) == DS_OK);
                wrong = 0;
                for (size_t i = 0; i < mine; i++)
                    wrong += (size_t)differs(place, to, i, model_reduce(t->dtype, to, DS_COMM_SUM, w, begin + i));
                EXPECT(wrong == 0);
            }
        }
        memset(b, 0x5A, bytes);
        fill(t->in_place ? b + begin * size : a, t->dtype, me, begin, mine);
        EXPECT(ds_comm_all_gather(comm, t->in_place ? b + begin * size : a, b, n, given, t->dtype) == DS_OK);
        wrong = 0;
        for (size_t i = 0, r = 0, at = 0; i < total; i++, at++) {
            while (at == counts[r]) r++, at = 0;
            wrong += (size_t)differs(b, t->dtype, i, value_bits(t->dtype, (int)r, i));
        }
        EXPECT(wrong == 0 && (unsigned char)b[total * size] == 0x5A);
        fill(a, t->dtype, me, begin, mine);
        memset(b, 0x5A, bytes);
        EXPECT(ds_comm_gather(comm, a, b, n, given, t->dtype, root) == DS_OK);
        wrong = 0;
        for (size_t i = 0, r = 0, at = 0; i < total && me == root; i++, at++) {
            while (at == counts[r]) r++, at = 0;
            wrong += (size_t)differs(b, t->dtype, i, value_bits(t->dtype, (int)r, i));
        }
        EXPECT(wrong == 0 && (unsigned char)b[me == root ? total * size : 0] == 0x5A);
        fill(a, t->dtype, me, 0, total);
        EXPECT(ds_comm_scatter(comm, a, b, n, given, t->dtype, root) == DS_OK);
        wrong = 0;
        for (size_t i = 0; i < mine; i++)
            wrong += (size_t)differs(b, t->dtype, i, value_bits(t->dtype, root, begin + i));
        EXPECT(wrong == 0);
    }
    fill(a, t->dtype, me, 0, n);
    EXPECT(ds_comm_broadcast(comm, a, n, t->dtype, root) == DS_OK);
    wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += (size_t)differs(a, t->dtype, i, value_bits(t->dtype, root, i));
    EXPECT(wrong == 0);
    fill(a, t->dtype, me, 0, n * (size_t)w);
    EXPECT(ds_comm_all_to_all(comm, a, b, n, t->dtype) == DS_OK);
    wrong = 0;
    for (size_t i = 0; i < n * (size_t)w; i++)
        wrong += (size_t)differs(b, t->dtype, i, value_bits(t->dtype, (int)(i / n), (size_t)me * n + i % n));
    EXPECT(wrong == 0);
    { /* rank r gives rank d the first (r + d) % 3 * n / 2 values of its row d */
        size_t give[64], take[64], from = 0, at = 0;
        for (int r = 0; r < w; r++) {
            give[r] = (size_t)((me + r) % 3) * n / 2;
            take[r] = (size_t)((r + me) % 3) * n / 2;
            fill(a + from * size, t->dtype, me, (size_t)r * n, give[r]);
            from += give[r];
        }
        EXPECT(ds_comm_all_to_all_uneven(comm, a, give, b, take, t->dtype) == DS_OK);
        wrong = 0;
        for (int r = 0; r < w; r++)
            for (size_t i = 0; i < take[r]; i++)
                wrong += (size_t)differs(b, t->dtype, at++, value_bits(t->dtype, r, (size_t)me * n + i));
        EXPECT(wrong == 0);
    }
    if (w > 1) { /* a ring of messages; even ranks send first */
        int next = (me + 1) % w, last = (me + w - 1) % w;
        fill(a, t->dtype, me, 0, n);
        if (me % 2 == 0) EXPECT(ds_comm_send(comm, a, n, t->dtype, next) == DS_OK);
        EXPECT(ds_comm_receive(comm, b, n, t->dtype, last) == DS_OK);
        if (me % 2 == 1) EXPECT(ds_comm_send(comm, a, n, t->dtype, next) == DS_OK);
        wrong = 0;
        for (size_t i = 0; i < n; i++) wrong += (size_t)differs(b, t->dtype, i, value_bits(t->dtype, last, i));
        EXPECT(wrong == 0);
    }
    EXPECT(ds_comm_barrier(comm) == DS_OK);
    if (t->shared) {
        ds_comm_free(comm, a, bytes);
        ds_comm_free(comm, b, bytes);
    } else {
        free(a);
        free(b);
    }
    return bad;
}

/* ---- a transport of our own: mailboxes under one lock ---- */

typedef struct letter {
    struct letter *next;
    int from, to;
    unsigned channel;
    size_t bytes;
} letter;
typedef struct post_office {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    letter *first;
    int closed;
} post_office;
typedef struct post_box {
    post_office *office;
    int rank;
} post_box;
static struct { int victim, at, count; /* the exchange of that rank that fails; how many it made */ } wire;
static ds_status post_exchange(void *ctx, unsigned channel, ds_comm_part *parts, int count, int64_t deadline,
                               ds_error *error) {
    post_box *box = (post_box *)ctx;
    post_office *o = box->office;
    int open = 0;
    if (box->rank == wire.victim && __atomic_add_fetch(&wire.count, 1, __ATOMIC_RELAXED) == wire.at) {
        if (error) snprintf(error->message, sizeof error->message, "the wire is cut");
        return DS_ERR_IO;
    }
    pthread_mutex_lock(&o->lock);
    for (int i = 0; i < count; i++) {
        letter *l, **end = &o->first;
        parts[i].done = parts[i].receive_bytes == 0;
        open += !parts[i].done;
        if (!parts[i].send_bytes) continue;
        l = (letter *)malloc(sizeof *l + parts[i].send_bytes);
        l->next = NULL;
        l->from = box->rank;
        l->to = parts[i].peer;
        l->channel = channel;
        l->bytes = parts[i].send_bytes;
        memcpy(l + 1, parts[i].send, l->bytes);
        while (*end) end = &(*end)->next;
        *end = l;
    }
    pthread_cond_broadcast(&o->changed);
    while (open) {
        struct timespec t;
        for (int i = 0; i < count; i++)
            for (letter **at = &o->first; *at && !parts[i].done; at = &(*at)->next)
                if ((*at)->to == box->rank && (*at)->from == parts[i].peer && (*at)->channel == channel) {
                    letter *l = *at;
                    *at = l->next;
                    if (l->bytes != parts[i].receive_bytes) {
                        pthread_mutex_unlock(&o->lock);
                        free(l);
                        if (error) snprintf(error->message, sizeof error->message, "a letter of another size");
                        return DS_ERR_CORRUPT;
                    }
                    memcpy(parts[i].receive, l + 1, l->bytes);
                    free(l);
                    parts[i].done = true;
                    open--;
                    break;
                }
        if (!open || dsi_now(NULL) >= deadline) break;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 20000000;
        if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&o->changed, &o->lock, &t);
    }
    pthread_mutex_unlock(&o->lock);
    return open ? DS_ERR_TIMEOUT : DS_OK;
}
static void post_close(void *ctx) {
    post_box *box = (post_box *)ctx;
    pthread_mutex_lock(&box->office->lock);
    box->office->closed++;
    pthread_mutex_unlock(&box->office->lock);
}
/* Sums of this office's own, from the last rank down to the first: fp32 only, and not in groups of one's own choice. */
static bool post_sums(void *ctx, const ds_comm_sum *s) {
    (void)ctx;
    return s->dtype == DS_F32 && s->ranks[0] == 0;
}
static ds_status post_sum(void *ctx, const ds_comm_sum *s, int64_t deadline, ds_error *error) {
    ds_comm_part parts[16];
    float *all = (float *)malloc((size_t)s->world * s->count * sizeof *all), *own = all + (size_t)s->rank * s->count;
    size_t begin = s->kind == DS_COMM_REDUCE_SCATTER ? s->starts[s->rank] : 0;
    size_t end = s->kind == DS_COMM_REDUCE_SCATTER ? s->starts[s->rank + 1] : s->count;
    ds_status status;
    memset(parts, 0, sizeof parts);
    memcpy(own, s->in, s->count * sizeof *all);
    for (int r = 0; r < s->world; r++) { /* to itself too, which keeps the code short */
        parts[r].peer = s->ranks[r];
        parts[r].send = own;
        parts[r].receive = all + (size_t)r * s->count;
        parts[r].send_bytes = parts[r].receive_bytes = s->count * sizeof *all;
    }
    status = post_exchange(ctx, s->channel, parts, s->world, deadline, error);
    for (size_t i = begin; i < end && !status && (s->kind != DS_COMM_REDUCE || s->rank == s->root); i++) {
        float x = 0;
        for (int r = s->world - 1; r >= 0; r--) x += all[(size_t)r * s->count + i];
        ((float *)s->out)[i - begin] = x;
    }
    free(all);
    return status;
}
static int team_messages_of(int world, const ds_comm_desc *base, team_body body, void *arg) {
    post_office office;
    post_box boxes[16];
    team_member members[16];
    pthread_t threads[16];
    int failed = 0;
    memset(&office, 0, sizeof office);
    pthread_mutex_init(&office.lock, NULL);
    pthread_cond_init(&office.changed, NULL);
    for (int r = 0; r < world; r++) {
        ds_comm_transport transport;
        ds_comm_desc desc = *base;
        ds_error error = {DS_OK, ""};
        memset(&transport, 0, sizeof transport);
        boxes[r].office = &office;
        boxes[r].rank = r;
        transport.name = "post";
        transport.ctx = &boxes[r];
        transport.exchange = post_exchange;
        transport.close = post_close;
        transport.concurrent = true;
        transport.sums = post_sums;
        transport.sum = post_sum;
        desc.world = world;
        desc.rank = r;
        desc.transport = &transport;
        if (ds_comm_create(&desc, &members[r].comm, &error)) printf("  %s\n", error.message), exit(1);
        members[r].body = body;
        members[r].arg = arg;
        if (pthread_create(&threads[r], NULL, team_main, &members[r])) exit(1);
    }
    for (int r = 0; r < world; r++) {
        pthread_join(threads[r], NULL);
        failed += members[r].failed;
    }
    failed += office.closed != world;
    while (office.first) {
        letter *l = office.first;
        office.first = l->next;
        free(l);
    }
    pthread_cond_destroy(&office.changed);
    pthread_mutex_destroy(&office.lock);
    return failed;
}
static int team_messages(int world, team_body body, void *arg) {
    ds_comm_desc desc = quick_desc();
    return team_messages_of(world, &desc, body, arg);
}

/* ---- sums that the backend makes ---- */

/* What a call with `native` gives: of whole numbers, which every order adds alike, the sum; of others, the sum in an order of
   some kind. Bytes are counted as in the fixed order. `arg`: the types that the backend sums by itself, a bit for each. */
static void native_line(void *ctx, const char *header, int level, int id, const char *message) {
    (void)header, (void)level, (void)message;
    *(int *)ctx += id == 8;
}
static float native_value(int rank, size_t i) {
    return (float)(((size_t)rank * 7 + i * 3) % 13) - 6;
}
static void native_store(void *p, ds_dtype dtype, size_t i, float x) {
    double d = x;
    int64_t whole = (int64_t)x;
    uint64_t bits = (uint64_t)whole;
    if (dtype == DS_F32) bits = dsi_bits_of_f32(x);
    if (dtype == DS_F16) bits = dsi_f16_of_f32(x);
    if (dtype == DS_BF16) bits = dsi_bf16_of_f32(x);
    if (dtype == DS_F64) memcpy(&bits, &d, sizeof bits);
    value_store(p, dtype, i, bits);
}
static int native_one(ds_comm *comm, ds_comm_kind kind, ds_dtype dtype, size_t n, bool uneven, bool in_place) {
    int me = ds_comm_rank(comm), w = ds_comm_world(comm), bad = 0;
    size_t size = DS_DTYPE_SIZE(dtype), counts[64], begin = 0, all = n, mine = n;
    bool parts = kind == DS_COMM_REDUCE_SCATTER;
    ds_comm_stats before, after;
    ds_comm_call call;
    char *in, *out, *expected;
    if (parts) all = 0;
    for (int r = 0; r < w && parts; r++) {
        counts[r] = uneven ? n * (size_t)(r % 3) : n;
        if (r < me) begin += counts[r];
        all += counts[r];
    }
    if (parts) mine = counts[me];
    in = (char *)malloc(all * size + 8);
    out = in_place ? in + begin * size : (char *)malloc(mine * size + 8);
    expected = (char *)malloc(mine * size + 8);
    for (size_t i = 0; i < all; i++) native_store(in, dtype, i, native_value(me, i));
    for (size_t i = 0; i < mine; i++) {
        float x = 0;
        for (int r = 0; r < w; r++) x += native_value(r, begin + i);
        native_store(expected, dtype, i, x);
    }
    memset(&call, 0, sizeof call);
    call.kind = kind;
    call.in = in;
    call.out = out;
    call.count = n;
    call.counts = parts && uneven ? counts : NULL;
    call.dtype = call.out_dtype = dtype;
    call.root = w - 1;
    call.native = true;
    ds_comm_get_stats(comm, &before);
    EXPECT(ds_comm_run(comm, &call) == DS_OK);
    ds_comm_get_stats(comm, &after);
    if (kind != DS_COMM_REDUCE || me == w - 1) EXPECT(memcmp(out, expected, mine * size) == 0);
    {
        uint64_t sent = after.bytes_sent[kind] - before.bytes_sent[kind], p = (uint64_t)(mine * size);
        uint64_t theory = kind == DS_COMM_REDUCE ? me == w - 1 ? 0 : p : (uint64_t)(all * size) - p;
        if (kind != DS_COMM_ALL_REDUCE) EXPECT(sent == theory);
        if (kind == DS_COMM_ALL_REDUCE && n * size % (64 * (size_t)w) == 0 && n * size > 512)
            EXPECT(sent * (uint64_t)w == 2 * (uint64_t)(all * size) * (uint64_t)(w - 1));
        EXPECT(after.calls[kind] - before.calls[kind] == 1);
    }
    if (!in_place) free(out);
    free(in);
    free(expected);
    return bad;
}
static int native_body(ds_comm *comm, void *arg) {
    static const size_t counts[] = {0, 1, 3, 129, 4800, 20003};
    static const ds_comm_kind kinds[] = {DS_COMM_ALL_REDUCE, DS_COMM_REDUCE, DS_COMM_REDUCE_SCATTER};
    int me = ds_comm_rank(comm), w = ds_comm_world(comm), bad = 0, turn = 0, said = 0;
    unsigned types = *(const unsigned *)arg;
    ds_comm *half = NULL;
    for (size_t t = 0; t + 1 < sizeof all_types / sizeof *all_types; t++) { /* bool has no sum */
        comm->logger.log = native_line;
        comm->native_refused = false;
        comm->logger.ctx = &said;
        said = 0;
        for (size_t k = 0; k < 3; k++)
            for (size_t i = 0; i < sizeof counts / sizeof *counts; i++, turn++)
                bad += native_one(comm, kinds[k], all_types[t], counts[i], turn & 1, turn & 2);
        EXPECT(said == (w > 1 && !(types >> all_types[t] & 1))); /* once */
        comm->logger.log = NULL;
    }
    /* a group, in the background; two calls of two communicators at a time */
    EXPECT(ds_comm_split(comm, me % 2, 0, &half, NULL) == DS_OK);
    for (int k = 0; k < 30 && !bad; k++) {
        float a[1000], b[1000];
        ds_comm_call call;
        ds_comm_handle first, second;
        int w2 = ds_comm_world(half);
        memset(&call, 0, sizeof call);
        for (int i = 0; i < 1000; i++) a[i] = b[i] = (float)(me + i);
        call.kind = DS_COMM_ALL_REDUCE;
        call.in = call.out = a;
        call.count = 1000;
        call.native = true;
        EXPECT(ds_comm_start(comm, &call, &first) == DS_OK);
        call.in = call.out = b;
        EXPECT(ds_comm_start(half, &call, &second) == DS_OK);
        EXPECT(ds_comm_wait(half, second) == DS_OK && ds_comm_wait(comm, first) == DS_OK);
        EXPECT(a[999] == (float)(w * (w - 1) / 2 + w * 999));
        EXPECT(b[999] == (float)(w2 * (w2 - 1) + w2 * (me % 2) + w2 * 999));
    }
    { /* what is no sum of equal types is made as ever, and one rank alone cannot want it */
        float x[4] = {1, 2, 3, (float)me};
        uint16_t bf[2] = {0x3F80, 0x4000};
        ds_comm_call call;
        memset(&call, 0, sizeof call);
        call.kind = DS_COMM_ALL_REDUCE;
        call.in = call.out = x;
        call.count = 4;
        call.op = DS_COMM_MAX;
        call.native = true;
        EXPECT(ds_comm_run(comm, &call) == DS_OK && x[3] == (float)(w - 1));
        if (w == 2) {
            call.kind = DS_COMM_REDUCE_SCATTER;
            call.in = bf;
            call.count = 1;
            call.op = DS_COMM_SUM;
            call.dtype = DS_BF16;
            call.out_dtype = DS_F32;
            EXPECT(ds_comm_run(comm, &call) == DS_OK && x[0] == (me ? 4.0f : 2.0f));
        }
        if (w > 1 && types & 1) {
            memset(&call, 0, sizeof call);
            call.kind = DS_COMM_ALL_REDUCE;
            call.in = call.out = x;
            call.count = 4;
            call.native = me == 0;
            EXPECT(ds_comm_run(comm, &call) == DS_ERR_PEER);
            EXPECT(strstr(ds_comm_error(comm)->message, "all_reduce(count 4, f32, native sum)") != NULL);
            EXPECT(strstr(ds_comm_error(comm)->message, "all_reduce(count 4, f32, sum)") != NULL);
        }
    }
    ds_comm_destroy(half);
    return bad;
}
/* Another order than the tree's: ((a3 + a2) + a1) + a0. */
static int native_order_body(ds_comm *comm, void *arg) {
    static const float values[] = {1.0f, 1e8f, -1e8f, 3.0f};
    float x = values[ds_comm_rank(comm)], native = 0, fixed = 0;
    ds_comm_call call;
    int bad = 0;
    (void)arg;
    memset(&call, 0, sizeof call);
    call.kind = DS_COMM_ALL_REDUCE;
    call.in = &x;
    call.out = &native;
    call.count = 1;
    call.native = true;
    EXPECT(ds_comm_run(comm, &call) == DS_OK);
    EXPECT(ds_comm_all_reduce(comm, &x, &fixed, 1, DS_F32, DS_COMM_SUM) == DS_OK);
    EXPECT(native == ((3.0f + -1e8f) + 1e8f) + 1.0f);
    EXPECT(fixed == (1.0f + 1e8f) + (-1e8f + 3.0f) && fixed != native);
    return bad;
}

/* ---- communicators of communicators, calls in the background ---- */

static int split_body(ds_comm *comm, void *arg) {
    int me = ds_comm_rank(comm), w = ds_comm_world(comm), bad = 0;
    ds_comm *half = NULL, *copy = NULL, *none = NULL, *inner = NULL;
    ds_error error = {DS_OK, ""};
    int32_t value, sum = 0, ranks[64];
    (void)arg;
    EXPECT(ds_comm_split(comm, me % 2, -me, &half, &error) == DS_OK); /* in reverse order */
    EXPECT(ds_comm_split(comm, 0, 0, &copy, &error) == DS_OK);
    EXPECT(ds_comm_split(comm, me == 0 ? -1 : 5, 0, &none, &error) == DS_OK);
    EXPECT((none == NULL) == (me == 0));
    EXPECT(strcmp(ds_comm_backend(half), ds_comm_backend(comm)) == 0);
    EXPECT(ds_comm_world(half) == (w + 1 - me % 2) / 2 && ds_comm_world(copy) == w && ds_comm_rank(copy) == me);
    EXPECT(ds_comm_rank(half) == ds_comm_world(half) - 1 - me / 2);
    value = me;
    EXPECT(ds_comm_all_gather(half, &value, ranks, 1, NULL, DS_I32) == DS_OK);
    for (int r = 0; r < ds_comm_world(half); r++) EXPECT(ranks[r] == (ds_comm_world(half) - 1 - r) * 2 + me % 2);
    EXPECT(ds_comm_all_reduce(copy, &value, &sum, 1, DS_I32, DS_COMM_SUM) == DS_OK);
    EXPECT(sum == w * (w - 1) / 2);
    EXPECT(ds_comm_split(half, ds_comm_rank(half) / 2, 0, &inner, &error) == DS_OK);
    if (none) EXPECT(ds_comm_all_reduce(none, &value, &sum, 1, DS_I32, DS_COMM_MAX) == DS_OK && sum == w - 1);
    { /* bigger than the stage, on memory of the parent's arena and on plain memory */
        size_t n = 30011;
        float *shared = (float *)ds_comm_alloc(copy, n * sizeof *shared), *plain = (float *)malloc(n * sizeof *plain);
        for (int turn = 0; turn < 2; turn++) {
            float *x = turn ? plain : shared;
            for (size_t i = 0; i < n; i++) x[i] = (float)(me + 1);
            EXPECT(ds_comm_all_reduce(inner, x, x, n, DS_F32, DS_COMM_AVERAGE) == DS_OK);
            for (size_t i = 1; i < n; i++) EXPECT(x[i] == x[0]);
        }
        ds_comm_free(copy, shared, n * sizeof *shared);
        free(plain);
    }
    EXPECT(ds_comm_barrier(comm) == DS_OK);
    ds_comm_destroy(inner);
    ds_comm_destroy(none);
    ds_comm_destroy(copy);
    ds_comm_destroy(half);
    return bad;
}

/* Many splits come and go; their memory is given back though ranks leave in any order. */
static int churn_body(ds_comm *comm, void *arg) {
    int bad = 0, me = ds_comm_rank(comm);
    (void)arg;
    for (int k = 0; k < 50; k++) {
        ds_comm *copy = NULL;
        ds_error error = {DS_OK, ""};
        int32_t x = me, sum = 0;
        EXPECT(ds_comm_split(comm, 0, k % 2 ? me : -me, &copy, &error) == DS_OK);
        EXPECT(ds_comm_all_reduce(copy, &x, &sum, 1, DS_I32, DS_COMM_SUM) == DS_OK && sum == 3);
        if (me == k % 3) usleep(500);
        ds_comm_destroy(copy);
        EXPECT(comm->family->span_count <= 2);
    }
    return bad;
}

/* Two communicators of one run at once, and a third after them. */
static int twice_body(ds_comm *comm, void *arg) {
    int bad = 0;
    (void)arg;
    for (int k = 0; k < 3; k++) {
        ds_comm_desc desc = quick_desc();
        ds_comm *more[2] = {NULL, NULL};
        ds_error error = {DS_OK, ""};
        desc.backend = "shm";
        desc.world = ds_comm_world(comm);
        desc.rank = ds_comm_rank(comm);
        desc.run_id = "unit twice";
        for (int i = 0; i < 2; i++) {
            EXPECT(ds_comm_create(&desc, &more[i], &error) == DS_OK);
            if (!more[i]) return printf("  %s\n", error.message), 1;
        }
        EXPECT(ds_comm_barrier(more[1]) == DS_OK && ds_comm_barrier(more[0]) == DS_OK);
        ds_comm_destroy(more[0]);
        EXPECT(ds_comm_barrier(more[1]) == DS_OK);
        ds_comm_destroy(more[1]);
    }
    return bad;
}

static int start_body(ds_comm *comm, void *arg) {
    enum { CALLS = 150, COUNT = 3000 };
    int me = ds_comm_rank(comm), w = ds_comm_world(comm), bad = 0;
    int32_t *in = (int32_t *)malloc(CALLS * COUNT * sizeof *in), *out = (int32_t *)malloc(CALLS * COUNT * sizeof *out);
    ds_comm_handle handles[CALLS];
    ds_comm_call call;
    bool done = false;
    (void)arg;
    for (int i = 0; i < CALLS * COUNT; i++) in[i] = i * (me + 1);
    memset(&call, 0, sizeof call);
    for (int k = 0; k < CALLS; k++) {
        call.kind = k % 3 == 2 ? DS_COMM_BROADCAST : DS_COMM_ALL_REDUCE;
        call.in = in + k * COUNT;
        call.out = k % 3 == 2 ? in + k * COUNT : out + k * COUNT;
        call.count = k % 5 ? COUNT : 3;
        call.dtype = DS_I32;
        call.op = DS_COMM_SUM;
        call.root = k % w;
        if (call.kind == DS_COMM_ALL_REDUCE) call.root = 0;
        EXPECT(ds_comm_start(comm, &call, &handles[k]) == DS_OK);
    }
    EXPECT(ds_comm_wait(comm, handles[7]) == DS_OK);
    EXPECT(ds_comm_test(comm, handles[7], &done) == DS_OK && done);
    EXPECT(ds_comm_barrier(comm) == DS_OK); /* comes after all of them */
    EXPECT(ds_comm_test(comm, handles[CALLS - 1], &done) == DS_OK && done);
    for (int k = 0; k < CALLS; k++) {
        int n = k % 5 ? COUNT : 3, wrong = 0;
        for (int i = k * COUNT; i < k * COUNT + n; i++)
            wrong += k % 3 == 2 ? in[i] != i * (k % w + 1) : out[i] != i * (w * (w + 1) / 2);
        EXPECT(wrong == 0);
    }
    call.kind = DS_COMM_ALL_REDUCE;
    call.dtype = DS_BOOL;
    EXPECT(ds_comm_start(comm, &call, &handles[0]) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_barrier(comm) == DS_OK);
    free(in);
    free(out);
    return bad;
}

/* ---- things that go wrong ---- */

typedef struct wrong_case {
    ds_comm_kind kind;
    size_t count;
    ds_dtype dtype;
    ds_comm_op op;
    int root;
    const char *says;
} wrong_case;
/* Rank 1 makes the wrong call, the others all_reduce(8, f32, sum): everyone hears of both, and stays dead. */
static int mismatch_body(ds_comm *comm, void *arg) {
    const wrong_case *t = (const wrong_case *)arg;
    uint64_t x[64] = {0}, y[64 * 8] = {0};
    int bad = 0;
    ds_comm_call call;
    ds_status status;
    char first[600];
    memset(&call, 0, sizeof call);
    call.kind = DS_COMM_ALL_REDUCE;
    call.in = x;
    call.out = y;
    call.count = 8;
    EXPECT(ds_comm_barrier(comm) == DS_OK);
    if (ds_comm_rank(comm) == 1) {
        call.kind = t->kind;
        call.count = t->count;
        call.dtype = t->dtype;
        call.out_dtype = t->dtype == DS_BF16 ? DS_F32 : t->dtype;
        call.op = t->op;
        call.root = t->root;
        if (t->kind == DS_COMM_BROADCAST) call.in = y;
    }
    status = ds_comm_run(comm, &call);
    EXPECT(status == DS_ERR_PEER);
    snprintf(first, sizeof first, "%s", ds_comm_error(comm)->message);
    EXPECT(strstr(first, "all_reduce(count 8, f32, sum)") && strstr(first, t->says) && strstr(first, "rank 1"));
    EXPECT(ds_comm_barrier(comm) == DS_ERR_PEER && strcmp(first, ds_comm_error(comm)->message) == 0);
    if (bad) printf("  text: %s\n", first);
    return bad;
}

/* Calls of one shape, rank 1's about another tensor; what was started before has the tag that it was started with. */
static int tag_body(ds_comm *comm, void *arg) {
    const bool background = *(const bool *)arg;
    float x[8] = {0}, y[64] = {0}, z[8] = {0};
    int bad = 0;
    ds_comm_call call;
    ds_comm_handle handle;
    memset(&call, 0, sizeof call);
    call.kind = DS_COMM_ALL_GATHER;
    call.in = x;
    call.out = y;
    call.count = 8;
    for (uint32_t tag = 1; tag < 3; tag++) {
        ds_comm_tag(comm, tag);
        EXPECT(ds_comm_start(comm, &call, &handle) == DS_OK);
    }
    ds_comm_tag(comm, 0);
    EXPECT(ds_comm_wait(comm, handle) == DS_OK && ds_comm_all_reduce(comm, x, z, 8, DS_F32, DS_COMM_SUM) == DS_OK);
    ds_comm_tag(comm, ds_comm_rank(comm) == 1 ? 7 : 6);
    if (background)
        EXPECT(ds_comm_start(comm, &call, &handle) == DS_OK && ds_comm_wait(comm, handle) == DS_ERR_PEER);
    else
        EXPECT(ds_comm_run(comm, &call) == DS_ERR_PEER);
    EXPECT(strstr(ds_comm_error(comm)->message, "all_gather(count 8, f32, tag 6)") != NULL);
    EXPECT(strstr(ds_comm_error(comm)->message, "all_gather(count 8, f32, tag 7)") != NULL);
    if (bad) printf("  text: %s\n", ds_comm_error(comm)->message);
    return bad;
}

typedef struct late_case {
    int missing;
    ds_status mine;      /* of the rank that waits */
    const char *says[2]; /* all in the text */
    int how;             /* 0 sleeps, 1 destroys, 2 aborts, 3 sleeps and so do all after it */
} late_case;
static int late_body(ds_comm *comm, void *arg) {
    const late_case *t = (const late_case *)arg;
    int bad = 0;
    float x[1000] = {0};
    EXPECT(ds_comm_barrier(comm) == DS_OK);
    if (ds_comm_rank(comm) >= t->missing && t->how == 3) return usleep(900000), bad; /* and all after it */
    if (ds_comm_rank(comm) == t->missing) {
        if (t->how == 2) ds_comm_abort(comm, "the disk of this rank is full");
        if (t->how == 2) EXPECT(ds_comm_barrier(comm) == DS_ERR_PEER);
        if (t->how == 0) usleep(900000);
        return bad;
    }
    {
        ds_status status = ds_comm_all_reduce(comm, x, x, 1000, DS_F32, DS_COMM_SUM);
        const char *text = ds_comm_error(comm)->message;
        EXPECT(status == t->mine || (t->how % 3 == 0 && status == DS_ERR_PEER));
        EXPECT(strstr(text, t->says[0]) && strstr(text, t->says[1]));
        EXPECT(ds_comm_barrier(comm) == status);
        EXPECT(ds_comm_send(comm, x, 1, DS_F32, t->missing) == status);
        if (bad) printf("  text: %s\n", text);
    }
    return bad;
}

static int refuse_body(ds_comm *comm, void *arg) {
    int bad = 0, w = ds_comm_world(comm);
    float x[64] = {0};
    size_t counts[64];
    ds_status got;
    (void)arg;
    for (int r = 0; r < w; r++) counts[r] = SIZE_MAX / 8;
    got = ds_comm_all_reduce(comm, x, x + 1, 2, DS_F32, DS_COMM_SUM);
    EXPECT(got == DS_ERR_ARGUMENT && strstr(ds_comm_error(comm)->message, "overlap"));
    EXPECT(ds_comm_all_reduce(comm, NULL, x, 2, DS_F32, DS_COMM_SUM) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_all_reduce(comm, x, x, 2, (ds_dtype)77, DS_COMM_SUM) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_all_reduce(comm, x, x, 2, DS_F32, (ds_comm_op)9) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_all_reduce(comm, x, x, 2, DS_I32, DS_COMM_AVERAGE) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_all_reduce(comm, x, x, 2, DS_BOOL, DS_COMM_SUM) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_all_reduce(comm, x, x, SIZE_MAX / 2, DS_F32, DS_COMM_SUM) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_all_gather(comm, x, x, 0, counts, DS_F64) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_broadcast(comm, x, 1, DS_F32, w) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_broadcast(comm, x, 1, DS_F32, -1) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_send(comm, x, 1, DS_F32, ds_comm_rank(comm)) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_reduce_scatter(comm, x, x, 1, NULL, DS_F32, DS_F64, DS_COMM_SUM) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_all_to_all_uneven(comm, x, counts, x, NULL, DS_F32) == DS_ERR_ARGUMENT);
    EXPECT(ds_comm_barrier(comm) == DS_OK);
    return bad;
}

/* The same call with other numbers in its table, of another kind of sum, with another root: rank 1 against the rest. */
static int unlike_body(ds_comm *comm, void *arg) {
    int form = *(const int *)arg, w = ds_comm_world(comm), bad = 0;
    bool odd = ds_comm_rank(comm) == 1;
    float x[64] = {0}, y[64] = {0};
    size_t counts[16];
    ds_comm_call call;
    memset(&call, 0, sizeof call);
    for (int r = 0; r < w; r++) counts[r] = (size_t)(odd ? r % 2 : 1 - r % 2);
    call.kind = form == 0   ? DS_COMM_ALL_GATHER
                : form == 1 ? DS_COMM_ALL_REDUCE
                : form == 2 ? DS_COMM_REDUCE
                            : DS_COMM_REDUCE_SCATTER;
    if (form == 3) call.dtype = DS_BF16, call.out_dtype = odd ? DS_F32 : DS_BF16;
    call.in = x;
    call.out = y;
    call.count = 8;
    call.counts = form == 0 ? counts : NULL;
    call.native = form == 1 && odd;
    call.root = form == 2 && odd;
    EXPECT(ds_comm_run(comm, &call) == DS_ERR_PEER);
    EXPECT(strstr(ds_comm_error(comm)->message, "differs") && strstr(ds_comm_error(comm)->message, "rank 1"));
    EXPECT(strstr(ds_comm_error(comm)->message, form == 0   ? "counts #"
                                                : form == 1 ? "native sum"
                                                : form == 2 ? "root 1"
                                                            : "bf16 to f32") != NULL);
    return bad;
}
/* A message of another length, type or direction than the receiver expects. */
static int unlike_message_body(ds_comm *comm, void *arg) {
    int form = *(const int *)arg, bad = 0;
    float x[4] = {0};
    ds_status status;
    if (ds_comm_rank(comm) == 0)
        status = form == 2 ? ds_comm_receive(comm, x, 2, DS_F32, 1)
                           : ds_comm_send(comm, x, form == 0 ? 3 : 2, form == 1 ? DS_I32 : DS_F32, 1);
    else
        status =
            form == 2 ? ds_comm_all_reduce(comm, x, x, 2, DS_F32, DS_COMM_SUM) : ds_comm_receive(comm, x, 2, DS_F32, 0);
    if (ds_comm_rank(comm) == 1 || form == 2) {
        EXPECT(DS_IS_ENVIRONMENT(status) && strstr(ds_comm_error(comm)->message, "rank 0"));
        EXPECT(strstr(ds_comm_error(comm)->message, ds_comm_rank(comm) && form == 2 ? "all_reduce" : "receive") !=
               NULL);
        EXPECT(ds_comm_barrier(comm) == status);
    }
    return bad;
}
/* all_to_all whose receiver expects another number */
static int uneven_body(ds_comm *comm, void *arg) {
    int bad = 0, me = ds_comm_rank(comm);
    size_t give[2] = {1, 3}, take[2];
    int32_t in[8] = {0}, out[8];
    (void)arg;
    take[0] = me ? 2 : 1; /* rank 0 sends 3 to rank 1 */
    take[1] = me ? 3 : 1;
    EXPECT(ds_comm_all_to_all_uneven(comm, in, give, out, take, DS_I32) ==
           (me ? DS_ERR_PEER : ds_comm_error(comm)->status));
    EXPECT(ds_comm_barrier(comm) == DS_ERR_PEER);
    EXPECT(strstr(ds_comm_error(comm)->message, me ? "expects 8 bytes" : "rank 1") != NULL);
    return bad;
}

/* Theory: bytes of each call, W ranks, S bytes. */
static int stats_body(ds_comm *comm, void *arg) {
    enum { COUNT = 4096 }; /* parts of 64-byte multiples for each world used */
    int bad = 0;
    size_t w = (size_t)ds_comm_world(comm), s = COUNT * 4;
    float *x = (float *)calloc(COUNT * w, sizeof *x), *y = (float *)calloc(COUNT * w, sizeof *y);
    ds_comm_stats t;
    (void)arg;
    EXPECT(ds_comm_all_reduce(comm, x, y, COUNT, DS_F32, DS_COMM_SUM) == DS_OK);
    EXPECT(ds_comm_reduce_scatter(comm, x, y, COUNT / w, NULL, DS_F32, DS_F32, DS_COMM_SUM) == DS_OK);
    EXPECT(ds_comm_all_gather(comm, x, y, COUNT / w, NULL, DS_F32) == DS_OK);
    EXPECT(ds_comm_all_to_all(comm, x, y, COUNT / w, DS_F32) == DS_OK);
    EXPECT(ds_comm_broadcast(comm, x, COUNT, DS_F32, 0) == DS_OK);
    EXPECT(ds_comm_reduce(comm, x, y, COUNT, DS_F32, DS_COMM_SUM, 0) == DS_OK);
    ds_comm_get_stats(comm, &t);
    EXPECT(t.bytes_sent[DS_COMM_ALL_REDUCE] == 2 * s * (w - 1) / w);
    EXPECT(t.bytes_received[DS_COMM_ALL_REDUCE] == 2 * s * (w - 1) / w);
    EXPECT(t.bytes_sent[DS_COMM_REDUCE_SCATTER] == s * (w - 1) / w);
    EXPECT(t.bytes_sent[DS_COMM_ALL_GATHER] == s / w * (w - 1));
    EXPECT(t.bytes_sent[DS_COMM_ALL_TO_ALL] == s * (w - 1) / w);
    EXPECT(t.bytes_sent[DS_COMM_BROADCAST] == (ds_comm_rank(comm) ? 0 : s * (w - 1)));
    EXPECT(t.bytes_sent[DS_COMM_REDUCE] == (ds_comm_rank(comm) ? s : 0));
    EXPECT(t.calls[DS_COMM_ALL_REDUCE] == 1 && t.calls[DS_COMM_BARRIER] == 0);
    EXPECT(w == 1 || t.busy_ns > 0);
    free(x);
    free(y);
    return bad;
}
static int group_body(ds_comm *comm, void *arg) {
    int bad = 0;
    ds_group group = ds_comm_group(comm);
    uint64_t mine = 7u + (uint64_t)ds_comm_rank(comm), all[16];
    (void)arg;
    EXPECT(group.rank == ds_comm_rank(comm) && group.size == ds_comm_world(comm));
    EXPECT(group.exchange(group.ctx, &mine, all, sizeof mine) == DS_OK);
    for (int r = 0; r < group.size; r++) EXPECT(all[r] == 7u + (uint64_t)r);
    return bad;
}

static void summary_line(void *ctx, const char *text) {
    char *all = (char *)ctx;
    size_t n = strlen(all);
    if (n < 3500) snprintf(all + n, 4000 - n, "%s\n", text);
}
static void last_line(void *ctx, const char *header, int level, int id, const char *message) {
    (void)header, (void)level;
    if (id == 6) snprintf((char *)ctx, 512, "%s", message);
}
static int log_body(ds_comm *comm, void *arg) {
    int bad = 0;
    float *x = (float *)calloc(4096, sizeof *x);
    char all[4000] = "";
    ds_comm_log_entry entries[4];
    (void)arg;
    for (int k = 0; k < 3; k++) EXPECT(ds_comm_all_reduce(comm, x, x, 4096, DS_F32, DS_COMM_SUM) == DS_OK);
    EXPECT(ds_comm_all_reduce(comm, x, x, 1, DS_F32, DS_COMM_SUM) == DS_OK);
    EXPECT(ds_comm_broadcast(comm, x, 256, DS_F32, 0) == DS_OK);
    EXPECT(ds_comm_log_entries(comm, entries, 4) == 2); /* broadcast was not chosen */
    EXPECT(entries[0].kind == DS_COMM_ALL_REDUCE && entries[0].bytes == 16384 && entries[0].count == 3);
    EXPECT(entries[1].bytes == 4 && entries[1].count == 1 && entries[0].total_ns >= entries[0].wait_ns);
    EXPECT(ds_comm_log_summary(comm, true, summary_line, all) == DS_OK);
    EXPECT(strstr(all, "all_reduce") && strstr(all, "16.0 KB") && strstr(all, "Straggler") &&
           !strstr(all, "broadcast"));
    free(x);
    return bad;
}
static void test_log(void) {
    TEST(log) {
        static const char *const chosen[] = {"all_reduce"};
        ds_comm_desc desc = quick_desc();
        ds_comm *comms[2];
        team_member members[2];
        pthread_t threads[2];
        char lines[512] = "";
        desc.log.enabled = desc.log.verbose = desc.log.debug = desc.log.only = true;
        desc.log.operations = chosen;
        desc.log.operation_count = 1;
        CHECK(ds_comm_threads_create(&desc, 2, comms, NULL) == DS_OK);
        for (int r = 0; r < 2; r++) {
            members[r].comm = comms[r];
            members[r].body = log_body;
            members[r].arg = NULL;
            CHECK(pthread_create(&threads[r], NULL, team_main, &members[r]) == 0);
        }
        for (int r = 0; r < 2; r++) {
            pthread_join(threads[r], NULL);
            CHECK(members[r].failed == 0);
        }
        desc.logger.log = last_line;
        desc.logger.ctx = lines;
        CHECK(ds_comm_create(&desc, &comms[0], NULL) == DS_OK);
        {
            double x[3] = {1, 2, 3};
            CHECK(ds_comm_all_reduce(comms[0], x, x, 3, DS_F64, DS_COMM_SUM) == DS_OK);
        }
        CHECK_HAS(lines, "comm op: all_reduce | time (ms):");
        CHECK_HAS(lines, "msg size: 24 B");
        CHECK_HAS(lines, "rank: 0 | call: 1 | backend: self");
        { /* other choices later; what is split logs alike; a name that is none changes nothing */
            static const char *const wrong[] = {"broadcast", "all_reducer"};
            ds_comm *copy = NULL;
            ds_error error = {DS_OK, ""};
            double x = 1;
            desc.log.operations = wrong;
            CHECK(ds_comm_log_start(comms[0], &desc.log) == DS_OK);
            CHECK(ds_comm_split(comms[0], 0, 0, &copy, &error) == DS_OK);
            CHECK(ds_comm_all_reduce(copy, &x, &x, 1, DS_F64, DS_COMM_SUM) == DS_OK);
            CHECK_EQ(ds_comm_log_entries(copy, NULL, 0), 0);
            CHECK(ds_comm_broadcast(copy, &x, 1, DS_F64, 0) == DS_OK);
            CHECK_EQ(ds_comm_log_entries(copy, NULL, 0), 1);
            ds_comm_destroy(copy);
            desc.log.operation_count = 2;
            CHECK(ds_comm_log_start(comms[0], &desc.log) == DS_ERR_ARGUMENT);
            CHECK_HAS(ds_comm_error(comms[0])->message, "all_reducer");
            CHECK(ds_comm_broadcast(comms[0], &x, 1, DS_F64, 0) == DS_OK);
            CHECK_EQ(ds_comm_log_entries(comms[0], NULL, 0), 2);
            ds_comm_destroy(comms[0]);
            CHECK(ds_comm_create(&desc, &comms[0], &error) == DS_ERR_ARGUMENT);
        }
    }
}

/* ---- compressed collectives ---- */

typedef struct one_bit_case {
    int world, repeat;
    size_t count;
    double tolerance;
    float *in[4], *worker[4], *server[4], *worker_after[4], *server_after[4], *outputs;
} one_bit_case;
static float *read_floats(FILE *file, size_t n) {
    float *x = (float *)calloc(n + 1, sizeof *x);
    char word[64];
    for (size_t i = 0; i < n; i++)
        if (fscanf(file, "%63s", word) == 1) x[i] = strtof(word, NULL);
    return x;
}
static int near(const float *a, const float *b, size_t n, double tolerance) {
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= tolerance)) return 0;
    return 1;
}
static int one_bit_body(ds_comm *comm, void *arg) {
    one_bit_case *t = (one_bit_case *)arg;
    int me = ds_comm_rank(comm), bad = 0;
    ds_comm_one_bit sizes = ds_comm_one_bit_sizes(t->world, t->count);
    float *worker = (float *)malloc(sizes.padded * sizeof *worker),
          *server = (float *)malloc(sizes.chunk * sizeof *server);
    float *out = (float *)malloc(t->count * sizeof *out);
    void *scratch = malloc(sizes.scratch_bytes);
    ds_comm_stats stats;
    size_t w = (size_t)t->world;
    memcpy(worker, t->worker[me], sizes.padded * sizeof *worker);
    memcpy(server, t->server[me], sizes.chunk * sizeof *server);
    for (int k = 0; k < t->repeat; k++) {
        EXPECT(ds_comm_one_bit_all_reduce(comm, t->in[me], out, t->count, worker, server, scratch) == DS_OK);
        EXPECT(near(out, t->outputs + (size_t)k * t->count, t->count, t->tolerance));
    }
    EXPECT(near(worker, t->worker_after[me], sizes.padded, t->tolerance));
    EXPECT(near(server, t->server_after[me], sizes.chunk, t->tolerance));
    ds_comm_get_stats(comm, &stats);
    /* signs and a scale there and back, in one call each */
    EXPECT(stats.bytes_sent[DS_COMM_ALL_TO_ALL] == (size_t)t->repeat * (sizes.padded / 8 / w + 4) * (w - 1));
    EXPECT(stats.bytes_sent[DS_COMM_ALL_GATHER] == (size_t)t->repeat * (sizes.padded / 8 / w + 4) * (w - 1));
    EXPECT(stats.calls[DS_COMM_ALL_TO_ALL] == (uint64_t)t->repeat);
    EXPECT(stats.calls[DS_COMM_ALL_GATHER] == (uint64_t)t->repeat);
    free(worker);
    free(server);
    free(out);
    free(scratch);
    return bad;
}
static void test_one_bit(void) {
    FILE *file = fopen("tests/golden/comm_one_bit.txt", "r");
    char line[4096], name[64], tolerance[64];
    int cases = 0;
    TEST(one_bit_file) {
        CHECK(file != NULL);
    }
    while (file && fgets(line, sizeof line, file)) {
        one_bit_case t;
        ds_comm_one_bit sizes;
        memset(&t, 0, sizeof t);
        if (sscanf(line, "case %63s %d %zu %d %63s", name, &t.world, &t.count, &t.repeat, tolerance) != 5) continue;
        t.tolerance = strtod(tolerance, NULL);
        sizes = ds_comm_one_bit_sizes(t.world, t.count);
        for (int r = 0; r < t.world; r++) {
            t.in[r] = read_floats(file, t.count);
            t.worker[r] = read_floats(file, sizes.padded);
            t.server[r] = read_floats(file, sizes.chunk);
        }
        t.outputs = read_floats(file, t.count * (size_t)t.repeat);
        for (int r = 0; r < t.world; r++) {
            t.worker_after[r] = read_floats(file, sizes.padded);
            t.server_after[r] = read_floats(file, sizes.chunk);
        }
        cases++;
        TEST_NAMED(name) {
            CHECK(team_threads(t.world, one_bit_body, &t) == 0);
            CHECK(team_messages(t.world, one_bit_body, &t) == 0);
        }
        for (int r = 0; r < t.world; r++) {
            free(t.in[r]);
            free(t.worker[r]);
            free(t.server[r]);
            free(t.worker_after[r]);
            free(t.server_after[r]);
        }
        free(t.outputs);
    }
    TEST(one_bit_cases) {
        CHECK_EQ(cases, 12);
    }
    if (file) fclose(file);
}

typedef struct quant_case {
    int nodes, devices;
    size_t count, groups;
    uint16_t *in[8], *out[8];
} quant_case;
static uint16_t *read_halves(FILE *file, size_t n) {
    float *x = read_floats(file, n);
    uint16_t *h = (uint16_t *)malloc((n + 1) * sizeof *h);
    for (size_t i = 0; i < n; i++) h[i] = dsi_f16_of_f32(x[i]);
    free(x);
    return h;
}
static int quant_reduce_body(ds_comm *comm, void *arg) {
    quant_case *t = (quant_case *)arg;
    int me = ds_comm_rank(comm), bad = 0;
    ds_comm *node = NULL, *across = NULL;
    ds_error error = {DS_OK, ""};
    uint16_t *out = (uint16_t *)malloc(t->count * sizeof *out);
    void *scratch = malloc(ds_comm_quantized_scratch(ds_comm_world(comm), t->count, t->groups));
    EXPECT(ds_comm_split(comm, me / t->devices, 0, &node, &error) == DS_OK);
    EXPECT(ds_comm_split(comm, me % t->devices, 0, &across, &error) == DS_OK);
    EXPECT(ds_comm_quantized_reduce_scatter(node, across, t->in[me], out, t->count, DS_F16, t->groups, (float)t->nodes,
                                            scratch) == DS_OK);
    for (size_t i = 0; i < t->count; i++) EXPECT(abs((int)out[i] - (int)t->out[me][i]) <= 1);
    EXPECT(ds_comm_quantized_reduce_scatter(node, across, t->in[me], out, t->count, DS_F16, 7, 1, scratch) ==
           DS_ERR_ARGUMENT);
    ds_comm_destroy(node);
    ds_comm_destroy(across);
    free(out);
    free(scratch);
    return bad;
}
/* Bounds: int8 gather half a step (one at the top) of each group; int4 sums one step of each of the two hops. */
static int quant_bound_body(ds_comm *comm, void *arg) {
    enum { COUNT = 1024, GROUPS = 8 };
    int me = ds_comm_rank(comm), w = ds_comm_world(comm), bad = 0;
    float *in = (float *)malloc(COUNT * (size_t)w * sizeof *in),
          *out = (float *)malloc(COUNT * (size_t)w * sizeof *out);
    void *scratch = malloc(ds_comm_quantized_scratch(w, COUNT, GROUPS));
    ds_comm_stats stats;
    (void)arg;
    fill(in, DS_F32, me, 0, COUNT);
    EXPECT(ds_comm_quantized_all_gather(comm, in, out, COUNT, DS_F32, GROUPS, scratch) == DS_OK);
    for (int r = 0; r < w; r++)
        for (int g = 0; g < GROUPS; g++) {
            float most = 0;
            int wrong = 0, n = COUNT / GROUPS;
            fill(in, DS_F32, r, (size_t)(g * n), (size_t)n);
            for (int i = 0; i < n; i++) most = fabsf(in[i]) > most ? fabsf(in[i]) : most;
            for (int i = 0; i < n; i++) {
                float error = fabsf(out[r * COUNT + g * n + i] - in[i]), step = most / 128;
                wrong += error > step * (in[i] > 127 * step ? 1.0f : 0.5f) * 1.0001f;
            }
            EXPECT(wrong == 0);
        }
    ds_comm_get_stats(comm, &stats);
    EXPECT(stats.bytes_sent[DS_COMM_ALL_GATHER] == (COUNT + 4u * GROUPS) * (unsigned)(w - 1));
    fill(in, DS_F32, me, 0, COUNT * (size_t)w);
    EXPECT(ds_comm_quantized_reduce_scatter(comm, NULL, in, out, COUNT, DS_F32, GROUPS, 1.0f, scratch) == DS_OK);
    { /* magnitudes are below 500: a step of a hop is at most 500/8, and w * 500/8 after the sum */
        int wrong = 0;
        for (size_t i = 0; i < COUNT; i++) {
            float exact =
                dsi_f32_of_bits((uint32_t)model_reduce(DS_F32, DS_F32, DS_COMM_SUM, w, (size_t)me * COUNT + i));
            wrong += fabsf(out[i] - exact) > 2.0f * (float)w * 500.0f / 8.0f;
        }
        EXPECT(wrong == 0);
    }
    free(in);
    free(out);
    free(scratch);
    return bad;
}
/* A table of which rank r fills rows by chance: the same bits as the dense call, and fewer bytes when few are filled. */
static int sparse_body(ds_comm *comm, void *arg) {
    enum { ROWS = 200, WIDTH = 33 };
    static const ds_dtype types[] = {DS_F32, DS_BF16, DS_F64};
    int me = ds_comm_rank(comm), w = ds_comm_world(comm), bad = 0;
    char *table = (char *)malloc(ROWS * WIDTH * 8), *dense = (char *)malloc(ROWS * WIDTH * 8);
    (void)arg;
    for (int form = 0; form < 12; form++) {
        ds_dtype dtype = types[form % 3];
        size_t row = WIDTH * DS_DTYPE_SIZE(dtype), own = 0;
        ds_comm_op op = form % 2 ? DS_COMM_AVERAGE : DS_COMM_SUM;
        uint64_t seed = (uint64_t)me * 77u + (uint64_t)form, limit = form < 6 ? 10 : form < 9 ? 90 : 0;
        bool sparse = false;
        ds_comm_stats before, after;
        memset(table, 0, ROWS * row);
        for (size_t i = 0; i < ROWS; i++)
            if (test_random(&seed) % 100 < limit) fill(table + i * row, dtype, me, i * WIDTH, WIDTH), own++;
        memcpy(dense, table, ROWS * row);
        ds_comm_get_stats(comm, &before);
        EXPECT(ds_comm_sparse_all_reduce(comm, table, ROWS, WIDTH, dtype, op, &sparse) == DS_OK);
        ds_comm_get_stats(comm, &after);
        EXPECT(ds_comm_all_reduce(comm, dense, dense, ROWS * WIDTH, dtype, op) == DS_OK);
        EXPECT(memcmp(dense, table, ROWS * row) == 0);
        EXPECT(sparse == (w > 1 && (form < 6 || form >= 9)));
        if (sparse)
            EXPECT(after.bytes_sent[DS_COMM_ALL_GATHER] - before.bytes_sent[DS_COMM_ALL_GATHER] ==
                   (32 + own * (8 + row)) * (size_t)(w - 1));
    }
    EXPECT(ds_comm_sparse_all_reduce(comm, table, 1, 1, DS_F32, DS_COMM_MAX, NULL) == DS_ERR_ARGUMENT);
    free(table);
    free(dense);
    return bad;
}
/* Tables that differ in what no gather shows: rank 1's longer one has rows that rank 0 has no memory for. */
static int sparse_differs_body(ds_comm *comm, void *arg) {
    int form = *(const int *)arg, me = ds_comm_rank(comm), bad = 0;
    size_t rows = form == 0 && me == 1 ? 90000 : 100;
    ds_comm_op op = form == 1 && me == 1 ? DS_COMM_AVERAGE : DS_COMM_SUM;
    float *table = (float *)calloc(rows * 4, sizeof *table), mark[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    ds_comm *sub = NULL;
    ds_status status;
    ds_error error = {DS_OK, ""};
    char all[64];
    table[rows * 4 - 1] = 1;
    if (form < 2)
        status = ds_comm_sparse_all_reduce(comm, table, rows, 4, DS_F32, op, NULL);
    else if (me == 1) /* as many bytes as a split's gather */
        status = ds_comm_all_gather(comm, mark, all, 16, NULL, DS_U8);
    else
        status = ds_comm_split(comm, 0, 0, &sub, &error);
    if (form < 2 || me != 1) EXPECT(status == DS_ERR_PEER && ds_comm_barrier(comm) == DS_ERR_PEER);
    EXPECT(sub == NULL);
    if (form < 2) EXPECT(table[rows * 4 - 1] == 1 && strstr(ds_comm_error(comm)->message, form ? "average" : "90000 "));
    if (form == 2 && me != 1) EXPECT(strstr(error.message, "differs") && strstr(error.message, "rank 1"));
    free(table);
    return bad;
}
static int sparse_empty_body(ds_comm *comm, void *arg) {
    float none = 0;
    int bad = 0;
    (void)arg;
    EXPECT(ds_comm_sparse_all_reduce(comm, ds_comm_rank(comm) ? &none : NULL, 0, 4, DS_F32, DS_COMM_SUM, NULL) ==
           DS_OK);
    EXPECT(ds_comm_barrier(comm) == DS_OK);
    return bad;
}
static void quantize_case(FILE *file, const char *line) {
    char name[64];
    ds_comm_blocks form;
    int asymmetric, wrong = 0;
    size_t n, params;
    float *in, *packed, *steps, *back, *got_steps, *got_back;
    int8_t *got;
    if (sscanf(line, "quantize %63s %d %d %zu %zu", name, &form.bits, &asymmetric, &form.groups, &n) != 5) return;
    form.asymmetric = asymmetric != 0;
    params = form.groups * (form.asymmetric ? 2u : 1u);
    in = read_floats(file, n);
    packed = read_floats(file, form.bits == 8 ? n : n / 2);
    steps = read_floats(file, params);
    back = read_floats(file, n);
    got = (int8_t *)malloc(n);
    got_steps = (float *)malloc(params * sizeof *got_steps);
    got_back = (float *)malloc(n * sizeof *got_back);
    TEST_NAMED(name) {
        ds_comm_quantize(form, in, DS_F32, n, got, got_steps);
        ds_comm_dequantize(form, got, got_steps, got_back, DS_F32, n);
        for (size_t i = 0; i < (form.bits == 8 ? n : n / 2); i++) wrong += (float)got[i] != packed[i];
        for (size_t i = 0; i < params; i++) wrong += fabsf(got_steps[i] - steps[i]) > fabsf(steps[i]) * 2.4e-7f;
        for (size_t i = 0; i < n; i++)
            wrong += abs((int)dsi_f16_of_f32(got_back[i]) - (int)dsi_f16_of_f32(back[i])) > 1;
        CHECK_EQ(wrong, 0);
    }
    free(in);
    free(packed);
    free(steps);
    free(back);
    free(got);
    free(got_steps);
    free(got_back);
}
static void test_quantized(void) {
    FILE *file = fopen("tests/golden/comm_quantized.txt", "r");
    char line[8192], name[64];
    int cases = 0;
    while (file && fgets(line, sizeof line, file)) {
        quant_case t;
        cases += strncmp(line, "quantize ", 9) == 0;
        quantize_case(file, line);
        if (sscanf(line, "reduce %63s %d %d %zu %zu", name, &t.nodes, &t.devices, &t.count, &t.groups) != 5) continue;
        t.groups /= (size_t)(t.nodes * t.devices); /* of each part */
        for (int r = 0; r < t.nodes * t.devices; r++)
            t.in[r] = read_halves(file, t.count * (size_t)(t.nodes * t.devices));
        for (int r = 0; r < t.nodes * t.devices; r++) t.out[r] = read_halves(file, t.count);
        cases++;
        TEST_NAMED(name) {
            CHECK(team_threads(t.nodes * t.devices, quant_reduce_body, &t) == 0);
            CHECK(team_messages(t.nodes * t.devices, quant_reduce_body, &t) == 0);
        }
        for (int r = 0; r < t.nodes * t.devices; r++) {
            free(t.in[r]);
            free(t.out[r]);
        }
    }
    TEST(quantized_cases) {
        CHECK_EQ(cases, 14);
    }
    TEST(sparse) {
        for (int w = 1; w <= 5; w += 2) CHECK(team_threads(w, sparse_body, NULL) == 0);
        CHECK(team_messages(3, sparse_body, NULL) == 0);
        CHECK(team_processes(3, sparse_body, NULL) == 0);
        for (int form = 0; form < 3; form++) {
            CHECK(team_threads(2, sparse_differs_body, &form) == 0);
            CHECK(team_processes(3, sparse_differs_body, &form) == 0);
            CHECK(team_messages(3, sparse_differs_body, &form) == 0);
        }
        CHECK(team_processes(2, sparse_empty_body, NULL) == 0);
    }
    TEST(quantized_bounds) {
        CHECK(team_threads(4, quant_bound_body, NULL) == 0);
        CHECK(team_processes(2, quant_bound_body, NULL) == 0);
    }
    if (file) fclose(file);
}

/* ---- the launcher's variables ---- */

typedef struct env_case {
    const char *text; /* "NAME=value NAME=value" */
    int rank, world, local_rank, local_world;
    const char *source, *says; /* says: part of the error */
} env_case;
static const char *env_get(void *ctx, const char *name) {
    static char values[8][128];
    static unsigned turn;
    char *value = values[turn++ % 8];
    const char *p = ((const env_case *)ctx)->text;
    size_t n = strlen(name);
    while (p && *p) {
        const char *end = strchr(p, ' ');
        size_t length = end ? (size_t)(end - p) : strlen(p);
        if (length > n && strncmp(p, name, n) == 0 && p[n] == '=') {
            snprintf(value, sizeof values[0], "%.*s", (int)(length - n - 1), p + n + 1);
            return value;
        }
        p = end ? end + 1 : NULL;
    }
    return NULL;
}
static const env_case env_cases[] = {
    {"", 0, 1, -1, -1, "none", NULL},
    {"RANK=1 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500", 1, 4, 1, 2,
     "torchrun", NULL},
    {"RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_SIZE=2", 3, 4, 1, 2, "torchrun", NULL},
    {"OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=3 OMPI_COMM_WORLD_LOCAL_RANK=0 OMPI_COMM_WORLD_LOCAL_SIZE=1", 2, 3, 0,
     1, "Open MPI", NULL},
    {"PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2", 1, 2, 1, 2, "PMI", NULL},
    {"MV2_COMM_WORLD_RANK=1 MV2_COMM_WORLD_SIZE=2", 1, 2, -1, -1, "MVAPICH2", NULL},
    {"SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=7 SLURM_LOCALID=1 SLURM_STEP_TASKS_PER_NODE=2(x3),1 SLURM_NODEID=2", 5, 7, 1,
     2, "Slurm", NULL},
    {"SLURM_PROCID=6 SLURM_STEP_NUM_TASKS=7 SLURM_LOCALID=0 SLURM_STEP_TASKS_PER_NODE=2(x3),1 SLURM_NODEID=3", 6, 7, 0,
     1, "Slurm", NULL},
    {"SLURM_PROCID=0 SLURM_NTASKS=8", 0, 1, -1, -1, "none", NULL}, /* sbatch without srun */
    {"RANK=1 WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", 1, 2, -1, -1, "torchrun", NULL},
    {"RANK=1 WORLD_SIZE=2 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1", 1, 2, -1, -1, "torchrun", NULL}, /* srun torchrun */
    {"RANK=1 WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2", 0, 0, 0, 0, NULL, "OMPI_COMM_WORLD_RANK"},
    {"RANK=1", 0, 0, 0, 0, NULL, "WORLD_SIZE is not"},
    {"WORLD_SIZE=2", 0, 0, 0, 0, NULL, "RANK is not"},
    {"RANK=2 WORLD_SIZE=2", 0, 0, 0, 0, NULL, "below the world size"},
    {"RANK=x WORLD_SIZE=2", 0, 0, 0, 0, NULL, "RANK is \"x\""},
    {"RANK=-1 WORLD_SIZE=2", 0, 0, 0, 0, NULL, "RANK is \"-1\""},
    {"RANK=0 WORLD_SIZE=99999999999999999999", 0, 0, 0, 0, NULL, "WORLD_SIZE"},
    {"RANK=0 WORLD_SIZE=0", 0, 0, 0, 0, NULL, "WORLD_SIZE is 0"},
    {"RANK=0 WORLD_SIZE=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", 0, 0, 0, 0, NULL, "local rank 2"},
    {"RANK=0 WORLD_SIZE=2 MASTER_PORT=70000", 0, 0, 0, 0, NULL, "65535"},
    {"RANK=0 WORLD_SIZE=2 MASTER_PORT=many", 0, 0, 0, 0, NULL, "MASTER_PORT is \"many\""},
    {"RANK=0 WORLD_SIZE=2 LOCAL_RANK=one", 0, 0, 0, 0, NULL, "LOCAL_RANK is \"one\""},
    {"RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=3", 0, 0, 0, 0, NULL, "local rank -1 of 3"},
    {"RANK=0 WORLD_SIZE=3000000000", 0, 0, 0, 0, NULL, "WORLD_SIZE is \"3000000000\""},
    {"RANK=x WORLD_SIZE=y", 0, 0, 0, 0, NULL, "WORLD_SIZE is \"y\""},
    {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=", 0, 2, -1, -1, "Slurm", NULL},
    {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=0", 0, 2, -1, -1, "Slurm", NULL},
    {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=3000000000", 0, 2, -1, -1, "Slurm", NULL},
    {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2(y", 0, 2, -1, 2, "Slurm", NULL},
    {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2(x3", 0, 2, -1, -1, "Slurm", NULL},
    {"RANK= WORLD_SIZE=", 0, 1, -1, -1, "none", NULL},
    {"RANK=0 WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=3", 0, 0, 0, 0, NULL, "rank 0 of 3"},
    {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2(x", 0, 2, -1, -1, "Slurm", NULL},
    {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=two", 0, 2, -1, -1, "Slurm", NULL},
    {"SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=1 SLURM_NODEID=1", 0, 2, -1, -1, "Slurm", NULL},
};

static void test_environment(void) {
    TEST(environment) {
        for (size_t i = 0; i < sizeof env_cases / sizeof *env_cases; i++) {
            env_case t = env_cases[i];
            ds_comm_env env;
            ds_error error = {DS_OK, ""};
            ds_status status = ds_comm_resolve_env(env_get, &t, &env, &error);
            if (t.says) {
                CHECK_EQ(status, DS_ERR_INPUT);
                CHECK_HAS(error.message, t.says);
                continue;
            }
            CHECK_EQ(status, DS_OK);
            CHECK(env.rank == t.rank && env.world == t.world && env.local_rank == t.local_rank &&
                  env.local_world == t.local_world);
            CHECK_STR(env.source, t.source);
            CHECK(env.run_id[0] != 0);
        }
    }
    TEST(run_id) {
        env_case t = {"DS_RUN_ID=abc RANK=0 WORLD_SIZE=2 MASTER_PORT=5", 0, 0, 0, 0, NULL, NULL};
        ds_comm_env env;
        CHECK(ds_comm_resolve_env(env_get, &t, &env, NULL) == DS_OK);
        CHECK_STR(env.run_id, "abc");
        t.text = "RANK=0 WORLD_SIZE=2 MASTER_PORT=5";
        CHECK(ds_comm_resolve_env(env_get, &t, &env, NULL) == DS_OK);
        CHECK_STR(env.run_id, "port 5");
        t.text = "RANK=0 WORLD_SIZE=2 MASTER_PORT=5 TORCHELASTIC_RUN_ID=r TORCHELASTIC_RESTART_COUNT=2";
        CHECK(ds_comm_resolve_env(env_get, &t, &env, NULL) == DS_OK);
        CHECK_STR(env.run_id, "elastic r 2 5");
        t.text = "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 SLURM_JOB_ID=77 SLURM_STEP_ID=1";
        CHECK(ds_comm_resolve_env(env_get, &t, &env, NULL) == DS_OK);
        CHECK_STR(env.run_id, "job 77 1");
        t.text = "PMI_RANK=0 PMI_SIZE=2 PMI_JOBID=kvs_9 PMIX_NAMESPACE= TORCHELASTIC_RUN_ID=";
        CHECK(ds_comm_resolve_env(env_get, &t, &env, NULL) == DS_OK);
        CHECK_STR(env.run_id, "job kvs_9 ");
        t.text = "RANK=0 WORLD_SIZE=2 MASTER_PORT=6 TORCHELASTIC_RUN_ID=none SLURM_JOB_ID=77";
        CHECK(ds_comm_resolve_env(env_get, &t, &env, NULL) == DS_OK);
        CHECK_STR(env.run_id, "port 6");
        t.text = "RANK=0 WORLD_SIZE=2 TORCHELASTIC_RUN_ID=r DS_RUN_ID=";
        CHECK(ds_comm_resolve_env(env_get, &t, &env, NULL) == DS_OK);
        CHECK_STR(env.run_id, "elastic r  0");
        t.text = "";
        CHECK(ds_comm_resolve_env(env_get, &t, &env, NULL) == DS_OK);
        CHECK_HAS(env.run_id, "parent ");
    }
}

/* Little address space: the arena shrinks, with a word in the log, and everything still works. */
static void log_arena(void *ctx, const char *header, int level, int id, const char *message) {
    (void)header, (void)level, (void)message;
    if (id == 5) *(int *)ctx = 1;
}
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { sanitized = 1 };
#else
enum { sanitized = 0 };
#endif
static int small_space(int rank) {
    struct rlimit limit = {(rlim_t)3 << 30, (rlim_t)3 << 30};
    ds_comm_desc desc = quick_desc();
    ds_comm *comm = NULL;
    ds_error error = {DS_OK, ""};
    int shrunk = 0, bad = 0;
    void *memory;
    if (setrlimit(RLIMIT_AS, &limit)) return 1;
    desc.backend = "shm";
    desc.world = 2;
    desc.rank = rank;
    desc.run_id = "unit small";
    desc.arena_bytes = (size_t)1 << 50;
    desc.logger.log = log_arena;
    desc.logger.ctx = &shrunk;
    if (ds_comm_create(&desc, &comm, &error)) return printf("  %s\n", error.message), 1;
    EXPECT(rank || shrunk);
    EXPECT(ds_comm_alloc(comm, (size_t)1 << 39) == NULL);
    memory = ds_comm_alloc(comm, 1 << 20);
    EXPECT(memory != NULL);
    if (memory) memset(memory, 1, 1 << 20);
    EXPECT(ds_comm_barrier(comm) == DS_OK);
    ds_comm_free(comm, memory, 1 << 20);
    ds_comm_destroy(comm);
    return bad;
}

static void log_keep(void *ctx, const char *header, int level, int id, const char *message) {
    (void)header;
    (void)level;
    (void)id;
    snprintf((char *)ctx, 512, "%s", message);
}
static void test_create(void) {
    ds_comm_desc desc;
    ds_error error = {DS_OK, ""};
    ds_comm *comm = NULL;
    memset(&desc, 0, sizeof desc);
    TEST(alone) {
        float x = 3, y = 0;
        CHECK(ds_comm_create(&desc, &comm, &error) == DS_OK);
        CHECK_STR(ds_comm_backend(comm), "self");
        CHECK(ds_comm_all_reduce(comm, &x, &y, 1, DS_F32, DS_COMM_AVERAGE) == DS_OK);
        CHECK(y == 3);
        CHECK_EQ(ds_comm_error(comm)->status, DS_OK);
        ds_comm_destroy(comm);
        ds_comm_destroy(NULL);
    }
    TEST(refusals) {
        char log[512] = "";
        desc.logger.log = log_keep;
        desc.logger.ctx = log;
        desc.backend = "carrier pigeon";
        CHECK(ds_comm_create(&desc, &comm, &error) == DS_ERR_ARGUMENT);
        CHECK(comm == NULL);
        CHECK_HAS(error.message, "carrier pigeon");
        CHECK_HAS(log, "carrier pigeon");
        desc.backend = "self";
        desc.world = 2;
        CHECK(ds_comm_create(&desc, &comm, &error) == DS_ERR_ARGUMENT);
        CHECK_HAS(error.message, "the world has 2");
        desc.rank = 2;
        CHECK(ds_comm_create(&desc, &comm, &error) == DS_ERR_ARGUMENT);
        desc.rank = 0;
        desc.backend = NULL;
        desc.local_world = 1;
        CHECK(ds_comm_create(&desc, &comm, &error) == DS_ERR_UNSUPPORTED);
        CHECK_HAS(error.message, "shm needs all ranks on one machine");
        desc.backend = "user";
        CHECK(ds_comm_create(&desc, &comm, &error) == DS_ERR_ARGUMENT);
        CHECK(ds_comm_create_(&desc, sizeof desc - 8, DS_COMM_VERSION, &comm, &error) == DS_ERR_VERSION);
        CHECK(ds_comm_create_(&desc, sizeof desc, DS_COMM_VERSION + 1, &comm, NULL) == DS_ERR_VERSION);
        CHECK(ds_comm_threads_create(&desc, 0, &comm, &error) == DS_ERR_ARGUMENT);
        if (!DS_COMM_USE_MPI) {
            desc.backend = "mpi";
            CHECK(ds_comm_create(&desc, &comm, &error) == DS_ERR_UNSUPPORTED);
            CHECK_HAS(error.message, "DS_COMM_USE_MPI");
        }
    }
    TEST(nobody_comes) {
        memset(&desc, 0, sizeof desc);
        desc.backend = "shm";
        desc.world = 3;
        desc.run_id = "unit lonely";
        desc.timeout = 300000000;
        CHECK(ds_comm_create(&desc, &comm, &error) == DS_ERR_TIMEOUT);
        CHECK_HAS(error.message, "rank 1, 2 did not connect");
        CHECK(ds_comm_create(&desc, &comm, NULL) == DS_ERR_TIMEOUT);
        desc.rank = 2;
        CHECK(ds_comm_create(&desc, &comm, &error) == DS_ERR_TIMEOUT);
        CHECK_HAS(error.message, "found no rank 0");
    }
    TEST(little_address_space) {
        pid_t pids[2];
        int status = 0;
        if (sanitized) SKIP("a sanitizer needs more address space than this leaves");
        fflush(stdout);
        for (int r = 0; r < 2 && !sanitized; r++) {
            pids[r] = fork();
            if (pids[r] == 0) test_child_exit(small_space(r) != 0);
        }
        for (int r = 0; r < 2 && !sanitized; r++) {
            waitpid(pids[r], &status, 0);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
    }
    TEST(memory_fails) {
        test_memory memory;
        ds_comm *comms[3];
        memset(&desc, 0, sizeof desc);
        desc.allocator.alloc = test_alloc;
        desc.allocator.release = test_release;
        desc.allocator.ctx = &memory;
        for (size_t fail = 1; fail < 20; fail++) {
            ds_status status;
            memset(&memory, 0, sizeof memory);
            memory.fail_at = fail;
            status = ds_comm_threads_create(&desc, 3, comms, &error);
            if (memory.calls < fail) {
                CHECK_EQ(status, DS_OK);
                CHECK(fail > 5);
                for (int r = 0; r < 3; r++) ds_comm_destroy(comms[r]);
                fail = 100;
            } else {
                CHECK_EQ(status, DS_ERR_MEMORY);
                for (int r = 0; r < 3; r++) CHECK(comms[r] == NULL);
            }
            CHECK(memory.live == 0 && memory.mismatches == 0);
        }
        for (size_t fail = 1; fail <= 3; fail++) {
            ds_status status;
            memset(&memory, 0, sizeof memory);
            memory.fail_at = fail;
            status = ds_comm_create(&desc, &comm, &error);
            if (!status) ds_comm_destroy(comm);
            CHECK_EQ(status, fail < 3 ? DS_ERR_MEMORY : DS_OK);
            CHECK(memory.live == 0 && memory.mismatches == 0);
        }
    }
    TEST(split_memory_fails) {
        test_memory memory;
        memset(&desc, 0, sizeof desc);
        desc.allocator.alloc = test_alloc;
        desc.allocator.release = test_release;
        desc.allocator.ctx = &memory;
        memset(&memory, 0, sizeof memory);
        CHECK(ds_comm_create(&desc, &comm, &error) == DS_OK);
        for (size_t fail = 1; fail <= 3; fail++) {
            ds_comm *sub = NULL;
            ds_status status;
            memory.calls = 0;
            memory.fail_at = fail;
            status = ds_comm_split(comm, 0, 0, &sub, &error);
            CHECK_EQ(status, fail < 3 ? DS_ERR_MEMORY : DS_OK);
            CHECK((status == DS_OK) == (sub != NULL));
            memory.fail_at = 0;
            ds_comm_destroy(sub);
            if (status) { /* an abort of one rank ends it; make a new one */
                ds_comm_destroy(comm);
                CHECK(ds_comm_create(&desc, &comm, &error) == DS_OK);
            }
        }
        ds_comm_destroy(comm);
        CHECK(memory.live == 0 && memory.mismatches == 0);
    }
}

/* ---- each exchange of messages fails in turn, on either of two ranks ---- */

enum { STEPS = 16, STEP_COUNT = 5000 };
static ds_status step(ds_comm *comm, ds_comm *alone, int k, char *text) {
    static float memory[2][8][2 * STEP_COUNT]; /* of each rank */
    int me = ds_comm_rank(comm);
    float *in = memory[me][0], *out = memory[me][1], *scratch = memory[me][2], *errors = memory[me][4];
    size_t give[2] = {7, 9}, take[2] = {7, 9};
    const ds_error *from = ds_comm_error(comm);
    ds_comm_handle handle;
    ds_comm *sub = NULL;
    ds_error error = {DS_OK, ""};
    ds_comm_call call = dsi_comm_call_of(DS_COMM_ALL_REDUCE, in, out, STEP_COUNT, DS_F32);
    char all[4000] = "";
    ds_status status = DS_OK;
    give[1 - me] = take[1 - me] = 11;
    memset(in, 0, sizeof memory[0][0]);
    in[5] = 1;
    switch (k) {
    case 0: status = ds_comm_barrier(comm); break;
    case 1: status = ds_comm_all_reduce(comm, in, out, 10, DS_F32, DS_COMM_SUM); break;
    case 2: status = ds_comm_run(comm, &call); break;
    case 3: status = ds_comm_reduce_scatter(comm, in, out, STEP_COUNT / 2, NULL, DS_F32, DS_F32, DS_COMM_SUM); break;
    case 4: status = ds_comm_broadcast(comm, in, STEP_COUNT, DS_F32, 0); break;
    case 5: status = me ? ds_comm_receive(comm, in, 300, DS_F32, 0) : ds_comm_send(comm, in, 300, DS_F32, 1); break;
    case 6: status = ds_comm_sparse_all_reduce(comm, in, 100, 10, DS_F32, DS_COMM_SUM, NULL); break;
    case 7: status = ds_comm_one_bit_all_reduce(comm, in, out, 1000, errors, errors + 2000, scratch); break;
    case 8: status = ds_comm_quantized_all_gather(comm, in, out, 64, DS_F32, 4, scratch); break;
    case 9: status = ds_comm_quantized_reduce_scatter(comm, NULL, in, out, 64, DS_F32, 4, 1, scratch); break;
    case 10:
        status = ds_comm_quantized_reduce_scatter(alone, comm, in, out, 64, DS_F32, 4, 1, scratch);
        from = ds_comm_error(alone);
        break;
    case 11: status = ds_comm_log_summary(comm, true, summary_line, all); break;
    case 12: status = ds_comm_all_to_all_uneven(comm, in, give, out, take, DS_F32); break;
    case 13:
        call.native = true;
        status = ds_comm_run(comm, &call);
        break;
    case 14:
        status = ds_comm_start(comm, &call, &handle);
        if (!status) status = ds_comm_wait(comm, UINT64_MAX);
        break;
    default:
        status = ds_comm_split(comm, 0, 0, &sub, &error);
        from = &error;
        ds_comm_destroy(sub);
    }
    snprintf(text, sizeof error.message, "%s", from->message);
    return status;
}
static int steps_body(ds_comm *comm, void *arg) {
    ds_comm_desc desc = quick_desc();
    ds_comm *alone = NULL;
    ds_status status = DS_OK;
    char text[508], here[32];
    int bad = 0, me = ds_comm_rank(comm);
    bool failing = *(const bool *)arg;
    EXPECT(ds_comm_create(&desc, &alone, NULL) == DS_OK);
    for (int k = 0; k < STEPS && !status; k++) status = step(comm, alone, k, text);
    snprintf(here, sizeof here, "rank %d ", me);
    if (!failing)
        EXPECT(status == DS_OK);
    else if (me == wire.victim && wire.count >= wire.at) { /* it was not too late before */
        EXPECT(status == DS_ERR_IO && strstr(text, "the wire is cut") && strstr(text, here) && strstr(text, "call "));
        EXPECT(ds_comm_barrier(comm) == DS_ERR_IO);
    } else
        EXPECT(status == DS_OK || status == DS_ERR_TIMEOUT || status == DS_ERR_PEER);
    ds_comm_destroy(alone);
    return bad;
}
static void test_steps(void) {
    TEST(each_exchange_fails) {
        ds_comm_desc desc = quick_desc();
        bool failing = false;
        desc.log.enabled = true;
        for (int victim = 0; victim < 2; victim++) {
            int exchanges;
            wire.victim = victim;
            wire.at = wire.count = 0;
            failing = false;
            desc.timeout = (int64_t)20 * 1000000000;
            CHECK(team_messages_of(2, &desc, steps_body, &failing) == 0);
            exchanges = wire.count;
            CHECK(exchanges > 30);
            failing = true;
            desc.timeout = 50000000;
            for (int at = 1; at <= exchanges; at++) {
                wire.at = at;
                wire.count = 0;
                CHECK(team_messages_of(2, &desc, steps_body, &failing) == 0);
            }
        }
        wire.at = 0;
    }
}

/* Three ranks as threads with a short deadline; those that are to come late do. */
static void late_threads(late_case *t) {
    ds_comm *comms[3];
    team_member members[3];
    pthread_t threads[3];
    ds_comm_desc desc = quick_desc();
    desc.timeout = 300000000;
    CHECK(ds_comm_threads_create(&desc, 3, comms, NULL) == DS_OK);
    for (int r = 0; r < 3; r++) {
        members[r].comm = comms[r];
        members[r].body = late_body;
        members[r].arg = t;
        CHECK(pthread_create(&threads[r], NULL, team_main, &members[r]) == 0);
    }
    for (int r = 0; r < 3; r++) {
        pthread_join(threads[r], NULL);
        CHECK_EQ(members[r].failed, 0);
    }
}
static void test_trouble(void) {
    static const wrong_case wrongs[] = {
        {DS_COMM_BROADCAST, 8, DS_F32, DS_COMM_SUM, 0, "broadcast(count 8, f32, root 0)"},
        {DS_COMM_ALL_REDUCE, 9, DS_F32, DS_COMM_SUM, 0, "all_reduce(count 9, f32, sum)"},
        {DS_COMM_ALL_REDUCE, 8, DS_BF16, DS_COMM_SUM, 0, "all_reduce(count 8, bf16, sum)"},
        {DS_COMM_ALL_REDUCE, 8, DS_F32, DS_COMM_MAX, 0, "all_reduce(count 8, f32, max)"},
        {DS_COMM_REDUCE, 8, DS_F32, DS_COMM_SUM, 1, "reduce(count 8, f32, sum, root 1)"},
        {DS_COMM_BARRIER, 0, DS_F32, DS_COMM_SUM, 0, "barrier()"},
        {DS_COMM_REDUCE_SCATTER, 8, DS_BF16, DS_COMM_SUM, 0, "reduce_scatter(count 8, bf16 to f32, sum)"},
        {DS_COMM_ALL_GATHER, 8, DS_F32, DS_COMM_SUM, 0, "all_gather(count 8, f32)"},
        {DS_COMM_ALL_TO_ALL, 8, DS_F32, DS_COMM_SUM, 0, "all_to_all(count 8, f32)"},
        {DS_COMM_GATHER, 8, DS_U8, DS_COMM_SUM, 2, "gather(count 8, u8, root 2)"},
        {DS_COMM_SCATTER, 8, DS_I64, DS_COMM_SUM, 0, "scatter(count 8, i64, root 0)"},
    };
    TEST(mismatch) {
        for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
            wrong_case t = wrongs[i];
            CHECK(team_threads(3, mismatch_body, &t) == 0);
            CHECK(team_messages(3, mismatch_body, &t) == 0);
            if (i < 2) CHECK(team_processes(3, mismatch_body, &t) == 0);
        }
    }
    TEST(tags_tell_calls_of_one_shape_apart) {
        for (int i = 0; i < 2; i++) {
            bool background = i == 1;
            CHECK(team_threads(3, tag_body, &background) == 0);
            CHECK(team_messages(3, tag_body, &background) == 0);
            CHECK(team_processes(3, tag_body, &background) == 0);
        }
    }
    TEST(uneven_mismatch) {
        CHECK(team_threads(2, uneven_body, NULL) == 0);
    }
    TEST(unlike) {
        for (int form = 0; form < 4; form++) {
            CHECK(team_messages(2, unlike_body, &form) == 0);
            if (form != 1) CHECK(team_threads(3, unlike_body, &form) == 0);
        }
        for (int form = 0; form < 3; form++) {
            ds_comm_desc desc = quick_desc();
            desc.timeout = 500000000;
            CHECK(team_messages_of(2, &desc, unlike_message_body, &form) == 0);
            if (form < 2) CHECK(team_threads(2, unlike_message_body, &form) == 0);
        }
    }
    test_steps();
    TEST(late) {
        late_case t = {1, DS_ERR_TIMEOUT, {"all_reduce(count 1000, f32, sum)", "rank 1 never came"}, 0};
        late_threads(&t);
    }
    TEST(two_late) {
        late_case t = {1, DS_ERR_TIMEOUT, {"all_reduce(count 1000, f32, sum)", "ranks 1, 2 never came"}, 3};
        late_threads(&t);
    }
    TEST(late_messages) {
        late_case t = {2, DS_ERR_TIMEOUT, {"all_reduce(count 1000, f32, sum)", "rank 2"}, 0};
        ds_comm_desc desc = quick_desc();
        desc.timeout = 300000000;
        CHECK(team_messages_of(3, &desc, late_body, &t) == 0);
        t.missing = 1;
        t.how = 3;
        t.says[1] = "call of: rank 1, 2";
        CHECK(team_messages_of(3, &desc, late_body, &t) == 0);
    }
    TEST(left) {
        late_case t = {2, DS_ERR_PEER, {"rank 2 destroyed its communicator", "all_reduce"}, 1};
        CHECK(team_threads(3, late_body, &t) == 0);
        CHECK(team_processes(3, late_body, &t) == 0);
    }
    TEST(abort) {
        late_case t = {0, DS_ERR_PEER, {"rank 0 stopped", "the disk of this rank is full"}, 2};
        CHECK(team_threads(3, late_body, &t) == 0);
        CHECK(team_processes(3, late_body, &t) == 0);
        CHECK(team_messages(3, late_body, &t) == 0);
    }
    TEST(refused_arguments) {
        CHECK(team_threads(2, refuse_body, NULL) == 0);
    }
}

/* ---- where the choice of a backend turns, and what it says ---- */

static void place_log(void *ctx, const char *header, int level, int id, const char *message) {
    (void)header, (void)level, (void)message;
    *(int *)ctx += id == 7; /* the environment is not believed */
}
static ds_status place(ds_comm_desc *desc, const char *variables, char *text) {
    static const char *const names[] = {"RANK",        "WORLD_SIZE",  "LOCAL_RANK",           "LOCAL_WORLD_SIZE",
                                        "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"};
    char copy[256], *next = copy;
    ds_comm *comm = NULL;
    ds_error error = {DS_OK, ""};
    ds_status status;
    snprintf(copy, sizeof copy, "%s", variables);
    for (char *word = strtok_r(next, " ", &next); word; word = strtok_r(next, " ", &next)) {
        char *value = strchr(word, '=');
        *value++ = 0;
        setenv(word, value, 1);
    }
    status = ds_comm_create(desc, &comm, &error);
    CHECK(error.status == status && (status != DS_OK) == (*error.message != 0));
    snprintf(text, 512, "%s", status ? error.message : ds_comm_backend(comm));
    ds_comm_destroy(comm);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
    return status;
}
static void test_places(void) {
    static const struct {
        const char *variables, *backend;
        int world, rank, transport;
        ds_status status;
        const char *text;
    } cases[] = {
        {"", NULL, 0, 0, 0, DS_OK, "self"},
        {"", "", 1, 0, 0, DS_OK, "self"},
        {"", "self", 1, 0, 0, DS_OK, "self"},
        {"", NULL, 0, 3, 0, DS_ERR_ARGUMENT, "rank 3 is given without a world"},
        {"", NULL, -1, 0, 0, DS_ERR_ARGUMENT, "rank 0 of -1 is no place"},
        {"", NULL, 2, -1, 0, DS_ERR_ARGUMENT, "rank -1 of 2 is no place"},
        {"RANK=1", NULL, 0, 0, 0, DS_ERR_INPUT, "WORLD_SIZE"},
        {"RANK=1", NULL, 1, 0, 0, DS_OK, "self"}, /* the descriptor stands */
        {"RANK=0 WORLD_SIZE=2", NULL, 1, 0, 0, DS_OK, "self"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=10.9.8.7", NULL, 0, 0, 0, DS_ERR_UNSUPPORTED, "MASTER_ADDR \"10.9.8.7\""},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost", NULL, 0, 0, 0, DS_ERR_TIMEOUT, "rank 1 did not connect"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.2", NULL, 0, 0, 0, DS_ERR_TIMEOUT, "rank 1 did not connect"},
        {"RANK=0 WORLD_SIZE=2 MASTER_ADDR=::1", NULL, 0, 0, 0, DS_ERR_TIMEOUT, "rank 1 did not connect"},
        {"RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=1", NULL, 0, 0, 0, DS_ERR_UNSUPPORTED, "here: 1"},
        {"RANK=0 WORLD_SIZE=2 MASTER_PORT=65536", NULL, 0, 0, 0, DS_ERR_INPUT, "a port is at most 65535"},
        {"", "threads", 0, 0, 0, DS_ERR_ARGUMENT, "ds_comm_threads_create"},
        {"", "shm", 0, 0, 1, DS_ERR_ARGUMENT, "a transport is given"},
        {"", "user", 1, 0, 1, DS_OK, "user"},
        {"", NULL, 1, 0, 1, DS_OK, "user"},
        {"", "nccl", 0, 0, 0, DS_ERR_ARGUMENT, "needs desc.device"},
    };
    TEST(places) {
        ds_comm_transport transport;
        memset(&transport, 0, sizeof transport);
        transport.exchange = post_exchange;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            ds_comm_desc desc = quick_desc();
            char text[512];
            ds_status status;
            int unbelieved = 0;
            desc.logger.log = place_log;
            desc.logger.ctx = &unbelieved;
            desc.backend = cases[i].backend;
            desc.world = cases[i].world;
            desc.rank = cases[i].rank;
            desc.timeout = 50000000;
            if (cases[i].transport) desc.transport = &transport;
            status = place(&desc, cases[i].variables, text);
            if (!CHECK_EQ(status, cases[i].status)) printf("  case %zu: %s\n", i, text);
            CHECK_HAS(text, cases[i].text);
            CHECK_EQ(unbelieved, *cases[i].variables && cases[i].world == 1);
        }
        CHECK_EQ(ds_comm_threads_create_(NULL, sizeof(ds_comm_desc), DS_COMM_VERSION, 0, NULL, NULL), DS_ERR_ARGUMENT);
    }
    TEST(wrong_calls) { /* found before anything is sent; the communicator lives on */
        ds_comm_desc desc = quick_desc();
        ds_comm *comm = NULL;
        float x[16] = {0};
        uint16_t half[16] = {0};
        size_t huge = SIZE_MAX / 4, one = 1;
        CHECK(ds_comm_create(&desc, &comm, NULL) == DS_OK);
        for (int k = 0; k < 13; k++) {
            ds_comm_call c = dsi_comm_call_of(DS_COMM_ALL_REDUCE, x, x, 4, DS_F32);
            static const char *const texts[13] = {"kind 99",
                                                  "dtype 99",
                                                  "root or peer 1",
                                                  "operation 7",
                                                  "the output type must be f16 or f32",
                                                  "the output type must be f32",
                                                  "the counts do not fit",
                                                  "in is NULL",
                                                  "out is NULL",
                                                  "overlap",
                                                  "receive_counts is NULL",
                                                  "the counts do not fit",
                                                  "the counts do not fit"};
            if (k == 0) c.kind = (ds_comm_kind)99;
            if (k == 1) c.dtype = (ds_dtype)99;
            if (k == 2) c.root = 1, c.kind = DS_COMM_BROADCAST;
            if (k == 3) c.op = (ds_comm_op)7;
            if (k == 4) c.kind = DS_COMM_REDUCE_SCATTER, c.dtype = DS_F16, c.in = half, c.out_dtype = DS_BF16;
            if (k == 5) c.kind = DS_COMM_REDUCE_SCATTER, c.out_dtype = DS_F64;
            if (k == 6) c.kind = DS_COMM_ALL_GATHER, c.counts = &huge;
            if (k == 7) c.in = NULL;
            if (k == 8) c.out = NULL;
            if (k == 9) c.kind = DS_COMM_GATHER, c.in = x + 1;
            if (k == 10) c.kind = DS_COMM_ALL_TO_ALL, c.counts = &one, c.out = x + 8;
            if (k == 11) c.kind = DS_COMM_ALL_TO_ALL, c.counts = &one, c.receive_counts = &huge, c.out = x + 8;
            if (k == 12) c.kind = DS_COMM_ALL_TO_ALL, c.counts = &huge, c.receive_counts = &one, c.out = x + 8;
            CHECK_EQ(ds_comm_run(comm, &c), DS_ERR_ARGUMENT);
            CHECK_HAS(ds_comm_error(comm)->message, texts[k]);
        }
        CHECK(ds_comm_all_reduce(comm, x, x, 4, DS_F32, DS_COMM_SUM) == DS_OK);
        CHECK_STR(ds_comm_kind_name((ds_comm_kind)77), "unknown");
        ds_comm_abort(comm, NULL);
        CHECK_EQ(ds_comm_barrier(comm), DS_ERR_PEER);
        CHECK_HAS(ds_comm_error(comm)->message, "ds_comm_abort");
        CHECK_EQ(ds_comm_barrier(comm), DS_ERR_PEER);
        ds_comm_free(comm, NULL, 5);
        ds_comm_destroy(comm);
    }
    TEST(log_is_full) {
        ds_comm_desc desc = quick_desc();
        ds_comm *comm = NULL;
        static char in[3000], out[3000], all[4000];
        test_memory memory;
        memset(&memory, 0, sizeof memory);
        desc.log.enabled = true;
        CHECK(ds_comm_create(&desc, &comm, NULL) == DS_OK);
        for (size_t n = 1; n <= 300; n++) CHECK(ds_comm_all_gather(comm, in, out, n * 8, NULL, DS_U8) == DS_OK);
        CHECK_EQ(ds_comm_log_entries(comm, NULL, 0), 256);
        all[0] = 0;
        CHECK(ds_comm_log_summary(comm, false, summary_line, all) == DS_OK);
        CHECK_HAS(all, "64 B");
        ds_comm_destroy(comm);
        desc.allocator.alloc = test_alloc;
        desc.allocator.release = test_release;
        desc.allocator.ctx = &memory;
        memory.fail_at = 3; /* the entries */
        CHECK_EQ(ds_comm_create(&desc, &comm, NULL), DS_ERR_MEMORY);
        CHECK(memory.calls == 3 && memory.live == 0);
    }
}

/* ---- the pool of the block `threads` ---- */

typedef struct pool_sum {
    unsigned char seen[5000];
    int workers;
} pool_sum;
static void pool_body(void *arg, size_t begin, size_t end, unsigned worker) {
    pool_sum *p = (pool_sum *)arg;
    for (size_t i = begin; i < end; i++) p->seen[i]++;
    __atomic_fetch_or(&p->workers, 1 << worker, __ATOMIC_SEQ_CST);
}
static void test_pool(void) {
    TEST(pool) {
        static const size_t counts[] = {0, 1, 7, 4096, 5000};
        for (unsigned workers = 1; workers <= 4; workers++)
            for (int own = 0; own < 2; own++) {
                test_memory memory;
                ds_allocator allocator;
                dsi_pool *pool;
                memset(&memory, 0, sizeof memory);
                memset(&allocator, 0, sizeof allocator);
                allocator.alloc = test_alloc;
                allocator.release = test_release;
                allocator.ctx = &memory;
                pool = dsi_pool_create(own ? &allocator : NULL, workers);
                CHECK(pool != NULL);
                for (size_t k = 0; k < 5; k++)
                    for (size_t grain = 0; grain <= 1024; grain += 512) {
                        pool_sum sum;
                        int wrong = 0;
                        memset(&sum, 0, sizeof sum);
                        dsi_pool_for(pool, counts[k], grain, pool_body, &sum);
                        for (size_t i = 0; i < 5000; i++) wrong += sum.seen[i] != (i < counts[k]);
                        CHECK_EQ(wrong, 0);
                        if (k == 4) CHECK_EQ(sum.workers, (1 << workers) - 1);
                    }
                dsi_pool_destroy(pool);
                CHECK(memory.live == 0 && memory.mismatches == 0);
                memory.fail_at = memory.calls + 1;
                if (own) CHECK(dsi_pool_create(&allocator, workers) == NULL);
            }
        dsi_pool_destroy(NULL);
    }
}

/* ---- strangers at the socket of rank 0, and a clock of one's own ---- */

static int64_t clock_asked, clock_slept;
static int64_t clock_now(void *ctx) {
    (void)ctx;
    __atomic_fetch_add(&clock_asked, 1, __ATOMIC_SEQ_CST);
    return dsi_now(NULL);
}
static void clock_sleep(void *ctx, int64_t ns) {
    (void)ctx;
    __atomic_fetch_add(&clock_slept, 1, __ATOMIC_SEQ_CST);
    dsi_sleep(NULL, ns);
}
static int stranger(const char *id, int rank, int magic, int run, size_t bytes) {
    dsi_comm_point place = dsi_comm_meeting_point(id, 3);
    dsi_comm_hello hello;
    int s = socket(AF_UNIX, SOCK_SEQPACKET, 0), hung_up;
    char byte;
    memset(&hello, 0, sizeof hello);
    hello.magic = DS_COMM_VERSION + 0x64730000u + (uint32_t)magic;
    hello.run = dsi_comm_run_hash(id, 3) + (uint64_t)run;
    hello.rank = rank;
    for (int i = 0; connect(s, (struct sockaddr *)(void *)&place.address, place.length) && i < 500; i++) usleep(2000);
    hung_up = send(s, &hello, bytes, MSG_NOSIGNAL) == (ssize_t)bytes && recv(s, &byte, 1, 0) <= 0;
    close(s);
    return hung_up;
}
static void test_strangers(void) {
    TEST(strangers) {
        char id[64];
        int status = 0;
        pid_t pid;
        snprintf(id, sizeof id, "unit strangers %ld", (long)getpid());
        fflush(stdout);
        pid = fork();
        if (pid == 0) {
            int good = stranger(id, 0, 0, 0, sizeof(dsi_comm_hello)) && stranger(id, 3, 0, 0, sizeof(dsi_comm_hello)) &&
                       stranger(id, 1, 1, 0, sizeof(dsi_comm_hello)) && stranger(id, 1, 0, 1, sizeof(dsi_comm_hello)) &&
                       stranger(id, 1, 0, 0, 40);
            test_child_exit(!good);
        }
        {
            ds_comm_desc desc = quick_desc();
            ds_comm *comm = NULL;
            ds_error error = {DS_OK, ""};
            desc.backend = "shm";
            desc.world = 3;
            desc.run_id = id;
            desc.timeout = 1500000000;
            desc.clock.now = clock_now;
            desc.clock.sleep = clock_sleep;
            CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_TIMEOUT);
            CHECK_HAS(error.message, "rank 1, 2 did not connect"); /* none of them counted */
            desc.rank = 1;
            desc.timeout = 100000000;
            CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_TIMEOUT);
            CHECK(clock_asked > 5 && clock_slept > 2);
        }
        waitpid(pid, &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    TEST(claimed_twice) {
        pid_t pids[2];
        ds_comm_desc desc = quick_desc();
        ds_comm *comm = NULL;
        ds_error error = {DS_OK, ""};
        desc.backend = "shm";
        desc.world = 3;
        desc.run_id = "unit claimed twice";
        fflush(stdout);
        for (int k = 0; k < 2; k++)
            if ((pids[k] = fork()) == 0) {
                desc.rank = 1;
                test_child_exit(ds_comm_create(&desc, &comm, NULL) != DS_ERR_PEER);
            }
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_PEER);
        CHECK_HAS(error.message, "rank 1 is claimed by processes");
        for (int k = 0; k < 2; k++) kill(pids[k], SIGKILL), waitpid(pids[k], NULL, 0);
    }
    TEST(no_deadline_of_processes) {
        team_timeout = -1;
        CHECK(team_processes(2, group_body, NULL) == 0);
        team_timeout = (int64_t)20 * 1000000000;
    }
    TEST(no_deadline) { /* a negative timeout waits as long as it takes */
        ds_comm *comms[2];
        team_member members[2];
        pthread_t threads[2];
        ds_comm_desc desc = quick_desc();
        desc.timeout = -1;
        CHECK(ds_comm_threads_create(&desc, 2, comms, NULL) == DS_OK);
        for (int r = 0; r < 2; r++) {
            members[r].comm = comms[r];
            members[r].body = start_body;
            members[r].arg = NULL;
            CHECK(pthread_create(&threads[r], NULL, team_main, &members[r]) == 0);
        }
        for (int r = 0; r < 2; r++) {
            pthread_join(threads[r], NULL);
            CHECK_EQ(members[r].failed, 0);
        }
    }
}

/* ---- edges of the smaller calls ---- */

static ds_status never(void) {
    return DS_ERR_DEVICE;
}
/* Rank 0 begins a call and looks; rank 1 comes when it has looked. Then the log, a dead communicator and its queue. */
static int look_body(ds_comm *comm, void *arg) {
    uint32_t *looked = (uint32_t *)arg;
    float x[2000] = {0}, y[2000];
    ds_comm_call call = dsi_comm_call_of(DS_COMM_ALL_REDUCE, x, y, 2000, DS_F32);
    ds_comm_log_options options;
    ds_comm_handle handle;
    bool done = true;
    int bad = 0;
    memset(&options, 0, sizeof options);
    options.enabled = options.verbose = true;
    while (ds_comm_rank(comm) && !__atomic_load_n(looked, __ATOMIC_SEQ_CST)) dsi_sleep(NULL, 1000000);
    EXPECT(ds_comm_start(comm, &call, &handle) == DS_OK);
    if (!ds_comm_rank(comm)) {
        EXPECT(ds_comm_test(comm, handle, &done) == DS_OK && !done);
        __atomic_store_n(looked, 1, __ATOMIC_SEQ_CST);
    }
    EXPECT(ds_comm_log_start(comm, &options) == DS_OK); /* waits for the call */
    EXPECT(ds_comm_test(comm, handle, &done) == DS_OK && done);
    EXPECT(ds_comm_start(comm, &call, &handle) == DS_OK);
    EXPECT(ds_comm_log_entries(comm, NULL, 0) == 1);
    ds_comm_abort(comm, "enough");
    EXPECT(ds_comm_barrier(comm) == DS_ERR_PEER);
    EXPECT(ds_comm_start(comm, &call, &handle) == DS_ERR_PEER && strstr(ds_comm_error(comm)->message, "enough"));
    EXPECT(ds_comm_test(comm, handle, &done) == DS_ERR_PEER && done);
    return bad;
}
/* Messages that nobody receives, and one that nobody sends. */
static int alone_body(ds_comm *comm, void *arg) {
    char x[16] = {0};
    int bad = 0;
    ds_status status = DS_OK;
    if (ds_comm_rank(comm)) return 0;
    comm->timeout = 60000000;
    if (arg) {
        for (int i = 0; i < 3; i++) {
            EXPECT(status == DS_OK);
            status = ds_comm_send(comm, x, 16, DS_U8, 1);
        }
        EXPECT(status == DS_ERR_TIMEOUT && strstr(ds_comm_error(comm)->message, "for rank 1 to receive"));
    } else
        EXPECT(ds_comm_receive(comm, x, 16, DS_U8, 1) == DS_ERR_TIMEOUT &&
               strstr(ds_comm_error(comm)->message, "for rank 1 to send"));
    return bad;
}
/* Two of three ranks share a communicator, and one leaves it. */
static int left_split_body(ds_comm *comm, void *arg) {
    ds_comm *sub = NULL;
    int bad = 0, me = ds_comm_rank(comm);
    (void)arg;
    EXPECT(ds_comm_split(comm, me > 0, 0, &sub, NULL) == DS_OK);
    if (me == 1) {
        EXPECT(ds_comm_barrier(sub) == DS_ERR_PEER);
        EXPECT(strstr(ds_comm_error(sub)->message, "rank 1 (rank 2 before the split) destroyed") != NULL);
    }
    ds_comm_destroy(sub);
    EXPECT(ds_comm_barrier(comm) == DS_OK); /* which the failure left alone */
    return bad;
}
static int arena_body(ds_comm *comm, void *arg) {
    char *pieces[20];
    int bad = 0, local = 0;
    void *volatile foreign = &local; /* volatile: the compiler would see what must not be freed */
    (void)arg;
    for (int i = 0; i < 20; i++) {
        pieces[i] = (char *)ds_comm_alloc(comm, i ? 1 : 0);
        EXPECT(pieces[i] != NULL && (i == 0 || pieces[i] != pieces[i - 1]));
    }
    EXPECT(!ds_comm_free(comm, foreign, 1));
    foreign = pieces[3] + 64;
    EXPECT(!ds_comm_free(comm, foreign, 1));
    EXPECT(ds_comm_free(comm, pieces[3], 1) && !ds_comm_free(comm, pieces[3], 1));
    EXPECT(ds_comm_alloc(comm, 4096) == pieces[3]); /* first fit */
    EXPECT(ds_comm_alloc(comm, (size_t)1 << 40) == NULL);
    for (int i = 0; i < 20; i++) EXPECT(ds_comm_free(comm, pieces[i], 1));
    EXPECT(ds_comm_barrier(comm) == DS_OK);
    return bad;
}
static void test_edges(void) {
    TEST(small_calls) {
        ds_comm_desc desc = quick_desc();
        ds_comm *comm = NULL;
        float x[64] = {1, 2, 3}, errors[16] = {0}, scratch[2048];
        int32_t whole[4] = {1, 2, 3, 4};
        ds_comm_blocks none = {8, false, 0}, many = {8, false, 64};
        int8_t packed[64] = {7};
        bool sparse = true;
        static const char *const chosen[] = {"all_reduce"};
        desc.log.only = true; /* not enabled: nothing is kept */
        desc.log.operations = chosen;
        desc.log.operation_count = 1;
        CHECK(ds_comm_create(&desc, &comm, NULL) == DS_OK);
        ds_comm_tree_sum_f32(x, NULL, 0, DS_F32, 3);
        CHECK(x[0] == 1 && x[2] == 3);
        ds_comm_quantize(none, x, DS_F32, 8, packed, errors);
        ds_comm_dequantize(none, packed, errors, x, DS_F32, 8);
        ds_comm_quantize(many, x, DS_F32, 8, packed, errors);
        ds_comm_dequantize(many, packed, errors, x, DS_F32, 8);
        CHECK(packed[0] == 7 && x[0] == 1 && errors[0] == 0);
        CHECK_EQ(ds_comm_quantized_all_gather(comm, x, x, 8, DS_F64, 1, scratch), DS_ERR_ARGUMENT);
        CHECK_HAS(ds_comm_error(comm)->message, "dtype f64");
        CHECK_EQ(ds_comm_quantized_all_gather(comm, x, x, 8, DS_F32, 0, scratch), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_comm_quantized_all_gather(comm, x, x, 8, DS_F32, 3, scratch), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_comm_quantized_all_gather(comm, x, x, 0, DS_F16, 0, scratch), DS_OK);
        CHECK_EQ(ds_comm_quantized_reduce_scatter(comm, NULL, x, x, 3, DS_F32, 3, 1, scratch), DS_ERR_ARGUMENT);
        CHECK_HAS(ds_comm_error(comm)->message, "3 equal groups of a multiple of 2");
        CHECK_EQ(ds_comm_quantized_reduce_scatter(comm, NULL, x, x, 0, DS_F32, 0, 1, scratch), DS_OK);
        CHECK_EQ(ds_comm_one_bit_sizes(0, 9).padded, 16);
        CHECK_EQ(ds_comm_one_bit_sizes(2, 9).padded, 16);
        CHECK_EQ(ds_comm_one_bit_sizes(4, 9).padded, 32);
        CHECK_EQ(ds_comm_one_bit_sizes(8, 65).padded, 128);
        CHECK_EQ(ds_comm_one_bit_all_reduce(comm, x, x, 0, errors, errors, scratch), DS_OK);
        CHECK_EQ(ds_comm_sparse_all_reduce(comm, whole, 2, 2, DS_I32, DS_COMM_SUM, &sparse), DS_OK);
        CHECK(!sparse && whole[3] == 4);
        CHECK_EQ(ds_comm_sparse_all_reduce(comm, x, 2, 2, (ds_dtype)40, DS_COMM_SUM, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_comm_sparse_all_reduce(comm, NULL, 2, 2, DS_F32, DS_COMM_SUM, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_comm_sparse_all_reduce(comm, x, SIZE_MAX / 8, 2, DS_F32, DS_COMM_SUM, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_comm_sparse_all_reduce(comm, x, 4, 0, DS_F32, DS_COMM_SUM, NULL), DS_OK);
        CHECK_EQ(ds_comm_log_entries(comm, NULL, 0), 0);
        CHECK_EQ(ds_comm_reduce_scatter(comm, x, x, 2, NULL, DS_BF16, DS_F32, DS_COMM_SUM), DS_ERR_ARGUMENT);
        CHECK_HAS(ds_comm_error(comm)->message, "overlap");
        CHECK_EQ(ds_comm_all_to_all(comm, x, x, 2, DS_F32), DS_ERR_ARGUMENT);
        ds_comm_destroy(comm);
    }
    TEST(strange_sign) { /* what a peer of another make may send */
        dsi_comm_sign sign;
        char text[160];
        memset(&sign, 0, sizeof sign);
        sign.kind = DS_COMM_ALL_REDUCE;
        sign.dtype = sign.out_dtype = 77;
        sign.op = 9;
        dsi_comm_describe(&sign, text, sizeof text);
        CHECK_STR(text, "all_reduce(count 0, ?, ?)");
        sign.kind = 12;
        dsi_comm_describe(&sign, text, sizeof text);
        CHECK_STR(text, "ds_comm_abort()");
    }
    TEST(looks) {
        uint32_t looked = 0;
        CHECK(team_threads(2, look_body, &looked) == 0);
        looked = 0;
        CHECK(team_messages(2, look_body, &looked) == 0);
    }
    TEST(nobody_at_the_other_end) {
        for (int sends = 0; sends < 2; sends++) {
            ds_comm_desc desc = quick_desc();
            ds_comm *comms[2];
            CHECK(ds_comm_threads_create(&desc, 2, comms, NULL) == DS_OK);
            CHECK(alone_body(comms[0], sends ? &desc : NULL) == 0);
            for (int r = 0; r < 2; r++) ds_comm_destroy(comms[r]);
        }
    }
    TEST(left_a_split) {
        CHECK(team_threads(3, left_split_body, NULL) == 0);
        CHECK(team_processes(3, left_split_body, NULL) == 0);
    }
    TEST(arena) {
        CHECK(team_processes(2, arena_body, NULL) == 0);
    }
    TEST(reason_being_written) { /* by a rank that was killed over it, or is just slow */
        ds_comm_desc desc = quick_desc();
        ds_comm *comms[2];
        CHECK(ds_comm_threads_create(&desc, 2, comms, NULL) == DS_OK);
        comms[0]->room->abort_state = comms[0]->room->abort_rank = 1;
        CHECK_EQ(ds_comm_barrier(comms[0]), DS_ERR_PEER);
        CHECK_HAS(ds_comm_error(comms[0])->message, "rank 1 stopped");
        for (int r = 0; r < 2; r++) ds_comm_destroy(comms[r]);
    }
    TEST(name_is_taken) {
        dsi_comm_point point = dsi_comm_meeting_point("unit taken", 2);
        ds_comm_desc desc = quick_desc();
        ds_comm *comm = NULL;
        ds_error error = {DS_OK, ""};
        int s = socket(AF_UNIX, SOCK_SEQPACKET, 0);
        CHECK(bind(s, (struct sockaddr *)(void *)&point.address, point.length) == 0);
        desc.backend = "shm";
        desc.world = 2;
        desc.run_id = "unit taken";
        desc.timeout = 60000000;
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_STATE);
        CHECK_HAS(error.message, "another run of this user is connecting (run id \"unit taken\")");
        CHECK_EQ(ds_comm_create(&desc, &comm, NULL), DS_ERR_STATE);
        close(s);
    }
    TEST(half_a_device) { /* each call that NCCL cannot do without, missing; and tables that lack one of a pair */
        for (int missing = 0; missing < 13; missing++) {
            ds_comm_desc desc = quick_desc();
            ds_comm *comm = NULL;
            ds_error error = {DS_OK, ""};
            void (*some)(void) = (void (*)(void))never;
            void *parts[] = {&desc.device.copy,         &desc.device.stream_create, &desc.device.stream_destroy,
                             &desc.device.event_create, &desc.device.event_destroy, &desc.device.event_record,
                             &desc.device.event_done,   &desc.device.synchronize,   &desc.device.alloc,
                             &desc.device.release,      &desc.device.pinned_alloc,  &desc.device.pinned_release};
            for (int i = 0; i < 12; i++)
                if (i != missing) memcpy(parts[i], &some, sizeof some);
            desc.backend = "nccl";
            desc.nccl_library = "/nowhere/libnccl.so.2";
            CHECK_EQ(ds_comm_create(&desc, &comm, &error), missing < 12 ? DS_ERR_ARGUMENT : DS_ERR_UNSUPPORTED);
            CHECK_HAS(error.message, missing < 8    ? "needs desc.device"
                                     : missing < 12 ? "but not each of"
                                                    : "/nowhere/");
        }
    }
    TEST(too_many_threads) {
        ds_comm_desc desc = quick_desc();
        static ds_comm *comms[4097];
        CHECK_EQ(ds_comm_threads_create(&desc, 4097, comms, NULL), DS_ERR_ARGUMENT);
    }
}

#if DS_COMM_USE_MPI
/* Under mpirun: the same bodies over MPI. tests/multi/ds_comm_mpi_test.sh starts it. */
static void late_over_mpi(void) {
    late_case t = {1, DS_ERR_TIMEOUT, {"all_reduce(count 1000, f32, sum)", "rank 1"}, 0};
    ds_comm_desc desc = quick_desc();
    ds_comm *comm;
    int bad = 1;
    desc.backend = "mpi";
    desc.timeout = 300000000;
    if (ds_comm_create(&desc, &comm, NULL) == DS_OK) bad = late_body(comm, &t);
    printf("late: rank %d: %d checks failed\n", ds_comm_rank(comm), bad);
    test_child_exit(bad != 0); /* without MPI_Finalize, which would wait for messages that were given up */
}
/* A device whose memory MPI can read, as a CUDA-aware one reads a GPU's: with cuda_aware it is sent as it is, else copied. */
static ds_status plain_alloc(void *ctx, size_t bytes, void **memory) {
    (void)ctx;
    return (*memory = malloc(bytes)) ? DS_OK : DS_ERR_MEMORY;
}
static void plain_release(void *ctx, void *memory, size_t bytes) {
    (void)ctx, (void)bytes;
    free(memory);
}
static ds_status plain_copy(void *ctx, void *to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    *(size_t *)ctx += bytes;
    memcpy(to, from, bytes);
    return DS_OK;
}
static int cuda_aware_body(bool aware) {
    enum { COUNT = 5000 };
    ds_comm_desc desc = quick_desc();
    ds_comm *comm = NULL;
    ds_comm_call call;
    ds_comm_stats stats;
    size_t copied = 0;
    int32_t in[COUNT], out[4 * COUNT];
    int bad = 0;
    desc.device.ctx = &copied;
    desc.device.alloc = plain_alloc;
    desc.device.release = plain_release;
    desc.device.copy = plain_copy;
    desc.backend = "mpi";
    desc.cuda_aware = aware;
    if (ds_comm_create(&desc, &comm, NULL)) return 1;
    for (int i = 0; i < COUNT; i++) in[i] = i + ds_comm_rank(comm);
    memset(&call, 0, sizeof call);
    call.kind = DS_COMM_ALL_GATHER;
    call.in = in;
    call.out = out;
    call.count = COUNT;
    call.dtype = DS_I32;
    call.on_device = true;
    EXPECT(ds_comm_run(comm, &call) == DS_OK);
    for (int i = 0; i < ds_comm_world(comm) * COUNT; i++) bad += out[i] != i % COUNT + i / COUNT;
    ds_comm_get_stats(comm, &stats);
    /* its own part moves within the device; the rest comes to the host only where it has to */
    EXPECT(copied == (aware ? sizeof in : sizeof in * (size_t)(1 + ds_comm_world(comm))));
    EXPECT((stats.staged_bytes == 0) == aware);
    ds_comm_destroy(comm);
    return bad;
}
static int main_over_mpi(int argc, char **argv) {
    static const team_body bodies[] = {split_body, start_body, stats_body, group_body, refuse_body};
    static const size_t counts[] = {0, 1, 129, 5000, 20003};
    ds_comm_desc desc = quick_desc();
    ds_comm *first = NULL, *comm = NULL;
    ds_error error = {DS_OK, ""};
    wrong_case wrong = {DS_COMM_BROADCAST, 8, DS_F32, DS_COMM_SUM, 0, "broadcast(count 8, f32, root 0)"};
    late_case abort_case = {0, DS_ERR_PEER, {"rank 0 stopped", "the disk of this rank is full"}, 2};
    unsigned native = ~(1u << DS_I8 | 1u << DS_U8 | 1u << DS_I16 | 1u << DS_U16);
    if (argc > 1 && strcmp(argv[1], "late") == 0) late_over_mpi();
    test_begin(1, argv);
    TEST(mpi) {
        CHECK(ds_comm_create(&desc, &first, &error) == DS_OK); /* auto: started by mpirun */
        if (!first) return printf("  %s\n0 passed, 1 failed\n", error.message), 1;
        CHECK_STR(ds_comm_backend(first), "mpi");
        for (size_t i = 0; i < 5; i++) {
            matrix_case t = {counts[i], all_types[i], (int)(i & 1), (int)(i / 2 & 1)};
            CHECK(matrix_body(first, &t) == 0);
        }
        for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
            ds_comm *fresh = NULL;
            CHECK(ds_comm_create(&desc, &fresh, &error) == DS_OK);
            if (fresh && (bodies[i] != stats_body || ds_comm_world(fresh) == 2)) CHECK(bodies[i](fresh, NULL) == 0);
            ds_comm_destroy(fresh);
        }
        CHECK(ds_comm_split(first, 0, 0, &comm, &error) == DS_OK);
        CHECK(mismatch_body(comm, &wrong) == 0);
        ds_comm_destroy(comm);
        CHECK(ds_comm_split(first, 0, 0, &comm, &error) == DS_OK);
        CHECK(late_body(comm, &abort_case) == 0);
        ds_comm_destroy(comm);
        CHECK(ds_comm_split(first, 0, 0, &comm, &error) == DS_OK);
        CHECK(native_body(comm, &native) == 0);
        ds_comm_destroy(comm);
        CHECK(cuda_aware_body(true) == 0);
        CHECK(cuda_aware_body(false) == 0);
        CHECK(ds_comm_barrier(first) == DS_OK);
        desc.backend = "mpi"; /* whose ranks are not those of the descriptor */
        desc.world = ds_comm_world(first);
        desc.rank = (ds_comm_rank(first) + 1) % desc.world;
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "MPI says rank");
        ds_comm_destroy(first);
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_STATE);
        CHECK_HAS(error.message, "MPI was finalised in this process");
    }
    return test_end();
}
#endif

int main(int argc, char **argv) {
#if DS_COMM_USE_MPI
    if (getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE")) return main_over_mpi(argc, argv);
#endif
    test_begin(argc, argv);
    for (int w = 1; w <= 64; w = w < 4 ? w + 1 : w == 4 ? 7 : w == 7 ? 16 : w == 16 ? 64 : 65)
        for (size_t k = 0; k < sizeof all_types / sizeof *all_types; k++) {
            static const size_t counts[] = {0, 1, 3, 129, 5000};
            char name[64];
            if (w > 7 && k > 2) continue;
            snprintf(name, sizeof name, "threads_%d_type_%d", w, (int)all_types[k]);
            TEST_NAMED(name) {
                for (size_t i = 0; i < 5 - (w > 16 ? 1u : 0u); i++) {
                    matrix_case t = {counts[i], all_types[k], (int)(i & 1), (int)(i / 2 & 1)};
                    CHECK(team_threads(w, matrix_body, &t) == 0);
                }
            }
        }
    for (int w = 2; w <= 5; w++)
        for (int shared = 0; shared < 2; shared++) {
            char name[64];
            snprintf(name, sizeof name, "shm_%d_shared_%d", w, shared);
            TEST_NAMED(name) {
                static const size_t counts[] = {0, 1, 129, 5000, 100003};
                for (size_t i = 0; i < 5; i++) {
                    matrix_case t = {counts[i], all_types[(i + (size_t)w) % 4], shared, (int)(i & 1)};
                    CHECK(team_processes(w, matrix_body, &t) == 0);
                }
            }
        }
    for (int w = 1; w <= 5; w += 2) {
        char name[64];
        snprintf(name, sizeof name, "messages_%d", w);
        TEST_NAMED(name) {
            static const size_t counts[] = {0, 1, 129, 5000, 20003};
            for (size_t i = 0; i < 5; i++) {
                matrix_case t = {counts[i], all_types[(i + (size_t)w) % 4], (int)(i & 1), (int)(i / 2 & 1)};
                CHECK(team_messages(w, matrix_body, &t) == 0);
            }
        }
    }
    TEST(split) {
        for (int w = 1; w <= 7; w += 2) {
            CHECK(team_threads(w, split_body, NULL) == 0);
            CHECK(team_messages(w, split_body, NULL) == 0);
        }
        CHECK(team_processes(5, split_body, NULL) == 0);
        CHECK(team_processes(3, churn_body, NULL) == 0);
        CHECK(team_processes(4, twice_body, NULL) == 0);
    }
    TEST(start) {
        CHECK(team_threads(1, start_body, NULL) == 0);
        CHECK(team_threads(3, start_body, NULL) == 0);
        CHECK(team_messages(3, start_body, NULL) == 0);
        CHECK(team_processes(2, start_body, NULL) == 0);
    }
    TEST(bytes_by_theory) {
        for (int w = 1; w <= 4; w *= 2) {
            CHECK(team_threads(w, stats_body, NULL) == 0);
            CHECK(team_messages(w, stats_body, NULL) == 0);
        }
        CHECK(team_processes(4, stats_body, NULL) == 0);
    }
    TEST(native_sums) {
        unsigned none = 0, f32 = 1u << DS_F32;
        CHECK(team_threads(1, native_body, &none) == 0);
        CHECK(team_threads(3, native_body, &none) == 0);
        CHECK(team_processes(2, native_body, &none) == 0);
        for (int w = 2; w <= 5; w++) CHECK(team_messages(w, native_body, &f32) == 0);
        CHECK(team_messages(4, native_order_body, NULL) == 0);
    }
    TEST(group) {
        CHECK(team_threads(4, group_body, NULL) == 0);
        CHECK(team_processes(9, group_body, NULL) == 0);
        CHECK(team_messages(4, group_body, NULL) == 0);
    }
    TEST(tree_sum) {
        for (int n = 1; n <= 64; n++) {
            enum { COUNT = 700 };
            static uint16_t half[64][COUNT];
            static float wide[64][COUNT], out[COUNT];
            const void *inputs[64];
            for (int form = 0; form < 3; form++) {
                ds_dtype dtype = form == 0 ? DS_F32 : form == 1 ? DS_F16 : DS_BF16;
                int wrong = 0;
                for (int r = 0; r < n; r++)
                    inputs[r] = fill(form ? (void *)half[r] : (void *)wide[r], dtype, r, 0, COUNT);
                ds_comm_tree_sum_f32(out, inputs, n, dtype, COUNT);
                for (size_t i = 0; i < COUNT; i++)
                    wrong += differs(out, DS_F32, i, model_reduce(dtype, DS_F32, DS_COMM_SUM, n, i));
                CHECK_EQ(wrong, 0);
            }
        }
    }
    test_log();
    test_one_bit();
    test_quantized();
    test_environment();
    test_create();
    test_trouble();
    test_places();
    test_pool();
    test_strangers();
    test_edges();
    return test_end();
}
