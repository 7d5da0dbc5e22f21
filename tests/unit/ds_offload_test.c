/* The store against a plain array: random transfers through every engine and setting; every request made to fail in turn. */
#define DS_OFFLOAD_IMPLEMENTATION
#include "ds_offload.h"
#include "../test.h"

enum { N_TENSORS = 4, MOST = 300000 };
static const size_t sizes[N_TENSORS] = {1, 4096, 100001, MOST};
static char root[256];

typedef struct model {
    ds_offload *store;
    ds_offload_id id[N_TENSORS];
    unsigned char *bytes[N_TENSORS];
} model;

static ds_offload_desc plain_desc(void) {
    ds_offload_desc d;
    memset(&d, 0, sizeof d);
    d.folder = root;
    d.block_size = 8192;
    d.timeout = 20000000000;
    return d;
}

static bool make(model *m, const ds_offload_desc *d, ds_offload_tier tier) {
    ds_error error = {DS_OK, ""};
    memset(m, 0, sizeof *m);
    if (!CHECK(ds_offload_create(d, &m->store, &error) == DS_OK)) return printf("  %s\n", error.message), false;
    for (int i = 0; i < N_TENSORS; i++) {
        char name[16];
        snprintf(name, sizeof name, "t%d", i);
        CHECK(ds_offload_add(m->store, name, sizes[i], tier, &m->id[i]) == DS_OK);
        m->bytes[i] = (unsigned char *)calloc(1, sizes[i]);
    }
    return true;
}

static void end(model *m) {
    ds_offload_destroy(m->store);
    for (int i = 0; i < N_TENSORS; i++) free(m->bytes[i]);
}

/* One random transfer; its memory is as long as the range, at a random or page alignment. */
typedef struct op {
    ds_offload_ticket ticket;
    unsigned char *block, *memory;
    size_t tensor, offset, bytes;
    bool write;
    unsigned char *expected; /* of a read: what was there when it started */
} op;

static void start(model *m, op *o, uint64_t *random) {
    size_t i = o->tensor = test_random(random) % N_TENSORS,
           skew = test_random(random) & 1 ? 0 : test_random(random) % 64;
    o->offset = test_random(random) % sizes[i];
    if (test_random(random) & 1) o->offset = o->offset / 4096 * 4096;
    o->bytes = test_random(random) % (sizes[i] - o->offset + 1);
    if (test_random(random) & 1) o->bytes = o->bytes / 4096 * 4096;
    o->write = test_random(random) & 1;
    CHECK(posix_memalign((void **)&o->block, 4096, o->bytes + 64) == 0);
    o->memory = o->block + skew;
    o->expected = NULL;
    if (o->write) {
        for (size_t k = 0; k < o->bytes; k++) o->memory[k] = (unsigned char)test_random(random);
        memcpy(m->bytes[i] + o->offset, o->memory, o->bytes);
        CHECK(ds_offload_start_write(m->store, m->id[i], o->offset, o->bytes, o->memory, &o->ticket) == DS_OK);
    } else {
        o->expected = (unsigned char *)malloc(o->bytes + 1);
        memcpy(o->expected, m->bytes[i] + o->offset, o->bytes);
        memset(o->memory, 0xA5, o->bytes);
        CHECK(ds_offload_start_read(m->store, m->id[i], o->offset, o->bytes, o->memory, &o->ticket) == DS_OK);
    }
}

static void finish(model *m, op *o) {
    if (!CHECK(ds_offload_wait(m->store, o->ticket) == DS_OK)) printf("  %s\n", ds_offload_error(m->store)->message);
    if (!o->write) CHECK(memcmp(o->memory, o->expected, o->bytes) == 0);
    free(o->expected);
    free(o->block);
}

static void random_transfers(model *m, long count, uint64_t seed) {
    op flying[16];
    int n = 0;
    uint64_t random = seed;
    for (long k = 0; k < count; k++) {
        if (n == 16) {
            int out = (int)(test_random(&random) % 16);
            finish(m, &flying[out]);
            flying[out] = flying[--n];
        }
        start(m, &flying[n++], &random);
    }
    while (n) finish(m, &flying[--n]);
}

static void engines(void) {
    for (int e = 0; e < 4; e++)
        for (unsigned flags = 0; flags < 16; flags++) {
            char name[128];
            ds_offload_desc d = plain_desc();
            d.engine = e == 0 ? DS_OFFLOAD_ENGINE_AUTO : (ds_offload_engine)e;
            d.single_submit = flags & 1;
            d.no_overlap = flags & 2;
            d.buffered = flags & 4;
            d.checksums = flags & 8;
            d.thread_count = flags & 1 ? 3 : 1;
            d.queue_depth = flags & 2 ? 1 : 4;
            snprintf(name, sizeof name, "random transfers: engine %s flags %u",
                     ds_offload_engine_name((ds_offload_engine)e), flags);
            TEST_NAMED(name) {
                model m;
                ds_offload_stats stats;
                if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
                random_transfers(&m, 200, flags * 4u + (unsigned)e + 1);
                ds_offload_get_stats(m.store, &stats);
                CHECK(stats.requests > 0 && stats.reads + stats.writes == 200);
                CHECK(e == 0 || stats.engine == (ds_offload_engine)e);
                end(&m);
            }
        }
    for (int e = 1; e < 4; e++)
        for (unsigned flags = 0; flags < 8; flags++) {
            char name[128];
            ds_offload_desc d = plain_desc();
            ds_offload_stats stats;
            model m;
            d.engine = (ds_offload_engine)e;
            d.thread_count = flags & 1 ? 3 : 1;
            d.checksums = flags & 2;
            d.buffered = flags & 1;
            d.max_in_cpu = flags & 4 ? 1000000 : 5 * 8192 + 1;
            snprintf(name, sizeof name, "spilling: engine %s flags %u", ds_offload_engine_name(d.engine), flags);
            TEST_NAMED(name) {
                if (!make(&m, &d, DS_OFFLOAD_SPILL)) break;
                random_transfers(&m, 250, flags * 4u + (unsigned)e + 1000);
                ds_offload_get_stats(m.store, &stats);
                CHECK(stats.hits > 0 && stats.misses > 0);
                CHECK((stats.spills > 0) == !(flags & 4)); /* with room for all nothing is ever written */
                CHECK((stats.bytes_written > 0) == !(flags & 4));
                end(&m);
            }
        }
    TEST(random swaps over all tiers) { /* `make soak` sets DS_TEST_SWAPS; tests/soak.md has the totals */
        long swaps = getenv("DS_TEST_SWAPS") ? atol(getenv("DS_TEST_SWAPS")) : 1000;
        ds_offload_desc d = plain_desc();
        model m;
        d.max_in_cpu = 9 * 8192;
        d.timeout = 600000000000; /* a soak runs beside other work */
        d.thread_count = 2;
        d.checksums = true;
        for (int tier = 0; tier < 3; tier++) {
            if (!make(&m, &d, (ds_offload_tier)tier)) break;
            random_transfers(&m, swaps / 3 + 1, (uint64_t)tier + 77);
            end(&m);
        }
    }
    TEST(host tensors) {
        ds_offload_desc d = plain_desc();
        model m;
        d.pin_memory = true;
        d.folder = NULL;
        if (make(&m, &d, DS_OFFLOAD_HOST)) random_transfers(&m, 300, 99);
        end(&m);
    }
    TEST(a new tensor reads as zeros) {
        ds_offload_desc d = plain_desc();
        model m;
        unsigned char *got = (unsigned char *)malloc(MOST);
        memset(got, 1, MOST);
        if (make(&m, &d, DS_OFFLOAD_NVME)) CHECK(ds_offload_read(m.store, m.id[3], 0, MOST, got) == DS_OK);
        CHECK(memcmp(got, m.bytes[3], MOST) == 0);
        free(got);
        end(&m);
    }
}

