"""Search vectors of many rows in few bytes, all of which are compared with a question.

Passages differ most along the first principal directions of their search vectors, and questions lean to none of them:
of what tells passages apart a sixth of the directions holds four fifths. So bits go where passages differ. Vectors are
turned into their principal directions, and each four bits stand for one direction at the front and for several further
back (product quantisation, Jégou et al., 2011; bits by reverse water-filling). faiss adds their products up in
registers (André et al., 2015). The best few thousand are compared again by all their numbers, which are mapped from
disk, and pass from disk to disk when they are written: they never are in RAM.

Knows rows by where they lie in the table; ``latent`` sees to rows that came or went since.
Shape letters: R rows, S numbers of a search vector, D of a turned one.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import numpy.typing as npt

from clara.errors import StoreError
from clara.index.ranking import Ranked
from clara.index.table import Scanned
from clara.records import FloatArray

_PlaceArray = npt.NDArray[np.uint64]

_CHECKSUM_BYTES = 4
# faiss writes the number of all codes, the codes, a float32, the number of places and the places.
_COUNT_BYTES, _FACTOR_BYTES, _PLACE_BYTES = 8, 4, 8
_READ_BYTES = 1 << 20
_BITS = 4
# Groups of four bits for each number of a search vector: 96 bytes for 576 numbers.
_GROUPS_A_NUMBER = 1 / 3
_MOST_IN_A_GROUP = 8
# Candidates that are compared again, and how many for each one wanted.
_CANDIDATES = 4000
_CANDIDATES_EACH = 20


class QuantisedColumn:
    """The search vectors of some rows.

    Args:
        index: a faiss ``IndexIDMap`` of an ``IndexRefine``.
        path: the file that it is mapped from; None for one of no rows.
    """

    SAMPLE_ROWS = 1 << 15
    """Rows by which directions and centroids are learnt."""

    def __init__(self, index: Any, path: Path | None = None) -> None:  # noqa: ANN401 - faiss is untyped
        self._index = index
        self._path = path
        self._refined: Any = faiss.downcast_index(index.index)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """S."""
        return int(self._index.d)

    @property
    def last(self) -> int:
        """The place of the row that was added last."""
        return int(self._index.id_map.at(len(self) - 1))

    @classmethod
    def learn(cls, sample: FloatArray) -> QuantisedColumn:
        """A column of no rows, with directions and centroids of some search vectors float32 [R, S]."""
        width = sample.shape[1]
        matrix, groups = _directions(sample)
        turn = faiss.LinearTransform(width, len(matrix))
        turn.have_bias = False
        faiss.copy_array_to_vector(matrix.reshape(-1), turn.A)
        turn.is_trained = True
        products = faiss.IndexPQFastScan(len(matrix), groups, _BITS, faiss.METRIC_INNER_PRODUCT)
        products.pq.cp.min_points_per_centroid = 1  # faiss would print a warning for small stores
        coarse = faiss.IndexPreTransform(turn, products)
        coarse.train(sample)
        return cls(_mapped(coarse, _fine(width)))

    @classmethod
    def load(cls, path: Path) -> QuantisedColumn | None:
        """The column that ``save`` wrote; None if it is damaged: the next run that changes the store makes it anew.

        faiss believes what it reads, so the file's checksum is compared first: a second a gigabyte.
        """
        size = path.stat().st_size - _CHECKSUM_BYTES
        with path.open("rb") as file:
            if size < 0 or _checksum(file, size) != file.read():
                return None
        return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), path)

    def places(self) -> _PlaceArray:
        """Where the rows lie: uint64 [R], in the order in which they came."""
        places: _PlaceArray = faiss.vector_to_array(self._index.id_map).astype(np.uint64)
        return places

    def nearest(self, vector: FloatArray, limit: int) -> list[Ranked]:
        """About the ``limit`` rows of highest dot product with a vector float32 [S], without ids, best first."""
        limit = min(limit, len(self))
        candidates = min(max(_CANDIDATES, _CANDIDATES_EACH * limit), len(self))
        self._refined.k_factor = candidates / limit
        scores, places = self._index.search(vector[None], limit)
        return [Ranked("", score, place) for score, place in zip(scores[0].tolist(), places[0].tolist(), strict=True)]

    def write(self, path: Path, more: Iterable[Scanned]) -> None:
        """Write all of it and more rows; what was there is replaced in one step. The column is of no use afterwards.

        The file is what faiss writes of an index that holds all of it, with a checksum. All numbers are put where they
        belong in a file that faiss wrote without them.

        Raises:
            StoreError: it cannot be written.
        """
        draft, codes = path.with_suffix(".draft"), path.with_suffix(".codes")
        coarse, fine, places = self._refined.base_index, _fine(self.width), [self.places()]
        index = _mapped(coarse, fine)
        try:
            with codes.open("w+b") as file:
                self._copy_codes(file)
                for part in more:
                    coarse.add(part.vectors.astype(np.float32))
                    places.append(part.places)
                    file.write(np.ascontiguousarray(part.vectors).data)
                fine.ntotal = index.ntotal = faiss.downcast_index(index.index).ntotal = coarse.ntotal
                faiss.copy_array_to_vector(np.concatenate(places).astype(np.int64), index.id_map)
                faiss.write_index(index, str(draft))
                _insert_codes(draft, file, behind=_tail_bytes(coarse.ntotal))
            draft.replace(path)
        except (OSError, RuntimeError) as error:
            raise StoreError(
                f"the search index {path} cannot be written: {error}; if the disk is full, make room and run the same "
                "command again"
            ) from error
        finally:
            codes.unlink(missing_ok=True)

    def _copy_codes(self, to: BinaryIO) -> None:
        """All numbers of its rows, from file to file: what is read from a mapped file counts as memory."""
        if self._path is None:
            return
        left = len(self) * 2 * self.width
        with self._path.open("rb") as file:
            file.seek(-_CHECKSUM_BYTES - _tail_bytes(len(self)) - left, 2)
            while left:
                left -= to.write(file.read(min(left, _READ_BYTES)))


def _fine(width: int) -> Any:  # noqa: ANN401 - faiss is untyped
    """An index of no rows that keeps all numbers."""
    return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _mapped(coarse: Any, fine: Any) -> Any:  # noqa: ANN401 - faiss is untyped
    """An index of no places over one that finds candidates and one that compares them again."""
    fine.ntotal = coarse.ntotal
    refined = faiss.IndexRefine(coarse, fine)
    refined.ntotal = 0  # or faiss refuses
    return faiss.IndexIDMap(refined)


def _tail_bytes(rows: int) -> int:
    """Bytes that faiss writes behind all numbers."""
    return _FACTOR_BYTES + _COUNT_BYTES + _PLACE_BYTES * rows


def _insert_codes(draft: Path, codes: BinaryIO, *, behind: int) -> None:
    """Put codes into what faiss wrote of an index without them, before the last ``behind`` bytes, and a checksum."""
    size = codes.tell()
    codes.seek(0)
    with draft.open("r+b") as file:
        file.seek(-behind, 2)
        tail = file.read()
        file.seek(-behind - _COUNT_BYTES, 2)
        file.write(np.uint64(size).tobytes())
        shutil.copyfileobj(codes, file, _READ_BYTES)
        file.write(tail)
        size = file.tell()
        file.seek(0)
        file.write(_checksum(file, size))


def _checksum(file: BinaryIO, size: int) -> bytes:
    """CRC-32 of the next ``size`` bytes of a file, behind which it then stands."""
    total = 0
    while size > 0 and (part := file.read(min(size, _READ_BYTES))):
        total, size = zlib.crc32(part, total), size - len(part)
    return total.to_bytes(_CHECKSUM_BYTES, "little")


def _directions(sample: FloatArray) -> tuple[FloatArray, int]:
    """The map from a search vector to groups of principal directions: float32 [D, S], and the number of groups.

    Groups are equally long, filled up with zeros.
    """
    variances, columns = np.linalg.eigh(np.cov(sample.astype(np.float64), rowvar=False))
    variances, directions = np.maximum(variances[::-1], 1e-12), columns.T[::-1]
    sizes = _group_sizes(variances, max(1, round(_GROUPS_A_NUMBER * len(variances))))
    longest = max(sizes)
    matrix = np.zeros((len(sizes), longest, len(variances)), dtype=np.float32)
    first = 0
    for group, size in zip(matrix, sizes, strict=True):
        group[:size] = directions[first : first + size]
        first += size
    return matrix.reshape(-1, len(variances)), len(sizes)


def _group_sizes(variances: npt.NDArray[np.float64], groups: int) -> list[int]:
    """Number of directions that share each four bits, from the first on; the last directions may be left out.

    A direction wants half the logarithm of its variance over the error that is left everywhere, if that is above 0
    (reverse water-filling; Cover and Thomas, section 10.3). The error is the one at which that makes ``groups`` groups.
    """
    low, high = np.log2(variances[-1]) - 2 * _BITS, np.log2(variances[0])
    sizes: list[int] = []
    for _ in range(50):
        level = (low + high) / 2
        wanted = np.clip((np.log2(variances) - level) / 2, 0, _BITS)
        sizes = _filled(wanted)
        low, high = (level, high) if len(sizes) > groups else (low, level)
    return sizes if len(sizes) <= groups else _filled(np.clip((np.log2(variances) - high) / 2, 0, _BITS))


def _filled(wanted: npt.NDArray[np.float64]) -> list[int]:
    """Directions a group: as many as want four bits together."""
    sizes: list[int] = []
    bits, size = 0.0, 0
    for one in wanted[wanted > 0]:
        if size and (bits + one > _BITS or size == _MOST_IN_A_GROUP):
            sizes.append(size)
            bits, size = 0.0, 0
        bits, size = bits + one, size + 1
    return [*sizes, size] if size else sizes or [1]
