/* ds_config_fuzz.c - any bytes at all, as JSON and as a configuration. Numbers must be what strtod makes of them; what is
   accepted must print and read again to the same. Which of the costlier checks an input gets, its world size and its hints
   follow from its bytes. Built by ds_config_fuzz.sh with libFuzzer; with -DREPLAY as a program that runs the files of its
   arguments with every check. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define DS_CONFIG_IMPLEMENTATION
#include "ds_config.h"

#if defined(__SANITIZE_ADDRESS__)
#define FUZZ_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_ASAN 1
#endif
#endif
#ifdef FUZZ_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)   ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)0)
#endif

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "not so: %s\n", #condition);                                                               \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Memory of the headers: slots between poisoned bytes, poisoned again when given back. Many times faster than malloc
   under ASan, and what is not given back is noticed at once. */
enum { SLOTS = 4, SLOT = 16 << 20, FENCE = 64 };
static _Alignas(64) unsigned char pool[SLOTS][SLOT];
static size_t taken[SLOTS];
static void *slot_alloc(void *ctx, size_t bytes, size_t align) {
    (void)ctx;
    REQUIRE(align <= 64);
    for (int i = 0; i < SLOTS; i++)
        if (!taken[i]) {
            if (bytes > SLOT - 2 * FENCE) return NULL;
            taken[i] = bytes;
            ASAN_UNPOISON_MEMORY_REGION(pool[i] + FENCE, bytes);
            ASAN_POISON_MEMORY_REGION(pool[i] + FENCE + bytes, FENCE);
            return pool[i] + FENCE;
        }
    abort();
}
static void slot_release(void *ctx, void *memory, size_t bytes, size_t align) {
    (void)ctx;
    (void)align;
    for (int i = 0; i < SLOTS; i++)
        if (memory == pool[i] + FENCE) {
            REQUIRE(taken[i] == bytes);
            ASAN_POISON_MEMORY_REGION(memory, bytes);
            taken[i] = 0;
            return;
        }
    abort();
}
static const ds_allocator slots = {slot_alloc, slot_release, NULL};

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

/* Every node stands inside the text and steps forward; a number is the nearest double, and prints to itself. */
static void check_nodes(const dsi_json *doc) {
    for (uint32_t i = 0; i < doc->count; i++) {
        const dsi_json_node *n = doc->nodes + i;
        char printed[DSI_JSON_NUMBER_ROOM];
        double value, again;
        int64_t whole;
        REQUIRE(n->offset < doc->bytes && n->next > i && n->next <= doc->count);
        if (n->type == DSI_JSON_STRING) REQUIRE(n->as.text[n->length] == 0);
        if (!dsi_json_real(doc, i, &value)) continue;
        REQUIRE(value == strtod(doc->text + n->offset, NULL));
        if (dsi_json_integer(doc, i, &whole)) REQUIRE((double)whole == value);
        if (n->type == DSI_JSON_INT) continue;
        REQUIRE(dsi_json_print_real(value, printed) < DSI_JSON_NUMBER_ROOM);
        again = strtod(printed, NULL);
        REQUIRE(!memcmp(&value, &again, sizeof value));
    }
}

/* True when the wider reader takes the text. */
static bool as_json(const char *text, size_t bytes, bool all) {
    ds_json *json = NULL;
    ds_json_options options;
    ds_error error = {DS_OK, ""};
    ds_status wide, strict;
    size_t length;
    int line, column;
    memset(&options, 0, sizeof options);
    options.allocator = slots;
    options.comments = options.trailing_commas = true;
    wide = ds_json_parse(text, bytes, &options, &json, &error);
    if (!wide) {
        check_nodes(&json->doc);
        for (ds_json_node v = ds_json_first(json, 0); v != DS_JSON_NO_NODE; v = ds_json_next(json, 0, v)) {
            ds_json_key(json, 0, v, &length);
            ds_json_position(json, v, &line, &column);
            REQUIRE(line >= 1 && column >= 1);
        }
        ds_json_duplicate(json);
    } else
        REQUIRE(error.message[0] >= '1' && error.message[0] <= '9');
    ds_json_free(json);
    if (!all) return !wide;
    options.comments = options.trailing_commas = false;
    strict = ds_json_parse(text, bytes, &options, &json, NULL);
    REQUIRE(strict || !wide); /* the wider reader takes all that the stricter takes */
    ds_json_free(json);
    return !wide;
}

static void as_config(const char *text, size_t bytes, unsigned pick, bool all) {
    static const size_t worlds[8] = {1, 8, 2, 4, 64, 3, 6, 1000};
    static const ds_config_hints hints = {0xFFF, 4, 2, 1024, 1, 1e-4, {0.9, 0.95}, 1e-8, 0.1, 100, 1000, true, false};
    static char out[1 << 16], out2[1 << 16];
    ds_config_options options;
    ds_config *config = NULL, *again = NULL;
    size_t length, sum = 0;
    memset(&options, 0, sizeof options);
    options.allocator = slots;
    options.world_size = worlds[pick % 8];
    options.problem = see_problem;
    options.ctx = &sum;
    options.unknown = (int)(pick / 8 % 3);
    if (pick & 0x100) options.hints = &hints;
    if (ds_config_parse(text, bytes, &options, &config, NULL)) return;
    if (all) {
        length = ds_config_print(config, out, sizeof out);
        REQUIRE(!ds_config_explain(config, see_row, &sum));
        ds_config_unclaimed(config, NULL, 0, see_unclaimed, &sum);
        options.strict_json = true;
        if (length < sizeof out) {
            REQUIRE(!ds_config_parse(out, length, &options, &again, NULL));
            REQUIRE(ds_config_print(again, out2, sizeof out2) == length);
            REQUIRE(!memcmp(out, out2, length));
            ds_config_free(again);
        }
    }
    ds_config_free(config);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    unsigned pick = 2166136261u;
    bool readable;
    static bool ready;
    if (!ready) ASAN_POISON_MEMORY_REGION(pool, sizeof pool);
    ready = true;
    for (size_t i = 0; i < size; i++) pick = (pick ^ data[i]) * 16777619u;
    pick ^= pick >> 15;
#ifdef REPLAY
    readable = as_json((const char *)data, size, true);
    for (unsigned i = 0; i < 24; i++) as_config((const char *)data, size, i | (i & 1) << 8, true);
    (void)readable;
#else
    readable = as_json((const char *)data, size, !(pick >> 20 & 7));
    if (readable || !(pick >> 16 & 15)) as_config((const char *)data, size, pick, !(pick >> 24 & 15));
#endif
    for (int i = 0; i < SLOTS; i++) REQUIRE(!taken[i]);
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
