"""Metrics against known SQuAD cases and against slow versions written apart from them."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clara.metrics
from clara.metrics import (
    AnswerScores,
    abstention,
    bootstrap_interval,
    is_abstention,
    normalize_answer,
    recall_at_k,
    score_answer,
    scoring_rule,
)

WORDS = st.lists(
    st.sampled_from(["a", "the", "An", "cat", "Cat!", "dog", "1,000", "é", "–", "O'Neil", "."]), max_size=7
)
ANSWER = st.one_of(WORDS.map(" ".join), st.text(max_size=20))


def exact_match(prediction: str, answer: str) -> float:
    return score_answer(prediction, [answer]).em


def f1(prediction: str, answer: str) -> float:
    return score_answer(prediction, [answer]).f1


def cover_em(prediction: str, answer: str) -> float:
    return score_answer(prediction, [answer]).cover_em


def slow_normalize(text: str) -> str:
    """Character by character: a word is a maximal run of Unicode word characters once punctuation is gone."""
    kept = [c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"]
    pieces: list[str] = []
    word = ""
    for c in [*kept, " "]:
        if c.isalnum() or c == "_":
            word += c
            continue
        pieces.append(" " if word in {"a", "an", "the"} else word)
        pieces.append(c)
        word = ""
    return " ".join("".join(pieces).split())


def slow_f1(prediction: str, answer: str) -> float:
    left, right = slow_normalize(prediction).split(), slow_normalize(answer).split()
    if not left or not right:
        return 1.0 if left == right else 0.0
    pool, shared = list(right), 0
    for token in left:
        if token in pool:
            pool.remove(token)
            shared += 1
    if shared == 0:
        return 0.0
    precision, recall = shared / len(left), shared / len(right)
    return 2 * precision * recall / (precision + recall)


def slow_cover(prediction: str, answer: str) -> float:
    have, need = slow_normalize(prediction).split(), slow_normalize(answer).split()
    if need == []:
        return 1.0 if have == [] else 0.0
    for token in need:
        if token not in have:
            return 0.0
    return 1.0


@given(ANSWER)
def test_normalisation_agrees_with_the_slow_version(text: str) -> None:
    assert normalize_answer(text) == slow_normalize(text)


@given(ANSWER)
def test_normalisation_of_a_normal_form_keeps_its_tokens_but_articles(text: str) -> None:
    once = normalize_answer(text)
    assert once == " ".join(once.split())
    assert not set(once.split()) & {"a", "an", "the"}


@given(WORDS.map(" ".join), WORDS.map(" ".join))
def test_scores_agree_with_the_slow_versions(prediction: str, answer: str) -> None:
    assert exact_match(prediction, answer) == float(slow_normalize(prediction) == slow_normalize(answer))
    assert math.isclose(f1(prediction, answer), slow_f1(prediction, answer))
    assert cover_em(prediction, answer) == slow_cover(prediction, answer)


@given(ANSWER, ANSWER)
def test_an_exact_match_has_full_f1_and_cover(prediction: str, answer: str) -> None:
    assert f1(prediction, answer) == pytest.approx(f1(answer, prediction))
    if exact_match(prediction, answer):
        assert f1(prediction, answer) == 1.0
        assert cover_em(prediction, answer) == 1.0
    if cover_em(prediction, answer):
        assert f1(prediction, answer) > 0


@pytest.mark.parametrize(
    ("prediction", "answer", "em", "f1_score", "cover"),
    [
        ("The Eiffel Tower.", "eiffel tower", 1, 1, 1),
        ("in the Eiffel Tower in Paris", "Eiffel Tower", 0, 2 * 2 / 7, 1),
        ("Tower Eiffel", "Eiffel Tower", 0, 1, 1),
        ("party", "art", 0, 0, 0),
        ("$1,000", "1000", 1, 1, 1),
        ("U.S.A.", "usa", 1, 1, 1),
        ("Beyonce", "Beyoncé", 0, 0, 0),
        ("beyoncé knowles", "Beyoncé", 0, 2 / 3, 1),
        ("東京", "東京", 1, 1, 1),
        ("1914–1918", "1914-1918", 0, 0, 0),
        ("", "", 1, 1, 1),
        ("", "Paris", 0, 0, 0),
        ("Paris", "", 0, 0, 0),
        ("the", "", 1, 1, 1),
        ("the", "The", 1, 1, 1),
        ("anything", "The", 0, 0, 0),
        ("!?", "Paris", 0, 0, 0),
        ("yes", "Yes.", 1, 1, 1),
        ("no", "yes", 0, 0, 0),
        ("yes, it is", "yes", 0, 0.5, 1),
        ("New York New York", "New York", 0, 2 * 2 / 6, 1),
        ("New York", "New York New York", 0, 2 * 2 / 6, 1),
        ("another day", "other day", 0, 0.5, 0),
    ],
)
def test_known_cases(prediction: str, answer: str, em: float, f1_score: float, cover: float) -> None:
    assert exact_match(prediction, answer) == em
    assert f1(prediction, answer) == pytest.approx(f1_score)
    assert cover_em(prediction, answer) == cover
    assert score_answer(prediction, [answer]) == AnswerScores(em, f1(prediction, answer), cover)


def test_each_metric_takes_its_own_best_answer() -> None:
    scores = score_answer("Barack Hussein Obama", ["President Barack Hussein Obama II", "Obama"])
    assert scores == AnswerScores(em=0.0, f1=6 / 8, cover_em=1.0)


@given(ANSWER, st.lists(ANSWER, min_size=1, max_size=4))
def test_best_over_answers(prediction: str, answers: list[str]) -> None:
    scores = score_answer(prediction, answers)
    assert scores.em == max(exact_match(prediction, a) for a in answers)
    assert scores.f1 == max(f1(prediction, a) for a in answers)
    assert scores.cover_em == max(cover_em(prediction, a) for a in answers)


def test_no_gold_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one gold answer"):
        score_answer("Paris", [])


@given(st.permutations(range(8)), st.sets(st.integers(0, 11), min_size=1), st.integers(1, 12))
def test_recall_agrees_with_counting(ranked: list[int], gold: set[int], k: int) -> None:
    found = sum(1 for rank, item in enumerate(ranked, start=1) if rank <= k and item in gold)
    assert recall_at_k(ranked, gold, k) == found / len(gold)


def test_undefined_rankings_are_refused() -> None:
    with pytest.raises(ValueError, match="undefined without gold"):
        recall_at_k([1, 2], [], 5)
    with pytest.raises(ValueError, match="each item once"):
        recall_at_k([1, 1], [1], 5)
    with pytest.raises(ValueError, match="k must be at least 1"):
        recall_at_k([1, 2], [1], 0)


def test_interval_agrees_with_a_slow_bootstrap() -> None:
    values = [(i / 75) ** 2 for i in range(75)]
    draw = random.Random(7)
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(20_000))
    interval = bootstrap_interval(values, resamples=20_000, seed=3)
    # The standard error of such a quantile is about 0.0007; the interval is 0.14 wide.
    assert interval.low == pytest.approx(means[500], abs=0.005)
    assert interval.high == pytest.approx(means[19_500], abs=0.005)


def test_interval_of_a_proportion_agrees_with_the_normal_approximation() -> None:
    values = [1.0] * 150 + [0.0] * 350
    half = 1.96 * math.sqrt(0.3 * 0.7 / 500)
    interval = bootstrap_interval(values, resamples=5000)
    assert interval.low == pytest.approx(0.3 - half, abs=0.006)
    assert interval.high == pytest.approx(0.3 + half, abs=0.006)


def test_interval_does_not_depend_on_how_the_draws_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0, 1, 37)
    whole = bootstrap_interval(values, seed=5)
    monkeypatch.setattr(clara.metrics, "_RESAMPLE_CELLS", 37 * 11)
    assert bootstrap_interval(values, seed=5) == whole
    assert bootstrap_interval(values, seed=6) != whole


def test_interval_edges() -> None:
    one = bootstrap_interval([0.25])
    assert (one.low, one.high) == (0.25, 0.25)
    for values in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite values, at least one"):
            bootstrap_interval(values)


def slow_hotpot_f1(prediction: str, answer: str) -> float:
    """HotpotQA's rule, from its description: a yes, no or noanswer on either side counts only if both are the same."""
    left, right = slow_normalize(prediction), slow_normalize(answer)
    if left != right and (left in ("yes", "no", "noanswer") or right in ("yes", "no", "noanswer")):
        return 0.0
    return slow_f1(prediction, answer) if left else 0.0


