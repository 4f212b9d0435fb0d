"""``clara train`` and ``calibrate``: options and progress of ``clara.train`` and ``clara.calibrate``."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from clara.cli.options import BaseOption, CacheOption, DeviceOption, JsonOption, ThreadsOption, given_path
from clara.cli.session import cache_folder, make_folder, prepare_torch
from clara.cli.terminal import (
    INTERRUPTED,
    bar_or_lines,
    clock,
    download_lines,
    note,
    plain,
    print_json,
    print_result,
    write,
)
from clara.errors import InputError
from clara.train.stages import CALIBRATE, CHAIN, StageName

if TYPE_CHECKING:
    from clara.data import DataRecord
    from clara.train.chain import Calibration, Chain
    from clara.train.log import TrainProgress
    from clara.train.stages.base import Stage

_EVAL_FOLDER = "eval"


def train(
    stage: Annotated[
        Literal[StageName, "chain"], typer.Argument(help="Training stage, or chain for all runs of a recipe.")
    ],
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="More data files.")] = None,
    *,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Records or a public format (docs/evaluation.md); several, or again."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run; its checkpoint is DIR/checkpoint.")],
    config: Annotated[Path, typer.Option(help="Recipe (TOML); unknown keys are errors.")],
    start: Annotated[str | None, typer.Option(help="Checkpoint to go on from, instead of the recipe's.")] = None,
    base: Annotated[str | None, typer.Option(help="Base model, instead of the recipe's.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "cpu",
    cache: CacheOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Train a stage and write a checkpoint, DIR/checkpoint, or in stage reader a reader, DIR/reader.

    Stages end-to-end and retriever start from a checkpoint; they compress each document of the run once, before the
    first step, and keep the memories in the cache folder for later runs on the same compressor.

    chain trains the runs that the recipe's [[chain]] names, one after another, each in a folder of DIR, and calibrates
    the last: DIR/checkpoint is the result. Runs that are there to their end are not trained again.

    The data files follow --data: --data A B C, or --data A --data B. Files under a folder named eval are refused: what
    is measured on is never trained on. The same command goes on after an interruption or a kill, from the last
    checkpoint in the run's folder.

    Progress goes to stderr: a live line on a terminal, elsewhere a line every 30 seconds; each step is in
    DIR/log.jsonl. Several processes: torchrun --nproc-per-node N -m clara.cli train … or accelerate launch
    (docs/training.md); the first one speaks.

    --json prints {"checkpoint", "steps", "records", "rejected": {reason: count}, "cross_entropy", "mse", "held_out"},
    with the losses of the last step this run made (null if there was none left to make). Of a chain it prints
    {"checkpoint", "runs": [{"run", "stage", and the same of each}]}.
    """
    from clara.config import read_toml  # noqa: PLC0415
    from clara.train.chain import chain_of  # noqa: PLC0415
    from clara.train.stages import stage_of  # noqa: PLC0415

    paths = [*(data or ()), *(files or ())]
    if not paths:
        raise InputError("nothing to train on: give --data FILE")
    _refuse_eval(paths)
    given = {name: value for name, value in (("start", start), ("base", base)) if value is not None}
    chain = None
    if stage == CHAIN:
        if start is not None:
            raise InputError("a chain begins with its base model; --start goes with a stage")
        chain = chain_of(read_toml(config) | given, out, source=str(config))
    else:
        recipe = {key: value for key, value in read_toml(config).items() if key not in (CHAIN, CALIBRATE)}
        chosen_stage = stage_of(stage, recipe | given, source=str(config))
    stages = [chosen_stage] if chain is None else [run.stage for run in chain.runs]
    speaks = _first_process()
    records, rejected = _read_all(
        paths, plain=any(one.restates_passages for one in stages), say=note if speaks else _silence
    )
    make_folder(out)
    job = _TrainJob(records, rejected, cache_folder(cache), prepare_torch(device, threads), speaks)
    if chain is not None:
        _train_chain(chain, job, paths, as_json=as_json)
        return
    report = job.train(chosen_stage, out)
    if speaks:
        print_result(report, f"checkpoint: {report['checkpoint']}", as_json=as_json)


