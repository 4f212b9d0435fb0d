"""``clara serve`` and ``mcp``: stores for clients of OpenAI's API, and a store as tools for agents.

Options, and what opens the stores; the servers are room ``serve``.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from clara.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_STORE,
    AnsweringModel,
    Engine,
    LLMModelOption,
    LLMOption,
    ModelChoice,
    StoreOption,
)
from clara.cli.session import language_model, load_model, open_store, stored_model
from clara.cli.terminal import note
from clara.errors import ConfigError, InputError, MissingExtraError

if TYPE_CHECKING:
    from clara.llm import LLM
    from clara.model import ClaraModel
    from clara.pipeline import Clara
    from clara.serve.access import KeyEntry
    from clara.serve.library import ServedStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "sse_starlette": "sse-starlette",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
_M_ARENA_MAX = -8  # of glibc's malloc.h
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Hosts for which the SDK of MCP checks Host and Origin by itself."""


def serve(
    *,
    store: Annotated[
        list[str] | None,
        typer.Option(
            envvar="CLARA_STORE",
            metavar="[NAME=]DIR",
            help="A store, made if there is none; may be given again. Clients call it by NAME, else by its folder's.",
        ),
    ] = None,
    choice: AnsweringModel,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="CLARA_API_KEY", help="A key for everything; other users of the machine see arguments."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Keys with their stores and rights (docs/serve.md).")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name that the Host header may hold; may be given again.")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="An origin whose pages may use the server; may be given again. None by default."),
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Questions that wait at once.")] = 16,
    max_together: Annotated[int, typer.Option(min=1, help="Of them, those answered side by side.")] = 8,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Of a request that is no upload (MiB).")] = 1,
    max_file_mb: Annotated[int, typer.Option(min=1, help="Of one uploaded file (MiB).")] = 64,
    max_files: Annotated[int, typer.Option(min=1, help="Of one upload.")] = 100,
    max_question: Annotated[int, typer.Option(min=1, help="Characters of a question.")] = 16_000,
    rate_limit: Annotated[int, typer.Option(min=0, help="Requests a minute of one key; 0 for any number.")] = 0,
    max_seconds: Annotated[float, typer.Option(min=1, help="Of one question.")] = 300,
    link_minutes: Annotated[int, typer.Option(min=1, help="That a citation's address opens without a key.")] = 60,
    log_content: Annotated[
        bool, typer.Option("--log-content", help="Write questions and answers into the log.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="What decodes answers: torch, or vLLM (free wording only; extra vllm, a GPU).")
    ] = "torch",
    llm: LLMOption = None,
    llm_model: LLMModelOption = None,
) -> None:
    """Answer, search and take documents in over HTTP, in the way of OpenAI's API.

    Needs the extra serve: pip install 'clara-rag[serve]'. Settings of clients and the key file: docs/serve.md.
    """
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "serve")
    _share_arenas()
    import uvicorn  # noqa: PLC0415

    from clara.serve.access import Limits, check_address, checked_origins  # noqa: PLC0415
    from clara.serve.app import create_app, server_config  # noqa: PLC0415

    keys = _keys(api_key, api_key_file)
    check_address(host, keys)
    origins = checked_origins(cors_origin or ())
    server_model = language_model(llm, llm_model)
    named = _named(store or [str(DEFAULT_STORE)])
    limits = Limits(
        body_bytes=max_body_mb << 20,
        file_bytes=max_file_mb << 20,
        files=max_files,
        question_characters=max_question,
        requests_a_minute=rate_limit,
        waiting=max_waiting,
        together=max_together,
        seconds=max_seconds,
        link_seconds=60 * link_minutes,
    )
    with _open_rags(named, choice, server_model, create=True, engine=engine) as rags:
        app = create_app(
            _served(rags, named),
            keys=keys,
            host=host,
            allowed_hosts=allow_host or (),
            cors_origins=sorted(origins),
            limits=limits,
            log_content=log_content,
        )
        _start_log()
        # No answer takes longer than its limit.
        config = server_config(app, host=host, port=port, shutdown_seconds=math.ceil(max_seconds))
        server = uvicorn.Server(config)
        with config.bind_socket() as listening:
            listening.listen()  # who reads the line below may ask at once
            address, bound = listening.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            note(f"clara serves {', '.join(named)} at http://{shown}:{bound}/v1")
            # Uvicorn raises the signal that ended it once more when everything is answered.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            server.run([listening])


