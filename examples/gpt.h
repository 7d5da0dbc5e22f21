/* gpt.h - a GPT-2 style decoder in plain C: forward and backward, block by block, for train_gpt.c

   Pre-layer-norm, learned positions, GELU (tanh form), causal attention, output head tied to the token embedding; the
   same network as Hugging Face's "gpt2", with its tensor names and its [in, out] weights. All arithmetic is fp32. The
   functions take weights as plain pointers, so that a trainer may bring them one block at a time.

   Shapes: B sequences, T tokens, C channels, H heads, V vocabulary. Matrix products go through cblas where
   EXAMPLE_USE_CBLAS is 1, else through a small blocked kernel. Where EXAMPLE_GPU is 1 all memory is a GPU's and gpt_gpu.cu
   has the operations; the network below them is the same text. */
#ifndef GPT_H
#define GPT_H
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef EXAMPLE_USE_CBLAS
#define EXAMPLE_USE_CBLAS 0
#endif
#ifndef EXAMPLE_GPU
#define EXAMPLE_GPU 0
#endif
#if EXAMPLE_USE_CBLAS
#include <cblas.h>
void openblas_set_num_threads(int threads);
char *openblas_get_corename(void);
#endif

enum { GPT_BLOCK_TENSORS = 12 };

typedef struct gpt_shape {
    size_t vocab, context, layers, heads, channels;
} gpt_shape;

typedef struct gpt_tensor {
    char name[64];
    size_t shape[2];
    int dims;
    float deviation; /* of the normal initial values; 0: all `value` */
    float value;
} gpt_tensor;

/* Activations of one block that its backward needs. */
typedef struct gpt_block {
    float *ln1, *mean1, *scale1; /* (B,T,C) (B,T) (B,T): scale is 1 / standard deviation */
    float *qkv;                  /* (B,T,3C) */
    float *weights;              /* (B,H,T,T) after softmax; with a mixer (B,H,T,2), its own */
    float *mixed;                /* (B,T,C) attention's output before its projection */
    float *middle;               /* (B,T,C) after the first residual */
    float *ln2, *mean2, *scale2;
    float *wide, *active; /* (B,T,4C) before and after GELU */
    float *out;           /* (B,T,C) after the second residual */
} gpt_block;

/* Another attention in the place of the dense one: from a->qkv to a->mixed, with a->weights to remember what it likes;
   and from the gradient of mixed to g->d_qkv. */
struct gpt;
typedef struct gpt_mixer {
    void (*forward)(void *ctx, const struct gpt *g, const gpt_block *a);
    void (*backward)(void *ctx, const struct gpt *g, const gpt_block *a, const float *d_mixed);
    void *ctx;
} gpt_mixer;

typedef struct gpt {
    gpt_shape shape;
    const gpt_mixer *mixer; /* NULL: dense attention */
    size_t batch, time;     /* of the present pass: at most those of gpt_create */
    float *memory;          /* all activations */
    size_t memory_floats;
    float *embedded;                   /* (B,T,C) */
    gpt_block *blocks;                 /* (layers) */
    float *ln, *mean, *scale, *logits; /* logits (B,T,V); after the loss their gradient */
    float *d, *d2;                     /* (B,T,C) gradient on its way down, and scratch */
    float *d_wide, *d_qkv, *d_weights; /* (B,T,4C) (B,T,3C) (H,T,T) */
} gpt;

static size_t gpt_tensor_count(const gpt_shape *s) {
    return 2 + GPT_BLOCK_TENSORS * s->layers + 2;
}