@given(
    prediction=st.sampled_from(["yes", "No.", "no later than May", "Yes, the cat", "the", "noanswer", "cat"]),
    answers=st.lists(st.sampled_from(["yes", "no", "May", "cat", "the", "Yes the cat"]), min_size=1, max_size=3),
)
def test_yes_no_rule(prediction: str, answers: list[str]) -> None:
    plain, ruled = score_answer(prediction, answers), score_answer(prediction, answers, rule="hotpotqa")
    assert ruled.f1 == max(slow_hotpot_f1(prediction, answer) for answer in answers)
    assert ruled.em == plain.em
    assert ruled.cover_em <= plain.cover_em
    assert plain.f1 == max(slow_f1(prediction, answer) for answer in answers)


MAPPED = {"True": "yes", "False": "no"}
PHRASES = st.lists(
    st.sampled_from(["yes", "No", "True", "False", "the", "May", "co-op", "John_Smith", "‘Hi’", "cat", "-", "1,000"]),
    max_size=3,
).map(" ".join)


@given(prediction=PHRASES, answers=st.lists(PHRASES, min_size=1, max_size=3))
def test_the_papers_rule(prediction: str, answers: list[str]) -> None:
    """Written anew from the description of the release: first answer, True is yes, HotpotQA's F1, any-token cover."""
    said, gold = MAPPED.get(prediction, prediction), MAPPED.get(answers[0], answers[0])
    found = score_answer(prediction, answers, rule="paper")
    words, wanted = slow_normalize(said), slow_normalize(gold)
    assert found.em == float(words == wanted)
    assert found.f1 == slow_hotpot_f1(said, gold)
    assert found.cover_em == float(all(token in words.split() for token in wanted.split()))


