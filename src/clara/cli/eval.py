"""``clara eval``: one model's answers on questions with gold answers.

``clara compare`` measures several systems by the same engine (``clara.evaluate.run``); ``--system`` and ``--recipe``
stay here as an alias of it, ``--fidelity`` as one of ``clara analyse fidelity``.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli import evaluation
from clara.cli.compare import ALWAYS, run_comparison
from clara.cli.eval_bed import BedChoice, ask_bed
from clara.cli.evaluation import (
    SHOWN_REASONS,
    EvalChoice,
    PoolChoice,
    ScoreChoice,
    candidacy,
    folders,
    given_options,
    origin_of,
    refuse_foreign,
    system_settings,
)
from clara.cli.options import JsonOption, ModelChoice, NamedModel
from clara.cli.session import load_model, make_folder, resolved
from clara.cli.terminal import bar, console, note, print_json, table
from clara.errors import ConfigError, InputError

if TYPE_CHECKING:
    from clara.evaluate.provenance import Provenance
    from clara.evaluate.questions import Task
    from clara.evaluate.results import Result
    from clara.records import ContextKind

_FIDELITY = ALWAYS | {"data", "rate", "fidelity", "encoder"}
_BED = (ALWAYS - {"limit"}) | {"data", "bed", "bed_docs", "bed_system", "half"}
_SINGLE = (
    ALWAYS
    | {"data", "rate", "given", "context", "wording", "k", "reader", "batch_size", "max_new_tokens", "seed", "setting"}
    | {"data_dir", "corpus", "first_stage", "candidates", "scoring", "yes_no", "retry_errors"}
)


def evaluate(
    ctx: typer.Context,
    *,
    data: evaluation.DataOption = None,
    given: Annotated[
        Literal["gold", "candidates"] | None,
        typer.Option(
            help="The gold documents (default), or the k ranked first among the candidates (default with --system)."
        ),
    ] = None,
    context: Annotated[
        Literal["memory", "text", "none"] | None,
        typer.Option(
            help="What is read of the passages: their memories, their text, or nothing. Default memory; a --system "
            "has its own."
        ),
    ] = None,
    rate: evaluation.RatesOption = None,
    limit: evaluation.LimitOption = None,
    k: evaluation.PassagesOption = 5,
    reader: Annotated[
        str | None,
        typer.Option(
            metavar="generator|base|DIR",
            help="What reads: by default generator for memory, else base; or a folder of clara train reader.",
        ),
    ] = None,
    wording: Annotated[
        Literal["free", "quoted"],
        typer.Option(help="Answers in any words, or held to those of the documents given. With --system: NAME-quoted."),
    ] = "free",
    batch_size: evaluation.BatchOption = 8,
    max_new_tokens: evaluation.LengthOption = 32,
    setting: evaluation.SettingOption = None,
    system: evaluation.SystemOption = None,
    option: evaluation.FolderOption = None,
    pool: PoolChoice,
    scores: ScoreChoice,
    fidelity: Annotated[bool, typer.Option("--fidelity", help="The same as clara analyse fidelity.")] = False,
    encoder: Annotated[Path | None, typer.Option(help="Of --fidelity: folder of an encoder for BERTScore.")] = None,
    bed: BedChoice,
    recipe: evaluation.RecipeOption = None,
    seed: evaluation.SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json, rows, provenance and the journal that a rerun resumes."),
    ] = None,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
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
    systems = bool(system or recipe)
    if systems and context is not None:
        raise InputError("--context is for a single model; each --system has its own, leave it out")
    if bed.bed:
        refuse_foreign(ctx, _BED, "with --bed")
        ask_bed(bed, data[0] if data else None, out=out, choice=choice, as_json=as_json)
        return
    if fidelity:
        from clara.cli.fidelity import measure  # noqa: PLC0415

        refuse_foreign(ctx, _FIDELITY, "with --fidelity")
        if len(data or ()) != 1:
            raise InputError("--fidelity reads the passages of one --data FILE")
        path = Path((data or [""])[0])
        measure(path, rate or (), limit=limit, encoder=encoder, out=out, choice=choice, as_json=as_json)
        return
    if not systems:
        refuse_foreign(ctx, _SINGLE, "for a single model (give --system or --fidelity)")
    asked = EvalChoice(
        chosen=frozenset(given_options(ctx, "COMMANDLINE", "ENVIRONMENT")),
        data=tuple(data or ()),
        setting=setting or "oracle",
        systems=tuple(system or ()),
        rates=tuple(rate or ()),
        given=given or ("candidates" if systems else "gold"),
        limit=limit,
        k=k,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        options=folders(option, reader if systems else None),
        pool=pool,
        scores=scores if systems else replace(scores, timed=0),
        recipe=recipe,
        seed=seed,
        out=out,
    )
    if systems:
        run_comparison(ctx, asked, choice, as_json=as_json)
    else:
        _measure(asked, choice, context or "memory", reader, quoted=wording == "quoted", as_json=as_json)


def _measure(
    asked: EvalChoice, choice: ModelChoice, context: ContextKind, reader: str | None, *, quoted: bool, as_json: bool
) -> None:
    """Measure one model and show its scores."""
    from clara.evaluate.report import model_summary, write_model_report  # noqa: PLC0415

    if len(asked.data) != 1 or len(asked.rates) > 1:
        raise InputError("one model is measured on one --data at one --rate; give --system to compare on several")
    if asked.scores.retry_errors and asked.out is None:
        raise InputError("--retry-errors needs the --out DIR of the earlier run: its journal stands there")
    folder = None if reader in {None, "generator", "base"} else _reader_folder(str(reader), context, choice)
    if folder is not None:
        asked = replace(asked, options={"reader": folder})
    weights = "reader" if folder is not None else reader or ("generator" if context == "memory" else "base")
    if asked.out is not None:
        make_folder(asked.out)  # before the work, not after it
    choice = resolved(choice)
    with ExitStack() as opened:
        journals = asked.out / "journals" if asked.out else Path(opened.enter_context(TemporaryDirectory()))
        run = _run(asked, choice, journals, context, weights, quoted=quoted)
    name = str(folder or choice.model)
    summary = model_summary(run.result, model=name, context=context, rate=run.rate)
    _say_left_out(run.task, run.result)
    if asked.out is not None:
        write_model_report(asked.out, run.task, run.result, summary, replace(run.origin, model=name))
    if as_json:
        print_json(summary)
    else:
        _show(run.result)


@dataclass(frozen=True, slots=True)
class _ModelRun:
    """A finished run of one model; ``rate`` is that of its memories, None if it made none."""

    task: Task
    result: Result
    origin: Provenance
    rate: int | None


def _run(
    asked: EvalChoice, choice: ModelChoice, journals: Path, context: str, reader: str, *, quoted: bool
) -> _ModelRun:
    """Ask one model what its journal does not hold yet."""
    from clara.evaluate.questions import TaskLoader  # noqa: PLC0415
    from clara.evaluate.results import Scoring  # noqa: PLC0415
    from clara.evaluate.run import RunSettings, run_system  # noqa: PLC0415
    from clara.evaluate.systems import model_system  # noqa: PLC0415
    from clara.evaluate.weights import identity, open_reader, rate_of  # noqa: PLC0415
    from clara.model.placement import placement  # noqa: PLC0415

    model = load_model(choice)
    settings = system_settings(asked, choice, model, quoted=quoted)
    system = model_system(settings, context=context, reader=reader)
    own = reader != "reader"
    weights = (
        identity(settings, model)
        if own
        else open_reader(settings, reader, "none" if context == "none" else "text").fingerprint
    )
    origin = origin_of(model, choice.device, seed=asked.seed, checkpoint=weights)
    how = RunSettings(
        folder=journals,
        batch_size=asked.batch_size,
        retry_errors=asked.scores.retry_errors,
        origin=origin.to_json(),
        precision=placement(choice.dtype, choice.device).precision,
    )
    scoring = Scoring(rule=asked.scores.rule, seed=asked.seed)
    with ExitStack() as opened:
        loader = TaskLoader(asked.pool.data_dir, candidacy(asked, settings, model, opened))
        task = loader.load(
            asked.data[0],
            asked.setting,
            given=asked.given,
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
            scoring=scoring,
            on_progress=lambda done, known: show(done + known, len(task.questions), ""),
        )
    compressed = context == "memory" or asked.given == "candidates"
    return _ModelRun(task, result, origin, rate_of(settings, model) if compressed else None)


def _reader_folder(text: str, context: ContextKind, choice: ModelChoice) -> Path:
    """The folder of a reader that reads this context."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise InputError(f"--reader {text}: expected generator, base, or the folder of a reader (clara train reader)")
    if context == "memory":
        raise InputError("--reader DIR answers from text or from nothing: give --context text or --context none")
    if choice.dtype not in {"auto", "bf16", "fp32"}:
        raise InputError(f"--dtype {choice.dtype} is not for --reader DIR: give auto, bf16 or fp32")
    from clara.model.reader import read_reader_manifest  # noqa: PLC0415

    trained = read_reader_manifest(folder).context
    if trained != context:
        raise ConfigError(
            f"this reader was trained to answer from context {trained!r}, not {context!r}: give --context {trained}"
        )
    return folder


def _say_left_out(task: Task, result: Result) -> None:
    """What the means do not hold, on stderr."""
    for reason, count in list(result.error_reasons.items())[:SHOWN_REASONS]:
        note(f"error, {count} times: {reason}")
    for reason, count in task.left_out.items():
        note(f"not asked: {count} {reason}")
    if result.without_gold:
        note(f"not in recall: {result.without_gold} questions without a gold candidate")


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
        found = result.abstention
        shown.add_row("abstained", f"{found.abstained:,}", f"{found.unanswerable:,} unanswerable")
    shown.add_row("questions", f"{result.n:,}", f"{result.errors:,} errors" if result.errors else "")
    console().print(shown)
