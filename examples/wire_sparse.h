/* wire_sparse.h - the sparse_attention section of a configuration as ds_sparse takes it; for programs that include
   ds_config.h and ds_sparse.h. It is no ds_wire_ function of ds_zero.h: attention belongs to the model, which is the
   program's own, and the engine neither calls ds_sparse.h nor includes it. */
#ifndef WIRE_SPARSE_H
#define WIRE_SPARSE_H

/* Whether the file has the section. */
static bool sparse_given(const ds_config *c) {
    ds_config_origin origin;
    int line = 0;
    return ds_config_where(c, "sparse_attention", &origin, &line, NULL) && line;
}

/* Everything but heads and seed, which no configuration has. Lists stay the configuration's. */
static ds_status wire_sparse(const ds_config *c, ds_sparse_params *p, ds_error *error) {
    ds_status status = ds_sparse_params_default(c->sparse_attention.mode, p, error);
    if (status) return status;
    p->block = c->sparse_attention.block;
    p->different_layout_per_head = c->sparse_attention.different_layout_per_head;
    p->num_local_blocks = c->sparse_attention.num_local_blocks;
    p->num_global_blocks = c->sparse_attention.num_global_blocks;
    p->horizontal_global_attention = c->sparse_attention.horizontal_global_attention;
    p->num_different_global_patterns = c->sparse_attention.num_different_global_patterns;
    p->num_random_blocks = c->sparse_attention.num_random_blocks;
    p->local_window_blocks = c->sparse_attention.local_window_blocks.at;
    p->local_window_count = c->sparse_attention.local_window_blocks.count;
    p->global_block_indices = c->sparse_attention.global_block_indices.at;
    p->global_count = c->sparse_attention.global_block_indices.count;
    p->global_block_end_indices = c->sparse_attention.global_block_end_indices.at;
    p->global_end_count = c->sparse_attention.global_block_end_indices.count;
    p->num_sliding_window_blocks = c->sparse_attention.num_sliding_window_blocks;
    return ds_sparse_params_attention(p, c->sparse_attention.attention, error);
}
#endif
