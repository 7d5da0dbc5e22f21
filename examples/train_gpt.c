/* train_gpt - a GPT trains on text; everything about training comes from a DeepSpeed JSON

     build/train_gpt --config examples/configs/stage0.json
     build/ds run -n 2 build/train_gpt --config examples/configs/zero3_nvme.json
     mpirun -np 2 build/train_gpt_mpi --config examples/configs/zero3_nvme.json

   The model is gpt.h, bytes are the tokens, ds_zero.h does the rest. Ranks come from whatever launcher set them.
   With EXAMPLE_GPU=1 (build/train_gpt_gpu) model and engine work on a GPU: gpt_gpu.cu and ds_kernels.cu. */
#define DS_IMPLEMENTATION
#include "ds_zero.h"
#include "ds_sparse.h"
#include "gpt.h"
#include "wire_sparse.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_INPUT = 1, EXIT_USAGE = 2, EXIT_ENVIRONMENT = 3, MAX_FILES = 1024, MOST_NUMBER = 100000000 };

typedef struct options {
    const char *config, *save, *resume, *svg, *summary;
    const char *data[MAX_FILES];
    int files;
    gpt_shape shape;
    long steps, save_every, eval_every, generate, timeout;
    unsigned long seed;
    bool quiet;
} options;

/* The text to train on, and the part of it that is held out for validation. */
typedef struct corpus {
    uint8_t *text, *held;
    size_t text_bytes, held_bytes;
} corpus;

typedef struct tensor_source {
    gpt_tensor tensor;
    size_t index;
    uint64_t seed;
} tensor_source;

typedef struct held_block {
    void *memory;
    size_t bytes;
} held_block;

typedef struct trainer {
    options o;
    ds_comm *comm;
    int rank, world;
    ds_config *config;
    ds_monitor *monitor;
    ds_zero *zero;
    gpt model;
    gpt_mixer mixer; /* with a sparse_attention section */
    ds_sparse *attention;
    ds_sparse_layout *layout;
    corpus data;
    ds_dtype dtype;
    size_t n_tensors;
    tensor_source *sources;
    void **slots;
    float *weights[GPT_BLOCK_TENSORS], *widened[3], *gradients[GPT_BLOCK_TENSORS + 3];
    uint16_t *narrow;
    ds_device device; /* with EXAMPLE_GPU */
    ds_optim_kernels kernels;
    ds_comm_kernels comm_kernels;
    ds_sparse_kernels attention_kernels;
    uint8_t *tokens; /* (B, T+1) */
    double *curve_step, *curve_loss, *held_step, *held_loss;
    size_t curve_count, held_count, curve_room;
    held_block *held_blocks; /* (held_count_now) of the engine's allocator */
    size_t held_count_now, held_room, held_bytes_now, held_bytes_peak;
    size_t held_mapped, held_resident; /* whole pages after the second step: as asked for, and as /proc has them */
} trainer;

static trainer t;

/*---- leaving --------------------------------------------------------------------------------------------------*/

static int exit_code(ds_status status) {
    return DS_IS_ENVIRONMENT(status) ? EXIT_ENVIRONMENT : EXIT_INPUT;
}

/* A signal finds no engine any more that it could tell. */
static void destroy_engine(void) {
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    ds_zero_destroy(t.zero);
}

/* Says why on the rank that knows, tells the others, and ends. */
static void fail(int code, const char *message) {
    bool news = !t.comm || !ds_comm_error(t.comm)->status || ds_comm_error(t.comm)->status != DS_ERR_PEER;
    if (isatty(2)) fprintf(stderr, "\n");
    if (t.rank == 0 || news) fprintf(stderr, "train_gpt: rank %d: %s\n", t.rank, message);
    if (t.comm) ds_comm_abort(t.comm, message);
    destroy_engine(); /* so that swap files and shared memory are gone before the exit status is seen */
    ds_comm_destroy(t.comm);
    _exit(code);
}

static void check(ds_status status) {
    if (status) fail(exit_code(status), ds_zero_error(t.zero)->message);
}

static volatile sig_atomic_t signals;
static void on_signal(int number) {
    if (signals++) _exit(128 + number);
    if (t.zero) ds_zero_stop(t.zero);
}

static void log_line(void *ctx, const char *header, int level, int id, const char *message) {
    bool wanted = level <= DS_LOG_WARNING || (id == 6 && strcmp(header, "ds_comm") == 0); /* comms_logger.verbose */
    (void)ctx;
    if (wanted) fprintf(stderr, "%s: rank %d: %s\n", header, t.rank, message);
}

static void comms_line(void *ctx, const char *text) {
    (void)ctx;
    if (t.rank == 0) fprintf(stderr, "%s\n", text);
}

/* The engine's memory is counted here, apart from its own account. Each block is a mapping of its own, so that the kernel
   can be asked which of its pages are in memory. */
static size_t whole_pages(size_t bytes) {
    return dsi_round_up(bytes, (size_t)sysconf(_SC_PAGESIZE));
}
static void *count_alloc(void *ctx, size_t bytes, size_t align) {
    void *memory;
    (void)ctx;
    if (align > (size_t)sysconf(_SC_PAGESIZE)) return NULL;
    if (t.held_count_now == t.held_room) {
        size_t room = 2 * t.held_room + 64;
        held_block *grown = (held_block *)realloc(t.held_blocks, room * sizeof *grown);
        if (!grown) return NULL;
        t.held_blocks = grown;
        t.held_room = room;
    }
    memory = mmap(NULL, whole_pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    t.held_blocks[t.held_count_now].memory = memory;
    t.held_blocks[t.held_count_now++].bytes = bytes;
    t.held_bytes_now += bytes;
    if (t.held_bytes_now > t.held_bytes_peak) t.held_bytes_peak = t.held_bytes_now;
    return memory;
}
static void count_release(void *ctx, void *memory, size_t bytes, size_t align) {
    size_t i = 0;
    (void)ctx;
    (void)align;
    while (t.held_blocks[i].memory != memory) i++;
    t.held_blocks[i] = t.held_blocks[--t.held_count_now];
    t.held_bytes_now -= bytes;
    munmap(memory, whole_pages(bytes));
}

/* Bytes of the engine's blocks, in whole pages, and of them those that /proc/self/pagemap says are in memory (bit 63) or
   swapped out (bit 62). */
static void mapped_bytes(size_t *mapped, size_t *resident) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    *mapped = *resident = 0;
    for (size_t i = 0; i < t.held_count_now; i++) {
        size_t first = (size_t)(uintptr_t)t.held_blocks[i].memory / page;
        size_t pages = whole_pages(t.held_blocks[i].bytes) / page;
        *mapped += pages * page;
        for (size_t k = 0; fd >= 0 && k < pages; k++) {
            uint64_t entry = 0;
            if (pread(fd, &entry, sizeof entry, (off_t)((first + k) * sizeof entry)) != sizeof entry) break;
            if (entry >> 62) *resident += page;
        }
    }
    if (fd >= 0) close(fd);
}

