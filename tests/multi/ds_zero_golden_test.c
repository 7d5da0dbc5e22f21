/* The engine against recorded runs of real DeepSpeed: a two-layer network at every stage, precision and world size; losses,
   norms, rates, loss scales and final weights within the recorded bounds. Left out, as the reference itself is at fault there:
   16-bit stage 0 (an optimizer step on zero gradients at construction; compared with stage 1 instead), steps from the first
   growth of the loss scale on (that step's update is halved), Muon's norm, Lion's step on a zero. Then its steps of plain SGD
   with given gradients: clipping, overflow; left out are an infinite gradient of fp32 stage 0, which it does not see, and
   again what follows a growth. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"

enum { IN = 8, HID = 16, OUT = 4, ROWS = 64, MAX_STEPS = 64, MAX_WORLD = 4, N = 4 };
static float X[ROWS][IN], Y[ROWS][OUT], initial[N][IN * HID];
static const char *const names[N] = {"fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"};
static const size_t shapes[N][2] = {{HID, IN}, {HID, 0}, {OUT, HID}, {OUT, 0}};

static char *slurp(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    char *data = NULL;
    *bytes = 0;
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *bytes = (size_t)ftell(f);
    rewind(f);
    data = (char *)malloc(*bytes + 1);
    if (fread(data, 1, *bytes, f) != *bytes) *bytes = 0;
    data[*bytes] = 0;
    fclose(f);
    return data;
}

static void load_tensor(const ds_json *d, const char *data, const char *name, float *out, size_t count) {
    int64_t begin = 0;
    ds_json_integer(d, ds_json_at(d, ds_json_get(d, ds_json_get(d, 0, name), "data_offsets"), 0), &begin);
    memcpy(out, data + begin, count * sizeof(float));
}

/* A value of the document as text again. */
static void print(const ds_json *d, ds_json_node v, const char *key, ds_json_writer *w) {
    bool b;
    double x;
    switch (ds_json_typeof(d, v)) {
    case DS_JSON_OBJECT:
    case DS_JSON_ARRAY: {
        bool object = ds_json_typeof(d, v) == DS_JSON_OBJECT;
        ds_json_write_open(w, key, object ? '{' : '[');
        for (ds_json_node c = ds_json_first(d, v); c != DS_JSON_NO_NODE; c = ds_json_next(d, v, c)) {
            const char *k = object ? ds_json_key(d, v, c, NULL) : NULL;
            if (k && strcmp(k, "zero_allow_untested_optimizer") == 0) continue; /* no key of the documents */
            print(d, c, k, w);
        }
        ds_json_write_close(w, object ? '}' : ']');
        break;
    }
    case DS_JSON_STRING: ds_json_write_string(w, key, ds_json_string(d, v, NULL)); break;
    case DS_JSON_BOOL: ds_json_bool(d, v, &b), ds_json_write_bool(w, key, b); break;
    case DS_JSON_NUMBER: ds_json_number(d, v, &x), ds_json_write_number(w, key, x); break;
    default: ds_json_write_null(w, key);
    }
}

/* 16-bit runs in which a sample lies on the edge of a hidden unit's ReLU: rounding the weights to the type decides on which
   side, and DeepSpeed's trajectory, equal to ours within the tolerance, was on the other. Here it is put on the recorded side,
   after a check that the type's precision really leaves it open; everything else must then agree. */
typedef struct edge {
    const char *run;
    int step;
    size_t row; /* of X */
    int unit;
    bool on;
} edge;
static const edge edges[] = {
    {"fp16_z2_w1_static_scale", 11, 23, 7, true},
    {"bf16_z3_w1", 11, 23, 7, false},
    {"bf16_z3_w2_clip_warmup", 7, 31, 5, false},
    {"bf16_z1_w2", 5, 23, 0, true},
    {"bf16_z1_w2", 6, 24, 6, true},
    {"bf16_z1_w2", 10, 40, 2, false},
    {"bf16_z1_w2_offload", 5, 23, 0, true},
    {"bf16_z1_w2_offload", 6, 24, 6, true},
    {"bf16_z1_w2_offload", 10, 40, 2, false},
    {"bf16_z3_w2_offload_param", 5, 23, 0, true},
    {"bf16_z3_w2_offload_param", 6, 24, 6, true},
    {"bf16_z3_w2_offload_param", 10, 40, 2, false},
};

