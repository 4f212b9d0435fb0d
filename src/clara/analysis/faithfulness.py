"""Are an answer's words in the text it cites? A model that reads memories never sees that text.

Tokens are those of SQuAD's normal form. A token can be in a text by chance, so the same answer is also looked up in as
many passages of another question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from clara.analysis.harness import (
    AnalysisReport,
    Asker,
    AskSettings,
    OnProgress,
    choose,
    distractors,
    mean,
    measure_questions,
)
from clara.data import DataRecord, DocText, MultiHop
from clara.evaluate.cache import unwrap
from clara.evaluate.system import AnswerModel
from clara.metrics import Interval, normalize_answer, score_answer
from clara.prompts import passage_text

EMPTY = "answers without a word"


class FaithfulnessSettings(AskSettings):
    """Settings of the analysis.

    Attributes:
        distractors: passages that are not gold, in the prompt and cited beside the gold ones.
    """

    distractors: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class _QuestionFaith:
    """One question.

    Attributes:
        id: the record's.
        prediction: the answer.
        f1: its token F1 with the gold answers.
        found: share of its tokens that are in the cited passages.
        by_chance: share that is in as many passages of the next question.
        missing: the tokens that are not in the cited passages.
    """

    id: str
    prediction: str
    f1: float
    found: float
    by_chance: float
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FaithfulnessReport(AnalysisReport):
    """Means over the questions.

    Attributes:
        found: mean share of answer tokens in the cited text.
        by_chance: mean share in another question's passages.
        whole: share of answers with every token in the cited text.
        wrong_found: mean ``found`` of the answers that share no token with a gold answer; None if there is none. High:
            the model reads the wrong place; low: it invents.
        ci95: bootstrap interval of ``found``.
        rows: the questions.
    """

    found: float
    by_chance: float
    whole: float
    wrong_found: float | None
    ci95: Interval
    rows: tuple[_QuestionFaith, ...]


def faithfulness(
    model: AnswerModel,
    records: Sequence[DataRecord],
    settings: FaithfulnessSettings,
    on_progress: OnProgress | None = None,
) -> FaithfulnessReport:
    """Answer questions from memories and look the answers up in the passages' text.

    Raises:
        RecordError: no question can be asked.
        ConfigError: the rate is not served.
    """
    asker, rng = Asker.of(model, settings), np.random.default_rng(settings.seed)
    shown = [_shown(question, settings.distractors, rng) for question in choose(records, settings.limit).questions]

    def measure(place: int, question: MultiHop) -> _QuestionFaith | str:
        answer = unwrap(asker.answers(question.question, [shown[place]]))[0]
        if not normalize_answer(answer.text):
            return EMPTY
        return row_of(question, answer.text, shown[place], shown[(place + 1) % len(shown)])

    measured = measure_questions(records, settings.limit, measure, on_progress)
    wrong = [row.found for row in measured.rows if row.f1 == 0]
    return FaithfulnessReport(
        **measured.facts(model),
        found=measured.mean(lambda row: row.found),
        by_chance=measured.mean(lambda row: row.by_chance),
        whole=measured.mean(lambda row: float(not row.missing)),
        wrong_found=mean(wrong) if wrong else None,
        ci95=measured.interval(lambda row: row.found, settings.seed),
        rows=measured.rows,
    )


def row_of(question: MultiHop, prediction: str, cited: Sequence[DocText], others: Sequence[DocText]) -> _QuestionFaith:
    """One question's shares.

    Args:
        question: for its id and answers.
        prediction: an answer with at least one token.
        cited: the passages it was generated from.
        others: passages of another question.
    """
    tokens = normalize_answer(prediction).split()
    text, other = _tokens(cited), _tokens(others)
    return _QuestionFaith(
        id=question.id,
        prediction=prediction,
        f1=score_answer(prediction, question.answers).f1,
        found=sum(token in text for token in tokens) / len(tokens),
        by_chance=sum(token in other for token in tokens) / len(tokens),
        missing=tuple(token for token in tokens if token not in text),
    )


def _shown(question: MultiHop, count: int, rng: np.random.Generator) -> list[DocText]:
    docs = [question.docs[i] for i in sorted(question.gold)] + distractors(question, count, rng)
    return [docs[i] for i in rng.permutation(len(docs))] if count else docs


def _tokens(docs: Sequence[DocText]) -> frozenset[str]:
    return frozenset(token for doc in docs for token in normalize_answer(passage_text(doc.title, doc.text)).split())
