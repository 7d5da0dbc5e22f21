/* A rank gives up in a call while another, much slower one is at its memory, or comes to that memory only later. Whoever gave
   up does not return before the other is out, so that it may free the memory then; and nobody calls such bytes a result. */
#define DS_COMM_IMPLEMENTATION
#include "ds_comm.h"
#include "tests/test.h"
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

/* The slow rank: a page that it cannot read stops it in the midst of its copy, in this handler. */
static char *guarded;
static uint32_t *inside; /* of all processes */
static uint32_t returned, freed_too_early;
static bool stops;
static dsi_comm_room *slow_room;
/* Time flies once the slow rank is in there: the deadline of the other one passes, and not before. */
static int64_t added;
static int64_t flying_now(void *ctx) {
    (void)ctx;
    if (__atomic_load_n(inside, __ATOMIC_SEQ_CST))
        __atomic_add_fetch(&added, (int64_t)30 * 1000000000, __ATOMIC_SEQ_CST);
    return dsi_now(NULL) + __atomic_load_n(&added, __ATOMIC_SEQ_CST);
}
static ds_comm_desc flying_desc(void) {
    ds_comm_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.timeout = (int64_t)20 * 1000000000;
    desc.clock.now = flying_now;
    *inside = 0;
    return desc;
}
static void at_the_page(int signal_number) {
    (void)signal_number;
    __atomic_store_n(inside, 1, __ATOMIC_SEQ_CST);
    if (stops)
        kill(getpid(), SIGSTOP);
    else
        for (int i = 0, after = 0; i < 2000 && after < 20; i++) { /* until 0.2 s after the other one gave up */
            dsi_sleep(NULL, 10000000);
            after += __atomic_load_n(&slow_room->abort_state, __ATOMIC_SEQ_CST) == 2;
            if (__atomic_load_n(&returned, __ATOMIC_SEQ_CST)) freed_too_early = 1;
        }
    mprotect(guarded, PAGE, PROT_READ | PROT_WRITE);
}
static void guard(char *page) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = at_the_page;
    sigaction(SIGSEGV, &action, NULL);
    guarded = page;
    mprotect(page, PAGE, PROT_NONE);
}
static void unguard(void) {
    signal(SIGSEGV, SIG_DFL);
    mprotect(guarded, PAGE, PROT_READ | PROT_WRITE);
}

typedef enum how { GATHER, SENDS, PUSHES } how;
typedef struct slow_rank {
    ds_comm *comm;
    how kind;
    char *out; /* two pages */
    ds_status status;
    char text[512];
} slow_rank;
static ds_status call(slow_rank *r) {
    int me = ds_comm_rank(r->comm);
    ds_status status;
    if (r->kind == GATHER) /* in place: the own part is not read by this rank itself */
        status = ds_comm_all_gather(r->comm, r->out + me * PAGE, r->out, PAGE, NULL, DS_U8);
    else if (r->kind == PUSHES) /* rank 1 writes its sums of the second page into rank 0's */
        status = ds_comm_all_reduce(r->comm, r->out, r->out, 2 * PAGE, DS_U8, DS_COMM_SUM);
    else
        status = me ? ds_comm_receive(r->comm, r->out, PAGE, DS_U8, 0) : ds_comm_send(r->comm, r->out, PAGE, DS_U8, 1);
    snprintf(r->text, sizeof r->text, "%s", ds_comm_error(r->comm)->message);
    return status;
}
static void *call_later(void *arg) {
    slow_rank *r = (slow_rank *)arg;
    r->status = call(r);
    return NULL;
}

static void threads_of(how kind) {
    ds_comm_desc desc = flying_desc();
    ds_comm *comms[2];
    slow_rank ranks[2];
    pthread_t thread;
    memset(ranks, 0, sizeof ranks);
    CHECK_EQ(ds_comm_threads_create(&desc, 2, comms, NULL), DS_OK);
    for (int r = 0; r < 2; r++) {
        ranks[r].comm = comms[r];
        ranks[r].kind = kind;
        ranks[r].out = (char *)ds_comm_alloc(comms[r], 2 * PAGE);
        memset(ranks[r].out, 1 + r, 2 * PAGE);
    }
    returned = freed_too_early = 0;
    stops = false;
    slow_room = comms[0]->room;
    guard(ranks[0].out + (kind == PUSHES ? PAGE : 0));
    CHECK(pthread_create(&thread, NULL, call_later, &ranks[1]) == 0);
    ranks[0].status = call(&ranks[0]);
    __atomic_store_n(&returned, 1, __ATOMIC_SEQ_CST);
    pthread_join(thread, NULL);
    unguard();
    CHECK_EQ(*inside, 1);
    CHECK_EQ(ranks[0].status, DS_ERR_TIMEOUT);
    CHECK_HAS(ranks[0].text, "rank 0 waited 20.0 s");
    CHECK_HAS(ranks[0].text, "rank 1 to re"); /* read its part, receive */
    CHECK_EQ(freed_too_early, 0);
    CHECK_EQ(ranks[1].status, DS_ERR_PEER);
    CHECK_HAS(ranks[1].text, "rank 0 stopped: rank 0 waited");
    for (int r = 0; r < 2; r++) {
        CHECK(ds_comm_free(comms[r], ranks[r].out, 2 * PAGE));
        ds_comm_destroy(comms[r]);
    }
}

