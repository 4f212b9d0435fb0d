"""Stages that learn to write targets from the passages in the prompt: ``scp``, ``instruct`` and ``reader``.

``scp`` (clara.md section 3) answers questions about one passage and restates it, from its memory. ``instruct``
(section 4) answers questions over several passages, each compressed on its own; with ``text_share`` and ``unanswered``
the generator also learns prompts that mix texts and memories, and to say that no passage holds the answer. Both train
compressor, generator and memory table on CE plus the MSE term, or less of them (``freeze_compressor``,
``freeze_encoder``). A full-text reader can be the teacher, and answers can be learnt among all spans that could be
quoted in their place.

``reader`` trains a LoRA that answers from full text, or closed-book: the baseline of compressed answers, so it takes
the same examples in the same order, passages cut to the compressor's window.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from clara.data import DataRecord, MultiHop
from clara.data.neighbours import Neighbours
from clara.errors import CheckpointError
from clara.model.adapters import Adapters, load_adapter
from clara.model.backbone import load_base
from clara.model.create import Loaded
from clara.model.decoder import AdapterName, Decoder, Role
from clara.model.hub.base import Progress as HubProgress
from clara.model.network import Network
from clara.model.placement import placement
from clara.model.prompting import Prompter
from clara.model.reader import ReaderManifest, find_reader, save_reader
from clara.model.table import MemoryTable
from clara.train.batch import Batch, Collate, Collator, Memories
from clara.train.card import reader_card
from clara.train.config import MemoryConfig, TrainConfig
from clara.train.data import Surroundings, TrainingData
from clara.train.documents import Documents
from clara.train.examples import (
    BackgroundConfig,
    Example,
    PassageConfig,
    RestateSettings,
    drawn_example,
    passage_example,
)
from clara.train.objective import Losses, generation_loss, reply_losses
from clara.train.stages.base import MemoryStage, Stage
from clara.train.start import Carried, carried, release
from clara.train.teaching import (
    OwnAnswers,
    TeacherAnswers,
    TokenNeed,
    add_teacher,
    distilling,
    teacher_faults,
    teacher_fingerprint,
)

_NO_RESTATEMENTS = RestateSettings(repeat=0, resume=0)


class _WritingConfig(MemoryConfig):
    """Settings of stages ``scp`` and ``instruct``.

    Attributes:
        mse_weight: lambda of clara.md section 3.
        freeze_compressor: train the generator alone; each passage is compressed once.
        freeze_encoder: train the generator and the read-out (gains and the mix of layers) on states that the frozen
            encoder computes once.
        generator_learning_rate: peak, of the generator's LoRA weights; None for ``learning_rate``.
        mix_learning_rate: peak, of the maps of layers and places. They start at zero and add up hundreds of numbers, so
            a rate that suits LoRA ruins a memory in a few steps.
        quoted_weight: of the CE among the tokens that extractive decoding allows, beside the CE over the vocabulary.
        targets: answers of the training questions. ``gold``: the records' own. ``teacher``: the teacher's, over the
            same passages. ``both``: the records' own with the teacher's distribution. With ``teacher`` and ``both`` the
            loss is CE of those answers plus ``kl_weight`` times KL(teacher || student), a mean over the answers'
            tokens.
        teacher: folder of a reader that was trained on full text, or a checkpoint that has one, on the same base model.
        kl_weight: of the KL term; 0 leaves it out.
        need_weights: weigh the tokens of restatements by their need of the passage (``TokenNeed``), as judged by the
            backbone, or by the teacher.
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


