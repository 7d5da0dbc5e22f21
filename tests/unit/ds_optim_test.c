/* ds_optim_test.c - ds_optim.h against DeepSpeed's and PyTorch's own results (tests/golden/), against a double-precision
   oracle, and against itself: other SIMD levels, threads and cuttings give the same bits. */
#define DS_IMPLEMENTATION
#include "ds_config.h"
#include "ds_optim.h"
#include "tests/test.h"
#include <cpuid.h>
#include <xmmintrin.h>

/* ---- golden files ---- */

static ds_json *golden(const char *name) {
    char path[256];
    ds_json *json = NULL;
    ds_error error;
    FILE *file;
    size_t bytes = 0, room = 1 << 20;
    char *text = (char *)malloc(room);
    snprintf(path, sizeof path, "tests/golden/%s.json", name);
    if ((file = fopen(path, "rb")) == NULL) {
        test_check(0, __FILE__, __LINE__, "cannot open %s (tests run in the repository's root)", path);
        free(text);
        return NULL;
    }
    bytes = fread(text, 1, room, file);
    fclose(file);
    if (ds_json_parse(text, bytes, NULL, &json, &error))
        test_check(0, __FILE__, __LINE__, "%s: %s", path, error.message);
    free(text);
    return json;
}
/* A number, or the text of one: hexadecimal, "inf", "nan". */
static double number(const ds_json *d, ds_json_node node) {
    double value = 0;
    const char *text = ds_json_string(d, node, NULL);
    if (text) return strtod(text, NULL);
    ds_json_number(d, node, &value);
    return value;
}
static double field(const ds_json *d, ds_json_node node, const char *key, double otherwise) {
    ds_json_node value = ds_json_get(d, node, key);
    bool yes;
    if (value == DS_JSON_NO_NODE || ds_json_typeof(d, value) == DS_JSON_NULL) return otherwise;
    if (ds_json_bool(d, value, &yes)) return yes;
    return number(d, value);
}
static const char *text_of(const ds_json *d, ds_json_node node, const char *key) {
    const char *text = ds_json_string(d, ds_json_get(d, node, key), NULL);
    return text ? text : "";
}
static size_t floats(const ds_json *d, ds_json_node list, float *out) {
    size_t n = 0;
    for (ds_json_node v = ds_json_first(d, list); v != DS_JSON_NO_NODE; v = ds_json_next(d, list, v))
        out[n++] = (float)number(d, v);
    return n;
}
#define EACH(v, d, list)                                                                                               \
    for (ds_json_node v = ds_json_first(d, list); v != DS_JSON_NO_NODE; v = ds_json_next(d, list, v))

static void compare(const ds_json *d, ds_json_node list, const float *got, double bound, const char *what) {
    size_t i = 0;
    EACH(v, d, list) {
        double expected = number(d, v);
        test_check(fabs((double)got[i] - expected) <= bound || (double)got[i] == expected, __FILE__, __LINE__,
                   "%s[%zu]: got %.9g, expected %.9g within %g", what, i, (double)got[i], expected, bound);
        i++;
    }
}
static double largest(const ds_json *d, ds_json_node list) {
    double most = 0;
    EACH(v, d, list) if (fabs(number(d, v)) > most) most = fabs(number(d, v));
    return most;
}

/* The hyper-parameters of a golden case over the type's defaults. */
static ds_optim_params params_of(const ds_json *d, ds_json_node root, const char *type) {
    ds_optim_params p;
    ds_json_node hyper = ds_json_get(d, root, "hyper"), betas = ds_json_get(d, hyper, "betas");
    CHECK_EQ(ds_optim_params_default(type, &p), DS_OK);
    p.lr = field(d, hyper, "lr", p.lr);
    if (betas != DS_JSON_NO_NODE)
        p.beta1 = number(d, ds_json_at(d, betas, 0)), p.beta2 = number(d, ds_json_at(d, betas, 1));
    p.eps = field(d, hyper, "eps", p.eps);
    p.weight_decay = field(d, hyper, "weight_decay", 0);
    p.bias_correction = field(d, hyper, "bias_correction", 1) != 0;
    p.adam_w_mode = field(d, hyper, "adam_w_mode", 1) != 0;
    p.momentum = field(d, hyper, "momentum", p.momentum);
    p.torch_adam = strncmp(text_of(d, root, "impl"), "torch", 5) == 0;
    p.dampening = field(d, hyper, "dampening", p.dampening);
    p.nesterov = field(d, hyper, "nesterov", p.nesterov) != 0;
    p.eps_inside_sqrt = field(d, hyper, "eps_inside_sqrt", 0) != 0;
    p.max_coeff = field(d, hyper, "max_coeff", p.max_coeff);
    p.min_coeff = field(d, hyper, "min_coeff", p.min_coeff);
    p.max_grad_norm = field(d, hyper, "max_grad_norm", 0);
    p.freeze_step = (int64_t)field(d, hyper, "freeze_step", (double)p.freeze_step);
    p.var_freeze_step = (int64_t)field(d, hyper, "var_freeze_step", (double)p.var_freeze_step);
    p.var_update_scaler = (int64_t)field(d, hyper, "var_update_scaler", (double)p.var_update_scaler);
    p.local_step_scaler = (int64_t)field(d, hyper, "local_step_scaler", (double)p.local_step_scaler);
    p.local_step_clipper = (int64_t)field(d, hyper, "local_step_clipper", (double)p.local_step_clipper);
    p.coeff_beta = field(d, hyper, "coeff_beta", p.coeff_beta);
    p.factor_max = field(d, hyper, "factor_max", p.factor_max);
    p.factor_min = field(d, hyper, "factor_min", p.factor_min);
    p.factor_threshold = field(d, hyper, "factor_threshold", p.factor_threshold);
    return p;
}

enum { TENSORS = 8, ELEMENTS = 256 };
typedef struct model {
    size_t count;
    ds_optim_tensor tensors[TENSORS];
    char names[TENSORS][16];
    float weights[TENSORS][ELEMENTS], grads[TENSORS][ELEMENTS];
} model;
static void model_of(model *m, const ds_json *d, ds_json_node shapes, ds_json_node init) {
    memset(m, 0, sizeof *m);
    EACH(shape, d, shapes) {
        ds_optim_tensor *t = &m->tensors[m->count];
        size_t dims = ds_json_count(d, shape);
        snprintf(m->names[m->count], sizeof m->names[0], "t%zu", m->count);
        t->name = m->names[m->count];
        t->rows = dims == 2 ? (size_t)number(d, ds_json_at(d, shape, 0)) : 1;
        t->cols = dims ? (size_t)number(d, ds_json_at(d, shape, dims - 1)) : 1;
        m->count++;
    }
    for (size_t i = 0; i < m->count; i++) floats(d, ds_json_at(d, init, i), m->weights[i]);
}
static ds_optim *create(const char *type, const ds_optim_params *p, const model *m) {
    ds_optim_desc desc;
    ds_optim *o = NULL;
    ds_error error = {DS_OK, ""};
    memset(&desc, 0, sizeof desc);
    desc.type = type, desc.groups = p, desc.group_count = 1;
    desc.tensors = m->tensors, desc.tensor_count = m->count, desc.own_states = true;
    if (ds_optim_create(&desc, &o, &error)) test_check(0, __FILE__, __LINE__, "%s", error.message);
    return o;
}
static ds_status step(ds_optim *o, model *m, const ds_optim_options *options, ds_optim_report *report) {
    ds_optim_io io[TENSORS];
    for (size_t i = 0; i < m->count; i++) {
        io[i].weights = m->weights[i], io[i].grad = m->grads[i];
        io[i].weights_dtype = io[i].grad_dtype = DS_F32;
    }
    return ds_optim_step(o, io, options, report);
}

static void golden_optimizers(void) {
    ds_json *d = golden("optimizers");
    static model m;
    if (!d) return;
    EACH(c, d, 0) TEST_NAMED(text_of(d, c, "name")) {
        const char *type = text_of(d, c, "optimizer");
        ds_optim_params p = params_of(d, c, type);
        ds_json_node expect = ds_json_get(d, c, "expect"), state = ds_json_get(d, expect, "state");
        size_t steps = (size_t)field(d, c, "steps", 0);
        double bound = field(d, c, "tol_abs", 0);
        ds_loss_scaler scaler;
        ds_loss_scaler_params scale = {false, field(d, c, "grad_scale", 1), 1, 1, false, 1, 2, false};
        ds_optim_options options = {0, &scaler, false};
        ds_optim *o;
        model_of(&m, d, ds_json_get(d, c, "shapes"), ds_json_get(d, c, "init"));
        CHECK_EQ(ds_loss_scaler_init(&scaler, &scale, NULL), DS_OK);
        if ((o = create(type, &p, &m)) == NULL) break;
        for (size_t s = 0; s < steps; s++) {
            for (size_t i = 0; i < m.count; i++)
                floats(d, ds_json_at(d, ds_json_at(d, ds_json_get(d, c, "grads"), s), i), m.grads[i]);
            CHECK(step(o, &m, &options, NULL) == DS_OK);
            for (size_t i = 0; i < m.count; i++)
                compare(d, ds_json_at(d, ds_json_at(d, ds_json_get(d, expect, "params"), s), i), m.weights[i], bound,
                        "params");
        }
        for (size_t i = 0; i < m.count; i++)
            for (size_t k = 0; k < ds_optim_state_count(o, i); k++) {
                ds_json_node list = ds_json_at(d, ds_json_get(d, state, ds_optim_state_name(o, i, k)), i);
                CHECK(list != DS_JSON_NO_NODE);
                compare(d, list, ds_optim_own_state(o, i, k), 4e-6 * largest(d, list), ds_optim_state_name(o, i, k));
            }
        ds_optim_destroy(o);
    }
    ds_json_free(d);
}

static void golden_loss_scaler(void) {
    ds_json *d = golden("loss_scaler");
    if (!d) return;
    EACH(c, d, 0) if (strcmp(text_of(d, c, "path"), "zero") == 0) TEST_NAMED(text_of(d, c, "name")) {
        ds_json_node given = ds_json_get(d, c, "params"), expect = ds_json_get(d, c, "expect");
        const char *overflow = text_of(d, c, "overflow");
        const bool half = strcmp(text_of(d, c, "dtype"), "fp16") == 0;
        double error_at = field(d, ds_json_get(d, expect, "error"), "at_step", -1);
        ds_loss_scaler_params p;
        ds_loss_scaler s;
        ds_loss_scaler_params_default(&p);
        p.dynamic = ds_json_get(d, given, "static") == DS_JSON_NO_NODE;
        p.initial = p.dynamic ? field(d, given, "init_scale", 0) : field(d, given, "static", 0);
        p.window = (int64_t)field(d, given, "scale_window", 1000);
        p.minimum = field(d, given, "min_scale", 1);
        p.hysteresis = (int64_t)field(d, given, "delayed_shift", 1);
        p.consecutive_hysteresis = field(d, given, "consecutive_hysteresis", 0) != 0;
        p.go_on_at_minimum = field(d, given, "raise_error_at_min_scale", 1) == 0;
        CHECK_EQ(ds_loss_scaler_init(&s, half ? &p : NULL, NULL), DS_OK);
        CHECK(s.scale == field(d, expect, "initial_scale", 0));
        for (size_t i = 0; overflow[i]; i++) {
            ds_status status = ds_loss_scaler_update(&s, overflow[i] == '1');
            if ((double)i == error_at) {
                CHECK_EQ(status, DS_ERR_NUMERIC);
                break;
            }
            CHECK_EQ(status, DS_OK);
            CHECK(s.scale == number(d, ds_json_at(d, ds_json_get(d, expect, "scale"), i)));
        }
    }
    ds_json_free(d);
}

/* A value of a schedule's parameter: a scalar, or the group's entry of a list. */
static double per_group(const ds_json *d, ds_json_node params, const char *key, size_t group, double otherwise) {
    ds_json_node v = ds_json_get(d, params, key);
    if (ds_json_typeof(d, v) == DS_JSON_ARRAY) return number(d, ds_json_at(d, v, group));
    return field(d, params, key, otherwise);
}
static void golden_schedules(void) {
    ds_json *d = golden("schedulers");
    if (!d) return;
    EACH(c, d, 0)
    if (ds_json_get(d, ds_json_get(d, c, "expect"), "lr") != DS_JSON_NO_NODE) TEST_NAMED(text_of(d, c, "name")) {
            ds_json_node p = ds_json_get(d, c, "params"), expect = ds_json_get(d, c, "expect"),
                         lr = ds_json_get(d, expect, "lr");
            ds_json_node beta1 = ds_json_get(d, expect, "beta1");
            for (size_t g = 0; g < ds_json_count(d, lr); g++) {
                double base = number(d, ds_json_at(d, ds_json_get(d, ds_json_get(d, c, "optimizer"), "lr"), g));
                ds_schedule s;
                int64_t k = 0;
                CHECK_EQ(ds_schedule_default(text_of(d, c, "type"), &s, NULL), DS_OK);
                s.warmup_min_lr = per_group(d, p, "warmup_min_lr", g, s.warmup_min_lr);
                s.warmup_max_lr = per_group(d, p, "warmup_max_lr", g, s.warmup_max_lr);
                s.warmup_num_steps = (int64_t)field(d, p, "warmup_num_steps", (double)s.warmup_num_steps);
                s.total_num_steps = (int64_t)field(d, p, "total_num_steps", 0);
                s.warmup_linear = strcmp(text_of(d, p, "warmup_type"), "linear") == 0;
                s.warmup_min_ratio = field(d, p, "warmup_min_ratio", s.warmup_min_ratio);
                s.cos_min_ratio = field(d, p, "cos_min_ratio", s.cos_min_ratio);
                s.cycle_min_lr = per_group(d, p, "cycle_min_lr", g, 0);
                s.cycle_max_lr = per_group(d, p, "cycle_max_lr", g, 0);
                s.decay_lr_rate = field(d, p, "decay_lr_rate", 0);
                s.cycle_first_step_size = field(d, p, "cycle_first_step_size", s.cycle_first_step_size);
                s.cycle_symmetric = ds_json_get(d, p, "cycle_second_step_size") == DS_JSON_NO_NODE;
                s.cycle_second_step_size = field(d, p, "cycle_second_step_size", 0);
                s.cycle_first_stair_count = (int64_t)field(d, p, "cycle_first_stair_count", 0);
                s.cycle_second_stair_count = (int64_t)field(d, p, "cycle_second_stair_count", -1);
                s.decay_step_size = field(d, p, "decay_step_size", 0);
                s.cycle_momentum = field(d, p, "cycle_momentum", 1) != 0;
                s.cycle_min_mom = per_group(d, p, "cycle_min_mom", g, s.cycle_min_mom);
                s.cycle_max_mom = per_group(d, p, "cycle_max_mom", g, s.cycle_max_mom);
                s.decay_mom_rate = field(d, p, "decay_mom_rate", 0);
                s.lr_range_test_min_lr = per_group(d, p, "lr_range_test_min_lr", g, s.lr_range_test_min_lr);
                s.lr_range_test_step_size =
                    (int64_t)field(d, p, "lr_range_test_step_size", (double)s.lr_range_test_step_size);
                s.lr_range_test_step_rate = field(d, p, "lr_range_test_step_rate", s.lr_range_test_step_rate);
                s.lr_range_test_staircase = field(d, p, "lr_range_test_staircase", 0) != 0;
                CHECK_EQ(ds_schedule_check(&s, NULL), DS_OK);
                EACH(v, d, ds_json_at(d, lr, g)) {
                    double got = ds_schedule_lr(&s, k, base), expected = number(d, v), b1 = 0.9, b2 = 0.999;
                    test_check(fabs(got - expected) <= 1e-12 * fabs(expected) + 1e-300, __FILE__, __LINE__,
                               "lr after %lld steps: got %.17g, expected %.17g", (long long)k, got, expected);
                    if (beta1 != DS_JSON_NO_NODE) {
                        ds_schedule_betas(&s, k, &b1, &b2);
                        CHECK_NEAR(b1, number(d, ds_json_at(d, ds_json_at(d, beta1, g), (size_t)k)), 1e-12);
                        CHECK_NEAR(
                            b2, number(d, ds_json_at(d, ds_json_at(d, ds_json_get(d, expect, "beta2"), g), (size_t)k)),
                            0);
                    }
                    k++;
                }
            }
        }
    ds_json_free(d);
}

/* The injected gradients of all ranks, averaged and clipped as the engine would, by SGD with rate 1. Steps where the
   loss scale grows divide by the scale that multiplied the loss (DeepSpeed divides by the new one). */
static void golden_clip(void) {
    ds_json *d = golden("grad_clip");
    static model m;
    if (!d) return;
    EACH(c, d, 0) TEST_NAMED(text_of(d, c, "name")) {
        ds_json_node expect = ds_json_get(d, c, "expect"), grads = ds_json_get(d, c, "grads");
        ds_json_node norms = ds_json_get(d, expect, "grad_norm"),
                     scales = ds_json_get(d, expect, "loss_scale_after_step");
        size_t ranks = ds_json_count(d, grads), steps = (size_t)field(d, c, "steps", 0);
        const bool fp32_stage0 = field(d, c, "zero_stage", 0) == 0 && strcmp(text_of(d, c, "dtype"), "fp32") == 0;
        double bound = field(d, c, "tol_rel", 0), last_scale = 0, last_norm = 0;
        ds_optim_params p;
        ds_optim *o;
        static float before[TENSORS][ELEMENTS];
        ds_optim_params_default("SGD", &p);
        p.lr = 1;
        model_of(&m, d, ds_json_get(d, c, "shapes"), ds_json_get(d, c, "init"));
        if ((o = create("SGD", &p, &m)) == NULL) break;
        for (size_t s = 0; s < steps; s++) {
            ds_json_node after = ds_json_at(d, ds_json_get(d, expect, "params_after_step"), s);
            double scale = number(d, ds_json_at(d, scales, s));
            bool grew = s && scale > last_scale, unchecked = fp32_stage0 && field(d, c, "gradient_clipping", 0) == 0;
            ds_optim_options options = {field(d, c, "gradient_clipping", 0), NULL, unchecked};
            ds_optim_report report;
            memset(m.grads, 0, sizeof m.grads);
            for (size_t r = 0; r < ranks; r++)
                for (size_t i = 0; i < m.count; i++) {
                    float own[ELEMENTS];
                    size_t n = floats(d, ds_json_at(d, ds_json_at(d, ds_json_at(d, grads, r), s), i), own);
                    for (size_t j = 0; j < n; j++) m.grads[i][j] += own[j] / (float)ranks;
                }
            memcpy(before, m.weights, sizeof before);
            CHECK(step(o, &m, &options, &report) == DS_OK);
            if (ds_json_typeof(d, ds_json_at(d, norms, s)) != DS_JSON_NULL) {
                last_norm = number(d, ds_json_at(d, norms, s));
                if (isinf(last_norm))
                    CHECK(report.skipped == DS_OPTIM_OVERFLOW && report.overflow_tensor < m.count);
                else
                    test_check(fabs(report.grad_norm - last_norm) <= bound * last_norm, __FILE__, __LINE__,
                               "norm %g, expected %g", report.grad_norm, last_norm);
            }
            for (size_t i = 0; i < m.count && !grew; i++)
                compare(d, ds_json_at(d, after, i), m.weights[i],
                        bound * (largest(d, ds_json_at(d, after, i)) +
                                 largest(d, ds_json_at(d, ds_json_at(d, ds_json_at(d, grads, 0), s), i))),
                        "params");
            for (size_t i = 0; i < m.count; i++) floats(d, ds_json_at(d, after, i), m.weights[i]);
            last_scale = scale;
        }
        ds_optim_destroy(o);
    }
    ds_json_free(d);
}

/* ---- Muon ---- */

