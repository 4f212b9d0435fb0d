"""``clara compare``: several systems on the same questions, from options or a recipe; shared with ``clara eval``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli.options import DEFAULT_MODEL, JsonOption, ModelChoice, NamedModel, given_options
from clara.cli.session import cache_folder, load_model, resolved, without_model
from clara.cli.terminal import INTERRUPTED, bar_or_lines, clock, console, note, print_json, table, write
from clara.errors import InputError

if TYPE_CHECKING:
    from clara.evaluate.journal import Provenance
    from clara.evaluate.questions import FirstStage, TaskLoader
    from clara.evaluate.report import GridReport
    from clara.evaluate.run import Grid, GridRun
    from clara.evaluate.system import Given, SystemSettings
    from clara.metrics import ScoringName
    from clara.model import ClaraModel

ALWAYS = frozenset({"limit", "out", "as_json", "model", "base", "device", "dtype", "cache", "threads"})
"""Parameters of every kind of evaluation."""

_SOURCES = frozenset({"option", "reader", "data_dir", "corpus", "first_stage", "candidates", "retry_errors"})
_RECIPE = ALWAYS | _SOURCES | {"recipe", "data", "system"}
_SYSTEMS = (
    ALWAYS
    | _SOURCES
    | {"data", "system", "setting", "given", "rate", "k", "batch_size", "max_new_tokens", "seed", "timed"}
    | {"scoring", "yes_no"}
)
_PAIRS = (
    {"name": "trained readers", "none": "closed-book-reader", "text": "reader-bm25"},
    {"name": "zero-shot", "none": "closed-book", "text": "text-bm25"},
)
_OF_SEARCH = {"first_stage": "--first-stage", "candidates": "--candidates"}
_SEARCH_MODES: dict[str, Literal["latent", "text", "hybrid"]] = {"bm25": "text", "dense": "latent", "hybrid": "hybrid"}
_READER_DTYPES: dict[str, Literal["auto", "bf16", "fp32"]] = {"auto": "auto", "bf16": "bf16", "fp32": "fp32"}


@dataclass(frozen=True, slots=True)
class EvalChoice:
    """Options about questions, systems and scores, in the order of ``clara compare``.

    ``chosen`` are options that the user gave, as against defaults of the same value; ``folders`` those of single
    systems.
    """

    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Questions: a file of our own records or of a public format, a name (nq, hotpotqa, musique, 2wiki, "
            "squad), or a BEIR folder. Several systems may be given several.",
        ),
    ] = None
    system: Annotated[list[str] | None, typer.Option(metavar="NAME", help="System to compare; may be given again.")] = (
        None
    )
    recipe: Annotated[Path | None, typer.Option(help="A grid of data sets, settings, rates and systems (TOML).")] = None
    setting: Annotated[
        Literal["oracle", "normal"] | None,
        typer.Option(help="The gold documents are surely among the candidates (oracle, default), or as retrieved."),
    ] = None
    given: Annotated[
        Literal["gold", "candidates"] | None,
        typer.Option(help="The k ranked first among the candidates (default), or the gold documents."),
    ] = None
    rate: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Compression rate; the model's by default. Of systems it may be given again."),
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first questions; of a recipe at most so many of each block.")
    ] = None
    k: Annotated[int, typer.Option(min=1, help="Documents in the prompt with --given candidates.")] = 5
    reader: Annotated[str | None, typer.Option(metavar="DIR", help="The same as --option reader=DIR.")] = None
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="Folder that a system needs; may be given again.")
    ] = None
    data_dir: Annotated[
        Path | None, typer.Option(envvar="CLARA_DATA", help="Folder of the named data sets: NAME.SETTING.jsonl.gz.")
    ] = None
    corpus: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|pool",
            help="Where candidates come from: a store, a BEIR folder, a passage file, or the file's own pooled.",
        ),
    ] = None
    first_stage: Annotated[Literal["bm25", "dense", "hybrid"], typer.Option(help="How a corpus is searched.")] = "bm25"
    candidates: Annotated[int, typer.Option(min=1, help="Documents a question from a corpus.")] = 20
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 8
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 32
    scoring: Annotated[
        Literal["squad", "hotpotqa", "triviaqa", "paper", "official"],
        typer.Option(
            help="Whose rule answers are scored by: SQuAD 2.0, HotpotQA (yes and no count only whole), TriviaQA, the "
            "CLaRa paper's release, or official: that of each question's data set."
        ),
    ] = "squad"
    yes_no: Annotated[bool, typer.Option("--yes-no", hidden=True, help="The same as --scoring hotpotqa.")] = False
    timed: Annotated[int, typer.Option(min=0, help="Questions of each run that are timed to the first token.")] = 8
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Ask again what gave an error in an earlier run.")
    ] = False
    seed: Annotated[int, typer.Option(min=0, help="Of bootstrap and permutation tests.")] = 0
    out: Annotated[Path | None, typer.Option(help="Folder for report, results, rows and journals.")] = None
    chosen: frozenset[str] = frozenset()
    folders: Mapping[str, Path] = field(default_factory=dict)

    @property
    def rule(self) -> ScoringName:
        """The scoring rule."""
        return "hotpotqa" if self.yes_no else self.scoring


def compare(ctx: typer.Context, *, asked: EvalChoice, as_json: JsonOption = False, choice: NamedModel) -> None:
    """Compare systems on the same questions: scores, intervals, paired tests, rankings, times (docs/systems.md).

    \b
    clara compare --data nq --data-dir DIR --system clara --system text-bm25 --out OUT
    clara compare --recipe recipes/results.toml --data-dir DIR --out OUT

    OUT then holds report.md, results.json, rows.jsonl, figures, and a journal of every prediction: the same command
    resumes after an interruption or a kill and asks nothing twice. A trial of a recipe with --limit leaves its page in
    OUT. --json prints what results.json holds.
    """  # noqa: D301 - click keeps the lines of a paragraph that follows this character
    run_comparison(ctx, asked, choice, as_json=as_json)


def run_comparison(ctx: typer.Context, asked: EvalChoice, choice: ModelChoice, *, as_json: bool) -> None:
    """Run a grid and write its report; errors are raised before the first question where they can be known."""
    from clara.evaluate.report import write_page, write_report  # noqa: PLC0415
    from clara.evaluate.run import check_systems, plan  # noqa: PLC0415
    from clara.evaluate.systems import SYSTEMS  # noqa: PLC0415

    if asked.recipe is not None:
        chosen = given_and_allowed(ctx, _RECIPE, "with --recipe, which says it")
    else:
        chosen = given_and_allowed(ctx, _SYSTEMS, "with --system")
    asked = replace(asked, chosen=chosen, folders=_folders(asked.option, asked.reader))
    if asked.out is None:
        raise InputError("a comparison needs --out DIR: its journals make it resumable, its report stands there")
    if asked.recipe is None and (not asked.system or not asked.data):
        raise InputError(f"give --data and --system NAME; systems: {', '.join(sorted(SYSTEMS))}")
    grid = _grid(asked)
    runs = plan(grid.runs, limit=asked.limit)
    check_systems(runs, SYSTEMS)
    try:
        report = _run(asked, choice, grid, runs)
    except KeyboardInterrupt:
        note("clara: interrupted; the same command goes on after the last batch")
        raise typer.Exit(INTERRUPTED) from None
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


def _grid(asked: EvalChoice) -> Grid:
    from clara.config import check, read_toml  # noqa: PLC0415
    from clara.evaluate.run import Grid  # noqa: PLC0415

    if asked.recipe is not None:
        if asked.system or asked.data:
            raise InputError("--recipe says which data and systems; leave --data and --system out, or the recipe")
        return check(Grid, read_toml(asked.recipe), source=str(asked.recipe))
    block = {
        "data": asked.data,
        "settings": (asked.setting or "oracle",),
        "systems": asked.system,
        "rates": asked.rate or (),
        "given": asked.given or "candidates",
        "limit": asked.limit,
        "k": asked.k,
    }
    values = {
        "runs": (block,),
        "benefit": _PAIRS,
        "scoring": asked.rule,
        "max_new_tokens": asked.max_new_tokens,
        "batch_size": asked.batch_size,
        "timed": asked.timed,
        "seed": asked.seed,
    }
    return check(Grid, values, source="command line")


def _run(asked: EvalChoice, choice: ModelChoice, grid: Grid, runs: list[GridRun]) -> GridReport:
    from clara.evaluate.report import make_report  # noqa: PLC0415
    from clara.evaluate.results import Scoring  # noqa: PLC0415
    from clara.evaluate.run import RunSettings, run_grid  # noqa: PLC0415
    from clara.evaluate.systems import SYSTEMS  # noqa: PLC0415
    from clara.evaluate.weights import identity  # noqa: PLC0415
    from clara.model.placement import placement  # noqa: PLC0415

    choice = resolved(choice)
    name = choice.model if "model" in asked.chosen or grid.model is None else grid.model
    model = load_model(choice, name or DEFAULT_MODEL)
    asked = replace(asked, max_new_tokens=grid.max_new_tokens, batch_size=grid.batch_size, timed=grid.timed)
    settings = system_settings(asked, choice, model, given=asked.given or "candidates")
    settings = replace(settings, options={**grid.options, **settings.options})
    origin = origin_of(model, choice.device, seed=grid.seed, checkpoint=identity(settings, model))
    how = RunSettings(
        folder=(asked.out or Path()) / "journals",
        batch_size=grid.batch_size,
        retry_errors=asked.retry_errors,
        origin=origin,
        precision=placement(choice.dtype, choice.device).precision,
        strict=asked.recipe is None,
        scoring=Scoring(rule=grid.scoring, seed=grid.seed),
    )
    with ExitStack() as opened:
        loader = task_loader(asked, settings, model, opened)
        show = opened.enter_context(bar_or_lines("questions"))

        def on_progress(label: str, done: int, total: int, seconds: float | None) -> None:
            left = f"{clock(seconds)} left" if seconds is not None else ""
            show(done, total, f"{label}, {left}", f"{done}/{total} questions, {left}: {label}", now=done == total)

        result = run_grid(runs, SYSTEMS, settings, loader, how, on_progress=on_progress)
    return make_report(result, origin, how.scoring, grid.benefit)


def _say_left_out(report: GridReport) -> None:
    """Report on stderr what the tables leave out."""
    for name, reason in report.grid.not_run.items():
        note(f"not run: {name}: {reason}")
    for name, reasons in report.grid.left_out.items():
        for reason, count in reasons.items():
            note(f"{name}: left out: {count} {reason}")
    for result in report.grid.results:
        for reason, count in result.common_errors():
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


def given_and_allowed(ctx: typer.Context, allowed: frozenset[str], what: str) -> frozenset[str]:
    """Options that the user gave, typed or by the environment.

    Typed ones without effect are refused (InputError): a number must not seem to depend on them.
    """
    foreign = [option for name, option in given_options(ctx, "COMMANDLINE").items() if name not in allowed]
    if foreign:
        raise InputError(f"{', '.join(foreign)} has no meaning {what}; leave it out")
    return frozenset(given_options(ctx, "COMMANDLINE", "ENVIRONMENT"))


def _folders(given: list[str] | None, reader: str | None) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for text in given or ():
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise InputError(f"--option {text!r} must be NAME=DIR, for example reader=runs/reader/reader")
        folders[name] = Path(folder).expanduser()
    if reader in {"generator", "base"}:
        raise InputError(f"--reader {reader} is for a single model; with --system it is the folder of a reader")
    return folders if reader is None else {**folders, "reader": Path(reader).expanduser()}


def system_settings(
    asked: EvalChoice, choice: ModelChoice, model: ClaraModel, *, given: Given, quoted: bool = False
) -> SystemSettings:
    """Settings of the systems of a run."""
    from clara.evaluate.system import SystemSettings  # noqa: PLC0415

    return SystemSettings(
        k=asked.k,
        rate=asked.rate[0] if asked.rate is not None and len(asked.rate) == 1 else None,
        given=given,
        max_new_tokens=asked.max_new_tokens,
        batch_size=asked.batch_size,
        model=model,
        weights_cache=cache_folder(choice.cache),
        options={**({"base": Path(choice.base)} if choice.base else {}), **asked.folders},
        device=choice.device,
        reader_dtype=_READER_DTYPES.get(choice.dtype, "auto"),
        timed=asked.timed,
        quoted=quoted,
    )


def origin_of(model: ClaraModel, device: str, *, seed: int = 0, checkpoint: str | None = None) -> Provenance:
    """The provenance of a run of this command; ``checkpoint`` None: of all the model's weights."""
    from clara.evaluate.journal import Provenance  # noqa: PLC0415
    from clara.evaluate.weights import whole_identity  # noqa: PLC0415

    weights = whole_identity(model) if checkpoint is None else checkpoint
    command = " ".join(["clara", *sys.argv[1:]])
    return Provenance(command=command, model=model.name, checkpoint=weights, seed=seed, device=device)


