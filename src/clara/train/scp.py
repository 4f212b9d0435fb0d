"""Stage ``scp``: salient compressor pretraining (clara.md section 3).

Trains compressor, generator and memory table on one passage at a time: answer its questions and restate it from its
memory.
"""

from __future__ import annotations

import re

import numpy as np

from clara import prompts
from clara.data import DataRecord, PassageQA
from clara.train.config import RestateSettings, TrainConfig
from clara.train.examples import Example, Target

_OPENING_WORDS = 4


def example(record: DataRecord, config: TrainConfig, rng: np.random.Generator) -> Example | None:
    """An example of one passage record; None for records this stage has no use for."""
    if not isinstance(record, PassageQA):
        return None
    pairs = record.all_pairs
    chosen = sorted(rng.permutation(len(pairs))[: config.pairs])
    targets = [Target(prompts.QUESTION + pairs[i].question.strip(), pairs[i].answers[0]) for i in chosen]
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
