/* What each key of the offload sections and of aio changes: bytes by tier, buffers, requests; and that the bits stay. */
#include "ds_zero_run.h"

static outcome plain[MAX_WORLD], out[MAX_WORLD], other[MAX_WORLD];

/* Runs, and compares with `plain`: the same bits, and the plan is what was taken, to the byte. */
static bool ran(const setting *s, outcome *o) {
    run(s, o);
    for (int r = 0; r < s->world; r++) {
        if (!CHECK(o[r].message[0] == 0)) return printf("  rank %d: %s\n", r, o[r].message), false;
        CHECK(same(&o[r], plain));
        CHECK(s->steps > 1 ? as_planned(&o[r]) : as_held(&o[r]));
    }
    return true;
}

static const char *folder(void) {
    return getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
}

#define NVME(more)                                                                                                     \
    snprintf(zero, sizeof zero,                                                                                        \
             ", \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 2048, \"reduce_bucket_size\": 4000, "   \
             "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"%s\"%s}",                                 \
             folder(), more)
#define PARAMS(more)                                                                                                   \
    snprintf(zero, sizeof zero,                                                                                        \
             ", \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 2048, \"offload_param\": {\"device\": " \
             "\"nvme\", \"nvme_path\": \"%s\"%s}",                                                                     \
             folder(), more)

static char zero[600];

static setting base(const char *precision, int world) {
    setting s = setting_of(world, 3, 2, 2, precision);
    s.tied = 1;
    run(&s, plain);
    CHECK(plain->message[0] == 0);
    s.zero = zero;
    s.top = ", \"aio\": {\"block_size\": 4096}";
    return s;
}

static size_t host(const outcome *o, ds_zero_class c) {
    return o->plan.bytes[c][DS_ZERO_HOST];
}

static void states(const char *precision, int world) {
    setting s = base(precision, world);
    bool half = strcmp(precision, "fp32") != 0;
    size_t each = 2048 * 4, buffers = half ? 4 : 3,
           set = half ? 3 * each + each / 2 : 3 * each; /* gradients: 16 bits */
    char name[128];
    snprintf(name, sizeof name, "offload_optimizer.buffer_count: %s world %d", precision, world);
    TEST_NAMED(name) {
        static const char *const pipes = ", \"pipeline_read\": true, \"pipeline_write\": true";
        char more[200];
        uint64_t written = 0;
        NVME("");
        if (!ran(&s, out)) break;
        for (size_t n = 1; n <= 4; n++) { /* n sets of buffers, of which each sub-group uses one at most */
            size_t subs = world == 1 ? 8 : 3;
            snprintf(more, sizeof more, "%s, \"buffer_count\": %zu", pipes, n * buffers);
            NVME(more);
            if (!ran(&s, other)) break;
            CHECK_EQ(host(other, DS_ZERO_BUCKETS), host(out, DS_ZERO_BUCKETS) + ((n < subs ? n : subs) - 1) * set);
            /* what is summed in a set does not go to disk */
            CHECK(n == 1 ||
                  (n <= subs ? other->stats.swap.bytes_written < written : other->stats.swap.bytes_written == written));
            written = other->stats.swap.bytes_written;
        }
        NVME(pipes); /* not given: as many as they use */
        ran(&s, other);
        CHECK_EQ(host(other, DS_ZERO_BUCKETS), host(out, DS_ZERO_BUCKETS) + 2 * set);
        snprintf(more, sizeof more, ", \"buffer_count\": %zu", buffers - 1);
        NVME(more);
        run(&s, other);
        CHECK_HAS(other->message, "zero_optimization.offload_optimizer.buffer_count: ");
        CHECK_HAS(other->message, half ? "3, and this optimizer needs 4" : "2, and this optimizer needs 3");
    }
    snprintf(name, sizeof name, "offload_optimizer.ratio: %s world %d", precision, world);
    TEST_NAMED(name) {
        static const char *const ratios[] = {"0", "0.3", "0.5", "0.75", "1"};
        for (int tier = DS_ZERO_HOST; tier <= DS_ZERO_DISK; tier++) {
            size_t all = 0;
            for (int k = 4; k >= 0; k--) {
                char more[64];
                size_t device, moved;
                snprintf(more, sizeof more, ", \"ratio\": %s", ratios[k]);
                NVME(more);
                if (tier == DS_ZERO_HOST) memcpy(strstr(zero, "\"nvme\""), "\"cpu\" ", 6);
                if (!ran(&s, out)) break;
                device = out->plan.bytes[DS_ZERO_STATES][DS_ZERO_DEVICE];
                moved = out->plan.bytes[DS_ZERO_STATES][tier];
                if (k == 4) all = moved;
                CHECK_EQ(device + moved, all);
                /* to a grain of each array */
                CHECK(fabs((double)moved - atof(ratios[k]) * (double)all) <= 3 * 4 * DS_GRAIN);
                CHECK(k != 0 || moved == 0);
            }
        }
    }
    snprintf(name, sizeof name, "offload_optimizer.fast_init: %s world %d", precision, world);
    TEST_NAMED(name) {
        s.steps = 1;
        s.zero = NULL;
        run(&s, plain);
        s.zero = zero;
        for (int fast = 0; fast < 2; fast++) {
            snprintf(zero, sizeof zero,
                     ", \"stage3_param_persistence_threshold\": 0, \"offload_optimizer\": {\"device\": \"nvme\", "
                     "\"nvme_path\": \"%s\", \"fast_init\": %s}, \"offload_param\": {\"device\": \"nvme\", "
                     "\"nvme_path\": \"%s\", \"max_in_cpu\": 0}",
                     folder(), fast ? "true" : "false", folder());
            ran(&s, fast ? other : out);
        }
        CHECK_EQ(memcmp(&other->plan, &out->plan, sizeof out->plan), 0); /* it takes no memory */
        CHECK_EQ(other->stats.swap.bytes_written, out->stats.swap.bytes_written);
        if (half && world == 1)
            CHECK(other->stats.swap.writes < out->stats.swap.writes); /* fewer and larger */
        else
            CHECK(other->stats.swap.writes <= out->stats.swap.writes);
    }
}

