# Everything runs from .venv in this folder. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# Each runs on one thread; a file's tests stay together, for what they share is made once.
WORKERS ?= 2
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types rooms unit wheel bench serve-test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $(STAMP)

$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(DEV_STAMP)

setup: $(STAMP) ## make .venv with the pinned plain install and fetch the base model
	$(BIN)/python scripts/fetch_base.py

demo: setup ## index the sample documents and ask three questions
	$(BIN)/python examples/demo.py

test: $(DEV_STAMP) setup lint types rooms unit wheel ## add the dev extra and run everything that CI runs

lint: $(DEV_STAMP) ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV_STAMP) ## strict types of source and tests
	$(BIN)/mypy

rooms: $(DEV_STAMP) ## import rules between the rooms
	$(BIN)/lint-imports

unit: $(DEV_STAMP) ## tests with coverage
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=85

wheel: ## install the built wheel in a fresh environment and ask there
	bash scripts/try_wheel.sh

bench: $(DEV_STAMP) setup ## speed of compression and of the first token, as ratios
	$(BIN)/clara bench compress
	$(BIN)/clara bench ask

serve-test: $(DEV_STAMP) setup ## synthesis against a real server: transformers' own, with the base model (minutes)
	test -x .venv-serve/bin/transformers || $(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch 'transformers[serving]' gguf
	CLARA_SERVE_COMMAND=.venv-serve/bin/transformers CLARA_SERVE_MODEL="$$($(BIN)/python scripts/fetch_base.py | sed 's/^base model: //')" \
		$(BIN)/python -m pytest tests/synth/test_synth_real_server.py

clean: ## remove the environment and caches of this folder
	rm -rf $(VENV) .venv-serve build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
