/* ZeRO++: what its three keys take off the wire, counted, and what they do to the numbers. */
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

/* Elements that all ranks together receive in `rounds` gathers of every parameter, but for the last one, which the
   backward pass finds as the forward pass left it once there is a trace, `last`. */
static uint64_t gathered(int world, int rounds, int last) {
    size_t sum = 0;
    for (size_t i = 0; i + 1 < N_PARAMS; i++) sum += numel(i) * (size_t)rounds;
    return (sum + numel(N_PARAMS - 1) * (size_t)last) * (size_t)(world - 1);
}

static uint64_t total(const outcome *o, int world, int which, ds_comm_kind kind) {
    uint64_t sum = 0;
    for (int r = 0; r < world; r++)
        sum += (which == 0 ? &o[r].stats.comm : which == 1 ? &o[r].stats.node : &o[r].stats.across)->bytes_sent[kind];
    return sum;
}

static double distance(const outcome *a, const outcome *b) {
    double most = 0.0;
    for (size_t i = 0; i < N_PARAMS; i++)
        for (size_t e = 0; e < numel(i); e++) most = fmax(most, fabs((double)(a->value[i][e] - b->value[i][e])));
    return most;
}

/* Of the averaged gradients (AdamW's exp_avg is a sum of them): the root of the squares of what differs, of those of b. */
static double off(const outcome *a, const outcome *b) {
    double differs = 0, all = 0;
    for (size_t i = 0; i < N_PARAMS; i++)
        for (size_t e = 0; e < numel(i); e++) {
            double g = b->exp_avg[i][e], d = a->exp_avg[i][e] - g;
            differs += d * d, all += g * g;
        }
    return sqrt(differs / all);
}

#define WHOLE ", \"stage3_param_persistence_threshold\": 0, \"stage3_max_reuse_distance\": 0"

static void secondary(const char *precision) {
    char name[96];
    snprintf(name, sizeof name, "zero_hpz_partition_size: %s, the second gather stays inside the node", precision);
    TEST_NAMED(name) {
        setting s = setting_of(4, 3, 2, 2, precision);
        uint64_t before;
        size_t each = strcmp(precision, "fp32") ? 2 : 4;
        s.zero = WHOLE;
        ran(&s, plain);
        before = total(plain, 4, 0, DS_COMM_ALL_GATHER);
        for (int overlap = 0; overlap < 2; overlap++) {
            uint64_t now, inside, saved = (gathered(4, 8, 5) - gathered(4, 2, 2)) * each;
            s.zero = overlap ? WHOLE ", \"zero_hpz_partition_size\": 2, \"overlap_comm\": true"
                             : WHOLE ", \"zero_hpz_partition_size\": 2, \"overlap_comm\": false";
            ran(&s, out);
            for (int r = 0; r < 4; r++) CHECK(same(&out[r], &plain[r]));
            now = total(out, 4, 0, DS_COMM_ALL_GATHER);
            inside = total(out, 4, 1, DS_COMM_ALL_GATHER);
            /* two steps of two micro-batches of two fetches: eight gathers of which one in each step crosses nodes;
               making the two groups is a small exchange too */
            CHECK(before - now <= saved && before - now + 1024 > saved);
            CHECK_EQ(inside, 2 * gathered(2, 6, 3) * each); /* two nodes */
            for (int r = 0; r < 4; r++) {
                CHECK_EQ(memcmp(&out[r].plan, &out[r].stats.peak, sizeof(ds_zero_bytes)), 0);
                CHECK(out[r].plan.bytes[DS_ZERO_PARAMS][DS_ZERO_DEVICE] >=
                      plain[r].plan.bytes[DS_ZERO_PARAMS][DS_ZERO_DEVICE] * 2); /* half the model beside a quarter */
            }
        }
        s.zero = WHOLE ", \"zero_hpz_partition_size\": 4"; /* one node: its copy is what each rank has */
        ran(&s, out);
        CHECK(same(&out[0], &plain[0]));
        CHECK_EQ(total(out, 4, 0, DS_COMM_ALL_GATHER), before);
    }
}

