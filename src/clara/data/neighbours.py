"""BM25 over passages, and whether a passage holds an answer.

Training takes hard candidates and distractors from it, synthesis the passages beside a question. Knows texts and words,
not tokens or memories.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from clara.data.records import DataRecord, PassageQA
from clara.metrics import normalize_answer

# The usual constants (Robertson and Zaragoza, 2009): how fast repeats saturate, how much length counts.
_K1 = 1.2
_B = 0.75

_ANSWER_LETTERS = 3  # a shorter answer in normal form ("no", "7") occurs in passages that do not support it
_WORD = re.compile(r"\w+")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


class WordIndex:
    """BM25 over texts.

    Our own, since a batch's candidates must be the same on every machine and after every resume, ties included, and
    training needs no extra for it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._size = len(texts)
        # By word: the texts with it, ascending, and its share in the score of each.
        self._postings: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = {}
        rows: dict[str, list[tuple[int, int]]] = {}
        lengths = np.zeros(len(texts), dtype=np.float32)
        for i, text in enumerate(texts):
            counts = Counter(_words(text))
            lengths[i] = counts.total()
            for word, count in counts.items():
                rows.setdefault(word, []).append((i, count))
        damping = _K1 * (1 - _B + _B * lengths / max(1.0, float(lengths.mean()) if len(texts) else 1.0))
        for word, own in rows.items():
            places, repeats = np.array(own, dtype=np.int64).T
            rarity = np.log1p((self._size - len(own) + 0.5) / (len(own) + 0.5))
            weights = rarity * repeats * (_K1 + 1) / (repeats + damping[places])
            self._postings[word] = places, weights.astype(np.float32)

    def scores(self, question: str) -> npt.NDArray[np.float32]:
        """BM25 of each text: float32 [texts]; 0 where no word is shared."""
        total = np.zeros(self._size, dtype=np.float32)
        for word in sorted(set(_words(question))):  # sorted: sums of floats depend on their order
            if word in self._postings:
                places, weights = self._postings[word]
                total[places] += weights
        return total

    def ranked(self, question: str) -> npt.NDArray[np.int64]:
        """Texts that share a word with the question, best first; the earlier text first among equals."""
        scores = self.scores(question)
        order = np.argsort(-scores, kind="stable")
        return order[: int((scores > 0).sum())]


def key_of(text: str) -> str:
    """A key that is equal for passages which differ in case and white space only."""
    return " ".join(text.casefold().split())


class Neighbours:
    """BM25 over the passages of records."""

    def __init__(self, records: Iterable[DataRecord]) -> None:
        """Index the passages of ``records``; texts that differ in case and white space only count once."""
        passages = {key_of(text): text for record in records for text in record.passages}
        self._keys, self._texts = list(passages), list(passages.values())
        self._index = WordIndex(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def of(self, record: PassageQA, count: int) -> list[str]:
        """At most ``count`` passages nearest to a record's questions, except its own and those with an answer of it."""
        own = key_of(record.passages[0])
        answers = [normalize_answer(answer) for pair in record.all_pairs for answer in pair.answers]
        asked = " ".join(pair.question for pair in record.all_pairs)
        return self.first(self.ranked(asked), count, taken={own}, answers=answers)

    def first(self, places: Iterable[int], count: int, *, taken: Container[str], answers: Sequence[str]) -> list[str]:
        """The first ``count`` passages at ``places`` whose keys are not taken and that hold none of the answers."""
        usable = (i for i in places if self._keys[i] not in taken and not holds_answer(self._texts[i], answers))
        return [self._texts[i] for i in islice(usable, count)]

    def ranked(self, question: str) -> list[int]:
        """Numbers of the passages that share a word with the question, best first."""
        ranked: list[int] = self._index.ranked(question).tolist()
        return ranked


def holds_answer(text: str, answers: Sequence[str]) -> bool:
    """A text holds one of the answers, which are in normal form, as whole words."""
    long = [f" {answer} " for answer in answers if len(answer) >= _ANSWER_LETTERS and answer != "yes"]
    if not long:
        return False
    words = f" {normalize_answer(text)} "
    return any(answer in words for answer in long)
