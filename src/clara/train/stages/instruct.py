"""Stage ``instruct``: compression instruction tuning (clara.md section 4).

Trains the same weights as ``scp`` on questions with several passages, each compressed on its own, all memories in one
prompt. Batches, loss and weights are those of ``writing``. With ``text_share`` and ``unanswered`` the same generator
learns to read each passage as text or as memory, mixed in one prompt, and to say that none of them holds the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from clara import prompts
from clara.config import Settings
from clara.data import DataRecord, MultiHop, PassageQA
from clara.data.neighbours import Neighbours, holds_answer, passages_of
from clara.metrics import normalize_answer
from clara.model.create import Loaded
from clara.model.hub.base import Progress as HubProgress
from clara.train.data import Surroundings, TrainingData
from clara.train.examples import Example, Target
from clara.train.stages.writing import WritingConfig, WritingStage


class BackgroundConfig(Settings):
    """Which passages a question reads.

    Attributes:
        pairs: most question-answer pairs of a passage in one example.
        documents: most passages of a question.
        distractors: most passages beside the gold ones, drawn anew for each example.
        shared_distractors: take those of a passage record from its own batch: each passage is then compressed once
            and stands in several prompts, which makes distractors cheap.
        near_distractors: take those of a passage record from the passages of the run that are nearest its questions in
            words and hold none of its answers, as what a search finds beside the right passage is.
        unanswered: share of the examples from which the passages with the answer are left out; the reply is then
            ``prompts.NO_ANSWER``, as for records that say so themselves, and the manifest says ``refuses``.
    """

    pairs: int = Field(default=4, ge=1)
    documents: int = Field(default=5, ge=1)
    distractors: int = Field(default=3, ge=0)
    shared_distractors: bool = False
    near_distractors: bool = False
    unanswered: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_distractors(self) -> BackgroundConfig:
        if self.shared_distractors and self.near_distractors:
            raise ValueError("shared_distractors and near_distractors exclude each other; set one of them")
        return self


class InstructConfig(BackgroundConfig, WritingConfig):
    """Settings of stage ``instruct``; those of both bases and its own.

    Attributes:
        text_share: of the passages, how many the generator reads as text, each drawn apart, so that texts and memories
            stand in one prompt. The checkpoint's manifest then says ``mixed``.
    """

    text_share: float = Field(default=0.0, ge=0, le=1)


class InstructStage(WritingStage):
    """Compression instruction tuning."""

    config: InstructConfig
    Config = InstructConfig
    name = "instruct"

    def neighbours(self, drawn: Sequence[DataRecord], held_out: Sequence[DataRecord]) -> Neighbours | None:  # noqa: ARG002 - not to be read
        """The passages that are drawn, for distractors that are near a question in words."""
        return Neighbours(drawn) if self.config.near_distractors else None

    def passages(self) -> int:
        """As set."""
        return self.config.documents

    def example(
        self, record: DataRecord, rng: np.random.Generator, around: Surroundings | None = None
    ) -> Example | None:
        """An example of one record with its distractors, some of its passages as text, or those alone."""
        made = drawn_example(record, self.config, rng, around)
        if made is None or not self.config.text_share:
            return made
        as_text = np.flatnonzero(rng.random(len(made.texts)) < self.config.text_share)
        return replace(made, as_text=frozenset(as_text.tolist()))

    def unusable(self, record: DataRecord, rng: np.random.Generator) -> str | None:
        """A record without an answer needs a run that trains to say so."""
        return unusable_refusal(record, self.config) or WritingStage.unusable(self, record, rng)

    def background(self) -> int:
        """Memories of the passages, or their text."""
        return self.passages() * self.window().tokens if self.config.text_share else WritingStage.background(self)

    def asking(self) -> Self:
        """With the answers in the passages."""
        return self.changed(unanswered=0.0)

    def network(self, data: TrainingData, cache: Path, device: str, progress: HubProgress | None) -> Loaded:
        """As every stage's, with what its generator will be able to read and say."""
        loaded = WritingStage.network(self, data, cache, device, progress)
        learnt = {
            "mixed": loaded.manifest.mixed or self.config.text_share > 0,
            "refuses": loaded.manifest.refuses or self.config.unanswered > 0,
        }
        return replace(loaded, manifest=loaded.manifest.model_copy(update=learnt))


def unusable_refusal(record: DataRecord, config: BackgroundConfig) -> str | None:
    """Why a record that says that nothing answers it cannot be used."""
    if isinstance(record, MultiHop) and not record.answerable and not config.unanswered:
        return "question without an answer has no use while unanswered is 0"
    return None


