#!/bin/bash
# Fuzzes the readers of checkpoints (safetensors, index, manifest, zip, pickle) under ASan and UBSan.
# environment: B (build folder), CC, FUZZ_RUNS (20000; `make soak` asks for more), FUZZ_SECONDS (a bound; 60)
set -u
out=${B:-build}/tests/fuzz
here=tests/fuzz
mkdir -p "$out/checkpoint_found"
passed=0 failed=0 skipped=0
flags="-std=gnu99 -g -O1 -I. -fno-sanitize-recover=undefined"
if ${CC:-cc} $flags -fsanitize=address,undefined -DREPLAY -o "$out/ds_checkpoint_replay" $here/ds_checkpoint_fuzz.c -lpthread &&
    "$out/ds_checkpoint_replay" $here/checkpoint_corpus/*; then
    passed=$((passed + 1))
else
    echo "FAIL replay of the corpus" && failed=$((failed + 1))
fi
clang=$(command -v clang || ls /usr/bin/clang-[0-9]* 2>/dev/null | head -n 1)
if [ -z "$clang" ] || ! $clang $flags -fsanitize=fuzzer,address,undefined -o "$out/ds_checkpoint_fuzz" $here/ds_checkpoint_fuzz.c -lpthread 2>"$out/ds_checkpoint_fuzz.err"; then
    echo "SKIP fuzzing: needs clang with libFuzzer" && skipped=$((skipped + 1))
elif "$out/ds_checkpoint_fuzz" -runs="${FUZZ_RUNS:-20000}" -max_total_time="${FUZZ_SECONDS:-60}" -max_len=6000 -timeout=20 -seed=1 \
    -artifact_prefix="$out/" "$out/checkpoint_found" $here/checkpoint_corpus >"$out/ds_checkpoint_fuzz.log" 2>&1; then
    passed=$((passed + 1))
    grep -a '^Done' "$out/ds_checkpoint_fuzz.log"
else
    tail -n 30 "$out/ds_checkpoint_fuzz.log"
    echo "FAIL fuzzing" && failed=$((failed + 1))
fi
printf '%d passed, %d failed' $passed $failed
[ $skipped -eq 0 ] || printf ', %d skipped' $skipped
printf '\n'
[ $failed -eq 0 ]
