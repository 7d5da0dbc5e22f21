// Figures of ds_kernels.cu on this machine's GPU, each as a share of a ceiling measured in the same run: bytes a second of
// a copy on the device, or for attention the time of the dense layout times the density. `make gpu-bench`.
#include "../../ds_kernels.cu"
#define DS_IMPLEMENTATION
#include "../../ds_comm.h"
#include "../../ds_optim.h"
#include "../../ds_sparse.h"
#include <functional>
#include <vector>

static void need(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "%s failed: %s\n", what, device_describe(NULL));
    exit(3);
}
// The best of twelve turns, in seconds.
static double seconds(const std::function<ds_status()> &work) {
    cudaEvent_t from, to;
    float best = 1e30f;
    need(cudaEventCreate(&from) == cudaSuccess && cudaEventCreate(&to) == cudaSuccess, "event");
    for (int turn = 0; turn < 12; turn++) {
        float ms = 0;
        cudaEventRecord(from, NULL);
        need(work() == DS_OK, "kernel");
        cudaEventRecord(to, NULL);
        need(cudaEventSynchronize(to) == cudaSuccess, "kernel");
        cudaEventElapsedTime(&ms, from, to);
        if (turn > 1 && ms < best) best = ms;
    }
    cudaEventDestroy(from), cudaEventDestroy(to);
    return best * 1e-3;
}
static double ceiling; // bytes a second
static void row(const char *name, double bytes, double time) {
    printf("%-34s %9.1f GB/s  %5.2f of copy\n", name, bytes / time * 1e-9, bytes / time / ceiling);
}
static char *take(size_t bytes) {
    void *p = NULL;
    need(cudaMalloc(&p, bytes) == cudaSuccess && cudaMemset(p, 0, bytes) == cudaSuccess, "memory");
    return (char *)p;
}
static double attention_time(const char *mode, size_t block, size_t tokens, ds_dtype dtype, bool back,
                             double *density) {
    enum { HEADS = 16, D = 64 };
    const size_t bytes = HEADS * tokens * D * DS_DTYPE_SIZE(dtype);
    ds_sparse_kernels kernels;
    ds_device device;
    ds_sparse_params p;
    ds_sparse_layout *layout;
    ds_sparse_info info;
    ds_sparse_desc desc = {};
    ds_sparse_io io = {};
    ds_sparse *s;
    ds_error error = {};
    char *all = take(8 * bytes);
    ds_cuda_sparse_kernels(&kernels);
    ds_cuda_device(&device);
    need(ds_sparse_params_default(mode, &p, &error) == DS_OK, "mode");
    p.heads = HEADS, p.block = block;
    need(ds_sparse_layout_create(&p, tokens, NULL, &layout, &error) == DS_OK, error.message);
    desc.layout = layout, desc.head_dim = D, desc.kernels = &kernels, desc.device = &device;
    need(ds_sparse_create(&desc, &s, &error) == DS_OK, error.message);
    io.dtype = dtype, io.q = all, io.k = all + bytes, io.v = all + 2 * bytes, io.out = all + 3 * bytes;
    io.d_out = all + 4 * bytes, io.d_q = all + 5 * bytes, io.d_k = all + 6 * bytes, io.d_v = all + 7 * bytes;
    io.lse = (float *)(void *)take(HEADS * tokens * 2 * sizeof(float));
    ds_sparse_layout_info(layout, &info);
    *density = info.density;
    const double time = seconds([&] { return back ? ds_sparse_backward(s, &io) : ds_sparse_forward(s, &io); });
    ds_sparse_destroy(s), ds_sparse_layout_destroy(layout);
    cudaFree(all), cudaFree(io.lse);
    return time;
}
static void attention_rows(size_t block) {
    static const char *const modes[] = {"fixed", "bigbird", "bslongformer", "local_sliding_window"};
    for (int back = 0; back < 2; back++) {
        double density, dense = attention_time("dense", block, 8192, DS_F16, back != 0, &density);
        printf("attention fp16 %-9s block %-4zu dense %32.3f ms\n", back ? "backward" : "forward", block, dense * 1e3);
        for (const char *mode : modes) {
            const double time = attention_time(mode, block, 8192, DS_F16, back != 0, &density);
            printf("    %-22s density %.3f %9.3f ms  %5.2f of density * dense (goal 1.20)\n", mode, density, time * 1e3,
                   time / (density * dense));
        }
    }
}
static void pinned_rows() {
    const size_t n = 256 << 20;
    void *host[2];
    char *device[2] = {take(n), take(n)};
    cudaStream_t other;
    for (void *&h : host) need(cudaHostAlloc(&h, n, cudaHostAllocDefault) == cudaSuccess, "pinned memory");
    need(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking) == cudaSuccess, "stream");
    const double up = seconds([&] { return said(cudaMemcpyAsync(device[0], host[0], n, cudaMemcpyDefault, NULL)); });
    const double down = seconds([&] { return said(cudaMemcpyAsync(host[1], device[1], n, cudaMemcpyDefault, NULL)); });
    const double both = seconds([&] {
        need(cudaMemcpyAsync(device[0], host[0], n, cudaMemcpyDefault, other) == cudaSuccess, "copy");
        need(cudaMemcpyAsync(host[1], device[1], n, cudaMemcpyDefault, NULL) == cudaSuccess, "copy");
        return said(cudaStreamSynchronize(other));
    });
    printf("pinned copies: up %.1f, down %.1f, both ways at once %.1f GB/s (%.2f of the two together; goal 0.90)\n",
           (double)n / up * 1e-9, (double)n / down * 1e-9, 2.0 * (double)n / both * 1e-9,
           2.0 * (double)n / both / ((double)n / up + (double)n / down));
}

