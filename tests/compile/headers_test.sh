#!/bin/bash
# The form of the headers: each one alone in an empty folder, in every language and compiler that it promises; all together in
# any order, twice, split over files, private; and the mistakes that must be compile errors with a sentence.
# environment: CC, CXX; clang and clang++ are used as well where they are installed
set -u
cd "$(dirname "$0")/../.."
unset CPATH C_INCLUDE_PATH CPLUS_INCLUDE_PATH
root=$PWD passed=0 failed=0 skipped=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
warn='-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror'
leaves=$(cd "$root" && printf '%s\n' ds_*.h | sed 's/^ds_\(.*\)\.h$/\1/' | grep -v zero | tr '\n' ' ')
check() { # STATUS NAME [LOG]
    if [[ $1 -eq 0 ]]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAIL $2"
        [[ -z ${3:-} ]] || head -n 8 "$3"
    fi
}
compiles() { # NAME COMMAND...
    local name=$1
    shift
    "$@" >log 2>&1
    check $? "$name" log
}
refused() { # NAME SENTENCE COMMAND...: must fail, and say this
    local name=$1 sentence=$2
    shift 2
    if "$@" >log 2>&1; then check 1 "$name: compiled" log; else
        grep -qF -- "$sentence" log
        check $? "$name: does not say '$sentence'" log
    fi
}
upper() { tr '[:lower:]' '[:upper:]' <<<"$1"; }
is_c() { [[ $1 != *++* ]]; }
folder() { # NAME HEADER...: an empty folder with these headers
    rm -rf "${1:?}" && mkdir "$1"
    local name=$1
    shift
    for h in "$@"; do cp "$root/ds_$h.h" "$name"; done
}

compilers=$(printf '%s\n' "${CC:-cc}" "${CXX:-c++}" gcc g++ clang clang++ | while read -r c; do
    path=$(command -v "$c") && echo "$(readlink -f "$path") $c"
done | awk '!seen[$1]++ {print $2}')
for c in gcc g++ clang clang++; do
    command -v $c >/dev/null || { echo "SKIP compiler: no $c"; skipped=$((skipped + 1)); }
done

# each alone: public half strict, implementation in each language
for h in $leaves zero; do
    if [[ $h = zero ]]; then folder alone $leaves zero; else folder alone "$h"; fi
    macro=DS_$(upper "$h")_IMPLEMENTATION
    [[ $h = zero ]] && macro=DS_IMPLEMENTATION
    printf '#include "ds_%s.h"\n#include "ds_%s.h"\nint main(void) { return 0; }\n' "$h" "$h" >alone/public.c
    printf '#define %s\n#include "ds_%s.h"\n#include "ds_%s.h"\nint main(void) { return 0; }\n' "$macro" "$h" "$h" >alone/impl.c
    (echo '#define _GNU_SOURCE' && cat alone/impl.c) >alone/impl_gnu.c
    (echo '#include <stdio.h>' && cat alone/impl.c) >alone/impl_stdio.c
    for c in public impl impl_gnu impl_stdio; do cp "alone/$c.c" "alone/$c.cpp"; done
    for compiler in $compilers; do
        if is_c "$compiler"; then
            for std in c99 c11 c17; do
                compiles "ds_$h.h public $compiler $std" $compiler -std=$std $warn -fsyntax-only alone/public.c
                compiles "ds_$h.h $compiler $std with _GNU_SOURCE" $compiler -std=$std $warn -fsyntax-only alone/impl_gnu.c
            done
            compiles "ds_$h.h $compiler gnu99" $compiler -std=gnu99 $warn -fsyntax-only alone/impl.c
            compiles "ds_$h.h $compiler gnu99 after stdio.h" $compiler -std=gnu99 $warn -fsyntax-only alone/impl_stdio.c
            refused "ds_$h.h $compiler c99" "_GNU_SOURCE before" $compiler -std=c99 -fsyntax-only alone/impl.c
        else
            for std in c++11 c++17; do
                compiles "ds_$h.h public $compiler $std" $compiler -std=$std $warn -fsyntax-only alone/public.cpp
            done
            for std in gnu++11 c++17; do
                compiles "ds_$h.h $compiler $std" $compiler -std=$std $warn -fsyntax-only alone/impl.cpp
            done
        fi
    done
    refused "ds_$h.h -ffast-math" "-ffast-math" "${CC:-cc}" -std=gnu99 -ffast-math -fsyntax-only alone/impl.c