def _share_arenas() -> None:
    """Let all threads allocate from two arenas, where the C library is glibc and nobody said otherwise.

    Else each of dozens of threads has one of its own, which keeps what was freed in it: gigabytes (LOG.md, 2026-12-01).
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError, TypeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _start_log() -> None:
    """Write the server's log on stderr, one JSON object a line."""
    import logging  # noqa: PLC0415

    from clara.serve.app import JsonLines  # noqa: PLC0415

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    log = logging.getLogger("clara.serve")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _keys(api_key: str | None, api_key_file: Path | None) -> list[KeyEntry]:
    from pydantic import ValidationError  # noqa: PLC0415

    from clara.serve.access import KeyEntry, read_keys  # noqa: PLC0415

    keys = read_keys(api_key_file) if api_key_file is not None else []
    if api_key is None:
        return keys
    try:
        return [*keys, KeyEntry(key=api_key, name="--api-key", stores=["*"], rights=["read", "write"])]
    except ValidationError:
        raise ConfigError("--api-key must have at least 8 characters, without spaces or signs beyond ASCII") from None


def _named(given: Sequence[str]) -> dict[str, Path]:
    """Folders by the names that clients use (ConfigError: a name cannot be one, or stands for two stores)."""
    named: dict[str, Path] = {}
    for each in given:
        name, equals, folder = each.partition("=")
        path = Path(folder if equals else each).expanduser()
        name = name if equals else path.resolve().name
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--store {each}: {name!r} is no name for clients; give one: --store NAME={path}")
        if name in named:
            raise ConfigError(f"--store {each}: there is another store {name}; give it a name: --store NAME={path}")
        named[name] = path
    return named


def _served(rags: Mapping[str, Clara], named: Mapping[str, Path]) -> list[ServedStore]:
    from clara.serve.library import ServedStore  # noqa: PLC0415

    folders = {name: path.resolve() for name, path in named.items()}
    return [
        ServedStore(name, rag, folders[name].with_name(f"{folders[name].name}-uploads"), int(time.time()))
        for name, rag in rags.items()
    ]


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
    address = None if http is None else _loopback_address(http)
    with _stdout_is_stderr():  # until the SDK takes stdout over, the client must read nothing there
        try:
            from clara.serve.mcp import make_server  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "mcp":
                raise
            raise MissingExtraError("mcp", "mcp") from None
        if not (store / "store.json").exists():
            open_store(store).close()  # says what is wrong
        rags = _open_rags({"": store}, choice, language_model(llm, llm_model), create=False)
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
    """Opens the store, by ``rags``, while its client already talks to the server."""

    def __init__(self, rags: AbstractContextManager[dict[str, Clara]]) -> None:
        self._rags = rags
        self._opened: Future[Clara] = Future()
        self._closing = Event()

    def rag(self) -> Clara:
        """The store, once it is open; raises the ClaraError that it cannot be."""
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


def _loopback_address(text: str) -> tuple[str, int]:
    """Host and port (ConfigError: there is none, or the host is not this machine's own)."""
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


@contextmanager
def _open_rags(
    named: Mapping[str, Path], choice: ModelChoice, llm: LLM | None, *, create: bool, engine: Engine = "torch"
) -> Iterator[dict[str, Clara]]:
    """Open stores to serve them; what is wrong with one is said before a model is loaded, and each is loaded once.

    A store has its own model unless the user names one, and answers by it without ``llm``.
    """
    stored = {name: stored_model(path) for name, path in named.items()}
    for name, path in named.items():
        if stored[name] is None and not create:
            open_store(path)  # says what is wrong
    from clara.pipeline import Clara  # noqa: PLC0415

    models: dict[str, ClaraModel] = {}
    with ExitStack() as stack:
        if llm is not None:
            stack.enter_context(llm)
        opened = {}
        for name, path in named.items():
            filled_by = stored[name]
            wanted = choice.model or (filled_by.name if filled_by is not None else DEFAULT_MODEL)
            if wanted not in models:
                models[wanted] = load_model(choice, wanted, engine=engine)
            opened[name] = stack.enter_context(Clara.open(path, model=models[wanted], create=create))
            opened[name].llm = llm
        yield opened
