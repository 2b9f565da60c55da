# A thin front for CMake, pytest and the example. Everything lands in .venv and build.
#
#   make run                     the main job: a small Llama continues two prompts
#   make test                    build, check every operator on this CPU, compile the GPU packs, run the Python tests
#   make test-gpu                the same checks on this machine's GPU, sanitizers too
#   make test-aarch64            on x86-64: cross-compile for Arm and check every operator under qemu (packages: see the target)
#   make bench                   figures of this machine, next to torch and transformers
#
# Variables
#   PYTHON=python3.12            which Python makes .venv (3.10 or newer)
#   VENV=none                    use PYTHON as it is (its torch, its packages) and install nothing
#   ARCHS="80;90a"               packs to make;   V=1 shows every command
#   SEED=n                       other random inputs for the checks;   JOBS=n processes that share them
#   ARGS='--prompt "In the"'     options of the example, for make run
#   CMAKE_BUILD_PARALLEL_LEVEL, CCACHE_DIR, CFLAGS as CMake takes them

PYTHON  ?= python3
VENV    ?= .venv
BUILD   ?= build
CMAKE_FLAGS ?=
SEED    ?= 1611
JOBS    ?= $(shell nproc 2>/dev/null || echo 1)

ifeq ($(VENV),none)
PY      := $(PYTHON)
BIN     := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("scripts"))' 2>/dev/null)/
else
PY      := $(VENV)/bin/python
BIN     := $(VENV)/bin/
endif
Q       := $(if $(V),,@)
RUN_ENV := PYTHONPATH=$(CURDIR)/python$(if $(PYTHONPATH),:$(PYTHONPATH)) SGK_LIBRARY=$(CURDIR)/$(BUILD)/libsgl_kernel.so

# The pack this machine's GPU needs; empty without a GPU.
GPU     := $(if $(wildcard /dev/nvidiactl),$(shell sh tools/gpu_arch.sh))
ARCHS   ?= $(GPU)
CUDA_ON  = -DSGL_KERNEL_ENABLE_CUDA=ON "-DSGL_KERNEL_CUDA_ARCHS=$(1)" -DSGL_KERNEL_OBJECT_CACHE=$(CURDIR)/$(BUILD)/kernels
CUDA_OFF = -DSGL_KERNEL_ENABLE_CUDA=OFF

.PHONY: all build rebuild run test test-aarch64 test-gpu bench format clean prerequisites
all: build

prerequisites:
	$(Q)PATH="$(abspath $(BIN)):$$PATH" sh tools/prerequisites.sh "$(PYTHON)" $(filter none,$(VENV))

# $(VENV)/.NAME: the packages of requirements/NAME.txt are installed.
$(VENV)/.%: requirements/%.txt | prerequisites
	$(Q)test "$(VENV)" = none || test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(Q)test "$(VENV)" = none || { echo "Installing requirements/$*.txt into $(VENV)"; $(PY) -m pip install --disable-pip-version-check --progress-bar on -q -r $<; }
	$(Q)test "$(VENV)" = none || touch $@

ifeq ($(VENV),none)
needs = prerequisites
else
needs = $(addprefix $(VENV)/.,$(1))
endif

build: $(call needs,build)
	$(Q)PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(BUILD) -G Ninja --log-level=WARNING $(if $(ARCHS),$(call CUDA_ON,$(ARCHS)),$(CUDA_OFF)) $(CMAKE_FLAGS)
	$(Q)PATH="$(abspath $(BIN)):$$PATH" cmake --build $(BUILD)

rebuild: clean build

run: $(call needs,run) build
	$(Q)$(RUN_ENV) $(PY) examples/llm/run.py $(ARGS)

# The tests build for 80 and 90a whatever the machine has: a kernel that does not compile is found without a GPU.
test: ARCHS := 80;90a
test: $(call needs,run) $(call needs,test)
	$(Q)$(MAKE) --no-print-directory build ARCHS="$(ARCHS)" CMAKE_FLAGS="-DSGL_KERNEL_WERROR=ON $(CMAKE_FLAGS)"
	$(Q)$(BUILD)/sgk-check --self-test
	$(Q)$(BUILD)/sgk-check --seed=$(SEED) --jobs=$(JOBS)
	$(Q)$(RUN_ENV) $(PY) -m pytest

test-gpu: $(call needs,run) $(call needs,test) build
	$(Q)$(RUN_ENV) $(PY) tools/test_gpu.py --build $(BUILD)

# gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user are the Debian packages. The CUDA code is compiled too; packs are the same for
# every processor and are not made again.
QEMU    := qemu-aarch64 -L /usr/aarch64-linux-gnu
test-aarch64: $(call needs,build)
	$(Q)PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(BUILD)/aarch64 -G Ninja --toolchain cmake/aarch64.cmake --log-level=WARNING \
	    $(call CUDA_ON,) -DSGL_KERNEL_DEPS=$(CURDIR)/$(BUILD)/deps -DSGL_KERNEL_WERROR=ON
	$(Q)PATH="$(abspath $(BIN)):$$PATH" cmake --build $(BUILD)/aarch64 --target sgl_kernel sgk-check
	$(Q)NM=aarch64-linux-gnu-nm $(PY) tools/check_symbols.py $(BUILD)/aarch64/libsgl_kernel.so
	$(Q)SGK_CHECK_EMULATOR="$(QEMU)" $(QEMU) $(BUILD)/aarch64/sgk-check --small --seed=$(SEED) --jobs=$(JOBS) --level=neon

bench: $(call needs,run) $(call needs,test) build
	$(Q)$(RUN_ENV) $(PY) -m sgl_kernel bench --json $(BUILD)/bench.json --plot $(BUILD)/bench.png
	$(Q)$(RUN_ENV) $(PY) benchmark/bench_llm.py --json $(BUILD)/bench_llm.json

format: $(call needs,test)
	$(Q)git ls-files '*.c' '*.h' '*.cu' '*.cuh' | PATH="$(abspath $(BIN)):$$PATH" xargs clang-format -i

clean:
	$(Q)rm -rf $(BUILD)
