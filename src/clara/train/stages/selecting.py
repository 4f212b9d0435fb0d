"""Stages whose questions choose among candidate memories: ``end_to_end`` and ``retriever`` (clara.md section 5).

Both start from a checkpoint and train its query reasoner. It reads the compressor's memory tokens (section 1), so the
table is frozen with the compressor. Where the compressor has an affine read-out the reasoner trains a copy of it
(``query_read_out``); without one it moves a question's memory by a tenth only (``MemoryTable.split_query_read_out``).

``end_to_end`` learns to find and to answer from answers alone. The ``top_k`` best of a question's candidates are
selected straight through, and the one loss is next-token prediction on the answer given their memories; no relevance
label is read. That gradient reaches the top passages only, and is noisy: with ``learn_from = "likelihoods"`` the frozen
generator is asked beforehand how likely the answer is given each candidate alone, and the reasoner's scores learn that
distribution, so that all candidates teach at each step.

``retriever`` is the supervised variant (last paragraph): a contrastive loss of each question's memory against every
passage of its batch, which are its own candidates (gold, the record's others, BM25's nearest) and those of the other
questions. A passage counts once however many questions bring it, and is positive wherever it supports the answer. The
paper's Sup-Instruct and Sup-Pretrain are this stage started from an ``instruct`` and from an ``scp`` checkpoint.

Shape letters: B questions, S tokens, U different passages in the batch, D candidates a question, K selected, N memory
tokens, H hidden size, L decoder positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from clara.data import DataRecord, MultiHop, PassageQA
from clara.data.neighbours import Neighbours
from clara.errors import TrainingError
from clara.model.backbone import padded, padded_texts
from clara.model.checkpoint import Manifest
from clara.model.create import Loaded
from clara.model.decoder import Role
from clara.model.losses import candidate_kl, contrastive, select, straight_through_top_k
from clara.model.network import Network
from clara.model.prompting import Prompter
from clara.model.table import MemoryTable
from clara.train.batch import REPLY_TOKENS, Batch, Collate, Collator, Memories
from clara.train.config import MemoryConfig
from clara.train.data import Surroundings
from clara.train.examples import CandidateExample, candidate_example
from clara.train.objective import Losses, passage_memories, reply_losses
from clara.train.stages.base import MemoryStage
from clara.train.teaching import AnswerLikelihoods

_Likelihoods = Callable[[Sequence[CandidateExample], int], Tensor]
"""Log-probabilities float32 [B, D] of answers given each candidate alone, at a rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateBatch(Batch):
    """A batch of a stage that selects.

    The texts of ``Batch`` are the U passages where the compressor is trained, and none where it is frozen. Its decoder
    sequences have slots for K memories; in stage ``retriever``, which writes nothing, they are empty.

    Attributes:
        query_ids: int64 [B, S], the questions.
        query_mask: bool [B, S].
        memories: float16 [U, N, H] of the batch's passages; U = 0 where the compressor is trained.
        candidates: int64 [B, D], rows of the passages; -1 where a question has fewer.
        positives: bool [B, U], passages that support the answer.
        likelihoods: float32 [B, D], log-probability of each answer given each candidate alone; None if not learnt from.
    """

    query_ids: Tensor
    query_mask: Tensor
    memories: Tensor
    candidates: Tensor
    positives: Tensor
    likelihoods: Tensor | None = None

    def tokens(self) -> int:
        slots = self.query_ids.shape[0] * self.memories.shape[1]
        return int(self.query_mask.sum()) + slots + Batch.tokens(self)


