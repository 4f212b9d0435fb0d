"""Codec ``int4``: groups of 32 numbers that follow each other share a scale; 18 bytes a group, two numbers a byte."""

from __future__ import annotations

import numpy as np

from clara.index.codecs.protocol import ByteArray, as_bytes, check_range
from clara.records import FloatArray

GROUP = 32
_LEVELS = 7
# Numbers are kept as 0 to 14 with this as zero, so that a byte holds two without signs.
_ZERO = 7


class Int4:
    """Whole numbers from -7 to 7 with an fp16 scale a group.

    Args:
        shape: N and H. The last group of a memory is filled up with zeros.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._groups = -(-shape[0] * shape[1] // GROUP)
        self.memory_bytes = self._groups * (2 + GROUP // 2)

    def prepare(self, values: FloatArray) -> None:
        """Nothing to learn."""

    def encode(self, values: FloatArray) -> ByteArray:
        """Memories [R, N, H] to bytes [R, B]: all scales, then all numbers."""
        check_range(values)
        flat = values.reshape(len(values), -1)
        filled = np.pad(flat, ((0, 0), (0, self._groups * GROUP - flat.shape[1])))
        groups = filled.reshape(len(values), self._groups, GROUP)
        scales = (np.abs(groups).max(axis=2) / _LEVELS).astype(np.float16)
        divisors = np.where(scales > 0, scales, 1).astype(np.float32)[:, :, None]
        numbers = np.clip(np.rint(groups / divisors), -_LEVELS, _LEVELS).astype(np.int8) + _ZERO
        pairs = numbers.astype(np.uint8).reshape(len(values), -1, 2)
        return np.concatenate([as_bytes(scales), pairs[:, :, 0] | pairs[:, :, 1] << 4], axis=1)

    def decode(self, stored: ByteArray) -> FloatArray:
        """Bytes [R, B] to memories [R, N, H]."""
        tokens, width = self._shape
        scales = np.ascontiguousarray(stored[:, : 2 * self._groups]).view(np.float16).astype(np.float32)
        packed = stored[:, 2 * self._groups :]
        numbers = np.stack([packed & 15, packed >> 4], axis=2).astype(np.float32) - _ZERO
        decoded = numbers.reshape(-1, self._groups, GROUP) * scales[:, :, None]
        flat = decoded.reshape(len(stored), -1)[:, : tokens * width]
        return np.ascontiguousarray(flat).reshape(-1, tokens, width)
