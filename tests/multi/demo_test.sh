#!/bin/bash
# `make demo`, shortened: what its table must show; and at full length what its model must learn. environment: B
set -u
cd "$(dirname "$0")/../.."
. tests/tools/train_gpt.sh
mkdir b bin && ln -s "$B/ds" "$B/train_gpt" b/
# a GPU that is named but cannot be used: the demo says so, and the CPU trains
printf '#!/bin/sh\necho "GPU 0: named"\n' >bin/nvidia-smi
printf '#!/bin/sh\necho "no CUDA driver" >&2\nexit 1\n' >b/train_gpt_gpu
chmod +x bin/nvidia-smi b/train_gpt_gpu
cd "$root" || exit 1
PATH=$work/bin:$PATH NVCC=nvcc MAKE=true B=$work/b STEPS=6 tests/tools/demo.sh >"$work/out" 2>"$work/err" </dev/null
check $? 'the demo ends with 0' "$work/err"
cd "$work" || exit 1
grep -qF 'no GPU: there is one, but nothing runs on it (no CUDA driver); the CPU trains' out
check $? 'a GPU on which nothing runs' out
rows=$(grep -cE '^(stage [0-3]|3 \+ NVMe) .* 0x1\.[0-9a-f]+p\+?[0-9]+$' out)
[[ $rows = 5 && $(grep -oE '0x1\.[0-9a-f]+p\+?[0-9]+$' out | sort -u | wc -l) = 1 ]]
check $? "five rows, one loss" out
grep -qE '^NVMe: [1-9][0-9]* requests submitted through [a-z]+.*, O_DIRECT (in force|refused by the file system)$' out
check $? 'requests and O_DIRECT' out
[[ -s b/demo/loss.svg ]] && grep -q 'generated text:' out
check $? 'a curve and a text' out
for name in stage0 stage1 stage2 stage3 zero3_nvme; do
    # the allocator's own account and the engine's agree: classes peak at different moments, so their sum is above, not far
    f=b/demo/$name.summary
    engine=$(($(field $f state_bytes) + $(field $f work_bytes))) counted=$(field $f allocator_peak)
    [[ $counted -gt 0 && $counted -le $((engine + engine / 10)) ]]
    check $? "$name: allocator's peak $counted, the engine's account $engine"
    # what the hooks counted, and what the kernel says is in memory of it: the same pages, to the last one
    mapped=$(field $f mapped_bytes) resident=$(field $f resident_bytes) blocks=$(field $f blocks)
    [[ $resident = "$mapped" && $mapped -le $((counted + 4096 * blocks)) && $mapped -ge $(field $f state_bytes) ]]
    check $? "$name: $mapped bytes mapped in $blocks blocks, $resident in memory; the allocator's peak is $counted"
done
# what the ZeRO paper says of two ranks, in bytes for each parameter; a tensor is cut into whole grains, which rounds up
for row in stage0:16 stage1:12 stage2:10 stage3:8; do
    f=b/demo/${row%:*}.summary least=$(($(field b/demo/stage0.summary parameters) * ${row#*:}))
    [[ $(field $f state_bytes) -ge $least && $(field $f state_bytes) -le $((least + least / 20)) ]]
    check $? "${row%:*}: $(field $f state_bytes) bytes of states; ${row#*:} for each parameter are $least"
done
[[ $(field b/demo/zero3_nvme.summary state_bytes) -lt $(($(field b/demo/stage3.summary state_bytes) / 20)) ]]
check $? "stage 3 on disk: $(field b/demo/zero3_nvme.summary state_bytes) bytes of states in memory"
[[ $(field b/demo/stage3.summary gathered_peak) -le $(($(field b/demo/stage3.summary live_window) + 12 * 128 * 128 + 13 * 128)) ]]
check $? 'gathered: the live window and a layer at most'
[[ $(field b/demo/stage3.summary parameters) -ge 1000000 ]]
check $? 'a million parameters'
# every stage has these bits, so one is enough
steps=$(sed -n 's/.*STEPS:-\([0-9]*\).*/\1/p' "$root/tests/tools/demo.sh")
cd "$root" || exit 1
timeout 300 "$B/ds" run -n 2 -- "$B/train_gpt" --config "$configs/stage0.json" --steps "$steps" --generate 0 --quiet \
    --summary "$work/long.summary" >"$work/out" 2>"$work/err" </dev/null
check $? "$steps steps" "$work/err"
awk -v v="$(field "$work/long.summary" validation_loss)" -v u="$(field "$work/long.summary" unigram_entropy)" 'BEGIN {exit !(v > 1 && v <= u - 0.7)}'
check $? "validation loss $(field "$work/long.summary" validation_loss) is 0.7 nats below $(field "$work/long.summary" unigram_entropy)"
cd "$work" || exit 1
clean demo
summary