/* With a rate of one, no decay and weights of zero, the new weights are minus the update. */
static void muon_case(const ds_json *d, ds_json_node c, bool update) {
    static model m;
    ds_json_node shape = ds_json_get(d, c, "shape"), expect = ds_json_get(d, c, "expect");
    const size_t rows = (size_t)number(d, ds_json_at(d, shape, 0)), cols = (size_t)number(d, ds_json_at(d, shape, 1));
    const size_t steps = update ? (size_t)field(d, c, "steps", 0) : 1;
    const float shape_scale = update || rows <= cols ? 1 : (float)sqrt((double)rows / (double)cols);
    double bound = field(d, c, "tol_abs", 0);
    ds_optim_params p;
    ds_optim *o;
    memset(&m, 0, sizeof m);
    m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = rows, m.tensors[0].cols = cols;
    m.tensors[0].muon = DS_OPTIM_MUON_ON;
    ds_optim_params_default("Muon", &p);
    p.lr = 1, p.weight_decay = 0, p.ns_steps = (int)field(d, c, "ns_steps", 5);
    p.ns_method = strcmp(text_of(d, c, "ns_method"), "gram") == 0 ? DS_OPTIM_NS_GRAM : DS_OPTIM_NS_STANDARD;
    p.momentum = update ? field(d, c, "beta", 0) : 0;
    p.nesterov = update && field(d, c, "nesterov", 1) != 0;
    if ((o = create("muon", &p, &m)) == NULL) return;
    for (size_t s = 0; s < steps; s++) {
        ds_json_node expected =
            update ? ds_json_at(d, ds_json_get(d, expect, "update"), s) : ds_json_get(d, expect, "output");
        floats(d, update ? ds_json_at(d, ds_json_get(d, c, "grads"), s) : ds_json_get(d, c, "input"), m.grads[0]);
        memset(m.weights, 0, sizeof m.weights);
        CHECK(step(o, &m, NULL, NULL) == DS_OK);
        for (size_t i = 0; i < rows * cols; i++) m.weights[0][i] = -m.weights[0][i] / shape_scale;
        compare(d, expected, m.weights[0], bound, "update");
    }
    if (update) compare(d, ds_json_get(d, expect, "momentum"), ds_optim_own_state(o, 0, 0), bound, "momentum");
    ds_optim_destroy(o);
}
static void muon_aux_case(const ds_json *d, ds_json_node c) {
    static model m;
    ds_json_node hyper = ds_json_get(d, c, "hyper"), adam = ds_json_get(d, hyper, "adam"),
                 expect = ds_json_get(d, c, "expect");
    ds_json_node betas = ds_json_get(d, adam, "betas"), lists[2][2];
    const size_t matrices = ds_json_count(d, ds_json_get(d, c, "matrix_shapes"));
    ds_optim_params p[2];
    ds_optim_desc desc;
    ds_optim *o = NULL;
    ds_error error;
    memset(&m, 0, sizeof m);
    for (int v = 0; v < 2; v++) EACH(shape, d, ds_json_get(d, c, v ? "vector_shapes" : "matrix_shapes")) {
            ds_optim_tensor *t = &m.tensors[m.count];
            snprintf(m.names[m.count], sizeof m.names[0], "t%zu", m.count);
            t->name = m.names[m.count], t->group = (size_t)v;
            t->rows = v ? 1 : (size_t)number(d, ds_json_at(d, shape, 0));
            t->cols = (size_t)number(d, ds_json_at(d, shape, v ? 0 : 1));
            floats(d,
                   ds_json_at(d, ds_json_get(d, c, v ? "init_vectors" : "init_matrices"),
                              v ? m.count - matrices : m.count),
                   m.weights[m.count]);
            m.count++;
        }
    ds_optim_params_default("Muon", &p[0]);
    p[0].lr = field(d, hyper, "lr", 0), p[0].momentum = field(d, hyper, "momentum", 0);
    p[0].weight_decay = field(d, hyper, "weight_decay", 0), p[0].torch_adam = true;
    p[0].adam_w_mode = field(d, c, "adam_w_mode", 1) != 0;
    p[0].ns_steps = (int)field(d, c, "ns_steps", 5);
    p[0].ns_method = strcmp(text_of(d, c, "ns_method"), "gram") == 0 ? DS_OPTIM_NS_GRAM : DS_OPTIM_NS_STANDARD;
    p[1] = p[0];
    p[1].adam_lr = field(d, adam, "lr", 0), p[1].eps = field(d, adam, "eps", 0);
    p[1].beta1 = number(d, ds_json_at(d, betas, 0)), p[1].beta2 = number(d, ds_json_at(d, betas, 1));
    p[1].weight_decay = field(d, adam, "weight_decay", 0);
    memset(&desc, 0, sizeof desc);
    desc.type = "Muon", desc.groups = p, desc.group_count = 2;
    desc.tensors = m.tensors, desc.tensor_count = m.count, desc.own_states = true;
    if (!CHECK(ds_optim_create(&desc, &o, &error) == DS_OK)) return;
    lists[0][0] = ds_json_get(d, c, "grads_matrices"), lists[0][1] = ds_json_get(d, c, "grads_vectors");
    lists[1][0] = ds_json_get(d, expect, "matrices"), lists[1][1] = ds_json_get(d, expect, "vectors");
    for (size_t s = 0; s < (size_t)field(d, c, "steps", 0); s++) {
        for (size_t i = 0; i < m.count; i++)
            floats(d, ds_json_at(d, ds_json_at(d, lists[0][i >= matrices], s), i < matrices ? i : i - matrices),
                   m.grads[i]);
        CHECK(step(o, &m, NULL, NULL) == DS_OK);
        for (size_t i = 0; i < m.count; i++)
            compare(d, ds_json_at(d, ds_json_at(d, lists[1][i >= matrices], s), i < matrices ? i : i - matrices),
                    m.weights[i], field(d, c, i < matrices ? "tol_abs" : "tol_abs_vectors", 0), m.names[i]);
    }
    for (size_t i = 0; i < m.count; i++)
        for (size_t k = 0; k < ds_optim_state_count(o, i); k++)
            compare(d,
                    ds_json_at(d, ds_json_get(d, ds_json_get(d, expect, "state"), ds_optim_state_name(o, i, k)),
                               i < matrices ? i : i - matrices),
                    ds_optim_own_state(o, i, k), field(d, c, "tol_abs", 0), ds_optim_state_name(o, i, k));
    ds_optim_destroy(o);
}
static void golden_muon(void) {
    ds_json *d = golden("muon");
    if (!d) return;
    EACH(c, d, 0) TEST_NAMED(text_of(d, c, "name")) {
        const char *kind = text_of(d, c, "kind");
        if (strcmp(kind, "muon_with_aux_adam") == 0)
            muon_aux_case(d, c);
        else
            muon_case(d, c, strcmp(kind, "muon_update") == 0);
    }
    ds_json_free(d);
}

/* ---- the 1-bit family, on threads as ranks ---- */

enum { RANKS_MOST = 4 };
typedef struct ranks {
    size_t size;
    pthread_barrier_t barrier;
    unsigned char bytes[RANKS_MOST][4096];
} ranks;
typedef struct rank {
    ranks *all;
    int rank;
    const ds_json *d;
    ds_json_node c;
} rank;
static ds_status exchange(void *ctx, const void *mine, void *all, size_t bytes) {
    rank *r = (rank *)ctx;
    memcpy(r->all->bytes[r->rank], mine, bytes);
    pthread_barrier_wait(&r->all->barrier);
    for (size_t i = 0; i < r->all->size; i++) memcpy((char *)all + i * bytes, r->all->bytes[i], bytes);
    pthread_barrier_wait(&r->all->barrier);
    return DS_OK;
}
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER; /* for CHECK */
static void *one_bit_rank(void *arg) {
    rank *r = (rank *)arg;
    const ds_json *d = r->d;
    const ds_json_node c = r->c, expect = ds_json_get(d, c, "expect"), grads = ds_json_get(d, c, "grads");
    const ds_json_node mask_list = ds_json_get(d, c, "exp_avg_mask"), apart = ds_json_get(d, expect, "params_per_rank");
    const char *type = text_of(d, c, "optimizer");
    const ds_optim_options unchecked = {0, NULL, true};
    double bound = field(d, c, "tol_abs", 0);
    float mask[ELEMENTS];
    const float *masks[TENSORS];
    ds_optim_params p;
    ds_optim_desc desc;
    ds_optim *o = NULL;
    ds_error error;
    model *m = (model *)calloc(1, sizeof *m);
    pthread_mutex_lock(&one_at_a_time);
    p = params_of(d, c, type);
    model_of(m, d, ds_json_get(d, c, "shapes"), ds_json_get(d, c, "init"));
    memset(&desc, 0, sizeof desc);
    desc.type = type, desc.groups = &p, desc.group_count = 1;
    desc.tensors = m->tensors, desc.tensor_count = m->count, desc.own_states = true;
    desc.group.exchange = exchange, desc.group.ctx = r, desc.group.rank = r->rank, desc.group.size = (int)r->all->size;
    for (size_t i = 0; i < m->count; i++) masks[i] = mask;
    if (ds_json_typeof(d, mask_list) == DS_JSON_ARRAY) floats(d, mask_list, mask), desc.masks = masks;
    if (ds_optim_create(&desc, &o, &error)) test_check(0, __FILE__, __LINE__, "%s", error.message);
    pthread_mutex_unlock(&one_at_a_time);
    for (size_t s = 0; o && s < (size_t)field(d, c, "steps", 0); s++) {
        bool average = false;
        ds_json_bool(d, ds_json_at(d, ds_json_get(d, expect, "allreduce_before_step"), s), &average);
        memset(m->grads, 0, sizeof m->grads);
        for (size_t q = 0; q < r->all->size; q++)
            for (size_t i = 0; i < m->count; i++) {
                float own[ELEMENTS];
                size_t n = floats(d, ds_json_at(d, ds_json_at(d, ds_json_at(d, grads, q), s), i), own);
                for (size_t j = 0; j < n; j++)
                    if (average)
                        m->grads[i][j] += own[j] / (float)r->all->size;
                    else if ((int)q == r->rank)
                        m->grads[i][j] = own[j];
            }
        {
            const bool local = ds_optim_wants_local_gradients(o);
            const ds_status status = step(o, m, &unchecked, NULL);
            ds_json_node after = ds_json_at(
                d, apart == DS_JSON_NO_NODE ? ds_json_get(d, expect, "params") : ds_json_at(d, apart, (size_t)r->rank),
                s);
            pthread_mutex_lock(&one_at_a_time);
            CHECK(status == DS_OK);
            CHECK(local == !average);
            for (size_t i = 0; i < m->count; i++) compare(d, ds_json_at(d, after, i), m->weights[i], bound, "params");
            for (int which = 0; which < 2; which++) {
                ds_json_node list = ds_json_at(
                    d, ds_json_at(d, ds_json_get(d, expect, which ? "server_error" : "worker_error"), (size_t)r->rank),
                    s);
                size_t i = 0, n;
                EACH(e, d, list) {
                    if (ds_json_typeof(d, e) == DS_JSON_ARRAY) {
                        float *buffer = ds_optim_error_buffer(o, i, which, &n);
                        CHECK_EQ(n, ds_json_count(d, e));
                        compare(d, e, buffer, bound, which ? "server_error" : "worker_error");
                    }
                    i++;
                }
            }
            pthread_mutex_unlock(&one_at_a_time);
        }
    }
    pthread_mutex_lock(&one_at_a_time);
    for (size_t i = 0; o && i < m->count; i++)
        for (size_t k = 0; k < ds_optim_state_count(o, i); k++) {
            char key[64];
            ds_json_node list;
            snprintf(key, sizeof key, "final_%s", ds_optim_state_name(o, i, k));
            list = ds_json_get(d, expect, key);
            if (k < 2 || ds_json_typeof(d, ds_json_at(d, ds_json_at(d, list, 0), 0)) == DS_JSON_ARRAY)
                list =
                    ds_json_at(d, list, (size_t)r->rank); // the fresh variance is alike on all ranks, and listed once
            list = ds_json_at(d, list, i);
            CHECK(list != DS_JSON_NO_NODE);
            compare(d, list, ds_optim_own_state(o, i, k), bound, key);
        }
    pthread_mutex_unlock(&one_at_a_time);
    ds_optim_destroy(o);
    free(m);
    return NULL;
}
static void run_ranks(rank *each, ranks *all, size_t size, void *(*body)(void *)) {
    pthread_t threads[RANKS_MOST];
    all->size = size;
    pthread_barrier_init(&all->barrier, NULL, (unsigned)size);
    for (size_t i = 0; i < size; i++) {
        each[i].all = all, each[i].rank = (int)i;
        pthread_create(&threads[i], NULL, body, &each[i]);
    }
    for (size_t i = 0; i < size; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&all->barrier);
}
static void golden_one_bit(void) {
    ds_json *d = golden("one_bit");
    static ranks all;
    if (!d) return;
    EACH(c, d, 0) TEST_NAMED(text_of(d, c, "name")) {
        rank each[RANKS_MOST];
        for (int i = 0; i < RANKS_MOST; i++) each[i].d = d, each[i].c = c;
        run_ranks(each, &all, (size_t)field(d, c, "world_size", 1), one_bit_rank);
    }
    ds_json_free(d);
}

/* ---- one result: levels, cuttings, threads, alignment ---- */

static uint64_t hash_bytes(uint64_t h, const void *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)bytes)[i]) * 0x100000001B3u;
    return h;
}
static const char *const every_type[] = {"Adam", "AdamW", "SGD",        "Adagrad",     "Lion",
                                         "Lamb", "Muon",  "OneBitAdam", "ZeroOneAdam", "OneBitLamb"};
enum { TYPES = sizeof every_type / sizeof *every_type };

/* Gradients and weights that a trainer never shows: denormals, zeros of both signs, huge and tiny next to each other. */
static float wild(uint64_t *seed) {
    const double u = test_uniform(seed) * 2 - 1;
    switch (test_random(seed) % 16) {
    case 0: return 0.0f;
    case 1: return -0.0f;
    case 2: return dsi_f32_of_bits((uint32_t)(test_random(seed) & 0x807FFFFFu)); /* denormal */
    case 3: return (float)(u * 1e-20);
    case 4: return (float)(u * 1e12);
    default: return (float)u;
    }
}
enum { BIG = 5 * DS_GRAIN + 37 };
typedef struct arrays { /* one float beyond the front, so that nothing is aligned to more than an element */
    float weights[1 + BIG], state[DS_OPTIM_MAX_STATES][1 + BIG], grad[1 + BIG];
    uint16_t half_grad[1 + BIG], out[1 + BIG];
} arrays;

/* Every set of kernels: 1 to 3 are the levels, 4 is the way through AVX-512 that this machine does not take. NULL where
   the machine lacks the level. */
enum { SCALAR = DS_OPTIM_LEVEL_SCALAR, AVX2, AVX512, AVX512_OTHER };
static const dsi_optim_simd *kernels(int set) {
    const dsi_optim_simd *k = dsi_optim_kernels_of((ds_optim_level)(set < AVX512_OTHER ? set : AVX512));
#if DS_OPTIM_SIMD && defined(__x86_64__)
    if (k && set == AVX512_OTHER) return k == &dsi_optim_x16_plain ? &dsi_optim_x16_ahead : &dsi_optim_x16_plain;
#endif
    return k;
}

/* Some steps of `type` over one tensor cut every `cut` grains, last slice first; a hash of all that it wrote. */
static uint64_t run_bits(const char *type, int set, size_t count, size_t cut, ds_dtype dtype, unsigned threads) {
    static arrays a;
    ds_optim_tensor tensor = {"w", 1, 0, 0, DS_F32, DS_OPTIM_MUON_AUTO};
    ds_optim_params p;
    ds_optim_desc desc;
    ds_optim *o = NULL;
    ds_error error;
    uint64_t seed = 7 + count, h = 0xCBF29CE484222325u;
    memset(&desc, 0, sizeof desc);
    memset(&a, 0, sizeof a);
    ds_optim_params_default(type, &p);
    p.weight_decay = count % 4 == 3 ? 0 : 0.1, p.momentum = 0.9, p.nesterov = true, p.freeze_step = 2,
    p.var_freeze_step = 3;
    p.adam_w_mode = strcmp(type, "Adam") != 0;
    tensor.cols = count;
    if (strcmp(type, "Muon") == 0)
        tensor.muon = DS_OPTIM_MUON_ON, tensor.rows = 37, tensor.cols = count / 37, count = tensor.rows * tensor.cols;
    desc.type = type, desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor, desc.tensor_count = 1;
    desc.level = (ds_optim_level)(set < AVX512_OTHER ? set : AVX512), desc.threads = threads;
    if (!CHECK(ds_optim_create(&desc, &o, &error) == DS_OK)) return 0;
    o->simd = kernels(set);
    if (ds_optim_tensor_work(o, 0) >= DS_OPTIM_WHOLE || !cut) cut = BIG;
    for (size_t i = 0; i < count; i++) a.weights[1 + i] = wild(&seed);
    for (int s = 0; s < 5; s++) {
        ds_optim_slice slices[8];
        size_t n = 0;
        for (size_t i = 0; i < count; i++) {
            float g = wild(&seed);
            a.grad[1 + i] = g;
            a.half_grad[1 + i] = dtype == DS_F16 ? dsi_f16_of_f32(g * 1e-8f) : dsi_bf16_of_f32(g);
        }
        for (size_t begin = 0; begin < count; begin += cut * DS_GRAIN, n++) {
            ds_optim_slice *x = &slices[n];
            memset(x, 0, sizeof *x);
            x->begin = begin, x->count = count - begin < cut * DS_GRAIN ? count - begin : cut * DS_GRAIN;
            x->master = a.weights + 1 + begin;
            for (size_t k = 0; k < DS_OPTIM_MAX_STATES; k++) x->state[k] = a.state[k] + 1 + begin;
            x->grad = dtype == DS_F32 ? (void *)(a.grad + 1 + begin) : (void *)(a.half_grad + 1 + begin);
            x->grad_dtype = dtype;
            x->weights16 = s == 3 ? NULL : a.out + 1 + begin;
            x->weights16_dtype = s % 2 ? DS_BF16 : DS_F16;
        }
        CHECK(ds_optim_begin(o, s ? 0.25 : 1, 1, 0) == DS_OK);
        if (ds_optim_tensor_work(o, 0) == DS_OPTIM_BY_NORM || ds_optim_tensor_work(o, 0) == DS_OPTIM_WHOLE_BY_NORM) {
            for (size_t i = n; i--;) CHECK(ds_optim_measure(o, &slices[i], 1) == DS_OK);
            CHECK(ds_optim_combine(o) == DS_OK);
        }
        if (s % 2)
            CHECK(ds_optim_apply(o, slices, n) == DS_OK);
        else
            for (size_t i = n; i--;) CHECK(ds_optim_apply(o, &slices[i], 1) == DS_OK);
        CHECK(ds_optim_end(o) == DS_OK);
        h = hash_bytes(h, a.out, sizeof a.out);
    }
    h = hash_bytes(h, a.weights, sizeof a.weights);
    h = hash_bytes(h, a.state, sizeof a.state);
    ds_optim_destroy(o);
    return h;
}

/* Whether the upper halves of vectors are in use, which makes scalar code of Intel's wait; false also where the processor does
   not tell, and in a build that leaves them so itself: not optimised, or with calls of a sanitizer in vector code. */
static bool upper_halves(void) {
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(13, 1, &a, &b, &c, &d) && (a & 4)) {
        __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(1));
        return a & 0x44;
    }
#endif
    return false;
}

static void one_result(void) {
    static const size_t sizes[] = {0, 1, 7, 8, 15, 16, 17, 31, 33, 1023, 1024, 1025, BIG};
    static const ds_dtype dtypes[] = {DS_F32, DS_BF16, DS_F16};
    for (int set = AVX2; set <= AVX512_OTHER; set++)
        for (int t = 0; t < TYPES; t++) {
            char name[64];
            snprintf(name, sizeof name, "bits_level%d_%s", set, every_type[t]);
            TEST_NAMED(name) {
                if (!kernels(set)) {
                    SKIP("this machine lacks the SIMD level");
                    break;
                }
                for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
                    ds_dtype dtype = dtypes[i % 3];
                    CHECK(run_bits(every_type[t], SCALAR, sizes[i], 0, dtype, 0) ==
                          run_bits(every_type[t], set, sizes[i], 0, dtype, 0));
                }
            }
        }
    TEST(vectors_leave_their_upper_halves_clean) {
        static float x[3000];
        double norms[3];
        CHECK(!upper_halves());
        for (size_t n = 1; n < 3000; n += n < 40 ? 1 : 491)
            for (int d = 0; d < 3; d++) {
                ds_optim_norm_grains(x, dtypes[d], n, 1.0f, norms);
                if (!CHECK(!upper_halves())) printf("  the norm of %zu elements of type %d\n", n, (int)dtypes[d]);
                CHECK(ds_optim_accumulate(x, DS_F32, x, dtypes[d], n) == DS_OK && !upper_halves());
                for (int t = 0; t < TYPES && n <= 1000; t++) {
                    (void)run_bits(every_type[t], DS_OPTIM_LEVEL_BEST, n, 0, dtypes[d], 0);
                    if (!CHECK(!upper_halves())) printf("  %s of %zu elements\n", every_type[t], n);
                }
            }
    }
    for (int t = 0; t < TYPES; t++) {
        char name[64];
        snprintf(name, sizeof name, "bits_cutting_%s", every_type[t]);
        TEST_NAMED(name) {
            const uint64_t h = run_bits(every_type[t], DS_OPTIM_LEVEL_BEST, BIG, 0, DS_BF16, 0);
            CHECK(run_bits(every_type[t], DS_OPTIM_LEVEL_BEST, BIG, 1, DS_BF16, 0) == h);
            CHECK(run_bits(every_type[t], DS_OPTIM_LEVEL_BEST, BIG, 2, DS_BF16, 3) == h);
            CHECK(run_bits(every_type[t], DS_OPTIM_LEVEL_BEST, BIG, 0, DS_BF16, 4) == h);
        }
    }
    TEST(norm_of_every_level) {
        static float x[DS_GRAIN];
        static uint16_t half[2][DS_GRAIN];
        const dsi_optim_simd *scalar = kernels(SCALAR);
        uint64_t seed = 11;
        for (size_t i = 0; i < DS_GRAIN; i++) {
            x[i] = wild(&seed);
            half[0][i] = dsi_bf16_of_f32(x[i]), half[1][i] = dsi_f16_of_f32(x[i] * 1e-8f);
        }
        for (int set = AVX2; set <= AVX512_OTHER; set++) {
            const dsi_optim_simd *simd = kernels(set);
            for (int d = 0; simd && d < 3; d++)
                for (size_t n = 0; n <= DS_GRAIN; n = n < 70 ? n + 1 : n < 1023 ? 1023 : n + 1) {
                    const void *grad = d ? (const void *)half[d - 1] : (const void *)x;
                    const dsi_optim_feed f = {grad, dtypes[d], DS_F32, 0.3f, false, NULL};
                    const double a = scalar->norm(&f, n), b = simd->norm(&f, n);
                    CHECK(memcmp(&a, &b, sizeof a) == 0 && (n < 16 || a > 0));
                }
        }
    }
    TEST(large_sixteen_bit_weights) {
        /* of a million elements on, aligned 16-bit weights are written past the caches: still the rounded masters */
        const size_t n = ((size_t)1 << 20) + 1029, room = n + 64;
        for (int level = DS_OPTIM_LEVEL_SCALAR; level <= DS_OPTIM_LEVEL_AVX512; level++)
            for (int aligned = 0; aligned < 2; aligned++) {
                const ds_dtype dtype = level % 2 == aligned ? DS_BF16 : DS_F16;
                float *master = (float *)malloc(n * sizeof(float)), *grad = (float *)malloc(n * sizeof(float));
                uint16_t *out = (uint16_t *)malloc(room * sizeof *out), *want = (uint16_t *)malloc(n * sizeof *want);
                uint16_t *at = out;
                ds_optim_tensor tensor = {"w", 1, 0, 0, DS_F32, DS_OPTIM_MUON_AUTO};
                ds_optim_params p;
                ds_optim_desc desc;
                ds_optim_slice slice;
                ds_optim *o = NULL;
                ds_error error;
                uint64_t seed = 5;
                if (!kernels(level) || !CHECK(master && grad && out && want)) {
                    free(master), free(grad), free(out), free(want);
                    continue;
                }
                while ((uintptr_t)at % 64 != (aligned ? 0 : 2)) at++;
                memset(&desc, 0, sizeof desc);
                memset(&slice, 0, sizeof slice);
                ds_optim_params_default("SGD", &p);
                tensor.cols = n;
                desc.type = "SGD", desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor,
                desc.tensor_count = 1;
                desc.level = (ds_optim_level)level, desc.threads = 2;
                for (size_t i = 0; i < n; i++) master[i] = wild(&seed), grad[i] = wild(&seed);
                slice.count = n, slice.master = master, slice.grad = grad;
                slice.weights16 = at, slice.weights16_dtype = dtype;
                CHECK(ds_optim_create(&desc, &o, &error) == DS_OK && ds_optim_begin(o, 1, 1, 0) == DS_OK);
                CHECK(ds_optim_apply(o, &slice, 1) == DS_OK && ds_optim_end(o) == DS_OK);
                dsi_optim_kernels_of(DS_OPTIM_LEVEL_SCALAR)->narrow(want, dtype, master, n);
                CHECK(memcmp(at, want, n * sizeof *want) == 0);
                ds_optim_destroy(o);
                free(master), free(grad), free(out), free(want);
            }
    }
    TEST(tile_of_every_level) { /* the product's tiles, against a plain loop of fused multiply-adds */
        static float a[6 * 70], b[32 * 70], c[6 * 32];
        uint64_t seed = 3;
        for (size_t i = 0; i < sizeof a / sizeof *a; i++) a[i] = wild(&seed);
        for (size_t i = 0; i < sizeof b / sizeof *b; i++) b[i] = wild(&seed);
        for (int level = DS_OPTIM_LEVEL_SCALAR; level <= DS_OPTIM_LEVEL_AVX512; level++) {
            const dsi_optim_simd *simd = dsi_optim_kernels_of((ds_optim_level)level);
            if (!simd) continue;
            simd->tile(a, b, 70, c);
            for (size_t i = 0; i < 6; i++)
                for (size_t j = 0; j < simd->tile_columns; j++) {
                    float sum = 0;
                    for (size_t l = 0; l < 70; l++) sum = fmaf(a[l * 6 + i], b[l * simd->tile_columns + j], sum);
                    CHECK(dsi_bits_of_f32(sum) == dsi_bits_of_f32(c[i * simd->tile_columns + j]));
                }
        }
    }
}

