/* 01_config - reads a DeepSpeed configuration, shows its problems or what it means, and where each value came from.
   cc -o 01_config 01_config.c, beside ds_config.h alone; ./01_config [FILE [WORLD_SIZE]] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define DS_CONFIG_IMPLEMENTATION
#include "ds_config.h"

static const char *const sample =
    "{\n"
    "  \"train_batch_size\": 64,\n"
    "  \"train_micro_batch_size_per_gpu\": 4,\n"
    "  \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": 3e-4}},\n"
    "  \"zero_optimization\": {\"stage\": 3, \"offload_optimizer\": {\"device\": \"cpu\"}},\n"
    "}\n";

static void say(void *ctx, const ds_config_problem *p) {
    fprintf((FILE *)ctx, "%d:%d: %s: %s\n", p->line, p->column, p->path, p->message);
}
static void show(void *ctx, const ds_config_row *row) {
    static const char *const origins[] = {"default", "given", "derived", "auto"};
    if (row->origin != DS_CONFIG_DEFAULT)
        fprintf((FILE *)ctx, "%-44s %-10s %s\n", row->path, row->value, origins[row->origin]);
}

int main(int argc, char **argv) {
    static char text[1 << 20];
    ds_config_options options = {0};
    ds_config *config;
    ds_error error = {DS_OK, ""};
    size_t bytes = strlen(sample);
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (argc > 1 && !file) return perror(argv[1]), 1;
    if (file) bytes = fread(text, 1, sizeof text, file);
    if (file) fclose(file);
    options.world_size = argc > 2 ? strtoul(argv[2], NULL, 10) : 8;
    options.problem = say;
    options.ctx = stderr;
    if (ds_config_parse(file ? text : sample, bytes, &options, &config, &error)) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    ds_config_explain(config, show, stdout);
    printf("each of %zu ranks takes %zu samples, %zu times a step; ZeRO stage %d%s\n", config->world_size,
           config->train_micro_batch_size_per_gpu, config->gradient_accumulation_steps,
           (int)config->zero_optimization.stage,
           config->zero_optimization.offload_optimizer.device == DS_CONFIG_CPU ? ", optimizer on the CPU" : "");
    ds_config_free(config);
    return 0;
}
