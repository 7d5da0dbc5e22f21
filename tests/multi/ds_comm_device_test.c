/* Calls on device memory: through the host over threads and shared memory, and straight over NCCL's calls. The device is
   memory that faults outside the calls of its table; NCCL is tests/tools/fake_nccl.c, built here as a shared library. */
#define DS_COMM_IMPLEMENTATION
#include "ds_comm.h"
#include "tests/test.h"
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the device ---- */

enum { DEVICE_BYTES = 16 << 20, COUNT = 5000, STAGE = 16384 };
typedef struct fake_stream { /* as tests/tools/fake_nccl.c has it */
    int pending;
    char *base, *alias;
    size_t bytes;
} fake_stream;
typedef struct device {
    char *base, *alias; /* one memory, which faults at `base` */
    size_t used, live;
    int calls, fail_at, copies, sums;
    pthread_mutex_t lock;
    ds_comm_kernels kernels;
} device;

static int device_make(device *d) {
    int file = (int)syscall(SYS_memfd_create, "device", 0);
    memset(d, 0, sizeof *d);
    pthread_mutex_init(&d->lock, NULL);
    if (file < 0 || ftruncate(file, DEVICE_BYTES)) return 1;
    d->base = (char *)mmap(NULL, DEVICE_BYTES, PROT_NONE, MAP_SHARED, file, 0);
    d->alias = (char *)mmap(NULL, DEVICE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return d->base == MAP_FAILED || d->alias == MAP_FAILED;
}
static void device_end(device *d) {
    munmap(d->base, DEVICE_BYTES);
    munmap(d->alias, DEVICE_BYTES);
    pthread_mutex_destroy(&d->lock);
}
static char *reach(const device *d, const void *p) {
    char *at = (char *)(uintptr_t)p;
    return at >= d->base && at < d->base + DEVICE_BYTES ? at - d->base + d->alias : at;
}
static ds_status count_call(device *d) {
    int call = __atomic_add_fetch(&d->calls, 1, __ATOMIC_SEQ_CST);
    return call == d->fail_at ? DS_ERR_DEVICE : DS_OK;
}
static ds_status device_alloc(void *ctx, size_t bytes, void **memory) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    *memory = NULL;
    pthread_mutex_lock(&d->lock);
    bytes = (bytes + 255) / 256 * 256;
    if (!status && d->used + bytes > DEVICE_BYTES) status = DS_ERR_MEMORY;
    if (!status) {
        *memory = d->base + d->used;
        d->used += bytes;
        d->live++;
    }
    pthread_mutex_unlock(&d->lock);
    return status;
}
static void device_release(void *ctx, void *memory, size_t bytes) {
    device *d = (device *)ctx;
    (void)bytes;
    if (memory) __atomic_sub_fetch(&d->live, 1, __ATOMIC_SEQ_CST);
}
static ds_status device_pinned_alloc(void *ctx, size_t bytes, void **memory) {
    ds_status status = count_call((device *)ctx);
    *memory = status ? NULL : malloc(bytes);
    return status;
}
static void device_pinned_release(void *ctx, void *memory, size_t bytes) {
    (void)ctx, (void)bytes;
    free(memory);
}
static ds_status device_copy(void *ctx, void *to, const void *from, size_t bytes, void *stream) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    (void)stream;
    __atomic_add_fetch(&d->copies, 1, __ATOMIC_SEQ_CST);
    if (!status) memmove(reach(d, to), reach(d, from), bytes);
    return status;
}
static ds_status device_stream_create(void *ctx, void **stream) {
    device *d = (device *)ctx;
    fake_stream *s;
    *stream = NULL;
    if (count_call(d)) return DS_ERR_DEVICE;
    s = (fake_stream *)calloc(1, sizeof *s);
    s->base = d->base;
    s->alias = d->alias;
    s->bytes = DEVICE_BYTES;
    *stream = s;
    return DS_OK;
}
static void device_free(void *ctx, void *handle) {
    (void)ctx;
    free(handle);
}
static ds_status device_event_create(void *ctx, void **event) {
    *event = NULL;
    if (count_call((device *)ctx)) return DS_ERR_DEVICE;
    *event = calloc(1, sizeof(void *));
    return DS_OK;
}
static ds_status device_event_record(void *ctx, void *event, void *stream) {
    memcpy(event, &stream, sizeof stream);
    return count_call((device *)ctx);
}
static ds_status device_event_done(void *ctx, void *event, bool *done) {
    fake_stream *s;
    memcpy(&s, event, sizeof s);
    *done = __atomic_load_n(&s->pending, __ATOMIC_SEQ_CST) == 0;
    return count_call((device *)ctx);
}
static ds_status device_synchronize(void *ctx, void *stream) {
    (void)stream;
    return count_call((device *)ctx);
}
static const char *device_describe(void *ctx) {
    (void)ctx;
    return "the fake device says no";
}
static ds_status device_quantize(void *ctx, ds_comm_blocks form, const void *in, ds_dtype dtype, size_t count,
                                 int8_t *packed, float *params, void *stream) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    (void)stream;
    if (!status)
        ds_comm_quantize(form, reach(d, in), dtype, count, (int8_t *)reach(d, packed),
                         (float *)(void *)reach(d, params));
    return status;
}
static ds_status device_dequantize(void *ctx, ds_comm_blocks form, const int8_t *packed, const float *params, void *out,
                                   ds_dtype dtype, size_t count, void *stream) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    (void)stream;
    if (!status)
        ds_comm_dequantize(form, (const int8_t *)reach(d, packed), (const float *)(const void *)reach(d, params),
                           reach(d, out), dtype, count);
    return status;
}
static float *floats(const device *d, const void *p) {
    return (float *)(void *)reach(d, p);
}
static ds_status device_compress(void *ctx, float *error, const float *in, size_t count, size_t padded, uint8_t *signs,
                                 float *scale, double *grains, void *stream) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    dsi_comm_norm squares;
    (void)stream;
    if (status) return status;
    memset(&squares, 0, sizeof squares);
    memset(reach(d, grains), 0xFF, (padded + DS_GRAIN - 1) / DS_GRAIN * sizeof *grains); /* its to write */
    dsi_comm_feed(&squares, floats(d, error), in ? floats(d, in) : NULL, count);
    dsi_comm_feed(&squares, floats(d, error) + count, NULL, padded - count);
    *floats(d, scale) = dsi_comm_compress(floats(d, error), padded, &squares, (unsigned char *)reach(d, signs));
    return DS_OK;
}
static ds_status device_average(void *ctx, float *error, const uint8_t *signs, const float *scales, int world,
                                size_t chunk, void *stream) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    float *values[4] = {NULL};
    const void *views[4];
    (void)stream;
    for (int r = 0; r < world && !status; r++) {
        views[r] = values[r] = (float *)malloc(chunk * sizeof(float));
        dsi_comm_expand(values[r], (const unsigned char *)reach(d, signs) + (size_t)r * (chunk / 8),
                        floats(d, scales)[r], chunk);
    }
    if (status) return status;
    ds_comm_tree_sum_f32(values[0], views, world, DS_F32, chunk);
    for (size_t i = 0; i < chunk; i++) floats(d, error)[i] += values[0][i] / (float)world;
    for (int r = 0; r < world; r++) free(values[r]);
    return DS_OK;
}
static ds_status device_expand(void *ctx, float *to, const uint8_t *signs, const float *scale, size_t count,
                               void *stream) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    (void)stream;
    if (!status) dsi_comm_expand(floats(d, to), (const unsigned char *)reach(d, signs), *floats(d, scale), count);
    return status;
}
static ds_status device_sum(void *ctx, const void *const *inputs, int input_count, ds_dtype dtype, void *out,
                            ds_dtype out_dtype, ds_comm_op op, size_t count, void *stream) {
    device *d = (device *)ctx;
    const void *views[16];
    void *to = reach(d, out);
    dsi_comm_sum s;
    (void)stream;
    __atomic_add_fetch(&d->sums, 1, __ATOMIC_SEQ_CST);
    for (int r = 0; r < input_count; r++) views[r] = reach(d, inputs[r]);
    s.inputs = views;
    s.outputs = &to;
    s.input_count = input_count;
    s.output_count = 1;
    s.dtype = dtype;
    s.out_dtype = out_dtype;
    s.op = op;
    dsi_comm_sum_run(&s, count);
    return count_call(d);
}
static ds_status device_flag_rows(void *ctx, const void *table, size_t rows, size_t row_bytes, uint8_t *flags,
                                  void *stream) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    (void)stream;
    for (size_t i = 0; i < rows && !status; i++)
        reach(d, flags)[i] = !dsi_comm_zero_row(reach(d, table) + i * row_bytes, row_bytes);
    return status;
}
static ds_status device_gather_rows(void *ctx, void *to, const void *from, const uint32_t *rows, size_t count,
                                    size_t row_bytes, void *stream) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    const uint32_t *which = (const uint32_t *)(const void *)reach(d, rows);
    (void)stream;
    for (size_t i = 0; i < count && !status; i++)
        if (which[i] == DS_COMM_NO_ROW)
            memset(reach(d, to) + i * row_bytes, 0, row_bytes);
        else
            memcpy(reach(d, to) + i * row_bytes, reach(d, from) + which[i] * row_bytes, row_bytes);
    return status;
}
static ds_status device_scatter_rows(void *ctx, void *to, const void *from, const uint32_t *rows, size_t count,
                                     size_t row_bytes, void *stream) {
    device *d = (device *)ctx;
    ds_status status = count_call(d);
    const uint32_t *which = (const uint32_t *)(const void *)reach(d, rows);
    (void)stream;
    for (size_t i = 0; i < count && !status; i++)
        memcpy(reach(d, to) + which[i] * row_bytes, reach(d, from) + i * row_bytes, row_bytes);
    return status;
}
static void device_table(device *d, ds_device *out) {
    memset(out, 0, sizeof *out);
    out->ctx = d;
    out->alloc = device_alloc;
    out->release = device_release;
    out->copy = device_copy;
    out->stream_create = device_stream_create;
    out->stream_destroy = device_free;
    out->event_create = device_event_create;
    out->event_destroy = device_free;
    out->event_record = device_event_record;
    out->event_done = device_event_done;
    out->synchronize = device_synchronize;
    out->describe = device_describe;
}

