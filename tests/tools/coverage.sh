#!/bin/bash
# Branch coverage of each header over all test programs that ran with config=coverage. Text of shared blocks counts in their
# home header only. g++ tests a condition with side effects twice and puts branches on other lines of a statement, so a line
# on which a C++ program has another number of branches than the C programs counts from those alone. Prints a line per header; what was never taken stands in
# build/coverage/ds_X.h.txt. usage: coverage.sh [HEADER...]
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
    c=() cxx=()
    for folder in "$work"/*/; do
        [[ -f $folder$header.gcov ]] || continue
        if compgen -G "$folder*.cc.gcov" >/dev/null; then cxx+=("$folder$header.gcov"); else c+=("$folder$header.gcov"); fi
    done
    [[ $((${#c[@]} + ${#cxx[@]})) -gt 0 ]] || { echo "$header: no test program includes it"; continue; }
    : >"$B/$header.txt"
    awk -v header="$header" -v list="$B/$header.txt" '
        function add(   i, key) { # the branches of the last line
            if (branch && !closed && !(line in count)) count[line] = branch
            if (count[line] + 0 != branch) branch = 0
            for (i = 0; i < branch; i++) {
                key = line SUBSEP i
                if (!(key in times)) { times[key] = 0; order[total++] = key }
                times[key] += seen[i]
            }
            branch = 0
        }
        FNR == 1 { add(); foreign = 0 }
        /^ *[-#=0-9]+\*?: *[0-9]+:/ {
            add()
            split($0, part, ":")
            line = part[2] + 0
            text = $0
            sub(/^[^:]*:[^:]*:/, "", text)
            if (text ~ /\/\*== ds block:/) foreign = index(text, "its home is") || index(text, "home:") ? !index(text, header) : 0
            if (text ~ /end of ds block/) foreign = 0
            source[line] = text
            outside[line] = foreign
        }
        /^branch/ { seen[branch++] = $3 == "taken" && $4 > 0 }
        END {
            add()
            for (i = 0; i < total; i++) {
                split(order[i], at, SUBSEP)
                if (outside[at[1]]) continue
                all++
                if (times[order[i]] > 0) taken++
                else printf "%s:%d: branch %d: %s\n", header, at[1], at[2], source[at[1]] > list
            }
            printf "%-16s %5d branches, %5d taken, %.2f %%\n", header, all, taken, all ? 100 * taken / all : 100
        }' "${c[@]}" ${c:+closed=1} "${cxx[@]}"
done
