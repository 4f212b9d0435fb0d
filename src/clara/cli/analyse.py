"""``clara analyse``: why a model answers as it does, drawn and in JSON. Formulas: ``clara.analysis``."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clara.cli.options import JsonOption, NamedModel
from clara.cli.session import load_model, make_folder
from clara.cli.terminal import bar, console, note, print_json, table, write
from clara.errors import ConfigError, InputError

if TYPE_CHECKING:
    from clara.analysis.harness import AnalysisSettings
    from clara.analysis.kinds import Analysis


def analyse(
    kind: Annotated[
        Literal["lens", "gradient", "tsne", "attention", "robustness", "faithfulness", "fidelity"],
        typer.Argument(help="Analysis."),
    ],
    *,
    data: Annotated[Path, typer.Option(help="Questions with candidate documents (.jsonl, .jsonl.gz).")],
    out: Annotated[Path, typer.Option(help="Folder for KIND.png and KIND.json.")],
    compare: Annotated[
        str | None,
        typer.Option(help="A second checkpoint beside it: before training (gradient), without the MSE term (tsne)."),
    ] = None,
    rate: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Compression rate; the model's by default. fidelity: may be given again."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the first questions (tsne, fidelity: passages).")] = 50,
    seed: Annotated[int | None, typer.Option(min=0, help="Of every draw; 0 by default.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="gradient: passages selected; 5 by default.")] = None,
    temperature: Annotated[float | None, typer.Option(help="gradient: tau of the selection; 0.02 by default.")] = None,
    vary: Annotated[
        list[str] | None, typer.Option(help="robustness: only k, order, poison or distractors; may be given again.")
    ] = None,
    distractors: Annotated[
        int | None,
        typer.Option(min=0, help="attention, faithfulness: passages beside the gold ones; 4 and 0 by default."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="lens: tokens a memory vector; 5 by default.")] = None,
    encoder: Annotated[Path | None, typer.Option(help="fidelity: folder of an encoder for BERTScore.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="attention, robustness, faithfulness: prompts generated together.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="attention, robustness, faithfulness: longest answer, in tokens.")
    ] = None,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """Look into a model over a data set; writes a figure and all numbers (docs/analyses.md).

    \b
    lens          do query memories name what is in the gold passages and not in the question?
    gradient      does the selection favour documents that make the answer likelier, and does its gradient?
    tsne          mean document states against mean memory states
    attention     what answer tokens look at: the gold passage, the others, the question
    robustness    F1 with k = 1 to 10, other orders, a poisoned passage, more distractors
    faithfulness  are the answer's tokens in the cited text?
    fidelity      a passage restated from its memory: ROUGE, names and numbers, BERTScore; no figure

    An option of another analysis is refused. --json prints {"kind", "figure", "json", "models": [report, ...]}, the
    reports without their rows; KIND.json holds them whole, with command, commit, checkpoint and machine.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    from clara.analysis.kinds import KINDS  # noqa: PLC0415
    from clara.cli import fidelity  # noqa: PLC0415
    from clara.data import read_records  # noqa: PLC0415
    from clara.evaluate import plots  # noqa: PLC0415
    from clara.evaluate.report import write_whole  # noqa: PLC0415

    given = {
        "seed": seed,
        "encoder": encoder,
        "k": k,
        "temperature": temperature,
        "vary": vary,
        "distractors": distractors,
        "top": top,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
    }
    if kind == "fidelity":
        _refuse(kind, {**given, "compare": compare}, frozenset({"encoder"}))
        fidelity.measure(data, rate or (), limit=limit, encoder=encoder, out=out, choice=choice, as_json=as_json)
        return
    if len(rate or ()) > 1:
        raise InputError(f"clara analyse {kind} takes one --rate; fidelity takes several")
    settings = _settings(kind, KINDS[kind], {"rate": rate[0] if rate else None, "limit": limit, **given})
    plots.check()
    reading = read_records(data)
    note(reading.summary())
    make_folder(out)
    names = [choice.model] if compare is None else [choice.model, compare]
    labels = _labels(names)
    reports, sources = list[tuple[str, Any]](), list[dict[str, object]]()
    for name, label in zip(names, labels, strict=True):
        report, source = _measure(KINDS[kind], replace(choice, model=name), reading.records, settings, label)
        reports.append((label, report))
        sources.append(source)
    figure, target = out / f"{kind}.png", out / f"{kind}.json"
    KINDS[kind].draw(reports, figure)
    whole = [{"label": label, **asdict(report)} for label, report in reports]
    described = {"path": str(data), "sha256": reading.sha256}
    told = {"kind": kind, "settings": settings.model_dump(mode="json"), "data": described, "runs": sources}
    write_whole(target, json.dumps({**told, "models": whole}, indent=1, ensure_ascii=False) + "\n")
    short = [{name: value for name, value in made.items() if name not in KINDS[kind].details} for made in whole]
    if as_json:
        print_json({"kind": kind, "figure": str(figure), "json": str(target), "models": short})
        return
    _show(short)
    write(f"{figure} and {target.name}")


