#!/bin/bash
# train_gpt under every configuration of examples/configs, every stage and offload, every way of starting ranks; saved and
# resumed between stages and world sizes; stopped by signals. environment: B, MPIRUN
set -u
cd "$(dirname "$0")/../.."
. tests/tools/train_gpt.sh
same() { # NAME A B: both there, and equal
    [[ -n $2 && $2 = "$3" ]]
    check $? "$1: '$2' and '$3'"
}
final() { field "$1" loss_hex; }
stages='stage0 stage1 stage2 stage3 zero3_nvme'

# every configuration runs, and learns
for config in "$configs"/*.json; do
    name=$(basename "$config" .json) n=2
    case $name in
    basic_training) n=1 ;;
    large_model_unedited) continue ;;
    esac
    ranks $n "$config" --steps 8 --generate 20 --summary $name.summary --svg $name.svg
    check $? "$name runs" err
    cp out $name.out
    awk -v loss="$(field $name.summary loss)" 'BEGIN {exit !(loss > 3 && loss < 5.6)}'
    check $? "$name: loss $(field $name.summary loss) after 8 steps"
    grep -q '^<svg' $name.svg
    check $? "$name: a curve"
done
ranks 2 "$configs/large_model_unedited.json" --steps 2
[[ $? = 1 ]] && grep -q 'large_model_unedited.json:.*error: .*train_batch_size' err
check $? "large_model_unedited says that it lacks a batch size" err
ranks 2 "$configs/basic_training.json" --steps 2
[[ $? = 1 ]] && grep -q 'train_batch_size.*32' err
check $? "basic_training at two ranks says that its numbers do not multiply out" err

# comms_logger: a summary by operation and size, for the chosen operations; verbose: a line for each call
logger='"comms_logger": {"enabled": true, "verbose": true, "prof_all": false, "prof_ops": ["all_gather"]},'
sed "s/\"gradient_clipping\"/$logger &/" "$configs/stage2.json" >logged.json
ranks 2 logged.json --steps 2 --generate 0
grep -q 'Straggler(ms)' err && grep -q '^all_gather ' err && ! grep -q '^reduce_scatter' err &&
    grep -q 'comm op: all_gather | time (ms)' err
check $? "comms_logger" err

# fp32: the loss, the validation loss and the text generated afterwards are the same in every bit
for name in stage1 stage2 stage3 zero2_cpu zero3_cpu zero3_nvme; do
    same "$name has stage 0's bits" "$(final $name.summary)" "$(final stage0.summary)"
    cmp -s $name.out stage0.out
    check $? "$name prints what stage 0 prints"
done
for name in $stages; do
    ranks 3 "$configs/$name.json" --steps 4 --generate 0 --summary three.$name
    same "$name at three ranks" "$(final three.$name)" "$(final three.stage0)"
done
# 16 bits: within each type the same
for type in bf16 fp16; do
    for stage in 0 1 2 3; do
        sed "s/\"stage\": 2/\"stage\": $stage/" "$configs/$type.json" >$type.$stage.json
        ranks 2 $type.$stage.json --steps 8 --generate 0 --summary $type.$stage.summary
        check $? "$type at stage $stage" err
        same "$type at stage $stage" "$(final $type.$stage.summary)" "$(final $type.summary)"
    done
done
[[ $(final bf16.summary) != "$(final stage0.summary)" && $(final fp16.summary) != "$(final bf16.summary)" ]]
check $? "16-bit types compute something else than fp32"

# what the configuration asked for did happen
[[ $(field zero3_nvme.summary requests) -gt 0 && $(field zero3_nvme.summary disk_bytes) -gt 0 ]]
check $? "zero3_nvme used its disk"
[[ $(field zero3_nvme.summary state_bytes) -lt $(field stage3.summary state_bytes) ]] &&
    [[ $(field stage3.summary state_bytes) -lt $(field stage2.summary state_bytes) ]] &&
    [[ $(field stage2.summary state_bytes) -lt $(field stage1.summary state_bytes) ]] &&
    [[ $(field stage1.summary state_bytes) -lt $(field stage0.summary state_bytes) ]]
check $? "each stage holds less than the one before"
[[ $(head -n 1 build/monitor/zero3_nvme/Train_Samples_train_loss.csv | tr -d '\r') = step,train_loss ]] &&
    [[ -s build/monitor/zero3_nvme/Train_Samples_lr.csv ]] && ls build/monitor/zero3_nvme/events.out.tfevents.* >/dev/null
check $? "CSV and TensorBoard"
# the high water of gathered parameters: at most the live window and one layer, which is more than the embeddings here
sed 's/"stage3_max_live_parameters": 3e5/"stage3_max_live_parameters": 2e4/; s/"stage3_prefetch_bucket_size": 1e5/"stage3_prefetch_bucket_size": 1e4/' \
    "$configs/stage3.json" >window.json
ranks 2 window.json --steps 3 --layers 4 --channels 64 --generate 0 --summary window.summary
layer=$((12 * 64 * 64 + 13 * 64)) gathered=$(field window.summary gathered_peak)
[[ $gathered -le $((20000 + layer)) && $gathered -ge $((12 * 64 * 64)) ]]
check $? "$gathered elements gathered at most; the window and a layer are $((20000 + layer)), a layer's matrices $((12 * 64 * 64))"
grep -q '^step ' err && ! grep -q "$(printf '\r')" err
check $? "in a pipe: lines" err
if script -qc true /dev/null >/dev/null 2>&1; then
    TERM=xterm script -qec "$B/train_gpt --config $configs/stage0.json $data $model --steps 3 --generate 0" typescript >tty </dev/null
    grep -q "$(printf '\r').*step.*loss" tty
    check $? "on a terminal: one live line" tty
else skip "live line: no script(1)"; fi

# every launcher gives the same bits
two=$(final stage3.summary)
launched() { # NAME STATUS...
    local name=$1
    shift
    [[ "$*" =~ ^(0 ?)+$ ]]
    check $? "$name: exit status $*" err
    same "$name" "$(final "$name.summary")" "$two"
}
start="$B/train_gpt --config $configs/stage3.json $data $model --steps 8 --generate 0 --quiet --summary"
port=$((20000 + $$ % 20000))
for r in 0 1; do
    env RANK=$r WORLD_SIZE=2 LOCAL_RANK=$r LOCAL_WORLD_SIZE=2 GROUP_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
        TORCHELASTIC_RUN_ID=none TORCHELASTIC_RESTART_COUNT=0 timeout 60 $start torchrun.summary >out 2>err.$r &
    pids[r]=$!
done
wait "${pids[0]}" && wait "${pids[1]}"
cat err.0 err.1 >err
launched torchrun $?
for r in 0 1; do
    env SLURM_PROCID=$r SLURM_LOCALID=$r SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 SLURM_JOB_ID=$$ \
        SLURM_STEP_ID=0 timeout 60 $start srun.summary >out 2>err.$r &
    pids[r]=$!
done
wait "${pids[0]}" && wait "${pids[1]}"
status=$?
cat err.0 err.1 >err
launched srun $status
if [[ -n ${MPIRUN:-} && -x $B/train_gpt_mpi ]]; then
    options='--oversubscribe --mca btl_vader_single_copy_mechanism none'
    [[ $(id -u) = 0 ]] && options="$options --allow-run-as-root"
    "$MPIRUN" --version 2>&1 | grep -q 'Open MPI\|OpenRTE' || options=''
    # what it keeps to the end, the order of its own locks, and what it copies under them, are Open MPI's
    ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS='detect_deadlocks=0 ignore_noninstrumented_modules=1' timeout 100 "$MPIRUN" $options -np 2 ${start/train_gpt/train_gpt_mpi} mpirun.summary >out 2>err </dev/null
    launched mpirun $?
else skip "mpirun: no MPI" 2; fi

# saved at each stage after 6 of 12 steps, resumed at each stage: the bits of a run that was never interrupted
ranks 2 "$configs/stage0.json" --steps 12 --generate 0 --summary whole.summary
whole=$(final whole.summary)
ranks 2 "$configs/stage3.json" --steps 12 --generate 0 --summary saving.summary --save saving --save-every 5
same "saving changes nothing" "$(final saving.summary)" "$whole"
[[ $(ls -d saving/*/ | wc -l) = 3 ]]
check $? "--save-every 5 and the end make three checkpoints of 12 steps: $(ls saving | tr '\n' ' ')"
for from in $stages; do
    ranks 2 "$configs/$from.json" --steps 6 --generate 0 --save saved.$from --summary six.summary
    check $? "saved at $from" err
    for to in $stages; do
        ranks 2 "$configs/$to.json" --steps 12 --generate 0 --resume saved.$from --summary resumed.summary
        check $? "$from resumed at $to" err
        grep -q 'resumed at step 6$' err
        check $? "$from resumed at $to goes on after step 6" err
        same "$from resumed at $to" "$(final resumed.summary)" "$whole"
        rm -f resumed.summary
    done
    "$B/ds" inspect saved.$from >inspect 2>&1
    check $? "ds inspect reads what $from saved" inspect
