"""Puts the server together: stores, routes, access, and what happens at its start and end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from clara.errors import ConfigError
from clara.serve.access import LOOPBACK, KeyEntry, Keyring, checked_origins
from clara.serve.api import chat, completions, documents, embeddings, explore, health, models, page, responses, search
from clara.serve.batching import ModelQueue
from clara.serve.gate import REQUEST_ID, Gate, install_handlers
from clara.serve.library import Library, ServedStore
from clara.serve.limits import Limits
from clara.serve.links import Links
from clara.serve.metrics import Metrics
from clara.serve.state import ServerState
from clara.serve.uploads import Uploads

_METHODS = ("GET", "POST", "DELETE")
_FAMILIES = (models, chat, completions, responses, embeddings, search, documents, explore, health)


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
        hosts=_hosts(host, allowed_hosts),
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


def check_address(host: str, keys: Sequence[KeyEntry]) -> None:
    """Refuse to listen beyond this machine without keys.

    Raises:
        ConfigError: with the remedy.
    """
    if host.lower() not in LOOPBACK and not keys:
        raise ConfigError(
            f"--host {host} is reached from other machines; give --api-key or --api-key-file, or listen on 127.0.0.1"
        )


def _hosts(host: str, allowed: Sequence[str]) -> frozenset[str]:
    """Names that ``Host`` may hold: on loopback only its own, so that no foreign name can be pointed at it."""
    if host.lower() in LOOPBACK:
        return LOOPBACK | {name.lower() for name in allowed}
    return frozenset(name.lower() for name in (*allowed, host)) if allowed else frozenset()
