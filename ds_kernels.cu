/* ds_kernels.cu - v0.1.0 - the GPU kernels of ds_*.h and CUDA as a ds_device - public domain or MIT-0

   DO THIS
     nvcc -O3 -c ds_kernels.cu -gencode arch=compute_90,code=sm_90     (sm_75 to sm_100)
   and link the object with a program that uses the headers:

     ds_optim_kernels kernels;
     ds_cuda_optim_kernels(&kernels);
     desc.kernels = &kernels;                 // ds_optim: slices are device memory from now on
     ds_optim_apply_on(o, slices, n, stream); // a cudaStream_t

   WHAT HOLDS
   Each element goes through the formula that the CPU uses, spelled in PTX operations that round to nearest, keep denormals
   and cannot be contracted, whatever the flags (-use_fast_math included): the bits are those of the CPU. So is the
   order of every sum. A call orders work on its stream and returns; a failure of a kernel itself shows at the next
   synchronize, as always in CUDA. Nothing here allocates, but for the list of parts of an update with more than 32, which
   comes from the stream's own pool. Any thread may call; a table is of the GPU that was current when it was filled, and a
   call makes that the thread's.

   WHAT IT HAS
   optimizers   Adam, AdamW, SGD, Adagrad, Lion and LAMB's two phases over any number of slices in one launch, with
                unscaling, clipping and 16-bit weights in the same pass; so the 1-bit family's warm-up, and its compressed
                phase by parts, as Muon
   gradients    norms by grain, whose sums also tell an overflow; their tree; casts, accumulation, scaling
   messages     ds_comm_kernels: 1-bit compression with error feedback, blocks of 8 or 4 bits
   attention    ds_sparse_kernels: block-sparse (dense: one of its layouts), forward and backward
   token rows   ds_comm_kernels, for tables whose gradients have few rows: which those are, gather and scatter. On their own:
                ds_cuda_gather_rows(to, from, rows, count, row_bytes, stream): to[i] = from[rows[i]], and
                ds_cuda_scatter_rows: to[rows[i]] = from[i], each row once; rows: uint32_t on the device. For layers that
                see part of the tokens (random-LTD)
   device       memory, pinned memory, copies, streams, events
   Comments say how many bytes each kernel moves for an element: all but the products are bound by that. */
#define DS_OPTIM_FORMULAS
#include "ds_comm.h"
#include "ds_optim.h"
#include "ds_sparse.h"
#include <cuda_runtime.h>
#include <stdio.h>

// Nothing below is inline PTX or the syntax of a launch: tests/emulate has twins of these, and so runs this file on a CPU.
#ifndef DS_EMULATED
#define DSI_UNROLL_(text)                                   _Pragma(#text)
#define DSI_UNROLL(n)                                       DSI_UNROLL_(unroll n)
#define DSI_APART                                           __noinline__
#define DSI_PARAM                                           const __grid_constant__ // its address may be taken without a copy
#define DSI_LAUNCH(kernel, grid, block, bytes, stream, ...) (kernel)<<<grid, block, bytes, stream>>>(__VA_ARGS__)
#define DSI_SHARED(T, name)                                                                                            \
    extern __shared__ uint4 dsi_shared[];                                                                              \
    T *const name = (T *)(void *)dsi_shared
#endif

namespace {
// >>ptx
#ifndef DS_EMULATED
#define DSI_PTX_2(name, T, c, ptx)                                                                                     \
    __device__ T name(T a, T b) {                                                                                      \
        T r;                                                                                                           \
        asm(ptx " %0, %1, %2;" : "=" c(r) : c(a), c(b));                                                               \
        return r;                                                                                                      \
    }
#define DSI_PTX_1(name, R, rc, T, tc, ptx)                                                                             \
    __device__ R name(T a) {                                                                                           \
        R r;                                                                                                           \
        asm(ptx " %0, %1;" : "=" rc(r) : tc(a));                                                                       \
        return r;                                                                                                      \
    }
DSI_PTX_2(ptx_add, float, "f", "add.rn.f32")
DSI_PTX_2(ptx_mul, float, "f", "mul.rn.f32")
DSI_PTX_2(ptx_div, float, "f", "div.rn.f32")
DSI_PTX_2(ptx_add64, double, "d", "add.rn.f64")
DSI_PTX_1(ptx_sqrt, float, "f", float, "f", "sqrt.rn.f32")
DSI_PTX_2(ptx_min, float, "f", "min.f32")
DSI_PTX_2(ptx_max, float, "f", "max.f32")
DSI_PTX_2(ptx_div64, double, "d", "div.rn.f64")
DSI_PTX_1(ptx_sqrt64, double, "d", double, "d", "sqrt.rn.f64")
DSI_PTX_1(ptx_rint, float, "f", float, "f", "cvt.rni.f32.f32")
DSI_PTX_1(ptx_narrow, float, "f", double, "d", "cvt.rn.f32.f64")
DSI_PTX_1(ptx_exp2, float, "f", float, "f", "ex2.approx.f32")
DSI_PTX_1(ptx_log2, float, "f", float, "f", "lg2.approx.f32")
DSI_PTX_1(ptx_int, int, "r", float, "f", "cvt.rzi.s32.f32")
DSI_PTX_1(ptx_wide, double, "d", float, "f", "cvt.f64.f32")
__device__ float ptx_fma(float a, float b, float c) {
    float r;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c));
    return r;
}
__device__ double ptx_fma64(double a, double b, double c) {
    double r;
    asm("fma.rn.f64 %0, %1, %2, %3;" : "=d"(r) : "d"(a), "d"(b), "d"(c));
    return r;
}
/* c (16, 8) += a (16, 16) * b (16, 8), fp16 or bf16 in, fp32 out. sm_75 has half the depth and no bf16. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define DSI_PTX_MMA(type)                                                                                              \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "          \
        "{%0,%1,%2,%3};"                                                                                               \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <bool BF16> __device__ void ptx_mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    if (BF16)
        DSI_PTX_MMA("bf16");
    else
        DSI_PTX_MMA("f16");
}
#else
template <bool BF16> __device__ void ptx_mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    if (BF16) asm("trap;"); // the host refuses
    for (int half = 0; half < 2; half++)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
}
#endif
__device__ uint16_t ptx_half(float a) {
    uint16_t r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(a));
    return r;
}
// Lane l < 16 names row l of a (16, 8) matrix of 16-bit values in shared memory; out comes mma's b.
__device__ void ptx_ldmatrix_trans(uint32_t b[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}
#endif

// >>elements
#define dsi_optim_cu_t float
#define dsi_optim_cu_set
#define dsi_optim_cu_add  ptx_add
#define dsi_optim_cu_mul  ptx_mul
#define dsi_optim_cu_div  ptx_div
#define dsi_optim_cu_sqrt ptx_sqrt
#define dsi_optim_cu_fma  ptx_fma
__device__ float dsi_optim_cu_sign(float a) {
    return a != a ? a : dsi_f32_of_bits((dsi_bits_of_f32(a) & 0x80000000u) | 0x3F800000u);
}

enum { THREADS = 256, LANES = 16, CHUNK = 4 * DS_GRAIN, PARTS = 32 };

__device__ float load(ds_dtype dtype, const void *from, size_t i) {
    if (dtype == DS_F32) return ((const float *)from)[i];
    return dtype == DS_F16 ? dsi_f32_of_f16(((const uint16_t *)from)[i]) : dsi_f32_of_bf16(((const uint16_t *)from)[i]);
}
__device__ void store(ds_dtype dtype, void *to, size_t i, float x) {
    if (dtype == DS_F32)
        ((float *)to)[i] = x;
    else
        ((uint16_t *)to)[i] = dtype == DS_F16 ? dsi_f16_of_f32(x) : dsi_bf16_of_f32(x);
}
// Four elements from i on: n of them when the array ends there; one access of 8 or 16 bytes where `wide` says it may.
__device__ void load4(ds_dtype dtype, const void *from, size_t i, size_t n, bool wide, float x[4]) {
    if (!wide || n < 4) {
        for (unsigned e = 0; e < 4; e++) x[e] = e < n ? load(dtype, from, i + e) : 0.0f;
    } else if (dtype == DS_F32) {
        const float4 v = *(const float4 *)(const void *)((const float *)from + i);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
        const uint2 v = *(const uint2 *)(const void *)((const uint16_t *)from + i);
        const uint16_t h[4] = {(uint16_t)(v.x & 0xFFFFu), (uint16_t)(v.x >> 16), (uint16_t)(v.y & 0xFFFFu),
                               (uint16_t)(v.y >> 16)};
        for (unsigned e = 0; e < 4; e++) x[e] = dtype == DS_F16 ? dsi_f32_of_f16(h[e]) : dsi_f32_of_bf16(h[e]);
    }
}
__device__ unsigned narrow(ds_dtype dtype, float x) {
    return dtype == DS_F16 ? dsi_f16_of_f32(x) : dsi_bf16_of_f32(x);
}
__device__ void store4(ds_dtype dtype, void *to, size_t i, size_t n, bool wide, const float x[4]) {
    if (!wide || n < 4) {
        for (unsigned e = 0; e < 4; e++)
            if (e < n) store(dtype, to, i + e, x[e]);
    } else if (dtype == DS_F32) {
        *(float4 *)(void *)((float *)to + i) = make_float4(x[0], x[1], x[2], x[3]);
    } else {
        uint2 v;
        v.x = narrow(dtype, x[0]) | narrow(dtype, x[1]) << 16;
        v.y = narrow(dtype, x[2]) | narrow(dtype, x[3]) << 16;
        *(uint2 *)(void *)((uint16_t *)to + i) = v;
    }
}
__device__ size_t first_index() {
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ size_t stride() {
    return (size_t)gridDim.x * blockDim.x;
}
bool aligned(const void *p, size_t bytes) {
    return (uintptr_t)p % bytes == 0;
}
// Whether load4 and store4 may take the elements of an array at once; NULL may.
bool wide_of(ds_dtype dtype, const void *p) {
    return aligned(p, dtype == DS_F32 ? 16 : 8);
}
bool is_float(ds_dtype dtype) {
    return dtype == DS_F32 || dtype == DS_F16 || dtype == DS_BF16;
}
// Most blocks of a launch whose threads take elements in turns; tests lower it, so that each thread has several turns.
#ifndef DSI_MOST_BLOCKS
#define DSI_MOST_BLOCKS 65536u
#endif
unsigned blocks(size_t threads) {
    const size_t n = (threads + THREADS - 1) / THREADS;
    return n < DSI_MOST_BLOCKS ? (unsigned)n : DSI_MOST_BLOCKS;
}
thread_local char last_said[200] = "no error"; // of this thread, for `describe`
// CUDA keeps an error until it is asked for, and the next launch would be taken for its cause: it is taken out.
ds_status said(cudaError_t error) {
    if (error == cudaSuccess) return DS_OK;
    snprintf(last_said, sizeof last_said, "%s", cudaGetErrorString(error));
    (void)cudaGetLastError();
    return error == cudaErrorMemoryAllocation ? DS_ERR_MEMORY : DS_ERR_DEVICE;
}
ds_status refused(const char *why) {
    snprintf(last_said, sizeof last_said, "%s", why);
    return DS_ERR_UNSUPPORTED;
}
ds_status launched() {
    return said(cudaGetLastError());
}
// A table's ctx: the number of its GPU, and one. A thread that has another one current, as that of a communicator, changes.
void *here() {
    int device = 0;
    return cudaGetDevice(&device) == cudaSuccess ? (void *)(uintptr_t)(unsigned)(device + 1) : NULL;
}
void use(void *ctx) {
    const int wanted = (int)(uintptr_t)ctx - 1;
    int device = wanted;
    if (ctx && cudaGetDevice(&device) == cudaSuccess && device != wanted) (void)cudaSetDevice(wanted);
}

// >>optimizers
// What the kernels need of a ds_optim_part; `first` is the number of the chunks of all parts before it.
struct part {
    float *master, *state[DS_OPTIM_MAX_STATES];
    const void *grad;
    void *weights16;
    double *sums;
    size_t count, first;
    float rate;
    ds_dtype grad_dtype, weights_dtype;
    bool wide;
};
struct parts {
    const part *list; // in device memory, or NULL: `own`
    unsigned count;
    part own[PARTS];
};
// The part that block b works on: the last one whose first chunk is not after b.
__device__ const part *part_of(const parts &all, size_t b) {
    const part *list = all.list ? all.list : all.own;
    unsigned low = 0, high = all.count;
    while (high - low > 1) {
        const unsigned middle = (low + high) / 2;
        if (list[middle].first <= b)
            low = middle;
        else
            high = middle;
    }
    return &list[low];
}
// LAMB's direction; 1-bit LAMB takes it with and without weight decay.
__device__ float trust(const ds_optim_constants &c, float p, float m, float v) {
    float u;
    DSI_OPTIM_TRUST(cu, u, p, m, v)
    return u;
}
// w: state[2], what 0/1 Adam's local steps have moved
template <int RULE>
__device__ void one_element(const ds_optim_constants &all, const part &s, float g, float &p, float &m, float &v,
                            float &w) {
    if (RULE == DS_OPTIM_RULE_ADAM) {
        const ds_optim_adam &c = all.adam;
        DSI_OPTIM_ADAM(cu, g, p, m, v)
    } else {
        const ds_optim_constants &c = all;
        if (RULE == DS_OPTIM_RULE_SGD) {
            DSI_OPTIM_SGD(cu, g, p, m)
        } else if (RULE == DS_OPTIM_RULE_ADAGRAD) {
            DSI_OPTIM_ADAGRAD(cu, g, p, m)
        } else if (RULE == DS_OPTIM_RULE_LION) {
            DSI_OPTIM_LION(cu, g, p, m)
        } else if (RULE == DS_OPTIM_RULE_ONE_BIT_UNDO) {
            p = ptx_add(p, -w);
            w = ptx_mul(w, ptx_add(ptx_sqrt(v), c.eps_out));
        } else if (RULE == DS_OPTIM_RULE_ONE_BIT_REDO) {
            m = -ptx_div(w, s.rate);
            p = ptx_add(p, ptx_div(w, ptx_add(ptx_sqrt(v), c.eps_out)));
            w = 0;
        } else {
            if (RULE == DS_OPTIM_RULE_ONE_BIT_WARM) {
                DSI_OPTIM_MOMENTS(cu, g, m, v)
            }
            const float u = trust(c, p, m, v);
            p = ptx_fma(u, s.rate, p);
            if (RULE == DS_OPTIM_RULE_ONE_BIT_MOVE) w = ptx_fma(u, s.rate, w);
        }
    }
}
/* One chunk of one part a block, four elements a thread and turn. Bytes an element, fp32 gradient: Adam and the 1-bit
   family's warm-up 28, SGD with momentum, Adagrad and Lion 20, SGD without 12; 2 less for a 16-bit gradient. LAMB's update
   16; 0/1 Adam's local step 24, undone 20, done again 24. 2 more for 16-bit weights. Bound by memory. */
