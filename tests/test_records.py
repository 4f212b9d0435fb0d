"""Records check themselves when they are made; prompts word a passage."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.errors import MemoryMismatchError, MissingExtraError, RecordError
from clara.prompts import passage_text
from clara.records import Answer, Citation, Memory, Passage, Quote, Seconds, TokenCounts


def memory(values: npt.NDArray[np.float32]) -> Memory:
    return Memory(values, "0123456789abcdef", 4, 16)


@pytest.mark.parametrize(("start", "end"), [(0, 4), (-1, 4), (5, 4), (2, 5), (0, 6)])
def test_a_passage_whose_offsets_do_not_fit(start: int, end: int) -> None:
    with pytest.raises(RecordError, match=rf"offsets {start}\.\.{end} do not fit a text of 5 characters"):
        Passage("p", "d", "", "hello", start, end)


def test_a_passage_is_frozen() -> None:
    passage = Passage("p", "d", "", "hello", 3, 8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        passage.start = 0  # type: ignore[misc]


def test_a_memory_checks_its_values() -> None:
    with pytest.raises(MemoryMismatchError, match=r"must be float32 \[N, H\], got float64 \(2, 3\)"):
        memory(np.zeros((2, 3)))  # type: ignore[arg-type]
    with pytest.raises(MemoryMismatchError, match=r"got float32 \(6,\)"):
        memory(np.zeros(6, dtype=np.float32))
    for bad in (np.nan, np.inf):
        with pytest.raises(MemoryMismatchError, match="must be finite"):
            memory(np.full((2, 3), bad, dtype=np.float32))


def test_a_memory_cannot_be_written_to() -> None:
    made = memory(np.ones((2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="read-only"):
        made.values[0, 0] = 5


@given(numbers=st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6))
def test_a_search_vector_has_unit_length_and_the_order_of_the_memory(numbers: list[float]) -> None:
    values = np.array(numbers, dtype=np.float32).reshape(2, 3)
    made = memory(values.copy())
    vector = made.search_vector()
    assert vector.shape == (6,)
    assert vector.dtype == np.float32
    length = float(np.sqrt((values.astype(np.float64) ** 2).sum()))
    if length > 1e-6:
        assert np.allclose(vector * length, values.reshape(-1), atol=1e-3)
        assert float(np.linalg.norm(vector)) == pytest.approx(1, abs=1e-4)


def test_the_search_vector_of_nothing() -> None:
    assert memory(np.zeros((2, 3), dtype=np.float32)).search_vector().tolist() == [0.0] * 6


@pytest.mark.parametrize(
    ("title", "text", "wanted"),
    [
        ("Tower", "It is high.", "Tower\nIt is high."),
        ("", "It is high.", "It is high."),
        ("  ", "It is high.", "It is high."),
        (" Tower ", "\nTower: it is high.", "\nTower: it is high."),
        ("Tower", "The Tower is high.", "Tower\nThe Tower is high."),
    ],
)
def test_the_text_a_model_reads(title: str, text: str, wanted: str) -> None:
    assert passage_text(title, text) == wanted


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("330 m", [8]),
        ("330 m.", [8]),
        ("It is 330 m high [2].", [0, 8, 20]),  # as a language model numbers the passages
        ("yes", [0, 0, 20]),
    ],
)
def test_a_quotation_has_one_source_and_other_answers_the_passages_in_their_order(text: str, starts: list[int]) -> None:
    citations = tuple(
        Citation(f"p{at}", "d", start, start + 20, 1.0, "", "text", 5) for at, start in enumerate((0, 0, 20))
    )
    quote = None if text == "yes" else Quote("p1", "d", 8, 13, "Its top: 330 m.", -1)
    answer = Answer(text, citations, TokenCounts(1, 0, 1, 1), Seconds(0, 0, 0, 0), "text", "stop", quote)
    assert [source.start for source in answer.sources()] == starts


def test_a_missing_extra_names_the_command() -> None:
    message = str(MissingExtraError("openai", "synth"))
    assert message == "openai is not installed; it comes with: pip install 'clara-rag[synth]'"
