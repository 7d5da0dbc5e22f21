# Two machines, as network and host-name spaces joined by a virtual cable. Sourced in the repository's root by tests that give
# `skips`, the number of checks that are left out where this cannot be. Sets work (a scratch folder), a, b (the spaces), mpicc, and:
#   on_hosts PROGRAM ARGS...   one rank on each of them, under Open MPI
#   sent                       bytes that the first has put on the cable
#   slow_cable BITS_PER_SECOND DELAY_US   from now on they talk over another cable, of this rate and delay each way; fails
#                              where there is no TUN device
B=${B:-build}
mpicc=$(command -v mpicc.openmpi || command -v mpicc) mpirun=$(command -v mpirun.openmpi || command -v mpirun)
a=dsa$$ b=dsb$$ work=$(mktemp -d)
passed=0 failed=0 skipped=0
cable=va$$ net=10.77.0 carrier=
cleanup() {
    [[ -z $carrier ]] || kill "$carrier"
    ip netns del "$a" 2>/dev/null
    ip netns del "$b" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
check() { if [[ $2 -eq 0 ]]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAIL $1"; fi; }
summary() {
    printf '%s passed, %s failed' "$passed" "$failed"
    [[ $skipped -eq 0 ]] || printf ', %s skipped' "$skipped"
    echo
    [[ $failed -eq 0 ]]
}
skip() { # WHY [HOW_MANY]
    echo "SKIP hosts: $1"
    skipped=$((skipped + ${2:-1}))
}
no_hosts() {
    skip "$1" "$skips"
    summary
    exit 0
}
[[ -n $mpicc && -n $mpirun ]] && "$mpirun" --version 2>&1 | grep -q 'Open MPI\|OpenRTE' || no_hosts "no Open MPI"
command -v ip >/dev/null && command -v unshare >/dev/null || no_hosts "no ip or unshare"
[[ $(id -u) = 0 ]] && ip netns add "$a" 2>/dev/null && ip netns add "$b" 2>/dev/null &&
    ip link add "va$$" netns "$a" type veth peer name "vb$$" netns "$b" 2>/dev/null || no_hosts "network spaces are not allowed here"
ip -n "$a" addr add 10.77.0.1/24 dev "va$$" && ip -n "$b" addr add 10.77.0.2/24 dev "vb$$"
for side in "$a va$$" "$b vb$$"; do
    set -- $side
    ip -n "$1" link set "$2" up
    ip -n "$1" link set lo up
done
# what mpirun calls in place of ssh: the first argument is the host
cat >"$work/agent" <<AGENT
#!/bin/bash
shift
exec ip netns exec $b unshare --uts bash -c "hostname dsb; \$*"
AGENT
chmod +x "$work/agent"
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT DS_RUN_ID
on_hosts() { # Open MPI leaks, and takes its locks in two orders, on its own account
    timeout 120 ip netns exec "$a" unshare --uts bash -c "hostname dsa; export ASAN_OPTIONS=detect_leaks=0 \
        TSAN_OPTIONS=detect_deadlocks=0; exec $mpirun -x ASAN_OPTIONS -x TSAN_OPTIONS --allow-run-as-root --mca plm rsh \
        --mca plm_rsh_agent $work/agent --mca btl tcp,self --mca btl_tcp_if_include $net.0/24 \
        --mca oob_tcp_if_include 10.77.0.0/24 --host 10.77.0.1:1,10.77.0.2:1 -np 2 --wdir $PWD $*"
}
sent() { ip netns exec "$a" cat "/sys/class/net/$cable/statistics/tx_bytes"; }
slow_cable() {
    local side
    "${CC:-cc}" -std=gnu99 -D_GNU_SOURCE -O1 -o "$work/slow_cable" tests/tools/slow_cable.c || return 1
    "$work/slow_cable" "$a" "$b" slow "$1" "$2" >"$work/carrier" 2>&1 &
    carrier=$!
    for _ in $(seq 100); do
        grep -q ready "$work/carrier" && break
        kill -0 "$carrier" 2>/dev/null || { carrier=; return 1; }
        sleep 0.05
    done
    for side in "$a 1" "$b 2"; do
        set -- $side
        ip -n "$1" addr add "10.78.0.$2/24" dev slow && ip -n "$1" link set slow mtu 1500 txqueuelen 2000 up || return 1
    done
    cable=slow net=10.78.0
}
