/* The calls of NCCL that ds_comm.h makes, between processes of one machine over sockets and in host memory. What NCCL leaves
   to its own threads is left to threads here: calls return "in progress", and a stream is busy until its messages are
   through. A stream is a fake_stream, whose memory is reached at `alias`. Its own sums go from the last rank to the first,
   fp32 only. With fake_nccl_streams a stream is the emulated GPU's: what is put on it comes in its turn, and finds device
   memory where it is. FAKE_NCCL_FAIL=NAME:N makes the N-th call of a name fail, FAKE_NCCL_FAIL=async:N the N-th question after a
   call's state. Built as a shared library by a test. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, SYSTEM_ERROR = 2, INVALID = 4, REMOTE = 6, IN_PROGRESS = 7, MOST = 256 };
typedef struct fake_stream {
    int pending;
    char *base, *alias;
    size_t bytes;
} fake_stream;
typedef struct id {
    char bytes[128];
} id;
typedef struct config {
    size_t size;
    unsigned magic, version;
    int blocking;
} config;
typedef struct fake_comm {
    int rank, world, listener, *fd, state, stop, uses;
    char name[64];
    pthread_t thread;
    int running;
} fake_comm;
typedef struct op {
    int peer, sends;
    char *data;
    size_t bytes, at; /* the length goes first */
    size_t length;
} op;
typedef struct sum { /* of the ranks' inputs, which lie side by side */
    float *all, *out;
    const char *in;
    size_t count;
} sum;
typedef struct group {
    fake_comm *comm;
    fake_stream *stream;
    op ops[MOST];
    sum sums[MOST];
    int count, sum_count;
} group;
static __thread group *open_group;
static void (*put_on)(void *stream, void (*work)(void *), void *arg);
void fake_nccl_streams(void (*put)(void *stream, void (*work)(void *), void *arg)) {
    put_on = put;
}

static int fails(const char *name) {
    static int calls;
    const char *wanted = getenv("FAKE_NCCL_FAIL");
    size_t n = strlen(name);
    return wanted && strncmp(wanted, name, n) == 0 && wanted[n] == ':' && ++calls == atoi(wanted + n + 1);
}

#define SET(word, value) __atomic_store_n(word, value, __ATOMIC_SEQ_CST)
#define GET(word)        __atomic_load_n(word, __ATOMIC_SEQ_CST)

