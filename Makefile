# make quickstart   train, sample and evaluate on digits
# make test         lint and the tests that fit in 12 minutes on 2 cores
# make test-all     the long ones too
PYTHON ?= python3
BIN := .venv/bin
RUN = $(BIN)/python main.py --config=configs/quickstart.py --workdir=$(WORKDIR)
WORKDIR ?= runs/quickstart
PYTEST = JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.cache/xla $(BIN)/python -m pytest
# Two files at a time, the longest first.
PARALLEL = -q -n 2 --dist loadfile --no-loadscope-reorder tests/test_systems.py tests
# Tests of tiny shapes wait for the compiler, not for what it makes: half the time without optimising.
QUICK = XLA_FLAGS=--xla_backend_optimization_level=0

.PHONY: quickstart test test-slow test-all format

.venv/installed: requirements.txt
	@echo "building .venv from requirements.txt: a few minutes, about 8 GB"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	@$(BIN)/pip install -qq --disable-pip-version-check -r requirements-dev.txt
	@touch $@

quickstart: .venv/installed
	$(RUN)
	$(RUN) --mode=sample --config.sample.cfg_scale=1
	$(RUN) --mode=evaluate --config.sample.cfg_scale=1
	$(RUN) --mode=sample --config.sample.cfg_scale=2
	$(RUN) --mode=evaluate --config.sample.cfg_scale=2

test: .venv/installed-dev
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(QUICK) $(PYTEST) -m "not slow" $(PARALLEL)

test-slow: .venv/installed-dev
	@$(QUICK) $(PYTEST) -q -m slow tests/test_systems.py
	@$(PYTEST) -m slow --ignore=tests/test_systems.py

test-all: test test-slow

format: .venv/installed-dev
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .
