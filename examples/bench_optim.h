/* bench_optim.h - ds bench optim: each optimizer's step as a share of the memory's own speed, measured in the same rounds.
   Part of ds.c, which has the arguments, `seconds` and the peak of multiply-adds. */
#ifndef BENCH_OPTIM_H
#define BENCH_OPTIM_H
#include <pthread.h>
#include <sys/mman.h>
#if EXAMPLE_USE_CBLAS
#include <cblas.h>
void openblas_set_num_threads(int threads);
#endif

/* ---- ceilings, by the same number of threads ---- */

typedef struct stream_part {
    float *x;
    size_t count, apart; /* of each array; from one array to the next */
    int read, written;   /* arrays; the last of them are written */
} stream_part;
/* Adds up what lies at one place of each array, and writes the sum to those that are written: the least that a pass of
   this shape can do, in the widest vectors that the machine has. One array read and written is the plain
   read-modify-write; what is only read waits for each line, so it has a ceiling of its own. */
static volatile float stream_sink;
#define STREAM_AT(r) (*(vector *)(x + (r)*apart + i))
#define STREAM_EACH  for (size_t i = 0; i + lanes <= s->count; i += lanes)
#define STREAM_SUM3  STREAM_AT(0) + STREAM_AT(1) + STREAM_AT(2)
#define STREAM(NAME, BYTES, TARGET)                                                                                    \
    TARGET static void NAME(const stream_part *s) {                                                                    \
        typedef float vector __attribute__((vector_size(BYTES), aligned(4), may_alias));                               \
        const size_t lanes = BYTES / sizeof(float), apart = s->apart;                                                  \
        float *const x = s->x;                                                                                         \
        vector sum, sums[4] = {{0}, {0}, {0}, {0}};                                                                    \
        switch (10 * s->read + s->written) {                                                                           \
        case 10:                                                                                                       \
            for (size_t at = 0; at + 4 * lanes <= s->count; at += 4 * lanes)                                           \
                for (size_t k = 0, i = at; k < 4; k++, i += lanes) sums[k] += STREAM_AT(0);                            \
            stream_sink = sums[0][0] + sums[1][0] + sums[2][0] + sums[3][0];                                           \
            return;                                                                                                    \
        case 11: STREAM_EACH STREAM_AT(0) = STREAM_AT(0) + 1.0f; return;                                               \
        case 21: STREAM_EACH STREAM_AT(1) = STREAM_AT(0) + STREAM_AT(1); return;                                       \
        case 31: STREAM_EACH STREAM_AT(2) = STREAM_SUM3; return;                                                       \
        case 32: STREAM_EACH sum = STREAM_SUM3, STREAM_AT(1) = sum, STREAM_AT(2) = sum; return;                        \
        case 42: STREAM_EACH sum = STREAM_SUM3 + STREAM_AT(3), STREAM_AT(2) = sum, STREAM_AT(3) = sum; return;         \
        default:                                                                                                       \
            STREAM_EACH sum = STREAM_SUM3 + STREAM_AT(3), STREAM_AT(1) = sum, STREAM_AT(2) = sum, STREAM_AT(3) = sum;  \
        }                                                                                                              \
    }
STREAM(stream_16, 16, )
#if defined(__x86_64__)
STREAM(stream_32, 32, __attribute__((target("avx2"))))
STREAM(stream_64, 64, __attribute__((target("avx512f"))))
#endif
static void *stream_run(void *arg) {
    const stream_part *s = (const stream_part *)arg;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        stream_64(s);
    else if (__builtin_cpu_supports("avx2"))
        stream_32(s);
    else
#endif
        stream_16(s);
    return NULL;
}
/* Bytes read and written per second. */
static double stream_speed(float *x, size_t count, int read, int written, size_t threads) {
    pthread_t thread[64];
    stream_part part[64];
    size_t started = 0;
    double start = seconds();
    for (size_t i = 0; i < threads; i++) {
        stream_part p = {x + count / threads / 16 * 16 * i, count / threads, count / 16 * 16, read, written};
        part[i] = p;
        if (i + 1 == threads || pthread_create(&thread[started], NULL, stream_run, &part[i]) != 0)
            stream_run(&part[i]);
        else
            started++;
    }
    while (started) pthread_join(thread[--started], NULL);
    return 4.0 * (read + written) * (double)count / (seconds() - start);
}

