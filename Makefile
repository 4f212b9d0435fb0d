# Everything runs from .venv in this folder. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# Each runs on one thread; a file's tests stay together, for what they share is made once.
WORKERS ?= 2
MINUTES ?= 30
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types rooms unit wheel bench kill-trials fuzz bit-flips hostile disk upgrades serve-test page-shots soak schemathesis clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

test: $(DEV_STAMP) setup lint types rooms unit ## add the dev extra and run everything that CI runs

lint: $(DEV_STAMP) ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV_STAMP) ## strict types of source and tests
	$(BIN)/mypy

rooms: $(DEV_STAMP) ## import rules between the rooms
	$(BIN)/lint-imports

unit: $(DEV_STAMP) ## tests with coverage; one that takes ten minutes hangs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --timeout 600 --cov --cov-report=term:skip-covered --cov-fail-under=85

wheel: ## install the built wheel with all it needs in a fresh environment and ask there (minutes)
	bash scripts/try_wheel.sh

bench: $(DEV_STAMP) setup ## speed of compression and of the first token, as ratios
	$(BIN)/clara bench compress
	$(BIN)/clara bench ask

kill-trials: $(DEV_STAMP) ## kill -9 at random moments, 3,072 trials (CLARA_TRIALS, CLARA_SECONDS)
	$(BIN)/python -W ignore tests/reliability/kill_trials.py --trials $${CLARA_TRIALS:-3072} --seconds $${CLARA_SECONDS:-7200}

fuzz: $(DEV_STAMP) ## damaged input for every reader, 10^6 executions; findings are kept in .fuzz
	$(BIN)/python -W ignore tests/reliability/fuzz.py --executions $${CLARA_EXECUTIONS:-1000000} --seconds $${CLARA_SECONDS:-7200} --corpus .fuzz

bit-flips: $(DEV_STAMP) ## a flipped bit anywhere in a store never changes an answer silently
	$(BIN)/python -m pytest tests/index/test_index_damage.py

hostile: $(DEV_STAMP) ## hostile checkpoints, bombs, control strings
	$(BIN)/python -m pytest tests/reliability -k 'checkpoint or bomb or control'

disk: $(DEV_STAMP) ## a full disk, a folder that cannot be written to
	$(BIN)/python -m pytest tests/reliability/test_disk.py tests/train/test_train_robust.py tests/synth/test_synth_resume.py -k 'disk or written'

upgrades: $(DEV_STAMP) ## stores of earlier formats become today's, checkpoints of other formats are refused
	$(BIN)/python -m pytest tests/index/test_index_store.py tests/model/test_model_checkpoint.py -k 'of_format_1 or upgrade or from_codec or saving_what or wrong_manifest'

serve-test: $(DEV_STAMP) setup ## synthesis against a real server: transformers' own, with the base model (minutes)
	test -x .venv-serve/bin/transformers || $(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch 'transformers[serving]' gguf
	CLARA_SERVE_COMMAND=.venv-serve/bin/transformers CLARA_SERVE_MODEL="$$($(BIN)/python scripts/fetch_base.py | sed 's/^base model: //')" \
		$(BIN)/python -m pytest tests/synth/test_synth_real_server.py

page-shots: $(DEV_STAMP) setup ## screenshots of the page of clara serve in runs/page, light and dark, wide and phone
	PYTHONPATH=tests/serve $(BIN)/python tests/serve/page_shots.py

soak: $(DEV_STAMP) setup ## mixed traffic on the server for MINUTES (30): memory and descriptors must stay level
	$(BIN)/python tests/serve/soak.py --minutes $(MINUTES)

schemathesis: $(DEV_STAMP) ## 10,000 requests from the server's OpenAPI description: no 5xx
	CLARA_FUZZ_CASES=10000 $(BIN)/python -m pytest -s tests/serve/test_serve_soak.py -k description

clean: ## remove the environment and caches of this folder
	rm -rf $(VENV) .venv-serve build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
