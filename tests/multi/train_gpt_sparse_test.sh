#!/bin/bash
# train_gpt with a sparse_attention section: on a text that only attention can predict it learns about as well as with dense
# attention, and a layout in which tokens see only themselves does not; the mode "dense" is dense attention; ranks, stages and resuming change nothing; a section that cannot be met is refused with a sentence. environment: B
set -u
cd "$(dirname "$0")/../.."
. tests/tools/train_gpt.sh
model='--layers 2 --heads 2 --channels 32 --context 60' # no multiple of the block, 8
with() { # FILE SECTION [STAGE]: stage 0's configuration with that section
    sed "s/^{/{\"sparse_attention\": $2,/; s/\"stage\": 0/\"stage\": ${3:-0}/" "$configs/stage0.json" >"$1"
}
loss() { field "$1" validation_loss; }
fixed='{"mode": "fixed", "block": 8, "num_local_blocks": 2, "attention": "unidirectional"}'
bigbird='{"mode": "bigbird", "block": 8, "num_random_blocks": 1, "attention": "unidirectional", "different_layout_per_head": true}'
with dense.json '{"mode": "dense", "block": 8}'
with fixed.json "$fixed"
with bigbird.json "$bigbird"
with both.json '{"mode": "bigbird", "block": 8, "num_random_blocks": 2}'
ranks 2 "$configs/stage0.json" --steps 60 --generate 0 --summary none.summary
check $? "dense attention" err
within() { # A B BOUND: both are losses, and b is no further above or below a
    awk -v a="$1" -v b="$2" -v bound="$3" 'BEGIN {d = a - b; exit !(a > 0 && b > 0 && d < bound && d > -bound)}'
}
for name in dense fixed bigbird both; do
    ranks 2 $name.json --steps 60 --generate 0 --summary $name.summary
    check $? "$name runs" err
done
within "$(loss none.summary)" "$(loss dense.summary)" 0.002 # the same network up to rounding
check $? "dense: $(loss dense.summary), dense attention: $(loss none.summary)"

# Three random letters of sixteen, forty times, then three others: each letter is the one three before it, which no token
# knows of itself. Guessing costs ln 16 = 2.77; a trained model pays that for one letter in forty.
copies=copies.txt
awk 'BEGIN { s = 1; for (n = 0; n < 600; n++) { w = ""
    for (i = 0; i < 3; i++) { s = (s * 16807) % 2147483647; w = w substr("abcdefghijklmnop", int(s / 1024) % 16 + 1, 1) }
    for (r = 0; r < 40; r++) printf "%s", w } }' >$copies
whole_data=$data data="--data $copies"
cp "$configs/stage0.json" copy_none.json
with copy_fixed.json "$fixed"
with copy_bigbird.json "$bigbird"
with copy_self.json '{"mode": "bslongformer", "block": 1, "num_sliding_window_blocks": 1, "global_block_indices": [9999]}'
for name in none fixed bigbird self; do
    sed -i 's/2e-3/1e-2/g' copy_$name.json # the learning rate
    ranks 2 copy_$name.json --steps 250 --generate 0 --summary copy_$name.summary
    check $? "copying with $name runs" err
done
data=$whole_data
dense=$(loss copy_none.summary)
within 0.4 "$dense" 0.2
check $? "copying: dense attention reaches $dense"
for name in fixed bigbird; do
    within "$dense" "$(loss copy_$name.summary)" 0.1
    check $? "copying: $name reaches $(loss copy_$name.summary), dense attention $dense"
done
awk -v a="$dense" -v b="$(loss copy_self.summary)" 'BEGIN { exit !(a > 0 && b > a + 2) }'
check $? "copying: tokens that see only themselves cannot: $(loss copy_self.summary), dense attention $dense"
[[ $(field fixed.summary loss_hex) != "$(field bigbird.summary loss_hex)" ]]
check $? "the layout matters"
with fixed3.json "$fixed" 3
ranks 2 fixed3.json --steps 60 --generate 0 --summary fixed3.summary
check $? "stage 3 runs" err
[[ -n $(field fixed.summary loss_hex) && $(field fixed3.summary loss_hex) = "$(field fixed.summary loss_hex)" ]]
check $? "stage 3 has stage 0's bits"
ranks 1 fixed.json --steps 2 --generate 80 --quiet
check $? "text longer than the context, one sequence at a time" err
with wrong.json '{"mode": "bigbird", "block": 8, "num_random_blocks": 2, "attention": "unidirectional"}'
ranks 2 wrong.json --steps 2
[[ $? = 1 ]] && grep -q 'wrong.json: sparse_attention: ds_sparse: bigbird: .*row 0 has 1 block' err
check $? "a section that cannot be met is refused" err
with window.json '{"mode": "bslongformer", "block": 32}'
ranks 2 window.json --steps 2
[[ $? = 1 ]] && grep -q 'num_sliding_window_blocks must be at most the 2 of a row; got 3' err
check $? "a window that does not fit is refused" err

# ds layout
"$B/ds" layout fixed.json --heads 1 --seq-len 32 --svg fixed.svg >out 2>err && [[ $(tr '\n' ' ' <out) = 'head 0 1000 1100 0110 0111 ' ]]
check $? "ds layout: $(tr '\n' ' ' <out)" err
grep -q '</svg>' fixed.svg
check $? "ds layout --svg"
[[ $("$B/ds" layout bigbird.json --heads 2 --seq-len 256 --seed 1 | md5sum) != "$("$B/ds" layout bigbird.json --heads 2 --seq-len 256 --seed 2 | md5sum)" ]]
check $? "ds layout --seed"
"$B/ds" layout fixed.json --heads 1 --seq-len 33 >out 2>err
[[ $? = 1 ]] && grep -q 'multiple of the block 8; got 33' err
check $? "ds layout at a length that does not fit" err
"$B/ds" layout "$configs/stage0.json" --heads 1 --seq-len 32 >out 2>err
[[ $? = 1 ]] && grep -q 'there is no sparse_attention section' err
check $? "ds layout without a section" err
"$B/ds" layout fixed.json --heads 1 >out 2>err
[[ $? = 2 ]]
check $? "ds layout without a length" err
"$B/ds" layout fixed.json --heads 1 --seq-len 32 --svg no/such/folder/a.svg >out 2>err
[[ $? = 3 ]]
check $? "ds layout into a folder that is not there" err
"$B/ds" bench sparse --seq-len 256 --heads 1 --head-dim 16 --block 16 --rounds 1 >out 2>err && grep -q 'window, half' out
check $? "ds bench sparse" err
"$B/ds" bench sparse --lengths --seq-len 2048 --heads 1 --head-dim 16 --rounds 1 --json >out 2>err && "$B/ds" json out 2>>err &&
    grep -q '"tokens": 2048, "dense": {"seconds": ' out
check $? "ds bench sparse --lengths" err
"$B/ds" bench sparse --lengths --seq-len 1023 >out 2>err
[[ $? = 2 ]]
check $? "ds bench sparse --lengths up to less than its first" err
"$B/ds" bench sparse --lengths --block 48 --seq-len 1024 >out 2>err
[[ $? = 1 ]]
check $? "ds bench sparse --lengths with a block that does not divide" err
"$B/ds" bench sparse --seq-len 100 >out 2>err
[[ $? = 1 ]]
check $? "ds bench sparse at a length that does not fit" err
summary