static void parameters(const char *precision, int world) {
    setting s = base(precision, world);
    size_t each = strcmp(precision, "fp32") ? 2 : 4;
    char name[128], more[200];
    snprintf(name, sizeof name, "offload_param.max_in_cpu: %s world %d", precision, world);
    TEST_NAMED(name) {
        uint64_t read = UINT64_MAX, hits = 0;
        size_t all;
        PARAMS(", \"max_in_cpu\": 0");
        if (!ran(&s, out)) break;
        CHECK_EQ(host(out, DS_ZERO_PARAMS), 0);
        all = out->plan.bytes[DS_ZERO_PARAMS][DS_ZERO_DISK];
        CHECK(out->stats.swap.hits == 0 && out->stats.swap.bytes_read > 0);
        for (size_t pages = 1; pages < 6; pages++) {
            snprintf(more, sizeof more, ", \"max_in_cpu\": %zu", pages * 4096 / each);
            PARAMS(more);
            if (!ran(&s, other)) break;
            CHECK_EQ(host(other, DS_ZERO_PARAMS), pages * 4096 < all ? pages * 4096 : all);
            CHECK(read == 0 ? other->stats.swap.bytes_read == 0 : other->stats.swap.bytes_read < read);
            CHECK(read == 0 || other->stats.swap.hits > hits);
            read = other->stats.swap.bytes_read;
            hits = other->stats.swap.hits;
        }
        PARAMS(""); /* the documents' default, 1e9: all of this model */
        ran(&s, other);
        CHECK_EQ(other->stats.swap.bytes_written + other->stats.swap.bytes_read, 0);
        CHECK_EQ(other->stats.swap.spills, 0);
        CHECK_EQ(host(other, DS_ZERO_PARAMS), all);
    }
    snprintf(name, sizeof name, "offload_param.buffer_count, buffer_size: %s world %d", precision, world);
    TEST_NAMED(name) {
        size_t one, most = world == 1 ? 4096 * each : dsi_round_up(3 * DS_GRAIN * each, 4096); /* of the largest part */
        uint64_t reads;
        PARAMS(", \"max_in_cpu\": 0, \"buffer_count\": 1, \"buffer_size\": 4096");
        if (!ran(&s, out)) break;
        one = host(out, DS_ZERO_BUCKETS);
        reads = out->stats.swap.reads;
        for (size_t n = 2; n < 4; n++) {
            snprintf(more, sizeof more, ", \"max_in_cpu\": 0, \"buffer_count\": %zu, \"buffer_size\": 4096", n);
            PARAMS(more);
            ran(&s, other);
            CHECK_EQ(host(other, DS_ZERO_BUCKETS), one + (n - 1) * most);
            CHECK_EQ(other->stats.swap.reads, reads);
        }
        PARAMS(", \"max_in_cpu\": 0, \"buffer_count\": 1, \"buffer_size\": 2048");
        ran(&s, other);
        CHECK(host(other, DS_ZERO_BUCKETS) < one);
        CHECK(other->stats.swap.reads > reads || world > 2); /* larger parts come in more pieces */
        PARAMS(", \"max_in_cpu\": 0, \"buffer_count\": 0");
        run(&s, other);
        CHECK_HAS(other->message, "zero_optimization.offload_param.buffer_count: 0");
        PARAMS(", \"max_in_cpu\": 0, \"buffer_size\": 0");
        run(&s, other);
        CHECK_HAS(other->message, "zero_optimization.offload_param.buffer_size: 0");
    }
}

