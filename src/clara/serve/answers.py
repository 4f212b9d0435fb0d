"""A question to an answer, whole or in pieces, in terms that every route shares; no route's own format.

Runs in a thread of the model's queue.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from clara.answering import NOT_FOUND, AnswerOptions, PassageFilter
from clara.conversation import AskBack, Understood
from clara.errors import NothingFoundError
from clara.llm_answering import DEFAULT_TOKENS as LLM_TOKENS
from clara.llm_answering import check_options, reply_tokens, without_thoughts
from clara.messages import Conversation
from clara.records import AnswerSource, ContextChoice, SearchMode, TokenCounts, Wording
from clara.serve.access import Limits
from clara.serve.faults import ApiError
from clara.serve.library import ServedStore

if TYPE_CHECKING:
    from clara.llm import LLM

_DEFAULT_TOKENS = 64
_NO_TOKENS = TokenCounts(prompt=0, memory=0, text_equivalent=0, generated=0)


class ClaraFields(BaseModel):
    """Options of an answer: the object ``clara`` of a request. A field that there is not is refused.

    Attributes:
        k: passages to find; None for what measured best.
        mode: ``hybrid``, ``latent`` (by memories) or ``text`` (BM25).
        context: what is read of the passages: ``auto``, ``memory``, ``text`` or ``none``.
        rate: the compression rate that the store must have; None for any.
        wording: ``quoted``, ``free``, or None as the model says.
        always_answer: answer even where the documents seem to hold no answer.
        rerank: best passages found that are put in order by how likely the question is after the memory of each; 0
            for none; None for what measured best.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    k: int | None = Field(default=None, ge=1)
    mode: SearchMode = "hybrid"
    context: ContextChoice = "auto"
    rate: int | None = Field(default=None, ge=1)
    wording: Wording | None = None
    always_answer: bool = False
    rerank: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, slots=True)
