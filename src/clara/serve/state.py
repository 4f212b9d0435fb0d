"""What every route needs: one object of the application, and how a route gets at it and at its caller."""

from __future__ import annotations

from dataclasses import dataclass, field
from logging import getLogger
from typing import cast

from starlette.requests import HTTPConnection, Request

from clara.serve.access import Caller, Keyring
from clara.serve.batching import Client, ModelQueue
from clara.serve.insights import Insights
from clara.serve.library import Library
from clara.serve.limits import Limits
from clara.serve.links import Links
from clara.serve.metrics import Metrics
from clara.serve.uploads import Uploads

_log = getLogger("clara.serve")


@dataclass(frozen=True, slots=True)
class ServerState:
    """The parts of a running server.

    Attributes:
        library: its stores.
        queue: whose turn it is with the model.
        uploads: files and indexing jobs.
        keys: who may use it.
        links: addresses of documents that need no key.
        hosts: names that a ``Host`` header may hold; empty for any.
        origins: whose pages may use it, beside its own.
        log_content: whether the log holds questions and answers.
        limits: of one client.
        metrics: counts.
        insights: lenses and maps of its stores.
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