/* The same from all sides at once: parameters, gradients and states on disk, hardly anything in memory. */
static void everything(void) {
    static const char *const precisions[] = {"fp32", "bf16", "fp16"};
    for (size_t k = 0; k < 3; k++)
        for (int world = 1; world <= 3; world += 2)
            for (int invariant = 0; invariant < (k == 0 && world == 1 ? 2 : 1); invariant++) {
                char name[128];
                snprintf(name, sizeof name, "all on disk: %s world %d invariant %d", precisions[k], world, invariant);
                TEST_NAMED(name) {
                    setting s = setting_of(world, 3, 5, 3, precisions[k]);
                    s.top = invariant ? ", \"ds\": {\"world_invariant\": true}" : NULL;
                    run(&s, plain);
                    s.top = invariant ? ", \"aio\": {\"block_size\": 4096, \"intra_op_parallelism\": 2}, \"ds\": "
                                        "{\"world_invariant\": true}"
                                      : ", \"aio\": {\"block_size\": 4096, \"thread_count\": 2}";
                    snprintf(zero, sizeof zero,
                             ", \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 1024, "
                             "\"reduce_bucket_size\": 3000, \"stage3_max_live_parameters\": 4000, "
                             "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"%s\", \"pipeline_read\": "
                             "true, \"pipeline_write\": true, \"fast_init\": true, \"ratio\": 0.8}, "
                             "\"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"%s\", \"max_in_cpu\": 5000, "
                             "\"buffer_count\": 2, \"buffer_size\": 1500}",
                             folder(), folder());
                    s.zero = zero;
                    ran(&s, out);
                    CHECK_EQ(out->plan.bytes[DS_ZERO_GRADS][DS_ZERO_HOST], 0);
                    CHECK(out->plan.bytes[DS_ZERO_GRADS][DS_ZERO_DISK] > 0);
                }
            }
    TEST(values of the model come to the disk of every rank whether at once or not ) {
        for (size_t k = 0; k < 2; k++)
            for (int fast = 0; fast < 2; fast++) {
                setting s = setting_of(2, 3, 1, 2, precisions[k]);
                s.data = 1;
                run(&s, plain); /* in bf16 masters then begin with rounded values */
                snprintf(
                    zero, sizeof zero,
                    ", \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 2048, \"offload_optimizer\": "
                    "{\"device\": \"nvme\", \"nvme_path\": \"%s\", \"fast_init\": %s}, \"offload_param\": "
                    "{\"device\": \"nvme\", \"nvme_path\": \"%s\", \"max_in_cpu\": 0}",
                    folder(), fast ? "true" : "false", folder());
                s.zero = zero;
                ran(&s, out);
            }
    }
    TEST(fast_init of what stays in memory changes nothing) {
        setting s = setting_of(2, 2, 1, 2, "bf16");
        run(&s, plain);
        s.zero = ", \"offload_optimizer\": {\"device\": \"cpu\"}";
        ran(&s, out);
        s.zero = ", \"offload_optimizer\": {\"device\": \"cpu\", \"fast_init\": true}";
        ran(&s, other);
        CHECK_EQ(memcmp(&other->plan, &out->plan, sizeof out->plan), 0);
    }
    TEST(two folders have two files whose traffic is counted together) {
        setting s = setting_of(2, 3, 2, 2, "bf16");
        run(&s, plain);
        for (int two = 0; two < 2; two++) {
            snprintf(zero, sizeof zero,
                     ", \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 2048, \"offload_optimizer\": "
                     "{\"device\": \"nvme\", \"nvme_path\": \"%s\"}, \"offload_param\": {\"device\": \"nvme\", "
                     "\"nvme_path\": \"%s\", \"max_in_cpu\": 0}",
                     two ? "build" : folder(), folder());
            s.zero = zero;
            ran(&s, two ? other : out);
        }
        CHECK_EQ(other->stats.swap.bytes_read, out->stats.swap.bytes_read);
        CHECK_EQ(other->stats.swap.bytes_written, out->stats.swap.bytes_written);
        CHECK_EQ(other->stats.swap.file_bytes, out->stats.swap.file_bytes);
        CHECK(host(other, DS_ZERO_BUCKETS) > host(out, DS_ZERO_BUCKETS)); /* tables of a second store */
    }
    TEST(cpu_offload and its older sisters) {
        setting s = setting_of(2, 3, 1, 2, "bf16");
        run(&s, plain);
        s.zero = ", \"cpu_offload\": true, \"cpu_offload_param\": true, \"cpu_offload_use_pin_memory\": true";
        ran(&s, out);
        CHECK(host(out, DS_ZERO_STATES) > 0 && out->plan.bytes[DS_ZERO_STATES][DS_ZERO_DEVICE] == 0);
    }
}

/* ---- an update that goes on after its step ---- */

typedef struct pair {
    ds_zero *z[2]; /* an engine that ends the update in the step, and one that need not */
    ds_config *config[2];
    void *slots[2][N_PARAMS];
} pair;

static const char *const late_pipes[2] = {", \"pipeline_read\": true",
                                          ", \"pipeline_read\": true, \"pipeline_write\": true"};

static bool pair_open(pair *q, setting s, int threshold) {
    memset(q, 0, sizeof *q);
    for (int k = 0; k < 2; k++) {
        ds_error e = {DS_OK, ""};
        ds_zero_param params[N_PARAMS];
        ds_zero_desc d;
        memset(&d, 0, sizeof d);
        snprintf(
            zero, sizeof zero,
            ", \"stage3_param_persistence_threshold\": %d, \"sub_group_size\": 1024, \"reduce_bucket_size\": 1000, "
            "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"%s\"%s}, "
            "\"stage3_gather_16bit_weights_on_model_save\": true",
            threshold, folder(), late_pipes[k]);
        s.zero = zero;
        q->config[k] = config_of(&s, &e);
        if (!CHECK(q->config[k] != NULL)) return printf("  %s\n", e.message), false;
        describe(params, q->slots[k], ds_zero_model_dtype(q->config[k]), &s);
        d.config = q->config[k];
        d.params = params;
        d.n_params = N_PARAMS;
        if (!CHECK(ds_zero_create(&d, &q->z[k], &e) == DS_OK)) return printf("  %s\n", e.message), false;
    }
    return true;
}

