/* checkpoint_logits.c - the logits of examples/gpt.h's model on the bytes of stdin, raw fp32 to stdout.
   usage: checkpoint_logits WEIGHTS VOCAB CONTEXT LAYERS HEADS CHANNELS */
#define DS_CHECKPOINT_IMPLEMENTATION
#include "ds_checkpoint.h"
#include "examples/gpt.h"

int main(int argc, char **argv) {
    static float *weights[2 + GPT_BLOCK_TENSORS * 64 + 2];
    const float *const *w = (const float *const *)weights;
    uint8_t tokens[4096];
    size_t sizes[5], count;
    ds_checkpoint_desc d;
    ds_checkpoint *c;
    ds_error error;
    gpt_shape shape;
    gpt g;
    if (argc != 7) return 2;
    for (int i = 0; i < 5; i++) sizes[i] = strtoul(argv[2 + i], NULL, 10);
    shape.vocab = sizes[0], shape.context = sizes[1], shape.layers = sizes[2], shape.heads = sizes[3];
    shape.channels = sizes[4];
    memset(&d, 0, sizeof d);
    if (ds_checkpoint_open_path(&d, argv[1], &c, &error)) return fprintf(stderr, "%s\n", error.message), 1;
    count = gpt_tensor_count(&shape);
    for (size_t i = 0; i < count; i++) {
        const gpt_tensor t = gpt_tensor_at(&shape, i);
        const size_t n = gpt_tensor_numel(&t);
        weights[i] = (float *)malloc(n * sizeof(float));
        if (!weights[i] || ds_checkpoint_read(c, t.name, 0, n, DS_F32, weights[i]))
            return fprintf(stderr, "%s\n", ds_checkpoint_error(c)->message), 1;
    }
    ds_checkpoint_close(c);
    if (!gpt_create(&g, &shape, 1, shape.context, NULL) || fread(tokens, 1, shape.context, stdin) != shape.context)
        return 1;
    gpt_embed(&g, w[0], w[1], tokens);
    for (size_t l = 0; l < shape.layers; l++) gpt_block_forward(&g, l, w + 2 + l * GPT_BLOCK_TENSORS);
    gpt_head(&g, w[count - 2], w[count - 1], w[0]);
    fwrite(g.logits, sizeof(float), shape.context * shape.vocab, stdout);
    gpt_destroy(&g);
    for (size_t i = 0; i < count; i++) free(weights[i]);
    return 0;
}
