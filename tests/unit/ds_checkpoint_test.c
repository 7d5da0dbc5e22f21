/* Checkpoints: any range at any world size, atomic commits under failing memory, files and ranks, damage found and named,
   safetensors that others wrote well or badly. */
#include <errno.h>
#include <pthread.h>
static int no_threads; /* the header's threads cannot be made */
static int make_thread(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *arg) {
    return no_threads ? EAGAIN : pthread_create(thread, attributes, run, arg);
}
#define pthread_create make_thread
#define DS_CHECKPOINT_IMPLEMENTATION
#include "ds_checkpoint.h"
#undef pthread_create
#include "../test.h"

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
static char *slurp(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    char *data = (char *)calloc(1, 1 << 22);
    *bytes = 0;
    if (!data) abort();
    if (!f) return data;
    *bytes = fread(data, 1, (1 << 22) - 1, f);
    fclose(f);
    return data;
}
static void spew(const char *path, const void *data, size_t bytes) {
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
    int step, fail_read, split, hole; /* split: cuts on other places than a grain; hole: the part ends early */
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
    t.count -= j->hole ? 1024 : 0;
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
/* An allocator that one thread alone may call. */
typedef struct own_thread {
    pthread_t owner;
    long calls, of_others;
} own_thread;
static void own_thread_seen(own_thread *o) {
    o->calls++;
    if (!pthread_equal(o->owner, pthread_self())) o->of_others++;
}
static void *own_thread_alloc(void *ctx, size_t bytes, size_t align) {
    void *memory = NULL;
    own_thread_seen((own_thread *)ctx);
    return posix_memalign(&memory, align, bytes) ? NULL : memory;
}
static void own_thread_release(void *ctx, void *memory, size_t bytes, size_t align) {
    (void)bytes;
    (void)align;
    own_thread_seen((own_thread *)ctx);
    free(memory);
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
        memset(jobs, 0, sizeof jobs);
        jobs[0].hole = 1;
        save_all(jobs, 3, folder, "bad", 2);
        CHECK_EQ(jobs[2].status, DS_ERR_INPUT);
        CHECK_HAS(jobs[2].error.message, "rank 0: ");
        CHECK_HAS(jobs[2].error.message, "are in no shard");
        CHECK(loads(folder, NULL, 1));
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

/* ---- safetensors ---- */
static ds_status open_file(const char *path, ds_checkpoint **c, ds_error *error) {
    ds_checkpoint_desc d;
    memset(&d, 0, sizeof d);
    return ds_checkpoint_open_path(&d, path, c, error);
}
/* Writes a file of this header and data, and says what opening it comes to. `length` < 0: that of the header. */
static ds_status open_made(const char *header, size_t header_bytes, long long length, size_t data, ds_error *error) {
    static char file[1 << 20];
    char path[FOLDER_BYTES];
    const uint64_t n = length == -1 ? header_bytes : (uint64_t)length;
    ds_checkpoint *c = NULL;
    ds_status status;
    memset(file, 0, sizeof file);
    for (int i = 0; i < 8; i++) file[i] = (char)(n >> 8 * i & 255);
    memcpy(file + 8, header, header_bytes);
    folder_of(path, "made.safetensors");
    spew(path, file, 8 + header_bytes + data);
    status = open_file(path, &c, error);
    if (!status) CHECK_EQ(ds_checkpoint_verify(c), DS_OK);
    ds_checkpoint_close(c);
    return status;
}
typedef struct made {
    const char *name, *header;
    size_t data;
} made;
#define T(fields)                 "{\"a\":{" fields "}}"
#define GOOD                      "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]"
#define F32(name, shape, offsets) "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define S(text)                   text, sizeof text - 1
/* The 46 hand-made files on which the reference reader (safetensors 0.8.0) was tried, with its verdict and ours: the same, but
   that three which it takes are against the format's text. `length` < 0: the header's own. */
static const struct {
    const char *name, *header;
    size_t bytes;
    long long length;
    size_t data;
    bool theirs, ours;
} verdicts[] = {
    {"nothing but {}", S("{}"), -1, 0, true, true},
    {"keys out of the order of offsets", S("{" F32("b", "[1]", "[4,8]") "," F32("a", "[1]", "[0,4]") "}"), -1, 8, true,
     true},
    {"leading space", S(" " T(GOOD)), -1, 8, true, false},
    {"trailing spaces", S(T(GOOD) "   "), -1, 8, true, true},
    {"trailing newline", S(T(GOOD) "\n"), -1, 8, true, true},
    {"duplicate tensor", S("{" F32("a", "[1]", "[0,4]") "," F32("a", "[1]", "[4,8]") "}"), -1, 8, true, false},
    {"unknown field", S(T(GOOD ",\"extra\":[1,{}]")), -1, 8, true, true},
    {"null metadata", S("{\"__metadata__\":null,\"a\":{" GOOD "}}"), -1, 8, true, true},
    {"empty name", S("{\"\":{" GOOD "}}"), -1, 8, true, true},
    {"NUL in a name", S("{\"a\\u0000b\":{" GOOD "}}"), -1, 8, true, false},
    {"scalar", S("{" F32("a", "[]", "[0,4]") "}"), -1, 4, true, true},
    {"empty tensor", S("{" F32("a", "[3,0]", "[0,0]") "}"), -1, 0, true, true},
    {"a header of 0 bytes", S(T(GOOD)), 0, 8, false, false},
    {"a header longer than the file", S(T(GOOD)), 1000, 8, false, false},
    {"a header of 2^63 bytes", S(T(GOOD)), INT64_MIN, 8, false, false},
    {"a header of 100000001 bytes", S(T(GOOD)), 100000001, 8, false, false},
    {"trailing NUL", S(T(GOOD) "\0"), -1, 8, false, false},
    {"trailing text", S(T(GOOD) "x"), -1, 8, false, false},
    {"BOM", S("\xEF\xBB\xBF" T(GOOD)), -1, 8, false, false},
    {"array header", S("[]"), -1, 0, false, false},
    {"trailing comma", S("{\"a\":{" GOOD "},}"), -1, 8, false, false},
    {"one byte more of data", S(T(GOOD)), -1, 9, false, false},
    {"one byte less of data", S(T(GOOD)), -1, 7, false, false},
    {"hole", S("{" F32("a", "[1]", "[4,8]") "}"), -1, 8, false, false},
    {"overlap", S("{\"a\":{" GOOD "}," F32("b", "[1]", "[4,8]") "}"), -1, 8, false, false},
    {"end before begin", S("{" F32("a", "[2]", "[8,0]") "}"), -1, 8, false, false},
    {"shape mismatch", S("{" F32("a", "[3]", "[0,8]") "}"), -1, 8, false, false},
    {"shape overflow", S("{" F32("a", "[4294967296,4294967296,4]", "[0,0]") "}"), -1, 0, false, false},
    {"-2 in a shape", S("{" F32("a", "[-2]", "[0,8]") "}"), -1, 8, false, false},
    {"2.0 in a shape", S("{" F32("a", "[2.0]", "[0,8]") "}"), -1, 8, false, false},
    {"2e0 in a shape", S("{" F32("a", "[2e0]", "[0,8]") "}"), -1, 8, false, false},
    {"offset 1e30", S("{" F32("a", "[2]", "[0,1e30]") "}"), -1, 8, false, false},
    {"three offsets", S("{" F32("a", "[2]", "[0,8,8]") "}"), -1, 8, false, false},
    {"no dtype", S(T("\"shape\":[2],\"data_offsets\":[0,8]")), -1, 8, false, false},
    {"no shape", S(T("\"dtype\":\"F32\",\"data_offsets\":[0,8]")), -1, 8, false, false},
    {"no offsets", S(T("\"dtype\":\"F32\",\"shape\":[2]")), -1, 8, false, false},
    {"duplicate field", S(T(GOOD ",\"dtype\":\"F32\"")), -1, 8, false, false},
    {"duplicate metadata", S("{\"__metadata__\":{},\"__metadata__\":{},\"a\":{" GOOD "}}"), -1, 8, false, false},
    {"metadata that is no string", S("{\"__metadata__\":{\"k\":1},\"a\":{" GOOD "}}"), -1, 8, false, false},
    {"unknown dtype", S(T("\"dtype\":\"F33\",\"shape\":[2],\"data_offsets\":[0,8]")), -1, 8, false, false},
    {"lower-case dtype", S(T("\"dtype\":\"f32\",\"shape\":[2],\"data_offsets\":[0,8]")), -1, 8, false, false},
    {"odd F4", S(T("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]")), -1, 1, false, false},
    {"lone surrogate", S("{\"\\ud800\":{" GOOD "}}"), -1, 8, false, false},
    {"invalid UTF-8", S("{\"\xC3(\":{" GOOD "}}"), -1, 8, false, false},
    {"fewer than 8 bytes", NULL, 0, 0, 7, false, false},
    {"a depth of 200,000", NULL, 0, 0, 0, false, false},
};
static const made accepted[] = {
    {"F64 scalar", T("\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]"), 8},
    {"metadata", "{\"__metadata__\":{\"k\":\"v\"},\"a\":{" GOOD "}}", 8},
    {"note of a whole", "{\"__metadata__\":{\"ds:a\":\"0 2 8c28b28a\"},\"a\":{" GOOD "}}", 8},
    {"two empty tensors at one place",
     "{" F32("a", "[0]", "[8,8]") "," F32("b", "[2]", "[0,8]") "," F32("c", "[0]", "[8,8]") "}", 8},
};
static const made refused[] = {
    {"a number", "17", 0},
    {"no data", T(GOOD), 0},
    {"hole between",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_"
     "offsets\":[2,3]}}",
     3},
    {"shape overflow", T("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,0]"), 0},
    {"shape bits overflow", T("\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]"), 0},
    {"minus zero", T("\"dtype\":\"F32\",\"shape\":[-0],\"data_offsets\":[0,0]"), 0},
    {"size as text", T("\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]"), 8},
    {"offset 1e30", T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,1e30]"), 8},
    {"offset beyond 64 bits", T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,18446744073709551624]"), 8},
    {"offset far away", T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9223372036854775800,9223372036854775807]"),
     8},
    {"one offset", T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8]"), 8},
    {"offsets null", T("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":null"), 8},
    {"metadata an array", "{\"__metadata__\":[],\"a\":{" GOOD "}}", 8},
    {"dtype a number", T("\"dtype\":32,\"shape\":[2],\"data_offsets\":[0,8]"), 8},
    {"tensor not an object", "{\"a\":[]}", 0},
    {"unclosed", "{\"a\":{" GOOD "}", 8},
    {"note malformed", "{\"__metadata__\":{\"ds:a\":\"0 2 12\"},\"a\":{" GOOD "}}", 8},
    {"note without digits", "{\"__metadata__\":{\"ds:a\":\"\"},\"a\":{" GOOD "}}", 8},
    {"note beyond the whole", "{\"__metadata__\":{\"ds:a\":\"1 2 00000000\"},\"a\":{" GOOD "}}", 8},
    {"note of a part", "{\"__metadata__\":{\"ds:a\":\"0 4 00000000\"},\"a\":{" GOOD "}}", 8},
    {"note of nine dimensions", "{\"__metadata__\":{\"ds:a\":\"0 1,1,1,1,1,1,1,1,2 00000000\"},\"a\":{" GOOD "}}", 8},
    {"note of an overflow", "{\"__metadata__\":{\"ds:a\":\"0 99999999999999999999 00000000\"},\"a\":{" GOOD "}}", 8},
    {"an empty dtype", T("\"dtype\":\"\",\"shape\":[2],\"data_offsets\":[0,8]"), 8},
    {"a note with a zero before", "{\"__metadata__\":{\"ds:a\":\"00 2 8c28b28a\"},\"a\":{" GOOD "}}", 8},
    {"a note with a letter behind", "{\"__metadata__\":{\"ds:a\":\"0 2 8c28b28az\"},\"a\":{" GOOD "}}", 8},
    {"a note of 2^57 elements", "{\"__metadata__\":{\"ds:a\":\"0 144115188075855872 8c28b28a\"},\"a\":{" GOOD "}}", 8},
    {"a note of 2^66 elements", "{\"__metadata__\":{\"ds:a\":\"0 8589934592,8589934592 8c28b28a\"},\"a\":{" GOOD "}}",
     8},
};

static void test_safetensors(void) {
    TEST(safetensors_two_that_begin_together) { /* in either order, and more than a sort of few takes at once */
        char header[2000];
        size_t n = 0;
        ds_error error = {DS_OK, ""};
        for (int round = 0; round < 2; round++) {
            n = (size_t)snprintf(header, sizeof header, "{");
            for (int i = 0; i < 12; i++) {
                const int at = round ? 11 - i : i, full = at % 2 == 0;
                n += (size_t)snprintf(header + n, sizeof header - n,
                                      "%s\"t%d\":{\"dtype\":\"F32\",\"shape\":[%d],\"data_offsets\":[%d,%d]}",
                                      i ? "," : "", at, full, at / 2 * 4, at / 2 * 4 + 4 * full);
            }
            n += (size_t)snprintf(header + n, sizeof header - n, "}");
            CHECK_EQ(open_made(header, n, -1, 24, &error), DS_OK);
        }
    }
    for (size_t i = 0; i < sizeof verdicts / sizeof verdicts[0]; i++) {
        char name[80];
        snprintf(name, sizeof name, "safetensors %d of 46: %s", (int)i + 1, verdicts[i].name);
        TEST_NAMED(name) {
            static char deep[200005];
            char path[FOLDER_BYTES];
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            ds_status status;
            if (verdicts[i].header)
                status = open_made(verdicts[i].header, verdicts[i].bytes, verdicts[i].length, verdicts[i].data, &error);
            else if (verdicts[i].data) { /* the file is too short for a length */
                spew(folder_of(path, "made.safetensors"), "\2\0\0\0\0\0\0", verdicts[i].data);
                status = open_file(path, &c, &error);
            } else {
                memset(deep, '[', sizeof deep);
                memcpy(deep, "{\"a\":", 5);
                status = open_made(deep, sizeof deep, -1, 0, &error);
            }
            CHECK_EQ(status, verdicts[i].ours ? DS_OK : DS_ERR_INPUT);
            CHECK(verdicts[i].theirs || !verdicts[i].ours);
            if (status) CHECK_HAS(error.message, "made.safetensors");
            if (i == 0) CHECK_EQ(sizeof verdicts / sizeof verdicts[0], 46);
        }
    }
    for (size_t i = 0; i < sizeof accepted / sizeof accepted[0]; i++) {
        char name[80];
        snprintf(name, sizeof name, "safetensors_accepted: %s", accepted[i].name);
        TEST_NAMED(name) {
            ds_error error = {DS_OK, ""};
            test_check(open_made(accepted[i].header, strlen(accepted[i].header), -1, accepted[i].data, &error) == DS_OK,
                       __FILE__, __LINE__, "%s", error.message);
        }
    }
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        char name[80];
        snprintf(name, sizeof name, "safetensors_refused: %s", refused[i].name);
        TEST_NAMED(name) {
            ds_error error = {DS_OK, ""};
            CHECK_EQ(open_made(refused[i].header, strlen(refused[i].header), -1, refused[i].data, &error),
                     DS_ERR_INPUT);
            CHECK_HAS(error.message, "made.safetensors");
        }
    }
    TEST(safetensors_lengths) {
        static const long long lengths[] = {0, 1, 7, 1LL << 31, 1LL << 32, INT64_MIN, INT64_MAX, 100000001, -2};
        const char *header = T(GOOD);
        ds_error error = {DS_OK, ""};
        char path[FOLDER_BYTES], byte = 0;
        ds_checkpoint *c = NULL;
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
            CHECK_EQ(open_made(header, strlen(header), lengths[i], 8, &error), DS_ERR_INPUT);
        for (long long n = 0; n < (long long)strlen(header) + 9; n++)
            if (n != (long long)strlen(header)) CHECK_EQ(open_made(header, strlen(header), n, 8, &error), DS_ERR_INPUT);
        folder_of(path, "short.safetensors");
        for (size_t n = 0; n < 8; n++) {
            spew(path, &byte, n ? 1 : 0);
            CHECK_EQ(open_file(path, &c, &error), DS_ERR_INPUT);
        }
        CHECK_EQ(open_file(folder_of(path, "absent.safetensors"), &c, &error), DS_ERR_INPUT);
    }
    TEST(safetensors_every_byte_of_a_header) {
        char header[300];
        const char *good = "{\"__metadata__\":{\"format\":\"pt\",\"ds:a\":\"0 2 8c28b28a\"},\"a\":{" GOOD "}}";
        ds_error error = {DS_OK, ""};
        const size_t n = strlen(good);
        size_t opened = 0;
        CHECK_EQ(open_made(good, n, -1, 8, &error), DS_OK);
        for (size_t i = 0; i < n; i++)
            for (int v = 0; v < 256; v += 5) {
                char path[FOLDER_BYTES];
                ds_checkpoint *c = NULL;
                memcpy(header, good, n);
                header[i] = (char)v;
                if (i % 3 && v % 3) continue; /* a sample */
                (void)open_made(header, 0, 2, 0, &error);
                folder_of(path, "made.safetensors");
                {
                    char file[400];
                    memset(file, 0, sizeof file);
                    file[0] = (char)n;
                    memcpy(file + 8, header, n);
                    spew(path, file, 8 + n + 8);
                }
                if (!open_file(path, &c, &error)) opened++;
                ds_checkpoint_close(c);
            }
        CHECK(opened > 0 && opened < n * 256 / 5);
    }
    TEST(safetensors_unsupported_dtype) {
        const char *header = T("\"dtype\":\"F8_E4M3\",\"shape\":[8],\"data_offsets\":[0,8]");
        ds_error error = {DS_OK, ""};
        CHECK_EQ(open_made(header, strlen(header), -1, 8, &error), DS_ERR_UNSUPPORTED);
        CHECK_HAS(error.message, "F8_E4M3");
        header = "{" F32("a", "[1,1,1,1,1,1,1,1,2]", "[0,8]") "}";
        CHECK_EQ(open_made(header, strlen(header), -1, 8, &error), DS_ERR_UNSUPPORTED);
        CHECK_HAS(error.message, "9 dimensions, at most 8");
    }
}

static void test_export(void) {
    static const char *const metadata[4] = {"format", "pt", "note", "\"quoted\""};
    TEST(export_and_read_back) {
        char path[FOLDER_BYTES];
        float weight[6] = {1, 2, 3, 4, 5, -0.0f};
        int64_t whole[1] = {-5};
        uint8_t odd[3] = {1, 2, 3};
        const size_t shape[2] = {2, 3}, three[1] = {3};
        ds_checkpoint_tensor t[3];
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        float got[6];
        const char *text;
        char *file;
        size_t bytes;
        memset(t, 0, sizeof t);
        t[0].name = "odd";
        t[0].dtype = DS_U8;
        t[0].shape = three;
        t[0].dims = 1;
        t[0].count = 3;
        t[0].data = odd;
        t[1].name = "weight";
        t[1].shape = shape;
        t[1].dims = 2;
        t[1].count = 6;
        t[1].data = weight;
        t[2].name = "whole";
        t[2].dtype = DS_I64;
        t[2].count = 1;
        t[2].data = whole;
        folder_of(path, "export.safetensors");
        CHECK_EQ(ds_safetensors_write(path, t, 3, metadata, 2, 0, NULL, &error), DS_OK);
        file = slurp(path, &bytes);
        CHECK_EQ(file[0] % 8, 0);
        CHECK_EQ(bytes, 8 + (unsigned char)file[0] + 256 * (unsigned char)file[1] + 24 + 8 + 3);
        free(file);
        CHECK_EQ(open_file(path, &c, &error), DS_OK);
        if (!c) break;
        CHECK_EQ(ds_checkpoint_get_format(c), DS_CHECKPOINT_SAFETENSORS);
        CHECK_EQ(ds_checkpoint_get_text(c, "note", &text), DS_OK);
        CHECK_STR(text, "\"quoted\"");
        CHECK_EQ(ds_checkpoint_value_count(c), 2);
        CHECK_EQ(ds_checkpoint_read(c, "weight", 0, 6, DS_F32, got), DS_OK);
        CHECK(!memcmp(got, weight, sizeof got));
        ds_checkpoint_close(c);
        file = slurp(path, &bytes); /* its own checksums find a flipped bit */
        file[bytes - 20] ^= 4;
        spew(path, file, bytes);
        free(file);
        CHECK_EQ(open_file(path, &c, &error), DS_OK);
        CHECK_EQ(ds_checkpoint_read(c, "weight", 0, 6, DS_F32, got), DS_ERR_CORRUPT);
        CHECK_HAS(ds_checkpoint_error(c)->message, "tensor 'weight' is damaged");
        CHECK_HAS(ds_checkpoint_error(c)->message, "export.safetensors");
        ds_checkpoint_close(c);
        t[1].count = 5;
        CHECK_EQ(ds_safetensors_write(path, t, 3, metadata, 2, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_HAS(error.message, "not whole");
        t[1].count = 6;
        t[2].name = "odd";
        CHECK_EQ(ds_safetensors_write(path, t, 3, metadata, 2, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_HAS(error.message, "added twice");
    }
    TEST(export_in_shards) {
        char path[FOLDER_BYTES], names[5][16], *file;
        const size_t shape[1] = {100};
        float data[5][100], got[100];
        ds_checkpoint_tensor t[5];
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        size_t bytes;
        memset(t, 0, sizeof t);
        for (int i = 0; i < 5; i++) {
            snprintf(names[i], sizeof names[i], "t%d", i);
            for (int k = 0; k < 100; k++) data[i][k] = (float)(100 * i + k);
            t[i].name = names[i];
            t[i].shape = shape;
            t[i].dims = 1;
            t[i].count = 100;
            t[i].data = data[i];
        }
        shell("mkdir -p '%s/hf'", root);
        folder_of(path, "hf/model.safetensors");
        CHECK_EQ(ds_safetensors_write(path, t, 5, metadata, 1, 900, NULL, &error), DS_OK);
        CHECK_EQ(open_file(folder_of(path, "hf"), &c, &error), DS_OK);
        if (!c) break;
        CHECK_EQ(ds_checkpoint_shard_count(c), 3);
        CHECK_EQ(ds_checkpoint_count(c), 5);
        CHECK_EQ(ds_checkpoint_read(c, "t3", 0, 100, DS_F32, got), DS_OK);
        CHECK(!memcmp(got, data[3], sizeof got));
        ds_checkpoint_close(c);
        file = slurp(folder_of(path, "hf/model.safetensors.index.json"), &bytes);
        CHECK(strstr(file, "\"total_size\": 2000") != NULL);
        CHECK(strstr(file, "\"t4\":\"model-00003-of-00003.safetensors\"") != NULL);
        { /* an index that leads elsewhere, names what is not there, or says where a tensor is not */
            static const char *const bad[] = {"../x", "/etc/passwd", "missing.safetensors",
                                              "model-00001-of-00003.safetensors"};
            for (size_t i = 0; i < 4; i++) {
                char text[2000];
                snprintf(text, sizeof text,
                         "{\"metadata\":{},\"weight_map\":{\"t4\":\"%s\",\"t0\":\"model-00001-of-00003.safetensors\"}}",
                         bad[i]);
                spew(path, text, strlen(text));
                CHECK_EQ(open_file(path, &c, &error), i == 2 ? DS_ERR_CORRUPT : DS_ERR_INPUT);
            }
        }
        free(file);
    }
    TEST(exports_fail_cleanly) {
        char path[FOLDER_BYTES];
        float data[10] = {0};
        const size_t shape[1] = {10};
        ds_checkpoint_tensor t;
        int finished = 0;
        memset(&t, 0, sizeof t);
        t.name = "t";
        t.shape = shape;
        t.dims = 1;
        t.count = 10;
        t.data = data;
        shell("mkdir -p '%s/faulty'", root);
        folder_of(path, "faulty/model.safetensors");
        for (int kind = 0; kind < 2; kind++) {
            finished = 0;
            for (long n = 1; n < 60 && !finished; n++) {
                ds_checkpoint_desc d;
                ds_error error = {DS_OK, ""};
                ds_checkpoint *c = NULL;
                test_memory memory;
                faults f;
                ds_status status;
                memset(&d, 0, sizeof d);
                memset(&f, 0, sizeof f);
                memset(&memory, 0, sizeof memory);
                use_faults(&d.files, &f);
                use_memory(&d.allocator, &memory);
                f.code = -ENOSPC;
                if (kind)
                    f.fail_at = n;
                else
                    memory.fail_at = (size_t)n;
                status = ds_safetensors_write(path, &t, 1, NULL, 0, 0, &d, &error);
                CHECK_EQ(memory.live, 0);
                CHECK(status == DS_OK || status == (kind ? DS_ERR_SPACE : DS_ERR_MEMORY));
                finished = kind ? f.calls < n : memory.calls < (size_t)n;
                if (status) shell("test ! -e '%s.tmp' || test %d = 1", path, kind);
                CHECK(status || !open_file(path, &c, &error));
                ds_checkpoint_close(c);
            }
            CHECK(finished);
        }
    }
}

/* ---- damage ---- */
static void keep_line(void *ctx, const char *header, int level, int id, const char *message) {
    (void)header, (void)level;
    if (id != 5) snprintf((char *)ctx, 1024, "%s", message);
}
static void test_damage(void) {
    TEST(bit_flips_and_truncations_are_found) {
        char folder[FOLDER_BYTES], path[3][FOLDER_BYTES + 64];
        char *file[3];
        size_t bytes[3], total = 0;
        uint64_t seed = 5;
        int missed = 0, unnamed = 0;
        const char *count = getenv("CHECKPOINT_FLIPS");
        const int flips = count ? atoi(count) : 400;
        ds_checkpoint_desc d;
        memset(&d, 0, sizeof d);
        folder_of(folder, "damage");
        save_well(2, folder, "tag", 1);
        d.folder = folder;
        snprintf(path[0], sizeof path[0], "%s/tag/rank-00000.safetensors", folder);
        snprintf(path[1], sizeof path[1], "%s/tag/rank-00001.safetensors", folder);
        snprintf(path[2], sizeof path[2], "%s/tag/manifest.json", folder);
        for (int i = 0; i < 3; i++) file[i] = slurp(path[i], &bytes[i]), total += bytes[i];
        for (int n = 0; n < flips; n++) {
            const int which = n % 3; /* small files get as many as the large */
            const size_t at = n % 2 ? test_random(&seed) % bytes[which]
                                    : test_random(&seed) % (bytes[which] < 1500 ? bytes[which] : 1500);
            const char bit = (char)(1 << (test_random(&seed) & 7)), was = file[which][at];
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            ds_status status;
            const int cut = n % 5 == 0;
            file[which][at] = (char)(was ^ bit);
            spew(path[which], file[which], cut ? at : bytes[which]);
            file[which][at] = was;
            if (cut && at == bytes[which]) continue;
            status = ds_checkpoint_open(&d, "tag", &c, &error);
            if (!status) {
                status = ds_checkpoint_verify(c);
                if (status) error = *ds_checkpoint_error(c);
            }
            if (!status)
                missed++;
            else if (!strstr(error.message, strrchr(path[which], '/') + 1))
                unnamed++;
            ds_checkpoint_close(c);
            spew(path[which], file[which], bytes[which]);
        }
        CHECK_EQ(missed, 0);
        CHECK_EQ(unnamed, 0);
        CHECK(loads(folder, NULL, 1));
        for (int i = 0; i < 3; i++) free(file[i]);
    }
    TEST(folders_that_lie) {
        char folder[FOLDER_BYTES], path[FOLDER_BYTES + 64], said[1024] = "", *text;
        static const char *const bad[] = {"", "../../etc", "/etc/passwd", ".", "no such tag", "latest"};
        size_t bytes;
        ds_checkpoint_desc d;
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        memset(&d, 0, sizeof d);
        folder_of(folder, "lies");
        d.folder = folder;
        CHECK_EQ(ds_checkpoint_open(&d, NULL, &c, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "there is no checkpoint in");
        save_well(2, folder, "first", 1);
        save_well(2, folder, "second", 2);
        snprintf(path, sizeof path, "%s/latest", folder);
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) { /* the newest complete one takes its place */
            spew(path, bad[i], strlen(bad[i]));
            CHECK(loads(folder, NULL, 2));
        }
        text = slurp("/nowhere", &bytes); /* zeros */
        spew(path, text, 1 << 20);
        memset(text, 'n', 202);
        spew(path, text, 202);
        free(text);
        CHECK(loads(folder, NULL, 2));
        spew(path, "first\n", 6);
        CHECK(loads(folder, NULL, 1));
        shell("rm '%s'", path);
        CHECK(loads(folder, NULL, 2));
        shell("rm '%s/second/rank-00001.safetensors'", folder);
        CHECK_EQ(ds_checkpoint_open(&d, "second", &c, &error), DS_ERR_CORRUPT);
        CHECK_HAS(error.message, "second/rank-00001.safetensors' is missing");
        CHECK(loads(folder, NULL, 1));
        {
            job j; /* `latest` names it: the other is opened, and the log says why */
            memset(&j, 0, sizeof j);
            spew(path, "second", 6);
            d.logger.log = keep_line;
            d.logger.ctx = said;
            CHECK_EQ(ds_checkpoint_open(&d, NULL, &c, &error), DS_OK);
            CHECK(c && holds(c, 1));
            ds_checkpoint_close(c);
            c = NULL;
            memset(&d.logger, 0, sizeof d.logger);
            CHECK_HAS(said, "opened 'first' instead: ");
            CHECK_HAS(said, "second/rank-00001.safetensors' is missing");
            shell("rm '%s'; mkdir '%s/second/rank-00001.safetensors'", path, folder);
            CHECK_EQ(ds_checkpoint_open(&d, "second", &c, &error), DS_ERR_CORRUPT);
            CHECK_HAS(error.message, "is not a plain file");
            shell("rmdir '%s/second/rank-00001.safetensors'", folder);
        }
        shell("ln -s ../first/rank-00001.safetensors '%s/second/rank-00001.safetensors'", folder);
        CHECK_EQ(ds_checkpoint_open(&d, "second", &c, &error), DS_ERR_CORRUPT);
        CHECK_HAS(error.message, "is not a plain file");
        shell("cp --remove-destination '%s/first/rank-00001.safetensors' '%s/second/rank-00001.safetensors'", folder,
              folder);
        CHECK_EQ(ds_checkpoint_open(&d, "second", &c, &error), DS_ERR_CORRUPT); /* of another save */
        shell("cp -r '%s/first' '%s/third'; ln -s first '%s/link'", folder, folder, folder);
        CHECK_EQ(ds_checkpoint_open(&d, "third", &c, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "another tag, 'first'");
        CHECK_EQ(ds_checkpoint_open(&d, "link", &c, &error), DS_ERR_INPUT);
        CHECK_EQ(ds_checkpoint_open(&d, "../lies/first", &c, &error), DS_ERR_ARGUMENT);
        CHECK(c == NULL);
        shell("mv '%s/first' '%s/first.old'", folder, folder); /* killed between two renames */
        CHECK(loads(folder, "first", 1));
        CHECK(loads(folder, NULL, 1));
        save_well(1, folder, "first", 5);
        CHECK(loads(folder, "first", 5));
    }
}

static void test_options(void) {
    TEST(keep_last) {
        char folder[FOLDER_BYTES], tag[32];
        folder_of(folder, "keep");
        for (int i = 1; i <= 5; i++) {
            job j;
            memset(&j, 0, sizeof j);
            snprintf(tag, sizeof tag, "step%d", i * 7 % 10); /* names say nothing about age */
            j.desc.keep_last = 2;
            CHECK_EQ(try_save(&j, folder, tag, i), DS_OK);
            if (i == 2) shell("mkdir '%s/mine'; touch '%s/mine/file'", folder, folder);
        }
        CHECK(loads(folder, NULL, 5));
        CHECK(loads(folder, "step8", 4));
        shell("test \"$(ls '%s' | tr '\\n' ' ')\" = 'latest mine step5 step8 '", folder);
    }
    TEST(old_checkpoints_that_cannot_go) {
        char folder[FOLDER_BYTES], line[1024] = "";
        int finished = 0, stayed = 0;
        for (long n = 1; n < 200 && !finished; n++) {
            job j;
            faults f;
            shell("rm -rf '%s'", folder_of(folder, "cannot_go"));
            for (int i = 1; i < 4; i++) {
                memset(&j, 0, sizeof j);
                CHECK_EQ(try_save(&j, folder, i == 1 ? "a" : i == 2 ? "b" : "c", i), DS_OK);
            }
            memset(&j, 0, sizeof j);
            memset(&f, 0, sizeof f);
            use_faults(&j.desc.files, &f);
            f.fail_at = n;
            f.code = -EIO;
            j.desc.keep_last = 1;
            j.desc.logger.log = keep_line;
            j.desc.logger.ctx = line;
            finished = try_save(&j, folder, "d", 4) == DS_OK && f.calls < n;
            CHECK(loads(folder, NULL, j.status ? 3 : 4));
            stayed += strstr(line, " stay") != NULL;
            line[0] = 0;
        }
        CHECK(finished && stayed > 1);
    }
    TEST(the_first_save_of_all_fails_anywhere) {
        char folder[FOLDER_BYTES];
        int finished = 0, failures = 0;
        for (long n = 1; n < 200 && !finished; n++) {
            job j;
            faults f;
            shell("rm -rf '%s'; mkdir '%s'", folder_of(folder, "first"), folder);
            memset(&j, 0, sizeof j);
            memset(&f, 0, sizeof f);
            use_faults(&j.desc.files, &f);
            f.fail_at = n;
            f.code = -EIO;
            if (try_save(&j, folder, "a", 1)) {
                CHECK_EQ(j.status, DS_ERR_IO);
                shell("test ! -e '%s/a' -a ! -e '%s/latest'", folder, folder);
                failures++;
            } else {
                CHECK(loads(folder, NULL, 1));
                finished = f.calls < n;
            }
        }
        CHECK(finished && failures > 10);
    }
    TEST(background) {
        char folder[FOLDER_BYTES];
        job jobs[3];
        folder_of(folder, "background");
        memset(jobs, 0, sizeof jobs);
        for (int r = 0; r < 3; r++) jobs[r].desc.background = true;
        save_all(jobs, 3, folder, "one", 1);
        for (int r = 0; r < 3; r++) CHECK_EQ(jobs[r].status, DS_OK);
        CHECK(loads(folder, NULL, 1));
        memset(jobs, 0, sizeof jobs);
        for (int r = 0; r < 3; r++) jobs[r].desc.background = true;
        no_threads = 1; /* the same, only not beside the training */
        save_all(jobs, 3, folder, "three", 3);
        no_threads = 0;
        CHECK(loads(folder, NULL, 3));
        shell("rm -r '%s/three'", folder);
        memset(jobs, 0, sizeof jobs);
        for (int r = 0; r < 3; r++) jobs[r].desc.background = true;
        jobs[1].fail_read = 1;
        save_all(jobs, 3, folder, "two", 2);
        for (int r = 0; r < 3; r++) CHECK_HAS(jobs[r].error.message, "rank 1: tensor 'big'");
        CHECK(loads(folder, NULL, 1));
    }
    TEST(tags_that_differ) {
        for (int validation = 0; validation < 3; validation++) {
            char folder[FOLDER_BYTES];
            job jobs[2];
            shell("rm -rf '%s'", folder_of(folder, "differ"));
            memset(jobs, 0, sizeof jobs);
            jobs[1].tag = "other";
            jobs[0].desc.tag_validation = jobs[1].desc.tag_validation = validation;
            save_all(jobs, 2, folder, "mine", 3);
            for (int r = 0; r < 2; r++) CHECK_EQ(jobs[r].status, validation == 2 ? DS_ERR_INPUT : DS_OK);
            if (validation == 2)
                CHECK_HAS(jobs[1].error.message, "'mine' on rank 0, 'other' on rank 1");
            else
                CHECK(loads(folder, "mine", 3));
        }
    }
    TEST(node_local) {
        char folder[2][FOLDER_BYTES];
        hub h;
        job jobs[4];
        ds_checkpoint_desc d;
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        float f[4];
        memset(&h, 0, sizeof h);
        memset(jobs, 0, sizeof jobs);
        memset(&d, 0, sizeof d);
        folder_of(folder[0], "node0");
        folder_of(folder[1], "node1");
        h.ranks = 4;
        pthread_barrier_init(&h.barrier, NULL, 4);
        for (int r = 0; r < 4; r++) {
            job *j = &jobs[r];
            j->place.h = &h;
            j->place.rank = r;
            j->desc.folder = folder[r / 2];
            j->desc.node_local = true;
            j->desc.local_rank = r % 2;
            j->desc.group.exchange = exchange;
            j->desc.group.ctx = &j->place;
            j->desc.group.rank = r;
            j->desc.group.size = 4;
            j->tag = "tag";
            j->step = 4;
            pthread_create(&j->thread, NULL, save_thread, j);
        }
        for (int r = 0; r < 4; r++) pthread_join(jobs[r].thread, NULL);
        for (int r = 0; r < 4; r++) CHECK_EQ(jobs[r].status, DS_OK);
        free(h.all);
        pthread_barrier_destroy(&h.barrier);
        d.folder = folder[1];
        CHECK_EQ(ds_checkpoint_open(&d, NULL, &c, &error), DS_OK);
        if (!c) break;
        CHECK_EQ(ds_checkpoint_read(c, "big", BIG - 4, 4, DS_F32, f), DS_OK);
        CHECK(f[3] == big_at(BIG - 1, 4));
        CHECK_EQ(ds_checkpoint_read(c, "big", 0, 4, DS_F32, f), DS_ERR_INPUT);
        CHECK_HAS(ds_checkpoint_error(c)->message, "another node");
        ds_checkpoint_close(c);
        d.folder = folder[0];
        CHECK_EQ(ds_checkpoint_open(&d, NULL, &c, &error), DS_OK);
        if (!c) break;
        CHECK_EQ(ds_checkpoint_read(c, "big", BIG - 4, 4, DS_F32, f), DS_ERR_INPUT);
        CHECK_HAS(ds_checkpoint_error(c)->message, "another node");
        ds_checkpoint_close(c);
        shell("cp '%s'/tag/rank-0000[01]* '%s/tag/'", folder[0], folder[1]); /* brought together */
        CHECK(loads(folder[1], NULL, 4));
    }
    TEST(misuse) {
        char folder[FOLDER_BYTES];
        ds_checkpoint_desc d;
        ds_checkpoint_writer *w = NULL;
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        float data[4] = {0};
        const size_t shape[1] = {4};
        static const char *const tags[] = {"",       ".hidden",          "a/b",  "..",   "x.tmp", "x.old",
                                           "latest", "latest_universal", "a\nb", "\xFF", "a\xC3"};
        char long_tag[202] = "";
        ds_checkpoint_tensor t;
        memset(&d, 0, sizeof d);
        memset(&t, 0, sizeof t);
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_ERR_ARGUMENT);
        d.folder = folder_of(folder, "misuse");
        for (size_t i = 0; i < sizeof tags / sizeof tags[0]; i++)
            CHECK_EQ(ds_checkpoint_begin(&d, tags[i], &w, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_begin(&d, NULL, &w, &error), DS_ERR_ARGUMENT);
        memset(long_tag, 't', sizeof long_tag - 1);
        CHECK_EQ(ds_checkpoint_begin(&d, long_tag, &w, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_begin_(&d, sizeof d - 8, DS_CHECKPOINT_VERSION, "tag", &w, &error), DS_ERR_VERSION);
        CHECK_EQ(ds_checkpoint_open_(&d, sizeof d, 1, "tag", &c, &error), DS_ERR_VERSION);
        CHECK(w == NULL && c == NULL);
        t.name = "t";
        t.shape = shape;
        t.dims = 1;
        t.count = 2;
        t.data = data;
        for (int k = 0; k < 6; k++) { /* a tensor with a hole, and what add refuses */
            CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_OK);
            if (!w) break;
            t.name = k == 1 ? "" : k == 2 ? "__metadata__" : k == 3 ? "\xFF" : "t";
            t.begin = k == 4 ? 3 : 0;
            CHECK_EQ(ds_checkpoint_add(w, &t), k >= 1 && k <= 4 ? DS_ERR_ARGUMENT : DS_OK);
            if (k == 5) CHECK_EQ(ds_checkpoint_add(w, &t), DS_ERR_ARGUMENT);
            CHECK_EQ(ds_checkpoint_commit(w, &error), k == 0 ? DS_ERR_INPUT : DS_ERR_ARGUMENT);
            if (k == 0) CHECK_HAS(error.message, "tensor 't': elements from 2 on are in no shard");
        }
        t.begin = 0;
        t.name = "t";
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_OK);
        CHECK_EQ(ds_checkpoint_set_integer(w, "k", 1), DS_OK);
        CHECK_EQ(ds_checkpoint_set_text(w, "k", "x"), DS_ERR_ARGUMENT);
        CHECK_HAS(ds_checkpoint_writer_error(w)->message, "'k' was set twice");
        ds_checkpoint_abandon(w);
        ds_checkpoint_abandon(NULL);
        ds_checkpoint_close(NULL);
        shell("test -z \"$(ls '%s')\"", folder);
    }
}

/* A DeepSpeed checkpoint of stage 1 and one rank, from the fuzzer's corpus (whose first byte is the kind of input). */
static void make_deepspeed(const char *folder) {
    static const char *const names[2][2] = {{"model", "mp_rank_00_model_states"},
                                            {"optim", "zero_pp_rank_0_mp_rank_00_optim_states"}};
    shell("rm -rf '%s'; mkdir -p '%s'", folder, folder);
    for (int i = 0; i < 2; i++)
        shell("tail -c +2 tests/fuzz/checkpoint_corpus/%s.pt > '%s/%s.pt'", names[i][0], folder, names[i][1]);
}
static void test_deepspeed(void) {
    TEST(deepspeed_stage_1) {
        char folder[FOLDER_BYTES];
        ds_checkpoint *c = NULL;
        ds_checkpoint_info info;
        ds_error error = {DS_OK, ""};
        int64_t step = 0;
        make_deepspeed(folder_of(folder, "deepspeed"));
        CHECK_EQ(open_file(folder, &c, &error), DS_OK);
        if (!c) break;
        CHECK_EQ(ds_checkpoint_get_format(c), DS_CHECKPOINT_DEEPSPEED);
        CHECK_EQ(ds_checkpoint_find(c, "optimizer.exp_avg_sq.fc1.weight", &info), DS_OK);
        CHECK(info.dims == 2 && info.shape[0] == 16 && info.shape[1] == 8 && info.dtype == DS_F32);
        CHECK_EQ(ds_checkpoint_find(c, "scale", &info), DS_OK);
        CHECK_EQ(ds_checkpoint_get_integer(c, "engine.step", &step), DS_OK);
        CHECK_EQ(step, 3);
        CHECK_EQ(ds_checkpoint_verify(c), DS_OK);
        ds_checkpoint_close(c);
    }
    TEST(deepspeed_faults) {
        char folder[FOLDER_BYTES];
        make_deepspeed(folder_of(folder, "deepspeed"));
        for (int kind = 0; kind < 2; kind++) {
            int finished = 0;
            for (long n = 1; n < 2000 && !finished; n++) {
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
                f.code = -EIO;
                if (kind)
                    f.fail_at = n;
                else
                    memory.fail_at = (size_t)n;
                status = ds_checkpoint_open_path(&d, folder, &c, &error);
                if (!status) status = ds_checkpoint_verify(c);
                if (c && status) error = *ds_checkpoint_error(c);
                /* a question whether a file is there may fail unnoticed where the answer is not needed */
                if (status) CHECK(error.status == status && error.message[0]);
                if (!kind && memory.calls >= (size_t)n) CHECK_EQ(status, DS_ERR_MEMORY);
                ds_checkpoint_close(c);
                finished = kind ? f.calls < n : memory.calls < (size_t)n;
                CHECK_EQ(memory.live, 0);
                CHECK_EQ(memory.mismatches, 0);
            }
            CHECK(finished);
        }
    }
    TEST(deepspeed_damage_in_data_is_found) {
        char folder[FOLDER_BYTES], path[FOLDER_BYTES + 64], *file, *payload;
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        size_t bytes;
        ds_status status;
        make_deepspeed(folder_of(folder, "deepspeed"));
        snprintf(path, sizeof path, "%s/zero_pp_rank_0_mp_rank_00_optim_states.pt", folder);
        file = slurp(path, &bytes);
        for (size_t at = 0; at + 15 < bytes; at++) { /* flip a bit in the data of each storage */
            if (memcmp(file + at, "archive/data/", 13) != 0 || at < 30 || memcmp(file + at - 30, "PK\3\4", 4) != 0)
                continue;
            payload = file + at + 20;
            *payload = (char)(*payload ^ 1);
            spew(path, file, bytes);
            *payload = (char)(*payload ^ 1);
            status = open_file(folder, &c, &error);
            if (!status) {
                status = ds_checkpoint_verify(c);
                error = *ds_checkpoint_error(c);
            }
            CHECK_EQ(status, DS_ERR_CORRUPT);
            CHECK_HAS(error.message, "optim_states.pt' is damaged");
            ds_checkpoint_close(c);
            c = NULL;
        }
        for (size_t n = 0; n < bytes; n += 97) { /* cut anywhere */
            spew(path, file, n);
            CHECK(open_file(folder, &c, &error) != DS_OK);
        }
        free(file);
    }
}

/* ---- writing for DeepSpeed ---- */
static const size_t flat_shape[1] = {7};
static const struct {
    const char *name;
    ds_dtype dtype;
    const size_t *shape;
    int dims;
    size_t count;
} model[] = {
    {"a.weight", DS_F32, big_shape, 2, BIG}, {"b", DS_F32, NULL, 0, 1},
    {"c.bias", DS_F32, flat_shape, 1, 7},    {"mask", DS_BOOL, flat_shape, 1, 7},
    {"frozen", DS_BF16, flat_shape, 1, 7},
};
/* A model of three trained tensors with two states each, and two tensors that are not; saved as ours. */
static ds_status save_model(const char *folder, const char *tag, int64_t step, const char *odd_name, ds_dtype odd) {
    static float data[BIG];
    static const uint16_t narrow[7] = {1, 2, 3, 4, 5, 6, 7};
    static const char *const prefixes[] = {"", "optimizer.exp_avg.", "optimizer.exp_avg_sq.",
                                           "optimizer.momentum_buffer."};
    ds_checkpoint_desc d;
    ds_checkpoint_writer *w = NULL;
    memset(&d, 0, sizeof d);
    d.folder = folder;
    for (size_t i = 0; i < BIG; i++) data[i] = (float)((int64_t)i * 3 + step);
    if (ds_checkpoint_begin(&d, tag, &w, NULL)) return DS_ERR_IO;
    for (int k = -1; k < 3; k++)
        for (size_t i = 0; i < 5; i++) {
            char name[64];
            ds_checkpoint_tensor t;
            memset(&t, 0, sizeof t);
            snprintf(name, sizeof name, "%s%s", prefixes[k + 1], i == 2 && odd_name ? odd_name : model[i].name);
            t.name = name;
            t.dtype = i == 3 ? odd : model[i].dtype;
            t.shape = model[i].shape;
            t.dims = model[i].dims;
            t.count = model[i].count;
            t.data = i < 3 ? (const void *)(data + 100 * (k + 1)) : narrow;
            if (i == 0) t.data = data;
            if (k < 0 || i < 3) ds_checkpoint_add(w, &t);
        }
    ds_checkpoint_set_integer(w, "engine.step", step);
    ds_checkpoint_set_integer(w, "engine.skipped", 2);
    ds_checkpoint_set_integer(w, "engine.samples", 5000000000);
    ds_checkpoint_set_integer(w, "optimizer.step", step - 2);
    ds_checkpoint_set_integer(w, "optimizer.schedule", step - 3);
    ds_checkpoint_set_number(w, "optimizer.lr", 0.001);
    return ds_checkpoint_commit(w, NULL);
}
static int same_tensors(ds_checkpoint *a, ds_checkpoint *b) {
    static unsigned char x[4 * BIG], y[4 * BIG];
    ds_checkpoint_info info, other;
    int same = ds_checkpoint_count(a) == ds_checkpoint_count(b);
    for (size_t i = 0; same && !ds_checkpoint_at(a, i, &info); i++) {
        same = !ds_checkpoint_find(b, info.name, &other) && info.dtype == other.dtype && info.dims == other.dims &&
               memcmp(info.shape, other.shape, sizeof info.shape) == 0 &&
               !ds_checkpoint_read(a, info.name, 0, info.numel, info.dtype, x) &&
               !ds_checkpoint_read(b, info.name, 0, info.numel, info.dtype, y) &&
               memcmp(x, y, info.numel * DS_DTYPE_SIZE(info.dtype)) == 0;
        if (!same) printf("  '%s' differs\n", info.name);
    }
    return same;
}
static void test_deepspeed_write(void) {
    TEST(what_is_written_for_deepspeed_comes_back_to_the_bit) {
        char own[FOLDER_BYTES], theirs[FOLDER_BYTES];
        static const int ranks[] = {0, 1, 2, 3, 7, 40};
        static const char *const keys[] = {"engine.step", "engine.skipped", "engine.samples", "optimizer.step",
                                           "optimizer.schedule"};
        ds_checkpoint *a = NULL;
        ds_error error = {DS_OK, ""};
        CHECK_EQ(save_model(folder_of(own, "for_deepspeed"), "tag", 9, NULL, DS_BOOL), DS_OK);
        CHECK_EQ(open_file(own, &a, &error), DS_OK);
        if (!a) break;
        for (int stage = 0; stage < 4; stage++)
            for (size_t r = 0; r < sizeof ranks / sizeof ranks[0]; r++) {
                ds_checkpoint *b = NULL;
                shell("rm -rf '%s'", folder_of(theirs, "deepspeed_written"));
                if (!CHECK_EQ(ds_deepspeed_write(a, theirs, "t", stage, ranks[r], &error), DS_OK)) continue;
                shell("test \"$(cat '%s'/latest%s)\" = t", theirs, stage ? "" : "_universal");
                CHECK_EQ(open_file(theirs, &b, &error), DS_OK);
                if (!b) continue;
                CHECK_EQ(ds_checkpoint_get_format(b),
                         stage ? DS_CHECKPOINT_DEEPSPEED : DS_CHECKPOINT_DEEPSPEED_UNIVERSAL);
                CHECK_EQ(ds_checkpoint_verify(b), DS_OK);
                if (!stage) { /* it alone counts, whatever `latest` says */
                    ds_checkpoint_desc d;
                    ds_checkpoint *universal = NULL;
                    memset(&d, 0, sizeof d);
                    d.load_universal = true;
                    shell("printf nothing > '%s/latest'", theirs);
                    CHECK_EQ(ds_checkpoint_open_path(&d, theirs, &universal, &error), DS_OK);
                    ds_checkpoint_close(universal);
                }
                CHECK(same_tensors(a, b));
                for (int k = 0; k < 5; k++) {
                    int64_t x = -1, y = -2;
                    CHECK_EQ(ds_checkpoint_get_integer(a, keys[k], &x), DS_OK);
                    CHECK_EQ(ds_checkpoint_get_integer(b, keys[k], &y), DS_OK);
                    CHECK_EQ(x, y);
                }
                ds_checkpoint_close(b);
            }
        ds_checkpoint_close(a);
    }
    TEST(weights_alone_are_written_for_deepspeed) {
        char file[FOLDER_BYTES + 32], theirs[FOLDER_BYTES];
        const float data[7] = {1, 2, 3, 4, 5, 6, 7};
        const ds_checkpoint_tensor t = {"w", DS_F32, flat_shape, 1, 0, 7, data, NULL, NULL};
        ds_checkpoint *a = NULL, *b = NULL;
        ds_error error = {DS_OK, ""};
        int64_t step = -1;
        snprintf(file, sizeof file, "%s/weights.safetensors", root);
        folder_of(theirs, "deepspeed_weights");
        CHECK_EQ(ds_safetensors_write(file, &t, 1, NULL, 0, 0, NULL, &error), DS_OK);
        CHECK_EQ(open_file(file, &a, &error), DS_OK);
        if (!a) break;
        CHECK_EQ(ds_deepspeed_write(a, theirs, "t", 2, 2, &error), DS_OK);
        CHECK_EQ(open_file(theirs, &b, &error), DS_OK);
        if (b) CHECK(same_tensors(a, b) && !ds_checkpoint_get_integer(b, "engine.step", &step) && step == 0);
        ds_checkpoint_close(b);
        for (int k = 0; k < 6; k++)
            CHECK_EQ(ds_deepspeed_write(k ? a : NULL, k == 1 ? "" : theirs, k == 2 ? "a/b" : "t",
                                        k == 3   ? 4
                                        : k == 4 ? -1
                                                 : 1,
                                        k == 5 ? -1 : 1, &error),
                     DS_ERR_ARGUMENT);
        ds_checkpoint_close(a);
    }
    TEST(a_state_that_one_tensor_lacks_is_zeros) {
        char own[FOLDER_BYTES], theirs[FOLDER_BYTES], name[128] = "optimizer.";
        const float data[7] = {1, 2, 3, 4, 5, 6, 7}, zeros[7] = {0};
        const ds_checkpoint_tensor t[] = {{"w", DS_F32, flat_shape, 1, 0, 7, data, NULL, NULL},
                                          {"v", DS_F32, flat_shape, 1, 0, 7, data, NULL, NULL},
                                          {"optimizer.one.w", DS_F32, flat_shape, 1, 0, 7, data, NULL, NULL},
                                          {"optimizer.one.v", DS_F32, flat_shape, 1, 0, 7, data, NULL, NULL},
                                          {"optimizer.two.w", DS_F32, flat_shape, 1, 0, 7, data, NULL, NULL},
                                          {name, DS_F32, flat_shape, 1, 0, 7, data, NULL, NULL}};
        ds_checkpoint_desc d;
        ds_checkpoint_writer *w = NULL;
        ds_checkpoint *a = NULL, *b = NULL;
        ds_error error = {DS_OK, ""};
        float got[7];
        memset(name + 10, 'n', 100); /* a state with a name that is too long is none */
        memcpy(name + 110, ".w", 3);
        memset(&d, 0, sizeof d);
        d.folder = folder_of(own, "lacks");
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_OK);
        for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) ds_checkpoint_add(w, &t[i]);
        CHECK_EQ(ds_checkpoint_commit(w, &error), DS_OK);
        CHECK_EQ(open_file(own, &a, &error), DS_OK);
        for (int stage = 1; stage < 4 && a; stage++) {
            shell("rm -rf '%s'", folder_of(theirs, "lacks_written"));
            CHECK_EQ(ds_deepspeed_write(a, theirs, "t", stage, 2, &error), DS_OK);
            CHECK_EQ(open_file(theirs, &b, &error), DS_OK);
            if (!b) break;
            CHECK_EQ(ds_checkpoint_read(b, "optimizer.two.w", 0, 7, DS_F32, got), DS_OK);
            CHECK(memcmp(got, data, sizeof got) == 0);
            CHECK_EQ(ds_checkpoint_read(b, "optimizer.two.v", 0, 7, DS_F32, got), DS_OK);
            CHECK(memcmp(got, zeros, sizeof got) == 0);
            ds_checkpoint_close(b);
        }
        ds_checkpoint_close(a);
    }
    TEST(what_deepspeed_cannot_hold_is_refused) {
        static const char *const names[3] = {"a/b", NULL, NULL};
        for (int k = 0; k < 3; k++) {
            char own[FOLDER_BYTES], theirs[FOLDER_BYTES];
            ds_checkpoint *a = NULL;
            ds_error error = {DS_OK, ""};
            shell("rm -rf '%s' '%s'", folder_of(own, "refused"), folder_of(theirs, "refused_written"));
            CHECK_EQ(save_model(own, "tag", 9, names[k], k == 1 ? DS_U8 : DS_BOOL), DS_OK);
            CHECK_EQ(open_file(own, &a, &error), DS_OK);
            if (!a) break;
            CHECK_EQ(ds_deepspeed_write(a, theirs, "t", k == 2 ? 1 : 0, 1, &error), k ? DS_OK : DS_ERR_UNSUPPORTED);
            if (!k) {
                CHECK_HAS(error.message, "'a/b'");
                shell("test -z \"$(ls '%s')\"", theirs);
            }
            ds_checkpoint_close(a);
        }
    }
    TEST(a_failed_write_for_deepspeed_leaves_the_last_one) {
        char own[FOLDER_BYTES], theirs[FOLDER_BYTES];
        ds_checkpoint *a = NULL;
        ds_error error = {DS_OK, ""};
        CHECK_EQ(save_model(folder_of(own, "before_faults"), "tag", 9, NULL, DS_BOOL), DS_OK);
        CHECK_EQ(open_file(own, &a, &error), DS_OK);
        if (!a) break;
        folder_of(theirs, "deepspeed_faults");
        CHECK_EQ(ds_deepspeed_write(a, theirs, "first", 0, 1, &error), DS_OK);
        ds_checkpoint_close(a);
        for (int kind = 0; kind < 2; kind++) {
            int finished = 0, failures = 0;
            for (long n = 1; n < 3000 && !finished; n += n < 60 ? 1 : 5) {
                ds_checkpoint_desc d;
                ds_checkpoint *c = NULL;
                test_memory memory;
                faults f;
                ds_status status;
                long before;
                memset(&d, 0, sizeof d);
                memset(&f, 0, sizeof f);
                memset(&memory, 0, sizeof memory);
                use_faults(&d.files, &f);
                use_memory(&d.allocator, &memory);
                f.code = n % 3 ? -EIO : -ENOSPC;
                if (!CHECK_EQ(ds_checkpoint_open_path(&d, own, &c, &error), DS_OK)) break;
                before = kind ? f.calls : (long)memory.calls;
                f.fail_at = kind ? before + n : 0;
                memory.fail_at = kind ? 0 : (size_t)(before + n);
                memset(&error, 0, sizeof error);
                status = ds_deepspeed_write(c, theirs, "second", 0, 1, &error);
                finished = kind ? f.calls < before + n : memory.calls < (size_t)(before + n);
                ds_checkpoint_close(c);
                CHECK_EQ(memory.live, 0);
                CHECK_EQ(memory.mismatches, 0);
                if (!status) { /* the fault met nothing that matters */
                    shell("rm -rf '%s/second'; printf first > '%s/latest_universal'", theirs, theirs);
                    continue;
                }
                failures++;
                CHECK(error.status == status && error.message[0]);
                shell("test \"$(cat '%s/latest_universal')\" = first -a ! -e '%s/second'", theirs, theirs);
            }
            CHECK(finished && failures > 10);
        }
        CHECK_EQ(open_file(theirs, &a, &error), DS_OK);
        if (a) CHECK_EQ(ds_checkpoint_verify(a), DS_OK);
        ds_checkpoint_close(a);
    }
}

/* ---- what callers do wrong ---- */
static ds_status exchange_fails(void *ctx, const void *mine, void *all, size_t bytes) {
    int *left = (int *)ctx;
    if ((*left)-- > 0) return memcpy(all, mine, bytes), memcpy((char *)all + bytes, mine, bytes), DS_OK;
    return DS_ERR_PEER;
}
static void test_misuse(void) {
    TEST(texts_that_are_not_utf8) {
        static const struct {
            const char *text;
            bool good;
        } texts[] = {
            {"a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xEE\x80\x80\xF4\x8F\xBF\xBF\xE0\xA0\x80\xED\x9F\xBF", true},
            {"\x80", false},
            {"\xC0\x80", false},
            {"\xC1\xBF", false},
            {"\xC3", false},
            {"\xE0\x9F\xBF", false},
            {"\xED\xA0\x80", false},
            {"\xE2\x82", false},
            {"\xF0\x8F\xBF\xBF", false},
            {"\xF4\x90\x80\x80", false},
            {"\xF5\x80\x80\x80", false},
            {"\xFF", false},
            {"\xF0\x9F\x98z", false}};
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
            char folder[FOLDER_BYTES];
            ds_checkpoint_desc d;
            ds_checkpoint_writer *w = NULL;
            memset(&d, 0, sizeof d);
            d.folder = folder_of(folder, "utf8");
            CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, NULL), DS_OK);
            CHECK_EQ(ds_checkpoint_set_text(w, "key", texts[i].text), texts[i].good ? DS_OK : DS_ERR_ARGUMENT);
            CHECK_EQ(ds_checkpoint_set_integer(w, texts[i].text, 1), texts[i].good ? DS_OK : DS_ERR_ARGUMENT);
            ds_checkpoint_abandon(w);
        }
    }
    TEST(tensors_and_values_that_make_no_sense) {
        const size_t shape[9] = {2, 2, 1, 1, 1, 1, 1, 1, 1}, huge[3] = {SIZE_MAX / 2, SIZE_MAX / 2, 2},
                     large[1] = {SIZE_MAX >> 7};
        const float data[4] = {1, 2, 3, 4};
        const ds_checkpoint_tensor bad[] = {
            {NULL, DS_F32, shape, 2, 0, 4, data, NULL, NULL},
            {"t", (ds_dtype)-1, shape, 2, 0, 4, data, NULL, NULL},
            {"t", (ds_dtype)13, shape, 2, 0, 4, data, NULL, NULL},
            {"t", DS_F32, shape, -1, 0, 4, data, NULL, NULL},
            {"t", DS_F32, shape, 9, 0, 4, data, NULL, NULL},
            {"t", DS_F32, NULL, 1, 0, 4, data, NULL, NULL},
            {"t", DS_F32, huge, 3, 0, 4, data, NULL, NULL},
            {"t", DS_F32, large, 1, 0, 4, data, NULL, NULL},
            {"t", DS_F32, shape, 2, 5, 0, data, NULL, NULL},
            {"t", DS_F32, shape, 2, 1, 4, data, NULL, NULL},
            {"t", DS_F32, shape, 2, 0, 4, NULL, NULL, NULL},
            {"t", DS_F32, shape, 2, 0, 5, NULL, read_big, NULL},
        };
        char folder[FOLDER_BYTES];
        ds_checkpoint_desc d;
        ds_checkpoint_writer *w = NULL;
        ds_error error = {DS_OK, ""};
        memset(&d, 0, sizeof d);
        d.folder = folder_of(folder, "nonsense");
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_OK);
        if (!w) break;
        CHECK_EQ(ds_checkpoint_add(w, NULL), DS_ERR_ARGUMENT);
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            CHECK_EQ(ds_checkpoint_add(w, &bad[i]), DS_ERR_ARGUMENT);
            CHECK_EQ(ds_safetensors_write("build/tests/never", &bad[i], 1, NULL, 0, 0, NULL, &error), DS_ERR_ARGUMENT);
        }
        CHECK_EQ(ds_checkpoint_set_text(w, NULL, "x"), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_set_text(w, NULL, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_set_integer(w, "", 1), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_set_number(w, NULL, 1), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_finish(w, &error), DS_ERR_STATE);
        CHECK_EQ(ds_checkpoint_finish(NULL, &error), DS_ERR_STATE);
        CHECK_EQ(ds_checkpoint_commit(NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_commit(w, &error), DS_ERR_ARGUMENT); /* the first failure counts */
        CHECK_HAS(error.message, "expected a name in UTF-8");
        d.background = true;
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_OK);
        CHECK_EQ(ds_checkpoint_set_number(w, "minus", -HUGE_VAL), DS_OK);
        CHECK_EQ(ds_checkpoint_set_number(w, "none", HUGE_VAL - HUGE_VAL), DS_OK);
        CHECK_EQ(ds_checkpoint_commit(w, &error), DS_OK);
        CHECK_EQ(ds_checkpoint_commit(w, &error), DS_ERR_STATE);
        CHECK_EQ(ds_checkpoint_add(w, &bad[0]), DS_ERR_STATE);
        CHECK_EQ(ds_checkpoint_set_integer(w, "late", 1), DS_ERR_STATE);
        ds_checkpoint_abandon(w);
        shell("test -z \"$(ls '%s')\"", folder);
    }
    TEST(calls_without_what_they_need) {
        char folder[FOLDER_BYTES], deep[4200];
        const float data[1] = {1};
        const ds_checkpoint_tensor t = {"t", DS_F32, NULL, 0, 0, 1, data, NULL, NULL};
        const char *const metadata[2] = {"key", "\xFF"}, *const none[2] = {"key", NULL};
        ds_checkpoint_desc d;
        ds_checkpoint_writer *w = NULL;
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        ds_checkpoint_info info;
        ds_checkpoint_value value;
        ds_checkpoint_shard_info shard;
        float f[1];
        memset(&d, 0, sizeof d);
        memset(deep, 'a', sizeof deep - 1);
        deep[sizeof deep - 1] = 0;
        folder_of(folder, "needs");
        CHECK_EQ(ds_checkpoint_begin_(&d, 1, DS_CHECKPOINT_VERSION, "tag", NULL, &error), DS_ERR_VERSION);
        CHECK_EQ(ds_checkpoint_begin_(NULL, sizeof d, DS_CHECKPOINT_VERSION, "tag", &w, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_open_(NULL, sizeof d, DS_CHECKPOINT_VERSION, NULL, &c, &error), DS_ERR_ARGUMENT);
        for (int k = 0; k < 8; k++) {
            memset(&d, 0, sizeof d);
            d.folder = k == 0 ? deep : k == 1 ? "" : folder;
            d.tag_validation = k == 2 ? -1 : k == 3 ? 3 : 0;
            d.keep_last = k == 4 ? -1 : 0;
            d.group.rank = k == 5 ? -1 : k == 6 ? 2 : 0;
            d.group.size = k > 5 ? 2 : 0;
            d.group.exchange = k == 6 ? exchange_fails : NULL;
            CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_ERR_ARGUMENT);
            if (k < 2) CHECK_EQ(ds_checkpoint_open(&d, NULL, &c, &error), DS_ERR_ARGUMENT);
        }
        CHECK(w == NULL && c == NULL);
        memset(&d, 0, sizeof d);
        CHECK_EQ(ds_checkpoint_open(&d, NULL, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_open_path(&d, NULL, &c, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_open_path(&d, "", &c, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_open_path(&d, deep, &c, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_open_path(&d, folder, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_open_path_(&d, 1, DS_CHECKPOINT_VERSION, folder, &c, &error), DS_ERR_VERSION);
        CHECK_EQ(ds_safetensors_write(NULL, &t, 1, NULL, 0, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_safetensors_write("", &t, 1, NULL, 0, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_safetensors_write("build/", &t, 1, NULL, 0, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_safetensors_write(deep, &t, 1, NULL, 0, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_safetensors_write("x", NULL, 1, NULL, 0, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_safetensors_write("x", &t, 1, NULL, 1, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_safetensors_write("x", &t, 1, metadata, 1, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_safetensors_write("x", &t, 1, none, 1, 0, NULL, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_safetensors_write("/nowhere/x", &t, 1, NULL, 0, 0, NULL, &error), DS_ERR_IO);
        save_well(1, folder, "tag", 1);
        d.folder = folder;
        CHECK_EQ(ds_checkpoint_open(&d, NULL, &c, &error), DS_OK);
        if (!c) break;
        CHECK_EQ(ds_checkpoint_at(c, 99, &info), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_value_at(c, 99, &value), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_shard_at(c, 99, &shard), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_read(c, "no", 0, 1, DS_F32, f), DS_ERR_INPUT);
        CHECK_EQ(ds_checkpoint_read(c, "big", BIG + 1, 0, DS_F32, f), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_read(c, "big", 1, BIG, DS_F32, f), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_read(c, "big", 0, 1, DS_F32, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_read(c, "big", 0, 1, (ds_dtype)-1, f), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_read(c, "big", 0, 1, (ds_dtype)13, f), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_read(c, "big", 0, 1, DS_I8, f), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_read(c, "empty", 0, 0, DS_F32, f), DS_ERR_ARGUMENT);
        ds_checkpoint_close(c);
    }
    TEST(an_exchange_that_fails) {
        for (int good = 0; good < 7; good++) {
            char folder[FOLDER_BYTES];
            ds_checkpoint_desc d;
            ds_checkpoint_writer *w = NULL;
            ds_error error = {DS_OK, ""};
            ds_status status;
            const float data[1] = {1};
            const ds_checkpoint_tensor t = {"t", DS_F32, NULL, 0, 0, 1, data, NULL, NULL};
            int left = good;
            shell("rm -rf '%s'", folder_of(folder, "exchange_fails"));
            memset(&d, 0, sizeof d);
            d.folder = folder;
            d.group.exchange = exchange_fails;
            d.group.ctx = &left;
            d.group.size = 2;
            status = ds_checkpoint_begin(&d, "tag", &w, &error);
            if (!status) {
                ds_checkpoint_add(w, &t);
                status = ds_checkpoint_commit(w, &error);
            }
            CHECK(status == DS_ERR_PEER || (good > 3 && status)); /* later the second rank's shard is missed */
            CHECK(error.message[0] && error.status == status);
            shell("test ! -e '%s/latest'", folder);
        }
    }
    TEST(every_float_type_reads_as_every_other) {
        static const double values[] = {
            0.0, -0.0, 1.0, -1.5, 65504.0, 1e-3, -1e-7, 3.0e38, 1.0 + 0x1p-8 + 0x1p-40, 1.0 + 0x3p-8 - 0x1p-40};
        static const ds_dtype types[4] = {DS_F32, DS_F16, DS_BF16, DS_F64};
        const size_t shape[1] = {10};
        char path[FOLDER_BYTES + 32];
        snprintf(path, sizeof path, "%s/floats.safetensors", root);
        for (int from = 0; from < 4; from++) {
            unsigned char data[80], out[80];
            ds_checkpoint_tensor t = {"t", types[from], shape, 1, 0, 10, data, NULL, NULL};
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            double exact[10];
            dsi_checkpoint_convert(data, types[from], values, DS_F64, 10);
            dsi_checkpoint_convert(exact, DS_F64, data, types[from], 10);
            CHECK_EQ(ds_safetensors_write(path, &t, 1, NULL, 0, 0, NULL, &error), DS_OK);
            CHECK_EQ(open_file(path, &c, &error), DS_OK);
            for (int to = 0; to < 4 && c; to++) {
                CHECK_EQ(ds_checkpoint_read(c, "t", 0, 10, types[to], out), DS_OK);
                for (int i = 0; i < 10; i++) {
                    float single = (float)exact[i];
                    uint16_t narrow;
                    double wide = exact[i];
                    const void *want = &wide;
                    if (types[to] == DS_F32) want = &single;
                    if (types[to] == DS_F16 ||
                        types[to] == DS_BF16) { /* double rounding only where fp32 was not exact */
                        if ((double)single != exact[i]) continue;
                        narrow = types[to] == DS_F16 ? dsi_f16_of_f32(single) : dsi_bf16_of_f32(single);
                        want = &narrow;
                    }
                    CHECK(memcmp(out + (size_t)i * DS_DTYPE_SIZE(types[to]), want, DS_DTYPE_SIZE(types[to])) == 0);
                }
            }
            ds_checkpoint_close(c);
        }
        {
            const double none = HUGE_VAL - HUGE_VAL;
            uint16_t narrow[2];
            dsi_checkpoint_convert(&narrow[0], DS_BF16, &none, DS_F64, 1);
            dsi_checkpoint_convert(&narrow[1], DS_F16, &none, DS_F64, 1);
            CHECK((narrow[0] & 0x7F80) == 0x7F80 && (narrow[0] & 0x7F) && (narrow[1] & 0x7C00) == 0x7C00 &&
                  (narrow[1] & 0x3FF));
        }
        { /* their fp32 values are in the middle of two of bf16; they are rounded once, not twice */
            uint16_t narrow[2];
            dsi_checkpoint_convert(narrow, DS_BF16, &values[8], DS_F64, 2);
            CHECK(dsi_f32_of_bf16(narrow[0]) == 1.0f + 0x1p-7f);
            CHECK(dsi_f32_of_bf16(narrow[1]) == 1.0f + 0x1p-7f);
        }
    }
}

/* ---- pickles that lie ---- */
/* A .pt file of this pickle (its stop is added) and one storage, "data/0", of four bytes. */
static void write_pt(const char *folder, const char *name, const char *pickle, size_t bytes) {
    static dsi_checkpoint_pt p;
    const dsi_checkpoint_storage one = {NULL, 0, 1, DS_F32, 0, 1.5f};
    memset(&p, 0, sizeof p);
    p.w.desc.files = dsi_files(NULL);
    p.pickle.each = p.header.each = p.directory.each = 1;
    p.storages.each = sizeof one;
    snprintf(p.w.made, sizeof p.w.made, "%s", folder);
    dsi_checkpoint_pt_bytes(&p, &p.pickle, pickle, bytes);
    dsi_checkpoint_pt_bytes(&p, &p.storages, &one, 1);
    dsi_checkpoint_pt_end(&p, name);
    CHECK_EQ(p.status, DS_OK);
    dsi_checkpoint_list_free(NULL, &p.pickle);
    dsi_checkpoint_list_free(NULL, &p.storages);
    dsi_checkpoint_list_free(NULL, &p.header);
    dsi_checkpoint_list_free(NULL, &p.directory);
}
#define PICKLE(text)              text, sizeof text - 1
#define TEXT1(letter)             "X\1\0\0\0" letter
#define STORAGE(kind, key, numel) "(X\7\0\0\0storagectorch\n" kind "\nX\1\0\0\0" key "X\3\0\0\0cpu" numel "tQ"
#define ONE                       "K\1"
#define REBUILD                   "ctorch._utils\n_rebuild_tensor_v2\n("
#define MODULE(value)             "}X\6\0\0\0module}" TEXT1("w") value "ss"
#define TENSOR                    REBUILD STORAGE("FloatStorage", "0", ONE) "K\0))\x89}tR"
#define REBUILD_NAME              "ctorch._utils\n_rebuild_tensor_v2\n"
#define TYPED_NAME                "ctorch._tensor\n_rebuild_from_type_v2\n"
#define TYPED(callable, args)     TYPED_NAME "(" callable "ctorch\nTensor\n" args "}tR"
#define A64                       "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define A256                      A64 A64 A64 A64
#define LONG_TEXT                 "X\0\4\0\0" A256 A256 A256 A256
static const struct {
    const char *name, *pickle;
    size_t bytes;
    ds_status status;
    const char *message;
} pickles[] = {
    {"an empty dict", PICKLE("\x80\2}"), DS_OK, ""},
    {"a scalar tensor", PICKLE(MODULE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\0))\x89}tR")), DS_OK, ""},
    {"all kinds of numbers and texts",
     PICKLE("\x80\2\x95\0\0\0\0\0\0\0\0NJ\1\0\0\0M\1\0\x8A\0\x8A\2\xFF\xFF\x8A\1\1G\0\0\0\0\0\0\0\0\x88\x89U\1aC\1aT\1"
            "\0\0\0aB"
            "\1\0\0\0a\x8C\1a\x8D\1\0\0\0\0\0\0\0a00}"),
     DS_OK, ""},
    {"the memo", PICKLE("}q\0r\5\0\0\0\x94h\0j\5\0\0\0000"), DS_OK, ""},
    {"containers and objects",
     PICKLE("](K\1K\2eK\3a\x8F(K\1\x90)K\1\x85K\1K\2\x86K\1K\2K\3\x87(K\1tccollections\nOrderedDict\n)Rc__builtin__"
            "\nset\n]\x85R"
            "cargparse\nNamespace\n)\x81}b}K\1K\2s(K\3K\4ucargparse\nNamespace\n)\x81(K\1K\2u}"),
     DS_OK, ""},
    {"a text with a NUL", PICKLE("X\3\0\0\0a\0b}"), DS_OK, ""},
    {"nothing", PICKLE(""), DS_ERR_INPUT, "its stack is empty"},
    {"a memo of nothing", PICKLE("q\0"), DS_ERR_INPUT, "its stack is empty"},
    {"a memo far away", PICKLE("Nr\xFF\xFF\xFF\xFF"), DS_ERR_INPUT, "its memo is too large"},
    {"a memo that lacks", PICKLE("h\5"), DS_ERR_INPUT, "its memo lacks a value"},
    {"a memo that lacks, long", PICKLE("Nq\3j\1\0\0\0"), DS_ERR_INPUT, "its memo lacks a value"},
    {"a tuple without a mark", PICKLE("t"), DS_ERR_INPUT, "a tuple without a mark"},
    {"a pair of one", PICKLE("N\x86"), DS_ERR_INPUT, "its stack is empty"},
    {"nothing to add to", PICKLE("a"), DS_ERR_INPUT, "nothing to add to"},
    {"a mark to add to", PICKLE("(e"), DS_ERR_INPUT, "nothing to add to"},
    {"a list of a dict", PICKLE("}K\1a"), DS_ERR_INPUT, "no container for them"},
    {"a dict of a list", PICKLE("](K\1K\2u"), DS_ERR_INPUT, "no container for them"},
    {"a key without a value", PICKLE("}(K\1u"), DS_ERR_INPUT, "no container for them"},
    {"a long integer", PICKLE("\x8A\x09\1\1\1\1\1\1\1\1\1"), DS_ERR_INPUT, "more than 64 bits"},
    {"a cut integer", PICKLE("J\1"), DS_ERR_INPUT, "it ends in the middle"},
    {"a cut real", PICKLE("G\1"), DS_ERR_INPUT, "it ends in the middle"},
    {"a cut text", PICKLE("X\xFF\xFF\xFF\x7F"), DS_ERR_INPUT, "it ends in the middle"},
    {"a text of 2^63 bytes", PICKLE("\x8D\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"), DS_ERR_INPUT, "a string is too long"},
    {"a name that does not end", PICKLE("cabc"), DS_ERR_INPUT, "a name does not end"},
    {"a name that does not end either", PICKLE("cabc\nd"), DS_ERR_INPUT, "a name does not end"},
    {"a call", PICKLE("cos\nsystem\n)R"), DS_ERR_UNSUPPORTED, "'os system', which is not known and is never called"},
    {"a call by its texts", PICKLE("X\2\0\0\0osX\6\0\0\0system\x93"), DS_ERR_UNSUPPORTED, "'os system'"},
    {"a name of numbers", PICKLE("K\1K\1\x93"), DS_ERR_INPUT, "a name is no text"},
    {"a call of a number", PICKLE("K\1)R"), DS_ERR_INPUT, "what is called is no name"},
    {"a call of nothing", PICKLE(")R"), DS_ERR_INPUT, "its stack is empty"},
    {"a state of nothing", PICKLE("}b"), DS_ERR_INPUT, "its stack is empty"},
    {"a name of nothing", PICKLE("N\x93"), DS_ERR_INPUT, "its stack is empty"},
    {"a pop of nothing", PICKLE("0"), DS_ERR_INPUT, "its stack is empty"},
    {"an opcode of Python 2", PICKLE("I1\n"), DS_ERR_INPUT, "an opcode that torch does not write"},
    {"a frame that is cut", PICKLE("\x95\0"), DS_ERR_INPUT, "it ends in the middle"},
    {"no storage", PICKLE("Q"), DS_ERR_INPUT, "its stack is empty"},
    {"a number as storage", PICKLE("K\1Q"), DS_ERR_INPUT, "a storage is not described as torch does"},
    {"a storage of another type", PICKLE(STORAGE("Size", "0", ONE)), DS_ERR_INPUT, "a storage is not described"},
    {"a storage under a number", PICKLE("(NctorchX\1\0\0\0ntQ"), DS_ERR_INPUT, "does not end"},
    {"a storage of -1", PICKLE(STORAGE("FloatStorage", "0", "J\xFF\xFF\xFF\xFF")), DS_ERR_INPUT, "not described"},
    {"a storage that lies", PICKLE(STORAGE("FloatStorage", "0", "K\2")), DS_ERR_INPUT, "shorter than it is said to be"},
    {"a storage elsewhere", PICKLE(STORAGE("FloatStorage", "7", ONE)), DS_ERR_INPUT, "a storage is not in the file"},
    {"a tensor of nothing", PICKLE(REBUILD "tR"), DS_ERR_INPUT, "a tensor is not described as torch does"},
    {"an offset below 0", PICKLE(REBUILD STORAGE("FloatStorage", "0", ONE) "J\xFF\xFF\xFF\xFF))\x89}tR"), DS_ERR_INPUT,
     "a tensor is not described"},
    {"a size below 0", PICKLE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\0J\xFF\xFF\xFF\xFF\x85K\1\x85\x89}tR"),
     DS_ERR_INPUT, "a tensor is not described"},
    {"nine dimensions", PICKLE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\0(K\1K\1K\1K\1K\1K\1K\1K\1K\1t)\x89}tR"),
     DS_ERR_INPUT, "a tensor is not described"},
    {"beyond its storage", PICKLE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\1))\x89}tR"), DS_ERR_INPUT,
     "a tensor reaches beyond its storage"},
    {"far beyond", PICKLE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\2))\x89}tR"), DS_ERR_INPUT,
     "beyond its storage"},
    {"a size of 2^96",
     PICKLE(
         REBUILD STORAGE("FloatStorage", "0", ONE) "K\0\x8A\4\0\0\0\x7F\x8A\4\0\0\0\x7F\x8A\4\0\0\0\x7F\x87)\x89}tR"),
     DS_ERR_INPUT, "a tensor is not described"},
    {"strides", PICKLE(MODULE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\0K\1\x85K\5\x85\x89}tR")), DS_OK, ""},
    {"strides that count", PICKLE(MODULE(REBUILD STORAGE("ByteStorage", "0", "K\4") "K\0K\2\x85K\2\x85\x89}tR")),
     DS_ERR_UNSUPPORTED, "is stored with strides"},
    {"a parameter of a tensor",
     PICKLE(MODULE(
         "ctorch._utils\n_rebuild_parameter\n(" REBUILD STORAGE("FloatStorage", "0", ONE) "K\0))\x89}tR\x88}tR")),
     DS_OK, ""},
    {"a module that is a number", PICKLE("}X\6\0\0\0moduleK\1s"), DS_OK, ""},
    {"a module of numbers", PICKLE(MODULE("K\1")), DS_OK, ""},
    {"a model that is a list", PICKLE("]"), DS_OK, ""},
    {"a name of a text and a number", PICKLE(TEXT1("a") "K\1\x93"), DS_ERR_INPUT, "a name is no text"},
    {"no stop", PICKLE("X\1\0\0\0"), DS_ERR_INPUT, "it does not end with a stop"},
    {"a storage whose key is a number", PICKLE("(X\7\0\0\0storagectorch\nFloatStorage\nK\1X\3\0\0\0cpuK\1tQ"),
     DS_ERR_INPUT, "a storage is not described"},
    {"a storage without a key", PICKLE("(X\7\0\0\0storagectorch\nFloatStorage\ntQ"), DS_ERR_INPUT, "not described"},
    {"a storage of a text's size", PICKLE(STORAGE("FloatStorage", "0", "N")), DS_ERR_INPUT,
     "a storage is not described"},
    {"a tensor of a number", PICKLE(REBUILD "K\1K\0))\x89tR"), DS_ERR_INPUT, "a tensor is not described"},
    {"a tensor with fewer strides", PICKLE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\0K\1\x85)\x89tR"), DS_ERR_INPUT,
     "a tensor is not described"},
    {"an offset that is no number", PICKLE(REBUILD STORAGE("FloatStorage", "0", ONE) "N))\x89tR"), DS_ERR_INPUT,
     "a tensor is not described"},
    {"a size that is no number", PICKLE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\0N\x85K\1\x85\x89tR"),
     DS_ERR_INPUT, "a tensor is not described"},
    {"a size of 2^93",
     PICKLE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\0J\0\0\0\x70J\0\0\0\x70J\0\0\0\x70\x87K\1K\1K\1\x87\x89}tR"),
     DS_ERR_INPUT, "a tensor is too large"},
    {"a tensor of a type", PICKLE(MODULE(TYPED(REBUILD_NAME, "(" STORAGE("FloatStorage", "0", ONE) "K\0))\x89}t"))),
     DS_OK, ""},
    {"a type of a type of a type", PICKLE(TYPED(TYPED_NAME, "(" TYPED_NAME "N(" TYPED_NAME "NNtt")), DS_OK, ""},
    {"a type of nothing", PICKLE(TYPED_NAME ")R"), DS_ERR_INPUT, "what is called is no name"},
    {"what is its first argument",
     PICKLE("ctorch\nSize\n)\x85Rcdeepspeed.runtime.zero.config\nZeroStageEnum\nK\1\x85Rcbuiltins\nint\nK\1\x85R}"),
     DS_OK, ""},
    {"dicts", PICKLE("cbuiltins\ndict\n)Rccollections\ndefaultdict\n)R}"), DS_OK, ""},
    {"a size of nothing", PICKLE("ctorch\nSize\n)R}"), DS_OK, ""},
    {"a memo twice", PICKLE("}q\0q\0"), DS_OK, ""},
    {"no mark", PICKLE("}e"), DS_ERR_INPUT, "nothing to add to"},
    {"a state of a dict", PICKLE("}}b"), DS_OK, ""},
    {"a key that is a number", PICKLE("}X\6\0\0\0module}K\1NsX\1\0\0\0wNss"), DS_OK, ""},
    {"a long key", PICKLE("}X\6\0\0\0module}" LONG_TEXT TENSOR "ss"), DS_ERR_UNSUPPORTED, "a name is too long"},
    {"a count that is a truth", PICKLE("}X\x0C\0\0\0global_steps\x88s"), DS_OK, ""},
};
/* A rank's states beside a model of one parameter "w" of two elements. */
#define MODEL(shapes) PICKLE("}(X\6\0\0\0module}X\x0C\0\0\0param_shapes]}" shapes "sa" TEXT1("x") "Nu")
#define STATES(stage, parts, flats)                                                                                    \
    PICKLE("}X\x14\0\0\0optimizer_state_dict}(X\x0A\0\0\0zero_stage" stage "X\x0F\0\0\0partition_count" parts flats    \
           "us")
#define SHARE         REBUILD STORAGE("FloatStorage", "0", ONE) "K\0K\1\x85K\1\x85\x89}tR"
#define FLAT          "X\x1F\0\0\0single_partition_of_fp32_groups]" SHARE "a"
#define SCALER(state) "X\x0B\0\0\0loss_scalercdeepspeed.runtime.fp16.loss_scaler\nDynamicLossScaler\n)\x81" state
static const struct {
    const char *name, *model;
    size_t model_bytes;
    const char *states;
    size_t bytes;
    ds_status status;
    const char *message;
} ranks_that_lie[] = {
    {"one of one", MODEL(TEXT1("w") "K\1\x85"), STATES("K\1", "K\1", FLAT), DS_OK, ""},
    {"counts in a list", MODEL(TEXT1("w") "K\1\x85"), STATES("K\1", "](K\1e", FLAT), DS_OK, ""},
    {"stage 0", MODEL(TEXT1("w") "K\1\x85"), STATES("K\0", "K\1", FLAT), DS_ERR_INPUT, "ZeRO stage 0 in 1 partitions"},
    {"stage 4", MODEL(TEXT1("w") "K\1\x85"), STATES("K\4", "K\1", FLAT), DS_ERR_INPUT, "ZeRO stage 4"},
    {"no partitions", MODEL(TEXT1("w") "K\1\x85"), STATES("K\1", "K\0", FLAT), DS_ERR_INPUT, "in 0 partitions"},
    {"many partitions", MODEL(TEXT1("w") "K\1\x85"), STATES("K\1", "J\0\0\0\1", FLAT), DS_ERR_INPUT, "partitions"},
    {"no flat group", MODEL(TEXT1("w") "K\1\x85"), STATES("K\1", "K\1", "K\1K\1"), DS_ERR_INPUT,
     "has no fp32 partition"},
    {"a rank that is missing", MODEL(TEXT1("w") "K\2\x85"), STATES("K\1", "K\2", FLAT), DS_ERR_CORRUPT,
     "zero_pp_rank_1_mp_rank_00_optim_states.pt' is missing"},
    {"a larger model", MODEL(TEXT1("w") "K\3\x85"), STATES("K\1", "K\1", FLAT), DS_ERR_INPUT, "are in no shard"},
    {"a larger model, stage 3", MODEL(TEXT1("w") "K\3\x85"),
     STATES("K\3", "K\1",
            "X\x10\0\0\0fp32_flat_groups]" REBUILD STORAGE("FloatStorage", "0", ONE) "K\0K\1\x85K\1\x85\x89}tRa"),
     DS_ERR_INPUT, "needs elements 0 + 3 of a partition of 1"},
    {"a name that is a number", MODEL("K\1K\1\x85"), STATES("K\1", "K\1", FLAT), DS_ERR_INPUT,
     "its param_shapes are not"},
    {"a shape that is a number", MODEL(TEXT1("w") "K\1"), STATES("K\1", "K\1", FLAT), DS_ERR_INPUT,
     "its param_shapes are not"},
    {"a shape of 2^93", MODEL(TEXT1("w") "J\0\0\0\x70J\0\0\0\x70J\0\0\0\x70\x87"), STATES("K\1", "K\1", FLAT),
     DS_ERR_INPUT, "its param_shapes are not"},
    {"a loss scaler", MODEL(TEXT1("w") "K\1\x85"),
     STATES("K\1", "K\1", FLAT SCALER("}(X\x09\0\0\0cur_scaleK\2X\x08\0\0\0cur_iterK\5ub")), DS_OK, ""},
    {"a loss scaler's real", MODEL(TEXT1("w") "K\1\x85"),
     STATES("K\1", "K\1", FLAT SCALER("}X\x09\0\0\0cur_scaleG\x40\0\0\0\0\0\0\0sb")), DS_OK, ""},
    {"a loss scaler without a scale", MODEL(TEXT1("w") "K\1\x85"), STATES("K\1", "K\1", FLAT SCALER("}b")), DS_OK, ""},
    {"a loss scaler without a state", MODEL(TEXT1("w") "K\1\x85"), STATES("K\1", "K\1", FLAT SCALER("")), DS_OK, ""},
    {"a loss scaler that is a number", MODEL(TEXT1("w") "K\1\x85"),
     STATES("K\1", "K\1", FLAT "X\x0B\0\0\0loss_scalerK\1"), DS_OK, ""},
    {"a scale that is a text", MODEL(TEXT1("w") "K\1\x85"),
     STATES("K\1", "K\1", FLAT SCALER("}X\x09\0\0\0cur_scale" TEXT1("x") "sb")), DS_OK, ""},
    {"states of other kinds", MODEL(TEXT1("w") "K\1\x85"),
     STATES("K\1", "K\1",
            FLAT "X\x14\0\0\0base_optimizer_state}X\5\0\0\0state}K\0}(K\1N" TEXT1(
                "s") "NX\x51\0\0\0aaaaaaaaaaaaaaaaa" A64 TENSOR "uss"),
     DS_OK, ""},
    {"a group that is a number", PICKLE("}(X\6\0\0\0module}X\x0C\0\0\0param_shapes]K\1a" TEXT1("x") "Nu"),
     STATES("K\1", "K\1", FLAT), DS_ERR_INPUT, "has no fp32 partition"},
    {"an empty parameter", MODEL(TEXT1("w") "K\1\x85s" TEXT1("v") "K\0\x85"), STATES("K\1", "K\1", FLAT), DS_OK, ""},
    {"buffers of all kinds",
     PICKLE("}(X\6\0\0\0module}(" TEXT1("w") TENSOR TEXT1("v") TENSOR
            "K\1N" TEXT1("u") "NuX\x0C\0\0\0buffer_names](K\1" TEXT1("v")
                TEXT1("w") "eX\x0C\0\0\0param_shapes]}" TEXT1("w") "K\1\x85sa" TEXT1("x") "Nu"),
     STATES("K\1", "K\1", FLAT), DS_OK, ""},
    {"states under other keys", MODEL(TEXT1("w") "K\1\x85"),
     STATES("K\1", "K\1", FLAT "X\x14\0\0\0base_optimizer_state}X\5\0\0\0state}(K\1}" TEXT1("k") "}K\0}us"), DS_OK, ""},
    {"a part behind a partition's end", MODEL(TEXT1("w") "K\1\x85s" TEXT1("v") "K\1\x85"),
     STATES("K\3", "K\2",
            "X\x10\0\0\0fp32_flat_groups]" REBUILD STORAGE("ByteStorage", "0", "K\4") "K\0K\2\x85K\1\x85\x89}tRa"),
     DS_ERR_INPUT, "needs elements 1 + 0 of a partition of 0"},
    {"a shape of 2^60", MODEL(TEXT1("w") "J\0\0\0\x40J\0\0\0\x40\x86"), STATES("K\1", "K\1", FLAT), DS_ERR_INPUT,
     "its param_shapes are not"},
};
static void test_pickles(void) {
    for (size_t i = 0; i < sizeof pickles / sizeof pickles[0]; i++) {
        char name[96];
        snprintf(name, sizeof name, "pickle: %s", pickles[i].name);
        TEST_NAMED(name) {
            char folder[FOLDER_BYTES];
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            shell("mkdir -p '%s'", folder_of(folder, "pickle"));
            write_pt(folder, "mp_rank_00_model_states.pt", pickles[i].pickle, pickles[i].bytes);
            CHECK_EQ(open_file(folder, &c, &error), pickles[i].status);
            CHECK_HAS(error.message, pickles[i].message);
            if (c) CHECK_EQ(ds_checkpoint_verify(c), DS_OK);
            ds_checkpoint_close(c);
        }
    }
    for (size_t i = 0; i < sizeof ranks_that_lie / sizeof ranks_that_lie[0]; i++) {
        char name[96];
        snprintf(name, sizeof name, "ranks: %s", ranks_that_lie[i].name);
        TEST_NAMED(name) {
            char folder[FOLDER_BYTES];
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            shell("mkdir -p '%s'", folder_of(folder, "ranks_that_lie"));
            write_pt(folder, "mp_rank_00_model_states.pt", ranks_that_lie[i].model, ranks_that_lie[i].model_bytes);
            write_pt(folder, "zero_pp_rank_0_mp_rank_00_optim_states.pt", ranks_that_lie[i].states,
                     ranks_that_lie[i].bytes);
            if (strstr(name, "behind a partition")) { /* a second rank with nothing */
                static const struct {
                    const char *text;
                    size_t bytes;
                } none = {STATES("K\3", "K\2",
                                 "X\x10\0\0\0fp32_flat_groups]" REBUILD STORAGE("ByteStorage", "0",
                                                                                "K\4") "K\0K\0\x85K\1\x85\x89}tRa")};
                write_pt(folder, "zero_pp_rank_1_mp_rank_00_optim_states.pt", none.text, none.bytes);
            }
            CHECK_EQ(open_file(folder, &c, &error), ranks_that_lie[i].status);
            CHECK_HAS(error.message, ranks_that_lie[i].message);
            ds_checkpoint_close(c);
        }
    }
}

/* Every allocation and every call of the file table fails in turn while `path` is opened and verified: an error with a text or
   what the path holds, and nothing is left. A question whether a file is there may fail unnoticed where the answer is not
   needed, and so may an allocation when `again`: where what failed is read a second time. */
static void open_with_faults(const char *path, ds_status well, bool again) {
    for (int kind = 0; kind < 2; kind++) {
        int finished = 0;
        for (long n = 1; n < 3000 && !finished; n++) {
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
            f.code = -EIO;
            if (kind)
                f.fail_at = n;
            else
                memory.fail_at = (size_t)n;
            status = ds_checkpoint_open_path(&d, path, &c, &error);
            if (!status) status = ds_checkpoint_verify(c);
            if (c && status) error = *ds_checkpoint_error(c);
            if (status) CHECK(error.status == status && error.message[0]);
            finished = kind ? f.calls < n : memory.calls < (size_t)n;
            if (finished) CHECK_EQ(status, well);
            if (!kind && !finished) CHECK(status == DS_ERR_MEMORY || (again && status == well));
            ds_checkpoint_close(c);
            CHECK_EQ(memory.live, 0);
            CHECK_EQ(memory.mismatches, 0);
        }
        CHECK(finished);
    }
}
/* The same with whatever stands in the pickle's last place: a file that ends there. */
static void write_cut_pt(const char *folder, const char *name, const char *pickle, size_t bytes, char last) {
    char path[FOLDER_BYTES + 64], *file, *at, sums[2][4], *whole = (char *)malloc(bytes + 3);
    size_t length;
    uint32_t sum;
    write_pt(folder, name, pickle, bytes);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    file = slurp(path, &length);
    memcpy(whole, pickle, bytes);
    whole[bytes] = '.';
    for (int k = 0; k < 2; k++) {
        sum = dsi_checkpoint_crc32(0, whole, bytes + 1);
        for (int i = 0; i < 4; i++) sums[k][i] = (char)(sum >> 8 * i & 255);
        whole[bytes] = last;
    }
    for (at = file; at + 4 <= file + length; at++)
        if (!memcmp(at, sums[0], 4)) memcpy(at, sums[1], 4);
    for (at = file; at + bytes <= file + length && memcmp(at, pickle, bytes) != 0;) at++;
    at[bytes] = last;
    spew(path, file, length);
    free(whole);
    free(file);
}
static void test_pickles_further(void) {
    TEST(pickles_that_end_anywhere) {
        static const char last[] = "KMJGXTBUC\x8A\x8C\x8D\x80\x95qrhjc";
        char folder[FOLDER_BYTES];
        shell("mkdir -p '%s'", folder_of(folder, "cut"));
        for (size_t i = 0; i < sizeof last; i++) {
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            write_cut_pt(folder, "mp_rank_00_model_states.pt", "NNNNNNNN", 8, i + 1 < sizeof last ? last[i] : 'N');
            CHECK_EQ(open_file(folder, &c, &error), DS_ERR_INPUT);
            CHECK_HAS(error.message, last[i] == 'c' ? "a name does not end" : "end");
        }
        { /* a long integer whose bytes are not there */
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            write_cut_pt(folder, "mp_rank_00_model_states.pt", "NNNNNNN\x8A", 8, 5);
            CHECK_EQ(open_file(folder, &c, &error), DS_ERR_INPUT);
            CHECK_HAS(error.message, "it ends in the middle");
        }
    }
    TEST(pickles_with_faults) {
        char folder[FOLDER_BYTES];
        shell("mkdir -p '%s'", folder_of(folder, "pickle_faults"));
        for (size_t i = 0; i < sizeof pickles / sizeof pickles[0]; i++) {
            if (pickles[i].status) continue;
            write_pt(folder, "mp_rank_00_model_states.pt", pickles[i].pickle, pickles[i].bytes);
            open_with_faults(folder, DS_OK, false);
        }
        write_pt(folder, "mp_rank_00_model_states.pt", ranks_that_lie[0].model, ranks_that_lie[0].model_bytes);
        for (size_t i = 0; i < sizeof ranks_that_lie / sizeof ranks_that_lie[0]; i++) {
            if (ranks_that_lie[i].status || i == 1) continue;
            write_pt(folder, "zero_pp_rank_0_mp_rank_00_optim_states.pt", ranks_that_lie[i].states,
                     ranks_that_lie[i].bytes);
            open_with_faults(folder, DS_OK, false);
        }
    }
    TEST(pickles_whose_lists_grow_at_any_value) {
        static const char what[] =
            "h\0G\0\0\0\0\0\0\0\0ccollections\nOrderedDict\n)Rcargparse\nNamespace\n)\x81" REBUILD STORAGE(
                "FloatStorage", "0", ONE) "K\0))\x89}tR}";
        char folder[FOLDER_BYTES], pickle[16 + sizeof what];
        shell("mkdir -p '%s'", folder_of(folder, "grows"));
        for (size_t before = 0; before < 10; before++) {
            size_t n, failures = 0;
            memcpy(pickle, "}q\0", 3);
            memset(pickle + 3, 'N', before);
            memcpy(pickle + 3 + before, what, sizeof what - 1);
            write_pt(folder, "mp_rank_00_model_states.pt", pickle, 3 + before + sizeof what - 1);
            for (n = 1; n < 200; n++) {
                ds_checkpoint_desc d;
                ds_checkpoint *c = NULL;
                ds_error error = {DS_OK, ""};
                test_memory memory;
                ds_status status;
                memset(&d, 0, sizeof d);
                memset(&memory, 0, sizeof memory);
                use_memory(&d.allocator, &memory);
                memory.fail_at = n;
                status = ds_checkpoint_open_path(&d, folder, &c, &error);
                ds_checkpoint_close(c);
                CHECK_EQ(memory.live, 0);
                if (!status) break;
                CHECK_EQ(status, DS_ERR_MEMORY);
                CHECK(error.message[0]);
                failures++;
            }
            CHECK(n < 200 && failures > 15);
        }
    }
    TEST(more_groups_than_are_read) {
        static const char model_head[] = "}(X\6\0\0\0module}X\x0C\0\0\0param_shapes](",
                          rank_head[] =
                              "}X\x14\0\0\0optimizer_state_dict}(X\x0A\0\0\0zero_stageK\1X\x0F\0\0\0partition_countK\1"
                              "X\x1F\0\0\0single_partition_of_fp32_groups](" SHARE "q\0";
        char folder[FOLDER_BYTES], pickle[700];
        size_t n = sizeof model_head - 1;
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        shell("mkdir -p '%s'", folder_of(folder, "groups"));
        memcpy(pickle, model_head, n);
        memset(pickle + n, '}', 65);
        memcpy(pickle + n + 65, "eu", 2);
        write_pt(folder, "mp_rank_00_model_states.pt", pickle, n + 67);
        n = sizeof rank_head - 1;
        memcpy(pickle, rank_head, n);
        for (int i = 0; i < 64; i++, n += 2) memcpy(pickle + n, "h\0", 2);
        memcpy(pickle + n, "eus", 3);
        write_pt(folder, "zero_pp_rank_0_mp_rank_00_optim_states.pt", pickle, n + 3);
        CHECK_EQ(open_file(folder, &c, &error), DS_ERR_INPUT);
        CHECK_HAS(error.message, "has no fp32 partition of parameter group 64");
    }
    TEST(ranks_that_differ) {
        static const char *const message[2] = {"ZeRO stage 2 in 2 partitions, expected 1 in 2",
                                               "ZeRO stage 1 in 3 partitions, expected 1 in 2"};
        char folder[FOLDER_BYTES];
        shell("mkdir -p '%s'", folder_of(folder, "differ"));
        for (int i = 0; i < 2; i++) {
            static const struct {
                const char *text;
                size_t bytes;
            } other[2] = {{STATES("K\2", "K\2", FLAT)}, {STATES("K\1", "K\3", FLAT)}};
            static const struct {
                const char *text;
                size_t bytes;
            } parameters = {MODEL(TEXT1("w") "K\2\x85")}, first = {STATES("K\1", "K\2", FLAT)};
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            write_pt(folder, "mp_rank_00_model_states.pt", parameters.text, parameters.bytes);
            write_pt(folder, "zero_pp_rank_0_mp_rank_00_optim_states.pt", first.text, first.bytes);
            write_pt(folder, "zero_pp_rank_1_mp_rank_00_optim_states.pt", other[i].text, other[i].bytes);
            CHECK_EQ(open_file(folder, &c, &error), DS_ERR_INPUT);
            CHECK_HAS(error.message, message[i]);
            if (i) continue;
            write_pt(folder, "zero_pp_rank_1_mp_rank_00_optim_states.pt", first.text, first.bytes);
            CHECK_EQ(open_file(folder, &c, &error), DS_OK); /* and when they agree */
            ds_checkpoint_close(c);
            open_with_faults(folder, DS_OK, false);
        }
    }
    TEST(universal_files_that_lie) {
        static const struct {
            const char *name, *model;
            size_t model_bytes;
            const char *file;
            size_t bytes;
            ds_status status;
            const char *message;
        } rows[] = {
            {"well", MODEL(TEXT1("w") ")"), PICKLE("}X\5\0\0\0param" TENSOR "s"), DS_OK, ""},
            {"bare", MODEL(TEXT1("w") ")"), PICKLE(TENSOR), DS_OK, ""},
            {"no tensor", MODEL(TEXT1("w") ")"), PICKLE("}"), DS_ERR_INPUT, "fp32.pt' holds no tensor"},
            {"no dict", PICKLE("}X\x0C\0\0\0param_shapes]K\1as"), PICKLE("}"), DS_ERR_INPUT,
             "its param_shapes are not"},
            {"a number's name", MODEL("K\1)"), PICKLE("}"), DS_ERR_INPUT, "a parameter's name is no file's name"},
            {"no shape", MODEL(TEXT1("w") "N"), PICKLE("}"), DS_ERR_INPUT, "a parameter's name is no file's name"},
            {"no tensor of the first of two", MODEL(TEXT1("w") ")s" TEXT1("v") ")"), PICKLE("}"), DS_ERR_INPUT,
             "fp32.pt' holds no tensor"},
            {"no tensor of the first of two groups",
             PICKLE("}X\x0C\0\0\0param_shapes](}" TEXT1("w") ")s}" TEXT1("v") ")ses"), PICKLE("}"), DS_ERR_INPUT,
             "fp32.pt' holds no tensor"},
            {"above", MODEL("X\4\0\0\0../w)"), PICKLE("}"), DS_ERR_INPUT, "a parameter's name is no file's name"},
            {"a backslash", MODEL("X\3\0\0\0a\\w)"), PICKLE("}"), DS_ERR_INPUT, "a parameter's name is no file's name"},
        };
        char folder[FOLDER_BYTES], zero[FOLDER_BYTES + 8];
        shell("mkdir -p '%s/zero/w'", folder_of(folder, "universal_lies"));
        snprintf(zero, sizeof zero, "%s/zero/w", folder);
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            write_pt(folder, "mp_rank_00_model_states.pt", rows[i].model, rows[i].model_bytes);
            write_pt(zero, "fp32.pt", rows[i].file, rows[i].bytes);
            CHECK_EQ(open_file(folder, &c, &error), rows[i].status);
            CHECK_HAS(error.message, rows[i].message);
            ds_checkpoint_close(c);
            if (!rows[i].status) open_with_faults(folder, DS_OK, false);
        }
        write_pt(folder, "mp_rank_01_model_states.pt", rows[0].model, rows[0].model_bytes);
        {
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            CHECK_EQ(open_file(folder, &c, &error), DS_ERR_UNSUPPORTED);
            CHECK_HAS(error.message, "several tensor-parallel parts");
        }
    }
}

/* Parameters that are not trained: in the model's file at stages 1 and 2, in parts in every rank's at stage 3. */
#define FROZEN(f) "X\x13\0\0\0frozen_param_shapes" f "X\x16\0\0\0frozen_param_fragments}"
#define SHAPES(w) "}(X\6\0\0\0module}X\x0C\0\0\0param_shapes]}" TEXT1("w") w "sa"
static void test_not_trained(void) {
    TEST(what_is_not_trained_is_read_and_second_names_are_not) {
        char folder[FOLDER_BYTES];
        static const char
            parameters[] = "}(X\6\0\0\0module}(" TEXT1("w") TENSOR TEXT1("f") TENSOR TEXT1("s") TENSOR
            "uX\x0C\0\0\0param_shapes]}" TEXT1("w") "K\1\x85saX\x0D\0\0\0shared_params}" TEXT1("s") TEXT1("w") "su",
            states[] =
                "}X\x14\0\0\0optimizer_state_dict}(X\x0A\0\0\0zero_stageK\1X\x0F\0\0\0partition_countK\1" FLAT "us",
            bf16[] = "}X\x14\0\0\0optimizer_state_dict}(X\x0F\0\0\0partition_count](K\1e" FLAT "us";
        for (int k = 0; k < 2; k++) {
            ds_checkpoint *c = NULL;
            ds_checkpoint_info info;
            ds_error error = {DS_OK, ""};
            shell("rm -rf '%s'; mkdir '%s'", folder_of(folder, "not_trained"), folder);
            write_pt(folder, "mp_rank_00_model_states.pt", parameters, sizeof parameters - 1);
            if (k) /* BF16_Optimizer's, which names no stage */
                write_pt(folder, "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", bf16, sizeof bf16 - 1);
            else
                write_pt(folder, "zero_pp_rank_0_mp_rank_00_optim_states.pt", states, sizeof states - 1);
            CHECK_EQ(open_file(folder, &c, &error), DS_OK);
            if (!c) break;
            CHECK_EQ(ds_checkpoint_count(c), 2);
            CHECK_EQ(ds_checkpoint_find(c, "w", &info), DS_OK);
            CHECK_EQ(ds_checkpoint_find(c, "f", &info), DS_OK);
            CHECK_EQ(ds_checkpoint_verify(c), DS_OK);
            ds_checkpoint_close(c);
        }
    }
    TEST(a_frozen_parameter_of_stage_3) {
        static const struct {
            const char *model;
            size_t model_bytes;
            const char *other;
            size_t other_bytes;
            ds_status status;
            const char *message;
        } rows[] = {
            {PICKLE(SHAPES("K\2\x85") FROZEN("}" TEXT1("f") "K\2\x85s") TEXT1("f") SHARE "su"),
             PICKLE(SHAPES("K\2\x85") FROZEN("}" TEXT1("f") "K\2\x85s") TEXT1("f") SHARE "su"), DS_OK, ""},
            {PICKLE(SHAPES("K\2\x85") FROZEN("N") "u"), PICKLE("}"), DS_OK, ""},
            {PICKLE(SHAPES("K\2\x85") FROZEN("}" TEXT1("f") "K\2\x85s") TEXT1("f") SHARE "su"), PICKLE("}"),
             DS_ERR_INPUT, "zero_pp_rank_1_mp_rank_00_model_states.pt' lacks its part of a frozen parameter"},
            {PICKLE(SHAPES("K\2\x85") FROZEN("}K\1K\2\x85s") "u"), PICKLE("}"), DS_ERR_INPUT, "lacks its part"},
            {PICKLE(SHAPES("K\2\x85") FROZEN("}" TEXT1("f") "Ns") TEXT1("f") SHARE "su"), PICKLE("}"), DS_ERR_INPUT,
             "lacks its part"},
            {PICKLE(SHAPES("K\2\x85") FROZEN("}" TEXT1("f") "J\0\0\0\x70J\0\0\0\x70J\0\0\0\x70\x87s") TEXT1("f") SHARE
                    "su"),
             PICKLE("}"), DS_ERR_INPUT, "lacks its part"},
            {PICKLE(SHAPES("K\2\x85") FROZEN("}" TEXT1("f") "J\0\0\0\x40J\0\0\0\x40\x86s") TEXT1("f") SHARE "su"),
             PICKLE("}"), DS_ERR_INPUT, "lacks its part"},
            {PICKLE(SHAPES("K\2\x85") FROZEN("}" TEXT1("f") "K\7\x85s") TEXT1("f") SHARE "su"), PICKLE("}"),
             DS_ERR_INPUT, "needs elements 0 + 4 of a partition of 1"},
        };
        static const char states[] =
            "}X\x14\0\0\0optimizer_state_dict}(X\x0A\0\0\0zero_stageK\3X\x0F\0\0\0partition_countK\2"
            "X\x10\0\0\0fp32_flat_groups]" SHARE "aus";
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            char folder[FOLDER_BYTES];
            ds_checkpoint *c = NULL;
            ds_checkpoint_info info;
            ds_error error = {DS_OK, ""};
            float got[2] = {0};
            shell("rm -rf '%s'; mkdir '%s'", folder_of(folder, "frozen"), folder);
            write_pt(folder, "zero_pp_rank_0_mp_rank_00_model_states.pt", rows[i].model, rows[i].model_bytes);
            write_pt(folder, "zero_pp_rank_1_mp_rank_00_model_states.pt", rows[i].other, rows[i].other_bytes);
            for (int r = 0; r < 2; r++) {
                char name[64];
                snprintf(name, sizeof name, "zero_pp_rank_%d_mp_rank_00_optim_states.pt", r);
                write_pt(folder, name, states, sizeof states - 1);
            }
            CHECK_EQ(open_file(folder, &c, &error), rows[i].status);
            CHECK_HAS(error.message, rows[i].message);
            if (i == 0 && c) {
                CHECK_EQ(ds_checkpoint_find(c, "f", &info), DS_OK);
                CHECK_EQ(info.parts, 2);
                CHECK_EQ(ds_checkpoint_read(c, "f", 0, 2, DS_F32, got), DS_OK);
                CHECK(got[0] == 1.5f && got[1] == 1.5f);
            }
            ds_checkpoint_close(c);
            if (i) continue;
            open_with_faults(folder, DS_OK, false);
            shell("rm '%s/zero_pp_rank_1_mp_rank_00_model_states.pt'", folder);
            CHECK_EQ(open_file(folder, &c, &error), DS_ERR_CORRUPT);
            CHECK_HAS(error.message, "zero_pp_rank_1_mp_rank_00_model_states.pt' is missing");
        }
    }
}

/* Every byte of a .pt file in turn is another: it is refused, or what it holds is as it was. */
static void test_zip(void) {
    TEST(every_byte_of_a_zip_file) {
        static const unsigned char others[] = {0, 0xFF};
        static const char pickle[] = MODULE(REBUILD STORAGE("FloatStorage", "0", ONE) "K\0))\x89}tR");
        char folder[FOLDER_BYTES], path[FOLDER_BYTES + 32], *file;
        size_t bytes, errors = 0, same = 0;
        shell("mkdir -p '%s'", folder_of(folder, "zip"));
        write_pt(folder, "mp_rank_00_model_states.pt", pickle, sizeof pickle - 1);
        snprintf(path, sizeof path, "%s/mp_rank_00_model_states.pt", folder);
        file = slurp(path, &bytes);
        for (size_t at = 0; at < bytes; at++)
            for (size_t k = 0; k < sizeof others + 1; k++) {
                const char was = file[at];
                ds_checkpoint *c = NULL;
                ds_error error = {DS_OK, ""};
                float value = 0;
                ds_status status;
                file[at] = k < sizeof others ? (char)others[k] : (char)(was ^ 16);
                spew(path, file, bytes);
                file[at] = was;
                status = open_file(folder, &c, &error);
                if (!status) status = ds_checkpoint_verify(c);
                if (!status) status = ds_checkpoint_read(c, "w", 0, 1, DS_F32, &value);
                if (c && status) error = *ds_checkpoint_error(c);
                if (status)
                    errors++;
                else
                    same++;
                CHECK(status ? error.status == status && error.message[0] != 0 : value == 1.5f);
                ds_checkpoint_close(c);
            }
        CHECK(errors > 500 && same > 500); /* padding, dates and version numbers say nothing */
        free(file);
    }
}

/* ---- manifests that lie, under a checksum that is right ---- */
static void test_manifests(void) {
#define MANIFEST(shards, values)                                                                                       \
    "{\"format\": \"ds checkpoint 1\", \"tag\": \"m\", \"sequence\": 1, \"node_local\": false, \"shards\": " shards    \
    ", \"values\": " values
#define SHARD(file, more) "[{\"file\": \"" file "\"" more "}]"
    static const struct {
        const char *name, *text;
        ds_status status;
        const char *message;
    } manifests[] = {
        {"no shards", MANIFEST("[]", "{}"), DS_OK, ""},
        {"values",
         MANIFEST("[]", "{\"a\": {\"number\": \"nan\"}, \"b\": {\"bytes\": \"00ff\"}, \"c\": {\"integer\": 1}}"), DS_OK,
         ""},
        {"no JSON", "{", DS_ERR_INPUT, "manifest.json'"},
        {"another format", "{\"format\": \"x\"", DS_ERR_INPUT, "its format is 'x'"},
        {"no format", "{\"tag\": \"m\"", DS_ERR_INPUT, "its format is ''"},
        {"no tag", "{\"format\": \"ds checkpoint 1\"", DS_ERR_INPUT, "tag is missing or wrong"},
        {"no sequence", "{\"format\": \"ds checkpoint 1\", \"tag\": \"m\"", DS_ERR_INPUT, "sequence is missing"},
        {"shards a number", MANIFEST("1", "{}"), DS_ERR_INPUT, "shards is missing or wrong"},
        {"a shard a number", MANIFEST("[1]", "{}"), DS_ERR_INPUT, "rank-00000.safetensors is missing or wrong"},
        {"a shard elsewhere", MANIFEST(SHARD("../x", ", \"bytes\": 1, \"header_crc32c\": \"00000000\""), "{}"),
         DS_ERR_INPUT, "rank-00000.safetensors is missing or wrong"},
        {"no bytes", MANIFEST(SHARD("rank-00000.safetensors", ", \"header_crc32c\": \"00000000\""), "{}"), DS_ERR_INPUT,
         "is missing or wrong"},
        {"a checksum of letters",
         MANIFEST(SHARD("rank-00000.safetensors", ", \"bytes\": 1, \"header_crc32c\": \"0000000x\""), "{}"),
         DS_ERR_INPUT, "is missing or wrong"},
        {"a shard that is not there",
         MANIFEST(SHARD("rank-00000.safetensors", ", \"bytes\": 1, \"header_crc32c\": \"00000000\""), "{}"),
         DS_ERR_CORRUPT, "rank-00000.safetensors' is missing"},
        {"values a number", MANIFEST("[]", "1"), DS_ERR_INPUT, "values is missing or wrong"},
        {"a value a number", MANIFEST("[]", "{\"a\": 1}"), DS_ERR_INPUT, "a is missing or wrong"},
        {"a value of two kinds", MANIFEST("[]", "{\"a\": {\"text\": \"x\", \"number\": 1}}"), DS_ERR_INPUT,
         "a is missing or wrong"},
        {"a value of another kind", MANIFEST("[]", "{\"a\": {\"list\": 1}}"), DS_ERR_INPUT, "a is missing or wrong"},
        {"a text that is a number", MANIFEST("[]", "{\"a\": {\"text\": 1}}"), DS_ERR_INPUT, "a is missing or wrong"},
        {"an integer that is a text", MANIFEST("[]", "{\"a\": {\"integer\": \"1\"}}"), DS_ERR_INPUT, "a is missing"},
        {"a number that is a list", MANIFEST("[]", "{\"a\": {\"number\": []}}"), DS_ERR_INPUT, "a is missing or wrong"},
        {"no values", "{\"format\": \"ds checkpoint 1\", \"tag\": \"m\", \"sequence\": 1, \"shards\": []", DS_ERR_INPUT,
         "values is missing or wrong"},
        {"no list of shards", "{\"format\": \"ds checkpoint 1\", \"tag\": \"m\", \"sequence\": 1, \"values\": {}",
         DS_ERR_INPUT, "shards is missing or wrong"},
        {"no checksum of a shard", MANIFEST(SHARD("rank-00000.safetensors", ", \"bytes\": 1"), "{}"), DS_ERR_INPUT,
         "rank-00000.safetensors is missing or wrong"},
        {"numbers that JSON has none for",
         MANIFEST("[]", "{\"a\": {\"number\": \"-inf\"}, \"b\": {\"number\": \"inf\"}}"), DS_OK, ""},
        {"bytes that are a number", MANIFEST("[]", "{\"a\": {\"bytes\": 1}}"), DS_ERR_INPUT, "a is missing or wrong"},
        {"bytes that begin with a letter", MANIFEST("[]", "{\"a\": {\"bytes\": \"g0\"}}"), DS_ERR_INPUT,
         "a is missing"},
        {"half a byte", MANIFEST("[]", "{\"a\": {\"bytes\": \"000\"}}"), DS_ERR_INPUT, "a is missing or wrong"},
        {"bytes of letters", MANIFEST("[]", "{\"a\": {\"bytes\": \"0g\"}}"), DS_ERR_INPUT, "a is missing or wrong"},
    };
    for (size_t i = 0; i < sizeof manifests / sizeof manifests[0]; i++) {
        char name[96];
        snprintf(name, sizeof name, "manifest: %s", manifests[i].name);
        TEST_NAMED(name) {
            char folder[FOLDER_BYTES], path[FOLDER_BYTES + 32], text[2048];
            dsi_json_sink sink = {text, sizeof text, 0};
            ds_checkpoint_desc d;
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            shell("mkdir -p '%s/m'", folder_of(folder, "manifest"));
            dsi_json_puts(&sink, manifests[i].text);
            dsi_checkpoint_put_tail(&sink, dsi_crc32c(0, text, sink.length));
            snprintf(path, sizeof path, "%s/m/manifest.json", folder);
            spew(path, text, sink.length);
            memset(&d, 0, sizeof d);
            d.folder = folder;
            CHECK_EQ(ds_checkpoint_open(&d, "m", &c, &error), manifests[i].status);
            CHECK_HAS(error.message, manifests[i].message);
            ds_checkpoint_close(c);
        }
    }
    TEST(more_shards_than_may_be_open) {
        enum { SHARDS = 150 };
        char folder[FOLDER_BYTES], path[FOLDER_BYTES + 32], names[SHARDS][16];
        ds_checkpoint_tensor t[SHARDS];
        float data[SHARDS][2], got[2];
        const size_t shape[1] = {2};
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        shell("mkdir -p '%s'", folder_of(folder, "many"));
        memset(t, 0, sizeof t);
        for (int i = 0; i < SHARDS; i++) {
            snprintf(names[i], sizeof names[i], "t%d", i);
            data[i][0] = (float)i, data[i][1] = (float)-i;
            t[i].name = names[i], t[i].shape = shape, t[i].dims = 1, t[i].count = 2, t[i].data = data[i];
        }
        snprintf(path, sizeof path, "%s/model.safetensors", folder);
        CHECK_EQ(ds_safetensors_write(path, t, SHARDS, NULL, 0, 8, NULL, &error), DS_OK);
        CHECK_EQ(open_file(folder, &c, &error), DS_OK);
        if (!c) break;
        CHECK_EQ(ds_checkpoint_shard_count(c), SHARDS);
        for (int round = 0; round < 2; round++)
            for (int i = 0; i < SHARDS; i++) {
                CHECK_EQ(ds_checkpoint_read(c, names[i], 0, 2, DS_F32, got), DS_OK);
                CHECK(got[0] == (float)i && got[1] == (float)-i);
            }
        CHECK_EQ(ds_checkpoint_verify(c), DS_OK);
        shell("rm '%s/model-00001-of-00150.safetensors'", folder); /* whose file was closed for others */
        CHECK_EQ(ds_checkpoint_read(c, names[0], 0, 2, DS_F32, got), DS_ERR_CORRUPT);
        CHECK_HAS(ds_checkpoint_error(c)->message, "tensor 't0'");
        CHECK_HAS(ds_checkpoint_error(c)->message, "model-00001-of-00150.safetensors' is missing");
        ds_checkpoint_close(c);
    }
}

/* ---- file tables that answer oddly ---- */
static int64_t writes_nothing(void *x, int fd, const void *b, size_t n, int64_t at) {
    return (void)x, (void)fd, (void)b, (void)n, (void)at, 0;
}
static int64_t writes_too_much(void *x, int fd, const void *b, size_t n, int64_t at) {
    return (void)x, (void)fd, (void)b, (void)at, (int64_t)n + 1;
}
static int64_t reads_too_much(void *x, int fd, void *b, size_t n, int64_t at) {
    return (void)x, (void)fd, (void)b, (void)at, (int64_t)n + 1;
}
static int64_t is_longer(void *x, int fd) {
    return (void)x, dsi_sys_size(NULL, fd) + 10;
}
static int is_gone_meanwhile(void *x, const char *path) {
    const int result = dsi_sys_unlink(x, path);
    return result ? result : -ENOENT;
}
static int reserve_code;
static int reserves(void *x, int fd, int64_t at, int64_t n) {
    return (void)x, (void)fd, (void)at, (void)n, reserve_code;
}
static int cannot_sync_folders(void *x, int fd) { /* which cannot be cut either */
    return dsi_sys_truncate(NULL, fd, dsi_sys_size(NULL, fd)) ? -EINVAL : dsi_sys_sync(x, fd);
}
static void test_odd_tables(void) {
    TEST(tables_that_answer_oddly) {
        static const struct {
            int reserve;
            ds_status status;
        } odd[] = {{0, DS_ERR_IO},          {0, DS_ERR_IO},          {0, DS_OK},
                   {-EOPNOTSUPP, DS_OK},    {-EINVAL, DS_OK},        {-ENOSYS, DS_OK},
                   {-ENOSPC, DS_ERR_SPACE}, {-EDQUOT, DS_ERR_SPACE}, {-EIO, DS_ERR_IO},
                   {-ENOMEM, DS_ERR_MEMORY}};
        char folder[FOLDER_BYTES];
        ds_checkpoint_desc d;
        ds_error error = {DS_OK, ""};
        ds_checkpoint *c = NULL;
        for (size_t k = 0; k < sizeof odd / sizeof odd[0]; k++) {
            job j;
            memset(&j, 0, sizeof j);
            if (k < 2)
                j.desc.files.write = k ? writes_too_much : writes_nothing;
            else if (k == 2)
                j.desc.files.sync = cannot_sync_folders;
            else
                j.desc.files.reserve = reserves, reserve_code = odd[k].reserve;
            shell("rm -rf '%s'", folder_of(folder, "odd"));
            CHECK_EQ(try_save(&j, folder, "tag", 1), odd[k].status);
            if (!odd[k].status) CHECK(loads(folder, NULL, 1));
        }
        save_well(1, folder, "tag", 1);
        memset(&d, 0, sizeof d);
        d.folder = folder;
        d.files.read = reads_too_much;
        CHECK_EQ(ds_checkpoint_open(&d, "tag", &c, NULL), DS_ERR_CORRUPT);
        d.files.read = NULL;
        d.files.size = is_longer; /* or it was cut since */
        CHECK_EQ(ds_checkpoint_open(&d, "tag", &c, &error), DS_ERR_CORRUPT);
        CHECK_HAS(error.message, "manifest.json' ends at byte");
        {
            job j;
            memset(&j, 0, sizeof j);
            j.desc.files.unlink = is_gone_meanwhile;
            CHECK_EQ(try_save(&j, folder, "tag", 2), DS_OK);
            CHECK(loads(folder, NULL, 2));
        }
    }
}

/* ---- large files, whose bytes go past the page cache ---- */
enum { LARGE_FLOATS = (18 << 20) / 4 + 77, LARGE_BYTES = 3000001 };
static float *large_floats;
static unsigned char *large_bytes;
static int large_hurt; /* `read` gives up in the middle */
enum { TAKEN, OPEN_REFUSED, WRITE_REFUSED, SHORT, TOO_MUCH, DISK_FULL, DISK_FULL_AT_ONCE };
typedef struct large_files {
    int how;
    long direct, calls, fail_at, refusals;
    int fds[1024]; /* which of them are direct */
} large_files;
static int large_trips(void *x) {
    large_files *l = (large_files *)x;
    return __atomic_add_fetch(&l->calls, 1, __ATOMIC_RELAXED) == l->fail_at;
}
static int large_open(void *x, const char *path, int flags, unsigned mode) {
    large_files *l = (large_files *)x;
    const int direct = (flags & (O_ACCMODE | O_CREAT)) == O_WRONLY; /* the file's second descriptor */
    int fd;
    if (large_trips(x)) return -EIO;
    if (direct && l->how == OPEN_REFUSED) return -EINVAL;
    fd = dsi_sys_open(NULL, path, flags, mode);
    if (direct) l->refusals += fd < 0;
    if (fd >= 0 && fd < 1024) __atomic_store_n(&l->fds[fd], direct, __ATOMIC_RELAXED);
    return fd;
}
static int64_t large_write(void *x, int fd, const void *b, size_t n, int64_t at) {
    large_files *l = (large_files *)x;
    const int direct = fd < 1024 && __atomic_load_n(&l->fds[fd], __ATOMIC_RELAXED);
    if (large_trips(x)) return -EIO;
    if (l->how == DISK_FULL_AT_ONCE || (l->how == DISK_FULL && at >= (int64_t)9 << 20)) return -ENOSPC;
    if (!direct) return dsi_sys_write(NULL, fd, b, n, at);
    __atomic_add_fetch(&l->direct, 1, __ATOMIC_RELAXED);
    return l->how == WRITE_REFUSED ? -EINVAL
           : l->how == SHORT       ? dsi_sys_write(NULL, fd, b, n / 2 / 4096 * 4096, at)
           : l->how == TOO_MUCH    ? (int64_t)n + 1
                                   : dsi_sys_write(NULL, fd, b, n, at);
}
static int large_sync(void *x, int fd) {
    return large_trips(x) ? -EIO : dsi_sys_sync(NULL, fd);
}
static ds_status large_read(void *ctx, size_t begin, size_t count, void *out) {
    (void)ctx;
    if (large_hurt && begin > LARGE_FLOATS / 2) return DS_ERR_DEVICE;
    memcpy(out, large_floats + begin, count * sizeof(float));
    return DS_OK;
}
/* The tensor that is added first stands behind the other in the file, and neither ends with a sector. */
static ds_status large_save(const ds_checkpoint_desc *d, const char *tag, int reads, ds_error *error) {
    const size_t shapes[2][1] = {{LARGE_BYTES}, {LARGE_FLOATS}};
    const ds_checkpoint_tensor bytes = {"bytes", DS_U8, shapes[0], 1, 0, LARGE_BYTES, large_bytes, NULL, NULL};
    ds_checkpoint_tensor floats = {"floats", DS_F32, shapes[1], 1, 0, LARGE_FLOATS, large_floats, NULL, NULL};
    ds_checkpoint_writer *w = NULL;
    ds_status status = ds_checkpoint_begin(d, tag, &w, error);
    if (status) return status;
    if (reads) floats.data = NULL, floats.read = large_read;
    ds_checkpoint_add(w, &bytes);
    ds_checkpoint_add(w, &floats);
    status = ds_checkpoint_commit(w, error);
    return !status && d->background ? ds_checkpoint_finish(w, error) : status;
}
/* Whether a folder's newest tag is `tag` and holds all. */
static int large_loads(const char *folder, const char *tag) {
    ds_checkpoint_desc d;
    ds_checkpoint *c = NULL;
    float *floats = (float *)malloc(LARGE_FLOATS * sizeof(float));
    unsigned char *bytes = (unsigned char *)malloc(LARGE_BYTES);
    int same;
    memset(&d, 0, sizeof d);
    d.folder = folder;
    same = floats && bytes && ds_checkpoint_open(&d, NULL, &c, NULL) == DS_OK && !strcmp(ds_checkpoint_tag(c), tag) &&
           ds_checkpoint_read(c, "floats", 0, LARGE_FLOATS, DS_F32, floats) == DS_OK &&
           ds_checkpoint_read(c, "bytes", 0, LARGE_BYTES, DS_U8, bytes) == DS_OK &&
           !memcmp(floats, large_floats, LARGE_FLOATS * sizeof(float)) && !memcmp(bytes, large_bytes, LARGE_BYTES);
    ds_checkpoint_close(c);
    free(floats);
    free(bytes);
    return same;
}
static void use_large(ds_checkpoint_desc *d, large_files *l, const char *folder, int how) {
    memset(d, 0, sizeof *d);
    memset(l, 0, sizeof *l);
    l->how = how;
    d->folder = folder;
    d->files.ctx = l;
    d->files.open = large_open;
    d->files.write = large_write;
    d->files.sync = large_sync;
}
static void test_large(void) {
    char folder[FOLDER_BYTES], line[1024] = "";
    ds_checkpoint_desc d;
    ds_error error = {DS_OK, ""};
    large_files l;
    large_floats = (float *)malloc(LARGE_FLOATS * sizeof(float));
    large_bytes = (unsigned char *)malloc(LARGE_BYTES);
    if (!large_floats || !large_bytes) abort();
    for (size_t i = 0; i < LARGE_FLOATS; i++) large_floats[i] = (float)i;
    for (size_t i = 0; i < LARGE_BYTES; i++) large_bytes[i] = (unsigned char)(i * 7 + i / 251);
    folder_of(folder, "large");
    for (int how = TAKEN; how <= DISK_FULL_AT_ONCE; how++) {
        static const char *const names[] = {"a_large_file_goes_past_the_page_cache",
                                            "or_through_it_where_that_is_refused",
                                            "or_refused_for_each_write",
                                            "direct_writes_may_be_short",
                                            "or_claim_too_much",
                                            "a_disk_fills_up_in_a_large_file",
                                            "a_disk_is_full_before_a_large_file"};
        TEST_NAMED(names[how]) {
            for (int k = 0; k < 4; k++) { /* 1: no threads; 2: `read`; 3: in the background */
                const int full = how >= DISK_FULL;
                shell("rm -rf '%s'", folder);
                use_large(&d, &l, folder, how);
                d.logger.log = keep_line;
                d.logger.ctx = line;
                d.background = k == 3;
                line[0] = 0;
                no_threads = k == 1;
                CHECK_EQ(large_save(&d, "tag", k == 2, &error), full ? DS_ERR_SPACE : DS_OK);
                no_threads = 0;
                if (full) {
                    CHECK_HAS(error.message, "write to '");
                    shell("test -z \"$(ls '%s')\"", folder);
                    continue;
                }
                CHECK(large_loads(folder, "tag"));
                CHECK(how == OPEN_REFUSED ? l.direct == 0 : l.direct >= 20 || l.refusals);
                CHECK((strstr(line, "takes no direct writes") != NULL) == (how == OPEN_REFUSED || l.refusals));
            }
        }
    }
    TEST(a_large_file_whose_data_cannot_be_read) {
        shell("rm -rf '%s'", folder);
        use_large(&d, &l, folder, TAKEN);
        large_hurt = 1;
        CHECK_EQ(large_save(&d, "tag", 1, &error), DS_ERR_DEVICE);
        large_hurt = 0;
        CHECK_HAS(error.message, "tensor 'floats'");
        shell("test -z \"$(ls '%s')\"", folder);
    }
    TEST(a_large_save_survives_every_fault) {
        for (int kind = 0; kind < 2; kind++) {
            int finished = 0, failures = 0;
            for (long n = 1; n < 200 && !finished; n++) {
                test_memory memory;
                ds_status status;
                memset(&memory, 0, sizeof memory);
                shell("rm -rf '%s/new'", folder);
                if (n == 1 || !large_loads(folder, "old")) {
                    use_large(&d, &l, folder, TAKEN);
                    CHECK_EQ(large_save(&d, "old", 0, &error), DS_OK);
                }
                use_large(&d, &l, folder, TAKEN);
                use_memory(&d.allocator, &memory);
                if (kind)
                    l.fail_at = n;
                else
                    memory.fail_at = (size_t)n;
                status = large_save(&d, "new", 0, &error);
                CHECK_EQ(memory.live, 0);
                CHECK_EQ(memory.mismatches, 0);
                if (status) {
                    failures++;
                    CHECK_EQ(status, kind ? DS_ERR_IO : DS_ERR_MEMORY);
                    CHECK(error.status == status && error.message[0]);
                    CHECK(large_loads(folder, "old"));
                    continue;
                }
                CHECK(large_loads(folder, "new"));
                finished = kind ? l.calls < n : memory.calls < (size_t)n;
            }
            CHECK(finished && failures > 5);
        }
        shell("rm -rf '%s'", folder);
    }
    free(large_floats);
    free(large_bytes);
}

/* Parts of 4 MiB and more are read by two threads. */
static void test_two_threads(void) {
    TEST(large_parts_are_read_by_two_threads) {
        enum { BLOCKS = 40 };
        const size_t per_block = 65536, count = BLOCKS * per_block + 1000, shape[1] = {BLOCKS * 65536 + 1000};
        float *data = (float *)malloc(count * sizeof *data), *got = (float *)malloc(count * sizeof *got);
        char folder[FOLDER_BYTES], path[FOLDER_BYTES + 40];
        job j;
        ds_checkpoint_writer *w = NULL;
        ds_checkpoint *c = NULL;
        ds_checkpoint_tensor t = {"t", DS_F32, shape, 1, 0, count, data, NULL, NULL};
        memset(&j, 0, sizeof j);
        j.desc.folder = folder_of(folder, "two");
        for (size_t i = 0; data && i < count; i++) data[i] = (float)i;
        CHECK_EQ(ds_checkpoint_begin(&j.desc, "tag", &w, &j.error), DS_OK);
        if (!w || !data || !got) break;
        ds_checkpoint_add(w, &t);
        CHECK_EQ(ds_checkpoint_commit(w, &j.error), DS_OK);
        CHECK_EQ(ds_checkpoint_open(&j.desc, NULL, &c, &j.error), DS_OK);
        if (!c) break;
        for (size_t begin = 0; begin < 3 * per_block; begin += 33 * 1024) {
            const size_t n = count - begin - begin / 7;
            memset(got, 0, count * sizeof *got);
            CHECK_EQ(ds_checkpoint_read(c, "t", begin, n, DS_F32, got), DS_OK);
            CHECK(memcmp(got, data + begin, n * sizeof *got) == 0);
            CHECK(n == count || got[n] == 0);
        }
        no_threads = 1;
        memset(got, 0, count * sizeof *got);
        CHECK_EQ(ds_checkpoint_read(c, "t", 0, count, DS_F32, got), DS_OK);
        CHECK(memcmp(got, data, count * sizeof *got) == 0);
        no_threads = 0;
        ds_checkpoint_close(c);
        snprintf(path, sizeof path, "%s/tag/rank-00000.safetensors", folder);
        for (int block = BLOCKS - 1; block >= 0; block -= 13) { /* several are damaged in the end: the first is named */
            char said[64];
            FILE *f = fopen(path, "r+b");
            long at;
            CHECK_EQ(ds_checkpoint_open(&j.desc, NULL, &c, &j.error), DS_OK);
            if (!f || !c) break;
            at = (long)(dsi_checkpoint_part_of(c, 0)->offset + (uint64_t)block * (1 << 18));
            fseek(f, at + 77, SEEK_SET);
            fputc(0x55, f);
            fclose(f);
            CHECK_EQ(ds_checkpoint_read(c, "t", 0, count, DS_F32, got), DS_ERR_CORRUPT);
            snprintf(said, sizeof said, "tensor 't' is damaged: bytes %ld to ", at);
            CHECK_HAS(ds_checkpoint_error(c)->message, said);
            CHECK_EQ(ds_checkpoint_read(c, "t", (size_t)block * per_block + 5, 3, DS_F32, got), DS_ERR_CORRUPT);
            CHECK_HAS(ds_checkpoint_error(c)->message, said);
            ds_checkpoint_close(c);
        }
        free(data);
        free(got);
    }
    TEST(a_checksum_without_the_instruction) {
        CHECK(~dsi_crc32c_portable(~0u, (const unsigned char *)"123456789", 9) == 0xE3069283u);
        CHECK(dsi_crc32c(0, "123456789", 9) == 0xE3069283u);
    }
    TEST(a_path_that_does_not_fit_is_none) {
        static char folder[4096], out[4096];
        memset(folder, 'a', sizeof folder - 8);
        dsi_checkpoint_join(out, folder, "123456");
        CHECK(strlen(out) == sizeof out - 1);
        dsi_checkpoint_join(out, folder, "1234567");
        CHECK_STR(out, "");
    }
}

/* ---- indexes that lie ---- */
static void test_indexes(void) {
#define INDEX(map) "{\"metadata\":{\"total_size\":8},\"weight_map\":" map "}"
    static const struct {
        const char *name, *text;
        ds_status status;
        const char *message;
    } rows[] = {
        {"well", INDEX("{\"a\":\"x.safetensors\"}"), DS_OK, ""},
        {"no JSON", "{", DS_ERR_INPUT, "index.json'"},
        {"no map", "{}", DS_ERR_INPUT, "has no weight_map"},
        {"a map that is a number", INDEX("1"), DS_ERR_INPUT, "has no weight_map"},
        {"a file that is a number", INDEX("{\"a\":1}"), DS_ERR_INPUT, "tensor 'a' is said to be in ''"},
        {"a file above", INDEX("{\"a\":\"../x.safetensors\"}"), DS_ERR_INPUT, "which is no file's name"},
        {"a file anywhere", INDEX("{\"a\":\"/etc/passwd\"}"), DS_ERR_INPUT, "which is no file's name"},
        {"a file that is not there", INDEX("{\"a\":\"y.safetensors\"}"), DS_ERR_CORRUPT, "y.safetensors' is missing"},
        {"a tensor that is not there", INDEX("{\"a\":\"x.safetensors\",\"b\":\"x.safetensors\"}"), DS_ERR_INPUT,
         "tensor 'b' is not in 'x.safetensors'"},
        {"a tensor elsewhere", INDEX("{\"a\":\"z.safetensors\",\"c\":\"x.safetensors\"}"), DS_ERR_INPUT,
         "tensor 'a' is not in 'z.safetensors'"},
        {"a tensor that it does not list", INDEX("{\"c\":\"z.safetensors\"}"), DS_ERR_INPUT,
         "lists 1 tensors, its shards hold 2"},
        {"a tensor of two kinds", INDEX("{\"a\":\"x.safetensors\",\"d\":\"u.safetensors\"}"), DS_ERR_INPUT,
         "has another dtype or shape"},
        {"a tensor of two dtypes", INDEX("{\"a\":\"x.safetensors\",\"d\":\"h.safetensors\"}"), DS_ERR_INPUT,
         "has another dtype or shape"},
        {"a tensor of one and two dimensions", INDEX("{\"a\":\"x.safetensors\",\"d\":\"w.safetensors\"}"), DS_ERR_INPUT,
         "has another dtype or shape"},
        {"a tensor in two files", INDEX("{\"a\":\"x.safetensors\",\"d\":\"v.safetensors\"}"), DS_ERR_INPUT,
         "element 0 is in two shards"},
    };
    char folder[FOLDER_BYTES], path[FOLDER_BYTES + 40];
    const size_t two[2] = {2, 1}, three[1] = {3};
    const float data[3] = {1, 2, 3};
    const ds_checkpoint_tensor tensors[] = {
        {"a", DS_F32, two, 1, 0, 2, data, NULL, NULL}, {"c", DS_F32, two, 1, 0, 2, data, NULL, NULL},
        {"e", DS_F32, two, 1, 0, 2, data, NULL, NULL}, {"a", DS_F32, three, 1, 0, 3, data, NULL, NULL},
        {"a", DS_F16, two, 1, 0, 2, data, NULL, NULL}, {"a", DS_F32, two, 2, 0, 2, data, NULL, NULL}};
    static const struct {
        const char *name;
        int first, count;
    } files[] = {{"x", 0, 1}, {"z", 1, 2}, {"u", 3, 1}, {"v", 0, 1}, {"h", 4, 1}, {"w", 5, 1}};
    shell("mkdir -p '%s'", folder_of(folder, "indexes"));
    for (size_t i = 0; i < 6; i++) {
        snprintf(path, sizeof path, "%s/%s.safetensors", folder, files[i].name);
        CHECK_EQ(ds_safetensors_write(path, tensors + files[i].first, (size_t)files[i].count, NULL, 0, 0, NULL, NULL),
                 DS_OK);
    }
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char name[96];
        snprintf(name, sizeof name, "index: %s", rows[i].name);
        TEST_NAMED(name) {
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            snprintf(path, sizeof path, "%s/model.safetensors.index.json", folder);
            spew(path, rows[i].text, strlen(rows[i].text));
            CHECK_EQ(open_file(path, &c, &error), rows[i].status);
            CHECK_HAS(error.message, rows[i].message);
            ds_checkpoint_close(c);
            if (!rows[i].status) open_with_faults(path, DS_OK, false);
        }
    }
    TEST(links_as_a_cache_of_models_has_them) {
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        shell("cd '%s' && mkdir cache && ln -s ../x.safetensors cache/x.safetensors && printf '%%s' "
              "'{\"weight_map\":{\"a\":\"x.safetensors\"}}' > blob && ln -s ../blob cache/model.safetensors.index.json",
              folder);
        snprintf(path, sizeof path, "%s/cache", folder);
        CHECK_EQ(open_file(path, &c, &error), DS_OK);
        CHECK_EQ(ds_checkpoint_verify(c), DS_OK);
        ds_checkpoint_close(c);
        snprintf(path, sizeof path, "%s/cache/x.safetensors", folder);
        CHECK_EQ(open_file(path, &c, &error), DS_OK);
        ds_checkpoint_close(c);
        shell("cd '%s/cache' && rm x.safetensors && mkfifo x.safetensors && ln -sf x.safetensors f.safetensors",
              folder);
        snprintf(path, sizeof path, "%s/cache/f.safetensors", folder);
        CHECK(open_file(path, &c, &error) != DS_OK); /* and nobody waits for a writer */
    }
    TEST(one_file_in_a_folder) {
        const char *const metadata[2] = {"format", "pt"};
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        CHECK_EQ(open_file("/", &c, &error), DS_ERR_INPUT);
        snprintf(path, sizeof path, "%s/x.safetensors", folder);
        CHECK_EQ(ds_safetensors_write(path, tensors, 1, metadata, 1, 1 << 20, NULL, &error), DS_OK); /* fits */
        shell("cd '%s' && rm model.safetensors.index.json && mv x.safetensors model.safetensors", folder);
        snprintf(path, sizeof path, "%s//", folder);
        CHECK_EQ(open_file(path, &c, &error), DS_OK);
        ds_checkpoint_close(c);
        open_with_faults(folder, DS_OK, false);
    }
}

/* ---- what only few meet ---- */
static ds_status exchange_second_fails(void *ctx, const void *mine, void *all, size_t bytes) {
    const int32_t failed = DS_ERR_MEMORY;
    (void)ctx;
    memset(all, 0, 2 * bytes);
    memcpy(all, mine, bytes);
    memcpy((char *)all + bytes, &failed, sizeof failed);
    return DS_OK;
}
static void test_rarely(void) {
    TEST(folders_of_tags_with_faults) {
        char folder[FOLDER_BYTES], path[FOLDER_BYTES + 280], text[300];
        ds_checkpoint *c = NULL;
        ds_error error = {DS_OK, ""};
        ds_checkpoint_shard_info shard;
        ds_checkpoint_value value;
        save_well(1, folder_of(folder, "tags"), "first", 1);
        save_well(1, folder, "second", 2);
        snprintf(path, sizeof path, "%s/second", folder);
        CHECK_EQ(open_file(path, &c, &error), DS_OK);
        CHECK_EQ(ds_checkpoint_shard_at(c, 0, &shard), DS_OK);
        CHECK_STR(shard.name, "rank-00000.safetensors");
        CHECK(shard.bytes > 4 * BIG && !shard.missing);
        CHECK_EQ(ds_checkpoint_value_at(c, 0, &value), DS_OK);
        CHECK(!strcmp(value.key, "step") && value.kind == 2 && value.integer == 2);
        CHECK_EQ(ds_checkpoint_shard_at(c, 1, &shard), DS_ERR_ARGUMENT);
        CHECK_HAS(ds_checkpoint_error(c)->message, "ds_checkpoint_shard_at: 1 of 1");
        CHECK_EQ(ds_checkpoint_value_at(c, 99, &value), DS_ERR_ARGUMENT);
        CHECK_HAS(ds_checkpoint_error(c)->message, "ds_checkpoint_value_at: 99 of");
        ds_checkpoint_close(c);
        open_with_faults(path, DS_OK, false);
        memset(text, 'n', sizeof text); /* a folder of a name that is no tag's */
        text[240] = 0;
        shell("mkdir '%s/%s' && cp '%s/first/manifest.json' '%s/%s'", folder, text, folder, folder, text);
        snprintf(path, sizeof path, "%s/latest", folder);
        spew(path, "second\r\n", 8);
        CHECK(loads(folder, NULL, 2));
        open_with_faults(folder, DS_OK, true);
        spew(path, "first\0x", 7);
        CHECK(loads(folder, NULL, 2));
        open_with_faults(folder, DS_OK, true);
        shell("rm '%s' && mkdir '%s'", path, path);
        CHECK(loads(folder, NULL, 2));
        CHECK_EQ(ds_checkpoint_open_path(NULL, folder, &c, &error), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_checkpoint_open_path(NULL, NULL, &c, NULL), DS_ERR_ARGUMENT);
    }
    TEST(a_number_that_has_no_successor) {
        static const char manifest[] = "{\"format\": \"ds checkpoint 1\", \"tag\": \"m\", \"sequence\": "
                                       "9223372036854775807, \"shards\": [], \"values\": {}";
        char folder[FOLDER_BYTES], path[FOLDER_BYTES + 32], text[512];
        dsi_json_sink sink = {text, sizeof text, 0};
        shell("mkdir -p '%s/m'", folder_of(folder, "successor"));
        dsi_json_puts(&sink, manifest);
        dsi_checkpoint_put_tail(&sink, dsi_crc32c(0, text, sink.length));
        snprintf(path, sizeof path, "%s/m/manifest.json", folder);
        spew(path, text, sink.length);
        for (int i = 1; i < 4; i++) {
            char tag[16];
            job j;
            memset(&j, 0, sizeof j);
            snprintf(tag, sizeof tag, "t%d", i);
            j.desc.keep_last = 2;
            CHECK_EQ(try_save(&j, folder, tag, i), DS_OK);
        }
        shell("cd '%s' && test ! -e t1 && test -e t2 && rm latest", folder);
        CHECK(loads(folder, NULL, 3));
    }
    TEST(a_folder_too_deep_to_be_ours_stays) {
        char folder[FOLDER_BYTES];
        ds_checkpoint_desc d;
        ds_checkpoint_writer *w = NULL;
        ds_error error = {DS_OK, ""};
        memset(&d, 0, sizeof d);
        d.folder = folder_of(folder, "deep");
        shell("mkdir -p '%s/tag.tmp/a/b/c/d/e'", folder);
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_ERR_IO);
        CHECK_HAS(error.message, "its folders go too deep to be ours");
        CHECK(w == NULL);
        shell("test -d '%s/tag.tmp/a/b/c/d/e'", folder);
        shell("rm -r '%s/tag.tmp/a/b'", folder);
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_OK);
        ds_checkpoint_abandon(w);
    }
    TEST(another_rank_that_cannot_begin) {
        char folder[FOLDER_BYTES];
        ds_checkpoint_desc d;
        ds_checkpoint_writer *w = NULL;
        ds_error error = {DS_OK, ""};
        memset(&d, 0, sizeof d);
        d.folder = folder_of(folder, "others");
        d.group.exchange = exchange_second_fails;
        d.group.size = 2;
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_ERR_MEMORY);
        CHECK_HAS(error.message, "rank 1 could not begin");
        CHECK_EQ(ds_checkpoint_begin(&d, "a/b", &w, &error), DS_ERR_ARGUMENT);
        CHECK(w == NULL);
    }
    TEST(a_rank_that_cannot_begin_and_an_exchange_that_fails) {
        char folder[FOLDER_BYTES];
        ds_checkpoint_desc d;
        ds_checkpoint_writer *w = NULL;
        ds_error error = {DS_OK, ""};
        int left = 0;
        memset(&d, 0, sizeof d);
        d.folder = folder_of(folder, "others");
        d.group.exchange = exchange_fails;
        d.group.ctx = &left;
        d.group.size = 2;
        CHECK_EQ(ds_checkpoint_begin(&d, "a/b", &w, &error), DS_ERR_ARGUMENT); /* its own failure is what it tells */
        CHECK_HAS(error.message, "'a/b' cannot be a tag");
        left = 100;
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_OK);
        ds_checkpoint_abandon(w);
        d.group.rank = 1; /* not the one that makes and removes folders */
        CHECK_EQ(ds_checkpoint_begin(&d, "tag", &w, &error), DS_OK);
        shell("mkdir '%s/tag.tmp'", folder);
        ds_checkpoint_abandon(w);
        shell("rmdir '%s/tag.tmp'", folder);
    }
    TEST(a_save_cut_short_that_cannot_be_put_right) {
        char folder[FOLDER_BYTES];
        job j;
        faults f;
        save_well(1, folder_of(folder, "cut_short"), "tag", 1);
        shell("mv '%s/tag' '%s/tag.old'", folder, folder);
        for (long n = 1; n < 8; n++) {
            memset(&j, 0, sizeof j);
            memset(&f, 0, sizeof f);
            use_faults(&j.desc.files, &f);
            f.fail_at = n;
            f.all = 1;
            f.code = -EIO;
            CHECK_EQ(try_save(&j, folder, "tag", 2), DS_ERR_IO);
            CHECK(loads(folder, NULL, 1));
        }
    }
    TEST(a_background_save_without_memory) {
        char folder[FOLDER_BYTES];
        int finished = 0, failures = 0;
        for (size_t n = 1; n < 200 && !finished; n++) {
            static job j;
            shell("rm -rf '%s'", folder_of(folder, "background_memory"));
            save_well(1, folder, "old", 1);
            memset(&j, 0, sizeof j);
            j.desc.background = true;
            j.memory.fail_at = n;
            if (try_save(&j, folder, "new", 2)) {
                CHECK_EQ(j.status, DS_ERR_MEMORY);
                CHECK(loads(folder, NULL, 1));
                failures++;
            } else
                finished = j.memory.calls < n;
        }
        CHECK(finished && failures > 10);
        CHECK(loads(folder, NULL, 2));
    }
    TEST(the_thread_of_a_background_save_calls_no_allocator) {
        char folder[FOLDER_BYTES];
        static job j;
        own_thread o;
        memset(&j, 0, sizeof j);
        memset(&o, 0, sizeof o);
        o.owner = pthread_self();
        j.desc.background = true;
        j.desc.allocator.alloc = own_thread_alloc;
        j.desc.allocator.release = own_thread_release;
        j.desc.allocator.ctx = &o;
        j.desc.folder = folder_of(folder, "background_thread");
        j.tag = "tag";
        CHECK_EQ(save_rank(&j), DS_OK);
        CHECK(o.calls > 10);
        CHECK_EQ(o.of_others, 0);
    }
    TEST(exports_in_shards_with_faults) {
        const size_t shape[1] = {10};
        const float data[10] = {0};
        const ds_checkpoint_tensor t[2] = {{"a", DS_F32, shape, 1, 0, 10, data, NULL, NULL},
                                           {"b", DS_F32, shape, 1, 0, 10, data, NULL, NULL}};
        char path[FOLDER_BYTES];
        ds_checkpoint *empty = NULL;
        CHECK_EQ(ds_safetensors_write("x", t, 2, NULL, 1, 0, NULL, NULL), DS_ERR_ARGUMENT);
        CHECK_EQ(ds_safetensors_write(folder_of(path, "empty.safetensors"), NULL, 0, NULL, 0, 0, NULL, NULL), DS_OK);
        CHECK_EQ(open_file(path, &empty, NULL), DS_OK);
        CHECK_EQ(ds_checkpoint_count(empty), 0);
        ds_checkpoint_close(empty);
        CHECK_EQ(ds_safetensors_write("x/", t, 2, NULL, 0, 0, NULL, NULL), DS_ERR_ARGUMENT);
        shell("mkdir -p '%s/sharded'", root);
        folder_of(path, "sharded/model");
        for (int kind = 0; kind < 2; kind++) {
            int finished = 0;
            for (long n = 1; n < 100 && !finished; n++) {
                ds_checkpoint_desc d;
                ds_checkpoint *c = NULL;
                char index[FOLDER_BYTES + 40];
                ds_error error = {DS_OK, ""};
                test_memory memory;
                faults f;
                ds_status status;
                memset(&d, 0, sizeof d);
                memset(&f, 0, sizeof f);
                memset(&memory, 0, sizeof memory);
                use_faults(&d.files, &f);
                use_memory(&d.allocator, &memory);
                f.code = -EIO;
                if (kind)
                    f.fail_at = n;
                else
                    memory.fail_at = (size_t)n;
                status = ds_safetensors_write(path, t, 2, NULL, 0, 30, &d, &error);
                CHECK_EQ(memory.live, 0);
                CHECK(status == DS_OK || (status == (kind ? DS_ERR_IO : DS_ERR_MEMORY) && error.message[0]));
                finished = kind ? f.calls < n : memory.calls < (size_t)n;
                if (status) continue;
                snprintf(index, sizeof index, "%s.safetensors.index.json", path);
                CHECK_EQ(open_file(index, &c, &error), DS_OK);
                CHECK_EQ(ds_checkpoint_count(c), 2);
                ds_checkpoint_close(c);
            }
            CHECK(finished);
        }
    }
    TEST(what_torch_has_no_place_for) {
        static char name[4000];
        static const size_t four[1] = {4}, two[1] = {2}, none[2] = {0, 3};
        static const float data[4] = {1, 2, 3, 4};
        char folder[FOLDER_BYTES], theirs[FOLDER_BYTES];
        memset(name, 'n', sizeof name - 1);
        for (int k = 0; k < 5; k++) {
            const ds_checkpoint_tensor rows[5] = {{"u", DS_U16, four, 1, 0, 4, data, NULL, NULL},
                                                  {name, DS_F32, four, 1, 0, 4, data, NULL, NULL},
                                                  {"optimizer.s.i", DS_F32, four, 1, 0, 4, data, NULL, NULL},
                                                  {"optimizer.s.w", DS_F32, two, 1, 0, 2, data, NULL, NULL},
                                                  {"empty", DS_F32, none, 2, 0, 0, data, NULL, NULL}};
            static const ds_status expected[5] = {DS_ERR_UNSUPPORTED, DS_ERR_UNSUPPORTED, DS_ERR_UNSUPPORTED, DS_OK,
                                                  DS_OK};
            static const char *const message[5] = {"which torch lacks", "its name is too long", "is trained, and of no",
                                                   "", ""};
            const ds_checkpoint_tensor whole = {"w", DS_F32, four, 1, 0, 4, data, NULL, NULL},
                                       integers = {"i", DS_I32, four, 1, 0, 4, data, NULL, NULL};
            ds_checkpoint_desc d;
            ds_checkpoint_writer *w = NULL;
            ds_checkpoint *c = NULL;
            ds_error error = {DS_OK, ""};
            memset(&d, 0, sizeof d);
            shell("rm -rf '%s' '%s'", folder_of(folder, "torch"), folder_of(theirs, "torch_written"));
            d.folder = folder;
            CHECK_EQ(ds_checkpoint_begin(&d, "t", &w, &error), DS_OK);
            ds_checkpoint_add(w, &whole);
            ds_checkpoint_add(w, &integers);
            ds_checkpoint_add(w, &rows[k]);
            ds_checkpoint_set_integer(w, "engine.step", (int64_t)1 << 40);
            ds_checkpoint_set_integer(w, "engine.samples", -((int64_t)1 << 40));
            CHECK_EQ(ds_checkpoint_commit(w, &error), DS_OK);
            CHECK_EQ(open_file(folder, &c, &error), DS_OK);
            if (!c) break;
            CHECK_EQ(ds_deepspeed_write(c, theirs, "t", 1, 100001, &error), DS_ERR_ARGUMENT);
            CHECK_EQ(ds_deepspeed_write(c, theirs, "t", 1, -1, &error), DS_ERR_ARGUMENT);
            for (int stage = 0; stage < 4; stage++) {
                ds_checkpoint *back = NULL;
                int64_t step = 0;
                CHECK_EQ(ds_deepspeed_write(c, theirs, "t", stage, stage, &error), expected[k]);
                CHECK_HAS(error.message, message[k]);
                if (expected[k]) continue;
                CHECK_EQ(open_file(theirs, &back, &error), DS_OK);
                if (!back) continue;
                CHECK_EQ(ds_checkpoint_get_integer(back, "engine.step", &step), DS_OK);
                CHECK(step == (int64_t)1 << 40);
                CHECK_EQ(ds_checkpoint_get_integer(back, "engine.samples", &step), DS_OK);
                CHECK(step == -((int64_t)1 << 40));
                ds_checkpoint_close(back);
            }
            ds_checkpoint_close(c);
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
    test_safetensors();
    test_export();
    test_damage();
    test_options();
    test_deepspeed();
    test_deepspeed_write();
    test_pickles();
    test_pickles_further();
    test_not_trained();
    test_zip();
    test_misuse();
    test_manifests();
    test_odd_tables();
    test_large();
    test_two_threads();
    test_indexes();
    test_rarely();
    shell("rm -rf '%s'", root);
    return test_end();
}
