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
        s.frozen = 6;
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
            s.load = folder; /* the ranks' own values are of no use to another number of ranks */
            s.world = 2;
            s.first = steps;
            s.steps = 0;
            ran(&s, out);
            CHECK(same(&out[0], &out[1]) && apart(&out[0], &plain[0]) < 2e-4);
            s.load = NULL;
            s.world = 3;
            s.first = 0;
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

/* ---- optimizers of the client's own ---- */

/* Momentum that the ranks average by themselves from the third step on. */
typedef struct own {
    bool full;      /* in fp32 over the pass's group, not with one bit */
    int step, rank; /* where an update fails: 0: nowhere */
    const char *tensor;
} own;

static bool own_local(void *ctx, int64_t step) {
    (void)ctx;
    return step > 2;
}

static ds_status own_update(const ds_optim_pass *pass, const float *grad, float *master, float *const *state,
                            size_t count) {
    const own *o = (const own *)pass->ctx;
    int size = pass->group->size ? pass->group->size : 1;
    ds_status status = DS_OK;
    if (o->step == pass->step && o->rank == pass->group->rank && strcmp(o->tensor, pass->tensor->name) == 0)
        return DS_ERR_NUMERIC;
    for (size_t i = 0; i < count; i++) state[0][i] = 0.5f * (state[0][i] + grad[i]);
    if (own_local(NULL, pass->step) && !o->full) status = ds_optim_pass_average(pass, state[0]);
    if (own_local(NULL, pass->step) && o->full && size > 1 && count) {
        float *all = (float *)malloc((size_t)size * count * sizeof *all);
        status = pass->group->exchange(pass->group->ctx, state[0], all, count * sizeof *all);
        for (size_t i = 0; i < count && !status; i++) {
            state[0][i] = 0;
            for (int r = 0; r < size; r++) state[0][i] += all[(size_t)r * count + i] / (float)size;
        }
        free(all);
    }
    for (size_t i = 0; i < count && !status; i++) master[i] -= (float)pass->params->lr * state[0][i];
    return status;
}

static ds_optim_table own_table(own *o) {
    ds_optim_table t;
    memset(&t, 0, sizeof t);
    t.name = "Own";
    t.work = DS_OPTIM_WHOLE;
    t.state_count = 1;
    t.state_names[0] = "momentum";
    t.update = own_update;
    t.ctx = o;
    t.local_gradients = own_local;
    t.compresses = !o->full;
    return t;
}

static ds_status plain_average(void *ctx, float *buffer, float *worker_error, float *server_error, size_t count,
                               void *stream) {
    ds_comm *comm = (ds_comm *)ctx;
    void *scratch = malloc(ds_comm_one_bit_sizes(ds_comm_world(comm), count).scratch_bytes);
    ds_status status = ds_comm_one_bit_all_reduce(comm, buffer, buffer, count, worker_error, server_error, scratch);
    (void)stream;
    free(scratch);
    return status;
}

/* What must come out of it: the optimizer alone on each rank, over whole tensors. */
typedef struct alone_of {
    const setting *s;
    ds_comm *comm;
    int rank;
    double squares; /* of this rank's last gradients */
    outcome *out;
} alone_of;

