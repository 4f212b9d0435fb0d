"""The scripts between the embedded checkpoint's stages: what of their records they use, what they say of bad ones."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_cases import passages, questions

from clara.data import DataRecord, write_records
from clara.model import checkpoint

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script as the command line does."""

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return run


@pytest.mark.parametrize(
    ("records", "read", "used"),
    [
        (questions(6), "6 records", "by 24 of 24 passages and by 6 questions"),
        ([*passages(10), *questions(6), *questions(6)], "21 records; rejected 1", "by 33 of 33 passages and by 20"),
    ],
    ids=["questions over several documents", "both kinds, some documents twice"],
)
def test_whitening_looks_at_records_of_both_kinds(
    call: Callable[..., None],
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    records: list[DataRecord],
    read: str,
    used: str,
) -> None:
    write_records(tmp_path / "records.jsonl.gz", records)
    folders = (tmp_path / "cache", tmp_path / "whitened")
    call("whiten_queries.py", "--mean", tiny_checkpoint, tmp_path / "records.jsonl.gz", *folders)
    printed = capsys.readouterr().out
    assert f"records.jsonl.gz: {read}" in printed
    assert f"whitened {used}" in printed
    manifest = checkpoint.read_manifest(tmp_path / "whitened")
    assert manifest.query_projection
    assert "query_reasoner" in manifest.roles
    projection = load_file(tmp_path / "whitened" / checkpoint.MEMORY)["query_projection"]
    assert not torch.allclose(projection[0], torch.eye(len(projection[0])))


def test_faults_of_what_is_given_are_said_without_a_traceback(
    call: Callable[..., None], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    nothing, cache, out = tmp_path / "nothing", tmp_path / "cache", tmp_path / "out"
    unasked = tmp_path / "unasked.jsonl.gz"
    write_records(unasked, passages(10)[9:])
    with pytest.raises(SystemExit, match="is not a clara checkpoint"):
        call("average_checkpoints.py", nothing, tiny_checkpoint, out)
    with pytest.raises(SystemExit, match="nothing"):
        call("whiten_queries.py", tiny_checkpoint, nothing, cache, out)
    with pytest.raises(SystemExit, match="holds no question"):
        call("whiten_queries.py", tiny_checkpoint, unasked, cache, out)
    with pytest.raises(SystemExit, match="holds no records"):
        call("respan.py", tiny_checkpoint, nothing, cache, out)
    with pytest.raises(SystemExit, match="nothing"):
        call("respan.py", nothing, tmp_path, cache, out)
    with pytest.raises(SystemExit, match="nothing"):
        call("question_sample.py", nothing, tmp_path / "sample.jsonl.gz")
    assert not out.exists()
