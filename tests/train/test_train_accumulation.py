"""A step in several passes is the step in one: the same examples, loss and gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_cases import losses, made, passages, questions

from clara.data import DataRecord, PassageQA, QAPair
from clara.train.data import PlannedBatches, divide
from clara.train.loop import _with_shares
from clara.train.run import train
from clara.train.stages.base import Stage

SHORT = "Passage {} says the colour is red."
LONG = "Passage {} tells a long story of an old keeper of lamps near the sea, who wrote many letters."
TOLD = "a long story of an old keeper of lamps near the sea, who wrote many letters to his sister over many years"
UNEVEN: list[DataRecord] = [
    *(PassageQA(f"s{i}", "a", "", SHORT.format(i), (QAPair("Which colour?", ("red",)),)) for i in range(8)),
    *(PassageQA(f"l{i}", "a", "", LONG.format(i), (QAPair("What is told?", (TOLD,)),)) for i in range(8)),
    *questions(6),
]
VALUES: dict[str, dict[str, Any]] = {
    "scp": {"mse_weight": 0.5, "quoted_weight": 0.5},
    "instruct": {"mse_weight": 0.5, "shared_distractors": True},
    "end-to-end": {"candidates": 5, "top_k": 2},
    "retriever": {"candidates": 5, "temperature": 0.1},
    "reader": {"reader_examples": "scp"},
}


@pytest.fixture(scope="module")
def start(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without dropout."""
    out = tmp_path_factory.mktemp("start")
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    return train(made("scp", tiny_base, steps=1, lora=lora, dtype="fp32"), passages(12), out, cache=out)


def divided(name: str, base: Path, start: Path, passes: int) -> Stage:
    """Six steps of eight examples, without dropout, whose masks depend on how a batch is cut."""
    values = VALUES[name] | ({"start": str(start)} if "candidates" in VALUES[name] else {})
    whole: dict[str, Any] = {"batch_size": 8, "accumulation": passes, "steps": 6, "held_out": 0, "dtype": "fp32"}
    plain: dict[str, Any] = {"restate": {"repeat": 0.3}, "save_every": 6, "learning_rate": 0.003}
    plain["lora"] = {"rank": 4, "alpha": 8, "dropout": 0.0}
    return made(name, base, **whole | plain | values)


@pytest.mark.parametrize("name", VALUES)
def test_a_step_in_four_passes_has_the_losses_of_one(name: str, tiny_base: Path, start: Path, tmp_path: Path) -> None:
    """The first step's loss, and the later ones', which weights that other gradients moved would not have."""
    for passes in (1, 4):
        stage = divided(name, tiny_base, start, passes)
        train(stage, UNEVEN, tmp_path / str(passes), cache=tmp_path)
    one, four = (losses(tmp_path / str(passes)) for passes in (1, 4))
    assert len({round(line["cross_entropy"], 3) for line in one}) > 4, "the curve is no flat line"
    for whole, parts in zip(one, four, strict=True):
        assert parts["cross_entropy"] == pytest.approx(whole["cross_entropy"], rel=2e-4)
        assert parts["mse"] == pytest.approx(whole["mse"], rel=2e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["scp", "instruct", "retriever"])
def test_a_step_reads_the_same_however_it_is_divided(name: str, tiny_base: Path, start: Path) -> None:
    class Recorder:
        def __call__(self, examples: Any, *, rate: int, asked: Any = None) -> Any:  # noqa: ANN401
            return [(rate, examples[place]) for place in (range(len(examples)) if asked is None else asked)]

    steps = []
    for passes in (1, 2, 8):
        stage = divided(name, tiny_base, start, passes)
        data = divide([*UNEVEN, *passages(20)], stage)
        batches: Any = PlannedBatches(data, stage, Recorder())
        assert len(batches) == 6 * passes
        steps.append([[one for number in range(passes) for one in batches[s * passes + number]] for s in range(6)])
    assert steps[0] == steps[1] == steps[2]


def test_the_gradient_of_uneven_passes_is_that_of_the_step(tiny_base: Path, tmp_path: Path) -> None:
    """One step of plain descent, so that the weights show the gradient."""
    moved = []
    for passes in (1, 2, 8):
        stage = divided("scp", tiny_base, tmp_path, passes)
        data = divide(UNEVEN, stage)
        loaded = stage.network(data, tmp_path, "cpu", None)
        batches = PlannedBatches(data, stage, stage.collator(loaded, None))
        shared = _with_shares([batches[number] for number in range(passes)])
        parameters = [p for p in loaded.network.parameters() if p.requires_grad]
        total = torch.stack([stage.loss(loaded.network, batch).total for batch in shared]).mean()
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        moved.append(torch.cat([g.flatten() for g in found if g is not None]))
    for parts in moved[1:]:
        assert float((parts - moved[0]).norm()) < 1e-5 * float(moved[0].norm())