/* Tensor `i` in the model's order: wte, wpe, twelve of each block, ln_f weight and bias. */
static gpt_tensor gpt_tensor_at(const gpt_shape *s, size_t i) {
    static const struct {
        const char *name;
        unsigned char rows, cols; /* in channels; rows 0: a vector */
        float deviation, value;
    } block[GPT_BLOCK_TENSORS] = {
        {"ln_1.weight", 0, 1, 0.0f, 1.0f},          {"ln_1.bias", 0, 1, 0.0f, 0.0f},
        {"attn.c_attn.weight", 1, 3, 0.02f, 0.0f},  {"attn.c_attn.bias", 0, 3, 0.0f, 0.0f},
        {"attn.c_proj.weight", 1, 1, -0.02f, 0.0f}, {"attn.c_proj.bias", 0, 1, 0.0f, 0.0f},
        {"ln_2.weight", 0, 1, 0.0f, 1.0f},          {"ln_2.bias", 0, 1, 0.0f, 0.0f},
        {"mlp.c_fc.weight", 1, 4, 0.02f, 0.0f},     {"mlp.c_fc.bias", 0, 4, 0.0f, 0.0f},
        {"mlp.c_proj.weight", 4, 1, -0.02f, 0.0f},  {"mlp.c_proj.bias", 0, 1, 0.0f, 0.0f},
    };
    gpt_tensor t;
    size_t c = s->channels, last = gpt_tensor_count(s) - 2;
    memset(&t, 0, sizeof t);
    t.dims = 1;
    if (i < 2) {
        snprintf(t.name, sizeof t.name, i == 0 ? "wte.weight" : "wpe.weight");
        t.dims = 2;
        t.shape[0] = i == 0 ? s->vocab : s->context;
        t.shape[1] = c;
        t.deviation = i == 0 ? 0.02f : 0.01f;
    } else if (i >= last) {
        snprintf(t.name, sizeof t.name, i == last ? "ln_f.weight" : "ln_f.bias");
        t.shape[0] = c;
        t.value = i == last ? 1.0f : 0.0f;
    } else {
        size_t k = (i - 2) % GPT_BLOCK_TENSORS;
        snprintf(t.name, sizeof t.name, "h.%zu.%s", (i - 2) / GPT_BLOCK_TENSORS, block[k].name);
        t.dims = block[k].rows ? 2 : 1;
        t.shape[0] = c * (block[k].rows ? block[k].rows : block[k].cols);
        if (t.dims == 2) t.shape[1] = c * block[k].cols;
        t.deviation = block[k].deviation;
        t.value = block[k].value;
        /* projections into the residual stream start smaller, so that its variance does not grow with depth */
        if (t.deviation < 0) t.deviation = -t.deviation / sqrtf(2.0f * (float)s->layers);
    }
    return t;
}

static size_t gpt_tensor_numel(const gpt_tensor *t) {
    return t->shape[0] * (t->dims == 2 ? t->shape[1] : 1);
}

static inline size_t gpt_parameters(const gpt_shape *s) {
    size_t sum = 0;
    for (size_t i = 0; i < gpt_tensor_count(s); i++) {
        gpt_tensor t = gpt_tensor_at(s, i);
        sum += gpt_tensor_numel(&t);
    }
    return sum;
}

/* Initial value of one element, from its place alone: any rank may compute any part. Box and Muller's normal deviate. */
static inline float gpt_initial(const gpt_tensor *t, uint64_t seed, size_t tensor, size_t element) {
    uint64_t bits[2];
    if (t->deviation == 0.0f) return t->value;
    for (int k = 0; k < 2; k++) {
        uint64_t x = seed + 0x9E3779B97F4A7C15u * (tensor * 0x100000001B3u + element * 2 + (uint64_t)k + 1);
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        bits[k] = x ^ (x >> 31);
    }
    return t->deviation * (float)(sqrt(-2.0 * log(((double)(bits[0] >> 11) + 1.0) * 0x1p-53)) *
                                  cos(6.283185307179586 * (double)(bits[1] >> 11) * 0x1p-53));
}

/*---- operations -----------------------------------------------------------------------------------------------*/

