/* The engine on one rank: misuse that names the parameter, passes of all kinds, memory, skipped steps, keys that nobody claims.
   Branches of ds_zero.h that no test takes (make coverage lists them by line), 47 of 3,050. The store refuses to begin a
   request, which one that works does not do, and what follows from that (9). A fault in the middle of a pass that another
   call is the first to see (10). Where the fault stories make one call in some fail and not this one: the exchange of LAMB's
   norms, of the machines' names at a save and of the nodes, the pack of updated parameters, tables of a node, the text of the
   dump (9; DS_TEST_KILLS=1 takes them). What an earlier check excludes, or the libraries that a machine has: an optimizer
   or schedule refused once it was accepted, a swap folder gone from the configuration, an error before the first row of memory
   (11). A checkpoint of another tool with some of the counters alone (5). fast_init beside masters in memory (2). Memory that
   is not locked: a child under another user tests it, which may not write down what it took (1). */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "../test.h"
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { N = 3, NUMEL = 3000 };
static void *slots[N];
static float gradient[NUMEL];

static void init(void *ctx, size_t begin, size_t count, float *out) {
    (void)ctx;
    for (size_t i = 0; i < count; i++) out[i] = (float)((begin + i) % 17) * 0.125f - 1.0f;
}

static ds_config *config_for(const char *text, size_t world) {
    ds_config_options o;
    ds_config *c = NULL;
    ds_error error = {DS_OK, ""};
    memset(&o, 0, sizeof o);
    o.world_size = world;
    if (!CHECK(ds_config_parse(text, strlen(text), &o, &c, &error) == DS_OK)) printf("  %s\n", error.message);
    return c;
}

/* "%s" of a configuration: more keys, each followed by a comma */
static ds_config *config_with(const char *zero, const char *more) {
    char text[2048];
    snprintf(text, sizeof text,
             "{%s \"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 2,"
             "\"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": 0.01}}, \"zero_optimization\": {%s}}",
             more, zero);
    return config_for(text, 1);
}

static void describe(ds_zero_param *p, ds_dtype dtype) {
    static const char *const names[N] = {"alpha", "beta", "gamma"};
    memset(p, 0, N * sizeof *p);
    for (int i = 0; i < N; i++) {
        p[i].name = names[i];
        p[i].dims = 1;
        p[i].shape[0] = NUMEL;
        p[i].dtype = dtype;
        p[i].slot = &slots[i];
        p[i].init = init;
    }
}

/* Settings of zero_optimization that a refusal may change, as text; NULL is not given. */
enum { SETTINGS = 12 };
static const char *const setting_names[SETTINGS] = {"stage",
                                                    "reduce_bucket_size",
                                                    "allgather_bucket_size",
                                                    "stage3_max_live_parameters",
                                                    "stage3_param_persistence_threshold",
                                                    "sub_group_size",
                                                    "offload_optimizer.device",
                                                    "offload_optimizer.buffer_count",
                                                    "offload_param.device",
                                                    "offload_param.buffer_size",
                                                    "offload_param.buffer_count",
                                                    "offload_param.max_in_cpu"};

static int settings_plan(const char *const *settings, const char *more, ds_zero_desc *d, size_t world, ds_zero_bytes *b,
                         ds_error *e) {
    char text[2048];
    size_t at;
    int status;
    ds_config *c = NULL;
    ds_config_options o;
    at = (size_t)snprintf(text, sizeof text,
                          "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"aio\": "
                          "{\"block_size\": 4096}, %s\"zero_optimization\": {\"stage3_prefetch_bucket_size\": 0",
                          more);
    for (int section = 0; section < 3; section++) {
        static const char *const sections[] = {"", "offload_optimizer.", "offload_param."};
        size_t length = strlen(sections[section]);
        if (section)
            at += (size_t)snprintf(text + at, sizeof text - at, ", \"%.*s\": {\"nvme_path\": \".\"", (int)length - 1,
                                   sections[section]);
        for (int k = 0; k < SETTINGS; k++) {
            const char *dot = strchr(setting_names[k], '.');
            bool quoted = dot && !strcmp(dot, ".device");
            if (!settings[k] || (section ? strncmp(setting_names[k], sections[section], length) : dot != NULL))
                continue;
            at += (size_t)snprintf(text + at, sizeof text - at, ", \"%s\": %s%s%s", setting_names[k] + length,
                                   quoted ? "\"" : "", settings[k], quoted ? "\"" : "");
        }
        if (section) at += (size_t)snprintf(text + at, sizeof text - at, "}");
    }
    snprintf(text + at, sizeof text - at, "}}");
    memset(&o, 0, sizeof o);
    o.world_size = world;
    if ((status = ds_config_parse(text, strlen(text), &o, &c, e))) return status;
    d->config = c;
    for (size_t i = 0; i < d->n_params; i++) ((ds_zero_param *)d->params)[i].dtype = ds_zero_model_dtype(c);
    status = ds_zero_plan(d, 0, (int)world, b, e);
    ds_config_free(c);
    return status;
}

/* Takes apart "zero_optimization with KEY VALUE, KEY VALUE would fit": which settings, and to what. */
static int settings_parse(char *message, int *keys, const char **values) {
    char *at = strstr(message, "zero_optimization with "), *end = at ? strstr(at, " would fit") : NULL;
    int n = 0;
    if (!end) return 0;
    *end = 0;
    for (at += strlen("zero_optimization with "); at && n < SETTINGS; n++) {
        char *value = strchr(at, ' '), *next = value ? strstr(value, ", ") : NULL;
        if (!value) return -1;
        *value++ = 0;
        if (next) *next = 0;
        for (keys[n] = 0; keys[n] < SETTINGS && strcmp(setting_names[keys[n]], at);) keys[n]++;
        if (keys[n] == SETTINGS) return -1;
        values[n] = value;
        at = next ? next + 2 : NULL;
    }
    return n;
}

static ds_zero *engine(const ds_config *c, ds_zero_param *params, const ds_zero_desc *more) {
    ds_zero_desc d;
    ds_zero *z = NULL;
    ds_error error = {DS_OK, ""};
    memset(&d, 0, sizeof d);
    if (more) d = *more;
    d.config = c;
    d.params = params;
    d.n_params = N;
    if (!CHECK(ds_zero_create(&d, &z, &error) == DS_OK)) printf("  %s\n", error.message);
    return z;
}

#define OK(call)                CHECK((call) == DS_OK)
#define BAD(call, status, text) (CHECK((call) == (status)), CHECK_HAS(ds_zero_error(z)->message, text))

static void micro_batch(ds_zero *z, const void *g) {
    OK(ds_zero_begin(z, DS_ZERO_TRAIN));
    for (size_t i = 0; i < N; i++) {
        OK(ds_zero_fetch(z, i, NULL));
        CHECK(slots[i] != NULL);
        OK(ds_zero_grad(z, i, g, NULL));
        OK(ds_zero_release(z, i));
    }
    OK(ds_zero_loss(z, 1.0));
    OK(ds_zero_end(z));
}

static ds_status no_exchange(void *ctx, const void *mine, void *all, size_t bytes) {
    (void)ctx, (void)mine, (void)all, (void)bytes;
    return DS_ERR_PEER;
}
/* One other rank holds the rest of the model: it is not there (0), has an overflow (1), or wants to stop (2). */
static ds_status other_parts(void *ctx, const void *mine, void *all, size_t bytes) {
    int kind = *(int *)ctx;
    dsi_zero_ballot its;
    if (kind == 0) return DS_ERR_PEER;
    memcpy(&its, mine, sizeof its);
    if (kind == 1) its.bad = 0;
    its.stop = kind == 2;
    memcpy(all, &its, bytes);
    memcpy((char *)all + bytes, mine, bytes);
    return DS_OK;
}
static int64_t full_write(void *ctx, int fd, const void *buffer, size_t bytes, int64_t offset) {
    return __atomic_load_n((int *)ctx, __ATOMIC_RELAXED) ? -ENOSPC : dsi_sys_write(NULL, fd, buffer, bytes, offset);
}

static void misuse(int stage) {
    char zero[200], name[64];
    snprintf(zero, sizeof zero,
             "\"stage\": %d, \"stage3_param_persistence_threshold\": 0, \"ignore_unused_parameters\": false", stage);
    snprintf(name, sizeof name, "misuse at stage %d names the parameter", stage);
    TEST_NAMED(name) {
        ds_zero_param params[N];
        ds_config *c = config_with(zero, "");
        ds_zero *z;
        ds_zero_report report;
        void *buffer;
        describe(params, DS_F32);
        z = engine(c, params, NULL);
        BAD(ds_zero_fetch(z, 0, NULL), DS_ERR_STATE, "'alpha' outside of a pass");
        BAD(ds_zero_end(z), DS_ERR_STATE, "no pass");
        BAD(ds_zero_step(z, &report), DS_ERR_STATE, "0 of 2 micro-batches");
        OK(ds_zero_begin(z, DS_ZERO_TRAIN));
        BAD(ds_zero_begin(z, DS_ZERO_TRAIN), DS_ERR_STATE, "still open");
        BAD(ds_zero_step(z, &report), DS_ERR_STATE, "pass is still open");
        BAD(ds_zero_fetch(z, N, NULL), DS_ERR_ARGUMENT, "parameter 3 of 3");
        BAD(ds_zero_release(z, 1), DS_ERR_STATE, "'beta', which is not fetched");
        OK(ds_zero_fetch(z, 1, NULL));
        OK(ds_zero_fetch(z, 1, NULL)); /* fetches nest */
        OK(ds_zero_release(z, 1));
        CHECK(slots[1] != NULL);
        BAD(ds_zero_end(z), DS_ERR_STATE, "'beta' is still fetched (1 times)");
        OK(ds_zero_release(z, 1));
        CHECK((slots[1] == NULL) == (stage == 3));
        OK(ds_zero_grad(z, 0, gradient, NULL));
        BAD(ds_zero_grad(z, 0, gradient, NULL), DS_ERR_STATE, "'alpha': it has its 1 gradients");
        BAD(ds_zero_grad(z, 1, NULL, NULL), DS_ERR_ARGUMENT, "'beta' is NULL");
        BAD(ds_zero_end(z), DS_ERR_STATE, "'beta' got 0 of 1 gradients");
        OK(ds_zero_grad_buffer(z, 1, &buffer));
        BAD(ds_zero_grad_buffer(z, 1, &buffer), DS_ERR_STATE, "'beta' is taken");
        BAD(ds_zero_grad_ready(z, 2, NULL), DS_ERR_STATE, "'gamma' is ready without a buffer");
        BAD(ds_zero_end(z), DS_ERR_STATE, "'beta' was taken but not");
        CHECK(buffer != NULL); /* what was lent is still known */
        ds_zero_destroy(z);    /* in the middle of a pass: nothing leaks */
        z = engine(c, params, NULL);
        micro_batch(z, gradient);
        BAD(ds_zero_save(z, "nowhere", NULL, NULL, 0), DS_ERR_STATE, "middle of a step");
        micro_batch(z, gradient);
        BAD(ds_zero_begin(z, DS_ZERO_TRAIN), DS_ERR_STATE, "the step is due");
        OK(ds_zero_begin(z, DS_ZERO_EVALUATE)); /* between micro-batches and the step */
        OK(ds_zero_fetch(z, 2, NULL));
        BAD(ds_zero_grad(z, 2, gradient, NULL), DS_ERR_STATE, "'gamma' in a pass that does not train");
        BAD(ds_zero_loss(z, 100.0), DS_ERR_STATE, "ds_zero_loss in a pass that does not train");
        OK(ds_zero_release(z, 2));
        OK(ds_zero_end(z));
        OK(ds_zero_step(z, &report));
        CHECK_EQ(report.step, 1);
        CHECK_EQ(report.samples, 2);
        CHECK_NEAR(report.loss, 1.0, 0);
        ds_zero_destroy(z);
        ds_config_free(c);
    }
}

/* A generation reads more parts than a store's transfers can be told apart, while the last step's writes may still go on;
   and the next step has the bits that it has without one. */
static void long_generation(void) {
    TEST(a thousand fetches from the disk between two steps) {
        static float after[2][NUMEL];
        for (int generates = 0; generates < 2; generates++) {
            ds_zero_param params[N];
            char folder[] = "/tmp/ds_zero_test_XXXXXX", zero[700];
            ds_config *c;
            ds_zero *z;
            if (!CHECK(mkdtemp(folder) != NULL)) break;
            snprintf(zero, sizeof zero,
                     "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"stage3_max_live_parameters\": 0, "
                     "\"sub_group_size\": 1024, "
                     "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"%s\", \"pipeline_read\": true, "
                     "\"pipeline_write\": true}, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"%s\", "
                     "\"max_in_cpu\": 0, \"buffer_count\": 1}",
                     folder, folder);
            c = config_with(zero, "");
            describe(params, DS_F32);
            z = engine(c, params, NULL);
            for (int step = 0; z && step < 2; step++) {
                ds_zero_report report;
                micro_batch(z, gradient);
                micro_batch(z, gradient);
                OK(ds_zero_step(z, &report));
                for (int n = 0; generates && n < 400; n++) {
                    OK(ds_zero_begin(z, DS_ZERO_GENERATE));
                    for (size_t i = 0; i < N; i++) {
                        OK(ds_zero_fetch(z, i, NULL));
                        OK(ds_zero_release(z, i));
                    }
                    OK(ds_zero_end(z));
                }
            }
            if (z) OK(ds_zero_read(z, 1, -1, 0, NUMEL, after[generates]));
            ds_zero_destroy(z);
            ds_config_free(c);
            CHECK(rmdir(folder) == 0);
        }
        CHECK(memcmp(after[0], after[1], sizeof after[0]) == 0);
    }
}