/* Bytes of this process in memory, from /proc; 0 where there is none. */
static size_t resident_bytes(void) {
    unsigned long pages = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    if (fscanf(f, "%lu %lu", &pages, &resident) != 2) resident = 0;
    fclose(f);
    return (size_t)resident * (size_t)sysconf(_SC_PAGESIZE);
}

/*---- arguments ------------------------------------------------------------------------------------------------*/

static void usage(FILE *to) {
    fputs("usage: train_gpt --config FILE [options]\n"
          "  --config FILE       ds_config.json: batch sizes, optimizer, precision, ZeRO, offload, monitors\n"
          "  --data FILE...      text to train on (default: this project's headers and documents)\n"
          "  --steps N           optimizer steps in all (default 100)\n"
          "  --layers N --heads N --channels N --context N   the model (default 5, 4, 128, 128)\n"
          "  --seed N            of initial weights and of sampling (default 1)\n"
          "  --save DIR          checkpoints here, at the end and when interrupted; --save-every N: each N steps too\n"
          "  --resume PATH       go on from the latest checkpoint there (ds or DeepSpeed), or with the weights of "
          "safetensors\n"
          "  --eval-every N      validation loss each N steps (default: only at the end)\n"
          "  --generate N        bytes of text to generate at the end (default 160)\n"
          "  --svg FILE          loss curve\n"
          "  --summary FILE      figures of the run as lines of name and value\n"
          "  --timeout SECONDS   longest wait for another rank (default 300)\n"
          "  --quiet             no progress\n"
          "Ranks come from the launcher: ds run, mpirun, torchrun, srun. SIGINT or SIGTERM: finish the step, save, "
          "end.\n",
          to);
}

static void usage_error(const char *what, const char *argument) {
    fprintf(stderr, "train_gpt: %s: '%s'\n", what, argument);
    usage(stderr);
    exit(EXIT_USAGE);
}

static long number(int argc, char **argv, int *i, long least) {
    char *end = NULL;
    long value;
    if (*i + 1 >= argc) usage_error("an argument lacks its value", argv[*i]);
    errno = 0;
    value = strtol(argv[++*i], &end, 10);
    if (*end || end == argv[*i] || errno || value < least || value > MOST_NUMBER)
        usage_error("not a number in range", argv[*i]);
    return value;
}

static const char *text(int argc, char **argv, int *i) {
    if (*i + 1 >= argc) usage_error("an argument lacks its value", argv[*i]);
    return argv[++*i];
}

static void parse_arguments(options *o, int argc, char **argv) {
    memset(o, 0, sizeof *o);
    o->shape.vocab = 256;
    o->shape.layers = 5;
    o->shape.heads = 4;
    o->shape.channels = o->shape.context = 128;
    o->steps = 100;
    o->seed = 1;
    o->generate = 160;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--help") == 0)
            usage(stdout), exit(0);
        else if (strcmp(a, "--config") == 0)
            o->config = text(argc, argv, &i);
        else if (strcmp(a, "--save") == 0)
            o->save = text(argc, argv, &i);
        else if (strcmp(a, "--resume") == 0)
            o->resume = text(argc, argv, &i);
        else if (strcmp(a, "--svg") == 0)
            o->svg = text(argc, argv, &i);
        else if (strcmp(a, "--summary") == 0)
            o->summary = text(argc, argv, &i);
        else if (strcmp(a, "--steps") == 0)
            o->steps = number(argc, argv, &i, 0);
        else if (strcmp(a, "--layers") == 0)
            o->shape.layers = (size_t)number(argc, argv, &i, 0);
        else if (strcmp(a, "--heads") == 0)
            o->shape.heads = (size_t)number(argc, argv, &i, 1);
        else if (strcmp(a, "--channels") == 0)
            o->shape.channels = (size_t)number(argc, argv, &i, 1);
        else if (strcmp(a, "--context") == 0)
            o->shape.context = (size_t)number(argc, argv, &i, 1);
        else if (strcmp(a, "--seed") == 0)
            o->seed = (unsigned long)number(argc, argv, &i, 0);
        else if (strcmp(a, "--save-every") == 0)
            o->save_every = number(argc, argv, &i, 1);
        else if (strcmp(a, "--eval-every") == 0)
            o->eval_every = number(argc, argv, &i, 1);
        else if (strcmp(a, "--generate") == 0)
            o->generate = number(argc, argv, &i, 0);
        else if (strcmp(a, "--timeout") == 0)
            o->timeout = number(argc, argv, &i, 1);
        else if (strcmp(a, "--quiet") == 0)
            o->quiet = true;
        else if (strcmp(a, "--data") == 0) {
            while (i + 1 < argc && strncmp(argv[i + 1], "--", 2) != 0) {
                if (o->files == MAX_FILES) usage_error("too many files", argv[i + 1]);
                o->data[o->files++] = argv[++i];
            }
            if (!o->files) usage_error("an argument lacks its value", a);
        } else if (strncmp(a, "--local_rank=", 13) == 0 || strncmp(a, "--local-rank=", 13) == 0)
            continue; /* launchers' */
        else
            usage_error("unknown argument", a);
    }
    if (!o->config) usage_error("--config is missing", "");
    if (o->shape.channels % o->shape.heads) usage_error("--channels is not a multiple of --heads", "");
    if (o->save_every && !o->save) usage_error("--save-every needs --save", "");
}

/*---- data -----------------------------------------------------------------------------------------------------*/

/* The whole file; NULL with errno when it cannot be read. */
static char *read_file(const char *path, size_t *bytes) {
    FILE *f = fopen(path, "rb");
    char *data = NULL;
    size_t room = 0, n = 0;
    *bytes = 0;
    if (!f) return NULL;
    for (;;) {
        if (n == room) {
            char *more = (char *)realloc(data, room = room ? 2 * room : 65536);
            if (!more) break;
            data = more;
        }
        size_t got = fread(data + n, 1, room - n, f);
        if (got == 0) break;
        n += got;
    }
    if (ferror(f)) {
        free(data);
        data = NULL;
    }
    fclose(f);
    *bytes = n;
    return data;
}

/* A twentieth of each file, from three fifths of it on, is held out: neither its head nor its end, which are often alike
   from file to file. */
