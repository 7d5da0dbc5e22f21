# ds - there is no library to build: the headers are the library. This file builds programs, examples and tests.
#   make help      the list of targets
# Variables: config=release|debug|asan|tsan|coverage|fuzz, CC, CXX, NVCC, and LIBAIO=0 BLAS=0 MPI=0 to leave an
# optional part out. Everything is written below build/.
config ?= release
# one program per core; a -j of the command line wins
MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
CC ?= cc
CXX ?= c++
ifeq ($(origin CC),default)
CC := cc
endif
ifeq ($(origin CXX),default)
CXX := c++
endif
B := build$(if $(filter-out release,$(config)),/$(config))

WARN := -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wundef -Werror
FLAGS_release := -O2 -g
FLAGS_debug := -O0 -g -DDS_DEBUG=1
FLAGS_asan := -O1 -g -DDS_DEBUG=1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
FLAGS_tsan := -O1 -g -DDS_DEBUG=1 -fsanitize=thread -fno-omit-frame-pointer
# in C++ each call would else count a branch for what it may throw; ranks that are threads count at once
FLAGS_coverage := -O0 -g --coverage -fno-exceptions -fprofile-update=atomic
FLAGS_fuzz := -O1 -g -fsanitize=fuzzer-no-link,address,undefined
ifeq ($(FLAGS_$(config)),)
$(error config=$(config) is not one of release debug asan tsan coverage fuzz)
endif
CFLAGS ?=
COMMON = $(FLAGS_$(config)) $(WARN) -I. -MMD -MP $(FEATURE_FLAGS) $(CFLAGS)
LIBS = -Wl,--as-needed $(FEATURE_LIBS) -lpthread -ldl -lm

quiet_goals := help clean blocks format coverage
ifneq ($(filter-out $(quiet_goals),$(or $(MAKECMDGOALS),all)),)
include build/features.mk
endif

