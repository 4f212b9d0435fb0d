"""A chain of runs: what its recipe may say, and the chain to the embedded checkpoint on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from train_cases import passages, questions

from clara.cli import main
from clara.config import read_toml
from clara.data import DataRecord, write_records
from clara.errors import ConfigError
from clara.model import ClaraModel, checkpoint
from clara.train.chain import chain_of
from clara.train.stages.selecting import EndToEndStage
from clara.train.stages.writing import ScpStage

ROOT = Path(__file__).parents[2]
RECIPE = read_toml(ROOT / "recipes" / "smollm2-135m.toml")


def test_the_chain_to_the_embedded_checkpoint() -> None:
    chain = chain_of(RECIPE, Path("runs"), source="recipe")
    stages = {run.name: run.stage for run in chain.runs}
    assert list(stages) == ["read-out", "scp-16x", "scp", "instruct", "likelihoods", "end-to-end"]
    first, second, last = (stages[name].config for name in ("read-out", "scp-16x", "end-to-end"))
    assert isinstance(first, ScpStage.Config)
    assert isinstance(second, ScpStage.Config)
    assert isinstance(last, EndToEndStage.Config)
    assert (first.start, second.start) == (None, "runs/read-out/checkpoint")
    assert (first.freeze_encoder, second.freeze_encoder) == (True, False)
    assert second.generator_learning_rate == pytest.approx(second.learning_rate / 6, rel=0.05)
    assert (last.learn_from, last.candidates, last.train_generator) == ("answers", 20, False)
    assert chain.result == Path("runs/checkpoint")
    assert stages["read-out"].faults() == [], "the others start from what is not there yet"


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([{"run": "a", "stage": "scp", "start": "b"}], "run a names 'b', which no run before it is"),
        ([{"run": "a", "stage": "scp"}, {"run": "a", "stage": "scp"}], "two runs are named 'a'"),
        ([{"run": "checkpoint", "stage": "scp"}], "name of the result"),
        ([{"run": "a/b", "stage": "scp"}], "pattern"),
        ([{"run": "a", "stage": "other"}], "stage"),
        ([{"run": "a", "stage": "scp", "settings": {"top_k": 2}}], "recipe, a: 1 fault"),
        ([], "at least 1"),
    ],
)
def test_a_chain_that_cannot_be(chain: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chain_of({"chain": chain}, Path("runs"), source="recipe")


def test_no_chain_and_a_calibration_of_nothing() -> None:
    with pytest.raises(ConfigError, match=r"recipe has no \[\[chain\]\]"):
        chain_of({"steps": 2}, Path("runs"), source="recipe")
    with pytest.raises(ConfigError, match="calibrate names 'b', which no run is"):
        chain_of({"chain": [{"run": "a", "stage": "scp"}], "calibrate": {"of": "b"}}, Path("runs"), source="recipe")


def shortened(value: Any, key: str = "") -> Any:  # noqa: ANN401 - as read from TOML
    """The recipe as it is, but for what a tiny model and a test cannot do."""
    small: Mapping[str, Any] = {
        "steps": 1,
        "batch_size": 4,
        "held_out": 0,
        "save_every": 1,
        "candidates": 4,
        "window_tokens": 64,
        "layers": [1],
        "rank": 4,
        "documents": 3,
    }
    if key in small:
        return small[key]
    if isinstance(value, dict):
        return {name: shortened(one, name) for name, one in value.items() if name != "mix"}
    return [shortened(one) for one in value] if isinstance(value, list) else value


def toml(value: Any) -> str:  # noqa: ANN401 - as above
    """A value in TOML; tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(one)}" for name, one in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


def test_the_whole_chain_on_a_tiny_model(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, data, out = tmp_path / "recipe.toml", tmp_path / "records.jsonl", tmp_path / "out"
    short = shortened(RECIPE)
    short["calibrate"] |= {"limit": 2}
    recipe.write_text("".join(f"{name} = {toml(one)}\n" for name, one in short.items()), encoding="utf-8")
    records: list[DataRecord] = [*passages(12), *questions(6)]
    write_records(data, records)
    command = ["train", "chain", "--config", recipe, "--data", data, "--out", out, "--base", tiny_base]
    command += ["--cache", tmp_path / "cache", "--json"]
    assert main([str(argument) for argument in command]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in report["runs"]] == [entry["run"] for entry in RECIPE["chain"]]
    assert all(run["steps"] == 1 and run["cross_entropy"] > 0 for run in report["runs"])
    manifest = checkpoint.read_manifest(Path(report["checkpoint"]))
    assert (manifest.mixed, manifest.refuses, manifest.late_interaction) == (True, True, True)
    assert manifest.compression.read_out == "layers"
    assert manifest.trained["calibrated"]
    model = ClaraModel.load(report["checkpoint"], dtype="fp32")
    assert model.generate("How high?", model.compress(["The tower is 330 metres high."])).tokens.memory == 16
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert main([str(argument) for argument in command]) == 0
    again = json.loads(capsys.readouterr().out)
    assert all("steps" not in run for run in again["runs"]), "what is there is not trained again"
    assert written == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    write_records(data, records[1:])
    assert main([str(argument) for argument in command]) != 0
    assert "holds a run with other data" in capsys.readouterr().err
