"""Stage ``end_to_end`` (clara.md section 5): to find and to answer are learnt from answers alone.

A question's memory is compared with its candidates' memories, the ``top_k`` best are selected straight through, and
the one loss is next-token prediction on the answer given the selected memories. No relevance label is read. Trained
are the query reasoner and the generator, and under ``train_compressor`` compressor and memory table too.

A question teaches the straight-through selector by its top passages alone, through one noisy gradient. With
``learn_from = "likelihoods"`` the frozen generator is asked beforehand how likely the answer is given each candidate
alone, and the reasoner's scores learn that distribution: all candidates teach at each step, and a step costs no more
than reading the question. Only the query reasoner is trained then; the straight-through loss may follow, at a low rate.
Shape letters: B questions, D candidates a question, K selected, N memory tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from clara.model.create import Loaded
from clara.model.decoder import Role
from clara.model.losses import candidate_kl, select, straight_through_top_k
from clara.model.network import Network
from clara.train.batch import Batch, Collator, Memories
from clara.train.likelihoods import AnswerLikelihoods
from clara.train.objective import Losses, passage_memories, reply_loss
from clara.train.stages.selecting import (
    CandidateBatch,
    Likelihoods,
    SelectingConfig,
    SelectingStage,
    candidates_of,
    query_memories,
)


class EndToEndConfig(SelectingConfig):
    """Settings of stage ``end_to_end``.

    Attributes:
        top_k: passages that a question takes of its candidates.
        train_compressor: let the gradients reach the compressor and the memory table too; candidates are then encoded
            at each step. Else both are frozen and each document is encoded once.
        train_generator: train the generator, too; else the query reasoner alone.
        learn_from: the ``answers``, written from the passages that are selected (the paper), or their
            ``likelihoods`` given each candidate alone, which the frozen generator is asked once.
        likelihood_temperature: of those log-probabilities, in nats an answer; the higher it is, the more the passages
            next to the likeliest count.
    """

    top_k: int = Field(default=5, ge=1)
    train_compressor: bool = False
    train_generator: bool = True
    learn_from: Literal["answers", "likelihoods"] = "answers"
    likelihood_temperature: float = Field(default=1.0, gt=0)


class EndToEndStage(SelectingStage):
    """Query reasoner and generator together."""

    config: EndToEndConfig
    Config = EndToEndConfig
    name = "end_to_end"

    @property
    def selected(self) -> int:
        """As set; none where no answer is written."""
        return 0 if self._by_likelihoods else self.config.top_k

    @property
    def _by_likelihoods(self) -> bool:
        return self.config.learn_from == "likelihoods"

    def background(self) -> int:
        """Memories of the selected passages, or of one."""
        return max(1, self.selected) * self.window().memory_tokens

    def likelihoods(self, loaded: Loaded, memories: Memories | None, kept: Path | None) -> Likelihoods | None:
        """Those of the answers, where they are what is learnt from."""
        if not self._by_likelihoods or memories is None or kept is None:
            return None
        window, longest = self.config.compression.window_tokens, self.config.reply_tokens
        collator = Collator(loaded.prompter(), window_tokens=window, reply_tokens=longest)
        return AnswerLikelihoods(loaded, memories, kept, collator=collator)

    def loss(self, network: Network, batch: Batch) -> Losses:
        """CE of the answers given the selected memories, or the distance from the candidates' likelihoods."""
        if self._by_likelihoods:
            config = self.config
            return likelihood_loss(
                network,
                candidates_of(batch),
                temperature=config.temperature,
                likelihood_temperature=config.likelihood_temperature,
            )
        return end_to_end_loss(network, candidates_of(batch), top_k=self.selected, temperature=self.config.temperature)

    def prompt_memories(self, network: Network, batch: Batch) -> Tensor | None:
        """Those of the selected passages."""
        choice = choose(network, candidates_of(batch), top_k=self.selected, temperature=self.config.temperature)
        return choice.memories.flatten(0, 2)

    def trains(self) -> tuple[Role, ...]:
        """The reasoner and the generator, and on request the compressor; the reasoner alone by likelihoods."""
        if self._by_likelihoods:
            return ("query_reasoner",)
        rest: tuple[Role, ...] = ("query_reasoner", "generator") if self.config.train_generator else ("query_reasoner",)
        return ("compressor", *rest) if self.config.train_compressor else rest

    def faults(self) -> list[str]:
        """And more passages to take than there are."""
        found = SelectingStage.faults(self)
        if self.selected > self.config.candidates:
            found.append(f"top_k is {self.selected}, a question has only {self.config.candidates} candidates")
        if self._by_likelihoods and self.config.train_compressor:
            found.append('train_compressor is set, but learn_from = "likelihoods" trains the query reasoner alone')
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


def likelihood_loss(
    network: Network, batch: CandidateBatch, *, temperature: float, likelihood_temperature: float
) -> Losses:
    """KL from what the likelihoods say of the candidates to what the scores say; it stands for the cross-entropy.

    Args:
        network: with gradients in the query reasoner.
        batch: with likelihoods; every question has the same number of candidates.
        temperature: tau of the scores.
        likelihood_temperature: of the likelihoods.
    """
    if batch.likelihoods is None:
        raise TypeError("expected a batch with likelihoods; its collator was given none")
    queries, memories = query_memories(network, batch), passage_memories(network, batch)
    with torch.autocast(queries.device.type, enabled=False):  # tau divides the scores' rounding errors too
        scores = network.similarity(queries, memories, rate=batch.rate).gather(1, batch.candidates)
        loss = candidate_kl(
            scores, batch.likelihoods, temperature=temperature, likelihood_temperature=likelihood_temperature
        )
    return Losses(total=loss, cross_entropy=loss, mse=torch.zeros_like(loss))
