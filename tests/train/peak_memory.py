"""A short run of a stage that prints what memory it was said to take, and took: STAGE RECIPE DATA OUT [CACHE].

Figures are bytes: ``said`` in the line before the first step, ``took`` from there to the end.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from clara.config import read_toml
from clara.data import read_records
from clara.train.run import train
from clara.train.stages import stage_of

_UNITS = {"MB": 1e6, "GB": 1e9}


def peak() -> int:
    """Most memory that this process has held (``ru_maxrss`` would begin with what its parent held)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def main() -> None:
    """Train and print."""
    name, recipe, data, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    cache = Path(sys.argv[5]) if len(sys.argv) > 5 else out
    before: list[int] = []
    said: list[float] = []

    def hear(line: str) -> None:
        found = re.match(r"memory: at most about ([\d.]+) ([MG]B)", line)
        if found:
            said.append(float(found[1]) * _UNITS[found[2]])
            before.append(peak())

    stage = stage_of(name, read_toml(recipe), source=str(recipe))
    train(stage, read_records(data).records, out, cache=cache, on_notice=hear)
    sys.stdout.write(json.dumps({"said": said[0], "before": before[0], "took": peak() - before[0]}))


if __name__ == "__main__":
    main()
