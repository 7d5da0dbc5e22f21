/* 07_checkpoint.c - saves a small model atomically, loads a range of it back, and exports it as safetensors. Needs
   ds_checkpoint.h alone.

   cc -std=gnu99 -o 07_checkpoint 07_checkpoint.c -lpthread && ./07_checkpoint out */
#define DS_CHECKPOINT_IMPLEMENTATION
#include "ds_checkpoint.h"
#include <stdio.h>

static int failed(const char *message) {
    fprintf(stderr, "%s\n", message);
    return 1;
}

int main(int argc, char **argv) {
    static const char *const metadata[] = {"format", "pt"};
    static float weight[64][32];
    const size_t shape[2] = {64, 32};
    ds_checkpoint_tensor tensor = {"layer.weight", DS_F32, shape, 2, 0, 64 * 32, weight, NULL, NULL};
    ds_checkpoint_desc desc = {0};
    ds_checkpoint_writer *writer = NULL;
    ds_checkpoint *saved = NULL;
    ds_error error = {DS_OK, ""};
    float row[32];
    int64_t step = 0;
    char path[512];
    desc.folder = argc > 1 ? argv[1] : "out";
    desc.keep_last = 3;
    for (int i = 0; i < 64 * 32; i++) weight[i / 32][i % 32] = (float)i / 100;

    if (ds_checkpoint_begin(&desc, "step100", &writer, &error)) return failed(error.message);
    ds_checkpoint_add(writer, &tensor); /* a failed add or set makes commit fail */
    ds_checkpoint_set_integer(writer, "step", 100);
    if (ds_checkpoint_commit(writer, &error)) return failed(error.message);

    if (ds_checkpoint_open(&desc, NULL, &saved, &error)) return failed(error.message);
    if (ds_checkpoint_get_integer(saved, "step", &step) ||
        ds_checkpoint_read(saved, "layer.weight", 10 * 32, 32, DS_F32, row)) {
        failed(ds_checkpoint_error(saved)->message);
        ds_checkpoint_close(saved);
        return 1;
    }
    printf("%s: step %lld, row 10 begins with %g\n", ds_checkpoint_tag(saved), (long long)step, row[0]);
    ds_checkpoint_close(saved);

    snprintf(path, sizeof path, "%s/model.safetensors", desc.folder);
    if (ds_safetensors_write(path, &tensor, 1, metadata, 1, 0, &desc, &error)) return failed(error.message);
    printf("exported to %s\n", path);
    return 0;
}
