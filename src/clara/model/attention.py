"""Attention for bulk compression on a CPU, as plain matrix products; and which attention a model has.

The fused CPU kernel is made for long texts; at 256 tokens it takes a fifth of a forward pass. Grouped query heads that
share a key head are one tall matrix product each, which the CPU multiplies near its peak (LOG.md, 2026-11-23).
Inference only, and only where padding is on the right or a mask is given; generation keeps transformers' own kernels.
The only file that touches private members of transformers' models: they have no public reader of their attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

_NAME = "clara_grouped_products"
FAMILIES = ("llama", "mistral", "phi3", "qwen2", "smollm3")
"""Model types whose attention is plain scaled dot products: no soft cap, no sinks, no window below 256 tokens."""


def grouped_products(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in transformers' interface.

    Args:
        _module: the attention layer, which the interface passes.
        query: [B, heads, S, D].
        key: [B, key heads, T, D].
        value: as ``key``.
        attention_mask: numbers to add to the scores [B, 1, S, T], or None for causal attention of all positions.
        scaling: of the scores; 1 / sqrt(D) when None.

    Returns:
        [B, S, heads, D], and no attention weights.
    """
    b, heads, s, d = query.shape
    groups, t = key.shape[1], key.shape[2]
    shared = (b * groups, heads // groups * s)
    scores = torch.bmm(query.reshape(*shared, d), key.reshape(b * groups, t, d).transpose(1, 2))
    scores = scores.view(b, heads, s, t) * (d**-0.5 if scaling is None else scaling)
    if attention_mask is None:
        attention_mask = torch.full((s, t), float("-inf"), dtype=scores.dtype).triu(1 + t - s)
    weights = (scores + attention_mask).softmax(dim=-1)
    mixed = torch.bmm(weights.view(*shared, t), value.reshape(b * groups, t, d))
    return mixed.view(b, heads, s, d).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, grouped_products)


def attention_of(model: PreTrainedModel) -> str:
    """Transformers' name of the attention that a model has."""
    name: str = model.config._attn_implementation
    return name


@contextmanager
def attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model have another attention for a while."""
    before = attention_of(model)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def speed_up(model: PreTrainedModel) -> None:
    """Let a model that only compresses use ``grouped_products`` where it is right and faster."""
    if model.device.type == "cpu" and model.config.model_type in FAMILIES:
        model.set_attn_implementation(_NAME)
