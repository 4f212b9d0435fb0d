"""The decode loop against transformers' own, and rows that come, go and share steps against rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

from clara.model import ClaraModel, Sampling, generator
from clara.model.generator import DecodeLoop, DecodingRow, _Step, stop_ids
from clara.records import GenerationRequest

TEXTS = ("The tower of Mainz is 330 metres high.", "Gutenberg printed there in 1450; bees dance on its roof.")
_LONGEST = 10


@pytest.fixture(scope="module")
def lm(tiny_model: ClaraModel) -> Iterator[Any]:
    """The causal LM that answers from memories."""
    with tiny_model._weights.acting_as("generator") as model:
        yield model


@pytest.fixture
def decoder(lm: Any) -> DecodeLoop:  # noqa: ANN401 - transformers' model
    return DecodeLoop(lambda: nullcontext(lm))


def prompt(lm: Any, ids: list[int]) -> Tensor:  # noqa: ANN401
    embeds: Tensor = lm.get_input_embeddings()(torch.tensor(ids)).detach()
    return embeds


def row(lm: Any, ids: list[int], *, longest: int = _LONGEST, stops: frozenset[int] = frozenset()) -> DecodingRow:  # noqa: ANN401
    return DecodingRow((prompt(lm, ids),), longest, stops)


def alone(lm: Any, ids: list[int], *, longest: int = _LONGEST, stops: frozenset[int] = frozenset()) -> list[int]:  # noqa: ANN401
    """What transformers writes, end tokens left out."""
    told = GenerationConfig(max_new_tokens=longest, do_sample=False, pad_token_id=0, eos_token_id=sorted(stops) or None)
    with torch.inference_mode():
        out = lm.generate(
            inputs_embeds=prompt(lm, ids)[None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            generation_config=told,
        )
    return [token for token in out[0].tolist() if token not in stops]


def finished(steps: Iterator[_Step]) -> None:
    for _ in steps:
        pass


prompts = st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=30), min_size=1, max_size=5)


@settings(max_examples=25)
@given(prompts=prompts, stop=st.integers(0, 500), budget=st.sampled_from([1, 40, 256]))
def test_ids_are_those_of_transformers(lm: Any, prompts: list[list[int]], stop: int, budget: int) -> None:  # noqa: ANN401
    stops = frozenset({stop, alone(lm, prompts[0])[-1]})  # the first row stops early
    rows = [row(lm, ids, stops=stops) for ids in prompts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "_CPU_PROMPT_TOKENS", budget)  # rows join all at once, or one at a step
        finished(DecodeLoop(lambda: nullcontext(lm)).steps(rows))
    assert [one.written for one in rows] == [alone(lm, ids, stops=stops) for ids in prompts]
    assert rows[0].stopped


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_draws_are_those_of_transformers(tiny_model: ClaraModel, lm: Any, seed: int) -> None:  # noqa: ANN401
    sampling = Sampling(max_new_tokens=12, temperature=1.3, top_p=0.9, seed=seed)
    request = GenerationRequest("What?", texts=TEXTS)
    told = GenerationConfig(
        max_new_tokens=12,
        do_sample=True,
        temperature=1.3,
        top_p=0.9,
        top_k=0,
        pad_token_id=0,
        eos_token_id=sorted(stop_ids(lm, tiny_model._tokenizer)),
    )
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)
        embeds = tiny_model._generator.embeds(lm, request, sampling)[None]
        out = lm.generate(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]), generation_config=told)
    [made] = tiny_model._generate([request], sampling)
    assert list(made.token_ids) == [token for token in out[0].tolist() if token != tiny_model._prompter.eos]


def test_rows_that_join_and_leave_change_no_other(lm: Any, decoder: DecodeLoop) -> None:  # noqa: ANN401
    """Longer ones and shorter ones come while others are written, one is given up, and the last goes on alone."""
    all_ids = [list(range(n, n + length)) for n, length in ((5, 12), (90, 40), (30, 3), (200, 25))]
    rows = [row(lm, ids, longest=longest) for ids, longest in zip(all_ids, (24, 8, 24, 12), strict=True)]
    first = decoder.steps(rows[:1])
    for _ in range(3):
        next(first)
    second, third = decoder.steps(rows[1:2]), decoder.steps(rows[2:3])
    next(second)
    next(third)
    next(third)
    finished(decoder.steps(rows[3:]))
    third.close()
    written = len(rows[2].written)
    finished(second)
    finished(first)
    assert len(rows[2].written) == written < 24, "nobody writes on for one who left"
    assert decoder.rows == 0
    for one, ids in zip(rows, all_ids, strict=True):
        assert one.written == alone(lm, ids, longest=24)[: len(one.written)]
    assert [len(one.written) for one in rows if one is not rows[2]] == [24, 8, 12]


def test_threads_share_steps(lm: Any, decoder: DecodeLoop, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    forwards: list[int] = []
    forward = generator._forward

    def counted(*given: Any, **read: Any) -> Tensor:  # noqa: ANN401
        forwards.append(len(next(value for value in read.values() if isinstance(value, Tensor))))
        return forward(*given, **read)

    monkeypatch.setattr(generator, "_forward", counted)
    rows = [row(lm, [7 * n, 3, n], longest=60) for n in range(8)]
    waiting = [decoder.steps([one]) for one in rows]
    for steps in waiting:  # all are there before the first is waited for
        next(steps)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(finished, waiting))
    assert [one.written for one in rows] == [alone(lm, [7 * n, 3, n], longest=60) for n in range(8)]
    assert max(forwards) == 8
    assert len(forwards) < 8 * 60 / 4, "most tokens came of shared steps"


def test_a_step_that_fails_fails_for_all_and_the_next_rows_are_well(lm: Any, decoder: DecodeLoop) -> None:  # noqa: ANN401
    def broken(*_: object) -> Tensor:
        raise MemoryError("no room")

    healthy, sick = row(lm, [1, 2, 3]), row(lm, [4, 5])
    sick.filters = (broken,)
    waiting = decoder.steps([healthy])
    next(waiting)
    with pytest.raises(MemoryError, match="no room"):
        finished(decoder.steps([sick]))
    with pytest.raises(MemoryError, match="no room"):
        finished(waiting)
    assert decoder.rows == 0
    later = row(lm, [1, 2, 3])
    finished(decoder.steps([later]))
    assert later.written == alone(lm, [1, 2, 3])


@pytest.mark.parametrize("kept", [0, 1])
def test_the_same_tokens_follow_all_prompts_of_a_row(lm: Any, decoder: DecodeLoop, kept: int) -> None:  # noqa: ANN401
    """A row of two prompts that only looks at one is written as that one alone, whatever stands beside it."""
    prompts = [11, 12, 13, 14, 15], [400, 401]
    both = DecodingRow(tuple(prompt(lm, ids) for ids in prompts), _LONGEST, frozenset())
    both.joined = lambda logits: logits[kept]
    finished(decoder.steps([row(lm, [1] * 20), both]))
    assert both.written == alone(lm, prompts[kept])
    assert alone(lm, prompts[0]) != alone(lm, prompts[1])


@pytest.mark.parametrize("longest", [2, _LONGEST])
def test_others_begin_with_the_next_likeliest_tokens_and_each_is_judged(
    lm: Any,  # noqa: ANN401
    decoder: DecodeLoop,
    longest: int,
) -> None:
    ids, beside = [11, 12, 13], row(lm, [5, 6, 7, 8])
    with torch.inference_mode():
        likeliest = lm(torch.tensor([ids])).logits[0, -1].topk(3).indices.tolist()
    stop, verdict = alone(lm, [*ids, likeliest[1]])[3], (3, 4)
    others = [
        DecodingRow((prompt(lm, ids),), longest, frozenset({stop}), verdict=verdict, place=place) for place in (1, 2)
    ]
    first = DecodingRow((prompt(lm, ids),), longest, frozenset({stop}), verdict=verdict, others=tuple(others))
    finished(decoder.steps([first, *others, beside]))
    assert beside.written == alone(lm, [5, 6, 7, 8])
    for one, token in zip((first, *others), likeliest, strict=True):
        assert one.written == [token, *alone(lm, [*ids, token], longest=longest - 1, stops=frozenset({stop}))]
        with torch.inference_mode():
            after = lm(torch.tensor([[*ids, *one.written, stop]])).logits[0, -1]
        assert one.odds == pytest.approx(float(after[3] - after[4]), abs=1e-3)
    assert others[0].stopped == (longest > 2)


def test_where_nothing_else_may_begin_others_end(lm: Any, decoder: DecodeLoop) -> None:  # noqa: ANN401
    def only_nine(scores: Tensor, written: object) -> Tensor:
        held = torch.full_like(scores, float("-inf"))
        held[9] = 0.0
        return scores if written else held

    other = DecodingRow((prompt(lm, [1, 2]),), 4, frozenset({0}), filters=(only_nine,), verdict=(3, 4), place=1)
    first = DecodingRow((prompt(lm, [1, 2]),), 4, frozenset({0}), filters=(only_nine,), verdict=(3, 4), others=(other,))
    finished(decoder.steps([first, other]))
    assert first.written[0] == 9
    assert other.written == []
    assert other.odds is None


def test_an_answer_far_less_likely_than_one_that_has_ended_is_given_up() -> None:
    other = DecodingRow((), _LONGEST, frozenset({0}), verdict=(3, 4), place=1, scored=True)
    first = replace(other, place=0, others=(other,), written=[], free=[], held=[])
    sure, unsure = torch.zeros(1, 12), torch.zeros(1, 12)
    sure[0, [0, 9]] = 50.0
    first.write(9, sure, sure[0])
    other.write(5, unsure, unsure[0])
    first.write(0, sure, sure[0])
    assert (first.ended, other.ended) == (False, False), "a verdict is to come; a nat less may be right"
    other.write(5, unsure, unsure[0])
    assert (other.ended, other.odds) == (True, None)
