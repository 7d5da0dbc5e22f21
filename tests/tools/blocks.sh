#!/bin/sh
# Copies each shared block from its home header to every other place that holds its markers.
# usage: blocks.sh [--check]    --check: change nothing, exit 1 and name what differs
set -eu
cd "$(dirname "$0")/../.."
check=${1:-}
homes='core:ds_config.h base:ds_config.h json:ds_config.h half:ds_optim.h threads:ds_comm.h files:ds_offload.h crc32c:ds_checkpoint.h'
status=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for pair in $homes; do
    name=${pair%%:*} home=${pair#*:}
    [ -f "$home" ] || continue
    awk -v n="$name" '$0 ~ "^/[*]== ds block: " n " [0-9]" {on = 1} on {print} $0 ~ "^/[*]== end of ds block: " n " " {exit}' "$home" >"$scratch/$name"
    [ -s "$scratch/$name" ] || { echo "$home: block '$name' is missing in its home"; [ -z "$check" ] || status=1; continue; }
    for file in ds_*.h; do
        [ "$file" = "$home" ] || ! grep -q "^/[*]== ds block: $name [0-9]" "$file" && continue
        awk -v n="$name" -v text="$scratch/$name" '
            $0 ~ "^/[*]== ds block: " n " [0-9]" {while ((getline line <text) > 0) print line; skip = 1}
            !skip {print}
            $0 ~ "^/[*]== end of ds block: " n " " {skip = 0}' "$file" >"$scratch/out"
        cmp -s "$scratch/out" "$file" && continue
        if [ "$check" = --check ]; then
            echo "$file: block '$name' differs from $home (run make blocks)"
            status=1
        else
            cat "$scratch/out" >"$file"
            echo "$file: block '$name' updated"
        fi
    done
done
exit $status