EXAMPLES := $(patsubst examples/%.c,$(B)/%,$(wildcard examples/*.c))
ifneq ($(MPICC),)
EXAMPLES += $(B)/train_gpt_mpi
endif
UNIT := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/unit/*.c tests/multi/*.c tests/fault/*.c))
ifneq ($(CXX_FOUND),) # quickstart_test counts the skip
UNIT += $(patsubst tests/%.cc,$(B)/tests/%,$(wildcard tests/unit/*.cc tests/multi/*.cc))
endif
SCRIPTS := $(wildcard tests/compile/*.sh tests/unit/*.sh tests/multi/*.sh tests/fault/*.sh tests/fuzz/*.sh)
HEADERS := $(wildcard ds_*.h)

.PHONY: always all demo test soak coverage bench peers corpus kernels gpu-test gpu-bench gpu-info blocks keys format help clean
all: $(EXAMPLES)

# asked each time, since packages come and go; the file changes only when an answer does
build/features.mk: always
	@CC="$(CC)" CXX="$(CXX)" tests/tools/need.sh
	@CC="$(CC)" CXX="$(CXX)" LIBAIO="$(LIBAIO)" BLAS="$(BLAS)" MPI="$(MPI)" tests/tools/probe.sh $@

$(B)/%: examples/%.c
	@mkdir -p $(@D)
	$(CC) -std=gnu99 $(COMMON) -o $@ $< $(LIBS)

$(B)/train_gpt_mpi: examples/train_gpt.c
	@mkdir -p $(@D)
	$(MPICC) -std=gnu99 $(COMMON) -DDS_COMM_USE_MPI=1 -o $@ $< $(LIBS)

$(B)/tests/%: tests/%.c
	@mkdir -p $(@D)
	$(CC) -std=gnu99 $(COMMON) -o $@ $< $(LIBS)

# the same on a GPU; and on the emulated one, for a test
# the GPUs of today that this nvcc knows, and PTX of the last of them for those to come
GPU_SM = $(filter $(patsubst sm_%,%,$(shell $(NVCC) --list-gpu-code)),75 80 90 100)
GPU_CODE = $(foreach sm,$(GPU_SM),-gencode arch=compute_$(sm),code=sm_$(sm)) \
    -gencode arch=compute_$(lastword $(GPU_SM)),code=compute_$(lastword $(GPU_SM))
GPU_FLAGS := -O3 -std=c++14 -I. -Xcompiler -Wall,-Wextra,-Werror -Werror all-warnings
EMULATED := -std=gnu++17 -Itests/emulate -fno-strict-aliasing -ffp-contract=off
$(B)/train_gpt_gpu: examples/train_gpt.c examples/gpt_gpu.cu examples/gpt.h examples/gpt_gpu.h ds_kernels.cu $(HEADERS)
	@[ -n "$(NVCC)" ] || { echo 'nvcc was not found; install the CUDA toolkit'; exit 1; }
	@mkdir -p $(@D)
	$(NVCC) $(GPU_FLAGS) $(GPU_CODE) -c -o $@.cu.o examples/gpt_gpu.cu
	$(CC) -std=gnu99 $(COMMON) -DEXAMPLE_GPU=1 -c -o $@.c.o examples/train_gpt.c
	$(NVCC) -o $@ $@.cu.o $@.c.o $(filter -l%,$(LIBS)) -lcublas

$(B)/train_gpt_emulated: examples/train_gpt.c examples/gpt_gpu.cu examples/gpt.h examples/gpt_gpu.h ds_kernels.cu $(HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(COMMON) $(EMULATED) -x c++ -c -o $@.cu.o examples/gpt_gpu.cu
	$(CC) -std=gnu99 $(COMMON) -DEXAMPLE_GPU=1 -c -o $@.c.o examples/train_gpt.c
	$(CXX) $(COMMON) -o $@ $@.cu.o $@.c.o $(LIBS)

# what includes ds_kernels.cu runs it on the emulated GPU of tests/emulate
$(B)/tests/%: tests/%.cc
	@mkdir -p $(@D)
	$(CXX) $(COMMON) $(EMULATED) -o $@ $< $(LIBS)

# `make demo`: the main job; README shows what it prints.
demo: $(B)/ds $(B)/train_gpt
	@B=$(B) NVCC="$(NVCC)" MAKE="$(MAKE)" tests/tools/demo.sh

# `make test`: ends with "N passed, N failed". Select programs: make test only="config optim"
test: $(EXAMPLES) $(UNIT) $(if $(CXX_FOUND),$(B)/train_gpt_emulated)
	@B="$(B)" CC="$(CC)" CXX="$(CXX)" CONFIG="$(config)" MPIRUN="$(MPIRUN)" MPICC="$(MPICC)" NVCC="$(NVCC)" ONLY="$(only)" \
	    tests/run.sh $(SCRIPTS) $(UNIT)

# `make soak`: the same tests with counts for a night: FUZZ_RUNS, FUZZ_SECONDS and DS_TEST_KILLS set them
soak: export FUZZ_RUNS ?= 100000000
soak: export FUZZ_SECONDS ?= 36000
soak: export DS_TEST_KILLS ?= 200
soak: export CHECKPOINT_FLIPS ?= 10000
soak: export DS_TEST_SCHEDULES ?= 20000
soak: export DS_TEST_SWAPS ?= 1000000
soak: export LIMIT ?= 40000
soak: $(EXAMPLES) $(UNIT)
	@B="$(B)" CC="$(CC)" CXX="$(CXX)" CONFIG="$(config)" MPIRUN="$(MPIRUN)" MPICC="$(MPICC)" NVCC="$(NVCC)" \
	    tests/run.sh $(wildcard tests/fuzz/*.sh) $(filter $(B)/tests/fault/% $(B)/tests/unit/ds_offload_test,$(UNIT))

# `make coverage`: all tests with config=coverage, then the share of branches taken in each header
coverage:
	$(MAKE) test config=coverage
	@tests/tools/coverage.sh

bench: $(B)/ds $(B)/train_gpt $(B)/larger_than_memory
	$(B)/ds bench config
	$(B)/ds bench optim --threads $(shell nproc)
	$(B)/ds bench comm
	$(B)/ds bench sparse
	$(B)/ds bench zero
	$(B)/ds bench checkpoint --folder $(B)
	$(B)/ds bench aio --folder $(B)
	$(B)/ds bench aio --folder $(B) --step
	$(B)/larger_than_memory $(B) 136 1048576 2

# `make peers`: other programs beside ours, from scratch environments or paths that you give; never part of a test
peers: $(B)/ds
	@for peer in $(wildcard tests/peers/*.sh); do echo "== $$peer"; B="$(B)" "$$peer" || exit 1; done

# `make kernels`: ds_kernels.cu as an object for the GPUs of today, where nvcc is found
kernels: $(B)/ds_kernels.o
$(B)/ds_kernels.o: ds_kernels.cu $(HEADERS)
	@[ -n "$(NVCC)" ] || { echo 'nvcc was not found; install the CUDA toolkit'; exit 1; }
	@mkdir -p $(@D)
	$(NVCC) $(GPU_FLAGS) $(GPU_CODE) -c -o $@ $<

# `make gpu-test`: the tests of the emulated GPU on this machine's own: kernels, engine, NCCL with one rank, train_gpt;
# and under compute-sanitizer
GPU_TESTS := $(B)/gpu/ds_kernels_test $(B)/gpu/ds_zero_device_test
gpu-test: $(GPU_TESTS) $(B)/train_gpt_gpu $(B)/train_gpt
	@B="$(B)" tests/gpu/test.sh $(GPU_TESTS)
$(GPU_TESTS): tests/gpu/real.h $(B)/ds_kernels.o
$(B)/gpu/%: tests/unit/%.cc
	$(LINK_GPU_TEST)
$(B)/gpu/%: tests/multi/%.cc
	$(LINK_GPU_TEST)
define LINK_GPU_TEST
	@mkdir -p $(@D)
	$(CXX) $(COMMON) -std=gnu++17 -ffp-contract=off -DTEST_ON_GPU=1 -c -o $@.o $<
	$(NVCC) -o $@ $@.o $(B)/ds_kernels.o $(filter -l%,$(LIBS))
endef

# `make gpu-bench`: figures of the kernels on this machine's GPU, each beside its ceiling; then PyTorch's and llm.c's
gpu-bench:
	@nvidia-smi -L 2>/dev/null | grep -q '^GPU' || { echo 'no GPU here: nvidia-smi names none'; exit 1; }
	@$(MAKE) -s $(B)/gpu_bench
	@$(B)/gpu_bench
	@B="$(B)" BENCHED=1 tests/peers/gpu.sh
# 550: to nvcc a variable that only (void) reads is never used; g++ checks the same text
$(B)/gpu_bench: tests/gpu/bench.cu ds_kernels.cu $(HEADERS)
	@[ -n "$(NVCC)" ] || { echo 'nvcc was not found; install the CUDA toolkit'; exit 1; }
	@mkdir -p $(@D)
	$(NVCC) -O3 -std=c++17 -I. -diag-suppress 550 -arch=native -o $@ $< -lpthread -ldl

# `make gpu-info`: registers and spills of each kernel
gpu-info:
	@[ -n "$(NVCC)" ] || { echo 'nvcc was not found; install the CUDA toolkit'; exit 1; }
	@NVCC="$(NVCC)" tests/gpu/info.sh

corpus:
	@tests/tools/corpus.sh build/corpus

blocks:
	@tests/tools/blocks.sh

keys: $(B)/ds
	@B=$(B) tests/tools/keys.sh

format:
	clang-format -i ds_*.h examples/*.[ch] tests/*.h tests/*/*.c

help:
	@sed -n 's/^# `\(make [^`]*\)`: */  \1    /p' Makefile
	@echo '  make           build/ds, build/train_gpt and the examples'
	@echo '  make bench     figures of this machine, each beside its ceiling'
	@echo '  make corpus    public-domain books into build/corpus, for train_gpt --data'
	@echo '  make blocks    copy the shared blocks from their home headers to the others'
	@echo '  make keys      KEYS.md and the table of README from the table of ds_config.h'
	@echo '  make format    clang-format'
	@echo '  make clean     remove build/'
	@echo 'config=release|debug|asan|tsan|coverage|fuzz selects flags; only="WORD ..." selects tests.'

clean:
	rm -rf build

-include $(shell find build -name '*.d' 2>/dev/null)
