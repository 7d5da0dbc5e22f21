// ds_kernels.cu: every kernel beside the CPU's function; on the emulated GPU of tests/emulate in several random orders.
#ifndef TEST_ON_GPU
#define DSI_MOST_BLOCKS 3u // so that threads take several turns at these sizes
#include "../../ds_kernels.cu"
enum { EMULATED = 1 };
#else
#include "../gpu/real.h"
#endif
#define DS_IMPLEMENTATION
#include "../../ds_comm.h"
#include "../../ds_optim.h"
#include "../../ds_sparse.h"
#include "../test.h"
#include <string>

static ds_optim_kernels optim_kernels;
static ds_comm_kernels comm_kernels;
static ds_sparse_kernels sparse_kernels;
static ds_device gpu;
static const ds_dtype floats[] = {DS_F32, DS_F16, DS_BF16};
static uint64_t dice = 42;

// Device memory that holds a copy of host memory, and comes back.
struct on_device {
    void *at, *base;
    size_t bytes;
    on_device(const void *from, size_t bytes_, size_t shift = 0) : bytes(bytes_) {
        CHECK(gpu.alloc(gpu.ctx, bytes + shift, &base) == DS_OK);
        at = (char *)base + shift;
        CHECK(gpu.copy(gpu.ctx, at, from, bytes, NULL) == DS_OK);
    }
    ~on_device() { gpu.release(gpu.ctx, base, bytes); }
    on_device(const on_device &) = delete;
    void back(void *to) {
        CHECK(gpu.copy(gpu.ctx, to, at, bytes, NULL) == DS_OK);
        CHECK(gpu.synchronize(gpu.ctx, NULL) == DS_OK);
    }
    void from(const void *host) { CHECK(gpu.copy(gpu.ctx, at, host, bytes, NULL) == DS_OK); }
    bool equals(const void *host) {
        std::string now(bytes, 0);
        back(&now[0]);
        return bytes == 0 || memcmp(now.data(), host, bytes) == 0;
    }
};
// The same bits, but for those that a NaN carries.
static bool same_but_nan(on_device &d, ds_dtype dtype, const void *host, size_t count) {
    std::string now(d.bytes, 0);
    d.back(&now[0]);
    for (size_t i = 0; i < count; i++) {
        const size_t size = DS_DTYPE_SIZE(dtype);
        float a, b;
        ds_optim_cast(&a, DS_F32, &now[i * size], dtype, 1);
        ds_optim_cast(&b, DS_F32, (const char *)host + i * size, dtype, 1);
        if ((a == a || b == b) && memcmp(&a, &b, sizeof a)) return false;
    }
    return true;
}
// A float of any size: most near 1, some zero, denormal or huge.
static float any_float() {
    const double u = test_uniform(&dice) * 2 - 1;
    switch (test_random(&dice) % 16) {
    case 0: return 0;
    case 1: return (float)(u * 1e-40);
    case 2: return (float)(u * 1e-6);
    case 3: return (float)(u * 1e4);
    default: return (float)u;
    }
}
static std::vector<char> random_array(ds_dtype dtype, size_t count) {
    std::vector<char> bytes(count * DS_DTYPE_SIZE(dtype) + 1);
    for (size_t i = 0; i < count; i++) {
        const float x = any_float();
        ds_optim_cast(&bytes[i * DS_DTYPE_SIZE(dtype)], dtype, &x, DS_F32, 1);
    }
    bytes.resize(count * DS_DTYPE_SIZE(dtype));
    return bytes;
}

// One tensor's arrays on both sides.
struct tensor_pair {
    size_t count;
    ds_dtype grad_dtype, weights_dtype;
    bool weights16;
    std::vector<char> master, state[3], grad, weights;
    std::vector<on_device *> device;
    tensor_pair(size_t count_, ds_dtype g, int w, size_t shift, int states) : count(count_), grad_dtype(g) {
        weights16 = w != 0;
        weights_dtype = w == 2 ? DS_BF16 : DS_F16;
        master = random_array(DS_F32, count);
        grad = random_array(g, count);
        weights.resize(2 * count);
        for (int k = 0; k < 3; k++) {
            state[k] = random_array(DS_F32, count);
            for (size_t i = 0; i < count; i++) { // second moments are not negative
                float x;
                memcpy(&x, &state[k][4 * i], 4);
                x = fabsf(x);
                memcpy(&state[k][4 * i], &x, 4);
            }
        }
        const std::vector<char> *all[] = {&master,
                                          &grad,
                                          &weights,
                                          states > 0 ? &state[0] : NULL,
                                          states > 1 ? &state[1] : NULL,
                                          states > 2 ? &state[2] : NULL};
        for (const std::vector<char> *a : all)
            device.push_back(a ? new on_device(a->data(), a->size(), shift * (a == &grad || a == &weights ? 2 : 4))
                               : NULL);
        if (g == DS_F32) delete device[1], device[1] = new on_device(grad.data(), grad.size(), shift * 4);
    }
    ~tensor_pair() {
        for (on_device *d : device) delete d;
    }
    tensor_pair(const tensor_pair &) = delete;
    ds_optim_slice slice(size_t tensor, bool on_gpu) {
        ds_optim_slice s;
        memset(&s, 0, sizeof s);
        s.tensor = tensor, s.count = count, s.grad_dtype = grad_dtype, s.weights16_dtype = weights_dtype;
        s.master = (float *)(void *)(on_gpu ? device[0]->at : master.data());
        s.grad = on_gpu ? device[1]->at : grad.data();
        s.weights16 = !weights16 ? NULL : on_gpu ? device[2]->at : weights.data();
        for (int k = 0; k < 3; k++)
            if (device[(size_t)(3 + k)])
                s.state[k] = (float *)(void *)(on_gpu ? device[(size_t)(3 + k)]->at : state[k].data());
        return s;
    }
    bool same() {
        bool fine = device[0]->equals(master.data()) && (!weights16 || device[2]->equals(weights.data()));
        for (size_t k = 0; k < 3; k++) fine = fine && (!device[3 + k] || device[3 + k]->equals(state[k].data()));
        return fine;
    }
};
// Each a name of its own, which `names` keeps.
static void name_all(std::vector<ds_optim_tensor> &tensors, std::vector<std::string> &names) {
    for (size_t i = 0; i < tensors.size(); i++) names.push_back("t" + std::to_string(i));
    for (size_t i = 0; i < tensors.size(); i++) tensors[i].name = names[i].c_str();
}
static ds_optim *make_optim(const char *type, const ds_optim_params *groups, size_t group_count,
                            std::vector<ds_optim_tensor> tensors, bool on_gpu, bool all = false) {
    std::vector<std::string> names;
    ds_optim_desc desc;
    ds_optim *o;
    ds_error error;
    memset(&desc, 0, sizeof desc);
    name_all(tensors, names);
    desc.type = type, desc.groups = groups, desc.group_count = group_count;
    desc.tensors = tensors.data(), desc.tensor_count = tensors.size();
    if (on_gpu) desc.kernels = &optim_kernels, desc.device = &gpu, desc.all_on_device = all;
    if (!CHECK(ds_optim_create(&desc, &o, &error) == DS_OK)) printf("%s\n", error.message), exit(1);
    return o;
}
static void step_both(ds_optim *cpu, ds_optim *on_gpu, std::vector<ds_optim_slice> &host,
                      std::vector<ds_optim_slice> &device, void *stream, double clip = 0.75) {
    ds_optim *const both[2] = {cpu, on_gpu};
    std::vector<ds_optim_slice> *const slices[2] = {&host, &device};
    for (int k = 0; k < 2; k++) {
        ds_optim *o = both[k];
        CHECK_EQ(ds_optim_begin(o, 1.0 / 1024, clip, 1), DS_OK);
        if (ds_optim_tensor_work(o, 0) == DS_OPTIM_BY_NORM || ds_optim_tensor_work(o, 0) == DS_OPTIM_WHOLE_BY_NORM) {
            CHECK_EQ(ds_optim_measure_on(o, slices[k]->data(), slices[k]->size(), stream), DS_OK);
            CHECK_EQ(ds_optim_combine(o), DS_OK);
        }
        CHECK_EQ(ds_optim_apply_on(o, slices[k]->data(), slices[k]->size(), stream), DS_OK);
        CHECK_EQ(ds_optim_end(o), DS_OK);
    }
}
// Tensors of many sizes, types and alignments in two groups; every bit as on the CPU.
static void check_optimizer(const char *type, const ds_optim_params *groups, uint64_t seed) {
    static const size_t counts[] = {1, 5, 1023, 1024, 1025, 4096, 5000, 9001};
    const size_t each = sizeof counts / sizeof *counts;
    std::vector<ds_optim_tensor> tensors(each);
    std::vector<tensor_pair *> pairs;
    std::vector<ds_optim_slice> host, device;
    void *stream;
    emu::seed = seed;
    for (size_t i = 0; i < tensors.size(); i++) {
        memset(&tensors[i], 0, sizeof tensors[i]);
        tensors[i].rows = 1, tensors[i].cols = counts[i];
        tensors[i].group = i % 2;
    }
    ds_optim *cpu = make_optim(type, groups, 2, tensors, false), *on_gpu = make_optim(type, groups, 2, tensors, true);
    CHECK_EQ(gpu.stream_create(gpu.ctx, &stream), DS_OK);
    for (size_t i = 0; i < tensors.size(); i++) {
        pairs.push_back(new tensor_pair(tensors[i].cols, floats[i % 3], (int)(i / 3 % 3), i % 4 == 3,
                                        (int)ds_optim_state_count(cpu, i)));
        host.push_back(pairs[i]->slice(i, false));
        device.push_back(pairs[i]->slice(i, true));
    }
    CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_OK);
    for (int step = 0; step < 3; step++) step_both(cpu, on_gpu, host, device, stream);
    CHECK_EQ(gpu.synchronize(gpu.ctx, stream), DS_OK);
    for (tensor_pair *p : pairs) {
        if (!test_check(p->same(), __FILE__, __LINE__, "%s: %zu elements differ", type, p->count)) break;
    }
    for (tensor_pair *p : pairs) delete p;
    gpu.stream_destroy(gpu.ctx, stream);
    ds_optim_destroy(cpu);
    ds_optim_destroy(on_gpu);
}
static void check_types(const char *type, uint64_t seed) {
    ds_optim_params groups[2];
    CHECK_EQ(ds_optim_params_default(type, &groups[0]), DS_OK);
    groups[0].lr = 0.03;
    groups[1] = groups[0];
    groups[1].weight_decay = 0.1, groups[1].adam_w_mode = false, groups[1].lr = 0.01;
    if (strcmp(type, "SGD") == 0) groups[0].momentum = groups[1].momentum = 0.9, groups[1].nesterov = true;
    check_optimizer(type, groups, seed);
    if (strcmp(type, "SGD") == 0) {
        groups[0].momentum = 0, groups[1].momentum = 0.9, groups[1].nesterov = false;
        check_optimizer(type, groups, seed);
    }
}

