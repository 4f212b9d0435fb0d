"""One backbone that acts as several roles: ``Decoder`` for training, ``RoleWeights`` for inference.

A ``Decoder``, backbone with adapters that reads prompts, is common to readers, a selector and a compressed model.
``RoleWeights`` gives merged copies of the weights, or a backbone that switches. Knows no text and no memory table:
memories are vectors in a prompt. Knows no PEFT either: a read-only checkpoint needs its adapters' tensors, not layers
that can be trained (``adapters``).
Shape letters: B batch, L prompt positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from threading import RLock
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from clara.errors import ConfigError
from clara.model.attention import Packing, attention_of, speed_up, takes_packed
from clara.model.placement import natural_dtype
from clara.model.spans import additive

if TYPE_CHECKING:
    from clara.model.adapters import Adapters


Role = Literal["compressor", "query_reasoner", "generator", "text_reader"]
AdapterName = Role | Literal["teacher"]
"""A role, or a run's frozen teacher."""
NameT = TypeVar("NameT", bound=AdapterName)
ROLES: tuple[Role, ...] = ("compressor", "query_reasoner", "generator", "text_reader")
MEMORY_ROLES: tuple[Role, ...] = ("compressor", "query_reasoner")
"""Roles that make memories."""

MERGE_LIMIT = 500_000_000
"""Most parameters of which ``RoleWeights`` keeps merged copies. Above it LoRA's extra matrix products are under 4 % of
the layer's at rank 16, and cost less than a second copy of the weights."""

_ROWS = 256
"""Rows that a layout suits best: about those of a prompt. One for a single row makes prompts a third slower."""

PEFT_PREFIX = "base_model.model."
"""Prefix of PEFT's names."""


