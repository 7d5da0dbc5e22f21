// The engine on a GPU: ds_kernels.cu on the emulated GPU of tests/emulate, whose memory faults when the host touches it.
// The same training as on the CPU must give the same bits, every kernel must be reached, and what fails must say so.
#ifndef TEST_ON_GPU
#include "../../ds_kernels.cu"
enum { EMULATED = 1 };
#else // `make gpu-test`
#include "../gpu/real.h"
#endif
#include "ds_zero_run.h"
#include "ds_sparse.h"
#include <dlfcn.h>
#include <map>
#include <string>
#include <sys/wait.h>
#include <vector>

// The emulation takes one host thread at a time, and ranks are threads: every call of a table goes through one lock. Counts,
// and makes the n-th call fail.
struct gate {
    size_t calls, fail_at, bytes, peak, pinned, pinned_peak;
    ds_status enter(void) {
        const size_t n = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
        return n == fail_at ? DS_ERR_DEVICE : DS_OK;
    }
};
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static gate engine_gate, comm_gate, model_gate;
static ds_device inner;
static ds_optim_kernels inner_optim;
static ds_comm_kernels inner_comm;
static ds_sparse_kernels inner_sparse;

struct entered { // the model's own calls are not those that CUDA fails
    ds_status status;
    size_t asked, fail_at;
    int refuses, no_image;
    bool model;
    entered(void *ctx) : status(ctx ? ((gate *)ctx)->enter() : DS_OK), model(ctx == &model_gate) {
        pthread_mutex_lock(&one_at_a_time);
        asked = emu::asked, fail_at = emu::fail_at, refuses = emu::refuses, no_image = emu::no_image;
        if (model) emu::fail_at = 0, emu::refuses = emu::no_image = 0;
    }
    ~entered() {
        if (model) emu::asked = asked, emu::fail_at = fail_at, emu::refuses = refuses, emu::no_image = no_image;
        pthread_mutex_unlock(&one_at_a_time);
    }
};
template <class... P, class... A> static ds_status pass(void *ctx, ds_status (*to)(void *, P...), const A &...given) {
    const entered e(ctx);
    return e.status ? e.status : to(NULL, given...);
}
static ds_status gate_alloc(void *ctx, size_t bytes, void **memory) {
    gate *g = (gate *)ctx;
    const entered e(ctx);
    const ds_status status = e.status ? e.status : inner.alloc(NULL, bytes, memory);
    if (!status && (g->bytes += bytes) > g->peak) g->peak = g->bytes;
    return status;
}
static void gate_release(void *ctx, void *memory, size_t bytes) {
    const entered e(NULL);
    ((gate *)ctx)->bytes -= bytes;
    inner.release(NULL, memory, bytes);
}
static ds_status gate_pinned_alloc(void *ctx, size_t bytes, void **memory) {
    gate *g = (gate *)ctx;
    const entered e(ctx);
    const ds_status status = e.status ? e.status : inner.pinned_alloc(NULL, bytes, memory);
    if (!status && (g->pinned += bytes) > g->pinned_peak) g->pinned_peak = g->pinned;
    return status;
}
static void gate_pinned_release(void *ctx, void *memory, size_t bytes) {
    const entered e(NULL);
    ((gate *)ctx)->pinned -= bytes;
    inner.pinned_release(NULL, memory, bytes);
}
static ds_device gate_device(gate *g) {
    ds_device d;
    memset(&d, 0, sizeof d);
    d.ctx = g;
    d.alloc = gate_alloc;
    d.release = gate_release;
    d.pinned_alloc = gate_pinned_alloc;
    d.pinned_release = gate_pinned_release;
    d.copy = [](void *c, void *to, const void *from, size_t n, void *s) { return pass(c, inner.copy, to, from, n, s); };
    d.fill = [](void *c, void *to, int b, size_t n, void *s) { return pass(c, inner.fill, to, b, n, s); };
    d.stream_create = [](void *c, void **s) { return pass(c, inner.stream_create, s); };
    d.stream_destroy = [](void *, void *s) {
        const entered e(NULL); /* cannot fail */
        inner.stream_destroy(NULL, s);
    };
    d.event_create = [](void *c, void **v) { return pass(c, inner.event_create, v); };
    d.event_destroy = [](void *, void *v) {
        const entered e(NULL);
        inner.event_destroy(NULL, v);
    };
    d.event_record = [](void *c, void *v, void *s) { return pass(c, inner.event_record, v, s); };
    d.event_wait = [](void *c, void *v, void *s) { return pass(c, inner.event_wait, v, s); };
    d.event_done = [](void *c, void *v, bool *done) { return pass(c, inner.event_done, v, done); };
    d.synchronize = [](void *c, void *s) { return pass(c, inner.synchronize, s); };
    d.describe = [](void *c) -> const char * {
        gate *const g_ = (gate *)c;
        return g_->fail_at && __atomic_load_n(&g_->calls, __ATOMIC_SEQ_CST) >= g_->fail_at ? "the gate says no"
                                                                                           : inner.describe(NULL);
    };
    return d;
}
static ds_optim_kernels gate_optim(gate *g) {
    ds_optim_kernels k;
    memset(&k, 0, sizeof k);
    k.ctx = g;
    k.update = [](void *c, ds_optim_rule r, const ds_optim_constants *k_, const ds_optim_part *p, size_t n, void *s) {
        return pass(c, inner_optim.update, r, k_, p, n, s);
    };
    k.norm_grains = [](void *c, const void *x, ds_dtype d, size_t n, float f, double *g_, void *s) {
        return pass(c, inner_optim.norm_grains, x, d, n, f, g_, s);
    };
    k.norm_tree = [](void *c, double *g_, size_t n, void *s) { return pass(c, inner_optim.norm_tree, g_, n, s); };
    k.cast = [](void *c, void *to, ds_dtype t, const void *from, ds_dtype f, size_t n, void *s) {
        return pass(c, inner_optim.cast, to, t, from, f, n, s);
    };
    k.accumulate = [](void *c, void *to, ds_dtype t, const void *from, ds_dtype f, size_t n, void *s) {
        return pass(c, inner_optim.accumulate, to, t, from, f, n, s);
    };
    k.scale = [](void *c, void *x, ds_dtype d, float f, size_t n, void *s) {
        return pass(c, inner_optim.scale, x, d, f, n, s);
    };
    k.mix = [](void *c, float *y, const float *x, float a, float b, size_t n, void *s) {
        return pass(c, inner_optim.mix, y, x, a, b, n, s);
    };
    k.multiply = [](void *c, bool t, size_t m, size_t n, size_t l, float alpha, const float *a, const float *b,
                    float beta, float *out,
                    void *s) { return pass(c, inner_optim.multiply, t, m, n, l, alpha, a, b, beta, out, s); };
    k.transpose = [](void *c, float *to, const float *from, size_t rows, size_t cols, void *s) {
        return pass(c, inner_optim.transpose, to, from, rows, cols, s);
    };
    k.mirror = [](void *c, float *x, size_t n, float add, void *s) {
        return pass(c, inner_optim.mirror, x, n, add, s);
    };
    return k;
}
static ds_comm_kernels gate_comm(gate *g) {
    ds_comm_kernels k;
    memset(&k, 0, sizeof k);
    k.ctx = g;
    k.compress = [](void *c, float *e, const float *in, size_t n, size_t padded, uint8_t *signs, float *scale,
                    double *g_,
                    void *s) { return pass(c, inner_comm.compress, e, in, n, padded, signs, scale, g_, s); };
    k.average = [](void *c, float *e, const uint8_t *signs, const float *scales, int w, size_t n, void *s) {
        return pass(c, inner_comm.average, e, signs, scales, w, n, s);
    };
    k.expand = [](void *c, float *to, const uint8_t *signs, const float *scale, size_t n, void *s) {
        return pass(c, inner_comm.expand, to, signs, scale, n, s);
    };
    k.quantize = [](void *c, ds_comm_blocks f, const void *in, ds_dtype d, size_t n, int8_t *out, float *p, void *s) {
        return pass(c, inner_comm.quantize, f, in, d, n, out, p, s);
    };
    k.dequantize = [](void *c, ds_comm_blocks f, const int8_t *in, const float *p, void *out, ds_dtype d, size_t n,
                      void *s) { return pass(c, inner_comm.dequantize, f, in, p, out, d, n, s); };
    k.sum = [](void *c, const void *const *in, int w, ds_dtype d, void *out, ds_dtype o, ds_comm_op op, size_t n,
               void *s) { return pass(c, inner_comm.sum, in, w, d, out, o, op, n, s); };
    k.flag_rows = [](void *c, const void *table, size_t rows, size_t each, uint8_t *flags, void *s) {
        return pass(c, inner_comm.flag_rows, table, rows, each, flags, s);
    };
    k.gather_rows = [](void *c, void *to, const void *from, const uint32_t *rows, size_t n, size_t each, void *s) {
        return pass(c, inner_comm.gather_rows, to, from, rows, n, each, s);
    };
    k.scatter_rows = [](void *c, void *to, const void *from, const uint32_t *rows, size_t n, size_t each, void *s) {
        return pass(c, inner_comm.scatter_rows, to, from, rows, n, each, s);
    };
    return k;
}

