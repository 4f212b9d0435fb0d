"""Shared by the analyses: the loop over questions with its counted errors, and prompts from memories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from pydantic import Field

from clara.config import Settings
from clara.data import DataRecord, DocText, MultiHop
from clara.errors import RecordError
from clara.evaluate.cache import Cache, Failure, each_one, unwrap
from clara.evaluate.contexts import DocumentMemories, rank_documents
from clara.evaluate.system import AnswerModel, Context, answer_all
from clara.ingest import make_document
from clara.ingest.split import split
from clara.metrics import Interval, bootstrap_interval
from clara.prompts import passage_text
from clara.records import Generation, GenerationRequest, Memory, QueryMemory

_RowT = TypeVar("_RowT")

OnProgress: TypeAlias = Callable[[int, int], None]
"""Called with questions done and questions in all."""

_CACHE_BYTES = 50_000_000  # the candidates of a few questions; analyses take question after question


class AnalysisSettings(Settings):
    """Settings of every analysis.

    Attributes:
        limit: first records of the file; None is all.
        seed: of every draw (order of passages, choice of distractors, bootstrap).
    """

    rate: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)


class AskSettings(AnalysisSettings):
    """Settings of an analysis that generates answers."""

    batch_size: int = Field(default=8, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)


@dataclass(frozen=True, slots=True)
class AnalysisReport:
    """An analysis of one checkpoint.

    Questions that gave an error, or nothing to measure, and unusable records are counted by reason.
    """

    model: str
    fingerprint: str
    n: int
    errors: Mapping[str, int]
    unusable: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _MeasuredQuestions(Generic[_RowT]):
    """Rows of the measured questions, in record order, and counts as in ``AnalysisReport``."""

    rows: tuple[_RowT, ...]
    errors: Counter[str]
    unusable: Counter[str]

    def facts(self, model: AnswerModel) -> dict[str, Any]:
        return {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "n": len(self.rows),
            "errors": dict(self.errors),
            "unusable": dict(self.unusable),
        }

    def mean(self, value: Callable[[_RowT], float]) -> float:
        return mean([value(row) for row in self.rows])

    def interval(self, value: Callable[[_RowT], float], seed: int) -> Interval:
        return bootstrap_interval([value(row) for row in self.rows] or [0.0], seed=seed)


def mean(values: Sequence[float]) -> float:
    """Mean of values; 0 without any."""
    return fmean(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Usable questions, at least one, and counts of the other records by reason."""

    questions: tuple[MultiHop, ...]
    unusable: Counter[str]


def choose(records: Sequence[DataRecord], limit: int | None) -> _Chosen:
    """The first ``limit`` records that ask a question with a gold document."""
    unusable: Counter[str] = Counter()
    questions = []
    for record in records[:limit]:
        if not isinstance(record, MultiHop):
            unusable["passage records, which ask no single question"] += 1
        elif not record.gold:
            unusable["questions without a gold document"] += 1
        else:
            questions.append(record)
    if not questions:
        listed = ", ".join(f"{count} {reason}" for reason, count in unusable.items()) or "no records"
        raise RecordError(f"nothing to ask: expected questions with gold documents, got {listed}")
    return _Chosen(tuple(questions), unusable)


def measure_questions(
    records: Sequence[DataRecord],
    limit: int | None,
    measure: Callable[[int, MultiHop], _RowT | str],
    on_progress: OnProgress | None = None,
) -> _MeasuredQuestions[_RowT]:
    """Measure question by question; an error stays with its question and is counted.

    ``measure`` gets a question and its index, and gives a row, or the reason for having none.

    Raises:
        RecordError: no question can be asked.
        ConfigError: a setting is wrong for every question alike.
    """
    usable = choose(records, limit)
    rows, errors = list[_RowT](), Counter[str]()
    for index, question in enumerate(usable.questions):
        (row,) = each_one(measure, [index], [question])
        if isinstance(row, Failure):
            errors[row.reason] += 1
        elif isinstance(row, str):
            errors[row] += 1
        else:
            rows.append(row)
        if on_progress is not None:
            on_progress(index + 1, len(usable.questions))
    return _MeasuredQuestions(tuple(rows), errors, usable.unusable)


class Asker:
    """Compresses documents and generates answers from their memories; an error stays with its prompt."""

    def __init__(self, model: AnswerModel, *, rate: int | None, batch_size: int = 1, max_new_tokens: int = 1) -> None:
        self._model = model
        self._rate, self._batch_size, self._max_new_tokens = rate, batch_size, max_new_tokens
        self._memories = DocumentMemories(model, rate, Cache(budget_bytes=_CACHE_BYTES))

    @classmethod
    def of(cls, model: AnswerModel, settings: AskSettings) -> Asker:
        """An asker with these settings."""
        return cls(model, rate=settings.rate, batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens)

    def windows(self, docs: Sequence[DocText]) -> list[tuple[Memory, ...]]:
        """Memories of each document, one a window."""
        return unwrap(self._memories.of(docs))

    def query(self, question: str) -> QueryMemory:
        """Memory of a question."""
        return self._model.encode_queries([question], rate=self._rate)[0]

    def ranking(self, question: str, docs: Sequence[DocText]) -> tuple[int, ...]:
        """Indices of documents in the model's own ranking."""
        return rank_documents(self.query(question), self.windows(docs))

    def answers(self, question: str, prompts: Sequence[Sequence[DocText]]) -> list[Generation | Failure]:
        """An answer for each list of documents."""
        docs = list(dict.fromkeys(doc for prompt in prompts for doc in prompt))
        memories = dict(zip(docs, self._memories.of(docs), strict=True))

        def context(prompt: Sequence[DocText]) -> Context:
            read = tuple(memory for windows in unwrap(memories[doc] for doc in prompt) for memory in windows)
            return Context(GenerationRequest(question, memories=read), sum(len(memory.values) for memory in read))

        contexts = each_one(context, prompts)
        return answer_all(self._model, contexts, batch_size=self._batch_size, max_new_tokens=self._max_new_tokens)


def first_windows(records: Sequence[DataRecord], model: AnswerModel, limit: int | None) -> list[tuple[str, str]]:
    """First windows of passages and of questions' gold documents, each text once, as (identifier, text).

    The identifier is the record's, with the document's index for a question's. ``limit`` counts texts.
    """
    ids: dict[str, str] = {}
    for record in records:
        if isinstance(record, MultiHop):
            docs = [(f"{record.id}#{i}", record.docs[i].title, record.docs[i].text) for i in record.gold]
        else:
            docs = [(record.id, record.title, record.text)]
        for name, title, text in docs:
            document = make_document(f"analysis:{title}", title, text)
            for passage in split(document, model.token_spans, max_tokens=model.window_tokens)[:1]:
                ids.setdefault(passage_text(passage.title, passage.text), name)
        if limit is not None and len(ids) >= limit:
            break
    return [(name, text) for text, name in ids.items()][:limit]


def distractors(question: MultiHop, count: int, rng: np.random.Generator) -> list[DocText]:
    """``count`` documents that are not gold, drawn without replacement; fewer where there are fewer."""
    return shuffled([doc for index, doc in enumerate(question.docs) if index not in question.gold], rng)[:count]


def shuffled(docs: Sequence[DocText], rng: np.random.Generator) -> list[DocText]:
    """The documents in an order drawn at random."""
    return [docs[i] for i in rng.permutation(len(docs))]
