/* The engine: one result over stages, ranks, buckets, overlap and accumulation, against a plain reference; misuse; the
   plan; memory. Ranks are threads. */
#include "ds_zero_run.h"

static void one_result(const char *precision, const char *const *zeros, size_t n_zeros) {
    static outcome out[MAX_WORLD], expected;
    static const int worlds[] = {1, 2, 3, 4};
    for (size_t w = 0; w < 4; w++)
        for (int accumulation = 1; accumulation <= 3; accumulation += 2)
            for (int tied = 0; tied < 2; tied++) {
                setting s = setting_of(worlds[w], 0, accumulation, 3, precision);
                s.tied = tied;
                reference(&s, &expected);
                for (s.stage = 0; s.stage < 4; s.stage++)
                    for (size_t k = 0; k < n_zeros; k++) {
                        char name[512], more[400];
                        s.zero = zeros[k];
                        s.shuffled = (int)(k & 1);
                        if (k == 2 && (s.stage == 1 || s.stage == 2)) {
                            snprintf(more, sizeof more, "%s, \"offload_optimizer\": {\"device\": \"cpu\"}", zeros[k]);
                            s.zero = more;
                        }
                        s.workers = k == 3 || (k == 1 && s.stage == 2) ? 3 : 0;
                        snprintf(name, sizeof name, "one result: %s world %d accumulation %d tied %d stage %d%s",
                                 precision, s.world, accumulation, tied, s.stage, s.zero);
                        TEST_NAMED(name) {
                            run(&s, out);
                            for (int r = 0; r < s.world; r++) {
                                if (!CHECK(out[r].message[0] == 0)) printf("  rank %d: %s\n", r, out[r].message);
                                CHECK(same(&out[r], &expected));
                                CHECK(s.shuffled || as_planned(&out[r]));
                            }
                        }
                    }
            }
}

/* The same of every bucket size with every way to overlap, offload to host memory and number of threads. */
static void crossed(const char *precision) {
    static outcome out[MAX_WORLD], expected;
    static const int buckets[] = {500000000, 4000, 1};
    for (int world = 1; world <= 4; world++)
        for (int accumulation = 1; accumulation <= 3; accumulation += 2) {
            setting s = setting_of(world, 0, accumulation, 2, precision);
            reference(&s, &expected);
            for (s.stage = 0; s.stage < 4; s.stage++) {
                char name[128];
                snprintf(name, sizeof name, "crossed: %s world %d accumulation %d stage %d", precision, world,
                         accumulation, s.stage);
                TEST_NAMED(name) for (int k = 0; k < 3 * 8; k++) {
                    char zero[400];
                    const bool overlap = k & 1, offload = k & 2;
                    if (offload && s.stage == 0) continue;
                    s.workers = k & 4 ? 3 : 0;
                    snprintf(zero, sizeof zero,
                             ", \"overlap_comm\": %s, \"reduce_bucket_size\": %d, "
                             "\"stage3_param_persistence_threshold\": 0%s",
                             overlap ? "true" : "false", buckets[k / 8],
                             offload ? ", \"offload_optimizer\": {\"device\": \"cpu\"}" : "");
                    s.zero = zero;
                    run(&s, out);
                    for (int r = 0; r < world; r++)
                        if (!CHECK(out[r].message[0] == 0 && same(&out[r], &expected) && as_planned(&out[r])))
                            printf("  rank %d, workers %u%s: %s\n", r, s.workers, zero, out[r].message);
                }
            }
        }
}

/* Gradients are rounded to the type they travel in and to the one they are summed in, at every stage, with one micro-batch
   as with several: the same bits whatever the two types are. */
