"""The project's results as a page of its documentation: systems down, data sets across, the paper's figures apart.

Written by ``clara eval --recipe``; everything in it is in ``results.json`` too, in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from clara.errors import InputError
from clara.evaluate import published, tables
from clara.evaluate.groups import Names, groups
from clara.evaluate.report import Report, left_out, runs_table, write_whole
from clara.evaluate.system_result import SystemResult

_ValueOf = Callable[[SystemResult], float | None]


def write_page(report: Report, path: Path, *, note: str = "") -> None:
    """Write the page; ``note`` stands before its figures.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page(report, note=note))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def page(report: Report, *, note: str = "") -> str:
    """The page as Markdown."""
    origin = report.provenance
    results = report.outcome.results
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
    sections: dict[tuple[str, str, int], list[SystemResult]] = {}
    for group, own in groups(results).items():
        sections.setdefault((group.setting, group.given, group.k), []).extend(own)
    for section in sections.values():
        parts += _section(section, names)
    if report.kept:
        parts += [
            "### Kept benefit\n",
            "(F1 system - F1 none) / (F1 text - F1 none), 95 % bootstrap interval in brackets.\n",
            tables.benefit_table(report.kept, names),
        ]
    parts += _paper()
    parts += ["## Runs\n", runs_table(results), *left_out(report)]
    return "\n".join(parts)


def _section(results: Sequence[SystemResult], names: Names) -> list[str]:
    """Results of one setting, given the same, with the same k."""
    subject = results[0].subject
    what = "the gold documents only" if subject.given == "gold" else "all candidates"
    parts = [
        f"### {subject.setting.capitalize()}, {what} given{names.k(subject)}\n",
        f"Percent; n: questions of each data set, counted from its first. {_fewer(results)}\n",
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


def _fewer(results: Sequence[SystemResult]) -> str:
    """What to keep in mind where systems were asked different numbers of questions."""
    if len({len(result.rows) for result in results}) == 1:
        return "All systems were asked the same questions."
    return "Systems with a smaller n were asked the first of the same questions: compare them with care."


def _rankings(results: Sequence[SystemResult], names: Names) -> list[str]:
    """Systems that only rank, on the questions that all of them ranked; nothing where there is none."""
    ranked = [result for result in results if result.retrieval is not None and not result.n]
    shared: dict[str, set[int]] = {}
    for result in ranked:
        places = {place for place, row in enumerate(result.rows) if row.ranking is not None}
        name = names.data(result.subject)
        shared[name] = shared.get(name, places) & places
    columns = [name for name, places in shared.items() if places]
    if not columns:
        return []

    def mean(result: SystemResult | None, measure: str) -> float | None:
        if result is None:
            return None
        return fmean((result.rows[place].ranking or {})[measure] for place in shared[names.data(result.subject)])

    def over_all(own: dict[str, SystemResult], measure: str) -> float | None:
        return fmean(mean(own[name], measure) or 0.0 for name in columns) if own.keys() >= set(columns) else None

    rows = []
    for label in dict.fromkeys(result.subject.label for result in ranked):
        own = {names.data(result.subject): result for result in ranked if result.subject.label == label}
        cells = [tables.percent(mean(own.get(name), "R@5")) for name in columns]
        means = [tables.percent(over_all(own, measure)) for measure in ("R@5", "R@1", "RR")]
        rows.append([label, *cells, *means])
    headings = ["ranking", *columns, "mean", "Recall@1, mean", "MRR, mean"]
    counts = ", ".join(f"{name} {len(shared[name])}" for name in columns)
    what = f"Recall@5 of rankings of the same candidates, on the questions that all of these ranked ({counts}):\n"
    return [what, tables.markdown(headings, rows)]


def _count(own: Sequence[SystemResult]) -> str:
    """Questions a data set that are in a row's means."""
    counts = sorted({result.n for result in own})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _across(results: Sequence[SystemResult], names: Names, value_of: _ValueOf, *, intervals: bool) -> str:
    """Systems down, data sets across, a mean at the end where a system was measured on all of them."""
    columns = list(dict.fromkeys(names.data(result.subject) for result in results))
    rows = []
    for label in dict.fromkeys(result.subject.label for result in results):
        own = {names.data(result.subject): result for result in results if result.subject.label == label}
        values = {name: value_of(own[name]) if name in own else None for name in columns}
        if all(value is None for value in values.values()):
            continue
        cells = [
            tables.with_interval(values[name], ci.f1)
            if intervals and name in own and (ci := own[name].ci95) is not None
            else tables.percent(values[name])
            for name in columns
        ]
        known = [value for value in values.values() if value is not None]
        mean = tables.percent(fmean(known) if len(known) == len(columns) else None)
        rows.append([label, _count(list(own.values())), *cells, mean])
    return tables.markdown(["system", "n", *columns, "mean"], rows)


def _costs(results: Sequence[SystemResult]) -> str:
    """Context read and time to the first token, averaged over the data sets."""
    rows = []
    for label in dict.fromkeys(result.subject.label for result in results):
        own = [result for result in results if result.subject.label == label and result.n]
        if not own:
            continue
        context = fmean(result.context_tokens or 0.0 for result in own)
        shares = [result.compressed_to for result in own if result.compressed_to]
        seconds = [result.first_token_seconds for result in own if result.first_token_seconds is not None]
        rows.append(
            [
                label,
                f"{context:,.0f}",
                f"{1 / fmean(shares):.1f}x" if shares else tables.DASH,
                tables.milliseconds(fmean(seconds) if seconds else None),
            ]
        )
    return tables.markdown(["system", "context, positions", "compressed", "first token, ms"], rows)


def _paper() -> list[str]:
    """The published figures, and why they stand apart."""
    parts = [
        "## The paper's figures (7 billion parameters; not comparable)\n",
        "> From arXiv 2511.18659 (v3): Mistral-7B-Instruct on 8 H100, retrieval over all of Wikipedia, full test sets. "
        "They are here for orientation only: another backbone of fifty times the size, other candidates and other "
        "questions. No line above can be compared with a line below.\n",
    ]
    for place, setting in enumerate(("normal (top 5 of BGE-large)", "oracle")):
        rows = [[name, *(f"{value:.2f}" for value in settings[place])] for name, settings in published.COVER_EM.items()]
        parts += [f"Cover-EM, {setting}:\n", tables.markdown(["7B system", *published.COLUMNS], rows)]
    rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in published.END_TO_END_F1.items()]
    parts += ["F1, trained end to end:\n", tables.markdown(["7B system", *published.COLUMNS[:-1]], rows)]
    recalls = [[name, f"{value:.2f}"] for name, value in published.RECALL_AT_5.items()]
    parts += ["Recall@5 as reranker of 20, HotpotQA, oracle:\n", tables.markdown(["7B system", "Recall@5"], recalls)]
    return parts
