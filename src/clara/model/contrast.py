"""Context-aware decoding (arXiv 2305.14739): what the model would say of no passage in particular counts against it.

The shorter a memory, the more an answer is what questions of its kind are answered with, whatever the passage says.
Taking a share of that off leaves what the passage adds. The blank that stands for "no passage in particular" is one
memory, all of whose tokens are the mean of passages' tokens.
Knows tensors and a model's forward pass, not requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, LogitsProcessor, PreTrainedModel


@dataclass(frozen=True, slots=True)
class Blanks:
    """The prompts of some rows of a batch, with the blank in the place of their passages.

    Attributes:
        rows: the rows that are contrasted.
        weights: of each, what a log-probability given the blank counts against one given the passages.
        embeds: [len(rows), L, H], padded on the left.
        mask: int64 [len(rows), L].
    """

    rows: Sequence[int]
    weights: Sequence[float]
    embeds: Tensor
    mask: Tensor


class ContextAware(LogitsProcessor):  # type: ignore[misc]
    """Scores of one generation less a share of those after blank prompts; writes along token by token."""

    def __init__(self, model: PreTrainedModel, blanks: Blanks) -> None:
        """Remember what to contrast with.

        Args:
            model: the one that generates, in the role that it generates in.
            blanks: of at least one row.
        """
        self._model = model
        self._rows, self._weights = list(blanks.rows), list(blanks.weights)
        self._embeds, self._mask = blanks.embeds, blanks.mask
        self._cache: Cache | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V], log-probabilities in the contrasted rows; ``input_ids`` are int64 [B, written]."""
        blank = self._blank_scores(input_ids).to(scores.device)
        contrasted = scores.clone()
        weights = scores.new_tensor(self._weights)[:, None]
        contrasted[self._rows] = scores[self._rows].log_softmax(dim=-1) - weights * blank
        return contrasted

    def _blank_scores(self, input_ids: Tensor) -> Tensor:
        if self._cache is None:
            read = {"inputs_embeds": self._embeds}
        else:
            read = {"input_ids": input_ids[self._rows, -1:]}
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        out = self._model(
            **read, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = out.past_key_values
        scores: Tensor = out.logits[:, -1].float()
        return scores.log_softmax(dim=-1)