static void pair_close(pair *q) {
    for (int k = 0; k < 2; k++) {
        ds_zero_destroy(q->z[k]);
        ds_config_free(q->config[k]);
    }
}

/* A step whose pass fetches nothing, so that its gradients are what an update that is left waits for. */
static void pair_blind(pair *q, int k, uint64_t seed, bool finite) {
    static float gradient[129 * 64];
    ds_zero_report report;
    CHECK(ds_zero_begin(q->z[k], DS_ZERO_TRAIN) == DS_OK);
    for (size_t i = N_PARAMS; i-- > 0;) {
        for (size_t e = 0; e < numel(i); e++) gradient[e] = finite ? (float)(test_uniform(&seed) - 0.5) : INFINITY;
        CHECK(ds_zero_grad(q->z[k], i, gradient, NULL) == DS_OK);
    }
    CHECK(ds_zero_end(q->z[k]) == DS_OK);
    CHECK(ds_zero_step(q->z[k], &report) == DS_OK && report.skipped == !finite);
}

/* A step; returns what its pass showed at the fetches, folded. */
static uint64_t pair_step(pair *q, int k, ds_zero_pass pass, uint64_t seed) {
    static float gradient[129 * 64];
    uint64_t seen = 1469598103934665603u;
    ds_zero *z = q->z[k];
    CHECK(ds_zero_begin(z, pass) == DS_OK);
    for (size_t i = 0; i < N_PARAMS; i++) {
        CHECK(ds_zero_fetch(z, i, NULL) == DS_OK);
        for (size_t e = 0; e < numel(i); e++) {
            uint32_t bits;
            memcpy(&bits, (const float *)q->slots[k][i] + e, sizeof bits);
            seen = (seen ^ bits) * 1099511628211u;
        }
        CHECK(ds_zero_release(z, i) == DS_OK);
    }
    for (size_t i = N_PARAMS; i-- > 0 && pass == DS_ZERO_TRAIN;) {
        for (size_t e = 0; e < numel(i); e++) gradient[e] = (float)(test_uniform(&seed) - 0.5);
        CHECK(ds_zero_grad(z, i, gradient, NULL) == DS_OK);
    }
    CHECK(ds_zero_end(z) == DS_OK);
    if (pass == DS_ZERO_TRAIN) CHECK(ds_zero_step(z, NULL) == DS_OK);
    return seen;
}

static bool same_files(const char *a, const char *b) {
    FILE *f[2] = {fopen(a, "rb"), fopen(b, "rb")};
    int x = 0, y = 0;
    while (f[0] && f[1] && x == y && x != EOF) x = fgetc(f[0]), y = fgetc(f[1]);
    for (int k = 0; k < 2; k++)
        if (f[k]) fclose(f[k]);
    return f[0] && f[1] && x == y;
}

/* All values and states of both, which the reads complete. */
static bool pair_same(pair *q) {
    static float a[129 * 64], b[129 * 64];
    bool same = true;
    for (size_t i = N_PARAMS; i-- > 0;)
        for (int state = -1; state < 2; state++) {
            CHECK(ds_zero_read(q->z[0], i, state, 0, numel(i), a) == DS_OK);
            CHECK(ds_zero_read(q->z[1], i, state, 0, numel(i), b) == DS_OK);
            same = same && memcmp(a, b, numel(i) * sizeof *a) == 0;
        }
    return same;
}