static ds_sparse_kernels gate_sparse(gate *g) {
    ds_sparse_kernels k;
    k.ctx = g;
    k.forward = [](void *c, const ds_sparse_grid *grid, const ds_sparse_io *io, void *s) {
        return pass(c, inner_sparse.forward, grid, io, s);
    };
    k.backward = [](void *c, const ds_sparse_grid *grid, const ds_sparse_io *io, void *s) {
        return pass(c, inner_sparse.backward, grid, io, s);
    };
    return k;
}

static ds_device device, comm_device, model_device;
static ds_optim_kernels optim_kernels;
static ds_comm_kernels comm_kernels;
static outcome on_cpu[MAX_WORLD], on_gpu[MAX_WORLD];

static setting with_gpu(setting s) {
    s.device = &device;
    s.comm_device = &comm_device;
    s.model_device = &model_device;
    s.kernels = &optim_kernels;
    s.comm_kernels = &comm_kernels;
    return s;
}
static void run_both(const setting *s, uint64_t seed) {
    const setting g = with_gpu(*s);
    memset(&engine_gate, 0, sizeof engine_gate);
    memset(&comm_gate, 0, sizeof comm_gate);
    emu::seed = seed;
    run(s, on_cpu);
    run(&g, on_gpu);
}
// The same bits as on the CPU, and nothing left behind.
static bool same_bits(const setting *s) {
    bool fine = true;
    for (int r = 0; r < s->world; r++)
        if (on_cpu[r].message[0] || on_gpu[r].message[0] || !same(&on_cpu[r], &on_gpu[r])) {
            printf("  stage %d, world %d, %s%s, %s: rank %d: cpu '%s', gpu '%s'\n", s->stage, s->world, s->precision,
                   s->zero ? s->zero : "", s->optimizer ? s->optimizer : "AdamW", r, on_cpu[r].message,
                   on_gpu[r].message);
            fine = false;
        }
    if (engine_gate.bytes || engine_gate.pinned || comm_gate.bytes || emu::broken) {
        printf("  %zu bytes of the device and %zu pinned were not given back; %s\n", engine_gate.bytes,
               engine_gate.pinned, emu::failure.c_str());
        fine = false;
    }
    return fine;
}

