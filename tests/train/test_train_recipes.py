"""Recipes are settings that the trainer takes; the tiny one goes through every stage from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from train_cases import passages, questions

from clara.cli import main
from clara.config import read_toml
from clara.data import write_records
from clara.model import checkpoint
from clara.train.chain import chain_of
from clara.train.stages import STAGES, stage_of
from clara.train.stages.selecting import EndToEndStage
from clara.train.stages.writing import InstructStage, ScpStage

ROOT = Path(__file__).parents[2]
MEASURING = {
    "results.toml",
    "results-short.toml",
    "results-baselines.toml",
    "dro-smollm2-135m.toml",
    "dro-smollm2-135m-cpu.toml",
}
"""What ``clara eval`` and the baseline DRO read, not the trainer."""
HISTORY = sorted((ROOT / "recipes" / "history").glob("*.toml"))
RECIPES = [*sorted(path for path in (ROOT / "recipes").glob("*.toml") if path.name not in MEASURING), *HISTORY]
LOSSES = [7.407, 7.7387, 7.2766, 7.3889]
"""Of stage ``scp`` in the test of the tiny recipe; tests/train/stage_losses.py compares all stages to the bit."""
PAPER = ("mistral-7b", "phi-4-mini")


def stages_of(recipe: Path) -> tuple[str, ...]:
    """The stages that a recipe is for."""
    if recipe.stem == "tiny":
        return STAGES
    named = tuple(name for name in STAGES if re.search(rf"\b{name}\b", recipe.stem))
    return named or (("instruct",) if recipe.stem.startswith("pisco") else ("scp",))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.stem))
def test_every_recipe_is_one_of_its_stages(path: Path) -> None:
    for name in stages_of(path):
        if "chain" in read_toml(path):
            assert chain_of(read_toml(path), Path("runs"), source=path.name).runs
            continue
        stage_of(name, read_toml(path), source=path.name)
    assert path.read_text(encoding="utf-8").startswith("# "), "it says what it is for"


def test_the_history_is_a_chain() -> None:
    table = (ROOT / "recipes" / "history" / "README.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| (\d\d-[a-z-]+)", table, re.MULTILINE)
    assert [step[:2] for step in steps] == [f"{number:02}" for number in range(1, len(steps) + 1)]
    assert set(steps) >= {path.stem for path in HISTORY}
    for path in HISTORY[1:]:
        start = read_toml(path)["start"].removeprefix("runs/").removesuffix("/checkpoint")
        assert steps.index(start) == steps.index(path.stem) - 1, f"{path.stem} goes on from the step before"


@pytest.mark.parametrize("backbone", PAPER)
def test_the_papers_settings(backbone: str) -> None:
    """clara.md sections 1, 3, 4 and 5."""
    names = ("scp", "instruct", "end-to-end")
    scp, instruct, last = (
        stage_of(name, read_toml(ROOT / "recipes" / f"{backbone}-{name}.toml"), source=name).config for name in names
    )
    assert isinstance(scp, ScpStage.Config)
    assert isinstance(instruct, InstructStage.Config)
    assert isinstance(last, EndToEndStage.Config)
    assert scp.compression.model_dump() == {
        "window_tokens": 256,
        "rates": (16,),
        "read_out": "memory_tokens",
        "positions": "appended",
        "attention": "full",
        "residual": False,
        "gain": False,
        "pooled_input": False,
    }
    assert scp.lora.model_dump() == {"rank": 16, "alpha": 32.0, "dropout": 0.1}
    for config in (scp, instruct):
        assert (config.learning_rate, config.batch_size, config.warmup, config.mse_weight) == (1e-4, 128, 0.03, 0.1)
    assert scp.steps == 2_000_000 // 128
    assert instruct.steps == -(-453_000 // 128)
    assert (last.learning_rate, last.batch_size, last.temperature) == (5e-6, 32, 0.02)
    assert (last.candidates, last.top_k, last.train_compressor) == (20, 5, False)
    assert instruct.start == f"runs/{backbone}-scp/checkpoint"
    assert last.start == f"runs/{backbone}-instruct/checkpoint"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("deepspeed-zero2", "DEEPSPEED"), ("deepspeed-zero3", "DEEPSPEED")],
)
def test_accelerate_takes_its_configurations(name: str, kind: str) -> None:
    config = load_config_from_file(str(ROOT / "recipes" / "accelerate" / f"{name}.yaml"))
    assert str(config.distributed_type.value) == kind
    assert config.mixed_precision == "no", "the recipe's dtype decides"
    if name.startswith("deepspeed"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])
    if name == "fsdp":
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([str(argument) for argument in (*arguments, "--json")]) == 0, capsys.readouterr().err
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_the_tiny_recipe_goes_through_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data = tmp_path / "tiny-base", tmp_path / "records.jsonl"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "tiny_base.py"), str(base)], check=True, capture_output=True)
    write_records(data, [*passages(10), *questions(8)])
    common = ("--data", data, "--config", ROOT / "recipes" / "tiny.toml", "--base", base, "--cache", tmp_path / "cache")
    folders: dict[str, Path] = {}
    for stage, start in (
        ("scp", None),
        ("instruct", "scp"),
        ("end-to-end", "instruct"),
        ("retriever", "scp"),
        ("reader", None),
    ):
        given = () if start is None else ("--start", folders[start])
        report = run(capsys, "train", stage, *common, "--out", tmp_path / stage, *given)
        assert report["steps"] == 4
        assert report["cross_entropy"] > 0
        assert report["held_out"] > 0
        folders[stage] = Path(report["checkpoint"])
        lines = [json.loads(line) for line in (tmp_path / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        if stage == "scp":
            assert [line["cross_entropy"] for line in lines] == pytest.approx(LOSSES, rel=1e-3)
        last = lines[-1]["validation"]
        assert (last["f1"] is not None) == (stage != "retriever")
        assert (last["recall_at_5"] is not None) == (stage in {"end-to-end", "retriever"})
        assert (folders[stage] / "curves.png").is_file()
    stages = {name: checkpoint.read_manifest(folders[name]).stage for name in folders if name != "reader"}
    assert stages == {"scp": "scp", "instruct": "instruct", "end-to-end": "end_to_end", "retriever": "retriever"}
    roles = checkpoint.read_manifest(folders["end-to-end"]).roles
    assert set(roles) == {"compressor", "query_reasoner", "generator"}
