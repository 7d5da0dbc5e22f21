/* What the keys of reduction and partition change: order of sums, calls, bytes; and what they leave alone. */
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

/* The same leaves of eight samples on 1, 2, 4 and 8 ranks: with the key one result, without it others. */
static void world_invariant(void) {
    static const char *const precisions[] = {"fp32", "bf16"};
    for (size_t k = 0; k < 2; k++)
        for (int stage = 0; stage < 4; stage++) {
            char name[96];
            snprintf(name, sizeof name, "world_invariant: %s stage %d", precisions[k], stage);
            TEST_NAMED(name) {
                setting s = setting_of(1, 0, 8, 2, precisions[k]);
                s.top = ", \"ds\": {\"world_invariant\": true}";
                s.tied = 1;
                s.leaf = 1;
                ran(&s, plain);
                s.stage = stage;
                s.zero = ", \"stage3_param_persistence_threshold\": 100, \"reduce_bucket_size\": 4000";
                for (s.world = 1; s.world <= 8; s.world *= 2) {
                    s.accumulation = 8 / s.world;
                    ran(&s, out);
                    for (int r = 0; r < s.world; r++) CHECK(same(&out[r], plain) && out[r].loss == plain->loss);
                    CHECK_EQ(memcmp(&out[0].plan, &out[0].stats.peak, sizeof(ds_zero_bytes)), 0);
                }
                s.world = 2;
                s.accumulation = 4;
                s.top = NULL;
                ran(&s, out);
                CHECK(!same(&out[0], plain));
            }
        }
    TEST(world_invariant : six micro - batches are the tree of six leaves) {
        setting s = setting_of(1, 1, 6, 2, "fp32");
        s.top = ", \"ds\": {\"world_invariant\": true}";
        s.leaf = 1;
        ran(&s, plain);
        s.world = 2;
        s.accumulation = 3;
        s.stage = 2;
        ran(&s, out);
        CHECK(same(&out[0], plain) && same(&out[1], plain));
    }
    TEST(world_invariant refuses what would round between) {
        setting s = setting_of(1, 1, 2, 1, "bf16");
        s.top = ", \"ds\": {\"world_invariant\": true}, \"communication_data_type\": \"bf16\"";
        s.leaf = 1;
        run(&s, out);
        CHECK_HAS(out->message, "take out communication_data_type");
        s.top = ", \"ds\": {\"world_invariant\": true}, \"data_types\": {\"grad_accum_dtype\": \"bf16\"}";
        run(&s, out);
        CHECK_HAS(out->message, "take out data_types.grad_accum_dtype");
        s.top = ", \"ds\": {\"world_invariant\": true, \"reduce_at_boundary\": true}";
        run(&s, out);
        CHECK_HAS(out->message, "ds.reduce_at_boundary");
    }
}

/* Ranks that are threads have no sums of their own: the usual ones. tests/multi/ds_comm_mpi_test.sh has the others. */
static void native_reduce(void) {
    TEST(native_reduce without MPI or NCCL) {
        setting s = setting_of(2, 1, 2, 1, "fp32");
        s.tied = 1;
        ran(&s, plain);
        s.top = ", \"ds\": {\"native_reduce\": true}";
        ran(&s, out);
        CHECK(same(&out[0], plain) && same(&out[1], plain));
    }
}

