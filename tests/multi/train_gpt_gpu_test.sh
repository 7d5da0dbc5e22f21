#!/bin/bash
# train_gpt on the emulated GPU beside train_gpt on the CPU: engine, model, offload, checkpoints and the text that it
# generates. environment: B (build), GPU_PROGRAM (train_gpt_emulated; `make gpu-test`: train_gpt_gpu)
set -u
B=${B:-build} gpu=${GPU_PROGRAM:-train_gpt_emulated} passed=0 failed=0
[ -x "$B/$gpu" ] || { echo "SKIP compiler: no g++: train_gpt on the emulated GPU" && echo "0 passed, 0 failed, 1 skipped" && exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for _ in 1 2 3 4 5 6; do echo "to be, or not to be, that is the question: "; done >"$work/text"
model="--layers 1 --heads 2 --channels 16 --context 8 --generate 2 --data $work/text"
check() { # NAME STATUS
    if [ "$2" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAIL $1"; fi
}
config() { # NAME PRECISION ZERO
    cat >"$work/$1.json" <<END
{"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
 "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "weight_decay": 0.1}}$2, "zero_optimization": {$3}$4}
END
}
run() { # PROGRAM CONFIG STEPS options...
    local program=$1 config=$2 steps=$3
    shift 3
    # shellcheck disable=SC2086
    "$B/$program" --config "$work/$config.json" $model --steps "$steps" --summary "$work/$program.$config" "$@" \
        >"$work/$program.$config.out" 2>"$work/$program.$config.err" || { tail -n 3 "$work/$program.$config.err" && return 1; }
}
field() { awk -v k="$2" '$1 == k {print $2}' "$work/$1"; }
# Losses agree as gpt_gpu_test's bound allows, or as a 16-bit type rounds: 3 steps may each move a weight by a rounding.
agree() { # CONFIG TOLERANCE
    awk -v a="$(field "train_gpt.$1" loss)" -v b="$(field "$gpu.$1" loss)" -v t="$2" \
        'BEGIN {d = a - b; if (d < 0) d = -d; exit !(a > 0 && b > 0 && d <= t * a)}'
}
config dense "" '"stage": 0' ""
config offload ', "bf16": {"enabled": true}' '"stage": 3, "stage3_param_persistence_threshold": 20, "offload_optimizer": {"device": "cpu", "pin_memory": true}, "offload_param": {"device": "cpu"}' ""
config sparse ', "fp16": {"enabled": true, "initial_scale_power": 8}' '"stage": 2' ', "sparse_attention": {"mode": "fixed", "block": 16, "attention": "unidirectional", "num_local_blocks": 2, "num_global_blocks": 1}'
for c in dense:1e-4 offload:4e-3 sparse:1e-3; do
    name=${c%:*}
    run train_gpt "$name" 3
    check "$name on the CPU" $?
    run $gpu "$name" 3
    check "$name on the GPU" $?
    agree "$name" "${c#*:}"
    check "$name: loss $(field "train_gpt.$name" loss) on the CPU, $(field "$gpu.$name" loss) on the GPU" $?
done
grep -q "on a GPU" "$work/$gpu.dense.err"
check "says that it is on a GPU" $?
grep -q "on a GPU" "$work/train_gpt.dense.err"
check "does not say so on the CPU" $((! $?))
# a checkpoint of the GPU goes on there to the same bits as the run without a break
straight=$(field $gpu.offload loss_hex)
run $gpu offload 2 --save "$work/saved" && run $gpu offload 3 --resume "$work/saved"
check "resumes" $?
[ "$(field $gpu.offload loss_hex)" = "$straight" ]
check "a resumed run has the same loss to the bit" $?
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