/* An engine that does what it is told to at the n-th request. */
typedef struct trouble {
    int at,
        kind; /* 1 EIO, 2 half, 3 EAGAIN, 4 EINTR, 5 nothing at all, 6 ENOSPC, 7 never, 8 submit refuses once, 12 says 512 bytes */
    int seen;
    ds_offload_request *queue[256];
    int count, refused;
    ds_offload_request *held; /* never ends, until `let_go` */
    int let_go;
} trouble;
static int trouble_setup(void *ctx, unsigned depth, void **queue) {
    (void)depth;
    *queue = ctx;
    return 0;
}
static void trouble_teardown(void *ctx, void *queue) {
    (void)ctx;
    (void)queue;
}
static int trouble_submit(void *ctx, void *queue, ds_offload_request **requests, int count) {
    trouble *t = (trouble *)ctx;
    (void)queue;
    if (t->kind == 8 && t->seen + 1 >= t->at && !t->refused) {
        t->refused = 1;
        return -EAGAIN;
    }
    for (int i = 0; i < count; i++) {
        ds_offload_request *r = requests[i];
        size_t bytes = r->bytes;
        int now = ++t->seen == t->at ? t->kind : 0;
        if (now == 1)
            r->result = -EIO;
        else if (now == 3 || t->kind == 30)
            r->result = -EAGAIN;
        else if (now == 4)
            r->result = -EINTR;
        else if (now == 5)
            r->result = 0;
        else if (now == 6)
            r->result = -ENOSPC;
        else if (now >= 9 && now < 12)
            r->result = now == 9 ? -ENOMEM : now == 10 ? -EDQUOT : -EFBIG;
        else {
            if (now == 2) bytes = bytes / 2 / 4096 * 4096 + (bytes < 8192 ? bytes / 2 : 0);
            r->result = r->write ? dsi_sys_write(NULL, r->fd, r->buffer, bytes, r->offset)
                                 : dsi_sys_read(NULL, r->fd, r->buffer, bytes, r->offset);
            if (now == 12 && r->result > 512) r->result = 512;
        }
        if (now == 7)
            t->held = r;
        else
            t->queue[t->count++] = r;
        if (t->kind == 8 && i == 0 && t->refused == 1) { /* and takes only one of several */
            t->refused = 2;
            return 1;
        }
    }
    return count;
}
static int trouble_events(void *ctx, void *queue, int at_least, int at_most, ds_offload_request **done,
                          int64_t timeout) {
    trouble *t = (trouble *)ctx;
    int n;
    (void)queue;
    (void)at_least;
    (void)timeout;
    if (t->held && __atomic_load_n(&t->let_go, __ATOMIC_RELAXED)) {
        t->queue[t->count++] = t->held;
        t->held = NULL;
    }
    n = t->count < at_most ? t->count : at_most;
    if (n == 0) dsi_sleep(NULL, 1000000);
    memcpy(done, t->queue, (size_t)n * sizeof *done);
    t->count -= n;
    memmove(t->queue, t->queue + n, (size_t)t->count * sizeof *done);
    return n;
}

static void failing_requests(void) {
    for (int kind = 1; kind <= 11; kind++)
        for (int at = 1; at <= 12; at++) {
            char name[64];
            if (kind == 7) continue; /* below */
            snprintf(name, sizeof name, "request %d: trouble %d", at, kind);
            TEST_NAMED(name) {
                trouble t;
                model m;
                ds_offload_desc d = plain_desc();
                ds_status status, expected = kind == 1 || kind == 5  ? DS_ERR_IO
                                             : kind == 9             ? DS_ERR_MEMORY
                                             : kind == 6 || kind > 9 ? DS_ERR_SPACE
                                                                     : DS_OK;
                unsigned char *data = (unsigned char *)malloc(50000), *back = (unsigned char *)malloc(50000);
                bool failed;
                for (int k = 0; k < 50000; k++) data[k] = (unsigned char)(k * 7 + k / 251);
                memset(&t, 0, sizeof t);
                d.buffered = true;
                d.aio.ctx = &t;
                d.aio.setup = trouble_setup;
                d.aio.teardown = trouble_teardown;
                d.aio.submit = trouble_submit;
                d.aio.events = trouble_events;
                if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
                t.at = at;
                t.kind = kind;
                status = ds_offload_write(m.store, m.id[2], 1000, 50000, data);
                failed = status != DS_OK;
                CHECK(status == DS_OK || status == expected);
                if (failed) {
                    CHECK_HAS(ds_offload_error(m.store)->message, "write of tensor 't2'");
                    CHECK_HAS(ds_offload_error(m.store)->message, root);
                    CHECK_HAS(ds_offload_error(m.store)->message, "offset");
                    CHECK(ds_offload_write(m.store, m.id[2], 1000, 50000, data) ==
                          DS_OK); /* a second try goes through */
                }
                status = ds_offload_read(m.store, m.id[2], 1000, 50000, back);
                CHECK(status == DS_OK || (!failed && status == expected));
                if (status) {
                    CHECK_HAS(ds_offload_error(m.store)->message, "read of tensor 't2'");
                    failed = true;
                    CHECK(ds_offload_read(m.store, m.id[2], 1000, 50000, back) == DS_OK);
                }
                CHECK(failed == (expected != DS_OK) || t.seen < at);
                CHECK(memcmp(data, back, 50000) == 0);
                free(data);
                free(back);
                end(&m);
            }
        }
}

/* Which blocks stay in memory depends on the order of calls alone: the ones used least recently go. */
static void least_recent_use(void) {
    enum { BLOCK = 4096 };
    ds_offload_desc d = plain_desc();
    ds_offload *s = NULL;
    ds_offload_id id;
    ds_offload_stats stats;
    static unsigned char data[8 * BLOCK], back[8 * BLOCK];
    d.block_size = BLOCK;
    d.max_in_cpu = 3 * BLOCK;
    for (size_t k = 0; k < sizeof data; k++) data[k] = (unsigned char)(k / BLOCK * 31 + k);
#define SPENT(h, m, w)                                                                                                 \
    ds_offload_get_stats(s, &stats);                                                                                   \
    CHECK(stats.hits == (h) && stats.misses == (m) && stats.spills == (w))
    TEST(least recent use) {
        if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
        CHECK(ds_offload_add(s, "pages", sizeof data, DS_OFFLOAD_SPILL, &id) == DS_OK);
        for (size_t b = 0; b < 3; b++) CHECK(ds_offload_write(s, id, b * BLOCK, BLOCK, data + b * BLOCK) == DS_OK);
        SPENT(0, 3, 0);
        CHECK(stats.requests == 0 && stats.bytes_written == 0); /* all of it is in memory */
        CHECK(ds_offload_read(s, id, 0, BLOCK, back) == DS_OK); /* block 1 is the oldest now */
        CHECK(ds_offload_write(s, id, 3 * BLOCK, BLOCK, data + 3 * BLOCK) == DS_OK);
        SPENT(1, 4, 1);
        CHECK(stats.bytes_written == BLOCK && stats.bytes_read == 0);
        CHECK(ds_offload_read(s, id, 0, BLOCK, back) == DS_OK);
        SPENT(2, 4, 1); /* block 0 stayed */
        CHECK(ds_offload_read(s, id, BLOCK, BLOCK, back + BLOCK) == DS_OK);
        SPENT(2, 5, 2); /* block 1 came back for block 2 */
        CHECK(stats.bytes_read == BLOCK);
        CHECK(ds_offload_read(s, id, 3 * BLOCK + 5, 10, back) == DS_OK);
        CHECK(ds_offload_read(s, id, 0, 3, back) == DS_OK);
        SPENT(4, 5, 2);
        CHECK(ds_offload_read(s, id, 2 * BLOCK, BLOCK, back + 2 * BLOCK) == DS_OK);
        SPENT(4, 6, 2); /* block 1 was not changed: dropped, not written */
        CHECK(ds_offload_write(s, id, 0, sizeof data, data) == DS_OK); /* more than there is memory for */
        CHECK(ds_offload_read(s, id, 0, sizeof data, back) == DS_OK && memcmp(data, back, sizeof data) == 0);
        ds_offload_destroy(s);
    }
#undef SPENT
    TEST(what a store takes is what it says) {
        for (int kind = 0; kind < 8; kind++) {
            test_memory memory = {0};
            d = plain_desc();
            if (kind == 1) d.folder = NULL;
            if (kind == 2) d.max_in_cpu = 100000;
            if (kind == 3) d.thread_count = 5, d.queue_depth = 33, d.block_size = 5000;
            if (kind == 4) d.engine = DS_OFFLOAD_ENGINE_THREADS, d.name = "with_a_name";
            if (kind == 5) d.engine = DS_OFFLOAD_ENGINE_KERNEL, d.pin_memory = true, d.max_in_cpu = 16384;
            d.allocator.alloc = test_alloc;
            d.allocator.release = test_release;
            d.allocator.ctx = &memory;
            if (kind == 7) d.probe = 1000000, d.checksums = true; /* whose tensor is larger than the program's */
            if (kind == 6) /* and three tensors in 1, 2 and 1 blocks of the file */
                d.max_in_cpu = 16384, d.checksums = true, d.tensors = 3, d.file_bytes = 3 * 8192 + 4096;
            if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) continue;
            CHECK_EQ(memory.live, ds_offload_memory(&d));
            if (kind == 6) {
                CHECK(ds_offload_add(s, "one", 5000, DS_OFFLOAD_NVME, &id) == DS_OK);
                CHECK(ds_offload_add(s, "two", 8193, DS_OFFLOAD_SPILL, &id) == DS_OK);
                CHECK(ds_offload_add(s, "three", 1, DS_OFFLOAD_NVME, &id) == DS_OK);
                ds_offload_get_stats(s, &stats);
                CHECK_EQ(stats.file_bytes, d.file_bytes);
                CHECK_EQ(memory.live, ds_offload_memory(&d) + sizeof "one" + sizeof "two" + sizeof "three");
                CHECK_EQ(memory.peak, memory.live);
            }
            ds_offload_destroy(s);
            CHECK_EQ(memory.live, 0);
            if (kind == 4) {
                char path[400];
                snprintf(path, sizeof path, "%s/with_a_name.rank0", root);
                CHECK(unlink(path) == 0);
            }
        }
    }
}

