"""Codec ``fp16``: each number rounded to half precision; two bytes a value, error at most 2^-11 of each."""

from __future__ import annotations

import numpy as np

from clara.index.codecs.protocol import ByteArray, as_bytes, check_range
from clara.records import FloatArray

# Sign and everything below the three bits that sign extension fills, and what the exponents' biases differ by.
_FIELDS = np.int32(-0x70000001)
_BIAS = np.float32(2.0 ** (127 - 15))


class Fp16:
    """Half precision.

    Args:
        shape: N and H.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self.memory_bytes = 2 * shape[0] * shape[1]

    def prepare(self, values: FloatArray) -> None:
        """Nothing to learn."""

    def encode(self, values: FloatArray) -> ByteArray:
        """Memories [R, N, H] to bytes [R, B]."""
        check_range(values)
        return as_bytes(values.astype(np.float16))

    def decode(self, stored: ByteArray) -> FloatArray:
        """Bytes [R, B] to memories [R, N, H].

        By integers, as ``search_column.dot``: numpy turns fp16 into float32 one number at a time.
        """
        fields = np.left_shift(stored.view(np.int16), 13, dtype=np.int32)
        fields &= _FIELDS
        decoded: FloatArray = fields.view(np.float32)
        decoded *= _BIAS
        return decoded.reshape(-1, *self._shape)
