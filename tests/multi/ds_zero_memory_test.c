/* What the kernel says that training takes: a process's own memory (Pss of /proc/self/smaps_rollup, where a page that n
   processes share counts as 1/n) grows by no more than ds_zero_plan's device and host bytes and 4 MiB, at every stage, with
   and without offload, on one rank, on ranks that are threads and on ranks that are processes. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "tests/test.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum { TENSORS = 4, NUMEL = 500000, WORLD = 2, STEPS = 2, SPOTS = 4 * STEPS + 1, MARGIN = 4 << 20 };
typedef enum backend { ALONE, THREADS, PROCESSES } backend;

typedef struct rank_seen {
    size_t before, at[SPOTS], planned; /* before the engine, at places of the training, and the plan */
    char message[508];
} rank_seen;

static float gradient[NUMEL];

/* Bytes of this process; 0 where the kernel does not say. */
static size_t taken(void) {
    char line[256];
    unsigned long kib = 0;
    FILE *f = fopen("/proc/self/smaps_rollup", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Pss: %lu kB", &kib) == 1) break;
    if (f) fclose(f);
    return (size_t)kib << 10;
}

static void init(void *ctx, size_t begin, size_t count, float *out) {
    (void)ctx;
    for (size_t i = 0; i < count; i++) out[i] = (float)((begin + i) % 101) * 0.01f;
}

/* All ranks stand still while each looks. */
static ds_status look(ds_comm *comm, size_t *bytes) {
    ds_status status = comm ? ds_comm_barrier(comm) : DS_OK;
    *bytes = taken();
    return status || !comm ? status : ds_comm_barrier(comm);
}

static ds_status train(ds_zero *z, ds_comm *comm, rank_seen *o) {
    size_t spot = 0;
    ds_status s = look(comm, &o->at[spot++]);
    for (int step = 0; step < STEPS && !s; step++) {
        s = ds_zero_begin(z, DS_ZERO_TRAIN);
        for (size_t i = 0; i < TENSORS && !s; i++) s = ds_zero_fetch(z, i, NULL);
        if (!s) s = look(comm, &o->at[spot++]);
        for (size_t i = TENSORS; i-- > 0 && !s;) {
            s = ds_zero_grad(z, i, gradient, NULL);
            if (!s) s = ds_zero_release(z, i);
            if (!s && i == TENSORS / 2) s = look(comm, &o->at[spot++]);
        }
        if (!s) s = ds_zero_end(z);
        if (!s) s = look(comm, &o->at[spot++]);
        if (!s) s = ds_zero_step(z, NULL);
        if (!s) s = look(comm, &o->at[spot++]);
    }
    return s;
}

static void run_rank(ds_comm *comm, int rank, int world, const char *zero, rank_seen *o) {
    static const char *const names[TENSORS] = {"a", "b", "c", "d"};
    char text[700];
    void *slots[TENSORS];
    ds_zero_param params[TENSORS];
    ds_config_options options;
    ds_config *config = NULL;
    ds_error error = {DS_OK, ""};
    ds_zero_bytes plan;
    ds_zero_desc d;
    ds_zero *z = NULL;
    memset(params, 0, sizeof params);
    memset(&options, 0, sizeof options);
    memset(&d, 0, sizeof d);
    options.world_size = (size_t)world;
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"aio\": {\"block_size\": "
             "65536}, \"zero_optimization\": {%s, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": "
             "100000, \"reduce_bucket_size\": 600000, \"allgather_bucket_size\": 600000}}",
             zero);
    for (size_t i = 0; i < TENSORS; i++) {
        params[i].name = names[i];
        params[i].dims = 1;
        params[i].shape[0] = NUMEL;
        params[i].slot = &slots[i];
        params[i].init = init;
    }
    d.params = params;
    d.n_params = TENSORS;
    d.comm = comm;
    if (!ds_config_parse(text, strlen(text), &options, &config, &error)) {
        d.config = config;
        if (!ds_zero_plan(&d, rank, world, &plan, &error) && !look(comm, &o->before) &&
            !ds_zero_create(&d, &z, &error)) {
            for (int c = 0; c < DS_ZERO_CLASSES; c++)
                o->planned += plan.bytes[c][DS_ZERO_DEVICE] + plan.bytes[c][DS_ZERO_HOST];
            if (train(z, comm, o)) error = *ds_zero_error(z);
        }
    }
    snprintf(o->message, sizeof o->message, "%s", error.message);
    ds_zero_destroy(z);
    ds_config_free(config);
}

typedef struct member {
    ds_comm *comm;
    const char *zero;
    int rank;
    rank_seen *seen;
} member;
static void *member_main(void *arg) {
    member *m = (member *)arg;
    run_rank(m->comm, m->rank, WORLD, m->zero, m->seen);
    ds_comm_destroy(m->comm);
    return NULL;
}

