#!/bin/bash
# What the keys of checkpoints do to a training run, and that a run goes on to the bit from every format at another stage
# and world size.
set -u
b=${B:-build}
out=$b/tests/checkpoint_keys.$$
passed=0 failed=0
trap 'rm -rf "$out"' EXIT
mkdir -p "$out"
say() { # NAME: on the error stream, since what a command prints may go elsewhere
    { echo "FAIL $1" && tail -n 3 "$out/log"; } >&2
}
check() { # NAME COMMAND...
    local name=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)) && say "$name"; fi
}
train() { # RANKS STAGE KEYS ARGS...: the final loss on stdout
    local ranks=$1 stage=$2 keys=$3
    shift 3
    echo "{\"train_batch_size\": 4, \"optimizer\": {\"type\": \"AdamW\", \"params\": {\"lr\": 1e-3}}, \"scheduler\":
        {\"type\": \"WarmupLR\", \"params\": {\"warmup_max_lr\": 1e-3, \"warmup_num_steps\": 8}},
        \"zero_optimization\": {\"stage\": $stage}$keys}" >"$out/config.json"
    "$b/ds" run -n "$ranks" -- "$b/train_gpt" --config "$out/config.json" --layers 1 --heads 2 --channels 16 --context 16 \
        --generate 1 --data ds_comm.h "$@" >"$out/printed" 2>"$out/log" || return 1
    sed -n 's/^final loss \([^ ]*\) .*/\1/p' "$out/printed" | tail -n 1
}
goes_on() { # EXPECTED RANKS STAGE KEYS FROM
    [[ -n $1 && $(train "$2" "$3" "$4" --steps 8 --resume "$5") == "$1" ]]
}
two=$(train 2 2 "" --steps 8)
check "a run" test -n "$two"
check "saved" train 2 2 "" --steps 4 --save "$out/own" >/dev/null
check "goes on" goes_on "$two" 2 3 "" "$out/own"
for to in universal zero1 zero2 zero3; do
    check "convert to $to" "$b/ds" convert "$out/own" "$out/$to" --to $to --ranks 3
    check "goes on from $to" goes_on "$two" 2 1 "" "$out/$to"
    check "$to comes back" "$b/ds" convert "$out/$to" "$out/back_$to"
    check "goes on from what came back" goes_on "$two" 2 3 "" "$out/back_$to"
done

# load_universal: one folder with a newer ZeRO checkpoint and an older universal one
check "further" train 2 2 "" --steps 6 --save "$out/six" >/dev/null
check "both" "$b/ds" convert "$out/six" "$out/both" --to zero2
check "both" "$b/ds" convert "$out/own" "$out/both" --to universal
resumed() { # STEP KEYS
    train 1 0 "$2" --steps 8 --resume "$out/both" >/dev/null && grep -q "resumed at step $1" "$out/log"
}
check "latest counts" resumed 6 ''
check "load_universal: latest_universal counts" resumed 4 ', "checkpoint": {"load_universal": true}'

# use_node_local_storage: one machine's first rank commits, and the checkpoint says so
check "node local" train 2 1 ', "checkpoint": {"use_node_local_storage": true}' --steps 4 --save "$out/local" >/dev/null
check "it is in the manifest" grep -q '"node_local": true' "$out/local/global_step4/manifest.json"
check "the other has it not" grep -q '"node_local": false' "$out/own/global_step4/manifest.json"
check "it goes on" goes_on "$two" 2 1 ', "checkpoint": {"use_node_local_storage": true}' "$out/local"
rm "$out/local/global_step4/rank-00001.safetensors"
train 1 0 "" --steps 8 --resume "$out/local" >/dev/null
check "and said" grep -q "another node" "$out/log"

# keep_last and save_in_background
check "keep" train 2 2 ', "ds": {"keep_last": 2}' --steps 6 --save "$out/keep" --save-every 1 >/dev/null
check "two are left" test "$(ls "$out/keep" | tr '\n' ' ')" = "global_step5 global_step6 latest "
check "background" train 2 2 ', "ds": {"save_in_background": true}' --steps 4 --save "$out/background" --save-every 1 >/dev/null
check "all are there" test "$(ls "$out/background" | tr '\n' ' ')" = "global_step1 global_step2 global_step3 global_step4 latest "
for step in 1 2 3 4; do
    check "step $step is whole" "$b/ds" inspect "$out/background/global_step$step" >/dev/null
done
check "the same bytes" cmp "$out/background/global_step4/rank-00001.safetensors" "$out/own/global_step4/rank-00001.safetensors"
check "goes on from it" goes_on "$two" 2 0 "" "$out/background"

# weights alone
check "weights" "$b/ds" convert "$out/own" "$out/w.safetensors"
check "start from weights" train 1 0 "" --steps 2 --resume "$out/w.safetensors" >/dev/null
check "no counters come along" grep -q "resumed at step 0" "$out/log"
printf '%d passed, %d failed\n' $passed $failed
[ $failed -eq 0 ]
