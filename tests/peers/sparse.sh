#!/bin/bash
# ds_sparse.h beside torch's scaled_dot_product_attention with the same mask. PYTHON names an interpreter that has torch.
# environment: PYTHON (python3), CC (cc), TOKENS, HEADS, HEAD_DIM, BLOCK, THREADS, ROUNDS
set -u
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null || { echo "no torch: give PYTHON=..., an interpreter that has it"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${CC:-cc}" -std=gnu99 -O2 -shared -fPIC -I. -o "$work/sparse.so" tests/peers/sparse.c -lm -lpthread || exit 1
"$python" tests/peers/sparse.py "$work/sparse.so" "${TOKENS:-2048}" "${HEADS:-4}" "${HEAD_DIM:-64}" "${BLOCK:-64}" \
    "${THREADS:-$(nproc)}" "${ROUNDS:-7}" || exit 1
"$python" tests/peers/sparse_memory.py "${TOKENS:-2048}" "${HEADS:-4}" "${HEAD_DIM:-64}"
