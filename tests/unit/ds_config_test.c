/* ds_config_test.c - the configuration and the JSON parser: agreement with DeepSpeed's reference vectors, the documents'
   rules, errors, origins, claims, memory that runs out.
   Branches of ds_config.h that no test takes (make coverage lists them by line), 7 of 2,064: a message cut behind bytes that
   begin no character; the block of memory running out, which its computed size excludes (dsi_config_take); a refusal without
   any of its sections in the file (dsi_config_place, two); a choice in any case whose name has an underscore; sizes beyond
   size_t on a machine of 32 bits; a tie of elastic batch sizes of which the second is larger and the smaller preferred. */
#define DS_IMPLEMENTATION
#include "ds_config.h"
#include "../test.h"
#include <dirent.h>
#include <locale.h>

#define GOLDEN "tests/golden/"

static char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    char *text;
    if (!file) {
        printf("%s: cannot be opened; run from the repository's root\n", path);
        exit(1);
    }
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    text = (char *)malloc(*bytes + 1);
    *bytes = fread(text, 1, *bytes, file);
    text[*bytes] = 0;
    fclose(file);
    return text;
}

static ds_json *read_json(const char *path) {
    size_t bytes;
    char *text = read_file(path, &bytes);
    ds_json *json = NULL;
    ds_error error = {DS_OK, ""};
    if (ds_json_parse(text, bytes, NULL, &json, &error)) printf("%s: %s\n", path, error.message);
    free(text);
    return json;
}

/* What a parse said, all problems in one text: "path|level|line:column|message\n". */
typedef struct report {
    char text[16384];
    size_t length;
    int errors, warnings;
} report;
static void take_problem(void *ctx, const ds_config_problem *p) {
    report *r = (report *)ctx;
    if (p->level == DS_LOG_ERROR)
        r->errors++;
    else
        r->warnings++;
    if (r->length < sizeof r->text - 1)
        r->length += (size_t)snprintf(r->text + r->length, sizeof r->text - r->length, "%s|%d:%d|%s\n", p->path,
                                      p->line, p->column, p->message);
}
static report last;
static ds_config *parse_for(const char *text, size_t world_size) {
    ds_config_options options;
    ds_config *config = NULL;
    memset(&options, 0, sizeof options);
    memset(&last, 0, sizeof last);
    options.world_size = world_size;
    options.problem = take_problem;
    options.ctx = &last;
    ds_config_parse(text, strlen(text), &options, &config, NULL);
    return config;
}
static ds_config *parse(const char *text) {
    return parse_for(text, 1);
}

/* ---- golden/config.json, config_legacy.json ---- */

/* Differences from DeepSpeed, each with its reason; the manual lists them in short (DECISIONS). */
static const struct {
    const char *path, *theirs, *ours, *reason;
} values[] = {
    {"gradient_clipping", "1.0", "0.0", "the documents' default; 1.0 is new in 0.19.3"},
    {"steps_per_print", "null", "10", "the documents' default"},
    {"zero_optimization.offload_optimizer.pin_memory", "true", "false", "the documents' default"},
    {"zero_optimization.offload_param.pin_memory", "true", "false", "the documents' default"},
    {"aio.intra_op_parallelism", "1", "9", "aio.thread_count is documented, and counts"},
    {"optimizer.type", "\"OneBitAdam\"", "\"onebitadam\"", "0.19.8 dropped it; 0.19.6 lower-cases the name"},
    {"optimizer.type", "\"ZeroOneAdam\"", "\"zerooneadam\"", "0.19.8 dropped it; 0.19.6 lower-cases the name"},
    {"eigenvalue.enabled", "false", "true", "DeepSpeed ignores the section without quantization"},
    {"eigenvalue.max_iter", "100", "7", "DeepSpeed ignores the section without quantization"},
    {"train_batch_size", "4.0", "16", "sequence parallelism is not part of the documents"},
    {"compression_training.activation_quantization.different_groups.aq1.modules", "\"*\"", "[\"*\"]",
     "always a list here"},
};
/* Not keys of a file: values that DeepSpeed computes under names of its own, or objects that are absent there and shown
   with their defaults here. */
static const char *const not_keys[] = {
    "checkpoint.tag_validation_enabled",
    "checkpoint.tag_validation_fail",
    "comms_logger.present",
    "monitor.enabled",
    "zero_optimization.offload_optimizer.pipeline",
    "engine_check.amp",
    "amp.params",
    "curriculum_learning.params",
    "progressive_layer_drop.params",
    "sparse_attention",
    "optimizer.params",
    "scheduler.params",
    "zero_optimization.offload_param",
    "zero_optimization.offload_optimizer",
    "zero_optimization.cpu_offload_use_pin_memory", /* a former spelling, resolved into pin_memory */
    "compression_training.weight_quantization.shared_parameters.fp16_mixed_quantize", /* an object in the documents */
    "compression_training.weight_quantization.shared_parameters.quantize_change_ratio",
    "derived.dynamic_loss_scale",
    "derived.initial_dynamic_scale",
    "derived.communication_data_type"};
/* Cases that are accepted there and refused here, or the other way round. Cases tagged lax, not_json or unvalidated may
   be refused; a removed_key of 0.19.8 is accepted. */
static const struct {
    const char *name, *reason;
} verdicts[] = {
    {"zero/python_names", "names of DeepSpeed's Python fields; the documents' have the prefix stage3_"},
    {"zero/hpz", "8 ranks do not divide the world size 1"},
    {"zero/mics", "4 ranks do not divide the world size 1"},
    {"logging/unknown_top_level_ignored", "unknown keys are errors"},
    {"logging/vocabulary_size", "unknown keys are errors"},
    {"actckpt/unknown_ignored", "unknown keys are errors"},
    {"syntax/escapes", "unknown keys are errors"},
    {"doc/stage2_offload_everything_else_wrong_case", "unknown keys are errors"},
    {"syntax/dict_duplicate_last_wins", "duplicate keys are errors, however the text came"},
    {"sched/no_params", "OneCycle needs cycle_min_lr and cycle_max_lr; DeepSpeed fails later"},
    {"amp/no_enabled", "a section without `enabled` is off"},
    {"curriculum/no_enabled", "a section without `enabled` is off"},
    {"amp/with_fp16", "the documents: cannot be combined; DeepSpeed's engine refuses it later"},
    {"amp/with_bf16", "the documents: cannot be combined; DeepSpeed's engine refuses it later"},
    {"amp/with_zero1", "the documents: not compatible with ZeRO; DeepSpeed's engine refuses it later"},
};
/* Errors that DeepSpeed pins on another key of the same mistake. */
static const char *const other_keys[] = {"batch/tb_only_less_than_ws", "batch/mb_zero",      "batch/mb_ga_zero",
                                         "batch/mb_negative",          "batch/tb_auto_all",  "number/overflow_1e400",
                                         "syntax/empty_text",          "doc/seed002_hf_auto"};

/* The node at a dotted path; sections whose parameters DeepSpeed nests under `params` are flat in a file. */
static ds_json_node walk(const ds_json *json, const char *path) {
    ds_json_node node = 0;
    char name[128];
    bool flat = !strncmp(path, "amp.", 4) || !strncmp(path, "curriculum_learning.", 20) ||
                !strncmp(path, "progressive_layer_drop.", 23);
    while (*path && node != DS_JSON_NO_NODE) {
        size_t n = strcspn(path, ".");
        snprintf(name, sizeof name, "%.*s", (int)n, path);
        if (!flat || strcmp(name, "params")) node = ds_json_get(json, node, name);
        path += n + (path[n] == '.');
    }
    return node;
}

/* Numbers by value, never a boolean with a number. */
static bool equal(const ds_json *a, ds_json_node x, const ds_json *b, ds_json_node y) {
    double u, v;
    bool p, q;
    ds_json_type type = ds_json_typeof(a, x);
    if (type != ds_json_typeof(b, y)) return false;
    if (type == DS_JSON_NUMBER) return ds_json_number(a, x, &u) && ds_json_number(b, y, &v) && u == v;
    if (type == DS_JSON_BOOL) return ds_json_bool(a, x, &p) && ds_json_bool(b, y, &q) && p == q;
    if (type == DS_JSON_STRING) return !strcmp(ds_json_string(a, x, NULL), ds_json_string(b, y, NULL));
    if (type == DS_JSON_NULL) return true;
    if (ds_json_count(a, x) != ds_json_count(b, y)) return false;
    for (size_t i = 0; i < ds_json_count(a, x); i++)
        if (!equal(a, ds_json_at(a, x, i), b, ds_json_at(b, y, i))) return false;
    return true;
}
static bool equal_text(const ds_json *a, ds_json_node x, const char *text) {
    ds_json *b = NULL;
    bool same;
    if (ds_json_parse(text, strlen(text), NULL, &b, NULL)) return false;
    same = equal(a, x, b, 0);
    ds_json_free(b);
    return same;
}

static ds_json *printed(const ds_config *config) {
    size_t length = ds_config_print(config, NULL, 0);
    char *text = (char *)malloc(length + 1);
    ds_json *json = NULL;
    ds_config_print(config, text, length + 1);
    CHECK(ds_json_parse(text, length, NULL, &json, NULL) == DS_OK);
    free(text);
    return json;
}

static void compare_value(const ds_json *golden, ds_json_node want, const ds_json *ours, const char *path) {
    ds_json_node got = walk(ours, path);
    for (size_t i = 0; i < sizeof not_keys / sizeof not_keys[0]; i++)
        if (!strcmp(path, not_keys[i])) return;
    if (equal(golden, want, ours, got)) return;
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        if (!strcmp(path, values[i].path) && equal_text(golden, want, values[i].theirs) &&
            equal_text(ours, got, values[i].ours))
            return;
    test_check(0, __FILE__, __LINE__, "%s differs (ours has type %d)", path, (int)ds_json_typeof(ours, got));
}

static bool listed(const char *name) {
    for (size_t i = 0; i < sizeof verdicts / sizeof verdicts[0]; i++)
        if (!strcmp(name, verdicts[i].name)) return true;
    return false;
}

/* The error must be about a key that DeepSpeed names too. */
static void compare_error(const ds_json *golden, ds_json_node expect, const char *name) {
    ds_json_node errors = ds_json_get(golden, ds_json_get(golden, expect, "error"), "errors");
    bool any = false, found = false;
    for (size_t i = 0; i < sizeof other_keys / sizeof other_keys[0]; i++)
        if (!strcmp(name, other_keys[i])) return;
    for (size_t i = 0; i < ds_json_count(golden, errors); i++) {
        ds_json_node keys = ds_json_get(golden, ds_json_at(golden, errors, i), "keys");
        for (size_t k = 0; k < ds_json_count(golden, keys); k++) {
            any = true;
            found |= strstr(last.text, ds_json_string(golden, ds_json_at(golden, keys, k), NULL)) != NULL;
        }
    }
    test_check(!any || found, __FILE__, __LINE__, "%s: an error about another key: %s", name, last.text);
}

static bool may_be_refused(const ds_json *golden, ds_json_node item) {
    ds_json_node tags = ds_json_get(golden, item, "tags");
    return ds_json_count(golden, tags) > 0;
}
static bool was_removed(const ds_json *golden, ds_json_node expect) {
    ds_json_node errors = ds_json_get(golden, ds_json_get(golden, expect, "error"), "errors");
    const char *kind = ds_json_string(golden, ds_json_get(golden, ds_json_at(golden, errors, 0), "kind"), NULL);
    return kind && !strcmp(kind, "removed_key");
}

/* Printing and reading again gives the same configuration. */
static void check_again(const ds_config *config) {
    size_t length = ds_config_print(config, NULL, 0), length2;
    char *text = (char *)malloc(length + 1), *text2;
    ds_config *again;
    ds_config_print(config, text, length + 1);
    again = parse_for(text, config->world_size);
    if (test_check(again != NULL, __FILE__, __LINE__, "the printed configuration is refused: %s", last.text)) {
        length2 = ds_config_print(again, NULL, 0);
        text2 = (char *)malloc(length2 + 1);
        ds_config_print(again, text2, length2 + 1);
        CHECK_STR(text2, text);
        free(text2);
        ds_config_free(again);
    }
    free(text);
}

static void golden_case(const ds_json *golden, ds_json_node base, ds_json_node item) {
    const char *name = ds_json_string(golden, ds_json_get(golden, item, "name"), NULL);
    const char *text = ds_json_string(golden, ds_json_get(golden, item, "text"), NULL);
    ds_json_node expect = ds_json_get(golden, item, "expect"), set = ds_json_get(golden, expect, "set"),
                 absent = ds_json_get(golden, expect, "absent"), v;
    int64_t world = 1;
    bool ok = false;
    ds_config *config;
    ds_json *ours;
    ds_json_integer(golden, ds_json_get(golden, item, "world_size"), &world);
    ds_json_bool(golden, ds_json_get(golden, expect, "ok"), &ok);
    config = parse_for(text, (size_t)world);
    if ((config != NULL) != ok) {
        bool fine = listed(name) || (ok ? may_be_refused(golden, item) : was_removed(golden, expect));
        test_check(fine, __FILE__, __LINE__, "%s: %s\n%s", text, ok ? "refused" : "accepted", last.text);
        ds_config_free(config);
        return;
    }
    CHECK(!listed(name));
    if (!ok) {
        compare_error(golden, expect, name);
        CHECK(last.errors > 0);
        return;
    }
    ours = printed(config);
    for (v = ds_json_first(golden, set); v != DS_JSON_NO_NODE; v = ds_json_next(golden, set, v))
        compare_value(golden, v, ours, ds_json_key(golden, set, v, NULL));
    for (v = ds_json_first(golden, base); v != DS_JSON_NO_NODE; v = ds_json_next(golden, base, v)) {
        const char *path = ds_json_key(golden, base, v, NULL);
        bool gone = false;
        for (size_t i = 0; i < ds_json_count(golden, absent); i++)
            gone |= !strcmp(path, ds_json_string(golden, ds_json_at(golden, absent, i), NULL));
        if (!gone && ds_json_get(golden, set, path) == DS_JSON_NO_NODE) compare_value(golden, v, ours, path);
    }
    ds_json_free(ours);
    check_again(config);
    ds_config_free(config);
}

static void test_golden(const char *path) {
    ds_json *golden = read_json(path);
    ds_json_node item = ds_json_first(golden, 0),
                 base = ds_json_get(golden, ds_json_get(golden, item, "expect"), "set");
    for (; item != DS_JSON_NO_NODE; item = ds_json_next(golden, 0, item)) {
        char name[160];
        snprintf(name, sizeof name, "%s:%s", path + strlen(GOLDEN),
                 ds_json_string(golden, ds_json_get(golden, item, "name"), NULL));
        TEST_NAMED(name) golden_case(golden, base, item);
    }
    ds_json_free(golden);
}

/* ---- golden/defaults.json ---- */

/* Defaults that are not the code's: the decision, and why. */
static const struct {
    const char *path, *ours;
} defaults[] = {{"gradient_clipping", "0"},
                {"steps_per_print", "10"},
                {"zero_optimization.offload_param.pin_memory", "false"},
                {"zero_optimization.offload_optimizer.pin_memory", "false"},
                {"zero_optimization.overlap_comm", "false"},           /* derived: true at stage 3 */
                {"scheduler.params[WarmupLR].warmup_max_lr", "0.001"}, /* derived: the optimizer's lr */
                {"scheduler.params[WarmupDecayLR].total_num_steps", "10"},
                {"scheduler.params[WarmupCosineLR].total_num_steps", "10"},
                {"scheduler.params[OneCycle].cycle_min_lr", "0.1"},
                {"scheduler.params[OneCycle].cycle_max_lr", "0.2"},
                {"scheduler.params[OneCycle].cycle_second_step_size", "2000"},
                {"scheduler.params[OneCycle].cycle_second_stair_count", "0"},
                {"train_batch_size", "8"},
                {"train_micro_batch_size_per_gpu", "8"},
                {"gradient_accumulation_steps", "1"},
                {"compression_training.sparse_pruning.shared_parameters.schedule_offset_end", "1000"}};

/* A file in which the key of defaults.json shows, and the path to look at. */
static void default_case(const ds_json *golden, ds_json_node item) {
    const char *key = ds_json_string(golden, ds_json_get(golden, item, "key"), NULL), *open = strchr(key, '['),
               *extra = "";
    ds_json_node now = ds_json_get(golden, item, "deepspeed_0_19_8"),
                 old = ds_json_get(golden, item, "deepspeed_0_19_6"), want;
    const char *status = ds_json_string(golden, ds_json_get(golden, now, "status"), NULL);
    char text[512] = "{\"train_batch_size\": 8, \"optimizer\": {\"type\": \"Adam\"}", path[160];
    ds_config *config;
    ds_json *ours;
    ds_json_node got;
    snprintf(path, sizeof path, "%s", key);
    if (open) { /* optimizer.params[Adam].lr */
        bool scheduler = key[0] == 's';
        const char *close = strchr(open, ']');
        if (strstr(open, "[WarmupDecayLR]") || strstr(open, "[WarmupCosineLR]")) extra = "\"total_num_steps\": 10";
        if (strstr(open, "[OneCycle]")) extra = "\"cycle_min_lr\": 0.1, \"cycle_max_lr\": 0.2";
        snprintf(text, sizeof text,
                 "{\"train_batch_size\": 8, \"optimizer\": {\"type\": \"%.*s\"}, \"%s\": {\"type\": \"%.*s\", "
                 "\"params\": {%s}}",
                 scheduler ? 4 : (int)(close - open - 1), scheduler ? "Adam" : open + 1,
                 scheduler ? "scheduler" : "dump_state", (int)(close - open - 1), open + 1, extra);
        if (!scheduler) *strstr(text, ", \"dump_state\"") = 0;
        snprintf(path, sizeof path, "%.*s%s", (int)(open - key), key, close + 1);
    }
    snprintf(text + strlen(text), sizeof text - strlen(text), "}");
    config = parse(text);
    if (!test_check(config != NULL, __FILE__, __LINE__, "%s: %s", text, last.text)) return;
    ours = printed(config);
    got = walk(ours, path);
    if (status && (!strcmp(status, "removed"))) now = old;
    want = ds_json_get(golden, now, "default");
    for (size_t i = 0; i < sizeof defaults / sizeof defaults[0]; i++)
        if (!strcmp(key, defaults[i].path)) {
            test_check(equal_text(ours, got, defaults[i].ours), __FILE__, __LINE__, "%s: not %s", path,
                       defaults[i].ours);
            want = DS_JSON_NO_NODE;
        }
    if (want != DS_JSON_NO_NODE && got != DS_JSON_NO_NODE && ds_json_typeof(ours, got) != DS_JSON_OBJECT)
        test_check(equal(golden, want, ours, got), __FILE__, __LINE__, "%s: not the code's default", path);
    ds_json_free(ours);
    ds_config_free(config);
}

