/* bench_sparse.h - ds bench sparse: attention over layouts of several densities, beside the same code over a dense one,
   beside the fused multiply-adds that the machine reaches in registers and beside what its memory lets it reach, measured
   in the same rounds. Part of ds.c. */
#ifndef BENCH_SPARSE_H
#define BENCH_SPARSE_H

/* What fused multiply-adds on vectors of one width can reach: 12 chains, so that their latency is hidden; a burst of a
   millisecond, as short as what it is compared with, so that a busy machine disturbs both alike. */
#define PEAK_STEPS 250000
#define PEAK(name, bytes, target)                                                                                      \
    target static double name(void) {                                                                                  \
        typedef float vector __attribute__((vector_size(bytes)));                                                      \
        vector c[12], x, y;                                                                                            \
        double start, took;                                                                                            \
        volatile float keep = 0;                                                                                       \
        for (size_t i = 0; i < 12; i++) c[i] = (vector){0};                                                            \
        x = c[0] + 0.999f;                                                                                             \
        y = c[0] + 0.001f;                                                                                             \
        start = seconds();                                                                                             \
        for (int i = 0; i < PEAK_STEPS; i++) {                                                                         \
            c[0] = c[0] * x + y, c[1] = c[1] * x + y, c[2] = c[2] * x + y, c[3] = c[3] * x + y;                        \
            c[4] = c[4] * x + y, c[5] = c[5] * x + y, c[6] = c[6] * x + y, c[7] = c[7] * x + y;                        \
            c[8] = c[8] * x + y, c[9] = c[9] * x + y, c[10] = c[10] * x + y, c[11] = c[11] * x + y;                    \
        }                                                                                                              \
        took = seconds() - start;                                                                                      \
        for (size_t i = 0; i < 12; i++) keep = keep + c[i][0];                                                         \
        return 2.0 * 12 * (bytes / 4) * PEAK_STEPS / took;                                                             \
    }
#if defined(__x86_64__)
PEAK(peak_avx2, 32, __attribute__((target("avx2,fma"))))
PEAK(peak_avx512, 64, __attribute__((target("avx512f"))))
#endif
PEAK(peak_plain, 16, )

