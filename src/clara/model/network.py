"""The trainable whole: backbone with adapters, and the memory table. Tensors in, tensors out.

Knows no text and no tokenizer. Training calls it under gradient, inference through ``ClaraModel``.
Shape letters: B batch, S text tokens (padded), N memory tokens, H hidden size, L decoder positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from clara.config import CompressionConfig
from clara.model.adapters import Adapters, Role
from clara.model.memory import (
    MemoryTable,
    additive,
    equal_spans,
    memory_attention,
    memory_positions,
    pool,
    right_padded,
)
from clara.model.official_vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ReadOut:
    """What the backbone's hidden states say of a batch of texts, before the memory table scales it.

    Attributes:
        read: float32 [B, N, H], at the memory tokens or pooled over spans.
        residual: float32 [B, N, H], mean token embeddings of the spans.
        text_mean: float32 [B, H], mean last hidden state of the text's own tokens.
    """

    read: Tensor
    residual: Tensor
    text_mean: Tensor


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the compressor or the query reasoner made of a batch of texts.

    Attributes:
        memory: float32 [B, N, H].
        read_out: what it was made of; its means make the MSE term of clara.md section 3.
    """

    memory: Tensor
    read_out: ReadOut


def read_out(
    model: PreTrainedModel, table: MemoryTable, config: CompressionConfig, ids: Tensor, mask: Tensor, *, rate: int
) -> ReadOut:
    """Read texts with a causal LM that already acts as the wanted role.

    No LM head, no other layer's hidden states. Padding on either side changes nothing.

    Args:
        model: the causal LM.
        table: the memory table.
        config: read-out and its options.
        ids: int64 [B, S] token ids.
        mask: bool [B, S], true on text.
        rate: compression rate, one of ``config.rates``.
    """
    n = config.memory_tokens(rate)
    ids, mask = right_padded(ids, mask)
    spans = equal_spans(mask, n)
    decoder, embeds = model.get_decoder(), model.get_input_embeddings()(ids)
    # Text is causal and padded on the right, so it needs no mask and takes the fast attention kernels; memory tokens
    # then read its keys and values. Text never sees memory tokens: the two passes compute what one would.
    first = decoder(inputs_embeds=embeds, use_cache=table.tokens is not None)
    text = first.last_hidden_state.float()
    share = mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)
    if table.tokens is not None:
        slots = table.tokens[:n].to(embeds.dtype).expand(ids.shape[0], -1, -1)
        if config.pooled_input:
            slots = slots + pool(spans.weights, embeds)
        second = decoder(
            inputs_embeds=slots,
            attention_mask=additive(memory_attention(spans, mask, config.attention), slots.dtype),
            position_ids=memory_positions(spans, mask, config.positions),
            past_key_values=first.past_key_values,
            use_cache=True,
        )
        read = second.last_hidden_state.float()
    with torch.autocast(ids.device.type, enabled=False):  # means of values whose rounding would show in the memory
        return ReadOut(
            read=pool(spans.weights, text) if table.tokens is None else read,
            residual=pool(spans.weights, embeds.float()),
            text_mean=torch.einsum("bs,bsh->bh", share, text),
        )


def encode(
    model: PreTrainedModel, table: MemoryTable, config: CompressionConfig, ids: Tensor, mask: Tensor, *, rate: int
) -> Encoded:
    """Turn texts into memories; arguments as ``read_out``."""
    parts = read_out(model, table, config, ids, mask, rate=rate)
    return Encoded(memory=table.assemble(parts.read, parts.residual, rate=rate), read_out=parts)


class Network(nn.Module):
    """Backbone with adapters, and memory table, as one module that an optimiser and a checkpoint can hold."""

    def __init__(
        self, adapters: Adapters, config: CompressionConfig, table: MemoryTable, vocabulary: Vocabulary | None = None
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary  # of a checkpoint in Apple's format; already applied to the backbone
        self.adapters = adapters
        self.config = config
        self.table = table
        self.backbone = adapters.peft_model

    def encode(self, role: Role, ids: Tensor, mask: Tensor, *, rate: int) -> Encoded:
        """``encode`` as ``role``, gradients included."""
        with self.adapters.use(role):
            return encode(self.adapters.bare(), self.table, self.config, ids, mask, rate=rate)

    def decode(self, embeds: Tensor, attention: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states of the generator: [B, L, H].

        Args:
            embeds: [B, L, H] prompt with memories spliced in.
            attention: bool [B, 1, L, L], true where a token may look.
            positions: int64 [B, L].
        """
        with self.adapters.use("generator"):
            out = self.adapters.bare().get_decoder()(
                inputs_embeds=embeds,
                attention_mask=additive(attention, embeds.dtype),
                position_ids=positions,
                use_cache=False,
            )
            hidden: Tensor = out.last_hidden_state
            return hidden

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings of the backbone."""
        embeds: Tensor = self.adapters.bare().get_input_embeddings()(ids)
        return embeds

    def logits(self, hidden: Tensor) -> Tensor:
        """The LM head on chosen hidden states: [..., H] -> [..., V]."""
        scores: Tensor = self.adapters.bare().get_output_embeddings()(hidden)
        return scores


def splice(embeds: Tensor, slots: Tensor, memories: Tensor) -> Tensor:
    """Put memory vectors in the place of the slot tokens.

    Args:
        embeds: [B, L, H].
        slots: bool [B, L], true where a memory vector belongs; in reading order over the whole batch.
        memories: [sum of slots, H] in the same order.
    """
    index = slots.reshape(-1).nonzero(as_tuple=True)[0]
    flat = embeds.reshape(-1, embeds.shape[-1])
    return flat.index_copy(0, index, memories.to(flat.dtype)).reshape(embeds.shape)