static void create_errors(void) {
    TEST(descriptors that cannot be) {
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 1", ""), *two;
        ds_zero_desc d;
        ds_zero *z = NULL;
        ds_error e = {DS_OK, ""};
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_ARGUMENT && z == NULL);
        d.config = c;
        d.params = params;
        d.n_params = N;
        params[2].name = "alpha";
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "parameters 0 and 2 are both called 'alpha'");
        describe(params, DS_BF16);
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "'alpha': dtype");
        describe(params, DS_F32);
        params[1].group = 4;
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "'beta': group 4");
        params[1].group = 0;
        params[1].shape[0] = SIZE_MAX / 2;
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "'beta': its shape overflows");
        CHECK(ds_zero_create_(&d, 8, DS_ZERO_VERSION, &z, &e) == DS_ERR_VERSION);
        CHECK(ds_zero_create_(&d, sizeof d, 7, &z, &e) == DS_ERR_VERSION);
        describe(params, DS_F32);
        two = config_for("{\"train_batch_size\": 4, \"optimizer\": {\"type\": \"Adam\"}}", 2);
        d.config = two;
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_INPUT);
        CHECK_HAS(e.message, "resolved for 2 ranks and there are 1");
        ds_config_free(two);
        two = config_for("{\"train_batch_size\": 4}", 1);
        d.config = two;
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_INPUT);
        CHECK_HAS(e.message, "optimizer.type: missing");
        ds_config_free(two);
        two = config_for("{\"train_batch_size\": 4, \"optimizer\": {\"type\": \"Sophia\"}}", 1);
        d.config = two;
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_INPUT);
        CHECK_HAS(e.message, "AdamW");
        ds_config_free(two);
        ds_config_free(c);
    }
    TEST(a key that nothing acts on is named) {
        ds_error e = {DS_OK, ""};
        static const char *const own[] = {"memory_breakdown"};
        ds_config *c = config_for("{\"train_batch_size\": 4, \"memory_breakdown\": true, \"graph_harvesting\": true,\n"
                                  "\"optimizer\": {\"type\": \"AdamW\"}, \"zero_optimization\": {\"stage\": 3}}",
                                  1);
        CHECK(ds_zero_unclaimed(c, own, 1, &e) == DS_ERR_UNSUPPORTED);
        CHECK_HAS(e.message, "graph_harvesting (1:");
        CHECK(strstr(e.message, "memory_breakdown") == NULL && strstr(e.message, "optimizer") == NULL);
        ds_config_free(c);
    }
}

typedef struct told {
    char lines[20000], tags[2000];
} told;

static void take_line(void *ctx, const char *header, int level, int id, const char *message) {
    told *w = (told *)ctx;
    size_t at = strlen(w->lines);
    (void)header;
    snprintf(w->lines + at, sizeof w->lines - at, "%d.%d %s\n", level, id, message);
}

static void take_event(void *ctx, const char *tag, double value, int64_t samples) {
    told *w = (told *)ctx;
    size_t at = strlen(w->tags);
    CHECK(isfinite(value) && value >= 0);
    snprintf(w->tags + at, sizeof w->tags - at, "%s@%lld\n", tag, (long long)samples);
}

static void telling(void) {
    TEST(wall_clock_breakdown and steps_per_print and dump_state tell what they say) {
        static const char *const tags[] = {"forward", "backward", "backward_inner", "backward_allreduce", "step"};
        for (int on = 0; on < 2; on++) {
            ds_zero_param params[N];
            ds_config *c = config_with(on ? "\"stage\": 2, \"round_robin_gradients\": true" : "\"stage\": 2",
                                       on ? "\"wall_clock_breakdown\": true, \"dump_state\": true, "
                                            "\"steps_per_print\": 2,"
                                          : "\"steps_per_print\": null,");
            ds_zero_desc d;
            ds_zero *z;
            told w;
            memset(&w, 0, sizeof w);
            memset(&d, 0, sizeof d);
            d.event = take_event;
            d.event_ctx = &w;
            d.logger.log = take_line;
            d.logger.ctx = &w;
            describe(params, DS_F32);
            z = engine(c, params, &d);
            CHECK((strstr(w.lines, "\"train_batch_size\"") != NULL) == (on == 1));
            CHECK((strstr(w.lines, "2.8 stage 2, rank 0 of 1, optimizer AdamW, 3 parameters") != NULL) == (on == 1));
            CHECK((strstr(w.lines, "2.8 states: ") != NULL) == (on == 1));
            CHECK((strstr(w.lines, "2.14 zero_optimization.round_robin_gradients: ") != NULL) == (on == 1));
            for (int step = 0; step < 3; step++) {
                micro_batch(z, gradient);
                micro_batch(z, gradient);
                OK(ds_zero_step(z, NULL));
            }
            for (size_t k = 0; k < 5; k++) {
                char tag[96];
                snprintf(tag, sizeof tag, "Train/Samples/elapsed_time_ms_%s@%lld\n", tags[k],
                         (long long)ds_zero_samples(z));
                CHECK((strstr(w.tags, tag) != NULL) == (on == 1));
            }
            CHECK((strstr(w.lines, "2.7 step=2, skipped=0, loss=") != NULL) == (on == 1));
            CHECK(strstr(w.lines, "2.7 step=1") == NULL && strstr(w.lines, "2.7 step=3") == NULL);
            ds_zero_destroy(z);
            ds_config_free(c);
        }
    }
}

static void numbers(void) {
    TEST(a gradient that overflows skips the step and names the parameter) {
        for (int stage = 0; stage < 4; stage++) {
            char zero[64];
            ds_zero_param params[N];
            ds_config *c;
            ds_zero *z;
            ds_zero_report r;
            float before[8], after[8], bad[NUMEL];
            snprintf(zero, sizeof zero, "\"stage\": %d", stage);
            c = config_with(zero, "");
            describe(params, DS_F32);
            z = engine(c, params, NULL);
            memcpy(bad, gradient, sizeof bad);
            bad[1234] = (float)INFINITY;
            OK(ds_zero_read(z, 1, -1, 0, 8, before));
            micro_batch(z, gradient);
            OK(ds_zero_begin(z, DS_ZERO_TRAIN));
            for (size_t i = 0; i < N; i++) OK(ds_zero_grad(z, i, i == 1 ? bad : gradient, NULL));
            OK(ds_zero_end(z));
            OK(ds_zero_step(z, &r));
            CHECK(r.skipped && r.overflow_param == 1 && r.skipped_steps == 1);
            OK(ds_zero_read(z, 1, -1, 0, 8, after));
            CHECK(memcmp(before, after, sizeof before) == 0);
            micro_batch(z, gradient);
            micro_batch(z, gradient);
            OK(ds_zero_step(z, &r)); /* and the next one is a step like any other */
            CHECK(!r.skipped && r.step == 2);
            OK(ds_zero_read(z, 1, -1, 0, 8, after));
            CHECK(memcmp(before, after, sizeof before) != 0);
            ds_zero_destroy(z);
            ds_config_free(c);
        }
    }
    TEST(overflow at the smallest loss scale ends the training) {
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 2",
                                   "\"fp16\": {\"enabled\": true, \"initial_scale_power\": 0, \"hysteresis\": 1},");
        ds_zero *z;
        uint16_t bad[NUMEL];
        describe(params, DS_F16);
        z = engine(c, params, NULL);
        CHECK_NEAR(ds_zero_loss_scale(z), 0.5, 0);
        for (int i = 0; i < NUMEL; i++) bad[i] = 0x7C00;
        for (int k = 0; k < 2; k++) {
            OK(ds_zero_begin(z, DS_ZERO_TRAIN));
            for (size_t i = 0; i < N; i++) OK(ds_zero_grad(z, i, bad, NULL));
            OK(ds_zero_end(z));
        }
        BAD(ds_zero_step(z, NULL), DS_ERR_NUMERIC, "'alpha' is not finite at the smallest loss scale");
        ds_zero_destroy(z);
        ds_config_free(c);
    }
    TEST(frozen parameters stay; memory of the model is updated in place; groups have their own rate) {
        for (int stage = 0; stage < 4; stage++) {
            char zero[128];
            static float memory[N][NUMEL], start[NUMEL];
            ds_zero_param params[N];
            ds_zero_group groups[2] = {{-1, -1}, {0.0, -1}};
            ds_zero_desc more;
            ds_config *c;
            ds_zero *z;
            float got[NUMEL];
            snprintf(zero, sizeof zero, "\"stage\": %d, \"stage3_param_persistence_threshold\": 0", stage);
            c = config_with(zero, "");
            describe(params, DS_F32);
            init(NULL, 0, NUMEL, start);
            for (int i = 0; i < N; i++) {
                memcpy(memory[i], start, sizeof start);
                params[i].data = memory[i];
                params[i].init = NULL;
            }
            params[1].frozen = true;
            params[2].group = 1; /* learning rate 0 */
            memset(&more, 0, sizeof more);
            more.groups = groups;
            more.n_groups = 2;
            z = engine(c, params, &more);
            for (int k = 0; k < 2; k++) {
                OK(ds_zero_begin(z, DS_ZERO_TRAIN));
                BAD(ds_zero_grad(z, 1, gradient, NULL), DS_ERR_STATE, "'beta', which is frozen");
                for (size_t i = 0; i < N; i++) {
                    OK(ds_zero_fetch(z, i, NULL));
                    CHECK(memcmp(slots[i], start, sizeof start) == 0);
                    OK(ds_zero_release(z, i));
                }
                OK(ds_zero_grad(z, 0, gradient, NULL));
                OK(ds_zero_grad(z, 2, gradient, NULL));
                OK(ds_zero_end(z));
            }
            OK(ds_zero_step(z, NULL));
            OK(ds_zero_read(z, 0, -1, 0, NUMEL, got));
            CHECK(memcmp(got, start, sizeof start) != 0);
            CHECK((memcmp(memory[0], got, sizeof got) == 0) == (stage < 3));
            OK(ds_zero_read(z, 1, -1, 0, NUMEL, got));
            CHECK(memcmp(got, start, sizeof start) == 0);
            OK(ds_zero_read(z, 2, -1, 0, NUMEL, got));
            CHECK(memcmp(got, start, sizeof start) == 0);
            BAD(ds_zero_read(z, 1, 0, 0, 1, got), DS_ERR_ARGUMENT, "'beta': state 0");
            ds_zero_destroy(z);
            ds_config_free(c);
        }
    }
    TEST(the stop flag comes with the step) {
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 1", "");
        ds_zero *z;
        ds_zero_report r;
        describe(params, DS_F32);
        z = engine(c, params, NULL);
        micro_batch(z, gradient);
        ds_zero_stop(z);
        micro_batch(z, gradient);
        OK(ds_zero_step(z, &r));
        CHECK(r.stop);
        ds_zero_destroy(z);
        ds_config_free(c);
    }
}

static void checkpoints(void) {
    TEST(saving and loading; masters from fp32 or from the copy of the model) {
        char folder[] = "/tmp/ds_zero_XXXXXX", command[64];
        ds_zero_param params[N];
        ds_config *c[2];
        ds_zero *z;
        float saved[NUMEL], got[NUMEL], state[NUMEL], got_state[NUMEL];
        uint16_t half[NUMEL];
        const void *client;
        size_t bytes;
        CHECK(mkdtemp(folder) != NULL);
        c[0] = config_with("\"stage\": 2", "\"bf16\": {\"enabled\": true},");
        c[1] = config_with("\"stage\": 3, \"load_from_fp32_weights\": false, \"stage3_param_persistence_threshold\": 0",
                           "\"bf16\": {\"enabled\": true},");
        describe(params, DS_BF16);
        for (int i = 0; i < NUMEL; i++) half[i] = dsi_bf16_of_f32(gradient[i]);
        z = engine(c[0], params, NULL);
        for (int k = 0; k < 4; k++) {
            micro_batch(z, half);
            if (k & 1) OK(ds_zero_step(z, NULL));
        }
        OK(ds_zero_read(z, 1, -1, 0, NUMEL, saved));
        OK(ds_zero_read(z, 1, 0, 0, NUMEL, state));
        OK(ds_zero_save(z, folder, NULL, "client", 7));
        BAD(ds_zero_save(z, folder, "a/b", NULL, 0), DS_ERR_ARGUMENT, "a/b");
        ds_zero_destroy(z);
        for (int k = 0; k < 2; k++) {
            bool whole = true;
            z = engine(c[k], params, NULL);
            OK(ds_zero_load(z, folder, NULL, &client, &bytes));
            CHECK(bytes == 7 && strcmp((const char *)client, "client") == 0);
            CHECK_EQ(ds_zero_steps(z), 2);
            OK(ds_zero_read(z, 1, -1, 0, NUMEL, got));
            OK(ds_zero_read(z, 1, 0, 0, NUMEL, got_state));
            CHECK(memcmp(state, got_state, sizeof state) == 0);
            for (int i = 0; i < NUMEL; i++) {
                whole &= got[i] == saved[i];
                CHECK(k == 0 || got[i] == dsi_f32_of_bf16(dsi_bf16_of_f32(saved[i])));
            }
            CHECK(whole == (k == 0));
            BAD(ds_zero_load(z, "/nonexistent", NULL, NULL, NULL), DS_ERR_INPUT, "/nonexistent");
            CHECK_EQ(ds_zero_steps(z), 2);
            ds_zero_destroy(z);
        }
        params[2].shape[0]--;
        z = engine(c[0], params, NULL);
        BAD(ds_zero_load(z, folder, NULL, NULL, NULL), DS_ERR_INPUT, "'gamma'");
        OK(ds_zero_begin(z, DS_ZERO_TRAIN)); /* the engine goes on as it was */
        ds_zero_destroy(z);
        snprintf(command, sizeof command, "rm -r %s", folder);
        CHECK(system(command) == 0);
        ds_config_free(c[0]);
        ds_config_free(c[1]);
    }
}

