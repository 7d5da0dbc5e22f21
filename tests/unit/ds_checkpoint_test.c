/* Checkpoints: any range at any world size, atomic commits under failing memory, files and ranks, damage found and named,
   safetensors that others wrote well or badly. */
#define DS_CHECKPOINT_IMPLEMENTATION
#include "ds_checkpoint.h"
#include "../test.h"
#include <pthread.h>

static char root[256];
#define FOLDER_BYTES 512
static const char *folder_of(char out[FOLDER_BYTES], const char *name) {
    snprintf(out, FOLDER_BYTES, "%s/%s", root, name);
    return out;
}
static void shell(const char *format, ...) {
    char command[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    CHECK(system(command) == 0);
}
TEST_FN char *slurp(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    char *data = (char *)calloc(1, 1 << 22);
    *bytes = 0;
    if (!f || !data) return data;
    *bytes = fread(data, 1, (1 << 22) - 1, f);
    fclose(f);
    return data;
}
TEST_FN void spew(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, bytes, f) == bytes);
    if (f) fclose(f);
}

/* ---- ranks as threads ---- */
typedef struct hub {
    pthread_barrier_t barrier;
    char *all;
    int ranks;
} hub;
typedef struct place {
    hub *h;
    int rank;
} place;
static ds_status exchange(void *ctx, const void *mine, void *all, size_t bytes) {
    place *p = (place *)ctx;
    pthread_barrier_wait(&p->h->barrier);
    if (p->rank == 0) p->h->all = (char *)realloc(p->h->all, bytes * (size_t)p->h->ranks);
    pthread_barrier_wait(&p->h->barrier);
    memcpy(p->h->all + bytes * (size_t)p->rank, mine, bytes);
    pthread_barrier_wait(&p->h->barrier);
    memcpy(all, p->h->all, bytes * (size_t)p->h->ranks);
    return DS_OK;
}

/* ---- a model: a matrix of many blocks, a 16-bit one, a scalar, an empty one ---- */
#define ROWS    1000
#define COLUMNS 700
#define BIG     ((size_t)ROWS * COLUMNS)
static const size_t big_shape[2] = {ROWS, COLUMNS}, half_shape[1] = {5000}, empty_shape[2] = {0, 4};
static float big_at(size_t i, int step) {
    return (float)i * 0.25f + (float)step;
}

typedef struct job {
    pthread_t thread;
    place place;
    ds_checkpoint_desc desc;
    const char *tag;
    int step, fail_read, split; /* split: cuts on other places than a grain */
    ds_status status;
    ds_error error;
    test_memory memory;
} job;