/* A failing request of a store that spills: nothing is lost, and what stopped may be started again. */
static void failing_spills(void) {
    static unsigned char data[20 * 8192], back[20 * 8192];
    for (size_t k = 0; k < sizeof data; k++) data[k] = (unsigned char)(k * 13 + k / 8192);
    for (int kind = 1; kind <= 8; kind++)
        for (int at = 1; at <= 24; at++) {
            char name[64];
            if (kind == 7) continue;
            snprintf(name, sizeof name, "spilling, request %d: trouble %d", at, kind);
            TEST_NAMED(name) {
                trouble t;
                ds_offload *s = NULL;
                ds_offload_id id;
                ds_offload_ticket ticket[20];
                ds_offload_desc d = plain_desc();
                memset(&t, 0, sizeof t);
                d.max_in_cpu = 4 * 8192;
                d.thread_count = 1;
                d.aio.ctx = &t;
                d.aio.setup = trouble_setup;
                d.aio.teardown = trouble_teardown;
                d.aio.submit = trouble_submit;
                d.aio.events = trouble_events;
                if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
                CHECK(ds_offload_add(s, "pages", sizeof data, DS_OFFLOAD_SPILL, &id) == DS_OK);
                t.at = at;
                t.kind = kind;
                for (size_t b = 0; b < 20; b++)
                    CHECK(ds_offload_start_write(s, id, b * 8192, 8192, data + b * 8192, &ticket[b]) == DS_OK);
                for (size_t b = 0; b < 20; b++) {
                    if (ds_offload_wait(s, ticket[b]) == DS_OK) continue;
                    CHECK(kind == 1 || kind == 5 || kind == 6);
                    CHECK_HAS(ds_offload_error(s)->message, "write of tensor 'pages'");
                    CHECK(ds_offload_write(s, id, b * 8192, 8192, data + b * 8192) == DS_OK);
                }
                for (size_t b = 0; b < 20; b++) { /* in another order than it was written */
                    size_t k = b * 7 % 20;
                    if (ds_offload_read(s, id, k * 8192, 8192, back + k * 8192) != DS_OK) {
                        CHECK(t.seen >= at && (kind == 1 || kind == 5 || kind == 6));
                        CHECK(ds_offload_read(s, id, k * 8192, 8192, back + k * 8192) == DS_OK);
                    }
                }
                CHECK(t.seen >= at);
                CHECK(memcmp(data, back, sizeof data) == 0);
                ds_offload_destroy(s);
            }
        }
}

static size_t pinned_bytes;
static ds_status pinned_alloc(void *ctx, size_t bytes, void **memory) {
    (void)ctx;
    pinned_bytes += bytes;
    return posix_memalign(memory, 4096, bytes) ? DS_ERR_MEMORY : DS_OK;
}
static void pinned_release(void *ctx, void *memory, size_t bytes) {
    (void)ctx;
    pinned_bytes -= bytes;
    free(memory);
}
static ds_status no_pinned(void *ctx, size_t bytes, void **memory) {
    (void)ctx;
    (void)bytes;
    (void)memory;
    return DS_ERR_MEMORY;
}

static char logged[2000];
static void note(void *ctx, const char *header, int level, int id, const char *message) {
    size_t at = strlen(logged);
    (void)ctx;
    (void)header;
    (void)level;
    if (at + 300 < sizeof logged) snprintf(logged + at, sizeof logged - at, "%d: %.250s; ", id, message);
}

static int taken_open(void *ctx, const char *path, int flags, unsigned mode) {
    (void)ctx;
    (void)path;
    (void)mode;
    return (flags & 020000000) == 020000000 ? -EOPNOTSUPP : -EEXIST;
}
static void listed(void *arg, const char *name) {
    snprintf((char *)arg + strlen((char *)arg), 20, "%.10s ", name);
}

/* The system's own calls, where they fail. */
static void system_calls(void) {
    TEST(the file table) {
        ds_files all = dsi_files(NULL), same = dsi_files(&all);
        char byte, path[300];
        CHECK(memcmp(&all, &same, sizeof all) == 0);
        CHECK(all.open(NULL, "/nonexistent/file", O_RDONLY, 0) == -ENOENT);
        CHECK(all.close(NULL, -1) == -EBADF && all.sync(NULL, -1) == -EBADF && all.truncate(NULL, -1, 0) == -EBADF);
        CHECK(all.read(NULL, -1, &byte, 1, 0) == -EBADF && all.write(NULL, -1, &byte, 1, 0) == -EBADF);
        CHECK(all.reserve(NULL, -1, 0, 1) == -EBADF && all.size(NULL, -1) == -EBADF);
        CHECK(all.exists(NULL, "/nonexistent/file") == 0 && all.exists(NULL, "/dev/null/file") == 0);
        CHECK(all.exists(NULL, "/dev/null") == 3 && all.exists(NULL, root) == 2 &&
              all.exists(NULL, "/etc/passwd") == 1);
        memset(path, 'x', sizeof path);
        path[0] = '/';
        path[sizeof path - 1] = 0;
        CHECK(all.exists(NULL, path) == -ENAMETOOLONG);
        CHECK(all.list(NULL, "/dev/null", NULL, NULL) == -ENOTDIR);
        CHECK(all.rename(NULL, "/nonexistent/a", "/nonexistent/b") == -ENOENT &&
              all.unlink(NULL, "/nonexistent") == -ENOENT);
        CHECK(all.mkdir(NULL, root, 0700) == -EEXIST && all.rmdir(NULL, "/nonexistent") == -ENOENT);
    }
    TEST(a folder is listed) {
        ds_files all = dsi_files(NULL);
        char folder[300], file[320], names[100] = "";
        int fd;
        snprintf(folder, sizeof folder, "%s/list", root);
        snprintf(file, sizeof file, "%s/one", folder);
        CHECK(all.mkdir(NULL, folder, 0700) == 0);
        CHECK(all.list(NULL, folder, listed, names) == 0);
        CHECK_STR(names, "");
        CHECK((fd = all.open(NULL, file, O_RDWR | O_CREAT, 0600)) >= 0 && all.close(NULL, fd) == 0);
        CHECK(all.list(NULL, folder, listed, names) == 0);
        CHECK_STR(names, "one ");
        CHECK(all.unlink(NULL, file) == 0 && all.rmdir(NULL, folder) == 0);
        CHECK(all.list(NULL, folder, listed, names) == -ENOENT);
    }
#if defined(__linux__)
    TEST(the calls of the kernel give their error) {
        void *none = NULL;
        struct timespec now = {0, 0};
        dsi_offload_event event;
        CHECK(dsi_offload_sys_setup(-1, &none) < 0 && none == NULL);
        CHECK(dsi_offload_sys_submit(NULL, 1, NULL) < 0);
        CHECK(dsi_offload_sys_events(NULL, 1, 1, &event, &now) < 0);
        CHECK(dsi_offload_sys_destroy(NULL) < 0);
    }
#endif
    TEST(what is not said has the values of the manual) {
        ds_offload_desc d;
        ds_offload *s = NULL;
        memset(&d, 0, sizeof d);
        d.folder = root;
        logged[0] = 0;
        d.logger.log = note;
        if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
        CHECK_HAS(logged, "blocks of 1048576 bytes, depth 8, 1 threads");
        CHECK_EQ(s->timeout, 60000000000);
        ds_offload_destroy(s);
    }
    TEST(every name of the moment is taken) {
        ds_offload_desc d = plain_desc();
        ds_offload *s = NULL;
        ds_error error = {DS_OK, ""};
        d.files.open = taken_open;
        CHECK(ds_offload_create(&d, &s, &error) == DS_ERR_IO && s == NULL);
        CHECK_HAS(error.message, "make a swap file in");
        CHECK_HAS(error.message, "File exists");
    }
    TEST(no queue left in the kernel) {
        ds_offload_desc d = plain_desc();
        ds_offload *most = NULL, *rest = NULL;
        ds_offload_stats stats;
        ds_error error = {DS_OK, ""};
        logged[0] = 0;
        d.queue_depth = 65536;
        d.block_size = 4096;
        if (!CHECK(ds_offload_create(&d, &most, NULL) == DS_OK)) break;
        d.queue_depth = 60000;
        d.logger.log = note;
        CHECK(ds_offload_create(&d, &rest, &error) == DS_OK);
        ds_offload_get_stats(rest, &stats);
        ds_offload_get_stats(most, &stats);
        CHECK(stats.engine == DS_OFFLOAD_ENGINE_THREADS || strstr(logged, "3: engine libaio refused") != NULL ||
              strstr(logged, "1: swapping in") != NULL);
        ds_offload_destroy(rest);
        d.engine = DS_OFFLOAD_ENGINE_KERNEL; /* asked for by name: no other one is taken */
        if (ds_offload_create(&d, &rest, &error) == DS_OK)
            ds_offload_destroy(rest);
        else
            CHECK_HAS(error.message, "start asynchronous I/O for");
        ds_offload_destroy(most);
    }
    TEST(tensors of no size and of too much) {
        for (int tier = 0; tier < 3; tier++) {
            ds_offload_desc d = plain_desc();
            ds_offload *s = NULL;
            ds_offload_id id;
            char byte = 1;
            d.max_in_cpu = 8192;
            d.pin_memory = true;
            CHECK(ds_offload_create(&d, &s, NULL) == DS_OK);
            CHECK(ds_offload_add(s, "none", 0, (ds_offload_tier)tier, &id) == DS_OK);
            CHECK(ds_offload_write(s, id, 0, 0, NULL) == DS_OK && ds_offload_read(s, id, 0, 0, NULL) == DS_OK);
            CHECK(ds_offload_read(s, id, 0, 1, &byte) == DS_ERR_ARGUMENT);
            CHECK(ds_offload_add(s, "much", SIZE_MAX - 10, (ds_offload_tier)tier, &id) != DS_OK);
            CHECK(tier != DS_OFFLOAD_NVME || ds_offload_add(s, "more", SIZE_MAX / 2, DS_OFFLOAD_NVME, &id) != DS_OK);
            CHECK(ds_offload_add(s, "one", 1, (ds_offload_tier)tier, &id) == DS_OK);
            CHECK(ds_offload_write(s, id, 0, 1, NULL) == DS_ERR_ARGUMENT);
            CHECK(ds_offload_write(s, id, 0, 1, &byte) == DS_OK);
            byte = 0;
            CHECK(ds_offload_read(s, id, 0, 1, &byte) == DS_OK && byte == 1);
            ds_offload_destroy(s);
        }
    }
    TEST(what a store of an engine and pinned memory given takes) {
        static trouble t;
        ds_offload_desc d = plain_desc();
        size_t with, without;
        ds_offload_stats stats;
        ds_offload *s = NULL;
        d.max_in_cpu = 4 * 8192;
        with = ds_offload_memory(&d);
        d.aio.ctx = &t;
        d.aio.setup = trouble_setup;
        CHECK(ds_offload_memory(&d) < with);
        d.pin_memory = true;
        without = ds_offload_memory(&d);
        d.device.pinned_alloc = pinned_alloc;
        CHECK_EQ(ds_offload_memory(&d) + 6 * 8192, without); /* four blocks and two bounce buffers are the device's */
        d = plain_desc();
        d.folder = NULL;
        CHECK(ds_offload_create(&d, &s, NULL) == DS_OK);
        ds_offload_get_stats(s, &stats);
        CHECK(!stats.direct && stats.file_bytes == 0);
        ds_offload_destroy(s);
    }
}

