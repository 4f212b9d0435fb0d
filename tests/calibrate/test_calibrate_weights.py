"""Weights that ``clara calibrate`` makes without a training step: means, text readers, spans, query sides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clara.calibrate.run import CalibrationOptions, CheckpointLoader, Part, _Calibrated, calibrate
from clara.data import DataRecord, DocText, MultiHop, PassageQA, QAPair
from clara.errors import CheckpointError, InputError
from clara.model import ClaraModel, checkpoint
from clara.model.backbone import ADAPTER
from clara.model.reader import MANIFEST as READER
from clara.model.reader import find_reader
from clara.records import GenerationRequest

GENERATOR, COMPRESSOR, REASONER = (
    Path("adapters") / role / ADAPTER for role in ("generator", "compressor", "query_reasoner")
)
TEXT = "The tower is 330 metres high."


def passages(count: int) -> list[DataRecord]:
    """Passages with a question each."""
    return [
        PassageQA(f"a{i}", "a", "", f"Tower {i} is {3 * i} metres high.", (QAPair(f"How high is {i}?", (str(3 * i),)),))
        for i in range(count)
    ]


def questions(count: int) -> list[DataRecord]:
    """Questions over four documents each."""
    return [
        MultiHop(f"m{i}", "m", f"Which of {i}?", ("it",), tuple(DocText("", f"{d} of {i}") for d in range(4)), (0, 2))
        for i in range(count)
    ]


@pytest.fixture
def other(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with another generator."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    moved = {name: tensor + 0.5 for name, tensor in load_file(folder / GENERATOR).items()}
    save_file(moved, folder / GENERATOR, metadata={"format": "pt"})
    return folder


@pytest.fixture
def reader(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A reader of text with the tiny checkpoint's shape, whose weights are the generator's."""
    folder = Path(shutil.copytree(tiny_checkpoint / "adapters" / "generator", tmp_path / "reader"))
    own = json.loads((tiny_checkpoint / checkpoint.MANIFEST).read_text("utf-8"))
    kept = {name: own[name] for name in ("base_model", "base_identity", "lora")}
    (folder / READER).write_text(json.dumps(kept | {"format_version": 1, "context": "text"}), "utf-8")
    return folder


def run(
    folder: Path, out: Path, records: Sequence[DataRecord] = (), wanted: CalibrationOptions | None = None, *parts: Part
) -> tuple[_Calibrated, list[str]]:
    """What a call made, and what it said."""
    notices: list[str] = []
    wanted = wanted or CalibrationOptions(only=frozenset(parts))
    made = calibrate(
        str(folder), records, wanted, CheckpointLoader(out.parent / "cache"), out=out, on_notice=notices.append
    )
    return made, notices


def same(one: Path, two: Path) -> bool:
    left, right = load_file(one), load_file(two)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_mean_of_adapters(tiny_checkpoint: Path, other: Path, tmp_path: Path, share: float) -> None:
    out = tmp_path / "out"
    run(tiny_checkpoint, out, wanted=CalibrationOptions(other=str(other), share=share))
    start, found = load_file(tiny_checkpoint / GENERATOR), load_file(out / GENERATOR)
    for name, tensor in found.items():
        assert torch.allclose(tensor.float(), start[name].float() + 0.5 * share, atol=4e-3), name
    trained = checkpoint.read_manifest(out).trained
    assert trained["weights"] == {"kept": "average", "start": str(other), "share": share}
    assert trained["calibrated"]["mean"]["share"] == share
    one, two = (ClaraModel.load(folder, dtype="fp32").compress([TEXT])[0] for folder in (tiny_checkpoint, out))
    assert (one.values == two.values).all(), "the compressor was the same in both"