template <int RULE> __global__ void __launch_bounds__(THREADS) update(ds_optim_constants c, parts all) {
    const part &s = *part_of(all, blockIdx.x);
    const bool warm = RULE == DS_OPTIM_RULE_ONE_BIT_WARM, move = RULE == DS_OPTIM_RULE_ONE_BIT_MOVE;
    const bool undo = RULE == DS_OPTIM_RULE_ONE_BIT_UNDO, redo = RULE == DS_OPTIM_RULE_ONE_BIT_REDO;
    const bool reads_grad = RULE < DS_OPTIM_RULE_LAMB_MEASURE || warm, third = move || undo || redo;
    const bool reads_first = !undo && !redo, writes_first = reads_grad || redo;
    const bool second = RULE == DS_OPTIM_RULE_ADAM || RULE >= DS_OPTIM_RULE_LAMB_UPDATE;
    const size_t begin = (blockIdx.x - s.first) * CHUNK;
    for (size_t i = begin + 4 * threadIdx.x; i < begin + CHUNK && i < s.count; i += 4 * THREADS) {
        const size_t n = s.count - i;
        float g[4] = {0, 0, 0, 0}, p[4], m[4] = {0, 0, 0, 0}, v[4] = {0, 0, 0, 0}, w[4] = {0, 0, 0, 0};
        if (reads_grad) load4(s.grad_dtype, s.grad, i, n, s.wide, g);
        load4(DS_F32, s.master, i, n, s.wide, p);
        if (reads_first && s.state[0]) load4(DS_F32, s.state[0], i, n, s.wide, m);
        if (second) load4(DS_F32, s.state[1], i, n, s.wide, v);
        if (third) load4(DS_F32, s.state[2], i, n, s.wide, w);
        for (unsigned e = 0; e < 4; e++) one_element<RULE>(c, s, ptx_mul(g[e], c.adam.factor), p[e], m[e], v[e], w[e]);
        store4(DS_F32, s.master, i, n, s.wide, p);
        if (writes_first && s.state[0]) store4(DS_F32, s.state[0], i, n, s.wide, m);
        if (RULE == DS_OPTIM_RULE_ADAM || warm) store4(DS_F32, s.state[1], i, n, s.wide, v);
        if (third) store4(DS_F32, s.state[2], i, n, s.wide, w);
        if (s.weights16) store4(s.weights_dtype, s.weights16, i, n, s.wide, p);
    }
}
// The lanes of a grain fold by halves; the sum is lane 0's.
__device__ double fold(double sum) {
    const unsigned mask = 0xFFFFu << (threadIdx.x & 16);
    for (int half = LANES / 2; half; half /= 2) sum = ptx_add64(sum, __shfl_down_sync(mask, sum, half, LANES));
    return sum;
}
/* LAMB's first phase: moments, and the squares of weights and direction by grain. Sixteen threads to a grain: thread l
   adds elements l, l + 16, ... in order. 24 bytes an element, fp32 gradient, 2 less for a 16-bit one, and 16 a grain: bound
   by memory where fp64 has half the rate of fp32, else (as sm_75 and sm_86) by its two fp64 operations an element. */
__global__ void __launch_bounds__(THREADS) lamb_measure(ds_optim_constants c, parts all) {
    const part &s = *part_of(all, blockIdx.x);
    const size_t lane = threadIdx.x % LANES, grains = (s.count + DS_GRAIN - 1) / DS_GRAIN;
    for (size_t k = threadIdx.x / LANES; k < CHUNK / DS_GRAIN; k += THREADS / LANES) {
        const size_t grain = (blockIdx.x - s.first) * (CHUNK / DS_GRAIN) + k, begin = grain * DS_GRAIN;
        const size_t end = begin + DS_GRAIN < s.count ? begin + DS_GRAIN : s.count;
        double weights = 0, direction = 0;
        if (grain >= grains) break;
        for (size_t i = begin + lane; i < end; i += LANES) {
            const float g = ptx_mul(load(s.grad_dtype, s.grad, i), c.adam.factor), p = s.master[i];
            float m = s.state[0][i], v = s.state[1][i], u;
            DSI_OPTIM_MOMENTS(cu, g, m, v)
            DSI_OPTIM_TRUST(cu, u, p, m, v)
            s.state[0][i] = m;
            s.state[1][i] = v;
            weights = ptx_fma64(ptx_wide(p), ptx_wide(p), weights); // the products are exact
            direction = ptx_fma64(ptx_wide(u), ptx_wide(u), direction);
        }
        weights = fold(weights);
        direction = fold(direction);
        if (lane == 0) s.sums[2 * grain] = weights, s.sums[2 * grain + 1] = direction;
    }
}
/* 1-bit LAMB, compressed phase: the averaged momentum, taken back to its size, becomes the momentum; the gradient that would
   have led there goes into a fresh variance, which is compared with the frozen one. Lanes and bounds as above; 28 bytes an
   element, and 24 a grain. */
