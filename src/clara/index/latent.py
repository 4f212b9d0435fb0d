"""Search by memory: the rows whose search vectors are near, then the best of them by the memories themselves.

Exact over the whole search column while it is small. Beyond, a quantised copy of it beside the table is compared
instead, and rows that came after the copy are compared one by one. Which rows a text search adds is ``store``'s
business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clara.index.ranking import Ranked, SearchColumn, best, best_together, cosines, dot, exact_dot, late_depth
from clara.index.table import PassageTable, Scanned
from clara.records import FloatArray, QueryMemory
from clara.similarity import token_matches

if TYPE_CHECKING:
    from clara.index.quantised import QuantisedColumn

QUANTISED_FILE = "search.faiss"

# Float32 products of 1,024 values were within 2e-6 of the true ones (tests); rows nearer than this to the last place
# are scored again exactly.
_MARGIN = 2e-5
# Rows from which a quantised column can be learnt.
_FEWEST_ROWS = 64
# Rows that may wait outside of the quantised column.
_WAITING_ROWS = 10_000
# Passages whose sketches are near that are compared by their memories, and how many for each result.
_RESCORED = 500
_RESCORED_EACH = 20
# Search vectors are kept in RAM up to this size; more are read anew for each question.
_KEPT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """Values held of a version of the table.

    Attributes:
        version: the table's.
        stamp: of the quantised column's file.
        quantised: None where all rows are compared.
        gone: places in it whose rows are no more.
        rest: the search vectors of all other rows; None where they are too many.
    """

    version: int
    stamp: int
    quantised: QuantisedColumn | None
    gone: frozenset[int]
    rest: Scanned | None


class LatentSearch:
    """Search by memory over a store's table; a search column of at most ``exact_bytes`` is searched whole."""

    def __init__(self, table: PassageTable, column: SearchColumn, folder: Path, *, exact_bytes: int) -> None:
        self._table = table
        self._column = column
        self._path = folder / QUANTISED_FILE
        self._exact_rows = max(_FEWEST_ROWS, exact_bytes // (2 * column.width))
        self._kept_rows = _KEPT_BYTES // (2 * column.width)
        self._held: _Held | None = None

    def search(
        self, query: QueryMemory, k: int, *, version: int, within: Collection[str] | None = None
    ) -> list[Ranked]:
        """The ``k`` best passages: by late interaction for a question with a centre, else by cosine."""
        vector = self._column.query(query)
        if query.centre is not None:
            return self._late(self._near(vector, late_depth(k), version, within), query, k)
        if self._column.exact:
            return self._named(self._near(vector, k, version, within), vector, k)
        return best(self._rescored(self._near(vector, max(_RESCORED_EACH * k, _RESCORED), version, within), query), k)

    def bring_up_to_date(self, *, anew: bool) -> None:
        """See to it that a large table has a quantised column that lacks few rows; the caller holds the write lock.

        Args:
            anew: the table was compacted, which moves all rows.
        """
        if self._table.count() <= self._exact_rows:
            self._path.unlink(missing_ok=True)
            return
        quantised = None if anew else self._load()
        after = _last(quantised)
        if quantised is not None and self._table.count_after(after) <= _WAITING_ROWS:
            return
        if quantised is None:
            quantised = self._learn()
        quantised.write(self._path, self._table.search_vectors(after=after))

    def clear(self) -> None:
        """Give the memory back."""
        self._held = None

    def _near(self, vector: FloatArray, limit: int, version: int, within: Collection[str] | None) -> list[Ranked]:
        """The ``limit`` rows of highest dot product, ties by id; those of the quantised column have no id."""
        if within is not None:
            return _nearest(self._table.search_vectors(within=within), vector, limit)
        held = self._hold(version)
        quantised = [] if held.quantised is None else _living(held.quantised, held.gone, vector, limit)
        rest = self._table.search_vectors(after=_last(held.quantised)) if held.rest is None else [held.rest]
        return best([*quantised, *_nearest(rest, vector, limit)], limit)

    def _late(self, near: Sequence[Ranked], query: QueryMemory, k: int) -> list[Ranked]:
        """The best ``k`` by late interaction."""
        places: dict[str, int] = {}
        matches: dict[str, FloatArray] = {}
        for found, memories in self._table.memories([item.place for item in near]):
            places.update(found)
            matches.update(zip(found, token_matches(query, memories), strict=True))
        return [Ranked(item.id, item.score, places[item.id]) for item in best_together(matches, k)]

    def _rescored(self, near: Sequence[Ranked], query: QueryMemory) -> list[Ranked]:
        """Passages with the cosines of their memories."""
        vector = query.search_vector()
        scored: list[Ranked] = []
        for places, memories in self._table.memories([item.place for item in near]):
            exact = cosines(memories.reshape(len(memories), -1), vector)
            scored += [Ranked(i, float(score), places[i]) for i, score in zip(places, exact, strict=True)]
        return scored

    def _named(self, near: Sequence[Ranked], vector: FloatArray, limit: int) -> list[Ranked]:
        """Passages with their ids and exact scores."""
        unnamed = [item.place for item in near if not item.id]
        named = [item for item in near if item.id]
        return best([*named, *_nearest(self._table.search_vectors_at(unnamed), vector, limit)], limit)

    def _hold(self, version: int) -> _Held:
        """Values held of a version, read when first needed."""
        stamp = self._stamp()
        if self._held is None or (self._held.version, self._held.stamp) != (version, stamp):
            self.clear()
            rows = self._table.count()
            quantised = self._load() if rows > self._exact_rows else None
            after = _last(quantised)
            waiting = self._table.count_after(after)
            if quantised is not None and waiting == rows:  # compacted since, and no row lies where it did
                quantised, after = None, -1
            gone: frozenset[int] = frozenset()
            if quantised is not None and len(quantised) != rows - waiting:
                gone = frozenset(np.setdiff1d(quantised.places(), self._table.places()).tolist())
            keep = waiting <= self._kept_rows
            rest = Scanned.joined(self._table.search_vectors(after=after)) if keep else None
            self._held = _Held(version, stamp, quantised, gone, rest)
        return self._held

    def _stamp(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _load(self) -> QuantisedColumn | None:
        if not self._path.exists():
            return None
        from clara.index.quantised import QuantisedColumn  # noqa: PLC0415 - only large stores need faiss

        column = QuantisedColumn.load(self._path)
        return column if column is not None and len(column) and column.width == self._column.width else None

    def _learn(self) -> QuantisedColumn:
        """A quantised column without rows, learnt from rows all over the table."""
        from clara.index.quantised import QuantisedColumn  # noqa: PLC0415

        places = self._table.places()
        sample = places[:: -(-len(places) // QuantisedColumn.SAMPLE_ROWS)]
        vectors = Scanned.joined(self._table.search_vectors_at(sample.tolist())).vectors
        return QuantisedColumn.learn(vectors.astype(np.float32))


def _last(quantised: QuantisedColumn | None) -> int:
    """The place behind which rows lie that a quantised column lacks."""
    return -1 if quantised is None else quantised.last


def _living(quantised: QuantisedColumn, gone: frozenset[int], vector: FloatArray, limit: int) -> list[Ranked]:
    """The nearest rows that are still there; asks for more until there are enough."""
    depth = limit
    while True:
        found = quantised.nearest(vector, depth)
        living = [item for item in found if item.place not in gone] if gone else found
        if len(living) >= limit or depth >= len(quantised):
            return living[:limit]
        depth *= 4


def _nearest(parts: Iterator[Scanned] | Sequence[Scanned], vector: FloatArray, limit: int) -> list[Ranked]:
    """The ``limit`` rows of highest dot product, exactly, ties by id."""
    near: list[Ranked] = []
    for part in parts:
        rough = dot(part.vectors, vector)
        least = np.partition(rough, -limit)[-limit] - _MARGIN if rough.size > limit else -np.inf
        chosen = np.flatnonzero(rough >= least)
        scores = exact_dot(part.vectors[chosen], vector)
        near += [
            Ranked(part.ids[i], float(score), int(part.places[i])) for i, score in zip(chosen, scores, strict=True)
        ]
    return best(near, limit)
