"""Search by memory: the rows whose search vectors are near, then the best of them by the memories themselves.

Exact over the whole search column while it fits the memory set aside for it, through an approximate index beyond.
Which rows a text search adds is ``store``'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from clara.index.ranking import Ranked, best, best_together, late_depth, rescore_depth
from clara.index.search_column import SearchColumn, cosines, dot, exact_dot
from clara.index.table import PassageTable, Scanned, joined
from clara.records import FloatArray, QueryMemory
from clara.similarity import token_matches

# Float32 products of 1,024 values were within 2e-6 of the true ones (tests); rows nearer than this to the last place
# are scored again exactly.
_MARGIN = 2e-5


class LatentSearch:
    """Search by memory over one table.

    Args:
        table: the table.
        column: how its search vectors were made.
        exact_bytes: a search column up to this size is searched whole, and kept in RAM after the first search.
    """

    def __init__(self, table: PassageTable, column: SearchColumn, *, exact_bytes: int) -> None:
        self._table = table
        self._column = column
        self._exact_rows = exact_bytes // (2 * column.width)
        self._cached: Scanned | None = None
        self._cached_version = -1

    def wants_index(self, rows: int) -> bool:
        """Whether so many rows are too many to search one by one."""
        return rows > self._exact_rows

    def search(self, query: QueryMemory, k: int, *, version: int) -> list[Ranked]:
        """The ``k`` best passages: by late interaction for a question with a centre, else by cosine.

        Args:
            query: the question.
            k: at least 1.
            version: the table's version, at which it stands.
        """
        vector = self._column.query(query)
        if query.centre is not None:
            return self._late(self._near(vector, late_depth(k), version), query, k)
        if self._column.exact:
            return self._near(vector, k, version)
        return best(self._rescored(self._near(vector, rescore_depth(k), version), query), k)

    def clear(self) -> None:
        """Give the memory back."""
        self._cached, self._cached_version = None, -1

    def _near(self, vector: FloatArray, limit: int, version: int) -> list[Ranked]:
        """The ``limit`` rows of highest dot product, ties by id."""
        near: list[Ranked] = []
        for part in self._parts(vector, limit, version):
            rough = dot(part.vectors, vector)
            least = np.partition(rough, -limit)[-limit] - _MARGIN if rough.size > limit else -np.inf
            chosen = np.flatnonzero(rough >= least)
            scores = exact_dot(part.vectors[chosen], vector)
            near += [
                Ranked(part.ids[i], float(score), int(part.places[i])) for i, score in zip(chosen, scores, strict=True)
            ]
        return best(near, limit)

    def _late(self, near: Sequence[Ranked], query: QueryMemory, k: int) -> list[Ranked]:
        """The best ``k`` by late interaction."""
        places = {item.id: item.place for item in near}
        matches: dict[str, FloatArray] = {}
        for ids, memories in self._table.memories(list(places.values())):
            matches.update(zip(ids, token_matches(query, memories), strict=True))
        return [Ranked(item.id, item.score, places[item.id]) for item in best_together(matches, k)]

    def _rescored(self, near: Sequence[Ranked], query: QueryMemory) -> list[Ranked]:
        """Passages with the cosines of their memories."""
        places = {item.id: item.place for item in near}
        vector = query.search_vector()
        scored: list[Ranked] = []
        for ids, memories in self._table.memories(list(places.values())):
            exact = cosines(memories.reshape(len(memories), -1), vector)
            scored += [Ranked(i, float(score), places[i]) for i, score in zip(ids, exact, strict=True)]
        return scored

    def _parts(self, vector: FloatArray, limit: int, version: int) -> Iterator[Scanned]:
        """Parts of the search column that hold the nearest rows: of RAM, of the index, or else all there are."""
        if self._cached is not None and self._cached_version == version:
            yield self._cached
            return
        self.clear()
        large = self.wants_index(self._table.count())
        if large and self._table.unindexed("search") is not None:
            yield self._table.nearest(vector, limit)
        elif large:
            yield from self._table.search_vectors()
        else:
            self._cached, self._cached_version = joined(list(self._table.search_vectors())), version
            yield self._cached
