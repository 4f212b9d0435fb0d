"""A backbone with adapters that reads prompts: what readers, a selector and a compressed model have in common.

Training calls it under gradient; who only generates takes causal LMs from ``roles.RoleWeights``. Knows no text, no
tokenizer and no memory table: memories are vectors in a prompt.
Shape letters: B batch, L prompt positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from clara.model.attention import Packing, run_packed, takes_packed
from clara.model.roles import AdapterName
from clara.model.spans import additive

if TYPE_CHECKING:
    from clara.model.adapters import Adapters


class Decoder(nn.Module):
    """Backbone with adapters as one module that an optimiser can hold."""

    def __init__(self, adapters: Adapters) -> None:
        super().__init__()
        self.adapters = adapters
        self.backbone = adapters.peft_model

    def decode(
        self, embeds: Tensor, attention: Tensor, positions: Tensor, *, role: AdapterName | None = "generator"
    ) -> Tensor:
        """Last hidden states of the generator, or of another that reads prompts: [B, L, H].

        Args:
            embeds: [B, L, H] prompt with memories spliced in.
            attention: bool [B, 1, L, L], true where a token may look; padding, on the right, sees itself alone.
            positions: int64 [B, L].
            role: which adapter reads; None for the backbone alone.
        """
        with self.adapters.use(role):
            if takes_packed(self.adapters.bare()):
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
        layout = Packing.of([row[:n, :n] for row, n in zip(allowed, sizes, strict=True)], embeds.dtype)
        flat = embeds.reshape(-1, width).index_select(0, kept)
        decoder = self.adapters.bare().get_decoder()
        hidden = run_packed(decoder, flat, positions.reshape(-1).index_select(0, kept), layout)
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
