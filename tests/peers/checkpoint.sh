#!/bin/bash
# Checkpoints there and back: DeepSpeed goes on training from ours and we from its, its zero_to_fp32.py reads our ZeRO files,
# transformers opens an export and gives the same logits, and safetensors' own reader agrees with ours on malformed files.
# environment: DEEPSPEED_PYTHON, a python with torch, deepspeed 0.19.6, transformers and safetensors; B (build). usage: checkpoint.sh [WORD...]: only the cases with one of the words
set -u
cd "$(dirname "$0")/../.."
if [ -z "${DEEPSPEED_PYTHON:-}" ]; then
    echo "SKIP checkpoints: set DEEPSPEED_PYTHON to a python with torch, deepspeed==0.19.6, transformers and safetensors:"
    echo "     python3 -m venv VENV && VENV/bin/pip install torch deepspeed==0.19.6 transformers safetensors"
    exit 0
fi
B=${B:-build}
make -s "$B/ds" "$B/train_gpt" || exit 1
out=$(mktemp -d) && trap 'rm -rf "$out"' EXIT
${CC:-cc} -std=gnu99 -O2 -I. -o "$out/logits" tests/peers/checkpoint_logits.c -lpthread -lm || exit 1
"$DEEPSPEED_PYTHON" tests/peers/checkpoint.py "$B" "$out" "$@"
