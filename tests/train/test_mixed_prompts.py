"""One generator for texts and memories: what a mixed prompt holds, what it is trained on, what the manifest says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from train_cases import made, passages, questions

from clara import prompts
from clara.answering import AnswerOptions, plan_reading
from clara.config import CompressionConfig
from clara.data import DataRecord, DocText, MultiHop
from clara.model import ClaraModel, checkpoint
from clara.model.create import Loaded
from clara.model.prompting import Prompter
from clara.records import GenerationRequest, Hit, Passage
from clara.train.batch import Collator
from clara.train.data import Surroundings, divide
from clara.train.examples import Example, Target
from clara.train.objective import generation_loss
from clara.train.run import train

RATE, WINDOW = 16, 64
TEXTS = ("The tower is 330 metres high.", "Bees dance.", "Gutenberg printed in Mainz.", "Coffee grows.")
TARGETS = (Target(prompts.QUESTION + "How high?", "330 metres"), Target(prompts.QUESTION + "Who dances?", "bees"))
UNANSWERED = MultiHop("n", "none", "Who?", (prompts.NO_ANSWER,), (DocText("", "Nobody."), DocText("", "None.")), ())


@pytest.fixture(scope="module")
def loaded(make_network: Callable[[CompressionConfig], Loaded]) -> Loaded:
    return make_network(CompressionConfig(window_tokens=WINDOW, rates=(4, RATE), residual=True))


def test_words_between_memories_are_one_piece(loaded: Loaded) -> None:
    prompter, n = Prompter(loaded.base.tokenizer), 3
    found = prompter.background([TEXTS[0], TEXTS[1], n, TEXTS[2], n, n])
    first, last = f"{prompts.BACKGROUND}{TEXTS[0]}\n{TEXTS[1]}\n", f"\n{TEXTS[2]}\n"
    pads = [prompter.background([n]).ids[prompter.background([n]).slots[0]]] * n
    one, other, end = (prompter.plain(words) for words in (first, last, "\n"))
    head = list(prompter.background([]).ids)[: -len(prompter.plain(prompts.BACKGROUND))]
    assert list(found.ids) == [*head, *one, *pads, *other, *pads, *end, *pads, *end]
    assert len(found.slots) == 3 * n
    assert all(found.ids[slot] == pads[0] for slot in found.slots)


def slow_loss(loaded: Loaded, example: Example) -> float:
    """Nats of all replies, passage by passage and target by target, over the whole prompt."""
    network, prompter = loaded.network, Prompter(loaded.base.tokenizer)
    sizes = [t if i in example.as_text else WINDOW // RATE for i, t in enumerate(example.texts)]
    memories = []
    for text in example.compressed:
        ids = torch.tensor([prompter.plain(text)[:WINDOW]])
        memories.append(network.encode("compressor", ids, torch.ones_like(ids).bool(), rate=RATE).memory[0])
    total = 0.0
    for target in example.targets:
        background = prompter.background(sizes)
        prompt = [*background.ids, *prompter.instruction(target.instruction)]
        reply = [*prompter.plain(target.reply), prompter.eos]
        embeds = network.embed(torch.tensor([prompt + reply])).clone()
        if memories:
            embeds[0, list(background.slots)] = torch.cat(memories)
        with network.adapters.use("generator"):
            logits = network.adapters.bare()(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1]
        total += float(functional.cross_entropy(logits, torch.tensor(reply), reduction="sum"))
    return total


@pytest.mark.parametrize("as_text", [{0}, {1, 3}, {0, 1, 2, 3}, set[int]()])
def test_a_mixed_loss_equals_the_slow_version(loaded: Loaded, as_text: set[int]) -> None:
    examples = [Example(TEXTS, TARGETS, frozenset(as_text)), Example(TEXTS[2:], TARGETS[:1], frozenset(as_text & {1}))]
    if len(as_text) == len(TEXTS):
        examples = examples[:1]
    batch = Collator(Prompter(loaded.base.tokenizer), window_tokens=WINDOW)(examples, rate=RATE)
    with torch.no_grad():
        found = generation_loss(loaded.network, batch, mse_weight=0.1)
        slow = sum(slow_loss(loaded, example) for example in examples) / len(batch.labels)
    assert float(found.cross_entropy) == pytest.approx(slow, rel=1e-4)
    assert bool(torch.isfinite(found.total))


def examples_of(tiny_base: Path, records: list[DataRecord], **values: Any) -> list[Example]:  # noqa: ANN401
    stage = made("instruct", tiny_base, near_distractors=True, held_out=0, **values)
    data = divide(records, stage)
    found = [
        stage.example(record, np.random.default_rng(i), Surroundings(data))
        for i in range(12)
        for rows in data.sources.values()
        for record in rows
    ]
    return [example for example in found if isinstance(example, Example)]


def test_passages_are_drawn_as_text_and_answers_left_out(tiny_base: Path) -> None:
    records: list[DataRecord] = [*passages(8), *questions(4), UNANSWERED]
    found = examples_of(tiny_base, records, text_share=0.5, unanswered=0.3)
    shares = [len(example.as_text) / len(example.texts) for example in found]
    assert 0.35 < sum(shares) / len(shares) < 0.65
    assert {0.0, 1.0} < set(shares), "and both in one prompt"
    none = [e for e in found if e.targets[0].reply == prompts.NO_ANSWER]
    assert 0.2 < len(none) / len(found) < 0.5
    for example in none:
        asked = example.targets[0].instruction
        if (number := asked.removesuffix("?").split()[-1]).isdigit() and "How high" in asked:
            assert not any(f"is {3 * int(number)} metres" in text for text in example.texts)
    plain = examples_of(tiny_base, records)
    assert not any(example.as_text or example.targets[0].reply == prompts.NO_ANSWER for example in plain)


def test_a_run_says_what_its_generator_reads(tiny_base: Path, tmp_path: Path) -> None:
    records: list[DataRecord] = [*passages(8), *questions(6), UNANSWERED]
    values: dict[str, Any] = {"steps": 1, "held_out_answers": 1, "save_every": 1, "quoted_weight": 1.0}
    stage = made("instruct", tiny_base, text_share=0.5, unanswered=0.3, **values)
    folder = train(stage, records, tmp_path / "run", cache=tmp_path)
    manifest = checkpoint.read_manifest(folder)
    assert (manifest.mixed, manifest.refuses) == (True, True)
    plain = train(made("instruct", tiny_base, **values), records, tmp_path / "plain", cache=tmp_path)
    assert {"mixed", "refuses"}.isdisjoint(json.loads((plain / "clara.json").read_text()))
    assert checkpoint.read_manifest(plain).trained["records"].keys() == {"a", "m"}, "without what has no answer"
    on = made("instruct", tiny_base, start=str(folder), **{n: v for n, v in values.items() if n != "quoted_weight"})
    on = replace(on, config=on.config.model_copy(update={"compression": manifest.compression, "lora": manifest.lora}))
    assert on.network(divide(records, on), tmp_path, "cpu", None).manifest.mixed, "a run that goes on keeps it"


@pytest.fixture(scope="module")
def mixed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ClaraModel:
    """A checkpoint whose generator is said to read mixed prompts and to refuse."""
    folder = tmp_path_factory.mktemp("mixed") / "checkpoint"
    manifest = checkpoint.read_manifest(tiny_checkpoint)
    told = manifest.model_copy(update={"mixed": True, "refuses": True, "wording": "quoted"})
    with checkpoint.copying(tiny_checkpoint, folder, told, card="# Mixed\n"):
        pass
    return ClaraModel.load(folder, dtype="fp32")


def hits_of(model: ClaraModel) -> list[Hit]:
    memories = model.compress(TEXTS, rate=RATE)
    return [
        Hit(Passage(f"p{i}", f"d{i}", "", text, 0, len(text)), 1.0 - 0.1 * i, memory)
        for i, (text, memory) in enumerate(zip(TEXTS, memories, strict=True))
    ]


def test_auto_reads_the_best_as_text_and_the_rest_as_memories(mixed: ClaraModel, tiny_model: ClaraModel) -> None:
    hits = hits_of(mixed)
    found = plan_reading(mixed, "How high?", hits, AnswerOptions())
    assert found.read_as == ["text", "memory", "memory", "memory"]
    assert found.request.reader == "generator"
    assert (found.request.texts, len(found.request.memories)) == (TEXTS[:1], 3)
    assert found.request.quote_from == TEXTS
    text = plan_reading(mixed, "How high?", hits, AnswerOptions(context="text"))
    assert (text.read_as, text.request.reader, text.request.memories) == (["text"] * 4, "generator", ())
    memory = plan_reading(mixed, "How high?", hits, AnswerOptions(context="memory"))
    assert (memory.read_as, memory.request.texts) == (["memory"] * 4, ())
    before = plan_reading(tiny_model, "How high?", hits_of(tiny_model), AnswerOptions())
    assert before.read_as == ["memory"] * 4, "others read as before"


def test_a_refusal_may_be_quoted_and_withholds_the_answer(mixed: ClaraModel, tiny_model: ClaraModel) -> None:
    request = plan_reading(mixed, "How high?", hits_of(mixed), AnswerOptions()).request
    [answer] = mixed.generate_many([request], max_new_tokens=8, scored=True)
    assert answer.tokens.memory == 3 * WINDOW // RATE
    refusal = [*Prompter(mixed._tokenizer).plain(prompts.NO_ANSWER)]
    assert mixed._prompter.quotations(TEXTS, refusing=True).may_end(refusal)
    assert not tiny_model._prompter.quotations(TEXTS, refusing=True).may_end(refusal)
    told = replace(answer, text=prompts.NO_ANSWER)
    reading = plan_reading(mixed, "How high?", hits_of(mixed), AnswerOptions())
    assert reading.withheld(mixed, told)
    assert not tiny_model.refused(told)
    alone = mixed.generate_many([GenerationRequest("How high?", texts=TEXTS[:1], reader="generator")])[0]
    assert alone.tokens.memory == 0
