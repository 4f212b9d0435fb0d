"""The roles as named LoRA adapters on one backbone, for training and for models too large to keep merged copies of.

The only file that knows PEFT: its layers, its names, its folder format.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from clara.config import LoraSettings
from clara.model.backbone import ADAPTER, check_finite, checked_tensors
from clara.model.decoder import ROLES, AdapterName, NameT, Role, check_targets, merged_copy, sharing


def _lora_config(settings: LoraSettings) -> LoraConfig:
    """PEFT's configuration of an adapter, by default on every linear layer but the LM head."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )


class Adapters:
    """The adapters of one backbone.

    Without a query reasoner the compressor's weights serve, from which it starts (clara.md section 1); without a text
    reader the backbone alone reads text.
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
        """New adapters for ``roles``, at least one, with PEFT's initial values (B = 0: no effect yet).

        Raises:
            ConfigError: ``settings.targets`` has a name that no linear layer has.
        """
        check_targets(model, settings.targets)
        config = _lora_config(settings)
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

    def weights_of(self, role: NameT) -> NameT | Literal["compressor"]:
        """The role whose weights ``role`` uses."""
        return sharing(role, self.peft_model.peft_config)

    def tensors(self, role: AdapterName) -> dict[str, Tensor]:
        """An adapter's LoRA tensors by PEFT's names."""
        return _adapter_tensors(self.peft_model, role)

    def put(self, role: Role, tensors: dict[str, Tensor]) -> None:
        """Set a role's LoRA tensors, by PEFT's names; they must be exactly those of :meth:`tensors`."""
        set_peft_model_state_dict(self.peft_model, tensors, adapter_name=role)

    def split_query_reasoner(self) -> None:
        """Give the query reasoner weights of its own, a copy of the compressor's, unless it has some."""
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
        """Start the query reasoner anew, in weights of its own: PEFT's first ones (A random, B zero: no effect yet).

        Without a seed they are a copy of the compressor's. The global generator is left as it was.
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
        config = _lora_config(settings.model_copy(update={"dropout": 0.0}))
        self.peft_model.add_adapter(name, config, autocast_adapter_dtype=False)
        for parameter_name, parameter in self.peft_model.named_parameters():
            if f".{name}." in parameter_name:
                parameter.data = parameter.data.to(dtype)
                parameter.requires_grad = False
        self._activate(None)

    @contextmanager
    def use(self, role: AdapterName | None) -> Iterator[None]:
        """Run the backbone as ``role`` (None: without an adapter); afterwards as before."""
        with self._again(self.weights_of(role) if role in ROLES else role):
            yield

    def _activate(self, role: AdapterName | None) -> None:
        # Not PEFT's set_adapter: that also switches requires_grad, and training needs the gradients of two adapters
        # in one backward pass.
        self._active = role
        for layer in self._layers:
            layer._disable_adapters = role is None
            layer._active_adapter = [role or "compressor"]

    def recompute_layers(self) -> None:
        """Checkpoint activations: the backward pass computes each layer again, as the role that ran it."""
        options = {"use_reentrant": False, "context_fn": self._as_now}
        self.bare().activation_checkpointing_enable(options)

    def _as_now(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a layer's forward pass and of its recomputation, when another role may be active."""
        return nullcontext(), self._again(self._active)

    @contextmanager
    def _again(self, role: AdapterName | None) -> Iterator[None]:
        before = self._active
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    def parameters_of(self, role: Role) -> list[nn.Parameter]:
        """The LoRA parameters of a role."""
        return [p for name, p in self.peft_model.named_parameters() if f".{self.weights_of(role)}." in name]

    def bare(self) -> PreTrainedModel:
        """The causal LM with adapter layers in it, without PEFT's wrapper."""
        return self.peft_model.get_base_model()

    def merged(self, role: AdapterName) -> PreTrainedModel:
        """The causal LM with the role's adapter added into its weights, in evaluation mode.

        Weights without an adapter (embeddings, norms, LM head) are shared with the backbone, not copied.
        """
        owner = self.weights_of(role)
        layers = {layer: (layer.get_base_layer(), layer.get_delta_weight(owner)) for layer in self._layers}
        return merged_copy(self.bare(), layers)


def save_adapter(peft_model: PeftModel, name: str, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write an adapter in PEFT's folder format; the folder may exist. ``CheckpointError``: a value is not finite."""
    folder.mkdir(parents=True, exist_ok=True)
    state = _adapter_tensors(peft_model, name)
    check_finite(state, f"adapter {name}")
    tensors = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in state.items()}
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    config: LoraConfig = peft_model.peft_config[name]
    config.inference_mode = True
    config.save_pretrained(folder)
    config.inference_mode = False


def load_adapter(peft_model: PeftModel, path: Path, role: str) -> None:
    """Load an adapter's values from a file, which must hold exactly its tensors, all finite (``CheckpointError``)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in _adapter_tensors(peft_model, role).items()}
    set_peft_model_state_dict(peft_model, checked_tensors(path, shapes), adapter_name=role)


def _adapter_tensors(peft_model: PeftModel, role: str) -> dict[str, Tensor]:
    """A role's LoRA tensors by PEFT's names."""
    state: dict[str, Tensor] = get_peft_model_state_dict(peft_model, adapter_name=role, save_embedding_layers=False)
    return state
