# Sourced by a script that fuzzes a header's readers under ASan and UBSan. First the corpus is replayed without libFuzzer; then
# nine tenths of the runs take inputs of at most `short` bytes, one tenth of at most `long`. What was run is added to
# $B/tests/fuzz/$header.totals, a line for each round: date, the header's text (as `git hash-object` names it), runs, longest
# input. `make soak` goes on where an earlier one stopped, until the lines of this text of the header sum up to FUZZ_RUNS.
# set by the script: header, short, long, flags (of the compiler), options (of libFuzzer), corpus (its folder), replayed (more
#   files to replay); taken when they are there: tests/fuzz/$header.dict, .ignore (functions that coverage does not guide)
# environment: B (build folder), CC, FUZZ_RUNS (40000; `make soak` asks for more), FUZZ_SECONDS (a bound; 60),
#   FUZZ_ROUND (1000000: runs between two lines)
out=${B:-build}/tests/fuzz
here=tests/fuzz
runs=${FUZZ_RUNS:-40000} round=${FUZZ_ROUND:-1000000} until=$((SECONDS + ${FUZZ_SECONDS:-60}))
mkdir -p "$out/$header.found/$short" "$out/$header.found/$long"
passed=0 failed=0 skipped=0 total=0
program=$out/${header}_fuzz
guide=()
[ ! -f "$here/$header.dict" ] || options="$options -dict=$here/$header.dict"
[ ! -f "$here/$header.ignore" ] || guide=("-fsanitize-coverage-ignorelist=$here/$header.ignore")
if ${CC:-cc} $flags -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -DREPLAY -o "$out/${header}_replay" \
    "$here/${header}_fuzz.c" -lpthread &&
    "$out/${header}_replay" "$corpus"/* ${replayed[@]+"${replayed[@]}"}; then
    passed=$((passed + 1))
else
    echo "FAIL replay of the corpus" && failed=$((failed + 1))
fi

# fuzz RUNS LENGTH SEED: one round
fuzz() {
    local left=$((until - SECONDS)) log=$program.log done
    [ $left -gt 0 ] || return 0
    ASAN_OPTIONS=quarantine_size_mb=8 "$program" -runs="$1" -max_len="$2" -seed="$3" -max_total_time=$left -timeout=300 \
        $options -artifact_prefix="$out/" "$out/$header.found/$2" "$corpus" >"$log" 2>&1 || { tail -n 30 "$log"; return 1; }
    done=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$log")
    echo "$(date -u +%FT%TZ) $text $done $2" >>"$out/$header.totals"
    total=$((total + done))
}

clang=$(command -v clang || ls /usr/bin/clang-[0-9]* 2>/dev/null | head -n 1)
text=$(git hash-object "$header.h" 2>/dev/null | cut -c 1-9)
text=${text:-unknown}
if [ -z "$clang" ] || ! $clang $flags -O2 -fsanitize=fuzzer,address,undefined -fsanitize-trap=undefined \
    ${guide[@]+"${guide[@]}"} -o "$program" "$here/${header}_fuzz.c" -lpthread 2>"$program.err"; then
    echo "SKIP fuzzing: needs clang with libFuzzer" && skipped=$((skipped + 1))
else
    if [ "$runs" -gt "$round" ]; then # a soak: what earlier ones did counts
        total=$(awk -v t="$text" '$2 == t {n += $3} END {printf "%d", n}' "$out/$header.totals" 2>/dev/null)
        total=${total:-0}
    fi
    [ "$runs" -gt "$round" ] || round=$runs
    seed=$((total + 1)) good=1
    while [ $good = 1 ] && [ "$total" -lt "$runs" ] && [ $SECONDS -lt $until ]; do
        fuzz $((round * 9 / 10)) "$short" $seed && fuzz $((round / 10)) "$long" $seed || good=0
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
