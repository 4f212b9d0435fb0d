"""Attention of the generator while it answers, and the selection's gradient.

Attention: each prompt holds the gold passages and distractors, shuffled, as memories; the answer is the model's own.

Gradients (clara.md section 7): a document is *helpful* if the answer is likelier with it alone in the prompt than with
a candidate drawn at random; no relevance labels are used. Reported is the selection's probability of helpful
documents, and whether the gradient of the straight-through selector would raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from clara.analysis.harness import (
    AnalysisReport,
    AnalysisSettings,
    Asker,
    AskSettings,
    OnProgress,
    distractors,
    mean,
    measure_questions,
)
from clara.data import DataRecord, MultiHop
from clara.evaluate.cache import unwrap
from clara.metrics import Interval, bootstrap_interval, score_answer
from clara.model.inspection import AnswerAttention, SelectionGradient
from clara.records import FloatArray

if TYPE_CHECKING:
    from clara.model import ClaraModel


class AttentionSettings(AskSettings):
    """``distractors``: passages that are not gold, beside the gold ones."""

    distractors: int = Field(default=4, ge=0)


@dataclass(frozen=True, slots=True)
class _QuestionAttention:
    """Attention at a question's answer; ``gold`` to ``first`` are by layer.

    Attributes:
        gold: mean to a gold passage's memory; ``other``: to a distractor's, empty without any.
        rest: to the words around the memories, the first position left out.
        first: to the first position (the attention sink).
        gold_share: of the attention to memories over all layers, the gold passages' share.
        chance: gold passages' share of the memory vectors.
        passages: attention to each passage's memory, in prompt order, by answer token: the mean over layers.
    """

    id: str
    prediction: str
    f1: float
    gold: tuple[float, ...]
    other: tuple[float, ...]
    question: tuple[float, ...]
    rest: tuple[float, ...]
    first: tuple[float, ...]
    gold_share: float
    chance: float
    passages: tuple[tuple[float, ...], ...]
    is_gold: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class AttentionReport(AnalysisReport):
    """Means over the questions; ``gold_share`` and ``chance`` as of a question."""

    gold_share: float
    chance: float
    ci95: Interval
    rows: tuple[_QuestionAttention, ...]

    def by_layer(self, name: str) -> list[float]:
        """Mean over questions of a part (``gold``, ``other``, …), by layer; empty where no question has it."""
        rows = [values for row in self.rows if (values := getattr(row, name))]
        return [fmean(layer) for layer in zip(*rows, strict=True)]


def answer_attention(
    model: ClaraModel,
    records: Sequence[DataRecord],
    settings: AttentionSettings,
    on_progress: OnProgress | None = None,
) -> AttentionReport:
    """Answer questions and record the generator's attention; raises as ``measure_questions``."""
    asker, rng, insight = Asker.of(model, settings), np.random.default_rng(settings.seed), model.inspector()

    def measure(_: int, question: MultiHop) -> _QuestionAttention | str:
        docs = [question.docs[i] for i in question.gold] + distractors(question, settings.distractors, rng)
        order = rng.permutation(len(docs))
        shown, gold = [docs[i] for i in order], [bool(i < len(question.gold)) for i in order]
        answer = unwrap(asker.answers(question.question, [shown]))[0]
        if not answer.token_ids:
            return "answers without a token"
        windows = asker.windows(shown)
        owner = [index for index, own in enumerate(windows) for _ in own]
        memories = [memory for own in windows for memory in own]
        seen = insight.attention(question.question, memories, answer.token_ids)
        return _attention_row(question, answer.text, seen, owner, gold)

    measured = measure_questions(records, settings.limit, measure, on_progress)
    return AttentionReport(
        **measured.facts(model),
        gold_share=measured.mean(lambda row: row.gold_share),
        chance=measured.mean(lambda row: row.chance),
        ci95=measured.interval(lambda row: row.gold_share, settings.seed),
        rows=measured.rows,
    )


def _attention_row(
    question: MultiHop, prediction: str, seen: AnswerAttention, owner: Sequence[int], gold: Sequence[bool]
) -> _QuestionAttention:
    windows = seen.memories.sum(axis=3)  # [layers, T, memories]
    passages = np.stack([windows[:, :, np.asarray(owner) == p].sum(axis=2) for p in range(len(gold))], axis=2)
    layers, right = passages.mean(axis=1), np.asarray(gold)  # [layers, passages]
    held = np.asarray([gold[index] for index in owner])
    return _QuestionAttention(
        id=question.id,
        prediction=prediction,
        f1=score_answer(prediction, question.answers).f1,
        gold=_listed(layers[:, right].mean(axis=1)),
        other=_listed(layers[:, ~right].mean(axis=1)) if not right.all() else (),
        question=_listed(seen.question.mean(axis=1)),
        rest=_listed((seen.rest - seen.first).mean(axis=1)),
        first=_listed(seen.first.mean(axis=1)),
        gold_share=float(layers[:, right].sum() / layers.sum()),
        chance=float(held.mean()),
        passages=tuple(_listed(token) for token in passages.mean(axis=0)),
        is_gold=tuple(gold),
    )


