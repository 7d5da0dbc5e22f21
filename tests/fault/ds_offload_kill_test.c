/* kill -9 at random points of swapping: an anonymous file is gone with its process, a named one is free for the next store,
   which finds zeros in it and not what the dead one left. And a disk that is full when data is swapped out. */
#define DS_OFFLOAD_IMPLEMENTATION
#include "ds_offload.h"
#include "../test.h"
#include <sys/mount.h>
#include <sys/wait.h>

enum { BYTES = 300000 };
static char folder[256];

static int entries;
static void count_entry(void *arg, const char *name) {
    (void)arg;
    (void)name;
    entries++;
}
static int files_in_folder(void) {
    entries = 0;
    CHECK(dsi_sys_list(NULL, folder, count_entry, NULL) == 0);
    return entries;
}

static ds_offload_desc desc_of(const char *name) {
    ds_offload_desc d;
    memset(&d, 0, sizeof d);
    d.folder = folder;
    d.name = name;
    d.block_size = 8192;
    d.max_in_cpu = 5 * 8192;
    d.thread_count = 2;
    return d;
}

/* Swaps for ever, and says so once there is something in the file. */
static void swap_on(const char *name, uint64_t seed, int ready) {
    static unsigned char data[BYTES];
    ds_offload_desc d = desc_of(name);
    ds_offload *s = NULL;
    ds_offload_id id[3];
    ds_offload_ticket ticket[8];
    if (ds_offload_create(&d, &s, NULL)) _exit(2);
    for (int t = 0; t < 3; t++)
        if (ds_offload_add(s, "t", BYTES, (ds_offload_tier)t, &id[t])) _exit(3);
    memset(data, 0x5A, sizeof data);
    if (ds_offload_write(s, id[1], 0, BYTES, data) || ds_offload_write(s, id[2], 0, BYTES, data)) _exit(4);
    if (write(ready, "x", 1) != 1) _exit(5);
    for (;;) {
        for (int k = 0; k < 8; k++) {
            size_t begin = test_random(&seed) % BYTES, bytes = test_random(&seed) % (BYTES - begin);
            ds_offload_id which = id[1 + test_random(&seed) % 2];
            if (test_random(&seed) & 1 ? ds_offload_start_write(s, which, begin, bytes, data, &ticket[k])
                                       : ds_offload_start_read(s, which, begin, bytes, data, &ticket[k]))
                _exit(6);
        }
        for (int k = 0; k < 8; k++)
            if (ds_offload_wait(s, ticket[k])) _exit(7);
    }
}

/* The next store on the same path: all zeros, and what is written comes back. */
static void look_again(const char *name) {
    static unsigned char data[BYTES], back[BYTES];
    ds_offload_desc d = desc_of(name);
    ds_error error = {DS_OK, ""};
    ds_offload *s = NULL;
    ds_offload_id id[3];
    if (!CHECK(ds_offload_create(&d, &s, &error) == DS_OK)) {
        printf("  %s\n", error.message);
        return;
    }
    for (size_t k = 0; k < BYTES; k++) data[k] = (unsigned char)(k * 7 + k / 999);
    for (int t = 1; t < 3; t++) {
        size_t wrong = 0;
        CHECK(ds_offload_add(s, "t", BYTES, (ds_offload_tier)t, &id[t]) == DS_OK);
        memset(back, 1, BYTES);
        CHECK(ds_offload_read(s, id[t], 0, BYTES, back) == DS_OK);
        for (size_t k = 0; k < BYTES; k++) wrong += back[k] != 0;
        CHECK_EQ(wrong, 0);
        CHECK(ds_offload_write(s, id[t], 0, BYTES, data) == DS_OK &&
              ds_offload_read(s, id[t], 0, BYTES, back) == DS_OK);
        CHECK(memcmp(data, back, BYTES) == 0);
    }
    ds_offload_destroy(s);
}