/* ---- the pieces ---- */

static void pieces(void) {
    TEST(cast_every_half) {
        /* all 65,536 halves, at every level: widening is exact, narrowing gives them back */
        static uint16_t half[65536], back[65536];
        static float wide[65536];
        for (int dtype = DS_F16; dtype <= DS_BF16; dtype++)
            for (int level = DS_OPTIM_LEVEL_SCALAR; level <= DS_OPTIM_LEVEL_AVX512; level++) {
                const dsi_optim_simd *simd = dsi_optim_kernels_of((ds_optim_level)level);
                if (!simd) continue;
                for (size_t i = 0; i < 65536; i++) half[i] = (uint16_t)i;
                simd->widen(wide, half, (ds_dtype)dtype, 1.0f, 65536);
                simd->narrow(back, (ds_dtype)dtype, wide, 65536);
                for (size_t i = 0; i < 65536; i++) {
                    float one = dtype == DS_F16 ? dsi_f32_of_f16(half[i]) : dsi_f32_of_bf16(half[i]);
                    if (one != one)
                        CHECK(wide[i] != wide[i] &&
                              (back[i] & (dtype == DS_F16 ? 0x7C00 : 0x7F80)) == (dtype == DS_F16 ? 0x7C00 : 0x7F80) &&
                              (back[i] & (dtype == DS_F16 ? 0x3FF : 0x7F)));
                    else
                        CHECK(wide[i] == one && back[i] == half[i]);
                }
            }
    }
    TEST(narrow_rounds_like_the_scalar_rule) {
        static float from[4096];
        static uint16_t one[4096], other[4096];
        uint64_t seed = 11;
        for (int dtype = DS_F16; dtype <= DS_BF16; dtype++)
            for (int round = 0; round < 50; round++) {
                for (size_t i = 0; i < 4096; i++) {
                    uint32_t bits = (uint32_t)test_random(&seed);
                    if (round % 3 == 0) bits = (bits & 0xFFFF0000u) | 0x8000u;     /* ties of bf16 */
                    if (round % 3 == 1) bits = (bits & 0x8FFFFFFFu) | 0x30000000u; /* the range of fp16 */
                    from[i] = dsi_f32_of_bits(bits);
                }
                dsi_optim_x1_plain.narrow(one, (ds_dtype)dtype, from, 4096);
                for (int level = DS_OPTIM_LEVEL_AVX2; level <= DS_OPTIM_LEVEL_AVX512; level++) {
                    const dsi_optim_simd *simd = dsi_optim_kernels_of((ds_optim_level)level);
                    if (!simd) continue;
                    simd->narrow(other, (ds_dtype)dtype, from, 4096);
                    CHECK(memcmp(one, other, sizeof one) == 0);
                }
            }
    }
    TEST(cast_accumulate_scale) {
        static float x[2100], y[2100];
        static uint16_t h[2100], h2[2100];
        uint64_t seed = 5;
        for (size_t i = 0; i < 2100; i++) x[i] = wild(&seed);
        CHECK(ds_optim_cast(h, DS_BF16, x, DS_F32, 2100) == DS_OK);
        CHECK(ds_optim_cast(y, DS_F32, h, DS_BF16, 2100) == DS_OK);
        for (size_t i = 0; i < 2100; i++) CHECK(y[i] == dsi_f32_of_bf16(dsi_bf16_of_f32(x[i])));
        CHECK(ds_optim_cast(h2, DS_F16, h, DS_BF16, 2100) == DS_OK);
        for (size_t i = 0; i < 2100; i++) CHECK(h2[i] == dsi_f16_of_f32(y[i]));
        CHECK(ds_optim_cast(y, DS_F32, x, DS_F32, 2100) == DS_OK && memcmp(x, y, sizeof x) == 0);
        CHECK(ds_optim_accumulate(y, DS_F32, h, DS_BF16, 2100) == DS_OK);
        for (size_t i = 0; i < 2100; i++) CHECK(y[i] == x[i] + dsi_f32_of_bf16(h[i]));
        memcpy(h2, h, sizeof h);
        CHECK(ds_optim_accumulate(h2, DS_BF16, x, DS_F32, 2100) == DS_OK);
        for (size_t i = 0; i < 2100; i++) CHECK(h2[i] == dsi_bf16_of_f32(dsi_f32_of_bf16(h[i]) + x[i]));
        CHECK(ds_optim_scale(h2, DS_BF16, 0.5f, 2100) == DS_OK && ds_optim_scale(y, DS_F32, 0.5f, 2100) == DS_OK);
        for (size_t i = 0; i < 2100; i++) CHECK(y[i] == (x[i] + dsi_f32_of_bf16(h[i])) * 0.5f);
        CHECK(ds_optim_cast(h, DS_I32, x, DS_F32, 1) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_accumulate(h, DS_F64, x, DS_F32, 1) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_scale(h, DS_U8, 1, 1) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_cast(x, DS_F32, NULL, DS_F32, 0) == DS_OK);
    }
    TEST(norms) {
        static float x[BIG];
        double one[8], other[8], exact = 0;
        uint64_t seed = 9;
        for (size_t i = 0; i < BIG; i++) x[i] = wild(&seed);
        for (int set = AVX2; set <= AVX512_OTHER; set++) {
            if (!kernels(set)) continue;
            dsi_optim_norms(&dsi_optim_x1_plain, x, DS_F32, BIG, 0.3f, one, 1);
            dsi_optim_norms(kernels(set), x, DS_F32, BIG, 0.3f, other, 1);
            CHECK(memcmp(one, other, 6 * sizeof *one) == 0);
        }
        ds_optim_norm_grains(x, DS_F32, BIG, 1, one);
        for (size_t i = 0; i < BIG; i++) exact += (double)x[i] * (double)x[i];
        one[0] = ds_optim_norm_tree(one, 6); /* a CHECK evaluates twice, and the tree eats its leaves */
        CHECK_NEAR(one[0], exact, exact * 1e-14);
        CHECK(ds_optim_norm_tree(one, 0) == 0);
        { /* the shape of the tree */
            double t[5] = {1e16, 1, 1, -1e16, 3};
            CHECK(ds_optim_norm_tree(t, 5) == ((1e16 + 1) + (1 + -1e16)) + 3);
        }
        for (size_t at = 0; at < BIG; at += 611) {
            float kept = x[at];
            for (int bad = 0; bad < 3; bad++) {
                x[at] = bad == 0 ? NAN : bad == 1 ? INFINITY : -INFINITY;
                ds_optim_norm_grains(x, DS_F32, BIG, 1, one);
                CHECK(!(one[at / DS_GRAIN] <= DBL_MAX));
            }
            x[at] = kept;
        }
        CHECK(ds_optim_clip_coefficient(3, 0) == 1 && ds_optim_clip_coefficient(0.5, 1) == 1);
        CHECK(ds_optim_clip_coefficient(4, 2) == 1 / ((4 + 1e-6) / 2));
    }
    TEST(norms_of_two_grains_at_a_time) { /* from 256 grains on; the same bits as one by one */
        enum { LONG = 261 * DS_GRAIN + 37, GRAINS = 262 };
        static const ds_dtype dtypes[] = {DS_F32, DS_F16, DS_BF16};
        static uint16_t half[LONG];
        static float x[LONG];
        double norms[2 * GRAINS];
        uint64_t seed = 19;
        for (size_t i = 0; i < LONG; i++) x[i] = wild(&seed), half[i] = (uint16_t)(seed >> 20 & 0xBBFF);
        for (int set = SCALAR; set <= AVX512_OTHER; set++) {
            if (!kernels(set)) continue;
            for (size_t d = 0; d < 3; d++) {
                const dsi_optim_feed f = {dtypes[d] == DS_F32 ? (void *)x : half, dtypes[d], DS_F32, 0.3f, false, NULL};
                size_t same = 0;
                dsi_optim_norms(kernels(set), f.grad, f.grad_dtype, LONG, 0.3f, norms, 2);
                for (size_t g = 0; g < GRAINS; g++) {
                    const dsi_optim_feed part = dsi_optim_feed_at(&f, g * DS_GRAIN);
                    same += norms[2 * g] == dsi_optim_norm_x1_plain(&part, g + 1 < GRAINS ? DS_GRAIN : 37);
                }
                CHECK(same == GRAINS);
            }
        }
    }
    TEST(loss_scaler_refuses) {
        ds_loss_scaler_params p;
        ds_loss_scaler s;
        ds_error e;
        ds_loss_scaler_params_default(&p);
        CHECK(p.dynamic && p.initial == 65536);
        p.initial = NAN;
        CHECK(ds_loss_scaler_init(&s, &p, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "positive and finite");
        p.initial = 1, p.window = 0;
        CHECK(ds_loss_scaler_init(&s, &p, &e) == DS_ERR_ARGUMENT);
        p.window = 1, p.minimum = 0;
        CHECK(ds_loss_scaler_init(&s, &p, &e) == DS_ERR_ARGUMENT);
        p.minimum = 1, p.factor = 1;
        CHECK(ds_loss_scaler_init(&s, &p, &e) == DS_ERR_ARGUMENT);
    }
    TEST(schedules_refuse) {
        ds_schedule s;
        ds_error e;
        double b1, b2;
        CHECK(ds_schedule_default("Warmup", &s, &e) == DS_ERR_INPUT);
        CHECK_HAS(e.message, "WarmupCosineLR");
        CHECK(ds_schedule_lr(&s, 5, 0.25) == 0.25 && !ds_schedule_betas(&s, 5, &b1, &b2));
        CHECK(ds_schedule_default("1cycle", &s, &e) == DS_OK && s.kind == DS_SCHEDULE_ONE_CYCLE);
        s.cycle_first_step_size = 0;
        CHECK(ds_schedule_check(&s, &e) == DS_ERR_ARGUMENT);
        s.cycle_first_step_size = 5, s.cycle_symmetric = false, s.cycle_second_step_size = -1;
        CHECK(ds_schedule_check(&s, &e) == DS_ERR_ARGUMENT);
        s.cycle_second_step_size = 5, s.cycle_first_stair_count = -1;
        CHECK(ds_schedule_check(&s, &e) == DS_ERR_ARGUMENT);
        s.cycle_first_stair_count = 0, s.decay_step_size = -1;
        CHECK(ds_schedule_check(&s, &e) == DS_ERR_ARGUMENT);
        ds_schedule_default("WarmupDecayLR", &s, &e);
        CHECK(ds_schedule_check(&s, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "total_num_steps");
        ds_schedule_default("WarmupLR", &s, &e);
        s.warmup_num_steps = 0;
        CHECK(ds_schedule_check(&s, &e) == DS_ERR_ARGUMENT);
        ds_schedule_default("LRRangeTest", &s, &e);
        s.lr_range_test_step_size = 0;
        CHECK(ds_schedule_check(&s, &e) == DS_ERR_ARGUMENT);
        s.kind = DS_SCHEDULE_CUSTOM;
        CHECK(ds_schedule_check(&s, &e) == DS_ERR_ARGUMENT);
        s.kind = (ds_schedule_kind)99;
        CHECK(ds_schedule_check(&s, &e) == DS_ERR_ARGUMENT && ds_schedule_lr(&s, 3, 0.5) == 0.5);
    }
}

/* ---- an oracle in double: each step is exact but for the rounding of what is stored ---- */

static void oracle(void) {
    TEST(adamw_is_within_an_ulp_a_step) {
        static model m;
        const ds_optim_options unchecked = {0, NULL, true};
        ds_optim_params p;
        ds_optim *o;
        uint64_t seed = 21;
        ds_optim_params_default("AdamW", &p);
        p.weight_decay = 0.1, p.torch_adam = true;
        memset(&m, 0, sizeof m);
        m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = ELEMENTS;
        for (size_t i = 0; i < ELEMENTS; i++) m.weights[0][i] = (float)(test_uniform(&seed) * 4 - 2);
        if ((o = create("AdamW", &p, &m)) == NULL) break;
        for (int s = 1; s <= 200; s++) {
            float *em = ds_optim_own_state(o, 0, 0), *ev = ds_optim_own_state(o, 0, 1);
            double want[ELEMENTS];
            for (size_t i = 0; i < ELEMENTS; i++) {
                const double g = (double)(m.grads[0][i] = (float)(test_uniform(&seed) * 2 - 1)),
                             w = (double)m.weights[0][i];
                const double mm = p.beta1 * (double)em[i] + (1 - p.beta1) * g,
                             vv = p.beta2 * (double)ev[i] + (1 - p.beta2) * g * g;
                want[i] = w - p.lr * p.weight_decay * w -
                          p.lr / (1 - pow(p.beta1, s)) * mm / (sqrt(vv) / sqrt(1 - pow(p.beta2, s)) + p.eps);
            }
            CHECK(step(o, &m, &unchecked, NULL) == DS_OK);
            for (size_t i = 0; i < ELEMENTS; i++) {
                const double ulp = ldexp(1, ilogb(fabs(want[i]) + p.lr) - 23), got = (double)m.weights[0][i];
                test_check(fabs(got - want[i]) <= 1.5 * ulp + 1e-6 * p.lr, __FILE__, __LINE__,
                           "step %d element %zu: %.9g, oracle %.9g", s, i, got, want[i]);
            }
        }
        ds_optim_destroy(o);
    }
}

/* ---- the object ---- */

static ds_status doubled(const ds_optim_pass *pass, const float *grad, float *master, float *const *state,
                         size_t count) {
    for (size_t i = 0; i < count; i++) state[0][i] += grad[i], master[i] -= (float)(2 * pass->params->lr) * state[0][i];
    return DS_OK;
}
static void normalized_measure(const ds_optim_pass *pass, const float *grad, const float *master, float *const *state,
                               size_t count, double sums[2]) {
    (void)pass, (void)state;
    sums[0] = sums[1] = 0;
    for (size_t i = 0; i < count; i++)
        sums[0] += (double)grad[i] * (double)grad[i], sums[1] += (double)(master[i] * master[i]);
}
static ds_status normalized(const ds_optim_pass *pass, const float *grad, float *master, float *const *state,
                            size_t count) {
    (void)state;
    for (size_t i = 0; i < count; i++) master[i] -= (float)(pass->params->lr / pass->norm[0]) * grad[i];
    return DS_OK;
}
static void log_line(void *ctx, const char *header, int level, int id, const char *message) {
    (void)header, (void)level, (void)message;
    ((int *)ctx)[id]++;
}
static double halved(void *ctx, int64_t k, double base) {
    (void)ctx;
    return ldexp(base, -(int)k);
}

static void object(void) {
    TEST(users_own_optimizers) {
        static model m;
        ds_optim_table tables[2] = {
            {"Doubled", DS_OPTIM_WHOLE, 1, {"sum", NULL, NULL}, NULL, doubled, NULL, NULL, false},
            {"Normalized", DS_OPTIM_BY_NORM, 0, {NULL, NULL, NULL}, normalized_measure, normalized, NULL, NULL, false}};
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o = NULL;
        ds_error e;
        ds_optim_params_default("SGD", &p);
        p.lr = 0.25;
        memset(&m, 0, sizeof m);
        memset(&desc, 0, sizeof desc);
        m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 3;
        desc.groups = &p, desc.group_count = 1, desc.tensors = m.tensors, desc.tensor_count = 1, desc.own_states = true;
        desc.tables = tables, desc.table_count = 2, desc.type = "Tripled";
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_INPUT && o == NULL);
        CHECK_HAS(e.message, "\"Tripled\"");
        CHECK_HAS(e.message, "ZeroOneAdam, OneBitLamb, Doubled, Normalized");
        desc.type = "Doubled";
        CHECK(ds_optim_create(&desc, &o, &e) == DS_OK);
        CHECK_STR(ds_optim_state_name(o, 0, 0), "sum");
        CHECK(ds_optim_state_name(o, 0, 1) == NULL && ds_optim_own_state(o, 0, 1) == NULL);
        m.grads[0][1] = 2;
        CHECK(step(o, &m, NULL, NULL) == DS_OK && step(o, &m, NULL, NULL) == DS_OK);
        CHECK(m.weights[0][0] == 0 && m.weights[0][1] == -3);
        ds_optim_destroy(o);
        desc.type = "Normalized";
        CHECK(ds_optim_create(&desc, &o, &e) == DS_OK);
        CHECK(step(o, &m, NULL, NULL) == DS_OK && m.weights[0][1] == -3.25f);
        ds_optim_destroy(o);
        tables[0].work = DS_OPTIM_BY_NORM, desc.type = "Doubled";
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "measure");
    }
    TEST(mixed_precision_step) {
        /* bf16 weights and gradients with a loss scale: as the same steps in fp32 */
        static model m;
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *half = NULL, *full;
        ds_error e;
        uint16_t w[100], g[100];
        int logged[4] = {0, 0, 0, 0};
        ds_loss_scaler scaler;
        ds_loss_scaler_params sp;
        ds_optim_report r, r2;
        ds_optim_options options = {0.5, &scaler, false}, plain = {0.5, NULL, false};
        ds_optim_io io = {w, DS_BF16, g, DS_BF16};
        uint64_t seed = 4;
        memset(&m, 0, sizeof m);
        memset(&desc, 0, sizeof desc);
        ds_optim_params_default("AdamW", &p);
        m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 10, m.tensors[0].cols = 10;
        full = create("AdamW", &p, &m);
        m.tensors[0].weights_dtype = DS_BF16;
        desc.type = "AdamW", desc.groups = &p, desc.group_count = 1, desc.tensors = m.tensors, desc.tensor_count = 1;
        desc.own_states = true, desc.logger.log = log_line, desc.logger.ctx = logged;
        CHECK(ds_optim_create(&desc, &half, &e) == DS_OK && logged[2] == 1);
        ds_loss_scaler_params_default(&sp);
        sp.hysteresis = 1;
        ds_loss_scaler_init(&scaler, &sp, NULL);
        for (size_t i = 0; i < 100; i++)
            w[i] = dsi_bf16_of_f32(m.weights[0][i] = dsi_f32_of_bf16(dsi_bf16_of_f32((float)test_uniform(&seed))));
        for (int s = 0; s < 5; s++) {
            for (size_t i = 0; i < 100; i++) {
                m.grads[0][i] = dsi_f32_of_bf16(dsi_bf16_of_f32((float)test_uniform(&seed)));
                g[i] = dsi_bf16_of_f32(m.grads[0][i] * 65536);
            }
            CHECK(ds_optim_step(half, &io, &options, &r) == DS_OK && step(full, &m, &plain, &r2) == DS_OK);
            CHECK(r.grad_norm == r2.grad_norm && r.clip_coefficient == r2.clip_coefficient && r.loss_scale == 65536);
            CHECK(memcmp(ds_optim_own_master(half, 0), m.weights[0], 400) == 0);
            for (size_t i = 0; i < 100; i++) CHECK(w[i] == dsi_bf16_of_f32(m.weights[0][i]));
        }
        g[17] = 0x7F80;
        CHECK(ds_optim_step(half, &io, &options, &r) == DS_OK && r.skipped == DS_OPTIM_OVERFLOW &&
              r.overflow_tensor == 0);
        CHECK(logged[3] == 1 && scaler.scale == 32768 && scaler.skipped == 1 && ds_optim_step_count(half) == 5);
        CHECK(memcmp(ds_optim_own_master(half, 0), m.weights[0], 400) == 0);
        scaler.scale = 1;
        CHECK(ds_optim_step(half, &io, &options, &r) == DS_ERR_NUMERIC);
        CHECK_HAS(ds_optim_error(half)->message, "\"w\" overflows at the smallest loss scale");
        CHECK(ds_optim_set_master(half, 0, m.grads[0]) == DS_OK && ds_optim_own_master(half, 0)[3] == m.grads[0][3]);
        CHECK(ds_optim_set_master(full, 0, m.grads[0]) == DS_ERR_STATE);
        options.unchecked = true;
        CHECK(ds_optim_step(half, &io, &options, &r) == DS_ERR_ARGUMENT);
        io.grad_dtype = DS_I8;
        CHECK(ds_optim_step(half, &io, NULL, NULL) == DS_ERR_ARGUMENT);
        ds_optim_destroy(half);
        ds_optim_destroy(full);
    }
    TEST(lamb_clips_by_itself) {
        static model m;
        const ds_optim_options unchecked = {0, NULL, true};
        ds_optim_params p;
        ds_optim *o;
        ds_optim_params_default("Lamb", &p);
        p.max_grad_norm = 1, p.beta1 = 0.5;
        memset(&m, 0, sizeof m);
        m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 2;
        m.grads[0][0] = 3, m.grads[0][1] = 4;
        if ((o = create("Lamb", &p, &m)) == NULL) break;
        CHECK(step(o, &m, &unchecked, NULL) == DS_ERR_ARGUMENT);
        CHECK_HAS(ds_optim_error(o)->message, "max_grad_norm");
        CHECK(step(o, &m, NULL, NULL) == DS_OK);
        CHECK_NEAR(ds_optim_own_state(o, 0, 0)[0], 0.5 * 3 / 5.000001, 1e-7);
        ds_optim_destroy(o);
    }
    TEST(trust_unusual_numbers) {
        static model m;
        const ds_optim_options unchecked = {0, NULL, true};
        for (int t = 0; t < TYPES; t++) {
            ds_optim_params p;
            ds_optim *o;
            ds_optim_params_default(every_type[t], &p);
            p.lr = 0, p.weight_decay = 0.5, p.eps = 0;
            memset(&m, 0, sizeof m);
            m.count = 2, m.tensors[0].name = "w", m.tensors[0].rows = 2, m.tensors[0].cols = 3;
            m.tensors[1].name = "empty";
            for (size_t i = 0; i < 6; i++) m.weights[0][i] = (float)i + 1, m.grads[0][i] = 1e-40f * (float)(i + 1);
            if ((o = create(every_type[t], &p, &m)) == NULL) break;
            CHECK(ds_optim_set_step_count(o, ((int64_t)1 << 31) + 5) == DS_OK);
            for (int s = 0; s < 3; s++) CHECK(step(o, &m, NULL, NULL) == DS_OK);
            CHECK(ds_optim_step_count(o) == ((int64_t)1 << 31) + 8);
            for (size_t i = 0; i < 6; i++)
                test_check(m.weights[0][i] == (float)i + 1 || t >= 7 || m.weights[0][i] != m.weights[0][i], __FILE__,
                           __LINE__, "%s moved at lr 0: %g", every_type[t], (double)m.weights[0][i]);
            m.grads[0][2] = NAN;
            CHECK(step(o, &m, &unchecked, NULL) == DS_OK);
            ds_optim_destroy(o);
        }
    }
    TEST(schedule_and_saving) {
        static model m;
        for (int t = 0; t < TYPES; t++) {
            ds_optim_params p;
            ds_optim *o, *again;
            ds_schedule s;
            unsigned char saved[1024];
            ds_optim_params_default(every_type[t], &p);
            p.lr = 0.5;
            memset(&m, 0, sizeof m);
            m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 2, m.tensors[0].cols = 3;
            if ((o = create(every_type[t], &p, &m)) == NULL || (again = create(every_type[t], &p, &m)) == NULL) break;
            ds_schedule_default("OneCycle", &s, NULL);
            s.cycle_min_lr = 0.125, s.cycle_max_lr = 1, s.cycle_first_step_size = 4;
            CHECK(ds_optim_set_schedule(o, 0, &s) == DS_OK && ds_optim_set_schedule(again, 0, &s) == DS_OK);
            CHECK(ds_optim_lr(o, 0) == 0.125);
            for (int k = 0; k < 3; k++) {
                CHECK(step(o, &m, NULL, NULL) == DS_OK);
                ds_optim_schedule_step(o);
            }
            CHECK(ds_optim_lr(o, 0) == ds_schedule_lr(&s, 3, 0.5) && ds_optim_schedule_count(o) == 3);
            CHECK((ds_optim_group_params(o, 0)->beta2 == 0.99) ==
                  (strcmp(every_type[t], "SGD") && strcmp(every_type[t], "Adagrad") && strcmp(every_type[t], "Muon")));
            CHECK(ds_optim_save_bytes(o) <= sizeof saved);
            ds_optim_save(o, saved);
            CHECK(ds_optim_load(again, saved, ds_optim_save_bytes(o)) == DS_OK);
            CHECK(ds_optim_step_count(again) == 3 && ds_optim_lr(again, 0) == ds_optim_lr(o, 0));
            CHECK(ds_optim_load(again, saved, ds_optim_save_bytes(o) - 1) == DS_ERR_INPUT);
            saved[8] ^= 1;
            CHECK(ds_optim_load(again, saved, ds_optim_save_bytes(o)) == DS_ERR_INPUT);
            CHECK_HAS(ds_optim_error(again)->message, "another optimizer than");
            saved[8] ^= 1, saved[23] = 0x80;
            CHECK(ds_optim_load(again, saved, ds_optim_save_bytes(o)) == DS_ERR_INPUT &&
                  ds_optim_step_count(again) == 3);
            s.kind = DS_SCHEDULE_CUSTOM, s.custom = halved;
            CHECK(ds_optim_set_schedule(o, 0, &s) == DS_OK && ds_optim_lr(o, 0) == 0.0625);
            CHECK(ds_optim_set_schedule(o, 1, &s) == DS_ERR_ARGUMENT &&
                  ds_optim_set_schedule_count(o, -1) == DS_ERR_ARGUMENT);
            s.resumed = 7; /* the rate is kept until the next step of the schedule */
            CHECK(ds_optim_set_schedule(o, 0, &s) == DS_OK && ds_optim_lr(o, 0) == 0.0625 &&
                  ds_optim_schedule_count(o) == 7);
            ds_optim_schedule_step(o);
            CHECK(ds_optim_lr(o, 0) == halved(NULL, 8, 0.5));
            s.resumed = -1;
            CHECK(ds_optim_set_schedule(o, 0, &s) == DS_ERR_ARGUMENT);
            CHECK_HAS(ds_optim_error(o)->message, "resumed");
            s.resumed = 0, s.custom = NULL;
            CHECK(ds_optim_set_schedule(o, 0, &s) == DS_ERR_ARGUMENT);
            ds_optim_destroy(o);
            ds_optim_destroy(again);
        }
    }
    TEST(out_of_order_and_bad_slices) {
        static model m;
        static float data[3000];
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o = NULL;
        ds_error e;
        ds_optim_slice s;
        memset(&m, 0, sizeof m);
        memset(&desc, 0, sizeof desc);
        memset(&s, 0, sizeof s);
        ds_optim_params_default("Lamb", &p);
        m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 2500;
        desc.type = "Lamb", desc.groups = &p, desc.group_count = 1, desc.tensors = m.tensors, desc.tensor_count = 1;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_OK);
        s.count = 2500, s.master = s.state[0] = s.state[1] = data, s.grad = data;
        CHECK(ds_optim_apply(o, &s, 1) == DS_ERR_STATE && ds_optim_end(o) == DS_ERR_STATE &&
              ds_optim_combine(o) == DS_ERR_STATE);
        CHECK(ds_optim_begin(o, 0, 1, 0) == DS_ERR_ARGUMENT && ds_optim_begin(o, NAN, 1, 0) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_begin(o, 1, 2, 0) == DS_ERR_ARGUMENT && ds_optim_begin(o, 1, 1, INFINITY) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_begin(o, 1, 1, 0) == DS_OK && ds_optim_begin(o, 1, 1, 0) == DS_ERR_STATE);
        CHECK(ds_optim_apply(o, &s, 1) == DS_ERR_STATE);
        CHECK_HAS(ds_optim_error(o)->message, "measure and combine first");
        CHECK(ds_optim_combine(o) == DS_ERR_STATE);
        CHECK_HAS(ds_optim_error(o)->message, "were not measured");
        s.begin = 5;
        CHECK(ds_optim_measure(o, &s, 1) == DS_ERR_ARGUMENT);
        CHECK_HAS(ds_optim_error(o)->message, "past the tensor's end");
        s.count = 1000;
        CHECK(ds_optim_measure(o, &s, 1) == DS_ERR_ARGUMENT);
        CHECK_HAS(ds_optim_error(o)->message, "DS_GRAIN");
        s.begin = 0, s.count = 1024, s.tensor = 1;
        CHECK(ds_optim_measure(o, &s, 1) == DS_ERR_ARGUMENT);
        s.tensor = 0, s.state[1] = NULL;
        CHECK(ds_optim_measure(o, &s, 1) == DS_ERR_ARGUMENT);
        CHECK_HAS(ds_optim_error(o)->message, "lacks a state");
        s.state[1] = data, s.grad = NULL;
        CHECK(ds_optim_measure(o, &s, 1) == DS_ERR_ARGUMENT);
        s.grad = data, s.grad_dtype = DS_F64;
        CHECK(ds_optim_measure(o, &s, 1) == DS_ERR_ARGUMENT);
        s.grad_dtype = DS_F32, s.weights16 = data, s.weights16_dtype = DS_F32;
        CHECK(ds_optim_measure(o, &s, 1) == DS_ERR_ARGUMENT);
        s.weights16 = NULL, s.count = 2500;
        CHECK(ds_optim_measure(o, &s, 1) == DS_OK && ds_optim_combine(o) == DS_OK);
        CHECK(ds_optim_measure(o, &s, 1) == DS_ERR_STATE && ds_optim_apply(o, &s, 1) == DS_OK);
        CHECK(ds_optim_set_step_count(o, 3) == DS_ERR_ARGUMENT &&
              ds_optim_set_group_params(o, 0, &p) == DS_ERR_ARGUMENT);
        ds_optim_cancel(o);
        CHECK(ds_optim_step_count(o) == 0);
        CHECK(step(o, &m, NULL, NULL) == DS_ERR_STATE);
        CHECK_HAS(ds_optim_error(o)->message, "own_states");
        CHECK(ds_optim_set_lr(o, 0, -1) == DS_ERR_ARGUMENT && ds_optim_set_lr(o, 0, 2) == DS_OK &&
              ds_optim_lr(o, 0) == 2);
        p.beta1 = 3;
        CHECK(ds_optim_set_group_params(o, 0, &p) == DS_ERR_ARGUMENT);
        p.beta1 = 0.5;
        CHECK(ds_optim_set_group_params(o, 0, &p) == DS_OK && ds_optim_group_params(o, 0)->beta1 == 0.5);
        ds_optim_destroy(o);
        desc.type = "Muon", m.tensors[0].rows = 50, m.tensors[0].cols = 50;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT || o);
        ds_optim_destroy(o);
        ds_optim_params_default("Muon", &p);
        CHECK(ds_optim_create(&desc, &o, &e) == DS_OK && ds_optim_begin(o, 1, 1, 0) == DS_OK);
        s.count = 1024;
        CHECK(ds_optim_apply(o, &s, 1) == DS_ERR_ARGUMENT);
        CHECK_HAS(ds_optim_error(o)->message, "whole tensor");
        ds_optim_destroy(o);
    }
    TEST(create_refuses) {
        static model m;
        ds_optim_params p;
        ds_optim_desc desc, good;
        ds_optim *o = (ds_optim *)&m;
        ds_error e;
        ds_optim_params_default("sgd", &p);
        CHECK(ds_optim_params_default("sdg", &p) == DS_ERR_INPUT);
        memset(&m, 0, sizeof m);
        memset(&good, 0, sizeof good);
        m.tensors[0].name = "w", m.tensors[0].rows = 2, m.tensors[0].cols = 5;
        good.type = "SGD", good.groups = &p, good.group_count = 1, good.tensors = m.tensors, good.tensor_count = 1;
        CHECK(ds_optim_create_(&good, &o, &e, DS_OPTIM_VERSION + 1, sizeof good) == DS_ERR_VERSION && o == NULL);
        CHECK(ds_optim_create_(&good, NULL, &e, DS_OPTIM_VERSION, sizeof good) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_create(NULL, &o, &e) == DS_ERR_ARGUMENT);
        desc = good, desc.group_count = 0;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT);
        desc = good, desc.tensors = NULL;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT);
        desc = good, desc.type = NULL;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_INPUT);
        desc = good, desc.group.size = 2;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT);
        desc = good, desc.level = (ds_optim_level)9;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_UNSUPPORTED);
        m.tensors[0].group = 1;
        CHECK(ds_optim_create(&good, &o, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "group 1 of 1");
        m.tensors[0].group = 0, m.tensors[0].rows = SIZE_MAX / 4;
        CHECK(ds_optim_create(&good, &o, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "too large");
        m.tensors[0].rows = 2, m.tensors[0].weights_dtype = DS_I8;
        CHECK(ds_optim_create(&good, &o, &e) == DS_ERR_ARGUMENT);
        m.tensors[0].weights_dtype = DS_F32, m.tensors[0].name = NULL;
        CHECK(ds_optim_create(&good, &o, &e) == DS_ERR_ARGUMENT);
        m.tensors[0].name = "w", p.eps = NAN;
        CHECK(ds_optim_create(&good, &o, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "eps");
        p.eps = 1e-8;
        for (int mode = 0; mode < 2; mode++) {
            const unsigned int mxcsr = _mm_getcsr();
            _mm_setcsr(mxcsr | (mode ? 0x8000u : 0x0040u)); /* FTZ, DAZ */
            CHECK(ds_optim_create(&good, &o, &e) == DS_ERR_UNSUPPORTED);
            _mm_setcsr(mxcsr);
            CHECK_HAS(e.message, "denormals");
        }
        CHECK(ds_optim_create(&good, &o, &e) == DS_OK);
        p.momentum = 0.5;
        CHECK(ds_optim_set_group_params(o, 0, &p) == DS_ERR_STATE);
        CHECK_STR(ds_optim_type_name(o), "SGD");
        CHECK(ds_optim_state_count(o, 0) == 0 && ds_optim_state_count_max(o) == 0 && ds_optim_memory(o) > 0);
        CHECK(ds_optim_error_buffers(o) == 0 && !ds_optim_wants_local_gradients(o));
        ds_optim_reset_errors(o);
        ds_optim_destroy(o);
        ds_optim_destroy(NULL);
    }
    TEST(every_allocation_fails) {
        static model m;
        for (int t = 0; t < TYPES; t++)
            for (size_t n = 1;; n++) {
                test_memory memory;
                ds_optim_params p;
                ds_optim_desc desc;
                ds_optim *o;
                ds_error e;
                ds_status status;
                memset(&memory, 0, sizeof memory);
                memset(&m, 0, sizeof m);
                memset(&desc, 0, sizeof desc);
                ds_optim_params_default(every_type[t], &p);
                m.tensors[0].name = "w", m.tensors[0].rows = 200, m.tensors[0].cols = 100,
                m.tensors[0].weights_dtype = DS_F16;
                m.tensors[1].name = "b", m.tensors[1].rows = 1, m.tensors[1].cols = 5;
                desc.type = every_type[t], desc.groups = &p, desc.group_count = 1, desc.tensors = m.tensors,
                desc.tensor_count = 2;
                desc.own_states = true, desc.threads = 2;
                desc.allocator.alloc = test_alloc, desc.allocator.release = test_release, desc.allocator.ctx = &memory;
                memory.fail_at = n;
                status = ds_optim_create(&desc, &o, &e);
                if (status == DS_OK) {
                    CHECK(n > 8 && memory.live == ds_optim_memory(o));
                    ds_optim_destroy(o);
                } else
                    CHECK(status == DS_ERR_MEMORY && o == NULL);
                CHECK(memory.live == 0 && memory.mismatches == 0);
                if (status == DS_OK) break;
            }
    }
    TEST(one_bit_refuses_clipping_and_resets) {
        static model m;
        int logged[5] = {0, 0, 0, 0, 0};
        size_t n = 0;
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o;
        ds_error e;
        ds_optim_params_default("OneBitAdam", &p);
        p.freeze_step = 2;
        memset(&m, 0, sizeof m);
        memset(&desc, 0, sizeof desc);
        m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 4;
        for (size_t i = 0; i < 4; i++) m.grads[0][i] = 10;
        desc.type = "OneBitAdam", desc.groups = &p, desc.group_count = 1, desc.tensors = m.tensors,
        desc.tensor_count = 1;
        desc.own_states = true, desc.logger.log = log_line, desc.logger.ctx = logged;
        if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
        {
            ds_optim_options clip = {1, NULL, false}, wide = {1e9, NULL, false};
            CHECK(step(o, &m, &clip, NULL) == DS_OK && step(o, &m, &clip, NULL) == DS_OK &&
                  ds_optim_refuses_clipping(o) && logged[4] == 1); /* told once, before it is refused */
            CHECK(step(o, &m, &clip, NULL) == DS_ERR_UNSUPPORTED && ds_optim_step_count(o) == 2);
            CHECK(step(o, &m, &wide, NULL) == DS_ERR_UNSUPPORTED && ds_optim_step_count(o) == 2);
            CHECK_HAS(ds_optim_error(o)->message, "cannot clip");
            CHECK(ds_optim_begin(o, 1, 0.5, 1) == DS_ERR_UNSUPPORTED && ds_optim_step_count(o) == 2);
            CHECK(step(o, &m, NULL, NULL) == DS_OK && logged[4] == 1);
        }
        ds_optim_error_buffer(o, 0, 0, &n)[0] = 5;
        CHECK_EQ(n, 8);
        ds_optim_reset_errors(o);
        CHECK(ds_optim_error_buffer(o, 0, 0, &n)[0] == 0 && logged[1] == 1 && ds_optim_error_buffers(o) == 1);
        ds_optim_destroy(o);
    }
}

/* ---- hooks ---- */

static void plain_gemm(void *ctx, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a,
                       size_t lda, const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    ++*(int *)ctx;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (size_t l = 0; l < k; l++)
                sum += (double)(ta ? a[l * lda + i] : a[i * lda + l]) * (double)(tb ? b[j * ldb + l] : b[l * ldb + j]);
            c[i * ldc + j] = (float)((double)alpha * sum + (beta == 0 ? 0 : (double)beta * (double)c[i * ldc + j]));
        }
}
static ds_status fake_adam(void *ctx, ds_optim_rule rule, const ds_optim_constants *k, const ds_optim_part *parts,
                           size_t count, void *stream) {
    const ds_optim_slice *s = &parts[0].slice;
    const dsi_optim_feed feed = {s->grad, s->grad_dtype, DS_F32, k->adam.factor, false, NULL};
    if (stream != ctx || rule != DS_OPTIM_RULE_ADAM || count != 1) return DS_ERR_DEVICE;
    dsi_optim_x1_plain.update[rule](k, &feed, s->master, s->state[0], s->state[1], s->count);
    return DS_OK;
}
static const char *describe_failure(void *ctx) {
    (void)ctx;
    return "the device is out of order";
}
static ds_optim_kernels fake_kernels(void *ctx) {
    ds_optim_kernels kernels;
    memset(&kernels, 0, sizeof kernels);
    kernels.ctx = ctx, kernels.update = fake_adam;
    return kernels;
}
/* A device in host memory of which one call fails; `live` are its allocations. Its rules compute nothing but sums, as
   ds_kernels_test compares what the real ones do. */