static int64_t passing;
static int64_t slow_now(void *ctx) {
    (void)ctx;
    return __atomic_add_fetch(&passing, 1000000000, __ATOMIC_RELAXED);
}

/* An engine that looks at what is asked of it, and ends requests last come, first served. */
typedef struct watch {
    int queues, depth, submits, largest_submit, flying, most_flying, overlapped, requests;
    size_t largest;
    ds_offload_request *queue[256];
    pthread_mutex_t lock;
} watch;
static int watch_setup(void *ctx, unsigned depth, void **queue) {
    watch *w = (watch *)ctx;
    w->queues++;
    w->depth = (int)depth;
    *queue = ctx;
    return 0;
}
static int watch_submit(void *ctx, void *queue, ds_offload_request **requests, int count) {
    watch *w = (watch *)ctx;
    (void)queue;
    pthread_mutex_lock(&w->lock);
    w->submits++;
    w->overlapped += w->flying > 0;
    if (count > w->largest_submit) w->largest_submit = count;
    for (int i = 0; i < count; i++) {
        ds_offload_request *r = requests[i];
        r->result = r->write ? dsi_sys_write(NULL, r->fd, r->buffer, r->bytes, r->offset)
                             : dsi_sys_read(NULL, r->fd, r->buffer, r->bytes, r->offset);
        if (r->bytes > w->largest) w->largest = r->bytes;
        w->requests++;
        w->queue[w->flying++] = r;
    }
    if (w->flying > w->most_flying) w->most_flying = w->flying;
    pthread_mutex_unlock(&w->lock);
    return count;
}
static int watch_events(void *ctx, void *queue, int at_least, int at_most, ds_offload_request **done, int64_t timeout) {
    watch *w = (watch *)ctx;
    int n = 0;
    (void)queue;
    (void)timeout;
    (void)at_most;
    pthread_mutex_lock(&w->lock);
    while (n < at_least && w->flying) done[n++] = w->queue[--w->flying];
    pthread_mutex_unlock(&w->lock);
    return n;
}

static void settings(void) {
    static unsigned char data[40 * 8192];
    for (int which = 0; which < 5; which++) {
        static const char *const names[] = {"block_size", "queue_depth", "single_submit", "overlap_events false",
                                            "thread_count"};
        TEST_NAMED(names[which]) {
            watch w;
            ds_offload *s = NULL;
            ds_offload_id id;
            ds_offload_desc d = plain_desc();
            memset(&w, 0, sizeof w);
            pthread_mutex_init(&w.lock, NULL);
            d.buffered = true;
            d.queue_depth = which == 1 ? 5 : 8;
            d.block_size = which == 0 ? 16384 : 8192;
            d.single_submit = which == 2;
            d.no_overlap = which == 3;
            d.thread_count = which == 4 ? 4 : 1;
            d.aio.ctx = &w;
            d.aio.setup = watch_setup;
            d.aio.teardown = trouble_teardown;
            d.aio.submit = watch_submit;
            d.aio.events = watch_events;
            if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
            CHECK(ds_offload_add(s, "t", sizeof data, DS_OFFLOAD_NVME, &id) == DS_OK);
            if (which < 4) CHECK(ds_offload_write(s, id, 0, sizeof data, data) == DS_OK);
            ds_offload_destroy(s);
            CHECK_EQ(w.depth, which == 1 ? 5 : 8);  /* requests in flight for each thread, */
            CHECK_EQ(w.queues, which == 4 ? 4 : 1); /* each of which has a queue of its own */
            if (which == 4) break;                  /* this engine serves one queue only */
            CHECK_EQ(w.largest, which == 0 ? 16384 : 8192);
            CHECK_EQ(w.requests, which == 0 ? 20 : 40);
            CHECK_EQ(w.most_flying, which == 1 ? 5 : 8);
            CHECK_EQ(w.largest_submit, which == 1   ? 5
                                       : which == 2 ? 1
                                                    : 8); /* as one block of requests, or one by one */
            CHECK(which == 3 ? w.overlapped == 0 && w.submits == 5 : w.overlapped > 0);
        }
    }
}

/* A queue for each thread; writes of one block are late. */
typedef struct lag {
    ds_offload_request *done[8];
    int count;
} lag;
static int lag_setup(void *ctx, unsigned depth, void **queue) {
    (void)ctx;
    (void)depth;
    return (*queue = calloc(1, sizeof(lag))) ? 0 : -ENOMEM;
}
static void lag_teardown(void *ctx, void *queue) {
    (void)ctx;
    free(queue);
}
static int lag_submit(void *ctx, void *queue, ds_offload_request **requests, int count) {
    lag *q = (lag *)queue;
    struct timespec late = {0, 30000000};
    for (int i = 0; i < count; i++) {
        ds_offload_request *r = requests[i];
        if (r->write && r->offset == *(const int64_t *)ctx) nanosleep(&late, NULL);
        r->result = r->write ? dsi_sys_write(NULL, r->fd, r->buffer, r->bytes, r->offset)
                             : dsi_sys_read(NULL, r->fd, r->buffer, r->bytes, r->offset);
        q->done[q->count++] = r;
    }
    return count;
}
static int lag_events(void *ctx, void *queue, int at_least, int at_most, ds_offload_request **done, int64_t timeout) {
    lag *q = (lag *)queue;
    int n = 0;
    (void)ctx;
    (void)at_least;
    (void)timeout;
    while (n < at_most && q->count) done[n++] = q->done[--q->count];
    return n;
}

/* Two threads, and memory that is read into while its write is still under way in one of them, and the other way round. */
static void one_memory(void) {
    static unsigned char data[2 * 8192], back[2 * 8192];
    for (int tier = DS_OFFLOAD_NVME; tier <= DS_OFFLOAD_SPILL; tier++)
        TEST_NAMED(tier == DS_OFFLOAD_NVME ? "memory in use" : "memory in use, of one that spills") {
            int64_t slow = 8192; /* the second block of the first tensor */
            ds_offload *s = NULL;
            ds_offload_id a, b;
            ds_offload_ticket ticket[3];
            ds_offload_desc d = plain_desc();
            d.buffered = true;
            d.block_size = 8192;
            d.thread_count = 2;
            d.max_in_cpu = 8192;
            d.aio.ctx = &slow;
            d.aio.setup = lag_setup;
            d.aio.teardown = lag_teardown;
            d.aio.submit = lag_submit;
            d.aio.events = lag_events;
            if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
            CHECK(ds_offload_add(s, "a", sizeof data, DS_OFFLOAD_NVME, &a) == DS_OK);
            CHECK(ds_offload_add(s, "b", sizeof data, (ds_offload_tier)tier, &b) == DS_OK);
            memset(data, 2, sizeof data);
            CHECK(ds_offload_write(s, b, 0, sizeof data, data) == DS_OK);
            memset(data, 1, sizeof data);
            CHECK(ds_offload_start_write(s, a, 0, sizeof data, data, &ticket[0]) == DS_OK);
            CHECK(ds_offload_start_read(s, b, 0, 8192, data + 8192, &ticket[1]) == DS_OK);
            CHECK(ds_offload_start_write(s, a, 0, 8192, data + 8192, &ticket[2]) == DS_OK);
            for (int i = 3; i-- > 0;) CHECK(ds_offload_wait(s, ticket[i]) == DS_OK);
            CHECK(data[0] == 1 && data[8192] == 2 && data[2 * 8192 - 1] == 2);
            CHECK(ds_offload_read(s, a, 0, sizeof back, back) == DS_OK);
            CHECK(back[0] == 2 && back[8191] == 2 && back[8192] == 1 && back[2 * 8192 - 1] == 1);
            ds_offload_destroy(s);
        }
}

