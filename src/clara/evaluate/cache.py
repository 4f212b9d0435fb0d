"""The cache of one run: memories, embeddings, token counts and loaded models that its systems share.

Without it a comparison of ten systems would compress and embed every document ten times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from clara.evaluate.failures import Failure, each
from clara.records import Memory, QueryMemory

_T = TypeVar("_T")
_ItemT = TypeVar("_ItemT", bound=Hashable)

_BUDGET_BYTES = 1_500_000_000
"""The memories of 10,000 documents of SmolLM2-135M at 4x."""

_ITEMS_A_CALL = 64
_SMALL = 64


class Cache:
    """Derived values with a budget in bytes (least recently used is dropped first), and loaded models without one.

    Args:
        budget_bytes: of derived values; loaded models are not counted and stay.
    """

    def __init__(self, *, budget_bytes: int = _BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._kept: OrderedDict[tuple[str, Hashable], object] = OrderedDict()
        self._opened: dict[tuple[str, Hashable], object] = {}
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Bytes of the derived values held now."""
        return self._bytes

    def opened(self, kind: str, name: Hashable, make: Callable[[], _T]) -> _T:
        """The value that ``make`` gave the first time it was called for ``kind`` and ``name``."""
        if (kind, name) not in self._opened:
            self._opened[kind, name] = make()
        return cast("_T", self._opened[kind, name])

    def derived(
        self, maker: str, items: Sequence[_ItemT], make: Callable[[Sequence[_ItemT]], Sequence[_T | Failure]]
    ) -> list[_T | Failure]:
        """One result an item, in order; missing ones are made now, and one that cannot be made is its ``Failure``.

        Args:
            maker: names all that decides a result besides the item: model, rate, settings.
            items: may repeat.
            make: gives one result an item, in order.
        """
        found: dict[_ItemT, _T | Failure] = {}
        missing: list[_ItemT] = []
        for item in dict.fromkeys(items):
            if (maker, item) in self._kept:
                self._kept.move_to_end((maker, item))
                found[item] = cast("_T | Failure", self._kept[maker, item])
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
    """Approximate bytes of a value: arrays exactly, texts by their characters."""
    if isinstance(value, np.ndarray):
        array: np.ndarray[Any, Any] = value
        return array.nbytes
    if isinstance(value, Memory | QueryMemory):
        return value.values.nbytes
    if isinstance(value, tuple | list):
        return _SMALL + sum(map(_size, value))
    return _SMALL + (len(value) if isinstance(value, str) else 0)
