/* Engines whose ranks are processes: parameters and gradients lie in the memory that the ranks share, so that nothing is copied
   on its way; the bits are those of threads, the plan still holds to the byte, and everything is given back. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "tests/test.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TENSORS = 3, NUMEL = 70000, STEPS = 3, WORLD = 2, ARENA = 64 << 20 };

typedef struct outcome {
    bool good, planned, given_back;
    uint64_t hash;
    uint64_t staged;
    char message[508];
} outcome;

static float value(size_t tensor, size_t i, int salt) {
    uint64_t seed = (uint64_t)tensor * 7919u + i * 31u + (uint64_t)salt * 1000003u;
    return (float)test_uniform(&seed) - 0.5f;
}
static void fill(void *ctx, size_t begin, size_t count, float *out) {
    for (size_t i = 0; i < count; i++) out[i] = value(*(size_t *)ctx, begin + i, 0);
}
static void train(ds_comm *comm, int stage, int rank, outcome *o) {
    static const char *const names[TENSORS] = {"a", "b", "c"};
    size_t numbers[TENSORS] = {0, 1, 2};
    char text[512];
    void *slots[TENSORS];
    float *gradient = (float *)malloc(NUMEL * sizeof *gradient);
    ds_zero_param params[TENSORS];
    ds_config_options options;
    ds_config *config = NULL;
    ds_error error = {DS_OK, ""};
    ds_zero_desc d;
    ds_zero_stats stats;
    ds_zero_bytes plan;
    ds_zero *z = NULL;
    bool good;
    memset(params, 0, sizeof params);
    memset(&options, 0, sizeof options);
    memset(&d, 0, sizeof d);
    memset(o, 0, sizeof *o);
    options.world_size = WORLD;
    snprintf(
        text, sizeof text,
        "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 2, \"optimizer\": {\"type\": "
        "\"AdamW\"}, \"zero_optimization\": {\"stage\": %d, \"overlap_comm\": true, \"reduce_bucket_size\": 80000, "
        "\"stage3_param_persistence_threshold\": 0}}",
        stage);
    for (size_t i = 0; i < TENSORS; i++) {
        params[i].name = names[i];
        params[i].dims = 1;
        params[i].shape[0] = NUMEL - i * 5;
        params[i].slot = &slots[i];
        params[i].init = fill;
        params[i].ctx = &numbers[i];
    }
    d.params = params;
    d.n_params = TENSORS;
    d.comm = comm;
    good = !ds_config_parse(text, strlen(text), &options, &config, &error);
    d.config = config;
    good = good && !ds_zero_plan(&d, rank, WORLD, &plan, &error) && !ds_zero_create(&d, &z, &error);
    for (int pass = 0; pass < 2 * STEPS && good; pass++) {
        good = !ds_zero_begin(z, DS_ZERO_TRAIN);
        for (size_t i = TENSORS; i-- > 0 && good;) {
            for (size_t k = 0; k < NUMEL; k++) gradient[k] = value(i, k, 1 + pass * WORLD + rank);
            good = !ds_zero_fetch(z, i, NULL) && !ds_zero_grad(z, i, gradient, NULL) && !ds_zero_release(z, i);
        }
        good = good && !ds_zero_end(z) && (pass % 2 == 0 || !ds_zero_step(z, NULL));
    }
    o->hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i < TENSORS && good; i++) {
        good = !ds_zero_read(z, i, -1, 0, NUMEL - i * 5, gradient);
        for (size_t k = 0; k < NUMEL - i * 5; k++) o->hash = (o->hash ^ dsi_bits_of_f32(gradient[k])) * 0x100000001B3u;
    }
    if (good) good = !ds_zero_get_stats(z, &stats);
    o->planned = good && memcmp(&plan, &stats.peak, sizeof plan) == 0;
    o->staged = good ? stats.comm.staged_bytes : 0;
    snprintf(o->message, sizeof o->message, "%s", z && !good ? ds_zero_error(z)->message : error.message);
    o->good = good;
    ds_zero_destroy(z);
    ds_config_free(config);
    free(gradient);
}

typedef struct member {
    ds_comm *comm;
    int stage, rank;
    outcome out;
} member;
static void *member_main(void *arg) {
    member *m = (member *)arg;
    train(m->comm, m->stage, m->rank, &m->out);
    ds_comm_destroy(m->comm);
    return NULL;
}
static uint64_t threads(int stage) {
    ds_comm *comms[WORLD];
    pthread_t ids[WORLD];
    member members[WORLD];
    ds_comm_desc d;
    memset(&d, 0, sizeof d);
    CHECK(ds_comm_threads_create(&d, WORLD, comms, NULL) == DS_OK);
    for (int r = 0; r < WORLD; r++) {
        members[r].comm = comms[r];
        members[r].stage = stage;
        members[r].rank = r;
        pthread_create(&ids[r], NULL, member_main, &members[r]);
    }
    for (int r = 0; r < WORLD; r++) {
        pthread_join(ids[r], NULL);
        if (!CHECK(members[r].out.good)) printf("  %s\n", members[r].out.message);
    }
    CHECK(members[0].out.hash == members[1].out.hash);
    return members[0].out.hash;
}
static void process(int stage, int rank, size_t arena, outcome *o) {
    char id[64];
    ds_comm_desc d;
    ds_comm *comm = NULL;
    ds_error error = {DS_OK, ""};
    memset(&d, 0, sizeof d);
    snprintf(id, sizeof id, "shared %ld %d", (long)getppid(), stage);
    d.backend = "shm";
    d.run_id = id;
    d.world = d.local_world = WORLD;
    d.rank = rank;
    d.arena_bytes = arena;
    d.stage_bytes = 65536;
    d.timeout = (int64_t)60 * 1000000000;
    if (ds_comm_create(&d, &comm, &error)) {
        snprintf(o->message, sizeof o->message, "%s", error.message);
        return;
    }
    train(comm, stage, rank, o);
    if (arena == ARENA &&
        ds_comm_barrier(comm) == DS_OK) { /* the rooms of the engine's own communicators go with them */
        void *all = ds_comm_alloc(comm, ARENA - (16 << 20));
        o->given_back = all != NULL;
        ds_comm_free(comm, all, ARENA - (16 << 20));
    }
    ds_comm_destroy(comm);
}

