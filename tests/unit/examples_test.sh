#!/bin/bash
# Each numbered example: under 60 lines, compiles by the command in its own comment in an empty folder that holds nothing but the
# header it shows, runs, and ends with 0. environment: CC
set -u
cd "$(dirname "$0")/../.."
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT DS_RUN_ID
unset CPATH C_INCLUDE_PATH
root=$PWD passed=0 failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
check() { # STATUS NAME [LOG]
    if [[ $1 -eq 0 ]]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAIL $2"
        [[ -z ${3:-} ]] || tail -n 10 "$3"
    fi
}
for header in ds_*.h; do
    ls examples/[0-9][0-9]_"$(sed 's/ds_\(.*\)\.h/\1/' <<<"$header")".c >/dev/null 2>&1
    check $? "$header has an example"
done
for example in examples/[0-9]*.c; do
    name=$(basename "$example" .c)
    [[ $(wc -l <"$example") -lt 60 ]]
    check $? "$name is under 60 lines"
    mkdir "$work/$name"
    cp "$example" "$work/$name"
    for header in $(sed -n 's/^#include "\(ds_[a-z]*\.h\)"/\1/p' "$example"); do
        if [[ $header = ds_zero.h ]]; then cp ds_*.h "$work/$name"; else cp "$header" "$work/$name"; fi
    done
    cd "$work/$name" || exit 1
    # the first command of the comment: cc ..., up to what ends it, and what is to be run after &&
    line=$(sed -n '1,/\*\//s/.*\(\<cc .*\)/\1/p' "$name.c" | head -n 1 | sed 's| *\*/.*||; s|examples/||g')
    build=$(sed 's/ *[,;(&].*//' <<<"$line")
    run=./$name
    [[ $line != *'&& '* ]] || run=$(sed 's/.*&& *//; s/ *(.*//' <<<"$line")
    [[ $build = "cc "*"$name.c"* ]]
    check $? "$name says how to compile it ($line)"
    ${build/#cc/${CC:-cc}} >log 2>&1 && [[ ! -s log ]]
    check $? "$name: $build" log
    timeout 60 $run >log 2>&1 </dev/null
    check $? "$name: $run" log
    [[ -s log ]]
    check $? "$name shows something"
    cd "$root" || exit 1
done
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