#ifndef TEST_ON_GPU
// Ranks that are processes, each with an emulated GPU of its own, over the backend nccl: its library is tests/tools/fake_nccl.c,
// whose messages wait on the GPU's stream for their turn.
static char library[] = "/tmp/ds_fake_nccl_XXXXXX";
static void put_on_stream(void *stream, void (*work)(void *), void *arg) {
    emu::put(stream, [=] {
        work(arg);
        return true;
    });
}
static bool load_library(void) {
#ifdef EMU_TSAN
    const char *const flags = " -fsanitize=thread";
#else
    const char *const flags = "";
#endif
    char command[400];
    const char *cc = getenv("CC");
    const int file = mkstemp(library);
    if (file < 0) return false;
    close(file);
    snprintf(command, sizeof command, "%.100s -std=gnu99 -O1%s -shared -fPIC -o %s tests/tools/fake_nccl.c -lpthread",
             cc && *cc ? cc : "cc", flags, library);
    if (system(command)) return false;
    void *const open = dlopen(library, RTLD_NOW); // for good: ds_comm opens the same one
    void *const set = open ? dlsym(open, "fake_nccl_streams") : NULL;
    if (set) ((void (*)(void (*)(void *, void (*)(void *), void *)))set)(put_on_stream);
    return set != NULL;
}
#else
static char *const library = NULL; // the machine's own, for one rank
#endif
static int next_port() {
    static int port;
    if (!port) port = 20000 + (int)(getpid() % 20000);
    return ++port;
}
// 0: the bits of on_cpu[rank], or with `fail` (of rank 1) an error that says what happened.
static int nccl_rank(const setting *s, int rank, int port, const char *fail) {
    thread_of of = {s, NULL, rank, &on_gpu[rank]};
    ds_comm_desc d;
    ds_error error = {DS_OK, ""};
    char text[16];
    memset(&d, 0, sizeof d);
    memset(&on_gpu[rank], 0, sizeof on_gpu[rank]);
    d.backend = "nccl", d.nccl_library = library, d.run_id = "device", d.rank = rank, d.world = s->world;
    d.timeout = 60000000000, d.device = comm_device, d.kernels = &comm_kernels;
    snprintf(text, sizeof text, "%d", port);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    setenv("MASTER_PORT", text, 1);
    if (fail && rank == 1) setenv("FAKE_NCCL_FAIL", fail, 1);
    if (ds_comm_create(&d, &of.comm, &error)) return printf("  %s\n", error.message), 1;
    if (strcmp(ds_comm_backend(of.comm), "nccl") != 0) return 1;
    run_rank(&of);
    const bool left = engine_gate.bytes || engine_gate.pinned || comm_gate.bytes || emu::broken;
    const char *const m = on_gpu[rank].message;
    const bool fine = fail ? strstr(m, "NCCL") && strstr(m, rank == 1 ? "fake error" : "remote process")
                           : !*m && same(&on_cpu[rank], &on_gpu[rank]);
    if (!fine || left) printf("  stage %d, rank %d: '%s'%s\n", s->stage, rank, m, left ? ", memory is left" : "");
    return !fine || left;
}
#ifndef TEST_ON_GPU
static int over_nccl(const setting *s, const char *fail) {
    const setting g = with_gpu(*s);
    const int port = next_port();
    pid_t pids[MAX_WORLD];
    int failed = 0, status;
    fflush(stdout);
    memset(&engine_gate, 0, sizeof engine_gate);
    memset(&comm_gate, 0, sizeof comm_gate);
    for (int r = 0; r < s->world; r++)
        if ((pids[r] = fork()) == 0) test_child_exit(nccl_rank(&g, r, port, fail));
    for (int r = 0; r < s->world; r++) {
        waitpid(pids[r], &status, 0);
        failed += !WIFEXITED(status) || WEXITSTATUS(status);
    }
    return failed;
}
#endif
// Tensors beyond the chunks in which gradients come down to the host, on one rank: all values after two steps.
static bool train_large(const setting *s, std::vector<float> *out) {
    static const size_t sizes[3] = {65536, 3 * 65536 + 777, 65537};
    static const char *const large_names[3] = {"even", "odd", "one_more"};
    ds_error error = {DS_OK, ""};
    ds_config *config = config_of(s, &error);
    ds_zero_param params[3];
    ds_zero_desc d;
    ds_zero *z = NULL;
    void *stream = NULL, *mine = NULL;
    std::vector<float> host(sizes[1]);
    bool good = config != NULL;
    memset(params, 0, sizeof params);
    memset(&d, 0, sizeof d);
    for (size_t i = 0; i < 3; i++) {
        params[i].name = large_names[i];
        params[i].dims = 1;
        params[i].shape[0] = sizes[i];
        params[i].init = init;
        params[i].ctx = (void *)(uintptr_t)i;
    }
    d.config = config;
    d.params = params;
    d.n_params = 3;
    d.device = s->device;
    d.kernels = s->kernels;
    if (s->model_device)
        good = good && !s->model_device->alloc(s->model_device->ctx, sizes[1] * 4, &mine) &&
               !s->model_device->stream_create(s->model_device->ctx, &stream);
    good = good && !ds_zero_create(&d, &z, &error);
    for (int step = 0; step < 2; step++) {
        for (int micro = 0; micro < s->accumulation; micro++) {
            good = good && !ds_zero_begin(z, DS_ZERO_TRAIN);
            for (size_t i = 0; i < 3; i++) {
                for (size_t e = 0; e < sizes[i]; e++) host[e] = gradient(i, e, 0, micro, step, 0);
                good = good && !ds_zero_grad(z, i, upload(s, mine, host.data(), sizes[i] * 4, stream), stream);
            }
            good = good && !ds_zero_end(z);
        }
        good = good && !ds_zero_step(z, NULL);
    }
    for (size_t i = 0; i < 3; i++) {
        out[i].assign(sizes[i], 0);
        good = good && !ds_zero_read(z, i, -1, 0, sizes[i], out[i].data());
    }
    if (!good) printf("  %s\n", z ? ds_zero_error(z)->message : error.message);
    ds_zero_destroy(z);
    ds_config_free(config);
    if (stream) s->model_device->stream_destroy(s->model_device->ctx, stream);
    if (mine) s->model_device->release(s->model_device->ctx, mine, sizes[1] * 4);
    return good;
}

// Attention, whose q, k and v are the model's parameters, trained for two steps by a fixed gradient of its output. The kernels
// of attention run in either case: on the engine's own memory, or, for an engine on the CPU, on copies of its weights.
static bool train_attention(const setting *s, std::vector<float> *out) {
    enum { HEADS = 2, TOKENS = 48, D = 32, COUNT = HEADS * TOKENS * D };
    static const char *const matrices[3] = {"q", "k", "v"};
    const ds_device *const m = &model_device;
    ds_error error = {DS_OK, ""};
    ds_config *config = config_of(s, &error);
    ds_zero_param params[3];
    ds_zero_desc d;
    ds_zero *z = NULL;
    ds_sparse_params how;
    ds_sparse_layout *layout = NULL;
    ds_sparse_desc desc;
    ds_sparse_kernels kernels = gate_sparse(&model_gate);
    ds_sparse *attention = NULL;
    ds_sparse_io io;
    void *slots[3] = {0}, *memory[9] = {0}, *stream = NULL; // weights, gradients; out, d_out, lse
    std::vector<float> wide(COUNT);
    std::vector<char> host(COUNT * sizeof(float));
    const ds_dtype dtype = config ? ds_zero_model_dtype(config) : DS_F32;
    const size_t bytes = COUNT * DS_DTYPE_SIZE(dtype);
    bool good = config != NULL;
    memset(params, 0, sizeof params), memset(&d, 0, sizeof d), memset(&desc, 0, sizeof desc), memset(&io, 0, sizeof io);
    for (size_t i = 0; i < 3; i++) {
        params[i].name = matrices[i], params[i].dims = 2, params[i].dtype = dtype;
        params[i].shape[0] = HEADS * TOKENS, params[i].shape[1] = D;
        params[i].slot = &slots[i], params[i].init = init, params[i].ctx = (void *)(uintptr_t)i;
    }
    d.config = config, d.params = params, d.n_params = 3, d.device = s->device, d.kernels = s->kernels;
    good = good && !ds_zero_create(&d, &z, &error) && !m->stream_create(m->ctx, &stream);
    for (void *&x : memory) good = good && !m->alloc(m->ctx, COUNT * sizeof(float), &x);
    good = good && !ds_sparse_params_default("fixed", &how, NULL);
    how.heads = HEADS, how.block = 16, how.num_local_blocks = 2;
    good = good && !ds_sparse_layout_create(&how, TOKENS, NULL, &layout, &error);
    desc.layout = layout, desc.head_dim = D, desc.causal = true, desc.kernels = &kernels, desc.device = m;
    good = good && !ds_sparse_create(&desc, &attention, &error);
    for (size_t e = 0; e < COUNT; e++) wide[e] = gradient(3, e, 0, 0, 0, 0);
    ds_optim_cast(host.data(), dtype, wide.data(), DS_F32, COUNT);
    good = good && !m->copy(m->ctx, memory[7], host.data(), bytes, stream);
    io.dtype = dtype, io.d_q = memory[3], io.d_k = memory[4], io.d_v = memory[5];
    io.out = memory[6], io.d_out = memory[7], io.lse = (float *)memory[8];
    for (int micro = 0; micro < s->steps * s->accumulation && good; micro++) {
        const void *now[3];
        good = !ds_zero_begin(z, DS_ZERO_TRAIN);
        for (size_t i = 0; i < 3; i++) {
            good = good && !ds_zero_fetch(z, i, stream);
            if (good && !s->device) good = !m->copy(m->ctx, memory[i], slots[i], bytes, stream);
            now[i] = s->device ? slots[i] : memory[i];
        }
        io.q = now[0], io.k = now[1], io.v = now[2];
        good = good && !ds_sparse_forward_on(attention, &io, stream) && !ds_sparse_backward_on(attention, &io, stream);
        for (size_t i = 0; i < 3 && good; i++) {
            if (!s->device) good = !m->copy(m->ctx, host.data(), memory[3 + i], bytes, stream);
            if (!s->device) good = good && !m->synchronize(m->ctx, stream);
            good = good && !ds_zero_grad(z, i, s->device ? memory[3 + i] : host.data(), stream);
            good = good && !ds_zero_release(z, i);
        }
        good = good && !ds_zero_end(z);
        if ((micro + 1) % s->accumulation == 0) good = good && !ds_zero_step(z, NULL);
    }
    for (size_t i = 0; i < 3; i++) {
        out[i].assign(COUNT, 0);
        good = good && !ds_zero_read(z, i, -1, 0, COUNT, out[i].data());
    }
    if (!good) printf("  '%s' '%s'\n", error.message, z ? ds_zero_error(z)->message : "");
    ds_sparse_destroy(attention);
    ds_sparse_layout_destroy(layout);
    ds_zero_destroy(z);
    ds_config_free(config);
    for (void *x : memory)
        if (x) m->release(m->ctx, x, COUNT * sizeof(float));
    if (stream) m->stream_destroy(m->ctx, stream);
    return good;
}