class _CandidateCollator:
    """Builds the batches of a stage that selects.

    Arguments as ``Collator``; ``top_k``: K, 0 where no answer is written; ``likelihoods``: None where not learnt from.
    """

    def __init__(
        self,
        prompter: Prompter,
        *,
        window_tokens: int,
        top_k: int,
        memories: Memories | None,
        reply_tokens: int = REPLY_TOKENS,
        likelihoods: _Likelihoods | None = None,
    ) -> None:
        self._prompter, self._likelihoods = prompter, likelihoods
        self._window, self._top_k = window_tokens, top_k
        self._memories = memories
        self._replies = Collator(prompter, window_tokens=window_tokens, reply_tokens=reply_tokens)

    def __call__(
        self, examples: Sequence[CandidateExample], *, rate: int, asked: Sequence[int] | None = None
    ) -> CandidateBatch:
        """Make a batch; the candidates of examples that are not ``asked`` are further negatives."""
        passages = list(dict.fromkeys(text for example in examples for text in example.candidates))
        row_of = {text: row for row, text in enumerate(passages)}
        questions = list(examples) if asked is None else [examples[i] for i in asked]
        rows = [[row_of[text] for text in q.candidates] for q in questions]
        positives = torch.zeros(len(questions), len(passages), dtype=torch.bool)
        for i, question in enumerate(questions):
            positives[i, [rows[i][place] for place in question.positives]] = True
        queries = [self._prompter.window_ids(question.question, self._window) for question in questions]
        query_ids, query_mask = padded_texts(queries)
        texts = passages if self._memories is None else []
        if self._top_k:
            targets = [question.target for question in questions]
            replies = self._replies.selecting(targets, texts, rate=rate, selected=self._top_k)
        else:
            replies = self._replies.silent(len(questions), texts, rate=rate)
        none = torch.empty(0, self._window // rate, 0, dtype=torch.float16)
        return CandidateBatch(
            **{name: getattr(replies, name) for name in Batch.__slots__ if name != "memories"},
            query_ids=query_ids,
            query_mask=query_mask,
            memories=none if self._memories is None else self._memories(passages, rate),
            candidates=padded(rows, -1),
            positives=positives,
            likelihoods=None if self._likelihoods is None else self._likelihoods(questions, rate),
        )


def query_memories(network: Network, batch: CandidateBatch) -> Tensor:
    """The questions' memories by the query reasoner: float32 [B, N, H]."""
    return network.encode("query_reasoner", batch.query_ids, batch.query_mask, rate=batch.rate).memory


class _SelectingConfig(MemoryConfig):
    """Settings of stages ``end_to_end`` and ``retriever``.

    Attributes:
        temperature: tau of clara.md section 5.
        reasoner_start: initial weights of the query reasoner: a copy of the ``compressor``'s, ``random`` (B = 0, as
            LoRA starts), or those of the ``checkpoint``.
        query_read_out: train an affine read-out of the reasoner's own, where the compressor has one (``gain``); it
            starts as a copy.
        query_projection: compare questions through a trained matrix that starts at the inverse covariance of the run's
            texts (``MemoryTable.whiten_queries``), by their mean or by
        late_interaction: MaxSim over memory tokens (``similarity.late_interaction``); needs ``query_projection``.
        projection_learning_rate: peak, of that matrix; Adam moves every entry of a matrix at once, so a rate that suits
            vectors would turn it over in a few steps.
    """

    candidates: int = Field(default=20, ge=2)
    temperature: float = Field(default=0.02, gt=0)
    reasoner_start: Literal["compressor", "random", "checkpoint"] = "compressor"
    query_read_out: bool = True
    query_projection: bool = False
    late_interaction: bool = False
    projection_learning_rate: float = Field(default=1e-5, gt=0)


class _SelectingStage(MemoryStage):
    """The parts that both stages share; ``labelled`` ones know the wrong candidates."""

    config: _SelectingConfig
    # Texts of memories that are there already have no length to sort by, and mixed batches hold harder negatives.
    by_length = False
    labelled: ClassVar[bool] = False

    @property
    def selected(self) -> int:
        return 0

    def unusable(self, record: DataRecord, rng: np.random.Generator) -> str | None:  # noqa: ARG002 - nothing is drawn
        if isinstance(record, MultiHop) and not record.answerable:
            return f"question without an answer has no use in stage {self.name}"
        if isinstance(record, PassageQA) and not record.all_pairs:
            return f"PassageQA record without a question has no use in stage {self.name}"
        return None

    def neighbours(self, drawn: Sequence[DataRecord], held_out: Sequence[DataRecord]) -> Neighbours | None:
        """All passages of the run, to fill candidates up (``TrainingError``: too few of them)."""
        near = Neighbours([*drawn, *held_out])
        if len(near) < self.config.candidates and not self.labelled:
            raise TrainingError(
                f"candidates is {self.config.candidates}, the records of this run hold {len(near)} different passages; "
                "give more data or set fewer candidates"
            )
        return near

    def example(
        self, record: DataRecord, rng: np.random.Generator, around: Surroundings | None = None
    ) -> CandidateExample | None:
        if around is None or around.data.near is None:
            return None
        near = around.data.near
        return candidate_example(record, rng, near, count=self.config.candidates, labelled=self.labelled)

    def background(self) -> int:
        return self.selected * self.window().memory_tokens

    def collator(self, loaded: Loaded, memories: Memories | None, kept: Path | None = None) -> Collate:
        return _CandidateCollator(
            loaded.prompter(),
            window_tokens=self.config.compression.window_tokens,
            top_k=self.selected,
            memories=memories,
            reply_tokens=self.config.reply_tokens,
            likelihoods=self.likelihoods(loaded, memories, kept),
        )

    def likelihoods(self, loaded: Loaded, memories: Memories | None, kept: Path | None) -> _Likelihoods | None:  # noqa: ARG002 - a stage may use them
        """Likelihoods to learn from; arguments as ``collator``."""
        return None

    def trains_of_table(self, table: MemoryTable) -> list[nn.Parameter]:
        read_out = table.read_out_of_queries() if self.config.query_read_out else []
        return [*read_out, *(table.projection_of_queries() if self.config.query_projection else [])]

    def prepare(self, loaded: Loaded) -> Loaded:
        """Reset adapter, read-out and projection of the reasoner as the settings say."""
        network, config = loaded.network, self.config
        going_on = config.reasoner_start == "checkpoint"
        if not config.query_read_out:
            if not going_on:
                network.table.share_query_read_out()
        elif not (going_on and network.table.read_out_of_queries()):
            network.table.split_query_read_out()
        if not self._keeps_projection(loaded.manifest):
            network.table.project_queries(projected=config.query_projection, late=config.late_interaction)
        if not going_on:
            network.adapters.reset_query_reasoner(seed=config.seed if config.reasoner_start == "random" else None)
        return loaded

    def whitens(self, loaded: Loaded) -> bool:
        return self.config.query_projection and not self._keeps_projection(loaded.manifest)

    def _keeps_projection(self, manifest: Manifest) -> bool:
        same = manifest.query_projection and manifest.late_interaction == self.config.late_interaction
        return self.config.reasoner_start == "checkpoint" and same

    def parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        lora, table = MemoryStage.parameter_groups(self, network)
        matrix = network.table.query_projection
        rest = [p for p in table["params"] if p is not matrix]
        own = [p for p in table["params"] if p is matrix]
        projection = {"params": own, "lr": self.config.projection_learning_rate, "weight_decay": 0.0}
        return [lora, table | {"params": rest}, projection]

    def faults(self) -> list[str]:
        faults = MemoryStage.faults(self)
        if self.config.start is None:
            faults.append(f'stage {self.name} starts from a checkpoint: set start = "DIR" (of stage scp or instruct)')
        if self.config.late_interaction and not self.config.query_projection:
            faults.append("late_interaction compares projected memory tokens; set query_projection = true")
        return faults

    def start_faults(self, start: str, manifest: Manifest) -> list[str]:
        if self.config.reasoner_start != "checkpoint" or "query_reasoner" in manifest.roles:
            return []
        missing = f"{start} has no query reasoner of its own"
        return [f'reasoner_start is "checkpoint", but {missing}; set "compressor" or "random"']


def _candidates_of(batch: Batch) -> CandidateBatch:
    """A batch of this stage's collator; a ``TypeError`` for another's."""
    if not isinstance(batch, CandidateBatch):
        raise TypeError(f"expected a CandidateBatch, got {type(batch).__name__}")
    return batch


@dataclass(frozen=True, slots=True)
class _Choice:
    """Passages that a batch's questions selected: int64 [B, K], places among the candidates, best first.

    The memories, float32 [B, K, N, H], are those at the places, with the gradient of the soft weights.
    """

    indices: Tensor
    memories: Tensor


class _EndToEndConfig(_SelectingConfig):
    """Settings of stage ``end_to_end``.

    Attributes:
        train_compressor: train compressor and memory table too; candidates are then encoded at each step. Else
            each document is encoded once.
        train_generator: train the generator too.
        learn_from: the ``answers``, written from the selected passages (the paper), or their ``likelihoods`` given
            each candidate alone, which the frozen generator is asked once.
        likelihood_temperature: of those log-probabilities, nats an answer; higher spreads the distribution.
    """

    top_k: int = Field(default=5, ge=1)
    train_compressor: bool = False
    train_generator: bool = True
    learn_from: Literal["answers", "likelihoods"] = "answers"
    likelihood_temperature: float = Field(default=1.0, gt=0)


class EndToEndStage(_SelectingStage):
    """Query reasoner and generator together."""

    config: _EndToEndConfig
    Config = _EndToEndConfig
    name = "end_to_end"

    @property
    def selected(self) -> int:
        """K; 0 where no answer is written."""
        return 0 if self._by_likelihoods else self.config.top_k

    @property
    def _by_likelihoods(self) -> bool:
        return self.config.learn_from == "likelihoods"

    def background(self) -> int:
        return max(1, self.selected) * self.window().memory_tokens

    def likelihoods(self, loaded: Loaded, memories: Memories | None, kept: Path | None) -> _Likelihoods | None:
        if not self._by_likelihoods or memories is None or kept is None:
            return None
        window, longest = self.config.compression.window_tokens, self.config.reply_tokens
        collator = Collator(loaded.prompter(), window_tokens=window, reply_tokens=longest)
        return AnswerLikelihoods(loaded, memories, kept, collator=collator)

    def loss(self, network: Network, batch: Batch) -> Losses:
        """CE of the answers given the selected memories; or KL from their likelihoods to the scores."""
        given, config = _candidates_of(batch), self.config
        if not self._by_likelihoods:
            return reply_losses(network, batch, self.choose(network, batch).memories.flatten(0, 2))
        if given.likelihoods is None:
            raise TypeError("expected a batch with likelihoods; its collator was given none")
        queries, memories = query_memories(network, given), passage_memories(network, given)
        with torch.autocast(queries.device.type, enabled=False):  # tau divides the scores' rounding errors too
            scores = network.similarity(queries, memories, rate=batch.rate).gather(1, given.candidates)
            tau, other = config.temperature, config.likelihood_temperature
            loss = candidate_kl(scores, given.likelihoods, temperature=tau, likelihood_temperature=other)
        return Losses(total=loss, cross_entropy=loss, mse=torch.zeros_like(loss))

    def choose(self, network: Network, batch: Batch) -> _Choice:
        """Select the best candidates of each question, straight through; all have equally many."""
        given = _candidates_of(batch)
        queries, memories = query_memories(network, given), passage_memories(network, given)
        with torch.autocast(queries.device.type, enabled=False):  # as above
            scores = network.similarity(queries, memories, rate=batch.rate).gather(1, given.candidates)
            chosen = straight_through_top_k(scores, self.selected, temperature=self.config.temperature)
            return _Choice(chosen.indices, select(chosen, memories.float()[given.candidates]))

    def prompt_memories(self, network: Network, batch: Batch) -> Tensor | None:
        return self.choose(network, batch).memories.flatten(0, 2)

    def trains(self) -> tuple[Role, ...]:
        if self._by_likelihoods:
            return ("query_reasoner",)
        rest: tuple[Role, ...] = ("query_reasoner", "generator") if self.config.train_generator else ("query_reasoner",)
        return ("compressor", *rest) if self.config.train_compressor else rest

    def faults(self) -> list[str]:
        faults = _SelectingStage.faults(self)
        if self.selected > self.config.candidates:
            faults.append(f"top_k is {self.selected}, a question has only {self.config.candidates} candidates")
        if self._by_likelihoods and self.config.train_compressor:
            faults.append('train_compressor is set, but learn_from = "likelihoods" trains the query reasoner alone')
        return faults


class RetrieverStage(_SelectingStage):
    """The query reasoner on labelled passages."""

    config: _SelectingConfig
    Config = _SelectingConfig
    name = "retriever"
    contrasts = True
    labelled = True

    def unusable(self, record: DataRecord, rng: np.random.Generator) -> str | None:
        if isinstance(record, MultiHop) and not record.gold:
            return f"MultiHop record without a gold document has no use in stage {self.name}"
        return _SelectingStage.unusable(self, record, rng)

    def loss(self, network: Network, batch: Batch) -> Losses:
        """The contrastive loss, nats a question, as the cross-entropy; every question has a positive."""
        given = _candidates_of(batch)
        queries = query_memories(network, given)
        with torch.autocast(queries.device.type, enabled=False):  # tau divides the scores' rounding errors too
            scores = network.similarity(queries, given.memories, rate=batch.rate)
            loss = contrastive(scores, given.positives, temperature=self.config.temperature)
        return Losses(total=loss, cross_entropy=loss, mse=torch.zeros_like(loss))

    def trains(self) -> tuple[Role, ...]:
        return ("query_reasoner",)