static ds_status read_big(void *ctx, size_t begin, size_t count, void *out) {
    job *j = (job *)ctx;
    if (count > 65536) return DS_ERR_ARGUMENT;
    if (j->fail_read && begin > BIG / 2) return DS_ERR_DEVICE;
    for (size_t i = 0; i < count; i++) ((float *)out)[i] = big_at(begin + i, j->step);
    return DS_OK;
}
static ds_status save_rank(job *j) {
    ds_checkpoint_writer *w = NULL;
    const size_t ranks = (size_t)(j->desc.group.size ? j->desc.group.size : 1), rank = (size_t)j->desc.group.rank;
    const size_t grain = j->split ? 7 : 1024;
    ds_checkpoint_tensor t;
    uint16_t half[5000];
    double scalar = 2.5 + j->step;
    ds_status status = ds_checkpoint_begin(&j->desc, j->tag, &w, &j->error);
    if (status) return status;
    memset(&t, 0, sizeof t);
    t.name = "big";
    t.shape = big_shape;
    t.dims = 2;
    t.begin = BIG * rank / ranks / grain * grain;
    t.count = (rank + 1 == ranks ? BIG : BIG * (rank + 1) / ranks / grain * grain) - t.begin;
    t.read = read_big;
    t.ctx = j;
    ds_checkpoint_add(w, &t);
    for (size_t i = 0; i < 5000; i++) half[i] = dsi_bf16_of_f32((float)i);
    if (rank + 1 == ranks) {
        t.name = "half \"quoted\" \xC3\xA9";
        t.dtype = DS_BF16;
        t.shape = half_shape;
        t.dims = 1;
        t.begin = 0;
        t.count = 5000;
        t.data = half;
        ds_checkpoint_add(w, &t);
        t.name = "scalar";
        t.dtype = DS_F64;
        t.shape = NULL;
        t.dims = 0;
        t.count = 1;
        t.data = &scalar;
        ds_checkpoint_add(w, &t);
        t.name = "empty";
        t.dtype = DS_I64;
        t.shape = empty_shape;
        t.dims = 2;
        t.count = 0;
        ds_checkpoint_add(w, &t);
    }
    ds_checkpoint_set_integer(w, "step", j->step);
    ds_checkpoint_set_integer(w, "least", INT64_MIN);
    ds_checkpoint_set_number(w, "lr", 0.1);
    ds_checkpoint_set_number(w, "huge", HUGE_VAL);
    ds_checkpoint_set_text(w, "note", "a \"text\"\n\xE2\x82\xAC");
    ds_checkpoint_set_bytes(w, "rng", "\0\1\xFF\n", 4);
    ds_checkpoint_set_bytes(w, "none", NULL, 0);
    status = ds_checkpoint_commit(w, &j->error);
    if (!status && j->desc.background) {
        memset(half, 0, sizeof half); /* training goes on */
        status = ds_checkpoint_finish(w, &j->error);
    }
    return status;
}
static void *save_thread(void *arg) {
    job *j = (job *)arg;
    j->status = save_rank(j);
    return NULL;
}
/* `ranks` ranks save; what each is to do differently is set in jobs beforehand. */
static void save_all(job *jobs, int ranks, const char *folder, const char *tag, int step) {
    hub h;
    memset(&h, 0, sizeof h);
    h.ranks = ranks;
    pthread_barrier_init(&h.barrier, NULL, (unsigned)ranks);
    for (int r = 0; r < ranks; r++) {
        job *j = &jobs[r];
        j->place.h = &h;
        j->place.rank = r;
        j->desc.folder = folder;
        j->desc.group.exchange = exchange;
        j->desc.group.ctx = &j->place;
        j->desc.group.rank = r;
        j->desc.group.size = ranks;
        if (!j->tag) j->tag = tag;
        j->step = step;
        pthread_create(&j->thread, NULL, save_thread, j);
    }
    for (int r = 0; r < ranks; r++) pthread_join(jobs[r].thread, NULL);
    free(h.all);
    pthread_barrier_destroy(&h.barrier);
}
static void save_well(int ranks, const char *folder, const char *tag, int step) {
    job jobs[8];
    memset(jobs, 0, sizeof jobs);
    save_all(jobs, ranks, folder, tag, step);
    for (int r = 0; r < ranks; r++)
        test_check(jobs[r].status == DS_OK, __FILE__, __LINE__, "%s", jobs[r].error.message);
}

/* Whether an open checkpoint holds the model of a step, all of it. */
static int holds(ds_checkpoint *c, int step) {
    static float got[BIG];
    int64_t saved = -1;
    int good = ds_checkpoint_get_integer(c, "step", &saved) == DS_OK && saved == step;
    good &= ds_checkpoint_verify(c) == DS_OK;
    good &= ds_checkpoint_read(c, "big", 0, BIG, DS_F32, got) == DS_OK;
    for (size_t i = 0; i < BIG && good; i++) good = got[i] == big_at(i, step);
    return good;
}
static int loads(const char *folder, const char *tag, int step) {
    ds_checkpoint_desc d;
    ds_checkpoint *c = NULL;
    ds_error error = {DS_OK, ""};
    int good;
    memset(&d, 0, sizeof d);
    d.folder = folder;
    if (!test_check(ds_checkpoint_open(&d, tag, &c, &error) == DS_OK, __FILE__, __LINE__, "open: %s", error.message))
        return 0;
    good = holds(c, step);
    ds_checkpoint_close(c);
    return good;
}

