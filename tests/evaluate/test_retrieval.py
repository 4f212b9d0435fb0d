"""Ranking measures, significance, Holm and abstention against slow versions written apart from them."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.evaluate.results import _MEASURES, _mean_scores, _ranking_values
from clara.evaluate.statistics import _holm, _paired_p, compare_all
from clara.metrics import recall_at_k


def slow(ranking: list[int], gold: set[int], missing: int) -> dict[str, float]:
    """Each measure from its definition, rank by rank."""
    total = len(gold) + missing
    found: dict[str, float] = {}
    for name in _MEASURES:
        kind, _, depth = name.partition("@")
        top = ranking[: int(depth or len(ranking))]
        hits = [index in gold for index in top]
        if kind == "R":
            found[name] = sum(hits) / total
        elif kind == "P":
            found[name] = sum(hits) / int(depth)
        elif kind == "RR":
            found[name] = next((1 / rank for rank, hit in enumerate(hits, start=1) if hit), 0.0)
        else:
            gain = sum(hit / math.log2(rank + 1) for rank, hit in enumerate(hits, start=1))
            best = sum(1 / math.log2(rank + 1) for rank in range(1, min(total, int(depth)) + 1))
            found[name] = gain / best
    return found


def test_rankings_against_the_definitions() -> None:
    rng = random.Random(0)
    rankings, golds, missing = [], [], []
    for _ in range(60):
        size = rng.randint(1, 22)
        order = rng.sample(range(size), rng.randint(0, size))  # a system may leave candidates out
        gold = set(rng.sample(range(size), rng.randint(0, min(4, size))))
        rankings.append(order)
        golds.append(gold)
        missing.append(rng.randint(0 if gold else 1, 2))
    scored = _ranking_values(rankings, golds, missing)
    for values, order, gold, away in zip(scored, rankings, golds, missing, strict=True):
        assert values == pytest.approx(slow(order, gold, away)), (order, gold, away)
        if not away:
            assert values["R@5"] == pytest.approx(recall_at_k(order, gold, 5))
            assert values["P@3"] == pytest.approx(len(gold & set(order[:3])) / 3)
    means = _mean_scores(scored)
    assert means is not None
    assert means["RR"] == pytest.approx(sum(values["RR"] for values in scored) / 60)
    assert _mean_scores([]) is None


def slow_p(first: list[float], second: list[float]) -> float:
    """Every exchange of the two systems' scores, one by one."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    seen = abs(sum(differences))
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(value >= seen - 1e-12 for value in sums) / len(sums)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 1.0])), min_size=1, max_size=8
    )
)
def test_p_is_that_of_every_exchange(pairs: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    assert _paired_p(first, second) == pytest.approx(slow_p(first, second), abs=1e-9)
    assert _paired_p(first, second) == pytest.approx(_paired_p(second, first), abs=1e-9)


def test_p_of_many_questions_is_near_that_of_the_t_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    first = rng.random(300)
    second = first + rng.normal(0.04, 0.3, 300)
    expected = float(stats.ttest_rel(first, second).pvalue)
    assert 0.002 < expected < 0.1
    assert _paired_p(list(first), list(second)) == pytest.approx(expected, abs=0.005)
    assert _paired_p(list(first), list(first)) == 1.0


def test_holm_by_hand_and_comparisons_on_shared_questions() -> None:
    assert _holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert _holm([0.5, 0.9]) == [1.0, 1.0]
    assert _holm([]) == []
    scores = {"a": {"1": 1.0, "2": 0.5}, "b": {"2": 0.0, "3": 1.0}, "c": {"9": 1.0}}
    found = compare_all(scores)
    assert [(item.first, item.second, item.n, item.difference) for item in found] == [("a", "b", 1, 0.5)]