def _settings(name: str, kind: Analysis, given: Mapping[str, object]) -> AnalysisSettings:
    from clara.config import check  # noqa: PLC0415

    _refuse(name, given, frozenset(kind.settings.model_fields))
    return check(
        kind.settings, {option: value for option, value in given.items() if value is not None}, source="command line"
    )


def _refuse(name: str, given: Mapping[str, object], allowed: frozenset[str]) -> None:
    """Refuse options that the analysis does not have."""
    if foreign := sorted({option for option, value in given.items() if value is not None} - allowed):
        listed = ", ".join("--" + option.replace("_", "-") for option in foreign)
        raise ConfigError(f"{listed} has no meaning for clara analyse {name}; leave it out")


def _measure(
    kind: Analysis, choice: NamedModel, records: Sequence[Any], settings: AnalysisSettings, label: str
) -> tuple[Any, dict[str, object]]:
    """The report of one checkpoint, and where it comes from; the checkpoint is let go afterwards."""
    from clara.evaluate.provenance import provenance  # noqa: PLC0415
    from clara.evaluate.weights import whole_identity  # noqa: PLC0415

    loaded = load_model(choice)
    command = ["clara", *sys.argv[1:]]
    source = provenance(
        command, model=choice.model, checkpoint=whole_identity(loaded), seed=settings.seed, device=choice.device
    ).to_json()
    with bar(label) as show:
        report = kind.measure(loaded, records, settings, lambda done, total: show(done, total, "questions"))
    del loaded
    gc.collect()
    return report, source


def _labels(names: Sequence[str]) -> list[str]:
    """Short names that differ: the last part of a path, or as much of it as tells the two apart."""
    parts = [Path(name).parts for name in names]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        labels = [str(Path(*part[-count:])) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{name} ({place})" for place, name in enumerate(names, start=1)]


def _show(reports: Sequence[Mapping[str, Any]]) -> None:
    """One column a checkpoint; what is a list of rows (conditions) one row each."""
    columns = [dict(_flat(report)) for report in reports]
    shown = table("", *(str(report["label"]) for report in reports))
    for key in dict.fromkeys(key for column in columns for key in column):
        shown.add_row(key, *(column.get(key, "") for column in columns))
    console().print(shown)


def _flat(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in report.items():
        if key in {"label", "model", "fingerprint"} or value is None:
            continue
        if key == "conditions":
            rows += [
                (f"F1, {c['kind']}: {c['condition']}", f"{c['f1']:.3f} (n {c['n']}, errors {c['errors']})")
                for c in value
            ]
        elif isinstance(value, Mapping) and {"low", "high"} == value.keys():
            rows.append((key, f"{value['low']:.3f} to {value['high']:.3f}"))
        elif isinstance(value, Mapping):
            rows += [(f"{key}: {inner}", line) for inner, line in _flat(value)]
        else:
            rows.append((key, f"{value:.3f}" if isinstance(value, float) else str(value)))
    return rows
