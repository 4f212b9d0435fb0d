"""Routes that answer: ``/chat/completions``, ``/completions``, ``/responses``, and ``/compare`` for the page.

What is asked and how it is answered is ``serve.answers``'s; here are messages, citations and streams as clients of
OpenAI's API know them. Unknown fields of a body are passed over, those of its object ``clara`` are not.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import Enum
from itertools import count
from logging import getLogger
from typing import Annotated, Any, ClassVar, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Discriminator, Field, Tag
from sse_starlette import EventSourceResponse

from clara.messages import Conversation, Said, conversation_of
from clara.records import AnswerSource, ContextChoice
from clara.serve.answers import Ask, ClaraFields, Told, check_k, usage
from clara.serve.batching import ClientGoneError
from clara.serve.faults import STREAM, ApiError, api_error, error_body
from clara.serve.filters import FilterFields
from clara.serve.library import ServedStore, document_id, filename_of
from clara.serve.state import caller_of, client_of, log_event, state_of

router = APIRouter()

_ANSWERS: Final[list[str | Enum]] = ["answers"]
_READINGS: Final[tuple[ContextChoice, ...]] = ("memory", "text", "none")
_LLAMA_INDEX: Final = {"user": "user", "assistant": "assistant", "system": "system"}
_LANGCHAIN: Final = {"Human": "user", "AI": "assistant", "System": "system"}
_ROLES: Final = {**_LLAMA_INDEX, **_LANGCHAIN}
_ROLE_LINE: Final = re.compile(rf"^({'|'.join(_ROLES)}):(?: |$)", re.MULTILINE)
_log = getLogger("clara.serve")


class Message(BaseModel):
    """A message of a conversation; what else stands in it is passed over.

    Attributes:
        role: who said it.
        content: a text, or a list of parts of which the texts are read.
    """

    field: ClassVar = "messages"
    role: str
    content: str | list[dict[str, Any]] | None = None

    def said(self) -> Said:
        """Its role and text (ApiError: a part of what the user says is not text)."""
        if not isinstance(self.content, list):
            return Said(self.role, self.content or "")
        texts: list[str] = []
        for part in self.content:
            text = part.get("text")
            if part.get("type") in {"text", "input_text", "output_text"} and isinstance(text, str):
                texts.append(text)
            elif self.role == "user":
                message = f"only text can be read, got a part of type {str(part.get('type'))!r:.40}"
                raise ApiError(400, "unsupported_content", message, param=self.field)
        return Said(self.role, "\n".join(texts))


class InputItem(Message):
    """A message of ``/responses``, or what else an earlier response held, which has no role and is passed over."""

    field: ClassVar = "input"
    role: str = ""


class AnswerForm(BaseModel):
    """The only form that an answer has: a client that needs another one could not read it."""

    type: Literal["text"] = "text"


class TextFields(BaseModel):
    """Format of a text of ``/responses``."""

    format: AnswerForm | None = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool | None = None


class _AnswerFields(BaseModel):
    model: str | None = None
    stream: bool | None = None
    clara: ClaraFields | None = None


class _CompletionFields(_AnswerFields):
    n: int | None = Field(default=None, ge=1, le=1)
    tool_choice: Literal["auto", "none"] | None = None  # tools are passed over, so none can be demanded
    max_tokens: int | None = Field(default=None, ge=1)
    stream_options: StreamOptions | None = None


class ChatRequest(_CompletionFields):
    """The body; unknown fields are passed over."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    response_format: AnswerForm | None = None


class CompletionRequest(_CompletionFields):
    """The body; unknown fields are passed over."""

    prompt: str | list[str]


class FileSearch(FilterFields):
    """The tool ``file_search``, which is how every answer here is found.

    Attributes:
        vector_store_ids: the store that is answered from.
    """

    type: Literal["file_search"]
    vector_store_ids: list[str] | None = Field(default=None, max_length=1)


def _tool(given: object) -> str:
    """The tag of a tool; none of a client's field has brackets, so that errors leave it out."""
    return "[searched]" if isinstance(given, dict) and given.get("type") == "file_search" else "[passed over]"


_Tool = Annotated[
    Annotated[FileSearch, Tag("[searched]")] | Annotated[dict[str, Any], Tag("[passed over]")], Discriminator(_tool)
]


class _SearchChosen(BaseModel):
    type: Literal["file_search"]


