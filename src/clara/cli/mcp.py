"""``clara mcp``: the store as tools for agents, over the Model Context Protocol."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from clara.cli.options import (
    DEFAULT_STORE,
    AttentionOption,
    BaseOption,
    CacheOption,
    DeviceOption,
    DtypeOption,
    MemoryCheckOption,
    ModelChoice,
    ModelOption,
    StoreOption,
    ThreadsOption,
)
from clara.cli.session import open_filled
from clara.errors import ConfigError, InputError, MissingExtraError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts for which the SDK checks Host and Origin by itself."""


def mcp(
    *,
    store: StoreOption = DEFAULT_STORE,
    http: Annotated[
        str | None,
        typer.Option(
            "--http",
            metavar="HOST:PORT",
            help="Serve streamable HTTP at http://HOST:PORT/mcp, for this machine alone; stdin and stdout by default.",
        ),
    ] = None,
    allow_write: Annotated[
        bool, typer.Option("--allow-write", help="Let agents add files below --root, and remove documents.")
    ] = False,
    root: Annotated[
        Path, typer.Option("--root", exists=True, file_okay=False, help="Agents may add files below this folder.")
    ] = Path(),
    model: ModelOption = None,
    base: BaseOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    cache: CacheOption = None,
    threads: ThreadsOption = None,
    attention: AttentionOption = "auto",
    memory_check: MemoryCheckOption = True,
) -> None:
    """Serve the store to agents over the Model Context Protocol.

    Tools: search, ask, fetch and list_documents; with --allow-write also add and remove. Without --http it is started
    by its client, as {"command": "clara", "args": ["mcp", "--store", "/path/of/the/store"]}, and ends with it.
    """
    address = None if http is None else _address(http)
    choice = ModelChoice(model, base, device, dtype, cache, threads, attention, memory_check)
    with _stdout_is_stderr():  # until the SDK takes stdout over, the client must read nothing there
        try:
            from clara.serve.mcp import make_server  # noqa: PLC0415 - loads the model's libraries
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "mcp":
                raise
            raise MissingExtraError("mcp", "mcp") from None
        rag = open_filled(store, choice)
    writable = root if allow_write else None
    with rag:
        if address is None:
            make_server(rag, root=writable, lifespan=_printing_to_stderr).run("stdio")
            return
        host, port = address
        try:
            make_server(rag, root=writable).run("streamable-http", host=host, port=port)
        except SystemExit:  # uvicorn has said why
            raise InputError(f"--http {http} cannot be listened on; choose another port") from None


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(mcp)


def _address(text: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ConfigError: there is none, or the host is not this machine's own.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or text.count("/"):
        raise ConfigError(f"--http takes HOST:PORT, such as 127.0.0.1:8000, got {text!r}")
    if host not in _LOOPBACK:
        raise ConfigError(
            f"--http {text} would serve the documents to whoever reaches {host}, without a key; give one of "
            f"{', '.join(_LOOPBACK)}, and put a proxy that asks who is there before it"
        )
    return host, port


@asynccontextmanager
async def _printing_to_stderr(_: object) -> AsyncIterator[None]:
    """What Python code prints goes to stderr while the SDK holds the protocol's stdout.

    The SDK diverts the descriptor; text that waits in Python's buffer would still come out there at the end.
    """
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def _stdout_is_stderr() -> Iterator[None]:
    """What anything prints on stdout goes to stderr, compiled libraries included."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