static void quantized_weights(void) {
    TEST(zero_quantized_weights: a byte and a sixty-fourth for each element) {
        setting s = setting_of(4, 3, 1, 3, "fp32");
        uint64_t before, now, norms, groups = 0;
        s.zero = WHOLE;
        ran(&s, plain);
        before = total(plain, 4, 0, DS_COMM_ALL_GATHER);
        norms = before - gathered(4, 6, 4) * 4; /* what is gathered beside parameters */
        s.zero = WHOLE ", \"zero_quantized_weights\": true";
        ran(&s, out);
        now = total(out, 4, 0, DS_COMM_ALL_GATHER);
        for (size_t i = 0; i < N_PARAMS; i++) { /* the longest part in groups of 256 */
            size_t grains = (numel(i) + DS_GRAIN - 1) / DS_GRAIN, longest = (grains + 3) / 4 * DS_GRAIN;
            groups += ((longest < numel(i) ? longest : numel(i)) + 255) / 256 * (i + 1 < N_PARAMS ? 6 : 4);
        }
        CHECK_EQ(now - norms, groups * (256 + 4) * 4 * 3);
        CHECK(distance(&out[0], &plain[0]) < 1e-6); /* the gradients here do not depend on the weights */
        for (int r = 1; r < 4; r++) CHECK(same(&out[r], &out[0]));
        for (int r = 0; r < 4; r++) CHECK_EQ(memcmp(&out[r].plan, &out[r].stats.peak, sizeof(ds_zero_bytes)), 0);
        CHECK(out[0].fetch_error > 0 && out[0].fetch_error <= 2.0 / 254 * 1.01); /* half a step of 1 / 127 */
        CHECK(plain[0].fetch_error == 0);
        s.zero = WHOLE ", \"zero_quantized_weights\": true, \"zero_hpz_partition_size\": 2";
        memcpy(plain, out, sizeof out);
        ran(&s, out);
        CHECK(same(&out[0], &plain[0]) && out[0].fetch_error == plain[0].fetch_error);
    }
}

/* In steps of largest / 7 a value is off by 1 / sqrt(12) of a step in the mean square: 0.041 of the largest. The gradients
   here, a uniform number times a power of two out of twelve, are 0.19 of the largest in the mean square. */
#define ROUNDING (0.0412 / 0.192)

static void quantized_gradients(void) {
    for (int stage = 2; stage < 4; stage++) {
        char name[96];
        snprintf(name, sizeof name, "zero_quantized_gradients: half a byte for each element, stage %d", stage);
        TEST_NAMED(name) {
            setting s = setting_of(4, stage, 2, 3, "fp32");
            uint64_t before, now;
            s.zero = WHOLE;
            ran(&s, plain);
            before = total(plain, 4, 0, DS_COMM_REDUCE_SCATTER);
            for (s.shuffled = 0; s.shuffled < 2; s.shuffled++) {
                s.zero = s.shuffled ? WHOLE ", \"zero_quantized_gradients\": true, \"reduce_bucket_size\": 4000"
                                    : WHOLE ", \"zero_quantized_gradients\": true";
                ran(&s, out);
                now = total(out, 4, 0, DS_COMM_ALL_TO_ALL);
                CHECK_EQ(total(out, 4, 0, DS_COMM_REDUCE_SCATTER), 0);
                /* six micro-batches; 12,974 elements are 16 grains, four for each rank, in groups of 256 with a scale */
                if (!s.shuffled) CHECK_EQ(now, 6u * 3 * 16 * (DS_GRAIN / 256) * (128 + 4));
                CHECK(now < before / 2); /* with small buckets of small tensors parts differ more */
                for (int r = 1; r < 4; r++) CHECK(same(&out[r], &out[0]));
                CHECK_NEAR(out[0].norm, plain[0].norm, 0.1 * plain[0].norm);
                CHECK(!same(&out[0], &plain[0]));
                CHECK(off(&out[0], &plain[0]) < ROUNDING);
                for (int r = 0; r < 4 && !s.shuffled; r++)
                    CHECK_EQ(memcmp(&out[r].plan, &out[r].stats.peak, sizeof(ds_zero_bytes)), 0);
            }
            s.shuffled = 0;
            ran(&s, plain);
            s.zero = WHOLE ", \"zero_quantized_gradients\": true, \"reduce_bucket_size\": 4000, \"overlap_comm\": true";
            ran(&s, out);
            CHECK(same(&out[0], &plain[0])); /* repeatable */
            if (stage == 3) {
                s.zero = WHOLE ", \"zero_quantized_gradients\": true, \"reduce_bucket_size\": 4000, "
                               "\"zero_hpz_partition_size\": 2";
                ran(&s, out);
                CHECK(total(out, 4, 1, DS_COMM_ALL_TO_ALL) > 0 && total(out, 4, 2, DS_COMM_ALL_TO_ALL) > 0);
                CHECK(total(out, 4, 2, DS_COMM_ALL_TO_ALL) < now / 2); /* across nodes: a quarter of the elements */
                CHECK(off(&out[0], &plain[0]) < ROUNDING);
                s.zero = WHOLE ", \"zero_quantized_gradients\": true, \"zero_quantized_weights\": true, "
                               "\"zero_hpz_partition_size\": 2";
                s.precision = "bf16";
                ran(&s, out);
                for (int r = 1; r < 4; r++) CHECK(same(&out[r], &out[0]));
            }
        }
    }
}

