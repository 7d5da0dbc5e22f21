/* real.h - in place of tests/emulate where a test is linked with ds_kernels.o and runs on a real GPU (`make gpu-test`).
   Orders and counts mean nothing there, and nothing fails by request: cases that need those ask EMULATED. */
#ifndef TEST_REAL_GPU
#define TEST_REAL_GPU
#include "ds_comm.h"
#include "ds_optim.h"
#include "ds_sparse.h"
extern "C" {
ds_status ds_cuda_gather_rows(void *to, const void *from, const uint32_t *rows, size_t count, size_t row_bytes,
                              void *stream);
ds_status ds_cuda_scatter_rows(void *to, const void *from, const uint32_t *rows, size_t count, size_t row_bytes,
                               void *stream);
}
#include <functional>
#include <map>
#include <memory>
#include <stdio.h>
#include <string.h>
#include <string>
#include <unistd.h>
#include <vector>

enum { EMULATED = 0 };
namespace emu {
inline uint64_t seed;
inline std::map<std::string, size_t> calls, sites;
inline size_t asked, fail_at;
inline int refuses, no_image;
inline const bool broken = false;
inline const std::string failure;
} // namespace emu

/* True, with the line of a test that is left out, where CUDA finds none. */
static inline bool no_gpu() {
    ds_device gpu;
    ds_cuda_device(&gpu);
    const std::string is = gpu.describe(gpu.ctx);
    if (is.compare(0, strlen("no CUDA device"), "no CUDA device")) return false;
    printf("SKIP no GPU here: %s\n0 passed, 0 failed, 1 skipped\n", is.c_str());
    return true;
}
#endif
