/* A small model trained on ranks that are threads, with every choice of the configuration as data: what the tests of the
   engine share. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"

enum { N_PARAMS = 7, MAX_WORLD = 8 };

/* Sizes around the grain: none, one, less than a grain, a grain, several, not a multiple. */
static const size_t shapes[N_PARAMS][2] = {{3, 1}, {1024, 1}, {50, 61}, {1, 1}, {0, 1}, {129, 64}, {16, 40}};
static const char *const names[N_PARAMS] = {"bias", "grain", "matrix", "one", "empty", "large", "last"};

static size_t numel(size_t i) {
    return shapes[i][0] * shapes[i][1];
}

static float initial(size_t i, size_t e) {
    return (float)((double)((e * 2654435761u + i * 40503u) % 2001) / 1000.0 - 1.0);
}

static void init(void *ctx, size_t begin, size_t count, float *out) {
    for (size_t k = 0; k < count; k++) out[k] = initial((size_t)(uintptr_t)ctx, begin + k);
}

/* The gradient that a rank gives: different for each rank, micro-batch and step, with a spread of magnitudes, so that the
   order of sums shows in the bits. */
static float gradient(size_t i, size_t e, int rank, int micro, int step, int contribution) {
    uint64_t state = e * 1000003u + i * 7919u + (uint64_t)rank * 104729u + (uint64_t)micro * 1299709u +
                     (uint64_t)step * 15485863u + (uint64_t)contribution * 32452843u;
    double u = test_uniform(&state) - 0.5;
    return (float)(u * ldexp(1.0, (int)(test_random(&state) % 12) - 8));
}

typedef struct setting {
    int world, stage, accumulation, steps;
    const char *precision;            /* "fp32", "bf16", "fp16" */
    const char *wire, *acc;           /* communication_data_type, data_types.grad_accum_dtype; NULL: not given */
    const char *zero;                 /* more of zero_optimization, beginning with a comma */
    const char *top;                  /* more keys, beginning with a comma */
    int tied;                         /* parameter 2 has two contributions */
    int shuffled;                     /* gradients come in another order than that of registration reversed */
    const char *optimizer;            /* NULL: AdamW; else the type and "params" */
    const ds_optim_table *client;     /* the client's own instead; NULL: none */
    int leaf;                         /* gradients and losses depend on micro * world + rank and the step alone */
    int sparse;                       /* 1: parameter 2 is a table of rows, most without a gradient; 2: so is 6 */
    const char *hyper;                /* more of optimizer.params, beginning with a comma */
    const char *load, *save;          /* folders: before the first step, after the last */
    unsigned workers;                 /* of a pool for the updates; 0: none */
    int first;                        /* number of the first step: gradients go on from there */
    int data;                         /* values come from memory of the model, which rank 0 alone has filled */
    size_t frozen;                    /* a parameter that does not train; 0: none */
    int overflow_rank, overflow_step; /* with a step above 0: this rank's gradient of "large" is infinite in it */
    int overflow_nan;                 /* or no number */
    const ds_device *device, *comm_device, *model_device; /* a GPU for the engine, its ranks, the model; NULL: none */
    const ds_optim_kernels *kernels;
    const ds_comm_kernels *comm_kernels;
} setting;

static inline setting setting_of(int world, int stage, int accumulation, int steps, const char *precision) {
    setting s;
    memset(&s, 0, sizeof s);
    s.world = world;
    s.stage = stage;
    s.accumulation = accumulation;
    s.steps = steps;
    s.precision = precision;
    return s;
}

static float given(const setting *s, size_t i, size_t e, int rank, int micro, int step, int contribution) {
    if (s->overflow_step && i == 5 && e == 77 && rank == s->overflow_rank && step == s->overflow_step)
        return s->overflow_nan ? NAN : (float)INFINITY;
    if (((s->sparse && i == 2) || (s->sparse == 2 && i == 6)) && (e / shapes[i][1] + (size_t)(rank + step)) % 10)
        return 0.0f;
    if (s->leaf) return gradient(i, e, 0, micro * s->world + rank, step, contribution);
    return gradient(i, e, rank, micro, step, contribution);
}

