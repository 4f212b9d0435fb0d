"""Checks of a base model before its weights are loaded: whether it trains correctly, and in how much memory.

Training lays targets side by side and pads texts, under masks and position ids. Layers that read their neighbours
whatever the mask says (convolution, state space), models without position ids, and sliding windows, which our masks do
not keep, would train something else than what generates. Memory of inference is ``model.placement``'s matter.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from clara.errors import BaseModelError, ConfigError
from clara.model.backbone import load_tokenizer
from clara.model.hub.base import find_base
from clara.model.placement import QUANTISED_BYTES, Placement, available, gigabytes, placement, shapes_of
from clara.model.prompting import Prompter
from clara.train.data import TrainingData
from clara.train.examples import Example
from clara.train.stages.base import Stage

_MASKED = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Transformers' names of layers that obey a mask."""

# fmt: off
_TRIED = frozenset([
    "apertus", "arcee", "bitnet", "codegen", "cohere", "cohere2", "diffllama", "ernie4_5", "exaone4",
    "falcon", "gemma", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj",
    "granite", "granitemoe", "helium", "hunyuan_v1_dense", "llama", "ministral", "mistral", "nemotron", "olmo",
    "olmo2", "olmo3", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "seed_oss", "smollm3",
    "stablelm", "starcoder2",
])
# fmt: on
"""Families whose loss in training was compared with that of transformers' own forward pass, by ``model_type``."""

_TRAINED_BYTES = 16
"""A trained weight, its gradient and AdamW's two moments, all float32."""

_LOGIT_BYTES = 12
"""A logit in float32, its softmax and its gradient."""

_LOOKED_AT = 200
"""Records sampled for the length of their targets."""


def check_backbone(stage: Stage, longest_question: int, cache: Path) -> int:
    """Refuse a base model that would train wrongly; else the positions of the run's longest prompt with its reply.

    Raises:
        ConfigError: names every fault.
        BaseModelError: its configuration cannot be read.
    """
    window = stage.window()
    prompter = Prompter(load_tokenizer(window.base, cache))
    prompt = _around(prompter) + stage.background() + longest_question + stage.config.reply_tokens
    folder = find_base(window.base, cache)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"the base model in {folder} cannot be read: {error}") from error
    faults = list(_faults(config, max(prompt, window.tokens + window.memory_tokens)))
    if not faults and config.get_text_config().model_type not in _TRIED:
        faults = [
            f"its loss was never compared with transformers' own; families that were: {', '.join(sorted(_TRIED))}"
        ]
    if faults:
        raise ConfigError(f"base model {window.base} ({config.model_type}) cannot be trained: " + "; ".join(faults))
    return prompt


def _around(prompter: Prompter) -> int:
    """Positions of the chat template: a prompt without passages, question and reply."""
    return len(prompter.background([1]).ids) + len(prompter.question("?"))


def _faults(config: PreTrainedConfig, longest: int) -> Iterator[str]:
    text = config.get_text_config()
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) or MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    if kind is None:
        yield "it is no causal language model of transformers"
        return
    others = sorted(set(getattr(text, "layer_types", None) or ()) - _MASKED)
    if others or getattr(kind, "_is_stateful", False):
        layers = ", ".join(others) or "recurrent"
        yield f"its layers ({layers}) read neighbouring tokens whatever the mask says, padding and other targets too"
    if "position_ids" not in inspect.signature(kind.forward).parameters or getattr(text, "alibi", False):
        yield "it takes no position ids, which memory tokens and targets side by side need"
    if getattr(text, "attn_logit_softcapping", None):
        yield "it caps the scores of its attention, which training does not"
    reach = _reach(text)
    if reach is not None and reach < longest:
        yield (
            f"its attention reaches back {reach} tokens, the longest sequence of this run has {longest}; lower "
            "documents, top_k or window_tokens, or take a base model without a sliding window"
        )
    context = getattr(text, "max_position_embeddings", None)
    if context is not None and context < longest:
        yield (
            f"it reads {context} tokens at most, the longest sequence of this run has {longest}; lower documents, "
            "top_k or window_tokens"
        )


def _reach(config: PreTrainedConfig) -> int | None:
    """Tokens that the shortest attention window of a model spans; None for all."""
    layers = set(getattr(config, "layer_types", None) or ())
    slides = "sliding_attention" in layers or (not layers and getattr(config, "use_sliding_window", True))
    windows = [getattr(config, "sliding_window", None)] if slides else []
    windows += [getattr(config, "window_size", None)] if "local" in getattr(config, "attention_layers", ()) else []
    windows += [getattr(config, "attention_chunk_size", None)] if "chunked_attention" in layers else []
    return min((int(window) for window in windows if window), default=None)


@dataclass(frozen=True, slots=True)
class _TrainingMemory:
    """Peak bytes of a run, when its longest examples meet in one forward pass.

    ``trained`` includes gradients and the optimiser's state; ``activations`` are kept for the backward pass.
    """

    weights: int
    trained: int
    activations: int
    where: Placement
    recomputes: bool

    def summary(self) -> str:
        """A line for a person, with what would take less where it may not fit."""
        free, total = available(self.where), self.weights + self.trained + self.activations
        listed = [("base weights", self.weights), ("trained weights", self.trained), ("activations", self.activations)]
        parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in listed)
        line = f"memory: at most about {gigabytes(total)} ({parts}); {gigabytes(free)} are free"
        if total <= free:
            return line
        ways = ["a larger accumulation"]
        if not self.recomputes:
            ways.append("gradient_checkpointing = true")
        if self.where.bits is None:
            ways.append('dtype = "int4"')
        return f"{line}. It may not fit: {', '.join(ways)} take less"


def training_memory(stage: Stage, data: TrainingData, prompt: int, cache: Path, device: str) -> _TrainingMemory:
    """Estimate a run whose longest prompt with one reply has ``prompt`` positions.

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
    written, labels = _longest(stage, data, Prompter(load_tokenizer(window.base, cache)), prompt)
    positions = examples * (written + compressed * text)
    # Inputs and outputs of norms, attention and MLP, each adapter's input after dropout; scores and their softmax.
    layer = positions * size * (14 * hidden + 6 * inner + 2 * heads * max(written, text))
    kept = layer + layers * positions * hidden * size if config.gradient_checkpointing else layers * layer
    logits = examples * labels * int(model.vocab_size) * _LOGIT_BYTES
    return _TrainingMemory(
        weights=int(shapes.linear * linear + shapes.other * size),
        trained=len(stage.trains()) * adapter * _TRAINED_BYTES,
        activations=kept + logits,
        where=where,
        recomputes=config.gradient_checkpointing,
    )


def _longest(stage: Stage, data: TrainingData, prompter: Prompter, prompt: int) -> tuple[int, int]:
    """Most positions of a decoder sequence with all its targets, and most labels, estimated on some records."""
    rng, reply = np.random.default_rng(0), stage.config.reply_tokens
    records = [record for rows in data.sources.values() for record in rows]
    written, labels = 0, reply
    for record in records[:: len(records) // _LOOKED_AT + 1]:
        made = stage.example(record, rng)
        if isinstance(made, Example):  # candidates have one reply
            replies = sum(min(reply, len(prompter.plain(target.reply)) + 1) for target in made.targets)
            asked = sum(len(prompter.instruction(target.instruction)) for target in made.targets)
            written, labels = max(written, asked + replies), max(labels, replies)
    return max(prompt, _around(prompter) + stage.background() + written), labels
