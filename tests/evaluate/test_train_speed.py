"""Training speed on the tiny checkpoint: figures that belong together, and both sides of the cache in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from clara.bench import _PASSAGE_WORDS, made_records
from clara.cli import main
from clara.model.attention import Packing


def test_made_records_are_questions_about_their_passages() -> None:
    records = made_records(["one two three four five six seven eight nine ten eleven twelve " * 30])
    assert len(records) > 5
    assert len({record.id for record in records}) == len(records)
    for record in records:
        text = getattr(record, "text")  # noqa: B009 - all are passages
        assert len(text.split()) == _PASSAGE_WORDS
        for pair in getattr(record, "pairs"):  # noqa: B009
            assert pair.answers[0] in text


def test_bench_train_measures_stages_and_the_cache(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[object] = []
    run_packed = Packing.run

    def watched(*args: Any) -> Tensor:  # noqa: ANN401
        packed.append(args)
        return run_packed(*args)

    monkeypatch.setattr(Packing, "run", watched)
    options = [
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--candidates",
        "12",
        "--dtype",
        "fp32",
        "--rate",
        "16",
        "--train-compressor",
    ]
    chosen = ["--stage", "scp", "--stage", "end-to-end", "--model", str(tiny_checkpoint), "--cache", str(tmp_path)]
    assert main(["bench", "train", *options, *chosen, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["stages", "cache", "batch_size", "steps", "rate", "dtype", "threads"]
    assert [one["stage"] for one in result["stages"]] == ["scp", "end-to-end"]
    for one in result["stages"]:
        shares = [one[phase] for phase in ("data", "forward", "backward", "optimiser")]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0
        assert one["tokens_per_second"] > one["samples_per_second"] > 0
        assert one["samples_per_second"] * one["seconds"] == pytest.approx(2, rel=0.5)
    cache = result["cache"]
    assert cache["candidates"] == 12
    assert cache["ratio"] > 0
    assert cache["trained_ratio"] > 1, "24 passages under gradient cost more than 24 rows of a cache"
    assert packed, "what is measured is the path that a run takes"
    assert not (tmp_path / "memories").exists(), "a measurement leaves nothing in the cache folder"


def test_a_stage_that_there_is_not(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--stage", "scpp", "--model", str(tiny_checkpoint)]) == 2
    assert "no training stage 'scpp'; there are scp, instruct" in capsys.readouterr().err
