"""What a checkpoint brings along is kept, derived again, or named: training never degrades it without a word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train_cases import made, passages, questions

from clara.data import DataRecord
from clara.model import ClaraModel, checkpoint
from clara.model.backbone import ADAPTER
from clara.train.run import train

RECORDS: list[DataRecord] = [*passages(40), *questions(10)]
ADAPTERS = [Path("adapters") / role / ADAPTER for role in ("compressor", "query_reasoner")]
STILL: dict[str, Any] = {"learning_rate": 1e-12, "table_learning_rate": 1e-12, "projection_learning_rate": 1e-12}


def same(one: Path, other: Path) -> bool:
    left, right = load_file(one), load_file(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def measured(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the embedded one: an untrained reasoner, whitened, with decoding settings that were measured."""
    out = tmp_path_factory.mktemp("measured")
    first = train(made("scp", tiny_base, steps=1), RECORDS, out / "scp", cache=out)
    values: dict[str, Any] = {
        "query_projection": True,
        "late_interaction": True,
        "query_read_out": False,
        "candidates": 5,
    }
    values |= {"start": str(first), "steps": 1, "keep": "last"} | STILL
    folder = train(made("retriever", tiny_base, **values), RECORDS, out / "retriever", cache=out)
    (folder / ADAPTERS[1]).write_bytes((folder / ADAPTERS[0]).read_bytes())  # not trained at all
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    measured = {"wording": "quoted", "latent_weight": 0.25, "contrast": [0.0, 0.3]}
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest | measured))
    return folder


def go_on(start: Path, base: Path, out: Path, records: list[DataRecord], **values: Any) -> tuple[Path, list[str]]:  # noqa: ANN401
    """One step of stage instruct, and what was said before it."""
    notices: list[str] = []
    stage = made("instruct", base, start=str(start), steps=1, **values)
    folder = train(stage, records, out / "run", cache=out, on_notice=notices.append)
    return folder, carried(notices)


def carried(notices: Sequence[str]) -> list[str]:
    """Without the estimate of memory that every run begins with."""
    return [notice for notice in notices if not notice.startswith("memory: ")]


def test_an_untrained_reasoner_is_derived_again(measured: Path, tiny_base: Path, tmp_path: Path) -> None:
    folder, notices = go_on(measured, tiny_base, tmp_path, RECORDS)
    assert not same(folder / ADAPTERS[0], measured / ADAPTERS[0]), "the compressor was trained"
    assert same(folder / ADAPTERS[1], folder / ADAPTERS[0]), "questions are encoded by the new one"
    before, after = (load_file(one / checkpoint.MEMORY) for one in (measured, folder))
    for name in ("query_projection", "query_centre", "query_passage_centre"):
        assert not torch.equal(after[name], before[name])
    manifest = checkpoint.read_manifest(folder)
    assert (manifest.query_projection, manifest.late_interaction) == (True, True)
    assert (manifest.wording, manifest.latent_weight, manifest.contrast) == ("quoted", 0.25, (0.0, 0.3))
    assert manifest.trained["not_remeasured"] == ["latent_weight", "wording", "contrast"]
    assert notices == manifest.trained["carried"]
    assert notices == [
        "kept, though not measured again with the new weights: latent_weight, wording, contrast",
        "the query reasoner is derived from the compressor again after the last step",
    ]
    card = (folder / "README.md").read_text()
    assert all(notice in card for notice in notices)
    assert ClaraModel.load(folder, dtype="fp32").latent_weight == 0.25


def test_too_few_texts_to_whiten_leave_it_stale_and_say_so(measured: Path, tiny_base: Path, tmp_path: Path) -> None:
    folder, notices = go_on(measured, tiny_base, tmp_path, passages(6), held_out=1)
    assert same(folder / ADAPTERS[1], measured / ADAPTERS[1])
    assert (
        "the query reasoner will be stale, because this run changes the compressor; to whiten questions takes"
        in notices[1]
    )
    assert notices[1] in (folder / "README.md").read_text()


def test_a_trained_reasoner_stays_and_is_named(measured: Path, tiny_base: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"start": str(measured), "steps": 1, "candidates": 5, "top_k": 2}
    trained = train(made("end-to-end", tiny_base, **values), RECORDS, tmp_path / "e2e", cache=tmp_path)
    assert checkpoint.read_manifest(trained).contrast == (), "nothing to contrast with is left"
    folder, notices = go_on(trained, tiny_base, tmp_path, RECORDS)
    assert same(folder / ADAPTERS[1], trained / ADAPTERS[1])
    assert "train stage end-to-end or retriever on the result" in notices[1]


def test_a_frozen_compressor_leaves_the_reasoner_as_it_is(measured: Path, tiny_base: Path, tmp_path: Path) -> None:
    frozen: dict[str, Any] = {"freeze_compressor": True, "table_learning_rate": 1e-4}
    folder, notices = go_on(measured, tiny_base, tmp_path, RECORDS, **frozen)
    assert same(folder / checkpoint.MEMORY, measured / checkpoint.MEMORY)
    assert len(notices) == 1


def test_a_fresh_start_brings_nothing(tiny_base: Path, tmp_path: Path) -> None:
    notices: list[str] = []
    folder = train(made("scp", tiny_base, steps=1), RECORDS, tmp_path / "run", cache=tmp_path, on_notice=notices.append)
    assert carried(notices) == []
    assert not {"carried", "not_remeasured"} & checkpoint.read_manifest(folder).trained.keys()