class ResponsesRequest(_AnswerFields):
    """The body; unknown fields, and tools but ``file_search``, are passed over.

    Every answer is searched for, so a client may demand that, by the tool's name or as the one tool there is.
    """

    tool_choice: Literal["auto", "none", "required"] | _SearchChosen | None = None
    input: str | list[InputItem]
    max_output_tokens: int | None = Field(default=None, ge=1)
    text: TextFields | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    tools: list[_Tool] | None = None


class CompareRequest(_AnswerFields):
    """The body of ``/compare``: as of ``/chat/completions``; ``clara.context`` is passed over."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)


@router.post("/chat/completions", name="chat_completions", tags=_ANSWERS, responses=STREAM)
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

    def last(told: Told) -> Iterator[dict[str, Any]]:
        annotations = _url_citations(request, ask.store, told)
        yield {**chunk({"annotations": annotations}, told.finish_reason), "clara": told.details()}
        yield from _usage_chunk(body, chunk({}), told)

    opening = (chunk({"role": "assistant", "content": ""}),)
    return await _shaped(request, body, ask, _Shape(whole, opening, lambda text: chunk({"content": text}), last))


@router.post("/completions", name="completions", tags=_ANSWERS, responses=STREAM)
async def _completions(request: Request, body: CompletionRequest) -> Response:
    """Answer."""
    if not isinstance(body.prompt, str) and len(body.prompt) != 1:
        raise ApiError(400, "invalid_value", f"one prompt a request, got {len(body.prompt)}", param="prompt")
    prompt = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
    ask = _asked(request, body, conversation_of(_transcript(prompt)), body.max_tokens)
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

    def last(told: Told) -> Iterator[dict[str, Any]]:
        yield {**chunk("", told.finish_reason), **details(told)}
        yield from _usage_chunk(body, chunk(""), told)

    return await _shaped(request, body, ask, _Shape(whole, (), chunk, last))


def _transcript(prompt: str) -> list[Said]:
    """The messages that a prompt was made of: LlamaIndex and LangChain write a chat as lines that begin with roles.

    Such a chat begins with a role and waits for an answer; what does not is a prompt as it stands.
    """
    before, *parts = _ROLE_LINE.split(prompt)
    said = [Said(_ROLES[role], text.strip()) for role, text in zip(parts[::2], parts[1::2], strict=True)]
    waits = bool(said) and (said[-1].role == "user" or not said[-1].text)
    return said if waits and not before.strip() else [Said("user", prompt)]


def _usage_chunk(body: _CompletionFields, chunk: dict[str, Any], told: Told) -> list[dict[str, Any]]:
    """The chunk that counts tokens, where it was asked for."""
    wanted = body.stream_options is not None and body.stream_options.include_usage
    return [{**chunk, "choices": [], "usage": usage(told.tokens)}] if wanted else []


@dataclass(frozen=True, slots=True)
class _Shape:
    """Form of a kind of answer: as a whole, and as chunks before, of and after the text, for ``_answer_stream``."""

    whole: Callable[[Told], dict[str, Any]]
    opening: Iterable[dict[str, Any]]
    piece: Callable[[str], dict[str, Any]]
    last: Callable[[Told], Iterable[dict[str, Any]]]
    failed: Callable[[ApiError], dict[str, Any]] = error_body
    end: Sequence[str] = ("[DONE]",)


async def _shaped(request: Request, body: _AnswerFields, ask: Ask, shape: _Shape) -> Response:
    """The answer in its shape, whole or as server-sent events."""
    state = state_of(request)
    if not body.stream:
        told = await state.queue.first(lambda: ask.whole(state.limits), client_of(request))
        _record(request, ask, told)
        return JSONResponse(shape.whole(told))
    events: AsyncGenerator[str | Told, None] = await state.queue.stream(
        lambda: ask.pieces(state.limits), client_of(request)
    )

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        for chunk in shape.opening:
            yield chunk
        async for event in events:
            if not isinstance(event, Told):
                yield shape.piece(event)
                continue
            _record(request, ask, event)
            for chunk in shape.last(event):
                yield chunk

    return _answer_stream(request, chunks(), events, failed=shape.failed, end=shape.end)


@router.post("/responses", name="responses", tags=_ANSWERS, responses=STREAM)
async def _responses(request: Request, body: ResponsesRequest) -> Response:
    """Answer."""
    for kept in ("previous_response_id", "conversation"):
        if getattr(body, kept) is not None:
            message = "no response is kept here; send what was said before as the first items of input"
            raise ApiError(400, "invalid_value", message, param=kept)
    if body.tool_choice == "required" and not any(isinstance(tool, FileSearch) for tool in body.tools or ()):
        raise ApiError(400, "invalid_value", "file_search is the only tool that can be demanded", param="tool_choice")
    said = [Said("user", body.input)] if isinstance(body.input, str) else [each.said() for each in body.input]
    ask = _searched(request, body, conversation_of(said))
    made = _ResponseParts(ask.store)

    def failed(error: ApiError) -> dict[str, Any]:
        told = error_body(error)
        # The event has the fields side by side; openai's client looks for them under ``error``.
        return {**told["error"], "type": "error", "sequence_number": next(made.numbers), **told}

    shape = _Shape(
        lambda told: made.whole(told, [*made.search(told), made.message(told)]),
        made.opening(),
        lambda text: made.event("output_text.delta", delta=text, logprobs=[], **made.part),
        made.closing,
        failed,
        end=(),
    )
    return await _shaped(request, body, ask, shape)


class _ResponseParts:
    """A response of ``/responses`` and the events of its stream, which are numbered.

    In a stream the search follows the message, because what was found is told with the end of the answer.
    """

    def __init__(self, store: ServedStore) -> None:
        self._store = store
        self._message = f"msg_{secrets.token_hex(12)}"
        self._head = {"id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time())}
        self.numbers = count()
        self.part = {"item_id": self._message, "output_index": 0, "content_index": 0}

    def event(self, kind: str, **fields: object) -> dict[str, Any]:
        return {"type": f"response.{kind}", "sequence_number": next(self.numbers), **fields}

    def opening(self) -> Iterator[dict[str, Any]]:
        """The events before the text."""
        empty = self._response("in_progress", [])
        yield self.event("created", response=empty)
        yield self.event("in_progress", response=empty)
        yield self.event("output_item.added", output_index=0, item=self._written("in_progress", []))
        yield self.event("content_part.added", part=_output_text("", []), **self.part)

    def closing(self, told: Told) -> Iterator[dict[str, Any]]:
        """The events after the text."""
        message = self.message(told)
        (content,) = message["content"]
        for place, each in enumerate(content["annotations"]):
            yield self.event("output_text.annotation.added", annotation_index=place, annotation=each, **self.part)
        yield self.event("output_text.done", text=told.text, logprobs=[], **self.part)
        yield self.event("content_part.done", part=content, **self.part)
        yield self.event("output_item.done", output_index=0, item=message)
        searches = self.search(told)
        for each in searches:
            yield self.event(
                "output_item.added", output_index=1, item={**each, "status": "in_progress", "results": None}
            )
            yield self.event("output_item.done", output_index=1, item=each)
        whole = self.whole(told, [message, *searches])
        yield self.event(whole["status"], response=whole)

    def whole(self, told: Told, output: list[dict[str, Any]]) -> dict[str, Any]:
        """The response."""
        cut = told.finish_reason == "length"
        counts = {
            "input_tokens": told.tokens.prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": told.tokens.generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": told.tokens.prompt + told.tokens.generated,
        }
        made = self._response("incomplete" if cut else "completed", output)
        why = {"reason": "max_output_tokens"} if cut else None
        return {**made, "incomplete_details": why, "usage": counts, "clara": told.details()}

    def message(self, told: Told) -> dict[str, Any]:
        """The answer, its sources as citations at its end."""
        annotations = [{"type": "file_citation", **self._file(each), "index": len(told.text)} for each in told.sources]
        return self._written("completed", [_output_text(told.text, annotations)])

    def search(self, told: Told) -> list[dict[str, Any]]:
        """The search, where the answer has sources."""
        results = [
            {
                **self._file(each),
                "score": each.score,
                "text": each.text,
                "attributes": {"start": each.start, "end": each.end},
            }
            for each in told.sources
        ]
        search = {"id": f"fs_{secrets.token_hex(12)}", "type": "file_search_call", "queries": [told.question]}
        return [{**search, "status": "completed", "results": results}] if results else []

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": self._store.name,
            "output": output,
            "parallel_tool_calls": False,
            "temperature": 0.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": None,
        }

    def _written(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._message, "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": content}

    def _file(self, source: AnswerSource) -> dict[str, str]:
        document = source.document
        return {"file_id": document_id(self._store.name, document), "filename": filename_of(document)}


def _output_text(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


@router.post("/compare", name="compare", tags=["exploring"], response_class=Response, responses=STREAM)
async def _compare(request: Request, body: CompareRequest) -> Response:
    """Answer the same question from memories, from the same passages' text, and from nothing."""
    ask = _asked(request, body, _conversation(body.messages), body.max_tokens)
    readings = [replace(ask, fields=_read_as(ask, context)) for context in _READINGS]
    first = await _reading(request, readings[0])

    async def chunks() -> AsyncGenerator[dict[str, Any], None]:
        yield first
        for reading in readings[1:]:
            yield await _reading(request, reading)

    told = chunks()
    return _answer_stream(request, told, told)


