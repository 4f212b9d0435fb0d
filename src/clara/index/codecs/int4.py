"""Codec ``int4``: groups of 32 numbers share a lowest number and a step; 20 bytes a group, two numbers a byte.

A group holds one dimension of memory tokens that follow each other: a dimension's numbers lie close together around a
mean of their own. On memories of the embedded model at 4x, groups of one token's dimensions with a scale around zero
had more than twice the error (LOG.md).
"""

from __future__ import annotations

import numpy as np

from clara.index.codecs.protocol import ByteArray, as_bytes, check_range
from clara.records import FloatArray

_GROUP = 32
_LEVELS = 15


class Int4:
    """Whole numbers from 0 to 15 with an fp16 offset and step a group.

    Args:
        shape: N and H. The last group of a memory is filled up with zeros.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._groups = -(-shape[0] * shape[1] // _GROUP)
        self.memory_bytes = self._groups * (4 + _GROUP // 2)

    def prepare(self, values: FloatArray) -> None:
        """Nothing to learn."""

    def encode(self, values: FloatArray) -> ByteArray:
        """Memories [R, N, H] to bytes [R, B]: all offsets, all steps, then all numbers."""
        check_range(values)
        flat = values.transpose(0, 2, 1).reshape(len(values), -1)
        filled = np.pad(flat, ((0, 0), (0, self._groups * _GROUP - flat.shape[1])))
        groups = filled.reshape(len(values), self._groups, _GROUP)
        lowest, highest = groups.min(axis=2), groups.max(axis=2)
        offsets = lowest.astype(np.float16)
        steps = ((highest - lowest) / _LEVELS).astype(np.float16)
        divisors = np.where(steps > 0, steps, 1).astype(np.float32)[:, :, None]
        numbers = np.rint((groups - offsets.astype(np.float32)[:, :, None]) / divisors)
        pairs = np.clip(numbers, 0, _LEVELS).astype(np.uint8).reshape(len(values), -1, 2)
        return np.concatenate([as_bytes(offsets), as_bytes(steps), pairs[:, :, 0] | pairs[:, :, 1] << 4], axis=1)

    def decode(self, stored: ByteArray) -> FloatArray:
        """Bytes [R, B] to memories [R, N, H]."""
        tokens, width = self._shape
        scales = np.ascontiguousarray(stored[:, : 4 * self._groups]).view(np.float16).astype(np.float32)
        offsets, steps = scales[:, : self._groups, None], scales[:, self._groups :, None]
        packed = stored[:, 4 * self._groups :]
        numbers = np.stack([packed & 15, packed >> 4], axis=2).astype(np.float32)
        decoded = numbers.reshape(-1, self._groups, _GROUP) * steps + offsets
        flat = decoded.reshape(len(stored), -1)[:, : tokens * width]
        return np.ascontiguousarray(flat.reshape(-1, width, tokens).transpose(0, 2, 1))
