/* Each call to the system that connecting two processes makes fails in turn, on either rank: both come to an end, whoever
   fails says why, results that are called right are right, and the next run of the same name works. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *fault_name = "";
static int fault_at, fault_count; /* the call of that name that fails, and how many there were */
static int short_wait;            /* the other rank is about to fail */
static int fault(const char *name, int error) {
    if (__builtin_strcmp(name, fault_name) || __atomic_add_fetch(&fault_count, 1, __ATOMIC_SEQ_CST) != fault_at)
        return 0;
    errno = error;
    return 1;
}
#define socket(a, b, c)            (fault("socket", EMFILE) ? -1 : socket(a, b, c))
#define bind(a, b, c)              (fault("bind", EACCES) ? -1 : bind(a, b, c))
#define listen(a, b)               (fault("listen", EOPNOTSUPP) ? -1 : listen(a, b))
#define accept(a, b, c)            (fault("accept", EMFILE) ? -1 : accept(a, b, c))
#define connect(a, b, c)           (fault("connect", ECONNREFUSED) ? -1 : connect(a, b, c))
#define getsockopt(a, b, c, d, e)  (fault("getsockopt", ENOTSOCK) ? -1 : getsockopt(a, b, c, d, e))
#define sendmsg(a, b, c)           (fault("sendmsg", EPIPE) ? -1 : sendmsg(a, b, c))
#define recvmsg(a, b, c)           (fault("recvmsg", ECONNRESET) ? -1 : recvmsg(a, b, c))
#define recv(a, b, c, d)           (fault("recv", EAGAIN) ? -1 : recv(a, b, c, d))
#define poll(a, b, c)              (fault("poll", EINTR) ? -1 : poll(a, b, c))
#define fcntl(...)                 (fault("fcntl", ENOLCK) ? -1 : fcntl(__VA_ARGS__))
#define mmap(a, b, c, d, e, f)     (fault("mmap", ENOMEM) ? MAP_FAILED : mmap(a, b, c, d, e, f))
#define ftruncate(a, b)            (fault("ftruncate", EFBIG) ? -1 : ftruncate(a, b))
#define posix_fallocate(a, b, c)   (fault("posix_fallocate", ENOSPC) ? ENOSPC : posix_fallocate(a, b, c))
#define pthread_create(a, b, c, d) (fault("pthread_create", EAGAIN) ? EAGAIN : pthread_create(a, b, c, d))
#define syscall(number, ...)                                                                                           \
    ((number) == SYS_memfd_create && fault("memfd_create", EMFILE) ? -1 : syscall(number, __VA_ARGS__))
#define DS_COMM_IMPLEMENTATION
#include "ds_comm.h"
#include "tests/test.h"

enum { COUNT = 5000 };

static void *fault_alloc(void *ctx, size_t bytes, size_t align) {
    void *memory = NULL;
    (void)ctx;
    if (fault("alloc", ENOMEM) || posix_memalign(&memory, align < 16 ? 16 : align, bytes)) return NULL;
    return memory;
}
static void fault_release(void *ctx, void *memory, size_t bytes, size_t align) {
    (void)ctx, (void)bytes, (void)align;
    free(memory);
}

typedef struct outcome {
    int rank, calls; /* of the name that fails */
    ds_status status;
    char text[512];
} outcome;