__global__ void __launch_bounds__(THREADS) one_bit_lamb(ds_optim_constants c, parts all) {
    const part &s = *part_of(all, blockIdx.x);
    const size_t lane = threadIdx.x % LANES, grains = (s.count + DS_GRAIN - 1) / DS_GRAIN;
    const unsigned mask = 0xFFFFu << (threadIdx.x & 16);
    ds_optim_constants plain = c; // without weight decay
    plain.l2 = 0;
    for (size_t k = threadIdx.x / LANES; k < CHUNK / DS_GRAIN; k += THREADS / LANES) {
        const size_t grain = (blockIdx.x - s.first) * (CHUNK / DS_GRAIN) + k, begin = grain * DS_GRAIN;
        const size_t end = begin + DS_GRAIN < s.count ? begin + DS_GRAIN : s.count;
        double squares[2] = {0, 0};
        float largest = 0;
        if (grain >= grains) break;
        for (size_t i = begin + lane; i < end; i += LANES) {
            const float p = s.master[i], v = s.state[1][i], m = ptx_div(((const float *)s.grad)[i], s.rate);
            const float g = ptx_div(ptx_fma(s.state[0][i], -c.beta1, m), c.one_minus_beta1);
            const float fresh = ptx_fma(ptx_mul(g, g), c.one_minus_beta2, ptx_mul(s.state[2][i], c.beta2));
            const float ratio = ptx_div(ptx_add(ptx_sqrt(v), c.eps_out), ptx_add(ptx_sqrt(fresh), c.eps_out));
            const double u = ptx_wide(trust(plain, p, m, v)), decayed = ptx_wide(trust(c, p, m, v));
            s.state[0][i] = m;
            s.state[2][i] = fresh;
            if (ratio > largest) largest = ratio;
            squares[0] = ptx_fma64(u, u, squares[0]); // the products are exact
            squares[1] = ptx_fma64(decayed, decayed, squares[1]);
        }
        for (int half = LANES / 2; half; half /= 2) {
            const float other = __shfl_down_sync(mask, largest, half, LANES);
            if (other > largest) largest = other;
        }
        squares[0] = fold(squares[0]);
        squares[1] = fold(squares[1]);
        if (lane == 0)
            s.sums[3 * grain] = squares[0], s.sums[3 * grain + 1] = squares[1],
                       s.sums[3 * grain + 2] = ptx_wide(largest);
    }
}
part part_from(const ds_optim_part &from, size_t first) {
    const ds_optim_slice &s = from.slice;
    part p;
    p.master = s.master, p.state[0] = s.state[0], p.state[1] = s.state[1], p.state[2] = s.state[2];
    p.grad = s.grad, p.weights16 = s.weights16, p.sums = from.sums;
    p.count = s.count, p.first = first, p.rate = from.rate;
    p.grad_dtype = s.grad_dtype, p.weights_dtype = s.weights16_dtype;
    p.wide = wide_of(DS_F32, s.master) && wide_of(DS_F32, s.state[0]) && wide_of(DS_F32, s.state[1]) &&
             wide_of(DS_F32, s.state[2]) && wide_of(s.grad_dtype, s.grad) && wide_of(s.weights16_dtype, s.weights16);
    return p;
}
void launch_update(ds_optim_rule rule, unsigned n, const ds_optim_constants &c, const parts &all, cudaStream_t stream) {
    switch (rule) {
    case DS_OPTIM_RULE_ADAM: DSI_LAUNCH(update<DS_OPTIM_RULE_ADAM>, n, THREADS, 0, stream, c, all); break;
    case DS_OPTIM_RULE_SGD: DSI_LAUNCH(update<DS_OPTIM_RULE_SGD>, n, THREADS, 0, stream, c, all); break;
    case DS_OPTIM_RULE_ADAGRAD: DSI_LAUNCH(update<DS_OPTIM_RULE_ADAGRAD>, n, THREADS, 0, stream, c, all); break;
    case DS_OPTIM_RULE_LION: DSI_LAUNCH(update<DS_OPTIM_RULE_LION>, n, THREADS, 0, stream, c, all); break;
    case DS_OPTIM_RULE_LAMB_MEASURE: DSI_LAUNCH(lamb_measure, n, THREADS, 0, stream, c, all); break;
    case DS_OPTIM_RULE_LAMB_UPDATE: DSI_LAUNCH(update<DS_OPTIM_RULE_LAMB_UPDATE>, n, THREADS, 0, stream, c, all); break;
    case DS_OPTIM_RULE_ONE_BIT_WARM:
        DSI_LAUNCH(update<DS_OPTIM_RULE_ONE_BIT_WARM>, n, THREADS, 0, stream, c, all);
        break;
    case DS_OPTIM_RULE_ONE_BIT_MOVE:
        DSI_LAUNCH(update<DS_OPTIM_RULE_ONE_BIT_MOVE>, n, THREADS, 0, stream, c, all);
        break;
    case DS_OPTIM_RULE_ONE_BIT_UNDO:
        DSI_LAUNCH(update<DS_OPTIM_RULE_ONE_BIT_UNDO>, n, THREADS, 0, stream, c, all);
        break;
    case DS_OPTIM_RULE_ONE_BIT_REDO:
        DSI_LAUNCH(update<DS_OPTIM_RULE_ONE_BIT_REDO>, n, THREADS, 0, stream, c, all);
        break;
    case DS_OPTIM_RULE_ONE_BIT_LAMB: DSI_LAUNCH(one_bit_lamb, n, THREADS, 0, stream, c, all);
    }
}
// A list too long for a kernel's arguments goes to device memory, in copies small enough not to wait for the stream.
ds_status send_list(const ds_optim_part *from, size_t count, void *to, size_t *chunks, cudaStream_t stream) {
    part some[PARTS];
    ds_status status = DS_OK;
    *chunks = 0;
    for (size_t i = 0; i < count && !status;) {
        const size_t at = i;
        for (; i < count && i - at < PARTS; i++) {
            some[i - at] = part_from(from[i], *chunks);
            *chunks += (from[i].slice.count + CHUNK - 1) / CHUNK;
        }
        status = said(cudaMemcpyAsync((part *)to + at, some, (i - at) * sizeof(part), cudaMemcpyDefault, stream));
    }
    return status;
}
ds_status call_update(void *ctx, ds_optim_rule rule, const ds_optim_constants *c, const ds_optim_part *from,
                      size_t count, void *on) {
    use(ctx);
    const cudaStream_t stream = (cudaStream_t)on;
    ds_status status = DS_OK;
    parts all;
    void *list = NULL;
    size_t chunks = 0;
    if ((unsigned)rule > DS_OPTIM_RULE_ONE_BIT_LAMB || count > 0x7FFFFFFF) return DS_ERR_ARGUMENT;
    for (size_t i = 0; i < count; i++) {
        if (!is_float(from[i].slice.grad_dtype) || !from[i].slice.count) return DS_ERR_ARGUMENT;
        if (count <= PARTS) all.own[i] = part_from(from[i], chunks);
        chunks += (from[i].slice.count + CHUNK - 1) / CHUNK;
    }
    if (!chunks) return DS_OK;
    if (chunks > 0x7FFFFFFF) return refused("more than 8 Ti elements at once");
    if (count > PARTS) {
        if ((status = said(cudaMallocAsync(&list, count * sizeof(part), stream))) != DS_OK) return status;
        status = send_list(from, count, list, &chunks, stream);
    }
    all.list = (const part *)list;
    all.count = (unsigned)count;
    if (!status) launch_update(rule, (unsigned)chunks, *c, all, stream);
    if (!status) status = launched();
    if (list) (void)cudaFreeAsync(list, stream);
    return status;
}

// >>muon
// y = x * a + y * b: 12 bytes an element, bound by memory.
__global__ void mix(float *y, const float *x, float a, float b, size_t count) {
    for (size_t i = first_index(); i < count; i += stride()) y[i] = ptx_fma(x[i], a, ptx_mul(y[i], b));
}
/* c = alpha * a * op(b) + beta * c, in tiles of 64 x 64 by 256 threads, 16 of k at a time through shared memory: each
   element is one chain of fused multiply-adds in the order of k, as on the CPU. 2 k flops an element of c for k / 8 bytes,
   most from the second level's cache, and 4 of c (8 with beta): bound by fp32 arithmetic. */
enum { TILE = 64, DEPTH = 16 };
template <bool TRANSPOSE>
__global__ void __launch_bounds__(THREADS)
    multiply(size_t m, size_t n, size_t k, float alpha, const float *a, const float *b, float beta, float *c) {
    DSI_SHARED(float, shared);
    float *const as = shared, *const bs = shared + DEPTH * TILE; // (DEPTH, TILE) each
    const size_t row0 = (size_t)blockIdx.y * TILE, column0 = (size_t)blockIdx.x * TILE;
    const unsigned tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[4][4] = {{0}};
    for (size_t l0 = 0; l0 < k; l0 += DEPTH) {
        for (unsigned e = threadIdx.x; e < DEPTH * TILE; e += THREADS) {
            const size_t l = l0 + e % DEPTH, row = row0 + e / DEPTH;
            as[e % DEPTH * TILE + e / DEPTH] = row < m && l < k ? a[row * k + l] : 0.0f;
            if (TRANSPOSE) {
                const size_t column = column0 + e / DEPTH;
                bs[e % DEPTH * TILE + e / DEPTH] = column < n && l < k ? b[column * k + l] : 0.0f;
            } else {
                const size_t column = column0 + e % TILE, deep = l0 + e / TILE;
                bs[e] = column < n && deep < k ? b[deep * n + column] : 0.0f;
            }
        }
        __syncthreads();
        for (unsigned l = 0; l < DEPTH && l0 + l < k; l++)
            for (unsigned i = 0; i < 4; i++)
                for (unsigned j = 0; j < 4; j++)
                    sum[i][j] = ptx_fma(as[l * TILE + ty * 4 + i], bs[l * TILE + tx + 16 * j], sum[i][j]);
        __syncthreads();
    }
    for (unsigned i = 0; i < 4; i++)
        for (unsigned j = 0; j < 4; j++) {
            const size_t row = row0 + ty * 4 + i, column = column0 + tx + 16 * j;
            float *const to = c + row * n + column;
            if (row >= m || column >= n) continue;
            *to = beta == 0 ? ptx_mul(sum[i][j], alpha) : ptx_fma(sum[i][j], alpha, ptx_mul(*to, beta));
        }
}
/* A tile of 32 x 32 through shared memory, turned: `to` (cols, rows) = `from` (rows, cols) transposed, 8 bytes an element.
   MIRROR: of one square, what is below the diagonal = what is above it, and `add` goes to the diagonal; half of that. Bound
   by memory. */
enum { SIDE = 32 };
template <bool MIRROR>
__global__ void __launch_bounds__(THREADS) turn(float *to, const float *from, size_t rows, size_t cols, float add) {
    DSI_SHARED(float, tile); // (SIDE, SIDE + 1)
    const size_t across = (cols + SIDE - 1) / SIDE;
    const size_t row0 = blockIdx.x / across * SIDE, column0 = blockIdx.x % across * SIDE;
    const unsigned x = threadIdx.x % SIDE;
    if (MIRROR && row0 > column0) return;
    for (unsigned y = threadIdx.x / SIDE; y < SIDE; y += THREADS / SIDE)
        if (row0 + y < rows && column0 + x < cols) tile[y * (SIDE + 1) + x] = from[(row0 + y) * cols + column0 + x];
    __syncthreads();
    for (unsigned y = threadIdx.x / SIDE; y < SIDE; y += THREADS / SIDE) {
        const size_t row = column0 + y, column = row0 + x; // of `to`
        if (row >= cols || column >= rows || (MIRROR && column > row)) continue;
        const float value = tile[x * (SIDE + 1) + y];
        to[row * rows + column] = MIRROR && column == row ? ptx_add(value, add) : value;
    }
}
template <bool MIRROR>
ds_status call_turn(float *to, const float *from, size_t rows, size_t cols, float add, void *stream) {
    const size_t down = (rows + SIDE - 1) / SIDE, across = (cols + SIDE - 1) / SIDE;
    if (!rows || !cols) return DS_OK;
    if (down > 0x7FFFFFFF / across) return refused("a matrix of more than 2 Ti elements");
    DSI_LAUNCH(turn<MIRROR>, (unsigned)(down * across), THREADS, SIDE * (SIDE + 1) * sizeof(float),
               (cudaStream_t)stream, to, from, rows, cols, add);
    return launched();
}
ds_status call_transpose(void *ctx, float *to, const float *from, size_t rows, size_t cols, void *stream) {
    use(ctx);
    return call_turn<false>(to, from, rows, cols, 0, stream);
}
ds_status call_mirror(void *ctx, float *c, size_t n, float add, void *stream) {
    use(ctx);
    return call_turn<true>(c, c, n, n, add, stream);
}
ds_status call_mix(void *ctx, float *y, const float *x, float a, float b, size_t count, void *stream) {
    use(ctx);
    if (!count) return DS_OK;
    DSI_LAUNCH(mix, blocks(count), THREADS, 0, (cudaStream_t)stream, y, x, a, b, count);
    return launched();
}
ds_status call_multiply(void *ctx, bool transpose, size_t m, size_t n, size_t k, float alpha, const float *a,
                        const float *b, float beta, float *c, void *stream) {
    use(ctx);
    const size_t across = (n + TILE - 1) / TILE, down = (m + TILE - 1) / TILE, bytes = 2 * DEPTH * TILE * sizeof(float);
    if (!m || !n) return DS_OK;
    if (across > 0x7FFFFFFF || down > 65535) return refused("a matrix of more than 4,194,240 rows");
    const dim3 grid((unsigned)across, (unsigned)down);
    if (transpose)
        DSI_LAUNCH(multiply<true>, grid, THREADS, bytes, (cudaStream_t)stream, m, n, k, alpha, a, b, beta, c);
    else
        DSI_LAUNCH(multiply<false>, grid, THREADS, bytes, (cudaStream_t)stream, m, n, k, alpha, a, b, beta, c);
    return launched();
}

