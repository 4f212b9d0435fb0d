"""Spans: which text a memory token stands for, what it sees of the text, where it sits.

Pure tensor functions. What is trained is in ``table``; knows no backbone and no adapter.
Shape letters: B batch, S text tokens (padded), N memory tokens, H hidden size. ``mask`` is bool [B, S], true on text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spans:
    """Which text tokens each memory token stands for.

    Attributes:
        member: bool [B, N, S]; a text token may belong to two spans when there are fewer tokens than spans.
        weights: float32 [B, N, S]; rows that sum to one (to zero for an empty text): a mean over the span.
        centre: float32 [B, N]; middle of the span as a position in the unpadded text.
    """

    member: Tensor
    weights: Tensor
    centre: Tensor

    @classmethod
    def equal(cls, mask: Tensor, n: int) -> Spans:
        """Cut each text into ``n`` spans of equal length, up to rounding.

        Span i of a text of length L covers tokens floor(i L / n) .. floor((i + 1) L / n), and at least one token, so a
        text shorter than ``n`` repeats tokens instead of leaving spans empty.
        """
        return cls._cut(*_equal_cuts(mask, n), mask)

    @classmethod
    def by_information(cls, information: Tensor, mask: Tensor, n: int) -> Spans:
        """Cut each text into ``n`` spans that carry about the same information: float32 [B, S], in any unit.

        From one span a token, the two neighbours that carry least together are merged until ``n`` are left, the first
        pair of equals first. A text of at most ``n`` tokens has nothing to merge and is cut into equal spans. Padding
        on the right.
        """
        starts, ends = _equal_cuts(mask, n)
        values = information.cpu().double().numpy()
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            if length > n:
                found = torch.tensor(_merged(values[row, :length], n), device=mask.device)
                starts[row], ends[row, :-1], ends[row, -1] = found, found[1:], length
        return cls._cut(starts, ends, mask)

    @classmethod
    def _cut(cls, starts: Tensor, ends: Tensor, mask: Tensor) -> Spans:
        """Spans from their first tokens to the tokens after their last, int64 [B, N] in the unpadded text."""
        positions = _text_positions(mask)[:, None, :]
        member = (positions >= starts[:, :, None]) & (positions < ends[:, :, None]) & mask[:, None, :]
        weights = member.float()
        weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1)
        return cls(member=member, weights=weights, centre=(starts + ends - 1).float() / 2)

    def pool(self, values: Tensor) -> Tensor:
        """Means over spans: [B, S, H] -> [B, N, H] in the dtype of ``values``."""
        return torch.bmm(self.weights.to(values.dtype), values)

    def positions(self, mask: Tensor, kind: str) -> Tensor:
        """Position ids of the memory tokens: int64 [B, N].

        ``appended`` continues after the text; ``spread`` puts each at the middle of its span (arXiv 2409.14364).
        """
        if kind == "spread":
            return self.centre.long()
        return mask.sum(dim=1)[:, None] + torch.arange(self.member.shape[1], device=mask.device)[None, :]

    def attention(self, mask: Tensor, kind: str) -> Tensor:
        """Mask of what memory tokens see of ``[text, memory tokens]``: bool [B, N, S + N], true where one may look.

        The whole text and the memory tokens up to themselves (``full``), or their span and themselves (``span``).
        """
        b, n, _ = self.member.shape
        own = torch.eye(n, dtype=torch.bool, device=mask.device)
        if kind == "span":
            text = self.member
        else:
            text, own = mask[:, None, :].expand(-1, n, -1), torch.ones_like(own).tril()
        return torch.cat([text, own.expand(b, -1, -1)], dim=2)

    def information_weights(self, information: Tensor) -> Tensor:
        """Weight of each memory token of a question in late interaction: float32 [B, N], a mean of one.

        The squared information, float32 [B, S], of the text tokens that it stands for; several memory tokens share that
        of one text token. Names then say more than "in what year" (LOG.md, 2026-11-26): words that weigh on both sides
        are what tf-idf compares by, too.
        """
        member = self.member.float()
        shares = member / member.sum(dim=1, keepdim=True).clamp(min=1)
        weights = torch.einsum("bns,bs->bn", shares, information.square())
        return weights / weights.mean(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _text_positions(mask: Tensor) -> Tensor:
    """Position of each text token in the unpadded text: int64 [B, S], 0 on padding, for any side of padding."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _equal_cuts(mask: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """First tokens of ``Spans.equal``, and those after the last."""
    lengths = mask.sum(dim=1)[:, None]  # [B, 1]
    slots = torch.arange(n, device=mask.device)[None, :]
    starts = slots * lengths // n
    return starts, torch.maximum((slots + 1) * lengths // n, starts + 1)


def _merged(information: npt.NDArray[np.float64], n: int) -> list[int]:
    """First tokens of the spans of ``Spans.by_information``."""
    starts, sums = list(range(len(information))), information
    while len(starts) > n:
        first = int(np.argmin(sums[:-1] + sums[1:]))
        both = sums[first] + sums[first + 1]
        sums = np.delete(sums, first + 1)
        sums[first] = both
        del starts[first + 1]
    return starts


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean attention mask as numbers to add to scores: 0 where true, the lowest number where false.

    Every attention implementation of transformers takes this form; some do not take booleans.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
