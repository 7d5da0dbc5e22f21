/* cublas_v2.h - the products of cuBLAS that gpt_gpu.cu uses, on the emulated GPU: plain sums in the order of k. */
#ifndef EMULATED_CUBLAS
#define EMULATED_CUBLAS
#include "cuda_runtime.h"
typedef int *cublasHandle_t;
typedef enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_INVALID_VALUE = 7 } cublasStatus_t;
typedef enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 } cublasOperation_t;
typedef enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_TF32_TENSOR_OP_MATH = 3 } cublasMath_t;
inline cublasStatus_t cublasCreate(cublasHandle_t *out) {
    static int handle;
    *out = &handle;
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
    return CUBLAS_STATUS_SUCCESS;
}
/* c (m,n) = alpha op(a) op(b) + beta c, columns first */
inline cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t, cublasOperation_t a_t, cublasOperation_t b_t, int m,
                                                int n, int k, const float *alpha, const float *a, int lda,
                                                long long next_a, const float *b, int ldb, long long next_b,
                                                const float *beta, float *c, int ldc, long long next_c, int count) {
    const float by = *alpha, keep = *beta;
    if (lda < (a_t ? k : m) || ldb < (b_t ? n : k) || ldc < m) return CUBLAS_STATUS_INVALID_VALUE;
    emu::calls["gemm"]++;
    emu::put(NULL, [=] {
        for (long long e = 0; e < (long long)count * m * n; e++) {
            const long long batch = e / ((long long)m * n), i = e % m, j = e / m % n;
            const float *const x = a + batch * next_a, *const y = b + batch * next_b;
            float *const to = c + batch * next_c + j * ldc + i;
            float sum = 0;
            for (long long l = 0; l < k; l++)
                sum += x[a_t ? i * lda + l : l * lda + i] * y[b_t ? l * ldb + j : j * ldb + l];
            *to = by * sum + (keep == 0 ? 0 : keep * *to);
        }
        return true;
    });
    return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSgemm(cublasHandle_t h, cublasOperation_t a_t, cublasOperation_t b_t, int m, int n, int k,
                                  const float *alpha, const float *a, int lda, const float *b, int ldb,
                                  const float *beta, float *c, int ldc) {
    return cublasSgemmStridedBatched(h, a_t, b_t, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);
}
#endif
