#!/bin/bash
# ds_kernels.cu beside PyTorch on this machine's GPU (fused AdamW, norm, FlexAttention on the same layouts), and train_gpt_gpu
# beside llm.c on a GPT-2 of 124 million parameters: tokens a second. Each in its turn, in one run.
# environment: PYTHON (python3), an interpreter that has torch with CUDA; LLMC, a folder of llm.c with train_gpt2cu built and
# its data prepared (dev/data/tinyshakespeare.py, gpt2_124M.bin); B (build); STEPS (20)
set -u
cd "$(dirname "$0")/../.."
B=${B:-build} python=${PYTHON:-python3} steps=${STEPS:-20}
nvidia-smi -L 2>/dev/null | grep -q '^GPU' || { echo "no GPU here: nothing to compare"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make -s "$B/gpu_bench" "$B/train_gpt_gpu" "$B/ds" || exit 1
[ -n "${BENCHED:-}" ] || "$B/gpu_bench" || exit 1 # `make gpu-bench` has run it
echo "== PyTorch"
mkdir "$work/layouts"
for mode in dense fixed bigbird bslongformer local_sliding_window; do
    for block in 64 128; do
        printf '{"train_batch_size": 1, "sparse_attention": {"mode": "%s", "block": %s}}' "$mode" "$block" >"$work/c.json"
        "$B/ds" layout "$work/c.json" --heads 16 --seq-len 8192 >"$work/layouts/$mode.$block" || exit 1
    done
done
if "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    "$python" tests/peers/gpu.py "$work/layouts" || exit 1
else
    echo "no torch with CUDA: give PYTHON=..., an interpreter that has it"
fi
echo "== GPT-2, 124 million parameters, 4 sequences of 1,024 tokens, bf16"
cat >"$work/gpt2.json" <<'END'
{"train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": true}, "zero_optimization": {"stage": 1},
 "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "weight_decay": 0.1}}, "gradient_clipping": 1.0, "steps_per_print": 5}
END
# bytes are the tokens: 85 million parameters in the blocks as in GPT-2, but a smaller table and head
"$B/train_gpt_gpu" --config "$work/gpt2.json" --layers 12 --heads 12 --channels 768 --context 1024 --steps "$steps" \
    --generate 0 --summary "$work/summary" || exit 1
awk '$1 == "step_ms" {printf "train_gpt_gpu: %.0f tokens/s (vocabulary of 256; llm.c has 50,257)\n", 4 * 1024 * 1000 / $2}' "$work/summary"
if [ -n "${LLMC:-}" ]; then
    (cd "$LLMC" && ./train_gpt2cu -b 4 -t 1024 -x "$steps" -v 0 -s 0) || exit 1
else
    echo "no llm.c: give LLMC=..., its folder"
fi
