/* ds_sparse_test.c - ds_sparse.h against DeepSpeed's own layouts (tests/golden/), against dense masked attention in
   double precision with its gradients, against finite differences, and against itself: other SIMD levels, threads and
   strides give the same bits. */
#define DS_IMPLEMENTATION
#include "ds_config.h"
#include "ds_sparse.h"
#include "tests/test.h"
#include <float.h>
#include <xmmintrin.h>

/* ---- layouts against DeepSpeed's ---- */

#define EACH(v, d, list)                                                                                               \
    for (ds_json_node v = ds_json_first(d, list); v != DS_JSON_NO_NODE; v = ds_json_next(d, list, v))

static ds_json *golden(void) {
    ds_json *json = NULL;
    ds_error error;
    FILE *file = fopen("tests/golden/sparse_layout.json", "rb");
    char *text = (char *)malloc(1 << 20);
    size_t bytes;
    if (!file) {
        test_check(0, __FILE__, __LINE__, "cannot open the reference (tests run in the repository's root)");
        free(text);
        return NULL;
    }
    bytes = fread(text, 1, 1 << 20, file);
    fclose(file);
    if (ds_json_parse(text, bytes, NULL, &json, &error)) test_check(0, __FILE__, __LINE__, "%s", error.message);
    free(text);
    return json;
}
static size_t whole(const ds_json *d, ds_json_node node) {
    int64_t value = 0;
    ds_json_integer(d, node, &value);
    return (size_t)value;
}
static bool truth(const ds_json *d, ds_json_node node) {
    bool value = false;
    ds_json_bool(d, node, &value);
    return value;
}
typedef struct lists {
    int64_t windows[8], begins[8], ends[8];
} lists;
static size_t list_of(const ds_json *d, ds_json_node node, int64_t *to) {
    size_t n = 0;
    EACH(v, d, node) ds_json_integer(d, v, &to[n++]);
    return n;
}
/* The constructor's parameters of a case. */
static ds_status params_of(const ds_json *d, ds_json_node c, ds_sparse_params *p, lists *l) {
    ds_json_node params = ds_json_get(d, c, "params");
    ds_status status = ds_sparse_params_default(ds_json_string(d, ds_json_get(d, c, "mode"), NULL), p, NULL);
    if (p->mode == DS_SPARSE_BIGBIRD) p->num_random_blocks = 1; /* the class's default */
    EACH(v, d, params) {
        const char *key = ds_json_key(d, params, v, NULL);
        if (!strcmp(key, "num_heads"))
            p->heads = whole(d, v);
        else if (!strcmp(key, "block"))
            p->block = whole(d, v);
        else if (!strcmp(key, "different_layout_per_head"))
            p->different_layout_per_head = truth(d, v);
        else if (!strcmp(key, "num_local_blocks"))
            p->num_local_blocks = whole(d, v);
        else if (!strcmp(key, "num_global_blocks"))
            p->num_global_blocks = whole(d, v);
        else if (!strcmp(key, "attention"))
            status = status ? status : ds_sparse_params_attention(p, ds_json_string(d, v, NULL), NULL);
        else if (!strcmp(key, "horizontal_global_attention"))
            p->horizontal_global_attention = truth(d, v);
        else if (!strcmp(key, "num_different_global_patterns"))
            p->num_different_global_patterns = whole(d, v);
        else if (!strcmp(key, "num_random_blocks"))
            p->num_random_blocks = whole(d, v);
        else if (!strcmp(key, "num_sliding_window_blocks"))
            p->num_sliding_window_blocks = whole(d, v);
        else if (!strcmp(key, "local_window_blocks")) {
            p->local_window_count = list_of(d, v, l->windows);
            p->local_window_blocks = l->windows;
        } else if (!strcmp(key, "global_block_indices")) {
            p->global_count = list_of(d, v, l->begins);
            p->global_block_indices = l->begins;
        } else if (!strcmp(key, "global_block_end_indices")) {
            p->global_end_count = list_of(d, v, l->ends);
            p->global_block_end_indices = l->ends;
        } else
            test_check(0, __FILE__, __LINE__, "parameter %s is not known to the test", key);
    }
    return status;
}
static bool kept(const ds_sparse_layout *l, size_t head, size_t row, size_t column) {
    size_t count;
    const uint32_t *columns = ds_sparse_layout_row(l, head, row, &count);
    for (size_t e = 0; e < count; e++)
        if (columns[e] == column) return true;
    return false;
}
static size_t row_count(const ds_sparse_layout *l, size_t head, size_t row) {
    size_t count;
    ds_sparse_layout_row(l, head, row, &count);
    return count;
}
/* A layout that the reference fixes: every block of every head. exact false: those that the reference keeps are there.
   */
static void same_layout(const ds_json *d, ds_json_node heads, const ds_sparse_layout *l, bool exact) {
    ds_sparse_info info;
    size_t given = ds_json_count(d, heads), h = 0;
    ds_sparse_layout_info(l, &info);
    for (; h < info.heads; h++) {
        ds_json_node head = ds_json_at(d, heads, given == 1 ? 0 : h);
        size_t i = 0;
        EACH(row, d, head) {
            const char *text = ds_json_string(d, row, NULL); /* "0110..." */
            size_t j = 0;
            for (; text && text[j]; j++) {
                bool want = text[j] == '1', have = kept(l, h, i, j);
                test_check(want == have || (!exact && have), __FILE__, __LINE__, "head %zu, block (%zu, %zu): %d", h, i,
                           j, have);
            }
            CHECK_EQ(j, info.blocks);
            i++;
        }
        CHECK_EQ(i, info.blocks);
    }
}
/* Random layouts: the reference's invariants, for many seeds. */
static void same_kind(const ds_json *d, ds_json_node expect, ds_sparse_params *p, size_t seq_len) {
    ds_json_node least = ds_json_get(d, expect, "row_nnz_min"), most = ds_json_get(d, expect, "row_nnz_max");
    ds_json_node ends = ds_json_get(d, expect, "draw_columns_end");
    ds_sparse_params without = *p;
    ds_sparse_layout *fixed = NULL, *l = NULL;
    size_t n = seq_len / p->block, drawn_anywhere = 0, heads_differ = 0;
    uint8_t *seen = (uint8_t *)calloc(n, n);
    without.num_random_blocks = 0;
    CHECK(!ds_sparse_layout_create(&without, seq_len, NULL, &fixed, NULL));
    for (p->seed = 0; p->seed < 200 && fixed; p->seed++) {
        if (!CHECK(!ds_sparse_layout_create(p, seq_len, NULL, &l, NULL))) break;
        same_layout(d, ds_json_get(d, ds_json_get(d, expect, "deterministic"), "heads"), l, false);
        for (size_t h = 0; h < p->heads; h++)
            for (size_t i = 0; i < n; i++) {
                CHECK(row_count(l, h, i) >= whole(d, ds_json_at(d, least, i)));
                CHECK(row_count(l, h, i) <= whole(d, ds_json_at(d, most, i)));
                for (size_t j = 0; j < n; j++) {
                    if (!kept(l, h, i, j)) continue;
                    CHECK(kept(fixed, h, i, j) || j < whole(d, ds_json_at(d, ends, i)));
                    seen[i * n + j] = 1;
                    drawn_anywhere += !kept(fixed, h, i, j);
                    heads_differ += !kept(l, 0, i, j);
                }
            }
        ds_sparse_layout_destroy(l);
    }
    /* over many seeds every column that may be drawn is drawn */
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < whole(d, ds_json_at(d, ends, i)); j++) CHECK(seen[i * n + j]);
    CHECK(drawn_anywhere > 0);
    CHECK_EQ(heads_differ > 0, !truth(d, ds_json_get(d, expect, "heads_equal")));
    ds_sparse_layout_destroy(fixed);
    free(seen);
}
static void test_golden(void) {
    ds_json *d = golden();
    size_t cases = 0;
    if (!d) return;
    EACH(c, d, 0) {
        const char *name = ds_json_string(d, ds_json_get(d, c, "name"), NULL);
        cases++;
        TEST_NAMED(name) {
            ds_json_node expect = ds_json_get(d, c, "expect");
            const size_t seq_len = whole(d, ds_json_get(d, c, "seq_len"));
            const bool wrong = ds_json_get(d, expect, "error") != DS_JSON_NO_NODE;
            ds_sparse_params p;
            ds_sparse_layout *l = NULL;
            ds_error error = {DS_OK, ""};
            lists store;
            ds_status status = params_of(d, c, &p, &store);
            if (!status) status = ds_sparse_layout_create(&p, seq_len, NULL, &l, &error);
            CHECK_EQ(status, wrong ? DS_ERR_INPUT : DS_OK);
            CHECK_EQ(l != NULL, !wrong);
            if (wrong && error.status) CHECK_HAS(error.message, "ds_sparse: ");
            if (l && !truth(d, ds_json_get(d, expect, "random")))
                same_layout(d, ds_json_get(d, ds_json_get(d, expect, "layout"), "heads"), l, true);
            else if (l)
                same_kind(d, expect, &p, seq_len);
            ds_sparse_layout_destroy(l);
        }
    }
    TEST(reference_complete) CHECK_EQ(cases, 80);
    ds_json_free(d);
}

