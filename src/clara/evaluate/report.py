"""Write what a run gave: ``results.json``, ``rows.jsonl``, ``report.md`` and the figures.

Every number in the report stands in a line with a run, and every run has a line that says where its numbers come
from: data, checkpoint, settings, commit, command, machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clara.data import write_jsonl
from clara.errors import InputError
from clara.evaluate import tables
from clara.evaluate.benefit import KeptBenefit, f1_by_question, kept_benefits
from clara.evaluate.contest import Scoring
from clara.evaluate.figures import draw_all
from clara.evaluate.grid import Benefit, Outcome
from clara.evaluate.groups import Group, Names, groups
from clara.evaluate.provenance import Provenance
from clara.evaluate.significance import Comparison, compare_all
from clara.evaluate.system_result import SystemResult

_SHOWN_REASONS = 5
_SHOWN_HASH = 12


@dataclass(frozen=True, slots=True)
class Report:
    """A run's outcome with all that follows from it.

    Attributes:
        outcome: the results.
        provenance: of this process.
        scoring: how replies were scored.
        kept: kept benefits.
        comparisons: of the systems on the same questions.
    """

    outcome: Outcome
    provenance: Provenance
    scoring: Scoring
    kept: tuple[KeptBenefit, ...]
    comparisons: Mapping[Group, Sequence[Comparison]]

    @property
    def names(self) -> Names:
        """What its groups are called."""
        return Names(result.subject for result in self.outcome.results)

    def to_json(self) -> dict[str, object]:
        """The object in ``results.json``."""
        names = self.names
        return {
            "provenance": self.provenance.to_json(),
            "scoring": asdict(self.scoring),
            "results": [result.to_json() for result in self.outcome.results],
            "kept_benefit": [item.to_json() for item in self.kept],
            "comparisons": {
                f"{names.data(group)} {group.setting} {group.given}{names.k(group)}": [asdict(item) for item in found]
                for group, found in self.comparisons.items()
            },
            "not_run": dict(self.outcome.not_run),
            "left_out": {name: dict(reasons) for name, reasons in self.outcome.left_out.items()},
        }


def make_report(outcome: Outcome, origin: Provenance, scoring: Scoring, pairs: Sequence[Benefit] = ()) -> Report:
    """Compare the results of an outcome.

    Raises:
        InputError: two results are of one system on the same questions.
        MissingExtraError: scipy is not installed.
    """
    comparisons = {}
    for group, own in groups(outcome.results).items():
        scores = {result.subject.label: f1_by_question(result) for result in own if result.n}
        if len(scores) > 1:
            comparisons[group] = compare_all(scores, seed=scoring.seed)
    kept = kept_benefits(outcome.results, pairs, resamples=scoring.resamples, seed=scoring.seed)
    return Report(outcome, origin, scoring, tuple(kept), comparisons)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write everything into a folder.

    Returns:
        The files written.

    Raises:
        InputError: the folder cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = draw_all(report.outcome.results, report.kept, folder)
        write_whole(folder / "results.json", json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
        write_whole(folder / "report.md", to_markdown(report, [path.name for path in figures]))
    except OSError as error:
        raise InputError(f"the report in {folder} cannot be written: {error.strerror or error}") from None
    rows = folder / "rows.jsonl"
    write_jsonl(
        rows,
        ({"run": result.subject.key, **row.to_json()} for result in report.outcome.results for row in result.rows),
    )
    return [folder / "report.md", folder / "results.json", rows, *figures]


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears only when it is complete."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def to_markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The report as one page."""
    names = report.names
    parts = ["# Evaluation\n", _origin(report.provenance, report.scoring)]
    for group, own in groups(report.outcome.results).items():
        parts.append(f"## {names.data(group)}, {group.setting}, given {group.given}{names.k(group)}\n")
        parts += _data_set(own, report.comparisons.get(group, ()))
    if report.kept:
        parts += ["## Kept benefit\n", _BENEFIT, tables.benefit_table(report.kept, names)]
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in figures]
    parts += ["## Runs\n", runs_table(report.outcome.results)]
    parts += left_out(report)
    return "\n".join(parts)


_BENEFIT = (
    "kept = (F1 system - F1 none) / (F1 text - F1 none), over the questions that all three answered; 95 % bootstrap "
    "interval in brackets.\n"
)


def _data_set(group: Sequence[SystemResult], comparisons: Sequence[Comparison]) -> list[str]:
    parts = [
        f"Candidates: {'; '.join(dict.fromkeys(result.subject.candidates for result in group))}. "
        "Scores are means in percent with 95 % bootstrap intervals over the questions that were answered.\n",
    ]
    if any(result.n or result.errors for result in group):
        parts.append(tables.answers_table([result for result in group if result.n or result.errors]))
    for table in (tables.retrieval_table(group), tables.abstention_table(group)):
        parts += [table] if table is not None else []
    if comparisons:
        parts += [
            "Paired permutation tests on F1; bold: p below 0.05 after Holm's correction over this table.\n",
            tables.comparison_table(comparisons),
        ]
    for result in group:
        for reason, count in list(result.error_reasons.items())[:_SHOWN_REASONS]:
            parts.append(f"- {result.subject.label}: {count} questions gave an error and are not scored: {reason}\n")
    return parts


def runs_table(results: Sequence[SystemResult]) -> str:
    """Where each run's numbers come from."""
    rows = []
    for result in results:
        subject = result.subject
        commits = dict.fromkeys(_short(str(origin.get("commit", tables.DASH))) for origin in result.origins)
        starts = dict.fromkeys(str(origin.get("started", tables.DASH)) for origin in result.origins)
        rows.append(
            [
                f"`{subject.key}`",
                subject.label,
                f"{subject.data} {subject.setting}",
                f"`{subject.data_sha256[:16]}`",
                f"`{subject.fingerprint}`",
                f"given {subject.given}, k {subject.k}, at most {subject.max_new_tokens} tokens",
                ", ".join(commits) or tables.DASH,
                ", ".join(starts) or tables.DASH,
            ]
        )
    headings = ["run", "system", "data", "data SHA-256", "system fingerprint", "settings", "commit", "started (UTC)"]
    return tables.markdown(headings, rows)


def _short(commit: str) -> str:
    """A commit with its hash cut and its mark of changed files kept; ``version X`` as it is."""
    sha, plus, mark = commit.partition("+")
    return commit if sha.startswith("version ") else f"{sha[:_SHOWN_HASH]}{plus}{mark}"


def _origin(origin: Provenance, scoring: Scoring) -> str:
    rule = "with HotpotQA's yes/no rule" if scoring.yes_no else "without the yes/no rule"
    return (
        f"Command: `{origin.command}`  \n"
        f"Commit: {origin.commit}; checkpoint: {origin.model} (`{origin.checkpoint}`); seed {scoring.seed}, "
        f"{scoring.resamples:,} bootstrap samples; scored {rule}  \n"
        f"Machine: {origin.cpu}, {origin.cores} cores, device {origin.device}, torch {origin.torch}, "
        f"Python {origin.python}; started {origin.started}\n"
    )


def left_out(report: Report) -> list[str]:
    """What the tables do not hold: systems that were not run, what of the data was left out."""
    same: dict[str, list[str]] = {}
    for name, reason in report.outcome.not_run.items():
        same.setdefault(reason, []).append(name)
    parts = [f"- not run: {', '.join(names)}: {reason}\n" for reason, names in same.items()]
    for name, reasons in report.outcome.left_out.items():
        parts += [f"- {name}: left out: {count} {reason}\n" for reason, count in reasons.items()]
    return ["## Left out\n", *parts] if parts else []
