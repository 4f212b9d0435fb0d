"""``scripts/average_checkpoints.py``: half way between two checkpoints, and nothing where they do not fit."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clara.model import ClaraModel, checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "average_checkpoints.py"
GENERATOR = Path("adapters") / "generator" / checkpoint.ADAPTER


@pytest.fixture
def average(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    main = runpy.run_path(str(SCRIPT))["main"]

    def call(*folders: Path) -> None:
        monkeypatch.setattr(sys, "argv", ["average", *map(str, folders)])
        main()

    return call


@pytest.fixture
def trained(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with another generator."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "trained"))
    moved = {name: tensor + 0.5 for name, tensor in load_file(folder / GENERATOR).items()}
    save_file(moved, folder / GENERATOR, metadata={"format": "pt"})
    return folder


def test_half_way(average: Callable[..., None], tiny_checkpoint: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "average"
    average(tiny_checkpoint, trained, out)
    start, found = load_file(tiny_checkpoint / GENERATOR), load_file(out / GENERATOR)
    for name, tensor in found.items():
        assert torch.allclose(tensor.float(), start[name].float() + 0.25, atol=4e-3), name
    assert checkpoint.read_manifest(out).trained["weights"]["kept"] == "average"
    text = "The tower is 330 metres high."
    one, other = (ClaraModel.load(folder, dtype="fp32").compress([text])[0] for folder in (tiny_checkpoint, out))
    assert (one.values == other.values).all(), "the compressor was the same in both"
    with pytest.raises(SystemExit, match="is there already"):
        average(tiny_checkpoint, trained, out)


def test_other_memory_tables_are_refused(
    average: Callable[..., None], tiny_checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    table = {name: tensor + 1 for name, tensor in load_file(trained / checkpoint.MEMORY).items()}
    save_file(table, trained / checkpoint.MEMORY, metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="expected equal memory tables"):
        average(tiny_checkpoint, trained, tmp_path / "average")
    assert not (tmp_path / "average").exists()


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
def test_adapters_of_another_shape_scale_or_base_are_refused(
    average: Callable[..., None],
    tiny_checkpoint: Path,
    trained: Path,
    tmp_path: Path,
    changed: dict[str, object],
    said: str,
) -> None:
    manifest = json.loads((trained / checkpoint.MANIFEST).read_text("utf-8"))
    (trained / checkpoint.MANIFEST).write_text(json.dumps(manifest | changed), "utf-8")
    with pytest.raises(SystemExit, match=said):
        average(tiny_checkpoint, trained, tmp_path / "average")
    assert not (tmp_path / "average").exists()
