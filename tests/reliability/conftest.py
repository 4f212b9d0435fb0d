"""The helpers of other rooms' tests, which the programs here use too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("index", "ingest", "model", "train")]
