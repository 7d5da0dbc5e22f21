/* ds - the command-line tool over the headers. `ds --help` lists what it can do; exit status: 0 fine, 1 the input is
   wrong, 2 bad usage, 3 the environment failed (ds run: the first failing rank's status, or 128 + its signal). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "ds_sparse.h"
#include "wire_sparse.h"

enum { FINE = 0, INPUT = 1, USAGE = 2, ENVIRONMENT = 3 };

/* Options are taken out of the arguments as they are found; what is left are the operands. */
typedef struct arguments {
    int count;
    char **at;
    const char *command, *help;
} arguments;

static int usage(const arguments *a, const char *what, const char *which) {
    fprintf(stderr, "ds %s: %s%s%s\n%s", a->command, what, which ? " " : "", which ? which : "", a->help);
    return USAGE;
}
static void take(arguments *a, int index, int n) {
    memmove(a->at + index, a->at + index + n, (size_t)(a->count - index - n) * sizeof *a->at);
    a->count -= n;
    a->at[a->count] = NULL; /* as execvp wants the rest */
}
static bool flag(arguments *a, const char *name) {
    for (int i = 0; i < a->count; i++)
        if (!strcmp(a->at[i], name)) return take(a, i, 1), true;
    return false;
}
/* The value of --name VALUE or --name=VALUE; fallback when it is not there; NULL when its value is missing. */
static const char *option(arguments *a, const char *name, const char *fallback) {
    size_t n = strlen(name);
    for (int i = 0; i < a->count; i++) {
        const char *value;
        if (!strncmp(a->at[i], name, n) && a->at[i][n] == '=') return value = a->at[i] + n + 1, take(a, i, 1), value;
        if (strcmp(a->at[i], name)) continue;
        if (i + 1 >= a->count) return NULL;
        return value = a->at[i + 1], take(a, i, 2), value;
    }
    return fallback;
}
/* A count as people write it: 7000000000, 7e9. */
static bool number(const char *text, size_t *value) {
    ds_json *json;
    int64_t whole;
    bool right = false;
    *value = 0;
    if (!text || ds_json_parse(text, strlen(text), NULL, &json, NULL)) return false;
    if (ds_json_integer(json, 0, &whole) && whole >= 0) {
        *value = (size_t)whole;
        right = true;
    }
    ds_json_free(json);
    return right;
}
/* Options left over, or a wrong number of operands, are bad usage. */
static int operands(const arguments *a, int n) {
    for (int i = 0; i < a->count; i++)
        if (a->at[i][0] == '-' && a->at[i][1]) return usage(a, "unknown option", a->at[i]);
    if (a->count != n) return usage(a, a->count < n ? "an argument is missing" : "too many arguments", NULL);
    return FINE;
}

static char *read_file(const char *path, size_t *bytes, int *status) {
    FILE *file = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    size_t room = 1 << 16, n;
    char *text = NULL;
    *bytes = 0;
    *status = INPUT;
    for (; file; room *= 2) {
        char *more = (char *)realloc(text, room);
        if (!more) errno = ENOMEM;
        if (!more) break;
        text = more;
        n = fread(text + *bytes, 1, room - *bytes, file);
        *bytes += n;
        if (*bytes < room) break;
    }
    if (!file || ferror(file)) {
        fprintf(stderr, "ds: %s: %s\n", path, strerror(errno));
        free(text);
        text = NULL;
    } else if (!text) {
        fprintf(stderr, "ds: %s: out of memory\n", path);
        *status = ENVIRONMENT;
    }
    if (file && file != stdin) fclose(file);
    return text;
}

/* What was printed must have arrived: a full disk or a closed pipe is no success. */
static int finish(int status) {
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "ds: writing the result: %s\n", strerror(errno));
        return status ? status : ENVIRONMENT;
    }
    return status;
}

static void say_problem(void *ctx, const ds_config_problem *p) {
    char place[32] = "";
    if (p->line) snprintf(place, sizeof place, ":%d:%d", p->line, p->column);
    fprintf(stderr, "%s%s: %s: %s%s%s\n", (const char *)ctx, place, p->level == DS_LOG_ERROR ? "error" : "warning",
            p->path, *p->path ? ": " : "", p->message);
}

/* Reads and checks a configuration; problems go to stderr. */
static ds_config *load_config(const char *path, size_t world_size, int unknown, int *status) {
    ds_config_options options;
    ds_config *config = NULL;
    ds_error error = {DS_OK, ""};
    size_t bytes;
    ds_status result;
    char *text = read_file(path, &bytes, status);
    if (!text) return NULL;
    memset(&options, 0, sizeof options);
    options.world_size = world_size;
    options.unknown = unknown;
    options.problem = say_problem;
    options.ctx = (void *)(uintptr_t)path;
    result = ds_config_parse(text, bytes, &options, &config, &error);
    free(text);
    *status = DS_IS_ENVIRONMENT(result) ? ENVIRONMENT : INPUT;
    if (result && (DS_IS_ENVIRONMENT(result) || !strncmp(error.message, "1:1: the text has", 17)))
        fprintf(stderr, "%s: %s\n", path, error.message);
    return config;
}

/* ---- ds config ---- */
static void explain_row(void *ctx, const ds_config_row *row) {
    static const char *const origins[] = {"default", "given", "derived", "auto"};
    char place[24] = "-";
    if (row->line) snprintf(place, sizeof place, "%d", row->line);
    fprintf((FILE *)ctx, "%-60s %-24s %-8s %5s  %s\n", row->path, row->value, origins[row->origin], place, row->doc);
}

/* The table of keys in Markdown: each key, or how many each section has. */
static void key_row(void *ctx, const ds_config_key *key) {
    FILE *out = (FILE *)ctx;
    bool old = key->status[0] == 'o';
    fprintf(out, "| `%s` | ", key->path);
    for (const char *s = key->expected; *s; s++) fprintf(out, *s == '|' ? ", " : "%c", *s); /* a bar ends a cell */
    fprintf(out, " | %s | %s | %s%s%s |\n",
            old             ? ""
            : *key->initial ? key->initial
                            : "\"\"",
            key->status[0] == 'd' ? "ds" : key->seen, key->doc, old ? "; now " : "", key->newer);
}
enum { MOST_SECTIONS = 64 };
typedef struct key_sections {
    char name[MOST_SECTIONS][64];
    size_t keys[MOST_SECTIONS], old[MOST_SECTIONS], count;
} key_sections;
static void count_key(void *ctx, const ds_config_key *key) {
    key_sections *s = (key_sections *)ctx;
    size_t i = 0;
    char name[64] = "(top level)";
    if (strchr(key->path, '.')) snprintf(name, sizeof name, "%.*s", (int)strcspn(key->path, "."), key->path);
    while (i < s->count && strcmp(s->name[i], name)) i++;
    if (i == MOST_SECTIONS) return;
    if (i == s->count) memcpy(s->name[s->count++], name, sizeof name);
    s->keys[i]++;
    s->old[i] += key->status[0] == 'o';
}
static int print_keys(bool all) {
    key_sections s;
    size_t keys = 0, old = 0;
    memset(&s, 0, sizeof s);
    if (all) {
        printf("| key | expects | default | seen in | meaning |\n| --- | --- | --- | --- | --- |\n");
        ds_config_keys(key_row, stdout);
        return FINE;
    }
    ds_config_keys(count_key, &s);
    printf("| section | keys | of them former spellings |\n| --- | --- | --- |\n");
    for (size_t i = 0; i < s.count; keys += s.keys[i], old += s.old[i], i++)
        printf("| `%s` | %zu | %zu |\n", s.name[i], s.keys[i], s.old[i]);
    printf("| all | %zu | %zu |\n", keys, old);
    return FINE;
}

