/* kill -9 at every call of a save that changes the disk, one by one (and in the middle of each write): what was saved
   before always loads, or what is being saved, whole; and the next save works. */
#define DS_CHECKPOINT_IMPLEMENTATION
#include "ds_checkpoint.h"
#include "../test.h"
#include <signal.h>
#include <sys/wait.h>

#define COUNT 5000
#define LARGE (4500 << 10) /* floats of a file that threads write past the page cache */
static float data[LARGE];
static char folder[256];
/* The second step's file is large in one mode. */
static bool second_is_large;
static size_t count_of(int64_t step) {
    return second_is_large && step == 2 ? LARGE : COUNT;
}

typedef struct killer {
    long at, calls;
} killer;
static int64_t half_write(int fd, const void *from, size_t bytes, int64_t offset) {
    return dsi_sys_write(NULL, fd, from, bytes / 2, offset);
}
static void count(void *ctx) {
    killer *k = (killer *)ctx;
    if (__atomic_add_fetch(&k->calls, 1, __ATOMIC_RELAXED) == k->at) raise(SIGKILL);
}
static int k_open(void *x, const char *p, int flags, unsigned m) {
    if (flags & O_CREAT) count(x);
    return dsi_sys_open(NULL, p, flags, m);
}
static int64_t k_write(void *x, int fd, const void *b, size_t n, int64_t at) {
    killer *k = (killer *)x;
    count(x);
    if (__atomic_load_n(&k->calls, __ATOMIC_RELAXED) + 1 == k->at) half_write(fd, b, n, at), count(x); /* torn */
    return dsi_sys_write(NULL, fd, b, n, at);
}
static int k_sync(void *x, int fd) {
    return count(x), dsi_sys_sync(NULL, fd);
}
static int k_reserve(void *x, int fd, int64_t at, int64_t n) {
    return count(x), dsi_sys_reserve(NULL, fd, at, n);
}
static int k_close(void *x, int fd) {
    return count(x), dsi_sys_close(NULL, fd);
}
static int k_rename(void *x, const char *a, const char *b) {
    return count(x), dsi_sys_rename(NULL, a, b);
}
static int k_unlink(void *x, const char *p) {
    return count(x), dsi_sys_unlink(NULL, p);
}
static int k_mkdir(void *x, const char *p, unsigned m) {
    return count(x), dsi_sys_mkdir(NULL, p, m);
}
static int k_rmdir(void *x, const char *p) {
    return count(x), dsi_sys_rmdir(NULL, p);
}

static ds_status save(killer *k, const char *tag, int step, bool background, int keep_last, bool node_local) {
    const size_t shape[1] = {count_of(step)};
    ds_checkpoint_desc d;
    ds_checkpoint_tensor t;
    ds_checkpoint_writer *w = NULL;
    ds_error error = {DS_OK, ""};
    ds_status status;
    memset(&d, 0, sizeof d);
    memset(&t, 0, sizeof t);
    d.folder = folder;
    d.background = background;
    d.keep_last = keep_last;
    d.node_local = node_local;
    if (k) {
        d.files.ctx = k;
        d.files.open = k_open;
        d.files.write = k_write;
        d.files.sync = k_sync;
        d.files.reserve = k_reserve;
        d.files.close = k_close;
        d.files.rename = k_rename;
        d.files.unlink = k_unlink;
        d.files.mkdir = k_mkdir;
        d.files.rmdir = k_rmdir;
    }
    for (size_t i = 0; i < shape[0]; i++) data[i] = (float)(i + (size_t)step);
    t.name = "t";
    t.shape = shape;
    t.dims = 1;
    t.count = shape[0];
    t.data = data;
    status = ds_checkpoint_begin(&d, tag, &w, &error);
    if (!status) {
        ds_checkpoint_add(w, &t);
        ds_checkpoint_set_integer(w, "step", step);
        status = ds_checkpoint_commit(w, &error);
        if (!status && background) status = ds_checkpoint_finish(w, &error);
    }
    if (status) printf("  save: %s\n", error.message);
    return status;
}

/* The step that `latest` leads to, all of its data checked; -1 when there is none. */
static int64_t loaded(void) {
    ds_checkpoint_desc d;
    ds_checkpoint *c = NULL;
    ds_error error = {DS_OK, ""};
    int64_t step = -1;
    memset(&d, 0, sizeof d);
    d.folder = folder;
    if (ds_checkpoint_open(&d, NULL, &c, &error)) return printf("  open: %s\n", error.message), -1;
    if (ds_checkpoint_get_integer(c, "step", &step) || ds_checkpoint_verify(c) ||
        ds_checkpoint_read(c, "t", 0, count_of(step), DS_F32, data))
        step = -1;
    for (size_t i = 0; step >= 0 && i < count_of(step); i++)
        if (data[i] != (float)(i + (size_t)step)) step = -1;
    ds_checkpoint_close(c);
    return step;
}

static void clear(void) {
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(system(command) == 0);
}

int main(int argc, char **argv) {
    static const char *const names[] = {"a_new_tag",      "the_same_tag", "in_the_background",
                                        "with_keep_last", "on_each_node", "on_each_node_in_the_background",
                                        "a_large_file"};
    test_begin(argc, argv);
    snprintf(folder, sizeof folder, "build/tests/checkpoint_kill.%d", (int)getpid());
    for (int mode = 0; mode < 7; mode++) TEST_NAMED(names[mode]) {
            const bool nodes = mode == 4 || mode == 5;
            second_is_large = mode == 6;
            int ended = 0, kills = 0, before = 0, after = 0;
            for (long at = 1; at < 300 && !ended; at++) {
                int status = 0;
                int64_t step;
                pid_t child;
                clear();
                CHECK_EQ(save(NULL, "first", 1, false, 0, nodes), DS_OK);
                fflush(stdout);
                child = fork();
                if (child == 0) {
                    killer k = {at, 0};
                    const ds_status saved =
                        save(&k, mode == 1 ? "first" : "second", 2, mode == 2 || mode == 5, mode == 3, nodes);
                    _exit(saved == DS_OK ? 0 : 1);
                }
                waitpid(child, &status, 0);
                ended = WIFEXITED(status);
                if (ended)
                    CHECK_EQ(WEXITSTATUS(status), 0);
                else
                    kills++;
                step = loaded();
                CHECK(ended ? step == 2 : step == 1 || step == 2);
                before += step == 1;
                after += step == 2;
                CHECK_EQ(save(NULL, "second", 3, false, 0, nodes), DS_OK);
                CHECK_EQ(loaded(), 3);
            }
            CHECK(ended && kills > (second_is_large ? 35 : 15) && before > 10 && after > 0);
            clear();
        }
    return test_end();
}