static bool met[sizeof edges / sizeof edges[0]];

typedef struct trace {
    double losses[MAX_STEPS][8], norm[MAX_STEPS], lr[MAX_STEPS], scale[MAX_STEPS];
    int64_t skipped[MAX_STEPS];
    float weights[N][IN * HID];
    char message[600];
} trace;

typedef struct job {
    const char *name, *config;
    int world, rank, steps;
    const double *multiplier; /* (steps) of the loss */
    ds_comm *comm;
    trace *out;
} job;

static void init(void *ctx, size_t begin, size_t count, float *out) {
    memcpy(out, (float *)ctx + begin, count * sizeof *out);
}

static float rounded(float x, ds_dtype dtype) {
    return dtype == DS_F16    ? dsi_f32_of_f16(dsi_f16_of_f32(x))
           : dtype == DS_BF16 ? dsi_f32_of_bf16(dsi_bf16_of_f32(x))
                              : x;
}

/* Whether a unit with this input sum passes its ReLU in run `name`; `size` is the sum of the terms' magnitudes. */
static bool passes(const char *name, int step, size_t row, int unit, float sum, double size, ds_dtype type) {
    const double half_ulp = type == DS_BF16 ? 0x1p-8 : type == DS_F16 ? 0x1p-11 : 0;
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++) {
        const edge *e = &edges[i];
        if (strcmp(e->run, name) || e->step != step || e->row != row || e->unit != unit) continue;
        __atomic_store_n(&met[i], true, __ATOMIC_RELAXED);
        if (fabs(sum) > half_ulp * size) /* said on failure alone: ranks are threads */
            test_check(0, __FILE__, __LINE__, "%s step %d row %zu unit %d: %g is decided, of %g", name, step, row, unit,
                       (double)sum, size);
        return e->on;
    }
    return sum > 0;
}

/* Forward and backward with every result rounded to the model's type; gradients of the mean loss times `scale`. */
static double network(const char *name, int step, float *const w[N], const size_t *rows, size_t batch, ds_dtype type,
                      double scale, float *g[N]) {
    double loss = 0;
    for (int i = 0; i < N; i++) memset(g[i], 0, IN * HID * sizeof(float));
    for (size_t b = 0; b < batch; b++) {
        float x[IN], h[HID], o, d[OUT], dh[HID];
        bool on[HID];
        for (int k = 0; k < IN; k++) x[k] = rounded(X[rows[b]][k], type);
        for (int j = 0; j < HID; j++) {
            double s = w[1][j], size = fabs(s);
            for (int k = 0; k < IN; k++) {
                s += (double)w[0][j * IN + k] * x[k];
                size += fabs((double)w[0][j * IN + k] * x[k]);
            }
            h[j] = rounded((float)s, type);
            on[j] = passes(name, step, rows[b], j, h[j], size, type);
            if (!on[j]) h[j] = 0;
        }
        for (int j = 0; j < OUT; j++) {
            double s = w[3][j];
            for (int k = 0; k < HID; k++) s += (double)w[2][j * HID + k] * h[k];
            o = rounded((float)s, type);
            loss += (double)(o - Y[rows[b]][j]) * (o - Y[rows[b]][j]);
            d[j] = rounded((float)(2.0 * (o - Y[rows[b]][j]) / (double)(batch * OUT) * scale), type);
        }
        for (int k = 0; k < HID; k++) {
            double s = 0;
            for (int j = 0; j < OUT; j++) s += (double)d[j] * w[2][j * HID + k];
            dh[k] = on[k] ? rounded((float)s, type) : 0;
        }
        for (int j = 0; j < OUT; j++) {
            g[3][j] += d[j];
            for (int k = 0; k < HID; k++) g[2][j * HID + k] += d[j] * h[k];
        }
        for (int j = 0; j < HID; j++) {
            g[1][j] += dh[j];
            for (int k = 0; k < IN; k++) g[0][j * IN + k] += dh[j] * x[k];
        }
    }
    return loss / (double)(batch * OUT);
}

