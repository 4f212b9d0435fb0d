"""How uvicorn runs the application: which connections it keeps, and what it waits for at its end."""

from __future__ import annotations

import asyncio

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 30.0
"""Within which the head of a request must come; a client that sends it by single bytes is closed then."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1; uvicorn's own would wait for the head of a request for ever."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take data; wait on where they are not a head yet."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
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
    """The settings of a server of ours: no log of uvicorn's own, and answers are waited for at the end.

    Args:
        app: the application.
        host: to listen on.
        port: to listen on; 0 for a free one.
        shutdown_seconds: how long what was asked is waited for.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=shutdown_seconds,
    )
