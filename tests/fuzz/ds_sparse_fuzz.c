/* ds_sparse_fuzz.c - layouts from any parameters: refused with a sentence, or sound; and attention over them in bounds.
   With -DREPLAY a program that runs the files named as arguments; without, a libFuzzer target. */
#define DS_IMPLEMENTATION
#include "ds_sparse.h"

typedef struct bytes {
    const uint8_t *at;
    size_t left;
} bytes;
static uint64_t take(bytes *b, size_t n) {
    uint64_t value = 0;
    for (; n && b->left; n--, b->left--) value = value << 8 | *b->at++;
    return value;
}
/* Mostly small, now and then anything. */
static size_t count_of(bytes *b) {
    uint64_t kind = take(b, 1);
    return (size_t)(kind < 250 ? kind % 20 : kind < 253 ? take(b, 2) : take(b, 8));
}
static void require(int right, const char *what) {
    if (right) return;
    fprintf(stderr, "not so: %s\n", what);
    abort();
}
static void check_layout(const ds_sparse_params *p, const ds_sparse_layout *l) {
    ds_sparse_info info;
    size_t kept = 0;
    ds_sparse_layout_info(l, &info);
    require(info.heads == p->heads && info.block == p->block && info.blocks * info.block == info.seq_len, "shape");
    for (size_t h = 0; h < info.heads; h++)
        for (size_t i = 0; i < info.blocks; i++) {
            size_t count;
            const uint32_t *columns = ds_sparse_layout_row(l, h, i, &count);
            for (size_t e = 0; e < count; e++)
                require(columns[e] < info.blocks && (!e || columns[e - 1] < columns[e]), "columns ascend");
            kept += count;
        }
    require(kept == info.kept, "blocks kept");
}
/* A mask of n numbers: zeros and ones, minus infinity, -1e9, small ones. */
static void fill_mask(bytes *b, float *x, size_t n) {
    static const float some[8] = {0, 0, 0, 1, 0.5f, -1, -1e9f, -INFINITY};
    for (size_t i = 0; i < n; i++) x[i] = some[take(b, 1) % 8];
}
static float number_at(const void *x, ds_dtype dtype, size_t i) {
    const uint16_t *half = (const uint16_t *)x;
    return dtype == DS_F32   ? ((const float *)x)[i]
           : dtype == DS_F16 ? dsi_f32_of_f16(half[i])
                             : dsi_f32_of_bf16(half[i]);
}
static void attend(bytes *b, const ds_sparse_layout *l) {
    ds_sparse_desc desc;
    ds_sparse_io io;
    ds_sparse *s;
    ds_sparse_info info;
    char *x;
    float *lse, *masks;
    size_t n, bytes, reach, relatives, kinds;
    memset(&desc, 0, sizeof desc);
    memset(&io, 0, sizeof io);
    ds_sparse_layout_info(l, &info);
    kinds = take(b, 1);
    reach = take(b, 1) % 40, relatives = info.heads * (2 * reach + 1);
    desc.layout = l, desc.head_dim = 1 + take(b, 1) % 20, desc.causal = kinds & 1, desc.relative_reach = reach;
    io.seq_len = 1 + take(b, 2) % info.seq_len;
    io.dtype = (ds_dtype)(take(b, 1) % 3);
    n = info.heads * io.seq_len * desc.head_dim, bytes = n * DS_DTYPE_SIZE(io.dtype);
    if (n > 20000 || ds_sparse_create(&desc, &s, NULL)) return;
    x = (char *)malloc(8 * bytes);
    lse = (float *)malloc(2 * info.heads * io.seq_len * sizeof *lse);
    masks =
        (float *)calloc(3 * io.seq_len + 2 * relatives, sizeof *masks); /* padding; a mask whose rows overlap; bias */
    require(x && lse && masks, "memory");
    for (size_t i = 0; i < 8 * n; i++) {
        const float value = (float)(int8_t)take(b, 1) / 16;
        if (io.dtype == DS_F32)
            memcpy(x + 4 * i, &value, 4);
        else {
            const uint16_t half = io.dtype == DS_F16 ? dsi_f16_of_f32(value) : dsi_bf16_of_f32(value);
            memcpy(x + 2 * i, &half, 2);
        }
    }
    fill_mask(b, masks, 3 * io.seq_len);
    for (size_t i = 0; i < relatives; i++) masks[3 * io.seq_len + i] = (float)(int8_t)take(b, 1) / 16;
    if (kinds & 2) io.key_mask = masks;
    if (kinds & 4) io.mask = masks + io.seq_len, io.mask_row = 1;
    if (kinds & 8) io.relative = masks + 3 * io.seq_len, io.d_relative = masks + 3 * io.seq_len + relatives;
    io.relative_reach = reach;
    io.key_mask_mode = kinds & 16 ? DS_SPARSE_MUL : DS_SPARSE_ADD;
    io.mask_mode = kinds & 32 ? DS_SPARSE_MUL : DS_SPARSE_ADD;
    io.q = x, io.k = x + bytes, io.v = x + 2 * bytes, io.out = x + 3 * bytes, io.lse = lse;
    io.d_out = x + 4 * bytes, io.d_q = x + 5 * bytes, io.d_k = x + 6 * bytes, io.d_v = x + 7 * bytes;
    require(!ds_sparse_forward(s, &io) && !ds_sparse_backward(s, &io), "attention");
    for (size_t i = 3 * n; i < 8 * n; i++) {
        const float value = number_at(x, io.dtype, i);
        require(io.dtype == DS_F16 || value - value == 0, "results are finite"); /* fp16 may overflow */
        /* an average of values is no larger than the largest of them: 8, and a few roundings */
        if (i < 4 * n) require(value < 8.001f && value > -8.001f, "an average");
    }
    for (size_t i = 0; i < relatives; i++)
        require(masks[3 * io.seq_len + relatives + i] - masks[3 * io.seq_len + relatives + i] == 0, "so is the bias'");
    ds_sparse_destroy(s);
    free(x), free(lse), free(masks);
}

extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bytes b = {data, size};
    ds_sparse_params p;
    ds_sparse_layout *l = NULL;
    ds_error error = {DS_OK, ""};
    int64_t lists[3][8];
    size_t tokens;
    ds_sparse_params_default(ds_sparse_mode_name((ds_sparse_mode)(take(&b, 1) % DS_SPARSE_CUSTOM)), &p, NULL);
    p.heads = take(&b, 1) % 6;
    p.block = take(&b, 1) % 34;
    p.different_layout_per_head = take(&b, 1) & 1;
    p.unidirectional = take(&b, 1) & 1;
    p.horizontal_global_attention = take(&b, 1) & 1;
    p.num_local_blocks = count_of(&b), p.num_global_blocks = count_of(&b);
    p.num_different_global_patterns = count_of(&b), p.num_random_blocks = count_of(&b);
    p.num_sliding_window_blocks = count_of(&b);
    p.seed = take(&b, 4);
    p.local_window_count = take(&b, 1) % 9, p.global_count = take(&b, 1) % 9, p.global_end_count = take(&b, 1) % 9;
    for (size_t i = 0; i < 3; i++)
        for (size_t k = 0; k < 8; k++) lists[i][k] = (int64_t)count_of(&b);
    p.local_window_blocks = lists[0], p.global_block_indices = lists[1];
    p.global_block_end_indices = take(&b, 1) & 1 ? lists[2] : NULL;
    tokens = p.block * (take(&b, 1) % 40) + (take(&b, 1) % 16 == 0);
    if (ds_sparse_layout_create(&p, tokens, NULL, &l, &error)) {
        require(!l && DS_IS_MISUSE(error.status) && !strncmp(error.message, "ds_sparse: ", 11), "a refusal says why");
        return 0;
    }
    require(!ds_sparse_params_check(&p, NULL), "the check agrees");
    check_layout(&p, l);
    attend(&b, l);
    ds_sparse_layout_destroy(l);
    return 0;
}

#ifdef REPLAY
int main(int argc, char **argv) {
    uint8_t data[4096];
    uint64_t state = 1;
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) return 1;
        LLVMFuzzerTestOneInput(data, fread(data, 1, sizeof data, file));
        fclose(file);
    }
    for (int run = 0; run < 3000; run++) { /* and random bytes, where there is no libFuzzer */
        for (size_t i = 0; i < sizeof data; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            data[i] = (uint8_t)(state >> 56);
        }
        data[1] = (uint8_t)(1 + data[1] % 5), data[2] = (uint8_t)(1 + data[2] % 33);
        LLVMFuzzerTestOneInput(data, 128 + (size_t)(run * 7) % 3968);
    }
    return 0;
}
#endif
