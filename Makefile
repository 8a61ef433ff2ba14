# Every target installs what it needs first, if that is missing or older than pyproject.toml or the kernels' sources.
#   make quickstart   train, export, validate, serve and predict on a small data set
#   make test         the default tests; those on real data sets need CPT_DATA_DIR (see docs/tutorials/quickstart.md)

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV ?= .venv
BIN := $(VENV)/bin
# Two stages: what training, exporting and serving need, and the tools of development beside it.
TRAINS := $(VENV)/.installed-train
INSTALLED := $(VENV)/.installed
SOURCES := pyproject.toml hatch_build.py $(wildcard cpt_deploy/quantization/kernels/*.[ch])
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
PYTEST_ARGS ?=

# Each worker takes one file after the other, so that what the tests of a file share is made once.
IN_PARALLEL := --numprocesses=auto --dist=loadfile --no-loadscope-reorder

# With nothing kept of the last start, every process of the tests would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

# On a GPU: warnings of other versions of torch do not fail the tests.
GPU_TESTS := -m gpu -W default tests/unit/quantization tests/unit/training

.PHONY: help install quickstart test test-all test-gpu race-check sanitize lint format docs clean
.NOTPARALLEL:

help:
	@echo "make quickstart  train, export, validate, serve and predict on a small data set (two minutes)"
	@echo "make test        run the default tests; PYTEST_ARGS='-k name' chooses among them"
	@echo "make test-all    run all tests: the slow ones too, and all draws of property tests"
	@echo "make test-gpu    run the tests that need a CUDA device; make race-check runs kernels under compute-sanitizer"
	@echo "make sanitize    run the compiled kernels under the address and undefined-behaviour sanitizers"
	@echo "make lint        ruff, mypy and the import rules"
	@echo "make format      fix what ruff can fix and format"
	@echo "make docs        write the pages that come from the code, and build all pages as a site in site/"
	@echo "make install     only create $(VENV) and install the project with its development tools"
	@echo "make clean       remove caches, build outputs and the quickstart's files; $(VENV) and runs/ stay"

install: $(INSTALLED)

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Expected Python 3.11 or newer, but got $$($(PYTHON) --version)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(TRAINS): $(SOURCES) | $(BIN)/pip
	$(PIP) --editable '.[train]'
	@touch $@

$(INSTALLED): $(SOURCES) | $(BIN)/pip
	$(PIP) --editable '.[dev]'
	@touch $(TRAINS) $@

quickstart: $(TRAINS)
	$(BIN)/cpt quickstart --out quickstart-output

test: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTEST) $(IN_PARALLEL) $(PYTEST_ARGS)

test-all: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTEST) --all $(IN_PARALLEL) $(PYTEST_ARGS)

test-gpu: $(INSTALLED)
	$(PYTEST) $(GPU_TESTS) $(PYTEST_ARGS)

race-check: $(INSTALLED)
	PYTHON=$(BIN)/python .ci/race-check

sanitize: $(INSTALLED)
	PYTHON=$(BIN)/python .ci/sanitize-kernels

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_recipes.py
	$(BIN)/python docs/generate_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf build dist site quickstart-output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find cpt_deploy cli serving tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