// Muon over whole tensors: matrices of every shape, and the rest by Adam.
static void check_muon(ds_optim_ns method, int steps, bool nesterov) {
    static const size_t shapes[][2] = {{40, 70}, {1, 1500}, {70, 33}, {48, 48}, {100, 100}};
    const size_t n = sizeof shapes / sizeof *shapes;
    std::vector<ds_optim_tensor> tensors(n);
    std::vector<tensor_pair *> pairs;
    std::vector<ds_optim_slice> host, device;
    ds_optim_params params[2];
    void *stream;
    CHECK_EQ(ds_optim_params_default("Muon", &params[0]), DS_OK);
    params[0].ns_method = method, params[0].ns_steps = steps, params[0].nesterov = nesterov;
    params[1] = params[0];
    params[1].weight_decay = 0.1;
    for (size_t i = 0; i < n; i++) {
        memset(&tensors[i], 0, sizeof tensors[i]);
        tensors[i].rows = shapes[i][0], tensors[i].cols = shapes[i][1], tensors[i].group = i % 2;
    }
    ds_optim *cpu = make_optim("Muon", params, 2, tensors, false);
    ds_optim *on_gpu = make_optim("Muon", params, 2, tensors, true, true);
    CHECK_EQ(gpu.stream_create(gpu.ctx, &stream), DS_OK);
    for (size_t i = 0; i < n; i++) {
        const size_t count = shapes[i][0] * shapes[i][1];
        pairs.push_back(new tensor_pair(count, floats[i % 3], (int)(i % 3), 0, (int)ds_optim_state_count(cpu, i)));
        if (i == 4) { // not finite: goes into the weights as it is
            const float bad = INFINITY;
            ds_optim_cast(&pairs[i]->grad[0], pairs[i]->grad_dtype, &bad, DS_F32, 1);
            pairs[i]->device[1]->from(pairs[i]->grad.data());
        }
        host.push_back(pairs[i]->slice(i, false));
        device.push_back(pairs[i]->slice(i, true));
    }
    CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_OK);
    for (int step = 0; step < 2; step++) step_both(cpu, on_gpu, host, device, stream);
    CHECK_EQ(gpu.synchronize(gpu.ctx, stream), DS_OK);
    for (tensor_pair *p : pairs) CHECK(p->same());
    for (tensor_pair *p : pairs) delete p;
    device[0].on_host = true;
    CHECK_EQ(ds_optim_begin(on_gpu, 1, 1, 0), DS_OK);
    CHECK_EQ(ds_optim_apply(on_gpu, device.data(), 1), DS_ERR_ARGUMENT);
    CHECK_HAS(ds_optim_error(on_gpu)->message, "host memory");
    gpu.stream_destroy(gpu.ctx, stream);
    ds_optim_destroy(cpu);
    ds_optim_destroy(on_gpu);
}

// The 1-bit family over whole tensors, from the step that only counts over the freeze to compressed steps. The average is that
// of one rank, which still loses what signs lose; or there is none.
struct alone {
    ds_comm *comm;
    void *scratch;
    size_t calls;
    bool on_gpu;
};
static ds_status average_alone(void *ctx, float *buffer, float *worker, float *server, size_t count, void *stream) {
    alone *a = (alone *)ctx;
    a->calls++;
    return a->on_gpu ? ds_comm_one_bit_all_reduce_on(a->comm, buffer, buffer, count, worker, server, a->scratch, stream)
                     : ds_comm_one_bit_all_reduce(a->comm, buffer, buffer, count, worker, server, a->scratch);
}
// What each remembers besides: errors, padding, counters and factors.
static bool same_inside(ds_optim *cpu, ds_optim *on_gpu) {
    const size_t bytes = ds_optim_save_bytes(cpu);
    std::vector<char> a(bytes), b(bytes);
    ds_optim_save(cpu, a.data());
    ds_optim_save(on_gpu, b.data());
    bool fine = bytes == ds_optim_save_bytes(on_gpu) && a == b;
    for (size_t i = 0; i < ds_optim_error_buffers(cpu); i++)
        for (int which = 0; which < 3; which++) {
            size_t n = 0, m = 0;
            const float *x = ds_optim_error_buffer(cpu, i, which, &n), *y = ds_optim_error_buffer(on_gpu, i, which, &m);
            std::vector<float> copy(m + 1);
            CHECK_EQ(gpu.copy(gpu.ctx, copy.data(), y, m * sizeof(float), NULL), DS_OK);
            CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_OK);
            fine = fine && n == m && memcmp(x, copy.data(), n * sizeof(float)) == 0;
        }
    return fine;
}
static void check_one_bit(const char *type, bool averages, int freeze, uint64_t seed) {
    static const size_t counts[] = {1, 0, 1024, 5000, 70};
    enum { ROOM = 8192 };
    const size_t each = sizeof counts / sizeof *counts;
    std::vector<ds_optim_tensor> tensors(each);
    std::vector<tensor_pair *> pairs;
    std::vector<ds_optim_slice> slices[2];
    std::vector<char> room(ds_comm_one_bit_sizes(1, ROOM).scratch_bytes), room_on(ds_comm_one_bit_scratch_on(1, ROOM));
    on_device scratch(room_on.data(), room_on.size());
    std::vector<std::string> names;
    ds_optim_params params[2];
    ds_optim *o[2];
    ds_comm *comm;
    ds_comm_desc cd;
    void *stream;
    emu::seed = seed;
    memset(&cd, 0, sizeof cd);
    cd.backend = "self", cd.device = gpu, cd.kernels = &comm_kernels;
    CHECK_EQ(ds_comm_create(&cd, &comm, NULL), DS_OK);
    alone mine[2] = {{comm, room.data(), 0, false}, {comm, scratch.at, 0, true}};
    CHECK_EQ(ds_optim_params_default(type, &params[0]), DS_OK);
    params[0].lr = 0.03, params[0].weight_decay = 0.1;
    params[0].freeze_step = freeze, params[0].var_freeze_step = freeze, params[0].var_update_scaler = 2;
    params[0].local_step_scaler = 3, params[0].local_step_clipper = 4;
    params[1] = params[0];
    params[1].weight_decay = 0;
    for (size_t i = 0; i < each; i++) {
        memset(&tensors[i], 0, sizeof tensors[i]);
        tensors[i].rows = 1, tensors[i].cols = counts[i], tensors[i].group = i % 2;
    }
    name_all(tensors, names);
    for (int k = 0; k < 2; k++) {
        ds_optim_desc desc;
        ds_error error;
        memset(&desc, 0, sizeof desc);
        desc.type = type, desc.groups = params, desc.group_count = 2;
        desc.tensors = tensors.data(), desc.tensor_count = each;
        if (averages) desc.average.average = average_alone, desc.average.ctx = &mine[k];
        if (k) desc.kernels = &optim_kernels, desc.device = &gpu, desc.all_on_device = true;
        if (!CHECK(ds_optim_create(&desc, &o[k], &error) == DS_OK)) printf("%s\n", error.message), exit(1);
    }
    CHECK_EQ(gpu.stream_create(gpu.ctx, &stream), DS_OK);
    for (size_t i = 0; i < each; i++) {
        pairs.push_back(new tensor_pair(counts[i], floats[(i + seed) % 3], (int)(i % 3), i % 4 == 3,
                                        (int)ds_optim_state_count(o[0], i)));
        for (int k = 0; k < 2; k++) slices[k].push_back(pairs[i]->slice(i, k));
    }
    CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_OK);
    for (int step = 0; step < freeze + 7; step++) {
        for (size_t i = 0; i < each; i++) { // another gradient
            tensor_pair *const p = pairs[i];
            p->grad = random_array(p->grad_dtype, p->count);
            p->device[1]->from(p->grad.data());
            slices[0][i].grad = p->grad.data();
        }
        CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_OK);
        step_both(o[0], o[1], slices[0], slices[1], stream, ds_optim_refuses_clipping(o[0]) ? 1 : 0.75);
        CHECK_EQ(gpu.synchronize(gpu.ctx, stream), DS_OK);
        bool fine = same_inside(o[0], o[1]) && mine[0].calls == mine[1].calls;
        for (tensor_pair *p : pairs) fine = fine && p->same();
        if (!test_check(fine, __FILE__, __LINE__, "%s: step %d of %d differs", type, step + 1, freeze)) break;
    }
    CHECK_EQ(mine[1].calls > 0, averages);
    for (int k = 0; k < 2; k++) CHECK_EQ(ds_optim_reset_errors(o[k]), DS_OK);
    CHECK(same_inside(o[0], o[1]));
    for (tensor_pair *p : pairs) delete p;
    gpu.stream_destroy(gpu.ctx, stream);
    for (ds_optim *one : o) ds_optim_destroy(one);
    ds_comm_destroy(comm);
}

