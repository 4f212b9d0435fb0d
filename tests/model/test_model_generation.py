"""Answers: batches equal one by one, streams equal wholes, and everything stops where it should."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from clara.errors import InputError, MemoryMismatchError, RecordError
from clara.model import ClaraModel, Sampling
from clara.model.generator import Generator
from clara.records import Generation, GenerationRequest, Memory

QUESTIONS = ("How high is the tower?", "Who?", "When was the printing press invented, and by whom?", "Why?")
TEXTS = ("The tower is 330 metres high.", "Gutenberg printed in Mainz.", "Bees dance.")


@pytest.fixture(scope="module")
def requests(tiny_model: ClaraModel) -> list[GenerationRequest]:
    """Different numbers of passages, of both rates, as memories, as text, and none; both readers."""
    few, many = tiny_model.compress(TEXTS, rate=16), tiny_model.compress(TEXTS, rate=4)
    return [
        GenerationRequest(QUESTIONS[0], memories=tuple(few)),
        GenerationRequest(QUESTIONS[1], texts=TEXTS[:2], reader="base"),
        GenerationRequest(QUESTIONS[2], memories=tuple(many[:1])),
        GenerationRequest(QUESTIONS[3]),
        GenerationRequest(QUESTIONS[0], memories=(many[1], few[0])),
    ]


def test_a_batch_equals_one_by_one(tiny_model: ClaraModel, requests: list[GenerationRequest]) -> None:
    together = tiny_model.generate_many(requests, max_new_tokens=8)
    alone = [tiny_model.generate_many([request], max_new_tokens=8)[0] for request in requests]
    assert together == alone
    assert len({answer.token_ids for answer in together}) == len(requests), "each prompt gets its own answer"


def test_no_requests(tiny_model: ClaraModel) -> None:
    assert tiny_model.generate_many([]) == []


def test_generate_is_generate_many(tiny_model: ClaraModel, requests: list[GenerationRequest]) -> None:
    first = requests[0]
    answer = tiny_model.generate(first.question, first.memories, max_new_tokens=8)
    assert answer == tiny_model.generate_many([first], max_new_tokens=8)[0]
    assert answer.tokens.generated == len(answer.token_ids) == 8
    assert answer.finish_reason == "length"


def test_counts(tiny_model: ClaraModel, requests: list[GenerationRequest]) -> None:
    memory, text = requests[0], GenerationRequest(requests[0].question, texts=TEXTS)
    from_memory, from_text = tiny_model.generate_many([memory, text], max_new_tokens=2)
    assert from_memory.tokens.memory == 3 * tiny_model.memory_tokens(16) == 12
    assert from_text.tokens.memory == 0
    assert from_memory.tokens.text_equivalent == from_text.tokens.prompt == from_text.tokens.text_equivalent
    assert from_memory.tokens.prompt == from_text.tokens.prompt + 12 - sum(map(tiny_model.token_count, TEXTS))


def test_the_memory_decides_the_answer(tiny_model: ClaraModel) -> None:
    memories = tiny_model.compress(TEXTS)
    answers = {tiny_model.generate("What?", [memory], max_new_tokens=8).token_ids for memory in memories}
    swapped = tiny_model.generate("What?", memories[::-1], max_new_tokens=8).token_ids
    assert len(answers) == 3
    assert swapped != tiny_model.generate("What?", memories, max_new_tokens=8).token_ids


@pytest.mark.parametrize("place", range(5))
def test_a_stream_equals_the_whole(place: int, tiny_model: ClaraModel, requests: list[GenerationRequest]) -> None:
    pieces = list(tiny_model.stream(requests[place], Sampling(max_new_tokens=12)))
    whole = tiny_model.generate_many([requests[place]], max_new_tokens=12)[0]
    assert "".join(pieces).strip() == whole.text
    assert all(pieces)


def test_a_stream_passes_errors_on(
    tiny_model: ClaraModel, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the generation broke")

    with pytest.raises(InputError, match="question is empty"):
        list(tiny_model.stream(GenerationRequest("  "), Sampling()))
    monkeypatch.setattr(Generator, "_config", broken)
    with pytest.raises(RuntimeError, match="the generation broke"):
        list(tiny_model.stream(requests[0], Sampling()))


@pytest.fixture
def stopping_at(tiny_model: ClaraModel) -> Iterator[tuple[int, Generation]]:
    """Makes the fourth token of an answer an end token, for a while."""
    long = tiny_model.generate(QUESTIONS[0], [], max_new_tokens=8)
    with tiny_model._weights.acting_as("generator") as model:
        settings = model.generation_config
        before, settings.eos_token_id = settings.eos_token_id, [int(long.token_ids[3])]
        yield long.token_ids[3], long
        settings.eos_token_id = before


def test_an_end_token_stops(tiny_model: ClaraModel, stopping_at: tuple[int, Generation]) -> None:
    token, long = stopping_at
    kept = long.token_ids[: long.token_ids.index(token)]
    answer = tiny_model.generate(QUESTIONS[0], [], max_new_tokens=8)
    assert answer.token_ids == kept
    assert answer.finish_reason == "stop"
    assert answer.tokens.generated == len(kept)
    pair = tiny_model.generate_many([GenerationRequest(q) for q in QUESTIONS], max_new_tokens=8)
    assert pair[0] == answer
    assert {len(one.token_ids) for one in pair} != {len(kept)}, "the others go on"
    assert all(token not in one.token_ids for one in pair)


def test_sampling_with_a_seed_is_reproducible(tiny_model: ClaraModel) -> None:
    def draw(seed: int | None, temperature: float = 1.5, top_p: float = 1.0) -> tuple[int, ...]:
        made = tiny_model.generate("What?", [], max_new_tokens=8, temperature=temperature, seed=seed, top_p=top_p)
        return made.token_ids

    greedy = tiny_model.generate("What?", [], max_new_tokens=8).token_ids
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)
    assert draw(3, top_p=1e-6) == greedy, "the smallest nucleus is the best token"
    request = GenerationRequest("What?")
    streamed = "".join(tiny_model.stream(request, Sampling(max_new_tokens=8, temperature=1.5, seed=1)))
    again = tiny_model.generate("What?", [], max_new_tokens=8, temperature=1.5, seed=1)
    assert streamed.strip() == again.text


def test_a_prompt_that_is_too_long(tiny_model: ClaraModel) -> None:
    request = GenerationRequest("What?", texts=("word " * 1500,))
    with pytest.raises(
        InputError, match=r"the prompt has \d+ tokens and 64 may follow, the model takes 2048; use fewer"
    ):
        tiny_model.generate_many([request])
    with pytest.raises(InputError, match="2040 may follow"):
        tiny_model.generate("What?", [], max_new_tokens=2040)


def test_requests_that_make_no_sense(tiny_model: ClaraModel) -> None:
    memory = tiny_model.compress(["Bees dance."])[0]
    foreign = Memory(np.array(memory.values), "0123456789abcdef", memory.rate, memory.token_count)
    with pytest.raises(MemoryMismatchError, match="made by model 0123456789abcdef, this one is"):
        tiny_model.generate("What?", [memory, foreign])
    with pytest.raises(InputError, match="question is empty"):
        tiny_model.generate(" \n", [memory])
    with pytest.raises(RecordError, match="memories or texts, not both"):
        GenerationRequest("What?", memories=(memory,), texts=("Bees dance.",))
