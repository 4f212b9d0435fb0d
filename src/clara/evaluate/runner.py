"""Ask a model the questions of a data set and score its answers (clara.md section 8).

Knows records and the order of work; formulas are in ``metrics``, what is reported in ``result``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from clara.data import DataRecord, DocText, MultiHop
from clara.errors import ConfigError, RecordError
from clara.evaluate.isolation import Failure, each
from clara.evaluate.memories import MemoryBank, rank
from clara.evaluate.protocol import AnswerModel, Splitter, TextReader
from clara.evaluate.result import EvalResult, EvalRow, Subject, summarise
from clara.evaluate.settings import EvalConfig
from clara.ingest import split
from clara.metrics import recall_at_k, score_answer
from clara.prompts import passage_text
from clara.records import Generation, GenerationRequest, Memory, QueryMemory

Progress: TypeAlias = Callable[[int, int], None]
"""Called with questions done and questions in all."""

# Questions prepared together, in batches: enough to sort by length, few enough that their memories fit.
_BATCHES_A_CHUNK = 4
_RECALL_AT = 5


def evaluate(
    model: AnswerModel,
    records: Sequence[DataRecord],
    config: EvalConfig,
    *,
    data_sha256: str,
    reader: TextReader | None = None,
    splitter: Splitter = split,
    progress: Progress | None = None,
) -> EvalResult:
    """Measure a model on questions with gold answers.

    A record that cannot be asked (a passage record; no gold document with ``given="gold"``, whatever the context, so
    that contexts are compared on the same questions) is counted by reason. An error in one question is counted and
    named, never scored. With ``given="candidates"`` the model ranks the candidates by its memories whatever the
    context, so Recall@5 is there for each.

    Args:
        model: what is measured.
        records: the questions.
        config: what the model is given.
        data_sha256: of the file that ``records`` came from.
        reader: answers in the model's place; the model still ranks candidates.
        splitter: cuts documents longer than the model's window; each window is a memory of its own.
        progress: told after each batch.

    Raises:
        RecordError: no record can be asked.
        ModelError: every question gave an error.
        ConfigError: the model does not serve the rate, or the reader reads another context.
        MemoryMismatchError: the model's memories are not marked as its own.
    """
    if reader is not None and reader.context != config.context:
        raise ConfigError(
            f"this reader was trained to answer from context {reader.context!r}, not {config.context!r}: "
            f"give --context {reader.context}"
        )
    unusable: Counter[str] = Counter()
    questions = list(_usable(records[: config.limit], config, unusable))
    if not questions:
        listed = ", ".join(f"{count} {reason}" for reason, count in unusable.items()) or "no records"
        raise RecordError(f"nothing to ask: expected questions with candidate documents, got {listed}")
    run = _Run(model, config, splitter, questions, progress, reader=reader)
    rows = run.rows()
    subject = Subject(
        model=model.name, fingerprint=(reader or model).fingerprint, rate=run.rate, data_sha256=data_sha256
    )
    return summarise(rows, config, subject, unusable)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A question that can be generated.

    Attributes:
        request: for the generator.
        docs: indices of the documents in it.
        recall_at_5: None if nothing was ranked or nothing is gold.
    """

    request: GenerationRequest
    docs: tuple[int, ...]
    recall_at_5: float | None

    def size(self) -> int:
        """Grows with the prompt: memory vectors, or characters."""
        vectors = sum(len(memory.values) for memory in self.request.memories)
        return vectors + sum(map(len, self.request.texts)) + len(self.request.question)


