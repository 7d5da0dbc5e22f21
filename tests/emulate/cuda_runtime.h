/* cuda_runtime.h - CUDA on a CPU, for tests - put this folder before CUDA's own and ds_kernels.cu compiles as C++.

   Each thread of a block is a fiber; fibers, blocks and streams run in a random order that emu::seed fixes. Waiting at a
   barrier or in a warp's collective hands over to another fiber; when nobody can go on, the launch fails and
   emu::failure says who waited where: a barrier that not all threads of a block reach, or a mask that names a lane which
   does something else. Shared memory is as long as the launch says and holds NaN when a block begins. Device memory ends
   at a page that faults, and all of it faults outside launches, copies and fills: a CPU that touches it crashes. Work on a
   stream is put off until something waits for it, in any order that streams and events allow; memory that is neither
   device nor pinned is copied at the call, as CUDA does it. One host thread at a time. emu::calls and emu::sites count launches;
   emu::fail_at makes one call of the runtime fail, emu::refuses all of them, emu::no_image every launch. */
#ifndef DS_EMULATED
#define DS_EMULATED 1
#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define EMU_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMU_TSAN 1
#endif
#endif
// A fortified longjmp takes another fiber's stack for an error, as sanitizers do.
#if !defined(EMU_ASAN) && !defined(EMU_TSAN) && !(defined(__USE_FORTIFY_LEVEL) && __USE_FORTIFY_LEVEL > 0)
#define EMU_JUMPS 1
#endif
#ifdef EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMU_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#define DSI_UNROLL(n)
#define DSI_APART
#define DSI_PARAM const
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

// >>types
struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