/* ---- steps ---- */

enum { PASSES = 3 };
typedef struct optim_pass {
    double bytes;      /* read and written per element */
    int read, written; /* arrays of fp32 that have about its bytes */
    double best;       /* seconds that these take, for its bytes */
} optim_pass;
typedef struct optim_case {
    const char *label, *type;
    double momentum;
    bool mixed;              /* bf16 gradients in, bf16 weights out, a norm first; else fp32 and no norm */
    size_t tensors;          /* equal parts of the elements */
    optim_pass pass[PASSES]; /* over memory, one after the other */
    double best;             /* seconds */
    double rmw;              /* the best of the ceiling, bytes per second */
    double median;           /* of the rounds' own shares of the shapes' speed, which a noisy machine troubles less */
} optim_case;
static double optim_bytes(const optim_case *c) {
    return c->pass[0].bytes + c->pass[1].bytes + c->pass[2].bytes;
}
static double optim_bound(const optim_case *c) {
    return c->pass[0].best + c->pass[1].best + c->pass[2].best;
}
/* Seconds of adds alone over as many arrays as each pass reads and writes, for its bytes. */
static double optim_shapes(optim_case *c, size_t elements, size_t threads, bool keep, float *memory) {
    double all = 0;
    for (optim_pass *p = c->pass; p < c->pass + PASSES && p->bytes > 0; p++) {
        const double took = p->bytes * (double)elements / stream_speed(memory, elements, p->read, p->written, threads);
        if (keep && (p->best <= 0 || took < p->best)) p->best = took;
        all += took;
    }
    return all;
}