def _listed(values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


class GradientSettings(AnalysisSettings):
    """``k``: passages selected together; ``temperature``: tau of the selection."""

    k: int = Field(default=5, ge=1)
    temperature: float = Field(default=0.02, gt=0)


@dataclass(frozen=True, slots=True)
class _QuestionPush:
    """Selection probability and gradient of a question's candidates.

    Attributes:
        helpful: share of candidates that are helpful: the level of chance.
        probability_helpful: selection probability of helpful candidates together.
        probability_gold: of the windows of gold documents together.
        push_helpful: share of the gradient's upward push that falls on helpful candidates; None if it pushes nothing.
        probability: by candidate, likeliest answer first.
        push: minus the gradient, over its sum of absolute values, in the same order.
    """

    id: str
    helpful: float
    probability_helpful: float
    probability_gold: float
    push_helpful: float | None
    probability: tuple[float, ...]
    push: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GradientReport(AnalysisReport):
    """Means over the questions of one checkpoint; ``helpful``, the share of helpful candidates, is the level of chance.

    ``ci95``: bootstrap intervals of ``probability_helpful``, ``push_helpful`` and ``probability_gold``.
    """

    helpful: float
    probability_helpful: float
    push_helpful: float
    probability_gold: float
    ci95: dict[str, Interval]
    rows: tuple[_QuestionPush, ...]

    def by_rank(self, name: str) -> list[float]:
        """Mean ``probability`` or ``push`` by likelihood of the answer, for the ranks that every question has."""
        rows = [getattr(row, name) for row in self.rows]
        return [fmean(row[rank] for row in rows) for rank in range(min(map(len, rows)))]


def selection_gradients(
    model: ClaraModel,
    records: Sequence[DataRecord],
    settings: GradientSettings,
    on_progress: OnProgress | None = None,
) -> GradientReport:
    """Measure one checkpoint; every window of a document is a candidate."""
    asker, insight = Asker(model, rate=settings.rate), model.inspector()

    def measure(_: int, question: MultiHop) -> _QuestionPush:
        query, windows = asker.query(question.question), asker.windows(question.docs)
        memories = [memory for own in windows for memory in own]
        gold = [index in question.gold for index, own in enumerate(windows) for _ in own]
        k = min(settings.k, len(memories))
        gradient = insight.selection_gradient(
            question.question, query, memories, question.answers[0], k=k, temperature=settings.temperature
        )
        return _push_row(question.id, gradient, gold)

    measured = measure_questions(records, settings.limit, measure, on_progress)
    rows = measured.rows
    shares = {
        "probability_helpful": [row.probability_helpful for row in rows],
        "push_helpful": [row.push_helpful for row in rows if row.push_helpful is not None],
        "probability_gold": [row.probability_gold for row in rows],
    }
    return GradientReport(
        **measured.facts(model),
        helpful=measured.mean(lambda row: row.helpful),
        ci95={name: bootstrap_interval(v, seed=settings.seed) for name, v in shares.items() if v},
        rows=rows,
        probability_helpful=mean(shares["probability_helpful"]),
        push_helpful=mean(shares["push_helpful"]),
        probability_gold=mean(shares["probability_gold"]),
    )


def _helpful(likelihood: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Candidates under which the answer is likelier than on average: log-likelihoods [D] to bool [D]."""
    values = likelihood.astype(np.float64)
    top = values.max()
    mean = top + np.log(np.exp(values - top).mean())
    helpful: np.ndarray[tuple[int], np.dtype[np.bool_]] = values > mean
    return helpful


def _push_row(row_id: str, gradient: SelectionGradient, gold: Sequence[bool]) -> _QuestionPush:
    raises = _helpful(gradient.likelihood)
    push = -gradient.gradient.astype(np.float64)
    total, upward = np.abs(push).sum(), np.clip(push, 0, None)
    order = np.argsort(-gradient.likelihood, kind="stable")
    return _QuestionPush(
        id=row_id,
        helpful=float(raises.mean()),
        probability_helpful=float(gradient.probability[raises].sum()),
        probability_gold=float(gradient.probability[np.asarray(gold)].sum()),
        push_helpful=float(upward[raises].sum() / upward.sum()) if upward.sum() > 0 else None,
        probability=tuple(gradient.probability[order].tolist()),
        push=tuple((push[order] / (total or 1.0)).tolist()),
    )
