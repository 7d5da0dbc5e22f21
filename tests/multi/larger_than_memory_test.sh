#!/bin/bash
# A model whose states are more than ten times all the memory that the process may have, under a real limit: the same bits
# as in memory, the memory held equal to the plan; and without the disk the limit is too low. environment: B, TMPDIR
set -u
passed=0 failed=0
check() {
    if [[ $1 = 0 ]]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAIL $2"
        [[ -n ${3:-} ]] && head -5 "$3"
    fi
}
folder=$(mktemp -d "${TMPDIR:-/tmp}/ds_larger_XXXXXX")
trap 'rm -rf "$folder"' EXIT
size=(100 131072 2)
"$B/larger_than_memory" none "${size[@]}" >"$folder/memory" 2>"$folder/memory.err"
check $? 'in memory' "$folder/memory.err"
sanitized=$(nm "$B/larger_than_memory" 2>/dev/null | grep -c '__[at]san_init') # whose shadow memory is beyond all limits
if [[ $sanitized = 0 ]]; then
    "$B/larger_than_memory" "$folder" "${size[@]}" >"$folder/disk" 2>"$folder/disk.err"
    check $? 'under the limit' "$folder/disk.err"
    cmp -s "$folder/memory" "$folder/disk" && grep -q '^parameters ' "$folder/disk"
    check $? 'the same losses, norms and parameters' "$folder/disk"
    grep -q 'as planned, to the byte' "$folder/disk.err"
    check $? 'the memory held is the plan' "$folder/disk.err"
    states=$(awk '$1 == "states" {print $2}' "$folder/disk.err") limit=$(awk '$1 == "limit" {print $2}' "$folder/disk.err")
    [[ ${states:-0} -ge $((10 * ${limit:-0})) && ${limit:-0} -gt 0 ]]
    check $? "states of ${states:-no} bytes are ten times the limit of ${limit:-no}"
    (ulimit -d $((limit / 1024)) && "$B/larger_than_memory" none "${size[@]}") >"$folder/out" 2>"$folder/out.err"
    [[ $? = 1 ]] && grep -q 'no memory' "$folder/out.err"
    check $? 'without the disk the limit is too low' "$folder/out.err"
fi
[[ -z $(find "$folder" -name '.ds_offload*') ]]
check $? 'no swap file is left'
echo "$passed passed, $failed failed"
[[ $failed = 0 ]]
