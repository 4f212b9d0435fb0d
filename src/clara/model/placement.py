"""Placement of base weights: number format, quantisation, devices, attention; and the memory that they take.

Turns a user's words into transformers' arguments. Memory is estimated before loading, from the headers of the weight
files, so that nothing is killed half-way. Chooses no device itself, and knows no checkpoint.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from transformers import BitsAndBytesConfig

from clara.errors import BaseModelError, ConfigError, MemoryShortageError, MissingExtraError
from clara.model.hub import base as hub_base

Dtype = Literal["auto", "bf16", "fp16", "fp32", "int8", "int4"]
Attention = Literal["auto", "eager", "sdpa", "flash"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BITS: Mapping[str, Literal[8, 4]] = {"int8": 8, "int4": 4}
_NF4: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
SPREAD = ("balanced", "sequential")
"""Accelerate's device maps over all GPUs and then the CPU."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how base weights are held.

    Attributes:
        device: a torch device, or one of ``SPREAD``.
        dtype: of the weights, or of the arithmetic where they are quantised.
        bits: 8 or 4 for weights that bitsandbytes quantises while they are loaded; None for plain ones.
        attention: transformers' name of the attention that reads prompts; None for its own choice.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    bits: Literal[8, 4] | None = None
    attention: str | None = None

    @property
    def spread(self) -> bool:
        """The weights may lie on several devices."""
        return self.device in SPREAD

    @property
    def precision(self) -> str:
        """Format of the weights: ``bf16``, ``fp16``, ``fp32``, ``int8`` or ``int4``."""
        return f"int{self.bits}" if self.bits else next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    def options(self) -> dict[str, Any]:
        """Arguments of transformers' ``from_pretrained``; plain weights on the CPU need none but the dtype.

        Raises:
            MissingExtraError: quantised weights without bitsandbytes.
        """
        options: dict[str, Any] = {"dtype": self.dtype}
        if self.bits is not None:
            if find_spec("bitsandbytes") is None:
                raise MissingExtraError("bitsandbytes", "quantised")
            own = {"load_in_8bit": True} if self.bits == 8 else _NF4 | {"bnb_4bit_compute_dtype": self.dtype}
            options["quantization_config"] = BitsAndBytesConfig(**own)
        if self.spread:
            options["device_map"] = self.device
        elif self.bits is not None or torch.device(self.device).type != "cpu":
            # Straight to the device, a tensor at a time: no copy of the whole model in the machine's own memory.
            options["device_map"] = {"": self.device}
        return options


def placement(dtype: Dtype = "auto", device: str = "cpu", attention: Attention = "auto") -> Placement:
    """The placement that a user's words name.

    ``dtype`` ``auto`` is bf16 where the device multiplies it faster, else fp32; ``int8`` and ``int4`` quantise.
    ``attention`` of prompts: ``auto`` leaves it to transformers, which takes torch's own kernels.

    Raises:
        ConfigError: ``flash`` without the package flash-attn, without a GPU, or with fp32.
    """
    held = DTYPES[dtype] if dtype in DTYPES else natural_dtype(device)
    return Placement(device=device, dtype=held, bits=BITS.get(dtype), attention=_attention(attention, device, held))


def natural_dtype(device: str) -> torch.dtype:
    """bf16 where the device multiplies it faster than fp32, else fp32."""
    if device in SPREAD:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type == "cpu":
        return torch.bfloat16 if _gains_by_bf16(torch.cpu.get_capabilities()) else torch.float32
    return torch.bfloat16


def _gains_by_bf16(cpu: Mapping[str, object]) -> bool:
    """A processor with these capabilities (``torch.cpu.get_capabilities``) multiplies bf16 faster than fp32.

    Having an instruction is not enough: Intel's cores do the AVX-512 one at half the speed of fp32, so there it takes
    AMX, which virtual machines often hide (measured, LOG.md, 2026-11-28). Other makers' are taken at their word.
    """
    intel = str(cpu.get("cpu_name", "")).startswith("Intel")
    return bool(cpu.get("amx_bf16")) or (bool(cpu.get("avx512_bf16")) and not intel)


def _attention(attention: Attention, device: str, dtype: torch.dtype) -> str | None:
    if attention != "flash":
        return None if attention == "auto" else attention
    gpu = device in SPREAD or torch.device(device).type == "cuda"
    if not gpu or find_spec("flash_attn") is None or dtype == torch.float32:
        missing = "a CUDA device" if not gpu else "the package flash-attn" if dtype != torch.float32 else "bf16 or fp16"
        raise ConfigError(
            f"attention flash needs {missing}; leave it at auto: torch's own kernels include a flash attention"
        )
    return "flash_attention_2"


