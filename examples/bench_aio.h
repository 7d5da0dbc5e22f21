/* bench_aio.h - ds bench aio: the store of ds_offload.h beside fio at the same settings, in the same folder and run; and an
   optimizer's step from the disk beside its reading and writing alone and its arithmetic alone. Part of ds.c. */
#ifndef BENCH_AIO_H
#define BENCH_AIO_H
#include "ds_zero.h"
#include <sys/mman.h>
#include <sys/resource.h>

typedef struct aio_case {
    const char *folder, *fio;
    size_t bytes, block, depth, threads;
    bool single, no_overlap;
    char *memory;
} aio_case;

typedef struct aio_result {
    double write, read; /* bytes per second */
    double cpu;         /* seconds of a core per 1e9 bytes */
    ds_offload_stats stats;
} aio_result;

static double aio_cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* Memory of `bytes` that repeats the same few pages, as many as fio moves its data through: depth x block for each thread. */
static char *aio_memory(const aio_case *c, size_t bytes) {
    size_t part = c->depth * c->threads * c->block, at = 0;
    int fd = memfd_create("ds_bench", MFD_CLOEXEC);
    char *memory = MAP_FAILED;
    if (part > bytes) part = bytes;
    if (fd >= 0 && ftruncate(fd, (off_t)part) == 0)
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (; memory != MAP_FAILED && at < bytes; at += part)
        if (mmap(memory + at, bytes - at < part ? bytes - at : part, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                 0) == MAP_FAILED) {
            munmap(memory, bytes);
            memory = MAP_FAILED;
        }
    if (fd >= 0) close(fd);
    for (size_t i = 0; memory != MAP_FAILED && i < part; i++) memory[i] = (char)(i * 2654435761u >> 13);
    return memory == MAP_FAILED ? NULL : memory;
}

/* One pass of writing and one of reading, each better than what `r` has; the first pass over a new file is not counted. */
static ds_status aio_passes(ds_offload *store, ds_offload_id id, const aio_case *c, bool count, aio_result *r) {
    for (int read = 0; read < 2; read++) {
        double cpu = aio_cpu(), start = seconds(), took;
        ds_status status = read ? ds_offload_read(store, id, 0, c->bytes, c->memory)
                                : ds_offload_write(store, id, 0, c->bytes, c->memory);
        double *best = read ? &r->read : &r->write;
        took = seconds() - start;
        cpu = (aio_cpu() - cpu) / ((double)c->bytes * 1e-9);
        if (status) return status;
        if (!count) continue;
        if ((double)c->bytes / took > *best) *best = (double)c->bytes / took;
        if (r->cpu == 0.0 || cpu < r->cpu) r->cpu = cpu;
    }
    ds_offload_get_stats(store, &r->stats);
    return DS_OK;
}

static ds_status aio_open(const aio_case *c, ds_offload **store, ds_offload_id *id, ds_error *error) {
    ds_offload_desc d;
    ds_status status;
    memset(&d, 0, sizeof d);
    d.folder = c->folder;
    d.block_size = c->block;
    d.queue_depth = (unsigned)c->depth;
    d.thread_count = (unsigned)c->threads;
    d.single_submit = c->single;
    d.no_overlap = c->no_overlap;
    d.timeout = -1;
    status = ds_offload_create(&d, store, error);
    if (status) return status;
    status = ds_offload_add(*store, "bench", c->bytes, DS_OFFLOAD_NVME, id);
    if (status) *error = *ds_offload_error(*store);
    return status;
}

/* Bytes per second that fio reaches, 0 when it is not there. Its file stays between passes, as the store's does. */
static double aio_fio(const aio_case *c, bool read) {
    char command[1200], line[512];
    double best = 0.0;
    FILE *pipe;
    snprintf(command, sizeof command,
             "'%s' --name=ds --filename='%s/ds_bench_fio.%d' --rw=%s --bs=%zu --iodepth=%zu --thread --numjobs=%zu "
             "--size=%zu --offset_increment=%zu --ioengine=libaio --direct=%d --overwrite=1 --group_reporting "
             "--iodepth_batch_submit=%zu --output-format=json 2>/dev/null",
             c->fio, c->folder, (int)getpid(), read ? "read" : "write", c->block, c->depth, c->threads,
             c->bytes / c->threads, c->bytes / c->threads, 1, c->single ? (size_t)1 : c->depth);
    if (!(pipe = popen(command, "r"))) return 0.0;
    while (fgets(line, sizeof line, pipe)) {
        const char *key = strstr(line, "\"bw_bytes\" : ");
        double rate = key ? atof(key + strlen("\"bw_bytes\" : ")) : 0.0;
        if (rate > best) best = rate;
    }
    return pclose(pipe) == 0 ? best : 0.0;
}

