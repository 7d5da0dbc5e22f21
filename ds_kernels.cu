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
   synchronize, as always in CUDA. Nothing here allocates. Any thread may call; the thread's current device is used.

   WHAT IT HAS  Adam and AdamW over slices, norms by grain, casts; the device table (memory, copies, streams, events). */
#define DS_OPTIM_FORMULAS
#include "ds_optim.h"
#include <cuda_runtime.h>
#include <stdio.h>

namespace {
// >>operations of the formulas
#define dsi_optim_cu_t      float
#define dsi_optim_cu_set(x) (x)
#define DSI_CU_BINARY(name, ptx)                                                                                       \
    __device__ float dsi_optim_cu_##name(float a, float b) {                                                           \
        float r;                                                                                                       \
        asm(ptx " %0, %1, %2;" : "=f"(r) : "f"(a), "f"(b));                                                            \
        return r;                                                                                                      \
    }
DSI_CU_BINARY(mul, "mul.rn.f32")
DSI_CU_BINARY(div, "div.rn.f32")
#undef DSI_CU_BINARY
__device__ float dsi_optim_cu_sqrt(float a) {
    float r;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(r) : "f"(a));
    return r;
}
__device__ float dsi_optim_cu_fma(float a, float b, float c) {
    float r;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c));
    return r;
}
__device__ double wide(float a) {
    double r;
    asm("cvt.f64.f32 %0, %1;" : "=d"(r) : "f"(a));
    return r;
}

enum { THREADS = 256, LANES = 16 };

