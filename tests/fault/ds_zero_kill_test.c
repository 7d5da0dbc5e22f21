/* kill -9 in the middle of training, at a random call of a hook on a random rank, each stage, states in memory and on disk:
   started again, the run ends with the bits of one that was never touched. Environment: DS_TEST_KILLS, how many for each
   setting (default 3). */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"
#include <signal.h>
#include <sys/wait.h>

enum { N = 3, NUMEL = 5000, WORLD = 2, STEPS = 5, ACCUMULATION = 2 };
static char folder[64], place[128];

static const char *const settings[] = {
    "\"stage\": 0",
    "\"stage\": 1",
    "\"stage\": 2, \"overlap_comm\": true, \"reduce_bucket_size\": 6000",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 0",
    "\"stage\": 1, \"offload_optimizer\": {\"device\": \"cpu\"}",
    "\"stage\": 2, \"offload_optimizer\": {\"device\": \"cpu\"}",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"offload_optimizer\": {\"device\": \"cpu\"}, "
    "\"offload_param\": {\"device\": \"cpu\"}",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 2048, \"offload_optimizer\": "
    "{\"device\": \"nvme\", \"nvme_path\": \"%s\", \"pipeline_read\": true, \"pipeline_write\": true}, "
    "\"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"%s\"}",
};

/* Counts the calls of all hooks and kills this process at one of them. */
typedef struct killer {
    long calls, at;
} killer;
static void count(void *ctx) {
    killer *k = (killer *)ctx;
    if (__atomic_add_fetch(&k->calls, 1, __ATOMIC_RELAXED) == k->at) raise(SIGKILL);
}
static int64_t k_now(void *ctx) {
    return count(ctx), dsi_now(NULL);
}
static void k_sleep(void *ctx, int64_t ns) {
    (void)ctx;
    dsi_sleep(NULL, ns);
}
static int64_t k_write(void *ctx, int fd, const void *b, size_t n, int64_t at) {
    return count(ctx), dsi_sys_write(NULL, fd, b, n, at);
}
static int k_sync(void *ctx, int fd) {
    return count(ctx), dsi_sys_sync(NULL, fd);
}
static int k_rename(void *ctx, const char *a, const char *b) {
    return count(ctx), dsi_sys_rename(NULL, a, b);
}
static int k_unlink(void *ctx, const char *p) {
    return count(ctx), dsi_sys_unlink(NULL, p);
}

static void init(void *ctx, size_t begin, size_t n, float *out) {
    (void)ctx;
    for (size_t i = 0; i < n; i++) out[i] = (float)((begin + i) % 17) * 0.1f - 0.8f;
}

typedef struct result {
    uint64_t hash;
    long calls, steps;
} result;

/* One micro-batch whose gradients depend on the weights, so that every state shows in what follows. */
static ds_status micro_batch(ds_zero *z, void **slots, int rank, int micro) {
    static uint16_t gradient[NUMEL];
    ds_status s = ds_zero_begin(z, DS_ZERO_TRAIN);
    for (size_t i = N; i-- > 0 && !s;) {
        if ((s = ds_zero_fetch(z, i, NULL))) break;
        for (size_t e = 0; e < NUMEL; e++) {
            float w = dsi_f32_of_bf16(((const uint16_t *)slots[i])[e]);
            uint64_t noise =
                e + 7919 * i + 104729 * (uint64_t)(rank + 2 * micro) + 15485863 * (uint64_t)ds_zero_steps(z);
            gradient[e] = dsi_bf16_of_f32(0.1f * w + (float)(test_uniform(&noise) - 0.5));
        }
        s = ds_zero_grad(z, i, gradient, NULL);
        if (!s) s = ds_zero_release(z, i);
    }
    return s ? s : ds_zero_end(z);
}

static ds_status hash_state(ds_zero *z, uint64_t *hash) {
    static float values[NUMEL];
    ds_status s = DS_OK;
    *hash = 14695981039346656037u;
    for (size_t i = 0; i < N && !s; i++)
        for (int state = -1; state < 2 && !s; state++) {
            s = ds_zero_read(z, i, state, 0, NUMEL, values);
            for (size_t b = 0; b < sizeof values; b++)
                *hash = (*hash ^ ((const unsigned char *)values)[b]) * 1099511628211u;
        }
    return s;
}

