"""How base weights are held: number format, quantisation, devices, attention.

Turns a user's words into what transformers is handed. Chooses no device itself, and knows no checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig

from clara.errors import ConfigError, MissingExtraError

Dtype = Literal["auto", "bf16", "fp16", "fp32", "int8", "int4"]
Attention = Literal["auto", "eager", "sdpa", "flash"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BITS: Mapping[str, Literal[8, 4]] = {"int8": 8, "int4": 4}
SPREAD = ("balanced", "sequential")
"""Device names that stand for accelerate's device maps over all GPUs and then the CPU."""


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
        """Whether the weights may lie on several devices."""
        return self.device in SPREAD

    @property
    def precision(self) -> str:
        """What the weights are held in: ``bf16``, ``fp16``, ``fp32``, ``int8`` or ``int4``."""
        return f"int{self.bits}" if self.bits else next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    def options(self) -> dict[str, Any]:
        """Keyword arguments of transformers' ``from_pretrained``; plain weights on the CPU need none but the dtype.

        Raises:
            MissingExtraError: quantised weights without bitsandbytes.
        """
        chosen: dict[str, Any] = {"dtype": self.dtype}
        if self.bits is not None:
            chosen["quantization_config"] = _quantisation(self.bits, self.dtype)
        if self.spread:
            chosen["device_map"] = self.device
        elif self.bits is not None or torch.device(self.device).type != "cpu":
            # Straight to the device, a tensor at a time: no copy of the whole model in the machine's own memory.
            chosen["device_map"] = {"": self.device}
        return chosen


def placement(dtype: Dtype = "auto", device: str = "cpu", attention: Attention = "auto") -> Placement:
    """The placement that a user's words name.

    Args:
        dtype: ``auto`` is bf16 where the device multiplies it faster, else fp32; ``int8`` and ``int4`` quantise.
        device: a torch device, or one of ``SPREAD``.
        attention: of prompts; ``auto`` leaves it to transformers, which takes torch's own kernels.

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
    """Whether a processor with these capabilities (``torch.cpu.get_capabilities``) multiplies bf16 faster than fp32.

    Having an instruction is not enough: Intel's cores do the AVX-512 one at half the speed of fp32, so there it takes
    AMX, which virtual machines often hide (measured, LOG.md, 2026-11-28). Other makers' are taken at their word.
    """
    intel = str(cpu.get("cpu_name", "")).startswith("Intel")
    return bool(cpu.get("amx_bf16")) or (bool(cpu.get("avx512_bf16")) and not intel)


def _quantisation(bits: Literal[8, 4], dtype: torch.dtype) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "quantised")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


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
