/* wrap_trainer.c - ds in a trainer that exists already and owns its loop, its memory and its optimizer

     cc -std=gnu99 -O2 -I. -o wrap_trainer examples/wrap_trainer.c -lpthread -ldl -lm
     ./wrap_trainer                                 the trainer as it was: one process, its own SGD
     ds run -n 2 ./wrap_trainer examples/configs/wrap_trainer.json      the same loop under ds

   The first part is the trainer, with the hooks that such programs have: before and after a layer runs, when a gradient is
   whole, when an optimizer step is due. The second part is all that ds needs: a list of the trainer's tensors and six
   functions on those hooks. At stages 0 to 2 the weights stay in the trainer's own memory and are updated in place. At
   stage 3 the trainer's `values` pointers are set before a layer runs and cleared after it. */
#define DS_IMPLEMENTATION /* or in a file of its own */
#include "ds_zero.h"
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*==== the trainer =================================================================================================*/

typedef struct matrix {
    const char *name;
    size_t rows, cols;
    float *values, *gradient;
} matrix;

enum { LAYERS = 4, WIDTH = 32, POINTS = 16 };

typedef struct trainer trainer;
struct trainer {
    matrix layer[LAYERS];
    double learning_rate, loss, loss_scale; /* the backward pass is that of the loss times the scale */
    int worker;                             /* which part of the data this process draws */
    int steps, micro_batches;
    /* hooks; each may be NULL, and false stops the training */
    void *hook_ctx;
    bool (*begin)(trainer *t);
    bool (*before_layer)(trainer *t, int layer);
    bool (*after_layer)(trainer *t, int layer);
    bool (*gradient_ready)(trainer *t, int layer); /* layer[i].gradient is whole */
    bool (*end)(trainer *t);
    bool (*optimize)(trainer *t); /* in place of the trainer's own SGD */
};

static float draw(unsigned *seed) { /* in [-1, 1) */
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(*seed >> 8) / 8388608.0f - 1.0f;
}

static void trainer_init(trainer *t) {
    static const char *const names[LAYERS] = {"layer0", "layer1", "layer2", "layer3"};
    unsigned seed = 7;
    memset(t, 0, sizeof *t);
    t->steps = 200, t->micro_batches = 1, t->learning_rate = 0.05, t->loss_scale = 1;
    for (int l = 0; l < LAYERS; l++) {
        matrix *w = &t->layer[l];
        w->name = names[l], w->rows = w->cols = WIDTH;
        w->values = (float *)calloc(2 * WIDTH * WIDTH, sizeof(float));
        if (!w->values) exit(1);
        w->gradient = w->values + WIDTH * WIDTH;
        for (int i = 0; i < WIDTH * WIDTH; i++) w->values[i] = draw(&seed) * sqrtf(3.0f / WIDTH);
    }
}

static bool hook(trainer *t, bool (*f)(trainer *, int), int layer) {
    return !f || f(t, layer);
}

/* One micro-batch: y = tanh(W3 tanh(W2 ...)) shall be the input in reverse order. */
static bool micro_batch(trainer *t, unsigned *seed) {
    static float a[LAYERS + 1][POINTS][WIDTH], d[POINTS][WIDTH], below[POINTS][WIDTH];
    if (t->begin && !t->begin(t)) return false;
    for (int b = 0; b < POINTS; b++)
        for (int i = 0; i < WIDTH; i++) a[0][b][i] = 0.8f * draw(seed);
    for (int l = 0; l < LAYERS; l++) {
        if (!hook(t, t->before_layer, l)) return false;
        for (int b = 0; b < POINTS; b++)
            for (int o = 0; o < WIDTH; o++) {
                float sum = 0;
                for (int i = 0; i < WIDTH; i++) sum += t->layer[l].values[o * WIDTH + i] * a[l][b][i];
                a[l + 1][b][o] = tanhf(sum);
            }
        if (!hook(t, t->after_layer, l)) return false;
    }
    t->loss = 0;
    for (int b = 0; b < POINTS; b++)
        for (int i = 0; i < WIDTH; i++) {
            float off = a[LAYERS][b][i] - a[0][b][WIDTH - 1 - i];
            t->loss += off * off / (POINTS * WIDTH);
            d[b][i] = 2 * off / (POINTS * WIDTH) * (float)t->loss_scale;
        }
    for (int l = LAYERS - 1; l >= 0; l--) {
        matrix *w = &t->layer[l];
        if (!hook(t, t->before_layer, l)) return false;
        memset(w->gradient, 0, WIDTH * WIDTH * sizeof(float));
        memset(below, 0, sizeof below);
        for (int b = 0; b < POINTS; b++)
            for (int o = 0; o < WIDTH; o++) {
                float g = d[b][o] * (1 - a[l + 1][b][o] * a[l + 1][b][o]);
                for (int i = 0; i < WIDTH; i++) {
                    w->gradient[o * WIDTH + i] += g * a[l][b][i];
                    below[b][i] += g * w->values[o * WIDTH + i];
                }
            }
        memcpy(d, below, sizeof d);
        if (!hook(t, t->gradient_ready, l) || !hook(t, t->after_layer, l)) return false;
    }
    return !t->end || t->end(t);
}

