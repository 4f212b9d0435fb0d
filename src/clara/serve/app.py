"""Puts the server together: stores, routes, what every request passes before them, and how uvicorn runs it.

A request gets an id, and is checked for who it is from and how large it may be; a line in the log follows it. The log
holds ids, routes, times and the names of keys. It holds no question, answer, file name, address or key; what is asked
and answered, where that is wanted, ``api/answers`` writes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from traceback import extract_tb
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from clara.errors import ClaraError, ConfigError
from clara.serve.access import (
    Caller,
    KeyEntry,
    Keyring,
    Limits,
    Links,
    check_address,
    check_origin,
    checked_origins,
    named_hosts,
)
from clara.serve.api import answers, documents, overview, page, search
from clara.serve.batching import ClientGoneError, ModelQueue
from clara.serve.faults import ERRORS, ApiError, api_error, error_response, invalid_request, mebibytes
from clara.serve.library import Library, ServedStore
from clara.serve.state import Metrics, ServerState
from clara.serve.uploads import Uploads

_HEAD_SECONDS = 30.0
"""Within which the head of a request must come; a client that sends it by single bytes is closed then."""

_SERVED_METHODS = ("GET", "POST", "DELETE")
_FAMILIES = (overview, answers, search, documents)
_REQUEST_ID = "x-request-id"
_OPEN_ROUTES = frozenset({"/healthz", "/readyz", "/v1/healthz", "/v1/readyz", page.ROOT})
"""Routes that need no key: they say nothing but that the server is there. Files of the page need none."""

_ENDING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE})
_CLIENT_GONE = 499  # nginx's number for a client that went away
_UPLOAD_ROUTES = frozenset({"/documents", "/v1/documents"})
_FORM_BYTES = 4096  # of a multipart body, beside each file's own bytes
_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})
_SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
_log = logging.getLogger("clara.serve")


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
    _install_handlers(app)
    for family in _FAMILIES:
        app.include_router(family.router, prefix="/v1", responses=ERRORS)
        app.include_router(family.router, include_in_schema=False)
    app.include_router(page.router)
    app.add_middleware(_Gate, server=server)
    return app


@dataclass(slots=True)
class _Seen:
    """Log entry of a request."""

    status: int = 0
    caller: str = ""
    started: bool = False


class _Gate:
    """The middleware around the whole application.

    Other sites' pages that may use the server must be able to read why they are refused, and a browser sends no key
    before it knows that they may: CORS stands between the check of the origin and all others.
    """

    def __init__(self, app: ASGIApp, server: ServerState) -> None:
        self._app = app
        self._server = server
        self._shared: ASGIApp = self._admitted
        if server.origins:
            self._shared = CORSMiddleware(
                self._admitted,
                allow_origins=sorted(server.origins),
                allow_methods=_SERVED_METHODS,
                allow_headers=["*"],  # openai's client sends a dozen of its own
                expose_headers=[_REQUEST_ID, "retry-after", "x-should-retry"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        inner = scope
        if scope["method"] == "HEAD":  # what may be fetched may be asked for without its body
            inner, send = {**scope, "method": "GET"}, _without_body(send)
        started = time.perf_counter()
        seen = scope["state"]["seen"] = _Seen()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[_REQUEST_ID] = request_id
                for name, value in _SAFE_HEADERS.items():
                    headers.setdefault(name, value)
                if message["status"] in _ENDING:
                    headers["connection"] = "close"  # the rest of the body is not waited for
                seen.status, seen.started = message["status"], True
            await send(message)

        try:
            await self._of_known_origin(inner, receive, sending)
        except ClientGoneError:
            seen.status = _CLIENT_GONE
        finally:
            # A path that no route has is what a client wrote; it is not kept.
            route = getattr(inner.get("route"), "path", "unknown")
            self._told(route, scope["method"], request_id, seen, time.perf_counter() - started)

    async def _of_known_origin(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            check_origin(headers.get("host", ""), headers.get("origin"), self._server.hosts, self._server.origins)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        else:
            await self._shared(scope, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen: _Seen = scope["state"]["seen"]
        try:
            await self._app(scope, self._admit(scope, receive, seen), send)
        except ClientGoneError:
            raise
        except Exception as error:
            if not isinstance(error, ApiError):
                fields = {"request_id": scope["state"]["request_id"]}
                _log.error("request failed", extra={"fields": fields}, exc_info=error)
            if seen.started:
                raise
            await _refusal(api_error(error), scope)(scope, receive, send)

    def _admit(self, scope: Scope, receive: Receive, seen: _Seen) -> Receive:
        """Check a request's headers; returns how its body is received, up to the limit (ApiError: it is refused)."""
        headers = Headers(scope=scope)
        if scope["path"] not in _OPEN_ROUTES and not scope["path"].startswith(page.FILES):
            caller = self._caller(scope, headers.get("authorization"))
            seen.caller = caller.name
            caller.count_request()
            scope["state"]["caller"] = caller
        limits = self._server.limits
        most = limits.body_bytes
        if scope["path"].rstrip("/") in _UPLOAD_ROUTES:
            most = limits.files * (limits.file_bytes + _FORM_BYTES)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        return _limited(receive, most, limits.silence)

    def _caller(self, scope: Scope, authorization: str | None) -> Caller:
        """Whose request it is: of a key, or of a link that was made with one."""
        linked = None
        if self._server.keys and authorization is None and scope["method"] == "GET":
            linked = self._server.links.caller(scope["path"], scope["query_string"])
        return linked or self._server.keys.caller(authorization)

    def _told(self, route: str, method: str, request_id: str, seen: _Seen, seconds: float) -> None:
        method = method if method in _METHODS else "other"
        self._server.metrics.count_request(route, method, seen.status, seconds)
        fields = {
            "request_id": request_id,
            "route": route,
            "method": method,
            "status": seen.status,
            "seconds": round(seconds, 4),
            "key": seen.caller,
        }
        _log.info("request", extra={"fields": fields})


