"""How much memory a model will take, and how much there is: asked before loading, so that nothing is killed half-way.

Reads the headers of the weight files, no weights.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from clara.errors import BaseModelError, MemoryShortageError
from clara.model.hub import base as hub_base
from clara.model.placement import Placement

BATCH_TOKENS = 4096
"""Tokens for which keys, values and activations are counted: a batch of bulk compression, or a long prompt."""

QUANTISED_BYTES = {8: 1.0 + 4 / 4096, 4: 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes a weight in bitsandbytes: 8 bits with a float32 scale a row; 4 bits with an 8-bit scale for 64 weights and a
float32 one for 256 of those."""


_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes a model takes on its device.

    Attributes:
        weights: the base weights.
        adapters: LoRA weights of all roles.
        merged: copies of the base weights with a role's adapter in them, which small models are given.
        working: keys, values and activations of ``BATCH_TOKENS`` tokens.
    """

    weights: int
    adapters: int
    merged: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapters + self.merged + self.working

    def __str__(self) -> str:
        parts = [("base weights", self.weights), ("adapters", self.adapters)]
        parts += [("merged copies", self.merged), ("working memory", self.working)]
        listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts if size)
        return f"{gigabytes(self.total)} ({listed})"


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sizes of a base model's tensors, by what is done with them.

    Attributes:
        linear: weights of matrix products inside the layers, which quantisation takes.
        other: the rest: embeddings, LM head, norms.
    """

    linear: int
    other: int

    @property
    def total(self) -> int:
        """Parameters in all."""
        return self.linear + self.other


def estimate(folder: Path, placement: Placement, *, adapters: int, merged: int) -> Estimate:
    """What a model on a base model's folder takes.

    Args:
        folder: of the base model.
        placement: how its weights are held.
        adapters: LoRA parameters of all roles together.
        merged: merged copies of the weights that inference will make.

    Raises:
        BaseModelError: the folder's weights or configuration cannot be read.
    """
    shapes, size = shapes_of(folder), placement.dtype.itemsize
    linear = size if placement.bits is None else QUANTISED_BYTES[placement.bits]
    weights = int(shapes.linear * linear + shapes.other * size)
    return Estimate(weights, adapters * size, merged * shapes.total * size, _working(folder, size))


def require(needed: Estimate, placement: Placement, name: str) -> None:
    """Refuse what does not fit.

    Raises:
        MemoryShortageError: less is free than needed.
    """
    free = available(placement)
    if needed.total <= free:
        return
    ways = ["a smaller base model"]
    if placement.bits != 4:
        ways.insert(0, "--dtype int4" if placement.bits == 8 else "--dtype int8 or int4")
    if placement.dtype == torch.float32 and placement.bits is None:
        ways.insert(0, "--dtype bf16")
    if torch.cuda.device_count() > 1 and not placement.spread:
        ways.insert(0, "--device balanced (all GPUs)")
    raise MemoryShortageError(
        f"{name} needs about {needed}, on {placement.device} {gigabytes(free)} are free; try {', '.join(ways)}, or "
        "load it all the same with --no-memory-check (CLARA_MEMORY_CHECK=0)"
    )


def available(placement: Placement) -> int:
    """Bytes free for weights where they will lie."""
    if placement.spread:
        gpus = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        return sum(gpus) + free_memory()
    device = torch.device(placement.device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def free_memory(root: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of main memory that this process may still take: the machine's, or less where a container limits it.

    Args:
        root: where control groups are mounted.
        membership: which of them the process is in.
    """
    return min([int(psutil.virtual_memory().available), *_limits(root, membership)])


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 50_000_000 else f"{count / 1e6:.1f} MB"


def _limits(root: Path, membership: Path) -> Iterable[int]:
    """What is left below each limit that holds for this process; nothing where there are no control groups."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(root / "memory", path, *names)


def _left(root: Path, path: str, limit: str, usage: str, cached: str) -> Iterable[int]:
    """Free bytes below the limits of a group and of those it is in. Cached files give way when memory is short."""
    folder = root / path.lstrip("/")
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            return
        try:
            most = (place / limit).read_text(encoding="utf-8").strip()
            used = int((place / usage).read_text(encoding="utf-8"))
            stat = dict(line.split() for line in (place / "memory.stat").read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            yield max(0, int(most) - used + int(stat.get(cached, 0)))


def shapes_of(folder: Path) -> Shapes:
    """Sizes of a base model's tensors, from the headers of its files.

    Raises:
        BaseModelError: a file's header cannot be read, or there is no file of weights.
    """
    linear = other = 0
    files = hub_base.weight_files(folder)
    # Pickles have no header; half precision is what large ones are saved in.
    other += sum(path.stat().st_size // 2 for path in files if path.suffix == ".bin")
    for path in files:
        for name, entry in _header(path).items() if path.suffix != ".bin" else ():
            count = math.prod(entry["shape"])
            if ".layers." in f".{name}" and len(entry["shape"]) == 2:
                linear += count
            else:
                other += count
    if not linear + other:
        raise BaseModelError(f"{folder} has no weights (*.safetensors)")
    return Shapes(linear, other)


def _header(path: Path) -> dict[str, dict[str, list[int]]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
    except (OSError, ValueError, struct.error) as error:
        raise BaseModelError(f"{path} is no whole safetensors file: {error}") from None
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


_SIZES = (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"))
"""Width, layers and heads, as most configurations name them and as GPT-2's do."""


def _working(folder: Path, size: int) -> int:
    """Keys and values of all layers, and one layer's activations, for ``BATCH_TOKENS`` tokens."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        hidden, layers, heads = (_number(config, *names) for names in _SIZES)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{folder / 'config.json'} does not say the model's size: {error}") from None
    groups = int(config.get("num_key_value_heads") or heads)
    head = int(config.get("head_dim") or hidden // heads)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    # Gate, up and their product; input, norm, query, mixed values, residual in float32 (twice the bytes).
    activations = 3 * inner + 6 * hidden + 2 * heads * head
    return BATCH_TOKENS * size * (2 * layers * groups * head + activations)


def _number(config: Mapping[str, Any], name: str, other: str) -> int:
    """A number that has one of two names."""
    return int(config[name] if name in config else config.get(other) or config[name])