static void test_round_trip(void) {
    TEST(every_value_at_every_world_size) {
        for (int ranks = 1; ranks <= 4; ranks++) {
            char folder[FOLDER_BYTES], name[32];
            ds_checkpoint_desc d;
            ds_checkpoint *c = NULL;
            ds_checkpoint_info info;
            ds_error error = {DS_OK, ""};
            const char *text;
            const void *bytes;
            double number;
            int64_t integer;
            size_t n;
            float f[5000];
            uint16_t h[4];
            snprintf(name, sizeof name, "round%d", ranks);
            folder_of(folder, name);
            save_well(ranks, folder, "tag", 7);
            memset(&d, 0, sizeof d);
            d.folder = folder;
            CHECK_EQ(ds_checkpoint_open(&d, NULL, &c, &error), DS_OK);
            if (!c) break;
            CHECK(holds(c, 7));
            CHECK_STR(ds_checkpoint_tag(c), "tag");
            CHECK_EQ(ds_checkpoint_count(c), 4);
            CHECK_EQ(ds_checkpoint_find(c, "big", &info), DS_OK);
            CHECK_EQ(info.parts, ranks);
            CHECK(info.dims == 2 && info.shape[0] == ROWS && info.shape[1] == COLUMNS && info.dtype == DS_F32);
            CHECK_EQ(ds_checkpoint_find(c, "small", &info), DS_ERR_INPUT);
            CHECK_HAS(ds_checkpoint_error(c)->message, "no tensor 'small'");
            CHECK_EQ(ds_checkpoint_find(c, "empty", &info), DS_OK);
            CHECK(info.numel == 0 && info.dims == 2 && info.shape[1] == 4);
            CHECK_EQ(ds_checkpoint_read(c, "empty", 0, 0, DS_I64, NULL), DS_OK);
            CHECK_EQ(ds_checkpoint_read(c, "half \"quoted\" \xC3\xA9", 1, 4999, DS_F32, f), DS_OK);
            CHECK(f[0] == 1 && f[254] == 255);
            CHECK_EQ(ds_checkpoint_read(c, "scalar", 0, 1, DS_BF16, h), DS_OK);
            CHECK(dsi_f32_of_bf16(h[0]) == 9.5f);
            CHECK_EQ(ds_checkpoint_read(c, "scalar", 0, 1, DS_I32, h), DS_ERR_ARGUMENT);
            CHECK_EQ(ds_checkpoint_read(c, "scalar", 1, 1, DS_F64, h), DS_ERR_ARGUMENT);
            for (size_t at = 3; at < BIG; at += 65536 * 3 + 11) { /* ranges that cross blocks and shards */
                const size_t m = BIG - at < 5000 ? BIG - at : 5000;
                CHECK_EQ(ds_checkpoint_read(c, "big", at, m, DS_F32, f), DS_OK);
                for (size_t i = 0; i < m; i++)
                    if (!CHECK(f[i] == big_at(at + i, 7))) break;
            }
            CHECK_EQ(ds_checkpoint_get_integer(c, "least", &integer), DS_OK);
            CHECK(integer == INT64_MIN);
            CHECK_EQ(ds_checkpoint_get_number(c, "lr", &number), DS_OK);
            CHECK(number == 0.1);
            CHECK_EQ(ds_checkpoint_get_number(c, "huge", &number), DS_OK);
            CHECK(number == HUGE_VAL);
            CHECK_EQ(ds_checkpoint_get_text(c, "note", &text), DS_OK);
            CHECK_STR(text, "a \"text\"\n\xE2\x82\xAC");
            CHECK_EQ(ds_checkpoint_get_bytes(c, "rng", &bytes, &n), DS_OK);
            CHECK(n == 4 && !memcmp(bytes, "\0\1\xFF\n", 4));
            CHECK_EQ(ds_checkpoint_get_bytes(c, "none", &bytes, &n), DS_OK);
            CHECK_EQ(n, 0);
            CHECK_EQ(ds_checkpoint_get_number(c, "note", &number), DS_ERR_INPUT);
            CHECK_HAS(ds_checkpoint_error(c)->message, "is a text, expected a number");
            CHECK_EQ(ds_checkpoint_get_text(c, "nothing", &text), DS_ERR_INPUT);
            ds_checkpoint_close(c);
        }
    }
    TEST(a_tag_is_replaced) {
        char folder[FOLDER_BYTES];
        folder_of(folder, "replace");
        save_well(2, folder, "same", 1);
        save_well(3, folder, "same", 2);
        CHECK(loads(folder, "same", 2));
        shell("test ! -e '%s/same.old' -a ! -e '%s/same.tmp'", folder, folder);
    }
}

static void test_ranks(void) {
    TEST(a_failing_rank_is_named_by_all) {
        char folder[FOLDER_BYTES];
        job jobs[3];
        folder_of(folder, "rank");
        save_well(3, folder, "good", 1);
        memset(jobs, 0, sizeof jobs);
        jobs[2].fail_read = 1;
        save_all(jobs, 3, folder, "bad", 2);
        for (int r = 0; r < 3; r++) {
            CHECK_EQ(jobs[r].status, DS_ERR_DEVICE);
            CHECK_HAS(jobs[r].error.message, "rank 2: tensor 'big'");
        }
        CHECK(loads(folder, NULL, 1));
        shell("test ! -e '%s/bad.tmp' -a ! -e '%s/bad'", folder, folder);
        save_well(3, folder, "bad", 2); /* and it works when tried again */
        CHECK(loads(folder, NULL, 2));
    }
}

