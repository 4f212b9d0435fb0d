"""Counts for Prometheus: requests, seconds, tokens. No label names a store, a key or anything that a client wrote."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from clara.records import TokenCounts

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counts of one server.

    Args:
        waiting: the number of questions that wait for the model.
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