/* ---- every kind of call, on host and on device memory: the same bits ---- */

#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition) && bad++ < 3)                                                                                 \
            printf("  rank %d, line %d: %s (%s)\n", ds_comm_rank(comm), __LINE__, #condition,                          \
                   ds_comm_error(comm)->message);                                                                      \
    } while (0)

typedef struct kind_case {
    ds_comm_kind kind;
    ds_dtype dtype, out_dtype;
    ds_comm_op op;
    size_t count;
} kind_case;
static const kind_case kinds[] = {
    {DS_COMM_ALL_REDUCE, DS_F32, DS_F32, DS_COMM_SUM, COUNT},   {DS_COMM_ALL_REDUCE, DS_F32, DS_F32, DS_COMM_MAX, 3},
    {DS_COMM_ALL_REDUCE, DS_BF16, DS_BF16, DS_COMM_AVERAGE, 1}, {DS_COMM_REDUCE, DS_F16, DS_F16, DS_COMM_SUM, COUNT},
    {DS_COMM_REDUCE_SCATTER, DS_F16, DS_F32, DS_COMM_SUM, 999}, {DS_COMM_ALL_GATHER, DS_I32, DS_I32, DS_COMM_SUM, 777},
    {DS_COMM_BROADCAST, DS_U8, DS_U8, DS_COMM_SUM, COUNT},      {DS_COMM_ALL_TO_ALL, DS_F32, DS_F32, DS_COMM_SUM, 500},
    {DS_COMM_GATHER, DS_F32, DS_F32, DS_COMM_SUM, 129},         {DS_COMM_SCATTER, DS_F32, DS_F32, DS_COMM_SUM, 129},
    {DS_COMM_ALL_REDUCE, DS_F32, DS_F32, DS_COMM_SUM, 0},       {DS_COMM_BARRIER, DS_F32, DS_F32, DS_COMM_SUM, 0}};

