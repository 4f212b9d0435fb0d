"""Targets that share a decoder sequence have the losses they would have alone; batches are a function of the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from train_cases import made, passages, questions

from clara import prompts
from clara.config import CompressionConfig
from clara.data import PassageQA, QAPair
from clara.errors import ConfigError, TrainingError
from clara.model.create import Loaded
from clara.model.decoder import splice
from clara.model.prompting import Prompter
from clara.train.batch import REPLY_TOKENS, Batch, Collator, decoder_attention
from clara.train.data import PlannedBatches, TrainingData, divide, held_out_examples
from clara.train.examples import (
    BackgroundConfig,
    Example,
    PassageConfig,
    RestateSettings,
    Target,
    drawn_example,
    passage_example,
)
from clara.train.objective import generation_loss
from clara.train.stages.base import Stage
from clara.train.validation import asked_questions, held_out

RATE = 16
EXAMPLES = (
    Example(
        ("The tower is 330 metres high.", "Bees dance."),
        (
            Target(prompts.QUESTION + "How high?", "330 metres"),
            Target(prompts.REPEAT_INSTRUCTION, "The tower is 330", ends=False, weight=0.25),
            Target(prompts.QUESTION + "Who dances?", " bees "),
        ),
    ),
    Example(("Gutenberg printed in Mainz.",), (Target(prompts.QUESTION + "Where?", "Mainz", weight=2.0),)),
)


@pytest.fixture(scope="module")
def loaded(make_network: Callable[[CompressionConfig], Loaded]) -> Loaded:
    return make_network(CompressionConfig(window_tokens=64, rates=(4, RATE), pooled_input=True, attention="span"))


@pytest.fixture(scope="module")
def collator(loaded: Loaded) -> Collator:
    return Collator(Prompter(loaded.base.tokenizer), window_tokens=64)


def label_losses(loaded: Loaded, batch: Batch) -> Tensor:
    """The loss of each label of a batch, [T]."""
    network = loaded.network
    memories = network.encode("compressor", batch.text_ids, batch.text_mask, rate=batch.rate).memory.flatten(0, 1)
    embeds = splice(network.embed(batch.decoder_ids), batch.slots, memories)
    hidden = network.decode(embeds, decoder_attention(batch.segments), batch.positions)
    logits = network.logits(hidden.flatten(0, 1)[batch.label_index])
    return functional.cross_entropy(logits, batch.labels, reduction="none")


def alone(loaded: Loaded, example: Example, target: Target) -> tuple[list[int], Tensor]:
    """Labels of one target and their losses, from a plain causal sequence without the collator."""
    network, prompter = loaded.network, Prompter(loaded.base.tokenizer)
    n = 64 // RATE
    memories = []
    for text in example.texts:
        ids = torch.tensor([prompter.plain(text)])
        memories.append(network.encode("compressor", ids, torch.ones_like(ids).bool(), rate=RATE).memory[0])
    reply = prompter.plain(target.reply.strip()) + ([prompter.eos] if target.ends else [])
    background = prompter.background([n] * len(example.texts))
    prompt = [*background.ids, *prompter.instruction(target.instruction)]
    embeds = network.embed(torch.tensor([prompt + reply])).clone()
    embeds[0, list(background.slots)] = torch.cat(memories)
    with network.adapters.use("generator"):
        logits = network.adapters.bare()(inputs_embeds=embeds).logits[0]
    chosen = logits[len(prompt) - 1 : -1]
    return reply, functional.cross_entropy(chosen, torch.tensor(reply), reduction="none")


@torch.no_grad()
def test_joint_targets_have_the_losses_of_separate_sequences(loaded: Loaded, collator: Collator) -> None:
    batch = collator(EXAMPLES, rate=RATE)
    singles = [alone(loaded, example, target) for example in EXAMPLES for target in example.targets]
    assert batch.labels.tolist() == [label for labels, _ in singles for label in labels]
    weights = [t.weight for e, t in ((e, t) for e in EXAMPLES for t in e.targets)]
    assert batch.weights.tolist() == [w for w, (labels, _) in zip(weights, singles, strict=True) for _ in labels]
    found, wanted = label_losses(loaded, batch), torch.cat([losses for _, losses in singles])
    assert float((found - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.max()))
    assert float(wanted.std()) > 0.1, "labels differ in their losses"

    total = float((wanted * batch.weights).sum() / batch.weights.sum())
    losses = generation_loss(loaded.network, batch, mse_weight=0.5)
    assert float(losses.cross_entropy) == pytest.approx(total, rel=1e-5)
    assert float(losses.total) == pytest.approx(total + 0.5 * float(losses.mse), rel=1e-5)
    parts = loaded.network.encode("compressor", batch.text_ids, batch.text_mask, rate=RATE).read_out
    assert float(losses.mse) == pytest.approx(float((parts.text_mean - parts.read.mean(1)).pow(2).mean()), rel=1e-5)


def test_end_tokens_stand_where_a_reply_is_whole(collator: Collator, loaded: Loaded) -> None:
    eos = Prompter(loaded.base.tokenizer).eos
    batch = collator(EXAMPLES[:1], rate=RATE)
    assert (batch.labels == eos).sum() == 2, "the target that does not end has none"
    assert batch.labels[-1] == eos
    assert batch.text_ids.shape[0] == 2
    assert int(batch.slots.sum()) == 2 * 64 // RATE
    assert batch.tokens() == int(batch.text_mask.sum()) + batch.decoder_ids.shape[1]


@pytest.mark.parametrize(
    ("words", "whole"), [(REPLY_TOKENS - 1, True), (REPLY_TOKENS, False), (REPLY_TOKENS + 40, False)]
)
def test_a_long_reply_is_cut_and_has_no_end(words: int, whole: bool, collator: Collator, loaded: Loaded) -> None:  # noqa: FBT001
    prompter = Prompter(loaded.base.tokenizer)
    reply = "e" + " the" * (words - 1)
    ids = prompter.plain(reply)
    assert len(ids) == words
    batch = collator([Example(("x",), (Target("\nSay.", reply),))], rate=RATE)
    assert batch.labels.tolist() == [*ids[:REPLY_TOKENS], *([prompter.eos] if whole else [])]


def test_a_run_says_how_long_a_reply_may_be(loaded: Loaded) -> None:
    prompter = Prompter(loaded.base.tokenizer)
    longer = Collator(prompter, window_tokens=64, reply_tokens=2 * REPLY_TOKENS)
    batch = longer([Example(("x",), (Target("\nSay.", "e" + " the" * REPLY_TOKENS),))], rate=RATE)
    assert len(batch.labels) == REPLY_TOKENS + 2


def test_a_long_text_is_cut_to_the_window(collator: Collator) -> None:
    batch = collator([Example((" the" * 90, "x"), (Target("\nSay.", "y"),))], rate=RATE)
    assert batch.text_mask.sum(dim=1).tolist() == [64, 1]


@given(lengths=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=3))
def test_decoder_attention_equals_a_loop(lengths: list[list[int]]) -> None:
    rows = [[segment for segment, n in enumerate(row) for _ in range(n)] for row in lengths]
    size = max(map(len, rows)) + 1
    segments = torch.tensor([row + [-1] * (size - len(row)) for row in rows])
    allowed = decoder_attention(segments)
    assert allowed.shape == (len(rows), 1, size, size)
    for b, row in enumerate(segments.tolist()):
        for q in range(size):
            for k in range(size):
                sees = k == q or (row[q] >= 0 and k < q and row[k] in (0, row[q]))
                assert bool(allowed[b, 0, q, k]) == sees


class Recorder:
    """A collator that gives the examples themselves."""

    def __call__(self, examples: Sequence[Example], *, rate: int) -> Any:  # noqa: ANN401 - stands in for a batch
        return rate, tuple(examples)


def plan(data: TrainingData, stage: Stage) -> Any:  # noqa: ANN401
    recorder: Any = Recorder()
    return PlannedBatches(data, stage, recorder)


def texts_of(batches: Any) -> Counter[str]:  # noqa: ANN401
    return Counter(text for i in range(len(batches)) for example in batches[i][1] for text in example.texts)


@pytest.mark.parametrize("name", ["scp", "instruct"])
def test_a_batch_is_a_function_of_seed_and_index(name: str, tiny_base: Path) -> None:
    stage = made(name, tiny_base)
    records = passages(12) + questions(12)
    first, again = (plan(divide(records, stage), stage) for _ in range(2))
    assert len(first) == 12
    forwards = [first[i] for i in range(len(first))]
    np.random.seed(5)  # noqa: NPY002 - global state must not matter
    torch.rand(3)
    backwards = [again[i] for i in reversed(range(len(again)))][::-1]
    assert forwards == backwards
    assert len({repr(batch) for batch in forwards}) > 8
    assert {rate for rate, _ in forwards} == {4, 16}
    other = made(name, tiny_base, seed=1)
    seeded = plan(divide(records, other), other)
    assert forwards != [seeded[i] for i in range(len(seeded))]


def test_real_batches_are_the_same_twice(tiny_base: Path, collator: Collator) -> None:
    stage = made("scp", tiny_base)
    data = divide(passages(12), stage)
    left, right = (PlannedBatches(data, stage, collator) for _ in range(2))
    right[5]
    a, b = left[3], right[3]
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    assert all(bool(torch.equal(x, y)) if isinstance(x, Tensor) else x == y for x, y in pairs)


def test_weights_are_respected(tiny_base: Path) -> None:
    stage = made("scp", tiny_base, mix={"a": 3.0, "b": 1.0, "c": 0.0}, steps=100, rate_weights=(9, 1))
    data = divide(passages(20, "a") + passages(20, "b") + passages(20, "c"), stage)
    assert set(data.sources) == {"a", "b"}
    assert data.rejected == {"source c has weight 0 in the mix": 20}
    batches = plan(data, stage)
    drawn = Counter(text.split()[1][0] for text in texts_of(batches).elements())
    assert drawn.total() == 400
    assert 0.68 < drawn["a"] / 400 < 0.82
    rates = Counter(batches[i][0] for i in range(len(batches)))
    assert 0.82 < rates[4] / 200 < 0.97


@pytest.mark.parametrize("name", ["scp", "instruct"])
def test_held_out_records_are_never_trained_on(name: str, tiny_base: Path) -> None:
    stage = made(name, tiny_base, steps=40, held_out=6)
    data = divide(passages(30), stage)
    assert len(data.held_out) == 6
    trained = texts_of(plan(data, stage))
    kept_back = {prompts.passage_text(r.title, r.text) for r in data.held_out if isinstance(r, PassageQA)}
    assert len(kept_back) == 6
    assert not kept_back & set(trained)
    assert len(trained) == sum(map(len, data.sources.values())), "all the others are"


def test_held_out_batches_are_the_same_each_time(tiny_base: Path, loaded: Loaded, collator: Collator) -> None:
    stage = made("scp", tiny_base, held_out=5)
    data = divide(passages(20), stage)
    first, again = (
        found.losses[4]
        for _ in range(2)
        if (found := held_out(data, stage, collator, loaded.base.tokenizer)) is not None
    )
    assert [len(batch.decoder_ids) for batch in first] == [2, 2, 1]
    assert {batch.rate for batch in first} == {4}
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(first, again, strict=True))


def test_records_without_use_are_counted(tiny_base: Path) -> None:
    scp, instruct = (made(name, tiny_base, held_out=0) for name in ("scp", "instruct"))
    assert divide(passages(3) + questions(2), scp).rejected == {"MultiHop record has no use in stage scp": 2}
    assert divide(passages(5), instruct).rejected == {"PassageQA record has no use in stage instruct": 1}
    with pytest.raises(TrainingError, match=r"no record is left to train stage scp on, out of 2: .*MultiHop"):
        divide(questions(2), scp)
    with pytest.raises(TrainingError, match="no record is left"):
        divide(passages(3), made("scp", tiny_base, held_out=3))


@given(seed=st.integers(0, 200))
def test_scp_examples(seed: int) -> None:
    config = PassageConfig(pairs=1, restate=RestateSettings(repeat=0.5, resume=0.5, tokens=8))
    record = passages(5)[seed % 5]
    assert isinstance(record, PassageQA)
    example = passage_example(record, config, np.random.default_rng(seed))
    assert example is not None
    assert example.texts == (prompts.passage_text(record.title, record.text),)
    assert example.targets, "there is always something to write"
    asked = [t for t in example.targets if t.instruction.startswith(prompts.QUESTION)]
    assert len(asked) == min(1, len(record.pairs))
    for target in example.targets:
        if target in asked:
            assert target.reply in {pair.answers[0] for pair in record.pairs}
        elif target.instruction == prompts.PARAPHRASE_INSTRUCTION:
            assert target.reply == record.paraphrase
        else:
            assert target.reply in record.text
            assert len(target.reply.split()) <= 8
            assert target.ends == record.text.endswith(target.reply)


def test_the_questions_that_are_answered_can_be_targets_too() -> None:
    record = passages(1)[0]
    config = PassageConfig(pairs=1, restate=RestateSettings(repeat=0, resume=0), ask_weight=0.5)
    example = passage_example(record, config, np.random.default_rng(0))
    assert example is not None
    answered, asked = example.targets
    assert (asked.instruction, asked.weight, asked.ends) == (prompts.ASK_INSTRUCTION, 0.5, True)
    assert answered.instruction == prompts.QUESTION + asked.reply


@given(seed=st.integers(0, 200), documents=st.integers(1, 5), distractors=st.integers(0, 4))
def test_instruct_examples(seed: int, documents: int, distractors: int) -> None:
    config = BackgroundConfig(documents=documents, distractors=distractors)
    record = questions(3)[seed % 3]
    example = drawn_example(record, config, np.random.default_rng(seed), None)
    assert example is not None
    whole = {prompts.passage_text(d.title, d.text) for d in getattr(record, "docs")}  # noqa: B009
    gold = [prompts.passage_text(f"D{i}", f"Document {i} of {record.id}.") for i in (0, 2)]
    assert set(gold[:documents]) <= set(example.texts) <= whole
    assert len(set(example.texts)) == len(example.texts) <= documents
    assert len(example.texts) - len(gold[:documents]) <= distractors
    assert [target.reply for target in example.targets] == ["the first"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 3}, "batch_size 3 is not a multiple of accumulation 2"),
        ({"rate_weights": (1.0,)}, "rate_weights needs one weight for each of the rates"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"shared_distractors": True, "near_distractors": True}, "exclude each other"),
        ({"lerning_rate": 1}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_settings(values: dict[str, Any], message: str, tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        made("instruct", tiny_base, **values)


def test_a_passage_of_several_prompts_is_compressed_once(loaded: Loaded, collator: Collator) -> None:
    """The loss is that of a batch in which each prompt has its own copy of the passage."""
    shared = (
        Example(("The tower is 330 metres high.", "Bees dance."), (Target(prompts.QUESTION + "Who?", "bees"),)),
        Example(("Bees dance.", "The tower is 330 metres high."), (Target(prompts.QUESTION + "How high?", "330"),)),
    )
    batch = collator(shared, rate=RATE)
    assert batch.text_index.tolist() == [0, 1, 1, 0]
    assert len(batch.text_ids) == 2
    losses = [generation_loss(loaded.network, collator([e], rate=RATE), mse_weight=0.0) for e in shared]
    together = generation_loss(loaded.network, batch, mse_weight=0.0)
    sizes = [len(collator([e], rate=RATE).labels) for e in shared]
    slow = sum(float(one.cross_entropy.detach()) * n for one, n in zip(losses, sizes, strict=True)) / sum(sizes)
    assert float(together.cross_entropy.detach()) == pytest.approx(slow, rel=1e-5)


def test_shared_distractors_come_from_the_batch(tmp_path: Path, collator: Collator) -> None:
    values = {"batch_size": 6, "accumulation": 1, "distractors": 2, "shared_distractors": True, "steps": 4}
    stage = made("instruct", tmp_path, **values)
    planned = PlannedBatches(divide(passages(30), stage), stage, collator)
    several = 0
    for index in range(stage.config.steps):
        examples = planned.examples(index)
        own = {example.texts[0] for example in examples if isinstance(example, Example) and len(example.texts) == 1}
        for example in examples:
            assert isinstance(example, Example)
            assert len(set(example.texts)) == len(example.texts) <= 3
            several += len(example.texts) > 1
            own.update(example.texts)
        assert len(own) <= 6
    assert several


@pytest.mark.parametrize("near", [False, True])
def test_distractors_are_others_and_held_out_records_have_them_too(near: bool, tmp_path: Path) -> None:  # noqa: FBT001
    values = {"distractors": 3, "near_distractors": near, "held_out": 6, "held_out_answers": 6, "documents": 4}
    stage = made("instruct", tmp_path, batch_size=6, accumulation=1, steps=6, **values)
    records = [record for record in passages(40) if isinstance(record, PassageQA) and record.pairs]
    data = divide(records, stage)
    planned = plan(data, stage)
    trained = [example for index in range(stage.config.steps) for example in planned.examples(index)]
    kept_back = held_out_examples(data, stage)
    asked = [one.example for one in asked_questions(data, stage)]
    for examples in (trained, kept_back, asked):
        texts = [example.texts for example in examples if isinstance(example, Example)]
        assert all(len(set(several)) == len(several) for several in texts), "its own passage stands there once"
        assert max(map(len, texts)) > 1
    assert held_out_examples(data, stage) == kept_back


def test_near_distractors_are_what_a_search_would_find(tmp_path: Path, collator: Collator) -> None:
    """Of the run's passages those with the question's words come in, except one that holds an answer."""

    def about(number: int, text: str, question: str, *answers: str) -> PassageQA:
        return PassageQA(f"p{number}", "p", f"T{number}", text, (QAPair(question, answers),))

    records = [
        about(0, "The iron bridge of Bern was built in 1883.", "When was the iron bridge of Bern built?", "1883"),
        about(1, "The iron bridge of Fribourg was built in 1840.", "When was the bridge of Fribourg built?", "1840"),
        about(2, "An iron bridge of 1883 was pulled down.", "What happened to the iron bridge?", "pulled down"),
        about(3, "Bees dance.", "Who dances?", "Bees"),
    ]
    values = {"batch_size": 4, "distractors": 1, "near_distractors": True, "steps": 8, "held_out": 0}
    stage = made("instruct", tmp_path, **values)
    planned = PlannedBatches(divide(records, stage), stage, collator)
    beside: dict[str, set[str]] = {record.text: set() for record in records}
    for index in range(stage.config.steps):
        for example in planned.examples(index):
            assert isinstance(example, Example)
            (own,) = (r for r in records if prompts.QUESTION + r.pairs[0].question == example.targets[0].instruction)
            texts = {text.split("\n", 1)[-1] for text in example.texts}
            assert own.text in texts
            beside[own.text] |= texts - {own.text}
    assert beside == {
        records[0].text: {records[1].text},
        records[1].text: {records[0].text},
        records[2].text: {records[0].text},
        records[3].text: set(),
    }