static int run_config(arguments *a) {
    static const char *const policies[] = {"error", "warn", "ignore"};
    const char *world = option(a, "--world-size", "1"), *unknown = option(a, "--unknown", "error");
    bool explain = flag(a, "--explain"), keys = flag(a, "--keys"), sections = flag(a, "--sections");
    size_t world_size, length;
    int status = operands(a, keys || sections ? 0 : 1), policy = 0;
    ds_config *config;
    char *text;
    if (status) return status;
    if (!number(world, &world_size) || !world_size)
        return usage(a, "--world-size wants a number of at least 1, got", world);
    if (keys || sections) return print_keys(keys);
    while (policy < 3 && (!unknown || strcmp(unknown, policies[policy]))) policy++;
    if (policy == 3) return usage(a, "--unknown wants error, warn or ignore, got", unknown);
    config = load_config(a->at[0], world_size, policy, &status);
    if (!config) return status;
    status = FINE;
    if (explain) {
        printf("%-60s %-24s %-8s %5s  %s\n", "key", "value", "origin", "line", "meaning");
        if (ds_config_explain(config, explain_row, stdout)) status = ENVIRONMENT;
    } else {
        length = ds_config_print(config, NULL, 0);
        text = (char *)malloc(length + 1);
        if (text) {
            ds_config_print(config, text, length + 1);
            fwrite(text, 1, length, stdout);
        } else
            status = ENVIRONMENT;
        free(text);
    }
    ds_config_free(config);
    if (status) fprintf(stderr, "ds: out of memory\n");
    return finish(status);
}

/* ---- ds json ---- */
static int run_json(arguments *a) {
    int status = operands(a, 1);
    ds_error error = {DS_OK, ""};
    ds_json *json = NULL;
    size_t bytes;
    ds_status result;
    char *text;
    if (status) return status;
    text = read_file(a->at[0], &bytes, &status);
    if (!text) return status;
    result = ds_json_parse(text, bytes, NULL, &json, &error);
    ds_json_free(json);
    free(text);
    if (!result) return FINE;
    fprintf(stderr, "%s:%s\n", a->at[0], error.message);
    return DS_IS_ENVIRONMENT(result) ? ENVIRONMENT : INPUT;
}

/* ---- ds memory ---- */
/* The parameters of a shapes file: an object of names and lists of dimensions. Names live as long as the document. */
static ds_zero_param *shapes_of(const char *path, const ds_json *json, ds_dtype dtype, size_t *count) {
    ds_zero_param *params;
    size_t i = 0;
    *count = ds_json_count(json, 0);
    params = (ds_zero_param *)calloc(*count + 1, sizeof *params);
    if (!params) fprintf(stderr, "ds: %s: out of memory\n", path);
    if (params && ds_json_typeof(json, 0) != DS_JSON_OBJECT) {
        fprintf(stderr, "ds: %s: expected an object of names and shapes\n", path);
        free(params);
        return NULL;
    }
    for (ds_json_node v = ds_json_first(json, 0); params && v != DS_JSON_NO_NODE; v = ds_json_next(json, 0, v), i++) {
        bool right = ds_json_typeof(json, v) == DS_JSON_ARRAY && ds_json_count(json, v) <= DS_ZERO_MAX_DIMS;
        params[i].name = ds_json_key(json, 0, v, NULL);
        params[i].dtype = dtype;
        for (ds_json_node e = right ? ds_json_first(json, v) : DS_JSON_NO_NODE; e != DS_JSON_NO_NODE;
             e = ds_json_next(json, v, e)) {
            int64_t size = -1;
            right = right && ds_json_integer(json, e, &size) && size >= 0;
            params[i].shape[params[i].dims++] = (size_t)size;
        }
        if (!right) {
            int line, column;
            ds_json_position(json, v, &line, &column);
            fprintf(stderr, "ds: %s:%d:%d: '%s': expected a list of at most %d sizes\n", path, line, column,
                    params[i].name, DS_ZERO_MAX_DIMS);
            free(params);
            return NULL;
        }
    }
    return params;
}

static void print_plan(const ds_zero_bytes *b) {
    static const char *const classes[DS_ZERO_CLASSES] = {"parameters", "gradients", "states",
                                                         "gathered",   "buffers",   "tables"};
    size_t sum[DS_ZERO_TIERS] = {0};
    printf("%-12s %20s %20s %20s\n", "bytes", "device", "host", "disk");
    for (int c = 0; c < DS_ZERO_CLASSES; c++) {
        printf("%-12s", classes[c]);
        for (int k = 0; k < DS_ZERO_TIERS; k++) {
            printf(" %20zu", b->bytes[c][k]);
            sum[k] += b->bytes[c][k];
        }
        printf("\n");
    }
    printf("%-12s %20zu %20zu %20zu\n", "all", sum[0], sum[1], sum[2]);
}

/* What an engine of this configuration holds for these parameters, on one rank. */
static int run_plan(arguments *a, const char *config_path, const char *shapes_path, size_t world, size_t rank) {
    int status = operands(a, 0);
    size_t bytes;
    char *text;
    ds_config *config;
    ds_json *json = NULL;
    ds_error error = {DS_OK, ""};
    ds_zero_desc d;
    ds_zero_bytes plan;
    ds_zero_param *params = NULL;
    if (status) return status;
    config = load_config(config_path, world, DS_CONFIG_UNKNOWN_ERROR, &status);
    if (!config) return status;
    text = read_file(shapes_path, &bytes, &status);
    memset(&d, 0, sizeof d);
    if (text && ds_json_parse(text, bytes, NULL, &json, &error))
        fprintf(stderr, "ds: %s: %s\n", shapes_path, error.message);
    if (json) params = shapes_of(shapes_path, json, ds_zero_model_dtype(config), &d.n_params);
    d.config = config;
    d.params = params;
    status = INPUT;
    if (params && ds_zero_plan(&d, (int)rank, (int)world, &plan, &error))
        fprintf(stderr, "ds: %s\n", error.message);
    else if (params) {
        print_plan(&plan);
        status = FINE;
    }
    free(params);
    ds_json_free(json);
    free(text);
    ds_config_free(config);
    return finish(status);
}

