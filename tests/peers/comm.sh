#!/bin/bash
# ds_comm.h over shared memory beside gloo and MPI on this machine, in turns; best and median of all rounds of all turns.
# environment: B (build), PYTHON (python3; one that has torch), MPICC, MPIRUN, RANKS (2), BYTES (67108864), TURNS (3), ROUNDS (7)
set -u
cd "$(dirname "$0")/../.."
B=${B:-build} python=${PYTHON:-python3} ranks=${RANKS:-2} bytes=${BYTES:-67108864} rounds=${ROUNDS:-7}
mpicc=${MPICC:-$(command -v mpicc.openmpi || command -v mpicc)} mpirun=${MPIRUN:-$(command -v mpirun.openmpi || command -v mpirun)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
peers=()
if "$python" -c 'import torch.distributed as d; assert d.is_gloo_available()' 2>/dev/null; then peers+=(gloo); else echo "no torch with gloo: give PYTHON=..."; fi
if [[ -n $mpicc && -n $mpirun ]] && "$mpicc" -O2 -o "$work/comm_mpi" tests/peers/comm_mpi.c 2>"$work/err"; then peers+=(mpi); else echo "no MPI: give MPICC=... MPIRUN=..."; fi
options=()
[[ -n $mpirun ]] && "$mpirun" --version 2>&1 | grep -q 'Open MPI\|OpenRTE' && options=(--bind-to none)
[[ $(id -u) = 0 && ${#options[@]} -gt 0 ]] && options+=(--allow-run-as-root)
[[ ${#options[@]} -gt 0 && $ranks -gt $(nproc) ]] && options+=(--oversubscribe)
gloo() { "$python" tests/peers/comm.py "$ranks" "$bytes" "$rounds" $((20000 + RANDOM % 20000)); }
mpi() { "$mpirun" ${options[@]+"${options[@]}"} -np "$ranks" "$work/comm_mpi" "$bytes" "$rounds"; }
for _ in $(seq "${TURNS:-3}"); do
    "$B/ds" bench comm --ranks "$ranks" --bytes "$bytes" --rounds "$rounds" --json >>"$work/ds.json" || exit 1
    for peer in ${peers[@]+"${peers[@]}"}; do
        "$peer" >>"$work/$peer" 2>"$work/err" || { echo "$peer failed:" && tail -5 "$work/err"; }
    done
done
# our figures as lines of the same form
tr '{,' '\n\n' <"$work/ds.json" | tr -d '" ' | awk -F: '
    $2 == "" {name = $1}
    $1 == "seconds" {best = $2}
    $1 == "median_seconds" {print name, best, $2}
    $1 == "small_seconds" {small = $2}
    $1 == "small_median_seconds" {print "small", small, $2}' >"$work/ds"
figure() { # FILE NAME COLUMN: the least
    awk -v k="$2" -v c="$3" '$1 == k && (!best || $c < best) {best = $c} END {if (best) printf "%.4g", 1e6 * best}' "$work/$1"
}
printf '%-26s %22s\n' "$ranks ranks, $bytes bytes" 'us: best, least median'
row() { # LABEL OURS THEIRS
    local peer own=$(figure ds "$2" 2) middle=$(figure ds "$2" 3)
    printf '%-26s ds %9s %9s' "$1" "$own" "$middle"
    for peer in ${peers[@]+"${peers[@]}"}; do
        local t=$(figure "$peer" "$3" 2) m=$(figure "$peer" "$3" 3)
        [[ -n $t ]] && awk -v p="$peer" -v t="$t" -v m="$m" -v o="$own" -v n="$middle" \
            'BEGIN {printf "   %s %9s %9s (ds %.1f, %.1f times as fast)", p, t, m, t / o, m / n}'
    done
    echo
}
row 'all_reduce, shared' all_reduce all_reduce
row 'all_reduce, private' all_reduce_private all_reduce
row 'reduce_scatter, private' reduce_scatter_private reduce_scatter
row 'all_gather, private' all_gather_private all_gather
row 'all_reduce of 8 bytes' small small
