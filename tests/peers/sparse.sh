#!/bin/bash
# ds_sparse.h beside PyTorch's scaled_dot_product_attention under the same block masks, in turns, best of all rounds; the goal is
# 0.6 / density times as fast. PYTHON names an interpreter that has torch. environment: PYTHON (python3), B, TOKENS, THREADS, ROUNDS
set -u
cd "$(dirname "$0")/../.."
B=${B:-build} python=${PYTHON:-python3} tokens=${TOKENS:-2048} threads=${THREADS:-1} rounds=${ROUNDS:-5} heads=2 dim=64 block=64
"$python" -c 'import torch' 2>/dev/null || { echo "no torch: give PYTHON=..., an interpreter that has it"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
section() { echo "{\"train_batch_size\": 1, \"sparse_attention\": {$1, \"block\": $block, \"attention\": \"bidirectional\"}}" >"$work/$2.json"; }
section '"mode": "dense"' dense
section '"mode": "fixed"' fixed
section '"mode": "bigbird", "num_random_blocks": 2' bigbird
for turn in 1 2; do
    "$B/ds" bench sparse --heads $heads --seq-len "$tokens" --head-dim $dim --block $block --threads "$threads" --rounds "$rounds" --json \
        >>"$work/ours" || exit 1
    for name in dense fixed bigbird; do
        [[ $turn = 1 ]] && { "$B/ds" layout "$work/$name.json" --heads $heads --seq-len "$tokens" >"$work/$name.layout" || exit 1; }
        "$python" tests/peers/sparse.py "$work/$name.layout" $heads "$tokens" $dim "$threads" "$rounds" >>"$work/$name.theirs" || exit 1
    done
done
ours() { # LAYOUT KEY: the least, in ms
    grep -F "\"layout\": \"$1\"" "$work/ours" | grep -oE "\"$2_seconds\": [0-9.e+-]+" | awk '{t = 1e3 * $2} !b || t < b {b = t} END {print b}'
}
least() { awk -v f="$2" '!b || $f < b {b = $f} END {print b}' "$work/$1.theirs"; }
printf '%-8s %8s %12s %12s %8s %12s %12s %8s %8s\n' layout density 'forward ms' torch faster 'backward ms' torch faster goal
for pair in dense:dense fixed:fixed 'bigbird:bigbird, 2 random'; do
    name=${pair%%:*}
    awk -v n="$name" -v d="$(awk 'NR == 1 {print $2}' "$work/$name.theirs")" -v f="$(ours "${pair#*:}" forward)" -v b="$(ours "${pair#*:}" backward)" \
        -v tf="$(least "$name" 4)" -v tb="$(least "$name" 6)" \
        'BEGIN {printf "%-8s %8.3f %12.2f %12.2f %8.2f %12.2f %12.2f %8.2f %8.2f\n", n, d, f, tf, tf / f, b, tb, tb / b, 0.6 / d}'
done
