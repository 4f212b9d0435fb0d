"""Learning curves come from the log; without matplotlib a run ends all the same, and its card says why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from train_cases import made, passages

from clara.errors import TrainingError
from clara.train.log import _Curve, _read_curves, add_curves
from clara.train.run import train

LINES = [
    {"step": 1, "cross_entropy": 4.0, "mse": 0.0, "learning_rate": 0.1, "validation": None},
    {"step": 2, "cross_entropy": 2.0, "mse": 0.0, "learning_rate": 0.2, "validation": None},
    {
        "step": 3,
        "cross_entropy": 3.0,
        "mse": 0.0,
        "learning_rate": 0.1,
        "validation": {
            "loss": 2.5,
            "rates": {"4": {"loss": 2.0, "f1": 0.5, "em": None}, "16": {"loss": 3.0, "f1": 0.25}},
        },
    },
]


def test_curves_are_what_the_log_says(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    losses, answers, mse, rate = _read_curves(log).values()
    assert losses == (
        _Curve("training, each step", (1, 2, 3), (4.0, 2.0, 3.0)),
        _Curve("training, smoothed", (1, 2, 3), (3.0, 3.0, 2.5)),  # the neighbours and itself
        _Curve("held out, 4x", (3,), (2.0,)),
        _Curve("held out, 16x", (3,), (3.0,)),
    )
    assert answers == (_Curve("F1, 4x", (3,), (0.5,)), _Curve("F1, 16x", (3,), (0.25,)))
    assert mse == (), "a stage without that term"
    assert rate == (_Curve("learning rate", (1, 2, 3), (0.1, 0.2, 0.1)),)
    log.write_text("")
    with pytest.raises(TrainingError, match="is empty"):
        _read_curves(log)


def test_a_run_leaves_its_curves_beside_the_card(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(made("scp", tiny_base, steps=3, held_out_answers=2), passages(12), tmp_path, cache=tmp_path)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    card = folder / "README.md"
    assert card.read_text().endswith("## Learning curves\n\n![Learning curves](curves.png)\n")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (folder / "curves.png").unlink()
    card.write_text("# Card\n")
    add_curves(tmp_path, folder)
    assert not (folder / "curves.png").exists()
    assert "Not drawn: matplotlib is not installed; it comes with: pip install 'clara-rag[train]'" in card.read_text()
