#!/bin/bash
# Fuzzes the configuration and JSON readers under ASan and UBSan: nine tenths of the runs on texts of at most 64 bytes (JSON
# itself), one tenth on texts of up to 1,400 (whole configurations). What was run is added to $B/tests/fuzz/ds_config.totals, a
# line for each round: date, the header's text (as `git hash-object` names it), runs, longest text. `make soak` goes on where an
# earlier one stopped, until the lines of this text sum up to FUZZ_RUNS.
# environment: B (build folder), CC, FUZZ_RUNS (40000; `make soak` asks for more), FUZZ_SECONDS (a bound; 60),
#   FUZZ_ROUND (1000000: runs between two lines)
set -u
out=${B:-build}/tests/fuzz
here=tests/fuzz
runs=${FUZZ_RUNS:-40000} round=${FUZZ_ROUND:-1000000} until=$((SECONDS + ${FUZZ_SECONDS:-60}))
mkdir -p "$out/config_found/64" "$out/config_found/1400"
passed=0 failed=0 skipped=0
flags="-std=gnu11 -g -I."
# the corpus, and every file of JSONTestSuite, without libFuzzer too
if ${CC:-cc} $flags -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -DREPLAY -o "$out/ds_config_replay" \
    $here/ds_config_fuzz.c &&
    "$out/ds_config_replay" $here/config_corpus/* tests/golden/JSONTestSuite/test_parsing/*; then
    passed=$((passed + 1))
else
    echo "FAIL replay of the corpus" && failed=$((failed + 1))
fi

# fuzz RUNS LENGTH SEED: one round
fuzz() {
    local left=$((until - SECONDS)) log="$out/ds_config_fuzz.log" done
    [ $left -gt 0 ] || return 0
    ASAN_OPTIONS=quarantine_size_mb=8 "$out/ds_config_fuzz" -runs="$1" -max_len="$2" -seed="$3" -max_total_time=$left \
        -timeout=300 -detect_leaks=0 -dict=$here/ds_config.dict -artifact_prefix="$out/" "$out/config_found/$2" \
        $here/config_corpus >"$log" 2>&1 || { tail -n 30 "$log"; return 1; }
    done=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log")
    echo "$(date -u +%FT%TZ) ${text:-unknown} $done $2" >>"$out/ds_config.totals"
    total=$((total + done))
}

clang=$(command -v clang || ls /usr/bin/clang-[0-9]* 2>/dev/null | head -n 1)
text=$(git hash-object ds_config.h 2>/dev/null | cut -c 1-9)
total=0
if [ -z "$clang" ] || ! $clang $flags -O2 -fsanitize=fuzzer,address,undefined -fsanitize-trap=undefined -o "$out/ds_config_fuzz" \
    $here/ds_config_fuzz.c 2>"$out/ds_config_fuzz.err"; then
    echo "SKIP fuzzing: needs clang with libFuzzer" && skipped=$((skipped + 1))
else
    if [ "$runs" -gt "$round" ]; then # a soak: what earlier ones did counts
        total=$(awk -v c="${text:-unknown}" '$2 == c {n += $3} END {printf "%d", n}' "$out/ds_config.totals" 2>/dev/null)
        total=${total:-0}
    fi
    [ "$runs" -gt "$round" ] || round=$runs
    seed=$((total + 1)) good=1
    while [ $good = 1 ] && [ "$total" -lt "$runs" ] && [ $SECONDS -lt $until ]; do
        fuzz $((round * 9 / 10)) 64 $seed && fuzz $((round / 10)) 1400 $seed || good=0
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
