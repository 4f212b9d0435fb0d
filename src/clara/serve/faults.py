"""Exceptions to responses: the one table from the exception tree to status codes, and OpenAI's shape of an error."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clara import errors
from clara.errors import ClaraError

_GENERIC = "the server could not do this; its log says why under this request's id"


@dataclass(frozen=True, slots=True)
class _Fault:
    """How an error is told to a client: status of HTTP, a code for programs, and whether its own message is told.

    Messages about the server's own files and models are not.
    """

    status: int
    code: str
    told: bool = False


_TABLE: dict[type[ClaraError], _Fault] = {
    errors.ClaraError: _Fault(500, "server_error"),
    errors.InputError: _Fault(400, "invalid_value", told=True),
    errors.DocumentError: _Fault(422, "unreadable_document"),
    errors.TooLongError: _Fault(400, "context_length_exceeded", told=True),
    errors.NothingFoundError: _Fault(404, "nothing_found"),
    errors.ModelError: _Fault(500, "model_error"),
    errors.MemoryShortageError: _Fault(503, "out_of_memory"),
    errors.StoreError: _Fault(500, "store_error"),
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


def fault_of(error: ClaraError) -> _Fault:
    """The entry of the nearest class in ``_TABLE``."""
    return next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)


def api_error(error: Exception) -> ApiError:
    """What a client is told of any exception; a bug's own words stay in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        code = HTTPStatus(error.status_code).name.lower()
        return ApiError(error.status_code, code, str(error.detail))
    if isinstance(error, ClaraError):
        fault = fault_of(error)
        return ApiError(fault.status, fault.code, str(error) if fault.told else _GENERIC)
    return ApiError(500, "server_error", _GENERIC)


def error_body(error: ApiError) -> dict[str, Any]:
    """OpenAI's shape."""
    return {"error": {"message": error.message, "type": _kind(error), "param": error.param, "code": error.code}}


def error_response(error: ApiError) -> JSONResponse:
    """The response; it says whether to try again, because clients of OpenAI's otherwise repeat 409, 429 and 5xx."""
    if error.retry_after is None:
        headers = {"x-should-retry": "false"}
    else:
        headers = {"Retry-After": str(error.retry_after), "x-should-retry": "true"}
    if error.status_code == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status_code, headers)


def _kind(error: ApiError) -> str:
    names = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return names.get(error.status_code, "server_error" if error.status_code >= 500 else "invalid_request_error")