@dataclass(frozen=True, slots=True)
class _TrainJob:
    """Shared by all runs of a command; ``rejected`` counts lines without a record by reason."""

    records: Sequence[DataRecord]
    rejected: Counter[str]
    cache: Path
    device: str
    speaks: bool

    def train(self, stage: Stage, out: Path) -> dict[str, object]:
        """Train a stage; returns its part of ``--json``."""
        from clara.train.run import train as run  # noqa: PLC0415

        said: deque[TrainProgress] = deque(maxlen=1)
        rejected = Counter(self.rejected)
        say = note if self.speaks else _silence

        def on_unused(unused: Mapping[str, int]) -> None:
            rejected.update(unused)
            if unused:
                say("not used: " + ", ".join(f"{count} x {reason}" for reason, count in unused.items()))

        try:
            with _progress() if self.speaks else nullcontext(_silence) as say_step:

                def on_progress(progress: TrainProgress) -> None:
                    said.append(progress)
                    say_step(progress)

                folder = run(
                    stage,
                    self.records,
                    out,
                    cache=self.cache,
                    device=self.device,
                    on_progress=on_progress,
                    hub_progress=download_lines() if self.speaks else None,
                    on_unused=on_unused,
                    on_notice=say,
                )
        except KeyboardInterrupt:
            note("clara: interrupted; the same command goes on from the last checkpoint")
            raise typer.Exit(INTERRUPTED) from None
        last = said[0] if said else None
        return {
            "checkpoint": str(folder),
            "steps": last.steps if last is not None else stage.config.steps,
            "records": len(self.records),
            "rejected": dict(rejected),
            **{name: getattr(last, name, None) for name in ("cross_entropy", "mse", "held_out")},
        }


def _train_chain(chain: Chain, job: _TrainJob, paths: Sequence[Path], *, as_json: bool) -> None:
    """Train the missing runs of a chain, then calibrate the last."""
    from clara.train.run import finished  # noqa: PLC0415

    reports: list[dict[str, object]] = []
    for number, run in enumerate(chain.runs, start=1):
        if job.speaks:
            label = f"run {number} of {len(chain.runs)}: {run.name}"
            note(f"{label}, stage {run.stage.name}, {run.stage.config.steps:,} steps")
        if finished(run.stage, job.records, run.out):
            report: dict[str, object] = {"checkpoint": str(run.result)}
        else:
            make_folder(run.out)
            report = job.train(run.stage, run.out)
        reports.append({"run": run.name, "stage": run.stage.name, **report})
    if not job.speaks:
        return
    if chain.calibration is not None and not chain.result.is_dir():
        note(f"calibrating {chain.calibration.of}")
        _calibrate(chain, chain.calibration, job, paths)
    made = {"checkpoint": str(chain.result), "runs": reports}
    print_result(made, f"checkpoint: {chain.result}", as_json=as_json)


def _calibrate(chain: Chain, calibration: Calibration, job: _TrainJob, paths: Sequence[Path]) -> None:
    """Calibrate a chain's last run into its result."""
    from clara.calibrate.run import CalibrationOptions, CheckpointLoader, calibrate  # noqa: PLC0415 - imports torch

    reader = None if calibration.reader is None else chain.result_of(calibration.reader)
    calibrate(
        str(chain.result_of(calibration.of)),
        job.records,
        CalibrationOptions(reader=reader, limit=calibration.limit),
        CheckpointLoader(job.cache, None, job.device, download_lines()),
        out=chain.result,
        data=[path.name for path in paths],
        on_notice=note,
    )


def _first_process() -> bool:
    """True in the one process of torchrun or accelerate launch that reports."""
    return os.environ.get("RANK", "0") == "0"


def _silence(_: object) -> None:
    """Report nothing, in the other processes."""


def _refuse_eval(paths: Sequence[Path]) -> None:
    """Refuse evaluation data, whatever name leads to it."""
    for path in paths:
        folders = {part.lower() for form in (path, path.absolute(), path.resolve()) for part in form.parent.parts}
        if _EVAL_FOLDER in folders:
            raise InputError(
                f"{path} is under a folder named {_EVAL_FOLDER}: what is measured on is never trained on; "
                "name other data files"
            )


def _read_all(
    paths: Sequence[Path], *, plain: bool, say: Callable[[str], None]
) -> tuple[list[DataRecord], Counter[str]]:
    """All records, and counts of rejected lines."""
    from clara.data import read_records  # noqa: PLC0415

    records: list[DataRecord] = []
    rejected: Counter[str] = Counter()
    for path in paths:
        reading = read_records(path, plain_passages=plain)
        say(reading.summary())
        records.extend(reading.records)
        rejected.update(reading.rejected)
    return records, rejected