/* Rank 1 of two processes is stopped in the midst of its copy; rank 0's memory is then not given out again. */
static int stopped_process(int rank, const char *run_id, int said) {
    ds_comm_desc desc = flying_desc();
    ds_comm *comm;
    slow_rank r;
    uint64_t mine, both[2];
    int bad = 0;
    memset(&r, 0, sizeof r);
    desc.backend = "shm";
    desc.world = 2;
    desc.rank = rank;
    desc.run_id = run_id;
    if (ds_comm_create(&desc, &comm, NULL)) return 100;
    r.comm = comm;
    r.out = (char *)ds_comm_alloc(comm, 2 * PAGE);
    memset(r.out, 1 + rank, 2 * PAGE);
    mine = (uint64_t)(r.out - comm->family->base);
    bad += ds_comm_all_gather(comm, &mine, both, 1, NULL, DS_U64) != DS_OK;
    if (rank == 1) {
        stops = true;
        guard(comm->family->base + both[0]);
        bad += call(&r) != DS_ERR_PEER; /* not DS_OK: rank 0 has given up, and may have written there */
        bad += !strstr(r.text, "rank 0 stopped");
    } else {
        char *again, ok;
        bad += call(&r) != DS_ERR_TIMEOUT;
        bad += !strstr(r.text, "waited 20.0 s") || !strstr(r.text, "for rank 1");
        bad += !ds_comm_free(comm, r.out, 2 * PAGE);
        again = (char *)ds_comm_alloc(comm, 2 * PAGE);
        bad += !again || again == r.out;
        ok = (char)bad;
        if (write(said, &ok, 1) != 1) bad++;
    }
    ds_comm_destroy(comm);
    return bad;
}

/* Rank 1 comes after rank 0 has given up and has other things in its memory. */
typedef struct late_rank {
    ds_comm *comm;
    char data[2 * PAGE];
    ds_status status;
} late_rank;
static void *come_late(void *arg) {
    late_rank *r = (late_rank *)arg;
    while (!__atomic_load_n(&returned, __ATOMIC_SEQ_CST)) dsi_sleep(NULL, 1000000);
    r->status = ds_comm_broadcast(r->comm, r->data, sizeof r->data, DS_U8, 0);
    return NULL;
}

int main(int argc, char **argv) {
    inside = (uint32_t *)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    test_begin(argc, argv);
    TEST(thread_in_a_gather) {
        threads_of(GATHER);
    }
    TEST(thread_in_a_message) {
        threads_of(SENDS);
    }
    TEST(thread_that_writes) {
        threads_of(PUSHES);
    }
    TEST(stopped_process) {
        char id[64], said = 99;
        int ends[2], status;
        pid_t pids[2];
        snprintf(id, sizeof id, "slow %ld", (long)getpid());
        CHECK(pipe(ends) == 0);
        for (int r = 0; r < 2; r++)
            if ((pids[r] = fork()) == 0) test_child_exit(stopped_process(r, id, ends[1]));
        close(ends[1]);
        CHECK(read(ends[0], &said, 1) == 1);
        CHECK_EQ(said, 0);
        close(ends[0]);
        kill(pids[1], SIGCONT);
        for (int r = 0; r < 2; r++) {
            waitpid(pids[r], &status, 0);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
    }
    TEST(comes_later) {
        ds_comm_desc desc;
        ds_comm *comms[2];
        static late_rank ranks[2];
        pthread_t thread;
        memset(&desc, 0, sizeof desc);
        desc.timeout = 50000000;
        CHECK_EQ(ds_comm_threads_create(&desc, 2, comms, NULL), DS_OK);
        returned = 0;
        for (int r = 0; r < 2; r++) ranks[r].comm = comms[r];
        CHECK(pthread_create(&thread, NULL, come_late, &ranks[1]) == 0);
        CHECK_EQ(ds_comm_broadcast(comms[0], ranks[0].data, sizeof ranks[0].data, DS_U8, 0), DS_ERR_TIMEOUT);
        CHECK_HAS(ds_comm_error(comms[0])->message, "rank 1 never came");
        memset(ranks[0].data, 0x5A, sizeof ranks[0].data); /* its own again */
        __atomic_store_n(&returned, 1, __ATOMIC_SEQ_CST);
        pthread_join(thread, NULL);
        CHECK_EQ(ranks[1].status, DS_ERR_PEER);
        CHECK_HAS(ds_comm_error(comms[1])->message, "rank 0 stopped");
        CHECK_EQ(ranks[1].data[PAGE], 0);
        for (int r = 0; r < 2; r++) ds_comm_destroy(comms[r]);
    }
    return test_end();
}