static void boundary(void) {
    static const char *const precisions[] = {"fp32", "bf16", "fp16"};
    for (size_t k = 0; k < 3; k++) {
        char name[64];
        snprintf(name, sizeof name, "reduce_at_boundary: %s", precisions[k]);
        TEST_NAMED(name) {
            setting s = setting_of(3, 1, 4, 2, precisions[k]);
            s.tied = 1;
            ran(&s, plain);
            CHECK_EQ(plain->stats.comm.calls[DS_COMM_REDUCE_SCATTER], 8);
            s.top = ", \"ds\": {\"reduce_at_boundary\": true}";
            ran(&s, out);
            CHECK_EQ(out->stats.comm.calls[DS_COMM_REDUCE_SCATTER], 2); /* one for each step */
            CHECK_EQ(out->stats.comm.bytes_sent[DS_COMM_REDUCE_SCATTER] * 4,
                     plain->stats.comm.bytes_sent[DS_COMM_REDUCE_SCATTER]);
            CHECK(!same(&out[0], &plain[0]));
            CHECK_EQ(memcmp(&out[0].plan, &out[0].stats.peak, sizeof(ds_zero_bytes)), 0);
            memcpy(plain, out, sizeof out);
            for (s.stage = 0; s.stage < 2; s.stage++)
                for (s.shuffled = 0; s.shuffled < 2; s.shuffled++) {
                    s.zero = s.shuffled ? ", \"reduce_bucket_size\": 4000, \"overlap_comm\": true" : "";
                    ran(&s, out);
                    for (int r = 0; r < s.world; r++) CHECK(same(&out[r], &plain[0]));
                }
        }
    }
}

/* Bytes that two steps more send on all ranks. */
static uint64_t sent_by_two(const setting *s, ds_comm_kind kind) {
    setting longer = *s;
    uint64_t sent = 0;
    longer.steps += 2;
    ran(s, out);
    ran(&longer, plain);
    for (int r = 0; r < s->world; r++)
        sent += plain[r].stats.comm.bytes_sent[kind] - out[r].stats.comm.bytes_sent[kind];
    return sent;
}

/* The types in which gradients travel: what fp32_allreduce asks for is communication_data_type fp32. */
static void wide(void) {
    TEST(fp32_allreduce : twice the bytes of bf16 and the bits of communication_data_type fp32) {
        for (int stage = 0; stage < 4; stage++) {
            setting s = setting_of(3, stage, 2, 2, "bf16");
            ds_comm_kind kind = stage ? DS_COMM_REDUCE_SCATTER : DS_COMM_ALL_REDUCE;
            uint64_t narrow;
            s.tied = 1;
            narrow = sent_by_two(&s, kind);
            s.top = ", \"fp32_allreduce\": true";
            CHECK_EQ(sent_by_two(&s, kind), 2 * narrow);
            s.top = NULL;
            ran(&s, plain);
            CHECK(!same(&out[0], &plain[0]));
            s.top = ", \"communication_data_type\": \"fp32\"";
            ran(&s, plain);
            for (int r = 0; r < 3; r++) CHECK(same(&out[r], &plain[r]));
        }
    }
    TEST(gradient_predivide_factor : a power of two changes no bit of tied weights either) {
        for (int stage = 0; stage < 4; stage++) {
            setting s = setting_of(2, stage, 2, 2, "fp32");
            s.tied = 1;
            s.zero = ", \"reduce_bucket_size\": 4000"; /* the first contribution waits for its bucket */
            ran(&s, plain);
            s.top = ", \"prescale_gradients\": true, \"gradient_predivide_factor\": 8.0";
            ran(&s, out);
            CHECK(same(&out[0], &plain[0]) && same(&out[1], &plain[1]));
            s.top = ", \"prescale_gradients\": true, \"gradient_predivide_factor\": 3.0";
            ran(&s, out);
            CHECK(!same(&out[0], &plain[0]));
            CHECK_NEAR(out[0].norm, plain[0].norm, 1e-5 * plain[0].norm);
        }
    }
    TEST(allgather_partitions : false passes over ranks that have nothing of what is sent) {
        setting s = setting_of(4, 2, 1, 2, "fp32");
        ran(&s, plain);
        s.zero = ", \"allgather_partitions\": false, \"allgather_bucket_size\": 1000"; /* tensors of one grain apart */
        ran(&s, out);
        for (int r = 0; r < 4; r++) CHECK(same(&out[r], &plain[r]));
    }
}

/* One rank speaks for all; the log says where the ranks' backend is not the one that is asked for. */
static void speaking(void) {
    TEST(scalars and dump_state come from rank 0 alone) {
        setting s = setting_of(3, 2, 1, 2, "fp32");
        s.top = ", \"dump_state\": true, \"steps_per_print\": 1";
        ran(&s, out);
        CHECK(out[0].events > 0 && out[1].events == 0 && out[2].events == 0);
        CHECK_HAS(out[0].lines, "ds_zero.2.8 stage 2, rank 0 of 3");
        CHECK_HAS(out[0].lines, "ds_zero.2.7 step=2");
        for (int r = 1; r < 3; r++) CHECK(!strstr(out[r].lines, "ds_zero.2.8") && !strstr(out[r].lines, "ds_zero.2.7"));
    }
    TEST(comm_backend_name : another one than the ranks use is logged) {
        setting s = setting_of(2, 0, 1, 1, "fp32");
        s.optimizer = "OneBitAdam";
        s.hyper = ", \"comm_backend_name\": \"mpi\"";
        ran(&s, out);
        CHECK_HAS(out[0].lines, "ds_zero.1.11 optimizer.params.comm_backend_name is mpi, the ranks use threads");
        s.hyper = NULL;
        ran(&s, out);
        CHECK(!strstr(out[0].lines, "ds_zero.1.11"));
    }
    TEST(comms_logger.prof_ops : an operation that does not exist is refused on every rank) {
        setting s = setting_of(2, 1, 1, 1, "fp32");
        s.top =
            ", \"comms_logger\": {\"enabled\": true, \"prof_all\": false, \"prof_ops\": [\"all_reduce\", \"sing\"]}";
        run(&s, out);
        for (int r = 0; r < 2; r++) {
            CHECK_HAS(out[r].message, "comms_logger.prof_ops: ");
            CHECK_HAS(out[r].message, "sing");
        }
    }
}

static void boundary_of_one(void) {
    TEST(reduce_at_boundary : with one micro - batch a step nothing changes) {
        for (int stage = 0; stage < 2; stage++) {
            setting s = setting_of(2, stage, 1, 2, "bf16");
            ran(&s, plain);
            s.top = ", \"ds\": {\"reduce_at_boundary\": true}";
            ran(&s, out);
            CHECK(same(&out[0], &plain[0]) && same(&out[1], &plain[1]));
            CHECK_EQ(memcmp(&out[0].plan, &plain[0].plan, sizeof plain[0].plan), 0);
            CHECK_EQ(out->stats.comm.calls[DS_COMM_REDUCE_SCATTER], plain->stats.comm.calls[DS_COMM_REDUCE_SCATTER]);
        }
    }
}

static void sparse(void) {
    TEST(sparse_gradients : rows travel instead of tables and the bits stay) {
        for (int stage = 0; stage < 4; stage++) {
            setting s = setting_of(3, stage, 2, 2, "fp32");
            s.zero = ", \"stage3_param_persistence_threshold\": 0";
            s.tied = 1;
            s.shuffled = 1;
            s.sparse = 1;
            uint64_t sent[2];
            for (int on = 0; on < 2; on++) {
                outcome *o = on ? out : plain;
                s.top = on ? ", \"sparse_gradients\": true" : NULL;
                ran(&s, o);
                sent[on] = 0;
                for (int kind = 0; kind < DS_COMM_KIND_COUNT; kind++) sent[on] += o->stats.comm.bytes_sent[kind];
            }
            CHECK(same(&out[0], &plain[0]) && same(&out[1], &plain[0]));
            CHECK(sent[1] + 4 * 2 * 2000 * 4 / 3 < sent[0]); /* four micro-batches, a table of 3,050 elements */
        }
    }
}

