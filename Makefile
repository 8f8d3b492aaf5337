.PHONY: install lint format test test-all matrix bench gpu sanitize-gpu tiles native sanitize instructions clean

SOURCES := $(shell find csrc tests/native tests/emulation -name '*.h' -o -name '*.cpp' \
  -o -name '*.cu' -o -name '*.cuh')

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

matrix:  ## the ops' tests under other releases of torch and Python; ARGS="3.13:2.9" for one pair
	python tools/matrix.py $(ARGS)

bench:
	pytest benchmarks --benchmark-only

# All that a machine with a CUDA GPU is for: the tests on it, then the benchmarks, whose rows go to
# benchmarks/results/<device>.csv. Wrong results are not timed: after a failed test nothing is.
# A failed benchmark keeps the other rows and fails the command after they are written.
gpu:
	@python -c "import sys, torch; torch.cuda.is_available() or \
	  sys.exit('make gpu: torch finds no CUDA GPU here')"
	if command -v compute-sanitizer >/dev/null; then $(MAKE) sanitize-gpu; \
	  else echo "no compute-sanitizer here: its checks are skipped"; fi
	pytest -k cuda
	rm -f $(GPU_RUN)
	pytest benchmarks --benchmark-only $(GPU_BUDGET) --benchmark-json=$(GPU_RUN); status=$$?; \
	  python -m benchmarks.report $(GPU_RUN) --csv && exit $$status

# The CUDA kernels under each of its tools; every allocation the system's own, so that it knows them.
sanitize-gpu:
	set -e; for tool in memcheck racecheck synccheck initcheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 9 \
	    python -m pytest -q tests/ops/test_cuda_kernels.py; done

GPU_RUN := benchmarks/results/gpu.json
# Ten minutes in all, of which the tests take some: about 300 cases at 0.1 s of rounds, as much of
# replay and of warming up. Most of the time goes to what compilers do before; a peer that would
# take 2 s a call, or 40 GB, is left out, and what would start after 7 minutes is skipped by name.
GPU_BUDGET := --device cuda --benchmark-max-time 0.1 --slowest-call 2 --most-memory 40 \
  --stop-after 420

# Which tile each Triton kernel takes: timed where a GPU is at hand, compiled where none is.
tiles:
	python -m benchmarks.tiles $(ARGS)

# The CPU kernels without Python, at every instruction set that the processor has.
native: build/native/driver
	$(call each_isa,$< 150)

# The same checks with each sanitizer; threads are what the second one looks at.
sanitize: build/asan/driver build/tsan/driver
	$(call each_isa,$< 50)
	build/tsan/driver 30

instructions: build/native/driver  ## against tests/native/instructions.csv; needs valgrind
	python tests/native/instructions.py $< $(ARGS)

each_isa = set -e; for isa in avx512 avx2 baseline; do CGM_FAST_ISA=$$isa $(1); done

build/asan/driver: OPTIONS := -DCGM_FAST_SANITIZE=address,undefined,float-cast-overflow
build/tsan/driver: OPTIONS := -DCGM_FAST_SANITIZE=thread
build/%/driver: FORCE
	cmake -S tests/native -B $(@D) $(OPTIONS) --log-level=WARNING
	cmake --build $(@D) --parallel $(shell nproc)
FORCE:

clean:
	rm -rf build dist *.egg-info cgm_fast/_native*.so
