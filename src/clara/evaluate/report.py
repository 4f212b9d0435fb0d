"""Reports of a grid: ``results.json``, ``rows.jsonl``, ``report.md`` with figures, and the documentation's page.

Every number belongs to a run, and every run has a row with its origin: data, checkpoint, settings, commit, machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from clara.data import write_jsonl
from clara.errors import InputError, ModelError
from clara.evaluate.journal import Provenance
from clara.evaluate.plots import draw_all
from clara.evaluate.questions import Group, GroupNames, Task
from clara.evaluate.results import Result, Scoring, grouped, plain
from clara.evaluate.run import GridResult
from clara.evaluate.statistics import Benefit, Comparison, KeptBenefit, compare_all, kept_benefits
from clara.metrics import mean_of_known

_SHOWN_HASH = 12
_DASH = "–"
_SIGNIFICANT = 0.05
"""Corrected p below which a difference is bold."""
_PAPER = Path(__file__).with_name("paper.md")
"""The paper's own figures (clara.md section 9): another backbone, other candidates, shown for orientation."""


@dataclass(frozen=True, slots=True)
class GridReport:
    """Results of a grid with kept benefits, and comparisons of systems on the same questions."""

    grid: GridResult
    provenance: Provenance
    scoring: Scoring
    kept: tuple[KeptBenefit, ...]
    comparisons: Mapping[Group, Sequence[Comparison]]

    @property
    def names(self) -> GroupNames:
        """Names of its groups."""
        return GroupNames(result.group for result in self.grid.results)

    def to_json(self) -> dict[str, object]:
        """The object in ``results.json``."""
        names = self.names
        return {
            "provenance": asdict(self.provenance),
            "scoring": plain(self.scoring),
            "results": plain(self.grid.results),
            "kept_benefit": [item.to_json() for item in self.kept],
            "comparisons": {
                f"{names.data(group)} {group.setting} {group.given}{names.k(group)}": plain(pairs)
                for group, pairs in self.comparisons.items()
            },
            "not_run": dict(self.grid.not_run),
            "left_out": {name: dict(reasons) for name, reasons in self.grid.left_out.items()},
        }


def make_report(grid: GridResult, origin: Provenance, scoring: Scoring, pairs: Sequence[Benefit] = ()) -> GridReport:
    """Compare the results of a grid.

    Raises:
        InputError: two results are of one system on the same questions.
        MissingExtraError: scipy is not installed.
    """
    comparisons = {}
    for group, own in grouped(grid.results).items():
        scores = {result.label: result.f1_by_question() for result in own if result.n}
        if len(scores) > 1:
            comparisons[group] = compare_all(scores, seed=scoring.seed)
    kept = kept_benefits(grid.results, pairs, resamples=scoring.resamples, seed=scoring.seed)
    return GridReport(grid, origin, scoring, tuple(kept), comparisons)


def write_report(report: GridReport, folder: Path) -> list[Path]:
    """Write all files into a folder, and return their paths.

    Raises:
        InputError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = draw_all(report.grid.results, report.kept, folder)
        write_json(folder / "results.json", report.to_json())
        _write_whole(folder / "report.md", _to_markdown(report, [path.name for path in figures]))
    except OSError as error:
        raise InputError(f"the report in {folder} cannot be written: {error.strerror or error}") from None
    rows = folder / "rows.jsonl"
    write_jsonl(
        rows,
        ({"run": result.key, **row.to_json()} for result in report.grid.results for row in result.rows),
    )
    return [folder / "report.md", folder / "results.json", rows, *figures]


def model_summary(result: Result, *, model: str, context: str, rate: int | None) -> dict[str, object]:
    """The object that ``clara eval --json`` prints (ModelError: every question gave an error)."""
    if result.errors == len(result.rows):
        reasons = Counter(result.error_reasons).most_common(3)
        listed = "; ".join(f"{count} times {reason}" for reason, count in reasons)
        raise ModelError(f"none of {len(result.rows)} questions could be answered: {listed}")
    summary: dict[str, object] = {
        "n": result.n,
        "em": result.em,
        "f1": result.f1,
        "cover_em": result.cover_em,
        "recall_at_5": result.retrieval["R@5"] if result.retrieval is not None else None,
        "errors": result.errors,
        "ci95": plain(result.ci95),
        "context": context,
        "rate": rate,
        "model": model,
        "data_sha256": result.data_sha256,
    }
    return summary if result.abstention is None else {**summary, "abstention": plain(result.abstention)}


def write_model_report(
    folder: Path, task: Task, result: Result, summary: Mapping[str, object], origin: Provenance
) -> None:
    """Write ``results.json``, ``rows.jsonl`` and ``provenance.json`` of one model into an existing folder."""
    write_jsonl(folder / "rows.jsonl", _model_rows(task, result))
    for name, value in (("results.json", summary), ("provenance.json", asdict(origin))):
        write_json(folder / name, value)


def _model_rows(task: Task, result: Result) -> Iterator[dict[str, object]]:
    """Rows of one model; ``docs`` are indices into the record's documents."""
    for question, row in zip(task.questions, result.rows, strict=True):
        gold = sorted(question.gold)
        yield {
            **row.to_json(),
            "recall_at_5": row.ranking["R@5"] if row.ranking is not None else None,
            "docs": [gold[index] for index in row.used] if task.given == "gold" else list(row.used),
        }


