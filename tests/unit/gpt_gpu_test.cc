// The example's model on the emulated GPU beside the same model on the CPU: loss, every gradient, dense and short passes.
#undef EXAMPLE_USE_CBLAS
#define EXAMPLE_USE_CBLAS 0
#include "../../examples/gpt_gpu.cu"
#include "../test.h"
namespace cpu {
#include "../../examples/gpt.h"
}
#undef GPT_H
#undef EXAMPLE_GPU
#define EXAMPLE_GPU 1
#undef GPT_GELU_SCALE
namespace gpu {
using ::gpt_add;
using ::gpt_alloc;
using ::gpt_free;
using ::gpt_read;
#include "../../examples/gpt.h"
}

enum { VOCAB = 61, CONTEXT = 21, LAYERS = 2, HEADS = 3, CHANNELS = 48, BATCH = 2, MOST = 4 * CHANNELS * CHANNELS };

// The longest chain of roundings from a weight to the loss and back: the lengths of all sums on the way, twice for the way
// back, and those of both programs. Each rounding is half a unit of 24 bits.
static double bound() {
    const double sums = CHANNELS * 3 + 4 * CHANNELS + 3 * CHANNELS + CONTEXT * 2 + 8 * 8; // of one block
    return 2 * 3 * (LAYERS * sums + CHANNELS + VOCAB + BATCH * CONTEXT) * ldexp(1, -24);
}
static bool near_enough(const char *what, const float *a, const float *b, size_t n) {
    double off = 0, size = 0;
    for (size_t i = 0; i < n; i++) off += pow((double)a[i] - (double)b[i], 2), size += pow((double)b[i], 2);
    if (sqrt(off) <= bound() * sqrt(size) && size > 0) return true;
    printf("  %s: off by %.3g of its norm %.3g, bound %.3g\n", what, sqrt(off / size), sqrt(size), bound());
    return false;
}

struct passes {
    std::vector<std::vector<float>> weights, gradients;
    double loss;
};
// Loss and gradients by one of the two, whose functions have the same names; M is where its memory is.
#define PASS(space, UP, DOWN)                                                                                          \
    static void pass_##space(passes &p, const space::gpt_shape &shape, size_t batch, size_t time,                      \
                             const uint8_t *tokens) {                                                                  \
        const size_t n = space::gpt_tensor_count(&shape), B = space::GPT_BLOCK_TENSORS;                                \
        std::vector<float *> w, d;                                                                                     \
        space::gpt g;                                                                                                  \
        CHECK(space::gpt_create(&g, &shape, BATCH, CONTEXT, NULL));                                                    \
        g.batch = batch, g.time = time;                                                                                \
        for (size_t i = 0; i < n; i++) {                                                                               \
            const size_t bytes = p.weights[i].size() * sizeof(float);                                                  \
            w.push_back((float *)space::gpt_alloc(bytes));                                                             \
            d.push_back((float *)space::gpt_alloc(bytes));                                                             \
            UP(w[i], p.weights[i].data(), bytes);                                                                      \
        }                                                                                                              \
        float *const head = (float *)space::gpt_alloc(p.weights[0].size() * sizeof(float));                            \
        const float *const *cw = (const float *const *)w.data();                                                       \
        space::gpt_embed(&g, cw[0], cw[1], tokens);                                                                    \
        for (size_t l = 0; l < shape.layers; l++) space::gpt_block_forward(&g, l, cw + 2 + l * B);                     \
        space::gpt_head(&g, cw[n - 2], cw[n - 1], cw[0]);                                                              \
        p.loss = space::gpt_loss(&g, tokens + batch * time, 4.0f);                                                     \
        space::gpt_head_backward(&g, cw[n - 2], cw[0], d[n - 2], d[n - 1], head);                                      \
        for (size_t l = shape.layers; l-- > 0;) space::gpt_block_backward(&g, l, cw + 2 + l * B, &d[2 + l * B]);       \
        space::gpt_embed_back(&g, d[0], d[1], tokens);                                                                 \
        space::gpt_add(d[0], head, p.weights[0].size());                                                               \
        for (size_t i = 0; i < n; i++) {                                                                               \
            p.gradients.push_back(p.weights[i]);                                                                       \
            space::gpt_read(p.gradients[i].data(), d[i], p.weights[i].size() * sizeof(float));                         \
            space::gpt_free(w[i]);                                                                                     \
            space::gpt_free(d[i]);                                                                                     \
        }                                                                                                              \
        space::gpt_free(head);                                                                                         \
        space::gpt_destroy(&g);                                                                                        \
    }
