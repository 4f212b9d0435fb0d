"""clara mcp, as its clients start it: over stdin and stdout, and over HTTP on loopback, in both protocol eras."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import pytest
from calling import Clara
from mcp import Client
from mcp.client.stdio import StdioServerParameters

pytest_plugins = ["cli_fixtures"]

ERAS = ("legacy", "auto")
QUESTION = "Who was the first official world chess champion?"
STARTS = 300
"""Seconds until a server has loaded torch and its model, on a busy machine."""

NOISY = """
import os, sys
from clara.cli import main
from clara.pipeline import Clara

def noise():
    print("a library says something")
    print("and more", end="")
    os.write(1, b"and so does compiled code")

searched, opened = Clara.search, Clara.open
def search(self, *arguments, **options):
    noise()
    return searched(self, *arguments, **options)
def open(*arguments, **options):
    noise()
    return opened(*arguments, **options)
Clara.search, Clara.open = search, open
sys.exit(main())
"""


async def ask_the_store(client: Client, store: Path) -> None:
    """What a client does: look which tools there are, and use them."""
    tools = {tool.name for tool in (await client.list_tools()).tools}
    assert tools == {"search", "ask", "fetch", "list_documents"}
    listed = await client.call_tool("list_documents", {"containing": "chess"})
    assert listed.structured_content is not None
    assert listed.structured_content["total"] == 1
    answer = await client.call_tool("ask", {"question": QUESTION, "k": 2, "max_new_tokens": 8})
    assert not answer.is_error, answer.content
    assert answer.structured_content is not None
    assert len(answer.structured_content["citations"]) == 2
    assert answer.structured_content["citations"][0]["document"].startswith(str(store.parent))


@pytest.mark.parametrize("mode", ERAS)
def test_over_stdio(store: Path, mode: str) -> None:
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "clara.cli", "mcp", "--store", str(store)], env=dict(os.environ)
    )

    async def talk() -> None:
        with anyio.fail_after(STARTS):
            async with Client(server, mode=mode) as client:
                assert (client.protocol_version == "2026-07-28") == (mode == "auto")
                await ask_the_store(client, store)

    anyio.run(talk)


def test_nothing_but_protocol_reaches_stdout(store: Path) -> None:
    requests: list[dict[str, Any]] = [
        {
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        },
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "search", "arguments": {"question": QUESTION}}},
    ]
    lines = [json.dumps({"jsonrpc": "2.0", **request}) + "\n" for request in requests]
    command = [sys.executable, "-c", NOISY, "mcp", "--store", str(store)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.writelines(lines)
        process.stdin.flush()
        answers = [process.stdout.readline() for _ in range(2)]
        rest, noise = process.communicate(timeout=STARTS)  # closes stdin, by which a client ends its server
    assert process.returncode == 0, noise
    assert [json.loads(answer)["id"] for answer in answers] == [1, 2]
    assert rest == ""
    assert noise.count("a library says something") == 2
    assert noise.count("and so does compiled code") == 2


SLOW = """
import sys, time
from pathlib import Path
from clara.cli import main, serve

loaded = serve.load_model
def load(*arguments, **options):
    while not Path(sys.argv[1]).exists():
        time.sleep(0.05)
    return loaded(*arguments, **options)
serve.load_model = load
sys.exit(main(sys.argv[2:]))
"""


def test_a_client_begins_before_the_model_is_loaded(store: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    server = StdioServerParameters(
        command=sys.executable, args=["-c", SLOW, str(go), "mcp", "--store", str(store)], env=dict(os.environ)
    )

    async def talk() -> None:
        with anyio.fail_after(STARTS):
            async with Client(server) as client:
                assert {tool.name for tool in (await client.list_tools()).tools} >= {"search", "ask"}
                go.touch()
                await ask_the_store(client, store)

    anyio.run(talk)


def test_a_model_that_cannot_be_loaded_is_said_to_the_agent(store: Path, tmp_path: Path) -> None:
    arguments = ["-m", "clara.cli", "mcp", "--store", str(store), "--model", str(tmp_path)]
    server = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))

    async def talk() -> None:
        with anyio.fail_after(STARTS):
            async with Client(server) as client:
                refused = await client.call_tool("list_documents", {})
                assert refused.is_error
                assert str(tmp_path) in str(refused.content)

    anyio.run(talk)


@contextmanager
def served(store: Path) -> Iterator[int]:
    """A server over HTTP; gives its port."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "clara.cli", "mcp", "--store", str(store), "--http", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + STARTS
        while time.monotonic() < until and process.poll() is None:
            with closing(socket.socket()) as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=STARTS)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err


def test_over_http(store: Path) -> None:
    async def talk(port: int, mode: str) -> None:
        with anyio.fail_after(STARTS):
            async with Client(f"http://127.0.0.1:{port}/mcp", mode=mode) as client:
                assert (client.protocol_version == "2026-07-28") == (mode == "auto")
                await ask_the_store(client, store)

    with served(store) as port:
        for mode in ERAS:
            anyio.run(talk, port, mode)
        for header, value, status in (("Host", "evil.example", 421), ("Origin", "https://evil.example", 403)):
            connection = HTTPConnection("127.0.0.1", port, timeout=STARTS)
            connection.request("POST", "/mcp", body=b"{}", headers={"Content-Type": "application/json", header: value})
            assert connection.getresponse().status == status
            connection.close()


@pytest.mark.parametrize(
    ("http", "said"),
    [
        ("8000", "takes HOST:PORT"),
        ("127.0.0.1", "takes HOST:PORT"),
        ("127.0.0.1:port", "takes HOST:PORT"),
        ("127.0.0.1:99999", "takes HOST:PORT"),
        ("127.0.0.1:8000/mcp", "takes HOST:PORT"),
        ("0.0.0.0:8000", "without a key"),
        ("example.com:8000", "without a key"),
    ],
)
def test_an_address_that_will_not_do(clara: Clara, store: Path, http: str, said: str) -> None:
    done = clara("mcp", "--store", store, "--http", http)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_port_that_is_taken(clara: Clara, store: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        done = clara("mcp", "--store", store, "--http", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (done.code, done.out) == (2, "")
    assert "choose another port" in done.err


def test_without_a_store(clara: Clara, tmp_path: Path) -> None:
    done = clara("mcp", "--store", tmp_path / "none")
    assert (done.code, done.out) == (2, "")
    assert "there is no store" in done.err