def task_loader(asked: EvalChoice, settings: SystemSettings, model: ClaraModel, opened: ExitStack) -> TaskLoader:
    """Reads data sets; a store that candidates come from stays open as long as ``opened``."""
    from clara.evaluate.questions import TaskLoader  # noqa: PLC0415
    from clara.evaluate.rankers import minilm  # noqa: PLC0415

    store = Path(asked.corpus or "")
    is_store = asked.corpus is not None and (store / "store.json").is_file()
    return TaskLoader(
        asked.data_dir,
        corpus=asked.corpus,
        stage=opened.enter_context(_store(store, asked.first_stage, model)) if is_store else None,
        first_stage=asked.first_stage,
        candidates=asked.candidates,
        encoder=minilm(settings) if not is_store and asked.first_stage != "bm25" else None,
        typed=tuple(text for name, text in _OF_SEARCH.items() if name in asked.chosen),
    )


@contextmanager
def _store(path: Path, first_stage: Literal["bm25", "dense", "hybrid"], model: ClaraModel) -> Iterator[FirstStage]:
    """A store as first stage, searched by words without its model."""
    from clara.evaluate.questions import store_search  # noqa: PLC0415
    from clara.pipeline import Clara  # noqa: PLC0415

    mode = _SEARCH_MODES[first_stage]
    with without_model(path) if first_stage == "bm25" else Clara.open(path, model=model, create=False) as rag:
        yield store_search(rag, mode, f"{first_stage} over the store {path} ({rag.store.count()} passages)")