static void up(float *to, const float *from, size_t bytes) {
    (void)cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, NULL);
}
PASS(cpu, memcpy, )
PASS(gpu, up, )

int main(int argc, char **argv) {
    uint64_t dice = 3;
    int gpus = 0;
    test_begin(argc, argv);
    TEST(there_is_a_gpu) {
        CHECK(gpt_gpu_begin(0, &gpus) == NULL);
        gpt_gpu_fast();
        CHECK_EQ(gpus, 1);
    }
    TEST(model_agrees_with_the_cpu) {
        for (int round = 0; round < 3; round++) {
            const size_t batch = round == 1 ? 1 : BATCH, time = round == 2 ? 7 : CONTEXT;
            const cpu::gpt_shape shape = {VOCAB, CONTEXT, LAYERS, HEADS, CHANNELS};
            const gpu::gpt_shape same = {VOCAB, CONTEXT, LAYERS, HEADS, CHANNELS};
            std::vector<uint8_t> tokens(2 * batch * time);
            passes a, b;
            for (uint8_t &x : tokens) x = (uint8_t)(test_random(&dice) % VOCAB);
            for (size_t i = 0; i < cpu::gpt_tensor_count(&shape); i++) {
                const cpu::gpt_tensor t = cpu::gpt_tensor_at(&shape, i);
                std::vector<float> w(cpu::gpt_tensor_numel(&t));
                for (float &x : w) x = t.value + 0.3f * (float)(test_uniform(&dice) - 0.5);
                a.weights.push_back(w);
            }
            b.weights = a.weights;
            emu::seed = 5u + (unsigned)round;
            pass_cpu(a, shape, batch, time, tokens.data());
            pass_gpu(b, same, batch, time, tokens.data());
            CHECK(!gpt_gpu_failure());
            CHECK_NEAR(a.loss, b.loss, bound() * a.loss);
            for (size_t i = 0; i < a.weights.size(); i++) {
                const cpu::gpt_tensor t = cpu::gpt_tensor_at(&shape, i);
                if (strstr(t.name, "c_attn.bias")) continue; // the next test: a part of it is zero but for rounding
                CHECK(near_enough(t.name, b.gradients[i].data(), a.gradients[i].data(), a.weights[i].size()));
            }
            for (size_t l = 0; l < LAYERS; l++) { // the key's bias moves all scores of a row alike: its gradient is 0
                const size_t i = 2 + l * cpu::GPT_BLOCK_TENSORS + 3;
                const float *const x = a.gradients[i].data(), *const y = b.gradients[i].data();
                CHECK(near_enough("query's bias", y, x, CHANNELS));
                CHECK(near_enough("value's bias", y + 2 * CHANNELS, x + 2 * CHANNELS, CHANNELS));
                for (size_t j = CHANNELS; j < 2 * CHANNELS; j++) CHECK_NEAR(y[j], 0, bound() * fabs(a.loss));
            }
        }
    }
    TEST(each_kernel_ran_and_memory_came_back) {
        static const char *const kernels[] = {"add",          "repeat",  "gelu",         "gelu_back", "columns",
                                              "norm",         "softmax", "softmax_back", "norm_back", "look_up",
                                              "look_up_back", "gemm",    "cross_entropy"};
        for (const char *k : kernels) CHECK(test_.argc > 1 || emu::calls[k] > 0);
        CHECK(emu::device_bytes <= 2 * 4096); // tokens and losses stay
    }
    TEST(a_failure_is_kept) {
        emu::fail_alloc = 1;
        CHECK(gpt_alloc(8) == NULL);
        gpt_matmul(false, false, 2, 2, 2, 1, NULL, 1, NULL, 1, 0, NULL, 1);
        CHECK_HAS(gpt_gpu_failure(), "cuBLAS: error 7");
    }
    return test_end();
}
