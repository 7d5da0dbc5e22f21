#!/bin/bash
# The tests of the emulated GPU on a real one, then under each tool of compute-sanitizer. usage: test.sh PROGRAM...
# environment: B (build)
set -u
B=${B:-build} passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() { # NAME COMMAND...: adds what its last line counts; a program that does not get there has failed
    echo "== $1"
    "${@:2}" 2>&1 | tee "$log"
    local status=${PIPESTATUS[0]} line
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
    # shellcheck disable=SC2086
    set -- "$1" ${line:-0 passed, 0 failed}
    passed=$((passed + $2)) failed=$((failed + $4)) skipped=$((skipped + ${6:-0}))
    if [ "$status" -ne 0 ] && [ "$4" -eq 0 ]; then failed=$((failed + 1)) && echo "FAIL $1: status $status"; fi
}
end() {
    printf '%s passed, %s failed' "$passed" "$failed"
    [ "$skipped" = 0 ] || printf ', %s skipped' "$skipped"
    echo
    [ "$failed" = 0 ]
    exit
}
run "${1##*/}" "$1"
if grep -q '^SKIP no GPU' "$log"; then
    for what in "${@:2}" train_gpt_gpu memcheck racecheck initcheck synccheck; do
        echo "SKIP ${what##*/}: no GPU here" && skipped=$((skipped + 1))
    done
    end
fi
for program in "${@:2}"; do run "${program##*/}" "$program"; done
run train_gpt_gpu env B="$B" GPU_PROGRAM=train_gpt_gpu tests/multi/train_gpt_gpu_test.sh
tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ -z "$tool" ]; then
    echo "FAIL compute-sanitizer was not found: it comes with the CUDA toolkit (package cuda-sanitizer); put it into PATH"
    failed=$((failed + 4))
    end
fi
for how in memcheck racecheck initcheck synccheck; do
    run "$how: kernels" "$tool" --tool "$how" --error-exitcode 9 "$1"
    # not the cases that train anew for each call that fails
    run "$how: engine" "$tool" --tool "$how" --error-exitcode 9 "$2" stages optimizers offload keys rows attention one_bit
done
end
