/* 06_monitor.c - metrics of a made-up training to CSV and TensorBoard, and its loss curve as SVG. Needs ds_monitor.h alone.

   cc -std=gnu99 -o 06_monitor 06_monitor.c -lpthread -lm && ./06_monitor out */
#define DS_MONITOR_IMPLEMENTATION
#include "ds_monitor.h"
#include <math.h>
#include <stdio.h>

int main(int argc, char **argv) {
    const char *folder = argc > 1 ? argv[1] : "out";
    ds_monitor_desc desc = {0};
    ds_monitor *monitor = NULL;
    ds_error error = {DS_OK, ""};
    double step[100], loss[100];
    char path[512], line[256];
    ds_monitor_curve curve = {"training loss", step, loss, 100, false, false, 0};
    desc.csv.enabled = desc.tensorboard.enabled = true;
    desc.csv.output_path = desc.tensorboard.output_path = folder;
    desc.csv.job_name = desc.tensorboard.job_name = "example";
    if (ds_monitor_create(&desc, &monitor, &error)) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    for (int i = 0; i < 100; i++) {
        step[i] = i;
        loss[i] = 1.0 + 2.0 * exp(-i / 30.0);
        ds_monitor_write(monitor, "Train/Samples/train_loss", loss[i], 32 * i);
        if (i % 25 == 24) {
            ds_monitor_progress progress = {i + 1, 100, loss[i], 1e-3, 1.0, 32000, 1 << 20, (int64_t)i * 10000000};
            ds_monitor_progress_line(&progress, false, 80, line, sizeof line);
            fputs(line, stdout);
        }
    }
    ds_monitor_destroy(monitor);
    snprintf(path, sizeof path, "%s/loss.svg", folder);
    if (ds_monitor_svg(path, "A made-up training", "step", "loss", &curve, 1, NULL, &error)) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    printf("look at %s\n", path);
    return 0;
}
