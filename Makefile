# Everything runs from .venv in this folder. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each runs on one thread; a file's tests stay together, for what they share is made once.
WORKERS ?= 2
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types rooms unit bench serve-test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

setup: $(STAMP) ## make .venv with pinned dependencies and fetch the base model
	$(BIN)/python scripts/fetch_base.py

demo: setup ## index the sample documents and ask three questions
	$(BIN)/python examples/demo.py

test: setup lint types rooms unit ## everything that CI runs

lint: $(STAMP) ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP) ## strict types of source and tests
	$(BIN)/mypy

rooms: $(STAMP) ## import rules between the rooms
	$(BIN)/lint-imports

unit: $(STAMP) ## tests with coverage
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=85

bench: setup ## speed of compression and of the first token, as ratios
	$(BIN)/clara bench compress
	$(BIN)/clara bench ask

serve-test: setup ## synthesis against a real server: transformers' own, with the base model (minutes)
	test -x .venv-serve/bin/transformers || $(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch 'transformers[serving]' gguf
	CLARA_SERVE_COMMAND=.venv-serve/bin/transformers CLARA_SERVE_MODEL="$$($(BIN)/python scripts/fetch_base.py | sed 's/^base model: //')" \
		$(BIN)/python -m pytest tests/synth/test_synth_real_server.py

clean: ## remove the environment and caches of this folder
	rm -rf $(VENV) .venv-serve build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
