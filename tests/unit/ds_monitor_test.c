/* Metrics: files as DeepSpeed writes them, TensorBoard's records read back, failures of disk and memory, what people see. */
#define DS_CONFIG_IMPLEMENTATION
#include "ds_config.h"
#define DS_MONITOR_IMPLEMENTATION
#include "ds_monitor.h"
#include "../test.h"

static char root[256];

static char *slurp(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    char *data = (char *)calloc(1, 1 << 20);
    *bytes = 0;
    if (!f) return data;
    *bytes = fread(data, 1, (1 << 20) - 1, f);
    fclose(f);
    return data;
}

static void clear(void) {
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'/*", root);
    CHECK(system(command) == 0);
}

static void find_events(void *arg, const char *name) {
    if (strncmp(name, "events.out.tfevents.", 20) == 0) snprintf((char *)arg, 512, "%s", name);
}

static ds_monitor_desc both(void) {
    ds_monitor_desc d;
    memset(&d, 0, sizeof d);
    d.csv.enabled = d.tensorboard.enabled = true;
    d.csv.output_path = d.tensorboard.output_path = root;
    d.csv.job_name = d.tensorboard.job_name = "job";
    return d;
}

static uint64_t little(const unsigned char *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static uint32_t masked(const void *data, size_t bytes) {
    uint32_t crc = dsi_crc32c(0, data, bytes);
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

/* The scalars of an event file, read by the format's description: returns how many there are of `tag`. */
static size_t scalars(const char *path, const char *tag, float *values, int64_t *steps) {
    size_t bytes, n = 0;
    unsigned char *data = (unsigned char *)slurp(path, &bytes);
    for (size_t at = 0; at + 16 <= bytes;) {
        size_t length = (size_t)little(data + at, 8), i;
        const unsigned char *e = data + at + 12;
        int64_t step = 0;
        CHECK(little(data + at + 8, 4) == masked(data + at, 8));
        if (!CHECK(at + 16 + length <= bytes)) break;
        CHECK(little(e + length, 4) == masked(e, length));
        CHECK(e[0] == 0x09); /* wall time */
        i = 9;
        if (at == 0) CHECK(length == 24 && e[9] == 0x1A && memcmp(e + 11, "brain.Event:2", 13) == 0);
        if (i < length && e[i] == 0x10) {
            int shift = 0;
            for (i++; e[i] & 0x80; i++, shift += 7) step |= (int64_t)(e[i] & 0x7F) << shift;
            step |= (int64_t)e[i++] << shift;
        }
        if (i < length && e[i] == 0x2A) { /* summary { value { tag, simple_value } }, each shorter than 128 bytes */
            size_t name = e[i + 5];
            CHECK(e[i + 2] == 0x0A && e[i + 4] == 0x0A);
            if (name == strlen(tag) && memcmp(e + i + 6, tag, name) == 0) {
                uint32_t word = (uint32_t)little(e + i + 7 + name, 4);
                CHECK(e[i + 6 + name] == 0x15);
                memcpy(&values[n], &word, 4);
                steps[n++] = step;
            }
        }
        at += 16 + length;
    }
    free(data);
    return n;
}

/* Each recorded run: the calls in, the files out. */
static void golden(void) {
    size_t bytes;
    char *text = slurp("tests/golden/monitor.json", &bytes);
    ds_json *d = NULL;
    if (!CHECK(ds_json_parse(text, bytes, NULL, &d, NULL) == DS_OK)) return;
    for (ds_json_node c = ds_json_first(d, 0); c != DS_JSON_NO_NODE; c = ds_json_next(d, 0, c)) {
        ds_json_node expect = ds_json_get(d, c, "expect"), calls = ds_json_get(d, expect, "write_events_calls");
        ds_json_node files = ds_json_get(d, expect, "csv_files"), tb = ds_json_get(d, expect, "tensorboard_scalars");
        TEST_NAMED(ds_json_string(d, ds_json_get(d, c, "name"), NULL)) {
            ds_monitor_desc desc = both();
            ds_monitor *m = NULL;
            char path[900], name[512] = "";
            clear();
            CHECK(ds_monitor_create(&desc, &m, NULL) == DS_OK);
            for (ds_json_node k = ds_json_first(d, calls); k != DS_JSON_NO_NODE; k = ds_json_next(d, calls, k))
                for (ds_json_node e = ds_json_first(d, k); e != DS_JSON_NO_NODE; e = ds_json_next(d, k, e)) {
                    const char *value = ds_json_string(d, ds_json_at(d, e, 1), NULL);
                    int64_t step = 0;
                    ds_json_integer(d, ds_json_at(d, e, 2), &step);
                    if (!value) continue; /* a timing: not recorded */
                    CHECK(ds_monitor_write(m, ds_json_string(d, ds_json_at(d, e, 0), NULL), strtod(value, NULL),
                                           step) == DS_OK);
                }
            ds_monitor_destroy(m);
            for (ds_json_node f = ds_json_first(d, files); f != DS_JSON_NO_NODE; f = ds_json_next(d, files, f)) {
                const char *key = ds_json_key(d, files, f, NULL), *want = ds_json_string(d, f, NULL);
                char *got;
                if (strstr(key, "elapsed_time")) continue;
                snprintf(path, sizeof path, "%s/%s", root, key);
                got = slurp(path, &bytes);
                if (strstr(key, "loss_scale")) { /* Python wrote the first scale as an integer: compare numbers */
                    const char *a = got, *b = want;
                    while (*a && *b && (a = strchr(a, ',')) != NULL && (b = strchr(b, ',')) != NULL) {
                        CHECK(strtod(a + 1, NULL) == strtod(b + 1, NULL));
                        a++, b++;
                    }
                } else
                    CHECK_STR(got, want);
                free(got);
            }
            snprintf(path, sizeof path, "%s/job", root);
            CHECK(dsi_sys_list(NULL, path, find_events, name) == 0);
            snprintf(path, sizeof path, "%s/job/%s", root, name);
            for (ds_json_node t = ds_json_first(d, tb); t != DS_JSON_NO_NODE; t = ds_json_next(d, tb, t)) {
                float values[64];
                int64_t steps[64];
                size_t n, i = 0;
                if (strstr(ds_json_key(d, tb, t, NULL), "elapsed_time")) continue;
                n = scalars(path, ds_json_key(d, tb, t, NULL), values, steps);
                CHECK_EQ(n, ds_json_count(d, t));
                for (ds_json_node p = ds_json_first(d, t); p != DS_JSON_NO_NODE && i < n;
                     p = ds_json_next(d, t, p), i++) {
                    int64_t step = 0;
                    ds_json_integer(d, ds_json_at(d, p, 0), &step);
                    CHECK_EQ(steps[i], step);
                    CHECK(values[i] == strtof(ds_json_string(d, ds_json_at(d, p, 1), NULL), NULL));
                }
            }
        }
    }
    ds_json_free(d);
    free(text);
}

static long writes, fail_write;
static int64_t failing_write(void *ctx, int fd, const void *buffer, size_t bytes, int64_t offset) {
    if (++writes == fail_write) return -ENOSPC;
    return dsi_sys_write(ctx, fd, buffer, bytes > 7 ? 7 : bytes, offset); /* short writes are resumed */
}

static char logged[1200];
static int log_count;
static void keep_log(void *ctx, const char *header, int level, int id, const char *message) {
    (void)ctx;
    CHECK_STR(header, "ds_monitor");
    CHECK(level == DS_LOG_ERROR && id == 1);
    snprintf(logged, sizeof logged, "%s", message);
    log_count++;
}

static void faults(void) {
    TEST(a full disk is said once and does not end the training) {
        ds_monitor_desc d = both();
        ds_monitor *m = NULL;
        clear();
        d.files.write = failing_write;
        d.logger.log = keep_log;
        writes = log_count = 0;
        fail_write = 3;
        CHECK(ds_monitor_create(&d, &m, NULL) == DS_OK);
        CHECK(ds_monitor_write(m, "a/b", 1.0, 1) == DS_OK);
        CHECK(ds_monitor_flush(m) == DS_ERR_SPACE);
        CHECK(ds_monitor_write(m, "a/b", 2.0, 2) == DS_ERR_SPACE);
        CHECK_HAS(ds_monitor_error(m)->message, "job/");
        CHECK_EQ(log_count, 1);
        CHECK_HAS(logged, "no longer written");
        ds_monitor_destroy(m);
    }
    TEST(short writes are resumed) {
        ds_monitor_desc d = both();
        ds_monitor *m = NULL;
        char path[400], *got;
        size_t bytes;
        clear();
        d.files.write = failing_write;
        fail_write = -1;
        CHECK(ds_monitor_create(&d, &m, NULL) == DS_OK);
        for (int i = 0; i < 3; i++) CHECK(ds_monitor_write(m, "x y/z w", i / 3.0, i) == DS_OK);
        ds_monitor_destroy(m);
        snprintf(path, sizeof path, "%s/job/x_y_z_w.csv", root);
        got = slurp(path, &bytes);
        CHECK_STR(got, "step,z w\r\n0,0.0\r\n1,0.3333333333333333\r\n2,0.6666666666666666\r\n");
        free(got);
    }
    TEST(every allocation failing in turn) {
        for (size_t n = 1;; n++) {
            ds_monitor_desc d = both();
            ds_monitor *m = NULL;
            ds_error error = {DS_OK, ""};
            test_memory memory = {0};
            bool failed = false;
            clear();
            memory.fail_at = n;
            d.allocator.alloc = test_alloc;
            d.allocator.release = test_release;
            d.allocator.ctx = &memory;
            if (ds_monitor_create(&d, &m, &error))
                failed = true, CHECK(error.status == DS_ERR_MEMORY && m == NULL);
            else if (ds_monitor_write(m, "t", 1, 1))
                failed = true, CHECK(ds_monitor_error(m)->status == DS_ERR_MEMORY);
            ds_monitor_destroy(m);
            CHECK_EQ(memory.live, 0);
            CHECK_EQ(memory.mismatches, 0);
            if (!failed) break;
        }
    }
    TEST(a folder that cannot be made) {
        ds_monitor_desc d = both();
        ds_monitor *m = NULL;
        ds_error error = {DS_OK, ""};
        d.csv.output_path = "/dev/null/x";
        CHECK(ds_monitor_create(&d, &m, &error) == DS_ERR_IO);
        CHECK_HAS(error.message, "/dev/null");
    }
    TEST(other ranks write nothing) {
        ds_monitor_desc d = both();
        ds_monitor *m = NULL;
        char path[400];
        clear();
        d.rank = 1;
        CHECK(ds_monitor_create(&d, &m, NULL) == DS_OK);
        CHECK(ds_monitor_write(m, "t", 1, 1) == DS_OK);
        ds_monitor_destroy(m);
        snprintf(path, sizeof path, "%s/job", root);
        CHECK_EQ(dsi_sys_exists(NULL, path), 0);
    }
    TEST(odd tags) {
        ds_monitor_desc d = both();
        ds_monitor *m = NULL;
        char *longer = (char *)calloc(1, 10001);
        clear();
        CHECK(ds_monitor_create(&d, &m, NULL) == DS_OK);
        memset(longer, 'x', 10000);
        CHECK(ds_monitor_write(m, longer, 1, 1) == DS_ERR_ARGUMENT);
        CHECK(ds_monitor_write(m, "", 1, 1) == DS_ERR_ARGUMENT);
        CHECK(ds_monitor_write(m, "a,b\"c", (double)NAN, 1) == DS_OK);
        CHECK(ds_monitor_write(m, "a,b\"c", (double)INFINITY, -1) == DS_OK);
        ds_monitor_destroy(m);
        free(longer);
    }
}

static void people(void) {
    TEST(numbers as Python writes them) {
        static const struct {
            double value;
            const char *text;
        } cases[] = {{0, "0.0"},
                     {-0.0, "-0.0"},
                     {1, "1.0"},
                     {0.1, "0.1"},
                     {1e-5, "1e-05"},
                     {0.0001, "0.0001"},
                     {1e16, "1e+16"},
                     {123456789012345680.0, "1.2345678901234568e+17"},
                     {1e15, "1000000000000000.0"},
                     {5e-324, "5e-324"},
                     {1.0 / 3, "0.3333333333333333"},
                     {2.5e-7, "2.5e-07"},
                     {1e22, "1e+22"},
                     {100, "100.0"}};
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            char text[40];
            dsi_monitor_number(cases[i].value, text, sizeof text);
            CHECK_STR(text, cases[i].text);
        }
    }
    TEST(the progress line) {
        ds_monitor_progress p = {20, 120, 2.5, 1e-3, 1.25, 8400, (size_t)93 << 20, 10000000000};
        char line[512];
        ds_monitor_progress_line(&p, false, 0, line, sizeof line);
        CHECK_STR(line, "step   20/120  loss 2.5000  lr 1.00e-03  norm 1.25  8400 tok/s  93 MiB  ETA 0:50\n");
        ds_monitor_progress_line(&p, true, 40, line, sizeof line);
        CHECK_STR(line, "\rstep   20/120  loss 2.5000  lr 1.00e-03\033[K");
        ds_monitor_progress_line(&p, true, 200, line, sizeof line);
        CHECK_HAS(line, "[===>                ] step");
    }
    TEST(a curve) {
        double x[3] = {0, 1, 2}, y[3] = {3, (double)NAN, 1};
        ds_monitor_curve c = {"a<b", x, y, 3, false, true, 0};
        char path[400], *got;
        size_t bytes;
        snprintf(path, sizeof path, "%s/curve.svg", root);
        CHECK(ds_monitor_svg(path, "T & T", "step", "loss", &c, 1, NULL, NULL) == DS_OK);
        got = slurp(path, &bytes);
        CHECK_HAS(got, "T &amp; T");
        CHECK_HAS(got, "a&lt;b");
        CHECK_HAS(got, "</svg>");
        CHECK(strstr(got, "nan") == NULL);
        free(got);
        c.count = 0;
        CHECK(ds_monitor_svg(path, "none", "step", "loss", &c, 1, NULL, NULL) == DS_OK);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    snprintf(root, sizeof root, "%s/ds_monitor_XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
    CHECK(mkdtemp(root) != NULL);
    golden();
    faults();
    people();
    clear();
    rmdir(root);
    return test_end();
}
