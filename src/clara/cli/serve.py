"""``clara serve``: an OpenAI-compatible server over stores. Options only; the server is room ``serve``."""

from __future__ import annotations

import math
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clara.cli.llm import language_model
from clara.cli.options import DEFAULT_STORE, AnsweringModel, Engine, LLMModelOption, LLMOption
from clara.cli.session import open_rags
from clara.cli.terminal import note
from clara.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
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
    _check_extra()
    import uvicorn  # noqa: PLC0415

    from clara.serve.access import checked_origins  # noqa: PLC0415
    from clara.serve.app import check_address, create_app  # noqa: PLC0415
    from clara.serve.connections import server_config  # noqa: PLC0415
    from clara.serve.limits import Limits  # noqa: PLC0415

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
    with open_rags(named, choice, server_model, create=True, engine=engine) as rags:
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


def _check_extra() -> None:
    """Refuse to start without the libraries of the extra.

    Raises:
        MissingExtraError: one is not installed; the message holds the command that installs it.
    """
    for module, package in _PACKAGES.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "serve")


def _start_log() -> None:
    """Write the server's log on stderr, one JSON object a line."""
    import logging  # noqa: PLC0415

    from clara.serve.gate import JsonLines  # noqa: PLC0415

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
    """Folders by the names that clients use.

    Raises:
        ConfigError: a name cannot be one, or stands for two stores.
    """
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
