/* What ds_comm.h does eight elements at a time, against its definition one by one: conversions of every half, sums of two,
   signs and scales, and buffers so large that they pass the caches by, and the same as on a machine without these
   instructions; and that a long wait does not burn its core. */
static int old_machine;
#define __builtin_cpu_supports(feature) (!old_machine && __builtin_cpu_supports(feature))
#define DS_IMPLEMENTATION
#include "ds_comm.h"
#include "tests/test.h"

enum { HALVES = 65536 };

static float half_value(ds_dtype dtype, uint16_t h) {
    return dtype == DS_F16 ? dsi_f32_of_f16(h) : dsi_f32_of_bf16(h);
}
static uint16_t half_bits(ds_dtype dtype, float x) {
    return dtype == DS_F16 ? dsi_f16_of_f32(x) : dsi_bf16_of_f32(x);
}

/* Two threads with a communicator each. */
typedef struct pair_side {
    ds_comm *comm;
    void (*body)(ds_comm *comm, void *arg);
    void *arg;
} pair_side;
static void *pair_main(void *arg) {
    pair_side *side = (pair_side *)arg;
    side->body(side->comm, side->arg);
    return NULL;
}
static bool run_pair(void (*body)(ds_comm *comm, void *arg), void *arg) {
    ds_comm_desc desc;
    ds_comm *comm[2];
    pair_side side[2];
    pthread_t other;
    memset(&desc, 0, sizeof desc);
    if (ds_comm_threads_create(&desc, 2, comm, NULL)) return false;
    for (int r = 0; r < 2; r++) side[r].comm = comm[r], side[r].body = body, side[r].arg = arg;
    if (pthread_create(&other, NULL, pair_main, &side[1])) return false;
    pair_main(&side[0]);
    pthread_join(other, NULL);
    for (int r = 0; r < 2; r++) ds_comm_destroy(comm[r]);
    return true;
}

/* All halves of one rank, shuffled finite ones of the other; 3 more elements so that vectors leave a rest. */
typedef struct halves_case {
    ds_dtype dtype;
    ds_comm_op op;
    uint16_t in[2][HALVES + 3], out[2][HALVES + 3];
} halves_case;
static void halves_fill(halves_case *t) {
    for (int i = 0; i < HALVES + 3; i++) {
        uint16_t other = (uint16_t)((unsigned)i * 40503u + 7u);
        t->in[0][i] = (uint16_t)i;
        t->in[1][i] = isfinite(half_value(t->dtype, other)) ? other : (uint16_t)0x0001;
    }
}
static void halves_body(ds_comm *comm, void *arg) {
    halves_case *t = (halves_case *)arg;
    int r = ds_comm_rank(comm);
    ds_status status = ds_comm_all_reduce(comm, t->in[r], t->out[r], HALVES + 3, t->dtype, t->op);
    if (status) memset(t->out[r], 0x55, sizeof t->out[r]);
}

static void test_halves(ds_dtype dtype) {
    static halves_case t;
    static float out[HALVES + 3];
    const void *inputs[2] = {t.in[0], t.in[1]};
    t.dtype = dtype;
    halves_fill(&t);
    for (int n = 1; n <= 2; n++) {
        int wrong = 0;
        ds_comm_tree_sum_f32(out, inputs, n, dtype, HALVES + 3);
        for (int i = 0; i < HALVES + 3; i++) {
            float a = half_value(dtype, t.in[0][i]), sum = n == 1 ? a : a + half_value(dtype, t.in[1][i]);
            uint32_t got = dsi_bits_of_f32(out[i]), want = dsi_bits_of_f32(sum);
            wrong += n == 1 || !isnan(sum) ? got != want : (got | 0x400000u) != (want | 0x400000u);
        }
        CHECK_EQ(wrong, 0);
    }
    for (int op = DS_COMM_SUM; op <= DS_COMM_AVERAGE; op++) {
        int wrong = 0;
        t.op = (ds_comm_op)op;
        CHECK(run_pair(halves_body, &t));
        for (int i = 0; i < HALVES + 3; i++) {
            float sum = half_value(dtype, t.in[0][i]) + half_value(dtype, t.in[1][i]);
            uint16_t want = half_bits(dtype, op == DS_COMM_AVERAGE ? sum / 2 : sum);
            for (int r = 0; r < 2; r++)
                wrong += isnan(sum) ? !isnan(half_value(dtype, t.out[r][i])) : t.out[r][i] != want;
        }
        CHECK_EQ(wrong, 0);
    }
}

