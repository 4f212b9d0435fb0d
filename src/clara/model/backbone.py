"""The backbone: one frozen causal LM with its tokenizer, from a folder in Hugging Face format.

Knows nothing of adapters or memories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal, TypeAlias

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    initialization,
)

from clara.errors import BaseModelError
from clara.model.hub import base as hub_base
from clara.model.placement import Placement
from clara.model.tensors import fill

Tokenizer: TypeAlias = PreTrainedTokenizerBase

_ENCODING = Lock()


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A loaded base model.

    Attributes:
        name: what the user called it; written into checkpoints so that they find it again.
        identity: ``hub.base.identity`` of its folder.
        model: the causal LM, frozen, in evaluation mode.
        tokenizer: its tokenizer.
    """

    name: str
    identity: str
    model: PreTrainedModel
    tokenizer: Tokenizer


def load_base(
    name: str,
    cache: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    bits: Literal[8, 4] | None = None,
    progress: hub_base.Progress | None = None,
) -> BaseModel:
    """Load base weights by name (see ``hub.base.find_base``).

    Args:
        name: of the base model.
        cache: see ``hub.base.find_base``.
        dtype: of the weights, or of the arithmetic where they are quantised.
        device: a torch device, or a device map (see ``placement``).
        bits: quantise the weights of the layers to so many bits.
        progress: told about downloads.

    Raises:
        BaseModelError: the weights cannot be found or read.
        MissingExtraError: quantised weights without bitsandbytes.
    """
    folder = hub_base.find_base(name, cache, **({"progress": progress} if progress else {}))
    options = Placement(device=str(device), dtype=dtype, bits=bits).options()
    tokenizer = _tokenizer(folder)
    try:
        model = _plain(folder, dtype) if options == {"dtype": dtype} else None
        if model is None:
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(f"the base model in {folder} cannot be loaded: {error}") from error
    model = model.eval().requires_grad_(requires_grad=False)
    for module in model.modules():
        # On some CPUs bitsandbytes packs 4-bit weights at their first use without gradients. It can do so for widths
        # that 64 divides alone, and no gradient passes packed ones: training would learn nothing after a validation.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return BaseModel(name=name, identity=hub_base.identity(folder), model=model, tokenizer=tokenizer)


def _plain(folder: Path, dtype: torch.dtype) -> PreTrainedModel | None:
    """A causal LM whose files hold its weights by its own names, on the CPU; None where others have to be converted.

    What ``from_pretrained`` does besides (conversions, devices, quantisation) takes it two seconds.
    """
    files = hub_base.weight_files(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    own = (folder / "adapter_config.json").exists() or hasattr(config, "quantization_config")
    if own or any(path.suffix != ".safetensors" for path in files):
        return None
    with initialization.no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    kept = model.state_dict().keys()
    tensors = {name: one for name, one in (*model.named_parameters(), *model.named_buffers()) if name in kept}
    if not fill(tensors, files):
        return None
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def load_tokenizer(name: str, cache: Path, *, progress: hub_base.Progress | None = None) -> Tokenizer:
    """The tokenizer of a base model alone; arguments and errors as ``load_base``."""
    return _tokenizer(hub_base.find_base(name, cache, **({"progress": progress} if progress else {})))


def _tokenizer(folder: Path) -> Tokenizer:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(f"the base model in {folder} cannot be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise BaseModelError(
            f"the tokenizer in {folder} names no end token, which answers stop at: add eos_token to its "
            "tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encoded(tokenizer: Tokenizer, text: str | Sequence[str], *, special: bool = False, **wanted: bool) -> BatchEncoding:
    """A text, or several, as tokens.

    Args:
        tokenizer: the tokenizer.
        text: what to encode; no special token is added.
        special: whether special tokens written in it are special, as in a chat template's own text.
        wanted: ``return_*`` of transformers' tokenizers.
    """
    # Whether special tokens are special is a state of the tokenizer, which threads share.
    with _ENCODING:
        return tokenizer(
            text if isinstance(text, str) else list(text),
            add_special_tokens=False,
            split_special_tokens=not special,
            return_attention_mask=False,
            **wanted,
        )


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a user's text: no special token is added, and none can be smuggled in by the text."""
    ids: list[int] = encoded(tokenizer, text).input_ids
    return ids


def token_spans(tokenizer: Tokenizer, text: str) -> Sequence[tuple[int, int]]:
    """Character span of each token of ``text``, tokenised as ``plain_ids`` does."""
    spans: Sequence[tuple[int, int]] = encoded(tokenizer, text, return_offsets_mapping=True).offset_mapping
    return spans