static void *run_alone(void *arg) {
    alone_of *a = (alone_of *)arg;
    const setting *s = a->s;
    ds_optim_params p;
    ds_optim_tensor tensors[N_PARAMS];
    ds_optim_desc d;
    ds_optim *o = NULL;
    float *sums[N_PARAMS], *one = (float *)malloc(9000 * 4), *grads[MAX_WORLD];
    const void *inputs[MAX_WORLD];
    memset(&d, 0, sizeof d);
    memset(tensors, 0, sizeof tensors);
    memset(a->out, 0, sizeof *a->out);
    ds_optim_params_default("AdamW", &p);
    p.lr = 0.01;
    for (size_t i = 0; i < N_PARAMS; i++) {
        tensors[i].name = names[i];
        tensors[i].rows = shapes[i][0];
        tensors[i].cols = shapes[i][1];
        sums[i] = (float *)calloc(9000, 4);
        for (size_t e = 0; e < numel(i); e++) a->out->value[i][e] = initial(i, e);
    }
    for (int r = 0; r < s->world; r++) inputs[r] = grads[r] = (float *)malloc(9000 * 4);
    d.type = "Own";
    d.groups = &p;
    d.group_count = 1;
    d.tensors = tensors;
    d.tensor_count = N_PARAMS;
    d.tables = s->client;
    d.table_count = 1;
    if (a->comm) {
        d.group = ds_comm_group(a->comm);
        d.average.average = plain_average;
        d.average.ctx = a->comm;
    }
    if (ds_optim_create(&d, &o, NULL)) snprintf(a->out->message, sizeof a->out->message, "the optimizer alone");
    for (int step = 0; step < s->steps && o; step++) {
        bool local = ds_optim_wants_local_gradients(o);
        ds_status status = ds_optim_begin(o, 1.0 / (s->accumulation * (local ? 1 : s->world)), 1.0, 0.0);
        a->squares = 0.0;
        for (size_t i = 0; i < N_PARAMS; i++) {
            ds_optim_slice slice;
            double grains[16];
            for (int micro = 0; micro < s->accumulation; micro++) {
                for (int r = 0; r < s->world; r++)
                    for (size_t e = 0; e < numel(i); e++) grads[r][e] = given(s, i, e, r, micro, step, 0);
                if (local)
                    memcpy(one, grads[a->rank], numel(i) * 4);
                else
                    ds_comm_tree_sum_f32(one, inputs, s->world, DS_F32, numel(i));
                for (size_t e = 0; e < numel(i); e++) sums[i][e] = micro ? sums[i][e] + one[e] : one[e];
            }
            ds_optim_norm_grains(sums[i], DS_F32, numel(i), 1.0f, grains);
            a->squares += ds_optim_norm_tree(grains, (numel(i) + 1023) / 1024);
            memset(&slice, 0, sizeof slice);
            slice.tensor = i;
            slice.count = numel(i);
            slice.master = a->out->value[i];
            slice.state[0] = a->out->exp_avg[i];
            slice.grad = sums[i];
            if (!status) status = ds_optim_apply(o, &slice, 1);
        }
        if (!status) status = ds_optim_end(o);
        if (status) snprintf(a->out->message, sizeof a->out->message, "%.400s", ds_optim_error(o)->message);
    }
    ds_optim_destroy(o);
    for (size_t i = 0; i < N_PARAMS; i++) free(sums[i]);
    for (int r = 0; r < s->world; r++) free(grads[r]);
    free(one);
    ds_comm_destroy(a->comm);
    return NULL;
}

static void alone(const setting *s, outcome *o) {
    ds_comm *comms[MAX_WORLD] = {0};
    alone_of of[MAX_WORLD];
    pthread_t threads[MAX_WORLD];
    ds_comm_desc d;
    double squares = 0.0;
    bool local = own_local(NULL, s->steps);
    memset(&d, 0, sizeof d);
    d.timeout = 60000000000;
    if (s->world > 1 && !CHECK(ds_comm_threads_create(&d, s->world, comms, NULL) == DS_OK)) return;
    for (int r = 0; r < s->world; r++) {
        of[r].s = s;
        of[r].comm = comms[r];
        of[r].rank = r;
        of[r].out = &o[r];
        pthread_create(&threads[r], NULL, run_alone, &of[r]);
    }
    for (int r = 0; r < s->world; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < s->world; r++) squares += of[r].squares;
    for (int r = 0; r < s->world; r++) {
        if (!CHECK(o[r].message[0] == 0)) printf("  rank %d: %s\n", r, o[r].message);
        o[r].norm = sqrt(local ? squares / s->world : of[r].squares) / (s->accumulation * (local ? 1 : s->world));
    }
}

