#!/bin/bash
# train_gpt between two machines (tests/tools/hosts.sh): the same bits as between two processes of one machine; and on a slow
# cable, where the compressed average of 1-bit Adam pays: what it sends is checked, its time beside Adam's is printed.
# At 50 Mbit/s and half a millisecond a step of Adam took 1,272 ms and one of 1-bit Adam 368 ms; at 5 ms, 1,135 and 1,788: 62
# tensors are averaged one by one, and each crosses the cable four times.
# environment: RATE of the slow cable in bits per second (50000000), DELAY in microseconds each way (500)
set -u
cd "$(dirname "$0")/../.."
skips=5
. tests/tools/hosts.sh
rate=${RATE:-50000000} delay=${DELAY:-500}
[[ -x $B/train_gpt_mpi ]] || no_hosts "no Open MPI when train_gpt was built"
config() { # TYPE PARAMS
    echo "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"$1\", \"params\": {\"lr\": 1e-3$2}},
           \"zero_optimization\": {\"stage\": 0}}" >"$work/$1.json"
}
config Adam ''
config OneBitAdam ', "freeze_step": 4'
model="--data tests/golden/gpt_text.txt --layers 5 --heads 4 --channels 128 --context 32 --generate 0 --quiet"
field() { awk -v k="$2" '$1 == k {print $2}' "$1"; }
# train NAME STEPS: what it put on the cable is left in bytes
train() {
    local before=$(sent) status
    on_hosts "$B/train_gpt_mpi" --config "$work/$1.json" $model --steps "$2" --summary "$work/$1.summary" >"$work/log" 2>&1
    status=$?
    bytes=$(($(sent) - before))
    [[ $status -eq 0 ]] || tail -n 20 "$work/log"
    return $status
}
train Adam 6
check adam_between_machines $?
[[ $bytes -gt 10000000 ]]
check "through_the_cable ($bytes bytes)" $?
"$B/ds" run -n 2 -- "$B/train_gpt" --config "$work/Adam.json" $model --steps 6 --summary "$work/local.summary" >"$work/log" 2>&1
[[ $? -eq 0 && -n $(field "$work/local.summary" loss_hex) && $(field "$work/local.summary" loss_hex) = $(field "$work/Adam.summary" loss_hex) ]]
check "the bits of one machine" $?

if ! slow_cable "$rate" "$delay"; then
    skip "this machine limits no rate (no TUN device)" 2
    summary
    exit
fi
total_us() { awk -v n="$2" '$1 == "step_ms" {printf "%d", 1000 * $2 * (n - 1)}' "$work/$1.summary"; }
for type in Adam OneBitAdam; do # what steps 7 to 12 take and send, all of them after the freeze
    train "$type" 6 || check "$type on the slow cable" 1
    short=$bytes short_us=$(total_us "$type" 6)
    train "$type" 12 || check "$type on the slow cable" 1
    eval "${type}_bytes=$(((bytes - short) / 6)) ${type}_ms=$((($(total_us "$type" 12) - short_us) / 6000))"
done
echo "a step at $rate bit/s and $delay us each way: Adam $Adam_ms ms and $Adam_bytes bytes, 1-bit Adam $OneBitAdam_ms ms and $OneBitAdam_bytes bytes"
# 32 bits become 1 (counted to the byte by ds_comm_test); the messages that say who calls what, and TCP's own bytes, come on top
[[ $OneBitAdam_bytes -gt 0 && $((OneBitAdam_bytes * 20)) -lt $Adam_bytes ]]
check "1-bit sends less than a twentieth: $OneBitAdam_bytes of $Adam_bytes" $?
[[ $Adam_bytes -gt $(($(field "$work/Adam.summary" parameters) * 4)) && $Adam_bytes -lt $(($(field "$work/Adam.summary" parameters) * 9 / 2)) ]]
check "Adam sends its gradients once: $Adam_bytes" $?
summary
