"""Runs: a grid of systems and tasks, planned whole, asked batch by batch, resumed from journals after a kill."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, model_validator

from clara.config import Settings
from clara.errors import ClaraError, ConfigError, ModelError
from clara.evaluate.cache import Failure, each
from clara.evaluate.journal import Journal, Provenance, query_hash
from clara.evaluate.questions import Group, GroupNames, Setting, Task, TaskLoader
from clara.evaluate.results import Result, Scoring, score
from clara.evaluate.statistics import Benefit
from clara.evaluate.system import Build, Given, Prediction, Query, System, SystemSettings
from clara.metrics import ScoringName


class _GridBlock(Settings):
    """A block of a grid: every system on every data set (a name or a file) in every setting at every rate.

    Attributes:
        rates: empty for systems that compress nothing.
        given: ``candidates``: systems rank and read their best ``k``; ``gold``: they read the gold documents.
        limit: first questions of a data set; None is all.
    """

    data: tuple[str, ...] = Field(min_length=1)
    settings: tuple[Literal["oracle", "normal"], ...] = Field(default=("oracle",), min_length=1)
    systems: tuple[str, ...] = Field(min_length=1)
    rates: tuple[int, ...] = ()
    given: Literal["gold", "candidates"] = "candidates"
    limit: int | None = Field(default=None, ge=1)
    k: int = Field(default=5, ge=1)


class Grid(Settings):
    """A recipe of ``clara compare --recipe``.

    Attributes:
        model: checkpoint under test; None is the command line's.
        options: folders of single systems, by option name (a reader's adapter and the like).
        timed: questions of each run that are timed to the first token.
        page: Markdown page to write for the documentation.
        note: what a reader of the page has to know of its data.
    """

    runs: tuple[_GridBlock, ...] = Field(min_length=1)
    model: str | None = None
    options: dict[str, Path] = Field(default_factory=dict)
    benefit: tuple[Benefit, ...] = ()
    scoring: ScoringName = "squad"
    max_new_tokens: int = Field(default=32, ge=1)
    batch_size: int = Field(default=8, ge=1)
    timed: int = Field(default=8, ge=0)
    seed: int = Field(default=0, ge=0)
    page: Path | None = None
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> Grid:
        for run in self.runs:
            if len(set(run.systems)) != len(run.systems):
                raise ValueError(f"a block must name each system once, got {list(run.systems)}")
        return self


@dataclass(frozen=True, slots=True)
class GridRun:
    """A system on a data set: a row of the results."""

    data: str
    setting: Setting
    given: Given
    k: int
    limit: int | None
    system: str
    rate: int | None

    @property
    def label(self) -> str:
        """The system, with its rate."""
        return self.system if self.rate is None else f"{self.system} {self.rate}x"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Settings of a run besides its systems'.

    Questions of a batch are asked, and kept, together: what a kill can lose. Predictions in another ``precision`` of
    the base weights (``bf16``, ``int4``, …) are another run's. A system that cannot be built ends a ``strict`` run;
    else it is left out, with the reason.
    """

    folder: Path
    batch_size: int = 8
    retry_errors: bool = False
    origin: Provenance | None = None
    precision: str | None = None
    strict: bool = True
    scoring: Scoring = field(default_factory=Scoring)


_OnProgress: TypeAlias = Callable[[str, int, int, float | None], None]
"""Called with the run being asked, questions done (those in journals included), all questions, and seconds left."""


@dataclass(frozen=True, slots=True)
class GridResult:
    """The result of a grid; ``left_out``: reasons and counts by data set and setting."""

    results: tuple[Result, ...]
    not_run: Mapping[str, str]
    left_out: Mapping[str, Mapping[str, int]]


def plan(blocks: Sequence[_GridBlock], *, limit: int | None = None) -> list[GridRun]:
    """Every run once, with at most ``limit`` questions; those on the same documents together, to share memories."""
    runs: dict[GridRun, None] = {}
    for block in blocks:
        most = block.limit if limit is None else min(limit, block.limit or limit)
        for data, setting, rate, system in product(block.data, block.settings, block.rates or (None,), block.systems):
            runs[GridRun(data, setting, block.given, block.k, most, system, rate)] = None
    groups = list(dict.fromkeys((run.data, run.setting) for run in runs))
    return sorted(runs, key=lambda run: groups.index((run.data, run.setting)))


def check_systems(runs: Sequence[GridRun], systems: Mapping[str, Build]) -> None:
    """Refuse unknown systems, all at once, by a ``ConfigError``."""
    unknown = sorted({run.system for run in runs} - systems.keys())
    if unknown:
        raise ConfigError(f"no such system: {', '.join(unknown)}; there are {', '.join(sorted(systems))}")


def run_system(
    system: System,
    task: Task,
    settings: RunSettings,
    *,
    rate: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Ask a system the questions that its journal lacks, and score all its predictions.

    ``rate`` is what it was built with; ``on_progress`` gets the questions asked in this process, and those in the
    journal, after each batch.

    Raises:
        InputError: the journal cannot be used.
        ConfigError: the system's settings are wrong for every question alike.
    """
    parts = {
        "data_sha256": task.data_sha256,
        "data": task.data,
        "setting": task.setting,
        "candidates": task.candidates,
        "given": task.given,
        "system": system.name,
        "fingerprint": system.fingerprint,
        "precision": settings.precision,
        "rate": rate,
        "k": task.k,
        "max_new_tokens": task.max_new_tokens,
    }
    # All that decides the predictions of a run: data, system, settings.
    key = sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    queries = task.queries()
    path = settings.folder / f"{key}.jsonl"
    with Journal(path, parts, origin=settings.origin, retry_errors=settings.retry_errors) as journal:
        missing = {name: query for query in queries if (name := query_hash(query)) not in journal.entries}
        left = list(missing.values())
        for start in range(0, len(left), settings.batch_size):
            batch = left[start : start + settings.batch_size]
            journal.add(batch, list(map(_checked, batch, each(batch, system.predict))))
            if on_progress is not None:
                on_progress(start + len(batch), len(queries) - len(left))
        origins = tuple(journal.origins)
        entries = [journal.entries[query_hash(query)] for query in queries]
    return score(
        task,
        entries,
        system=system.name,
        fingerprint=system.fingerprint,
        rate=rate,
        key=key,
        scoring=settings.scoring,
        origins=origins,
    )


def _checked(query: Query, made: Prediction | Failure) -> Prediction | Failure:
    """The prediction, or a failure where its indices are not those of the question's documents."""
    if isinstance(made, Failure):
        return made
    ranking = made.ranking or ()
    if len(set(ranking)) != len(ranking) or not {*ranking, *made.used} <= set(range(len(query.docs))):
        return Failure(ModelError(f"the system ranked or used documents that are not among {len(query.docs)}"))
    return made


def run_grid(
    runs: Sequence[GridRun],
    systems: Mapping[str, Build],
    settings: SystemSettings,
    loader: TaskLoader,
    how: RunSettings,
    *,
    on_progress: _OnProgress | None = None,
) -> GridResult:
    """Run a plan, each run from where its journal stands.

    All data is read before the first question is asked. A system that is the same at every rate is asked once, and
    its result names no rate. The settings' ``k``, ``rate`` and ``given`` are the run's.

    Raises:
        ConfigError: unknown system, a rate that is not served, or a system would be asked the same questions twice.
        InputError: data or journals cannot be used.
        ClaraError: with ``how.strict``, any error of building a system.
    """
    check_systems(runs, systems)
    builder = _Builder(systems, settings)
    if how.strict:
        for run in runs:
            builder.build(run)  # what is missing is said before anything is asked
    runs = _without_needless_rates(runs, builder)
    asked = [replace(run, system="", rate=None) for run in runs]
    tasks = {run: _load(run, loader, settings) for run in dict.fromkeys(asked)}
    pairs = [(run, tasks[key]) for run, key in zip(runs, asked, strict=True)]
    _refuse_twice(pairs)
    pace = _Pace(pairs, on_progress)
    results: list[Result] = []
    not_run: dict[str, str] = {}
    for run, task in pairs:
        try:
            system = builder.build(run)
        except ClaraError as error:
            if how.strict:
                raise
            not_run[run.label] = str(error)
            pace.skip(run)
            continue
        on_batch = pace.start(run, f"{task.data} {task.setting} {run.label}")
        results.append(run_system(system, task, how, rate=run.rate, on_progress=on_batch))
        pace.finish(run)
    return GridResult(tuple(results), not_run, _left_out(tasks))


def _load(run: GridRun, loader: TaskLoader, settings: SystemSettings) -> Task:
    return loader.load(
        run.data, run.setting, given=run.given, k=run.k, max_new_tokens=settings.max_new_tokens, limit=run.limit
    )


def _refuse_twice(asked: Sequence[tuple[GridRun, Task]]) -> None:
    """Refuse a system that would appear twice in one cell of a table, as with two limits."""
    seen: dict[tuple[Group, str], GridRun] = {}
    for run, task in asked:
        other = seen.setdefault((task.group, run.label), run)
        if other is not run:
            raise ConfigError(
                f"{run.label} is to be asked twice on {task.data} {task.setting}, given {task.given}, k {task.k}: "
                f"{_questions(other.limit)} of {other.data} and {_questions(run.limit)} of {run.data}; name it once"
            )


def _left_out(tasks: Mapping[GridRun, Task]) -> dict[str, Mapping[str, int]]:
    """Reasons and counts of questions left out, by data set and setting; by task where its tasks differ."""
    names = GroupNames(task.group for task in tasks.values())
    by_data: dict[str, dict[str, Mapping[str, int]]] = {}
    for run, task in tasks.items():
        data = f"{names.data(task.group)} {run.setting}"
        by_data.setdefault(data, {})[f"{data}, given {run.given}, {_questions(run.limit)}"] = task.left_out
    reasons: dict[str, Mapping[str, int]] = {}
    for data, own in by_data.items():
        first = next(iter(own.values()))
        reasons |= {data: first} if all(counts == first for counts in own.values()) else own
    return {name: counts for name, counts in reasons.items() if counts}


def _questions(limit: int | None) -> str:
    return "all questions" if limit is None else f"the first {limit} questions"


def _without_needless_rates(runs: Sequence[GridRun], builder: _Builder) -> list[GridRun]:
    """The runs, each once, without a rate where it decides nothing."""
    free: dict[tuple[str, Given, int], bool] = {}
    for run in runs:
        key = (run.system, run.given, run.k)
        if run.rate is not None and key not in free:
            free[key] = builder.is_rate_free(run, {other.rate for other in runs})
    kept = (replace(run, rate=None) if free.get((run.system, run.given, run.k)) else run for run in runs)
    return list(dict.fromkeys(kept))


class _Builder:
    """Builds systems anew for each run (loaded models stay in the cache); one that cannot be built is tried once."""

    def __init__(self, systems: Mapping[str, Build], settings: SystemSettings) -> None:
        self._systems = systems
        self._settings = settings
        self._failed: dict[tuple[str, int | None, Given], ClaraError] = {}

    def build(self, run: GridRun) -> System:
        kind = (run.system, run.rate, run.given)
        if kind in self._failed:
            raise self._failed[kind]
        settings = replace(self._settings, k=run.k, rate=run.rate, given=run.given)
        try:
            return self._systems[run.system](settings)
        except ClaraError as error:
            self._failed[kind] = error
            raise

    def is_rate_free(self, run: GridRun, rates: set[int | None]) -> bool:
        """Same fingerprint at every rate asked for, and at those the model serves."""
        served = getattr(self._settings.model, "rates", ())
        try:
            systems = [self.build(replace(run, rate=rate)) for rate in {None, *rates, *served}]
        except ClaraError:
            return False  # the rate matters to it, or it cannot be built at all
        return len({system.fingerprint for system in systems}) == 1


class _Pace:
    """Estimates the time left from the seconds a question of each system and rate."""

    def __init__(self, planned: Sequence[tuple[GridRun, Task]], on_progress: _OnProgress | None) -> None:
        self._totals = {run: len(task.questions) for run, task in planned}
        self._done = dict.fromkeys(self._totals, 0)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._asked: Counter[str] = Counter()
        self._on_progress = on_progress

    def start(self, run: GridRun, label: str) -> Callable[[int, int], None]:
        """A function to call after each batch of a run."""
        last, before = time.monotonic(), 0

        def on_batch(asked: int, known: int) -> None:
            nonlocal last, before
            now = time.monotonic()
            self._seconds[run.label] += now - last
            self._asked[run.label] += asked - before
            last, before = now, asked
            self._done[run] = asked + known
            if self._on_progress is not None:
                done, total = sum(self._done.values()), sum(self._totals.values())
                self._on_progress(label, done, total, self._left())

        return on_batch

    def skip(self, run: GridRun) -> None:
        self._totals[run] = self._done[run] = 0

    def finish(self, run: GridRun) -> None:
        self._done[run] = self._totals[run]

    def _left(self) -> float | None:
        asked = self._asked.total()
        if not asked:
            return None
        usual = sum(self._seconds.values()) / asked
        return sum(
            (total - self._done[run])
            * (self._seconds[run.label] / self._asked[run.label] if self._asked[run.label] else usual)
            for run, total in self._totals.items()
        )
