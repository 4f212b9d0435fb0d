"""Retrieval and reading settings, measured on a sample of questions as ``Clara.ask`` would answer them.

One setting after another, each with the earlier choices. Another value replaces the current one only where its gain is
more than the gain's own standard error: on a sample, the best of several is not always better.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeAlias

from clara.answering import AnswerOptions, Reading, plan_reading, reranked
from clara.data import DataRecord, DocText
from clara.data.neighbours import holds_answer
from clara.index import DocumentEntry, IndexRow
from clara.metrics import normalize_answer, recall_at_k, score_answer
from clara.model import ClaraModel
from clara.model.hub.base import Progress
from clara.pipeline import Clara
from clara.prompts import passage_text
from clara.records import Generation, Hit, Passage, QueryMemory, Wording

_LATENT_WEIGHTS = (0.1, 0.25, 0.5, 1.0, 2.0)
_CONTRASTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_WORDINGS: tuple[Wording, ...] = ("free", "quoted")
_PASSAGES = (1, 2, 3, 5)
"""Numbers of passages to read."""
_RERANKED = (0, 3, 5, 10)
_RECALL_DEPTH = 5
_RIGHT = 0.5
"""F1 from which an answer counts as right."""
_DEPTH = 12
"""Passages retrieved for each question; a shorter search finds the first of them (``ranking.fusion_depth``)."""
_ANSWERS_AT_ONCE = 8

_Retrieved: TypeAlias = "tuple[_SampleQuestion, list[Hit]]"
"""A question with its retrieved passages, best first."""


@dataclass(frozen=True, slots=True)
class _SampleQuestion:
    """A question, with the ids of the passages that support its answers (perhaps none), and of all of its record."""

    text: str
    answers: tuple[str, ...]
    gold: frozenset[str]
    own: frozenset[str]


@dataclass(frozen=True, slots=True)
class Sample:
    """Questions, at most one of a record, and by id the passages that they are searched in: each text once."""

    questions: Sequence[_SampleQuestion]
    passages: Mapping[str, Passage]

    def answerless(self, question: _SampleQuestion) -> frozenset[str]:
        """Passages of other records that hold no answer of a question."""
        answers = [normalize_answer(answer) for answer in question.answers]
        others = ((name, passage) for name, passage in self.passages.items() if name not in question.own)
        return frozenset(name for name, passage in others if not holds_answer(passage.text, answers))


def draw(records: Sequence[DataRecord], limit: int, seed: int) -> Sample:
    """Draw a sample of questions: at most ``limit``, and one of each record."""
    rng = random.Random(seed)
    questions: list[_SampleQuestion] = []
    passages: dict[str, Passage] = {}
    places: dict[DocText, str] = {}
    for record in rng.sample(records, len(records)):
        if len(questions) == limit:
            break
        if not record.all_pairs:
            continue
        for doc in record.docs:
            if doc not in places:
                name = places[doc] = f"{len(passages):08}"
                passages[name] = Passage(name, name, doc.title, doc.text, 0, len(doc.text))
        ids = [places[doc] for doc in record.docs]
        pair = rng.choice(record.all_pairs)
        supporting = frozenset(ids[i] for i in record.gold)
        questions.append(_SampleQuestion(pair.question.strip(), pair.answers, supporting, frozenset(ids)))
    return Sample(questions, passages)


@dataclass(frozen=True, slots=True)
class _Measurement:
    """The measurement of one setting: the metric that decides, and the figures of each candidate, by its name.

    ``questions`` were answered or ranked for each candidate, rates counted apart.
    """

    value: Any
    was: Any
    metric: str
    figures: Mapping[str, float]
    questions: int
    more: Mapping[str, Any] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        """The entry in ``clara.json``."""
        figures = {name: round(figure, 4) for name, figure in self.figures.items()}
        own = {"value": self.value, "was": self.was, "metric": self.metric, "candidates": figures}
        return own | {"questions": self.questions} | dict(self.more)


def _choose(current: Any, scores: Mapping[Any, Sequence[float]], metric: str) -> _Measurement:  # noqa: ANN401 - any setting
    """The best candidate, or the current value where none is better by more than the standard error.

    ``scores`` hold each candidate's score on each question, the same questions for all; ``metric`` is their name.
    """
    means = {value: fmean(each) for value, each in scores.items()}
    best = max(means, key=lambda value: means[value])
    gains = [one - other for one, other in zip(scores[best], scores[current], strict=True)]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    value = best if fmean(gains) > error else current
    more = {"gain": round(fmean(gains), 4), "standard_error": round(error, 4)} if best != current else {}
    return _Measurement(value, current, metric, {str(v): mean for v, mean in means.items()}, len(gains), more)


class Bench:
    """A model with stores of a sample's passages, one for each of its rates; settings are changed in its manifest."""

    def __init__(self, model: ClaraModel, sample: Sample, folder: Path, on_progress: Progress) -> None:
        """Compress the passages into stores in ``folder``."""
        self.model, self.sample, self.on_progress = model, sample, on_progress
        self._stores: dict[int, Clara] = {}
        self._queries: dict[int, list[QueryMemory]] = {}
        for rate in model.rates:
            self._stores[rate] = self._filled(folder / f"{rate}x", rate)
            self._queries[rate] = model.encode_queries([question.text for question in sample.questions], rate=rate)

    def close(self) -> None:
        """Close the stores."""
        for store in self._stores.values():
            store.close()

    def _filled(self, folder: Path, rate: int) -> Clara:
        passages = list(self.sample.passages.values())
        done = [0]

        def count(more: int) -> None:
            done[0] += more
            self.on_progress(f"compressing at {rate}x", done[0], len(passages))

        texts = [passage_text(passage.title, passage.text) for passage in passages]
        memories = self.model.compress(texts, rate=rate, progress=count)
        store = Clara.open(folder, model=self.model, rate=rate)
        rows = zip(passages, memories, strict=True)
        store.store.add([IndexRow(passage, memory, passage.id) for passage, memory in rows])
        store.store.finish_documents([DocumentEntry(passage.document, passage.id, 1) for passage in passages])
        store.store.optimize()
        return store

    def change(self, **fields: Any) -> None:  # noqa: ANN401 - any field of a manifest
        """Set fields of the model's manifest."""
        self.model.manifest = self.model.manifest.model_copy(update=fields)

    def change_reading(self, **fields: Any) -> None:  # noqa: ANN401 - any field of the rule
        """Set fields of the manifest's ``reading``."""
        self.change(reading=self.model.reading.model_copy(update=fields))

    def retrieved(self, rate: int, *, weight: float | None = None, k: int = _DEPTH) -> Iterator[_Retrieved]:
        """Each question with the hits of hybrid search."""
        weight = self.model.latent_weight if weight is None else weight
        store = self._stores[rate].store
        for question, query in zip(self.sample.questions, self._queries[rate], strict=True):
            hits = store.search_hybrid(query, question.text, k, latent_weight=weight)
            yield question, reranked(self.model, question.text, hits, self.model.reading.rerank)

    def retrieved_elsewhere(self, rate: int) -> Iterator[_Retrieved]:
        """The same among passages that do not answer a question; without questions that have none such."""
        for question, hits in self.retrieved(rate, k=len(self.sample.passages)):
            answerless = self.sample.answerless(question)
            kept = [hit for hit in hits if hit.passage.id in answerless][:_DEPTH]
            if kept:
                yield question, kept

    def read(
        self, retrieved: Sequence[_Retrieved], options: AnswerOptions, k: int, doing: str, *, scored: bool = False
    ) -> list[tuple[_SampleQuestion, Reading, Generation]]:
        """Answers to questions from the first ``k`` retrieved passages of each."""
        planned = [(q, plan_reading(self.model, q.text, hits[:k], options)) for q, hits in retrieved if hits]
        made: list[Generation] = []
        for start in range(0, len(planned), _ANSWERS_AT_ONCE):
            requests = [reading.request for _, reading in planned[start : start + _ANSWERS_AT_ONCE]]
            made += self.model.generate_many(requests, max_new_tokens=options.max_new_tokens, scored=scored)
            self.on_progress(doing, len(made), len(planned))
        return [(q, reading, one) for (q, reading), one in zip(planned, made, strict=True)]

    def f1(self, options: AnswerOptions, k: int, doing: str, *, rates: Sequence[int] | None = None) -> list[float]:
        """F1 of each question's answer at each rate."""
        scores: list[float] = []
        for rate in rates or self.model.rates:
            retrieved = list(self.retrieved(rate))
            scores += [_f1(q, one) for q, _, one in self.read(retrieved, options, k, f"{doing}, {rate}x")]
        return scores


