"""What a system reached on a data set: one row a question, means with intervals, and what they stand on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from types import MappingProxyType
from typing import Literal

from clara.data import Question
from clara.evaluate.journal import Entry
from clara.evaluate.result import Intervals
from clara.evaluate.retrieval import mean_scores, score_rankings
from clara.metrics import (
    Abstention,
    AnswerScores,
    Interval,
    abstention,
    bootstrap_interval,
    score_answer,
)

Setting = Literal["oracle", "normal"]
Given = Literal["gold", "candidates"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What a result is about; with the replies it decides every number.

    Attributes:
        data: the data set's name.
        data_sha256: of its file.
        setting: ``oracle`` or ``normal`` (clara.md section 8).
        candidates: where the candidate documents came from.
        given: what the system saw of them.
        system: the system's name.
        fingerprint: of its weights and settings.
        rate: compression rate that was asked for; None is the model's default, or no compression.
        k: documents in the prompt.
        max_new_tokens: longest answer.
        key: of the run's journal.
    """

    data: str
    data_sha256: str
    setting: Setting
    candidates: str
    given: Given
    system: str
    fingerprint: str
    rate: int | None
    k: int
    max_new_tokens: int
    key: str

    @property
    def label(self) -> str:
        """The system, with its rate."""
        return self.system if self.rate is None else f"{self.system} {self.rate}x"


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One question.

    Attributes:
        id: the question's identifier.
        prediction: None after an error, or from a system that only ranks.
        scores: of the prediction; None where there is none, or no gold answer to compare it with.
        ranking: value of each retrieval measure; None where nothing was ranked or nothing is gold.
        used: indices of the documents that the answer was made from.
        unanswerable: whether the right reply is that there is no answer.
        context_tokens: positions of context that were read.
        first_token_seconds: None where it was not timed.
        compressed_to: share of the documents' tokens that the context takes; None where nothing is compressed.
        error: kind and message, None if there was none.
    """

    id: str
    prediction: str | None
    scores: AnswerScores | None
    ranking: Mapping[str, float] | None
    used: tuple[int, ...]
    unanswerable: bool
    context_tokens: int | None
    first_token_seconds: float | None
    compressed_to: float | None
    error: str | None

    def to_json(self) -> dict[str, object]:
        """One flat object; scores are null where there are none."""
        scores = self.scores
        return {
            "id": self.id,
            "prediction": self.prediction,
            "em": scores.em if scores else None,
            "f1": scores.f1 if scores else None,
            "cover_em": scores.cover_em if scores else None,
            "ranking": dict(self.ranking) if self.ranking is not None else None,
            "used": list(self.used),
            "unanswerable": self.unanswerable,
            "context_tokens": self.context_tokens,
            "first_token_seconds": self.first_token_seconds,
            "compressed_to": self.compressed_to,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class SystemResult:
    """Means over the questions that were answered.

    Attributes:
        subject: what was measured.
        n: answers scored; 0 for a system that only ranks.
        em: mean exact match over answerable questions, None if none was scored; ``f1``, ``cover_em`` likewise.
        f1: mean token F1.
        cover_em: mean cover-EM.
        ci95: intervals of the three.
        retrieval: mean of each measure in ``retrieval.MEASURES`` over the ranked questions; None if there are none.
        ranked: questions in ``retrieval``.
        without_gold: ranked questions that it leaves out because no document is known to be gold.
        abstention: against the unanswerable questions; None where all questions have an answer.
        errors: questions that gave an error; they are in no mean.
        error_reasons: the same by reason.
        context_tokens: mean positions of context.
        compressed_to: mean share of the documents' tokens.
        first_token_seconds: median time to the first token, where it was timed.
        origins: command, commit and machine of the replies, one for each process that made some.
        rows: one a question, in order.
    """

    subject: Subject
    n: int
    em: float | None
    f1: float | None
    cover_em: float | None
    ci95: Intervals | None
    retrieval: Mapping[str, float] | None
    ranked: int
    without_gold: int
    abstention: Abstention | None
    errors: int
    error_reasons: Mapping[str, int]
    context_tokens: float | None
    compressed_to: float | None
    first_token_seconds: float | None
    origins: tuple[Mapping[str, object], ...]
    rows: tuple[ScoredRow, ...]

    def to_json(self) -> dict[str, object]:
        """Plain values, without the rows."""
        intervals = None
        if self.ci95 is not None:
            named = {"em": self.ci95.em, "f1": self.ci95.f1, "cover_em": self.ci95.cover_em}
            intervals = {name: [interval.low, interval.high] for name, interval in named.items()}
        return {
            **asdict(self.subject),
            "n": self.n,
            "em": self.em,
            "f1": self.f1,
            "cover_em": self.cover_em,
            "ci95": intervals,
            "retrieval": dict(self.retrieval) if self.retrieval is not None else None,
            "ranked": self.ranked,
            "without_gold": self.without_gold,
            "abstention": asdict(self.abstention) if self.abstention is not None else None,
            "errors": self.errors,
            "error_reasons": dict(self.error_reasons),
            "context_tokens": self.context_tokens,
            "compressed_to": self.compressed_to,
            "first_token_seconds": self.first_token_seconds,
            "origins": [dict(origin) for origin in self.origins],
        }


def score(
    subject: Subject,
    questions: Sequence[Question],
    entries: Sequence[Entry],
    *,
    origins: tuple[Mapping[str, object], ...] = (),
    yes_no: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> SystemResult:
    """Score what a system replied.

    Args:
        subject: what was measured.
        questions: as they were asked.
        entries: what came of each.
        origins: where the entries come from.
        yes_no: HotpotQA's rule for answers that are yes or no (``metrics.score_answer``).
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    rankings, without_gold = _score_rankings(questions, entries, subject.given)
    rows = [
        _row(question, entry, ranking, yes_no=yes_no)
        for question, entry, ranking in zip(questions, entries, rankings, strict=True)
    ]
    scores = [row.scores for row in rows if row.scores is not None]
    reasons = Counter(row.error for row in rows if row.error is not None)

    def interval(values: list[float]) -> Interval:
        return bootstrap_interval(values, resamples=resamples, seed=seed)

    return SystemResult(
        subject=subject,
        n=len(scores),
        em=_mean([score.em for score in scores]),
        f1=_mean([score.f1 for score in scores]),
        cover_em=_mean([score.cover_em for score in scores]),
        ci95=Intervals(
            em=interval([score.em for score in scores]),
            f1=interval([score.f1 for score in scores]),
            cover_em=interval([score.cover_em for score in scores]),
        )
        if scores
        else None,
        retrieval=mean_scores([dict(row.ranking) for row in rows if row.ranking is not None]),
        ranked=sum(row.ranking is not None for row in rows),
        without_gold=without_gold,
        abstention=_abstention(rows),
        errors=reasons.total(),
        error_reasons=MappingProxyType(dict(reasons)),
        context_tokens=_mean([row.context_tokens for row in rows if row.context_tokens is not None]),
        compressed_to=_mean([row.compressed_to for row in rows if row.compressed_to is not None]),
        first_token_seconds=_median([row.first_token_seconds for row in rows if row.first_token_seconds is not None]),
        origins=origins,
        rows=tuple(rows),
    )


