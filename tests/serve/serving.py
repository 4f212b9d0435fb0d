"""Runs the real server under uvicorn, on a free port of loopback, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import uvicorn
from fastapi import FastAPI

from clara.serve.app import server_config

WAIT = 30.0


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        app: the application.
        base: its address.
        client: without a key.
    """

    app: FastAPI
    base: str
    client: httpx.Client

    def with_key(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=self.base, headers={"Authorization": f"Bearer {key}"}, timeout=WAIT)

    def finished(self, job: dict[str, Any]) -> dict[str, Any]:
        """A job at its end."""
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            told: dict[str, Any] = self.client.get(f"/v1/documents/jobs/{job['id']}").json()
            if told["status"] in {"done", "failed"}:
                return told
            time.sleep(0.05)
        raise AssertionError(f"the job did not end: {told}")


def until(
    wanted: Callable[[], bool], *, pause: Callable[[], None] = lambda: time.sleep(0.01), seconds: float = 20
) -> None:
    """Wait for something that another thread or a browser does; ``pause`` lets it."""
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline
        pause()


@contextmanager
def running(app: FastAPI) -> Iterator[Running]:
    """Run an application under uvicorn on a free port of loopback."""
    config = server_config(app, host="127.0.0.1", port=0, shutdown_seconds=5)
    server = uvicorn.Server(config)
    with config.bind_socket() as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx.Client(base_url=base, timeout=WAIT) as client:
            until(lambda: server.started, seconds=WAIT)
            yield Running(app, base, client)
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()


Serve = Callable[..., Running]