done
# other world sizes restore the same state: resharded through one and three ranks, and back to two
for n in 1 3; do
    ranks $n "$configs/stage3.json" --steps 6 --generate 0 --resume saved.zero3_nvme --save reshard.$n
    check $? "two ranks' checkpoint at $n" err
    ranks 2 "$configs/stage2.json" --steps 12 --generate 0 --resume reshard.$n --summary back.summary
    same "through $n and back" "$(final back.summary)" "$whole"
    ranks $n "$configs/stage1.json" --steps 12 --generate 0 --resume saved.stage3 --summary other.summary
    check $? "two ranks' checkpoint goes on at $n" err
    awk -v a="$(field other.summary loss)" 'BEGIN {exit !(a > 3 && a < 5.5)}'
    check $? "and trains there: loss $(field other.summary loss)"
done
for type in bf16 fp16; do
    ranks 2 $type.2.json --steps 4 --generate 0 --save saved.$type
    ranks 2 $type.3.json --steps 8 --generate 0 --resume saved.$type --summary resumed.summary
    same "$type saved at stage 2, resumed at 3" "$(final resumed.summary)" "$(final $type.summary)"
done

# a signal as soon as it is caught, most likely before there is an engine: it is not lost
"$B/train_gpt" --config "$configs/stage0.json" $data $model --steps 1000000 --generate 0 --save early >early.out 2>early.err </dev/null &
started=$!
for _ in $(seq 2000); do # bit 14 of the caught signals is SIGTERM's
    caught=$(awk '$1 == "SigCgt:" {print $2}' "/proc/$started/status" 2>/dev/null)
    (((0x${caught:-0} >> 14) & 1)) && break
    sleep 0.005
