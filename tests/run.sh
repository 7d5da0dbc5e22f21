#!/bin/bash
# Runs test programs and scripts, each under a time limit, and adds up their closing lines.
# usage: run.sh PROGRAM...    environment: ONLY="word ..." keeps those whose path holds a word; JOBS (2); LIMIT (600 s)
set -u
jobs=${JOBS:-2} limit=${LIMIT:-600}
logs=${B:-build}/tests/logs
mkdir -p "$logs"
rm -f "$logs"/*.log
run_one() {
    local program=$1 name log started status line
    name=${program#"${B:-build}"/} name=${name#tests/}
    log=$logs/${name//\//_}.log
    started=$(date +%s%N)
    timeout -k 10 "$limit" "$program" >"$log" 2>&1 </dev/null
    status=$?
    line=$(tail -n 1 "$log")
    [[ $line =~ ^[0-9]+\ passed,\ [0-9]+\ failed ]] || line="0 passed, 1 failed"
    [[ $status -ne 0 && $line == *", 0 failed"* ]] && line="0 passed, 1 failed"
    [[ $status -ne 0 ]] && line+=" (exit status $status)"
    printf '%-40s %s  %d.%d s\n' "$name" "$line" $((($(date +%s%N) - started) / 1000000000)) \
        $((($(date +%s%N) - started) / 100000000 % 10))
    printf '%s\n' "$line" >"$log.sum"
    if [[ $line != *", 0 failed"* ]]; then tail -n 40 "$log" | sed 's/^/    /'; fi
    grep '^SKIP ' "$log" | sed 's/^/    /'
}
export -f run_one
export B logs limit
list=()
for program in "$@"; do
    keep=1
    if [[ -n ${ONLY:-} ]]; then
        keep=0
        for word in $ONLY; do [[ $program == *"$word"* ]] && keep=1; done
    fi
    [[ $keep = 1 ]] && list+=("$program")
done
rm -f "$logs"/*.sum
printf '%s\0' "${list[@]}" | xargs -0 -P "$jobs" -I{} bash -c 'run_one "$1"' _ {}
cat "$logs"/*.sum 2>/dev/null | awk -v programs=${#list[@]} '
    {passed += $1; failed += $3; for (i = 4; i <= NF; i++) if ($i ~ /^skipped/) skipped += $(i - 1); seen++}
    END {failed += programs - seen
         printf "%d passed, %d failed%s\n", passed, failed, skipped ? ", " skipped " skipped" : ""
         exit failed != 0 || passed == 0}'