/* Files whose n-th call fails, moves half, or is told to come again. */
typedef struct shaky {
    int at, kind, calls; /* 0 EIO, 1 half of a read or write, 2 EAGAIN from one of them, 3 ENOSPC, EDQUOT, EFBIG */
    bool refuse_direct, refuse_anonymous;
    bool direct;
    bool nothing; /* a fault of kind 1 moves nothing at all */
    bool late;    /* the refusals come late: O_DIRECT's from the first write, the name's as one that is taken */
} shaky;
static int shaky_fault(shaky *s, bool moves) {
    if (++s->calls != s->at || (s->kind && s->kind < 3 && !moves)) return 0;
    return s->kind == 0   ? -EIO
           : s->kind == 2 ? -EAGAIN
           : s->kind == 3 ? (s->at % 3 == 0   ? -ENOSPC
                             : s->at % 3 == 1 ? -EDQUOT
                                              : -EFBIG)
                          : 1;
}
static int shaky_open(void *ctx, const char *path, int flags, unsigned mode) {
    shaky *s = (shaky *)ctx;
    int fault = shaky_fault(s, false);
    if (fault < 0) return fault;
    s->direct = flags & 040000;
    if (s->refuse_direct && s->direct && !s->late) {
        if (flags & O_CREAT)
            (void)dsi_sys_close(NULL, dsi_sys_open(NULL, path, flags & ~040000, mode)); /* as Linux does */
        return -EINVAL;
    }
    if (s->refuse_anonymous && (flags & 020000000) == 020000000) return s->late ? -EISDIR : -EOPNOTSUPP;
    if (s->late && strstr(path, ".0.0")) return -EEXIST;
    return dsi_sys_open(NULL, path, flags, mode);
}
static int64_t shaky_read(void *ctx, int fd, void *buffer, size_t bytes, int64_t offset) {
    int fault = shaky_fault((shaky *)ctx, true);
    return fault < 0 ? fault : dsi_sys_read(NULL, fd, buffer, fault ? bytes / 2 / 4096 * 4096 : bytes, offset);
}
static int64_t shaky_write(void *ctx, int fd, const void *buffer, size_t bytes, int64_t offset) {
    shaky *s = (shaky *)ctx;
    int fault = shaky_fault(s, true);
    if (s->late && s->refuse_direct && s->direct) return -EOPNOTSUPP;
    if (fault > 0 && s->nothing) return 0;
    return fault < 0 ? fault : dsi_sys_write(NULL, fd, buffer, fault ? bytes / 2 / 4096 * 4096 : bytes, offset);
}
static int shaky_truncate(void *ctx, int fd, int64_t bytes) {
    int fault = shaky_fault((shaky *)ctx, false);
    return fault < 0 ? fault : dsi_sys_truncate(NULL, fd, bytes);
}
static int shaky_reserve(void *ctx, int fd, int64_t offset, int64_t bytes) {
    int fault = shaky_fault((shaky *)ctx, false);
    return fault < 0 ? fault : dsi_sys_reserve(NULL, fd, offset, bytes);
}
static int no_reserve(void *ctx, int fd, int64_t offset, int64_t bytes) { /* what glibc makes of ext3 under O_DIRECT */
    (void)ctx;
    (void)fd;
    return offset == 0 && bytes > 4096 ? -EOPNOTSUPP : -EINVAL;
}
static int shaky_exists(void *ctx, const char *path) {
    int fault = shaky_fault((shaky *)ctx, false);
    return fault < 0 ? fault : dsi_sys_exists(NULL, path);
}
static void shake(ds_offload_desc *d, shaky *s) {
    d->files.ctx = s;
    d->files.open = shaky_open;
    d->files.read = shaky_read;
    d->files.write = shaky_write;
    d->files.truncate = shaky_truncate;
    d->files.reserve = shaky_reserve;
    d->files.exists = shaky_exists;
    d->engine = DS_OFFLOAD_ENGINE_THREADS;
}

/* A call that may fail once, for what the file table did; then it is made again. */
static int again(bool failed, ds_offload *s, ds_status expected, const char *words) {
    if (!failed) return 0;
    CHECK_EQ(ds_offload_error(s)->status, expected);
    CHECK_HAS(ds_offload_error(s)->message, words);
    return 1;
}

/* From create to the last read: what fails says so with the path, and the second try goes through. */
static void failing_files(void) {
    static unsigned char data[60000], back[60000];
    for (size_t k = 0; k < sizeof data; k++) data[k] = (unsigned char)(k * 5 + k / 100);
    for (int kind = 0; kind < 4; kind++)
        for (int at = 1; at < 40; at++) {
            char name[64];
            snprintf(name, sizeof name, "call %d of the file table, trouble %d", at, kind);
            TEST_NAMED(name) {
                shaky files = {0, 0, 0, false, false, false, false, false};
                ds_offload_desc d = plain_desc();
                ds_offload *s = NULL;
                ds_offload_id id;
                ds_error error = {DS_OK, ""};
                ds_status expected = kind == 3 ? DS_ERR_SPACE : DS_ERR_IO;
                int failures = 0;
                shake(&d, &files);
                files.at = at;
                files.kind = kind;
                d.max_in_cpu = 2 * 8192;
                d.probe = 1;
                if (ds_offload_create(&d, &s, &error)) {
                    failures++;
                    CHECK(s == NULL && (error.status == expected || kind == 1 || kind == 2));
                    CHECK_HAS(error.message, root);
                    CHECK(ds_offload_create(&d, &s, &error) == DS_OK);
                }
                for (int t = 1; t < 3; t++) {
                    if (again(ds_offload_add(s, "t", sizeof data, (ds_offload_tier)t, &id), s, expected, root)) {
                        failures++;
                        CHECK(ds_offload_add(s, "t", sizeof data, (ds_offload_tier)t, &id) == DS_OK);
                    }
                    if (again(ds_offload_write(s, id, 0, sizeof data, data), s, expected, "write of tensor 't'")) {
                        failures++;
                        CHECK(ds_offload_write(s, id, 0, sizeof data, data) == DS_OK);
                    }
                    if (again(ds_offload_read(s, id, 0, sizeof back, back), s, expected, "read of tensor 't'")) {
                        failures++;
                        CHECK(ds_offload_read(s, id, 0, sizeof back, back) == DS_OK);
                    }
                    CHECK(memcmp(data, back, sizeof back) == 0);
                }
                CHECK(files.calls >= at && failures <= 1);
                CHECK(failures == 1 || (kind != 0 && kind != 3));
                ds_offload_destroy(s);
            }
        }
    for (int which = 0; which < 5; which++) {
        static const char *const names[] = {"O_DIRECT refused", "anonymous files refused",
                                            "a queue too deep for the kernel", "O_DIRECT refused by the first write",
                                            "anonymous files refused, a name taken"};
        TEST_NAMED(names[which]) {
            shaky files = {0, 0, 0, which % 3 == 0, which != 2, false, false, which >= 3};
            ds_offload_desc d = plain_desc();
            ds_offload_stats stats;
            model m;
            logged[0] = 0;
            d.logger.log = note;
            if (which != 2) shake(&d, &files);
            if (which == 2) d.queue_depth = 65536, d.block_size = 4096;
            if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
            ds_offload_get_stats(m.store, &stats);
            if (which % 3 == 0) {
                CHECK(!stats.direct);
                CHECK_HAS(logged, "2: ");
                CHECK_HAS(logged, "refuses O_DIRECT");
            }
            if (which == 2) CHECK(stats.engine == DS_OFFLOAD_ENGINE_LIBAIO || strstr(logged, "3: engine ") != NULL);
            CHECK_HAS(logged, "1: swapping in");
            random_transfers(&m, 100, 12);
            end(&m);
        }
    }
}