/* Connects, reduces on own and on shared memory, splits, works in the background. */
static void work(int rank, const char *run_id, outcome *o) {
    ds_comm_desc desc;
    ds_comm *comm = NULL, *copy = NULL;
    ds_comm_call call;
    ds_comm_handle handle;
    ds_error error = {DS_OK, ""};
    float *plain = (float *)malloc(COUNT * sizeof *plain), *shared = NULL;
    memset(&desc, 0, sizeof desc);
    desc.backend = "shm";
    desc.world = 2;
    desc.rank = rank;
    desc.run_id = run_id;
    desc.timeout = (fault_at || short_wait ? (int64_t)700 : 10000) * 1000000;
    desc.stage_bytes = 16384;
    desc.arena_bytes = 1 << 20;
    desc.allocator.alloc = fault_alloc;
    desc.allocator.release = fault_release;
    memset(o, 0, sizeof *o);
    o->rank = rank;
    for (int i = 0; i < COUNT; i++) plain[i] = (float)(rank + i);
    o->status = ds_comm_create(&desc, &comm, &error);
    if (!o->status) {
        o->status = ds_comm_all_reduce(comm, plain, plain, COUNT, DS_F32, DS_COMM_SUM);
        for (int i = 0; i < COUNT && !o->status; i++)
            if (plain[i] != (float)(1 + 2 * i)) o->status = DS_ERR_CORRUPT;
        snprintf(error.message, sizeof error.message, "%s", ds_comm_error(comm)->message);
    }
    if (!o->status) { /* one row of 500 */
        float table[500 * 2] = {0};
        table[4] = 1;
        o->status = ds_comm_sparse_all_reduce(comm, table, 500, 2, DS_F32, DS_COMM_SUM, NULL);
        if (!o->status && (table[4] != 2 || table[5] != 0)) o->status = DS_ERR_CORRUPT;
        snprintf(error.message, sizeof error.message, "%s", ds_comm_error(comm)->message);
    }
    if (!o->status && (shared = (float *)ds_comm_alloc(comm, COUNT * sizeof *shared)) == NULL) {
        o->status = DS_ERR_MEMORY;
        snprintf(error.message, sizeof error.message, "ds_comm_alloc");
    }
    if (!o->status) o->status = ds_comm_split(comm, 0, 0, &copy, &error);
    if (!o->status) {
        memset(&call, 0, sizeof call);
        call.kind = DS_COMM_ALL_REDUCE;
        call.in = call.out = shared;
        call.count = COUNT;
        for (int i = 0; i < COUNT; i++) shared[i] = 1;
        o->status = ds_comm_start(copy, &call, &handle);
        if (!o->status) o->status = ds_comm_wait(copy, handle);
        if (!o->status && shared[COUNT - 1] != 2) o->status = DS_ERR_CORRUPT;
        if (o->status) snprintf(error.message, sizeof error.message, "%s", ds_comm_error(copy)->message);
    }
    ds_comm_destroy(copy);
    if (shared) ds_comm_free(comm, shared, COUNT * sizeof *shared);
    ds_comm_destroy(comm);
    free(plain);
    o->calls = fault_count;
    if (o->status) memcpy(o->text, error.message, sizeof error.message);
}

/* Both ranks in processes of their own; how many told their outcome. */
static int run(const char *run_id, int victim, const char *name, int at, outcome *out) {
    pid_t pids[2];
    int ends[2], told = 0, status;
    outcome o;
    memset(out, 0, 2 * sizeof *out);
    if (pipe(ends)) return 0;
    fflush(stdout);
    for (int r = 0; r < 2; r++)
        if ((pids[r] = fork()) == 0) {
            alarm(30); /* a hang */
            short_wait = at != 0;
            if (r == victim) fault_name = name, fault_at = at;
            work(r, run_id, &o);
            status = write(ends[1], &o, sizeof o) == (ssize_t)sizeof o ? 0 : 1;
            test_child_exit(status);
        }
    close(ends[1]);
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

int main(int argc, char **argv) {
    /* what either rank cannot do without, where it fails first; the others may be tried again */
    static const struct {
        const char *name;
        int needed[2]; /* by rank 0, rank 1: whether the first failure must show */
    } calls[] = {{"socket", {1, 0}},         {"bind", {1, 0}},      {"listen", {1, 0}},
                 {"accept", {0, 0}},         {"connect", {0, 0}},   {"sendmsg", {0, 0}},
                 {"recvmsg", {0, 0}},        {"recv", {0, 0}},      {"getsockopt", {0, 0}},
                 {"poll", {0, 0}},           {"fcntl", {0, 0}},     {"mmap", {0, 1}},
                 {"memfd_create", {1, 0}},   {"ftruncate", {0, 0}}, {"posix_fallocate", {1, 1}},
                 {"pthread_create", {1, 1}}, {"alloc", {1, 1}}};
    test_begin(argc, argv);
    for (size_t k = 0; k < sizeof calls / sizeof *calls; k++) TEST_NAMED(calls[k].name) {
            int ever = 0;
            for (int victim = 0; victim < 2; victim++) {
                outcome o[2];
                char id[64];
                int n;
                snprintf(id, sizeof id, "calls %ld", (long)getpid());
                CHECK_EQ(run(id, victim, calls[k].name, 0, o), 2); /* counts only */
                CHECK(o[0].status == DS_OK && o[1].status == DS_OK);
                n = o[victim].calls;
                for (int at = 1; at <= n && at <= 14; at++) {
                    if (!CHECK_EQ(run(id, victim, calls[k].name, at, o), 2)) break;
                    for (int r = 0; r < 2; r++) {
                        CHECK(o[r].status == DS_OK || DS_IS_ENVIRONMENT(o[r].status));
                        CHECK(o[r].status != DS_ERR_CORRUPT);
                        CHECK((o[r].status != DS_OK) == (o[r].text[0] != 0));
                    }
                    ever |= o[victim].calls >= at;
                    if (at == 1 && calls[k].needed[victim]) CHECK(o[victim].status != DS_OK);
                    if (o[0].status || o[1].status) { /* the next run */
                        CHECK_EQ(run(id, victim, "", 0, o), 2);
                        CHECK(o[0].status == DS_OK && o[1].status == DS_OK);
                        if (o[0].status || o[1].status) printf("  then: %s | %s\n", o[0].text, o[1].text);
                    }
                }
            }
            CHECK(ever);
        }
    return test_end();
}
