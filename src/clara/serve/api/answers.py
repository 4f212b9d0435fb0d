"""Routes that answer: ``/chat/completions``, ``/completions``, ``/responses``, and ``/compare`` for the page.

What is asked and how it is answered is ``serve.answers``'s; here are messages, citations and streams as clients of
OpenAI's API know them. Unknown fields of a body are passed over, those of its object ``clara`` are not.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import Enum
from logging import getLogger
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from sse_starlette import EventSourceResponse

from clara.messages import Conversation, Said, conversation_of
from clara.records import ContextChoice
from clara.serve.answers import Ask, ClaraFields, Told, usage
from clara.serve.batching import ClientGoneError
from clara.serve.faults import ApiError, api_error, error_body
from clara.serve.library import ServedStore, document_id, filename_of
from clara.serve.state import caller_of, client_of, log_event, state_of

router = APIRouter()

_ANSWERS: Final[list[str | Enum]] = ["answers"]
_READINGS: Final[tuple[ContextChoice, ...]] = ("memory", "text", "none")
_log = getLogger("clara.serve")


class Message(BaseModel):
    """A message of a conversation; what else stands in it is passed over.

    Attributes:
        role: who said it.
        content: a text, or a list of parts of which the texts are read.
    """

    role: str
    content: str | list[dict[str, Any]] | None = None

    def said(self) -> Said:
        """Its role and text (ApiError: a part is not text)."""
        if not isinstance(self.content, list):
            return Said(self.role, self.content or "")
        texts: list[str] = []
        for part in self.content:
            text = part.get("text")
            if part.get("type") not in {"text", "input_text", "output_text"} or not isinstance(text, str):
                message = f"only text can be read, got a part of type {str(part.get('type'))!r:.40}"
                raise ApiError(400, "unsupported_content", message, param="messages")
            texts.append(text)
        return Said(self.role, "\n".join(texts))


class StreamOptions(BaseModel):
    """What a stream is to hold beside the answer."""

    include_usage: bool = False


class _AnswerFields(BaseModel):
    model: str | None = None
    stream: bool | None = None
    clara: ClaraFields | None = None


class _CompletionFields(_AnswerFields):
    n: int | None = Field(default=None, ge=1, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    stream_options: StreamOptions | None = None


class ChatRequest(_CompletionFields):
    """The body; unknown fields are passed over."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


class CompletionRequest(_CompletionFields):
    """The body; unknown fields are passed over."""

    prompt: str | list[str]


class ResponsesRequest(_AnswerFields):
    """The body; unknown fields are passed over."""

    input: str | list[Message]
    max_output_tokens: int | None = Field(default=None, ge=1)


class CompareRequest(_AnswerFields):
    """The body of ``/compare``: as of ``/chat/completions``; ``clara.context`` is passed over."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)


@router.post("/chat/completions", name="chat_completions", tags=_ANSWERS)
async def _chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer."""
    ask = _asked(request, body, _conversation(body.messages), body.max_completion_tokens or body.max_tokens)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": ask.store.name}

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "object": "chat.completion.chunk", "choices": [choice]}

    def whole(told: Told) -> dict[str, Any]:
        annotations = _url_citations(request, ask.store, told)
        message = {"role": "assistant", "content": told.text, "refusal": None, "annotations": annotations}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": told.finish_reason}
        made = {**head, "object": "chat.completion", "choices": [choice]}
        return {**made, "usage": usage(told.tokens), "clara": told.details()}

    def last(told: Told) -> dict[str, Any]:
        annotations = _url_citations(request, ask.store, told)
        return {**chunk({"annotations": annotations}, told.finish_reason), "clara": told.details()}

    opening = (chunk({"role": "assistant", "content": ""}),)
    return await _completion(request, body, ask, _Shape(whole, opening, lambda text: chunk({"content": text}), last))


