"""Stages scp and instruct with a frozen compressor, and the loss among what could be quoted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from train_cases import made, passages, questions

from clara import prompts
from clara.config import CompressionConfig
from clara.model.create import Loaded
from clara.model.prompting import Prompter
from clara.train.batch import Batch, Collator
from clara.train.documents import Documents
from clara.train.examples import Example, Target
from clara.train.objective import _quoted_loss, generation_loss, reply_logits
from clara.train.run import train

RATE = 16
TEXTS = ("The tower is 330 metres high, they say.", "Bees dance.")
QUOTED = Target(prompts.QUESTION + "How high?", "330 metres")
EXAMPLES = (
    Example(
        TEXTS,
        (
            Target(prompts.REPEAT_INSTRUCTION, "The tower is", ends=False),
            QUOTED,
            Target(prompts.QUESTION + "Who dances?", "a hive of bees"),
            Target(prompts.QUESTION + "Is it high?", "yes", weight=2.0),
        ),
    ),
    Example(TEXTS[1:], (Target(prompts.QUESTION + "Who?", "Bees"),)),
)


@pytest.fixture(scope="module")
def loaded(make_network: Callable[[CompressionConfig], Loaded]) -> Loaded:
    return make_network(CompressionConfig(window_tokens=64, rates=(4, RATE), pooled_input=True, attention="span"))


@pytest.fixture(scope="module")
def batch(loaded: Loaded) -> Batch:
    return Collator(Prompter(loaded.base.tokenizer), window_tokens=64, quoted=True)(EXAMPLES, rate=RATE)


def logits_of(loaded: Loaded, batch: Batch) -> Tensor:
    memories = loaded.network.encode("compressor", batch.text_ids, batch.text_mask, rate=RATE).memory
    return reply_logits(loaded.network, batch, memories[batch.text_index].flatten(0, 1))


@torch.no_grad()
def test_the_loss_among_quotations_equals_the_slow_version(loaded: Loaded, batch: Batch) -> None:
    logits, prompter = logits_of(loaded, batch), Prompter(loaded.base.tokenizer)
    total, row = 0.0, 0
    for example in EXAMPLES:
        quotations = prompter.quotations(example.texts)
        for target in example.targets:
            reply = [*prompter.plain(target.reply), *([prompter.eos] * target.ends)]
            if target.reply in ("330 metres", "yes", "Bees"):
                for count, token in enumerate(reply):
                    may = sorted(quotations.next_ids(reply[:count]))
                    may += [prompter.eos] * quotations.may_end(reply[:count])
                    scores = {one: float(logits[row + count, one]) for one in may}
                    rest = torch.logsumexp(torch.tensor(list(scores.values())), dim=0)
                    total += target.weight * (float(rest) - scores[token])
            row += len(reply)
    assert row == len(batch.labels)
    assert batch.quotable is not None
    assert float(_quoted_loss(batch, batch.quotable, logits)) == pytest.approx(
        total / float(batch.weights.sum()), rel=1e-5
    )


@torch.no_grad()
def test_the_loss_among_quotations_is_added_with_its_weight(loaded: Loaded, batch: Batch) -> None:
    plain = generation_loss(loaded.network, batch, mse_weight=0.1)
    both = generation_loss(loaded.network, batch, mse_weight=0.1, quoted_weight=0.5)
    assert batch.quotable is not None
    added = 0.5 * _quoted_loss(batch, batch.quotable, logits_of(loaded, batch))
    assert float(added) > 0.01
    assert float(both.total - plain.total) == pytest.approx(float(added), rel=1e-4)
    assert float(both.cross_entropy) == float(plain.cross_entropy)


@torch.no_grad()
def test_answers_that_are_no_quotation_have_no_such_loss(loaded: Loaded) -> None:
    collator = Collator(Prompter(loaded.base.tokenizer), window_tokens=64, quoted=True)
    free = [
        replace(EXAMPLES[0], targets=EXAMPLES[0].targets[:1]),
        replace(EXAMPLES[0], targets=EXAMPLES[0].targets[2:3]),
    ]
    made = collator(free, rate=RATE)
    assert made.quotable is not None
    assert float(_quoted_loss(made, made.quotable, logits_of(loaded, made))) == 0


@torch.no_grad()
def test_memories_computed_before_give_the_same_loss(loaded: Loaded, tmp_path: Path) -> None:
    prompter = Prompter(loaded.base.tokenizer)
    kept = Collator(prompter, window_tokens=64, memories=Documents(loaded, tmp_path))(EXAMPLES, rate=RATE)
    encoded = Collator(prompter, window_tokens=64)(EXAMPLES, rate=RATE)
    assert len(kept.text_ids) == 0
    before = generation_loss(loaded.network, kept, mse_weight=0.1)
    now = generation_loss(loaded.network, encoded, mse_weight=0.1)
    assert float(before.cross_entropy) == pytest.approx(float(now.cross_entropy), abs=2e-3)
    assert float(before.mse) == 0 != float(now.mse)


def test_a_frozen_compressor_stays_and_compresses_once(tiny_base: Path, tmp_path: Path) -> None:
    first = train(made("scp", tiny_base), passages(20), tmp_path / "first", cache=tmp_path)
    records = [*passages(20), *questions(10)]
    values = {"start": str(first), "freeze_compressor": True, "quoted_weight": 1.0, "distractors": 1}
    values |= {"table_learning_rate": 1e-4}  # as unset: no table is trained
    second = train(made("instruct", tiny_base, **values), records, tmp_path / "second", cache=tmp_path)
    for name, changes in (
        ("adapters/compressor/adapter_model", False),
        ("memory", False),
        ("adapters/generator/adapter_model", True),
    ):
        before, after = (load_file(folder / f"{name}.safetensors") for folder in (first, second))
        assert before.keys() == after.keys()
        assert changes != all(torch.equal(before[key], after[key]) for key in before), name
    kept = sorted((tmp_path / "memories").rglob("values.f16"))
    assert len(kept) == 2  # one a rate
    sizes = [file.stat().st_size for file in kept]
    train(made("instruct", tiny_base, **values), records, tmp_path / "third", cache=tmp_path)
    assert [file.stat().st_size for file in kept] == sizes
