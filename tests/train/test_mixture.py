"""Weighted mixing of sources: proportions, epochs, and the same draws on resuming."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.config import check
from clara.errors import ConfigError
from clara.train.config import TrainConfig
from clara.train.data import _mixture

SOURCES = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=1, max_size=4).filter(
    lambda sources: any(weight for _, weight in sources)
)


@given(sources=SOURCES, seed=st.integers(0, 2**40), length=st.integers(0, 120), cut=st.integers(0, 120))
def test_draws_are_a_pure_function_of_their_index(
    sources: list[tuple[int, float]], seed: int, length: int, cut: int
) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    whole = _mixture(sizes, weights, seed=seed, length=length)
    assert whole.shape == (length, 2)
    assert whole.dtype == np.int64
    short = _mixture(sizes, weights, seed=seed, length=min(cut, length))
    assert (whole[: len(short)] == short).all()
    for source, (size, weight) in enumerate(sources):
        items = whole[whole[:, 0] == source, 1].tolist()
        assert weight > 0 or not items
        for start in range(0, len(items), size):
            epoch = items[start : start + size]
            assert len(set(epoch)) == len(epoch), "an item comes again only in the next epoch of its source"
            assert set(epoch) <= set(range(size))


def test_proportions_follow_the_weights() -> None:
    drawn = _mixture([10, 1000, 5, 7], [1, 2, 0, 1], seed=1, length=20_000)
    counts = Counter(drawn[:, 0].tolist())
    assert set(counts) == {0, 1, 3}
    # Three standard deviations of a binomial share at 20,000 draws: 0.011.
    for source, share in ((0, 0.25), (1, 0.5), (3, 0.25)):
        assert counts[source] / 20_000 == pytest.approx(share, abs=0.011)


def test_seeds_and_epochs_give_other_orders() -> None:
    one = _mixture([50], [1.0], seed=1, length=100)[:, 1]
    assert sorted(one[:50]) == sorted(one[50:]) == list(range(50))
    assert (one[:50] != one[50:]).any()
    assert (one != _mixture([50], [1.0], seed=2, length=100)[:, 1]).any()
    two = _mixture([50, 50], [1.0, 1.0], seed=1, length=400)
    first, second = (two[two[:, 0] == source, 1][:50] for source in (0, 1))
    assert (first != second).any()


def test_draws_of_a_seed_stay_the_same_over_versions() -> None:
    # Written down once: a resumed run of an older version must see the records that it had planned.
    drawn = _mixture([3, 4], [1.0, 2.0], seed=7, length=8)
    assert drawn.tolist() == [[1, 0], [1, 3], [1, 2], [0, 0], [0, 2], [1, 1], [0, 1], [1, 2]]


def test_weights_are_finite() -> None:
    with pytest.raises(ConfigError, match="mix"):
        check(TrainConfig, {"mix": {"a": math.inf}}, source="recipe.toml")
