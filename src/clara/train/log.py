"""The log of a run, a line a step in ``log.jsonl``, and the learning curves drawn from it.

How progress looks on a terminal is the command line's matter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clara.errors import MissingExtraError, TrainingError, optional
from clara.train.config import TrainConfig
from clara.train.processes import ALONE, Processes
from clara.train.validation import Validation

_LOG = "log.jsonl"
_FIGURE = "curves.png"
_SMOOTHED_OVER = 50
"""The smoothed loss averages this part of the run on either side of a step."""

_LOSSES, _ANSWERS = "nats a label token", "held-out questions"
_TRAINING = {"training, each step": 0.25, "training, smoothed": 1.0}
"""Opacity of the lines of the training loss."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """A step's figures; speeds are of all processes since this one started, tokens include memory slots.

    The learning rate is of the LoRA weights; ``held_out`` is the held-out loss at the default rate, where this step was
    validated.
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


class RunLog:
    """Collects the losses of a step; the first process writes them."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        on_progress: Callable[[TrainProgress], None] | None,
        *,
        processes: Processes = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self._path, self._config, self._on_progress = folder / _LOG, config, on_progress
        self._processes, self._device = processes, device
        self._passes: list[tuple[float, float, int, int]] = []
        self._tokens = self._samples = 0.0
        self._started = time.monotonic()
        self._first_step: int | None = None

    def rewind(self, step: int) -> None:
        """Drop the steps after ``step`` that a killed run logged: they are done again."""
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

    def add(self, cross_entropy: float, mse: float, *, tokens: int, samples: int) -> None:
        """Note a forward and backward pass of this process."""
        self._passes.append((cross_entropy, mse, tokens, samples))

    def step(self, step: int, *, learning_rate: float, validation: Validation | None) -> TrainProgress:
        """Log a finished step; every process must call it."""
        if self._first_step is None:
            self._first_step = step - 1
        ce, mse, tokens, samples = self._means()
        self._tokens += tokens * self._processes.count
        self._samples += samples * self._processes.count
        seconds = time.monotonic() - self._started
        progress = TrainProgress(
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
            if self._on_progress is not None:
                self._on_progress(progress)
        return progress

    def _means(self) -> list[float]:
        ce, mse, tokens, samples = (sum(column) for column in zip(*self._passes, strict=True))
        means = [ce / len(self._passes), mse / len(self._passes), tokens, samples]
        self._passes.clear()
        return self._processes.mean(means, self._device)


@dataclass(frozen=True, slots=True)
class _Curve:
    """A line of the figure."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def _read_curves(log: Path) -> dict[str, tuple[_Curve, ...]]:
    """The curves of a log by panel; a step that was logged without a field has no point there.

    Raises:
        TrainingError: the log is missing, empty or torn.
    """
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise TrainingError(f"{log} cannot be read: {error}") from None
    if not lines:
        raise TrainingError(f"{log} is empty: there is no step to draw")
    each, smoothed = _TRAINING
    loss, mse = _curve(each, lines, "cross_entropy"), _curve("MSE", lines, "mse")
    answers = {"f1": "F1", "em": "EM", "recall_at_1": "Recall@1", "recall_at_5": "Recall@5"}
    return {
        _LOSSES: (loss, _Curve(smoothed, loss.steps, _smoothed(loss.values)), *_by_rate(lines, {"loss": "held out"})),
        _ANSWERS: _by_rate(lines, answers),
        "MSE": (mse,) if any(mse.values) else (),  # a stage may have none
        "learning rate": (_curve("learning rate", lines, "learning_rate"),),
    }


def _draw(log: Path, target: Path) -> None:
    """Draw the learning curves of a log as PNG.

    Errors as ``_read_curves``, ``MissingExtraError`` without matplotlib.
    """
    # The Figure alone needs no display, and importing it takes longer than all else here.
    library = optional("matplotlib.figure", package="matplotlib", extra="train")
    curves = _read_curves(log)
    figure = library.Figure(figsize=(9.6, 6.4), layout="constrained")
    for axes, (title, shown) in zip(figure.subplots(2, 2).flat, curves.items(), strict=True):
        for curve in shown:
            style: dict[str, Any] = {"marker": "o", "markersize": 3} if title in (_LOSSES, _ANSWERS) else {}
            if curve.name in _TRAINING:
                style = {"alpha": _TRAINING[curve.name], "color": "#3b6ea5"}
            axes.plot(curve.steps, curve.values, label=curve.name, **style)
        axes.set_title(title if shown else f"{title}: not measured")
        axes.set_xlabel("step")
        if len(shown) > 1:
            axes.legend(fontsize="small")
        if title == _ANSWERS:
            axes.set_ylim(0, 1)
    scratch = target.with_suffix(".tmp")
    figure.savefig(scratch, dpi=120, format="png")
    scratch.replace(target)


def add_curves(run: Path, checkpoint: Path) -> None:
    """Draw a run's curves into its checkpoint and show them in the card, or say there why not."""
    try:
        _draw(run / _LOG, checkpoint / _FIGURE)
        words = f"![Learning curves]({_FIGURE})"
    except (MissingExtraError, TrainingError) as error:
        words = f"Not drawn: {error}"
    with (checkpoint / "README.md").open("a", encoding="utf-8") as card:
        card.write(f"\n## Learning curves\n\n{words}\n")


def _curve(name: str, lines: Sequence[Mapping[str, Any]], field: str) -> _Curve:
    points = [(line["step"], line[field]) for line in lines if line.get(field) is not None]
    return _Curve(name, tuple(step for step, _ in points), tuple(float(value) for _, value in points))


def _by_rate(lines: Sequence[Mapping[str, Any]], fields: Mapping[str, str]) -> tuple[_Curve, ...]:
    """Curves of the validations: one for each measure and rate that has points."""
    measured = [line for line in lines if line.get("validation")]
    rates = sorted({int(rate) for line in measured for rate in line["validation"]["rates"]})
    rows = {
        rate: [{"step": line["step"], **line["validation"]["rates"].get(str(rate), {})} for line in measured]
        for rate in rates
    }
    curves = (_curve(f"{name}, {rate}x", rows[rate], field) for field, name in fields.items() for rate in rates)
    return tuple(curve for curve in curves if curve.steps)


def _smoothed(values: Sequence[float]) -> tuple[float, ...]:
    """Moving averages over a ``_SMOOTHED_OVER``-th of the run on either side."""
    reach = max(1, len(values) // _SMOOTHED_OVER)
    near = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return tuple(sum(some) / len(some) for some in near)