/* The 1-bit all-reduce of one rank by its definition: what is sent is a sign and a scale, twice. */
static float one_bit_model(float *error, const float *in, size_t count, float *out) {
    double lane[8] = {0};
    float scale;
    for (size_t i = 0; i < count; i++) {
        error[i] += in[i];
        lane[i % 8] += (double)error[i] * (double)error[i];
    }
    scale = (float)sqrt((((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]))) /
                        (double)count);
    for (size_t i = 0; i < count; i++) {
        out[i] = error[i] >= 0 ? scale : -scale;
        error[i] -= out[i];
    }
    return scale;
}
static void test_one_bit(void) {
    enum { COUNT = 1064 };
    static float in[COUNT], out[COUNT], want[COUNT], error[2][COUNT], server[2][COUNT];
    ds_comm_one_bit sizes = ds_comm_one_bit_sizes(1, COUNT);
    void *scratch = malloc(sizes.scratch_bytes);
    ds_comm_desc desc;
    ds_comm *comm = NULL;
    uint64_t seed = 5;
    memset(&desc, 0, sizeof desc);
    desc.world = 1;
    CHECK(ds_comm_create(&desc, &comm, NULL) == DS_OK);
    CHECK_EQ(sizes.padded, COUNT);
    for (int k = 0; k < 3 && comm; k++) {
        for (size_t i = 0; i < COUNT; i++)
            in[i] = i % 50 == 0 ? -0.0f : (float)((double)(test_random(&seed) >> 11) * 0x1p-53 - 0.5);
        one_bit_model(error[0], in, COUNT, want);
        one_bit_model(server[0], want, COUNT, want);
        CHECK(ds_comm_one_bit_all_reduce(comm, in, out, COUNT, error[1], server[1], scratch) == DS_OK);
        CHECK(!memcmp(out, want, sizeof out));
        CHECK(!memcmp(error[0], error[1], sizeof error[0]));
        CHECK(!memcmp(server[0], server[1], sizeof server[0]));
    }
    ds_comm_destroy(comm);
    free(scratch);
}

/* Symmetric blocks by their definition; NaN, infinity and denormals among them, groups of odd length too. */
static void quantize_model(int bits, const void *in, ds_dtype dtype, size_t each, size_t first, int8_t *packed,
                           float *step) {
    const float half = bits == 8 ? 128 : 8;
    float low, high, scale = 1, x;
    bool odd = false;
    low = high = dtype == DS_F32 ? ((const float *)in)[first] : half_value(dtype, ((const uint16_t *)in)[first]);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = first; i < first + each; i++) {
            x = dtype == DS_F32 ? ((const float *)in)[i] : half_value(dtype, ((const uint16_t *)in)[i]);
            if (pass == 0) {
                low = x < low ? x : low;
                high = x > high ? x : high;
                odd |= x != x;
            } else {
                float q = rintf(x * scale), kept = q < -half ? -half : q > half - 1 ? half - 1 : q;
                int value = kept == kept ? (int)kept : 0;
                if (bits == 8)
                    packed[i] = (int8_t)value;
                else if (i % 2 == 0)
                    packed[i / 2] = (int8_t)(value * 16);
                else
                    packed[i / 2] = (int8_t)((packed[i / 2] & 0xF0) | (value & 0x0F));
            }
        }
        x = 2 * (high > -low ? high : -low);
        if (x > 0 && !odd) scale = 2 * half / x;
        *step = odd ? NAN : 1 / scale;
    }
}
static void test_blocks(ds_dtype dtype, int bits, size_t each) {
    enum { GROUPS = 12 };
    static float wide[GROUPS * 512], back[GROUPS * 512];
    static uint16_t half[GROUPS * 512], half_back[GROUPS * 512];
    static int8_t got[GROUPS * 512], want[GROUPS * 512];
    const void *in = dtype == DS_F32 ? (const void *)wide : (const void *)half;
    float steps[GROUPS], want_steps[GROUPS];
    ds_comm_blocks form = {bits, false, GROUPS};
    uint64_t seed = each + (uint64_t)bits;
    int wrong = 0;
    for (size_t i = 0; i < GROUPS * each; i++) {
        size_t g = i / each;
        double x = ((double)(test_random(&seed) >> 11) * 0x1p-53 - 0.5) * (g == 1 ? 1e-40 : g == 2 ? 0 : 3);
        wide[i] = g == 3 && i % 5 == 0 ? NAN : g == 4 && i % 7 == 6 ? INFINITY : (float)x;
        half[i] = half_bits(dtype == DS_F32 ? DS_BF16 : dtype, wide[i]);
    }
    ds_comm_quantize(form, in, dtype, GROUPS * each, got, steps);
    for (size_t g = 0; g < GROUPS; g++) quantize_model(bits, in, dtype, each, g * each, want, &want_steps[g]);
    for (size_t g = 0; g < GROUPS; g++)
        wrong += g == 3 ? !isnan(steps[g]) : g != 4 && dsi_bits_of_f32(steps[g]) != dsi_bits_of_f32(want_steps[g]);
    CHECK_EQ(wrong, 0);
    CHECK(!memcmp(got, want, bits == 8 ? GROUPS * each : GROUPS * each / 2));
    ds_comm_dequantize(form, got, steps, dtype == DS_F32 ? (void *)back : (void *)half_back, dtype, GROUPS * each);
    for (size_t i = 0; i < GROUPS * each; i++) {
        int q = bits == 8 ? want[i] : i % 2 ? ((want[i / 2] & 15) ^ 8) - 8 : want[i / 2] >> 4;
        float x = (float)q * steps[i / each];
        if (isnan(x)) continue;
        wrong += dtype == DS_F32 ? dsi_bits_of_f32(back[i]) != dsi_bits_of_f32(x) : half_back[i] != half_bits(dtype, x);
    }
    CHECK_EQ(wrong, 0);
}