static void kills(void) {
    int kills = getenv("DS_TEST_KILLS") ? atoi(getenv("DS_TEST_KILLS")) : 10;
    uint64_t seed = 1;
    for (int named = 0; named < 2; named++)
        for (int k = 0; k < kills; k++) {
            char title[64];
            snprintf(title, sizeof title, "kill -9 %d, %s file", k, named ? "named" : "anonymous");
            TEST_NAMED(title) {
                int ready[2], status;
                char x;
                pid_t child;
                CHECK(pipe(ready) == 0);
                child = fork();
                if (child == 0) swap_on(named ? "kept" : NULL, (uint64_t)k + 1, ready[1]);
                close(ready[1]);
                if (CHECK(read(ready[0], &x, 1) == 1)) usleep((unsigned)(test_random(&seed) % 30000));
                close(ready[0]);
                CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
                CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
                CHECK_EQ(files_in_folder(), named);
                look_again(named ? "kept" : NULL);
            }
        }
    if (files_in_folder()) {
        char path[400];
        snprintf(path, sizeof path, "%s/kept.rank0", folder);
        CHECK(unlink(path) == 0);
    }
}

static int no_reserve(void *ctx, int fd, int64_t offset, int64_t bytes) {
    (void)ctx;
    return dsi_sys_truncate(NULL, fd, offset + bytes);
}
static int log_lines;
static void count_log(void *ctx, const char *header, int level, int id, const char *message) {
    (void)ctx;
    (void)header;
    (void)level;
    log_lines += id == 2 && strstr(message, "refuses O_DIRECT") != NULL;
}

static void full_disk(void) {
    TEST(a full disk : said when space is reserved or when data is swapped out) {
        static unsigned char data[1 << 20], back[1 << 20];
        for (int spill = 0; spill < 2; spill++) {
            ds_offload_desc d = desc_of(NULL);
            ds_offload *s = NULL;
            ds_offload_id id, more;
            ds_offload_stats stats;
            char path[300];
            ds_status status;
            int filler;
            if (mount("none", folder, "tmpfs", 0, "size=1536k") != 0) SKIP("mounting a tmpfs is not allowed");
            d.max_in_cpu = spill ? 8 * 8192 : 0;
            d.logger.log = count_log;
            CHECK(ds_offload_create(&d, &s, NULL) == DS_OK);
            ds_offload_get_stats(s, &stats);
            CHECK(stats.direct || log_lines > 0);
            CHECK(ds_offload_add(s, "much", 4 << 20, DS_OFFLOAD_NVME, &more) == DS_ERR_SPACE);
            CHECK_HAS(ds_offload_error(s)->message, "reserve 4194304 bytes at offset 0 for tensor 'much' in");
            CHECK_HAS(ds_offload_error(s)->message, folder);
            ds_offload_destroy(s);
            d.files.reserve = no_reserve; /* a file system that promises what it does not have */
            CHECK(ds_offload_create(&d, &s, NULL) == DS_OK);
            CHECK(ds_offload_add(s, "weights", sizeof data, spill ? DS_OFFLOAD_SPILL : DS_OFFLOAD_NVME, &id) == DS_OK);
            snprintf(path, sizeof path, "%s/filler", folder);
            filler = open(path, O_RDWR | O_CREAT, 0600);
            CHECK(filler >= 0);
            while (write(filler, data, 65536) > 0) {}
            for (size_t k = 0; k < sizeof data; k++) data[k] = (unsigned char)(k * 3 + k / 777);
            status = ds_offload_write(s, id, 0, sizeof data, data);
            CHECK_EQ(status, DS_ERR_SPACE);
            CHECK_HAS(ds_offload_error(s)->message, "write of tensor 'weights'");
            CHECK_HAS(ds_offload_error(s)->message, folder);
            close(filler);
            CHECK(unlink(path) == 0);
            CHECK(ds_offload_write(s, id, 0, sizeof data, data) == DS_OK);
            CHECK(ds_offload_read(s, id, 0, sizeof data, back) == DS_OK && memcmp(data, back, sizeof data) == 0);
            ds_offload_destroy(s);
            memset(data, 0, sizeof data);
            CHECK(umount(folder) == 0);
        }
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    snprintf(folder, sizeof folder, "%s/ds_offload_XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    CHECK(mkdtemp(folder) != NULL);
    kills();
    full_disk();
    CHECK(rmdir(folder) == 0);
    return test_end();
}
