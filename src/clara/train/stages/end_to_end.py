"""Stage ``end_to_end`` (clara.md section 5): to find and to answer are learnt from answers alone.

A question's memory is compared with its candidates' memories, the ``top_k`` best are selected straight through, and
the one loss is next-token prediction on the answer given the selected memories. No relevance label is read. Trained
are the query reasoner and the generator, and under ``train_compressor`` compressor and memory table too.
Shape letters: B questions, D candidates a question, K selected, N memory tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from clara.model.network import Network
from clara.model.roles import Role
from clara.model.selection import select, straight_through_top_k
from clara.train.batch import Batch
from clara.train.objective import Losses, passage_memories, reply_loss
from clara.train.stages.selecting import CandidateBatch, SelectingConfig, SelectingStage, candidates_of, query_memories


class EndToEndConfig(SelectingConfig):
    """Settings of stage ``end_to_end``.

    Attributes:
        top_k: passages that a question takes of its candidates.
        train_compressor: let the gradients reach the compressor and the memory table too; candidates are then encoded
            at each step. Else both are frozen and each document is encoded once.
    """

    top_k: int = Field(default=5, ge=1)
    train_compressor: bool = False


class EndToEndStage(SelectingStage):
    """Query reasoner and generator together."""

    config: EndToEndConfig
    Config = EndToEndConfig
    name = "end_to_end"

    @property
    def selected(self) -> int:
        """As set."""
        return self.config.top_k

    def loss(self, network: Network, batch: Batch) -> Losses:
        """CE of the answers given the selected memories."""
        return end_to_end_loss(network, candidates_of(batch), top_k=self.selected, temperature=self.config.temperature)

    def prompt_memories(self, network: Network, batch: Batch) -> Tensor | None:
        """Those of the selected passages."""
        choice = choose(network, candidates_of(batch), top_k=self.selected, temperature=self.config.temperature)
        return choice.memories.flatten(0, 2)

    def trains(self) -> tuple[Role, ...]:
        """The reasoner and the generator, and on request the compressor."""
        rest: tuple[Role, ...] = ("query_reasoner", "generator")
        return ("compressor", *rest) if self.config.train_compressor else rest

    def faults(self) -> list[str]:
        """And more passages to take than there are."""
        found = SelectingStage.faults(self)
        if self.config.top_k > self.config.candidates:
            found.append(f"top_k is {self.config.top_k}, a question has only {self.config.candidates} candidates")
        return found


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