static void add_text(corpus *c, const char *data, size_t bytes) {
    size_t held = bytes / 20, before = bytes / 5 * 3, after = bytes - before - held;
    c->text = (uint8_t *)realloc(c->text, c->text_bytes + before + after + 1);
    c->held = (uint8_t *)realloc(c->held, c->held_bytes + held + 1);
    if (!c->text || !c->held) fail(EXIT_ENVIRONMENT, "no memory for the corpus");
    memcpy(c->text + c->text_bytes, data, before);
    memcpy(c->text + c->text_bytes + before, data + before + held, after);
    memcpy(c->held + c->held_bytes, data + before, held);
    c->text_bytes += before + after;
    c->held_bytes += held;
}

/* This project's own text, found beside the program's folder or in the working one. */
static const char *const own_text[] = {"ds_config.h", "ds_zero.h",       "ds_optim.h",      "ds_offload.h",
                                       "ds_comm.h",   "ds_checkpoint.h", "ds_monitor.h",    "ds_sparse.h",
                                       "README.md",   "KEYS.md",         "CONTRIBUTING.md", "CHANGELOG.md"};

static void load_corpus(const char *program) {
    char message[512], path[4096];
    size_t window = t.o.shape.context + 1;
    const char *slash = strrchr(program, '/');
    size_t n_own = sizeof own_text / sizeof own_text[0];
    for (size_t i = 0; i < (t.o.files ? (size_t)t.o.files : n_own); i++) {
        size_t bytes;
        char *data;
        if (t.o.files)
            snprintf(path, sizeof path, "%s", t.o.data[i]);
        else
            snprintf(path, sizeof path, "%.*s%s%s", slash ? (int)(slash - program) : 0, program, slash ? "/../" : "",
                     own_text[i]);
        data = read_file(path, &bytes);
        if (!data && !t.o.files) data = read_file(own_text[i], &bytes);
        if (!data && !t.o.files) continue;
        if (!data) {
            snprintf(message, sizeof message, "--data: cannot read '%.300s': %s", path, strerror(errno));
            fail(EXIT_INPUT, message);
        }
        add_text(&t.data, data, bytes);
        free(data);
    }
    if (t.data.text_bytes < window || t.data.held_bytes < window) {
        snprintf(
            message, sizeof message,
            "--data: the corpus has %zu bytes to train on and %zu held out; one sequence takes %zu (--context + 1), so "
            "it must have at least %zu bytes",
            t.data.text_bytes, t.data.held_bytes, window, 20 * window);
        fail(EXIT_INPUT, message);
    }
}

/* Entropy of single bytes in nats: what a model that knows nothing but frequencies would reach. */
static double unigram_entropy(const uint8_t *text_, size_t bytes) {
    size_t count[256] = {0};
    double entropy = 0.0;
    for (size_t i = 0; i < bytes; i++) count[text_[i]]++;
    for (int i = 0; i < 256; i++)
        if (count[i]) entropy -= (double)count[i] / (double)bytes * log((double)count[i] / (double)bytes);
    return entropy;
}

/* Sample number s of the run, from its number alone: every rank, and a resumed run, draws the same. */
static size_t sample_at(uint64_t seed, uint64_t s, size_t choices) {
    uint64_t x = seed * 0xD1342543DE82EF95u + s * 0x9E3779B97F4A7C15u + 0x632BE59BD9B4E019u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (size_t)((x ^ (x >> 31)) % choices);
}

/* tokens: (B, T) inputs, then (B, T) targets, which are the inputs one byte on. */
static void take_window(const uint8_t *from, size_t row, size_t batch) {
    size_t time = t.o.shape.context;
    memcpy(t.tokens + row * time, from, time);
    memcpy(t.tokens + (batch + row) * time, from + 1, time);
}

/*---- the model under the engine -------------------------------------------------------------------------------*/

static void initial_values(void *ctx, size_t begin, size_t count, float *out) {
    tensor_source *s = (tensor_source *)ctx;
    for (size_t i = 0; i < count; i++) out[i] = gpt_initial(&s->tensor, s->seed, s->index, begin + i);
}

