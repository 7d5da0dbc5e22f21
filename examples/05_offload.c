/* 05_offload.c - a tensor goes to disk while the program computes, and comes back. Needs ds_offload.h alone.

   cc -std=gnu99 -o 05_offload 05_offload.c -lpthread -ldl && ./05_offload . */
#define DS_OFFLOAD_IMPLEMENTATION
#include "ds_offload.h"
#include <stdio.h>

enum { COUNT = 1 << 20 };
static float tensor[COUNT];

static int fail(const ds_error *error) {
    fprintf(stderr, "%s\n", error->message);
    return 1;
}

int main(int argc, char **argv) {
    ds_offload_desc desc = {0};
    ds_offload *store = NULL;
    ds_offload_id id;
    ds_offload_ticket ticket;
    ds_offload_stats stats;
    ds_error error = {DS_OK, ""};
    double sum = 0.0;
    for (int i = 0; i < COUNT; i++) tensor[i] = (float)i;
    desc.folder = argc > 1 ? argv[1] : ".";
    if (ds_offload_create(&desc, &store, &error)) return fail(&error);
    if (ds_offload_add(store, "tensor", sizeof tensor, DS_OFFLOAD_NVME, &id)) return fail(ds_offload_error(store));
    if (ds_offload_start_write(store, id, 0, sizeof tensor, tensor, &ticket)) return fail(ds_offload_error(store));
    for (int i = 0; i < COUNT; i++) sum += tensor[i]; /* meanwhile */
    if (ds_offload_wait(store, ticket)) return fail(ds_offload_error(store));
    memset(tensor, 0, sizeof tensor);
    if (ds_offload_read(store, id, 0, sizeof tensor, tensor)) return fail(ds_offload_error(store));
    for (int i = 0; i < COUNT; i++) sum -= tensor[i];
    ds_offload_get_stats(store, &stats);
    printf("%zu bytes out and in through %s, O_DIRECT %s, %llu requests; difference %g\n", sizeof tensor,
           ds_offload_engine_name(stats.engine), stats.direct ? "in force" : "refused",
           (unsigned long long)stats.requests, sum);
    ds_offload_destroy(store);
    return sum != 0.0;
}