// ---- attention: each element within the bound that its own arithmetic gives, around a reference in fp64 ----
struct attention_case {
    ds_dtype dtype;
    const char *mode;
    size_t block, tokens, d;
    bool causal, masks;
    size_t heads;
};
struct values { // of (heads, tokens, d): what they are, and by how much they may be off
    std::vector<double> x, off;
    values(size_t n) : x(n, 0.0), off(n, 0.0) {}
};
static std::vector<char> rounded_to(ds_dtype dtype, size_t n, std::vector<double> &exact) {
    std::vector<char> bytes = random_array(dtype, n);
    std::vector<float> wide(n);
    for (size_t i = 0; i < n; i++) { // no denormals: products of fp16's are far below what is checked
        wide[i] = (float)(test_uniform(&dice) * 2 - 1);
    }
    ds_optim_cast(bytes.data(), dtype, wide.data(), DS_F32, n);
    ds_optim_cast(wide.data(), DS_F32, bytes.data(), dtype, n);
    exact.assign(wide.begin(), wide.end());
    return bytes;
}
// True when all are within their bounds; `worst` is the largest share of a bound that was used.
static bool within(const values &v, const std::vector<char> &got, ds_dtype dtype, const char *what, double *worst) {
    std::vector<float> wide(v.x.size());
    ds_optim_cast(wide.data(), DS_F32, got.data(), dtype, wide.size());
    for (size_t i = 0; i < wide.size(); i++) {
        const double off = fabs((double)wide[i] - v.x[i]);
        if (!test_check(off <= v.off[i], __FILE__, __LINE__, "%s %zu: %g, expected %g within %g", what, i,
                        (double)wide[i], v.x[i], v.off[i]))
            return false;
        if (v.off[i] > 0 && off / v.off[i] > *worst) *worst = off / v.off[i];
    }
    return true;
}
static void check_attention(const attention_case &t) {
    const size_t heads = t.heads;
    const double u = 0x1p-24, u16 = t.dtype == DS_F16 ? 0x1p-11 : t.dtype == DS_BF16 ? 0x1p-8 : u;
    const double tiny = t.dtype == DS_F16 ? 0x1p-24 : 0;
    const size_t n = t.tokens, d = t.d, all = heads * n * d, padded = ds_sparse_padded(n, t.block);
    ds_sparse_params p;
    ds_sparse_layout *layout;
    ds_sparse_desc desc;
    ds_sparse *s;
    ds_sparse_io io;
    ds_error error;
    double worst = 0;
    memset(&desc, 0, sizeof desc), memset(&io, 0, sizeof io);
    CHECK_EQ(ds_sparse_params_default(t.mode, &p, NULL), DS_OK);
    p.heads = heads, p.block = t.block;
    if (!CHECK(ds_sparse_layout_create(&p, padded, NULL, &layout, &error) == DS_OK)) printf("%s\n", error.message);
    desc.layout = layout, desc.head_dim = d, desc.causal = t.causal, desc.kernels = &sparse_kernels, desc.device = &gpu;
    if (!CHECK(ds_sparse_create(&desc, &s, &error) == DS_OK)) printf("%s\n", error.message);
    std::vector<double> q, k, v, g;
    std::vector<char> bq = rounded_to(t.dtype, all, q), bk = rounded_to(t.dtype, all, k);
    std::vector<char> bv = rounded_to(t.dtype, all, v), bg = rounded_to(t.dtype, all, g), result(bq.size());
    std::vector<float> key_mask(n), bias(heads * 7), mask(n * n), lse(2 * heads * n);
    for (size_t j = 0; j < n; j++) key_mask[j] = j % 5 == 1 ? 0.0f : 1.0f;
    for (float &x : bias) x = (float)test_uniform(&dice);
    for (size_t i = 0; i < n * n; i++)
        mask[i] = i / n == 3 ? -INFINITY : (float)(i % 3) * 0.25f; // query 3 sees nothing
    on_device dq(bq.data(), bq.size()), dk(bk.data(), bk.size()), dv(bv.data(), bv.size()), dg(bg.data(), bg.size());
    on_device out(result.data(), result.size()), gq(result.data(), result.size()), gk(result.data(), result.size());
    on_device gv(result.data(), result.size()), dlse(lse.data(), 4 * lse.size());
    on_device dkey(key_mask.data(), 4 * n), dbias(bias.data(), 4 * bias.size()), dmask(mask.data(), 4 * mask.size());
    io.seq_len = n, io.dtype = t.dtype, io.q = dq.at, io.k = dk.at, io.v = dv.at, io.out = out.at;
    io.lse = (float *)dlse.at, io.d_out = dg.at, io.d_q = gq.at, io.d_k = gk.at, io.d_v = gv.at;
    if (t.masks) {
        io.key_mask = (float *)dkey.at, io.key_mask_mode = DS_SPARSE_MUL, io.mask = (float *)dmask.at;
        io.relative = (float *)dbias.at, io.relative_reach = 3;
    }
    CHECK_EQ(ds_sparse_forward_on(s, &io, NULL), DS_OK);
    CHECK_EQ(ds_sparse_backward_on(s, &io, NULL), DS_OK);
    values o(all), rq(all), rk(all), rv(all), l(heads * n);
    const double scale = (double)(1.0f / sqrtf((float)d));
    for (size_t h = 0; h < heads; h++)
        for (size_t i = 0; i < n; i++) {
            std::vector<double> x(n, -INFINITY), w(n), dp(n), dp_off(n);
            double top = -INFINITY, sum = 0, score_off = 0, delta = 0, delta_off = 0;
            const double *qi = &q[(h * n + i) * d], *gi = &g[(h * n + i) * d];
            double *oi = &o.x[(h * n + i) * d], *oi_off = &o.off[(h * n + i) * d];
            size_t count;
            const uint32_t *row = ds_sparse_layout_row(layout, h, i / t.block, &count);
            for (size_t e = 0; e < count; e++)
                for (size_t j = row[e] * t.block; j < (row[e] + 1) * t.block && j < n; j++) {
                    double size = 0;
                    if (t.causal && j > i) continue;
                    x[j] = 0;
                    for (size_t c = 0; c < d; c++)
                        x[j] += qi[c] * k[(h * n + j) * d + c] * scale,
                            size += fabs(qi[c] * k[(h * n + j) * d + c] * scale);
                    if (t.masks) {
                        const size_t at = j > i ? (j - i < 3 ? 3 + j - i : 6) : i - j < 3 ? 3 - (i - j) : 0;
                        x[j] += (double)bias[h * 7 + at];
                        x[j] = key_mask[j] == 0 ? -INFINITY : x[j] + (double)mask[i * n + j];
                    }
                    if (x[j] > top) top = x[j];
                    // d + 4 roundings of the score, and of its distance from the largest
                    if (x[j] > -INFINITY) score_off = fmax(score_off, ((double)d + 8) * u * (size + fabs(x[j]) + 2));
                }
            for (size_t j = 0; j < n; j++) w[j] = top == -INFINITY ? 0 : exp(x[j] - top), sum += w[j];
            const double seen = sum == 0 ? 0 : 1 / sum, e = 4 * score_off + 0x1p-20 + 4 * (double)n * u;
            l.x[h * n + i] = sum == 0 ? -INFINITY : top + log(sum), l.off[h * n + i] = e + 4 * u * fabs(top);
            for (size_t j = 0; j < n; j++) w[j] *= seen;
            for (size_t c = 0; c < d; c++) {
                for (size_t j = 0; j < n; j++) {
                    oi[c] += w[j] * v[(h * n + j) * d + c];
                    oi_off[c] += (w[j] * (2 * e + u16) + tiny) * fabs(v[(h * n + j) * d + c]);
                }
                oi_off[c] += u16 * fabs(oi[c]) + tiny;
                delta += gi[c] * oi[c];
                delta_off += fabs(gi[c]) * oi_off[c] + 2 * (double)d * u * fabs(gi[c] * oi[c]);
            }
            for (size_t j = 0; j < n; j++) {
                if (w[j] == 0) continue;
                for (size_t c = 0; c < d; c++) {
                    const double term = gi[c] * v[(h * n + j) * d + c];
                    dp[j] += term, dp_off[j] += ((double)d + 2) * u * fabs(term);
                }
                const double ds = w[j] * (dp[j] - delta);
                const double ds_off = w[j] * (2 * e * (fabs(dp[j]) + fabs(delta)) + 2 * (dp_off[j] + delta_off)) +
                                      (u16 + 4 * (double)n * u) * fabs(ds) + tiny;
                for (size_t c = 0; c < d; c++) {
                    const size_t at = (h * n + i) * d + c, of = (h * n + j) * d + c;
                    rq.x[at] += scale * ds * k[of], rq.off[at] += scale * ds_off * fabs(k[of]);
                    rk.x[of] += scale * ds * q[at], rk.off[of] += scale * ds_off * fabs(q[at]);
                    rv.x[of] += w[j] * g[at], rv.off[of] += (w[j] * (2 * e + u16) + tiny) * fabs(g[at]);
                }
            }
        }
    for (values *r : {&rq, &rk, &rv})
        for (size_t i = 0; i < all; i++) r->off[i] += u16 * fabs(r->x[i]) + tiny + 0x1p-100;
    out.back(result.data());
    bool fine = within(o, result, t.dtype, "out", &worst);
    gq.back(result.data());
    fine = fine && within(rq, result, t.dtype, "d_q", &worst);
    gk.back(result.data());
    fine = fine && within(rk, result, t.dtype, "d_k", &worst);
    gv.back(result.data());
    fine = fine && within(rv, result, t.dtype, "d_v", &worst);
    dlse.back(lse.data());
    for (size_t i = 0; i < heads * n; i++)
        if (l.x[i] == -INFINITY)
            CHECK(lse[2 * i] == -INFINITY && lse[2 * i + 1] == 0);
        else
            CHECK_NEAR((double)lse[2 * i] + (double)lse[2 * i + 1], l.x[i], l.off[i]);
    if (!fine) printf("  %s, dtype %d, block %zu, %zu tokens, d %zu\n", t.mode, (int)t.dtype, t.block, n, d);
    CHECK(worst > 1e-4); // bounds are of the size of the errors
    ds_sparse_destroy(s);
    ds_sparse_layout_destroy(layout);
}

