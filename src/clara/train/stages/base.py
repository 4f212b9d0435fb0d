"""What a stage must say, and what the four that train a compressed model have in common.

A run asks its stage for everything that depends on it: which examples a record gives, how they become a batch, what
the loss is, which weights it moves, and what is written at the end. ``data``, ``loop`` and ``validation`` know no
stage by name.
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
from clara.model.checkpoint import Manifest, memory_fingerprint
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
    """One way to train, with the settings of a run; of what network, and what is said of it, is its type's matter.

    Attributes:
        config: the settings.
        Config: their class.
        name: in manifests, cards and messages.
        writes: the folder of a run that holds what it made.
        by_length: whether batches are of texts of like length.
        contrasts: whether a question is told from the passages of the whole batch, so that each of several processes
            has to see all of it.
        restates_passages: whether a passage that nothing is asked about can be trained on.
    """

    config: TrainConfig
    Config: ClassVar[type[TrainConfig]]
    name: ClassVar[str]
    writes: ClassVar[str] = "checkpoint"
    by_length: ClassVar[bool] = True
    contrasts: ClassVar[bool] = False

    @property
    def restates_passages(self) -> bool:  # noqa: D102 - among the attributes
        return False

    # What it reads

    def window(self) -> Window:
        """What is cut off each text, and in whose tokens; read before anything is loaded."""
        compression = self.config.compression
        return Window(self.config.base, compression.window_tokens, compression.rates)

    def unusable(self, record: DataRecord, rng: np.random.Generator) -> str | None:
        """Why a record has no use here, in the same words for each such record; None if it has."""
        if self.example(record, rng) is not None:
            return None
        return f"{type(record).__name__} record has no use in stage {self.name}"

    def neighbours(self, drawn: Sequence[DataRecord], held_out: Sequence[DataRecord]) -> Neighbours | None:  # noqa: ARG002 - a stage may use them
        """An index of passages for ``example``, of records that are drawn or kept back; None where it needs none."""
        return None

    @abstractmethod
    def example(
        self, record: DataRecord, rng: np.random.Generator, around: Surroundings | None = None
    ) -> Example | CandidateExample | None:
        """A record's example; None where the stage has no use for it.

        Without ``around``, what else the example may take, it is only asked whether there is one.
        """

    @abstractmethod
    def background(self) -> int:
        """Positions that passages take in a prompt, at most."""

    def asking(self) -> Self:
        """The same stage with examples that only ask."""
        return self

    # What it computes

    @abstractmethod
    def collator(self, loaded: Loaded[_Net, _Said], memories: Memories | None, kept: Path | None = None) -> Collate:
        """Makes batches of examples.

        Args:
            loaded: the network with its tokenizer.
            memories: gives computed memories; None to hand on texts, which are then encoded.
            kept: folder for what a frozen network is asked once (``teaching``), shared by runs; None to ask nothing.
        """

    def training_collator(self, collator: Collate, loaded: Loaded[_Net, _Said], kept: Path) -> Collate:  # noqa: ARG002 - a stage may use them
        """What makes the batches that are trained on, where they differ from those of ``collator``, for measuring."""
        return collator

    @abstractmethod
    def loss(self, network: _Net, batch: Batch) -> Losses:
        """The losses of a batch."""

    @abstractmethod
    def prompt_memories(self, network: _Net, batch: Batch) -> Tensor | None:
        """What stands in the memory slots of a batch's prompts, [sum of slots, H]; None if they have none."""

    @property
    def rates(self) -> tuple[int, ...]:
        """Compression rates that are measured."""
        return self.config.compression.rates

    def rate_shares(self) -> Sequence[float]:
        """How often each rate is drawn."""
        return [1.0] * len(self.config.compression.rates)

    # Which weights

    @abstractmethod
    def trains(self) -> tuple[Role, ...]:
        """The adapters that are trained."""

    @property
    def keeps_memories(self) -> bool:
        """Whether the compressor stays as it is, so that each passage is compressed once."""
        return "compressor" not in self.trains()

    def documents(self, loaded: Loaded, cache: Path) -> Documents | None:
        """What is computed once of each passage; None where passages are encoded at each step."""
        return Documents(loaded, cache) if self.keeps_memories else None

    @abstractmethod
    def network(
        self, data: TrainingData, cache: Path, device: str, progress: HubProgress | None
    ) -> Loaded[_Net, _Said]:
        """The network before its first step, gradients on where the stage trains."""

    def whitens(self, loaded: Loaded[_Net, _Said]) -> bool:  # noqa: ARG002 - a stage may use it
        """Whether the projection of questions starts from this run's texts, before the first step."""
        return False

    def carried(self, loaded: Loaded[_Net, _Said], data: TrainingData) -> Carried:  # noqa: ARG002 - a stage may use them
        """What the checkpoint to start from brings along that will not fit the result; asked before the first step."""
        return Carried()

    def as_loaded(self, loaded: Loaded[_Net, _Said]) -> Self:
        """The stage with what the loaded network decides of its settings."""
        dtype = "bf16" if loaded.base.model.dtype == torch.bfloat16 else "fp32"
        return self.changed(base=loaded.base.name, dtype=self.config.dtype if self.config.dtype in BITS else dtype)

    def changed(self, **values: Any) -> Self:  # noqa: ANN401 - any setting
        """The stage with other settings."""
        return replace(self, config=self.config.model_copy(update=values))

    def in_steps(self, records: int) -> Self:
        """The stage with its length said in steps, where it is said in epochs of so many records."""
        if self.config.epochs is None:
            return self
        return self.changed(steps=max(1, math.ceil(self.config.epochs * records / self.config.batch_size)))

    def optimizer(self, network: _Net) -> torch.optim.Optimizer:
        """AdamW over the trainable parameters."""
        filled = [group for group in self.parameter_groups(network) if group["params"]]
        return torch.optim.AdamW(filled, weight_decay=self.config.weight_decay, betas=(0.9, 0.98))

    def parameter_groups(self, network: _Net) -> list[dict[str, Any]]:
        """What is trained, with the peak learning rate of each part; LoRA weights first."""
        lora = [p for p in network.backbone.parameters() if p.requires_grad]
        return [{"params": lora, "lr": self.config.learning_rate}]

    # What it refuses and what it leaves

    def faults(self) -> list[str]:
        """What in the settings cannot do what it says, with the small files that they name; nothing is loaded."""
        return []

    def facts(self, loaded: Loaded[_Net, _Said]) -> dict[str, Any]:  # noqa: ARG002 - a stage may use it
        """What a card says of the start; asked before the first step."""
        return {}

    @abstractmethod
    def save(
        self, loaded: Loaded[_Net, _Said], trained: dict[str, Any], rejected: Mapping[str, int], folder: Path
    ) -> None:
        """Write what the run made, with facts of the run and what of the records was not used, by reason."""


