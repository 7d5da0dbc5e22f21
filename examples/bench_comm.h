/* bench_comm.h - ds bench comm: collectives between processes of this machine, each beside the speed at which the same
   processes read, change and write back memory, measured in the same rounds. Part of ds.c. */
#ifndef BENCH_COMM_H
#define BENCH_COMM_H

/* What is timed. `bytes` are those that all ranks together must read and write for a whole buffer of S bytes, over S, when
   everything is read and written once, where W is the number of ranks. */
typedef struct comm_case {
    const char *label, *key;
    ds_comm_kind kind;
    ds_dtype dtype;
    bool shared;            /* memory of ds_comm_alloc; else private */
    double by_world, fixed; /* bytes = by_world * W + fixed */
    double best, middle;    /* seconds */
    double sent, theory;    /* bytes on the wire of one call of this rank */
} comm_case;
enum { COMM_RMW, COMM_COPY, COMM_FIRST, COMM_CASES = 10, COMM_ROUNDS = 64 };
static const comm_case comm_kinds[COMM_CASES] = {
    {"read, change, write back (ceiling)", "rmw", DS_COMM_BARRIER, DS_F32, true, 2, 0, 0, 0, 0, 0},
    {"copy (memcpy)", "copy", DS_COMM_BARRIER, DS_F32, true, 1, 0, 0, 0, 0, 0},
    {"all_reduce, shared memory", "all_reduce", DS_COMM_ALL_REDUCE, DS_F32, true, 2, 0, 0, 0, 0, 0},
    {"all_reduce, private memory", "all_reduce_private", DS_COMM_ALL_REDUCE, DS_F32, false, 2, 0, 0, 0, 0, 0},
    {"all_reduce, bf16, shared", "all_reduce_bf16", DS_COMM_ALL_REDUCE, DS_BF16, true, 2, 0, 0, 0, 0, 0},
    {"reduce_scatter, shared", "reduce_scatter", DS_COMM_REDUCE_SCATTER, DS_F32, true, 1, 1, 0, 0, 0, 0},
    {"all_gather, shared", "all_gather", DS_COMM_ALL_GATHER, DS_F32, true, 2, -2, 0, 0, 0, 0},
    {"reduce_scatter, private", "reduce_scatter_private", DS_COMM_REDUCE_SCATTER, DS_F32, false, 1, 1, 0, 0, 0, 0},
    {"all_gather, private", "all_gather_private", DS_COMM_ALL_GATHER, DS_F32, false, 2, -2, 0, 0, 0, 0},
    {"1-bit all_reduce", "one_bit", DS_COMM_BARRIER, DS_F32, false, 0, 0, 0, 0, 0, 0},
};

typedef struct comm_bench {
    ds_comm *comm;
    size_t bytes, part; /* of the whole buffer, of a rank's part */
    size_t ceiling;     /* bytes that the ceilings work on, of each rank; for large buffers more than any cache */
    char *shared, *plain, *large;
    float *worker_error, *server_error;
    void *scratch;
    comm_case cases[COMM_CASES];
    double took[COMM_CASES][COMM_ROUNDS], small[COMM_ROUNDS], barrier[COMM_ROUNDS];
} comm_bench;

static void comm_rmw(float *x, size_t count) {
    typedef float vector __attribute__((vector_size(16), aligned(4), may_alias));
    vector *v = (vector *)x;
    for (size_t i = 0; i < count / 16; i++, v += 4)
        v[0] = v[0] + 1.0f, v[1] = v[1] + 1.0f, v[2] = v[2] + 1.0f, v[3] = v[3] + 1.0f;
}

/* One call of a case on this rank. */
static ds_status comm_once(comm_bench *b, size_t which) {
    const comm_case *k = &b->cases[which];
    char *memory = k->shared ? b->shared : b->plain, *mine = memory + b->part * (size_t)ds_comm_rank(b->comm);
    size_t size = DS_DTYPE_SIZE(k->dtype);
    if (which == COMM_RMW) return comm_rmw((float *)(void *)b->large, b->ceiling / 4), DS_OK;
    if (which == COMM_COPY) return memcpy(b->large, b->large + b->ceiling / 2, b->ceiling / 2), DS_OK;
    switch (k->kind) {
    case DS_COMM_ALL_REDUCE:
        return ds_comm_all_reduce(b->comm, memory, memory, b->bytes / size, k->dtype, DS_COMM_AVERAGE);
    case DS_COMM_REDUCE_SCATTER:
        return ds_comm_reduce_scatter(b->comm, memory, mine, b->part / size, NULL, k->dtype, k->dtype, DS_COMM_SUM);
    case DS_COMM_ALL_GATHER: return ds_comm_all_gather(b->comm, mine, memory, b->part / size, NULL, k->dtype);
    default:
        return ds_comm_one_bit_all_reduce(b->comm, (float *)(void *)b->plain, (float *)(void *)b->plain, b->bytes / 4,
                                          b->worker_error, b->server_error, b->scratch);
    }
}

