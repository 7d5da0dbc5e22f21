#!/bin/bash
# train_gpt given what is wrong: each ends with the right exit status (1 the input, 2 the usage, 3 the environment) and a message
# that names the cause, leaves no process, no shared memory and no swap file, and does not spoil what was there. environment: B
set -u
cd "$(dirname "$0")/../.."
. tests/tools/train_gpt.sh
refused() { # NAME STATUS TEXT: what `ranks` or a command has left in $got and err
    [[ $got =~ ^($2)$ ]]
    check $? "$1: exit status $got, expected $2" err
    grep -qE -- "$3" err
    check $? "$1: no message has '$3'" err
    grep -qiE 'sanitizer|segmentation|core dumped|assert' err && check 1 "$1: crashed" err
    clean "$1"
}
bad() { # NAME STATUS TEXT CONFIG OPTIONS...: at two ranks
    local name=$1 status=$2 text=$3 config=$4 data=$data
    shift 4
    [[ "$*" != *--data* ]] || data=''
    ranks 2 "$config" --steps 3 --generate 0 "$@"
    got=$?
    refused "$name" "$status" "$text"
}
config() { # FILE: from stdin, with an optimizer
    sed 's/OPTIMIZER/"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}/' >"$1"
}
good=$configs/stage0.json

# the configuration
bad missing_config 1 "cannot read 'nowhere.json': No such file" nowhere.json
bad folder_as_config 1 "cannot read '.*': Is a directory" "$work"
echo '{"train_micro_batch_size_per_gpu": 4,' >cut.json
bad cut_config 1 'cut.json:2:1: error' cut.json
printf '{\n  "train_micro_batch_size_per_gpu": 4,\n  "zero_optimization": {"stage" 3}\n}\n' >colon.json
bad malformed_config 1 'colon.json:3:[0-9]+: error' colon.json
: >empty.json
bad empty_config 1 'empty.json:1:1: error' empty.json
config product.json <<<'{"train_batch_size": 7, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, OPTIMIZER}'
bad batch_that_does_not_multiply_out 1 'train_batch_size.*7' product.json
config alone.json <<<'{"gradient_accumulation_steps": 2, OPTIMIZER}'
bad accumulation_alone 1 'train_batch_size' alone.json
config typo.json <<<'{"train_micro_batch_size_per_gpu": 4, "gradient_cliping": 1.0, OPTIMIZER}'
bad unknown_key 1 'typo.json:1:[0-9]+: error: gradient_cliping:.*gradient_clipping' typo.json
config unclaimed.json <<<'{"train_micro_batch_size_per_gpu": 4, "flops_profiler": {"enabled": true}, OPTIMIZER}'
bad key_that_nobody_claims 1 'unclaimed.json: error: .*flops_profiler' unclaimed.json
config stage.json <<<'{"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 4}, OPTIMIZER}'
bad stage_out_of_range 1 'stage.json:1:[0-9]+: error: zero_optimization.stage' stage.json
echo '{"train_micro_batch_size_per_gpu": 4}' >no_optimizer.json
bad no_optimizer 1 'optimizer' no_optimizer.json
config two.json <<<'{"train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": true}, "fp16": {"enabled": true}, OPTIMIZER}'
bad both_16_bit_types 1 'fp16' two.json

config explodes.json <<<'{"train_micro_batch_size_per_gpu": 4, "optimizer": {"type": "AdamW", "params": {"lr": 1e30}}}'
bad loss_that_is_not_a_number 1 'step [23]: the loss is -?(nan|inf) and cannot come back' explodes.json

# what is written at the end is tried before training begins, and nothing of the try is left
bad curve_in_no_folder 3 "--svg: cannot write 'nowhere/loss.svg': No such file" "$good" --svg nowhere/loss.svg
bad summary_over_a_folder 3 "--summary: cannot write '$work': Is a directory" "$good" --summary "$work"
: >file
bad save_below_a_file 3 "--save: cannot write 'file/saved': Not a directory" "$good" --save file/saved
bad save_into_a_file 3 "--save: cannot write 'file': Not a directory" "$good" --save file
bad corpus_missing_saves_nothing 1 'nowhere.txt' "$good" --svg new.svg --save new/saved --data nowhere.txt
[[ ! -e new.svg && ! -e new ]]
check $? 'a run that did not begin left what it would have written'

# usage
usage() { # NAME TEXT OPTIONS...
    local name=$1 text=$2
    shift 2
    "$B/train_gpt" "$@" >out 2>err </dev/null
    got=$?
    refused "$name" 2 "$text"
    grep -q '^usage: train_gpt' err && [[ ! -s out ]]
    check $? "$name: usage goes to stderr"
}
usage no_config -- '--config is missing'
usage unknown_argument "unknown argument: '--stepz'" --config "$good" --stepz 3
usage not_a_number "not a number in range: '3x'" --config "$good" --steps 3x
usage negative "not a number in range: '-1'" --config "$good" --steps -1
usage value_missing "lacks its value: '--steps'" --config "$good" --steps
usage heads_do_not_divide 'not a multiple' --config "$good" --channels 30 --heads 4
usage save_every_without_save 'needs --save' --config "$good" --save-every 2