typedef struct frail {
    int calls, fails, live;
} frail;
static ds_status frail_call(void *ctx) {
    frail *f = (frail *)ctx;
    return ++f->calls == f->fails ? DS_ERR_DEVICE : DS_OK;
}
static ds_status frail_alloc(void *ctx, size_t bytes, void **memory) {
    if (frail_call(ctx)) return DS_ERR_DEVICE;
    ((frail *)ctx)->live++;
    *memory = calloc(1, bytes + 1);
    return DS_OK;
}
static void frail_release(void *ctx, void *memory, size_t bytes) {
    (void)bytes;
    ((frail *)ctx)->live--;
    free(memory);
}
static ds_status frail_copy(void *ctx, void *to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    memmove(to, from, bytes);
    return frail_call(ctx);
}
static ds_status frail_fill(void *ctx, void *to, int byte, size_t bytes, void *stream) {
    (void)stream;
    memset(to, byte, bytes);
    return frail_call(ctx);
}
static ds_status frail_synchronize(void *ctx, void *stream) {
    (void)stream;
    return frail_call(ctx);
}
static ds_status frail_update(void *ctx, ds_optim_rule rule, const ds_optim_constants *k, const ds_optim_part *parts,
                              size_t count, void *stream) {
    const size_t each = rule == DS_OPTIM_RULE_ONE_BIT_LAMB ? 3 : 2;
    (void)k, (void)stream;
    for (size_t i = 0; i < count; i++) {
        CHECK(parts[i].slice.count > 0 && parts[i].slice.master);
        for (size_t g = 0; parts[i].sums && g < each * dsi_optim_grains(parts[i].slice.count); g++)
            parts[i].sums[g] = 1;
    }
    return frail_call(ctx);
}
static ds_status frail_norm_grains(void *ctx, const void *grad, ds_dtype dtype, size_t count, float factor,
                                   double *per_grain, void *stream) {
    (void)stream;
    ds_optim_norm_grains(grad, dtype, count, factor, per_grain);
    return frail_call(ctx);
}
static ds_status frail_norm_tree(void *ctx, double *grains, size_t n, void *stream) {
    (void)stream;
    grains[0] = ds_optim_norm_tree(grains, n);
    return frail_call(ctx);
}
static ds_status frail_cast(void *ctx, void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count,
                            void *stream) {
    (void)stream;
    CHECK(ds_optim_cast(to, to_dtype, from, from_dtype, count) == DS_OK);
    return frail_call(ctx);
}
static ds_status frail_scale(void *ctx, void *x, ds_dtype dtype, float factor, size_t count, void *stream) {
    (void)stream;
    CHECK(ds_optim_scale(x, dtype, factor, count) == DS_OK);
    return frail_call(ctx);
}
static ds_status frail_mix(void *ctx, float *y, const float *x, float a, float b, size_t count, void *stream) {
    (void)stream;
    dsi_optim_x1_plain.mix(y, x, a, b, count);
    return frail_call(ctx);
}
static ds_status frail_multiply(void *ctx, bool transpose_b, size_t m, size_t n, size_t k, float alpha, const float *a,
                                const float *b, float beta, float *c, void *stream) {
    int calls = 0;
    (void)stream;
    plain_gemm(&calls, false, transpose_b, m, n, k, alpha, a, k, b, transpose_b ? k : n, beta, c, n);
    return frail_call(ctx);
}
static ds_status frail_transpose(void *ctx, float *to, const float *from, size_t rows, size_t cols, void *stream) {
    (void)stream;
    for (size_t i = 0; i < rows * cols; i++) to[i % cols * rows + i / cols] = from[i];
    return frail_call(ctx);
}
static ds_status frail_mirror(void *ctx, float *c, size_t n, float add, void *stream) {
    (void)stream;
    for (size_t i = 0; i < n * n; i++) c[i] = i % n < i / n ? c[i % n * n + i / n] : c[i] + (i % (n + 1) ? 0 : add);
    return frail_call(ctx);
}
static ds_status frail_average(void *ctx, float *buffer, float *worker_error, float *server_error, size_t count,
                               void *stream) {
    (void)buffer, (void)worker_error, (void)server_error, (void)stream;
    CHECK(count > 0);
    return frail_call(ctx);
}
/* One step, or the status that ended it. */
static ds_status step_on_device(ds_optim *o, const ds_optim_slice *slices, size_t count) {
    ds_status status = ds_optim_begin(o, 0.5, 1, 0);
    const ds_optim_work work = ds_optim_tensor_work(o, 0);
    if (work == DS_OPTIM_BY_NORM || work == DS_OPTIM_WHOLE_BY_NORM) {
        if (!status) status = ds_optim_measure(o, slices, count);
        if (!status) status = ds_optim_combine(o);
    }
    if (!status) status = ds_optim_apply(o, slices, count);
    return status ? status : ds_optim_end(o);
}
static ds_status broken_exchange(void *ctx, const void *mine, void *all, size_t bytes) {
    (void)mine, (void)all, (void)bytes;
    return --*(int *)ctx < 0 ? DS_ERR_PEER : DS_OK;
}
static ds_status counted_average(void *ctx, float *buffer, float *worker_error, float *server_error, size_t count,
                                 void *stream) {
    (void)worker_error, (void)server_error;
    CHECK(stream == NULL);
    for (size_t i = 0; i < count; i++) buffer[i] *= 0.5f;
    return --*(int *)ctx < 0 ? DS_ERR_TIMEOUT : DS_OK;
}
static void hooks(void) {
    TEST(gemm_of_the_user) {
        for (int method = 0; method < 2; method++) {
            static model m, m2;
            int calls = 0;
            uint64_t seed = 2;
            ds_optim_params p;
            ds_optim_desc desc;
            ds_optim *own, *o = NULL;
            ds_error e;
            ds_optim_params_default("Muon", &p);
            p.ns_method = (ds_optim_ns)method;
            memset(&m, 0, sizeof m);
            memset(&desc, 0, sizeof desc);
            m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 8, m.tensors[0].cols = 21;
            for (size_t i = 0; i < 168; i++) m.grads[0][i] = (float)test_uniform(&seed) - 0.5f;
            m2 = m;
            own = create("Muon", &p, &m);
            desc.type = "Muon", desc.groups = &p, desc.group_count = 1, desc.tensors = m.tensors, desc.tensor_count = 1;
            desc.own_states = true, desc.gemm.gemm = plain_gemm, desc.gemm.ctx = &calls;
            if (!CHECK(own && ds_optim_create(&desc, &o, &e) == DS_OK)) break;
            CHECK(step(own, &m, NULL, NULL) == DS_OK && step(o, &m2, NULL, NULL) == DS_OK && calls > 10);
            for (size_t i = 0; i < 168; i++) CHECK_NEAR(m.weights[0][i], m2.weights[0][i], 1e-6);
            ds_optim_destroy(own);
            ds_optim_destroy(o);
        }
    }
    TEST(device_kernels) {
        static float w[2][BIG], s[2][2][BIG], g[BIG];
        ds_optim_tensor tensor = {"w", 1, BIG, 0, DS_F32, DS_OPTIM_MUON_AUTO};
        ds_optim_kernels kernels = fake_kernels(w);
        ds_optim_params p;
        ds_optim_desc desc;
        ds_error e;
        uint64_t seed = 6;
        for (size_t i = 0; i < BIG; i++)
            w[0][i] = w[1][i] = (float)test_uniform(&seed), g[i] = (float)test_uniform(&seed);
        memset(&desc, 0, sizeof desc);
        ds_optim_params_default("AdamW", &p);
        desc.type = "AdamW", desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor, desc.tensor_count = 1;
        for (int device = 0; device < 2; device++) {
            ds_optim *o = NULL;
            ds_optim_slice x, two[2];
            ds_device gpu;
            memset(&x, 0, sizeof x);
            desc.kernels = device ? &kernels : NULL;
            if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
            x.count = BIG, x.master = w[device], x.state[0] = s[device][0], x.state[1] = s[device][1], x.grad = g;
            CHECK(ds_optim_begin(o, 0.5, 1, 0) == DS_OK && ds_optim_apply_on(o, &x, 1, w) == DS_OK &&
                  ds_optim_end(o) == DS_OK);
            if (device) {
                CHECK(ds_optim_begin(o, 1, 1, 0) == DS_OK && ds_optim_apply(o, &x, 1) == DS_ERR_DEVICE);
                CHECK_HAS(ds_optim_error(o)->message, "device kernel failed");
                ds_optim_cancel(o);
                CHECK_EQ(ds_optim_step_count(o), 1);
                two[0] = two[1] = x;
                two[0].count = two[1].begin = DS_GRAIN, two[1].count = BIG - DS_GRAIN, two[1].on_host = true;
                CHECK(ds_optim_begin(o, 1, 1, 0) == DS_OK && ds_optim_apply(o, two, 2) == DS_ERR_ARGUMENT);
                CHECK_HAS(ds_optim_error(o)->message, "is of host memory");
                ds_optim_cancel(o);
            }
            ds_optim_destroy(o);
            for (int says = 0; device && says < 2; says++) { /* a device that has words for a failure, or none */
                memset(&gpu, 0, sizeof gpu);
                if (says) gpu.describe = describe_failure;
                desc.device = &gpu;
                if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
                CHECK(ds_optim_begin(o, 1, 1, 0) == DS_OK && ds_optim_apply(o, &x, 1) == DS_ERR_DEVICE);
                CHECK_EQ(strstr(ds_optim_error(o)->message, "out of order") != NULL, says);
                ds_optim_destroy(o);
            }
            desc.device = NULL;
        }
        CHECK(memcmp(w[0], w[1], sizeof w[0]) == 0 && memcmp(s[0], s[1], sizeof s[0]) == 0);
        desc.type = "Muon";
        {
            ds_optim *o;
            CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_UNSUPPORTED);
            CHECK_HAS(e.message, "Adam, AdamW, SGD");
        }
    }
    TEST(every_call_of_the_device_fails) {
        static const char *const types[] = {"AdamW", "SGD",        "Adagrad",     "Lion",       "Lamb",
                                            "Muon",  "OneBitAdam", "ZeroOneAdam", "OneBitLamb", "Muon"};
        enum { STEPS = 8, TENSORS_HERE = 4 };
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            for (int n = 1;; n++) {
                static float w[TENSORS_HERE][1500], s[3][TENSORS_HERE][1500], g[TENSORS_HERE][1500];
                static uint16_t half[TENSORS_HERE][1500];
                ds_optim_tensor tensors[TENSORS_HERE];
                ds_optim_slice slices[TENSORS_HERE + 1];
                frail f = {0, n, 0};
                ds_optim_kernels kernels;
                ds_device gpu;
                ds_optim_params p;
                ds_optim_desc desc;
                ds_optim *o = NULL;
                ds_error e = {DS_OK, ""};
                size_t count = 0;
                bool failed = false;
                memset(&kernels, 0, sizeof kernels), memset(&gpu, 0, sizeof gpu), memset(&desc, 0, sizeof desc);
                memset(tensors, 0, sizeof tensors), memset(slices, 0, sizeof slices), memset(w, 0, sizeof w);
                memset(s, 0, sizeof s);
                kernels.ctx = gpu.ctx = &f;
                kernels.update = frail_update, kernels.norm_grains = frail_norm_grains, kernels.cast = frail_cast;
                kernels.norm_tree = frail_norm_tree, kernels.scale = frail_scale, kernels.mix = frail_mix;
                kernels.multiply = frail_multiply, kernels.transpose = frail_transpose, kernels.mirror = frail_mirror;
                gpu.alloc = gpu.pinned_alloc = frail_alloc, gpu.release = gpu.pinned_release = frail_release;
                gpu.copy = frail_copy, gpu.fill = frail_fill, gpu.synchronize = frail_synchronize;
                tensors[0].name = "row", tensors[0].rows = 1, tensors[0].cols = 1500;
                tensors[1].name = "none";
                tensors[2].name = "wide", tensors[2].rows = 6, tensors[2].cols = 7;
                tensors[3].name = "tall", tensors[3].rows = 9, tensors[3].cols = 4;
                ds_optim_params_default(types[t], &p);
                p.freeze_step = n % 4 ? 3 : 1, p.var_freeze_step = 3, p.var_update_scaler = 1, p.weight_decay = 0.1;
                p.ns_method = t + 1 < sizeof types / sizeof *types ? DS_OPTIM_NS_GRAM : DS_OPTIM_NS_STANDARD;
                desc.type = types[t], desc.groups = &p, desc.group_count = 1;
                desc.tensors = tensors, desc.tensor_count = TENSORS_HERE;
                desc.kernels = &kernels, desc.device = &gpu, desc.all_on_device = true;
                desc.average.average = frail_average, desc.average.ctx = &f;
                if (ds_optim_create(&desc, &o, &e)) {
                    CHECK(e.status == DS_ERR_DEVICE && o == NULL && f.calls == n && f.live == 0);
                    continue;
                }
                for (size_t i = 0; i < TENSORS_HERE; i++) {
                    const size_t all = tensors[i].rows * tensors[i].cols;
                    const bool cut = all > DS_GRAIN && ds_optim_tensor_work(o, 0) < DS_OPTIM_WHOLE;
                    for (size_t begin = 0; begin < all + (all == 0); begin += cut ? DS_GRAIN : all + 1) {
                        ds_optim_slice *x = &slices[count++];
                        x->tensor = i, x->begin = begin;
                        x->count = cut && all - begin > DS_GRAIN ? DS_GRAIN : all - begin;
                        x->master = w[i] + begin, x->grad = g[i] + begin;
                        for (size_t k = 0; k < 3; k++) x->state[k] = s[k][i] + begin;
                        if (i % 2 == 0) x->weights16 = half[i] + begin, x->weights16_dtype = DS_BF16;
                    }
                    for (size_t j = 0; j < all; j++) w[i][j] = 1, g[i][j] = (float)(j % 5) - 2;
                }
                for (int64_t k = 0; k < STEPS; k++) {
                    const ds_status status = step_on_device(o, slices, count);
                    if (!status) continue;
                    /* nothing follows what failed, and the step can be taken again */
                    CHECK(status == DS_ERR_DEVICE && !failed && f.calls == n);
                    CHECK_HAS(ds_optim_error(o)->message, "failed");
                    failed = true;
                    if (ds_optim_step_count(o) == k) {
                        ds_optim_cancel(o);
                        CHECK(step_on_device(o, slices, count) == DS_OK);
                    } else /* what end clears */
                        CHECK(ds_optim_reset_errors(o) == DS_OK);
                }
                CHECK_EQ(ds_optim_step_count(o), STEPS);
                CHECK(failed || f.calls < n);
                ds_optim_destroy(o);
                CHECK_EQ(f.live, 0);
                if (!failed) break;
            }
    }
    TEST(kernels_leave_the_hosts_slices_to_the_cpu) {
        float w[2][4] = {{1, 2, 3, 4}, {1, 2, 3, 4}}, s[2][2][4] = {{{0}, {0}}, {{0}, {0}}}, g[4] = {1, -1, 2, 0};
        ds_optim_tensor tensor = {"w", 1, 4, 0, DS_F32, DS_OPTIM_MUON_AUTO};
        ds_optim_kernels kernels = fake_kernels(w); /* fails without its stream */
        for (int k = 0; k < 2; k++) {
            ds_optim_params p;
            ds_optim_desc desc;
            ds_optim *o = NULL;
            ds_optim_slice x;
            memset(&desc, 0, sizeof desc), memset(&x, 0, sizeof x);
            ds_optim_params_default("Adam", &p);
            desc.type = "Adam", desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor, desc.tensor_count = 1;
            if (k) desc.kernels = &kernels;
            if (!CHECK(ds_optim_create(&desc, &o, NULL) == DS_OK)) break;
            x.count = 4, x.master = w[k], x.state[0] = s[k][0], x.state[1] = s[k][1], x.grad = g, x.on_host = k != 0;
            CHECK(ds_optim_begin(o, 1, 1, 0) == DS_OK && ds_optim_apply(o, &x, 1) == DS_OK && ds_optim_end(o) == DS_OK);
            ds_optim_destroy(o);
        }
        CHECK(w[0][0] < 1 && memcmp(w[0], w[1], sizeof w[0]) == 0 && memcmp(s[0], s[1], sizeof s[0]) == 0);
    }
    TEST(exchange_fails) {
        static const char *const types[] = {"Lamb", "OneBitAdam", "ZeroOneAdam", "OneBitLamb"};
        for (size_t t = 0; t < 4; t++)
            for (int custom = 0; custom < 2; custom++) {
                static model m;
                int left = 1000;
                ds_optim_params p;
                ds_optim_desc desc;
                ds_optim *o = NULL;
                ds_error e;
                const ds_optim_options unchecked = {0, NULL, true};
                ds_optim_params_default(types[t], &p);
                p.freeze_step = p.var_freeze_step = 2;
                memset(&m, 0, sizeof m);
                memset(&desc, 0, sizeof desc);
                m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 20;
                for (size_t i = 0; i < 20; i++) m.weights[0][i] = m.grads[0][i] = 1;
                desc.type = types[t], desc.groups = &p, desc.group_count = 1, desc.tensors = m.tensors,
                desc.tensor_count = 1;
                desc.own_states = true, desc.group.size = 2, desc.group.exchange = broken_exchange,
                desc.group.ctx = &left;
                if (custom) desc.average.average = counted_average, desc.average.ctx = &left;
                if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
                for (int k = 0; t && k < 4; k++) CHECK(step(o, &m, &unchecked, NULL) == DS_OK);
                left = 0; /* the next call fails, and so does the step; one later works again */
                CHECK(step(o, &m, &unchecked, NULL) == (custom && t ? DS_ERR_TIMEOUT : DS_ERR_PEER));
                CHECK_HAS(ds_optim_error(o)->message, "failed");
                CHECK_EQ(ds_optim_step_count(o), t ? 4 : 0);
                left = 1000;
                CHECK(step(o, &m, &unchecked, NULL) == DS_OK);
                CHECK_EQ(ds_optim_step_count(o), t ? 5 : 1);
                ds_optim_destroy(o);
            }
    }
    TEST(many_small_tensors) {
        /* more than a batch, on several workers: as one by one */
        enum { MANY = 150 };
        static float w[2][MANY][3], g[MANY][3];
        static char names[MANY][16];
        ds_optim_tensor tensors[MANY];
        ds_optim_io io[MANY];
        ds_optim_params p;
        ds_optim_desc desc;
        ds_error e;
        uint64_t seed = 12;
        ds_optim_report r[2];
        const ds_optim_options clip = {0.5, NULL, false};
        memset(tensors, 0, sizeof tensors);
        memset(&desc, 0, sizeof desc);
        ds_optim_params_default("Lamb", &p);
        for (size_t i = 0; i < MANY; i++) {
            snprintf(names[i], sizeof names[i], "small %zu", i);
            tensors[i].name = names[i], tensors[i].rows = 1, tensors[i].cols = i % 4;
            for (size_t j = 0; j < 3; j++)
                w[0][i][j] = w[1][i][j] = (float)test_uniform(&seed), g[i][j] = (float)test_uniform(&seed);
        }
        desc.type = "Lamb", desc.groups = &p, desc.group_count = 1, desc.tensors = tensors, desc.tensor_count = MANY,
        desc.own_states = true;
        for (unsigned n = 0; n < 2; n++) {
            ds_optim *o = NULL;
            desc.threads = 1 + 3 * n, desc.level = n ? DS_OPTIM_LEVEL_BEST : DS_OPTIM_LEVEL_SCALAR;
            if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
            CHECK(n || ds_optim_simd_level(o) == DS_OPTIM_LEVEL_SCALAR);
            for (size_t i = 0; i < MANY; i++)
                io[i].weights = w[n][i], io[i].grad = g[i], io[i].weights_dtype = io[i].grad_dtype = DS_F32;
            for (int s = 0; s < 3; s++) CHECK(ds_optim_step(o, io, &clip, &r[n]) == DS_OK);
            ds_optim_destroy(o);
        }
        CHECK(memcmp(w[0], w[1], sizeof w[0]) == 0 && r[0].grad_norm == r[1].grad_norm && r[0].clip_coefficient < 1);
    }
    TEST(tasks_of_the_user_and_needless_measure) {
        static float data[BIG];
        ds_optim_tensor tensor = {"w", 1, BIG, 0, DS_F32, DS_OPTIM_MUON_AUTO};
        dsi_pool *pool = dsi_pool_create(NULL, 3);
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o = NULL;
        ds_optim_slice x;
        memset(&desc, 0, sizeof desc);
        memset(&x, 0, sizeof x);
        ds_optim_params_default("Adagrad", &p);
        desc.type = "Adagrad", desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor, desc.tensor_count = 1;
        desc.tasks.parallel_for = dsi_pool_for, desc.tasks.ctx = pool, desc.tasks.workers = 3;
        CHECK(ds_optim_create(&desc, &o, NULL) == DS_OK && ds_optim_begin(o, 1, 1, 0) == DS_OK);
        x.count = BIG, x.master = x.state[0] = data, x.grad = data;
        CHECK(ds_optim_measure(o, &x, 1) == DS_ERR_STATE);
        CHECK_HAS(ds_optim_error(o)->message, "needs no norms");
        CHECK(ds_optim_apply(o, &x, 1) == DS_OK && ds_optim_end(o) == DS_OK);
        ds_optim_destroy(o);
        dsi_pool_destroy(pool);
    }
}

