"""Scores of answers and of rankings, and confidence intervals of their means.

Answers are compared after SQuAD's normalisation (clara.md section 8), by the rule of a published scorer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import regex

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_ONE_WORD_ANSWERS = {"yes", "no", "noanswer"}
_TRIVIAQA_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_TRUTH = {"True": "yes", "False": "no"}

ScoringName: TypeAlias = Literal["squad", "hotpotqa", "triviaqa", "paper", "official"]
"""A published rule, or ``official``: for each question that of its data set."""

_OFFICIAL: Mapping[str, ScoringName] = {"hotpotqa": "hotpotqa", "2wiki": "hotpotqa", "triviaqa": "triviaqa"}
"""Rules of data sets by a question's source; the others (SQuAD, MuSiQue, Natural Questions) score as SQuAD 2.0 does."""
_ABSTENTIONS = frozenset({"unknown", "none", "na", "nothing", "noanswer"})
"""Normal forms that are abstentions as a whole; as parts of an answer they may mean something."""
ABSTENTION_OPENINGS = (
    "unanswerable",
    "no answer",
    "not answerable",
    "not mentioned",
    "not specified",
    "not stated",
    "not given",
    "not provided",
    "not enough information",
    "no information",
    "insufficient information",
    "cannot be answered",
    "cannot be determined",
    "can not be determined",
    "cannot answer",
    "question cannot be answered",
    "i dont know",
    "i do not know",
    "i am not sure",
    "im not sure",
    "it is not mentioned",
    "it is not known",
    "there is no answer",
    "there is no information",
    "background does not",
    "context does not",
    "text does not",
    "passage does not",
)
"""Normal forms (no article, no punctuation) that open an abstention."""
_SIGNS = regex.compile(r"\p{P}")
_MOST_MORE_TOKENS = 10
"""Tokens that an answer may have beside the accepted form: a sentence around it, not a paragraph that has it too."""
# Resampled values held at once by the bootstrap: 32 MB of float64, whatever the number of questions.
_RESAMPLE_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """Scores of one prediction, each the best over the gold answers, each in 0..1.

    Attributes:
        em: 1.0 if both have the same normal form, else 0.0.
        f1: harmonic mean of token precision and recall, tokens of the normal forms counted with their multiplicity;
            of two answers without tokens 1.0, of one 0.0 (SQuAD 2.0).
        cover_em: 1.0 if every token of a gold answer occurs in the prediction, whole, in any order and number, else 0.0
            (clara.md section 8). A gold answer without tokens (``The``) is covered only by a prediction without.
    """

    em: float
    f1: float
    cover_em: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval of a mean: ``low <= high``, in the unit of the values."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Abstention:
    """Abstentions against unanswerable questions, as counts and as rates; a rate without a denominator is None."""

    precision: float | None
    recall: float | None
    abstained: int
    unanswerable: int


def normalize_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no English articles, single spaces.

    Punctuation goes before articles, as in the SQuAD script, so ``a.b`` is one token and ``"The"`` leaves nothing.
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@dataclass(frozen=True, slots=True)
class _Rule:
    """Differences of a published scorer from SQuAD 2.0's.

    Attributes:
        yes_no: where the prediction or the gold answer is ``yes``, ``no`` or ``noanswer``, nothing but the same word
            has an F1 ("no later than May" shares no token with "no").
        cover_yes_no: the same for cover-EM.
        empty: F1 of two answers that normalise to nothing.
        covers_nothing: cover-EM of a gold answer that normalises to nothing; None: 1.0 if the prediction does too.
        first: only the first gold answer counts.
    """

    normal: Callable[[str], str] = normalize_answer
    yes_no: bool = False
    cover_yes_no: bool = False
    empty: float = 1.0
    covers_nothing: float | None = None
    first: bool = False


def _triviaqa_normal(text: str) -> str:
    """Punctuation and underscores separate words, typographic quotation marks too."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_TRIVIAQA_PUNCTUATION)).split())


def _truth_normal(text: str) -> str:
    """SQuAD's normal form; an answer ``True`` or ``False`` is yes or no."""
    return normalize_answer(_TRUTH.get(text, text))


_RULES: Mapping[ScoringName, _Rule] = {
    "squad": _Rule(),
    # The HotpotQA script has no cover-EM; ours leaves no token of a sentence to a bare "no" either.
    "hotpotqa": _Rule(yes_no=True, cover_yes_no=True, empty=0.0),
    "triviaqa": _Rule(normal=_triviaqa_normal, empty=0.0),
    # evaluation/evaluate.py of Apple's release.
    "paper": _Rule(normal=_truth_normal, yes_no=True, empty=0.0, covers_nothing=1.0, first=True),
}


def scoring_rule(name: ScoringName, source: str) -> ScoringName:
    """The rule for a question of a data set: ``official`` is that of the data set."""
    return _OFFICIAL.get(source, "squad") if name == "official" else name


