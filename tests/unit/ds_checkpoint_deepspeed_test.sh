#!/bin/bash
# DeepSpeed's checkpoints (stages 1, 2, 3, universal; 1 to 3 ranks) read to the last bit, and ds inspect and ds convert.
set -u
b=${B:-build}
out=$b/tests/checkpoint_deepspeed.$$
passed=0 failed=0 skipped=0
trap 'rm -rf "$out"' EXIT
mkdir -p "$out"
check() { # NAME COMMAND...
    local name=$1
    shift
    if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAIL $name"; fi
}
if command -v python3 >/dev/null; then
    python3 tests/golden/checkpoint_files.py "$b/ds" "$out/files" >"$out/log" 2>&1
    grep '^FAIL' "$out/log"
    read -r p _ f _ s _ < <(tail -n 1 "$out/log" | tr -d ,)
    if [[ ${p:-x} =~ ^[0-9]+$ ]]; then
        passed=$((passed + p)) failed=$((failed + f))
    else
        failed=$((failed + 1)) && tail -n 5 "$out/log"
    fi
    mkdir -p "$out/evil"
    python3 -c '
import os, pickle, sys, zipfile
class Evil:
    def __reduce__(self): return os.system, ("touch " + sys.argv[2],)
with zipfile.ZipFile(sys.argv[1], "w") as z: z.writestr("archive/data.pkl", pickle.dumps({"module": Evil()}, 2))
' "$out/evil/mp_rank_00_model_states.pt" "$out/called"
    "$b/ds" inspect "$out/evil" >/dev/null 2>"$out/stderr"
    check "a pickle that calls is refused" grep -q "asks for 'posix system'.*never called" "$out/stderr"
    check "and nothing was called" test ! -e "$out/called"
else
    echo "SKIP reading DeepSpeed's checkpoints: python3 is not there" && skipped=$((skipped + 1))
fi
"$b/07_checkpoint" "$out/own" >/dev/null
status() { # EXPECTED COMMAND...
    local expected=$1
    shift
    "$@" >"$out/stdout" 2>"$out/stderr"
    [[ $? -eq $expected ]]
}
check "inspect" status 0 "$b/ds" inspect "$out/own"
check "inspect prints the tensor" grep -q '^layer.weight  *F32  *64x32' "$out/stdout"
check "inspect --json" status 0 "$b/ds" inspect "$out/own" --json
check "inspect --json names the step" grep -q '"step": 100' "$out/stdout"
check "convert to bf16" status 0 "$b/ds" convert "$out/own" "$out/m.safetensors" --dtype bf16
check "convert in shards" status 0 "$b/ds" convert "$out/own" "$out/own/x.safetensors" --max-shard-bytes 100
check "inspect the index" status 0 "$b/ds" inspect "$out/own/x.safetensors.index.json"
check "convert back" status 0 "$b/ds" convert "$out/m.safetensors" "$out/again"
check "inspect nothing" status 1 "$b/ds" inspect "$out/nothing"
check "no operand" status 2 "$b/ds" inspect
check "a wrong dtype" status 2 "$b/ds" convert "$out/own" "$out/y.safetensors" --dtype int8
printf 'X' | dd of="$out/own/step100/rank-00000.safetensors" bs=1 seek=5000 conv=notrunc 2>/dev/null
check "inspect damage" status 1 "$b/ds" inspect "$out/own/step100" --json
check "the damage is named" grep -q "layer.weight.*rank-00000.safetensors" "$out/stderr"
check "the damage is in the JSON" grep -q '"verified": false' "$out/stdout"
check "convert damage" status 1 "$b/ds" convert "$out/own/step100" "$out/z.safetensors"
check "nothing is left of it" test ! -e "$out/z.safetensors" -a ! -e "$out/z.safetensors.tmp"
"$b/07_checkpoint" "$out/two" >/dev/null
cp -r "$out/again/converted" "$out/two" && truncate -s -9 "$out/two/step100/manifest.json"
check "inspect a folder whose latest is damaged" status 1 "$b/ds" inspect "$out/two" --json
check "which is named" grep -q "opened 'converted' instead: .*step100/manifest.json" "$out/stderr"
check "and in the JSON" grep -q '"tag": "converted", "verified": true, "error": ".*step100/manifest.json' "$out/stdout"
check "convert what is left" status 0 "$b/ds" convert "$out/two" "$out/left.safetensors"
check "it is said" grep -q "ds convert: .*opened 'converted' instead" "$out/stderr"
printf '%d passed, %d failed' $passed $failed
[ $skipped -eq 0 ] || printf ', %d skipped' $skipped
printf '\n'
[ $failed -eq 0 ]