// >>gradients
/* Sums of squares by grain, sixteen threads to one, in the CPU's order: one read of the gradient, 2 or 4 bytes an element,
   and 8 a grain; bound by memory, but for fp64's slow units as lamb_measure. An element that is not finite makes its sum so;
   nothing else can. */
__global__ void __launch_bounds__(THREADS)
    norm_grains(const void *grad, ds_dtype dtype, size_t count, float factor, double *per_grain, size_t grains) {
    const size_t lane = threadIdx.x % LANES;
    for (size_t grain = first_index() / LANES; grain < grains; grain += stride() / LANES) {
        const size_t begin = grain * DS_GRAIN, end = begin + DS_GRAIN < count ? begin + DS_GRAIN : count;
        double sum = 0;
        DSI_UNROLL(8)
        for (size_t i = begin + lane; i < end; i += LANES) {
            const double x = ptx_wide(ptx_mul(load(dtype, grad, i), factor));
            sum = ptx_fma64(x, x, sum); // the product is exact
        }
        sum = fold(sum);
        if (lane == 0) per_grain[grain] = sum;
    }
}
/* Neighbours are added until one is left, as ds_optim_norm_tree does; one block, in place: a piece is read before any of
   it is written, and pieces go upwards. 24 bytes for each grain in all, 1/170 of what norm_grains reads of fp32: bound by
   the latency of its log2 n turns. */
__global__ void norm_tree(double *sums, size_t n) {
    for (; n > 1; n = n / 2 + n % 2)
        for (size_t begin = 0; begin < n / 2 + n % 2; begin += blockDim.x) {
            const size_t i = begin + threadIdx.x;
            double sum = 0;
            if (i < n / 2) sum = ptx_add64(sums[2 * i], sums[2 * i + 1]);
            if (i == n / 2 && n % 2) sum = sums[n - 1];
            __syncthreads();
            if (i < n / 2 + n % 2) sums[i] = sum;
            __syncthreads();
        }
}
// Bytes an element: the two types' sizes; accumulate reads `to` too, scale reads and writes one. Bound by memory.
template <int HOW>
__global__ void convert(void *to, ds_dtype t, const void *from, ds_dtype f, float factor, bool wide, size_t count) {
    for (size_t i = 4 * first_index(); i < count; i += 4 * stride()) {
        float x[4], y[4];
        load4(f, from, i, count - i, wide, x);
        if (HOW == 1) load4(t, to, i, count - i, wide, y);
        for (unsigned e = 0; e < 4; e++) {
            if (HOW == 1) x[e] = ptx_add(y[e], x[e]);
            if (HOW == 2) x[e] = ptx_mul(x[e], factor);
        }
        store4(t, to, i, count - i, wide, x);
    }
}
enum { CAST, ACCUMULATE, SCALE };
template <int HOW>
ds_status call_convert(void *to, ds_dtype t, const void *from, ds_dtype f, float factor, size_t count, void *stream) {
    const bool wide = wide_of(t, to) && wide_of(f, from);
    if (!is_float(t) || !is_float(f)) return DS_ERR_ARGUMENT;
    if (!count) return DS_OK;
    DSI_LAUNCH(convert<HOW>, blocks(count / 4 + 1), THREADS, 0, (cudaStream_t)stream, to, t, from, f, factor, wide,
               count);
    return launched();
}
ds_status call_cast(void *ctx, void *to, ds_dtype t, const void *from, ds_dtype f, size_t count, void *stream) {
    use(ctx);
    if (t != f || !is_float(t)) return call_convert<CAST>(to, t, from, f, 1.0f, count, stream);
    if (!count || to == from) return DS_OK;
    return said(cudaMemcpyAsync(to, from, count * DS_DTYPE_SIZE(t), cudaMemcpyDefault, (cudaStream_t)stream));
}
ds_status call_accumulate(void *ctx, void *to, ds_dtype t, const void *from, ds_dtype f, size_t count, void *stream) {
    use(ctx);
    return call_convert<ACCUMULATE>(to, t, from, f, 1.0f, count, stream);
}
ds_status call_scale(void *ctx, void *x, ds_dtype dtype, float factor, size_t count, void *stream) {
    use(ctx);
    return call_convert<SCALE>(x, dtype, x, dtype, factor, count, stream);
}
ds_status call_norm(void *ctx, const void *grad, ds_dtype dtype, size_t count, float factor, double *per_grain,
                    void *stream) {
    use(ctx);
    const size_t grains = count / DS_GRAIN + (count % DS_GRAIN != 0);
    if (!is_float(dtype)) return DS_ERR_ARGUMENT;
    if (!count) return DS_OK;
    DSI_LAUNCH(norm_grains, blocks(grains * LANES), THREADS, 0, (cudaStream_t)stream, grad, dtype, count, factor,
               per_grain, grains);
    return launched();
}
ds_status call_tree(void *ctx, double *grains, size_t n, void *stream) {
    use(ctx);
    if (n < 2) return DS_OK;
    DSI_LAUNCH(norm_tree, 1, 1024, 0, (cudaStream_t)stream, grains, n);
    return launched();
}

// >>messages
__device__ bool not_negative(float x) { // x >= 0, denormals too
    const uint32_t bits = dsi_bits_of_f32(x);
    return bits <= 0x7F800000u || bits == 0x80000000u;
}
/* error += in, and the sums of squares of what it came to: as norm_grains. 12 bytes an element, bound by memory. */
__global__ void __launch_bounds__(THREADS)
    one_bit_add(float *error, const float *in, size_t count, size_t padded, double *per_grain, size_t grains) {
    const size_t lane = threadIdx.x % LANES;
    for (size_t grain = first_index() / LANES; grain < grains; grain += stride() / LANES) {
        const size_t begin = grain * DS_GRAIN, end = begin + DS_GRAIN < padded ? begin + DS_GRAIN : padded;
        double sum = 0;
        for (size_t i = begin + lane; i < end; i += LANES) {
            if (i < count) error[i] = ptx_add(error[i], in[i]);
            const double x = ptx_wide(error[i]);
            sum = ptx_fma64(x, x, sum);
        }
        sum = fold(sum);
        if (lane == 0) per_grain[grain] = sum;
    }
}
/* The scale from the norm, a sign for each element, eight to a byte with the first in the highest bit, and what they lose.
   8 1/8 bytes an element, bound by memory. */
__global__ void one_bit_signs(float *error, size_t padded, uint8_t *signs, float *scale, const double *sum) {
    const float s = ptx_narrow(ptx_sqrt64(ptx_div64(*sum, (double)padded)));
    if (first_index() == 0) *scale = s;
    for (size_t i = first_index(); i < (padded + 31) / 32 * 32; i += stride()) { // whole warps: all lanes vote
        const float x = i < padded ? error[i] : 0.0f;
        const unsigned votes = __ballot_sync(0xFFFFFFFFu, not_negative(x)), lane = threadIdx.x % 32;
        if (i >= padded) continue;
        error[i] = ptx_add(x, not_negative(x) ? -s : s);
        if (i % 8 == 0) {
            unsigned byte = 0;
            for (unsigned b = 0; b < 8; b++) byte |= (votes >> (lane + b) & 1) << (7 - b);
            signs[i / 8] = (uint8_t)byte;
        }
    }
}
__device__ float signed_scale(const uint8_t *signs, size_t i, float scale) {
    return signs[i / 8] >> (7 - i % 8) & 1 ? scale : -scale;
}
struct sources {
    const void *at[DS_COMM_KERNEL_RANKS];
};
__device__ float combined(ds_comm_op op, float a, float b) {
    if (op == DS_COMM_MIN) return b < a || b != b ? b : a;
    if (op == DS_COMM_MAX) return b > a || b != b ? b : a;
    return ptx_add(a, b);
}
/* Ranks' arrays are added in one binary tree over their numbers. Bytes an element: the type's size for each, and the
   result's; bound by memory. */
__global__ void sum_ranks(sources in, unsigned world, ds_dtype dtype, void *out, ds_dtype out_dtype, ds_comm_op op,
                          size_t count) {
    for (size_t i = first_index(); i < count; i += stride()) {
        float level[7], sum = 0;
        for (unsigned r = 0; r < world; r++) {
            unsigned l = 0;
            sum = load(dtype, in.at[r], i);
            for (; r >> l & 1; l++) sum = combined(op, level[l], sum);
            level[l] = sum;
        }
        for (unsigned l = 0, some = 0; l < 7; l++) {
            if (!(world >> l & 1)) continue;
            sum = some ? combined(op, level[l], sum) : level[l];
            some = 1;
        }
        store(out_dtype, out, i, op == DS_COMM_AVERAGE ? ptx_div(sum, (float)world) : sum);
    }
}
/* Ranks are added in one binary tree over their numbers, by a binary counter. 8 + ranks / 8 bytes an element, bound by
   memory. */
