"""What a run says: one record a step, to a callback and to ``log.jsonl``.

Knows numbers; how they look on a terminal is the command line's matter, as a figure that of ``curves``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from clara.train.config import TrainConfig
from clara.train.processes import ALONE, Processes
from clara.train.validation import Validation

LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run says after each step.

    Attributes:
        step: steps done.
        steps: steps in all.
        cross_entropy: nats a label token, of this step.
        mse: the MSE term, of this step.
        learning_rate: of the LoRA weights, in this step.
        held_out: loss on the held-out examples at the default rate, where it was measured at this step.
        validation: all that was measured on held-out records at this step.
        samples_per_second: since this process started, of all processes.
        tokens_per_second: tokens and memory slots read, since this process started, of all processes.
        seconds_left: at that speed.
    """

    step: int
    steps: int
    cross_entropy: float
    mse: float
    learning_rate: float
    held_out: float | None
    validation: Validation | None
    samples_per_second: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass on this process.

    Attributes:
        cross_entropy: nats a label token; its mean over the processes is that of the whole batch.
        mse: the same.
        tokens: read.
        samples: examples.
    """

    cross_entropy: float
    mse: float
    tokens: int
    samples: int


class RunLog:
    """Collects the losses of a step and says them; only the first process does."""

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        tell: Callable[[Progress], None] | None,
        *,
        processes: Processes = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self._path, self._config, self._tell = path, config, tell
        self._processes, self._device = processes, device
        self._passes: list[Pass] = []
        self._tokens = self._samples = 0.0
        self._started = time.monotonic()
        self._first_step: int | None = None

    def rewind(self, step: int) -> None:
        """Drop what a killed run said after ``step``: those steps are done, and said, again."""
        if not self._processes.first or not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            # The last line may be torn; nothing after it counts.
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
            kept.append(line)
        scratch = self._path.with_suffix(".tmp")
        scratch.write_text("".join(kept), encoding="utf-8")
        scratch.replace(self._path)

    def add(self, done: Pass) -> None:
        """Note one forward pass."""
        self._passes.append(done)

    def step(self, step: int, *, learning_rate: float, validation: Validation | None) -> Progress:
        """Say what a finished step came to; every process must call it."""
        if self._first_step is None:
            self._first_step = step - 1
        ce, mse, tokens, samples = self._means()
        self._tokens += tokens * self._processes.count
        self._samples += samples * self._processes.count
        seconds = time.monotonic() - self._started
        progress = Progress(
            step=step,
            steps=self._config.steps,
            cross_entropy=ce,
            mse=mse,
            learning_rate=learning_rate,
            held_out=None if validation is None else validation.default_loss,
            validation=validation,
            samples_per_second=self._samples / seconds,
            tokens_per_second=self._tokens / seconds,
            seconds_left=(self._config.steps - step) * seconds / (step - self._first_step),
        )
        if self._processes.first:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(progress)) + "\n")
            if self._tell is not None:
                self._tell(progress)
        return progress

    def _means(self) -> list[float]:
        """Losses a pass, tokens and samples a process."""
        passes = max(1, len(self._passes))
        sums = [
            sum(done.cross_entropy for done in self._passes) / passes,
            sum(done.mse for done in self._passes) / passes,
            sum(done.tokens for done in self._passes),
            sum(done.samples for done in self._passes),
        ]
        self._passes.clear()
        return self._processes.mean(sums, self._device)
