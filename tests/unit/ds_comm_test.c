/* Collectives over threads, alone and over processes, against a plain model; errors, environment, split, memory. */
#define DS_COMM_IMPLEMENTATION
#include "ds_comm.h"
#include "tests/test.h"
#include <pthread.h>
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
static ds_comm_desc quick_desc(void) {
    ds_comm_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.timeout = (int64_t)20 * 1000000000;
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
    float f[64];
    double d[64];
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

int main(int argc, char **argv) {
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
                    CHECK_EQ(team_threads(w, matrix_body, &t), 0);
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
                    CHECK_EQ(team_processes(w, matrix_body, &t), 0);
                }
            }
        }
    return test_end();
}
