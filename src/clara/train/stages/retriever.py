"""Stage ``retriever``: the supervised variant of the query reasoner (clara.md section 5, last paragraph).

A contrastive loss on labelled positives: each question's memory against every passage of its batch, which are its own
candidates (gold, the record's others, BM25's nearest) and those of the other questions. A passage counts once however
many questions bring it, and is positive wherever it supports the answer. Only the query reasoner is trained; document
memories are computed once. The paper's Sup-Instruct and Sup-Pretrain are this stage started from an ``instruct`` and
from an ``scp`` checkpoint.
Shape letters: B questions, U passages in the batch.
"""

from __future__ import annotations

import numpy as np
import torch

from clara.data import DataRecord, MultiHop
from clara.model.decoder import Role
from clara.model.losses import contrastive
from clara.model.network import Network
from clara.train.batch import Batch
from clara.train.objective import Losses
from clara.train.stages.selecting import CandidateBatch, SelectingConfig, SelectingStage, candidates_of, query_memories


class RetrieverConfig(SelectingConfig):
    """Settings of stage ``retriever``; those of its base."""


class RetrieverStage(SelectingStage):
    """The query reasoner on labelled passages."""

    config: RetrieverConfig
    Config = RetrieverConfig
    name = "retriever"
    contrasts = True
    labelled = True

    def unusable(self, record: DataRecord, rng: np.random.Generator) -> str | None:
        """A record needs a passage that supports the answer, too."""
        if isinstance(record, MultiHop) and not record.gold:
            return f"MultiHop record without a gold document has no use in stage {self.name}"
        return SelectingStage.unusable(self, record, rng)

    def loss(self, network: Network, batch: Batch) -> Losses:
        """The contrastive loss."""
        return retriever_loss(network, candidates_of(batch), temperature=self.config.temperature)

    def trains(self) -> tuple[Role, ...]:
        """The reasoner alone."""
        return ("query_reasoner",)


def retriever_loss(network: Network, batch: CandidateBatch, *, temperature: float) -> Losses:
    """The contrastive loss, nats a question; it stands in the place of the cross-entropy.

    Args:
        network: with gradients in the query reasoner.
        batch: every question has a positive.
        temperature: tau.
    """
    queries = query_memories(network, batch)
    with torch.autocast(queries.device.type, enabled=False):  # tau divides the scores' rounding errors too
        scores = network.similarity(queries, batch.memories, rate=batch.rate)
        loss = contrastive(scores, batch.positives, temperature=temperature)
    return Losses(total=loss, cross_entropy=loss, mse=torch.zeros_like(loss))