/* The generator as the manual states it, written a second time. */
static void documented_draw(uint64_t seed, size_t head, size_t row, size_t columns, size_t count, uint8_t *on) {
    uint64_t state = seed + 0x9E3779B97F4A7C15u * (1 + head * 4294967296u + row);
    state = test_random(&state);
    memset(on, 0, columns);
    for (size_t j = columns - count; j < columns; j++) {
        size_t t = (size_t)(((test_random(&state) >> 32) * (j + 1)) >> 32);
        on[on[t] ? j : t] = 1;
    }
}
static void test_layouts(void) {
    ds_error error;
    TEST(random_generator) {
        ds_sparse_params p;
        ds_sparse_layout *l, *again;
        int64_t none[1] = {1};
        uint8_t on[40];
        ds_sparse_params_default("variable", &p, NULL);
        p.heads = 3, p.different_layout_per_head = true, p.num_random_blocks = 5, p.seed = 42;
        p.local_window_blocks = none, p.global_count = 0;
        CHECK(!ds_sparse_layout_create(&p, 640, NULL, &l, NULL));
        CHECK(!ds_sparse_layout_create(&p, 640, NULL, &again, NULL));
        for (size_t h = 0; h < 3; h++)
            for (size_t i = 0; i < 40; i++) {
                documented_draw(42, h, i, 40, 5, on);
                for (size_t j = 0; j < 40; j++) {
                    CHECK_EQ(kept(l, h, i, j), on[j] || i == j);
                    CHECK_EQ(kept(l, h, i, j), kept(again, h, i, j));
                }
            }
        /* and once in figures, so that a change of both shows */
        for (size_t j = 0; j < 40; j++)
            CHECK_EQ(kept(l, 1, 20, j), j == 20 || j == 0 || j == 5 || j == 10 || j == 13 || j == 38);
        ds_sparse_layout_destroy(l);
        ds_sparse_layout_destroy(again);
    }
    TEST(
        random_rows_differ) { /* neighbours meet, or nearly, as often as chance has it: 2 * 2 * 3 of 400, thus 12 rows */
        ds_sparse_params p;
        ds_sparse_layout *l;
        int64_t one[1] = {1};
        size_t met = 0;
        ds_sparse_params_default("variable", &p, NULL);
        p.block = 1, p.num_random_blocks = 2, p.local_window_blocks = one, p.global_count = 0;
        CHECK(!ds_sparse_layout_create(&p, 400, NULL, &l, NULL));
        for (size_t i = 0; i + 1 < 400; i++) {
            size_t mine, next;
            const uint32_t *a = ds_sparse_layout_row(l, 0, i, &mine), *b = ds_sparse_layout_row(l, 0, i + 1, &next);
            bool meet = false;
            for (size_t e = 0; e < mine; e++)
                for (size_t f = 0; f < next; f++) /* the diagonal is the window */
                    meet |= a[e] != i && b[f] != i + 1 && a[e] + 1 >= b[f] && b[f] + 1 >= a[e];
            met += meet;
        }
        test_check(met > 0 && met < 36, __FILE__, __LINE__, "%zu rows meet the next one", met);
        ds_sparse_layout_destroy(l);
    }
    TEST(columns_mirror_rows) {
        ds_sparse_params p;
        ds_sparse_layout *l;
        ds_sparse_params_default("bigbird", &p, NULL);
        p.heads = 2, p.different_layout_per_head = true, p.num_random_blocks = 2;
        CHECK(!ds_sparse_layout_create(&p, 16 * 21, NULL, &l, NULL));
        for (size_t h = 0; h < 2; h++)
            for (size_t j = 0; j < 21; j++) {
                size_t e = l->column_start[h * 21 + j];
                for (size_t i = 0; i < 21; i++)
                    if (kept(l, h, i, j)) CHECK_EQ(l->rows[e++], i);
                CHECK_EQ(e, l->column_start[h * 21 + j + 1]);
            }
        ds_sparse_layout_destroy(l);
    }
    TEST(refused) {
        ds_sparse_params p;
        ds_sparse_layout *l;
        const int64_t minus[1] = {-1}, early[2] = {-2, 4};
        CHECK_EQ(ds_sparse_params_default("longformer", &p, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "\"longformer\"; there are dense, fixed");
        CHECK_EQ(ds_sparse_params_default(NULL, &p, &error), DS_ERR_INPUT);
        CHECK_STR(ds_sparse_mode_name(DS_SPARSE_BIGBIRD), "bigbird");
        CHECK_STR(ds_sparse_mode_name((ds_sparse_mode)7), "?");
        ds_sparse_params_default("fixed", &p, NULL);
        CHECK_EQ(ds_sparse_params_attention(&p, NULL, &error), DS_ERR_INPUT);
        CHECK_EQ(ds_sparse_params_attention(&p, "both", &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "got \"both\"");
        CHECK_EQ(ds_sparse_layout_create_(&p, 64, NULL, &l, &error, DS_SPARSE_VERSION + 1, sizeof p), DS_ERR_VERSION);
        CHECK_EQ(ds_sparse_layout_create_(&p, 64, NULL, &l, &error, DS_SPARSE_VERSION, sizeof p - 8), DS_ERR_VERSION);
        CHECK_EQ(ds_sparse_layout_create(&p, 0, NULL, &l, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "positive multiple of the block 16; got 0");
        p.num_global_blocks = 0;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        p.num_global_blocks = 1, p.num_different_global_patterns = 0;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        p.num_different_global_patterns = 1, p.num_local_blocks = 0;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        p.heads = 0;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_ARGUMENT);
        p.heads = DS_SPARSE_MAX_HEADS + 1;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_ARGUMENT);
        ds_sparse_params_default("variable", &p, NULL);
        p.block = 0;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        p.block = DS_SPARSE_MAX_BLOCK + 1;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "block must be 1 to 1024; got 1025");
        p.block = 16, p.local_window_count = 0;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        p.local_window_count = 1, p.local_window_blocks = minus;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        p.local_window_blocks = early, p.local_window_count = 2;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "local_window_blocks[0] must be at least 0; got -2");
        p.local_window_blocks = NULL;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        ds_sparse_params_default("bslongformer", &p, NULL);
        p.global_block_indices = minus;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "global_block_indices[0] must be at least 0; got -1");
        p.global_block_indices = NULL;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_ARGUMENT);
        p.mode = DS_SPARSE_CUSTOM;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_ARGUMENT);
        p.mode = (ds_sparse_mode)-1;
        CHECK_EQ(ds_sparse_params_check(&p, &error), DS_ERR_ARGUMENT);
        ds_sparse_params_default("dense", &p, NULL);
        p.block = 1;
        CHECK_EQ(ds_sparse_layout_create(&p, (size_t)1 << 40, NULL, &l, &error), DS_ERR_ARGUMENT);
        CHECK(l == NULL);
        ds_sparse_layout_destroy(NULL);
    }
    TEST(windows_of_any_size) {
        ds_sparse_params p;
        ds_sparse_layout *l;
        const int64_t sizes[3] = {0, INT64_MAX, 3}, many[4] = {2, 0, 0, 3}, end[1] = {INT64_MAX};
        ds_sparse_info info;
        ds_sparse_params_default("variable", &p, NULL);
        p.local_window_blocks = sizes, p.local_window_count = 3;
        CHECK(!ds_sparse_layout_create(&p, 160, NULL, &l, NULL));
        ds_sparse_layout_info(l, &info);
        CHECK_EQ(info.kept, 100);
        CHECK_NEAR(info.density, 1, 0);
        ds_sparse_layout_destroy(l);
        p.local_window_blocks = many, p.local_window_count = 4, p.global_count = 0;
        CHECK(!ds_sparse_layout_create(&p, 160, NULL, &l, NULL));
        for (size_t i = 0; i < 10; i++)
            for (size_t j = 0; j < 10; j++)
                CHECK_EQ(kept(l, 0, i, j), (i < 2 && j < 2) || (i >= 2 && j >= 2 && (i - 2) / 3 == (j - 2) / 3));
        ds_sparse_layout_destroy(l);
        p.global_count = p.global_end_count = 1, p.global_block_end_indices = end;
        CHECK(!ds_sparse_layout_create(&p, 160, NULL, &l, NULL));
        ds_sparse_layout_info(l, &info);
        CHECK_EQ(info.kept, 100);
        ds_sparse_layout_destroy(l);
        ds_sparse_params_default("fixed", &p, NULL);
        p.num_local_blocks = SIZE_MAX - 1, p.num_global_blocks = 1;
        CHECK(!ds_sparse_layout_create(&p, 160, NULL, &l, NULL));
        ds_sparse_layout_info(l, &info);
        CHECK_EQ(info.kept, 100);
        ds_sparse_layout_destroy(l);
        p.num_local_blocks = p.num_global_blocks = SIZE_MAX / 2, p.unidirectional = true;
        CHECK(!ds_sparse_layout_create(&p, 160, NULL, &l, NULL));
        ds_sparse_layout_info(l, &info);
        CHECK_EQ(info.kept, 100); /* the last window's global columns are cut at the end and reach the first row */
        ds_sparse_layout_destroy(l);
        p.num_local_blocks = p.num_global_blocks =
            4; /* 3 blocks: columns from 3 - 4, which Python counts from the end */
        CHECK(!ds_sparse_layout_create(&p, 48, NULL, &l, NULL));
        for (size_t i = 0; i < 3; i++)
            for (size_t j = 0; j < 3; j++) CHECK_EQ(kept(l, 0, i, j), j <= i);
        ds_sparse_layout_destroy(l);
        ds_sparse_params_default("bigbird", &p, NULL);
        p.unidirectional = p.horizontal_global_attention = true; /* which bigbird does not read */
        CHECK(!ds_sparse_params_check(&p, &error));
        ds_sparse_params_default("local_sliding_window", &p, NULL);
        p.num_sliding_window_blocks = 11;
        CHECK_EQ(ds_sparse_layout_create(&p, 160, NULL, &l, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "num_sliding_window_blocks must be at most the 10 of a row; got 11");
    }
    TEST(padded) {
        CHECK_EQ(ds_sparse_padded(0, 16), 0);
        CHECK_EQ(ds_sparse_padded(1, 16), 16);
        CHECK_EQ(ds_sparse_padded(16, 16), 16);
        CHECK_EQ(ds_sparse_padded(33, 16), 48);
        CHECK_EQ(ds_sparse_padded(33, 0), 0);
        CHECK_EQ(ds_sparse_padded(SIZE_MAX - 1, 16), 0);
    }
    TEST(from_map) {
        const uint8_t map[2 * 9] = {1, 0, 0, 0, 255, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0};
        ds_sparse_layout *l;
        ds_sparse_info info;
        CHECK(!ds_sparse_layout_from_map(map, 2, 5, 30, 10, NULL, &l, NULL));
        ds_sparse_layout_info(l, &info);
        CHECK_EQ(info.mode, DS_SPARSE_CUSTOM);
        CHECK_EQ(info.patterns, 2);
        CHECK_EQ(info.kept, 3 * 2 + 2 * 4);
        for (size_t h = 0; h < 5; h++)
            for (size_t i = 0; i < 9; i++) CHECK_EQ(kept(l, h, i / 3, i % 3), map[h % 2 * 9 + i] != 0);
        ds_sparse_layout_destroy(l);
        CHECK_EQ(ds_sparse_layout_from_map(NULL, 1, 1, 30, 10, NULL, &l, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_sparse_layout_from_map(map, 0, 1, 30, 10, NULL, &l, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_sparse_layout_from_map(map, 2, 1, 30, 10, NULL, &l, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_sparse_layout_from_map(map, 1, 1, 30, 0, NULL, &l, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_sparse_layout_from_map(map, 1, 1, 30, 1025, NULL, &l, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_sparse_layout_from_map(map, 1, DS_SPARSE_MAX_HEADS + 1, 30, 10, NULL, &l, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_sparse_layout_from_map(map, 1, 1, 31, 10, NULL, &l, &error), DS_ERR_INPUT);
    }
}

static void append(void *ctx, const char *text, size_t bytes) {
    char *to = (char *)ctx + strlen((char *)ctx);
    memcpy(to, text, bytes);
    to[bytes] = 0;
}
static void test_svg(void) {
    TEST(svg) {
        ds_sparse_params p;
        ds_sparse_layout *l;
        char text[4096] = "";
        ds_sparse_params_default("fixed", &p, NULL);
        p.heads = 4, p.different_layout_per_head = true, p.num_different_global_patterns = 2, p.num_local_blocks = 2;
        CHECK(!ds_sparse_layout_create(&p, 64, NULL, &l, NULL));
        ds_sparse_layout_svg(l, append, text);
        CHECK_HAS(text, "viewBox=\"0 0.523077 14 6.44615\"");
        CHECK_HAS(text, ">fixed, 4 heads, 64 tokens</text>"); /* what is read in the picture itself */
        CHECK_HAS(text, ">blocks of 16 tokens, density 0.75</text>");
        CHECK_HAS(text, ">head 1, and each 2 further</text>");
        CHECK_HAS(text, ">kept: queries down, keys across</text>");
        CHECK_HAS(text, "<title>fixed: 4 heads, 64 tokens in blocks of 16, 0.75 of the scores kept</title>");
        CHECK_HAS(text, "<title>head 1</title>");
        CHECK(strstr(text, "head 2") == NULL); /* as head 0 */
        /* head 0 sees columns 1 and 3: rows 0 and 1 see 0, 1 and 3 */
        CHECK_HAS(text, "M2 2h2v1h-2zM5 2h1v1h-1zM2 3h2v1h-2zM5 3h1v1h-1zM3 4h3v1h-3z");
        CHECK_STR(text + strlen(text) - 7, "</svg>\n");
        ds_sparse_layout_destroy(l);
    }
}

/* ---- attention against a dense reference in double precision ---- */

typedef struct problem {
    const ds_sparse_layout *layout;
    ds_sparse_info info;
    size_t batch, tokens, d;
    float scale;
    bool causal;
    ds_dtype dtype;
    float *q, *k, *v, *d_out; /* the values that the header is given, in fp32 */
    float *key_mask, *mask, *relative;
    ds_sparse_mask key_mode, mask_mode;
    size_t mask_batch, mask_head, mask_row, reach; /* mask_row 0: tokens */
    /* what the reference says */
    double *out, *lse, *d_q, *d_k, *d_v, *d_relative;
    /* figures that bounds are made of */
    double largest_score_terms, largest_k, largest_q, largest_v, largest_d_out, largest_gap, largest_column, most;
} problem;

static float *uniform(size_t n, uint64_t *state, double size) {
    float *x = (float *)malloc((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (float)(size * (2 * test_uniform(state) - 1));
    return x;
}
static size_t at(const problem *p, size_t b, size_t h, size_t i) {
    return (b * p->info.heads + h) * p->tokens + i;
}
static void rounded(float *x, size_t n, ds_dtype dtype) {
    for (size_t i = 0; i < n; i++)
        x[i] = dtype == DS_F16    ? dsi_f32_of_f16(dsi_f16_of_f32(x[i]))
               : dtype == DS_BF16 ? dsi_f32_of_bf16(dsi_bf16_of_f32(x[i]))
                                  : x[i];
}
static void fill(problem *p, const ds_sparse_layout *l, size_t batch, size_t tokens, size_t d, uint64_t seed) {
    size_t n;
    memset(p, 0, sizeof *p);
    p->layout = l;
    ds_sparse_layout_info(l, &p->info);
    p->batch = batch, p->tokens = tokens, p->d = d, p->scale = 1.0f / sqrtf((float)d);
    n = batch * p->info.heads * tokens * d;
    p->q = uniform(n, &seed, 3), p->k = uniform(n, &seed, 1);
    p->v = uniform(n, &seed, 1), p->d_out = uniform(n, &seed, 1);
}
static void with_masks(problem *p, bool add, uint64_t seed) {
    const size_t h = p->info.heads, s = p->tokens;
    p->key_mode = p->mask_mode = add ? DS_SPARSE_ADD : DS_SPARSE_MUL;
    p->key_mask = uniform(p->batch * s, &seed, 1);
    p->mask = uniform(p->batch * h * s * s, &seed, 1);
    p->mask_head = s * s, p->mask_batch = h * s * s;
    for (size_t i = 0; i < p->batch * s; i++)
        if (i % 5 == 3) p->key_mask[i] = add ? -INFINITY : 0;
    for (size_t i = 0; i < p->batch * h * s * s; i++)
        if (i % 7 == 3) p->mask[i] = add ? -INFINITY : 0;
}
static void with_relative(problem *p, size_t reach, uint64_t seed) {
    p->reach = reach;
    p->relative = uniform(p->info.heads * (2 * reach + 1), &seed, 1);
}
static double *zeros(size_t n) {
    return (double *)calloc(n + 1, sizeof(double));
}
static void largest(double *of, double x) {
    if (fabs(x) > *of) *of = fabs(x);
}
/* The score of query i and key j, -inf where it may not be seen; *distance: its element of the relative bias. */
static double score(problem *p, size_t b, size_t h, size_t i, size_t j, size_t *distance) {
    const float *q = p->q + at(p, b, h, i) * p->d, *k = p->k + at(p, b, h, j) * p->d;
    long reach = (long)p->reach, off = (long)j - (long)i;
    double sum = 0, terms = 0, x;
    if (p->causal && j > i) return -INFINITY;
    for (size_t e = 0; e < p->d; e++) {
        sum += (double)q[e] * (double)k[e];
        terms += fabs((double)q[e] * (double)k[e]);
    }
    x = sum * (double)p->scale;
    off = off > reach ? reach : off < -reach ? -reach : off;
    *distance = h * (size_t)(2 * reach + 1) + (size_t)(reach + off);
    if (p->relative) x += (double)p->relative[*distance];
    if (p->key_mask) {
        float m = p->key_mask[b * p->tokens + j];
        x = p->key_mode == DS_SPARSE_ADD ? x + (double)m : m == 0 ? -INFINITY : x;
    }
    if (p->mask) {
        float m = p->mask[b * p->mask_batch + h * p->mask_head + i * (p->mask_row ? p->mask_row : p->tokens) + j];
        x = p->mask_mode == DS_SPARSE_ADD ? x + (double)m : m == 0 ? -INFINITY : x;
    }
    /* sqrt(d) roundings of the product, one of q * scale, and those of the sums with bias and masks */
    largest(&p->largest_score_terms, terms * (double)p->scale + 4);
    return x;
}
/* One row of the reference: its softmax, its output, and what it gives the gradients. */
static void reference_row(problem *p, size_t b, size_t h, size_t i, double *x, double *column) {
    const size_t row = at(p, b, h, i), d = p->d;
    const float *g = p->d_out + row * d;
    double most = -INFINITY, sum = 0, delta = 0;
    size_t count, n = 0;
    const uint32_t *columns = ds_sparse_layout_row(p->layout, h, i / p->info.block, &count);
    for (size_t e = 0; e < count; e++)
        for (size_t c = 0; c < p->info.block; c++) {
            size_t j = columns[e] * p->info.block + c, distance;
            if (j >= p->tokens) continue;
            x[j] = score(p, b, h, i, j, &distance);
            if (x[j] > most) most = x[j];
        }
    p->lse[row] = most;
    if (most == -INFINITY) return;
#define EACH_KEY(j)                                                                                                    \
    for (size_t e_ = 0; e_ < count; e_++)                                                                              \
        for (size_t j = columns[e_] * p->info.block; j < (columns[e_] + 1) * p->info.block && j < p->tokens; j++)
    EACH_KEY(j) sum += x[j] = exp(x[j] - most);
    p->lse[row] = most + log(sum);
    EACH_KEY(j) {
        const float *v = p->v + at(p, b, h, j) * d;
        x[j] /= sum;
        n++;
        for (size_t f = 0; f < d; f++) p->out[row * d + f] += x[j] * (double)v[f];
    }
    for (size_t f = 0; f < d; f++) delta += p->out[row * d + f] * (double)g[f];
    EACH_KEY(j) {
        const size_t key = at(p, b, h, j);
        double gap = -delta, d_score;
        size_t distance = 0;
        for (size_t f = 0; f < d; f++) gap += (double)g[f] * (double)p->v[key * d + f];
        d_score = x[j] * gap;
        if (x[j] > 0 && p->relative) {
            score(p, b, h, i, j, &distance);
            p->d_relative[distance] += d_score;
        }
        for (size_t f = 0; f < d; f++) {
            p->d_q[row * d + f] += (double)p->scale * d_score * (double)p->k[key * d + f];
            p->d_k[key * d + f] += (double)p->scale * d_score * (double)p->q[row * d + f];
            p->d_v[key * d + f] += x[j] * (double)g[f];
        }
        column[key] += x[j];
        largest(&p->largest_gap, gap);
    }
    if ((double)n > p->most) p->most = (double)n;
}
static void reference(problem *p) {
    const size_t rows = p->batch * p->info.heads * p->tokens, n = rows * p->d;
    double *x = zeros(p->info.seq_len), *column = zeros(rows);
    p->out = zeros(n), p->lse = zeros(rows), p->d_q = zeros(n), p->d_k = zeros(n), p->d_v = zeros(n);
    p->d_relative = zeros(p->info.heads * (2 * p->reach + 1));
    for (size_t b = 0; b < p->batch; b++)
        for (size_t h = 0; h < p->info.heads; h++)
            for (size_t i = 0; i < p->tokens; i++) reference_row(p, b, h, i, x, column);
    for (size_t i = 0; i < n; i++) {
        largest(&p->largest_q, (double)p->q[i]), largest(&p->largest_k, (double)p->k[i]);
        largest(&p->largest_v, (double)p->v[i]), largest(&p->largest_d_out, (double)p->d_out[i]);
    }
    for (size_t i = 0; i < rows; i++) largest(&p->largest_column, column[i]);
    free(x), free(column);
}
static void done(problem *p) {
    free(p->q), free(p->k), free(p->v), free(p->d_out), free(p->key_mask), free(p->mask), free(p->relative);
    free(p->out), free(p->lse), free(p->d_q), free(p->d_k), free(p->d_v), free(p->d_relative);
}

/* What the header says, widened to fp32. */
typedef struct answer {
    size_t n, rows, relatives;
    float *out, *lse, *d_q, *d_k, *d_v, *d_relative;
} answer;
static void *narrowed(const float *x, size_t n, ds_dtype dtype) {
    float *same = (float *)malloc((n + 1) * sizeof *same);
    uint16_t *half = (uint16_t *)(void *)same;
    for (size_t i = 0; i < n; i++) {
        if (dtype == DS_F16)
            half[i] = dsi_f16_of_f32(x[i]);
        else if (dtype == DS_BF16)
            half[i] = dsi_bf16_of_f32(x[i]);
        else
            same[i] = x[i];
    }
    return same;
}
static void widened(float *x, size_t n, ds_dtype dtype) {
    const uint16_t *half = (const uint16_t *)(const void *)x;
    if (dtype == DS_F32) return;
    for (size_t i = n; i-- > 0;) x[i] = dtype == DS_F16 ? dsi_f32_of_f16(half[i]) : dsi_f32_of_bf16(half[i]);
}
static void *poison(size_t n) {
    void *x = malloc((n + 1) * sizeof(float));
    memset(x, 0x7F, (n + 1) * sizeof(float));
    return x;
}
static bool solve(const problem *p, ds_sparse_desc desc, answer *a) {
    ds_sparse *s;
    ds_sparse_io io;
    ds_error error;
    bool right;
    void *q, *k, *v, *g;
    memset(a, 0, sizeof *a);
    a->rows = p->batch * p->info.heads * p->tokens, a->n = a->rows * p->d;
    a->relatives = p->relative ? p->info.heads * (2 * p->reach + 1) : 0;
    desc.layout = p->layout, desc.head_dim = p->d, desc.causal = p->causal, desc.scale = p->scale;
    desc.relative_reach = p->reach;
    if (ds_sparse_create(&desc, &s, &error)) return test_check(0, __FILE__, __LINE__, "%s", error.message);
    memset(&io, 0, sizeof io);
    io.batch = p->batch, io.seq_len = p->tokens, io.dtype = p->dtype;
    io.q = q = narrowed(p->q, a->n, p->dtype), io.k = k = narrowed(p->k, a->n, p->dtype);
    io.v = v = narrowed(p->v, a->n, p->dtype), io.d_out = g = narrowed(p->d_out, a->n, p->dtype);
    io.out = a->out = (float *)poison(a->n), io.lse = a->lse = (float *)poison(2 * a->rows);
    io.d_q = a->d_q = (float *)poison(a->n), io.d_k = a->d_k = (float *)poison(a->n);
    io.d_v = a->d_v = (float *)poison(a->n), a->d_relative = (float *)poison(a->relatives);
    io.key_mask = p->key_mask, io.key_mask_mode = p->key_mode;
    io.mask = p->mask, io.mask_mode = p->mask_mode, io.mask_batch = p->mask_batch, io.mask_head = p->mask_head;
    io.mask_row = p->mask_row;
    io.relative = p->relative, io.relative_reach = p->reach, io.d_relative = p->relative ? a->d_relative : NULL;
    right = CHECK(!ds_sparse_forward(s, &io)) && CHECK(!ds_sparse_backward(s, &io));
    widened(a->out, a->n, p->dtype);
    widened(a->d_q, a->n, p->dtype), widened(a->d_k, a->n, p->dtype), widened(a->d_v, a->n, p->dtype);
    ds_sparse_destroy(s);
    free(q), free(k), free(v), free(g);
    return right;
}
static void drop(answer *a) {
    free(a->out), free(a->lse), free(a->d_q), free(a->d_k), free(a->d_v), free(a->d_relative);
}
static void near(const float *got, const double *want, size_t n, double bound, double relative, const char *what) {
    double worst = 0;
    size_t where = 0;
    for (size_t i = 0; i < n; i++) {
        double off = got[i] == (float)want[i] ? 0 : fabs((double)got[i] - want[i]) - relative * fabs(want[i]);
        if (off != off) off = INFINITY;
        if (off > worst) worst = off, where = i;
    }
    test_check(worst <= bound, __FILE__, __LINE__, "%s[%zu]: got %.9g, expected %.9g within %.3g (off by %.3g)", what,
               where, n ? (double)got[where] : 0, n ? want[where] : 0, bound, worst);
}
/* lse is two floats whose sum it is. */
static void near_lse(const answer *a, const double *want, double bound, double relative) {
    double worst = 0;
    size_t where = 0;
    for (size_t i = 0; i < a->rows; i++) {
        const double got = (double)a->lse[2 * i] + (double)a->lse[2 * i + 1];
        double off = got == want[i] ? 0 : fabs(got - want[i]) - relative * fabs(want[i]);
        if (off != off) off = INFINITY;
        if (off > worst) worst = off, where = i;
    }
    test_check(worst <= bound, __FILE__, __LINE__,
               "lse[%zu]: got %.9g + %.9g, expected %.17g within %.3g (off by %.3g)", where, (double)a->lse[2 * where],
               (double)a->lse[2 * where + 1], want[where], bound, worst);
}
/* Compares with the reference. Bounds by first-order error analysis with u = 2^-24: a sum of n products has an error of
   6 sqrt(n) u times its terms' size (roundings as random numbers, six standard deviations); a probability the relative
   error 2 * (error of a score) + 2^-21 (exp, sums); and sums over probabilities weigh errors by them: by at most 1
   along a row, by largest_column along a column. 16-bit results add half an ulp, and their rounded out reaches delta.
   */
static void compare(const problem *p, const answer *a) {
    const double u = 0x1p-24, root_d = 6 * sqrt((double)p->d), root_n = 6 * sqrt(p->most + 1);
    const double half = p->dtype == DS_F16 ? 0x1p-11 : p->dtype == DS_BF16 ? 0x1p-8 : u;
    const double tiny = p->dtype == DS_F16 ? 0x1p-24 : 1e-37; /* denormal results */
    const double e_score = root_d * u * p->largest_score_terms, e_p = 2 * e_score + 0x1p-21 + root_n * u;
    const double product = (double)p->d * p->largest_d_out * p->largest_v;
    const double e_gap =
        2 * root_d * u * product + (p->dtype ? root_d * half * p->largest_d_out * p->largest_v : product * e_p);
    const double e_sum = p->largest_gap * (e_p + root_n * u) + e_gap, columns = p->largest_column;
    const double s = (double)p->scale;
    near(a->out, p->out, a->n, p->largest_v * (e_p + root_n * u) + tiny, half, "out");
    near_lse(a, p->lse, e_score + e_p + 16 * u, 0);
    near(a->d_q, p->d_q, a->n, s * p->largest_k * e_sum + tiny, half, "d_q");
    near(a->d_k, p->d_k, a->n, s * p->largest_q * columns * e_sum + tiny, half, "d_k");
    near(a->d_v, p->d_v, a->n, p->largest_d_out * columns * (e_p + root_n * u) + tiny, half, "d_v");
    if (p->relative) {
        double pairs =
            (double)p->batch * (double)p->tokens; /* rows that meet in one element, each weighing 1 at most */
        near(a->d_relative, p->d_relative, a->relatives, pairs * e_sum, 0, "d_relative");
    }
}
static void against_reference(problem *p, ds_sparse_desc desc) {
    answer a;
    reference(p);
    if (solve(p, desc, &a)) compare(p, &a);
    drop(&a);
    done(p);
}
static ds_sparse_desc plain(void) {
    ds_sparse_desc desc;
    memset(&desc, 0, sizeof desc);
    return desc;
}
static ds_sparse_layout *layout_of(const char *mode, size_t heads, size_t block, size_t tokens, bool before) {
    ds_sparse_params p;
    ds_sparse_layout *l = NULL;
    ds_error error;
    CHECK(!ds_sparse_params_default(mode, &p, NULL));
    p.heads = heads, p.block = block, p.unidirectional = before, p.seed = 7;
    p.different_layout_per_head = true;
    if (p.mode == DS_SPARSE_FIXED) p.num_different_global_patterns = heads < 4 ? heads : 4;
    if (p.mode == DS_SPARSE_VARIABLE || p.mode == DS_SPARSE_BIGBIRD) p.num_random_blocks = 1;
    if (ds_sparse_layout_create(&p, ds_sparse_padded(tokens, block), NULL, &l, &error))
        test_check(0, __FILE__, __LINE__, "%s", error.message);
    return l;
}
static ds_sparse_layout *random_layout(size_t heads, size_t block, size_t tokens, unsigned percent, uint64_t seed) {
    const size_t n = ds_sparse_padded(tokens, block) / block;
    uint8_t *map = (uint8_t *)malloc(heads * n * n);
    ds_sparse_layout *l = NULL;
    for (size_t i = 0; i < heads * n * n; i++) map[i] = test_random(&seed) % 100 < percent;
    CHECK(!ds_sparse_layout_from_map(map, heads, heads, n * block, block, NULL, &l, NULL));
    free(map);
    return l;
}

static void test_modes(void) {
    char name[128];
    for (int m = DS_SPARSE_DENSE; m < DS_SPARSE_CUSTOM; m++)
        for (int variant = 0; variant < 4; variant++) {
            const char *mode = ds_sparse_mode_name((ds_sparse_mode)m);
            snprintf(name, sizeof name, "reference/%s%s%s", mode, variant & 1 ? "/unidirectional" : "",
                     variant & 2 ? "/masks" : "");
            TEST_NAMED(name) {
                ds_sparse_layout *l = layout_of(mode, 3, 16, 150, variant & 1);
                problem p;
                fill(&p, l, 2, 150, 24, (uint64_t)m);
                p.causal = variant & 1;
                if (variant & 2) with_masks(&p, true, 5), with_relative(&p, 20, 9);
                against_reference(&p, plain());
                ds_sparse_layout_destroy(l);
            }
        }
}
static void test_shapes(void) {
    static const struct {
        size_t block, tokens, d;
        unsigned percent;
    } shapes[] = {{8, 100, 64, 30},    {16, 256, 1, 50}, {16, 100, 3, 20}, {32, 130, 64, 40},  {64, 300, 80, 60},
                  {128, 500, 64, 60},  {5, 33, 7, 50},   {20, 95, 17, 50}, {100, 350, 33, 70}, {1, 40, 16, 50},
                  {128, 128, 256, 99}, {24, 24, 15, 99}, {16, 1, 8, 99},   {512, 600, 16, 90}, {1024, 1024, 8, 99}};
    char name[64];
    for (size_t t = 0; t < sizeof shapes / sizeof *shapes; t++)
        for (int causal = 0; causal < 2; causal++) {
            snprintf(name, sizeof name, "shape/block_%zu_tokens_%zu_dim_%zu%s", shapes[t].block, shapes[t].tokens,
                     shapes[t].d, causal ? "_causal" : "");
            TEST_NAMED(name) {
                ds_sparse_layout *l = random_layout(2, shapes[t].block, shapes[t].tokens, shapes[t].percent, t + 1);
                problem p;
                fill(&p, l, 1, shapes[t].tokens, shapes[t].d, t);
                p.causal = causal;
                against_reference(&p, plain());
                ds_sparse_layout_destroy(l);
            }
        }
    TEST(random_layouts) {
        for (uint64_t seed = 0; seed < 40; seed++) {
            uint64_t state = seed;
            size_t block = 4 + test_random(&state) % 30, tokens = 1 + test_random(&state) % 120;
            ds_sparse_layout *l =
                random_layout(1 + test_random(&state) % 3, block, tokens, 5 + (unsigned)(seed * 2), seed);
            problem p;
            fill(&p, l, 1 + test_random(&state) % 2, tokens, 1 + test_random(&state) % 40, seed);
            p.causal = test_random(&state) % 2;
            if (test_random(&state) % 2) with_masks(&p, test_random(&state) % 2, seed);
            if (test_random(&state) % 2) with_relative(&p, test_random(&state) % 20, seed);
            against_reference(&p, plain());
            ds_sparse_layout_destroy(l);
        }
    }
    TEST(long_sequence_with_masks) { /* bias, padding and a mask whose rows overlap, so that it stays small */
        static const struct {
            const char *mode;
            size_t d;
        } cases[] = {{"fixed", 40}, {"bslongformer", 64}, {"local_sliding_window", 128}};
        for (size_t t = 0; t < 3; t++) {
            enum { S = 8150 };
            ds_sparse_layout *l = layout_of(cases[t].mode, 1, t ? 64 : 128, S, t != 1);
            ds_sparse_desc desc = plain();
            uint64_t state = t;
            problem p;
            fill(&p, l, 1, S, cases[t].d, 3);
            p.causal = t != 1;
            p.key_mask = uniform(S, &state, 1), p.key_mode = DS_SPARSE_MUL;
            for (size_t j = 0; j < S; j++)
                if (j % 9 == 4 || j > 8100) p.key_mask[j] = 0;
            p.mask = uniform(2 * S, &state, 1), p.mask_row = 1;
            with_relative(&p, 300, 4);
            desc.threads = 2;
            against_reference(&p, desc);
            ds_sparse_layout_destroy(l);
        }
    }
    TEST(long_sequence) {
        for (int causal = 0; causal < 2; causal++) {
            ds_sparse_layout *l = layout_of(causal ? "variable" : "bigbird", 1, 64, 8192, causal);
            ds_sparse_desc desc = plain();
            problem p;
            fill(&p, l, 1, 8192, 16, 3);
            p.causal = causal;
            desc.threads = 2;
            against_reference(&p, desc);
            ds_sparse_layout_destroy(l);
        }
    }
    TEST(
        mask_shapes) { /* shared by batch items or by heads, with rows longer than the tokens, one row for all queries */
        static const struct {
            size_t batch, head, row;
        } strides[] = {{0, 0, 0}, {0, 0, 77}, {0, 70 * 77, 77}, {70 * 77, 0, 77}, {3, 2, 1}};
        for (size_t t = 0; t < sizeof strides / sizeof *strides; t++) {
            ds_sparse_layout *l = layout_of("bigbird", 2, 16, 70, false);
            problem p;
            uint64_t state = t;
            fill(&p, l, 2, 70, 12, 5);
            p.mask = uniform(2 * 70 * 77, &state, 3);
            p.mask_batch = strides[t].batch, p.mask_head = strides[t].head, p.mask_row = strides[t].row;
            against_reference(&p, plain());
            ds_sparse_layout_destroy(l);
        }
    }
    for (int m = DS_SPARSE_DENSE; m < DS_SPARSE_CUSTOM; m++) { /* each mode in each 16-bit type, plain and masked */
        snprintf(name, sizeof name, "half_types/%s", ds_sparse_mode_name((ds_sparse_mode)m));
        TEST_NAMED(name) {
            for (int i = 0; i < 8; i++) {
                ds_sparse_layout *l = layout_of(ds_sparse_mode_name((ds_sparse_mode)m), 2, 16, 90, i & 1);
                const size_t n = 2 * 2 * 90 * 20;
                problem p;
                fill(&p, l, 2, 90, 20, 11);
                p.causal = i & 1;
                p.dtype = i & 2 ? DS_F16 : DS_BF16;
                rounded(p.q, n, p.dtype), rounded(p.k, n, p.dtype), rounded(p.v, n, p.dtype);
                rounded(p.d_out, n, p.dtype);
                if (i & 4) with_masks(&p, i & 1, 5), with_relative(&p, 20, 9);
                against_reference(&p, plain());
                ds_sparse_layout_destroy(l);
            }
        }
    }
    TEST(large_scores) { /* one key takes all of a row's weight; nothing overflows */
        ds_sparse_layout *l = layout_of("dense", 1, 16, 64, false);
        problem p;
        answer a;
        fill(&p, l, 1, 64, 16, 5);
        for (size_t i = 0; i < 64 * 16; i++) p.q[i] *= 1000;
        reference(&p);
        CHECK(solve(&p, plain(), &a));
        for (size_t i = 0; i < a.n; i++) CHECK(fabsf(a.out[i]) <= 1.0001f);
        near_lse(&a, p.lse, 0, 1e-5);
        drop(&a), done(&p);
        ds_sparse_layout_destroy(l);
    }
}

/* Of sum(out * d_out), through the header's own forward. */
static void check_differences(const ds_sparse_layout *l, bool masks, uint64_t seed) {
    problem p;
    answer a, up, down;
    float *inputs[4], *gradients[4];
    const float h = 0x1p-5f;
    fill(&p, l, 1, 40, 6, seed);
    if (masks) with_masks(&p, true, seed);
    with_relative(&p, 5, 6);
    CHECK(solve(&p, plain(), &a));
    inputs[0] = p.q, inputs[1] = p.k, inputs[2] = p.v, inputs[3] = p.relative;
    gradients[0] = a.d_q, gradients[1] = a.d_k, gradients[2] = a.d_v, gradients[3] = a.d_relative;
    for (int t = 0; t < 4; t++)
        for (size_t i = 0; i < (t < 3 ? a.n : a.relatives); i += t < 3 ? 13 : 1) {
            const float before = inputs[t][i];
            double slope = 0;
            inputs[t][i] = before + h;
            solve(&p, plain(), &up);
            inputs[t][i] = before - h;
            solve(&p, plain(), &down);
            inputs[t][i] = before;
            for (size_t e = 0; e < a.n; e++)
                slope += ((double)up.out[e] - (double)down.out[e]) * (double)p.d_out[e] / (2 * (double)h);
            /* rounding: u * sqrt(480) * |out d_out| / h = 4e-5; truncation: h^2 / 6 * third derivative, of order 1 */
            CHECK_NEAR(gradients[t][i], slope, 1e-3);
            drop(&up), drop(&down);
        }
    drop(&a), done(&p);
}
static void test_gradients(void) {
    char name[64];
    for (int m = DS_SPARSE_DENSE; m <= DS_SPARSE_CUSTOM; m++) {
        snprintf(name, sizeof name, "finite_differences/%s", ds_sparse_mode_name((ds_sparse_mode)m));
        TEST_NAMED(name) {
            ds_sparse_layout *l = m == DS_SPARSE_CUSTOM
                                      ? random_layout(2, 8, 40, 60, 4)
                                      : layout_of(ds_sparse_mode_name((ds_sparse_mode)m), 2, 8, 40, false);
            check_differences(l, false, 8);
            check_differences(l, true, 9);
            ds_sparse_layout_destroy(l);
        }
    }
    TEST(nothing_to_attend) {
        /* block row 1 keeps nothing; token 20 of row 2 has all keys masked; causal leaves block row 3 nothing */
        const uint8_t map[16] = {1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0};
        ds_sparse_layout *l;
        problem p;
        answer a;
        CHECK(!ds_sparse_layout_from_map(map, 1, 1, 32, 8, NULL, &l, NULL));
        fill(&p, l, 1, 32, 8, 2);
        p.causal = true;
        p.mask = (float *)calloc(32 * 32, sizeof(float));
        for (size_t j = 0; j < 32; j++) p.mask[20 * 32 + j] = -INFINITY;
        reference(&p);
        CHECK(solve(&p, plain(), &a));
        compare(&p, &a);
        for (size_t i = 0; i < 32; i++) {
            const bool none = i / 8 == 1 || i / 8 == 3 || i == 20;
            CHECK_EQ(a.lse[2 * i] == -INFINITY, none);
            if (none) CHECK(a.lse[2 * i + 1] == 0);
            for (size_t e = 0; e < 8 && none; e++) {
                CHECK(a.out[i * 8 + e] == 0);
                CHECK(a.d_q[i * 8 + e] == 0);
            }
            /* keys that nobody sees: block 3 */
            for (size_t e = 0; e < 8 && i / 8 == 3; e++) CHECK(a.d_k[i * 8 + e] == 0 && a.d_v[i * 8 + e] == 0);
        }
        drop(&a), done(&p);
        ds_sparse_layout_destroy(l);
    }
    TEST(finite_masks_over_whole_rows) {
        /* scores whose sum with the mask fp32 holds, so that the reference needs no rounding: integers at -2^23 (where an
           fp32 log-sum-exp would keep no digit of the sum), multiples of 64 at -1e9, zeros at the lowest number. Rows r % 3 == 0 are masked whole,
           r % 3 == 1 on every other key, which then count nothing. */
        static const float masks[3] = {-8388608.0f, -1e9f, -FLT_MAX}, units[3] = {1, 64, 0};
        for (int i = 0; i < 6; i++) {
            enum { H = 2, S = 70, D = 8 };
            const float mask = masks[i / 2], unit = units[i / 2];
            ds_sparse_layout *l = layout_of(i & 1 ? "dense" : "bigbird", H, 16, S, false);
            uint64_t state = 3;
            problem p;
            fill(&p, l, 1, S, D, 4);
            p.scale = 1;
            for (size_t e = 0; e < H * S * D; e++) {
                p.q[e] = unit * (float)((int)(test_random(&state) % 3) - 1);
                p.k[e] = (float)((int)(test_random(&state) % 3) - 1);
            }
            p.mask = (float *)calloc(S * S, sizeof(float));
            for (size_t e = 0; e < S * S; e++)
                if (e / S % 3 == 0 || (e / S % 3 == 1 && e % 2)) p.mask[e] = mask;
            against_reference(&p, plain());
            ds_sparse_layout_destroy(l);
        }
    }
    TEST(not_a_number_shows) {
        ds_sparse_layout *l = layout_of("dense", 1, 16, 32, false);
        problem p;
        answer a;
        fill(&p, l, 1, 32, 8, 2);
        p.q[5 * 8] = NAN;
        CHECK(solve(&p, plain(), &a));
        for (size_t i = 0; i < 32 * 8; i++) {
            CHECK_EQ(a.out[i] != a.out[i], i / 8 == 5);
            CHECK_EQ(a.d_q[i] != a.d_q[i], i / 8 == 5);
            CHECK(a.d_k[i] != a.d_k[i] && a.d_v[i] != a.d_v[i]); /* of each key, as query 5 saw it */
        }
        for (size_t i = 0; i < 32; i++)
            CHECK_EQ(a.lse[2 * i] + a.lse[2 * i + 1] != a.lse[2 * i] + a.lse[2 * i + 1], i == 5);
        drop(&a), done(&p);
        ds_sparse_layout_destroy(l);
    }
}

/* ---- the same bits ---- */

static bool same_bits(const answer *a, const answer *b) {
    return !memcmp(a->out, b->out, a->n * 4) && !memcmp(a->lse, b->lse, a->rows * 8) &&
           !memcmp(a->d_q, b->d_q, a->n * 4) && !memcmp(a->d_k, b->d_k, a->n * 4) &&
           !memcmp(a->d_v, b->d_v, a->n * 4) && !memcmp(a->d_relative, b->d_relative, a->relatives * 4);
}
/* A job system that runs ranges backwards, in pieces of its own. */
static void backwards(void *ctx, size_t count, size_t grain,
                      void (*body)(void *arg, size_t begin, size_t end, unsigned worker), void *arg) {
    size_t *calls = (size_t *)ctx, step = 3 * grain;
    for (size_t piece = (count + step - 1) / step; piece-- > 0;)
        body(arg, piece * step, piece * step + step < count ? piece * step + step : count, (unsigned)(piece % 5));
    ++*calls;
}
static void in_line(void *ctx, size_t count, size_t grain,
                    void (*body)(void *arg, size_t begin, size_t end, unsigned worker), void *arg) {
    (void)ctx, (void)grain;
    body(arg, 0, count, 0);
}
/* The same bits from every SIMD level, any number of threads and job systems that cut the work in other ways. */
static void check_bits(const problem *p, int variant) {
    answer first, other;
    size_t calls = 0;
    ds_sparse_desc desc = plain();
    CHECK(solve(p, plain(), &first));
    for (int level = DS_SPARSE_LEVEL_SCALAR; level <= DS_SPARSE_LEVEL_AVX512; level++) {
        if (!dsi_sparse_kernels_of((ds_sparse_level)level)) continue;
        desc.level = (ds_sparse_level)level;
        CHECK(solve(p, desc, &other));
        test_check(same_bits(&first, &other), __FILE__, __LINE__, "variant %d: level %d gives other bits", variant,
                   level);
        drop(&other);
    }
    desc = plain();
    for (desc.threads = 2; desc.threads <= 7; desc.threads++) { /* 9 units: whole turns, and a last one that is not */
        CHECK(solve(p, desc, &other));
        test_check(same_bits(&first, &other), __FILE__, __LINE__, "variant %d: %u threads give other bits", variant,
                   desc.threads);
        drop(&other);
    }
    desc.tasks.parallel_for = backwards, desc.tasks.ctx = &calls, desc.tasks.workers = 5;
    desc.threads = 3; /* ignored */
    CHECK(solve(p, desc, &other));
    CHECK(same_bits(&first, &other));
    CHECK(calls > 0);
    drop(&other);
    desc.tasks.parallel_for = in_line, desc.tasks.workers = 0;
    CHECK(solve(p, desc, &other));
    CHECK(same_bits(&first, &other));
    drop(&other), drop(&first);
}
static void test_bits(void) {
    TEST(levels_and_threads) {
        for (int variant = 0; variant < 16; variant++) {
            const size_t block = (variant & 7) < 3 ? 16 : 40;
            ds_sparse_layout *l = layout_of(variant & 1 ? "fixed" : "bigbird", 3, block, 200, false);
            problem p;
            if (variant & 8) /* read in place: all of it, or all but a last block */
                fill(&p, l, 3, variant & 1 ? 197 : 160, 48, 21);
            else
                fill(&p, l, 3, 197, 37, 21);
            p.causal = variant & 1;
            if (variant & 2) with_masks(&p, variant & 1, 3);
            if (variant & 4) with_relative(&p, 30, 4);
            check_bits(&p, variant);
            done(&p);
            ds_sparse_layout_destroy(l);
        }
    }
    TEST(levels_and_threads_in_windows) { /* blocks used once or a few times, rows and columns that see nothing */
        for (int variant = 0; variant < 8; variant++) {
            ds_sparse_layout *l = variant < 2 ? layout_of("local_sliding_window", 3, variant ? 8 : 16, 160, false)
                                              : random_layout(3, variant & 1 ? 8 : 32, 160, variant < 5 ? 10 : 25, 9);
            problem p;
            fill(&p, l, 3, variant == 6 ? 150 : 160, variant & 2 ? 16 : 96, 5);
            p.causal = variant == 7;
            check_bits(&p, variant);
            reference(&p);
            {
                answer a;
                if (solve(&p, plain(), &a)) compare(&p, &a);
                drop(&a);
            }
            done(&p);
            ds_sparse_layout_destroy(l);
        }
    }
    TEST(
        in_place_or_packed) { /* a head_dim that is padded has the bits of one that brings its zeros and is not packed */
        enum { D = 37, WIDE = 48 };
        for (unsigned threads = 1; threads <= 4; threads += 3) /* 3 units: whole ones, or rows and columns */
            for (int variant = 0; variant < 4; variant++) {
                ds_sparse_layout *l = random_layout(3, variant & 1 ? 16 : 40, 160, 40, (uint64_t)variant);
                ds_sparse_desc desc = plain();
                problem narrow, wide;
                answer packed, in_place;
                fill(&narrow, l, 1, 160, D, 7), fill(&wide, l, 1, 160, WIDE, 7);
                for (size_t r = 0; r < 3 * 160; r++)
                    for (size_t e = 0; e < WIDE; e++) {
                        const bool there = e < D;
                        wide.q[r * WIDE + e] = there ? narrow.q[r * D + e] : 0;
                        wide.k[r * WIDE + e] = there ? narrow.k[r * D + e] : 0;
                        wide.v[r * WIDE + e] = there ? narrow.v[r * D + e] : 0;
                        wide.d_out[r * WIDE + e] = there ? narrow.d_out[r * D + e] : 0;
                    }
                wide.scale = narrow.scale, wide.causal = narrow.causal = variant & 2;
                desc.threads = threads;
                CHECK(solve(&narrow, desc, &packed) && solve(&wide, desc, &in_place));
                CHECK(!memcmp(packed.lse, in_place.lse, packed.rows * 8));
                for (size_t r = 0; r < packed.rows; r++) {
                    CHECK(!memcmp(packed.out + r * D, in_place.out + r * WIDE, D * 4));
                    CHECK(!memcmp(packed.d_q + r * D, in_place.d_q + r * WIDE, D * 4));
                    CHECK(!memcmp(packed.d_k + r * D, in_place.d_k + r * WIDE, D * 4));
                    CHECK(!memcmp(packed.d_v + r * D, in_place.d_v + r * WIDE, D * 4));
                }
                drop(&packed), drop(&in_place), done(&narrow), done(&wide);
                ds_sparse_layout_destroy(l);
            }
    }
    TEST(batch_items_stand_alone) {
        ds_sparse_layout *l = layout_of("variable", 2, 16, 100, false);
        problem p, one;
        answer all, alone;
        fill(&p, l, 3, 100, 12, 2);
        CHECK(solve(&p, plain(), &all));
        fill(&one, l, 1, 100, 12, 2);
        for (size_t i = 0; i < 2 * 100 * 12; i++) {
            size_t from = 2 * 2 * 100 * 12 + i;
            one.q[i] = p.q[from], one.k[i] = p.k[from], one.v[i] = p.v[from], one.d_out[i] = p.d_out[from];
        }
        CHECK(solve(&one, plain(), &alone));
        CHECK(!memcmp(alone.out, all.out + 2 * alone.n, alone.n * 4));
        CHECK(!memcmp(alone.d_k, all.d_k + 2 * alone.n, alone.n * 4));
        drop(&all), drop(&alone), done(&p), done(&one);
        ds_sparse_layout_destroy(l);
    }
    TEST(strides) { /* a fused (token, 3, head, dim) buffer gives what separate ones give, and gaps are left alone */
        enum { H = 2, S = 40, D = 10, N = H * S * D };
        ds_sparse_layout *l = layout_of("bslongformer", H, 8, S, false);
        ds_sparse_desc desc = plain();
        ds_sparse_io io;
        ds_sparse *s;
        problem p;
        answer a;
        float *qkv = (float *)calloc(3 * N, 4), *d_qkv = (float *)calloc(3 * N, 4), *out = (float *)calloc(N, 4);
        float *d_out = (float *)calloc(N, 4), lse[2 * H * S];
        fill(&p, l, 1, S, D, 3);
        CHECK(solve(&p, desc, &a));
        for (size_t h = 0; h < H; h++)
            for (size_t i = 0; i < S; i++)
                for (size_t e = 0; e < D; e++) {
                    size_t from = (h * S + i) * D + e, to = (i * H + h) * D + e;
                    qkv[i * 3 * H * D + h * D + e] = p.q[from];
                    qkv[i * 3 * H * D + (H + h) * D + e] = p.k[from];
                    qkv[i * 3 * H * D + (2 * H + h) * D + e] = p.v[from];
                    d_out[to] = p.d_out[from];
                }
        memset(&io, 0, sizeof io);
        desc.layout = l, desc.head_dim = D;
        CHECK(!ds_sparse_create(&desc, &s, NULL)); /* scale 0: 1 / sqrt(D) */
        io.strides.row = 3 * H * D, io.strides.head = D, io.o_strides.row = H * D, io.o_strides.head = D;
        io.q = qkv, io.k = qkv + H * D, io.v = qkv + 2 * H * D, io.out = out, io.lse = lse, io.d_out = d_out;
        io.d_q = d_qkv, io.d_k = d_qkv + H * D, io.d_v = d_qkv + 2 * H * D;
        CHECK(!ds_sparse_forward(s, &io) && !ds_sparse_backward(s, &io));
        for (size_t h = 0; h < H; h++)
            for (size_t i = 0; i < S; i++)
                for (size_t e = 0; e < D; e++) {
                    size_t from = (h * S + i) * D + e;
                    CHECK(out[(i * H + h) * D + e] == a.out[from]);
                    CHECK(d_qkv[i * 3 * H * D + h * D + e] == a.d_q[from]);
                    CHECK(d_qkv[i * 3 * H * D + (H + h) * D + e] == a.d_k[from]);
                    CHECK(d_qkv[i * 3 * H * D + (2 * H + h) * D + e] == a.d_v[from]);
                }
        ds_sparse_destroy(s);
        free(qkv), free(d_qkv), free(out), free(d_out);
        drop(&a), done(&p);
        ds_sparse_layout_destroy(l);
    }
    TEST(shorter_than_the_layout) { /* a layout for 64 tokens with 50 of them: as 64 whose last 14 keys are masked */
        ds_sparse_layout *l = layout_of("fixed", 1, 16, 64, false);
        ds_sparse_desc desc = plain();
        ds_sparse_io io;
        ds_sparse *s;
        problem p;
        answer a;
        float out[64 * 8], lse[2 * 64], key_mask[64];
        fill(&p, l, 1, 50, 8, 1);
        CHECK(solve(&p, desc, &a));
        memset(&io, 0, sizeof io);
        p.q = (float *)realloc(p.q, sizeof out), p.k = (float *)realloc(p.k, sizeof out);
        p.v = (float *)realloc(p.v, sizeof out);
        for (size_t i = 50 * 8; i < 64 * 8; i++) p.q[i] = p.k[i] = p.v[i] = 1;
        for (size_t i = 0; i < 64; i++) key_mask[i] = i < 50;
        desc.layout = l, desc.head_dim = 8, desc.forward_only = true;
        CHECK(!ds_sparse_create(&desc, &s, NULL));
        io.q = p.q, io.k = p.k, io.v = p.v, io.out = out, io.lse = lse;
        io.key_mask = key_mask, io.key_mask_mode = DS_SPARSE_MUL;
        CHECK(!ds_sparse_forward(s, &io));
        CHECK(!memcmp(out, a.out, 50 * 8 * 4) && !memcmp(lse, a.lse, 50 * 8));
        CHECK_EQ(ds_sparse_backward(s, &io), DS_ERR_STATE);
        CHECK_HAS(ds_sparse_error(s)->message, "forward_only");
        ds_sparse_destroy(s);
        drop(&a), done(&p);
        ds_sparse_layout_destroy(l);
    }
}

/* ---- the object ---- */

static void count_log(void *ctx, const char *header, int level, int id, const char *message) {
    CHECK_STR(header, "ds_sparse");
    CHECK_EQ(level, DS_LOG_DEBUG);
    CHECK_HAS(message, "SIMD level: ");
    *(int *)ctx += id;
}
static float exponential(float x) { /* as backward has it; levels are compared elsewhere */
    const float none[2] = {0, 0};
    float probability[1] = {x}, gradient[1] = {0};
    dsi_sparse_x1.gradients(probability, gradient, none, 0, 1);
    return probability[0];
}
static void test_object(void) {
    ds_error error;
    TEST(exponential) {
        double worst = 0;
        for (double x = -87; x <= 88; x += 1.0 / 1024 / 3) {
            float in = (float)x;
            double want = exp((double)in), ulp = ldexp(1, ilogb(want) - 23);
            double off = fabs((double)exponential(in) - want) / ulp;
            if (off > worst) worst = off;
        }
        test_check(worst < 2, __FILE__, __LINE__, "exp is off by %g ulp", worst);
        CHECK(exponential(0) == 1);
        CHECK(exponential(-87.5f) == 0 && exponential(-INFINITY) == 0);
        CHECK(exponential(NAN) != exponential(NAN));
        CHECK(exponential(1000) == exponential(88));
    }
    TEST(refused_descriptors) {
        ds_sparse_layout *l = layout_of("dense", 1, 16, 32, false);
        ds_sparse_desc desc = plain();
        ds_sparse *s = (ds_sparse *)(void *)&error;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_ARGUMENT);
        CHECK(s == NULL);
        CHECK_HAS(error.message, "layout is NULL");
        desc.layout = l;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_ARGUMENT);
        CHECK_HAS(error.message, "head_dim must be 1 to 4096; got 0");
        desc.head_dim = 4097;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_ARGUMENT);
        desc.head_dim = 8, desc.scale = INFINITY;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_ARGUMENT);
        desc.scale = 0, desc.threads = 5000;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_ARGUMENT);
        desc.threads = 0, desc.relative_reach = SIZE_MAX / 2;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_ARGUMENT);
        desc.relative_reach = 0, desc.level = (ds_sparse_level)9;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_UNSUPPORTED);
        desc.level = DS_SPARSE_LEVEL_BEST;
        CHECK_EQ(ds_sparse_create_(&desc, &s, &error, DS_SPARSE_VERSION + 100, sizeof desc), DS_ERR_VERSION);
        CHECK_EQ(ds_sparse_create_(&desc, &s, &error, DS_SPARSE_VERSION, sizeof desc + 8), DS_ERR_VERSION);
#if defined(__SSE__)
        {
            unsigned before = _mm_getcsr();
            _mm_setcsr(before | 0x8040);
            CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_UNSUPPORTED);
            _mm_setcsr(before);
            CHECK_HAS(error.message, "denormals");
        }
#endif
        ds_sparse_destroy(NULL);
        ds_sparse_layout_destroy(l);
    }
    TEST(refused_calls) {
        ds_sparse_layout *l = layout_of("dense", 1, 16, 32, false);
        ds_sparse_desc desc = plain();
        ds_sparse_io io, wrong;
        ds_sparse *s;
        float x[9][32 * 4], lse[64], table[9];
        memset(x, 0, sizeof x), memset(table, 0, sizeof table), memset(&io, 0, sizeof io);
        desc.layout = l, desc.head_dim = 4;
        CHECK(!ds_sparse_create(&desc, &s, NULL));
        io.q = x[0], io.k = x[1], io.v = x[2], io.out = x[3], io.lse = lse;
        io.d_out = x[4], io.d_q = x[5], io.d_k = x[6], io.d_v = x[7];
#define REFUSED(change, text)                                                                                          \
    wrong = io, wrong.change, CHECK_EQ(ds_sparse_backward(s, &wrong), DS_ERR_ARGUMENT),                                \
    CHECK_HAS(ds_sparse_error(s)->message, text)
        REFUSED(q = NULL, "ds_sparse_backward: q is NULL");
        REFUSED(k = NULL, "k is NULL");
        REFUSED(v = NULL, "v is NULL");
        REFUSED(out = NULL, "out is NULL");
        REFUSED(lse = NULL, "lse is NULL");
        REFUSED(d_out = NULL, "d_out is NULL");
        REFUSED(d_q = NULL, "d_q is NULL");
        REFUSED(d_k = NULL, "d_k is NULL");
        REFUSED(d_v = NULL, "d_v is NULL");
        REFUSED(d_relative = table, "relative is NULL");
        REFUSED(dtype = DS_F64, "dtype must be");
        REFUSED(seq_len = 33, "seq_len must be at most the layout's 32; got 33");
        REFUSED(strides.row = 3, "at least head_dim 4; got 3 and 4");
        REFUSED(o_strides.head = 3, "at least head_dim 4; got 4 and 0");
        REFUSED(strides.batch = 9, "got 0 and 4");
        io.relative = table, io.relative_reach = 4;
        REFUSED(d_relative = table, "relative_reach must be at most the descriptor's 0");
        io.relative = NULL, io.lse = NULL;
        CHECK(!ds_sparse_forward(s, &io)); /* lse is not asked for, and nothing is changed by the refusals */
        io.q = NULL;
        CHECK_EQ(ds_sparse_forward(s, &io), DS_ERR_ARGUMENT);
        CHECK_HAS(ds_sparse_error(s)->message, "ds_sparse_forward: q");
        ds_sparse_destroy(s);
        ds_sparse_layout_destroy(l);
    }
    TEST(memory) {
        test_memory m;
        ds_sparse_params params;
        ds_sparse_layout *l = NULL;
        ds_sparse_desc desc = plain();
        ds_sparse *s = NULL;
        ds_sparse_io io;
        int logged = 0;
        float *x = (float *)calloc(16 * 320 * 8, sizeof(float));
        size_t calls;
        memset(&m, 0, sizeof m), memset(&io, 0, sizeof io);
        desc.allocator.alloc = test_alloc, desc.allocator.release = test_release, desc.allocator.ctx = &m;
        desc.logger.log = count_log, desc.logger.ctx = &logged;
        desc.head_dim = 8, desc.threads = 2, desc.relative_reach = 3;
        ds_sparse_params_default("bigbird", &params, NULL);
        params.heads = 2;
        for (m.fail_at = 1;; m.fail_at++) { /* every allocation fails once */
            ds_status status;
            m.calls = 0;
            status = ds_sparse_layout_create(&params, 320, &desc.allocator, &l, &error);
            desc.layout = l;
            if (!status) status = ds_sparse_create(&desc, &s, &error);
            if (!status) break;
            CHECK_EQ(status, DS_ERR_MEMORY);
            CHECK_HAS(error.message, "ds_sparse: ");
            CHECK(s == NULL);
            ds_sparse_layout_destroy(l);
            CHECK_EQ(m.live, 0);
        }
        CHECK_EQ(m.fail_at, 7);
        CHECK_EQ(logged, 1);
        CHECK_EQ(ds_sparse_memory(s) + l->bytes, m.live);
        CHECK_EQ(ds_sparse_simd_level(s), dsi_sparse_kernels_of(DS_SPARSE_LEVEL_BEST)->level);
        CHECK_NEAR(ds_sparse_flops(s, 3, 0, false), 4.0 * 8 * 256 * 3 * (double)l->info.kept, 0);
        CHECK_NEAR(ds_sparse_flops(s, 0, 16, true), 10.0 * 8 * 256 * 2, 0);
        CHECK_NEAR(ds_sparse_flops(s, 1, 999, false), ds_sparse_flops(s, 1, 0, false),
                   0); /* no longer than the layout */
        calls = m.calls;
        io.batch = 2, io.q = x, io.k = x + 10240, io.v = x, io.out = x + 20480, io.lse = x + 30720;
        CHECK(!ds_sparse_forward(s, &io));
        CHECK_EQ(m.calls, calls); /* calls allocate nothing */
        ds_sparse_destroy(s);
        ds_sparse_layout_destroy(l);
        CHECK_EQ(m.live, 0);
        CHECK_EQ(m.mismatches, 0);
        free(x);
    }
    TEST(memory_grows_with_kept_blocks) {
        ds_sparse_layout *small = layout_of("local_sliding_window", 1, 64, 8192, true);
        ds_sparse_layout *large = layout_of("local_sliding_window", 1, 64, 81920, true);
        ds_sparse_desc desc = plain();
        ds_sparse *a, *b;
        desc.head_dim = 64, desc.layout = small;
        CHECK(!ds_sparse_create(&desc, &a, NULL));
        desc.layout = large;
        CHECK(!ds_sparse_create(&desc, &b, NULL));
        /* ten times the tokens, ten times the memory, and below the scores of one head of the shorter sequence */
        CHECK(ds_sparse_memory(b) + large->bytes <= 10 * (ds_sparse_memory(a) + small->bytes));
        CHECK(ds_sparse_memory(b) + large->bytes < (size_t)4 * 8192 * 8192);
        ds_sparse_destroy(a), ds_sparse_destroy(b);
        ds_sparse_layout_destroy(small), ds_sparse_layout_destroy(large);
    }
    TEST(too_large) {
        const uint8_t map[1] = {1};
        ds_sparse_layout *l;
        ds_sparse_desc desc = plain();
        ds_sparse *s;
        CHECK(!ds_sparse_layout_from_map(map, 1, 1, 8, 8, NULL, &l, NULL));
        l->info.blocks = SIZE_MAX / 8; /* no such layout can be made on this machine */
        desc.layout = l, desc.head_dim = 64;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_MEMORY);
        ds_sparse_layout_destroy(l);
    }
}