/* An engine whose calls themselves fail. */
static int refuse_submit(void *ctx, void *queue, ds_offload_request **requests, int count) {
    trouble *t = (trouble *)ctx;
    if (t->refused < 0) return t->refused;
    if (t->refused > 0) return --t->refused, 0;
    if (t->kind == 21 && ++t->let_go % 2 == 0) return t->count ? -EAGAIN : 0;
    if (t->kind == 21) count = 1;
    return trouble_submit(ctx, queue, requests, count);
}
static int refuse_events(void *ctx, void *queue, int at_least, int at_most, ds_offload_request **done,
                         int64_t timeout) {
    trouble *t = (trouble *)ctx;
    if (t->let_go < 0) return t->let_go;
    if (t->kind == 20 && ++t->let_go % 3) return t->let_go % 3 == 1 ? -EINTR : -EAGAIN;
    return trouble_events(ctx, queue, at_least, at_most, done, timeout);
}
static int no_setup(void *ctx, unsigned depth, void **queue) {
    (void)ctx;
    (void)depth;
    (void)queue;
    return -EMFILE;
}
static int one_setup(void *ctx, unsigned depth, void **queue) {
    trouble *t = (trouble *)ctx;
    return t->seen++ % 2 ? -EMFILE : trouble_setup(ctx, depth, queue);
}
static void failing_engines(void) {
    static unsigned char data[50000], back[50000];
    for (int which = 0; which < 7; which++) {
        static const char *const names[] = {
            "submit fails", "submit takes nothing for a while", "submit never takes anything",   "events fail",
            "setup fails",  "events are interrupted",           "submit takes one and then none"};
        TEST_NAMED(names[which]) {
            static trouble t;
            ds_offload *s = NULL;
            ds_error error = {DS_OK, ""};
            model m;
            ds_offload_desc d = plain_desc();
            memset(&t, 0, sizeof t);
            memset(data, 9, sizeof data);
            d.buffered = true;
            d.aio.ctx = &t;
            d.aio.setup = which == 4 ? no_setup : trouble_setup;
            d.aio.teardown = trouble_teardown;
            d.aio.submit = refuse_submit;
            d.aio.events = refuse_events;
            if (which == 2) d.timeout = 50000000;
            if (which == 4) {
                CHECK(ds_offload_create(&d, &s, &error) == DS_ERR_IO && s == NULL);
                CHECK_HAS(error.message, "start asynchronous I/O");
                d.aio.setup = one_setup; /* for the second thread only */
                d.thread_count = 2;
                CHECK(ds_offload_create(&d, &s, &error) == DS_ERR_IO && s == NULL);
                CHECK_HAS(error.message, "start asynchronous I/O");
                CHECK(ds_offload_create(&d, &s, NULL) == DS_ERR_IO && s == NULL);
                break;
            }
            if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
            t.refused = which == 0 ? -EBADF : which == 1 ? 5 : which == 2 ? 1 << 30 : 0;
            t.let_go = which == 3 ? -EINVAL : 0;
            t.kind = which == 5 ? 20 : which == 6 ? 21 : 0;
            if (which == 1 || which > 4)
                CHECK(ds_offload_write(m.store, m.id[2], 1000, 50000, data) == DS_OK);
            else {
                ds_status status = ds_offload_write(m.store, m.id[2], 1000, 50000, data);
                CHECK(status == DS_ERR_IO || (which == 2 && status == DS_ERR_TIMEOUT));
                CHECK_HAS(ds_offload_error(m.store)->message, "write of tensor 't2'");
            }
            if (which == 3) { /* what is left in the queue may still move data: nothing more goes through it */
                CHECK(ds_offload_read(m.store, m.id[1], 0, 4096, back) == DS_ERR_IO);
                CHECK_HAS(ds_offload_error(m.store)->message, "read of tensor 't1'");
            } else if (which != 2) {
                t.refused = 0;
                CHECK(ds_offload_write(m.store, m.id[2], 1000, 50000, data) == DS_OK);
                CHECK(ds_offload_read(m.store, m.id[2], 1000, 50000, back) == DS_OK);
                CHECK(memcmp(data, back, sizeof data) == 0);
            }
            end(&m);
        }
    }
    TEST(late requests of a store that spills) {
        static trouble t;
        ds_offload *s = NULL;
        ds_offload_id id, more;
        ds_offload_ticket ticket;
        ds_offload_desc d = plain_desc();
        memset(&t, 0, sizeof t);
        for (size_t k = 0; k < sizeof data; k++) data[k] = (unsigned char)(k / 8192 + 1);
        d.buffered = true;
        d.max_in_cpu = 2 * 8192;
        d.timeout = 300000000;
        d.aio.ctx = &t;
        d.aio.setup = trouble_setup;
        d.aio.teardown = trouble_teardown;
        d.aio.submit = trouble_submit;
        d.aio.events = trouble_events;
        if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
        CHECK(ds_offload_add(s, "pages", sizeof data, DS_OFFLOAD_SPILL, &id) == DS_OK);
        CHECK(ds_offload_write(s, id, 0, 16384, data) == DS_OK);
        t.at = t.seen + 1;
        t.kind = 7;
        CHECK(ds_offload_start_write(s, id, 16384, 8192, data + 16384, &ticket) ==
              DS_OK); /* block 0 goes, and is late */
        CHECK(ds_offload_read(s, id, 0, 8192, back) == DS_ERR_TIMEOUT);
        CHECK_HAS(ds_offload_error(s)->message, "read of tensor 'pages'");
        CHECK(ds_offload_read(s, id, 24576, 8192, back) == DS_ERR_TIMEOUT);
        CHECK(ds_offload_add(s, "more", 5, DS_OFFLOAD_HOST, &more) == DS_ERR_STATE);
        CHECK_HAS(ds_offload_error(s)->message, "while a transfer is under way");
        __atomic_store_n(&t.let_go, 1, __ATOMIC_RELAXED);
        CHECK(ds_offload_wait(s, ticket) == DS_OK);
        CHECK(ds_offload_read(s, id, 0, 24576, back) == DS_OK);
        CHECK(memcmp(data, back, 24576) == 0);
        ds_offload_destroy(s);
    }
}

static ds_offload_desc troubled(trouble *t) {
    ds_offload_desc d = plain_desc();
    memset(t, 0, sizeof *t);
    d.aio.ctx = t;
    d.aio.setup = trouble_setup;
    d.aio.teardown = trouble_teardown;
    d.aio.submit = trouble_submit;
    d.aio.events = trouble_events;
    return d;
}

static void tickets(void) {
    enum { MANY = 2500 }; /* more than there are places */
    static unsigned char data[8192], back[8192];
    TEST(one transfer stays while many others come and go) {
        trouble t;
        model m;
        ds_offload_ticket ticket;
        ds_offload_desc d = troubled(&t);
        int done = 0;
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        memset(data, 5, sizeof data);
        CHECK(ds_offload_start_write(m.store, m.id[3], 0, 4096, data, &ticket) == DS_OK);
        while (done < MANY && ds_offload_read(m.store, m.id[2], 8192, 4096, back) == DS_OK) done++;
        CHECK_EQ(done, MANY);
        CHECK(ds_offload_read(m.store, m.id[3], 0, 4096, back) == DS_OK && back[4095] == 5);
        CHECK(ds_offload_wait(m.store, ticket) == DS_OK && ds_offload_wait(m.store, ticket) == DS_ERR_ARGUMENT);
        end(&m);
    }
    TEST(what was not waited for to its end takes no place) {
        trouble t;
        model m;
        ds_offload_desc d = troubled(&t);
        int done = 0;
        d.timeout = 100000000;
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        t.at = 1, t.kind = 7;
        CHECK(ds_offload_read(m.store, m.id[3], 0, 4096, data) == DS_ERR_TIMEOUT);
        __atomic_store_n(&t.let_go, 1, __ATOMIC_RELAXED);
        while (done < MANY && ds_offload_read(m.store, m.id[2], 8192, 4096, back) == DS_OK) done++;
        CHECK_EQ(done, MANY);
        end(&m);
    }
    TEST(a transfer that is refused moves nothing) {
        ds_offload *s = NULL;
        ds_offload_id id;
        ds_offload_ticket ticket[1025];
        ds_offload_desc d = plain_desc();
        if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
        CHECK(ds_offload_add(s, "host", 16, DS_OFFLOAD_HOST, &id) == DS_OK);
        for (int i = 0; i < 1024; i++) CHECK(ds_offload_start_read(s, id, 0, 0, back, &ticket[i]) == DS_OK);
        memset(data, 9, 16);
        CHECK(ds_offload_start_write(s, id, 0, 16, data, &ticket[1024]) == DS_ERR_STATE);
        CHECK_HAS(ds_offload_error(s)->message, "1024 transfers were started and not waited for");
        CHECK(ds_offload_wait(s, ticket[700]) == DS_OK);
        CHECK(ds_offload_read(s, id, 0, 16, back) == DS_OK && back[0] == 0);
        CHECK(ds_offload_write(s, id, 0, 16, data) == DS_OK);
        CHECK(ds_offload_read(s, id, 0, 16, back) == DS_OK && back[15] == 9);
        ds_offload_destroy(s);
    }
    TEST(a write that made room is named for what it is) {
        trouble t;
        ds_offload *s = NULL;
        ds_offload_id first, second;
        ds_offload_desc d = troubled(&t);
        d.block_size = d.max_in_cpu = 4096;
        if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
        CHECK(ds_offload_add(s, "first", 4096, DS_OFFLOAD_SPILL, &first) == DS_OK);
        CHECK(ds_offload_add(s, "second", 4096, DS_OFFLOAD_SPILL, &second) == DS_OK);
        CHECK(ds_offload_write(s, first, 0, 4096, data) == DS_OK);
        t.at = t.seen + 1, t.kind = 1;
        CHECK(ds_offload_read(s, second, 0, 4096, back) == DS_ERR_IO);
        CHECK_HAS(ds_offload_error(s)->message, "write of tensor 'first'");
        CHECK(ds_offload_read(s, second, 0, 4096, back) == DS_OK);
        ds_offload_destroy(s);
    }
    TEST(less than a block of the disk is moved again) {
        trouble t;
        model m;
        ds_offload_desc d = troubled(&t);
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        for (int k = 0; k < 8192; k++) data[k] = (unsigned char)(k * 31 + k / 256);
        for (int read = 0; read < 2; read++) {
            t.at = t.seen + 1, t.kind = 12;
            CHECK((read ? ds_offload_read(m.store, m.id[3], 0, 8192, back)
                        : ds_offload_write(m.store, m.id[3], 0, 8192, data)) == DS_OK);
            CHECK_EQ(t.seen, t.at + 1);
        }
        CHECK(memcmp(data, back, sizeof data) == 0);
        end(&m);
    }
    TEST(a queue for the first worker and none for the last) {
        ds_offload *s = NULL;
        ds_offload_desc d = plain_desc();
        d.queue_depth = 20000;
        d.thread_count = 4;
        d.block_size = 4096;
        CHECK(ds_offload_create(&d, &s, NULL) == DS_OK); /* with whatever engine gives them all one */
        ds_offload_destroy(s);
    }
}

