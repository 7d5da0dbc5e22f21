/* Optimizers that need more than an element at a time, under the engine: LAMB's norms, Muon's matrices, the 1-bit family's
   own averages. */
#include "ds_zero_run.h"

static outcome plain[MAX_WORLD], out[MAX_WORLD];

static bool ran(const setting *s, outcome *o) {
    bool good = true;
    run(s, o);
    for (int r = 0; r < s->world; r++)
        if (!CHECK(o[r].message[0] == 0)) {
            printf("  rank %d: %s\n", r, o[r].message);
            good = false;
        }
    return good;
}

static const char *const zeros[] = {
    ", \"stage3_param_persistence_threshold\": 0",
    ", \"stage3_param_persistence_threshold\": 4000, \"reduce_bucket_size\": 4000, \"allgather_bucket_size\": 2000, "
    "\"sub_group_size\": 2048, \"overlap_comm\": true",
    ", \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 1024, \"offload_optimizer\": {\"device\": "
    "\"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": true, \"pipeline_write\": true}, \"offload_param\": "
    "{\"device\": "
    "\"nvme\", \"nvme_path\": \"build\"}",
    ", \"stage3_param_persistence_threshold\": 100, \"sub_group_size\": 3000, \"offload_optimizer\": {\"device\": "
    "\"cpu\"}, "
    "\"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"build\"}",
};

/* The same bits at every stage, for every number of ranks, wherever states are. */
static void whole(const char *optimizer, const char *precision) {
    for (int world = 1; world < 5; world++)
        for (int stage = 0; stage < 4; stage++) {
            char name[96];
            snprintf(name, sizeof name, "%s: %s world %d stage %d", optimizer, precision, world, stage);
            TEST_NAMED(name) {
                setting s = setting_of(world, stage, 2, 3, precision);
                s.tied = stage & 1;
                s.optimizer = optimizer;
                reference(&s, plain);
                for (size_t k = 0; k < (stage == 3 ? 4u : 2u); k++) {
                    s.zero = zeros[k];
                    s.shuffled = k == 1;
                    ran(&s, out);
                    for (int r = 0; r < world; r++) {
                        CHECK(same(&out[r], plain));
                        CHECK(memcmp(&out[r].plan, &out[r].stats.peak, sizeof(ds_zero_bytes)) == 0 || k == 1);
                    }
                }
            }
        }
}

/* Muon's matrices are spread over the ranks, not kept by all. */
static void balance(void) {
    TEST(Muon : each matrix has one owner) {
        setting s = setting_of(3, 1, 1, 1, "fp32");
        s.optimizer = "Muon";
        size_t total = 0, most = 0, all = 0;
        for (size_t i = 0; i < N_PARAMS; i++) all += (numel(i) + DS_GRAIN - 1) / DS_GRAIN * DS_GRAIN;
        ran(&s, out);
        for (int r = 0; r < 3; r++) {
            size_t states = out[r].plan.bytes[DS_ZERO_STATES][DS_ZERO_DEVICE];
            total += states;
            most = states > most ? states : most;
        }
        CHECK_EQ(total, all * 2 * sizeof(float)); /* two arrays, of which Muon's matrices use one */
        CHECK(most < total * 7 / 10);             /* the largest matrix is 8,256 of 13,317 elements */
    }
}

/* The 1-bit optimizers: at one rank they are plain; on several each compressed step sends bits instead of gradients, the
   ranks agree, and resuming loses nothing. */
