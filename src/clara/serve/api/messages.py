"""What the routes that answer share: messages, citations and the address of a document."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field

from clara.messages import Conversation, Said, conversation_of
from clara.serve.answers import Ask, ClaraFields, Told
from clara.serve.faults import ApiError
from clara.serve.library import ServedStore, document_id, filename_of
from clara.serve.state import caller_of, log_event, state_of


class Message(BaseModel):
    """A message of a conversation; what else stands in it is passed over.

    Attributes:
        role: who said it.
        content: a text, or a list of parts of which the texts are read.
    """

    role: str
    content: str | list[dict[str, Any]] | None = None

    def said(self) -> Said:
        """Its role and text.

        Raises:
            ApiError: a part is not text.
        """
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


class AnswerFields(BaseModel):
    """Fields that all routes that answer share; unknown ones are passed over."""

    model: str | None = None
    stream: bool | None = None
    clara: ClaraFields | None = None


class StreamOptions(BaseModel):
    """What a stream is to hold beside the answer."""

    include_usage: bool = False


class Choices(AnswerFields):
    """Fields of both kinds of completions."""

    n: int | None = Field(default=None, ge=1, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    stream_options: StreamOptions | None = None


def asked(request: Request, fields: AnswerFields, conversation: Conversation | None, max_tokens: int | None) -> Ask:
    """A question that may wait for the model.

    Raises:
        ApiError: it is refused.
    """
    state = state_of(request)
    store = state.library.store(caller_of(request), fields.model)
    if conversation is None:
        raise ApiError(400, "empty_question", "there is no user message with a text")
    ask = Ask(store, conversation, fields.clara or ClaraFields(), max_tokens)
    ask.check(state.limits)
    return ask


def conversation(messages: list[Message]) -> Conversation | None:
    """The question of messages."""
    return conversation_of([message.said() for message in messages])


def record(request: Request, ask: Ask, told: Told) -> None:
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


def url_citations(request: Request, store: ServedStore, told: Told) -> list[dict[str, Any]]:
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