def _f1(question: _SampleQuestion, generation: Generation) -> float:
    return score_answer(generation.text, question.answers).f1


def measure(bench: Bench, part: str, keep: float) -> Mapping[str, _Measurement]:
    """Choose a part's settings, and set them in the bench's model; by name or rate, empty if it cannot be measured.

    ``part`` is ``latent-weight``, ``rerank``, ``contrast``, ``wording``, ``reading`` or ``evidence``, which keeps the
    share ``keep`` of the right answers.
    """
    measures: Mapping[str, Callable[[Bench], Mapping[str, _Measurement]]] = {
        "latent-weight": _latent_weight,
        "rerank": _rerank,
        "contrast": _contrast,
        "wording": _wording,
        "reading": _reading,
        "evidence": partial(_evidence, keep=keep),
    }
    return measures[part](bench)


def _latent_weight(bench: Bench) -> Mapping[str, _Measurement]:
    """Weight of a rank by memory in hybrid search, by Recall@5; nothing where no gold passage is known."""
    current = bench.model.latent_weight
    scores: dict[float, list[float]] = {}
    for weight in sorted({current, *_LATENT_WEIGHTS}):
        scores[weight] = [
            recall_at_k([hit.passage.id for hit in hits], question.gold, _RECALL_DEPTH)
            for rate in bench.model.rates
            for question, hits in bench.retrieved(rate, weight=weight)
            if question.gold
        ]
    if not scores[current]:
        return {}
    measured = _choose(current, scores, f"Recall@{_RECALL_DEPTH}")
    bench.change(latent_weight=measured.value)
    return {"latent-weight": measured}


