/* gpt_torch_test.c - train_gpt's losses beside PyTorch's, step by step: golden/gpt_torch.json.

   The tolerance is not chosen but taken from the golden, which holds each run in fp32 and in fp64 from one start. Their
   difference is what the rounding of fp32 does to this training in PyTorch's order of sums; ours is another order of the
   same sums, so another draw of the same size. The bound at a step is eight times the largest difference so far (two
   draws, each at four times the size of one), plus the rounding of the loss itself: log, subtraction of the largest
   logit, and exp are each within one unit in the last place of fp32, which at losses below 8 is 2^-21. The golden's wrong
   details (learning rate a step late, no division by accumulation, another eps) and every other run must be outside. */
#define DS_CONFIG_IMPLEMENTATION
#include "ds_config.h"
#include "tests/test.h"
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_STEPS = 64, MOST_RUNS = 16 };
#define OWN_ROUNDING (4 * 0x1p-21)

typedef struct curve {
    const char *name;
    size_t steps;
    double fp64[MOST_STEPS], bound[MOST_STEPS];
} curve;

static char folder[256];

static ds_json *golden(void) {
    static char text[1 << 17];
    ds_json *json = NULL;
    ds_error error = {DS_OK, ""};
    FILE *f = fopen("tests/golden/gpt_torch.json", "rb");
    size_t bytes = f ? fread(text, 1, sizeof text, f) : 0;
    if (f) fclose(f);
    if (ds_json_parse(text, bytes, NULL, &json, &error)) printf("gpt_torch.json: %s\n", error.message);
    return json;
}

static const char *text_of(const ds_json *d, ds_json_node node, const char *key) {
    const char *text = ds_json_string(d, ds_json_get(d, node, key), NULL);
    return text ? text : "";
}

static size_t numbers(const ds_json *d, ds_json_node list, double *out) {
    size_t n = ds_json_count(d, list);
    for (size_t i = 0; i < n && i < MOST_STEPS; i++)
        if (!ds_json_number(d, ds_json_at(d, list, i), &out[i])) return 0;
    return n < MOST_STEPS ? n : 0;
}

static curve read_curve(const ds_json *d, ds_json_node run) {
    double fp32[MOST_STEPS], largest = 0.0;
    curve c;
    memset(&c, 0, sizeof c);
    c.name = text_of(d, run, "name");
    c.steps = numbers(d, ds_json_get(d, run, "fp64"), c.fp64);
    if (numbers(d, ds_json_get(d, run, "fp32"), fp32) != c.steps) return c; /* a wrong detail has none */
    for (size_t i = 0; i < c.steps; i++) {
        largest = fmax(largest, fabs(fp32[i] - c.fp64[i]));
        c.bound[i] = 8 * largest + OWN_ROUNDING;
    }
    return c;
}

/* The first step at which `losses` leave the curve's bounds; the number of steps when they never do. */
static size_t leaves_at(const curve *c, const double *losses) {
    size_t i = 0;
    while (i < c->steps && fabs(losses[i] - c->fp64[i]) <= c->bound[i]) i++;
    return i;
}

/* Runs train_gpt under the golden's configuration and reads the losses from its CSV. */
static size_t run(const ds_json *d, const char *config, size_t steps, double *losses) {
    static const char *const sizes[] = {"layers", "heads", "channels", "context"};
    const char *build = getenv("B") ? getenv("B") : "build";
    char path[512], command[2048], line[256];
    size_t n = 0, at;
    int64_t value = 0;
    FILE *f;
    snprintf(path, sizeof path, "%s/config.json", folder);
    if (!(f = fopen(path, "w"))) return 0;
    fprintf(f, "{\"csv_monitor\": {\"enabled\": true, \"output_path\": \"%s\", \"job_name\": \"run\"}, %s", folder,
            config + 1);
    fclose(f);
    at = (size_t)snprintf(command, sizeof command,
                          "%s/train_gpt --config %s --data tests/golden/gpt_text.txt --steps %zu --generate 0 --quiet",
                          build, path, steps);
    for (size_t i = 0; i < 4; i++) {
        ds_json_integer(d, ds_json_get(d, ds_json_get(d, 0, "model"), sizes[i]), &value);
        at += (size_t)snprintf(command + at, sizeof command - at, " --%s %d", sizes[i], (int)value);
    }
    ds_json_integer(d, ds_json_get(d, 0, "seed"), &value);
    snprintf(command + at, sizeof command - at, " --seed %d", (int)value);
    if (!CHECK(system(command) == 0)) return 0;
    snprintf(path, sizeof path, "%s/run/Train_Samples_train_loss.csv", folder);
    if (!(f = fopen(path, "r"))) return 0;
    while (fgets(line, sizeof line, f))
        if (line[0] >= '0' && line[0] <= '9' && n < MOST_STEPS && strchr(line, ','))
            losses[n++] = strtod(strchr(line, ',') + 1, NULL);
    fclose(f);
    unlink(path);
    return n;
}

static void clean(void) {
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command)) printf("cannot remove %s\n", folder);
}

int main(int argc, char **argv) {
    static curve curves[MOST_RUNS];
    ds_json *d = golden();
    ds_json_node runs, wrong;
    size_t n = 0;
    test_begin(argc, argv);
    snprintf(folder, sizeof folder, "/tmp/gpt_torch_test.XXXXXX");
    if (!d || !mkdtemp(folder)) {
        printf("0 passed, 1 failed\n");
        return 1;
    }
    unsetenv("RANK");
    unsetenv("WORLD_SIZE");
    runs = ds_json_get(d, 0, "runs");
    wrong = ds_json_get(d, 0, "wrong");
    for (ds_json_node r = ds_json_first(d, runs); r != DS_JSON_NO_NODE && n < MOST_RUNS; r = ds_json_next(d, runs, r))
        curves[n++] = read_curve(d, r);
    for (size_t i = 0; i < n; i++) {
        const curve *c = &curves[i];
        TEST_NAMED(c->name) {
            double losses[MOST_STEPS] = {0.0}, worst = 0.0;
            size_t got = run(d, text_of(d, ds_json_at(d, runs, i), "config"), c->steps, losses), left;
            if (!CHECK_EQ(got, c->steps)) break;
            for (size_t k = 0; k < got; k++) worst = fmax(worst, fabs(losses[k] - c->fp64[k]));
            printf("%s: off by at most %.3g, bound %.3g\n", c->name, worst, c->bound[got - 1]);
            left = leaves_at(c, losses);
            if (left < got) printf("  step %zu: %.17g, expected %.17g\n", left, losses[left], c->fp64[left]);
            CHECK_EQ(left, got);
            for (size_t k = 0; k < n; k++)
                if (k != i && leaves_at(&curves[k], losses) == got) CHECK_STR(c->name, curves[k].name);
        }
    }
    for (ds_json_node w = ds_json_first(d, wrong); w != DS_JSON_NO_NODE; w = ds_json_next(d, wrong, w)) {
        curve c = read_curve(d, w);
        TEST_NAMED(c.name) {
            CHECK_STR(text_of(d, w, "of"), curves[0].name);
            CHECK_EQ(c.steps, curves[0].steps);
            CHECK(leaves_at(&curves[0], c.fp64) < c.steps);
        }
    }
    ds_json_free(d);
    clean();
    return test_end();
}
