.PHONY: install lint format test bench clean

SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp')

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

clean:
	rm -rf build dist *.egg-info cgm_fast/_native*.so
