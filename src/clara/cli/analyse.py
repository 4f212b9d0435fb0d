"""``clara analyse`` and ``inspect``: options, figures, JSON and tables of ``clara.analysis``."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clara.cli.compare import origin_of
from clara.cli.options import JsonOption, ModelChoice, NamedModel, RateOption
from clara.cli.session import check_question, load_model, make_folder, resolved
from clara.cli.terminal import bar, console, counted, note, print_json, snippet, table, write
from clara.errors import ConfigError, DocumentError, InputError

if TYPE_CHECKING:
    from clara.analysis.fidelity import Fidelity
    from clara.analysis.harness import AnalysisSettings
    from clara.analysis.kinds import Analysis
    from clara.analysis.logit_lens import LensView
    from clara.model import ClaraModel
    from clara.records import Document

_WORDS = 12
"""Condensed words that ``inspect`` shows on a terminal."""


@dataclass(frozen=True, slots=True)
class _AnalysisChoice:
    """Options of some analyses; each refuses those of others."""

    seed: Annotated[int | None, typer.Option(min=0, help="Of every draw; 0 by default.")] = None
    k: Annotated[int | None, typer.Option(min=1, help="gradient: passages selected; 5 by default.")] = None
    temperature: Annotated[float | None, typer.Option(help="gradient: tau of the selection; 0.02 by default.")] = None
    vary: Annotated[
        list[str] | None, typer.Option(help="robustness: only k, order, poison or distractors; may be given again.")
    ] = None
    distractors: Annotated[
        int | None,
        typer.Option(min=0, help="attention, faithfulness: passages beside the gold ones; 4 and 0 by default."),
    ] = None
    top: Annotated[int | None, typer.Option(min=1, help="lens: tokens a memory vector; 5 by default.")] = None
    encoder: Annotated[Path | None, typer.Option(help="fidelity: folder of an encoder for BERTScore.")] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="attention, robustness, faithfulness: prompts generated together.")
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="attention, robustness, faithfulness: longest answer, in tokens.")
    ] = None


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
    given: _AnalysisChoice,
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
    from clara.config import check  # noqa: PLC0415
    from clara.data import read_records  # noqa: PLC0415
    from clara.evaluate import plots  # noqa: PLC0415
    from clara.evaluate.report import write_json  # noqa: PLC0415

    options = asdict(given)
    if kind == "fidelity":
        _refuse(kind, {**options, "compare": compare}, frozenset({"encoder"}))
        measure_fidelity(data, rate or (), limit=limit, encoder=given.encoder, out=out, choice=choice, as_json=as_json)
        return
    if len(rate or ()) > 1:
        raise InputError(f"clara analyse {kind} takes one --rate; fidelity takes several")
    options = {"rate": rate[0] if rate else None, "limit": limit, **options}
    _refuse(kind, options, frozenset(KINDS[kind].settings.model_fields))
    values = {option: value for option, value in options.items() if value is not None}
    settings = check(KINDS[kind].settings, values, source="command line")
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
    plots.DRAW_ANALYSIS[kind](reports, figure)
    whole = [{"label": label, **asdict(report)} for label, report in reports]
    described = {"path": str(data), "sha256": reading.sha256}
    facts = {"kind": kind, "settings": settings.model_dump(mode="json"), "data": described, "runs": sources}
    write_json(target, {**facts, "models": whole}, indent=1)
    short = [{name: value for name, value in made.items() if name not in KINDS[kind].details} for made in whole]
    if as_json:
        print_json({"kind": kind, "figure": str(figure), "json": str(target), "models": short})
        return
    _show(short)
    write(f"{figure} and {target.name}")


def _refuse(name: str, given: Mapping[str, object], allowed: frozenset[str]) -> None:
    if foreign := sorted({option for option, value in given.items() if value is not None} - allowed):
        listed = ", ".join("--" + option.replace("_", "-") for option in foreign)
        raise ConfigError(f"{listed} has no meaning for clara analyse {name}; leave it out")


def _measure(
    kind: Analysis, choice: NamedModel, records: Sequence[Any], settings: AnalysisSettings, label: str
) -> tuple[Any, dict[str, object]]:
    """The report of one checkpoint and its origin; the checkpoint is freed afterwards."""
    loaded = load_model(choice)
    source = asdict(replace(origin_of(loaded, choice.device, seed=settings.seed), model=choice.model))
    with bar(label) as show:
        report = kind.measure(loaded, records, settings, lambda done, total: show(done, total, "questions"))
    del loaded
    gc.collect()
    return report, source


def _labels(names: Sequence[str]) -> list[str]:
    """Short distinct names: the last part of a path, or as many as tell the two apart."""
    parts = [Path(name).parts for name in names]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        labels = [str(Path(*part[-count:])) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _show(reports: Sequence[Mapping[str, Any]]) -> None:
    """Print a column a checkpoint, a row a value or condition."""
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


def measure_fidelity(
    data: Path,
    rates: Sequence[int],
    *,
    limit: int | None,
    encoder: Path | None,
    out: Path | None,
    choice: ModelChoice,
    as_json: bool,
) -> None:
    """Measure the fidelity of memories at each rate (none: the model's), into ``fidelity.json`` and ``.jsonl``.

    ``data`` holds passages, or questions, whose gold documents are then the passages; ``encoder`` is for BERTScore.
    """
    from clara.analysis import fidelity  # noqa: PLC0415
    from clara.analysis.harness import first_windows  # noqa: PLC0415
    from clara.data import read_records, write_jsonl  # noqa: PLC0415
    from clara.evaluate.report import write_json  # noqa: PLC0415
    from clara.evaluate.results import plain  # noqa: PLC0415

    if out is None:
        raise InputError("--fidelity needs --out DIR for the restatements")
    reading = read_records(data, plain_passages=True)
    note(reading.summary())
    make_folder(out)
    choice = resolved(choice)
    model = load_model(choice)
    for served in rates:
        model.memory_tokens(served)  # refuses what the model does not serve, before the first rate is measured
    passages = first_windows(reading.records, model, limit)
    vectors = fidelity.token_vectors(encoder, device=choice.device) if encoder is not None else None
    results: list[Fidelity] = []
    for rate in rates or (None,):
        with bar("passages") as show:
            result = fidelity.measure_fidelity(
                model, passages, rate=rate, vectors=vectors, on_progress=lambda done, total: show(done, total, "")
            )
        results.append(result)
    value = {
        "data": str(data),
        "data_sha256": reading.sha256,
        "model": model.name,
        "checkpoint": model.fingerprint,
        "provenance": asdict(origin_of(model, choice.device)),
        "results": plain(results),
    }
    rows = ({"rate": result.rate, **asdict(row)} for result in results for row in result.rows)
    write_jsonl(out / "fidelity.jsonl", rows)
    write_json(out / "fidelity.json", value)
    if as_json:
        print_json(value)
    else:
        _show_fidelity(results)


def _show_fidelity(results: Sequence[Fidelity]) -> None:
    shown = table("rate", "passages", "errors", "ROUGE-1", "ROUGE-L", "entities", "BERTScore")
    for result in results:
        shown.add_row(
            f"{result.rate}x" if result.rate is not None else "default",
            f"{result.n:,}",
            f"{result.errors:,}",
            f"{result.rouge1:.3f}",
            f"{result.rouge_l:.3f}",
            f"{result.entities:.3f}" if result.entities is not None else "",
            f"{result.bert_score:.3f}" if result.bert_score is not None else "",
        )
    console().print(shown)


def inspect(
    question: Annotated[str | None, typer.Argument(help="The question, in quotes.")] = None,
    *,
    text: Annotated[str | None, typer.Option(help="Look at the memory of this text instead.")] = None,
    document: Annotated[Path | None, typer.Option(help="Look at the memory of a passage of this file instead.")] = None,
    passage: Annotated[int, typer.Option(min=1, help="Which passage of --document.")] = 1,
    rate: RateOption = None,
    space: Annotated[
        Literal["hidden", "memory"],
        typer.Option(help="hidden: last hidden states, LM head; memory: nearest token embeddings."),
    ] = "hidden",
    top: Annotated[int, typer.Option(min=1, help="Tokens a memory vector.")] = 5,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """Show the top tokens of each memory vector: the logit lens.

    First the words that vectors point at and the text does not hold, those of most vectors first; then each vector's
    top tokens, neighbours with the same first token together.

    --space hidden reads the last hidden states through the LM head, as the paper does. --space memory reads what the
    generator is given: the memory after its affine read-out, compared with token embeddings.

    --json prints one object:

    \b
    {"text", "role", "weights", "model", "fingerprint", "rate", "memory_tokens",
     "space", "score",                                 score: logit or cosine
     "words": [{"word", "slots", "score"}],
     "slots": [[{"token", "score", "begins_word"}]]}   one list a memory vector

    weights names the adapter that read: a checkpoint without a query reasoner of its own reads questions with the
    compressor's, which is where a reasoner starts from.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    from clara.analysis import logit_lens  # noqa: PLC0415

    if sum(given is not None for given in (question, text, document)) != 1:
        raise ConfigError("give one of a question, --text TEXT and --document FILE")
    read = _document(document) if document is not None else None
    loaded = load_model(choice)
    role: Literal["compressor", "query_reasoner"] = "compressor" if question is None else "query_reasoner"
    if read is not None:
        content = _passage(read, loaded, passage)
    elif question is not None:
        content = check_question(question)
    else:
        content = text or ""
    at = loaded.default_rate if rate is None else rate
    seen = logit_lens.view(loaded.inspector(), content, role=role, rate=at, space=space, top=top)
    shown = _lens_object(seen, content, role, at, loaded)
    if as_json:
        print_json(shown)
    else:
        _show_lens(shown, seen)


def _document(path: Path) -> Document:
    """The first document of a file."""
    from clara.ingest import Reader, find_files  # noqa: PLC0415

    reader = Reader(find_files([path]))
    for document in reader.documents():
        return document
    skipped = reader.report().skipped
    raise DocumentError(skipped[0].message if skipped else f"{path} holds no document")


def _passage(document: Document, model: ClaraModel, number: int) -> str:
    from clara.ingest.split import split  # noqa: PLC0415
    from clara.prompts import passage_text  # noqa: PLC0415

    passages = split(document, model.token_spans, max_tokens=model.window_tokens)
    if number > len(passages):
        raise InputError(f"--passage {number}: {document.uri} has {counted(len(passages), 'passage')}")
    return passage_text(passages[number - 1].title, passages[number - 1].text)


def _lens_object(
    seen: LensView, text: str, role: Literal["compressor", "query_reasoner"], rate: int, model: ClaraModel
) -> dict[str, Any]:
    return {
        "text": text,
        "role": role,
        "weights": model.inspector().weights_of(role),
        "model": model.name,
        "fingerprint": model.fingerprint,
        "rate": rate,
        "memory_tokens": len(seen.lens.slots),
        "space": seen.lens.space,
        "score": seen.lens.score,
        "words": [asdict(word) for word in seen.words],
        "slots": [[asdict(token) for token in slot] for slot in seen.lens.slots],
    }


def _show_lens(shown: dict[str, Any], seen: LensView) -> None:
    own = shown["role"] == shown["weights"]
    reader = shown["role"].replace("_", " ") + (
        "" if own else " (untrained: the compressor's weights read the question)"
    )
    write(snippet(shown["text"]))
    write(f"{shown['model']}, {shown['rate']}x: {counted(shown['memory_tokens'], 'memory vector')}; {reader}")
    write()
    words = [f"{word.word} ({word.slots})" for word in seen.words[:_WORDS]]
    write("not in the text (vectors): " + (", ".join(words) or "nothing"))
    write()
    numbered = list(enumerate(seen.lens.slots, start=1))
    for _, run in groupby(numbered, key=lambda item: item[1][0].token):
        alike = list(run)
        first, last = alike[0][0], alike[-1][0]
        label = str(first) if first == last else f"{first}-{last}"
        tokens = "  ".join(f"{item.token.strip() or '[white space]'} {item.score:.3g}" for item in alike[0][1])
        write(f"{label:>7}  {tokens}")