/* ---- every call of the file table failing in turn ---- */
typedef struct faults {
    long calls, fail_at; /* the n-th call fails, from 1; with `all` those after it too */
    int all, code;
} faults;
static int trips(void *ctx) {
    faults *f = (faults *)ctx;
    f->calls++;
    return f->fail_at && (f->calls == f->fail_at || (f->all && f->calls > f->fail_at)) ? f->code : 0;
}
static int f_open(void *x, const char *p, int flags, unsigned m) {
    int e = trips(x);
    return e ? e : dsi_sys_open(NULL, p, flags, m);
}
static int f_close(void *x, int fd) {
    int e = trips(x), r = dsi_sys_close(NULL, fd);
    return e ? e : r;
}
static int64_t f_read(void *x, int fd, void *b, size_t n, int64_t at) {
    int e = trips(x);
    return e ? e : dsi_sys_read(NULL, fd, b, n > 100000 ? n - 50000 : n, at); /* short now and then */
}
static int64_t f_write(void *x, int fd, const void *b, size_t n, int64_t at) {
    int e = trips(x);
    return e ? e : dsi_sys_write(NULL, fd, b, n > 100000 ? n - 50000 : n, at);
}
static int f_sync(void *x, int fd) {
    int e = trips(x);
    return e ? e : dsi_sys_sync(NULL, fd);
}
static int f_reserve(void *x, int fd, int64_t at, int64_t n) {
    int e = trips(x);
    return e ? e : dsi_sys_reserve(NULL, fd, at, n);
}
static int64_t f_size(void *x, int fd) {
    int e = trips(x);
    return e ? e : dsi_sys_size(NULL, fd);
}
static int f_exists(void *x, const char *p) {
    int e = trips(x);
    return e ? e : dsi_sys_exists(NULL, p);
}
static int f_rename(void *x, const char *a, const char *b) {
    int e = trips(x);
    return e ? e : dsi_sys_rename(NULL, a, b);
}
static int f_unlink(void *x, const char *p) {
    int e = trips(x);
    return e ? e : dsi_sys_unlink(NULL, p);
}
static int f_mkdir(void *x, const char *p, unsigned m) {
    int e = trips(x);
    return e ? e : dsi_sys_mkdir(NULL, p, m);
}
static int f_rmdir(void *x, const char *p) {
    int e = trips(x);
    return e ? e : dsi_sys_rmdir(NULL, p);
}
static int f_list(void *x, const char *p, void (*entry)(void *, const char *), void *arg) {
    int e = trips(x);
    return e ? e : dsi_sys_list(NULL, p, entry, arg);
}
static void use_faults(ds_files *f, faults *x) {
    memset(f, 0, sizeof *f);
    f->ctx = x;
    f->open = f_open;
    f->close = f_close;
    f->read = f_read;
    f->write = f_write;
    f->sync = f_sync;
    f->reserve = f_reserve;
    f->size = f_size;
    f->exists = f_exists;
    f->rename = f_rename;
    f->unlink = f_unlink;
    f->mkdir = f_mkdir;
    f->rmdir = f_rmdir;
    f->list = f_list;
}
static void use_memory(ds_allocator *a, test_memory *m) {
    a->alloc = test_alloc;
    a->release = test_release;
    a->ctx = m;
}

/* What a one-rank save to `tag` comes to; checks that nothing is left behind. */
static ds_status try_save(job *j, const char *folder, const char *tag, int step) {
    memset(&j->error, 0, sizeof j->error);
    use_memory(&j->desc.allocator, &j->memory);
    j->desc.folder = folder;
    j->tag = tag;
    j->step = step;
    j->status = save_rank(j);
    CHECK_EQ(j->memory.live, 0);
    CHECK_EQ(j->memory.mismatches, 0);
    if (j->status) CHECK(j->error.status == j->status && j->error.message[0]);
    return j->status;
}

