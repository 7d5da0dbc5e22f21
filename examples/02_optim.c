/* 02_optim.c - fit a line by AdamW with a warm-up, a bf16 model and loss scaling; needs ds_optim.h alone.
   cc examples/02_optim.c -I. -o 02_optim -lm -lpthread */
#define _GNU_SOURCE
#define DS_OPTIM_IMPLEMENTATION
#include "ds_optim.h"
#include <stdio.h>
#include <string.h>

static float wide(uint16_t bf16) {
    float x;
    ds_optim_cast(&x, DS_F32, &bf16, DS_BF16, 1);
    return x;
}

int main(void) {
    ds_optim_params group;
    ds_optim_tensor tensors[] = {{"slope and offset", 1, 2, 0, DS_BF16, DS_OPTIM_MUON_AUTO}};
    ds_optim_desc desc;
    ds_error error;
    ds_optim *o;
    ds_schedule schedule;
    ds_loss_scaler scaler;
    ds_loss_scaler_params scaling;
    uint16_t weights[2] = {0, 0}; /* bf16; the header keeps the fp32 master */

    ds_optim_params_default("AdamW", &group);
    group.lr = 0.05, group.weight_decay = 0;
    memset(&desc, 0, sizeof desc);
    desc.type = "AdamW", desc.groups = &group, desc.group_count = 1;
    desc.tensors = tensors, desc.tensor_count = 1, desc.own_states = true;
    if (ds_optim_create(&desc, &o, &error)) return printf("%s\n", error.message), 1;
    ds_schedule_default("WarmupLR", &schedule, NULL);
    schedule.warmup_num_steps = 20;
    if (ds_optim_set_schedule(o, 0, &schedule)) return printf("%s\n", ds_optim_error(o)->message), 1;
    ds_loss_scaler_params_default(&scaling);
    ds_loss_scaler_init(&scaler, &scaling, NULL);

    for (int step = 0; step < 400; step++) {
        ds_optim_io io = {weights, DS_BF16, NULL, DS_F32};
        ds_optim_options options = {1.0, &scaler, false}; /* clip to norm 1 */
        ds_optim_report report;
        float grad[2] = {0, 0};
        for (int i = -4; i <= 4; i++) { /* loss = mean (wx + b - (3x - 2))^2, times the loss scale */
            float x = (float)i / 4, off = wide(weights[0]) * x + wide(weights[1]) - (3 * x - 2);
            grad[0] += (float)scaler.scale * 2 * off * x / 9;
            grad[1] += (float)scaler.scale * 2 * off / 9;
        }
        io.grad = grad;
        if (ds_optim_step(o, &io, &options, &report)) return printf("%s\n", ds_optim_error(o)->message), 1;
        if (report.skipped == DS_OPTIM_STEPPED) ds_optim_schedule_step(o);
        if (step % 100 == 99)
            printf("step %d: y = %.3fx %+.3f, gradient norm %.3g\n", step + 1, (double)wide(weights[0]),
                   (double)wide(weights[1]), report.grad_norm);
    }
    ds_optim_destroy(o);
    return 0;
}
