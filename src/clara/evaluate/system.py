"""A compared system: questions with candidate documents in, a ranking and an answer out.

``RagSystem`` composes every system of a ranker, a context and a reader, so two systems differ in their parts alone:
same batches, same prompts, same clock. The table of systems is in ``systems``; ``results`` scores.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from clara.data import DocText
from clara.evaluate.cache import Cache, Failure, each, unwrap
from clara.prompts import passage_text
from clara.records import Generation, GenerationRequest, Memory, QueryMemory

Given: TypeAlias = Literal["gold", "candidates"]
"""The documents of a question that systems see: gold ones, all read in order, or the candidates, to be ranked."""

Ranking: TypeAlias = tuple[int, ...]
"""Indices into ``Query.docs``, best first, every document once."""


class _Answerer(Protocol):
    """The model under test, or a LoRA reader."""

    def generate_many(self, requests: Sequence[GenerationRequest], *, max_new_tokens: int = 32) -> list[Generation]:
        """A greedy answer for each request, in order."""


class AnswerModel(_Answerer, Protocol):
    """A model that compresses texts and questions, and answers from memories, texts or nothing."""

    @property
    def fingerprint(self) -> str:
        """Mark of its memories."""

    @property
    def name(self) -> str:
        """Name in results."""

    @property
    def default_rate(self) -> int:
        """Compression rate."""

    @property
    def window_tokens(self) -> int:
        """Longest text that ``compress`` takes, in tokens."""

    def token_spans(self, text: str) -> Sequence[tuple[int, int]]:
        """Character spans of the text's tokens."""

    def compress(self, texts: Sequence[str], *, rate: int | None = None) -> list[Memory]:
        """A memory for each text, in order; ``rate`` None is the model's default."""

    def encode_queries(self, questions: Sequence[str], *, rate: int | None = None) -> list[QueryMemory]:
        """A query memory for each question, in the space of ``compress`` at the same rate."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question with its candidates as a system sees it: gold documents are not marked."""

    id: str
    question: str
    docs: tuple[DocText, ...]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A system's output for one question.

    Attributes:
        ranking: indices into ``Query.docs``, best first; None where the system does not rank.
        used: indices of the documents that the answer was made from, in prompt order.
        context_tokens: tokens or memory vectors of context that the generator read.
        first_token_seconds: of this question alone, with documents compressed or indexed before where the system does
            so offline; None where it was not timed.
        compressed_to: share of the documents' tokens that the context takes; None where nothing is compressed.
    """

    text: str | None
    ranking: Ranking | None
    used: Ranking
    context_tokens: int
    first_token_seconds: float | None = None
    compressed_to: float | None = None


class System(Protocol):
    """Answers questions from their candidate documents."""

    @property
    def name(self) -> str:
        """As in ``--system`` and in tables."""

    @property
    def fingerprint(self) -> str:
        """Changes with the weights and settings that decide its predictions; part of the key of resumed runs."""

    def predict(self, queries: Sequence[Query]) -> list[Prediction | Failure]:
        """A prediction for each query, in order; an error in one query is its ``Failure`` and no other's."""


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """Settings of all systems of a run.

    Attributes:
        model: the checkpoint under test, loaded once and shared; its base weights are every system's backbone.
        options: folders of readers and checkpoints of single systems (``reader``, ``dro``, ``pisco``, …).
        timed: questions that each system times one by one: the first it is given.
        quoted: constrain answers to spans of the documents that are read.
    """

    k: int
    rate: int | None
    given: Given
    max_new_tokens: int
    batch_size: int
    model: AnswerModel
    weights_cache: Path
    options: Mapping[str, Path] = field(default_factory=dict)
    device: str = "cpu"
    reader_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    timed: int = 0
    cache: Cache = field(default_factory=Cache)
    quoted: bool = False


Build: TypeAlias = Callable[[SystemSettings], System]
"""Makes a system (ClaraError, with the remedy, where an extra or a folder is missing)."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranker:
    """Ranks all candidates of each question, ties in their own order; ``fingerprint`` changes with its rankings."""

    fingerprint: str
    rank: Callable[[Sequence[Query]], list[Ranking | Failure]]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A context with its ``tokens`` or memory vectors, and the document tokens they stand for (None: uncompressed)."""

    request: GenerationRequest
    tokens: int
    source_tokens: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ContextMaker:
    """Makes a context a question from its selected documents; ``fingerprint`` changes with all that decides it."""

    fingerprint: str
    make: Callable[[Sequence[Query], Sequence[Ranking]], list[Context | Failure]]


@dataclass(frozen=True, slots=True)
class Answering:
    """Context and reader; a closed-book system gets no documents. The fingerprint is the answerer's."""

    maker: ContextMaker
    answerer: _Answerer
    fingerprint: str
    documents: bool = True


