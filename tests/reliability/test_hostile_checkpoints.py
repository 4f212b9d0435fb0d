"""Checkpoints that are built to run code, to fill the memory or to read other files are refused, each by name."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import rooms  # noqa: F401 - sets the path of the next ones
import torch
from official_folders import content
from safetensors.torch import load_file, save_file

from clara.errors import ClaraError
from clara.model import ClaraModel

ADAPTER = "adapters/compressor/adapter_model.safetensors"
MEMORY = "memory.safetensors"
Spoil = Callable[[Path], object]


class Code:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self._mark),)


def marked(folder: Path) -> Path:
    """What code that runs would leave."""
    return folder.parent / "ran"


def _header(size: int, text: bytes) -> bytes:
    return struct.pack("<Q", size) + text


def _entry(shape: list[int], end: int) -> bytes:
    return json.dumps({"tokens": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


def _changed(name: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return spoil


def _tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return spoil


def _written(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


def _linked(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def _pickled(name: str, make: Callable[[Path], object]) -> Spoil:
    return lambda folder: torch.save(make(marked(folder)), folder / name)


def _old_pickle(folder: Path) -> None:
    (folder / "adapters.pth").write_bytes(pickle.dumps(Code(marked(folder))))


def _bomb(folder: Path) -> None:
    """An archive whose one part says that it is a thousand times as long as the file."""
    with zipfile.ZipFile(folder / "adapters.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
        archive.writestr("archive/version", b"3")


def _names_outside(folder: Path) -> None:
    with zipfile.ZipFile(folder / "adapters.pth", "a") as archive:
        archive.writestr("../../ran/x", b"x")
    data = (folder / "adapters.pth").read_bytes()
    (folder / "adapters.pth").write_bytes(data.replace(b"data.pkl", b"../a.pkl"))


NATIVE: dict[str, Spoil] = {
    "a pickle in the place of tensors": lambda folder: torch.save(Code(marked(folder)), folder / MEMORY),
    "a header of 2^63 bytes": _written(MEMORY, _header(2**63, b"{}")),
    "a header of 100 MB that is not there": _written(MEMORY, _header(100_000_000, b"{}")),
    "a header that nests": _written(MEMORY, _header(40_000, b"[" * 40_000)),
    "a shape of 2^62 numbers": _written(MEMORY, _header(len(_entry([2**31, 2**31], 4)), _entry([2**31, 2**31], 4))),
    "a negative shape": _written(MEMORY, _header(len(_entry([-1], 4)), _entry([-1], 4)) + b"\0" * 4),
    "offsets beyond the file": _written(MEMORY, _header(len(_entry([1], 4)), _entry([1], 4))),
    "a wrong shape": _tensors(MEMORY, lambda tensors: tensors.update(gain=torch.ones(7))),
    "a name that leads outside": _tensors(MEMORY, lambda tensors: tensors.update({"../../etc/x": torch.ones(1)})),
    "a name of a module": _tensors(ADAPTER, lambda tensors: tensors.update({"__class__": torch.ones(1)})),
    "values that are not finite": _tensors(MEMORY, lambda tensors: tensors["gain"].fill_(float("nan"))),
    "a link to a device": _linked(MEMORY, "/dev/zero"),
    "a link to another file": _linked(MEMORY, "/etc/hostname"),
    "a link to itself": _linked(MEMORY, MEMORY),
    "a manifest linked to a device": _linked("clara.json", "/dev/zero"),
    "a role that leads outside": _changed("clara.json", lambda values: values.update(roles=["../../../etc"])),
    "a manifest that nests": _written("clara.json", b'{"format_version": ' + b"[" * 100_000),
    "a window of 10^18 tokens": _changed(
        "clara.json", lambda values: values["compression"].update(window_tokens=10**18)
    ),
    "a width of 10^12": _changed("clara.json", lambda values: values.update(hidden_size=10**12)),
    "a rank of 10^9": _changed("clara.json", lambda values: values["lora"].update(rank=10**9)),
    "a base model outside": _changed("clara.json", lambda values: values.update(base_model="../../../etc")),
    "an unknown key": _changed("clara.json", lambda values: values.update(auto_map={"AutoModel": "evil.Model"})),
}
OFFICIAL: dict[str, Spoil] = {
    "code": _pickled("adapters.pth", Code),
    "code in a dictionary": _pickled("adapters.pth", lambda mark: {"encoder_adapter": {"x": Code(mark)}}),
    "code in the layers": _pickled("decoder_first_last_layers.pth", Code),
    "code in an old pickle": _old_pickle,
    "an archive that grows": _bomb,
    "parts outside the archive": _names_outside,
    "a link to a device": _linked("adapters.pth", "/dev/zero"),
    "a link to another file": _linked("adapters.pth", "/etc/hostname"),
    "code named in the configuration": _changed("config.json", lambda v: v.update(lora="__import__('os')")),
    "a configuration that nests": _written("config.json", b"[" * 100_000),
    "a configuration linked to a device": _linked("config.json", "/dev/zero"),
    "a rank of 10^9": _changed("config.json", lambda values: values.update(lora_r=10**9)),
    "a window of 10^18 tokens": _changed("config.json", lambda values: values.update(doc_max_length=10**18)),
}


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """At most 8 GB more than there is: what a fault would take must not take the machine along."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 8 * 10**9, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("case", NATIVE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_native_checkpoint(case: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(tiny_checkpoint, folder)
    NATIVE[case](folder)
    with pytest.raises(ClaraError):
        ClaraModel.load(folder, dtype="fp32")
    assert not marked(folder).exists()


@pytest.mark.parametrize("case", OFFICIAL)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_checkpoint_in_apples_format(case: str, tiny_base: Path, tmp_path: Path) -> None:
    folder = content(tiny_base).write(tmp_path / "bad")
    OFFICIAL[case](folder)
    with pytest.raises(ClaraError):
        ClaraModel.load(folder, base=str(tiny_base), dtype="fp32")
    assert not marked(folder).exists()
