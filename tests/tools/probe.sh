#!/bin/sh
# Finds the optional parts by compiling a probe for each; writes make variables into a file, and a table on stderr when the
# file was not there or changes. usage: probe.sh FILE; environment: CC, CXX, and LIBAIO=0 BLAS=0 MPI=0 to leave a part out
set -u
to=$1
CC=${CC:-cc}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
try() { # try NAME 'source' flags...
    printf '%s\n' "$2" >"$scratch/p.c"
    shift 2
    "$CC" -o "$scratch/p" "$scratch/p.c" "$@" >/dev/null 2>&1
}
flags='' libs=''
row() { printf '  %-10s %s\n' "$1" "$2" >>"$scratch/table"; }
echo "optional parts:" >"$scratch/table"
if [ "${LIBAIO:-1}" = 0 ]; then
    flags="$flags -DDS_OFFLOAD_USE_LIBAIO=0"
    row libaio "left out: the kernel's own system calls serve instead"
elif try aio '#include <dlfcn.h>
int main(void) { return !dlopen("libaio.so.1", RTLD_NOW); }' -ldl && "$scratch/p"; then
    row libaio "yes (opened at run time)"
else row libaio "no: the kernel's own system calls serve instead"; fi
blas=no
if [ "${BLAS:-1}" != 0 ]; then
    for where in '' -I/usr/include/x86_64-linux-gnu -I/usr/include/openblas; do
        if try blas '#include <cblas.h>
void openblas_set_num_threads(int);
int main(void) { openblas_set_num_threads(1); cblas_sscal(0, 1.0f, 0, 1); return 0; }' $where -lopenblas; then
            blas="yes (OpenBLAS)" flags="$flags $where -DEXAMPLE_USE_CBLAS=1" libs="$libs -lopenblas"
            break
        fi
    done
fi
row BLAS "$blas"
mpicc='' mpirun=''
if [ "${MPI:-1}" != 0 ] && command -v mpicc >/dev/null 2>&1; then
    printf '#include <mpi.h>\nint main(int c, char **v) { return MPI_Init(&c, &v); }\n' >"$scratch/p.c"
    if mpicc -o "$scratch/p" "$scratch/p.c" >/dev/null 2>&1; then mpicc=mpicc mpirun=$(command -v mpirun); fi
fi
row MPI "${mpicc:-no}"
nvcc=$(command -v nvcc 2>/dev/null || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
row nvcc "${nvcc:-no}"
cxx=''
printf 'int main() { return 0; }\n' >"$scratch/p.cc"
"${CXX:-c++}" -o "$scratch/p" "$scratch/p.cc" >/dev/null 2>&1 && cxx=yes
row C++ "${cxx:-no}"
{
    echo "FEATURE_FLAGS := $flags"
    echo "FEATURE_LIBS := $libs"
    echo "MPICC := $mpicc"
    echo "MPIRUN := $mpirun"
    echo "NVCC := $nvcc"
    echo "CXX_FOUND := $cxx"
} >"$scratch/features.mk"
cmp -s "$scratch/features.mk" "$to" && exit 0
cat "$scratch/table" >&2
mv "$scratch/features.mk" "$to"
