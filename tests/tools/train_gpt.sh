# Shared by the scripts that run train_gpt: sourced in the repository's root. Sets B (absolute), root, work (a scratch folder,
# removed at the end), model (flags of a small one), data, and the functions below. Ends with `summary`.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT DS_RUN_ID
root=$PWD B=${B:-build} passed=0 failed=0 skipped=0
[[ $B = /* ]] || B=$root/$B
model='--layers 2 --heads 2 --channels 32 --context 32' data="--data $root/tests/golden/gpt_text.txt"
work=$(mktemp -d)
end_started() { # what this script left running in the background
    local pids
    pids=$(jobs -p)
    [[ -z $pids ]] || kill -KILL $pids 2>/dev/null
}
trap 'end_started; rm -rf "$work"' EXIT
cd "$work" || exit 1
mkdir build # where zero3_nvme.json puts its swap file and its metrics
cp -r "$root/examples/configs" configs # so that every command line names the scratch folder
configs=$work/configs
check() { # STATUS NAME [LOG]
    if [[ $1 -eq 0 ]]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAIL $2"
        [[ -z ${3:-} ]] || tail -n 12 "$3"
    fi
}
skip() { # WHY HOW_MANY
    echo "SKIP $1"
    skipped=$((skipped + ${2:-1}))
}
summary() {
    printf '%s passed, %s failed' "$passed" "$failed"
    [[ $skipped -eq 0 ]] || printf ', %s skipped' "$skipped"
    echo
    [[ $failed -eq 0 ]]
}
# ranks N CONFIG OPTIONS...: train_gpt under ds run; stdout in out, stderr in err
ranks() {
    local n=$1 config=$2
    shift 2
    timeout 120 "$B/ds" run -n "$n" -- "$B/train_gpt" --config "$config" $data $model "$@" >out 2>err </dev/null
}
field() { awk -v k="$2" '$1 == k {print $2}' "$1"; } # SUMMARY NAME
ours_running() { # as pgrep -f does, which a bare Debian lacks
    local process words
    for process in /proc/[0-9]*; do
        words=()
        mapfile -d '' -t words 2>/dev/null <"$process/cmdline" || continue
        [[ "${words[*]}" != *"$work"* ]] || echo "${process#/proc/}"
    done 2>/dev/null
}
children() { # PID
    local status
    for status in $(grep -ls "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status); do
        basename "$(dirname "$status")"
    done
}
# No process of ours, no shared memory, no swap file is left.
left_behind() {
    local i
    for i in 1 2 3 4 5 6 7 8 9 10; do
        [[ -z $(ours_running) ]] && break
        sleep 0.2
    done
    ours_running
    ls /dev/shm | grep -i '^ds' || true
    find build -type f ! -path 'build/monitor/*'
    find "$work" -name '.ds_*'
}
clean() { # NAME
    left_behind >left
    [[ ! -s left ]]
    check $? "$1: left behind: $(tr '\n' ' ' <left)"
}