def drawn_example(
    record: DataRecord, config: BackgroundConfig, rng: np.random.Generator, around: Surroundings | None
) -> Example | None:
    """A record's question over its passages and others, or, in a share of the draws, over others alone."""
    drawn = config.unanswered > 0 and around is not None and rng.random() < config.unanswered
    refused = isinstance(record, MultiHop) and not record.answerable
    make = unanswered_example if drawn or refused else background_example
    return make(record, config, rng, around)


def background_example(
    record: DataRecord, config: BackgroundConfig, rng: np.random.Generator, around: Surroundings | None = None
) -> Example | None:
    """A record's gold passages and some others in random order, with its questions.

    Args:
        record: a multi-hop record, or a passage record whose pairs all read the same passages.
        config: bounds the number of passages.
        rng: of the draw.
        around: where distractors of a passage record come from.

    Returns:
        None for a record without gold passages or questions.
    """
    others = [] if around is None else _others(record, config, rng, around)
    if isinstance(record, MultiHop):
        gold = [_text(record, i) for i in record.gold]
        rest = [_text(record, i) for i in range(len(record.docs)) if i not in record.gold]
        targets = [Target(prompts.QUESTION + record.question.strip(), record.answers[0])]
    else:
        gold, rest = [prompts.passage_text(record.title, record.text)], others
        targets = _targets(record, config, rng)
    if not gold or not targets:
        return None
    gold = gold[: config.documents]
    room = min(config.documents - len(gold), len(rest), int(rng.integers(0, config.distractors + 1)))
    drawn = [rest[i] for i in rng.choice(len(rest), size=room, replace=False)] if room > 0 else []
    texts = [*gold, *drawn]
    return Example(tuple(texts[i] for i in rng.permutation(len(texts))), tuple(targets))


def unanswered_example(
    record: DataRecord, config: BackgroundConfig, rng: np.random.Generator, around: Surroundings | None
) -> Example | None:
    """A question over passages that do not hold its answer; as ``background_example`` where there are none of them."""
    if isinstance(record, MultiHop):
        question, answers = record.question, record.answers
        rest = [_text(record, i) for i in range(len(record.docs)) if i not in record.gold]
    elif around is None or not record.all_pairs:
        return background_example(record, config, rng, around)
    else:
        pair = record.all_pairs[int(rng.integers(len(record.all_pairs)))]
        question, answers, rest = pair.question, pair.answers, _others(record, config, rng, around)
    normal = [normalize_answer(answer) for answer in answers]
    without = [text for text in rest if not holds_answer(text, normal)]
    if not without:
        return background_example(record, config, rng, around)
    count = int(rng.integers(1, min(config.documents, len(without)) + 1))
    texts = tuple(without[i] for i in rng.choice(len(without), size=count, replace=False))
    return Example(texts, (Target(prompts.QUESTION + question.strip(), prompts.NO_ANSWER),))


def _text(record: MultiHop, index: int) -> str:
    return prompts.passage_text(record.docs[index].title, record.docs[index].text)


def _targets(record: PassageQA, config: BackgroundConfig, rng: np.random.Generator) -> list[Target]:
    pairs = record.all_pairs
    chosen = sorted(rng.permutation(len(pairs))[: config.pairs])
    return [Target(prompts.QUESTION + pairs[i].question.strip(), pairs[i].answers[0]) for i in chosen]


def _others(record: DataRecord, config: BackgroundConfig, rng: np.random.Generator, around: Surroundings) -> list[str]:
    """Passages of other records to read beside a passage record's own: its batch's, its nearest, or any."""
    if config.shared_distractors and around.batch is not None:
        beside = sorted({text for one in around.batch for text in _own(one)})
        own = _own(record)
        kept = [text for text in beside if text not in own]
        return [kept[i] for i in rng.permutation(len(kept))[: config.distractors]]
    if not isinstance(record, PassageQA):
        return []
    if around.data.near is not None:
        return around.data.near.of(record, config.distractors)
    return _any(record, around.data, config.distractors, rng)


def _own(record: DataRecord) -> list[str]:
    """The text of a passage record; nothing of other records."""
    return passages_of(record) if isinstance(record, PassageQA) else []


def _any(record: PassageQA, data: TrainingData, count: int, rng: np.random.Generator) -> list[str]:
    own = passages_of(record)
    # One more than needed, as it may be the record's own.
    picks = rng.choice(len(data.passages), size=min(count + 1, len(data.passages)), replace=False)
    drawn = [text for i in picks for text in passages_of(data.passages[i]) if text not in own]
    return drawn[:count]
