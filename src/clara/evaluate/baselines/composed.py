"""A system as three parts: who ranks the candidates, what is made of the best of them, and who reads that.

Every system of this folder is such a composition, so that two of them differ in what their names say and in nothing
else: same batches, same prompts, same clock. Knows no model and no library.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from clara.errors import ConfigError
from clara.evaluate.isolation import Failure, each
from clara.evaluate.system import Ask, Reply, SystemSettings
from clara.prompts import passage_text
from clara.records import Generation, GenerationRequest

Ranking: TypeAlias = tuple[int, ...]
"""Indices into ``Ask.docs``, best first, every document once."""

# Questions prepared together, in batches: enough to sort by length, few enough that their memories fit.
_BATCHES_A_CHUNK = 4


class Ranker(Protocol):
    """Orders the candidate documents of a question."""

    @property
    def fingerprint(self) -> str:
        """Changes with all that decides an order."""

    def rank(self, asks: Sequence[Ask]) -> list[Ranking | Failure]:
        """All candidates of each question, best first; of equal ones the first comes first."""


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a question is answered from.

    Attributes:
        request: for the reader.
        tokens: tokens or memory vectors of context in it.
        source_tokens: tokens of the documents that they stand for; None where nothing is compressed.
    """

    request: GenerationRequest
    tokens: int
    source_tokens: int | None = None

    def compressed_to(self) -> float | None:
        """Share of the documents' tokens that the context takes."""
        return self.tokens / self.source_tokens if self.source_tokens else None


class ContextMaker(Protocol):
    """Makes of chosen documents what a reader reads."""

    @property
    def fingerprint(self) -> str:
        """Changes with all that decides a context."""

    def contexts(self, asks: Sequence[Ask], used: Sequence[Ranking]) -> list[Context | Failure]:
        """One context a question, of the documents ``used``, in that order."""


class Answerer(Protocol):
    """Writes answers; the model under test and a reader are two."""

    def generate_many(self, requests: Sequence[GenerationRequest], *, max_new_tokens: int = 32) -> list[Generation]:
        """One greedy answer a request, in order."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Who answers from what.

    Attributes:
        maker: makes the contexts.
        answerer: reads them.
        fingerprint: of the answerer's weights.
        documents: whether documents are read at all; a closed-book system reads none.
    """

    maker: ContextMaker
    answerer: Answerer
    fingerprint: str
    documents: bool = True


