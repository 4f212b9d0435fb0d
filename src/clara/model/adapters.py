"""The three roles as named LoRA adapters on one backbone, and the only place where the active one changes.

PEFT's names for layers and files are known here and in ``checkpoint``, nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from clara.config import LoraSettings
from clara.model.attention import speed_up

Role = Literal["compressor", "query_reasoner", "generator"]
ROLES: tuple[Role, ...] = ("compressor", "query_reasoner", "generator")

MERGE_LIMIT = 1_000_000_000
"""Parameters up to which ``RoleWeights`` keeps merged copies. Above it LoRA's extra matrix products are under 2 % of
the layer's, and a second copy of the weights costs more than they do."""


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
    (clara.md section 1).
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
    def fresh(cls, model: PreTrainedModel, settings: LoraSettings, *, dtype: torch.dtype = torch.float32) -> Adapters:
        """New compressor and generator adapters with PEFT's initial values (B = 0: no effect yet)."""
        config = lora_config(settings)
        peft_model = get_peft_model(model, config, adapter_name="compressor", autocast_adapter_dtype=False)
        peft_model.add_adapter("generator", copy.deepcopy(config), autocast_adapter_dtype=False)
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

    @contextmanager
    def use(self, role: Role | None) -> Iterator[None]:
        """Run the backbone as ``role`` (None: without an adapter); afterwards as before."""
        before = self._active
        self._activate(None if role is None else self.weights_of(role))
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, role: Role | None) -> None:
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
        """A copy of the causal LM with the role's adapter added into its weights, in evaluation mode."""
        twin = copy.deepcopy(self.peft_model)
        plain = twin.merge_and_unload(adapter_names=[self.weights_of(role)])
        return plain.eval().requires_grad_(requires_grad=False)


class RoleWeights:
    """Gives inference a causal LM that acts as a role: a merged copy where that is cheap, else a switched backbone."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._merged: dict[Role, PreTrainedModel] = {}
        base = sum(p.numel() for p in adapters.bare().parameters())
        self._merge = base <= MERGE_LIMIT

    @contextmanager
    def acting_as(self, role: Role | None) -> Iterator[PreTrainedModel]:
        """The causal LM as ``role``; None is the backbone alone."""
        if role is None or not self._merge:
            with self._adapters.use(role):
                yield self._adapters.bare()
            return
        owner = self._adapters.weights_of(role)
        if owner not in self._merged:
            self._merged[owner] = self._adapters.merged(owner)
            if owner != "generator":
                speed_up(self._merged[owner])
        yield self._merged[owner]

    def forget(self) -> None:
        """Drop merged copies; call after the adapters changed."""
        self._merged.clear()
