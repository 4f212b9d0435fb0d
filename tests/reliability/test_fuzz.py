"""A short version of ``make fuzz``: a few damaged inputs for each reader, and that a finding would be seen."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("fuzz.py")


def test_damaged_input_is_read_or_refused_by_every_reader() -> None:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), "--executions", "1000", "--seconds", "6", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = re.fullmatch(r"all: (\d+) readers, (\d+) executions, 0 findings", done.stdout.splitlines()[-1])
    assert found is not None
    assert int(found[1]) >= 49
    assert int(found[2]) >= 200
    refused = sum(int(count) for count in re.findall(r"executions, (\d+) refused", done.stdout))
    assert refused > 0.2 * int(found[2]), "damage that no reader notices tests nothing"


def test_a_finding_is_counted_kept_and_run_again(tmp_path: Path) -> None:
    sys.path.insert(0, str(PROGRAM.parent))
    from fuzz import Target, fuzz  # noqa: PLC0415 - its path is set above

    def read(data: bytes) -> None:
        if b"x" not in data:
            raise KeyError("x")

    target = Target(read, [b"x" * 8])
    settings = {"seconds": 5.0, "seed": 1, "corpus": tmp_path}
    first = fuzz("reader", target, executions=200, **settings)  # type: ignore[arg-type]
    assert (first.executions, list(first.found)) == (200, ["KeyError: 'x'"])
    (kept,) = (tmp_path / "reader").iterdir()
    assert b"x" not in kept.read_bytes()
    again = fuzz("reader", target, executions=2, **settings)  # type: ignore[arg-type]
    assert again.found == {"KeyError: 'x'": 1}
    assert random.Random("1 reader").random() != random.Random("2 reader").random()
