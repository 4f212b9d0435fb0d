"""Checkpoints by hub id: what a name means, what is fetched, and Apple's repositories with a folder for each rate."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from official_folders import Content, content

from clara.errors import CheckpointError, HubError
from clara.model import ClaraModel, create
from clara.model.apple.write import convert
from clara.model.hub import base as hub_base
from clara.model.hub import checkpoint as hub_checkpoint
from clara.model.hub.checkpoint import _HubName, parse
from clara.model.placement import Placement
from hub_server import HubState

pytest_plugins = ["hub_fixtures"]

REPO = "apple/CLaRa-tiny"


def files_of(made: Content, folder: Path) -> dict[str, bytes]:
    made.write(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def apple(hub_state: HubState, tiny_base: Path, tmp_path: Path) -> HubState:
    """A repository as Apple's: code and a card at its root, a folder for each rate."""
    files = {"README.md": b"# CLaRa", "modeling_clara.py": b"raise SystemExit"}
    for rate in (16, 8):
        made = files_of(content(tiny_base, compr_rate=rate), tmp_path / f"made-{rate}")
        files |= {f"compression-{rate}/{name}": data for name, data in made.items()}
        files[f"compression-{rate}/modeling_clara.py"] = b"raise SystemExit"
    hub_state.add(REPO, files)
    return hub_state


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apple/CLaRa-7B-Instruct", _HubName("apple/CLaRa-7B-Instruct")),
        ("apple/CLaRa-7B-Instruct/compression-16", _HubName("apple/CLaRa-7B-Instruct", "compression-16")),
        ("a/b/c/d@v1.0", _HubName("a/b", "c/d", "v1.0")),
        ("a/b@refs/pr/1", _HubName("a/b", "", "refs/pr/1")),
        ("smollm2", None),
        ("/a/b", None),
        ("./a/b", None),
        ("../a/b", None),
        ("a/../b", None),
        ("a/b/", None),
        ("a b/c", None),
        ("~/a", None),
    ],
)
def test_names(name: str, expected: _HubName | None) -> None:
    assert parse(name) == expected
    if expected is not None:
        assert str(expected) == name


def test_a_published_model_loads_by_its_id(apple: HubState, tiny_base: Path) -> None:
    lowest = ClaraModel.load(REPO, base=str(tiny_base), dtype="fp32")
    assert lowest.rates == (8,)
    assert sorted(set(apple.fetched)) == [
        "compression-16/config.json",  # to tell the rates
        "compression-8/adapters.pth",
        "compression-8/config.json",
        "compression-8/decoder_first_last_layers.pth",
    ]
    other = ClaraModel.load(f"{REPO}/compression-16", base=str(tiny_base), dtype="fp32")
    assert other.rates == (16,)
    assert other.fingerprint != lowest.fingerprint


def test_a_published_model_is_converted_by_its_id(apple: HubState, tiny_base: Path, tmp_path: Path) -> None:
    for number, (name, rate) in enumerate(((REPO, 8), (f"{REPO}/compression-16", 16))):
        out = tmp_path / str(number)
        manifest = convert(Path(name), out, tmp_path, base_name=str(tiny_base), progress=lambda *_: None)
        assert manifest.compression.rates == (rate,)
    assert "compression-8/adapters.pth" in apple.fetched
    with pytest.raises(HubError, match="nobody/nothing is neither a local folder nor does the hub show it"):
        convert(Path("nobody/nothing"), tmp_path / "no", tmp_path, base_name=None, progress=lambda *_: None)


def test_what_was_fetched_once_works_offline(apple: HubState, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = _HubName(REPO, "compression-16")
    with pytest.raises(HubError, match=r"nothing is downloaded here\); fetch it once with a network: clara pull"):
        hub_checkpoint.fetch(name, local_only=True)
    online = hub_checkpoint.fetch(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(apple.fetched)
    assert hub_checkpoint.fetch(name) == online
    assert ClaraModel.load(str(name), base=str(tiny_base)).rates == (16,)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set\); fetch it once with a network: clara pull apple"):
        hub_checkpoint.fetch(_HubName(REPO, "compression-8"))
    assert len(apple.fetched) == count


def test_a_local_folder_wins(apple: HubState, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official code looks a relative path up on the hub first."""
    content(tiny_base, compr_rate=4).write(tmp_path / "apple" / "CLaRa-tiny")
    monkeypatch.chdir(tmp_path)
    assert ClaraModel.load(REPO, base=str(tiny_base)).rates == (4,)
    assert apple.fetched == []


def test_what_the_hub_does_not_have(hub_state: HubState, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_state.add("someone/base", {"config.json": b"{}", "model.safetensors": b"weights"})
    hub_state.add("someone/many", {"a/clara.json": b"{}", "b/clara.json": b"{}"})
    with pytest.raises(HubError, match=r"holds no checkpoint: neither clara\.json nor adapters\.pth"):
        hub_checkpoint.fetch(_HubName("someone/base"))
    with pytest.raises(HubError, match="several checkpoints; give one of someone/many/a, someone/many/b"):
        hub_checkpoint.fetch(_HubName("someone/many"))
    with pytest.raises(HubError, match="has no revision 'v9'"):
        hub_checkpoint.fetch(_HubName("someone/base", revision="v9"))
    with pytest.raises(HubError, match="neither a local folder nor does the hub show it"):
        hub_checkpoint.fetch(_HubName("someone/gone"))
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client tries again, and again
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="could not be had from the hub"):
        hub_checkpoint.fetch(_HubName("someone/base"))


def test_the_papers_base_models_are_known_by_name(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published checkpoint names its base by a folder of the machine it was trained on."""
    named = content(tiny_base, decoder_model_name="/mnt/models/Mistral-7B-Instruct-v0.2").write(tmp_path / "made")
    with pytest.raises(CheckpointError, match=r"'/mnt/models/Mistral-7B-Instruct-v0\.2', which.*mistralai/Mistral-7B"):
        create.from_checkpoint(named, tmp_path, Placement())
    monkeypatch.setitem(hub_base.KNOWN_BASES, "Mistral-7B-Instruct-v0.2", str(tiny_base))
    assert create.from_checkpoint(named, tmp_path, Placement()).manifest.base_model == str(tiny_base)
