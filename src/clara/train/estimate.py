"""How much memory a training run takes at most, and how much there is: said before anything is loaded.

What inference takes is ``model.placement``'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from clara.model.backbone import Tokenizer
from clara.model.hub.base import find_base
from clara.model.placement import QUANTISED_BYTES, Placement, available, gigabytes, placement, shapes_of
from clara.model.prompting import Prompter
from clara.train.backbones import longest_prompt
from clara.train.data import TrainingData
from clara.train.examples import Example
from clara.train.stages.base import Stage

_TRAINED_BYTES = 16
"""A trained weight with its gradient and AdamW's two means, all float32."""

_LOGIT_BYTES = 12
"""A logit in float32, its softmax and its gradient."""

_LOOKED_AT = 200
"""Records whose examples are made to see how much they write."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes that a run takes at most, when its longest examples meet in one forward pass.

    Attributes:
        weights: of the frozen base.
        trained: adapters, their gradients and the optimiser's state.
        activations: what is kept for the backward pass.
        where: how the base is held.
        recomputes: whether layers are computed again in the backward pass.
    """

    weights: int
    trained: int
    activations: int
    where: Placement
    recomputes: bool

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.activations

    def told(self) -> str:
        """A line for a person; where it may not fit, with what would make it less."""
        free = available(self.where)
        listed = [("base weights", self.weights), ("trained weights", self.trained), ("activations", self.activations)]
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in listed)
        line = f"memory: at most about {gigabytes(self.total)} ({parts}); {gigabytes(free)} are free"
        if self.total <= free:
            return line
        ways = ["a larger accumulation"]
        if not self.recomputes:
            ways.append("gradient_checkpointing = true")
        if self.where.bits is None:
            ways.append('dtype = "int4"')
        return f"{line}. It may not fit: {', '.join(ways)} take less"


@dataclass(frozen=True, slots=True)
class DecoderLength:
    """Of a decoder sequence, all targets of its example side by side.

    Attributes:
        positions: all of it.
        labels: tokens of the replies.
    """

    positions: int
    labels: int


def longest_sequence(stage: Stage, data: TrainingData, tokenizer: Tokenizer, prompt: int) -> DecoderLength:
    """The most positions and labels of a sequence, as far as some of the records show.

    Args:
        stage: with the run's settings.
        data: the run's records.
        tokenizer: of the base model.
        prompt: positions of the longest prompt with one reply.
    """
    prompter, rng, reply = Prompter(tokenizer), np.random.default_rng(0), stage.config.reply_tokens
    records = [record for rows in data.sources.values() for record in rows]
    written, labels = 0, reply
    for record in records[:: len(records) // _LOOKED_AT + 1]:
        made = stage.example(record, rng)
        if isinstance(made, Example):  # candidates have one reply
            replies = sum(min(reply, len(prompter.plain(target.reply)) + 1) for target in made.targets)
            asked = sum(len(prompter.instruction(target.instruction)) for target in made.targets)
            written, labels = max(written, asked + replies), max(labels, replies)
    return DecoderLength(max(prompt, longest_prompt(stage.background(), 0, written, tokenizer)), labels)


def training_memory(stage: Stage, cache: Path, longest: DecoderLength, device: str) -> TrainingMemory:
    """Estimate a run.

    Args:
        stage: with the run's settings.
        cache: folder for base weights.
        longest: its longest decoder sequence.
        device: for the model.

    Raises:
        BaseModelError: the base's files cannot be read.
    """
    config, window = stage.config, stage.window()
    folder = find_base(window.base, cache)
    where = placement(config.dtype, device)
    shapes, size = shapes_of(folder), where.dtype.itemsize
    linear = size if where.bits is None else QUANTISED_BYTES[where.bits]
    model = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    hidden, layers, heads = (
        int(getattr(model, name)) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    inner = int(getattr(model, "intermediate_size", None) or 4 * hidden)
    # A layer of rank r on a matrix [out, in] has r (in + out) weights; seven matrices a layer, as in Llama.
    adapter = layers * config.lora.rank * (8 * hidden + 3 * (hidden + inner))
    examples = config.batch_size // config.accumulation
    compressed = 0 if stage.keeps_memories else max(1, stage.background() // window.memory_tokens)
    text = window.tokens + window.memory_tokens
    positions = examples * (longest.positions + compressed * text)
    # Inputs and outputs of norms, attention and MLP, each adapter's input after dropout; scores and their softmax.
    layer = positions * size * (14 * hidden + 6 * inner + 2 * heads * max(longest.positions, text))
    kept = layer + layers * positions * hidden * size if config.gradient_checkpointing else layers * layer
    logits = examples * longest.labels * int(model.vocab_size) * _LOGIT_BYTES
    return TrainingMemory(
        weights=int(shapes.linear * linear + shapes.other * size),
        trained=len(stage.trains()) * adapter * _TRAINED_BYTES,
        activations=kept + logits,
        where=where,
        recomputes=config.gradient_checkpointing,
    )
