"""``/completions``: a prompt as a question, for clients that know no chat."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from clara.messages import Said, conversation_of
from clara.serve.answers import Told, usage
from clara.serve.api.messages import Choices, asked, record, url_citations
from clara.serve.api.streams import answer_stream
from clara.serve.faults import ApiError
from clara.serve.state import client_of, state_of

router = APIRouter(tags=["answers"])


class CompletionRequest(Choices):
    """The body; unknown fields are passed over."""

    prompt: str | list[str]


@router.post("/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Answer."""
    state = state_of(request)
    ask = asked(request, body, conversation_of([Said("user", _prompt(body.prompt))]), body.max_tokens)
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": ask.store.name,
    }

    def choice(text: str, finish_reason: str | None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}]}

    def details(told: Told) -> dict[str, Any]:
        return {"clara": {**told.details(), "annotations": url_citations(request, ask.store, told)}}

    if not body.stream:
        told = await state.queue.first(lambda: ask.whole(state.limits), client_of(request))
        record(request, ask, told)
        return JSONResponse({**choice(told.text, told.finish_reason), "usage": usage(told.tokens), **details(told)})
    events: AsyncIterator[str | Told] = await state.queue.stream(lambda: ask.pieces(state.limits), client_of(request))
    with_usage = body.stream_options is not None and body.stream_options.include_usage

    async def chunks() -> AsyncIterator[str]:
        async for event in events:
            if not isinstance(event, Told):
                yield json.dumps(choice(event, None))
                continue
            record(request, ask, event)
            yield json.dumps({**choice("", event.finish_reason), **details(event)})
            if with_usage:
                yield json.dumps({**head, "choices": [], "usage": usage(event.tokens)})

    return answer_stream(request, chunks(), events)


def _prompt(prompt: str | list[str]) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) != 1:
        raise ApiError(400, "invalid_value", f"one prompt a request, got {len(prompt)}", param="prompt")
    return prompt[0]
