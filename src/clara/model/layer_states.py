"""A decoder that notes what some of its layers give, and runs no layer above the highest one that is read.

Knows transformers' decoders as a stack of layers in a ``ModuleList``, whatever its name. Each call gets a decoder of
its own that shares all weights, so that several threads may read one model.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from clara.errors import ConfigError


@dataclass(frozen=True, slots=True)
class _NotingDecoder:
    """A decoder with what its layers gave in its last call.

    Attributes:
        decoder: to be called as the one it was made of.
        states: float [..., H] by layer, from 1.
    """

    decoder: nn.Module
    states: dict[int, Tensor] = field(default_factory=dict)


def noting(decoder: nn.Module, layers: Collection[int], *, whole: bool) -> _NotingDecoder:
    """Make a decoder that notes the outputs of ``layers``.

    Args:
        decoder: the backbone without its LM head; not changed.
        layers: numbers from 1.
        whole: run the layers above the highest of them, too.

    Raises:
        ConfigError: there is no such layer.
    """
    name, stack = _stack(decoder)
    if max(layers) > len(stack):
        raise ConfigError(f"layers names layer {max(layers)}, the base model has {len(stack)}")
    made = _NotingDecoder(_shallow(decoder))
    run = []
    for number, layer in enumerate(stack if whole else stack[: max(layers)], start=1):
        run.append(_noted(layer, number, made.states) if number in layers else layer)
    made.decoder._modules[name] = nn.ModuleList(run)
    return made


def _stack(decoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name of a decoder's layers, and the layers."""
    for name, module in decoder.named_children():
        if isinstance(module, nn.ModuleList):
            return name, module
    raise ConfigError(f"{type(decoder).__name__} holds its layers otherwise than in a list; layers cannot be read")


def _shallow(module: nn.Module) -> nn.Module:
    """The same module with children and hooks that can be changed without changing it."""
    twin = copy.copy(module)  # shares the two dictionaries below, which torch has no public way to part
    twin._modules = dict(module._modules)
    twin._forward_hooks = OrderedDict(module._forward_hooks)
    return twin


def _noted(layer: nn.Module, number: int, states: dict[int, Tensor]) -> nn.Module:
    def note(_module: nn.Module, _given: object, out: Any) -> None:  # noqa: ANN401 - a tensor, or a tuple that begins with it
        states[number] = out[0] if isinstance(out, tuple) else out

    twin = _shallow(layer)
    twin.register_forward_hook(note)
    return twin
