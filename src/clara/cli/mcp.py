"""``clara mcp``: the store as tools for agents, over the Model Context Protocol."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, redirect_stdout
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from clara.cli.llm import language_model
from clara.cli.options import DEFAULT_STORE, AnsweringModel, LLMModelOption, LLMOption, StoreOption
from clara.cli.session import open_rags, open_store
from clara.cli.terminal import note
from clara.errors import ConfigError, InputError, MissingExtraError

if TYPE_CHECKING:
    from clara.pipeline import Clara

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts for which the SDK checks Host and Origin by itself."""


def mcp(
    *,
    store: StoreOption = DEFAULT_STORE,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve streamable HTTP at http://HOST:PORT/mcp, for this machine alone; stdin and stdout by default.",
        ),
    ] = None,
    allow_write: Annotated[
        bool, typer.Option("--allow-write", help="Let agents add files below --root, and remove documents.")
    ] = False,
    root: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Agents may add files below this folder.")
    ] = Path(),
    llm: LLMOption = None,
    llm_model: LLMModelOption = None,
    choice: AnsweringModel,
) -> None:
    """Serve the store to agents over the Model Context Protocol.

    Tools: search, ask, fetch and list_documents; with --allow-write also add and remove. Without --http it is started
    by its client, as {"command": "clara", "args": ["mcp", "--store", "/path/of/the/store"]}, and ends with it.
    """
    address = None if http is None else _address(http)
    with _stdout_is_stderr():  # until the SDK takes stdout over, the client must read nothing there
        try:
            from clara.serve.mcp import make_server  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "mcp":
                raise
            raise MissingExtraError("mcp", "mcp") from None
        if not (store / "store.json").exists():
            open_store(store).close()  # says what is wrong
        rags = open_rags({"": store}, choice, language_model(llm, llm_model), create=False)
    opening = _Opening(rags)
    writable = root if allow_write else None
    try:
        if address is None:
            make_server(opening.rag, root=writable, lifespan=opening.on_stdio).run("stdio")
            return
        host, port = address
        opening.begin()
        try:
            make_server(opening.rag, root=writable).run("streamable-http", host=host, port=port)
        except SystemExit:  # uvicorn has said why
            raise InputError(f"--http {http} cannot be listened on; choose another port") from None
    finally:
        opening.close()


class _Opening:
    """Opens the store while its client already talks to the server.

    Args:
        rags: opens it.
    """

    def __init__(self, rags: AbstractContextManager[dict[str, Clara]]) -> None:
        self._rags = rags
        self._opened: Future[Clara] = Future()
        self._closing = Event()

    def rag(self) -> Clara:
        """The store, once it is open.

        Raises:
            ClaraError: it cannot be opened.
        """
        return self._opened.result()

    def begin(self) -> None:
        """Start to open it."""
        self._thread = Thread(target=self._open, daemon=True)
        self._thread.start()

    @asynccontextmanager
    async def on_stdio(self, _: object) -> AsyncIterator[None]:
        """Open it while the SDK holds the protocol's stdout; what Python code prints goes to stderr.

        The SDK diverts the descriptor; text that waits in Python's buffer would still come out there at the end.
        """
        with redirect_stdout(sys.stderr):
            self.begin()
            yield

    def close(self) -> None:
        """Close what is open."""
        self._closing.set()
        if self._opened.done():
            self._thread.join()

    def _open(self) -> None:
        try:
            with self._rags as rags:
                self._opened.set_result(rags[""])
                self._closing.wait()
        except BaseException as error:
            if self._opened.done():
                raise
            note(f"clara: {error}")
            self._opened.set_exception(error)


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
