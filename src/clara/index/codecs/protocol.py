"""What a codec is: memories as bytes of one length, and back.

A store holds memories by one codec, named when the store is made. Shape letters: R rows, N memory tokens, H hidden
size, B bytes of a stored memory.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from clara.errors import StoreError
from clara.records import FloatArray

ByteArray = npt.NDArray[np.uint8]

_FP16_MAX = float(np.finfo(np.float16).max)


class Codec(Protocol):
    """Memories as bytes."""

    @property
    def memory_bytes(self) -> int:
        """B: bytes of a stored memory."""
        ...

    def prepare(self, values: FloatArray) -> None:
        """Learn what the codec needs from memories float32 [R, N, H], unless it knows it already."""
        ...

    def encode(self, values: FloatArray) -> ByteArray:
        """Memories float32 [R, N, H] to bytes [R, B].

        Raises:
            StoreError: a value beyond the largest fp16, which no codec holds.
        """
        ...

    def decode(self, stored: ByteArray) -> FloatArray:
        """Bytes [R, B] to memories float32 [R, N, H], a copy."""
        ...


def check_range(values: FloatArray) -> None:
    """Refuse values that fp16, in which codecs keep numbers or scales, would make infinite.

    Raises:
        StoreError: names the largest value.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if largest > _FP16_MAX:
        raise StoreError(
            f"a memory value of {largest:.6g} does not fit fp16, whose largest is {_FP16_MAX:.0f}; "
            "the model that made it is broken or needs its memories scaled"
        )


def as_bytes(array: npt.NDArray[np.generic]) -> ByteArray:
    """An array [R, ...] as its bytes [R, B]."""
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
