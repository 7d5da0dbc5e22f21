#!/bin/bash
# Fuzzes the readers of checkpoints (safetensors, index, manifest, zip, pickle) under ASan and UBSan: nine tenths of the runs
# on at most 2,400 bytes, one tenth on up to 6,000. What was run is added to $B/tests/fuzz/ds_checkpoint.totals, a line for
# each round: date, the header's text (as `git hash-object` names it), runs, longest input. `make soak` goes on where an
# earlier one stopped, until the lines of this text of the header sum up to FUZZ_RUNS.
# environment: B (build folder), CC, FUZZ_RUNS (40000; `make soak` asks for more), FUZZ_SECONDS (a bound; 60),
#   FUZZ_ROUND (1000000: runs between two lines)
set -u
out=${B:-build}/tests/fuzz
here=tests/fuzz
runs=${FUZZ_RUNS:-40000} round=${FUZZ_ROUND:-1000000} until=$((SECONDS + ${FUZZ_SECONDS:-60}))
mkdir -p "$out/checkpoint_found/2400" "$out/checkpoint_found/6000"
passed=0 failed=0 skipped=0
flags="-std=gnu99 -g -I."
if ${CC:-cc} $flags -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -DREPLAY -o "$out/ds_checkpoint_replay" \
    $here/ds_checkpoint_fuzz.c -lpthread &&
    "$out/ds_checkpoint_replay" $here/checkpoint_corpus/*; then
    passed=$((passed + 1))
else
    echo "FAIL replay of the corpus" && failed=$((failed + 1))
fi

# fuzz RUNS LENGTH SEED: one round
fuzz() {
    local left=$((until - SECONDS)) log="$out/ds_checkpoint_fuzz.log" done
    [ $left -gt 0 ] || return 0
    ASAN_OPTIONS=quarantine_size_mb=8 "$out/ds_checkpoint_fuzz" -runs="$1" -max_len="$2" -seed="$3" -max_total_time=$left \
        -timeout=300 -artifact_prefix="$out/" "$out/checkpoint_found/$2" \
        $here/checkpoint_corpus >"$log" 2>&1 || { tail -n 30 "$log"; return 1; }
    done=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log")
    echo "$(date -u +%FT%TZ) $text $done $2" >>"$out/ds_checkpoint.totals"
    total=$((total + done))
}

clang=$(command -v clang || ls /usr/bin/clang-[0-9]* 2>/dev/null | head -n 1)
text=$(git hash-object ds_checkpoint.h 2>/dev/null | cut -c 1-9)
text=${text:-unknown}
total=0
if [ -z "$clang" ] || ! $clang $flags -O2 -fsanitize=fuzzer,address,undefined -fsanitize-trap=undefined \
    -fsanitize-coverage-ignorelist=$here/ds_checkpoint.ignore -o "$out/ds_checkpoint_fuzz" $here/ds_checkpoint_fuzz.c -lpthread \
    2>"$out/ds_checkpoint_fuzz.err"; then
    echo "SKIP fuzzing: needs clang with libFuzzer" && skipped=$((skipped + 1))
else
    if [ "$runs" -gt "$round" ]; then # a soak: what earlier ones did counts
        total=$(awk -v t="$text" '$2 == t {n += $3} END {printf "%d", n}' "$out/ds_checkpoint.totals" 2>/dev/null)
        total=${total:-0}
    fi
    [ "$runs" -gt "$round" ] || round=$runs
    seed=$((total + 1)) good=1
    while [ $good = 1 ] && [ "$total" -lt "$runs" ] && [ $SECONDS -lt $until ]; do
        fuzz $((round * 9 / 10)) 2400 $seed && fuzz $((round / 10)) 6000 $seed || good=0
        seed=$((total + 1))
    done
    if [ $good = 1 ]; then
        passed=$((passed + 1)) && echo "$total executions of $runs"
    else
        echo "FAIL fuzzing" && failed=$((failed + 1))
    fi
fi
printf '%d passed, %d failed' $passed $failed
[ $skipped -eq 0 ] || printf ', %d skipped' $skipped
printf '\n'
[ $failed -eq 0 ]