#if EXAMPLE_GPU
/* Fills the tables; ranks of a machine share its GPUs. A communicator of NCCL wants one for each rank. */
static void use_gpu(ds_comm_desc *comm) {
    static const char *const locals[] = {"LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                                         "SLURM_LOCALID"};
    const char *local = NULL, *ranks = getenv("LOCAL_WORLD_SIZE"), *why;
    int gpus = 0;
    char message[500];
    for (int i = 0; i < 4 && !local; i++) local = getenv(locals[i]);
    why = gpt_gpu_begin(local ? atoi(local) : 0, &gpus);
    snprintf(message, sizeof message, "no GPU: %.400s", why ? why : "");
    if (why) fail(EXIT_ENVIRONMENT, message);
    ds_cuda_device(&t.device);
    ds_cuda_optim_kernels(&t.kernels);
    ds_cuda_comm_kernels(&t.comm_kernels);
    ds_cuda_sparse_kernels(&t.attention_kernels);
    comm->device = t.device;
    comm->kernels = &t.comm_kernels;
    if (ranks && atoi(ranks) > gpus) comm->backend = "shm";
}
static void check_gpu(void) {
    if (gpt_gpu_failure()) fail(EXIT_ENVIRONMENT, gpt_gpu_failure());
}
static void cast(void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count) {
    if (t.kernels.cast(t.kernels.ctx, to, to_dtype, from, from_dtype, count, NULL))
        fail(EXIT_ENVIRONMENT, t.device.describe(t.device.ctx));
}
#else
static void check_gpu(void) {}
static void cast(void *to, ds_dtype to_dtype, const void *from, ds_dtype from_dtype, size_t count) {
    (void)ds_optim_cast(to, to_dtype, from, from_dtype, count);
}
#endif

/* Fetches a tensor; 16-bit weights are widened into `room`, since all of gpt.h computes in fp32. */
static const float *fetch(size_t index, float *room) {
    check(ds_zero_fetch(t.zero, index, NULL));
    if (t.dtype == DS_F32) return (const float *)t.slots[index];
    cast(room, DS_F32, t.slots[index], t.dtype, gpt_tensor_numel(&t.sources[index].tensor));
    return room;
}

static void release(size_t index) {
    check(ds_zero_release(t.zero, index));
}

static void give(size_t index, const float *gradient) {
    if (t.dtype == DS_F32) {
        check(ds_zero_grad(t.zero, index, gradient, NULL));
        return;
    }
    cast(t.narrow, t.dtype, gradient, DS_F32, gpt_tensor_numel(&t.sources[index].tensor));
    check(ds_zero_grad(t.zero, index, t.narrow, NULL));
}

static size_t block_first(size_t l) {
    return 2 + l * GPT_BLOCK_TENSORS;
}

static void forward(void) {
    const float *w[GPT_BLOCK_TENSORS], *wte, *wpe;
    size_t last = t.n_tensors - 2;
    wte = fetch(0, t.widened[0]);
    wpe = fetch(1, t.widened[1]);
    gpt_embed(&t.model, wte, wpe, t.tokens);
    release(0);
    release(1);
    for (size_t l = 0; l < t.o.shape.layers; l++) {
        for (size_t k = 0; k < GPT_BLOCK_TENSORS; k++) w[k] = fetch(block_first(l) + k, t.weights[k]);
        gpt_block_forward(&t.model, l, w);
        for (size_t k = 0; k < GPT_BLOCK_TENSORS; k++) release(block_first(l) + k);
    }
    w[0] = fetch(last, t.widened[1]);
    w[1] = fetch(last + 1, t.widened[2]);
    gpt_head(&t.model, w[0], w[1], fetch(0, t.widened[0]));
}

static void release_head(void) {
    release(0);
    release(t.n_tensors - 2);
    release(t.n_tensors - 1);
}

static void backward(void) {
    size_t last = t.n_tensors - 2;
    float **g = t.gradients;
    gpt_head_backward(&t.model, t.dtype == DS_F32 ? (const float *)t.slots[last] : t.widened[1],
                      t.dtype == DS_F32 ? (const float *)t.slots[0] : t.widened[0], g[13], g[14], g[12]);
    release_head();
    give(last + 1, g[14]);
    give(last, g[13]);
    give(0, g[12]); /* wte has a second contribution from the embedding */
    for (size_t l = t.o.shape.layers; l-- > 0;) {
        const float *w[GPT_BLOCK_TENSORS];
        for (size_t k = 0; k < GPT_BLOCK_TENSORS; k++) w[k] = fetch(block_first(l) + k, t.weights[k]);
        gpt_block_backward(&t.model, l, w, g);
        for (size_t k = GPT_BLOCK_TENSORS; k-- > 0;) {
            give(block_first(l) + k, g[k]);
            release(block_first(l) + k);
        }
    }
    gpt_embed_back(&t.model, g[12], g[13], t.tokens);
    give(1, g[13]);
    give(0, g[12]);
}

static void micro_batch(int micro) {
    size_t batch = t.config->train_micro_batch_size_per_gpu;
    uint64_t first =
        (uint64_t)ds_zero_samples(t.zero) + (uint64_t)micro * batch * (uint64_t)t.world + (uint64_t)t.rank * batch;
    for (size_t b = 0; b < batch; b++)
        take_window(t.data.text + sample_at(t.o.seed, first + b, t.data.text_bytes - t.o.shape.context), b, batch);
    check(ds_zero_begin(t.zero, DS_ZERO_TRAIN));
    forward();
    check(ds_zero_loss(t.zero,
                       gpt_loss(&t.model, t.tokens + batch * t.o.shape.context, (float)ds_zero_loss_scale(t.zero))));
    check_gpu();
    backward();
    check(ds_zero_end(t.zero));
}

/* Mean loss over windows spread evenly over the held-out text; the ranks share them. */
static double validate(void) {
    size_t batch = t.config->train_micro_batch_size_per_gpu, time = t.o.shape.context;
    size_t windows = (t.data.held_bytes - 1) / time, rounds;
    double sum[2] = {0.0, 0.0};
    if (windows > 64) windows = 64;
    rounds = (windows + batch * (size_t)t.world - 1) / (batch * (size_t)t.world);
    for (size_t r = 0; r < rounds; r++) {
        for (size_t b = 0; b < batch; b++) {
            size_t w = ((r * (size_t)t.world + (size_t)t.rank) * batch + b) % windows;
            take_window(t.data.held + w * ((t.data.held_bytes - 1 - time) / windows), b, batch);
        }
        check(ds_zero_begin(t.zero, DS_ZERO_EVALUATE));
        forward();
        sum[0] += gpt_loss(&t.model, t.tokens + batch * time, 1.0f);
        check_gpu();
        sum[1] += 1.0;
        release_head();
        check(ds_zero_end(t.zero));
    }
    if (ds_comm_all_reduce(t.comm, sum, sum, 2, DS_F64, DS_COMM_SUM))
        fail(EXIT_ENVIRONMENT, ds_comm_error(t.comm)->message);
    return sum[0] / sum[1];
}

/* A signal that some rank has seen, known to all: between steps only, where no step carries the flag. */
static bool stopped(void) {
    int32_t seen = signals != 0;
    if (ds_comm_all_reduce(t.comm, &seen, &seen, 1, DS_I32, DS_COMM_MAX))
        fail(EXIT_ENVIRONMENT, ds_comm_error(t.comm)->message);
    return seen != 0;
}

/* Every rank computes the same text, since at stage 3 all must fetch alike; rank 0 prints it. False: ended by a signal. */
static bool generate(void) {
    size_t time = t.o.shape.context, batch = t.model.batch, at = 0;
    uint64_t random = t.o.seed;
    bool ended = false;
    if (!t.o.generate) return true;
    if (t.rank == 0) printf("generated text:\n");
    memset(t.tokens, '\n', time);
    t.model.batch = 1;
    for (long n = 0; n < t.o.generate && !(ended = stopped()); n++) {
        float row[256]; /* the vocabulary: bytes */
        double sum = 0.0, pick, top;
        size_t next = 0;
        check(ds_zero_begin(t.zero, DS_ZERO_GENERATE));
        forward();
        release_head();
        check(ds_zero_end(t.zero));
        gpt_read(row, t.model.logits + at * t.o.shape.vocab, sizeof row);
        check_gpu();
        top = row[0];
        for (size_t j = 1; j < t.o.shape.vocab; j++) top = (double)row[j] > top ? (double)row[j] : top;
        for (size_t j = 0; j < t.o.shape.vocab; j++) sum += exp(((double)row[j] - top) / 0.8); /* temperature 0.8 */
        pick = (double)sample_at(t.o.seed + 1, random++, 1u << 30) / (double)(1u << 30) * sum;
        for (sum = 0.0; next + 1 < t.o.shape.vocab; next++)
            if ((sum += exp(((double)row[next] - top) / 0.8)) > pick) break;
        if (t.rank == 0) putchar((next >= ' ' && next < 127) || next == '\n' ? (int)next : '?');
        if (at + 1 < time)
            t.tokens[++at] = (uint8_t)next;
        else {
            memmove(t.tokens, t.tokens + 1, time - 1);
            t.tokens[time - 1] = (uint8_t)next;
        }
    }
    if (t.rank == 0) printf("\n");
    t.model.batch = batch;
    return !ended;
}

/*---- setting up -----------------------------------------------------------------------------------------------*/

static void print_problem(void *ctx, const ds_config_problem *p) {
    (void)ctx;
    char place[32] = "";
    if (p->line) snprintf(place, sizeof place, ":%d:%d", p->line, p->column);
    if (t.rank == 0)
        fprintf(stderr, "%s%s: %s: %s%s%s\n", t.o.config, place, p->level == DS_LOG_ERROR ? "error" : "warning",
                p->path, p->path[0] ? ": " : "", p->message);
}

static void load_config(void) {
    static const char *const own_keys[] = {"steps_per_print", "wall_clock_breakdown", "dump_state", "sparse_attention"};
    ds_config_options options_;
    ds_error error = {DS_OK, ""};
    size_t bytes;
    char message[600];
    char *text_ = read_file(t.o.config, &bytes);
    if (!text_) {
        snprintf(message, sizeof message, "--config: cannot read '%.300s': %s", t.o.config, strerror(errno));
        if (t.rank == 0) fail(EXIT_INPUT, message);
        _exit(EXIT_INPUT);
    }
    memset(&options_, 0, sizeof options_);
    options_.world_size = (size_t)t.world;
    options_.problem = print_problem;
    ds_status status = ds_config_parse(text_, bytes, &options_, &t.config, &error);
    free(text_);
    if (!status) {
        status = ds_zero_unclaimed(t.config, own_keys, 4, &error);
        if (status && t.rank == 0) fprintf(stderr, "%s: error: %s\n", t.o.config, error.message);
    }
    if (status) { /* every rank sees the same text; rank 0 has said what is wrong */
        ds_comm_destroy(t.comm);
        exit(exit_code(status));
    }
    t.dtype = ds_zero_model_dtype(t.config);
}

/* One call of the attention on a block of the model: q, k and v lie side by side in each token's 3C floats. */
static ds_sparse_io attention_io(const gpt *g, const gpt_block *a) {
    size_t c = g->shape.channels;
    ds_sparse_io io;
    memset(&io, 0, sizeof io);
    io.batch = g->batch;
    io.seq_len = g->time;
    io.strides.row = 3 * c;
    io.strides.head = c / g->shape.heads;
    io.strides.batch = g->time * 3 * c;
    io.o_strides.row = c;
    io.o_strides.head = c / g->shape.heads;
    io.o_strides.batch = g->time * c;
    io.q = a->qkv;
    io.k = a->qkv + c;
    io.v = a->qkv + 2 * c;
    io.out = a->mixed;
    io.lse = a->weights;
    return io;
}
static void attention_forward(void *ctx, const gpt *g, const gpt_block *a) {
    ds_sparse_io io = attention_io(g, a);
    ds_status status = ds_sparse_forward((ds_sparse *)ctx, &io);
    if (status) fail(exit_code(status), ds_sparse_error((ds_sparse *)ctx)->message);
}
static void attention_backward(void *ctx, const gpt *g, const gpt_block *a, const float *d_mixed) {
    ds_sparse_io io = attention_io(g, a);
    ds_status status;
    io.d_out = d_mixed;
    io.d_q = g->d_qkv;
    io.d_k = g->d_qkv + g->shape.channels;
    io.d_v = g->d_qkv + 2 * g->shape.channels;
    status = ds_sparse_backward((ds_sparse *)ctx, &io);
    if (status) fail(exit_code(status), ds_sparse_error((ds_sparse *)ctx)->message);
}

/* The sparse_attention section: the model attends by it, always causally. Random blocks start at --seed. */
static void make_attention(void) {
    ds_sparse_params params;
    ds_sparse_desc d;
    char message[600];
    ds_error error = {DS_OK, ""};
    ds_status status;
    if (!sparse_given(t.config)) return;
    status = wire_sparse(t.config, &params, &error);
    params.heads = t.o.shape.heads;
    params.seed = t.o.seed;
    if (!status)
        status = ds_sparse_layout_create(&params, ds_sparse_padded(t.o.shape.context, params.block), NULL, &t.layout,
                                         &error);
    memset(&d, 0, sizeof d);
    d.layout = t.layout;
    d.head_dim = t.o.shape.channels / t.o.shape.heads;
    d.causal = true;
    d.logger.log = log_line;
    if (EXAMPLE_GPU) d.kernels = &t.attention_kernels, d.device = &t.device;
    if (!status) status = ds_sparse_create(&d, &t.attention, &error);
    snprintf(message, sizeof message, "%s: sparse_attention: %.500s", t.o.config, error.message);
    if (status) fail(exit_code(status), message);
    t.mixer.forward = attention_forward;
    t.mixer.backward = attention_backward;
    t.mixer.ctx = t.attention;
}

/* A second's look at the swap folder, where there is one, before training starts: it can be written, and how fast. Not
   through the engine's allocator, since nothing of it stays. */
static void probe_folder(bool parameters) {
    ds_config_device device = parameters ? t.config->zero_optimization.offload_param.device
                                         : t.config->zero_optimization.offload_optimizer.device;
    ds_offload_desc d;
    ds_offload *store = NULL;
    ds_offload_stats found;
    ds_error error = {DS_OK, ""};
    ds_status status;
    if (device != DS_CONFIG_NVME) return;
    memset(&d, 0, sizeof d);
    d.probe = 1000000000;
    d.logger.log = log_line;
    status = ds_wire_offload(t.config, parameters, &d, &error);
    if (!status) status = ds_offload_create(&d, &store, &error);
    if (status) fail(exit_code(status), error.message);
    ds_offload_get_stats(store, &found);
    if (t.rank == 0 && !t.o.quiet)
        fprintf(stderr, "swap folder '%s': writes at %.2f GB/s, reads at %.2f GB/s\n", d.folder,
                1e-9 * (double)found.probe_write, 1e-9 * (double)found.probe_read);
    ds_offload_destroy(store);
}

static void make_engine(void) {
    ds_zero_desc d;
    ds_zero_param *params = (ds_zero_param *)calloc(t.n_tensors, sizeof *params);
    ds_error error = {DS_OK, ""};
    ds_status status;
    size_t block = 0, head, largest = 0;
    t.sources = (tensor_source *)calloc(t.n_tensors, sizeof *t.sources);
    t.slots = (void **)calloc(t.n_tensors, sizeof *t.slots);
    if (!params || !t.sources || !t.slots) fail(EXIT_ENVIRONMENT, "no memory for the parameters' table");
    for (size_t i = 0; i < t.n_tensors; i++) {
        gpt_tensor g = gpt_tensor_at(&t.o.shape, i);
        t.sources[i].tensor = g;
        t.sources[i].index = i;
        t.sources[i].seed = t.o.seed;
        params[i].name = t.sources[i].tensor.name;
        params[i].dims = g.dims;
        params[i].shape[0] = g.shape[0];
        params[i].shape[1] = g.shape[1];
        params[i].dtype = t.dtype;
        params[i].contributions = i == 0 ? 2 : 1;
        params[i].slot = &t.slots[i];
        params[i].init = initial_values;
        params[i].ctx = &t.sources[i];
        if (i >= 2 && i < 2 + GPT_BLOCK_TENSORS && t.o.shape.layers) block += gpt_tensor_numel(&g);
        if (gpt_tensor_numel(&g) > largest) largest = gpt_tensor_numel(&g);
    }
    head = (t.o.shape.vocab + t.o.shape.context + 2) * t.o.shape.channels;
    memset(&d, 0, sizeof d);
    d.config = t.config;
    d.comm = t.comm;
    if (EXAMPLE_GPU) d.device = &t.device, d.kernels = &t.kernels;
    d.params = params;
    d.n_params = t.n_tensors;
    d.largest_fetch = block > head ? block : head;
    d.event = ds_monitor_event;
    d.event_ctx = t.monitor;
    d.allocator.alloc = count_alloc;
    d.allocator.release = count_release;
    d.logger.log = log_line;
    if (!t.monitor) d.event = NULL;
    probe_folder(false);
    if (t.config->zero_optimization.offload_optimizer.device != DS_CONFIG_NVME) probe_folder(true);
    status = ds_zero_create(&d, &t.zero, &error);
    free(params);
    if (status) fail(exit_code(status), error.message);
    for (size_t k = 0; k < GPT_BLOCK_TENSORS + 3; k++) {
        size_t numel = k < GPT_BLOCK_TENSORS && t.o.shape.layers ? gpt_tensor_numel(&t.sources[2 + k].tensor) : largest;
        t.gradients[k] = (float *)gpt_alloc(numel * sizeof(float));
        if (!t.gradients[k]) fail(EXIT_ENVIRONMENT, "no memory for gradients");
        if (t.dtype == DS_F32) continue;
        if (k < GPT_BLOCK_TENSORS)
            t.weights[k] = (float *)gpt_alloc(numel * sizeof(float));
        else
            t.widened[k - GPT_BLOCK_TENSORS] = (float *)gpt_alloc(numel * sizeof(float));
        if (k < GPT_BLOCK_TENSORS ? !t.weights[k] : !t.widened[k - GPT_BLOCK_TENSORS])
            fail(EXIT_ENVIRONMENT, "no memory for weights");
    }
    t.narrow = (uint16_t *)gpt_alloc(largest * sizeof *t.narrow);
    if (!t.narrow) fail(EXIT_ENVIRONMENT, "no memory for gradients");
}

static void cannot_write(const char *option, const char *path) {
    char message[512];
    snprintf(message, sizeof message, "%s: cannot write '%.300s': %s", option, path, strerror(errno));
    fail(EXIT_ENVIRONMENT, message);
}

/* What a run writes at its end is tried before it begins. Nothing that was there changes, nothing new is left. */
static void try_outputs(void) {
    const char *files[2][2] = {{"--svg", t.o.svg}, {"--summary", t.o.summary}};
    for (int i = 0; i < 2 && t.rank == 0; i++) {
        bool there = files[i][1] && access(files[i][1], F_OK) == 0;
        FILE *f = files[i][1] ? fopen(files[i][1], "a") : NULL;
        if (files[i][1] && !f) cannot_write(files[i][0], files[i][1]);
        if (f) fclose(f);
        if (f && !there) unlink(files[i][1]);
    }
    if (t.rank == 0 && t.o.save) { /* the folder, or the nearest above it that is there */
        char folder[4096];
        struct stat found;
        snprintf(folder, sizeof folder, "%s", t.o.save);
        while (stat(folder, &found) && errno == ENOENT && strcmp(folder, ".") && strcmp(folder, "/")) {
            char *slash = strrchr(folder, '/');
            if (slash) *(slash + (slash == folder)) = 0;
            if (!slash) snprintf(folder, sizeof folder, ".");
        }
        errno = 0;
        if (!stat(folder, &found) && !S_ISDIR(found.st_mode)) errno = ENOTDIR;
        if (errno || access(folder, W_OK | X_OK)) cannot_write("--save", t.o.save);
    }
}

static void set_up(const char *program) {
    ds_comm_desc comm;
    ds_monitor_desc monitor;
    ds_error error = {DS_OK, ""};
    size_t batch;
    memset(&comm, 0, sizeof comm);
    comm.logger.log = log_line;
    comm.timeout = (int64_t)t.o.timeout * 1000000000;
#if EXAMPLE_GPU
    use_gpu(&comm);
#endif
    ds_status status = ds_comm_create(&comm, &t.comm, &error);
    if (status) fail(exit_code(status), error.message);
    t.rank = ds_comm_rank(t.comm);
    t.world = ds_comm_world(t.comm);
    try_outputs();
    load_config();
#if EXAMPLE_GPU
    if (t.dtype != DS_F32) gpt_gpu_fast();
#endif
    load_corpus(program);
    t.n_tensors = gpt_tensor_count(&t.o.shape);
    batch = t.config->train_micro_batch_size_per_gpu;
    make_attention();
    if (!gpt_create(&t.model, &t.o.shape, batch, t.o.shape.context, t.attention ? &t.mixer : NULL))
        fail(EXIT_ENVIRONMENT, "no memory for the model's activations");
    t.tokens = (uint8_t *)calloc(2 * batch, t.o.shape.context);
    t.curve_room = (size_t)t.o.steps + 2;
    t.curve_step = (double *)calloc(4 * t.curve_room, sizeof(double));
    if (!t.tokens || !t.curve_step) fail(EXIT_ENVIRONMENT, "no memory");
    t.curve_loss = t.curve_step + t.curve_room;
    t.held_step = t.curve_loss + t.curve_room;
    t.held_loss = t.held_step + t.curve_room;
    memset(&monitor, 0, sizeof monitor);
    monitor.rank = t.rank;
    monitor.logger.log = log_line;
    status = ds_wire_monitor(t.config, &monitor, &error);
    if (!status && (monitor.csv.enabled || monitor.tensorboard.enabled))
        status = ds_monitor_create(&monitor, &t.monitor, &error);
    if (status) fail(exit_code(status), error.message);
    make_engine();
}

/*---- what people see ------------------------------------------------------------------------------------------*/

static double seconds(void) {
    return (double)dsi_now(NULL) * 1e-9;
}

static void show_progress(const ds_zero_report *r, double elapsed, long done, bool last) {
    bool live = isatty(2) && (!getenv("TERM") || strcmp(getenv("TERM"), "dumb") != 0);
    int64_t every = t.config->steps_per_print ? (int64_t)t.config->steps_per_print : INT64_MAX;
    struct winsize size;
    ds_monitor_progress p;
    char line[512];
    if (t.rank || t.o.quiet || (!live && !last && r->step % every)) return;
    memset(&p, 0, sizeof p);
    p.step = r->step;
    p.steps = t.o.steps;
    p.loss = r->loss;
    p.lr = r->lr;
    p.grad_norm = r->grad_norm;
    p.resident_bytes = resident_bytes();
    p.elapsed = (int64_t)(elapsed * 1e9);
    p.tokens_per_second =
        elapsed > 0 ? (double)done * (double)t.config->train_batch_size * (double)t.o.shape.context / elapsed : 0;
    if (ioctl(2, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) size.ws_col = 100;
    ds_monitor_progress_line(&p, live, size.ws_col, line, sizeof line);
    fputs(line, stderr);
    if (live && last) fputc('\n', stderr);
    if (t.config->wall_clock_breakdown && r->step % every == 0)
        fprintf(stderr, "%sstep %lld: forward %.2f ms, backward %.2f ms, of it reduction %.2f ms, step %.2f ms\n",
                live ? "\n" : "", (long long)r->step, (double)r->ns_forward * 1e-6, (double)r->ns_backward * 1e-6,
                (double)r->ns_reduce * 1e-6, (double)r->ns_step * 1e-6);
    fflush(stderr);
}

static void dump_state(void) {
    size_t bytes = ds_config_print(t.config, NULL, 0);
    char *text_ = (char *)malloc(bytes + 1);
    if (!t.config->dump_state || t.rank || !text_) {
        free(text_);
        return;
    }
    ds_config_print(t.config, text_, bytes + 1);
    fputs(text_, stderr);
    free(text_);
}

static void write_summary(double step_seconds, double loss, double held, double unigram) {
    ds_zero_stats s;
    FILE *f;
    size_t states = 0, work = 0, disk = 0;
    if (t.rank || !t.o.summary) return;
    ds_zero_get_stats(t.zero, &s);
    for (int c = 0; c < DS_ZERO_CLASSES; c++) {
        size_t memory = s.peak.bytes[c][DS_ZERO_DEVICE] + s.peak.bytes[c][DS_ZERO_HOST];
        if (c <= DS_ZERO_STATES)
            states += memory;
        else
            work += memory;
        disk += s.peak.bytes[c][DS_ZERO_DISK];
    }
    f = fopen(t.o.summary, "w");
    if (!f) cannot_write("--summary", t.o.summary);
    fprintf(f, "world %d\nparameters %zu\nsteps %lld\n", t.world, gpt_parameters(&t.o.shape),
            (long long)ds_zero_steps(t.zero));
    fprintf(f, "state_bytes %zu\nwork_bytes %zu\ndisk_bytes %zu\nallocator_peak %zu\n", states, work, disk,
            t.held_bytes_peak);
    fprintf(f, "blocks %zu\nmapped_bytes %zu\nresident_bytes %zu\n", t.held_count_now, t.held_mapped, t.held_resident);
    fprintf(f, "step_ms %.3f\nloss %.17g\nloss_hex %a\nvalidation_loss %.6f\nunigram_entropy %.6f\n",
            step_seconds * 1e3, loss, loss, held, unigram);
    fprintf(f, "gathered_peak %zu\nlive_window %zu\n", s.gathered_elements_peak,
            t.config->zero_optimization.stage3_max_live_parameters);
    fprintf(f, "requests %llu\ndirect %d\nengine %s\n", (unsigned long long)s.swap.requests, s.swap.direct,
            s.swap.requests ? ds_offload_engine_name(s.swap.engine) : "none");
    if (fclose(f)) cannot_write("--summary", t.o.summary);
}

static void write_curve(void) {
    ds_monitor_curve c[3];
    ds_error error = {DS_OK, ""};
    double *smooth = (double *)malloc((t.curve_count + 1) * sizeof *smooth);
    memset(c, 0, sizeof c);
    if (t.rank || !t.o.svg || !smooth) {
        free(smooth);
        return;
    }
    double average = 0.0, weight = 0.0; /* exponential, without a bias towards its start */
    for (size_t i = 0; i < t.curve_count; i++) {
        average = 0.9 * average + 0.1 * t.curve_loss[i];
        weight = 0.9 * weight + 0.1;
        smooth[i] = average / weight;
    }
    c[0].label = "training loss, smoothed";
    c[0].x = t.curve_step;
    c[0].y = smooth;
    c[0].count = t.curve_count;
    c[1].label = "validation loss";
    c[1].x = t.held_step;
    c[1].y = t.held_loss;
    c[1].count = t.held_count;
    c[1].marks = true;
    c[2].label = "training loss";
    c[2].x = t.curve_step;
    c[2].y = t.curve_loss;
    c[2].count = t.curve_count;
    c[2].faint = true;
    c[2].colour = 1;
    ds_status status = ds_monitor_svg(t.o.svg, "GPT on text", "step", "loss (nats per byte)", c, 3, NULL, &error);
    free(smooth);
    if (status) fail(exit_code(status), error.message);
}

/*---- the loop -------------------------------------------------------------------------------------------------*/

static void save(void) {
    check(ds_zero_save(t.zero, t.o.save, NULL, &t.o.shape, sizeof t.o.shape));
}

static void resume(void) {
    char message[508];
    const void *client;
    gpt_shape saved;
    size_t bytes;
    if (!t.o.resume) return;
    if (ds_zero_load(t.zero, t.o.resume, NULL, &client, &bytes)) { /* damage in a file is wrong input */
        ds_status status = ds_zero_error(t.zero)->status;
        fail(status == DS_ERR_CORRUPT ? EXIT_INPUT : exit_code(status), ds_zero_error(t.zero)->message);
    }
    saved = t.o.shape; /* a checkpoint that is not ours does not tell */
    if (client) memset(&saved, 0, sizeof saved);
    if (client && bytes == sizeof saved) memcpy(&saved, client, sizeof saved);
    if (memcmp(&saved, &t.o.shape, sizeof saved) != 0) { /* tensors tell all but the number of heads */
        snprintf(message, sizeof message,
                 "--resume: '%.300s' holds another model: %zu layers of %zu heads and %zu channels, context %zu; here "
                 "%zu, %zu, %zu, %zu",
                 t.o.resume, saved.layers, saved.heads, saved.channels, saved.context, t.o.shape.layers,
                 t.o.shape.heads, t.o.shape.channels, t.o.shape.context);
        fail(EXIT_INPUT, message);
    }
    if (t.rank == 0 && !t.o.quiet) fprintf(stderr, "resumed at step %lld\n", (long long)ds_zero_steps(t.zero));
}

static void held_out(double *held) {
    *held = validate();
    if (t.held_count < t.curve_room) {
        t.held_step[t.held_count] = (double)ds_zero_steps(t.zero);
        t.held_loss[t.held_count++] = *held;
    }
}

/* OpenBLAS chooses its kernels by the processor's model number when it is loaded, and takes those of 2004 for a processor
   that is newer than itself. Then start again and say which to take. Its threads stay off: a rank is a core. */
static void choose_blas(char **argv) {
#if EXAMPLE_USE_CBLAS && defined(__x86_64__)
    const char *core = openblas_get_corename();
    char self[4096];
    ssize_t length;
    if (!getenv("OPENBLAS_CORETYPE") && __builtin_cpu_supports("avx2") &&
        (!strcmp(core, "Prescott") || !strcmp(core, "Core2"))) {
        setenv("OPENBLAS_CORETYPE", __builtin_cpu_supports("avx512f") ? "SkylakeX" : "Haswell", 1);
        setenv("OPENBLAS_NUM_THREADS", "1", 1);
        if ((length = readlink("/proc/self/exe", self, sizeof self - 1)) > 0) {
            self[length] = 0;
            execv(self, argv); /* when that fails, training is only slower */
        }
    }
    openblas_set_num_threads(1);
#else
    (void)argv;
#endif
}

int main(int argc, char **argv) {
    ds_zero_report r;
    double start, measured = 0.0, held = 0.0, unigram;
    long done = 0;
    struct sigaction action;
    choose_blas(argv);
    parse_arguments(&t.o, argc, argv);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error of the write, with a name */
    set_up(argv[0]);
    if (signals) ds_zero_stop(t.zero); /* one that came before there was an engine to tell */
    unigram = unigram_entropy(t.data.text, t.data.text_bytes);
    dump_state();
    if (t.rank == 0 && !t.o.quiet)
        fprintf(
            stderr,
            "GPT of %zu parameters, %d rank%s (%s%s), ZeRO stage %d, %zu bytes of text, unigram entropy %.3f nats\n",
            gpt_parameters(&t.o.shape), t.world, t.world > 1 ? "s" : "", ds_comm_backend(t.comm),
            EXAMPLE_GPU ? ", on a GPU" : "", (int)t.config->zero_optimization.stage, t.data.text_bytes, unigram);
    resume();
    memset(&r, 0, sizeof r);
    start = seconds();
    while (ds_zero_steps(t.zero) < t.o.steps) {
        double step_start = seconds();
        for (int i = 0; i < (int)t.config->gradient_accumulation_steps; i++) micro_batch(i);
        check(ds_zero_step(t.zero, &r));
        if (done++ > 0) measured += seconds() - step_start; /* the first step touches memory for the first time */
        if (done == 2 && t.o.summary) mapped_bytes(&t.held_mapped, &t.held_resident);
        t.curve_step[t.curve_count] = (double)r.step;
        t.curve_loss[t.curve_count++] = r.loss;
        show_progress(&r, seconds() - start, done, r.stop || r.step == t.o.steps);
        if (!isfinite(r.loss) && !(r.skipped && t.config->fp16.enabled)) { /* fp16: a smaller loss scale may do */
            char text[160];
            snprintf(text, sizeof text,
                     "step %lld: the loss is %g and cannot come back; a smaller lr, a warm-up or clipping may help",
                     (long long)r.step, r.loss);
            fail(exit_code(DS_ERR_NUMERIC), text);
        }
        if (t.o.eval_every && r.step % t.o.eval_every == 0) held_out(&held);
        if (r.stop) break;
        if (t.o.save_every && r.step % t.o.save_every == 0 && r.step < t.o.steps) save();
    }
    if (t.o.save && (done || !t.o.resume || strcmp(t.o.save, t.o.resume) != 0)) save();
    check(ds_zero_save_finish(t.zero));
    if (t.config->comms_logger.enabled) check(ds_zero_comm_summary(t.zero, comms_line, NULL));
    if (!r.stop) {
        if (!t.o.eval_every || t.o.steps % t.o.eval_every || !done) held_out(&held);
        if (!done) r.loss = (double)NAN; /* no step was left to take */
        if (t.rank == 0 && !t.o.quiet && !done)
            printf("no step to take: at step %lld of %ld; validation loss %.4f, unigram entropy %.4f nats\n",
                   (long long)ds_zero_steps(t.zero), t.o.steps, held, unigram);
        else if (t.rank == 0 && !t.o.quiet)
            printf("final loss %.17g (%a), validation loss %.4f, unigram entropy %.4f nats\n", r.loss, r.loss, held,
                   unigram);
        r.stop = !generate();
        write_summary(done > 1 ? measured / (double)(done - 1) : 0.0, r.loss, held, unigram);
        write_curve();
    }
    if (r.stop && t.rank == 0)
        fprintf(stderr, "stopped by a signal after step %lld%s%s\n", (long long)ds_zero_steps(t.zero),
                t.o.save ? "; saved in " : "; nothing saved (no --save)", t.o.save ? t.o.save : "");
    ds_monitor_destroy(t.monitor);
    destroy_engine();
    ds_comm_destroy(t.comm);
    ds_config_free(t.config);
    gpt_destroy(&t.model);
    ds_sparse_destroy(t.attention);
    ds_sparse_layout_destroy(t.layout);
    for (int k = 0; k < GPT_BLOCK_TENSORS + 3; k++) gpt_free(t.gradients[k]);
    for (int k = 0; k < GPT_BLOCK_TENSORS; k++) gpt_free(t.weights[k]);
    for (int k = 0; k < 3; k++) gpt_free(t.widened[k]);
    gpt_free(t.narrow);
    free(t.sources);
    free(t.slots);
    free(t.tokens);
    free(t.curve_step);
    free(t.data.text);
    free(t.data.held);
    free(t.held_blocks);
    return fflush(stdout) ? EXIT_ENVIRONMENT : 0;
}
