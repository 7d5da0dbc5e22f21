/* bench_checkpoint.h - ds bench checkpoint: saves and loads beside the disk's own speed in the same run; included by ds.c */
typedef struct bench_disk {
    char folder[256], path[300], shard[300];
    float *data;
    size_t bytes;
} bench_disk;

/* Takes a file out of the page cache, so that reading it is reading the disk. */
static void bench_forget(const char *path) {
    const int fd = open(path, O_RDONLY);
    if (fd < 0) return;
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}
/* Seconds for a plain file of the same bytes: written in pieces of 1 MiB and synced, or read. 0 when it fails. */
static double bench_plain(const bench_disk *b, bool write_it) {
    const int fd = open(b->path, write_it ? O_CREAT | O_TRUNC | O_WRONLY : O_RDONLY, 0666);
    const double start = seconds();
    bool good = fd >= 0;
    if (good && write_it) good = posix_fallocate(fd, 0, (off_t)b->bytes) == 0;
    for (size_t at = 0; at < b->bytes && good; at += 1 << 20)
        good = (write_it ? pwrite(fd, (char *)b->data + at, 1 << 20, (off_t)at)
                         : pread(fd, (char *)b->data + at, 1 << 20, (off_t)at)) == 1 << 20;
    if (good && write_it) good = fsync(fd) == 0;
    if (fd >= 0) close(fd);
    return good ? seconds() - start : 0;
}
/* Seconds of a training step's arithmetic, on memory of its own. */
static double bench_step(void) {
    static float work[1 << 16];
    const double start = seconds();
    for (int k = 0; k < 100; k++)
        for (size_t i = 0; i < 1 << 16; i++) work[i] = work[i] * 0.999f + (float)k;
    return seconds() - start;
}
/* A save; in the background steps go on beside it: *stall gets the seconds that begin, commit and finish took, *step the
   mean of a step meanwhile. */
