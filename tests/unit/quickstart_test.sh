#!/bin/bash
# What README says, done: its quick start is extracted, compiled by its own command and run; its commands, options, files and
# headers exist; its ways of vendoring build. environment: B, CC, CXX
set -u
cd "$(dirname "$0")/../.."
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT DS_RUN_ID
root=$PWD B=${B:-build} CC=${CC:-cc} CXX=${CXX:-c++} passed=0 failed=0 skipped=0
[[ $B = /* ]] || B=$root/$B
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
check() { # STATUS NAME [LOG]
    if [[ $1 -eq 0 ]]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAIL $2"
        [[ -z ${3:-} ]] || tail -n 10 "$3"
    fi
}

sed -n '/<!-- quickstart -->/,/<!-- \/quickstart -->/p' README.md | sed -n '/^```c$/,/^```$/p' | sed '/^```/d' >"$work/quick.c"
lines=$(wc -l <"$work/quick.c")
[[ $lines -gt 10 && $lines -lt 40 ]]
check $? "the quick start has $lines lines: under 40"
command=$(grep -o '`cc [^`]*quick[^`]*`' README.md | head -n 1 | tr -d '`')
build=${command%% && *} run=${command##* && }
[[ $command = "cc "*" && "* ]]
check $? "the quick start says how to compile and run it"
cp ds_*.h "$work"
cd "$work" || exit 1
${build/#cc/$CC} -Wall -Wextra >log 2>&1 && [[ ! -s log ]]
check $? "$build" log
timeout 60 $run >log 2>&1
check $? "$run" log
one=$(sed -n 's/^rank 0: \(loss .*\)/\1/p' log)
[[ -n $one ]] && awk '{exit !($2 < 1e-3)}' <<<"$one"
check $? "it learns: $one" log
timeout 60 "$B/ds" run -n 2 "$run" >log 2>&1
check $? "$run on two ranks" log
[[ $(grep -c '^rank [01]: loss' log) = 2 ]]
check $? "both ranks tell" log

# README's ways of vendoring: C++, a Makefile, CMake
if command -v "$CXX" >/dev/null; then
    printf '#define DS_OPTIM_IMPLEMENTATION\n#include "ds_optim.h"\nint main() { return 0; }\n' >one.cpp
    $CXX -std=c++11 -o one one.cpp -lpthread -lm -ldl >log 2>&1 && ./one
    check $? "one header in C++" log
else
    echo "SKIP compiler: no $CXX: one header in C++; the programs of tests/ that are C++" # the Makefile leaves those out
    skipped=$((skipped + 1))
fi
mkdir -p user/third_party/ds && cp ds_*.h user/third_party/ds
printf '#define DS_IMPLEMENTATION\n#include "ds_zero.h"\n' >user/third_party/ds/ds.c
printf '#include "ds_zero.h"\nint main(void) { return ds_zero_error(NULL) ? 0 : DS_ZERO_VERSION == 0; }\n' >user/main.c
recipe() { # LANGUAGE: README's block
    sed -n "/^## Vendoring/,/^## When/p" "$root/README.md" | sed -n "/^\`\`\`$1\$/,/^\`\`\`\$/p" | sed '/^```/d'
}
recipe make >user/Makefile
env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -C user CC="$CC" user >log 2>&1 && user/user
check $? "a Makefile" log
if command -v cmake >/dev/null; then
    recipe cmake >user/CMakeLists.txt
    cmake -S user -B user/build >log 2>&1 && cmake --build user/build >>log 2>&1 && user/build/user
    check $? "CMake" log
else
    echo "SKIP cmake: not installed"
    skipped=$((skipped + 1))
fi

# every command, option, file and header that README and the examples' README name
cd "$root" || exit 1
readmes='README.md examples/configs/README.md CONTRIBUTING.md'
for target in $(cat $readmes | grep -oE '(^|`)make [a-z][a-z-]*' | awk '{print $2}' | sort -u); do
    grep -qE "^(.PHONY:.* )?$target( |:)|^\.PHONY:.* $target( |$)" Makefile
    check $? "make $target"
done
for program in $(cat $readmes | grep -oE '\<build/[a-z_]+' | sort -u); do
    [[ -f examples/${program#build/}.c || -n $(grep -F "\$(B)/${program#build/}:" Makefile) || $program = build/corpus ]]
    check $? "$program"
done
for call in $(cat $readmes | grep -oE '(`|build/)ds [a-z][a-z-]*' | awk '{print $2}' | sort -u); do
    "$B/ds" "$call" --help >/dev/null 2>&1
    check $? "ds $call"
done
"$B/train_gpt" --help >"$work/log" 2>&1
for option in $(cat $readmes | grep -oE 'train_gpt[^`]*' | grep -oE -- ' --[a-z][a-z-]+' | grep -vE -- '--(hostfile|ntasks-per-node|no-python|nproc)' | sort -u); do
    grep -qF -- "$option " "$work/log"
    check $? "train_gpt $option"
done
for file in $(cat $readmes | grep -oE '\<(examples|tests)/[A-Za-z0-9_./-]*[A-Za-z0-9_]\.(c|h|sh|json|md)\>' | sort -u) \
    $(grep -oE '\]\([^)#]+\)' README.md | tr -d '])(' | grep -v '^http'); do
    [[ $file = *NAME* || $file = *_x_* || -e $file ]]
    check $? "$file exists"
done
for header in ds_*.h; do
    grep -q "^| \`$header\` |" README.md
    check $? "$header is in README's table"
done
printf '%s passed, %s failed' "$passed" "$failed"
[[ $skipped -eq 0 ]] || printf ', %s skipped' "$skipped"
echo
[[ $failed -eq 0 ]]
