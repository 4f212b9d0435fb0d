"""Products with stored vectors and the orders of ranking, each against a slow twin."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_rows import values

from clara.index.ranking import Ranked, best, cosines, dot, fusion_depth, reciprocal_rank_fusion

IDS = st.text("abc", min_size=1, max_size=3)
RANKING = st.lists(IDS, unique=True, max_size=8).map(lambda ids: [Ranked(one, 0.0) for one in ids])


def test_dot_decodes_every_finite_fp16_exactly() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = patterns[np.isfinite(patterns)]
    assert len(finite) == 63_488
    one = np.ones(1, dtype=np.float32)
    np.testing.assert_array_equal(dot(finite.reshape(-1, 1), one), finite.astype(np.float32))


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 64), (300, 1152), (9, 36_864), (3, 200_000)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_dot_against_its_slow_twin(rows: int, width: int, scale: float) -> None:
    ramp = np.sin(np.arange(rows * width, dtype=np.float64) * 0.37).reshape(rows, width)
    stored = (ramp * scale).astype(np.float16)
    query = np.cos(np.arange(width, dtype=np.float64) * 0.11)
    query /= np.linalg.norm(query)
    slow = stored.astype(np.float64) @ query
    lengths = np.linalg.norm(stored.astype(np.float64), axis=1)
    fast = dot(stored, query.astype(np.float32))
    # In units of cosine: what the search's margin must cover.
    assert np.abs((fast - slow) / np.maximum(lengths, 1e-30)).max() < 2e-6


def test_cosines_depend_on_the_two_vectors_alone() -> None:
    memories = np.stack([values(i).reshape(-1) for i in range(7)])
    query = values("query").reshape(-1)
    slow = [float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)) for row in memories.astype(np.float64)]
    alone = [float(cosines(row[None], query)[0]) for row in memories]
    assert alone == pytest.approx(slow, abs=1e-7)
    assert alone == cosines(np.repeat(memories, 2, axis=0)[::2], query).tolist()
    assert not cosines(memories, np.zeros_like(query)).any()
    assert not cosines(np.zeros_like(memories), query).any()


@given(RANKING, RANKING)
def test_reciprocal_rank_fusion_against_fractions(left: list[Ranked], right: list[Ranked]) -> None:
    slow: dict[str, Fraction] = {}
    for ranking in (left, right):
        for place, item in enumerate(ranking):
            slow[item.id] = slow.get(item.id, Fraction(0)) + Fraction(1, 60 + place + 1)
    fused = reciprocal_rank_fusion([left, right])
    assert [item.id for item in fused] == sorted(slow, key=lambda one: (-slow[one], one))
    assert [item.score for item in fused] == pytest.approx([float(slow[item.id]) for item in fused])
    assert reciprocal_rank_fusion([right, left]) == fused


@given(st.lists(st.tuples(IDS, st.sampled_from([0.0, 0.5, 1.0])), unique_by=lambda pair: pair[0]), st.integers(1, 9))
def test_best_orders_by_score_then_id_whatever_the_input_order(pairs: list[tuple[str, float]], k: int) -> None:
    items = [Ranked(one, score) for one, score in pairs]
    found = best(items, k)
    assert found == best(reversed(items), k)
    assert found == sorted(items, key=lambda item: (-item.score, item.id))[:k]


def test_fusion_looks_at_least_fifty_deep() -> None:
    assert [fusion_depth(k) for k in (1, 5, 12, 13, 100)] == [50, 50, 50, 52, 400]