def _score_rankings(
    questions: Sequence[Question], entries: Sequence[Entry], given: Given
) -> tuple[list[Mapping[str, float] | None], int]:
    """For each question the values of its ranking, and how many rankings have nothing gold.

    Where only gold documents are given there is nothing to rank.
    """
    if given == "gold":
        return [None] * len(questions), 0
    ranked = [
        place for place, entry in enumerate(entries) if entry.reply is not None and entry.reply.ranking is not None
    ]
    usable = [place for place in ranked if questions[place].gold or questions[place].elsewhere]
    replies = [entries[place].reply for place in usable]
    values = (
        score_rankings(
            [reply.ranking or () for reply in replies if reply is not None],
            [questions[place].gold for place in usable],
            missing=[len(questions[place].elsewhere) for place in usable],
        )
        if usable
        else []
    )
    found: list[Mapping[str, float] | None] = [None] * len(questions)
    for place, value in zip(usable, values, strict=True):
        found[place] = MappingProxyType(value)
    return found, len(ranked) - len(usable)


def _row(question: Question, entry: Entry, ranking: Mapping[str, float] | None, *, yes_no: bool) -> ScoredRow:
    reply = entry.reply
    text = reply.text if reply is not None else None
    answers = question.answers
    return ScoredRow(
        id=question.id,
        prediction=text,
        scores=score_answer(text, answers, yes_no=yes_no) if text is not None and answers else None,
        ranking=ranking,
        used=reply.used if reply is not None else (),
        unanswerable=question.unanswerable,
        context_tokens=reply.context_tokens if reply is not None else None,
        first_token_seconds=reply.first_token_seconds if reply is not None else None,
        compressed_to=reply.compressed_to if reply is not None else None,
        error=entry.error,
    )


def _abstention(rows: Sequence[ScoredRow]) -> Abstention | None:
    answered = [row for row in rows if row.prediction is not None]
    if not any(row.unanswerable for row in answered):
        return None
    return abstention([row.prediction or "" for row in answered], [row.unanswerable for row in answered])


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