class JsonLines(logging.Formatter):
    """A JSON object a line: time, level, message, and the fields that were given as ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: MutableMapping[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["trace"] = _trace(record)
        return json.dumps(fields, ensure_ascii=False)


def _trace(record: logging.LogRecord) -> list[str]:
    """Where an exception was raised: types and places, without messages, which may hold what a client wrote."""
    assert record.exc_info is not None  # noqa: S101 - asked by the caller
    error = record.exc_info[1]
    lines: list[str] = []
    while error is not None:
        lines.append(type(error).__name__)
        lines += [f"{at.filename}:{at.lineno} {at.name}" for at in extract_tb(error.__traceback__)]
        error = error.__cause__
    return lines


def _without_body(send: Send) -> Send:
    """``send`` that ends a response at its head: a stream takes it for a client that leaves."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body"})

    return sending


def _limited(receive: Receive, most: int, silence: float) -> Receive:
    """``receive`` that refuses a body beyond the limit, whatever its Content-Length said, or one that stops coming."""
    taken, whole = 0, False

    async def receiving() -> Message:
        nonlocal taken, whole
        if whole:  # what may come now is only that the client leaves, whenever it likes
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), silence)
        except TimeoutError:
            raise ApiError(408, "request_timeout", f"nothing more of the body came within {silence:g} s") from None
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > most:
                raise _too_large(most)
        return message

    return receiving


def _too_large(most: int) -> ApiError:
    return ApiError(413, "body_too_large", f"the body is larger than {mebibytes(most)}")


def _install_handlers(app: FastAPI) -> None:
    """Errors of routes in OpenAI's shape."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: object, error: RequestValidationError) -> object:
        return error_response(invalid_request(error))

    async def known(request: HTTPConnection, error: Exception) -> object:
        told = api_error(error)
        if isinstance(error, ClaraError):
            fields = {"request_id": request.scope["state"]["request_id"], "error": type(error).__name__}
            trace = error if told.status_code >= 500 else None  # a client's mistake has no place in our source
            _log.warning("request refused", extra={"fields": fields}, exc_info=trace)
        response = _refusal(told, request.scope)
        if told.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["allow"] = ", ".join(_allowed(request.scope["path"]))
        return response

    app.add_exception_handler(HTTPException, known)  # type: ignore[arg-type]
    app.add_exception_handler(ClaraError, known)  # type: ignore[arg-type]


def _refusal(error: ApiError, scope: Scope) -> Response:
    """In OpenAI's shape; a page to a browser that follows a citation."""
    browsing = scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")
    shown = page.refusal_page(error, scope["path"]) if browsing else None
    return shown or error_response(error)


def _allowed(path: str) -> list[str]:
    """Methods that an address takes."""
    routes = [route for family in (*_FAMILIES, page) for route in family.router.routes if isinstance(route, Route)]
    path = path.removeprefix("/v1")
    methods = {method for route in routes if route.path_regex.fullmatch(path) for method in route.methods or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


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
            self._due = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

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
