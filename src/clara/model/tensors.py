"""A checkpoint's files, tensors and JSON, checked before a value is used. Knows formats, not what values are for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from clara.errors import CheckpointError

ADAPTER = "adapter_model.safetensors"
"""The file of a folder in PEFT's format that holds the adapter's tensors."""

_PART = 2**25  # bytes of a file that are read before it is opened anew


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


def fill(wanted: Mapping[str, Tensor], files: Sequence[Path]) -> bool:
    """Copy the tensors of files into those of the same names, one at a time, in the dtypes that are there.

    Returns:
        False, with nothing copied, where the files do not hold exactly those names, in those shapes.

    Raises:
        OSError: a file is missing or damaged (``SafetensorError`` too).
    """
    shapes: dict[str, tuple[int, ...]] = {}
    place_of: dict[str, Path] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        shapes |= found
        place_of |= dict.fromkeys(found, path)
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
    """Refuse values that are not finite.

    Raises:
        CheckpointError: names the tensor.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: {name} has values that are not finite")


def read_object(path: Path, *, missing: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.
        missing: the message where there is none.

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


def check_version(path: Path, values: dict[str, Any], version: int) -> None:
    """Make sure that a file is of the format version that this release reads.

    Raises:
        CheckpointError: it is of another.
    """
    if values.get("format_version") != version:
        raise CheckpointError(
            f"{path} has format version {values.get('format_version')!r}, this release reads {version}; "
            "use the release that wrote it, or a newer one"
        )