static socklen_t address_of(const fake_comm *c, int rank, struct sockaddr_un *a) {
    memset(a, 0, sizeof *a);
    a->sun_family = AF_UNIX;
    return (socklen_t)(sizeof a->sun_family + 1 +
                       (size_t)snprintf(a->sun_path + 1, sizeof a->sun_path - 1, "%s-%d", c->name, rank));
}
static void short_sleep(void) {
    struct timespec t = {0, 1000000};
    nanosleep(&t, NULL);
}
/* Every rank calls those below it and answers those above. */
static void *connect_all(void *arg) {
    fake_comm *c = (fake_comm *)arg;
    struct sockaddr_un a;
    for (int r = 0; r < c->rank && !GET(&c->stop); r++) {
        socklen_t n = address_of(c, r, &a);
        int s = socket(AF_UNIX, SOCK_STREAM, 0);
        while (connect(s, (struct sockaddr *)&a, n) && !GET(&c->stop)) short_sleep();
        if (write(s, &c->rank, sizeof c->rank) != sizeof c->rank) SET(&c->state, SYSTEM_ERROR);
        c->fd[r] = s;
    }
    for (int n = c->rank + 1; n < c->world && !GET(&c->stop);) {
        struct pollfd p = {c->listener, POLLIN, 0};
        int rank, s;
        if (poll(&p, 1, 10) < 1) continue;
        s = accept(c->listener, NULL, NULL);
        if (s < 0 || read(s, &rank, sizeof rank) != sizeof rank) continue;
        c->fd[rank] = s;
        n++;
    }
    if (GET(&c->state) == IN_PROGRESS) SET(&c->state, OK);
    return NULL;
}
int ncclGetUniqueId(id *out) {
    struct timespec t;
    if (fails("GetUniqueId")) return SYSTEM_ERROR;
    clock_gettime(CLOCK_MONOTONIC, &t);
    memset(out, 0, sizeof *out);
    snprintf(out->bytes, sizeof out->bytes, "fake-nccl-%ld-%ld", (long)getpid(), (long)t.tv_nsec);
    return OK;
}
int ncclCommInitRankConfig(void **comm, int world, id i, int rank, config *how) {
    fake_comm *c = (fake_comm *)calloc(1, sizeof *c);
    struct sockaddr_un a;
    socklen_t n;
    *comm = NULL;
    if (fails("CommInitRankConfig")) return free(c), SYSTEM_ERROR;
    if (how->size != sizeof *how || how->magic != 0xcafebeef || how->version < 21400 || how->blocking) return INVALID;
    c->rank = rank;
    c->world = world;
    c->state = IN_PROGRESS;
    c->uses = 1;
    c->fd = (int *)malloc((size_t)world * sizeof *c->fd);
    for (int r = 0; r < world; r++) c->fd[r] = -1;
    snprintf(c->name, sizeof c->name, "%.60s", i.bytes);
    c->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    n = address_of(c, rank, &a);
    if (bind(c->listener, (struct sockaddr *)&a, n) || listen(c->listener, world)) return SYSTEM_ERROR;
    pthread_create(&c->thread, NULL, connect_all, c);
    c->running = 1;
    *comm = c;
    return IN_PROGRESS;
}
int ncclCommGetAsyncError(void *comm, int *result) {
    *result = GET(&((fake_comm *)comm)->state);
    if (fails("CommGetAsyncError")) return SYSTEM_ERROR;
    if (fails("async")) *result = REMOTE;
    return OK;
}
static void join(fake_comm *c) {
    if (c->running) pthread_join(c->thread, NULL);
    c->running = 0;
}
static void drop(fake_comm *c) {
    if (--c->uses) return; /* a stream has something of it still to come */
    for (int r = 0; r < c->world; r++)
        if (c->fd[r] >= 0) close(c->fd[r]);
    close(c->listener);
    free(c->fd);
    free(c);
}
int ncclCommDestroy(void *comm) {
    join((fake_comm *)comm);
    drop((fake_comm *)comm);
    return OK;
}
int ncclCommAbort(void *comm) {
    SET(&((fake_comm *)comm)->stop, 1);
    return ncclCommDestroy(comm);
}
int ncclCommFinalize(void *comm) {
    if (fails("CommFinalize")) return SYSTEM_ERROR;
    join((fake_comm *)comm);
    return OK;
}
const char *ncclGetErrorString(int result) {
    return result == REMOTE ? "remote process exited or there was a network error"
           : result == OK   ? "no error"
                            : "fake error";
}
int ncclGroupStart(void) {
    if (fails("GroupStart")) return SYSTEM_ERROR;
    open_group = (group *)calloc(1, sizeof *open_group);
    return OK;
}
static void add_op(int sends, char *data, size_t bytes, int peer) {
    op *o = &open_group->ops[open_group->count++];
    o->peer = peer;
    o->sends = sends;
    o->data = data;
    o->bytes = bytes;
}
/* Where the host reaches device memory; NULL: it is none. */
static char *reach(const fake_stream *s, const void *data, size_t bytes) {
    char *at = (char *)(size_t)data;
    if (put_on) return at;
    return at < s->base || at + bytes > s->base + s->bytes ? NULL : at - s->base + s->alias;
}
static int add(int sends, void *data, size_t bytes, int type, int peer, void *comm, void *stream) {
    char *at = reach((fake_stream *)stream, data, bytes);
    if (type != 0 || open_group->count == MOST || !at) return INVALID;
    open_group->comm = (fake_comm *)comm;
    open_group->stream = (fake_stream *)stream;
    add_op(sends, at, bytes, peer);
    return OK;
}
int ncclSend(const void *data, size_t count, int type, int peer, void *comm, void *stream) {
    if (fails("Send")) return SYSTEM_ERROR;
    return add(1, (void *)(size_t)data, count, type, peer, comm, stream);
}
int ncclRecv(void *data, size_t count, int type, int peer, void *comm, void *stream) {
    if (fails("Recv")) return SYSTEM_ERROR;
    return add(0, data, count, type, peer, comm, stream);
}
/* 1 when the message is through, -1 when it cannot be. */
static int advance(fake_comm *c, op *o) {
    const size_t head = sizeof o->length;
    if (o->at == 0) o->length = o->bytes;
    while (o->at < head + o->bytes) {
        char *at = o->at < head ? (char *)&o->length + o->at : o->data + (o->at - head);
        size_t n = o->at < head ? head - o->at : head + o->bytes - o->at;
        ssize_t moved = o->sends ? send(c->fd[o->peer], at, n, MSG_DONTWAIT | MSG_NOSIGNAL)
                                 : recv(c->fd[o->peer], at, n, MSG_DONTWAIT);
        if (moved < 0 && errno == EAGAIN) return 0;
        if (moved <= 0) return -1;
        o->at += (size_t)moved;
        if (o->at == head && o->length != o->bytes) return -1;
    }
    return 1;
}
static void *run(void *arg) {
    group *g = (group *)arg;
    fake_comm *c = g->comm;
    int open = 1, lost = 0;
    for (int k = 0; k < g->sum_count; k++) {
        const sum *s = &g->sums[k];
        memcpy(s->all + (size_t)c->rank * s->count, s->in, s->count * sizeof(float));
    }
    short_sleep();
    SET(&c->state, OK); /* launched */
    while (open && !lost && !GET(&c->stop)) {
        open = 0;
        for (int i = 0; i < g->count; i++) {
            int done = advance(c, &g->ops[i]);
            lost |= done < 0;
            open |= !done;
        }
        if (open) short_sleep();
    }
    for (int k = 0; k < g->sum_count; k++) {
        const sum *s = &g->sums[k];
        for (size_t i = 0; i < s->count && s->out && !open && !lost; i++) {
            float x = 0;
            for (int r = c->world - 1; r >= 0; r--) x += s->all[(size_t)r * s->count + i];
            s->out[i] = x;
        }
        free(s->all);
    }
    if (lost)
        SET(&c->state, REMOTE);
    else if (!open && !put_on)
        SET(&g->stream->pending, 0);
    free(g);
    return NULL;
}
static void run_in_turn(void *arg) {
    fake_comm *c = ((group *)arg)->comm;
    run(arg);
    drop(c);
}
int ncclGroupEnd(void) {
    group *g = open_group;
    fake_comm *c;
    if (!g) return INVALID;
    c = g->comm;
    open_group = NULL;
    if (fails("GroupEnd")) {
        for (int k = 0; k < g->sum_count; k++) free(g->sums[k].all);
        return free(g), SYSTEM_ERROR;
    }
    if (!g->count) return free(g), OK;
    join(c);
    if (put_on) {
        c->uses++;
        put_on(g->stream, run_in_turn, g);
        return OK;
    }
    SET(&c->state, IN_PROGRESS);
    SET(&g->stream->pending, 1);
    c->running = 1;
    pthread_create(&c->thread, NULL, run, g); /* which frees g */
    return IN_PROGRESS;
}

