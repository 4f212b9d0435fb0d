"""What training changes, as files: the weights to go on from, and the best ones so far.

A native checkpoint is ``model.checkpoint``'s matter; optimiser and random states are the Trainer's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clara.errors import TrainingError

WEIGHTS = "trained.safetensors"
BEST = "best.safetensors"
_SCORES = "scores"


@dataclass(frozen=True, slots=True)
class Best:
    """Which step was best so far.

    Attributes:
        step: after it.
        loss: nats a label token on the held-out examples.
        quality: F1 of held-out answers, or Recall@5 of held-out questions; None where neither was measured.
    """

    step: int
    loss: float
    quality: float | None

    def beats(self, other: Best, *, by: str) -> bool:
        """Whether this is better: by quality, then by loss; or by loss alone (``by="loss"``)."""
        if by == "loss" or self.quality is None or other.quality is None:
            return self.loss < other.loss
        return (self.quality, -self.loss) > (other.quality, -other.loss)


def trained_state(module: nn.Module, whole: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The parameters that training changes, by name, in memory of their own order.

    Args:
        module: the network.
        whole: values by name where the module holds only shards of them; must have every name of ``module``.
    """
    names = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {name: (whole[name] if whole else p).detach().cpu().contiguous() for name, p in names.items()}


def load_trained(module: nn.Module, path: Path) -> None:
    """Put back what ``trained_state`` gave.

    Raises:
        TrainingError: the file holds other parameters than this run trains.
    """
    tensors = load_file(path)
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise TrainingError(f"{path} does not fit this run: {odd[0]} is in one of them only; use the run's own config")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def save_best(folder: Path, state: Mapping[str, Tensor], best: Best) -> None:
    """Replace the best weights of a run, whole or not at all: a kill leaves the old or the new ones."""
    target = folder / BEST
    scratch = target.with_suffix(".tmp")
    save_file(dict(state), scratch, metadata={_SCORES: json.dumps(asdict(best))})
    settle(scratch)
    scratch.replace(target)


def read_best(folder: Path) -> Best | None:
    """Which step the best weights of a run are of; None if there are none.

    Raises:
        TrainingError: the file is damaged.
    """
    path = folder / BEST
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return Best(**json.loads(file.metadata()[_SCORES]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); remove it, and the run goes on without it") from None


def settle(path: Path) -> None:
    """Wait until a file, or every file of a folder, is on the disk."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