/* ---- corners ---- */

static ds_status create_of(const char *type, const ds_optim_params *p, ds_optim_tensor *tensors, size_t n,
                           ds_group *group, ds_optim **o) {
    ds_optim_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.type = type, desc.groups = p, desc.group_count = 1, desc.tensors = tensors, desc.tensor_count = n;
    desc.own_states = true;
    if (group) desc.group = *group;
    return ds_optim_create(&desc, o, NULL);
}
/* A model of one tensor of four, whose first gradient is 1. */
static bool one_tensor(model *m, const char *type, ds_optim_params *p, ds_optim **o) {
    memset(m, 0, sizeof *m);
    m->count = 1, m->tensors[0].name = "w", m->tensors[0].rows = 1, m->tensors[0].cols = 4;
    m->grads[0][0] = 1;
    ds_optim_params_default(type, p);
    return create_of(type, p, m->tensors, 1, NULL, o) == DS_OK;
}
static void corners(void) {
    TEST(newton_schulz_of_any_length) {
        for (int method = 0; method < 2; method++)
            for (int steps = 0; steps <= 6; steps++)
                for (int bad = 0; bad < 2; bad++) {
                    static model m;
                    const ds_optim_options unchecked = {0, NULL, true};
                    ds_optim_params p;
                    ds_optim *o;
                    double length = 0;
                    ds_optim_params_default("Muon", &p);
                    p.lr = 1, p.ns_steps = steps, p.ns_method = (ds_optim_ns)method;
                    memset(&m, 0, sizeof m);
                    m.count = 4;
                    m.tensors[0].name = "hidden", m.tensors[0].rows = 3, m.tensors[0].cols = 7;
                    m.tensors[1].name = "wte.weight", m.tensors[1].rows = 3, m.tensors[1].cols = 2;
                    m.tensors[2].name = "row", m.tensors[2].rows = 1, m.tensors[2].cols = 4;
                    m.tensors[3].name = "column", m.tensors[3].rows = 4, m.tensors[3].cols = 1;
                    for (size_t i = 0; i < 21; i++) m.grads[0][i] = (float)((i * 7) % 5) - 2;
                    if (bad) m.grads[0][4] = INFINITY;
                    if ((o = create("Muon", &p, &m)) == NULL) break;
                    CHECK(ds_optim_state_count(o, 0) == 1 && ds_optim_state_count(o, 1) == 2 &&
                          ds_optim_state_count(o, 2) == 2);
                    CHECK(ds_optim_tensor_work(o, 0) == DS_OPTIM_WHOLE &&
                          ds_optim_tensor_work(o, 3) == DS_OPTIM_BY_GRAIN);
                    CHECK_EQ(ds_optim_state_count_max(o), 2);
                    CHECK(step(o, &m, &unchecked, NULL) == DS_OK);
                    for (size_t i = 0; i < 21; i++) length += (double)m.weights[0][i] * (double)m.weights[0][i];
                    if (bad)
                        CHECK(isinf(m.weights[0][4]) && m.weights[0][5] == -m.grads[0][5] &&
                              ds_optim_own_state(o, 0, 0)[5] == 0);
                    else if (steps == 0)
                        CHECK_NEAR(length, 1, 1e-5); /* normalised only */
                    else if (steps >= 5)
                        CHECK(length > 3 * 0.4 && length < 3 * 1.6); /* three singular values near one */
                    ds_optim_destroy(o);
                }
    }
    TEST(one_bit_at_every_world_size) {
        static const char *const types[] = {"OneBitAdam", "ZeroOneAdam", "OneBitLamb"};
        static const int sizes[] = {1, 2, 3, 4, 8, 16};
        for (size_t t = 0; t < 3; t++)
            for (size_t w = 0; w < 6; w++) {
                static model m;
                float mask[20];
                const float *masks[] = {mask, mask, mask};
                int left = 1 << 30;
                size_t n = 0;
                ds_optim_params p;
                ds_optim_desc desc;
                ds_optim *o = NULL;
                ds_error e;
                const ds_optim_options unchecked = {0, NULL, true};
                ds_optim_params_default(types[t], &p);
                p.freeze_step = p.var_freeze_step = (int64_t)w; /* 0 and 1 count as 2 */
                p.weight_decay = w % 2 ? 0.01 : 0, p.var_update_scaler = 1, p.local_step_scaler = 2;
                memset(&m, 0, sizeof m);
                memset(&desc, 0, sizeof desc);
                m.count = 3, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 20;
                m.tensors[1].name = "empty", m.tensors[2].name = "still", m.tensors[2].rows = 1, m.tensors[2].cols = 3;
                for (size_t i = 0; i < 20; i++) m.weights[0][i] = m.grads[0][i] = 1 + (float)i, mask[i] = i != 5;
                desc.type = types[t], desc.groups = &p, desc.group_count = 1, desc.tensors = m.tensors,
                desc.tensor_count = m.count;
                desc.own_states = true, desc.group.size = sizes[w], desc.group.exchange = broken_exchange,
                desc.group.ctx = &left;
                desc.masks = masks;
                if (w == 0) desc.average.average = counted_average, desc.average.ctx = &left; /* though alone */
                if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
                for (int s = 0; s < 9; s++) CHECK(step(o, &m, &unchecked, NULL) == DS_OK);
                for (size_t i = 0; i < 20; i++) CHECK(m.weights[0][i] == m.weights[0][i]);
                CHECK(ds_optim_wants_local_gradients(o) && ds_optim_error_buffer(o, 0, 1, &n) &&
                      n * (size_t)sizes[w] >= 20);
                CHECK(m.weights[0][5] != 6);
                if (sizes[w] == 1 || t != 1) CHECK_EQ(ds_optim_local_until(o), 0);
                for (int64_t until = ds_optim_local_until(o); until;) { /* local steps end where it says, not before */
                    CHECK_EQ(ds_optim_local_until(o), ds_optim_step_count(o) < until ? until : 0);
                    if (ds_optim_step_count(o) >= until) break;
                    CHECK(step(o, &m, &unchecked, NULL) == DS_OK);
                }
                ds_optim_reset_errors(o);
                ds_optim_destroy(o);
                desc.tensor_count = 0;
                CHECK(ds_optim_create(&desc, &o, &e) == DS_OK && !ds_optim_wants_local_gradients(o));
                CHECK(ds_optim_error_buffers(o) == 0);
                for (int which = 0; which < 3; which++) CHECK(ds_optim_error_buffer(o, 0, which, &n) == NULL && n == 0);
                ds_optim_destroy(o);
            }
    }
    TEST(one_bit_alone_as_deepspeed) { /* world size 1 of its classes: gradients of 1, beta1 0.9 */
        static const char *const types[] = {"OneBitAdam", "OneBitLamb", "ZeroOneAdam"};
        for (size_t t = 0; t < 3; t++) {
            float w[4] = {0}, g[4] = {1, 1, 1, 1}, mask[4] = {1, 1, 0, 0};
            const float *masks[] = {mask};
            ds_optim_tensor tensor = {"w", 1, 4, 0, DS_F32, DS_OPTIM_MUON_AUTO};
            ds_optim_io io = {w, DS_F32, g, DS_F32};
            ds_optim_params p;
            ds_optim_desc desc;
            ds_optim *o = NULL;
            const float *m;
            ds_optim_params_default(types[t], &p);
            p.freeze_step = 2, p.var_freeze_step = 3, p.var_update_scaler = 1, p.weight_decay = 0;
            memset(&desc, 0, sizeof desc);
            desc.type = types[t], desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor, desc.tensor_count = 1;
            desc.own_states = true, desc.masks = masks;
            if (!CHECK(ds_optim_create(&desc, &o, NULL) == DS_OK)) break;
            m = ds_optim_own_state(o, 0, 0);
            for (int s = 0; s < 3; s++) CHECK(ds_optim_step(o, &io, NULL, NULL) == DS_OK);
            if (t < 2) /* masked in the first compressed step */
                CHECK(fabs((double)m[0] - 0.19) < 1e-6 && m[1] == m[0] && m[2] == 0 && m[3] == 0);
            else /* step 3 lies between two updates of the variance, and changes nothing of the momentum */
                CHECK(fabs((double)m[0] - 0.1) < 1e-6 && m[3] == m[0]);
            CHECK(ds_optim_step(o, &io, NULL, NULL) == DS_OK);
            if (t == 2) CHECK(fabs((double)m[0] - 0.19) < 1e-6 && m[3] == m[0]); /* step 4 is one of the updates */
            ds_optim_destroy(o);
        }
        for (int64_t freeze = 0; freeze <= 3; freeze++) { /* taken in the step that is freeze_step, and in no other */
            static model m;
            ds_optim_params p;
            ds_optim *o = NULL;
            if (!CHECK(one_tensor(&m, "OneBitLamb", &p, &o))) break;
            ds_optim_destroy(o);
            p.freeze_step = freeze;
            if (!CHECK(create_of("OneBitLamb", &p, m.tensors, 1, NULL, &o) == DS_OK)) break;
            for (int64_t s = 1; s <= (freeze > 2 ? freeze : 2); s++) {
                CHECK(ds_optim_own_state(o, 0, 2)[0] == 0);
                CHECK(step(o, &m, NULL, NULL) == DS_OK);
            }
            CHECK(ds_optim_own_state(o, 0, 2)[0] == (freeze < 2 ? 0 : ds_optim_own_state(o, 0, 1)[0]));
            CHECK(ds_optim_wants_local_gradients(o) && step(o, &m, NULL, NULL) == DS_OK);
            CHECK(ds_optim_own_state(o, 0, 2)[0] > 0);
            ds_optim_destroy(o);
        }
    }
    TEST(max_grad_norm_of_one_bit_lamb_is_refused_too) {
        static model m;
        ds_optim_params p;
        ds_optim *o = NULL;
        if (!CHECK(one_tensor(&m, "OneBitLamb", &p, &o))) break;
        ds_optim_destroy(o);
        p.freeze_step = 2, p.max_grad_norm = 1e9;
        if (!CHECK(create_of("OneBitLamb", &p, m.tensors, 1, NULL, &o) == DS_OK)) break;
        CHECK(step(o, &m, NULL, NULL) == DS_OK && step(o, &m, NULL, NULL) == DS_OK);
        CHECK(step(o, &m, NULL, NULL) == DS_ERR_UNSUPPORTED && ds_optim_begin(o, 1, 1, 1) == DS_ERR_UNSUPPORTED);
        CHECK_HAS(ds_optim_error(o)->message, "whatever the norm");
        ds_optim_destroy(o);
    }
    TEST(refusals_one_by_one) {
        static model m;
        static float data[DS_GRAIN];
        ds_optim_table table = {"Own", DS_OPTIM_BY_GRAIN, 0, {NULL, NULL, NULL}, NULL, normalized, NULL, NULL, false};
        ds_optim_kernels kernels = fake_kernels(NULL);
        const float *const masks[1] = {data};
        ds_device gpu;
        ds_optim_io io = {NULL, DS_F32, data, DS_F32};
        ds_optim_params p;
        ds_optim_desc desc, good;
        ds_schedule schedule;
        ds_optim_slice x;
        ds_optim *o = NULL;
        unsigned char saved[64];
        ds_optim_params_default(NULL, &p);
        memset(&m, 0, sizeof m);
        memset(&x, 0, sizeof x);
        memset(&good, 0, sizeof good), memset(&gpu, 0, sizeof gpu);
        m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 5;
        good.type = "Own", good.groups = &p, good.group_count = 1, good.tensors = m.tensors, good.tensor_count = 1;
        good.tables = &table, good.table_count = 1, good.own_states = true;
        CHECK(ds_optim_create_(&good, &o, NULL, DS_OPTIM_VERSION, 1) == DS_ERR_VERSION);
        table.update = NULL;
        CHECK(ds_optim_create(&good, &o, NULL) == DS_ERR_ARGUMENT);
        table.update = normalized, table.state_count = 4;
        CHECK(ds_optim_create(&good, &o, NULL) == DS_ERR_ARGUMENT);
        table.state_count = 0, table.work = DS_OPTIM_WHOLE_BY_NORM;
        CHECK(ds_optim_create(&good, &o, NULL) == DS_ERR_ARGUMENT);
        table.work = DS_OPTIM_BY_GRAIN, desc = good, desc.kernels = &kernels;
        CHECK(ds_optim_create(&desc, &o, NULL) == DS_ERR_UNSUPPORTED);
        desc.type = "Adam";
        CHECK(ds_optim_create(&desc, &o, NULL) == DS_ERR_UNSUPPORTED);
        desc.own_states = false, desc.type = "Lamb"; /* its sums lie on a device */
        CHECK(ds_optim_create(&desc, &o, NULL) == DS_ERR_ARGUMENT);
        desc.type = "OneBitAdam", desc.device = &gpu;
        CHECK(ds_optim_create(&desc, &o, NULL) == DS_ERR_UNSUPPORTED);
        desc.all_on_device = true, desc.masks = masks;
        CHECK(ds_optim_create(&desc, &o, NULL) == DS_ERR_ARGUMENT);
        desc.masks = NULL, desc.group.size = 2, desc.group.exchange = broken_exchange;
        CHECK(ds_optim_create(&desc, &o, NULL) == DS_ERR_ARGUMENT);
        desc = good, desc.groups = NULL;
        CHECK(ds_optim_create(&desc, &o, NULL) == DS_ERR_ARGUMENT);
        if (!CHECK(ds_optim_create(&good, &o, NULL) == DS_OK)) break;
        CHECK(ds_optim_set_lr(o, 1, 1) == DS_ERR_ARGUMENT && ds_optim_set_group_params(o, 1, &p) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_set_step_count(o, -1) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_step(o, &io, NULL, NULL) == DS_ERR_ARGUMENT);
        io.weights = data, io.grad = NULL;
        CHECK(ds_optim_step(o, &io, NULL, NULL) == DS_ERR_ARGUMENT);
        io.grad = data, io.weights_dtype = DS_BF16;
        CHECK(ds_optim_step(o, &io, NULL, NULL) == DS_ERR_ARGUMENT);
        io.weights_dtype = DS_F32;
        ds_optim_save(o, saved);
        CHECK(ds_optim_begin(o, 1, 1, 0) == DS_OK && ds_optim_step(o, &io, NULL, NULL) == DS_ERR_STATE);
        CHECK(ds_optim_load(o, saved, ds_optim_save_bytes(o)) == DS_ERR_STATE);
        CHECK(ds_optim_combine(o) == DS_OK && ds_optim_combine(o) == DS_ERR_STATE);
        x.begin = 6;
        CHECK(ds_optim_apply(o, &x, 1) == DS_ERR_ARGUMENT);
        x.begin = 0, x.count = 3, x.master = data, x.grad = data;
        CHECK(ds_optim_apply(o, &x, 1) == DS_ERR_ARGUMENT);
        x.count = 5, x.master = NULL;
        CHECK(ds_optim_apply(o, &x, 1) == DS_ERR_ARGUMENT);
        x.count = 0;
        CHECK(ds_optim_apply(o, &x, 1) == DS_OK && ds_optim_apply(o, NULL, 0) == DS_OK);
        ds_optim_cancel(o);
        saved[0] ^= 1;
        CHECK(ds_optim_load(o, saved, ds_optim_save_bytes(o)) == DS_ERR_INPUT);
        saved[0] ^= 1, saved[31] = 0x80;
        CHECK(ds_optim_load(o, saved, ds_optim_save_bytes(o)) == DS_ERR_INPUT);
        ds_schedule_default("LRRangeTest", &schedule, NULL);
        schedule.lr_range_test_min_lr = -1; /* the group's own rate */
        CHECK(ds_optim_set_schedule(o, 0, &schedule) == DS_OK && ds_optim_lr(o, 0) == p.lr);
        schedule.kind = DS_SCHEDULE_NONE;
        CHECK(ds_optim_set_schedule(o, 0, &schedule) == DS_OK && ds_optim_lr(o, 0) == p.lr);
        CHECK(ds_schedule_default(NULL, &schedule, NULL) == DS_ERR_INPUT);
        ds_optim_destroy(o);
        ds_optim_params_default("OneBitAdam", &p);
        if (!CHECK(create_of("OneBitAdam", &p, m.tensors, 1, NULL, &o) == DS_OK)) break;
        CHECK(ds_optim_set_step_count(o, p.freeze_step) == DS_OK && ds_optim_begin(o, 1, 1, 0) == DS_OK);
        CHECK(ds_optim_combine(o) == DS_OK && ds_optim_combine(o) == DS_ERR_STATE); /* nothing to do, once */
        ds_optim_destroy(o);
    }
}