int main() {
    const size_t n = (size_t)1 << 27;
    int gpus = 0;
    cudaDeviceProp device;
    ds_optim_kernels optim;
    ds_comm_kernels comm;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess || !gpus) {
        fprintf(stderr, "gpu-bench: no GPU here\n");
        return 3;
    }
    need(cudaGetDeviceProperties(&device, 0) == cudaSuccess, "device");
    ds_cuda_optim_kernels(&optim), ds_cuda_comm_kernels(&comm);
    float *a[4];
    for (float *&x : a) x = (float *)(void *)take(4 * n);
    char *half = take(2 * n), *bytes = take(n), *grains = take(n / DS_GRAIN * 8), *params = take(n / 256);
    const double copy = seconds([&] { return said(cudaMemcpyAsync(a[0], a[1], 4 * n, cudaMemcpyDefault, NULL)); });
    ceiling = 8.0 * (double)n / copy;
    printf("%s: copy on the device %.1f GB/s\n", device.name, ceiling * 1e-9);
    ds_optim_constants c = {};
    c.adam.factor = c.adam.root_correction = 1, c.adam.eps = 1e-8f;
    std::vector<ds_optim_part> parts(1000);
    parts[0].slice.count = n, parts[0].slice.master = a[0], parts[0].slice.state[0] = a[1];
    parts[0].slice.state[1] = a[2], parts[0].slice.grad = a[3], parts[0].slice.grad_dtype = DS_F32;
    parts[0].slice.weights16 = half, parts[0].slice.weights16_dtype = DS_BF16;
    row("Adam, fp32 gradient, bf16 out", 30.0 * (double)n,
        seconds([&] { return optim.update(NULL, DS_OPTIM_RULE_ADAM, &c, parts.data(), 1, NULL); }));
    for (size_t i = 1000; i-- > 0;) { // mixed sizes, a thousand in one launch
        const size_t at = i * (n / 1000) / 4 * 4;
        parts[i] = parts[0];
        parts[i].slice.count = n / 1000 / (1 + i % 4) / 4 * 4;
        parts[i].slice.master += at, parts[i].slice.state[0] += at, parts[i].slice.state[1] += at;
        parts[i].slice.grad = a[3] + at, parts[i].slice.weights16 = half + 2 * at;
    }
    double moved = 0;
    for (const ds_optim_part &p : parts) moved += 30.0 * (double)p.slice.count;
    row("Adam, 1,000 mixed tensors", moved,
        seconds([&] { return optim.update(NULL, DS_OPTIM_RULE_ADAM, &c, parts.data(), 1000, NULL); }));
    row("norm and overflow, fp32", 4.0 * (double)n,
        seconds([&] { return optim.norm_grains(NULL, a[0], DS_F32, n, 1.0f, (double *)(void *)grains, NULL); }));
    row("cast fp32 to bf16", 6.0 * (double)n,
        seconds([&] { return optim.cast(NULL, half, DS_BF16, a[0], DS_F32, n, NULL); }));
    row("accumulate bf16 into fp32", 10.0 * (double)n,
        seconds([&] { return optim.accumulate(NULL, a[0], DS_F32, half, DS_BF16, n, NULL); }));
    for (int bits = 4; bits <= 8; bits += 4) {
        const ds_comm_blocks form = {bits, false, n / 2048};
        char name[64];
        snprintf(name, sizeof name, "quantize bf16 to int%d", bits);
        row(name, (2.0 + bits / 8.0) * (double)n, seconds([&] {
                return comm.quantize(NULL, form, half, DS_BF16, n, (int8_t *)bytes, (float *)(void *)params, NULL);
            }));
        snprintf(name, sizeof name, "dequantize int%d to bf16", bits);
        row(name, (2.0 + bits / 8.0) * (double)n, seconds([&] {
                return comm.dequantize(NULL, form, (int8_t *)bytes, (float *)(void *)params, half, DS_BF16, n, NULL);
            }));
    }
    for (float *x : a) cudaFree(x);
    for (size_t block = 32; block <= 128; block *= 2) attention_rows(block);
    pinned_rows();
    return 0;
}
