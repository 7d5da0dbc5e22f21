/* bench_zero.h - ds bench zero: what the engine adds to a training step, each figure beside what it is measured against in
   the same run. Part of ds.c, which has the arguments and `seconds`. */
#ifndef BENCH_ZERO_H
#define BENCH_ZERO_H
#include <pthread.h>
#include <sys/mman.h>

/* ---- a model of equal layers: a pass computes for a while at each, forward and backward ---- */

enum { ZB_LAYERS = 8, ZB_ROUNDS = 8, ZB_WARM = 2 };
typedef struct zb_case {
    const char *zero;   /* the zero_optimization section */
    size_t numel, work; /* of a layer: elements; units of computation, done twice as often backward */
    size_t layers;
    int world;
    ds_comm_transport *transports; /* (world); NULL: shared memory between processes */
    bool alone;                    /* computes only */
    const char *ds;                /* the ds section; NULL: empty */
} zb_case;

/* Multiplications that no compiler leaves out and no other thread can do: a unit takes about a microsecond. */
static void zb_work(size_t units) {
    volatile float kept = 1.0f;
    float x[8];
    for (int k = 0; k < 8; k++) x[k] = kept;
    for (size_t u = 0; u < units; u++)
        for (int i = 0; i < 250; i++)
            for (int k = 0; k < 8; k++) x[k] = x[k] * 0.999f + 0.001f;
    for (int k = 0; k < 8; k++) kept = kept + x[k];
}

static double zb_compute(const zb_case *c) {
    double best = 1e9;
    for (int round = 0; round < ZB_ROUNDS; round++) {
        double start = seconds();
        for (size_t i = 0; i < c->layers; i++) zb_work(3 * c->work);
        if (seconds() - start < best) best = seconds() - start;
    }
    return best;
}

/* Bytes that a step reads from and writes to the disk. */
typedef struct zb_moved {
    size_t read, written;
} zb_moved;
/* One rank's training; the shortest step in seconds, negative when it failed. `moved` may be NULL. */
static double zb_train(const zb_case *c, int rank, ds_comm *comm, zb_moved *moved) {
    float *gradient;
    char text[1024], names[64][32];
    double best = 1e9;
    void *slots[64];
    ds_zero_param params[64];
    ds_error error = {DS_OK, ""};
    ds_config_options o;
    ds_config *config = NULL;
    ds_zero_desc d;
    ds_zero *z = NULL;
    ds_zero_stats before, after;
    bool good = true;
    memset(&before, 0, sizeof before);
    memset(params, 0, sizeof params);
    memset(&o, 0, sizeof o);
    memset(&d, 0, sizeof d);
    o.world_size = (size_t)c->world;
    snprintf(
        text, sizeof text,
        "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"AdamW\"}, \"zero_optimization\": {%s}, "
        "\"ds\": {%s}}",
        c->zero, c->ds ? c->ds : "");
    for (size_t i = 0; i < c->layers; i++) {
        snprintf(names[i], sizeof names[i], "layer%zu", i);
        params[i].name = names[i];
        params[i].dims = 1;
        params[i].shape[0] = c->numel;
        params[i].slot = &slots[i];
    }
    d.params = params;
    d.n_params = c->layers;
    d.comm = comm;
    gradient = (float *)calloc(c->numel, sizeof *gradient);
    if (ds_config_parse(text, strlen(text), &o, &config, &error)) good = false;
    d.config = config;
    if (!good || ds_zero_create(&d, &z, &error)) good = false;
    for (int round = 0; round < ZB_ROUNDS && good; round++) {
        double start = seconds();
        if (round == ZB_WARM) ds_zero_get_stats(z, &before);
        good = !ds_zero_begin(z, DS_ZERO_TRAIN);
        for (size_t i = 0; i < c->layers && good; i++) {
            good = !ds_zero_fetch(z, i, NULL);
            zb_work(c->work);
            good = good && !ds_zero_release(z, i);
        }
        for (size_t i = c->layers; i-- > 0 && good;) {
            good = !ds_zero_fetch(z, i, NULL);
            zb_work(2 * c->work);
            good = good && !ds_zero_grad(z, i, gradient, NULL) && !ds_zero_release(z, i);
        }
        good = good && !ds_zero_end(z) && !ds_zero_step(z, NULL);
        if (round >= ZB_WARM && seconds() - start < best) best = seconds() - start;
    }
    if (!good) fprintf(stderr, "ds bench zero: rank %d: %s\n", rank, z ? ds_zero_error(z)->message : error.message);
    if (good && moved) {
        ds_zero_get_stats(z, &after);
        moved->read = (size_t)(after.swap.bytes_read - before.swap.bytes_read) / (ZB_ROUNDS - ZB_WARM);
        moved->written = (size_t)(after.swap.bytes_written - before.swap.bytes_written) / (ZB_ROUNDS - ZB_WARM);
    }
    ds_zero_destroy(z);
    ds_config_free(config);
    free(gradient);
    return good ? best : -1.0;
}

