"""``clara eval``: one model's answers on questions with gold answers, or with ``--bed`` on people's documents.

``--system`` and ``--recipe`` are aliases of ``clara compare``, ``--fidelity`` is one of ``clara analyse fidelity``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from clara.cli.analyse import measure_fidelity
from clara.cli.compare import (
    ALWAYS,
    EvalChoice,
    given_and_allowed,
    origin_of,
    run_comparison,
    system_settings,
    task_loader,
)
from clara.cli.options import JsonOption, ModelChoice, NamedModel
from clara.cli.session import load_model, make_folder, resolved
from clara.cli.terminal import bar, console, note, print_json, table
from clara.errors import ConfigError, InputError

if TYPE_CHECKING:
    from clara.evaluate.bed import BedScore
    from clara.evaluate.journal import Provenance
    from clara.evaluate.questions import Task
    from clara.evaluate.results import Result
    from clara.records import ContextKind

_DEFAULT_BED = Path("benchmarks/manuals")
_FIDELITY = ALWAYS | {"data", "rate", "fidelity", "encoder"}
_BED = (ALWAYS - {"limit"}) | {"data", "bed", "bed_docs", "bed_system", "half"}
_SINGLE = (
    ALWAYS
    | {"data", "rate", "given", "context", "wording", "k", "reader", "batch_size", "max_new_tokens", "seed", "setting"}
    | {"data_dir", "corpus", "first_stage", "candidates", "scoring", "yes_no", "retry_errors"}
)


@dataclass(frozen=True, slots=True)
class _ModelEvalChoice(EvalChoice):
    """Options of ``clara eval``."""

    ORDER: ClassVar[str] = (
        "data given context rate limit k reader wording batch_size max_new_tokens setting system option data_dir "
        "corpus first_stage candidates scoring yes_no timed retry_errors fidelity encoder bed bed_docs bed_system half "
        "recipe seed out"
    )

    given: Annotated[
        Literal["gold", "candidates"] | None,
        typer.Option(
            help="The gold documents (default), or the k ranked first among the candidates (default with --system)."
        ),
    ] = None
    reader: Annotated[
        str | None,
        typer.Option(
            metavar="generator|base|DIR",
            help="What reads: by default generator for memory, else base; or a folder of clara train reader.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json, rows, provenance and the journal that a rerun resumes."),
    ] = None
    context: Annotated[
        Literal["memory", "text", "none"] | None,
        typer.Option(
            help="What is read of the passages: their memories, their text, or nothing. Default memory; a --system "
            "has its own."
        ),
    ] = None
    wording: Annotated[
        Literal["free", "quoted"],
        typer.Option(help="Answers in any words, or held to those of the documents given. With --system: NAME-quoted."),
    ] = "free"
    fidelity: Annotated[bool, typer.Option("--fidelity", help="The same as clara analyse fidelity.")] = False
    encoder: Annotated[Path | None, typer.Option(help="Of --fidelity: folder of an encoder for BERTScore.")] = None
    bed: Annotated[
        bool, typer.Option("--bed", help="Index a test bed's documents and ask its questions: --data is its folder.")
    ] = False
    bed_docs: Annotated[
        Path, typer.Option(metavar="DIR", help="Of --bed: the documents that its fetch.py brought.")
    ] = Path(".bed")
    bed_system: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of --bed: default, memory, text, bm25-plain, closed-book; may be given again. All by default.",
        ),
    ] = None
    half: Annotated[
        Literal["tuning", "reporting", "all"], typer.Option(help="Of --bed: which half of the questions.")
    ] = "reporting"


def evaluate(ctx: typer.Context, *, asked: _ModelEvalChoice, as_json: JsonOption = False, choice: NamedModel) -> None:
    """Measure one model's answers: exact match, token F1, cover-EM and Recall@5, with 95 % bootstrap intervals.

    clara eval --data FILE --json prints one object:

    \b
    {"n", "em", "f1", "cover_em", "recall_at_5", "errors",
     "ci95": {"em": [low, high], "f1": [low, high], "cover_em": [low, high]},
     "context", "rate", "model", "data_sha256"}

    Scores are means over the n questions that were answered, 0 to 1; recall_at_5 is null without --given candidates,
    rate is null where nothing was compressed. Where questions have no answer, "abstention" is added: {"precision",
    "recall", "abstained", "unanswerable"}. Errors are counted, never scored, and said on stderr by reason. With --out
    the same command resumes after an interruption or a kill.

    Several systems side by side: clara compare (--system and --recipe do the same here). What memories keep of their
    passages: clara analyse fidelity (--fidelity does the same here).

    Test bed: clara eval --bed --out DIR indexes people's documents, asks them whole and prints right, wrong and
    abstained answers, where the evidence was found, tokens read and seconds, by collection and system. DIR then holds
    bed.json, rows.jsonl (an answer a line) and the stores. --json prints what bed.json holds.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    systems = bool(asked.system or asked.recipe)
    if systems and asked.context is not None:
        raise InputError("--context is for a single model; each --system has its own, leave it out")
    if asked.bed:
        given_and_allowed(ctx, _BED, "with --bed")
        _ask_bed(asked, choice, as_json=as_json)
    elif asked.fidelity:
        given_and_allowed(ctx, _FIDELITY, "with --fidelity")
        if asked.data is None or len(asked.data) != 1:
            raise InputError("--fidelity reads the passages of one --data FILE")
        measure_fidelity(
            Path(asked.data[0]),
            asked.rate or (),
            limit=asked.limit,
            encoder=asked.encoder,
            out=asked.out,
            choice=choice,
            as_json=as_json,
        )
    elif systems:
        run_comparison(ctx, asked, choice, as_json=as_json)
    else:
        chosen = given_and_allowed(ctx, _SINGLE, "for a single model (give --system or --fidelity)")
        _measure(replace(asked, chosen=chosen), choice, as_json=as_json)


