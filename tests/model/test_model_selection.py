"""The straight-through top-k against a slow twin and the official implementation's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clara.errors import InputError
from clara.model.losses import MIN_TEMPERATURE, cosine_matrix, select, straight_through_top_k

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens" / "topk" / "topk.npz"


def slow_row(scores: list[Tensor], k: int, temperature: float) -> list[list[Tensor]]:
    """The formula of clara.md section 5 for one question, one number at a time: [K][D]."""
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i].detach()), i))
    rows, taken = [], set[int]()
    for j in range(k):
        left = [i for i in range(len(scores)) if i not in taken]
        highest = max(float(scores[i].detach()) for i in left)
        powers = {i: torch.exp((scores[i] - highest) / temperature) for i in left}
        total = sum(powers.values(), torch.tensor(0.0, dtype=torch.float64))
        soft = [
            powers[i] / total if i in powers else torch.tensor(0.0, dtype=torch.float64) for i in range(len(scores))
        ]
        rows.append([float(i == order[j]) + soft[i] - soft[i].detach() for i in range(len(scores))])
        taken.add(order[j])
    return rows


def slow(scores: Tensor, k: int, temperature: float) -> Tensor:
    """The slow twin: [B, D] -> [B, K, D]."""
    made = [slow_row([scores[b, i] for i in range(scores.shape[1])], k, temperature) for b in range(scores.shape[0])]
    return torch.stack([torch.stack([torch.stack(row) for row in rows]) for rows in made])


def gradient(weights: Tensor, scores: Tensor) -> Tensor:
    """The gradient of a weighted sum of the weights."""
    ramp = torch.linspace(-1, 2, weights.numel(), dtype=weights.dtype).reshape(weights.shape).sin()
    (grad,) = torch.autograd.grad((weights * ramp).sum(), scores)
    return grad


values = st.floats(-1, 1, allow_nan=False, width=32)


@given(
    rows=st.integers(1, 8).flatmap(
        lambda d: st.lists(st.lists(values, min_size=d, max_size=d), min_size=1, max_size=3)
    ),
    k=st.integers(1, 8),
    temperature=st.sampled_from([0.02, 0.1, 1.0]),
)
def test_equals_the_slow_twin(rows: list[list[float]], k: int, temperature: float) -> None:
    scores = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    k = min(k, scores.shape[1])
    fast, twin = straight_through_top_k(scores, k, temperature=temperature), slow(scores, k, temperature)
    torch.testing.assert_close(fast.weights, twin)
    torch.testing.assert_close(gradient(fast.weights, scores), gradient(twin, scores), atol=1e-9, rtol=1e-6)


@given(rows=st.lists(st.lists(values, min_size=6, max_size=6), min_size=1, max_size=4), k=st.integers(1, 6))
def test_forward_is_exactly_one_hot(rows: list[list[float]], k: int) -> None:
    scores = torch.tensor(rows, dtype=torch.float32)
    chosen = straight_through_top_k(scores, k, temperature=0.3)
    assert chosen.indices.shape == (len(rows), k)
    wanted = torch.nn.functional.one_hot(chosen.indices, 6).float()
    assert torch.equal(chosen.weights, wanted)
    for row, indices in zip(rows, chosen.indices.tolist(), strict=True):
        assert indices == sorted(range(6), key=lambda i: (-np.float32(row[i]), i))[:k]


def test_ties_go_to_the_lower_index() -> None:
    chosen = straight_through_top_k(torch.tensor([[0.5, 0.9, 0.5, 0.9, 0.5]]), 4)
    assert chosen.indices.tolist() == [[1, 3, 0, 2]]


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_outside_the_candidates(k: int) -> None:
    with pytest.raises(InputError, match=f"1 <= k <= 3 candidates, got k = {k}"):
        straight_through_top_k(torch.zeros(2, 3), k)


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-9])
def test_temperature_has_a_floor(temperature: float) -> None:
    scores = torch.tensor([[1e-6, 0.0, 2e-6]], dtype=torch.float64, requires_grad=True)
    low = straight_through_top_k(scores, 2, temperature=temperature)
    floor = straight_through_top_k(scores, 2, temperature=MIN_TEMPERATURE)
    found = gradient(low.weights, scores)
    assert torch.isfinite(found).all()
    assert found.abs().sum() > 0
    assert torch.equal(found, gradient(floor.weights, scores))


def test_select_takes_the_memories_and_passes_the_gradient() -> None:
    scores = torch.tensor([[0.1, 0.4, 0.3]], requires_grad=True)
    memories = torch.arange(12.0).reshape(1, 3, 2, 2)
    chosen = straight_through_top_k(scores, 2, temperature=0.1)
    picked = select(chosen, memories)
    assert torch.equal(picked[0].detach(), memories[0, [1, 2]])
    (grad,) = torch.autograd.grad(picked.sum(), scores)
    assert grad[0, 2] > grad[0, 0], "the candidate with the larger memory should gain"


def test_cosines_equal_a_loop() -> None:
    queries = torch.linspace(-1, 1, 2 * 3 * 4).reshape(2, 3, 4)
    memories = torch.linspace(-2, 5, 2 * 5 * 3 * 4).cos().reshape(2, 5, 3, 4)
    found = torch.stack([cosine_matrix(queries, row).diagonal() for row in memories.transpose(0, 1)], dim=1)
    for b in range(2):
        for d in range(5):
            q, m = queries[b].flatten().numpy(), memories[b, d].flatten().numpy()
            wanted = float(q @ m / np.linalg.norm(q) / np.linalg.norm(m))
            assert float(found[b, d]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.skipif(not GOLDENS.is_file(), reason="reference outputs lie outside the repository")
def test_official_numbers() -> None:
    """Selections agree but for the order of ties, which torch.topk leaves open; gradients where the mask allows it.

    The official mask is log(1e-8) and not minus infinity. It leaves a taken candidate up to
    ``exp((s_taken - s_best_left) / tau) * 1e-8`` of the softmax; the official selector is compared where that is
    below 1e-6 for every slot.
    """
    stored = np.load(GOLDENS)
    compared = 0
    for key in sorted({name.rpartition("/")[0] for name in stored if name.endswith("/dlogits")}):
        source, _, slots, tau = key.split("/")
        k, temperature = int(slots[1:]), float(tau[1:])
        logits = torch.tensor(stored[f"{source}/logits"], requires_grad=True)
        chosen = straight_through_top_k(logits, k, temperature=temperature)
        official = torch.tensor(stored[f"{key}/idx"])
        ordered = logits.detach().double().sort(dim=1, descending=True).values
        torch.testing.assert_close(logits.detach().double().gather(1, official), ordered[:, :k], atol=0, rtol=0)
        if not torch.equal(chosen.indices, official):
            assert any(len(set(row)) < len(row) for row in ordered.tolist()), f"{key}: other choices without a tie"
            continue
        torch.testing.assert_close(chosen.weights.detach(), torch.tensor(stored[f"{key}/W"]), atol=1e-6, rtol=0)
        leak = 1e-8 * torch.exp((ordered[:, 0] - ordered[:, k - 1]) / temperature) if k > 1 else torch.zeros(1)
        if float(leak.max()) < 1e-6:
            (grad,) = torch.autograd.grad((chosen.weights * torch.tensor(stored[f"{key}/G"])).sum(), logits)
            torch.testing.assert_close(grad, torch.tensor(stored[f"{key}/dlogits"]), atol=1e-4, rtol=1e-3, msg=key)
            compared += 1
    assert compared > 20