#ifdef DS_EMULATED
// Kernels that break the rules, for the emulation's own test.
static void half_waits(int *out) {
    if (threadIdx.x % 2) __syncthreads();
    out[threadIdx.x] = 1;
}
static void two_places(int *out) {
    if (threadIdx.x % 2)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}
static void wrong_mask(int *out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0xFFFFFFFFu, 1, 1);
}
static void reads_shared(float *out) {
    DSI_SHARED(float, shared);
    if (threadIdx.x == 0) *out = shared[3];
}
static void count_up(int *out, int *order) {
    atomicAdd(out, 1);
    if (threadIdx.x == 0) order[atomicAdd(out + 1, 1)] = (int)blockIdx.x;
    const unsigned votes = __ballot_sync(0xFFFFFFFFu, threadIdx.x % 3 == 0);
    if (threadIdx.x == 0) out[2] = (int)votes;
    if (threadIdx.x == 5) out[3] = __shfl_xor_sync(1u << 5 | 1u << 4, 7, 1);
    if (threadIdx.x == 4) out[3] = __shfl_xor_sync(1u << 5 | 1u << 4, 8, 1);
}

#endif
int main(int argc, char **argv) {
    test_begin(argc, argv);
#ifdef TEST_ON_GPU
    if (no_gpu()) return 0;
#endif
    ds_cuda_optim_kernels(&optim_kernels);
    ds_cuda_comm_kernels(&comm_kernels);
    ds_cuda_sparse_kernels(&sparse_kernels);
    ds_cuda_device(&gpu);

#ifdef DS_EMULATED
    TEST(emulation_finds_divergence) {
        int zero[64] = {0};
        on_device out(zero, sizeof zero);
        void (*const wrong[])(int *) = {half_waits, two_places, wrong_mask};
        for (void (*kernel)(int *) : wrong) {
            DSI_LAUNCH(kernel, 1, 64, 0, NULL, (int *)out.at);
            CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_ERR_DEVICE);
            CHECK_HAS(gpu.describe(gpu.ctx), "waits");
            emu::reset();
        }
    }
    TEST(emulation_shared_and_order) {
        float nothing = 0;
        on_device one(&nothing, sizeof nothing);
        int zero[20] = {0}, seen[20] = {0}, first = 0;
        DSI_LAUNCH(reads_shared, 1, 32, 64, NULL, (float *)one.at);
        one.back(&nothing);
        CHECK(nothing != nothing); // shared memory begins as NaN
        for (int turn = 0; turn < 8; turn++) {
            on_device out(zero, sizeof zero), order(zero, sizeof zero);
            DSI_LAUNCH(count_up, 16, 32, 0, NULL, (int *)out.at, (int *)order.at);
            out.back(seen);
            CHECK_EQ(seen[0], 16 * 32);
            CHECK_EQ(seen[2], 0x49249249);
            CHECK(seen[3] == 7 || seen[3] == 8);
            order.back(seen);
            first += seen[0] != 0;
        }
        CHECK(first > 0); // blocks run in a random order
    }
    TEST(emulation_streams) {
        // A copy on another stream that waits for no event may come too early; with the event it never does.
        int wrong = 0;
        void *a, *b, *event, *pinned;
        CHECK_EQ(gpu.stream_create(gpu.ctx, &a), DS_OK);
        CHECK_EQ(gpu.stream_create(gpu.ctx, &b), DS_OK);
        CHECK_EQ(gpu.event_create(gpu.ctx, &event), DS_OK);
        CHECK_EQ(gpu.pinned_alloc(gpu.ctx, 64, &pinned), DS_OK);
        for (int turn = 0; turn < 40; turn++) {
            const bool waits = turn % 2 != 0;
            char zero[64] = {0};
            on_device memory(zero, sizeof zero);
            CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_OK);
            CHECK_EQ(gpu.fill(gpu.ctx, memory.at, 1, 64, a), DS_OK);
            CHECK_EQ(gpu.event_record(gpu.ctx, event, a), DS_OK);
            if (waits) CHECK_EQ(gpu.event_wait(gpu.ctx, event, b), DS_OK);
            CHECK_EQ(gpu.copy(gpu.ctx, pinned, memory.at, 64, b), DS_OK);
            CHECK_EQ(gpu.synchronize(gpu.ctx, b), DS_OK);
            if (waits) CHECK_EQ(*(char *)pinned, 1);
            wrong += *(char *)pinned != 1;
        }
        CHECK(wrong > 0);
        bool done = false;
        while (!done) CHECK_EQ(gpu.event_done(gpu.ctx, event, &done), DS_OK);
        gpu.pinned_release(gpu.ctx, pinned, 64);
        gpu.event_destroy(gpu.ctx, event);
        gpu.stream_destroy(gpu.ctx, a);
        gpu.stream_destroy(gpu.ctx, b);
        emu::fail_alloc = 1;
        CHECK_EQ(gpu.alloc(gpu.ctx, 64, &pinned), DS_ERR_MEMORY);
    }