static double loss_of(const setting *s, int rank, int micro, int step) {
    return s->leaf ? 1.0 / (3.0 + micro * s->world + rank + step) : rank + micro;
}

typedef struct outcome {
    float value[N_PARAMS][9000], exp_avg[N_PARAMS][9000];
    double norm, loss, scale;
    uint64_t seen;      /* in the slots when the last step began, by its hash; 0: after no other */
    double fetch_error; /* of the first fetches, with zero_quantized_weights */
    int64_t skipped;
    ds_zero_stats stats;
    ds_zero_bytes plan;
    test_memory memory;  /* what the allocator's hook saw, up to the last step */
    size_t after_second; /* its calls by the end of the second step */
    int events;          /* scalars that this rank told */
    char lines[30000];   /* of its log, but for the least important */
    char message[600];
} outcome;

typedef struct thread_of {
    const setting *s;
    ds_comm *comm;
    int rank;
    outcome *out;
} thread_of;

static ds_config *config_of(const setting *s, ds_error *error) {
    char text[2048], types[128] = "";
    ds_config_options o;
    ds_config *c = NULL;
    memset(&o, 0, sizeof o);
    o.world_size = (size_t)s->world;
    if (s->wire) snprintf(types, sizeof types, ", \"communication_data_type\": \"%s\"", s->wire);
    if (s->acc)
        snprintf(types + strlen(types), sizeof types - strlen(types),
                 ", \"data_types\": {\"grad_accum_dtype\": \"%s\"}", s->acc);
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 2, \"gradient_accumulation_steps\": %d,"
             "\"optimizer\": {\"type\": \"%s\", \"params\": {\"lr\": 0.01, \"weight_decay\": 0.1%s}},"
             "\"fp16\": {\"enabled\": %s, \"initial_scale_power\": 4}, \"bf16\": {\"enabled\": %s},"
             "\"zero_optimization\": {\"stage\": %d%s}%s%s}",
             s->accumulation, s->optimizer ? s->optimizer : "AdamW", s->hyper ? s->hyper : "",
             strcmp(s->precision, "fp16") == 0 ? "true" : "false", strcmp(s->precision, "bf16") == 0 ? "true" : "false",
             s->stage, s->zero ? s->zero : "", types, s->top ? s->top : "");
    if (ds_config_parse(text, strlen(text), &o, &c, error)) return NULL;
    return c;
}

static void describe(ds_zero_param *params, void **slots, ds_dtype dtype, const setting *s) {
    memset(params, 0, N_PARAMS * sizeof *params);
    for (size_t i = 0; i < N_PARAMS; i++) {
        params[i].name = names[i];
        params[i].dims = 2;
        params[i].shape[0] = shapes[i][0];
        params[i].shape[1] = shapes[i][1];
        params[i].dtype = dtype;
        params[i].slot = &slots[i];
        params[i].init = init;
        params[i].ctx = (void *)(uintptr_t)i;
    }
    params[2].sparse = s->sparse != 0;
    params[6].sparse = s->sparse == 2;
    if (s->tied) params[2].contributions = 2;
    if (s->frozen) params[s->frozen].frozen = true;
}

/* Host memory as a model on the setting's device has it: a copy there, on the model's stream; and back. */
static void *upload(const setting *s, void *device, void *host, size_t bytes, void *stream) {
    if (!s->model_device) return host;
    s->model_device->copy(s->model_device->ctx, device, host, bytes, stream);
    return device;
}
static const void *download(const setting *s, void *host, const void *slot, size_t bytes, void *stream) {
    if (!s->model_device) return slot;
    s->model_device->copy(s->model_device->ctx, host, slot, bytes, stream);
    s->model_device->synchronize(s->model_device->ctx, stream);
    return host;
}

