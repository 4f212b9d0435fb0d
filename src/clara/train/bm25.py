"""BM25 over the passages of a run, to find candidates that are near a question in words.

Our own and short, not a library's: which candidates a batch holds must be the same on every machine and after every
resume, ties included, and training needs no extra for it. What users search is the store's BM25, what systems are
compared with is the evaluation's. Knows words, not records.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

K1 = 1.2
B = 0.75
"""The usual constants (Robertson and Zaragoza, 2009): how fast repeats saturate, how much length counts."""

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, case folded, in order."""
    return _WORD.findall(text.casefold())


@dataclass(frozen=True, slots=True)
class _Postings:
    """The texts with one word.

    Attributes:
        texts: int64 [n], ascending.
        weights: float32 [n], what the word adds to the score of each.
    """

    texts: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class WordIndex:
    """Texts that can be ranked by a question's words."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._size = len(texts)
        found: dict[str, list[tuple[int, int]]] = {}
        lengths = np.zeros(len(texts), dtype=np.float32)
        for i, text in enumerate(texts):
            counts = Counter(words(text))
            lengths[i] = counts.total()
            for word, count in counts.items():
                found.setdefault(word, []).append((i, count))
        damping = K1 * (1 - B + B * lengths / max(1.0, float(lengths.mean()) if len(texts) else 1.0))
        self._postings = {word: self._weigh(rows, damping) for word, rows in found.items()}

    def _weigh(self, rows: list[tuple[int, int]], damping: npt.NDArray[np.float32]) -> _Postings:
        places, counts = np.array(rows, dtype=np.int64).T
        rarity = np.log1p((self._size - len(rows) + 0.5) / (len(rows) + 0.5))
        weights = rarity * counts * (K1 + 1) / (counts + damping[places])
        return _Postings(places, weights.astype(np.float32))

    def scores(self, question: str) -> npt.NDArray[np.float32]:
        """BM25 of each text: float32 [texts]; 0 where no word is shared."""
        total = np.zeros(self._size, dtype=np.float32)
        for word in sorted(set(words(question))):  # sorted: sums of floats depend on their order
            if (postings := self._postings.get(word)) is not None:
                total[postings.texts] += postings.weights
        return total

    def ranked(self, question: str) -> npt.NDArray[np.int64]:
        """Texts that share a word with the question, best first; the earlier text first among equals."""
        scores = self.scores(question)
        order = np.argsort(-scores, kind="stable")
        return order[: int((scores > 0).sum())]
