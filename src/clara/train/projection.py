"""Fits the projection of questions to labelled pairs without a forward pass of the backbone.

Most of a memory is the mean token embedding of its span, which costs a lookup. Tens of thousands of questions and
passages are so compared in the time in which the backbone compresses a few hundred. What it adds to a memory is taken
as its mean, and the matrix that results serves whole memories (LOG.md, 2026-11-26).
Shape letters: P pairs, D passages, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clara.errors import TrainingError
from clara.model.create import Loaded
from clara.model.losses import contrastive
from clara.model.memory import pool
from clara.train.batch import padded_texts

LOGIT_SPREAD = 2.0
"""Standard deviation of the scores at the start: neither a flat softmax nor one that is decided."""
STEP_SHARE = 0.02
"""Learning rate of Adam, in standard deviations of the matrix at the start."""

_TEXTS_A_BATCH = 64


@dataclass(frozen=True, slots=True)
class LightMemories:
    """What a cosine with a projected question needs of memories that were made without the backbone.

    Attributes:
        means: float32 [texts, H], over the memory tokens.
        norms: float32 [texts], of the flattened memory, divided by the root of its memory tokens.
    """

    means: Tensor
    norms: Tensor


@torch.no_grad()
def light_memories(loaded: Loaded, texts: Sequence[str], shift: Tensor, *, rate: int) -> LightMemories:
    """Memories of texts as far as their token embeddings make them.

    Args:
        loaded: the network; only embeddings and memory table are used.
        texts: cut to the window.
        shift: float32 [H], what a whole memory has on average beside this.
        rate: one of the checkpoint's.
    """
    config, table, prompter = loaded.network.config, loaded.network.table, loaded.prompter()
    count, means, norms = config.memory_tokens(rate), [], []
    for start in range(0, len(texts), _TEXTS_A_BATCH):
        rows = [prompter.plain(text)[: config.window_tokens] for text in texts[start : start + _TEXTS_A_BATCH]]
        ids, mask = (part.to(shift.device) for part in padded_texts(rows))
        embeds = loaded.network.embed(ids).float()
        residual = pool(table.spans(ids, mask, rate=rate).weights, embeds)
        memory = table.assemble(torch.zeros_like(residual), residual, rate=rate) + shift
        means.append(memory.mean(dim=1))
        norms.append(memory.flatten(1).norm(dim=1) / count**0.5)
    return LightMemories(torch.cat(means), torch.cat(norms))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Questions and the passages that answer them.

    Attributes:
        questions: float32 [P, H], mean memories less their mean: what the projection is applied to.
        documents: the passages.
        answered_by: int64 [P], the passage of each question.
    """

    questions: Tensor
    documents: LightMemories
    answered_by: Tensor


def fit_projection(start: Tensor, pairs: Pairs, *, epochs: int, batch_size: int, seed: int = 0) -> Tensor:
    """The matrix that ranks each question's passage above those of the other questions in its batch.

    Its scale means nothing: questions are compared by cosine.

    Args:
        start: float32 [H, H], where it starts.
        pairs: what it is fitted to.
        epochs: passes over the pairs.
        batch_size: questions compared with one another's passages.
        seed: of the order of the pairs.

    Raises:
        TrainingError: there are fewer pairs than a batch holds.
    """
    if len(pairs.questions) < batch_size:
        raise TrainingError(f"batch_size is {batch_size}, there are {len(pairs.questions)} pairs; give more questions")
    documents = pairs.documents.means / pairs.documents.norms[:, None]
    sample = pairs.questions[:batch_size] @ start.T @ documents[pairs.answered_by[:batch_size]].T
    matrix = (start * (LOGIT_SPREAD / sample.std())).clone().requires_grad_()
    optimiser = torch.optim.Adam([matrix], lr=STEP_SHARE * float(matrix.detach().std()))
    for rows in _batches(len(pairs.questions), batch_size, epochs, seed):
        asked = pairs.answered_by[rows]
        scores = pairs.questions[rows] @ matrix.T @ documents[asked].T
        loss = contrastive(scores, asked[:, None] == asked[None, :], temperature=1.0)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return matrix.detach()


def _batches(count: int, size: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Rows of each step; what does not fill a batch waits for the next pass, which has another order."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
