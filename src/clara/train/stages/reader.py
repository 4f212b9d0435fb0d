"""Stage ``reader``: a LoRA on the backbone that answers from full text, or from nothing; no compression.

It takes the examples of stage ``scp`` or ``instruct``, so that compressed answers are compared with a reader that was
trained on the same records in the same order. Passages are cut to the compressor's window, which is all that the
compressor sees of them. Without context there is nothing to restate, so only questions are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field
from torch import Tensor

from clara.data import DataRecord
from clara.data.neighbours import Neighbours
from clara.errors import CheckpointError
from clara.model.decoder import Decoder, Role
from clara.model.hub.base import Progress as HubProgress
from clara.model.prompting import Prompter
from clara.model.reader import ReaderContext, ReaderManifest, read_reader_manifest, save_reader
from clara.train.batch import REPLY_TOKENS, Batch, Collate, Collator, Memories
from clara.train.card import reader_card
from clara.train.config import TrainConfig
from clara.train.data import Surroundings, TrainingData
from clara.train.examples import Example, is_question
from clara.train.objective import Losses, reading_loss
from clara.train.stages.base import Stage
from clara.train.stages.instruct import BackgroundConfig, drawn_example, unusable_refusal
from clara.train.stages.scp import NO_RESTATEMENTS, PassageConfig, passage_example
from clara.train.start import LoadedReader, reader_model, release_adapters


class ReaderConfig(PassageConfig, BackgroundConfig, TrainConfig):
    """Settings of stage ``reader``.

    Attributes:
        reader_context: what it answers from: the passages' full ``text``, or nothing (``none``).
        reader_examples: whose examples it takes: with the same seed it sees the same records, passages and targets as
            that stage.
        quoted_weight: with text, of the CE among the tokens that a quotation allows, beside the CE over the whole
            vocabulary. 0 leaves it out.
        start: folder of a reader to go on from, or None for a fresh adapter.
    """

    reader_context: Literal["text", "none"] = "text"
    reader_examples: Literal["scp", "instruct"] = "instruct"
    quoted_weight: float = Field(default=0.0, ge=0)
    start: str | None = None


class ReaderStage(Stage[Decoder, ReaderManifest]):
    """A reader of full text, or of nothing."""

    config: ReaderConfig
    Config = ReaderConfig
    name = "reader"
    writes = "reader"

    @property
    def restates_passages(self) -> bool:
        """Where the stage that it imitates does, and there is something to read."""
        return self._single and self._reads

    @property
    def _single(self) -> bool:
        """Whether an example is one passage, as in stage ``scp``."""
        return self.config.reader_examples == "scp"

    @property
    def _reads(self) -> bool:
        return self.config.reader_context == "text"

    def neighbours(self, drawn: Sequence[DataRecord], held_out: Sequence[DataRecord]) -> Neighbours | None:  # noqa: ARG002 - not to be read
        """As stage ``instruct``."""
        return Neighbours(drawn) if self.config.near_distractors else None

    def example(
        self, record: DataRecord, rng: np.random.Generator, around: Surroundings | None = None
    ) -> Example | None:
        """That of the stage which is imitated, as far as a reader can be asked it."""
        if self._single:
            made = passage_example(record, self.config, rng)
        else:
            made = drawn_example(record, self.config, rng, around)
        if made is None or self._reads:
            return made
        targets = tuple(filter(is_question, made.targets))
        return replace(made, targets=targets) if targets else None

    def unusable(self, record: DataRecord, rng: np.random.Generator) -> str | None:
        """A record without an answer needs a run that trains to say so."""
        return unusable_refusal(record, self.config) or Stage.unusable(self, record, rng)

    def background(self) -> int:
        """The text of the passages."""
        passages = 1 if self._single else self.config.documents
        return passages * self.window().tokens if self._reads else 0

    def asking(self) -> Self:
        """Without restatements, and with the answers in the passages."""
        return self.changed(restate=NO_RESTATEMENTS, ask_weight=0.0, unanswered=0.0)

    def collator(self, loaded: LoadedReader, memories: Memories | None, kept: Path | None = None) -> Collate:  # noqa: ARG002 - none are read
        """Decoder sequences that are the prompts of ``model.reader``."""
        return ReaderCollator(
            Prompter(loaded.base.tokenizer, refuses=loaded.manifest.refuses),
            window_tokens=self.config.compression.window_tokens,
            context=self.config.reader_context,
            quoted=self.config.quoted_weight > 0,
            reply_tokens=self.config.reply_tokens,
        )

    def loss(self, network: Decoder, batch: Batch) -> Losses:
        """CE of the targets."""
        return reading_loss(network, batch, quoted_weight=self.config.quoted_weight)

    def prompt_memories(self, network: Decoder, batch: Batch) -> Tensor | None:  # noqa: ARG002 - there are none
        """None: a reader's prompt holds the text itself."""
        return None

    @property
    def rates(self) -> tuple[int, ...]:
        """One: its scores would be the same at every rate."""
        return (self.config.compression.default_rate,)

    def trains(self) -> tuple[Role, ...]:
        """One adapter."""
        return ("generator",)

    @property
    def keeps_memories(self) -> bool:
        """There are none."""
        return False

    def network(self, data: TrainingData, cache: Path, device: str, progress: HubProgress | None) -> LoadedReader:  # noqa: ARG002 - nothing is calibrated
        """A backbone with a fresh adapter, or with the one that it goes on from."""
        config = self.config
        start = None if config.start is None else Path(config.start).expanduser()
        loaded = reader_model(config, config.reader_context, cache, device, progress, start=start)
        refuses = loaded.manifest.refuses or config.unanswered > 0
        loaded = replace(loaded, manifest=loaded.manifest.model_copy(update={"refuses": refuses}))
        release_adapters(loaded.network, self.trains())
        return loaded

    def as_loaded(self, loaded: LoadedReader) -> Self:
        """With one rate, as it measures one."""
        one = self.config.compression.model_copy(update={"rates": self.rates})
        return Stage.as_loaded(self, loaded).changed(compression=one)

    def faults(self) -> list[str]:
        """Settings without effect."""
        found = []
        if self.config.quoted_weight and not self._reads:
            found.append("quoted_weight is set, but a reader without context has nothing to quote from")
        if self.config.near_distractors and self._single:
            found.append("near_distractors is set, but the examples of stage scp have no distractors")
        if self.config.unanswered and (self._single or not self._reads):
            found.append("unanswered is set, but only a reader of several passages can see that none holds the answer")
        return [*found, *self._start_faults()]

    def _start_faults(self) -> list[str]:
        """What of the reader to go on from is another one's."""
        if self.config.start is None:
            return []
        try:
            found = read_reader_manifest(Path(self.config.start).expanduser())
        except CheckpointError as error:
            return [f"start: {error}"]
        pairs = {"context": (found.context, self.config.reader_context), "lora": (found.lora, self.config.lora)}
        return [f"start: its {name} is {own}, the run's {ours}" for name, (own, ours) in pairs.items() if own != ours]

    def save(
        self,
        loaded: LoadedReader,
        trained: dict[str, Any],
        rejected: Mapping[str, int],
        folder: Path,
    ) -> None:
        """Write a reader's folder with its card."""
        manifest = loaded.manifest.model_copy(update={"trained": trained})
        save_reader(loaded.network.adapters, manifest, folder, card=reader_card(manifest, rejected))


class ReaderCollator:
    """Builds the batches of stage ``reader``."""

    def __init__(
        self,
        prompter: Prompter,
        *,
        window_tokens: int,
        context: ReaderContext,
        quoted: bool = False,
        reply_tokens: int = REPLY_TOKENS,
    ) -> None:
        self._collator = Collator(prompter, window_tokens=window_tokens, reply_tokens=reply_tokens)
        self._context, self._quoted = context, quoted

    def __call__(self, examples: Sequence[Example], *, rate: int, asked: Sequence[int] | None = None) -> Batch:
        """Make a batch; ``rate`` is noted and changes nothing."""
        taken = examples if asked is None else [examples[i] for i in asked]
        make = self._collator.of_texts if self._context == "text" else self._collator.closed_book
        quotable = self._collator.quotable(taken) if self._quoted else None
        return replace(make(taken), rate=rate, quotable=quotable)