/* Bytes that a call puts on the wire, by the formulas of ds_comm.h. */
static double comm_theory(const comm_bench *b, const comm_case *k) {
    double w = ds_comm_world(b->comm), s = (double)b->bytes;
    if (k->kind == DS_COMM_ALL_REDUCE) return 2 * s * (w - 1) / w;
    if (k->kind == DS_COMM_REDUCE_SCATTER || k->kind == DS_COMM_ALL_GATHER) return s * (w - 1) / w;
    s = (double)ds_comm_one_bit_sizes((int)w, b->bytes / 4).padded;
    return 2 * (s / 8 * (w - 1) / w) + 8 * (w - 1); /* 1-bit */
}
static double comm_sent(const comm_bench *b) {
    ds_comm_stats stats;
    double sum = 0;
    ds_comm_get_stats(b->comm, &stats);
    for (int i = 0; i < DS_COMM_KIND_COUNT; i++) sum += (double)stats.bytes_sent[i];
    return sum;
}

/* Seconds of one call, over so many of them that they last some milliseconds; between two barriers, so that it is the time
   of the slowest rank. */
static ds_status comm_time(comm_bench *b, size_t which, size_t repeat, double *took) {
    ds_status status = ds_comm_barrier(b->comm);
    double start = seconds(), before = comm_sent(b);
    for (size_t i = 0; i < repeat && !status; i++) status = comm_once(b, which);
    b->cases[which].sent = (comm_sent(b) - before) / (double)repeat;
    if (!status) status = ds_comm_barrier(b->comm);
    *took = (seconds() - start) / (double)repeat;
    return status;
}
static ds_status comm_latency(comm_bench *b, bool barrier, double *took) {
    enum { CALLS = 5000 };
    double value = 1, start;
    ds_status status = ds_comm_barrier(b->comm);
    start = seconds();
    for (int i = 0; i < CALLS && !status; i++)
        status =
            barrier ? ds_comm_barrier(b->comm) : ds_comm_all_reduce(b->comm, &value, &value, 1, DS_F64, DS_COMM_MAX);
    *took = (seconds() - start) / CALLS;
    return status;
}

static int comm_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One rank of the measurement; rank 0 keeps the figures. */
static ds_status comm_measure(comm_bench *b, size_t rounds) {
    size_t w = (size_t)ds_comm_world(b->comm), repeat = ((size_t)256 << 20) / b->bytes + 1;
    ds_comm_one_bit sizes = ds_comm_one_bit_sizes((int)w, b->bytes / 4);
    ds_status status = DS_OK;
    memcpy(b->cases, comm_kinds, sizeof comm_kinds);
    b->part = b->bytes / w;
    b->ceiling = 16 * b->bytes < ((size_t)512 << 20) / w ? 16 * b->bytes : ((size_t)512 << 20) / w;
    b->large = (char *)calloc(1, b->ceiling);
    b->shared = (char *)ds_comm_alloc(b->comm, b->bytes);
    b->plain = (char *)calloc(1, b->bytes);
    b->worker_error = (float *)calloc(sizes.padded, 4);
    b->server_error = (float *)calloc(sizes.chunk, 4);
    b->scratch = malloc(sizes.scratch_bytes);
    if (!b->large || !b->shared || !b->plain || !b->worker_error || !b->server_error || !b->scratch) {
        ds_comm_abort(b->comm, "out of memory");
        status = DS_ERR_MEMORY;
    }
    for (size_t r = 0; r <= rounds && !status; r++) /* round 0 touches the memory */
        for (size_t i = 0; i < COMM_CASES && !status; i++)
            status = comm_time(b, i, r && i >= COMM_FIRST ? repeat : 1, &b->took[i][r ? r - 1 : 0]);
    for (size_t r = 0; r < rounds && !status; r++) {
        status = comm_latency(b, false, &b->small[r]);
        if (!status) status = comm_latency(b, true, &b->barrier[r]);
    }
    for (size_t i = 0; i < COMM_CASES && !status; i++) {
        qsort(b->took[i], rounds, sizeof(double), comm_compare);
        b->cases[i].best = b->took[i][0];
        b->cases[i].middle = b->took[i][rounds / 2];
        b->cases[i].theory = i < COMM_FIRST ? 0 : comm_theory(b, &b->cases[i]);
    }
    qsort(b->small, rounds, sizeof(double), comm_compare);
    qsort(b->barrier, rounds, sizeof(double), comm_compare);
    return status;
}