done
kill -TERM $started
for _ in $(seq 300); do
    kill -0 $started 2>/dev/null || break
    sleep 0.1
done
kill -KILL $started 2>/dev/null
wait $started
check $? 'a signal during set-up ends with 0' early.err
grep -q '^stopped by a signal after step .*; saved in early' early.err
check $? 'a signal during set-up saves and says so' early.err

# a signal: every rank ends the same step, saves, and says so; the checkpoint goes on as if nothing had been
sed 's/"steps_per_print": 20/"steps_per_print": 1/' "$configs/stage3.json" >each.json
background() { # OPTIONS...: two ranks in the background; waits until a step is done
    : >err
    "$B/ds" run -n 2 -- "$B/train_gpt" --config "$work/each.json" $data $model "$@" >out 2>err </dev/null &
    started=$!
    for _ in $(seq 100); do
        grep -q '^step' err && return
        sleep 0.05
    done
}
for signal in INT TERM; do
    background --steps 100000 --save stopped.$signal
    kill -$signal $started
    wait $started
    check $? "SIG$signal: exit status 0" err
    at=$(sed -n "s/^stopped by a signal after step \([0-9]*\); saved in stopped.$signal\$/\1/p" err)
    [[ -n $at ]]
    check $? "SIG$signal: a sentence" err
    ranks 2 each.json --steps $((${at:-0} + 3)) --generate 0 --resume stopped.$signal --summary resumed.summary
    check $? "SIG$signal: the checkpoint resumes" err
    ranks 2 each.json --steps $((${at:-0} + 3)) --generate 0 --summary straight.summary
    same "SIG$signal: bits after step ${at:-none}" "$(final resumed.summary)" "$(final straight.summary)"
    clean "SIG$signal"
done
# after the last step, while text is generated (it would take hours): all ranks end, and what follows is written
background --steps 2 --generate 100000000 --save generated --summary generated.summary
for _ in $(seq 200); do
    grep -q '^step *2' err && break
    sleep 0.05
done
sleep 0.5
kill -INT $started
wait $started
check $? "a signal while text is generated: exit status 0" err
grep -q '^stopped by a signal after step 2; saved in generated$' err && [[ -s generated.summary ]]
check $? "and a sentence, and the summary" err
clean "a signal while text is generated"
background --steps 100000
kill -TERM $started
wait $started
check $? "a signal without --save: exit status 0" err
grep -q 'stopped by a signal after step [0-9]*; nothing saved (no --save)' err
check $? "and it says that nothing is saved" err
# a second one: at once, in the middle of a step that would take long
if grep -q libtsan <(ldd "$B/train_gpt"); then
    skip 'a second signal in the middle of a step: ThreadSanitizer holds signals back while OpenBLAS computes' 3
else
    background --steps 100000 --layers 6 --heads 8 --channels 512 --context 256 --save never
    kill -TERM $started
    kill -INT $started
    wait $started
    status=$?
    [[ $status = 143 || $status = 130 ]] # whichever of the two came second; the end of a step would have been 0
    check $? "a second signal ends the run in the middle of a step: exit status $status" err
    [[ ! -e never ]]
    check $? "and nothing is saved"
    clean "a second signal"
fi
summary