static int run_memory(arguments *a) {
    const char *params = option(a, "--params", ""), *largest = option(a, "--largest-layer", "0"),
               *gpus = option(a, "--gpus-per-node", "1"), *nodes = option(a, "--nodes", "1");
    const char *config = option(a, "--config", NULL), *shapes = option(a, "--shapes", NULL),
               *world_text = option(a, "--world-size", "1"), *rank_text = option(a, "--rank", "0");
    ds_config_memory_desc d;
    size_t world, rank;
    int status;
    memset(&d, 0, sizeof d);
    if (config || shapes) {
        if (!config || !shapes) return usage(a, "--config and --shapes go together", NULL);
        if (!number(world_text, &world) || !world || world > 1000000)
            return usage(a, "--world-size wants 1 to 1e6, got", world_text);
        if (!number(rank_text, &rank) || rank >= world)
            return usage(a, "--rank wants a rank of the world, got", rank_text);
        return run_plan(a, config, shapes, world, rank);
    }
    if ((status = operands(a, 0))) return status;
    if (!number(params, &d.params)) return usage(a, "--params wants a whole number", NULL);
    if (!number(largest, &d.largest_layer)) return usage(a, "--largest-layer wants a whole number, got", largest);
    if (!number(gpus, &d.gpus_per_node) || !d.gpus_per_node)
        return usage(a, "--gpus-per-node wants at least 1, got", gpus);
    if (!number(nodes, &d.nodes) || !d.nodes) return usage(a, "--nodes wants at least 1, got", nodes);
    printf("%-6s %-18s %-14s %-10s %24s %24s\n", "stage", "offload_optimizer", "offload_param", "zero_init",
           "bytes per CPU node", "bytes per GPU");
    for (d.stage = 2; d.stage <= 3; d.stage++) {
        for (int choice = 0; choice < (d.stage == 2 ? 2 : 6); choice++) {
            size_t cpu, gpu;
            int offload = d.stage == 2 ? 1 - choice : 2 - choice / 2;
            d.keep_init = d.stage == 3 && choice % 2;
            d.offload_optimizer = offload >= 1;
            d.offload_param = offload == 2;
            ds_config_memory(&d, &cpu, &gpu);
            printf("%-6d %-18s %-14s %-10s %24zu %24zu\n", d.stage, d.offload_optimizer ? "cpu" : "none",
                   d.offload_param ? "cpu" : "none",
                   d.stage == 2  ? "-"
                   : d.keep_init ? "no"
                                 : "yes",
                   cpu, gpu);
        }
    }
    return finish(FINE);
}

/* ---- ds schedule ---- */

static int run_schedule(arguments *a) {
    const char *steps_text = option(a, "--steps", "");
    int status = operands(a, 1);
    ds_error error = {DS_OK, ""};
    ds_schedule schedule;
    ds_config *config;
    size_t steps;
    bool cycled, momentum;
    double beta1 = 0, beta2 = 0;
    if (status) return status;
    if (!number(steps_text, &steps)) return usage(a, "--steps wants a whole number", NULL);
    config = load_config(a->at[0], 1, DS_CONFIG_UNKNOWN_ERROR, &status);
    if (!config) return status;
    status = FINE;
    memset(&schedule, 0, sizeof schedule);
    if (ds_wire_schedule(config, &schedule, &error)) {
        fprintf(stderr, "%s: scheduler: %s\n", a->at[0], error.message);
        ds_config_free(config);
        return INPUT;
    }
    /* only optimizers with betas are cycled */
    momentum = !config->optimizer.type ||
               (strcmp(config->optimizer.type, "adagrad") != 0 && strcmp(config->optimizer.type, "SGD") != 0);
    cycled = momentum && ds_schedule_betas(&schedule, 0, &beta1, &beta2);
    printf("step,lr%s\n", cycled ? ",momentum" : "");
    for (size_t k = 0; k < steps; k++) {
        const int64_t taken = (int64_t)k + schedule.resumed;
        const bool kept = k == 0 && schedule.resumed > 0; /* what the optimizer has, until the schedule's next step */
        if (kept)
            beta1 = config->optimizer.params.betas[0];
        else if (cycled)
            (void)ds_schedule_betas(&schedule, taken, &beta1, &beta2);
        printf("%zu,%.17g", k,
               kept ? config->optimizer.params.lr : ds_schedule_lr(&schedule, taken, config->optimizer.params.lr));
        if (cycled) printf(",%.17g", beta1);
        printf("\n");
    }
    ds_config_free(config);
    return finish(status);
}

/* ---- ds loss-scale ---- */
static int run_loss_scale(arguments *a) {
    const char *overflows = option(a, "--overflows", NULL);
    int status = operands(a, 1);
    ds_error error = {DS_OK, ""};
    ds_loss_scaler_params params;
    ds_loss_scaler scaler;
    ds_config *config;
    if (status) return status;
    if (!overflows || overflows[strspn(overflows, "01")])
        return usage(a, "--overflows wants a string of 0 and 1", NULL);
    config = load_config(a->at[0], 1, DS_CONFIG_UNKNOWN_ERROR, &status);
    if (!config) return status;
    status = FINE;
    if (ds_wire_loss_scaler(config, &params, &error) ||
        ds_loss_scaler_init(&scaler, config->fp16.enabled ? &params : NULL, &error)) {
        fprintf(stderr, "%s: fp16: %s\n", a->at[0], error.message);
        status = INPUT;
    } else
        printf("step,loss_scale,skipped\n");
    ds_config_free(config);
    for (size_t i = 0; !status && overflows[i]; i++) {
        bool overflow = overflows[i] == '1' && scaler.params.initial > 0;
        if (ds_loss_scaler_update(&scaler, overflow)) {
            fprintf(stderr, "%s: step %zu overflows at the smallest loss scale %g\n", a->at[0], i, scaler.scale);
            status = INPUT;
        } else
            printf("%zu,%.17g,%d\n", i, scaler.scale, overflow);
    }
    return finish(status);
}

/* ---- ds layout ---- */
static void put_text(void *ctx, const char *text, size_t bytes) {
    fwrite(text, 1, bytes, (FILE *)ctx);
}

static void print_layout(const ds_sparse_layout *layout) {
    ds_sparse_info info;
    ds_sparse_layout_info(layout, &info);
    for (size_t h = 0; h < info.heads; h++) {
        printf("head %zu\n", h);
        for (size_t i = 0; i < info.blocks; i++) {
            size_t count;
            const uint32_t *columns = ds_sparse_layout_row(layout, h, i, &count);
            for (size_t j = 0, e = 0; j < info.blocks; j++) {
                bool kept = e < count && columns[e] == j;
                e += kept;
                putchar(kept ? '1' : '0');
            }
            putchar('\n');
        }
    }
}
static int draw_layout(const ds_sparse_layout *layout, const char *path) {
    FILE *file = fopen(path, "wb");
    bool right = file != NULL;
    if (file) ds_sparse_layout_svg(layout, put_text, file);
    if (file) right = !ferror(file);
    if (file && fclose(file)) right = false;
    if (!right) fprintf(stderr, "ds layout: %s: %s\n", path, strerror(errno));
    return right ? FINE : ENVIRONMENT;
}