static const char *const memory_settings[] = {
    "\"stage\": 0",
    "\"stage\": 2, \"offload_optimizer\": {\"device\": \"cpu\", \"pin_memory\": true}",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"stage3_max_live_parameters\": 4000",
    "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": "
    "\"build\"}, "
    "\"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"build\"}, \"sub_group_size\": 2048",
};

static void memory(void) {
    for (size_t k = 0; k < 4; k++) {
        char name[64];
        snprintf(name, sizeof name, "memory, setting %zu", k);
        TEST_NAMED(name) {
            ds_zero_param params[N];
            ds_config *c = config_with(memory_settings[k], "");
            ds_zero_desc d;
            ds_zero *z;
            test_memory m = {0};
            size_t after_first = 0;
            describe(params, DS_F32);
            memset(&d, 0, sizeof d);
            d.allocator.alloc = test_alloc;
            d.allocator.release = test_release;
            d.allocator.ctx = &m;
            z = engine(c, params, &d);
            for (int step = 0; step < 4; step++) {
                micro_batch(z, gradient);
                micro_batch(z, gradient);
                OK(ds_zero_step(z, NULL));
                if (step == 1) after_first = m.calls;
            }
            CHECK_EQ(m.calls, after_first); /* from the second step on nothing is allocated */
            ds_zero_destroy(z);
            CHECK_EQ(m.live, 0);
            CHECK_EQ(m.mismatches, 0);
            ds_config_free(c);
        }
        snprintf(name, sizeof name, "every allocation of create failing in turn, setting %zu", k);
        TEST_NAMED(name) {
            ds_zero_param params[N];
            ds_config *c = config_with(memory_settings[k], "");
            for (size_t n = 1; n < 1000; n++) {
                ds_zero_desc d;
                ds_zero *z = NULL;
                ds_error e = {DS_OK, ""};
                test_memory m = {0};
                describe(params, DS_F32);
                memset(&d, 0, sizeof d);
                d.config = c;
                d.params = params;
                d.n_params = N;
                m.fail_at = n;
                d.allocator.alloc = test_alloc;
                d.allocator.release = test_release;
                d.allocator.ctx = &m;
                if (ds_zero_create(&d, &z, &e) == DS_OK) {
                    ds_zero_destroy(z);
                    CHECK(n > 10);
                    n = 1000;
                } else {
                    if (!CHECK(e.status == DS_ERR_MEMORY && z == NULL)) printf("  allocation %zu: %s\n", n, e.message);
                    CHECK(strstr(e.message, "memory") != NULL);
                }
                CHECK_EQ(m.live, 0);
                CHECK_EQ(m.mismatches, 0);
            }
            ds_config_free(c);
        }
    }
    TEST(the plan needs no ranks) {
        ds_zero_param params[N];
        ds_config *c = config_for("{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, "
                                  "\"bf16\": {\"enabled\": true},"
                                  "\"zero_optimization\": {\"stage\": 1}}",
                                  64);
        ds_zero_desc d;
        size_t total = 0;
        memset(&d, 0, sizeof d);
        describe(params, DS_BF16);
        params[0].shape[0] = 1 << 22;
        d.config = c;
        d.params = params;
        d.n_params = 1;
        for (int r = 0; r < 64; r++) {
            ds_zero_bytes b;
            OK(ds_zero_plan(&d, r, 64, &b, NULL));
            CHECK_EQ(b.bytes[DS_ZERO_PARAMS][DS_ZERO_DEVICE], (1 << 22) * 2);
            CHECK_EQ(b.bytes[DS_ZERO_STATES][DS_ZERO_DEVICE], (1 << 22) / 64 * 12);
            total += b.bytes[DS_ZERO_STATES][DS_ZERO_DEVICE];
        }
        CHECK_EQ(total, (size_t)12 << 22);
        ds_config_free(c);
        for (int k = 0; k < 3; k++) { /* nodes of no rank's size are none; a model of nothing has no parts on them */
            ds_zero_bytes b;
            c = config_for("{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, "
                           "\"zero_optimization\": {\"stage\": 3, \"stage3_param_persistence_threshold\": 0}}",
                           4);
            c->zero_optimization.zero_hpz_partition_size = k ? 2 : 0;
            describe(params, DS_F32);
            params[0].shape[0] = 1 << 22;
            d.config = c;
            d.n_params = k != 2;
            OK(ds_zero_plan(&d, 3, 4, &b, NULL));
            CHECK_EQ(b.bytes[DS_ZERO_PARAMS][DS_ZERO_DEVICE], k == 2 ? 0 : (size_t)(k ? 3 : 1) << 22);
            ds_config_free(c);
        }
        c = config_for("{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, "
                       "\"bf16\": {\"enabled\": true}, \"communication_data_type\": \"fp32\", \"data_types\": "
                       "{\"grad_accum_dtype\": \"fp32\"}, \"ds\": {\"world_invariant\": true}}",
                       4);
        describe(params, DS_BF16);
        d.config = c;
        d.n_params = N;
        { /* said of the types what holds anyway */
            ds_zero_bytes b;
            OK(ds_zero_plan(&d, 0, 4, &b, NULL));
        }
        ds_config_free(c);
    }
    TEST(a plan that does not fit is refused with its largest item and the cheapest change) {
        static const struct {
            size_t limit[3];
            const char *text, *advice;
        } rows[] = {
            {{20000000, 0, 0},
             "limit is 20000000; its largest item is fp32 master weights, 8847360 bytes",
             "stage 1 would fit"},
            {{11000000, 0, 0}, "on the device", "with stage 2, reduce_bucket_size 1000000 would"},
            {{10400000, 0, 0}, "on the device", "with stage 3, reduce_bucket_size 1000000 would"},
            {{9500000, 0, 0}, "on the device", "with stage 3, reduce_bucket_size 100000 would"},
            {{6500000, 0, 0},
             "on the device",
             "with stage 3, reduce_bucket_size 1000000, offload_optimizer.device cpu would"},
            {{6500000, 3000000, 0}, "on the device", "offload_optimizer.device nvme"},
            {{1000, 1000, 0}, "on the device", "; no stage, offload or smaller size would make it fit"},
        };
        ds_zero_param params[N];
        ds_config *c[2];
        for (int k = 0; k < 2; k++)
            c[k] = config_for("{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, "
                              "\"bf16\": {\"enabled\": true}, \"aio\": {\"block_size\": 4096}, "
                              "\"zero_optimization\": {\"stage\": 0, "
                              "\"stage3_param_persistence_threshold\": 0, \"stage3_max_live_parameters\": 30000, "
                              "\"stage3_prefetch_bucket_size\": 0, \"sub_group_size\": 100000}}",
                              k ? 8 : 1);
        for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
            ds_zero_desc d;
            ds_zero *z = NULL;
            ds_zero_bytes b;
            ds_error e = {DS_OK, ""};
            size_t total = 0;
            describe(params, DS_BF16);
            memset(&d, 0, sizeof d);
            for (int i = 0; i < N; i++) params[i].shape[0] = 720 * DS_GRAIN;
            d.config = c[1];
            d.params = params;
            d.n_params = N;
            memcpy(d.limit, rows[k].limit, sizeof d.limit);
            CHECK(ds_zero_plan(&d, 0, 8, &b, &e) == DS_ERR_MEMORY);
            if (!CHECK(strstr(e.message, rows[k].text) && strstr(e.message, rows[k].advice)))
                printf("  %s\n", e.message);
            if (k) continue;
            for (int i = 0; i < N; i++) params[i].shape[0] = NUMEL;
            d.config = c[0];
            d.limit[0] = 1000;
            CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_MEMORY && z == NULL);
            CHECK(ds_zero_plan(&d, 0, 1, &b, &e) == DS_ERR_MEMORY);
            for (int class_ = 0; class_ < DS_ZERO_CLASSES; class_++) total += b.bytes[class_][DS_ZERO_DEVICE];
            d.limit[0] = total; /* just enough */
            CHECK(ds_zero_create(&d, &z, &e) == DS_OK);
            ds_zero_destroy(z);
            d.limit[0]--;
            CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_MEMORY);
        }
        ds_config_free(c[0]);
        ds_config_free(c[1]);
    }
    TEST(the change that is proposed leaves out what is set already and what would be refused) {
#define CPU "\"stage\": 3, \"reduce_bucket_size\": 1000000, \"offload_optimizer\": {\"device\": \"cpu\""
        static const struct {
            const char *zero;
            size_t limit[3];
            const char *advice;
        } rows[] = {
            {"\"stage\": 0, \"overlap_comm\": true, \"reduce_bucket_size\": 1000000, \"allgather_bucket_size\": "
             "1000000",
             {2000000000, 0, 0},
             "; zero_optimization with stage 1 would fit"},
            {"\"stage\": 0, \"overlap_comm\": true, \"reduce_bucket_size\": 1000000, \"allgather_bucket_size\": "
             "1000000",
             {700000000, 0, 0},
             "; zero_optimization with stage 2, offload_optimizer.device cpu would fit"},
            {CPU "}", {410000000, 0, 0}, "; zero_optimization with offload_param.device cpu would fit"},
            {CPU "}, \"offload_param\": {\"device\": \"cpu\"}",
             {300000000, 0, 0},
             "; no stage, offload or smaller size would"},
            {CPU "}",
             {0, 300000000, 0},
             "in host memory and the limit is 300000000; its largest item is fp32 master weights, 100663296 bytes; "
             "zero_optimization with offload_optimizer.device nvme, sub_group_size 1000000 would fit"},
            {CPU ", \"nvme_path\": \"/fast\"}, \"offload_param\": {\"device\": \"cpu\", \"nvme_path\": \"/fast\", "
                 "\"max_in_cpu\": 0, \"buffer_count\": 1}",
             {0, 60000000, 0},
             "; zero_optimization with offload_optimizer.device nvme, sub_group_size 100000 would fit"},
            {CPU "}, \"sub_group_size\": 900000",
             {0, 300000000, 0},
             "; zero_optimization with offload_optimizer.device nvme would fit"},
            {CPU ", \"buffer_count\": 1}",
             {0, 300000000, 0},
             "; zero_optimization with offload_optimizer.device nvme, sub_group_size 1000000, "
             "offload_optimizer.buffer_count 5 would fit"},
            {"\"stage\": 3, \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"/fast\"}, "
             "\"sub_group_size\": 900000",
             {0, 0, 300000000},
             "bytes of memory on disk and the limit is 300000000; its largest item is fp32 master weights, 100663296 "
             "bytes; "
             "zero_optimization with offload_optimizer.device cpu would fit"},
        };
        for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
            char text[1000];
            ds_zero_param params[N];
            ds_config *c;
            ds_zero_desc d;
            ds_zero *z = NULL;
            ds_error e = {DS_OK, ""};
            snprintf(text, sizeof text,
                     "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"bf16\": "
                     "{\"enabled\": true}, \"aio\": {\"block_size\": 4096}, \"zero_optimization\": "
                     "{\"stage3_param_persistence_threshold\": 0, \"stage3_max_live_parameters\": 30000, %s}}",
                     rows[k].zero);
            c = config_for(text, 8);
            memset(&d, 0, sizeof d);
            describe(params, DS_BF16);
            for (int i = 0; i < N; i++) params[i].shape[0] = (size_t)1 << 26;
            d.config = c;
            d.params = params;
            d.n_params = N;
            memcpy(d.limit, rows[k].limit, sizeof d.limit);
            {
                ds_zero_bytes b;
                CHECK(ds_zero_plan(&d, 0, 8, &b, &e) == DS_ERR_MEMORY);
            }
            if (!CHECK(strstr(e.message, rows[k].advice))) printf("  %zu: %s\n", k, e.message);
            ds_config_free(c);
            c = config_for(text, 1); /* and nothing is made */
            d.config = c;
            CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_MEMORY && z == NULL);
            ds_config_free(c);
        }