/* Every key that the documents show is in the table. */
typedef struct search {
    const char *path;
    bool found;
} search;
static void find_key(void *ctx, const ds_config_key *key) {
    search *s = (search *)ctx;
    s->found |= !strcmp(key->path, s->path);
}

static void test_defaults(void) {
    ds_json *golden = read_json(GOLDEN "defaults.json");
    for (ds_json_node item = ds_json_first(golden, 0); item != DS_JSON_NO_NODE; item = ds_json_next(golden, 0, item)) {
        const char *key = ds_json_string(golden, ds_json_get(golden, item, "key"), NULL);
        char name[200];
        snprintf(name, sizeof name, "defaults.json:%s", key);
        TEST_NAMED(name) {
            /* one for any component, and the flattened form of an object */
            bool family =
                strstr(key, "*") || strstr(key, "fp16_mixed_quantize") || strstr(key, ".quantize_change_ratio");
            if (strcmp(key, "optimizer.type") && strcmp(key, "zero_optimization") && !family)
                default_case(golden, item);
            if (!strchr(key, '[') && !family && !strstr(key, "offload_param") && !strstr(key, "offload_optimizer")) {
                search s = {key, false};
                ds_config_keys(find_key, &s);
                if (strcmp(key, "zero_optimization"))
                    test_check(s.found, __FILE__, __LINE__, "%s is not in the table", key);
            }
        }
    }
    ds_json_free(golden);
}

/* ---- golden/memory.json ---- */
static size_t get_size(const ds_json *json, ds_json_node node, const char *key, size_t fallback) {
    int64_t value;
    return ds_json_integer(json, ds_json_get(json, node, key), &value) ? (size_t)value : fallback;
}
static bool get_bool(const ds_json *json, ds_json_node node, const char *key, bool fallback) {
    bool value;
    return ds_json_bool(json, ds_json_get(json, node, key), &value) ? value : fallback;
}
static void test_memory_estimates(void) {
    ds_json *golden = read_json(GOLDEN "memory.json");
    for (ds_json_node item = ds_json_first(golden, 0); item != DS_JSON_NO_NODE; item = ds_json_next(golden, 0, item)) {
        char name[100];
        snprintf(name, sizeof name, "memory.json:%s", ds_json_string(golden, ds_json_get(golden, item, "name"), NULL));
        TEST_NAMED(name) {
            ds_json_node params = ds_json_get(golden, item, "params"), expect = ds_json_get(golden, item, "expect");
            ds_config_memory_desc d;
            size_t cpu, gpu;
            double want;
            memset(&d, 0, sizeof d);
            d.stage = (int)get_size(golden, item, "stage", 0);
            d.params = get_size(golden, params, "total_params", 0);
            d.largest_layer = get_size(golden, params, "largest_layer_params", 0);
            d.gpus_per_node = get_size(golden, params, "num_gpus_per_node", 1);
            d.nodes = get_size(golden, params, "num_nodes", 1);
            d.offload_optimizer = get_bool(golden, params, "cpu_offload", true);
            d.offload_param = get_bool(golden, params, "cpu_offload_params", true);
            d.keep_init = !get_bool(golden, params, "zero_init", true);
            ds_json_number(golden, ds_json_get(golden, params, "additional_buffer_factor"), &d.buffer_factor);
            ds_config_memory(&d, &cpu, &gpu);
            ds_json_number(golden, ds_json_get(golden, expect, "cpu_bytes"), &want);
            test_check(want >= (double)SIZE_MAX ? cpu == SIZE_MAX : (double)cpu == want, __FILE__, __LINE__,
                       "cpu: %zu, expected %.17g", cpu, want);
            ds_json_number(golden, ds_json_get(golden, expect, "gpu_bytes"), &want);
            test_check(want >= (double)SIZE_MAX ? gpu == SIZE_MAX : (double)gpu == want, __FILE__, __LINE__,
                       "gpu: %zu, expected %.17g", gpu, want);
        }
    }
    ds_json_free(golden);
    TEST(memory_of_what_no_machine_has) {
        ds_config_memory_desc d;
        size_t cpu, gpu;
        memset(&d, 0, sizeof d); /* one GPU, one node, 1.5 */
        d.stage = 2;
        d.params = SIZE_MAX / 2;
        ds_config_memory(&d, &cpu, &gpu);
        CHECK(cpu == SIZE_MAX);
        d.stage = 3;
        d.params = 1000;
        d.offload_optimizer = d.offload_param = d.keep_init = true;
        ds_config_memory(&d, &cpu, &gpu);
        CHECK_EQ(cpu, 1000 * 18 * 3 / 2); /* the states need more than a copy of the weights: 18 bytes, not 4 */
        CHECK_EQ(gpu, 0);
        d.gpus_per_node = 8;
        ds_config_memory(&d, &cpu, &gpu);
        CHECK_EQ(cpu, 1000 * 32 * 3 / 2); /* a copy of the weights by each of 8 ranks: 32 */
    }
}

/* ---- JSON ---- */

/* The i_ files that yyjson accepts; it refuses all others. */
static const char *const accepted[] = {"i_number_double_huge_neg_exp.json",   "i_number_real_underflow.json",
                                       "i_number_too_big_neg_int.json",       "i_number_too_big_pos_int.json",
                                       "i_number_very_big_negative_int.json", "i_structure_500_nested_arrays.json"};
static void test_suite(void) {
    DIR *folder = opendir(GOLDEN "JSONTestSuite/test_parsing");
    struct dirent *entry;
    int count = 0;
    if (!folder) return;
    while ((entry = readdir(folder)) != NULL) {
        const char *file = entry->d_name;
        bool right = file[0] == 'y';
        char path[600];
        if (file[0] == '.') continue;
        for (size_t i = 0; i < sizeof accepted / sizeof accepted[0]; i++) right |= !strcmp(file, accepted[i]);
        snprintf(path, sizeof path, GOLDEN "JSONTestSuite/test_parsing/%s", file);
        TEST_NAMED(file) {
            size_t bytes;
            char *text = read_file(path, &bytes), *exact = (char *)malloc(bytes ? bytes : 1);
            ds_json *json = NULL;
            ds_error error = {DS_OK, ""};
            memcpy(exact, text, bytes); /* without a byte behind it, so that reading past the end is found */
            CHECK(ds_json_parse(exact, bytes, NULL, &json, &error) == (right ? DS_OK : DS_ERR_INPUT));
            CHECK((json != NULL) == right);
            ds_json_free(json);
            free(exact);
            free(text);
        }
        count++;
    }
    closedir(folder);
    TEST(json_test_suite_is_whole) CHECK_EQ(count, 318);
}

/* By the table of RFC 3629: the character that a text starts with is well-formed. */
static unsigned utf8_length(const unsigned char *c) {
    static const struct {
        unsigned char low[4], high[4], length;
    } rows[] = {{{0xC2, 0x80}, {0xDF, 0xBF}, 2},
                {{0xE0, 0xA0, 0x80}, {0xE0, 0xBF, 0xBF}, 3},
                {{0xE1, 0x80, 0x80}, {0xEC, 0xBF, 0xBF}, 3},
                {{0xED, 0x80, 0x80}, {0xED, 0x9F, 0xBF}, 3},
                {{0xEE, 0x80, 0x80}, {0xEF, 0xBF, 0xBF}, 3},
                {{0xF0, 0x90, 0x80, 0x80}, {0xF0, 0xBF, 0xBF, 0xBF}, 4},
                {{0xF1, 0x80, 0x80, 0x80}, {0xF3, 0xBF, 0xBF, 0xBF}, 4},
                {{0xF4, 0x80, 0x80, 0x80}, {0xF4, 0x8F, 0xBF, 0xBF}, 4}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bool in = true;
        for (int j = 0; j < rows[i].length; j++) in = in && c[j] >= rows[i].low[j] && c[j] <= rows[i].high[j];
        if (in) return rows[i].length;
    }
    return 0;
}
static void test_utf8(void) {
    TEST(utf8_by_its_table) {
        static const unsigned char edges[] = {0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF};
        const size_t n = sizeof edges;
        for (unsigned first = 0x80; first <= 0xFF; first++)
            for (size_t i = 0; i < n * n * n; i++) {
                unsigned char c[5] = {(unsigned char)first, edges[i % n], edges[i / n % n], edges[i / n / n], 0};
                if (!CHECK(dsi_json_utf8((const char *)c) == utf8_length(c))) return;
            }
    }
}

static double read_number(const char *text) {
    ds_json *json = NULL;
    double value = NAN;
    if (!ds_json_parse(text, strlen(text), NULL, &json, NULL)) ds_json_number(json, 0, &value);
    ds_json_free(json);
    return value;
}
static bool same_bits(double a, double b) {
    return memcmp(&a, &b, sizeof a) == 0;
}
static const char *print_number(double value) {
    static char out[64];
    ds_json_writer w;
    memset(&w, 0, sizeof w);
    w.out = out;
    w.room = sizeof out - 1;
    ds_json_write_number(&w, NULL, value);
    out[w.length] = 0;
    return out;
}

static void test_numbers(void) {
    TEST(numbers_round_trip_shortest) {
        uint64_t state = 7;
        for (int i = 0; i < 200000; i++) {
            uint64_t bits = test_random(&state);
            double value;
            char text[64];
            int digits = 0, precision = 1;
            if (i % 4 == 0) bits &= (UINT64_C(1) << 54) - 1; /* small and denormal */
            memcpy(&value, &bits, sizeof value);
            if (value - value != 0) continue;
            snprintf(text, sizeof text, "%s", print_number(value));
            if (!CHECK(same_bits(read_number(text), value))) break;
            for (const char *s = text, *e = text + strcspn(text, "e"); s < e; s++) digits += *s >= '0' && *s <= '9';
            if (i % 16) continue;
            for (precision = 1; precision < 17; precision++) {
                snprintf(text, sizeof text, "%.*e", precision - 1, value);
                if (same_bits(strtod(text, NULL), value)) break;
            }
            /* zeros that only place the point do not count */
            if (strchr(print_number(value), 'e')) CHECK_EQ(digits, precision);
        }
    }
    TEST(numbers_read_as_strtod_reads) {
        uint64_t state = 11;
        for (int i = 0; i < 100000; i++) {
            uint64_t bits = test_random(&state);
            double value;
            char text[64];
            memcpy(&value, &bits, sizeof value);
            if (value - value != 0) continue;
            snprintf(text, sizeof text, "%.*e", (int)(bits % 25), value);
            if (strtod(text, NULL) - strtod(text, NULL) == 0 &&
                !CHECK(same_bits(read_number(text), strtod(text, NULL)))) {
                printf("  %s\n", text);
                break;
            }
        }
    }
    TEST(numbers_halfway_between_two) {
        uint64_t state = 13;
        static char text[1400];
        for (int i = 0; i < 5000; i++) {
            uint64_t bits = test_random(&state) >> 1;
            double value, after;
            if (i % 2) bits &= (UINT64_C(1) << 55) - 1;
            memcpy(&value, &bits, sizeof value);
            after = nextafter(value, INFINITY);
            if (after - after != 0 || value - value != 0) continue;
            snprintf(text, sizeof text, "%.1100Le", ((long double)value + (long double)after) / 2);
            CHECK(same_bits(read_number(text), strtod(text, NULL)));
            *strchr(text, 'e') = 0;
            snprintf(text + 1000, sizeof text - 1000, "1e%d", (int)floor(log10(value)));
            CHECK(same_bits(read_number(text), strtod(text, NULL)));
        }
    }
    TEST(numbers_at_the_edges) {
        CHECK(same_bits(read_number("-0"), -0.0));
        CHECK(same_bits(read_number("0.0"), 0.0));
        CHECK(read_number("4.9406564584124654e-324") > 0);
        CHECK(read_number("2.4703282292062327e-324") == 0);
        CHECK(read_number("2.4703282292062328e-324") > 0);
        CHECK(read_number("1.7976931348623157e308") == 1.7976931348623157e308);
        CHECK(isnan(read_number("1.7976931348623159e308"))); /* an error */
        CHECK(isnan(read_number("1.8e308")) && isnan(read_number("1e309")) && isnan(read_number("-1e999999999999")));
        CHECK(read_number("1.234567890123456789") == 1.234567890123456789);   /* 19 digits */
        CHECK(read_number("12345678901234567890") == 12345678901234567890.0); /* 20 */
        CHECK(read_number("0.00012345678901234567891e3") == 0.12345678901234567891);
        CHECK(read_number("18446744073709551616") == 18446744073709551616.0);        /* 2^64 */
        CHECK_STR(print_number(2.2250738585072014e-308), "2.2250738585072014e-308"); /* the least with all its digits */
        CHECK_STR(print_number(-0.0), "-0.0");
        CHECK(read_number("0e999999999999") == 0);
        CHECK(read_number("9007199254740993") == 9007199254740993.0);
        CHECK(read_number("1e-999999999") == 0);
        CHECK_STR(print_number(0.1), "0.1");
        CHECK_STR(print_number(1e23), "1e23");
        CHECK_STR(print_number(5e-324), "5e-324");
        CHECK_STR(print_number(-1.0), "-1.0");
        CHECK_STR(print_number(1e16), "10000000000000000.0");
        CHECK_STR(print_number(INFINITY), "null");
    }
    TEST(numbers_that_are_whole) {
        static const struct {
            const char *text, *whole; /* NULL: not whole, or beyond 64 bits */
        } cases[] = {{"5e8", "500000000"},
                     {"5E+8", "500000000"},
                     {"32.0", "32"},
                     {"1.50e1", "15"},
                     {"5.5", NULL},
                     {"100e-2", "1"},
                     {"100e-3", NULL},
                     {"0e-5", "0"},
                     {"-0", "0"},
                     {"-0.0e99", "0"},
                     {"1e18", "1000000000000000000"},
                     {"1e19", NULL},
                     {"9223372036854775807", "9223372036854775807"},
                     {"9223372036854775808", NULL},
                     {"-9223372036854775808", "-9223372036854775808"},
                     {"-9223372036854775809", NULL},
                     {"9223372036854775807.0", "9223372036854775807"},
                     {"9223372036854775808.0", NULL},
                     {"92233720368547758070.0", NULL},
                     {"100000000000000000000.0", NULL},
                     {"1e999999999999", NULL},
                     {"0.0000000000000000000000000000001e31", "1"},
                     {"1e-99999999999", NULL},
                     {"922337203685477580.80e1", NULL},
                     {"922337203685477580.70e1", "9223372036854775807"},
                     {"1000000000000000000000000e-24", "1"},
                     {"1000000000000000000000001.0", NULL}};
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            ds_json *json = NULL;
            int64_t value = 7;
            char got[32];
            bool whole = !ds_json_parse(cases[i].text, strlen(cases[i].text), NULL, &json, NULL) &&
                         ds_json_integer(json, 0, &value);
            snprintf(got, sizeof got, "%lld", (long long)value);
            test_check(whole == (cases[i].whole != NULL) && (!whole || !strcmp(got, cases[i].whole)), __FILE__,
                       __LINE__, "%s: got %s %s", cases[i].text, whole ? "whole" : "not whole", got);
            ds_json_free(json);
        }
    }
    TEST(numbers_do_not_follow_the_locale) {
        const char *names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"};
        bool set = false;
        for (size_t i = 0; i < 3 && !set; i++) set = setlocale(LC_ALL, names[i]) != NULL;
        if (!set)
            SKIP("no locale with a decimal comma is installed");
        else {
            CHECK(read_number("1.5") == 1.5);
            CHECK_STR(print_number(1.5), "1.5");
        }
        setlocale(LC_ALL, "C");
    }
}