def write_json(path: Path, value: object, *, indent: int = 2) -> None:
    """Write a JSON file for people too; it appears only when it is complete."""
    _write_whole(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _to_markdown(report: GridReport, figures: Sequence[str] = ()) -> str:
    names = report.names
    parts = ["# Evaluation\n", _origin(report.provenance, report.scoring)]
    for group, own in grouped(report.grid.results).items():
        parts.append(f"## {names.data(group)}, {group.setting}, given {group.given}{names.k(group)}\n")
        parts += _data_set(own, report.comparisons.get(group, ()))
    if report.kept:
        parts += ["## Kept benefit\n", _BENEFIT, _benefit_table(report.kept, names)]
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in figures]
    parts += ["## Runs\n", _runs_table(report.grid.results)]
    parts += _left_out(report)
    return "\n".join(parts)


_BENEFIT = (
    "kept = (F1 system - F1 none) / (F1 text - F1 none), over the questions that all three answered; 95 % bootstrap "
    "interval in brackets.\n"
)


def _data_set(group: Sequence[Result], comparisons: Sequence[Comparison]) -> list[str]:
    parts = [
        f"Candidates: {'; '.join(dict.fromkeys(result.candidates for result in group))}. "
        "Scores are means in percent with 95 % bootstrap intervals over the questions that were answered.\n",
    ]
    if answering := [result for result in group if result.n or result.errors]:
        parts.append(_answers_table(answering))
    if any(result.retrieval is not None for result in group):
        parts.append(_retrieval_table(group))
    if any(result.abstention is not None for result in group):
        parts.append(_abstention_table(group))
    if comparisons:
        parts += [
            "Paired permutation tests on F1; bold: p below 0.05 after Holm's correction over this table.\n",
            _comparison_table(comparisons),
        ]
    for result in group:
        parts += [
            f"- {result.label}: {count} questions gave an error and are not scored: {reason}\n"
            for reason, count in result.common_errors()
        ]
    return parts


def _runs_table(results: Sequence[Result]) -> str:
    def origins(result: Result, name: str, show: Callable[[str], str] = str) -> str:
        return ", ".join(dict.fromkeys(show(str(origin.get(name, _DASH))) for origin in result.origins)) or _DASH

    headings = "run", "system", "data", "data SHA-256", "system fingerprint", "settings", "commit", "started (UTC)"
    rows = [
        (
            f"`{result.key}`",
            result.label,
            f"{result.data} {result.setting}",
            f"`{result.data_sha256[:16]}`",
            f"`{result.fingerprint}`",
            f"given {result.given}, k {result.k}, at most {result.max_new_tokens} tokens",
            origins(result, "commit", _short),
            origins(result, "started"),
        )
        for result in results
    ]
    return _markdown(headings, rows)


def _short(commit: str) -> str:
    """A commit with its hash cut and its mark of changed files kept; ``version X`` as it is."""
    sha, plus, mark = commit.partition("+")
    return commit if sha.startswith("version ") else f"{sha[:_SHOWN_HASH]}{plus}{mark}"


def _origin(origin: Provenance, scoring: Scoring) -> str:
    return (
        f"Command: `{origin.command}`  \n"
        f"Commit: {origin.commit}; checkpoint: {origin.model} (`{origin.checkpoint}`); seed {scoring.seed}, "
        f"{scoring.resamples:,} bootstrap samples; scored as {scoring.rule}  \n"
        f"Machine: {origin.cpu}, {origin.cores} cores, device {origin.device}, torch {origin.torch}, "
        f"Python {origin.python}; started {origin.started}\n"
    )


def _left_out(report: GridReport) -> list[str]:
    same: dict[str, list[str]] = {}
    for name, reason in report.grid.not_run.items():
        same.setdefault(reason, []).append(name)
    parts = [f"- not run: {', '.join(names)}: {reason}\n" for reason, names in same.items()]
    for name, reasons in report.grid.left_out.items():
        parts += [f"- {name}: left out: {count} {reason}\n" for reason, count in reasons.items()]
    return ["## Left out\n", *parts] if parts else []


