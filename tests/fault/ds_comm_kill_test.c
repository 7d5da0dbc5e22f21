/* A rank is killed with SIGKILL at a random point of its life, again and again: the others return an error that names it
   within seconds, nothing is left in /dev/shm, and the next run works. DS_TEST_KILLS sets how often (40). */
#define DS_COMM_IMPLEMENTATION
#include "ds_comm.h"
#include "tests/test.h"
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORLD = 3, COUNT = 50000, STEPS_AFTER = 30 };

static ds_status one_rank(int rank, const char *run_id, int steps, char *text, size_t room) {
    ds_comm_desc desc;
    ds_comm *comm;
    ds_error error = {DS_OK, ""};
    ds_status status;
    float *shared, *plain = (float *)malloc(COUNT * sizeof *plain);
    memset(&desc, 0, sizeof desc);
    desc.backend = "shm";
    desc.world = WORLD;
    desc.rank = rank;
    desc.run_id = run_id;
    desc.timeout = (int64_t)5 * 1000000000;
    desc.stage_bytes = 65536;
    status = ds_comm_create(&desc, &comm, &error);
    if (status) {
        snprintf(text, room, "%s", error.message);
        free(plain);
        return status;
    }
    shared = (float *)ds_comm_alloc(comm, COUNT * sizeof *shared);
    for (int i = 0; i < COUNT; i++) shared[i] = plain[i] = 1.0f;
    for (int step = 0; !status && (steps < 0 || step < steps); step++) {
        ds_comm_call call;
        ds_comm_handle handle;
        memset(&call, 0, sizeof call);
        call.kind = DS_COMM_ALL_REDUCE;
        call.in = call.out = step % 2 ? shared : plain;
        call.count = step % 3 ? COUNT : 10;
        call.op = DS_COMM_AVERAGE;
        status = step % 4 ? ds_comm_run(comm, &call) : ds_comm_start(comm, &call, &handle);
        if (!status && step % 4 == 0) status = ds_comm_wait(comm, handle);
        if (!status && step % 5 == 0) status = ds_comm_broadcast(comm, plain, COUNT, DS_F32, step % WORLD);
        if (!status && step % 7 == 0) status = ds_comm_barrier(comm);
        if (!status && step % 11 == 0) {
            ds_comm *copy = NULL;
            status = ds_comm_split(comm, 0, -rank, &copy, &error);
            if (!status) status = ds_comm_barrier(copy);
            if (status && copy) snprintf(text, room, "%s", ds_comm_error(copy)->message);
            ds_comm_destroy(copy);
        }
        if (!status && (shared[7] != 1.0f || plain[COUNT - 1] != 1.0f)) status = DS_ERR_CORRUPT;
    }
    if (status && !text[0]) snprintf(text, room, "%s", ds_comm_error(comm)->message);
    ds_comm_free(comm, shared, COUNT * sizeof *shared);
    ds_comm_destroy(comm);
    free(plain);
    return status;
}

typedef struct outcome {
    ds_status status;
    int rank;
    char text[512];
} outcome;

static pid_t spawn(int rank, const char *run_id, int steps, int pipe_end) {
    pid_t pid = fork();
    if (pid == 0) {
        outcome o;
        memset(&o, 0, sizeof o);
        o.rank = rank;
        o.status = one_rank(rank, run_id, steps, o.text, sizeof o.text);
        if (write(pipe_end, &o, sizeof o) != (ssize_t)sizeof o) _exit(3);
        _exit(0);
    }
    return pid;
}
static int entries(const char *path) {
    DIR *folder = opendir(path);
    int n = 0;
    if (!folder) return 0;
    for (struct dirent *e = readdir(folder); e; e = readdir(folder)) n += strstr(e->d_name, "ds") != NULL;
    closedir(folder);
    return n;
}
static double seconds(void) {
    return (double)dsi_now(NULL) * 1e-9;
}