static void test_json(void) {
    TEST(json_values_and_iteration) {
        const char *text =
            "{\"a\": [1, 2.5, 5e8, -3], \"b\\u0000c\": \"\\u20ac\\ud83d\\ude00\\n\", \"t\": true, \"n\": null}";
        ds_json *json = NULL;
        ds_json_node a, v;
        int64_t whole;
        double sum = 0, one;
        size_t bytes;
        bool flag;
        int line, column;
        CHECK(ds_json_parse(text, strlen(text), NULL, &json, NULL) == DS_OK);
        a = ds_json_get(json, 0, "a");
        CHECK_EQ(ds_json_count(json, 0), 4);
        CHECK_EQ(ds_json_count(json, a), 4);
        for (v = ds_json_first(json, a); v != DS_JSON_NO_NODE; v = ds_json_next(json, a, v))
            if (CHECK(ds_json_number(json, v, &one))) sum += one;
        CHECK(sum == 500000000.5);
        CHECK(ds_json_integer(json, ds_json_at(json, a, 2), &whole) && whole == 500000000);
        CHECK(!ds_json_integer(json, ds_json_at(json, a, 1), &whole) && whole == 0);
        v = ds_json_at(json, 0, 1);
        CHECK_STR(ds_json_string(json, v, &bytes), "\xE2\x82\xAC\xF0\x9F\x98\x80\n");
        CHECK_EQ(bytes, 8);
        CHECK_STR(ds_json_key(json, 0, v, &bytes), "b");
        CHECK_EQ(bytes, 3);
        CHECK(ds_json_bool(json, ds_json_get(json, 0, "t"), &flag) && flag);
        CHECK_EQ(ds_json_typeof(json, ds_json_get(json, 0, "n")), DS_JSON_NULL);
        CHECK_EQ(ds_json_typeof(json, ds_json_get(json, ds_json_get(json, 0, "no"), "such")), DS_JSON_NONE);
        CHECK(ds_json_string(json, DS_JSON_NO_NODE, &bytes) == NULL && bytes == 0);
        CHECK(ds_json_key(json, a, ds_json_at(json, a, 0), NULL) == NULL);
        CHECK(ds_json_at(json, a, 4) == DS_JSON_NO_NODE);
        CHECK(ds_json_first(json, ds_json_at(json, a, 0)) == DS_JSON_NO_NODE);
        CHECK(ds_json_key(json, 0, DS_JSON_NO_NODE, &bytes) == NULL && bytes == 0);
        CHECK(ds_json_get(json, a, "a") == DS_JSON_NO_NODE);
        CHECK(!ds_json_bool(json, DS_JSON_NO_NODE, &flag) && !flag);
        CHECK(!ds_json_integer(json, DS_JSON_NO_NODE, &whole) && !ds_json_integer(json, 0, &whole));
        CHECK(!ds_json_number(json, DS_JSON_NO_NODE, &one) && !ds_json_number(json, 0, &one));
        ds_json_position(json, DS_JSON_NO_NODE, &line, &column);
        CHECK(line == 0 && column == 0);
        ds_json_position(json, ds_json_get(json, 0, "t"), &line, &column);
        CHECK_EQ(line, 1);
        ds_json_free(json);
    }
    TEST(json_errors_say_where_and_what) {
        static const char *const texts[][2] = {
            {"", "1:1: the text ends where a value should follow"},
            {"{\"a\": None}", "1:7: None is Python; did you mean null?"},
            {"[True]", "1:2: True is Python; did you mean true?"},
            {"[False]", "1:2: False is Python; did you mean false?"},
            {"[NaN]", "1:2: JSON has no NaN and no infinity"},
            {"[-Infinity]", "1:2: JSON has no NaN and no infinity"},
            {"['a']", "1:2: strings stand in double quotes"},
            {"[+1]", "1:2: a number starts with a digit or '-'"},
            {"[01]", "1:2: a number may not start with 0"},
            {"[1.]", "1:4: expected a digit after the decimal point"},
            {"[1e]", "1:4: expected a digit in the exponent"},
            {"[1.a]", "1:4: expected a digit after the decimal point"},
            {"[1234567890123456789012.]", "1:25: expected a digit after the decimal point"},
            {"[1e+]", "1:5: expected a digit in the exponent"},
            {"[1e309]", "1:2: the number is too large for a double"},
            {"[-a]", "1:3: expected a digit after '-'"},
            {"[Infinity]", "1:2: JSON has no NaN and no infinity"},
            {"[.5]", "1:2: a number starts with a digit or '-'"},
            {"[\r\t\n 1 /2]", "2:4: expected ',' or ']'"},
            {"[#]", "1:2: JSON has no comments"},
            {"[tru]", "1:2: expected a value"},
            {"[\"\\ud800\"]", "1:3: the first half of a surrogate pair alone"},
            {"[\"\\ud800\\u0041\"]", "1:3: the first half of a surrogate pair alone"},
            {"[\"\\ud800\\ue000\"]", "1:3: the first half of a surrogate pair alone"},
            {"[\"\\udc00\"]", "1:3: the second half of a surrogate pair alone"},
            {"[\"\\u", "1:3: \\u needs four hexadecimal digits"},
            {"[\"\\", "1:3: unknown escape in a string"},
            {"[1.5.2]", "1:5: expected ',' or ']'"},
            {"[1.1234567890123456789.2]", "1:23: expected ',' or ']'"},
            {"[-]", "1:3: expected a digit after '-'"},
            {"[1,\n 2,]", "2:4: a comma before the closing bracket"},
            {"{\"a\" 1}", "1:6: expected ':' after the key"},
            {"{a: 1}", "1:2: expected a key in double quotes"},
            {"[1 2]", "1:4: expected ',' or ']'"},
            {"{\"a\": 1 2}", "1:9: expected ',' or '}'"},
            {"1 2", "1:3: the text goes on after its value"},
            {"\"a", "1:1: this string does not end"},
            {"\"\\x\"", "1:2: unknown escape in a string"},
            {"\"\\u12g4\"", "1:2: \\u needs four hexadecimal digits"},
            {"\"a\tb\"", "1:3: a control character in a string must be escaped"},
            {"\"\xC3\xA4\xFF\"", "1:3: malformed UTF-8 in a string"},
            {"// x", "1:1: JSON has no comments"},
            {"\xEF\xBB\xBF{}", "1:1: the text starts with a byte order mark; save it without one"}};
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
            ds_json *json;
            ds_error error = {DS_OK, ""};
            CHECK(ds_json_parse(texts[i][0], strlen(texts[i][0]), NULL, &json, &error) == DS_ERR_INPUT);
            CHECK_STR(error.message, texts[i][1]);
            CHECK(json == NULL);
        }
    }
    TEST(json_comments_and_commas_when_asked) {
        const char *text = "{ // one\n \"a\": /* two */ [1, 2,], # three\n}\n//end";
        ds_json_options options;
        ds_json *json = NULL;
        memset(&options, 0, sizeof options);
        CHECK(ds_json_parse(text, strlen(text), &options, &json, NULL) == DS_ERR_INPUT);
        options.comments = options.trailing_commas = true;
        CHECK(ds_json_parse(text, strlen(text), &options, &json, NULL) == DS_OK);
        CHECK_EQ(ds_json_count(json, ds_json_get(json, 0, "a")), 2);
        ds_json_free(json);
        CHECK(ds_json_parse("[/**/1/*/ * **/,//\r\n#,\n2#", 26, &options, &json, NULL) == DS_ERR_INPUT);
        CHECK(ds_json_parse("[/**/1/*/ * **/,//\r\n#,\n2\t]#", 28, &options, &json, NULL) == DS_OK);
        CHECK_EQ(ds_json_count(json, 0), 2);
        ds_json_free(json);
        CHECK(ds_json_parse("[,]", 3, &options, &json, NULL) == DS_ERR_INPUT);
        {
            ds_error error = {DS_OK, ""};
            static const char *const texts[][2] = {{"[1, /* x", "1:5: this comment does not end"},
                                                   {"[1, /*", "1:5: this comment does not end"},
                                                   {"[1, /x", "1:5: this comment does not end"},
                                                   {"[1 /* ]", "1:4: expected ',' or ']'"}};
            for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
                CHECK(ds_json_parse(texts[i][0], strlen(texts[i][0]), &options, &json, &error) == DS_ERR_INPUT);
                CHECK_STR(error.message, texts[i][1]);
            }
        }
    }
    TEST(json_depth_and_size_are_bounded) {
        static char text[20001];
        ds_json_options options;
        ds_json *json = NULL;
        ds_error error = {DS_OK, ""};
        memset(text, '[', 20000);
        CHECK(ds_json_parse(text, 20000, NULL, &json, &error) == DS_ERR_INPUT);
        CHECK_STR(error.message, "1:1001: too many containers inside each other");
        memset(text + 1000, ']', 1000);
        CHECK(ds_json_parse(text, 2000, NULL, &json, NULL) == DS_OK);
        ds_json_free(json);
        memset(&options, 0, sizeof options);
        options.max_depth = 999;
        CHECK(ds_json_parse(text, 2000, &options, &json, NULL) == DS_ERR_INPUT);
        options.max_depth = 0;
        options.max_bytes = 1999;
        CHECK(ds_json_parse(text, 2000, &options, &json, NULL) == DS_ERR_INPUT);
        CHECK(ds_json_parse(NULL, 0, NULL, &json, NULL) == DS_ERR_ARGUMENT);
        CHECK(ds_json_parse("1", 1, NULL, NULL, NULL) == DS_ERR_ARGUMENT);
        options.max_bytes = SIZE_MAX;
        CHECK(ds_json_parse("1", SIZE_MAX / 2, &options, &json, &error) == DS_ERR_INPUT); /* nothing of it is read */
        CHECK_HAS(error.message, "more than 2147483646");
    }
    TEST(json_duplicates) {
        char text[4096];
        size_t n = 0;
        ds_json *json = NULL;
        int line, column;
        ds_json_parse("{\"a\": 1, \"b\": {\"x\": 1, \"\\u0078\": 2}}", 36, NULL, &json, NULL);
        CHECK_STR(ds_json_string(json, ds_json_duplicate(json), NULL), "x");
        ds_json_free(json);
        n += (size_t)snprintf(text, sizeof text, "{");
        for (int i = 0; i < 100; i++) n += (size_t)snprintf(text + n, sizeof text - n, "\"k%d\": 0,\n", i * 37 % 100);
        n += (size_t)snprintf(text + n, sizeof text - n, "\"k\": 1}");
        CHECK(ds_json_parse(text, n, NULL, &json, NULL) == DS_OK);
        CHECK(ds_json_duplicate(json) == DS_JSON_NO_NODE);
        ds_json_free(json);
        n += (size_t)snprintf(text + n - 1, sizeof text - n, ", \"k36\": 2, \"k37\": 3}") - 1;
        CHECK(ds_json_parse(text, n, NULL, &json, NULL) == DS_OK);
        CHECK_STR(ds_json_string(json, ds_json_duplicate(json), NULL), "k36");
        {
            test_memory memory;
            memset(&memory, 0, sizeof memory);
            json->allocator.alloc = test_alloc;
            json->allocator.release = test_release;
            json->allocator.ctx = &memory;
            memory.fail_at = 1; /* then it takes longer */
            CHECK_STR(ds_json_string(json, ds_json_duplicate(json), NULL), "k36");
            memset(&json->allocator, 0, sizeof json->allocator);
        }
        ds_json_position(json, ds_json_duplicate(json), &line, &column);
        CHECK_EQ(line, 101);
        ds_json_free(json);
    }
    TEST(json_writer) {
        char out[256];
        ds_json_writer w;
        const char *text =
            "{\n  \"a\": [\n    1,\n    null\n  ],\n  \"s\": \"q\\\"\\\\\\u0001\\n\\t\",\n  \"e\": {}\n}";
        memset(&w, 0, sizeof w);
        w.out = out;
        w.room = sizeof out - 1;
        w.indent = 2;
        ds_json_write_open(&w, NULL, '{');
        ds_json_write_open(&w, "a", '[');
        ds_json_write_integer(&w, NULL, 1);
        ds_json_write_null(&w, NULL);
        ds_json_write_close(&w, ']');
        ds_json_write_string(&w, "s", "q\"\\\1\n\t");
        ds_json_write_open(&w, "e", '{');
        ds_json_write_close(&w, '}');
        ds_json_write_close(&w, '}');
        out[w.length] = 0;
        CHECK_STR(out, text);
        memset(&w, 0, sizeof w); /* on one line, cut: what does not fit is counted */
        memset(out, 'x', sizeof out);
        w.out = out;
        w.room = 12;
        ds_json_write_open(&w, NULL, '[');
        ds_json_write_string(&w, NULL, NULL);
        ds_json_write_string(&w, NULL, "text");
        ds_json_write_integer(&w, NULL, 5);
        ds_json_write_close(&w, ']');
        CHECK_EQ(w.length, strlen("[null, \"text\", 5]"));
        out[13] = 0;
        CHECK_STR(out, "[null, \"textx");
    }
}

/* ---- the documents' rules over several keys: a file that breaks one, the key it is about, the sentence ---- */
static const struct {
    size_t world;
    const char *text, *path, *sentence;
} rules[] = {
    {1, "\"fp16\": {\"enabled\": true}, \"bf16\": {\"enabled\": true}", "bf16.enabled",
     "this mode cannot be combined with the fp16 mode described above (003, BFLOAT16)"},
    {1, "\"amp\": {\"enabled\": true}, \"fp16\": {\"enabled\": true}", "amp.enabled",
     "this mode cannot be combined with the fp16 mode described above (000, AMP)"},
    {1, "\"amp\": {\"enabled\": true}, \"bf16\": {\"enabled\": true}", "amp.enabled",
     "this mode cannot be combined with the amp mode (003, BFLOAT16)"},
    {1, "\"amp\": {\"enabled\": true}, \"zero_optimization\": {\"stage\": 1}", "amp.enabled",
     "this mode is not currently compatible with ZeRO (000, AMP)"},
    {1, "\"zero_optimization\": {\"stage\": 2, \"offload_param\": {\"device\": \"cpu\"}}",
     "zero_optimization.offload_param.device", "Valid only with stage 3 (003, offload_param)"},
    {1, "\"zero_optimization\": {\"offload_optimizer\": {\"device\": \"cpu\"}}",
     "zero_optimization.offload_optimizer.device", "Valid for ZeRO stage 1, 2, 3 (003, offload_optimizer)"},
    {1, "\"zero_optimization\": {\"stage\": 2, \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"/x\"}}",
     "zero_optimization.offload_optimizer.device", "NVMe offloading is available only with ZeRO stage 3 (003)"},
    {1, "\"zero_optimization\": {\"stage\": 3, \"offload_optimizer\": {\"device\": \"nvme\"}}",
     "zero_optimization.offload_optimizer.device", "nvme_path: filesystem path for NVMe device (001)"},
    {1, "\"zero_optimization\": {\"stage\": 3, \"offload_param\": {\"device\": \"nvme\"}}",
     "zero_optimization.offload_param.device", "nvme_path: filesystem path for NVMe device (001)"},
    {1, "\"zero_optimization\": {\"stage\": 2, \"offload_optimizer\": {\"device\": \"cpu\", \"ratio\": 0.5}}",
     "zero_optimization.offload_optimizer.ratio", "ratio of parameters updated on the CPU side, at stage 3 (003)"},
    {1, "\"zero_optimization\": {\"stage\": 4}", "zero_optimization.stage",
     "Invalid ZeRO stage: Must be 0, 1, 2, or 3 (002)"},
    {6, "\"zero_optimization\": {\"stage\": 3, \"zero_hpz_partition_size\": 4}",
     "zero_optimization.zero_hpz_partition_size",
     "Number of ranks in hierarchical partitioning ZeRO secondary tensor group (003)"},
    {1, "\"optimizer\": {\"type\": \"OneBitAdam\"}, \"zero_optimization\": {\"stage\": 1}", "optimizer.type",
     "1-bit compression gets applied to the communication (001): there is none of whole gradients under ZeRO"},
    {1, "\"optimizer\": {\"type\": \"OneBitLamb\"}, \"zero_optimization\": {\"stage\": 2}", "optimizer.type",
     "as above"},
    {1, "\"optimizer\": {\"type\": \"ZeroOneAdam\"}, \"zero_optimization\": {\"stage\": 3}", "optimizer.type",
     "as above"},
    {1, "\"elasticity\": {\"enabled\": true, \"max_train_batch_size\": 100, \"micro_batch_sizes\": [2]}",
     "train_batch_size", "we require all batch related info to be given in elastic config only (003)"},
    {1, "\"autotuning\": {\"start_profile_step\": 5, \"end_profile_step\": 4}", "autotuning.end_profile_step",
     "Must not be less than start_profile_step (003)"},
    {1,
     "\"data_efficiency\": {\"data_routing\": {\"random_ltd\": {\"enabled\": true, \"random_ltd_layer_num\": 2, "
     "\"random_ltd_layer_id\": [1]}}}",
     "data_efficiency.data_routing.random_ltd.random_ltd_layer_id",
     "The length of this list must be the same as random_ltd_layer_num (003)"},
    {1,
     "\"compression_training\": {\"layer_reduction\": {\"enabled\": true, \"keep_number_layer\": 2, \"teacher_layer\": "
     "[1]}}",
     "compression_training.layer_reduction.teacher_layer", "The length of the list equals to keep_number_layer (003)"},
    {1, "\"compression_training\": {\"weight_quantization\": {\"shared_parameters\": {\"quantizer_kernel\": true}}}",
     "compression_training.weight_quantization.shared_parameters.quantizer_kernel",
     "This can only be enabled when using DeepSpeed FP16 optimizer (003)"},
    {1,
     "\"compression_training\": {\"head_pruning\": {\"shared_parameters\": {\"enabled\": true}, \"different_groups\": "
     "{}}}",
     "compression_training.head_pruning.shared_parameters.num_heads",
     "Number of heads (must be provided by user) (003)"},
    {1,
     "\"compression_training\": {\"sparse_pruning\": {\"shared_parameters\": {\"enabled\": true, \"method\": "
     "\"snip_momentum\", \"schedule_offset\": 9, \"schedule_offset_end\": 8}}}",
     "compression_training.sparse_pruning.shared_parameters.schedule_offset_end",
     "Disable sparse pruning after scheduled steps, mandatory for snip_momentum (003)"},
    {1,
     "\"sparse_attention\": {\"mode\": \"variable\", \"global_block_indices\": [0, 5], \"global_block_end_indices\": "
     "[1]}",
     "sparse_attention.global_block_end_indices", "it must have the same size of global_block_indices parameter (001)"},
    {1, "\"sparse_attention\": {\"attention\": \"unidirectional\", \"horizontal_global_attention\": true}",
     "sparse_attention.horizontal_global_attention", "This is valid only if attention type is bidirectional (001)"},
    {1, "\"sparse_attention\": {\"num_different_global_patterns\": 2}",
     "sparse_attention.num_different_global_patterns",
     "since there are multi-heads, each head can use a different global representative (001)"},
    {1, "\"sparse_attention\": {\"num_local_blocks\": 4, \"num_global_blocks\": 3}",
     "sparse_attention.num_global_blocks",
     "how many consecutive blocks in a local window is used as the representative (001)"},
    {1, "\"scheduler\": {\"type\": \"WarmupDecayLR\"}", "scheduler.params.total_num_steps", "total_num_steps (002)"},
    {1, "\"optimizer\": {\"type\": \"SGD\", \"params\": {\"betas\": [0.9, 0.99]}}", "optimizer.params.betas",
     "The parameter names must match the optimizer constructor signature (000)"},
    {1, "\"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"total_num_steps\": 3}}",
     "scheduler.params.total_num_steps", "The parameter names should match scheduler constructor signature (000)"},
    {6, "\"zero_optimization\": {\"stage\": 3, \"mics_shard_size\": 4}", "zero_optimization.mics_shard_size",
     "in no document; as zero_hpz_partition_size"},
    {1, "\"zero_optimization\": {\"stage\": 3}, \"gradient_allreduce_op\": \"sum\"", "gradient_allreduce_op",
     "in no document; DeepSpeed's stage 3 averages only"},
    {1, "\"zero_optimization\": {\"stage\": 3, \"compute_grad_norm\": false}", "zero_optimization.compute_grad_norm",
     "in no document; DeepSpeed's stages 1 and 2 only can leave the norm out"},
    {1, "\"fp16\": {\"enabled\": true, \"fp16_master_weights_and_grads\": true}", "fp16.fp16_master_weights_and_grads",
     "in no document; DeepSpeed has fp16 master weights at stage 2 only"},
    {1, "\"fp16\": {\"fp16_master_weights_and_grads\": true}, \"zero_optimization\": {\"stage\": 2}",
     "fp16.fp16_master_weights_and_grads", "in no document; DeepSpeed has fp16 master weights in fp16 training only"},
    {1, "\"bf16\": {\"enabled\": true, \"bf16_optimizer_states\": true}", "bf16.bf16_optimizer_states",
     "in no document; DeepSpeed has bf16 states with bf16 master weights only"},
    {1, "\"fp16\": {\"enabled\": true, \"loss_scale_window\": 0}", "fp16.loss_scale_window",
     "the window over which to raise/lower the dynamic loss scale value (000)"},
    {1, "\"fp16\": {\"enabled\": true, \"min_loss_scale\": 0}", "fp16.min_loss_scale",
     "the minimum dynamic loss scale value (000)"},
    {1, "\"data_efficiency\": {\"data_sampling\": {\"curriculum_learning\": {\"enabled\": true}}}",
     "data_efficiency.data_sampling.curriculum_learning.curriculum_metrics",
     "This dictionary includes all desired curriculum metrics and their configs (003)"},
    {1, "\"data_efficiency\": {\"data_sampling\": {\"dynamic_batching\": {\"enabled\": true}}}",
     "data_efficiency.data_sampling.dynamic_batching.max_tokens", "in no document; DeepSpeed packs batches by tokens"},
    {1, "\"autotuning\": {\"results_dir\": \"\"}", "autotuning.results_dir",
     "Path to the autotuning experiment results directory (003)"},
    {1, "\"sparse_attention\": {\"num_global_blocks\": 0}", "sparse_attention.num_global_blocks",
     "as above: none would divide nothing"},
    {1,
     "\"compression_training\": {\"weight_quantization\": {\"shared_parameters\": {\"enabled\": true}, "
     "\"different_groups\": {\"wq1\": {\"params\": {\"start_bits\": 8}}}}}",
     "compression_training.weight_quantization.different_groups.wq1.params.target_bits",
     "\"start_bits\": 8, \"target_bits\": 4: the example of a set (003, weight_quantization)"},
    {1, "\"compression_training\": {\"activation_quantization\": {\"shared_parameters\": {\"enabled\": true}}}",
     "compression_training.activation_quantization.different_groups", "as above"},
    {3, "\"ds\": {\"world_invariant\": true}", "ds.world_invariant", "W a power of two"},
    {1, "\"compression_training\": {\"head_pruning\": {\"shared_parameters\": {\"method\": \"l1\"}}}",
     "compression_training.head_pruning.shared_parameters.method",
     "Choose different pruning methods. For now, we only support topk (003, head_pruning)"},
    {1, "\"ds\": {\"reduce_at_boundary\": true}, \"zero_optimization\": {\"stage\": 2}", "ds.reduce_at_boundary",
     "single reduction at stages 0 and 1"},
    {1, "\"zero_optimization\": {\"stage\": 2, \"cpu_offload\": true, \"offload_optimizer\": {\"device\": \"cpu\"}}",
     "zero_optimization.cpu_offload", "an old key together with what replaces it"},
};

