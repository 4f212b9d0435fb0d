"""Exceptions to responses: the one table from the exception tree to status codes, and OpenAI's shape of an error."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clara import errors
from clara.errors import ClaraError

_GENERIC = "the server could not do this; its log says why under this request's id"


@dataclass(frozen=True, slots=True)
class _Fault:
    """An error as a client sees it: status of HTTP, a code for programs, and whether its own message is told.

    Messages about the server's own files and models are not.
    """

    status: int
    code: str
    told: bool = False


# What the framework says of its own, in words that tell what to do.
_SAID = {
    "Not Found": "there is no such address here; GET /openapi.json lists those that there are",
    "Method Not Allowed": "this address does not take that method; the header Allow names those that it takes",
    "There was an error parsing the body": "the body cannot be read; send JSON as UTF-8",
}

_FIELDS = {"message": "string", "type": "string", "param": ["string", "null"], "code": "string"}
_OBJECT = {"type": "object", "required": list(_FIELDS), "properties": {k: {"type": v} for k, v in _FIELDS.items()}}
_BODY = {"type": "object", "required": ["error"], "properties": {"error": _OBJECT}}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": said, "content": {"application/json": {"schema": _BODY}}}
    for status, said in (("4XX", "The request is refused."), ("5XX", "The server could not answer it."))
}
"""``error_body`` in the description of every route; without it FastAPI would promise a 422 of its own shape."""

STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""Of a route that answers, or may answer, with server-sent events."""

_TABLE: dict[type[ClaraError], _Fault] = {
    errors.ClaraError: _Fault(500, "server_error"),
    errors.InputError: _Fault(400, "invalid_value", told=True),
    errors.DocumentError: _Fault(422, "unreadable_document"),
    errors.TooLongError: _Fault(400, "context_length_exceeded", told=True),
    errors.NothingFoundError: _Fault(404, "nothing_found"),
    errors.ModelError: _Fault(500, "model_error"),
    errors.MemoryShortageError: _Fault(503, "out_of_memory"),
    errors.StoreError: _Fault(500, "store_error"),
    errors.StoreEmptyError: _Fault(409, "store_empty", told=True),
    errors.LLMError: _Fault(502, "upstream_error"),
    errors.LLMUnavailableError: _Fault(503, "upstream_unavailable"),
    errors.MissingExtraError: _Fault(501, "not_installed"),
}
"""By the nearest class of the tree; those that are not here are told as the class above them."""


class ApiError(HTTPException):
    """A request that is refused here, with what the client is told.

    Args:
        status: of HTTP.
        code: stable, for programs.
        message: what was expected, what came, what to do.
        param: the field at fault.
        retry_after: seconds after which a repeat may succeed; None where it cannot.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(status, message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after


def _fault_of(error: ClaraError) -> _Fault:
    """The entry of the nearest class in ``_TABLE``."""
    return next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)


def api_error(error: Exception) -> ApiError:
    """Message to a client for any exception; a bug's own words stay in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        code = HTTPStatus(error.status_code).name.lower() if error.status_code != 400 else "invalid_value"
        return ApiError(error.status_code, code, _SAID.get(error.detail, error.detail))
    if isinstance(error, ClaraError):
        fault = _fault_of(error)
        return ApiError(fault.status, fault.code, str(error) if fault.told else _GENERIC)
    return ApiError(500, "server_error", _GENERIC)


def invalid_request(error: RequestValidationError) -> ApiError:
    """The fault of a request that does not fit: of several the deepest, which knows best what was meant."""
    fault = max(error.errors(), key=lambda each: len(each["loc"]))
    if fault["type"] == "json_invalid":
        message = f"the body is no JSON: {fault['ctx']['error']} at character {fault['loc'][1]}"
        return ApiError(400, "invalid_value", message)
    # Where a field takes one of several types, pydantic puts the type that it tried into the place.
    place = [str(part) for part in fault["loc"][1:] if part != "str" and "[" not in str(part)]
    if not place:
        message = "send a JSON object, with the header Content-Type: application/json"
        return ApiError(400, "invalid_value", message)
    return ApiError(400, "invalid_value", f"{'.'.join(place)}: {fault['msg']}", param=".".join(place))


def error_body(error: ApiError) -> dict[str, Any]:
    """OpenAI's shape."""
    # LiteLLM, and what copies it, knows what is too long by these words and not by the code.
    words = "prompt is too long: " if error.code == "context_length_exceeded" else ""
    return {"error": {"message": words + error.message, "type": _kind(error), "param": error.param, "code": error.code}}


def error_response(error: ApiError) -> JSONResponse:
    """The response; it says whether to try again, because clients of OpenAI's otherwise repeat 409, 429 and 5xx."""
    if error.retry_after is None:
        headers = {"x-should-retry": "false"}
    else:
        headers = {"Retry-After": str(error.retry_after), "x-should-retry": "true"}
    if error.status_code == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status_code, headers)


def mebibytes(count: int) -> str:
    """A limit in the unit of the options that set it."""
    return f"{count / 2**20:g} MiB"


def _kind(error: ApiError) -> str:
    names = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return names.get(error.status_code, "server_error" if error.status_code >= 500 else "invalid_request_error")