__global__ void one_bit_average(float *error, const uint8_t *signs, const float *scales, unsigned world, size_t chunk) {
    for (size_t i = first_index(); i < chunk; i += stride()) {
        float level[16], sum = 0;
        for (unsigned r = 0; r < world; r++) {
            unsigned l = 0;
            sum = signed_scale(signs + r * (chunk / 8), i, scales[r]);
            for (; r >> l & 1; l++) sum = ptx_add(level[l], sum);
            level[l] = sum;
        }
        for (unsigned l = 0, some = 0; l < 16; l++) {
            if (!(world >> l & 1)) continue;
            sum = some ? ptx_add(level[l], sum) : level[l];
            some = 1;
        }
        error[i] = ptx_add(error[i], ptx_div(sum, (float)world));
    }
}
// 4 1/8 bytes an element, bound by memory.
__global__ void one_bit_expand(float *to, const uint8_t *signs, const float *scale, size_t count) {
    for (size_t i = first_index(); i < count; i += stride()) to[i] = signed_scale(signs, i, *scale);
}
__device__ float extreme(float x, bool largest, float *of_warps) {
    for (int with = 16; with; with /= 2) {
        const float other = __shfl_xor_sync(0xFFFFFFFFu, x, with);
        x = largest ? ptx_max(x, other) : ptx_min(x, other);
    }
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    x = of_warps[0];
    for (unsigned w = 1; w < THREADS / 32; w++) x = largest ? ptx_max(x, of_warps[w]) : ptx_min(x, of_warps[w]);
    return x;
}
__device__ int quantized(float x, float middle, float scale, float half) {
    const float q = ptx_rint(ptx_mul(ptx_add(x, -middle), scale));
    const float most = ptx_add(half, -1);
    return ptx_int(q < -half ? -half : q > most ? most : q);
}
/* One group a block. The second read of the values is the cache's: 2 or 4 bytes an element in, 1 or 1/2 out, and 4 a group
   (8 asymmetric). Bound by memory. */
__global__ void __launch_bounds__(THREADS)
    quantize(int bits, bool asymmetric, const void *in, ds_dtype dtype, size_t each, int8_t *packed, float *params) {
    DSI_SHARED(float, shared);
    const size_t from = blockIdx.x * each;
    const float half = bits == 8 ? 128.0f : 8.0f;
    float low = load(dtype, in, from), high = low, middle = 0, range, scale = 1, odd = 0;
    for (size_t i = threadIdx.x; i < each; i += THREADS) {
        const float x = load(dtype, in, from + i);
        low = ptx_min(low, x); // of NaN and a number the number
        high = ptx_max(high, x);
        if (x != x) odd = 1;
    }
    low = extreme(low, false, shared);
    high = extreme(high, true, shared + THREADS / 32);
    odd = extreme(odd, true, shared + 2 * (THREADS / 32));
    if (asymmetric && odd == 0) middle = ptx_mul(ptx_add(high, low), 0.5f);
    range = asymmetric ? ptx_add(high, -low) : ptx_mul(2, ptx_max(high, -low));
    if (odd == 0 && range > 0) scale = ptx_div(ptx_mul(2, half), range);
    if (threadIdx.x == 0) {
        params[blockIdx.x * (asymmetric ? 2 : 1)] = odd == 0 ? ptx_div(1, scale) : NAN;
        if (asymmetric) params[2 * blockIdx.x + 1] = middle;
    }
    for (size_t i = threadIdx.x; bits == 8 && i < each; i += THREADS)
        packed[from + i] = (int8_t)quantized(load(dtype, in, from + i), middle, scale, half);
    for (size_t i = 2 * threadIdx.x; bits == 4 && i < each; i += 2 * THREADS) {
        const int first = quantized(load(dtype, in, from + i), middle, scale, half);
        const int second = quantized(load(dtype, in, from + i + 1), middle, scale, half);
        packed[(from + i) / 2] = (int8_t)(first * 16 + (second & 15));
    }
}
// 1 or 1/2 bytes an element in and 4 a group (8 asymmetric), 2 or 4 out; bound by memory.
__global__ void dequantize(int bits, bool asymmetric, const int8_t *packed, const float *params, size_t each, void *out,
                           ds_dtype dtype, size_t count) {
    for (size_t i = first_index(); i < count; i += stride()) {
        const float *p = params + i / each * (asymmetric ? 2 : 1);
        int q = packed[bits == 8 ? i : i / 2];
        if (bits == 4) q = i % 2 == 0 ? q >> 4 : (int)(((unsigned)q & 15u) ^ 8u) - 8;
        store(dtype, out, i,
              asymmetric ? ptx_narrow(ptx_fma64((double)q, ptx_wide(p[0]), ptx_wide(p[1]))) : ptx_mul((float)q, p[0]));
    }
}
ds_status call_compress(void *ctx, float *error, const float *in, size_t count, size_t padded, uint8_t *signs,
                        float *scale, double *grains, void *on) {
    use(ctx);
    const cudaStream_t stream = (cudaStream_t)on;
    const size_t n = padded / DS_GRAIN + (padded % DS_GRAIN != 0);
    if (padded % 8 || count > padded) return DS_ERR_ARGUMENT;
    if (!padded) return said(cudaMemsetAsync(scale, 0, sizeof *scale, stream));
    DSI_LAUNCH(one_bit_add, blocks(n * LANES), THREADS, 0, stream, error, in, count, padded, grains, n);
    if (n > 1) DSI_LAUNCH(norm_tree, 1, 1024, 0, stream, grains, n);
    DSI_LAUNCH(one_bit_signs, blocks(padded), THREADS, 0, stream, error, padded, signs, scale, grains);
    return launched();
}
ds_status call_average(void *ctx, float *error, const uint8_t *signs, const float *scales, int world, size_t chunk,
                       void *stream) {
    use(ctx);
    if (world < 1 || world > 65535 || chunk % 8) return DS_ERR_ARGUMENT;
    if (!chunk) return DS_OK;
    DSI_LAUNCH(one_bit_average, blocks(chunk), THREADS, 0, (cudaStream_t)stream, error, signs, scales, (unsigned)world,
               chunk);
    return launched();
}
ds_status call_sum(void *ctx, const void *const *inputs, int input_count, ds_dtype dtype, void *out, ds_dtype out_dtype,
                   ds_comm_op op, size_t count, void *stream) {
    use(ctx);
    sources in = {};
    if (input_count < 1 || input_count > DS_COMM_KERNEL_RANKS || !is_float(dtype) || !is_float(out_dtype))
        return DS_ERR_ARGUMENT;
    if (!count) return DS_OK;
    for (int r = 0; r < input_count; r++) in.at[r] = inputs[r];
    DSI_LAUNCH(sum_ranks, blocks(count), THREADS, 0, (cudaStream_t)stream, in, (unsigned)input_count, dtype, out,
               out_dtype, op, count);
    return launched();
}
ds_status call_expand(void *ctx, float *to, const uint8_t *signs, const float *scale, size_t count, void *stream) {
    use(ctx);
    if (!count) return DS_OK;
    DSI_LAUNCH(one_bit_expand, blocks(count), THREADS, 0, (cudaStream_t)stream, to, signs, scale, count);
    return launched();
}
bool right_blocks(ds_comm_blocks f, ds_dtype dtype, size_t count) {
    return (f.bits == 8 || f.bits == 4) && is_float(dtype) && f.groups && f.groups <= 0x7FFFFFFF &&
           count % f.groups == 0 && (f.bits == 8 || count / f.groups % 2 == 0);
}
ds_status call_quantize(void *ctx, ds_comm_blocks form, const void *in, ds_dtype dtype, size_t count, int8_t *packed,
                        float *params, void *stream) {
    use(ctx);
    if (!count) return DS_OK;
    if (!right_blocks(form, dtype, count)) return DS_ERR_ARGUMENT;
    DSI_LAUNCH(quantize, (unsigned)form.groups, THREADS, 3 * THREADS / 32 * sizeof(float), (cudaStream_t)stream,
               form.bits, form.asymmetric, in, dtype, count / form.groups, packed, params);
    return launched();
}
ds_status call_dequantize(void *ctx, ds_comm_blocks form, const int8_t *packed, const float *params, void *out,
                          ds_dtype dtype, size_t count, void *stream) {
    use(ctx);
    if (!count) return DS_OK;
    if (!right_blocks(form, dtype, count)) return DS_ERR_ARGUMENT;
    DSI_LAUNCH(dequantize, blocks(count), THREADS, 0, (cudaStream_t)stream, form.bits, form.asymmetric, packed, params,
               count / form.groups, out, dtype, count);
    return launched();
}

// >>rows
__device__ bool not_zero(uint4 x) {
    return x.x | x.y | x.z | x.w;
}
__device__ bool not_zero(uint8_t x) {
    return x;
}
/* Which rows hold a bit that is not zero, a warp to a row in turn: each byte is read once, until one is found, and 1 written
   a row. Bound by memory. */
template <class T>
__global__ void __launch_bounds__(THREADS) flag_rows(const T *table, size_t rows, size_t width, uint8_t *flags) {
    for (size_t r = first_index() / 32; r < rows; r += stride() / 32) { // the same for a whole warp
        bool any = false;
        for (size_t i = 0; i < width && !any; i += 32) {
            const size_t at = i + threadIdx.x % 32;
            any = __any_sync(0xFFFFFFFFu, at < width && not_zero(table[r * width + at]));
        }
        if (threadIdx.x % 32 == 0) flags[r] = any;
    }
}
// Rows of T by index, one block to a row in turn: 2 bytes moved for each of a row, and 4 of index; bound by memory. A row
// gathered from DS_COMM_NO_ROW is zeros.
template <class T, bool GATHER>
__global__ void __launch_bounds__(THREADS)
    move_rows(T *to, const T *from, const uint32_t *rows, size_t count, size_t width) {
    for (size_t r = blockIdx.x; r < count; r += gridDim.x)
        for (size_t i = threadIdx.x; i < width; i += THREADS)
            if (GATHER)
                to[r * width + i] = rows[r] == DS_COMM_NO_ROW ? T() : from[rows[r] * width + i];
            else
                to[rows[r] * width + i] = from[r * width + i];
}
ds_status call_flag_rows(void *ctx, const void *table, size_t rows, size_t bytes, uint8_t *flags, void *on) {
    use(ctx);
    const unsigned n = blocks(rows * 32);
    if (!rows) return DS_OK;
    if (bytes % 16 == 0 && aligned(table, 16))
        DSI_LAUNCH(flag_rows<uint4>, n, THREADS, 0, (cudaStream_t)on, (const uint4 *)table, rows, bytes / 16, flags);
    else
        DSI_LAUNCH(flag_rows<uint8_t>, n, THREADS, 0, (cudaStream_t)on, (const uint8_t *)table, rows, bytes, flags);
    return launched();
}
template <bool GATHER>
ds_status call_rows(void *ctx, void *to, const void *from, const uint32_t *rows, size_t count, size_t bytes, void *on) {
    use(ctx);
    const cudaStream_t stream = (cudaStream_t)on;
    const unsigned n = count < DSI_MOST_BLOCKS ? (unsigned)count : DSI_MOST_BLOCKS;
    if (!count || !bytes) return DS_OK;
    if (bytes % 16 == 0 && aligned(to, 16) && aligned(from, 16))
        DSI_LAUNCH((move_rows<uint4, GATHER>), n, THREADS, 0, stream, (uint4 *)to, (const uint4 *)from, rows, count,
                   bytes / 16);
    else
        DSI_LAUNCH((move_rows<uint8_t, GATHER>), n, THREADS, 0, stream, (uint8_t *)to, (const uint8_t *)from, rows,
                   count, bytes);
    return launched();
}

