"""``/responses``: text in, text out, with what was found as a file search call and file citations. Not streamed."""

from __future__ import annotations

import secrets
import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from clara.messages import Said, conversation_of
from clara.serve.answers import Told
from clara.serve.api.messages import AnswerFields, Message, asked, conversation, record
from clara.serve.faults import ApiError
from clara.serve.library import ServedStore, document_id, filename_of
from clara.serve.state import client_of, state_of

router = APIRouter(tags=["answers"])


class ResponsesRequest(AnswerFields):
    """The body; unknown fields are passed over."""

    input: str | list[Message]
    max_output_tokens: int | None = Field(default=None, ge=1)


@router.post("/responses")
async def responses(request: Request, body: ResponsesRequest) -> dict[str, Any]:
    """Answer."""
    if body.stream:
        message = "/responses is not streamed; leave stream out, or use /chat/completions"
        raise ApiError(400, "unsupported_stream", message, param="stream")
    state = state_of(request)
    talk = conversation_of([Said("user", body.input)]) if isinstance(body.input, str) else conversation(body.input)
    ask = asked(request, body, talk, body.max_output_tokens)
    told = await state.queue.first(lambda: ask.whole(state.limits), client_of(request))
    record(request, ask, told)
    return _response(ask.store, told)


def _response(store: ServedStore, told: Told) -> dict[str, Any]:
    cut = told.finish_reason == "length"
    return {
        "id": f"resp_{secrets.token_hex(12)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None,
        "metadata": {},
        "model": store.name,
        "output": _output(store, told),
        "parallel_tool_calls": False,
        "temperature": 0.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": told.tokens.prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": told.tokens.generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": told.tokens.prompt + told.tokens.generated,
        },
        "clara": told.details(),
    }


def _output(store: ServedStore, told: Told) -> list[dict[str, Any]]:
    """The search, where there was one, and the message."""
    annotations = [
        {
            "type": "file_citation",
            "file_id": document_id(store.name, source.document),
            "filename": filename_of(source.document),
            "index": len(told.text),
        }
        for source in told.sources
    ]
    results = [
        {
            "file_id": document_id(store.name, source.document),
            "filename": filename_of(source.document),
            "score": source.score,
            "text": source.text,
            "attributes": {"start": source.start, "end": source.end},
        }
        for source in told.sources
    ]
    search = {
        "id": f"fs_{secrets.token_hex(12)}",
        "type": "file_search_call",
        "queries": [told.question],
        "status": "completed",
        "results": results,
    }
    message = {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": told.text, "annotations": annotations, "logprobs": []}],
    }
    return [search, message] if results else [message]
