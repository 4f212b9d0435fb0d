"""The outcome of an evaluation: rows, and the figures over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType

from clara.errors import ModelError
from clara.evaluate.settings import EvalConfig
from clara.metrics import AnswerScores, Interval, bootstrap_interval
from clara.records import ContextKind


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One question.

    Attributes:
        id: the record's identifier.
        prediction: the answer, None if there was an error.
        scores: of the prediction, None if there was an error.
        recall_at_5: share of the gold documents among the first 5; None if nothing was ranked or nothing is gold.
        docs: indices of the documents chosen for the prompt, in prompt order (with context ``none`` it shows none of
            them); empty if an error came before the choice.
        error: kind and message, None if there was none.
    """

    id: str
    prediction: str | None
    scores: AnswerScores | None
    recall_at_5: float | None
    docs: tuple[int, ...]
    error: str | None

    def to_json(self) -> dict[str, object]:
        """One flat object; scores are null where there was an error."""
        scores = self.scores
        return {
            "id": self.id,
            "prediction": self.prediction,
            "em": scores.em if scores else None,
            "f1": scores.f1 if scores else None,
            "cover_em": scores.cover_em if scores else None,
            "recall_at_5": self.recall_at_5,
            "docs": list(self.docs),
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class Intervals:
    """95 % bootstrap intervals of the means."""

    em: Interval
    f1: Interval
    cover_em: Interval


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Means over the questions that were answered, and what they stand on.

    Attributes:
        n: questions scored.
        em: mean exact match, 0..1; ``f1`` and ``cover_em`` likewise.
        f1: mean token F1.
        cover_em: mean cover-EM.
        recall_at_5: mean over the questions that were ranked and have gold documents; None if there is none.
        errors: questions that gave an error; they are in no mean.
        ci95: intervals of the three answer scores.
        context: form in which documents were given.
        rate: compression rate of the memories; None if none was made.
        model: the model's name.
        data_sha256: of the data file's bytes.
        fingerprint: of what answered: the model, or a reader in its place.
        rows: one a question, scored or not, in record order.
        error_reasons: errors by kind and message.
        unusable: records that could not be asked, by reason.
        without_gold: ranked questions that recall leaves out because no candidate is marked as gold.
    """

    n: int
    em: float
    f1: float
    cover_em: float
    recall_at_5: float | None
    errors: int
    ci95: Intervals
    context: ContextKind
    rate: int | None
    model: str
    data_sha256: str
    fingerprint: str
    rows: tuple[EvalRow, ...]
    error_reasons: Mapping[str, int]
    unusable: Mapping[str, int]
    without_gold: int

    def to_json(self) -> dict[str, object]:
        """The object that ``clara eval --json`` prints: these keys and no others."""
        intervals = {"em": self.ci95.em, "f1": self.ci95.f1, "cover_em": self.ci95.cover_em}
        return {
            "n": self.n,
            "em": self.em,
            "f1": self.f1,
            "cover_em": self.cover_em,
            "recall_at_5": self.recall_at_5,
            "errors": self.errors,
            "ci95": {name: [interval.low, interval.high] for name, interval in intervals.items()},
            "context": self.context,
            "rate": self.rate,
            "model": self.model,
            "data_sha256": self.data_sha256,
        }


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured: the model, its rate (None without memories) and the data."""

    model: str
    fingerprint: str
    rate: int | None
    data_sha256: str


def summarise(rows: Sequence[EvalRow], config: EvalConfig, subject: Subject, unusable: Mapping[str, int]) -> EvalResult:
    """Average the rows.

    Raises:
        ModelError: every question gave an error.
    """
    scores = [row.scores for row in rows if row.scores is not None]
    reasons = Counter(row.error for row in rows if row.error is not None)
    if not scores:
        listed = "; ".join(f"{count} times {reason}" for reason, count in reasons.most_common(3))
        raise ModelError(f"none of {len(rows)} questions could be answered: {listed}")
    recalls = [row.recall_at_5 for row in rows if row.recall_at_5 is not None]
    ranked = [row for row in rows if config.given == "candidates" and row.docs]

    def interval(values: Sequence[float]) -> Interval:
        return bootstrap_interval(values, resamples=config.resamples, seed=config.seed)

    return EvalResult(
        n=len(scores),
        em=fmean(score.em for score in scores),
        f1=fmean(score.f1 for score in scores),
        cover_em=fmean(score.cover_em for score in scores),
        recall_at_5=fmean(recalls) if recalls else None,
        errors=reasons.total(),
        ci95=Intervals(
            em=interval([score.em for score in scores]),
            f1=interval([score.f1 for score in scores]),
            cover_em=interval([score.cover_em for score in scores]),
        ),
        context=config.context,
        rate=subject.rate,
        model=subject.model,
        data_sha256=subject.data_sha256,
        fingerprint=subject.fingerprint,
        rows=tuple(rows),
        error_reasons=MappingProxyType(dict(reasons)),
        unusable=MappingProxyType(dict(unusable)),
        without_gold=len(ranked) - len(recalls),
    )
