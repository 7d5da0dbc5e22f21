#!/bin/bash
# ds_tool_test.sh - the command-line tool as scripts use it: outputs, messages, exit statuses, signals.
set -u
ds=${B:-build}/ds
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0 failed=0
# check NAME: the last command's status
check() {
    local status=$?
    if [ $status -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAIL $1"; fi
}
# status NAME EXPECTED COMMAND...: its output and messages are left in $scratch/out and $scratch/err
status() {
    local name=$1 expected=$2 got
    shift 2
    "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
    got=$?
    [ $got -eq "$expected" ] || echo "  $name: exit status $got, expected $expected: $(head -c 300 "$scratch/err")"
    [ $got -eq "$expected" ]
    check "$name"
}
says() { # says NAME FILE TEXT
    grep -qF -- "$3" "$scratch/$2" || { echo "  $1: no '$3' in: $(head -c 300 "$scratch/$2")" && false; }
    check "$1"
}
good='{"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "optimizer": {"type": "Adam", "params": {"lr": 0.001}}}'
echo "$good" >"$scratch/good.json"
printf '{\n  "train_batch_size": 32,\n  "zero_optimization": {"stages": 2}\n}\n' >"$scratch/bad.json"

# help and usage
status help 0 "$ds" --help && says help_lists out 'config'
for command in config json memory schedule loss-scale run; do
    status "help_$command" 0 "$ds" $command --help
    says "help_${command}_usage" out "usage: ds $command"
done
# figures of collectives: the bytes on the wire are those of the manual's formulas, to the byte
status bench_comm 0 "$ds" bench comm --ranks 3 --bytes 100000 --rounds 1 --json
[ "$(grep -o '"sent": [0-9]*, "theory": [0-9]*' "$scratch/out" | awk '$2 + 0 == $4 + 0' | wc -l)" -eq 8 ]
check bench_comm_wire_bytes
status bench_comm_ranks 2 "$ds" bench comm --ranks 0
status bench_help 0 "$ds" bench comm --help
status run_help_of_program 0 "$ds" run -n 1 "$ds" bench --help
# the other figures: each prints JSON, with a figure above zero for each thing that it times
status bench_optim 0 "$ds" bench optim --elements 1024000 --rounds 1 --rows 16 --json
cp "$scratch/out" "$scratch/bench.json"
[ "$(grep -o '"of_ceiling": [0-9.]*[1-9]' "$scratch/bench.json" | wc -l)" -eq 10 ]
check bench_optim_rows
status bench_optim_json 0 "$ds" json "$scratch/bench.json"
status bench_sparse 0 "$ds" bench sparse --seq-len 2048 --rounds 1 --block 64 --heads 1 --lengths --json
cp "$scratch/out" "$scratch/bench.json"
[ "$(grep -o '"seconds": [0-9.e-]*[1-9]' "$scratch/bench.json" | wc -l)" -eq 6 ]
check bench_sparse_rows
status bench_sparse_json 0 "$ds" json "$scratch/bench.json"
status bench_optim_elements 2 "$ds" bench optim --elements 7
status bench_optim_level 2 "$ds" bench optim --level avx9
says bench_optim_level err "best, scalar, avx2 and avx512, not avx9"
status no_command 2 "$ds"
status unknown_command 2 "$ds" frobnicate
status unknown_option 2 "$ds" config --frobnicate "$scratch/good.json"
says unknown_option_named err 'unknown option --frobnicate'
status missing_file_argument 2 "$ds" config
status too_many 2 "$ds" json a b
status bad_world 2 "$ds" config "$scratch/good.json" --world-size 0
status bad_policy 2 "$ds" config "$scratch/good.json" --unknown maybe

# config
status config 0 "$ds" config "$scratch/good.json" --world-size 2
cp "$scratch/out" "$scratch/printed.json"
says config_resolved out '"gradient_accumulation_steps": 4'
says config_all_keys out '"stage3_max_live_parameters": 1000000000'
status config_prints_json 0 "$ds" json "$scratch/printed.json"
status config_again 0 "$ds" config "$scratch/printed.json" --world-size 2
cmp -s "$scratch/out" "$scratch/printed.json"
check config_again_the_same
status config_keys 0 "$ds" config --keys
says config_keys_expects out '| `zero_optimization.stage` | a whole number from 0 to 3 | 0 | 0123 |'
says config_keys_old out 'now zero_optimization.offload_optimizer.device |'
status config_sections 0 "$ds" config --sections
says config_sections_of_zero out '| `zero_optimization` |'
tests/tools/keys.sh --check
check tables_of_keys_in_README_and_KEYS
"$ds" config - --world-size=2 <"$scratch/good.json" | cmp -s - "$scratch/printed.json"
check config_from_stdin
status config_contradiction 1 "$ds" config "$scratch/good.json" --world-size 3
says config_equation err 'train_batch_size 32 is not train_micro_batch_size_per_gpu 4 * gradient_accumulation_steps 2 * world size 3'
[ ! -s "$scratch/out" ]
check config_failure_prints_nothing
status config_unknown 1 "$ds" config "$scratch/bad.json"
says config_unknown_place err 'bad.json:3:25: error: zero_optimization.stages: unknown key; did you mean "stage"?'
status config_warn 0 "$ds" config "$scratch/bad.json" --unknown warn
says config_warned err 'warning: zero_optimization.stages'
status config_ignore 0 "$ds" config "$scratch/bad.json" --unknown ignore
[ ! -s "$scratch/err" ]
check config_ignored_in_silence
status config_no_file 1 "$ds" config "$scratch/none.json"
says config_no_file_named err 'none.json'
status config_folder 1 "$ds" config "$scratch"
status config_explain 0 "$ds" config "$scratch/good.json" --explain
says explain_row out 'gradient_accumulation_steps'
grep -Eq '^gradient_accumulation_steps +8 +derived +- ' "$scratch/out"
check explain_origin
"$ds" config "$scratch/good.json" >/dev/full 2>"$scratch/err"
[ $? -eq 3 ]
check full_disk_is_an_error

# json
printf '[1, 2' >"$scratch/open.json"
status json_wrong 1 "$ds" json "$scratch/open.json"
says json_place err "open.json:1:6: expected ',' or ']'"
printf '{"a": 1,}' >"$scratch/comma.json"
status json_strict 1 "$ds" json "$scratch/comma.json"
printf '{"a": 1}' | "$ds" json -
check json_stdin

# memory: DeepSpeed's estimates for 2.851e9 parameters on one GPU
status memory 0 "$ds" memory --params 2851000000 --largest-layer 32000000
grep -Eq '^2 +cpu +none +- +68424000000 +5702000000$' "$scratch/out"
check memory_stage2_offload
grep -Eq '^2 +none +none +- +17106000000 +57020000000$' "$scratch/out"
check memory_stage2
status memory_wrong 2 "$ds" memory --params x
status memory_missing 2 "$ds" memory
status memory_scientific 0 "$ds" memory --params 7e9

# schedule and loss-scale
cat >"$scratch/schedule.json" <<'EOF'
{"train_batch_size": 1, "optimizer": {"type": "Adam", "params": {"lr": 0.001}},
 "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 10,
                                              "warmup_type": "linear"}},
 "fp16": {"enabled": true, "initial_scale_power": 4, "hysteresis": 1, "loss_scale_window": 2}}
EOF
status schedule 0 "$ds" schedule "$scratch/schedule.json" --steps 13
[ "$(wc -l <"$scratch/out")" -eq 14 ] && [ "$(head -n 1 "$scratch/out")" = step,lr ]
check schedule_rows
[ "$(sed -n 2p "$scratch/out")" = 0,0 ] && grep -Eq '^12,0.001' "$scratch/out"
check schedule_values
# rows NAME 'STEP,VALUE...' OPTIMIZER SCHEDULER_TYPE PARAMS: what `ds schedule --steps 4` prints, to 6 digits, blanks between rows
rows() {
    local got
    got=$(echo "{\"train_batch_size\": 1, \"optimizer\": {\"type\": \"$3\", \"params\": {\"lr\": 0.5}}, \"scheduler\": {\"type\":
        \"$4\", \"params\": {$5}}}" | "$ds" schedule - --steps 4 2>"$scratch/err" |
        awk -F, 'NR > 1 {printf "%s%.6g", (NR > 2 ? " " : ""), $2; for (i = 3; i <= NF; i++) printf ",%.6g", $i}')
    [ "$got" = "$2" ] || { echo "  $1: $got; expected $2: $(head -c 300 "$scratch/err")" && false; }
    check "$1"
}
rows schedule_max_0 '0.1 0.1 0 0' Adam WarmupLR '"warmup_max_lr": 0, "warmup_min_lr": 0.1, "warmup_num_steps": 2'
rows schedule_max_null '0 0 0.5 0.5' Adam WarmupLR '"warmup_max_lr": null, "warmup_num_steps": 2'
rows schedule_decay_max_0 '0.1 0.1 0 0' Adam WarmupDecayLR \
    '"warmup_max_lr": 0, "warmup_min_lr": 0.1, "warmup_num_steps": 2, "total_num_steps": 4'