def test_rules_differ_where_their_scorers_do() -> None:
    assert score_answer("True", ["yes"]).f1 == score_answer("True", ["yes"], rule="hotpotqa").f1 == 0.0
    assert score_answer("True", ["yes"], rule="paper").f1 == 1.0
    assert score_answer("no later", ["no"]).f1 > 0.0 == score_answer("no later", ["no"], rule="hotpotqa").f1
    joined = [score_answer("co op", ["co-op"], rule=rule).em for rule in ("squad", "triviaqa")]
    assert joined == [0.0, 1.0]
    assert score_answer("b", ["x b", "b"], rule="paper").em == 0.0, "the first answer alone"


@pytest.mark.parametrize(
    ("source", "rule"),
    [("hotpotqa", "hotpotqa"), ("2wiki", "hotpotqa"), ("triviaqa", "triviaqa"), ("nq", "squad"), ("own", "squad")],
)
def test_official_is_the_rule_of_the_data_set(source: str, rule: str) -> None:
    assert scoring_rule("official", source) == rule
    assert scoring_rule("paper", source) == "paper"


@pytest.mark.parametrize(
    ("prediction", "abstains"),
    [
        ("", True),
        (" The. ", True),
        ("Unknown.", True),
        ("unanswerable", True),
        ("I don't know.", True),
        ("No answer is given in the passage", True),
        ("The background does not say who built it.", True),
        ("None", True),
        ("an unknown sailor", False),
        ("nothing but the truth", False),
        ("no", False),
        ("no answering machine", False),
        ("Nonesuch Palace", False),
    ],
)
def test_abstention_rule(prediction: str, abstains: bool) -> None:  # noqa: FBT001 - a table
    assert is_abstention(prediction) is abstains


def test_abstention_precision_and_recall() -> None:
    found = abstention(["unknown", "Paris", "no answer", "Rome", "unknown"], [True, True, False, False, True])
    assert (found.precision, found.recall, found.abstained, found.unanswerable) == (2 / 3, 2 / 3, 3, 3)
    none = abstention(["Paris"], [False])
    assert (none.precision, none.recall) == (None, None)
    with pytest.raises(ValueError, match="zip"):
        abstention(["Paris"], [])
