#!/bin/sh
# Compilers, their versions of fused multiply-adds and their optimisation leave no trace in what the optimizers compute.
# environment: CC, CXX
set -u
passed=0 failed=0 skipped=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
expected=
try() { # try WHAT COMPILER flags...
    what=$1
    shift
    if "$@" -w -I. -o "$scratch/bits" tests/unit/ds_optim_test.c -lpthread -lm && got=$("$scratch/bits" --bits); then
        expected=${expected:-$got}
        [ "$got" = "$expected" ] && passed=$((passed + 1)) && return
        echo "FAIL $what: $got, the first gave $expected"
    else
        echo "FAIL $what does not compile or run"
    fi
    failed=$((failed + 1))
}
for compiler in "${CC:-cc}" clang; do
    if ! command -v "$compiler" >/dev/null; then
        echo "SKIP $compiler: not installed" && skipped=$((skipped + 1))
        continue
    fi
    for flags in -O0 '-O3 -ffp-contract=fast'; do try "$compiler $flags" "$compiler" -std=gnu99 $flags; done
    if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then
        try "$compiler -march=haswell" "$compiler" -std=gnu99 -O3 -march=haswell -ffp-contract=fast
    else echo "SKIP $compiler -march=haswell: this machine lacks AVX2" && skipped=$((skipped + 1)); fi
done
printf '%s passed, %s failed' "$passed" "$failed"
[ "$skipped" = 0 ] || printf ', %s skipped' "$skipped"
echo
[ "$failed" = 0 ]