static bool optim_open(const optim_case *c, size_t elements, size_t threads, ds_optim_level level, ds_optim **out,
                       ds_error *error) {
    ds_optim_params group;
    ds_optim_desc desc;
    struct {
        char text[32];
    } *names = calloc(c->tensors, sizeof *names);
    ds_optim_tensor *tensors = (ds_optim_tensor *)calloc(c->tensors, sizeof *tensors);
    memset(&desc, 0, sizeof desc);
    ds_optim_params_default(c->type, &group);
    group.lr = 1e-4;
    group.momentum = c->momentum;
    desc.type = c->type;
    desc.groups = &group;
    desc.group_count = 1;
    desc.tensors = tensors;
    desc.tensor_count = c->tensors;
    desc.own_states = true;
    desc.threads = (unsigned)threads;
    desc.level = level;
    for (size_t i = 0; tensors && names && i < c->tensors; i++) {
        snprintf(names[i].text, sizeof names[i].text, "tensor %zu", i);
        tensors[i].name = names[i].text;
        tensors[i].rows = 1;
        tensors[i].cols = elements / c->tensors;
        tensors[i].weights_dtype = c->mixed ? DS_BF16 : DS_F32;
    }
    if (tensors && names)
        ds_optim_create(&desc, out, error);
    else
        error->status = DS_ERR_MEMORY;
    free(names);
    free(tensors);
    return !error->status;
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
/* The best of the rounds, with the ceilings measured between them: as often, over as much memory. */
static bool optim_measure(optim_case *c, size_t elements, size_t threads, ds_optim_level level, size_t rounds,
                          float *memory, ds_error *error) {
    ds_optim_options options = {1.0, NULL, false};
    ds_optim_io *io = (ds_optim_io *)calloc(c->tensors, sizeof *io);
    const size_t each = elements / c->tensors, width = c->mixed ? 2 : 4;
    char *weights = (char *)memory, *grads = weights + 4 * elements;
    double *shares = (double *)calloc(rounds + 1, sizeof *shares);
    ds_optim *o = NULL;
    options.unchecked = !c->mixed;
    if (!c->mixed) options.max_norm = 0;
    for (size_t i = 0; i < elements; i++) {
        const float x = (float)((i * 2654435761u >> 12) % 2048) / 1024 - 1;
        if (c->mixed) {
            ((uint16_t *)weights)[i] = dsi_bf16_of_f32(x);
            ((uint16_t *)grads)[i] = dsi_bf16_of_f32(0.01f * x);
        } else {
            ((float *)weights)[i] = x;
            ((float *)grads)[i] = 0.01f * x;
        }
    }
    for (size_t i = 0; io && i < c->tensors; i++) {
        io[i].weights = weights + i * each * width;
        io[i].grad = grads + i * each * width;
        io[i].weights_dtype = io[i].grad_dtype = c->mixed ? DS_BF16 : DS_F32;
    }
    if (!io || !shares) error->status = DS_ERR_MEMORY;
    if (io && shares && optim_open(c, elements, threads, level, &o, error))
        for (size_t r = 0; r <= rounds && !error->status; r++) { /* the first round touches the states */
            double start = seconds(), took, rmw, bound;
            if (ds_optim_step(o, io, &options, NULL)) *error = *ds_optim_error(o);
            took = seconds() - start;
            if (r && (c->best <= 0 || took < c->best)) c->best = took;
            rmw = stream_speed(memory + 2 * elements, 4 * elements, 1, 1, threads);
            bound = optim_shapes(c, elements, threads, r > 0, memory + 2 * elements);
            if (r && rmw > c->rmw) c->rmw = rmw;
            shares[r] = r ? bound / took : 0; /* the first sorts first */
        }
    if (!error->status) {
        qsort(shares, rounds + 1, sizeof *shares, by_size);
        c->median = shares[(rounds + 2) / 2];
    }
    ds_optim_destroy(o);
    free(shares);
    free(io);
    return !error->status;
}

/* ---- Muon's matrix iteration ---- */

typedef struct muon_case {
    const char *label;
    ds_optim_ns method;
    bool blas;
    double best;
} muon_case;
static void blas_product(void *ctx, bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, float alpha,
                         const float *a, size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    (void)ctx;
#if EXAMPLE_USE_CBLAS
    cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans, (int)m,
                (int)n, (int)k, alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
#else
    (void)transpose_a, (void)transpose_b, (void)m, (void)n, (void)k, (void)alpha, (void)a, (void)lda, (void)b,
        (void)ldb;
    (void)beta, (void)c, (void)ldc;
#endif
}
static bool muon_measure(muon_case *c, size_t rows, size_t cols, size_t threads, float *memory, ds_error *error) {
    ds_optim_params group;
    ds_optim_desc desc;
    ds_optim_tensor tensor;
    ds_optim_io io;
    ds_optim_options options = {0, NULL, true};
    ds_optim *o = NULL;
    double start = seconds();
    memset(&desc, 0, sizeof desc);
    memset(&tensor, 0, sizeof tensor);
    ds_optim_params_default("Muon", &group);
    group.ns_method = c->method;
    tensor.name = "matrix";
    tensor.rows = rows;
    tensor.cols = cols;
    desc.type = "Muon";
    desc.groups = &group;
    desc.group_count = 1;
    desc.tensors = &tensor;
    desc.tensor_count = 1;
    desc.own_states = true;
    desc.threads = (unsigned)threads;
    if (c->blas) desc.gemm.gemm = blas_product;
    io.weights = memory;
    io.grad = memory + rows * cols;
    io.weights_dtype = io.grad_dtype = DS_F32;
    if (ds_optim_create(&desc, &o, error)) return false;
    start = seconds();
    if (ds_optim_step(o, &io, &options, NULL)) *error = *ds_optim_error(o);
    start = seconds() - start;
    if (c->best <= 0 || start < c->best) c->best = start;
    ds_optim_destroy(o);
    return !error->status;
}

/* ---- the table ---- */

static void optim_print(const optim_case *cases, size_t count, size_t elements, bool json) {
    double rmw = 0;
    for (size_t i = 0; i < count; i++) rmw = cases[i].rmw > rmw ? cases[i].rmw : rmw;
    if (json)
        printf("{\"rmw_bytes_per_second\": %.4g, \"elements\": %zu", rmw, elements);
    else
        printf(
            "read-modify-write of one array (the ceiling): %.2f GB/s at best; \"of shape\": of adds alone over as "
            "many\n"
            "arrays read and written, pass by pass, best of each and the rounds' median\n%-36s %9s %9s %10s %9s %9s\n",
            1e-9 * rmw, "step", "bytes/el", "ms", "of ceiling", "of shape", "median");
    for (size_t i = 0; i < count; i++) {
        const double bytes = optim_bytes(&cases[i]), speed = bytes * (double)elements / cases[i].best;
        if (json)
            printf(", \"%s\": {\"bytes\": %g, \"seconds\": %.4g, \"of_ceiling\": %.3f, \"of_shape\": %.3f, "
                   "\"of_shape_median\": "
                   "%.3f}",
                   cases[i].label, bytes, cases[i].best, speed / cases[i].rmw, optim_bound(&cases[i]) / cases[i].best,
                   cases[i].median);
        else
            printf("%-36s %9.0f %9.2f %10.2f %9.2f %9.2f\n", cases[i].label, bytes, 1e3 * cases[i].best,
                   speed / cases[i].rmw, optim_bound(&cases[i]) / cases[i].best, cases[i].median);
    }
}

static int bench_optim(arguments *a) {
    optim_case cases[] = {
        {"AdamW fp32", "AdamW", 0, false, 1, {{28, 4, 3, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}, 0, 0, 0},
        {"SGD fp32", "SGD", 0, false, 1, {{12, 2, 1, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}, 0, 0, 0},
        {"SGD with momentum fp32", "SGD", 0.9, false, 1, {{20, 3, 2, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}, 0, 0, 0},
        {"Adagrad fp32", "Adagrad", 0, false, 1, {{20, 3, 2, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}, 0, 0, 0},
        {"Lion fp32", "Lion", 0, false, 1, {{20, 3, 2, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}, 0, 0, 0},
        {"Lamb fp32", "Lamb", 0, false, 1, {{24, 4, 2, 0}, {16, 3, 1, 0}, {0, 0, 0, 0}}, 0, 0, 0},
        {"AdamW bf16, norm, clip", "AdamW", 0, true, 1, {{2, 1, 0, 0}, {28, 4, 3, 0}, {0, 0, 0, 0}}, 0, 0, 0},
        {"SGD with momentum bf16, norm, clip",
         "SGD",
         0.9,
         true,
         1,
         {{2, 1, 0, 0}, {20, 3, 2, 0}, {0, 0, 0, 0}},
         0,
         0,
         0},
        {"Lion bf16, norm, clip", "Lion", 0, true, 1, {{2, 1, 0, 0}, {20, 3, 2, 0}, {0, 0, 0, 0}}, 0, 0, 0},
        {"Lamb bf16, norm, clip", "Lamb", 0, true, 1, {{2, 1, 0, 0}, {22, 4, 2, 0}, {18, 3, 1, 0}}, 0, 0, 0}};
    enum { CASES = sizeof cases / sizeof cases[0], MATRICES = 3 };
    optim_case small = {"AdamW fp32, 1,000 tensors of 1 K",          "AdamW", 0, false, 1000,
                        {{28, 4, 3, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}}, 0,       0, 0};
    muon_case matrices[MATRICES] = {{"plain", DS_OPTIM_NS_STANDARD, false, 0},
                                    {"Gram", DS_OPTIM_NS_GRAM, false, 0},
                                    {"plain, linked BLAS", DS_OPTIM_NS_STANDARD, true, 0}};
    static const char *const levels[] = {"best", "scalar", "avx2", "avx512"}; /* as ds_optim_level counts them */
    const char *wanted = option(a, "--level", "best");
    size_t elements, threads, rounds, rows, level = 0;
    ds_error error = {DS_OK, ""};
    float *memory;
    void *block = NULL;
    size_t floats;
    const bool json = flag(a, "--json");
    int status;
    if (!number(option(a, "--elements", "16777216"), &elements) || !number(option(a, "--threads", "1"), &threads) ||
        !number(option(a, "--rounds", "9"), &rounds) || !number(option(a, "--rows", "384"), &rows))
        return usage(a, "a whole number is wanted after each option", NULL);
    if (!wanted) return usage(a, "a level is wanted after --level", NULL);
    if ((status = operands(a, 1)) != FINE) return status;
    while (level < 4 && strcmp(wanted, levels[level]) != 0) level++;
    if (level == 4) return usage(a, "a level is one of best, scalar, avx2 and avx512, not", wanted);
    if (elements < 1024000 || elements > (size_t)1 << 34 || !threads || threads > 64 || !rounds || !rows || rows > 8192)
        return usage(a, "at least 1,024,000 elements, 1 to 64 threads and 1 to 8,192 rows are wanted", NULL);
    floats = 6 * elements > 8 * rows * rows ? 6 * elements : 8 * rows * rows;
    if (posix_memalign(&block, (size_t)2 << 20, floats * sizeof *memory)) error.status = DS_ERR_MEMORY;
#ifdef MADV_HUGEPAGE
    if (block) (void)madvise(block, floats * sizeof *memory, MADV_HUGEPAGE); /* for steps and ceilings alike */
#endif
    memory = (float *)block;
    if (memory) memset(memory, 0, floats * sizeof *memory); /* its pages are there before anything is timed */
    for (size_t i = 0; i < CASES && !error.status; i++)
        optim_measure(&cases[i], elements, threads, (ds_optim_level)level, rounds, memory, &error);
    if (!error.status) optim_measure(&small, 1024000, threads, (ds_optim_level)level, 20 * rounds, memory, &error);
    for (size_t i = 0; !error.status && i < 8 * rows * rows; i++)
        memory[i] = (float)((i * 2654435761u >> 12) % 2048) / 1024 - 1;
#if EXAMPLE_USE_CBLAS
    openblas_set_num_threads((int)threads);
#endif
    for (size_t r = 0; r < rounds && !error.status; r++)
        for (size_t i = 0; i < MATRICES; i++)
            if (!matrices[i].blas || EXAMPLE_USE_CBLAS)
                if (!muon_measure(&matrices[i], rows, 4 * rows, threads, memory, &error)) break;
    free(memory);
    if (error.status) {
        fprintf(stderr, "ds bench optim: %s\n", error.message[0] ? error.message : "out of memory");
        return ENVIRONMENT;
    }
    optim_print(cases, CASES, elements, json);
    if (json) {
        printf(", \"thousand_tensors_seconds\": %.4g, \"muon_plain_seconds\": %.4g, \"muon_gram_seconds\": %.4g, "
               "\"muon_blas_seconds\": %.4g}\n",
               small.best, matrices[0].best, matrices[1].best, matrices[2].best);
        return finish(FINE);
    }
    printf("%-36s %9.0f %9.3f\n", small.label, optim_bytes(&small), 1e3 * small.best);
    printf("Newton-Schulz of a %zu x %zu matrix: plain %.2f ms, Gram %.2f ms", rows, 4 * rows, 1e3 * matrices[0].best,
           1e3 * matrices[1].best);
    if (matrices[2].best > 0)
        printf(", plain by the linked BLAS %.2f ms (ours at %.2f of its speed)", 1e3 * matrices[2].best,
               matrices[2].best / matrices[0].best);
    putchar('\n');
    return finish(FINE);
}
#endif
