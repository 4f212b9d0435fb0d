"""``clara eval``: a model's answers, or several systems', on questions with gold answers.

Options and the measure of a single model; comparisons of systems are in ``eval_systems``. Formulas and order are in
``clara.evaluate``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli.eval_bed import (
    DEFAULT_BED,
    DEFAULT_DOCS,
    BedDocsOption,
    BedOption,
    BedSystemOption,
    HalfOption,
    ask_bed,
)
from clara.cli.options import (
    DEFAULT_MODEL,
    BaseOption,
    CacheOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelChoice,
    ThreadsOption,
)
from clara.cli.session import cache_folder, load_model, make_folder, resolved
from clara.cli.terminal import bar, console, note, print_json
from clara.errors import InputError, RecordError

if TYPE_CHECKING:
    from clara.evaluate import EvalResult
    from clara.evaluate.provenance import Provenance
    from clara.model.reader import Reader
    from clara.records import ContextKind

_SHOWN_REASONS = 5
_ALWAYS = frozenset({"data", "rate", "limit", "out", "as_json", "model", "base", "device", "dtype", "cache", "threads"})
_SINGLE = frozenset({"given", "context", "wording", "k", "reader", "batch_size", "max_new_tokens", "seed"})
_SOURCES = frozenset({"option", "reader", "data_dir", "corpus", "first_stage", "candidates", "retry_errors"})
_SYSTEMS = _SOURCES | (_SINGLE - {"context", "wording"}) | {"setting", "system", "yes_no", "timed"}
_RECIPE = _SOURCES | {"recipe", "data", "system"}
_FIDELITY = frozenset({"fidelity", "encoder"})
_BED = frozenset({"bed", "bed_docs", "bed_system", "half"})
_READER_DTYPES: dict[str, Literal["auto", "bf16", "fp32"]] = {"auto": "auto", "bf16": "bf16", "fp32": "fp32"}


def evaluate(
    ctx: typer.Context,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME|FILE",
            help="Questions: a file of our own records; with --system also a file of a public format, a name (nq, "
            "hotpotqa, musique, 2wiki, squad) or a BEIR folder, and may be given again.",
        ),
    ] = None,
    given: Annotated[
        Literal["gold", "candidates"] | None,
        typer.Option(
            "--given",
            help="The gold documents (default), or the k ranked first among the candidates (default with --system).",
        ),
    ] = None,
    context: Annotated[
        Literal["memory", "text", "none"] | None,
        typer.Option(
            "--context",
            help="What is read of the passages: their memories, their text, or nothing. Default memory; a --system "
            "has its own.",
        ),
    ] = None,
    rate: Annotated[
        list[int] | None,
        typer.Option(
            "--rate", min=1, help="Compression rate; the model's by default. With --system it may be given again."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Only the first questions; with --recipe at most so many of each block."),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Documents in the prompt with --given candidates.")] = 5,
    reader: Annotated[
        str | None,
        typer.Option(
            "--reader",
            metavar="generator|base|DIR",
            help="What reads: by default generator for memory, else base; or a folder of clara train reader.",
        ),
    ] = None,
    wording: Annotated[
        Literal["free", "quoted"],
        typer.Option(
            "--wording",
            help="Answers in any words, or held to those of the documents given. With --system: NAME-quoted.",
        ),
    ] = "free",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions answered together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 32,
    setting: Annotated[
        Literal["oracle", "normal"] | None,
        typer.Option(
            "--setting", help="Of --system: the gold documents are surely among the candidates, or as retrieved."
        ),
    ] = None,
    system: Annotated[
        list[str] | None, typer.Option("--system", metavar="NAME", help="System to compare; may be given again.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=DIR", help="Folder that a system needs; may be given again."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", envvar="CLARA_DATA", help="Folder of the named data sets: NAME.SETTING.jsonl.gz."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            metavar="PATH|pool",
            help="Where candidates come from: a store, a BEIR folder, a passage file, or the file's own pooled.",
        ),
    ] = None,
    first_stage: Annotated[
        Literal["bm25", "dense", "hybrid"], typer.Option("--first-stage", help="How a corpus is searched.")
    ] = "bm25",
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Documents a question from a corpus.")] = 20,
    yes_no: Annotated[bool, typer.Option("--yes-no", help="Score yes/no answers by HotpotQA's official rule.")] = False,
    timed: Annotated[
        int, typer.Option("--timed", min=0, help="Questions of each run that are timed to the first token.")
    ] = 8,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again what gave an error in an earlier run.")
    ] = False,
    fidelity: Annotated[
        bool,
        typer.Option(
            "--fidelity", help="Tell each passage again from its memory and compare: ROUGE, names, BERTScore."
        ),
    ] = False,
    encoder: Annotated[
        Path | None, typer.Option("--encoder", help="Of --fidelity: folder of an encoder for BERTScore.")
    ] = None,
    bed: BedOption = False,
    bed_docs: BedDocsOption = DEFAULT_DOCS,
    bed_system: BedSystemOption = None,
    half: HalfOption = "reporting",
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A grid of data sets, settings, rates and systems (TOML).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of bootstrap and permutation tests.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for results.json, rows and provenance; with --system also the report."),
    ] = None,
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
    """Measure answers: exact match, token F1, cover-EM and rankings, with 95 % bootstrap intervals.

    One model: clara eval --data FILE. --json prints one object:

    \b
    {"n", "em", "f1", "cover_em", "recall_at_5", "errors",
     "ci95": {"em": [low, high], "f1": [low, high], "cover_em": [low, high]},
     "context", "rate", "model", "data_sha256"}

    Scores are means over the n questions that were answered, 0 to 1; recall_at_5 is null without --given candidates,
    rate is null where nothing was compressed. Errors are counted, never scored, and said on stderr by reason.

    Systems side by side: clara eval --data NAME --setting oracle --system clara --system text-bm25 --out DIR, or a
    whole grid with --recipe FILE --out DIR (a trial with --limit leaves its page in DIR). DIR then holds report.md,
    results.json, rows.jsonl, figures, and a journal of every reply: the same command goes on after an interruption or
    a kill and asks nothing twice. --json prints what results.json holds.

    Fidelity: clara eval --data FILE --fidelity --rate 4 --rate 16 --out DIR.

    Test bed: clara eval --bed --out DIR indexes people's documents, asks them whole and prints right, wrong and
    abstained answers, where the evidence was found, tokens read and seconds, by collection and system. DIR then holds
    bed.json, rows.jsonl (an answer a line) and the stores. --json prints what bed.json holds.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    choice = ModelChoice(model, base, device, dtype, cache, threads)
    if (system or setting or recipe) and context is not None:
        raise InputError("--context is for a single model; each --system has its own, leave it out")
    _refuse_foreign(ctx, recipe=recipe is not None, systems=bool(system or setting), fidelity=fidelity, bed=bed)
    if bed:
        folder = Path(data[0]) if data else DEFAULT_BED
        ask_bed(folder, bed_docs, bed_system or (), half=half, out=out, choice=choice, as_json=as_json)
        return
    if system or setting or recipe:
        from clara.cli.eval_systems import SystemsChoice, compare  # noqa: PLC0415

        compare(
            SystemsChoice(
                chosen=frozenset(_given(ctx, "COMMANDLINE", "ENVIRONMENT")),
                data=tuple(data or ()),
                setting=setting or "oracle",
                systems=tuple(system or ()),
                rates=tuple(rate or ()),
                given=given or "candidates",
                limit=limit,
                k=k,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                options=_options(option, reader),
                data_dir=data_dir,
                corpus=corpus,
                first_stage=first_stage,
                candidates=candidates,
                yes_no=yes_no,
                timed=timed,
                retry_errors=retry_errors,
                recipe=recipe,
                seed=seed,
                out=out,
            ),
            choice,
            as_json=as_json,
        )
        return
    if fidelity:
        from clara.cli.eval_fidelity import tell_again  # noqa: PLC0415

        if len(data or ()) != 1:
            raise InputError("--fidelity reads the passages of one --data FILE")
        path = Path((data or [""])[0])
        tell_again(path, rate or (), limit=limit, encoder=encoder, out=out, choice=choice, as_json=as_json)
        return
    if len(data or ()) != 1 or len(rate or ()) > 1:
        raise InputError("one model is measured on one --data at one --rate; give --system to compare on several")
    values: dict[str, object] = {
        "given": given or "gold",
        "context": context or "memory",
        "rate": rate[0] if rate else None,
        "limit": limit,
        "k": k,
        "wording": wording,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    single = _Single(Path((data or [""])[0]), reader, out, values)
    _measure(single, choice, as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(name="eval")(evaluate)


@dataclass(frozen=True, slots=True)
class _Single:
    """What the user asked of one model."""

    data: Path
    reader: str | None
    out: Path | None
    values: dict[str, object]


def _measure(single: _Single, choice: ModelChoice, *, as_json: bool) -> None:
    from clara.config import check  # noqa: PLC0415
    from clara.data import read_records  # noqa: PLC0415
    from clara.evaluate import EvalConfig  # noqa: PLC0415
    from clara.evaluate import evaluate as measure  # noqa: PLC0415
    from clara.evaluate.baselines.folders import whole_identity  # noqa: PLC0415
    from clara.evaluate.provenance import provenance  # noqa: PLC0415

    context = single.values["context"]
    named = single.reader in {None, "generator", "base"}
    usual = "generator" if context == "memory" else "base"
    values = {**single.values, "reader": (single.reader if named else None) or usual}
    config = check(EvalConfig, values, source="command line")
    folder = None if named else _reader_folder(str(single.reader), config.context)
    try:
        reading = read_records(single.data)
    except RecordError as error:
        raise RecordError(f"{error}; files of public formats are read with --system, as in --system clara") from None
    note(reading.summary())
    if single.out is not None:
        make_folder(single.out)  # before the work, not after it
    choice = resolved(choice)
    model = choice.model or DEFAULT_MODEL
    loaded = load_model(choice, model)
    reader = None if folder is None else _load_reader(folder, choice)
    with bar("questions") as show:

        def tell(done: int, total: int) -> None:
            if show is not None:
                show(done, total, "")

        result = measure(loaded, reading.records, config, data_sha256=reading.sha256, reader=reader, progress=tell)
    summary = {**result.to_json(), "model": model if folder is None else str(folder)}
    _say_left_out(result)
    if single.out is not None:
        command = ["clara", *sys.argv[1:]]
        origin = provenance(
            command,
            model=str(summary["model"]),
            checkpoint=reader.fingerprint if reader is not None else whole_identity(loaded),
            seed=config.seed,
            device=choice.device,
        )
        _write(single.out, summary, result, origin)
    if as_json:
        print_json(summary)
    else:
        _show(result)


def _refuse_foreign(ctx: typer.Context, *, recipe: bool, systems: bool, fidelity: bool, bed: bool) -> None:
    """Refuse what was typed and would not be looked at: a number must not depend on an option that was dropped.

    Raises:
        InputError: names all of it.
    """
    if bed:
        allowed, what = (_ALWAYS - {"rate", "limit"}) | _BED, "with --bed"
    elif recipe:
        allowed, what = _RECIPE | (_ALWAYS - {"rate"}), "with --recipe, which says it"
    elif systems:
        allowed, what = _ALWAYS | _SYSTEMS, "with --system"
    elif fidelity:
        allowed, what = _ALWAYS | _FIDELITY, "with --fidelity"
    else:
        allowed, what = _ALWAYS | _SINGLE, "for a single model (give --system or --fidelity)"
    foreign = [option for name, option in _given(ctx, "COMMANDLINE").items() if name not in allowed]
    if foreign:
        raise InputError(f"{', '.join(foreign)} has no meaning {what}; leave it out")


def _given(ctx: typer.Context, *sources: str) -> dict[str, str]:
    """Options that come from these of click's sources, as they are typed, by name of their parameter."""
    return {
        option.name or "": option.opts[0]
        for option in ctx.command.params
        if str(ctx.get_parameter_source(option.name or "")).endswith(sources)
    }


def _options(given: list[str] | None, reader: str | None) -> dict[str, Path]:
    """The folders of single systems, by name."""
    found: dict[str, Path] = {}
    for text in given or ():
        name, sign, folder = text.partition("=")
        if not sign or not name or not folder:
            raise InputError(f"--option {text!r} must be NAME=DIR, for example reader=runs/reader/reader")
        found[name] = Path(folder).expanduser()
    if reader in {"generator", "base"}:
        raise InputError(f"--reader {reader} is for a single model; with --system it is the folder of a reader")
    if reader is not None:
        found["reader"] = Path(reader).expanduser()
    return found


def _reader_folder(text: str, context: ContextKind) -> Path:
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise InputError(f"--reader {text}: expected generator, base, or the folder of a reader (clara train reader)")
    if context == "memory":
        raise InputError("--reader DIR answers from text or from nothing: give --context text or --context none")
    return folder


def _load_reader(folder: Path, choice: ModelChoice) -> Reader:
    from clara.model.reader import Reader  # noqa: PLC0415

    if choice.dtype not in _READER_DTYPES:
        raise InputError(f"--dtype {choice.dtype} is not for --reader DIR: give auto, bf16 or fp32")
    return Reader.load(
        folder,
        cache=cache_folder(choice.cache),
        base=choice.base,
        device=choice.device,
        dtype=_READER_DTYPES[choice.dtype],
    )


def _write(out: Path, summary: Mapping[str, object], result: EvalResult, origin: Provenance) -> None:
    from clara.data import write_jsonl  # noqa: PLC0415
    from clara.evaluate.report import write_whole  # noqa: PLC0415

    write_jsonl(out / "rows.jsonl", (row.to_json() for row in result.rows))
    for name, value in (("results.json", summary), ("provenance.json", origin.to_json())):
        write_whole(out / name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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