# the text
: >nothing
head -c 200 "$root/LICENSE" >short
bad missing_text 1 "cannot read 'nowhere.txt': No such file" "$good" --data nowhere.txt
bad folder_as_text 1 "cannot read '.*': Is a directory" "$good" --data "$work"
bad empty_text 1 'corpus has 0 bytes.*one sequence takes 33.*at least 660 bytes' "$good" --data nothing
bad short_text 1 'corpus has 190 bytes' "$good" --data short

# the disk: optimizer states and parameters of zero3_nvme.json
swap() { # FILE FOLDER: the configuration with its swap files there, and without monitors
    sed "s|\"nvme_path\": \"build\"|\"nvme_path\": \"$2\"|; s|\"enabled\": true, \"output_path\"|\"enabled\": false, \"output_path\"|" \
        "$configs/zero3_nvme.json" >"$1"
}
swap gone.json "$work/no/such/folder"
bad nvme_path_that_does_not_exist 3 "$work/no/such/folder.*No such file" gone.json
swap file.json "$work/short"
bad nvme_path_that_is_a_file 3 "$work/short.*Not a directory" file.json
mkdir -m 555 readonly
swap readonly.json "$work/readonly"
if [[ $(id -u) != 0 ]]; then
    bad nvme_path_that_is_not_writable 3 "$work/readonly.*Permission denied" readonly.json
elif command -v setpriv >/dev/null && chmod 755 "$work" && setpriv --reuid 65534 --regid 65534 --clear-groups \
    test -x "$B/train_gpt" -a -r "$work/readonly.json"; then
    setpriv --reuid 65534 --regid 65534 --clear-groups "$B/ds" run -n 2 -- "$B/train_gpt" --config "$work/readonly.json" \
        $data $model --steps 3 >out 2>err </dev/null
    got=$?
    refused nvme_path_that_is_not_writable 3 "$work/readonly.*Permission denied"
else skip 'nvme_path_that_is_not_writable: another user cannot run the program' 3; fi
mkdir full
if [[ $(id -u) = 0 ]] && mount -t tmpfs -o size=256k tmpfs "$work/full" 2>/dev/null; then
    trap 'end_started; umount "$work/full"; rm -rf "$work"' EXIT
    swap full.json "$work/full"
    bad nvme_path_that_is_full 3 "$work/full.*(No space left|full)" full.json
    [[ -z $(ls -A full) && $(df --output=used full | tail -n 1 | tr -d ' ') = 0 ]]
    check $? 'the full disk is empty afterwards'
    # a checkpoint that does not fit: the one before it stays, and opens
    ranks 2 "$good" --steps 2 --generate 0 --layers 0 --heads 1 --channels 8 --save full/saved
    check $? 'a small checkpoint fits' err
    head -c 300000 /dev/zero >full/ballast 2>/dev/null
    ranks 2 "$good" --steps 4 --generate 0 --layers 0 --heads 1 --channels 8 --save full/saved --resume full/saved
    got=$?
    refused checkpoint_that_does_not_fit 3 'full/saved.*(No space left|full)'
    rm full/ballast
    ranks 2 "$good" --steps 4 --generate 0 --layers 0 --heads 1 --channels 8 --resume full/saved
    check $? 'the checkpoint before it opens' err
    grep -q 'resumed at step 2$' err
    check $? 'and is that of step 2' err
    umount full
    trap 'end_started; rm -rf "$work"' EXIT
else skip 'a full disk: mounting a tmpfs is not allowed' 11; fi
swap works.json "$work"
ranks 2 works.json --steps 3 --generate 0
check $? 'the same configuration with a folder that can be written' err

# checkpoints
ranks 2 "$configs/stage2.json" --steps 3 --generate 0 --save saved
check $? 'a checkpoint' err
bad no_checkpoint_there '[13]' "resum|load|nowhere" "$good" --resume nowhere
mkdir bare
bad folder_without_checkpoint '[13]' 'bare' "$good" --resume bare
bad wider_model 1 "another model" "$good" --resume saved --channels 64
bad deeper_model 1 "another model" "$good" --resume saved --layers 3
bad shallower_model 1 "another model" "$good" --resume saved --layers 1
bad other_heads 1 "another model: 2 layers of 2 heads" "$good" --resume saved --heads 4
bad longer_context 1 "another model" "$good" --resume saved --context 16
sed 's/"AdamW"/"Lion"/; s/"eps": 1e-8, //' "$good" >lion.json
bad other_optimizer 1 'optimizer' lion.json --resume saved
ranks 2 "$good" --steps 5 --generate 0 --resume saved
check $? 'the checkpoint itself is sound after all this' err

