/* 04_zero.c - ZeRO stage 3 around a loop of one's own: a thousand numbers learn a line. Needs ds_zero.h and its siblings.

   cc -std=gnu99 -o 04_zero 04_zero.c -lpthread -ldl -lm && ./04_zero          (or: ds run -n 2 ./04_zero) */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include <stdio.h>

enum { COUNT = 1000 };
static const char json[] = "{\"train_micro_batch_size_per_gpu\": 4, \"zero_optimization\": {\"stage\": 3},"
                           " \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": 0.05}}}";
static void *weights; /* the whole tensor, between fetch and release */

static int fail(const char *message) {
    fprintf(stderr, "%s\n", message);
    return 1;
}

int main(void) {
    ds_error error = {DS_OK, ""};
    ds_comm_desc comm_desc = {0};
    ds_config_options options = {0};
    ds_zero_param param = {0};
    ds_zero_desc desc = {0};
    ds_comm *comm = NULL;
    ds_config *config = NULL;
    ds_zero *zero = NULL;
    ds_zero_report report;
    if (ds_comm_create(&comm_desc, &comm, &error)) return fail(error.message);
    options.world_size = (size_t)ds_comm_world(comm);
    if (ds_config_parse(json, sizeof json - 1, &options, &config, &error)) return fail(error.message);
    param.name = "weights";
    param.dims = 1;
    param.shape[0] = COUNT;
    param.slot = &weights;
    desc.config = config;
    desc.comm = comm;
    desc.params = &param;
    desc.n_params = 1;
    if (ds_zero_create(&desc, &zero, &error)) return fail(error.message);
    for (int step = 0; step < 100; step++) {
        float gradient[COUNT], loss = 0.0f;
        if (ds_zero_begin(zero, DS_ZERO_TRAIN) || ds_zero_fetch(zero, 0, NULL))
            return fail(ds_zero_error(zero)->message);
        for (int i = 0; i < COUNT; i++) {
            float off = ((float *)weights)[i] - (float)i / COUNT;
            gradient[i] = 2 * off / COUNT;
            loss += off * off / COUNT;
        }
        if (ds_zero_grad(zero, 0, gradient, NULL) || ds_zero_release(zero, 0) || ds_zero_loss(zero, loss) ||
            ds_zero_end(zero) || ds_zero_step(zero, &report))
            return fail(ds_zero_error(zero)->message);
        if (step % 20 == 0 && ds_comm_rank(comm) == 0)
            printf("step %lld loss %.6f\n", (long long)report.step, report.loss);
    }
    ds_zero_destroy(zero);
    ds_comm_destroy(comm);
    ds_config_free(config);
    return 0;
}