#undef CPU
    }
    TEST(a change that is proposed fits and no key of it is idle and without one none does) {
        static const char *const choice[SETTINGS][4] = {
            {"0", "1", "2", "3"},           {NULL, "50000", "2000", "3000000"},
            {NULL, "1000", "200000", NULL}, {NULL, NULL, "400000", "0"},
            {NULL, "0", "1000", "100000"},  {NULL, "1000000", "3000", NULL},
            {NULL, "cpu", "nvme", "none"},  {NULL, NULL, "1", "12"},
            {NULL, NULL, "cpu", "nvme"},    {NULL, NULL, "20000", "1000000"},
            {NULL, NULL, "2", "7"},         {NULL, NULL, "0", "100000"}};
        static const char *const more[] = {"", "\"bf16\": {\"enabled\": true}, ",
                                           "\"bf16\": {\"enabled\": true}, \"gradient_accumulation_steps\": 4, "};
        static const char *const least[SETTINGS] = {"3", "1000", "1000", "0",    "0", "1000",
                                                    "",  "5",    "",     "1000", "1", "0"};
        unsigned seed = 1, refused = 0, named[SETTINGS] = {0}, none = 0;
#define DRAW(n) (seed = seed * 1103515245u + 12345u, (seed >> 16) % (n))
        for (int run = 0; run < 600; run++) {
            const char *settings[SETTINGS], *values[SETTINGS], *had[SETTINGS];
            ds_zero_param params[5];
            ds_zero_desc d;
            ds_zero_bytes b;
            ds_error e = {DS_OK, ""};
            size_t world = (size_t)1 << DRAW(4), total[3] = {0, 0, 0};
            const char *types = more[DRAW(3)];
            int keys[SETTINGS], n, stage;
            memset(&d, 0, sizeof d);
            memset(params, 0, sizeof params);
            d.params = params;
            d.n_params = 1 + DRAW(5);
            for (size_t i = 0; i < d.n_params; i++) {
                params[i].name = &"a\0b\0c\0d\0e"[2 * i];
                params[i].dims = 1;
                params[i].shape[0] = DRAW(3) ? 1 + DRAW(3000) : 1 + DRAW(2000) * 1000;
            }
            for (int k = 0; k < SETTINGS; k++) settings[k] = choice[k][DRAW(4)];
            stage = settings[0][0] - '0';
            if (stage < 3) settings[8] = NULL;
            if (stage == 0 || (stage < 3 && settings[6] && !strcmp(settings[6], "nvme"))) settings[6] = NULL;
            if (settings_plan(settings, types, &d, world, &b, &e)) continue; /* buffer_count 1 and states on nvme */
            for (int t = 0; t < 3; t++)
                for (int k = 0; k < DS_ZERO_CLASSES; k++) total[t] += b.bytes[k][t];
            for (int t = 0; t < 3; t++)
                if (DRAW(2)) d.limit[t] = total[t] / 100 * (10 + DRAW(100));
            n = settings_plan(settings, types, &d, world, &b, &e);
            if (n != DS_ERR_MEMORY) continue;
            refused++;
            n = settings_parse(e.message, keys, values);
            if (!CHECK(n >= 0)) printf("  run %d: %s\n", run, e.message);
            for (int k = 0; k < n; k++) {
                had[k] = settings[keys[k]];
                settings[keys[k]] = values[k];
                named[keys[k]]++;
            }
            if (n > 0) {
                ds_error after = {DS_OK, ""};
                if (!CHECK(settings_plan(settings, types, &d, world, &b, &after) == DS_OK))
                    printf("  run %d: with the %d changes: %s\n", run, n, after.message);
                for (int k = 0; k < n; k++) {
                    settings[keys[k]] = had[k];
                    if (!CHECK(settings_plan(settings, types, &d, world, &b, &after) != DS_OK))
                        printf("  run %d: %s need not change\n", run, setting_names[keys[k]]);
                    settings[keys[k]] = values[k];
                }
                continue;
            }
            none++;
            for (int k = 0; k < 9; k++) {
                static const char *const devices[] = {"none", "cpu", "nvme"};
                ds_error after = {DS_OK, ""};
                memcpy(had, least, sizeof had);
                had[6] = devices[k / 3];
                had[8] = devices[k % 3];
                if (k % 3 > k / 3) continue; /* parameters further away than states */
                if ((settings[6] && strcmp(had[6], settings[6]) && strcmp(had[6], "nvme") &&
                     strcmp(settings[6], "none")) ||
                    (settings[8] && strcmp(had[8], settings[8]) && strcmp(had[8], "nvme")))
                    continue; /* what is offloaded stays so */
                if (!CHECK(settings_plan(had, types, &d, world, &b, &after) != DS_OK))
                    printf("  run %d: states on %s, parameters on %s fit\n", run, had[6], had[8]);
            }
        }
#undef DRAW
        CHECK(refused > 150 && none > 10);
        for (int k = 0; k < SETTINGS; k++)
            if (k != 10 && !CHECK(named[k] > 0)) printf("  no run named %s\n", setting_names[k]);
    }
    TEST(two engines in one process) {
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 3, \"stage3_param_persistence_threshold\": 0", "");
        ds_zero *a, *b;
        float x[4], y[4];
        describe(params, DS_F32);
        a = engine(c, params, NULL);
        b = engine(c, params, NULL);
        micro_batch(a, gradient);
        micro_batch(b, gradient);
        micro_batch(a, gradient);
        micro_batch(b, gradient);
        OK(ds_zero_step(a, NULL));
        OK(ds_zero_step(b, NULL));
        OK(ds_zero_read(a, 0, -1, 100, 4, x));
        OK(ds_zero_read(b, 0, -1, 100, 4, y));
        CHECK(memcmp(x, y, sizeof x) == 0);
        ds_zero_destroy(a);
        ds_zero_destroy(b);
        ds_config_free(c);
    }
}

/* What a program may have changed in a configuration after parsing, or asks of a wrong number of ranks. */
static void refusals(void) {
    TEST(settings that contradict each other are refused with their key) {
        ds_zero_param params[N];
        ds_zero_desc d;
        ds_zero_bytes b;
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        d.params = params;
        d.n_params = N;
#define REFUSED(stage_, more, change, status, text)                                                                    \
    do {                                                                                                               \
        ds_error e = {DS_OK, ""};                                                                                      \
        ds_config *c = config_with(stage_, more);                                                                      \
        change;                                                                                                        \
        d.config = c;                                                                                                  \
        CHECK(ds_zero_plan(&d, 0, (int)c->world_size, &b, &e) == (status));                                            \
        CHECK_HAS(e.message, text);                                                                                    \
        ds_config_free(c);                                                                                             \
    } while (0)
#define ZERO c->zero_optimization
        REFUSED("\"stage\": 3", "", ZERO.stage = 2; ZERO.zero_hpz_partition_size = 2, DS_ERR_INPUT,
                                                    "zero_hpz_partition_size: needs stage 3, and the stage is 2");
        REFUSED("\"stage\": 3", "", ZERO.zero_hpz_partition_size = 2, DS_ERR_INPUT,
                "zero_hpz_partition_size: 2 ranks do not divide the world of 1");
        REFUSED("\"stage\": 2", "", ZERO.zero_quantized_weights = true, DS_ERR_INPUT,
                "zero_quantized_weights: needs stage 3, and the stage is 2");
        REFUSED("\"stage\": 1", "", ZERO.zero_quantized_gradients = true, DS_ERR_INPUT,
                "zero_quantized_gradients: needs stage 2 or 3, and the stage is 1");
        REFUSED("\"stage\": 2", "", ZERO.zero_quantized_gradients = true;
                ZERO.reduce_scatter = false, DS_ERR_INPUT, "zero_quantized_gradients: needs reduce_scatter");
        REFUSED("\"stage\": 3", "\"ds\": {\"world_invariant\": true},", ZERO.zero_quantized_weights = true,
                DS_ERR_INPUT, "cannot be combined with zero_optimization.zero_quantized_weights");
        REFUSED("\"stage\": 2", "\"ds\": {\"world_invariant\": true},", ZERO.zero_quantized_gradients = true,
                DS_ERR_INPUT, "cannot be combined with zero_optimization.zero_quantized_gradients");
        REFUSED("\"stage\": 2", "\"bf16\": {\"enabled\": true}, \"communication_data_type\": \"bf16\",",
                c->ds.world_invariant = true, DS_ERR_INPUT, "take out communication_data_type");
        REFUSED("\"stage\": 2", "\"bf16\": {\"enabled\": true}, \"data_types\": {\"grad_accum_dtype\": \"bf16\"},",
                c->ds.world_invariant = true, DS_ERR_INPUT, "take out data_types.grad_accum_dtype");
        REFUSED("\"stage\": 2",
                "\"bf16\": {\"enabled\": true}, \"communication_data_type\": \"fp32\", \"data_types\": "
                "{\"grad_accum_dtype\": \"bf16\"},",
                c->ds.world_invariant = true, DS_ERR_INPUT, "take out data_types.grad_accum_dtype");
        REFUSED("\"stage\": 1", "", c->ds.world_invariant = c->ds.reduce_at_boundary = true, DS_ERR_INPUT,
                "reduce_at_boundary: cannot be combined with ds.world_invariant");
        REFUSED("\"stage\": 1", "", ZERO.stage = 2; c->ds.reduce_at_boundary = true, DS_ERR_INPUT,
                                                    "reduce_at_boundary: needs stage 0 or 1, and the stage is 2");
        REFUSED("\"stage\": 0", "", ZERO.offload_optimizer.device = DS_CONFIG_CPU, DS_ERR_INPUT,
                "offload_optimizer.device: needs stage 1, 2 or 3, and the stage is 0");
        REFUSED("\"stage\": 2", "", ZERO.offload_optimizer.device = DS_CONFIG_NVME, DS_ERR_INPUT,
                "offload_optimizer.device: nvme needs stage 3, and the stage is 2");
        REFUSED("\"stage\": 1", "", ZERO.offload_param.device = DS_CONFIG_CPU, DS_ERR_INPUT,
                "offload_param.device: needs stage 3, and the stage is 1");
        REFUSED("\"stage\": 3", "", ZERO.offload_optimizer.device = DS_CONFIG_NVME, DS_ERR_INPUT,
                "offload_optimizer.nvme_path: missing");
        REFUSED("\"stage\": 3", "", ZERO.offload_param.device = DS_CONFIG_NVME, DS_ERR_INPUT,
                "offload_param.nvme_path: missing");
        REFUSED("\"stage\": 3", "", c->gradient_accumulation_steps = 0, DS_ERR_INPUT,
                "the configuration is not resolved");
        REFUSED("\"stage\": 3", "", c->train_batch_size = 0, DS_ERR_INPUT, "the configuration is not resolved");
        REFUSED("\"stage\": 3", "\"scheduler\": {\"type\": \"WarmupLR\"},", c->scheduler.type = "Sometimes",
                DS_ERR_INPUT, "Sometimes");
        REFUSED("\"stage\": 3", "\"fp16\": {\"enabled\": true},", c->fp16.loss_scale_window = 0, DS_ERR_ARGUMENT,
                "window");
#undef REFUSED
    }
    TEST_NAMED("keys of one part are refused beside the 1-bit optimizers and Muon") {
        static const struct {
            const char *more, *zero, *text;
        } rows[] = {
            {"\"optimizer\": {\"type\": \"OneBitAdam\"}, ", "\"stage\": 0", "OneBitAdam averages gradients itself"},
            {"\"optimizer\": {\"type\": \"OneBitAdam\"}, \"gradient_clipping\": 1.0, ", "\"stage\": 0",
             "OneBitAdam averages gradients itself"}, /* the first of two */
            {"\"optimizer\": {\"type\": \"OneBitAdam\"}, \"gradient_clipping\": 1.0, ", "\"stage\": 0",
             "gradient_clipping: OneBitAdam cannot clip"},
            {"\"optimizer\": {\"type\": \"OneBitAdam\", \"params\": {\"max_grad_norm\": 1.0}}, ", "\"stage\": 0",
             "optimizer.params.max_grad_norm: OneBitAdam cannot clip"},
            {"\"optimizer\": {\"type\": \"AdamW\", \"params\": {\"amsgrad\": true}}, ", "\"stage\": 1",
             "optimizer.params.amsgrad: expected false"},
            {"\"optimizer\": {\"type\": \"Muon\"}, ", "\"stage\": 2, \"zero_quantized_gradients\": true",
             "Muon takes 'beta' whole"},
            {"\"optimizer\": {\"type\": \"Muon\"}, ", "\"stage\": 3, \"zero_quantized_weights\": true",
             "Muon takes 'beta' whole"},
        };
        for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
            char text[400];
            ds_zero_param params[N];
            ds_zero_desc d;
            ds_zero_bytes b;
            ds_error e = {DS_OK, ""};
            ds_config *c;
            memset(&d, 0, sizeof d);
            describe(params, DS_F32);
            params[1].dims = 2;
            params[1].shape[0] = 60;
            params[1].shape[1] = 50;
            d.params = params;
            d.n_params = N;
            snprintf(text, sizeof text, "{%s \"train_micro_batch_size_per_gpu\": 1, \"zero_optimization\": {%s}}",
                     rows[k].more, rows[k].zero);
            d.config = c = config_for(text, 2);
            if (k < 2) c->zero_optimization.stage = 1; /* which parsing refuses */
            CHECK(ds_zero_plan(&d, 0, 2, &b, &e) == DS_ERR_UNSUPPORTED);
            if (!CHECK(strstr(e.message, rows[k].text))) printf("  %s\n", e.message);
            ds_config_free(c);
        }
    }
    TEST(descriptors that make no sense) {
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 1", "");
        ds_zero_desc d;
        ds_zero_bytes b;
        ds_zero *z = NULL;
        ds_error e = {DS_OK, ""};
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        CHECK(ds_zero_create(NULL, &z, &e) == DS_ERR_ARGUMENT && !z);
        CHECK_HAS(e.message, "no config");
        CHECK(ds_zero_create(NULL, &z, NULL) == DS_ERR_ARGUMENT); /* the error may be left out */
        d.config = c;
        d.n_params = N;
#define WRONG(change, rank, world, text)                                                                               \
    do {                                                                                                               \
        change;                                                                                                        \
        CHECK(ds_zero_plan(&d, rank, world, &b, &e) == DS_ERR_ARGUMENT);                                               \
        CHECK_HAS(e.message, text);                                                                                    \
        describe(params, DS_F32);                                                                                      \
    } while (0)
        WRONG((void)0, 0, 1, "params is NULL, n_params is 3");
        d.params = params;
        WRONG((void)0, -1, 1, "rank -1 of 1");
        WRONG((void)0, 1, 1, "rank 1 of 1");
        WRONG((void)0, 0, 0, "rank 0 of 0");
        WRONG(d.n_params = UINT32_MAX, 0, 1, "4294967295 parameters");
        d.n_params = N;
        WRONG(params[1].name = NULL, 0, 1, "parameter 1 has no name");
        WRONG(params[2].name = "", 0, 1, "parameter 2 has no name");
        WRONG(params[2].name = "\xff", 0, 1, "parameter 2: its name is none for a checkpoint");
        WRONG(params[2].name = "a\nb", 0, 1, "parameter 2: its name");
        WRONG(params[2].name = "__metadata__", 0, 1, "parameter 2: its name");
        WRONG(params[2].name = "optimizer.exp_avg.alpha", 0, 1, "parameter 2: its name");
        WRONG(params[1].dims = -1, 0, 1, "'beta': -1 dimensions");
        WRONG(params[1].dims = DS_ZERO_MAX_DIMS + 1, 0, 1, "'beta': 9 dimensions, at most 8");
        d.model_group.size = 2;
        WRONG((void)0, 0, 1, "model_group has rank 0 of 2 and no exchange");
        d.model_group.exchange = no_exchange;
        WRONG(d.model_group.rank = 2, 0, 1, "model_group has rank 2 of 2");
        WRONG(d.model_group.rank = -1, 0, 1, "model_group has rank -1 of 2");
#undef WRONG
        ds_config_free(c);
    }
    TEST(an optimizer or schedule of the client is refused with its own words) {
        ds_zero_param params[N];
        ds_optim_table table;
        ds_zero_desc d;
        ds_zero_bytes b;
        ds_error e = {DS_OK, ""};
        ds_config *c = config_for("{\"train_batch_size\": 1, \"zero_optimization\": {\"stage\": 1}}", 1);
        memset(&d, 0, sizeof d);
        memset(&table, 0, sizeof table);
        describe(params, DS_F32);
        d.config = c;
        d.params = params;
        d.n_params = N;
        d.optimizer = &table;
        table.name = "mine";
        CHECK(ds_zero_plan(&d, 0, 1, &b, &e) != DS_OK); /* it has no functions */
        CHECK_HAS(e.message, "mine");
        ds_config_free(c);
    }
}

