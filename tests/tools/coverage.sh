#!/bin/bash
# Branch coverage of each header over all test programs that ran with config=coverage. Text of shared blocks counts in their
# home header only. Prints a line per header; what was never taken stands in build/coverage/ds_X.h.txt. usage: coverage.sh [HEADER...]
# environment: B (build/coverage), GCOV (gcov)
set -u
cd "$(dirname "$0")/../.."
B=${B:-build/coverage}
[[ $# -gt 0 ]] || set -- ds_*.h
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n=0
while IFS= read -r data; do
    mkdir "$work/$n"
    ln -s "$PWD"/ds_*.h "$PWD/tests" "$PWD/examples" "$work/$n" # gcov looks for sources where it runs
    (cd "$work/$n" && "${GCOV:-gcov}" -b -c "$data" >/dev/null 2>&1)
    n=$((n + 1))
done < <(find "$(realpath "$B")" -name '*.gcda')
[[ $n -gt 0 ]] || { echo "coverage: no data below $B; run: make test config=coverage" >&2; exit 1; }
for header in "$@"; do
    files=$(find "$work" -name "$header.gcov" -type f)
    [[ -n $files ]] || { echo "$header: no test program includes it"; continue; }
    awk -v header="$header" -v list="$B/$header.txt" '
        FNR == 1 { foreign = 0 }
        /^ *[-#=0-9]+\*?: *[0-9]+:/ {
            split($0, part, ":")
            line = part[2] + 0
            text = $0
            sub(/^[^:]*:[^:]*:/, "", text)
            if (text ~ /\/\*== ds block:/) foreign = index(text, "its home is") || index(text, "home:") ? !index(text, header) : 0
            if (text ~ /end of ds block/) foreign = 0
            source[line] = text
            outside[line] = foreign
            branch = 0
        }
        /^branch/ {
            key = line SUBSEP branch++
            if (!(key in times)) { times[key] = 0; order[total++] = key }
            if ($3 == "taken") times[key] += $4
        }
        END {
            for (i = 0; i < total; i++) {
                split(order[i], at, SUBSEP)
                if (outside[at[1]]) continue
                all++
                if (times[order[i]] > 0) taken++
                else printf "%s:%d: branch %d: %s\n", header, at[1], at[2], source[at[1]] > list
            }
            printf "%-16s %5d branches, %5d taken, %.2f %%\n", header, all, taken, all ? 100 * taken / all : 100
        }' $files
    [[ -f $B/$header.txt ]] || : >"$B/$header.txt"
done
