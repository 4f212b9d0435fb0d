"""Results of a system on a task: a row a question, means with intervals, and their origin.

Answers are scored by ``clara.metrics``, rankings by ir-measures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from statistics import fmean, median
from typing import Any

from clara.data import Question
from clara.errors import InputError, optional
from clara.evaluate.journal import Entry
from clara.evaluate.questions import Group, Setting, Task
from clara.evaluate.system import Given, Prediction
from clara.metrics import (
    Abstention,
    AnswerScores,
    Interval,
    ScoringName,
    abstention,
    bootstrap_interval,
    mean_of_known,
    score_answer,
    scoring_rule,
)

_MEASURES = ("R@1", "R@3", "R@5", "R@10", "P@1", "P@3", "P@5", "nDCG@10", "RR")
"""ir-measures' names; ``RR`` averages to MRR."""
_SHOWN_REASONS = 5


def plain(value: object) -> Any:  # noqa: ANN401 - as JSON has it
    """A record as plain JSON values, without its rows; an interval is [low, high]."""
    if isinstance(value, Interval):
        return [value.low, value.high]
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.name != "rows"}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@dataclass(frozen=True, slots=True)
class Scoring:
    """Rule (``metrics.score_answer``), bootstrap resamples, and seed of bootstrap and permutation tests."""

    rule: ScoringName = "squad"
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    """A question's row; other fields as in ``Prediction``.

    There is no prediction after an error or from a system that only ranks, no scores without a gold answer, and no
    ranking's measures where nothing was ranked or nothing is gold.
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
        """Flat JSON object; missing scores are null."""
        scores = asdict(self.scores) if self.scores else dict.fromkeys(("em", "f1", "cover_em"))
        flat: dict[str, object] = {}
        for field in fields(self):
            flat.update(scores if field.name == "scores" else {field.name: plain(getattr(self, field.name))})
        return flat


@dataclass(frozen=True, slots=True)
class Result:
    """Scores of a system on a task: means over the answered questions; the task's fields are as in ``Task``.

    Attributes:
        rate: as asked for; None is the model's default, or no compression.
        n: answers scored; 0 for a system that only ranks.
        em: mean over answerable questions, None if none was scored; ``f1`` and ``cover_em`` likewise.
        ranked: questions in the means ``retrieval``.
        without_gold: ranked questions outside them, as no document is known to be gold.
        abstention: None where all questions have an answer.
        errors: questions that gave an error; they are in no mean.
        context_tokens: mean positions of context; ``compressed_to``: mean share of the documents' tokens.
        first_token_seconds: median over the timed questions.
        origins: ``Provenance`` of each process that made predictions.
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
    n: int
    em: float | None
    f1: float | None
    cover_em: float | None
    ci95: Mapping[str, Interval] | None
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
    rows: tuple[_Row, ...]

    @property
    def label(self) -> str:
        """The system, with its rate."""
        return self.system if self.rate is None else f"{self.system} {self.rate}x"

    @property
    def group(self) -> Group:
        """Key of comparable results."""
        return Group(self.data, self.data_sha256, self.setting, self.given, self.k)

    def common_errors(self) -> list[tuple[str, int]]:
        """The first reasons of errors, each with its number of questions."""
        return list(self.error_reasons.items())[:_SHOWN_REASONS]

    def f1_by_question(self) -> dict[str, float]:
        """F1 of each scored question; repeated identifiers are told apart by their index."""
        return {f"{index}:{row.id}": row.scores.f1 for index, row in enumerate(self.rows) if row.scores is not None}


def score(
    task: Task,
    entries: Sequence[Entry],
    *,
    system: str,
    fingerprint: str,
    rate: int | None,
    key: str,
    scoring: Scoring,
    origins: tuple[Mapping[str, object], ...] = (),
) -> Result:
    """Score a run, given an entry for each question of the task; the rest is as in ``Result``."""
    rankings, without_gold = _score_rankings(task, entries)
    rows = [
        _row(question, entry, ranking, rule=scoring_rule(scoring.rule, question.source))
        for question, entry, ranking in zip(task.questions, entries, rankings, strict=True)
    ]
    scores = [row.scores for row in rows if row.scores is not None]
    reasons = Counter(row.error for row in rows if row.error is not None)
    values = {name: [getattr(score, name) for score in scores] for name in ("em", "f1", "cover_em")}
    intervals = {
        name: bootstrap_interval(own, resamples=scoring.resamples, seed=scoring.seed)
        for name, own in values.items()
        if own
    }
    seconds = [row.first_token_seconds for row in rows if row.first_token_seconds is not None]
    return Result(
        data=task.data,
        data_sha256=task.data_sha256,
        setting=task.setting,
        candidates=task.candidates,
        given=task.given,
        system=system,
        fingerprint=fingerprint,
        rate=rate,
        k=task.k,
        max_new_tokens=task.max_new_tokens,
        key=key,
        n=len(scores),
        em=mean_of_known(values["em"]),
        f1=mean_of_known(values["f1"]),
        cover_em=mean_of_known(values["cover_em"]),
        ci95=intervals or None,
        retrieval=_mean_scores([row.ranking for row in rows if row.ranking is not None]),
        ranked=sum(row.ranking is not None for row in rows),
        without_gold=without_gold,
        abstention=_abstention(rows),
        errors=reasons.total(),
        error_reasons=dict(reasons),
        context_tokens=mean_of_known(row.context_tokens for row in rows),
        compressed_to=mean_of_known(row.compressed_to for row in rows),
        first_token_seconds=median(seconds) if seconds else None,
        origins=origins,
        rows=tuple(rows),
    )


