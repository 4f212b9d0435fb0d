"""Who is answered next: a bounded number of questions wait, and some are answered side by side.

Each of those has a thread, and in the model their answers share decode steps (``model.generator``). Of the clients
that wait, the one with the fewest questions among them is next. Knows nothing of what is asked. A client that leaves
before its turn costs nothing, one that leaves later ends its answer at the next token.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from clara.serve.faults import ApiError

_T = TypeVar("_T")
_LOOK_SECONDS = 0.2  # between looks whether a client is still there
_RECENT = 0.2  # weight of the last answer in the mean of their seconds


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: a name by which its questions are counted, and whether it has gone."""

    name: str
    gone: Callable[[], Awaitable[bool]]


@dataclass(slots=True, eq=False)
class _Asked(Generic[_T]):
    """Requests that wait for the model, and whether their clients still wait."""

    client: Client
    work: Callable[[], Generator[_T | None, None, None]]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[_T | BaseException | None] = field(default_factory=asyncio.Queue)
    left: threading.Event = field(default_factory=threading.Event)

    def tell(self, event: _T | BaseException | None) -> None:
        """Hand an event over to the loop; one that is closed has no clients left."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    def run(self) -> bool:
        """Do the work until its end, or until nobody waits for it; returns whether an event came of it."""
        told = False
        try:
            with closing(self.work()) as events:
                for event in events:
                    if self.left.is_set():
                        break
                    if event is not None:
                        told = True
                        self.tell(event)
            self.tell(None)
        except BaseException as error:  # noqa: BLE001 - raised where the client waits
            self.tell(error)
        return told


class ModelQueue:
    """Questions that wait for the model, and those that it answers; the arguments are as in ``Limits``."""

    def __init__(self, *, waiting: int, together: int, seconds: float) -> None:
        self._most = waiting
        self._seconds = seconds
        self._changed = threading.Condition()
        self._lines: dict[str, deque[_Asked[Any]]] = {}  # by client, who was served longest ago first
        self._answered: Counter[str] = Counter()  # how many of each client
        self._mean = 1.0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"answers-{i}", daemon=True) for i in range(together)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Questions that wait, those that are answered included."""
        return sum(map(len, self._lines.values())) + self._answered.total()

    def close(self) -> None:
        """End; what is being answered is finished first, what waits is not begun."""
        with self._changed:
            self._closed = True
            self._lines.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    async def call(self, work: Callable[[], _T], client: Client) -> _T:
        """The result of one piece of work; errors as ``stream``."""

        def once() -> Generator[_T, None, None]:
            yield work()

        return await self.first(once, client)

    async def first(self, work: Callable[[], Generator[_T | None, None, None]], client: Client) -> _T:
        """The first event of work, which is ended then; errors as ``stream``."""
        async with aclosing(await self.stream(work, client)) as results:
            async for result in results:
                return result
        raise AssertionError("work that gave no result")  # pragma: no cover

    async def stream(
        self, work: Callable[[], Generator[_T | None, None, None]], client: Client
    ) -> AsyncGenerator[_T, None]:
        """The events of work; returns once the first is there, so that an error before it is raised here.

        Args:
            work: gives events, and None wherever it may be left: its client is looked for there.
            client: who asks.

        Raises:
            ApiError: the queue is full, or the time is up.
            ClientGoneError: nobody waits any more.
        """
        asked = _Asked[_T](client, work, asyncio.get_running_loop())
        self._join(asked)
        deadline = time.monotonic() + self._seconds
        try:
            first = await self._next(asked, deadline)
        except BaseException:
            self._leave(asked)
            raise
        return self._events(asked, first, deadline)

    async def _events(
        self, asked: _Asked[_T], event: _T | BaseException | None, deadline: float
    ) -> AsyncGenerator[_T, None]:
        try:
            while event is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
                event = await self._next(asked, deadline)
        finally:
            self._leave(asked)

    async def _next(self, asked: _Asked[_T], deadline: float) -> _T | BaseException | None:
        while True:
            try:
                event = await asyncio.wait_for(asked.events.get(), _LOOK_SECONDS)
            except TimeoutError:
                if await asked.client.gone():
                    raise ClientGoneError from None
                if time.monotonic() > deadline:
                    message = f"the question was not answered within {self._seconds:g} s"
                    raise ApiError(504, "timeout", message) from None
                continue
            if isinstance(event, BaseException):
                raise event
            return event

    def _join(self, asked: _Asked[Any]) -> None:
        with self._changed:
            waiting = self.waiting
            if waiting >= self._most:
                wait = max(1, round(self._mean * waiting / len(self._threads)))
                raise ApiError(
                    429,
                    "queue_full",
                    f"{waiting} questions are waiting, no more may; try again in {wait} s",
                    retry_after=wait,
                )
            self._lines.setdefault(asked.client.name, deque()).append(asked)
            self._changed.notify()

    def _leave(self, asked: _Asked[Any]) -> None:
        """Nobody waits for it any more."""
        asked.left.set()
        with self._changed:
            line = self._lines.get(asked.client.name, deque())
            if asked in line:
                line.remove(asked)
                if not line:
                    del self._lines[asked.client.name]

    def _serve(self) -> None:
        while (asked := self._turn()) is not None:
            started = time.monotonic()
            answered = asked.run()
            with self._changed:
                if answered:
                    self._mean += _RECENT * (time.monotonic() - started - self._mean)
                self._answered -= Counter([asked.client.name])
            del asked  # a thread that waits keeps no answer

    def _turn(self) -> _Asked[Any] | None:
        """The next request; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            if self._closed:
                return None
            name = min(self._lines, key=lambda name: self._answered[name])
            line = self._lines.pop(name)
            asked = line.popleft()
            if line:
                self._lines[name] = line
            self._answered[name] += 1
            return asked