@contextmanager
def _progress() -> Iterator[Callable[[TrainProgress], None]]:
    """A live line on a terminal; elsewhere a plain line now and then, and for each held-out loss."""
    with bar_or_lines("steps") as show:
        measured: list[str] = []

        def say_step(progress: TrainProgress) -> None:
            validation = progress.validation
            if validation is not None:
                named = {"F1": validation.f1, "Recall@5": validation.recall_at_5}
                scores = (f"{name} {value:.3f}" for name, value in named.items() if value is not None)
                measured[:] = [f"held out {validation.default_loss:.3f}", *scores]
            parts = [f"loss {progress.cross_entropy:.3f}", f"mse {progress.mse:.4f}", *measured]
            parts += [f"{progress.samples_per_second:.1f} samples/s", f"{progress.tokens_per_second:,.0f} tokens/s"]
            words = ", ".join([*parts, f"{clock(progress.seconds_left)} left"])
            now = progress.held_out is not None or progress.step == progress.steps
            line = f"step {progress.step}/{progress.steps}: {words}"
            show(progress.step, progress.steps, words, line, now=now)

        yield say_step


def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint: folder, hub id or embedded model. It stays as it is.")],
    *,
    data: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Records (.jsonl, .jsonl.gz); may be given again.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=given_path, help="Folder of the result; without it nothing is written.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PART,…",
            help="Of queries, spans, latent-weight, rerank, contrast, wording, reading, evidence; by default all but "
            "spans that the checkpoint supports, and queries only where it has no query side.",
        ),
    ] = None,
    other: Annotated[
        str | None, typer.Option("--from", metavar="OTHER", help="Average the adapters with this checkpoint's.")
    ] = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="Share of OTHER in the mean.")] = 0.5,
    reader: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=given_path, help="Attach this reader (clara train reader).")
    ] = None,
    late: Annotated[
        bool | None,
        typer.Option(
            "--late-interaction/--mean",
            help="How questions are compared by queries: memory token by memory token, or by their mean.",
        ),
    ] = None,
    keep: Annotated[float, typer.Option(min=0, max=1, help="Share of the right answers that evidence keeps.")] = 0.95,
    limit: Annotated[int, typer.Option(min=2, help="Most questions that are asked.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the sample of questions.")] = 0,
    as_json: JsonOption = False,
    base: BaseOption = None,
    device: DeviceOption = "cpu",
    cache: CacheOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Set by measurement what a checkpoint does not learn: how it searches, how it reads, when it withholds an answer.

    Passages of the records are searched and answered from as clara ask would. A value changes where another one is
    better by more than the standard error. Queries, spans, --from and --reader make weights without a training step.
    Files under a folder named eval are refused.

    The result has the record in its clara.json (trained.calibrated) and in its card.

    --json prints {"checkpoint", "calibrated": {part: {"value", "was", "metric", "candidates", "questions", "passages",
    "date", "data", "records", "seed"}}}; contrast, reading and evidence hold one such object for each value they set.
    """
    from clara.calibrate.run import (  # noqa: PLC0415 - imports torch
        CalibrationOptions,
        CheckpointLoader,
        Part,
    )
    from clara.calibrate.run import calibrate as run  # noqa: PLC0415

    paths = data or []
    _refuse_eval(paths)
    parts = None if only is None else frozenset(name.strip() for name in only.split(",") if name.strip())
    if parts is not None and (unknown := parts - set(get_args(Part))):
        raise InputError(f"--only: there is no {', '.join(sorted(unknown))}; give some of {', '.join(get_args(Part))}")
    options = CalibrationOptions(
        None if parts is None else cast("frozenset[Part]", parts), other, share, reader, late, keep, limit, seed
    )
    records, _ = _read_all(paths, plain=True, say=note)
    device = prepare_torch(device, threads)
    with bar_or_lines("calibrating", at_once=False) as tell:
        made = run(
            checkpoint,
            records,
            options,
            CheckpointLoader(cache_folder(cache), base, device, download_lines()),
            out=out,
            data=[path.name for path in paths],
            on_progress=lambda what, done, total: tell(done, total, what, f"{what}: {done}/{total}"),
            on_notice=note,
        )
    if as_json:
        print_json({"checkpoint": None if out is None else str(out), "calibrated": dict(made.measured)})
        return
    for part, entry in made.measured.items():
        _show_measured(part, entry)
    write(f"checkpoint: {plain(str(out))}" if out is not None else "nothing was written; give --out DIR")


def _show_measured(name: str, entry: Mapping[str, Any]) -> None:
    if "value" in entry:
        was = f" (before: {entry['was']})" if "was" in entry else ""
        figures = ", ".join(f"{one}: {figure:.3f}" for one, figure in entry.get("candidates", {}).items())
        write(f"{name}: {entry['value']}{was}{'; ' + entry['metric'] + ' ' + figures if figures else ''}")
    elif "from" in entry:
        write(f"{name}: {plain(str(entry['from']))}")
    for key, one in entry.items():
        if isinstance(one, dict) and "value" in one:
            _show_measured(f"{name}, {key}", one)