def _measure(asked: _ModelEvalChoice, choice: ModelChoice, *, as_json: bool) -> None:
    from clara.evaluate.report import model_summary, write_model_report  # noqa: PLC0415

    if len(asked.data or ()) != 1 or len(asked.rate or ()) > 1:
        raise InputError("one model is measured on one --data at one --rate; give --system to compare on several")
    if asked.retry_errors and asked.out is None:
        raise InputError("--retry-errors needs the --out DIR of the earlier run: its journal stands there")
    context: ContextKind = asked.context or "memory"
    reader = asked.reader or ("generator" if context == "memory" else "base")
    folder = None
    if reader not in {"generator", "base"}:
        folder = _reader_folder(reader, context, choice)
        asked, reader = replace(asked, folders={"reader": folder}), "reader"
    if asked.out is not None:
        make_folder(asked.out)  # before the work, not after it
    choice = resolved(choice)
    with ExitStack() as opened:
        journals = asked.out / "journals" if asked.out else Path(opened.enter_context(tempfile.TemporaryDirectory()))
        run = _run(asked, choice, journals, context, reader)
    name = str(folder or choice.model)
    summary = model_summary(run.result, model=name, context=context, rate=run.rate)
    _say_left_out(run)
    if asked.out is not None:
        write_model_report(asked.out, run.task, run.result, summary, replace(run.origin, model=name))
    if as_json:
        print_json(summary)
    else:
        _show(run.result)


@dataclass(frozen=True, slots=True)
class _ModelRun:
    """One model's answers; ``rate`` is that of its memories, None if it made none."""

    task: Task
    result: Result
    origin: Provenance
    rate: int | None


def _run(asked: _ModelEvalChoice, choice: ModelChoice, journals: Path, context: str, reader: str) -> _ModelRun:
    """Ask one model what its journal lacks."""
    from clara.evaluate.results import Scoring  # noqa: PLC0415
    from clara.evaluate.run import RunSettings, run_system  # noqa: PLC0415
    from clara.evaluate.systems import model_system  # noqa: PLC0415
    from clara.evaluate.weights import identity, open_reader, rate_of  # noqa: PLC0415
    from clara.model.placement import placement  # noqa: PLC0415

    model = load_model(choice)
    given = asked.given or "gold"
    settings = system_settings(replace(asked, timed=0), choice, model, given=given, quoted=asked.wording == "quoted")
    system = model_system(settings, context=context, reader=reader)
    if reader == "reader":
        weights = open_reader(settings, reader, "none" if context == "none" else "text").fingerprint
    else:
        weights = identity(settings, model)
    origin = origin_of(model, choice.device, seed=asked.seed, checkpoint=weights)
    how = RunSettings(
        folder=journals,
        batch_size=asked.batch_size,
        retry_errors=asked.retry_errors,
        origin=origin,
        precision=placement(choice.dtype, choice.device).precision,
        scoring=Scoring(rule=asked.rule, seed=asked.seed),
    )
    with ExitStack() as opened:
        loader = task_loader(asked, settings, model, opened)
        task = loader.load(
            (asked.data or [""])[0],
            asked.setting or "oracle",
            given=given,
            k=asked.k,
            max_new_tokens=asked.max_new_tokens,
            limit=asked.limit,
        )
        note(task.summary)
        show = opened.enter_context(bar("questions"))
        result = run_system(
            system,
            task,
            how,
            rate=settings.rate,
            on_progress=lambda done, known: show(done + known, len(task.questions), ""),
        )
    compressed = context == "memory" or given == "candidates"
    return _ModelRun(task, result, origin, rate_of(settings, model) if compressed else None)