/* Gradients come in an order that is not the first pass's, and what stands in a bucket together shares scales. */
static void resumed(void) {
    for (int stage = 2; stage < 4; stage++)
        for (int accumulation = 1; accumulation < 3; accumulation++) {
            char name[96], folder[] = "/tmp/ds_zero_XXXXXX", command[64];
            snprintf(name, sizeof name, "zero_quantized_gradients: a resumed run has the bits, stage %d, %d", stage,
                     accumulation);
            TEST_NAMED(name) {
                setting s = setting_of(3, stage, accumulation, 3, "fp32");
                CHECK(mkdtemp(folder) != NULL);
                s.zero = WHOLE ", \"zero_quantized_gradients\": true, \"reduce_bucket_size\": 4000";
                s.shuffled = 1;
                ran(&s, plain);
                s.steps = 1;
                s.save = folder;
                ran(&s, out);
                s.load = folder;
                s.save = NULL;
                s.first = 1;
                s.steps = 2;
                ran(&s, out);
                for (int r = 0; r < 3; r++) CHECK(same(&out[r], &plain[r]));
                snprintf(command, sizeof command, "rm -r %s", folder);
                CHECK(system(command) == 0);
            }
        }
}

/* What the keys leave alone: one rank sends nothing, tables of rows have sums of their own, frozen parameters are gathered
   but not reduced. */
static void apart(void) {
    TEST(one rank : quantized gradients and weights are as they were) {
        for (int stage = 2; stage < 4; stage++) {
            setting s = setting_of(1, stage, 2, 2, "fp32");
            s.zero = WHOLE;
            ran(&s, plain);
            s.zero = stage == 3 ? WHOLE ", \"zero_quantized_gradients\": true, \"zero_quantized_weights\": true"
                                : WHOLE ", \"zero_quantized_gradients\": true";
            ran(&s, out);
            CHECK(same(&out[0], &plain[0]) && out[0].fetch_error == 0);
            CHECK_EQ(memcmp(&out[0].plan, &plain[0].plan, sizeof plain[0].plan), 0);
        }
    }
    TEST(zero_quantized_gradients : a sparse table keeps every bit) {
        setting s = setting_of(3, 2, 2, 2, "fp32");
        const size_t table = 2;
        s.zero = WHOLE;
        s.top = ", \"sparse_gradients\": true";
        s.sparse = 1;
        ran(&s, plain);
        s.zero = WHOLE ", \"zero_quantized_gradients\": true";
        ran(&s, out);
        for (int r = 0; r < 3; r++) {
            CHECK(memcmp(out[r].value[table], plain[r].value[table], numel(table) * 4) == 0);
            CHECK(memcmp(out[r].value[5], plain[r].value[5], numel(5) * 4) != 0);
        }
    }
    TEST(zero_quantized_weights : a frozen parameter that is larger than all that train) {
        setting s = setting_of(2, 3, 1, 2, "fp32");
        s.frozen = 5;
        s.zero = WHOLE ", \"zero_quantized_gradients\": true";
        ran(&s, plain);
        s.zero =
            WHOLE ", \"zero_quantized_gradients\": true, \"zero_quantized_weights\": true, \"reduce_bucket_size\": 1";
        ran(&s, out);
        for (int r = 0; r < 2; r++) {
            CHECK(memcmp(out[r].value[5], plain[r].value[5], numel(5) * 4) == 0); /* as it began */
            CHECK(out[r].value[5][3] == initial(5, 3));
            CHECK(out[r].fetch_error > 0 && out[r].fetch_error <= 2.0 / 254 * 1.01);
            CHECK_EQ(memcmp(&out[r].plan, &out[r].stats.peak, sizeof(ds_zero_bytes)), 0);
        }
    }
}