/* Bytes per second that a case reads and writes. */
static double comm_speed(const comm_bench *b, size_t which, double took) {
    const comm_case *k = &b->cases[which];
    double s = which < COMM_FIRST ? (double)b->ceiling : (double)b->bytes;
    return (k->by_world * ds_comm_world(b->comm) + k->fixed) * s / took;
}
static void comm_print(const comm_bench *b, size_t rounds, bool json) {
    const double rmw = comm_speed(b, COMM_RMW, b->cases[COMM_RMW].middle);
    if (json)
        printf("{\"ranks\": %d, \"bytes\": %zu, \"rmw_bytes_per_second\": %.4g, \"copy_bytes_per_second\": %.4g",
               ds_comm_world(b->comm), b->bytes, rmw, comm_speed(b, COMM_COPY, b->cases[COMM_COPY].middle));
    else
        printf("%d ranks, %.6g MiB, %zu rounds; speed and share of the ceiling by medians\n%-36s %9s %9s %7s %6s  %s\n",
               ds_comm_world(b->comm), (double)b->bytes / 1048576, rounds, "", "best ms", "median", "GB/s", "share",
               "sent/theory");
    for (size_t i = 0; i < COMM_CASES; i++) {
        const comm_case *k = &b->cases[i];
        double speed = comm_speed(b, i, k->middle);
        if (json && i >= COMM_FIRST)
            printf(", \"%s\": {\"seconds\": %.4g, \"median_seconds\": %.4g, \"share\": %.4f, \"sent\": %.0f, "
                   "\"theory\": %.0f}",
                   k->key, k->best, k->middle, speed / rmw, k->sent, k->theory);
        if (json) continue;
        printf("%-36s %9.3f %9.3f", k->label, 1e3 * k->best, 1e3 * k->middle);
        if (k->by_world > 0)
            printf(" %7.2f %6.2f", 1e-9 * speed, speed / rmw);
        else
            printf(" %7s %6s", "", "");
        if (k->theory > 0) printf("  %.4f", k->sent / k->theory);
        printf("\n");
    }
    if (json)
        printf(", \"small_seconds\": %.4g, \"small_median_seconds\": %.4g, \"barrier_seconds\": %.4g}\n", b->small[0],
               b->small[rounds / 2], b->barrier[0]);
    else
        printf("all_reduce of 8 bytes: %.2f us (median %.2f); barrier: %.2f us (median %.2f)\n", 1e6 * b->small[0],
               1e6 * b->small[rounds / 2], 1e6 * b->barrier[0], 1e6 * b->barrier[rounds / 2]);
}

/* The life of one rank's process. */
static int comm_rank_main(int rank, int world, const char *run_id, size_t bytes, size_t rounds, bool json) {
    comm_bench *b = (comm_bench *)calloc(1, sizeof *b);
    ds_error error = {DS_OK, ""};
    ds_comm_desc desc;
    ds_status status;
    memset(&desc, 0, sizeof desc);
    desc.backend = world > 1 ? "shm" : "self";
    desc.world = world;
    desc.rank = rank;
    desc.run_id = run_id;
    desc.timeout = (int64_t)60 * 1000000000;
    if (!b) return ENVIRONMENT;
    b->bytes = bytes;
    status = ds_comm_create(&desc, &b->comm, &error);
    if (!status && (status = comm_measure(b, rounds)) != DS_OK) error = *ds_comm_error(b->comm);
    if (!status && rank == 0) comm_print(b, rounds, json);
    if (status) fprintf(stderr, "ds bench comm: %s\n", *error.message ? error.message : "out of memory");
    if (b->shared) ds_comm_free(b->comm, b->shared, bytes);
    ds_comm_destroy(b->comm);
    free(b->large);
    free(b->plain);
    free(b->worker_error);
    free(b->server_error);
    free(b->scratch);
    free(b);
    return status ? ENVIRONMENT : finish(FINE);
}

static int bench_comm(arguments *a) {
    const char *ranks_text = option(a, "--ranks", "2"), *mib = option(a, "--mib", ""), *size = option(a, "--bytes", "");
    const char *rounds_text = option(a, "--rounds", "9");
    const bool json = flag(a, "--json");
    size_t ranks, bytes, rounds, grain;
    char run_id[64];
    int status = operands(a, 1);
    if (status) return status;
    if (!mib || !size || !number(ranks_text, &ranks) || !number(rounds_text, &rounds) ||
        !number(*size  ? size
                : *mib ? mib
                       : "64",
                &bytes))
        return usage(a, "a whole number is wanted after each option", NULL);
    if (!*size) bytes = bytes > (size_t)1 << 20 ? 0 : bytes << 20;
    if (!ranks || ranks > 64 || !rounds || rounds > COMM_ROUNDS || bytes < 4096 * ranks || bytes > (size_t)1 << 40)
        return usage(a, "1 to 64 ranks and rounds, and at least a page per rank are wanted", NULL);
    grain = 4096 * ranks; /* equal parts of whole pages */
    bytes = bytes / grain * grain;
    snprintf(run_id, sizeof run_id, "bench.%d", (int)getpid());
    fflush(NULL);
    for (size_t r = 1; r < ranks; r++) {
        pid_t self = getpid(), child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            _exit(getppid() == self ? comm_rank_main((int)r, (int)ranks, run_id, bytes, rounds, json) : ENVIRONMENT);
        }
        if (child < 0) { /* the others end with this process */
            fprintf(stderr, "ds bench comm: rank %zu: %s\n", r, strerror(errno));
            return ENVIRONMENT;
        }
    }
    status = comm_rank_main(0, (int)ranks, run_id, bytes, rounds, json);
    for (int ended = 0; wait(&ended) > 0;)
        if (!WIFEXITED(ended) || WEXITSTATUS(ended)) status = ENVIRONMENT;
    return status;
}
#endif