_ValueOf = Callable[[Result], float | None]


def write_page(report: GridReport, path: Path, *, note: str = "") -> None:
    """Write the documentation's page, ``note`` before its figures (InputError: it cannot be written)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, _page(report, note=note))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _page(report: GridReport, *, note: str = "") -> str:
    origin = report.provenance
    results = report.grid.results
    names = report.names
    parts = [
        "# Results\n",
        "Written by the command below; do not edit. docs/evaluation.md says what is measured and how; "
        "each number's run is listed at the end.\n",
        f"- command: `{origin.command}`\n"
        f"- commit: {origin.commit}; checkpoint: {origin.model} (`{origin.checkpoint}`)\n"
        f"- machine: {origin.cpu}, {origin.cores} cores, device {origin.device}, torch {origin.torch}; "
        f"seed {report.scoring.seed}\n"
        f"- started {origin.started}\n",
        "## This checkpoint\n",
        *([f"{note.strip()}\n"] if note.strip() else []),
    ]
    sections: dict[tuple[str, str, int], list[Result]] = {}
    for group, own in grouped(results).items():
        sections.setdefault((group.setting, group.given, group.k), []).extend(own)
    for section in sections.values():
        parts += _section(section, names)
    if report.kept:
        parts += [
            "### Kept benefit\n",
            "(F1 system - F1 none) / (F1 text - F1 none), 95 % bootstrap interval in brackets.\n",
            _benefit_table(report.kept, names),
        ]
    parts.append(_PAPER.read_text(encoding="utf-8"))
    parts += ["## Runs\n", _runs_table(results), *_left_out(report)]
    return "\n".join(parts)


def _section(results: Sequence[Result], names: GroupNames) -> list[str]:
    first = results[0]
    given = "the gold documents only" if first.given == "gold" else "all candidates"
    asked = "All systems were asked the same questions."
    if len({len(result.rows) for result in results}) > 1:
        asked = "Systems with a smaller n were asked the first of the same questions: compare them with care."
    parts = [
        f"### {first.setting.capitalize()}, {given} given{names.k(first.group)}\n",
        f"Percent; n: questions of each data set, counted from its first. {asked}\n",
    ]
    measured: list[tuple[str, _ValueOf]] = [
        ("F1 (95 % interval)", lambda result: result.f1),
        ("Cover-EM", lambda result: result.cover_em),
        ("Exact match", lambda result: result.em),
    ]
    for name, value_of in measured:
        if any(value_of(result) is not None for result in results):
            parts += [f"{name}:\n", _across(results, names, value_of, intervals=name.startswith("F1"))]
    parts += _rankings(results, names)
    if any(result.first_token_seconds is not None or result.n for result in results):
        parts += ["Cost of a question:\n", _costs(results)]
    errors = sum(result.errors for result in results)
    parts.append(f"Questions that gave an error, and are in no mean: {errors}.\n")
    return parts


def _rankings(results: Sequence[Result], names: GroupNames) -> list[str]:
    """Systems that only rank, on the questions that all of them ranked."""
    ranked = [result for result in results if result.retrieval is not None and not result.n]
    shared: dict[str, set[int]] = {}
    for result in ranked:
        indices = {index for index, row in enumerate(result.rows) if row.ranking is not None}
        name = names.data(result.group)
        shared[name] = shared.get(name, indices) & indices
    columns = [name for name, indices in shared.items() if indices]
    if not columns:
        return []

    rows = []
    for label in dict.fromkeys(result.label for result in ranked):
        own = {names.data(result.group): result for result in ranked if result.label == label}

        def mean(name: str, measure: str, own: Mapping[str, Result] = own) -> float | None:
            return fmean((own[name].rows[i].ranking or {})[measure] for i in shared[name]) if name in own else None

        cells = [mean(name, "R@5") for name in columns]
        for measure in ("R@5", "R@1", "RR"):
            means = [value for name in columns if (value := mean(name, measure)) is not None]
            cells.append(fmean(means) if len(means) == len(columns) else None)
        rows.append([label, *map(_percent, cells)])
    headings = ["ranking", *columns, "mean", "Recall@1, mean", "MRR, mean"]
    counts = ", ".join(f"{name} {len(shared[name])}" for name in columns)
    what = f"Recall@5 of rankings of the same candidates, on the questions that all of these ranked ({counts}):\n"
    return [what, _markdown(headings, rows)]


def _across(results: Sequence[Result], names: GroupNames, value_of: _ValueOf, *, intervals: bool) -> str:
    """Systems down, data sets across, and the mean of systems measured on all of them."""
    columns = list(dict.fromkeys(names.data(result.group) for result in results))
    rows = []
    for label in dict.fromkeys(result.label for result in results):
        own = {names.data(result.group): result for result in results if result.label == label}
        values = {name: value_of(own[name]) if name in own else None for name in columns}
        if all(value is None for value in values.values()):
            continue
        cells = [
            _with_interval(own[name], "f1") if intervals and name in own else _percent(values[name]) for name in columns
        ]
        known = [value for value in values.values() if value is not None]
        mean = _percent(fmean(known) if len(known) == len(columns) else None)
        counts = sorted({result.n for result in own.values()})
        n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        rows.append([label, n, *cells, mean])
    return _markdown(["system", "n", *columns, "mean"], rows)


def _costs(results: Sequence[Result]) -> str:
    by_label: dict[str, list[Result]] = {}
    for result in results:
        if result.n:
            by_label.setdefault(result.label, []).append(result)
    rows = []
    for label, own in by_label.items():
        share = mean_of_known(result.compressed_to or None for result in own)
        time = mean_of_known(result.first_token_seconds for result in own)
        context = fmean(result.context_tokens or 0.0 for result in own)
        rows.append([label, f"{context:,.0f}", _compressed(share), _milliseconds(time)])
    return _markdown(["system", "context, positions", "compressed", "first token, ms"], rows)


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.1f}"


def _with_interval(result: Result, name: str) -> str:
    """A mean with its interval: 12.3 (10.1 to 14.9)."""
    mean = _percent(getattr(result, name))
    interval = (result.ci95 or {}).get(name)
    return mean if interval is None else f"{mean} ({_percent(interval.low)} to {_percent(interval.high)})"


def _milliseconds(seconds: float | None) -> str:
    return _DASH if seconds is None else f"{1000 * seconds:,.0f}"


def _compressed(share: float | None) -> str:
    return f"{1 / share:.1f}x" if share else _DASH


def _answers_table(results: Sequence[Result]) -> str:
    headings = "system", "n", "errors", "EM", "F1", "cover-EM", "context", "compressed", "first token, ms", "run"
    rows = [
        (
            result.label,
            f"{result.n:,}",
            f"{result.errors:,}",
            *(_with_interval(result, name) for name in ("em", "f1", "cover_em")),
            f"{result.context_tokens:,.0f}" if result.n and result.context_tokens is not None else _DASH,
            _compressed(result.compressed_to),
            _milliseconds(result.first_token_seconds),
            f"`{result.key}`",
        )
        for result in results
    ]
    return _markdown(headings, rows)


def _retrieval_table(results: Sequence[Result]) -> str:
    shown = ("R@1", "R@3", "R@5", "R@10", "P@1", "P@5", "nDCG@10", "RR")
    headings = [name.replace("R@", "Recall@").replace("P@", "Precision@").replace("RR", "MRR") for name in shown]
    rows = [
        (
            result.label,
            f"{result.ranked:,}",
            f"{result.without_gold:,}",
            *(_percent(means[name]) for name in shown),
            f"`{result.key}`",
        )
        for result in results
        if (means := result.retrieval) is not None
    ]
    return _markdown(["system", "ranked", "no gold", *headings, "run"], rows)


def _abstention_table(results: Sequence[Result]) -> str:
    rows = [
        (
            result.label,
            f"{counts.unanswerable:,}",
            f"{counts.abstained:,}",
            _percent(counts.precision),
            _percent(counts.recall),
        )
        for result in results
        if (counts := result.abstention) is not None
    ]
    return _markdown(("system", "unanswerable", "abstained", "precision", "recall"), rows)


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for pair in comparisons:
        bold = "**" if pair.p_holm < _SIGNIFICANT else ""
        difference = f"{bold}{100 * pair.difference:+.1f}{bold}"
        rows.append((f"{pair.first} – {pair.second}", f"{pair.n:,}", difference, f"{pair.p:.4f}", f"{pair.p_holm:.4f}"))
    return _markdown(("pair", "n", "difference in F1", "p", "p, Holm"), rows)


def _benefit_table(kept: Sequence[KeptBenefit], names: GroupNames) -> str:
    rows = []
    for item in kept:
        group = item.group
        ratio = "text does not help" if item.kept is None else f"{item.kept:.2f}"
        if item.ci95 is not None:
            ratio += f" ({item.ci95.low:.2f} to {item.ci95.high:.2f})"
        data = f"{names.data(group)} {group.setting}, {group.given}{names.k(group)}"
        scores = map(_percent, (item.none, item.text, item.memory))
        rows.append((data, item.pair, item.system, f"{item.n:,}", *scores, ratio))
    return _markdown(("data", "between", "system", "n", "F1 none", "F1 text", "F1 system", "kept"), rows)
