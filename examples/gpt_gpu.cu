/* gpt_gpu.cu - the operations of gpt.h on a GPU: cuBLAS for products, plain kernels for the rest, ds_kernels.cu with them

   All work goes to the default stream. Every sum has one order, so a run repeats to the bit. The first failure is kept for
   gpt_gpu_failure. Comments: bytes moved for each element; all but the products are bound by that. */
#include "../ds_kernels.cu"
#include "gpt_gpu.h"
#include <cublas_v2.h>

namespace {
char failure[400];
cublasHandle_t blas;
uint8_t *token_room; // the tokens of this pass, on the device
float *row_losses;
size_t token_bytes, row_count;

void keep(const char *what, cudaError_t error) {
    if (error != cudaSuccess && !failure[0])
        snprintf(failure, sizeof failure, "%s: %s", what, cudaGetErrorString(error));
}
void keep_blas(cublasStatus_t status) {
    if (status != CUBLAS_STATUS_SUCCESS && !failure[0])
        snprintf(failure, sizeof failure, "cuBLAS: error %d", (int)status);
}
void *room(size_t bytes) {
    void *memory = NULL;
    if (cudaMalloc(&memory, bytes ? bytes : 1) != cudaSuccess) return NULL;
    return memory;
}
const uint8_t *to_device(const uint8_t *tokens, size_t n) {
    if (n > token_bytes) {
        (void)cudaFree(token_room);
        token_room = (uint8_t *)room(n);
        token_bytes = token_room ? n : 0;
        if (!token_room) keep("tokens", cudaErrorMemoryAllocation);
    }
    if (token_room) keep("copy of tokens", cudaMemcpyAsync(token_room, tokens, n, cudaMemcpyDefault, NULL));
    return token_room;
}

// A block's sum or largest value, the same in all its 256 threads; lanes fold by halves, then warps in order.
__device__ float of_block(float x, bool largest, float *of_warps) {
    for (int with = 16; with; with /= 2) {
        const float other = __shfl_xor_sync(0xFFFFFFFFu, x, with);
        x = largest ? ptx_max(x, other) : x + other;
    }
    __syncthreads(); // what it held was read
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warps[0];
    for (unsigned w = 1; w < THREADS / 32; w++) x = largest ? ptx_max(x, of_warps[w]) : x + of_warps[w];
    return x;
}
__device__ float curve(float x) { // tanh of GELU's argument, as gpt_tanh
    return 1.0f - 2.0f / (expf(2.0f * (0.7978845608028654f * (x + 0.044715f * x * x * x))) + 1.0f);
}
// 12 bytes
__global__ void add(float *to, const float *x, size_t n) {
    for (size_t i = first_index(); i < n; i += stride()) to[i] += x[i];
}
// 4 bytes
__global__ void repeat(float *out, const float *row, size_t count, size_t n) {
    for (size_t i = first_index(); i < count; i += stride()) out[i] = row[i % n];
}
// 8 bytes
__global__ void gelu(float *out, const float *x, size_t n) {
    for (size_t i = first_index(); i < n; i += stride()) out[i] = 0.5f * x[i] * (1.0f + curve(x[i]));
}
// 12 bytes
__global__ void gelu_back(float *d, const float *x, size_t n) {
    for (size_t i = first_index(); i < n; i += stride()) {
        const float t = curve(x[i]);
        d[i] *= 0.5f * (1.0f + t) +
                0.5f * x[i] * (1.0f - t * t) * 0.7978845608028654f * (1.0f + 3.0f * 0.044715f * x[i] * x[i]);
    }
}
/* Sums of columns: 32 columns to a block, whose 8 rows of threads take every eighth row; what they have is added in order.
   4 bytes. With x and its rows' mean and scale also the sums of norm * dout: 8 bytes. */
__global__ void __launch_bounds__(THREADS) columns(float *sums, float *products, const float *dout, const float *x,
                                                   const float *mean, const float *scale, size_t rows, size_t n) {
    DSI_SHARED(float, shared);
    const unsigned lane = threadIdx.x / 32;
    const size_t j = (size_t)blockIdx.x * 32 + threadIdx.x % 32;
    float sum = 0, product = 0;
    for (size_t i = lane; i < rows && j < n; i += THREADS / 32) {
        const float d = dout[i * n + j];
        sum += d;
        if (products) product += (x[i * n + j] - mean[i]) * scale[i] * d;
    }
    shared[threadIdx.x] = sum;
    shared[THREADS + threadIdx.x] = product;
    __syncthreads();
    if (lane || j >= n) return;
    for (unsigned k = 1; k < THREADS / 32; k++) {
        sum += shared[32 * k + threadIdx.x];
        product += shared[THREADS + 32 * k + threadIdx.x];
    }
    sums[j] = sum;
    if (products) products[j] = product;
}
// One row a block; the second and third read are the cache's. 8 bytes
__global__ void __launch_bounds__(THREADS)
    norm(float *out, float *mean, float *scale, const float *x, const float *w, const float *b, size_t c) {
    DSI_SHARED(float, shared);
    const float *const in = x + blockIdx.x * c;
    float m = 0, v = 0;
    for (size_t j = threadIdx.x; j < c; j += THREADS) m += in[j];
    m = of_block(m, false, shared) / (float)c;
    for (size_t j = threadIdx.x; j < c; j += THREADS) v += (in[j] - m) * (in[j] - m);
    const float s = 1.0f / sqrtf(of_block(v, false, shared) / (float)c + 1e-5f);
    for (size_t j = threadIdx.x; j < c; j += THREADS) out[blockIdx.x * c + j] = (in[j] - m) * s * w[j] + b[j];
    if (threadIdx.x == 0) mean[blockIdx.x] = m, scale[blockIdx.x] = s;
}
// 16 bytes
__global__ void __launch_bounds__(THREADS) norm_back(float *dx, const float *dout, const float *x, const float *w,
                                                     const float *mean, const float *scale, size_t c) {
    DSI_SHARED(float, shared);
    const size_t at = blockIdx.x * c;
    const float m = mean[blockIdx.x], s = scale[blockIdx.x];
    float sum = 0, dot = 0;
    for (size_t j = threadIdx.x; j < c; j += THREADS) {
        const float d = w[j] * dout[at + j];
        sum += d;
        dot += d * (x[at + j] - m) * s;
    }
    sum = of_block(sum, false, shared) / (float)c;
    dot = of_block(dot, false, shared) / (float)c;
    for (size_t j = threadIdx.x; j < c; j += THREADS)
        dx[at + j] += (w[j] * dout[at + j] - sum - (x[at + j] - m) * s * dot) * s;
}
// One row a block. 8 bytes
__global__ void __launch_bounds__(THREADS) softmax(float *w, size_t t) {
    DSI_SHARED(float, shared);
    const size_t i = blockIdx.x % t;
    float *const row = w + blockIdx.x * t;
    float top = -INFINITY, sum = 0;
    for (size_t j = threadIdx.x; j <= i; j += THREADS) top = ptx_max(top, row[j]);
    top = of_block(top, true, shared);
    for (size_t j = threadIdx.x; j <= i; j += THREADS) sum += row[j] = expf(row[j] - top);
    sum = of_block(sum, false, shared);
    for (size_t j = threadIdx.x; j < t; j += THREADS) row[j] = j <= i ? row[j] / sum : 0.0f;
}
// 12 bytes
__global__ void __launch_bounds__(THREADS) softmax_back(float *dw, const float *w, size_t t) {
    DSI_SHARED(float, shared);
    const size_t i = blockIdx.x % t, at = blockIdx.x * t;
    float dot = 0;
    for (size_t j = threadIdx.x; j <= i; j += THREADS) dot += w[at + j] * dw[at + j];
    dot = of_block(dot, false, shared);
    for (size_t j = threadIdx.x; j < t; j += THREADS) dw[at + j] = j <= i ? w[at + j] * (dw[at + j] - dot) : 0.0f;
}
// 4 bytes and a row of each table
__global__ void look_up(float *out, const float *wte, const float *wpe, const uint8_t *tokens, size_t count, size_t t,
                        size_t c) {
    for (size_t i = first_index(); i < count; i += stride())
        out[i] = wte[tokens[i / c] * c + i % c] + wpe[i / c % t * c + i % c];
}
// A thread for each element of a table, which takes the positions that used its row in their order.
__global__ void look_up_back(float *d_wte, float *d_wpe, const float *d, const uint8_t *tokens, size_t bt, size_t t,
                             size_t c, size_t vocab, size_t context) {
    for (size_t e = first_index(); e < (vocab + context) * c; e += stride()) {
        const size_t row = e / c, j = e % c;
        float sum = 0;
        if (row < vocab) {
            for (size_t i = 0; i < bt; i++)
                if (tokens[i] == row) sum += d[i * c + j];
            d_wte[e] = sum;
        } else {
            for (size_t i = row - vocab; i < bt && row - vocab < t; i += t) sum += d[i * c + j];
            d_wpe[e - vocab * c] = sum;
        }
    }
}
// One row a block. 8 bytes
__global__ void __launch_bounds__(THREADS)
    cross_entropy(float *logits, const uint8_t *targets, float *losses, size_t v, float each) {
    DSI_SHARED(float, shared);
    float *const row = logits + blockIdx.x * v;
    const size_t target = targets[blockIdx.x];
    float top = -INFINITY, sum = 0;
    for (size_t j = threadIdx.x; j < v; j += THREADS) top = ptx_max(top, row[j]);
    top = of_block(top, true, shared);
    for (size_t j = threadIdx.x; j < v; j += THREADS) sum += expf(row[j] - top);
    sum = of_block(sum, false, shared);
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(sum) - (row[target] - top);
    __syncthreads();
    for (size_t j = threadIdx.x; j < v; j += THREADS)
        row[j] = expf(row[j] - top) / sum * each - (j == target ? each : 0.0f);
}
} // namespace

