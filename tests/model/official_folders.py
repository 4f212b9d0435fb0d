"""A tiny checkpoint in Apple's format, made here, and where the reference outputs of the official code lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from clara.model.losses import cosine_matrix

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens"
CASE = GOLDENS / "tiny_llama_r16"
needs_goldens = pytest.mark.skipif(
    not CASE.is_dir(), reason="the reference outputs (../shared/goldens beside the repository) are not here"
)

WINDOW, RATE, RANK = 32, 8, 2
STAGES = {
    "stage1": ("encoder_adapter", "decoder_adapter"),
    "stage2": ("encoder_adapter", "decoder_adapter", "query_reasoner_adapter"),
}


def candidate_scores(queries: Tensor, memories: Tensor) -> Tensor:
    """Cosines of questions [B, N, H] with candidates of their own [B, D, N, H]: [B, D]."""
    return torch.cat([cosine_matrix(query[None], own) for query, own in zip(queries, memories, strict=True)])


@dataclass
class Content:
    """What the three files of a folder hold; tests spoil it before it is written."""

    config: dict[str, Any]
    adapters: dict[str, dict[str, Tensor]]
    layers: dict[str, Tensor]

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        torch.save(self.adapters, folder / "adapters.pth")
        torch.save(self.layers, folder / "decoder_first_last_layers.pth")
        return folder


def config(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
    return {
        "model_type": "CLaRa",
        "decoder_model_name": "/of/the/training/machine",
        "doc_max_length": WINDOW,
        "compr_rate": RATE,
        "different_mem_tokens": True,
        "sep": True,
        "lora": True,
        "lora_r": RANK,
        "generation_top_k": 2,
        "training_stage": "stage2",
        "optimize_mem_tokens": True,
        "kbtc_training": False,
        "pure_inference": False,
    } | changes


def content(base: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Content:  # noqa: ANN401
    """A checkpoint on a base model, its values drawn from a fixed seed."""
    values = config(**changes)
    model = AutoModelForCausalLM.from_pretrained(base)
    size = len(AutoTokenizer.from_pretrained(base))
    draw = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=draw) * 0.3).to(dtype)

    targets = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    adapters = {}
    for adapter in STAGES["stage2" if values["training_stage"] == "stage2" else "stage1"]:
        tensors = {}
        for name, module in targets.items():
            tensors[f"{name}.lora_A.weight"] = noise(values["lora_r"], module.in_features)
            tensors[f"{name}.lora_B.weight"] = noise(module.out_features, values["lora_r"])
        adapters[adapter] = tensors
    count = (values["doc_max_length"] // values["compr_rate"]) if values["different_mem_tokens"] else 1
    extra = count + 3

    def matrix(weight: Tensor) -> Tensor:
        return torch.cat([weight[:size].detach().to(dtype), noise(extra, weight.shape[1])])

    layers = {"model.embed_tokens.weight": matrix(model.get_input_embeddings().weight)}
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        layers["lm_head.weight"] = matrix(model.get_output_embeddings().weight)
    return Content(values, adapters, layers)


Spoil = Callable[[Content], object]