#if EXAMPLE_GPU
#include "gpt_gpu.h"
#else
static void *gpt_alloc(size_t bytes) {
    return calloc(bytes ? bytes : 1, 1);
}
static void gpt_free(void *memory) {
    free(memory);
}
static inline void gpt_read(void *host, const void *from, size_t bytes) {
    memcpy(host, from, bytes);
}
static void gpt_zero(float *x, size_t n) {
    memset(x, 0, n * sizeof *x);
}
static void gpt_add(float *to, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] += x[i];
}

/* c (m,n) = a (m,k) b (k,n) + beta c, row-major; a and b may be given transposed. */
static void gpt_matmul(bool a_t, bool b_t, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                       const float *b, size_t ldb, float beta, float *c, size_t ldc) {
#if EXAMPLE_USE_CBLAS
    cblas_sgemm(CblasRowMajor, a_t ? CblasTrans : CblasNoTrans, b_t ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k,
                alpha, a, (int)lda, b, (int)ldb, beta, c, (int)ldc);
#else
    enum { BLOCK = 64 };
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) c[i * ldc + j] = beta == 0.0f ? 0.0f : c[i * ldc + j] * beta;
    for (size_t p0 = 0; p0 < k; p0 += BLOCK)
        for (size_t j0 = 0; j0 < n; j0 += BLOCK) {
            float part[BLOCK * BLOCK]; /* of b, rows in the order of the sum */
            size_t pn = k - p0 < BLOCK ? k - p0 : (size_t)BLOCK, jn = n - j0 < BLOCK ? n - j0 : (size_t)BLOCK;
            for (size_t p = 0; p < pn; p++)
                for (size_t j = 0; j < jn; j++)
                    part[p * BLOCK + j] = b_t ? b[(j0 + j) * ldb + p0 + p] : b[(p0 + p) * ldb + j0 + j];
            for (size_t i = 0; i < m; i++)
                for (size_t p = 0; p < pn; p++) {
                    float x = alpha * (a_t ? a[(p0 + p) * lda + i] : a[i * lda + p0 + p]);
                    for (size_t j = 0; j < jn; j++) c[i * ldc + j0 + j] += x * part[p * BLOCK + j];
                }
        }
#endif
}

/* `count` products without beta, whose matrices begin `next` floats after one another */
static void gpt_matmuls(size_t count, bool a_t, bool b_t, size_t m, size_t n, size_t k, float alpha, const float *a,
                        size_t lda, size_t next_a, const float *b, size_t ldb, size_t next_b, float *c, size_t ldc,
                        size_t next_c) {
    for (size_t i = 0; i < count; i++)
        gpt_matmul(a_t, b_t, m, n, k, alpha, a + i * next_a, lda, b + i * next_b, ldb, 0.0f, c + i * next_c, ldc);
}

static void gpt_repeat(float *out, const float *row, size_t rows, size_t n) {
    for (size_t i = 0; i < rows; i++) memcpy(out + i * n, row, n * sizeof *out);
}
static void gpt_columns(float *sums, const float *x, size_t rows, size_t n) {
    memset(sums, 0, n * sizeof *sums);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < n; j++) sums[j] += x[i * n + j];
}

static void gpt_norm(float *out, float *mean, float *scale, const float *x, const float *w, const float *b, size_t rows,
                     size_t c) {
    for (size_t i = 0; i < rows; i++, x += c, out += c) {
        float m = 0.0f, v = 0.0f, s;
        for (size_t j = 0; j < c; j++) m += x[j];
        m /= (float)c;
        for (size_t j = 0; j < c; j++) v += (x[j] - m) * (x[j] - m);
        s = 1.0f / sqrtf(v / (float)c + 1e-5f);
        for (size_t j = 0; j < c; j++) out[j] = (x[j] - m) * s * w[j] + b[j];
        mean[i] = m;
        scale[i] = s;
    }
}

