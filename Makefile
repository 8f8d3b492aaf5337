.PHONY: install lint format test test-all races matrix bench gpu gpu-pack gpu-collect tiles native sanitize instructions clean

SOURCES := $(shell find csrc tests/native tests/emulation tests/standin tools/gpu -name '*.h' -o -name '*.cpp' \
  -o -name '*.c' -o -name '*.cu' -o -name '*.cuh')

install:  ## editable, with everything a developer needs
	pip install -e ".[dev]"

lint:
	ruff check .
	ruff format --check .
	clang-format --dry-run --Werror $(SOURCES)
	mypy

format:
	ruff check --fix .
	ruff format .
	clang-format -i $(SOURCES)

test:
	pytest

test-all:  ## with what takes long and rarely breaks, as CI runs it
	pytest -m "slow or not slow" -n auto --dist worksteal

# The CUDA kernels on the CPU, with every access to memory watched for races between blocks: minutes.
races:
	CGM_FAST_CUDA_EMULATION=$$($(PYTHON) tests/emulation/emulated_cuda.py --races) \
	  pytest tests/ops -k "cuda and not gradcheck" $(ARGS)

matrix:  ## the ops' tests under other releases of torch and Python; ARGS="3.13:2.9" for one pair
	python tools/matrix.py $(ARGS)

bench:
	pytest benchmarks --benchmark-only

# All that a CUDA GPU is for, in SECONDS and without a network: tools/gpu/README.md.
gpu:
	$(PYTHON) tools/gpu/run.py $(SECONDS) --out $(OUT) $(ARGS)

gpu-pack:  ## what a machine without a network is brought; under that machine's Python and torch
	$(PYTHON) tools/gpu/pack.py $(ARGS)

gpu-collect:  ## the rows of a run into benchmarks/results/<device>.csv
	$(PYTHON) tools/gpu/collect.py $(OUT) $(ARGS)

PYTHON ?= python3
SECONDS ?= 540
OUT ?= build/gpu/out

# Which tile each Triton kernel takes: timed where a GPU is at hand, compiled where none is.
tiles:
	python -m tools.kernels.tiles $(ARGS)

# The CPU kernels without Python, at every instruction set that the processor has.
native: build/native/driver
	$(call each_isa,$< 150)

# The same checks with each sanitizer; threads are what the second one looks at.
sanitize: build/asan/driver build/tsan/driver
	$(call each_isa,$< 50)
	build/tsan/driver 30

instructions: build/native/driver  ## against tests/native/instructions.csv; needs valgrind
	$(PYTHON) tests/native/instructions.py $< $(ARGS)

each_isa = set -e; for isa in avx512 avx2 baseline; do CGM_FAST_ISA=$$isa $(1); done

build/asan/driver: OPTIONS := -DCGM_FAST_SANITIZE=address,undefined,float-cast-overflow
build/tsan/driver: OPTIONS := -DCGM_FAST_SANITIZE=thread
build/%/driver: FORCE
	cmake -S tests/native -B $(@D) $(OPTIONS) --log-level=WARNING
	cmake --build $(@D) --parallel $(shell nproc)
FORCE:

clean:
	rm -rf build dist *.egg-info cgm_fast/_native*.so
