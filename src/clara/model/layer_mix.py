"""The read-out of several layers: what each says of a span, and where in its span a token stands.

A memory read from one layer keeps what that layer is about: the first spelling, the last the next token. Mixed, the
middle ones carry most of what is asked (arXiv 2602.03784). All of it starts at zero and is added to what the memory
table makes, so a checkpoint that gets it computes what it did before until it is trained.
Shape letters: B batch, S text tokens, N memory tokens, H hidden size, L layers read, P places in a span, R low rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clara.config import CompressionConfig

_EPS = 1e-6


def pooled_layers(states: Tensor, weights: Tensor) -> Tensor:
    """Span means of several layers' states, each token at root mean square one before: float32 [B, N, L, H].

    Without that the first tokens of a text, whose states are hundreds of times larger in the middle layers, would be
    all that a mean says.

    Args:
        states: [L, B, S, H].
        weights: float32 [B, N, S], a mean over the span (``Spans.weights``).
    """
    states = states.float()
    level = states * torch.rsqrt(states.square().mean(dim=-1, keepdim=True) + _EPS)
    return torch.einsum("bns,lbsh->bnlh", weights, level)


class LayerMix(nn.Module):
    """Maps of the layers, and of the places in a span.

    Attributes:
        maps: float32 [L, H, H] of the layers, zero at first; None with a low rank, or where no layer is read.
        down: float32 [L, R, H], random; with ``up`` the same as a product of rank R.
        up: float32 [L, H, R], zero at first.
        places: float32 [P, H, H], what a span's first, second, … token counts beside its share of the mean, zero at
            first; the last one also stands for all that follow. None unless configured.
        centre: float32 [rates, L, H], taken off the pooled states; measured, not trained.
        spread: float32 [rates, L, H], which they are divided by after it.
    """

    maps: nn.Parameter | None
    down: nn.Parameter | None
    up: nn.Parameter | None
    places: nn.Parameter | None
    centre: Tensor
    spread: Tensor

    def __init__(self, config: CompressionConfig, width: int) -> None:
        """Make what a configuration asks for (``layers``, ``layer_rank``, ``places``), without effect yet."""
        super().__init__()
        self._rates = config.rates
        layers, rank = len(config.layers), config.layer_rank
        full = torch.zeros(layers, width, width) if layers and not rank else None
        self.register_parameter("maps", None if full is None else nn.Parameter(full))
        low = layers and rank
        self.register_parameter("down", nn.Parameter(torch.zeros(layers, rank, width)) if low else None)
        self.register_parameter("up", nn.Parameter(torch.zeros(layers, width, rank)) if low else None)
        own = nn.Parameter(torch.zeros(config.places, width, width)) if config.places else None
        self.register_parameter("places", own)
        self.register_buffer("centre", torch.zeros(len(self._rates), layers, width))
        self.register_buffer("spread", torch.ones(len(self._rates), layers, width))

    @torch.no_grad()
    def initialise(self, *, seed: int) -> None:
        """Random directions for a low rank; ``up`` stays zero."""
        if self.down is not None:
            noise = torch.randn(self.down.shape, generator=torch.Generator().manual_seed(seed))
            self.down.copy_(noise / self.down.shape[2] ** 0.5)

    @torch.no_grad()
    def calibrate(self, pooled: Tensor, *, rate: int) -> None:
        """Give every dimension of every layer a mean of zero and a spread of one.

        Args:
            pooled: float32 [samples, L, H], pooled states of sample texts.
            rate: the rate they were made at.
        """
        row = self._rates.index(rate)
        self.centre[row] = pooled.mean(dim=0)
        self.spread[row] = pooled.std(dim=0).clamp(min=torch.finfo(torch.float32).eps)

    def forward(self, pooled: Tensor, *, rate: int) -> Tensor:
        """What the layers add to a memory: [B, N, L, H] -> float32 [B, N, H]."""
        row = self._rates.index(rate)
        level = (pooled - self.centre[row]) / self.spread[row]
        if self.maps is not None:
            return torch.einsum("bnlh,lkh->bnk", level, self.maps)
        assert self.down is not None and self.up is not None  # noqa: S101, PT018 - one of the two there is
        return torch.einsum("bnlr,lkr->bnk", torch.einsum("bnlh,lrh->bnlr", level, self.down), self.up)

    def by_place(self, member: Tensor, weights: Tensor, embeds: Tensor) -> Tensor:
        """What places in a span add to the mean of its token embeddings: float32 [B, N, H].

        Args:
            member: bool [B, N, S], the span's tokens.
            weights: float32 [B, N, S], a mean over the span.
            embeds: [B, S, H].
        """
        assert self.places is not None  # noqa: S101 - asked for where there are some
        place = (member.long().cumsum(dim=2) - 1).clamp(max=len(self.places) - 1)
        added = embeds.new_zeros(*weights.shape[:2], embeds.shape[2], dtype=torch.float32)
        for number, matrix in enumerate(self.places):
            share = weights * (member & (place == number))
            added = added + torch.bmm(share, embeds.float()) @ matrix.T
        return added