/* What is left of an engine in odd but right uses. */
static ds_zero_bytes held_by(const ds_zero *z) {
    ds_zero_stats stats;
    (void)ds_zero_get_stats(z, &stats);
    return stats.peak;
}

/* Models whose tensors are unlike: in states, in bytes, or without any. */
static void unlike(void) {
    TEST_NAMED("Muon on disk: the first tensor is a matrix, which has fewer states than the others") {
        ds_zero_param params[N];
        ds_zero_desc d;
        ds_zero_bytes plan, held;
        ds_zero *z;
        ds_config *c = config_for("{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 2, "
                                  "\"optimizer\": {\"type\": \"Muon\", \"params\": {\"lr\": 0.02}}, "
                                  "\"zero_optimization\": {\"stage\": 3, \"offload_optimizer\": "
                                  "{\"device\": \"nvme\", \"nvme_path\": \"build\"}}}",
                                  1);
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        params[0].dims = 2;
        params[0].shape[0] = params[0].shape[1] = 50;
        d.config = c;
        d.params = params;
        d.n_params = N;
        OK(ds_zero_plan(&d, 0, 1, &plan, NULL));
        z = engine(c, params, NULL);
        for (int micro = 0; z && micro < 2; micro++) micro_batch(z, gradient);
        if (z) {
            OK(ds_zero_step(z, NULL));
            held = held_by(z);
            CHECK(memcmp(&plan, &held, sizeof plan) == 0);
        }
        ds_zero_destroy(z);
        ds_config_free(c);
    }
    for (int spill = 0; spill < 2; spill++)
        TEST_NAMED("the plan's bytes on disk are those of the swap file, whose last array is of 16 bits") {
            char zero[500];
            ds_zero_param params[N];
            ds_zero_bytes held;
            ds_zero_stats stats;
            ds_config *c;
            ds_zero *z;
            size_t planned = 0;
            snprintf(zero, sizeof zero,
                     "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"offload_optimizer\": {\"device\": "
                     "\"nvme\", \"nvme_path\": \"build\"}%s",
                     spill ? ", \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"build\", \"max_in_cpu\": "
                             "1000000000}"
                           : "");
            c = config_with(zero, "\"bf16\": {\"enabled\": true},");
            describe(params, DS_BF16);
            for (int i = 0; i < N; i++) params[i].shape[0] = 10;
            z = engine(c, params, NULL);
            if (z) {
                held = held_by(z);
                OK(ds_zero_get_stats(z, &stats));
                for (int k = 0; k < DS_ZERO_CLASSES; k++) planned += held.bytes[k][DS_ZERO_DISK];
                CHECK_EQ(planned, stats.swap.file_bytes);
            }
            ds_zero_destroy(z);
            ds_config_free(c);
        }
    TEST_NAMED("an fp32 parameter of a 16-bit model has room in a window that is smaller than the model") {
        ds_zero_param params[N];
        ds_zero_desc d;
        ds_zero_bytes plan, held;
        ds_config *c = config_with("\"stage\": 3, \"stage3_param_persistence_threshold\": 0, "
                                   "\"stage3_max_live_parameters\": 100, \"stage3_prefetch_bucket_size\": 0",
                                   "\"bf16\": {\"enabled\": true},");
        ds_zero *z;
        size_t before = 0;
        memset(&d, 0, sizeof d);
        describe(params, DS_BF16);
        params[0].dtype = DS_F32;
        d.config = c;
        d.params = params;
        d.n_params = N;
        OK(ds_zero_plan(&d, 0, 1, &plan, NULL));
        z = engine(c, params, NULL);
        for (int step = 0; z && step < 3; step++) {
            ds_zero_stats stats;
            for (int micro = 0; micro < 2; micro++) micro_batch(z, gradient);
            OK(ds_zero_step(z, NULL));
            OK(ds_zero_get_stats(z, &stats));
            CHECK(step < 2 || stats.allocations == before);
            before = stats.allocations;
        }
        if (z) {
            held = held_by(z);
            CHECK(memcmp(&plan, &held, sizeof plan) == 0);
        }
        ds_zero_destroy(z);
        ds_config_free(c);
    }
    for (int stage = 0; stage < 4; stage++)
        TEST_NAMED("a model whose trained parameters are all empty lends their gradients") {
            char zero[100];
            ds_zero_param params[N];
            ds_config *c;
            ds_zero *z;
            void *buffer[N] = {0};
            snprintf(zero, sizeof zero, "\"stage\": %d", stage);
            c = config_with(zero, "");
            describe(params, DS_F32);
            for (int i = 0; i < N; i++) params[i].shape[0] = 0;
            z = engine(c, params, NULL);
            for (int micro = 0; z && micro < 2; micro++) {
                OK(ds_zero_begin(z, DS_ZERO_TRAIN));
                for (size_t i = 0; i < N; i++) OK(ds_zero_grad_buffer(z, i, &buffer[i]));
                CHECK(buffer[0] && buffer[1] && buffer[2]);
                for (size_t i = 0; i < N; i++) OK(ds_zero_grad_ready(z, i, NULL));
                OK(ds_zero_end(z));
            }
            if (z) OK(ds_zero_step(z, NULL));
            ds_zero_destroy(z);
            ds_config_free(c);
        }
}

static void no_line(void *ctx, const char *text) {
    (void)ctx, (void)text;
}

