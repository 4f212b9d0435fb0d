"""The parts of an evaluation: isolation of faults, the memory bank, ranking, settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from bag_model import BagModel
from hypothesis import given
from hypothesis import strategies as st

from clara.config import check
from clara.data import DocText
from clara.errors import ConfigError
from clara.evaluate import EvalConfig
from clara.evaluate.isolation import Failure, each
from clara.evaluate.memories import MemoryBank, rank
from clara.ingest import split
from clara.records import Memory, QueryMemory


@given(st.lists(st.integers(-3, 3), max_size=20))
def test_only_faulty_items_fail(items: list[int]) -> None:
    def invert(batch: Sequence[int]) -> list[float]:
        return [1 / item for item in batch]

    results = each(items, invert)
    assert len(results) == len(items)
    for item, result in zip(items, results, strict=True):
        if item == 0:
            assert isinstance(result, Failure)
            assert result.reason == "ZeroDivisionError: division by zero"
        else:
            assert result == 1 / item


def test_a_batch_too_large_goes_through_in_parts() -> None:
    sizes: list[int] = []

    def limited(batch: Sequence[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 3:
            raise MemoryError
        return [item * 2 for item in batch]

    assert each(range(10), limited) == [item * 2 for item in range(10)]
    assert max(size for size in sizes if size <= 3) > 1


def test_an_interrupt_ends_the_run() -> None:
    def stopped(_batch: Sequence[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each([1, 2], stopped)


def test_a_bank_keeps_a_document_until_its_last_use() -> None:
    first, second = DocText("A", "alpha beta."), DocText("B", "gamma delta.")
    model = BagModel()
    bank = MemoryBank(model, rate=None, splitter=split, uses=[first, second, first])
    bank.fill([first, second, first])
    bank.release([first, second])
    assert len(bank) == 1
    bank.fill([first])
    assert model.compressed.count("A\nalpha beta.") == 1
    bank.release([first])
    assert len(bank) == 0


VECTOR = st.lists(st.integers(-4, 4), min_size=4, max_size=4)


@given(query=VECTOR, docs=st.lists(st.lists(VECTOR, min_size=1, max_size=3), min_size=1, max_size=6))
def test_ranking_is_by_the_nearest_window(query: list[int], docs: list[list[list[int]]]) -> None:
    def memory(values: list[int]) -> Memory:
        return Memory(np.array(values, dtype=np.float32).reshape(2, 2), "f", 4, 8)

    def cosine(a: list[int], b: list[int]) -> float:
        norm = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0

    asked = QueryMemory(memory(query).values, "f", 4, 8)
    order = rank(asked, [[memory(window) for window in doc] for doc in docs])
    best = [max(cosine(query, window) for window in doc) for doc in docs]
    assert sorted(order) == list(range(len(docs)))
    for before, after in itertools.pairwise(order):
        assert best[before] >= best[after] - 1e-6


def test_equal_documents_keep_their_order() -> None:
    same = [Memory(np.ones((2, 2), dtype=np.float32), "f", 4, 8)]
    assert rank(QueryMemory(same[0].values, "f", 4, 8), [same] * 5) == (0, 1, 2, 3, 4)


def test_settings_name_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check(EvalConfig, {"given": "golden", "k": 0, "rates": 4, "resamples": 10}, source="command line")
    for name in ("given", "k", "rates", "resamples"):
        assert f"{name}: " in str(caught.value)
