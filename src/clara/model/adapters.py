"""The roles as named LoRA adapters on one backbone, and the only place where the active one changes.

PEFT's names for layers and files are known here and in ``checkpoint``, nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from threading import RLock
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from clara.config import LoraSettings
from clara.model.attention import speed_up

Role = Literal["compressor", "query_reasoner", "generator", "text_reader"]
AdapterName = Role | Literal["teacher"]
"""A role, or the frozen reader that a run is taught by."""
ROLES: tuple[Role, ...] = ("compressor", "query_reasoner", "generator", "text_reader")
MEMORY_ROLES: tuple[Role, ...] = ("compressor", "query_reasoner")
"""Roles that decide what a memory is, of a passage or a question."""

MERGE_LIMIT = 500_000_000
"""Parameters up to which ``RoleWeights`` keeps merged copies. Above it LoRA's extra matrix products are under 4 % of
the layer's at rank 16, and a second copy of the weights costs more than they do."""


def lora_config(settings: LoraSettings) -> LoraConfig:
    """PEFT's configuration of an adapter on every linear layer but the LM head."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


class Adapters:
    """The adapters of one backbone.

    The query reasoner may be absent; it then shares the compressor's weights, which is where it starts from
    (clara.md section 1). So may the text reader; passages' text is then read by the backbone alone.
    """

    def __init__(self, peft_model: PeftModel) -> None:
        self.peft_model = peft_model
        self._layers = [module for module in peft_model.modules() if isinstance(module, LoraLayer)]
        for layer in self._layers:
            # Under autocast the casts happen inside the matrix products; PEFT's own copy of every input to fp32
            # would double the element-wise work of a training step.
            layer.cast_input_dtype_enabled = False
        self._activate(None)

    @classmethod
    def fresh(
        cls,
        model: PreTrainedModel,
        settings: LoraSettings,
        *,
        dtype: torch.dtype = torch.float32,
        roles: Sequence[Role] = ("compressor", "generator"),
    ) -> Adapters:
        """New adapters for ``roles``, at least one, with PEFT's initial values (B = 0: no effect yet)."""
        config = lora_config(settings)
        peft_model = get_peft_model(model, config, adapter_name=roles[0], autocast_adapter_dtype=False)
        for role in roles[1:]:
            peft_model.add_adapter(role, copy.deepcopy(config), autocast_adapter_dtype=False)
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(dtype)
        return cls(peft_model)

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles with weights of their own."""
        return tuple(role for role in ROLES if role in self.peft_model.peft_config)

    def weights_of(self, role: Role) -> Role:
        """The role whose weights ``role`` uses."""
        return "compressor" if role == "query_reasoner" and role not in self.peft_model.peft_config else role

    def split_query_reasoner(self) -> None:
        """Give the query reasoner weights of its own, a copy of the compressor's; nothing happens if it has some."""
        if "query_reasoner" in self.roles:
            return
        self.peft_model.add_adapter("query_reasoner", copy.deepcopy(self.peft_model.peft_config["compressor"]))
        parameters = dict(self.peft_model.named_parameters())
        for name, parameter in parameters.items():
            if ".query_reasoner." in name:
                parameter.data = parameters[name.replace(".query_reasoner.", ".compressor.")].detach().clone()
        for layer in self._layers:
            # New layers are made in training mode, whatever mode the model is in.
            layer.lora_dropout["query_reasoner"].train(layer.lora_dropout["compressor"].training)
        self._activate(None)

    def reset_query_reasoner(self, *, seed: int | None) -> None:
        """Start the query reasoner anew, in weights of its own.

        Args:
            seed: of PEFT's initial values (A random, B zero: no effect yet); None for a copy of the compressor's. The
                global generator is left as it was.
        """
        if "query_reasoner" in self.roles:
            self.peft_model.delete_adapter("query_reasoner")
        self.split_query_reasoner()
        if seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for layer in self._layers:
                    layer.reset_lora_parameters("query_reasoner", init_lora_weights=True)
            self._activate(None)

    def add_frozen(self, name: AdapterName, settings: LoraSettings, *, dtype: torch.dtype = torch.float32) -> None:
        """Add an adapter that is not trained; it has no effect until it is given values."""
        config = lora_config(settings.model_copy(update={"dropout": 0.0}))
        self.peft_model.add_adapter(name, config, autocast_adapter_dtype=False)
        for parameter_name, parameter in self.peft_model.named_parameters():
            if f".{name}." in parameter_name:
                parameter.data = parameter.data.to(dtype)
                parameter.requires_grad = False
        self._activate(None)

    @contextmanager
    def use(self, role: AdapterName | None) -> Iterator[None]:
        """Run the backbone as ``role`` (None: without an adapter); afterwards as before."""
        before = self._active
        self._activate(self.weights_of(role) if role in ROLES else role)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, role: AdapterName | None) -> None:
        # Not PEFT's set_adapter: that also switches requires_grad, and training needs the gradients of two adapters
        # in one backward pass.
        self._active = role
        for layer in self._layers:
            layer._disable_adapters = role is None
            layer._active_adapter = [role or "compressor"]

    def parameters_of(self, role: Role) -> list[nn.Parameter]:
        """The LoRA parameters of a role."""
        return [p for name, p in self.peft_model.named_parameters() if f".{self.weights_of(role)}." in name]

    def bare(self) -> PreTrainedModel:
        """The causal LM with adapter layers in it, without PEFT's wrapper."""
        return self.peft_model.get_base_model()

    def merged(self, role: Role) -> PreTrainedModel:
        """The causal LM with the role's adapter added into its weights, in evaluation mode.

        What has no adapter (embeddings, norms, LM head) is shared with the backbone, not copied.
        """
        owner = self.weights_of(role)
        bare = self.bare()
        # Whatever deepcopy finds here it takes instead of copying.
        kept: dict[int, object] = {id(tensor): tensor for tensor in chain(bare.parameters(), bare.buffers())}
        kept |= {id(layer): _merged_layer(layer, owner) for layer in self._layers}
        plain: PreTrainedModel = copy.deepcopy(bare, kept)
        return plain.eval()


