# knee: two commands on a fresh machine, `make run` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
comma := ,
BIN := $(VENV)/bin
OUT ?= runs
# Where there is an NVIDIA GPU, what its device needs is installed too.
GPU := $(shell command -v nvidia-smi 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help run test lint sanitize format doctor bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Run the log's four experiments on the default model, and make the report
	$(BIN)/knee models pull smollm2-135m
	$(BIN)/knee baseline --out $(OUT)
	$(BIN)/knee inspect --out $(OUT)
	$(BIN)/knee kvcache --out $(OUT) --prompt-lengths 10,50,200 --max-new-tokens 50
	$(BIN)/knee sweep --out $(OUT) --policies dynamic,continuous --batch-sizes 1,4,8 --wait-ms 0,10
	$(BIN)/knee report latest --out $(OUT)

test: $(VENV)/.installed-dev ## Run every test (installs torch and transformers, the oracle)
	@# Two processes with a thread each: BLAS threads of two processes would wait for each other.
	@# KNEE_TESTS_MUST_RUN: what the model or the oracle cannot be had for fails instead of being skipped.
	KNEE_TESTS_MUST_RUN=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

lint: $(VENV)/.installed-dev ## Check style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sanitize: ## Fuzz the kernels under AddressSanitizer and UBSan (ROUNDS=20, SEED=1)
	cmake -S native -B build/sanitize -DKNEE_MODULE=OFF -DKNEE_TEST=ON -DKNEE_SANITIZE=ON
	cmake --build build/sanitize --parallel 2
	build/sanitize/native_test $(or $(SEED),1) $(or $(ROUNDS),20)

format: $(VENV)/.installed-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

doctor: $(VENV)/.installed ## Measure this machine and say what is wrong with it for measuring
	$(BIN)/knee doctor

bench: $(VENV)/.installed-dev ## Speed against the machine's limit, beside transformers, quality, what recording costs (keep the machine idle)
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.overhead
	$(if $(GPU),$(BIN)/python -m benchmarks.cuda)

clean: ## Remove the virtual environment and caches (not the runs)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "knee needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

NATIVE := $(wildcard native/*.* native/isa/*)

$(VENV)/.installed: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	@echo "Installing knee and building its kernels: about a minute, once."
	$(BIN)/python -m pip install --quiet -e '.$(if $(GPU),[cuda])'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	@echo "Installing knee, its tools and the oracle, and building the kernels: a few minutes, once."
	$(BIN)/python -m pip install --quiet -e '.[dev,oracle$(if $(GPU),$(comma)cuda)]'
	@touch $@ $(VENV)/.installed
