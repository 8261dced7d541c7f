# `make demo` and `make test` need Python 3.11 with pip, nothing else: each sets up ./.venv first, once.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.automap-installed

export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test bench clean

help:
	@echo "make demo    convert a full-size timm ViT to transformers, offline, and prove it (a minute)"
	@echo "make test    lint, format check, types, all tests"
	@echo "make bench   time transfers, process start and matching; writes benchmarks/RESULTS.md"
	@echo "make clean   remove ./.venv, caches and what the demo wrote"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("automap needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@echo "setting up .venv (2-3 minutes, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q -e '.[zoo,dev]'
	@touch $@
	@echo "setting up .venv: done"

demo: $(STAMP)
	@$(BIN)/python benchmarks/demo.py

test: export OMP_NUM_THREADS := 1
test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict automap
	$(BIN)/pytest -n 2

bench: $(STAMP)
	@$(BIN)/python benchmarks/speed.py

clean:
	rm -rf .venv build dist demo-output *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find automap tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