/* A large matrix and three small ones that Muon takes whole, and a vector, on two ranks. */
enum { DEALT = 5, DEALT_MOST = 64 * 96 };
static const size_t dealt_shapes[DEALT][2] = {{64, 96}, {16, 64}, {32, 64}, {48, 64}, {1, 2048}};
typedef struct dealt {
    ds_comm *comm;
    int rank, stage;
    bool turns; /* round_robin_gradients */
    ds_zero_bytes plan;
    ds_zero_stats stats;
    float value[DEALT][DEALT_MOST];
    ds_status status;
} dealt;

static void *dealt_rank(void *arg) {
    static const char *const dealt_names[DEALT] = {"a", "b", "c", "d", "v"};
    dealt *a = (dealt *)arg;
    char text[400];
    float *values = (float *)malloc(DEALT_MOST * sizeof *values);
    void *slots[DEALT];
    ds_zero_param params[DEALT];
    ds_config_options options;
    ds_config *config = NULL;
    ds_zero_desc d;
    ds_zero *z = NULL;
    memset(params, 0, sizeof params);
    memset(&options, 0, sizeof options);
    memset(&d, 0, sizeof d);
    options.world_size = 2;
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 2, \"optimizer\": {\"type\": "
             "\"Muon\"}, \"zero_optimization\": {\"stage\": %d, \"offload_optimizer\": {\"device\": \"cpu\"}, "
             "\"round_robin_gradients\": %s}}",
             a->stage, a->turns ? "true" : "false");
    for (size_t i = 0; i < DEALT; i++) {
        params[i].name = dealt_names[i];
        params[i].dims = 2;
        memcpy(params[i].shape, dealt_shapes[i], sizeof dealt_shapes[i]);
        params[i].slot = &slots[i];
        params[i].init = init;
    }
    d.comm = a->comm;
    d.params = params;
    d.n_params = DEALT;
    a->status = ds_config_parse(text, strlen(text), &options, &config, NULL);
    d.config = config;
    if (!a->status) a->status = ds_zero_plan(&d, a->rank, 2, &a->plan, NULL);
    if (!a->status) a->status = ds_zero_create(&d, &z, NULL);
    for (int micro = 0; micro < 6 && !a->status; micro++) {
        a->status = ds_zero_begin(z, DS_ZERO_TRAIN);
        for (size_t i = DEALT; i-- > 0 && !a->status;) {
            for (size_t e = 0; e < DEALT_MOST; e++) values[e] = gradient(i, e, a->rank, micro, 0, 0);
            a->status = ds_zero_grad(z, i, values, NULL);
        }
        if (!a->status) a->status = ds_zero_end(z);
        if (!a->status && micro % 2) a->status = ds_zero_step(z, NULL);
    }
    for (size_t i = 0; i < DEALT && !a->status; i++)
        a->status = ds_zero_read(z, i, -1, 0, dealt_shapes[i][0] * dealt_shapes[i][1], a->value[i]);
    if (z) ds_zero_get_stats(z, &a->stats);
    ds_zero_destroy(z);
    ds_config_free(config);
    ds_comm_destroy(a->comm);
    free(values);
    return NULL;
}

/* Who has a matrix that is not cut, and so who copies it from its bucket: the rank with the fewest elements so far, or the
   next in turn. */
