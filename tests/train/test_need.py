"""Weights of restatements: equal to what the backbone says step by step, kept, and only where they are trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_cases import losses, made, passages

from clara import prompts
from clara.config import CompressionConfig
from clara.model.create import Loaded
from clara.model.prompting import Prompter
from clara.train.batch import Collator
from clara.train.examples import Example, Target
from clara.train.run import train
from clara.train.teaching import TokenNeed

RATE, WINDOW = 16, 64
EXAMPLES = (
    Example(
        ("The tower is 330 metres high.", "Bees dance. " * 30),
        (
            Target(prompts.QUESTION + "How high?", "330 metres"),
            Target(prompts.REPEAT_INSTRUCTION, "The tower is 330 metres high. Bees", ends=False, weight=0.25),
        ),
    ),
    Example(("Gutenberg printed in Mainz.",), (Target(prompts.REPEAT_INSTRUCTION, "Gutenberg printed in Mainz."),)),
    Example(("Coffee grows.",), (Target(prompts.QUESTION + "What grows?", "coffee"),)),
)


@pytest.fixture(scope="module")
def loaded(make_network: Callable[[CompressionConfig], Loaded]) -> Loaded:
    return make_network(CompressionConfig(window_tokens=WINDOW, rates=(4, RATE), residual=True))


def need_of(loaded: Loaded, folder: Path) -> TokenNeed:
    collator = Collator(Prompter(loaded.base.tokenizer), window_tokens=WINDOW)
    return TokenNeed(loaded, folder, collator=collator, role=None, mark="backbone")


def slow_need(loaded: Loaded, example: Example, target: Target) -> list[float]:
    """With the text and with nothing, by the backbone alone, a whole prompt each."""
    prompter = Prompter(loaded.base.tokenizer)
    reply = [*prompter.plain(target.reply), *([prompter.eos] if target.ends else [])]
    texts = [prompter.cut(text, WINDOW) for text in example.texts]
    text = [*prompter.background(texts).ids, *prompter.instruction(target.instruction)]
    nothing = [*prompter.no_background().ids, *prompter.closed_instruction(target.instruction)]
    found = []
    for prompt in (text, nothing):
        with torch.no_grad(), loaded.network.adapters.use(None):
            logits = loaded.network.adapters.bare()(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        found.append([float(row.log_softmax(-1)[token]) for row, token in zip(logits, reply, strict=True)])
    return [with_text - alone for with_text, alone in zip(*found, strict=True)]


def test_weights_are_the_need_of_each_token(loaded: Loaded, tmp_path: Path) -> None:
    made = need_of(loaded, tmp_path)(EXAMPLES)
    restated = 0
    for before, after in zip(EXAMPLES, made, strict=True):
        for old, new in zip(before.targets, after.targets, strict=True):
            assert replace(new, label_weights=()) == old
            if old.instruction.startswith(prompts.QUESTION):
                assert new == old
                continue
            held = [min(max(nats, 0.0), TokenNeed.most) for nats in slow_need(loaded, before, old)]
            assert sum(held) > 0
            wanted = [old.weight * nats * len(held) / sum(held) for nats in held]
            assert new.label_weights == pytest.approx(wanted, abs=0.05)
            assert sum(new.label_weights) / len(held) == pytest.approx(old.weight)
            restated += 1
    assert restated == 2
    batch = Collator(Prompter(loaded.base.tokenizer), window_tokens=WINDOW)(made, rate=RATE)
    assert len(batch.weights) == len(batch.labels)
    assert len(set(batch.weights.tolist())) > 4


def test_need_is_computed_once(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = need_of(loaded, tmp_path)(EXAMPLES)
    monkeypatch.setattr("clara.train.teaching._label_logprobs", lambda *_: pytest.fail("asked again"))
    assert need_of(loaded, tmp_path)(EXAMPLES) == first


def test_a_target_that_needs_nothing_weighs_as_before() -> None:
    target = EXAMPLES[1].targets[0]
    assert TokenNeed.weighted(target, [-1.0, 0.0]) == target
    assert TokenNeed.weighted(target, [0.0, 1.0, 20.0]).label_weights == pytest.approx([0.0, 0.5, 2.5])


def test_a_run_weighs_what_it_trains_on_and_measures_as_before(tiny_base: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "dtype": "fp32",
        "steps": 1,
        "restate": {"repeat": 1.0, "resume": 0.0, "tokens": 16},
        "evaluate_every": 1,
        "held_out_answers": 0,
        "learning_rate": 1e-6,
        "table_learning_rate": 1e-6,
    }
    logs = []
    for weigh in (False, True):
        out = tmp_path / str(weigh)
        train(made("scp", tiny_base, need_weights=weigh, **values), passages(12), out, cache=tmp_path / "cache")
        logs.append(losses(out))
    plain, weighing = logs
    assert weighing[0]["cross_entropy"] != pytest.approx(plain[0]["cross_entropy"], rel=1e-4)
    assert weighing[0]["held_out"] == pytest.approx(plain[0]["held_out"], rel=1e-3)
    assert list((tmp_path / "cache" / "kept").glob("need-*.jsonl"))