static double zb_rank(const zb_case *c, int rank, const char *run) {
    ds_error error = {DS_OK, ""};
    ds_comm_desc d;
    ds_comm *comm = NULL;
    double took;
    if (c->alone) return zb_compute(c);
    memset(&d, 0, sizeof d);
    d.backend = c->transports ? "user" : "shm";
    if (c->transports) d.transport = &c->transports[rank];
    d.world = d.local_world = c->world;
    d.rank = rank;
    d.run_id = run;
    if (c->world > 1 && ds_comm_create(&d, &comm, &error)) {
        fprintf(stderr, "ds bench zero: %s\n", error.message);
        return -1.0;
    }
    took = zb_train(c, rank, comm, NULL);
    ds_comm_destroy(comm);
    return took;
}

/* The slowest rank's step: ranks are processes. */
static double zb_run(const zb_case *c) {
    static int runs;
    char run[48];
    double worst = 0.0;
    double *took;
    if (c->world == 1) return zb_rank(c, 0, "");
    took = (double *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snprintf(run, sizeof run, "bench-%ld-%d", (long)getpid(), runs++);
    fflush(stdout);
    for (int r = 0; r < c->world; r++)
        if (fork() == 0) {
            took[r] = zb_rank(c, r, run);
            _exit(0);
        }
    for (int r = 0; r < c->world; r++) wait(NULL);
    for (int r = 0; r < c->world; r++) worst = took[r] <= 0 || worst < 0 ? -1.0 : took[r] > worst ? took[r] : worst;
    munmap(took, 4096);
    return worst;
}

/* As many processes as ranks, with nothing between them. */
static double zb_compute_alone(const zb_case *c) {
    zb_case alone = *c;
    alone.alone = true;
    return zb_run(&alone);
}

/* ---- a link of a given speed between two threads ---- */

typedef struct zb_letter {
    struct zb_letter *next;
    const void *data; /* stays where it is until the receiver has copied it, as a network card would */
    unsigned channel;
    int to;
    bool taken;
} zb_letter;
typedef struct zb_link {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    zb_letter *first;
    double rate; /* bytes in a second, each way */
} zb_link;
typedef struct zb_end {
    zb_link *link;
    int rank;
    double free_at; /* when the wire to here has carried all so far */
} zb_end;

static void zb_receive(zb_link *l, int to, unsigned channel, void *data, size_t bytes) {
    zb_letter **at = &l->first, *letter;
    while (*at == NULL || (*at)->to != to || (*at)->channel != channel)
        if (*at)
            at = &(*at)->next;
        else {
            pthread_cond_wait(&l->changed, &l->lock);
            at = &l->first;
        }
    letter = *at;
    *at = letter->next;
    memcpy(data, letter->data, bytes);
    letter->taken = true;
    pthread_cond_broadcast(&l->changed);
}

static ds_status zb_exchange(void *ctx, unsigned channel, ds_comm_part *parts, int n, int64_t deadline,
                             ds_error *error) {
    zb_end *e = (zb_end *)ctx;
    zb_link *l = e->link;
    zb_letter sent[2], **last = &l->first; /* two ranks: one peer, or none */
    size_t bytes = 0;
    (void)deadline, (void)error;
    pthread_mutex_lock(&l->lock);
    while (*last) last = &(*last)->next;
    for (int i = 0; i < n; i++) {
        sent[i].taken = parts[i].send_bytes == 0;
        if (sent[i].taken) continue;
        sent[i].next = NULL;
        sent[i].data = parts[i].send;
        sent[i].channel = channel;
        sent[i].to = parts[i].peer;
        *last = &sent[i];
        last = &sent[i].next;
    }
    pthread_cond_broadcast(&l->changed);
    for (int i = 0; i < n; i++) {
        if (parts[i].receive_bytes) zb_receive(l, e->rank, channel, parts[i].receive, parts[i].receive_bytes);
        bytes += parts[i].receive_bytes;
    }
    for (int i = 0; i < n; i++) {
        while (!sent[i].taken) pthread_cond_wait(&l->changed, &l->lock);
        parts[i].done = true;
    }
    pthread_mutex_unlock(&l->lock);
    if (e->free_at < seconds()) e->free_at = seconds();
    e->free_at += (double)bytes / l->rate;
    while (seconds() < e->free_at) {
        struct timespec rest = {0, (long)((e->free_at - seconds()) * 1e9)};
        if (rest.tv_nsec > 0) nanosleep(&rest, NULL);
    }
    return DS_OK;
}

typedef struct zb_thread {
    const zb_case *c;
    int rank;
    double took;
} zb_thread;
static void *zb_thread_main(void *arg) {
    zb_thread *t = (zb_thread *)arg;
    t->took = zb_rank(t->c, t->rank, "");
    return NULL;
}

static double zb_run_linked(const zb_case *c, double rate) {
    zb_link link;
    zb_end ends[2];
    ds_comm_transport transports[2];
    zb_thread threads[2];
    pthread_t ids[2];
    zb_case linked = *c;
    memset(&link, 0, sizeof link);
    memset(transports, 0, sizeof transports);
    pthread_mutex_init(&link.lock, NULL);
    pthread_cond_init(&link.changed, NULL);
    link.rate = rate;
    linked.transports = transports;
    for (int r = 0; r < 2; r++) {
        ends[r].link = &link;
        ends[r].rank = r;
        ends[r].free_at = 0;
        transports[r].name = "link";
        transports[r].ctx = &ends[r];
        transports[r].exchange = zb_exchange;
        transports[r].concurrent = true;
        threads[r].c = &linked;
        threads[r].rank = r;
        pthread_create(&ids[r], NULL, zb_thread_main, &threads[r]);
    }
    for (int r = 0; r < 2; r++) pthread_join(ids[r], NULL);
    return threads[0].took > threads[1].took ? threads[0].took : threads[1].took;
}

/* ---- the figures ---- */

typedef struct zb_print {
    bool json, failed;
    int count;
} zb_print;

static void zb_row(zb_print *p, const char *key, const char *what, double took, double against, double goal) {
    if (took <= 0 || against <= 0)
        p->failed = true;
    else if (p->json)
        printf("%s\"%s\": {\"ms\": %.4f, \"against_ms\": %.4f, \"ratio\": %.4f, \"goal\": %.2f}", p->count ? ", " : "{",
               key, took * 1e3, against * 1e3, took / against, goal);
    else
        printf("%-60s %9.3f ms of %9.3f ms: %.3f (goal %.2f)\n", what, took * 1e3, against * 1e3, took / against, goal);
    p->count++;
    fflush(stdout);
}

/* Tensors of one element and no computation: what is left is the engine. */
static void zb_overhead(zb_print *p) {
    for (int stage = 0; stage < 4; stage++) {
        char zero[96], key[32], what[96];
        zb_case c = {zero, 1, 0, 60, 1, NULL, false, NULL};
        snprintf(zero, sizeof zero, "\"stage\": %d, \"stage3_param_persistence_threshold\": 0", stage);
        snprintf(key, sizeof key, "overhead_stage%d", stage);
        snprintf(what, sizeof what, "stage %d: the engine's own time with 60 tensors, of 5 ms", stage);
        zb_row(p, key, what, zb_run(&c), 5e-3, 0.01);
    }
}

/* What is put beside each other is measured in turns, since clocks go up and down; the turn of the median ratio is shown. */
enum { ZB_TURNS = 5 };
typedef struct zb_turn {
    double took, against;
} zb_turn;
static int zb_turn_order(const void *a, const void *b) {
    const zb_turn *x = (const zb_turn *)a, *y = (const zb_turn *)b;
    const double left = x->took * y->against, right = y->took * x->against;
    return left < right ? -1 : left > right;
}
static void zb_turns_row(zb_print *p, const char *key, const char *what, zb_turn *turns, double goal) {
    const zb_turn *shown = &turns[ZB_TURNS / 2];
    bool good = true;
    for (int turn = 0; turn < ZB_TURNS; turn++) good = good && turns[turn].took > 0 && turns[turn].against > 0;
    qsort(turns, ZB_TURNS, sizeof *turns, zb_turn_order);
    zb_row(p, key, what, good ? shown->took : -1.0, shown->against, goal);
}
/* Of two that were measured; negative when one failed. */
static double zb_sum(double a, double b) {
    return a > 0 && b > 0 ? a + b : -1.0;
}
static double zb_longer(double a, double b) {
    return a > 0 && b > 0 ? (a > b ? a : b) : -1.0;
}
/* A step beside its computation and its rest, each alone, one after the other. */
static void zb_sum_row(zb_print *p, const char *key, const char *what, const zb_case *model) {
    zb_case c = *model;
    zb_turn turns[ZB_TURNS];
    for (int turn = 0; turn < ZB_TURNS; turn++) {
        c.work = 0;
        turns[turn].against = zb_run(&c);
        c.work = model->work;
        turns[turn].against = zb_sum(turns[turn].against, zb_compute_alone(&c));
        turns[turn].took = zb_run(&c);
    }
    zb_turns_row(p, key, what, turns, 1.05);
}

/* A stage with a reduction for each layer and, at stage 3, gathers two ahead. */
static void zb_stage(char *zero, size_t room, int stage, size_t numel) {
    snprintf(zero, room,
             "\"stage\": %d, \"overlap_comm\": true, \"stage3_param_persistence_threshold\": 0, "
             "\"reduce_bucket_size\": %zu, \"stage3_prefetch_bucket_size\": %zu, \"stage3_max_reuse_distance\": 0",
             stage, numel, 2 * numel);
}

static void zb_overlap(zb_print *p, size_t numel, size_t work) {
    for (int stage = 1; stage < 4; stage++) {
        char zero[192], key[32], what[96];
        zb_case c = {zero, numel, work, ZB_LAYERS, 2, NULL, false, NULL};
        zb_stage(zero, sizeof zero, stage, numel);
        snprintf(key, sizeof key, "shared_memory_stage%d", stage);
        snprintf(what, sizeof what, "stage %d, 2 ranks, shared memory: step of compute + the rest", stage);
        zb_sum_row(p, key, what, &c);
    }
}

/* A link on which a step's bytes take twice as long as its computation; at stage 0, where nothing travels during the
   forward pass, eight times. */
static void zb_slow_link(zb_print *p, size_t numel, size_t work) {
    for (int stage = 0; stage < 4; stage++) {
        char zero[192], key[32], what[96];
        zb_case c = {zero, numel, work, ZB_LAYERS, 2, NULL, false, "\"gather_in_background\": true"};
        const double bytes = (stage == 3 ? 1.5 : 1.0) * (double)(ZB_LAYERS * numel * sizeof(float));
        zb_turn turns[ZB_TURNS];
        zb_stage(zero, sizeof zero, stage, numel);
        for (int turn = 0; turn < ZB_TURNS; turn++) {
            const double compute = zb_compute_alone(&c), rate = bytes / ((stage ? 2.0 : 8.0) * compute);
            double link;
            c.work = 0;
            link = zb_run_linked(&c, rate);
            c.work = work;
            turns[turn].took = zb_run_linked(&c, rate);
            turns[turn].against = zb_longer(compute, link);
        }
        snprintf(key, sizeof key, "slow_link_stage%d", stage);
        snprintf(what, sizeof what, "stage %d, 2 ranks, a slow link: step of the longer of both", stage);
        zb_turns_row(p, key, what, turns, 1.10);
    }
}

/* Seconds to read and write as many bytes as a step does, by the same store, from huge pages as there, and nothing else: the
   best of one after the other and both at once. */
static double zb_disk_alone(const char *folder, const zb_moved *step) {
    const size_t bytes[2] = {step->read / 4096 * 4096, step->written / 4096 * 4096};
    ds_offload_desc d;
    ds_offload *store = NULL;
    ds_offload_id id[2];
    ds_error error = {DS_OK, ""};
    double best = 1e9;
    char *memory[2] = {NULL, NULL};
    bool good;
    memset(&d, 0, sizeof d);
    d.folder = folder;
    good = bytes[0] && bytes[1] && !ds_offload_create(&d, &store, &error);
    for (int k = 0; k < 2 && good; k++) {
        void *taken = NULL;
        if (posix_memalign(&taken, 2 << 20, bytes[k]) != 0) {
            fprintf(stderr, "ds bench zero: no memory for %zu bytes of the disk's row\n", bytes[k]);
            break;
        }
        memory[k] = (char *)taken;
        ds_offload_huge(taken, bytes[k]);
        memset(taken, 1, bytes[k]);
        good = !ds_offload_add(store, k ? "written" : "read", bytes[k], DS_OFFLOAD_NVME, &id[k]) &&
               !ds_offload_write(store, id[k], 0, bytes[k], memory[k]);
    }
    for (int round = 0; round < 8 && good && memory[1]; round++) {
        ds_offload_ticket ticket = 0;
        const double start = seconds();
        good = !(round % 2 ? ds_offload_start_write(store, id[1], 0, bytes[1], memory[1], &ticket)
                           : ds_offload_write(store, id[1], 0, bytes[1], memory[1])) &&
               !ds_offload_read(store, id[0], 0, bytes[0], memory[0]) && (!ticket || !ds_offload_wait(store, ticket));
        if (seconds() - start < best) best = seconds() - start;
    }
    if (!good) fprintf(stderr, "ds bench zero: %s\n", store ? ds_offload_error(store)->message : error.message);
    ds_offload_destroy(store);
    good = good && memory[1];
    free(memory[0]);
    free(memory[1]);
    return good ? best : -1.0;
}

static void zb_offload_cpu(zb_print *p, size_t numel, size_t work) {
    const zb_case c = {"\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"offload_optimizer\": "
                       "{\"device\": \"cpu\"}, \"offload_param\": {\"device\": \"cpu\"}",
                       numel,
                       work,
                       ZB_LAYERS,
                       1,
                       NULL,
                       false,
                       NULL};
    zb_sum_row(p, "offload_cpu", "offload to cpu: step of compute + update", &c);
}

static void zb_offload_nvme(zb_print *p, const char *folder, size_t numel, size_t work) {
    static const char *const plain = "\"stage\": 3, \"stage3_param_persistence_threshold\": 0";
    char nvme[512];
    zb_case c = {plain, numel, work, ZB_LAYERS, 1, NULL, false, NULL};
    zb_turn turns[ZB_TURNS];
    snprintf(nvme, sizeof nvme,
             "\"stage\": 3, \"stage3_param_persistence_threshold\": 0, \"sub_group_size\": %zu, \"offload_optimizer\": "
             "{\"device\": \"nvme\", \"nvme_path\": \"%.200s\", \"pipeline_read\": true, \"pipeline_write\": true}",
             numel, folder);
    memset(turns, 0, sizeof turns);
    for (int turn = 0; turn < ZB_TURNS && (!turn || turns[turn - 1].took > 0); turn++) { /* a folder fails once */
        zb_moved moved = {0, 0};
        double rest, disk;
        c.zero = plain;
        rest = zb_run(&c);
        c.zero = nvme;
        turns[turn].took = zb_train(&c, 0, NULL, &moved);
        disk = turns[turn].took > 0 ? zb_disk_alone(folder, &moved) : -1.0;
        turns[turn].against = zb_longer(rest, disk);
    }
    zb_turns_row(p, "offload_nvme", "states on NVMe: step of the longer of disk and the rest", turns, 1.10);
}

/* A step of the GPT example on two ranks, from the summary that it writes; negative when it failed. */
static double zb_gpt(const char *self, const char *folder, const char *zero) {
    char file[600], command[3000], line[256];
    double step = -1.0, ms;
    FILE *f;
    snprintf(file, sizeof file, "%.400s/ds_bench_%ld", folder, (long)getpid());
    f = fopen(file, "w");
    if (!f) return -1.0;
    fprintf(f,
            "{\"train_micro_batch_size_per_gpu\": 4, \"gradient_accumulation_steps\": 4, \"optimizer\": {\"type\": "
            "\"AdamW\"}, \"zero_optimization\": "
            "{%s, \"overlap_comm\": true}}",
            zero);
    fclose(f);
    snprintf(command, sizeof command,
             "'%s' run -n 2 -- '%.*strain_gpt' --config '%s' --steps 20 --quiet --summary '%s.out' >/dev/null", self,
             (int)(strrchr(self, '/') + 1 - self), self, file, file);
    snprintf(line, sizeof line, "%.200s.out", file);
    f = system(command) == 0 ? fopen(line, "r") : NULL;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "step_ms %lf", &ms) == 1) step = ms * 1e-3;
    if (f) fclose(f);
    unlink(file);
    snprintf(line, sizeof line, "%.200s.out", file);
    unlink(line);
    return step;
}

