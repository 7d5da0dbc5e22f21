#!/bin/bash
# Fuzzes the parameters of sparse layouts, and attention over them, under ASan and UBSan.
# environment: B (build folder), CC, FUZZ_RUNS (20000; `make soak` asks for more), FUZZ_SECONDS (a bound; 60)
set -u
out=${B:-build}/tests/fuzz
source=tests/fuzz/ds_sparse_fuzz.c
mkdir -p "$out/sparse_found"
passed=0 failed=0 skipped=0
flags="-std=gnu99 -g -O1 -I. -fno-sanitize-recover=undefined"
if ${CC:-cc} $flags -fsanitize=address,undefined -DREPLAY -o "$out/ds_sparse_replay" $source -lm -lpthread &&
    "$out/ds_sparse_replay"; then
    passed=$((passed + 1))
else
    echo "FAIL random parameters" && failed=$((failed + 1))
fi
clang=$(command -v clang || ls /usr/bin/clang-[0-9]* 2>/dev/null | head -n 1)
if [ -z "$clang" ] || ! $clang $flags -fsanitize=fuzzer,address,undefined -o "$out/ds_sparse_fuzz" $source -lm -lpthread 2>"$out/ds_sparse_fuzz.err"; then
    echo "SKIP fuzzing: needs clang with libFuzzer" && skipped=$((skipped + 1))
elif "$out/ds_sparse_fuzz" -runs="${FUZZ_RUNS:-20000}" -max_total_time="${FUZZ_SECONDS:-60}" -max_len=4096 -timeout=20 -seed=1 \
    -artifact_prefix="$out/" "$out/sparse_found" >"$out/ds_sparse_fuzz.log" 2>&1; then
    passed=$((passed + 1))
    grep -a '^Done' "$out/ds_sparse_fuzz.log"
else
    tail -n 30 "$out/ds_sparse_fuzz.log"
    echo "FAIL fuzzing" && failed=$((failed + 1))
fi
printf '%d passed, %d failed' $passed $failed
[ $skipped -eq 0 ] || printf ', %d skipped' $skipped
printf '\n'
[ $failed -eq 0 ]
