"""Codecs of memories: by name, each makes bytes of one length of a memory, and back.

A store holds memories by one codec, named when the store is made. Knows numbers, not tables.
Shape letters: R rows, N memory tokens, H hidden size, B bytes of a stored memory.
"""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from clara.errors import ConfigError, StoreError
from clara.records import FloatArray

CODECS = ("fp16", "int8", "int4", "residual")
DEFAULT_CODEC = "fp16"
CODEBOOK_FILE = "codebook.npz"

_ByteArray = npt.NDArray[np.uint8]
_FP16_MAX = float(np.finfo(np.float16).max)


class Codec(ABC):
    """Memories as bytes; a memory takes ``memory_bytes``, B."""

    memory_bytes: int

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape

    def prepare(self, values: FloatArray) -> None:  # noqa: B027 - most have nothing to learn
        """Learn what the codec needs from memories float32 [R, N, H], unless it knows it already."""

    def encode(self, values: FloatArray) -> _ByteArray:
        """Memories float32 [R, N, H] to bytes [R, B].

        Raises:
            StoreError: a value beyond the largest fp16, in which codecs keep numbers or scales.
        """
        _check_range(values)
        return self._encoded(values)

    @abstractmethod
    def _encoded(self, values: FloatArray) -> _ByteArray:
        """Memories whose values fp16 holds, as bytes."""

    @abstractmethod
    def decode(self, stored: _ByteArray) -> FloatArray:
        """Bytes [R, B] to memories float32 [R, N, H], a copy."""


def make_codec(name: str, shape: tuple[int, int], folder: Path) -> Codec:
    """The codec of a name.

    Args:
        name: one of ``CODECS``.
        shape: N and H.
        folder: the store's, for what a codec has to keep.

    Raises:
        ConfigError: there is no such codec.
    """
    check_codec(name)
    if name == "residual":
        return _Residual(shape, folder)
    plain: dict[str, type[_Fp16 | _Int8 | _Int4]] = {"fp16": _Fp16, "int8": _Int8, "int4": _Int4}
    return plain[name](shape)


def check_codec(codec: str | None) -> None:
    """Refuse a codec that there is not; ``None`` stands for the default (ConfigError: names those that there are)."""
    if codec is not None and codec not in CODECS:
        raise ConfigError(f"no codec named {codec!r}; there are {', '.join(CODECS)}")


def _check_range(values: FloatArray) -> None:
    """Refuse values that fp16 would make infinite."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _FP16_MAX:
        raise StoreError(
            f"a memory value of {largest:.6g} does not fit fp16, whose largest is {_FP16_MAX:.0f}; "
            "the model that made it is broken or needs its memories scaled"
        )


def _as_bytes(array: npt.NDArray[np.generic]) -> _ByteArray:
    """An array [R, ...] as its bytes [R, B]."""
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)


# Sign and everything below the three bits that sign extension fills, and what the exponents' biases differ by.
_FP16_FIELDS = np.int32(-0x70000001)
_FP16_BIAS = np.float32(2.0 ** (127 - 15))


class _Fp16(Codec):
    """Each number rounded to half precision; two bytes a value, error at most 2^-11 of each."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__(shape)
        self.memory_bytes = 2 * shape[0] * shape[1]

    def _encoded(self, values: FloatArray) -> _ByteArray:
        return _as_bytes(values.astype(np.float16))

    def decode(self, stored: _ByteArray) -> FloatArray:
        # By integers, as ``ranking.dot``: numpy turns fp16 into float32 one number at a time.
        fields = np.left_shift(stored.view(np.int16), 13, dtype=np.int32)
        fields &= _FP16_FIELDS
        decoded: FloatArray = fields.view(np.float32)
        decoded *= _FP16_BIAS
        return decoded.reshape(-1, *self._shape)


class _Int8(Codec):
    """Whole numbers from -127 to 127 with a float32 scale a memory token, its largest number over 127.

    H + 4 bytes a token: all scales, then all numbers.
    """

    _LEVELS = 127

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__(shape)
        self.memory_bytes = shape[0] * (shape[1] + 4)

    def _encoded(self, values: FloatArray) -> _ByteArray:
        scales = np.abs(values).max(axis=2, keepdims=True) / np.float32(self._LEVELS)
        numbers = np.rint(values / np.where(scales > 0, scales, 1)).astype(np.int8)
        return np.concatenate([_as_bytes(scales), _as_bytes(numbers)], axis=1)

    def decode(self, stored: _ByteArray) -> FloatArray:
        tokens, width = self._shape
        scales = np.ascontiguousarray(stored[:, : 4 * tokens]).view(np.float32)
        numbers = np.ascontiguousarray(stored[:, 4 * tokens :]).view(np.int8).reshape(-1, tokens, width)
        decoded: FloatArray = numbers * scales[:, :, None]
        return decoded


