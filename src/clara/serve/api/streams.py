"""What all streams of answers share: server-sent events, an error within a stream, its end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from logging import getLogger

from fastapi import Request
from sse_starlette import EventSourceResponse

from clara.serve.batching import ClientGoneError, closing_stream
from clara.serve.faults import api_error, error_body
from clara.serve.state import state_of

_log = getLogger("clara.serve")


async def _ended_by_error(request: Request, chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """The chunks; an error after the first becomes the last one, because the status has been sent."""
    try:
        async for chunk in chunks:
            yield chunk
    except ClientGoneError:
        return
    except Exception as error:  # noqa: BLE001 - told to the client; the log says what it was
        fields = {"request_id": request.scope["state"]["request_id"], "error": type(error).__name__}
        _log.error("stream failed", extra={"fields": fields}, exc_info=error)
        yield json.dumps(error_body(api_error(error)))


def answer_stream(request: Request, chunks: AsyncIterator[str], events: AsyncIterator[object]) -> EventSourceResponse:
    """The chunks as events, then the end that OpenAI's clients wait for.

    A client that goes ends the answer too; a server that ends finishes it first.
    """

    async def sent() -> AsyncIterator[dict[str, str]]:
        async with closing_stream(events):
            async for chunk in _ended_by_error(request, chunks):
                yield {"data": chunk}
            yield {"data": "[DONE]"}

    return EventSourceResponse(sent(), sep="\n", shutdown_grace_period=state_of(request).limits.seconds)
