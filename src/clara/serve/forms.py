"""Multipart forms whose files are measured while they arrive: one beyond the limit is refused before it is kept."""

from __future__ import annotations

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from clara.serve.faults import ApiError
from clara.serve.limits import Limits

_MOST_FIELDS = 16


async def read_form(request: Request, limits: Limits) -> FormData:
    """The fields and files of a request; close it.

    Raises:
        ApiError: it is no such form, or goes beyond the limits.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(400, "missing_files", "send a multipart form with the field files", param="files")
    parser = _Measured(request, limits)
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, "invalid_value", f"the form cannot be read: {error.message}", param="files") from None


class _Measured(MultiPartParser):
    def __init__(self, request: Request, limits: Limits) -> None:
        super().__init__(request.headers, request.stream(), max_files=limits.files, max_fields=_MOST_FIELDS)
        self._most = limits.file_bytes
        self._taken = 0

    def on_part_begin(self) -> None:
        self._taken = 0
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._taken += end - start
        if self._taken > self._most:
            raise ApiError(413, "file_too_large", f"a file is larger than {self._most} bytes", param="files")
        super().on_part_data(data, start, end)
