"""``clara eval``: a model's answers on questions with gold answers. Formulas and order are in ``clara.evaluate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli.options import (
    DEFAULT_MODEL,
    BaseOption,
    CacheOption,
    ContextOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelChoice,
    ThreadsOption,
)
from clara.cli.session import load_model
from clara.cli.terminal import bar, console, note, print_json
from clara.errors import InputError

if TYPE_CHECKING:
    from clara.evaluate import EvalResult

_SHOWN_REASONS = 5


def evaluate(
    *,
    data: Annotated[Path, typer.Option("--data", help="Questions with candidate documents (.jsonl, .jsonl.gz).")],
    given: Annotated[
        Literal["gold", "candidates"],
        typer.Option("--given", help="The gold documents, or the k that the model ranks first among the candidates."),
    ] = "gold",
    context: ContextOption = "memory",
    rate: Annotated[int | None, typer.Option("--rate", min=1, help="Compression rate; the model's by default.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first questions.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Documents in the prompt with --given candidates.")] = 5,
    reader: Annotated[
        Literal["generator", "base"] | None,
        typer.Option("--reader", help="Weights that read: by default generator for memory, else base."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions answered together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 32,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for results.json and rows.jsonl.")] = None,
    as_json: JsonOption = False,
    model: Annotated[
        str, typer.Option("--model", envvar="CLARA_MODEL", help="Embedded model or checkpoint folder.")
    ] = DEFAULT_MODEL,
    base: BaseOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    cache: CacheOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure answers: exact match, token F1, cover-EM and Recall@5, with 95 % bootstrap intervals.

    --json prints one object:

    \b
    {"n", "em", "f1", "cover_em", "recall_at_5", "errors",
     "ci95": {"em": [low, high], "f1": [low, high], "cover_em": [low, high]},
     "context", "rate", "model", "data_sha256"}

    Scores are means over the n questions that were answered, 0 to 1; recall_at_5 is null without --given candidates,
    rate is null where nothing was compressed. Errors are counted, never scored, and said on stderr by reason.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    from clara.config import check  # noqa: PLC0415
    from clara.data import read_records  # noqa: PLC0415
    from clara.evaluate import EvalConfig  # noqa: PLC0415
    from clara.evaluate import evaluate as measure  # noqa: PLC0415

    values = {
        "given": given,
        "context": context,
        "rate": rate,
        "limit": limit,
        "k": k,
        "reader": reader or ("generator" if context == "memory" else "base"),
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
    }
    config = check(EvalConfig, values, source="command line")
    reading = read_records(data)
    note(reading.summary())
    if out is not None:
        _make_folder(out)  # before the work, not after it
    loaded = load_model(ModelChoice(model, base, device, dtype, cache, threads), model)
    with bar("questions") as show:

        def tell(done: int, total: int) -> None:
            if show is not None:
                show(done, total, "")

        result = measure(loaded, reading.records, config, data_sha256=reading.sha256, progress=tell)
    summary = {**result.to_json(), "model": model}
    _say_left_out(result)
    if out is not None:
        _write(out, summary, result)
    if as_json:
        print_json(summary)
    else:
        _show(result)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="eval")(evaluate)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made: {error.strerror or error}") from None


def _write(out: Path, summary: Mapping[str, object], result: EvalResult) -> None:
    from clara.data import write_jsonl  # noqa: PLC0415

    write_jsonl(out / "rows.jsonl", (row.to_json() for row in result.rows))
    part = out / ".results.json.part"
    part.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(out / "results.json")


def _say_left_out(result: EvalResult) -> None:
    """What the means do not hold, on stderr."""
    for reason, count in list(result.error_reasons.items())[:_SHOWN_REASONS]:
        note(f"error, {count} times: {reason}")
    for reason, count in result.unusable.items():
        note(f"not asked: {count} {reason}")
    if result.without_gold:
        note(f"not in recall: {result.without_gold} questions without a gold candidate")


def _show(result: EvalResult) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for heading in ("", "mean", "95 %"):
        table.add_column(heading, justify="left" if not heading else "right")
    scores = (("exact match", "em"), ("F1", "f1"), ("cover-EM", "cover_em"))
    for label, name in scores:
        interval = getattr(result.ci95, name)
        table.add_row(label, f"{getattr(result, name):.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
    if result.recall_at_5 is not None:
        table.add_row("Recall@5", f"{result.recall_at_5:.3f}", "")
    table.add_row("questions", f"{result.n:,}", f"{result.errors:,} errors" if result.errors else "")
    console().print(table)