def _reader_folder(text: str, context: ContextKind, choice: ModelChoice) -> Path:
    """The folder of a reader for this context."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise InputError(f"--reader {text}: expected generator, base, or the folder of a reader (clara train reader)")
    if context == "memory":
        raise InputError("--reader DIR answers from text or from nothing: give --context text or --context none")
    if choice.dtype not in {"auto", "bf16", "fp32"}:
        raise InputError(f"--dtype {choice.dtype} is not for --reader DIR: give auto, bf16 or fp32")
    from clara.model.reader import ReaderManifest  # noqa: PLC0415

    trained = ReaderManifest.read(folder).context
    if trained != context:
        raise ConfigError(
            f"this reader was trained to answer from context {trained!r}, not {context!r}: give --context {trained}"
        )
    return folder


def _say_left_out(run: _ModelRun) -> None:
    """Report on stderr what the means leave out."""
    for reason, count in run.result.common_errors():
        note(f"error, {count} times: {reason}")
    for reason, count in run.task.left_out.items():
        note(f"not asked: {count} {reason}")
    if run.result.without_gold:
        note(f"not in recall: {run.result.without_gold} questions without a gold candidate")


def _show(result: Result) -> None:
    shown = table("", "mean", "95 %")
    for label, name in (("exact match", "em"), ("F1", "f1"), ("cover-EM", "cover_em")):
        mean = getattr(result, name)
        if mean is not None and result.ci95 is not None:
            interval = result.ci95[name]
            shown.add_row(label, f"{mean:.3f}", f"{interval.low:.3f} to {interval.high:.3f}")
    if result.retrieval is not None:
        shown.add_row("Recall@5", f"{result.retrieval['R@5']:.3f}", "")
    if result.abstention is not None:
        counts = result.abstention
        shown.add_row("abstained", f"{counts.abstained:,}", f"{counts.unanswerable:,} unanswerable")
    shown.add_row("questions", f"{result.n:,}", f"{result.errors:,} errors" if result.errors else "")
    console().print(shown)


def _ask_bed(asked: _ModelEvalChoice, choice: ModelChoice, *, as_json: bool) -> None:
    """Ask a bed's questions and print the scores.

    With ``--out`` the stores are kept for the next run, beside ``bed.json`` and ``rows.jsonl`` (a line an answer, as
    they come).
    """
    from clara.evaluate.bed import SYSTEMS, read_bed, run_bed, score_bed  # noqa: PLC0415
    from clara.evaluate.report import write_json  # noqa: PLC0415

    half, out = asked.half, asked.out
    folder = Path(asked.data[0]) if asked.data else _DEFAULT_BED
    collections = read_bed(folder, asked.bed_docs, half=None if half == "all" else half)
    if out is not None:
        make_folder(out)
    choice = resolved(choice)
    model = load_model(choice)
    with ExitStack() as opened:
        kept = out or Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="clara-bed-")))
        file = opened.enter_context((kept / "rows.jsonl").open("w", encoding="utf-8"))
        show = opened.enter_context(bar("answers"))
        rows = []
        for row in run_bed(collections, model, kept / "stores", asked.bed_system or tuple(SYSTEMS), on_progress=show):
            rows.append(row)
            file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            file.flush()  # a run of an hour that is stopped keeps what it has
    scores = score_bed(rows)
    origin = asdict(origin_of(model, choice.device))
    counts = [asdict(score) for score in scores]
    value = {"half": half, "model": model.name, "provenance": origin, "scores": counts}
    if out is not None:
        write_json(out / "bed.json", value)
        note(f"answers: {out / 'rows.jsonl'}")
    if as_json:
        print_json(value)
    else:
        _show_bed(scores)


def _show_bed(scores: Sequence[BedScore]) -> None:
    counted = ["right", "wrong", "abstained", "of", "exact", "anywhere", "refused", "of"]
    shown = table("system", "collection", *counted, "found 1/3/5", "tokens", "seconds", words=2)
    for score in scores:
        counts = (score.right, score.wrong, score.abstained, score.answerable, score.exact, score.anywhere)
        shown.add_row(
            score.system,
            score.collection,
            *map(str, (*counts, score.refused, score.unanswerable)),
            "" if score.found is None else "/".join(map(str, score.found)),
            f"{score.prompt_tokens:,.0f}",
            f"{score.seconds:.1f}",
            end_section=score.collection == "total",
        )
    console().print(shown)