@router.post("/completions", name="completions", tags=_ANSWERS)
async def _completions(request: Request, body: CompletionRequest) -> Response:
    """Answer."""
    if not isinstance(body.prompt, str) and len(body.prompt) != 1:
        raise ApiError(400, "invalid_value", f"one prompt a request, got {len(body.prompt)}", param="prompt")
    prompt = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
    ask = _asked(request, body, conversation_of([Said("user", prompt)]), body.max_tokens)
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": ask.store.name,
    }

    def chunk(text: str, finish_reason: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}]}

    def details(told: Told) -> dict[str, Any]:
        return {"clara": {**told.details(), "annotations": _url_citations(request, ask.store, told)}}

    def whole(told: Told) -> dict[str, Any]:
        return {**chunk(told.text, told.finish_reason), "usage": usage(told.tokens), **details(told)}

    def last(told: Told) -> dict[str, Any]:
        return {**chunk("", told.finish_reason), **details(told)}

    return await _completion(request, body, ask, _Shape(whole, (), chunk, last))


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a kind of completion looks: as a whole, and as chunks before, of and after the text."""

    whole: Callable[[Told], dict[str, Any]]
    opening: Sequence[dict[str, Any]]
    piece: Callable[[str], dict[str, Any]]
    last: Callable[[Told], dict[str, Any]]


async def _completion(request: Request, body: _CompletionFields, ask: Ask, shape: _Shape) -> Response:
    """The answer in its shape, whole or as server-sent events."""
    state = state_of(request)
    if not body.stream:
        told = await state.queue.first(lambda: ask.whole(state.limits), client_of(request))
        _record(request, ask, told)
        return JSONResponse(shape.whole(told))
    events: AsyncGenerator[str | Told, None] = await state.queue.stream(
        lambda: ask.pieces(state.limits), client_of(request)
    )
    with_usage = body.stream_options is not None and body.stream_options.include_usage

    async def chunks() -> AsyncIterator[str]:
        for chunk in shape.opening:
            yield json.dumps(chunk)
        async for event in events:
            if not isinstance(event, Told):
                yield json.dumps(shape.piece(event))
                continue
            _record(request, ask, event)
            yield json.dumps(shape.last(event))
            if with_usage:
                yield json.dumps({**shape.piece(""), "choices": [], "usage": usage(event.tokens)})

    return _answer_stream(request, chunks(), events)


@router.post("/responses", name="responses", tags=_ANSWERS)
async def _responses(request: Request, body: ResponsesRequest) -> dict[str, Any]:
    """Answer."""
    if body.stream:
        message = "/responses is not streamed; leave stream out, or use /chat/completions"
        raise ApiError(400, "unsupported_stream", message, param="stream")
    state = state_of(request)
    talk = conversation_of([Said("user", body.input)]) if isinstance(body.input, str) else _conversation(body.input)
    ask = _asked(request, body, talk, body.max_output_tokens)
    told = await state.queue.first(lambda: ask.whole(state.limits), client_of(request))
    _record(request, ask, told)
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
        "model": ask.store.name,
        "output": _output(ask.store, told),
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
    annotations, results = list[dict[str, Any]](), list[dict[str, Any]]()
    for source in told.sources:
        file = {"file_id": document_id(store.name, source.document), "filename": filename_of(source.document)}
        annotations.append({"type": "file_citation", **file, "index": len(told.text)})
        place = {"start": source.start, "end": source.end}
        results.append({**file, "score": source.score, "text": source.text, "attributes": place})
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


@router.post("/compare", name="compare", tags=["exploring"])
async def _compare(request: Request, body: CompareRequest) -> Response:
    """Answer the same question from memories, from the same passages' text, and from nothing."""
    ask = _asked(request, body, _conversation(body.messages), body.max_tokens)
    readings = [replace(ask, fields=_read_as(ask, context)) for context in _READINGS]
    first = await _reading(request, readings[0])

    async def chunks() -> AsyncGenerator[str, None]:
        yield first
        for reading in readings[1:]:
            yield await _reading(request, reading)

    told = chunks()
    return _answer_stream(request, told, told)