static void own_average(void) {
    for (int world = 1; world < 4; world++)
        for (int full = 0; full < 2; full++) {
            char name[128];
            snprintf(name, sizeof name, "a client's optimizer that averages %s: world %d",
                     full ? "over the group" : "with one bit", world);
            TEST_NAMED(name) {
                char folder[] = "/tmp/ds_zero_XXXXXX", command[64];
                own how = {false, 0, 0, NULL};
                ds_optim_table table;
                setting s = setting_of(world, 0, 2, 2, "fp32");
                uint64_t warm;
                how.full = full;
                table = own_table(&how);
                s.client = &table;
                CHECK(mkdtemp(folder) != NULL);
                for (int k = 0; k < 2; k++) {
                    if (k) s.steps = 7;
                    alone(&s, plain);
                    if (!ran(&s, out)) break;
                    for (int r = 0; r < world; r++) {
                        CHECK(same(&out[r], &plain[r]) && same(&out[r], &out[0]));
                        CHECK(memcmp(&out[r].plan, &out[r].stats.peak, sizeof(ds_zero_bytes)) == 0);
                    }
                    if (k) CHECK_EQ(out->stats.comm.bytes_sent[DS_COMM_ALL_REDUCE], warm);
                    warm = out->stats.comm.bytes_sent[DS_COMM_ALL_REDUCE];
                }
                CHECK(full || world == 1 || out->stats.comm.bytes_sent[DS_COMM_ALL_TO_ALL] > 0);
                s.steps = 5; /* its error feedback is saved, too */
                s.save = folder;
                ran(&s, out);
                s.load = folder;
                s.save = NULL;
                s.first = 5;
                s.steps = 2;
                ran(&s, out);
                for (int r = 0; r < world; r++) CHECK(same(&out[r], &plain[r]));
                if (world == 3) { /* that of three ranks is of no use to two */
                    s.world = 2;
                    ran(&s, out);
                    CHECK(same(&out[0], &out[1]));
                    CHECK((strstr(out->lines, "the error feedback of Own starts from zero") != NULL) == !full);
                    s.world = 3;
                }
                s.load = NULL;
                s.first = 0;
                s.steps = 4;
                s.overflow_rank = world - 1; /* of one rank's own gradient: all skip */
                s.overflow_step = 3;
                ran(&s, out);
                for (int r = 0; r < world; r++) CHECK(out[r].skipped == 1 && same(&out[r], &out[0]));
                s.overflow_step = 0;
                s.top = ", \"gradient_clipping\": 1.0";
                run(&s, out);
                CHECK_HAS(out->message, "gradient_clipping: Own cannot clip");
                s.top = NULL;
                s.stage = 1;
                run(&s, out);
                if (world > 1)
                    CHECK_HAS(out->message, "optimizer.type: Own averages gradients itself");
                else
                    CHECK(out->message[0] == 0); /* its part is everything */
                snprintf(command, sizeof command, "rm -r %s", folder);
                CHECK(system(command) == 0);
            }
        }
}

/* An update that fails on one rank. `tensor` and what the others do after it say where they find out. */
typedef struct failing {
    ds_comm *comm;
    int rank, world, stage;
    const char *zero;
    ds_optim_table table;
    ds_status status[6]; /* of each step, then of a read */
    char message[600];
    bool alive, leaked;
} failing;

static void *run_failing(void *arg) {
    failing *a = (failing *)arg;
    static const size_t sizes[3] = {1500, 0, 2500};
    setting s = setting_of(a->world, a->stage, 1, 1, "fp32");
    ds_error error = {DS_OK, ""};
    ds_zero_param params[3];
    ds_zero_desc d;
    ds_zero *z = NULL;
    float values[2500];
    void *slots[3];
    test_memory memory;
    ds_config *config;
    s.zero = a->zero;
    config = config_of(&s, &error);
    memset(params, 0, sizeof params);
    memset(&memory, 0, sizeof memory);
    memset(&d, 0, sizeof d);
    for (size_t i = 0; i < 3; i++) {
        params[i].name = names[i];
        params[i].dims = 1;
        params[i].shape[0] = sizes[i];
        params[i].slot = &slots[i];
    }
    d.config = config;
    d.comm = a->comm;
    d.params = params;
    d.n_params = 3;
    d.optimizer = &a->table;
    d.allocator.alloc = test_alloc;
    d.allocator.release = test_release;
    d.allocator.ctx = &memory;
    if (ds_zero_create(&d, &z, &error)) snprintf(a->message, sizeof a->message, "%s", error.message);
    for (int step = 0; z && step < 5; step++) {
        ds_status status = ds_zero_begin(z, DS_ZERO_TRAIN);
        for (size_t i = 3; i-- > 0 && !status;) {
            for (size_t e = 0; e < sizes[i]; e++) values[e] = gradient(i, e, a->rank, 0, step, 0);
            status = ds_zero_grad(z, i, values, NULL);
        }
        if (!status) status = ds_zero_end(z);
        a->status[step] = status ? status : ds_zero_step(z, NULL);
    }
    if (z) {
        a->status[5] = ds_zero_read(z, 0, -1, 0, 1, values);
        snprintf(a->message, sizeof a->message, "%s", ds_zero_error(z)->message);
    }
    ds_zero_destroy(z);
    a->leaked = memory.live || memory.mismatches;
    ds_comm_destroy(a->comm);
    ds_config_free(config);
    return NULL;
}