static bool sgd(trainer *t) {
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < WIDTH * WIDTH; i++)
            t->layer[l].values[i] -= (float)t->learning_rate * t->layer[l].gradient[i];
    return true;
}

static bool trainer_run(trainer *t) {
    unsigned seed = 100 + (unsigned)t->worker;
    for (int step = 1; step <= t->steps; step++) {
        for (int i = 0; i < t->micro_batches; i++)
            if (!micro_batch(t, &seed)) return false;
        if (!(t->optimize ? t->optimize : sgd)(t)) return false;
        if (step % 50 == 0 && t->worker == 0) printf("step %d loss %.5f\n", step, t->loss);
    }
    return true;
}

/*==== what ds adds ================================================================================================*/

typedef struct engine {
    ds_config *config;
    ds_comm *comm;
    ds_zero *zero;
    ds_zero_report report;
    void *weights[LAYERS]; /* the slots */
} engine;

static bool on_begin(trainer *t) {
    engine *e = (engine *)t->hook_ctx;
    t->loss_scale = ds_zero_loss_scale(e->zero); /* 1 but for fp16 */
    return !ds_zero_begin(e->zero, DS_ZERO_TRAIN);
}
static bool on_before_layer(trainer *t, int layer) {
    engine *e = (engine *)t->hook_ctx;
    ds_status status = ds_zero_fetch(e->zero, (size_t)layer, NULL);
    t->layer[layer].values = (float *)e->weights[layer];
    return !status;
}
static bool on_after_layer(trainer *t, int layer) {
    engine *e = (engine *)t->hook_ctx;
    ds_status status = ds_zero_release(e->zero, (size_t)layer);
    t->layer[layer].values = (float *)e->weights[layer];
    return !status;
}
static bool on_gradient(trainer *t, int layer) {
    return !ds_zero_grad(((engine *)t->hook_ctx)->zero, (size_t)layer, t->layer[layer].gradient, NULL);
}
static bool on_end(trainer *t) {
    engine *e = (engine *)t->hook_ctx;
    return !ds_zero_loss(e->zero, t->loss) && !ds_zero_end(e->zero);
}
static bool on_optimize(trainer *t) {
    engine *e = (engine *)t->hook_ctx;
    if (ds_zero_step(e->zero, &e->report)) return false;
    t->loss = e->report.loss; /* of all workers */
    return true;
}

static ds_status attach(engine *e, trainer *t, const char *path, ds_error *error) {
    static char json[65536];
    ds_comm_desc comm = {0};
    ds_config_options options = {0};
    ds_zero_param params[LAYERS] = {0};
    ds_zero_desc desc = {0};
    FILE *file = fopen(path, "rb");
    size_t bytes = file ? fread(json, 1, sizeof json, file) : 0;
    ds_status status;
    if (!file) return snprintf(error->message, sizeof error->message, "cannot read '%s'", path), DS_ERR_INPUT;
    fclose(file);
    if ((status = ds_comm_create(&comm, &e->comm, error))) return status;
    options.world_size = (size_t)ds_comm_world(e->comm);
    if ((status = ds_config_parse(json, bytes, &options, &e->config, error))) return status;
    if ((status = ds_zero_unclaimed(e->config, NULL, 0, error))) return status;
    for (int l = 0; l < LAYERS; l++) {
        params[l].name = t->layer[l].name;
        params[l].dims = 2;
        params[l].shape[0] = t->layer[l].rows;
        params[l].shape[1] = t->layer[l].cols;
        params[l].data = t->layer[l].values;
        params[l].slot = &e->weights[l];
    }
    desc.config = e->config;
    desc.comm = e->comm;
    desc.params = params;
    desc.n_params = LAYERS;
    if ((status = ds_zero_create(&desc, &e->zero, error))) return status;
    t->worker = ds_comm_rank(e->comm);
    t->micro_batches = (int)e->config->gradient_accumulation_steps;
    t->hook_ctx = e;
    t->begin = on_begin;
    t->before_layer = on_before_layer;
    t->after_layer = on_after_layer;
    t->gradient_ready = on_gradient;
    t->end = on_end;
    t->optimize = on_optimize;
    return DS_OK;
}

int main(int argc, char **argv) {
    static trainer t;
    static engine e;
    ds_error error = {DS_OK, ""};
    float *memory[LAYERS];
    int result = 0;
    trainer_init(&t);
    for (int l = 0; l < LAYERS; l++) memory[l] = t.layer[l].values;
    if (argc > 1 && attach(&e, &t, argv[1], &error)) {
        fprintf(stderr, "wrap_trainer: %s\n", error.message);
        result = 1;
    } else if (!trainer_run(&t)) {
        fprintf(stderr, "wrap_trainer: %s\n", ds_zero_error(e.zero)->message);
        result = 1;
    }
    ds_zero_destroy(e.zero);
    ds_comm_destroy(e.comm);
    ds_config_free(e.config);
    for (int l = 0; l < LAYERS; l++) free(memory[l]);
    return result;
}