_BATCH_TOKENS = 4096
"""A batch of bulk compression, or a long prompt."""

QUANTISED_BYTES = {8: 1.0 + 4 / 4096, 4: 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes a weight in bitsandbytes: 8 bits with a float32 scale a row; 4 bits with an 8-bit scale for 64 weights and a
float32 one for 256 of those."""


_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes a model takes on its device.

    ``adapters`` are LoRA weights of all roles, ``merged`` copies of a small model's base weights with a role's adapter
    in them, ``working`` keys, values and activations of ``_BATCH_TOKENS`` tokens.
    """

    weights: int
    adapters: int
    merged: int
    working: int

    @classmethod
    def of(cls, folder: Path, where: Placement, *, adapters: int, merged: int) -> Estimate:
        """Estimate a model on a base model's folder, with so many LoRA parameters in all and merged copies.

        Raises:
            BaseModelError: the folder's weights or configuration cannot be read.
        """
        shapes, size = shapes_of(folder), where.dtype.itemsize
        linear = size if where.bits is None else QUANTISED_BYTES[where.bits]
        weights = int(shapes.linear * linear + shapes.other * size)
        return cls(weights, adapters * size, merged * shapes.total * size, _working(folder, size))

    def require(self, where: Placement, name: str) -> None:
        """Refuse a model that does not fit (MemoryShortageError: less is free than needed)."""
        free = available(where)
        if self.total <= free:
            return
        ways = ["a smaller base model"]
        if where.bits != 4:
            ways.insert(0, "--dtype int4" if where.bits == 8 else "--dtype int8 or int4")
        if where.dtype == torch.float32 and where.bits is None:
            ways.insert(0, "--dtype bf16")
        if torch.cuda.device_count() > 1 and not where.spread:
            ways.insert(0, "--device balanced (all GPUs)")
        raise MemoryShortageError(
            f"{name} needs about {self}, on {where.device} {gigabytes(free)} are free; try {', '.join(ways)}, or "
            "load it all the same with --no-memory-check (CLARA_MEMORY_CHECK=0)"
        )

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.adapters + self.merged + self.working

    def __str__(self) -> str:
        parts = [("base weights", self.weights), ("adapters", self.adapters)]
        parts += [("merged copies", self.merged), ("working memory", self.working)]
        listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts if size)
        return f"{gigabytes(self.total)} ({listed})"


@dataclass(frozen=True, slots=True)
class _Shapes:
    """Parameters of the layers' matrix products, which quantisation takes; and of embeddings, LM head, norms."""

    linear: int
    other: int

    @property
    def total(self) -> int:
        """Parameters in all."""
        return self.linear + self.other


def available(where: Placement) -> int:
    """Bytes free for weights where they will lie."""
    if where.spread:
        gpus = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        return sum(gpus) + _free_memory()
    device = torch.device(where.device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _free_memory()


def _free_memory(root: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of main memory that this process may still take: the machine's, or less where a container limits it.

    ``root``: mount of the control groups; ``membership``: file with the process's.
    """
    return min([int(psutil.virtual_memory().available), *_limits(root, membership)])


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 50_000_000 else f"{count / 1e6:.1f} MB"


def _limits(root: Path, membership: Path) -> Iterable[int]:
    """Bytes left below each limit of this process's control groups."""
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
    """Free bytes below the limits of a group and its parents. Cached files give way when memory is short."""
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


def shapes_of(folder: Path) -> _Shapes:
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
    return _Shapes(linear, other)


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
    """Keys and values of all layers, and one layer's activations, for ``_BATCH_TOKENS`` tokens."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = (name if name in config or other not in config else other for name, other in _SIZES)
        hidden, layers, heads = (int(config[name]) for name in names)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{folder / 'config.json'} does not say the model's size: {error}") from None
    groups = int(config.get("num_key_value_heads") or heads)
    head = int(config.get("head_dim") or hidden // heads)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    # Gate, up and their product; input, norm, query, mixed values, residual in float32 (twice the bytes).
    activations = 3 * inner + 6 * hidden + 2 * heads * head
    return _BATCH_TOKENS * size * (2 * layers * groups * head + activations)
