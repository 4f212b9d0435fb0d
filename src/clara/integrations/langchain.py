"""A store as a LangChain retriever and as a chat model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

from clara.errors import InputError, MissingExtraError

try:
    from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.language_models import BaseChatModel
    from langchain_core.language_models.chat_models import generate_from_stream
    from langchain_core.messages import AIMessageChunk, BaseMessage, UsageMetadata
    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_core.retrievers import BaseRetriever
    from openai import OpenAI
    from pydantic import Field, SecretStr, model_validator
except ModuleNotFoundError:
    raise MissingExtraError("langchain-core", "langchain") from None

from clara.answering import AnswerOptions
from clara.conversation import AskBack
from clara.integrations.passages import TURN, find, metadata
from clara.messages import Said, conversation_of
from clara.pipeline import Clara
from clara.records import Answer, ContextChoice, SearchMode, Wording

_ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class ClaraRetriever(BaseRetriever):
    """Passages of an open store as LangChain documents, best first; the metadata holds the score too.

    Attributes:
        k: passages to find; None for what measured best for the model.
        mode: how they are found, see ``Clara.search``.
    """

    rag: Clara
    k: int | None = None
    mode: SearchMode = "hybrid"

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        del run_manager  # nothing below it reports to it
        return [
            Document(id=hit.passage.id, page_content=hit.passage.text, metadata={**metadata(hit), "score": hit.score})
            for hit in find(self.rag, query, self.k, self.mode)
        ]


class ChatClara(BaseChatModel):
    """A store that answers as a chat model: of this process, or behind ``clara serve``.

    The last human message is the question; those before it complete a follow-up. ``response_metadata`` of the answer
    holds ``answered``, ``citations`` (what was quoted first) and ``finish_reason``; citations are ``document``,
    ``start``, ``end``, ``text`` in this process, ``url`` and ``title`` from a server. Answers are greedy, and ``stop``
    is passed over.

    Attributes:
        rag: the store with its model; or
        base_url: the address of a server, with ``/v1``.
        api_key: of the server.
        model: the server's name of the store; empty for its only one.
        k: passages to find; None for what measured best.
        mode: how they are found.
        context: what is read of them.
        wording: ``quoted``, ``free``, or None as the model says.
        always_answer: answer even where the documents seem to hold no answer.
        max_tokens: longest answer.
    """

    rag: Clara | None = None
    base_url: str | None = None
    api_key: SecretStr = SecretStr("none")
    model: str = ""
    k: int | None = Field(default=None, ge=1)
    mode: SearchMode = "hybrid"
    context: ContextChoice = "auto"
    wording: Wording | None = None
    always_answer: bool = False
    max_tokens: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.rag is None) == (self.base_url is None):
            raise ValueError("ChatClara takes rag, an open store, or base_url, the address of clara serve: one of both")
        return self

    @property
    def _llm_type(self) -> str:
        return "clara"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, "base_url": self.base_url, **self._fields(), "max_tokens": self.max_tokens}

    def _fields(self) -> dict[str, Any]:
        """The object ``clara`` of a request."""
        return {
            "k": self.k,
            "mode": self.mode,
            "context": self.context,
            "wording": self.wording,
            "always_answer": self.always_answer,
        }

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401 - as the framework has it
    ) -> ChatResult:
        del run_manager  # tokens are for whoever streams
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401 - as the framework has it
    ) -> Iterator[ChatGenerationChunk]:
        del stop, kwargs
        if self.rag is None:
            chunks = self._served(messages)
        else:
            options = AnswerOptions(**self._fields(), max_new_tokens=self.max_tokens)
            chunks = iter([_answered(self.rag, messages, options)])
        for chunk in chunks:
            if run_manager is not None and chunk.text:
                run_manager.on_llm_new_token(chunk.text, chunk=ChatGenerationChunk(message=chunk))
            yield ChatGenerationChunk(message=chunk)

    def _served(self, messages: Sequence[BaseMessage]) -> Iterator[AIMessageChunk]:
        said: Any = [{"role": each.role, "content": each.text} for each in _said(messages)]
        # A store's name may be left out, but the client's types know no request without a model.
        name: Any = self.model or None
        with OpenAI(base_url=self.base_url, api_key=self.api_key.get_secret_value()) as client:
            stream = client.chat.completions.create(
                model=name,
                messages=said,
                max_tokens=self.max_tokens,
                extra_body={"clara": self._fields()},
                stream=True,
                stream_options={"include_usage": True},
            )
            for chunk in stream:
                if chunk.usage is not None:
                    counted = _usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
                    yield AIMessageChunk(content="", usage_metadata=counted)
                for choice in chunk.choices:
                    told = (chunk.model_extra or {}).get("clara")
                    if told is None:
                        yield AIMessageChunk(content=choice.delta.content or "")
                        continue
                    notes = (choice.delta.model_extra or {}).get("annotations", [])
                    end = {
                        "answered": told["answered"],
                        "citations": [note["url_citation"] for note in notes],
                        "finish_reason": choice.finish_reason,
                        "model_name": chunk.model,
                    }
                    yield AIMessageChunk(content="", response_metadata=end)


def _said(messages: Sequence[BaseMessage]) -> list[Said]:
    return [Said(_ROLES.get(message.type, message.type), message.text) for message in messages]


def _answered(rag: Clara, messages: Sequence[BaseMessage], options: AnswerOptions) -> AIMessageChunk:
    """An answer of a store of this process (InputError: no message asks anything)."""
    conversation = conversation_of(_said(messages))
    if conversation is None:
        raise InputError("there is no human message with a text")
    with TURN:
        understood = conversation.understood(rag.llm)
        if isinstance(understood, AskBack):
            return AIMessageChunk(
                content=understood.question,
                response_metadata={"answered": False, "citations": [], "finish_reason": "stop"},
            )
        within = conversation.manual(rag, understood) if options.context != "none" else None
        made = rag.ask(understood.question, options=replace(options, within=within))
    return AIMessageChunk(
        content=made.text,
        response_metadata={
            "answered": made.answered,
            "citations": _citations(made),
            "finish_reason": made.finish_reason,
        },
        usage_metadata=_usage(made.tokens.prompt, made.tokens.generated),
    )


def _citations(made: Answer) -> list[dict[str, str | int]]:
    """Sources of an answer, the quotation first."""
    return [{"document": one.document, "start": one.start, "end": one.end, "text": one.text} for one in made.sources()]


def _usage(read: int, written: int) -> UsageMetadata:
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
