"""Markdown tables of results: numbers for people, in percent, a dash where nothing was measured."""

from __future__ import annotations

from collections.abc import Sequence

from clara.evaluate.benefit import KeptBenefit
from clara.evaluate.groups import Names
from clara.evaluate.significance import Comparison
from clara.evaluate.system_result import SystemResult
from clara.metrics import Interval

DASH = "–"
SIGNIFICANT = 0.05
"""Corrected p below which a difference is shown in bold."""


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def percent(value: float | None, *, digits: int = 1) -> str:
    """0.1234 as 12.3."""
    return DASH if value is None else f"{100 * value:.{digits}f}"


def with_interval(value: float | None, interval: Interval | None) -> str:
    """12.3 (10.1 to 14.9)."""
    if value is None or interval is None:
        return percent(value)
    return f"{percent(value)} ({percent(interval.low)} to {percent(interval.high)})"


def milliseconds(seconds: float | None) -> str:
    """Seconds as whole milliseconds."""
    return DASH if seconds is None else f"{1000 * seconds:,.0f}"


def answers_table(results: Sequence[SystemResult]) -> str:
    """Answer scores, context and time of the systems on one data set."""
    rows = []
    for result in results:
        ci = result.ci95
        rows.append(
            [
                result.subject.label,
                f"{result.n:,}",
                f"{result.errors:,}" if result.errors else "0",
                with_interval(result.em, ci.em if ci else None),
                with_interval(result.f1, ci.f1 if ci else None),
                with_interval(result.cover_em, ci.cover_em if ci else None),
                DASH if result.context_tokens is None or not result.n else f"{result.context_tokens:,.0f}",
                DASH if result.compressed_to is None else f"{1 / result.compressed_to:.1f}x",
                milliseconds(result.first_token_seconds),
                f"`{result.subject.key}`",
            ]
        )
    headings = ["system", "n", "errors", "EM", "F1", "cover-EM", "context", "compressed", "first token, ms", "run"]
    return markdown(headings, rows)


def retrieval_table(results: Sequence[SystemResult]) -> str | None:
    """Rankings of the systems on one data set; None if nothing was ranked."""
    ranked = [result for result in results if result.retrieval is not None]
    if not ranked:
        return None
    shown = ("R@1", "R@3", "R@5", "R@10", "P@1", "P@5", "nDCG@10", "RR")
    rows = [
        [
            result.subject.label,
            f"{result.ranked:,}",
            f"{result.without_gold:,}",
            *(percent((result.retrieval or {})[name]) for name in shown),
            f"`{result.subject.key}`",
        ]
        for result in ranked
    ]
    names = [name.replace("R@", "Recall@").replace("P@", "Precision@") for name in shown[:-1]]
    return markdown(["system", "ranked", "no gold", *names, "MRR", "run"], rows)


def abstention_table(results: Sequence[SystemResult]) -> str | None:
    """Abstentions against unanswerable questions; None if there are none."""
    rows = [
        [
            result.subject.label,
            f"{found.unanswerable:,}",
            f"{found.abstained:,}",
            percent(found.precision),
            percent(found.recall),
        ]
        for result in results
        if (found := result.abstention) is not None
    ]
    return markdown(["system", "unanswerable", "abstained", "precision", "recall"], rows) if rows else None


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Pairs of systems, the clear differences in bold."""
    rows = []
    for found in comparisons:
        difference = f"{100 * found.difference:+.1f}"
        rows.append(
            [
                f"{found.first} – {found.second}",
                f"{found.n:,}",
                f"**{difference}**" if found.p_holm < SIGNIFICANT else difference,
                f"{found.p:.4f}",
                f"{found.p_holm:.4f}",
            ]
        )
    return markdown(["pair", "n", "difference in F1", "p", "p, Holm"], rows)


def benefit_table(kept: Sequence[KeptBenefit], names: Names) -> str:
    """Kept benefit by data set and pair; ``names`` tells the data sets apart."""
    rows = [
        [
            f"{names.data(item.group)} {item.group.setting}, {item.group.given}{names.k(item.group)}",
            item.pair,
            item.system,
            f"{item.n:,}",
            percent(item.none),
            percent(item.text),
            percent(item.memory),
            _ratio(item),
        ]
        for item in kept
    ]
    return markdown(["data", "between", "system", "n", "F1 none", "F1 text", "F1 system", "kept"], rows)


def _ratio(item: KeptBenefit) -> str:
    if item.kept is None:
        return "text does not help"
    if item.ci95 is None:
        return f"{item.kept:.2f}"
    return f"{item.kept:.2f} ({item.ci95.low:.2f} to {item.ci95.high:.2f})"