int main(int argc, char **argv) {
    outcome *out =
        (outcome *)mmap(NULL, WORLD * sizeof *out, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    test_begin(argc, argv);
    for (int stage = 0; stage < 4; stage++)
        for (int small = 0; small < 2; small++) {
            char name[64];
            snprintf(name, sizeof name, "stage %d%s", stage, small ? ", more than the ranks can share" : "");
            TEST_NAMED(name) {
                pid_t pids[WORLD];
                uint64_t hash = threads(stage);
                int status;
                memset(out, 0, WORLD * sizeof *out);
                fflush(stdout);
                for (int r = 0; r < WORLD; r++)
                    if ((pids[r] = fork()) == 0) {
                        process(stage, r, small ? 900 << 10 : ARENA, &out[r]);
                        test_child_exit(0);
                    }
                for (int r = 0; r < WORLD; r++) {
                    waitpid(pids[r], &status, 0);
                    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
                    if (!CHECK(out[r].good)) printf("  rank %d: %s\n", r, out[r].message);
                    CHECK(out[r].hash == hash && out[r].planned);
                    /* what is left are norms, flags and the final reads of this test */
                    if (!small) CHECK(out[r].staged < 3 * NUMEL * sizeof(float) && out[r].given_back);
                    if (small) CHECK(out[r].staged > 6 * NUMEL * sizeof(float));
                }
            }
        }
    munmap(out, WORLD * sizeof *out);
    return test_end();
}