static int body(ds_comm *comm, device *d, void *stream) {
    enum { ROOM = 1 << 16 };
    const size_t bytes = ROOM * sizeof(float);
    int me = ds_comm_rank(comm), w = ds_comm_world(comm), bad = 0;
    char *host_in = (char *)malloc(bytes), *host_out = (char *)malloc(bytes);
    void *in = NULL, *out = NULL;
    uint64_t random = (uint64_t)me + 5;
    EXPECT(device_alloc(d, bytes, &in) == DS_OK && device_alloc(d, bytes, &out) == DS_OK);
    for (size_t i = 0; i < ROOM; i++) {
        float x = (float)test_uniform(&random) - 0.5f;
        memcpy(host_in + i * sizeof x, &x, sizeof x);
    }
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int started = 0; started < 2; started++) {
            ds_comm_call call;
            ds_comm_handle handle;
            memset(&call, 0, sizeof call);
            call.kind = kinds[k].kind;
            call.dtype = kinds[k].dtype;
            call.out_dtype = kinds[k].out_dtype;
            call.op = kinds[k].op;
            call.count = kinds[k].count;
            call.root = w - 1;
            call.in = host_in;
            call.out = host_out;
            memset(host_out, 7, bytes);
            if (call.kind == DS_COMM_BROADCAST) memcpy(host_out, host_in, bytes), call.in = host_out;
            EXPECT(ds_comm_run(comm, &call) == DS_OK);
            memcpy(reach(d, in), host_in, bytes);
            memset(reach(d, out), 7, bytes);
            call.in = in;
            call.out = call.kind == DS_COMM_BROADCAST ? in : out;
            call.on_device = true;
            call.stream = stream;
            if (started) {
                EXPECT(ds_comm_start(comm, &call, &handle) == DS_OK);
                EXPECT(ds_comm_wait(comm, handle) == DS_OK);
            } else
                EXPECT(ds_comm_run(comm, &call) == DS_OK);
            EXPECT(memcmp(reach(d, call.out), host_out, bytes) == 0);
        }
    if (w > 1) {
        ds_comm_call call;
        memset(&call, 0, sizeof call);
        for (int turn = 0; turn < 2; turn++) {
            call.kind = me % 2 == turn ? DS_COMM_SEND : DS_COMM_RECEIVE;
            call.root = me ^ 1;
            call.in = in;
            call.out = out;
            call.count = COUNT;
            call.on_device = true;
            if (call.root < w) EXPECT(ds_comm_run(comm, &call) == DS_OK);
        }
        if ((me ^ 1) < w) { /* what the peer has in `in` */
            uint64_t other = (uint64_t)(me ^ 1) + 5;
            int wrong = 0;
            for (size_t i = 0; i < COUNT; i++) {
                float x = (float)test_uniform(&other) - 0.5f;
                wrong += memcmp(reach(d, out) + i * sizeof x, &x, sizeof x) != 0;
            }
            EXPECT(wrong == 0);
        }
    }
    for (int k = 0; k < 8 && w > 1;
         k++) { /* sums that NCCL makes, of host and device memory; elsewhere the usual ones */
        bool scatter = k & 1, on_device = k & 2, reduce = k & 4;
        ds_comm_call call;
        size_t counts[4], begin = 0, wrong = 0;
        float *result = (float *)(void *)(on_device ? reach(d, out) : host_out);
        for (int r = 0; r < w; r++) {
            counts[r] = scatter ? (size_t)r * 100 : COUNT;
            if (r < me && scatter) begin += counts[r];
        }
        memset(&call, 0, sizeof call);
        call.kind = scatter ? DS_COMM_REDUCE_SCATTER : reduce ? DS_COMM_REDUCE : DS_COMM_ALL_REDUCE;
        call.in = on_device ? in : (void *)host_in;
        call.out = on_device ? out : (void *)host_out;
        call.counts = scatter ? counts : NULL;
        call.count = COUNT;
        call.root = w - 1;
        call.native = true;
        call.on_device = on_device;
        for (size_t i = 0; i < ROOM; i++) {
            float x = (float)((size_t)me + i % 50);
            memcpy((on_device ? reach(d, in) : host_in) + i * sizeof x, &x, sizeof x);
        }
        EXPECT(ds_comm_run(comm, &call) == DS_OK);
        for (size_t i = 0; i < counts[me] && (call.kind != DS_COMM_REDUCE || me == w - 1); i++)
            wrong += result[i] != (float)(w * (w - 1) / 2 + w * (int)((begin + i) % 50));
        EXPECT(wrong == 0);
    }
    { /* a part of a split works alike */
        ds_comm *half = NULL;
        float x = (float)me, sum = 0;
        ds_error error = {DS_OK, ""};
        EXPECT(ds_comm_split(comm, me / 2, 0, &half, &error) == DS_OK);
        EXPECT(ds_comm_all_reduce(half, &x, &sum, 1, DS_F32, DS_COMM_SUM) == DS_OK);
        EXPECT(sum == (float)(me / 2 * 2 + (me / 2 * 2 + 1 < w ? me / 2 * 2 + 1 : 0)));
        ds_comm_destroy(half);
    }
    device_release(d, in, bytes);
    device_release(d, out, bytes);
    free(host_in);
    free(host_out);
    return bad;
}

/* ---- over threads: always through the host ---- */

typedef struct member {
    ds_comm *comm;
    device *d;
    int bad;
    ds_status status;
    char text[512];
} member;
static void *member_main(void *arg) {
    member *m = (member *)arg;
    m->bad = body(m->comm, m->d, NULL);
    ds_comm_destroy(m->comm);
    return NULL;
}
static void *failing_main(void *arg) {
    member *m = (member *)arg;
    void *memory = NULL;
    ds_comm_call call;
    memset(&call, 0, sizeof call);
    (void)device_alloc(m->d, 4096, &memory);
    call.kind = DS_COMM_ALL_REDUCE;
    call.in = call.out = memory;
    call.count = 1000;
    call.on_device = true;
    m->status = ds_comm_run(m->comm, &call);
    snprintf(m->text, sizeof m->text, "%s", ds_comm_error(m->comm)->message);
    return NULL;
}

static ds_comm_desc device_desc(device *d, int pinned, int kernels) {
    ds_comm_desc desc;
    d->kernels.ctx = d;
    d->kernels.sum = device_sum;
    d->kernels.quantize = device_quantize;
    d->kernels.dequantize = device_dequantize;
    d->kernels.flag_rows = device_flag_rows;
    d->kernels.gather_rows = device_gather_rows;
    d->kernels.scatter_rows = device_scatter_rows;
    d->kernels.compress = device_compress;
    d->kernels.average = device_average;
    d->kernels.expand = device_expand;
    memset(&desc, 0, sizeof desc);
    desc.timeout = (int64_t)20 * 1000000000;
    desc.stage_bytes = STAGE;
    desc.arena_bytes = 16 << 20;
    device_table(d, &desc.device);
    if (pinned) {
        desc.device.pinned_alloc = device_pinned_alloc;
        desc.device.pinned_release = device_pinned_release;
    }
    if (kernels) desc.kernels = &d->kernels;
    return desc;
}

/* ---- over processes ---- */

static char library[] = "/tmp/ds_fake_nccl_XXXXXX";
static int use_port; /* MASTER_PORT of the next run */