int main(int argc, char **argv) {
    const char *times = getenv("DS_TEST_KILLS");
    int kills = times ? atoi(times) : 40, before = entries("/dev/shm");
    uint64_t random = 20;
    test_begin(argc, argv);
    TEST(killed_at_random) {
        for (int k = 0; k < kills; k++) {
            pid_t pids[WORLD];
            int ends[2], victim = (int)(test_random(&random) % WORLD), told = 0;
            double begin;
            char id[64], name[64];
            outcome o;
            snprintf(id, sizeof id, "kill %ld %d", (long)getpid(), k);
            if (pipe(ends)) break;
            for (int r = 0; r < WORLD; r++) pids[r] = spawn(r, id, -1, ends[1]);
            close(ends[1]);
            usleep((useconds_t)(test_random(&random) % 60000));
            kill(pids[victim], SIGKILL);
            begin = seconds();
            snprintf(name, sizeof name, "rank %d", victim);
            while (read(ends[0], &o, sizeof o) == (ssize_t)sizeof o) {
                told++;
                CHECK(o.status == DS_ERR_PEER || o.status == DS_ERR_TIMEOUT);
                CHECK_HAS(o.text, name);
            }
            CHECK_EQ(told, WORLD - 1);
            CHECK(seconds() - begin < 10.0);
            close(ends[0]);
            for (int r = 0; r < WORLD; r++) waitpid(pids[r], NULL, 0);
            if (k % 10 == 0) { /* the next run, with the same name */
                if (pipe(ends)) break;
                for (int r = 0; r < WORLD; r++) pids[r] = spawn(r, id, STEPS_AFTER, ends[1]);
                close(ends[1]);
                for (int r = 0; r < WORLD; r++) {
                    CHECK(read(ends[0], &o, sizeof o) == (ssize_t)sizeof o);
                    CHECK_EQ(o.status, DS_OK);
                    if (o.status) printf("  rank %d: %s\n", o.rank, o.text);
                }
                close(ends[0]);
                for (int r = 0; r < WORLD; r++) waitpid(pids[r], NULL, 0);
            }
        }
    }
    TEST(nothing_left) {
        CHECK_EQ(entries("/dev/shm"), before);
    }
    TEST(dies_while_connecting) {
        pid_t pids[2];
        int ends[2], status = 0;
        outcome o;
        memset(&o, 0, sizeof o);
        CHECK(pipe(ends) == 0);
        for (int r = 0; r < 2; r++) pids[r] = spawn(r, "kill half", -1, ends[1]); /* rank 2 never comes */
        close(ends[1]);
        usleep(300000);
        kill(pids[1], SIGKILL);
        CHECK(read(ends[0], &o, sizeof o) == (ssize_t)sizeof o);
        CHECK_EQ(o.status, DS_ERR_PEER);
        CHECK_HAS(o.text, "rank 1");
        CHECK_HAS(o.text, "ended while the ranks connected");
        close(ends[0]);
        for (int r = 0; r < 2; r++) waitpid(pids[r], &status, 0);
    }
    TEST(two_die) { /* perhaps one of the other: both are named */
        pid_t pids[WORLD];
        int ends[2];
        outcome o;
        memset(&o, 0, sizeof o);
        CHECK(pipe(ends) == 0);
        for (int r = 0; r < WORLD; r++) pids[r] = spawn(r, "kill two", -1, ends[1]);
        close(ends[1]);
        usleep(300000);
        kill(pids[1], SIGSTOP);
        for (int r = 0; r < WORLD; r += 2) {
            kill(pids[r], SIGKILL);
            waitpid(pids[r], NULL, 0);
        }
        kill(pids[1], SIGCONT);
        CHECK(read(ends[0], &o, sizeof o) == (ssize_t)sizeof o);
        CHECK_EQ(o.status, DS_ERR_PEER);
        CHECK_HAS(o.text, "rank 0");
        CHECK_HAS(o.text, "rank 2");
        CHECK_HAS(o.text, "died, so did rank");
        close(ends[0]);
        waitpid(pids[1], NULL, 0);
    }
    TEST(another_user) {
        if (geteuid() != 0)
            SKIP("needs root to become another user");
        else {
            int ends[2];
            outcome o;
            pid_t host, guest;
            memset(&o, 0, sizeof o);
            CHECK(pipe(ends) == 0);
            host = spawn(0, "kill user", -1, -1);
            guest = fork();
            if (guest == 0) { /* calls at the very socket that rank 0 of root listens on */
                dsi_comm_point place = dsi_comm_meeting_point("kill user", WORLD);
                dsi_comm_hello hello;
                int s = socket(AF_UNIX, SOCK_SEQPACKET, 0), got = -1;
                memset(&hello, 0, sizeof hello);
                hello.magic = DS_COMM_VERSION + 0x64730000u;
                hello.rank = 1;
                hello.world = WORLD;
                hello.run = dsi_comm_run_hash("kill user", WORLD);
                if (setuid(65534)) _exit(4);
                usleep(200000);
                if (connect(s, (struct sockaddr *)(void *)&place.address, place.length)) _exit(5);
                (void)dsi_comm_tell(s, &hello, -1);
                o.status = dsi_comm_hear(NULL, s, &hello, &got, dsi_deadline(NULL, 1000000000));
                if (write(ends[1], &o, sizeof o) != (ssize_t)sizeof o) _exit(6);
                _exit(got < 0 ? 0 : 7);
            }
            close(ends[1]);
            CHECK(read(ends[0], &o, sizeof o) == (ssize_t)sizeof o);
            CHECK_EQ(o.status, DS_ERR_PEER); /* hung up on, without the memory */
            close(ends[0]);
            kill(host, SIGKILL);
            waitpid(host, NULL, 0);
            {
                int status = 0;
                waitpid(guest, &status, 0);
                CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            }
        }
    }
    return test_end();
}
