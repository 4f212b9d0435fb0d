"""Figures of the analyses: a PNG from one record or several, one a checkpoint. Computes nothing.

Needs matplotlib (extra ``eval``), without a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.errors import MissingExtraError
from clara.evaluate.analysis.attention import AttentionReport
from clara.evaluate.analysis.embedding_map import EmbeddingMap
from clara.evaluate.analysis.faithfulness import FaithfulnessReport
from clara.evaluate.analysis.gradients import GradientReport
from clara.evaluate.analysis.logit_lens import LensHits
from clara.evaluate.analysis.robustness import KINDS, RobustnessReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f")
GREY = "#777777"
_LABELS = {
    "k": "passages, the model's own best",
    "order": "order of the passages",
    "poison": "poisoned passage",
    "distractors": "distractors beside the gold passages",
}


def check() -> None:
    """See that figures can be drawn, before hours of work.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    _figure(1, 1)


def draw_gradients(reports: Sequence[tuple[str, GradientReport]], path: Path) -> None:
    """Probability and push by the rank of the answer's likelihood; one line a checkpoint."""
    figure = _figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    for (name, report), colour in zip(reports, COLOURS, strict=False):
        if not report.rows:
            continue
        probability, push = report.by_rank("probability"), report.by_rank("push")
        ranks = range(1, len(probability) + 1)
        label = f"{name}: {report.probability_helpful:.2f} on helpful documents"
        left.plot(ranks, probability, "o-", color=colour, markersize=4, label=label)
        right.plot(
            ranks, push, "o-", color=colour, markersize=4, label=f"{name}: {report.push_helpful:.2f} of the push"
        )
        left.axhline(1 / len(probability), color=GREY, linestyle=":", linewidth=1)
    left.set(xlabel="document, by likelihood of the answer given it (1: likeliest)", ylabel="selection probability")
    right.axhline(0, color=GREY, linestyle=":", linewidth=1)
    right.set(xlabel="document, by likelihood of the answer given it", ylabel="push of a descent step (share)")
    chance = reports[0][1].helpful
    for axes in (left, right):
        axes.xaxis.set_major_locator(_integers())
    left.set_title(f"Selection (dotted: uniform; helpful by chance: {chance:.2f})", fontsize=10)
    right.set_title("Straight-through gradient, sign turned", fontsize=10)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_maps(maps: Sequence[tuple[str, EmbeddingMap]], path: Path) -> None:
    """A t-SNE map a checkpoint."""
    figure = _figure(5.2 * len(maps), 4.8)
    for axes, (name, made) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        for label, points, colour in (
            ("mean document states", made.document, COLOURS[0]),
            ("mean memory states", made.memory, COLOURS[1]),
        ):
            axes.scatter(*zip(*points, strict=True), s=12, alpha=0.7, color=colour, label=label, linewidths=0)
        weight = "" if made.mse_weight is None else f", MSE weight {made.mse_weight:g}"
        axes.set_title(
            f"{name}{weight}\nMSE {made.mse:.3g}, cosine {made.cosine:.2f}, mixing {made.mixing:.2f}", fontsize=9
        )
        axes.set(xticks=[], yticks=[])
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_attention(reports: Sequence[tuple[str, AttentionReport]], path: Path) -> None:
    """Attention by layer, a row a checkpoint; beside it one question's answer tokens against its passages."""
    figure = _figure(11, 4.2 * len(reports))
    for (left, right), (name, report) in zip(
        figure.subplots(len(reports), 2, squeeze=False, width_ratios=(2, 1)), reports, strict=True
    ):
        parts = (
            ("gold", "a gold passage", COLOURS[0], "-"),
            ("other", "another passage", COLOURS[1], "-"),
            ("question", "question", COLOURS[2], "--"),
            ("first", "first position (sink)", GREY, "--"),
            ("rest", "other words", COLOURS[3], ":"),
        )
        for field, label, colour, style in parts:
            if values := report.by_layer(field):
                left.plot(range(1, len(values) + 1), values, style, color=colour, label=label)
        low, high = report.ci95.low, report.ci95.high
        left.set_title(
            f"{name}: gold passages get {report.gold_share:.2f} of the memories' attention "
            f"({low:.2f} to {high:.2f}; chance {report.chance:.2f}; {report.n} questions)",
            fontsize=9,
        )
        left.set(xlabel="layer", ylabel="attention of an answer token", ylim=(0, 1))
        left.legend(frameon=False, fontsize=8, ncols=5, loc="upper center")
        if report.rows:
            row = max(report.rows, key=lambda row: (row.f1, -len(row.prediction)))
            image = right.imshow(row.passages, aspect="auto", cmap="Blues", vmin=0)
            right.set_xticks(range(len(row.is_gold)), ["gold" if gold else "other" for gold in row.is_gold], fontsize=8)
            right.set_yticks(range(len(row.passages)), range(1, len(row.passages) + 1), fontsize=8)
            right.set(ylabel="answer token")
            right.set_title(f"“{row.prediction[:40]}”", fontsize=9)
            figure.colorbar(image, ax=right)
    _save(figure, path)