#ifndef TEST_ON_GPU
// What ds_kernels.cu has, by its own text: the names of its kernels, and what its launches name.
static std::string text_of(const char *path) {
    std::string text;
    FILE *const f = fopen(path, "r");
    char piece[4096];
    if (!CHECK(f != NULL)) return text;
    for (size_t n; (n = fread(piece, 1, sizeof piece, f)) > 0;) text.append(piece, n);
    fclose(f);
    return text;
}
// `at` is before a parenthesis that opens: the place after the one that closes it.
static size_t after_parentheses(const std::string &text, size_t at) {
    int depth = 0;
    for (at = text.find('(', at); at < text.size(); at++) {
        depth += text[at] == '(' ? 1 : text[at] == ')' ? -1 : 0;
        if (!depth) return at + 1;
    }
    return text.size();
}
static std::vector<std::string> names_of_kernels(const std::string &text) {
    std::vector<std::string> kernels;
    for (size_t at = 0; (at = text.find("__global__ void", at)) != std::string::npos;) {
        const size_t bounds = text.find("__launch_bounds__", at);
        at = text.find_first_not_of(" \n", at + strlen("__global__ void"));
        if (at == bounds) at = text.find_first_not_of(" \n", after_parentheses(text, at));
        kernels.push_back(text.substr(at, text.find('(', at) - at));
    }
    return kernels;
}
static std::vector<std::string> sites_of_launches(const std::string &text) {
    std::vector<std::string> sites;
    for (size_t at = 0; (at = text.find(" DSI_LAUNCH(", at)) != std::string::npos; at++) {
        const size_t from = at + strlen(" DSI_LAUNCH("), end = text[from] == '(' ? after_parentheses(text, from) : from;
        if (text.compare(at - strlen("#define"), strlen("#define"), "#define"))
            sites.push_back(text.substr(from, text.find(',', end) - from));
    }
    return sites;
}
#endif

// The 1-bit family, whose freeze comes within a few steps.
static const char *const one_bits[3][2] = {
    {"OneBitAdam", ", \"freeze_step\": 3"},
    {"ZeroOneAdam", ", \"var_freeze_step\": 4, \"var_update_scaler\": 1, \"local_step_scaler\": 2, "
                    "\"local_step_clipper\": 4"},
    {"OneBitLamb", ", \"freeze_step\": 3"}};
static setting one_bit_setting(int type, int world, int accumulation, int steps, const char *precision) {
    setting s = setting_of(world, 0, accumulation, steps, precision);
    s.optimizer = one_bits[type][0];
    s.hyper = one_bits[type][1];
    return s;
}

// Every `stride`-th call of a gate fails, and one rank says so; nothing is left.
static void fails_in_turn(const setting *s, gate *of, size_t stride) {
    const setting g = with_gpu(*s);
    size_t told = 0, tries = 0;
    run_both(s, 70);
    if (!CHECK(same_bits(s))) return;
    const size_t total = of->calls;
    for (size_t n = 1; n <= total; n += stride) {
        memset(&engine_gate, 0, sizeof engine_gate);
        memset(&comm_gate, 0, sizeof comm_gate);
        of->fail_at = n;
        run(&g, on_gpu);
        tries++;
        for (int r = 0; r < s->world; r++)
            if (strstr(on_gpu[r].message, "gate says no") || strstr(on_gpu[r].message, "no memory")) {
                told++;
                break;
            }
        if (!CHECK(!engine_gate.bytes && !engine_gate.pinned && !emu::broken)) {
            printf("  call %zu of %zu: %zu and %zu bytes left, '%s'\n", n, total, engine_gate.bytes, engine_gate.pinned,
                   on_gpu[0].message);
            break;
        }
    }
    CHECK_EQ(told, tries);
}

