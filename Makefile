# Two targets do everything on a fresh machine: make demo, make test. Both make .venv first.
#
#   make demo TORCH_INDEX=https://...   take torch from another index, for instance one with CPU or CUDA builds
#   make test PYTHON=python3.13         build .venv with another Python (3.11 or newer)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
RESULTS ?= results
GPU_RESULTS ?= $(RESULTS)/gpu

DRAFTS := pico-flat pico-wide pico-tall pico-deep pico-large pico-small
REDRAFTERS := pico-redrafter pico-redrafter-plain pico-redrafter-bag

# Large buffers are kept instead of being handed back to the system after every training step.
TRAIN_ENV := MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=16000000000 MALLOC_TOP_PAD_=268435456

# Parts of `make gpu`, experiments/gpu/*.yaml, and the seconds that each may take.
GPU_PARTS := texts:25 methods:50 executions:85 baselines:55 verify_widths:40 batches:55 drafts:30 large:25
GPU_TESTS_S := 70
GPU_OVERHEAD_S := 15
GPU_REPORT_S := 30
WITHIN := timeout --signal=INT --kill-after=10

.PHONY: demo test test-all test-compiled lint types contracts check floor overhead gpu family clean

demo: $(BIN)/.installed
	$(BIN)/specbench run experiments/quickstart.yaml --results $(RESULTS)
	$(BIN)/specbench report $(RESULTS)/quickstart

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto

test-all: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto --slow

# Without the checks of shapes that pyproject.toml asks for: a function that is checked cannot be compiled.
test-compiled: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto --slow -o addopts=--import-mode=importlib tests/contract/test_compiled.py

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.installed
	$(BIN)/mypy

contracts: $(BIN)/.installed
	$(BIN)/lint-imports

check: lint types contracts test

floor: $(BIN)/.installed
	$(BIN)/python -m specbench.bench.floor --dtype bfloat16

overhead: $(BIN)/.installed
	$(BIN)/python -m specbench.bench.overhead

# Every part runs in a process of its own: one that fails, or takes too long, costs the others nothing, what it has
# finished is kept, and the next `make gpu` goes on from there.
gpu: $(BIN)/.installed
	-$(WITHIN) $(GPU_TESTS_S) $(BIN)/python -m pytest -q -o addopts=--import-mode=importlib -m gpu --junitxml=$(GPU_RESULTS)/tests.xml \
	  $$(grep -rl --include='*.py' 'mark\.gpu' tests)
	for part in $(GPU_PARTS); do \
	  $(WITHIN) $${part#*:} $(BIN)/specbench run experiments/gpu/$${part%:*}.yaml --results $(GPU_RESULTS) \
	    || echo "$$part: exit code $$?"; \
	done
	-$(WITHIN) $(GPU_OVERHEAD_S) $(BIN)/python -m specbench.bench.overhead --device cuda --batch-size 1 --units 4 \
	  --out $(GPU_RESULTS)/overhead.json
	$(WITHIN) $(GPU_REPORT_S) $(BIN)/specbench report $(GPU_RESULTS)

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
