"""Memories as fp16: what is stored, and how stored memories are compared with a query.

The only place that knows the stored number format. Shape letters: R rows, V values of a memory (N * H).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clara.errors import StoreError
from clara.records import FloatArray

HalfArray = npt.NDArray[np.float16]

FP16_MAX = float(np.finfo(np.float16).max)

# Bits of an fp16 moved into float32 fields are the number times 2^(15 - 127): the exponents' biases differ.
_BIAS = 127 - 15
# Sign bit and everything below the three bits that sign extension fills.
_FIELDS = np.int32(-0x70000001)
# The query carries most of the bias back, so that products stay far from float32's smallest numbers.
_QUERY_SHIFT = 100
# Numbers decoded and multiplied at a time. Half a megabyte stays in a core's cache, and OpenBLAS leaves a product of
# this size to one thread: with 16 rows of 36,864 its threads, waiting for each other on a busy machine, took ten times
# as long.
_BLOCK_VALUES = 1 << 17


def encode(values: FloatArray, *, name: str) -> HalfArray:
    """Flatten a memory and round it to fp16.

    Args:
        values: float32 [N, H], finite.
        name: named in the error.

    Returns:
        fp16 [N * H].

    Raises:
        StoreError: a value beyond the largest fp16; it would become infinite.
    """
    flat = values.reshape(-1)
    largest = float(np.abs(flat).max(initial=0.0))
    if largest > FP16_MAX:
        raise StoreError(
            f"{name}: a memory value of {largest:.6g} does not fit fp16, whose largest is {FP16_MAX:.0f}; "
            "the model that made it is broken or needs its memories scaled"
        )
    return flat.astype(np.float16)


def decode(stored: HalfArray, shape: tuple[int, int]) -> FloatArray:
    """Stored numbers as a memory.

    Args:
        stored: fp16 [N * H].
        shape: N and H.

    Returns:
        float32 [N, H], a copy; exact.
    """
    return stored.astype(np.float32).reshape(shape)


def norms(stored: HalfArray) -> FloatArray:
    """Euclidean lengths of stored memories, fp16 [R, V] to float32 [R]."""
    return np.array([_length(row.astype(np.float64)) for row in stored], dtype=np.float32)


def dot(stored: HalfArray, query: FloatArray) -> FloatArray:
    """Dot products of stored memories with one query, in float32.

    numpy turns fp16 into float32 one number at a time, which takes three times as long as the product itself on
    these widths. Here the bits are shifted into float32's fields as integers and the factor 2^112 that is missing
    then is given back through the query; this is exact for every finite fp16. Slow twin:
    ``stored.astype(np.float32) @ query``.

    Args:
        stored: fp16 [R, V], C-contiguous, finite.
        query: float32 [V], values within ±1 (a unit vector).

    Returns:
        float32 [R].
    """
    rows, width = stored.shape
    bits = stored.view(np.int16)
    scaled = query * np.float32(2.0**_QUERY_SHIFT)
    products = np.empty(rows, dtype=np.float32)
    block_rows = max(1, _BLOCK_VALUES // width)
    block = np.empty((min(rows, block_rows), width), dtype=np.int32)
    for start in range(0, rows, block_rows):
        part = bits[start : start + block_rows]
        fields = block[: len(part)]
        np.left_shift(part, 13, out=fields, dtype=np.int32)
        np.bitwise_and(fields, _FIELDS, out=fields)
        np.matmul(fields.view(np.float32), scaled, out=products[start : start + len(part)])
    products *= np.float32(2.0 ** (_BIAS - _QUERY_SHIFT))
    return products


def cosine(stored: HalfArray, query: FloatArray) -> float:
    """Cosine of one stored memory with a query, in float64.

    The value depends on the two vectors alone, not on where the row lies among others, as it does with a matrix
    product: equal memories get equal scores, and a store gives the same scores whatever order it was written in.

    Args:
        stored: fp16 [V].
        query: float32 [V].

    Returns:
        The cosine; 0 if either has length 0.
    """
    left, right = stored.astype(np.float64), query.astype(np.float64)
    lengths = _length(left) * _length(right)
    return float(np.sum(left * right)) / lengths if lengths > 0 else 0.0


def _length(vector: npt.NDArray[np.float64]) -> float:
    """Euclidean length by numpy's own summation: BLAS would split it over as many threads as there are cores."""
    return float(np.sqrt(np.sum(np.square(vector))))