namespace emu {
// >>state
enum { STACK = 256 << 10 };
enum state { NEW, READY, RUNNING, AT_BARRIER, IN_WARP, DONE };
typedef void (*warp_op)(void **args, unsigned mask);
struct fiber {
    ucontext_t context;
    jmp_buf jump;
    bool began;
    char *stack;
    void *fake, *tsan;
};
struct thread {
    uint3 index;
    enum state state;
    fiber *on;
    int line; // of the barrier
    warp_op op;
    void *arg;
    unsigned mask;
};
inline uint64_t seed = 1;
inline std::string failure;                        // of the last launch that failed
inline std::map<std::string, size_t> calls, sites; // launches of each kernel, and by each first argument of a launch
inline dim3 grid, block;
inline uint3 block_index;
inline thread *now;
inline char *shared;
inline std::vector<thread> threads;
inline std::vector<unsigned> fresh; // NEW threads, in the order in which they will start
inline std::vector<thread *> ready; // READY ones
inline std::vector<fiber *> idle;
inline fiber scheduler;
inline const std::function<void()> *kernel;

inline size_t random(size_t n) {
    uint64_t z = (seed += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return n ? (size_t)((z ^ (z >> 31)) % n) : 0;
}
inline std::vector<unsigned> shuffled(size_t n) {
    std::vector<unsigned> order(n);
    for (size_t i = 0; i < n; i++) {
        const size_t j = random(i + 1);
        order[i] = order[j];
        order[j] = (unsigned)i;
    }
    return order;
}

// >>fibers
inline void change(fiber *from, fiber *to) {
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->stack, STACK);
#endif
#ifdef EMU_TSAN
    __tsan_switch_to_fiber(to->tsan, 0);
#endif
#ifdef EMU_JUMPS // swapcontext asks the kernel for signal masks each time: it serves to begin only
    if (!_setjmp(from->jump)) {
        from->began = true;
        if (to->began) _longjmp(to->jump, 1);
        setcontext(&to->context);
    }
#else
    swapcontext(&from->context, &to->context);
#endif
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(from->fake, NULL, NULL);
#endif
}
inline fiber *current; // the fiber that runs
inline void fiber_main() {
#ifdef EMU_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(NULL, &bottom, &size);
    if (!scheduler.stack) scheduler.stack = (char *)(uintptr_t)bottom;
#endif
    for (;;) {
        while (!fresh.empty()) { // a thread that never waits costs no switch
            now = &threads[fresh.back()];
            fresh.pop_back();
            now->state = RUNNING;
            now->on = current;
            (*kernel)();
            now->state = DONE;
        }
        idle.push_back(current);
        change(current, &scheduler);
    }
}
inline void prepare_context(fiber *f) {
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK;
    f->context.uc_link = NULL;
    makecontext(&f->context, fiber_main, 0);
}
inline std::vector<fiber *> &made = *new std::vector<fiber *>(); // found at exit: those that wait for ever too
inline fiber *take_fiber() {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (idle.empty()) {
        made.push_back(new fiber());
        idle.push_back(made.back());
        idle[0]->stack = (char *)mmap(NULL, STACK + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + page;
        mprotect(idle[0]->stack, STACK, PROT_READ | PROT_WRITE);
#ifdef EMU_TSAN
        idle[0]->tsan = __tsan_create_fiber(0);
#endif
        prepare_context(idle[0]);
    }
    fiber *const f = idle.back();
    idle.pop_back();
    return f;
}
inline void wait_as(enum state state) {
    thread *me = now;
    me->state = state;
    change(me->on, &scheduler);
    now = me;
    me->state = RUNNING;
}
inline void wake(thread &t) {
    t.state = READY;
    ready.push_back(&t);
}
inline void release_barrier() {
    for (thread &t : threads)
        if (t.state != AT_BARRIER || t.line != threads[0].line) return;
    for (thread &t : threads) wake(t);
}
inline void release_warp(size_t first, unsigned mask, warp_op op) {
    void *args[32] = {NULL};
    for (unsigned l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        if (first + l >= threads.size()) return;
        const thread &t = threads[first + l];
        if (t.state != IN_WARP || t.mask != mask || t.op != op) return;
        args[l] = t.arg;
    }
    op(args, mask);
    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1) wake(threads[first + l]);
}
inline void barrier(int line) {
    now->line = line;
    now->state = AT_BARRIER;
    release_barrier();
    wait_as(now->state);
}
inline void collective(unsigned mask, warp_op op, void *arg) {
    now->mask = mask;
    now->op = op;
    now->arg = arg;
    now->state = IN_WARP;
    release_warp((size_t)(now - threads.data()) / 32 * 32, mask, op);
    wait_as(now->state);
}
// False when some thread can never go on.
inline bool run_threads() {
#ifdef EMU_TSAN
    scheduler.tsan = __tsan_get_current_fiber(); // another host thread may have launched the last kernel
#endif
    while (!ready.empty() || !fresh.empty()) {
        const size_t pick = random(ready.size() + !fresh.empty());
        if (pick < ready.size()) {
            current = ready[pick]->on;
            ready[pick] = ready.back();
            ready.pop_back();
        } else
            current = take_fiber();
        change(&scheduler, current);
    }
    for (thread &t : threads)
        if (t.state != DONE) {
            failure = "thread " + std::to_string(&t - threads.data()) + " of block " + std::to_string(block_index.x) +
                      (t.state == AT_BARRIER ? " waits at the barrier of line " + std::to_string(t.line)
                                             : std::string(" waits for lanes of its warp"));
            return false;
        }
    return true;
}
inline bool run_grid(size_t shared_bytes) {
    const size_t size = (size_t)block.x * block.y * block.z;
    for (unsigned b : shuffled((size_t)grid.x * grid.y * grid.z)) {
        block_index = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        threads.assign(size, thread());
        for (unsigned t = 0; t < size; t++)
            threads[t].index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
        fresh = shuffled(size);
        shared = (char *)aligned_alloc(16, (shared_bytes + 15) / 16 * 16 + 16);
        memset(shared, 0xFF, shared_bytes);
        const bool fine = run_threads();
        free(shared);
        if (!fine) return false;
    }
    return true;
}

// >>memory
struct range {
    char *pages;
    size_t bytes;
};
inline std::map<char *, range> device, pinned;       // by address
inline size_t device_bytes, device_peak, fail_alloc; // the n-th allocation fails
inline void protect(int how) {
    for (auto &r : device) mprotect(r.second.pages, r.second.bytes, how);
}
inline bool within(const std::map<char *, range> &ranges, const void *p) {
    auto after = ranges.upper_bound((char *)(uintptr_t)p);
    if (after == ranges.begin()) return false;
    --after;
    return (const char *)p < after->second.pages + after->second.bytes;
}

// >>streams
typedef std::shared_ptr<bool> flag; // whether a record of an event has come
struct op {
    std::function<bool()> run;
    flag after, record;
};
struct stream {
    std::deque<op> ops;
};
struct event {
    flag last; // a wait is for the last record before it, on whichever stream that was
};
inline stream null_stream;
inline std::vector<stream *> streams(1, &null_stream);
inline bool open;                   // device memory may be touched
inline bool broken;                 // a launch failed: every call says so from now on, as in CUDA
inline size_t asked, fail_at;       // calls of the runtime whose result matters, launches too; the one that fails
inline int refuses, no_image, last; // cudaError_t: of every call, of every launch; the one that was kept
inline int fails() {
    const bool this_one = ++asked == fail_at;
    return refuses ? refuses : this_one ? 999 : 0;
}
inline void step(stream *s) {
    op o = s->ops.front();
    s->ops.pop_front();
    if (o.record) *o.record = true;
    if (!o.run) return;
    if (!open) protect(PROT_READ | PROT_WRITE);
    open = true;
    if (!o.run()) broken = true;
}
inline void close() {
    if (open) protect(PROT_NONE);
    open = false;
}
inline bool can_step(const stream *s) {
    return !s->ops.empty() && (!s->ops.front().after || *s->ops.front().after);
}
inline void drain(const std::function<bool()> &enough) {
    while (!enough()) {
        std::vector<stream *> able;
        for (stream *s : streams)
            if (can_step(s)) able.push_back(s);
        if (able.empty()) {
            failure = "streams wait for each other";
            broken = true;
            break;
        }
        step(able[random(able.size())]);
    }
    close();
}
inline void drain_all() {
    drain([] {
        for (stream *s : streams)
            if (!s->ops.empty()) return false;
        return true;
    });
}
inline stream *of(void *s) {
    return s ? (stream *)s : &null_stream;
}
inline void put(void *s, std::function<bool()> run) {
    of(s)->ops.push_back({run, nullptr, nullptr});
}
inline void launch(const char *name, dim3 grid_, dim3 block_, size_t bytes, void *s, std::function<void()> body) {
    std::string text = name;
    if (const int why = no_image ? no_image : fails()) {
        last = why;
        return;
    }
    const size_t from = text.find_first_not_of('('), to = text.find_first_of("<)", from);
    calls[text.substr(from, to == std::string::npos ? to : to - from)]++;
    sites[text]++;
    if (block_.x * block_.y * block_.z > 1024 || !block_.x || !grid_.x || grid_.y > 65535 || grid_.z > 65535 ||
        bytes > 48 << 10) { // more shared memory must be asked for first, which no kernel here does
        failure = text + ": a launch that no GPU takes";
        broken = true;
        return;
    }
    put(s, [=] {
        grid = grid_;
        block = block_;
        kernel = &body;
        if (run_grid(bytes)) return true;
        failure = text + ": " + failure;
        idle.clear(); // those that wait are lost
        return false;
    });
}
template <class... P, class... A> std::function<void()> prepare(void (*body)(P...), const A &...given) {
    const std::tuple<P...> arguments(given...); // as they are at the call
    return [=] { std::apply(body, arguments); };
}
inline void reset() { // after a failure that was meant
    broken = false;
    last = 0;
    failure.clear();
}
} // namespace emu

