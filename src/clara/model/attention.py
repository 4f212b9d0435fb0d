"""Attention on a CPU as plain matrix products: of bulk compression, and of training without padding.

Compression (``speed_up``): the fused CPU kernel is made for long texts; at 256 tokens it takes a fifth of a forward
pass. Grouped query heads that share a key head are one tall matrix product each, which the CPU multiplies near its peak
(LOG.md, 2026-11-23). Inference only, and only where padding is on the right or a mask is given; generation keeps
transformers' own kernels.

Training (``enable_packing``): the sequences of a batch are laid end to end, each with its own attention mask. Matrix
products run on real tokens only, and attention is a small matrix product a sequence, which a CPU computes faster than
its fused kernel, backward above all (LOG.md, 2026-11-24).

The only file that touches private members of transformers' models: they have no public reader of their attention.
Shape letters: B batch, S query positions, T key positions or tokens of all sequences, H hidden size, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from clara.model.spans import additive

_GROUPED = "clara_grouped_products"
_FAMILIES = ("llama", "mistral", "phi3", "qwen2", "smollm3")
"""Model types whose attention is plain scaled dot products: no soft cap, no sinks, no window below 256 tokens."""


def _grouped_products(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention in transformers' interface: [B, S, heads, D], and no attention weights.

    Of ``query`` [B, heads, S, D], ``key`` and ``value`` [B, key heads, T, D]. ``attention_mask`` [B, 1, S, T] is added
    to the scores; None is causal attention of all positions.
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


AttentionInterface.register(_GROUPED, _grouped_products)


def attention_of(model: PreTrainedModel) -> str:
    """Transformers' name of a model's attention."""
    name: str = model.config._attn_implementation
    return name


@contextmanager
def attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model use another attention for a while."""
    before = attention_of(model)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def speed_up(model: PreTrainedModel) -> None:
    """Let a model that only compresses use ``_grouped_products`` where it is right and faster."""
    if model.device.type == "cpu" and model.config.model_type in _FAMILIES:
        model.set_attn_implementation(_GROUPED)


_PACKED = "clara_packed"


@dataclass(frozen=True, slots=True)
class Packing:
    """The layout of a packed tensor: lengths of the sequences, T together, and a mask of each.

    Masks are added to the scores, [S, S] in the dtype of the products.
    """

    lengths: tuple[int, ...]
    masks: tuple[Tensor, ...]

    @classmethod
    def of(cls, allowed: Sequence[Tensor], dtype: torch.dtype) -> Packing:
        """From one bool [S, S] a sequence, true where a token may look."""
        return cls(tuple(len(mask) for mask in allowed), tuple(additive(mask, dtype) for mask in allowed))

    def run(self, decoder: nn.Module, embeds: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states [T, H] of packed sequences [T, H] by a backbone without its LM head."""
        # A mask of four dimensions is handed on as it is; without one transformers would build its own, T x T.
        unread = embeds.new_zeros(1, 1, 1, 1)
        out = decoder(
            inputs_embeds=embeds.unsqueeze(0),
            attention_mask=unread,
            position_ids=positions.unsqueeze(0),
            packing=self,
            use_cache=False,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden[0]


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    packing: Packing | None = None,
    **rest: object,
) -> tuple[Tensor, Tensor | None]:
    """Attention within each sequence, in transformers' interface: [1, T, heads, D], and no attention weights.

    Of ``query`` [1, heads, T, D], ``key`` and ``value`` [1, key heads, T, D]. Without a packing (generation, inference)
    torch's own attention answers.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)  # type: ignore[no-any-return]
    _, heads, _, d = query.shape
    groups = key.shape[1]
    lengths = list(packing.lengths)
    # Autocast would take the softmax to fp32 and back: the largest tensors here, for digits that bf16 then drops.
    with torch.autocast(query.device.type, enabled=False):
        scaled = query[0] * (d**-0.5 if scaling is None else scaling)
        parts = zip(
            torch.split(scaled, lengths, dim=1),
            torch.split(key[0], lengths, dim=1),
            torch.split(value[0], lengths, dim=1),
            packing.masks,
            strict=True,
        )
        out = []
        for q, k, v, mask in parts:
            s = q.shape[1]
            scores = torch.bmm(q.reshape(groups, heads // groups * s, d), k.transpose(1, 2)).view(heads, s, s)
            weights = scores.add_(mask).softmax(dim=-1)
            mixed = torch.bmm(weights.view(groups, heads // groups * s, s), v)
            out.append(mixed.view(heads, s, d).transpose(0, 1))
        return torch.cat(out).unsqueeze(0), None


AttentionInterface.register(_PACKED, _packed_attention)
AttentionMaskInterface.register(_PACKED, sdpa_mask)


def enable_packing(model: PreTrainedModel) -> bool:
    """Let a model take packed sequences where that is right and faster; returns whether it does."""
    if model.device.type != "cpu" or model.config.model_type not in _FAMILIES:
        return False
    model.set_attn_implementation(_PACKED)
    return True


def takes_packed(model: PreTrainedModel) -> bool:
    """The model takes packed sequences (``enable_packing``)."""
    return attention_of(model) == _PACKED