static void types(void) {
    static outcome out[MAX_WORLD], expected;
    static const char *const all[][3] = {
        {"fp32", NULL, "bf16"}, {"fp32", NULL, "fp16"},   {"fp32", "bf16", NULL},   {"fp32", "fp16", "bf16"},
        {"bf16", "fp32", NULL}, {"bf16", "fp32", "fp16"}, {"bf16", NULL, "fp32"},   {"bf16", "fp16", "bf16"},
        {"fp16", "fp32", NULL}, {"fp16", NULL, "bf16"},   {"fp16", "bf16", "fp32"}, {"fp16", "fp32", "fp32"},
    };
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++)
        for (int world = 1; world < 4; world++)
            for (int accumulation = 1; accumulation < 4; accumulation += 2) {
                setting s = setting_of(world, 0, accumulation, 3, all[k][0]);
                s.wire = all[k][1];
                s.acc = all[k][2];
                s.tied = (int)(k & 1);
                reference(&s, &expected);
                for (s.stage = 0; s.stage < 4; s.stage++)
                    for (int offload = 0; offload < (s.stage ? 2 : 1); offload++) {
                        char name[160];
                        s.zero = offload ? ", \"offload_optimizer\": {\"device\": \"cpu\"}, \"overlap_comm\": true"
                                 : s.stage == 3 ? ", \"reduce_bucket_size\": 4000, "
                                                  "\"stage3_param_persistence_threshold\": 100"
                                                : ", \"reduce_bucket_size\": 4000";
                        snprintf(name, sizeof name, "one result: %s travels as %s, is summed as %s: %d.%d.%d.%d",
                                 s.precision, s.wire ? s.wire : "it is", s.acc ? s.acc : "it is", world, accumulation,
                                 s.stage, offload);
                        TEST_NAMED(name) {
                            run(&s, out);
                            for (int r = 0; r < world; r++) {
                                if (!CHECK(out[r].message[0] == 0)) printf("  rank %d: %s\n", r, out[r].message);
                                CHECK(same(&out[r], &expected));
                                CHECK(as_planned(&out[r]));
                            }
                        }
                    }
            }
}

/* What single keys change: reductions in a micro-batch, calls and bytes sent; and that the result is the same. */
static void keys(void) {
    static outcome plain[MAX_WORLD], out[MAX_WORLD];
    setting s = setting_of(2, 2, 1, 2, "fp32");
    s.zero = "";
    TEST(keys change what they say) {
        run(&s, plain);
        CHECK_EQ(plain[0].stats.buckets, 1);
        s.zero = ", \"contiguous_gradients\": false";
        run(&s, out);
        CHECK(same(&out[0], &plain[0]));
        CHECK_EQ(out[0].stats.buckets, N_PARAMS); /* each tensor on its own */
        s.zero = ", \"reduce_bucket_size\": 8000";
        run(&s, out);
        CHECK(same(&out[0], &plain[0]));
        CHECK(out[0].stats.buckets > 1 && out[0].stats.buckets < N_PARAMS);
        s.zero = ", \"reduce_scatter\": false";
        run(&s, out);
        CHECK(same(&out[0], &plain[0]));
        CHECK(out[0].stats.comm.calls[DS_COMM_REDUCE_SCATTER] == 0 &&
              plain[0].stats.comm.calls[DS_COMM_REDUCE_SCATTER] == 2);
        s.zero = ", \"allgather_partitions\": false";
        run(&s, out);
        CHECK(same(&out[0], &plain[0]));
        CHECK(out[0].stats.comm.calls[DS_COMM_BROADCAST] > plain[0].stats.comm.calls[DS_COMM_BROADCAST]);
        CHECK(out[0].stats.comm.calls[DS_COMM_ALL_GATHER] < plain[0].stats.comm.calls[DS_COMM_ALL_GATHER]);
        s.top = ", \"communication_data_type\": \"bf16\"";
        s.zero = "";
        run(&s, out);
        CHECK(out[0].stats.comm.bytes_sent[DS_COMM_REDUCE_SCATTER] * 2 ==
              plain[0].stats.comm.bytes_sent[DS_COMM_REDUCE_SCATTER]);
        CHECK(!same(&out[0], &plain[0]));
        s.top = ", \"prescale_gradients\": true, \"gradient_predivide_factor\": 8.0";
        run(&s, out);
        CHECK(same(&out[0], &plain[0])); /* a power of two rounds nothing */
        s.stage = 3;
        s.top = NULL;
        s.zero = ", \"stage3_param_persistence_threshold\": 0";
        run(&s, plain);
        s.zero = ", \"stage3_param_persistence_threshold\": 1000000";
        run(&s, out);
        CHECK(same(&out[0], &plain[0]));
        CHECK(plain[0].stats.gathered_elements_peak > 0 && out[0].stats.gathered_elements_peak == 0);
        s.zero = ", \"stage3_param_persistence_threshold\": 0, \"stage3_max_live_parameters\": 0, "
                 "\"stage3_prefetch_bucket_size\": 0";
        run(&s, out);
        CHECK(same(&out[0], &plain[0]));
        CHECK_EQ(out[0].stats.gathered_elements_peak, 129 * 64); /* the largest alone */
        CHECK(out[0].stats.fetches_waited > plain[0].stats.fetches_waited);
    }
}

