"""``clara compare``: several systems on the same questions, from options or a recipe.

What a grid does is in ``clara.evaluate.run``; what it writes, in ``clara.evaluate.report``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli import evaluation
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
from clara.cli.options import DEFAULT_MODEL, JsonOption, ModelChoice, NamedModel
from clara.cli.session import load_model, resolved
from clara.cli.terminal import Tell, bar_or_lines, clock, console, note, print_json, table, write
from clara.errors import InputError

if TYPE_CHECKING:
    from clara.evaluate.report import GridReport
    from clara.evaluate.run import Grid, GridProgress, GridRun

_INTERRUPTED = 130
ALWAYS = frozenset({"limit", "out", "as_json", "model", "base", "device", "dtype", "cache", "threads"})
_SOURCES = frozenset({"option", "reader", "data_dir", "corpus", "first_stage", "candidates", "retry_errors"})
_RECIPE = ALWAYS | _SOURCES | {"recipe", "data", "system"}
_SYSTEMS = (
    ALWAYS
    | _SOURCES
    | {"data", "system", "setting", "given", "rate", "k", "batch_size", "max_new_tokens", "seed", "timed"}
    | {"scoring", "yes_no"}
)


def compare(
    ctx: typer.Context,
    *,
    data: evaluation.DataOption = None,
    system: evaluation.SystemOption = None,
    recipe: evaluation.RecipeOption = None,
    setting: evaluation.SettingOption = None,
    given: Annotated[
        Literal["gold", "candidates"] | None,
        typer.Option(help="The k ranked first among the candidates (default), or the gold documents."),
    ] = None,
    rate: evaluation.RatesOption = None,
    limit: evaluation.LimitOption = None,
    k: evaluation.PassagesOption = 5,
    reader: Annotated[str | None, typer.Option(metavar="DIR", help="The same as --option reader=DIR.")] = None,
    option: evaluation.FolderOption = None,
    pool: PoolChoice,
    batch_size: evaluation.BatchOption = 8,
    max_new_tokens: evaluation.LengthOption = 32,
    scores: ScoreChoice,
    seed: evaluation.SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for report, results, rows and journals.")] = None,
    as_json: JsonOption = False,
    choice: NamedModel,
) -> None:
    """Compare systems on the same questions: scores, intervals, paired tests, rankings, times (docs/systems.md).

    \b
    clara compare --data nq --data-dir DIR --system clara --system text-bm25 --out OUT
    clara compare --recipe recipes/results.toml --data-dir DIR --out OUT

    OUT then holds report.md, results.json, rows.jsonl, figures, and a journal of every prediction: the same command
    resumes after an interruption or a kill and asks nothing twice. A trial of a recipe with --limit leaves its page in
    OUT. --json prints what results.json holds.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    asked = EvalChoice(
        chosen=frozenset(given_options(ctx, "COMMANDLINE", "ENVIRONMENT")),
        data=tuple(data or ()),
        setting=setting or "oracle",
        systems=tuple(system or ()),
        rates=tuple(rate or ()),
        given=given or "candidates",
        limit=limit,
        k=k,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        options=folders(option, reader),
        pool=pool,
        scores=scores,
        recipe=recipe,
        seed=seed,
        out=out,
    )
    run_comparison(ctx, asked, choice, as_json=as_json)


def run_comparison(ctx: typer.Context, asked: EvalChoice, choice: ModelChoice, *, as_json: bool) -> None:
    """Run a grid and write its report.

    Raises:
        ClaraError: something the user gave cannot be used; said before the first question where it can be known.
    """
    from clara.evaluate.report import write_page, write_report  # noqa: PLC0415
    from clara.evaluate.run import capped, check_systems, plan  # noqa: PLC0415
    from clara.evaluate.systems import SYSTEMS  # noqa: PLC0415

    if asked.recipe is not None:
        refuse_foreign(ctx, _RECIPE, "with --recipe, which says it")
    else:
        refuse_foreign(ctx, _SYSTEMS, "with --system")
    if asked.out is None:
        raise InputError("a comparison needs --out DIR: its journals make it resumable, its report stands there")
    if asked.recipe is None and (not asked.systems or not asked.data):
        raise InputError(f"give --data and --system NAME; systems: {', '.join(sorted(SYSTEMS))}")
    grid = _grid(asked)
    runs = plan(capped(grid.runs, asked.limit))
    check_systems(runs, SYSTEMS)
    try:
        report = _run(asked, choice, grid, runs)
    except KeyboardInterrupt:
        note("clara: interrupted; the same command goes on after the last batch")
        raise typer.Exit(_INTERRUPTED) from None
    _say_left_out(report)
    written = write_report(report, asked.out)
    if grid.page is not None:
        # A trial with fewer questions does not take the place of the real page.
        page = grid.page if asked.limit is None else asked.out / grid.page.name
        write_page(report, page, note=grid.note)
        written.append(page)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)
        for path in written:
            write(str(path))