static void round_robin(void) {
    static dealt ranks[2][2]; /* without and with the key; ranks */
    static const size_t own[2][2] = {{6144, 1024 + 2048 + 3072}, {6144 + 2048, 1024 + 3072}};
    for (int stage = 1; stage < 3; stage++) {
        char name[96];
        snprintf(name, sizeof name, "round_robin_gradients: at stage %d matrices are dealt in turn", stage);
        TEST_NAMED(name) {
            memset(ranks, 0, sizeof ranks);
            for (int on = 0; on < 2; on++) {
                ds_comm_desc d;
                ds_comm *comms[2];
                pthread_t threads[2];
                memset(&d, 0, sizeof d);
                d.timeout = 60000000000;
                if (!CHECK(ds_comm_threads_create(&d, 2, comms, NULL) == DS_OK)) break;
                for (int r = 0; r < 2; r++) {
                    dealt *a = &ranks[on][r];
                    a->comm = comms[r];
                    a->rank = r;
                    a->stage = stage;
                    a->turns = on;
                    pthread_create(&threads[r], NULL, dealt_rank, a);
                }
                for (int r = 0; r < 2; r++) pthread_join(threads[r], NULL);
                for (int r = 0; r < 2; r++) {
                    const dealt *a = &ranks[on][r];
                    const uint64_t *sent = a->stats.comm.bytes_sent;
                    size_t mine = own[on][r] + 1024, others = own[on][1 - r] + 1024; /* half of the vector */
                    CHECK(a->status == DS_OK);
                    CHECK_EQ(a->plan.bytes[DS_ZERO_GRADS][DS_ZERO_HOST], mine * sizeof(float));
                    CHECK_EQ(memcmp(&a->plan, &a->stats.peak, sizeof a->plan), 0);
                    CHECK_EQ(sent[DS_COMM_REDUCE_SCATTER], 6 * others * sizeof(float)); /* of six micro-batches */
                    CHECK_EQ(memcmp(a->value, ranks[0][0].value, sizeof a->value), 0);
                }
            }
        }
    }
    TEST(round_robin_gradients : where nothing is whole each rank copies a like share of each tensor) {
        setting s = setting_of(4, 2, 2, 2, "fp32");
        s.zero = ", \"offload_optimizer\": {\"device\": \"cpu\"}";
        size_t least = SIZE_MAX, most = 0;
        ran(&s, plain);
        CHECK(!strstr(plain[0].lines, "ds_zero.2.14"));
        s.zero = ", \"offload_optimizer\": {\"device\": \"cpu\"}, \"round_robin_gradients\": true";
        ran(&s, out);
        CHECK(same(&out[0], &plain[0]));
        CHECK_HAS(out[0].lines, "ds_zero.2.14 zero_optimization.round_robin_gradients: ");
        for (int r = 0; r < 4; r++) {
            size_t bytes = out[r].plan.bytes[DS_ZERO_GRADS][DS_ZERO_HOST];
            CHECK_EQ(memcmp(&out[r].plan, &plain[r].plan, sizeof out[r].plan), 0);
            least = bytes < least ? bytes : least;
            most = bytes > most ? bytes : most;
        }
        CHECK(least > 0 && most - least <= 2 * DS_GRAIN * sizeof(float));
        s.optimizer = "Muon";
        ran(&s, out);
        CHECK(!strstr(out[0].lines, "ds_zero.2.14"));
    }
}

static void elastic(void) {
    TEST(elastic_checkpoint : false refuses a checkpoint of another world size) {
        char folder[] = "/tmp/ds_zero_XXXXXX", command[64];
        setting s = setting_of(2, 2, 1, 2, "fp32");
        CHECK(mkdtemp(folder) != NULL);
        s.save = folder;
        s.zero = ", \"elastic_checkpoint\": false";
        ran(&s, plain);
        s.save = NULL;
        s.load = folder;
        ran(&s, out); /* the same number of ranks */
        s.world = 3;
        run(&s, out);
        CHECK_HAS(out->message, "was saved by 2 ranks, and here are 3");
        CHECK_HAS(out->message, "elastic_checkpoint is false");
        s.zero = ", \"elastic_checkpoint\": true";
        ran(&s, out);
        s.zero = NULL; /* not given: loads */
        ran(&s, out);
        snprintf(command, sizeof command, "rm -r %s", folder);
        CHECK(system(command) == 0);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    world_invariant();
    native_reduce();
    boundary();
    boundary_of_one();
    wide();
    speaking();
    sparse();
    round_robin();
    elastic();
    return test_end();
}
