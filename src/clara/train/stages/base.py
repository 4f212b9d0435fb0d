"""The interface of a stage, and what the four stages that train a compressed model share.

A run asks its stage for everything that depends on it: examples, batches, loss, trained weights, output. ``data``,
``loop`` and ``validation`` know no stage by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from clara.config import Settings
from clara.data import DataRecord
from clara.data.neighbours import Neighbours
from clara.model import checkpoint
from clara.model.checkpoint import Manifest
from clara.model.clara_model import find_checkpoint
from clara.model.create import Loaded
from clara.model.decoder import Decoder, Role
from clara.model.hub.base import Progress as HubProgress
from clara.model.network import Network
from clara.model.placement import BITS
from clara.model.table import MemoryTable
from clara.train.batch import Batch, Collate, Memories
from clara.train.card import model_card
from clara.train.config import MemoryConfig, TrainConfig
from clara.train.data import Surroundings, TrainingData, Window
from clara.train.documents import Documents
from clara.train.examples import CandidateExample, Example
from clara.train.objective import Losses, passage_memories
from clara.train.start import Carried, carried, compressed_model, release, start_faults

_Net = TypeVar("_Net", bound=Decoder, default=Any)
_Said = TypeVar("_Said", bound=Settings, default=Any)


@dataclass(frozen=True)
class Stage(ABC, Generic[_Net, _Said]):
    """A way to train, with the settings of a run; generic in its network and manifest.

    Attributes:
        name: in manifests, cards and messages.
        writes: output folder within the run's.
        by_length: batches are bucketed by length.
        contrasts: a question's negatives are the passages of the whole batch, so each process has to see all of it.
        restates_passages: passages without questions are trained on.
    """

    config: TrainConfig
    Config: ClassVar[type[TrainConfig]]
    name: ClassVar[str]
    writes: ClassVar[str] = "checkpoint"
    by_length: ClassVar[bool] = True
    contrasts: ClassVar[bool] = False

    @property
    def restates_passages(self) -> bool:
        return False

    # Data

    def window(self) -> Window:
        """Window and tokenizer of the texts; known before anything is loaded."""
        compression = self.config.compression
        return Window(self.config.base, compression.window_tokens, compression.rates)

    def unusable(self, record: DataRecord, rng: np.random.Generator) -> str | None:
        """The reason why a record cannot be used, countable; None if it can."""
        if self.example(record, rng) is not None:
            return None
        return f"{type(record).__name__} record has no use in stage {self.name}"

    def neighbours(self, drawn: Sequence[DataRecord], held_out: Sequence[DataRecord]) -> Neighbours | None:  # noqa: ARG002 - a stage may use them
        """The passages that ``example`` searches, of records drawn and held out; None where it needs none."""
        return None

    @abstractmethod
    def example(
        self, record: DataRecord, rng: np.random.Generator, around: Surroundings | None = None
    ) -> Example | CandidateExample | None:
        """A record's example; None where the stage has no use for it.

        Without ``around``, the passages of other records, the caller only asks whether there is one.
        """

    @abstractmethod
    def background(self) -> int:
        """Most positions that passages take in a prompt."""

    def asking(self) -> Self:
        """The stage with examples that hold questions only."""
        return self

    # Batches and losses

    @abstractmethod
    def collator(self, loaded: Loaded[_Net, _Said], memories: Memories | None, kept: Path | None = None) -> Collate:
        """The collator that measuring uses, and training unless ``training_collator`` differs.

        ``memories`` gives computed memories; None encodes texts in the forward pass. ``kept`` is a folder of answers
        and likelihoods by frozen networks (``teaching``), shared by runs; None to ask none.
        """

    def training_collator(self, collator: Collate, loaded: Loaded[_Net, _Said], kept: Path) -> Collate:  # noqa: ARG002 - a stage may use them
        """The collator of training batches, given the one of ``collator``."""
        return collator

    @abstractmethod
    def loss(self, network: _Net, batch: Batch) -> Losses:
        """The losses of a batch."""

    @abstractmethod
    def prompt_memories(self, network: _Net, batch: Batch) -> Tensor | None:
        """Vectors for the memory slots of a batch's prompts, [sum of slots, H]; None if there are none."""

    @property
    def rates(self) -> tuple[int, ...]:
        """Compression rates to validate at."""
        return self.config.compression.rates

    def rate_shares(self) -> Sequence[float]:
        """Relative frequency of each rate in training."""
        return [1.0] * len(self.config.compression.rates)

    # Weights

    @abstractmethod
    def trains(self) -> tuple[Role, ...]:
        """The adapters to train."""

    @property
    def keeps_memories(self) -> bool:
        """The compressor is frozen, so each passage is compressed once."""
        return "compressor" not in self.trains()

    def documents(self, loaded: Loaded, cache: Path) -> Documents | None:
        """The cache of passages' memories; None where passages are encoded at each step."""
        return Documents(loaded, cache) if self.keeps_memories else None

    @abstractmethod
    def network(
        self, data: TrainingData, cache: Path, device: str, progress: HubProgress | None
    ) -> Loaded[_Net, _Said]:
        """The network before its first step, gradients on where the stage trains."""

    def whitens(self, loaded: Loaded[_Net, _Said]) -> bool:  # noqa: ARG002 - a stage may use it
        """The projection of questions is initialised from this run's texts."""
        return False

    def carried(self, loaded: Loaded[_Net, _Said], data: TrainingData) -> Carried:  # noqa: ARG002 - a stage may use them
        """Parts of the start checkpoint that will be stale in the result; asked before the first step."""
        return Carried()

    def as_loaded(self, loaded: Loaded[_Net, _Said]) -> Self:
        """The stage with the settings that the loaded network decides."""
        dtype = "bf16" if loaded.base.model.dtype == torch.bfloat16 else "fp32"
        return self.changed(base=loaded.base.name, dtype=self.config.dtype if self.config.dtype in BITS else dtype)

    def changed(self, **values: Any) -> Self:  # noqa: ANN401 - any setting
        return replace(self, config=self.config.model_copy(update=values))

    def in_steps(self, records: int) -> Self:
        """The stage with ``epochs`` over so many records converted to ``steps``."""
        if self.config.epochs is None:
            return self
        return self.changed(steps=max(1, math.ceil(self.config.epochs * records / self.config.batch_size)))

    def optimizer(self, network: _Net) -> torch.optim.Optimizer:
        """AdamW over the trainable parameters."""
        filled = [group for group in self.parameter_groups(network) if group["params"]]
        return torch.optim.AdamW(filled, weight_decay=self.config.weight_decay, betas=(0.9, 0.98))

    def parameter_groups(self, network: _Net) -> list[dict[str, Any]]:
        """Trainable parameters with their peak learning rates; LoRA weights first."""
        lora = [p for p in network.backbone.parameters() if p.requires_grad]
        return [{"params": lora, "lr": self.config.learning_rate}]

    # Checks and output

    def faults(self) -> list[str]:
        """Contradictions in the settings and in the small files that they name; nothing is loaded."""
        return []

    def facts(self, loaded: Loaded[_Net, _Said]) -> dict[str, Any]:  # noqa: ARG002 - a stage may use it
        """Facts of the start for the card; asked before the first step."""
        return {}

    @abstractmethod
    def save(
        self, loaded: Loaded[_Net, _Said], trained: dict[str, Any], rejected: Mapping[str, int], folder: Path
    ) -> None:
        """Write the output with facts of the run, and unused records by reason."""


