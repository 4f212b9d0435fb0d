"""Batch processing in which one item's error stays with that item.

A batch that raises is halved until the faulty items are alone, so the others keep their results. A batch that is too
large for the machine's memory gets through in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from clara.errors import ConfigError, MemoryMismatchError, ModelError

_ItemT = TypeVar("_ItemT")
_ResultT = TypeVar("_ResultT")
_REASON_LENGTH = 200


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """An item that gave an error instead of a result.

    Attributes:
        error: the exception, without its traceback: that would keep the batch's arrays alive.
    """

    error: Exception

    @property
    def reason(self) -> str:
        """Kind of error and the first line of its message: countable, and readable in a report."""
        first_line = str(self.error).partition("\n")[0][:_REASON_LENGTH]
        return f"{type(self.error).__name__}: {first_line}" if first_line else type(self.error).__name__


class WrongCountError(ModelError):
    """A batch gave another number of results than items: a fault of the model's code, of no single item."""


def each(items: Sequence[_ItemT], work: Callable[[Sequence[_ItemT]], Sequence[_ResultT]]) -> list[_ResultT | Failure]:
    """``work(items)``, with a ``Failure`` in the place of each item that it cannot do even alone.

    Args:
        items: the batch.
        work: gives one result an item, in order.

    Raises:
        ConfigError: settings are wrong for every item alike.
        MemoryMismatchError: so are memories of another model.
        WrongCountError: ``work`` gave another number of results than items.
    """
    if not items:
        return []
    try:
        results = work(items)
    except (ConfigError, MemoryMismatchError, WrongCountError):
        raise
    except Exception as error:  # noqa: BLE001 - any fault of one question is reported with that question
        failure = Failure(error.with_traceback(None))
    else:
        if len(results) != len(items):
            raise WrongCountError(f"the model gave {len(results)} results for a batch of {len(items)}")
        return list(results)
    if len(items) == 1:
        return [failure]
    # Outside the handler: the failed batch's frames, and the tensors they hold, are gone by now.
    middle = len(items) // 2
    return each(items[:middle], work) + each(items[middle:], work)


def unwrap(found: Iterable[_ResultT | Failure]) -> list[_ResultT]:
    """The results, if there is no failure among them.

    Raises:
        Exception: the error of the first failure.
    """
    results: list[_ResultT] = []
    for result in found:
        if isinstance(result, Failure):
            raise result.error
        results.append(result)
    return results
