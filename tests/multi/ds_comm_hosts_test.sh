#!/bin/bash
# The collectives of ds_comm.h over Open MPI between two machines (tests/tools/hosts.sh), and proof that the bytes went through
# the cable. Skipped, and counted, without Open MPI or the right to make network spaces.
set -u
cd "$(dirname "$0")/../.."
skips=2
. tests/tools/hosts.sh
program=$work/ds_comm_test
"$mpicc" -std=gnu99 -O1 -g -I. -DDS_COMM_USE_MPI=1 -o "$program" tests/unit/ds_comm_test.c -lpthread -lm || exit 1
on_hosts "$program" >"$work/log" 2>&1
status=$?
check collectives $status
[[ $status -eq 0 ]] || tail -n 30 "$work/log"
bytes=$(sent)
[[ $bytes -gt 1000000 ]]
check "through_the_cable ($bytes bytes)" $?
summary
