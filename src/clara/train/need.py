"""Which tokens of a restatement need the passage: its loss is spent on them.

Most tokens of a text follow from the words before them, whatever the memory holds; a name or a number does not. A
token's need is its log-probability with the passage as text, less that with nothing, by the frozen backbone, or by the
teacher where there is one. It is computed once a target and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from clara.model.create import Loaded
from clara.model.decoder import AdapterName
from clara.train.batch import Batch, Collator
from clara.train.examples import Example, Target, is_question
from clara.train.kept import KeptValues, digest
from clara.train.objective import evaluating, reply_logits

MOST_NEED = 5.0
"""Nats; a token that could not be guessed at all teaches no more than one that could hardly be."""

_DIGITS = 2


def weighted(target: Target, need: Sequence[float]) -> Target:
    """A restatement whose tokens weigh by their need, on average as much as before.

    Args:
        target: the restatement.
        need: nats of each of its labels, the end token included.
    """
    held = [min(max(nats, 0.0), MOST_NEED) for nats in need]
    mean = sum(held) / len(held)
    return target if mean == 0 else replace(target, label_weights=tuple(target.weight * n / mean for n in held))


class TokenNeed:
    """Weighs the tokens of restatements; questions stay as they are."""

    def __init__(self, loaded: Loaded, kept: Path, *, collator: Collator, role: AdapterName | None, mark: str) -> None:
        """Open what is kept.

        Args:
            loaded: the network.
            kept: folder for what is computed once, shared by runs.
            collator: of the run.
            role: who is asked; None for the backbone alone.
            mark: fingerprint of that one.
        """
        self._network, self._collator, self._role = loaded.network, collator, role
        self._kept = KeptValues(kept / f"need-{mark}.jsonl")

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with weights in their restatements."""
        restating = [replace(e, targets=tuple(t for t in e.targets if not is_question(t))) for e in examples]
        new = [example for example in restating if example.targets and self._kept.missing(self._keys(example))]
        if new:
            text, nothing = (
                self._logprobs(make(new)) for make in (self._collator.of_texts, self._collator.closed_book)
            )
            keys = [(key, target) for e in new for key, target in zip(self._keys(e), e.targets, strict=True)]
            parts = torch.split(text - nothing, [self._collator.label_count(target) for _, target in keys])
            self._kept.add(
                {key: [round(n, _DIGITS) for n in part.tolist()] for (key, _), part in zip(keys, parts, strict=True)}
            )
        return [replace(e, targets=tuple(self._weighted(e, t) for t in e.targets)) for e in examples]

    def _weighted(self, example: Example, target: Target) -> Target:
        return target if is_question(target) else weighted(target, self._kept[self._key(example, target)])

    def _keys(self, example: Example) -> list[str]:
        return [self._key(example, target) for target in example.targets]

    def _key(self, example: Example, target: Target) -> str:
        return digest(self._collator.window_tokens, target.instruction, target.reply, target.ends, *example.texts)

    def _logprobs(self, batch: Batch) -> Tensor:
        """Of all labels, in order: float32 [T]."""
        model = self._network.adapters.bare()
        batch = batch.to(model.device)
        bf16 = model.dtype == torch.bfloat16
        with evaluating(self._network), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            logits = reply_logits(self._network, batch, None, role=self._role)
        return logits.float().log_softmax(dim=1).gather(1, batch.labels[:, None])[:, 0].cpu()