class _WritingStage(MemoryStage):
    """The parts that ``scp`` and ``instruct`` share: all but their examples."""

    config: _WritingConfig

    def collator(self, loaded: Loaded, memories: Memories | None, kept: Path | None = None) -> Collate:  # noqa: ARG002 - nothing is asked
        return Collator(
            loaded.prompter(),
            window_tokens=self.config.compression.window_tokens,
            memories=None if self.config.freeze_encoder else memories,
            states=memories if self.config.freeze_encoder else None,
            quoted=self.config.quoted_weight > 0,
            reply_tokens=self.config.reply_tokens,
        )

    def background(self) -> int:
        window = self.window()
        return self.passages * (window.memory_tokens if self.config.teacher is None else window.tokens)

    @property
    @abstractmethod
    def passages(self) -> int:
        """Most passages of an example."""

    def training_collator(self, collator: Collate, loaded: Loaded, kept: Path) -> Collate:
        config = self.config
        if not isinstance(collator, Collator) or (config.teacher is None and not config.need_weights):
            return collator
        mark: str = loaded.base.identity
        role: AdapterName | None = None
        changes: list[Callable[[Sequence[Example]], list[Example]]] = []
        if config.teacher is not None:
            mark, role = teacher_fingerprint(loaded, config.teacher), "teacher"
        if config.targets == "teacher":
            window, bf16 = config.compression.window_tokens, config.dtype == "bf16"
            changes.append(TeacherAnswers(loaded, kept, fingerprint=mark, window_tokens=window, bf16=bf16))
        if config.need_weights:
            changes.append(TokenNeed(loaded, kept, collator=collator, role=role, mark=mark))
        distributions = config.teacher is not None and config.kl_weight > 0
        return distilling(collator, changes=changes, taught=collator if distributions else None)

    def loss(self, network: Network, batch: Batch) -> Losses:
        mse, kl, quoted = self.config.mse_weight, self.config.kl_weight, self.config.quoted_weight
        return generation_loss(network, batch, mse_weight=mse, kl_weight=kl, quoted_weight=quoted)

    def trains(self) -> tuple[Role, ...]:
        frozen = self.config.freeze_compressor or self.config.freeze_encoder
        return ("generator",) if frozen else ("compressor", "generator")

    def documents(self, loaded: Loaded, cache: Path) -> Documents | None:
        if self.config.freeze_encoder:
            return Documents(loaded, cache, states=True)
        return MemoryStage.documents(self, loaded, cache)

    def trains_of_table(self, table: MemoryTable) -> list[nn.Parameter]:
        return table.read_out() if self.config.freeze_encoder else []

    def carried(self, loaded: Loaded, data: TrainingData) -> Carried:
        # A read-out that is trained changes memories as a compressor does.
        roles: tuple[Role, ...] = ("compressor", "generator") if self.config.freeze_encoder else self.trains()
        return carried(loaded, data, roles)

    def parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        lora, table = MemoryStage.parameter_groups(self, network)
        mix = {id(p) for p in network.table.mix.parameters()} if network.table.mix is not None else set()
        own = {id(p) for p in network.adapters.parameters_of("generator")}
        own = own if self.config.generator_learning_rate is not None else set()
        return [
            lora | {"params": [p for p in lora["params"] if id(p) not in own]},
            {"params": [p for p in lora["params"] if id(p) in own], "lr": self.config.generator_learning_rate},
            table | {"params": [p for p in table["params"] if id(p) not in mix]},
            table | {"params": [p for p in table["params"] if id(p) in mix], "lr": self.config.mix_learning_rate},
        ]

    def prepare(self, loaded: Loaded) -> Loaded:
        """Put the teacher beside the network's own adapters."""
        if self.config.teacher is not None:
            add_teacher(loaded, self.config.teacher)
        return loaded

    def facts(self, loaded: Loaded) -> dict[str, Any]:
        facts = MemoryStage.facts(self, loaded)
        if self.config.teacher is not None:
            mark = teacher_fingerprint(loaded, self.config.teacher)
            facts["teacher"] = {"reader": self.config.teacher, "fingerprint": mark}
        return facts

    def faults(self) -> list[str]:
        config, faults = self.config, MemoryStage.faults(self)
        default = {name: field.get_default() for name, field in type(config).model_fields.items()}
        if config.targets != "gold" and config.teacher is None:
            faults.append(f'targets is "{config.targets}", but no teacher is named: set teacher = "DIR" of a reader')
        if config.targets == "gold" and config.teacher is not None:
            faults.append('a teacher is named, but targets is "gold": set targets = "teacher" or "both"')
        if config.targets == "both" and config.kl_weight == 0:
            faults.append('targets is "both" and kl_weight is 0, which is the same as "gold"')
        if config.freeze_encoder and config.freeze_compressor:
            faults.append("freeze_compressor freezes the read-out, too; set it or freeze_encoder")
        if config.freeze_encoder and config.mse_weight != default["mse_weight"]:
            faults.append("mse_weight is set, but freeze_encoder leaves it nothing to train")
        if config.freeze_compressor:
            faults += [
                f"{name} is set, but freeze_compressor leaves it nothing to train"
                for name in ("mse_weight", "table_learning_rate")
                if getattr(config, name) != default[name]
            ]
        return faults if config.teacher is None else [*faults, *teacher_faults(config.teacher)]


class _ScpConfig(PassageConfig, _WritingConfig):
    """Settings of stage ``scp``."""


class ScpStage(_WritingStage):
    """Salient compressor pretraining."""

    config: _ScpConfig
    Config = _ScpConfig
    name = "scp"
    restates_passages = True
    passages = 1

    def example(
        self,
        record: DataRecord,
        rng: np.random.Generator,
        around: Surroundings | None = None,  # noqa: ARG002 - a passage is read alone
    ) -> Example | None:
        return passage_example(record, self.config, rng)

    def asking(self) -> Self:
        return self.changed(restate=_NO_RESTATEMENTS, ask_weight=0.0)