static void *run_rank(void *arg) {
    job *a = (job *)arg;
    ds_config_options options;
    ds_error error = {DS_OK, ""};
    ds_config *c = NULL;
    ds_zero *z = NULL;
    ds_zero_desc d;
    ds_zero_param p[N];
    void *slots[N];
    float *w[N], *g[N];
    size_t q = 0;
    memset(&options, 0, sizeof options);
    memset(&d, 0, sizeof d);
    memset(p, 0, sizeof p);
    options.world_size = (size_t)a->world;
    for (int i = 0; i < N; i++) w[i] = (float *)calloc(IN * HID, 4), g[i] = (float *)calloc(IN * HID, 4);
    if (ds_config_parse(a->config, strlen(a->config), &options, &c, &error)) goto failed;
    for (size_t i = 0; i < N; i++) {
        p[i].name = names[i];
        p[i].dims = shapes[i][1] ? 2 : 1;
        p[i].shape[0] = shapes[i][0];
        p[i].shape[1] = shapes[i][1];
        p[i].dtype = ds_zero_model_dtype(c);
        p[i].slot = &slots[i];
        p[i].init = init;
        p[i].ctx = initial[i];
    }
    d.config = c;
    d.comm = a->comm;
    d.params = p;
    d.n_params = N;
    if (ds_zero_create(&d, &z, &error)) goto failed;
    for (int step = 0; step < a->steps; step++) {
        ds_zero_report r;
        for (size_t micro = 0; micro < c->gradient_accumulation_steps; micro++, q++) {
            size_t rows[64], batch = c->train_micro_batch_size_per_gpu;
            double loss;
            for (size_t j = 0; j < batch; j++) rows[j] = ((q * (size_t)a->world + (size_t)a->rank) * batch + j) % ROWS;
            if (ds_zero_begin(z, DS_ZERO_TRAIN)) goto engine;
            for (size_t i = 0; i < N; i++) {
                if (ds_zero_fetch(z, i, NULL)) goto engine;
                ds_optim_cast(w[i], DS_F32, slots[i], p[i].dtype, shapes[i][0] * (shapes[i][1] ? shapes[i][1] : 1));
            }
            loss = network(a->name, step, w, rows, batch, p[0].dtype, ds_zero_loss_scale(z) * a->multiplier[step], g);
            a->out->losses[step][micro] = loss * a->multiplier[step];
            for (size_t i = N; i-- > 0;) {
                uint16_t half[IN * HID];
                ds_optim_cast(half, p[i].dtype == DS_F32 ? DS_BF16 : p[i].dtype, g[i], DS_F32, IN * HID);
                if (ds_zero_grad(z, i, p[i].dtype == DS_F32 ? (void *)g[i] : (void *)half, NULL) ||
                    ds_zero_release(z, i))
                    goto engine;
            }
            if (ds_zero_loss(z, loss) || ds_zero_end(z)) goto engine;
        }
        if (ds_zero_step(z, &r)) goto engine;
        a->out->norm[step] = r.grad_norm;
        a->out->lr[step] = r.lr;
        a->out->scale[step] = r.next_loss_scale;
        a->out->skipped[step] = r.skipped_steps;
    }
    for (size_t i = 0; i < N; i++)
        if (ds_zero_read(z, i, -1, 0, shapes[i][0] * (shapes[i][1] ? shapes[i][1] : 1), a->out->weights[i]))
            goto engine;
    goto done;
engine:
    error = *ds_zero_error(z);
failed:
    snprintf(a->out->message, sizeof a->out->message, "%s", error.message);
    if (a->comm) ds_comm_abort(a->comm, "test gave up");
done:
    ds_zero_destroy(z);
    ds_comm_destroy(a->comm);
    ds_config_free(c);
    for (int i = 0; i < N; i++) free(w[i]), free(g[i]);
    return NULL;
}