/* The same for what the documents advise, and their own examples do not always keep: a warning. */
static const struct {
    const char *text, *path, *sentence;
} doubts[] = {
    {"\"comet\": {\"enabled\": true, \"experiment_key\": \"0c4a1c4a90664f2a8084e600b19a9d7\"}", "comet.experiment_key",
     "Must be an alphanumeric string whose length is between 32 and 50 characters (003)"},
    {"\"compression_training\": {\"weight_quantization\": {\"shared_parameters\": {\"enabled\": true}, "
     "\"different_groups\": {}}}",
     "compression_training.weight_quantization.shared_parameters.quantize_weight_in_forward",
     "must set to be true for FP32 optimizer training (003)"},
    {"\"optimizer\": {\"type\": \"Adam\"}, \"zero_optimization\": {\"stage\": 3, \"offload_optimizer\": {\"device\": "
     "\"nvme\", "
     "\"nvme_path\": \"/x\", \"buffer_count\": 3}}",
     "zero_optimization.offload_optimizer.buffer_count",
     "This should be at least the number of states maintained per parameter by the optimizer (003)"},
};

/* What keeps a rule: accepted, for each of them that the table above has broken. */
static const struct {
    size_t world;
    const char *text;
} kept[] = {
    {1, "\"bf16\": {\"enabled\": true, \"bf16_optimizer_states\": true, \"bf16_master_weights_and_grads\": true}"},
    {1,
     "\"fp16\": {\"enabled\": true, \"fp16_master_weights_and_grads\": true}, \"zero_optimization\": {\"stage\": 2}"},
    {1, "\"fp16\": {\"enabled\": true, \"loss_scale\": 128, \"loss_scale_window\": 0}"},
    {4, "\"zero_optimization\": {\"stage\": 3, \"zero_hpz_partition_size\": 2}"},
    {4, "\"zero_optimization\": {\"stage\": 3, \"mics_shard_size\": 2}"},
    {1, "\"zero_optimization\": {\"stage\": 2, \"compute_grad_norm\": false}"},
    {1, "\"zero_optimization\": {\"stage\": 1, \"compute_grad_norm\": false}, \"gradient_allreduce_op\": \"SUM\""},
    {1, "\"zero_optimization\": {\"stage\": 3, \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": \"/x\", "
        "\"ratio\": 0.5}}"},
    {1, "\"data_efficiency\": {\"data_sampling\": {\"dynamic_batching\": {\"enabled\": true, \"max_tokens\": 9}}}"},
    {1, "\"data_efficiency\": {\"data_sampling\": {\"curriculum_learning\": {\"enabled\": true, "
        "\"curriculum_metrics\": {\"a\": {\"schedule_type\": \"custom\"}}}}}"},
    {1, "\"curriculum_learning\": {\"enabled\": true, \"schedule_type\": \"fixed_discrete\", \"schedule_config\": "
        "{\"difficulty\": [1, 2], \"max_step\": [5]}}"},
    {1, "\"curriculum_learning\": {\"enabled\": true, \"schedule_type\": \"fixed_root\", \"min_difficulty\": 8, "
        "\"max_difficulty\": 8, \"schedule_config\": {\"total_curriculum_step\": 9, \"difficulty_step\": 8, "
        "\"root_degree\": 2}}"},
    {1, "\"autotuning\": {\"results_dir\": null, \"start_profile_step\": 4, \"end_profile_step\": 4}"},
    {1, "\"fp16\": {\"enabled\": true}, \"compression_training\": {\"weight_quantization\": {\"shared_parameters\": "
        "{\"quantizer_kernel\": true}}}"},
    {1, "\"comet\": {\"enabled\": true, \"experiment_key\": \"abcdefghijklmnopqrstuvwxyzABCDEFGHIJ0123456789\"}"},
    {1, "\"sparse_attention\": {\"global_block_indices\": [0, 5], \"global_block_end_indices\": [1, 6], \"mode\": "
        "\"variable\"}"},
    {1, "\"sparse_attention\": {\"different_layout_per_head\": true, \"num_different_global_patterns\": 4}"},
    {8, "\"ds\": {\"world_invariant\": true, \"reduce_at_boundary\": true}, \"zero_optimization\": {\"stage\": 1}"},
    {1, "\"optimizer\": {\"type\": \"OneBitAdam\"}"},
    {1, "\"fp16\": {\"enabled\": true}, \"compression_training\": {\"weight_quantization\": {\"shared_parameters\": "
        "{\"enabled\": true}, \"different_groups\": {}}}"},
    {1, "\"bf16\": {\"enabled\": true}, \"compression_training\": {\"weight_quantization\": {\"shared_parameters\": "
        "{\"enabled\": true}, \"different_groups\": {}}}"},
    {1, "\"compression_training\": {\"weight_quantization\": {\"shared_parameters\": {\"enabled\": true, "
        "\"quantize_weight_in_forward\": true}, \"different_groups\": {}}}"},
    {1, "\"optimizer\": {\"type\": \"SGD\"}, \"zero_optimization\": {\"stage\": 3, \"offload_optimizer\": {\"device\": "
        "\"nvme\", "
        "\"nvme_path\": \"/x\", \"buffer_count\": 3}}"},
    {1, "\"optimizer\": {\"type\": \"SGD\"}, \"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_max_lr\": "
        "0.5}}"},
};

static void test_rules(void) {
    for (size_t i = 0; i < sizeof doubts / sizeof doubts[0]; i++) {
        TEST_NAMED(doubts[i].sentence) {
            char text[1024], want[160];
            ds_config *config;
            snprintf(text, sizeof text, "{\"train_batch_size\": 64, %s}", doubts[i].text);
            config = parse(text);
            CHECK(config != NULL);
            CHECK_EQ(last.warnings, 1);
            snprintf(want, sizeof want, "%s|", doubts[i].path);
            CHECK_HAS(last.text, want);
            ds_config_free(config);
        }
    }
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++) {
        TEST_NAMED(kept[i].text) {
            char text[1024];
            ds_config *config;
            snprintf(text, sizeof text, "{\"train_batch_size\": 64, %s}", kept[i].text);
            config = parse_for(text, kept[i].world);
            if (test_check(config != NULL, __FILE__, __LINE__, "%s: %s", text, last.text))
                CHECK_EQ(last.errors + last.warnings, 0);
            ds_config_free(config);
        }
    }
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        char name[120], text[1024], want[160];
        snprintf(name, sizeof name, "rule:%s", rules[i].sentence);
        TEST_NAMED(name) {
            ds_config *config;
            snprintf(text, sizeof text, "{\"train_batch_size\": %d, %s}", 12, rules[i].text);
            config = parse_for(text, rules[i].world);
            CHECK(config == NULL);
            CHECK_EQ(last.errors, 1);
            snprintf(want, sizeof want, "%s|", rules[i].path);
            CHECK_HAS(last.text, want);
            ds_config_free(config);
        }
    }
}

/* ---- errors ---- */
static void expect_problem(const char *text, size_t world, const char *problem) {
    ds_config *config = parse_for(text, world);
    CHECK_HAS(last.text, problem);
    ds_config_free(config);
}

static bool is_utf8(const char *text) {
    while (*text) {
        unsigned length = (unsigned char)*text < 0x80 ? 1 : dsi_json_utf8(text);
        if (!length) return false;
        text += length;
    }
    return true;
}
static void collect_open_rows(void *ctx, const ds_config_row *row) {
    char *rows = (char *)ctx;
    if (!strcmp(row->doc, "passed on as it is"))
        snprintf(rows + strlen(rows), 4096 - strlen(rows), "%s=%s;", row->path, row->value);
}

