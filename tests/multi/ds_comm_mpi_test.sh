#!/bin/bash
# The collectives of ds_comm.h over Open MPI and MPICH: tests/unit/ds_comm_test.c, built with mpicc, under mpirun with 2 and 3
# ranks, and a rank that is late. Skipped, and counted, without MPI.
set -u
cd "$(dirname "$0")/../.."
B=${B:-build}
PATH=$PATH:$PWD/build/mpich/bin # where tests/tools/mpich.sh puts it
passed=0 failed=0 skipped=0
check() { # NAME STATUS LOG
    if [[ $2 -eq 0 ]]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAIL $1"
        tail -n 30 "$3"
    fi
}
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT DS_RUN_ID
mkdir -p "$B/tests/multi"

run_with() { # MPICC MPIRUN: one implementation of MPI
    local mpicc=$1 mpirun=$2 name options=() program
    name=$(basename "$mpicc")
    program=$B/tests/multi/ds_comm_$name
    if "$mpirun" --version 2>&1 | grep -q 'Open MPI\|OpenRTE'; then
        options=(--oversubscribe --mca btl_vader_single_copy_mechanism none)
        [[ $(id -u) = 0 ]] && options+=(--allow-run-as-root)
    fi
    "$mpicc" -std=gnu99 -O1 -g -I. -Wall -Wextra -Werror -DDS_COMM_USE_MPI=1 -o "$program" tests/unit/ds_comm_test.c \
        -lpthread -lm >"$program.log" 2>&1
    check "$name build" $? "$program.log"
    for n in 2 3; do
        timeout 120 "$mpirun" "${options[@]}" -np $n "$program" >"$program.$n.log" 2>&1
        check "$name -np $n" $? "$program.$n.log"
    done
    # Ranks end without MPI_Finalize here; mpirun may end the others at the first of them.
    timeout 60 "$mpirun" "${options[@]}" -np 3 "$program" late >"$program.late.log" 2>&1
    [[ $(grep -c 'late: rank [02]: 0 checks failed' "$program.late.log") -ge 1 ]] &&
        ! grep -q ': [1-9][0-9]* checks failed' "$program.late.log"
    check "$name late" $? "$program.late.log"
    # Each call to MPI fails in turn; those that all ranks of a program make together once, in a program each.
    "$mpicc" -std=gnu99 -O1 -g -I. -Wall -Wextra -Werror -DDS_COMM_USE_MPI=1 -o "$program.calls" tests/tools/comm_mpi_calls.c \
        -lpthread -lm >"$program.calls.log" 2>&1
    check "$name calls build" $? "$program.calls.log"
    for last in "MPI_Comm_idup 0 1 and_others" "MPI_Comm_idup 1 2" "MPI_Op_create 0 1" "MPI_Op_create 1 2"; do
        timeout 120 "$mpirun" "${options[@]}" -np 2 "$program.calls" $last >"$program.calls.log" 2>&1
        grep -q 'rank [01]: [0-9]* cases, 0 failed' "$program.calls.log" && ! grep -q 'FAIL\|[1-9][0-9]* failed' "$program.calls.log"
        check "$name calls, $last" $? "$program.calls.log"
    done
}

# ds.native_reduce: train_gpt's gradients are summed by MPI itself, which is counted on the way to it. Two ranks have one order
# of sums, so that the loss is the same to the last bit.
native() { # MPIRUN
    local program=$B/train_gpt_mpi work options=(--oversubscribe) stage
    [[ $(id -u) = 0 ]] && options+=(--allow-run-as-root)
    work=$(mktemp -d)
    cat >"$work/count.c" <<'COUNT'
#include <mpi.h>
#include <stdio.h>
static int calls;
int MPI_Ireduce(const void *in, void *out, int n, MPI_Datatype type, MPI_Op op, int root, MPI_Comm comm, MPI_Request *r) {
    calls++;
    return PMPI_Ireduce(in, out, n, type, op, root, comm, r);
}
int MPI_Iallreduce(const void *in, void *out, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm, MPI_Request *r) {
    calls++;
    return PMPI_Iallreduce(in, out, n, type, op, comm, r);
}
__attribute__((destructor)) static void told(void) {
    if (calls) fprintf(stderr, "%d sums by MPI\n", calls);
}
COUNT
    "$2" -shared -fPIC -o "$work/count.so" "$work/count.c"
    for stage in 0 3; do
        for key in false true; do
            echo "{\"train_micro_batch_size_per_gpu\": 1, \"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 1e-3}},
                   \"zero_optimization\": {\"stage\": $stage}, \"ds\": {\"native_reduce\": $key}}" >"$work/config.json"
            LD_PRELOAD=$work/count.so timeout 60 "$1" "${options[@]}" -np 2 "$program" --config "$work/config.json" --data \
                tests/golden/gpt_text.txt --layers 2 --heads 2 --channels 32 --context 32 --generate 0 --quiet --steps 4 \
                --summary "$work/$key" >"$work/$key.log" 2>&1
            check "native_reduce $key, stage $stage" $? "$work/$key.log"
        done
        grep -q '[1-9][0-9]* sums by MPI' "$work/true.log" && ! grep -q 'sums by MPI' "$work/false.log" &&
            grep -q loss_hex "$work/true" && [[ $(grep loss_hex "$work/true") = $(grep loss_hex "$work/false") ]]
        check "native_reduce, stage $stage: sums by MPI, and no other loss" $? "$work/true.log"
    done
    rm -rf "$work"
}

# both implementations where Debian's names for them are there, else whatever mpicc is
if command -v mpicc.openmpi >/dev/null && command -v mpirun.openmpi >/dev/null; then run_with mpicc.openmpi mpirun.openmpi; fi
if [[ ${CONFIG:-release} = [at]san ]]; then
    echo "SKIP native_reduce: a sanitizer needs to be the first library, and so does what counts MPI's calls"
    skipped=$((skipped + 6))
elif [[ -x $B/train_gpt_mpi ]] && command -v mpirun.openmpi >/dev/null; then
    native mpirun.openmpi mpicc.openmpi
fi
if command -v mpicc.mpich >/dev/null && command -v mpirun.mpich >/dev/null; then run_with mpicc.mpich mpirun.mpich; else
    echo "SKIP mpich: no MPICH; tests/tools/mpich.sh unpacks one below build/"
    skipped=$((skipped + 9))
fi
if [[ $((passed + failed)) -eq 0 ]]; then
    MPICC=${MPICC:-$(command -v mpicc)} MPIRUN=${MPIRUN:-$(command -v mpirun)}
    if [[ -z $MPICC || -z $MPIRUN ]]; then
        echo "SKIP mpi: no mpicc or mpirun on this machine"
        echo "0 passed, 0 failed, $((skipped + 9)) skipped"
        exit 0
    fi
    run_with "$MPICC" "$MPIRUN"
fi
echo "$passed passed, $failed failed$([[ $skipped -gt 0 ]] && echo ", $skipped skipped")"
[[ $failed -eq 0 ]]
