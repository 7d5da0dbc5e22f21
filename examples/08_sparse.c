/* 08_sparse.c - causal attention over a sliding window, forward and backward, at a length that dense scores would not
   fit; needs ds_sparse.h alone.
   cc examples/08_sparse.c -I. -o 08_sparse -lm -lpthread */
#define _GNU_SOURCE
#define DS_SPARSE_IMPLEMENTATION
#include "ds_sparse.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 2, TOKENS = 32768, DIM = 32, N = HEADS * TOKENS * DIM };

int main(void) {
    ds_sparse_params params;
    ds_sparse_layout *layout;
    ds_sparse_info info;
    ds_sparse_desc desc;
    ds_sparse_io io;
    ds_sparse *attention;
    ds_error error;
    float *memory = (float *)calloc(8 * (size_t)N + 2 * HEADS * TOKENS, sizeof *memory), *d_v;
    double seen = 0;

    if (!memory) return puts("out of memory"), 1;
    ds_sparse_params_default("local_sliding_window", &params, NULL); /* unidirectional */
    params.heads = HEADS, params.block = 64;
    if (ds_sparse_layout_create(&params, TOKENS, NULL, &layout, &error)) return printf("%s\n", error.message), 1;
    ds_sparse_layout_info(layout, &info);
    memset(&desc, 0, sizeof desc);
    desc.layout = layout, desc.head_dim = DIM, desc.threads = 2;
    desc.causal = true; /* inside a block, too, a token sees only what is before it */
    if (ds_sparse_create(&desc, &attention, &error)) return printf("%s\n", error.message), 1;

    for (int i = 0; i < 3 * N; i++) memory[i] = sinf((float)i * 0.37f); /* q, k and v, (head, token, dim) */
    memset(&io, 0, sizeof io);
    io.q = memory, io.k = memory + N, io.v = memory + 2 * N, io.out = memory + 3 * N, io.lse = memory + 8 * (size_t)N;
    if (ds_sparse_forward(attention, &io)) return printf("%s\n", ds_sparse_error(attention)->message), 1;

    for (int i = 0; i < N; i++) memory[4 * N + i] = 1; /* the gradient of the sum of all outputs */
    io.d_out = memory + 4 * N, io.d_q = memory + 5 * N, io.d_k = memory + 6 * N, io.d_v = d_v = memory + 7 * (size_t)N;
    if (ds_sparse_backward(attention, &io)) return printf("%s\n", ds_sparse_error(attention)->message), 1;

    /* each query hands out a weight of 1 in all */
    for (int i = 0; i < N; i++) seen += (double)d_v[i] / DIM;
    printf("%d tokens: %zu of %zu blocks, %.1f MB held; dense scores would be %.0f MB\n", TOKENS, info.kept,
           info.heads * info.blocks * info.blocks, 1e-6 * (double)ds_sparse_memory(attention),
           4e-6 * HEADS * TOKENS * (double)TOKENS);
    printf("weights handed out: %.3f, one for each of %d queries\n", seen, HEADS * TOKENS);
    ds_sparse_destroy(attention);
    ds_sparse_layout_destroy(layout);
    free(memory);
    return 0;
}
