/* gpt_gpu.h - what gpt_gpu.cu does for gpt.h: its operations, on memory of a GPU */
#ifndef GPT_GPU_H
#define GPT_GPU_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
/* What is to be had of the GPU for this rank of its machine; NULL, or why not. *gpus: how many there are. */
const char *gpt_gpu_begin(int local_rank, int *gpus);
void gpt_gpu_fast(void);           /* products in TF32 on tensor cores from now on */
const char *gpt_gpu_failure(void); /* NULL, or what the GPU said first */
void *gpt_alloc(size_t bytes);     /* zeros; NULL when there is no memory */
void gpt_free(void *memory);
void gpt_read(void *host, const void *from, size_t bytes); /* waits for all that was asked for before */
void gpt_zero(float *x, size_t n);
void gpt_add(float *to, const float *x, size_t n);
void gpt_matmul(bool a_t, bool b_t, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                const float *b, size_t ldb, float beta, float *c, size_t ldc);
void gpt_matmuls(size_t count, bool a_t, bool b_t, size_t m, size_t n, size_t k, float alpha, const float *a,
                 size_t lda, size_t next_a, const float *b, size_t ldb, size_t next_b, float *c, size_t ldc,
                 size_t next_c);
void gpt_repeat(float *out, const float *row, size_t rows, size_t n);
void gpt_columns(float *sums, const float *x, size_t rows, size_t n);
void gpt_norm(float *out, float *mean, float *scale, const float *x, const float *w, const float *b, size_t rows,
              size_t c);
void gpt_norm_back(float *dx, float *dw, float *db, const float *dout, const float *x, const float *w,
                   const float *mean, const float *scale, size_t rows, size_t c);
void gpt_gelu(float *out, const float *x, size_t n);
void gpt_gelu_back(float *d, const float *x, size_t n);
void gpt_softmax(float *w, size_t rows, size_t t);
void gpt_softmax_back(float *dw, const float *w, size_t rows, size_t t);
void gpt_look_up(float *out, const float *wte, const float *wpe, const uint8_t *tokens, size_t bt, size_t t, size_t c);
void gpt_look_up_back(float *d_wte, float *d_wpe, const float *d, const uint8_t *tokens, size_t bt, size_t t, size_t c,
                      size_t vocab, size_t context);
double gpt_cross_entropy(float *logits, const uint8_t *targets, size_t bt, size_t v, float scale);
#ifdef __cplusplus
}
#endif
#endif
