"""Exact cosine search over all memories of a table, with the memories kept in RAM while they fit.

Two passes: products in float32 for every row, then float64 cosines for the few that can be among the best. Knows no
approximate index; which search is used when is ``store``'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clara.index import codec
from clara.index.ranking import Ranked, best, best_together
from clara.index.table import PassageTable
from clara.records import FloatArray, QueryMemory
from clara.similarity import token_matches

# Float32 cosines of 36,864 values were within 2e-6 of the true ones (tests); rows nearer than this to the k-th are
# scored again exactly.
_MARGIN = 2e-5
_SMALLEST = np.float32(1e-30)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """R rows: ids [R], norms float32 [R], stored memories fp16 [R, N * H]."""

    ids: list[str]
    norms: FloatArray
    stored: codec.HalfArray


class LatentScan:
    """Exact search over one table.

    Args:
        table: the table.
        cache_bytes: memories up to this size are kept in RAM after the first search.
        row_bytes: size of one stored memory.
    """

    def __init__(self, table: PassageTable, *, cache_bytes: int, row_bytes: int) -> None:
        self._table = table
        self._cache_rows = cache_bytes // row_bytes
        self._cached: list[_Part] | None = None
        self._cached_version = -1

    def search(self, vector: FloatArray, k: int, *, version: int, rows: int) -> list[Ranked]:
        """The ``k`` passages with the highest cosine.

        Args:
            vector: float32 [N * H], finite.
            k: at least 1.
            version: the table's version, at which it stands.
            rows: the table's rows.

        Returns:
            Ids with float64 cosines, ties by id.
        """
        length = float(np.linalg.norm(vector.astype(np.float64)))
        unit = (vector / length).astype(np.float32) if length > 0 else np.zeros_like(vector)
        ids: list[str] = []
        cosines: list[FloatArray] = [np.empty(0, dtype=np.float32)]
        for part in self._parts(version, rows):
            ids.extend(part.ids)
            # A memory of zeros has product 0: any length but 0 leaves it so.
            products = codec.dot(part.stored, unit)
            products /= np.maximum(part.norms, _SMALLEST)
            cosines.append(products)
        rough = np.concatenate(cosines)
        if rough.size == 0:
            return []
        kth = np.partition(rough, -k)[-k] if k <= rough.size else rough.min()
        near = np.flatnonzero(rough >= kth - _MARGIN)
        return best(self.score([ids[index] for index in near], vector), k)

    def score(self, passage_ids: list[str], vector: FloatArray) -> list[Ranked]:
        """Exact cosines of the given passages."""
        return [
            Ranked(passage_id, codec.cosine(stored, vector)) for passage_id, stored in self._table.stored(passage_ids)
        ]

    def reorder(self, passage_ids: list[str], query: QueryMemory, k: int) -> list[Ranked]:
        """The best ``k`` of the given passages by late interaction."""
        stored = self._table.stored(passage_ids)
        return best_together({i: token_matches(query, codec.decode(row, query.values.shape)) for i, row in stored}, k)

    def clear(self) -> None:
        """Give the memory back."""
        self._cached, self._cached_version = None, -1

    def _parts(self, version: int, rows: int) -> Iterator[_Part]:
        """All rows, from RAM if this version is there."""
        if self._cached is not None and self._cached_version == version:
            yield from self._cached
            return
        self.clear()
        kept: list[_Part] | None = [] if rows <= self._cache_rows else None
        for ids, norms, stored in self._table.memories():
            part = _Part(ids, norms, stored)
            if kept is not None:
                kept.append(part)
            yield part
        self._cached, self._cached_version = kept, version
