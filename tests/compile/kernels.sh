#!/bin/sh
# `make kernels` compiles ds_kernels.cu for each architecture that this nvcc knows, without a warning, and the object exports
# what the headers declare and no more; the tests of `make gpu-test` link with it; `make gpu-info` prints each kernel. environment: NVCC, CC, CXX
set -u
passed=0 failed=0 skipped=0
end() {
    printf '%s passed, %s failed' "$passed" "$failed"
    [ "$skipped" = 0 ] || printf ', %s skipped' "$skipped"
    echo
    [ "$failed" = 0 ]
    exit
}
check() { if [ "$1" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "FAIL $2"; fi; }
if [ -z "${NVCC:-}" ]; then
    echo "SKIP kernels: no nvcc"
    skipped=1
    end
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
kernels() { MAKEFLAGS='' make -s config=release B="$scratch" NVCC="$NVCC" "$@"; }
command=$(kernels -n "$scratch/ds_kernels.o")
known=$("$NVCC" --list-gpu-code 2>/dev/null)
for arch in 75 80 90 100; do
    case " $(echo $known) " in
    *" sm_$arch "*)
        echo "$command" | grep -q "arch=compute_$arch,code=sm_$arch"
        check $? "make kernels leaves sm_$arch out"
        last=$arch
        ;;
    *) echo "SKIP sm_$arch: this nvcc does not know it" && skipped=$((skipped + 1)) ;;
    esac
done
echo "$command" | grep -q "arch=compute_$last,code=compute_$last"
check $? "make kernels leaves the PTX of compute_$last out"
kernels kernels >"$scratch/log" 2>&1 && ! [ -s "$scratch/log" ]
check $? "make kernels: $(cat "$scratch/log")"
exported=$(nm -g --defined-only "$scratch/ds_kernels.o" | awk '{print $3}' | grep '^ds' | sort | tr '\n' ' ')
[ "$exported" = "ds_cuda_comm_kernels ds_cuda_device ds_cuda_gather_rows ds_cuda_optim_kernels ds_cuda_scatter_rows ds_cuda_sparse_kernels " ]
check $? "exports: $exported"
# what make gpu-test runs
kernels CFLAGS=-O0 "$scratch/gpu/ds_kernels_test" "$scratch/gpu/ds_zero_device_test" >"$scratch/log" 2>&1
check $? "the tests for a GPU: $(cat "$scratch/log")"
# a line with registers, stack and spills for each __global__ function
kernels gpu-info >"$scratch/info" 2>&1
check $? "make gpu-info: $(tail -n 3 "$scratch/info")"
for name in $(tr '\n' ' ' <ds_kernels.cu | grep -o '__global__ void[^{;]*{' | sed -E 's/__launch_bounds__\([^)]*\)//; s/__global__ void *//; s/ *\(.*//'); do
    grep -qE "^[0-9]+ +[0-9]+ +[0-9]+ +$name[<(]" "$scratch/info"
    check $? "make gpu-info does not list $name"
done
# The arithmetic is the same whatever the flags: nothing flushes denormals, but for fp16's own, an integer times 2^-24,
# which is never a denormal of fp32.
"$NVCC" -use_fast_math -std=c++14 -I. -arch=sm_80 -ptx -o "$scratch/fast.ptx" ds_kernels.cu &&
    grep -q 'fma.rn.f32' "$scratch/fast.ptx" &&
    ! grep -E '^[[:space:]]*(fma|mul|div|sqrt|add|cvt)[a-z0-9.]*\.ftz' "$scratch/fast.ptx" | grep -v '0f[3B]3800000;'
check $? "-use_fast_math changes the arithmetic"
end