class _InstructConfig(BackgroundConfig, _WritingConfig):
    """Settings of stage ``instruct``.

    Attributes:
        text_share: share of the passages that the generator reads as text, each drawn apart, so that texts and
            memories stand in one prompt. The checkpoint's manifest then says ``mixed``.
    """

    text_share: float = Field(default=0.0, ge=0, le=1)


class InstructStage(_WritingStage):
    """Compression instruction tuning."""

    config: _InstructConfig
    Config = _InstructConfig
    name = "instruct"

    def neighbours(self, drawn: Sequence[DataRecord], held_out: Sequence[DataRecord]) -> Neighbours | None:  # noqa: ARG002 - not to be read
        return Neighbours(drawn) if self.config.near_distractors else None

    @property
    def passages(self) -> int:
        return self.config.documents

    def example(
        self, record: DataRecord, rng: np.random.Generator, around: Surroundings | None = None
    ) -> Example | None:
        made = drawn_example(record, self.config, rng, around)
        if made is None or not self.config.text_share:
            return made
        as_text = np.flatnonzero(rng.random(len(made.texts)) < self.config.text_share)
        return replace(made, as_text=frozenset(as_text.tolist()))

    def unusable(self, record: DataRecord, rng: np.random.Generator) -> str | None:
        return _unusable_refusal(record, self.config) or _WritingStage.unusable(self, record, rng)

    def background(self) -> int:
        return self.passages * self.window().tokens if self.config.text_share else _WritingStage.background(self)

    def asking(self) -> Self:
        return self.changed(unanswered=0.0)

    def prepare(self, loaded: Loaded) -> Loaded:
        """Note in the manifest that the generator will read mixed prompts, or refuse."""
        loaded = _WritingStage.prepare(self, loaded)
        learnt = {
            "mixed": loaded.manifest.mixed or self.config.text_share > 0,
            "refuses": loaded.manifest.refuses or self.config.unanswered > 0,
        }
        return replace(loaded, manifest=loaded.manifest.model_copy(update=learnt))


def _unusable_refusal(record: DataRecord, config: BackgroundConfig) -> str | None:
    """The reason why a record without an answer cannot be used; None for other records."""
    if isinstance(record, MultiHop) and not record.answerable and not config.unanswered:
        return "question without an answer has no use while unanswered is 0"
    return None


_LoadedReader: TypeAlias = Loaded[Decoder, ReaderManifest]


class _ReaderConfig(PassageConfig, BackgroundConfig, TrainConfig):
    """Settings of stage ``reader``.

    Attributes:
        reader_context: the passages' full ``text``, or ``none`` (closed book).
        reader_examples: the stage whose examples it takes: with the same seed the same records, passages, targets.
        quoted_weight: with text, as in stage ``instruct``.
        start: folder of a reader to go on from, or a checkpoint that has one; None for a fresh adapter.
        judged: learn to judge the answers that ``start`` gives, too: after each, whether it is right. The manifest then
            says ``judges``, and the reader chooses among answers by its verdict. None: if ``start`` does.
    """

    reader_context: Literal["text", "none"] = "text"
    reader_examples: Literal["scp", "instruct"] = "instruct"
    quoted_weight: float = Field(default=0.0, ge=0)
    start: str | None = None
    judged: bool | None = None


