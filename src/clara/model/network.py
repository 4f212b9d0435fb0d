"""From texts to memories: backbone with adapters, and the memory table. Tensors in, tensors out.

Knows no text and no tokenizer; what reads prompts is ``decoder``. Training calls it under gradient, inference through
``ClaraModel``. Where layers are mixed in, a decoder notes what they give and runs none above the highest that is read;
each call gets a decoder of its own that shares all weights, so that several threads may read one model.
Shape letters: B batch, S text tokens (padded), N memory tokens, H hidden size, L layers read.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from clara.config import CompressionConfig
from clara.errors import ConfigError
from clara.model.attention import Packing, takes_packed
from clara.model.decoder import Decoder, Role, StoredAdapters
from clara.model.spans import Spans, additive
from clara.model.table import LayerMix, MemoryTable

if TYPE_CHECKING:
    from clara.model.adapters import Adapters
    from clara.model.apple.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ReadOut:
    """Hidden states read from a batch of texts, before the memory table scales them.

    Attributes:
        read: float32 [B, N, H], at the memory tokens or pooled over spans; zeros where no last hidden state is read.
        residual: float32 [B, N, H], of the spans' token embeddings.
        text_mean: float32 [B, H], mean last hidden state of the text's own tokens; zeros where none is read.
        layers: float32 [B, N, L, H], pooled states of the layers that are mixed in; None where none are.
    """

    read: Tensor
    residual: Tensor
    text_mean: Tensor
    layers: Tensor | None = None

    def states(self) -> Tensor:
        """The read-out, then the layers: float32 [B, N, 1 + L, H]."""
        read = self.read[:, :, None]
        return read if self.layers is None else torch.cat([read, self.layers], dim=2)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Memories float32 [B, N, H] of a batch of texts, by the compressor or the query reasoner, and their source.

    Means of the read-out make the MSE term of clara.md section 3.
    """

    memory: Tensor
    read_out: ReadOut


def read_outs(
    model: PreTrainedModel, table: MemoryTable, ids: Tensor, mask: Tensor, *, rates: Sequence[int]
) -> dict[int, ReadOut]:
    """Read texts with a causal LM that already acts as the wanted role, once for all rates; by rate.

    ``ids`` int64 [B, S], ``mask`` bool [B, S], true on text. No LM head, and no layer above those that are read.
    Padding on either side changes nothing, nor does another rate: memory tokens see those of their own rate only.
    """
    config = table.config
    ids, mask = _right_padded(ids, mask)
    spans = {rate: table.spans(ids, mask, rate=rate) for rate in rates}
    embeds = model.get_input_embeddings()(ids)
    slots = None if table.tokens is None else _slots(table.tokens, config, spans, embeds, mask)
    decoder = model.get_decoder()
    states_of = _packed_states if takes_packed(model) else _padded_states
    if states_of is _padded_states and _recomputes(decoder):
        states_of = _joined_states  # layers that are computed again keep no keys and values for a second pass
    states = states_of(decoder, _Input(embeds, mask, slots), config).to(ids.device)
    share = mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)
    with torch.autocast(ids.device.type, enabled=False):  # means of values whose rounding would show in the memory
        text = embeds.new_zeros(embeds.shape, dtype=torch.float32) if states.text is None else states.text
        if states.read is None:
            parts = [span.pool(text) for span in spans.values()]
        else:
            parts = list(torch.split(states.read, [config.memory_tokens(rate) for rate in rates], dim=1))
        text_mean = torch.einsum("bs,bsh->bh", share, text)
        return {
            rate: ReadOut(
                read=part,
                residual=table.residual(span, embeds),
                text_mean=text_mean,
                layers=None if states.layers is None else LayerMix.pooled(states.layers, span),
            )
            for (rate, span), part in zip(spans.items(), parts, strict=True)
        }


