"""Two processes under torchrun do what one does, even when one of them is killed on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ddp_program import stage
from torch import Tensor
from train_cases import changed, losses, passages, questions

from clara.config import CompressionConfig
from clara.errors import ConfigError
from clara.model import ClaraModel
from clara.model.create import Loaded
from clara.model.prompting import Prompter
from clara.train.batch import Batch, Collator
from clara.train.data import PlannedBatches, divide
from clara.train.objective import generation_loss
from clara.train.processes import Processes
from clara.train.run import train

STEPS = 20
KILLED_AT = 10


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program in two processes, through the launcher that users use."""
    program = Path(__file__).with_name("ddp_program.py")
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(program), *map(str, arguments)],
        check=False,
        timeout=300,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_do_what_one_does(tiny_base: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(stage(tiny_base, STEPS), [*passages(24), *questions(6)], alone, cache=alone)
    assert torchrun(tiny_base, together, STEPS, KILLED_AT).returncode != 0
    assert 8 <= len(losses(together)) < STEPS
    assert not (together / "checkpoint").exists()
    again = torchrun(tiny_base, together, STEPS)
    assert again.returncode == 0, again.stderr

    one, two = losses(alone), losses(together)
    assert [line["step"] for line in two] == list(range(1, STEPS + 1)), "each step is said once"
    for a, b in zip(one, two, strict=True):
        assert b["cross_entropy"] == pytest.approx(a["cross_entropy"], abs=1e-3)
        assert b["mse"] == pytest.approx(a["mse"], abs=1e-3)
        if a["held_out"] is not None:
            assert b["held_out"] == pytest.approx(a["held_out"], abs=1e-3)
    assert len({round(line["cross_entropy"], 3) for line in one}) > STEPS // 2, "the curve is no flat line"
    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in alone.iterdir())
    memories = [
        ClaraModel.load(run / "checkpoint", dtype="fp32").compress(["Tower a3."])[0] for run in (alone, together)
    ]
    assert memories[0].values == pytest.approx(memories[1].values, abs=0.05)  # adapters are stored in bf16


def test_two_processes_share_the_memories_of_a_frozen_compressor(tiny_base: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(stage(tiny_base, 5, frozen=True), [*passages(24), *questions(6)], alone, cache=alone)
    done = torchrun(tiny_base, together, 5, "frozen")
    assert done.returncode == 0, done.stderr
    for a, b in zip(losses(alone), losses(together), strict=True):
        assert b["cross_entropy"] == pytest.approx(a["cross_entropy"], abs=1e-3)
    for folder in (alone / "memories").iterdir():
        first, second = (
            {keys[place : place + 16] for place in range(0, len(keys), 20)}
            for keys in ((run / "memories" / folder.name / "keys.bin").read_bytes() for run in (alone, together))
        )
        assert len(first) > 10
        assert first == second
        sizes = [(run / "memories" / folder.name / "values.f16").stat().st_size for run in (alone, together)]
        assert sizes[0] == sizes[1], "each memory was computed by one of them"


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("shared", [False, True], ids=["own texts", "shared texts"])
def test_parts_of_a_batch_have_its_loss_and_gradient(
    make_network: Callable[[CompressionConfig], Loaded], tiny_base: Path, *, count: int, shared: bool
) -> None:
    """Means over parts of unequal size, weighted as the whole batch weighs them; a text may stand in several parts."""
    undivided = changed(stage(tiny_base, 3), accumulation=1, shared_distractors=shared)
    loaded = make_network(undivided.config.compression)
    data = divide([*passages(24), *questions(6)], undivided)
    collator = Collator(Prompter(loaded.base.tokenizer), window_tokens=64)
    trained = [*loaded.network.adapters.parameters_of("compressor"), *loaded.network.table.parameters()]
    for parameter in trained:
        parameter.requires_grad = True

    def measured(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        losses = generation_loss(loaded.network, batch, mse_weight=0.5)
        return losses.total.detach(), list(torch.autograd.grad(losses.total, trained, allow_unused=True))

    whole = PlannedBatches(data, undivided, collator)[1]
    loss, gradient = measured(whole)
    parts = [PlannedBatches(data, undivided, collator, processes=Processes(i, count))[1] for i in range(count)]
    weights = [float(part.weights.sum()) for part in parts]
    assert len(set(weights)) > 1, "a plain mean of the parts' means would be wrong"
    assert sum(weights) == pytest.approx(float(whole.weights.sum()))
    texts = [len(part.text_index) for part in parts]
    found = [
        measured(replace(part, label_share=weight * count / sum(weights), text_share=number * count / sum(texts)))
        for part, weight, number in zip(parts, weights, texts, strict=True)
    ]
    torch.testing.assert_close(torch.stack([one for one, _ in found]).mean(), loss)
    for expected, *given in zip(gradient, *(each for _, each in found), strict=True):
        torch.testing.assert_close(torch.stack(given).mean(dim=0), expected, rtol=1e-4, atol=1e-5)


def test_processes_share_every_batch() -> None:
    parts = [list(Processes(rank, 3).part(8)) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
    Processes(0, 2).check(batch_size=8, accumulation=2)
    with pytest.raises(ConfigError, match="is 3 examples a forward pass, which 2 processes cannot share evenly"):
        Processes(0, 2).check(batch_size=6, accumulation=2)
