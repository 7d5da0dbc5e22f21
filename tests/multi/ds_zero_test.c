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
                        char name[256];
                        s.zero = zeros[k];
                        s.shuffled = (int)(k & 1);
                        snprintf(name, sizeof name, "one result: %s world %d accumulation %d tied %d stage %d%s",
                                 precision, s.world, accumulation, tied, s.stage, s.zero);
                        TEST_NAMED(name) {
                            run(&s, out);
                            for (int r = 0; r < s.world; r++) {
                                if (!CHECK(out[r].message[0] == 0)) printf("  rank %d: %s\n", r, out[r].message);
                                CHECK(same(&out[r], &expected));
                                CHECK(memcmp(&out[r].plan, &out[r].stats.peak, sizeof(ds_zero_bytes)) == 0 || s.tied ||
                                      s.shuffled || s.stage >= 2);
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
    for (int world = 1; world < 4; world++)
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
                        CHECK(memcmp(&out[r].plan, &out[r].stats.peak, sizeof(ds_zero_bytes)) == 0);
                    }
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
    one_result("fp16", zeros, 2);
    keys();
    offload("fp32");
    offload("bf16");
    return test_end();
}
