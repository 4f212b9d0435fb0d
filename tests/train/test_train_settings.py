"""Settings of a run: epochs, schedules, LoRA targets, recomputed layers, a quantised base, memory, the paper's form."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from train_cases import made, passages, questions

from clara.data import DataRecord, PassageQA, QAPair, write_records
from clara.errors import ConfigError
from clara.model import ClaraModel, checkpoint
from clara.model.apple.write import export
from clara.model.attention import enable_packing
from clara.train.backbones import training_memory
from clara.train.data import PlannedBatches, TrainingData, divide
from clara.train.loop import StageModule
from clara.train.run import train
from clara.train.stages import stage_of
from clara.train.stages.base import Stage

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
PAPER: dict[str, Any] = {
    "compression": {"window_tokens": 32, "rates": (8,), "input_format": "official"},
    "lora": {"rank": 2, "alpha": 4},
}


def run(stage: Stage, out: Path, records: list[DataRecord] | None = None) -> Path:
    return train(stage, records or passages(20), out, cache=out)


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_epochs_in_place_of_steps(tiny_base: Path, tmp_path: Path) -> None:
    values = {"epochs": 1.5, "evaluate_every": 50, "held_out": 0, "save_every": 50}
    plain = {name: value for name, value in made("scp", tiny_base).config.model_dump().items() if name != "steps"}
    stage = stage_of("scp", plain | values, source="test")
    run(stage, tmp_path, passages(10))
    log = logged(tmp_path)
    assert len(log) == 4, "15 examples of 10 records, 4 a step"
    assert log[-1]["learning_rate"] < log[1]["learning_rate"], "the schedule knows the length"
    manifest = checkpoint.read_manifest(tmp_path / "checkpoint")
    assert (manifest.trained["steps"], manifest.trained["config"]["epochs"]) == (4, 1.5)
    with pytest.raises(ConfigError, match=r"steps 6 and epochs 2\.0 both say how long to train"):
        made("scp", tiny_base, epochs=2.0)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_rate_after_the_warmup(schedule: str, tiny_base: Path, tmp_path: Path) -> None:
    run(made("scp", tiny_base, schedule=schedule, warmup=0.34, held_out=0, save_every=6), tmp_path)
    rates = [line["learning_rate"] for line in logged(tmp_path)]
    assert rates[0] < rates[1] < rates[2] == 0.01
    falls = [earlier - later for earlier, later in pairwise(rates[2:])]
    if schedule == "constant":
        assert falls == [0, 0, 0]
    else:
        assert falls == pytest.approx([0.0025] * 3)


def test_lora_on_named_layers_alone(tiny_base: Path, tmp_path: Path) -> None:
    lora = LORA | {"targets": ("q_proj", "v_proj")}
    folder = run(made("scp", tiny_base, steps=2, lora=lora, held_out=0), tmp_path)
    manifest = checkpoint.read_manifest(folder)
    assert manifest.lora.targets == ("q_proj", "v_proj")
    adapter = json.loads((folder / "adapters" / "compressor" / "adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]
    stored, whole = (ClaraModel.load(folder, dtype="fp32", check_memory=check) for check in (True, False))
    memory = stored.compress(["Tower a1 is 3 metres high."])[0].values
    assert (memory == whole.compress(["Tower a1 is 3 metres high."])[0].values).all()
    with pytest.raises(ConfigError, match=r"names vproj, which no linear layer .* there are down_proj, gate_proj"):
        run(made("scp", tiny_base, lora=LORA | {"targets": ("q_proj", "vproj")}), tmp_path / "wrong")


def gradients(stage: Stage, base: Path, records: list[DataRecord], *, again: bool, packed: bool) -> tuple[Any, int]:
    """The gradients of a step, and the bytes that its forward pass keeps."""
    data = divide(records, stage)
    loaded = stage.network(data, base, "cpu", None)
    if packed:
        enable_packing(loaded.network.adapters.bare())
    if again:
        loaded.network.adapters.recompute_layers()
    batch = PlannedBatches(data, stage, stage.collator(loaded, None))[0]
    module = StageModule(loaded.network, stage).train()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = module(batch).total
    loss.backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found, sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("name", ["scp", "end-to-end"])
def test_recomputed_layers_give_the_same_gradients_in_less_memory(
    name: str,
    layout: str,
    tiny_base: Path,
    start: Path,
) -> None:
    """Two adapters take turns in one forward pass; each layer must be computed again as the one that ran it."""
    values: dict[str, Any] = {"lora": LORA, "steps": 1, "held_out": 0, "dtype": "fp32", "mse_weight": 0.5}
    if name == "end-to-end":
        values = {"start": str(start), "steps": 1, "held_out": 0, "dtype": "fp32", "candidates": 4, "top_k": 2}
        values |= {"train_compressor": True, "lora": LORA}
    stage = made(name, tiny_base, **values)
    records = questions(6) if name == "end-to-end" else passages(6)
    plain, much = gradients(stage, tiny_base, records, again=False, packed=layout == "packed")
    again, less = gradients(stage, tiny_base, records, again=True, packed=layout == "packed")
    assert plain.keys() == again.keys()
    roles = ("compressor", "generator") if name == "scp" else ("compressor", "generator", "query_reasoner")
    for role in roles:
        assert any(f".{role}." in key and bool(grad.abs().sum() > 0) for key, grad in plain.items())
    for key, grad in plain.items():
        assert torch.allclose(again[key], grad, rtol=1e-4, atol=1e-6), key
    assert less < 0.6 * much


@pytest.fixture(scope="module")
def start(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without dropout."""
    out = tmp_path_factory.mktemp("start")
    return run(made("scp", tiny_base, steps=1, lora=LORA, dtype="fp32", held_out=0), out)


