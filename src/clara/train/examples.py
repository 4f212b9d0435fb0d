"""Records to examples: passages to read, targets to write from them, questions with candidates to choose among.

Knows words, not tokens. An example is a function of its record, the settings, the records around it and the draw's own
generator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from clara import prompts
from clara.config import Settings
from clara.data import DataRecord, MultiHop, PassageQA, QAPair
from clara.data.neighbours import Neighbours, holds_answer, key_of
from clara.metrics import normalize_answer

if TYPE_CHECKING:
    from clara.train.data import Surroundings

_OPENING_WORDS = 4


@dataclass(frozen=True, slots=True)
class Target:
    """A reply to write.

    Attributes:
        instruction: follows the background in the prompt.
        ends: the reply is whole, so an end token follows it.
        weight: of each of its tokens in the loss.
        label_weights: weight of each label, the end token's included; empty for ``weight`` alike.
        accepted: forms of the answer to a question.
        right: of an answer that is to be judged and not learnt, whether it is right.
    """

    instruction: str
    reply: str
    ends: bool = True
    weight: float = 1.0
    label_weights: tuple[float, ...] = ()
    accepted: tuple[str, ...] = ()
    right: bool | None = None

    @property
    def asks(self) -> bool:
        """It answers a question, and does not restate."""
        return self.instruction.startswith(prompts.QUESTION)


@dataclass(frozen=True, slots=True)
class Example:
    """Texts and the targets to write from them; the targets do not see each other.

    Attributes:
        texts: passages as the compressor reads them, in the order of the prompt.
        targets: at least one.
        as_text: indices of the passages that the generator reads as text; it reads the others as memories.
    """

    texts: tuple[str, ...]
    targets: tuple[Target, ...]
    as_text: frozenset[int] = frozenset()

    @property
    def compressed(self) -> tuple[str, ...]:
        """The passages that need memories, in the order of the prompt."""
        return tuple(text for i, text in enumerate(self.texts) if i not in self.as_text)

    @property
    def length(self) -> int:
        """Characters read, for batches of like length."""
        return sum(map(len, self.texts))

    def questions(self) -> Example:
        """The example with its questions alone; there may be none."""
        return replace(self, targets=tuple(target for target in self.targets if target.asks))


@dataclass(frozen=True, slots=True)
class CandidateExample:
    """A question with the passages to choose from, in random order, each once, as the compressor reads them.

    Stage ``end_to_end`` reads no ``positives`` (indices of those that support the answer), ``retriever`` no reply.
    """

    question: str
    reply: str
    candidates: tuple[str, ...]
    positives: tuple[int, ...]

    @property
    def compressed(self) -> tuple[str, ...]:
        """The passages that need memories."""
        return self.candidates

    @property
    def length(self) -> int:
        """Characters read beside memories, for batches of like length."""
        return len(self.question)

    @property
    def target(self) -> Target:
        """The answer to write."""
        return Target(prompts.QUESTION + self.question, self.reply)


class RestateSettings(Settings):
    """Restating targets beside the questions of a passage.

    Attributes:
        repeat: share of passages with the target "repeat the passage", or its paraphrase where the record has one.
        resume: share of passages with the target "go on after these words", at a random place of the passage.
        tokens: longest such target, in words; a paraphrase is taken whole, up to ``reply_tokens``.
        weight: of each of its tokens in the loss, beside 1 for a token of an answer.
    """

    repeat: float = Field(default=0.3, ge=0, le=1)
    resume: float = Field(default=0.0, ge=0, le=1)
    tokens: int = Field(default=64, ge=4)
    weight: float = Field(default=1.0, gt=0)


class PassageConfig(Settings):
    """Targets of one passage.

    Attributes:
        pairs: most question-answer pairs of a passage in one example.
        ask_weight: of each token of a question that is to be written from the passage, beside 1 for a token of an
            answer; 0 leaves them out. ``ClaraModel.question_likelihoods`` needs them.
    """

    pairs: int = Field(default=4, ge=1)
    restate: RestateSettings = RestateSettings()
    ask_weight: float = Field(default=0.0, ge=0)


class BackgroundConfig(Settings):
    """The passages that a question is asked over.

    Attributes:
        pairs: most question-answer pairs of a passage in one example.
        documents: most passages of a question.
        distractors: most passages beside the gold ones, drawn anew for each example.
        shared_distractors: take a passage record's from its own batch: each passage is compressed once and stands in
            several prompts, which makes distractors cheap.
        near_distractors: take a passage record's from the run's passages nearest its questions by BM25 that hold none
            of its answers: hard negatives.
        unanswered: share of the examples without their gold passages, whose reply is ``prompts.NO_ANSWER``, as for
            records that say so themselves; the manifest then says ``refuses``.
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