#endif
#ifdef DS_EMULATED
    TEST(failures_say_what_happened) {
        const float zero[64] = {0};
        on_device x(zero, sizeof zero);
        void *memory, *event, *stream;
        bool done = true;
        const auto scales = [&] { return optim_kernels.scale(NULL, x.at, DS_F32, 2, 64, NULL); };
        CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_OK);
        emu::fail_alloc = 1;
        CHECK_EQ(gpu.alloc(gpu.ctx, 64, &memory), DS_ERR_MEMORY);
        CHECK_HAS(gpu.describe(gpu.ctx), "emulated GPU (compute capability 9.0): out of memory");
        CHECK_EQ(scales(), DS_OK); // the launch is not taken for the cause
        emu::no_image = cudaErrorNoKernelImageForDevice;
        CHECK_EQ(scales(), DS_ERR_DEVICE);
        emu::no_image = 0;
        CHECK_HAS(gpu.describe(gpu.ctx), "no kernel image is available");
        CHECK_EQ(scales(), DS_OK);
        emu::refuses = cudaErrorInsufficientDriver;
        CHECK_EQ(gpu.alloc(gpu.ctx, 64, &memory), DS_ERR_DEVICE);
        CHECK_STR(gpu.describe(gpu.ctx),
                  "no CUDA device: CUDA driver version is insufficient for CUDA runtime version");
        emu::refuses = 0;
        CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_OK);
        // a question that is answered "not yet" is no error of what comes after it
        CHECK_EQ(gpu.stream_create(gpu.ctx, &stream), DS_OK);
        CHECK_EQ(gpu.event_create(gpu.ctx, &event), DS_OK);
        for (int i = 0; i < 8; i++) CHECK_EQ(gpu.fill(gpu.ctx, x.at, 0, 64, stream), DS_OK);
        CHECK_EQ(gpu.event_record(gpu.ctx, event, stream), DS_OK);
        CHECK_EQ(gpu.event_done(gpu.ctx, event, &done), DS_OK);
        CHECK(!done);
        CHECK_EQ(scales(), DS_OK);
        CHECK_EQ(gpu.synchronize(gpu.ctx, NULL), DS_OK);
        gpu.event_destroy(gpu.ctx, event);
        gpu.stream_destroy(gpu.ctx, stream);
    }