static void threads(const char *zero, rank_seen *seen) {
    ds_comm *comms[WORLD];
    pthread_t ids[WORLD];
    member members[WORLD];
    ds_comm_desc d;
    memset(&d, 0, sizeof d);
    if (ds_comm_threads_create(&d, WORLD, comms, NULL)) return;
    for (int r = 0; r < WORLD; r++) {
        member m = {comms[r], zero, r, &seen[r]};
        members[r] = m;
        pthread_create(&ids[r], NULL, member_main, &members[r]);
    }
    for (int r = 0; r < WORLD; r++) pthread_join(ids[r], NULL);
}

static void process(int rank, const char *zero, rank_seen *seen) {
    char id[64];
    ds_comm_desc d;
    ds_comm *comm = NULL;
    ds_error error = {DS_OK, ""};
    memset(&d, 0, sizeof d);
    snprintf(id, sizeof id, "memory %ld", (long)getppid());
    d.backend = "shm";
    d.run_id = id;
    d.world = d.local_world = WORLD;
    d.rank = rank;
    d.timeout = (int64_t)60 * 1000000000;
    if (ds_comm_create(&d, &comm, &error) == DS_OK)
        run_rank(comm, rank, WORLD, zero, seen);
    else
        snprintf(seen->message, sizeof seen->message, "%s", error.message);
    ds_comm_destroy(comm);
}

/* Ranks in processes of their own, so that what an earlier case freed is not at hand. */
static void run(backend b, const char *zero, rank_seen *seen) {
    int n = b == PROCESSES ? WORLD : 1, status;
    pid_t pids[WORLD];
    memset(seen, 0, WORLD * sizeof *seen);
    fflush(stdout);
    for (int r = 0; r < n; r++)
        if ((pids[r] = fork()) == 0) {
            if (b == ALONE) run_rank(NULL, 0, 1, zero, seen);
            if (b == THREADS) threads(zero, seen);
            if (b == PROCESSES) process(r, zero, &seen[r]);
            test_child_exit(0);
        }
    for (int r = 0; r < n; r++) {
        waitpid(pids[r], &status, 0);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

int main(int argc, char **argv) {
    static const char *const backends[] = {"one rank", "threads", "processes"};
    static const char *const zeros[] = {
        "\"stage\": 0",
        "\"stage\": 1",
        "\"stage\": 2",
        "\"stage\": 3",
        "\"stage\": 1, \"offload_optimizer\": {\"device\": \"cpu\"}",
        "\"stage\": 2, \"offload_optimizer\": {\"device\": \"cpu\"}",
        "\"stage\": 3, \"offload_optimizer\": {\"device\": \"cpu\"}, \"offload_param\": {\"device\": \"cpu\"}",
        "\"stage\": 3, \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": "
        "true, "
        "\"pipeline_write\": true}, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"build\", "
        "\"max_in_cpu\": "
        "300000, \"buffer_size\": 50000}"};
    rank_seen *seen =
        (rank_seen *)mmap(NULL, WORLD * sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    test_begin(argc, argv);
    for (size_t i = 0; i < NUMEL; i++) gradient[i] = (float)(i % 13) * 0.01f - 0.05f;
    for (int b = ALONE; b <= PROCESSES; b++)
        for (size_t k = 0; k < sizeof zeros / sizeof zeros[0]; k++) {
            char name[128];
            snprintf(name, sizeof name, "%s, %.40s%s", backends[b], zeros[k], k > 3 ? " ..." : "");
            TEST_NAMED(name) {
                size_t before = 0, planned = 0, most = 0;
                int counted = b == PROCESSES ? WORLD : 1; /* threads all see the same process */
                if (SANITIZED || taken() == 0) {
                    SKIP(SANITIZED ? "a sanitizer needs memory of its own" : "this kernel has no smaps_rollup");
                    break;
                }
                run((backend)b, zeros[k], seen);
                for (int r = 0; r < WORLD; r++) {
                    CHECK_STR(seen[r].message, "");
                    planned += seen[r].planned;
                }
                for (int r = 0; r < counted; r++) before += seen[r].before;
                for (size_t spot = 0; spot < SPOTS; spot++) {
                    size_t now = 0;
                    for (int r = 0; r < counted; r++) now += seen[r].at[spot];
                    if (now > most) most = now;
                }
                CHECK(planned > 0 && most > before + planned / 2);
                if (!CHECK(most - before <= planned + (size_t)counted * MARGIN))
                    printf("  grown by %zu, planned %zu\n", most - before, planned);
                if (getenv("DS_TEST_FIGURES"))
                    printf("  %s: grown by %.2f MiB, planned %.2f MiB\n", name, (double)(most - before) / 1048576.0,
                           (double)planned / 1048576.0);
            }
        }
    munmap(seen, WORLD * sizeof *seen);
    return test_end();
}