def passage_example(record: DataRecord, config: PassageConfig, rng: np.random.Generator) -> Example | None:
    """A passage, some of its questions, and some of it to restate; None for other records."""
    if not isinstance(record, PassageQA):
        return None
    pairs = _drawn_pairs(record, config.pairs, rng)
    targets = [_answer(pair) for pair in pairs]
    if config.ask_weight:
        asked = (pair.question.strip() for pair in pairs)
        targets += [Target(prompts.ASK_INSTRUCTION, question, weight=config.ask_weight) for question in asked]
    targets += _restatements(record, config.restate, rng, needed=not targets)
    return Example(tuple(record.passages), tuple(targets))


def _restatements(
    record: PassageQA, settings: RestateSettings, rng: np.random.Generator, *, needed: bool
) -> list[Target]:
    """Restating targets of a passage; at least one when ``needed``."""
    repeat, resume = rng.random() < settings.repeat, rng.random() < settings.resume
    targets = []
    if record.paraphrase is not None and (repeat or needed):
        targets.append(Target(prompts.PARAPHRASE_INSTRUCTION, record.paraphrase, weight=settings.weight))
    elif repeat or (needed and not resume):
        targets.append(_span(record.text, 0, prompts.REPEAT_INSTRUCTION, settings))
    if resume:
        words = [m.start() for m in re.finditer(r"\S+", record.text)]
        if len(words) > 2 * _OPENING_WORDS:
            first = int(rng.integers(0, len(words) - 2 * _OPENING_WORDS + 1))
            opening = record.text[words[first] : words[first + _OPENING_WORDS]].strip()
            start = words[first + _OPENING_WORDS]
            targets.append(_span(record.text, start, prompts.RESUME_INSTRUCTION.format(opening=opening), settings))
        elif needed and not targets:
            targets.append(_span(record.text, 0, prompts.REPEAT_INSTRUCTION, settings))
    return targets


def _span(text: str, start: int, instruction: str, settings: RestateSettings) -> Target:
    words = list(re.finditer(r"\S+", text[start:]))
    whole = len(words) <= settings.tokens
    reply = text[start:] if whole else text[start : start + words[settings.tokens - 1].end()]
    return Target(instruction, reply, ends=whole, weight=settings.weight)


def drawn_example(
    record: DataRecord, config: BackgroundConfig, rng: np.random.Generator, around: Surroundings | None
) -> Example | None:
    """A record's question over its passages and others; over others alone in a share of the draws.

    None for a record without gold passages or questions.
    """
    drawn = config.unanswered > 0 and around is not None and rng.random() < config.unanswered
    refused = isinstance(record, MultiHop) and not record.answerable
    make = _unanswered_example if drawn or refused else _answered_example
    return make(record, config, rng, around)


def _answered_example(
    record: DataRecord, config: BackgroundConfig, rng: np.random.Generator, around: Surroundings | None
) -> Example | None:
    """Gold passages and some others in random order; a passage record's pairs all read the same ones."""
    others = [] if around is None else _others(record, config, rng, around)
    if isinstance(record, MultiHop):
        gold, rest = _gold_and_rest(record)
        targets = [_answer(QAPair(record.question, record.answers))]
    else:
        gold, rest = record.passages, others
        targets = [_answer(pair) for pair in _drawn_pairs(record, config.pairs, rng)]
    if not gold or not targets:
        return None
    gold = gold[: config.documents]
    room = min(config.documents - len(gold), len(rest), int(rng.integers(0, config.distractors + 1)))
    drawn = [rest[i] for i in rng.choice(len(rest), size=room, replace=False)] if room > 0 else []
    texts = [*gold, *drawn]
    return Example(tuple(texts[i] for i in rng.permutation(len(texts))), tuple(targets))


