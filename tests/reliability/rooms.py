"""Imported first: makes the helpers of other rooms' tests importable."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / room) for room in ("index", "ingest", "model", "train")] + [str(TESTS.parent / "scripts")]