def _read_as(ask: Ask, context: ContextChoice) -> ClaraFields:
    """The fields of a question with another context; from nothing, nothing can be quoted."""
    changes: dict[str, Any] = {"context": context, **({"wording": None} if context == "none" else {})}
    return ask.fields.model_copy(update=changes)


async def _reading(request: Request, ask: Ask) -> dict[str, Any]:
    """An answer with the seconds that it took, the wait for the model left out."""
    state = state_of(request)

    def work() -> Generator[tuple[Told, float] | None, None, None]:
        started = time.perf_counter()
        for told in ask.whole(state.limits):
            yield None if told is None else (told, time.perf_counter() - started)

    told, seconds = await state.queue.first(work, client_of(request))
    _record(request, ask, told)
    return {
        "object": "clara.reading",
        "context": ask.fields.context,
        "text": told.text,
        "seconds": seconds,
        "annotations": _url_citations(request, ask.store, told),
        "usage": usage(told.tokens),
        "clara": told.details(),
    }


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


def _searched(request: Request, body: ResponsesRequest, conversation: Conversation | None) -> Ask:
    """A question that is answered from the passages that a tool ``file_search`` wants (ApiError: it is refused)."""
    tools = [(f"tools.{i}.", tool) for i, tool in enumerate(body.tools or ()) if isinstance(tool, FileSearch)]
    if len(tools) > 1:
        message = "an answer is read from one search; give one tool file_search"
        raise ApiError(400, "invalid_value", message, param="tools")
    place, tool = tools[0] if tools else ("", FileSearch(type="file_search"))
    named = tool.vector_store_ids or []
    fields = body if body.model or not named else body.model_copy(update={"model": named[0]})
    ask = _asked(request, fields, conversation, body.max_output_tokens)
    if named not in ([], [ask.store.name]):
        message = f"answers of {ask.store.name!r}, which model names, are found in it alone; name it here, or nothing"
        raise ApiError(400, "invalid_value", message, param=f"{place}vector_store_ids")
    check_k(tool.max_num_results, state_of(request).limits, param=f"{place}max_num_results")
    counts = [count for count in (ask.fields.k, tool.max_num_results) if count is not None]
    as_found = tool.ranking_options is not None and tool.ranking_options.ranker == "none"
    changes = {"k": min(counts, default=None), **({"rerank": 0} if as_found else {})}
    only = tool.passages(ask.store, ask.fields.mode, place=place)
    return replace(ask, fields=ask.fields.model_copy(update=changes), only=only)


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