#define threadIdx           (emu::now->index)
#define blockIdx            emu::block_index
#define blockDim            emu::block
#define gridDim             emu::grid
#define __syncthreads()     emu::barrier(__LINE__)
#define DSI_SHARED(T, name) T *const name = (T *)(void *)emu::shared
#define DSI_LAUNCH(kernel, grid, block, bytes, stream, ...)                                                            \
    emu::launch(#kernel, grid, block, bytes, stream, emu::prepare(kernel, __VA_ARGS__))

// >>warps
namespace emu {
template <class T> struct exchange {
    T in, out;
    int source;
};
template <class T> void exchange_op(void **args, unsigned mask) {
    for (unsigned l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        exchange<T> *mine = (exchange<T> *)args[l];
        mine->out = ((exchange<T> *)args[mine->source])->in; // a lane outside the mask: a crash, undefined in CUDA
    }
}
template <class T> T shuffle(unsigned mask, T value, int source) {
    exchange<T> e = {value, value, source};
    collective(mask, exchange_op<T>, &e);
    return e.out;
}
inline int lane() {
    return (int)((now - threads.data()) % 32);
}
inline void ballot_op(void **args, unsigned mask) {
    unsigned votes = 0;
    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1 && *(unsigned *)args[l]) votes |= 1u << l;
    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1) *(unsigned *)args[l] = votes;
}
inline void sync_op(void **, unsigned) {}
} // namespace emu
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return emu::shuffle(mask, value, emu::lane() / width * width + source % width);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, int by, int width = 32) {
    const int l = emu::lane(), to = l % width + by < width ? l + by : l;
    return emu::shuffle(mask, value, to);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
    const int l = emu::lane(), to = l ^ with;
    return emu::shuffle(mask, value, to / width == l / width ? to : l);
}
inline unsigned __ballot_sync(unsigned mask, int vote) {
    unsigned v = vote != 0;
    emu::collective(mask, emu::ballot_op, &v);
    return v;
}
inline int __any_sync(unsigned mask, int vote) {
    return __ballot_sync(mask, vote) != 0;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
    emu::collective(mask, emu::sync_op, NULL);
}

