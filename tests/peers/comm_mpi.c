/* Times of MPI's collectives, as lines of name and seconds, best and median of all rounds.
   usage: mpirun -np RANKS comm_mpi BYTES ROUNDS */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
int main(int argc, char **argv) {
    enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, SMALL, CASES, MOST = 64 };
    static const char *const names[CASES] = {"all_reduce", "reduce_scatter", "all_gather", "small"};
    double took[CASES][MOST], one = 1, sum;
    int ranks, rank, rounds = argc > 2 ? atoi(argv[2]) : 9;
    MPI_Init(&argc, &argv);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    int part = (int)(strtoul(argc > 1 ? argv[1] : "67108864", NULL, 10) / 4 / (unsigned)ranks), count = part * ranks;
    float *x = calloc((size_t)count, 4), *mine = calloc((size_t)part, 4);
    if (!x || !mine || rounds < 1 || rounds > MOST) MPI_Abort(MPI_COMM_WORLD, 1);
    for (int r = 0; r <= rounds; r++)
        for (int k = 0; k < CASES; k++) {
            int repeat = k == SMALL ? 5000 : 1;
            MPI_Barrier(MPI_COMM_WORLD);
            double start = MPI_Wtime();
            for (int i = 0; i < repeat; i++) {
                if (k == ALL_REDUCE) MPI_Allreduce(MPI_IN_PLACE, x, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
                if (k == REDUCE_SCATTER)
                    MPI_Reduce_scatter_block(x, mine, part, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
                if (k == ALL_GATHER) MPI_Allgather(mine, part, MPI_FLOAT, x, part, MPI_FLOAT, MPI_COMM_WORLD);
                if (k == SMALL) MPI_Allreduce(&one, &sum, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
            }
            MPI_Barrier(MPI_COMM_WORLD);
            took[k][r ? r - 1 : 0] = (MPI_Wtime() - start) / repeat;
        }
    for (int k = 0; k < CASES && rank == 0; k++) {
        qsort(took[k], (size_t)rounds, sizeof(double), compare);
        printf("%s %.4g %.4g\n", names[k], took[k][0], took[k][rounds / 2]);
    }
    MPI_Finalize();
    return 0;
}
