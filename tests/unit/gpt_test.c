/* The example's model: its gradients against finite differences of its own loss. */
#include "../test.h"
#include "../../examples/gpt.h"

static float *weights[2 + 2 * GPT_BLOCK_TENSORS + 2], *gradients[2 + 2 * GPT_BLOCK_TENSORS + 2];

static double pass(gpt *g, const uint8_t *tokens, bool back) {
    size_t n = gpt_tensor_count(&g->shape);
    const float *const *w = (const float *const *)weights;
    double loss;
    gpt_embed(g, w[0], w[1], tokens);
    for (size_t l = 0; l < g->shape.layers; l++) gpt_block_forward(g, l, w + 2 + l * GPT_BLOCK_TENSORS);
    gpt_head(g, w[n - 2], w[n - 1], w[0]);
    loss = gpt_loss(g, tokens + g->batch * g->time, 1.0f);
    if (!back) return loss;
    float *head = (float *)calloc(g->shape.vocab * g->shape.channels, sizeof *head);
    gpt_head_backward(g, w[n - 2], w[0], gradients[n - 2], gradients[n - 1], head);
    for (size_t l = g->shape.layers; l-- > 0;)
        gpt_block_backward(g, l, w + 2 + l * GPT_BLOCK_TENSORS, gradients + 2 + l * GPT_BLOCK_TENSORS);
    gpt_embed_back(g, gradients[0], gradients[1], tokens);
    for (size_t i = 0; i < g->shape.vocab * g->shape.channels; i++) gradients[0][i] += head[i];
    free(head);
    return loss;
}

int main(int argc, char **argv) {
    gpt_shape shape = {19, 7, 2, 2, 8};
    uint8_t tokens[2 * 2 * 7];
    uint64_t random = 1;
    gpt g;
    test_begin(argc, argv);
    CHECK(gpt_create(&g, &shape, 2, 7, NULL));
    for (size_t i = 0; i < sizeof tokens; i++) tokens[i] = (uint8_t)(test_random(&random) % shape.vocab);
    for (size_t i = 0; i < gpt_tensor_count(&shape); i++) {
        gpt_tensor t = gpt_tensor_at(&shape, i);
        weights[i] = (float *)malloc(gpt_tensor_numel(&t) * sizeof(float));
        gradients[i] = (float *)malloc(gpt_tensor_numel(&t) * sizeof(float));
        /* larger than a trained model's start, so that no gradient drowns in fp32's rounding */
        for (size_t k = 0; k < gpt_tensor_numel(&t); k++)
            weights[i][k] = t.value + 0.4f * (float)(test_uniform(&random) - 0.5);
    }
    (void)pass(&g, tokens, true);
    for (size_t i = 0; i < gpt_tensor_count(&shape); i++) {
        gpt_tensor t = gpt_tensor_at(&shape, i);
        TEST_NAMED(t.name) {
            for (int k = 0; k < 12; k++) {
                size_t e = test_random(&random) % gpt_tensor_numel(&t);
                float kept = weights[i][e], step = 0.02f;
                double f[4], slope; /* fourth-order differences */
                for (int s = 0; s < 4; s++) {
                    weights[i][e] = kept + step * (float)(s < 2 ? s - 2 : s - 1);
                    f[s] = pass(&g, tokens, false);
                }
                weights[i][e] = kept;
                slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * (double)step);
                CHECK_NEAR(gradients[i][e], slope, 2e-4 + 2e-3 * fabs(slope));
            }
        }
    }
    TEST(initial values come from their place alone) {
        gpt_tensor t = gpt_tensor_at(&shape, 4);
        double sum = 0, squares = 0;
        for (size_t k = 0; k < 100000; k++) {
            double x = (double)gpt_initial(&t, 7, 4, k);
            sum += x;
            squares += x * x;
        }
        CHECK_NEAR(sum / 1e5, 0.0, 0.02 * 4 / sqrt(1e5));
        CHECK_NEAR(sqrt(squares / 1e5), 0.02, 0.0002);
        CHECK(gpt_initial(&t, 7, 4, 5) == gpt_initial(&t, 7, 4, 5));
        CHECK(gpt_initial(&t, 7, 4, 5) != gpt_initial(&t, 8, 4, 5));
    }
    for (size_t i = 0; i < gpt_tensor_count(&shape); i++) free(weights[i]), free(gradients[i]);
    gpt_destroy(&g);
    return test_end();
}
