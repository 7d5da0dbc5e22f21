/* bench_checkpoint.h - ds bench checkpoint: saves and loads beside the disk's own speed, and fio's, in the same run;
   included by ds.c */
#define BENCH_TENSORS 4
#define BENCH_ROUNDS  99
#define BENCH_RANKS   3 /* that load what one saved */
typedef struct bench_disk {
    char folder[256], path[300], shard[300];
    const char *fio;
    float *data;
    size_t bytes;
} bench_disk;

/* Lets the disk come to rest: nobody pays for blocks that another one freed, or for what another one has written. */
static void bench_pause(void) {
    const struct timespec rest = {0, 500000000};
    sync();
    (void)nanosleep(&rest, NULL);
}
/* Takes a file out of the page cache, so that reading it is reading the disk. */
static void bench_forget(const char *path) {
    const int fd = open(path, O_RDONLY);
    bench_pause();
    if (fd < 0) return;
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}
/* Removes what stands in the folder. */
static void bench_clear(const bench_disk *b) {
    static const char *const names[] = {"bench/rank-00000.safetensors", "bench/manifest.json", "bench", "latest",
                                        "plain"};
    char path[300];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", b->folder, names[i]);
        (void)remove(path);
    }
    bench_pause();
}
/* Seconds for a plain file of the same bytes: written in pieces of 1 MiB and synced, or as many read of any file. 0 when it
   fails. */
