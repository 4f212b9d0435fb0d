"""How likely the frozen generator finds an answer given each candidate alone, computed once and kept.

What a query reasoner can be taught by without a relevance label: the passage that the generator answers from is the
one to find (stage ``end-to-end``, ``learn_from = "likelihoods"``). Distilling a reader's likelihoods into a retriever
is PDist of Atlas (arXiv 2208.03299, section 2.2).
Shape letters: B questions, D candidates a question, N memory tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from clara import prompts
from clara.model import checkpoint
from clara.model.create import Loaded
from clara.train.batch import Collator, Memories
from clara.train.examples import CandidateExample, Target
from clara.train.kept import KeptValues, digest
from clara.train.objective import evaluating, reply_logits

PAIRS_A_SEQUENCE = 4
"""Pairs of passage and answer that stand side by side behind one opening of the prompt: more of them save no more of
it than the attention over each other's places costs."""

PAIRS_AT_ONCE = 32

_DIGITS = 4  # of nats


@dataclass(frozen=True, slots=True)
class _Pair:
    """An answer to be written from one passage."""

    key: str
    text: str
    target: Target


class AnswerLikelihoods:
    """Log-probabilities of answers given one passage's memory."""

    def __init__(self, loaded: Loaded, memories: Memories, kept: Path, *, collator: Collator) -> None:
        """Open what is kept of this generator and compressor.

        Args:
            loaded: the network; generator and compressor stay as they are.
            memories: gives computed memories.
            kept: folder for what is computed once, shared by runs.
            collator: of the checkpoint.
        """
        dtype = str(loaded.base.model.dtype).removeprefix("torch.")
        mark = checkpoint.generator_fingerprint(loaded.network, loaded.manifest)
        self._network, self._memories, self._collator = loaded.network, memories, collator
        self._kept = KeptValues(kept / f"likelihoods-{mark}-{dtype}.jsonl")

    def __call__(self, examples: Sequence[CandidateExample], rate: int) -> Tensor:
        """Sums over the tokens of the reply: float32 [B, D], in nats.

        Args:
            examples: questions with equally many candidates.
            rate: of the memories.
        """
        pairs = [[self._pair(example, text, rate) for text in example.candidates] for example in examples]
        by_key = {pair.key: pair for pair in chain.from_iterable(pairs)}
        todo = [by_key[key] for key in self._kept.missing(by_key)]
        for start in range(0, len(todo), PAIRS_AT_ONCE):
            some = todo[start : start + PAIRS_AT_ONCE]
            found = self._score(some, rate)
            self._kept.add({pair.key: round(value, _DIGITS) for pair, value in zip(some, found, strict=True)})
        return torch.tensor([[self._kept[pair.key] for pair in row] for row in pairs], dtype=torch.float32)

    @staticmethod
    def _pair(example: CandidateExample, text: str, rate: int) -> _Pair:
        key = digest(rate, example.question, example.reply, text)
        return _Pair(key, text, Target(prompts.QUESTION + example.question, example.reply))

    def _score(self, pairs: Sequence[_Pair], rate: int) -> list[float]:
        network, targets = self._network, [pair.target for pair in pairs]
        model = network.adapters.bare()
        batch = self._collator.apart(targets, rate=rate, a_sequence=PAIRS_A_SEQUENCE).to(model.device)
        memories = self._memories([pair.text for pair in pairs], rate).to(model.device)
        bf16 = model.dtype == torch.bfloat16
        with evaluating(network), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            logits = reply_logits(network, batch, memories.flatten(0, 1))
        found = logits.float().log_softmax(dim=1).gather(1, batch.labels[:, None])[:, 0]
        lengths = [self._collator.label_count(target) for target in targets]
        return [float(part.sum()) for part in torch.split(found, lengths)]
