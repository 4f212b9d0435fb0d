"""What all streams of answers share: server-sent events, an error within a stream, its end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from logging import getLogger

from clara.serve.batching import ClientGoneError, closing_stream
from clara.serve.faults import api_error, error_body

_log = getLogger("clara.serve")


async def ended_by_error(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """The chunks; an error after the first becomes the last one, because the status has been sent."""
    try:
        async for chunk in chunks:
            yield chunk
    except ClientGoneError:
        return
    except Exception as error:  # noqa: BLE001 - told to the client; the log says what it was
        _log.error("stream failed", extra={"fields": {"error": type(error).__name__}}, exc_info=error)
        yield json.dumps(error_body(api_error(error)))


async def sse(chunks: AsyncIterator[str], events: AsyncIterator[object]) -> AsyncIterator[dict[str, str]]:
    """The chunks as events, then the end that OpenAI's clients wait for; a client that goes ends the answer too."""
    async with closing_stream(events):
        async for chunk in chunks:
            yield {"data": chunk}
        yield {"data": "[DONE]"}
