"""Codec ``residual``: the nearest of a few centroids, and two bits for what each number differs from it.

As ColBERTv2 keeps its token vectors (Santhanam et al., arXiv 2112.01488), with a scale a memory token and a spread a
dimension, since a memory's numbers differ in both. H / 4 + 4 bytes a token. The codebook is learnt from the first
memories that a store is given and kept beside its table; later memories use it as it is.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clara.errors import StoreError
from clara.index.codecs.protocol import ByteArray, as_bytes, check_range
from clara.records import FloatArray

CODEBOOK_FILE = "codebook.npz"

_CENTROIDS = 256
# A centroid of fewer tokens than this would be one of them, and say nothing about the next memory.
_TOKENS_A_CENTROID = 32
_ROUNDS = 8
_SAMPLE_TOKENS = 1 << 15
_SAMPLE_UNITS = 1 << 18
_LEVELS = 4
_SMALLEST = np.float32(1e-6)


@dataclass(frozen=True, slots=True, eq=False)
class _Codebook:
    """What residual coding knows of a model's memories: K centroids, and how far from them numbers are.

    Attributes:
        centroids: float32 [K, H].
        spread: float32 [H], of the differences, by dimension.
        cuts: float32 [3], where one level of a difference over its spread ends and the next begins.
        levels: float32 [4], what each stands for.
    """

    centroids: FloatArray
    spread: FloatArray
    cuts: FloatArray
    levels: FloatArray


class Residual:
    """Centroid and two bits a number.

    Args:
        shape: N and H.
        folder: the store's, where the codebook lies.
    """

    def __init__(self, shape: tuple[int, int], folder: Path) -> None:
        self._shape = shape
        self._path = folder / CODEBOOK_FILE
        self._known: _Codebook | None = None
        self._packed = -(-shape[1] // 4)
        self.memory_bytes = shape[0] * (4 + self._packed)

    def prepare(self, values: FloatArray) -> None:
        """Learn the codebook from memories [R, N, H], unless there is one."""
        if self._path.exists():
            return
        check_range(values)
        book = _learn(values.reshape(-1, self._shape[1])[:_SAMPLE_TOKENS])
        draft = self._path.with_suffix(".draft")
        try:
            with draft.open("wb") as file:
                np.savez(file, centroids=book.centroids, spread=book.spread, cuts=book.cuts, levels=book.levels)
            draft.replace(self._path)
        except OSError as error:
            raise StoreError(f"the codebook {self._path} cannot be written: {error}") from error

    def encode(self, values: FloatArray) -> ByteArray:
        """Memories [R, N, H] to bytes [R, B]: centroids, scales, then four numbers a byte."""
        check_range(values)
        book = self._codebook()
        tokens = values.reshape(-1, self._shape[1])
        nearest = _nearest(tokens, book.centroids)
        differences = (tokens - book.centroids[nearest]) / book.spread
        scales = np.sqrt(np.square(differences).mean(axis=1)).astype(np.float16)
        units = differences / np.maximum(scales.astype(np.float32), _SMALLEST)[:, None]
        numbers = np.searchsorted(book.cuts, units).astype(np.uint8)
        filled = np.pad(numbers, ((0, 0), (0, 4 * self._packed - numbers.shape[1]))).reshape(len(tokens), -1, 4)
        packed = filled[:, :, 0] | filled[:, :, 1] << 2 | filled[:, :, 2] << 4 | filled[:, :, 3] << 6
        parts = [as_bytes(nearest.astype(np.uint16)), as_bytes(scales), packed]
        return np.concatenate([part.reshape(len(values), -1) for part in parts], axis=1)

    def decode(self, stored: ByteArray) -> FloatArray:
        """Bytes [R, B] to memories [R, N, H]."""
        book, (tokens, width) = self._codebook(), self._shape
        nearest = np.ascontiguousarray(stored[:, : 2 * tokens]).view(np.uint16)
        scales = np.ascontiguousarray(stored[:, 2 * tokens : 4 * tokens]).view(np.float16).astype(np.float32)
        packed = stored[:, 4 * tokens :].reshape(-1, tokens, self._packed)
        numbers = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], axis=3)
        units = book.levels[numbers.reshape(-1, tokens, 4 * self._packed)[:, :, :width]]
        decoded: FloatArray = book.centroids[nearest] + units * scales[:, :, None] * book.spread
        return decoded

    def _codebook(self) -> _Codebook:
        """The codebook, read when first wanted."""
        if self._known is None:
            try:
                with np.load(self._path) as file:  # a zip file: its own checksums tell a damaged one
                    self._known = _Codebook(**{name: file[name] for name in _Codebook.__dataclass_fields__})
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise StoreError(
                    f"the codebook {self._path} cannot be read ({error}), and without it no memory; "
                    "put it back from a copy of the store, or index the documents again into another --store"
                ) from error
        return self._known


def _learn(tokens: FloatArray) -> _Codebook:
    """A codebook of memory tokens float32 [T, H]: k-means by Lloyd's rounds, then quartiles of the differences."""
    count = max(1, min(_CENTROIDS, len(tokens) // _TOKENS_A_CENTROID))
    rng = np.random.default_rng(0)
    centroids = tokens[np.sort(rng.choice(len(tokens), count, replace=False))].copy()
    for _ in range(_ROUNDS):
        nearest = _nearest(tokens, centroids)
        members = (nearest == np.arange(count)[:, None]).astype(np.float32)  # [K, T]
        sizes = members.sum(axis=1)
        filled = sizes > 0
        centroids[filled] = (members @ tokens)[filled] / sizes[filled, None]
    differences = tokens - centroids[_nearest(tokens, centroids)]
    spread = np.maximum(np.sqrt(np.square(differences).mean(axis=0)), _SMALLEST).astype(np.float32)
    units = differences / spread
    units /= np.maximum(np.sqrt(np.square(units).mean(axis=1, keepdims=True)), _SMALLEST)
    cuts, levels = _levels(rng.choice(units.reshape(-1), min(units.size, _SAMPLE_UNITS), replace=False))
    return _Codebook(centroids, spread, cuts, levels)


def _levels(units: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Cuts [3] and levels [4] of least squared error: Lloyd's rounds from the quartiles (Max, 1960)."""
    cuts = np.quantile(units, [0.25, 0.5, 0.75]).astype(np.float32)
    levels = np.zeros(_LEVELS, dtype=np.float32)
    for _ in range(4 * _ROUNDS):
        places = np.searchsorted(cuts, units)
        sizes = np.bincount(places, minlength=_LEVELS)
        sums = np.bincount(places, weights=units, minlength=_LEVELS)
        levels = np.where(sizes > 0, sums / np.maximum(sizes, 1), levels).astype(np.float32)
        cuts = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    return cuts, levels


def _nearest(tokens: FloatArray, centroids: FloatArray) -> npt.NDArray[np.intp]:
    """The nearest centroid of each token by distance: [T]."""
    nearest: npt.NDArray[np.intp] = (tokens @ centroids.T - np.square(centroids).sum(axis=1) / 2).argmax(axis=1)
    return nearest