def grouped(results: Sequence[Result]) -> dict[Group, list[Result]]:
    """Results by group, in order of first appearance (InputError: a group has two results of one system)."""
    groups: dict[Group, list[Result]] = {}
    for result in results:
        own = groups.setdefault(result.group, [])
        if any(other.label == result.label for other in own):
            raise InputError(
                f"two results of {result.label} on {result.data} {result.setting}, given {result.given}, "
                f"k {result.k}: a report holds one"
            )
        own.append(result)
    return groups


def _ranking_values(
    rankings: Sequence[Sequence[int]], gold: Sequence[Collection[int]], missing: Sequence[int]
) -> list[dict[str, float]]:
    """Every measure, 0 to 1, of each question's ranking (candidate indices, best first, each once).

    ``gold`` holds indices of relevant candidates, ``missing`` counts relevant documents outside the candidates, which
    lower recall. A question needs at least one relevant document.
    """
    ir_measures = optional("ir_measures", package="ir-measures", extra="eval")
    qrels, run = [], []
    for number, (ranking, relevant, away) in enumerate(zip(rankings, gold, missing, strict=True)):
        name = str(number)
        qrels += [ir_measures.Qrel(name, str(index), 1) for index in relevant]
        qrels += [ir_measures.Qrel(name, f"missing-{index}", 1) for index in range(away)]
        # Scores fall with the rank, so that nothing is left to how ties are broken.
        run += [ir_measures.ScoredDoc(name, str(index), -float(rank)) for rank, index in enumerate(ranking)]
    measures = [ir_measures.parse_measure(name) for name in _MEASURES]
    scored: list[dict[str, float]] = [dict.fromkeys(_MEASURES, 0.0) for _ in rankings]
    for metric in ir_measures.iter_calc(measures, qrels, run):
        scored[int(metric.query_id)][str(metric.measure)] = float(metric.value)
    return scored


def _mean_scores(scored: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    if not scored:
        return None
    return {name: fmean(values[name] for values in scored) for name in _MEASURES}


def _score_rankings(task: Task, entries: Sequence[Entry]) -> tuple[list[Mapping[str, float] | None], int]:
    """Retrieval measures of each question, and the number of rankings without gold."""
    values: list[Mapping[str, float] | None] = [None] * len(entries)
    if task.given == "gold":  # there is nothing to rank
        return values, 0
    ranked = {
        index: entry.ranking
        for index, entry in enumerate(entries)
        if isinstance(entry, Prediction) and entry.ranking is not None
    }
    usable = [index for index in ranked if task.questions[index].gold or task.questions[index].elsewhere]
    if usable:
        scored = _ranking_values(
            [ranked[index] for index in usable],
            [task.questions[index].gold for index in usable],
            [len(task.questions[index].elsewhere) for index in usable],
        )
        for index, value in zip(usable, scored, strict=True):
            values[index] = value
    return values, len(ranked) - len(usable)


def _row(question: Question, entry: Entry, ranking: Mapping[str, float] | None, *, rule: ScoringName) -> _Row:
    answers = question.answers
    if isinstance(entry, str):
        return _Row(question.id, None, None, ranking, (), question.unanswerable, None, None, None, entry)
    return _Row(
        id=question.id,
        prediction=entry.text,
        scores=score_answer(entry.text, answers, rule=rule) if entry.text is not None and answers else None,
        ranking=ranking,
        used=entry.used,
        unanswerable=question.unanswerable,
        context_tokens=entry.context_tokens,
        first_token_seconds=entry.first_token_seconds,
        compressed_to=entry.compressed_to,
        error=None,
    )


def _abstention(rows: Sequence[_Row]) -> Abstention | None:
    answered = [row for row in rows if row.prediction is not None]
    if not any(row.unanswerable for row in answered):
        return None
    return abstention([row.prediction or "" for row in answered], [row.unanswerable for row in answered])
