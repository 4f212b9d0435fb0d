"""Does training move the selection towards documents that make the answer likelier? (clara.md section 7).

A document is *helpful* if the answer is likelier with it alone in the prompt than with a candidate drawn at random;
nobody's relevance labels enter. For a checkpoint this gives the probability that the selection puts on helpful
documents, and whether the gradient of the straight-through selector would raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from pydantic import Field

from clara.analysis.harness import (
    AnalysisReport,
    AnalysisSettings,
    Asker,
    InspectableModel,
    OnProgress,
    mean,
    measure_questions,
)
from clara.data import DataRecord, MultiHop
from clara.metrics import Interval, bootstrap_interval
from clara.model.inspection import SelectionGradient
from clara.records import FloatArray


class GradientSettings(AnalysisSettings):
    """Settings of the analysis.

    Attributes:
        k: slots of the selection, in the prompt together.
        temperature: tau of the selection.
    """

    k: int = Field(default=5, ge=1)
    temperature: float = Field(default=0.02, gt=0)


@dataclass(frozen=True, slots=True)
class _QuestionPush:
    """One question.

    Attributes:
        id: the record's.
        helpful: share of candidates that are helpful: what chance gives.
        probability_helpful: selection probability on helpful candidates together.
        probability_gold: on the windows of gold documents together.
        push_helpful: share of the gradient's upward push that falls on helpful candidates; None if it pushes nothing.
        probability: by candidate, the one with the likeliest answer first.
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
    """Means over the questions of one checkpoint.

    Attributes:
        helpful: mean share of helpful candidates: what chance gives for the two that follow.
        probability_helpful: mean probability on helpful candidates.
        push_helpful: mean share of the gradient's upward push on helpful candidates.
        probability_gold: mean probability on gold documents.
        ci95: bootstrap intervals of ``probability_helpful``, ``push_helpful`` and ``probability_gold``.
        rows: the questions.
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
    model: InspectableModel,
    records: Sequence[DataRecord],
    settings: GradientSettings,
    on_progress: OnProgress | None = None,
) -> GradientReport:
    """Measure one checkpoint; a document longer than the window gives a candidate a window.

    Raises:
        RecordError: no question can be asked.
        ConfigError: the rate is not served.
    """
    asker, insight = Asker(model, rate=settings.rate), model.inspector()

    def measure(_: int, question: MultiHop) -> _QuestionPush:
        query, windows = asker.query(question.question), asker.windows(question.docs)
        memories = [memory for found in windows for memory in found]
        gold = [index in question.gold for index, found in enumerate(windows) for _ in found]
        k = min(settings.k, len(memories))
        gradient = insight.selection_gradient(
            question.question, query, memories, question.answers[0], k=k, temperature=settings.temperature
        )
        return push_of(question.id, gradient, gold)

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


def helpful(likelihood: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which candidates make the answer likelier than the mean over all does: bool [D].

    Args:
        likelihood: float [D], log-likelihoods; their mean is taken over probabilities.
    """
    values = likelihood.astype(np.float64)
    top = values.max()
    mean = top + np.log(np.exp(values - top).mean())
    found: np.ndarray[tuple[int], np.dtype[np.bool_]] = values > mean
    return found


def push_of(row_id: str, found: SelectionGradient, gold: Sequence[bool]) -> _QuestionPush:
    """One question's shares.

    Args:
        row_id: the record's.
        found: what the model gave.
        gold: for each candidate whether it is of a gold document.
    """
    raises = helpful(found.likelihood)
    push = -found.gradient.astype(np.float64)
    total, upward = np.abs(push).sum(), np.clip(push, 0, None)
    order = np.argsort(-found.likelihood, kind="stable")
    return _QuestionPush(
        id=row_id,
        helpful=float(raises.mean()),
        probability_helpful=float(found.probability[raises].sum()),
        probability_gold=float(found.probability[np.asarray(gold)].sum()),
        push_helpful=float(upward[raises].sum() / upward.sum()) if upward.sum() > 0 else None,
        probability=tuple(found.probability[order].tolist()),
        push=tuple((push[order] / (total or 1.0)).tolist()),
    )