/* Stage 3 with states, or parameters, or both, on disk or in host memory: the same bits again. */
static void offload(const char *precision) {
    static outcome out[MAX_WORLD], expected;
    static const char *const settings[] = {
        "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\"}",
        "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": true, "
        "\"pipeline_write\": true}, "
        "\"sub_group_size\": 2048",
        "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": true}, "
        "\"sub_group_size\": 1024, "
        "\"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"build\"}, \"stage3_max_live_parameters\": 5000, "
        "\"stage3_prefetch_bucket_size\": 4000",
        "\"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"build\"}, \"sub_group_size\": 3000",
        "\"offload_param\": {\"device\": \"cpu\", \"pin_memory\": true}, \"offload_optimizer\": {\"device\": \"cpu\"}",
        "\"offload_param\": {\"device\": \"cpu\"}, \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": "
        "\"build\", "
        "\"pipeline_write\": true}, \"sub_group_size\": 4096",
    };
    for (int world = 1; world <= 4; world++)
        for (int accumulation = 1; accumulation < 3; accumulation++) {
            setting s = setting_of(world, 3, accumulation, 3, precision);
            s.tied = accumulation == 2;
            reference(&s, &expected);
            for (size_t k = 0; k < sizeof settings / sizeof settings[0]; k++) {
                char name[400], zero[700];
                snprintf(zero, sizeof zero, ", \"stage3_param_persistence_threshold\": %d, %s", k & 1 ? 100 : 0,
                         settings[k]);
                s.zero = zero;
                snprintf(name, sizeof name, "offload %zu: %s world %d accumulation %d", k, precision, world,
                         accumulation);
                TEST_NAMED(name) {
                    run(&s, out);
                    for (int r = 0; r < world; r++) {
                        if (!CHECK(out[r].message[0] == 0)) printf("  rank %d: %s\n", r, out[r].message);
                        CHECK(same(&out[r], &expected));
                        CHECK(memcmp(&out[r].plan, &out[r].stats.peak, sizeof(ds_zero_bytes)) ==
                              0); /* and a store's own */
                    }
                }
            }
        }
}

/* What the ZeRO paper says a rank holds, measured by the allocator's hook on 1 to 64 ranks: with N elements in 16 bits, 2N of
   parameters, 2N of gradients and 12N of states, of which stages 1, 2 and 3 divide the last, the last two and all. */
enum { BIG = 64 * DS_GRAIN, BIG_COUNT = 3 };

typedef struct big_rank {
    ds_comm *comm;
    int rank, world, stage;
    ds_zero_stats stats;
    ds_zero_bytes plan;
    test_memory memory;
    bool good;
} big_rank;

static void *run_big(void *arg) {
    big_rank *a = (big_rank *)arg;
    static const char *const big_names[BIG_COUNT] = {"a", "b", "c"};
    ds_zero_param params[BIG_COUNT];
    setting s = setting_of(a->world, a->stage, 1, 1, "bf16");
    ds_config *config;
    ds_zero_desc d;
    ds_zero *z = NULL;
    uint16_t *gradient_ = (uint16_t *)calloc(BIG, 2);
    s.zero = ", \"stage3_param_persistence_threshold\": 0, \"reduce_bucket_size\": 65536, "
             "\"stage3_max_live_parameters\": 65536, \"stage3_prefetch_bucket_size\": 0";
    config = config_of(&s, NULL);
    memset(params, 0, sizeof params);
    memset(&d, 0, sizeof d);
    for (int i = 0; i < BIG_COUNT; i++) {
        params[i].name = big_names[i];
        params[i].dims = 1;
        params[i].shape[0] = BIG;
        params[i].dtype = DS_BF16;
    }
    d.config = config;
    d.comm = a->comm;
    d.params = params;
    d.n_params = BIG_COUNT;
    d.allocator.alloc = test_alloc;
    d.allocator.release = test_release;
    d.allocator.ctx = &a->memory;
    a->good = !ds_zero_plan(&d, a->rank, a->world, &a->plan, NULL);
    a->memory.peak = 0;
    a->good = a->good && !ds_zero_create(&d, &z, NULL);
    for (int step = 0; a->good && step < 2; step++) {
        a->good = !ds_zero_begin(z, DS_ZERO_TRAIN);
        for (size_t i = BIG_COUNT; i-- > 0;)
            a->good =
                a->good && !ds_zero_fetch(z, i, NULL) && !ds_zero_grad(z, i, gradient_, NULL) && !ds_zero_release(z, i);
        a->good = a->good && !ds_zero_end(z) && !ds_zero_step(z, NULL);
    }
    if (z) ds_zero_get_stats(z, &a->stats);
    ds_zero_destroy(z);
    ds_comm_destroy(a->comm);
    ds_config_free(config);
    free(gradient_);
    return NULL;
}