static void own_fails(void) {
    static const struct {
        const char *title;
        int stage;
        bool averages; /* the ranks exchange something in each update from step 3 on */
        const char *zero, *tensor;
        int at;    /* step of the failure, from 1 */
        int finds; /* steps after it until the others find out */
    } rows[] = {
        {"before its average", 0, true, "", "bias", 3, 0},
        {"on the last tensor, before its average", 0, true, "", "matrix", 4, 0},
        {"in a step whose gradients were reduced", 0, true, "", "matrix", 2, 1},
        {"on a grain", 0, false, "", "matrix", 2, 1},
        {"on a grain of stage 2", 2, false, "", "matrix", 2, 0},
        {"on a grain of stage 3", 3, false, ", \"stage3_param_persistence_threshold\": 0", "matrix", 2, 1},
        {"while the disk writes", 3, false,
         ", \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 1024, \"offload_optimizer\": {\"device\": "
         "\"nvme\", \"nvme_path\": \"build\", \"pipeline_read\": true, \"pipeline_write\": true}",
         "matrix", 2, 1},
    };
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++)
        for (int world = 1; world < 4; world++) {
            char name[128];
            snprintf(name, sizeof name, "a client's update fails on one rank %s: world %d", rows[k].title, world);
            TEST_NAMED(name) {
                ds_comm *comms[3] = {NULL, NULL, NULL};
                failing a[3];
                pthread_t threads[3];
                ds_comm_desc d;
                own how = {false, 0, 0, NULL};
                int bad = world - 1;
                how.step = rows[k].at;
                how.rank = bad;
                how.tensor = rows[k].tensor;
                memset(&d, 0, sizeof d);
                memset(a, 0, sizeof a);
                d.timeout = 60000000000;
                if (world > 1 && !CHECK(ds_comm_threads_create(&d, world, comms, NULL) == DS_OK)) break;
                for (int r = 0; r < world; r++) {
                    a[r].comm = comms[r];
                    a[r].rank = r;
                    a[r].world = world;
                    a[r].stage = rows[k].stage;
                    a[r].zero = rows[k].zero;
                    a[r].table = own_table(&how);
                    if (!rows[k].averages) {
                        a[r].table.work = DS_OPTIM_BY_GRAIN;
                        a[r].table.local_gradients = NULL;
                        a[r].table.compresses = false;
                    }
                    pthread_create(&threads[r], NULL, run_failing, &a[r]);
                }
                for (int r = 0; r < world; r++) pthread_join(threads[r], NULL);
                for (int r = 0; r < world; r++) {
                    int first = rows[k].at - 1 + (r == bad ? 0 : rows[k].finds);
                    char begin[64];
                    for (int i = 0; i < 6; i++) /* the first error stays */
                        CHECK_EQ(a[r].status[i], i < first ? DS_OK : r == bad ? DS_ERR_NUMERIC : DS_ERR_PEER);
                    CHECK_HAS(a[r].message, "ds_optim_apply: table \"Own\" failed on ");
                    CHECK_HAS(a[r].message, rows[k].tensor);
                    CHECK_HAS(a[r].message, "the engine cannot go on");
                    snprintf(begin, sizeof begin, "rank %d: optimizer step: ", r);
                    CHECK((strncmp(a[r].message, begin, strlen(begin)) == 0) == (r == bad));
                    CHECK(!a[r].leaked);
                }
            }
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
    own_average();
    own_fails();
    model_group();
    return test_end();
}
