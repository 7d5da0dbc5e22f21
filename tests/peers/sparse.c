/* sparse.c - ds_sparse.h as a shared library with three plain calls, for sparse.py. Heads share one layout. */
#define DS_IMPLEMENTATION
#include "ds_sparse.h"

typedef struct peer {
    ds_sparse_layout *layout;
    ds_sparse *attention;
    ds_sparse_io io;
} peer;

void peer_close(peer *p) {
    if (!p) return;
    ds_sparse_destroy(p->attention);
    ds_sparse_layout_destroy(p->layout);
    free(p);
}
/* size: [heads, tokens, head_dim, block, threads, window, random, causal]; map: (blocks, blocks), gets the layout. */
peer *peer_open(const char *mode, const size_t *size, uint8_t *map) {
    ds_sparse_params params;
    ds_sparse_desc desc;
    ds_error error = {DS_OK, ""};
    peer *p = (peer *)calloc(1, sizeof *p);
    if (!p || ds_sparse_params_default(mode, &params, &error)) return peer_close(p), NULL;
    params.heads = size[0], params.block = size[3], params.unidirectional = size[7];
    params.num_sliding_window_blocks = size[5], params.num_random_blocks = size[6];
    memset(&desc, 0, sizeof desc);
    if (ds_sparse_layout_create(&params, size[1], NULL, &p->layout, &error)) return peer_close(p), NULL;
    desc.layout = p->layout, desc.head_dim = size[2], desc.threads = (unsigned)size[4], desc.causal = size[7];
    if (ds_sparse_create(&desc, &p->attention, &error)) return peer_close(p), NULL;
    for (size_t i = 0, n = size[1] / size[3]; i < n; i++) {
        size_t count;
        const uint32_t *columns = ds_sparse_layout_row(p->layout, 0, i, &count);
        for (size_t e = 0; e < count; e++) map[i * n + columns[e]] = 1;
    }
    return p;
}
/* x: q, k, v, out, lse, d_out, d_q, d_k, d_v. 0 when it went well. */
int peer_run(peer *p, float *const *x, int backward) {
    p->io.q = x[0], p->io.k = x[1], p->io.v = x[2], p->io.out = x[3], p->io.lse = x[4];
    p->io.d_out = x[5], p->io.d_q = x[6], p->io.d_k = x[7], p->io.d_v = x[8];
    return backward ? ds_sparse_backward(p->attention, &p->io) : ds_sparse_forward(p->attention, &p->io);
}
