#!/bin/sh
# ds_kernels.cu compiles for each architecture that this nvcc knows, and exports what the headers declare and no more.
# environment: NVCC, CXX
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
known=$("$NVCC" --list-gpu-code 2>/dev/null)
for arch in 75 90 100; do
    case " $(echo $known) " in
    *" sm_$arch "*)
        "$NVCC" -O3 -std=c++14 -I. -Xcompiler -Wall,-Wextra,-Werror -Werror all-warnings \
            -gencode "arch=compute_$arch,code=sm_$arch" -c -o "$scratch/k$arch.o" ds_kernels.cu
        check $? "sm_$arch"
        object=$scratch/k$arch.o
        ;;
    *) echo "SKIP sm_$arch: this nvcc does not know it" && skipped=$((skipped + 1)) ;;
    esac
done
exported=$(nm -g --defined-only "$object" | awk '{print $3}' | grep '^ds' | sort | tr '\n' ' ')
[ "$exported" = "ds_cuda_comm_kernels ds_cuda_device ds_cuda_gather_rows ds_cuda_optim_kernels ds_cuda_scatter_rows ds_cuda_sparse_kernels " ]
check $? "exports: $exported"
# The arithmetic is the same whatever the flags: nothing flushes denormals, but for fp16's own, an integer times 2^-24,
# which is never a denormal of fp32.
"$NVCC" -use_fast_math -std=c++14 -I. -arch=sm_80 -ptx -o "$scratch/fast.ptx" ds_kernels.cu &&
    grep -q 'fma.rn.f32' "$scratch/fast.ptx" &&
    ! grep -E '^[[:space:]]*(fma|mul|div|sqrt|add|cvt)[a-z0-9.]*\.ftz' "$scratch/fast.ptx" | grep -v '0f[3B]3800000;'
check $? "-use_fast_math changes the arithmetic"
end