static void left_over(int threshold) {
    /* the rate changes from step to step: what is updated late takes that of its own step */
    setting s = setting_of(1, 3, 1, 1, "fp32");
    char name[128], path[2][300], file[2][320];
    pair q;
    s.top = ", \"gradient_clipping\": 0.5, \"scheduler\": {\"type\": \"WarmupLR\", \"params\": "
            "{\"warmup_num_steps\": 10, \"warmup_type\": \"linear\"}}";
    for (int k = 0; k < 2; k++)
        snprintf(path[k], sizeof path[k], "%s/ds_zero_late_%ld_%d", folder(), (long)getpid(), k),
            snprintf(file[k], sizeof file[k], "%.299s/model", path[k]);
    snprintf(name, sizeof name, "a step ends before its update, each call finds it done: threshold %d", threshold);
    TEST_NAMED(name) {
        char command[700];
        if (!pair_open(&q, s, threshold)) break;
        for (uint64_t step = 0; step < 12; step++) {
            ds_zero_stats left, all;
            uint64_t seen[2];
            for (int k = 0; k < 2; k++) seen[k] = pair_step(&q, k, DS_ZERO_TRAIN, step + 1);
            CHECK_EQ(seen[0], seen[1]);
            ds_zero_get_stats(q.z[1], &left);
            for (int k = 0; k < 2; k++) { /* one call right after the step */
                if (step % 6 == 1) CHECK(ds_zero_save(q.z[k], path[k], "t", NULL, 0) == DS_OK);
                if (step % 6 == 2) CHECK(ds_zero_load(q.z[k], path[0], "t", NULL, NULL) == DS_OK);
                if (step % 6 == 3) seen[k] = pair_step(&q, k, DS_ZERO_EVALUATE, 0);
                if (step % 6 == 4) CHECK(ds_zero_save_16bit_model(q.z[k], file[k]) == DS_OK);
            }
            CHECK_EQ(seen[0], seen[1]);
            if (step % 6 == 0) continue; /* the next pass finds it */
            CHECK(pair_same(&q));
            ds_zero_get_stats(q.z[1], &all);
            if (step % 6 == 5) /* two states of 16 sub-groups, of which 4 are of whole tensors */
                CHECK(all.swap.bytes_written - left.swap.bytes_written >= 10 * 2 * 1024 * sizeof(float));
        }
        CHECK(same_files(file[0], file[1]));
        pair_close(&q);
        snprintf(command, sizeof command, "rm -r %s %s", path[0], path[1]);
        CHECK(system(command) == 0);
    }
    snprintf(name, sizeof name, "an update is left and the next pass fetches nothing: threshold %d", threshold);
    TEST_NAMED(name) {
        if (!pair_open(&q, s, threshold)) break;
        for (uint64_t step = 1; step < 4; step++)
            for (int k = 0; k < 2; k++) pair_blind(&q, k, step, true);
        CHECK(pair_same(&q));
        pair_close(&q);
    }
    snprintf(name, sizeof name, "a load after a skipped step, whose states are in memory: threshold %d", threshold);
    TEST_NAMED(name) {
        char command[400];
        if (!pair_open(&q, s, threshold)) break;
        for (int k = 0; k < 2; k++) {
            pair_blind(&q, k, 1, true);
            CHECK(ds_zero_save(q.z[k], path[k], "t", NULL, 0) == DS_OK);
            pair_blind(&q, k, 2, true);
        }
        pair_blind(&q, 1, 3, false); /* leaves what was read ahead of it */
        for (int k = 0; k < 2; k++) {
            CHECK(ds_zero_load(q.z[k], path[0], "t", NULL, NULL) == DS_OK);
            pair_blind(&q, k, 4, true);
        }
        CHECK(pair_same(&q));
        pair_close(&q);
        snprintf(command, sizeof command, "rm -r %.190s %.190s", path[0], path[1]);
        CHECK(system(command) == 0);
    }
    snprintf(name, sizeof name, "an engine goes while an update is left: threshold %d", threshold);
    TEST_NAMED(name) {
        if (!pair_open(&q, s, threshold)) break;
        for (int k = 0; k < 2; k++) pair_step(&q, k, DS_ZERO_TRAIN, 1);
        pair_close(&q);
    }
}

/* ---- tensors larger than a lane, between small ones ---- */

static void big_step(ds_zero *z, size_t n, const size_t *sizes, size_t stride, int step) {
    static float gradient[700000];
    for (int micro = 0; micro < 2; micro++) {
        CHECK(ds_zero_begin(z, DS_ZERO_TRAIN) == DS_OK);
        for (size_t k = n; k-- > 0;) {
            size_t i = k * stride % n;
            uint64_t seed = (uint64_t)(step * 100 + micro * 10) + i;
            for (size_t e = 0; e < sizes[i]; e++) gradient[e] = (float)(test_uniform(&seed) - 0.5);
            CHECK(ds_zero_grad(z, i, gradient, NULL) == DS_OK);
        }
        CHECK(ds_zero_end(z) == DS_OK);
    }
    CHECK(ds_zero_step(z, NULL) == DS_OK);
}

enum { MANY = 48 };

/* The engine without a disk, and with one; two steps of both, with every stride-th gradient in turn, come to the same
   states. */
static void on_disk_as_off(size_t n, const size_t *sizes, size_t stride, const char *more) {
    static float value[2][700000];
    void *slots[MANY];
    ds_zero *z[2] = {NULL, NULL};
    ds_config *config[2] = {NULL, NULL};
    bool same = true;
    for (int k = 0; k < 2; k++) {
        setting s = setting_of(1, 3, 2, 1, "fp32");
        char called[MANY][4];
        ds_zero_param params[MANY];
        ds_zero_desc d;
        ds_error e = {DS_OK, ""};
        memset(params, 0, sizeof params);
        memset(&d, 0, sizeof d);
        snprintf(zero, sizeof zero,
                 ", \"stage3_param_persistence_threshold\": 0, %s, \"offload_optimizer\": "
                 "{\"device\": \"nvme\", \"nvme_path\": \"%s\", \"pipeline_read\": true, \"pipeline_write\": true}",
                 more, folder());
        if (k) s.zero = zero;
        for (size_t i = 0; i < n; i++) {
            snprintf(called[i], sizeof called[i], "t%u", (unsigned)i % 100u);
            params[i].name = called[i];
            params[i].dims = 1;
            params[i].shape[0] = sizes[i];
            params[i].slot = &slots[i];
        }
        d.config = config[k] = config_of(&s, &e);
        d.params = params;
        d.n_params = n;
        if (!CHECK(config[k] && ds_zero_create(&d, &z[k], &e) == DS_OK)) printf("  %s\n", e.message);
    }
    for (int step = 0; step < 2 && z[0] && z[1]; step++)
        for (int k = 0; k < 2; k++) big_step(z[k], n, sizes, stride, step);
    for (size_t i = 0; i < n && z[0] && z[1]; i++) {
        for (int k = 0; k < 2; k++) CHECK(ds_zero_read(z[k], i, 0, 0, sizes[i], value[k]) == DS_OK);
        same = same && memcmp(value[0], value[1], sizes[i] * sizeof(float)) == 0;
    }
    CHECK(same);
    for (int k = 0; k < 2; k++) ds_zero_destroy(z[k]), ds_config_free(config[k]);
}

