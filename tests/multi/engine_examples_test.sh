#!/bin/bash
# The engine around models that are not the GPT: train_spirals learns, and wrap_trainer's loop stays the trainer's own. Both
# print the same figures at every stage. environment: B
set -u
cd "$(dirname "$0")/../.."
. tests/tools/train_gpt.sh
for program in train_spirals wrap_trainer; do
    for stage in 0 1 2 3; do
        sed "s/\"stage\": 3/\"stage\": $stage/" "configs/$program.json" >"$program$stage.json"
        timeout 120 "$B/ds" run -n 2 -- "$B/$program" "$program$stage.json" >"$program.$stage" 2>err </dev/null
        check $? "$program at stage $stage" err
        cmp -s "$program.0" "$program.$stage"
        check $? "$program at stage $stage prints what it prints at stage 0" "$program.$stage"
    done
done
sed 's/^{/{ "fp16": { "enabled": true },/' configs/wrap_trainer.json >fp16.json
timeout 120 "$B/ds" run -n 2 -- "$B/wrap_trainer" fp16.json >fp16 2>err </dev/null
awk 'NR == FNR {loss[$2] = $4; next} {bad += ($4 - loss[$2]) ^ 2 > 1e-8; n++} END {exit !(n == 4 && !bad)}' \
    wrap_trainer.3 fp16
check $? 'wrap_trainer multiplies its loss by the scale of fp16' fp16 err
right=$(awk '$1 == "right" {print $2}' train_spirals.3)
[[ ${right:-0} -ge 1000 ]]
check $? "three spirals: ${right:-0} right of 1024"
"$B/wrap_trainer" >alone 2>err
check $? 'the trainer without ds' err
last() { awk '$2 == 200 {print $4}' "$1"; }
awk -v own="$(last alone)" -v ds="$(last wrap_trainer.3)" 'BEGIN {exit !(ds > 0 && ds < 0.5 * own)}'
check $? "AdamW on two ranks ($(last wrap_trainer.3)) goes below the trainer's own SGD ($(last alone))"
"$B/wrap_trainer" nowhere.json >out 2>err
[[ $? = 1 ]] && grep -q "cannot read 'nowhere.json'" err
check $? 'a configuration that is not there' err
clean engine_examples
summary