rows schedule_resumed '0.5 0.3 0.3 0.3' Adam WarmupLR '"warmup_max_lr": 0.3, "warmup_num_steps": 10, "last_batch_iteration": 8'
rows schedule_second_0 '0.01,0.8 0.055,0.85 0.01,0.9 0.01,0.9' Adam OneCycle \
    '"cycle_min_lr": 0.01, "cycle_max_lr": 0.1, "cycle_first_step_size": 2, "cycle_second_step_size": 0'
rows schedule_resumed_cycle '0.5,0.9 0.1,0.8 0.055,0.85 0.01,0.9' AdamW OneCycle \
    '"cycle_min_lr": 0.01, "cycle_max_lr": 0.1, "cycle_first_step_size": 2, "last_batch_iteration": 0'
rows schedule_no_betas '0.01 0.055 0.1 0.055' SGD OneCycle '"cycle_min_lr": 0.01, "cycle_max_lr": 0.1, "cycle_first_step_size": 2'
rows schedule_other_type '0 0 0.063093 0.1' Adam WarmupLR \
    '"warmup_max_lr": 0.1, "warmup_num_steps": 3, "warmup_type": "cosine"'
says schedule_other_type err 'warmup_type: should be log or linear; "cosine" is taken as log'
status schedule_no_steps 2 "$ds" schedule "$scratch/schedule.json"
status loss_scale 0 "$ds" loss-scale "$scratch/schedule.json" --overflows 01000
[ "$(tr '\n' ' ' <"$scratch/out")" = "step,loss_scale,skipped 0,16,0 1,8,1 2,8,0 3,8,0 4,16,0 " ]
check loss_scale_values
status loss_scale_ends 1 "$ds" loss-scale "$scratch/schedule.json" --overflows 111111111
says loss_scale_why err 'smallest loss scale'
status loss_scale_wrong 2 "$ds" loss-scale "$scratch/schedule.json" --overflows 012

# run
status run_variables 0 "$ds" run -n 3 -- sh -c 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR ${#DS_RUN_ID}"; [ "$MASTER_PORT" -gt 0 ]'
[ "$(sort "$scratch/out" | tr '\n' ';')" = "0 0 3 3 127.0.0.1 16;1 1 3 3 127.0.0.1 16;2 2 3 3 127.0.0.1 16;" ]
check run_variables_values
status run_arguments 0 "$ds" run -n 1 printf '%s|' a -n 'b c'
[ "$(cat "$scratch/out")" = 'a|-n|b c|' ]
check run_arguments_left_alone
status run_first_failure 7 "$ds" run -n 3 sh -c '[ "$RANK" = 1 ] && exit 7; sleep 30'
says run_names_rank err 'rank 1 ended with status 7'
status run_killed 137 "$ds" run -n 2 sh -c '[ "$RANK" = 0 ] && kill -9 $$; sleep 30'
status run_no_program 127 "$ds" run -n 1 "$scratch/no-such-program"
status run_missing 2 "$ds" run -n 2
status run_zero 2 "$ds" run -n 0 true
status run_without_n 2 "$ds" run true
# a signal is passed on once to every rank; their status comes back
"$ds" run -n 2 bash -c 'trap "echo got >>'"$scratch"'/got; exit 5" TERM; echo ready >>'"$scratch"'/ready; while :; do sleep 0.1; done' 2>/dev/null &
pid=$!
for _ in $(seq 100); do [ -f "$scratch/ready" ] && [ "$(wc -l <"$scratch/ready")" -eq 2 ] && break; sleep 0.1; done
kill -TERM $pid
wait $pid
[ $? -eq 5 ]
check run_signal_status
[ "$(wc -l <"$scratch/got")" -eq 2 ]
check run_signal_once_each
# what a rank leaves behind ends too
status run_orphans 3 "$ds" run -n 1 sh -c 'sleep 300 & echo $! >'"$scratch"'/orphan; exit 3'
sleep 0.3
! grep -q '^State:[[:space:]]*[RSDT]' "/proc/$(cat "$scratch/orphan")/status" 2>/dev/null # gone, or not yet collected
check run_leaves_no_process

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