static int process_main(int rank, int world, const char *backend, int kernels, const char *run_id) {
    device d;
    ds_comm_desc desc;
    ds_comm *comm = NULL;
    ds_error error = {DS_OK, ""};
    ds_comm_stats stats;
    char text[32];
    int bad;
    if (device_make(&d)) return 1;
    desc = device_desc(&d, 1, kernels);
    desc.backend = backend;
    desc.run_id = run_id;
    desc.nccl_library = library;
    snprintf(text, sizeof text, "%d", rank);
    setenv("RANK", text, 1);
    snprintf(text, sizeof text, "%d", world);
    setenv("WORLD_SIZE", text, 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    snprintf(text, sizeof text, "%d", use_port);
    setenv("MASTER_PORT", text, 1);
    if (ds_comm_create(&desc, &comm, &error)) return printf("  rank %d: %s\n", rank, error.message), 1;
    bad = strcmp(ds_comm_backend(comm), backend ? backend : "nccl") != 0;
    bad += body(comm, &d, NULL);
    ds_comm_get_stats(comm, &stats);
    if (backend && strcmp(backend, "shm") == 0)
        bad += stats.staged_bytes == 0 || d.sums != 0;
    else if (kernels)
        bad += stats.staged_bytes != 0 || d.sums == 0; /* nothing came to the host */
    ds_comm_destroy(comm);
    bad += d.live != 0;
    device_end(&d);
    return bad;
}
static int processes(int world, const char *backend, int kernels) {
    pid_t pids[8];
    int failed = 0, status;
    char id[64];
    snprintf(id, sizeof id, "device %ld %d", (long)getpid(), use_port++);
    fflush(stdout);
    for (int r = 0; r < world; r++)
        if ((pids[r] = fork()) == 0) test_child_exit(process_main(r, world, backend, kernels, id) != 0);
    for (int r = 0; r < world; r++) {
        waitpid(pids[r], &status, 0);
        failed += !WIFEXITED(status) || WEXITSTATUS(status);
    }
    return failed;
}

/* One rank of a run that goes wrong: what it is told goes up the pipe. */
typedef struct outcome {
    int rank;
    ds_status status;
    char text[512];
} outcome;
static void wrong_main(int rank, int world, const char *how, int end) {
    device d;
    ds_comm_desc desc;
    ds_comm *comm = NULL;
    ds_error error = {DS_OK, ""};
    outcome o;
    float x[1000] = {0};
    char text[32];
    if (device_make(&d)) exit(1);
    memset(&o, 0, sizeof o);
    o.rank = rank;
    desc = device_desc(&d, 0, 0);
    desc.backend = "nccl";
    desc.nccl_library = library;
    desc.timeout = 1500000000;
    desc.run_id = "wrong";
    desc.rank = rank;
    desc.world = world;
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    snprintf(text, sizeof text, "%d", use_port);
    setenv("MASTER_PORT", text, 1);
    if (strcmp(how, "absent") == 0 && rank == 1) exit(0);
    if (strcmp(how, "fails") == 0 && rank == 1) d.fail_at = 40;
    o.status = ds_comm_create(&desc, &comm, &error);
    snprintf(o.text, sizeof o.text, "%s", error.message);
    if (comm && strcmp(how, "killed") == 0 && rank == 1) raise(SIGKILL);
    if (comm && strcmp(how, "late") == 0 && rank == 1) usleep(4000000), exit(0);
    for (int k = 0; comm && !o.status && k < 50; k++) {
        o.status = ds_comm_all_reduce(comm, x, x, 1000, DS_F32,
                                      strcmp(how, "differs") == 0 && rank ? DS_COMM_MAX : DS_COMM_SUM);
        snprintf(o.text, sizeof o.text, "%s", ds_comm_error(comm)->message);
    }
    if (comm && ds_comm_barrier(comm) != o.status) o.status = DS_ERR_STATE; /* dead is dead */
    ds_comm_destroy(comm);
    if (write(end, &o, sizeof o) != (ssize_t)sizeof o) exit(1);
    exit(0);
}
/* NCCL's calls fail one after the other on rank 1: connecting, sums in the fixed order, sums of its own. */
static void failing_call_main(int rank, const char *name, int at, int end) {
    device d;
    ds_comm_desc desc;
    ds_comm *comm = NULL;
    ds_comm_call call;
    ds_error error = {DS_OK, ""};
    outcome o;
    float x[1000], sum[1000];
    char text[64];
    if (device_make(&d)) exit(1);
    alarm(60); /* a hang */
    memset(&o, 0, sizeof o);
    o.rank = rank;
    desc = device_desc(&d, 0, 0);
    desc.backend = "nccl";
    desc.nccl_library = library;
    desc.timeout = 400000000;
    desc.run_id = "calls";
    desc.rank = rank;
    desc.world = 2;
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    snprintf(text, sizeof text, "%d", use_port);
    setenv("MASTER_PORT", text, 1);
    snprintf(text, sizeof text, "%.40s:%d", name, at);
    if (rank == 1) setenv("FAKE_NCCL_FAIL", text, 1);
    for (int i = 0; i < 1000; i++) x[i] = (float)(i + rank);
    o.status = ds_comm_create(&desc, &comm, &error);
    snprintf(o.text, sizeof o.text, "%s", error.message);
    memset(&call, 0, sizeof call);
    call.in = x;
    call.out = sum;
    call.count = 1000;
    for (int k = 0; comm && !o.status && k < 3; k++) {
        call.kind = k == 2 ? DS_COMM_REDUCE : DS_COMM_ALL_REDUCE;
        call.native = k > 0;
        memset(sum, 0, sizeof sum);
        o.status = ds_comm_run(comm, &call);
        snprintf(o.text, sizeof o.text, "%s", ds_comm_error(comm)->message);
        for (int i = 0; i < 1000 && !o.status && (k < 2 || rank == 0); i++)
            if (sum[i] != (float)(2 * i + 1)) o.status = DS_ERR_CORRUPT;
    }
    if (comm && o.status && ds_comm_barrier(comm) != o.status) o.status = DS_ERR_STATE; /* dead is dead */
    ds_comm_destroy(comm);
    if (write(end, &o, sizeof o) != (ssize_t)sizeof o) exit(1);
    exit(0);
}
static int failing_call_run(const char *name, int at, outcome *out) {
    pid_t pids[2];
    int ends[2], told = 0, status;
    outcome o;
    use_port++;
    if (pipe(ends)) return 0;
    fflush(stdout);
    for (int r = 0; r < 2; r++)
        if ((pids[r] = fork()) == 0) close(ends[0]), failing_call_main(r, name, at, ends[1]);
    close(ends[1]);
    memset(out, 0, 2 * sizeof *out);
    while (read(ends[0], &o, sizeof o) == (ssize_t)sizeof o) {
        out[o.rank] = o;
        told++;
    }
    close(ends[0]);
    for (int r = 0; r < 2; r++) {
        waitpid(pids[r], &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status)) told = 0;
    }
    return told;
}
static int wrong_run(const char *how, outcome *out) {
    pid_t pids[2];
    int ends[2], told = 0, status;
    use_port++;
    if (pipe(ends)) return 0;
    fflush(stdout);
    for (int r = 0; r < 2; r++)
        if ((pids[r] = fork()) == 0) close(ends[0]), wrong_main(r, 2, how, ends[1]);
    close(ends[1]);
    memset(out, 0, 2 * sizeof *out);
    while (told < 2) {
        outcome o;
        if (read(ends[0], &o, sizeof o) != (ssize_t)sizeof o) break;
        out[o.rank] = o;
        told++;
    }
    close(ends[0]);
    for (int r = 0; r < 2; r++) waitpid(pids[r], &status, 0);
    return told;
}