// Optimizers of the client's own, which the kernels lack: by grain, by norm, and one that averages with one bit from the
// third step on.
static ds_status own_update(const ds_optim_pass *pass, const float *grad, float *master, float *const *state,
                            size_t count) {
    const ds_optim_table *own = (const ds_optim_table *)pass->ctx;
    const double rate = pass->params->lr * (pass->norm[1] > 0 ? pass->norm[0] / pass->norm[1] : 1.0);
    for (size_t i = 0; i < count; i++) state[0][i] = 0.5f * (state[0][i] + grad[i]);
    if (own && own->local_gradients(NULL, pass->step)) {
        const ds_status status = ds_optim_pass_average(pass, state[0]);
        if (status) return status;
    }
    for (size_t i = 0; i < count; i++) master[i] -= (float)rate * state[0][i];
    return DS_OK;
}
static void own_measure(const ds_optim_pass *, const float *grad, const float *master, float *const *, size_t count,
                        double sums[2]) {
    sums[0] = sums[1] = 0.0;
    for (size_t i = 0; i < count; i++) sums[0] += (double)master[i] * master[i], sums[1] += (double)grad[i] * grad[i];
}
static ds_optim_table own_table(ds_optim_work work, bool compresses) {
    ds_optim_table t;
    memset(&t, 0, sizeof t);
    t.name = "Own";
    t.work = work;
    t.state_count = 1;
    t.state_names[0] = "m";
    t.update = own_update;
    t.measure = work == DS_OPTIM_BY_NORM ? own_measure : NULL;
    t.compresses = compresses;
    t.local_gradients = compresses ? [](void *, int64_t step) { return step > 2; } : (bool (*)(void *, int64_t))NULL;
    return t;
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
#ifdef TEST_ON_GPU
    if (no_gpu()) return 0;
#endif
    ds_cuda_device(&inner);
    ds_cuda_optim_kernels(&inner_optim);
    ds_cuda_comm_kernels(&inner_comm);
    ds_cuda_sparse_kernels(&inner_sparse);
    device = gate_device(&engine_gate);
    comm_device = gate_device(&comm_gate);
    model_device = gate_device(&model_gate);
    optim_kernels = gate_optim(&engine_gate);
    comm_kernels = gate_comm(&comm_gate);
    TEST(stages_and_types_give_the_cpus_bits) {
        static const char *const precisions[] = {"fp32", "bf16", "fp16"};
        for (int stage = 0; stage <= 3; stage++)
            for (int p = 0; p < 3; p++)
                for (int world = 1; world <= 2; world++) {
                    setting s = setting_of(world, stage, 1 + (stage + p) % 2, 3, precisions[p]);
                    s.tied = p == 1;
                    s.shuffled = stage % 2;
                    s.zero = ", \"reduce_bucket_size\": 4000, \"stage3_param_persistence_threshold\": 100, "
                             "\"stage3_prefetch_bucket_size\": 5000";
                    run_both(&s, 17u * (unsigned)(stage + 4 * p) + (unsigned)world);
                    CHECK(same_bits(&s));
                }
    }
    TEST(offload_gives_the_cpus_bits) {
        static const char *const offloads[] = {
            ", \"offload_optimizer\": {\"device\": \"cpu\", \"pin_memory\": true}",
            ", \"sub_group_size\": 3000, \"offload_optimizer\": {\"device\": \"cpu\", \"ratio\": 0.4}",
            ", \"sub_group_size\": 3000, \"stage3_param_persistence_threshold\": 100, \"offload_param\": {\"device\": "
            "\"cpu\", \"pin_memory\": true}",
            ", \"sub_group_size\": 3000, \"stage3_param_persistence_threshold\": 100, \"offload_optimizer\": "
            "{\"device\": \"cpu\"}, \"offload_param\": {\"device\": \"cpu\"}",
            ", \"sub_group_size\": 3000, \"stage3_param_persistence_threshold\": 100, \"offload_optimizer\": "
            "{\"device\": \"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": true, \"pipeline_write\": true}",
            ", \"sub_group_size\": 3000, \"stage3_param_persistence_threshold\": 100, \"offload_param\": {\"device\": "
            "\"nvme\", \"nvme_path\": \"build\", \"max_in_cpu\": 0, \"buffer_count\": 3, \"buffer_size\": 2048}",
            ", \"sub_group_size\": 3000, \"stage3_param_persistence_threshold\": 100, \"offload_optimizer\": "
            "{\"device\": \"nvme\", \"nvme_path\": \"build\"}, \"offload_param\": {\"device\": \"nvme\", "
            "\"nvme_path\": \"build\", \"max_in_cpu\": 0}",
            ", \"sub_group_size\": 3000, \"stage3_param_persistence_threshold\": 100, \"offload_optimizer\": "
            "{\"device\": \"nvme\", \"nvme_path\": \"build\", \"ratio\": 0.5}",
        };
        static const char *const precisions[] = {"fp32", "bf16", "fp16"};
        for (int stage = 1; stage <= 3; stage++)
            for (size_t o = 0; o < (stage == 3 ? 8 : 1); o++)
                for (int p = 0; p < 3; p++) {
                    setting s = setting_of(1 + (p + (int)o) % 2, stage, 1 + (stage + p) % 2, 3, precisions[p]);
                    s.zero = offloads[o];
                    run_both(&s, 100u * (unsigned)stage + 7 * (unsigned)o + (unsigned)p);
                    CHECK(same_bits(&s));
                }
    }
    TEST(gradients_come_down_in_many_chunks) {
        for (int stage = 1; stage <= 3; stage++) {
            setting s = setting_of(1, stage, 2, 2, "fp32");
            std::vector<float> cpu[3], gpu[3];
            s.zero = stage == 3 ? ", \"stage3_param_persistence_threshold\": 0, \"offload_optimizer\": {\"device\": "
                                  "\"nvme\", \"nvme_path\": \"build\"}"
                                : ", \"offload_optimizer\": {\"device\": \"cpu\"}";
            CHECK(train_large(&s, cpu));
            emu::seed = 300 + (unsigned)stage;
            s = with_gpu(s);
            CHECK(train_large(&s, gpu));
            for (int i = 0; i < 3; i++) CHECK(cpu[i] == gpu[i]);
            CHECK(!engine_gate.bytes && !engine_gate.pinned && !emu::broken);
        }
    }
    TEST(optimizers_give_the_cpus_bits) {
        static const char *const types[] = {"Adam", "SGD", "Adagrad", "Lion", "Lamb", "Muon", "OneBitAdam"};
        for (size_t t = 0; t < 7; t++)
            for (int world = 1; world <= 2; world++) {
                setting s = setting_of(world, t == 6 ? 0 : t == 4 ? 3 : 2, 2, 3, "bf16");
                s.optimizer = types[t];
                s.hyper = t == 1 ? ", \"momentum\": 0.9" : NULL;
                s.zero =
                    t == 4 ? ", \"sub_group_size\": 3000, \"offload_optimizer\": {\"device\": \"cpu\", \"ratio\": 0.5}"
                           : "";
                run_both(&s, 1000 + t);
                CHECK(same_bits(&s));
            }
    }
    TEST(muon_on_the_device) {
        static const char *const precisions[] = {"fp32", "bf16", "fp16"};
        for (int stage = 0; stage <= 3; stage++)
            for (int how = 0; how < 3; how++) {
                setting s = setting_of(1 + (stage + how) % 2, stage, 1, 2, precisions[how]);
                const bool offload = how == 2 && stage == 3;
                const size_t before = emu::calls["multiply"];
                s.optimizer = "Muon";
                s.hyper = how == 1 ? ", \"ns_steps\": 2, \"nesterov\": false" : NULL;
                s.zero = offload ? ", \"offload_optimizer\": {\"device\": \"cpu\", \"ratio\": 0.5}" : "";
                run_both(&s, 2000u + 10u * (unsigned)stage + (unsigned)how);
                CHECK(same_bits(&s));
                CHECK(!EMULATED || (emu::calls["multiply"] > before) == !offload); // offloaded states are the CPU's
            }
    }
    TEST(one_bit_on_the_device) {
        static const char *const precisions[] = {"fp32", "bf16", "fp16"};
        static const char *const reached[] = {"one_bit_add", "one_bit_signs", "one_bit_average", "one_bit_expand"};
        for (int type = 0; type < 3; type++)
            for (int world = 1; world <= 4; world++) {
                setting s = one_bit_setting(type, world, 1 + (world + type) % 2, 9, precisions[(world + type) % 3]);
                size_t before[4], planned = 0;
                s.tied = world == 2;
                if (world == 3) s.overflow_rank = 1, s.overflow_step = 5;
                for (int k = 0; k < 4; k++) before[k] = emu::calls[reached[k]];
                run_both(&s, 3000u + 10u * (unsigned)type + (unsigned)world);
                CHECK(same_bits(&s));
                CHECK_EQ(on_gpu[0].skipped, world == 3);
                for (int k = 0; k < 4; k++) CHECK(!EMULATED || (emu::calls[reached[k]] > before[k]) == (world > 1));
                for (int r = 0; r < world; r++) {
                    CHECK(!strstr(on_gpu[r].lines, "the CPU updates"));
                    CHECK(memcmp(&on_gpu[r].plan, &on_gpu[r].stats.peak, sizeof on_gpu[r].plan) == 0);
                    CHECK_EQ(on_gpu[r].after_second, on_gpu[r].memory.calls);
                    for (int c = 0; c < DS_ZERO_CLASSES; c++) planned += on_gpu[r].plan.bytes[c][DS_ZERO_DEVICE];
                }
                CHECK_EQ(planned, engine_gate.peak);
            }
    }
    TEST(one_bit_resumes_between_gpu_and_cpu) { // with errors, factors and counters, before the freeze and after it
        static outcome straight[MAX_WORLD];
        for (int type = 0; type < 3; type++)
            for (int how = 0; how < 3; how++) { // from the GPU to the CPU, the other way, from GPU to GPU
                char folder[] = "build/deviceXXXXXX", clean[64];
                const int saved = how == 1 ? 2 : type == 1 ? 6 : 5; // ZeroOneAdam: where ranks hold the same
                setting s = one_bit_setting(type, 2, 1, saved + 4, "bf16"), first = s, second = s;
                if (!CHECK(mkdtemp(folder) != NULL)) break;
                run(&s, straight);
                first.steps = saved, first.save = folder;
                second.steps = 4, second.first = saved, second.load = folder;
                if (how != 1) first = with_gpu(first);
                if (how != 0) second = with_gpu(second);
                run(&first, on_cpu);
                run(&second, on_gpu);
                CHECK_STR(on_cpu[0].message, "");
                CHECK_STR(on_gpu[0].message, "");
                CHECK(same(&straight[0], &on_gpu[0]) && same(&straight[1], &on_gpu[1]));
                if (how == 0) { // at another world size the feedback starts from zero, on both alike
                    s.world = 3, s.steps = 3, s.first = saved, s.load = folder;
                    run_both(&s, 9);
                    CHECK(same_bits(&s));
                    CHECK_HAS(on_gpu[0].lines, "starts from zero");
                }
                snprintf(clean, sizeof clean, "rm -rf %s", folder);
                CHECK_EQ(system(clean), 0);
            }
    }
    TEST(one_bit_needs_the_communicators_kernels) {
        setting s = one_bit_setting(0, 2, 1, 1, "fp32");
        s = with_gpu(s);
        s.comm_kernels = NULL;
        run(&s, on_gpu);
        CHECK_HAS(on_gpu[0].message, "OneBitAdam on a GPU: 1-bit all-reduce on device memory: the communicator lacks");
        CHECK(!engine_gate.bytes && !engine_gate.pinned);
    }
    TEST(keys_give_the_cpus_bits) {
        static const struct {
            int stage, accumulation;
            const char *precision, *zero, *top;
        } keys[] = {
            {1, 2, "bf16", "", ", \"ds\": {\"reduce_at_boundary\": true}"},
            {0, 3, "fp32", "", ", \"ds\": {\"reduce_at_boundary\": true}"},
            {1, 2, "fp16", ", \"sub_group_size\": 2048, \"offload_optimizer\": {\"device\": \"cpu\"}",
             ", \"ds\": {\"reduce_at_boundary\": true}"},
            {2, 3, "bf16", "", ", \"ds\": {\"world_invariant\": true}"},
            {3, 4, "fp32", ", \"offload_optimizer\": {\"device\": \"cpu\", \"pin_memory\": true}",
             ", \"ds\": {\"world_invariant\": true}"},
            {3, 3, "bf16", ", \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\"}",
             ", \"ds\": {\"world_invariant\": true}"},
            {2, 2, "fp16", "", ", \"prescale_gradients\": true, \"gradient_predivide_factor\": 3.0"},
            {2, 2, "bf16", "",
             ", \"communication_data_type\": \"fp32\", \"data_types\": {\"grad_accum_dtype\": \"fp32\"}"},
            {1, 1, "bf16", ", \"allgather_partitions\": false, \"allgather_bucket_size\": 2000", ""},
            {3, 1, "bf16",
             ", \"overlap_comm\": false, \"contiguous_gradients\": false, \"reduce_scatter\": false, "
             "\"stage3_max_live_parameters\": 9000, \"stage3_max_reuse_distance\": 0, "
             "\"stage3_param_persistence_threshold\": 0",
             ", \"gradient_clipping\": 0.5"},
            {3, 1, "fp32", ", \"zero_hpz_partition_size\": 2, \"stage3_param_persistence_threshold\": 0", ""},
            {2, 1, "fp32", "", ", \"sparse_gradients\": true"},
            {2, 2, "bf16", ", \"zero_quantized_gradients\": true", ""},
            {3, 1, "fp32",
             ", \"zero_hpz_partition_size\": 2, \"stage3_param_persistence_threshold\": 0, "
             "\"zero_quantized_gradients\": true, \"zero_quantized_weights\": true",
             ""},
            {3, 1, "fp16", ", \"stage3_param_persistence_threshold\": 0, \"zero_quantized_weights\": true", ""},
            {0, 1, "fp32", "", ", \"data_types\": {\"grad_accum_dtype\": \"bf16\"}"},
            {1, 1, "bf16", ", \"overlap_comm\": true", ", \"communication_data_type\": \"fp32\""},
            {2, 1, "bf16", ", \"overlap_comm\": true", ", \"communication_data_type\": \"fp32\""},
            {1, 2, "bf16", ", \"overlap_comm\": true", ", \"ds\": {\"gather_in_background\": true}"},
            {2, 1, "fp32", ", \"offload_optimizer\": {\"device\": \"cpu\"}",
             ", \"ds\": {\"gather_in_background\": true}"},
        };
        for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
            setting s =
                setting_of(k == 10 || k == 13 ? 4 : 2, keys[k].stage, keys[k].accumulation, 3, keys[k].precision);
            s.zero = keys[k].zero;
            s.top = keys[k].top;
            s.sparse = k == 11;
            s.tied = k % 2 == 1 || k == 6;
            run_both(&s, 400 + k);
            CHECK(same_bits(&s));
        }
    }
    TEST(rows_of_sparse_gradients) {
        static const char *const precisions[] = {"fp32", "bf16", "fp16"};
        for (int stage = 0; stage <= 3; stage++)
            for (int how = 0; how < 3; how++) {
                setting s = setting_of(2 + how % 2, stage, 1 + how % 2, 3, precisions[(stage + how) % 3]);
                const size_t found = emu::calls["flag_rows"], moved = emu::calls["move_rows"];
                size_t planned[2] = {0, 0}, own = 0;
                s.sparse = 2; // rows of 61 elements and of 40, which are moved 16 bytes at a time
                s.top = how == 1 ? ", \"sparse_gradients\": true, \"ds\": {\"world_invariant\": true}"
                                 : ", \"sparse_gradients\": true";
                s.tied = how == 2;
                if (how == 1) s.world = 4;
                run_both(&s, 600u + 10u * (unsigned)stage + (unsigned)how);
                CHECK(same_bits(&s));
                // once a table, micro-batch and rank; rows are taken, spread beside the others', and put back
                const size_t times = (size_t)(2 * s.world * s.accumulation * s.steps), world = (size_t)s.world;
                CHECK(!EMULATED || emu::calls["flag_rows"] - found == times);
                CHECK(!EMULATED || emu::calls["move_rows"] - moved >= times * (world + 1));
                for (int r = 0; r < s.world; r++) {
                    own += on_gpu[r].memory.peak;
                    for (int c = 0; c < DS_ZERO_CLASSES; c++)
                        for (int t = 0; t < 2; t++) planned[t] += on_gpu[r].plan.bytes[c][t];
                    CHECK(memcmp(&on_gpu[r].plan, &on_gpu[r].stats.peak, sizeof on_gpu[r].plan) == 0);
                }
                CHECK_EQ(planned[DS_ZERO_DEVICE], engine_gate.peak);
                CHECK_EQ(planned[DS_ZERO_HOST], own + engine_gate.pinned_peak);
            }
    }
    TEST(an_overflow_skips_the_step) {
        for (int how = 0; how < 4; how++) { // messages of four bits hide none either
            setting s = setting_of(2, how / 2 ? 2 : 3, 1, 3, "fp16");
            s.overflow_rank = 1, s.overflow_step = 1, s.overflow_nan = how % 2;
            s.zero = how / 2 ? ", \"zero_quantized_gradients\": true" : "";
            run_both(&s, 9);
            CHECK(same_bits(&s));
            CHECK_EQ(on_gpu[0].skipped, 1);
            CHECK_EQ(on_cpu[0].skipped, 1);
        }
    }
    TEST(plan_is_what_the_device_gives) {
        static const char *const zeros[] = {
            "", ", \"sub_group_size\": 3000, \"offload_optimizer\": {\"device\": \"cpu\", \"pin_memory\": true}",
            ", \"stage3_param_persistence_threshold\": 100, \"offload_param\": {\"device\": \"cpu\"}"};
        for (int stage = 0; stage <= 3; stage++)
            for (int z = 0; z < (stage == 3 ? 5 : stage ? 2 : 1); z++) {
                static const char *const types[] = {"AdamW", "Muon", "Lamb"};
                setting s = setting_of(1, stage, 2, 3, "bf16");
                size_t planned[2] = {0, 0};
                s.zero = zeros[z < 3 ? z : 0];
                s.optimizer = types[z < 3 ? 0 : z - 2];
                run_both(&s, 50);
                CHECK(same_bits(&s));
                for (int c = 0; c < DS_ZERO_CLASSES; c++)
                    for (int t = 0; t < 2; t++) planned[t] += on_gpu[0].plan.bytes[c][t];
                CHECK_EQ(planned[DS_ZERO_DEVICE], engine_gate.peak);
                CHECK_EQ(planned[DS_ZERO_HOST], on_gpu[0].memory.peak + engine_gate.pinned_peak);
                CHECK(memcmp(&on_gpu[0].plan, &on_gpu[0].stats.peak, sizeof on_gpu[0].plan) == 0);
                CHECK_EQ(on_gpu[0].after_second, on_gpu[0].memory.calls);
            }
    }
    TEST(each_call_of_the_device_fails_in_turn) {
        static const char *const zeros[] = {
            ", \"stage3_param_persistence_threshold\": 100",
            ", \"stage3_param_persistence_threshold\": 100, \"sub_group_size\": 3000, \"offload_param\": {\"device\": "
            "\"cpu\"}, \"offload_optimizer\": {\"device\": \"cpu\", \"ratio\": 0.5, \"pin_memory\": true}"};
        for (int world = 1; world <= 2; world++)
            for (int z = 0; z < (world == 1 ? 3 : 2); z++) {
                setting s = setting_of(world, z == 2 ? 1 : 3, 1, 1, z ? "bf16" : "fp32");
                s.zero = z < 2 ? zeros[z] : "";
                s.optimizer = z < 2 ? NULL : "Muon";
                if (z == 2)
                    s.accumulation = 2, s.top = ", \"prescale_gradients\": true, \"gradient_predivide_factor\": 3.0";
                fails_in_turn(&s, &engine_gate, world > 1 ? 13 : z < 2 ? 1 : 5);
            }
    }
    TEST(each_call_of_one_bit_fails_in_turn) {
        for (int type = 0; type < 3; type++)
            for (int world = 1; world <= 2; world++) {
                const setting s = one_bit_setting(type, world, 1, 6, "bf16");
                fails_in_turn(&s, &engine_gate, world > 1 ? 61 : 37);
                if (world > 1) fails_in_turn(&s, &comm_gate, 31);
            }
    }