/* dx is added to: the residual's gradient is there already. */
static void gpt_norm_back(float *dx, float *dw, float *db, const float *dout, const float *x, const float *w,
                          const float *mean, const float *scale, size_t rows, size_t c) {
    memset(dw, 0, c * sizeof *dw);
    memset(db, 0, c * sizeof *db);
    for (size_t i = 0; i < rows; i++, x += c, dout += c, dx += c) {
        float sum = 0.0f, dot = 0.0f;
        for (size_t j = 0; j < c; j++) {
            float norm = (x[j] - mean[i]) * scale[i], d = w[j] * dout[j];
            sum += d;
            dot += d * norm;
            dw[j] += norm * dout[j];
            db[j] += dout[j];
        }
        sum /= (float)c;
        dot /= (float)c;
        for (size_t j = 0; j < c; j++) dx[j] += (w[j] * dout[j] - sum - (x[j] - mean[i]) * scale[i] * dot) * scale[i];
    }
}

#define GPT_GELU_SCALE 0.7978845608028654f /* sqrt(2 / pi) */

/* By one expf, which the C library has made fast, unlike its tanhf. */
static float gpt_tanh(float x) {
    return 1.0f - 2.0f / (expf(2.0f * x) + 1.0f);
}

static void gpt_gelu(float *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = 0.5f * x[i] * (1.0f + gpt_tanh(GPT_GELU_SCALE * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
}

static void gpt_gelu_back(float *d, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float t = gpt_tanh(GPT_GELU_SCALE * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
        d[i] *=
            0.5f * (1.0f + t) + 0.5f * x[i] * (1.0f - t * t) * GPT_GELU_SCALE * (1.0f + 3.0f * 0.044715f * x[i] * x[i]);
    }
}

/* Row i of each (t,t) matrix over its first i + 1 elements; the others become 0. */
static void gpt_softmax(float *w, size_t rows, size_t t) {
    for (size_t r = 0; r < rows; r++) {
        size_t i = r % t;
        float *row = w + r * t, top = row[0], sum = 0.0f;
        for (size_t j = 1; j <= i; j++) top = row[j] > top ? row[j] : top;
        for (size_t j = 0; j <= i; j++) sum += row[j] = expf(row[j] - top);
        for (size_t j = 0; j <= i; j++) row[j] /= sum;
        for (size_t j = i + 1; j < t; j++) row[j] = 0.0f;
    }
}
static void gpt_softmax_back(float *dw, const float *w, size_t rows, size_t t) {
    for (size_t r = 0; r < rows; r++) {
        const float *row = w + r * t;
        float *d = dw + r * t, dot = 0.0f;
        size_t i = r % t;
        for (size_t j = 0; j <= i; j++) dot += row[j] * d[j];
        for (size_t j = 0; j <= i; j++) d[j] = row[j] * (d[j] - dot);
        for (size_t j = i + 1; j < t; j++) d[j] = 0.0f;
    }
}

static void gpt_look_up(float *out, const float *wte, const float *wpe, const uint8_t *tokens, size_t bt, size_t t,
                        size_t c) {
    for (size_t i = 0; i < bt; i++)
        for (size_t j = 0; j < c; j++) out[i * c + j] = wte[tokens[i] * c + j] + wpe[i % t * c + j];
}
static void gpt_look_up_back(float *d_wte, float *d_wpe, const float *d, const uint8_t *tokens, size_t bt, size_t t,
                             size_t c, size_t vocab, size_t context) {
    memset(d_wte, 0, vocab * c * sizeof *d_wte);
    memset(d_wpe, 0, context * c * sizeof *d_wpe);
    for (size_t i = 0; i < bt; i++)
        for (size_t j = 0; j < c; j++) {
            d_wte[tokens[i] * c + j] += d[i * c + j];
            d_wpe[i % t * c + j] += d[i * c + j];
        }
}

/* The sum over rows, in nats; the logits become their gradient, times `scale` / rows. */
static double gpt_cross_entropy(float *logits, const uint8_t *targets, size_t bt, size_t v, float scale) {
    double total = 0.0;
    for (size_t i = 0; i < bt; i++) {
        float *row = logits + i * v, top = row[0], sum = 0.0f, each = scale / (float)bt;
        for (size_t j = 1; j < v; j++) top = row[j] > top ? row[j] : top;
        for (size_t j = 0; j < v; j++) sum += expf(row[j] - top);
        total += (double)(logf(sum) - (row[targets[i]] - top));
        for (size_t j = 0; j < v; j++) row[j] = expf(row[j] - top) / sum * each;
        row[targets[i]] -= each;
    }
    return total;
}
#endif

/*---- layers ---------------------------------------------------------------------------------------------------*/

/* out (rows,n) = x (rows,k) w (k,n) + bias (n) */
static void gpt_linear(float *out, const float *x, const float *w, const float *bias, size_t rows, size_t k, size_t n) {
    gpt_repeat(out, bias, rows, n);
    gpt_matmul(false, false, rows, n, k, 1.0f, x, k, w, n, 1.0f, out, n);
}

/* dx (rows,k) = dout wT, or nothing for NULL; dw (k,n) = xT dout, dbias (n) = column sums */
static void gpt_linear_back(float *dx, float *dw, float *dbias, const float *dout, const float *x, const float *w,
                            size_t rows, size_t k, size_t n) {
    if (dx) gpt_matmul(false, true, rows, k, n, 1.0f, dout, n, w, n, 0.0f, dx, k);
    gpt_matmul(true, false, k, n, rows, 1.0f, x, k, dout, n, 0.0f, dw, n);
    gpt_columns(dbias, dout, rows, n);
}

static void gpt_attention(const gpt *g, const gpt_block *a) {
    size_t t = g->time, c = g->shape.channels, h = g->shape.heads, hs = c / h;
    if (g->mixer) {
        g->mixer->forward(g->mixer->ctx, g, a);
        return;
    }
    for (size_t b = 0; b < g->batch; b++) {
        const float *q = a->qkv + b * t * 3 * c;
        float *w = a->weights + b * h * t * t;
        gpt_matmuls(h, false, true, t, t, hs, 1.0f / sqrtf((float)hs), q, 3 * c, hs, q + c, 3 * c, hs, w, t, t * t);
        gpt_softmax(w, h * t, t);
        gpt_matmuls(h, false, false, t, hs, t, 1.0f, w, t, t * t, q + 2 * c, 3 * c, hs, a->mixed + b * t * c, c, hs);
    }
}

static void gpt_attention_back(gpt *g, const gpt_block *a, const float *d_mixed) {
    size_t t = g->time, c = g->shape.channels, h = g->shape.heads, hs = c / h;
    float unit = 1.0f / sqrtf((float)hs);
    if (g->mixer) {
        g->mixer->backward(g->mixer->ctx, g, a, d_mixed);
        return;
    }
    for (size_t b = 0; b < g->batch; b++) {
        const float *q = a->qkv + b * t * 3 * c, *w = a->weights + b * h * t * t, *d_out = d_mixed + b * t * c;
        float *dq = g->d_qkv + b * t * 3 * c, *dw = g->d_weights;
        gpt_matmuls(h, true, false, t, hs, t, 1.0f, w, t, t * t, d_out, c, hs, dq + 2 * c, 3 * c, hs);
        gpt_matmuls(h, false, true, t, t, hs, 1.0f, d_out, c, hs, q + 2 * c, 3 * c, hs, dw, t, t * t);
        gpt_softmax_back(dw, w, h * t, t);
        gpt_matmuls(h, false, false, t, hs, t, unit, dw, t, t * t, q + c, 3 * c, hs, dq, 3 * c, hs);
        gpt_matmuls(h, true, false, t, hs, t, unit, dw, t, t * t, q, 3 * c, hs, dq + c, 3 * c, hs);
    }
}

/*---- the model ------------------------------------------------------------------------------------------------*/

static void gpt_destroy(gpt *g) {
    gpt_free(g->memory);
    free(g->blocks);
    memset(g, 0, sizeof *g);
}

/* Places the activations at `memory`; returns how many floats they take. Called first with NULL to learn that. */
static size_t gpt_place(gpt *g, float *memory, size_t batch, size_t time) {
    size_t bt = batch * time, c = g->shape.channels, at = 0;
#define GPT_TAKE(field, count) g->field = memory ? memory + at : NULL, at += (count)
    GPT_TAKE(embedded, bt * c);
    for (size_t l = 0; l < g->shape.layers; l++) {
        GPT_TAKE(blocks[l].ln1, bt * c);
        GPT_TAKE(blocks[l].mean1, bt);
        GPT_TAKE(blocks[l].scale1, bt);
        GPT_TAKE(blocks[l].qkv, bt * 3 * c);
        GPT_TAKE(blocks[l].weights, batch * g->shape.heads * time * (g->mixer ? 2 : time));
        GPT_TAKE(blocks[l].mixed, bt * c);
        GPT_TAKE(blocks[l].middle, bt * c);
        GPT_TAKE(blocks[l].ln2, bt * c);
        GPT_TAKE(blocks[l].mean2, bt);
        GPT_TAKE(blocks[l].scale2, bt);
        GPT_TAKE(blocks[l].wide, bt * 4 * c);
        GPT_TAKE(blocks[l].active, bt * 4 * c);
        GPT_TAKE(blocks[l].out, bt * c);
    }
    GPT_TAKE(ln, bt * c);
    GPT_TAKE(mean, bt);
    GPT_TAKE(scale, bt);
    GPT_TAKE(logits, bt * g->shape.vocab);
    GPT_TAKE(d, bt * c);
    GPT_TAKE(d2, bt * c);
    GPT_TAKE(d_wide, bt * 4 * c);
    GPT_TAKE(d_qkv, bt * 3 * c);
    GPT_TAKE(d_weights, g->mixer ? 0 : g->shape.heads * time * time);
#undef GPT_TAKE
    return at;
}

/* Activations for passes of up to `batch` sequences of `time` tokens; false when memory fails. The mixer (NULL: none)
   is kept by reference. */
static bool gpt_create(gpt *g, const gpt_shape *s, size_t batch, size_t time, const gpt_mixer *mixer) {
    memset(g, 0, sizeof *g);
    g->mixer = mixer;
    g->shape = *s;
    g->blocks = (gpt_block *)calloc(s->layers ? s->layers : 1, sizeof *g->blocks);
    if (g->blocks) g->memory_floats = gpt_place(g, NULL, batch, time);
    if (g->blocks) g->memory = (float *)gpt_alloc(g->memory_floats * sizeof(float));
    if (!g->memory) {
        gpt_destroy(g);
        return false;
    }
    gpt_place(g, g->memory, batch, time);
    g->batch = batch;
    g->time = time;
    return true;
}

static void gpt_embed(gpt *g, const float *wte, const float *wpe, const uint8_t *tokens) {
    gpt_look_up(g->embedded, wte, wpe, tokens, g->batch * g->time, g->time, g->shape.channels);
}

/* The gradients of wte (of its use as embedding) and wpe, from the gradient that came down to them. */
static void gpt_embed_back(gpt *g, float *d_wte, float *d_wpe, const uint8_t *tokens) {
    gpt_look_up_back(d_wte, d_wpe, g->d, tokens, g->batch * g->time, g->time, g->shape.channels, g->shape.vocab,
                     g->shape.context);
}

/* Block l; w are its twelve tensors in the model's order. */
static void gpt_block_forward(gpt *g, size_t l, const float *const w[GPT_BLOCK_TENSORS]) {
    const gpt_block *a = &g->blocks[l];
    const float *x = l ? g->blocks[l - 1].out : g->embedded;
    size_t bt = g->batch * g->time, c = g->shape.channels;
    gpt_norm(a->ln1, a->mean1, a->scale1, x, w[0], w[1], bt, c);
    gpt_linear(a->qkv, a->ln1, w[2], w[3], bt, c, 3 * c);
    gpt_attention(g, a);
    gpt_linear(a->middle, a->mixed, w[4], w[5], bt, c, c);
    gpt_add(a->middle, x, bt * c);
    gpt_norm(a->ln2, a->mean2, a->scale2, a->middle, w[6], w[7], bt, c);
    gpt_linear(a->wide, a->ln2, w[8], w[9], bt, c, 4 * c);
    gpt_gelu(a->active, a->wide, bt * 4 * c);
    gpt_linear(a->out, a->active, w[10], w[11], bt, 4 * c, c);
    gpt_add(a->out, a->middle, bt * c);
}

/* g->d: on entry the gradient of the block's output, on return that of its input. dw: twelve gradients, overwritten. */
static void gpt_block_backward(gpt *g, size_t l, const float *const w[GPT_BLOCK_TENSORS],
                               float *const dw[GPT_BLOCK_TENSORS]) {
    const gpt_block *a = &g->blocks[l];
    const float *x = l ? g->blocks[l - 1].out : g->embedded;
    size_t bt = g->batch * g->time, c = g->shape.channels;
    gpt_linear_back(g->d_wide, dw[10], dw[11], g->d, a->active, w[10], bt, 4 * c, c);
    gpt_gelu_back(g->d_wide, a->wide, bt * 4 * c);
    gpt_linear_back(g->d2, dw[8], dw[9], g->d_wide, a->ln2, w[8], bt, c, 4 * c);
    gpt_norm_back(g->d, dw[6], dw[7], g->d2, a->middle, w[6], a->mean2, a->scale2, bt, c);
    gpt_linear_back(g->d2, dw[4], dw[5], g->d, a->mixed, w[4], bt, c, c);
    gpt_attention_back(g, a, g->d2);
    gpt_linear_back(g->d2, dw[2], dw[3], g->d_qkv, a->ln1, w[2], bt, c, 3 * c);
    gpt_norm_back(g->d, dw[0], dw[1], g->d2, x, w[0], a->mean1, a->scale1, bt, c);
}

/* Final norm and the logits of every position. */
static void gpt_head(gpt *g, const float *ln_w, const float *ln_b, const float *wte) {
    size_t bt = g->batch * g->time, c = g->shape.channels, v = g->shape.vocab;
    const float *x = g->shape.layers ? g->blocks[g->shape.layers - 1].out : g->embedded;
    gpt_norm(g->ln, g->mean, g->scale, x, ln_w, ln_b, bt, c);
    gpt_matmul(false, true, bt, v, c, 1.0f, g->ln, c, wte, c, 0.0f, g->logits, v);
}

/* Mean cross entropy (nats) against targets (B,T). The logits become their own gradient, times `scale`. */
static double gpt_loss(gpt *g, const uint8_t *targets, float scale) {
    size_t bt = g->batch * g->time;
    return gpt_cross_entropy(g->logits, targets, bt, g->shape.vocab, scale) / (double)bt;
}

/* From gpt_loss's gradient: those of ln_f and of wte's use as output head, and g->d for the last block. */
static void gpt_head_backward(gpt *g, const float *ln_w, const float *wte, float *d_ln_w, float *d_ln_b, float *d_wte) {
    size_t bt = g->batch * g->time, c = g->shape.channels, v = g->shape.vocab;
    const float *x = g->shape.layers ? g->blocks[g->shape.layers - 1].out : g->embedded;
    gpt_matmul(true, false, v, c, bt, 1.0f, g->logits, v, g->ln, c, 0.0f, d_wte, c);
    gpt_matmul(false, false, bt, c, v, 1.0f, g->logits, v, wte, c, 0.0f, g->d2, c);
    gpt_zero(g->d, bt * c);
    gpt_norm_back(g->d, d_ln_w, d_ln_b, g->d2, x, ln_w, g->mean, g->scale, bt, c);
}
#endif
