"""The backbone: one frozen causal LM with its tokenizer, from a folder in Hugging Face format.

Also reads any files of weights and JSON, checked before a value is used. Knows nothing of adapters or memories.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
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

from clara.config import Settings, check
from clara.errors import BaseModelError, CheckpointError, ConfigError
from clara.model.hub import base as hub_base
from clara.model.placement import Placement

Tokenizer: TypeAlias = PreTrainedTokenizerBase

_ENCODING = Lock()


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A loaded base model, frozen, in evaluation mode, with its ``hub.base.identity``.

    ``name`` is the user's for it; written into checkpoints so that they find it again.
    """

    name: str
    identity: str
    model: PreTrainedModel
    tokenizer: Tokenizer

    def check_trained_on(self, folder: Path, name: str, identity: str) -> None:
        """Refuse what was trained on another base model, given that one's name and identity (``CheckpointError``)."""
        if self.identity != identity:
            raise CheckpointError(
                f"{folder} was trained on {name} ({identity}), the base model given is {self.name} ({self.identity}); "
                "use it with its own base model"
            )


def load_base(
    name: str,
    cache: Path,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    bits: Literal[8, 4] | None = None,
    progress: hub_base.Progress | None = None,
) -> BaseModel:
    """Load base weights by name (``hub.base.find_base``); other arguments as in ``Placement``.

    Raises:
        BaseModelError: the weights cannot be found or read.
        MissingExtraError: quantised weights without bitsandbytes.
    """
    folder = hub_base.find_base(name, cache, progress=progress)
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
    """A causal LM on the CPU whose files hold its weights by its own names; None where others have to be converted.

    The rest of ``from_pretrained`` (conversions, devices, quantisation) takes two seconds.
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
    if not _fill(tensors, files):
        return None
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def load_tokenizer(name: str, cache: Path, *, progress: hub_base.Progress | None = None) -> Tokenizer:
    """The tokenizer of a base model alone; arguments and errors as ``load_base``."""
    return _tokenizer(hub_base.find_base(name, cache, progress=progress))


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
    """A text, or several, as tokens; no special token is added.

    ``special``: special tokens written in it are special, as in a chat template's own text; ``wanted``: ``return_*`` of
    transformers' tokenizers.
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
    """Character span of each token of ``text``, tokenised as by ``plain_ids``."""
    spans: Sequence[tuple[int, int]] = encoded(tokenizer, text, return_offsets_mapping=True).offset_mapping
    return spans


ADAPTER = "adapter_model.safetensors"
"""PEFT's file of an adapter's tensors."""

_PART = 2**25  # bytes of a file that are read before it is opened anew


def checked_tensors(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a file, which must be exactly those of the names and shapes expected, and finite.

    Raises:
        CheckpointError: they are not.
    """
    tensors = read_tensors(path)
    check_names(tensors.keys(), expected.keys(), str(path))
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}")
    check_finite(tensors, str(path))
    return tensors


def check_names(got: Set[str], expected: Set[str], source: str, *, kind: str = "tensor") -> None:
    """Refuse other names than those expected (``CheckpointError``)."""
    missing, unknown = sorted(expected - got), sorted(got - expected)
    if missing:
        raise CheckpointError(f"{source} misses {len(missing)} {kind}(s), the first is {missing[0]}")
    if unknown:
        raise CheckpointError(f"{source} has {len(unknown)} unknown {kind}(s), the first is {unknown[0]}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; ``CheckpointError`` if it is missing or damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"the checkpoint has no {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return tensors


def _fill(wanted: Mapping[str, Tensor], files: Sequence[Path]) -> bool:
    """Copy the tensors of files into those of the same names, one at a time, in the dtypes that are there.

    False, with nothing copied, where the files do not hold exactly those names, in those shapes. Raises OSError or
    SafetensorError for a missing or damaged file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    place_of: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            own = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        shapes |= own
        place_of |= dict.fromkeys(own, path)
    if shapes != {name: tuple(tensor.shape) for name, tensor in wanted.items()}:
        return False
    with torch.no_grad():
        for path, names in _parts(place_of, wanted):
            # Opened anew for each part: a file that stays open keeps all that was read of it in memory, a second copy.
            with safe_open(path, framework="pt") as file:
                for name in names:
                    wanted[name].copy_(file.get_tensor(name))
    return True


def _parts(place_of: Mapping[str, Path], tensors: Mapping[str, Tensor]) -> list[tuple[Path, list[str]]]:
    """Names of tensors by their files, in parts of ``_PART`` bytes or one tensor."""
    parts: list[tuple[Path, list[str]]] = []
    held = 0
    for name, path in place_of.items():
        held += tensors[name].nbytes
        if not parts or parts[-1][0] != path or held > _PART:
            parts.append((path, []))
            held = tensors[name].nbytes
        parts[-1][1].append(name)
    return parts


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse values that are not finite; ``CheckpointError`` names the tensor."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: {name} has values that are not finite")


def read_object(path: Path, *, missing: str) -> dict[str, Any]:
    """The object in a JSON file; ``missing`` is the message where there is none.

    Raises:
        CheckpointError: it is missing, no plain file, cannot be read, or holds something else.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no file")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(missing) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold an object, got {type(values).__name__}")
    return values


_Settings = TypeVar("_Settings", bound=Settings)


def read_settings(path: Path, kind: type[_Settings], *, version: int, missing: str) -> _Settings:
    """Settings in a JSON file of a format version that this release reads; ``missing`` as in ``read_object``.

    Raises:
        CheckpointError: as ``read_object``; another version; a key that is unknown, missing or wrong.
    """
    values = read_object(path, missing=missing)
    if values.get("format_version") != version:
        raise CheckpointError(
            f"{path} has format version {values.get('format_version')!r}, this release reads {version}; "
            "use the release that wrote it, or a newer one"
        )
    try:
        return check(kind, values, source=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of numbers as one tensor, padded on the right: int64 [rows, longest row]."""
    out = torch.full((len(rows), max(map(len, rows), default=0)), value)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return out


def padded_texts(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Texts padded on the right: ids int64 [rows, S], and bool [rows, S], true on text."""
    return padded(rows, 0), padded([[1] * len(row) for row in rows], 0).bool()