class MemoryStage(Stage[Network, Manifest]):
    """A stage that trains a compressed model, fresh or from a checkpoint, and writes a checkpoint."""

    config: MemoryConfig

    def window(self) -> Window:
        if self.config.start is None:
            return Stage.window(self)
        manifest = checkpoint.read_manifest(find_checkpoint(self.config.start))
        return Window(manifest.base_model, manifest.compression.window_tokens, manifest.compression.rates)

    def rate_shares(self) -> Sequence[float]:
        return self.config.rate_weights or Stage.rate_shares(self)

    def prompt_memories(self, network: Network, batch: Batch) -> Tensor | None:
        return passage_memories(network, batch).index_select(0, batch.text_index).flatten(0, 1)

    def network(self, data: TrainingData, cache: Path, device: str, progress: HubProgress | None) -> Loaded:
        loaded = self.prepare(compressed_model(self.config, data, cache, device, progress))
        release(loaded.network, self.trains())  # last: PEFT turns gradients on and off as it adds adapters
        for parameter in self.trains_of_table(loaded.network.table):
            parameter.requires_grad = True
        return loaded

    def as_loaded(self, loaded: Loaded) -> Self:
        own = loaded.manifest
        return Stage.as_loaded(self, loaded).changed(base=own.base_model, compression=own.compression, lora=own.lora)

    def parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        table = [p for p in network.table.parameters() if p.requires_grad]
        own = {"params": table, "lr": self.config.table_learning_rate, "weight_decay": 0.0}
        return [*Stage.parameter_groups(self, network), own]

    def carried(self, loaded: Loaded, data: TrainingData) -> Carried:
        return carried(loaded, data, self.trains())

    def prepare(self, loaded: Loaded) -> Loaded:
        """Change a network that was just loaded into the stage's starting point."""
        return loaded

    def trains_of_table(self, table: MemoryTable) -> list[nn.Parameter]:  # noqa: ARG002 - a stage may use it
        """Parameters of the memory table to train beside those that go with the compressor."""
        return []

    def faults(self) -> list[str]:
        weights, faults = self.config.rate_weights, start_faults(self.config, self.start_faults)
        if weights and (min(weights) < 0 or sum(weights) <= 0):
            faults.insert(0, f"rate_weights must not be negative and not all 0, got {weights}")
        return faults

    def start_faults(self, start: str, manifest: Manifest) -> list[str]:  # noqa: ARG002 - a stage may use them
        """Reasons why this stage cannot start from a checkpoint."""
        return []

    def facts(self, loaded: Loaded) -> dict[str, Any]:
        if self.config.start is None:
            return {}
        mark = checkpoint.fingerprint(loaded.network, loaded.manifest, "documents")
        return {"start": {"checkpoint": self.config.start, "stage": loaded.manifest.stage, "compressor": mark}}

    def save(self, loaded: Loaded, trained: dict[str, Any], rejected: Mapping[str, int], folder: Path) -> None:
        manifest = loaded.manifest.unmeasured(stage=self.name, trained=trained)
        checkpoint.save(loaded.network, manifest, folder, card=model_card(manifest, rejected))