static void one_bit(const char *optimizer, const char *hyper) {
    char name[96];
    snprintf(name, sizeof name, "%s: one bit per element after the warm-up", optimizer);
    TEST_NAMED(name) {
        char folder[] = "/tmp/ds_zero_XXXXXX", command[64];
        setting s = setting_of(4, 0, 2, 4, "fp32");
        s.optimizer = optimizer;
        s.hyper = hyper;
        uint64_t warm, cold;
        double norm;
        CHECK(mkdtemp(folder) != NULL);
        ran(&s, plain);
        CHECK_EQ(memcmp(&plain[0].plan, &plain[0].stats.peak, sizeof(ds_zero_bytes)), 0);
        warm = plain->stats.comm.bytes_sent[DS_COMM_ALL_REDUCE];
        s.steps = 8;
        ran(&s, plain);
        cold = plain->stats.comm.bytes_sent[DS_COMM_ALL_REDUCE];
        CHECK_EQ(cold, warm); /* no gradient was reduced in the last four steps */
        CHECK(plain->stats.comm.bytes_sent[DS_COMM_ALL_TO_ALL] > 0);
        CHECK(plain->stats.comm.bytes_sent[DS_COMM_ALL_TO_ALL] < warm / 8);
        norm = plain->norm;
        CHECK(norm > 0 && plain[3].norm == norm);
        for (int r = 1; r < 4; r++) CHECK(same(&plain[r], &plain[0]) && plain[r].skipped == 0);
        s.steps = 6;
        s.save = folder;
        ran(&s, out);
        s.load = folder;
        s.first = 6;
        s.steps = 2;
        s.save = NULL;
        ran(&s, out);
        for (int r = 0; r < 4; r++) CHECK(same(&out[r], &plain[r]));
        s.world = 2; /* the feedback of four ranks is of no use to two: it starts from zero */
        ran(&s, out);
        CHECK(same(&out[0], &out[1]));
        s.world = 1; /* one rank has none, */
        s.save = folder;
        ran(&s, out);
        s.world = 4; /* and four find none in what it saved */
        s.save = NULL;
        ran(&s, out);
        for (int r = 1; r < 4; r++) CHECK(same(&out[r], &out[0]));
        s.load = NULL;
        s.top = ", \"gradient_clipping\": 1.0";
        run(&s, out);
        CHECK_HAS(out->message, "gradient_clipping");
        s.top = NULL;
        s.stage = 2;
        run(&s, out);
        CHECK_HAS(out->message, "it needs zero_optimization.stage 0; got 2");
        snprintf(command, sizeof command, "rm -r %s", folder);
        CHECK(system(command) == 0);
    }
    snprintf(name, sizeof name, "%s: an overflow of one rank's own gradient skips the step of all", optimizer);
    TEST_NAMED(name) {
        setting s = setting_of(2, 0, 1, 6, "fp32");
        s.optimizer = optimizer;
        s.hyper = hyper;
        s.overflow_rank = 1;
        s.overflow_step = 5;
        ran(&s, out);
        CHECK(out[0].skipped == 1 && out[1].skipped == 1 && same(&out[0], &out[1]));
    }
}

static double apart(const outcome *a, const outcome *b) {
    double most = 0.0;
    for (size_t i = 0; i < N_PARAMS; i++)
        for (size_t e = 0; e < numel(i); e++) most = fmax(most, fabs((double)(a->value[i][e] - b->value[i][e])));
    return most;
}

/* 0/1 Adam: the variance and the full average at steps that grow rare, one bit per element at the others. */
static void zero_one(void) {
    TEST(ZeroOneAdam : gradients are reduced at ever fewer steps) {
        setting s = setting_of(4, 0, 2, 12, "fp32");
        uint64_t calls;
        ran(&s, plain);
        calls = plain->stats.comm.calls[DS_COMM_ALL_REDUCE];
        s.optimizer = "ZeroOneAdam";
        s.hyper = ", \"var_freeze_step\": 100, \"var_update_scaler\": 1";
        ran(&s, out);
        CHECK(out->stats.comm.calls[DS_COMM_ALL_REDUCE] < calls * 2 / 3);
        CHECK(out->stats.comm.bytes_sent[DS_COMM_ALL_TO_ALL] > 0);
        for (int r = 1; r < 4; r++) CHECK(same(&out[r], &out[0]));
    }
    TEST(ZeroOneAdam : a save while ranks differ is refused and one after their average resumes) {
        char folder[] = "/tmp/ds_zero_XXXXXX", command[64];
        setting s = setting_of(3, 0, 1, 0, "fp32");
        bool refused = false, saved = false;
        CHECK(mkdtemp(folder) != NULL);
        s.optimizer = "ZeroOneAdam";
        s.hyper = ", \"var_freeze_step\": 2, \"local_step_scaler\": 2, \"local_step_clipper\": 4";
        for (int steps = 3; steps <= 12; steps++) {
            bool alike;
            s.steps = steps;
            ran(&s, plain); /* at stage 0 a read is of the rank's own */
            s.save = folder;
            run(&s, out);
            s.save = NULL;
            alike = out[0].message[0] == 0;
            for (int r = 1; r < 3; r++)
                CHECK(alike == (apart(&plain[r], &plain[0]) < 2e-4)); /* to what undoing local steps rounds */
            for (int r = 1; r < 3; r++) CHECK((out[r].message[0] == 0) == alike);
            refused |= !alike;
            if (!alike) {
                const char *at = strstr(out[0].message, "save after step ");
                CHECK_HAS(out[0].message, "each rank has parameters of its own; save after step ");
                CHECK(at && atoi(at + 16) > steps && atoi(at + 16) <= steps + 4);
                continue;
            }
            saved = true;
            s.steps = steps + 2;
            ran(&s, plain);
            s.load = folder;
            s.first = steps;
            s.steps = 2;
            ran(&s, out);
            for (int r = 0; r < 3; r++) CHECK(same(&out[r], &plain[r]));
            s.load = NULL;
            s.first = 0;
        }
        CHECK(refused && saved);
        snprintf(command, sizeof command, "rm -r %s", folder);
        CHECK(system(command) == 0);
    }
}