static int build_library(void) {
#ifdef __SANITIZE_THREAD__
    const char *flags = " -fsanitize=thread"; /* which would take what the library does in order for a race otherwise */
#else
    const char *flags = "";
#endif
    char command[400];
    const char *cc = getenv("CC");
    int file = mkstemp(library);
    if (file < 0) return 1;
    close(file);
    snprintf(command, sizeof command, "%.100s -std=gnu99 -O1%s -shared -fPIC -o %s tests/tools/fake_nccl.c -lpthread",
             cc && *cc ? cc : "cc", flags, library);
    return system(command) != 0;
}

/* Quantized calls on device memory: the bits of those in host memory, among two nodes of two ranks and on one node. */
enum { QUANT = 64, GROUPS = 4 };
typedef struct quantized {
    ds_comm *comm;
    device *d;
    ds_dtype dtype;
    ds_status status;
    char text[512];
    int bad;
} quantized;
static void *quantized_main(void *arg) {
    quantized *q = (quantized *)arg;
    int me = ds_comm_rank(q->comm);
    size_t size = DS_DTYPE_SIZE(q->dtype), all = 4 * QUANT * size;
    size_t room = ds_comm_quantized_scratch_on(2, 2, QUANT, GROUPS);
    char in[4 * QUANT * 4], out[2][4 * QUANT * 4], *scratch = (char *)malloc(room);
    void *device_in = NULL, *device_out = NULL, *device_scratch = NULL;
    ds_comm *node = NULL, *across = NULL;
    uint64_t seed = (uint64_t)me;
    q->d->fail_at = -q->d->fail_at;
    (void)device_alloc(q->d, all, &device_in);
    (void)device_alloc(q->d, all, &device_out);
    (void)device_alloc(q->d, room, &device_scratch);
    for (size_t i = 0; i < 4 * QUANT; i++) {
        float x = (float)((double)(test_random(&seed) >> 11) * 0x1p-53 - 0.5);
        dsi_comm_value_store(in, q->dtype, i, x);
    }
    memcpy(reach(q->d, device_in), in, all);
    q->status = ds_comm_split(q->comm, me / 2, 0, &node, NULL);
    if (!q->status) q->status = ds_comm_split(q->comm, me % 2, 0, &across, NULL);
    q->d->calls = 0;
    q->d->fail_at = -q->d->fail_at;
    for (int k = 0; k < 3 && !q->status; k++) {
        const ds_comm *failed = k ? node : q->comm;
        if (k == 0) {
            q->bad += ds_comm_quantized_all_gather(q->comm, in, out[0], QUANT, q->dtype, GROUPS, scratch) != DS_OK;
            q->status = ds_comm_quantized_all_gather_on(q->comm, device_in, device_out, QUANT, q->dtype, GROUPS,
                                                        device_scratch, NULL);
        } else {
            ds_comm *second = k == 1 ? across : NULL;
            ds_status host =
                ds_comm_quantized_reduce_scatter(node, second, in, out[0], QUANT, q->dtype, GROUPS, 1, scratch);
            q->status = host ? host
                             : ds_comm_quantized_reduce_scatter_on(node, second, device_in, device_out, QUANT, q->dtype,
                                                                   GROUPS, device_scratch, NULL);
        }
        if (q->status)
            snprintf(q->text, sizeof q->text, "%s", ds_comm_error(failed)->message);
        else
            q->bad += memcmp(out[0], reach(q->d, device_out), k ? QUANT * size : all) != 0;
    }
    ds_comm_destroy(node);
    ds_comm_destroy(across);
    ds_comm_destroy(q->comm);
    free(scratch);
    return NULL;
}
/* Tables of rows on device memory: the bits and the bytes on the wire of those in host memory, in pieces of any size, and
   whole where that is less. */