typedef struct sparse_case {
    const char *name;
    ds_sparse_layout *layout;
    ds_sparse *attention;
    ds_sparse_io io;
    size_t bytes;                                           /* of q */
    double forward, backward, peak, stream, layout_seconds; /* best times; the machine's best rate */
} sparse_case;
static double peak_of(const ds_sparse *attention) {
#if defined(__x86_64__)
    if (ds_sparse_simd_level(attention) == DS_SPARSE_LEVEL_AVX512) return peak_avx512();
    if (ds_sparse_simd_level(attention) == DS_SPARSE_LEVEL_AVX2) return peak_avx2();
#endif
    (void)attention;
    return peak_plain();
}
/* Seconds in which one thread reads q, k and v and writes out, which forward must do too. */
static double stream_of(const sparse_case *c) {
    typedef float vector __attribute__((vector_size(16), aligned(4), may_alias));
    const vector *q = (const vector *)c->io.q, *k = (const vector *)c->io.k, *v = (const vector *)c->io.v;
    vector *out = (vector *)c->io.out;
    double start = seconds();
    for (size_t i = 0; i < c->bytes / sizeof(vector); i++) out[i] = q[i] + k[i] + v[i];
    return seconds() - start;
}
/* Another round of every case, of the peak and of the memory, so that all see the same moods of the machine. */
static bool sparse_round(sparse_case *cases, size_t count) {
    for (size_t i = 0; i < count; i++) {
        sparse_case *c = &cases[i];
        double start, middle, end, peak = 0, stream = stream_of(c);
        start = seconds();
        if (ds_sparse_forward(c->attention, &c->io)) return false;
        middle = seconds();
        if (ds_sparse_backward(c->attention, &c->io)) return false;
        end = seconds();
        for (int k = 0; k < 4; k++) peak = fmax(peak, peak_of(c->attention));
        if (c->forward <= 0 || middle - start < c->forward) c->forward = middle - start;
        if (c->backward <= 0 || end - middle < c->backward) c->backward = end - middle;
        for (size_t k = 0; k < count; k++) {
            if (peak > cases[k].peak) cases[k].peak = peak;
            if (cases[k].stream <= 0 || stream < cases[k].stream) cases[k].stream = stream;
        }
    }
    return true;
}
/* The part of the peak that memory allows forward of the sparsest case. */
static double allowed(const sparse_case *cases, size_t count, size_t threads) {
    double least = 1;
    for (size_t i = 0; i < count; i++)
        least = fmin(least, ds_sparse_flops(cases[i].attention, 1, 0, false) /
                                (cases[i].peak * (double)threads * cases[i].stream));
    return least;
}
static double bound(double density, double dense) {
    return 1.15 * density * dense + 0.02 * dense;
}
static void print_sparse(const sparse_case *cases, size_t count, size_t tokens, size_t threads, bool json) {
    const sparse_case *dense = &cases[0];
    double all;
    ds_sparse_info info;
    ds_sparse_layout_info(dense->layout, &info);
    all = 4.0 * (double)info.heads * (double)tokens * (double)tokens;
    if (json)
        printf("{\"fma_flops_per_second\": %.4g, \"stream_bytes_per_second\": %.4g, \"cases\": [", dense->peak,
               4 * (double)dense->bytes / dense->stream);
    else
        printf("fused multiply-adds in registers (the ceiling): %.1f GFLOP/s on one of %zu threads\n"
               "memory: one thread reads q, k, v and writes out at %.1f GB/s, which allows forward of each layout at "
               "least "
               "%.2f of that\n"
               "%zu heads, %zu tokens, blocks of %zu; the bound is 1.15 x density x dense + 2 %% of dense\n"
               "%-20s %8s %21s %21s %21s %13s %10s %8s\n",
               1e-9 * dense->peak, threads, 4e-9 * (double)dense->bytes / dense->stream, allowed(cases, count, threads),
               info.heads, tokens, info.block, "layout", "density", "forward ms, of peak", "backward ms, of peak",
               "time/(density*dense)", "of bound", "layout us", "MB held");
    for (size_t i = 0; i < count; i++) {
        const sparse_case *c = &cases[i];
        double ceiling = c->peak * (double)threads, forward, backward;
        forward = ds_sparse_flops(c->attention, 1, 0, false) / c->forward / ceiling;
        backward = ds_sparse_flops(c->attention, 1, 0, true) / c->backward / ceiling;
        ds_sparse_layout_info(c->layout, &info);
        if (json)
            printf(
                "%s\n  {\"layout\": \"%s\", \"density\": %.6g, \"forward_seconds\": %.4g, \"forward_of_peak\": %.4g, "
                "\"backward_seconds\": %.4g, \"backward_of_peak\": %.4g, \"layout_seconds\": %.4g, \"bytes\": %zu}",
                i ? "," : "", c->name, info.density, c->forward, forward, c->backward, backward, c->layout_seconds,
                ds_sparse_memory(c->attention));
        else
            printf("%-20s %8.3f %14.2f  %5.2f %14.2f  %5.2f %14.2f  %5.2f %6.2f  %5.2f %10.0f %8.1f\n", c->name,
                   info.density, 1e3 * c->forward, forward, 1e3 * c->backward, backward,
                   c->forward / (info.density * dense->forward), c->backward / (info.density * dense->backward),
                   c->forward / bound(info.density, dense->forward), c->backward / bound(info.density, dense->backward),
                   1e6 * c->layout_seconds, 1e-6 * (double)ds_sparse_memory(c->attention));
    }
    if (json)
        printf("]}\n");
    else
        printf("a buffer of all scores, which none of these has, would take %.1f MB\n", 1e-6 * all);
}
static bool open_case(sparse_case *c, const ds_sparse_params *params, size_t tokens, size_t dim, size_t threads,
                      ds_error *error) {
    ds_sparse_desc desc;
    double start = seconds();
    memset(&desc, 0, sizeof desc);
    if (ds_sparse_layout_create(params, tokens, NULL, &c->layout, error)) return false;
    c->layout_seconds = seconds() - start;
    c->bytes = params->heads * tokens * dim * sizeof(float);
    desc.layout = c->layout;
    desc.head_dim = dim;
    desc.threads = (unsigned)threads;
    return ds_sparse_create(&desc, &c->attention, error) == DS_OK;
}
/* Ten times the tokens over a window of three blocks, forward and backward once: seconds, 0 when it fails. */
static double ten_times_longer(const sparse_case *like, size_t dim, size_t threads, size_t *held) {
    ds_sparse_params params;
    ds_sparse_info info;
    ds_error error = {DS_OK, ""};
    sparse_case c;
    float *memory;
    size_t tokens, n;
    memset(&c, 0, sizeof c);
    ds_sparse_layout_info(like->layout, &info);
    tokens = 10 * info.seq_len;
    n = info.heads * tokens * dim;
    ds_sparse_params_default("local_sliding_window", &params, NULL);
    params.heads = info.heads;
    params.block = info.block;
    memory = (float *)calloc(8 * n + 2 * info.heads * tokens, sizeof *memory);
    c.io.q = memory, c.io.k = memory + n, c.io.v = memory + 2 * n, c.io.out = memory + 3 * n;
    c.io.d_out = memory + 4 * n, c.io.d_q = memory + 5 * n, c.io.d_k = memory + 6 * n, c.io.d_v = memory + 7 * n;
    c.io.lse = memory + 8 * n;
    if (memory && open_case(&c, &params, tokens, dim, threads, &error)) sparse_round(&c, 1);
    if (c.attention) *held = ds_sparse_memory(c.attention);
    ds_sparse_destroy(c.attention);
    ds_sparse_layout_destroy(c.layout);
    free(memory);
    return c.forward + c.backward;
}
/* Dense, a sliding window and the fixed pattern at doubling lengths: time forward and backward, memory of the attention. */
static int bench_lengths(size_t heads, size_t most, size_t dim, size_t block, size_t threads, size_t rounds,
                         bool json) {
    static const char *const modes[3] = {"dense", "local_sliding_window", "fixed"};
    ds_error error = {DS_OK, ""};
    float *memory = (float *)calloc(heads * most * (8 * dim + 2), sizeof *memory);
    if (json)
        printf("[");
    else
        printf("%zu heads of %zu, blocks of %zu, %zu thread%s; milliseconds forward and backward, MB held, density\n"
               "%8s %21s %29s %29s %14s\n",
               heads, dim, block, threads, threads > 1 ? "s" : "", "tokens", modes[0], modes[1], modes[2],
               "all scores");
    for (size_t tokens = 1024; memory && tokens <= most && !error.status; tokens *= 2) {
        const size_t n = heads * tokens * dim;
        for (size_t i = 0; i < 8 * n; i++) memory[i] = (float)((i * 2654435761u >> 8) % 1024) / 512 - 1;
        printf(json ? "%s\n  {\"tokens\": %zu" : "%s%8zu", json && tokens > 1024 ? "," : "", tokens);
        for (size_t k = 0; k < 3 && !error.status; k++) {
            sparse_case c;
            ds_sparse_params params;
            ds_sparse_info info;
            memset(&c, 0, sizeof c);
            ds_sparse_params_default(modes[k], &params, NULL);
            params.heads = heads;
            params.block = block;
            c.io.q = memory, c.io.k = memory + n, c.io.v = memory + 2 * n, c.io.out = memory + 3 * n;
            c.io.d_out = memory + 4 * n, c.io.d_q = memory + 5 * n, c.io.d_k = memory + 6 * n;
            c.io.d_v = memory + 7 * n, c.io.lse = memory + 8 * n;
            if (open_case(&c, &params, tokens, dim, threads, &error)) {
                for (size_t r = 0; r < rounds; r++) sparse_round(&c, 1);
                ds_sparse_layout_info(c.layout, &info);
                if (json)
                    printf(", \"%s\": {\"seconds\": %.4g, \"bytes\": %zu, \"density\": %.4g}", modes[k],
                           c.forward + c.backward, ds_sparse_memory(c.attention), info.density);
                else
                    printf("%12.1f %8.1f", 1e3 * (c.forward + c.backward),
                           1e-6 * (double)ds_sparse_memory(c.attention));
                if (!json && k) printf(" %7.3f", info.density);
            }
            ds_sparse_destroy(c.attention);
            ds_sparse_layout_destroy(c.layout);
        }
        if (json)
            printf("}");
        else
            printf(" %11.0f MB\n", 4e-6 * (double)heads * (double)tokens * (double)tokens);
    }
    if (json) printf("]\n");
    if (!memory || error.status) fprintf(stderr, "ds bench sparse: %s\n", memory ? error.message : "out of memory");
    free(memory);
    if (memory && !error.status) return finish(FINE);
    return finish(memory && !DS_IS_ENVIRONMENT(error.status) ? INPUT : ENVIRONMENT);
}
static int bench_sparse(arguments *a) {
    enum { CASES = 8 };
    static const struct {
        const char *name, *mode;
        size_t part; /* the sliding window is this part of the blocks */
    } kinds[CASES] = {{"dense", "dense", 0},
                      {"window, a 32nd", "local_sliding_window", 32},
                      {"window, a 16th", "local_sliding_window", 16},
                      {"window, an 8th", "local_sliding_window", 8},
                      {"window, a quarter", "local_sliding_window", 4},
                      {"window, half", "local_sliding_window", 2},
                      {"fixed", "fixed", 0},
                      {"bigbird, 2 random", "bigbird", 16}};
    size_t tokens, heads, dim, block, threads, rounds, n;
    sparse_case cases[CASES];
    ds_error error = {DS_OK, ""};
    float *memory = NULL;
    const bool json = flag(a, "--json"), lengths = flag(a, "--lengths");
    int status;
    if (!number(option(a, "--seq-len", lengths ? "16384" : "2048"), &tokens) ||
        !number(option(a, "--heads", "2"), &heads) || !number(option(a, "--head-dim", "64"), &dim) ||
        !number(option(a, "--block", "64"), &block) || !number(option(a, "--threads", "1"), &threads) ||
        !number(option(a, "--rounds", "7"), &rounds))
        return usage(a, "a whole number is wanted after each option", NULL);
    if ((status = operands(a, 1)) != FINE) return status;
    if (!block || !threads || !tokens || tokens > (size_t)1 << 24 || heads > 4096 || dim > 4096)
        return usage(a, "numbers of at least 1 are wanted, and of a size that fits memory", NULL);
    if (lengths && tokens < 1024) return usage(a, "--lengths begins at 1,024 tokens; --seq-len is below", NULL);
    if (lengths) return bench_lengths(heads, tokens, dim, block, threads, rounds, json);
    memset(cases, 0, sizeof cases);
    n = heads * tokens * dim;
    memory = (float *)malloc((8 * n + 2 * heads * tokens) * sizeof *memory);
    for (size_t i = 0; memory && i < 8 * n; i++) memory[i] = (float)((i * 2654435761u >> 8) % 1024) / 512 - 1;
    for (size_t i = 0; i < CASES && memory && !error.status; i++) {
        ds_sparse_params params;
        ds_sparse_params_default(kinds[i].mode, &params, NULL);
        params.heads = heads;
        params.block = block;
        params.unidirectional = false;
        if (kinds[i].part) params.num_sliding_window_blocks = tokens / block / kinds[i].part | 1;
        if (params.mode == DS_SPARSE_BIGBIRD) params.num_random_blocks = 2;
        cases[i].name = kinds[i].name;
        cases[i].io.q = memory, cases[i].io.k = memory + n, cases[i].io.v = memory + 2 * n;
        cases[i].io.out = memory + 3 * n, cases[i].io.d_out = memory + 4 * n, cases[i].io.d_q = memory + 5 * n;
        cases[i].io.d_k = memory + 6 * n, cases[i].io.d_v = memory + 7 * n, cases[i].io.lse = memory + 8 * n;
        open_case(&cases[i], &params, tokens, dim, threads, &error);
    }
    for (size_t r = 0; r < rounds && memory && !error.status; r++) sparse_round(cases, CASES);
    if (!memory || error.status) {
        fprintf(stderr, "ds bench sparse: %s\n", memory ? error.message : "out of memory");
        status = memory && !DS_IS_ENVIRONMENT(error.status) ? INPUT : ENVIRONMENT;
    } else {
        size_t held = 0;
        double took = json ? 0 : ten_times_longer(&cases[0], dim, threads, &held);
        print_sparse(cases, CASES, tokens, threads, json);
        if (took > 0)
            printf("%zu tokens over a window of 3 blocks: %.1f ms forward and backward, %.1f MB held, %.1f MB with q "
                   "to d_v\n",
                   10 * tokens, 1e3 * took, 1e-6 * (double)held,
                   1e-6 * (double)(held + heads * 10 * tokens * (8 * dim + 2) * sizeof(float)));
    }
    for (size_t i = 0; i < CASES; i++) {
        ds_sparse_destroy(cases[i].attention);
        ds_sparse_layout_destroy(cases[i].layout);
    }
    free(memory);
    return finish(status);
}
#endif
