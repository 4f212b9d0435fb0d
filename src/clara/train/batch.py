"""Examples to tensors: texts for the compressor, and one decoder sequence an example for all of its targets.

The targets of an example share the prompt up to the question and then stand side by side: each sees the shared part
and itself, at the position ids it would have alone, so the loss is that of separate sequences at a fraction of the
tokens.
Shape letters: D texts in the batch, S text tokens, B examples, L decoder positions, N memory tokens, T labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from clara.model.prompting import Prompter
from clara.train.examples import Example, Target

MAX_REPLY = 96
"""Tokens a reply is cut to; longer replies teach little more and would set the padded length of their batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimisation step's input.

    Attributes:
        text_ids: int64 [D, S]; the texts of example 0, then of example 1, …
        text_mask: bool [D, S].
        decoder_ids: int64 [B, L].
        slots: bool [B, L], where memory vectors go.
        segments: int64 [B, L]: 0 the shared part, 1, 2, … the targets, -1 padding.
        positions: int64 [B, L].
        label_index: int64 [T], flat positions in [B * L] whose next token is a label.
        labels: int64 [T].
        weights: float32 [T].
        rate: compression rate of the whole batch.
    """

    text_ids: Tensor
    text_mask: Tensor
    decoder_ids: Tensor
    slots: Tensor
    segments: Tensor
    positions: Tensor
    label_index: Tensor
    labels: Tensor
    weights: Tensor
    rate: int

    def tokens(self) -> int:
        """Real tokens and memory slots that a forward pass reads."""
        return int(self.text_mask.sum()) + int((self.segments >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "rate"}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class _Sequence:
    ids: list[int]
    slots: list[int]
    segments: list[int]
    positions: list[int]
    label_positions: list[int]
    labels: list[int]
    weights: list[float]


class Collator:
    """Builds batches for one tokenizer and window."""

    def __init__(self, prompter: Prompter, *, window_tokens: int) -> None:
        self._prompter = prompter
        self._window = window_tokens

    def __call__(self, examples: Sequence[Example], *, rate: int) -> Batch:
        """Make a batch; texts longer than the window are cut at their end.

        Args:
            examples: at least one.
            rate: compression rate; decides the number of memory slots.
        """
        texts = [self._prompter.plain(text)[: self._window] for example in examples for text in example.texts]
        rows = [self._sequence(example, self._window // rate) for example in examples]
        s, length = max(map(len, texts)), max(len(row.ids) for row in rows)
        labels = [label for row in rows for label in row.labels]
        index = [i * length + p for i, row in enumerate(rows) for p in row.label_positions]
        slots = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            slots[i, row.slots] = True
        return Batch(
            text_ids=_padded(texts, s, 0),
            text_mask=_padded([[1] * len(text) for text in texts], s, 0).bool(),
            decoder_ids=_padded([row.ids for row in rows], length, self._prompter.eos),
            slots=slots,
            segments=_padded([row.segments for row in rows], length, -1),
            positions=_padded([row.positions for row in rows], length, 0),
            label_index=torch.tensor(index),
            labels=torch.tensor(labels),
            weights=torch.tensor([w for row in rows for w in row.weights]),
            rate=rate,
        )

    def _sequence(self, example: Example, memory_tokens: int) -> _Sequence:
        shared = self._prompter.memory_background([memory_tokens] * len(example.texts))
        n = len(shared.ids)
        row = _Sequence(list(shared.ids), list(shared.slots), [0] * n, list(range(n)), [], [], [])
        for segment, target in enumerate(example.targets, start=1):
            prompt, reply = self._target(target)
            start = len(row.ids) + len(prompt)
            # The end token needs no position of its own: it is a label of the last reply token.
            row.ids.extend([*prompt, *reply[:-1]])
            row.segments.extend([segment] * (len(prompt) + len(reply) - 1))
            row.positions.extend(range(n, n + len(prompt) + len(reply) - 1))
            row.label_positions.extend(range(start - 1, start - 1 + len(reply)))
            row.labels.extend(reply)
            row.weights.extend([target.weight] * len(reply))
        return row

    def _target(self, target: Target) -> tuple[list[int], list[int]]:
        reply = self._prompter.plain(target.reply.strip())
        whole = len(reply) < MAX_REPLY and target.ends
        return self._prompter.instruction(target.instruction), [*reply[:MAX_REPLY], *([self._prompter.eos] * whole)]


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    out = torch.full((len(rows), length), value)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return out


def decoder_attention(segments: Tensor) -> Tensor:
    """Who sees whom in a decoder sequence: bool [B, 1, L, L].

    A position sees earlier positions (and itself) of the shared part and of its own target. Padding sees itself alone.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    query, key = segments[:, :, None], segments[:, None, :]
    visible = causal & ((key == 0) | (key == query)) & (query >= 0)
    return (visible | torch.eye(length, dtype=torch.bool, device=segments.device))[:, None]
