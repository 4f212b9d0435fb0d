"""What a run came to: counted from the files it wrote, as a table, and drawn.

Counts all runs that wrote the same output file, not only the last.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clara.errors import MissingExtraError, SynthesisError
from clara.llm.client import Usage
from clara.synth.output import read_accepted, read_dropped

Stop = Literal["", "budget", "server"]


@dataclass(frozen=True, slots=True)
class RunFigures:
    """What only the run itself knows.

    Attributes:
        finished: passages accepted or dropped in this run.
        requests: requests sent, further attempts included.
        answered: replies that the server gave in this run.
        retried: attempts that failed and were repeated, by fault.
        spent: tokens of all replies in the cache, earlier runs included.
        spent_now: tokens of this run's replies.
        cost: price of ``spent``; 0 without prices.
        seconds: wall-clock time of this run.
        stopped: why the run ended before its passages: ``budget`` or ``server``; empty if it did not.
        message: the same in words.
    """

    finished: int = 0
    requests: int = 0
    answered: int = 0
    retried: Mapping[str, int] = field(default_factory=dict)
    spent: Usage = field(default_factory=Usage)
    spent_now: Usage = field(default_factory=Usage)
    cost: float = 0.0
    seconds: float = 0.0
    stopped: Stop = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class SynthReport:
    """The result of a synthesis.

    Attributes:
        passages: passages given.
        accepted: passages with a record.
        dropped: passages given up, by the shortcoming that they ended with.
        unfinished: passages that a later run has to finish.
        pairs: simple pairs written.
        complex_pairs: complex pairs written.
        rejections: everything that came back and was not taken, by reason.
        accepted_by_round: accepted passages by the rounds that they took.
        skipped: sources, records and passages left out before the start, by reason.
        messages: one sentence for each source that could not be read.
        run: figures of the run itself.
    """

    passages: int
    accepted: int
    dropped: Mapping[str, int]
    unfinished: int
    pairs: int
    complex_pairs: int
    rejections: Mapping[str, int]
    accepted_by_round: Mapping[int, int]
    skipped: Mapping[str, int]
    messages: tuple[str, ...]
    run: RunFigures

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """The table: what, and how many."""
        dropped = sum(self.dropped.values())
        rows = [
            ("passages", f"{self.passages:,}"),
            ("accepted", f"{self.accepted:,}{_share(self.accepted, self.accepted + dropped)}"),
            ("dropped", f"{dropped:,}{_share(dropped, self.accepted + dropped)}"),
            *((f"  dropped: {reason}", f"{count:,}") for reason, count in _ordered(self.dropped)),
            ("unfinished", f"{self.unfinished:,}"),
            ("simple pairs a record", _mean(self.pairs, self.accepted)),
            ("complex pairs a record", _mean(self.complex_pairs, self.accepted)),
            *((f"accepted in round {number}", f"{n:,}") for number, n in sorted(self.accepted_by_round.items())),
            *((f"rejected: {reason}", f"{count:,}") for reason, count in _ordered(self.rejections)),
            *((f"skipped: {reason}", f"{count:,}") for reason, count in _ordered(self.skipped)),
            *((f"retried: {reason}", f"{count:,}") for reason, count in _ordered(self.run.retried)),
            ("requests, this run", f"{self.run.requests:,}"),
            ("prompt tokens", f"{self.run.spent.prompt:,}"),
            ("completion tokens", f"{self.run.spent.completion:,}"),
        ]
        if self.run.cost:
            rows.append(("cost", f"{self.run.cost:.4g}"))
        rows.append(("seconds, this run", f"{self.run.seconds:.1f}"))
        if self.run.stopped:
            rows.append(("stopped", self.run.message))
        return rows

    def to_markdown(self) -> str:
        """The table in Markdown."""
        body = "\n".join(f"| {name.strip()} | {value} |" for name, value in self.rows())
        return f"# Synthesis report\n\n| | |\n|---|---:|\n{body}\n"


def collect(
    output: Path,
    dropped: Path,
    *,
    passages: int,
    unfinished: int,
    skipped: Mapping[str, int],
    messages: tuple[str, ...],
    run: RunFigures,
) -> SynthReport:
    """Count the files of a run."""
    rejections: Counter[str] = Counter()
    by_round: Counter[int] = Counter()
    drops: Counter[str] = Counter()
    pairs = complex_pairs = 0
    for record in read_accepted(output):
        pairs += len(record["qa"])
        complex_pairs += len(record["complex_qa"])
        by_round[record["rounds"]] += 1
        rejections.update(record["provenance"]["rejections"])
    for record in read_dropped(dropped):
        drops[record["dropped"]] += 1
        rejections.update(record["provenance"]["rejections"])
    accepted = by_round.total()
    return SynthReport(
        passages=passages,
        accepted=accepted,
        dropped=dict(drops),
        unfinished=unfinished,
        pairs=pairs,
        complex_pairs=complex_pairs,
        rejections=dict(rejections),
        accepted_by_round=dict(sorted(by_round.items())),
        skipped=dict(skipped),
        messages=messages,
        run=run,
    )


def write_report(report: SynthReport, path: Path) -> tuple[Path, Path]:
    """Write the table (Markdown) and, beside it, the plot of accepted passages by round (PNG).

    Args:
        report: what to write.
        path: the table's file, or a folder (a name without a suffix) that becomes ``report.md`` and ``report.png``.

    Returns:
        The table's and the plot's path.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SynthesisError: the files cannot be written.
    """
    table = path / "report.md" if path.is_dir() or not path.suffix else path.with_suffix(".md")
    plot = table.with_suffix(".png")
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(f"{report.to_markdown()}\n![accepted passages by round]({plot.name})\n", "utf-8")
        _draw(report, plot)
    except OSError as error:
        raise SynthesisError(f"the report {os.fspath(table)} cannot be written: {error.strerror or error}") from None
    return table, plot


def _draw(report: SynthReport, path: Path) -> None:
    try:
        # Imported when needed: it takes longer than everything else here. The Figure alone needs no display.
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("matplotlib", "synth") from None
    rounds = list(range(1, max(report.accepted_by_round, default=1) + 1))
    counts = [report.accepted_by_round.get(number, 0) for number in rounds]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.bar(rounds, counts, color="#3b6ea5")
    axes.bar_label(bars)
    axes.set_xlabel("round in which the passage was accepted")
    axes.set_ylabel("passages")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"{report.accepted:,} accepted, {sum(report.dropped.values()):,} dropped")
    figure.savefig(path, dpi=120)


def _ordered(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if whole else ""


def _mean(total: int, count: int) -> str:
    return f"{total / count:.2f}" if count else "–"