static void run(const char *name, const char *config, int world, int steps, const double *multiplier, trace *out) {
    ds_comm *comms[MAX_WORLD] = {0};
    job jobs[MAX_WORLD];
    pthread_t threads[MAX_WORLD];
    ds_comm_desc d;
    memset(&d, 0, sizeof d);
    d.timeout = 60000000000;
    memset(out, 0, (size_t)world * sizeof *out);
    if (world > 1) CHECK(ds_comm_threads_create(&d, world, comms, NULL) == DS_OK);
    for (int r = 0; r < world; r++) {
        job j = {name, config, world, r, steps, multiplier, comms[r], &out[r]};
        jobs[r] = j;
        pthread_create(&threads[r], NULL, run_rank, &jobs[r]);
    }
    for (int r = 0; r < world; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < world; r++)
        if (!CHECK(out[r].message[0] == 0)) printf("  rank %d: %s\n", r, out[r].message);
}

static double real(const ds_json *d, ds_json_node v) {
    double x = 0;
    const char *text = ds_json_string(d, v, NULL);
    if (text) return strtod(text, NULL);
    ds_json_number(d, v, &x);
    return x;
}

static bool close_to(double got, double want, double relative, double floor_) {
    if (isnan(want) || isinf(want)) return isnan(got) == isnan(want) && isinf(got) == isinf(want);
    return fabs(got - want) <= relative * (fabs(want) > floor_ ? fabs(want) : floor_);
}

static void compare(const ds_json *d, ds_json_node c, const trace *out, int world, int steps, bool muon) {
    ds_json_node e = ds_json_get(d, c, "expect"), tol = ds_json_get(d, c, "tol"),
                 norms = ds_json_get(d, e, "grad_norm");
    ds_json_node scales = ds_json_get(d, e, "loss_scale_after_step"), skipped = ds_json_get(d, e, "skipped_steps");
    double loss_rel = real(d, ds_json_get(d, tol, "loss_rel")),
           norm_rel = real(d, ds_json_get(d, tol, "grad_norm_rel"));
    double weight_abs = real(d, ds_json_get(d, tol, "weight_abs")), before = 0;
    int until = steps;
    for (int s = 0; s < steps && ds_json_count(d, scales); s++) {
        double scale = real(d, ds_json_at(d, scales, (size_t)s));
        if (ds_json_typeof(d, ds_json_at(d, scales, (size_t)s)) == DS_JSON_NULL) break;
        if (s && scale > before && until == steps) until = s; /* the first growth */
        before = scale;
        CHECK_NEAR(out[0].scale[s], scale, 0);
        if (ds_json_count(d, skipped))
            CHECK_EQ(out[0].skipped[s], (long long)real(d, ds_json_at(d, skipped, (size_t)s)));
    }
    for (int s = 0; s < until; s++) {
        ds_json_node norm = ds_json_at(d, norms, (size_t)s);
        CHECK_NEAR(out[0].lr[s], real(d, ds_json_at(d, ds_json_get(d, e, "lr"), (size_t)s)), 1e-12);
        if (!muon && ds_json_typeof(d, norm) != DS_JSON_NULL && ds_json_typeof(d, norm) != DS_JSON_NONE)
            CHECK(close_to(out[0].norm[s], real(d, norm), norm_rel, 1e-30));
        for (int r = 0; r < world; r++) {
            ds_json_node micro = ds_json_at(d, ds_json_at(d, ds_json_get(d, e, "losses"), (size_t)r), (size_t)s);
            for (size_t m = 0; m < ds_json_count(d, micro); m++) {
                double want = real(d, ds_json_at(d, micro, m));
                if (!test_check(close_to(out[r].losses[s][m], want, loss_rel, 1e-3), __FILE__, __LINE__,
                                "step %d rank %d micro %zu: loss %.9g, expected %.9g", s, r, m, out[r].losses[s][m],
                                want))
                    return;
            }
        }
    }
    for (size_t i = 0; until == steps && i < N; i++) {
        ds_json_node want = ds_json_get(d, ds_json_get(d, e, "master_weights_final"), names[i]);
        CHECK(want == DS_JSON_NO_NODE || ds_json_count(d, want) == shapes[i][0] * (shapes[i][1] ? shapes[i][1] : 1));
        for (size_t k = 0; k < ds_json_count(d, want); k++)
            if (!test_check(fabs((double)out[0].weights[i][k] - real(d, ds_json_at(d, want, k))) <= weight_abs,
                            __FILE__, __LINE__, "%s[%zu]: %.9g, expected %.9g within %g", names[i], k,
                            (double)out[0].weights[i][k], real(d, ds_json_at(d, want, k)), weight_abs))
                break;
    }
}

