/* Two ranks under mpirun (tests/multi/ds_comm_mpi_test.sh): each call to MPI that ds_comm.h makes fails in turn on either of
   them. Whoever it fails for says so, naming itself and the call; the other one comes to an end within its deadline; results
   that are called right are right. Arguments: CALL RANK N, which fails at the end, and anything more for all the others. */
#include <mpi.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *fault_name = "";
static int fault_at, fault_count;
static int fault(const char *name) {
    return strcmp(name, fault_name) == 0 && ++fault_count == fault_at;
}
#define MPI_Isend(...)      (fault("MPI_Isend") ? MPI_ERR_OTHER : MPI_Isend(__VA_ARGS__))
#define MPI_Irecv(...)      (fault("MPI_Irecv") ? MPI_ERR_OTHER : MPI_Irecv(__VA_ARGS__))
#define MPI_Test(...)       (fault("MPI_Test") ? MPI_ERR_OTHER : MPI_Test(__VA_ARGS__))
#define MPI_Iallreduce(...) (fault("MPI_Iallreduce") ? MPI_ERR_OTHER : MPI_Iallreduce(__VA_ARGS__))
#define MPI_Ireduce(...)    (fault("MPI_Ireduce") ? MPI_ERR_OTHER : MPI_Ireduce(__VA_ARGS__))
#define MPI_Comm_idup(...)  (fault("MPI_Comm_idup") ? MPI_ERR_OTHER : MPI_Comm_idup(__VA_ARGS__))
#define MPI_Op_create(...)  (fault("MPI_Op_create") ? MPI_ERR_OTHER : MPI_Op_create(__VA_ARGS__))
static void *fault_alloc(void *ctx, size_t bytes, size_t align) {
    void *memory = NULL;
    (void)ctx;
    return fault("memory") || posix_memalign(&memory, align, bytes) ? NULL : memory;
}
static void fault_release(void *ctx, void *memory, size_t bytes, size_t align) {
    (void)ctx, (void)bytes, (void)align;
    free(memory);
}
#define DS_COMM_IMPLEMENTATION
#include "ds_comm.h"

enum { COUNT = 5000 };
static int rank, failed;
#define EXPECT(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            failed++;                                                                                                  \
            printf("FAIL rank %d, %s %d on rank %d: %s (%d: %s)\n", rank, name, at, victim, #condition, (int)status,   \
                   error.message);                                                                                     \
        }                                                                                                              \
    } while (0)

static ds_status work(bool failing, ds_error *error) {
    static float x[COUNT], out[COUNT];
    ds_comm_desc desc;
    ds_comm *comm = NULL;
    ds_comm_call call;
    ds_status status;
    memset(&desc, 0, sizeof desc);
    desc.backend = "mpi";
    desc.timeout = (int64_t)(failing ? 150 : 20000) * 1000000;
    desc.stage_bytes = 16384;
    desc.allocator.alloc = fault_alloc;
    desc.allocator.release = fault_release;
    error->message[0] = 0;
    if ((status = ds_comm_create(&desc, &comm, error)) != DS_OK) return status;
    memset(&call, 0, sizeof call);
    call.in = x;
    call.out = out;
    call.count = COUNT;
    for (int k = 0; k < 4 && !status; k++) {
        call.kind = k < 2 ? DS_COMM_ALL_REDUCE : DS_COMM_REDUCE_SCATTER;
        call.count = k < 2 ? COUNT : COUNT / 2;
        call.native = k & 1;
        for (int i = 0; i < COUNT; i++) x[i] = (float)(i + rank);
        status = ds_comm_run(comm, &call);
        for (int i = 0; i < (k < 2 ? COUNT : COUNT / 2) && !status; i++)
            if (out[i] != (float)(1 + 2 * (i + (k < 2 ? 0 : rank * COUNT / 2)))) status = DS_ERR_CORRUPT;
    }
    if (status) {
        *error = *ds_comm_error(comm);
        if (ds_comm_barrier(comm) != status) status = DS_ERR_STATE; /* dead is dead */
    }
    ds_comm_destroy(comm);
    return status;
}

static void one(const char *name, int victim, int at) {
    ds_error error = {DS_OK, ""};
    ds_status status;
    fault_name = rank == victim ? name : "";
    fault_at = at;
    fault_count = 0;
    status = work(victim >= 0, &error);
    if (rank == victim && fault_count >= at) {
        char here[32];
        snprintf(here, sizeof here, "rank %d", rank);
        EXPECT(DS_IS_ENVIRONMENT(status) && status != DS_ERR_CORRUPT);
        EXPECT(strstr(error.message, here) != NULL || strcmp(name, "memory") == 0); /* MPI has not said it by then */
        EXPECT(strstr(error.message, name) != NULL);
    } else
        EXPECT(status == DS_OK || (victim >= 0 && (status == DS_ERR_TIMEOUT || status == DS_ERR_PEER)));
    EXPECT((status != DS_OK) == (error.message[0] != 0));
    fault_name = "";
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int step, most;
    } calls[] = {{"MPI_Isend", 1, 6},
                 {"MPI_Irecv", 1, 6},
                 {"MPI_Test", 17, 120},
                 {"MPI_Iallreduce", 1, 1},
                 {"MPI_Ireduce", 1, 2},
                 {"memory", 1, 14}};
    int cases = 0, level;
    alarm(100); /* a hang */
    if (argc < 4) return 2;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    one("", -1, 0); /* a run that works; after a failure MPI may be left with calls that only one rank made */
    for (size_t k = 0; k < sizeof calls / sizeof *calls && argc > 4; k++)
        for (int victim = 0; victim < 2; victim++)
            for (int at = 1; at <= calls[k].most; at += calls[k].step, cases++) {
                one(calls[k].name, victim, at);
                MPI_Barrier(MPI_COMM_WORLD);
            }
    /* from here on the ranks' numbers of calls on MPI's own world differ, so that each is the last of a program */
    one(argv[1], atoi(argv[2]), atoi(argv[3]));
    printf("rank %d: %d cases, %d failed\n", rank, cases + 2, failed);
    exit(failed != 0); /* without MPI_Finalize, which would wait for messages that were given up */
}