# a world that is not as the launcher says; waits are cut to three seconds
alone() { # NAME STATUS TEXT VARIABLES...: one process
    local name=$1 status=$2 text=$3
    shift 3
    timeout 60 env "$@" "$B/train_gpt" --config "$good" $data $model --steps 3 --generate 0 --timeout 3 >out 2>err </dev/null
    got=$?
    refused "$name" "$status" "$text"
}
port=$((20000 + $$ % 20000))
alone rank_that_never_starts 3 '(rank 1|1 of 2)' RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port DS_RUN_ID=one$$
alone rank_outside_the_world 1 'RANK.*WORLD_SIZE' RANK=2 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port
alone half_a_set 1 'RANK is set but WORLD_SIZE is not' RANK=0
alone no_number 1 'WORLD_SIZE' RANK=0 WORLD_SIZE=two
alone two_launchers_disagree 1 'WORLD_SIZE.*OMPI_COMM_WORLD_SIZE|OMPI_COMM_WORLD_SIZE.*WORLD_SIZE' \
    RANK=0 WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=3
for r in 0 1; do # one was told of two ranks, the other of three
    env RANK=$r WORLD_SIZE=$((2 + r)) LOCAL_RANK=$r LOCAL_WORLD_SIZE=$((2 + r)) MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
        DS_RUN_ID=differ$$ timeout 60 "$B/train_gpt" --config "$good" $data $model --steps 3 --generate 0 --timeout 3 >out.$r 2>err.$r &
    pids[r]=$!
done
for r in 0 1; do
    wait "${pids[r]}"
    got=$?
    mv err.$r err
    refused "two_sizes_of_the_world at rank $r" '[13]' '(world|rank|ranks)'
done

# SIGKILL in the middle of a step: the others stop within 10 s, and name the rank
slow="--layers 4 --heads 4 --channels 256 --context 256 --data $root/ds_config.h --steps 100000"
for name in stage0 stage3 zero3_nvme; do
    sed 's/"steps_per_print": 20/"steps_per_print": 1/' "$configs/$name.json" >$name.each.json
    for r in 0 1 2; do
        env RANK=$r WORLD_SIZE=3 LOCAL_RANK=$r LOCAL_WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT=$port DS_RUN_ID=kill$$$name \
            "$B/train_gpt" --config "$work/$name.each.json" $slow >out 2>err.$r </dev/null &
        pids[r]=$!
    done
    for _ in $(seq 200); do
        grep -q '^step' err.0 && break
        sleep 0.1
    done
    grep -q '^step' err.0
    check $? "$name: trains until it is killed" err.0
    kill -KILL "${pids[1]}"
    before=$(date +%s)
    wait "${pids[1]}" 2>/dev/null
    for r in 0 2; do
        wait "${pids[r]}"
        got=$?
        cp err.$r err
        refused "$name: rank 1 killed, rank $r" 3 'rank 1'
    done
    [[ $(($(date +%s) - before)) -le 10 ]]
    check $? "$name: the others stop within 10 s: $(($(date +%s) - before)) s"
done
"$B/ds" run -n 2 -- "$B/train_gpt" --config "$work/stage3.each.json" $slow >out 2>err </dev/null &
started=$!
for _ in $(seq 200); do
    grep -q '^step' err && break
    sleep 0.1
done
kill -KILL "$(children $started | sort -n | tail -n 1)"
wait $started
got=$?
refused 'a rank killed under ds run' 137 'rank 1 ended by signal 9'

# no memory: on all ranks, and on one, which the other must learn
large="--layers 4 --heads 4 --channels 512 --context 128 --data $root/ds_config.h --steps 2 --generate 0"
if grep -q 'libasan\|libtsan' <(ldd "$B/train_gpt"); then
    skip 'no memory: a sanitizer needs its address space' 9
else
    for limit in 60000 120000 180000; do
        (ulimit -d $limit && OPENBLAS_NUM_THREADS=1 timeout 100 "$B/ds" run -n 2 -- "$B/train_gpt" --config "$configs/stage0.json" $large) \
            >out 2>err </dev/null
        got=$?
        refused "at most $limit KiB of data" 3 'memory'
    done
    OPENBLAS_NUM_THREADS=1 timeout 100 "$B/ds" run -n 2 -- bash -c '[ "$RANK" = 0 ] || ulimit -d 120000; exec "$@"' _ \
        "$B/train_gpt" --config "$configs/stage0.json" $large >out 2>err </dev/null
    got=$?
    refused 'one rank without memory' 3 'rank 1: .*memory'
fi
summary
