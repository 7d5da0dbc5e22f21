/* ds_checkpoint_fuzz.c - any bytes at all, as a safetensors file, an index, a manifest or a shard under one (with the
   checksums put right) and DeepSpeed .pt files (with their checksums put right). What opens must read without a fault, and
   what a pickle gave too. Files live in memory behind desc.files; where the bytes are one file of several, the others are
   sound, so that the reader goes on. Built by ds_checkpoint_fuzz.sh with libFuzzer; with -DREPLAY as a program that runs
   the files of its arguments. The first byte chooses the kind. */
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

/* The reader's block of a MiB is one place: a new mapping for each run would take longer than the run. The rest comes from
   malloc, so that ASan sees every byte beyond it. */
static char block[(1 << 20) + 4096];
static bool block_used;
static void *m_alloc(void *ctx, size_t bytes, size_t align) {
    (void)ctx, (void)align;
    if (bytes < 1 << 20 || bytes > sizeof block || block_used) return malloc(bytes);
    block_used = true;
    return block;
}
static void m_release(void *ctx, void *memory, size_t bytes, size_t align) {
    (void)ctx, (void)bytes, (void)align;
    if (memory == block)
        block_used = false;
    else
        free(memory);
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
    d.allocator.alloc = m_alloc;
    d.allocator.release = m_release;
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

static unsigned char made[2][1 << 18];
static void put_little(unsigned char *to, size_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) to[(*at)++] = i < 8 ? (unsigned char)(value >> 8 * i) : 0;
}
/* A header of whatever bytes, and what is left of them as data. */
static size_t make_safetensors(unsigned char *to, const unsigned char *data, size_t size) {
    size_t at = 0;
    put_little(to, &at, size / 2, 8);
    memcpy(to + 8, data, size);
    return 8 + size;
}
static size_t put_manifest(unsigned char *to, size_t size) {
    dsi_json_sink sink = {(char *)to, sizeof made[0], size};
    dsi_checkpoint_put_tail(&sink, dsi_crc32c(0, to, size));
    return sink.length;
}
/* A zip file of a pickle and storages 0 to 9 as torch writes it; the storages are the same 1,024 bytes. */
#define STORAGES 10
static size_t make_pt(unsigned char *to, const unsigned char *pickle, size_t bytes) {
    static unsigned char storage[1024];
    static uint32_t storage_sum;
    const uint32_t pickle_sum = dsi_checkpoint_crc32(0, (const char *)pickle, bytes);
    size_t at = 0, start[2], directory, end;
    if (!storage_sum) storage_sum = dsi_checkpoint_crc32(0, (const char *)storage, sizeof storage);
    for (int k = 0; k < 2 + 1 + STORAGES; k++) { /* two local records, then those of the directory */
        const bool local = k < 2, storages = local ? k == 1 : k > 2;
        const size_t n = storages ? sizeof storage : bytes;
        char name[] = "a/data/0";
        const char *named = storages ? name : "a/data.pkl";
        if (storages && !local) name[7] = (char)('0' + k - 3);
        if (local) start[k] = at;
        if (k == 2) directory = at;
        put_little(to, &at, local ? 0x04034B50u : 0x02014B50u, 4);
        put_little(to, &at, 0, local ? 2 : 4);
        put_little(to, &at, 0, 8); /* flags, method, time, date */
        put_little(to, &at, storages ? storage_sum : pickle_sum, 4);
        put_little(to, &at, n, 4);
        put_little(to, &at, n, 4);
        put_little(to, &at, strlen(named), 2);
        put_little(to, &at, 0, local ? 2 : 12);
        if (!local) put_little(to, &at, start[storages], 4);
        memcpy(to + at, named, strlen(named));
        at += strlen(named);
        if (local) {
            memcpy(to + at, storages ? storage : pickle, n);
            at += n;
        }
    }
    end = at;
    put_little(to, &at, 0x06054B50u, 4);
    put_little(to, &at, 0, 4);
    put_little(to, &at, 1 + STORAGES, 2);
    put_little(to, &at, 1 + STORAGES, 2);
    put_little(to, &at, end - directory, 4);
    put_little(to, &at, directory, 4);
    put_little(to, &at, 0, 2);
    return at;
}

static void set_file(int i, const char *path, const unsigned char *data, size_t bytes) {
    files[i].path = path;
    files[i].data = data;
    files[i].bytes = bytes;
}

/* A sound file of one tensor, `a`, for an index or a manifest. */
static const unsigned char sound[] =
    "\x38\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}   xy";
#define SOUND (sizeof sound - 1)

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    size_t n;
    int kind;
    if (size < 3 || size > sizeof made[0] - 4096) return 0;
    kind = data[0] % 9;
    data++;
    size--;
    memset(files, 0, sizeof files);
    switch (kind) {
    case 0: set_file(0, "f/x.safetensors", data, size); break;
    case 1: set_file(0, "f/x.safetensors", made[0], make_safetensors(made[0], data, size)); break;
    case 2:
        set_file(0, "f/x.json", data, size);
        set_file(1, "f/x.safetensors", sound, SOUND);
        break;
    case 3: /* a manifest with a sound shard */
        memcpy(made[0], data, size);
        set_file(0, "f/manifest.json", made[0], put_manifest(made[0], size));
        set_file(1, "f/rank-00000.safetensors", sound, SOUND);
        break;
    case 4: /* a .pt file of whatever bytes, as model and as optimizer */
        set_file(0, "f/mp_rank_00_model_states.pt", data, size);
        set_file(1, "f/zero_pp_rank_0_mp_rank_00_optim_states.pt", data, size);
        break;
    case 5: /* the same with a pickle of whatever bytes */
        n = make_pt(made[0], data, size);
        set_file(0, "f/mp_rank_00_model_states.pt", made[0], n);
        set_file(1, "f/zero_pp_rank_0_mp_rank_00_optim_states.pt", made[0], n);
        break;
    case 6: /* a shard under a sound manifest */
        n = make_safetensors(made[1], data, size);
        set_file(1, "f/rank-00000.safetensors", made[1], n);
        n = (size_t)snprintf(
            (char *)made[0], sizeof made[0],
            "{\n\"format\": \"ds checkpoint 1\",\n\"tag\": \"t\",\n\"sequence\": 1,\n\"node_local\": %s,\n"
            "\"shards\": [\n{\"file\": \"rank-00000.safetensors\", \"bytes\": %zu, \"header_crc32c\": "
            "\"%08x\"}\n],\n\"values\": {}",
            data[size - 1] & 1 ? "true" : "false", n, (unsigned)dsi_crc32c(0, made[1], 8 + size / 2));
        set_file(0, "f/manifest.json", made[0], put_manifest(made[0], n));
        break;
    default: /* two pickles: a model's, and an optimizer's or a universal checkpoint's */
        n = (size_t)(data[0] | data[1] << 8);
        data += 2;
        size -= 2;
        if (n > size) n = size;
        set_file(0, "f/mp_rank_00_model_states.pt", made[0], make_pt(made[0], data, n));
        set_file(1, kind == 7 ? "f/zero_pp_rank_0_mp_rank_00_optim_states.pt" : "f/zero/w/fp32.pt", made[1],
                 make_pt(made[1], data + n, size - n));
    }
    open_all(kind == 2 ? "f/x.json" : kind <= 1 ? "f/x.safetensors" : "f");
    return 0;
}

#ifdef REPLAY
int main(int argc, char **argv) {
    static unsigned char data[1 << 18];
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