static void test_errors(void) {
    TEST(errors_all_at_once_with_places) {
        ds_config_options options;
        ds_config *config = NULL;
        ds_error error = {DS_OK, ""};
        const char *text = "{\n  \"train_batch_size\": \"32\",\n  \"zero_optimisation\": {\"stage\": 2},\n"
                           "  \"fp16\": {\"enabled\": 1},\n  \"stage\": 3,\n  \"aio\": {\"block_size\": 5.5}\n}";
        memset(&options, 0, sizeof options);
        memset(&last, 0, sizeof last);
        options.problem = take_problem;
        options.ctx = &last;
        CHECK(ds_config_parse(text, strlen(text), &options, &config, &error) == DS_ERR_INPUT);
        CHECK(config == NULL);
        CHECK_EQ(last.errors, 5);
        CHECK_HAS(last.text,
                  "train_batch_size|2:23|expected a whole number of at least 1, or null; got the text \"32\"\n");
        CHECK_HAS(last.text, "zero_optimisation|3:3|unknown key; did you mean \"zero_optimization\"?\n");
        CHECK_HAS(last.text, "fp16.enabled|4:23|expected true or false; got 1\n");
        CHECK_HAS(last.text, "stage|5:3|unknown key here; it belongs in \"zero_optimization\"\n");
        CHECK_HAS(last.text, "aio.block_size|6:25|expected a whole number of at least 1; got 5.5\n");
        CHECK_HAS(error.message, "2:23: train_batch_size: expected");
        CHECK_HAS(error.message, "(and 4 more)");
    }
    TEST(errors_of_the_batch_equation) {
        expect_problem(
            "{\"train_batch_size\": 32, \"train_micro_batch_size_per_gpu\": 4, \"gradient_accumulation_steps\": 3}", 2,
            "train_batch_size 32 is not train_micro_batch_size_per_gpu 4 * gradient_accumulation_steps 3 * world size "
            "2; "
            "these work: 24 = 4 * 3 * 2, 32 = 4 * 4 * 2");
        expect_problem("{\"train_batch_size\": 30}", 8, "30 is not");
        expect_problem("{\"train_batch_size\": 4}", 8, "4 samples do not give each of 8 ranks one");
        expect_problem("{\"gradient_accumulation_steps\": 4}", 8, "alone does not tell the batch");
        expect_problem("{}", 8, "needed: train_batch_size or train_micro_batch_size_per_gpu");
        expect_problem("{\"train_micro_batch_size_per_gpu\": 9223372036854775807}", 8, "exceeds 64 bits");
        expect_problem(
            "{\"train_batch_size\": 9223372036854775807, \"train_micro_batch_size_per_gpu\": 4611686018427387904}", 8,
            "is not");
        expect_problem("{\"train_batch_size\": 0}", 1, "expected a whole number of at least 1, or null; got 0");
        CHECK_EQ(last.errors, 1);
    }
    TEST(errors_of_structure) {
        expect_problem("{\"train_batch_size\": 1, \"train_batch_size\": 1}", 1, "train_batch_size|1:25|duplicate key");
        expect_problem("{\"train_batch_size\": 1, \"amp\": {\"x\": {\"y\": [{\"z\": 1, \"z\": 2}]}}}", 1,
                       "amp.x.y[0].z|");
        expect_problem("[]", 1, "expected an object; got []");
        expect_problem("{\"fp16\": None}", 1, "None is Python; did you mean null?");
        expect_problem("{\"train_batch_size\": 1, \"fp16\": true}", 1, "fp16|1:33|expected an object; got true");
        expect_problem("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam\", \"params\": {\"betas\": [0.9]}}}",
                       1, "expected a list of two numbers from 0 to 1 (excluded); got [0.9]");
        expect_problem("{\"train_batch_size\": 1, \"zero_optimization\": {\"offload_param\": {\"device\": \"gpu\"}}}",
                       1, "expected one of none|cpu|nvme; got the text \"gpu\"");
        expect_problem("{\"train_batch_size\": 1, \"zero_optimization\": {\"max_live_parameters\": 1}}", 1,
                       "did you mean \"stage3_max_live_parameters\"?");
        expect_problem(
            "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam\", \"params\": {\"momentum\": 0.9}}}", 1,
            "no parameter of adam; it belongs to muon, SGD");
        expect_problem("{\"train_batch_size\": 1, \"qqqqqqqqqqqqqqqqqq\": 1}", 1,
                       "qqqqqqqqqqqqqqqqqq|1:25|unknown key\n");
        expect_problem("{\"train_batch_size\": 1, \"compression_training\": {\"row_pruning\": {\"different_groups\": "
                       "{\"rp1\": 5}}}}",
                       1, "compression_training.row_pruning.different_groups.rp1|");
        expect_problem(
            "{\"train_batch_size\": 1, \"compression_training\": {\"row_pruning\": {\"different_groups\": {\"rp1\": "
            "{\"params\": {\"dens_ratio\": 1}}}}}}",
            1, "different_groups.rp1.params.dens_ratio|1:106|unknown key; did you mean \"dense_ratio\"?");
        expect_problem("{\"train_batch_size\": 1, \"data_efficiency\": {\"data_sampling\": {\"curriculum_learning\": "
                       "{\"curriculum_metrics\": 3}}}}",
                       1, "expected an object of metrics by name, or null; got 3");
    }
    TEST(
        sections_and_names_of_other_kinds_than_expected) { /* found by fuzzing: each read or wrote outside its memory */
        expect_problem("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam\", \"params\": \"a text\"}}", 1,
                       "optimizer.params|1:65|expected an object; got the text \"a text\"\n");
        expect_problem("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam\", \"params\": {\"\": 1}}}", 1,
                       "unknown key");
        ds_config_free(
            parse("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam \", \"params\": {\"lr\": 1}}}"));
        expect_problem("{\"train_batch_size\": 1, \"compression_training\": {\"row_pruning\": {\"different_groups\": "
                       "{\"a\": 1, \"b\": 2, \"c\": [], \"d\": 4, \"e\": 5, \"f\": 6, \"g\": 7, \"h\": 8, \"i\": 9}}}}",
                       1, "different_groups.i|1:157|expected an object; got 9\n");
        CHECK_EQ(last.errors, 9);
    }
    TEST(errors_one_by_one) {
        static const struct {
            size_t world;
            const char *text, *problem;
        } cases[] = {
            /* lists and pairs */
            {1, "\"sparse_attention\": {\"local_window_blocks\": \"4\"}",
             "|expected a list of whole numbers of at least 0; got"},
            {1, "\"sparse_attention\": {\"local_window_blocks\": [1, 2.5]}", "local_window_blocks|"},
            {1, "\"sparse_attention\": {\"local_window_blocks\": [1, -1]}", "local_window_blocks|"},
            {1, "\"comms_logger\": {\"prof_ops\": 3}", "prof_ops|1:54|expected a list of texts; got 3"},
            {1, "\"comms_logger\": {\"prof_ops\": [\"a\", 3]}",
             "prof_ops|1:54|expected a list of texts; got [\"a\", 3]"},
            {1,
             "\"compression_training\": {\"row_pruning\": {\"different_groups\": {\"r\": {\"related_modules\": 1}}}}",
             "related_modules|1:112|expected a list of lists of texts, or null; got 1"},
            {1,
             "\"compression_training\": {\"row_pruning\": {\"different_groups\": {\"r\": {\"related_modules\": "
             "[[1]]}}}}",
             "related_modules|1:112|"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"betas\": 0.9}}",
             "betas|1:75|expected a list of two numbers"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"betas\": [0.9, \"x\"]}}", "betas|1:75|"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"betas\": [\"x\", 0.9]}}", "betas|1:75|"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"betas\": [1, 0.9]}}", "betas|1:75|"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"betas\": [0.9, 1]}}", "betas|1:75|"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"betas\": [-0.1, 0.9]}}", "betas|1:75|"},
            {1, "\"zero_optimization\": {\"offload_param\": {\"device\": 5}}",
             "device|1:75|expected one of none|cpu|nvme; got 5"},
            {1, "\"fp16\": {\"loss_scale\": true}", "fp16.loss_scale|1:48|expected a number of at least 0; got true"},
            {1, "\"elasticity\": {\"max_gpus\": 100001}",
             "max_gpus|1:52|expected a whole number from 1 to 100000; got 100001"},
            {1, "\"progressive_layer_drop\": {\"theta\": 1.5}", "theta|1:61|expected a number from 0 to 1; got 1.5"},
            {1, "\"communication_data_type\": \"fp1\"",
             "|expected one of fp16|bf16|fp32, or null; got the text \"fp1\""},
            {1, "\"gradient_allreduce_op\": \"@ean\"", "gradient_allreduce_op|"},
            {1, "\"gradient_allreduce_op\": \"{ean\"", "gradient_allreduce_op|"},
            {1,
             "\"comet\": {\"enabled\": true, \"experiment_key\": \"{0123456789012345678901234567890123456789\"}, "
             "\"no\": 1",
             "experiment_key|"},
            {1, "\"gradient_predivide_factor\": 0", "|expected a number above 0; got 0"},
            {1,
             "\"data_efficiency\": {\"data_sampling\": {\"curriculum_learning\": {\"curriculum_metrics\": {\"a\": "
             "7}}}}",
             "curriculum_metrics.a|"},
            /* "auto" */
            {1,
             "\"compression_training\": {\"row_pruning\": {\"different_groups\": {\"r\": {\"params\": "
             "{\"dense_ratio\": "
             "\"auto\"}}}}}",
             "different_groups.r.params.dense_ratio|1:119|\"auto\" has no source for this key; expected a number from "
             "0 to 1, or null"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"betas\": \"auto\"}}",
             "\"auto\" needs the hint \"betas\""},
            {1, "\"communication_data_type\": \"auto\"",
             "expected one of fp16|bf16|fp32, or null; got the text \"auto\""},
            /* old keys */
            {1, "\"allgather_size\": \"x\"",
             "allgather_size|1:43|expected a whole number of at least 0; got the text \"x\""},
            {1, "\"zero_optimization\": {\"stage\": 2, \"cpu_offload\": 5}",
             "cpu_offload|1:74|expected true or false, or null; got 5"},
            {1, "\"zero_optimization\": {\"stage\": 3, \"cpu_offload_param\": true, \"offload_param\": {}}",
             "cpu_offload_param|1:80|given together with \"zero_optimization.offload_param\", which replaces it"},
            {1, "\"zero_optimization\": {\"allgather_bucket_size\": 5}, \"allgather_size\": 6",
             "allgather_size|1:94|given together with \"zero_optimization.allgather_bucket_size\""},
            /* unknown keys */
            {1, "\"bfloat16\": {\"enabled\": true}, \"bf16\": {}", "bfloat16|1:25|unknown key"},
            {1, "\"compression_training\": {\"row_pruning\": {\"different_groups\": {\"r\": {\"bfloat16\": 1}}}}",
             "different_groups.r.bfloat16|1:93|unknown key"},
            {1, "\"project\": 1", "project|1:25|unknown key here; it belongs in \"wandb\""},
            {1, "\"enabled\": true", "enabled|1:25|unknown key\n"},
            {1, "\"dt\": 1", "dt|1:25|unknown key; did you mean \"ds\"?"},
            {1, "\"q\": 1", "q|1:25|unknown key\n"},
            {1, "\"ttrain_batch_siez\": 1", "did you mean \"train_batch_size\"?"},
            {1, "\"a_key_of_more_than_sixty_four_bytes_that_no_table_of_ours_could_ever_hold\": 1",
             "|1:25|unknown key\n"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr \": 1}}",
             "params.lr |1:66|unknown key; did you mean \"lr\"?"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\\u0000x\": 1}}", "|1:66|unknown key"},
            {1, "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"bias_correction \": 1}}", "|1:66|unknown key"},
            {1, "\"optimizer\": {\"type\": \"Lion\", \"params\": {\"eps\": 1}}",
             "no parameter of lion; it belongs to adam, adamw, lamb, adagrad, muon, onebitadam, onebitlamb, "
             "zerooneadam"},
            /* structure */
            {1, "\"amp\": {\"x\": [[0], {\"z\": [1, {\"y\": 1, \"y\": 2}]}]}", "amp.x[1].z[1].y|1:63|duplicate key"},
            {1,
             "\"amp\": "
             "{\"a_key_of_more_than_sixty_four_bytes_that_no_table_of_ours_could_ever_hold_but_open_sections\": "
             "{\"a_key_of_more_than_sixty_four_bytes_that_no_table_of_ours_could_ever_hold_but_open_sections\": "
             "{\"a_third\": "
             "{\"y\": 1, \"y\": 2}}}}",
             "|duplicate key"},
            {1, "\"scheduler\": {\"type\": \"1Cycle\"}", "scheduler.params.cycle_max_lr|1:47|needed by OneCycle"},
            {1, "\"comet\": {\"enabled\": true, \"experiment_key\": \"short\"}, \"no\": 1",
             "experiment_key|1:70|Comet wants 32 to 50"},
            {1,
             "\"comet\": {\"enabled\": true, \"experiment_key\": "
             "\"012345678901234567890123456789012345678901234567890123456789\"}, "
             "\"no\": 1",
             "got 60 characters"},
            {1,
             "\"comet\": {\"enabled\": true, \"experiment_key\": \"01234567890123456789012345678901234-/:@Z[`z{\"}, "
             "\"no\": 1",
             "experiment_key|"},
            /* the equation */
            {4, "\"train_micro_batch_size_per_gpu\": 7", "these work: 28 = 7 * 1 * 4, 4 = 1 * 1 * 4\n"},
            {1,
             "\"train_micro_batch_size_per_gpu\": 9223372036854775807, \"gradient_accumulation_steps\": "
             "9223372036854775807",
             "these work: 4 = 4 * 1 * 1, 9223372036854775807 = 9223372036854775807 * 1 * 1\n"},
        };
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            char text[1024];
            snprintf(text, sizeof text, "{\"train_batch_size\": 4, %s}", cases[i].text);
            expect_problem(text, cases[i].world, cases[i].problem);
            CHECK(last.errors >= 1);
        }
        expect_problem("{\"train_batch_size\": \"auto\"}", 1,
                       "train_micro_batch_size_per_gpu|0:0|\"auto\" needs the hint \"micro_batch\"");
        expect_problem("{\"train_micro_batch_size_per_gpu\": \"auto\"}", 1,
                       "train_micro_batch_size_per_gpu|1:36|\"auto\" needs");
        expect_problem(
            "{\"train_batch_size\": 30, \"train_micro_batch_size_per_gpu\": 4, \"gradient_accumulation_steps\": 7}", 1,
            "these work: 28 = 4 * 7 * 1, 30 = 3 * 10 * 1, 32 = 4 * 8 * 1\n");
    }
    TEST(the_nearest_divisor_may_be_above_the_micro_batch) {
        expect_problem(
            "{\"train_batch_size\": 35, \"train_micro_batch_size_per_gpu\": 4, \"gradient_accumulation_steps\": 3}", 1,
            "these work: 12 = 4 * 3 * 1, 35 = 5 * 7 * 1, 32 = 4 * 8 * 1, 36 = 4 * 9 * 1\n");
    }
    TEST(unknown_keys_follow_the_policy) {
        const char *text = "{\"train_batch_size\": 1, \"no_such_key\": {\"a\": [1]}}";
        ds_config_options options;
        ds_config *config = NULL;
        memset(&options, 0, sizeof options);
        memset(&last, 0, sizeof last);
        options.problem = take_problem;
        options.ctx = &last;
        options.unknown = DS_CONFIG_UNKNOWN_WARN;
        CHECK(ds_config_parse(text, strlen(text), &options, &config, NULL) == DS_OK);
        CHECK_EQ(last.warnings, 1);
        CHECK_EQ(last.errors, 0);
        ds_config_free(config);
        options.unknown = DS_CONFIG_UNKNOWN_IGNORE;
        CHECK(ds_config_parse(text, strlen(text), &options, &config, NULL) == DS_OK);
        CHECK_EQ(last.warnings, 1);
        ds_config_free(config);
        text = "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam\", \"params\": {\"foo\": 1}}}";
        CHECK(ds_config_parse(text, strlen(text), &options, &config, NULL) == DS_OK);
        ds_config_free(config);
        text = "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam\", \"params\": {\"momentum\": 1}}}";
        CHECK(ds_config_parse(text, strlen(text), &options, &config, NULL) ==
              DS_ERR_INPUT); /* of another kind: no effect */
        CHECK_HAS(last.text, "no parameter of adam");
    }
    TEST(old_keys_work_and_warn) {
        ds_config *c = parse("{\"train_batch_size\": 1, \"zero_optimization\": {\"stage\": 3, \"cpu_offload\": true, "
                             "\"cpu_offload_param\": true, "
                             "\"stage3_gather_fp16_weights_on_model_save\": true}, \"bfloat16\": {\"enabled\": true}, "
                             "\"scheduler\": {\"type\": "
                             "\"1Cycle\", \"params\": {\"cycle_min_lr\": 0.1, \"cycle_max_lr\": 0.2}}, \"elasticity\": "
                             "{\"prefer_large_batch\": false}}");
        if (CHECK(c != NULL)) {
            CHECK_EQ(last.warnings, 6);
            CHECK_EQ(c->zero_optimization.offload_optimizer.device, DS_CONFIG_CPU);
            CHECK_EQ(c->zero_optimization.offload_param.device, DS_CONFIG_CPU);
            CHECK(c->zero_optimization.stage3_gather_16bit_weights_on_model_save);
            CHECK(c->bf16.enabled);
            CHECK(!c->elasticity.prefer_larger_batch);
            CHECK_STR(c->scheduler.type, "OneCycle");
            ds_config_free(c);
        }
        c = parse("{\"train_batch_size\": 1, \"zero_optimization\": true, \"allgather_size\": 1000}");
        if (CHECK(c != NULL)) {
            CHECK_EQ(c->zero_optimization.stage, 1);
            CHECK_EQ(c->zero_optimization.allgather_bucket_size, 1000);
            ds_config_free(c);
        }
    }
    TEST(old_keys_that_say_nothing) {
        ds_config *c =
            parse("{\"train_batch_size\": 1, \"zero_optimization\": {\"stage\": 3, \"cpu_offload\": \"auto\", "
                  "\"cpu_offload_param\": null, \"cpu_offload_use_pin_memory\": true}}");
        if (CHECK(c != NULL)) {
            CHECK_EQ(c->zero_optimization.offload_optimizer.device, DS_CONFIG_NONE);
            CHECK_EQ(c->zero_optimization.offload_param.device, DS_CONFIG_NONE);
            CHECK(c->zero_optimization.offload_optimizer.pin_memory);
        }
        ds_config_free(c);
        c = parse(
            "{\"train_batch_size\": 1, \"zero_optimization\": {\"stage\": 3, \"cpu_offload\": false}, \"bf16\": null, "
            "\"bfloat16\": {\"enabled\": true}}");
        if (CHECK(c != NULL)) CHECK(c->bf16.enabled && c->zero_optimization.offload_optimizer.device == DS_CONFIG_NONE);
        ds_config_free(c);
    }
    TEST(auto_says_each_hint_that_is_missing) {
        expect_problem("{\"train_micro_batch_size_per_gpu\": 4, \"gradient_accumulation_steps\": \"auto\"}", 1,
                       "gradient_accumulation_steps|1:70|\"auto\" needs the hint \"accumulation\"");
        expect_problem("{\"train_batch_size\": 32, \"train_micro_batch_size_per_gpu\": \"auto\"}", 1,
                       "train_micro_batch_size_per_gpu|1:60|\"auto\" needs the hint \"micro_batch\"");
        expect_problem("{\"train_batch_size\": \"auto\", \"train_micro_batch_size_per_gpu\": \"auto\", "
                       "\"gradient_accumulation_steps\": \"auto\"}",
                       1, "\"accumulation\"");
        CHECK_HAS(last.text, "\"micro_batch\"");
        CHECK_EQ(last.errors, 2);
        /* what the two others tell needs no hint */
        ds_config *c = parse_for("{\"train_batch_size\": 32, \"train_micro_batch_size_per_gpu\": 4, "
                                 "\"gradient_accumulation_steps\": \"auto\"}",
                                 2);
        if (CHECK(c != NULL)) CHECK_EQ(c->gradient_accumulation_steps, 4);
        ds_config_free(c);
    }
    TEST(each_duplicate_is_told) {
        CHECK(parse("{\"train_batch_size\": 1, \"fp16\": {\"enabled\": true, \"enabled\": true}, \"bf16\": {}, "
                    "\"bf16\": {}, \"aio\": {}, \"aio\": {}, \"aio\": {}}") == NULL);
        CHECK_EQ(last.errors, 4);
    }
    TEST(no_rule_speaks_of_a_value_that_was_refused) {
        static const char *const texts[] = {
            "\"zero_optimization\": {\"stage\": \"3\", \"offload_param\": {\"device\": \"cpu\"}}",
            "\"autotuning\": {\"start_profile_step\": 6, \"end_profile_step\": \"9\"}",
            "\"zero_optimization\": {\"stage\": 3, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": 5}}",
            "\"elasticity\": {\"enabled\": true, \"max_train_batch_size\": \"x\", \"micro_batch_sizes\": [2]}"};
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
            char text[300];
            ds_error error = {DS_OK, ""};
            ds_config *c = NULL;
            snprintf(text, sizeof text, "{\"train_batch_size\": 12, %s}", texts[i]);
            CHECK(parse(text) == NULL);
            CHECK_EQ(last.errors, 1);
            CHECK(ds_config_parse(text, strlen(text), NULL, &c, &error) == DS_ERR_INPUT);
            CHECK(strstr(error.message, "more") == NULL);
        }
        /* and other sections have theirs */
        CHECK(parse("{\"train_batch_size\": 12, \"zero_optimization\": {\"stage\": \"3\"}, \"fp16\": {\"enabled\": "
                    "true}, \"bf16\": {\"enabled\": true}}") == NULL);
        CHECK_EQ(last.errors, 2);
    }
    TEST(every_error_comes_in_the_first_run) { /* a rule is silent only about a key whose value was refused */
        static const struct {
            const char *text;
            int errors;
        } texts[] = {
            {"\"zero_optimization\":{\"stage\":2,\"overlap_com\":true,\"offload_param\":{\"device\":\"cpu\"}}", 2},
            {"\"zero_optimization\":{\"stage\":3,\"foo\":1,\"offload_param\":{\"device\":\"nvme\",\"buffer_count\":-1}"
             "}",
             3},
            {"\"compression_training\":{\"row_pruning\":{\"foo\":1},\"head_pruning\":{\"shared_parameters\":{"
             "\"enabled\":true},\"different_groups\":{}}}",
             2},
            {"\"zero_optimization\":{\"stage\":9,\"offload_param\":{\"device\":\"nvme\"}}", 2},
            {"\"elasticity\":{\"enabled\":true,\"foo\":1,\"max_train_batch_size\":8,\"micro_batch_sizes\":[16]}", 2},
            {"\"enabled\":1,\"fp16\":{\"enabled\":true},\"bf16\":{\"enabled\":true}", 2},
        };
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
            char text[300];
            snprintf(text, sizeof text, "{\"train_batch_size\": 8, %s}", texts[i].text);
            CHECK(parse(text) == NULL);
            test_check(last.errors == texts[i].errors, __FILE__, __LINE__, "%s: %s", text, last.text);
        }
    }
    TEST(what_acts_on_nothing_is_warned_of) { /* schedules: 003; bits, kernel: 000, 003; round_robin_gradients: 000 */
        static const char *const texts[][2] = {
            {"\"curriculum_learning\":{\"enabled\":true,\"schedule_type\":\"fixed_discrete\"}",
             "curriculum_learning.schedule_config.difficulty|1:47|needed by fixed_discrete"},
            {"\"curriculum_learning\":{\"enabled\":true,\"schedule_type\":\"fixed_linear\"}",
             "curriculum_learning.max_difficulty|1:47|needed by fixed_linear"},
            {"\"curriculum_learning\":{\"enabled\":true,\"schedule_type\":\"fixed_linear\",\"max_difficulty\":8}",
             "total_curriculum_step|1:47|needed by fixed_linear"},
            {"\"curriculum_learning\":{\"enabled\":true,\"schedule_type\":\"fixed_linear\",\"max_difficulty\":8,"
             "\"schedule_config\":{\"total_curriculum_step\":5}}",
             "difficulty_step|1:47|needed by fixed_linear"},
            {"\"curriculum_learning\":{\"enabled\":true,\"schedule_type\":\"fixed_root\",\"max_difficulty\":8,"
             "\"schedule_config\":{\"total_curriculum_step\":5,\"difficulty_step\":8}}",
             "root_degree|1:47|needed by fixed_root"},
            {"\"curriculum_learning\":{\"enabled\":true,\"schedule_type\":\"fixed_linear\",\"min_difficulty\":64,\"max_"
             "difficulty\":8,\"schedule_config\":{\"total_curriculum_step\":5,\"difficulty_step\":8}}",
             "max_difficulty|1:47|must not be less than min_difficulty 64; got 8"},
            {"\"curriculum_learning\":{\"enabled\":true,\"schedule_type\":\"fixed_discrete\",\"schedule_config\":{"
             "\"difficulty\":[1,2,3],\"max_step\":[1,2,3,4]}}",
             "max_step|1:47|must be one shorter than difficulty, whose length is 3; got 4"},
            {"\"data_efficiency\":{\"data_sampling\":{\"curriculum_learning\":{\"enabled\":true,\"curriculum_metrics\":"
             "{\"a\":{}}}}}",
             "curriculum_metrics.a.schedule_type|"},
            {"\"data_efficiency\":{\"data_routing\":{\"random_ltd\":{\"enabled\":true,\"total_layer_num\":4,\"random_"
             "ltd_layer_num\":1,\"random_ltd_layer_id\":[9]}}}",
             "random_ltd_layer_id|1:156|must be below total_layer_num 4; got 9"},
            {"\"data_efficiency\":{\"data_routing\":{\"random_ltd\":{\"enabled\":true,\"random_ltd_schedule\":{\"min_"
             "value\":2048,\"max_value\":128}}}}",
             "max_value|1:141|must not be less than min_value 2048; got 128"},
            {"\"compression_training\":{\"weight_quantization\":{\"shared_parameters\":{\"enabled\":true},\"different_"
             "groups\":{\"g\":{\"params\":{\"start_bits\":4,\"target_bits\":8}}}}}",
             "g.params.target_bits|1:133|must not be more than start_bits 4; got 8"},
            {"\"fp16\":{\"enabled\":true},\"compression_training\":{\"weight_quantization\":{\"shared_parameters\":{"
             "\"enabled\":true,\"quantizer_kernel\":true},\"different_groups\":{\"g\":{\"params\":{\"start_bits\":8,"
             "\"target_bits\":2}}}}}",
             "quantizer_kernel needs at least 4; got 2"},
            {"\"zero_optimization\":{\"stage\":3,\"round_robin_gradients\":true}",
             "round_robin_gradients|1:80|acts at ZeRO stages 1 and 2; stage is 3"},
            {"\"activation_checkpointing\":{\"cpu_checkpointing\":true}",
             "cpu_checkpointing|1:73|acts with partition_activations only"},
            {"\"curriculum_learning\":{\"enabled\":true}",
             "curriculum_learning.schedule_type|1:47|needed by a curriculum that is enabled"},
        };
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
            char text[400];
            ds_config *c;
            snprintf(text, sizeof text, "{\"train_batch_size\": 8, %s}", texts[i][0]);
            c = parse(text);
            CHECK(c != NULL);
            CHECK_HAS(last.text, texts[i][1]);
            ds_config_free(c);
        }
    }
    TEST(windows_wide_numbers_and_clipping) {
        expect_problem("{\"train_batch_size\": 8, "
                       "\"sparse_attention\":{\"mode\":\"variable\",\"global_block_indices\":[5],\"global_block_end_"
                       "indices\":[]}}",
                       1, "must be as long as global_block_indices: 1; got 0");
        expect_problem("{\"train_batch_size\": 8, "
                       "\"sparse_attention\":{\"mode\":\"variable\",\"global_block_indices\":[5],\"global_block_end_"
                       "indices\":[3]}}",
                       1, "each must be above its global_block_indices; got 3 for 5");
        expect_problem("{\"train_batch_size\": 8, \"steps_per_print\":99999999999999999999999}", 1,
                       "got 99999999999999999999999, beyond 64 bits");
        expect_problem(
            "{\"train_batch_size\": 8, \"optimizer\":{\"type\":\"Adam\",\"params\":{\"max_grad_norm\":1.0}}}", 1,
            "no parameter of adam; write \"gradient_clipping\" at the top level");
    }
    TEST(what_stands_in_a_list_is_shown) {
        expect_problem("{\"train_batch_size\": 1, \"elasticity\": {\"micro_batch_sizes\": [0]}}", 1, "got [0]\n");
        char text[800] = "{\"train_batch_size\": 1, \"comms_logger\": {\"prof_ops\": [5";
        for (int i = 0; i < 60; i++) snprintf(text + strlen(text), sizeof text - strlen(text), ", %d", i);
        snprintf(text + strlen(text), sizeof text - strlen(text), "]}}");
        expect_problem(text, 1, "...]\n");
    }
    TEST(keys_of_named_objects_are_placed) {
        expect_problem("{\"train_batch_size\": 1, \"start_bits\": 8}", 1,
                       "it belongs in \"params\" of one of "
                       "\"compression_training.weight_quantization.different_groups\"");
        expect_problem("{\"train_batch_size\": 1, \"modules\": [\"a\"]}", 1,
                       "it belongs in one of \"compression_training.weight_quantization.different_groups\"");
        expect_problem("{\"train_batch_size\": 1, \"compression_training\": {\"weight_quantization\": "
                       "{\"different_groups\": {\"wq1\": {\"start_bits\": 8}}}}}",
                       1, "wq1.start_bits|1:103|unknown key here; it belongs in \"params\"");
        expect_problem("{\"train_batch_size\": 1, \"compression_training\": {\"weight_quantization\": "
                       "{\"different_groups\": {\"wq1\": {\"params\": {\"related_modules\": []}}}}}}",
                       1, "it belongs one level up");
    }
    TEST(a_message_is_one_line) {
        CHECK(parse("{\"train_batch_size\": 1, \"a\\nb\": 1, \"fp16\": \"x\\ty\\u007f\"}") == NULL);
        CHECK_HAS(last.text, "a b|");
        CHECK_HAS(last.text, "got the text \"x y \"");
        /* cut in the middle of a character of two, three and four bytes */
        static const char *const letters[] = {"\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"};
        for (size_t i = 0; i < 3; i++)
            for (int shift = 0; shift < 4; shift++) {
                char text[400];
                size_t n = (size_t)snprintf(text, sizeof text, "{\"fp16\": \"%.*s", shift, "abcd");
                for (int k = 0; k < 60; k++) n += (size_t)snprintf(text + n, sizeof text - n, "%s", letters[i]);
                snprintf(text + n, sizeof text - n, "\"}");
                CHECK(parse(text) == NULL);
                CHECK(is_utf8(last.text));
            }
    }
    TEST(a_zero_byte_in_a_text_is_refused) {
        expect_problem("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam\\u0000x\"}}", 1,
                       "optimizer.type|1:47|a text with a zero byte");
        expect_problem("{\"train_batch_size\": 1, \"bfloat16\\u0000y\": {}}", 1, "a text with a zero byte");
    }
    TEST(triples_are_near_and_none_comes_twice) {
        expect_problem("{\"train_batch_size\": 8}", 3, "these work: 6 = 2 * 1 * 3, 9 = 1 * 3 * 3, 12 = 2 * 2 * 3\n");
        expect_problem("{\"train_batch_size\": 100, \"train_micro_batch_size_per_gpu\": 7}", 8, "96 = ");
        CHECK_HAS(last.text, "104 = ");
        expect_problem("{\"train_batch_size\": 64, \"train_micro_batch_size_per_gpu\": 4, "
                       "\"gradient_accumulation_steps\": 3}",
                       2, "these work: 24 = 4 * 3 * 2, 64 = 4 * 8 * 2, 72 = 4 * 9 * 2\n");
    }
    TEST(parameters_without_a_type_are_printed_and_explained) {
        char printed[40000];
        ds_config *c = parse("{\"train_batch_size\": 1, \"optimizer\": {\"params\": {\"lr\": 0.5, \"mine\": [1]}}, "
                             "\"amp\": {\"loss_scale\": 128}}");
        if (CHECK(c != NULL)) {
            ds_config *again;
            char rows[4096] = "";
            CHECK(ds_config_print(c, printed, sizeof printed) < sizeof printed);
            CHECK(ds_config_explain(c, collect_open_rows, rows) == DS_OK);
            CHECK_HAS(rows, "optimizer.params.mine=[1];");
            CHECK_HAS(rows, "amp.loss_scale=128;");
            again = parse(printed);
            if (CHECK(again != NULL)) CHECK(again->optimizer.params.lr == 0.5);
            ds_config_free(again);
        }
        ds_config_free(c);
    }
    TEST(layer_reduction_by_the_names_of_modules) {
        ds_config *c =
            parse("{\"train_batch_size\": 1, \"compression_training\": {\"layer_reduction\": {\"enabled\": true, "
                  "\"keep_number_layer\": 2, \"other_module_name\": [\"a.2\", \"a.4\"]}}}");
        CHECK(c != NULL);
        ds_config_free(c);
        expect_problem("{\"train_batch_size\": 1, \"compression_training\": {\"sparse_pruning\": "
                       "{\"shared_parameters\": {\"block_pattern\": \"foo\"}}}}",
                       1, "expected N:M or NxM, with whole numbers of at least 1; got \"foo\"");
    }
    TEST(the_first_error_behind_a_hundred_warnings_is_told) {
        static char text[16384];
        ds_config_options options;
        ds_config *config;
        ds_error error = {DS_OK, ""};
        size_t n = (size_t)snprintf(text, sizeof text, "{\"train_batch_size\": 1");
        for (int i = 0; i < 150; i++) n += (size_t)snprintf(text + n, sizeof text - n, ", \"unknown_%d\": 0", i);
        n += (size_t)snprintf(text + n, sizeof text - n, ", \"fp16\": 5, \"bf16\": 5}");
        memset(&options, 0, sizeof options);
        memset(&last, 0, sizeof last);
        options.unknown = DS_CONFIG_UNKNOWN_WARN;
        options.problem = take_problem;
        options.ctx = &last;
        CHECK(ds_config_parse(text, n, &options, &config, &error) == DS_ERR_INPUT);
        CHECK_EQ(last.warnings, 100);
        CHECK_EQ(last.errors, 1);
        CHECK_HAS(last.text, "|0:0|52 more problems like these");
        CHECK_HAS(error.message, ": fp16: expected an object; got 5 (and 1 more)");
        options.problem = NULL;
        CHECK(ds_config_parse(text, n, &options, &config, &error) == DS_ERR_INPUT);
        CHECK(ds_config_parse(text, n, &options, &config, NULL) == DS_ERR_INPUT);
    }
    TEST(a_hundred_problems_are_enough) {
        static char text[40000];
        size_t n = (size_t)snprintf(text, sizeof text, "{\"train_batch_size\": 1");
        for (int i = 0; i < 1000; i++) n += (size_t)snprintf(text + n, sizeof text - n, ", \"unknown_%d\": 0", i);
        snprintf(text + n, sizeof text - n, "}");
        CHECK(parse(text) == NULL);
        CHECK_EQ(last.errors, 101);
        CHECK_HAS(last.text, "|0:0|900 more problems like these");
    }
    TEST(the_room_that_was_computed_is_enough) {
        /* what takes most for each byte of the text: an element or member 2,000 times in a place */
        static const struct {
            const char *before, *each, *after;
        } places[] = {
            {"\"graph_harvesting\": \"", "\\b", "\""},
            {"\"graph_harvesting\": [0", ",\"\"", "]"},
            {"\"comms_logger\": {\"prof_ops\": [\"\"", ",\"\"", "]}"},
            {"\"sparse_attention\": {\"local_window_blocks\": [1", ",1", "]}"},
            {"\"compression_training\": {\"row_pruning\": {\"different_groups\": {\"r\": {\"related_modules\": [\"\"",
             ",\"\"", "]}}}}"},
            {"\"compression_training\": {\"row_pruning\": {\"different_groups\": {\"r\": {\"related_modules\": [[]",
             ",[\"\"]", "]}}}}"},
            {"\"compression_training\": {\"weight_quantization\": {\"different_groups\": {\"a\": {}", ",\"\\b%d\":{}",
             "}}}"},
            {"\"data_efficiency\": {\"data_sampling\": {\"curriculum_learning\": {\"curriculum_metrics\": {\"a\": {}",
             ",\"%d\":{}", "}}}}"}};
        static char text[40000];
        for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
            size_t n = (size_t)snprintf(text, sizeof text, "{\"train_batch_size\": 1, %s", places[i].before);
            ds_config *c;
            for (int j = 0; j < 2000; j++) {
                const char *digits = strstr(places[i].each, "%d");
                if (digits)
                    n += (size_t)snprintf(text + n, sizeof text - n, "%.*s%d%s", (int)(digits - places[i].each),
                                          places[i].each, j, digits + 2);
                else
                    n += (size_t)snprintf(text + n, sizeof text - n, "%s", places[i].each);
            }
            snprintf(text + n, sizeof text - n, "%s}", places[i].after);
            c = parse(text);
            if (test_check(c != NULL, __FILE__, __LINE__, "%s: %s", places[i].before, last.text)) check_again(c);
            ds_config_free(c);
        }
    }
    TEST(arguments_and_limits) {
        ds_config *config;
        ds_config_options options;
        ds_error error = {DS_OK, ""};
        memset(&options, 0, sizeof options);
        CHECK(ds_config_parse_("{}", 2, NULL, &config, &error, 1, sizeof options) == DS_ERR_VERSION);
        CHECK(ds_config_parse_("{}", 2, NULL, &config, &error, DS_CONFIG_VERSION, 1) == DS_ERR_VERSION);
        CHECK(ds_config_parse(NULL, 0, NULL, &config, &error) == DS_ERR_ARGUMENT);
        CHECK(ds_config_parse("{}", 2, NULL, NULL, &error) == DS_ERR_ARGUMENT);
        options.max_bytes = 10;
        CHECK(ds_config_parse("{\"train_batch_size\": 1}", 23, &options, &config, &error) == DS_ERR_INPUT);
        options.max_bytes = 0;
        options.strict_json = true;
        CHECK(ds_config_parse("{\"train_batch_size\": 1,}", 24, &options, &config, &error) == DS_ERR_INPUT);
        options.strict_json = false;
        CHECK(ds_config_parse("{\"train_batch_size\": 1,}", 24, &options, &config, &error) == DS_OK);
        ds_config_free(config);
        CHECK(ds_config_parse("{\"train_batch_size\": 1}", 23, NULL, &config, NULL) == DS_OK);
        CHECK(ds_config_print(config, NULL, 0) > 100);
        {
            char few[10] = "xxxxxxxxx";
            CHECK(ds_config_print(config, few, 8) == ds_config_print(config, NULL, 0));
            CHECK_STR(few, "{\n  \"tr"); /* cut, with a NUL */
        }
        ds_config_free(config);
        options.max_depth = 5000; /* more than a reader that does not recurse needs is brought down to what it can */
        CHECK(ds_config_parse("{\"train_batch_size\": 1}", 23, &options, &config, NULL) == DS_OK);
        ds_config_free(config);
        options.max_bytes = SIZE_MAX;
        CHECK(ds_config_parse("{}", SIZE_MAX / 2, &options, &config, &error) == DS_ERR_INPUT);
        CHECK_HAS(error.message, "more than 2147483646");
        options.max_bytes = 0;
        options.max_depth = 1;
        CHECK(ds_config_parse("{\"fp16\": {}}", 12, &options, &config, &error) == DS_ERR_INPUT);
        ds_config_free(NULL);
        ds_json_free(NULL);
    }
}

