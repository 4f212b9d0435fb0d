"""``clara eval --system`` and ``--recipe``: several systems on the same questions. Options into a grid, and progress.

What a grid does is in ``clara.evaluate.grid``; what it writes, in ``report`` and ``results_page``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from clara.cli.options import DEFAULT_MODEL, ModelChoice
from clara.cli.session import cache_folder, load_model, resolved
from clara.cli.terminal import bar, clock, console, note, print_json, write
from clara.errors import InputError

if TYPE_CHECKING:
    from clara.evaluate.first_stage import Encoder, FirstStage
    from clara.evaluate.grid import Grid, Step, Trial
    from clara.evaluate.report import Report
    from clara.evaluate.sources import Candidacy
    from clara.evaluate.system import SystemSettings
    from clara.model import ClaraModel

_SECONDS_A_LINE = 30.0
_INTERRUPTED = 130
_SHOWN_REASONS = 5
_OF_SEARCH = {"first_stage": "--first-stage", "candidates": "--candidates"}
_SEARCH_MODES: dict[str, Literal["latent", "text", "hybrid"]] = {"bm25": "text", "dense": "latent", "hybrid": "hybrid"}


@dataclass(frozen=True, slots=True)
class SystemsChoice:
    """What the user asked for; the fields are the options of the same names.

    Attributes:
        chosen: names of the options that the user gave, as against defaults of the same value.
    """

    chosen: frozenset[str]
    data: tuple[str, ...]
    setting: Literal["oracle", "normal"]
    systems: tuple[str, ...]
    rates: tuple[int, ...]
    given: Literal["gold", "candidates"]
    limit: int | None
    k: int
    batch_size: int
    max_new_tokens: int
    options: Mapping[str, Path]
    data_dir: Path | None
    corpus: str | None
    first_stage: Literal["bm25", "dense", "hybrid"]
    candidates: int
    yes_no: bool
    timed: int
    retry_errors: bool
    recipe: Path | None
    seed: int
    out: Path | None


def compare(asked: SystemsChoice, choice: ModelChoice, *, as_json: bool) -> None:
    """Run a grid and write its report.

    Raises:
        ClaraError: something the user gave cannot be used; said before the first question where it can be known.
    """
    from clara.evaluate.baselines import SYSTEMS  # noqa: PLC0415
    from clara.evaluate.grid import capped, check_systems, trials  # noqa: PLC0415
    from clara.evaluate.report import write_report  # noqa: PLC0415
    from clara.evaluate.results_page import write_page  # noqa: PLC0415

    if asked.out is None:
        raise InputError("a comparison needs --out DIR: its journals make it resumable, its report stands there")
    if asked.recipe is None and (not asked.systems or not asked.data):
        raise InputError(f"give --data and --system NAME; systems: {', '.join(sorted(SYSTEMS))}")
    grid = _grid(asked)
    wanted = trials(capped(grid.runs, asked.limit))
    check_systems(wanted, SYSTEMS)
    try:
        report = _run(asked, choice, grid, wanted)
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


def _grid(asked: SystemsChoice) -> Grid:
    """The grid of the recipe, or of the options alone."""
    from clara.config import check, read_toml  # noqa: PLC0415
    from clara.evaluate.grid import Grid  # noqa: PLC0415

    if asked.recipe is not None:
        if asked.systems or asked.data:
            raise InputError("--recipe says which data and systems; leave --data and --system out, or the recipe")
        return check(Grid, read_toml(asked.recipe), source=str(asked.recipe))
    run = {
        "data": asked.data,
        "settings": (asked.setting,),
        "systems": asked.systems,
        "rates": asked.rates,
        "given": asked.given,
        "limit": asked.limit,
        "k": asked.k,
    }
    values = {
        "runs": (run,),
        "benefit": _PAIRS,
        "yes_no": asked.yes_no,
        "max_new_tokens": asked.max_new_tokens,
        "batch_size": asked.batch_size,
        "timed": asked.timed,
        "seed": asked.seed,
    }
    return check(Grid, values, source="command line")


_PAIRS = (
    {"name": "trained readers", "none": "closed-book-reader", "text": "reader-bm25"},
    {"name": "zero-shot", "none": "closed-book", "text": "text-bm25"},
)


def _run(asked: SystemsChoice, choice: ModelChoice, grid: Grid, wanted: list[Trial]) -> Report:
    from clara.evaluate.baselines import SYSTEMS  # noqa: PLC0415
    from clara.evaluate.baselines.folders import identity  # noqa: PLC0415
    from clara.evaluate.contest import Asking, Scoring  # noqa: PLC0415
    from clara.evaluate.grid import run_grid  # noqa: PLC0415
    from clara.evaluate.provenance import provenance  # noqa: PLC0415
    from clara.evaluate.report import make_report  # noqa: PLC0415
    from clara.evaluate.sources import Sources  # noqa: PLC0415
    from clara.evaluate.system import SystemSettings  # noqa: PLC0415
    from clara.model.placement import placement  # noqa: PLC0415

    choice = resolved(choice)
    out = asked.out or Path()
    name = choice.model if "model" in asked.chosen or grid.model is None else grid.model
    model = load_model(choice, name or DEFAULT_MODEL)
    command = ["clara", *sys.argv[1:]]
    settings = SystemSettings(
        k=asked.k,
        rate=None,
        given="candidates",
        max_new_tokens=grid.max_new_tokens,
        batch_size=grid.batch_size,
        model=model,
        cache=cache_folder(choice.cache),
        options={**grid.options, **({"base": Path(choice.base)} if choice.base else {}), **asked.options},
        device=choice.device,
        timed=grid.timed,
    )
    whole = identity(settings, model)
    origin = provenance(command, model=model.name, checkpoint=whole, seed=grid.seed, device=choice.device)
    asking = Asking(
        folder=out / "journals",
        batch_size=grid.batch_size,
        retry_errors=asked.retry_errors,
        origin=origin.to_json(),
        precision=placement(choice.dtype, choice.device).precision,
        strict=asked.recipe is None,
    )
    scoring = Scoring(yes_no=grid.yes_no, seed=grid.seed)
    with ExitStack() as opened:
        sources = Sources(asked.data_dir, _candidacy(asked, model, settings, opened))
        tell = opened.enter_context(_progress())
        outcome = run_grid(wanted, SYSTEMS, settings, sources, asking, scoring=scoring, tell=tell)
    return make_report(outcome, origin, scoring, grid.benefit)


def _candidacy(asked: SystemsChoice, model: ClaraModel, settings: SystemSettings, opened: ExitStack) -> Candidacy:
    """Where candidates come from; a store stays open as long as ``opened``."""
    from clara.evaluate.sources import Candidacy  # noqa: PLC0415

    stage: FirstStage | None = None
    encoder: Encoder | None = None
    if asked.corpus is not None and (Path(asked.corpus) / "store.json").is_file():
        stage = opened.enter_context(_store(Path(asked.corpus), asked.first_stage, model))
    elif asked.first_stage != "bm25":
        from clara.evaluate.baselines.dense import minilm  # noqa: PLC0415

        encoder = minilm(settings)
    return Candidacy(
        corpus=asked.corpus,
        stage=stage,
        first_stage=asked.first_stage,
        candidates=asked.candidates,
        encoder=encoder,
        typed=tuple(text for name, text in _OF_SEARCH.items() if name in asked.chosen),
    )


@contextmanager
def _store(path: Path, first_stage: Literal["bm25", "dense", "hybrid"], model: ClaraModel) -> Iterator[FirstStage]:
    """A store as first stage, with the model under test where it is searched by memory."""
    from clara.cli.session import without_model  # noqa: PLC0415
    from clara.evaluate.first_stage import StoreSearch  # noqa: PLC0415
    from clara.pipeline import Clara  # noqa: PLC0415

    mode = _SEARCH_MODES[first_stage]
    with without_model(path) if first_stage == "bm25" else Clara.open(path, model=model, create=False) as rag:
        label = f"{path} ({rag.store.count()} passages)"
        yield StoreSearch(lambda question, k: rag.search(question, k, mode=mode), first_stage, label=label)


@contextmanager
def _progress() -> Iterator[Callable[[Step], None]]:
    """A live line on a terminal; elsewhere a plain line now and then."""
    spoken = [-_SECONDS_A_LINE]
    with bar("questions") as show:

        def tell(step: Step) -> None:
            left = f"{clock(step.seconds_left)} left" if step.seconds_left is not None else ""
            if show is not None:
                show(step.done, step.total, f"{step.label}, {left}")
                return
            now = time.monotonic()
            if now - spoken[0] >= _SECONDS_A_LINE or step.done == step.total:
                spoken[0] = now
                note(f"{step.done}/{step.total} questions, {left}: {step.label}")
                sys.stderr.flush()

        yield tell


def _say_left_out(report: Report) -> None:
    """What the tables do not hold, on stderr."""
    for name, reason in report.outcome.not_run.items():
        note(f"not run: {name}: {reason}")
    for name, reasons in report.outcome.left_out.items():
        for reason, count in reasons.items():
            note(f"{name}: left out: {count} {reason}")
    for result in report.outcome.results:
        for reason, count in list(result.error_reasons.items())[:_SHOWN_REASONS]:
            note(f"{report.names.data(result.subject)} {result.subject.label}: error, {count} times: {reason}")


def _show(report: Report) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    headings = ("data", "system", "n", "errors", "EM", "F1", "95 %", "cover-EM", "Recall@5", "first token")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < 2 else "right")
    names = report.names
    for result in report.outcome.results:
        subject, ci = result.subject, result.ci95
        seconds = result.first_token_seconds
        table.add_row(
            f"{names.data(subject)} {subject.setting}{names.k(subject)}",
            subject.label,
            f"{result.n:,}",
            f"{result.errors:,}",
            _three(result.em),
            _three(result.f1),
            f"{ci.f1.low:.3f} to {ci.f1.high:.3f}" if ci is not None else "",
            _three(result.cover_em),
            _three(result.retrieval["R@5"] if result.retrieval is not None else None),
            f"{1000 * seconds:,.0f} ms" if seconds is not None else "",
        )
    console().print(table)


def _three(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else ""