/* ---- what the tests above leave out ---- */

static double fixed_rate(void *ctx, int64_t k, double base_lr) {
    (void)k, (void)base_lr;
    return *(const double *)ctx;
}
static ds_status fails_at_seven(const ds_optim_pass *pass, const float *grad, float *master, float *const *state,
                                size_t count) {
    (void)pass;
    if (count && state[0]) master[0] = state[0][0] = 1; /* been here */
    return count && grad[0] == 7 ? DS_ERR_CORRUPT : DS_OK;
}
/* What a sum is, is the table's business: -1 and NaN are sums like any other. */
static void measures_minus_one(const ds_optim_pass *pass, const float *grad, const float *master, float *const *state,
                               size_t count, double sums[2]) {
    (void)grad, (void)master, (void)state, (void)count;
    sums[0] = -1, sums[1] = pass->begin ? NAN : -1;
}
static void rest(void) {
    TEST(elementwise_refuses_whole_numbers_and_keeps_what_is_there) {
        float x[3] = {1, 2, 3};
        uint16_t h[3] = {0, 0, 0};
        CHECK(ds_optim_cast(h, DS_BF16, x, DS_I8, 3) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_cast(h, DS_I16, x, DS_F32, 3) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_cast(h, DS_I16, x, DS_I16, 3) == DS_ERR_ARGUMENT && h[0] == 0);
        CHECK(ds_optim_accumulate(h, DS_BF16, x, DS_I8, 3) == DS_ERR_ARGUMENT);
        CHECK(ds_optim_accumulate(h, DS_U16, x, DS_F32, 3) == DS_ERR_ARGUMENT && h[0] == 0);
        CHECK(ds_optim_cast(x, DS_F32, x, DS_F32, 3) == DS_OK && ds_optim_cast(NULL, DS_F16, NULL, DS_F16, 0) == DS_OK);
        CHECK(x[0] == 1 && x[1] == 2 && x[2] == 3);
    }
    TEST(lamb_without_a_direction) { /* the trust ratio is 1 when either norm is 0: nothing moves, nothing is NaN */
        static model m;
        ds_optim_params p;
        ds_optim *o = NULL;
        memset(&m, 0, sizeof m);
        ds_optim_params_default("Lamb", &p);
        p.weight_decay = 0;
        m.count = 2, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 9;
        m.tensors[1].name = "zero", m.tensors[1].rows = 1, m.tensors[1].cols = 9;
        for (size_t i = 0; i < 9; i++) m.weights[0][i] = 3, m.grads[1][i] = 1;
        if (!CHECK(create_of("Lamb", &p, m.tensors, 2, NULL, &o) == DS_OK)) break;
        CHECK(step(o, &m, NULL, NULL) == DS_OK);
        CHECK(m.weights[0][0] == 3 && m.weights[1][0] < 0 && m.weights[1][0] > -1);
        ds_optim_destroy(o);
    }
    TEST(lamb_factor_is_held) { /* between factor_min and factor_max, and within the threshold of the last one */
        ds_optim_params p;
        ds_optim_params_default("OneBitLamb", &p);
        p.factor_min = 0.5, p.factor_max = 4, p.factor_threshold = 0.1;
        CHECK_NEAR(dsi_optim_lamb_factor(&p, 100, 3.9), 4, 0);
        CHECK_NEAR(dsi_optim_lamb_factor(&p, 3, 2), 2.2, 1e-12);
        CHECK_NEAR(dsi_optim_lamb_factor(&p, 0.1, 0.52), 0.5, 0);
        CHECK_NEAR(dsi_optim_lamb_factor(&p, 1, 2), 1.8, 1e-12);
    }
    TEST(muon_tall_and_empty) {
        static model m;
        ds_optim_params p;
        ds_optim *o = NULL;
        memset(&m, 0, sizeof m);
        ds_optim_params_default("Muon", &p);
        m.count = 3, m.tensors[0].name = "wide", m.tensors[0].rows = 4, m.tensors[0].cols = 5;
        m.tensors[1].name = "tall", m.tensors[1].rows = 9, m.tensors[1].cols = 2;
        m.tensors[2].name = "none", m.tensors[2].rows = 3, m.tensors[2].cols = 0, m.tensors[2].muon = DS_OPTIM_MUON_ON;
        for (size_t i = 0; i < 20; i++) m.grads[0][i] = (float)(i % 7) - 3, m.grads[1][i] = (float)(i % 5) - 2;
        if (!CHECK(create_of("Muon", &p, m.tensors, 3, NULL, &o) == DS_OK)) break;
        CHECK(step(o, &m, NULL, NULL) == DS_OK && m.weights[0][0] != 0 && m.weights[1][0] != 0);
        CHECK(ds_optim_set_lr(o, 0, 0.5) == DS_OK && step(o, &m, NULL, NULL) == DS_OK);
        ds_optim_destroy(o);
        p.lr = 0, p.adam_lr = 1e-3; /* no ratio to scale adam_lr by */
        m.tensors[0].muon = DS_OPTIM_MUON_OFF;
        m.weights[0][0] = 0;
        if (!CHECK(create_of("Muon", &p, m.tensors, 3, NULL, &o) == DS_OK)) break;
        CHECK(step(o, &m, NULL, NULL) == DS_OK);
        CHECK_NEAR(m.weights[0][0], 1e-3, 1e-5);
        ds_optim_destroy(o);
    }
    TEST(second_exchange_fails) { /* the server's half of the compressed average, in each optimizer's frozen phase */
        static const char *const types[] = {"OneBitAdam", "ZeroOneAdam", "OneBitLamb"};
        for (size_t t = 0; t < 3; t++) {
            static model m;
            int left = 1000;
            const ds_optim_options unchecked = {0, NULL, true};
            ds_group group = {broken_exchange, &left, 0, 2};
            ds_optim_params p;
            ds_optim *o = NULL;
            ds_optim_params_default(types[t], &p);
            p.freeze_step = p.var_freeze_step = 2;
            memset(&m, 0, sizeof m);
            m.count = 2, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 20;
            m.tensors[1].name = "v", m.tensors[1].rows = 1, m.tensors[1].cols = 20;
            for (size_t i = 0; i < 20; i++) m.weights[0][i] = m.grads[0][i] = m.weights[1][i] = m.grads[1][i] = 1;
            if (!CHECK(create_of(types[t], &p, m.tensors, 2, &group, &o) == DS_OK)) break;
            for (int k = 0; k < 4; k++) CHECK(step(o, &m, &unchecked, NULL) == DS_OK);
            left = 1;
            CHECK(step(o, &m, &unchecked, NULL) == DS_ERR_PEER && ds_optim_step_count(o) == 4);
            CHECK_HAS(ds_optim_error(o)->message, "compressed average");
            left = 1000;
            CHECK(step(o, &m, &unchecked, NULL) == DS_OK && ds_optim_step_count(o) == 5);
            ds_optim_destroy(o);
        }
    }
    TEST(zero_one_fails_before_its_freeze) {
        static model m;
        int left = 1000;
        const ds_optim_options unchecked = {0, NULL, true};
        ds_group group = {broken_exchange, &left, 0, 2};
        ds_optim_params p;
        ds_optim *o = NULL;
        ds_optim_params_default("ZeroOneAdam", &p);
        p.var_freeze_step = 100, p.var_update_scaler = 1;
        memset(&m, 0, sizeof m);
        m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 20;
        for (size_t i = 0; i < 20; i++) m.grads[0][i] = 1;
        if (!CHECK(create_of("ZeroOneAdam", &p, m.tensors, 1, &group, &o) == DS_OK)) break;
        while (!ds_optim_wants_local_gradients(o) && ds_optim_step_count(o) < 20)
            CHECK(step(o, &m, &unchecked, NULL) == DS_OK);
        left = 0;
        CHECK(ds_optim_wants_local_gradients(o) && step(o, &m, &unchecked, NULL) == DS_ERR_PEER);
        ds_optim_destroy(o);
    }
    TEST(padding_of_the_shared_buffer) { /* OneBitLamb's third buffer is what its tensors leave of the rounded size */
        static model m;
        int left = 1000;
        size_t count = 1;
        ds_group group = {broken_exchange, &left, 0, 2};
        ds_optim_params p;
        ds_optim *o = NULL;
        memset(&m, 0, sizeof m);
        m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 20;
        ds_optim_params_default("OneBitLamb", &p);
        if (!CHECK(create_of("OneBitLamb", &p, m.tensors, 1, &group, &o) == DS_OK)) break;
        CHECK(ds_optim_error_buffer(o, 0, 2, &count) != NULL && count > 0 && (20 + count) % 16 == 0);
        ds_optim_destroy(o);
        ds_optim_params_default("OneBitAdam", &p);
        if (!CHECK(create_of("OneBitAdam", &p, m.tensors, 1, &group, &o) == DS_OK)) break;
        CHECK(ds_optim_error_buffer(o, 0, 2, &count) != NULL && count == 0);
        ds_optim_destroy(o);
    }
    TEST(many_names_are_cut) {
        static char names[40][64];
        static ds_optim_table tables[40];
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o = NULL;
        ds_error e = {DS_OK, ""};
        memset(&desc, 0, sizeof desc);
        ds_optim_params_default(NULL, &p);
        for (int i = 0; i < 40; i++) {
            snprintf(names[i], sizeof names[i], "an optimizer of the user's own whose number is %d", i);
            tables[i].name = names[i], tables[i].update = normalized;
        }
        desc.type = "Adan", desc.groups = &p, desc.group_count = 1, desc.tables = tables, desc.table_count = 40;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_INPUT && !o);
        CHECK_HAS(e.message, "\"Adan\"");
        CHECK_HAS(e.message, "OneBitLamb, an optimizer");
        CHECK_HAS(e.message, "is 4 and 35 more"); /* never cut without a word */
        desc.type = NULL;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_INPUT);
    }
    TEST(users_updates_fail_and_measure_what_they_like) {
        static float w[BIG], g[BIG];
        ds_optim_tensor tensors[2] = {{"a", 1, BIG - 5, 0, DS_F32, DS_OPTIM_MUON_AUTO},
                                      {"b", 1, 5, 0, DS_F32, DS_OPTIM_MUON_AUTO}};
        ds_optim_io io[2] = {{w, DS_F32, g, DS_F32}, {w + BIG - 5, DS_F32, g + BIG - 5, DS_F32}};
        ds_optim_table table = {"Fails", DS_OPTIM_BY_GRAIN, 0, {NULL, NULL, NULL}, NULL, fails_at_seven, NULL, NULL,
                                false};
        ds_optim_params p;
        ds_optim_desc desc;
        ds_error e = {DS_OK, ""};
        for (int whole = 0; whole < 3; whole++) {
            ds_optim *o = NULL;
            memset(&desc, 0, sizeof desc), memset(&p, 0, sizeof p);
            p.lr = 1; /* the only one that such a table's groups need */
            desc.type = "Fails", desc.groups = &p, desc.group_count = 1, desc.tensors = tensors, desc.tensor_count = 2;
            desc.tables = &table, desc.table_count = 1, desc.own_states = true, desc.threads = 3;
            table.work = whole == 1 ? DS_OPTIM_WHOLE : whole ? DS_OPTIM_BY_NORM : DS_OPTIM_BY_GRAIN;
            table.measure = whole == 2 ? measures_minus_one : NULL;
            if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
            memset(g, 0, sizeof g);
            CHECK(ds_optim_step(o, io, NULL, NULL) == DS_OK && ds_optim_step_count(o) == 1);
            g[BIG - 5] = 7;
            CHECK(ds_optim_step(o, io, NULL, NULL) == DS_ERR_CORRUPT && ds_optim_step_count(o) == 1);
            CHECK_HAS(ds_optim_error(o)->message, "\"Fails\" failed on \"b\"");
            g[BIG - 5] = 0;
            CHECK(ds_optim_step(o, io, NULL, NULL) == DS_OK && ds_optim_step_count(o) == 2);
            p.lr = -1;
            CHECK(ds_optim_set_group_params(o, 0, &p) == DS_ERR_ARGUMENT);
            ds_optim_destroy(o);
            CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT);
            CHECK_HAS(e.message, "lr is -1");
        }
    }
    TEST(memory_of_ranks_and_of_a_users_table_fails) {
        for (int own = 0; own < 3; own++) /* 2: with kernels */
            for (size_t n = 1;; n++) {
                test_memory memory;
                ds_optim_kernels kernels = fake_kernels(NULL);
                int left = 1000;
                ds_optim_tensor tensor = {"w", 1, 20, 0, DS_F32, DS_OPTIM_MUON_AUTO};
                ds_optim_table table = {"Own", DS_OPTIM_BY_GRAIN, 1, {"a", NULL, NULL}, NULL, normalized, NULL, NULL,
                                        false};
                ds_optim_params p;
                ds_optim_desc desc;
                ds_optim *o = NULL;
                ds_status status;
                memset(&memory, 0, sizeof memory);
                memset(&desc, 0, sizeof desc);
                ds_optim_params_default("Lamb", &p);
                desc.type = own ? own > 1 ? "Lion" : "Own" : "Lamb", desc.groups = &p, desc.group_count = 1;
                desc.tensors = &tensor, desc.tensor_count = 1, desc.tables = &table, desc.table_count = 1;
                desc.own_states = own < 2, desc.kernels = own < 2 ? NULL : &kernels;
                desc.group.exchange = broken_exchange, desc.group.ctx = &left, desc.group.size = 2;
                desc.allocator.alloc = test_alloc, desc.allocator.release = test_release, desc.allocator.ctx = &memory;
                memory.fail_at = n;
                status = ds_optim_create(&desc, &o, NULL);
                CHECK(status == DS_OK || (status == DS_ERR_MEMORY && !o));
                ds_optim_destroy(o);
                CHECK(memory.live == 0 && memory.mismatches == 0);
                if (status == DS_OK) break;
            }
    }
    TEST(users_table_takes_new_params_and_no_kernels) {
        ds_optim_tensor tensor = {"w", 1, 20, 0, DS_F32, DS_OPTIM_MUON_AUTO};
        ds_optim_table table = {"Own", DS_OPTIM_BY_GRAIN, 0, {NULL, NULL, NULL}, NULL, normalized, NULL, NULL, false};
        ds_optim_kernels kernels = fake_kernels(NULL);
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o = NULL;
        float w[20] = {0}, g[20] = {1};
        ds_optim_io io = {w, DS_F32, g, DS_F32};
        memset(&desc, 0, sizeof desc);
        ds_optim_params_default(NULL, &p);
        p.adam_w_mode = false, p.momentum = 0.5;
        desc.type = "Own", desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor, desc.tensor_count = 1;
        desc.tables = &table, desc.table_count = 1, desc.kernels = &kernels;
        CHECK(ds_optim_create(&desc, &o, NULL) == DS_ERR_UNSUPPORTED);
        desc.kernels = NULL, desc.own_states = true;
        if (!CHECK(ds_optim_create(&desc, &o, NULL) == DS_OK)) break;
        p.momentum = 0; /* of SGD this would be refused */
        CHECK(ds_optim_set_group_params(o, 0, &p) == DS_OK && ds_optim_step(o, &io, NULL, NULL) == DS_OK);
        ds_optim_destroy(o);
        desc.type = "SGD";
        p.momentum = 0.9;
        if (!CHECK(ds_optim_create(&desc, &o, NULL) == DS_OK)) break;
        p.momentum = 0.8;
        CHECK(ds_optim_set_group_params(o, 0, &p) == DS_OK);
        ds_optim_destroy(o);
    }
    TEST(nothing_to_gather) {
        int left = 0; /* the exchange would fail */
        ds_group group = {broken_exchange, &left, 0, 2};
        ds_optim_tensor tensor = {"none", 1, 0, 0, DS_F32, DS_OPTIM_MUON_AUTO};
        ds_optim_params p;
        ds_optim *o = NULL;
        ds_optim_params_default("Lamb", &p);
        if (!CHECK(create_of("Lamb", &p, &tensor, 1, &group, &o) == DS_OK)) break;
        CHECK(ds_optim_begin(o, 1, 1, 0) == DS_OK && ds_optim_combine(o) == DS_OK && ds_optim_end(o) == DS_OK);
        ds_optim_destroy(o);
        ds_optim_params_default("OneBitLamb", &p);
        p.freeze_step = 2;
        if (!CHECK(create_of("OneBitLamb", &p, &tensor, 1, &group, &o) == DS_OK)) break;
        for (int s = 0; s < 4; s++)
            CHECK(ds_optim_begin(o, 1, 1, 0) == DS_OK && ds_optim_combine(o) == DS_OK && ds_optim_end(o) == DS_OK);
        ds_optim_destroy(o);
    }
    TEST(adamw_decays_decoupled_whatever_adam_w_mode_says) {
        float last[2];
        for (int mode = 0; mode < 2; mode++) {
            static model m;
            ds_optim_params p;
            ds_optim *o = NULL;
            if (!CHECK(one_tensor(&m, "AdamW", &p, &o))) break;
            p.weight_decay = 0.5, p.lr = 0.5, p.adam_w_mode = mode != 0, m.weights[0][1] = 8;
            CHECK(ds_optim_set_lr(o, 0, 0.5) == DS_OK && ds_optim_set_group_params(o, 0, &p) == DS_OK);
            CHECK(step(o, &m, NULL, NULL) == DS_OK);
            last[mode] = m.weights[0][1]; /* its gradient is 0 */
            ds_optim_destroy(o);
        }
        CHECK(last[0] == 6 && last[1] == 6);
    }
    TEST(a_failure_ends_the_batches) { /* of 64 tensors: what comes after the one that failed is not touched */
        enum { MANY = 70 };
        static char names[MANY][8];
        float w[MANY] = {0}, g[MANY] = {0};
        ds_optim_tensor tensors[MANY];
        ds_optim_io io[MANY];
        ds_optim_table table = {"Fails", DS_OPTIM_BY_GRAIN, 1, {"sum", NULL, NULL}, NULL, fails_at_seven, NULL, NULL,
                                false};
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o = NULL;
        memset(tensors, 0, sizeof tensors), memset(&desc, 0, sizeof desc), memset(&p, 0, sizeof p);
        p.lr = 0.5;
        for (size_t i = 0; i < MANY; i++) {
            snprintf(names[i], sizeof names[i], "%zu", i);
            tensors[i].name = names[i], tensors[i].rows = tensors[i].cols = 1;
            io[i].weights = &w[i], io[i].grad = &g[i], io[i].weights_dtype = io[i].grad_dtype = DS_F32;
        }
        desc.type = "Fails", desc.groups = &p, desc.group_count = 1, desc.tensors = tensors, desc.tensor_count = MANY;
        desc.own_states = true, desc.tables = &table, desc.table_count = 1;
        if (!CHECK(ds_optim_create(&desc, &o, NULL) == DS_OK)) break;
        g[3] = g[5] = 7;
        CHECK(ds_optim_step(o, io, NULL, NULL) == DS_ERR_CORRUPT);
        CHECK_HAS(ds_optim_error(o)->message, "failed on \"3\""); /* the first of two */
        CHECK(w[63] == 1 && w[64] == 0);
        ds_optim_destroy(o);
    }
    TEST(users_table_gives_sixteen_bit_weights) {
        for (int whole = 0; whole < 2; whole++) {
            ds_optim_tensor tensor = {"w", 1, 3, 0, DS_BF16, DS_OPTIM_MUON_AUTO};
            ds_optim_table table = {"Doubled", DS_OPTIM_BY_GRAIN, 1, {"sum", NULL, NULL}, NULL, doubled, NULL, NULL,
                                    false};
            uint16_t w[3] = {0x3F80, 0x3F80, 0x3F80}, g[3] = {0, 0x3F80, 0xBF80};
            ds_optim_io io = {w, DS_BF16, g, DS_BF16};
            ds_optim_params p;
            ds_optim_desc desc;
            ds_optim *o = NULL;
            memset(&desc, 0, sizeof desc), memset(&p, 0, sizeof p);
            p.lr = 0.0626;
            table.work = whole ? DS_OPTIM_WHOLE : DS_OPTIM_BY_GRAIN;
            desc.type = "Doubled", desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor;
            desc.tensor_count = 1, desc.own_states = true, desc.tables = &table, desc.table_count = 1;
            if (!CHECK(ds_optim_create(&desc, &o, NULL) == DS_OK)) break;
            CHECK(ds_optim_step(o, &io, NULL, NULL) == DS_OK && ds_optim_own_master(o, 0)[2] == 1 + 0.1252f);
            for (size_t i = 0; i < 3; i++) CHECK(w[i] == dsi_bf16_of_f32(ds_optim_own_master(o, 0)[i]));
            CHECK(w[0] == 0x3F80 && w[1] == 0x3F60 && w[2] == 0x3F90);
            ds_optim_destroy(o);
        }
    }
    TEST(first_of_two_overflows_is_named) {
        static model m;
        ds_optim_params p;
        ds_optim_report r;
        ds_optim *o = NULL;
        const ds_optim_options clipped = {1, NULL, true};
        ds_loss_scaler scaler;
        ds_optim_options scaled = {0, NULL, true};
        memset(&m, 0, sizeof m);
        ds_optim_params_default("SGD", &p);
        m.count = 3;
        for (size_t i = 0; i < 3; i++)
            m.tensors[i].name = i ? i > 1 ? "c" : "b" : "a", m.tensors[i].rows = 1, m.tensors[i].cols = 4,
            m.grads[i][0] = i ? INFINITY : 1;
        if (!CHECK(create_of("SGD", &p, m.tensors, 3, NULL, &o) == DS_OK)) break;
        CHECK(step(o, &m, NULL, &r) == DS_OK && r.skipped == DS_OPTIM_OVERFLOW && r.overflow_tensor == 1);
        CHECK(step(o, &m, &clipped, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_loss_scaler_init(&scaler, NULL, NULL) == DS_OK);
        scaled.scaler = &scaler;
        CHECK(step(o, &m, &scaled, NULL) == DS_ERR_ARGUMENT && ds_optim_step_count(o) == 0);
        ds_optim_destroy(o);
    }
    TEST(loss_scaler_refuses_what_is_not_finite) {
        ds_loss_scaler s;
        ds_loss_scaler_params p;
        ds_loss_scaler_params_default(&p);
        p.initial = INFINITY;
        CHECK(ds_loss_scaler_init(&s, &p, NULL) == DS_ERR_ARGUMENT);
        ds_loss_scaler_params_default(&p);
        p.minimum = INFINITY;
        CHECK(ds_loss_scaler_init(&s, &p, NULL) == DS_ERR_ARGUMENT);
        ds_loss_scaler_params_default(&p);
        p.factor = INFINITY;
        CHECK(ds_loss_scaler_init(&s, &p, NULL) == DS_ERR_ARGUMENT);
    }
    TEST(loss_scale_stays_finite) { /* window 1 and no gradients: it doubles until it cannot, and comes back */
        ds_loss_scaler s;
        ds_loss_scaler_params p;
        ds_loss_scaler_params_default(&p);
        p.window = 1, p.hysteresis = 1;
        CHECK(ds_loss_scaler_init(&s, &p, NULL) == DS_OK);
        for (int i = 0; i < 3000; i++) CHECK(ds_loss_scaler_update(&s, false) == DS_OK);
        CHECK(s.scale == ldexp(1, 1023));
        CHECK(ds_loss_scaler_update(&s, true) == DS_OK && s.scale == ldexp(1, 1022));
    }
    TEST(a_schedule_that_is_not_finite_is_refused) {
        static const double rates[] = {NAN, INFINITY, -INFINITY};
        for (int i = 0; i < 4; i++) {
            static model m;
            ds_optim_params p;
            ds_schedule s;
            ds_optim *o = NULL;
            if (!CHECK(one_tensor(&m, "Adam", &p, &o))) break;
            CHECK(ds_schedule_default("OneCycle", &s, NULL) == DS_OK);
            if (i < 3)
                s.kind = DS_SCHEDULE_CUSTOM, s.custom = fixed_rate, s.ctx = (void *)(uintptr_t)&rates[i];
            else
                s.decay_step_size = 1, s.decay_mom_rate = DBL_MAX; /* infinite when the cycle is over */
            CHECK(ds_optim_set_schedule(o, 0, &s) == DS_OK && ds_optim_set_schedule_count(o, 9000) == DS_OK);
            CHECK(step(o, &m, NULL, NULL) == DS_ERR_ARGUMENT && ds_optim_step_count(o) == 0 && m.weights[0][0] == 0);
            CHECK_HAS(ds_optim_error(o)->message, "group 0");
            CHECK_HAS(ds_optim_error(o)->message, i < 3 ? "must be finite" : "beta1");
            s.kind = DS_SCHEDULE_NONE;
            CHECK(ds_optim_set_group_params(o, 0, &p) == DS_OK && ds_optim_set_schedule(o, 0, &s) == DS_OK);
            CHECK(step(o, &m, NULL, NULL) == DS_OK && m.weights[0][0] < 0);
            ds_optim_destroy(o);
        }
    }
    TEST(counts_end_at_two_to_the_53) {
        const int64_t most = (int64_t)1 << 53;
        for (int schedule = 0; schedule < 2; schedule++) {
            static model m;
            unsigned char saved[64];
            ds_optim_params p;
            ds_optim *o = NULL;
            if (!CHECK(one_tensor(&m, "AdamW", &p, &o))) break;
            ds_optim_save(o, saved);
            CHECK(ds_optim_set_step_count(o, most + 1) == DS_ERR_ARGUMENT &&
                  ds_optim_set_step_count(o, INT64_MAX) == DS_ERR_ARGUMENT && ds_optim_step_count(o) == 0);
            CHECK(ds_optim_set_schedule_count(o, INT64_MAX) == DS_ERR_ARGUMENT && ds_optim_schedule_count(o) == 0);
            CHECK(ds_optim_set_step_count(o, most) == DS_OK && ds_optim_set_schedule_count(o, most) == DS_OK);
            CHECK(step(o, &m, NULL, NULL) == DS_OK && m.weights[0][0] < 0);
            ds_optim_schedule_step(o);
            CHECK(ds_optim_step_count(o) == most && ds_optim_schedule_count(o) == most);
            {
                unsigned char last[64]; /* what it saves at the end it reads */
                ds_optim_save(o, last);
                CHECK(ds_optim_load(o, last, ds_optim_save_bytes(o)) == DS_OK && ds_optim_step_count(o) == most);
            }
            memset(saved + 16 + 8 * schedule, 0xFF, 7), saved[23 + 8 * schedule] = 0x7F;
            CHECK(ds_optim_load(o, saved, ds_optim_save_bytes(o)) == DS_ERR_INPUT);
            CHECK_HAS(ds_optim_error(o)->message, "2^53");
            CHECK(ds_optim_step_count(o) == most);
            ds_optim_destroy(o);
        }
    }
    TEST(saved_intervals_are_checked) { /* ZeroOneAdam divides by them */
        static const double bad[] = {0, -1, NAN, INFINITY};
        for (size_t i = 0; i < 8; i++) {
            static model m;
            unsigned char saved[256], word[8];
            size_t at;
            const double one = 1;
            ds_optim_params p;
            ds_optim *o = NULL;
            if (!CHECK(one_tensor(&m, "ZeroOneAdam", &p, &o))) break;
            CHECK(ds_optim_set_step_count(o, 7) == DS_OK && ds_optim_save_bytes(o) <= sizeof saved);
            ds_optim_save(o, saved);
            memcpy(word, &one, 8); /* the two intervals are 1, the rest is 0 */
            for (at = 32; memcmp(saved + at, word, 8) != 0; at += 8) continue;
            for (at += 8; i >= 4 && memcmp(saved + at, word, 8) != 0; at += 8) continue;
            memcpy(saved + at - (i < 4 ? 8 : 0), &bad[i % 4], 8);
            saved[16] = 3; /* step */
            CHECK(ds_optim_load(o, saved, ds_optim_save_bytes(o)) == DS_ERR_INPUT && ds_optim_step_count(o) == 7);
            CHECK_HAS(ds_optim_error(o)->message, "\"w\": an interval of ");
            CHECK(step(o, &m, NULL, NULL) == DS_OK && ds_optim_step_count(o) == 8);
            ds_optim_destroy(o);
        }
    }
    TEST(names_find_tensors_and_states) {
        static char names[20][8];
        static ds_optim_tensor tensors[20];
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o = NULL;
        ds_error e = {DS_OK, ""};
        uint16_t w[20] = {0x3F80}, g[20] = {0x3F80};
        ds_optim_io io[20];
        size_t n = 9;
        memset(&desc, 0, sizeof desc), memset(tensors, 0, sizeof tensors);
        ds_optim_params_default("Adam", &p);
        for (size_t i = 0; i < 20; i++) {
            snprintf(names[i], sizeof names[i], "t%zu", i * 7 % 20);
            tensors[i].name = names[i], tensors[i].rows = 1, tensors[i].cols = 1, tensors[i].weights_dtype = DS_BF16;
            io[i].weights = &w[i], io[i].grad = &g[i], io[i].weights_dtype = io[i].grad_dtype = DS_BF16;
        }
        desc.type = "Adam", desc.groups = &p, desc.group_count = 1, desc.tensors = tensors, desc.tensor_count = 20;
        desc.own_states = true;
        if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
        CHECK_EQ(ds_optim_tensor_count(o), 20);
        for (size_t i = 0; i < 20; i++) {
            CHECK(ds_optim_find(o, names[i]) == i && strcmp(ds_optim_tensor_name(o, i), names[i]) == 0);
            CHECK(ds_optim_named_state(o, names[i], "exp_avg_sq", &n) == ds_optim_own_state(o, i, 1) && n == 1);
            CHECK(ds_optim_own_master(o, i) == NULL && !ds_optim_named_state(o, names[i], "master", &n) && n == 0);
        }
        CHECK(ds_optim_find(o, "t20") == SIZE_MAX && ds_optim_find(o, "") == SIZE_MAX);
        CHECK(!ds_optim_named_state(o, "t20", "exp_avg", &n) && !ds_optim_named_state(o, "t20", "master", &n) &&
              n == 0);
        CHECK(!ds_optim_named_state(o, "t1", "sum", &n) && n == 0);
        CHECK(ds_optim_step(o, io, NULL, NULL) == DS_OK);
        CHECK(ds_optim_named_state(o, names[0], "master", &n) == ds_optim_own_master(o, 0) && n == 1 &&
              ds_optim_own_master(o, 0)[0] < 1);
        ds_optim_destroy(o);
        tensors[11].name = names[4];
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT && !o);
        CHECK_HAS(e.message, "are both named \"t8\"");
    }
    TEST(saved_by_name) { /* another order, other tensors, and the format without names */
        static const char *const types[] = {"Adam", "OneBitAdam", "ZeroOneAdam", "OneBitLamb"};
        for (size_t t = 0; t < 4; t++) {
            static model m, again;
            unsigned char saved[512], other[512], old[512];
            ds_optim_params p;
            ds_optim *o = NULL, *turned = NULL, *more = NULL, *same = NULL;
            memset(&m, 0, sizeof m);
            ds_optim_params_default(types[t], &p);
            p.freeze_step = p.var_freeze_step = 2, p.var_update_scaler = p.local_step_scaler = 1;
            m.count = 3;
            for (size_t i = 0; i < 3; i++) {
                m.tensors[i].name = i ? i > 1 ? "c" : "b" : "a";
                m.tensors[i].rows = 1, m.tensors[i].cols = 4 + i;
                for (size_t j = 0; j < 4 + i; j++) m.weights[i][j] = 1, m.grads[i][j] = (float)(i + 1) / (float)(j + 1);
            }
            again = m;
            again.tensors[0] = m.tensors[2], again.tensors[2] = m.tensors[0];
            if (!CHECK(create_of(types[t], &p, m.tensors, 2, NULL, &o) == DS_OK &&
                       create_of(types[t], &p, again.tensors + 1, 2, NULL, &turned) == DS_OK &&
                       create_of(types[t], &p, m.tensors, 3, NULL, &more) == DS_OK &&
                       create_of(types[t], &p, m.tensors, 2, NULL, &same) == DS_OK))
                break;
            m.count = 2;
            for (int s = 0; s < 5; s++) CHECK(step(o, &m, NULL, NULL) == DS_OK);
            CHECK(ds_optim_save_bytes(o) <= sizeof saved);
            ds_optim_save(o, saved);
            CHECK(ds_optim_load(turned, saved, ds_optim_save_bytes(o)) == DS_OK && ds_optim_step_count(turned) == 5);
            for (size_t i = 0; i < 2; i++)
                CHECK(memcmp(o->items[i].scalar, turned->items[1 - i].scalar, sizeof o->items[i].scalar) == 0);
            ds_optim_save(turned, other);
            CHECK(ds_optim_load(o, other, ds_optim_save_bytes(o)) == DS_OK);
            ds_optim_save(o, other);
            CHECK(memcmp(saved, other, ds_optim_save_bytes(o)) == 0);
            CHECK(ds_optim_load(more, saved, ds_optim_save_bytes(o)) == (t ? DS_ERR_INPUT : DS_OK));
            CHECK_EQ(ds_optim_step_count(more), t ? 0 : 5);
            if (t) { /* error feedback goes by the order */
                int left = 0;
                ds_group two = {broken_exchange, &left, 0, 2};
                ds_optim *ranks_of = NULL;
                if (!CHECK(create_of(types[t], &p, again.tensors + 1, 2, &two, &ranks_of) == DS_OK)) break;
                CHECK(ds_optim_load(ranks_of, saved, ds_optim_save_bytes(o)) == DS_ERR_INPUT);
                CHECK_HAS(ds_optim_error(ranks_of)->message, "the order of tensors");
                ds_optim_destroy(ranks_of);
            }
            if (t) { /* as many tensors, one of them another */
                ds_optim_destroy(more), more = NULL;
                if (!CHECK(create_of(types[t], &p, m.tensors + 1, 2, NULL, &more) == DS_OK)) break;
                CHECK(ds_optim_load(more, saved, ds_optim_save_bytes(o)) == DS_ERR_INPUT);
                CHECK_HAS(ds_optim_error(more)->message, "nothing was saved for \"c\" of 1 x 6");
            }
            memcpy(old, saved, 32);
            dsi_optim_put64(old, 0, dsi_optim_magic[0]), dsi_optim_put64(old, 1, dsi_optim_identity(o));
            for (size_t i = 0; i < 2; i++) memcpy(old + 32 + 48 * i, saved + 40 + 56 * i, 48);
            CHECK(ds_optim_load(same, old, t ? 128 : 32) == DS_OK && ds_optim_step_count(same) == 5);
            ds_optim_save(same, other);
            CHECK(memcmp(saved, other, ds_optim_save_bytes(o)) == 0);
            CHECK(ds_optim_load(turned, old, t ? 128 : 32) == DS_ERR_INPUT);
            CHECK_HAS(ds_optim_error(turned)->message, "or from other tensors");
            ds_optim_destroy(o), ds_optim_destroy(turned), ds_optim_destroy(more), ds_optim_destroy(same);
        }
    }
    TEST(limits_and_scales_that_would_act_silently) {
        static const double norms[] = {-1, NAN, -INFINITY}, scales[] = {1e60, 1e-60, 0x1p150, 0x1p-129};
        static model m;
        ds_optim_options options = {INFINITY, NULL, false};
        ds_loss_scaler scaler;
        ds_optim_params p;
        ds_optim *o = NULL;
        if (!CHECK(one_tensor(&m, "Adam", &p, &o))) break;
        for (size_t i = 0; i < 3; i++) {
            options.max_norm = norms[i];
            CHECK(step(o, &m, &options, NULL) == DS_ERR_ARGUMENT);
            CHECK_HAS(ds_optim_error(o)->message, "max_norm is");
        }
        options.max_norm = INFINITY, options.scaler = &scaler;
        ds_loss_scaler_init(&scaler, NULL, NULL);
        for (size_t i = 0; i < 4; i++) {
            scaler.scale = scales[i];
            CHECK(step(o, &m, &options, NULL) == DS_ERR_ARGUMENT && scaler.skipped == 0);
            CHECK_HAS(ds_optim_error(o)->message, "in fp32");
            CHECK(ds_optim_begin(o, 1 / scales[i], 1, 0) == DS_ERR_ARGUMENT);
        }
        CHECK(ds_optim_step_count(o) == 0 && m.weights[0][0] == 0);
        scaler.scale = 0x1p149;
        CHECK(step(o, &m, &options, NULL) == DS_OK && ds_optim_step_count(o) == 1);
        p.beta2 = 0.99999999; /* rounds to 1 in fp32, which only torch_adam's double takes */
        CHECK(ds_optim_set_group_params(o, 0, &p) == DS_ERR_ARGUMENT);
        p.torch_adam = true;
        CHECK(ds_optim_set_group_params(o, 0, &p) == DS_OK && step(o, &m, NULL, NULL) == DS_OK);
        CHECK(m.weights[0][0] < 0 && m.weights[0][0] > -1);
        p.beta2 = 1;
        CHECK(ds_optim_set_group_params(o, 0, &p) == DS_ERR_ARGUMENT);
        ds_optim_destroy(o);
    }
    TEST(nesterov_needs_momentum_and_no_dampening) { /* as torch.optim.SGD */
        static model m;
        ds_optim_params p;
        ds_optim *o = NULL;
        if (!CHECK(one_tensor(&m, "SGD", &p, &o))) break;
        p.nesterov = true;
        for (int k = 0; k < 3; k++) {
            p.momentum = k == 2 ? 0.9 : 0, p.dampening = k ? 0.5 : 0;
            CHECK(ds_optim_set_group_params(o, 0, &p) == DS_ERR_ARGUMENT);
            CHECK_HAS(ds_optim_error(o)->message, "group 0: nesterov with momentum");
        }
        ds_optim_destroy(o);
    }
    TEST(schedules_of_numbers_that_are_none) {
        static const char *const types[] = {"WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest"};
        for (size_t t = 0; t < 5; t++)
            for (size_t f = 0; f < 12; f++) {
                ds_schedule s;
                ds_error e = {DS_OK, ""};
                double *const fields[] = {&s.warmup_min_lr,  &s.warmup_max_lr,        &s.warmup_min_ratio,
                                          &s.cos_min_ratio,  &s.cycle_min_lr,         &s.cycle_max_lr,
                                          &s.decay_lr_rate,  &s.cycle_min_mom,        &s.cycle_max_mom,
                                          &s.decay_mom_rate, &s.lr_range_test_min_lr, &s.lr_range_test_step_rate};
                const bool used = f < 2 ? t < 3 : f < 4 ? t == 2 : f < 10 ? t == 3 : t == 4;
                ds_schedule_default(types[t], &s, NULL);
                s.total_num_steps = 10;
                CHECK_EQ(ds_schedule_check(&s, &e), DS_OK);
                *fields[f] = f % 2 ? NAN : INFINITY;
                CHECK_EQ(ds_schedule_check(&s, &e), used ? DS_ERR_ARGUMENT : DS_OK);
                if (used) CHECK_HAS(e.message, "must be finite");
                s.cycle_momentum = false;
                if (f >= 7 && f < 10) CHECK_EQ(ds_schedule_check(&s, &e), DS_OK);
            }
    }
    TEST(users_texts_may_go_after_create) {
        char name[] = "Mine", state[] = "sum";
        ds_optim_table tables[2] = {
            {"Other", DS_OPTIM_WHOLE, 0, {NULL, NULL, NULL}, NULL, doubled, NULL, NULL, false},
            {NULL, DS_OPTIM_WHOLE, 1, {NULL, NULL, NULL}, NULL, doubled, NULL, NULL, false},
        };
        ds_optim_tensor tensor = {"w", 1, 20, 0, DS_F32, DS_OPTIM_MUON_AUTO};
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o = NULL;
        ds_error e = {DS_OK, ""};
        memset(&desc, 0, sizeof desc);
        ds_optim_params_default(NULL, &p);
        desc.type = "Mine", desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor, desc.tensor_count = 1;
        desc.table_count = 2;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT && !o);
        CHECK_HAS(e.message, "table 0 of 2");
        desc.tables = tables;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT && !o);
        CHECK_HAS(e.message, "table 1 of 2");
        tables[1].name = name;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT && !o); /* a state without a name */
        CHECK_HAS(e.message, "their names");
        tables[1].state_names[0] = state;
        if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
        name[0] = state[0] = '?';
        CHECK_STR(ds_optim_type_name(o), "Mine");
        CHECK_STR(ds_optim_state_name(o, 0, 0), "sum");
        ds_optim_destroy(o);
    }
    TEST(narrowed_in_place) {
        static float x[3 * DS_GRAIN + 5], keep[3 * DS_GRAIN + 5];
        uint16_t *const half = (uint16_t *)(void *)x;
        for (int bf16 = 0; bf16 < 2; bf16++) {
            uint64_t seed = 6;
            for (size_t i = 0; i < 3 * DS_GRAIN + 5; i++) x[i] = keep[i] = (float)test_uniform(&seed);
            CHECK(ds_optim_cast(half, bf16 ? DS_BF16 : DS_F16, x, DS_F32, 3 * DS_GRAIN + 5) == DS_OK);
            for (size_t i = 0; i < 3 * DS_GRAIN + 5; i++) {
                uint16_t got;
                memcpy(&got, (const char *)x + 2 * i, 2);
                CHECK(got == (bf16 ? dsi_bf16_of_f32(keep[i]) : dsi_f16_of_f32(keep[i])));
            }
        }
    }
    TEST(schedules_at_their_ends) {
        ds_schedule s;
        CHECK(ds_schedule_default("WarmupCosineLR", &s, NULL) == DS_OK);
        s.total_num_steps = 10, s.warmup_num_steps = 2, s.cos_min_ratio = -1;
        CHECK(ds_schedule_lr(&s, 100, 1) == 0); /* never below zero */
        CHECK(ds_schedule_default("OneCycle", &s, NULL) == DS_OK);
        s.cycle_first_step_size = 4, s.cycle_min_lr = 0.1, s.cycle_max_lr = 1, s.decay_step_size = 0,
        s.decay_lr_rate = 1;
        CHECK_NEAR(ds_schedule_lr(&s, 100, 1), 0.1, 0); /* without a decay step it stays */
    }
}

