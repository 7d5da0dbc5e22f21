#!/bin/sh
# Writes the tables of keys that `ds config` prints: KEYS.md, and the one of README.md between its markers.
# usage: keys.sh [--check]    --check: change nothing, exit 1 and name what differs
# environment: B (build folder)
set -eu
cd "$(dirname "$0")/../.."
ds=${B:-build}/ds
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
status=0
{
    cat <<'END'
# Configuration keys

Every key that `ds_config.h` knows, in the order in which `ds config` prints them; written by `make keys` from the table in that
header. "Seen in" names the vintages of the configuration reference that have the key: 0 the oldest, 1 the next, 3 the newest, 2
the short one; nothing: only the code of DeepSpeed has it; ds: our own. `*` stands for a name of your choice. Text goes in
quotes. A program that trains stops at a key that nothing in it acts on.

END
    "$ds" config --keys
} >"$scratch/KEYS.md"
"$ds" config --sections >"$scratch/sections"
awk -v sections="$scratch/sections" '
    /^<!-- end of the table of sections -->/ { skip = 0 }
    !skip { print }
    /^<!-- table of sections/ { while ((getline line <sections) > 0) print line; skip = 1 }' README.md >"$scratch/README.md"
for file in KEYS.md README.md; do
    cmp -s "$scratch/$file" "$file" && continue
    if [ "${1:-}" = --check ]; then
        echo "$file: its table of keys is not that of ds_config.h; run make keys"
        status=1
    else
        cp "$scratch/$file" "$file" && echo "$file: updated"
    fi
done
exit $status
