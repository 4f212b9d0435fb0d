"""State that every route needs: the application with its counts, and a route's access to it and its caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from logging import getLogger
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import HTTPConnection, Request

from clara.records import TokenCounts
from clara.serve.access import Caller, Keyring, Limits, Links
from clara.serve.batching import Client, ModelQueue
from clara.serve.insights import Insights
from clara.serve.library import Library
from clara.serve.uploads import Uploads

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_log = getLogger("clara.serve")


class Metrics:
    """Counts for Prometheus: requests, seconds, tokens, and the questions that wait for the model.

    No label names a store, a key or anything that a client wrote.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "clara_requests",
            "Requests by route, method and status.",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "clara_request_seconds",
            "Seconds to the end of a response.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter("clara_tokens", "Tokens of answers by kind.", ["kind"], registry=self._registry)
        Gauge("clara_waiting", "Questions that wait for the model.", registry=self._registry).set_function(waiting)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_tokens(self, tokens: TokenCounts) -> None:
        """Count the tokens of an answer."""
        for kind in ("prompt", "memory", "text_equivalent", "generated"):
            self._tokens.labels(kind).inc(getattr(tokens, kind))

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)


@dataclass(frozen=True, slots=True)
class ServerState:
    """The parts of a running server.

    Attributes:
        hosts: names that a ``Host`` header may hold; empty for any.
        origins: whose pages may use it, beside its own.
        log_content: whether the log holds questions and answers.
    """

    library: Library
    queue: ModelQueue
    uploads: Uploads
    keys: Keyring
    links: Links
    hosts: frozenset[str]
    origins: frozenset[str]
    log_content: bool
    limits: Limits
    metrics: Metrics
    insights: Insights = field(default_factory=Insights)


def state_of(request: HTTPConnection) -> ServerState:
    """The parts of the server that got a request."""
    return cast("ServerState", request.app.state.server)


def caller_of(request: HTTPConnection) -> Caller:
    """Who makes a request; ``gate`` has checked it."""
    return cast("Caller", request.scope["state"]["caller"])


def client_of(request: Request) -> Client:
    """Whose question a request is: its key's, or without keys its address's."""
    address = request.client.host if request.client is not None else ""
    return Client(caller_of(request).name or address, request.is_disconnected)


def log_event(request: HTTPConnection, message: str, **fields: str | int | float | bool | None) -> None:
    """A line of the log, with the request's id."""
    _log.info(message, extra={"fields": {"request_id": request.scope["state"]["request_id"], **fields}})