def answer_all(
    answerer: _Answerer, contexts: Sequence[Context | Failure], *, batch_size: int, max_new_tokens: int
) -> list[Generation | Failure]:
    """Answers in the order of ``contexts``; in batches of like size, longest first: out of memory shows first."""
    answers: dict[int, Generation | Failure] = {}
    sound: dict[int, Context] = {}
    for index, context in enumerate(contexts):
        if isinstance(context, Failure):
            answers[index] = context
        else:
            sound[index] = context
    order = sorted(sound, key=lambda index: -sound[index].tokens)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        requests = [sound[index].request for index in batch]
        made = each(requests, lambda some: answerer.generate_many(some, max_new_tokens=max_new_tokens))
        answers.update(zip(batch, made, strict=True))
    return [answers[index] for index in range(len(contexts))]


class RagSystem:
    """A ranker (None: nothing is ranked), a context and a reader (None: a system that only ranks).

    Documents' memories, embeddings and shortened texts are made before the clock starts, as a deployment would have
    them; the question's own encoding, the ranking and the first token are timed.
    """

    def __init__(self, name: str, settings: SystemSettings, ranker: Ranker | None, reading: Answering | None) -> None:
        self.name = name
        self._settings = settings
        self._ranker = ranker if settings.given == "candidates" else None
        self._reading = reading
        self._to_time = settings.timed if reading is not None else 0
        self.fingerprint = self._fingerprint()

    def predict(self, queries: Sequence[Query]) -> list[Prediction | Failure]:
        """A prediction for each query, in order; an error in one query is its ``Failure``."""
        orders = self._orders(queries)
        if self._reading is None:
            return [order if isinstance(order, Failure) else Prediction(None, order, (), 0) for order in orders]
        contexts = self._contexts(queries, orders)
        settings = self._settings
        answers = answer_all(
            self._reading.answerer,
            contexts,
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
        )
        return [self._prediction(*parts) for parts in zip(queries, orders, contexts, answers, strict=True)]

    def _prediction(
        self, query: Query, order: Ranking | Failure, context: Context | Failure, answer: Generation | Failure
    ) -> Prediction | Failure:
        if isinstance(order, Failure):
            return order
        if isinstance(context, Failure):
            return context
        if isinstance(answer, Failure):
            return answer
        return Prediction(
            text=answer.text,
            ranking=order if self._ranker is not None else None,
            used=self._used(order),
            context_tokens=context.tokens,
            first_token_seconds=self._first_token_seconds(query),
            compressed_to=context.tokens / context.source_tokens if context.source_tokens else None,
        )

    def _orders(self, queries: Sequence[Query]) -> list[Ranking | Failure]:
        if self._ranker is None:
            return [tuple(range(len(query.docs))) for query in queries]
        return self._ranker.rank(queries)

    def _used(self, order: Ranking) -> Ranking:
        if self._reading is None or not self._reading.documents:
            return ()
        return order if self._settings.given == "gold" else order[: self._settings.k]

    def _contexts(self, queries: Sequence[Query], orders: Sequence[Ranking | Failure]) -> list[Context | Failure]:
        assert self._reading is not None  # noqa: S101 - callers have looked
        ranked = [
            (query, order) for query, order in zip(queries, orders, strict=True) if not isinstance(order, Failure)
        ]
        used = [self._used(order) for _, order in ranked]
        contexts = self._reading.maker.make([query for query, _ in ranked], used)
        if self._settings.quoted:
            parts = zip(contexts, ranked, used, strict=True)
            contexts = [_quoted(context, query, own) for context, (query, _), own in parts]
        made = iter(contexts)
        return [order if isinstance(order, Failure) else next(made) for order in orders]

    def _first_token_seconds(self, query: Query) -> float | None:
        if self._to_time <= 0:
            return None
        if self._to_time == self._settings.timed:
            each([query], self._clock)  # the very first measurement would time what is loaded lazily
        self._to_time -= 1
        seconds = each([query], self._clock)[0]
        return None if isinstance(seconds, Failure) else seconds

    def _clock(self, queries: Sequence[Query]) -> list[float]:
        assert self._reading is not None  # noqa: S101 - callers have looked
        start = time.perf_counter()
        context = unwrap(self._contexts(queries, self._orders(queries)))[0]
        self._reading.answerer.generate_many([context.request], max_new_tokens=1)
        return [time.perf_counter() - start]

    def _fingerprint(self) -> str:
        settings = self._settings
        facts: dict[str, object] = {
            "name": self.name,
            "given": settings.given,
            "ranker": self._ranker.fingerprint if self._ranker is not None else None,
        }
        if self._reading is not None:
            facts["context"] = self._reading.maker.fingerprint
            facts["answerer"] = self._reading.fingerprint
            facts["max_new_tokens"] = settings.max_new_tokens
            if settings.quoted:
                facts["quoted"] = True
            facts["k"] = settings.k if settings.given == "candidates" and self._reading.documents else None
        return digest(facts)


def _quoted(context: Context | Failure, query: Query, used: Ranking) -> Context | Failure:
    """A context whose answer is constrained to spans of the documents ``used``."""
    if isinstance(context, Failure):
        return context
    texts = tuple(passage_text(query.docs[index].title, query.docs[index].text) for index in used)
    return replace(context, request=replace(context.request, quote_from=texts))


def digest(facts: Mapping[str, object]) -> str:
    """Hash of named facts: 16 hex digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
