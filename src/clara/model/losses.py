"""The formulas of training: the losses of clara.md, similarities under gradient, the straight-through top-k selection.

Logits are [T, V], labels int64 [T], their weights float32 [T]. The selection takes exactly the k best candidates
forward; backward reaches the scores through a softmax for each slot (clara.md section 5).
Shape letters: T label positions, V vocabulary, B batch, D candidates a question, K slots, N memory tokens, H hidden
size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clara.errors import InputError


def token_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean cross-entropy over label positions, weighted by ``weights`` (clara.md section 3, the CE term)."""
    losses = functional.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)


def quoted_cross_entropy(logits: Tensor, labels: Tensor, places: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over label positions of the cross-entropy among the allowed tokens alone, nats.

    Args:
        logits: [Q, V].
        labels: int64 [Q], each among its allowed tokens.
        places: int64 [P], the position of each allowed token.
        ids: int64 [P], the allowed tokens.
        weights: float32 [Q].
    """
    among = torch.full_like(logits, float("-inf"), dtype=torch.float32)
    among = among.index_put((places, ids), logits[places, ids].float())
    return (functional.cross_entropy(among, labels, reduction="none") * weights).sum()


def token_kl(teacher: Tensor, student: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over label positions of KL(teacher || student), of logits [T, V], nats."""
    target, given = teacher.float().log_softmax(dim=-1), student.float().log_softmax(dim=-1)
    distances = functional.kl_div(given, target, reduction="none", log_target=True).sum(dim=-1)
    return (distances * weights).sum()


def memory_mse(text_mean: Tensor, memory_mean: Tensor) -> Tensor:
    """Mean squared distance between mean text state and mean memory, [B, H] each (clara.md section 3, the MSE term)."""
    return functional.mse_loss(memory_mean, text_mean)


def contrastive(scores: Tensor, positives: Tensor, *, temperature: float) -> Tensor:
    """Supervised contrastive loss with several positives (clara.md section 5, the supervised variant).

    ``scores`` are [B, D] cosines of each question with each candidate; ``positives``, bool [B, D], has one in every
    row.
    """
    scaled = scores.float() / temperature
    every = torch.logsumexp(scaled, dim=1)
    right = torch.logsumexp(scaled.masked_fill(~positives, float("-inf")), dim=1)
    return (every - right).mean()


def candidate_kl(
    scores: Tensor, likelihoods: Tensor, *, temperature: float, likelihood_temperature: float = 1.0
) -> Tensor:
    """KL from the candidates' distribution by a reader's likelihoods to that by scores; a mean over questions, nats.

    With flat priors the first is the posterior that the answer was written from each candidate (arXiv 2208.03299,
    section 2.2). ``scores`` are [B, D] cosines of each question with its candidates; ``likelihoods``, float32 [B, D],
    are log-probabilities of the answer given each candidate alone, without gradient. Each has its temperature.
    """
    target = (likelihoods / likelihood_temperature).log_softmax(dim=1)
    given = (scores.float() / temperature).log_softmax(dim=1)
    return functional.kl_div(given, target, reduction="batchmean", log_target=True)


MIN_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True)
class _Selection:
    """Selected candidates int64 [B, K], best first, and ``weights`` [B, K, D]: one-hot, with the softmax's gradient."""

    weights: Tensor
    indices: Tensor


def cosine_matrix(queries: Tensor, memories: Tensor) -> Tensor:
    """Cosine of every query memory with every document memory: [B, N, H] x [U, N, H] -> float32 [B, U]."""
    with torch.autocast(queries.device.type, enabled=False):  # bf16 would make ties of neighbours
        q = functional.normalize(queries.flatten(1).float(), dim=-1)
        m = functional.normalize(memories.flatten(1).float(), dim=-1)
        return q @ m.T


def late_matrix(queries: Tensor, memories: Tensor, centre: Tensor) -> Tensor:
    """``similarity.late_interaction`` of every query memory with every document memory: as ``cosine_matrix``.

    Queries are projected; ``centre``, float32 [H], is taken off the memories.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, m = queries.float(), functional.normalize(memories.float() - centre, dim=-1)
        best = torch.einsum("bth,umh->butm", q, m).amax(dim=3).sum(dim=2)
        scores: Tensor = best / q.norm(dim=2).sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return scores


def straight_through_top_k(scores: Tensor, k: int, *, temperature: float = 0.02) -> _Selection:
    """Select the ``k`` best candidates by scores [B, D], differentiably (InputError: k is not between 1 and D).

    Slot j takes the j-th largest score. Its gradient is that of a softmax over the candidates that earlier slots left;
    ties go to the lower index. A temperature below 1e-6 counts as 1e-6.
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
    """Memories of the selected candidates: [B, K, D] x [B, D, N, H] -> [B, K, N, H], gradient included."""
    return torch.einsum("bkd,bdnh->bknh", selection.weights, memories.to(selection.weights.dtype))