/* ---- values, origins, claims ---- */
static const char *const everything =
    "{\"train_batch_size\": 8, \"gradient_clipping\": \"auto\", \"train_micro_batch_size_per_gpu\": \"auto\",\n"
    " \"gradient_accumulation_steps\": \"auto\",\n"
    " \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": \"auto\", \"betas\": \"auto\", \"eps\": \"auto\", "
    "\"weight_decay\": \"auto\"}},\n"
    " \"scheduler\": {\"type\": \"WarmupDecayLR\", \"params\": {\"warmup_min_lr\": \"auto\", \"warmup_max_lr\": "
    "\"auto\",\n"
    "   \"warmup_num_steps\": \"auto\", \"total_num_steps\": \"auto\"}},\n"
    " \"fp16\": {\"enabled\": \"auto\"}, \"bf16\": {\"enabled\": \"auto\"},\n"
    " \"zero_optimization\": {\"stage\": 3, \"reduce_bucket_size\": \"auto\", \"stage3_prefetch_bucket_size\": "
    "\"auto\",\n"
    "   \"stage3_param_persistence_threshold\": \"auto\"}}";

static void count_unclaimed(void *ctx, const char *path, int line, int column) {
    size_t *length = (size_t *)ctx;
    (void)column;
    *length += (size_t)snprintf(last.text + *length, sizeof last.text - *length, "%s:%d\n", path, line);
}
static void take_row(void *ctx, const ds_config_row *row) {
    size_t *length = (size_t *)ctx;
    if (*length < sizeof last.text)
        *length += (size_t)snprintf(last.text + *length, sizeof last.text - *length, "%s=%s:%d:%d\n", row->path,
                                    row->value, (int)row->origin, row->line);
}
/* From the table: a value that is not the default, in a file of its own, arrives and is printed. */
static void try_key(void *ctx, const ds_config_key *key) {
    char text[1024], path[256], closing[40] = "", *out = text;
    const char *value, *at = key->path;
    size_t world = 1;
    int *tried = (int *)ctx;
    ds_config_options options;
    ds_config *config = NULL;
    const char *choice = strrchr(key->accepted, '|');
    if (!strcmp(key->status, "old") || strchr(key->path, '*') || strstr(key->type, "GROUPS") ||
        !strcmp(key->type, "METRICS"))
        return;
    if (!strncmp(key->path, "optimizer.params", 16) || !strncmp(key->path, "scheduler.params", 16))
        return; /* need a type */
    if (!strncmp(key->path, "elasticity", 10) || !strcmp(key->path, "train_batch_size") ||
        strstr(key->path, "_batch_size_per_gpu"))
        return;
    value = !strcmp(key->type, "BOOL") ? (!strcmp(key->initial, "true") ? "false" : "true")
            : !strcmp(key->type, "TEXT") || !strcmp(key->type, "DEVICE") ? NULL
            : !strcmp(key->type, "INTS")                                 ? "[3]"
            : !strcmp(key->type, "TEXTS")                                ? "[\"a\"]"
            : !strcmp(key->type, "JSON")                                 ? "{\"a\": [1, \"b\", null, 2.50, {}]}"
            : !strcmp(key->type, "REAL")                                 ? "0.25"
                                                                         : "2";
    while (strchr(at, '.')) {
        int n = (int)strcspn(at, ".");
        out += snprintf(out, 600, "%s\"%.*s\": {", out == text ? "{\"train_batch_size\": 8, " : "", n, at);
        strcat(closing, "}");
        at += n + 1;
    }
    snprintf(out, 300, "%s\"%s\": ", out == text ? "{\"train_batch_size\": 8, " : "", at);
    if (value)
        strcat(text, value);
    else if (choice)
        sprintf(text + strlen(text), "\"%s\"", choice + 1);
    else
        strcat(text, "\"a text\"");
    strcat(text, closing);
    strcat(text, "}");
    memset(&options, 0, sizeof options);
    memset(&last, 0, sizeof last);
    options.problem = take_problem;
    options.ctx = &last;
    options.world_size = world;
    snprintf(path, sizeof path, "%s|", key->path);
    (*tried)++;
    if (ds_config_parse(text, strlen(text), &options, &config, NULL)) {
        /* a rule over several keys may refuse it; its type may not */
        test_check((strstr(last.text, path) || strstr(last.text, "needed when")) && !strstr(last.text, "expected a ") &&
                       !strstr(last.text, "unknown"),
                   __FILE__, __LINE__, "%s: %s", text, last.text);
    } else {
        ds_config_origin origin;
        size_t length = 0;
        const char *const claims[] = {"train_batch_size"};
        int line;
        CHECK(ds_config_where(config, key->path, &origin, &line, NULL) && origin == DS_CONFIG_GIVEN && line == 1);
        CHECK(ds_config_unclaimed(config, claims, 1, count_unclaimed, &length) == 1);
        check_again(config);
    }
    ds_config_free(config);
}

