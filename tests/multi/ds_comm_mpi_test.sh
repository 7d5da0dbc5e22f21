#!/bin/bash
# The collectives of ds_comm.h over MPI: tests/unit/ds_comm_test.c, built with mpicc, under mpirun with 2 and 3 ranks;
# and a rank that is late. Skipped, and counted, without MPI.
set -u
cd "$(dirname "$0")/../.."
MPICC=${MPICC:-$(command -v mpicc)} MPIRUN=${MPIRUN:-$(command -v mpirun)} B=${B:-build}
passed=0 failed=0
if [[ -z $MPICC || -z $MPIRUN ]]; then
    echo "SKIP mpi: no mpicc or mpirun on this machine"
    echo "0 passed, 0 failed, 4 skipped"
    exit 0
fi
mkdir -p "$B/tests/multi"
program=$B/tests/multi/ds_comm_mpi
check() { # NAME STATUS
    if [[ $2 -eq 0 ]]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAIL $1"; fi
}
options=()
if "$MPIRUN" --version 2>&1 | grep -q 'Open MPI'; then options=(--oversubscribe --mca btl_vader_single_copy_mechanism none); fi
if [[ $(id -u) = 0 && ${#options[@]} -gt 0 ]]; then options+=(--allow-run-as-root); fi
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT DS_RUN_ID

"$MPICC" -std=gnu99 -O1 -g -I. -Wall -Wextra -Werror -DDS_COMM_USE_MPI=1 -o "$program" tests/unit/ds_comm_test.c -lpthread -lm
check build $?
for n in 2 3; do
    timeout 120 "$MPIRUN" "${options[@]}" -np $n "$program" >"$program.$n.log" 2>&1
    status=$?
    check "mpirun_$n" $status
    [[ $status -eq 0 ]] || tail -n 30 "$program.$n.log"
done
timeout 60 "$MPIRUN" "${options[@]}" -np 3 "$program" late >"$program.late.log" 2>&1
[[ $(grep -c 'late: rank [02]: 0 checks failed' "$program.late.log") -ge 1 && $(grep -c 'checks failed' "$program.late.log") = \
    $(grep -c ': 0 checks failed' "$program.late.log") ]]
status=$?
check late $status
[[ $status -eq 0 ]] || tail -n 30 "$program.late.log"
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
