"""The trainable whole: backbone with adapters, and the memory table. Tensors in, tensors out.

Knows no text and no tokenizer. Training calls it under gradient, inference through ``ClaraModel``.
Shape letters: B batch, S text tokens (padded), N memory tokens, H hidden size, L decoder positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from clara.config import CompressionConfig
from clara.model import packing
from clara.model.adapters import AdapterName, Adapters, Role
from clara.model.memory import (
    MemoryTable,
    Spans,
    additive,
    memory_attention,
    memory_positions,
    pool,
    right_padded,
)
from clara.model.official_vocabulary import Vocabulary
from clara.model.selection import cosine_matrix, late_matrix


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
    ids, mask = right_padded(ids, mask)
    spans = table.spans(ids, mask, rate=rate)
    embeds = model.get_input_embeddings()(ids)
    slots = None
    if table.tokens is not None:
        slots = table.tokens[: config.memory_tokens(rate)].to(embeds.dtype).expand(ids.shape[0], -1, -1)
        if config.pooled_input:
            slots = slots + pool(spans.weights, embeds)
    states = _packed_states if packing.takes_packed(model) else _padded_states
    text, read = states(model.get_decoder(), config, _Input(embeds, mask, slots, spans))
    # Where the layers lie on several devices (accelerate's device maps), the last one's results lie there.
    text, read = text.to(ids.device), None if read is None else read.to(ids.device)
    share = mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)
    with torch.autocast(ids.device.type, enabled=False):  # means of values whose rounding would show in the memory
        return ReadOut(
            read=pool(spans.weights, text) if read is None else read,
            residual=pool(spans.weights, embeds.float()),
            text_mean=torch.einsum("bs,bsh->bh", share, text),
        )


@dataclass(frozen=True, slots=True)
class _Input:
    """What the backbone reads of a batch of texts.

    Attributes:
        embeds: [B, S, H] of the text, padded on the right.
        mask: bool [B, S], true on text.
        slots: [B, N, H] inputs of the memory tokens; None without them.
        spans: which text each memory token stands for.
    """

    embeds: Tensor
    mask: Tensor
    slots: Tensor | None
    spans: Spans


def _padded_states(decoder: nn.Module, config: CompressionConfig, given: _Input) -> tuple[Tensor, Tensor | None]:
    """Last hidden states float32 of the text [B, S, H] and of the memory tokens [B, N, H] (None without them)."""
    # Text is causal and padded on the right, so it needs no mask and takes the fast attention kernels; memory tokens
    # then read its keys and values. Text never sees memory tokens: the two passes compute what one would.
    first = decoder(inputs_embeds=given.embeds, use_cache=given.slots is not None)
    text = first.last_hidden_state.float()
    if given.slots is None:
        return text, None
    second = decoder(
        inputs_embeds=given.slots,
        attention_mask=additive(memory_attention(given.spans, given.mask, config.attention), given.slots.dtype),
        position_ids=memory_positions(given.spans, given.mask, config.positions),
        past_key_values=first.past_key_values,
        use_cache=True,
    )
    return text, second.last_hidden_state.float()


def _packed_states(decoder: nn.Module, config: CompressionConfig, given: _Input) -> tuple[Tensor, Tensor | None]:
    """As ``_padded_states``, with each text and its memory tokens as one sequence and nothing computed for padding."""
    device, (b, width) = given.mask.device, given.mask.shape
    lengths = given.mask.sum(dim=1).tolist()
    if given.slots is None:
        slots, places = given.embeds.new_zeros(b, 0, given.embeds.shape[2]), torch.zeros(b, 0, dtype=torch.int64)
        sees = torch.zeros(b, 0, width, dtype=torch.bool)
    else:
        slots, places = given.slots, memory_positions(given.spans, given.mask, config.positions)
        sees = memory_attention(given.spans, given.mask, config.attention)[:, 0]
    n = slots.shape[1]
    pieces, positions, allowed = [], [], []
    for row, (text, own, length) in enumerate(zip(given.embeds.unbind(), slots.unbind(), lengths, strict=True)):
        pieces.extend([text[:length], own])
        positions.extend([torch.arange(length, device=device), places[row]])
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        text_rows = torch.cat([causal, causal.new_zeros(length, n)], dim=1)
        allowed.append(torch.cat([text_rows, torch.cat([sees[row, :, :length], sees[row, :, width:]], dim=1)]))
    embeds = torch.cat(pieces)
    layout = packing.Packing.of(allowed, embeds.dtype)
    hidden = packing.run_packed(decoder, embeds, torch.cat(positions), layout).float()
    parts = torch.split(hidden, [size for length in lengths for size in (length, n)])
    text = torch.stack([functional.pad(part, (0, 0, 0, width - len(part))) for part in parts[::2]])
    return text, None if given.slots is None else torch.stack(parts[1::2])


def encode(
    model: PreTrainedModel,
    table: MemoryTable,
    config: CompressionConfig,
    ids: Tensor,
    mask: Tensor,
    *,
    rate: int,
    query: bool = False,
) -> Encoded:
    """Turn texts into memories, as questions if ``query``; other arguments as ``read_out``."""
    parts = read_out(model, table, config, ids, mask, rate=rate)
    memory = table.assemble(parts.read, parts.residual, rate=rate, query=query)
    weights = table.question_weights(*right_padded(ids, mask), rate=rate) if query else None
    return Encoded(memory=memory if weights is None else memory * weights[:, :, None], read_out=parts)


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
            query = role == "query_reasoner"
            return encode(self.adapters.bare(), self.table, self.config, ids, mask, rate=rate, query=query)

    def similarity(self, queries: Tensor, memories: Tensor, *, rate: int) -> Tensor:
        """What candidates are ranked by, gradients included: cosine of the flattened memories, or late interaction.

        Args:
            queries: [B, N, H], of the query reasoner.
            memories: [U, N, H], of the compressor.
            rate: of both.

        Returns:
            float32 [B, U].
        """
        centre = self.table.passage_centre(rate)
        return cosine_matrix(queries, memories) if centre is None else late_matrix(queries, memories, centre)

    def decode(
        self, embeds: Tensor, attention: Tensor, positions: Tensor, *, role: AdapterName = "generator"
    ) -> Tensor:
        """Last hidden states of the generator, or of another that reads prompts: [B, L, H].

        Args:
            embeds: [B, L, H] prompt with memories spliced in.
            attention: bool [B, 1, L, L], true where a token may look; padding, on the right, sees itself alone.
            positions: int64 [B, L].
            role: which adapter reads.
        """
        with self.adapters.use(role):
            if packing.takes_packed(self.adapters.bare()):
                return self._decode_packed(embeds, attention[:, 0], positions)
            out = self.adapters.bare().get_decoder()(
                inputs_embeds=embeds,
                attention_mask=additive(attention, embeds.dtype),
                position_ids=positions,
                use_cache=False,
            )
            hidden: Tensor = out.last_hidden_state
            return hidden

    def _decode_packed(self, embeds: Tensor, allowed: Tensor, positions: Tensor) -> Tensor:
        """``decode`` of the real tokens alone; padding, which only sees itself, comes out as zeros."""
        b, length, width = embeds.shape
        padding = allowed.sum(dim=2) == 1
        padding[:, 0] = False  # the first token of a sequence sees only itself too
        kept = (~padding).reshape(-1).nonzero(as_tuple=True)[0]
        sizes = (~padding).sum(dim=1).tolist()
        layout = packing.Packing.of([row[:n, :n] for row, n in zip(allowed, sizes, strict=True)], embeds.dtype)
        flat = embeds.reshape(-1, width).index_select(0, kept)
        decoder = self.adapters.bare().get_decoder()
        hidden = packing.run_packed(decoder, flat, positions.reshape(-1).index_select(0, kept), layout)
        return hidden.new_zeros(b * length, width).index_copy(0, kept, hidden).view(b, length, width)

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