def test_a_mean_with_another_memory_table_is_refused(tiny_checkpoint: Path, other: Path, tmp_path: Path) -> None:
    table = {name: tensor + 1 for name, tensor in load_file(other / checkpoint.MEMORY).items()}
    save_file(table, other / checkpoint.MEMORY, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="expected equal memory tables"):
        run(tiny_checkpoint, tmp_path / "out", wanted=CalibrationOptions(other=str(other)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lora": {"rank": 4, "alpha": 64.0}}, r"differ in lora\.alpha \(8\.0 and 64\.0\)"),
        ({"lora": {"rank": 8, "alpha": 8.0}}, r"differ in lora\.rank \(4 and 8\)"),
        (
            {"roles": ["compressor", "query_reasoner", "generator"]},
            r"differ in roles \(compressor \+ generator and compressor \+ query_reasoner \+ generator\)",
        ),
        ({"base_identity": "another"}, "differ in base_identity"),
    ],
)
def test_a_mean_with_adapters_of_another_shape_scale_or_base_is_refused(
    tiny_checkpoint: Path, other: Path, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    manifest = json.loads((other / checkpoint.MANIFEST).read_text("utf-8"))
    (other / checkpoint.MANIFEST).write_text(json.dumps(manifest | changed), "utf-8")
    with pytest.raises(CheckpointError, match=said):
        run(tiny_checkpoint, tmp_path / "out", wanted=CalibrationOptions(other=str(other)))
    assert not (tmp_path / "out").exists()


def test_a_share_outside_0_to_1_is_refused(tiny_checkpoint: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="between 0 and 1, got 1"):
        run(tiny_checkpoint, tmp_path / "out", wanted=CalibrationOptions(other=str(other), share=1.0))


def test_a_reader_reads_text(tiny_checkpoint: Path, reader: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = json.loads((reader / READER).read_text("utf-8"))
    (reader / READER).write_text(json.dumps(said | {"judges": True}), "utf-8")
    run(tiny_checkpoint, out, wanted=CalibrationOptions(reader=reader))
    manifest = checkpoint.read_manifest(out)
    assert manifest.roles == ("compressor", "generator", "text_reader")
    assert manifest.judges
    assert find_reader(out)[0].judges, "training can go on from the checkpoint"
    assert manifest.trained["calibrated"]["text_reader"]["from"] == str(reader)
    model = ClaraModel.load(out, dtype="fp32")
    assert model.reads_text
    answer = model.generate_many(
        [GenerationRequest("How high?", texts=(TEXT,), reader="text_reader")], max_new_tokens=4
    )
    assert answer[0].tokens.prompt > 0
    old = ClaraModel.load(tiny_checkpoint, dtype="fp32")
    assert model.fingerprint == old.fingerprint, "stores stay valid"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"context": "none"}, "closed book"),
        ({"base_identity": "another"}, "train a reader on the same base model"),
        ({"lora": {"rank": 8, "alpha": 8.0}}, "LoRA rank 8 and alpha 8"),
    ],
)
def test_a_reader_that_does_not_fit_is_refused(
    tiny_checkpoint: Path, reader: Path, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    manifest = json.loads((reader / READER).read_text("utf-8"))
    (reader / READER).write_text(json.dumps(manifest | changed), "utf-8")
    with pytest.raises(CheckpointError, match=said):
        run(tiny_checkpoint, tmp_path / "out", wanted=CalibrationOptions(reader=reader))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("late", [False, True])
def test_a_query_side_is_made_from_records_of_both_kinds(tiny_checkpoint: Path, tmp_path: Path, *, late: bool) -> None:
    records = [*passages(10), *questions(6), *questions(6)]
    wanted = CalibrationOptions(only=frozenset({"queries"}), late=late)
    made, notices = run(tiny_checkpoint, tmp_path / "out", records, wanted)
    assert made.measured["queries"]["passages"] == 34
    assert made.measured["queries"]["questions"] == 22
    manifest = checkpoint.read_manifest(tmp_path / "out")
    assert (manifest.query_projection, manifest.late_interaction) == (True, late)
    assert same(tmp_path / "out" / REASONER, tmp_path / "out" / COMPRESSOR)
    projection = load_file(tmp_path / "out" / checkpoint.MEMORY)["query_projection"]
    assert not torch.allclose(projection[0], torch.eye(len(projection[0])))
    assert any("must be indexed again" in notice for notice in notices)
    assert any("to whiten questions well takes" in notice for notice in notices) is not late, (
        "a token needs fewer texts"
    )


def test_a_stale_query_side_is_renewed_as_it_was(tiny_checkpoint: Path, tmp_path: Path) -> None:
    records = passages(12)
    run(tiny_checkpoint, tmp_path / "first", records, None, "queries")
    stale = Path(shutil.copytree(tmp_path / "first", tmp_path / "stale"))
    moved = {name: tensor * 1.5 for name, tensor in load_file(stale / COMPRESSOR).items()}
    save_file(moved, stale / COMPRESSOR, metadata={"format": "pt"})  # as training leaves it
    run(stale, tmp_path / "renewed", records, None, "queries")
    assert same(tmp_path / "renewed" / REASONER, stale / COMPRESSOR)
    assert checkpoint.read_manifest(tmp_path / "renewed").late_interaction
    before, after = (load_file(folder / checkpoint.MEMORY) for folder in (stale, tmp_path / "renewed"))
    assert not torch.equal(before["query_projection"], after["query_projection"])
    assert torch.equal(before["tokens"], after["tokens"])


def test_spans_of_equal_information_bring_a_query_side_along(tiny_checkpoint: Path, tmp_path: Path) -> None:
    records = passages(12)
    run(tiny_checkpoint, tmp_path / "queries", records, None, "queries")
    made, notices = run(tmp_path / "queries", tmp_path / "out", records, None, "spans")
    assert set(made.measured) == {"spans", "queries"}
    assert any("want training" in notice for notice in notices)
    manifest = checkpoint.read_manifest(tmp_path / "out")
    assert manifest.compression.spans == "information"
    one, two = (
        ClaraModel.load(tmp_path / name, dtype="fp32").compress([TEXT], rate=16)[0] for name in ("queries", "out")
    )
    assert not (one.values == two.values).all()


def test_a_mean_of_compressors_renews_the_query_side(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(tiny_checkpoint, tmp_path / "one", passages(12), None, "queries")
    two = Path(shutil.copytree(tmp_path / "one", tmp_path / "two"))
    for path in (COMPRESSOR, REASONER):
        moved = {name: tensor * 1.5 for name, tensor in load_file(two / path).items()}
        save_file(moved, two / path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="its query side is made anew: give --data"):
        run(tmp_path / "one", tmp_path / "out", wanted=CalibrationOptions(other=str(two)))
    made, _ = run(
        tmp_path / "one", tmp_path / "out", passages(12), CalibrationOptions(only=frozenset(), other=str(two))
    )
    assert set(made.measured) == {"mean", "queries"}
    assert same(tmp_path / "out" / REASONER, tmp_path / "out" / COMPRESSOR)


def test_a_checkpoint_without_a_query_side_gets_no_notice_of_a_stale_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    _, notices = run(tiny_checkpoint, tmp_path / "out", passages(12), None, "spans")
    assert len(notices) == 1, "of the memories alone"


def test_weights_without_records_or_questions_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --data FILE"):
        run(tiny_checkpoint, tmp_path / "out", [], None, "queries")
    unasked = [PassageQA("a", "a", "", TEXT, ())]
    with pytest.raises(InputError, match="hold no question"):
        run(tiny_checkpoint, tmp_path / "out", unasked, None, "queries")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint"):
        run(tiny_checkpoint, tmp_path / "full", passages(12), None, "queries")
    assert not (tmp_path / "out").exists()
