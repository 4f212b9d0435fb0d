"""Cache of a run's systems, and errors that stay with their item.

Without the cache a comparison of ten systems would compress and embed every document ten times. A batch that raises is
halved until the faulty items are alone, so the others keep their results; a batch that is too large for the machine's
memory gets through in the same way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from clara.errors import ConfigError, MemoryMismatchError, ModelError
from clara.records import Memory, QueryMemory

_T = TypeVar("_T")
_ItemT = TypeVar("_ItemT")
_KeyT = TypeVar("_KeyT", bound=Hashable)

_REASON_LENGTH = 200
_BUDGET_BYTES = 1_500_000_000
"""Room for the memories of 10,000 documents of SmolLM2-135M at 4x."""
_ITEMS_A_CALL = 64
_SMALL = 64


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """An item that gave an error instead of a result; ``error`` has no traceback: it would keep tensors alive."""

    error: Exception

    @property
    def reason(self) -> str:
        """Kind of error and the first line of its message: countable, and readable in a report."""
        first_line = str(self.error).partition("\n")[0][:_REASON_LENGTH]
        return f"{type(self.error).__name__}: {first_line}" if first_line else type(self.error).__name__


class _WrongCountError(ModelError):
    """Another number of results than items: a fault of the model's code, of no single item."""


def each(items: Sequence[_ItemT], work: Callable[[Sequence[_ItemT]], Sequence[_T]]) -> list[_T | Failure]:
    """``work(items)``, one result an item in order, with a ``Failure`` for each item that it cannot do even alone.

    Faults of every item alike are raised: ConfigError, MemoryMismatchError, a wrong number of results (ModelError).
    """
    if not items:
        return []
    try:
        results = work(items)
    except (ConfigError, MemoryMismatchError, _WrongCountError):
        raise
    except Exception as error:  # noqa: BLE001 - any fault of one question is reported with that question
        failure = Failure(error.with_traceback(None))
    else:
        if len(results) != len(items):
            raise _WrongCountError(f"the model gave {len(results)} results for a batch of {len(items)}")
        return list(results)
    if len(items) == 1:
        return [failure]
    # Outside the handler: the failed batch's frames, and the tensors they hold, are gone by now.
    middle = len(items) // 2
    return each(items[:middle], work) + each(items[middle:], work)


def each_one(work: Callable[..., _T], *columns: Sequence[Any]) -> list[_T | Failure]:
    """As ``each``, by work that takes a single item; of several columns an item of each."""
    return each(list(zip(*columns, strict=True)), lambda rows: [work(*row) for row in rows])


def unwrap(outcomes: Iterable[_T | Failure]) -> list[_T]:
    """The results, if there is no failure among them; else the first failure's error is raised."""
    results: list[_T] = []
    for result in outcomes:
        if isinstance(result, Failure):
            raise result.error
        results.append(result)
    return results


class Cache:
    """Derived values with a budget in bytes (least recently used is dropped first), and loaded models without one."""

    def __init__(self, *, budget_bytes: int = _BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._kept: OrderedDict[tuple[str, Hashable], object] = OrderedDict()
        self._opened: dict[tuple[str, Hashable], object] = {}
        self.bytes = 0  # of the derived values held now

    def opened(self, kind: str, name: Hashable, make: Callable[[], _T]) -> _T:
        """The value that ``make`` gave the first time it was called for ``kind`` and ``name``."""
        if (kind, name) not in self._opened:
            self._opened[kind, name] = make()
        return cast("_T", self._opened[kind, name])

    def derived(
        self, maker: str, items: Sequence[_KeyT], make: Callable[[Sequence[_KeyT]], Sequence[_T | Failure]]
    ) -> list[_T | Failure]:
        """A result for each item (items may repeat), in order; missing ones are made now.

        ``maker`` names all that decides a result besides the item: model, rate, settings.
        """
        results: dict[_KeyT, _T | Failure] = {}
        missing: list[_KeyT] = []
        for item in dict.fromkeys(items):
            if (maker, item) in self._kept:
                self._kept.move_to_end((maker, item))
                results[item] = cast("_T | Failure", self._kept[maker, item])
            else:
                missing.append(item)
        for start in range(0, len(missing), _ITEMS_A_CALL):
            call = missing[start : start + _ITEMS_A_CALL]
            for item, made in zip(call, each(call, make), strict=True):
                results[item] = self._kept[maker, item] = made
                self.bytes += _size(made)
                while self.bytes > self._budget and len(self._kept) > 1:
                    self.bytes -= _size(self._kept.popitem(last=False)[1])
        return [results[item] for item in items]


def _size(value: object) -> int:
    """Approximate bytes of a value: arrays exactly, texts by their characters."""
    if isinstance(value, Memory | QueryMemory):
        return value.values.nbytes
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, tuple | list):
        return _SMALL + sum(map(_size, value))
    return _SMALL + (len(value) if isinstance(value, str) else 0)
