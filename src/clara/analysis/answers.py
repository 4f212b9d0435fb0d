"""Robustness of answers to perturbed context, and faithfulness: are their words in the cited text?

Robustness has four kinds of perturbation, each a row of conditions measured on the same questions:

    k            the model's own best k of the candidates, k = 1 to 10
    order        gold passages and distractors, the gold ones first, in the middle, last, or all shuffled
    poison       gold passages and distractors, and a copy of a gold passage that gives a wrong answer: none, first,
                 last, or in the place of the gold passage itself
    distractors  gold passages with 0 to 8 others around them, shuffled

A poisoned passage takes its wrong answer from another question, numbers for numbers and words for words.

Faithfulness: a model that reads memories never sees the text that it cites. Tokens are those of SQuAD's normal form; a
token can be in a text by chance, so the same answer is also looked up in as many passages of another question.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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
    shuffled,
)
from clara.data import DataRecord, DocText, MultiHop
from clara.evaluate.cache import Failure, each_one, unwrap
from clara.evaluate.system import AnswerModel
from clara.metrics import AnswerScores, Interval, bootstrap_interval, normalize_answer, recall_at_k, score_answer
from clara.prompts import passage_text

_Perturbation = Literal["k", "order", "poison", "distractors"]
_NOT_LITERAL = "questions for poison: no gold passage holds an answer literally"
_NO_WRONG = "questions for poison: no other question has a wrong answer of the same kind"


class RobustnessSettings(AskSettings):
    """Settings of the analysis; ``around``: distractors beside the gold passages in ``order`` and ``poison``."""

    vary: tuple[_Perturbation, ...] = ("k", "order", "poison", "distractors")
    ks: tuple[int, ...] = tuple(range(1, 11))
    counts: tuple[int, ...] = (0, 1, 2, 4, 8)
    around: int = 4


@dataclass(frozen=True, slots=True)
class _PerturbedPrompt:
    """A prompt's documents, with the share of the gold ones in it.

    ``wrong`` is the answer of the poisoned passage; also set on the clean prompt it is compared with.
    """

    kind: _Perturbation
    condition: str
    docs: tuple[DocText, ...]
    recall: float = 1.0
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class _Condition:
    """Means over ``n`` scored questions; ``wrong_f1``, of ``poison`` alone: F1 with the poisoned passage's answer."""

    kind: _Perturbation
    condition: str
    n: int
    errors: int
    em: float
    f1: float
    cover_em: float
    f1_ci95: Interval
    recall: float
    wrong_f1: float | None


@dataclass(frozen=True, slots=True)
class RobustnessReport(AnalysisReport):
    """Conditions of one model; its errors count prompts."""

    conditions: tuple[_Condition, ...]

    def of(self, kind: str) -> list[_Condition]:
        """Conditions of one perturbation."""
        return [row for row in self.conditions if row.kind == kind]


def robustness(
    model: AnswerModel,
    records: Sequence[DataRecord],
    settings: RobustnessSettings,
    on_progress: OnProgress | None = None,
) -> RobustnessReport:
    """Ask every question under every condition."""
    asker = Asker.of(model, settings)
    pool = choose(records, None).questions  # it begins with the questions that are asked
    scored: defaultdict[tuple[_Perturbation, str], list[_Scored]] = defaultdict(list)
    errors, unusable = Counter[str](), Counter[str]()
    failed: Counter[tuple[_Perturbation, str]] = Counter()

    def measure(index: int, question: MultiHop) -> int:
        rng = np.random.default_rng([settings.seed, index])
        prompts = _static_prompts(question, _wrong_answer(pool, index), settings, rng, unusable)
        if "k" in settings.vary:
            (ranking,) = each_one(asker.ranking, [question.question], [question.docs])
            if isinstance(ranking, Failure):
                errors[ranking.reason] += len(settings.ks)
                failed.update(("k", str(k)) for k in settings.ks)
            else:
                prompts = [*_ranked_prompts(question, ranking, settings.ks), *prompts]
        answers = asker.answers(question.question, [prompt.docs for prompt in prompts])
        for prompt, answer in zip(prompts, answers, strict=True):
            if isinstance(answer, Failure):
                errors[answer.reason] += 1
                failed[prompt.kind, prompt.condition] += 1
            else:
                wrong = None if prompt.wrong is None else score_answer(answer.text, [prompt.wrong]).f1
                row = _Scored(score_answer(answer.text, question.answers), prompt.recall, wrong)
                scored[prompt.kind, prompt.condition].append(row)
        return len(prompts)

    measured = measure_questions(records, settings.limit, measure, on_progress)
    names = [name for name in _names(settings) if name in scored or name in failed]
    return RobustnessReport(
        **replace(measured, errors=errors + measured.errors, unusable=measured.unusable + unusable).facts(model),
        conditions=tuple(_condition(*name, scored[name], failed[name], settings.seed) for name in names),
    )


def _ranked_prompts(question: MultiHop, ranking: Sequence[int], ks: Sequence[int]) -> list[_PerturbedPrompt]:
    return [
        _PerturbedPrompt(
            "k", str(k), tuple(question.docs[i] for i in ranking[:k]), recall_at_k(ranking, question.gold, k)
        )
        for k in ks
        if k <= len(question.docs)
    ]


