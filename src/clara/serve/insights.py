"""Insights of a store and its model for the page: words that a question's memory points at, and a map of the memories.

Both are computed by ``clara.analysis``; here is what a server needs of them, and what it keeps between requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np

from clara.analysis.embedding_map import Projection, project_groups
from clara.analysis.logit_lens import REFERENCES, LensWord, common_words, condense
from clara.pipeline import Clara
from clara.records import FloatArray, Passage

_WORDS = 8
"""Words of a lens that are shown."""
_MOST_POINTS = 1500
"""Passages on a map, evenly chosen of a larger store: more are not told apart on a screen."""

_ROLE: Final = "query_reasoner"
_TOP = 5  # tokens a memory vector, as ``clara inspect`` shows
_READ_AT_ONCE = 128  # memories of 64 memory tokens are 10 MB
_SNIPPET = 160  # characters

_Version = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class MapPoint:
    """A passage on a map, at ``x`` and ``y`` from 0 to 1; ``text`` is how it begins."""

    passage_id: str
    document: str
    start: int
    end: int
    text: str
    x: float
    y: float


@dataclass(frozen=True, slots=True, eq=False)
class _StoreMap:
    """A map of a store's passages, or of a part of them; the projection is from the mean of a memory to the map."""

    points: tuple[MapPoint, ...]
    passages: int
    projection: Projection


class Insights:
    """Lenses and maps of the stores of a server."""

    def __init__(self) -> None:
        self._common: WeakKeyDictionary[Clara, dict[str, frozenset[str]]] = WeakKeyDictionary()
        self._maps: WeakKeyDictionary[Clara, tuple[_Version, _StoreMap]] = WeakKeyDictionary()

    def unseen(self, rag: Clara) -> list[str]:
        """The questions about nothing that are to be looked at before ``words``, so that none takes long."""
        return [text for text in REFERENCES if text not in self._common.get(rag, {})]

    def look(self, rag: Clara, reference: str) -> frozenset[str]:
        """Look at a question about nothing: what its memory points at, any memory does."""
        words = common_words([rag.model.inspector().lens(reference, role=_ROLE, rate=rag.rate, top=_TOP)])
        self._common.setdefault(rag, {})[reference] = words
        return words

    def words(self, rag: Clara, question: str) -> tuple[LensWord, ...]:
        """Words that the memory of a question points at and the question does not say, best first.

        Raises:
            InputError: the question is longer than the model's window.
        """
        for reference in self.unseen(rag):
            self.look(rag, reference)
        common = frozenset[str]().union(*self._common[rag].values())
        lens = rag.model.inspector().lens(question, role=_ROLE, rate=rag.rate, top=_TOP)
        return condense(lens, question, common)[:_WORDS]

    def map(self, rag: Clara) -> _StoreMap:
        """The map of a store; made anew when its documents have changed.

        Raises:
            InputError: the store holds too few passages.
        """
        entries = rag.store.documents()
        version: _Version = frozenset((entry.uri, entry.content_hash) for entry in entries.values())
        kept = self._maps.get(rag)
        if kept is None or kept[0] != version:
            kept = self._maps[rag] = (version, _draw(rag, sorted(entries)))
        return kept[1]

    def place(self, rag: Clara, question: str) -> tuple[float, float]:
        """Where a question stands on the map: what the compressor makes of it, projected as the passages are.

        Raises:
            InputError: as ``map``, or the question is longer than the model's window.
        """
        memory = rag.model.compress([question], rate=rag.rate)[0]
        (place,) = self.map(rag).projection.places(memory.values.mean(axis=0)[None])
        return float(place[0]), float(place[1])


def _draw(rag: Clara, documents: Sequence[str]) -> _StoreMap:
    ids = [passage_id for uri in documents for passage_id in sorted(rag.store.passage_ids(uri))]
    step = max(1.0, len(ids) / _MOST_POINTS)
    chosen = [ids[int(place * step)] for place in range(min(len(ids), _MOST_POINTS))]
    read: list[tuple[Passage, FloatArray]] = []
    for start in range(0, len(chosen), _READ_AT_ONCE):
        rows = rag.store.get(chosen[start : start + _READ_AT_ONCE])
        read += [(row.passage, row.memory.values.mean(axis=0)) for row in rows]
    means = np.stack([mean for _, mean in read]) if read else np.zeros((0, rag.model.width), dtype=np.float32)
    projection = project_groups(means, [passage.document for passage, _ in read])
    places = projection.places(means)
    return _StoreMap(
        points=tuple(_point(passage, place) for (passage, _), place in zip(read, places, strict=True)),
        passages=len(ids),
        projection=projection,
    )


def _point(passage: Passage, place: FloatArray) -> MapPoint:
    text = " ".join(passage.text[: 2 * _SNIPPET].split())[:_SNIPPET]
    return MapPoint(passage.id, passage.document, passage.start, passage.end, text, float(place[0]), float(place[1]))
