"""Checksums of stored rows: a row whose bits have changed on disk is told, not read.

Each row has one CRC-32 for each group of columns that is read on its own. It finds every change
within 32 bits that follow each other, and all but one in four thousand million others; it is no protection against
intent.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_SumArray = npt.NDArray[np.uint32]

GROUPS: Mapping[str, tuple[str, ...]] = {
    "key_crc": ("id", "document", "content_hash"),
    "search_crc": ("id", "search"),
    "memory_crc": ("id", "memory"),
    "text_crc": ("id", "title", "text", "metadata", "start", "end", "token_count"),
}
"""The columns that each checksum covers. ``lexical`` follows from title and text."""


def checksums(columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], group: str) -> _SumArray:
    """The checksum of each row: uint32 [R].

    Args:
        columns: by name, those of the group at least: strings, whole numbers, or an array [R, ...] of numbers.
        group: one of ``GROUPS``.
    """
    parts = [_parts(columns[name]) for name in GROUPS[group]]
    return np.fromiter(map(_checksum, *parts), dtype=np.uint32, count=len(parts[0]))


def damaged(columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], group: str) -> npt.NDArray[np.bool_]:
    """Which rows are not what was written: bool [R]. ``columns`` hold the group's own column too."""
    different: npt.NDArray[np.bool_] = checksums(columns, group) != np.asarray(columns[group], dtype=np.uint32)
    return different


def _parts(column: Sequence[Any] | npt.NDArray[Any]) -> list[bytes | memoryview]:
    """A column as the bytes of each row."""
    if isinstance(column, np.ndarray) and column.ndim > 1:
        if not len(column):
            return []
        rows = np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8)
        return [row.data for row in rows]
    return [str(value).encode("utf-8", "surrogatepass") for value in column]


def _checksum(*parts: bytes | memoryview) -> int:
    """CRC-32 over parts, each with an end that none of them holds."""
    total = 0
    for part in parts:
        total = zlib.crc32(b"\0", zlib.crc32(part, total))
    return total