static double bench_plain(const bench_disk *b, const char *path, bool write_it) {
    const int fd = open(path, write_it ? O_CREAT | O_TRUNC | O_WRONLY : O_RDONLY, 0666);
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
/* Seconds that fio takes for a new file of the same bytes with a sync at its end, through the page cache or past it; 0 when
   it is not there. */
static double bench_fio(const bench_disk *b, bool direct) {
    char command[1200], line[512];
    double rate = 0;
    FILE *pipe;
    bench_clear(b);
    snprintf(
        command, sizeof command,
        "'%.300s' --name=ds --filename='%s/fio' --rw=write --bs=1M --size=%zu --ioengine=%s --iodepth=%d --direct=%d "
        "--end_fsync=1 --unlink=1 --output-format=json 2>/dev/null",
        b->fio, b->folder, b->bytes, direct ? "libaio" : "psync", direct ? 16 : 1, direct);
    if (!(pipe = popen(command, "r"))) return 0;
    while (fgets(line, sizeof line, pipe)) {
        const char *key = strstr(line, "\"bw_bytes\" : ");
        const double bytes = key ? atof(key + strlen("\"bw_bytes\" : ")) : 0;
        if (bytes > rate) rate = bytes;
    }
    return pclose(pipe) == 0 && rate > 0 ? (double)b->bytes / rate : 0;
}
/* A training step's arithmetic, on memory of its own: adds its seconds, and those that its thread had a core for. */
typedef struct bench_steps {
    double wall, cpu;
    int count;
} bench_steps;
static double bench_cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
static void bench_step(bench_steps *s) {
    static float work[1 << 16];
    const double wall = seconds(), cpu = bench_cpu();
    for (int k = 0; k < 100; k++)
        for (size_t i = 0; i < 1 << 16; i++) work[i] = work[i] * 0.999f + (float)k;
    s->wall += seconds() - wall;
    s->cpu += bench_cpu() - cpu;
    s->count++;
}
/* A save; in the background steps go on beside it: *stall gets the seconds that begin, commit and finish took. */
static ds_status bench_save(const bench_disk *b, bool background, double *took, double *stall, bench_steps *steps,
                            ds_error *error) {
    static const char *const names[BENCH_TENSORS] = {"a", "b", "c", "d"};
    const size_t shape[1] = {b->bytes / sizeof(float) / BENCH_TENSORS};
    ds_checkpoint_desc desc;
    ds_checkpoint_writer *w = NULL;
    ds_status status;
    memset(&desc, 0, sizeof desc);
    desc.folder = b->folder;
    desc.background = background;
    *took = seconds();
    status = ds_checkpoint_begin(&desc, "bench", &w, error);
    if (status) return status;
    for (size_t i = 0; i < BENCH_TENSORS; i++) {
        ds_checkpoint_tensor t = {names[i], DS_F32, shape, 1, 0, shape[0], b->data + i * shape[0], NULL, NULL};
        ds_checkpoint_add(w, &t);
    }
    status = ds_checkpoint_commit(w, error);
    memset(steps, 0, sizeof *steps);
    while (background && !status && !ds_checkpoint_done(w)) bench_step(steps);
    if (background && !status) status = ds_checkpoint_finish(w, error);
    *took = seconds() - *took;
    *stall = *took - steps->wall;
    return status;
}
/* What the ranks of another world ask for, one after the other: a part of each tensor, which starts at a grain. */
static ds_status bench_load(const bench_disk *b, double *took, ds_error *error) {
    const size_t each = b->bytes / sizeof(float) / BENCH_TENSORS;
    const size_t part = (each / BENCH_RANKS / DS_GRAIN + 1) * DS_GRAIN;
    ds_checkpoint_desc desc;
    ds_status status = DS_OK;
    memset(&desc, 0, sizeof desc);
    desc.folder = b->folder;
    *took = seconds();
    for (size_t rank = 0; rank < BENCH_RANKS && !status; rank++) {
        ds_checkpoint *c = NULL;
        ds_checkpoint_info info;
        status = ds_checkpoint_open(&desc, NULL, &c, error);
        for (size_t i = 0; i < BENCH_TENSORS && !status; i++) {
            const size_t begin = rank * part, end = begin + part < each ? begin + part : each;
            status = ds_checkpoint_at(c, i, &info);
            if (!status)
                status = ds_checkpoint_read(c, info.name, begin, end - begin, DS_F32, b->data + i * each + begin);
            if (status) *error = *ds_checkpoint_error(c);
        }
        ds_checkpoint_close(c);
    }
    *took = seconds() - *took;
    return status;
}
enum {
    WRITE,
    SAVE,
    READ_DISK,
    LOAD_DISK,
    READ_CACHED,
    LOAD_CACHED,
    STEP,
    STEP_BESIDE,
    STEP_CPU,
    STEP_BESIDE_CPU,
    STALL,
    FIO,
    FIO_DIRECT,
    BENCH_TIMES
};
/* The save's file read as it is, and loaded; each round begins with the other one. The first reading is not counted: below the
   machine's own cache a virtual disk has another one, which is filled by it. */
static ds_status bench_reads(const bench_disk *b, size_t round, double t[BENCH_TIMES], ds_error *error) {
    ds_status status = DS_OK;
    bench_forget(b->shard);
    (void)bench_plain(b, b->shard, false);
    for (size_t turn = 0; turn < 2 && !status; turn++) {
        bench_forget(b->shard);
        if ((round + turn) % 2)
            t[READ_DISK] = bench_plain(b, b->shard, false);
        else
            status = bench_load(b, &t[LOAD_DISK], error);
    }
    t[READ_CACHED] = bench_plain(b, b->shard, false);
    return status ? status : bench_load(b, &t[LOAD_CACHED], error);
}
static ds_status bench_round(const bench_disk *b, size_t round, double t[BENCH_TIMES], ds_error *error) {
    double none;
    bench_steps alone, beside;
    ds_status status;
    t[FIO] = bench_fio(b, false);
    t[FIO_DIRECT] = bench_fio(b, true);
    bench_clear(b);
    status = bench_save(b, false, &t[SAVE], &none, &beside, error);
    if (!status) status = bench_reads(b, round, t, error);
    bench_clear(b);
    t[WRITE] = bench_plain(b, b->path, true);
    memset(&alone, 0, sizeof alone);
    while (alone.count < 200) bench_step(&alone);
    t[STEP] = alone.wall / alone.count;
    t[STEP_CPU] = alone.cpu / alone.count;
    bench_clear(b);
    if (!status) status = bench_save(b, true, &none, &t[STALL], &beside, error);
    t[STEP_BESIDE] = beside.wall / (beside.count ? beside.count : 1);
    t[STEP_BESIDE_CPU] = beside.cpu / (beside.count ? beside.count : 1);
    return status;
}
static int bench_checkpoint(arguments *a) {
    const char *folder = option(a, "--folder", "."), *size = option(a, "--mib", "256");
    const char *count = option(a, "--rounds", "5");
    const char *fio = option(a, "--fio", "fio");
    bool json = flag(a, "--json");
    int used = operands(a, 1);
    static double times[BENCH_TIMES][BENCH_ROUNDS];
    double median[BENCH_TIMES], fastest;
    static const char *const names[6] = {"plain write and fsync", "save",         "plain read (disk)", "load (disk)",
                                         "plain read (cached)",   "load (cached)"};
    ds_error error = {DS_OK, ""};
    ds_status status = DS_OK;
    bench_disk b;
    size_t mib, rounds;
    if (used) return used;
    if (!folder || !fio || !number(size, &mib) || mib < 4 || mib > 1 << 16 || !number(count, &rounds) || !rounds ||
        rounds > BENCH_ROUNDS)
        return usage(a, "--folder, --mib or --rounds is wrong", NULL);
    b.bytes = mib << 20;
    b.fio = fio;
    snprintf(b.folder, sizeof b.folder, "%.200s/ds_bench.%d", folder, (int)getpid());
    snprintf(b.path, sizeof b.path, "%s/plain", b.folder);
    snprintf(b.shard, sizeof b.shard, "%s/bench/rank-00000.safetensors", b.folder);
    (void)mkdir(b.folder, 0777); /* fio's file comes first; a save would make it */
    b.data = (float *)malloc(b.bytes);
    if (!b.data) return fprintf(stderr, "ds bench: out of memory\n"), ENVIRONMENT;
    for (size_t i = 0; i < b.bytes / sizeof(float); i++) b.data[i] = (float)i;
    for (size_t round = 0; round < rounds && !status; round++) {
        double t[BENCH_TIMES];
        status = bench_round(&b, round, t, &error);
        for (int k = 0; k < BENCH_TIMES; k++) times[k][round] = t[k];
    }
    for (int k = 0; k < BENCH_TIMES; k++) median[k] = aio_median(times[k], rounds);
    fastest = median[FIO_DIRECT] <= 0 || (median[FIO] > 0 && median[FIO] < median[FIO_DIRECT]) ? median[FIO]
                                                                                               : median[FIO_DIRECT];
    bench_clear(&b);
    rmdir(b.folder);
    free(b.data);
    if (status || median[WRITE] <= 0 || median[READ_DISK] <= 0)
        return fprintf(stderr, "ds bench: %s\n", status ? error.message : "the plain file failed"), ENVIRONMENT;
    if (json)
        printf("{\"mib\": %zu, \"write_s\": %.6f, \"save_s\": %.6f, \"read_s\": %.6f, \"load_s\": %.6f, "
               "\"fio_write_s\": %.6f, \"save_fio_ratio\": %.4f, \"save_speed_ratio\": %.4f, \"load_time_ratio\": "
               "%.4f, \"load_cached_ratio\": %.4f, "
               "\"background_step_ratio\": %.4f, \"background_step_cpu_ratio\": %.4f, \"background_stall_s\": %.6f}\n",
               mib, median[WRITE], median[SAVE], median[READ_DISK], median[LOAD_DISK], fastest, fastest / median[SAVE],
               median[WRITE] / median[SAVE], median[LOAD_DISK] / median[READ_DISK],
               median[LOAD_CACHED] / median[READ_CACHED], median[STEP_BESIDE] / median[STEP],
               median[STEP_BESIDE_CPU] / median[STEP_CPU], median[STALL]);
    for (int k = 0; k < 6 && !json; k++) printf("%-24s %10.1f MiB/s\n", names[k], (double)mib / median[k]);
    if (!json && fastest > 0)
        printf("%-24s %10.1f MiB/s through the cache, %.1f past it; a save has %.2f of the faster\n",
               "fio, with its sync", median[FIO] > 0 ? (double)mib / median[FIO] : 0,
               median[FIO_DIRECT] > 0 ? (double)mib / median[FIO_DIRECT] : 0, fastest / median[SAVE]);
    if (!json && fastest <= 0) printf("%-24s not found (--fio PATH)\n", "fio");
    if (!json)
        printf("save: %.2f of the disk's speed; load by 3 ranks of what one saved: %.2f of a read's time from the "
               "disk, %.2f "
               "from the cache\n"
               "in the background: a step beside it takes %.3f of its time alone, %.3f on its core; copying and "
               "committing "
               "%.3f s\n",
               median[WRITE] / median[SAVE], median[LOAD_DISK] / median[READ_DISK],
               median[LOAD_CACHED] / median[READ_CACHED], median[STEP_BESIDE] / median[STEP],
               median[STEP_BESIDE_CPU] / median[STEP_CPU], median[STALL]);
    return finish(FINE);
}