static void lanes(void) {
    static const size_t sizes[5] = {5000, 700000, 3000, 1, 280000};
    TEST(sums of large and small tensors on disk) on_disk_as_off(5, sizes, 1, "\"sub_group_size\": 10240");
    TEST(more sums on disk than lanes) { /* each in a bucket of its own, so that none move together */
        size_t many[MANY];
        for (size_t i = 0; i < MANY; i++) many[i] = 1500;
        on_disk_as_off(MANY, many, 1, "\"sub_group_size\": 2048, \"reduce_bucket_size\": 1500");
    }
    TEST(more sums on disk than lanes in one bucket) { /* which are no neighbours */
        size_t many[MANY];
        for (size_t i = 0; i < MANY; i++) many[i] = 1500;
        on_disk_as_off(MANY, many, 5, "\"sub_group_size\": 2048");
    }
    TEST(more neighbours in a bucket than a lane has room for) { /* and what follows is in the next lane */
        size_t many[MANY];
        for (size_t i = 0; i < MANY; i++) many[i] = 3000;
        on_disk_as_off(MANY, many, 1, "\"sub_group_size\": 2048, \"reduce_bucket_size\": 72000");
    }
}

/* ---- what a step moves, and when ---- */

/* Momentum by grain and LAMB's kind of norm, of the client: the rate is read while it updates, the gradient in both passes. */
static ds_status client_update(const ds_optim_pass *pass, const float *grad, float *master, float *const *state,
                               size_t count) {
    float rate = (float)(pass->params->lr * (pass->norm[1] > 0 ? pass->norm[0] / pass->norm[1] : 1.0));
    for (size_t i = 0; i < count; i++) {
        state[0][i] = 0.5f * (state[0][i] + grad[i]);
        master[i] -= rate * (state[0][i] + grad[i] * (float)pass->step);
    }
    return DS_OK;
}
static void client_measure(const ds_optim_pass *pass, const float *grad, const float *master, float *const *state,
                           size_t count, double sums[2]) {
    (void)pass, (void)state;
    sums[0] = sums[1] = 0.0;
    for (size_t i = 0; i < count; i++) {
        sums[0] += (double)master[i] * (double)master[i];
        sums[1] += (double)grad[i] * (double)grad[i];
    }
}
static const ds_optim_table clients[2] = {
    {"Own", DS_OPTIM_BY_GRAIN, 1, {"m", NULL, NULL}, NULL, client_update, NULL, NULL, false},
    {"OwnByNorm", DS_OPTIM_BY_NORM, 1, {"m", NULL, NULL}, client_measure, client_update, NULL, NULL, false}};

typedef struct traffic {
    uint64_t read, written;
} traffic;

static traffic moved(const ds_zero *z) {
    ds_zero_stats s;
    traffic t;
    ds_zero_get_stats(z, &s);
    t.read = s.swap.bytes_read;
    t.written = s.swap.bytes_written;
    return t;
}

enum { GRAINS = 16, GRAIN_BYTES = 4096, MICROS = 4 }; /* of the small model in fp32 */

/* Of a step: up to the first gradient of each micro-batch and to its end, in all, and what a read after it finds left. */
typedef struct step_moves {
    traffic first[MICROS], micro[MICROS], all, left;
} step_moves;

static traffic since(const ds_zero *z, traffic before) {
    traffic t = moved(z);
    t.read -= before.read;
    t.written -= before.written;
    return t;
}

/* The last one of some steps. */
static bool move(const setting *s, int steps, step_moves *m) {
    static float gradients[129 * 64];
    void *slots[N_PARAMS];
    ds_error e = {DS_OK, ""};
    ds_config *c = config_of(s, &e);
    ds_zero_param params[N_PARAMS];
    ds_zero_desc d;
    ds_zero *z = NULL;
    traffic before = {0, 0};
    memset(&d, 0, sizeof d);
    if (!CHECK(c != NULL)) return printf("  %s\n", e.message), false;
    describe(params, slots, DS_F32, s);
    d.config = c;
    d.params = params;
    d.n_params = N_PARAMS;
    d.optimizer = s->client;
    if (!CHECK(ds_zero_create(&d, &z, &e) == DS_OK)) printf("  %s\n", e.message);
    for (int step = 0; step < steps && z; step++) {
        before = moved(z);
        for (int k = 0; k < MICROS; k++) {
            CHECK(ds_zero_begin(z, DS_ZERO_TRAIN) == DS_OK);
            for (size_t i = N_PARAMS; i-- > 0;) {
                for (size_t n = 0; n < numel(i); n++) gradients[n] = gradient(i, n, 0, k, step, 0);
                CHECK(ds_zero_grad(z, i, gradients, NULL) == DS_OK);
                if (i == N_PARAMS - 1) m->first[k] = since(z, before);
            }
            CHECK(ds_zero_end(z) == DS_OK);
            m->micro[k] = since(z, before);
        }
        CHECK(ds_zero_step(z, NULL) == DS_OK);
    }
    if (z) {
        float one;
        m->all = since(z, before);
        before = moved(z);
        CHECK(ds_zero_read(z, 0, -1, 0, 1, &one) == DS_OK); /* the value, which is in memory */
        m->left = since(z, before);
    }
    ds_zero_destroy(z);
    ds_config_free(c);
    return z != NULL;
}

