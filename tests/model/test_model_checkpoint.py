"""Checkpoints: what is saved comes back, PEFT reads it, and every kind of damage is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from clara.config import CompressionConfig
from clara.errors import BaseModelError, CheckpointError
from clara.model import ClaraModel, checkpoint
from clara.model.create import Loaded, from_checkpoint
from clara.model.placement import Placement

TEXTS = ["The tower is 330 metres high.", "Bees dance.", "Why?"]
ADAPTER = "adapters/compressor/adapter_model.safetensors"

Make = Callable[[CompressionConfig], Loaded]


class Death(BaseException):
    """Stands for a kill; nothing in the package catches it."""


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def load(folder: Path) -> ClaraModel:
    return ClaraModel.load(folder, dtype="fp32")


def change_manifest(folder: Path, **values: Any) -> None:  # noqa: ANN401 - any JSON
    path = folder / "clara.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_checkpoint_gives_the_same_memories(copied: Path, tiny_model: ClaraModel) -> None:
    again = load(copied)
    assert again.fingerprint == tiny_model.fingerprint
    assert (again.rates, again.window_tokens, again.width, again.default_rate) == ((4, 16), 64, 32, 4)
    for left, right in zip(tiny_model.compress(TEXTS, rate=16), again.compress(TEXTS, rate=16), strict=True):
        assert np.array_equal(left.values, right.values)


@pytest.mark.parametrize("split", [False, True])
def test_saving_what_was_loaded_changes_nothing(split: bool, make_network: Make, tmp_path: Path) -> None:  # noqa: FBT001
    loaded = make_network(CompressionConfig(window_tokens=64, rates=(16,), gain=True))
    if split:
        loaded.network.adapters.split_query_reasoner()
        with torch.no_grad():
            loaded.network.adapters.parameters_of("query_reasoner")[1].mul_(2)
    checkpoint.save(loaded.network, loaded.manifest, tmp_path / "a", card="A card.", dtype=torch.float32)
    again = from_checkpoint(tmp_path / "a", tmp_path, Placement())
    checkpoint.save(again.network, again.manifest, tmp_path / "b", card="A card.", dtype=torch.float32)
    roles = ["compressor", "generator", *(["query_reasoner"] if split else [])]
    names = [f"adapters/{role}/adapter_model.safetensors" for role in roles]
    files = sorted(str(p.relative_to(tmp_path / "a")) for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(
        [
            "README.md",
            "clara.json",
            "memory.safetensors",
            *names,
            *(n.replace("_model.safetensors", "_config.json") for n in names),
        ]
    )
    for name in ["README.md", "clara.json", "memory.safetensors", *names]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    models = [ClaraModel(name, one) for name, one in (("made", loaded), ("read", again))]
    assert models[0].fingerprint == models[1].fingerprint
    pairs = [(m.compress(TEXTS)[0].values, m.encode_queries(TEXTS)[0].values) for m in models]
    assert np.array_equal(pairs[0][0], pairs[1][0])
    assert np.array_equal(pairs[0][1], pairs[1][1])
    assert np.array_equal(*pairs[0]) != split


def test_peft_loads_an_adapter(tiny_checkpoint: Path, tiny_base: Path, tmp_path: Path) -> None:
    loaded = from_checkpoint(tiny_checkpoint, tmp_path, Placement())
    ids = torch.tensor([[5, 80, 301, 44, 7, 599]])
    for role in ("compressor", "generator"):
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        foreign = PeftModel.from_pretrained(base, str(tiny_checkpoint / "adapters" / role)).eval()
        with torch.no_grad(), loaded.network.eval().adapters.use(role):
            own = loaded.network.adapters.bare()(ids).logits
            assert float((foreign(input_ids=ids).logits - own).abs().max()) < 1e-5


def test_the_fingerprint_is_that_of_the_memories(make_network: Make) -> None:
    loaded = make_network(CompressionConfig(window_tokens=64, rates=(16,), gain=True))
    network, manifest = loaded.network, loaded.manifest
    first = checkpoint.fingerprint(network, manifest)
    with torch.no_grad():
        network.adapters.parameters_of("generator")[1].mul_(2)
    assert checkpoint.fingerprint(network, manifest) == first
    seen = {first}
    with torch.no_grad():
        network.adapters.parameters_of("compressor")[1].mul_(2)
        seen.add(checkpoint.fingerprint(network, manifest))
        next(network.table.parameters()).mul_(2)
        seen.add(checkpoint.fingerprint(network, manifest))
    seen.add(checkpoint.fingerprint(network, manifest.model_copy(update={"base_identity": "0" * 16})))
    other = manifest.compression.model_copy(update={"positions": "spread"})
    seen.add(checkpoint.fingerprint(network, manifest.model_copy(update={"compression": other})))
    assert len(seen) == 5


TENSOR = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (ADAPTER, lambda t: t.pop(TENSOR), rf"misses 1 tensor\(s\), the first is {TENSOR}"),
        (ADAPTER, lambda t: t.update(extra=t[TENSOR].clone()), r"1 unknown tensor\(s\), the first is extra"),
        (
            ADAPTER,
            lambda t: t.update({TENSOR: t[TENSOR][:2].clone()}),
            rf"{TENSOR} has shape \(2, 64\), expected \(4, 64\)",
        ),
        (ADAPTER, lambda t: t[TENSOR].fill_(float("nan")), f"{TENSOR} has values that are not finite"),
        ("memory.safetensors", lambda t: t.pop("gain"), "memory.safetensors misses .* gain"),
        (
            "memory.safetensors",
            lambda t: t.update(tokens=torch.zeros(3, 32)),
            r"tokens has shape \(3, 32\), expected \(16, 32\)",
        ),
        ("memory.safetensors", lambda t: t["bias"].fill_(float("inf")), "bias has values that are not finite"),
        ("memory.safetensors", lambda t: t.update(surprise=torch.zeros(1)), "the first is surprise"),
    ],
)
def test_damaged_tensors_are_named(
    file: str, change: Callable[[dict[str, Tensor]], object], message: str, copied: Path
) -> None:
    change_tensors(copied / file, change)
    with pytest.raises(CheckpointError, match=message):
        load(copied)


@pytest.mark.parametrize("file", [ADAPTER, "memory.safetensors"])
def test_missing_and_cut_files_are_named(file: str, copied: Path) -> None:
    whole = (copied / file).read_bytes()
    (copied / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"{file} cannot be read"):
        load(copied)
    (copied / file).unlink()
    with pytest.raises(CheckpointError, match=f"has no .*{file}"):
        load(copied)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_identity": "0123456789abcdef"}, "trained on .*0123456789abcdef.*use it with its own base model"),
        ({"format_version": 2}, "format version 2, this release reads 1; use the release"),
        ({"compresion_rate": 4}, "compresion_rate: Extra inputs are not permitted"),
        ({"compression": {"window_tokens": 64, "rate": [4]}}, "compression.rate: Extra inputs are not permitted"),
        ({"hidden_size": 0, "stage": 3}, r"2 fault\(s\): hidden_size: .*stage: "),
    ],
)
def test_a_wrong_manifest(values: dict[str, Any], message: str, copied: Path) -> None:
    change_manifest(copied, **values)
    with pytest.raises(CheckpointError, match=message):
        load(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "must hold an object, got list"), ("{", "is not valid JSON"), ("{}", "format version None")],
)
def test_a_manifest_that_is_none(text: str, message: str, copied: Path) -> None:
    (copied / "clara.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(copied)


def test_the_name_of_a_model_leads_to_it_from_everywhere(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.parent)
    assert ClaraModel.load(copied.name, dtype="fp32").name == str(copied.resolve())


def test_names_that_lead_to_no_checkpoint(tiny_base: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model named 'nonsense': give one of smollm2-135m"):
        load(Path("nonsense"))
    with pytest.raises(CheckpointError, match="is a base model without CLaRa's adapters; train a checkpoint on it"):
        load(tiny_base)
    with pytest.raises(CheckpointError, match=r"has no clara.json"):
        checkpoint.read_manifest(tmp_path)
    change_manifest(copied, base_model=str(tmp_path / "gone"))
    with pytest.raises(BaseModelError, match="gone"):
        load(copied)
    assert ClaraModel.load(copied, base=str(tiny_base), dtype="fp32").width == 32


def test_saving_where_something_else_is(make_network: Make, tmp_path: Path) -> None:
    loaded = make_network(CompressionConfig(window_tokens=64, rates=(16,)))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter.txt").write_text("Dear")
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint; choose another folder"):
        checkpoint.save(loaded.network, loaded.manifest, tmp_path / "precious", card="")
    assert (tmp_path / "precious" / "letter.txt").read_text() == "Dear"
    with torch.no_grad():
        loaded.network.adapters.parameters_of("generator")[0].fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"adapter generator: .* not finite"):
        checkpoint.save(loaded.network, loaded.manifest, tmp_path / "new", card="")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_link_stays_a_link_and_the_working_folder_stays(
    make_network: Make, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = make_network(load(copied).manifest.compression)
    link = tmp_path / "link"
    link.symlink_to(copied, target_is_directory=True)
    for _ in range(2):
        checkpoint.save(loaded.network, loaded.manifest, link, card="")
    assert link.readlink() == copied
    assert load(copied).fingerprint == load(link).fingerprint
    (tmp_path / "file").write_text("Dear")
    with pytest.raises(CheckpointError, match="is a file, a checkpoint is a folder"):
        checkpoint.save(loaded.network, loaded.manifest, tmp_path / "file", card="")
    monkeypatch.chdir(copied)
    here = Path(".")  # noqa: PTH201 - as a user writes it
    assert load(here).fingerprint == load(copied).fingerprint
    with pytest.raises(CheckpointError, match="is the working folder"):
        checkpoint.save(loaded.network, loaded.manifest, here, card="")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "file", "link"]


@pytest.mark.parametrize("target", ["write", "rename 1", "rename 2", "clean"])
def test_a_kill_while_saving_leaves_a_whole_checkpoint(
    target: str, make_network: Make, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one, until the new one is in its place; and saving again works."""
    loaded = make_network(load(copied).manifest.compression)
    renames = 0
    rename, rmtree = Path.rename, shutil.rmtree
    dead = False

    def die(*_: object, **__: object) -> None:
        nonlocal dead
        dead = True
        raise Death

    def counted(self: Path, to: Path) -> Path:
        nonlocal renames
        renames += 1
        if target == f"rename {renames}":
            die()
        return rename(self, to)

    def clean(path: Path, **options: Any) -> None:  # noqa: ANN401
        if dead:
            return  # a killed process cleans nothing up
        if target == "clean" and renames == 2:
            die()
        rmtree(path, **options)

    old = load(copied).fingerprint
    with torch.no_grad():
        loaded.network.adapters.parameters_of("compressor")[1].mul_(2)
    new = checkpoint.fingerprint(loaded.network, loaded.manifest)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", counted)
        patched.setattr(shutil, "rmtree", clean)
        if target == "write":
            patched.setattr(Path, "write_text", die)
        with pytest.raises(Death):
            checkpoint.save(loaded.network, loaded.manifest, copied, card="")
    assert load(copied).fingerprint == (new if target == "clean" else old)
    checkpoint.save(loaded.network, loaded.manifest, copied, card="")
    assert load(copied).fingerprint == new


def test_a_measured_wording_is_the_checkpoints_own(copied: Path) -> None:
    assert load(copied).wording == "free"
    change_manifest(copied, wording="quoted")
    assert load(copied).wording == "quoted"
    change_manifest(copied, wording="loud")
    with pytest.raises(CheckpointError, match="wording"):
        load(copied)


def test_a_measured_latent_weight_is_the_checkpoints_own(copied: Path) -> None:
    assert load(copied).latent_weight == 0.25
    change_manifest(copied, latent_weight=0.6)
    model = load(copied)
    assert model.latent_weight == 0.6
    change_manifest(copied, latent_weight=-1)
    with pytest.raises(CheckpointError, match="latent_weight"):
        load(copied)
