"""Stages that learn to write targets from memories of the passages in the prompt: ``scp`` and ``instruct``.

Trained are compressor, generator and memory table, on CE plus the MSE term (clara.md sections 3 and 4), or the
generator alone (``freeze_compressor``). A full-text reader can be the teacher (``teacher``), and answers can be learnt
among all that could be quoted in their place (``clara.model.prompting``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from clara.model.create import Loaded
from clara.model.decoder import Role
from clara.model.hub.base import Progress as HubProgress
from clara.model.network import Network
from clara.train.batch import Batch, Collate, Collator, Memories
from clara.train.config import MemoryConfig
from clara.train.data import TrainingData
from clara.train.documents import Documents
from clara.train.examples import Example
from clara.train.need import TokenNeed
from clara.train.objective import Losses, generation_loss
from clara.train.stages.base import MemoryStage
from clara.train.start import Carried, carried
from clara.train.teacher import (
    ADAPTER,
    DistillingCollator,
    TeacherAnswers,
    add_teacher,
    teacher_faults,
    teacher_fingerprint,
)


class WritingConfig(MemoryConfig):
    """Settings of stages ``scp`` and ``instruct``.

    Attributes:
        mse_weight: lambda of clara.md section 3.
        freeze_compressor: train the generator alone: compressor and memory table stay as they are, and each passage is
            compressed once.
        freeze_encoder: train the generator and the read-out (gains and the mix of layers), on states that the frozen
            encoder computes once; its adapter and the memory tokens stay as they are.
        generator_learning_rate: peak, of the generator's LoRA weights; None for ``learning_rate``.
        mix_learning_rate: peak, of the maps of layers and places. They start at zero and add up hundreds of numbers, so
            a rate that suits LoRA ruins a memory in a few steps.
        quoted_weight: of the CE among the tokens that a quotation allows, beside the CE over the whole vocabulary; for
            answers that can be quoted. 0 leaves it out.
        targets: what the answers of the training questions are. ``gold``: the records' own. ``teacher``: what the
            teacher answers to the question over the same passages, in their place. ``both``: the records' own, with
            the teacher's distribution beside them. With ``teacher`` and with ``both`` the loss is CE of those answers
            plus ``kl_weight`` times KL(teacher || student), a mean over the answers' tokens.
        teacher: folder of a reader that was trained on full text, on the same base model.
        kl_weight: of the KL term; 0 leaves it out.
        need_weights: weigh the tokens of restatements by what the passage as text says of them beyond what follows
            from the words before (``need``), by the backbone alone, or by the teacher.
    """

    mse_weight: float = Field(default=0.1, ge=0)
    freeze_compressor: bool = False
    freeze_encoder: bool = False
    generator_learning_rate: float | None = Field(default=None, gt=0)
    mix_learning_rate: float = Field(default=8e-6, gt=0)
    quoted_weight: float = Field(default=0.0, ge=0)
    targets: Literal["gold", "teacher", "both"] = "gold"
    teacher: str | None = None
    kl_weight: float = Field(default=1.0, ge=0)
    need_weights: bool = False


class WritingStage(MemoryStage):
    """What both stages have in common: all but their examples."""

    config: WritingConfig

    def collator(self, loaded: Loaded, memories: Memories | None, kept: Path | None = None) -> Collate:  # noqa: ARG002 - nothing is asked
        """Passages and one decoder sequence an example."""
        return Collator(
            loaded.prompter(),
            window_tokens=self.config.compression.window_tokens,
            memories=None if self.config.freeze_encoder else memories,
            states=memories if self.config.freeze_encoder else None,
            quoted=self.config.quoted_weight > 0,
            reply_tokens=self.config.reply_tokens,
        )

    def background(self) -> int:
        """Memories of the passages, or to a teacher their text."""
        window = self.window()
        return self.passages() * (window.memory_tokens if self.config.teacher is None else window.tokens)

    @abstractmethod
    def passages(self) -> int:
        """Passages of an example, at most."""

    def training_collator(self, collator: Collate, loaded: Loaded, kept: Path) -> Collate:
        """With a teacher its answers, its prompts, or both; with ``need_weights`` weights in restatements."""
        config = self.config
        if not isinstance(collator, Collator) or (config.teacher is None and not config.need_weights):
            return collator
        mark, role = loaded.base.identity, None
        changes: list[Callable[[Sequence[Example]], list[Example]]] = []
        if config.teacher is not None:
            mark, role = teacher_fingerprint(loaded, Path(config.teacher).expanduser()), ADAPTER
        if config.targets == "teacher":
            window, bf16 = config.compression.window_tokens, config.dtype == "bf16"
            changes.append(TeacherAnswers(loaded, kept, fingerprint=mark, window_tokens=window, bf16=bf16))
        if config.need_weights:
            changes.append(TokenNeed(loaded, kept, collator=collator, role=role, mark=mark))
        distributions = config.teacher is not None and config.kl_weight > 0
        return DistillingCollator(collator, changes=changes, distributions=distributions)

    def loss(self, network: Network, batch: Batch) -> Losses:
        """CE of the targets, and the terms that the settings give a weight."""
        config = self.config
        return generation_loss(
            network,
            batch,
            mse_weight=config.mse_weight,
            kl_weight=config.kl_weight,
            quoted_weight=config.quoted_weight,
        )

    def trains(self) -> tuple[Role, ...]:
        """The generator, and unless it is frozen the compressor."""
        frozen = self.config.freeze_compressor or self.config.freeze_encoder
        return ("generator",) if frozen else ("compressor", "generator")

    def documents(self, loaded: Loaded, cache: Path) -> Documents | None:
        """Memories, or the states of a frozen encoder."""
        return (
            Documents(loaded, cache, states=True)
            if self.config.freeze_encoder
            else MemoryStage.documents(self, loaded, cache)
        )

    def network(self, data: TrainingData, cache: Path, device: str, progress: HubProgress | None) -> Loaded:
        """And with a frozen encoder its read-out, gradients on."""
        loaded = MemoryStage.network(self, data, cache, device, progress)
        if self.config.freeze_encoder:
            for parameter in loaded.network.table.read_out():
                parameter.requires_grad = True
        return loaded

    def carried(self, loaded: Loaded, data: TrainingData) -> Carried:
        """A read-out that is trained changes memories as a compressor does."""
        roles: tuple[Role, ...] = ("compressor", "generator") if self.config.freeze_encoder else self.trains()
        return carried(loaded, data, roles)

    def parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        """The generator and the mix of layers have rates of their own, where they are set or there."""
        lora, table = MemoryStage.parameter_groups(self, network)
        mix = {id(p) for p in network.table.mix.parameters()} if network.table.mix is not None else set()
        own = {id(p) for p in network.adapters.parameters_of("generator")}
        own = own if self.config.generator_learning_rate is not None else set()
        parts = [
            lora | {"params": [p for p in lora["params"] if id(p) not in own]},
            {"params": [p for p in lora["params"] if id(p) in own], "lr": self.config.generator_learning_rate},
            table | {"params": [p for p in table["params"] if id(p) not in mix]},
            table | {"params": [p for p in table["params"] if id(p) in mix], "lr": self.config.mix_learning_rate},
        ]
        return [part for part in parts if part["params"]]

    def prepare(self, loaded: Loaded) -> None:
        """Put the teacher beside the network's own adapters."""
        if self.config.teacher is not None:
            add_teacher(loaded, Path(self.config.teacher).expanduser())

    def facts(self, loaded: Loaded) -> dict[str, Any]:
        """And which teacher."""
        found = MemoryStage.facts(self, loaded)
        if self.config.teacher is not None:
            mark = teacher_fingerprint(loaded, Path(self.config.teacher).expanduser())
            found["teacher"] = {"reader": self.config.teacher, "fingerprint": mark}
        return found

    def faults(self) -> list[str]:
        """And those of the teacher, and settings without effect."""
        config = self.config
        found = MemoryStage.faults(self)
        if config.targets != "gold" and config.teacher is None:
            found.append(f'targets is "{config.targets}", but no teacher is named: set teacher = "DIR" of a reader')
        if config.targets == "gold" and config.teacher is not None:
            found.append('a teacher is named, but targets is "gold": set targets = "teacher" or "both"')
        if config.targets == "both" and config.kl_weight == 0:
            found.append('targets is "both" and kl_weight is 0, which is the same as "gold"')
        if config.freeze_encoder and config.freeze_compressor:
            found.append("freeze_compressor freezes the read-out, too; set it or freeze_encoder")
        if config.freeze_encoder and config.mse_weight != type(config).model_fields["mse_weight"].get_default():
            found.append("mse_weight is set, but freeze_encoder leaves it nothing to train")
        if config.freeze_compressor:
            found += [
                f"{name} is set, but freeze_compressor leaves it nothing to train"
                for name in ("mse_weight", "table_learning_rate")
                if getattr(config, name) != type(config).model_fields[name].get_default()
            ]
        return found if config.teacher is None else [*found, *teacher_faults(config.teacher)]
