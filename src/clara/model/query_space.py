"""The space in which a question is compared with passages: a projection of its memory, and where that starts.

A question spreads over its memory tokens otherwise than a passage does: the cosine of the two, slot by slot, compares
places that have nothing to do with each other (LOG.md, 2026-11-26). So a question is compared by its mean, or each of
its memory tokens with the nearest of the passage (``similarity.late_interaction``). Passages do not change by it.
Pure tensor functions; the trained values are in ``table``.
Shape letters: B batch, N memory tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

WHITENING = 0.3
"""Ridge of ``whitened``; Recall@5 is flat from 0.1 to 0.5, by means and by tokens (LOG.md, 2026-11-26)."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryProjection:
    """What is done to the memory of a question at one rate.

    Attributes:
        matrix: float32 [H, H].
        centre: float32 [H], taken off first.
        passage_centre: float32 [H], mean memory token of passages, which late interaction takes off them; None where
            questions are compared by their mean.
    """

    matrix: Tensor
    centre: Tensor
    passage_centre: Tensor | None = None

    def __call__(self, memory: Tensor) -> Tensor:
        """A question's memory [B, N, H], projected.

        Each memory token by itself for late interaction, else their mean, set at each of them.
        """
        if self.passage_centre is not None:
            return functional.linear(memory - self.centre, self.matrix)
        mean = memory.mean(dim=1) - self.centre
        return functional.linear(mean, self.matrix)[:, None].expand_as(memory)


@torch.no_grad()
def whitened(documents: Tensor, questions: Tensor, *, late: bool) -> QueryProjection:
    """A projection by an inverse covariance: what all passages, or all questions, share says little.

    With ``C`` the sum of the covariances of documents and questions, each divided by its mean eigenvalue, the matrix
    is ``(C + WHITENING I)^-1``; the centres are the means. No label is read.

    Args:
        documents: float32 [samples, H], means of document memories over their tokens; for late interaction, memory
            tokens.
        questions: float32 [samples, H], the same of questions.
        late: whether questions are compared by late interaction.
    """
    ridge = WHITENING * torch.eye(documents.shape[1], dtype=torch.float64, device=documents.device)
    common = _covariance(documents) + _covariance(questions) + ridge
    matrix, passages = torch.linalg.inv(common).float(), documents.mean(dim=0)
    return QueryProjection(matrix, questions.mean(dim=0), passages if late else None)


def _covariance(values: Tensor) -> Tensor:
    """Covariance with a mean eigenvalue of one: [samples, H] -> float64 [H, H]; zeros where nothing varies."""
    covariance = torch.cov(values.double().T, correction=0)
    return covariance / covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).eps)
