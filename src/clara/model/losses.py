"""The losses of clara.md, on tensors that are already where they belong.

Shape letters: T label positions, V vocabulary, B batch, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def token_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy over label positions (clara.md section 3, the CE term).

    Args:
        logits: [T, V].
        labels: int64 [T].
        weights: float32 [T]; the mean is taken over their sum.
    """
    losses = functional.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)


def quoted_cross_entropy(logits: Tensor, labels: Tensor, places: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Sum over label positions of the cross-entropy among allowed tokens alone times the position's weight, nats.

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
    """Sum over label positions of KL(teacher || student) times the position's weight, nats.

    Args:
        teacher: [T, V] logits.
        student: [T, V] logits.
        weights: float32 [T].
    """
    wanted, given = teacher.float().log_softmax(dim=-1), student.float().log_softmax(dim=-1)
    distances = functional.kl_div(given, wanted, reduction="none", log_target=True).sum(dim=-1)
    return (distances * weights).sum()


def memory_mse(text_mean: Tensor, memory_mean: Tensor) -> Tensor:
    """Mean squared distance between mean text state and mean memory (clara.md section 3, the MSE term).

    Args:
        text_mean: float32 [B, H].
        memory_mean: float32 [B, H].
    """
    return functional.mse_loss(memory_mean, text_mean)


def contrastive(scores: Tensor, positives: Tensor, *, temperature: float) -> Tensor:
    """Supervised contrastive loss with several positives (clara.md section 5, the supervised variant).

    Args:
        scores: [B, D] cosines of each question with each candidate.
        positives: bool [B, D]; every row has at least one.
        temperature: tau.
    """
    scaled = scores.float() / temperature
    every = torch.logsumexp(scaled, dim=1)
    right = torch.logsumexp(scaled.masked_fill(~positives, float("-inf")), dim=1)
    return (every - right).mean()


def candidate_kl(
    scores: Tensor, likelihoods: Tensor, *, temperature: float, likelihood_temperature: float = 1.0
) -> Tensor:
    """KL from the candidates' distribution by a reader's likelihoods to that by scores; a mean over questions, nats.

    With flat priors the first is how probable it is of each candidate that the answer was written from it (arXiv
    2208.03299, section 2.2).

    Args:
        scores: [B, D] cosines of each question with its candidates.
        likelihoods: float32 [B, D], log-probability of the answer given each candidate alone; no gradient.
        temperature: tau of the scores.
        likelihood_temperature: of the log-probabilities.
    """
    wanted = (likelihoods / likelihood_temperature).log_softmax(dim=1)
    given = (scores.float() / temperature).log_softmax(dim=1)
    return functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