def _static_prompts(
    question: MultiHop,
    wrong: str | None,
    settings: RobustnessSettings,
    rng: np.random.Generator,
    unusable: Counter[str],
) -> list[_PerturbedPrompt]:
    """Prompts that need no ranking."""
    gold = [question.docs[i] for i in sorted(question.gold)]
    others = distractors(question, max(settings.around, *settings.counts), rng)
    prompts: list[_PerturbedPrompt] = []
    if "order" in settings.vary:
        around = others[: settings.around]
        half = len(around) // 2
        orders = {
            "gold first": [*gold, *around],
            "gold in the middle": [*around[:half], *gold, *around[half:]],
            "gold last": [*around, *gold],
            "shuffled": shuffled([*gold, *around], rng),
        }
        prompts += [_PerturbedPrompt("order", name, tuple(docs)) for name, docs in orders.items()]
    if "poison" in settings.vary:
        prompts += _poisoned(question, wrong, gold, others[: settings.around], unusable)
    if "distractors" in settings.vary:
        for count in settings.counts:
            if count <= len(others):
                docs = shuffled([*gold, *others[:count]], rng)
                prompts.append(_PerturbedPrompt("distractors", str(count), tuple(docs)))
    return prompts


def _wrong_answer(questions: Sequence[MultiHop], index: int) -> str | None:
    """The next question's answer that shares no word and is of the same kind: with digits or without."""
    own = questions[index].answers
    words = {word for answer in own for word in normalize_answer(answer).split()}
    numeric = any(map(str.isdigit, own[0]))
    for step in range(1, len(questions)):
        other = questions[(index + step) % len(questions)].answers[0]
        shared = words & set(normalize_answer(other).split())
        if not shared and normalize_answer(other) and any(map(str.isdigit, other)) == numeric:
            return other
    return None


def _poisoned_copy(doc: DocText, answers: Sequence[str], wrong: str) -> DocText | None:
    """The document with every answer replaced, whatever its case; None if its text has none as whole words."""
    longest = sorted(answers, key=len, reverse=True)
    pattern = r"(?<!\w)(?:" + "|".join(re.escape(answer.strip()) for answer in longest) + r")(?!\w)"
    text, count = re.subn(pattern, lambda _: wrong, doc.text, flags=re.IGNORECASE)
    return DocText(doc.title, text) if count else None


def _poisoned(
    question: MultiHop, wrong: str | None, gold: Sequence[DocText], around: Sequence[DocText], unusable: Counter[str]
) -> list[_PerturbedPrompt]:
    if wrong is None:
        unusable[_NO_WRONG] += 1
        return []
    copies = [_poisoned_copy(doc, question.answers, wrong) for doc in gold]
    poison = next((copy for copy in copies if copy is not None), None)
    if poison is None:
        unusable[_NOT_LITERAL] += 1
        return []
    clean = [*gold, *around]
    replaced = [copy or doc for copy, doc in zip(copies, gold, strict=True)]
    prompts = {
        "none": clean,
        "added first": [poison, *clean],
        "added last": [*clean, poison],
        "instead of gold": [*replaced, *around],
    }
    return [_PerturbedPrompt("poison", name, tuple(docs), wrong=wrong) for name, docs in prompts.items()]


@dataclass(frozen=True, slots=True)
class _Scored:
    answer: AnswerScores
    recall: float
    wrong_f1: float | None


def _condition(kind: _Perturbation, condition: str, rows: Sequence[_Scored], errors: int, seed: int) -> _Condition:
    wrong = [row.wrong_f1 for row in rows if row.wrong_f1 is not None]
    return _Condition(
        kind=kind,
        condition=condition,
        n=len(rows),
        errors=errors,
        em=mean([row.answer.em for row in rows]),
        f1=mean([row.answer.f1 for row in rows]),
        cover_em=mean([row.answer.cover_em for row in rows]),
        f1_ci95=bootstrap_interval([row.answer.f1 for row in rows] or [0.0], seed=seed),
        recall=mean([row.recall for row in rows]),
        wrong_f1=mean(wrong) if wrong else None,
    )


def _names(settings: RobustnessSettings) -> list[tuple[_Perturbation, str]]:
    """Conditions in the order of the report."""
    conditions: dict[_Perturbation, Iterable[object]] = {
        "k": settings.ks,
        "order": ("gold first", "gold in the middle", "gold last", "shuffled"),
        "poison": ("none", "added first", "added last", "instead of gold"),
        "distractors": settings.counts,
    }
    return list(dict.fromkeys((kind, str(condition)) for kind, own in conditions.items() for condition in own))


class FaithfulnessSettings(AskSettings):
    """``distractors``: passages that are not gold, in the prompt and cited beside the gold ones."""

    distractors: int = Field(default=0, ge=0)


@dataclass(frozen=True, slots=True)
class _QuestionFaith:
    """Shares of answer tokens in the cited passages, and in as many passages of the next question (``by_chance``)."""

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
        found: share of answer tokens in the cited text; ``whole``: share of answers with all of them.
        wrong_found: ``found`` of answers that share no token with a gold answer. High: the model reads the wrong place;
            low: it hallucinates.
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
    """Answer questions from memories and look the answers' tokens up in the passages' text."""
    asker, rng = Asker.of(model, settings), np.random.default_rng(settings.seed)
    shown = [_cited(question, settings.distractors, rng) for question in choose(records, settings.limit).questions]

    def measure(index: int, question: MultiHop) -> _QuestionFaith | str:
        answer = unwrap(asker.answers(question.question, [shown[index]]))[0]
        if not normalize_answer(answer.text):
            return "answers without a word"
        return _faith_row(question, answer.text, shown[index], shown[(index + 1) % len(shown)])

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


def _faith_row(
    question: MultiHop, prediction: str, cited: Sequence[DocText], others: Sequence[DocText]
) -> _QuestionFaith:
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


def _cited(question: MultiHop, count: int, rng: np.random.Generator) -> list[DocText]:
    docs = [question.docs[i] for i in sorted(question.gold)] + distractors(question, count, rng)
    return shuffled(docs, rng) if count else docs


def _tokens(docs: Sequence[DocText]) -> frozenset[str]:
    return frozenset(token for doc in docs for token in normalize_answer(passage_text(doc.title, doc.text)).split())