/* A run of grad_clip.json: gradients as given, and the parameters after each step. */
enum { CLIP_TENSORS = 4, CLIP_ELEMENTS = 512 };
typedef struct clip_run {
    const ds_json *d;
    ds_json_node c;
    const char *config;
    int rank, world, steps;
    ds_comm *comm;
    float after[MAX_STEPS][CLIP_TENSORS][CLIP_ELEMENTS];
    double norm[MAX_STEPS], scale[MAX_STEPS];
    int64_t skipped[MAX_STEPS];
    char message[600];
} clip_run;

static size_t clip_numbers(const ds_json *d, ds_json_node list, float *out) {
    size_t n = ds_json_count(d, list);
    for (size_t i = 0; i < n && i < CLIP_ELEMENTS; i++) out[i] = (float)real(d, ds_json_at(d, list, i));
    return n;
}

static void *clip_rank(void *arg) {
    static const char *const tensors[CLIP_TENSORS] = {"a", "b", "c", "d"};
    clip_run *a = (clip_run *)arg;
    const ds_json *d = a->d;
    ds_json_node shapes_of = ds_json_get(d, a->c, "shapes"), grads = ds_json_get(d, a->c, "grads");
    size_t n = ds_json_count(d, shapes_of);
    float initials[CLIP_TENSORS][CLIP_ELEMENTS];
    ds_zero_param p[CLIP_TENSORS];
    ds_config_options options;
    ds_error error = {DS_OK, ""};
    ds_config *c = NULL;
    ds_zero *z = NULL;
    ds_zero_desc desc;
    memset(&options, 0, sizeof options);
    memset(&desc, 0, sizeof desc);
    memset(p, 0, sizeof p);
    options.world_size = (size_t)a->world;
    if (ds_config_parse(a->config, strlen(a->config), &options, &c, &error)) goto failed;
    for (size_t i = 0; i < n; i++) {
        ds_json_node shape = ds_json_at(d, shapes_of, i);
        p[i].name = tensors[i];
        p[i].dims = (int)ds_json_count(d, shape);
        for (int k = 0; k < p[i].dims; k++) p[i].shape[k] = (size_t)real(d, ds_json_at(d, shape, (size_t)k));
        p[i].dtype = ds_zero_model_dtype(c);
        p[i].init = init;
        p[i].ctx = initials[i];
        clip_numbers(d, ds_json_at(d, ds_json_get(d, a->c, "init"), i), initials[i]);
    }
    desc.config = c;
    desc.comm = a->comm;
    desc.params = p;
    desc.n_params = n;
    if (ds_zero_create(&desc, &z, &error)) goto failed;
    for (int s = 0; s < a->steps; s++) {
        ds_json_node given = ds_json_at(d, ds_json_at(d, grads, (size_t)a->rank), (size_t)s);
        ds_zero_report r;
        if (ds_zero_begin(z, DS_ZERO_TRAIN)) goto engine;
        for (size_t i = n; i-- > 0;) {
            float g[CLIP_ELEMENTS];
            uint16_t half[CLIP_ELEMENTS];
            size_t count = clip_numbers(d, ds_json_at(d, given, i), g);
            for (size_t k = 0; k < count; k++) g[k] *= (float)ds_zero_loss_scale(z);
            ds_optim_cast(half, p[i].dtype == DS_F32 ? DS_BF16 : p[i].dtype, g, DS_F32, count);
            if (ds_zero_grad(z, i, p[i].dtype == DS_F32 ? (void *)g : (void *)half, NULL)) goto engine;
        }
        if (ds_zero_end(z) || ds_zero_step(z, &r)) goto engine;
        a->norm[s] = r.grad_norm;
        a->scale[s] = r.next_loss_scale;
        a->skipped[s] = r.skipped_steps;
        for (size_t i = 0; i < n; i++) {
            size_t count = ds_json_count(d, ds_json_at(d, given, i));
            if (ds_zero_read(z, i, -1, 0, count, a->after[s][i])) goto engine;
        }
    }
    goto done;
engine:
    error = *ds_zero_error(z);
failed:
    snprintf(a->message, sizeof a->message, "%s", error.message);
    if (a->comm) ds_comm_abort(a->comm, "test gave up");
done:
    ds_zero_destroy(z);
    ds_comm_destroy(a->comm);
    ds_config_free(c);
    return NULL;
}