static int run_layout(arguments *a) {
    const char *heads = option(a, "--heads", ""), *seq_len = option(a, "--seq-len", ""),
               *seed = option(a, "--seed", "0"), *svg = option(a, "--svg", "");
    int status = operands(a, 1);
    ds_error error = {DS_OK, ""};
    ds_sparse_layout *layout = NULL;
    ds_sparse_params params;
    ds_config *config;
    size_t tokens, count, start;
    ds_status result;
    if (status) return status;
    if (!number(heads, &count) || !count) return usage(a, "--heads wants a number of at least 1", NULL);
    if (!number(seq_len, &tokens) || !tokens) return usage(a, "--seq-len wants a number of at least 1", NULL);
    if (!number(seed, &start)) return usage(a, "--seed wants a whole number, got", seed);
    if (!svg) return usage(a, "--svg wants a file", NULL);
    config = load_config(a->at[0], 1, DS_CONFIG_UNKNOWN_ERROR, &status);
    if (!config) return status;
    result = wire_sparse(config, &params, &error);
    params.heads = count;
    params.seed = start;
    if (!result) result = ds_sparse_layout_create(&params, tokens, NULL, &layout, &error);
    status = result ? DS_IS_ENVIRONMENT(result) ? ENVIRONMENT : INPUT : FINE;
    if (result) {
        fprintf(stderr, "%s: sparse_attention: %s\n", a->at[0], error.message);
    } else if (!sparse_given(config)) {
        fprintf(stderr, "%s: there is no sparse_attention section\n", a->at[0]);
        status = INPUT;
    } else {
        if (*svg) status = draw_layout(layout, svg);
        print_layout(layout);
    }
    ds_sparse_layout_destroy(layout);
    ds_config_free(config);
    return finish(status);
}

/* ---- ds bench ---- */
static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* A document of about 1 MB: records of texts, whole numbers and fractions, as JSON between programs looks. */
static char *bench_document(size_t *bytes) {
    size_t room = 1 << 20, n = 0;
    char *text = (char *)malloc(room + 512);
    unsigned state = 1;
    if (!text) return NULL;
    text[n++] = '[';
    while (n < room) {
        state = state * 1664525u + 1013904223u;
        n += (size_t)snprintf(
            text + n, 512,
            "{\"id\": %u, \"name\": \"record number %u\", \"enabled\": %s, \"score\": %.17g, \"tags\": [\"alpha\", "
            "\"beta\\n\"], \"at\": {\"x\": %d, \"y\": %.6f}, \"next\": null},\n",
            state, state % 1000, state & 64 ? "true" : "false", state / 4294967296.0, (int)state, state * 1e-3);
    }
    n -= 2;
    text[n++] = ']';
    *bytes = n;
    return text;
}

/* yyjson's reader out of a shared library, with an arena of ours so that both allocate alike. */
typedef struct peer_allocator {
    void *(*allocate)(void *ctx, size_t bytes);
    void *(*resize)(void *ctx, void *memory, size_t old, size_t bytes);
    void (*release)(void *ctx, void *memory);
    void *ctx;
} peer_allocator;
typedef void *(*peer_read)(char *text, size_t bytes, uint32_t flags, const peer_allocator *allocator, void *error);
typedef struct peer_arena {
    char *memory;
    size_t used, room;
} peer_arena;
static void *peer_allocate(void *ctx, size_t bytes) {
    peer_arena *arena = (peer_arena *)ctx;
    void *memory = arena->memory + arena->used;
    if (bytes > arena->room - arena->used) return NULL;
    arena->used += (bytes + 63) / 64 * 64;
    return memory;
}
static void *arena_allocate(void *ctx, size_t bytes, size_t align) {
    (void)align;
    return peer_allocate(ctx, bytes);
}
static void *peer_resize(void *ctx, void *memory, size_t old, size_t bytes) {
    void *more = peer_allocate(ctx, bytes);
    return more ? memcpy(more, memory, old < bytes ? old : bytes) : NULL;
}
static void peer_release(void *ctx, void *memory) {
    (void)ctx;
    (void)memory;
}

typedef struct bench_case {
    const char *text;
    size_t bytes;
    peer_read peer;
    peer_allocator allocator;
    char *copy;
} bench_case;
static bool bench_config(bench_case *b) {
    ds_config *config = NULL;
    ds_config_options options;
    memset(&options, 0, sizeof options);
    options.world_size = 1;
    options.unknown = DS_CONFIG_UNKNOWN_IGNORE;
    if (ds_config_parse(b->text, b->bytes, &options, &config, NULL)) return false;
    ds_config_free(config);
    return true;
}
static bool bench_json(bench_case *b) {
    ds_json *json = NULL;
    ds_json_options options;
    memset(&options, 0, sizeof options);
    options.allocator.alloc = arena_allocate;
    options.allocator.ctx = b->allocator.ctx;
    ((peer_arena *)b->allocator.ctx)->used = 0;
    return !ds_json_parse(b->text, b->bytes, &options, &json, NULL);
}
static bool bench_copy(bench_case *b) {
    memcpy(b->copy, b->text, b->bytes);
    return b->copy[b->bytes / 2] == b->text[b->bytes / 2];
}
static bool bench_peer(bench_case *b) {
    ((peer_arena *)b->allocator.ctx)->used = 0;
    return b->peer((char *)(uintptr_t)b->text, b->bytes, 0, &b->allocator, NULL) != NULL;
}
/* The best of many runs, in seconds; 0 when it fails. */
static double best_of(bool (*run)(bench_case *b), bench_case *b) {
    double best = 1e30, until = seconds() + 0.5;
    for (int i = 0; i < 10 || seconds() < until; i++) {
        double start = seconds(), took;
        if (!run(b)) return 0;
        took = seconds() - start;
        if (took < best) best = took;
    }
    return best;
}

#include "bench_aio.h"
#include "bench_checkpoint.h"
#include "bench_comm.h"
#include "bench_optim.h"
#include "bench_sparse.h"
#include "bench_zero.h"

