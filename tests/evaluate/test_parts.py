"""The parts of an evaluation: errors that stay with their item, memories, ranking, settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bag_model import BagModel
from clara.config import check
from clara.data import DocText
from clara.errors import ConfigError, ModelError
from clara.evaluate.cache import Cache, Failure, each, unwrap
from clara.evaluate.contexts import DocumentMemories, rank_documents
from clara.evaluate.run import _GridBlock
from clara.evaluate.system import Context, answer_all
from clara.records import GenerationRequest, Memory, QueryMemory


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


def test_a_batch_with_another_number_of_results_is_no_items_fault() -> None:
    def short(batch: Sequence[int]) -> list[int]:
        return list(batch)[1:]

    with pytest.raises(ModelError, match="1 results for a batch of 2"):
        each([1, 2], lambda batch: each(batch, short))


def test_unwrapping_raises_the_first_failure() -> None:
    assert unwrap([1, 2]) == [1, 2]
    with pytest.raises(KeyError, match="first"):
        unwrap([1, Failure(KeyError("first")), Failure(ValueError("second"))])


def test_answers_come_in_order_though_the_longest_is_asked_first() -> None:
    model = BagModel()
    texts = ("Ann met Bo.", "Ann met Bo in Ullmere by the old tarn.", "")
    contexts: list[Context | Failure] = [
        Context(GenerationRequest("Who?", texts=(text,) if text else ()), tokens=len(text)) for text in texts
    ]
    contexts.insert(1, Failure(ValueError("no context")))
    answers = answer_all(model, contexts, batch_size=2, max_new_tokens=4)
    assert [request.texts for request in model.requests] == [(texts[1],), (texts[0],), ()]
    assert answers[1] is contexts[1]
    alone = [model.generate_many([item.request])[0].text for item in contexts if isinstance(item, Context)]
    assert [answer.text for answer in answers if not isinstance(answer, Failure)] == alone


def test_an_interrupt_ends_the_run() -> None:
    def stopped(_batch: Sequence[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        each([1, 2], stopped)


def test_a_document_is_compressed_again_only_after_the_cache_dropped_it() -> None:
    first, second = DocText("A", "alpha beta."), DocText("B", "gamma delta.")
    model = BagModel()
    memories = DocumentMemories(model, None, Cache())
    memories.of([first, second, first])
    memories.of([first])
    assert model.compressed.count("A\nalpha beta.") == 1
    small = DocumentMemories(model, None, Cache(budget_bytes=1))
    for doc in (first, second, first):
        small.of([doc])
    assert model.compressed.count("A\nalpha beta.") == 3


def test_a_document_longer_than_the_window_has_a_memory_for_each_part() -> None:
    model = BagModel(window_tokens=16)
    docs = [DocText("First", "One fact. Another one. " * 6), DocText("Next", "A third.")]
    found = DocumentMemories(model, None, Cache()).of(docs)
    counts = [len(windows) for windows in found if not isinstance(windows, Failure)]
    assert counts[0] > counts[1] == 1
    assert sorted(text.partition("\n")[0] for text in model.compressed) == ["First"] * counts[0] + ["Next"]
    assert max(len(model.token_spans(text)) for text in model.compressed) <= 16


VECTOR = st.lists(st.integers(-4, 4), min_size=4, max_size=4)


@given(query=VECTOR, docs=st.lists(st.lists(VECTOR, min_size=1, max_size=3), min_size=1, max_size=6))
def test_ranking_is_by_the_nearest_window(query: list[int], docs: list[list[list[int]]]) -> None:
    def memory(values: list[int]) -> Memory:
        return Memory(np.array(values, dtype=np.float32).reshape(2, 2), "f", 4, 8)

    def cosine(a: list[int], b: list[int]) -> float:
        norm = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / norm if norm else 0.0

    asked = QueryMemory(memory(query).values, "f", 4, 8)
    order = rank_documents(asked, [[memory(window) for window in doc] for doc in docs])
    best = [max(cosine(query, window) for window in doc) for doc in docs]
    assert sorted(order) == list(range(len(docs)))
    for before, after in itertools.pairwise(order):
        assert best[before] >= best[after] - 1e-6


def test_equal_documents_keep_their_order() -> None:
    same = [Memory(np.ones((2, 2), dtype=np.float32), "f", 4, 8)]
    assert rank_documents(QueryMemory(same[0].values, "f", 4, 8), [same] * 5) == (0, 1, 2, 3, 4)


def test_settings_name_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check(
            _GridBlock, {"given": "golden", "k": 0, "rates": "4", "data": ("nq",), "systems": ()}, source="command line"
        )
    for name in ("given", "k", "rates", "systems"):
        assert f"{name}: " in str(caught.value)
