# make quickstart          train, sample and evaluate on digits
# make quickstart LEAN=1   the same without TensorFlow and torch, in an environment of its own
# make test                lint and the tests that fit in 15 minutes on 2 cores
# make test-all            the long ones too
# make bench               measure speed here, and write it into docs/performance.md
# make test-full           every fault of docs/reliability.md and what is longer still, outside CI
# PYTHON=python3.12 does any of them with that Python, in an environment of its own
PYTHON ?= python3
LEAN ?=
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))$(if $(LEAN),-lean)
BIN := $(VENV)/bin
REQUIREMENTS := $(if $(LEAN),requirements-core.txt,requirements.txt)
SIZE := $(if $(LEAN),0.9,8)
WORKDIR ?= runs/quickstart$(if $(LEAN),-lean)
RUN = $(BIN)/python main.py --config=configs/quickstart.py --workdir=$(WORKDIR)
# Two files at a time, the longest first. Cache and compiler are set in tests/__init__.py.
PARALLEL = -q -n 2 --dist loadfile --no-loadscope-reorder tests/test_systems.py tests

.PHONY: quickstart test test-slow test-all test-full bench format

$(VENV)/installed: $(wildcard requirements*.txt)
	@echo "building $(VENV) from $(REQUIREMENTS): a few minutes, about $(SIZE) GB"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'  # The first with a bar while it installs.
	@$(BIN)/pip install -r $(REQUIREMENTS)
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	@$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@

quickstart: $(VENV)/installed
	$(RUN)
	$(RUN) --mode=sample --config.sample.cfg_scale=1
	$(RUN) --mode=evaluate --config.sample.cfg_scale=1
	$(RUN) --mode=sample --config.sample.cfg_scale=2
	$(RUN) --mode=evaluate --config.sample.cfg_scale=2

test: $(VENV)/installed-dev
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(VENV)/installed-dev
	@$(BIN)/python -m pytest -m 'slow and not full' $(PARALLEL)

test-all: test test-slow

test-full: $(VENV)/installed-dev
	@$(BIN)/python -m pytest -m "" -q tests/reliability
	@$(BIN)/python -m pytest -m full $(PARALLEL) --ignore=tests/reliability

bench: $(VENV)/installed
	@$(BIN)/python scripts/performance.py

format: $(VENV)/installed-dev
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .
