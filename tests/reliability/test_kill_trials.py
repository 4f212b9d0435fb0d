"""A short version of ``make kill-trials``: a few kills of each operation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TRIALS = 40  # one turn of all operations but the last, and the first trials of the next


def test_a_kill_loses_and_doubles_nothing() -> None:
    program = Path(__file__).with_name("kill_trials.py")
    command = [sys.executable, "-W", "ignore", str(program), "--trials", str(TRIALS), "--seconds", "8", "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = re.findall(r"(\S+): (\d+) trials, (\d+) killed before the end, (\d+) failed", done.stdout)
    assert [name for name, *_ in found] == ["index", "remove", "prune", "re-index", "convert", "train-save"]
    assert sum(int(killed) for _, _, killed, _ in found) > 0
