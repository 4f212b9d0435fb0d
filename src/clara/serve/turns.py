"""Whose turn it is with the model: questions one after another, a bounded number waiting, indexing in between.

Knows nothing of what is asked. One thread answers; a client that leaves before its turn costs nothing, one that leaves
during a stream ends it at the next piece.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from clara.serve.faults import ApiError

T = TypeVar("T")
_LOOK_SECONDS = 0.2  # between looks whether a client is still there
_RECENT = 0.2  # weight of the last answer in the mean of their seconds

Gone = Callable[[], Awaitable[bool]]
"""Whether the client has gone."""


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class FairLock:
    """A lock that is given in the order of asking."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._last = 0
        self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            mine = self._last
            self._last += 1
            self._changed.wait_for(lambda: self._serving == mine)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()

    def pass_on(self) -> None:
        """Let whoever waits go first."""
        self.__exit__()
        self.__enter__()


@dataclass(slots=True)
class _Asked(Generic[T]):
    """What waits for the model, and whether anybody waits for it."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[T | BaseException | None] = field(default_factory=asyncio.Queue)
    left: threading.Event = field(default_factory=threading.Event)

    def tell(self, event: T | BaseException | None) -> None:
        """Hand an event over to the loop; one that is closed has no clients left."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class ModelQueue:
    """Questions that wait for the model.

    Args:
        waiting: most of them, the one that is answered included.
        seconds: that one may take, waiting included.
    """

    def __init__(self, *, waiting: int, seconds: float) -> None:
        self.lock = FairLock()
        self._most = waiting
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._counting = threading.Lock()
        self._waiting = 0
        self._mean = 1.0

    @property
    def waiting(self) -> int:
        """Questions that wait, the one that is answered included."""
        return self._waiting

    def close(self) -> None:
        """End; what is being answered is finished first."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def call(self, work: Callable[[], T], gone: Gone) -> T:
        """The result of one piece of work.

        Raises:
            ApiError: the queue is full, or the time is up.
            ClientGoneError: nobody waits any more.
        """

        def once() -> Generator[T, None, None]:
            yield work()

        async with closing_stream(await self.stream(once, gone)) as results:
            async for result in results:
                return result
        raise AssertionError("work that gave no result")  # pragma: no cover

    async def stream(self, work: Callable[[], Generator[T, None, None]], gone: Gone) -> AsyncIterator[T]:
        """The events of work; returns once the first is there, so that an error before it is raised here.

        Raises:
            ApiError: the queue is full, or the time is up.
            ClientGoneError: nobody waits any more.
        """
        asked = _Asked[T](asyncio.get_running_loop())
        self._take()
        self._pool.submit(self._work, work, asked).add_done_callback(lambda _: self._give())
        deadline = time.monotonic() + self._seconds
        try:
            first = await self._next(asked, deadline, gone)
        except BaseException:
            asked.left.set()
            raise
        return self._events(asked, first, deadline, gone)

    async def _events(
        self, asked: _Asked[T], event: T | BaseException | None, deadline: float, gone: Gone
    ) -> AsyncIterator[T]:
        try:
            while event is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
                event = await self._next(asked, deadline, gone)
        finally:
            asked.left.set()

    async def _next(self, asked: _Asked[T], deadline: float, gone: Gone) -> T | BaseException | None:
        while True:
            try:
                event = await asyncio.wait_for(asked.events.get(), _LOOK_SECONDS)
            except TimeoutError:
                if await gone():
                    raise ClientGoneError from None
                if time.monotonic() > deadline:
                    message = f"the question was not answered within {self._seconds:g} s"
                    raise ApiError(504, "timeout", message) from None
                continue
            if isinstance(event, BaseException):
                raise event
            return event

    def _work(self, work: Callable[[], Generator[T, None, None]], asked: _Asked[T]) -> None:
        try:
            with self.lock:
                if asked.left.is_set():
                    return
                started = time.monotonic()
                with closing(work()) as events:
                    for event in events:
                        asked.tell(event)
                        if asked.left.is_set():
                            return
                self._mean += _RECENT * (time.monotonic() - started - self._mean)
            asked.tell(None)
        except BaseException as error:  # noqa: BLE001 - raised where the client waits
            asked.tell(error)

    def _take(self) -> None:
        with self._counting:
            if self._waiting >= self._most:
                wait = max(1, round(self._mean * self._waiting))
                raise ApiError(
                    429,
                    "queue_full",
                    f"{self._waiting} questions are waiting, no more may; try again in {wait} s",
                    retry_after=wait,
                )
            self._waiting += 1

    def _give(self) -> None:
        with self._counting:
            self._waiting -= 1


class closing_stream(Generic[T]):  # noqa: N801 - a context manager named as contextlib's own
    """Closes an asynchronous stream at the end, whether it was read to its end or not."""

    def __init__(self, stream: AsyncIterator[T]) -> None:
        self._stream = stream

    async def __aenter__(self) -> AsyncIterator[T]:
        return self._stream

    async def __aexit__(self, *_: object) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()


@contextmanager
def trying(lock: threading.Lock, refusal: ApiError) -> Iterator[None]:
    """Hold a lock that is free, or refuse."""
    if not lock.acquire(blocking=False):
        raise refusal
    try:
        yield
    finally:
        lock.release()