static int run_bench(arguments *a) {
    if (a->count && !strcmp(a->at[0], "aio")) return bench_aio(a);
    if (a->count && !strcmp(a->at[0], "comm")) return bench_comm(a);
    if (a->count && !strcmp(a->at[0], "optim")) return bench_optim(a);
    if (a->count && !strcmp(a->at[0], "checkpoint")) return bench_checkpoint(a);
    if (a->count && !strcmp(a->at[0], "sparse")) return bench_sparse(a);
    if (a->count && !strcmp(a->at[0], "zero")) return bench_zero(a);
    const char *library = option(a, "--yyjson", ""), *path = option(a, "--config", "");
    bool json = flag(a, "--json");
    int status = operands(a, 1);
    bench_case config, document;
    peer_arena arena = {NULL, 0, (size_t)64 << 20};
    size_t bytes = 0;
    void *handle = NULL;
    char *text = NULL, *own = NULL;
    double t_config, t_json, t_copy, t_peer = 0;
    if (status) return status;
    if (strcmp(a->at[0], "config")) return usage(a, "nothing to measure is named", a->at[0]);
    memset(&config, 0, sizeof config);
    memset(&document, 0, sizeof document);
    own = bench_document(&bytes);
    document.text = own;
    document.bytes = bytes;
    document.copy = (char *)malloc(bytes);
    arena.memory = (char *)malloc(arena.room);
    if (*path)
        text = read_file(path, &config.bytes, &status);
    else { /* the whole of a resolved configuration, about 11 KB */
        ds_config *c = NULL;
        if (!ds_config_parse("{\"train_batch_size\": 64}", 24, NULL, &c, NULL)) {
            text = (char *)malloc(ds_config_print(c, NULL, 0) + 1);
            if (text) config.bytes = ds_config_print(c, text, ds_config_print(c, NULL, 0) + 1);
        }
        ds_config_free(c);
    }
    config.text = text;
    document.allocator.allocate = peer_allocate;
    document.allocator.resize = peer_resize;
    document.allocator.release = peer_release;
    document.allocator.ctx = &arena;
    if (*library) {
        void *symbol;
        handle = dlopen(library, RTLD_NOW);
        symbol = handle ? dlsym(handle, "yyjson_read_opts") : NULL;
        if (symbol)
            memcpy(&document.peer, &symbol, sizeof symbol);
        else
            fprintf(stderr, "ds bench: --yyjson %s: %s\n", library, handle ? "no yyjson_read_opts in it" : dlerror());
    }
    if (!text || !own || !document.copy || !arena.memory || (*library && !document.peer)) {
        status = text && !*library ? ENVIRONMENT : INPUT;
    } else {
        t_config = best_of(bench_config, &config);
        t_json = best_of(bench_json, &document);
        t_copy = best_of(bench_copy, &document);
        if (document.peer) t_peer = best_of(bench_peer, &document);
        if (t_config <= 0) fprintf(stderr, "ds bench: %s is refused; see ds config\n", *path ? path : "the sample");
        if (json)
            printf("{\"config_bytes\": %zu, \"config_seconds\": %.3g, \"json_bytes\": %zu, \"json_bytes_per_second\": "
                   "%.4g, "
                   "\"memcpy_bytes_per_second\": %.4g, \"yyjson_bytes_per_second\": %.4g}\n",
                   config.bytes, t_config, bytes, (double)bytes / t_json, (double)bytes / t_copy,
                   t_peer > 0 ? (double)bytes / t_peer : 0.0);
        else {
            printf("a configuration of %zu bytes parsed, checked, resolved  %8.1f us\n", config.bytes, 1e6 * t_config);
            printf("a JSON document of %zu bytes                       %8.0f MB/s\n", bytes,
                   1e-6 * (double)bytes / t_json);
            printf("copying it (the ceiling)                             %8.0f MB/s\n", 1e-6 * (double)bytes / t_copy);
            if (t_peer > 0)
                printf("yyjson on it                                         %8.0f MB/s, ds at %.2f of that\n",
                       1e-6 * (double)bytes / t_peer, t_peer / t_json);
        }
        if (t_config <= 0) status = INPUT;
    }
    if (handle) dlclose(handle);
    free(text);
    free(own);
    free(document.copy);
    free(arena.memory);
    return finish(status);
}

/* ---- ds run ---- */
#define MOST_RANKS 4096
static volatile sig_atomic_t pending_signal;
static void on_signal(int number_) {
    pending_signal = number_;
}

/* A port of this machine that nobody listens on now. */
static int free_port(void) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0), port = 0;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof address) &&
        !getsockname(fd, (struct sockaddr *)&address, &length))
        port = ntohs(address.sin_port);
    if (fd >= 0) close(fd);
    return port;
}

static void set_number(const char *name, long value) {
    char text[32];
    snprintf(text, sizeof text, "%ld", value);
    setenv(name, text, 1);
}

/* What is passed on to the ranks. */
static const int forwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
enum { FORWARDED = sizeof forwarded / sizeof forwarded[0] };

