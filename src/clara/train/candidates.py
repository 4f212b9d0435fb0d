"""Candidates of a question: its record's own passages, topped up with other records' that are near it in words.

Stages ``end_to_end`` and ``retriever`` share this. A question's candidates are a function of the records, the settings
and the draw's own generator.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clara.data import DataRecord, MultiHop, QAPair
from clara.data.neighbours import Neighbours, key_of, passages_of
from clara.errors import TrainingError
from clara.metrics import normalize_answer
from clara.train.examples import CandidateExample


class CandidateSampler:
    """Makes questions with candidates out of records."""

    def __init__(self, near: Neighbours, count: int, *, labelled: bool) -> None:
        """Fix what all questions have in common.

        Args:
            near: the passages to top up from: those of the records that the run draws, because each has to be
                compressed.
            count: candidates a question.
            labelled: for a stage that is told which candidates are wrong. Passages of other records that hold an
                answer are then left out, and a question may get fewer candidates.

        Raises:
            TrainingError: there are fewer passages than candidates, and ``labelled`` is false.
        """
        if len(near) < count and not labelled:
            raise TrainingError(
                f"candidates is {count}, the records of this run hold {len(near)} different passages; give more "
                "data or set fewer candidates"
            )
        self._near, self._count, self._labelled = near, count, labelled

    def example(self, record: DataRecord, rng: np.random.Generator) -> CandidateExample | None:
        """One question of a record, one of several at random; None for a record without questions.

        All gold passages come first, then the record's others at random, then those nearest in words. Texts that
        differ in case and white space only count once.
        """
        pair = _pair(record, rng)
        if pair is None:
            return None
        texts: dict[str, str] = {}
        for text in self._own(record, rng):
            texts.setdefault(key_of(text), text)
        own = list(texts)[: self._count]
        gold = {key_of(text) for text in _gold(record)} & set(own)
        chosen = [texts[key] for key in own]
        chosen += self._others(pair, set(texts), self._count - len(own), rng)
        order = rng.permutation(len(chosen))
        positives = tuple(place for place, i in enumerate(order) if i < len(own) and own[i] in gold)
        return CandidateExample(
            question=pair.question.strip(),
            reply=pair.answers[0],
            candidates=tuple(chosen[i] for i in order),
            positives=positives,
        )

    @staticmethod
    def _own(record: DataRecord, rng: np.random.Generator) -> list[str]:
        gold, every = _gold(record), passages_of(record)
        rest = [text for text in every if text not in gold]
        return [*gold, *(rest[i] for i in rng.permutation(len(rest)))]

    def _others(self, pair: QAPair, taken: set[str], count: int, rng: np.random.Generator) -> list[str]:
        """The nearest passages of other records; where words give out, any."""
        answers = [normalize_answer(answer) for answer in pair.answers] if self._labelled else []
        return self._near.first(self._order(pair.question, rng), count, taken=taken, answers=answers)

    def _order(self, question: str, rng: np.random.Generator) -> Iterator[int]:
        near = self._near.ranked(question)
        yield from near
        seen = set(near)
        yield from (i for i in rng.permutation(len(self._near)).tolist() if i not in seen)


def _pair(record: DataRecord, rng: np.random.Generator) -> QAPair | None:
    if isinstance(record, MultiHop):
        return QAPair(record.question, record.answers)
    pairs = record.all_pairs
    return pairs[rng.integers(len(pairs))] if pairs else None


def _gold(record: DataRecord) -> list[str]:
    every = passages_of(record)
    return [every[i] for i in record.gold] if isinstance(record, MultiHop) else every
