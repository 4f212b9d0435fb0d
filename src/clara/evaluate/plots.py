"""Every figure of results and analyses, as PNG. Needs matplotlib (extra ``eval``), without a display; computes nothing.

Of results: F1 against rate, Recall@k, time to the first token against F1, kept benefit; one without anything to show
is not drawn. Of analyses: one figure from one report or several, one a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clara.errors import optional
from clara.evaluate.questions import Group, GroupNames
from clara.evaluate.results import Result, grouped
from clara.evaluate.statistics import KeptBenefit

if TYPE_CHECKING:
    from clara.analysis.answers import FaithfulnessReport, RobustnessReport
    from clara.analysis.embedding_map import EmbeddingMap
    from clara.analysis.inside import AttentionReport, GradientReport
    from clara.analysis.logit_lens import LensHits

_DPI = 120
_RECALL_DEPTHS = (1, 3, 5, 10)
_COLUMNS = 2
_LEGEND_COLUMNS = 3  # for each column of panels
_PANEL = (5.6, 4.0)  # inches
_SHIFT = 0.02  # share of a rate: keeps the intervals of several systems at one rate apart

# matplotlib's ten colours, then the paler ten of its map tab20.
_COLORS = (
    *(f"C{number}" for number in range(10)),
    *("#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#c7c7c7", "#dbdb8d", "#9edae5"),
)
_MARKERS = ("s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", ":", "-.")

_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d6a9f")
"""Of checkpoints and parts in the figures of analyses."""

_GREY = "#777777"
_LABELS = {
    "k": "passages, the model's own best",
    "order": "order of the passages",
    "poison": "poisoned passage",
    "distractors": "distractors beside the gold passages",
}

_Panel: TypeAlias = tuple[str, Callable[[Any], None]]
"""A title, and what draws into matplotlib axes."""


def draw_all(results: Sequence[Result], kept: Sequence[KeptBenefit], folder: Path) -> list[Path]:
    """Draw the figures that have anything to show into ``folder``; returns their paths."""
    names = GroupNames(result.group for result in results)
    scored = [result for result in results if result.f1 is not None]
    rated = {result.group for result in scored if result.rate is not None}
    timed = [result for result in scored if result.first_token_seconds is not None]
    ranked = [result for result in results if result.retrieval is not None]
    ranked = [result for result in ranked if not result.n] or ranked  # systems that only rank, where there are any
    figures = {
        "f1_rate.png": _panels([result for result in scored if result.group in rated], names, _draw_f1_rate),
        "recall.png": _panels(ranked, names, _draw_recall),
        "first_token_f1.png": _panels(timed, names, _draw_first_token),
        "kept_benefit.png": _kept(kept, names),
    }
    written = []
    for name, panels in figures.items():
        if panels:
            _save_panels(panels, folder / name)
            written.append(folder / name)
    return written


def _save_panels(panels: Sequence[_Panel], path: Path) -> None:
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(_PANEL[0] * columns, _PANEL[1] * rows)
    shown: dict[str, Any] = {}
    for index, (title, draw) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, index)
        axes.set_title(title)
        draw(axes)
        axes.grid(visible=True, alpha=0.3)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    if shown:
        # One for all panels and below them: a style means the same system everywhere, and no point is hidden.
        wide = _LEGEND_COLUMNS * columns
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=wide, fontsize=8)
    _save(figure, path)


@dataclass(frozen=True, slots=True)
class _Styles:
    """A colour for each system, a marker and a line for each rate; the same in every panel."""

    systems: tuple[str, ...]
    rates: tuple[int, ...]

    def color(self, system: str) -> str:
        return _COLORS[self.systems.index(system) % len(_COLORS)]

    def of_result(self, result: Result) -> dict[str, str]:
        index = None if result.rate is None else self.rates.index(result.rate)
        return {
            "color": self.color(result.system),
            "marker": "o" if index is None else _MARKERS[index % len(_MARKERS)],
            "linestyle": "-" if index is None else _LINES[index % len(_LINES)],
        }


def _title(group: Group, names: GroupNames) -> str:
    return f"{names.data(group)}, {group.setting}, {group.given}{names.k(group)}"


def _panels(results: Sequence[Result], names: GroupNames, draw: Callable[..., None]) -> list[_Panel]:
    rates = sorted({result.rate for result in results if result.rate is not None})
    styles = _Styles(tuple(dict.fromkeys(result.system for result in results)), tuple(rates))
    return [(_title(group, names), partial(draw, group=own, styles=styles)) for group, own in grouped(results).items()]


def _draw_f1_rate(axes: Any, group: Sequence[Result], styles: _Styles) -> None:  # noqa: ANN401 - no types here
    """F1 with its interval at each rate; systems without a rate as level lines."""
    drawn = 0
    for name in dict.fromkeys(result.system for result in group):
        points = sorted((result for result in group if result.system == name), key=lambda result: result.rate or 0)
        values = [100 * (result.f1 or 0.0) for result in points]
        if points[0].rate is None:
            axes.axhline(values[0], linestyle="--", linewidth=1, color=styles.color(name), label=name)
            continue
        intervals = [(point.ci95 or {})["f1"] for point in points]
        below = [value - 100 * interval.low for value, interval in zip(values, intervals, strict=True)]
        above = [100 * interval.high - value for value, interval in zip(values, intervals, strict=True)]
        shift = 1 + _SHIFT * drawn
        drawn = -drawn if drawn > 0 else 1 - drawn
        rates = [shift * (result.rate or 0) for result in points]
        axes.errorbar(rates, values, yerr=[below, above], marker="o", capsize=3, color=styles.color(name), label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({result.rate for result in group if result.rate is not None})
    axes.set_xticks(ticks, [f"{rate}x" for rate in ticks])
    axes.set_xlabel("compression rate")
    axes.set_ylabel("F1, %")


def _draw_recall(axes: Any, group: Sequence[Result], styles: _Styles) -> None:  # noqa: ANN401 - as above
    for result in group:
        values = [100 * (result.retrieval or {})[f"R@{depth}"] for depth in _RECALL_DEPTHS]
        axes.plot(_RECALL_DEPTHS, values, label=result.label, **styles.of_result(result))
    axes.set_xticks(_RECALL_DEPTHS)
    axes.set_xlabel("k")
    axes.set_ylabel("Recall@k, %")


def _draw_first_token(axes: Any, group: Sequence[Result], styles: _Styles) -> None:  # noqa: ANN401 - as above
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415 - optional; loaded by now

    for result in group:
        seconds = 1000 * (result.first_token_seconds or 0.0)
        style = {**styles.of_result(result), "linestyle": ""}
        axes.plot([seconds], [100 * (result.f1 or 0.0)], label=result.label, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time to the first token, ms (median, log scale)")
    axes.set_ylabel("F1, %")


def _kept(kept: Sequence[KeptBenefit], names: GroupNames) -> list[_Panel]:
    panels: dict[str, list[KeptBenefit]] = {}
    for item in kept:
        if item.kept is not None:
            panels.setdefault(f"{_title(item.group, names)}: {item.pair}", []).append(item)
    return [(title, partial(_draw_kept, items=items)) for title, items in panels.items()]


def _draw_kept(axes: Any, items: Sequence[KeptBenefit]) -> None:  # noqa: ANN401 - as above
    labels = [item.system for item in items]
    axes.barh(labels, [item.kept or 0.0 for item in items], color="#3b6ea5")
    for index, item in enumerate(items):
        if item.ci95 is not None:
            axes.plot([item.ci95.low, item.ci95.high], [index, index], color="black", linewidth=1.5)
    axes.axvline(1.0, linestyle="--", linewidth=1, color="grey")
    axes.invert_yaxis()
    axes.set_xlabel("kept benefit (1 = full text, 0 = no context)")


def _draw_gradients(reports: Sequence[tuple[str, GradientReport]], path: Path) -> None:
    figure = _figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    for (name, report), colour in zip(reports, _COLOURS, strict=False):
        if not report.rows:
            continue
        probability, push = report.by_rank("probability"), report.by_rank("push")
        ranks = range(1, len(probability) + 1)
        label = f"{name}: {report.probability_helpful:.2f} on helpful documents"
        left.plot(ranks, probability, "o-", color=colour, markersize=4, label=label)
        right.plot(
            ranks, push, "o-", color=colour, markersize=4, label=f"{name}: {report.push_helpful:.2f} of the push"
        )
        left.axhline(1 / len(probability), color=_GREY, linestyle=":", linewidth=1)
    left.set(xlabel="document, by likelihood of the answer given it (1: likeliest)", ylabel="selection probability")
    right.axhline(0, color=_GREY, linestyle=":", linewidth=1)
    right.set(xlabel="document, by likelihood of the answer given it", ylabel="push of a descent step (share)")
    chance = reports[0][1].helpful
    for axes in (left, right):
        axes.locator_params(axis="x", integer=True)
    left.set_title(f"Selection (dotted: uniform; helpful by chance: {chance:.2f})", fontsize=10)
    right.set_title("Straight-through gradient, sign turned", fontsize=10)
    _save(figure, path)


def _draw_maps(maps: Sequence[tuple[str, EmbeddingMap]], path: Path) -> None:
    figure = _figure(5.2 * len(maps), 4.8)
    for axes, (name, made) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
        for label, points, colour in (
            ("mean document states", made.document, _COLOURS[0]),
            ("mean memory states", made.memory, _COLOURS[1]),
        ):
            axes.scatter(*zip(*points, strict=True), s=12, alpha=0.7, color=colour, label=label, linewidths=0)
        weight = "" if made.mse_weight is None else f", MSE weight {made.mse_weight:g}"
        axes.set_title(
            f"{name}{weight}\nMSE {made.mse:.3g}, cosine {made.cosine:.2f}, mixing {made.mixing:.2f}", fontsize=9
        )
        axes.set(xticks=[], yticks=[])
    _save(figure, path)


def _draw_attention(reports: Sequence[tuple[str, AttentionReport]], path: Path) -> None:
    """Attention by layer, a row a checkpoint; beside it one question's answer tokens against its passages."""
    figure = _figure(11, 4.2 * len(reports))
    for (left, right), (name, report) in zip(
        figure.subplots(len(reports), 2, squeeze=False, width_ratios=(2, 1)), reports, strict=True
    ):
        parts = (
            ("gold", "a gold passage", _COLOURS[0], "-"),
            ("other", "another passage", _COLOURS[1], "-"),
            ("question", "question", _COLOURS[2], "--"),
            ("first", "first position (sink)", _GREY, "--"),
            ("rest", "other words", _COLOURS[3], ":"),
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


def _draw_robustness(reports: Sequence[tuple[str, RobustnessReport]], path: Path) -> None:
    kinds = [kind for kind in _LABELS if any(report.of(kind) for _, report in reports)]
    figure = _figure(5.2 * min(2, len(kinds)), 3.9 * ((len(kinds) + 1) // 2))
    panels = figure.subplots((len(kinds) + 1) // 2, min(2, len(kinds)), squeeze=False).flatten()
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    for axes, kind in zip(panels, kinds, strict=False):
        for (name, report), colour in zip(reports, _COLOURS, strict=False):
            rows = report.of(kind)
            positions, means = range(len(rows)), [row.f1 for row in rows]
            spread = [[r.f1 - r.f1_ci95.low for r in rows], [r.f1_ci95.high - r.f1 for r in rows]]
            style = "o-" if kind in {"k", "distractors"} else "o"
            axes.errorbar(positions, means, yerr=spread, fmt=style, color=colour, capsize=3, markersize=4, label=name)
            if kind == "k":
                axes.plot(positions, [r.recall for r in rows], ":", color=colour, label="gold passages found")
            if kind == "poison":
                axes.plot(positions, [r.wrong_f1 for r in rows], "x", color=colour, label="F1 with the wrong answer")
            axes.set_xticks(positions, [row.condition.replace(" ", "\n", 1) for row in rows], fontsize=8)
        axes.set(xlabel=_LABELS[kind], ylabel="F1", ylim=(0, None))
        axes.set_title(f"n = {max((row.n for row in reports[0][1].of(kind)), default=0)}", fontsize=9)
    _save(figure, path)


def _draw_faithfulness(reports: Sequence[tuple[str, FaithfulnessReport]], path: Path) -> None:
    figure = _figure(6.4, 4)
    axes = figure.subplots()
    labels = ("cited text", "every token\nin cited text", "wrong answers,\ncited text", "another question's\ntext")
    for index, (name, report) in enumerate(reports):
        heights = (report.found, report.whole, report.wrong_found or 0.0, report.by_chance)
        axes.bar_label(_bars(axes, index, len(reports), heights, name), fmt="%.2f", fontsize=8)
    _label_bars(axes, labels, len(reports))
    axes.set(ylabel="share of answer tokens (of answers)", ylim=(0, 1.05))
    axes.set_title(f"n = {reports[0][1].n}", fontsize=9)
    _save(figure, path)


def _draw_lens(reports: Sequence[tuple[str, LensHits]], path: Path) -> None:
    figure = _figure(5.4, 4)
    axes = figure.subplots()
    for index, (name, made) in enumerate(reports):
        shares, intervals = (made.gold, made.other), (made.gold_ci95, made.other_ci95)
        below = [share - i.low for share, i in zip(shares, intervals, strict=True)]
        above = [i.high - share for share, i in zip(shares, intervals, strict=True)]
        _bars(axes, index, len(reports), shares, name, yerr=[below, above], capsize=3)
    _label_bars(axes, ("gold passages", "other candidates"), len(reports))
    axes.set(ylabel="share of the lens' words that are in")
    axes.set_title(f"n = {reports[0][1].n}", fontsize=9)
    _save(figure, path)


def _bars(axes: Any, index: int, of: int, heights: Sequence[float], name: str, **style: Any) -> Any:  # noqa: ANN401
    width = 0.8 / of
    positions = [i + index * width for i in range(len(heights))]
    return axes.bar(positions, heights, width, color=_COLOURS[index % len(_COLOURS)], label=name, **style)


def _label_bars(axes: Any, labels: Sequence[str], of: int) -> None:  # noqa: ANN401
    axes.set_xticks([i + 0.4 * (of - 1) / of for i in range(len(labels))], labels, fontsize=8)


DRAW_ANALYSIS: Mapping[str, Callable[[Sequence[tuple[str, Any]], Path], None]] = {
    "lens": _draw_lens,
    "gradient": _draw_gradients,
    "tsne": _draw_maps,
    "attention": _draw_attention,
    "robustness": _draw_robustness,
    "faithfulness": _draw_faithfulness,
}
"""Figure of an analysis by its name, drawn from (checkpoint's name, report) pairs."""


def check() -> None:
    """Refuse to start without matplotlib (MissingExtraError): a figure at the end of hours would fail."""
    _figure(1, 1)


def _figure(width: float, height: float) -> Any:  # noqa: ANN401 - matplotlib is optional
    library = optional("matplotlib.figure", package="matplotlib", extra="eval")  # pyplot would look for a display
    return library.Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _save(figure: Any, path: Path) -> None:  # noqa: ANN401 - matplotlib is optional
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        if not figure.legends and axes.get_legend() is None and axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
