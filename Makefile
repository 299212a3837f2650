# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer and pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu lint docs clean

help: ## what there is to make
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: setup ## MobileNetV1 from PyTorch to a verified bundle on this machine, with photographs
	@$(BIN)/python -m tvm_mobilenet.demo

test: lint ## lint, types and every test
	@echo "== tests"
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-gpu: setup ## on a machine with a GPU: proof, kernels against its limits, tuning, PyTorch
	@$(BIN)/python -m pytest -m cuda; tested=$$?; \
	    $(BIN)/python benchmarks/gpu.py run --output gpu-results && exit $$tested

lint: setup ## ruff and mypy
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy

docs: setup ## docs/api.md from the code
	@$(BIN)/python docs/make_api.py

setup: $(STAMP) ## .venv with the package and its pinned dependencies

# Installed again only when the dependencies change; the package itself is an editable install.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	    exit 1; }
	@test -x $(BIN)/pip || { echo "== creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "== installing the package and its pinned dependencies into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt --editable '.[test,dev]'
	@touch $@

clean: ## remove .venv, caches and what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