// >>attention
// A warp takes 16 rows of one side (queries; for d_k and d_v keys), a block up to four warps of one layout block, and the
// other side comes in chunks through shared memory, so no score reaches global memory. Products are 16 x 8 tiles whose
// accumulators lie as mma's do: lane 4 g + t has columns 2 t and 2 t + 1 of rows g and g + 8. 16-bit types go to the tensor
// cores, fp32 through fused multiply-adds in the same places. Scores, softmax and sums are fp32.
template <int KIND> struct element { typedef uint16_t type; };
template <> struct element<DS_F32> { typedef float type; };
struct attention {
    const void *q, *k, *v, *d_out, *read_out;
    void *out, *d_q, *d_k, *d_v;
    float *lse;
    ds_sparse_grid grid;
    ds_sparse_strides in, o;
    size_t tokens, blocks, mask_row, units;
    ds_sparse_io io; // masks
    bool masks;
};
template <int KIND, int D> struct shape {
    typedef typename element<KIND>::type E;
    enum { PAD = 16 / sizeof(E), LD = D + PAD }; // rows start 16 bytes apart in the banks
};
__device__ unsigned lane_group() {
    return threadIdx.x % 32 / 4;
}
__device__ unsigned lane_pair() {
    return threadIdx.x % 4 * 2;
}
__device__ uint32_t two(const uint16_t *p) {
    return *(const uint32_t *)(const void *)p;
}
__device__ void fragment(uint32_t a[4], const uint16_t *at, unsigned ld) {
    const uint16_t *const p = at + lane_group() * ld + lane_pair();
    a[0] = two(p), a[1] = two(p + 8 * ld), a[2] = two(p + 8), a[3] = two(p + 8 * ld + 8);
}
// c (16, 8 N) += a (16, depth) * b (8 N, depth) transposed; rows of both ld apart
template <int KIND, int N>
__device__ void product_nt(float (*c)[4], const float *a, const float *b, unsigned ld, unsigned depth) {
    const float *const low = a + lane_group() * ld, *const high = low + 8 * ld;
    DSI_UNROLL(2)
    for (unsigned k = 0; k < depth; k++)
        for (unsigned n = 0; n < N; n++) {
            const float *const y = b + (8 * n + lane_pair()) * ld + k;
            c[n][0] = ptx_fma(low[k], y[0], c[n][0]), c[n][1] = ptx_fma(low[k], y[ld], c[n][1]);
            c[n][2] = ptx_fma(high[k], y[0], c[n][2]), c[n][3] = ptx_fma(high[k], y[ld], c[n][3]);
        }
}
template <int KIND, int N>
__device__ void product_nt(float (*c)[4], const uint16_t *a, const uint16_t *b, unsigned ld, unsigned depth) {
    for (unsigned k = 0; k < depth; k += 16) {
        uint32_t x[4], y[2];
        fragment(x, a + k, ld);
        for (unsigned n = 0; n < N; n++) {
            const uint16_t *const p = b + (8 * n + lane_group()) * ld + k + lane_pair();
            y[0] = two(p), y[1] = two(p + 8);
            ptx_mma<KIND == DS_BF16>(c[n], x, y);
        }
    }
}
// c (16, 8 N) += a (16, depth) * b (depth, 8 N)
template <int KIND, int N>
__device__ void product_nn(float (*c)[4], const float *a, unsigned lda, const float *b, unsigned ldb, unsigned depth) {
    const float *const low = a + lane_group() * lda, *const high = low + 8 * lda;
    DSI_UNROLL(2)
    for (unsigned k = 0; k < depth; k++)
        for (unsigned n = 0; n < N; n++) {
            const float *const y = b + k * ldb + 8 * n + lane_pair();
            c[n][0] = ptx_fma(low[k], y[0], c[n][0]), c[n][1] = ptx_fma(low[k], y[1], c[n][1]);
            c[n][2] = ptx_fma(high[k], y[0], c[n][2]), c[n][3] = ptx_fma(high[k], y[1], c[n][3]);
        }
}
template <int KIND, int N>
__device__ void product_nn(float (*c)[4], const uint16_t *a, unsigned lda, const uint16_t *b, unsigned ldb,
                           unsigned depth) {
    for (unsigned k = 0; k < depth; k += 16) {
        uint32_t x[4], y[2];
        fragment(x, a + k, lda);
        for (unsigned n = 0; n < N; n++) {
            ptx_ldmatrix_trans(y, b + (k + threadIdx.x % 16) * ldb + 8 * n);
            ptx_mma<KIND == DS_BF16>(c[n], x, y);
        }
    }
}
// Rows token0 .. token0 + rows of one head into shared memory, zeros past the sequence and past head_dim.
template <int KIND, int D>
__device__ void take_rows(typename element<KIND>::type *to, const void *from, size_t row, size_t token0, unsigned rows,
                          const attention &a) {
    typedef typename element<KIND>::type E;
    const unsigned d = (unsigned)a.grid.head_dim, ld = shape<KIND, D>::LD;
    const E *const source = (const E *)from;
    const bool wide = d == D && row * sizeof(E) % 16 == 0 && (uintptr_t)from % 16 == 0;
    enum { EACH = 16 / sizeof(E) };
    for (unsigned i = threadIdx.x * EACH; i < rows * D; i += blockDim.x * EACH) {
        const unsigned r = i / D, e = i % D;
        E *const at = to + r * ld + e;
        if (wide) {
            const uint4 zero = {0, 0, 0, 0};
            *(uint4 *)(void *)at =
                token0 + r < a.tokens ? *(const uint4 *)(const void *)(source + (token0 + r) * row + e) : zero;
        } else
            for (unsigned x = 0; x < EACH; x++)
                at[x] = token0 + r < a.tokens && e + x < d ? source[(token0 + r) * row + e + x] : (E)0;
    }
}
template <int KIND> __device__ uint16_t rounded(float x) {
    return KIND == DS_F16 ? ptx_half(x) : dsi_bf16_of_f32(x);
}
template <int KIND> __device__ void put(float *to, float x) {
    *to = x;
}
template <int KIND> __device__ void put(uint16_t *to, float x) {
    *to = rounded<KIND>(x);
}
// The accumulators of a warp's rows, times a factor for each of its two rows, to global memory.
template <int KIND, int D>
__device__ void give_rows(void *to, size_t row, size_t token0, const float (*c)[4], const float factor[2],
                          const attention &a) {
    for (unsigned n = 0; n < D / 8; n++)
        for (unsigned e = 0; e < 4; e++) {
            const size_t token = token0 + lane_group() + e / 2 * 8, column = 8 * n + lane_pair() + e % 2;
            if (token < a.tokens && column < a.grid.head_dim)
                put<KIND>((typename element<KIND>::type *)to + token * row + column, ptx_mul(c[n][e], factor[e / 2]));
        }
}
__device__ float masked(float x, float mask, ds_sparse_mask mode) {
    return mode == DS_SPARSE_ADD ? ptx_add(x, mask) : mask == 0 ? -INFINITY : x;
}
// Whether the scores of 16 queries and n keys need nothing but the scale.
__device__ bool plain(const attention &a, size_t query0, size_t key0, size_t queries, size_t keys) {
    return !a.masks && query0 + queries <= a.tokens && key0 + keys <= a.tokens &&
           (!a.grid.causal || key0 + keys - 1 <= query0);
}
// What the scaled score of query i and key j becomes with bias and masks.
DSI_APART __device__ float adjusted(const attention &a, size_t b, size_t h, size_t i, size_t j, float x) {
    if (j >= a.tokens || i >= a.tokens || (a.grid.causal && j > i)) return -INFINITY;
    if (a.io.relative) {
        const size_t reach = a.io.relative_reach;
        const size_t at = j >= i ? reach + (j - i < reach ? j - i : reach) : reach - (i - j < reach ? i - j : reach);
        x = ptx_add(x, a.io.relative[h * (2 * reach + 1) + at]);
    }
    if (a.io.key_mask) x = masked(x, a.io.key_mask[b * a.tokens + j], a.io.key_mask_mode);
    if (a.io.mask)
        x = masked(x, a.io.mask[b * a.io.mask_batch + h * a.io.mask_head + i * a.mask_row + j], a.io.mask_mode);
    return x;
}
__device__ float exponential(float x) {
    return ptx_exp2(ptx_mul(x, 1.44269504f));
}
__device__ float of_row(float x, bool largest) { // over the four lanes that share a row
    for (int with = 2; with; with /= 2) {
        const float other = __shfl_xor_sync(0xFFFFFFFFu, x, with);
        x = largest ? ptx_max(x, other) : ptx_add(x, other);
    }
    return x;
}
// Where a block of threads works: heavy causal rows first.
struct place {
    size_t b, h, row, token0; // batch item, head, layout row or column, first token
    const uint32_t *list;
    size_t count;
};
__device__ place place_of(const attention &a, bool columns) {
    const size_t tile = blockDim.x / 2, parts = a.grid.block / tile, index = blockIdx.x / a.units;
    const size_t unit = blockIdx.x % a.units;
    place p;
    p.b = unit / a.grid.heads, p.h = unit % a.grid.heads;
    p.row = columns ? index / parts : a.blocks - 1 - index / parts;
    p.token0 = p.row * a.grid.block + index % parts * tile;
    const size_t at = p.h % a.grid.patterns * a.grid.blocks + p.row;
    const size_t *const start = (columns ? a.grid.column_start : a.grid.row_start) + at;
    p.list = (columns ? a.grid.rows : a.grid.columns) + start[0];
    p.count = start[1] - start[0];
    return p;
}
// The head's first element.
template <int KIND> __device__ const void *head_of(const void *p, const ds_sparse_strides &s, const place &at) {
    return (const typename element<KIND>::type *)p + at.b * s.batch + at.h * s.head;
}
template <int KIND> __device__ void *head_of(void *p, const ds_sparse_strides &s, const place &at) {
    return (typename element<KIND>::type *)p + at.b * s.batch + at.h * s.head;
}

/* Online softmax over chunks of KEYS keys. Bytes: q and out once, 8 of lse a row; k and v once for each 64 rows (or a block's,
   if those are fewer) that see them, from the second level's cache for all but the first. 4 flops a score and head_dim:
   bound by the tensor cores, in fp32 by its fused multiply-adds. */
template <int KIND, int D, int KEYS> __global__ void __launch_bounds__(128) attention_forward(DSI_PARAM attention a) {
    typedef typename element<KIND>::type E;
    enum { LD = shape<KIND, D>::LD, PLD = KEYS + shape<KIND, D>::PAD };
    DSI_SHARED(E, shared);
    const place at = place_of(a, false);
    const unsigned warp = threadIdx.x / 32, rows = blockDim.x / 2;
    E *const q = shared, *const k = q + rows * LD, *const v = k + KEYS * LD, *const p = v + KEYS * LD + warp * 16 * PLD;
    const size_t token0 = at.token0 + warp * 16;
    float o[D / 8][4] = {{0}}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, factor[2];
    take_rows<KIND, D>(q, head_of<KIND>(a.q, a.in, at), a.in.row, at.token0, rows, a);
    for (size_t l = 0; l < at.count; l++)
        for (size_t key0 = at.list[l] * a.grid.block; key0 < (at.list[l] + 1) * a.grid.block; key0 += KEYS) {
            float s[KEYS / 8][4] = {{0}}, top[2] = {-INFINITY, -INFINITY};
            if (key0 >= a.tokens || (a.grid.causal && key0 >= at.token0 + rows)) break;
            __syncthreads();
            take_rows<KIND, D>(k, head_of<KIND>(a.k, a.in, at), a.in.row, key0, KEYS, a);
            take_rows<KIND, D>(v, head_of<KIND>(a.v, a.in, at), a.in.row, key0, KEYS, a);
            __syncthreads();
            product_nt<KIND, KEYS / 8>(s, q + warp * 16 * LD, k, LD, D);
            const bool simple = plain(a, token0, key0, 16, KEYS);
            for (unsigned n = 0; n < KEYS / 8; n++)
                for (unsigned e = 0; e < 4; e++) {
                    s[n][e] = ptx_mul(s[n][e], a.grid.scale);
                    if (!simple)
                        s[n][e] = adjusted(a, at.b, at.h, token0 + lane_group() + e / 2 * 8,
                                           key0 + 8 * n + lane_pair() + e % 2, s[n][e]);
                    top[e / 2] = ptx_max(top[e / 2], s[n][e]);
                }
            for (unsigned r = 0; r < 2; r++) {
                top[r] = ptx_max(of_row(top[r], true), largest[r]);
                // a row that has seen nothing yet keeps zeros: its difference would be no number
                factor[r] = largest[r] == -INFINITY ? 0.0f : exponential(ptx_add(largest[r], -top[r]));
                largest[r] = top[r];
                sum[r] = ptx_mul(sum[r], factor[r]);
            }
            for (unsigned n = 0; n < D / 8; n++)
                for (unsigned e = 0; e < 4; e++) o[n][e] = ptx_mul(o[n][e], factor[e / 2]);
            for (unsigned n = 0; n < KEYS / 8; n++)
                for (unsigned e = 0; e < 4; e++) {
                    const float x = s[n][e] == -INFINITY ? 0.0f : exponential(ptx_add(s[n][e], -largest[e / 2]));
                    sum[e / 2] = ptx_add(sum[e / 2], x);
                    put<KIND>(p + (lane_group() + e / 2 * 8) * PLD + 8 * n + lane_pair() + e % 2, x);
                }
            __syncwarp();
            product_nn<KIND, D / 8>(o, p, PLD, v, LD, KEYS);
            __syncwarp();
        }
    for (unsigned r = 0; r < 2; r++) {
        const size_t token = token0 + lane_group() + 8 * r;
        sum[r] = of_row(sum[r], false);
        factor[r] = sum[r] == 0 ? 0.0f : ptx_div(1, sum[r]);
        if (a.lse && lane_pair() == 0 && token < a.tokens) {
            float *const lse = a.lse + 2 * ((at.b * a.grid.heads + at.h) * a.tokens + token);
            lse[0] = sum[r] == 0 ? -INFINITY : largest[r];
            lse[1] = sum[r] == 0 ? 0.0f : ptx_mul(ptx_log2(sum[r]), 0.693147181f);
        }
    }
    give_rows<KIND, D>(head_of<KIND>(a.out, a.o, at), a.o.row, token0, o, factor, a);
}
// Both parts of lse, and delta = sum(d_out * out), of queries token0 .. token0 + n, by the block's warps; +inf where nothing
// was seen.
template <int KIND>
__device__ void take_statistics(float *lse, float *delta, size_t token0, unsigned n, const attention &a,
                                const place &at) {
    const void *const out = head_of<KIND>(a.read_out, a.o, at), *const d_out = head_of<KIND>(a.d_out, a.o, at);
    for (unsigned r = threadIdx.x / 32; r < n; r += blockDim.x / 32) {
        const size_t token = token0 + r;
        float sum = 0, l = -INFINITY, rest = 0;
        if (token < a.tokens) {
            const float *const from = a.lse + 2 * ((at.b * a.grid.heads + at.h) * a.tokens + token);
            l = from[0], rest = from[1];
            for (size_t e = threadIdx.x % 32; e < a.grid.head_dim; e += 32)
                sum = ptx_fma(load((ds_dtype)KIND, out, token * a.o.row + e),
                              load((ds_dtype)KIND, d_out, token * a.o.row + e), sum);
        }
        for (int with = 16; with; with /= 2) sum = ptx_add(sum, __shfl_xor_sync(0xFFFFFFFFu, sum, with));
        if (threadIdx.x % 32 == 0) lse[2 * r] = l == -INFINITY ? INFINITY : l, lse[2 * r + 1] = rest, delta[r] = sum;
    }
}
/* With P = exp(scores - lse), dP = d_out v^T and d_scores = P (dP - delta): rows give d_q = scale d_scores k; columns, on
   the turned scores, d_k = scale d_scores^T q and d_v = P^T d_out. P is computed anew. Bytes: the own side's two arrays and
   its gradients once, the other side's as k and v above, and for delta out and d_out again. 6 flops a score and head_dim for
   rows, 8 for columns: bound as attention_forward. */