def _rerank(bench: Bench) -> Mapping[str, _Measurement]:
    """Number of best passages reranked by the question's likelihood, by Recall@1; as ``_latent_weight``."""
    current = bench.model.reading.rerank
    bench.change_reading(rerank=0)
    depths = sorted({current, *_RERANKED})
    scores: dict[int, list[float]] = {depth: [] for depth in depths}
    for rate in bench.model.rates:
        asked = [(question, hits) for question, hits in bench.retrieved(rate) if question.gold and hits]
        for place, (question, hits) in enumerate(asked, start=1):
            likely = bench.model.question_likelihoods(question.text, [hit.memory for hit in hits[: depths[-1]]])
            for depth in depths:
                first = max(range(max(1, min(depth, len(likely)))), key=lambda i: likely[i])
                scores[depth].append(recall_at_k([hits[first].passage.id], question.gold, 1))
            bench.on_progress(f"ranking again at {rate}x", place, len(asked))
    made = {"rerank": _choose(current, scores, "Recall@1")} if scores[current] else {}
    bench.change_reading(rerank=made["rerank"].value if made else current)
    return made


def _contrast(bench: Bench) -> Mapping[str, _Measurement]:
    """Weight of the null memory in a quoted answer at each rate, by F1."""
    rates = bench.model.rates
    weights = list(bench.model.manifest.contrast or [0.0] * len(rates))
    options = AnswerOptions(context="memory", wording="quoted")
    k = _memory_k(bench.model)
    made: dict[str, _Measurement] = {}
    for row, rate in enumerate(rates):
        current = weights[row]
        scores: dict[float, list[float]] = {}
        for value in sorted({current, *_CONTRASTS}):
            weights[row] = value
            bench.change(contrast=tuple(weights))
            scores[value] = bench.f1(options, k, f"contrast {value:g}", rates=[rate])
        made[f"{rate}x"] = _choose(current, scores, "F1")
        weights[row] = made[f"{rate}x"].value
    bench.change(contrast=tuple(weights))
    return made