done

# the engine needs its siblings
folder engine zero
echo '#include "ds_zero.h"' >engine/a.c
refused "ds_zero.h without its siblings" "ds_config.h" "${CC:-cc}" -fsyntax-only engine/a.c

# together: orders, declarations first and implementation later, private, one implements and two link
folder all $leaves zero
includes() { for h in "$@"; do echo "#include \"ds_$h.h\""; done; }
order() { # FILE HEADER...
    local file=$1
    shift
    (echo '#define DS_IMPLEMENTATION' && includes "$@" && echo 'int main(void) { return 0; }') >"$file"
}
order all/forward.c $leaves zero
order all/backward.c zero $(printf '%s\n' $leaves | tac)
order all/mixed.c offload optim checkpoint zero monitor $leaves
order all/leaves.c $(printf '%s\n' $leaves | tac)
(includes $leaves zero && cat all/mixed.c) >all/later.c
(echo '#define DS_STATIC' && cat all/mixed.c) >all/static.c
for compiler in $compilers; do
    for file in forward backward mixed leaves later static; do
        std=gnu99 ext=c
        is_c "$compiler" || { std=gnu++11 ext=cpp; }
        [[ $ext = c ]] || cp all/$file.c all/$file.cpp
        compiles "$file $compiler $std" $compiler -std=$std $warn -fsyntax-only "all/$file.$ext"
    done
done
for h in $leaves zero; do
    if [[ $h = zero ]]; then folder private $leaves zero; else folder private "$h"; fi
    printf '#define DS_STATIC\n#include "ds_%s.h"\n' "$h" >private/a.c
    refused "ds_$h.h DS_STATIC without implementation" "DS_STATIC needs the implementation" \
        "${CC:-cc}" -std=gnu99 -fsyntax-only private/a.c
done

libs='-lpthread -ldl -lm'
(includes $leaves zero && echo "int other(void); int other(void) { return DS_ZERO_VERSION == 0; }") >all/user.c
sed 's/int main(void) { return 0; }/int other(void); int main(void) { return other(); }/' all/mixed.c >all/owner.c
for compiler in $compilers; do
    std=gnu99 ext=c
    is_c "$compiler" || { std=gnu++11 ext=cpp && cp all/user.c all/user.cpp && cp all/owner.c all/owner.cpp; }
    $compiler -std=$std -O1 -fno-pie -c -o all/user.o all/user.$ext >log 2>&1 &&
        $compiler -std=$std -O1 -fno-pie -c -o all/owner.o all/owner.$ext >>log 2>&1 &&
        $compiler -no-pie -o all/two all/user.o all/owner.o $libs >>log 2>&1 && all/two
    check $? "two files, one implements: $compiler" log
    # without position independence, a constant table of pointers is in .rodata and every `d` can be written
    nm --defined-only all/owner.o | awk '$2 ~ /[A-Z]/ && $3 !~ /^(ds_|main$)/ {print; bad = 1} END {exit bad}' >log
    check $? "exported names: $compiler" log
    nm --defined-only all/owner.o | awk '$2 ~ /^[BbDdCcGgSs]$/ && $3 !~ /^DW\.ref/ {print; bad = 1} END {exit bad}' >log
    check $? "data that can be written: $compiler" log
done
"${CC:-cc}" -std=gnu99 -c -o all/static.o all/static.c >log 2>&1 &&
    nm --defined-only all/static.o | awk '$2 ~ /[A-Z]/ && $3 != "main" {print; bad = 1} END {exit bad}' >log
