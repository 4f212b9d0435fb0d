"""Which backbones train rightly; the others are refused by name, before their weights are loaded.

Training lays targets side by side and pads texts: who sees whom is a mask's matter, and where a token stands is said by
position ids. A layer that reads its neighbours whatever the mask says (convolution, state space), a model that takes no
position ids, and a window that generation keeps and our masks do not, would train something else than what answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from clara.errors import BaseModelError, ConfigError
from clara.model.backbone import Tokenizer
from clara.model.hub import base as hub_base
from clara.model.prompting import Prompter

_MASKED = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Layers, as transformers names them, that see what a mask allows."""


def check_backbone(base: str, cache: Path, longest: int) -> None:
    """Refuse a base model that would train wrongly.

    Args:
        base: its name, folder or hub id.
        cache: folder for base weights.
        longest: positions of the longest sequence of the run.

    Raises:
        ConfigError: names every fault.
        BaseModelError: its configuration cannot be read.
    """
    folder = hub_base.find_base(base, cache)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"the base model in {folder} cannot be read: {error}") from error
    faults = list(_faults(config, longest))
    if faults:
        raise ConfigError(f"base model {base} ({config.model_type}) cannot be trained: " + "; ".join(faults))


def longest_prompt(background: int, question: int, reply: int, tokenizer: Tokenizer) -> int:
    """Positions of a prompt with its reply, at most.

    Args:
        background: positions of the passages, be they memory tokens or text.
        question: tokens of the longest question.
        reply: tokens of the longest reply.
        tokenizer: of the base model; its chat template stands around them.
    """
    prompter = Prompter(tokenizer)
    around = len(prompter.background([1]).ids) + len(prompter.question("?"))
    return background + around + question + reply


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
    """How far back the shortest attention of a model sees; None for all the way."""
    layers = set(getattr(config, "layer_types", None) or ())
    slides = "sliding_attention" in layers or (not layers and getattr(config, "use_sliding_window", True))
    found = [getattr(config, "sliding_window", None)] if slides else []
    found += [getattr(config, "attention_chunk_size", None)] if "chunked_attention" in layers else []
    return min((int(one) for one in found if one), default=None)