// >>arithmetic and atomics
template <class T> T atomicAdd(T *to, T value) {
    const T before = *to;
    *to = before + value;
    return before;
}
template <class T> T atomicMax(T *to, T value) {
    const T before = *to;
    *to = before > value ? before : value;
    return before;
}
inline unsigned atomicOr(unsigned *to, unsigned value) {
    const unsigned before = *to;
    *to |= value;
    return before;
}

// >>twins of the PTX wrappers
inline float ptx_mul(float a, float b) {
    return a * b;
}
inline float ptx_add(float a, float b) {
    return a + b;
}
inline float ptx_min(float a, float b) {
    return fminf(a, b);
}
inline float ptx_max(float a, float b) {
    return fmaxf(a, b);
}
inline float ptx_div(float a, float b) {
    return a / b;
}
inline float ptx_sqrt(float a) {
    return sqrtf(a);
}
inline float ptx_fma(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline float ptx_rint(float a) {
    return rintf(a);
}
inline double ptx_wide(float a) {
    return a;
}
inline float ptx_narrow(double a) {
    return (float)a;
}
inline double ptx_add64(double a, double b) {
    return a + b;
}
inline double ptx_div64(double a, double b) {
    return a / b;
}
inline double ptx_sqrt64(double a) {
    return sqrt(a);
}
inline double ptx_fma64(double a, double b, double c) {
    return fma(a, b, c);
}

inline float ptx_exp2(float a) {
    return exp2f(a);
}
inline float ptx_log2(float a) {
    return log2f(a);
}
inline uint16_t ptx_half(float a) {
    return dsi_f16_of_f32(a);
}
inline int ptx_int(float a) {
    return a != a ? 0 : (int)a;
}
// >>tensor cores: fragments as PTX lays them out over the lanes
namespace emu {
struct mma {
    float *c;
    const uint32_t *a, *b;
};
inline float half_of(uint32_t pair, unsigned odd, bool bf16) {
    const uint16_t h = (uint16_t)(odd ? pair >> 16 : pair & 0xFFFFu);
    return bf16 ? dsi_f32_of_bf16(h) : dsi_f32_of_f16(h);
}
template <bool BF16> void mma_op(void **args, unsigned) {
    float a[16][16], b[16][8];
    for (unsigned l = 0; l < 32; l++)
        for (unsigned odd = 0; odd < 2; odd++) {
            const mma *m = (const mma *)args[l];
            const unsigned g = l / 4, k = l % 4 * 2 + odd;
            for (unsigned r = 0; r < 4; r++) a[g + r % 2 * 8][k + r / 2 * 8] = half_of(m->a[r], odd, BF16);
            for (unsigned r = 0; r < 2; r++) b[k + r * 8][g] = half_of(m->b[r], odd, BF16);
        }
    for (unsigned l = 0; l < 32; l++)
        for (unsigned e = 0; e < 4; e++) {
            float *c = ((mma *)args[l])->c + e;
            double sum = *c; // products are exact in fp64
            for (unsigned k = 0; k < 16; k++) sum += (double)a[l / 4 + e / 2 * 8][k] * (double)b[k][l % 4 * 2 + e % 2];
            *c = (float)sum;
        }
}
struct ldmatrix {
    uint32_t *b;
    const uint16_t *row;
};
inline void ldmatrix_op(void **args, unsigned) {
    for (unsigned l = 0; l < 32; l++)
        for (unsigned m = 0; m < 2; m++) {
            const uint16_t *low = ((ldmatrix *)args[8 * m + l % 4 * 2])->row;
            const uint16_t *high = ((ldmatrix *)args[8 * m + l % 4 * 2 + 1])->row;
            ((ldmatrix *)args[l])->b[m] = (uint32_t)low[l / 4] | (uint32_t)high[l / 4] << 16;
        }
}
} // namespace emu
template <bool BF16> void ptx_mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    emu::mma m = {c, a, b};
    emu::collective(0xFFFFFFFFu, emu::mma_op<BF16>, &m);
}
inline void ptx_ldmatrix_trans(uint32_t b[2], const void *row) {
    emu::ldmatrix m = {b, (const uint16_t *)row};
    if ((uintptr_t)row % 16) abort();
    emu::collective(0xFFFFFFFFu, emu::ldmatrix_op, &m);
}

