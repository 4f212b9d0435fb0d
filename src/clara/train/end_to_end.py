"""Stage ``end_to_end`` (clara.md section 5): to find and to answer are learnt from answers alone.

A question's memory is compared with its candidates' memories, the ``top_k`` best are selected straight through, and
the one loss is next-token prediction on the answer given the selected memories. No relevance label is read.

Trained are the query reasoner and the generator. The reasoner reads the same memory tokens as the compressor
(clara.md section 1): they decide what document memories are, so the table is frozen with the compressor, and is
trained with it under ``train_compressor``. Where the compressor has an affine read-out the reasoner gets a copy of its
own, which is trained (``query_read_out``): documents do not change by it, and without it the reasoner moves a
question's memory by a tenth only (``MemoryTable.split_query_read_out``).
Shape letters: B questions, U passages in the batch, D candidates a question, K selected, N memory tokens, H hidden
size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clara.model.network import Network
from clara.model.selection import select, straight_through_top_k
from clara.train.candidate_batch import CandidateBatch
from clara.train.objective import Losses, passage_memories, reply_loss


def query_memories(network: Network, batch: CandidateBatch) -> Tensor:
    """What the query reasoner makes of the questions: float32 [B, N, H]."""
    return network.encode("query_reasoner", batch.query_ids, batch.query_mask, rate=batch.rate).memory


@dataclass(frozen=True, slots=True)
class Choice:
    """What the questions of a batch selected.

    Attributes:
        indices: int64 [B, K], places among each question's candidates, best first.
        memories: float32 [B, K, N, H]; in value the memories at those places, with the gradient of the soft weights.
    """

    indices: Tensor
    memories: Tensor


def choose(network: Network, batch: CandidateBatch, *, top_k: int, temperature: float) -> Choice:
    """Select the ``top_k`` best candidates of each question, straight through.

    Args:
        network: with gradients where the stage wants them.
        batch: every question has the same number of candidates.
        top_k: K.
        temperature: tau.
    """
    queries, memories = query_memories(network, batch), passage_memories(network, batch)
    with torch.autocast(queries.device.type, enabled=False):  # tau divides the scores' rounding errors too
        scores = network.similarity(queries, memories, rate=batch.rate).gather(1, batch.candidates)
        chosen = straight_through_top_k(scores, top_k, temperature=temperature)
        return Choice(chosen.indices, select(chosen, memories.float()[batch.candidates]))


def end_to_end_loss(network: Network, batch: CandidateBatch, *, top_k: int, temperature: float) -> Losses:
    """CE of the answers given the selected memories; arguments as ``choose``."""
    choice = choose(network, batch, top_k=top_k, temperature=temperature)
    cross_entropy = reply_loss(network, batch, choice.memories.flatten(0, 2))
    return Losses(total=cross_entropy, cross_entropy=cross_entropy, mse=torch.zeros_like(cross_entropy))
