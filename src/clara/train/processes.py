"""The processes that train together: one, or those that ``torchrun`` or ``accelerate launch`` started.

Every process takes its part of every batch, so that a run is the same whatever their number; the first one writes the
files. Wrapping the model is the Trainer's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import distributed

from clara.errors import ConfigError
from clara.model.placement import SPREAD


@dataclass(frozen=True, slots=True)
class Processes:
    """This process, by its number from 0, among all."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """This process writes files."""
        return self.rank == 0

    def part(self, items: int) -> range:
        """This process's share of ``items`` indices, every ``count``-th.

        Batches are sorted by length: neighbours would leave the last process with the longest texts.
        """
        return range(self.rank, items, self.count)

    def check(self, batch_size: int, accumulation: int) -> None:
        """Refuse batches that cannot be divided evenly (``ConfigError``)."""
        if batch_size // accumulation % self.count:
            raise ConfigError(
                f"batch_size {batch_size} / accumulation {accumulation} is {batch_size // accumulation} examples a "
                f"forward pass, which {self.count} processes cannot share evenly; choose a multiple of {self.count}"
            )

    def wait(self) -> None:
        """A barrier."""
        if self.count > 1:
            distributed.barrier()

    def mean(self, values: Sequence[float], device: torch.device | None = None) -> list[float]:
        """Each value's mean over the processes, the same numbers everywhere.

        ``device``: where the process group exchanges tensors; the CPU when None.
        """
        if self.count == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(together)
        return [float(value) / self.count for value in together.tolist()]

    def agreed(self, choice: bool, device: torch.device | None = None) -> bool:  # noqa: FBT001 - what is agreed on
        """The first process's choice, on all of them."""
        if self.count == 1:
            return choice
        agreed = torch.tensor([choice], dtype=torch.int64, device=device)
        distributed.broadcast(agreed, src=0)
        return bool(agreed.item())


ALONE = Processes()


def check_device(device: str) -> None:
    """Refuse devices that training does not take: weights spread over GPUs, a GPU other than the first visible."""
    if device in SPREAD:
        raise ConfigError(
            f"--device {device} spreads weights over GPUs, which training does not; give --device cuda, or let several "
            "processes share the weights (docs/training.md, FSDP and DeepSpeed)"
        )
    number = torch.device(device).index or 0
    if number > 0:
        raise ConfigError(
            f"training takes the first GPU that it sees, --device {device} is another; set "
            f"CUDA_VISIBLE_DEVICES={number} and give --device cuda"
        )


_PATIENCE = timedelta(days=2)
"""Timeout of a barrier: the first process may compress a whole data set. One that dies ends the others at once, through
their launcher."""


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that were started together; a process that was started alone is alone.

    A process group that exists is used and left as it is. The backend follows the model's device (gloo for the CPU).
    """
    before = distributed.is_initialized()
    state = PartialState(cpu=torch.device(device).type == "cpu", timeout=_PATIENCE)
    try:
        yield Processes(rank=int(state.process_index), count=int(state.num_processes))
    finally:
        if distributed.is_initialized() and not before:
            distributed.destroy_process_group()
        # What a later run in this process finds must be its own.
        PartialState._reset_state()  # accelerate has no public way
