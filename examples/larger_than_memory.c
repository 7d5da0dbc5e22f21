/* larger_than_memory.c - a model whose states are many times the memory it may use, with the same result as in memory.

     larger_than_memory FOLDER [LAYERS ELEMENTS STEPS]     states, gradients and parameters in swap files in FOLDER, under
                                                           a limit (RLIMIT_DATA) of what ds_zero_plan says plus 12 MiB
     larger_than_memory none   [LAYERS ELEMENTS STEPS]     all in memory, no limit

   Each layer is a tensor in bf16 that learns the numbers of a formula; only one layer is whole at a time. AdamW's states
   are 16 bytes for each element. The last line is a hash of all parameters: the same in both. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include <stdio.h>
#include <sys/resource.h>

static float wanted(size_t layer, size_t i) {
    return (float)((layer * 31 + i * 7) % 1001) * 0.002f - 1.0f;
}
static void initial(void *ctx, size_t begin, size_t count, float *out) {
    size_t layer = *(const size_t *)ctx;
    for (size_t k = 0; k < count; k++) out[k] = (float)((layer + (begin + k) * 13) % 997) * 0.001f - 0.5f;
}

static size_t held(void) { /* bytes of private memory that this process has mapped by now */
    char line[128];
    size_t kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmData: %zu", &kib) == 1) break;
    if (status) fclose(status);
    return kib << 10;
}

static void sums(const ds_zero_bytes *b, size_t *states, size_t *memory) {
    *states = *memory = 0;
    for (int c = 0; c < DS_ZERO_CLASSES; c++)
        for (int t = 0; t < DS_ZERO_TIERS; t++) {
            if (t != DS_ZERO_DISK) *memory += b->bytes[c][t];
            if (c == DS_ZERO_PARAMS || c == DS_ZERO_GRADS || c == DS_ZERO_STATES) *states += b->bytes[c][t];
        }
}

/* One micro-batch: for each layer the gradient of half the mean square of its distance. */
static ds_status train(ds_zero *zero, size_t layers, size_t elements, void **slots) {
    double loss = 0.0;
    ds_status status = ds_zero_begin(zero, DS_ZERO_TRAIN);
    for (size_t l = layers; l-- > 0 && !status;) {
        void *gradient = NULL;
        const uint16_t *weight;
        float wide[1024], off[1024];
        if ((status = ds_zero_fetch(zero, l, NULL)) || (status = ds_zero_grad_buffer(zero, l, &gradient))) break;
        weight = (const uint16_t *)slots[l];
        for (size_t at = 0; at < elements; at += 1024) {
            size_t n = elements - at < 1024 ? elements - at : 1024;
            (void)ds_optim_cast(wide, DS_F32, weight + at, DS_BF16, n);
            for (size_t k = 0; k < n; k++) {
                off[k] = wide[k] - wanted(l, at + k);
                loss += 0.5 * off[k] * off[k];
            }
            (void)ds_optim_cast((uint16_t *)gradient + at, DS_BF16, off, DS_F32, n);
        }
        if (!(status = ds_zero_grad_ready(zero, l, NULL))) status = ds_zero_release(zero, l);
    }
    if (!status) status = ds_zero_loss(zero, loss / (double)(layers * elements));
    return status ? status : ds_zero_end(zero);
}

static int fail(const char *message) {
    fprintf(stderr, "%s\n", message);
    return 1;
}

