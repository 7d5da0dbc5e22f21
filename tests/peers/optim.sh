#!/bin/bash
# ds_optim.h beside PyTorch's and DeepSpeed's optimizers, in turns, best of all rounds. PYTHON names an interpreter that has torch
# and, for DeepSpeed's lines, deepspeed 0.19.6. LEVEL=avx2 runs ours at that level and builds DeepSpeed's kernels as it does where
# there is no AVX-512. environment: PYTHON (python3), B (build), ELEMENTS, THREADS, TURNS, ROUNDS, LEVEL (best)
set -u
cd "$(dirname "$0")/../.."
B=${B:-build} python=${PYTHON:-python3} elements=${ELEMENTS:-16777216} threads=${THREADS:-$(nproc)} level=${LEVEL:-best}
"$python" -c 'import torch' 2>/dev/null || { echo "no torch: give PYTHON=..., an interpreter that has it"; exit 0; }
PATH=$(dirname "$python"):$PATH # DeepSpeed's build looks for ninja
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for _ in $(seq "${TURNS:-3}"); do
    "$B/ds" bench optim --elements "$elements" --threads "$threads" --rounds "${ROUNDS:-7}" --level "$level" \
        >>"$work/ours" || exit 1
    "$python" tests/peers/optim.py "$elements" "$threads" "${ROUNDS:-7}" "$level" >>"$work/theirs" 2>"$work/err" || { tail -5 "$work/err"; exit 1; }
done
ours() { # its line: the name, two blanks or more, bytes per element, milliseconds
    awk -v k="$1" 'index($0, k "  ") == 1 {split(substr($0, length(k) + 1), f, " "); if (!best || f[2] < best) best = f[2]}
        END {print best}' "$work/ours"
}
theirs() { awk -v k="$1" '$1 == k && (!best || $2 < best) {best = $2} END {print best}' "$work/theirs"; }
row() { # OURS THEIRS
    local a b
    a=$(ours "$1") b=$(theirs "$2")
    [[ -n $a && -n $b ]] && awk -v a="$a" -v b="$b" -v n="$1" -v m="$2" \
        'BEGIN {printf "%-36s %9.3f ms   %-26s %9.3f ms   %5.2f times as fast\n", n, a, m, b, b / a}'
}
row 'AdamW fp32' torch_adamw_fused
row 'AdamW fp32' torch_adamw_foreach
row 'AdamW fp32' deepspeed_cpuadam_fp32
row 'AdamW bf16, norm, clip' deepspeed_cpuadam_bf16
row 'AdamW bf16, norm, clip' deepspeed_separate_passes
row 'SGD with momentum fp32' torch_sgd_momentum_fused
row 'Lamb fp32' torch_lamb
row 'AdamW fp32, 1,000 tensors of 1 K' torch_thousand_foreach
row 'AdamW fp32, 1,000 tensors of 1 K' torch_thousand_fused