enum { ROWS = 70, WIDTH = 6 };
static bool sparse_row(int rank, size_t row, int how) {
    if (how == 3) return true; /* too many: the whole table */
    if (how == 4) return rank == 2 && row == 69;
    return row % 9 == 1 || (row + (size_t)rank) % 13 == 0; /* some of all ranks, some of one */
}
static void *sparse_main(void *arg) {
    static const size_t pieces[] = {1, 4, 100, 4, 4};
    quantized *q = (quantized *)arg;
    const size_t bytes = ROWS * WIDTH * DS_DTYPE_SIZE(q->dtype);
    const ds_comm_sparse room = ds_comm_sparse_sizes(4, ROWS, WIDTH, q->dtype, 100);
    void *device_table = NULL, *scratch = NULL, *host = malloc(room.host_bytes);
    char *table = (char *)malloc(bytes);
    uint64_t seed = (uint64_t)ds_comm_rank(q->comm);
    q->d->fail_at = -q->d->fail_at;
    (void)device_alloc(q->d, bytes, &device_table);
    (void)device_alloc(q->d, room.device_bytes, &scratch);
    q->d->calls = 0;
    q->d->fail_at = -q->d->fail_at;
    for (int how = 0; how < 5 && !q->status; how++) {
        const ds_comm_op op = how % 2 ? DS_COMM_AVERAGE : DS_COMM_SUM;
        const ds_comm_kind kind = how == 3 ? DS_COMM_ALL_REDUCE : DS_COMM_ALL_GATHER;
        ds_comm_stats before, between, after;
        bool sparse[2] = {false, false};
        for (size_t i = 0; i < ROWS * WIDTH; i++)
            dsi_comm_value_store(table, q->dtype, i,
                                 sparse_row(ds_comm_rank(q->comm), i / WIDTH, how)
                                     ? (float)((double)(test_random(&seed) >> 11) * 0x1p-53 - 0.5)
                                     : 0.0f);
        memcpy(reach(q->d, device_table), table, bytes);
        ds_comm_get_stats(q->comm, &before);
        q->status = ds_comm_sparse_all_reduce(q->comm, table, ROWS, WIDTH, q->dtype, op, &sparse[0]);
        ds_comm_get_stats(q->comm, &between);
        if (!q->status)
            q->status = ds_comm_sparse_all_reduce_on(q->comm, device_table, ROWS, WIDTH, q->dtype, op, pieces[how],
                                                     scratch, host, &sparse[1], NULL);
        ds_comm_get_stats(q->comm, &after);
        if (q->status) {
            snprintf(q->text, sizeof q->text, "%s", ds_comm_error(q->comm)->message);
            break;
        }
        q->bad += memcmp(table, reach(q->d, device_table), bytes) != 0 || sparse[0] != (how != 3);
        q->bad +=
            sparse[1] != sparse[0] || between.bytes_sent[kind] == before.bytes_sent[kind] ||
            after.bytes_sent[kind] - between.bytes_sent[kind] != between.bytes_sent[kind] - before.bytes_sent[kind];
    }
    ds_comm_destroy(q->comm);
    free(table);
    free(host);
    return NULL;
}
/* The 1-bit all-reduce: three turns with their errors, of buffers that fill no chunk, one chunk, several grains. */
static void *one_bit_main(void *arg) {
    quantized *q = (quantized *)arg;
    static const size_t counts[] = {5, 128, 5000};
    enum { MOST = 5120 };
    const int world = ds_comm_world(q->comm);
    const size_t room = ds_comm_one_bit_sizes(world, MOST).scratch_bytes;
    const size_t room_on = ds_comm_one_bit_scratch_on(world, MOST);
    float *host[3]; /* values, worker and server errors */
    void *on[4], *scratch = malloc(room);
    uint64_t seed = (uint64_t)ds_comm_rank(q->comm);
    q->d->fail_at = -q->d->fail_at;
    for (int k = 0; k < 4; k++) (void)device_alloc(q->d, k < 3 ? MOST * sizeof(float) : room_on, &on[k]);
    for (int k = 0; k < 3; k++) host[k] = (float *)malloc(MOST * sizeof(float));
    q->d->calls = 0;
    q->d->fail_at = -q->d->fail_at;
    for (int turn = 0; turn < 9 && !q->status; turn++) {
        const size_t n = counts[turn / 3];
        const ds_comm_one_bit sizes = ds_comm_one_bit_sizes(world, n);
        for (int k = 0; k < 3 && turn % 3 == 0; k++) {
            memset(host[k], 0, MOST * sizeof(float));
            memset(reach(q->d, on[k]), 0, MOST * sizeof(float));
        }
        for (size_t i = 0; i < n; i++) host[0][i] = (float)((double)(test_random(&seed) >> 11) * 0x1p-53 - 0.5);
        memcpy(reach(q->d, on[0]), host[0], n * sizeof(float));
        q->status = ds_comm_one_bit_all_reduce(q->comm, host[0], host[0], n, host[1], host[2], scratch);
        if (!q->status)
            q->status = ds_comm_one_bit_all_reduce_on(q->comm, (float *)on[0], (float *)on[0], n, (float *)on[1],
                                                      (float *)on[2], on[3], NULL);
        if (q->status) snprintf(q->text, sizeof q->text, "%s", ds_comm_error(q->comm)->message);
        for (int k = 0; k < 3 && !q->status; k++)
            q->bad += memcmp(host[k], reach(q->d, on[k]),
                             (k == 0   ? n
                              : k == 1 ? sizes.padded
                                       : sizes.chunk) *
                                 sizeof(float)) != 0;
    }
    ds_comm_destroy(q->comm);
    for (int k = 0; k < 3; k++) free(host[k]);
    free(scratch);
    return NULL;
}
/* The status of rank 1 (or the only one), whose call `fail` to the device fails (0: none). */
static ds_status run_on_device(void *(*rank_main)(void *), int world, ds_dtype dtype, int fail, int *calls) {
    static device ds[4];
    ds_comm *comms[4];
    quantized q[4];
    pthread_t threads[4];
    const int one = world > 1;
    memset(q, 0, sizeof q);
    for (int r = 0; r < world; r++) {
        ds_comm_desc desc;
        CHECK(device_make(&ds[r]) == 0);
        desc = device_desc(&ds[r], 1, 1);
        if (r == 0) CHECK(ds_comm_threads_create(&desc, world, comms, NULL) == DS_OK);
        comms[r]->device = desc.device; /* each has its own here */
        comms[r]->kernels = *desc.kernels;
        q[r].comm = comms[r];
        q[r].d = &ds[r];
        q[r].dtype = dtype;
    }
    ds[one].fail_at = fail;
    for (int r = 0; r < world; r++) CHECK(pthread_create(&threads[r], NULL, rank_main, &q[r]) == 0);
    for (int r = 0; r < world; r++) pthread_join(threads[r], NULL);
    *calls = ds[one].calls;
    for (int r = 0; r < world; r++) {
        CHECK_EQ(q[r].bad, 0);
        CHECK(q[r].status == DS_OK || (fail && (q[r].status == DS_ERR_PEER || r == one)));
        device_end(&ds[r]);
    }
    if (q[one].status) {
        CHECK_HAS(q[one].text, "rank ");
        CHECK_HAS(q[one].text, "the fake device says no");
    }
    return q[one].status;
}