class _Run:
    """One evaluation on its way through the questions."""

    def __init__(
        self,
        model: AnswerModel,
        config: EvalConfig,
        splitter: Splitter,
        questions: Sequence[MultiHop],
        progress: Progress | None,
        *,
        reader: TextReader | None,
    ) -> None:
        self._model = model
        self._answerer = reader if reader is not None else model
        self._config = config
        self._questions = questions
        self._progress = progress
        self._done = 0
        self._compresses = config.context == "memory" or config.given == "candidates"
        uses = [doc for question in questions for doc in self._needed(question)]
        self._bank = MemoryBank(model, rate=config.rate, splitter=splitter, uses=uses)
        self.rate: int | None = None

    def rows(self) -> list[EvalRow]:
        """One row a question, in order."""
        size = self._config.batch_size * _BATCHES_A_CHUNK
        rows: list[EvalRow] = []
        for start in range(0, len(self._questions), size):
            chunk = self._questions[start : start + size]
            prepared = self._prepare(chunk)
            generated = self._generate(prepared)
            rows.extend(_row(*parts) for parts in zip(chunk, prepared, generated, strict=True))
            for question in chunk:
                self._bank.release(self._needed(question))
        return rows

    def _needed(self, question: MultiHop) -> list[DocText]:
        """The documents whose memories the question needs."""
        if not self._compresses:
            return []
        if self._config.given == "candidates":
            return list(question.docs)
        return [question.docs[index] for index in question.gold]

    def _prepare(self, chunk: Sequence[MultiHop]) -> list[_Prepared | Failure]:
        self._bank.fill(doc for question in chunk for doc in self._needed(question))
        if self._config.given == "gold":
            return [self._request(question, tuple(sorted(question.gold)), None) for question in chunk]
        queries = each([question.question for question in chunk], self._encode)
        return [self._ranked(question, query) for question, query in zip(chunk, queries, strict=True)]

    def _encode(self, questions: Sequence[str]) -> list[QueryMemory]:
        return self._model.encode_queries(questions, rate=self._config.rate)

    def _ranked(self, question: MultiHop, query: QueryMemory | Failure) -> _Prepared | Failure:
        """The request with the best candidates; a failure if any candidate has no memory, as none can be left out."""
        if isinstance(query, Failure):
            return query
        windows: list[tuple[Memory, ...]] = []
        for doc in question.docs:
            found = self._bank.memories(doc)
            if isinstance(found, Failure):
                return found
            windows.append(found)
        self.rate = query.rate
        order = rank(query, windows)
        recall = recall_at_k(order, question.gold, _RECALL_AT) if question.gold else None
        return self._request(question, order[: self._config.k], recall)

    def _request(self, question: MultiHop, docs: tuple[int, ...], recall: float | None) -> _Prepared | Failure:
        memories: list[Memory] = []
        texts: list[str] = []
        quoted: list[str] = []
        for doc in (question.docs[index] for index in docs):
            text = passage_text(doc.title, doc.text)
            if self._config.wording == "quoted":
                quoted.append(text)
            if self._config.context == "text":
                texts.append(text)
            elif self._config.context == "memory":
                found = self._bank.memories(doc)
                if isinstance(found, Failure):
                    return found
                memories.extend(found)
                self.rate = found[0].rate
        request = GenerationRequest(
            question=question.question,
            memories=tuple(memories),
            texts=tuple(texts),
            reader=self._config.reader,
            quote_from=tuple(quoted),
        )
        return _Prepared(request, docs, recall)

    def _generate(self, prepared: Sequence[_Prepared | Failure]) -> list[Generation | Failure]:
        """Answers in the order of ``prepared``, made in batches of like size, the longest first."""
        answers: dict[int, Generation | Failure] = {}
        sizes: dict[int, int] = {}
        for place, item in enumerate(prepared):
            if isinstance(item, Failure):
                answers[place] = item
            else:
                sizes[place] = item.size()
        self._tell(len(answers))
        places = sorted(sizes, key=lambda place: -sizes[place])
        for start in range(0, len(places), self._config.batch_size):
            batch = places[start : start + self._config.batch_size]
            requests = [item.request for place in batch if not isinstance(item := prepared[place], Failure)]
            answers.update(zip(batch, each(requests, self._answer), strict=True))
            self._tell(len(batch))
        return [answers[place] for place in range(len(prepared))]

    def _answer(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return self._answerer.generate_many(requests, max_new_tokens=self._config.max_new_tokens)

    def _tell(self, more: int) -> None:
        self._done += more
        if more and self._progress is not None:
            self._progress(self._done, len(self._questions))


def _usable(records: Sequence[DataRecord], config: EvalConfig, unusable: Counter[str]) -> Iterator[MultiHop]:
    for record in records:
        if not isinstance(record, MultiHop):
            unusable["passage records, which ask no single question"] += 1
        elif config.given == "gold" and not record.gold:
            unusable["questions without a gold document"] += 1
        else:
            yield record


def _row(question: MultiHop, prepared: _Prepared | Failure, generated: Generation | Failure) -> EvalRow:
    docs: tuple[int, ...] = ()
    recall = None
    if not isinstance(prepared, Failure):
        docs, recall = prepared.docs, prepared.recall_at_5
    if isinstance(generated, Failure):
        return EvalRow(question.id, None, None, recall, docs, generated.reason)
    scores = score_answer(generated.text, question.answers)
    return EvalRow(question.id, generated.text, scores, recall, docs, None)
