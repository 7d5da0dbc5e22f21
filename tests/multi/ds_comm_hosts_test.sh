#!/bin/bash
# Two machines, as network and host-name spaces joined by a virtual cable: the collectives of ds_comm.h over Open MPI between
# them, and proof that the bytes went through the cable. Skipped, and counted, without Open MPI or the right to make spaces.
set -u
cd "$(dirname "$0")/../.."
B=${B:-build}
mpicc=$(command -v mpicc.openmpi || command -v mpicc) mpirun=$(command -v mpirun.openmpi || command -v mpirun)
a=dsa$$ b=dsb$$ work=$(mktemp -d)
program=$work/ds_comm_test
skip() {
    echo "SKIP hosts: $1"
    echo "0 passed, 0 failed, 2 skipped"
    exit 0
}
cleanup() {
    ip netns del "$a" 2>/dev/null
    ip netns del "$b" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
[[ -n $mpicc && -n $mpirun ]] && "$mpirun" --version 2>&1 | grep -q 'Open MPI\|OpenRTE' || skip "no Open MPI"
command -v ip >/dev/null && command -v unshare >/dev/null || skip "no ip or unshare"
[[ $(id -u) = 0 ]] && ip netns add "$a" 2>/dev/null && ip netns add "$b" 2>/dev/null &&
    ip link add "va$$" netns "$a" type veth peer name "vb$$" netns "$b" 2>/dev/null || skip "network spaces are not allowed here"
ip -n "$a" addr add 10.77.0.1/24 dev "va$$" && ip -n "$b" addr add 10.77.0.2/24 dev "vb$$"
for side in "$a va$$" "$b vb$$"; do
    set -- $side
    ip -n "$1" link set "$2" up
    ip -n "$1" link set lo up
done
passed=0 failed=0
check() { if [[ $2 -eq 0 ]]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAIL $1"; fi; }

"$mpicc" -std=gnu99 -O1 -g -I. -DDS_COMM_USE_MPI=1 -o "$program" tests/unit/ds_comm_test.c -lpthread -lm || exit 1
# what mpirun calls in place of ssh: the first argument is the host
cat >"$work/agent" <<AGENT
#!/bin/bash
shift
exec ip netns exec $b unshare --uts bash -c "hostname dsb; \$*"
AGENT
chmod +x "$work/agent"
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT DS_RUN_ID
timeout 120 ip netns exec "$a" unshare --uts bash -c "hostname dsa; exec $mpirun --allow-run-as-root --mca plm rsh \
    --mca plm_rsh_agent $work/agent --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 \
    --mca oob_tcp_if_include 10.77.0.0/24 --host 10.77.0.1:1,10.77.0.2:1 -np 2 --wdir $PWD $program" >"$work/log" 2>&1
status=$?
check collectives $status
[[ $status -eq 0 ]] || tail -n 30 "$work/log"
bytes=$(ip netns exec "$a" cat "/sys/class/net/va$$/statistics/tx_bytes")
[[ $bytes -gt 1000000 ]]
check "through_the_cable ($bytes bytes)" $?
echo "$passed passed, $failed failed"
[[ $failed -eq 0 ]]