/* root -1: everyone gets the sum. */
static int add_sum(const void *in, void *out, size_t count, int type, int op, int root, void *comm, void *stream) {
    fake_comm *c = (fake_comm *)comm;
    fake_stream *st = (fake_stream *)stream;
    size_t bytes = count * sizeof(float);
    sum *s = &open_group->sums[open_group->sum_count];
    char *from = reach(st, in, bytes);
    int takes = root < 0 || root == c->rank;
    if (type != 7 || op != 0 || !from || (takes && !reach(st, out, bytes))) return INVALID;
    open_group->sum_count++;
    open_group->comm = c;
    open_group->stream = st;
    s->count = count;
    s->out = takes ? (float *)(void *)reach(st, out, bytes) : NULL;
    s->all = (float *)malloc((size_t)c->world * bytes);
    s->in = from;
    for (int r = 0; r < c->world; r++) {
        if (r == c->rank) continue;
        if (root < 0 || r == root) add_op(1, (char *)(s->all + (size_t)c->rank * count), bytes, r);
        if (takes) add_op(0, (char *)(s->all + (size_t)r * count), bytes, r);
    }
    return OK;
}
int ncclReduce(const void *in, void *out, size_t count, int type, int op, int root, void *comm, void *stream) {
    if (fails("Reduce")) return SYSTEM_ERROR;
    return add_sum(in, out, count, type, op, root, comm, stream);
}
int ncclAllReduce(const void *in, void *out, size_t count, int type, int op, void *comm, void *stream) {
    int result;
    if (fails("AllReduce")) return SYSTEM_ERROR;
    open_group = (group *)calloc(1, sizeof *open_group);
    result = add_sum(in, out, count, type, op, -1, comm, stream);
    return result ? result : ncclGroupEnd();
}