static const char *disk_with(const char *pipes) {
    static char text[600];
    snprintf(text, sizeof text,
             ", \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 1024, \"reduce_bucket_size\": 1000, "
             "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"%s\"%s}",
             folder(), pipes);
    return text;
}

static void movement(void) {
    static const char *const pipes[3] = {"", ", \"pipeline_read\": true",
                                         ", \"pipeline_read\": true, \"pipeline_write\": true"};
    TEST(bytes that a step moves) {
        for (int k = 0; k < 3; k++)
            for (int how = 0; how < 3; how++) { /* plain, with world_invariant, LAMB */
                setting s = setting_of(1, 3, MICROS, 1, "fp32");
                uint64_t kept = how == 2 ? 0 : 1 + (uint64_t)k, sums = GRAINS - kept;
                uint64_t passes = how == 2 ? 2 : 1, states = passes * 2 * GRAINS, reads, writes;
                step_moves m;
                s.zero = disk_with(pipes[k]);
                s.top = how == 1 ? ", \"ds\": {\"world_invariant\": true}" : NULL;
                s.optimizer = how == 2 ? "Lamb" : NULL;
                if (!move(&s, 3, &m)) break;
                reads = states + passes * sums + (MICROS - 1) * (how == 1 ? GRAINS : sums);
                writes = states + sums + (MICROS - 1) * (how == 1 ? GRAINS : sums);
                CHECK_EQ(m.all.read, reads * GRAIN_BYTES);
                CHECK_EQ(m.all.written, writes * GRAIN_BYTES);
            }
    }
    TEST(pipeline_read fills all sets in the last backward pass) {
        for (int k = 0; k < 3; k++)
            for (int last = 0; last < 2; last++) {
                setting s = setting_of(1, 3, MICROS, 1, "fp32");
                step_moves m;
                uint64_t sets = 1 + (uint64_t)k, before = last ? MICROS - 1 : MICROS - 2;
                s.zero = disk_with(pipes[k]);
                if (!move(&s, 1, &m)) break;
                CHECK_EQ(m.micro[before].read, (before * (GRAINS - sets) + (k && last ? 2 * sets : 0)) * GRAIN_BYTES);
            }
    }
    TEST(the first gradient starts to read what is added to) {
        setting s = setting_of(1, 3, MICROS, 1, "fp32");
        step_moves m;
        s.zero = disk_with("");
        if (!move(&s, 1, &m)) break;
        for (uint64_t k = 0; k < MICROS; k++) { /* eight lanes hold all of this model's sums */
            CHECK_EQ(m.first[k].read, k * (GRAINS - 1) * GRAIN_BYTES);
            CHECK_EQ(m.micro[k].read, m.first[k].read);
        }
    }
    TEST(who updates in the step) {
        static const char *const types[] = {"AdamW", "Lamb", "Muon", NULL, NULL};
        for (int k = 0; k < 5; k++)
            for (int late = 1; late < 3; late++) {
                setting s = setting_of(1, 3, MICROS, 1, "fp32");
                step_moves m;
                s.zero = disk_with(pipes[late]);
                s.optimizer = types[k];
                s.client = types[k] ? NULL : &clients[k - 3];
                if (!move(&s, 2, &m)) break;
                CHECK(k == 0 && late == 2 ? m.left.written >= GRAINS * GRAIN_BYTES : m.left.written == 0);
                CHECK(k == 0 && late == 2 ? m.left.read > 0 : m.left.read == 0);
            }
    }
    for (int k = 0; k < 2; k++)
        for (int world = 1; world < 4; world++) {
            char name[100];
            snprintf(name, sizeof name, "a client's optimizer on disk, %s: world %d", k ? "by norm" : "by grain",
                     world);
            TEST_NAMED(name) {
                setting s = setting_of(world, 3, 2, 4, "bf16");
                s.client = &clients[k];
                s.top = ", \"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_num_steps\": 10, "
                        "\"warmup_type\": \"linear\"}}";
                run(&s, plain);
                CHECK(plain->message[0] == 0);
                for (int p = 0; p < 3; p++) {
                    s.zero = disk_with(pipes[p]);
                    ran(&s, out);
                }
            }
        }
}

/* ---- micro-batches that give few gradients or none ---- */

/* Of the first n parameters. */
static ds_zero *sparse_engine(const setting *s, size_t n, ds_config **config, void **slots) {
    ds_error e = {DS_OK, ""};
    ds_zero_param params[N_PARAMS];
    ds_zero_desc d;
    ds_zero *z = NULL;
    memset(&d, 0, sizeof d);
    if (!CHECK((*config = config_of(s, &e)) != NULL)) return printf("  %s\n", e.message), NULL;
    describe(params, slots, DS_F32, s);
    d.config = *config;
    d.params = params;
    d.n_params = n;
    if (!CHECK(ds_zero_create(&d, &z, &e) == DS_OK)) printf("  %s\n", e.message);
    return z;
}