static void aio_remove(const aio_case *c) {
    char path[400];
    snprintf(path, sizeof path, "%.300s/ds_bench_fio.%d", c->folder, (int)getpid());
    unlink(path);
}

/* Every block size, depth and thread count; the fastest for a write and a read is the section to use. */
static int aio_tune(aio_case c, bool json) {
    static const size_t blocks[] = {128 << 10, 256 << 10, 512 << 10, 1 << 20, 4 << 20, 8 << 20};
    static const size_t depths[] = {4, 8, 16, 32, 64}, threads[] = {1, 2, 4};
    aio_case best = c;
    double least = 0.0;
    if (!json) printf("%-10s %-6s %-8s %12s %12s\n", "block_size", "depth", "threads", "write MB/s", "read MB/s");
    for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++)
        for (size_t q = 0; q < sizeof depths / sizeof *depths; q++)
            for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
                aio_result r;
                ds_offload *store = NULL;
                ds_offload_id id;
                ds_error error = {DS_OK, ""};
                double took;
                ds_status status;
                memset(&r, 0, sizeof r);
                c.block = blocks[b];
                c.depth = depths[q];
                c.threads = threads[t];
                status = aio_open(&c, &store, &id, &error);
                for (int pass = 0; pass < 3 && !status; pass++)
                    if ((status = aio_passes(store, id, &c, pass > 0, &r))) error = *ds_offload_error(store);
                ds_offload_destroy(store);
                if (status) return fprintf(stderr, "ds bench: %s\n", error.message), ENVIRONMENT;
                took = 1.0 / r.write + 1.0 / r.read;
                if (!json)
                    printf("%-10zu %-6zu %-8zu %12.0f %12.0f\n", c.block, c.depth, c.threads, r.write * 1e-6,
                           r.read * 1e-6);
                if (least > 0.0 && took > least * 0.98) continue; /* within noise the smaller one, which came first */
                least = took;
                best = c;
            }
    printf("%s\"aio\": {\"block_size\": %zu, \"queue_depth\": %zu, \"thread_count\": %zu, \"single_submit\": false, "
           "\"overlap_events\": true}%s\n",
           json ? "{" : "", best.block, best.depth, best.threads, json ? "}" : "");
    return finish(FINE);
}

/* ---- an optimizer's step from the disk ---- */

/* The best step of an engine with one tensor of `count` elements in bf16 under AdamW, after one that is not counted. */
static ds_status aio_step(const aio_case *c, size_t count, const char *device, int rounds, double *best,
                          ds_error *error) {
    char text[1200];
    ds_config_options options;
    ds_config *config = NULL;
    ds_zero_param p;
    ds_zero_desc d;
    ds_zero *z = NULL;
    ds_status status;
    void *slot = NULL, *gradient;
    memset(&options, 0, sizeof options);
    memset(&p, 0, sizeof p);
    memset(&d, 0, sizeof d);
    options.world_size = 1;
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"bf16\": {\"enabled\": "
             "true}, \"zero_optimization\": {\"stage\": 3, \"sub_group_size\": 4194304, \"reduce_bucket_size\": "
             "4194304, \"offload_optimizer\": {\"device\": \"%s\", \"nvme_path\": \"%.300s\", \"pipeline_read\": true, "
             "\"pipeline_write\": true}}, \"aio\": {\"block_size\": %zu, \"queue_depth\": %zu, \"thread_count\": %zu}}",
             device, c->folder, c->block, c->depth, c->threads);
    if ((status = ds_config_parse(text, strlen(text), &options, &config, error))) return status;
    p.name = "weights";
    p.dims = 1;
    p.shape[0] = count;
    p.dtype = DS_BF16;
    p.slot = &slot;
    d.config = config;
    d.params = &p;
    d.n_params = 1;
    gradient = calloc(count, 2);
    *best = 0.0;
    status = gradient ? ds_zero_create(&d, &z, error) : DS_ERR_MEMORY;
    for (int round = 0; round <= rounds && !status; round++) {
        double start;
        status = ds_zero_begin(z, DS_ZERO_TRAIN);
        if (!status) status = ds_zero_grad(z, 0, gradient, NULL);
        if (!status) status = ds_zero_end(z);
        start = seconds();
        if (!status) status = ds_zero_step(z, NULL);
        if (!status && round && (*best == 0.0 || seconds() - start < *best)) *best = seconds() - start;
        if (status) *error = *ds_zero_error(z);
    }
    ds_zero_destroy(z);
    ds_config_free(config);
    free(gradient);
    return status;
}