def _right_padded(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same texts, int64 [B, S] with their mask, with all padding on the right."""
    if bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return ids, mask
    order = mask.logical_not().long().argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


@dataclass(frozen=True, slots=True)
class _States:
    """Hidden states of a batch of texts.

    Attributes:
        text: float32 [B, S, H], the last ones of the text; None where no layer above the mixed ones is run.
        read: float32 [B, N, H], the last ones of the memory tokens; None without them.
        layers: [L, B, S, H] of the text, of the layers that are mixed in; None where none are.
    """

    text: Tensor | None
    read: Tensor | None
    layers: Tensor | None

    def to(self, device: torch.device) -> _States:
        """On one device: where the layers lie on several (accelerate's device maps), so do their results."""
        text, read, layers = (None if t is None else t.to(device) for t in (self.text, self.read, self.layers))
        return _States(text, read, layers)


@dataclass(frozen=True, slots=True)
class _Decoder:
    """A decoder that reads text, called as the backbone without its LM head.

    It notes the states of the layers that are mixed in, float [..., H] by layer, from 1, of the last call. ``whole``:
    the layers above the highest of them are run, too.
    """

    module: nn.Module
    noted: dict[int, Tensor]
    whole: bool

    @classmethod
    def of(cls, decoder: nn.Module, config: CompressionConfig) -> _Decoder:
        """Make one for a configuration; ``decoder`` is not changed (ConfigError: there is no such layer)."""
        whole, layers = config.read_out != "layers", config.layers
        if not layers:
            return cls(decoder, {}, whole)
        name, stack = _stack(decoder)
        if max(layers) > len(stack):
            raise ConfigError(f"layers names layer {max(layers)}, the base model has {len(stack)}")
        made = cls(_shallow(decoder), {}, whole)
        run = enumerate(stack if whole else stack[: max(layers)], start=1)
        read = [_noted(layer, number, made.noted) if number in layers else layer for number, layer in run]
        made.module._modules[name] = nn.ModuleList(read)
        return made

    def layers(self) -> Tensor | None:
        """[L, …, H] after a call; the lowest first."""
        if not self.noted:
            return None
        first = next(iter(self.noted.values()))
        return torch.stack([self.noted[number].to(first.device) for number in sorted(self.noted)])


def _stack(decoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name of a decoder's layers, and the layers."""
    for name, module in decoder.named_children():
        if isinstance(module, nn.ModuleList):
            return name, module
    raise ConfigError(f"{type(decoder).__name__} holds its layers otherwise than in a list; layers cannot be read")


def _shallow(module: nn.Module) -> nn.Module:
    """The same module with children and hooks that can be changed without changing it."""
    twin = copy.copy(module)  # shares the two dictionaries below, which torch has no public way to part
    twin._modules = dict(module._modules)
    twin._forward_hooks = OrderedDict(module._forward_hooks)
    return twin


def _noted(layer: nn.Module, number: int, states: dict[int, Tensor]) -> nn.Module:
    def note(_module: nn.Module, _given: object, out: Any) -> None:  # noqa: ANN401 - a tensor, or a tuple that begins with it
        states[number] = out[0] if isinstance(out, tuple) else out

    twin = _shallow(layer)
    twin.register_forward_hook(note)
    return twin


@dataclass(frozen=True, slots=True)
class _Slots:
    """The memory tokens that follow a batch of texts, those of one rate after those of another; N in all.

    Their embeddings [B, N, H], what each sees of ``[text, memory tokens]``, bool [B, N, S + N], and position ids.
    """

    embeds: Tensor
    sees: Tensor
    positions: Tensor


@dataclass(frozen=True, slots=True)
class _Input:
    """Texts for the backbone, padded on the right, with the memory tokens, if any.

    Embeds [B, S, H]; mask bool [B, S], true on text.
    """

    embeds: Tensor
    mask: Tensor
    slots: _Slots | None


def _slots(
    tokens: Tensor, config: CompressionConfig, spans: Mapping[int, Spans], embeds: Tensor, mask: Tensor
) -> _Slots:
    """Memory tokens of the rates that ``spans`` names, for texts [B, S, H] padded on the right."""
    b, width = mask.shape
    sizes = [config.memory_tokens(rate) for rate in spans]
    given = []
    sees = mask.new_zeros(b, sum(sizes), width + sum(sizes))
    first = 0
    for span, n in zip(spans.values(), sizes, strict=True):
        own = tokens[:n].to(embeds.dtype).expand(b, -1, -1)
        given.append(own + span.pool(embeds) if config.pooled_input else own)
        seen = span.attention(mask, config.attention)
        sees[:, first : first + n, :width] = seen[..., :width]
        sees[:, first : first + n, width + first : width + first + n] = seen[..., width:]
        first += n
    positions = [span.positions(mask, config.positions) for span in spans.values()]
    return _Slots(torch.cat(given, dim=1), sees, torch.cat(positions, dim=1))


def _padded_states(decoder: nn.Module, given: _Input, config: CompressionConfig) -> _States:
    """Hidden states of texts as they are, padding included."""
    # Text is causal and padded on the right, so it needs no mask and takes the fast attention kernels; memory tokens
    # then read its keys and values. Text never sees memory tokens: the two passes compute what one would.
    slots = given.slots
    reading = _Decoder.of(decoder, config)
    first = reading.module(inputs_embeds=given.embeds, use_cache=slots is not None)
    text = first.last_hidden_state.float() if reading.whole else None
    if slots is None:
        return _States(text, None, reading.layers())
    second = decoder(
        inputs_embeds=slots.embeds,
        attention_mask=additive(slots.sees[:, None], slots.embeds.dtype),
        position_ids=slots.positions,
        past_key_values=first.past_key_values,
        use_cache=True,
    )
    return _States(text, second.last_hidden_state.float(), reading.layers())


def _recomputes(decoder: nn.Module) -> bool:
    """True if layers are computed again in the backward pass (``Adapters.recompute_layers``)."""
    return decoder.training and any(getattr(layer, "gradient_checkpointing", False) for layer in decoder.modules())


def _joined_states(decoder: nn.Module, given: _Input, config: CompressionConfig) -> _States:
    """As ``_padded_states``, with each text and its memory tokens as one sequence, in one pass."""
    embeds, mask, slots = given.embeds, given.mask, given.slots
    if slots is None:
        return _padded_states(decoder, given, config)
    b, width = mask.shape
    n = slots.embeds.shape[1]
    sees = mask.new_zeros(b, width + n, width + n)
    sees[:, :width, :width] = mask.new_ones(width, width).tril()
    sees[:, width:] = slots.sees
    positions = torch.cat([torch.arange(width, device=mask.device).expand(b, -1), slots.positions], dim=1)
    reading = _Decoder.of(decoder, config)
    hidden = reading.module(
        inputs_embeds=torch.cat([embeds, slots.embeds], dim=1),
        attention_mask=additive(sees[:, None], embeds.dtype),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state.float()
    layers = reading.layers()
    return _States(
        text=hidden[:, :width] if reading.whole else None,
        read=hidden[:, width:],
        layers=None if layers is None else layers[:, :, :width],
    )


def _packed_states(decoder: nn.Module, given: _Input, config: CompressionConfig) -> _States:
    """As ``_padded_states``, with each text and its memory tokens as one sequence and nothing computed for padding."""
    embeds, mask, slots = given.embeds, given.mask, given.slots
    b, width = mask.shape
    lengths = mask.sum(dim=1).tolist()
    if slots is None:
        slots = _Slots(embeds[:, :0], mask.new_zeros(b, 0, width), torch.zeros_like(mask[:, :0], dtype=torch.int64))
    n = slots.embeds.shape[1]
    pieces, positions, allowed = [], [], []
    for row, length in enumerate(lengths):
        pieces.extend([embeds[row, :length], slots.embeds[row]])
        positions.extend([torch.arange(length, device=mask.device), slots.positions[row]])
        causal = mask.new_ones(length, length).tril()
        text_rows = torch.cat([causal, causal.new_zeros(length, n)], dim=1)
        sees = slots.sees[row]
        allowed.append(torch.cat([text_rows, torch.cat([sees[:, :length], sees[:, width:]], dim=1)]))
    laid = torch.cat(pieces)
    layout = Packing.of(allowed, laid.dtype)
    reading = _Decoder.of(decoder, config)
    hidden = layout.run(reading.module, laid, torch.cat(positions)).float()
    sizes = [size for length in lengths for size in (length, n)]

    def padded(states: Tensor) -> Tensor:
        parts = torch.split(states, sizes)[::2]
        return torch.stack([functional.pad(part, (0, 0, 0, width - len(part))) for part in parts])

    layers = reading.layers()
    return _States(
        text=padded(hidden) if reading.whole else None,
        read=torch.stack(torch.split(hidden, sizes)[1::2]) if n else None,
        layers=None if layers is None else torch.stack([padded(states[0]) for states in layers]),
    )


def encode(
    model: PreTrainedModel, table: MemoryTable, ids: Tensor, mask: Tensor, *, rate: int, query: bool = False
) -> Encoded:
    """Turn texts into memories, as questions if ``query``; other arguments as ``read_outs``."""
    parts = read_outs(model, table, ids, mask, rates=(rate,))[rate]
    memory = table.assemble(parts.read, parts.residual, parts.layers, rate=rate, query=query)
    weights = table.question_weights(*_right_padded(ids, mask), rate=rate) if query else None
    return Encoded(memory=memory if weights is None else memory * weights[:, :, None], read_out=parts)


@dataclass(frozen=True, slots=True, eq=False)
class StoredNetwork:
    """Parts of a network that inference needs: attributes as ``Network``, with adapters that are not trainable."""

    adapters: StoredAdapters
    table: MemoryTable
    vocabulary: Vocabulary | None = None


class Network(Decoder):
    """A decoder with a memory table: what compresses texts and reads the memories, to train and to save whole."""

    def __init__(self, adapters: Adapters, table: MemoryTable, vocabulary: Vocabulary | None = None) -> None:
        super().__init__(adapters)
        self.vocabulary = vocabulary  # of a checkpoint in Apple's format; already applied to the backbone
        # The table before the backbone: the norm of the gradients is a sum in the order of parameters, and a run that
        # is resumed, or repeated to compare, has the same losses to the bit.
        del self.backbone
        self.table = table
        self.backbone = adapters.peft_model

    def encode(self, role: Role, ids: Tensor, mask: Tensor, *, rate: int) -> Encoded:
        """``encode`` as ``role``, gradients included."""
        with self.adapters.use(role):
            query = role == "query_reasoner"
            return encode(self.adapters.bare(), self.table, ids, mask, rate=rate, query=query)

    def assembled(self, states: Tensor, ids: Tensor, mask: Tensor, *, rate: int) -> Tensor:
        """Memories from states that were read before, gradients of the read-out included: float32 [B, N, H].

        ``states`` [B, N, 1 + L, H] are ``ReadOut.states``; token ids are padded on the right.
        """
        with torch.autocast(ids.device.type, enabled=False):
            states = states.float()
            residual = self.table.residual(self.table.spans(ids, mask, rate=rate), self.embed(ids))
            layers = states[:, :, 1:] if states.shape[2] > 1 else None
            return self.table.assemble(states[:, :, 0], residual, layers, rate=rate)

    def similarity(self, queries: Tensor, memories: Tensor, *, rate: int) -> Tensor:
        """Scores that rank candidates, gradients included: cosine of the flattened memories, or late interaction.

        Of queries [B, N, H] and memories [U, N, H] of one rate: float32 [B, U].
        """
        from clara.model.losses import cosine_matrix, late_matrix  # noqa: PLC0415 - to answer needs no formula of training

        centre = self.table.passage_centre(rate)
        return cosine_matrix(queries, memories) if centre is None else late_matrix(queries, memories, centre)
