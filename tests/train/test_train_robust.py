"""What a run survives and what it refuses: a full disk, damaged files, older settings, a service that is missing."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_cases import losses, made, passages
from transformers import TrainingArguments

from clara.errors import ConfigError, TrainingError
from clara.train.log import TrainProgress
from clara.train.loop import Best, _arguments, _last_whole_checkpoint
from clara.train.run import _check_run, train

LARGEST = 4096
"""Bytes a file may have; the log stays below it, weights do not."""


@contextmanager
def small_files() -> Iterator[None]:
    """Let writes beyond a size fail, as the kernel does where a disk or a quota is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("full_at", [3, 5], ids=["the best weights", "a checkpoint"])
def test_a_full_disk_leaves_the_checkpoint_before(tiny_base: Path, tmp_path: Path, full_at: int) -> None:
    stage = made("scp", tiny_base, evaluate_every=4, steps=8, save_every=2, dtype="fp32")
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"

    def fill(progress: TrainProgress) -> None:
        if progress.step == full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with small_files(), pytest.raises(TrainingError, match=r"cannot be written .*make room, and the same command goes"):
        train(stage, passages(20), out, cache=tmp_path, on_progress=fill)
    whole = full_at - 1
    assert _last_whole_checkpoint(out) == out / f"checkpoint-{whole}"
    assert not (out / "checkpoint").exists()
    best = Best.read(out)
    assert best is None or best.step <= whole
    told: list[int] = []
    train(stage, passages(20), out, cache=tmp_path, on_progress=lambda progress: told.append(progress.step))
    assert told == list(range(whole + 1, 9))
    train(stage, passages(20), undisturbed, cache=tmp_path)
    assert losses(out) == losses(undisturbed)
    assert Best.read(out) == Best.read(undisturbed)
    assert (out / "best.safetensors").read_bytes() == (undisturbed / "best.safetensors").read_bytes()


def test_a_run_that_diverges_ends_and_keeps_what_was_good(tiny_base: Path, tmp_path: Path) -> None:
    stage = made("scp", tiny_base, learning_rate=1e30, save_every=1, steps=8, warmup=0.25)
    with pytest.raises(TrainingError, match=r"the run has diverged: .* lower learning_rate"):
        train(stage, passages(20), tmp_path / "run", cache=tmp_path)
    last = _last_whole_checkpoint(tmp_path / "run")
    assert last is not None
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(last / "trained.safetensors").values())
    best = Best.read(tmp_path / "run")
    assert best is None or best.loss < float("inf")


@pytest.mark.parametrize(
    ("device", "message"), [("balanced", "give --device cuda"), ("cuda:2", "set CUDA_VISIBLE_DEVICES=2")]
)
def test_devices_that_training_does_not_take(device: str, message: str, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(made("scp", tiny_base), passages(20), tmp_path / "run", cache=tmp_path, device=device)
    assert not (tmp_path / "run").exists()


def test_one_process_trains_on_one_gpu(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many the Trainer would divide a batch among."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: getattr(self, "_n_gpu", 4)), raising=True)
    assert _arguments(made("scp", tiny_base).config, tmp_path, torch.device("cpu")).n_gpu <= 1


def test_damaged_best_weights_are_named(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"best.safetensors cannot be read .*; remove it"):
        train(made("scp", tiny_base, steps=1), passages(20), tmp_path, cache=tmp_path)


def test_a_run_from_before_a_setting_existed_goes_on(tiny_base: Path, tmp_path: Path) -> None:
    stage = made("scp", tiny_base, steps=2)
    train(stage, passages(20), tmp_path, cache=tmp_path)
    held = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del held["config"]["best_by"], held["config"]["keep"]
    (tmp_path / "config.json").write_text(json.dumps(held), encoding="utf-8")
    shutil.rmtree(tmp_path / "checkpoint")
    assert train(stage, passages(20), tmp_path, cache=tmp_path).is_dir()


def test_a_service_that_is_not_installed(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in {"wandb", "trackio"} else object())
    stage = made("scp", tiny_base, report_to=["tensorboard", "wandb", "trackio"])
    with pytest.raises(ConfigError, match="report_to needs packages that are not installed: pip install wandb trackio"):
        _check_run(stage, passages(20))