#endif
    static const char *const types[] = {"Adam", "AdamW", "SGD", "Adagrad", "Lion", "Lamb"};
    for (const char *type : types) TEST_NAMED(type) for (uint64_t seed = 1; seed <= 2; seed++) check_types(type, seed);
    TEST(a_thousand_tensors_in_one_launch) {
        enum { N = 1000, ROOM = 8 };
        ds_optim_params params;
        CHECK_EQ(ds_optim_params_default("AdamW", &params), DS_OK);
        std::vector<ds_optim_tensor> tensors(N);
        std::vector<char> arrays[4];
        std::vector<on_device *> device;
        std::vector<ds_optim_slice> slices[2] = {std::vector<ds_optim_slice>(N), std::vector<ds_optim_slice>(N)};
        for (std::vector<char> &a : arrays) {
            a = random_array(DS_F32, N * ROOM);
            for (size_t i = 3; i < a.size(); i += 4) a[i] = (char)(a[i] & 0x7F);
            device.push_back(new on_device(a.data(), a.size()));
        }
        for (size_t i = 0; i < N; i++) {
            memset(&tensors[i], 0, sizeof tensors[i]);
            tensors[i].rows = 1, tensors[i].cols = 1 + i % 7;
            for (int side = 0; side < 2; side++) {
                ds_optim_slice &s = slices[side][i];
                void *at[4];
                for (size_t k = 0; k < 4; k++)
                    at[k] = (side ? (char *)device[k]->at : arrays[k].data()) + i * ROOM * sizeof(float);
                memset(&s, 0, sizeof s);
                s.tensor = i, s.count = tensors[i].cols, s.grad_dtype = floats[i % 3], s.grad = at[3];
                s.master = (float *)at[0], s.state[0] = (float *)at[1], s.state[1] = (float *)at[2];
            }
        }
        ds_optim *cpu = make_optim("AdamW", &params, 1, tensors, false);
        ds_optim *on_gpu = make_optim("AdamW", &params, 1, tensors, true);
        const size_t before = emu::calls["update"];
        void *stream; // not the first, which waits for all others: the list must come in the launch's own order
        CHECK_EQ(gpu.stream_create(gpu.ctx, &stream), DS_OK);
        step_both(cpu, on_gpu, slices[0], slices[1], stream);
        CHECK_EQ(gpu.synchronize(gpu.ctx, stream), DS_OK);
        CHECK_EQ(emu::calls["update"] - before, EMULATED);
        for (size_t k = 0; k < 4; k++) {
            CHECK(device[k]->equals(arrays[k].data()));
            delete device[k];
        }
        gpu.stream_destroy(gpu.ctx, stream);
        ds_optim_destroy(cpu);
        ds_optim_destroy(on_gpu);
    }
    TEST(norms_and_overflow) {
        static const size_t counts[] = {1, 17, 1024, 1025, 5000, 70000};
        for (size_t n : counts)
            for (ds_dtype t : floats) {
                std::vector<char> grad = random_array(t, n);
                const size_t grains = (n + DS_GRAIN - 1) / DS_GRAIN;
                std::vector<double> sums(grains), got(grains);
                ds_optim_norm_grains(grad.data(), t, n, 0.37f, sums.data());
                on_device g(grad.data(), grad.size(), DS_DTYPE_SIZE(t)), out(got.data(), grains * sizeof(double));
                CHECK_EQ(optim_kernels.norm_grains(NULL, g.at, t, n, 0.37f, (double *)out.at, NULL), DS_OK);
                CHECK(out.equals(sums.data()));
                CHECK_EQ(optim_kernels.norm_tree(NULL, (double *)out.at, grains, NULL), DS_OK);
                out.back(got.data());
                CHECK(got[0] == ds_optim_norm_tree(sums.data(), grains));
                const float bad = n % 2 ? INFINITY : NAN;
                ds_optim_cast(&grad[(n / 2) * DS_DTYPE_SIZE(t)], t, &bad, DS_F32, 1);
                on_device h(grad.data(), grad.size());
                CHECK_EQ(optim_kernels.norm_grains(NULL, h.at, t, n, 0.37f, (double *)out.at, NULL), DS_OK);
                out.back(got.data());
                for (size_t i = 0; i < grains; i++) CHECK((got[i] - got[i] == 0) == (i != n / 2 / DS_GRAIN));
            }
    }
    TEST(tree_of_any_length) {
        for (size_t n = 1; n < 5000; n = n * 7 / 5 + 1) {
            std::vector<double> sums(n);
            for (double &x : sums) x = test_uniform(&dice);
            on_device d(sums.data(), n * sizeof(double));
            CHECK_EQ(optim_kernels.norm_tree(NULL, (double *)d.at, n, NULL), DS_OK);
            std::vector<double> got(n);
            d.back(got.data());
            CHECK(got[0] == ds_optim_norm_tree(sums.data(), n));
        }
    }
    TEST(casts_accumulation_scale) {
        static const size_t counts[] = {1, 3, 1024, 4099};
        for (size_t n : counts)
            for (ds_dtype t : floats)
                for (ds_dtype f : floats)
                    for (size_t shift = 0; shift < 2; shift++) {
                        std::vector<char> to = random_array(t, n), from = random_array(f, n);
                        on_device x(from.data(), from.size(), shift * DS_DTYPE_SIZE(f)), y(to.data(), to.size());
                        CHECK_EQ(optim_kernels.accumulate(NULL, y.at, t, x.at, f, n, NULL), DS_OK);
                        CHECK_EQ(ds_optim_accumulate(to.data(), t, from.data(), f, n), DS_OK);
                        CHECK(y.equals(to.data()));
                        CHECK_EQ(optim_kernels.scale(NULL, y.at, t, 0.3f, n, NULL), DS_OK);
                        CHECK_EQ(ds_optim_scale(to.data(), t, 0.3f, n), DS_OK);
                        CHECK(y.equals(to.data()));
                        CHECK_EQ(optim_kernels.cast(NULL, y.at, t, x.at, f, n, NULL), DS_OK);
                        CHECK_EQ(ds_optim_cast(to.data(), t, from.data(), f, n), DS_OK);
                        CHECK(y.equals(to.data()));
                    }
        CHECK_EQ(optim_kernels.cast(NULL, NULL, DS_I8, NULL, DS_F32, 1, NULL), DS_ERR_ARGUMENT);
    }
    TEST(muons_product) {
        static const size_t sizes[][3] = {{1, 1, 1}, {5, 7, 3}, {64, 64, 16}, {65, 130, 33}, {100, 20, 70}};
        for (const size_t *s : sizes)
            for (int how = 0; how < 4; how++) {
                const size_t m = s[0], n = s[1], k = s[2];
                const bool turned = how % 2 != 0;
                const float beta = how / 2 ? 0.5f : 0.0f;
                std::vector<float> a(m * k), b(n * k), c(m * n);
                for (float &x : a) x = any_float();
                for (float &x : b) x = any_float();
                for (float &x : c) x = any_float();
                on_device da(a.data(), 4 * m * k), db(b.data(), 4 * n * k), dc(c.data(), 4 * m * n);
                CHECK_EQ(optim_kernels.multiply(NULL, turned, m, n, k, 1.5f, (float *)da.at, (float *)db.at, beta,
                                                (float *)dc.at, NULL),
                         DS_OK);
                for (size_t i = 0; i < m; i++)
                    for (size_t j = 0; j < n; j++) {
                        float sum = 0;
                        for (size_t l = 0; l < k; l++)
                            sum = fmaf(a[i * k + l], turned ? b[j * k + l] : b[l * n + j], sum);
                        c[i * n + j] = beta == 0 ? sum * 1.5f : fmaf(sum, 1.5f, c[i * n + j] * beta);
                    }
                CHECK(dc.equals(c.data()));
                CHECK_EQ(
                    optim_kernels.mix(NULL, (float *)da.at, (float *)db.at, 0.95f, 0.05f, m < n ? m * k : n * k, NULL),
                    DS_OK);
                for (size_t i = 0; i < (m < n ? m * k : n * k); i++) a[i] = fmaf(b[i], 0.95f, a[i] * 0.05f);
                CHECK(da.equals(a.data()));
            }
    }
    TEST(muon_over_whole_tensors) {
        check_muon(DS_OPTIM_NS_GRAM, 5, true);
        check_muon(DS_OPTIM_NS_GRAM, 2, false);
        check_muon(DS_OPTIM_NS_STANDARD, 5, true);
        check_muon(DS_OPTIM_NS_STANDARD, 0, true);
        ds_optim_desc desc;
        ds_optim_params params;
        ds_optim *o;
        ds_error error;
        CHECK_EQ(ds_optim_params_default("Muon", &params), DS_OK);
        memset(&desc, 0, sizeof desc);
        desc.type = "Muon", desc.groups = &params, desc.group_count = 1, desc.kernels = &optim_kernels;
        desc.device = &gpu;
        CHECK_EQ(ds_optim_create(&desc, &o, &error), DS_ERR_UNSUPPORTED);
        CHECK_HAS(error.message, "all_on_device");
        desc.all_on_device = true, desc.device = NULL;
        CHECK_EQ(ds_optim_create(&desc, &o, &error), DS_ERR_ARGUMENT);
        CHECK_HAS(error.message, "desc.device");
    }
    static const char *const one_bits[] = {"OneBitAdam", "ZeroOneAdam", "OneBitLamb"};
    for (const char *type : one_bits) TEST_NAMED(type) {
            for (int averages = 0; averages < 2; averages++)
                for (int freeze = 2; freeze <= 4; freeze++) check_one_bit(type, averages, freeze, (uint64_t)freeze);
            CHECK(!EMULATED || strcmp(type, "OneBitLamb") != 0 || emu::calls["one_bit_lamb"] > 0);
        }
    TEST(one_bit_refusals) {
        const float *const no_masks[1] = {NULL};
        ds_optim_desc desc;
        ds_optim_params params;
        ds_optim *o;
        ds_error error;
        CHECK_EQ(ds_optim_params_default("OneBitLamb", &params), DS_OK);
        memset(&desc, 0, sizeof desc);
        desc.type = "OneBitLamb", desc.groups = &params, desc.group_count = 1, desc.kernels = &optim_kernels;
        desc.device = &gpu;
        CHECK_EQ(ds_optim_create(&desc, &o, &error), DS_ERR_UNSUPPORTED);
        CHECK_HAS(error.message, "1-bit family with all_on_device");
        desc.all_on_device = true, desc.device = NULL;
        CHECK_EQ(ds_optim_create(&desc, &o, &error), DS_ERR_ARGUMENT);
        CHECK_HAS(error.message, "desc.device");
        desc.device = &gpu, desc.masks = no_masks;
        CHECK_EQ(ds_optim_create(&desc, &o, &error), DS_ERR_ARGUMENT);
        CHECK_HAS(error.message, "takes no masks");
        desc.masks = NULL, desc.group.size = 2;
        desc.group.exchange = [](void *, const void *, void *, size_t) { return DS_OK; };
        CHECK_EQ(ds_optim_create(&desc, &o, &error), DS_ERR_ARGUMENT);
        CHECK_HAS(error.message, "needs desc.average for several ranks");
    }
    TEST(transpose_and_mirror) {
        static const size_t sizes[][2] = {{1, 1}, {1, 70}, {70, 1}, {32, 32}, {33, 65}, {100, 31}};
        for (const size_t *s : sizes) {
            const size_t rows = s[0], cols = s[1], n = rows < cols ? cols : rows;
            std::vector<float> from(rows * cols), to(rows * cols), square(n * n);
            for (float &x : from) x = any_float();
            for (float &x : square) x = any_float();
            on_device df(from.data(), 4 * rows * cols), dt(to.data(), 4 * rows * cols), ds(square.data(), 4 * n * n);
            CHECK_EQ(optim_kernels.transpose(NULL, (float *)dt.at, (float *)df.at, rows, cols, NULL), DS_OK);
            for (size_t i = 0; i < rows; i++)
                for (size_t j = 0; j < cols; j++) to[j * rows + i] = from[i * cols + j];
            CHECK(dt.equals(to.data()));
            for (float add : {-0.0f, 3.25f}) {
                CHECK_EQ(optim_kernels.mirror(NULL, (float *)ds.at, n, add, NULL), DS_OK);
                for (size_t i = 0; i < n; i++) {
                    for (size_t j = 0; j < i; j++) square[i * n + j] = square[j * n + i];
                    square[i * n + i] += add;
                }
                CHECK(ds.equals(square.data()));
            }
        }
    }
    TEST(one_bit) {
        // The two phases of ds_comm_one_bit_all_reduce, three ranks at once; the CPU's in the same order of events.
        enum { WORLD = 3, COUNT = 5000 };
        const ds_comm_one_bit sizes = ds_comm_one_bit_sizes(WORLD, COUNT);
        const size_t bytes = sizes.padded / 8, part = sizes.chunk / 8;
        std::vector<float> error[WORLD], in[WORLD], server(sizes.chunk), mean(sizes.chunk);
        std::vector<double> grains(sizes.padded / DS_GRAIN + 1);
        std::vector<uint8_t> signs(bytes), all(WORLD * part);
        std::vector<float> scales(WORLD);
        on_device d_grains(grains.data(), grains.size() * 8), d_signs(signs.data(), bytes), d_scale(scales.data(), 4);
        for (float &x : server) x = any_float();
        for (size_t r = 0; r < WORLD; r++) {
            error[r].assign(sizes.padded, 0.0f), in[r].resize(COUNT);
            for (float &x : in[r]) x = any_float();
            for (size_t i = 0; i < COUNT; i++) error[r][i] = any_float();
            in[r][7] = -error[r][7]; // an exact zero counts as not negative
            on_device e(error[r].data(), sizes.padded * 4), x(in[r].data(), COUNT * 4);
            CHECK_EQ(comm_kernels.compress(NULL, (float *)e.at, (float *)x.at, COUNT, sizes.padded,
                                           (uint8_t *)d_signs.at, (float *)d_scale.at, (double *)d_grains.at, NULL),
                     DS_OK);
            dsi_comm_norm squares = {};
            dsi_comm_feed(&squares, error[r].data(), in[r].data(), COUNT);
            dsi_comm_feed(&squares, error[r].data() + COUNT, NULL, sizes.padded - COUNT);
            dsi_comm_norm ended = squares;
            const double sum = dsi_comm_norm_end(&ended);
            d_grains.back(grains.data());
            CHECK_EQ(memcmp(&grains[0], &sum, sizeof sum), 0); // its last bit, which a scale seldom shows
            const float scale = dsi_comm_compress(error[r].data(), sizes.padded, &squares, signs.data());
            d_scale.back(&scales[r]);
            CHECK(d_signs.equals(signs.data()));
            CHECK_EQ(memcmp(&scales[r], &scale, sizeof scale), 0);
            CHECK(e.equals(error[r].data()));
            memcpy(&all[r * part], signs.data() + part, part); // what rank 1 receives
        }
        on_device s(server.data(), sizes.chunk * 4), a(all.data(), all.size()), sc(scales.data(), WORLD * 4);
        CHECK_EQ(comm_kernels.average(NULL, (float *)s.at, (uint8_t *)a.at, (float *)sc.at, WORLD, sizes.chunk, NULL),
                 DS_OK);
        for (size_t i = 0; i < sizes.chunk; i++) {
            float v[WORLD];
            for (size_t r = 0; r < WORLD; r++) v[r] = all[r * part + i / 8] >> (7 - i % 8) & 1 ? scales[r] : -scales[r];
            server[i] += (v[0] + v[1] + v[2]) / WORLD;
        }
        CHECK(s.equals(server.data()));
        on_device out(mean.data(), sizes.chunk * 4);
        CHECK_EQ(comm_kernels.expand(NULL, (float *)out.at, (uint8_t *)a.at, (float *)sc.at, sizes.chunk, NULL), DS_OK);
        for (size_t i = 0; i < sizes.chunk; i++) mean[i] = all[i / 8] >> (7 - i % 8) & 1 ? scales[0] : -scales[0];
        CHECK(out.equals(mean.data()));
        CHECK_EQ(comm_kernels.compress(NULL, NULL, NULL, 1, 9, NULL, NULL, NULL, NULL), DS_ERR_ARGUMENT);
    }
    TEST(sums_of_ranks) {
        enum { COUNT = 777 };
        static const int worlds[] = {1, 2, 3, 4, 7, 64};
        for (int world : worlds)
            for (int how = 0; how < 20; how++) {
                static const ds_dtype pairs[5][2] = {
                    {DS_F32, DS_F32}, {DS_F16, DS_F16}, {DS_BF16, DS_BF16}, {DS_F16, DS_F32}, {DS_BF16, DS_F32}};
                const ds_dtype type = pairs[how % 5][0], to = pairs[how % 5][1];
                const ds_comm_op op = (ds_comm_op)(how / 5);
                std::vector<std::vector<float>> in((size_t)world, std::vector<float>(COUNT));
                std::vector<float> expected(COUNT), zeros(COUNT);
                std::vector<on_device *> held;
                const void *host[64], *device[64];
                void *out = expected.data();
                dsi_comm_sum s;
                for (int r = 0; r < world; r++) {
                    for (size_t i = 0; i < COUNT; i++) {
                        const float x = (float)test_uniform(&dice) - 0.5f;
                        dsi_comm_value_store(in[(size_t)r].data(), type, i, i % 50 ? x : i % 100 ? NAN : -0.0f * x);
                    }
                    held.push_back(new on_device(in[(size_t)r].data(), COUNT * 4));
                    host[r] = in[(size_t)r].data();
                    device[r] = held.back()->at;
                }
                s.inputs = host, s.outputs = &out, s.input_count = world, s.output_count = 1;
                s.dtype = type, s.out_dtype = to, s.op = op;
                dsi_comm_sum_run(&s, COUNT);
                on_device got(zeros.data(), COUNT * 4);
                CHECK_EQ(comm_kernels.sum(NULL, device, world, type, got.at, to, op, COUNT, NULL), DS_OK);
                std::vector<float> back(COUNT);
                got.back(back.data());
                for (size_t i = 0; i < COUNT; i++) {
                    const float a = dsi_comm_f32_load(back.data(), to, i),
                                b = dsi_comm_f32_load(expected.data(), to, i);
                    CHECK(memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b));
                }
                for (on_device *d : held) delete d;
            }
        CHECK_EQ(comm_kernels.sum(NULL, NULL, 65, DS_F32, NULL, DS_F32, DS_COMM_SUM, 1, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(comm_kernels.sum(NULL, NULL, 2, DS_F64, NULL, DS_F64, DS_COMM_SUM, 1, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(comm_kernels.sum(NULL, NULL, 2, DS_F32, NULL, DS_F32, DS_COMM_SUM, 0, NULL), DS_OK);
    }
    TEST(average_of_any_ranks) {
        for (int world = 1; world < 20; world++) {
            std::vector<uint8_t> signs((size_t)world);
            std::vector<float> scales((size_t)world), sums, error(8);
            for (uint8_t &x : signs) x = (uint8_t)test_random(&dice);
            for (float &x : scales) x = (float)test_uniform(&dice);
            on_device e(error.data(), 32), g(signs.data(), signs.size()), sc(scales.data(), scales.size() * 4);
            CHECK_EQ(comm_kernels.average(NULL, (float *)e.at, (uint8_t *)g.at, (float *)sc.at, world, 8, NULL), DS_OK);
            for (size_t i = 0; i < 8; i++) {
                sums.clear();
                for (size_t r = 0; r < (size_t)world; r++)
                    sums.push_back(signs[r] >> (7 - i) & 1 ? scales[r] : -scales[r]);
                for (size_t n = sums.size(); n > 1; n = n / 2 + n % 2) {
                    for (size_t k = 0; k < n / 2; k++) sums[k] = sums[2 * k] + sums[2 * k + 1];
                    if (n % 2) sums[n / 2] = sums[n - 1];
                }
                error[i] = sums[0] / (float)world;
            }
            CHECK(e.equals(error.data()));
        }
    }
    TEST(blocks_of_few_bits) {
        static const size_t eachs[] = {2, 6, 256, 1000};
        for (size_t each : eachs)
            for (ds_dtype t : floats)
                for (int how = 0; how < 4; how++) {
                    const ds_comm_blocks form = {how % 2 ? 8 : 4, how / 2 != 0, 5};
                    const size_t count = 5 * each, bytes = form.bits == 8 ? count : count / 2;
                    std::vector<char> in = random_array(t, count), out(in.size());
                    std::vector<int8_t> packed(bytes);
                    std::vector<float> params(10, 0.0f);
                    memset(in.data(), 0, each * DS_DTYPE_SIZE(t)); // a group without range
                    for (size_t g = 1; g < 3; g++) { // one with a NaN, first or last, and one with an infinity
                        const float bad = g == 1 ? NAN : INFINITY;
                        ds_optim_cast(&in[(g * each + (each > 6 ? each - 1 : 0)) * DS_DTYPE_SIZE(t)], t, &bad, DS_F32,
                                      1);
                    }
                    on_device x(in.data(), in.size()), p(packed.data(), bytes), k(params.data(), 40),
                        y(out.data(), out.size());
                    CHECK_EQ(comm_kernels.quantize(NULL, form, x.at, t, count, (int8_t *)p.at, (float *)k.at, NULL),
                             DS_OK);
                    CHECK_EQ(comm_kernels.dequantize(NULL, form, (int8_t *)p.at, (float *)k.at, y.at, t, count, NULL),
                             DS_OK);
                    ds_comm_quantize(form, in.data(), t, count, packed.data(), params.data());
                    ds_comm_dequantize(form, packed.data(), params.data(), out.data(), t, count);
                    CHECK(p.equals(packed.data()));
                    CHECK(same_but_nan(k, DS_F32, params.data(), form.asymmetric ? 10 : 5));
                    CHECK(same_but_nan(y, t, out.data(), count));
                    for (size_t i = 0; i < 2 * each; i++) { // NaN is lost by none of its group
                        float one;
                        ds_optim_cast(&one, DS_F32, &out[i * DS_DTYPE_SIZE(t)], t, 1);
                        CHECK((one != one) == (i >= each));
                    }
                }
        const ds_comm_blocks odd = {4, false, 1};
        CHECK_EQ(comm_kernels.quantize(NULL, odd, NULL, DS_F32, 3, NULL, NULL, NULL), DS_ERR_ARGUMENT);
    }
    TEST(sizes_that_no_launch_takes) {
        const size_t huge = (size_t)1 << 37;
        CHECK_EQ(optim_kernels.transpose(NULL, NULL, NULL, huge, huge, NULL), DS_ERR_UNSUPPORTED);
        CHECK_EQ(optim_kernels.multiply(NULL, false, huge, 1, 1, 1, NULL, NULL, 0, NULL, NULL), DS_ERR_UNSUPPORTED);
        CHECK_EQ(optim_kernels.mirror(NULL, NULL, 0, 1, NULL), DS_OK);
    }
    TEST(token_rows) {
        static const size_t widths[] = {1, 16, 48, 6000, 4096};
        for (size_t width : widths) {
            enum { TOKENS = 40, KEPT = 13 };
            std::vector<char> all(TOKENS * width), some(KEPT * width), wide(TOKENS * width, 1);
            std::vector<uint32_t> rows(KEPT);
            for (char &c : all) c = (char)test_random(&dice);
            for (uint32_t i = 0; i < KEPT; i++) rows[i] = (i * 29 + 5) % TOKENS;
            on_device from(all.data(), all.size()), r(rows.data(), 4 * KEPT), to(some.data(), some.size());
            on_device back(wide.data(), wide.size());
            CHECK_EQ(ds_cuda_gather_rows(to.at, from.at, (uint32_t *)r.at, KEPT, width, NULL), DS_OK);
            CHECK_EQ(ds_cuda_scatter_rows(back.at, to.at, (uint32_t *)r.at, KEPT, width, NULL), DS_OK);
            for (size_t i = 0; i < KEPT; i++) {
                memcpy(&some[i * width], &all[rows[i] * width], width);
                memcpy(&wide[rows[i] * width], &all[rows[i] * width], width);
            }
            CHECK(to.equals(some.data()));
            CHECK(back.equals(wide.data()));
        }
    }
    TEST(rows_of_sparse_tables) { // one bit of a row is enough; a place without a row is zeros
        static const size_t widths[] = {1, 6, 16, 100, 528, 2048};
        for (size_t width : widths)
            for (size_t shift = 0; shift < 2; shift++) {
                enum { ROWS = 37, PLACES = 50 };
                std::vector<char> table(ROWS * width), some(PLACES * width);
                std::vector<uint8_t> flags(ROWS);
                std::vector<uint32_t> places(PLACES);
                for (size_t r = 0; r < ROWS; r++) {
                    flags[r] = r % 3 != 0;
                    if (flags[r]) table[r * width + (r * 41) % width] = (char)(1 << r % 8);
                }
                for (uint32_t i = 0; i < PLACES; i++) {
                    places[i] = i % 7 == 2 ? DS_COMM_NO_ROW : i * 5 % ROWS;
                    if (i % 7 != 2) memcpy(&some[i * width], &table[places[i] * width], width);
                }
                const std::vector<uint8_t> ones(ROWS, 9);
                const std::vector<char> full(PLACES * width, 1);
                on_device t(table.data(), table.size(), shift), f(ones.data(), ROWS), to(full.data(), full.size());
                on_device p(places.data(), 4 * PLACES);
                CHECK_EQ(comm_kernels.flag_rows(NULL, t.at, ROWS, width, (uint8_t *)f.at, NULL), DS_OK);
                CHECK(f.equals(flags.data()));
                CHECK_EQ(comm_kernels.gather_rows(NULL, to.at, t.at, (uint32_t *)p.at, PLACES, width, NULL), DS_OK);
                CHECK(to.equals(some.data()));
            }
        CHECK_EQ(comm_kernels.flag_rows(NULL, NULL, 0, 16, NULL, NULL), DS_OK);
        CHECK_EQ(comm_kernels.scatter_rows(NULL, NULL, NULL, NULL, 0, 16, NULL), DS_OK);
    }
    TEST(attention) {
        static const attention_case cases[] = {
            {DS_F32, "fixed", 16, 96, 32, true, false, 2},
            {DS_F32, "dense", 32, 64, 64, false, true, 2},
            {DS_F32, "bigbird", 16, 75, 40, false, true, 2},
            {DS_F32, "dense", 64, 64, 128, true, false, 2},
            {DS_F16, "fixed", 16, 96, 32, true, false, 2},
            {DS_F16, "bslongformer", 32, 128, 64, false, false, 2},
            {DS_F16, "dense", 16, 45, 80, true, true, 2},
            {DS_F16, "dense", 64, 128, 128, true, false, 2},
            {DS_BF16, "fixed", 16, 96, 64, false, true, 2},
            {DS_BF16, "local_sliding_window", 64, 192, 32, true, false, 2},
            {DS_F16, "dense", 128, 128, 32, true, false, 2},
            {DS_BF16, "dense", 48, 96, 128, false, false, 2},
        };
        for (const attention_case &c : cases) check_attention(c);
    }
    TEST(attention_grid) { // every head size by block, type and causality: two blocks of tokens, the last one not full
        static const size_t sizes[] = {32, 40, 64, 96, 128}, blocks_of[] = {16, 32, 64, 128};
        for (size_t d : sizes)
            for (size_t block : blocks_of)
                for (ds_dtype t : floats)
                    for (int causal = 0; causal < 2; causal++) {
                        const attention_case c = {t, "dense", block, 2 * block - 5, d, causal != 0, false, 1};
                        check_attention(c);
                    }
    }
    TEST(attention_finite_mask) { // -1e9 on every key: no digit of the sum is lost, so each key weighs 1 / N
        enum { N = 48, D = 32 };
        ds_sparse_params p;
        ds_sparse_layout *layout;
        ds_sparse_desc desc;
        ds_sparse_io io;
        ds_sparse *s;
        std::vector<float> zero(N * D), v(N * D), mask(N, -1e9f), got(N * D), lse(2 * N);
        for (float &x : v) x = (float)test_uniform(&dice);
        on_device dq(zero.data(), 4 * N * D), dk(v.data(), 4 * N * D), dv(v.data(), 4 * N * D);
        on_device out(got.data(), 4 * N * D), gq(got.data(), 4 * N * D), gk(got.data(), 4 * N * D);
        on_device gv(got.data(), 4 * N * D), dlse(lse.data(), 8 * N), dmask(mask.data(), 4 * N);
        memset(&desc, 0, sizeof desc), memset(&io, 0, sizeof io);
        CHECK_EQ(ds_sparse_params_default("dense", &p, NULL), DS_OK);
        CHECK_EQ(ds_sparse_layout_create(&p, N, NULL, &layout, NULL), DS_OK);
        desc.layout = layout, desc.head_dim = D, desc.kernels = &sparse_kernels, desc.device = &gpu;
        CHECK_EQ(ds_sparse_create(&desc, &s, NULL), DS_OK);
        io.q = dq.at, io.k = dk.at, io.v = dv.at, io.out = out.at, io.lse = (float *)dlse.at, io.d_out = dv.at;
        io.d_q = gq.at, io.d_k = gk.at, io.d_v = gv.at, io.key_mask = (float *)dmask.at;
        CHECK_EQ(ds_sparse_forward(s, &io), DS_OK);
        CHECK_EQ(ds_sparse_backward(s, &io), DS_OK);
        for (int pass = 0; pass < 2; pass++) { // values averaged over keys; gradients, the same numbers, over queries
            (pass ? gv : out).back(got.data());
            for (size_t c = 0; c < D; c++) {
                double mean = 0;
                for (size_t i = 0; i < N; i++) mean += (double)v[i * D + c] / N;
                for (size_t i = 0; i < N; i++) CHECK_NEAR(got[i * D + c], mean, 1e-5);
            }
        }
        ds_sparse_destroy(s);
        ds_sparse_layout_destroy(layout);
    }
    TEST(attention_refusals) {
        ds_sparse_params p;
        ds_sparse_layout *layout;
        ds_sparse_desc desc;
        ds_sparse_io io;
        ds_sparse *s;
        ds_error error;
        float x = 0;
        memset(&desc, 0, sizeof desc), memset(&io, 0, sizeof io);
        CHECK_EQ(ds_sparse_params_default("dense", &p, NULL), DS_OK);
        p.block = 16;
        CHECK_EQ(ds_sparse_layout_create(&p, 16, NULL, &layout, &error), DS_OK);
        desc.layout = layout, desc.head_dim = 129, desc.kernels = &sparse_kernels, desc.device = &gpu;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_UNSUPPORTED);
        CHECK_HAS(error.message, "129");
        desc.head_dim = 32, desc.device = NULL;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_ARGUMENT);
        desc.device = &gpu;
#ifdef DS_EMULATED
        emu::fail_alloc = 1;
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_ERR_MEMORY);
#endif
        CHECK_EQ(ds_sparse_create(&desc, &s, &error), DS_OK);
        io.q = io.k = io.v = io.d_out = &x;
        io.out = io.d_q = io.d_k = io.d_v = io.lse = &x;
        io.dtype = DS_BF16;
#ifdef DS_EMULATED
        emu_major = 7; // no bf16 there
        CHECK_EQ(ds_sparse_forward(s, &io), DS_ERR_UNSUPPORTED);
        CHECK_HAS(ds_sparse_error(s)->message, "emulated GPU (compute capability 7.0): bf16");
        emu_major = 9;
#endif
        io.relative = &x, io.d_relative = &x;
        CHECK_EQ(ds_sparse_backward(s, &io), DS_ERR_UNSUPPORTED);
        CHECK_HAS(ds_sparse_error(s)->message, "d_relative");
        ds_sparse_destroy(s);
        ds_sparse_layout_destroy(layout);
    }
#ifdef DS_EMULATED
    CHECK_EQ(emu::device.size(), 0); // nothing is left allocated
#endif
    return test_end();
}