/* What the step above reads and writes, and nothing else: sub-group by sub-group, writes behind reads. */
static ds_status aio_stream(const aio_case *c, size_t count, int rounds, double *best, ds_error *error) {
    size_t sub = 4194304 < count ? 4194304 : count, n = (count + sub - 1) / sub;
    aio_case all = *c;
    ds_offload *store = NULL;
    ds_offload_id id;
    ds_status status;
    all.bytes = n * sub * 14;
    *best = 0.0;
    if (posix_memalign((void **)&all.memory, 4096, 2 * sub * 14)) return DS_ERR_MEMORY;
    memset(all.memory, 0, 2 * sub * 14);
    status = aio_open(&all, &store, &id, error);
    for (int round = 0; round <= rounds && !status; round++) {
        double start = seconds();
        ds_offload_ticket read[2] = {0, 0}, write[2] = {0, 0};
        for (size_t g = 0; g < n + 1 && !status; g++) {
            size_t k = g & 1;
            if (write[k]) status = ds_offload_wait(store, write[k]);
            if (!status && g < n)
                status = ds_offload_start_read(store, id, g * sub * 14, sub * 14, all.memory + k * sub * 14, &read[k]);
            if (!status && g > 0) status = ds_offload_wait(store, read[!k]);
            if (!status && g > 0)
                status = ds_offload_start_write(store, id, (g - 1) * sub * 14, sub * 12, all.memory + !k * sub * 14,
                                                &write[!k]);
        }
        if (!status && write[(n - 1) & 1]) status = ds_offload_wait(store, write[(n - 1) & 1]);
        if (status) *error = *ds_offload_error(store);
        if (round && (*best == 0.0 || seconds() - start < *best)) *best = seconds() - start;
    }
    ds_offload_destroy(store);
    free(all.memory);
    return status;
}

static int aio_steps(const aio_case *c, int rounds, bool json) {
    size_t count = c->bytes / 14 / DS_GRAIN * DS_GRAIN;
    double disk = 0.0, update = 0.0, io = 0.0, larger;
    ds_error error = {DS_OK, ""};
    ds_status status = DS_OK;
    for (int round = 0; round < rounds && !status; round++) { /* in turn, so that all see the same disk */
        double t[3];
        status = aio_step(c, count, "nvme", 1, &t[0], &error);
        if (!status) status = aio_step(c, count, "cpu", 1, &t[1], &error);
        if (!status) status = aio_stream(c, count, 1, &t[2], &error);
        if (status) break;
        if (round == 0 || t[0] < disk) disk = t[0];
        if (round == 0 || t[1] < update) update = t[1];
        if (round == 0 || t[2] < io) io = t[2];
    }
    if (status) return fprintf(stderr, "ds bench: %s\n", error.message), ENVIRONMENT;
    larger = io > update ? io : update;
    if (json)
        printf("{\"elements\": %zu, \"step_s\": %.4f, \"update_s\": %.4f, \"io_s\": %.4f, \"ratio\": %.3f}\n", count,
               disk, update, io, disk / larger);
    else
        printf("AdamW step of %zu elements from the disk %.3f s; update alone %.3f s, reads and writes alone %.3f s: "
               "%.2f of the larger\n",
               count, disk, update, io, disk / larger);
    return finish(FINE);
}

