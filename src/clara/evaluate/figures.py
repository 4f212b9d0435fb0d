"""Figures of results, as PNG: F1 against rate, Recall@k, time to the first token against F1, kept benefit.

A figure without anything to show is not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from clara.errors import MissingExtraError
from clara.evaluate.benefit import KeptBenefit
from clara.evaluate.groups import Group, Names, groups
from clara.evaluate.retrieval import RECALL_DEPTHS
from clara.evaluate.system_result import SystemResult

_DPI = 120
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

Panel: TypeAlias = tuple[str, Callable[[Any], None]]
"""A title, and what draws into matplotlib axes."""


def draw_all(results: Sequence[SystemResult], kept: Sequence[KeptBenefit], folder: Path) -> list[Path]:
    """Draw what there is to draw.

    Returns:
        The figures written, in ``folder``.

    Raises:
        InputError: two results are of one system on the same questions.
        MissingExtraError: matplotlib is not installed.
    """
    names = Names(result.subject for result in results)
    figures = {
        "f1_rate.png": _f1_rate(results, names),
        "recall.png": _recall(results, names),
        "first_token_f1.png": _first_token(results, names),
        "kept_benefit.png": _kept(kept, names),
    }
    written = []
    for name, panels in figures.items():
        if panels:
            _save(panels, folder / name)
            written.append(folder / name)
    return written


def _save(panels: Sequence[Panel], path: Path) -> None:
    try:
        # The Figure alone needs no display.
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("matplotlib", "eval") from None
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained")
    shown: dict[str, Any] = {}
    for place, (title, draw) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(title)
        draw(axes)
        axes.grid(visible=True, alpha=0.3)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    if shown:
        # One for all panels and below them: a style means the same system everywhere, and no point is hidden.
        wide = _LEGEND_COLUMNS * columns
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=wide, fontsize=8)
    figure.savefig(path, dpi=_DPI)


@dataclass(frozen=True, slots=True)
class _Styles:
    """A colour for each system, a marker and a line for each rate; the same in every panel.

    Attributes:
        systems: in order of first appearance.
        rates: those asked for, in order.
    """

    systems: tuple[str, ...]
    rates: tuple[int, ...]

    @classmethod
    def of(cls, results: Sequence[SystemResult]) -> _Styles:
        """The styles of some results."""
        systems = tuple(dict.fromkeys(result.subject.system for result in results))
        return cls(systems, tuple(sorted({r.subject.rate for r in results if r.subject.rate is not None})))

    def color(self, system: str) -> str:
        """Twenty colours, then from the first again."""
        return _COLORS[self.systems.index(system) % len(_COLORS)]

    def marker(self, rate: int | None) -> str:
        """A plain dot without a rate."""
        return "o" if rate is None else _MARKERS[self.rates.index(rate) % len(_MARKERS)]

    def line(self, rate: int | None) -> str:
        """A full line without a rate."""
        return "-" if rate is None else _LINES[self.rates.index(rate) % len(_LINES)]


def _title(group: Group, names: Names) -> str:
    return f"{names.data(group)}, {group.setting}, {group.given}{names.k(group)}"


def _f1_rate(results: Sequence[SystemResult], names: Names) -> list[Panel]:
    """F1 with its interval at each rate; systems without a rate as level lines."""
    styles = _Styles.of([result for result in results if result.f1 is not None])
    return [
        (_title(group, names), lambda axes, own=own: _draw_f1_rate(axes, own, styles))  # type: ignore[misc]
        for group, own in groups(results).items()
        if any(result.subject.rate is not None and result.f1 is not None for result in own)
    ]


def _draw_f1_rate(axes: Any, group: Sequence[SystemResult], styles: _Styles) -> None:  # noqa: ANN401 - no types here
    scored = [result for result in group if result.f1 is not None and result.ci95 is not None]
    drawn = 0
    for name in dict.fromkeys(result.subject.system for result in scored):
        points = sorted(
            (result for result in scored if result.subject.system == name), key=lambda result: result.subject.rate or 0
        )
        values = [100 * (result.f1 or 0.0) for result in points]
        if points[0].subject.rate is None:
            axes.axhline(values[0], linestyle="--", linewidth=1, color=styles.color(name), label=name)
            continue
        spread = [
            [100 * abs((result.f1 or 0.0) - bound) for result in points for bound in [getattr(result.ci95.f1, side)]]  # type: ignore[union-attr]
            for side in ("low", "high")
        ]
        shift = 1 + _SHIFT * drawn
        drawn = -drawn if drawn > 0 else 1 - drawn
        rates = [shift * (result.subject.rate or 0) for result in points]
        axes.errorbar(rates, values, yerr=spread, marker="o", capsize=3, color=styles.color(name), label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({result.subject.rate for result in scored if result.subject.rate is not None})
    axes.set_xticks(ticks, [f"{rate}x" for rate in ticks])
    axes.set_xlabel("compression rate")
    axes.set_ylabel("F1, %")


def _recall(results: Sequence[SystemResult], names: Names) -> list[Panel]:
    """Recall@k of the systems that only rank; of those that answer too only where nothing else ranked."""
    ranked = [result for result in results if result.retrieval is not None]
    ranked = [result for result in ranked if not result.n] or ranked
    styles = _Styles.of(ranked)
    return [
        (_title(group, names), lambda axes, own=own: _draw_recall(axes, own, styles))  # type: ignore[misc]
        for group, own in groups(ranked).items()
    ]


def _draw_recall(axes: Any, group: Sequence[SystemResult], styles: _Styles) -> None:  # noqa: ANN401 - as above
    for result in group:
        if result.retrieval is not None:
            name, rate = result.subject.system, result.subject.rate
            values = [100 * result.retrieval[f"R@{depth}"] for depth in RECALL_DEPTHS]
            style = {"color": styles.color(name), "marker": styles.marker(rate), "linestyle": styles.line(rate)}
            axes.plot(RECALL_DEPTHS, values, label=result.subject.label, **style)
    axes.set_xticks(RECALL_DEPTHS)
    axes.set_xlabel("k")
    axes.set_ylabel("Recall@k, %")


def _first_token(results: Sequence[SystemResult], names: Names) -> list[Panel]:
    """F1 against the time to the first token, a point a system."""
    timed = [result for result in results if result.first_token_seconds is not None and result.f1 is not None]
    styles = _Styles.of(timed)
    return [
        (_title(group, names), lambda axes, own=own: _draw_first_token(axes, own, styles))  # type: ignore[misc]
        for group, own in groups(timed).items()
    ]


def _draw_first_token(axes: Any, group: Sequence[SystemResult], styles: _Styles) -> None:  # noqa: ANN401 - as above
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415 - optional; loaded by now

    for result in group:
        name, rate = result.subject.system, result.subject.rate
        seconds = 1000 * (result.first_token_seconds or 0.0)
        style = {"color": styles.color(name), "marker": styles.marker(rate), "linestyle": ""}
        axes.plot([seconds], [100 * (result.f1 or 0.0)], label=result.subject.label, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time to the first token, ms (median, log scale)")
    axes.set_ylabel("F1, %")


def _kept(kept: Sequence[KeptBenefit], names: Names) -> list[Panel]:
    """Kept benefit as bars, a panel a data set and pair."""
    found: dict[str, list[KeptBenefit]] = {}
    for item in kept:
        if item.kept is not None:
            found.setdefault(f"{_title(item.group, names)}: {item.pair}", []).append(item)
    return [
        (title, lambda axes, items=items: _draw_kept(axes, items))  # type: ignore[misc]
        for title, items in found.items()
    ]


def _draw_kept(axes: Any, items: Sequence[KeptBenefit]) -> None:  # noqa: ANN401 - as above
    labels = [item.system for item in items]
    axes.barh(labels, [item.kept or 0.0 for item in items], color="#3b6ea5")
    for place, item in enumerate(items):
        if item.ci95 is not None:
            axes.plot([item.ci95.low, item.ci95.high], [place, place], color="black", linewidth=1.5)
    axes.axvline(1.0, linestyle="--", linewidth=1, color="grey")
    axes.invert_yaxis()
    axes.set_xlabel("kept benefit (1 = full text, 0 = no context)")
