/* train_spirals.c - ZeRO around a small model that is not a transformer: a multilayer perceptron tells three spirals apart

     cc -std=gnu99 -O2 -I. -o train_spirals examples/train_spirals.c -lpthread -ldl -lm
     ds run -n 2 ./train_spirals examples/configs/train_spirals.json        (or any other configuration)

   The model is the part between the lines: three matrices and three biases, forward and backward in plain C. It knows of the
   engine only `fetch`, `gradient` and `release`. Prints the loss, and the share of held-out points that it gets right. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include <math.h>
#include <stdio.h>

/*---- the model --------------------------------------------------------------------------------------------------*/

enum { IN = 2, HIDDEN = 96, ARMS = 3, LAYERS = 3, MOST = 256, STEPS = 400 };
static const size_t width[LAYERS + 1] = {IN, HIDDEN, HIDDEN, ARMS};

typedef struct model {
    ds_zero *zero;
    void *slot[2 * LAYERS]; /* weights (out, in) and biases (out) of each layer, where the engine puts them */
    float gradient[HIDDEN * HIDDEN + HIDDEN]; /* of one layer: its weights, then its biases */
    float a[MOST][LAYERS + 1][HIDDEN];        /* of each point: the input, each layer's output, the logits last */
    float d[MOST][HIDDEN];                    /* the loss's gradient by the layer's output */
    int arm[MOST];
} model;

static ds_status fetch(model *m, size_t layer) {
    ds_status status = ds_zero_fetch(m->zero, 2 * layer, NULL);
    return status ? status : ds_zero_fetch(m->zero, 2 * layer + 1, NULL);
}
static ds_status release(model *m, size_t layer) {
    ds_status status = ds_zero_release(m->zero, 2 * layer);
    return status ? status : ds_zero_release(m->zero, 2 * layer + 1);
}

/* Activations of `n` points, layer by layer; tanh between layers. */
static ds_status forward(model *m, int n) {
    for (size_t l = 0; l < LAYERS; l++) {
        ds_status status = fetch(m, l);
        const float *w = (const float *)m->slot[2 * l], *b = (const float *)m->slot[2 * l + 1];
        if (status) return status;
        for (int p = 0; p < n; p++)
            for (size_t o = 0; o < width[l + 1]; o++) {
                float sum = b[o];
                for (size_t i = 0; i < width[l]; i++) sum += w[o * width[l] + i] * m->a[p][l][i];
                m->a[p][l + 1][o] = l + 1 < LAYERS ? tanhf(sum) : sum;
            }
        if ((status = release(m, l))) return status;
    }
    return DS_OK;
}

/* Softmax and cross entropy: the mean loss, and in d its gradient by the logits times `scale`. */
static double loss_of(model *m, int n, double scale, int *right) {
    double loss = 0;
    for (int p = 0; p < n; p++) {
        const float *z = m->a[p][LAYERS];
        float top = fmaxf(z[0], fmaxf(z[1], z[2])), sum = 0;
        for (int k = 0; k < ARMS; k++) sum += expf(z[k] - top);
        for (int k = 0; k < ARMS; k++) m->d[p][k] = (expf(z[k] - top) / sum - (k == m->arm[p])) * (float)(scale / n);
        loss += (log(sum) + top - z[m->arm[p]]) / n;
        *right += z[m->arm[p]] == top;
    }
    return loss;
}

/* Gradients from the last layer to the first; each is handed over as soon as it is whole. */
static ds_status backward(model *m, int n) {
    for (size_t l = LAYERS; l-- > 0;) {
        const size_t in = width[l], out = width[l + 1];
        ds_status status = fetch(m, l);
        const float *w = (const float *)m->slot[2 * l];
        float *dw = m->gradient, *db = m->gradient + in * out;
        if (status) return status;
        memset(m->gradient, 0, (in * out + out) * sizeof(float));
        for (int p = 0; p < n; p++) {
            float below[HIDDEN] = {0};
            for (size_t o = 0; o < out; o++) {
                const float d = m->d[p][o];
                db[o] += d;
                for (size_t i = 0; i < in; i++) {
                    dw[o * in + i] += d * m->a[p][l][i];
                    below[i] += d * w[o * in + i];
                }
            }
            for (size_t i = 0; i < in; i++) m->d[p][i] = below[i] * (1 - m->a[p][l][i] * m->a[p][l][i]);
        }
        if ((status = ds_zero_grad(m->zero, 2 * l + 1, db, NULL))) return status;
        if ((status = ds_zero_grad(m->zero, 2 * l, dw, NULL))) return status;
        if ((status = release(m, l))) return status;
    }
    return DS_OK;
}

/*---- data and start ---------------------------------------------------------------------------------------------*/

static double uniform(uint64_t *state) { /* xorshift64*, in [0, 1) */
    *state ^= *state >> 12, *state ^= *state << 25, *state ^= *state >> 27;
    return (double)((*state * 2685821657736338717u) >> 11) * 0x1p-53;
}