int main(int argc, char **argv) {
    static const char *const wheres[] = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
                                         "OMPI_COMM_WORLD_SIZE"};
    int built;
    test_begin(argc, argv);
    for (size_t i = 0; i < sizeof wheres / sizeof *wheres; i++) unsetenv(wheres[i]);
    built = build_library() == 0;
    use_port = 20000 + (int)(getpid() % 20000);
    for (int w = 1; w <= 4; w++)
        for (int pinned = 0; pinned < 2; pinned++) {
            char name[48];
            snprintf(name, sizeof name, "threads_%d_pinned_%d", w, pinned);
            TEST_NAMED(name) {
                device d;
                ds_comm_desc desc;
                ds_comm *comms[4];
                member members[4];
                pthread_t threads[4];
                CHECK(device_make(&d) == 0);
                desc = device_desc(&d, pinned, pinned);
                CHECK(ds_comm_threads_create(&desc, w, comms, NULL) == DS_OK);
                for (int r = 0; r < w; r++) {
                    memset(&members[r], 0, sizeof members[r]);
                    members[r].comm = comms[r];
                    members[r].d = &d;
                    CHECK(pthread_create(&threads[r], NULL, member_main, &members[r]) == 0);
                }
                for (int r = 0; r < w; r++) {
                    pthread_join(threads[r], NULL);
                    CHECK_EQ(members[r].bad, 0);
                }
                CHECK_EQ(d.live, 0);
                CHECK((d.sums > 0) == (w == 1 && pinned)); /* alone, sums stay on the device */
                device_end(&d);
            }
        }
    TEST(shm) {
        CHECK(processes(3, "shm", 1) == 0);
    }
    TEST(nccl) {
        CHECK(built);
        for (int w = 2; w <= 4 && built; w++)
            for (int kernels = 0; kernels < 2; kernels++) CHECK(processes(w, "nccl", kernels) == 0);
        CHECK(processes(2, NULL, 1) == 0); /* auto: there is a device, so NCCL */
    }
    TEST(nccl_port_taken) { /* by a launcher's own store: the next port serves */
        struct sockaddr_in address;
        int s = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
        memset(&address, 0, sizeof address);
        address.sin_family = AF_INET;
        address.sin_port = htons((uint16_t)use_port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        (void)setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        CHECK(bind(s, (struct sockaddr *)(void *)&address, sizeof address) == 0 && listen(s, 8) == 0);
        CHECK(processes(2, "nccl", 1) == 0);
        close(s);
        use_port += 10;
    }
    TEST(nccl_trouble) {
        outcome o[2];
        CHECK_EQ(wrong_run("differs", o), 2);
        CHECK(o[0].status == DS_ERR_PEER && o[1].status == DS_ERR_PEER);
        CHECK_HAS(o[0].text, "all_reduce(count 1000, f32, max)");
        CHECK_HAS(o[1].text, "all_reduce(count 1000, f32, sum)");
        CHECK_EQ(wrong_run("killed", o), 1);
        CHECK_EQ(o[0].status, DS_ERR_PEER);
        CHECK_HAS(o[0].text, "remote process exited");
        CHECK_HAS(o[0].text, "rank 1");
        CHECK_EQ(wrong_run("late", o), 1);
        CHECK_EQ(o[0].status, DS_ERR_TIMEOUT);
        CHECK_HAS(o[0].text, "rank 1");
        CHECK_EQ(wrong_run("absent", o), 1);
        CHECK_EQ(o[0].status, DS_ERR_TIMEOUT);
        CHECK_HAS(o[0].text, "of 2 ranks, rank 1 did not connect");
        CHECK_HAS(o[0].text, "127.0.0.1:");
        CHECK_EQ(wrong_run("fails", o), 2);
        CHECK_EQ(o[1].status, DS_ERR_DEVICE);
        CHECK_HAS(o[1].text, "the fake device says no");
        CHECK(o[0].status == DS_ERR_PEER || o[0].status == DS_ERR_TIMEOUT);
    }
    TEST(nccl_calls_fail) {
        static const struct {
            const char *name;
            int most; /* calls that are tried */
        } calls[] = {{"CommInitRankConfig", 1},
                     {"CommGetAsyncError", 4},
                     {"async", 4},
                     {"GroupStart", 3},
                     {"Send", 3},
                     {"Recv", 3},
                     {"GroupEnd", 5},
                     {"AllReduce", 1},
                     {"Reduce", 1},
                     {"CommFinalize", 1}};
        outcome o[2];
        for (size_t k = 0; k < sizeof calls / sizeof *calls; k++)
            for (int at = 1; at <= calls[k].most; at++) {
                bool quiet = strcmp(calls[k].name, "CommFinalize") == 0; /* nobody is left to be told */
                if (!CHECK_EQ(failing_call_run(calls[k].name, at, o), 2)) printf("  %s %d\n", calls[k].name, at);
                if (quiet) {
                    CHECK(o[0].status == DS_OK && o[1].status == DS_OK);
                    continue;
                }
                if (!CHECK(o[1].status == DS_ERR_PEER || o[1].status == DS_ERR_DEVICE) ||
                    !CHECK_HAS(o[1].text, "rank 1"))
                    printf("  %s %d: %d %s\n", calls[k].name, at, (int)o[1].status, o[1].text);
                CHECK(o[0].status == DS_OK || o[0].status == DS_ERR_TIMEOUT || o[0].status == DS_ERR_PEER);
                CHECK(o[0].status == DS_OK || strstr(o[0].text, "rank ") != NULL);
            }
        CHECK_EQ(failing_call_run("", 0, o), 2); /* and the next run works */
        CHECK(o[0].status == DS_OK && o[1].status == DS_OK);
    }
    TEST(nccl_refused) {
        device d;
        ds_comm_desc desc;
        ds_comm *comm = NULL;
        ds_error error = {DS_OK, ""};
        CHECK(device_make(&d) == 0);
        desc = device_desc(&d, 0, 0);
        desc.backend = "nccl";
        desc.world = 2;
        desc.nccl_library = "/nowhere/libnccl.so.2";
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_UNSUPPORTED);
        CHECK_HAS(error.message, "/nowhere/libnccl.so.2");
        desc.nccl_library = "libm.so.6";
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_UNSUPPORTED);
        CHECK_HAS(error.message, "has no ncclGetUniqueId");
        desc.backend = NULL; /* without that library, ranks of one machine share memory */
        desc.timeout = 50000000;
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_TIMEOUT);
        CHECK_HAS(error.message, "rank 1 did not connect");
        desc.backend = "nccl";
        desc.timeout = 0;
        desc.nccl_library = library;
        for (size_t fail = 1; fail <= 4; fail++) {
            test_memory memory;
            memset(&memory, 0, sizeof memory);
            memory.fail_at = fail;
            desc.allocator.alloc = test_alloc;
            desc.allocator.release = test_release;
            desc.allocator.ctx = &memory;
            CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_MEMORY);
            CHECK_HAS(error.message, fail == 1 ? "no memory for NCCL" : "no memory for rank 0 of 2");
            CHECK(memory.live == 0 && memory.mismatches == 0);
        }
        memset(&desc.allocator, 0, sizeof desc.allocator);
        setenv("MASTER_ADDR", "127.0.0.1", 1);
        unsetenv("MASTER_PORT");
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_INPUT);
        unsetenv("MASTER_ADDR");
        unsetenv("MASTER_PORT");
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "needs MASTER_ADDR and MASTER_PORT");
        setenv("MASTER_ADDR", "no such host.invalid", 1);
        setenv("MASTER_PORT", "29500", 1);
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_IO);
        CHECK_HAS(error.message, "no such host.invalid");
        setenv("MASTER_ADDR", "127.0.0.1", 1);
        setenv("FAKE_NCCL_FAIL", "GetUniqueId:1", 1);
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_DEVICE);
        CHECK_HAS(error.message, "ncclGetUniqueId");
        unsetenv("FAKE_NCCL_FAIL");
        desc.device.event_done = NULL;
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_ARGUMENT);
        desc.backend = "shm";
        desc.device.alloc = NULL;
        CHECK_EQ(ds_comm_create(&desc, &comm, &error), DS_ERR_ARGUMENT);
        unsetenv("MASTER_ADDR");
        unsetenv("MASTER_PORT");
        device_end(&d);
    }
    TEST(device_fails) { /* each call to the device in turn, on one of two threads */
        int reached = 0;
        for (int fail = 2; fail < 12; fail++) {
            device ds[2];
            ds_comm *comms[2];
            member members[2];
            pthread_t threads[2];
            CHECK(device_make(&ds[0]) == 0 && device_make(&ds[1]) == 0);
            for (int r = 0; r < 2; r++) {
                ds_comm_desc desc = device_desc(&ds[r], 1, 0);
                memset(&members[r], 0, sizeof members[r]);
                if (r == 0) CHECK(ds_comm_threads_create(&desc, 2, comms, NULL) == DS_OK);
                comms[r]->device = desc.device; /* ranks of one process share a descriptor; here each has its own */
                members[r].comm = comms[r];
                members[r].d = &ds[r];
            }
            ds[1].fail_at = fail;
            for (int r = 0; r < 2; r++) CHECK(pthread_create(&threads[r], NULL, failing_main, &members[r]) == 0);
            for (int r = 0; r < 2; r++) pthread_join(threads[r], NULL);
            if (ds[1].calls >= fail) {
                reached++;
                CHECK_EQ(members[1].status, DS_ERR_DEVICE);
                CHECK_HAS(members[1].text, "the fake device says no");
                CHECK(members[0].status == DS_ERR_PEER || members[0].status == DS_OK);
                CHECK(members[0].status == DS_OK || strstr(members[0].text, "rank 1 stopped") != NULL);
                CHECK_EQ(ds_comm_barrier(comms[1]), DS_ERR_DEVICE);
            } else
                CHECK_EQ(members[0].status, DS_OK);
            for (int r = 0; r < 2; r++) ds_comm_destroy(comms[r]);
            for (int r = 0; r < 2; r++) device_end(&ds[r]);
        }
        CHECK(reached >= 4 && reached < 10);
    }
    TEST(quantized_on_device) {
        static const ds_dtype dtypes[] = {DS_F32, DS_F16, DS_BF16};
        int calls = 0, most;
        for (int k = 0; k < 3; k++) CHECK_EQ(run_on_device(quantized_main, 4, dtypes[k], 0, &calls), DS_OK);
        most = calls;
        CHECK(most > 20);
        for (int fail = 1; fail <= most; fail++)
            CHECK_EQ(run_on_device(quantized_main, 4, DS_F32, fail, &calls), DS_ERR_DEVICE);
    }
    TEST(rows_on_device) {
        static const ds_dtype dtypes[] = {DS_F32, DS_F16, DS_BF16};
        int calls = 0, most;
        for (int k = 0; k < 3; k++) CHECK_EQ(run_on_device(sparse_main, 4, dtypes[k], 0, &calls), DS_OK);
        most = calls;
        CHECK(most > 100);
        for (int fail = 1; fail <= most; fail += 3)
            CHECK_EQ(run_on_device(sparse_main, 4, DS_F32, fail, &calls), DS_ERR_DEVICE);
    }
    TEST(rows_without_kernels) { /* whole, with the same sums */
        device d;
        ds_comm_desc desc;
        ds_comm *comm = NULL;
        const ds_comm_sparse room = ds_comm_sparse_sizes(1, 2, 4, DS_F32, 1);
        void *table = NULL, *host = malloc(room.host_bytes);
        bool sparse = true;
        CHECK(device_make(&d) == 0);
        desc = device_desc(&d, 1, 0);
        CHECK(ds_comm_create(&desc, &comm, NULL) == DS_OK);
        CHECK(device_alloc(&d, room.device_bytes, &table) == DS_OK);
        memset(reach(&d, table), 1, 32);
        CHECK_EQ(ds_comm_sparse_all_reduce_on(comm, table, 2, 4, DS_F32, DS_COMM_SUM, 1, table, host, &sparse, NULL),
                 DS_OK);
        CHECK(!sparse && reach(&d, table)[31] == 1);
        CHECK_EQ(ds_comm_sparse_all_reduce_on(comm, table, 2, 4, DS_F32, DS_COMM_MAX, 1, table, host, NULL, NULL),
                 DS_ERR_ARGUMENT);
        CHECK_EQ(ds_comm_sparse_all_reduce_on(comm, table, 2, 4, DS_F32, DS_COMM_SUM, 0, table, host, NULL, NULL),
                 DS_ERR_ARGUMENT);
        CHECK_EQ(ds_comm_sparse_all_reduce_on(comm, table, 2, 4, DS_F64, DS_COMM_SUM, 1, table, host, NULL, NULL),
                 DS_ERR_ARGUMENT);
        CHECK_HAS(ds_comm_error(comm)->message, "pieces of 1 row or more");
        ds_comm_destroy(comm);
        free(host);
        device_end(&d);
    }
    TEST(one_bit_on_device) {
        int calls = 0, most;
        for (int world = 1; world <= 4; world++) CHECK_EQ(run_on_device(one_bit_main, world, DS_F32, 0, &calls), DS_OK);
        most = calls;
        CHECK(most > 20);
        for (int fail = 1; fail <= most; fail += 3)
            CHECK_EQ(run_on_device(one_bit_main, 4, DS_F32, fail, &calls), DS_ERR_DEVICE);
    }
    TEST(quantized_without_kernels) {
        device d;
        ds_comm_desc desc;
        ds_comm *comm = NULL;
        float x[8] = {0};
        CHECK(device_make(&d) == 0);
        desc = device_desc(&d, 1, 0);
        CHECK(ds_comm_create(&desc, &comm, NULL) == DS_OK);
        CHECK_EQ(ds_comm_quantized_all_gather_on(comm, x, x, 8, DS_F32, 1, x, NULL), DS_ERR_UNSUPPORTED);
        CHECK_HAS(ds_comm_error(comm)->message, "lacks desc.device or desc.kernels");
        CHECK_EQ(ds_comm_quantized_reduce_scatter_on(comm, NULL, x, x, 8, DS_F32, 1, x, NULL), DS_ERR_UNSUPPORTED);
        CHECK_EQ(ds_comm_one_bit_all_reduce_on(comm, x, x, 0, x, x, x, NULL), DS_ERR_UNSUPPORTED);
        CHECK_HAS(ds_comm_error(comm)->message, "1-bit all-reduce on device memory: the communicator lacks");
        ds_comm_destroy(comm);
        desc = device_desc(&d, 1, 1);
        CHECK(ds_comm_create(&desc, &comm, NULL) == DS_OK);
        CHECK_EQ(ds_comm_one_bit_all_reduce_on(comm, x, x, 0, x, x, x, NULL), DS_OK);
        CHECK_EQ(ds_comm_quantized_all_gather_on(comm, x, x, 8, DS_F64, 1, x, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_comm_quantized_all_gather_on(comm, x, x, 8, DS_F32, 0, x, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_comm_quantized_reduce_scatter_on(comm, NULL, x, x, 9, DS_F32, 3, x, NULL), DS_ERR_ARGUMENT);
        ds_comm_destroy(comm);
        device_end(&d);
    }
    TEST(no_device) {
        ds_comm *comm = NULL;
        ds_comm_desc desc;
        ds_comm_call call;
        float x = 1;
        memset(&desc, 0, sizeof desc);
        CHECK(ds_comm_create(&desc, &comm, NULL) == DS_OK);
        memset(&call, 0, sizeof call);
        call.kind = DS_COMM_ALL_REDUCE;
        call.in = call.out = &x;
        call.count = 1;
        call.on_device = true;
        CHECK_EQ(ds_comm_run(comm, &call), DS_ERR_ARGUMENT);
        CHECK_HAS(ds_comm_error(comm)->message, "desc.device");
        ds_comm_destroy(comm);
    }
    unlink(library);
    return test_end();
}
