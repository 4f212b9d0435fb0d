"""Clients that mean no good: each costs the server its own connection and nothing else."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx2 as httpx
import psutil
import pytest
from serving import Running, Serve

from clara.serve.access import Limits

pytest_plugins = ["server_fixtures"]

HEIGHT = "How high is the Eiffel Tower?"
MIB = 1 << 20


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.base.rpartition(":")[2])), timeout=30)


def answered(server: Running) -> float:
    """Seconds of a search by somebody else."""
    started = time.monotonic()
    found = server.client.get("/v1/search", params={"query": HEIGHT, "k": 1, "mode": "text"})
    assert found.status_code == 200
    return time.monotonic() - started


def settles(server: Running, descriptors: int) -> None:
    """Everything that clients held is given back."""
    deadline = time.monotonic() + 20
    queue = server.app.state.server.queue
    while queue.waiting or psutil.Process().num_fds() > descriptors:
        assert time.monotonic() < deadline, (queue.waiting, psutil.Process().num_fds(), descriptors)
        time.sleep(0.05)


def test_slow_heads_and_bodies_are_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clara.serve.app._HEAD_SECONDS", 3.0)
    server = serve("docs", limits=Limits(silence=3.0))
    answered(server)
    descriptors = psutil.Process().num_fds()
    heads = (
        b"GET /v1/models HTTP/1.1\r\nHost: local",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTT",
    )
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(60)]
        for place, client in enumerate(slow):
            client.sendall(heads[place % len(heads)])
        assert answered(server) < 3
        assert server.app.state.server.queue.waiting == 0
        for client in slow:
            while client.recv(MIB):  # until the server closes it
                pass
    settles(server, descriptors)


def test_a_client_that_closes_its_half_is_let_go(serve: Serve) -> None:
    server = serve("docs")
    answered(server)
    descriptors = psutil.Process().num_fds()
    body = b'{"messages": [{"role": "user", "content": "Who?"}], "stream": true, "max_tokens": 512}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with ExitStack() as stack:
        for length in (len(body), len(body) + 10):  # the second's body is never whole
            for _ in range(5):
                client = stack.enter_context(connect(server))
                client.sendall(head + b"Content-Length: %d\r\n\r\n" % length + body)
                client.shutdown(socket.SHUT_WR)
        assert answered(server) < 20
    settles(server, descriptors)


def test_an_upload_of_a_gigabyte_is_refused_as_it_comes(serve: Serve) -> None:
    server = serve("docs", limits=Limits(file_bytes=4 * MIB, files=300))
    answered(server)
    process = psutil.Process()
    descriptors, memory = process.num_fds(), process.memory_info().rss
    sent = 0

    def gigabyte() -> Iterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
        for _ in range(1024):
            sent += MIB
            yield bytes(MIB)

    with httpx.Client(base_url=server.base, timeout=30) as client:
        form = {"content-type": "multipart/form-data; boundary=x"}
        with suppress(httpx.TransportError):  # it may be closed while the client still writes
            refused = client.post("/v1/documents", content=gigabyte(), headers=form)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "file_too_large")
        assert sent < 64 * MIB
        assert process.memory_info().rss - memory < 32 * MIB
        size = {"content-length": str(1024 * MIB)}
        with suppress(httpx.TransportError):
            announced = client.post("/v1/search", content=gigabyte(), headers=size)
            assert announced.json()["error"]["code"] == "body_too_large"
    assert answered(server) < 20
    assert list(server.app.state.server.library.all()["docs"].uploads.rglob("*.txt")) == []
    settles(server, descriptors)