class Composed:
    """A system of three parts.

    Documents' memories, embeddings and compressed texts are made before the clock starts, as a deployment would have
    them; the question's own encoding, the ranking and the first token are timed.

    Args:
        name: as in ``--system``.
        settings: of the run.
        ranker: orders candidates; None for a system that never ranks.
        reading: None for a system that only ranks.
    """

    def __init__(self, name: str, settings: SystemSettings, ranker: Ranker | None, reading: Reading | None) -> None:
        self.name = f"{name}-quoted" if settings.quoted else name
        self._settings = settings
        self._ranker = ranker if settings.given == "candidates" else None
        self._reading = reading
        self._to_time = settings.timed if reading is not None else 0
        self.fingerprint = self._fingerprint()

    def reply(self, questions: Sequence[Ask]) -> list[Reply | Failure]:
        """One reply a question, in order; an error in one question is its ``Failure``."""
        size = self._settings.batch_size * _BATCHES_A_CHUNK
        replies: list[Reply | Failure] = []
        for start in range(0, len(questions), size):
            replies.extend(self._chunk(questions[start : start + size]))
        return replies

    def _chunk(self, asks: Sequence[Ask]) -> list[Reply | Failure]:
        orders = self._orders(asks)
        if self._reading is None:
            return [order if isinstance(order, Failure) else Reply(None, order, (), 0) for order in orders]
        contexts = self._contexts(asks, orders)
        answers = self._answers(contexts)
        replies: list[Reply | Failure] = []
        for ask, order, context, answer in zip(asks, orders, contexts, answers, strict=True):
            if isinstance(order, Failure) or isinstance(context, Failure) or isinstance(answer, Failure):
                replies.append(next(part for part in (order, context, answer) if isinstance(part, Failure)))
                continue
            replies.append(
                Reply(
                    text=answer.text,
                    ranking=order if self._ranker is not None else None,
                    used=self._used(order),
                    context_tokens=context.tokens,
                    first_token_seconds=self._first_token_seconds(ask),
                    compressed_to=context.compressed_to(),
                )
            )
        return replies

    def _orders(self, asks: Sequence[Ask]) -> list[Ranking | Failure]:
        """Rankings; where nothing is ranked, the documents as they stand."""
        if self._ranker is None:
            return [tuple(range(len(ask.docs))) for ask in asks]
        return self._ranker.rank(asks)

    def _used(self, order: Ranking) -> Ranking:
        if self._reading is None or not self._reading.documents:
            return ()
        return order if self._settings.given == "gold" else order[: self._settings.k]

    def _contexts(self, asks: Sequence[Ask], orders: Sequence[Ranking | Failure]) -> list[Context | Failure]:
        assert self._reading is not None  # noqa: S101 - callers have looked
        sound = [(ask, order) for ask, order in zip(asks, orders, strict=True) if not isinstance(order, Failure)]
        used = [self._used(order) for _, order in sound]
        contexts = self._reading.maker.contexts([ask for ask, _ in sound], used)
        if self._settings.quoted:
            parts = zip(contexts, sound, used, strict=True)
            contexts = [_quoted(context, ask, own) for context, (ask, _), own in parts]
        made = iter(contexts)
        return [order if isinstance(order, Failure) else next(made) for order in orders]

    def _answers(self, contexts: Sequence[Context | Failure]) -> list[Generation | Failure]:
        """Answers in the order of ``contexts``, made in batches of like size, the longest first."""
        answers: dict[int, Generation | Failure] = {}
        sizes: dict[int, int] = {}
        requests: dict[int, GenerationRequest] = {}
        for place, context in enumerate(contexts):
            if isinstance(context, Failure):
                answers[place] = context
            else:
                sizes[place] = context.tokens
                requests[place] = context.request
        places = sorted(sizes, key=lambda place: -sizes[place])
        for start in range(0, len(places), self._settings.batch_size):
            batch = places[start : start + self._settings.batch_size]
            answers.update(zip(batch, each([requests[place] for place in batch], self._generate), strict=True))
        return [answers[place] for place in range(len(contexts))]

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        assert self._reading is not None  # noqa: S101 - callers have looked
        return self._reading.answerer.generate_many(requests, max_new_tokens=self._settings.max_new_tokens)

    def _first_token_seconds(self, ask: Ask) -> float | None:
        """Time of one question alone; None once enough were timed, and for one that fails now."""
        if self._to_time <= 0:
            return None
        if self._to_time == self._settings.timed:
            each([ask], self._clock)  # the very first measurement would time what is loaded lazily
        self._to_time -= 1
        seconds = each([ask], self._clock)[0]
        return None if isinstance(seconds, Failure) else seconds

    def _clock(self, asks: Sequence[Ask]) -> list[float]:
        assert self._reading is not None  # noqa: S101 - callers have looked
        start = time.perf_counter()
        context = self._contexts(asks, self._orders(asks))[0]
        if isinstance(context, Failure):
            raise context.error
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


def _quoted(context: Context | Failure, ask: Ask, used: Ranking) -> Context | Failure:
    """A context whose answer is held to the words of the documents ``used``."""
    if isinstance(context, Failure):
        return context
    texts = tuple(passage_text(ask.docs[place].title, ask.docs[place].text) for place in used)
    return replace(context, request=replace(context.request, quote_from=texts))


def digest(facts: Mapping[str, object]) -> str:
    """A short hash of named facts: 16 hex digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def ranking_only(name: str, settings: SystemSettings, ranker: Ranker) -> Composed:
    """A system that orders candidates and answers nothing.

    Raises:
        ConfigError: the run has nothing to order.
    """
    if settings.given == "gold":
        raise ConfigError(
            f"system {name} only ranks, and with the gold documents given there is nothing to rank; "
            "give it candidates, or take a system that answers"
        )
    return Composed(name, settings, ranker, None)