def _unanswered_example(
    record: DataRecord, config: BackgroundConfig, rng: np.random.Generator, around: Surroundings | None
) -> Example | None:
    """A question over passages without its answer; an answered example where there are none."""
    if isinstance(record, MultiHop):
        question, answers, rest = record.question, record.answers, _gold_and_rest(record)[1]
    elif around is None or not record.all_pairs:
        return _answered_example(record, config, rng, around)
    else:
        pair = record.all_pairs[int(rng.integers(len(record.all_pairs)))]
        question, answers, rest = pair.question, pair.answers, _others(record, config, rng, around)
    normal = [normalize_answer(answer) for answer in answers]
    without = [text for text in rest if not holds_answer(text, normal)]
    if not without:
        return _answered_example(record, config, rng, around)
    count = int(rng.integers(1, min(config.documents, len(without)) + 1))
    texts = tuple(without[i] for i in rng.choice(len(without), size=count, replace=False))
    return Example(texts, (Target(prompts.QUESTION + question.strip(), prompts.NO_ANSWER),))


def _drawn_pairs(record: PassageQA, count: int, rng: np.random.Generator) -> list[QAPair]:
    pairs = record.all_pairs
    return [pairs[i] for i in sorted(rng.permutation(len(pairs))[:count])]


def _answer(pair: QAPair) -> Target:
    return Target(prompts.QUESTION + pair.question.strip(), pair.answers[0], accepted=tuple(pair.answers))


def _gold_and_rest(record: DataRecord) -> tuple[list[str], list[str]]:
    texts = record.passages
    return [texts[i] for i in record.gold], [text for i, text in enumerate(texts) if i not in record.gold]


def _others(record: DataRecord, config: BackgroundConfig, rng: np.random.Generator, around: Surroundings) -> list[str]:
    """Distractors of other records for a passage record: its batch's, its nearest, or random ones."""
    own = record.passages if isinstance(record, PassageQA) else []
    if config.shared_distractors and around.batch is not None:
        batch = (one for one in around.batch if isinstance(one, PassageQA))
        beside = [text for text in sorted({text for one in batch for text in one.passages}) if text not in own]
        return [beside[i] for i in rng.permutation(len(beside))[: config.distractors]]
    if not isinstance(record, PassageQA):
        return []
    if around.data.near is not None:
        return around.data.near.of(record, config.distractors)
    every = around.data.passages
    # One more than needed, as it may be the record's own.
    picks = rng.choice(len(every), size=min(config.distractors + 1, len(every)), replace=False)
    drawn = [text for i in picks for text in every[i].passages if text not in own]
    return drawn[: config.distractors]


def candidate_example(
    record: DataRecord, rng: np.random.Generator, near: Neighbours, *, count: int, labelled: bool
) -> CandidateExample | None:
    """A question of the record, one of several at random; None for a record without questions.

    Gold passages come first, then the record's others at random, then the nearest of other records by BM25, then any.
    Texts that differ only in case and white space count once. For a stage that knows the wrong candidates
    (``labelled``) passages of other records that hold an answer are left out, and a question may get fewer candidates.
    """
    if isinstance(record, MultiHop):
        pair = QAPair(record.question, record.answers)
    elif record.all_pairs:
        pair = record.all_pairs[rng.integers(len(record.all_pairs))]
    else:
        return None
    gold, _ = _gold_and_rest(record)
    rest = [text for text in record.passages if text not in gold]
    texts: dict[str, str] = {}
    for text in [*gold, *(rest[i] for i in rng.permutation(len(rest)))]:
        texts.setdefault(key_of(text), text)
    own = list(texts)[:count]
    supporting = {key_of(text) for text in gold} & set(own)
    answers = [normalize_answer(answer) for answer in pair.answers] if labelled else []
    candidates = [texts[key] for key in own]
    ranked = _by_nearness(near, pair.question, rng)
    candidates += near.first(ranked, count - len(own), taken=set(texts), answers=answers)
    order = rng.permutation(len(candidates))
    return CandidateExample(
        question=pair.question.strip(),
        reply=pair.answers[0],
        candidates=tuple(candidates[i] for i in order),
        positives=tuple(place for place, i in enumerate(order) if i < len(own) and own[i] in supporting),
    )


def _by_nearness(near: Neighbours, question: str, rng: np.random.Generator) -> Iterator[int]:
    ranked = near.ranked(question)
    yield from ranked
    seen = set(ranked)
    yield from (i for i in rng.permutation(len(near)).tolist() if i not in seen)
