"""Candidates ranked by BM25, and the one place that says how this evaluation counts words.

bm25s as it comes: its ``lucene`` variant with k1 1.5 and b 0.75, lower case, words of two and more characters,
English stop words left out, no stemming (LOG.md has the comparison). Inverse document frequencies are those of the
question's own candidates, so a ranking depends on nothing else in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clara.errors import MissingExtraError
from clara.evaluate.baselines.composed import Composed, Ranking, digest, ranking_only
from clara.evaluate.isolation import Failure, each
from clara.evaluate.shelf import Shelf
from clara.evaluate.system import Ask, SystemSettings
from clara.prompts import passage_text

STOP_WORDS = "english"
METHOD, K1, B = "lucene", 1.5, 0.75


class Bm25:
    """Ranks the candidates of each question by their words.

    Args:
        shelf: keeps the words of documents.

    Raises:
        MissingExtraError: bm25s is not installed.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._library = _library()
        self._shelf = shelf
        self.fingerprint = digest({"bm25s": self._library.__version__, "method": METHOD, "k1": K1, "b": B})

    def rank(self, asks: Sequence[Ask]) -> list[Ranking | Failure]:
        """All candidates, best first; documents without a word of the question keep their order at the end."""
        return each(asks, lambda some: [self._order(ask) for ask in some])

    def _order(self, ask: Ask) -> Ranking:
        texts = [passage_text(doc.title, doc.text) for doc in ask.docs]
        scores = self.scores(ask.question, texts)
        return tuple(int(index) for index in np.argsort(-scores, kind="stable"))

    def scores(self, question: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """BM25 of each text for a question, among these texts: float32 [texts]."""
        words = self._words([question])[0]
        rows: list[list[str]] = []
        for found in self._shelf.derived("bm25 words", texts, self._words):
            if isinstance(found, Failure):
                raise found.error
            rows.append(found)
        known = {word for row in rows for word in row}
        asked = [word for word in words if word in known]
        if not asked:
            return np.zeros(len(texts), dtype=np.float32)
        index = self._library.BM25(method=METHOD, k1=K1, b=B)
        index.index(rows, show_progress=False)
        scores: npt.NDArray[np.float32] = index.get_scores(asked)
        return scores

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        words: list[list[str]] = self._library.tokenize(
            list(texts), stopwords=STOP_WORDS, return_ids=False, show_progress=False
        )
        return words


def build(settings: SystemSettings) -> Composed:
    """System ``bm25``: the ranking alone."""
    return ranking_only("bm25", settings, Bm25(settings.shelf))


def _library() -> Any:  # noqa: ANN401 - the library has no types
    try:
        import bm25s  # noqa: PLC0415 - optional, imported at its own door
    except ImportError:
        raise MissingExtraError("bm25s", "eval") from None
    return bm25s
