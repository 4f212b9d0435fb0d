"""Late interaction against a loop, in numpy and under gradient, and what it finds that one vector misses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clara.errors import MemoryMismatchError
from clara.model.losses import late_matrix
from clara.records import FloatArray, Memory, QueryMemory
from clara.similarity import _COVERAGE, covering, late_interaction, ranking, similarities, token_matches


def drawn(*shape: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def looped(tokens: FloatArray, centre: FloatArray, passage: FloatArray) -> float:
    """The same, one product at a time, in float64."""
    total = weights = 0.0
    for token in tokens.astype(np.float64):
        best = -np.inf
        for vector in passage.astype(np.float64) - centre:
            length = np.sqrt((vector**2).sum())
            best = max(best, float((token * vector).sum() / length) if length else 0.0)
        total += best
        weights += float(np.sqrt((token**2).sum()))
    return total / weights


def test_late_interaction_equals_a_loop_also_under_gradient() -> None:
    queries, passages, centre = drawn(3, 4, 8, seed=0), drawn(5, 4, 8, seed=1), drawn(8, seed=2)
    passages[2, 1] = centre  # nothing is left of this memory token
    wanted = [[looped(query, centre, passage) for passage in passages] for query in queries]
    found = [[late_interaction(QueryMemory(q, "m", 4, 1, centre), passage) for passage in passages] for q in queries]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    parts = [torch.from_numpy(part) for part in (queries, passages, centre)]
    parts[0].requires_grad_()
    matrix = late_matrix(*parts)
    np.testing.assert_allclose(matrix.detach().numpy(), wanted, atol=1e-6)
    torch.autograd.backward(matrix.sum())
    assert parts[0].grad is not None
    assert bool(parts[0].grad.abs().sum() > 0)


def test_a_question_of_zeros_is_near_to_nothing() -> None:
    nothing = np.zeros((4, 8), dtype=np.float32)
    assert late_interaction(QueryMemory(nothing, "m", 4, 1, drawn(8, seed=0)), drawn(4, 8, seed=1)) == 0.0
    assert bool((late_matrix(torch.zeros(2, 4, 8), torch.ones(3, 4, 8), torch.zeros(8)) == 0).all())


def test_one_word_among_many_is_found_by_late_interaction_and_lost_in_the_mean() -> None:
    word, centre = drawn(16, seed=3), np.zeros(16, dtype=np.float32)
    passages = []
    for seed, holds in ((4, True), (5, False)):
        others = 3 * drawn(7, 16, seed=seed)
        last = word if holds else 3 * drawn(16, seed=6)
        passages.append(Memory(np.concatenate([others, last[None]]), "m", 4, 8))
    late, whole = (QueryMemory(np.tile(word, (8, 1)), "m", 4, 1, own) for own in (centre, None))
    assert similarities(late, [passages[0]])[0] == pytest.approx(1, abs=1e-5)
    assert similarities(late, [passages[1]])[0] < 0.8
    for passage in passages:
        assert similarities(whole, [passage])[0] == pytest.approx(
            float(whole.search_vector() @ passage.search_vector())
        )
        assert similarities(whole, [passage])[0] < 0.3


def worth(matches: FloatArray, chosen: list[int]) -> float:
    """What a set of passages is worth by its definition."""
    rows = matches.astype(np.float64)[chosen]
    together = rows.max(axis=0, initial=0).sum()
    return float((1 - _COVERAGE) * rows.sum() + _COVERAGE * together)


@pytest.mark.parametrize("seed", range(20))
def test_each_place_goes_to_what_adds_most(seed: int) -> None:
    matches = drawn(7, 5, seed=seed)
    placed = covering(list(matches), 5)
    chosen: list[int] = []
    for place in placed:
        left = [i for i in range(7) if i not in chosen]
        added = {i: worth(matches, [*chosen, i]) - worth(matches, chosen) for i in left}
        assert place.index == max(left, key=added.__getitem__)
        assert place.score == pytest.approx(added[place.index], abs=1e-6)
        chosen.append(place.index)
    scores = [place.score for place in placed]
    assert scores == sorted(scores, reverse=True)
    assert covering(list(matches), 9)[:5] == placed
    assert covering([], 3) == []


def test_a_question_about_two_things_finds_a_passage_on_each() -> None:
    tower, bee, rest, centre = *np.eye(3, 16, dtype=np.float32), np.zeros(16, dtype=np.float32)
    about = [Memory(np.stack([rest + part * tower, rest]), "m", 8, 2) for part in (5, 4, 3)]
    about.append(Memory(np.stack([rest + 2 * bee, rest]), "m", 8, 2))
    query = QueryMemory(np.stack([1.5 * tower, bee]), "m", 8, 2, centre)
    assert np.argsort(similarities(query, about)).tolist() == [3, 2, 1, 0]
    assert ranking(query, about) == [0, 3, 1, 2]
    first = covering([token_matches(query, memory.values) for memory in about], 1)[0]
    assert first.score == pytest.approx(late_interaction(query, about[0].values))


def test_equals_keep_their_order() -> None:
    same = [Memory(np.ones((2, 8), dtype=np.float32), "m", 8, 2)] * 4
    for centre in (None, np.zeros(8, dtype=np.float32)):
        assert ranking(QueryMemory(drawn(2, 8, seed=0), "m", 8, 2, centre), same) == [0, 1, 2, 3]
        assert ranking(QueryMemory(np.zeros((2, 8), dtype=np.float32), "m", 8, 2, centre), same) == [0, 1, 2, 3]


def test_the_search_vector_of_a_late_question_is_its_mean_at_each_memory_token() -> None:
    values, centre = drawn(4, 8, seed=6), drawn(8, seed=7)
    vector = QueryMemory(values.copy(), "m", 4, 1, centre).search_vector().reshape(4, 8)
    assert float(np.linalg.norm(vector)) == pytest.approx(1)
    mean = values.mean(axis=0)
    np.testing.assert_allclose(vector, np.tile(mean / np.linalg.norm(mean) / 2, (4, 1)), atol=1e-6)


@pytest.mark.parametrize("centre", [np.zeros(7, dtype=np.float32), np.full(8, np.nan, dtype=np.float32)])
def test_a_centre_that_does_not_fit_is_refused(centre: FloatArray) -> None:
    with pytest.raises(MemoryMismatchError, match=r"centre .* \[8\]"):
        QueryMemory(drawn(4, 8, seed=0), "m", 4, 1, centre)