#ifndef TEST_ON_GPU
    TEST(each_call_of_cuda_fails_in_turn) {
        setting s = setting_of(1, 3, 1, 1, "bf16"), g;
        size_t told = 0, tries = 0, total;
        s.zero = ", \"stage3_param_persistence_threshold\": 100, \"sub_group_size\": 3000, \"offload_param\": "
                 "{\"device\": \"cpu\"}, \"offload_optimizer\": {\"device\": \"cpu\", \"ratio\": 0.5}";
        emu::asked = 0;
        run_both(&s, 71);
        CHECK(same_bits(&s));
        total = emu::asked;
        g = with_gpu(s);
        for (size_t n = 1; n <= total; n += 2, tries++) {
            emu::asked = 0, emu::fail_at = n;
            run(&g, on_gpu);
            emu::fail_at = 0;
            const char *const m = on_gpu[0].message;
            // a question about the current GPU that gets no answer changes nothing
            told += strstr(m, "unknown error") || (!*m && same(on_cpu, on_gpu));
            if (!CHECK(told == tries + 1 && !engine_gate.bytes && !engine_gate.pinned)) {
                printf("  call %zu of %zu: %zu and %zu bytes left, '%s'\n", n, total, engine_gate.bytes,
                       engine_gate.pinned, m);
                break;
            }
        }
        emu::reset();
        static const struct {
            int refuses, no_image;
            const char *told;
        } states[] = {{cudaErrorInsufficientDriver, 0, "driver version is insufficient"},
                      {cudaErrorNoDevice, 0, "no CUDA-capable device"},
                      {0, cudaErrorNoKernelImageForDevice, "(compute capability 9.0): no kernel image"}};
        for (const auto &state : states) {
            emu::refuses = state.refuses, emu::no_image = state.no_image;
            run(&g, on_gpu);
            emu::refuses = emu::no_image = 0;
            CHECK_HAS(on_gpu[0].message, state.told);
        }
        emu::fail_alloc = 6; // the first is the model's
        run(&g, on_gpu);
        CHECK_EQ(emu::fail_alloc, 0);
        CHECK_HAS(on_gpu[0].message, "no memory for");
        CHECK_HAS(on_gpu[0].message, "bytes; emulated GPU (compute capability 9.0): out of memory");
        CHECK_EQ(engine_gate.bytes, 0);
    }
    TEST(ranks_over_nccl_give_the_cpus_bits) {
        static const char *const precisions[] = {"fp32", "bf16", "fp16"};
#ifdef __SANITIZE_THREAD__
        const bool followed = false;
#else
        const bool followed = true;
#endif
        if (!followed)
            SKIP("ThreadSanitizer does not follow threads that a process starts after a fork of one with threads");
        else if (CHECK(load_library()))
            for (int stage = 0; stage <= 3; stage++)
                for (int how = 0; how < 2; how++) {
                    setting s = setting_of(2, stage, 1 + how, 2, precisions[(stage + how) % 3]);
                    s.optimizer = stage == 2 && how ? "Muon" : NULL;
                    s.zero = stage == 3 ? ", \"stage3_param_persistence_threshold\": 100, \"sub_group_size\": 3000, "
                                          "\"offload_optimizer\": {\"device\": \"cpu\", \"pin_memory\": true}"
                                        : ", \"reduce_bucket_size\": 4000";
                    run(&s, on_cpu);
                    CHECK_EQ(over_nccl(&s, NULL), 0);
                    if (stage == 3) CHECK_EQ(over_nccl(&s, how ? "Recv:20" : "GroupEnd:9"), 0);
                }
        for (int type = 0; type < 3 && followed; type++) {
            const setting s = one_bit_setting(type, 2 + type % 2, 1, 7, precisions[type]);
            run(&s, on_cpu);
            CHECK_EQ(over_nccl(&s, NULL), 0);
        }
        unlink(library);
    }