/* One rank: goes on from the last checkpoint, saves after each step, ends with `out` in a pipe. */
static int train(const char *zero, int rank, const char *run, long at, int out) {
    static const char *const names[N] = {"alpha", "beta", "gamma"};
    char text[2048], section[1024], latest[192];
    void *slots[N];
    ds_error e = {DS_OK, ""};
    ds_zero_param params[N];
    ds_config_options o;
    ds_comm_desc cd;
    ds_zero_desc d;
    ds_comm *comm = NULL;
    ds_config *c = NULL;
    ds_zero *z = NULL;
    killer k = {0, at};
    result r = {0, 0, 0};
    ds_status s;
    memset(&o, 0, sizeof o);
    memset(&cd, 0, sizeof cd);
    memset(&d, 0, sizeof d);
    memset(params, 0, sizeof params);
    o.world_size = WORLD;
    snprintf(section, sizeof section, zero, place, place);
    snprintf(
        text, sizeof text,
        "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": %d, \"bf16\": {\"enabled\": true},"
        "\"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": 0.01}}, \"zero_optimization\": {%s}}",
        ACCUMULATION, section);
    cd.backend = "shm";
    cd.world = cd.local_world = WORLD;
    cd.rank = rank;
    cd.run_id = run;
    cd.timeout = 60000000000;
    if (ds_config_parse(text, strlen(text), &o, &c, &e) || ds_comm_create(&cd, &comm, &e)) return 3;
    for (int i = 0; i < N; i++) {
        params[i].name = names[i];
        params[i].dims = 1;
        params[i].shape[0] = NUMEL;
        params[i].dtype = DS_BF16;
        params[i].slot = &slots[i];
        params[i].init = init;
    }
    d.config = c;
    d.comm = comm;
    d.params = params;
    d.n_params = N;
    d.clock.now = k_now;
    d.clock.sleep = k_sleep;
    d.files.write = k_write;
    d.files.sync = k_sync;
    d.files.rename = k_rename;
    d.files.unlink = k_unlink;
    d.clock.ctx = d.files.ctx = &k;
    s = ds_zero_create(&d, &z, &e);
    snprintf(latest, sizeof latest, "%s/saved/latest", folder);
    snprintf(text, sizeof text, "%s/saved", folder);
    /* what one rank sees there, all see: nobody writes until all have come to the load */
    if (!s && access(latest, F_OK) == 0 && (s = ds_zero_load(z, text, NULL, NULL, NULL))) e = *ds_zero_error(z);
    while (!s && ds_zero_steps(z) < STEPS) {
        for (int m = 0; m < ACCUMULATION && !s; m++) s = micro_batch(z, slots, rank, m);
        if (!s) s = ds_zero_step(z, NULL);
        if (!s) s = ds_zero_save(z, text, NULL, NULL, 0);
        r.steps++;
    }
    if (!s) s = hash_state(z, &r.hash);
    r.calls = k.calls;
    if (s && z) e = *ds_zero_error(z);
    if (s) fprintf(stderr, "rank %d: %s\n", rank, e.message);
    if (!s && write(out, &r, sizeof r) != sizeof r) s = DS_ERR_IO;
    ds_zero_destroy(z);
    ds_comm_destroy(comm);
    ds_config_free(c);
    return s ? 4 : 0;
}

/* Runs all ranks; when one dies the others are killed too, as a launcher does. True when all came to the end. */
static bool launch(const char *zero, int victim, long at, result *out) {
    static int runs;
    char run[64];
    int fds[2], left = WORLD;
    bool good = true;
    pid_t pids[WORLD];
    snprintf(run, sizeof run, "%ld-%d", (long)getpid(), runs++);
    memset(out, 0, WORLD * sizeof *out);
    if (pipe(fds)) return false;
    fflush(stdout);
    for (int r = 0; r < WORLD; r++) {
        pids[r] = fork();
        if (pids[r] == 0) _exit(train(zero, r, run, r == victim ? at : 0, fds[1]));
    }
    close(fds[1]);
    while (left > 0) {
        int status = 0;
        pid_t pid = wait(&status);
        if (pid < 0) break;
        left--;
        if (status && good) {
            good = false;
            if (!WIFSIGNALED(status)) printf("  a rank ended with status %d\n", status);
            for (int r = 0; r < WORLD; r++)
                if (pids[r] != pid) kill(pids[r], SIGKILL);
        }
    }
    for (int r = 0; r < WORLD && good; r++) good = read(fds[0], &out[r], sizeof *out) == (ssize_t)sizeof *out;
    close(fds[0]);
    return good;
}

static void clean(void) {
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s/saved %s", folder, place);
    CHECK(system(command) == 0);
    CHECK(mkdir(place, 0700) == 0);
}

int main(int argc, char **argv) {
    const char *text = getenv("DS_TEST_KILLS");
    long kills = text ? atol(text) : 3;
    uint64_t random = 20240229;
    char command[128];
    test_begin(argc, argv);
    snprintf(folder, sizeof folder, "build/ds_zero_kill_XXXXXX");
    if (!mkdtemp(folder)) return 1;
    snprintf(place, sizeof place, "%s/swap", folder);
    for (size_t k = 0; k < sizeof settings / sizeof settings[0]; k++) {
        char name[64];
        snprintf(name, sizeof name, "kill -9 while training, setting %zu", k);
        TEST_NAMED(name) {
            result whole[WORLD], got[WORLD];
            long resumed = 0;
            clean();
            CHECK(launch(settings[k], -1, 0, whole));
            CHECK(whole[0].hash == whole[1].hash && whole[0].steps == STEPS);
            for (long n = 0; n < kills; n++) {
                int victim = (int)(test_random(&random) % WORLD);
                long at = 1 + (long)(test_random(&random) % (uint64_t)whole[victim].calls);
                for (clean(); launch(settings[k], victim, at, got); clean())
                    at = at * 7 / 8; /* a run may make fewer calls */
                if (!CHECK(launch(settings[k], -1, 0, got))) printf("  rank %d killed at call %ld\n", victim, at);
                if (!CHECK(got[0].hash == whole[0].hash && got[1].hash == whole[0].hash))
                    printf("  rank %d killed at call %ld: other bits\n", victim, at);
                resumed += STEPS - got[0].steps;
            }
            CHECK(kills < 10 || resumed > 0); /* some went on from a checkpoint, not from the start */
        }
    }
    snprintf(command, sizeof command, "rm -rf %s", folder);
    CHECK(system(command) == 0);
    return test_end();
}