static void other_trouble(void) {
    TEST(a request that never ends : a deadline) {
        static trouble t;
        model m;
        ds_offload_desc d = plain_desc();
        static unsigned char data[4096];
        memset(&t, 0, sizeof t);
        d.buffered = true;
        d.aio.ctx = &t;
        d.aio.setup = trouble_setup;
        d.aio.teardown = trouble_teardown;
        d.aio.submit = trouble_submit;
        d.aio.events = trouble_events;
        d.clock.now = slow_now;
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        t.at = 1;
        t.kind = 7;
        CHECK(ds_offload_write(m.store, m.id[1], 0, 4096, data) == DS_ERR_TIMEOUT);
        CHECK_HAS(ds_offload_error(m.store)->message, "tensor 't1'");
        CHECK_HAS(ds_offload_error(m.store)->message, "did not end within");
        __atomic_store_n(&t.let_go, 1, __ATOMIC_RELAXED); /* let it end, so that the store can be given back */
        end(&m);
    }
    TEST(a request told to come again for ever) {
        static trouble t;
        ds_offload_desc d = plain_desc();
        ds_offload *s = NULL;
        ds_offload_id id;
        ds_status status;
        static unsigned char data[20000], back[20000];
        memset(&t, 0, sizeof t);
        d.buffered = true;
        d.timeout = 50000000;
        d.aio.ctx = &t;
        d.aio.setup = trouble_setup;
        d.aio.teardown = trouble_teardown;
        d.aio.submit = trouble_submit;
        d.aio.events = trouble_events;
        for (int tier = 1; tier < 3; tier++) {
            d.max_in_cpu = tier == 2 ? 8192 : 0;
            if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
            CHECK(ds_offload_add(s, "again", sizeof data, (ds_offload_tier)tier, &id) == DS_OK);
            t.kind = 30;
            status = ds_offload_write(s, id, 0, sizeof data, data);
            CHECK(status == DS_ERR_TIMEOUT || status == DS_ERR_IO);
            CHECK_HAS(ds_offload_error(s)->message, "write of tensor 'again'");
            ds_offload_destroy(s); /* comes back */
        }
        t.kind = 0;
        memset(data, 3, sizeof data);
        if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
        CHECK(ds_offload_add(s, "again", sizeof data, DS_OFFLOAD_NVME, &id) == DS_OK);
        CHECK(ds_offload_write(s, id, 0, sizeof data, data) == DS_OK);
        CHECK(ds_offload_read(s, id, 0, sizeof data, back) == DS_OK && memcmp(data, back, sizeof data) == 0);
        ds_offload_destroy(s);
    }
    TEST(a file system that cannot reserve) {
        shaky files = {0, 0, 0, false, false, false, false, false};
        ds_offload_desc d = plain_desc();
        ds_offload *s = NULL;
        ds_offload_id id;
        ds_offload_stats stats;
        model m;
        static unsigned char data[50000], zeros[50000];
        shake(&d, &files);
        d.files.reserve = no_reserve;
        d.checksums = true;
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        CHECK(dsi_sys_size(NULL, m.store->fd) == (int64_t)m.store->file_bytes); /* the space is taken all the same */
        random_transfers(&m, 100, 21);
        end(&m);
        for (int at = 1; at < 8; at++) { /* a write of zeros that fails: said, and the store goes on */
            if (!CHECK(ds_offload_create(&d, &s, NULL) == DS_OK)) break;
            files.calls = 0;
            files.at = at;
            files.kind = at % 2 ? 3 : 1;
            files.nothing = at == 4;
            if (ds_offload_add(s, "zeros", sizeof data, DS_OFFLOAD_NVME, &id)) {
                CHECK((files.kind == 3 || files.nothing) && ds_offload_error(s)->status == DS_ERR_SPACE);
                CHECK_HAS(ds_offload_error(s)->message, "for tensor 'zeros' in");
                CHECK_EQ(dsi_sys_size(NULL, s->fd), 0); /* no space is held */
                CHECK(ds_offload_add(s, "zeros", sizeof data, DS_OFFLOAD_NVME, &id) == DS_OK);
            } else
                CHECK(files.kind == 1 && !files.nothing);
            memset(data, 1, sizeof data);
            CHECK(ds_offload_read(s, id, 0, sizeof data, data) == DS_OK && memcmp(data, zeros, sizeof data) == 0);
            ds_offload_get_stats(s, &stats);
            CHECK_EQ(stats.file_bytes, 53248);
            ds_offload_destroy(s);
        }
    }
    TEST(data changed behind our back is named) {
        model m;
        ds_offload_desc d = plain_desc();
        char path[400], byte = 'x';
        static unsigned char data[MOST];
        int fd;
        d.checksums = true;
        d.name = "kept";
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        memset(data, 3, sizeof data);
        CHECK(ds_offload_write(m.store, m.id[3], 0, MOST, data) == DS_OK);
        snprintf(path, sizeof path, "%s/kept.rank0", root);
        fd = open(path, O_WRONLY);
        CHECK(fd >= 0 && pwrite(fd, &byte, 1, (off_t)(m.store->tensors[3].offset + 123456)) == 1);
        close(fd);
        CHECK(ds_offload_read(m.store, m.id[3], 0, MOST, data) == DS_ERR_CORRUPT);
        CHECK_HAS(ds_offload_error(m.store)->message, "checksum");
        CHECK_HAS(ds_offload_error(m.store)->message, "'t3'");
        CHECK(ds_offload_write(m.store, m.id[3], 0, MOST, data) == DS_OK);
        CHECK(ds_offload_read(m.store, m.id[3], 0, MOST, data) == DS_OK);
        end(&m);
        CHECK(unlink(path) == 0);
    }
    TEST(two stores on one path) {
        ds_offload_desc d = plain_desc();
        ds_offload *a = NULL, *b = NULL;
        ds_offload_id id;
        ds_error error = {DS_OK, ""};
        char path[400], bytes[100], back[100];
        d.name = "shared";
        snprintf(path, sizeof path, "%s/shared.rank0", root);
        memset(bytes, 7, sizeof bytes);
        if (!CHECK(ds_offload_create(&d, &a, NULL) == DS_OK)) break;
        CHECK(ds_offload_add(a, "x", 100, DS_OFFLOAD_NVME, &id) == DS_OK);
        CHECK(ds_offload_write(a, id, 0, 100, bytes) == DS_OK);
        CHECK(ds_offload_create(&d, &b, &error) == DS_ERR_STATE && b == NULL);
        CHECK_HAS(error.message, path);
        CHECK_HAS(error.message, "in use by another store");
        CHECK(ds_offload_read(a, id, 0, 100, back) == DS_OK && memcmp(bytes, back, 100) == 0);
        d.rank = 1; /* another rank has a file of its own */
        CHECK(ds_offload_create(&d, &b, &error) == DS_OK);
        ds_offload_destroy(a);
        ds_offload_destroy(b);
        d.rank = 0; /* what an earlier store left in the file does not come back */
        CHECK(ds_offload_create(&d, &a, NULL) == DS_OK && ds_offload_add(a, "x", 100, DS_OFFLOAD_NVME, &id) == DS_OK);
        CHECK(ds_offload_read(a, id, 0, 100, back) == DS_OK && back[0] == 0 && memcmp(back, back + 1, 99) == 0);
        ds_offload_destroy(a);
        CHECK(unlink(path) == 0);
        snprintf(path, sizeof path, "%s/shared.rank1", root);
        CHECK(unlink(path) == 0);
    }
    TEST(the file removed or cut under us) {
        ds_offload_desc d = plain_desc();
        model m;
        char path[400];
        unsigned char *got = (unsigned char *)malloc(MOST);
        d.name = "going";
        snprintf(path, sizeof path, "%s/going.rank0", root);
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        random_transfers(&m, 50, 5);
        CHECK(truncate(path, 8192) == 0);
        CHECK(ds_offload_read(m.store, m.id[3], 0, MOST, got) == DS_ERR_IO);
        CHECK_HAS(ds_offload_error(m.store)->message, "the file ends early");
        CHECK_HAS(ds_offload_error(m.store)->message, "'t3'");
        CHECK(ds_offload_write(m.store, m.id[1], 0, 4096, m.bytes[1]) == DS_OK);
        CHECK(ds_offload_read(m.store, m.id[1], 0, 4096, got) == DS_OK && memcmp(got, m.bytes[1], 4096) == 0);
        end(&m);
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        CHECK(unlink(path) == 0); /* only the name goes: the data is ours until the store is closed */
        random_transfers(&m, 200, 6);
        free(got);
        end(&m);
    }
    TEST(a probe of the disk) {
        ds_offload_desc d = plain_desc();
        ds_offload_stats stats;
        model m;
        d.probe = 20000000;
        d.buffered = d.checksums = true;
        d.block_size = 65 << 20;
        d.queue_depth = 1;
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        ds_offload_get_stats(m.store, &stats);
        CHECK(stats.probe_write > 0 && stats.probe_read > 0);
        CHECK(stats.bytes_written == 0 && stats.writes == 0);
        random_transfers(&m, 100, 8); /* what it wrote is not there any more */
        end(&m);
    }
    TEST(pinned memory of a device) {
        ds_offload_desc d = plain_desc();
        model m;
        pinned_bytes = 0;
        d.pin_memory = true;
        d.max_in_cpu = 3 * 8192;
        d.device.pinned_alloc = pinned_alloc;
        d.device.pinned_release = pinned_release;
        for (int tier = 0; tier < 3; tier += 2) {
            if (!make(&m, &d, (ds_offload_tier)tier)) break;
            CHECK(pinned_bytes >= 5 * 8192);
            random_transfers(&m, 100, 9);
            end(&m);
            CHECK_EQ(pinned_bytes, 0);
        }
        d.device.pinned_alloc = no_pinned;
        {
            ds_error error = {DS_OK, ""};
            ds_offload *s = NULL;
            CHECK(ds_offload_create(&d, &s, &error) == DS_ERR_MEMORY && s == NULL);
            CHECK_HAS(error.message, "no pinned memory for max_in_cpu");
        }
    }
    TEST(bad folders) {
        ds_offload_desc d = plain_desc();
        ds_offload *s = NULL;
        ds_error error = {DS_OK, ""};
        d.folder = "/nonexistent/swap";
        CHECK(ds_offload_create(&d, &s, &error) == DS_ERR_IO && s == NULL);
        CHECK_HAS(error.message, "/nonexistent/swap");
        d.folder = "/dev/null";
        CHECK(ds_offload_create(&d, &s, &error) == DS_ERR_IO);
        CHECK_HAS(error.message, "/dev/null");
    }
    TEST(misuse) {
        model m;
        ds_offload_desc d = plain_desc();
        char c[8] = {0};
        ds_offload_ticket ticket;
        bool done;
        if (!make(&m, &d, DS_OFFLOAD_NVME)) break;
        CHECK(ds_offload_read(m.store, 17, 0, 1, c) == DS_ERR_ARGUMENT);
        CHECK(ds_offload_read(m.store, m.id[1], 4090, 7, c) == DS_ERR_ARGUMENT);
        CHECK_HAS(ds_offload_error(m.store)->message, "has 4096 bytes; asked for 7 from 4090");
        CHECK(ds_offload_read(m.store, m.id[1], 4097, 0, c) == DS_ERR_ARGUMENT);
        CHECK(ds_offload_wait(m.store, 12345) == DS_ERR_ARGUMENT);
        CHECK(ds_offload_test(m.store, 0, &done) == DS_ERR_ARGUMENT);
        CHECK(ds_offload_start_write(m.store, m.id[1], 0, 8, c, &ticket) == DS_OK &&
              ds_offload_wait(m.store, ticket) == DS_OK);
        CHECK(ds_offload_wait(m.store, ticket) == DS_ERR_ARGUMENT);
        end(&m);
        if (make(&m, &d, DS_OFFLOAD_NVME)) { /* more transfers than the table holds */
            static char byte[1024];
            ds_offload_ticket tickets[1024];
            for (int k = 0; k < 1024; k++)
                CHECK(ds_offload_start_read(m.store, m.id[1], 0, 1, byte + k, &tickets[k]) == DS_OK);
            CHECK(ds_offload_start_read(m.store, m.id[1], 0, 1, byte, &ticket) == DS_ERR_STATE);
            CHECK_HAS(ds_offload_error(m.store)->message, "1024 transfers were started");
            CHECK(ds_offload_test(m.store, tickets[3], &done) == DS_OK);
            for (int k = 0; k < 1024; k++) CHECK(ds_offload_wait(m.store, tickets[k]) == DS_OK);
            CHECK(ds_offload_read(m.store, m.id[1], 0, 1, byte) == DS_OK);
            CHECK(ds_offload_wait(m.store, tickets[0]) == DS_ERR_ARGUMENT &&
                  ds_offload_wait(m.store, 0) == DS_ERR_ARGUMENT);
            end(&m);
        }
        d.queue_depth = 65537;
        CHECK(ds_offload_create(&d, &m.store, NULL) == DS_ERR_ARGUMENT);
        d = plain_desc();
        d.thread_count = 1025;
        CHECK(ds_offload_create(&d, &m.store, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_offload_pin(NULL, 0, NULL) == DS_OK);
        ds_offload_unpin(NULL, 0);
        d = plain_desc();
        d.engine = (ds_offload_engine)7;
        CHECK(ds_offload_create(&d, &m.store, NULL) == DS_ERR_ARGUMENT);
        CHECK_STR(ds_offload_engine_name((ds_offload_engine)7), "unknown");
        d = plain_desc();
        d.folder = NULL; /* memory only */
        CHECK(ds_offload_create(&d, &m.store, NULL) == DS_OK);
        CHECK(ds_offload_add(m.store, "x", 10, DS_OFFLOAD_NVME, &m.id[0]) == DS_ERR_ARGUMENT);
        CHECK(ds_offload_add(m.store, "x", 10, DS_OFFLOAD_HOST, &m.id[0]) == DS_OK);
        CHECK(ds_offload_start_write(m.store, m.id[0], 0, 8, c, &ticket) == DS_OK);
        CHECK(ds_offload_test(m.store, ticket, &done) == DS_OK && done);
        CHECK(ds_offload_test(m.store, 5, &done) == DS_ERR_ARGUMENT && ds_offload_wait(m.store, 5) == DS_ERR_ARGUMENT);
        ds_offload_destroy(m.store);
        CHECK(ds_offload_create_(&d, 1, DS_OFFLOAD_VERSION, &m.store, NULL) == DS_ERR_VERSION);
        CHECK(ds_offload_create_(&d, sizeof d, 99, &m.store, NULL) == DS_ERR_VERSION);
    }
    TEST(every allocation failing in turn) {
        for (size_t k = 2;; k++) { /* with either engine */
            size_t n = k / 2;
            test_memory memory = {0};
            ds_offload_desc d = plain_desc();
            ds_offload *s = NULL;
            ds_error error = {DS_OK, ""};
            ds_offload_id id;
            static unsigned char data[10000];
            bool failed = false;
            memory.fail_at = n;
            d.checksums = true;
            d.max_in_cpu = 8192;
            d.engine = k % 2 ? DS_OFFLOAD_ENGINE_THREADS : DS_OFFLOAD_ENGINE_AUTO;
            d.probe = 1;
            d.allocator.alloc = test_alloc;
            d.allocator.release = test_release;
            d.allocator.ctx = &memory;
            if (ds_offload_create(&d, &s, &error)) {
                failed = true;
                CHECK(error.status == DS_ERR_MEMORY && s == NULL);
            } else if (ds_offload_add(s, "a", 10000, DS_OFFLOAD_NVME, &id) || ds_offload_write(s, id, 1, 9000, data) ||
                       ds_offload_add(s, "b", 10000, DS_OFFLOAD_SPILL, &id) ||
                       ds_offload_add(s, "c", 10000, DS_OFFLOAD_HOST, &id)) {
                failed = true;
                CHECK(ds_offload_error(s)->message[0] != 0);
            }
            ds_offload_destroy(s);
            CHECK_EQ(memory.live, 0);
            CHECK_EQ(memory.mismatches, 0);
            if (!failed && memory.calls > 0 && n > 40) break;
        }
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    snprintf(root, sizeof root, "%s/ds_offload_XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    CHECK(mkdtemp(root) != NULL);
    engines();
    failing_requests();
    settings();
    one_memory();
    least_recent_use();
    failing_spills();
    failing_files();
    system_calls();
    failing_engines();
    tickets();
    other_trouble();
    CHECK(rmdir(root) == 0); /* nothing may be left over */
    return test_end();
}
