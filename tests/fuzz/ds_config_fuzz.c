/* ds_config_fuzz.c - any bytes at all, as JSON and as a configuration. What is accepted must print and read again to the
   same. Built by ds_config_fuzz.sh with libFuzzer; with -DREPLAY as a program that runs the files of its arguments. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define DS_CONFIG_IMPLEMENTATION
#include "ds_config.h"

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "not so: %s\n", #condition);                                                               \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static void see_row(void *ctx, const ds_config_row *row) {
    size_t *sum = (size_t *)ctx;
    *sum += strlen(row->path) + strlen(row->value);
}
static void see_problem(void *ctx, const ds_config_problem *p) {
    size_t *sum = (size_t *)ctx;
    *sum += strlen(p->path) + strlen(p->message);
    REQUIRE(p->line >= 0 && p->column >= 0);
}
static void see_unclaimed(void *ctx, const char *path, int line, int column) {
    size_t *sum = (size_t *)ctx;
    *sum += strlen(path) + (size_t)(line + column);
}

static void as_json(const char *text, size_t bytes) {
    ds_json *json = NULL;
    ds_json_options options;
    ds_status strict = ds_json_parse(text, bytes, NULL, &json, NULL);
    size_t length;
    int line, column;
    if (!strict) {
        for (ds_json_node v = ds_json_first(json, 0); v != DS_JSON_NO_NODE; v = ds_json_next(json, 0, v)) {
            ds_json_key(json, 0, v, &length);
            ds_json_position(json, v, &line, &column);
            REQUIRE(line >= 1 && column >= 1);
        }
        ds_json_duplicate(json);
    }
    ds_json_free(json);
    memset(&options, 0, sizeof options);
    options.comments = options.trailing_commas = true;
    REQUIRE(strict ||
            !ds_json_parse(text, bytes, &options, &json, NULL)); /* the wider reader takes all of the stricter */
    if (!strict) ds_json_free(json);
}

static void as_config(const char *text, size_t bytes, size_t world_size) {
    ds_config_options options;
    ds_config *config = NULL, *again = NULL;
    size_t length, sum = 0;
    char *out, *out2;
    memset(&options, 0, sizeof options);
    options.world_size = world_size;
    options.problem = see_problem;
    options.ctx = &sum;
    options.unknown = (int)(bytes % 3);
    if (ds_config_parse(text, bytes, &options, &config, NULL)) return;
    length = ds_config_print(config, NULL, 0);
    out = (char *)malloc(length + 1);
    out2 = (char *)malloc(length + 1);
    REQUIRE(out && out2);
    REQUIRE(ds_config_print(config, out, length + 1) == length);
    REQUIRE(!ds_config_explain(config, see_row, &sum));
    ds_config_unclaimed(config, NULL, 0, see_unclaimed, &sum);
    options.strict_json = true;
    REQUIRE(!ds_config_parse(out, length, &options, &again, NULL));
    REQUIRE(ds_config_print(again, out2, length + 1) == length);
    REQUIRE(!memcmp(out, out2, length));
    ds_config_free(again);
    ds_config_free(config);
    free(out);
    free(out2);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    as_json((const char *)data, size);
    as_config((const char *)data, size, 1);
    as_config((const char *)data, size, 8);
    return 0;
}

#ifdef REPLAY
int main(int argc, char **argv) {
    static unsigned char data[1 << 20];
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        unsigned char *exact;
        size_t size;
        if (!file) return perror(argv[i]), 1;
        size = fread(data, 1, sizeof data, file);
        fclose(file);
        exact = (unsigned char *)malloc(size ? size : 1); /* no byte behind it */
        if (!exact) return 1;
        memcpy(exact, data, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
    }
    return 0;
}
#endif