/* Ranks whose gradients differ: they skip together when one overflows, and clip by one norm. */
static float agreed_weights[RANKS_MOST][64];
static double agreed_norms[RANKS_MOST][7];
static void *agree_body(void *arg) {
    static const char *const types[] = {"Lamb", "AdamW", "OneBitAdam"};
    rank *r = (rank *)arg;
    for (size_t t = 0; t < 3; t++) {
        float *w = agreed_weights[r->rank], g[64];
        ds_optim_tensor tensors[2] = {{"a", 1, 60, 0, DS_F32, DS_OPTIM_MUON_AUTO},
                                      {"b", 1, 4, 0, DS_F32, DS_OPTIM_MUON_AUTO}};
        ds_optim_io io[2] = {{w, DS_F32, g, DS_F32}, {w + 60, DS_F32, g + 60, DS_F32}};
        ds_group group = {exchange, r, r->rank, (int)r->all->size};
        ds_loss_scaler scaler;
        ds_optim_options options = {t < 2 ? 1 : 0, &scaler, false};
        ds_optim_report report;
        ds_optim_params p;
        ds_optim *o = NULL;
        ds_optim_params_default(types[t], &p);
        ds_loss_scaler_init(&scaler, NULL, NULL);
        p.freeze_step = 3, p.lr = 0.01;
        for (size_t i = 0; i < 64; i++) w[i] = 1;
        if (create_of(types[t], &p, tensors, 2, &group, &o)) return NULL;
        for (int s = 1; s <= 6; s++) {
            bool bad;
            for (size_t i = 0; i < 64; i++) g[i] = (float)(i % 5) - 2 + (float)r->rank;
            if (s == 5 && r->rank == 1) g[61] = INFINITY;
            if (s == 5 && r->rank == 2) g[62] = NAN;
            bad = ds_optim_step(o, io, &options, &report) != DS_OK || (report.skipped != 0) != (s == 5);
            bad = bad || report.overflow_tensor != (s == 5 ? 1 : SIZE_MAX) ||
                  (t < 2 && s != 5 && !(report.clip_coefficient < 1));
            bad = bad || (s == 5 ? report.grad_norm <= DBL_MAX : fabs(report.grad_norm - sqrt(4.0 * 64)) > 64);
            if (bad || scaler.skipped != (s >= 5)) w[0] = NAN;
            agreed_norms[r->rank][s] = report.grad_norm;
        }
        if (ds_optim_step_count(o) != 5) w[0] = NAN;
        ds_optim_destroy(o);
    }
    r->c = 1; /* done */
    return NULL;
}
/* A compressed optimizer of the user's own: momentum, exchanged with one bit from step 3 on, is OneBitAdam's in that. */
static bool local_from_three(void *ctx, int64_t step) {
    (void)ctx;
    return step > 2;
}
static ds_status one_bit_momentum(const ds_optim_pass *pass, const float *grad, float *master, float *const *state,
                                  size_t count) {
    ds_status status = DS_OK;
    for (size_t i = 0; i < count; i++) state[0][i] = 0.5f * (state[0][i] + grad[i]);
    if (local_from_three(NULL, pass->step)) status = ds_optim_pass_average(pass, state[0]);
    for (size_t i = 0; i < count; i++) master[i] -= (float)pass->params->lr * state[0][i];
    return pass->group->size == 3 ? status : DS_ERR_PEER;
}
static const ds_optim_table one_bit_table = {"Mine", DS_OPTIM_WHOLE,   1,   {"m", NULL, NULL}, NULL, one_bit_momentum,
                                             NULL,   local_from_three, true};