// >>runtime
typedef void *cudaStream_t;
typedef emu::event *cudaEvent_t;
typedef enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719,
    cudaErrorUnknown = 999
} cudaError_t;
enum { cudaMemcpyDefault = 4, cudaHostAllocDefault = 0, cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
struct cudaDeviceProp {
    char name[256];
    int major, minor;
};
// What a call says: a failure is kept until cudaGetLastError, "not ready" too, as in CUDA.
inline cudaError_t emu_said(cudaError_t e = cudaSuccess) {
    if (!e && emu::broken) e = cudaErrorLaunchFailure;
    if (e) emu::last = e;
    return e;
}
#define EMU_MAY_FAIL()                                                                                                 \
    do {                                                                                                               \
        if (const int why = emu::fails()) return emu_said((cudaError_t)why);                                           \
    } while (0)
inline cudaError_t cudaPeekAtLastError() {
    return emu::broken ? cudaErrorLaunchFailure : (cudaError_t)emu::last;
}
inline cudaError_t cudaGetLastError() {
    const cudaError_t e = cudaPeekAtLastError();
    emu::last = 0;
    return e;
}
inline const char *cudaGetErrorString(cudaError_t e) {
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorLaunchFailure: return emu::failure.c_str();
    default: return "unknown error";
    }
}
inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    EMU_MAY_FAIL();
    *count = 1;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    return emu_said(device ? cudaErrorInvalidValue : cudaSuccess);
}
inline cudaError_t cudaGetDevice(int *device) {
    EMU_MAY_FAIL();
    *device = 0;
    return cudaSuccess;
}
enum { cudaDevAttrComputeCapabilityMajor = 75 };
inline int emu_major = 9;
inline cudaError_t cudaDeviceGetAttribute(int *out, int, int) {
    EMU_MAY_FAIL();
    *out = emu_major;
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int) {
    EMU_MAY_FAIL();
    snprintf(out->name, sizeof out->name, "emulated GPU");
    out->major = emu_major, out->minor = 0;
    return cudaSuccess;
}
inline cudaError_t cudaMalloc(void **memory, size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    EMU_MAY_FAIL();
    if (emu::fail_alloc && --emu::fail_alloc == 0) return emu_said(cudaErrorMemoryAllocation);
    char *pages = (char *)mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return cudaErrorMemoryAllocation;
    memset(pages, 0xFF, whole); // NaN until it is written
    mprotect(pages, whole + page, PROT_NONE);
    char *const at = pages + whole - (bytes + 15) / 16 * 16;
    emu::device[at] = {pages, whole};
    emu::device_bytes += whole;
    if (emu::device_bytes > emu::device_peak) emu::device_peak = emu::device_bytes;
    *memory = at;
    return cudaSuccess;
}
inline cudaError_t cudaFree(void *memory) {
    emu::drain_all();
    if (!memory) return cudaSuccess;
    auto found = emu::device.find((char *)memory);
    if (found == emu::device.end()) return cudaErrorInvalidValue;
    munmap(found->second.pages, found->second.bytes + (size_t)sysconf(_SC_PAGESIZE));
    emu::device_bytes -= found->second.bytes;
    emu::device.erase(found);
    return emu_said();
}
inline cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t) {
    return cudaMalloc(memory, bytes);
}
inline cudaError_t cudaFreeAsync(void *memory, cudaStream_t s) {
    emu::put(s, [=] {
        auto found = emu::device.find((char *)memory);
        munmap(found->second.pages, found->second.bytes + (size_t)sysconf(_SC_PAGESIZE));
        emu::device_bytes -= found->second.bytes;
        emu::device.erase(found);
        return true;
    });
    return cudaSuccess;
}
inline cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned) {
    EMU_MAY_FAIL();
    if (emu::fail_alloc && --emu::fail_alloc == 0) return emu_said(cudaErrorMemoryAllocation);
    if (posix_memalign(memory, 4096, bytes)) return cudaErrorMemoryAllocation;
    emu::pinned[(char *)*memory] = {(char *)*memory, bytes};
    return cudaSuccess;
}
inline cudaError_t cudaFreeHost(void *memory) {
    emu::drain_all();
    emu::pinned.erase((char *)memory);
    free(memory);
    return emu_said();
}
inline bool emu_later(const void *p) {
    return emu::within(emu::device, p) || emu::within(emu::pinned, p);
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, cudaStream_t s) {
    EMU_MAY_FAIL();
    if (!bytes) return emu_said();
    if (emu_later(from)) {
        emu::put(s, [=] {
            memmove(to, from, bytes);
            return true;
        });
        if (!emu_later(to)) // into plain memory CUDA returns when it is done
            emu::drain([=] { return emu::of(s)->ops.empty(); });
    } else {
        const std::string staged((const char *)from, bytes);
        emu::put(s, [=] {
            memcpy(to, staged.data(), bytes);
            return true;
        });
    }
    return emu_said();
}
inline cudaError_t cudaMemsetAsync(void *to, int byte, size_t bytes, cudaStream_t s) {
    EMU_MAY_FAIL();
    if (!bytes) return emu_said();
    emu::put(s, [=] {
        memset(to, byte, bytes);
        return true;
    });
    return emu_said();
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned) {
    EMU_MAY_FAIL();
    emu::stream *s = new emu::stream();
    emu::streams.push_back(s);
    *out = s;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    EMU_MAY_FAIL();
    emu::drain([=] { return emu::of(s)->ops.empty(); });
    return emu_said();
}
inline cudaError_t cudaDeviceSynchronize() {
    emu::drain_all();
    return emu_said();
}
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
    emu::drain([=] { return emu::of(s)->ops.empty(); });
    for (size_t i = 0; i < emu::streams.size(); i++)
        if (emu::streams[i] == s) emu::streams.erase(emu::streams.begin() + (ptrdiff_t)i--);
    delete (emu::stream *)s;
    return emu_said();
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned) {
    EMU_MAY_FAIL();
    *out = new emu::event();
    return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    emu::drain_all();
    delete e;
    return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    EMU_MAY_FAIL();
    e->last = std::make_shared<bool>(false);
    emu::of(s)->ops.push_back({nullptr, nullptr, e->last});
    return emu_said();
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    EMU_MAY_FAIL();
    emu::of(s)->ops.push_back({nullptr, e->last, nullptr});
    return emu_said();
}
inline cudaError_t cudaEventQuery(cudaEvent_t e) { // now and then work goes on by itself
    EMU_MAY_FAIL();
    for (emu::stream *s : emu::streams)
        if (emu::can_step(s)) {
            emu::step(s);
            break;
        }
    emu::close();
    return emu_said(!e->last || *e->last ? cudaSuccess : cudaErrorNotReady);
}
#endif