/* Bytes at every distance from a line, more of them than DSI_COMM_LARGE. */
enum { LARGE = (9 << 20) + 77 };
static void large_body(ds_comm *comm, void *arg) {
    int r = ds_comm_rank(comm), bad = 0;
    unsigned char *memory = (unsigned char *)malloc(2 * LARGE + 64), *in = (unsigned char *)malloc(LARGE);
    for (size_t i = 0; i < LARGE; i++) in[i] = (unsigned char)(i * 7 + i / 251 + (size_t)r);
    for (int shift = 0; shift < 64; shift += 21) {
        unsigned char *out = memory + shift;
        memset(out, 0xEE, 2 * LARGE);
        if (ds_comm_all_gather(comm, in, out, LARGE, NULL, DS_U8)) bad++;
        for (int from = 0; from < 2; from++)
            for (size_t i = 0; i < LARGE; i++)
                bad += out[(size_t)from * LARGE + i] != (unsigned char)(i * 7 + i / 251 + (size_t)from);
        memset(out, 0xEE, LARGE);
        if (r == 0 ? ds_comm_send(comm, in, LARGE, DS_U8, 1) : ds_comm_receive(comm, out, LARGE, DS_U8, 0)) bad++;
        for (size_t i = 0; i < LARGE && r; i++) bad += out[i] != (unsigned char)(i * 7 + i / 251);
    }
    free(in);
    free(memory);
    if (bad) __atomic_fetch_add((int *)arg, bad, __ATOMIC_SEQ_CST);
}

/* Processor time of this thread while it waits half a second for the other. */
static void civil_body(ds_comm *comm, void *arg) {
    struct timespec before, after;
    ds_comm_barrier(comm);
    if (ds_comm_rank(comm)) dsi_sleep(NULL, 500000000);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    if (ds_comm_barrier(comm)) *(double *)arg = 1e9;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    if (!ds_comm_rank(comm))
        *(double *)arg = (double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec);
}

int main(void) {
    for (old_machine = 0; old_machine < 2; old_machine++) {
        TEST_NAMED(old_machine ? "every_fp16_without" : "every_fp16") {
            test_halves(DS_F16);
        }
        TEST_NAMED(old_machine ? "every_bf16_without" : "every_bf16") {
            test_halves(DS_BF16);
        }
        TEST_NAMED(old_machine ? "one_bit_bits_without" : "one_bit_bits") {
            test_one_bit();
        }
        TEST_NAMED(old_machine ? "blocks_without" : "blocks") {
            for (int form = 0; form < 6; form++) {
                const ds_dtype dtype = form % 3 == 0 ? DS_F32 : form % 3 == 1 ? DS_F16 : DS_BF16;
                test_blocks(dtype, form < 3 ? 8 : 4, 512);
                test_blocks(dtype, form < 3 ? 8 : 4, 30);
                if (form < 3) test_blocks(dtype, 8, 13);
            }
        }
        TEST_NAMED(old_machine ? "past_the_caches_without" : "past_the_caches") {
            int bad = 0;
            CHECK(run_pair(large_body, &bad));
            CHECK_EQ(bad, 0);
        }
    }
    TEST(waits_are_civil) { /* it sleeps: a spin until the other comes would be half a second */
        double spent = 1e9;
        CHECK(run_pair(civil_body, &spent));
        CHECK(spent < 0.1);
    }
    return test_end();
}