static void *users_one_bit_body(void *arg) {
    rank *r = (rank *)arg;
    float *w = agreed_weights[r->rank], g[64];
    ds_optim_tensor tensors[3] = {{"a", 1, 60, 0, DS_F32, DS_OPTIM_MUON_AUTO},
                                  {"none", 0, 0, 0, DS_F32, DS_OPTIM_MUON_AUTO},
                                  {"b", 1, 4, 0, DS_F32, DS_OPTIM_MUON_AUTO}};
    ds_optim_io io[3] = {{w, DS_F32, g, DS_F32}, {NULL, DS_F32, NULL, DS_F32}, {w + 60, DS_F32, g + 60, DS_F32}};
    ds_optim_options clip = {1e9, NULL, false};
    ds_optim_params p;
    ds_optim_desc desc;
    ds_optim *o = NULL;
    size_t n = 0;
    memset(&desc, 0, sizeof desc), memset(&p, 0, sizeof p);
    p.lr = 0.125;
    desc.type = "Mine", desc.groups = &p, desc.group_count = 1, desc.tensors = tensors, desc.tensor_count = 3;
    desc.own_states = true, desc.tables = &one_bit_table, desc.table_count = 1;
    desc.group.exchange = exchange, desc.group.ctx = r, desc.group.rank = r->rank, desc.group.size = 3;
    for (size_t i = 0; i < 64; i++) w[i] = 1;
    if (ds_optim_create(&desc, &o, NULL)) return NULL;
    for (int s = 1; s <= 6; s++) {
        const bool local = ds_optim_wants_local_gradients(o);
        for (size_t i = 0; i < 64; i++) g[i] = (float)(i % 5) - 2 + (local ? (float)r->rank - 1 : 0);
        if (local != (s > 2) || ds_optim_refuses_clipping(o) != local ||
            ds_optim_step(o, io, s == 1 ? &clip : NULL, NULL))
            return NULL;
        agreed_norms[r->rank][s] = (double)w[3];
    }
    if (ds_optim_error_buffers(o) != 3 || ds_optim_error_buffer(o, 0, 0, &n)[0] == 0 || n != 72) return NULL;
    if (ds_optim_reset_errors(o) || ds_optim_error_buffer(o, 0, 0, &n)[0] != 0) return NULL;
    ds_optim_destroy(o);
    r->c = 1; /* done */
    return NULL;
}
static void ranks_agree(void) {
    TEST(users_compressed_optimizer) {
        static ranks all;
        rank each[RANKS_MOST];
        ds_optim_tensor tensor = {"w", 1, 4, 0, DS_F32, DS_OPTIM_MUON_AUTO};
        ds_optim_table tables[2] = {one_bit_table, one_bit_table};
        const ds_optim_options unchecked = {0, NULL, true};
        float w[4] = {0}, g[4] = {1, 1, 1, 1};
        ds_optim_io io = {w, DS_F32, g, DS_F32};
        ds_optim_params p;
        ds_optim_desc desc;
        ds_optim *o = NULL;
        ds_error e = {DS_OK, ""};
        int left = 1000;
        memset(each, 0, sizeof each);
        run_ranks(each, &all, 3, users_one_bit_body);
        for (int r = 0; r < 3; r++) {
            CHECK(each[r].c == 1 && memcmp(agreed_weights[r], agreed_weights[0], sizeof agreed_weights[0]) == 0);
            CHECK(agreed_norms[r][6] < agreed_norms[r][2] && agreed_norms[r][2] < 1);
        }
        memset(&desc, 0, sizeof desc), memset(&p, 0, sizeof p);
        desc.type = "Mine", desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor, desc.tensor_count = 1;
        desc.own_states = true, desc.tables = tables, desc.table_count = 2;
        desc.group.size = 3, desc.group.exchange = broken_exchange, desc.group.ctx = &left;
        tables[0].name = "Other", tables[1].compresses = false;
        if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
        CHECK(ds_optim_error_buffers(o) == 0 && ds_optim_set_step_count(o, 5) == DS_OK);
        CHECK(ds_optim_step(o, &io, &unchecked, NULL) == DS_ERR_STATE && ds_optim_step_count(o) == 5);
        CHECK_HAS(ds_optim_error(o)->message, "\"Mine\" does not say `compresses`");
        ds_optim_destroy(o);
        tables[1].compresses = true;
        if (!CHECK(ds_optim_create(&desc, &o, &e) == DS_OK)) break;
        CHECK(ds_optim_set_step_count(o, 5) == DS_OK);
        left = 0;
        CHECK(ds_optim_step(o, &io, &unchecked, NULL) == DS_ERR_PEER && ds_optim_step_count(o) == 5);
        CHECK_HAS(ds_optim_error(o)->message, "compressed average of \"w\"");
        ds_optim_destroy(o);
        tables[1].work = DS_OPTIM_BY_GRAIN;
        CHECK(ds_optim_create(&desc, &o, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "compresses for WHOLE only");
    }
    TEST(ranks_skip_and_clip_alike) {
        static ranks all;
        rank each[RANKS_MOST];
        memset(each, 0, sizeof each);
        run_ranks(each, &all, 3, agree_body);
        for (int r = 0; r < 3; r++) {
            CHECK(each[r].c == 1 && agreed_weights[r][0] == agreed_weights[r][0]);
            CHECK(memcmp(agreed_norms[r], agreed_norms[0], sizeof agreed_norms[0]) == 0);
        }
    }
    TEST(ranks_cannot_agree) {
        static model m;
        int left = 0;
        ds_group group = {broken_exchange, &left, 0, 2};
        ds_optim_params p;
        ds_optim *o = NULL;
        memset(&m, 0, sizeof m);
        m.count = 1, m.tensors[0].name = "w", m.tensors[0].rows = 1, m.tensors[0].cols = 4;
        ds_optim_params_default("AdamW", &p);
        if (!CHECK(create_of("AdamW", &p, m.tensors, 1, &group, &o) == DS_OK)) break;
        CHECK(step(o, &m, NULL, NULL) == DS_ERR_PEER && ds_optim_step_count(o) == 0);
        CHECK_HAS(ds_optim_error(o)->message, "exchange of norms");
        ds_optim_destroy(o);
    }
}

/* LAMB with its tensor partitioned over ranks gives the bits of one rank. */
static float lamb_weights[RANKS_MOST][BIG];
static void lamb_steps(rank *r, size_t begin, size_t end) {
    float *weights = lamb_weights[r->rank], *state[2], *grad = (float *)malloc(BIG * sizeof(float));
    ds_optim_tensor tensor = {"w", 1, BIG, 0, DS_F32, DS_OPTIM_MUON_AUTO};
    ds_optim_params p;
    ds_optim_desc desc;
    ds_optim *o = NULL;
    uint64_t seed = 8;
    memset(&desc, 0, sizeof desc);
    for (int k = 0; k < 2; k++) state[k] = (float *)calloc(BIG, sizeof(float));
    ds_optim_params_default("Lamb", &p);
    p.weight_decay = 0.01;
    desc.type = "Lamb", desc.groups = &p, desc.group_count = 1, desc.tensors = &tensor, desc.tensor_count = 1;
    desc.group.exchange = exchange, desc.group.ctx = r, desc.group.rank = r->rank, desc.group.size = (int)r->all->size;
    for (size_t i = 0; i < BIG; i++) weights[i] = (float)test_uniform(&seed);
    if (ds_optim_create(&desc, &o, NULL)) weights[begin] = NAN;
    for (int s = 0; s < 3 && o; s++) {
        ds_optim_slice x;
        memset(&x, 0, sizeof x);
        for (size_t i = 0; i < BIG; i++) grad[i] = (float)test_uniform(&seed);
        x.begin = begin, x.count = end - begin, x.master = weights + begin, x.grad = grad + begin;
        for (int k = 0; k < 2; k++) x.state[k] = state[k] + begin;
        if (ds_optim_begin(o, 1, 1, 0) || ds_optim_measure(o, &x, 1) || ds_optim_combine(o) ||
            ds_optim_apply(o, &x, 1) || ds_optim_end(o))
            weights[begin] = NAN;
    }
    ds_optim_destroy(o);
    free(state[0]), free(state[1]), free(grad);
}
static void *lamb_body(void *arg) {
    static const size_t cut[] = {0, 2 * DS_GRAIN, 3 * DS_GRAIN, BIG};
    rank *r = (rank *)arg;
    lamb_steps(r, r->all->size == 1 ? 0 : cut[r->rank], r->all->size == 1 ? BIG : cut[r->rank + 1]);
    return NULL;
}
static void lamb_partitioned(void) {
    TEST(lamb_over_ranks) {
        static ranks all;
        static float whole[BIG];
        static const size_t cut[] = {0, 2 * DS_GRAIN, 3 * DS_GRAIN, BIG};
        rank each[RANKS_MOST];
        memset(each, 0, sizeof each);
        run_ranks(each, &all, 1, lamb_body);
        memcpy(whole, lamb_weights[0], sizeof whole);
        CHECK(whole[0] == whole[0]);
        run_ranks(each, &all, 3, lamb_body);
        for (int r = 0; r < 3; r++)
            CHECK(memcmp(lamb_weights[r] + cut[r], whole + cut[r], (cut[r + 1] - cut[r]) * sizeof(float)) == 0);
    }
}

/* One number for all that the optimizers compute, for ds_optim_bits.sh to compare between compilers. */
static int print_bits(void) {
    uint64_t h = 0;
    for (int t = 0; t < TYPES; t++)
        for (int level = DS_OPTIM_LEVEL_BEST; level <= DS_OPTIM_LEVEL_SCALAR; level++)
            h = h * 31 + run_bits(every_type[t], level, BIG, 1, t % 2 ? DS_BF16 : DS_F32, 0);
    printf("%016llx\n", (unsigned long long)h);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--bits") == 0) return print_bits();
    test_begin(argc, argv);
    golden_optimizers();
    golden_loss_scaler();
    golden_schedules();
    golden_clip();
    golden_muon();
    golden_one_bit();
    one_result();
    pieces();
    oracle();
    object();
    ranks_agree();
    lamb_partitioned();
    hooks();
    corners();
    rest();
    return test_end();
}
