"""The loop: a killed run goes on as if nothing had happened, and only trained weights are kept."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import load_file
from train_cases import COMPRESSION, changed, losses, made, passages, questions

from clara.errors import TrainingError
from clara.model import ClaraModel, checkpoint
from clara.train.log import TrainProgress
from clara.train.loop import _last_whole_checkpoint
from clara.train.run import _claimed, train


@pytest.fixture(scope="module")
def undisturbed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(made("scp", tiny_base), passages(20), out, cache=out)
    return out


def run_and_kill(base: Path, out: Path, step: int) -> None:
    """Start a run in a process of its own and kill it while it hangs after a step."""
    program = Path(__file__).with_name("train_cases.py")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(program), str(base), str(out), str(step)], stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 240
        while not (out / "log.jsonl").is_file() or len(losses(out)) < step:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_with_the_same_losses(tiny_base: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    run_and_kill(tiny_base, out, 5)
    assert not (out / "checkpoint").exists()
    assert _last_whole_checkpoint(out) == out / "checkpoint-4"
    assert losses(out) == losses(undisturbed)[:5]
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "cross')  # a torn line

    told: list[TrainProgress] = []
    folder = train(made("scp", tiny_base), passages(20), out, cache=out, on_progress=told.append)
    assert [progress.step for progress in told] == [5, 6]
    assert losses(out) == losses(undisturbed)
    fingerprints = [ClaraModel.load(one, dtype="fp32").fingerprint for one in (folder, undisturbed / "checkpoint")]
    assert fingerprints[0] == fingerprints[1]
    for role in ("compressor", "generator"):
        name = f"adapters/{role}/adapter_model.safetensors"
        assert (folder / name).read_bytes() == (undisturbed / "checkpoint" / name).read_bytes()


def test_what_a_run_leaves(tiny_base: Path, undisturbed: Path) -> None:
    log = losses(undisturbed)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in log if line["held_out"] is not None] == [3, 6]
    assert len({line["cross_entropy"] for line in log}) == 6
    manifest = checkpoint.read_manifest(undisturbed / "checkpoint")
    assert manifest.stage == "scp"
    assert manifest.base_model == str(tiny_base)
    assert manifest.trained["examples"] == 24
    assert manifest.trained["records"] == {"a": 17}
    card = (undisturbed / "checkpoint" / "README.md").read_text()
    assert "Stage `scp`: 6 steps, 24 examples" in card
    assert "| a | 17 |" in card


def test_checkpoints_hold_trained_weights_only(undisturbed: Path) -> None:
    assert sorted(path.name for path in undisturbed.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    with safe_open(undisturbed / "checkpoint-6" / "trained.safetensors", "pt") as file:
        names = list(file.keys())
        dtypes = {file.get_tensor(name).dtype for name in names}
    assert dtypes == {torch.float32}
    table = {name for name in names if name.startswith("table.")}
    assert table == {"table.tokens", "table.gain", "table.bias", "table.residual_gain"}
    adapters = set(names) - table
    assert len(adapters) == 2 * 2 * 7 * 2  # roles, layers, linear layers, A and B
    assert all(("lora_A" in name or "lora_B" in name) and name.startswith("backbone.") for name in adapters)
    assert not list((undisturbed / "checkpoint-6").glob("model*")), "the base is not written again"


def test_a_torn_checkpoint_counts_for_nothing(tiny_base: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "torn"))
    shutil.rmtree(out / "checkpoint")
    (out / "checkpoint-6" / "whole").unlink()
    (out / "checkpoint-6" / "trained.safetensors").write_bytes(b"half")
    told: list[TrainProgress] = []
    train(made("scp", tiny_base), passages(20), out, cache=out, on_progress=told.append)
    assert [progress.step for progress in told] == [5, 6], "goes on from step 4"
    assert losses(out) == losses(undisturbed)


def test_what_a_user_puts_beside_the_checkpoints_stays(tiny_base: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    kept = [out / "checkpoint-backup", out / "checkpoint-9"]
    for folder in kept:
        shutil.copytree(out / "checkpoint", folder)
    (out / "checkpoint-notes.txt").write_text("Dear")
    (out / "checkpoint-8").touch()
    train(made("scp", tiny_base), passages(20), out, cache=out)
    assert all(checkpoint.is_checkpoint(folder) for folder in kept)
    assert (out / "checkpoint-notes.txt").read_text() == "Dear"
    assert _last_whole_checkpoint(out) == out / "checkpoint-6"


def test_a_finished_run_is_not_trained_again(tiny_base: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "again"))
    told: list[TrainProgress] = []
    train(made("scp", tiny_base), passages(20), out, cache=out, on_progress=told.append)
    assert told == []
    assert losses(out) == losses(undisturbed)


def test_other_settings_in_the_same_folder(tiny_base: Path, undisturbed: Path) -> None:
    before = sorted(undisturbed.iterdir())
    with pytest.raises(TrainingError, match="holds a run with other settings; choose another --out"):
        train(made("scp", tiny_base, steps=7), passages(20), undisturbed, cache=undisturbed)
    with pytest.raises(TrainingError, match="holds a run with other settings"):
        train(made("instruct", tiny_base), passages(20), undisturbed, cache=undisturbed)
    with pytest.raises(TrainingError, match="holds a run with other data; choose another --out"):
        train(made("scp", tiny_base), passages(21), undisturbed, cache=undisturbed)
    assert sorted(undisturbed.iterdir()) == before


def test_a_folder_that_is_trained_in(tiny_base: Path, undisturbed: Path) -> None:
    with (
        FileLock(undisturbed / ".lock"),
        pytest.raises(TrainingError, match=r"another process trains in .*; wait until it ends"),
    ):
        train(made("scp", tiny_base), passages(20), undisturbed, cache=undisturbed)


def test_another_lock_that_is_held_is_not_mistaken_for_the_folders(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(Timeout), _claimed(tmp_path / "run", made("scp", tiny_base), passages(2)):
        raise Timeout("cache.lock")


def test_a_run_from_before_the_data_was_recorded_goes_on(tiny_base: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "old"))
    held = json.loads((out / "config.json").read_text())
    del held["data"]
    (out / "config.json").write_text(json.dumps(held))
    train(made("scp", tiny_base), passages(20), out, cache=out)
    assert losses(out) == losses(undisturbed)


def test_the_loss_falls_when_a_few_records_are_learnt(tiny_base: Path, tmp_path: Path) -> None:
    stage = made(
        "scp",
        tiny_base,
        steps=30,
        batch_size=3,
        accumulation=1,
        learning_rate=0.02,
        held_out=0,
        save_every=100,
        dtype="fp32",
        lora={"rank": 4, "alpha": 8, "dropout": 0.0},
        restate={"repeat": 0.0},
    )
    train(stage, passages(3), tmp_path, cache=tmp_path)
    log = losses(tmp_path)
    first, last = (sum(line["cross_entropy"] for line in part) / 5 for part in (log[:5], log[-5:]))
    assert last < 0.5 * first
    assert all(line["held_out"] is None for line in log)


def test_instruct_goes_on_from_a_checkpoint(undisturbed: Path, tiny_base: Path, tmp_path: Path) -> None:
    start = undisturbed / "checkpoint"
    stage = made("instruct", tiny_base, start=str(start), steps=1, held_out=1, documents=3, distractors=1)
    folder = train(stage, questions(8), tmp_path, cache=tmp_path)
    before, after = checkpoint.read_manifest(start), checkpoint.read_manifest(folder)
    assert after.stage == "instruct"
    assert after.compression == before.compression
    assert after.base_identity == before.base_identity
    names = [f"adapters/{role}/adapter_model.safetensors" for role in ("compressor", "generator")]
    assert all((folder / name).read_bytes() != (start / name).read_bytes() for name in names), "both are trained"


def test_spans_of_information_are_counted_trained_with_and_kept(tiny_base: Path, tmp_path: Path) -> None:
    stage = made("scp", tiny_base, compression=COMPRESSION | {"spans": "information"})
    folder = train(stage, passages(20), tmp_path / "run", cache=tmp_path)
    again = changed(stage, start=str(folder), steps=1)
    last = train(again, passages(20), tmp_path / "again", cache=tmp_path)
    models = [ClaraModel.load(one, dtype="fp32") for one in (folder, last)]
    tables = [load_file(one / "memory.safetensors")["information"] for one in (folder, last)]
    assert torch.equal(*tables), "counted once, not trained"
    assert len(set(tables[0].tolist())) > 10
    assert all(model.manifest.compression.spans == "information" for model in models)
    assert models[0].compress(["Bees dance in the hive of the garden."])[0].values.shape == (16, 32)
    assert models[0].fingerprint != models[1].fingerprint