/* Stage 0, stage 3, and stage 3 with its states and parameters in the CPU's memory and on disk, in turns; best of each. */
static void zb_gpts(zb_print *p, const char *folder) {
    char zero[4][512] = {"\"stage\": 0", "\"stage\": 3",
                         "\"stage\": 3, \"offload_optimizer\": {\"device\": \"cpu\"}, \"offload_param\": {\"device\": "
                         "\"cpu\"}"};
    double best[4] = {1e9, 1e9, 1e9, 1e9};
    char self[512], trainer[600];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length > 0 ? length : 0] = 0;
    snprintf(trainer, sizeof trainer, "%.*strain_gpt", length > 0 ? (int)(strrchr(self, '/') + 1 - self) : 0, self);
    if (access(trainer, X_OK) != 0) {
        fprintf(stderr, "ds bench zero: '%s' is not there (make build/train_gpt): no rows of the GPT example\n",
                trainer);
        return;
    }
    snprintf(
        zero[3], sizeof zero[3],
        "\"stage\": 3, \"sub_group_size\": 100000, \"offload_optimizer\": {\"device\": \"nvme\", \"nvme_path\": "
        "\"%.100s\", \"pipeline_read\": true, \"pipeline_write\": true}, \"offload_param\": {\"device\": \"nvme\", "
        "\"nvme_path\": \"%.100s\"}",
        folder, folder);
    for (int round = 0; round < 3; round++)
        for (int k = 0; k < 4; k++) {
            double step = zb_gpt(self, folder, zero[k]);
            if (step < best[k]) best[k] = step;
        }
    zb_row(p, "gpt_stage3", "the GPT example on 2 ranks: a step at stage 3, of stage 0's", best[1], best[0], 1.10);
    zb_row(p, "gpt_cpu", "the same with states and parameters offloaded to cpu, of stage 3's", best[2], best[1], 1.05);
    zb_row(p, "gpt_nvme", "the same with states and parameters on NVMe, of stage 3's", best[3], best[1], 1.10);
}

static int bench_zero(arguments *a) {
    const char *folder = option(a, "--folder", "."), *size = option(a, "--elements", "1000000");
    zb_print p = {false, false, 0};
    int used;
    size_t numel, work = 8000;
    p.json = flag(a, "--json");
    used = operands(a, 1);
    if (used) return used;
    if (!folder || !number(size, &numel) || numel < 1024 || numel > 1u << 30)
        return usage(a, "--folder or --elements is wrong", NULL);
    zb_overhead(&p);
    /* Tensors four times as large where the parts' times are added: calls right after each other find a smaller one in the
       last-level cache, where calls with a computation between them do not if others use that cache too, and what is not
       computation would look shorter alone than it is in a step. */
    zb_overlap(&p, 4 * numel, 4 * work);
    zb_slow_link(&p, numel, work);
    zb_offload_cpu(&p, 4 * numel, 4 * work);
    zb_offload_nvme(&p, folder, numel, work);
    zb_gpts(&p, folder);
    if (p.json && p.count) printf("}\n");
    return p.failed ? ENVIRONMENT : finish(FINE);
}
#endif