def draw_robustness(reports: Sequence[tuple[str, RobustnessReport]], path: Path) -> None:
    """F1 with its interval under each condition, a panel a disturbance."""
    kinds = [kind for kind in KINDS if any(report.of(kind) for _, report in reports)]
    figure = _figure(5.2 * min(2, len(kinds)), 3.9 * ((len(kinds) + 1) // 2))
    panels = figure.subplots((len(kinds) + 1) // 2, min(2, len(kinds)), squeeze=False).flatten()
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    for axes, kind in zip(panels, kinds, strict=False):
        for (name, report), colour in zip(reports, COLOURS, strict=False):
            rows = report.of(kind)
            places, means = range(len(rows)), [row.f1 for row in rows]
            spread = [[r.f1 - r.f1_ci95.low for r in rows], [r.f1_ci95.high - r.f1 for r in rows]]
            style = "o-" if kind in {"k", "distractors"} else "o"
            axes.errorbar(places, means, yerr=spread, fmt=style, color=colour, capsize=3, markersize=4, label=name)
            if kind == "k":
                axes.plot(places, [r.recall for r in rows], ":", color=colour, label="gold passages found")
            if kind == "poison":
                axes.plot(places, [r.wrong_f1 for r in rows], "x", color=colour, label="F1 with the wrong answer")
            axes.set_xticks(places, [row.condition.replace(" ", "\n", 1) for row in rows], fontsize=8)
        axes.set(xlabel=_LABELS[kind], ylabel="F1", ylim=(0, None))
        axes.set_title(f"n = {max((row.n for row in reports[0][1].of(kind)), default=0)}", fontsize=9)
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_faithfulness(reports: Sequence[tuple[str, FaithfulnessReport]], path: Path) -> None:
    """Shares of answer tokens in cited and in foreign text, for right and wrong answers."""
    figure = _figure(6.4, 4)
    axes = figure.subplots()
    for place, ((name, report), colour) in enumerate(zip(reports, COLOURS, strict=False)):
        bars = {
            "cited text": report.found,
            "every token\nin cited text": report.whole,
            "wrong answers,\ncited text": report.wrong_found or 0.0,
            "another question's\ntext": report.by_chance,
        }
        width = 0.8 / len(reports)
        drawn = axes.bar(
            [i + place * width for i in range(len(bars))], list(bars.values()), width, color=colour, label=name
        )
        axes.bar_label(drawn, fmt="%.2f", fontsize=8)
        axes.set_xticks([i + width * (len(reports) - 1) / 2 for i in range(len(bars))], list(bars), fontsize=8)
    axes.set(ylabel="share of answer tokens (of answers)", ylim=(0, 1.05))
    axes.set_title(f"n = {reports[0][1].n}", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def draw_lens(reports: Sequence[tuple[str, LensHits]], path: Path) -> None:
    """How often the lens names what is in gold passages, against other passages."""
    figure = _figure(5.4, 4)
    axes = figure.subplots()
    width = 0.8 / len(reports)
    for place, ((name, made), colour) in enumerate(zip(reports, COLOURS, strict=False)):
        shares, intervals = (made.gold, made.other), (made.gold_ci95, made.other_ci95)
        spread = [
            [share - i.low for share, i in zip(shares, intervals, strict=True)],
            [i.high - share for share, i in zip(shares, intervals, strict=True)],
        ]
        axes.bar([i + place * width for i in (0, 1)], shares, width, yerr=spread, capsize=3, color=colour, label=name)
    axes.set_xticks([i + width * (len(reports) - 1) / 2 for i in (0, 1)], ["gold passages", "other candidates"])
    axes.set(ylabel="share of the lens' words that are in")
    axes.set_title(f"n = {reports[0][1].n}", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - pyplot would look for a display
    except ImportError:
        raise MissingExtraError("matplotlib", "eval") from None
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _integers() -> Any:  # noqa: ANN401 - matplotlib is optional
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    return MaxNLocator(integer=True)


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib is optional
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
