#!/bin/sh
# The kernels' tests on a real GPU, then under each tool of compute-sanitizer. usage: test.sh PROGRAM
set -u
"$1" || exit 1
tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[ -n "$tool" ] || { echo "compute-sanitizer was not found: not run" && exit 0; }
for how in memcheck racecheck initcheck synccheck; do
    echo "== compute-sanitizer $how"
    "$tool" --tool "$how" --error-exitcode 9 "$1" || exit 1
done
