#!/bin/bash
# The swap file of ds_offload.h beside DeepSpeed's own aio handle, each at its best of several settings, in the same folder and
# in turns, medians of ROUNDS. environment: B (build), PYTHON (python3; one with deepspeed, torch, ninja and libaio's header), FOLDER (.),
# MIB (256), ROUNDS (3)
set -u
cd "$(dirname "$0")/../.."
B=${B:-build} python=${PYTHON:-python3} folder=${FOLDER:-.} mib=${MIB:-256} rounds=${ROUNDS:-3}
PATH="$(dirname "$(command -v "$python")"):$PATH" # its ninja
if ! "$python" -c 'from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load(verbose=False)' >/dev/null 2>&1; then
    echo "no DeepSpeed with async_io: give PYTHON=..."
    exit 0
fi
declare -A best
printf '%-38s %12s %12s %12s %12s\n' 'MB/s' 'ds write' 'peer write' 'ds read' 'peer read'
for setting in '1048576 8 1' '1048576 32 1' '1048576 16 2' '262144 64 2' '8388608 32 1'; do
    read -r block depth threads <<<"$setting"
    own=$("$B/ds" bench aio --folder "$folder" --mib "$mib" --block-size "$block" --queue-depth "$depth" --threads "$threads" \
        --rounds "$rounds" --fio false --json | tr ',{' '\n\n' | tr -d '" ' | awk -F: '$1 == "write" {w = $2} $1 == "read" {print w, $2}')
    peer=$("$python" tests/peers/aio.py "$folder" "$mib" "$block" "$depth" "$threads" "$rounds" 2>/dev/null | tail -1)
    read -r ow or <<<"$own"
    read -r pw pr <<<"$peer"
    printf '%-38s %12.0f %12.0f %12.0f %12.0f\n' "block $block depth $depth threads $threads" $((${ow:-0} / 1000000)) \
        $((${pw:-0} / 1000000)) $((${or:-0} / 1000000)) $((${pr:-0} / 1000000))
    for k in ow or pw pr; do [[ ${!k:-0} -gt ${best[$k]:-0} ]] && best[$k]=${!k}; done
done
awk -v a="${best[ow]:-0}" -v b="${best[pw]:-0}" -v c="${best[or]:-0}" -v d="${best[pr]:-0}" \
    'BEGIN {if (b && d) printf "best of each: write %.2f, read %.2f of the peer\n", a / b, c / d}'