def test_a_run_with_recomputed_layers(tiny_base: Path, tmp_path: Path) -> None:
    told: list[str] = []
    for again in (False, True):
        out = tmp_path / str(again)
        stage = made("scp", tiny_base, steps=3, lora=LORA, dtype="fp32", gradient_checkpointing=again)
        train(stage, passages(20), out, cache=out, on_notice=told.append)
    one, other = ([line["cross_entropy"] for line in logged(tmp_path / str(again))] for again in (False, True))
    assert one == pytest.approx(other, rel=1e-4)
    assert all(line.startswith("memory: at most about ") for line in told)


def test_the_estimate_knows_what_takes_less(tiny_base: Path, tmp_path: Path) -> None:
    def estimated(**values: Any) -> Any:  # noqa: ANN401
        stage = made("scp", tiny_base, dtype="fp32", **values)
        return training_memory(stage, TrainingData({}, [], {}), 200, tmp_path, "cpu")

    usual = estimated()
    assert estimated(gradient_checkpointing=True).activations < usual.activations
    assert estimated(accumulation=4).activations == pytest.approx(usual.activations / 2, rel=0.01)
    assert estimated(lora={"rank": 8, "alpha": 8}).trained == 2 * usual.trained
    assert (
        usual.weights == sum(p.stat().st_size for p in tiny_base.glob("*.safetensors")) // 1000 * 1000 or usual.weights
    )


def test_a_run_takes_less_than_it_says_and_not_much_less(tiny_base: Path, tmp_path: Path) -> None:
    """Passages with four questions and a restatement each: all that is written stands side by side in one sequence."""
    recipe, data = tmp_path / "recipe.toml", tmp_path / "records.jsonl"
    pairs = tuple(QAPair(f"How high is tower {i}, and of what is it made?", ("of iron",)) for i in range(4))
    write_records(data, [replace(record, pairs=pairs) for record in passages(64) if isinstance(record, PassageQA)])
    recipe.write_text(
        f'base = "{tiny_base}"\nsteps = 1\nbatch_size = 64\nheld_out = 0\ndtype = "fp32"\n'
        "compression = {window_tokens = 64, rates = [4]}\nlora = {rank = 4, alpha = 8}\n",
        encoding="utf-8",
    )
    program = Path(__file__).with_name("peak_memory.py")
    command = [sys.executable, *map(str, (program, "scp", recipe, data, tmp_path / "out"))]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["said"] > found["took"] > found["said"] / 4, found


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="the extra quantised is not installed")
@pytest.mark.parametrize("dtype", ["int4"])
def test_a_quantised_base_trains(dtype: str, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    folder = run(made("scp", tiny_base, dtype=dtype, steps=4, held_out=2, held_out_answers=2, save_every=2), out)
    assert len({line["cross_entropy"] for line in logged(out)}) == 4
    manifest = checkpoint.read_manifest(folder)
    assert manifest.trained["config"]["dtype"] == dtype
    model = ClaraModel.load(folder, dtype="fp32")
    assert model.compress(["Tower a1 is 3 metres high."])[0].values.any()
    kept = (folder / "adapters" / "generator" / "adapter_model.safetensors").read_bytes()
    assert kept, "adapters alone are written"


def test_the_papers_form_trains_and_is_exported(tiny_base: Path, untied_base: Path, tmp_path: Path) -> None:
    for name, base in (("tied", tiny_base), ("untied", untied_base)):
        native = run(made("scp", base, steps=2, held_out=0, dtype="fp32", **PAPER), tmp_path / name)
        end = made("end-to-end", base, start=str(native), steps=2, held_out=0, dtype="fp32", candidates=4, top_k=2)
        trained = run(_started(end), tmp_path / f"{name}-e2e", questions(8))
        apple = tmp_path / f"{name}-apple"
        export(trained, apple, tmp_path, base_name=None, progress=lambda *_: None)
        assert json.loads((apple / "config.json").read_text())["training_stage"] == "stage2"
        ours = ClaraModel.load(trained, dtype="fp32")
        theirs = ClaraModel.load(apple, base=str(base), dtype="fp32")
        texts = ["Tower a1 is 3 metres high.", "It is made of iron."]
        for one, other in zip(ours.compress(texts), theirs.compress(texts), strict=True):
            assert (one.values == other.values).all()
        assert ours.fingerprint == theirs.fingerprint


def _started(stage: Stage) -> Stage:
    """A stage that goes on from a checkpoint, without what the checkpoint decides."""
    values = {name: getattr(stage.config, name) for name in stage.config.model_fields_set}
    for name in ("base", "compression", "lora"):
        values.pop(name, None)
    return stage_of(stage.name.replace("_", "-"), values, source="test")


def test_what_apples_format_cannot_hold_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    paper: dict[str, Any] = PAPER | {"lora": {"rank": 2, "alpha": 8, "targets": ("q_proj",)}}
    paper["compression"] = PAPER["compression"] | {"gain": True}
    with pytest.raises(ConfigError, match=r"3 fault.*compression.gain.*lora.alpha = 4.*lora.targets"):
        run(made("scp", tiny_base, **paper), tmp_path)
