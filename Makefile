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
GPU_PARTS := texts:25 methods:50 baselines:90 executions:75 verify_widths:25 batches:35 drafts:20 large:25
GPU_TESTS_S := 55
GPU_OVERHEAD_S := 20
# About ten to start, ten for models, fifteen to trace what `executions` has compiled, five to decode and to look.
GPU_KERNELS_S := 40
GPU_REPORT_S := 20
# In the foreground, or a Ctrl-C would end make and leave the GPU to what it has started.
WITHIN := timeout --foreground --signal=INT --kill-after=10

.PHONY: demo test test-all test-compiled lint types contracts check floor overhead gpu publish-gpu family clean

demo: $(BIN)/.installed
	$(BIN)/specbench run experiments/quickstart.yaml --results $(RESULTS)
	$(BIN)/specbench report $(RESULTS)/quickstart

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal --slow

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
# finished is kept, and the next `make gpu` goes on from there. The report is drawn whatever became of them.
gpu: $(BIN)/.installed
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	  "error: make gpu needs a GPU, and torch finds none; $(BIN)/specbench doctor says what is here")'
	@mkdir -p $(GPU_RESULTS)
	@trap 'exit 130' INT; troubled=; \
	within() { \
	  name=$$1; most=$$2; shift 2; \
	  printf '\n== %s, at most %s s: %s\n' "$$name" "$$most" "$$*"; \
	  $(WITHIN) "$$most" "$$@" || troubled="$$troubled $$name ($$?)"; \
	}; \
	within tests $(GPU_TESTS_S) $(BIN)/python -m pytest -q -o addopts=--import-mode=importlib -m gpu \
	  --junitxml=$(GPU_RESULTS)/tests.xml $$(grep -rl --include='*.py' 'mark\.gpu' tests); \
	for part in $(GPU_PARTS); do \
	  within "$${part%:*}" "$${part#*:}" \
	    $(BIN)/specbench run "experiments/gpu/$${part%:*}.yaml" --results $(GPU_RESULTS); \
	done; \
	within overhead $(GPU_OVERHEAD_S) $(BIN)/python -m specbench.bench.overhead --device cuda --batch-size 1 --units 4 \
	  --rounds 1 --out $(GPU_RESULTS)/overhead.json; \
	within kernels $(GPU_KERNELS_S) $(BIN)/python -m specbench.bench.kernels --device cuda --dtype bfloat16 --compile \
	  --target random:vicuna-7b-v1.3 --set draft=random:llama-68m --set gamma=4 --units 4 \
	  --out $(GPU_RESULTS)/kernels.json; \
	within report $(GPU_REPORT_S) $(BIN)/specbench report $(GPU_RESULTS); \
	test -z "$$troubled" || { \
	  echo "error: with an exit code of their own:$$troubled; 124 ran out of time, and goes on in the next make gpu" >&2; \
	  exit 1; \
	}

# What a whole run of the suite leaves, named by device and day, for this repository.
publish-gpu: $(BIN)/.installed
	$(BIN)/python -m specbench.report.publish $(GPU_RESULTS) --to results/published \
	  $(foreach part,$(GPU_PARTS),--part gpu_$(firstword $(subst :, ,$(part))))

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
