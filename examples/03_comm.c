/* 03_comm.c - ranks that average their numbers, with ds_comm.h alone.

   cc -I. examples/03_comm.c -o 03_comm -lpthread -lm     (mpicc -DDS_COMM_USE_MPI=1 for mpirun over several machines)
   for r in 0 1; do RANK=$r WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_PORT=29500 ./03_comm & done; wait
   mpirun -np 2 ./03_comm         torchrun --no-python --nproc-per-node 2 ./03_comm         srun -n 2 ./03_comm */
#define DS_COMM_IMPLEMENTATION
#include "ds_comm.h"

static void print_log(void *ctx, const char *header, int level, int id, const char *message) {
    (void)ctx, (void)level;
    fprintf(stderr, "%s %d: %s\n", header, id, message);
}

int main(void) {
    enum { COUNT = 1 << 20 };
    ds_error error = {DS_OK, ""};
    ds_comm_desc desc = {0}; /* everything from the launcher; without one, this is rank 0 of 1 */
    ds_comm *comm;
    ds_comm_call call = {0};
    ds_comm_handle handle;
    ds_comm_stats stats;
    float *gradients;

    desc.logger.log = print_log;
    desc.timeout = (int64_t)30 * 1000000000; /* no wait is longer: a rank that is missing is an error that names it */
    if (ds_comm_create(&desc, &comm, &error)) return fprintf(stderr, "%s\n", error.message), 1;

    /* memory that the other ranks read in place; malloc'ed memory works as well, with one copy more */
    gradients = (float *)ds_comm_alloc(comm, COUNT * sizeof(float));
    if (!gradients) return fprintf(stderr, "no shared memory\n"), 1;
    for (int i = 0; i < COUNT; i++) gradients[i] = (float)(ds_comm_rank(comm) + 1);

    /* start it, compute something else meanwhile, wait */
    call.kind = DS_COMM_ALL_REDUCE;
    call.in = call.out = gradients;
    call.count = COUNT;
    call.dtype = DS_F32;
    call.op = DS_COMM_AVERAGE;
    if (ds_comm_start(comm, &call, &handle) || ds_comm_wait(comm, handle))
        return fprintf(stderr, "%s\n", ds_comm_error(comm)->message), 1;

    ds_comm_get_stats(comm, &stats);
    printf("rank %d of %d over %s: the average is %g; %llu bytes sent\n", ds_comm_rank(comm), ds_comm_world(comm),
           ds_comm_backend(comm), (double)gradients[COUNT - 1],
           (unsigned long long)stats.bytes_sent[DS_COMM_ALL_REDUCE]);
    ds_comm_free(comm, gradients, COUNT * sizeof(float));
    ds_comm_destroy(comm);
    return 0;
}
