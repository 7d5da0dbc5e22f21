#!/bin/sh
# Installs what building and testing needs, with apt when that is allowed (root, and DS_NO_INSTALL unset); otherwise
# says the one line to run. Only a C compiler is required; the rest is optional and said by tests/tools/probe.sh.
set -u
has() { command -v "$1" >/dev/null 2>&1; }
required='' optional=''
has "${CC:-cc}" || has gcc || has clang || required='gcc libc6-dev'
has "${CXX:-c++}" || optional="$optional g++"
aio() { for file in /lib/*/libaio.so.1 /usr/lib/*/libaio.so.1 /usr/lib*/libaio.so.1; do [ -e "$file" ] && return; done; return 1; }
aio || optional="$optional libaio1"
blas() { echo "int main(void) { return 0; }" | ${CC:-cc} -x c - -o /dev/null -lopenblas 2>/dev/null; }
if [ -n "$required" ] || ! blas; then optional="$optional libopenblas-dev"; fi
has mpicc || optional="$optional openmpi-bin libopenmpi-dev"
[ -z "$required$optional" ] && exit 0
line="apt-get install -y --no-install-recommends $required$optional"
if [ "$(id -u)" = 0 ] && has apt-get && [ -z "${DS_NO_INSTALL:-}" ]; then
    echo "installing: $line" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2 || true
    $line -qq >/dev/null 2>&1 || {
        echo "the whole list could not be installed; trying what is required" >&2
        [ -z "$required" ] || apt-get install -y --no-install-recommends $required >&2 || true
    }
    has "${CC:-cc}" || has gcc || { echo "error: no C compiler; run: $line" >&2; exit 1; }
    exit 0
fi
if [ -n "$required" ]; then
    echo "error: no C compiler; run as root: $line" >&2
    exit 1
fi
mkdir -p build
if [ "$(cat build/.optional 2>/dev/null)" != "$optional" ]; then
    echo "optional parts are missing; to have them, run as root: $line" >&2
    echo "$optional" >build/.optional
fi