class StoredAdapters:
    """Adapters as in a checkpoint's files, on a backbone without adapter layers; a role costs nothing until it acts."""

    def __init__(self, model: PreTrainedModel, tensors: Mapping[Role, Mapping[str, Tensor]], scale: float) -> None:
        """Hold adapters of a backbone; ``scale`` is LoRA's alpha / r.

        Tensors have PEFT's names: ``base_model.model.LAYER.lora_A.weight`` [r, in] and ``….lora_B.weight`` [out, r].
        """
        self._model = model
        self._tensors = tensors
        self._scale = scale
        self._acting: AdapterName | None = None
        self._hooks: list[RemovableHandle] = []

    @staticmethod
    def can_hold(model: PreTrainedModel) -> bool:
        """Merged copies of a backbone are cheap, and its layers that take an adapter are plain linear ones."""
        return _mergeable(model) and not any(isinstance(layer, Conv1D) for layer in model.modules())

    @staticmethod
    def shapes(model: PreTrainedModel, rank: int, targets: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
        """Shapes of an adapter's tensors on a backbone, by PEFT's names; ``targets`` as in ``LoraSettings``."""
        shapes: dict[str, tuple[int, ...]] = {}
        head = model.get_output_embeddings()
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and layer is not head and (not targets or _is_named(name, targets)):
                shapes[f"{PEFT_PREFIX}{name}.lora_A.weight"] = (rank, layer.in_features)
                shapes[f"{PEFT_PREFIX}{name}.lora_B.weight"] = (layer.out_features, rank)
        return shapes

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles with weights of their own."""
        return tuple(role for role in ROLES if role in self._tensors)

    def weights_of(self, role: NameT) -> NameT | Literal["compressor"]:
        """The role whose weights ``role`` uses."""
        return sharing(role, self._tensors)

    def tensors(self, role: Role) -> Mapping[str, Tensor]:
        """A role's LoRA tensors by PEFT's names."""
        return self._tensors[role]

    def bare(self) -> PreTrainedModel:
        """The causal LM without adapters."""
        return self._model

    def merged(self, role: AdapterName) -> PreTrainedModel:
        """The causal LM with the role's adapter added into its weights; all else is shared with the backbone."""
        assert role != "teacher", "a checkpoint holds none"  # noqa: S101
        layers: dict[nn.Module, tuple[nn.Linear, Tensor]] = {}
        for layer, a, b in self._layers(role):
            layers[layer] = (layer, (b.float() @ a.float() * self._scale).to(layer.weight))
        return merged_copy(self._model, layers)

    @contextmanager
    def use(self, role: AdapterName | None) -> Iterator[None]:
        """Run the causal LM as ``role``, with each layer's adapter added to its output."""
        before = self._acting
        self._switch(role)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, role: AdapterName | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._acting = [], role
        if role is None:
            return
        assert role != "teacher", "a checkpoint holds none"  # noqa: S101
        for layer, a, b in self._layers(role):
            low, high = a.to(layer.weight), (b * self._scale).to(layer.weight)
            self._hooks.append(layer.register_forward_hook(partial(_added, low, high)))

    def _layers(self, role: Role) -> Iterator[tuple[nn.Linear, Tensor, Tensor]]:
        """Each layer with an adapter of the role, and the adapter's A [r, in] and B [out, r]."""
        tensors = self._tensors[self.weights_of(role)]
        for name in tensors:
            if name.endswith(".lora_A.weight"):
                path = name.removesuffix(".lora_A.weight")
                layer = self._model.get_submodule(path.removeprefix(PEFT_PREFIX))
                assert isinstance(layer, nn.Linear), "shapes() names no other layers"  # noqa: S101
                yield layer, tensors[name], tensors[f"{path}.lora_B.weight"]


def _added(low: Tensor, high: Tensor, _layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A forward hook: the output of a linear layer with its adapter."""
    return output + functional.linear(functional.linear(inputs[0], low), high)


def check_targets(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """Refuse names of layers that a backbone does not have; PEFT ignores them where another one is there.

    Raises:
        ConfigError: names them, and those there are.
    """
    head = model.get_output_embeddings()
    layers = [
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    ]
    unknown = [target for target in targets if not any(_is_named(name, [target]) for name in layers)]
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in layers})
        raise ConfigError(
            f"lora.targets names {', '.join(unknown)}, which no linear layer of the base model is called; there are "
            f"{', '.join(known)}"
        )


def _is_named(name: str, targets: Sequence[str]) -> bool:
    """A layer is one of ``targets``, by its whole name or its end, as in PEFT."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _mergeable(model: PreTrainedModel) -> bool:
    """Merged copies of a causal LM are cheap and possible.

    Quantised weights would have to be unpacked to take an adapter in; spread ones cannot be copied.
    """
    plain = not getattr(model, "is_quantized", False) and len(getattr(model, "hf_device_map", {})) <= 1
    return plain and sum(p.numel() for p in model.parameters()) <= MERGE_LIMIT


def sharing(role: NameT, present: Mapping[Role, object] | Mapping[str, object]) -> NameT | Literal["compressor"]:
    """The role whose weights ``role`` uses: the query reasoner starts as the compressor (clara.md section 1)."""
    return "compressor" if role == "query_reasoner" and role not in present else role


def merged_copy(model: PreTrainedModel, layers: Mapping[nn.Module, tuple[nn.Linear, Tensor]]) -> PreTrainedModel:
    """A causal LM with some layers changed, in evaluation mode; all other weights are shared with ``model``.

    ``layers``: for each layer to replace, the linear layer that takes its place, and the addition to its weight.
    """
    # Whatever deepcopy finds here it takes instead of copying.
    kept: dict[int, object] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    for old, (linear, delta) in layers.items():
        made = copy.copy(linear)
        made._parameters = dict(linear._parameters)  # a shallow copy would share the dictionary, and so the weight
        # A run's adapters are fp32 on a base that may be bf16, which the sum has to stay.
        made.weight = nn.Parameter(linear.weight.data + delta.to(linear.weight.dtype), requires_grad=False)
        kept[id(old)] = made
    twin: PreTrainedModel = copy.deepcopy(model, kept)
    return twin.eval()


class _LaidOutLinear(nn.Module):
    """A linear layer of bf16 weights that lie as the CPU's matrix units read them.

    Of weights that lie plainly, torch changes the layout in every call, which costs a third of a question's time
    (LOG.md, 2026-12-01).
    """

    def __init__(self, linear: nn.Linear, *, plain: bool) -> None:
        """Lay out the weight of ``linear``; ``plain``: keep it as it was, too, as ``weight``."""
        super().__init__()
        self._laid_out = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data, _ROWS)
        self.weight, self.bias = linear.weight if plain else None, linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        if rows.requires_grad:  # the fast product is for inference alone
            return functional.linear(rows, self._laid_out.to_dense(), self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._laid_out, self.bias, "none", [], "")
        return product


def _lay_out(model: PreTrainedModel, *, writes: bool) -> None:
    """Lay out the linear layers of a merged copy that has bf16 weights, on a processor with units for them.

    The LM head only where it ``writes``.
    """
    if not (model.device.type == "cpu" and model.dtype == natural_dtype("cpu") == torch.bfloat16):
        return
    decoder = model.get_decoder()
    for name, layer in list(decoder.named_modules()):
        if type(layer) is nn.Linear:
            decoder.set_submodule(name, _LaidOutLinear(layer, plain=False))
    head = model.get_output_embeddings()
    if writes and type(head) is nn.Linear:  # whose weight is the input embeddings' too
        model.set_output_embeddings(_LaidOutLinear(head, plain=True))


class RoleWeights:
    """Gives inference a causal LM that acts as a role: a merged copy where that is cheap, else a switched backbone."""

    def __init__(
        self, adapters: StoredAdapters | Adapters, *, merge: bool = True, attention: str | None = None
    ) -> None:
        """Wrap adapters of a backbone; ``merge``: there is memory for merged copies.

        ``attention``: transformers' name of the attention for reading prompts; compression keeps its own, which takes
        the masks of memory tokens.
        """
        self._adapters = adapters
        self._turn = RLock()
        self._merged: dict[AdapterName, PreTrainedModel] = {}
        self._attention = attention
        model = adapters.bare()
        self._merge = merge and _mergeable(model)
        self._compression_attention = attention_of(model)

    @contextmanager
    def acting_as(self, role: AdapterName | None) -> Iterator[PreTrainedModel]:
        """The causal LM as ``role``; None is the backbone alone.

        One thread at a time has the backbone; others wait until its block ends. A block therefore holds a whole
        computation and no ``yield`` to a caller.
        """
        if role is None or not self._merge:
            with self._turn, self._adapters.use(role):
                yield self._attending(self._adapters.bare(), role)
            return
        yield self._copy(self._adapters.weights_of(role))

    def _copy(self, owner: AdapterName) -> PreTrainedModel:
        """The merged copy of a role, made on first use."""
        with self._turn:
            if owner not in self._merged:
                made = self._adapters.merged(owner)
                if owner in MEMORY_ROLES:
                    speed_up(made)
                else:
                    self._attending(made, owner)
                _lay_out(made, writes=owner not in MEMORY_ROLES)
                self._merged[owner] = made
            return self._merged[owner]

    def _attending(self, model: PreTrainedModel, role: AdapterName | None) -> PreTrainedModel:
        """The model with the role's attention."""
        if self._attention is not None:
            reads = role not in MEMORY_ROLES
            model.set_attn_implementation(self._attention if reads else self._compression_attention)
        return model

    def forget(self) -> None:
        """Drop merged copies; call after the adapters changed."""
        self._merged.clear()


class Decoder(nn.Module):
    """Backbone with adapters as one module that an optimiser can hold."""

    def __init__(self, adapters: Adapters) -> None:
        super().__init__()
        self.adapters = adapters
        self.backbone = adapters.peft_model

    def decode(
        self, embeds: Tensor, attention: Tensor, positions: Tensor, *, role: AdapterName | None = "generator"
    ) -> Tensor:
        """Last hidden states of a role that reads prompts: [B, L, H].

        Args:
            embeds: [B, L, H] prompt with memories spliced in.
            attention: bool [B, 1, L, L], true where a token may look; padding, on the right, sees itself alone.
            positions: int64 [B, L].
            role: the adapter; None for the backbone alone.
        """
        with self.adapters.use(role):
            if takes_packed(self.adapters.bare()):
                return self._decode_packed(embeds, attention[:, 0], positions)
            out = self.adapters.bare().get_decoder()(
                inputs_embeds=embeds,
                attention_mask=additive(attention, embeds.dtype),
                position_ids=positions,
                use_cache=False,
            )
            hidden: Tensor = out.last_hidden_state
            return hidden

    def _decode_packed(self, embeds: Tensor, allowed: Tensor, positions: Tensor) -> Tensor:
        """``decode`` of the real tokens alone; padding, which only sees itself, comes out as zeros."""
        b, length, width = embeds.shape
        padding = allowed.sum(dim=2) == 1
        padding[:, 0] = False  # the first token of a sequence sees only itself too
        kept = (~padding).reshape(-1).nonzero(as_tuple=True)[0]
        sizes = (~padding).sum(dim=1).tolist()
        layout = Packing.of([row[:n, :n] for row, n in zip(allowed, sizes, strict=True)], embeds.dtype)
        flat = embeds.reshape(-1, width).index_select(0, kept)
        decoder = self.adapters.bare().get_decoder()
        hidden = layout.run(decoder, flat, positions.reshape(-1).index_select(0, kept))
        return hidden.new_zeros(b * length, width).index_copy(0, kept, hidden).view(b, length, width)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings of the backbone."""
        embeds: Tensor = self.adapters.bare().get_input_embeddings()(ids)
        return embeds

    def logits(self, hidden: Tensor) -> Tensor:
        """The LM head on hidden states: [..., H] -> [..., V]."""
        scores: Tensor = self.adapters.bare().get_output_embeddings()(hidden)
        return scores


def splice(embeds: Tensor, slots: Tensor, memories: Tensor) -> Tensor:
    """Put memory vectors, [sum of slots, H], in the place of the slot tokens of embeds [B, L, H].

    Slots, bool [B, L], are in reading order over the whole batch.
    """
    index = slots.reshape(-1).nonzero(as_tuple=True)[0]
    flat = embeds.reshape(-1, embeds.shape[-1])
    return flat.index_copy(0, index, memories.to(flat.dtype)).reshape(embeds.shape)
