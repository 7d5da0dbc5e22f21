#!/bin/bash
# The main job: a GPT trains on real text, on two ranks, under ZeRO-3 with optimizer states and parameters on disk; then the
# same training at every stage, and a table of what each cost; on a GPU when there is one.
# environment: B (build), STEPS (150), RANKS (2), NVCC, MAKE
set -eu
B=${B:-build} steps=${STEPS:-150} ranks=${RANKS:-2}
out=$B/demo
mkdir -p "$out" build
program=train_gpt
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    echo "no GPU: nvidia-smi names none; the CPU trains"
elif [ -z "${NVCC:-}" ]; then
    echo "no GPU: there is one, but no nvcc (CUDA toolkit) to build for it; the CPU trains"
elif ! ${MAKE:-make} -s "$B/train_gpt_gpu" >&2; then
    echo "no GPU: build/train_gpt_gpu does not build (see above); the CPU trains"
elif ! "$B/train_gpt_gpu" --config examples/configs/stage0.json --steps 1 --generate 0 --quiet >/dev/null 2>"$out/gpu.log"; then
    echo "no GPU: there is one, but nothing runs on it ($(tail -n 1 "$out/gpu.log")); the CPU trains"
else
    program=train_gpt_gpu
    echo "a GPU trains: $(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)"
fi
echo "A GPT trains on this project's own text: $ranks ranks, ZeRO stage 3, optimizer states and parameters on disk."
echo
run() { # run NAME CONFIG options...
    local name=$1 config=$2
    shift 2
    "$B/ds" run -n "$ranks" -- "$B/$program" --config "examples/configs/$config.json" --steps "$steps" \
        --summary "$out/$name.summary" "$@"
}
run zero3_nvme zero3_nvme --svg "$out/loss.svg" --generate 200
echo
echo "The same training at every stage (same ranks, same data, fp32):"
quiet=--quiet
[ -t 2 ] && quiet='' # the live line is for a terminal
for name in stage0 stage1 stage2 stage3; do
    run "$name" "$name" --generate 0 $quiet >/dev/null
done
field() { awk -v k="$2" '$1 == k {print $2}' "$out/$1.summary"; }
mib() { awk -v b="$1" 'BEGIN {printf "%.2f", b / 1048576}'; }
echo
printf '%-10s %12s %10s %8s %9s %10s %9s  %s\n' 'per rank' 'states (MiB)' 'work (MiB)' 'mapped' 'resident' 'disk (MiB)' 'step (ms)' 'final loss'
for name in stage0 stage1 stage2 stage3 zero3_nvme; do
    case $name in
        zero3_nvme) label='3 + NVMe' ;;
        *) label="stage ${name#stage}" ;;
    esac
    printf '%-10s %12s %10s %8s %9s %10s %9s  %s\n' "$label" "$(mib "$(field $name state_bytes)")" "$(mib "$(field $name work_bytes)")" \
        "$(mib "$(field $name mapped_bytes)")" "$(mib "$(field $name resident_bytes)")" "$(mib "$(field $name disk_bytes)")" "$(field $name step_ms)" "$(field $name loss_hex)"
done
echo 'states: parameters, gradients, optimizer; work: buckets, gathered parameters and tables: the peaks that the engine tells;'
echo "mapped: the allocator's blocks after the second step, in whole pages; resident: their pages that are in memory"
echo '(/proc/self/pagemap).'
echo
n=zero3_nvme
echo "parameters $(field $n parameters); validation loss $(field $n validation_loss) nats, unigram entropy $(field $n unigram_entropy) nats"
echo "stage 3 held at most $(field $n gathered_peak) gathered elements; the live window is $(field $n live_window)"
echo "NVMe: $(field $n requests) requests submitted through $(field $n engine), O_DIRECT $([ "$(field $n direct)" = 1 ] && echo 'in force' || echo 'refused by the file system')"
echo "loss curve: $out/loss.svg; scalars: build/monitor/zero3_nvme (CSV and TensorBoard)"
for name in stage0 stage1 stage2 stage3; do
    if [ "$(field $name loss_hex)" != "$(field $n loss_hex)" ]; then
        echo "error: the final losses differ" >&2
        exit 1
    fi
done
echo "The final loss is the same to the last bit in every row."