static void points(model *m, int n, uint64_t *seed) {
    for (int p = 0; p < n; p++) {
        double along = uniform(seed), turn;
        m->arm[p] = (int)(uniform(seed) * ARMS);
        turn = 4 * along + m->arm[p] * 6.283185307 / ARMS + 0.2 * (uniform(seed) - 0.5);
        m->a[p][0][0] = (float)((0.1 + along) * cos(turn));
        m->a[p][0][1] = (float)((0.1 + along) * sin(turn));
    }
}

/* Elements [begin, begin + count) of a weight matrix, uniform by its fan-in; the same whichever rank asks for which. */
static void initial(void *ctx, size_t begin, size_t count, float *out) {
    const size_t layer = *(const size_t *)ctx;
    for (size_t i = 0; i < count; i++) {
        uint64_t state = (layer + 1) * 0x9E3779B97F4A7C15u + (begin + i + 1) * 0xBF58476D1CE4E5B9u;
        uniform(&state), uniform(&state);
        out[i] = (float)((2 * uniform(&state) - 1) * sqrt(3.0 / (double)width[layer]));
    }
}

static int fail(const char *message) {
    fprintf(stderr, "train_spirals: %s\n", message);
    return 1;
}

int main(int argc, char **argv) {
    static model m;
    static char json[65536];
    static const char *const names[2 * LAYERS] = {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"};
    static const char *const own_keys[1] = {"steps_per_print"};
    static size_t layers[LAYERS] = {0, 1, 2};
    ds_error error = {DS_OK, ""};
    ds_comm_desc comm_desc = {0};
    ds_config_options options = {0};
    ds_zero_param params[2 * LAYERS] = {0};
    ds_zero_desc desc = {0};
    ds_zero_report report;
    ds_comm *comm = NULL;
    ds_config *config = NULL;
    FILE *file;
    size_t bytes;
    uint64_t seed;
    int n, right = 0;
    if (argc != 2) return fail("usage: train_spirals CONFIG");
    if (ds_comm_create(&comm_desc, &comm, &error)) return fail(error.message);
    options.world_size = (size_t)ds_comm_world(comm);
    file = fopen(argv[1], "rb");
    bytes = file ? fread(json, 1, sizeof json, file) : 0;
    if (!file || ferror(file) || fclose(file)) return fail("cannot read the configuration");
    if (ds_config_parse(json, bytes, &options, &config, &error)) return fail(error.message);
    n = (int)config->train_micro_batch_size_per_gpu;
    if (n > MOST) return fail("train_micro_batch_size_per_gpu: at most 256 points");
    if (ds_zero_unclaimed(config, own_keys, 1, &error)) return fail(error.message);
    for (size_t i = 0; i < 2 * LAYERS; i++) {
        params[i].name = names[i];
        params[i].dims = i % 2 ? 1 : 2;
        params[i].shape[0] = width[i / 2 + 1];
        params[i].shape[1] = width[i / 2];
        params[i].slot = &m.slot[i];
        params[i].init = i % 2 ? NULL : initial; /* biases begin at zero */
        params[i].ctx = &layers[i / 2];
    }
    desc.config = config;
    desc.comm = comm;
    desc.params = params;
    desc.n_params = 2 * LAYERS;
    if (ds_zero_create(&desc, &m.zero, &error)) return fail(error.message);

    seed = 1000 + (uint64_t)ds_comm_rank(comm); /* each rank has points of its own */
    for (int step = 0; step < STEPS; step++) {
        for (size_t i = 0; i < config->gradient_accumulation_steps; i++) {
            points(&m, n, &seed);
            if (ds_zero_begin(m.zero, DS_ZERO_TRAIN) || forward(&m, n) ||
                ds_zero_loss(m.zero, loss_of(&m, n, ds_zero_loss_scale(m.zero), &right)) || backward(&m, n) ||
                ds_zero_end(m.zero))
                return fail(ds_zero_error(m.zero)->message);
        }
        if (ds_zero_step(m.zero, &report)) return fail(ds_zero_error(m.zero)->message);
        if (ds_comm_rank(comm) == 0 && config->steps_per_print && report.step % (int64_t)config->steps_per_print == 0)
            printf("step %lld loss %.4f lr %.2e\n", (long long)report.step, report.loss, report.lr);
    }
    seed = 99; /* points that no rank has seen */
    right = 0;
    for (int i = 0; i < 16; i++) {
        points(&m, n, &seed);
        if (ds_zero_begin(m.zero, DS_ZERO_EVALUATE) || forward(&m, n) || ds_zero_end(m.zero))
            return fail(ds_zero_error(m.zero)->message);
        loss_of(&m, n, 1, &right);
    }
    if (ds_comm_rank(comm) == 0) printf("right %d of %d\n", right, 16 * n);
    ds_zero_destroy(m.zero);
    ds_comm_destroy(comm);
    ds_config_free(config);
    return 0;
}
