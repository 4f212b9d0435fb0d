"""``clara train``: data files and a recipe into a checkpoint. Options and progress; stages are in ``clara.train``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clara.cli.options import CacheOption, DeviceOption, JsonOption, ThreadsOption
from clara.cli.session import cache_folder, make_folder, prepare_torch
from clara.cli.terminal import bar_or_lines, clock, download_lines, note, print_json, write
from clara.errors import InputError
from clara.train.stages import CALIBRATE, CHAIN, StageName

if TYPE_CHECKING:
    from clara.data import DataRecord
    from clara.train.chain import Calibration, Chain
    from clara.train.log import TrainProgress
    from clara.train.stages.base import Stage
    from clara.train.validation import Validation

_EVAL_FOLDER = "eval"
_INTERRUPTED = 130


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
    refuse_eval(paths)
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
    records, rejected = read_all(
        paths, plain=any(one.restates_passages for one in stages), say=note if speaks else _silence
    )
    make_folder(out)
    job = _TrainJob(records, rejected, cache_folder(cache), prepare_torch(device, threads), speaks)
    if chain is not None:
        _train_chain(chain, job, paths, as_json=as_json)
        return
    report = job.train(chosen_stage, out)
    if not speaks:
        return
    if as_json:
        print_json(report)
    else:
        write(f"checkpoint: {report['checkpoint']}")


@dataclass(frozen=True, slots=True)
class _TrainJob:
    """What all runs of a command have in common.

    Attributes:
        records: to train on.
        rejected: lines that gave none, counted by reason.
        cache: folder of base weights and memories.
        device: of the model.
        speaks: whether this process does.
    """

    records: Sequence[DataRecord]
    rejected: Counter[str]
    cache: Path
    device: str
    speaks: bool

    def train(self, stage: Stage, out: Path) -> dict[str, object]:
        """Train a stage; what ``--json`` prints of it."""
        from clara.train.run import train as run  # noqa: PLC0415

        last, rejected = _Last(), Counter(self.rejected)
        say = note if self.speaks else _silence
        try:
            with _progress() if self.speaks else nullcontext(_silence) as say_step:
                last.then = say_step
                folder = run(
                    stage,
                    self.records,
                    out,
                    cache=self.cache,
                    device=self.device,
                    on_progress=last,
                    hub_progress=download_lines() if self.speaks else None,
                    on_unused=_Unused(rejected, say=say),
                    on_notice=say,
                )
        except KeyboardInterrupt:
            note("clara: interrupted; the same command goes on from the last checkpoint")
            raise typer.Exit(_INTERRUPTED) from None
        steps = last.progress.steps if last.progress is not None else stage.config.steps
        counts = {"steps": steps, "records": len(self.records), "rejected": dict(rejected)}
        losses = {name: getattr(last.progress, name, None) for name in ("cross_entropy", "mse", "held_out")}
        return {"checkpoint": str(folder), **counts, **losses}


def _train_chain(chain: Chain, job: _TrainJob, paths: Sequence[Path], *, as_json: bool) -> None:
    """Train the runs of a chain that are not there yet, then calibrate the last."""
    from clara.train.run import finished  # noqa: PLC0415

    reports: list[dict[str, object]] = []
    for number, run in enumerate(chain.runs, start=1):
        if job.speaks:
            place = f"run {number} of {len(chain.runs)}: {run.name}"
            note(f"{place}, stage {run.stage.name}, {run.stage.config.steps:,} steps")
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
    if as_json:
        print_json({"checkpoint": str(chain.result), "runs": reports})
    else:
        write(f"checkpoint: {chain.result}")


def _calibrate(chain: Chain, wanted: Calibration, job: _TrainJob, paths: Sequence[Path]) -> None:
    """Measure what the checkpoint does not learn, and write the chain's result."""
    from clara.calibrate.run import Wanted, calibrate  # noqa: PLC0415 - imports torch
    from clara.calibrate.weights import CheckpointLoader  # noqa: PLC0415

    reader = None if wanted.reader is None else chain.result_of(wanted.reader)
    calibrate(
        str(chain.result_of(wanted.of)),
        job.records,
        Wanted(reader=reader, limit=wanted.limit),
        CheckpointLoader(job.cache, None, job.device, download_lines()),
        out=chain.result,
        data=[path.name for path in paths],
        notice=note,
    )


def _first_process() -> bool:
    """Whether this is the one that speaks, of those that torchrun or accelerate launch started."""
    return os.environ.get("RANK", "0") == "0"


def _silence(_: object) -> None:
    """Says nothing."""


def refuse_eval(paths: Sequence[Path]) -> None:
    """Refuse data to measure on, whatever name leads to it."""
    for path in paths:
        folders = {part.lower() for place in (path, path.absolute(), path.resolve()) for part in place.parent.parts}
        if _EVAL_FOLDER in folders:
            raise InputError(
                f"{path} is under a folder named {_EVAL_FOLDER}: what is measured on is never trained on; "
                "name other data files"
            )


def read_all(
    paths: Sequence[Path], *, plain: bool, say: Callable[[str], None]
) -> tuple[list[DataRecord], Counter[str]]:
    """All records, and the counts of lines that gave none; says both."""
    from clara.data import read_records  # noqa: PLC0415

    records: list[DataRecord] = []
    rejected: Counter[str] = Counter()
    for path in paths:
        reading = read_records(path, plain_passages=plain)
        say(reading.summary())
        records.extend(reading.records)
        rejected.update(reading.rejected)
    return records, rejected


@dataclass(frozen=True, slots=True)
class _Unused:
    """Adds what the stage cannot use to what could not be read, and says it."""

    rejected: Counter[str]
    say: Callable[[str], None]

    def __call__(self, unused: Mapping[str, int]) -> None:
        self.rejected.update(unused)
        if unused:
            self.say("not used: " + ", ".join(f"{count} x {reason}" for reason, count in unused.items()))


@dataclass(slots=True)
class _Last:
    """Keeps the last thing the run said, and passes it on."""

    progress: TrainProgress | None = None
    then: Callable[[TrainProgress], None] = field(default=lambda _: None)

    def __call__(self, progress: TrainProgress) -> None:
        self.progress = progress
        self.then(progress)


@contextmanager
def _progress() -> Iterator[Callable[[TrainProgress], None]]:
    """A live line on a terminal; elsewhere a plain line now and then, and for each held-out loss."""
    with bar_or_lines("steps") as tell:
        measured: list[str] = []

        def say_step(progress: TrainProgress) -> None:
            if progress.validation is not None:
                measured[:] = _measured(progress.validation)
            words = _words(progress, measured)
            now = progress.held_out is not None or progress.step == progress.steps
            line = f"step {progress.step}/{progress.steps}: {words}"
            tell(progress.step, progress.steps, words, line, now=now)

        yield say_step


def _words(progress: TrainProgress, measured: Sequence[str]) -> str:
    parts = [f"loss {progress.cross_entropy:.3f}", f"mse {progress.mse:.4f}", *measured]
    parts += [f"{progress.samples_per_second:.1f} samples/s", f"{progress.tokens_per_second:,.0f} tokens/s"]
    return ", ".join([*parts, f"{clock(progress.seconds_left)} left"])


def _measured(found: Validation) -> list[str]:
    """What was measured on held-out records, in words."""
    named = {"F1": found.f1, "Recall@5": found.recall_at_5}
    return [
        f"held out {found.default_loss:.3f}",
        *(f"{name} {value:.3f}" for name, value in named.items() if value is not None),
    ]
