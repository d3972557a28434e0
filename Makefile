# Two targets do everything on a fresh machine: make demo, make test. Both make .venv first.
#
#   make demo TORCH_INDEX=https://...   take torch from another index, for instance one with CPU or CUDA builds
#   make test PYTHON=python3.13         build .venv with another Python (3.11 or newer)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
RESULTS ?= results

DRAFTS := pico-flat pico-wide pico-tall pico-deep pico-large pico-small
REDRAFTERS := pico-redrafter pico-redrafter-plain pico-redrafter-bag

# Large buffers are kept instead of being handed back to the system after every training step.
TRAIN_ENV := MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=16000000000 MALLOC_TOP_PAD_=268435456

.PHONY: demo test test-all lint types contracts check floor overhead family clean

demo: $(BIN)/.installed
	$(BIN)/specbench run experiments/quickstart.yaml --results $(RESULTS)
	$(BIN)/specbench report $(RESULTS)/quickstart

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto

test-all: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto --slow

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.installed
	$(BIN)/mypy

contracts: $(BIN)/.installed
	$(BIN)/lint-imports

check: lint types contracts test

floor: $(BIN)/.installed
	$(BIN)/python -m specbench.bench.floor

overhead: $(BIN)/.installed
	$(BIN)/python -m specbench.bench.overhead

family: $(BIN)/.installed
	$(TRAIN_ENV) $(BIN)/specbench train target pico
	for draft in $(DRAFTS); do $(TRAIN_ENV) $(BIN)/specbench train draft $$draft || exit 1; done
	$(TRAIN_ENV) $(BIN)/specbench train medusa pico-medusa
	for drafter in $(REDRAFTERS); do $(TRAIN_ENV) $(BIN)/specbench train redrafter $$drafter || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "specbench needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
