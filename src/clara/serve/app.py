"""Puts the server together: stores, routes, access, what happens at its start and end, and how uvicorn runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from clara.errors import ConfigError
from clara.serve.access import KeyEntry, Keyring, Limits, Links, check_address, checked_origins, named_hosts
from clara.serve.api import answers, documents, overview, page, search
from clara.serve.batching import ModelQueue
from clara.serve.gate import REQUEST_ID, Gate, install_handlers
from clara.serve.library import Library, ServedStore
from clara.serve.state import Metrics, ServerState
from clara.serve.uploads import Uploads

HEAD_SECONDS = 30.0
"""Within which the head of a request must come; a client that sends it by single bytes is closed then."""

_METHODS = ("GET", "POST", "DELETE")
_FAMILIES = (overview, answers, search, documents)


def create_app(
    stores: Sequence[ServedStore],
    *,
    keys: Sequence[KeyEntry] = (),
    host: str = "127.0.0.1",
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    limits: Limits | None = None,
    log_content: bool = False,
) -> FastAPI:
    """The application.

    Args:
        stores: what it serves.
        keys: who may use it; nobody else may, where there is one.
        host: the address that it will listen on.
        allowed_hosts: names that a ``Host`` header may hold, beside the address itself; with keys and none given, any.
        cors_origins: of other sites' pages that may use it.
        limits: of one client.
        log_content: write questions and answers into the log.

    Raises:
        ConfigError: another address than loopback without keys, a key for a store that there is not, or no origin.
    """
    limits = limits or Limits()
    check_address(host, keys)
    ring = Keyring(keys, requests_a_minute=limits.requests_a_minute)
    library = Library(stores)
    unknown = sorted(ring.stores() - library.all().keys())
    if unknown:
        raise ConfigError(f"a key names the store {unknown[0]!r}; served are: {', '.join(library.all())}")
    queue = ModelQueue(waiting=limits.waiting, together=limits.together, seconds=limits.seconds)
    server = ServerState(
        library=library,
        queue=queue,
        uploads=Uploads(limits),
        keys=ring,
        links=Links(library.all(), seconds=limits.link_seconds, requests_a_minute=limits.requests_a_minute),
        hosts=named_hosts(host, allowed_hosts),
        origins=checked_origins(cors_origins),
        log_content=log_content,
        limits=limits,
        metrics=Metrics(lambda: queue.waiting),
    )

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        for store in stores:
            server.uploads.resume(store)
        yield
        queue.close()
        server.uploads.close()

    # Its documentation pages load scripts from elsewhere; the description itself does not.
    app = FastAPI(title="clara", version=version("clara-rag"), docs_url=None, redoc_url=None, lifespan=life)
    app.state.server = server
    install_handlers(app)
    for family in _FAMILIES:
        app.include_router(family.router, prefix="/v1")
        app.include_router(family.router, include_in_schema=False)
    app.include_router(page.router)
    app.add_middleware(Gate, server=server)
    if server.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(server.origins),
            allow_methods=_METHODS,
            allow_headers=["*"],  # openai's client sends a dozen of its own
            expose_headers=[REQUEST_ID, "retry-after", "x-should-retry"],
        )
    return app


class _PatientProtocol(H11Protocol):
    """HTTP/1.1; uvicorn's own would wait for the head of a request for ever."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


def server_config(app: FastAPI, *, host: str, port: int, shutdown_seconds: int) -> uvicorn.Config:
    """The settings of a server of ours: no log of uvicorn's own, and answers are waited for at the end, so long."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=shutdown_seconds,
    )