_PAIRS = (
    {"name": "trained readers", "none": "closed-book-reader", "text": "reader-bm25"},
    {"name": "zero-shot", "none": "closed-book", "text": "text-bm25"},
)


def _grid(asked: EvalChoice) -> Grid:
    """The grid of the recipe, or of the options alone."""
    from clara.config import check, read_toml  # noqa: PLC0415
    from clara.evaluate.run import Grid  # noqa: PLC0415

    if asked.recipe is not None:
        if asked.systems or asked.data:
            raise InputError("--recipe says which data and systems; leave --data and --system out, or the recipe")
        return check(Grid, read_toml(asked.recipe), source=str(asked.recipe))
    block = {
        "data": asked.data,
        "settings": (asked.setting,),
        "systems": asked.systems,
        "rates": asked.rates,
        "given": asked.given,
        "limit": asked.limit,
        "k": asked.k,
    }
    values = {
        "runs": (block,),
        "benefit": _PAIRS,
        "scoring": asked.scores.rule,
        "max_new_tokens": asked.max_new_tokens,
        "batch_size": asked.batch_size,
        "timed": asked.scores.timed,
        "seed": asked.seed,
    }
    return check(Grid, values, source="command line")


def _run(asked: EvalChoice, choice: ModelChoice, grid: Grid, runs: list[GridRun]) -> GridReport:
    from clara.evaluate.questions import TaskLoader  # noqa: PLC0415
    from clara.evaluate.report import make_report  # noqa: PLC0415
    from clara.evaluate.results import Scoring  # noqa: PLC0415
    from clara.evaluate.run import RunSettings, run_grid  # noqa: PLC0415
    from clara.evaluate.systems import SYSTEMS  # noqa: PLC0415
    from clara.evaluate.weights import identity  # noqa: PLC0415
    from clara.model.placement import placement  # noqa: PLC0415

    choice = resolved(choice)
    name = choice.model if "model" in asked.chosen or grid.model is None else grid.model
    model = load_model(choice, name or DEFAULT_MODEL)
    settings = system_settings(asked, choice, model)
    settings = replace(
        settings,
        max_new_tokens=grid.max_new_tokens,
        batch_size=grid.batch_size,
        timed=grid.timed,
        options={**grid.options, **settings.options},
    )
    whole = identity(settings, model)
    origin = origin_of(model, choice.device, seed=grid.seed, checkpoint=whole)
    how = RunSettings(
        folder=(asked.out or Path()) / "journals",
        batch_size=grid.batch_size,
        retry_errors=asked.scores.retry_errors,
        origin=origin.to_json(),
        precision=placement(choice.dtype, choice.device).precision,
        strict=asked.recipe is None,
    )
    scoring = Scoring(rule=grid.scoring, seed=grid.seed)
    with ExitStack() as opened:
        loader = TaskLoader(asked.pool.data_dir, candidacy(asked, settings, model, opened))
        tell = opened.enter_context(bar_or_lines("questions"))
        found = run_grid(runs, SYSTEMS, settings, loader, how, scoring=scoring, on_progress=_telling(tell))
    return make_report(found, origin, scoring, grid.benefit)


def _telling(tell: Tell) -> Callable[[GridProgress], None]:
    def on_progress(step: GridProgress) -> None:
        left = f"{clock(step.seconds_left)} left" if step.seconds_left is not None else ""
        line = f"{step.done}/{step.total} questions, {left}: {step.label}"
        tell(step.done, step.total, f"{step.label}, {left}", line, now=step.done == step.total)

    return on_progress


def _say_left_out(report: GridReport) -> None:
    """What the tables do not hold, on stderr."""
    for name, reason in report.grid.not_run.items():
        note(f"not run: {name}: {reason}")
    for name, reasons in report.grid.left_out.items():
        for reason, count in reasons.items():
            note(f"{name}: left out: {count} {reason}")
    for result in report.grid.results:
        for reason, count in list(result.error_reasons.items())[:SHOWN_REASONS]:
            note(f"{report.names.data(result.group)} {result.label}: error, {count} times: {reason}")


def _show(report: GridReport) -> None:
    headings = ("data", "system", "n", "errors", "EM", "F1", "95 %", "cover-EM", "Recall@5", "first token")
    shown = table(*headings, words=2)
    names = report.names
    for result in report.grid.results:
        interval = result.ci95["f1"] if result.ci95 is not None else None
        seconds = result.first_token_seconds
        shown.add_row(
            f"{names.data(result.group)} {result.setting}{names.k(result.group)}",
            result.label,
            f"{result.n:,}",
            f"{result.errors:,}",
            _three(result.em),
            _three(result.f1),
            f"{interval.low:.3f} to {interval.high:.3f}" if interval is not None else "",
            _three(result.cover_em),
            _three(result.retrieval["R@5"] if result.retrieval is not None else None),
            f"{1000 * seconds:,.0f} ms" if seconds is not None else "",
        )
    console().print(shown)


def _three(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else ""
