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
static void attend(bytes *b, const ds_sparse_layout *l) {
    ds_sparse_desc desc;
    ds_sparse_io io;
    ds_sparse *s;
    ds_sparse_info info;
    float *x;
    size_t n;
    memset(&desc, 0, sizeof desc);
    memset(&io, 0, sizeof io);
    ds_sparse_layout_info(l, &info);
    desc.layout = l, desc.head_dim = 1 + take(b, 1) % 20, desc.causal = take(b, 1) & 1;
    io.seq_len = 1 + take(b, 2) % info.seq_len;
    n = info.heads * io.seq_len * desc.head_dim;
    if (n > 20000 || ds_sparse_create(&desc, &s, NULL)) return;
    x = (float *)malloc((8 * n + 2 * info.heads * io.seq_len) * sizeof *x);
    require(x != NULL, "memory");
    for (size_t i = 0; i < 8 * n; i++) x[i] = (float)(int8_t)take(b, 1) / 16;
    io.q = x, io.k = x + n, io.v = x + 2 * n, io.out = x + 3 * n, io.lse = x + 8 * n;
    io.d_out = x + 4 * n, io.d_q = x + 5 * n, io.d_k = x + 6 * n, io.d_v = x + 7 * n;
    require(!ds_sparse_forward(s, &io) && !ds_sparse_backward(s, &io), "attention");
    for (size_t i = 3 * n; i < 8 * n; i++) require(x[i] - x[i] == 0, "results are finite");
    /* an average of values is no larger than the largest of them: 8, and a few roundings */
    for (size_t i = 3 * n; i < 4 * n; i++) require(x[i] < 8.001f && x[i] > -8.001f, "an average");
    ds_sparse_destroy(s);
    free(x);
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