def _merged_layer(layer: LoraLayer, adapter: str) -> nn.Module:
    """The linear layer under a LoRA layer with the adapter added into its weight."""
    base = layer.get_base_layer()
    merged = copy.copy(base)
    merged._parameters = dict(base._parameters)  # a shallow copy would share the dictionary, and with it the weight
    merged.weight = nn.Parameter(base.weight.data + layer.get_delta_weight(adapter), requires_grad=False)
    return merged


class RoleWeights:
    """Gives inference a causal LM that acts as a role: a merged copy where that is cheap, else a switched backbone."""

    def __init__(self, adapters: Adapters, *, merge: bool = True, attention: str | None = None) -> None:
        """Wrap adapters.

        Args:
            adapters: of the backbone.
            merge: whether there is memory for merged copies.
            attention: transformers' name of the attention for whoever reads prompts; compression keeps its own, which
                takes the masks of memory tokens.
        """
        self._adapters = adapters
        self._turn = RLock()
        self._merged: dict[Role, PreTrainedModel] = {}
        self._attention = attention
        model = adapters.bare()
        base = sum(p.numel() for p in model.parameters())
        # Quantised weights cannot take an adapter in without being unpacked, spread ones not be copied.
        plain = not getattr(model, "is_quantized", False) and len(getattr(model, "hf_device_map", {})) <= 1
        self._merge = merge and plain and base <= MERGE_LIMIT
        self._compression_attention: str = model.config._attn_implementation

    @contextmanager
    def acting_as(self, role: Role | None) -> Iterator[PreTrainedModel]:
        """The causal LM as ``role``; None is the backbone alone.

        One thread at a time has the backbone; others wait until its block ends. A block therefore holds a whole
        computation and no ``yield`` to a caller.
        """
        if role is None or not self._merge:
            with self._turn, self._adapters.use(role):
                yield self._attending(self._adapters.bare(), role)
            return
        yield self._copy(self._adapters.weights_of(role))

    def _copy(self, owner: Role) -> PreTrainedModel:
        """The merged copy of a role, made when it is first asked for."""
        with self._turn:
            if owner not in self._merged:
                made = self._adapters.merged(owner)
                if owner in MEMORY_ROLES:
                    speed_up(made)
                else:
                    self._attending(made, owner)
                self._merged[owner] = made
            return self._merged[owner]

    def _attending(self, model: PreTrainedModel, role: Role | None) -> PreTrainedModel:
        """The model with the attention that the role is to use."""
        if self._attention is not None:
            reads = role not in MEMORY_ROLES
            model.set_attn_implementation(self._attention if reads else self._compression_attention)
        return model

    def forget(self) -> None:
        """Drop merged copies; call after the adapters changed."""
        self._merged.clear()