#endif
    TEST(one_rank_over_nccl_gives_the_cpus_bits) {
        static const char *const precisions[] = {"fp32", "bf16", "fp16"};
        for (int stage = 0; stage <= 3; stage++) {
            setting s = setting_of(1, stage, 2, 2, precisions[stage % 3]);
            s.zero = stage == 3 ? ", \"stage3_param_persistence_threshold\": 100" : "";
            run(&s, on_cpu);
            s = with_gpu(s);
            memset(&engine_gate, 0, sizeof engine_gate);
            memset(&comm_gate, 0, sizeof comm_gate);
            CHECK_EQ(nccl_rank(&s, 0, next_port(), NULL), 0);
        }
    }
    TEST(checkpoints_pass_between_gpu_and_cpu) {
        setting s = setting_of(2, 3, 2, 2, "bf16");
        static outcome straight[MAX_WORLD];
        s.steps = 4;
        run(&s, straight);
        for (int from_gpu = 0; from_gpu < 2; from_gpu++) {
            char folder[] = "build/deviceXXXXXX", clean[64];
            setting first = s, second = s;
            if (!CHECK(mkdtemp(folder) != NULL)) break;
            first.steps = 2, first.save = folder;
            second.steps = 2, second.first = 2, second.load = folder;
            if (from_gpu)
                first = with_gpu(first);
            else
                second = with_gpu(second);
            run(&first, on_cpu);
            run(&second, on_gpu);
            CHECK_STR(on_cpu[0].message, "");
            CHECK_STR(on_gpu[0].message, "");
            CHECK(same(&straight[0], &on_gpu[0]) && same(&straight[1], &on_gpu[1]));
            snprintf(clean, sizeof clean, "rm -rf %s", folder);
            CHECK_EQ(system(clean), 0);
        }
    }
    TEST(an_optimizer_of_the_client_updates_on_the_cpu) {
        const ds_optim_table plain[3] = {own_table(DS_OPTIM_BY_GRAIN, false), own_table(DS_OPTIM_BY_NORM, false),
                                         own_table(DS_OPTIM_WHOLE, false)};
        ds_optim_table average = own_table(DS_OPTIM_WHOLE, true);
        average.ctx = &average;
        for (int k = 0; k < 4; k++)
            for (int stage = 0; stage < (k < 3 ? 4 : 1); stage++)
                for (int world = 1; world < 4; world++) {
                    setting s = setting_of(world, stage, 2, 5, stage % 2 ? "fp32" : "bf16");
                    s.client = k < 3 ? &plain[k] : &average;
                    s.zero = stage < 3 || world == 2 // and with the states on disk
                                 ? ", \"stage3_param_persistence_threshold\": 0"
                                 : ", \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 2048, "
                                   "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\", "
                                   "\"pipeline_read\": true, \"pipeline_write\": true}";
                    run_both(&s, 90u + (unsigned)(k * 12 + stage * 3 + world));
                    if (!CHECK(same_bits(&s))) printf("  optimizer %d, stage %d, world %d\n", k, stage, world);
                    if (!strstr(s.zero, "nvme"))
                        CHECK_HAS(on_gpu[0].lines, "the GPU has no kernels for Own: the CPU updates");
                }
    }
    TEST(wrong_devices_are_refused) {
        ds_device half = device;
        setting s = with_gpu(setting_of(1, 2, 1, 1, "fp32"));
        s.kernels = NULL;
        run(&s, on_gpu);
        CHECK_HAS(on_gpu[0].message, "device and kernels are given together");
        s.kernels = &optim_kernels;
        half.event_wait = NULL;
        s.device = &half;
        run(&s, on_gpu);
        CHECK_HAS(on_gpu[0].message, "every member");
    }
    TEST(attention_between_weights_and_gradients_of_the_engine) {
        static const char *const precisions[] = {"fp32", "bf16", "fp16"};
        for (int stage = 0; stage <= 3; stage += 3)
            for (int p = 0; p < 3; p++) {
                setting s = setting_of(1, stage, 2, 2, precisions[p]);
                std::vector<float> beside[3], within[3];
                s.zero = stage == 3 ? ", \"stage3_param_persistence_threshold\": 0" : "";
                emu::seed = 700u + (unsigned)(stage + p);
                CHECK(train_attention(&s, beside));
                s = with_gpu(s);
                memset(&engine_gate, 0, sizeof engine_gate);
                CHECK(train_attention(&s, within));
                for (int i = 0; i < 3; i++) CHECK(beside[i] == within[i]);
                CHECK(beside[0] != beside[1] && beside[1] != beside[2]);
                CHECK(!engine_gate.bytes && !engine_gate.pinned && !model_gate.bytes && !emu::broken);
            }
    }
#ifndef TEST_ON_GPU
    TEST(each_kernel_is_reached) {
        // by the engine, and those of attention by ds_sparse on the engine's weights: every name and every launch that
        // stands in ds_kernels.cu
        const std::string text = text_of("ds_kernels.cu");
        const std::vector<std::string> kernels = names_of_kernels(text), launches = sites_of_launches(text);
        CHECK(kernels.size() > 15 && launches.size() > kernels.size());
        for (const std::vector<std::string> *list : {&kernels, &launches})
            for (const std::string &k : *list) {
                const bool some = test_.argc > 1; // not all tests ran
                if (!some && !CHECK((list == &kernels ? emu::calls : emu::sites)[k] > 0))
                    printf("  nobody launches %s\n", k.c_str());
            }
    }
#endif
    return test_end();
}
