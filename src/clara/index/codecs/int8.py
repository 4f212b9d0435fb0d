"""Codec ``int8``: each memory token has a scale of its own, its largest number over 127; H + 4 bytes a token."""

from __future__ import annotations

import numpy as np

from clara.index.codecs.protocol import ByteArray, as_bytes, check_range
from clara.records import FloatArray

_LEVELS = 127


class Int8:
    """Whole numbers from -127 to 127 with a float32 scale a memory token.

    Args:
        shape: N and H.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self.memory_bytes = shape[0] * (shape[1] + 4)

    def prepare(self, values: FloatArray) -> None:
        """Nothing to learn."""

    def encode(self, values: FloatArray) -> ByteArray:
        """Memories [R, N, H] to bytes [R, B]: all scales, then all numbers."""
        check_range(values)
        scales = np.abs(values).max(axis=2, keepdims=True) / np.float32(_LEVELS)
        numbers = np.rint(values / np.where(scales > 0, scales, 1)).astype(np.int8)
        return np.concatenate([as_bytes(scales), as_bytes(numbers)], axis=1)

    def decode(self, stored: ByteArray) -> FloatArray:
        """Bytes [R, B] to memories [R, N, H]."""
        tokens, width = self._shape
        scales = np.ascontiguousarray(stored[:, : 4 * tokens]).view(np.float32)
        numbers = np.ascontiguousarray(stored[:, 4 * tokens :]).view(np.int8).reshape(-1, tokens, width)
        decoded: FloatArray = numbers * scales[:, :, None]
        return decoded
