"""Does training move the selection towards documents that make the answer likelier? (clara.md section 7).

A document is *helpful* if the answer is likelier with it alone in the prompt than with a candidate drawn at random;
nobody's relevance labels enter. For a checkpoint this gives the probability that the selection puts on helpful
documents, and whether the gradient of the straight-through selector would raise it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np
from pydantic import Field

from clara.data import DataRecord, MultiHop
from clara.evaluate.analysis.asking import AnalysisSettings, Asker, Progress, choose, counted
from clara.evaluate.analysis.insight import Insight
from clara.evaluate.isolation import Failure
from clara.evaluate.protocol import AnswerModel
from clara.metrics import Interval, bootstrap_interval
from clara.model.inspection import SelectionGradient
from clara.records import FloatArray, Memory


class GradientSettings(AnalysisSettings):
    """Settings of the analysis.

    Attributes:
        k: slots of the selection, in the prompt together.
        temperature: tau of the selection.
    """

    k: int = Field(default=5, ge=1)
    temperature: float = Field(default=0.02, gt=0)


@dataclass(frozen=True, slots=True)
class QuestionPush:
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
class GradientReport:
    """Means over the questions of one checkpoint.

    Attributes:
        model: its name.
        fingerprint: of the model.
        n: questions measured.
        errors: questions that gave an error, by reason.
        unusable: records that could not be asked, by reason.
        helpful: mean share of helpful candidates: what chance gives for the two that follow.
        probability_helpful: mean probability on helpful candidates.
        push_helpful: mean share of the gradient's upward push on helpful candidates.
        probability_gold: mean probability on gold documents.
        ci95: bootstrap intervals of ``probability_helpful``, ``push_helpful`` and ``probability_gold``.
        rows: the questions.
    """

    model: str
    fingerprint: str
    n: int
    errors: dict[str, int]
    unusable: dict[str, int]
    helpful: float
    probability_helpful: float
    push_helpful: float
    probability_gold: float
    ci95: dict[str, Interval]
    rows: tuple[QuestionPush, ...]

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)

    def by_rank(self, name: str) -> list[float]:
        """Mean ``probability`` or ``push`` by likelihood of the answer, for the ranks that every question has."""
        rows = [getattr(row, name) for row in self.rows]
        return [fmean(row[rank] for row in rows) for rank in range(min(map(len, rows)))]


def selection_gradients(
    model: AnswerModel,
    insight: Insight,
    records: Sequence[DataRecord],
    settings: GradientSettings,
    *,
    progress: Progress | None = None,
) -> GradientReport:
    """Measure one checkpoint; a document longer than the window gives a candidate a window.

    Raises:
        RecordError: no question can be asked.
        ConfigError: the rate is not served.
    """
    chosen = choose(records, settings.limit)
    asker, errors, rows = Asker(model, rate=settings.rate), dict[str, int](), list[QuestionPush]()
    for question in counted(chosen.questions, progress):
        made = _question(asker, insight, question, settings)
        if isinstance(made, Failure):
            errors[made.reason] = errors.get(made.reason, 0) + 1
        else:
            rows.append(made)
    shares = {
        "probability_helpful": [row.probability_helpful for row in rows],
        "push_helpful": [row.push_helpful for row in rows if row.push_helpful is not None],
        "probability_gold": [row.probability_gold for row in rows],
    }
    means = {name: fmean(values) if values else 0.0 for name, values in shares.items()}
    return GradientReport(
        model=model.name,
        fingerprint=model.fingerprint,
        n=len(rows),
        errors=errors,
        unusable=dict(chosen.unusable),
        helpful=fmean(row.helpful for row in rows) if rows else 0.0,
        ci95={name: bootstrap_interval(v, seed=settings.seed) for name, v in shares.items() if v},
        rows=tuple(rows),
        **means,
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


def push_of(row_id: str, found: SelectionGradient, gold: Sequence[bool]) -> QuestionPush:
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
    return QuestionPush(
        id=row_id,
        helpful=float(raises.mean()),
        probability_helpful=float(found.probability[raises].sum()),
        probability_gold=float(found.probability[np.asarray(gold)].sum()),
        push_helpful=float(upward[raises].sum() / upward.sum()) if upward.sum() > 0 else None,
        probability=tuple(found.probability[order].tolist()),
        push=tuple((push[order] / (total or 1.0)).tolist()),
    )


def _question(asker: Asker, insight: Insight, question: MultiHop, settings: GradientSettings) -> QuestionPush | Failure:
    query, windows = asker.query(question.question), asker.windows(question.docs)
    if isinstance(query, Failure):
        return query
    memories, gold = list[Memory](), list[bool]()
    for index, found in enumerate(windows):
        if isinstance(found, Failure):
            return found
        memories.extend(found)
        gold.extend([index in question.gold] * len(found))
    try:
        gradient = insight.selection_gradient(
            question.question,
            query,
            memories,
            question.answers[0],
            k=min(settings.k, len(memories)),
            temperature=settings.temperature,
        )
    except (RuntimeError, MemoryError) as error:  # the question does not fit the machine; others may
        return Failure(error.with_traceback(None))
    return push_of(question.id, gradient, gold)