def _wording(bench: Bench) -> Mapping[str, _Measurement]:
    """Quoted or free answers from memories, by F1."""
    k = _memory_k(bench.model)
    scores = {
        value: bench.f1(AnswerOptions(context="memory", wording=value), k, f"wording {value}") for value in _WORDINGS
    }
    measured = _choose(bench.model.wording, scores, "F1")
    bench.change(wording=measured.value)
    return {"wording": measured}


def _reading(bench: Bench) -> Mapping[str, _Measurement]:
    """Number of passages to read, as memories and, with a text reader, as text, by F1."""
    model, made = bench.model, dict[str, _Measurement]()
    fields = [({"memory_k": _memory_k(model)}, AnswerOptions(context="memory"), "memories")]
    if model.reads_text:
        # What is read is the same in both contexts; only what is cited beside it differs.
        own = {"auto_texts": model.reading.auto_texts, "text_k": model.reading.text_k or model.default_k}
        fields.append((own, AnswerOptions(context="text"), "text"))
    for current, options, kind in fields:
        scores = {k: bench.f1(options, k, f"reading {k} as {kind}") for k in sorted({*current.values(), *_PASSAGES})}
        for name, value in current.items():
            made[name] = _choose(value, scores, "F1")
            bench.change_reading(**{name: made[name].value})
    return made


def _evidence(bench: Bench, keep: float) -> Mapping[str, _Measurement]:
    """The evidence below which an answer is withheld: the highest threshold that keeps a share of the right answers.

    By the names of ``ReadingRule``; without those for which no right answer has evidence (answers are free, or wrong).
    """
    made: dict[str, _Measurement] = {}
    contexts = {"memory_evidence": (AnswerOptions(context="memory"), _memory_k(bench.model))}
    if bench.model.reads_text:
        contexts["text_evidence"] = (AnswerOptions(context="text"), bench.model.reading.auto_texts)
    for name, (options, k) in contexts.items():
        right, without = _evidences(bench, options, k, name.replace("_", " of "))
        if right:
            made[name] = _threshold(right, without, keep, getattr(bench.model.reading, name))
            bench.change_reading(**{name: made[name].value})
    return made


def _threshold(right: Sequence[float], without: Sequence[float], keep: float, was: float | None) -> _Measurement:
    """The highest threshold below which at most ``1 - keep`` of the right answers' evidences lie.

    ``without``: evidence of answers to questions that the passages do not answer; ``was``: the threshold before.
    """
    lost = int(len(right) * (1 - keep) + 1e-9)
    value = math.floor(sorted(right)[lost] * 1e4) / 1e4
    figures = {"right answers kept": fmean(one >= value for one in right)}
    if without:
        figures["answers refused that the passages do not hold"] = fmean(one < value for one in without)
    more = {"keep": keep, "unanswerable": len(without)}
    return _Measurement(value, was, "share of right answers kept", figures, len(right), more)


def right_answers_needed(keep: float) -> int:
    """Least number of right answers of which one may be lost; with fewer the weakest is the threshold."""
    return math.ceil(1 / (1 - keep) - 1e-9) if keep < 1 else 1


def _evidences(bench: Bench, options: AnswerOptions, k: int, doing: str) -> tuple[list[float], list[float]]:
    """Evidence of right answers, and of answers from passages that hold none."""
    right: list[float] = []
    without: list[float] = []
    for rate in bench.model.rates if options.context == "memory" else bench.model.rates[:1]:
        for q, reading, one in bench.read(list(bench.retrieved(rate)), options, k, doing, scored=True):
            evidence = reading.evidence(bench.model, one)
            if evidence is not None and _f1(q, one) >= _RIGHT:
                right.append(evidence)
        elsewhere = list(bench.retrieved_elsewhere(rate))
        answers = bench.read(elsewhere, options, k, f"{doing}, unanswerable", scored=True)
        without += [value for _, reading, one in answers if (value := reading.evidence(bench.model, one)) is not None]
    return right, without


def _memory_k(model: ClaraModel) -> int:
    return model.reading.memory_k or model.default_k