class _Int4(Codec):
    """Whole numbers from 0 to 15, two a byte, with an fp16 offset and step for each 32: 20 bytes a group.

    A group holds one dimension of memory tokens that follow each other: a dimension's numbers lie close together around
    a mean of their own. On memories of the embedded model at 4x, groups of one token's dimensions with a scale around
    zero had more than twice the error (LOG.md). The last group of a memory is filled up with zeros. All offsets, all
    steps, then all numbers.
    """

    _GROUP = 32
    _LEVELS = 15

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__(shape)
        self._groups = -(-shape[0] * shape[1] // self._GROUP)
        self.memory_bytes = self._groups * (4 + self._GROUP // 2)

    def _encoded(self, values: FloatArray) -> _ByteArray:
        flat = values.transpose(0, 2, 1).reshape(len(values), -1)
        filled = np.pad(flat, ((0, 0), (0, self._groups * self._GROUP - flat.shape[1])))
        groups = filled.reshape(len(values), self._groups, self._GROUP)
        lowest, highest = groups.min(axis=2), groups.max(axis=2)
        offsets = lowest.astype(np.float16)
        steps = ((highest - lowest) / self._LEVELS).astype(np.float16)
        divisors = np.where(steps > 0, steps, 1).astype(np.float32)[:, :, None]
        numbers = np.rint((groups - offsets.astype(np.float32)[:, :, None]) / divisors)
        pairs = np.clip(numbers, 0, self._LEVELS).astype(np.uint8).reshape(len(values), -1, 2)
        return np.concatenate([_as_bytes(offsets), _as_bytes(steps), pairs[:, :, 0] | pairs[:, :, 1] << 4], axis=1)

    def decode(self, stored: _ByteArray) -> FloatArray:
        tokens, width = self._shape
        scales = np.ascontiguousarray(stored[:, : 4 * self._groups]).view(np.float16).astype(np.float32)
        offsets, steps = scales[:, : self._groups, None], scales[:, self._groups :, None]
        packed = stored[:, 4 * self._groups :]
        numbers = np.stack([packed & 15, packed >> 4], axis=2).astype(np.float32)
        decoded = numbers.reshape(-1, self._groups, self._GROUP) * steps + offsets
        flat = decoded.reshape(len(stored), -1)[:, : tokens * width]
        return np.ascontiguousarray(flat.reshape(-1, width, tokens).transpose(0, 2, 1))


_CENTROIDS = 256
# A centroid of fewer tokens than this would be one of them, and say nothing about the next memory.
_TOKENS_A_CENTROID = 32
_LLOYD_ROUNDS = 8
_SAMPLE_TOKENS = 1 << 15
_SAMPLE_UNITS = 1 << 18
_RESIDUAL_LEVELS = 4
_SMALLEST = np.float32(1e-6)


@dataclass(frozen=True, slots=True, eq=False)
class _Codebook:
    """Codebook of a model's memories for residual coding: K centroids, and the spread around them.

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


class _Residual(Codec):
    """The nearest of a few centroids, and two bits for what each number differs from it: H / 4 + 4 bytes a token.

    As ColBERTv2 keeps its token vectors (Santhanam et al., arXiv 2112.01488), with a scale a memory token and a spread
    a dimension, since a memory's numbers differ in both. The codebook is learnt from the first memories that a store is
    given and kept beside its table; later memories use it as it is. All centroids, all scales, then four numbers a
    byte.
    """

    def __init__(self, shape: tuple[int, int], folder: Path) -> None:
        super().__init__(shape)
        self._path = folder / CODEBOOK_FILE
        self._known: _Codebook | None = None
        self._packed = -(-shape[1] // 4)
        self.memory_bytes = shape[0] * (4 + self._packed)

    def prepare(self, values: FloatArray) -> None:
        if self._path.exists():
            return
        _check_range(values)
        book = _learn(values.reshape(-1, self._shape[1])[:_SAMPLE_TOKENS])
        draft = self._path.with_suffix(".draft")
        try:
            with draft.open("wb") as file:
                np.savez(file, centroids=book.centroids, spread=book.spread, cuts=book.cuts, levels=book.levels)
            draft.replace(self._path)
        except OSError as error:
            raise StoreError(f"the codebook {self._path} cannot be written: {error}") from error

    def _encoded(self, values: FloatArray) -> _ByteArray:
        book = self._codebook()
        tokens = values.reshape(-1, self._shape[1])
        nearest = _nearest(tokens, book.centroids)
        differences = (tokens - book.centroids[nearest]) / book.spread
        scales = np.sqrt(np.square(differences).mean(axis=1)).astype(np.float16)
        units = differences / np.maximum(scales.astype(np.float32), _SMALLEST)[:, None]
        numbers = np.searchsorted(book.cuts, units).astype(np.uint8)
        filled = np.pad(numbers, ((0, 0), (0, 4 * self._packed - numbers.shape[1]))).reshape(len(tokens), -1, 4)
        packed = filled[:, :, 0] | filled[:, :, 1] << 2 | filled[:, :, 2] << 4 | filled[:, :, 3] << 6
        parts = [_as_bytes(nearest.astype(np.uint16)), _as_bytes(scales), packed]
        return np.concatenate([part.reshape(len(values), -1) for part in parts], axis=1)

    def decode(self, stored: _ByteArray) -> FloatArray:
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
    for _ in range(_LLOYD_ROUNDS):
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
    levels = np.zeros(_RESIDUAL_LEVELS, dtype=np.float32)
    for _ in range(4 * _LLOYD_ROUNDS):
        places = np.searchsorted(cuts, units)
        sizes = np.bincount(places, minlength=_RESIDUAL_LEVELS)
        sums = np.bincount(places, weights=units, minlength=_RESIDUAL_LEVELS)
        levels = np.where(sizes > 0, sums / np.maximum(sizes, 1), levels).astype(np.float32)
        cuts = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
    return cuts, levels


def _nearest(tokens: FloatArray, centroids: FloatArray) -> npt.NDArray[np.intp]:
    """The nearest centroid of each token by distance: [T]."""
    nearest: npt.NDArray[np.intp] = (tokens @ centroids.T - np.square(centroids).sum(axis=1) / 2).argmax(axis=1)
    return nearest