static void test_values(void) {
    TEST(auto_from_hints) {
        ds_config_hints h;
        ds_config_options options;
        ds_config *c = NULL;
        ds_config_origin origin;
        memset(&h, 0, sizeof h);
        memset(&options, 0, sizeof options);
        h.given = 0xFFF;
        h.micro_batch = 2;
        h.accumulation = 2;
        h.hidden_size = 1001;
        h.max_grad_norm = 1.5;
        h.learning_rate = 3e-4;
        h.betas[0] = 0.8;
        h.betas[1] = 0.95;
        h.epsilon = 1e-6;
        h.weight_decay = 0.1;
        h.warmup_steps = 5;
        h.training_steps = 50;
        h.bf16 = true;
        options.hints = &h;
        options.world_size = 2;
        CHECK(ds_config_parse(everything, strlen(everything), &options, &c, NULL) == DS_OK);
        if (CHECK(c != NULL)) {
            CHECK_EQ(c->train_micro_batch_size_per_gpu, 2);
            CHECK_EQ(c->gradient_accumulation_steps, 2);
            CHECK(c->gradient_clipping == 1.5 && c->optimizer.params.lr == 3e-4 &&
                  c->optimizer.params.betas[1] == 0.95);
            CHECK(c->optimizer.params.eps == 1e-6 && c->optimizer.params.weight_decay == 0.1);
            CHECK(c->scheduler.params.warmup_min_lr == 0 && c->scheduler.params.warmup_max_lr == 3e-4);
            CHECK_EQ(c->scheduler.params.warmup_num_steps, 5);
            CHECK_EQ(c->scheduler.params.total_num_steps, 50);
            CHECK(c->bf16.enabled && !c->fp16.enabled);
            CHECK_EQ(c->zero_optimization.reduce_bucket_size, 1001 * 1001);
            CHECK_EQ(c->zero_optimization.stage3_prefetch_bucket_size, 901800);
            CHECK_EQ(c->zero_optimization.stage3_param_persistence_threshold, 10010);
            CHECK(ds_config_where(c, "optimizer.params.lr", &origin, NULL, NULL) && origin == DS_CONFIG_AUTO);
            check_again(c);
            ds_config_free(c);
        }
        h.warmup_steps = 0; /* max(1, get_warmup_steps()) there */
        CHECK(ds_config_parse(everything, strlen(everything), &options, &c, NULL) == DS_OK);
        if (CHECK(c != NULL)) {
            CHECK_EQ(c->scheduler.params.warmup_num_steps, 1);
            ds_config_free(c);
        }
    }
    TEST(auto_without_hints_names_them) {
        CHECK(parse_for(everything, 2) == NULL);
        CHECK_HAS(last.text, "gradient_clipping|1:46|\"auto\" needs the hint \"max_grad_norm\"");
        CHECK_HAS(last.text, "\"auto\" needs the hint \"learning_rate\"");
        CHECK_HAS(last.text, "\"auto\" needs the hint \"training_steps\"");
        CHECK(strstr(last.text, "hidden_size") == NULL); /* the default, as in DeepSpeed */
        CHECK(parse("{\"train_batch_size\": 1, \"steps_per_print\": \"auto\"}") == NULL);
        CHECK_HAS(last.text, "\"auto\" has no source for this key");
    }
    TEST(auto_with_hints_that_do_not_do) {
        ds_config_hints h;
        ds_config_options options;
        ds_config *c = NULL;
        memset(&h, 0, sizeof h);
        memset(&options, 0, sizeof options);
        memset(&last, 0, sizeof last);
        options.hints = &h;
        options.problem = take_problem;
        options.ctx = &last;
        h.given = DS_CONFIG_HINT_MICRO_BATCH | DS_CONFIG_HINT_ACCUMULATION;
        CHECK(ds_config_parse(everything, strlen(everything), &options, &c, NULL) == DS_ERR_INPUT);
        CHECK_HAS(last.text,
                  "train_micro_batch_size_per_gpu|1:88|the hint \"micro_batch\" is 0, expected at least 1\n");
        CHECK_HAS(last.text, "gradient_accumulation_steps|2:33|the hint \"accumulation\" is 0, expected at least 1\n");
        CHECK_HAS(last.text, "needs the hint \"betas\"");
        h.given = DS_CONFIG_HINT_MAX_GRAD_NORM; /* others may be given, these not */
        memset(&last, 0, sizeof last);
        CHECK(ds_config_parse(everything, strlen(everything), &options, &c, NULL) == DS_ERR_INPUT);
        CHECK(strstr(last.text, "max_grad_norm") == NULL);
        c = parse("{\"train_batch_size\": 1, \"tensorboard\": {\"job_name\": \"auto\"}, \"pipeline\": {\"stages\": "
                  "\"auto\"}}");
        if (CHECK(c != NULL)) {
            CHECK_STR(c->tensorboard.job_name, "DeepSpeedJobName");
            CHECK_STR(c->pipeline.stages, "\"auto\"");
        }
        ds_config_free(c);
    }
    TEST(auto_that_the_others_determine) {
        ds_config *c = parse_for("{\"train_batch_size\": 32, \"train_micro_batch_size_per_gpu\": 4, "
                                 "\"gradient_accumulation_steps\": \"auto\"}",
                                 2);
        if (CHECK(c != NULL)) CHECK_EQ(c->gradient_accumulation_steps, 4);
        ds_config_free(c);
    }
    TEST(origins) {
        ds_config *c = parse_for(
            "{\"train_batch_size\": 32,\n  \"fp16\": {\"enabled\": true},\n \"flops_profiler\": {\"enabled\": true}}",
            2);
        ds_config_origin origin;
        int line, column;
        if (!CHECK(c != NULL)) break;
        CHECK(ds_config_where(c, "fp16.enabled", &origin, &line, &column));
        CHECK(origin == DS_CONFIG_GIVEN && line == 2 && column == 23);
        CHECK(ds_config_where(c, "fp16.hysteresis", &origin, &line, &column) && origin == DS_CONFIG_DEFAULT &&
              line == 0);
        CHECK(ds_config_where(c, "train_micro_batch_size_per_gpu", &origin, NULL, NULL) && origin == DS_CONFIG_DERIVED);
        CHECK(ds_config_where(c, "wall_clock_breakdown", &origin, NULL, NULL) && origin == DS_CONFIG_DERIVED);
        CHECK(!ds_config_where(c, "no.such", &origin, NULL, NULL));
        ds_config_free(c);
    }
    TEST(claims) {
        const char *text = "{\"train_batch_size\": 1,\n\"zero_optimization\": {\"stage\": 1,\n \"cpu_offload\": "
                           "true},\n\"amp\": {\"opt\": 1},\n"
                           "\"compression_training\": {\"row_pruning\": {\"different_groups\": {\"rp\": {\n\"params\": "
                           "{\"dense_ratio\": 0.5}}}}}}";
        const char *const some[] = {"train_batch_size", "zero_optimization.stage"}, *const more[] = {
                                                                                        "train_batch_size",
                                                                                        "zero_optimization", "amp",
                                                                                        "compression_training"};
        ds_config *c = parse(text);
        ds_config_origin origin;
        int line, column;
        size_t length = 0;
        if (!CHECK(c != NULL)) break;
        memset(&last, 0, sizeof last);
        CHECK(ds_config_unclaimed(c, some, 2, count_unclaimed, &length) == 4);
        CHECK_HAS(last.text, "zero_optimization.cpu_offload:3\n");
        CHECK_HAS(last.text, "amp.opt:4\n");
        CHECK_HAS(last.text, "compression_training.row_pruning.different_groups.rp.params.dense_ratio:6\n");
        CHECK(ds_config_unclaimed(c, more, 4, NULL, NULL) == 0);
        {
            /* a claim of the new key covers the old one; the start of a name is no claim; foreign keys one by one */
            const char *const few[] = {"zero_optimization.stage", "zero_optimization.offload_optimizer.device",
                                       "amp.opt", "train_batch"};
            CHECK(ds_config_unclaimed(c, few, 4, NULL, NULL) == 2);
            CHECK(ds_config_unclaimed(c, NULL, 0, NULL, NULL) == 6);
        }
        CHECK(ds_config_where(c, "compression_training.row_pruning.different_groups.rp.params.dense_ratio", &origin,
                              &line, &column));
        CHECK(origin == DS_CONFIG_GIVEN && line == 6);
        CHECK(!ds_config_where(c, "compression_training.row_pruning.different_groups.rp.params.none", &origin, &line,
                               &column));
        CHECK(!ds_config_where(c, "compression_training.row_pruning.different_groups.no.params.dense_ratio", &origin,
                               NULL, NULL));
        ds_config_free(c);
    }
    TEST(explain) {
        char path[700];
        ds_config *c;
        size_t length = 0;
        snprintf(path, sizeof path, "{\"train_batch_size\": 1,\n \"tensorboard\": {\"output_path\": \"%0600d\"}}", 7);
        c = parse(path);
        if (!CHECK(c != NULL)) break;
        memset(&last, 0, sizeof last);
        CHECK(ds_config_explain(c, take_row, &length) == DS_OK);
        CHECK_HAS(last.text, "train_batch_size=1:1:1\n");
        CHECK_HAS(last.text, "train_micro_batch_size_per_gpu=1:2:0\n");
        CHECK_HAS(last.text, "optimizer.type=null:0:0\n");
        ds_config_free(c);
        {
            ds_config_options options;
            test_memory memory;
            memset(&options, 0, sizeof options);
            memset(&memory, 0, sizeof memory);
            options.allocator.alloc = test_alloc;
            options.allocator.release = test_release;
            options.allocator.ctx = &memory;
            CHECK(ds_config_parse(path, strlen(path), &options, &c, NULL) == DS_OK);
            memory.fail_at = 2; /* the room for the long value */
            length = 0;
            CHECK(ds_config_explain(c, take_row, &length) == DS_ERR_MEMORY);
            ds_config_free(c);
            CHECK_EQ(memory.live, 0);
        }
    }
    TEST(numbers_in_a_file) {
        ds_config *c = parse("{\"train_batch_size\": 3.2e1, \"zero_optimization\": {\"reduce_bucket_size\": 5e8, "
                             "\"sub_group_size\": 1e12, "
                             "\"stage3_model_persistence_threshold\": 9223372036854775807}}");
        if (!CHECK(c != NULL)) break;
        CHECK_EQ(c->train_batch_size, 32);
        CHECK_EQ(c->zero_optimization.reduce_bucket_size, 500000000);
        CHECK_EQ(c->zero_optimization.sub_group_size, 1000000000000);
        CHECK_EQ(c->zero_optimization.stage3_model_persistence_threshold, INT64_MAX);
        ds_config_free(c);
    }
    TEST(named_objects_lists_and_foreign_parameters) {
        ds_config *c = parse("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"RMSprop\", \"params\": {\"lr\": "
                             "0.5, \"alpha\": 0.99, \"x\": {\"y\": [1]}}},"
                             "\"compression_training\": {\"weight_quantization\": {\"shared_parameters\": "
                             "{\"enabled\": true}, \"different_groups\": {"
                             "\"wq1\": {\"params\": {\"start_bits\": 8, \"target_bits\": 4}, \"modules\": [\"a\", "
                             "\"b\"], \"related_modules\": [[\"q\", \"k\"], [\"v\"]]}}}},"
                             "\"data_efficiency\": {\"data_sampling\": {\"curriculum_learning\": {\"enabled\": true, "
                             "\"curriculum_metrics\": {\"seqlen\": "
                             "{\"schedule_config\": {\"max_step\": [10, 20]}}}}}}}");
        if (!test_check(c != NULL, __FILE__, __LINE__, "%s", last.text)) break;
        CHECK_STR(c->optimizer.type, "RMSprop");
        CHECK_EQ(c->compression_training.weight_quantization.different_groups.count, 1);
        CHECK_STR(c->compression_training.weight_quantization.different_groups.at[0].name, "wq1");
        CHECK_EQ(c->compression_training.weight_quantization.different_groups.at[0].params.target_bits, 4);
        CHECK_EQ(c->compression_training.weight_quantization.different_groups.at[0].params.quantization_period, 1);
        CHECK_STR(c->compression_training.weight_quantization.different_groups.at[0].modules.at[1], "b");
        CHECK_STR(c->compression_training.weight_quantization.different_groups.at[0].related_modules.at[0].at[1], "k");
        CHECK_EQ(c->data_efficiency.data_sampling.curriculum_learning.curriculum_metrics.at[0]
                     .schedule_config.max_step.at[1],
                 20);
        check_again(c);
        ds_config_free(c);
    }
    TEST(each_key_of_the_table) {
        int tried = 0;
        ds_config_keys(try_key, &tried);
        CHECK(tried > 250);
    }
    TEST(elastic_batch_sizes_can_be_read_again) {
        ds_config *c = parse_for("{\"elasticity\": {\"enabled\": true, \"max_train_batch_size\": 2000, "
                                 "\"micro_batch_sizes\": [2, 4, 6], \"version\": 0.1}}",
                                 4);
        if (!CHECK(c != NULL)) break;
        CHECK_EQ(c->train_batch_size, 1680);
        check_again(c);
        ds_config_free(c);
    }
}