/* Arguments that are NULL, or make no sense: an error where there is a status, harmless elsewhere. */
static void arguments(void) {
    ds_zero_param params[N];
    ds_zero_group group = {NAN, -1};
    ds_zero_desc d;
    ds_zero_stats stats;
    ds_zero_bytes bytes;
    ds_error e = {DS_OK, ""};
    ds_config *c = config_with("\"stage\": 2", "");
    ds_zero *z = NULL;
    float x[4];
    memset(&d, 0, sizeof d);
    describe(params, DS_F32);
    d.config = c;
    d.params = params;
    d.n_params = N;
    TEST_NAMED("NULL where an engine, a configuration or room for the answer must be") {
        CHECK(ds_zero_begin(NULL, DS_ZERO_TRAIN) == DS_ERR_ARGUMENT && ds_zero_end(NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_zero_fetch(NULL, 0, NULL) == DS_ERR_ARGUMENT && ds_zero_release(NULL, 0) == DS_ERR_ARGUMENT);
        CHECK(ds_zero_grad(NULL, 0, x, NULL) == DS_ERR_ARGUMENT &&
              ds_zero_grad_ready(NULL, 0, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_zero_loss(NULL, 1.0) == DS_ERR_ARGUMENT && ds_zero_step(NULL, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_zero_read(NULL, 0, -1, 0, 1, x) == DS_ERR_ARGUMENT);
        CHECK(ds_zero_save(NULL, "x", NULL, NULL, 0) == DS_ERR_ARGUMENT &&
              ds_zero_save_finish(NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_zero_load(NULL, "x", NULL, NULL, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_zero_save_16bit_model(NULL, "x") == DS_ERR_ARGUMENT);
        CHECK(ds_zero_get_stats(NULL, &stats) == DS_ERR_ARGUMENT);
        CHECK(ds_zero_comm_summary(NULL, no_line, NULL) == DS_ERR_ARGUMENT);
        CHECK_HAS(ds_zero_error(NULL)->message, "engine is NULL");
        CHECK(ds_zero_steps(NULL) == 0 && ds_zero_samples(NULL) == 0 && ds_zero_rank(NULL) == 0 &&
              ds_zero_world(NULL) == 0 && ds_zero_loss_scale(NULL) == 1.0);
        ds_zero_stop(NULL);
        CHECK(ds_zero_model_dtype(NULL) == DS_F32 && ds_zero_claims(NULL) != NULL);
        CHECK(ds_zero_unclaimed(NULL, NULL, 0, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "config is NULL");
        CHECK(ds_zero_unclaimed(c, NULL, 1, &e) == DS_ERR_ARGUMENT);
        CHECK(ds_zero_plan(&d, 0, 1, NULL, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "ds_zero_plan: out is NULL");
        CHECK(ds_zero_create(&d, NULL, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "ds_zero_create: out is NULL");
    }
    TEST_NAMED("an engine refuses NULL, and leaves what the caller has") {
        void *buffer = NULL, *kept;
        z = engine(c, params, NULL);
        CHECK(ds_zero_get_stats(z, NULL) == DS_ERR_ARGUMENT);
        BAD(ds_zero_comm_summary(z, NULL, NULL), DS_ERR_ARGUMENT, "ds_zero_comm_summary: line is NULL");
        BAD(ds_zero_read(z, 0, -1, 0, 4, NULL), DS_ERR_ARGUMENT, "ds_zero_read of 'alpha': out is NULL");
        BAD(ds_zero_save(z, "build", NULL, NULL, 8), DS_ERR_ARGUMENT, "ds_zero_save: client is NULL");
        OK(ds_zero_begin(z, DS_ZERO_TRAIN));
        BAD(ds_zero_grad_buffer(z, 1, NULL), DS_ERR_ARGUMENT, "ds_zero_grad_buffer of 'beta': buffer is NULL");
        OK(ds_zero_grad_buffer(z, 1, &buffer));
        kept = buffer;
        BAD(ds_zero_grad_buffer(z, 1, &buffer), DS_ERR_STATE, "'beta' is taken");
        CHECK(buffer == kept);
        ds_zero_destroy(z);
    }
    TEST_NAMED("groups and contributions that make no sense") {
        d.groups = &group;
        d.n_groups = 1;
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "group 0: lr nan");
        group.lr = -1;
        group.weight_decay = INFINITY;
        CHECK(ds_zero_create(&d, &z, &e) == DS_ERR_ARGUMENT);
        d.groups = NULL;
        d.n_groups = 0;
        params[2].contributions = -1;
        CHECK(ds_zero_plan(&d, 0, 1, &bytes, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "'gamma': -1 contributions");
    }
    ds_config_free(c);
}

static void corners(void) {
    TEST(reads and passes out of range) {
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 2", "");
        ds_zero *z;
        float x[4];
        ds_zero_report r;
        describe(params, DS_F32);
        z = engine(c, params, NULL);
        BAD(ds_zero_begin(z, (ds_zero_pass)3), DS_ERR_ARGUMENT, "pass 3");
        BAD(ds_zero_begin(z, (ds_zero_pass)-1), DS_ERR_ARGUMENT, "pass -1");
        BAD(ds_zero_read(z, N, -1, 0, 1, x), DS_ERR_ARGUMENT, "parameter 3 of 3");
        BAD(ds_zero_read(z, 0, -2, 0, 1, x), DS_ERR_ARGUMENT, "'alpha': state -2");
        BAD(ds_zero_read(z, 0, 2, 0, 1, x), DS_ERR_ARGUMENT, "'alpha': state 2");
        BAD(ds_zero_read(z, 0, 0, NUMEL + 1, 0, x), DS_ERR_ARGUMENT, "3001 + 0 of 3000");
        BAD(ds_zero_read(z, 0, 0, NUMEL, 1, x), DS_ERR_ARGUMENT, "3000 + 1 of 3000");
        OK(ds_zero_read(z, 0, 0, NUMEL, 0, x));
        OK(ds_zero_begin(z, DS_ZERO_TRAIN));
        BAD(ds_zero_read(z, 0, 0, 0, 1, x), DS_ERR_STATE, "'alpha' while a pass is open");
        BAD(ds_zero_save_16bit_model(z, "nowhere"), DS_ERR_STATE, "a pass is open");
        BAD(ds_zero_save(z, "nowhere", NULL, NULL, 0), DS_ERR_STATE, "middle of a step");
        BAD(ds_zero_load(z, "nowhere", NULL, NULL, NULL), DS_ERR_STATE, "middle of a step");
        OK(ds_zero_end(z)); /* no gradient came: zeros */
        BAD(ds_zero_load(z, "nowhere", NULL, NULL, NULL), DS_ERR_STATE, "middle of a step");
        micro_batch(z, gradient);
        OK(ds_zero_loss(z, 4.0)); /* after the last micro-batch: still of this step */
        OK(ds_zero_step(z, &r));
        CHECK_NEAR(r.loss, 2.5, 0);
        OK(ds_zero_save_finish(z));
        ds_zero_destroy(z);
        ds_zero_destroy(NULL);
        ds_config_free(c);
    }
    TEST_NAMED("a model of nothing to train, and one of nothing") {
        for (int stage = 0; stage < 4; stage++)
            for (size_t n = 0; n <= N; n += N) {
                char zero[160], folder[] = "/tmp/ds_zero_XXXXXX", file[64], command[64];
                ds_zero_param params[N];
                ds_config *c;
                ds_zero_desc d;
                ds_zero *z = NULL;
                ds_zero_report r;
                float x[4];
                CHECK(mkdtemp(folder) != NULL);
                snprintf(file, sizeof file, "%s/all.safetensors", folder);
                snprintf(zero, sizeof zero,
                         "\"stage\": %d, \"stage3_param_persistence_threshold\": 0, "
                         "\"stage3_gather_%s_weights_on_model_save\": true",
                         stage, stage == 3 ? "fp16" : "16bit");
                c = config_with(zero, "\"bf16\": {\"enabled\": true},");
                memset(&d, 0, sizeof d);
                describe(params, DS_BF16);
                params[1].shape[0] = 0;
                for (size_t i = 0; i < N; i++) params[i].frozen = true;
                d.config = c;
                d.params = params;
                d.n_params = n;
                OK(ds_zero_create(&d, &z, NULL));
                for (int step = 0; step < 2 && z; step++) {
                    for (int micro = 0; micro < 2; micro++) {
                        OK(ds_zero_begin(z, DS_ZERO_TRAIN));
                        for (size_t i = 0; i < n; i++) OK(ds_zero_fetch(z, i, NULL));
                        for (size_t i = 0; i < n; i++) OK(ds_zero_release(z, i));
                        OK(ds_zero_end(z));
                    }
                    OK(ds_zero_step(z, &r));
                    CHECK(isnan(r.loss) && !r.skipped && r.grad_norm == 0);
                }
                OK(ds_zero_save(z, folder, NULL, NULL, 0));
                OK(ds_zero_load(z, folder, NULL, NULL, NULL));
                OK(ds_zero_save_16bit_model(z, file));
                if (n) {
                    OK(ds_zero_read(z, 2, -1, 100, 4, x));
                    for (size_t i = 0; i < 4; i++) CHECK(x[i] == (float)((100 + i) % 17) * 0.125f - 1.0f);
                }
                ds_zero_destroy(z);
                ds_config_free(c);
                snprintf(command, sizeof command, "rm -r %s", folder);
                CHECK(system(command) == 0);
            }
    }
    TEST_NAMED("parameters of the model keep their values in every type, on disk and in memory") {
        static const char *const zeros[] = {
            "\"stage\": 1",
            "\"stage\": 3, \"stage3_param_persistence_threshold\": 0",
            "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 2048, \"offload_optimizer\": "
            "{\"device\": \"nvme\", \"nvme_path\": \"build\", \"fast_init\": true}",
            "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": 2048, \"offload_optimizer\": "
            "{\"device\": \"nvme\", \"nvme_path\": \"build\", \"fast_init\": true}, \"offload_param\": {\"device\": "
            "\"nvme\", "
            "\"nvme_path\": \"build\", \"max_in_cpu\": 0}",
        };
        for (size_t k = 0; k < 4; k++)
            for (int half = 0; half < 2; half++) {
                static float data[NUMEL], got[NUMEL];
                static uint16_t halves[NUMEL];
                ds_zero_param params[N];
                ds_config *c = config_with(zeros[k], half ? "\"bf16\": {\"enabled\": true}," : "");
                ds_zero *z;
                init(NULL, 0, NUMEL, data);
                ds_optim_cast(halves, DS_BF16, data, DS_F32, NUMEL);
                describe(params, half ? DS_BF16 : DS_F32);
                params[1].frozen = true;
                params[2].dtype = DS_F32;                          /* beside 16-bit ones */
                for (int i = 0; i < N; i++) params[i].init = NULL; /* and alpha has no values: zeros */
                params[1].data = half ? (void *)halves : data;
                params[2].data = data;
                z = engine(c, params, NULL);
                OK(ds_zero_read(z, 0, -1, 0, NUMEL, got));
                for (int i = 0; i < NUMEL; i++) CHECK(got[i] == 0.0f);
                for (size_t i = 1; i < N; i++) {
                    memset(got, 1, sizeof got);
                    OK(ds_zero_read(z, i, -1, 0, NUMEL, got));
                    CHECK(memcmp(got, data, sizeof got) == 0); /* eighths, which bf16 has */
                }
                ds_zero_destroy(z);
                ds_config_free(c);
            }
    }
    TEST_NAMED("the other parts of the model fail, overflow and stop") {
        for (int kind = 0; kind < 3; kind++) {
            ds_zero_param params[N];
            ds_config *c = config_with("\"stage\": 1", "");
            ds_zero_desc d;
            ds_zero_report r;
            ds_zero *z;
            memset(&d, 0, sizeof d);
            describe(params, DS_F32);
            d.model_group.size = 2;
            d.model_group.rank = 1;
            d.model_group.exchange = other_parts;
            d.model_group.ctx = &kind;
            z = engine(c, params, &d);
            micro_batch(z, gradient);
            micro_batch(z, gradient);
            if (kind == 0) {
                BAD(ds_zero_step(z, &r), DS_ERR_PEER,
                    "rank 0: norm over the model's parts: model_group.exchange returned -25");
                CHECK(ds_zero_begin(z, DS_ZERO_TRAIN) == DS_ERR_PEER); /* dead */
            } else {
                OK(ds_zero_step(z, &r));
                CHECK(r.skipped == (kind == 1) && r.stop == (kind == 2));
                CHECK(kind != 1 || r.overflow_param == SIZE_MAX);
            }
            ds_zero_destroy(z);
            ds_config_free(c);
        }
    }
    TEST_NAMED("a save in the background that fails says so when it is finished, and the one before stands") {
        char folder[] = "/tmp/ds_zero_XXXXXX", command[64];
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 2", "\"ds\": {\"save_in_background\": true},");
        ds_zero_desc d;
        ds_zero *z;
        int full = 0;
        CHECK(mkdtemp(folder) != NULL);
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        d.files.write = full_write;
        d.files.ctx = &full;
        z = engine(c, params, &d);
        for (int step = 0; step < 2; step++) {
            micro_batch(z, gradient);
            micro_batch(z, gradient);
            OK(ds_zero_step(z, NULL));
            __atomic_store_n(&full, step, __ATOMIC_RELAXED);
            OK(ds_zero_save(z, folder, NULL, NULL, 0));
            if (step)
                BAD(ds_zero_save_finish(z), DS_ERR_SPACE, "save: ");
            else
                OK(ds_zero_save_finish(z));
            OK(ds_zero_save_finish(z)); /* there is none any more */
        }
        __atomic_store_n(&full, 1, __ATOMIC_RELAXED);
        OK(ds_zero_save(z, folder, "again", NULL, 0)); /* what calls wait for it fail with it, once */
        BAD(ds_zero_load(z, folder, NULL, NULL, NULL), DS_ERR_SPACE, "save: ");
        OK(ds_zero_load(z, folder, NULL, NULL, NULL));
        CHECK_EQ(ds_zero_steps(z), 1);
        OK(ds_zero_save(z, folder, "again", NULL, 0));
        BAD(ds_zero_save(z, folder, "more", NULL, 0), DS_ERR_SPACE, "save: ");
        ds_zero_destroy(z);
        snprintf(command, sizeof command, "rm -r %s", folder);
        CHECK(system(command) == 0);
        ds_config_free(c);
    }
}

static void checkpoints_of_others(void) {
    TEST_NAMED("a checkpoint of another model or optimizer is refused with the difference, and the engine goes on") {
        static const struct {
            const char *optimizer;
            int params;
            const char *text;
        } rows[] = {
            {"AdamW", 2, "it has 9 tensors where this one has 6, among them 'gamma'"},
            {"SGD", N, "trained with optimizer AdamW, expected SGD"},
            {"Adam", N, "trained with optimizer AdamW, expected Adam"},
            {"Lion", N, "trained with optimizer AdamW, expected Lion"},
        };
        char folder[] = "/tmp/ds_zero_XXXXXX", file[64], command[64];
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 2", "");
        ds_zero *z;
        const void *client = &folder;
        size_t bytes = 5;
        float x[4], y[4], firsts[3 * N];
        int64_t steps;
        told w;
        CHECK(mkdtemp(folder) != NULL);
        snprintf(file, sizeof file, "%s/weights.safetensors", folder);
        describe(params, DS_F32);
        z = engine(c, params, NULL);
        micro_batch(z, gradient);
        micro_batch(z, gradient);
        OK(ds_zero_step(z, NULL));
        OK(ds_zero_save(z, folder, NULL, NULL, 0));
        OK(ds_zero_save_16bit_model(z, file));
        OK(ds_zero_read(z, 1, -1, 7, 4, x));
        BAD(ds_zero_load(z, folder, "never", NULL, NULL), DS_ERR_INPUT, "never");
        OK(ds_zero_load(z, folder, "global_step1", &client, &bytes));
        CHECK(client == NULL && bytes == 0); /* none was saved */
        ds_zero_destroy(z);
        ds_config_free(c);
        for (size_t k = 0; k < 4; k++) {
            char text[400];
            ds_zero_desc d;
            memset(&d, 0, sizeof d);
            snprintf(
                text, sizeof text,
                "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"%s\"}, \"zero_optimization\": {\"stage\": 1}}",
                rows[k].optimizer);
            d.config = c = config_for(text, 1);
            d.params = params;
            d.n_params = (size_t)rows[k].params;
            OK(ds_zero_create(&d, &z, NULL));
            BAD(ds_zero_load(z, folder, NULL, NULL, NULL), DS_ERR_INPUT, rows[k].text);
            CHECK_EQ(ds_zero_steps(z), 0);
            OK(ds_zero_begin(z, DS_ZERO_TRAIN));
            OK(ds_zero_end(z));
            OK(ds_zero_step(z, NULL));
            ds_zero_destroy(z);
            ds_config_free(c);
        }
        c = config_with("\"stage\": 2", "");
        z = engine(c, params, NULL);
        OK(ds_zero_load(z, folder, NULL, NULL, NULL));
        steps = ds_zero_steps(z);
        for (size_t i = 0; i < 3 * N; i++) OK(ds_zero_read(z, i / 3, (int)(i % 3) - 1, 0, 1, &firsts[i]));
        ds_zero_destroy(z);
        for (int how = 0; how < 2; how++) { /* a tensor more than the checkpoint has, and the same in another order */
            ds_zero_param other[N];
            ds_zero_desc d;
            memset(&d, 0, sizeof d);
            d.config = c;
            d.params = other;
            d.n_params = N;
            for (int i = 0; i < N; i++) other[i] = params[how ? N - 1 - i : i];
            if (!how) other[1].name = "delta";
            OK(ds_zero_create(&d, &z, NULL));
            if (how) { /* each is found by its name, and its states with it */
                OK(ds_zero_load(z, folder, NULL, NULL, NULL));
                CHECK_EQ(ds_zero_steps(z), steps);
                for (size_t i = 0; i < 3 * N; i++) {
                    float first = NAN;
                    OK(ds_zero_read(z, N - 1 - i / 3, (int)(i % 3) - 1, 0, 1, &first));
                    CHECK(first == firsts[i]);
                }
            } else
                BAD(ds_zero_load(z, folder, NULL, NULL, NULL), DS_ERR_INPUT, "it has no tensor 'delta'");
            micro_batch(z, gradient);
            micro_batch(z, gradient);
            OK(ds_zero_step(z, NULL));
            ds_zero_destroy(z);
        }
        ds_config_free(c);
        c = config_with(
            "\"stage\": 3, \"elastic_checkpoint\": false, \"stage3_param_persistence_threshold\": 0",
            "\"dump_state\": true,"); /* a file that does not say how many ranks wrote it is of any number */
        z = engine(c, params, NULL);  /* and nobody listens to the dump */
        OK(ds_zero_load(z, file, NULL, NULL, NULL));
        ds_zero_destroy(z);
        {
            ds_zero_desc d;
            memset(&d, 0, sizeof d);
            memset(&w, 0, sizeof w);
            d.logger.log = take_line;
            d.logger.ctx = &w;
            z = engine(c, params, &d);
        }
        OK(ds_zero_load(z, file, NULL, NULL, NULL)); /* weights alone */
        CHECK_HAS(w.lines, "which is not ds's own: weights alone");
        OK(ds_zero_read(z, 1, -1, 7, 4, y));
        CHECK(memcmp(x, y, sizeof x) == 0 && ds_zero_steps(z) == 0);
        BAD(ds_zero_save_16bit_model(z, file), DS_ERR_STATE, "stage3_gather_16bit_weights_on_model_save");
        ds_zero_destroy(z);
        ds_config_free(c);
        snprintf(command, sizeof command, "rm -r %s", folder);
        CHECK(system(command) == 0);
    }
}

/* One step of two micro-batches, of gradients in the model's type. */
static void whole_step(ds_zero *z, ds_dtype dtype) {
    static uint16_t half[NUMEL];
    for (int k = 0; k < 2; k++) {
        if (dtype != DS_F32) ds_optim_cast(half, dtype, gradient, DS_F32, NUMEL);
        micro_batch(z, dtype == DS_F32 ? (const void *)gradient : half);
    }
    OK(ds_zero_step(z, NULL));
}

static void loss_scales(void) {
    TEST_NAMED("a loss scale goes from fp16 to fp16 alone") {
        char folder[] = "/tmp/ds_zero_XXXXXX", command[64];
        ds_config *half = config_with("\"stage\": 1",
                                      "\"fp16\": {\"enabled\": true, \"initial_scale_power\": 6, \"hysteresis\": 2},");
        ds_config *other = config_with("\"stage\": 2",
                                       "\"fp16\": {\"enabled\": true, \"initial_scale_power\": 9, \"hysteresis\": 2},");
        ds_config *wide = config_with("\"stage\": 2", "\"bf16\": {\"enabled\": true},");
        ds_zero_param params[N];
        uint16_t bad[NUMEL];
        ds_zero *z;
        CHECK(mkdtemp(folder) != NULL);
        for (int i = 0; i < NUMEL; i++) bad[i] = 0x7C00;
        describe(params, DS_F16);
        z = engine(half, params, NULL);
        whole_step(z, DS_F16);
        micro_batch(z, bad);
        micro_batch(z, bad);
        OK(ds_zero_step(z, NULL));               /* one of two overflows that hysteresis takes */
        CHECK_EQ(2 * ds_zero_loss_scale(z), 64); /* of two micro-batches */
        OK(ds_zero_save(z, folder, "fp16", NULL, 0));
        ds_zero_destroy(z);
        describe(params, DS_BF16);
        z = engine(wide, params, NULL);
        OK(ds_zero_load(z, folder, "fp16", NULL, NULL));
        CHECK_EQ(ds_zero_loss_scale(z), 1);
        CHECK_EQ(ds_zero_steps(z), 2);
        whole_step(z, DS_BF16);
        OK(ds_zero_save(z, folder, "bf16", NULL, 0));
        ds_zero_destroy(z);
        describe(params, DS_F16);
        for (int from_half = 0; from_half < 2; from_half++) {
            z = engine(other, params, NULL);
            OK(ds_zero_load(z, folder, from_half ? "fp16" : "bf16", NULL, NULL));
            CHECK_EQ(ds_zero_steps(z), from_half ? 2 : 3);
            CHECK_EQ(2 * ds_zero_loss_scale(z), from_half ? 64 : 512);
            for (int k = 0; k < 2; k++) { /* what is left of the hysteresis comes along */
                micro_batch(z, bad);
                micro_batch(z, bad);
                OK(ds_zero_step(z, NULL));
                CHECK_EQ(2 * ds_zero_loss_scale(z), from_half ? (k ? 16 : 32) : (k ? 256 : 512));
            }
            ds_zero_destroy(z);
        }
        snprintf(command, sizeof command, "rm -r %s", folder);
        CHECK(system(command) == 0);
        ds_config_free(half);
        ds_config_free(other);
        ds_config_free(wide);
    }
}

static void from_deepspeed(void) {
    TEST_NAMED("training goes on from a checkpoint in DeepSpeed's form, to the last bit") {
        static const char *const zeros[] = {
            "\"stage\": 0", "\"stage\": 3, \"elastic_checkpoint\": false, \"stage3_param_persistence_threshold\": 0"};
        static const char schedule[] = "\"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_max_lr\": 0.5, "
                                       "\"warmup_num_steps\": 7}},";
        char folder[] = "/tmp/ds_zero_XXXXXX", theirs[64], command[64];
        static float straight[2][NUMEL], got[NUMEL];
        ds_zero_param params[N];
        ds_checkpoint_desc d;
        ds_checkpoint *own = NULL;
        ds_error e = {DS_OK, ""};
        ds_config *c = config_with(zeros[0], schedule);
        ds_zero_report r, first;
        ds_zero *z;
        told w;
        CHECK(mkdtemp(folder) != NULL);
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        z = engine(c, params, NULL);
        for (int step = 0; step < 3; step++) whole_step(z, DS_F32);
        OK(ds_zero_save(z, folder, NULL, NULL, 0));
        micro_batch(z, gradient);
        micro_batch(z, gradient);
        OK(ds_zero_step(z, &first));
        OK(ds_zero_read(z, 2, -1, 0, NUMEL, straight[0]));
        OK(ds_zero_read(z, 2, 1, 0, NUMEL, straight[1]));
        ds_zero_destroy(z);
        OK(ds_checkpoint_open_path(&d, folder, &own, &e));
        for (int stage = 0; stage < 4; stage++) {
            snprintf(theirs, sizeof theirs, "%s/theirs%d", folder, stage);
            OK(ds_deepspeed_write(own, theirs, "t", stage, stage ? 2 : 1, &e));
            for (int k = 0; k < 2; k++) {
                ds_zero_desc more;
                ds_config *here = config_with(zeros[k], schedule);
                memset(&w, 0, sizeof w);
                memset(&more, 0, sizeof more);
                more.logger.log = take_line;
                more.logger.ctx = &w;
                here->checkpoint.load_universal = stage == 0;
                z = engine(here, params, &more);
                if (stage && k) { /* elastic_checkpoint is false */
                    BAD(ds_zero_load(z, theirs, NULL, NULL, NULL), DS_ERR_INPUT,
                        "was saved by 2 ranks, and here are 1");
                    ds_zero_destroy(z);
                    ds_config_free(here);
                    continue;
                }
                OK(ds_zero_load(z, theirs, NULL, NULL, NULL));
                CHECK_HAS(w.lines,
                          "2.10 loaded 't', which is not ds's own: weights, the optimizer's states and counters");
                CHECK_EQ(ds_zero_steps(z), 3);
                micro_batch(z, gradient);
                micro_batch(z, gradient);
                OK(ds_zero_step(z, &r));
                CHECK(r.step == 4 && r.lr == first.lr);
                OK(ds_zero_read(z, 2, -1, 0, NUMEL, got));
                CHECK(memcmp(got, straight[0], sizeof got) == 0);
                OK(ds_zero_read(z, 2, 1, 0, NUMEL, got));
                CHECK(memcmp(got, straight[1], sizeof got) == 0);
                ds_zero_destroy(z);
                ds_config_free(here);
            }
        }
        ds_checkpoint_close(own);
        ds_config_free(c);
        c = config_for("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"OneBitAdam\"}}", 1);
        z = engine(c, params, NULL);
        BAD(ds_zero_load(z, theirs, NULL, NULL, NULL), DS_ERR_UNSUPPORTED,
            "lacks what OneBitAdam keeps beside its states");
        ds_zero_destroy(z);
        ds_config_free(c);
        snprintf(command, sizeof command, "rm -r %s", folder);
        CHECK(system(command) == 0);
    }
}

static double halved(void *ctx, int64_t step, double base) {
    (*(int *)ctx)++;
    return ldexp(base, -(int)step);
}
static double lost(void *ctx, int64_t step, double base) {
    (void)ctx;
    return step ? (double)NAN : base;
}
static void of_the_client(void) {
    TEST_NAMED("a schedule of the client, and a group's own rate and decay") {
        ds_zero_param params[N];
        ds_zero_group groups[2] = {{-1, -1}, {0.25, 0.5}};
        ds_zero_desc d;
        ds_zero_report r;
        ds_zero *z;
        ds_config *c = config_for("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"AdamW\", \"params\": "
                                  "{\"lr\": 0.5, \"weight_decay\": 0}}, \"scheduler\": {\"type\": \"LRRangeTest\"}, "
                                  "\"zero_optimization\": {\"stage\": 2}}",
                                  1);
        float x[8], y[8], factor = 1.0f;
        int calls = 0;
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        params[1].group = 1;
        d.groups = groups;
        d.n_groups = 2;
        d.schedule = halved;
        d.schedule_ctx = &calls;
        z = engine(c, params, &d);
        OK(ds_zero_read(z, 1, -1, 0, 8, y));
        for (int step = 0; step < 4; step++) {
            OK(ds_zero_begin(z, DS_ZERO_TRAIN));
            OK(ds_zero_end(z)); /* no gradient: what is left is the decay */
            OK(ds_zero_step(z, &r));
            CHECK(r.lr == ldexp(0.5, -step)); /* not the configuration's */
            factor *= 1.0f - (float)ldexp(0.25, -step) * 0.5f;
            OK(ds_zero_read(z, 1, -1, 0, 8, x));
            for (int i = 0; i < 8; i++) CHECK_NEAR(x[i], y[i] * factor, 1e-6);
            OK(ds_zero_read(z, 0, -1, 0, 8, x));
            CHECK(memcmp(x, y, sizeof x) == 0); /* the other group has none */
        }
        CHECK(calls > 0);
        ds_zero_destroy(z);
        ds_config_free(c);
    }
    TEST_NAMED("a rate of the client's schedule that is not finite: the step is refused and nothing changes") {
        ds_zero_param params[N];
        ds_zero_desc d;
        ds_zero_report r;
        ds_zero *z;
        ds_config *c = config_with("\"stage\": 3, \"stage3_param_persistence_threshold\": 0", "");
        float x[8], y[8];
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        d.schedule = lost;
        z = engine(c, params, &d);
        for (int step = 0; step < 2; step++) {
            OK(ds_zero_read(z, 1, -1, 0, 8, x));
            micro_batch(z, gradient);
            micro_batch(z, gradient);
            if (step == 0) OK(ds_zero_step(z, NULL));
        }
        for (int again = 0; again < 2; again++) {
            CHECK(ds_zero_step(z, &r) == DS_ERR_ARGUMENT && r.step == 0);
            CHECK_HAS(ds_zero_error(z)->message,
                      "optimizer step: ds_optim_begin: group 0: its schedule gives the rate nan");
            CHECK(ds_zero_steps(z) == 1 && ds_zero_begin(z, DS_ZERO_TRAIN) == DS_ERR_STATE); /* the step is due */
            OK(ds_zero_begin(z, DS_ZERO_EVALUATE));                                          /* and it is alive */
            OK(ds_zero_end(z));
            OK(ds_zero_read(z, 1, -1, 0, 8, y));
            CHECK(memcmp(x, y, sizeof x) == 0);
        }
        ds_zero_destroy(z);
        ds_config_free(c);
    }
}

static int64_t ticking(void *ctx) {
    return *(int64_t *)ctx += 1000000;
}
static void no_copy(void) {}

static void descriptors(void) {
    TEST(a table of a device or of kernels that lacks any member is refused) {
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 1", "");
        ds_zero_desc d;
        ds_zero_bytes b;
        ds_device device;
        ds_optim_kernels kernels;
        void (*const some)(void) = no_copy, (*const none)(void) = NULL;
        char *const tables[2] = {(char *)&device.alloc, (char *)&kernels.update};
        const size_t bytes[2] = {sizeof device - offsetof(ds_device, alloc),
                                 sizeof kernels - offsetof(ds_optim_kernels, update)};
        memset(&d, 0, sizeof d);
        memset(&device, 0, sizeof device);
        memset(&kernels, 0, sizeof kernels);
        describe(params, DS_F32);
        d.config = c;
        d.params = params;
        d.n_params = N;
        for (int t = 0; t < 2; t++)
            for (size_t at = 0; at < bytes[t]; at += sizeof some) memcpy(tables[t] + at, &some, sizeof some);
        for (int t = 0; t < 2; t++)
            for (size_t at = 0; at < bytes[t]; at += sizeof some) {
                ds_error e = {DS_OK, ""};
                d.device = &device;
                d.kernels = &kernels;
                memcpy(tables[t] + at, &none, sizeof none);
                CHECK(ds_zero_plan(&d, 0, 1, &b, &e) == DS_ERR_ARGUMENT);
                CHECK_HAS(e.message, "device and kernels are given together, with every member");
                memcpy(tables[t] + at, &some, sizeof some);
            }
        for (int t = 0; t < 2; t++) { /* one without the other */
            d.device = t ? &device : NULL;
            d.kernels = t ? NULL : &kernels;
            CHECK(ds_zero_plan(&d, 0, 1, &b, NULL) == DS_ERR_ARGUMENT);
        }
        ds_config_free(c);
    }
    TEST(pin_memory of what is not offloaded changes nothing) {
        ds_zero_param params[N];
        ds_zero_desc d;
        ds_zero_bytes b[2];
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        d.params = params;
        d.n_params = N;
        for (int on = 0; on < 2; on++) {
            ds_config *c = config_with(on ? "\"stage\": 3, \"offload_optimizer\": {\"pin_memory\": true}, "
                                            "\"offload_param\": {\"pin_memory\": true}"
                                          : "\"stage\": 3",
                                       "");
            d.config = c;
            OK(ds_zero_plan(&d, 0, 1, &b[on], NULL));
            ds_config_free(c);
        }
        CHECK(memcmp(&b[0], &b[1], sizeof b[0]) == 0);
    }
    TEST(memory that the system does not lock is used all the same and the log says so) {
        int status = 0;
        pid_t child;
        fflush(stdout);
        if ((child = fork()) == 0) {
            static told w;
            const struct rlimit no = {0, 0};
            ds_zero_param params[N];
            ds_config *c =
                config_with("\"stage\": 2, \"offload_optimizer\": {\"device\": \"cpu\", \"pin_memory\": true}", "");
            ds_zero_desc d;
            ds_zero *z = NULL;
            bool good = setrlimit(RLIMIT_MEMLOCK, &no) == 0 && (geteuid() != 0 || setuid(65534) == 0);
            bool locks = mlock(&w, 1) == 0; /* sanitizers answer themselves, with yes */
            memset(&d, 0, sizeof d);
            describe(params, DS_F32);
            d.config = c;
            d.params = params;
            d.n_params = N;
            d.logger.log = take_line;
            d.logger.ctx = &w;
            good = good && ds_zero_create(&d, &z, NULL) == DS_OK &&
                   (strstr(w.lines, "1.4 optimizer states stay unpinned: offload: cannot lock") == NULL) == locks;
            if (z) whole_step(z, DS_F32);
            good = good && z && ds_zero_steps(z) == 1;
            ds_zero_destroy(z);
            ds_config_free(c);
            test_child_exit(good ? 0 : 1);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    TEST(a parameter of no elements takes a gradient that is NULL) {
        for (int stage = 0; stage < 4; stage++) {
            char zero[128];
            ds_zero_param params[N];
            ds_config *c;
            ds_zero *z;
            snprintf(zero, sizeof zero, "\"stage\": %d, \"ignore_unused_parameters\": false", stage);
            c = config_with(zero, "");
            describe(params, DS_F32);
            params[1].shape[0] = 0;
            z = engine(c, params, NULL);
            for (int k = 0; k < 2; k++) {
                OK(ds_zero_begin(z, DS_ZERO_TRAIN));
                for (size_t i = 0; i < N; i++) OK(ds_zero_grad(z, i, i == 1 ? NULL : gradient, NULL));
                OK(ds_zero_end(z));
            }
            OK(ds_zero_step(z, NULL));
            ds_zero_destroy(z);
            ds_config_free(c);
        }
    }
    TEST(what is no table of rows is reduced as any other with sparse_gradients) {
        static float after[2][NUMEL];
        for (int on = 0; on < 2; on++) {
            ds_zero_param params[N];
            ds_config *c = config_with("\"stage\": 2", on ? "\"sparse_gradients\": true," : "");
            ds_zero *z;
            describe(params, DS_F32);
            for (int i = 0; i < N; i++) params[i].sparse = on;
            params[0].dims = 0; /* a scalar, an empty table, a frozen one */
            params[1].shape[0] = 0;
            params[2].frozen = true;
            z = engine(c, params, NULL);
            for (int k = 0; k < 2; k++) {
                OK(ds_zero_begin(z, DS_ZERO_TRAIN));
                OK(ds_zero_grad(z, 0, gradient + 1, NULL));
                OK(ds_zero_grad(z, 1, gradient, NULL));
                OK(ds_zero_end(z));
            }
            OK(ds_zero_step(z, NULL));
            OK(ds_zero_read(z, 0, -1, 0, 1, after[on]));
            OK(ds_zero_read(z, 2, -1, 0, NUMEL - 1, after[on] + 1));
            ds_zero_destroy(z);
            ds_config_free(c);
        }
        CHECK(memcmp(after[0], after[1], sizeof after[0]) == 0);
        CHECK(after[0][0] != -1.0f && after[0][2] == -0.875f);
    }
    TEST(a micro - batch that gives no gradient has no backward pass to subtract the reduction from) {
        ds_zero_param params[N];
        ds_config *c = config_with("\"stage\": 2", "\"wall_clock_breakdown\": true,");
        ds_zero_desc d;
        ds_zero_report r;
        ds_zero *z;
        int64_t now = 0;
        told w;
        memset(&w, 0, sizeof w);
        memset(&d, 0, sizeof d);
        describe(params, DS_F32);
        d.event = take_event; /* which checks that no value is negative */
        d.event_ctx = &w;
        d.clock.now = ticking;
        d.clock.ctx = &now;
        z = engine(c, params, &d);
        for (int k = 0; k < 2; k++) {
            OK(ds_zero_begin(z, DS_ZERO_TRAIN));
            OK(ds_zero_end(z));
        }
        OK(ds_zero_step(z, &r));
        CHECK(r.ns_backward == 0 && r.ns_reduce > 0);
        CHECK_HAS(w.tags, "elapsed_time_ms_backward_inner@2");
        ds_zero_destroy(z);
        ds_config_free(c);
    }
}

static void wiring(void) {
    TEST(each parameter of an optimizer reaches its descriptor) {
#define WIRED(type, key, json, field, value)                                                                           \
    do {                                                                                                               \
        char text[300];                                                                                                \
        ds_optim_desc d;                                                                                               \
        ds_optim_params p;                                                                                             \
        ds_config *c;                                                                                                  \
        memset(&d, 0, sizeof d);                                                                                       \
        snprintf(text, sizeof text,                                                                                    \
                 "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"%s\", \"params\": {\"%s\": %s}}}", type, key,  \
                 json);                                                                                                \
        c = config_for(text, 1);                                                                                       \
        OK(ds_wire_optim(c, NULL, &d, &p, NULL));                                                                      \
        if (!CHECK((double)p.field == (double)(value))) printf("  %s\n", text);                                        \
        ds_config_free(c);                                                                                             \
    } while (0)
        WIRED("SGD", "dampening", "0.25", dampening, 0.25);
        WIRED("SGD", "nesterov", "true", nesterov, true);
        WIRED("Adam", "bias_correction", "false", bias_correction, false);
        WIRED("Adam", "adam_w_mode", "false", adam_w_mode, false);
        WIRED("Adam", "torch_adam", "true", torch_adam, true);
        WIRED("Adam", "eps", "0.5", eps, 0.5);
        WIRED("Adam", "betas", "[0.5, 0.75]", beta2, 0.75);
        WIRED("Lamb", "max_coeff", "8", max_coeff, 8);
        WIRED("Lamb", "min_coeff", "0.125", min_coeff, 0.125);
        WIRED("Lamb", "max_grad_norm", "2", max_grad_norm, 2);
        WIRED("Lamb", "eps_inside_sqrt", "true", eps_inside_sqrt, true);
        WIRED("OneBitLamb", "coeff_beta", "0.5", coeff_beta, 0.5);
        WIRED("OneBitLamb", "factor_max", "5", factor_max, 5);
        WIRED("OneBitLamb", "factor_min", "0.25", factor_min, 0.25);
        WIRED("OneBitLamb", "factor_threshold", "0.5", factor_threshold, 0.5);
        WIRED("OneBitAdam", "freeze_step", "7", freeze_step, 7);
        WIRED("ZeroOneAdam", "var_freeze_step", "7", var_freeze_step, 7);
        WIRED("ZeroOneAdam", "var_update_scaler", "7", var_update_scaler, 7);
        WIRED("ZeroOneAdam", "local_step_scaler", "7", local_step_scaler, 7);
        WIRED("ZeroOneAdam", "local_step_clipper", "7", local_step_clipper, 7);
        WIRED("Muon", "ns_steps", "3", ns_steps, 3);
        WIRED("Muon", "muon_lr", "0.5", lr, 0.5);
        WIRED("Muon", "adam_lr", "0.5", adam_lr, 0.5);
        WIRED("Muon", "adam_lr", "0", adam_lr, 0); /* a rate, not an absence */
        WIRED("Muon", "muon_lr", "0", lr, 0);
        WIRED("Muon", "lr", "0.25", adam_lr, 0.25);
        WIRED("Muon", "lr", "0.25", lr, 0.25);
#undef WIRED
    }
    TEST(the other descriptors) {
        ds_config *c =
            config_for("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"OneBitAdam\", \"params\": "
                       "{\"comm_backend_name\": \"mpi\", \"cuda_aware\": true}}, \"fp16\": {\"enabled\": true, "
                       "\"loss_scale\": 128}, \"checkpoint\": {\"tag_validation\": \"Fail\"}, \"aio\": "
                       "{\"thread_count\": 3}, \"scheduler\": {\"type\": \"WarmupLR\", \"params\": "
                       "{\"warmup_max_lr\": 0.5}}}",
                       1);
        ds_comm_desc comm;
        ds_checkpoint_desc checkpoint;
        ds_loss_scaler_params scale;
        ds_offload_desc offload;
        ds_schedule schedule;
        ds_error error;
        memset(&comm, 0, sizeof comm);
        memset(&checkpoint, 0, sizeof checkpoint);
        memset(&offload, 0, sizeof offload);
        CHECK(ds_wire_comm(c, NULL, &error) == DS_ERR_ARGUMENT);
        CHECK_STR(error.message, "ds_wire_comm: the descriptor is NULL");
        CHECK(ds_wire_optim(NULL, NULL, NULL, NULL, &error) == DS_ERR_ARGUMENT);
        CHECK_STR(error.message, "ds_wire_optim: config is NULL");
        CHECK(ds_wire_schedule(NULL, &schedule, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_wire_loss_scaler(NULL, &scale, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_wire_offload(NULL, true, &offload, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_wire_checkpoint(NULL, &checkpoint, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_wire_monitor(NULL, NULL, NULL) == DS_ERR_ARGUMENT);
        OK(ds_wire_comm(c, &comm, NULL));
        CHECK(comm.backend && strcmp(comm.backend, "mpi") == 0 && comm.cuda_aware);
        OK(ds_wire_checkpoint(c, &checkpoint, NULL));
        CHECK_EQ(checkpoint.tag_validation, 2);
        c->checkpoint.tag_validation = "ignore";
        OK(ds_wire_checkpoint(c, &checkpoint, NULL));
        CHECK_EQ(checkpoint.tag_validation, 1);
        c->checkpoint.tag_validation = NULL;
        OK(ds_wire_checkpoint(c, &checkpoint, NULL));
        CHECK_EQ(checkpoint.tag_validation, 0);
        OK(ds_wire_loss_scaler(c, &scale, NULL));
        CHECK(!scale.dynamic && scale.initial == 128.0);
        OK(ds_wire_offload(c, true, &offload, NULL));
        CHECK(offload.folder == NULL && offload.thread_count == 3);
        OK(ds_wire_schedule(c, &schedule, NULL));
        CHECK(schedule.warmup_max_lr == 0.5);
        ds_config_free(c);
        c = config_for("{\"train_batch_size\": 1, \"aio\": {\"thread_count\": 3, \"intra_op_parallelism\": 5}}", 1);
        OK(ds_wire_offload(c, true, &offload, NULL));
        CHECK_EQ(offload.thread_count, 5);
        ds_config_free(c);
        for (int k = 0; k < 2; k++) { /* a rate of the warm-up that is not given, or null, is the optimizer's own */
            c = config_for(k ? "{\"train_batch_size\": 1, \"scheduler\": {\"type\": \"WarmupLR\", \"params\": "
                               "{\"warmup_max_lr\": null}}}"
                             : "{\"train_batch_size\": 1, \"scheduler\": {\"type\": \"WarmupLR\"}}",
                           1);
            OK(ds_wire_schedule(c, &schedule, NULL));
            CHECK(schedule.warmup_max_lr == -1);
            ds_config_free(c);
        }
    }
    TEST_NAMED("unclaimed keys beyond what a message holds, and of programs that claim too many") {
        static const char *extra[300];
        ds_error e = {DS_OK, ""};
        char text[4000] = "{\"train_batch_size\": 1";
        ds_config *c = config_for("{\"train_batch_size\": 1}", 1);
        OK(ds_zero_unclaimed(c, NULL, 0, &e));
        for (int i = 0; i < 300; i++) extra[i] = "memory_breakdown";
        CHECK(ds_zero_unclaimed(c, extra, 300, &e) == DS_ERR_ARGUMENT);
        CHECK_HAS(e.message, "300 extra keys");
        ds_config_free(c);
        snprintf(
            text, sizeof text,
            "{\"train_batch_size\": 1, \"memory_breakdown\": true, \"graph_harvesting\": true, "
            "\"flops_profiler\": {\"enabled\": true, \"profile_step\": 1, \"module_depth\": 2, \"top_modules\": 3, "
            "\"detailed\": true}, \"activation_checkpointing\": {\"partition_activations\": true, "
            "\"cpu_checkpointing\": true, \"contiguous_memory_optimization\": true, \"number_checkpoints\": 4, "
            "\"synchronize_checkpoint_boundary\": true, \"profile\": true}}");
        c = config_for(text, 1);
        CHECK(ds_zero_unclaimed(c, NULL, 0, &e) == DS_ERR_UNSUPPORTED);
        CHECK_HAS(e.message, "memory_breakdown (1:");
        CHECK(strlen(e.message) < sizeof e.message);
        ds_config_free(c);
    }
}

/* Whether another process that reads a byte there is stopped. */
static bool stops(const void *at) {
    int status = 0;
    pid_t child;
    fflush(stdout);
    if ((child = fork()) == 0) {
        volatile char byte;
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        byte = *(const volatile char *)at;
        (void)byte;
        _exit(0);
    }
    return waitpid(child, &status, 0) == child && status != 0;
}

/* With AddressSanitizer what was released is out of bounds: kept for the next fetch or not, in the arena or beside it. */
static void after_release(void) {
    static const char *const rows[] = {"", ", \"stage3_max_reuse_distance\": 0", ", \"stage3_max_live_parameters\": 0"};
#ifdef __SANITIZE_ADDRESS__
    const bool guarded = true;
#else
    const bool guarded = false;
#endif
    for (size_t k = 0; k < 3; k++) TEST(stage 3 : a pointer that was kept after its release) {
            ds_zero_param params[N];
            char zero[160];
            ds_config *c;
            ds_zero *z;
            void *kept[N];
            snprintf(zero, sizeof zero, "\"stage\": 3, \"stage3_param_persistence_threshold\": 0%s", rows[k]);
            c = config_with(zero, "");
            describe(params, DS_F32);
            z = engine(c, params, NULL);
            for (int pass = 0; pass < 2; pass++) {
                OK(ds_zero_begin(z, DS_ZERO_EVALUATE));
                for (size_t i = 0; i < N; i++) {
                    OK(ds_zero_fetch(z, i, NULL));
                    kept[i] = slots[i];
                    CHECK(kept[i] && !stops(kept[i]));
                }
                for (size_t i = N; i-- > 0;) {
                    OK(ds_zero_fetch(z, i, NULL));
                    OK(ds_zero_release(z, i));
                    CHECK(!stops(kept[i])); /* once more is it held */
                    OK(ds_zero_release(z, i));
                    CHECK(slots[i] == NULL);
                    if (guarded || (kept[i] >= (void *)z->arena && kept[i] < (void *)(z->arena + z->arena_bytes)))
                        CHECK(stops(kept[i]) == guarded);
                }
                OK(ds_zero_end(z));
            }
            ds_zero_destroy(z);
            ds_config_free(c);
        }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    for (int i = 0; i < NUMEL; i++) gradient[i] = (float)(i % 13) * 0.01f - 0.05f;
    for (int stage = 0; stage < 4; stage++) misuse(stage);
    long_generation();
    after_release();
    create_errors();
    numbers();
    telling();
    checkpoints();
    checkpoints_of_others();
    loss_scales();
    from_deepspeed();
    of_the_client();
    descriptors();
    refusals();
    corners();
    unlike();
    arguments();
    wiring();
    memory();
    return test_end();
}