static void test_faults(void) {
    static const char *const names[4] = {"memory_fails_once", "memory_fails_from_there_on", "files_fail_once",
                                         "files_fail_from_there_on"};
    for (int kind = 0; kind < 8; kind++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", names[kind / 2], kind % 2 ? "_replacing_a_tag" : "");
        TEST_NAMED(name) {
            char folder[FOLDER_BYTES];
            const char *tag = kind % 2 ? "old" : "new";
            int finished = 0, failures = 0;
            folder_of(folder, name);
            for (long n = 1; n < 500 && !finished; n++) {
                static job j;
                faults f;
                shell("rm -rf '%s'", folder);
                save_well(1, folder, "old", 1);
                memset(&j, 0, sizeof j);
                memset(&f, 0, sizeof f);
                use_faults(&j.desc.files, &f);
                f.code = n % 3 ? -EIO : -ENOSPC;
                if (kind / 2 < 2)
                    j.memory.fail_at = (size_t)n, j.memory.fail_all = kind / 2 == 1;
                else
                    f.fail_at = n, f.all = kind / 2 == 3;
                if (try_save(&j, folder, tag, 2)) {
                    const ds_status status = j.status;
                    failures++;
                    CHECK(status == DS_ERR_MEMORY || status == DS_ERR_IO || status == DS_ERR_SPACE);
                    CHECK(kind / 2 < 2 ? status == DS_ERR_MEMORY : status != DS_ERR_MEMORY);
                    if (!f.all)
                        CHECK(loads(folder, NULL, 1));
                    else { /* a file system that stays broken cannot take a rename back */
                        ds_checkpoint_desc d;
                        ds_checkpoint *c = NULL;
                        memset(&d, 0, sizeof d);
                        d.folder = folder;
                        CHECK_EQ(ds_checkpoint_open(&d, NULL, &c, NULL), DS_OK);
                        if (c) CHECK(holds(c, 1) || holds(c, 2));
                        ds_checkpoint_close(c);
                    }
                    memset(&j, 0, sizeof j); /* and it works when tried again */
                    CHECK_EQ(try_save(&j, folder, tag, 3), DS_OK);
                    CHECK(loads(folder, NULL, 3));
                    shell("test ! -e '%s/%s.tmp' -a ! -e '%s/%s.old'", folder, tag, folder, tag);
                } else {
                    CHECK(loads(folder, NULL, 2)); /* the fault met nothing that matters, or came too late */
                    finished = kind / 2 < 2 ? j.memory.calls < (size_t)n : f.calls < n;
                }
            }
            CHECK(finished);
            CHECK(failures >= 10);
        }
    }
    TEST(loading_survives_every_fault) {
        char folder[FOLDER_BYTES];
        int finished = 0;
        folder_of(folder, "load_faults");
        save_well(2, folder, "tag", 1);
        for (int kind = 0; kind < 2; kind++) {
            finished = 0;
            for (long n = 1; n < 300 && !finished; n++) {
                ds_checkpoint_desc d;
                ds_checkpoint *c = NULL;
                ds_error error = {DS_OK, ""};
                test_memory memory;
                faults f;
                ds_status status;
                memset(&d, 0, sizeof d);
                memset(&f, 0, sizeof f);
                memset(&memory, 0, sizeof memory);
                use_faults(&d.files, &f);
                use_memory(&d.allocator, &memory);
                d.folder = folder;
                f.code = -EIO;
                if (kind)
                    f.fail_at = n;
                else
                    memory.fail_at = (size_t)n;
                status = ds_checkpoint_open(&d, NULL, &c, &error);
                if (!status) {
                    status = ds_checkpoint_verify(c);
                    if (!status)
                        CHECK(holds(c, 1) || (kind && f.calls >= n));
                    else
                        error = *ds_checkpoint_error(c);
                }
                if (status)
                    CHECK(status == (kind ? DS_ERR_IO : DS_ERR_MEMORY) && error.status == status && error.message[0]);
                ds_checkpoint_close(c);
                finished = kind ? f.calls < n : memory.calls < (size_t)n;
                CHECK_EQ(memory.live, 0);
                CHECK_EQ(memory.mismatches, 0);
            }
            CHECK(finished);
        }
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    snprintf(root, sizeof root, "build/tests/checkpoint.%d", (int)getpid());
    shell("rm -rf '%s'; mkdir -p '%s'", root, root);
    test_round_trip();
    test_ranks();
    test_faults();
    shell("rm -rf '%s'", root);
    return test_end();
}