template <int KIND, int D, bool COLUMNS>
__global__ void __launch_bounds__(128) attention_backward(DSI_PARAM attention a) {
    typedef typename element<KIND>::type E;
    enum { LD = shape<KIND, D>::LD, KEYS = 16, PLD = KEYS + shape<KIND, D>::PAD };
    DSI_SHARED(E, shared);
    const place at = place_of(a, COLUMNS);
    const unsigned warp = threadIdx.x / 32, rows = blockDim.x / 2;
    E *const x1 = shared, *const x2 = x1 + rows * LD, *const y1 = x2 + rows * LD, *const y2 = y1 + KEYS * LD;
    E *const p = y2 + KEYS * LD + warp * 16 * PLD;
    float *const lse = (float *)(void *)(y2 + KEYS * LD + rows * PLD);
    float *const delta = lse + 2 * (COLUMNS ? (unsigned)KEYS : rows);
    const size_t token0 = at.token0 + warp * 16;
    const float one[2] = {1, 1}, scale[2] = {a.grid.scale, a.grid.scale};
    float first[D / 8][4] = {{0}}, second[COLUMNS ? D / 8 : 1][4] = {{0}};
    const void *const q = head_of<KIND>(a.q, a.in, at), *const k = head_of<KIND>(a.k, a.in, at);
    const void *const v = head_of<KIND>(a.v, a.in, at), *const d_out = head_of<KIND>(a.d_out, a.o, at);
    take_rows<KIND, D>(x1, COLUMNS ? k : q, a.in.row, at.token0, rows, a);
    take_rows<KIND, D>(x2, COLUMNS ? v : d_out, COLUMNS ? a.in.row : a.o.row, at.token0, rows, a);
    if (!COLUMNS) take_statistics<KIND>(lse, delta, at.token0, rows, a, at);
    for (size_t l = 0; l < at.count; l++)
        for (size_t other0 = at.list[l] * a.grid.block; other0 < (at.list[l] + 1) * a.grid.block; other0 += KEYS) {
            float s[KEYS / 8][4] = {{0}}, g[KEYS / 8][4] = {{0}};
            if (other0 >= a.tokens) break;
            if (a.grid.causal && (COLUMNS ? other0 + KEYS <= at.token0 : other0 >= at.token0 + rows)) continue;
            __syncthreads();
            take_rows<KIND, D>(y1, COLUMNS ? q : k, a.in.row, other0, KEYS, a);
            take_rows<KIND, D>(y2, COLUMNS ? d_out : v, COLUMNS ? a.o.row : a.in.row, other0, KEYS, a);
            if (COLUMNS) take_statistics<KIND>(lse, delta, other0, KEYS, a, at);
            __syncthreads();
            product_nt<KIND, KEYS / 8>(s, x1 + warp * 16 * LD, y1, LD, D);
            product_nt<KIND, KEYS / 8>(g, x2 + warp * 16 * LD, y2, LD, D);
            const bool simple = plain(a, COLUMNS ? other0 : token0, COLUMNS ? token0 : other0, 16, 16);
            for (unsigned n = 0; n < KEYS / 8; n++)
                for (unsigned e = 0; e < 4; e++) {
                    const unsigned r = lane_group() + e / 2 * 8, c = 8 * n + lane_pair() + e % 2;
                    const unsigned i = COLUMNS ? c : warp * 16 + r; // of lse and delta
                    const size_t query = COLUMNS ? other0 + c : token0 + r, key = COLUMNS ? token0 + r : other0 + c;
                    float x = ptx_mul(s[n][e], a.grid.scale);
                    if (!simple) x = adjusted(a, at.b, at.h, query, key, x);
                    s[n][e] = x == -INFINITY ? 0.0f : exponential(ptx_add(ptx_add(x, -lse[2 * i]), -lse[2 * i + 1]));
                    g[n][e] = ptx_mul(s[n][e], ptx_add(g[n][e], -delta[i]));
                    put<KIND>(p + r * PLD + c, COLUMNS ? s[n][e] : g[n][e]);
                }
            __syncwarp();
            if (COLUMNS) {
                product_nn<KIND, COLUMNS ? D / 8 : 1>(second, p, PLD, y2, LD, KEYS);
                __syncwarp();
                for (unsigned n = 0; n < KEYS / 8; n++)
                    for (unsigned e = 0; e < 4; e++)
                        put<KIND>(p + (lane_group() + e / 2 * 8) * PLD + 8 * n + lane_pair() + e % 2, g[n][e]);
                __syncwarp();
            }
            product_nn<KIND, D / 8>(first, p, PLD, y1, LD, KEYS);
            __syncwarp();
        }
    give_rows<KIND, D>(head_of<KIND>(COLUMNS ? a.d_k : a.d_q, a.in, at), a.in.row, token0, first, scale, a);
    if (COLUMNS) give_rows<KIND, COLUMNS ? D : 8>(head_of<KIND>(a.d_v, a.in, at), a.in.row, token0, second, one, a);
}
attention attention_of(const ds_sparse_grid *grid, const ds_sparse_io *io) {
    attention a;
    const size_t batch = io->batch ? io->batch : 1;
    a.q = io->q, a.k = io->k, a.v = io->v, a.d_out = io->d_out, a.read_out = io->out;
    a.out = io->out, a.d_q = io->d_q, a.d_k = io->d_k, a.d_v = io->d_v, a.lse = io->lse;
    a.grid = *grid, a.io = *io, a.in = io->strides, a.o = io->o_strides;
    a.tokens = io->seq_len ? io->seq_len : grid->blocks * grid->block;
    a.blocks = (a.tokens - 1) / grid->block + 1;
    a.mask_row = io->mask_row ? io->mask_row : a.tokens;
    a.units = batch * grid->heads;
    a.masks = io->relative || io->key_mask || io->mask;
    for (ds_sparse_strides *s : {&a.in, &a.o})
        if (!s->batch && !s->head && !s->row)
            s->row = grid->head_dim, s->head = a.tokens * s->row, s->batch = grid->heads * s->head;
    return a;
}
// As many warps as divide a block's rows and find room in 48 KiB.
unsigned warps_of(const attention &a, size_t fixed, size_t each) {
    unsigned w = 4;
    while (w > 1 && (a.grid.block / 16 % w || fixed + w * each > 48 << 10)) w--;
    return w;
}
template <int KIND, int D, int KEYS> ds_status launch_forward(const attention &a, cudaStream_t stream) {
    typedef shape<KIND, D> S;
    const size_t e = sizeof(typename S::E), fixed = 2 * KEYS * S::LD * e, each = 16 * (S::LD + KEYS + S::PAD) * e;
    const unsigned w = warps_of(a, fixed, each);
    DSI_LAUNCH((attention_forward<KIND, D, KEYS>), (unsigned)(a.units * a.blocks * (a.grid.block / 16 / w)), w * 32,
               fixed + w * each, stream, a);
    return launched();
}
template <int KIND, int D, bool COLUMNS> ds_status launch_backward(const attention &a, cudaStream_t stream) {
    typedef shape<KIND, D> S;
    const size_t e = sizeof(typename S::E), fixed = 2 * 16 * S::LD * e + (COLUMNS ? 3 * 16 * sizeof(float) : 0);
    const size_t each = 16 * (2 * S::LD + 16 + S::PAD) * e + (COLUMNS ? 0 : 3 * 16 * sizeof(float));
    const unsigned w = warps_of(a, fixed, each);
    DSI_LAUNCH((attention_backward<KIND, D, COLUMNS>), (unsigned)(a.units * a.blocks * (a.grid.block / 16 / w)), w * 32,
               fixed + w * each, stream, a);
    return launched();
}
template <int KIND, int D> ds_status launch_attention(const attention &a, bool back, cudaStream_t stream) {
    ds_status status;
    if (!back)
        return a.grid.block % 32 ? launch_forward<KIND, D, 16>(a, stream) : launch_forward<KIND, D, 32>(a, stream);
    if ((status = launch_backward<KIND, D, false>(a, stream)) != DS_OK) return status;
    return launch_backward<KIND, D, true>(a, stream);
}
template <int KIND> ds_status attention_by_size(const attention &a, bool back, cudaStream_t stream) {
    if (a.grid.head_dim <= 32) return launch_attention<KIND, 32>(a, back, stream);
    if (a.grid.head_dim <= 64) return launch_attention<KIND, 64>(a, back, stream);
    return launch_attention<KIND, 128>(a, back, stream);
}
ds_status call_attention(const ds_sparse_grid *grid, const ds_sparse_io *io, bool back, cudaStream_t stream) {
    const attention a = attention_of(grid, io);
    int device = 0, major = 0;
    if (grid->block % 16 || grid->head_dim > 128 || (back && io->d_relative))
        return refused("attention takes blocks of a multiple of 16, head_dim up to 128, and gives no d_relative");
    if (a.units * a.blocks > 0x7FFFFFFF / (grid->block / 16)) return refused("more blocks than one launch takes");
    if (io->dtype == DS_F32) return attention_by_size<DS_F32>(a, back, stream);
    if (io->dtype == DS_F16) return attention_by_size<DS_F16>(a, back, stream);
    if (io->dtype != DS_BF16) return DS_ERR_ARGUMENT;
    ds_status status = said(cudaGetDevice(&device));
    if (!status) status = said(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    if (status) return status;
    return major < 8 ? refused("bf16 on tensor cores needs compute capability 8.0")
                     : attention_by_size<DS_BF16>(a, back, stream);
}
ds_status call_attention_forward(void *ctx, const ds_sparse_grid *grid, const ds_sparse_io *io, void *stream) {
    use(ctx);
    return call_attention(grid, io, false, (cudaStream_t)stream);
}
ds_status call_attention_backward(void *ctx, const ds_sparse_grid *grid, const ds_sparse_io *io, void *stream) {
    use(ctx);
    return call_attention(grid, io, true, (cudaStream_t)stream);
}

// >>device
ds_status device_alloc(void *ctx, size_t bytes, void **memory) {
    use(ctx);
    return said(cudaMalloc(memory, bytes ? bytes : 1));
}
void device_release(void *ctx, void *memory, size_t) {
    use(ctx);
    (void)cudaFree(memory);
}
ds_status device_pinned_alloc(void *ctx, size_t bytes, void **memory) {
    use(ctx);
    return said(cudaHostAlloc(memory, bytes ? bytes : 1, cudaHostAllocDefault));
}
void device_pinned_release(void *ctx, void *memory, size_t) {
    use(ctx);
    (void)cudaFreeHost(memory);
}
ds_status device_copy(void *ctx, void *to, const void *from, size_t bytes, void *stream) {
    use(ctx);
    return said(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)stream));
}
ds_status device_fill(void *ctx, void *to, int byte, size_t bytes, void *stream) {
    use(ctx);
    return said(cudaMemsetAsync(to, byte, bytes, (cudaStream_t)stream));
}
ds_status device_stream_create(void *ctx, void **stream) {
    use(ctx);
    return said(cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking));
}
void device_stream_destroy(void *ctx, void *stream) {
    use(ctx);
    (void)cudaStreamDestroy((cudaStream_t)stream);
}
ds_status device_event_create(void *ctx, void **event) {
    use(ctx);
    return said(cudaEventCreateWithFlags((cudaEvent_t *)event, cudaEventDisableTiming));
}
void device_event_destroy(void *ctx, void *event) {
    use(ctx);
    (void)cudaEventDestroy((cudaEvent_t)event);
}
ds_status device_event_record(void *ctx, void *event, void *stream) {
    use(ctx);
    return said(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream));
}
ds_status device_event_wait(void *ctx, void *event, void *stream) {
    use(ctx);
    return said(cudaStreamWaitEvent((cudaStream_t)stream, (cudaEvent_t)event, 0));
}
ds_status device_event_done(void *ctx, void *event, bool *done) {
    use(ctx);
    const cudaError_t error = cudaEventQuery((cudaEvent_t)event);
    *done = error == cudaSuccess;
    if (error != cudaErrorNotReady) return said(error);
    (void)cudaGetLastError(); // CUDA keeps this one, too
    return DS_OK;
}
ds_status device_synchronize(void *ctx, void *stream) {
    use(ctx);
    return said(cudaStreamSynchronize((cudaStream_t)stream));
}
const char *device_describe(void *ctx) {
    use(ctx);
    static thread_local char text[400];
    (void)said(cudaPeekAtLastError()); // what the caller's own calls left
    cudaDeviceProp device;
    int index = 0;
    if (cudaGetDevice(&index) != cudaSuccess || cudaGetDeviceProperties(&device, index) != cudaSuccess) {
        (void)cudaGetLastError();
        snprintf(text, sizeof text, "no CUDA device: %s", last_said);
    } else
        snprintf(text, sizeof text, "%.100s (compute capability %d.%d): %s", device.name, device.major, device.minor,
                 last_said);
    return text;
}
} // namespace

extern "C" void ds_cuda_optim_kernels(ds_optim_kernels *out) {
    out->ctx = here();
    out->update = call_update;
    out->norm_grains = call_norm;
    out->norm_tree = call_tree;
    out->cast = call_cast;
    out->accumulate = call_accumulate;
    out->scale = call_scale;
    out->mix = call_mix;
    out->multiply = call_multiply;
    out->transpose = call_transpose;
    out->mirror = call_mirror;
}
extern "C" void ds_cuda_comm_kernels(ds_comm_kernels *out) {
    out->ctx = here();
    out->compress = call_compress;
    out->average = call_average;
    out->expand = call_expand;
    out->quantize = call_quantize;
    out->dequantize = call_dequantize;
    out->sum = call_sum;
    out->flag_rows = call_flag_rows;
    out->gather_rows = call_rows<true>;
    out->scatter_rows = call_rows<false>;
}
extern "C" void ds_cuda_sparse_kernels(ds_sparse_kernels *out) {
    out->ctx = here();
    out->forward = call_attention_forward;
    out->backward = call_attention_backward;
}
extern "C" ds_status ds_cuda_gather_rows(void *to, const void *from, const uint32_t *rows, size_t count,
                                         size_t row_bytes, void *stream) {
    return call_rows<true>(NULL, to, from, rows, count, row_bytes, stream);
}
extern "C" ds_status ds_cuda_scatter_rows(void *to, const void *from, const uint32_t *rows, size_t count,
                                          size_t row_bytes, void *stream) {
    return call_rows<false>(NULL, to, from, rows, count, row_bytes, stream);
}
extern "C" void ds_cuda_device(ds_device *out) {
    out->ctx = here();
    out->alloc = device_alloc;
    out->release = device_release;
    out->pinned_alloc = device_pinned_alloc;
    out->pinned_release = device_pinned_release;
    out->copy = device_copy;
    out->fill = device_fill;
    out->stream_create = device_stream_create;
    out->stream_destroy = device_stream_destroy;
    out->event_create = device_event_create;
    out->event_destroy = device_event_destroy;
    out->event_record = device_event_record;
    out->event_wait = device_event_wait;
    out->event_done = device_event_done;
    out->synchronize = device_synchronize;
    out->describe = device_describe;
}

/*
  This software is available under two licences; choose whichever you prefer.

  ------------------------------------------------------------------------------
  ALTERNATIVE A - MIT No Attribution (MIT-0)

  Copyright (c) 2026 the ds authors

  Permission is hereby granted, free of charge, to any person obtaining a copy of
  this software and associated documentation files (the "Software"), to deal in
  the Software without restriction, including without limitation the rights to
  use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies
  of the Software, and to permit persons to whom the Software is furnished to do
  so.

  THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
  IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
  FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
  AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
  LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
  OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
  SOFTWARE.

  ------------------------------------------------------------------------------
  ALTERNATIVE B - Public domain (www.unlicense.org)

  This is free and unencumbered software released into the public domain.

  Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
  software, either in source code form or as a compiled binary, for any purpose,
  commercial or non-commercial, and by any means.

  In jurisdictions that recognize copyright laws, the author or authors of this
  software dedicate any and all copyright interest in the software to the public
  domain. We make this dedication for the benefit of the public at large and to
  the detriment of our heirs and successors. We intend this dedication to be an
  overt act of relinquishment in perpetuity of all present and future rights to
  this software under copyright law.

  THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
  IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
  FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
  AUTHORS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN
  ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION
  WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
*/
