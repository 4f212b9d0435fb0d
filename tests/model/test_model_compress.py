"""``ClaraModel.compress``: one memory a text, in order, whatever the lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.errors import ConfigError, InputError
from clara.model import ClaraModel
from clara.model import clara_model as module
from clara.model.clara_model import length_batches

TEXTS = ["The tower is 330 metres high and made of iron.", "Bees", "Gutenberg printed in Mainz.", "x" * 60, "Bees"]


@pytest.mark.parametrize("rate", [4, 16])
def test_order_is_kept_and_batches_change_nothing(
    rate: int, tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS_A_BATCH", 40)
    told: list[int] = []
    memories = tiny_model.compress(TEXTS, rate=rate, progress=told.append)
    assert sum(told) == len(TEXTS)
    assert len(told) > 1
    for text, memory in zip(TEXTS, memories, strict=True):
        alone = tiny_model.compress([text], rate=rate)[0]
        assert float(np.abs(memory.values - alone.values).max()) < 1e-4
        assert memory.values.shape == (64 // rate, 32)
        assert memory.rate == rate
        assert memory.token_count == tiny_model.token_count(text)
        assert memory.fingerprint == tiny_model.fingerprint
        assert not memory.values.flags.writeable
    assert float(np.abs(memories[0].values - memories[1].values).max()) > 0.01


def test_questions_share_the_space_until_the_reasoner_is_split(tiny_model: ClaraModel) -> None:
    memory, query = tiny_model.compress(["Who printed?"])[0], tiny_model.encode_queries(["Who printed?"])[0]
    assert np.array_equal(memory.values, query.values)


def test_no_texts(tiny_model: ClaraModel) -> None:
    assert tiny_model.compress([]) == []


def test_the_default_rate_is_the_first(tiny_model: ClaraModel) -> None:
    assert tiny_model.compress(["Bees"])[0].rate == tiny_model.default_rate == 4
    assert tiny_model.memory_tokens() == 16


def test_a_window_exactly_full_and_one_token_over(tiny_model: ClaraModel) -> None:
    unit = " the"
    assert tiny_model.token_count(unit) == 1
    assert tiny_model.compress([unit * 64])[0].token_count == 64
    with pytest.raises(InputError, match=r"text 1 has 65 tokens, one memory takes at most 64; split it .*split_text"):
        tiny_model.compress(["fine", unit * 65])


def test_what_cannot_be_compressed(tiny_model: ClaraModel) -> None:
    with pytest.raises(InputError, match="text 1 is empty; there is nothing to compress"):
        tiny_model.compress(["fine", ""])
    with pytest.raises(InputError, match="the question is empty"):
        tiny_model.encode_queries([""])
    for rate in (0, 8, -4):
        with pytest.raises(ConfigError, match=f"this model serves the rates 4x, 16x, not {rate}x"):
            tiny_model.compress(["fine"], rate=rate)


def test_token_spans_are_those_of_the_ids(tiny_model: ClaraModel) -> None:
    text = "Mainz, naïve café — 330 m"
    spans = tiny_model.token_spans(text)
    assert len(spans) == tiny_model.token_count(text)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)


@given(lengths=st.lists(st.integers(1, 300), max_size=40), budget=st.integers(1, 1000))
def test_length_batches(lengths: list[int], budget: int) -> None:
    batches = length_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
    ordered = [lengths[i] for batch in batches for i in batch]
    assert ordered == sorted(ordered), "like lengths share a batch"
