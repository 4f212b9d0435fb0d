"""``clara push`` and ``clara pull``, and models by hub id, against a stand-in of the hub's HTTP API over loopback.

The real client talks to it: routes, hashes, resumed downloads and its cache are huggingface-hub's own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from calling import Clara
from huggingface_hub import constants

from clara.errors import CheckpointError, HubError
from clara.model import ClaraModel, checkpoint
from clara.model.hub import checkpoint as hub_checkpoint
from hub_server import HubState

pytest_plugins = ["cli_fixtures", "hub_fixtures"]

# Of huggingface-hub 2.4 in its own upload of large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

REPO = "someone/tiny-clara"


def push(folder: Path, base: str = "someone/tiny-base", **options: object) -> hub_checkpoint._Pushed:
    return hub_checkpoint.push(folder, REPO, base=base, **options)  # type: ignore[arg-type]


def test_push_and_pull_are_inverse(clara: Clara, hub_state: HubState, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pushed = clara("push", tiny_checkpoint, REPO, "--base", "someone/tiny-base", "--json").json()
    assert pushed["repo"] == REPO
    assert pushed["commit"] in hub_state.repos[REPO].commits
    files = hub_state.files(REPO)
    assert set(pushed["files"]) == set(files) - {".gitattributes"}
    assert not any("model" in path and "adapter" not in path for path in files), "base weights are never sent"
    out = tmp_path / "pulled"
    pulled = clara("pull", REPO, "--out", out, "--json").json()
    assert pulled == {"repo": REPO, "folder": str(out)}
    theirs, ours = checkpoint.read_manifest(out), checkpoint.read_manifest(tiny_checkpoint)
    assert theirs.base_model == "someone/tiny-base"
    assert theirs == ours.model_copy(update={"base_model": "someone/tiny-base"})
    for path in tiny_checkpoint.rglob("*.safetensors"):
        assert (out / path.relative_to(tiny_checkpoint)).read_bytes() == path.read_bytes()
    assert not any(path.is_symlink() for path in out.rglob("*")), "a copy stands without the cache"
    base = ours.base_model
    assert ClaraModel.load(out, base=base).fingerprint == ClaraModel.load(tiny_checkpoint).fingerprint


def test_what_is_pushed_names_no_folder_of_this_machine(hub_state: HubState, tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"named '/.*', which nobody else has; say its hub id with --base"):
        hub_checkpoint.push(tiny_checkpoint, REPO)
    assert REPO not in hub_state.repos
    push(tiny_checkpoint)
    files = hub_state.files(REPO)
    here = str(checkpoint.read_manifest(tiny_checkpoint).base_model).encode()
    assert not [path for path, data in files.items() if here in data]
    card = files["README.md"].decode()
    assert "base_model: someone/tiny-base" in card
    assert "library_name: clara-rag" in card
    assert card.endswith("# A tiny checkpoint for tests\n")
    config = json.loads(files["adapters/compressor/adapter_config.json"])
    assert config["base_model_name_or_path"] == "someone/tiny-base"


def test_a_repository_is_private_if_asked_for(clara: Clara, hub_state: HubState, tiny_checkpoint: Path) -> None:
    assert clara("push", tiny_checkpoint, REPO, "--base", "a/b", "--private", "--message", "hello").code == 0
    assert hub_state.repos[REPO].private
    assert hub_state.repos[REPO].messages[-1] == "hello"


def test_a_branch_is_made_and_pulled(clara: Clara, hub_state: HubState, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert clara("push", tiny_checkpoint, REPO, "--base", "a/b", "--revision", "v2").code == 0
    assert "clara.json" in hub_state.files(REPO, "v2")
    assert "clara.json" not in hub_state.files(REPO)
    failed = clara("pull", REPO, "--out", tmp_path / "no")
    assert failed.code == 2
    assert "holds no checkpoint" in failed.err
    for number, name in enumerate(([f"{REPO}@v2"], [REPO, "--revision", "v2"])):
        assert clara("pull", *name, "--out", tmp_path / str(number)).code == 0
        assert checkpoint.is_checkpoint(tmp_path / str(number))


def test_a_second_push_leaves_nothing_of_the_first(hub_state: HubState, tiny_checkpoint: Path) -> None:
    push(tiny_checkpoint)
    hub_state.add(REPO, {**hub_state.files(REPO), "adapters/query_reasoner/adapter_model.safetensors": b"old"})
    pushed = push(tiny_checkpoint)
    assert set(hub_state.files(REPO)) == {*pushed.files, ".gitattributes"}


def test_no_token_and_a_broken_checkpoint_are_said(
    clara: Clara, hub_state: HubState, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Path(shutil.copytree(tiny_checkpoint, tmp_path / "broken"))
    weights = broken / "adapters/compressor/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    failed = clara("push", broken, REPO, "--base", "a/b")
    assert failed.code == 2
    assert "adapter_model.safetensors cannot be read" in failed.err
    weights.unlink()
    assert "the checkpoint has no" in clara("push", broken, REPO, "--base", "a/b").err
    for name in ("tiny", "a/b/c", "a/b@c"):
        assert "is no repository's name" in clara("push", tiny_checkpoint, name, "--base", "a/b").err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    failed = clara("push", tiny_checkpoint, REPO, "--base", "a/b")
    assert failed.code == 2
    assert "log in: hf auth login" in failed.err
    assert REPO not in hub_state.repos


def test_offline_is_honoured(
    clara: Clara, hub_state: HubState, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tiny_checkpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub_state.fetched)
    failed = clara("push", tiny_checkpoint, "someone/other", "--base", "a/b")
    assert failed.code == 2
    assert "HF_HUB_OFFLINE is set; unset it and push again" in failed.err
    failed = clara("pull", REPO, "--out", tmp_path / "out")
    assert failed.code == 2
    assert f"HF_HUB_OFFLINE is set); fetch it once with a network: clara pull {REPO}" in failed.err
    assert (len(hub_state.fetched), list(hub_state.repos)) == (before, [REPO])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert clara("pull", REPO).code == 0
    fetched = len(hub_state.fetched)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    out = clara("pull", REPO, "--out", tmp_path / "out", "--json").json()
    assert checkpoint.is_checkpoint(Path(out["folder"]))
    assert len(hub_state.fetched) == fetched


WEIGHTS = "adapters/generator/adapter_model.safetensors"


def test_a_transfer_that_breaks_off_leaves_nothing_that_loads(
    hub_state: HubState, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tiny_checkpoint)
    name, out = hub_checkpoint._HubName(REPO), tmp_path / "out"
    hub_state.cut[WEIGHTS] = 500
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits longer after each attempt
    with pytest.raises(HubError, match="could not be had from the hub"):
        hub_checkpoint.pull(name, out)
    assert list(tmp_path.glob("*out*")) == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="is not wholly on this machine"):
        ClaraModel.load(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_state.cut.clear()
    assert checkpoint.is_checkpoint(hub_checkpoint.pull(name, out))


def test_a_pull_that_is_killed_leaves_nothing_that_loads(
    hub_state: HubState, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    push(tiny_checkpoint)
    hub_state.stall[WEIGHTS] = threading.Event()
    out = tmp_path / "out"
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub_state.url}
    command = [sys.executable, "-m", "clara.cli", "pull", REPO, "--out", str(out)]
    pulling = subprocess.Popen(
        command, env={**environment, "HF_HUB_CACHE": constants.HF_HUB_CACHE}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while WEIGHTS not in hub_state.fetched and time.monotonic() < deadline:
        time.sleep(0.05)
    assert WEIGHTS in hub_state.fetched
    pulling.send_signal(signal.SIGKILL)
    assert pulling.wait() == -signal.SIGKILL
    assert not out.exists()
    hub_state.stall.pop(WEIGHTS).set()
    # What the killed one kept is used, and completed.
    hub_checkpoint.pull(hub_checkpoint._HubName(REPO), out)
    assert (out / WEIGHTS).read_bytes() == (tiny_checkpoint / WEIGHTS).read_bytes()


def test_a_folder_that_is_something_else_is_not_replaced(
    clara: Clara, hub_state: HubState, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    push(tiny_checkpoint)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    failed = clara("pull", REPO, "--out", tmp_path / "mine")
    assert failed.code == 2
    assert "exists and is not a checkpoint" in failed.err
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    nowhere = clara("pull", REPO, "--out", tmp_path / "mine" / "letter.txt" / "here")
    assert nowhere.code == 2
    assert "cannot be made" in nowhere.err
    assert hub_state.fetched == []
    assert "is no repository's name" in clara("pull", "not a name").err


def test_a_model_by_its_hub_id(clara: Clara, hub_state: HubState, tiny_checkpoint: Path, tmp_path: Path) -> None:
    push(tiny_checkpoint)
    base = checkpoint.read_manifest(tiny_checkpoint).base_model
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The lighthouse keeper wrote three letters.")
    options = ("--store", tmp_path / "store", "--base", base)
    assert clara("index", tmp_path / "docs", *options, "--model", REPO).code == 0
    assert WEIGHTS in hub_state.fetched
    answer = clara("ask", "Who wrote letters?", *options, "--max-new-tokens", 3, "--json").json()
    assert answer["citations"][0]["document"].endswith("a.txt")
    assert clara("info", "--store", tmp_path / "store", "--json").json()["model"] == REPO
    failed = clara("ask", "Who?", *options, "--model", "nobody/nothing")
    assert failed.code == 2
    assert "nobody/nothing is neither a local folder nor does the hub show it" in failed.err
