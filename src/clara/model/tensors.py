"""Files of tensors, checked before a value is used. Knows safetensors, not what the tensors are for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clara.errors import CheckpointError

ADAPTER = "adapter_model.safetensors"
"""The file of a folder in PEFT's format that holds the adapter's tensors."""


def checked_tensors(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a file, which must be exactly those of the names and shapes expected, and finite.

    Raises:
        CheckpointError: they are not.
    """
    tensors = read_tensors(path)
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise CheckpointError(f"{path} misses {len(missing)} tensor(s), the first is {missing[0]}")
    if unknown:
        raise CheckpointError(f"{path} has {len(unknown)} unknown tensor(s), the first is {unknown[0]}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"{path}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}")
    check_finite(tensors, str(path))
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"the checkpoint has no {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return tensors


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse values that are not finite.

    Raises:
        CheckpointError: names the tensor.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: {name} has values that are not finite")
