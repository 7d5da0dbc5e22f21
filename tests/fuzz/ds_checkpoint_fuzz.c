/* ds_checkpoint_fuzz.c - any bytes at all, as a safetensors file, an index, a manifest (with its checksum put right) and a
   DeepSpeed .pt file (with its checksums put right). What opens must read without a fault, and what a pickle gave too.
   Files live in memory behind desc.files. Built by ds_checkpoint_fuzz.sh with libFuzzer; with -DREPLAY as a program that
   runs the files of its arguments. The first byte chooses the kind. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define DS_CHECKPOINT_IMPLEMENTATION
#include "ds_checkpoint.h"

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "not so: %s\n", #condition);                                                               \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

typedef struct memory_file {
    const char *path;
    const unsigned char *data;
    size_t bytes;
} memory_file;
static memory_file files[2];

static int m_open(void *ctx, const char *path, int flags, unsigned mode) {
    (void)ctx, (void)flags, (void)mode;
    for (int i = 0; i < 2; i++)
        if (files[i].path && !strcmp(path, files[i].path)) return i;
    return -ENOENT;
}
static int m_close(void *ctx, int fd) {
    return (void)ctx, (void)fd, 0;
}
static int64_t m_read(void *ctx, int fd, void *buffer, size_t bytes, int64_t offset) {
    const memory_file *f = &files[fd];
    size_t n;
    (void)ctx;
    REQUIRE(offset >= 0);
    if ((uint64_t)offset >= f->bytes) return 0;
    n = f->bytes - (size_t)offset < bytes ? f->bytes - (size_t)offset : bytes;
    memcpy(buffer, f->data + offset, n);
    return (int64_t)n;
}
static int64_t m_size(void *ctx, int fd) {
    return (void)ctx, (int64_t)files[fd].bytes;
}
static int m_exists(void *ctx, const char *path) {
    const size_t n = strlen(path);
    (void)ctx;
    if (m_open(NULL, path, 0, 0) >= 0) return 1;
    for (int i = 0; i < 2; i++)
        if (files[i].path && !strncmp(files[i].path, path, n) && files[i].path[n] == '/') return 2;
    return 0;
}
static int m_list(void *ctx, const char *path, void (*entry)(void *arg, const char *name), void *arg) {
    return (void)ctx, (void)path, (void)entry, (void)arg, 0;
}

static void open_all(const char *path) {
    ds_checkpoint_desc d;
    ds_checkpoint *c = NULL;
    ds_error error;
    ds_checkpoint_info info;
    ds_checkpoint_value value;
    static float out[4096];
    ds_status status;
    memset(&d, 0, sizeof d);
    memset(&error, 0, sizeof error);
    d.files.open = m_open;
    d.files.close = m_close;
    d.files.read = m_read;
    d.files.size = m_size;
    d.files.exists = m_exists;
    d.files.list = m_list;
    status = ds_checkpoint_open_path(&d, path, &c, &error);
    REQUIRE((status == DS_OK) == (c != NULL));
    REQUIRE(status == DS_OK || (error.status == status && error.message[0]));
    if (!c) return;
    for (size_t i = 0; i < ds_checkpoint_count(c); i++) {
        REQUIRE(!ds_checkpoint_at(c, i, &info));
        REQUIRE(!ds_checkpoint_find(c, info.name, &info));
        if (info.dtype <= DS_F64)
            ds_checkpoint_read(c, info.name, info.numel / 2,
                               info.numel - info.numel / 2 < 4096 ? info.numel - info.numel / 2 : 4096, DS_F32, out);
    }
    for (size_t i = 0; i < ds_checkpoint_value_count(c); i++) REQUIRE(!ds_checkpoint_value_at(c, i, &value));
    ds_checkpoint_verify(c);
    ds_checkpoint_close(c);
}

static unsigned char made[1 << 20];
static void put_little(size_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) made[(*at)++] = i < 8 ? (unsigned char)(value >> 8 * i) : 0;
}
/* A zip file of a pickle and one storage of 256 bytes, as torch writes it. */
static size_t make_pt(const unsigned char *pickle, size_t bytes) {
    static const char *const names[2] = {"a/data.pkl", "a/data/0"};
    unsigned char storage[256];
    size_t at = 0, start[2], directory;
    memset(storage, 1, sizeof storage);
    for (int k = 0; k < 4; k++) { /* two local records, two of the directory */
        const int i = k & 1;
        const unsigned char *data = i ? storage : pickle;
        const size_t n = i ? sizeof storage : bytes;
        if (k < 2) start[i] = at;
        if (k == 2) directory = at;
        put_little(&at, k < 2 ? 0x04034B50u : 0x02014B50u, 4);
        put_little(&at, 0, k < 2 ? 2 : 4);
        put_little(&at, 0, 8); /* flags, method, time, date */
        put_little(&at, dsi_checkpoint_crc32(0, (const char *)data, n), 4);
        put_little(&at, n, 4);
        put_little(&at, n, 4);
        put_little(&at, strlen(names[i]), 2);
        put_little(&at, 0, k < 2 ? 2 : 12);
        if (k >= 2) put_little(&at, start[i], 4);
        memcpy(made + at, names[i], strlen(names[i]));
        at += strlen(names[i]);
        if (k < 2) {
            memcpy(made + at, data, n);
            at += n;
        }
    }
    {
        const size_t end = at;
        put_little(&at, 0x06054B50u, 4);
        put_little(&at, 0, 4);
        put_little(&at, 2, 2);
        put_little(&at, 2, 2);
        put_little(&at, end - directory, 4);
        put_little(&at, directory, 4);
        put_little(&at, 0, 2);
    }
    return at;
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    int kind;
    if (size < 1 || size > sizeof made - 4096) return 0;
    kind = data[0] % 6;
    data++;
    size--;
    memset(files, 0, sizeof files);
    files[0].data = data;
    files[0].bytes = size;
    if (kind == 0) {
        files[0].path = "f/x.safetensors";
        open_all(files[0].path);
    } else if (kind == 1) { /* a header of whatever bytes, and what is left of them as data */
        size_t at = 0, header = size / 2;
        put_little(&at, header, 8);
        memcpy(made + 8, data, size);
        files[0].data = made;
        files[0].bytes = 8 + size;
        files[0].path = "f/x.safetensors";
        open_all(files[0].path);
    } else if (kind == 2) {
        files[0].path = "f/x.json";
        open_all(files[0].path);
    } else if (kind == 3) {
        dsi_json_sink sink = {(char *)made, sizeof made, size};
        memcpy(made, data, size);
        dsi_checkpoint_put_tail(&sink, dsi_crc32c(0, data, size));
        files[0].data = made;
        files[0].bytes = sink.length;
        files[0].path = "f/manifest.json";
        open_all("f");
    } else {
        if (kind == 5) {
            files[0].bytes = make_pt(data, size);
            files[0].data = made;
        }
        files[0].path = "f/mp_rank_00_model_states.pt";
        files[1] = files[0];
        files[1].path = "f/zero_pp_rank_0_mp_rank_00_optim_states.pt";
        open_all("f");
    }
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
