"""doctor: each check in each of its outcomes that a test can bring about."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from calling import Clara
from safetensors.torch import load_file, save_file

pytest_plugins = ["cli_fixtures"]

NAMES = [
    *("python", "packages", "torch", "number format", "disk", "checkpoint", "base model", "end to end", "store"),
]


def test_a_sound_installation(clara: Clara, tiny_checkpoint: Path, store: Path, tmp_path: Path) -> None:
    called = clara("doctor", "--store", store, "--cache", tmp_path, "--json", "--threads", 1)
    found = called.json()
    assert list(found) == ["ok", "checks"]
    assert found["ok"] is True
    assert [check["name"] for check in found["checks"]] == NAMES
    assert all(list(check) == ["name", "status", "detail", "remedy"] for check in found["checks"])
    by_name = {check["name"]: check for check in found["checks"]}
    assert "torch 2." in by_name["packages"]["detail"]
    assert str(tiny_checkpoint) in by_name["checkpoint"]["detail"]
    assert by_name["checkpoint"]["status"] == "warn"  # the manifest says: untrained
    assert "3 documents" in by_name["store"]["detail"]
    assert {by_name[name]["status"] for name in ("base model", "end to end", "store")} == {"ok"}
    people = clara("doctor", "--store", store, "--cache", tmp_path, "--threads", 1)
    assert people.code == 0
    assert "ok    python: 3." in people.out
    assert "      -> train it" in people.out


def test_a_missing_model_fails_with_its_remedy(clara: Clara, tmp_path: Path) -> None:
    called = clara("doctor", "--model", tmp_path / "gone", "--cache", tmp_path / "cache")
    assert called.code == 1
    assert called.err == ""
    assert "fail  checkpoint: " in called.out
    assert "end to end" not in called.out
    assert "warn  base model: smollm2-135m is not on this machine yet" in called.out
    assert not list((tmp_path / "cache").glob("smollm2-135m-*"))  # nothing was fetched


def test_another_base_model_is_noticed(
    clara: Clara, tiny_checkpoint: Path, tiny_base: Path, store: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    called = clara("doctor", "--store", store, "--model", tiny_checkpoint, "--base", other)
    assert called.code == 1
    assert "fail  base model: " in called.out
    assert "not what the checkpoint was trained on" in called.out


def test_a_store_of_another_model_fails(clara: Clara, tiny_checkpoint: Path, store: Path, tmp_path: Path) -> None:
    other, copy = tmp_path / "other", tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, other)
    table = load_file(other / "memory.safetensors")
    save_file({name: tensor + 0.5 for name, tensor in table.items()}, other / "memory.safetensors")
    called = clara("doctor", "--store", store, "--model", other, "--json")
    assert called.code == 1
    last = json.loads(called.out)["checks"][-1]
    assert (last["name"], last["status"]) == ("store", "fail")
    assert "--model" in last["remedy"]
    shutil.copytree(store, copy)
    (copy / "store.json").write_text("{")
    called = clara("doctor", "--store", copy, "--model", tiny_checkpoint, "--json")
    assert json.loads(called.out)["checks"][-1]["status"] == "fail"


def test_wrong_package_versions_are_named(clara: Clara, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy>=99", "no-such-package>=1", "other; extra == 'dev'"])
    called = clara("doctor", "--model", tmp_path / "gone", "--cache", tmp_path / "cache")
    assert called.code == 1
    line = next(line for line in called.out.splitlines() if "packages" in line)
    assert line.startswith("fail  packages: numpy ")
    assert "(needs >=99)" in line
    assert "no-such-package is missing" in line
    assert "other" not in line