/* Every set of two micro-batches' gradients in turn, most of them empty; then all, so that all values move. */
static void sparse_step(ds_zero *z, size_t n, unsigned given) {
    static float gradients[129 * 64];
    for (int micro = 0; micro < 2; micro++) {
        CHECK(ds_zero_begin(z, DS_ZERO_TRAIN) == DS_OK);
        for (size_t i = n; i-- > 0;) {
            if (!(given >> (micro * 4 + (int)i % 4) & 1u)) continue;
            for (size_t e = 0; e < numel(i); e++) gradients[e] = gradient(i, e, 0, micro, (int)given, 0);
            CHECK(ds_zero_grad(z, i, gradients, NULL) == DS_OK);
        }
        CHECK(ds_zero_end(z) == DS_OK);
    }
    CHECK(ds_zero_step(z, NULL) == DS_OK);
}

/* Bytes written by the end of each fetch of a pass that follows a step and a pass like it: of "one", which is frozen, "bias",
   "grain" and "matrix". No tensor stays whole. */
static bool fetch_all(const char *zeros, uint64_t written[4]) {
    setting s = setting_of(1, 3, 2, 1, "fp32");
    void *slots[N_PARAMS];
    ds_config *config = NULL;
    ds_zero *z;
    s.frozen = 3;
    s.zero = zeros;
    z = sparse_engine(&s, 4, &config, slots);
    for (int pass = 0; pass < 2 && z; pass++) {
        traffic before;
        sparse_step(z, 4, 0x77);
        before = moved(z);
        CHECK(ds_zero_begin(z, DS_ZERO_EVALUATE) == DS_OK);
        for (size_t k = 0; k < 4; k++) {
            size_t i = (k + 3) % 4;
            CHECK(ds_zero_fetch(z, i, NULL) == DS_OK);
            written[k] = since(z, before).written;
            CHECK(ds_zero_release(z, i) == DS_OK);
        }
        CHECK(ds_zero_end(z) == DS_OK);
    }
    ds_zero_destroy(z);
    ds_config_free(config);
    return z != NULL;
}

static void in_time(void) {
    uint64_t written[4], ahead[4];
    char text[800];
    TEST(a fetch updates what it needs of an update that was left) {
        static const uint64_t grains[4] = {0, 1, 1, 3};
        uint64_t sum = 0;
        if (!fetch_all(disk_with(late_pipes[1]), written)) break;
        for (size_t k = 0; k < 4; k++) CHECK_EQ(written[k], 2 * (sum += grains[k]) * GRAIN_BYTES);
    }
    TEST(and of the next tensor where that comes from the disk) {
        for (int prefetch = 0; prefetch < 2; prefetch++) {
            snprintf(
                text, sizeof text,
                "%s, \"stage3_prefetch_bucket_size\": %d, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": "
                "\"%s\", \"max_in_cpu\": 0}",
                disk_with(late_pipes[1]), prefetch ? 20000 : 0, folder());
            if (!fetch_all(text, prefetch ? ahead : written)) break;
        }
        CHECK(written[0] == 0 && written[1] > 0 && written[2] > written[1] && written[3] > written[2]);
        for (size_t k = 0; k < 3; k++) CHECK_EQ(ahead[k], written[k + 1]);
    }
}

static void missing(void) {
    static const unsigned masks[] = {0xFF, 0x0F, 0xF0, 0x00, 0x00, 0x21, 0x40, 0x08, 0xFF};
    static float value[2][129 * 64];
    TEST(gradients that did not come are zeros on disk too) {
        for (int pipe = 0; pipe < 2; pipe++) {
            ds_zero *z[2];
            ds_config *config[2] = {NULL, NULL};
            void *slots[2][N_PARAMS];
            for (int k = 0; k < 2; k++) {
                setting s = setting_of(1, 3, 2, 1, "fp32");
                s.zero = k ? disk_with(pipe ? late_pipes[1] : "") : ", \"stage3_param_persistence_threshold\": 0";
                z[k] = sparse_engine(&s, N_PARAMS, &config[k], slots[k]);
            }
            for (size_t m = 0; m < sizeof masks / sizeof masks[0] && z[0] && z[1]; m++) {
                for (int k = 0; k < 2; k++) sparse_step(z[k], N_PARAMS, masks[m]);
                if (m != 3 && m != 8) continue; /* in between an update is left to passes that give nothing */
                for (size_t i = 0; i < N_PARAMS; i++)
                    for (int state = -1; state < 2; state++) {
                        for (int k = 0; k < 2; k++) CHECK(ds_zero_read(z[k], i, state, 0, numel(i), value[k]) == DS_OK);
                        CHECK_EQ(memcmp(value[0], value[1], numel(i) * sizeof(float)), 0);
                    }
            }
            for (int k = 0; k < 2; k++) ds_zero_destroy(z[k]), ds_config_free(config[k]);
        }
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    for (int world = 1; world <= 3; world += 2) {
        states("bf16", world);
        states("fp32", world);
        parameters("bf16", world);
        parameters("fp32", world);
    }
    everything();
    left_over(0);
    left_over(2000);
    lanes();
    movement();
    in_time();
    missing();
    return test_end();
}