static void clip_compare(const clip_run *a) {
    const ds_json *d = a->d;
    ds_json_node expect = ds_json_get(d, a->c, "expect");
    const double bound = real(d, ds_json_get(d, a->c, "tol_rel"));
    double before = 0;
    for (int s = 0; s < a->steps; s++) {
        ds_json_node norm = ds_json_at(d, ds_json_get(d, expect, "grad_norm"), (size_t)s);
        ds_json_node scale = ds_json_at(d, ds_json_get(d, expect, "loss_scale_after_step"), (size_t)s);
        ds_json_node after = ds_json_at(d, ds_json_get(d, expect, "params_after_step"), (size_t)s);
        bool fp16 = ds_json_typeof(d, scale) != DS_JSON_NULL;
        if (fp16) CHECK_NEAR(a->scale[s], real(d, scale), 0);
        if (fp16 && s && real(d, scale) > before) return; /* this step's update is halved there */
        before = fp16 ? real(d, scale) : 0;
        for (size_t i = 0; i < ds_json_count(d, after); i++) {
            float want[CLIP_ELEMENTS];
            size_t n = clip_numbers(d, ds_json_at(d, after, i), want);
            double most = 0;
            for (size_t k = 0; k < n; k++) most = fmax(most, fabs((double)want[k]));
            if (!isfinite(most)) { /* fp32 stage 0 there; here the step is skipped */
                CHECK(real(d, ds_json_get(d, a->c, "zero_stage")) == 0 && !fp16 && a->skipped[s] == 1);
                return;
            }
            for (size_t k = 0; k < n; k++)
                if (!test_check(fabs((double)(a->after[s][i][k] - want[k])) <= bound * most, __FILE__, __LINE__,
                                "step %d tensor %zu [%zu]: %.9g, expected %.9g", s, i, k, (double)a->after[s][i][k],
                                (double)want[k]))
                    return;
        }
        CHECK_EQ(a->skipped[s], (long long)real(d, ds_json_at(d, ds_json_get(d, expect, "skipped_steps"), (size_t)s)));
        if (ds_json_typeof(d, norm) != DS_JSON_NULL) CHECK(close_to(a->norm[s], real(d, norm), bound, 1e-30));
    }
}

static void clips(void) {
    static clip_run runs[MAX_WORLD];
    ds_json *d = NULL;
    size_t bytes = 0;
    char *text = slurp("tests/golden/grad_clip.json", &bytes);
    if (!CHECK(text && ds_json_parse(text, bytes, NULL, &d, NULL) == DS_OK)) return;
    for (ds_json_node c = ds_json_first(d, 0); c != DS_JSON_NO_NODE; c = ds_json_next(d, 0, c)) {
        int world = (int)real(d, ds_json_get(d, c, "world_size"));
        char config[4096];
        ds_json_writer w;
        memset(&w, 0, sizeof w);
        w.out = config;
        w.room = sizeof config - 1;
        print(d, ds_json_get(d, c, "config"), NULL, &w);
        config[w.length] = 0;
        TEST_NAMED(ds_json_string(d, ds_json_get(d, c, "name"), NULL)) {
            ds_comm *comms[MAX_WORLD] = {0};
            pthread_t threads[MAX_WORLD];
            ds_comm_desc desc;
            memset(&desc, 0, sizeof desc);
            desc.timeout = 60000000000;
            if (world > 1) CHECK(ds_comm_threads_create(&desc, world, comms, NULL) == DS_OK);
            memset(runs, 0, sizeof runs);
            for (int r = 0; r < world; r++) {
                runs[r].d = d, runs[r].c = c, runs[r].config = config, runs[r].comm = comms[r];
                runs[r].rank = r, runs[r].world = world;
                runs[r].steps = (int)real(d, ds_json_get(d, c, "steps"));
                pthread_create(&threads[r], NULL, clip_rank, &runs[r]);
            }
            for (int r = 0; r < world; r++) pthread_join(threads[r], NULL);
            if (!CHECK(runs[0].message[0] == 0)) printf("  %s\n", runs[0].message);
            clip_compare(&runs[0]);
            for (int r = 1; r < world; r++) CHECK(memcmp(runs[r].after, runs[0].after, sizeof runs[0].after) == 0);
        }
    }
    ds_json_free(d);
    free(text);
}