def _named(chunk: dict[str, Any]) -> dict[str, str]:
    """A chunk as an event, named where it has a type."""
    named = {"event": chunk["type"]} if "type" in chunk else {}
    return {**named, "data": json.dumps(chunk)}


def _answer_stream(
    request: Request,
    chunks: AsyncIterator[dict[str, Any]],
    events: AsyncGenerator[object, None],
    *,
    failed: Callable[[ApiError], dict[str, Any]] = error_body,
    end: Sequence[str] = ("[DONE]",),
) -> EventSourceResponse:
    """The chunks as events, named where they have a type, then the ``end`` that clients wait for.

    A client that goes ends the answer too; a server that ends finishes it first. An error after the first chunk becomes
    the last one, because the status has been sent.
    """

    async def sent() -> AsyncIterator[dict[str, str]]:
        async with aclosing(events):
            try:
                async for chunk in chunks:
                    yield _named(chunk)
            except ClientGoneError:
                pass
            except Exception as error:  # noqa: BLE001 - told to the client; the log says what it was
                fields = {"request_id": request.scope["state"]["request_id"], "error": type(error).__name__}
                _log.error("stream failed", extra={"fields": fields}, exc_info=error)
                yield _named(failed(api_error(error)))
            for last in end:
                yield {"data": last}

    return EventSourceResponse(sent(), sep="\n", shutdown_grace_period=state_of(request).limits.seconds)