static ds_status bench_save(const bench_disk *b, bool background, double *took, double *stall, double *step,
                            ds_error *error) {
    const size_t shape[1] = {b->bytes / sizeof(float)};
    ds_checkpoint_tensor t = {"t", DS_F32, shape, 1, 0, shape[0], b->data, NULL, NULL};
    ds_checkpoint_desc desc;
    ds_checkpoint_writer *w = NULL;
    ds_status status;
    double inside = 0;
    int steps = 0;
    memset(&desc, 0, sizeof desc);
    desc.folder = b->folder;
    desc.background = background;
    *took = seconds();
    status = ds_checkpoint_begin(&desc, "bench", &w, error);
    if (status) return status;
    ds_checkpoint_add(w, &t);
    status = ds_checkpoint_commit(w, error);
    for (; background && !status && !ds_checkpoint_done(w); steps++) inside += bench_step();
    if (background && !status) status = ds_checkpoint_finish(w, error);
    *took = seconds() - *took;
    *stall = *took - inside;
    *step = steps ? inside / steps : 0;
    return status;
}
static ds_status bench_load(const bench_disk *b, double *took, ds_error *error) {
    const size_t count = b->bytes / sizeof(float);
    ds_checkpoint_desc desc;
    ds_checkpoint *c = NULL;
    ds_status status;
    memset(&desc, 0, sizeof desc);
    desc.folder = b->folder;
    *took = seconds();
    status = ds_checkpoint_open(&desc, NULL, &c, error);
    for (size_t at = 0; at < count && !status; at += 65536) { /* as an engine of another world size asks */
        status = ds_checkpoint_read(c, "t", at, count - at < 65536 ? count - at : 65536, DS_F32, b->data + at);
        if (status) *error = *ds_checkpoint_error(c);
    }
    ds_checkpoint_close(c);
    *took = seconds() - *took;
    return status;
}
enum { WRITE, SAVE, READ_DISK, LOAD_DISK, READ_CACHED, LOAD_CACHED, STEP, STEP_BESIDE, STALL, BENCH_TIMES };
static ds_status bench_round(const bench_disk *b, double t[BENCH_TIMES], ds_error *error) {
    double none[3];
    ds_status status = bench_save(b, false, &t[SAVE], &none[0], &none[1], error);
    bench_forget(b->shard);
    if (!status) status = bench_load(b, &t[LOAD_DISK], error);
    if (!status) status = bench_load(b, &t[LOAD_CACHED], error);
    t[WRITE] = bench_plain(b, true);
    bench_forget(b->path);
    t[READ_DISK] = bench_plain(b, false);
    t[READ_CACHED] = bench_plain(b, false);
    t[STEP] = 0;
    for (int i = 0; i < 20; i++) t[STEP] += bench_step() / 20;
    if (!status) status = bench_save(b, true, &none[0], &t[STALL], &t[STEP_BESIDE], error);
    return status;
}
static int bench_checkpoint(arguments *a) {
    const char *folder = option(a, "--folder", "."), *size = option(a, "--mib", "256");
    bool json = flag(a, "--json");
    int used = operands(a, 1);
    double best[BENCH_TIMES] = {0};
    static const char *const names[6] = {"plain write and fsync", "save",         "plain read (disk)", "load (disk)",
                                         "plain read (cached)",   "load (cached)"};
    static const char *const left[] = {"bench/rank-00000.safetensors", "bench/manifest.json", "latest", "plain"};
    ds_error error = {DS_OK, ""};
    ds_status status = DS_OK;
    bench_disk b;
    size_t mib;
    if (used) return used;
    if (!folder || !number(size, &mib) || !mib || mib > 1 << 16) return usage(a, "--folder or --mib is wrong", NULL);
    b.bytes = mib << 20;
    snprintf(b.folder, sizeof b.folder, "%.200s/ds_bench.%d", folder, (int)getpid());
    snprintf(b.path, sizeof b.path, "%s/plain", b.folder);
    snprintf(b.shard, sizeof b.shard, "%s/%s", b.folder, left[0]);
    b.data = (float *)malloc(b.bytes);
    if (!b.data) return fprintf(stderr, "ds bench: out of memory\n"), ENVIRONMENT;
    for (size_t i = 0; i < b.bytes / sizeof(float); i++) b.data[i] = (float)i;
    for (int round = 0; round < 3 && !status; round++) {
        double t[BENCH_TIMES];
        status = bench_round(&b, t, &error);
        for (int k = 0; k < BENCH_TIMES; k++)
            if (best[k] <= 0 || t[k] < best[k]) best[k] = t[k];
    }
    for (int i = 0; i < 4; i++) {
        snprintf(b.path, sizeof b.path, "%s/%s", b.folder, left[i]);
        unlink(b.path);
    }
    snprintf(b.path, sizeof b.path, "%s/bench", b.folder);
    rmdir(b.path);
    rmdir(b.folder);
    free(b.data);
    if (status || best[WRITE] <= 0 || best[READ_DISK] <= 0)
        return fprintf(stderr, "ds bench: %s\n", status ? error.message : "the plain file failed"), ENVIRONMENT;
    if (json)
        printf("{\"mib\": %zu, \"write_s\": %.6f, \"save_s\": %.6f, \"read_s\": %.6f, \"load_s\": %.6f, "
               "\"save_speed_ratio\": %.4f, \"load_time_ratio\": %.4f, \"load_cached_ratio\": %.4f, "
               "\"background_step_ratio\": %.4f, \"background_stall_s\": %.6f}\n",
               mib, best[WRITE], best[SAVE], best[READ_DISK], best[LOAD_DISK], best[WRITE] / best[SAVE],
               best[LOAD_DISK] / best[READ_DISK], best[LOAD_CACHED] / best[READ_CACHED], best[STEP_BESIDE] / best[STEP],
               best[STALL]);
    for (int k = 0; k < 6 && !json; k++) printf("%-24s %10.1f MiB/s\n", names[k], (double)mib / best[k]);
    if (!json)
        printf("save: %.2f of the disk's speed; load: %.2f of a read's time from the disk, %.2f from the cache\n"
               "in the background: steps beside it take %.3f times as long, copying and committing %.3f s\n",
               best[WRITE] / best[SAVE], best[LOAD_DISK] / best[READ_DISK], best[LOAD_CACHED] / best[READ_CACHED],
               best[STEP_BESIDE] / best[STEP], best[STALL]);
    return finish(FINE);
}