static void note_line(void *ctx, const char *header, int level, int id, const char *message) {
    char *lines = ((outcome *)ctx)->lines;
    size_t at = strlen(lines), room = sizeof((outcome *)ctx)->lines - at;
    if (level <= DS_LOG_INFO) snprintf(lines + at, room, "%s.%d.%d %s\n", header, level, id, message);
}
static void note_event(void *ctx, const char *tag, double value, int64_t samples) {
    (void)tag, (void)value, (void)samples;
    ((outcome *)ctx)->events++;
}

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        if ((call) != DS_OK) {                                                                                         \
            snprintf(a->out->message, sizeof a->out->message, "%.90s: %s", #call, ds_zero_error(z)->message);          \
            if (a->comm) ds_comm_abort(a->comm, "test gave up");                                                       \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)

static void *run_rank(void *arg) {
    thread_of *a = (thread_of *)arg;
    const setting *s = a->s;
    static const size_t orders[2][N_PARAMS] = {{6, 5, 4, 3, 2, 1, 0}, {2, 6, 0, 5, 3, 1, 4}};
    void *slots[N_PARAMS] = {0}, *data[N_PARAMS] = {0}, *bytes = malloc(9000 * 4), *there = malloc(9000 * 4),
         *mine = NULL, *stream = NULL;
    float *values = (float *)malloc(9000 * sizeof(float));
    ds_error error = {DS_OK, ""};
    ds_config *config = config_of(s, &error);
    ds_zero_param params[N_PARAMS];
    ds_zero_desc d;
    ds_zero *z = NULL;
    ds_zero_report report;
    test_memory memory;
    dsi_pool *pool = NULL;
    memset(&memory, 0, sizeof memory);
    memset(&d, 0, sizeof d);
    if (!config) {
        snprintf(a->out->message, sizeof a->out->message, "config: %s", error.message);
        goto done;
    }
    describe(params, slots, ds_zero_model_dtype(config), s);
    for (size_t i = 0; i < N_PARAMS && s->data; i++) {
        params[i].data = data[i] = calloc(numel(i) + 1, 4);
        for (size_t e = 0; e < numel(i) && a->rank == 0; e++) values[e] = initial(i, e);
        if (a->rank == 0) ds_optim_cast(data[i], params[i].dtype, values, DS_F32, numel(i));
    }
    d.config = config;
    d.comm = a->comm;
    d.device = s->device;
    d.kernels = s->kernels;
    if (s->model_device && (s->model_device->alloc(s->model_device->ctx, 9000 * 4, &mine) ||
                            s->model_device->stream_create(s->model_device->ctx, &stream))) {
        snprintf(a->out->message, sizeof a->out->message, "the model's own memory failed");
        if (a->comm) ds_comm_abort(a->comm, "test gave up");
        goto done;
    }
    d.params = params;
    d.n_params = N_PARAMS;
    d.gradient_buffers = 1;
    d.optimizer = s->client;
    d.event = note_event;
    d.event_ctx = a->out;
    d.logger.log = note_line;
    d.logger.ctx = a->out;
    if (s->workers) {
        pool = dsi_pool_create(NULL, s->workers);
        d.tasks.parallel_for = dsi_pool_for;
        d.tasks.ctx = pool;
        d.tasks.workers = s->workers;
    }
    d.allocator.alloc = test_alloc;
    d.allocator.release = test_release;
    d.allocator.ctx = &memory;
    if (ds_zero_plan(&d, a->rank, s->world, &a->out->plan, &error) ||
        (memory.peak = 0, ds_zero_create(&d, &z, &error))) {
        snprintf(a->out->message, sizeof a->out->message, "create: %s", error.message);
        if (a->comm) ds_comm_abort(a->comm, "test gave up");
        goto done;
    }
    if (s->load) TRY(ds_zero_load(z, s->load, NULL, NULL, NULL));
    for (int step = s->first; step < s->first + s->steps; step++) {
        for (int micro = 0; micro < s->accumulation; micro++) {
            const size_t *order = orders[s->shuffled];
            TRY(ds_zero_begin(z, DS_ZERO_TRAIN));
            for (size_t i = 0; i < N_PARAMS; i++) {
                TRY(ds_zero_fetch(z, i, stream));
                if (numel(i) && !slots[i])
                    snprintf(a->out->message, sizeof a->out->message, "slot of %s is empty", names[i]);
                if (step == s->first && micro == 0 && numel(i) && strstr(s->zero ? s->zero : "", "quantized_weights")) {
                    const float *seen =
                        (const float *)download(s, there, slots[i], numel(i) * DS_DTYPE_SIZE(params[i].dtype), stream);
                    for (size_t e = 0; e < numel(i) && params[i].dtype == DS_F32; e++) {
                        double off = fabs((double)(seen[e] - initial(i, e)));
                        if (off > a->out->fetch_error) a->out->fetch_error = off;
                    }
                } else if (step == 0 && micro == 0 && numel(i) &&
                           !s->load) { /* what init gave, rounded, on every rank */
                    for (size_t e = 0; e < numel(i); e++) values[e] = initial(i, e);
                    ds_optim_cast(bytes, params[i].dtype, values, DS_F32, numel(i));
                    if (memcmp(bytes, download(s, there, slots[i], numel(i) * DS_DTYPE_SIZE(params[i].dtype), stream),
                               numel(i) * DS_DTYPE_SIZE(params[i].dtype)))
                        snprintf(a->out->message, sizeof a->out->message, "initial values of %s differ", names[i]);
                }
                if (s->steps > 1 && step + 1 == s->first + s->steps && micro == 0) {
                    const size_t size = numel(i) * DS_DTYPE_SIZE(params[i].dtype);
                    a->out->seen = dsi_zero_hash(a->out->seen, download(s, there, slots[i], size, stream), size);
                }
                TRY(ds_zero_release(z, i));
            }
            if (s->tied) { /* the first contribution comes before all others, as that of a tied head does */
                for (size_t e = 0; e < numel(2); e++) values[e] = given(s, 2, e, a->rank, micro, step, 1);
                ds_optim_cast(bytes, params[2].dtype, values, DS_F32, numel(2));
                TRY(ds_zero_grad(z, 2, upload(s, mine, bytes, numel(2) * DS_DTYPE_SIZE(params[2].dtype), stream),
                                 stream));
            }
            for (size_t k = 0; k < N_PARAMS; k++) {
                size_t i = order[k];
                TRY(ds_zero_fetch(z, i, stream));
                for (size_t e = 0; e < numel(i); e++) values[e] = given(s, i, e, a->rank, micro, step, 0);
                if (s->frozen && i == s->frozen) {
                    TRY(ds_zero_release(z, i));
                    continue;
                }
                if (i == 5) {
                    void *buffer = NULL;
                    TRY(ds_zero_grad_buffer(z, i, &buffer));
                    ds_optim_cast(s->model_device ? bytes : buffer, params[i].dtype, values, DS_F32, numel(i));
                    (void)upload(s, buffer, bytes, numel(i) * DS_DTYPE_SIZE(params[i].dtype), stream);
                    TRY(ds_zero_grad_ready(z, i, stream));
                } else {
                    ds_optim_cast(bytes, params[i].dtype, values, DS_F32, numel(i));
                    TRY(ds_zero_grad(z, i, upload(s, mine, bytes, numel(i) * DS_DTYPE_SIZE(params[i].dtype), stream),
                                     stream));
                }
                TRY(ds_zero_release(z, i));
            }
            TRY(ds_zero_loss(z, loss_of(s, a->rank, micro, step)));
            TRY(ds_zero_end(z));
        }
        if (step == s->first && a->rank == 0) ds_zero_stop(z); /* one rank's wish is everyone's */
        TRY(ds_zero_step(z, &report));
        if (!report.stop) snprintf(a->out->message, sizeof a->out->message, "the stop flag was lost");
        a->out->norm = report.grad_norm;
        a->out->loss = report.loss;
        a->out->scale = report.next_loss_scale;
        a->out->skipped = report.skipped_steps;
        if (step == s->first + 1) a->out->after_second = memory.calls;
    }
    a->out->memory = memory;
    for (size_t i = 0; i < N_PARAMS; i++) {
        TRY(ds_zero_read(z, i, -1, 0, numel(i), a->out->value[i]));
        if (!s->frozen || i != s->frozen) TRY(ds_zero_read(z, i, 0, 0, numel(i), a->out->exp_avg[i]));
    }
    if (s->save) TRY(ds_zero_save(z, s->save, NULL, NULL, 0));
    ds_zero_get_stats(z, &a->out->stats);
done:
    ds_zero_destroy(z);
    dsi_pool_destroy(pool);
    if (memory.live || memory.mismatches)
        snprintf(a->out->message, sizeof a->out->message, "%zu bytes were not given back, %zu with another size",
                 memory.live, memory.mismatches);
    ds_comm_destroy(a->comm);
    ds_config_free(config);
    if (stream) s->model_device->stream_destroy(s->model_device->ctx, stream);
    if (mine) s->model_device->release(s->model_device->ctx, mine, 9000 * 4);
    for (size_t i = 0; i < N_PARAMS; i++) free(data[i]);
    free(there);
    free(values);
    free(bytes);
    return NULL;
}

/* Runs a setting on its ranks; out has one outcome for each. */
static void run(const setting *s, outcome *out) {
    ds_comm *comms[MAX_WORLD] = {0};
    thread_of of[MAX_WORLD];
    pthread_t threads[MAX_WORLD];
    ds_error error = {DS_OK, ""};
    ds_comm_desc d;
    memset(&d, 0, sizeof d);
    memset(out, 0, (size_t)s->world * sizeof *out);
    d.timeout = 60000000000;
    if (s->comm_device) d.device = *s->comm_device;
    d.kernels = s->comm_kernels;
    if (s->world > 1 && !CHECK(ds_comm_threads_create(&d, s->world, comms, &error) == DS_OK)) return;
    for (int r = 0; r < s->world; r++) {
        of[r].s = s;
        of[r].comm = comms[r];
        of[r].rank = r;
        of[r].out = &out[r];
        pthread_create(&threads[r], NULL, run_rank, &of[r]);
    }
    for (int r = 0; r < s->world; r++) pthread_join(threads[r], NULL);
}

static bool same(const outcome *a, const outcome *b) {
    for (size_t i = 0; i < N_PARAMS; i++)
        if (memcmp(a->value[i], b->value[i], numel(i) * 4) || memcmp(a->exp_avg[i], b->exp_avg[i], numel(i) * 4))
            return false;
    return a->norm == b->norm && (a->seen == b->seen || !a->seen || !b->seen);
}

static inline ds_dtype type_of(const char *name) {
    return strcmp(name, "bf16") == 0 ? DS_BF16 : strcmp(name, "fp16") == 0 ? DS_F16 : DS_F32;
}

static inline void rounded(float *x, ds_dtype dtype, size_t count) {
    uint16_t there[9000];
    if (dtype == DS_F32) return;
    ds_optim_cast(there, dtype, x, DS_F32, count);
    ds_optim_cast(x, DS_F32, there, dtype, count);
}

/* What must come out, by the plainest means: the tree over ranks, rounded; the sum over micro-batches; one optimizer over whole tensors. */
static inline void reference(const setting *s, outcome *out) {
    const char *type = s->optimizer ? s->optimizer : "AdamW";
    ds_dtype dtype = type_of(s->precision), wire = s->wire ? type_of(s->wire) : dtype,
             acc = s->acc ? type_of(s->acc) : dtype;
    ds_optim_params p;
    ds_optim_tensor tensors[N_PARAMS];
    ds_optim_desc d;
    ds_optim *o = NULL;
    float *sums[N_PARAMS], *v[N_PARAMS], *one = (float *)malloc(9000 * 4), *grads[MAX_WORLD];
    double scale = dtype == DS_F16 ? 16.0 / s->accumulation : 1.0, before = dtype == DS_F16 ? 1.0 / s->world : 1.0;
    memset(out, 0, sizeof *out);
    memset(&d, 0, sizeof d);
    memset(tensors, 0, sizeof tensors);
    ds_optim_params_default(type, &p);
    p.lr = 0.01;
    p.weight_decay = 0.1;
    for (size_t i = 0; i < N_PARAMS; i++) {
        tensors[i].name = names[i];
        tensors[i].rows = shapes[i][0];
        tensors[i].cols = shapes[i][1];
        sums[i] = (float *)calloc(9000, 4);
        v[i] = (float *)calloc(9000, 4);
        for (size_t e = 0; e < numel(i); e++) out->value[i][e] = initial(i, e);
    }
    for (int r = 0; r < s->world; r++) grads[r] = (float *)malloc(9000 * 4);
    d.type = type;
    d.groups = &p;
    d.group_count = 1;
    d.tensors = tensors;
    d.tensor_count = N_PARAMS;
    CHECK(ds_optim_create(&d, &o, NULL) == DS_OK);
    for (int step = 0; step < s->steps; step++) {
        double total = 0.0, inverse = 1.0 / (scale * s->accumulation * s->world * before);
        for (int micro = 0; micro < s->accumulation; micro++)
            for (size_t i = 0; i < N_PARAMS; i++) {
                const void *inputs[MAX_WORLD];
                for (int r = 0; r < s->world; r++) {
                    inputs[r] = grads[r];
                    for (size_t e = 0; e < numel(i); e++)
                        grads[r][e] = given(s, i, e, r, micro, step, i == 2 && s->tied);
                    rounded(grads[r], dtype, numel(i)); /* as the model gives it */
                    for (size_t e = 0; e < numel(i); e++) grads[r][e] *= (float)before;
                    rounded(grads[r], wire, numel(i));
                    if (i != 2 || !s->tied) continue;
                    for (size_t e = 0; e < numel(i); e++) one[e] = given(s, i, e, r, micro, step, 0);
                    rounded(one, dtype, numel(i));
                    for (size_t e = 0; e < numel(i); e++) grads[r][e] += one[e] * (float)before;
                    rounded(grads[r], wire, numel(i));
                }
                ds_comm_tree_sum_f32(one, inputs, s->world, DS_F32, numel(i));
                rounded(one, wire, numel(i)); /* [cfg: communication_data_type] */
                for (size_t e = 0; e < numel(i); e++) sums[i][e] = micro ? sums[i][e] + one[e] : one[e];
                rounded(sums[i], acc, numel(i)); /* also of one micro-batch [cfg: data_types.grad_accum_dtype] */
            }
        for (size_t i = 0; i < N_PARAMS; i++) {
            double grains[16];
            ds_optim_norm_grains(sums[i], DS_F32, numel(i), 1.0f, grains);
            total += ds_optim_norm_tree(grains, (numel(i) + 1023) / 1024);
        }
        out->norm = sqrt(total) * inverse;
        ds_optim_begin(o, inverse, 1.0, out->norm);
        for (int pass = 0; pass < 2; pass++) {
            for (size_t i = 0; i < N_PARAMS; i++) {
                ds_optim_slice slice;
                memset(&slice, 0, sizeof slice);
                slice.tensor = i;
                slice.count = numel(i);
                slice.master = out->value[i];
                slice.state[0] = out->exp_avg[i];
                slice.state[1] = v[i];
                slice.grad = sums[i];
                if (pass == 0 && ds_optim_tensor_work(o, i) == DS_OPTIM_BY_NORM)
                    CHECK(ds_optim_measure(o, &slice, 1) == DS_OK);
                if (pass == 1) CHECK(ds_optim_apply(o, &slice, 1) == DS_OK);
            }
            if (pass == 0) CHECK(ds_optim_combine(o) == DS_OK);
        }
        ds_optim_end(o);
    }
    for (size_t i = 0; i < N_PARAMS; i++) free(sums[i]), free(v[i]);
    for (int r = 0; r < s->world; r++) free(grads[r]);
    free(one);
    ds_optim_destroy(o);
}

/* The plan, the engine's own account and the allocator's hook say the same to the byte. */
static inline bool as_held(const outcome *o) {
    size_t planned = 0;
    for (int c = 0; c < DS_ZERO_CLASSES; c++)
        planned += o->plan.bytes[c][DS_ZERO_DEVICE] + o->plan.bytes[c][DS_ZERO_HOST];
    if (planned != o->memory.peak) printf("  planned %zu, the allocator saw %zu\n", planned, o->memory.peak);
    return planned == o->memory.peak && memcmp(&o->plan, &o->stats.peak, sizeof o->plan) == 0;
}

/* And after the second step nothing is allocated. */
static inline bool as_planned(const outcome *o) {
    return as_held(o) && o->after_second == o->memory.calls;
}