static void take_line(void *ctx, const char *header, int level, int id, const char *message) {
    snprintf((char *)ctx, 100, "%s %d %d %s", header, level, id, message);
}
static void format_into(char *out, size_t room, const char *format, ...) {
    va_list args;
    va_start(args, format);
    dsi_vformat(out, room, format, args);
    va_end(args);
}

static void test_kinds(void) {
    TEST(defaults_of_each_optimizer) {
        ds_config *c = parse("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Lion\"}}");
        if (CHECK(c != NULL)) CHECK(c->optimizer.params.betas[1] == 0.999 && c->optimizer.params.betas[0] == 0.9);
        ds_config_free(c);
        c = parse("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"ADAGRAD\"}}");
        if (CHECK(c != NULL)) CHECK(c->optimizer.params.lr == 0.01 && c->optimizer.params.eps == 1e-10);
        ds_config_free(c);
        c = parse("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Muon\", \"params\": {\"lr\": 0.5}}}");
        if (CHECK(c != NULL)) {
            CHECK(c->optimizer.params.momentum == 0.95 && c->optimizer.params.nesterov &&
                  c->optimizer.params.adam_lr == 0.5);
            CHECK_STR(c->optimizer.type, "muon");
        }
        ds_config_free(c);
    }
    TEST(given_parameters_stand_before_the_defaults_of_a_kind) {
        ds_config *c = parse(
            "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Lion\", \"params\": {\"betas\": [0.5, 0.6]}}}");
        if (CHECK(c != NULL)) CHECK(c->optimizer.params.betas[1] == 0.6);
        ds_config_free(c);
        c = parse("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adagrad\", \"params\": {\"lr\": 0.5, \"eps\": "
                  "0.25}}}");
        if (CHECK(c != NULL)) CHECK(c->optimizer.params.lr == 0.5 && c->optimizer.params.eps == 0.25);
        ds_config_free(c);
        c = parse("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Muon\"}}");
        if (CHECK(c != NULL)) CHECK(c->optimizer.params.lr == 0.02 && c->optimizer.params.muon_lr == 0.02);
        ds_config_free(c);
        c = parse("{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Muon\", \"params\": {\"momentum\": 0.5, "
                  "\"nesterov\": false, "
                  "\"muon_lr\": 0.25, \"adam_lr\": 0.125}}}");
        if (CHECK(c != NULL))
            CHECK(c->optimizer.params.momentum == 0.5 && !c->optimizer.params.nesterov &&
                  c->optimizer.params.muon_lr == 0.25 && c->optimizer.params.adam_lr == 0.125);
        ds_config_free(c);
        c = parse("{\"train_batch_size\": 1, \"communication_data_type\": \"HALF\", "
                  "\"seq_parallel_communication_data_type\": \"float\", "
                  "\"scheduler\": {\"type\": \"OneCycle\", \"params\": {\"cycle_min_lr\": 0.1, \"cycle_max_lr\": 0.2, "
                  "\"cycle_second_step_size\": 7, \"cycle_second_stair_count\": 8}}}");
        if (CHECK(c != NULL)) {
            CHECK_STR(c->communication_data_type, "fp16");
            CHECK_STR(c->seq_parallel_communication_data_type, "fp32");
            CHECK(c->scheduler.params.cycle_second_step_size == 7 && c->scheduler.params.cycle_second_stair_count == 8);
            check_again(c);
        }
        ds_config_free(c);
        c = parse(
            "{\"train_batch_size\": 1, \"compression_training\": {\"row_pruning\": {\"shared_parameters\": "
            "{\"enabled\": true}, "
            "\"different_groups\": {\"r\": {\"params\": {\"dense_ratio\": 0.5}, \"modules\": \"one\", "
            "\"related_modules\": []}}}}, "
            "\"data_efficiency\": {\"data_sampling\": {\"curriculum_learning\": {\"curriculum_metrics\": null}}}, "
            "\"sparse_attention\": {\"local_window_blocks\": []}, \"comms_logger\": {\"prof_ops\": []}}");
        if (CHECK(c != NULL)) {
            CHECK_EQ(c->compression_training.row_pruning.different_groups.at[0].related_modules.count, 0);
            CHECK_STR(c->compression_training.row_pruning.different_groups.at[0].modules.at[0], "one");
            CHECK_EQ(c->sparse_attention.local_window_blocks.count, 0);
            check_again(c);
        }
        ds_config_free(c);
    }
    TEST(elastic_batch_sizes_of_deepspeed) {
        ds_json *golden = read_json(GOLDEN "elasticity.json");
        int accepted_there = 0;
        for (ds_json_node row = ds_json_first(golden, 0); row != DS_JSON_NO_NODE; row = ds_json_next(golden, 0, row)) {
            static char settings[512], text[600];
            int64_t world = 0, batch = 0, micro = 0;
            ds_json_writer w;
            ds_config *c;
            memset(&w, 0, sizeof w);
            w.out = settings;
            w.room = sizeof settings - 1;
            ds_json_integer(golden, ds_json_at(golden, row, 0), &world);
            ds_json_integer(golden, ds_json_at(golden, row, 1), &batch);
            ds_json_integer(golden, ds_json_at(golden, row, 2), &micro);
            dsi_config_write_node(&w, &golden->doc, ds_json_at(golden, row, 3));
            settings[w.length] = 0;
            snprintf(text, sizeof text, "{\"elasticity\": %s}", settings);
            c = parse_for(text, (size_t)world);
            if (!test_check((c ? (int64_t)c->train_batch_size : 0) == batch &&
                                (c ? (int64_t)c->train_micro_batch_size_per_gpu : 0) == micro,
                            __FILE__, __LINE__, "%s at %d: %s", text, (int)world, last.text))
                break;
            if (c)
                CHECK(c->gradient_accumulation_steps * c->train_micro_batch_size_per_gpu * (size_t)world ==
                      c->train_batch_size);
            accepted_there += c != NULL;
            ds_config_free(c);
        }
        CHECK_EQ(accepted_there, 112);
        ds_json_free(golden);
    }
    TEST(elastic_batch_sizes_beside_given_ones) {
        const char *text =
            "{\"train_batch_size\": %d, \"elasticity\": {\"enabled\": true, \"max_train_batch_size\": 100, "
            "\"micro_batch_sizes\": [2, 3], \"version\": 0.1, \"ignore_non_elastic_batch_info\": %s}}";
        char out[300];
        ds_config *c;
        snprintf(out, sizeof out, text, 48, "true");
        if (CHECK((c = parse(out)) != NULL)) CHECK(c->train_batch_size != 48);
        snprintf(out, sizeof out, text, c ? (int)c->train_batch_size : 0,
                 "false"); /* as a printed configuration has it */
        ds_config_free(c);
        CHECK((c = parse(out)) != NULL);
        ds_config_free(c);
        c = parse("{\"train_micro_batch_size_per_gpu\": \"auto\", \"elasticity\": {\"enabled\": true, "
                  "\"max_train_batch_size\": 100, "
                  "\"micro_batch_sizes\": [2, 3]}}");
        CHECK(c != NULL);
        ds_config_free(c);
        snprintf(out, sizeof out, text, 47, "false");
        expect_problem(out, 1, "remove this, or set ignore_non_elastic_batch_info");
    }
    TEST(elastic_nodes_that_fit_no_candidate) {
        const char *text =
            "{\"elasticity\": {\"enabled\": true, \"max_train_batch_size\": 100, \"micro_batch_sizes\": [2, 3], "
            "\"num_gpus_per_node\": 1, \"max_gpus\": 5}}";
        ds_config *c = parse_for(text, 7);
        if (CHECK(c != NULL)) CHECK(c->train_batch_size == 98 && c->train_micro_batch_size_per_gpu == 2);
        ds_config_free(c);
    }
    TEST(errors_of_elasticity) {
        const char *const start =
            "{\"elasticity\": {\"enabled\": true, \"max_train_batch_size\": 100, \"micro_batch_sizes\": ";
        static const char *const ends[][2] = {
            {"[]}}", "expected 1 to 16 of them; got 0"},
            {"[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}}", "expected 1 to 16 of them; got 17"},
            {"[101]}}", "101 exceeds max_train_batch_size 100 / 1 ranks"},
            {"[30], \"num_gpus_per_node\": 4}}", "30 exceeds max_train_batch_size 100 / 4 ranks"},
            {"[2], \"num_gpus_per_node\": 8, \"max_gpus\": 7, \"model_parallel_size\": 2}}",
             "no batch of at most 100 samples"},
            {"[30], \"version\": 0.15}}", "expected 0.1 or 0.2; got 0.15"},
            {"[7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67], \"version\": 0.1, \"max_gpus\": 2}}",
             "no batch of at most 100 samples suits a world size of 3"}, /* whose common multiple exceeds 64 bits */
            {"[2], \"min_gpus\": 9, \"max_gpus\": 8}}", "must not be less than min_gpus 9; got 8"},
            {"[2], \"num_gpus_per_node\": 4, \"model_parallel_size\": 3}}", "must divide num_gpus_per_node 4; got 3"},
            {"[2], \"version\": 0.1, \"model_parallel_size\": 2}}", "needs version 0.2; got 0.1"},
            {"[64]}}", "no batch of at most 100 samples suits a world size of 3"}};
        for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
            char text[400];
            snprintf(text, sizeof text, "%s%s", start, ends[i][0]);
            expect_problem(text, 3, ends[i][1]);
            CHECK_EQ(last.errors, 1);
        }
    }
    TEST(more_errors) {
        ds_config_hints h;
        ds_config_options options;
        ds_config *c = NULL;
        const char *text =
            "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": \"auto\"}}}";
        memset(&h, 0, sizeof h);
        memset(&options, 0, sizeof options);
        memset(&last, 0, sizeof last);
        h.given = DS_CONFIG_HINT_LEARNING_RATE;
        h.learning_rate = -1;
        options.hints = &h;
        options.problem = take_problem;
        options.ctx = &last;
        CHECK(ds_config_parse(text, strlen(text), &options, &c, NULL) == DS_ERR_INPUT);
        CHECK_HAS(last.text, "the hint \"learning_rate\" is -1, expected a number of at least 0");
        expect_problem("{\"train_batch_size\": 1, \"fp16\": {\"enabled\": true, \"initial_scale_power\": 1024}}", 1,
                       "is no finite scale");
        expect_problem("{\"train_batch_size\": 1, \"ds\": {\"world_invariant\": true, \"native_reduce\": true}}", 1,
                       "cannot be combined");
        expect_problem("{\"train_batch_size\": 1, \"fp16\": {\"train_batch_size\": 1}}", 1,
                       "it belongs at the top level");
        expect_problem("{\"train_batch_size\": 1, \"bf16\": {}, \"bfloat16\": {}}", 1, "bfloat16|");
        expect_problem("{\"train_batch_size\": 1, \"sparse_attention\": {\"different_layout_per_head\": true, "
                       "\"num_different_global_patterns\": 5}}",
                       1, "at most num_local_blocks / num_global_blocks = 4; got 5");
    }
    TEST(the_base_block) {
        static const wchar_t no_such_character[] = {0xDC00, 0};
        ds_error error = {DS_OK, ""};
        ds_allocator no_release = {test_alloc, NULL, NULL};
        ds_logger logger = {NULL, NULL};
        test_memory memory;
        char small[8], line[2000];
        volatile size_t too_much = SIZE_MAX;
        void *block;
        memset(&memory, 0, sizeof memory);
        no_release.ctx = &memory;
        /* messages: cut before a character of several bytes, never inside it */
        CHECK(dsi_fail(NULL, DS_ERR_IO, "x") == DS_ERR_IO);
        memset(line, 'a', sizeof line);
        memcpy(line + sizeof error.message - 3, "\xE2\x82\xAC\xE2\x82\xAC", 7);
        CHECK(dsi_fail(&error, DS_ERR_INPUT, "%s", line) == DS_ERR_INPUT);
        CHECK_EQ(strlen(error.message), sizeof error.message - 3);
        memcpy(line + sizeof error.message - 4, "\xE2\x82\xAC\xE2\x82\xAC", 7);
        dsi_fail(&error, DS_ERR_INPUT, "%s", line);
        CHECK(strlen(error.message) >= sizeof error.message - 4);
        CHECK((error.message[strlen(error.message) - 1] & 0xFF) == 'a' ||
              strlen(error.message) == sizeof error.message - 1);
        format_into(small, sizeof small, "%s", "\x80\x80\x80\x80\x80\x80\x80\x80\x80"); /* no text of ours */
        CHECK_EQ(strlen(small), 7);
        format_into(small, sizeof small, "%ls", no_such_character);
        CHECK_STR(small, "");
        /* log lines */
        memset(&last, 0, sizeof last);
        dsi_log(NULL, "ds_config", DS_LOG_INFO, 1, "not seen");
        dsi_log(&logger, "ds_config", DS_LOG_INFO, 1, "not seen");
        CHECK_STR(last.text, "");
        logger.log = take_line;
        logger.ctx = last.text;
        dsi_log(&logger, "ds_config", DS_LOG_INFO, 7, "%d lines", 3);
        CHECK_STR(last.text, "ds_config 2 7 3 lines");
        /* sizes and memory */
        CHECK(dsi_add(SIZE_MAX, 1) == SIZE_MAX && dsi_mul(SIZE_MAX / 2, 3) == SIZE_MAX && dsi_mul(3, 0) == 0);
        CHECK(dsi_round_up(SIZE_MAX - 1, 16) == SIZE_MAX && dsi_round_up(32, 16) == 32);
        CHECK(dsi_alloc(NULL, too_much) == NULL && dsi_alloc_zero(NULL, too_much) == NULL);
        block = dsi_alloc(NULL, 0);
        CHECK(block != NULL);
        dsi_release(NULL, block, 0);
        block = dsi_alloc_zero(NULL, 64);
        if (CHECK(block != NULL)) CHECK(((char *)block)[63] == 0);
        dsi_release(NULL, block, 64);
        block = dsi_alloc_aligned(NULL, 100, 4096);
        CHECK(block != NULL && (uintptr_t)block % 4096 == 0);
        dsi_release_aligned(NULL, block, 100, 4096);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* which stop at requests of this size */
        CHECK(dsi_alloc_aligned(NULL, too_much / 2, 4096) == NULL);
#endif
        block = dsi_alloc(&no_release, 10);
        CHECK(block != NULL && memory.live > 0);
        dsi_release(&no_release, block, 10); /* an allocator that never gives back */
        CHECK(memory.live > 0);
        test_release(&memory, block, 10, 16);
        dsi_release(NULL, NULL, 10);
    }
    TEST(the_json_block_with_memory_of_its_own) {
        test_memory memory;
        ds_allocator allocator = {test_alloc, test_release, NULL};
        dsi_json doc;
        ds_error error = {DS_OK, ""};
        memset(&memory, 0, sizeof memory);
        allocator.ctx = &memory;
        CHECK(dsi_json_load(&allocator, "{\"a\": [1.5]}", 12, 0, &doc, &error) == DS_OK);
        CHECK_EQ(dsi_json_get(&doc, 0, "a"), 2);
        CHECK(dsi_json_get(&doc, 0, "b") == DSI_JSON_NONE);
        dsi_json_unload(&allocator, &doc);
        CHECK(dsi_json_load(&allocator, "{\"a\": [1.5}", 11, 0, &doc, &error) == DS_ERR_INPUT);
        CHECK_STR(error.message, "1:11: expected ',' or ']'");
        CHECK(dsi_json_load(&allocator, "1", SIZE_MAX / 2, 0, &doc, &error) == DS_ERR_INPUT);
        memory.fail_at = memory.calls + 1;
        CHECK(dsi_json_load(&allocator, "1", 1, 0, &doc, &error) == DS_ERR_MEMORY);
        CHECK_EQ(memory.live, 0);
        CHECK_EQ(memory.mismatches, 0);
    }
}

static void test_out_of_memory(void) {
    TEST(one_allocation_that_may_fail) {
        test_memory memory;
        ds_config_options options;
        ds_json_options json_options;
        ds_config *c;
        ds_json *json;
        ds_error error = {DS_OK, ""};
        memset(&memory, 0, sizeof memory);
        memset(&options, 0, sizeof options);
        memset(&json_options, 0, sizeof json_options);
        options.allocator.alloc = json_options.allocator.alloc = test_alloc;
        options.allocator.release = json_options.allocator.release = test_release;
        options.allocator.ctx = json_options.allocator.ctx = &memory;
        memory.fail_at = 1;
        CHECK(ds_config_parse("{\"train_batch_size\": 1}", 23, &options, &c, &error) == DS_ERR_MEMORY);
        CHECK(c == NULL);
        CHECK_HAS(error.message, "no memory for a configuration");
        CHECK(ds_config_parse("{\"train_batch_size\": 1}", 23, &options, &c, &error) == DS_OK);
        CHECK_EQ(memory.calls, 2);
        ds_config_free(c);
        CHECK(ds_config_parse("{\"train_batch_size\": 0}", 23, &options, &c, &error) == DS_ERR_INPUT);
        CHECK_EQ(memory.calls, 3);
        memory.fail_at = 4;
        CHECK(ds_json_parse("[1]", 3, &json_options, &json, &error) == DS_ERR_MEMORY);
        CHECK(ds_json_parse("[1]", 3, &json_options, &json, &error) == DS_OK);
        ds_json_free(json);
        CHECK(ds_json_parse("[1", 2, &json_options, &json, &error) == DS_ERR_INPUT);
        CHECK_EQ(memory.live, 0);
        CHECK_EQ(memory.mismatches, 0);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    test_suite();
    test_numbers();
    test_utf8();
    test_json();
    test_golden(GOLDEN "config.json");
    test_golden(GOLDEN "config_legacy.json");
    test_defaults();
    test_memory_estimates();
    test_rules();
    test_errors();
    test_values();
    test_kinds();
    test_out_of_memory();
    return test_end();
}
