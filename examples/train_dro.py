"""Tune the baseline DRO, selector and reader on full text.

    python examples/train_dro.py --config RECIPE --data FILE… --out DIR

Writes DIR/dro, which ``clara compare --system dro --option dro=DIR/dro`` reads. Recipes: recipes/dro-*.toml.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clara.config import check, read_toml
from clara.data import DataRecord, read_records
from clara.errors import ClaraError
from clara.model import default_cache
from clara.train.dro import DroConfig, DroProgress, train_dro


def main() -> int:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="recipe (TOML)")
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="questions with candidates (.jsonl, .jsonl.gz)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for base weights")
    given = parser.parse_args()
    try:
        if any("eval" in path.resolve().parts for path in given.data):
            raise SystemExit("train_dro: what is measured on is never trained on; name data outside a folder eval")
        records: list[DataRecord] = []
        for path in given.data:
            reading = read_records(path)
            print(reading.summary(), file=sys.stderr)
            records.extend(reading.records)
        config = check(DroConfig, read_toml(given.config), source=str(given.config))
        print(train_dro(records, config, given.out, cache=given.cache, device=given.device, tell=_tell))
    except ClaraError as error:
        print(f"train_dro: {error}", file=sys.stderr)
        return 2
    return 0


def _tell(progress: DroProgress) -> None:
    print(
        f"step {progress.step}: loss {progress.cross_entropy:.3f}, {progress.effective:.1f} choices with weight, "
        f"gold found {progress.gold:.2f}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