int main(int argc, char **argv) {
    static trace out[MAX_WORLD], other[MAX_WORLD];
    size_t bytes, n;
    char *text, *data = slurp("tests/golden/engine_data.safetensors", &bytes);
    ds_json *d = NULL, *header = NULL;
    uint64_t length;
    test_begin(argc, argv);
    if (!CHECK(data != NULL)) return 1;
    memcpy(&length, data, 8);
    CHECK(ds_json_parse(data + 8, (size_t)length, NULL, &header, NULL) == DS_OK);
    load_tensor(header, data + 8 + length, "X", X[0], ROWS * IN);
    load_tensor(header, data + 8 + length, "Y", Y[0], ROWS * OUT);
    for (int i = 0; i < N; i++)
        load_tensor(header, data + 8 + length, names[i], initial[i], shapes[i][0] * (shapes[i][1] ? shapes[i][1] : 1));
    text = slurp("tests/golden/engine.json", &n);
    CHECK(ds_json_parse(text, n, NULL, &d, NULL) == DS_OK);
    for (ds_json_node c = ds_json_first(d, 0); c != DS_JSON_NO_NODE; c = ds_json_next(d, 0, c)) {
        const char *name = ds_json_string(d, ds_json_get(d, c, "name"), NULL);
        ds_json_node multipliers = ds_json_get(d, c, "loss_multiplier_at_step");
        int64_t world = 1, steps = 0, stage = 0;
        char config[4096];
        ds_json_writer w;
        double multiplier[MAX_STEPS];
        bool half = strncmp(name, "fp32", 4) != 0, muon = strstr(name, "muon") != NULL;
        if (ds_json_get(d, ds_json_get(d, c, "expect"), "error") != DS_JSON_NO_NODE)
            continue; /* what DeepSpeed refuses, ds does */
        memset(&w, 0, sizeof w);
        w.out = config;
        w.room = sizeof config - 1;
        print(d, ds_json_get(d, c, "config"), NULL, &w);
        config[w.length] = 0;
        ds_json_integer(d, ds_json_get(d, c, "world_size"), &world);
        ds_json_integer(d, ds_json_get(d, c, "steps"), &steps);
        ds_json_integer(d, ds_json_get(d, c, "zero_stage"), &stage);
        for (int s = 0; s < MAX_STEPS; s++) {
            char key[16];
            ds_json_node m;
            snprintf(key, sizeof key, "%d", s);
            m = ds_json_get(d, multipliers, key);
            multiplier[s] = m == DS_JSON_NO_NODE ? 1.0 : real(d, m);
        }
        TEST_NAMED(name) {
            run(name, config, (int)world, (int)steps, multiplier, out);
            if (out[0].message[0]) break;
            if (half && stage == 0) { /* the reference is stage 1 */
                char *at = strstr(config, "\"stage\":");
                CHECK(at != NULL);
                at[8] = at[8] == ' ' ? ' ' : '1';
                if (at[8] == ' ') at[9] = '1';
                run(name, config, (int)world, (int)steps, multiplier, other);
                CHECK(memcmp(out[0].weights, other[0].weights, sizeof out[0].weights) == 0);
                CHECK(memcmp(out[0].losses, other[0].losses, sizeof out[0].losses) == 0);
            } else
                compare(d, c, out, (int)world, (int)steps, muon);
        }
    }
    TEST(each sample on an edge was met) {
        for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++)
            test_check(met[i], __FILE__, __LINE__, "%s step %d row %zu", edges[i].run, edges[i].step, edges[i].row);
    }
    clips();
    ds_json_free(d);
    ds_json_free(header);
    free(text);
    free(data);
    return test_end();
}
