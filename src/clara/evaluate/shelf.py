"""What the systems of one run share: memories, embeddings, token counts, opened models. Each is made once.

Knows keys and sizes, not what the things are for. A run that compares ten systems on the same questions would
otherwise compress and embed each document ten times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from clara.evaluate.isolation import Failure, each
from clara.records import Memory, QueryMemory

T = TypeVar("T")
ItemT = TypeVar("ItemT", bound=Hashable)

BUDGET_BYTES = 1_500_000_000
"""Kept at once: the memories of 10,000 documents of SmolLM2-135M at 4x; what was used longest ago is let go first."""

_ITEMS_A_CALL = 64
_SMALL = 64


class Shelf:
    """Things made from a document, or opened from a folder, kept for the next system that asks for them.

    Args:
        budget_bytes: of derived things; opened models are not counted and stay.
    """

    def __init__(self, *, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._kept: OrderedDict[tuple[str, Hashable], object] = OrderedDict()
        self._opened: dict[tuple[str, Hashable], object] = {}
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes of derived things kept now."""
        return self._bytes

    def opened(self, kind: str, name: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gave the first time it was asked for under ``kind`` and ``name``."""
        if (kind, name) not in self._opened:
            self._opened[kind, name] = make()
        return cast("T", self._opened[kind, name])

    def derived(
        self, maker: str, items: Sequence[ItemT], make: Callable[[Sequence[ItemT]], Sequence[T | Failure]]
    ) -> list[T | Failure]:
        """One result an item, in order; those not kept are made now, and one that cannot be made is its failure.

        Args:
            maker: names everything that decides a result besides the item: model, rate, settings.
            items: may repeat.
            make: gives one result an item, in order.
        """
        found: dict[ItemT, T | Failure] = {}
        missing: list[ItemT] = []
        for item in dict.fromkeys(items):
            if (maker, item) in self._kept:
                self._kept.move_to_end((maker, item))
                found[item] = cast("T | Failure", self._kept[maker, item])
            else:
                missing.append(item)
        for start in range(0, len(missing), _ITEMS_A_CALL):
            call = missing[start : start + _ITEMS_A_CALL]
            for item, made in zip(call, each(call, make), strict=True):
                found[item] = made
                self._keep((maker, item), made)
        return [found[item] for item in items]

    def _keep(self, key: tuple[str, Hashable], value: object) -> None:
        self._kept[key] = value
        self._bytes += _size(value)
        while self._bytes > self._budget and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._bytes -= _size(old)


def _size(value: object) -> int:
    """Bytes of a thing, roughly: arrays exactly, texts by their characters."""
    if isinstance(value, np.ndarray):
        array: np.ndarray[Any, Any] = value
        return array.nbytes
    if isinstance(value, Memory | QueryMemory):
        return value.values.nbytes
    if isinstance(value, tuple | list):
        return _SMALL + sum(map(_size, value))
    return _SMALL + (len(value) if isinstance(value, str) else 0)
