"""Answers: batches equal one by one, streams equal wholes, and everything stops where it should."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clara.errors import InputError, MemoryMismatchError
from clara.model import ClaraModel, Sampling, decoder
from clara.model.generator import DecodeLoop
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
    assert len(list(filter(None, pieces))) > 2


def test_a_stream_that_is_left_ends_its_generation(tiny_model: ClaraModel, requests: list[GenerationRequest]) -> None:
    decoder = tiny_model.decoder(requests[0])
    pieces = tiny_model.stream(requests[0], Sampling(max_new_tokens=1900))
    next(pieces)
    assert decoder.rows == 1
    pieces.close()
    assert decoder.rows == 0
    left = tiny_model.stream(requests[0], Sampling(max_new_tokens=1900))
    next(left)
    with pytest.raises(KeyboardInterrupt):
        left.throw(KeyboardInterrupt())
    assert decoder.rows == 0


@pytest.fixture
def switching(tiny_checkpoint: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> ClaraModel:
    """A model without merged copies, as large ones are: all roles on one backbone."""
    monkeypatch.setattr(decoder, "MERGE_LIMIT", 0)
    return ClaraModel.load(tiny_checkpoint, cache=tiny_base, dtype="fp32")


def test_a_stream_is_not_disturbed_by_what_is_asked_meanwhile(switching: ClaraModel) -> None:
    memories = tuple(switching.compress(TEXTS))
    texts = GenerationRequest("Who?", texts=TEXTS, reader="base")
    requests = [GenerationRequest(QUESTIONS[0], memories=memories), texts]
    whole = [made.text for made in switching.generate_many(requests, max_new_tokens=40)]
    query = switching.encode_queries(["Who?"])[0].values
    for request, wanted in zip(requests, whole, strict=True):
        text = ""
        for piece in switching.stream(request, Sampling(max_new_tokens=40)):
            text += piece
            assert np.array_equal(switching.encode_queries(["Who?"])[0].values, query)
        assert text.strip() == wanted
    streams = [switching.stream(request, Sampling(max_new_tokens=40)) for request in requests]
    both = ["".join(said) for said in zip(*zip_longest(*streams, fillvalue=""), strict=True)]
    assert [text.strip() for text in both] == whole, "two at once come to their ends"


def test_threads_share_a_model(switching: ClaraModel) -> None:
    memories = switching.compress(TEXTS)

    def work(place: int) -> tuple[str, bool]:
        answer = switching.generate(QUESTIONS[place % 4], memories, max_new_tokens=12).text
        return answer, np.array_equal(switching.compress(TEXTS)[0].values, memories[0].values)

    alone = [work(place) for place in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(12))) == alone * 3
    assert all(same for _, same in alone)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: .*got 0"),
        ({"temperature": -1}, "temperature: "),
        ({"top_p": 2, "seed": 2**70}, "top_p: .*; seed: "),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], message: str, tiny_model: ClaraModel) -> None:
    with pytest.raises(InputError, match=message):
        tiny_model.generate("Who?", [], **values)


def test_what_is_no_text_or_no_list_of_texts(tiny_model: ClaraModel) -> None:
    with pytest.raises(InputError, match=r"expected a list of texts, got one string; write \[text\]"):
        tiny_model.compress("The tower is tall")
    with pytest.raises(InputError, match="expected a list of questions"):
        tiny_model.encode_queries("Who?")
    half = "tower \ud800"
    for call in (
        lambda: tiny_model.compress([half]),
        lambda: tiny_model.generate(half, []),
        lambda: tiny_model.generate_many([GenerationRequest("Who?", texts=(half,), reader="base")]),
    ):
        with pytest.raises(InputError, match="is not valid Unicode text"):
            call()
    with pytest.raises(InputError, match=r"the question has \d+ tokens, one memory takes at most 64; shorten it"):
        tiny_model.encode_queries(["Who? " * 60])


def test_a_quotation_that_is_cut_off_ends_with_a_word(tiny_model: ClaraModel) -> None:
    text = "Incomprehensibilities characterise multidimensional representations"
    words = {*text.split(), "yes", "no", "Yes", "No"}
    for tokens in range(1, 12):
        made = tiny_model.generate_many([GenerationRequest("What?", quote_from=(text,))], max_new_tokens=tokens)[0]
        assert made.finish_reason == "stop" or set(made.text.split()) <= words
        request = GenerationRequest("What?", quote_from=(text,))
        assert "".join(tiny_model.stream(request, Sampling(max_new_tokens=tokens))) == made.text


def test_a_stream_passes_errors_on(
    tiny_model: ClaraModel, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the generation broke")

    with pytest.raises(InputError, match="question is empty"):
        tiny_model.stream(GenerationRequest("  "), Sampling())
    with pytest.raises(InputError, match=r"let at most 19\d\d follow"):
        tiny_model.stream(GenerationRequest("Who?"), Sampling(max_new_tokens=2048))
    monkeypatch.setattr(DecodeLoop, "_next_to_join", broken)
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
