"""Spans: which text a memory token stands for, what it sees of the text, where it sits.

Pure tensor functions. What is trained is in ``table``; knows no backbone and no adapter.
Shape letters: B batch, S text tokens (padded), N memory tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def right_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same texts with all padding on the right.

    Args:
        ids: int64 [B, S].
        mask: bool [B, S], true on text.
    """
    if bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return ids, mask
    order = mask.logical_not().long().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


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


def text_positions(mask: Tensor) -> Tensor:
    """Position of each text token in the unpadded text: int64 [B, S], 0 on padding, for any side of padding.

    Args:
        mask: bool [B, S], true on text.
    """
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def equal_spans(mask: Tensor, n: int) -> Spans:
    """Cut each text into ``n`` spans of equal length, up to rounding.

    Span i of a text of length L covers tokens floor(i L / n) .. floor((i + 1) L / n), and at least one token, so a
    text shorter than ``n`` repeats tokens instead of leaving spans empty.

    Args:
        mask: bool [B, S], true on text.
        n: spans a text.
    """
    return _spans(_equal_cuts(mask, n), mask)


def information_spans(information: Tensor, mask: Tensor, n: int) -> Spans:
    """Cut each text into ``n`` spans that carry about the same information.

    From one span a token, the two neighbours that carry least together are merged until ``n`` are left, the first pair
    of equals first. A text of at most ``n`` tokens has nothing to merge and is cut as ``equal_spans`` does.

    Args:
        information: float32 [B, S], of each token, in any unit.
        mask: bool [B, S], true on text, padding on the right.
        n: spans a text.
    """
    cuts = _equal_cuts(mask, n)
    values = information.cpu().double().numpy()
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        if length > n:
            starts = torch.tensor(_merged(values[row, :length], n), device=mask.device)
            cuts.starts[row], cuts.ends[row, :-1], cuts.ends[row, -1] = starts, starts[1:], length
    return _spans(cuts, mask)


def _merged(information: npt.NDArray[np.float64], n: int) -> list[int]:
    """Where the spans of ``information_spans`` begin."""
    starts, sums = list(range(len(information))), information
    while len(starts) > n:
        first = int(np.argmin(sums[:-1] + sums[1:]))
        both = sums[first] + sums[first + 1]
        sums = np.delete(sums, first + 1)
        sums[first] = both
        del starts[first + 1]
    return starts


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Where spans begin and end, as positions in the unpadded text.

    Attributes:
        starts: int64 [B, N], first tokens.
        ends: int64 [B, N], tokens after the last.
    """

    starts: Tensor
    ends: Tensor


def _equal_cuts(mask: Tensor, n: int) -> _Cuts:
    """Those of ``equal_spans``."""
    lengths = mask.sum(dim=1)[:, None]  # [B, 1]
    slots = torch.arange(n, device=mask.device)[None, :]
    starts = slots * lengths // n
    return _Cuts(starts, torch.maximum((slots + 1) * lengths // n, starts + 1))


def _spans(cuts: _Cuts, mask: Tensor) -> Spans:
    """Spans that are cut so."""
    starts, ends = cuts.starts, cuts.ends
    positions = text_positions(mask)[:, None, :]
    member = (positions >= starts[:, :, None]) & (positions < ends[:, :, None]) & mask[:, None, :]
    weights = member.float()
    weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=1)
    return Spans(member=member, weights=weights, centre=(starts + ends - 1).float() / 2)


def pool(weights: Tensor, values: Tensor) -> Tensor:
    """Span means: [B, N, S] x [B, S, H] -> [B, N, H] in the dtype of ``values``."""
    return torch.bmm(weights.to(values.dtype), values)


def memory_positions(spans: Spans, mask: Tensor, positions: str) -> Tensor:
    """Position ids of the memory tokens: int64 [B, N].

    ``appended`` continues after the text; ``spread`` puts each at the middle of its span (arXiv 2409.14364).
    """
    if positions == "spread":
        return spans.centre.long()
    n = spans.member.shape[1]
    return mask.sum(dim=1)[:, None] + torch.arange(n, device=mask.device)[None, :]


def memory_attention(spans: Spans, mask: Tensor, attention: str) -> Tensor:
    """What memory tokens see of ``[text, memory tokens]``: bool [B, 1, N, S + N], true where one may look.

    The whole text and the memory tokens up to themselves (``full``), or their span and themselves (``span``).
    """
    b, n, _ = spans.member.shape
    own = torch.eye(n, dtype=torch.bool, device=mask.device)
    if attention == "span":
        text = spans.member
    else:
        text, own = mask[:, None, :].expand(-1, n, -1), torch.ones_like(own).tril()
    return torch.cat([text, own.expand(b, -1, -1)], dim=2)[:, None]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean attention mask as numbers to add to scores: 0 where true, the lowest number where false.

    Every attention implementation of transformers takes this form; some do not take booleans.
    """
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def token_information(texts: Iterable[Sequence[int]], vocabulary: int) -> Tensor:
    """Minus the logarithm of each token's frequency in texts, in nats: float32 [V].

    Args:
        texts: token ids, the more the better.
        vocabulary: V, rows of the backbone's token embeddings.
    """
    counts = torch.ones(vocabulary, dtype=torch.float64)  # a token that was not seen is not impossible
    for ids in texts:
        counts += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=vocabulary)
    return (counts.sum() / counts).log().float()


def information_weights(spans: Spans, information: Tensor) -> Tensor:
    """How much each memory token of a question counts in late interaction: float32 [B, N], a mean of one.

    The squared information of the text tokens that it stands for; several memory tokens share that of one text token.
    Names then say more than "in what year" (LOG.md, 2026-11-26): words that weigh on both sides are what tf-idf
    compares by, too.

    Args:
        spans: of questions.
        information: float32 [B, S], of each of their tokens.
    """
    member = spans.member.float()
    shares = member / member.sum(dim=1, keepdim=True).clamp(min=1)
    weights = torch.einsum("bns,bs->bn", shares, information.square())
    return weights / weights.mean(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
