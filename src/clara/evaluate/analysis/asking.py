"""Questions put to a model with chosen documents: what the analyses share.

Knows memories and prompts; which documents, and what the answers are worth, is each analysis' matter.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from pydantic import Field

from clara.config import Settings
from clara.data import DataRecord, DocText, MultiHop
from clara.errors import RecordError
from clara.evaluate.isolation import Failure, each
from clara.evaluate.memories import MemoryBank, rank
from clara.evaluate.protocol import AnswerModel, Splitter
from clara.ingest import split
from clara.records import Generation, GenerationRequest, Memory, QueryMemory

Progress: TypeAlias = Callable[[int, int], None]
"""Called with questions done and questions in all."""


_KEPT_DOCS = 64  # the candidates of a few questions; analyses take question after question


class AnalysisSettings(Settings):
    """What every analysis is told.

    Attributes:
        rate: compression rate; None is the model's default.
        limit: records, counted from the first of the file; None is all.
        seed: of every draw (order of passages, choice of distractors, bootstrap).
    """

    rate: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)


class AskSettings(AnalysisSettings):
    """How an analysis that asks is to ask.

    Attributes:
        batch_size: prompts generated together.
        max_new_tokens: longest answer, in tokens.
    """

    batch_size: int = Field(default=8, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Questions that an analysis can use, and what it leaves out.

    Attributes:
        questions: at least one.
        unusable: records left out, by reason.
    """

    questions: tuple[MultiHop, ...]
    unusable: Counter[str]


def choose(records: Sequence[DataRecord], limit: int | None) -> Chosen:
    """The first ``limit`` records, without those that ask nothing or have no gold document.

    Raises:
        RecordError: nothing is left.
    """
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
    return Chosen(tuple(questions), unusable)


def counted(questions: Sequence[MultiHop], progress: Progress | None) -> Iterator[MultiHop]:
    """The questions one by one, each told when it is done."""
    for done, question in enumerate(questions, start=1):
        yield question
        if progress is not None:
            progress(done, len(questions))


class Asker:
    """Compresses documents and asks; a fault stays with the prompt that has it.

    The last documents are kept, so a question that comes back to one does not compress it again.
    """

    def __init__(
        self,
        model: AnswerModel,
        *,
        rate: int | None,
        batch_size: int = 1,
        max_new_tokens: int = 1,
        splitter: Splitter = split,
    ) -> None:
        self._model = model
        self._kept: OrderedDict[DocText, tuple[Memory, ...] | Failure] = OrderedDict()
        self._rate, self._batch_size, self._max_new_tokens = rate, batch_size, max_new_tokens
        self._splitter = splitter

    @classmethod
    def of(cls, model: AnswerModel, settings: AskSettings) -> Asker:
        """As the settings say."""
        return cls(model, rate=settings.rate, batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens)

    def windows(self, docs: Sequence[DocText]) -> list[tuple[Memory, ...] | Failure]:
        """Memories of each document, one a window; a document that fails is its failure."""
        missing = [doc for doc in dict.fromkeys(docs) if doc not in self._kept]
        bank = MemoryBank(self._model, rate=self._rate, splitter=self._splitter)
        bank.fill(missing)
        self._kept.update((doc, bank.memories(doc)) for doc in missing)
        found = [self._kept[doc] for doc in docs]
        for doc in docs:
            self._kept.move_to_end(doc)
        while len(self._kept) > _KEPT_DOCS:
            self._kept.popitem(last=False)
        return found

    def query(self, question: str) -> QueryMemory | Failure:
        """Memory of a question."""
        return each([question], lambda asked: self._model.encode_queries(asked, rate=self._rate))[0]

    def ranking(self, question: str, docs: Sequence[DocText]) -> tuple[int, ...] | Failure:
        """Indices of documents as the model itself ranks them, best first."""
        query, found = self.query(question), self.windows(docs)
        if isinstance(query, Failure):
            return query
        whole = []
        for windows in found:
            if isinstance(windows, Failure):
                return windows
            whole.append(windows)
        return rank(query, whole)

    def answers(self, question: str, prompts: Sequence[Sequence[DocText]]) -> list[Generation | Failure]:
        """An answer for each choice of documents.

        Args:
            question: the question.
            prompts: the documents of each prompt, in prompt order.
        """
        docs = list(dict.fromkeys(doc for prompt in prompts for doc in prompt))
        memories = dict(zip(docs, self.windows(docs), strict=True))
        made: dict[int, Generation | Failure] = {}
        requests: dict[int, GenerationRequest] = {}
        for place, prompt in enumerate(prompts):
            found = _joined([memories[doc] for doc in prompt])
            if isinstance(found, Failure):
                made[place] = found
            else:
                requests[place] = GenerationRequest(question, memories=found)
        # Like lengths share a batch, the longest first: what does not fit in memory is found at once.
        order = sorted(requests, key=lambda place: -len(requests[place].memories))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            made.update(zip(batch, each([requests[place] for place in batch], self._generate), strict=True))
        return [made[place] for place in range(len(prompts))]

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return self._model.generate_many(requests, max_new_tokens=self._max_new_tokens)


def distractors(question: MultiHop, count: int, rng: np.random.Generator) -> list[DocText]:
    """``count`` documents that are not gold, drawn without replacement; fewer where there are fewer."""
    others = [doc for index, doc in enumerate(question.docs) if index not in question.gold]
    return [others[i] for i in rng.permutation(len(others))[:count]]


def _joined(found: Sequence[tuple[Memory, ...] | Failure]) -> tuple[Memory, ...] | Failure:
    whole: list[Memory] = []
    for windows in found:
        if isinstance(windows, Failure):
            return windows
        whole.extend(windows)
    return tuple(whole)
