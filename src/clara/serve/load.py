"""Load test of a running server with several clients: seconds of whole answers and to the first token.

A client of the server, over HTTP alone; starting one is the command line's work.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from clara.errors import MissingExtraError

try:
    import httpx2 as httpx
except ModuleNotFoundError:
    raise MissingExtraError("httpx2", "llm") from None

_PATIENCE = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class _Quantiles:
    """Seconds that half, 95 and 99 of a hundred answers took at most."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> _Quantiles:
        """Of at least one answer."""
        return cls(*(float(value) for value in np.quantile(seconds, (0.5, 0.95, 0.99))))


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Result for a number of clients, each of which asked its next question when it had its answer.

    ``total`` is of whole answers, ``first_token`` of the first pieces of their text; None without any. ``faults``
    counts questions without an answer by kind.
    """

    clients: int
    seconds: float
    answers: int
    answers_per_minute: float
    total: _Quantiles | None
    first_token: _Quantiles | None
    errors: int
    faults: dict[str, int]


@dataclass(frozen=True, slots=True)
class LoadQuestions:
    """Questions that clients ask in turn, their store (None for the only one); ``fields`` are the object ``clara``."""

    store: str | None
    texts: Sequence[str]
    max_tokens: int
    fields: dict[str, Any] = field(default_factory=dict)

    def body(self, number: int) -> dict[str, Any]:
        """The body of a request."""
        message = {"role": "user", "content": self.texts[number % len(self.texts)]}
        body = {"messages": [message], "stream": True, "max_tokens": self.max_tokens, "clara": self.fields}
        return body if self.store is None else {**body, "model": self.store}


@dataclass(slots=True)
class _Timings:
    total: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)


def measure_load(
    url: str, questions: LoadQuestions, *, clients: int, seconds: float, key: str | None = None
) -> LoadResult:
    """Let clients ask for a while, each one question at a time; questions under way at the end are waited for.

    ``url`` is the server's address without ``/v1``, ``key`` one of its keys.
    """
    return asyncio.run(_measure(url, questions, clients, seconds, key))


async def _measure(url: str, questions: LoadQuestions, clients: int, seconds: float, key: str | None) -> LoadResult:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    seen, numbers = _Timings(), count()
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=_PATIENCE, limits=httpx.Limits(max_connections=clients)
    ) as client:
        started = time.perf_counter()

        async def ask() -> None:
            while time.perf_counter() - started < seconds:
                await _one(client, questions.body(next(numbers)), seen)

        await asyncio.gather(*(ask() for _ in range(clients)))
        took = time.perf_counter() - started
    return LoadResult(
        clients=clients,
        seconds=took,
        answers=len(seen.total),
        answers_per_minute=60 * len(seen.total) / took,
        total=_Quantiles.of(seen.total) if seen.total else None,
        first_token=_Quantiles.of(seen.first) if seen.first else None,
        errors=seen.faults.total(),
        faults=dict(seen.faults),
    )


async def _one(client: httpx.AsyncClient, body: dict[str, Any], seen: _Timings) -> None:
    asked = time.perf_counter()
    first: float | None = None
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                seen.faults[response.json()["error"]["code"]] += 1
                return
            async for piece in _pieces(response):
                if piece and first is None:
                    first = time.perf_counter() - asked
    except _BrokenStreamError as error:
        seen.faults[str(error)] += 1
    except (httpx.HTTPError, ValueError, KeyError) as error:
        seen.faults[type(error).__name__] += 1
        await asyncio.sleep(0.1)  # a server that is gone refuses a thousand times a second
    else:
        seen.total.append(time.perf_counter() - asked)
        if first is not None:
            seen.first.append(first)


class _BrokenStreamError(Exception):
    """A stream that ended with an error, or without its end."""


async def _pieces(response: httpx.Response) -> AsyncIterator[str]:
    """The pieces of text of a stream."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if not line.startswith("data: "):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            raise _BrokenStreamError(chunk["error"]["code"])
        for choice in chunk["choices"]:
            yield choice["delta"].get("content") or ""
    raise _BrokenStreamError("no_end")