/* ---- the seam for a GPU: a device in host memory whose calls fail in turn, and kernels that only remember ---- */

typedef struct fake_device {
    int calls, fail_at;
    size_t live;
    const ds_sparse_grid *grid;
    const ds_sparse_io *io;
    void *stream;
    bool back;
} fake_device;
static ds_status fake_step(fake_device *f) {
    return ++f->calls == f->fail_at ? DS_ERR_DEVICE : DS_OK;
}
static ds_status fake_alloc(void *ctx, size_t bytes, void **memory) {
    fake_device *f = (fake_device *)ctx;
    *memory = NULL;
    if (fake_step(f)) return DS_ERR_DEVICE;
    *memory = malloc(bytes);
    f->live += bytes;
    return DS_OK;
}
static void fake_release(void *ctx, void *memory, size_t bytes) {
    ((fake_device *)ctx)->live -= bytes;
    free(memory);
}
static ds_status fake_copy(void *ctx, void *to, const void *from, size_t bytes, void *stream) {
    (void)stream;
    if (fake_step((fake_device *)ctx)) return DS_ERR_DEVICE;
    memcpy(to, from, bytes);
    return DS_OK;
}
static ds_status fake_synchronize(void *ctx, void *stream) {
    (void)stream;
    return fake_step((fake_device *)ctx);
}
static const char *fake_describe(void *ctx) {
    (void)ctx;
    return "the fake broke";
}
static ds_status fake_kernel(fake_device *f, const ds_sparse_grid *grid, const ds_sparse_io *io, void *stream,
                             bool back) {
    f->grid = grid, f->io = io, f->stream = stream, f->back = back;
    return fake_step(f);
}
static ds_status fake_forward(void *ctx, const ds_sparse_grid *grid, const ds_sparse_io *io, void *stream) {
    return fake_kernel((fake_device *)ctx, grid, io, stream, false);
}
static ds_status fake_backward(void *ctx, const ds_sparse_grid *grid, const ds_sparse_io *io, void *stream) {
    return fake_kernel((fake_device *)ctx, grid, io, stream, true);
}
static void test_device(void) {
    TEST(device_seam) {
        fake_device f;
        ds_device device;
        ds_sparse_kernels kernels;
        ds_sparse_layout *l = layout_of("bigbird", 2, 16, 160, false), *odd = layout_of("dense", 1, 8, 32, false);
        ds_sparse_desc desc = plain();
        ds_sparse_io io;
        ds_sparse *s;
        ds_error error;
        float x[1] = {0};
        const size_t rows = 2 * 10 + 1;
        memset(&f, 0, sizeof f), memset(&device, 0, sizeof device), memset(&kernels, 0, sizeof kernels);
        memset(&io, 0, sizeof io);
        device.ctx = kernels.ctx = &f;
        device.alloc = fake_alloc, device.release = fake_release, device.copy = fake_copy;
        device.synchronize = fake_synchronize, device.describe = fake_describe;
        kernels.forward = fake_forward, kernels.backward = fake_backward;
        desc.layout = l, desc.head_dim = 8, desc.causal = true, desc.kernels = &kernels, desc.relative_reach = 1;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_ARGUMENT);
        CHECK_HAS(error.message, "kernels need desc.device");
        desc.device = &device, desc.head_dim = 129;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_UNSUPPORTED);
        CHECK_HAS(error.message, "got 16 and 129");
        desc.layout = odd, desc.head_dim = 8;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_UNSUPPORTED);
        desc.layout = l;
        for (f.fail_at = 1;; f.fail_at++) { /* each call to the device fails once */
            f.calls = 0;
            if (!ds_sparse_create(&desc, &s, &error)) break;
            CHECK_EQ(error.status, DS_ERR_DEVICE);
            CHECK_HAS(error.message, "the fake broke");
            CHECK(s == NULL);
            CHECK_EQ(f.live, 0);
        }
        CHECK_EQ(f.fail_at, 7); /* one allocation, four lists, one wait */
        f.fail_at = 0;
        io.q = io.k = io.v = io.lse = io.out = x, io.d_out = io.d_q = io.d_k = io.d_v = x;
        CHECK(!ds_sparse_forward_on(s, &io, x));
        CHECK(f.io == &io && f.stream == x && !f.back);
        CHECK(!memcmp(f.grid->row_start, l->row_start, rows * sizeof(size_t)));
        CHECK(!memcmp(f.grid->column_start, l->column_start, rows * sizeof(size_t)));
        CHECK(!memcmp(f.grid->columns, l->columns, l->row_start[rows - 1] * sizeof(uint32_t)));
        CHECK(!memcmp(f.grid->rows, l->rows, l->row_start[rows - 1] * sizeof(uint32_t)));
        CHECK(f.grid->causal && f.grid->heads == 2 && f.grid->patterns == 2 && f.grid->blocks == 10);
        CHECK(!ds_sparse_backward(s, &io));
        CHECK(f.back && f.stream == NULL);
        io.relative = x, io.d_relative = x;
        CHECK(!ds_sparse_forward(s, &io)); /* which does not look at d_relative */
        CHECK_EQ(ds_sparse_backward(s, &io), DS_ERR_UNSUPPORTED);
        CHECK_HAS(ds_sparse_error(s)->message, "d_relative");
        f.calls = 0, f.fail_at = 1, io.d_relative = NULL;
        CHECK_EQ(ds_sparse_forward(s, &io), DS_ERR_DEVICE);
        CHECK_HAS(ds_sparse_error(s)->message, "kernel failed: the fake broke");
        CHECK(!ds_sparse_forward(s, &io)); /* and the next call goes well */
        ds_sparse_destroy(s);
        CHECK_EQ(f.live, 0);
        ds_sparse_layout_destroy(l), ds_sparse_layout_destroy(odd);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    test_golden();
    test_layouts();
    test_svg();
    test_modes();
    test_shapes();
    test_gradients();
    test_bits();
    test_object();
    test_device();
    return test_end();
}