check $? "DS_STATIC exports nothing" log

# macros that are still there after the implementation: public, guards, or of a block, which the next header uses as well
"${CC:-cc}" -std=gnu99 -E -dD all/mixed.c 2>/dev/null | awk '
    /^# [0-9]+ "/ {ours = $3 ~ /ds_[a-z0-9]+\.h"$/}
    ours && $1 == "#define" {sub(/\(.*/, "", $2); on[$2] = 1}
    $1 == "#undef" {delete on[$2]}
    END {for (m in on) if (m !~ /^DS_/ && m !~ /^DSI_[A-Z0-9_]+_(BLOCK|DONE)$/ && m != "_GNU_SOURCE") print m}' | sort >left
sed -n '/^\/\*== ds block/,/^\/\*== end of ds block/s/^# *define \([A-Za-z0-9_]*\).*/\1/p' all/ds_*.h | sort -u >shared
comm -23 left shared >log
[[ ! -s log ]]
check $? "macros left over" log

# two versions in one file: of a block that is public, and of each that only implementations have
version_mixed() { # BLOCK HEADER HEADER
    local block=$1
    folder mixed $leaves zero
    sed -i "s/$(upper "$block")_BLOCK != 1$/$(upper "$block")_BLOCK != 2/; s/\(define DS.*$(upper "$block")_BLOCK\) 1$/\1 2/" "mixed/ds_$3.h"
    (echo '#define DS_IMPLEMENTATION' && includes "$2" "$3") >mixed/a.c
    refused "two versions of block $block" "of two versions meet in this file" "${CC:-cc}" -std=gnu99 -fsyntax-only mixed/a.c
}
version_mixed core config comm
version_mixed base comm config
version_mixed half optim comm
version_mixed threads comm monitor
version_mixed files offload checkpoint
version_mixed crc32c checkpoint monitor

# what the copies promise each other
cd "$root" || exit 1
tests/tools/blocks.sh --check >"$work/log"
check $? "shared blocks are the same text everywhere" "$work/log"
for h in $leaves zero; do
    f=ds_$h.h
    awk -v f="$f" '/^#/ && !manual {manual = NR - 1} END {if (manual * 100 >= NR * 15) {print f ": manual of " manual " lines of " NR; exit 1}}' "$f" >"$work/log"
    check $? "$f: the manual is under 15 %" "$work/log"
    head -n 1 "$f" | grep -Eq "^/\* $f - v[0-9]+\.[0-9]+\.[0-9]+ - .* - public domain or MIT-0( \*/)?$"
    check $? "$f: the first line"
    tail -n 45 "$f" | awk '/^#endif/ {after = NR} /MIT-0|MIT No Attribution|public domain/ {licence = NR} END {exit !(licence > after)}'
    check $? "$f: the licence is last"
    # comments and strings out, then calls that a library must not make
    sed -e 's/"\([^"\\]\|\\.\)*"//g' "$f" | awk '
        {while (match($0, /\/\*([^*]|\*+[^*\/])*\*+\//)) $0 = substr($0, 1, RSTART - 1) substr($0, RSTART + RLENGTH)}
        inside {if (sub(/^.*\*\//, "")) inside = 0; else next}
        {sub(/\/\/.*/, "")}
        /\/\*/ {sub(/\/\*.*/, ""); inside = 1}
        {print NR ": " $0}' | grep -E '(^|[^a-zA-Z0-9_])(exit|_exit|abort|assert|printf|fprintf|puts|putchar|perror|getenv|secure_getenv|system)\(' |
        if [[ $h = comm ]]; then grep -v 'getenv('; else cat; fi >"$work/log"
    [[ ! -s $work/log ]]
    check $? "$f: a library neither exits nor prints nor reads the environment" "$work/log"
done
printf '%s passed, %s failed' "$passed" "$failed"
[[ $skipped -eq 0 ]] || printf ', %s skipped' "$skipped"
echo
[[ $failed -eq 0 ]]