template <ds_dtype D> __device__ float load(const void *from, size_t i) {
    if (D == DS_F32) return ((const float *)from)[i];
    return D == DS_F16 ? dsi_f32_of_f16(((const uint16_t *)from)[i]) : dsi_f32_of_bf16(((const uint16_t *)from)[i]);
}
template <ds_dtype D> __device__ void store(void *to, size_t i, float x) {
    if (D == DS_F32)
        ((float *)to)[i] = x;
    else
        ((uint16_t *)to)[i] = D == DS_F16 ? dsi_f16_of_f32(x) : dsi_bf16_of_f32(x);
}
__device__ size_t first_index() {
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ size_t stride() {
    return (size_t)gridDim.x * blockDim.x;
}

// W is the dtype of the 16-bit weights; DS_F32 stands for none.
template <ds_dtype G, ds_dtype W> __global__ void adam(ds_optim_adam c, ds_optim_slice s) {
    for (size_t i = first_index(); i < s.count; i += stride()) {
        float g = dsi_optim_cu_mul(load<G>(s.grad, i), c.factor), p = s.master[i], m = s.state[0][i], v = s.state[1][i];
        DSI_OPTIM_ADAM(cu, g, p, m, v)
        s.master[i] = p;
        s.state[0][i] = m;
        s.state[1][i] = v;
        if (W != DS_F32) store<W>(s.weights16, i, p);
    }
}

// Sixteen threads to a grain: thread l adds elements l, l + 16, ... in order, then the lanes fold by halves.
template <ds_dtype G>
__global__ void norm_grains(const void *grad, size_t count, float factor, double *per_grain, size_t grains) {
    const unsigned lane = threadIdx.x % LANES;
    for (size_t grain = first_index() / LANES; grain < grains; grain += stride() / LANES) {
        const size_t begin = grain * DS_GRAIN, end = begin + DS_GRAIN < count ? begin + DS_GRAIN : count;
        const unsigned mask = 0xFFFFu << (threadIdx.x & 16);
        double sum = 0;
        for (size_t i = begin + lane; i < end; i += LANES) {
            const double x = wide(dsi_optim_cu_mul(load<G>(grad, i), factor));
            sum = __fma_rn(x, x, sum); // the product is exact
        }
        for (int half = LANES / 2; half; half /= 2) sum = __dadd_rn(sum, __shfl_down_sync(mask, sum, half, LANES));
        if (lane == 0) per_grain[grain] = sum;
    }
}

template <ds_dtype T, ds_dtype F> __global__ void cast(void *to, const void *from, size_t count) {
    for (size_t i = first_index(); i < count; i += stride()) store<T>(to, i, load<F>(from, i));
}

unsigned blocks(size_t threads) {
    const size_t n = (threads + THREADS - 1) / THREADS;
    return n < 65536 ? (unsigned)n : 65536u;
}
ds_status launched() {
    return cudaGetLastError() == cudaSuccess ? DS_OK : DS_ERR_DEVICE;
}

template <ds_dtype G> void launch_adam(const ds_optim_adam *c, const ds_optim_slice *s, cudaStream_t stream) {
    const unsigned n = blocks(s->count);
    if (!s->weights16)
        adam<G, DS_F32><<<n, THREADS, 0, stream>>>(*c, *s);
    else if (s->weights16_dtype == DS_F16)
        adam<G, DS_F16><<<n, THREADS, 0, stream>>>(*c, *s);
    else
        adam<G, DS_BF16><<<n, THREADS, 0, stream>>>(*c, *s);
}
ds_status call_adam(void *, const ds_optim_adam *c, const ds_optim_slice *s, void *stream) {
    if (!s->count) return DS_OK;
    if (s->grad_dtype == DS_F32)
        launch_adam<DS_F32>(c, s, (cudaStream_t)stream);
    else if (s->grad_dtype == DS_F16)
        launch_adam<DS_F16>(c, s, (cudaStream_t)stream);
    else if (s->grad_dtype == DS_BF16)
        launch_adam<DS_BF16>(c, s, (cudaStream_t)stream);
    else
        return DS_ERR_ARGUMENT;
    return launched();
}
ds_status call_norm(void *, const void *grad, ds_dtype dtype, size_t count, float factor, double *per_grain,
                    void *stream) {
    const size_t grains = count / DS_GRAIN + (count % DS_GRAIN != 0);
    const unsigned n = blocks(grains * LANES);
    if (!count) return DS_OK;
    if (dtype == DS_F32)
        norm_grains<DS_F32><<<n, THREADS, 0, (cudaStream_t)stream>>>(grad, count, factor, per_grain, grains);
    else if (dtype == DS_F16)
        norm_grains<DS_F16><<<n, THREADS, 0, (cudaStream_t)stream>>>(grad, count, factor, per_grain, grains);
    else if (dtype == DS_BF16)
        norm_grains<DS_BF16><<<n, THREADS, 0, (cudaStream_t)stream>>>(grad, count, factor, per_grain, grains);
    else
        return DS_ERR_ARGUMENT;
    return launched();
}
template <ds_dtype T> bool launch_cast(void *to, const void *from, ds_dtype dtype, size_t count, cudaStream_t stream) {
    const unsigned n = blocks(count);
    if (dtype == DS_F32)
        cast<T, DS_F32><<<n, THREADS, 0, stream>>>(to, from, count);
    else if (dtype == DS_F16)
        cast<T, DS_F16><<<n, THREADS, 0, stream>>>(to, from, count);
    else if (dtype == DS_BF16)
        cast<T, DS_BF16><<<n, THREADS, 0, stream>>>(to, from, count);
    else
        return false;
    return true;
}
ds_status call_cast(void *, void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count,
                    void *stream) {
    bool known = false;
    if (!count) return DS_OK;
    if (to_dtype == DS_F32) known = launch_cast<DS_F32>(to, from, from_dtype, count, (cudaStream_t)stream);
    if (to_dtype == DS_F16) known = launch_cast<DS_F16>(to, from, from_dtype, count, (cudaStream_t)stream);
    if (to_dtype == DS_BF16) known = launch_cast<DS_BF16>(to, from, from_dtype, count, (cudaStream_t)stream);
    return known ? launched() : DS_ERR_ARGUMENT;
}

// >>device
ds_status said(cudaError_t error) {
    return error == cudaSuccess ? DS_OK : error == cudaErrorMemoryAllocation ? DS_ERR_MEMORY : DS_ERR_DEVICE;
}
ds_status device_alloc(void *, size_t bytes, void **memory) {
    return said(cudaMalloc(memory, bytes ? bytes : 1));
}
void device_release(void *, void *memory, size_t) {
    (void)cudaFree(memory);
}
ds_status device_pinned_alloc(void *, size_t bytes, void **memory) {
    return said(cudaHostAlloc(memory, bytes ? bytes : 1, cudaHostAllocDefault));
}
void device_pinned_release(void *, void *memory, size_t) {
    (void)cudaFreeHost(memory);
}
ds_status device_copy(void *, void *to, const void *from, size_t bytes, void *stream) {
    return said(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)stream));
}
ds_status device_fill(void *, void *to, int byte, size_t bytes, void *stream) {
    return said(cudaMemsetAsync(to, byte, bytes, (cudaStream_t)stream));
}
ds_status device_stream_create(void *, void **stream) {
    return said(cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking));
}
void device_stream_destroy(void *, void *stream) {
    (void)cudaStreamDestroy((cudaStream_t)stream);
}
ds_status device_event_create(void *, void **event) {
    return said(cudaEventCreateWithFlags((cudaEvent_t *)event, cudaEventDisableTiming));
}
void device_event_destroy(void *, void *event) {
    (void)cudaEventDestroy((cudaEvent_t)event);
}
ds_status device_event_record(void *, void *event, void *stream) {
    return said(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream));
}
ds_status device_event_wait(void *, void *event, void *stream) {
    return said(cudaStreamWaitEvent((cudaStream_t)stream, (cudaEvent_t)event, 0));
}
ds_status device_event_done(void *, void *event, bool *done) {
    const cudaError_t error = cudaEventQuery((cudaEvent_t)event);
    *done = error == cudaSuccess;
    return error == cudaErrorNotReady ? DS_OK : said(error);
}
ds_status device_synchronize(void *, void *stream) {
    return said(cudaStreamSynchronize((cudaStream_t)stream));
}
const char *device_describe(void *) {
    static thread_local char text[320];
    const cudaError_t error = cudaPeekAtLastError();
    cudaDeviceProp device;
    int index = 0;
    device.name[0] = 0;
    if (cudaGetDevice(&index) == cudaSuccess) (void)cudaGetDeviceProperties(&device, index);
    snprintf(text, sizeof text, "%s: %s", device.name[0] ? device.name : "no CUDA device", cudaGetErrorString(error));
    return text;
}
} // namespace

extern "C" void ds_cuda_optim_kernels(ds_optim_kernels *out) {
    out->ctx = NULL;
    out->adam = call_adam;
    out->norm_grains = call_norm;
    out->cast = call_cast;
}
extern "C" void ds_cuda_device(ds_device *out) {
    out->ctx = NULL;
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