static void refusals(void) {
    static const struct {
        int world, stage;
        const char *zero, *top, *optimizer, *text;
    } rows[] = {
        {4, 2, ", \"zero_hpz_partition_size\": 2", NULL, NULL, "zero_hpz_partition_size: needs stage 3"},
        {4, 2, ", \"zero_quantized_weights\": true", NULL, NULL, "zero_quantized_weights: needs stage 3"},
        {4, 1, ", \"zero_quantized_gradients\": true", NULL, NULL, "zero_quantized_gradients: needs stage 2 or 3"},
        {4, 3, ", \"zero_quantized_gradients\": true, \"reduce_scatter\": false", NULL, NULL, "needs reduce_scatter"},
        {4, 3, ", \"zero_quantized_weights\": true", NULL, "Muon", "Muon takes 'matrix' whole"},
        {4, 3, ", \"zero_quantized_weights\": true", ", \"ds\": {\"world_invariant\": true}", NULL,
         "ds.world_invariant"},
        {4, 3, ", \"zero_hpz_partition_size\": 3", NULL, NULL, "do not divide the world"},
    };
    TEST(what cannot be is refused) {
        for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
            setting s = setting_of(rows[k].world, rows[k].stage, 1, 1, "fp32");
            s.zero = rows[k].zero;
            s.top = rows[k].top;
            s.optimizer = rows[k].optimizer;
            run(&s, out);
            CHECK_HAS(out->message, rows[k].text);
        }
    }
}

/* Elements that all ranks send in a step of one micro-batch, (W - 1) for each time that a whole model of M moves: twice at
   stages 0 to 2, three times at stage 3. To the byte: a third step less two, which leaves out what create sends. */
static void volume(void) {
    size_t model = 0, grains = 0;
    for (size_t i = 0; i < N_PARAMS; i++) model += numel(i), grains += (numel(i) + DS_GRAIN - 1) / DS_GRAIN;
    for (int stage = 0; stage < 4; stage++)
        for (int world = 2; world < 5; world++) {
            char name[96];
            snprintf(name, sizeof name, "volume of a micro-batch: stage %d on %d ranks", stage, world);
            TEST_NAMED(name) {
                setting s = setting_of(world, stage, 1, 0, "fp32");
                uint64_t sent[DS_COMM_KIND_COUNT] = {0}, all = 0, w = (uint64_t)world, norms;
                s.zero = WHOLE;
                for (s.steps = 2; s.steps < 4; s.steps++) {
                    ran(&s, out);
                    for (int kind = 0; kind < DS_COMM_KIND_COUNT; kind++)
                        sent[kind] = total(out, world, 0, (ds_comm_kind)kind) - sent[kind];
                }
                for (int kind = 0; kind < DS_COMM_KIND_COUNT; kind++) all += sent[kind];
                norms = 8 * (w - 1) * (5 * w + (stage ? grains : 0)); /* a ballot, a loss, and squares by grain */
                /* at stage 3 the tensor at the turn from forward to backward stays */
                CHECK_EQ(all - sent[DS_COMM_BROADCAST] - norms,
                         4 * (w - 1) * (stage < 3 ? 2 * model : 3 * model - numel(N_PARAMS - 1)));
                CHECK_EQ(sent[stage ? DS_COMM_REDUCE_SCATTER : DS_COMM_ALL_REDUCE],
                         4 * (w - 1) * model * (stage ? 1 : 2));
            }
        }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    volume();
    secondary("fp32");
    secondary("bf16");
    quantized_weights();
    quantized_gradients();
    resumed();
    apart();
    refusals();
    return test_end();
}