int main(int argc, char **argv) {
    size_t layers = argc > 2 ? (size_t)atol(argv[2]) : 24, elements = argc > 3 ? (size_t)atol(argv[3]) : 131072;
    int steps = argc > 4 ? atoi(argv[4]) : 3;
    bool disk = argc > 1 && strcmp(argv[1], "none") != 0;
    ds_zero_param *params = (ds_zero_param *)calloc(layers + 1, sizeof *params);
    size_t *numbers = (size_t *)calloc(layers + 1, sizeof *numbers), states, memory;
    char(*names)[32] = (char(*)[32])calloc(layers + 1, sizeof *names), json[1600], place[300];
    void **slots = (void **)calloc(layers + 1, sizeof *slots);
    uint64_t hash = 14695981039346656037u;
    ds_config_options options = {0};
    ds_config *config = NULL;
    ds_zero_desc desc = {0};
    ds_zero *zero = NULL;
    ds_zero_bytes plan;
    ds_zero_stats stats;
    ds_error error = {DS_OK, ""};
    if (argc < 2 || layers == 0 || elements == 0 || steps < 1)
        return fail("usage: larger_than_memory FOLDER|none [LAYERS ELEMENTS STEPS]");
    if (!params || !numbers || !names || !slots) return fail("no memory");
    snprintf(place, sizeof place, "\"device\": \"%s\", \"nvme_path\": \"%.200s\"", disk ? "nvme" : "none", argv[1]);
    snprintf(json, sizeof json,
             "{\"train_micro_batch_size_per_gpu\": 1, \"bf16\": {\"enabled\": true},"
             " \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": 0.01}},"
             " \"zero_optimization\": {\"stage\": 3, \"stage3_param_persistence_threshold\": 0,"
             "  \"stage3_max_live_parameters\": %zu, \"stage3_prefetch_bucket_size\": %zu,"
             "  \"reduce_bucket_size\": %zu, \"sub_group_size\": 65536,"
             "  \"offload_optimizer\": {%s, \"pipeline_read\": true, \"buffer_count\": 8},"
             "  \"offload_param\": {%s, \"max_in_cpu\": %zu, \"buffer_count\": 2}},"
             " \"aio\": {\"block_size\": 65536, \"queue_depth\": 16}}",
             elements, elements / 2, elements, place, place, elements / 4);
    if (ds_config_parse(json, strlen(json), &options, &config, &error)) return fail(error.message);
    for (size_t l = 0; l < layers; l++) {
        numbers[l] = l;
        snprintf(names[l], sizeof names[l], "layer%zu", l);
        params[l].name = names[l];
        params[l].dims = 1;
        params[l].shape[0] = elements;
        params[l].dtype = DS_BF16;
        params[l].slot = &slots[l];
        params[l].init = initial;
        params[l].ctx = &numbers[l];
    }
    desc.config = config;
    desc.params = params;
    desc.n_params = layers;
    desc.gradient_buffers = 1;
    if (ds_zero_plan(&desc, 0, 1, &plan, &error)) return fail(error.message);
    sums(&plan, &states, &memory);
    fprintf(stderr, "states %zu bytes, memory %zu bytes: 1 / %.1f\n", states, memory, (double)states / (double)memory);
    if (disk) {
        struct rlimit limit;
        limit.rlim_cur = limit.rlim_max = held() + memory + (12u << 20); /* 8 of it are a thread's stack */
        if (setrlimit(RLIMIT_DATA, &limit)) return fail("cannot set a limit");
        fprintf(stderr, "limit %zu bytes\n", (size_t)limit.rlim_cur);
    }
    if (ds_zero_create(&desc, &zero, &error)) return fail(error.message);
    for (int step = 0; step < steps; step++) {
        ds_zero_report report;
        if (train(zero, layers, elements, slots) || ds_zero_step(zero, &report))
            return fail(ds_zero_error(zero)->message);
        printf("step %lld loss %.9g norm %.17g\n", (long long)report.step, report.loss, report.grad_norm);
    }
    for (size_t l = 0; l < layers; l++)
        for (size_t at = 0; at < elements; at += 16384) {
            static float part[16384];
            size_t n = elements - at < 16384 ? elements - at : 16384;
            if (ds_zero_read(zero, l, -1, at, n, part)) return fail(ds_zero_error(zero)->message);
            for (size_t k = 0; k < n * sizeof *part; k++)
                hash = (hash ^ ((const unsigned char *)part)[k]) * 1099511628211u;
        }
    ds_zero_get_stats(zero, &stats);
    ds_zero_destroy(zero);
    ds_config_free(config);
    printf("parameters %016llx\n", (unsigned long long)hash);
    fprintf(stderr, "memory held at most: %s\n",
            memcmp(&stats.peak, &plan, sizeof plan) == 0 ? "as planned, to the byte" : "NOT as planned");
    free(params);
    free(numbers);
    free(names);
    free(slots);
    return memcmp(&stats.peak, &plan, sizeof plan) != 0;
}