class MemoryStage(Stage[Network, Manifest]):
    """A stage that trains a compressed model, from a checkpoint or afresh, and writes a checkpoint."""

    config: MemoryConfig

    def window(self) -> Window:
        """That of the checkpoint to start from, else the settings'."""
        if self.config.start is None:
            return Stage.window(self)
        manifest = checkpoint.read_manifest(find_checkpoint(self.config.start))
        return Window(manifest.base_model, manifest.compression.window_tokens, manifest.compression.rates)

    def rate_shares(self) -> Sequence[float]:
        """As set; all alike when nothing is."""
        return self.config.rate_weights or Stage.rate_shares(self)

    def prompt_memories(self, network: Network, batch: Batch) -> Tensor | None:
        """Those of the example's passages, in their order."""
        return passage_memories(network, batch).index_select(0, batch.text_index).flatten(0, 1)

    def network(self, data: TrainingData, cache: Path, device: str, progress: HubProgress | None) -> Loaded:
        """The checkpoint's, or a fresh one on the base model."""
        loaded = self.prepare(compressed_model(self.config, data, cache, device, progress))
        release(loaded.network, self.trains())  # last: PEFT turns gradients on and off as it adds adapters
        for parameter in self.trains_of_table(loaded.network.table):
            parameter.requires_grad = True
        return loaded

    def as_loaded(self, loaded: Loaded) -> Self:
        """And what the checkpoint to start from decides."""
        own = loaded.manifest
        return Stage.as_loaded(self, loaded).changed(base=own.base_model, compression=own.compression, lora=own.lora)

    def parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        """And the memory table."""
        table = [p for p in network.table.parameters() if p.requires_grad]
        own = {"params": table, "lr": self.config.table_learning_rate, "weight_decay": 0.0}
        return [*Stage.parameter_groups(self, network), own]

    def carried(self, loaded: Loaded, data: TrainingData) -> Carried:
        """What was measured with the checkpoint, and its query reasoner."""
        return carried(loaded, data, self.trains())

    def prepare(self, loaded: Loaded) -> Loaded:
        """Change a network that was just loaded into what the stage starts from."""
        return loaded

    def trains_of_table(self, table: MemoryTable) -> list[nn.Parameter]:  # noqa: ARG002 - a stage may use it
        """What is trained of the memory table beside that which is trained with the compressor."""
        return []

    def faults(self) -> list[str]:
        """Those of ``rate_weights``, and of the checkpoint to start from."""
        config = self.config
        found = []
        if config.rate_weights and (min(config.rate_weights) < 0 or sum(config.rate_weights) <= 0):
            found.append(f"rate_weights must not be negative and not all 0, got {config.rate_weights}")
        return [*found, *start_faults(config, self.start_faults)]

    def start_faults(self, start: str, manifest: Manifest) -> list[str]:  # noqa: ARG002 - a stage may use them
        """What this stage cannot do with a checkpoint to start from."""
        return []

    def facts(self, loaded: Loaded) -> dict[str, Any]:
        """The checkpoint that was started from, its last stage and its compressor's fingerprint."""
        if self.config.start is None:
            return {}
        mark = memory_fingerprint(loaded.network, loaded.manifest)
        return {"start": {"checkpoint": self.config.start, "stage": loaded.manifest.stage, "compressor": mark}}

    def save(self, loaded: Loaded, trained: dict[str, Any], rejected: Mapping[str, int], folder: Path) -> None:
        """Write a native checkpoint with its card."""
        manifest = loaded.manifest.unmeasured(stage=self.name, trained=trained)
        checkpoint.save(loaded.network, manifest, folder, card=model_card(manifest, rejected))
