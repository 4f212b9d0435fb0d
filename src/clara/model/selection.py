"""The straight-through top-k selection (clara.md section 5).

Forward takes exactly the k best candidates; backward reaches the scores through a softmax for each slot.
Shape letters: B batch, D candidates a question, K slots, N memory tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clara.errors import InputError

MIN_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True)
class _Selection:
    """The outcome of a selection.

    Attributes:
        weights: [B, K, D]; one-hot in value, with the softmax's gradient.
        indices: int64 [B, K], chosen candidates, best first.
    """

    weights: Tensor
    indices: Tensor


def cosine_scores(queries: Tensor, memories: Tensor) -> Tensor:
    """Cosine of flattened query and document memories: [B, N, H] x [B, D, N, H] -> float32 [B, D]."""
    q = functional.normalize(queries.flatten(1).float(), dim=-1)
    m = functional.normalize(memories.flatten(2).float(), dim=-1)
    return torch.einsum("bx,bdx->bd", q, m)


def cosine_matrix(queries: Tensor, memories: Tensor) -> Tensor:
    """Cosine of every query memory with every document memory: [B, N, H] x [U, N, H] -> float32 [B, U]."""
    with torch.autocast(queries.device.type, enabled=False):  # bf16 would make ties of neighbours
        q = functional.normalize(queries.flatten(1).float(), dim=-1)
        m = functional.normalize(memories.flatten(1).float(), dim=-1)
        return q @ m.T


def late_matrix(queries: Tensor, memories: Tensor, centre: Tensor) -> Tensor:
    """Late interaction of every query memory with every document memory (``similarity.late_interaction``).

    Args:
        queries: [B, N, H], projected.
        memories: [U, N, H].
        centre: float32 [H], taken off the memories.

    Returns:
        float32 [B, U].
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, m = queries.float(), functional.normalize(memories.float() - centre, dim=-1)
        best = torch.einsum("bth,umh->butm", q, m).amax(dim=3).sum(dim=2)
        scores: Tensor = best / q.norm(dim=2).sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return scores


def straight_through_top_k(scores: Tensor, k: int, *, temperature: float = 0.02) -> _Selection:
    """Choose the ``k`` best candidates, differentiably.

    Slot j takes the j-th largest score. Its gradient is that of a softmax over the candidates that earlier slots
    left; ties go to the lower index.

    Args:
        scores: float [B, D].
        k: slots, at most D.
        temperature: tau; values below 1e-6 count as 1e-6.

    Raises:
        InputError: k is not between 1 and D.
    """
    count = scores.shape[1]
    if not 1 <= k <= count:
        raise InputError(f"top-k wants 1 <= k <= {count} candidates, got k = {k}")
    scaled = scores / max(temperature, MIN_TEMPERATURE)
    indices = scores.detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
    taken = torch.zeros_like(scores, dtype=torch.bool)
    slots = []
    for j in range(k):
        hard = functional.one_hot(indices[:, j], count).to(scores.dtype)
        soft = scaled.masked_fill(taken, float("-inf")).softmax(dim=1)
        # In this order: the difference is exactly zero, the sum of the other order is off by a rounding error.
        slots.append(hard + (soft - soft.detach()))
        taken = taken | hard.bool()
    return _Selection(weights=torch.stack(slots, dim=1), indices=indices)


def select(selection: _Selection, memories: Tensor) -> Tensor:
    """Memories of the chosen candidates: [B, K, D] x [B, D, N, H] -> [B, K, N, H], gradient included."""
    return torch.einsum("bkd,bdnh->bknh", selection.weights, memories.to(selection.weights.dtype))