class ReaderStage(Stage[Decoder, ReaderManifest]):
    """A reader of full text, or closed-book."""

    config: _ReaderConfig
    Config = _ReaderConfig
    name = "reader"
    writes = "reader"
    keeps_memories = False

    @property
    def restates_passages(self) -> bool:
        return self._single and self._reads

    @property
    def _single(self) -> bool:
        return self.config.reader_examples == "scp"

    @property
    def _reads(self) -> bool:
        return self.config.reader_context == "text"

    @property
    def _judges(self) -> bool:
        if self.config.judged is None:
            return self.config.start is not None and find_reader(self.config.start)[0].judges
        return self.config.judged

    def neighbours(self, drawn: Sequence[DataRecord], held_out: Sequence[DataRecord]) -> Neighbours | None:  # noqa: ARG002 - not to be read
        return Neighbours(drawn) if self.config.near_distractors else None

    def example(
        self, record: DataRecord, rng: np.random.Generator, around: Surroundings | None = None
    ) -> Example | None:
        if self._single:
            made = passage_example(record, self.config, rng)
        else:
            made = drawn_example(record, self.config, rng, around)
        if made is None or self._reads:
            return made
        asking = made.questions()
        return asking if asking.targets else None

    def unusable(self, record: DataRecord, rng: np.random.Generator) -> str | None:
        return _unusable_refusal(record, self.config) or Stage.unusable(self, record, rng)

    def background(self) -> int:
        passages = 1 if self._single else self.config.documents
        return passages * self.window().tokens if self._reads else 0

    def asking(self) -> Self:
        return self.changed(restate=_NO_RESTATEMENTS, ask_weight=0.0, unanswered=0.0)

    def collator(self, loaded: _LoadedReader, memories: Memories | None, kept: Path | None = None) -> Collate:  # noqa: ARG002 - none are read
        """Decoder sequences with the prompts of ``model.reader``; the rate changes nothing."""
        config = self.config
        prompter = Prompter(loaded.base.tokenizer, refuses=loaded.manifest.refuses)
        window = config.compression.window_tokens
        collator = Collator(prompter, window_tokens=window, reply_tokens=config.reply_tokens)
        make = collator.of_texts if self._reads else collator.closed_book

        def collate(examples: Sequence[Example], *, rate: int, asked: Sequence[int] | None = None) -> Batch:
            taken = examples if asked is None else [examples[i] for i in asked]
            quotable = collator.quotable(taken) if config.quoted_weight > 0 else None
            return replace(make(taken), rate=rate, quotable=quotable)

        return collate

    def training_collator(self, collator: Collate, loaded: _LoadedReader, kept: Path) -> Collate:
        if self.config.start is None or not self._judges:
            return collator
        mark = f"judged-{teacher_fingerprint(loaded, self.config.start)}"
        window, bf16 = self.config.compression.window_tokens, loaded.base.model.dtype == torch.bfloat16
        own = OwnAnswers(loaded, kept, fingerprint=mark, window_tokens=window, bf16=bf16)
        return distilling(collator, changes=[own])

    def loss(self, network: Decoder, batch: Batch) -> Losses:
        return reply_losses(network, batch, None, quoted_weight=self.config.quoted_weight)

    def prompt_memories(self, network: Decoder, batch: Batch) -> Tensor | None:  # noqa: ARG002 - there are none
        return None

    @property
    def rates(self) -> tuple[int, ...]:
        """One rate: the scores are the same at each."""
        return (self.config.compression.default_rate,)

    def trains(self) -> tuple[Role, ...]:
        return ("generator",)

    def network(self, data: TrainingData, cache: Path, device: str, progress: HubProgress | None) -> _LoadedReader:  # noqa: ARG002 - nothing is calibrated
        config = self.config
        where = placement(config.dtype, device)
        base = load_base(config.base, cache, dtype=where.dtype, device=device, bits=where.bits, progress=progress)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adapters = Adapters.fresh(base.model, config.lora, roles=self.trains())
        refuses = config.unanswered > 0
        if config.start is not None:
            start, adapter = find_reader(config.start)
            base.check_trained_on(adapter.parent, start.base_model, start.base_identity)
            load_adapter(adapters.peft_model, adapter, "generator")
            refuses = refuses or start.refuses
        manifest = ReaderManifest(
            base_model=base.name,
            base_identity=base.identity,
            context=config.reader_context,
            lora=config.lora,
            refuses=refuses,
            judges=self._judges,
        )
        loaded = Loaded(Decoder(adapters), base, manifest)
        if config.start is not None and self._judges:
            add_teacher(loaded, config.start)
        release(loaded.network, self.trains())
        return loaded

    def as_loaded(self, loaded: _LoadedReader) -> Self:
        one = self.config.compression.model_copy(update={"rates": self.rates})
        return Stage.as_loaded(self, loaded).changed(compression=one)

    def faults(self) -> list[str]:
        config, faults = self.config, []
        if config.quoted_weight and not self._reads:
            faults.append("quoted_weight is set, but a reader without context has nothing to quote from")
        if config.near_distractors and self._single:
            faults.append("near_distractors is set, but the examples of stage scp have no distractors")
        if config.unanswered and (self._single or not self._reads):
            faults.append("unanswered is set, but only a reader of several passages can see that none holds the answer")
        if config.judged and (config.start is None or not self._reads):
            faults.append('judged is set, but there are no answers to judge: set start = "DIR" of a reader of text')
        if config.start is None:
            return faults
        try:
            start, _ = find_reader(config.start)
        except CheckpointError as error:
            return [*faults, f"start: {error}"]
        pairs = {"context": (start.context, config.reader_context), "lora": (start.lora, config.lora)}
        differing = ((name, own, ours) for name, (own, ours) in pairs.items() if own != ours)
        return [*faults, *(f"start: its {name} is {own}, the run's {ours}" for name, own, ours in differing)]

    def save(self, loaded: _LoadedReader, trained: dict[str, Any], rejected: Mapping[str, int], folder: Path) -> None:
        manifest = loaded.manifest.model_copy(update={"trained": trained})
        save_reader(loaded.network.adapters, manifest, folder, card=reader_card(manifest, rejected))