/* In the child: joins the ranks' process group, and becomes the program. */
static void become_rank(char **program, long rank, long ranks, pid_t group, pid_t parent) {
    struct sigaction standard;
    sigset_t none;
    memset(&standard, 0, sizeof standard);
    standard.sa_handler = SIG_DFL;
    for (int i = 0; i < FORWARDED; i++) sigaction(forwarded[i], &standard, NULL);
    sigaction(SIGCHLD, &standard, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setpgid(0, group);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no rank outlives ds run, however that ends */
    if (getppid() != parent) _exit(ENVIRONMENT);
    set_number("RANK", rank);
    set_number("LOCAL_RANK", rank);
    set_number("WORLD_SIZE", ranks);
    set_number("LOCAL_WORLD_SIZE", ranks);
    execvp(program[0], program);
    fprintf(stderr, "ds run: %s: %s\n", program[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

/* Waits for all ranks. A signal that comes is passed on once; when a rank fails, the others get SIGTERM, and SIGKILL
   after five seconds. Returns the status of the rank that failed first. */
static int watch_ranks(pid_t *pids, long ranks, pid_t group) {
    long left = ranks;
    int first = 0;
    bool failed = false, told = false, killed = false; /* told: SIGTERM was passed on, and does not come twice */
    struct timespec now, deadline = {0, 0};
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    for (int i = 0; i < FORWARDED; i++) sigaddset(&watched, forwarded[i]);
    while (left) {
        struct timespec tick = {0, 200000000};
        int status = 0, got;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (pid > 0) {
            for (long i = 0; i < ranks; i++) {
                int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
                if (pids[i] != pid) continue;
                pids[i] = 0;
                left--;
                if (!code || failed) continue;
                first = code;
                failed = true;
                if (WIFSIGNALED(status))
                    fprintf(stderr, "ds run: rank %ld ended by signal %d\n", i, WTERMSIG(status));
                else
                    fprintf(stderr, "ds run: rank %ld ended with status %d\n", i, code);
                if (left && !told) kill(-group, SIGTERM);
                deadline = now;
                deadline.tv_sec += 5;
            }
            continue;
        }
        if (failed && !killed && now.tv_sec >= deadline.tv_sec) {
            kill(-group, SIGKILL);
            killed = true;
        }
        got = sigtimedwait(&watched, NULL, &tick);
        if (got > 0 && got != SIGCHLD) kill(-group, got);
        if (got == SIGTERM) told = true;
    }
    kill(-group, SIGKILL); /* what the ranks left behind */
    return first;
}

static int run_run(arguments *a) {
    const char *ranks_text = NULL;
    size_t ranks;
    pid_t *pids, group = 0;
    pid_t self = getpid();
    sigset_t watched;
    struct sigaction action;
    unsigned char id[8] = {0};
    char id_text[17];
    FILE *random;
    int port, status;
    /* options end at the program, whose own are left alone */
    while (a->count && a->at[0][0] == '-') {
        if (!strcmp(a->at[0], "--")) {
            take(a, 0, 1);
            break;
        }
        if (!strcmp(a->at[0], "-n") && a->count > 1) {
            ranks_text = a->at[1];
            take(a, 0, 2);
        } else
            return usage(a, "unknown option", a->at[0]);
    }
    if (!ranks_text) return usage(a, "-n N is missing", NULL);
    if (!number(ranks_text, &ranks) || !ranks || ranks > MOST_RANKS)
        return usage(a, "-n wants 1 to 4096 ranks, got", ranks_text);
    if (!a->count) return usage(a, "a program is missing", NULL);
    pids = (pid_t *)calloc(ranks, sizeof *pids);
    port = free_port();
    if (!pids || !port) {
        fprintf(stderr, "ds run: %s\n", pids ? "no free port on 127.0.0.1" : "out of memory");
        free(pids);
        return ENVIRONMENT;
    }
    random = fopen("/dev/urandom", "rb");
    if (!random || fread(id, 1, sizeof id, random) != sizeof id) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        memcpy(id, &now.tv_nsec, 4);
        memcpy(id + 4, &self, 4);
    }
    if (random) fclose(random);
    for (int i = 0; i < 8; i++) snprintf(id_text + 2 * i, 3, "%02x", id[i]);
    setenv("DS_RUN_ID", id_text, 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    set_number("MASTER_PORT", port);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal; /* SIGCHLD must not be ignored to be waited for */
    sigaction(SIGCHLD, &action, NULL);
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    for (int i = 0; i < FORWARDED; i++) sigaddset(&watched, forwarded[i]);
    sigprocmask(SIG_BLOCK, &watched, NULL);
    fflush(NULL);
    for (size_t i = 0; i < ranks; i++) {
        pids[i] = fork();
        if (pids[i] == 0) become_rank(a->at, (long)i, (long)ranks, group, self);
        if (pids[i] < 0) {
            fprintf(stderr, "ds run: rank %zu: %s\n", i, strerror(errno));
            if (group) kill(-group, SIGKILL);
            while (waitpid(-1, NULL, 0) > 0) {}
            free(pids);
            return ENVIRONMENT;
        }
        if (!group) group = pids[i];
        setpgid(pids[i], group);
    }
    status = watch_ranks(pids, (long)ranks, group);
    free(pids);
    return status;
}

/* ---- ds inspect, ds convert ---- */
static const char *const dtype_names[DS_DTYPE_COUNT] = {"F32", "F16", "BF16", "F64", "I8",  "U8",  "I16",
                                                        "U16", "I32", "U32",  "I64", "U64", "BOOL"};
static const char *const format_names[] = {"ds", "safetensors", "deepspeed", "deepspeed universal"};

static int checkpoint_failed(const char *command, ds_status status, const char *message) {
    fprintf(stderr, "ds %s: %s\n", command, message);
    return status == DS_ERR_CORRUPT || DS_IS_MISUSE(status) ? INPUT : ENVIRONMENT;
}
/* What the reader says of itself: a warning goes to the user, and that `latest` is damaged is kept. */
typedef struct checkpoint_log {
    const char *command;
    char not_latest[600];
} checkpoint_log;
static void checkpoint_said(void *ctx, const char *header, int level, int id, const char *message) {
    checkpoint_log *log = (checkpoint_log *)ctx;
    (void)header;
    if (level <= DS_LOG_WARNING) fprintf(stderr, "ds %s: %s\n", log->command, message);
    if (id == 2) snprintf(log->not_latest, sizeof log->not_latest, "%s", message);
}
static void put_json(const char *text) {
    putchar('"');
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\')
            printf("\\%c", *p);
        else if (*p < 32)
            printf("\\u%04x", *p);
        else
            putchar(*p);
    }
    putchar('"');
}
static void put_value(const ds_checkpoint_value *v, bool json) {
    if (v->kind == 2)
        printf("%lld", (long long)v->integer);
    else if (v->kind == 1 && json && !isfinite(v->number))
        printf("null");
    else if (v->kind == 1)
        printf("%.17g", v->number);
    else if (v->kind == 3)
        printf(json ? "{\"bytes\": %zu}" : "(%zu bytes)", v->bytes);
    else if (json)
        put_json((const char *)v->data);
    else
        printf("%s", (const char *)v->data);
}
static void put_shape(const ds_checkpoint_info *t, const char *separator) {
    for (int i = 0; i < t->dims; i++) printf("%s%zu", i ? separator : "", t->shape[i]);
}

static void inspect_json(const ds_checkpoint *c, bool verified, const char *problem) {
    ds_checkpoint_shard_info shard;
    ds_checkpoint_info t;
    ds_checkpoint_value v;
    printf("{\"format\": \"%s\", \"tag\": ", format_names[ds_checkpoint_get_format(c)]);
    put_json(ds_checkpoint_tag(c));
    printf(", \"verified\": %s, \"error\": ", verified ? "true" : "false");
    if (*problem)
        put_json(problem);
    else
        printf("null");
    printf(",\n\"shards\": [");
    for (size_t i = 0; !ds_checkpoint_shard_at(c, i, &shard); i++) {
        printf("%s\n{\"file\": ", i ? "," : "");
        put_json(shard.name);
        printf(", \"bytes\": %llu, \"missing\": %s}", (unsigned long long)shard.bytes,
               shard.missing ? "true" : "false");
    }
    printf("],\n\"tensors\": [");
    for (size_t i = 0; !ds_checkpoint_at(c, i, &t); i++) {
        printf("%s\n{\"name\": ", i ? "," : "");
        put_json(t.name);
        printf(", \"dtype\": \"%s\", \"shape\": [", dtype_names[t.dtype]);
        put_shape(&t, ", ");
        printf("], \"elements\": %zu, \"parts\": %zu}", t.numel, t.parts);
    }
    printf("],\n\"values\": {");
    for (size_t i = 0; !ds_checkpoint_value_at(c, i, &v); i++) {
        printf("%s\n", i ? "," : "");
        put_json(v.key);
        printf(": ");
        put_value(&v, true);
    }
    printf("}}\n");
}
/* A name in a column, by its characters and not its bytes. */
static int name_width(const char *name) {
    int width = 0;
    for (; *name; name++) width += (*name & 0xC0) != 0x80;
    return width;
}
static void put_name(const char *name, int column) {
    const int width = name_width(name);
    printf("%s%*s ", name, width < column ? column - width : 0, "");
}
static void inspect_table(const ds_checkpoint *c, bool verified) {
    ds_checkpoint_shard_info shard;
    ds_checkpoint_info t;
    ds_checkpoint_value v;
    unsigned long long bytes = 0;
    size_t elements = 0, shards = ds_checkpoint_shard_count(c);
    int column = 30;
    for (size_t i = 0; !ds_checkpoint_at(c, i, &t); i++) {
        const int width = name_width(t.name);
        if (width > column && width <= 80) column = width;
    }
    put_name("tensor", column);
    printf("%-5s %-18s %14s %6s\n", "dtype", "shape", "elements", "parts");
    for (size_t i = 0; !ds_checkpoint_at(c, i, &t); i++) {
        char shape[200] = "";
        for (int k = 0; k < t.dims; k++)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%zu", k ? "x" : "", t.shape[k]);
        put_name(t.name, column);
        printf("%-5s %-18s %14zu %6zu\n", dtype_names[t.dtype], shape, t.numel, t.parts);
        elements += t.numel;
    }
    printf("\n");
    for (size_t i = 0; !ds_checkpoint_value_at(c, i, &v); i++) {
        put_name(v.key, column);
        put_value(&v, false);
        printf("\n");
    }
    printf("\n");
    for (size_t i = 0; !ds_checkpoint_shard_at(c, i, &shard); i++) {
        put_name(shard.name, column);
        printf("%14llu bytes%s\n", (unsigned long long)shard.bytes, shard.missing ? ", on another node" : "");
        bytes += shard.bytes;
    }
    printf("\n%s checkpoint %s: %zu tensors, %zu elements, %zu file%s, %llu bytes; %s\n",
           format_names[ds_checkpoint_get_format(c)], ds_checkpoint_tag(c), ds_checkpoint_count(c), elements, shards,
           shards == 1 ? "" : "s", bytes,
           !verified ? "DAMAGED" : "every byte read, and right by its checksum where it has one");
}

static int run_inspect(arguments *a) {
    bool json = flag(a, "--json");
    int status = operands(a, 1);
    ds_checkpoint_desc desc;
    ds_checkpoint *c = NULL;
    ds_error error = {DS_OK, ""};
    checkpoint_log log = {"inspect", ""};
    ds_status opened, verified;
    if (status) return status;
    memset(&desc, 0, sizeof desc);
    desc.logger.log = checkpoint_said;
    desc.logger.ctx = &log;
    opened = ds_checkpoint_open_path(&desc, a->at[0], &c, &error);
    if (opened) return checkpoint_failed("inspect", opened, error.message);
    verified = ds_checkpoint_verify(c);
    if (verified) error = *ds_checkpoint_error(c);
    if (json)
        inspect_json(c, !verified, verified ? error.message : log.not_latest);
    else
        inspect_table(c, !verified);
    ds_checkpoint_close(c);
    if (verified) return finish(checkpoint_failed("inspect", verified, error.message));
    return finish(*log.not_latest ? INPUT : FINE);
}

/* What a writer asks for, from an open checkpoint. */
typedef struct convert_source {
    ds_checkpoint *from;
    const char *name;
    ds_dtype dtype;
} convert_source;
static ds_status convert_read(void *ctx, size_t begin, size_t count, void *out) {
    const convert_source *s = (const convert_source *)ctx;
    return ds_checkpoint_read(s->from, s->name, begin, count, s->dtype, out);
}

static const char *converted_tag(const ds_checkpoint *c) {
    return ds_checkpoint_get_format(c) == DS_CHECKPOINT_SAFETENSORS ? "converted" : ds_checkpoint_tag(c);
}
static ds_status convert_to_ds(ds_checkpoint *c, const ds_checkpoint_tensor *tensors, size_t count, const char *folder,
                               ds_error *error) {
    ds_checkpoint_desc desc;
    ds_checkpoint_writer *w = NULL;
    ds_checkpoint_value v;
    ds_status status;
    memset(&desc, 0, sizeof desc);
    desc.folder = folder;
    status = ds_checkpoint_begin(&desc, converted_tag(c), &w, error);
    if (status) return status;
    for (size_t i = 0; i < count; i++) ds_checkpoint_add(w, &tensors[i]); /* a failure makes commit fail */
    for (size_t i = 0; !ds_checkpoint_value_at(c, i, &v); i++) {
        if (v.kind == 0) ds_checkpoint_set_text(w, v.key, (const char *)v.data);
        if (v.kind == 1) ds_checkpoint_set_number(w, v.key, v.number);
        if (v.kind == 2) ds_checkpoint_set_integer(w, v.key, v.integer);
        if (v.kind == 3) ds_checkpoint_set_bytes(w, v.key, v.data, v.bytes);
    }
    return ds_checkpoint_commit(w, error);
}

static ds_status convert(ds_checkpoint *c, const char *to, size_t shard_bytes, int dtype, ds_error *error) {
    static const char *const metadata[] = {"format", "pt"};
    const size_t n = ds_checkpoint_count(c), length = strlen(to);
    const bool model = length > 12 && !strcmp(to + length - 12, ".safetensors");
    ds_checkpoint_tensor *tensors = (ds_checkpoint_tensor *)calloc(n + 1, sizeof *tensors);
    convert_source *sources = (convert_source *)calloc(n + 1, sizeof *sources);
    ds_checkpoint_info *infos = (ds_checkpoint_info *)calloc(n + 1, sizeof *infos);
    ds_status status = DS_ERR_MEMORY;
    size_t count = 0;
    snprintf(error->message, sizeof error->message, "out of memory");
    for (size_t i = 0; tensors && sources && infos && !ds_checkpoint_at(c, i, &infos[i]); i++) {
        ds_checkpoint_tensor *t = &tensors[count];
        const ds_dtype saved = infos[i].dtype;
        if (model && !strncmp(infos[i].name, "optimizer.", 10)) continue; /* weights alone */
        sources[i].from = c;
        sources[i].name = t->name = infos[i].name;
        sources[i].dtype = t->dtype =
            dtype >= 0 && (saved == DS_F32 || saved == DS_F16 || saved == DS_BF16) ? (ds_dtype)dtype : saved;
        t->shape = infos[i].shape;
        t->dims = infos[i].dims;
        t->count = infos[i].numel;
        t->read = convert_read;
        t->ctx = &sources[i];
        count++;
    }
    if (tensors && sources && infos)
        status = model ? ds_safetensors_write(to, tensors, count, metadata, 1, shard_bytes, NULL, error)
                       : convert_to_ds(c, tensors, count, to, error);
    if (status && ds_checkpoint_error(c)->status == status)
        *error = *ds_checkpoint_error(c); /* the source was damaged */
    free(tensors);
    free(sources);
    free(infos);
    return status;
}

static int run_convert(arguments *a) {
    static const char *const kinds[] = {"universal", "zero1", "zero2", "zero3"};
    const char *shard = option(a, "--max-shard-bytes", "0"), *type = option(a, "--dtype", "");
    const char *kind = option(a, "--to", ""), *rank_text = option(a, "--ranks", "1");
    ds_checkpoint_desc desc;
    ds_checkpoint *c = NULL;
    ds_error error = {DS_OK, ""};
    checkpoint_log log = {"convert", ""};
    size_t shard_bytes, ranks;
    ds_status status;
    int used = operands(a, 2), dtype = -1, stage = -1;
    if (used) return used;
    for (int i = 0; i < 4 && kind; i++)
        if (!strcmp(kind, kinds[i])) stage = i;
    if (!kind || (*kind && stage < 0)) return usage(a, "--to is universal, zero1, zero2 or zero3", NULL);
    if (!number(rank_text, &ranks) || ranks < 1 || ranks > 100000) return usage(a, "--ranks needs a count", NULL);
    if (stage >= 0 && *type) return usage(a, "--dtype is for ds and safetensors; DeepSpeed's states are fp32", NULL);
    if (!number(shard, &shard_bytes)) return usage(a, "--max-shard-bytes needs a count", NULL);
    if (!type || (*type && strcmp(type, "fp32") && strcmp(type, "fp16") && strcmp(type, "bf16")))
        return usage(a, "--dtype is fp32, fp16 or bf16", NULL);
    if (*type) dtype = type[0] == 'b' ? DS_BF16 : type[2] == '3' ? DS_F32 : DS_F16;
    memset(&desc, 0, sizeof desc);
    desc.logger.log = checkpoint_said;
    desc.logger.ctx = &log;
    status = ds_checkpoint_open_path(&desc, a->at[0], &c, &error);
    if (!status && stage >= 0)
        status = ds_deepspeed_write(c, a->at[1], converted_tag(c), stage, (int)ranks, &error);
    else if (!status)
        status = convert(c, a->at[1], shard_bytes, dtype, &error);
    ds_checkpoint_close(c);
    return status ? checkpoint_failed("convert", status, error.message) : FINE;
}

/* ---- the table of commands ---- */
static const struct command {
    const char *name, *summary, *help;
    int (*run)(arguments *a);
} commands[] = {
    {"config", "check and resolve a configuration",
     "usage: ds config FILE [--world-size N] [--unknown error|warn|ignore] [--explain]\n"
     "       ds config --keys | --sections\n"
     "Prints the resolved configuration as JSON, every known key present; with --explain a table of key, value,\n"
     "origin, line and meaning. FILE may be - for standard input. Exit status 1: the configuration is wrong.\n"
     "--keys prints the table of all keys in Markdown, --sections how many each section has.\n",
     run_config},
    {"json", "check that a text is JSON",
     "usage: ds json FILE\n"
     "Prints nothing. Exit status 0: FILE (- for standard input) is valid JSON by RFC 8259; 1: it is not, and the\n"
     "message says line:column.\n",
     run_json},
    {"memory", "estimate the memory of a training",
     "usage: ds memory --params N [--largest-layer N] [--gpus-per-node G] [--nodes K]\n"
     "       ds memory --config FILE --shapes FILE [--world-size N] [--rank R]\n"
     "Prints DeepSpeed's estimate of model states in bytes, for each stage and offload choice (16-bit training, "
     "Adam).\n"
     "N is a count of parameters; 7e9 is understood.\n"
     "With --config and --shapes (a JSON object of parameter names and lists of sizes): the exact plan in bytes, by "
     "class\n"
     "and tier, of an engine with this configuration.\n",
     run_memory},
    {"schedule", "print the learning rate of each step",
     "usage: ds schedule FILE --steps N\n"
     "Prints CSV step,lr (and ,momentum where it is cycled): what optimizer step k = 0..N-1 uses. The optimizer's lr "
     "is the\n"
     "base rate. FILE may be - for standard input.\n",
     run_schedule},
    {"loss-scale", "print the loss scale after each step",
     "usage: ds loss-scale FILE --overflows STRING\n"
     "STRING has one character for each step, 1 where the gradients overflow. Prints CSV step,loss_scale,skipped: the\n"
     "scale in force after each step. Exit status 1: an overflow at the smallest scale ended it.\n",
     run_loss_scale},
    {"layout", "print the blocks that sparse attention keeps",
     "usage: ds layout FILE --heads H --seq-len S [--seed K] [--svg OUT]\n"
     "Prints the layout of the sparse_attention section: for each head a line `head h`, then a line of 0/1 for each "
     "row "
     "of\n"
     "blocks. --seed starts random blocks; --svg draws it into a file. S must be a multiple of the block.\n",
     run_layout},
    {"bench", "measure this machine",
     "usage: ds bench config [--config FILE] [--yyjson LIBYYJSON.so] [--json]\n"
     "Measures how fast a configuration (FILE, or a sample) and a JSON document of 1 MB are read, beside what copying "
     "the\n"
     "document takes, and yyjson on it when a shared library of it is given.\n"
     "       ds bench sparse [--seq-len N] [--heads H] [--head-dim D] [--block B] [--threads T] [--rounds R] "
     "[--lengths]\n"
     "                       [--json]\n"
     "Times block-sparse attention, forward and backward, beside dense layouts and the machine's multiply-adds; with\n"
     "--lengths, at 1,024, 2,048, ... up to N tokens.\n"
     "       ds bench optim [--elements N] [--threads T] [--rounds R] [--rows M] [--level L] [--json]\n"
     "Times a step of each optimizer as a share of the memory's own speed, and Muon's iteration on an M x 4M matrix; "
     "at SIMD\n"
     "level L: best, scalar, avx2, avx512.\n"
     "       ds bench checkpoint [--folder DIR] [--mib N] [--rounds N] [--fio PATH] [--json]\n"
     "Times a durable save and a load beside fio and a plain file of the same size in DIR.\n"
     "       ds bench comm [--ranks N] [--mib N | --bytes N] [--rounds R] [--json]\n"
     "Times collectives between N processes over shared memory beside their reading and writing of memory.\n"
     "       ds bench zero [--folder DIR] [--elements N] [--json]\n"
     "Times steps of the engine beside computation, communication and disk alone; N elements in each of 8 layers,\n"
     "four times as many over shared memory and offloaded to cpu, where a cache would else stand in for memory.\n"
     "       ds bench aio [--folder DIR] [--mib N] [--block-size BYTES] [--queue-depth N] [--threads T] "
     "[--single-submit]\n"
     "                    [--no-overlap] [--small-pages] [--rounds R] [--fio PATH] [--json]\n"
     "                    [--tune | --step]\n"
     "Times the swap file in DIR beside fio at the same settings; --tune tries block sizes, depths and threads and "
     "prints the\n"
     "aio section to paste; --step times an optimizer's step from the disk beside its I/O and its arithmetic alone.\n",
     run_bench},
    {"inspect", "show what a checkpoint holds, and verify it",
     "usage: ds inspect CHECKPOINT [--json]\n"
     "CHECKPOINT is a folder of checkpoints or of one, of ds or DeepSpeed, a .safetensors file or an index of such.\n"
     "Reads every byte. Exit status 1: it is damaged, or none, or another than the one that a folder calls its "
     "latest.\n",
     run_inspect},
    {"convert", "change a checkpoint's format",
     "usage: ds convert SRC DST [--dtype fp32|fp16|bf16] [--max-shard-bytes N]\n"
     "       ds convert SRC DST --to universal|zero1|zero2|zero3 [--ranks N]\n"
     "SRC is whatever ds inspect reads. DST ending in .safetensors gets the weights in one file, or in shards of at "
     "most N\n"
     "bytes with an index; any other DST is a folder that gets a checkpoint of ds, with all states. With --to it gets "
     "one\n"
     "of DeepSpeed: universal (goes on training, with load_universal; stage 3 on up to N ranks) or ZeRO's files of N "
     "ranks.\n",
     run_convert},
    {"run", "start the ranks of a program on this machine",
     "usage: ds run -n N [--] PROGRAM ARGS...\n"
     "Runs N ranks in a process group of their own, with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR,\n"
     "MASTER_PORT and DS_RUN_ID set. Signals are passed on once; when a rank fails the others are ended. Exit status:\n"
     "that of the first rank that failed, 128 + n when signal n ended it.\n",
     run_run},
};
#define COMMANDS (sizeof commands / sizeof commands[0])

static int help(FILE *to) {
    fprintf(to, "usage: ds COMMAND ...\n");
    for (size_t i = 0; i < COMMANDS; i++) fprintf(to, "  ds %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(
        to,
        "ds COMMAND --help tells more. Exit status: 0 fine, 1 wrong input, 2 bad usage, 3 the environment failed.\n");
    return to == stdout ? finish(FINE) : USAGE;
}

static bool asks_help(const char *word) {
    return !strcmp(word, "--help") || !strcmp(word, "-h");
}

int main(int argc, char **argv) {
    arguments a;
    if (argc < 2) return help(stderr);
    if (asks_help(argv[1])) return help(stdout);
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name)) continue;
        for (int k = 2; k < argc && (k == 2 || commands[i].run != run_run); k++) { /* a program that runs has its own */
            if (!asks_help(argv[k])) continue;
            fputs(commands[i].help, stdout);
            return finish(FINE);
        }
        a.count = argc - 2;
        a.at = argv + 2;
        a.command = commands[i].name;
        a.help = commands[i].help;
        return commands[i].run(&a);
    }
    fprintf(stderr, "ds: unknown command %s\n", argv[1]);
    return help(stderr);
}
