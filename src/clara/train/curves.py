"""Learning curves of a run as a figure, from its log.

Knows the log's fields; a display is never needed. The log stays the place to compute anything from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.errors import MissingExtraError, TrainingError
from clara.train.run_log import LOG

FIGURE = "curves.png"
_SMOOTHED_OVER = 50
"""Parts that a run is cut into for the smoothed loss: noise goes, the shape stays."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of the figure.

    Attributes:
        name: in the legend.
        steps: ascending.
        values: one a step.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """What a log says over the steps.

    Attributes:
        loss: cross-entropy of each step, and its mean over neighbours.
        held_out: loss on the held-out examples, a line for each rate.
        answers: F1 of held-out answers, or Recall of held-out questions, a line for each rate and measure.
        mse: of each step; empty where the stage has none.
        learning_rate: of each step.
    """

    loss: tuple[Curve, ...]
    held_out: tuple[Curve, ...]
    answers: tuple[Curve, ...]
    mse: tuple[Curve, ...]
    learning_rate: tuple[Curve, ...]


def read_curves(log: Path) -> Curves:
    """Collect the curves of a ``log.jsonl``; a step that was logged without a field has no point there.

    Raises:
        TrainingError: the log is missing, empty or torn.
    """
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise TrainingError(f"{log} cannot be read: {error}") from None
    if not lines:
        raise TrainingError(f"{log} is empty: there is no step to draw")
    loss, mse = _curve("each step", lines, "cross_entropy"), _curve("MSE", lines, "mse")
    return Curves(
        loss=(loss, _smoothed(loss)),
        held_out=_by_rate(lines, {"loss": "held out"}),
        answers=_by_rate(lines, {"f1": "F1", "em": "EM", "recall_at_1": "Recall@1", "recall_at_5": "Recall@5"}),
        mse=(mse,) if any(mse.values) else (),
        learning_rate=(_curve("learning rate", lines, "learning_rate"),),
    )


def draw(log: Path, target: Path) -> None:
    """Draw the learning curves of a run as PNG.

    Args:
        log: the run's ``log.jsonl``.
        target: the figure.

    Raises:
        MissingExtraError: matplotlib is not installed.
        TrainingError: the log cannot be read.
    """
    try:
        # The Figure alone needs no display, and importing it takes longer than all else here.
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("matplotlib", "train") from None
    curves = read_curves(log)
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    (losses, answers), (mse, rate) = figure.subplots(2, 2)
    for curve, alpha in zip(curves.loss, (0.25, 1.0), strict=True):
        losses.plot(curve.steps, curve.values, label=f"training, {curve.name}", alpha=alpha, color="#3b6ea5")
    for curve in curves.held_out:
        losses.plot(curve.steps, curve.values, label=curve.name, marker="o", markersize=3)
    panels = [
        (losses, "nats a label token", (*curves.loss, *curves.held_out)),
        (answers, "held-out questions", curves.answers),
        (mse, "MSE", curves.mse),
        (rate, "learning rate", curves.learning_rate),
    ]
    for axes, title, shown in panels:
        if axes is not losses:
            for curve in shown:
                axes.plot(curve.steps, curve.values, label=curve.name, marker="o" if axes is answers else None)
        axes.set_title(title if shown else f"{title}: not measured")
        axes.set_xlabel("step")
        if len(shown) > 1:
            axes.legend(fontsize="small")
    answers.set_ylim(0, 1)
    scratch = target.with_suffix(".tmp")
    figure.savefig(scratch, dpi=120, format="png")
    scratch.replace(target)


def add_curves(run: Path, checkpoint: Path) -> None:
    """Draw a finished run's curves into its checkpoint and show them in the card; say there why where it cannot be.

    Args:
        run: the run's folder, with its log.
        checkpoint: a folder with a ``README.md``.
    """
    try:
        draw(run / LOG, checkpoint / FIGURE)
        words = f"![Learning curves]({FIGURE})"
    except (MissingExtraError, TrainingError) as error:
        words = f"Not drawn: {error}"
    card = checkpoint / "README.md"
    card.write_text(f"{card.read_text(encoding='utf-8')}\n## Learning curves\n\n{words}\n", encoding="utf-8")


def _curve(name: str, lines: Sequence[Mapping[str, Any]], field: str) -> Curve:
    points = [(line["step"], line[field]) for line in lines if line.get(field) is not None]
    return Curve(name, tuple(step for step, _ in points), tuple(float(value) for _, value in points))


def _by_rate(lines: Sequence[Mapping[str, Any]], fields: Mapping[str, str]) -> tuple[Curve, ...]:
    """Curves of what was validated: one for each measure and rate that has points."""
    measured = [line for line in lines if line.get("validation")]
    rates = sorted({int(rate) for line in measured for rate in line["validation"]["rates"]})
    curves = []
    for field, name in fields.items():
        for rate in rates:
            rows = [{"step": line["step"], **line["validation"]["rates"].get(str(rate), {})} for line in measured]
            curve = _curve(f"{name}, {rate}x", rows, field)
            if curve.steps:
                curves.append(curve)
    return tuple(curves)


def _smoothed(curve: Curve) -> Curve:
    """Means over as many neighbouring steps as make ``_SMOOTHED_OVER`` parts of the run."""
    reach = max(1, len(curve.values) // _SMOOTHED_OVER)
    means = []
    for i in range(len(curve.values)):
        near = curve.values[max(0, i - reach) : i + reach + 1]
        means.append(sum(near) / len(near))
    return Curve("smoothed", curve.steps, tuple(means))
