/* bench_aio.h - ds bench aio: the store of ds_offload.h beside fio at the same settings, in the same folder and run; and an
   optimizer's step from the disk beside its reading and writing alone and its arithmetic alone. Part of ds.c. */
#ifndef BENCH_AIO_H
#define BENCH_AIO_H
#include "ds_zero.h"
#include <sys/resource.h>

typedef struct aio_case {
    const char *folder, *fio;
    size_t bytes, block, depth, threads;
    bool single, no_overlap, small_pages;
    char *memory;
} aio_case;

enum { AIO_ROUNDS = 1000 }; /* at most */

static double aio_cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* Memory as an engine's tensors have it: as large as what is moved, in huge pages unless they are not wanted. */
static char *aio_memory(size_t bytes, bool small_pages) {
    void *memory = NULL;
    if (posix_memalign(&memory, 4096, bytes)) return NULL;
    if (!small_pages) ds_offload_huge(memory, bytes);
    for (size_t i = 0; i < bytes; i++) ((char *)memory)[i] = (char)(i * 2654435761u >> 13);
    return (char *)memory;
}

static int aio_order(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double aio_median(double *rates, size_t count) {
    qsort(rates, count, sizeof *rates, aio_order);
    return (rates[(count - 1) / 2] + rates[count / 2]) / 2;
}

/* One pass of writing or of reading; *rate: bytes per second. */
static ds_status aio_pass(ds_offload *store, ds_offload_id id, const aio_case *c, bool read, double *rate,
                          double *cpu_per_gb) {
    double cpu = aio_cpu(), start = seconds();
    ds_status status =
        read ? ds_offload_read(store, id, 0, c->bytes, c->memory) : ds_offload_write(store, id, 0, c->bytes, c->memory);
    *rate = (double)c->bytes / (seconds() - start);
    *cpu_per_gb = (aio_cpu() - cpu) / ((double)c->bytes * 1e-9);
    return status;
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
                ds_offload *store = NULL;
                ds_offload_id id;
                ds_error error = {DS_OK, ""};
                double rate, cpu, took, best_rate[2] = {0.0, 0.0};
                ds_status status;
                c.block = blocks[b];
                c.depth = depths[q];
                c.threads = threads[t];
                status = aio_open(&c, &store, &id, &error);
                for (int pass = 0; pass < 6 && !status;
                     pass++) { /* the first of each kind, on a new file, not counted */
                    bool read = pass & 1;
                    if ((status = aio_pass(store, id, &c, read, &rate, &cpu))) error = *ds_offload_error(store);
                    if (pass > 1 && rate > best_rate[read]) best_rate[read] = rate;
                }
                ds_offload_destroy(store);
                if (status) return fprintf(stderr, "ds bench: %s\n", error.message), ENVIRONMENT;
                took = 1.0 / best_rate[0] + 1.0 / best_rate[1];
                if (!json)
                    printf("%-10zu %-6zu %-8zu %12.0f %12.0f\n", c.block, c.depth, c.threads, best_rate[0] * 1e-6,
                           best_rate[1] * 1e-6);
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
    ds_offload_huge(all.memory, 2 * sub * 14);
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
    const char *count = option(a, "--rounds", "5");
    bool json = flag(a, "--json"), tune = flag(a, "--tune"), step = flag(a, "--step");
    static double own[2][AIO_ROUNDS], fio[2][AIO_ROUNDS], cpu[AIO_ROUNDS];
    double rate[2], peer[2], burden, spent;
    aio_case c;
    ds_offload_stats stats;
    ds_offload *store = NULL;
    ds_offload_id id;
    ds_error error = {DS_OK, ""};
    ds_status status;
    size_t rounds;
    int used;
    memset(&c, 0, sizeof c);
    memset(&stats, 0, sizeof stats);
    c.folder = option(a, "--folder", ".");
    c.fio = option(a, "--fio", "fio");
    c.single = flag(a, "--single-submit");
    c.no_overlap = flag(a, "--no-overlap");
    c.small_pages = flag(a, "--small-pages");
    if ((used = operands(a, 1))) return used;
    if (!mib || !number(mib, &c.bytes) || !c.bytes || c.bytes > 1 << 16 || !block || !number(block, &c.block) ||
        !c.block || !depth || !number(depth, &c.depth) || !c.depth || c.depth > 65536 || !threads ||
        !number(threads, &c.threads) || !c.threads || c.threads > 1024 || !count || !number(count, &rounds) ||
        !rounds || rounds > AIO_ROUNDS || !c.folder || !c.fio)
        return usage(a, "a number is wrong", NULL);
    c.block = (c.block + 4095) / 4096 * 4096;
    c.bytes = (c.bytes << 20) / (c.block * c.threads) * (c.block * c.threads);
    if (c.bytes == 0) return usage(a, "--mib holds no block for each thread", NULL);
    if (step) return aio_steps(&c, (int)rounds, json);
    if (!(c.memory = aio_memory(c.bytes, c.small_pages)))
        return fprintf(stderr, "ds bench: out of memory\n"), ENVIRONMENT;
    if (tune) {
        used = aio_tune(c, json);
        free(c.memory);
        return used;
    }
    status = aio_open(&c, &store, &id, &error);
    for (size_t round = 0; round <= rounds && !status; round++) /* side by side; the first, on new files, not counted */
        for (int read = 0; read < 2 && !status; read++) {
            size_t k = round ? round - 1 : 0;
            status = aio_pass(store, id, &c, read, &own[read][k], &spent);
            if (status) error = *ds_offload_error(store);
            fio[read][k] = aio_fio(&c, read);
            cpu[k] = read ? (cpu[k] + spent) / 2 : spent;
        }
    ds_offload_get_stats(store, &stats);
    aio_remove(&c);
    ds_offload_destroy(store);
    free(c.memory);
    if (status) return fprintf(stderr, "ds bench: %s\n", error.message), ENVIRONMENT;
    for (int read = 0; read < 2; read++) {
        rate[read] = aio_median(own[read], rounds);
        peer[read] = aio_median(fio[read], rounds);
    }
    burden = aio_median(cpu, rounds);
    if (json)
        printf("{\"engine\": \"%s\", \"direct\": %s, \"write\": %.0f, \"read\": %.0f, \"fio_write\": %.0f, "
               "\"fio_read\": %.0f, \"write_ratio\": %.3f, \"read_ratio\": %.3f, \"cpu_s_per_gb\": %.4f}\n",
               ds_offload_engine_name(stats.engine), stats.direct ? "true" : "false", rate[0], rate[1], peer[0],
               peer[1], peer[0] > 0 ? rate[0] / peer[0] : 0.0, peer[1] > 0 ? rate[1] / peer[1] : 0.0, burden);
    else {
        printf("%s, O_DIRECT %s, block_size %zu, queue_depth %zu, thread_count %zu; medians of %zu rounds\n",
               ds_offload_engine_name(stats.engine), stats.direct ? "in force" : "refused", c.block, c.depth, c.threads,
               rounds);
        for (int read = 0; read < 2; read++) {
            printf("%-6s %8.0f MB/s", read ? "read" : "write", rate[read] * 1e-6);
            if (peer[read] > 0.0)
                printf("   fio %8.0f MB/s   %.3f of it\n", peer[read] * 1e-6, rate[read] / peer[read]);
            else
                printf("   fio: not found (--fio PATH)\n");
        }
        printf("cpu    %8.1f %% of a core per GB/s\n", burden * 100.0);
    }
    return finish(FINE);
}
#endif