class Told:
    """The end of an answer.

    Attributes:
        finish_reason: ``length`` where it was cut off.
        answered: false where the documents hold no answer.
        sources: what it was taken from.
        question: as it was understood.
        made_from: the earlier question that completed it; empty for one that stands alone.
        asked_back: whether the text is a question back.
    """

    text: str
    tokens: TokenCounts = _NO_TOKENS
    finish_reason: Literal["stop", "length"] = "stop"
    answered: bool = True
    sources: tuple[AnswerSource, ...] = ()
    question: str = ""
    made_from: str = ""
    asked_back: bool = False

    def details(self) -> dict[str, Any]:
        """The object ``clara`` of a response."""
        return {
            "answered": self.answered,
            "asked_back": self.asked_back,
            "question": self.question,
            "made_from": self.made_from or None,
            "memory_tokens": self.tokens.memory,
            "text_equivalent_tokens": self.tokens.text_equivalent,
        }


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to a store, with what was said before; ``only`` as of ``AnswerOptions``."""

    store: ServedStore
    conversation: Conversation
    fields: ClaraFields
    max_tokens: int | None = None
    only: PassageFilter | None = None

    def check(self, limits: Limits) -> None:
        """Refuse what would be refused anyway, before it waits for the model.

        Raises:
            ApiError: with the reason.
            InputError: the language model behind a server cannot do it.
        """
        check_length(self.conversation.message, limits)
        rate = self.store.rag.rate
        if self.fields.rate not in {None, rate}:
            message = f"{self.store.name!r} is compressed {rate}x, not {self.fields.rate}x; leave clara.rate out"
            raise ApiError(400, "invalid_value", message, param="clara.rate")
        check_k(self.fields.k, limits, param="clara.k")
        if self.store.rag.llm is not None and not self.conversation.is_task:
            check_options(self._options(limits))
        if self.fields.context != "none" and not self.conversation.is_task:
            check_filled(self.store)

    def whole(self, limits: Limits) -> Generator[Told | None, None, None]:
        """The answer at once; None for each token before."""
        with closing(self.pieces(limits)) as pieces:
            for piece in pieces:
                yield piece if isinstance(piece, Told) else None

    def pieces(self, limits: Limits) -> Generator[str | Told | None, None, None]:
        """The answer in pieces of its text, then its end; None for a token that shows nothing yet."""
        planned: Told | tuple[Understood, AnswerOptions]
        if self.store.rag.llm is not None and self.conversation.is_task:
            planned = self._task(self.store.rag.llm, limits)
        else:
            planned = self._planned(limits)
        if isinstance(planned, Told):
            yield planned.text
            yield planned
            return
        understood, options = planned
        try:
            stream = self.store.rag.stream(understood.question, options=options)
        except NothingFoundError:
            yield NOT_FOUND
            yield Told(NOT_FOUND, answered=False, question=understood.question, made_from=understood.made_from)
            return
        with closing(stream.pieces) as pieces:
            for piece in pieces:
                yield piece or None
        made = stream.whole()
        yield Told(
            made.text,
            made.tokens,
            made.finish_reason,
            made.answered,
            made.sources(),
            understood.question,
            understood.made_from,
        )

    def _task(self, llm: LLM, limits: Limits) -> Told:
        """A client's own task, by the language model alone."""
        message = {"role": "user", "content": self.conversation.message}
        reply = llm.reply([message], max_tokens=self._options(limits).max_new_tokens)
        text = "".join(without_thoughts([reply.text]))
        cut = reply.finish_reason == "length"
        return Told(text, reply_tokens(reply), "length" if cut else "stop", question=self.conversation.message)

    def _options(self, limits: Limits) -> AnswerOptions:
        fields = self.fields
        default = _DEFAULT_TOKENS if self.store.rag.llm is None else LLM_TOKENS
        return AnswerOptions(
            k=fields.k,
            mode=fields.mode,
            context=fields.context,
            wording=fields.wording,
            max_new_tokens=min(self.max_tokens or default, limits.answer_tokens),
            always_answer=fields.always_answer,
            rerank=fields.rerank,
        )

    def _planned(self, limits: Limits) -> Told | tuple[Understood, AnswerOptions]:
        """The question for the model; or, where the question is not clear, the question back."""
        understood = self.conversation.understood(self.store.rag.llm)
        if isinstance(understood, AskBack):
            return Told(understood.question, asked_back=True, answered=False, question=self.conversation.message)
        options = self._options(limits)
        if self.conversation.is_task:
            return understood, replace(options, context="none", wording=None)
        within = None
        if options.context != "none" and self.only is None:  # else the client says where to look
            within = self.conversation.manual(self.store.rag, understood)
        return understood, replace(options, within=within, only=self.only)


def check_length(text: str, limits: Limits) -> None:
    """Refuse with an ApiError a question without text or beyond the limit."""
    if not text.strip():
        raise ApiError(400, "empty_question", "the question is empty")
    if len(text) > limits.question_characters:
        raise ApiError(
            413,
            "context_length_exceeded",
            f"the question has {len(text)} characters, this server takes {limits.question_characters}; shorten it",
        )


def check_filled(store: ServedStore) -> None:
    """Refuse with an ApiError to search an empty store."""
    if store.rag.store.count() == 0:
        message = f"{store.name!r} holds no documents yet; upload some first: POST /v1/documents"
        raise ApiError(409, "store_empty", message)


def check_k(k: int | None, limits: Limits, *, param: str) -> None:
    """Refuse with an ApiError more passages than the limit."""
    if k is not None and not 1 <= k <= limits.k:
        raise ApiError(400, "invalid_value", f"the number of passages must be 1 to {limits.k}, got {k}", param=param)


def usage(tokens: TokenCounts) -> dict[str, Any]:
    """All fields of OpenAI's usage; memory tokens are among the prompt's, because the model reads them."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.generated,
        "total_tokens": tokens.prompt + tokens.generated,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
