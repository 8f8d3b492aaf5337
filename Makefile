.PHONY: install lint format test bench native sanitize instructions clean

SOURCES := $(shell find csrc tests/native -name '*.h' -o -name '*.cpp')

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

bench:
	pytest benchmarks --benchmark-only

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