/* Two parts of one model, each an engine of one rank, with a group between them. */
typedef struct part_of {
    ds_comm *comm;
    int rank, grouped;
    double norm;
    bool skipped;
    size_t overflow_param;
    char message[600];
} part_of;

static void *run_part(void *arg) {
    part_of *a = (part_of *)arg;
    static const char *const part_names[2][2] = {{"left", "shared"}, {"right", "shared"}};
    setting s = setting_of(1, 2, 1, 1, "fp32");
    ds_error error = {DS_OK, ""};
    ds_zero_param params[2];
    ds_zero_desc d;
    ds_zero *z = NULL;
    float values[2000];
    ds_config *config;
    s.top = ", \"gradient_clipping\": 1.0";
    config = config_of(&s, &error);
    memset(params, 0, sizeof params);
    memset(&d, 0, sizeof d);
    for (int i = 0; i < 2; i++) {
        params[i].name = part_names[a->rank][i];
        params[i].dims = 1;
        params[i].shape[0] = i ? 10 : 2000;
    }
    params[1].replicated = true;
    d.config = config;
    d.params = params;
    d.n_params = 2;
    if (a->grouped) d.model_group = ds_comm_group(a->comm);
    if (ds_zero_create(&d, &z, &error)) snprintf(a->message, sizeof a->message, "%s", error.message);
    for (int step = 0; z && step < 2; step++) {
        ds_zero_report report;
        for (size_t e = 0; e < 2000; e++) values[e] = gradient((size_t)a->rank, e, 0, 0, 0, 0);
        if (step == 1 && a->rank == 1) values[3] = (float)NAN;
        ds_zero_begin(z, DS_ZERO_TRAIN);
        ds_zero_grad(z, 0, values, NULL);
        for (size_t e = 0; e < 10; e++) values[e] = gradient(7, e, 0, 0, 0, 0);
        ds_zero_grad(z, 1, values, NULL);
        ds_zero_end(z);
        if (ds_zero_step(z, &report)) snprintf(a->message, sizeof a->message, "%s", ds_zero_error(z)->message);
        if (step == 0) a->norm = report.grad_norm;
        a->skipped = report.skipped;
        a->overflow_param = report.overflow_param;
    }
    ds_zero_destroy(z);
    ds_comm_destroy(a->comm);
    ds_config_free(config);
    return NULL;
}

static void model_group(void) {
    TEST(norm and overflow span the parts of a model) {
        part_of a[2][2];
        double expected = 0.0, shared = 0.0;
        memset(a, 0, sizeof a);
        for (int grouped = 0; grouped < 2; grouped++) {
            ds_comm *comms[2] = {NULL, NULL};
            ds_comm_desc d;
            pthread_t threads[2];
            memset(&d, 0, sizeof d);
            CHECK(ds_comm_threads_create(&d, 2, comms, NULL) == DS_OK);
            for (int r = 0; r < 2; r++) {
                a[grouped][r].comm = comms[r];
                a[grouped][r].rank = r;
                a[grouped][r].grouped = grouped;
                pthread_create(&threads[r], NULL, run_part, &a[grouped][r]);
            }
            for (int r = 0; r < 2; r++) pthread_join(threads[r], NULL);
            for (int r = 0; r < 2; r++) CHECK(a[grouped][r].message[0] == 0);
        }
        for (size_t e = 0; e < 10; e++) shared += pow((double)gradient(7, e, 0, 0, 0, 0), 2);
        for (int r = 0; r < 2; r++) expected += pow(a[0][r].norm, 2);
        expected = sqrt(expected - shared); /* what both hold counts once */
        CHECK(a[1][0].norm == a[1][1].norm);
        CHECK_NEAR(a[1][0].norm, expected, 1e-12 * expected);
        CHECK(!a[0][0].skipped && a[0][1].skipped);
        CHECK(a[1][0].skipped && a[1][0].overflow_param == SIZE_MAX);
        CHECK(a[1][1].skipped && a[1][1].overflow_param == 0);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    whole("Lamb", "fp32");
    whole("Lamb", "bf16");
    whole("Muon", "fp32");
    whole("Muon", "bf16");
    balance();
    one_bit("OneBitAdam", ", \"freeze_step\": 3");
    one_bit("OneBitLamb", ", \"freeze_step\": 3");
    zero_one();
    model_group();
    return test_end();
}