static int bench_aio(arguments *a) {
    const char *mib = option(a, "--mib", "512"), *block = option(a, "--block-size", "1048576");
    const char *depth = option(a, "--queue-depth", "8"), *threads = option(a, "--threads", "1");
    const char *count = option(a, "--rounds", "3");
    bool json = flag(a, "--json"), tune = flag(a, "--tune"), step = flag(a, "--step");
    aio_case c;
    aio_result r;
    double fio[2] = {0.0, 0.0};
    ds_offload *store = NULL;
    ds_offload_id id;
    ds_error error = {DS_OK, ""};
    ds_status status;
    size_t rounds;
    int used;
    memset(&c, 0, sizeof c);
    memset(&r, 0, sizeof r);
    c.folder = option(a, "--folder", ".");
    c.fio = option(a, "--fio", "fio");
    c.single = flag(a, "--single-submit");
    c.no_overlap = flag(a, "--no-overlap");
    if ((used = operands(a, 1))) return used;
    if (!mib || !number(mib, &c.bytes) || !c.bytes || c.bytes > 1 << 16 || !block || !number(block, &c.block) ||
        !c.block || !depth || !number(depth, &c.depth) || !c.depth || c.depth > 65536 || !threads ||
        !number(threads, &c.threads) || !c.threads || c.threads > 1024 || !count || !number(count, &rounds) ||
        !rounds || rounds > 1000 || !c.folder || !c.fio)
        return usage(a, "a number is wrong", NULL);
    c.block = (c.block + 4095) / 4096 * 4096;
    c.bytes = (c.bytes << 20) / (c.block * c.threads) * (c.block * c.threads);
    if (c.bytes == 0) return usage(a, "--mib holds no block for each thread", NULL);
    if (step) return aio_steps(&c, (int)rounds, json);
    if (!(c.memory = aio_memory(&c, c.bytes))) return fprintf(stderr, "ds bench: out of memory\n"), ENVIRONMENT;
    if (tune) {
        used = aio_tune(c, json);
        munmap(c.memory, c.bytes);
        return used;
    }
    status = aio_open(&c, &store, &id, &error);
    for (size_t round = 0; round <= rounds && !status; round++) {
        if ((status = aio_passes(store, id, &c, round > 0, &r))) error = *ds_offload_error(store);
        for (int read = 0; read < 2; read++) {
            double rate = aio_fio(&c, read);
            if (round && rate > fio[read]) fio[read] = rate;
        }
    }
    aio_remove(&c);
    ds_offload_destroy(store);
    munmap(c.memory, c.bytes);
    if (status) return fprintf(stderr, "ds bench: %s\n", error.message), ENVIRONMENT;
    if (json)
        printf("{\"engine\": \"%s\", \"direct\": %s, \"write\": %.0f, \"read\": %.0f, \"fio_write\": %.0f, "
               "\"fio_read\": %.0f, \"write_ratio\": %.3f, \"read_ratio\": %.3f, \"cpu_s_per_gb\": %.4f}\n",
               ds_offload_engine_name(r.stats.engine), r.stats.direct ? "true" : "false", r.write, r.read, fio[0],
               fio[1], fio[0] > 0 ? r.write / fio[0] : 0.0, fio[1] > 0 ? r.read / fio[1] : 0.0, r.cpu);
    else {
        printf("%s, O_DIRECT %s, block_size %zu, queue_depth %zu, thread_count %zu\n",
               ds_offload_engine_name(r.stats.engine), r.stats.direct ? "in force" : "refused", c.block, c.depth,
               c.threads);
        for (int read = 0; read < 2; read++) {
            double own = read ? r.read : r.write;
            printf("%-6s %8.0f MB/s", read ? "read" : "write", own * 1e-6);
            if (fio[read] > 0.0)
                printf("   fio %8.0f MB/s   %.3f of it\n", fio[read] * 1e-6, own / fio[read]);
            else
                printf("   fio: not found (--fio PATH)\n");
        }
        printf("cpu    %8.1f %% of a core per GB/s\n", r.cpu * 100.0);
    }
    return finish(FINE);
}
#endif