def _read_as(ask: Ask, context: ContextChoice) -> ClaraFields:
    """The fields of a question with another context; from nothing, nothing can be quoted."""
    changes: dict[str, Any] = {"context": context, **({"wording": None} if context == "none" else {})}
    return ask.fields.model_copy(update=changes)


async def _reading(request: Request, ask: Ask) -> str:
    """An answer with the seconds that it took, the wait for the model left out."""
    state = state_of(request)

    def work() -> Generator[tuple[Told, float] | None, None, None]:
        started = time.perf_counter()
        for told in ask.whole(state.limits):
            yield None if told is None else (told, time.perf_counter() - started)

    told, seconds = await state.queue.first(work, client_of(request))
    _record(request, ask, told)
    return json.dumps(
        {
            "object": "clara.reading",
            "context": ask.fields.context,
            "text": told.text,
            "seconds": seconds,
            "annotations": _url_citations(request, ask.store, told),
            "usage": usage(told.tokens),
            "clara": told.details(),
        }
    )


def _conversation(messages: list[Message]) -> Conversation | None:
    """The question of messages."""
    return conversation_of([message.said() for message in messages])


def _asked(request: Request, fields: _AnswerFields, conversation: Conversation | None, max_tokens: int | None) -> Ask:
    """A question that may wait for the model (ApiError: it is refused)."""
    state = state_of(request)
    store = state.library.store(caller_of(request), fields.model)
    if conversation is None:
        raise ApiError(400, "empty_question", "there is no user message with a text")
    ask = Ask(store, conversation, fields.clara or ClaraFields(), max_tokens)
    ask.check(state.limits)
    return ask


def _record(request: Request, ask: Ask, told: Told) -> None:
    """Count an answer and write a line of the log, with what was asked and answered only where that is wanted."""
    state = state_of(request)
    state.metrics.count_tokens(told.tokens)
    content = {"question": ask.conversation.message, "answer": told.text} if state.log_content else {}
    log_event(
        request,
        "answer",
        store=ask.store.name,
        answered=told.answered,
        finish_reason=told.finish_reason,
        prompt_tokens=told.tokens.prompt,
        generated_tokens=told.tokens.generated,
        **content,
    )


def document_address(request: Request, store: ServedStore, uri: str, start: int, end: int) -> str:
    """Where characters of a document are shown highlighted; signed where it would need a key."""
    document, state = document_id(store.name, uri), state_of(request)
    query = f"?{state.links.query(store.name, document, start, end)}" if state.keys else ""
    return f"{request.base_url}documents/{document}{query}#char={start},{end}"


def _url_citations(request: Request, store: ServedStore, told: Told) -> list[dict[str, Any]]:
    """Sources as annotations of the whole answer, each with an address at which it is highlighted."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "url": document_address(request, store, source.document, source.start, source.end),
                "title": filename_of(source.document) + (f", page {source.page}" if source.page is not None else ""),
                "start_index": 0,
                "end_index": len(told.text),
            },
        }
        for source in told.sources
    ]


def _answer_stream(
    request: Request, chunks: AsyncIterator[str], events: AsyncGenerator[object, None]
) -> EventSourceResponse:
    """The chunks as events, then the end that OpenAI's clients wait for.

    A client that goes ends the answer too; a server that ends finishes it first. An error after the first chunk becomes
    the last one, because the status has been sent.
    """

    async def sent() -> AsyncIterator[dict[str, str]]:
        async with aclosing(events):
            try:
                async for chunk in chunks:
                    yield {"data": chunk}
            except ClientGoneError:
                pass
            except Exception as error:  # noqa: BLE001 - told to the client; the log says what it was
                fields = {"request_id": request.scope["state"]["request_id"], "error": type(error).__name__}
                _log.error("stream failed", extra={"fields": fields}, exc_info=error)
                yield {"data": json.dumps(error_body(api_error(error)))}
            yield {"data": "[DONE]"}

    return EventSourceResponse(sent(), sep="\n", shutdown_grace_period=state_of(request).limits.seconds)
