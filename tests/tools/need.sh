#!/bin/sh
# Installs what building and testing needs, with apt when that is allowed (root, and DS_NO_INSTALL unset); otherwise
# says the one line to run. Only a C compiler is required; the rest is optional and said by tests/tools/probe.sh. What is
# missing is asked for once: the list is kept in build/.optional, and is empty again when all is there.
set -u
has() { command -v "$1" >/dev/null 2>&1; }
compiler() { has "${CC:-cc}" || has gcc || has clang; }
aio() { for file in /lib/*/libaio.so.1 /usr/lib/*/libaio.so.1 /usr/lib*/libaio.so.1; do [ -e "$file" ] && return; done; return 1; }
blas() { echo "int main(void) { return 0; }" | ${CC:-cc} -x c - -o /dev/null -lopenblas 2>/dev/null; }
missing() {
    compiler || printf '%s' ' gcc libc6-dev'
    has "${CXX:-c++}" || printf '%s' ' g++'
    aio || printf '%s' ' libaio1'
    blas || printf '%s' ' libopenblas-dev'
    has mpicc || printf '%s' ' openmpi-bin libopenmpi-dev'
}
mkdir -p build
packages=$(missing)
[ -n "$packages" ] || { rm -f build/.optional; exit 0; }
compiler && [ "$(cat build/.optional 2>/dev/null)" = "$packages" ] && exit 0
install='apt-get install -y --no-install-recommends'
line="apt-get update && $install$packages"
if [ "$(id -u)" = 0 ] && has apt-get && [ -z "${DS_NO_INSTALL:-}" ]; then
    echo "installing: $line" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2 || true
    if ! $install -qq $packages >/dev/null 2>&1; then
        echo "not all of it can be installed; trying one by one" >&2
        for package in $packages; do $install -qq "$package" >/dev/null 2>&1 || echo "not installed: $package" >&2; done
    fi
    packages=$(missing)
fi
if ! compiler; then
    echo "error: no C compiler; run as root: $line" >&2
    exit 1
fi
if [ -z "$packages" ]; then
    rm -f build/.optional
else
    echo "optional parts are missing; to have them, run as root: apt-get update && $install$packages" >&2
    echo "$packages" >build/.optional
fi
