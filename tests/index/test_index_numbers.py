"""The stored number format and the orders of ranking, each against a slow twin."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_rows import MODEL, values

from clara.errors import StoreError
from clara.index import codec
from clara.index.ranking import RRF_CONSTANT, Ranked, best, fusion_depth, reciprocal_rank_fusion

IDS = st.text("abc", min_size=1, max_size=3)
RANKING = st.lists(IDS, unique=True, max_size=8).map(lambda ids: [Ranked(one, 0.0) for one in ids])


def test_dot_decodes_every_finite_fp16_exactly() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = patterns[np.isfinite(patterns)]
    assert len(finite) == 63_488
    one = np.ones(1, dtype=np.float32)
    np.testing.assert_array_equal(codec.dot(finite.reshape(-1, 1), one), finite.astype(np.float32))


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 64), (300, 1152), (9, 36_864), (3, 200_000)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_dot_against_its_slow_twin(rows: int, width: int, scale: float) -> None:
    ramp = np.sin(np.arange(rows * width, dtype=np.float64) * 0.37).reshape(rows, width)
    stored = (ramp * scale).astype(np.float16)
    query = np.cos(np.arange(width, dtype=np.float64) * 0.11)
    query /= np.linalg.norm(query)
    slow = stored.astype(np.float64) @ query
    lengths = np.linalg.norm(stored.astype(np.float64), axis=1)
    fast = codec.dot(stored, query.astype(np.float32))
    # In units of cosine: what the search's margin must cover.
    assert np.abs((fast - slow) / np.maximum(lengths, 1e-30)).max() < 2e-6
    np.testing.assert_allclose(codec.norms(stored), lengths, rtol=1e-6)


def test_cosine_depends_on_the_two_vectors_alone() -> None:
    stored = np.stack([values(i).reshape(-1) for i in range(7)]).astype(np.float16)
    query = values("query").reshape(-1)
    slow = [
        float(row.astype(np.float64) @ query / np.linalg.norm(row.astype(np.float64)) / np.linalg.norm(query))
        for row in stored
    ]
    alone = [codec.cosine(row.copy(), query) for row in stored]
    assert alone == pytest.approx(slow, abs=1e-7)
    assert alone == [codec.cosine(row, query) for row in np.repeat(stored, 2, axis=0)[::2]]
    assert codec.cosine(stored[0], np.zeros_like(query)) == 0.0


@given(st.lists(st.floats(-65_504, 65_504, width=32), min_size=1, max_size=40))
def test_stored_memories_are_the_nearest_fp16(numbers: list[float]) -> None:
    memory = np.array([numbers], dtype=np.float32)
    back = codec.decode(codec.encode(memory, name="p"), (1, len(numbers)))
    assert back.dtype == np.float32
    # Half a step of fp16: 2^-11 of the value, or half of its smallest number.
    assert (np.abs(back - memory) <= np.maximum(np.abs(memory) * 2.0**-11, 2.0**-25)).all()


@pytest.mark.parametrize("value", [65_505.0, -65_520.0, 1e30])
def test_values_beyond_fp16_are_refused_not_stored_as_infinite(value: float) -> None:
    memory = values("big")
    memory[2, 3] = value
    with pytest.raises(StoreError, match=r"passage p7: a memory value of .* does not fit fp16"):
        codec.encode(memory, name="passage p7")
    assert memory.shape == (MODEL.memory_tokens, MODEL.width)


@given(RANKING, RANKING)
def test_reciprocal_rank_fusion_against_fractions(left: list[Ranked], right: list[Ranked]) -> None:
    slow: dict[str, Fraction] = {}
    for ranking in (left, right):
        for place, item in enumerate(ranking):
            slow[item.id] = slow.get(item.id, Fraction(0)) + Fraction(1, RRF_CONSTANT + place + 1)
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
