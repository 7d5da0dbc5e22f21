#!/bin/sh
# Registers, stack and spills of each kernel of ds_kernels.cu, as ptxas prints them.
# environment: NVCC; ARCH (sm_90)
set -eu
arch=${ARCH:-sm_90}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$NVCC" -O3 -std=c++14 -I. -arch="$arch" -Xptxas -v -c -o "$scratch/k.o" ds_kernels.cu 2>"$scratch/log" || {
    cat "$scratch/log"
    exit 1
}
filter=$(command -v c++filt || echo cat)
printf '%-9s %-6s %-6s %s\n' registers stack spills "kernel ($arch)"
awk -F"'" '
    /Compiling entry function/ {name = $2}
    /bytes stack frame/ {split($0, w, " "); stack = w[1]; spills = w[5] + w[9]}
    /Used .* registers/ {match($0, /Used [0-9]+/); printf "%-9s %-6s %-6s %s\n", substr($0, RSTART + 5, RLENGTH - 5), stack, spills, name}
' "$scratch/log" | sort -k4 | "$filter" | sed -E 's/\(anonymous namespace\):://g; s/_GLOBAL__N__[0-9a-z_]*:://g; s/^(([0-9]+ +){3})void /\1/' >"$scratch/table"
cat "$scratch/table"
awk '$3 > 0 {n++} END {printf "%d kernels, %d with spills\n", NR, n}' "$scratch/table"