def score_answer(prediction: str, answers: Sequence[str], *, rule: ScoringName = "squad") -> AnswerScores:
    """Score a prediction, for each metric against the gold answer that favours it most.

    ``rule`` names the scorer: ``squad`` (2.0), ``hotpotqa`` (a yes or no counts only as a whole; 2WikiMultihopQA has
    the same), ``triviaqa`` (punctuation separates words), ``paper`` (the CLaRa release: as HotpotQA, ``True`` and
    ``False`` are yes and no, the first gold answer alone). ``official`` needs ``scoring_rule`` and is ``squad`` here.

    Raises:
        ValueError: there is no gold answer; such a question has no score, which is not the same as 0.
    """
    if not answers:
        raise ValueError("a prediction can only be scored against at least one gold answer, got none")
    how = _RULES[scoring_rule(rule, "")]
    predicted = how.normal(prediction).split()
    golds = [how.normal(answer).split() for answer in (answers[:1] if how.first else answers)]
    return AnswerScores(
        em=float(any(predicted == gold for gold in golds)),
        f1=max(_f1(how, predicted, gold) for gold in golds),
        cover_em=max(_cover(how, predicted, gold) for gold in golds),
    )


def is_abstention(prediction: str) -> bool:
    """Abstention by rule: the normal form is empty, one of ``_ABSTENTIONS``, or opens as in ``ABSTENTION_OPENINGS``.

    A sentence that only mentions such words later ("an unknown sailor") is an answer.
    """
    plain = normalize_answer(prediction)
    return (
        not plain or plain in _ABSTENTIONS or any(f"{plain} ".startswith(f"{words} ") for words in ABSTENTION_OPENINGS)
    )


def meets(answer: str, form: str) -> bool:
    """An accepted form occurs in an answer with at most ``_MOST_MORE_TOKENS`` others; yes and no have to come first."""
    tokens, gold = _signless(answer).split(), _signless(form).split()
    if len(tokens) > len(gold) + _MOST_MORE_TOKENS:
        return False
    return tokens[:1] == gold if gold in (["yes"], ["no"]) else contains_form(answer, form)


def contains_form(text: str, form: str) -> bool:
    """A form occurs in a text as a run of whole tokens of SQuAD's normal forms."""
    gold = _signless(form)
    return bool(gold) and f" {gold} " in f" {_signless(text)} "


def _signless(text: str) -> str:
    """SQuAD's normal form, typographic signs left out as ASCII's are."""
    return normalize_answer(_SIGNS.sub("", text))


def abstention(predictions: Sequence[str], unanswerable: Sequence[bool]) -> Abstention:
    """Abstentions against unanswerable questions in the same order (ValueError: lengths differ)."""
    abstained = [is_abstention(prediction) for prediction in predictions]
    right = sum(said and empty for said, empty in zip(abstained, unanswerable, strict=True))
    return Abstention(
        precision=right / sum(abstained) if any(abstained) else None,
        recall=right / sum(unanswerable) if any(unanswerable) else None,
        abstained=sum(abstained),
        unanswerable=sum(unanswerable),
    )


def recall_at_k(ranked: Sequence[Hashable], gold: Collection[Hashable], k: int) -> float:
    """Share of the gold items among the first ``k`` ranked ones.

    Raises:
        ValueError: no gold item (recall is undefined), ``k`` below 1, or an id ranked twice.
    """
    relevant = set(gold)
    if not relevant:
        raise ValueError("recall is undefined without gold items: leave such questions out and count them")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if len(set(ranked)) != len(ranked):
        raise ValueError("a ranking must hold each item once")
    return len(set(ranked[:k]) & relevant) / len(relevant)


def bootstrap_interval(
    values: Sequence[float] | npt.NDArray[np.float64], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """95 % percentile bootstrap interval of the mean of finite ``values`` [questions].

    The same ``seed`` and number of values draw the same questions, so metrics of one run are resampled together.

    Raises:
        ValueError: there is no value, or one that is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size or not np.isfinite(data).all():
        raise ValueError(f"the bootstrap needs finite values, at least one, got {data.size}")
    generator = np.random.default_rng(seed)
    rows = max(1, _RESAMPLE_CELLS // data.size)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        means[start:stop] = data[generator.integers(data.size, size=(stop - start, data.size))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(low=float(low), high=float(high))


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _f1(rule: _Rule, predicted: Sequence[str], gold: Sequence[str]) -> float:
    if rule.yes_no and _at_odds(predicted, gold):
        return 0.0
    if not predicted or not gold:
        return rule.empty if predicted == gold else 0.0
    shared = (Counter(predicted) & Counter(gold)).total()
    return 2 * shared / (len(predicted) + len(gold))


def _cover(rule: _Rule, predicted: Sequence[str], gold: Sequence[str]) -> float:
    if rule.cover_yes_no and _at_odds(predicted, gold):
        return 0.0
    if not gold:
        return float(not predicted) if rule.covers_nothing is None else rule.covers_nothing
    return float(set(gold) <= set(predicted))


def _at_odds(predicted: Sequence[str], gold: Sequence[str]) -> bool:
    one_word = {" ".join(predicted), " ".join(gold)} & _ONE_WORD_ANSWERS
    return bool(one_word) and predicted != gold