static void paper(void) {
    static big_rank ranks[64];
    for (int stage = 0; stage < 4; stage++)
        for (int world = 1; world <= 64; world = world == 2 ? 3 : world == 3 ? 8 : world * 2) {
            char name[96];
            snprintf(name, sizeof name, "memory as the paper says: stage %d on %d ranks", stage, world);
            TEST_NAMED(name) {
                ds_comm *comms[64] = {0};
                pthread_t threads[64];
                ds_comm_desc d;
                size_t n = BIG * BIG_COUNT, w = (size_t)world;
                memset(&d, 0, sizeof d);
                memset(ranks, 0, sizeof ranks);
                if (world > 1) CHECK(ds_comm_threads_create(&d, world, comms, NULL) == DS_OK);
                for (int r = 0; r < world; r++) {
                    ranks[r].comm = comms[r];
                    ranks[r].rank = r;
                    ranks[r].world = world;
                    ranks[r].stage = stage;
                    pthread_create(&threads[r], NULL, run_big, &ranks[r]);
                }
                for (int r = 0; r < world; r++) pthread_join(threads[r], NULL);
                for (int r = 0; r < world; r++) {
                    const ds_zero_bytes *b = &ranks[r].stats.peak;
                    size_t planned = 0, grain = DS_GRAIN * (n / DS_GRAIN % w ? 1u : 0u); /* a part may have one more */
                    size_t params = b->bytes[DS_ZERO_PARAMS][0], gradients = b->bytes[DS_ZERO_GRADS][0],
                           states = b->bytes[DS_ZERO_STATES][0];
                    size_t part = n / w, more = part + grain;
                    CHECK(ranks[r].good);
                    for (int c = 0; c < DS_ZERO_CLASSES; c++) planned += ranks[r].plan.bytes[c][0];
                    CHECK_EQ(planned, ranks[r].memory.peak);
                    CHECK_EQ(ranks[r].memory.live, 0);
                    if (stage == 0) part = more = n;
                    CHECK(states + 12 * DS_GRAIN > 12 * part && states <= 12 * more);
                    if (stage >= 2)
                        CHECK(gradients + 2 * DS_GRAIN > 2 * part && gradients <= 2 * more);
                    else
                        CHECK_EQ(gradients, 2 * n);
                    if (stage == 3) /* each part in whole blocks of the disk */
                        CHECK(params + 2 * DS_GRAIN > 2 * part && params <= 2 * more + BIG_COUNT * 4096);
                    else
                        CHECK_EQ(params, 2 * n);
                }
            }
        }
}

int main(int argc, char **argv) {
    static const char *const zeros[] = {
        ", \"overlap_comm\": false, \"stage3_param_persistence_threshold\": 0",
        ", \"overlap_comm\": true, \"reduce_bucket_size\": 4000, \"stage3_param_persistence_threshold\": 100",
        ", \"overlap_comm\": false, \"reduce_bucket_size\": 1, \"allgather_bucket_size\": 3000, "
        "\"stage3_max_live_parameters\": 0, "
        "\"stage3_param_persistence_threshold\": 0",
        ", \"overlap_comm\": true, \"sub_group_size\": 2048, \"allgather_partitions\": false, \"reduce_scatter\": "
        "false, "
        "\"stage3_prefetch_bucket_size\": 5000, \"stage3_max_live_parameters\": 9000, "
        "\"stage3_param_persistence_threshold\": 0",
    };
    test_begin(argc, argv);
    one_result("fp32", zeros, 4);
    one_result("bf16", zeros, 4);
    one_result("fp16", zeros, 4);
    crossed("fp32");
    crossed("bf16");
    crossed("fp16");
    types();
    keys();
    paper();
    offload("fp32");
    offload("bf16");
    offload("fp16");
    return test_end();
}
