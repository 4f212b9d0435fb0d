"""``/chat/completions``: the last user message answered from a store, whole or as server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from clara.serve.answers import Told, usage
from clara.serve.api.messages import Choices, Message, asked, conversation, record, url_citations
from clara.serve.api.streams import answer_stream
from clara.serve.state import client_of, state_of

router = APIRouter(tags=["answers"])


class ChatRequest(Choices):
    """The body; unknown fields are passed over."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


@router.post("/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer."""
    state = state_of(request)
    ask = asked(request, body, conversation(body.messages), body.max_completion_tokens or body.max_tokens)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": ask.store.name}
    if not body.stream:
        told = await state.queue.first(lambda: ask.whole(state.limits), client_of(request))
        record(request, ask, told)
        annotations = url_citations(request, ask.store, told)
        message = {"role": "assistant", "content": told.text, "refusal": None, "annotations": annotations}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": told.finish_reason}
        whole = {**head, "object": "chat.completion", "choices": [choice]}
        return JSONResponse({**whole, "usage": usage(told.tokens), "clara": told.details()})
    events: AsyncIterator[str | Told] = await state.queue.stream(lambda: ask.pieces(state.limits), client_of(request))
    with_usage = body.stream_options is not None and body.stream_options.include_usage

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "object": "chat.completion.chunk", "choices": [choice]}

    async def chunks() -> AsyncIterator[str]:
        yield json.dumps(chunk({"role": "assistant", "content": ""}))
        async for event in events:
            if not isinstance(event, Told):
                yield json.dumps(chunk({"content": event}))
                continue
            record(request, ask, event)
            last = chunk({"annotations": url_citations(request, ask.store, event)}, event.finish_reason)
            yield json.dumps({**last, "clara": event.details()})
            if with_usage:
                yield json.dumps({**chunk({}), "choices": [], "usage": usage(event.tokens)})

    return answer_stream(request, chunks(), events)
