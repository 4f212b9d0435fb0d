"""Stage ``scp``: salient compressor pretraining (clara.md section 3).

Trains compressor, generator and memory table on one passage at a time: answer its questions and restate it from its
memory. Batches, loss and weights are those of ``writing``.
"""

from __future__ import annotations

import re
from typing import Self

import numpy as np
from pydantic import Field

from clara import prompts
from clara.config import Settings
from clara.data import DataRecord, PassageQA
from clara.train.data import Surroundings
from clara.train.examples import Example, Target
from clara.train.stages.writing import WritingConfig, WritingStage

_OPENING_WORDS = 4


class RestateSettings(Settings):
    """Restating targets beside the questions of a passage.

    Attributes:
        repeat: share of passages with the target "repeat the passage", or its paraphrase where the record has one.
        resume: share of passages with the target "go on after these words", at a random place of the passage.
        tokens: longest such target, in words of the text; a paraphrase is taken whole, up to ``reply_tokens``.
        weight: weight of each of its tokens in the loss, beside 1 for a token of an answer.
    """

    repeat: float = Field(default=0.3, ge=0, le=1)
    resume: float = Field(default=0.0, ge=0, le=1)
    tokens: int = Field(default=64, ge=4)
    weight: float = Field(default=1.0, gt=0)


NO_RESTATEMENTS = RestateSettings(repeat=0, resume=0)


class PassageConfig(Settings):
    """What one passage is made to say.

    Attributes:
        pairs: most question-answer pairs of a passage in one example.
        restate: restating targets.
        ask_weight: of each token of a question that is to be written from the passage, beside 1 for a token of an
            answer; 0 leaves them out. ``ClaraModel.question_likelihoods`` is what they teach.
    """

    pairs: int = Field(default=4, ge=1)
    restate: RestateSettings = RestateSettings()
    ask_weight: float = Field(default=0.0, ge=0)


class ScpConfig(PassageConfig, WritingConfig):
    """Settings of stage ``scp``; those of both bases."""


class ScpStage(WritingStage):
    """Salient compressor pretraining."""

    config: ScpConfig
    Config = ScpConfig
    name = "scp"

    @property
    def restates_passages(self) -> bool:
        """Always."""
        return True

    def passages(self) -> int:
        """One."""
        return 1

    def example(
        self,
        record: DataRecord,
        rng: np.random.Generator,
        around: Surroundings | None = None,  # noqa: ARG002 - a passage is read alone
    ) -> Example | None:
        """An example of one passage record."""
        return passage_example(record, self.config, rng)

    def asking(self) -> Self:
        """Answers alone."""
        return self.changed(restate=NO_RESTATEMENTS, ask_weight=0.0)


def passage_example(record: DataRecord, config: PassageConfig, rng: np.random.Generator) -> Example | None:
    """A passage, some of its questions, and some of it to restate; None for other records."""
    if not isinstance(record, PassageQA):
        return None
    pairs = record.all_pairs
    chosen = sorted(rng.permutation(len(pairs))[: config.pairs])
    targets = [Target(prompts.QUESTION + pairs[i].question.strip(), pairs[i].answers[0]) for i in chosen]
    if config.ask_weight:
        asked = (pairs[i].question.strip() for i in chosen)
        targets += [Target(prompts.ASK_INSTRUCTION, question, weight=config.ask_weight) for question in asked]
    targets += restatements(record, config.restate, rng, needed=not targets)
    return Example((prompts.passage_text(record.title, record.text),), tuple(targets))


def restatements(
    record: PassageQA, settings: RestateSettings, rng: np.random.Generator, *, needed: bool
) -> list[Target]:
    """Targets that restate a passage; at least one when ``needed``."""
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
