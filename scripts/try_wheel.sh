#!/usr/bin/env bash
# Installs the built wheel in a fresh environment and asks the sample documents there, as a stranger would.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
pip="$scratch/venv/bin/python -m pip --quiet --disable-pip-version-check"

"$python" -m venv "$scratch/venv"
$pip wheel --no-deps --wheel-dir "$scratch" .
$pip install --no-compile -c constraints.txt torch
$pip install --no-compile -c constraints.txt "$scratch"/clara_rag-*.whl

cd "$scratch" # away from the sources
unset PYTHONPATH HF_HUB_OFFLINE
export CLARA_CACHE=$scratch/cache # the base model is fetched at first use
documents=$(venv/bin/python -c 'from clara.samples import sample_folder; print(sample_folder())')
venv/bin/clara index "$documents" --store store
answer=$(venv/bin/clara ask "Who discovered penicillin?" --store store)
echo "$answer"
[[ $answer == "Alexander Fleming"* ]]