#define ROW_SHARED (THREADS / 32 * sizeof(float))
static void done(const char *what) {
    keep(what, cudaGetLastError());
}

const char *gpt_gpu_begin(int local_rank, int *gpus) {
    const cudaError_t error = cudaGetDeviceCount(gpus);
    if (error != cudaSuccess || *gpus < 1) {
        snprintf(failure, sizeof failure, "%s", error == cudaSuccess ? "no CUDA device" : cudaGetErrorString(error));
        *gpus = 0;
        return failure;
    }
    keep("cudaSetDevice", cudaSetDevice(local_rank % *gpus));
    keep_blas(cublasCreate(&blas));
    return gpt_gpu_failure();
}
void gpt_gpu_fast(void) {
    keep_blas(cublasSetMathMode(blas, CUBLAS_TF32_TENSOR_OP_MATH));
}
const char *gpt_gpu_failure(void) {
    return failure[0] ? failure : NULL;
}
void *gpt_alloc(size_t bytes) {
    void *const memory = room(bytes);
    if (memory) keep("fill", cudaMemsetAsync(memory, 0, bytes, NULL));
    return memory;
}
void gpt_free(void *memory) {
    (void)cudaFree(memory);
}
void gpt_read(void *host, const void *from, size_t bytes) {
    keep("copy to the host", cudaMemcpyAsync(host, from, bytes, cudaMemcpyDefault, NULL));
    keep("work", cudaStreamSynchronize(NULL));
}
void gpt_zero(float *x, size_t n) {
    keep("fill", cudaMemsetAsync(x, 0, n * sizeof *x, NULL));
}
void gpt_add(float *to, const float *x, size_t n) {
    DSI_LAUNCH(add, blocks(n), THREADS, 0, NULL, to, x, n);
    done("add");
}
// cuBLAS counts columns first: of row-major matrices it sees the transposes, so the product is taken the other way round.
void gpt_matmuls(size_t count, bool a_t, bool b_t, size_t m, size_t n, size_t k, float alpha, const float *a,
                 size_t lda, size_t next_a, const float *b, size_t ldb, size_t next_b, float *c, size_t ldc,
                 size_t next_c) {
    const float zero = 0;
    keep_blas(cublasSgemmStridedBatched(blas, b_t ? CUBLAS_OP_T : CUBLAS_OP_N, a_t ? CUBLAS_OP_T : CUBLAS_OP_N, (int)n,
                                        (int)m, (int)k, &alpha, b, (int)ldb, (long long)next_b, a, (int)lda,
                                        (long long)next_a, &zero, c, (int)ldc, (long long)next_c, (int)count));
}
void gpt_matmul(bool a_t, bool b_t, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
                const float *b, size_t ldb, float beta, float *c, size_t ldc) {
    keep_blas(cublasSgemm(blas, b_t ? CUBLAS_OP_T : CUBLAS_OP_N, a_t ? CUBLAS_OP_T : CUBLAS_OP_N, (int)n, (int)m,
                          (int)k, &alpha, b, (int)ldb, a, (int)lda, &beta, c, (int)ldc));
}
void gpt_repeat(float *out, const float *row, size_t rows, size_t n) {
    DSI_LAUNCH(repeat, blocks(rows * n), THREADS, 0, NULL, out, row, rows * n, n);
    done("repeat");
}
static void sum_columns(float *sums, float *products, const float *dout, const float *x, const float *mean,
                        const float *scale, size_t rows, size_t n) {
    DSI_LAUNCH(columns, (unsigned)((n + 31) / 32), THREADS, 2 * THREADS * sizeof(float), NULL, sums, products, dout, x,
               mean, scale, rows, n);
    done("columns");
}
void gpt_columns(float *sums, const float *x, size_t rows, size_t n) {
    sum_columns(sums, NULL, x, NULL, NULL, NULL, rows, n);
}
void gpt_norm(float *out, float *mean, float *scale, const float *x, const float *w, const float *b, size_t rows,
              size_t c) {
    DSI_LAUNCH(norm, (unsigned)rows, THREADS, ROW_SHARED, NULL, out, mean, scale, x, w, b, c);
    done("norm");
}
void gpt_norm_back(float *dx, float *dw, float *db, const float *dout, const float *x, const float *w,
                   const float *mean, const float *scale, size_t rows, size_t c) {
    sum_columns(db, dw, dout, x, mean, scale, rows, c);
    DSI_LAUNCH(norm_back, (unsigned)rows, THREADS, ROW_SHARED, NULL, dx, dout, x, w, mean, scale, c);
    done("norm_back");
}
void gpt_gelu(float *out, const float *x, size_t n) {
    DSI_LAUNCH(gelu, blocks(n), THREADS, 0, NULL, out, x, n);
    done("gelu");
}
void gpt_gelu_back(float *d, const float *x, size_t n) {
    DSI_LAUNCH(gelu_back, blocks(n), THREADS, 0, NULL, d, x, n);
    done("gelu_back");
}
void gpt_softmax(float *w, size_t rows, size_t t) {
    DSI_LAUNCH(softmax, (unsigned)rows, THREADS, ROW_SHARED, NULL, w, t);
    done("softmax");
}
void gpt_softmax_back(float *dw, const float *w, size_t rows, size_t t) {
    DSI_LAUNCH(softmax_back, (unsigned)rows, THREADS, ROW_SHARED, NULL, dw, w, t);
    done("softmax_back");
}
void gpt_look_up(float *out, const float *wte, const float *wpe, const uint8_t *tokens, size_t bt, size_t t, size_t c) {
    const uint8_t *const there = to_device(tokens, bt);
    if (!there) return;
    DSI_LAUNCH(look_up, blocks(bt * c), THREADS, 0, NULL, out, wte, wpe, there, bt * c, t, c);
    done("look_up");
}
void gpt_look_up_back(float *d_wte, float *d_wpe, const float *d, const uint8_t *tokens, size_t bt, size_t t, size_t c,
                      size_t vocab, size_t context) {
    const uint8_t *const there = to_device(tokens, bt);
    if (!there) return;
    DSI_LAUNCH(look_up_back, blocks((vocab + context) * c), THREADS, 0, NULL, d_wte, d_wpe, d, there, bt, t, c, vocab,
               context);
    done("look_up_back");
}
double gpt_cross_entropy(float *logits, const uint8_t *targets, size_t bt, size_t v, float scale) {
    const uint8_t *const there = to_device(targets, bt);
    float *losses = (float *)malloc(bt * sizeof *losses);
    double total = 0;
    if (bt > row_count) {
        (void)cudaFree(row_losses);
        row_losses = (float *)room(bt * sizeof *row_losses);
        row_count = row_losses ? bt : 0;
    }
    if (!there || !losses || !row_losses) {
        keep("losses", cudaErrorMemoryAllocation);
        free(losses);
        return 0;
    }
    DSI_LAUNCH(cross_entropy, (unsigned)bt, THREADS, ROW_SHARED, NULL, logits, there, row_losses, v, scale / (float)bt);
    done("cross_entropy");
    gpt_read(losses, row_losses, bt * sizeof *losses);
    for (size_t i = 0; i < bt && !failure[0]; i++) total += (double)losses[i];
    free(losses);
    return total;
}
