"""A grid of data sets, settings, rates and systems: planned whole, then run system by system, resumable.

Knows no files of results: those are ``report``'s matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

from pydantic import Field, model_validator

from clara.config import Settings
from clara.errors import ClaraError, ConfigError
from clara.evaluate.contest import Asking, Exam, Scoring, examine
from clara.evaluate.groups import Group, Names
from clara.evaluate.sources import Loaded, Sources
from clara.evaluate.system import Build, System, SystemSettings
from clara.evaluate.system_result import Given, Setting, SystemResult


class GridRun(Settings):
    """One block of a grid: every system on every data set in every setting at every rate.

    Attributes:
        data: names of data sets, or files.
        settings: ``oracle`` and/or ``normal``.
        systems: names of systems.
        rates: compression rates; empty for systems that compress nothing.
        given: ``candidates``: systems rank and read their best ``k``; ``gold``: they read the gold documents.
        limit: questions a data set, counted from the first; None is all.
        k: documents in the prompt.
    """

    data: tuple[str, ...] = Field(min_length=1)
    settings: tuple[Literal["oracle", "normal"], ...] = Field(default=("oracle",), min_length=1)
    systems: tuple[str, ...] = Field(min_length=1)
    rates: tuple[int, ...] = ()
    given: Literal["gold", "candidates"] = "candidates"
    limit: int | None = Field(default=None, ge=1)
    k: int = Field(default=5, ge=1)


class Benefit(Settings):
    """What kept benefit is measured between (docs/evaluation.md).

    Attributes:
        name: of the pair, in reports.
        none: system that reads nothing.
        text: system that reads the full text.
    """

    name: str
    none: str
    text: str


class Grid(Settings):
    """A recipe of ``clara eval --recipe``.

    Attributes:
        runs: the blocks, in the order of their doing.
        model: checkpoint under test: an embedded model's name or a folder; None is the command line's.
        options: folders of single systems, by option name (a reader's adapter and the like).
        benefit: pairs that kept benefit is measured between.
        yes_no: score yes/no answers by HotpotQA's rule.
        max_new_tokens: longest answer.
        batch_size: questions asked together.
        timed: questions of each run that are timed to the first token.
        seed: of the bootstrap and the permutation tests.
        page: Markdown page to write for the documentation, or None.
        note: what a reader of the page has to know of its data.
    """

    runs: tuple[GridRun, ...] = Field(min_length=1)
    model: str | None = None
    options: dict[str, Path] = Field(default_factory=dict)
    benefit: tuple[Benefit, ...] = ()
    yes_no: bool = False
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
class Trial:
    """One system on one data set: one line of the results."""

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
class Step:
    """How far a grid has come.

    Attributes:
        label: what is being asked now.
        done: questions done in all, those of earlier processes included.
        total: questions in all.
        seconds_left: estimated from the pace of each system so far; None before there is any.
    """

    label: str
    done: int
    total: int
    seconds_left: float | None


Tell: TypeAlias = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a grid gave.

    Attributes:
        results: one a trial that was run, in the order of the plan.
        not_run: systems that could not be built, with the reason.
        left_out: questions and parts of the data that were left out, by data set and setting, by reason; what was
            given and the limit are named too where they make a difference.
    """

    results: tuple[SystemResult, ...]
    not_run: Mapping[str, str]
    left_out: Mapping[str, Mapping[str, int]]


def capped(runs: Sequence[GridRun], limit: int | None) -> tuple[GridRun, ...]:
    """The blocks with at most ``limit`` questions a data set; as they are where it is None."""
    if limit is None:
        return tuple(runs)
    return tuple(run.model_copy(update={"limit": min(limit, run.limit or limit)}) for run in runs)


def trials(runs: Sequence[GridRun]) -> list[Trial]:
    """Every trial once, those on the same documents together, so that their memories are shared."""
    found: dict[Trial, None] = {}
    for run in runs:
        for data in run.data:
            for setting in run.settings:
                for rate in run.rates or (None,):
                    for system in run.systems:
                        found[Trial(data, setting, run.given, run.k, run.limit, system, rate)] = None
    groups = list(dict.fromkeys((trial.data, trial.setting) for trial in found))
    return sorted(found, key=lambda trial: groups.index((trial.data, trial.setting)))


def check_systems(wanted: Sequence[Trial], systems: Mapping[str, Build]) -> None:
    """Refuse systems that do not exist, all at once.

    Raises:
        ConfigError: names them.
    """
    unknown = sorted({trial.system for trial in wanted} - systems.keys())
    if unknown:
        raise ConfigError(f"no such system: {', '.join(unknown)}; there are {', '.join(sorted(systems))}")


def run_grid(
    wanted: Sequence[Trial],
    systems: Mapping[str, Build],
    settings: SystemSettings,
    sources: Sources,
    asking: Asking,
    *,
    scoring: Scoring | None = None,
    tell: Tell | None = None,
) -> Outcome:
    """Run trials, each from where its journal stands.

    All data is read before the first question is asked. A system that is the same at every rate is asked once, and
    its result names no rate.

    Args:
        wanted: the trials, in the order of their doing.
        systems: what makes each system.
        settings: for the systems; ``k``, ``rate`` and ``given`` come from the trial.
        sources: of the questions.
        asking: how questions are asked.
        scoring: how replies are scored.
        tell: told after each batch.

    Raises:
        ConfigError: there is no such system, a rate is not served, or a system is to be asked the same questions twice.
        InputError: data or journals cannot be used.
        ClaraError: with ``asking.strict``, whatever keeps a system from being built.
    """
    check_systems(wanted, systems)
    builder = _Builder(systems, settings)
    if asking.strict:
        for trial in wanted:
            builder.build(trial)  # what cannot be had is said before anything is asked
    wanted = _without_needless_rates(wanted, builder)
    exams = {_exam_key(trial): _load(trial, sources, settings) for trial in wanted}
    _refuse_twice([(trial, exams[_exam_key(trial)].exam) for trial in wanted])
    pace = _Pace([(trial.system, trial.rate, len(exams[_exam_key(trial)].exam.questions)) for trial in wanted], tell)
    results: list[SystemResult] = []
    not_run: dict[str, str] = {}
    for place, trial in enumerate(wanted):
        exam = exams[_exam_key(trial)].exam
        try:
            system = builder.build(trial)
        except ClaraError as error:
            if asking.strict:
                raise
            not_run[trial.label] = str(error)
            pace.skip(place)
            continue
        told = pace.start(place, f"{exam.data} {exam.setting} {trial.label}")
        results.append(examine(system, exam, asking, rate=trial.rate, scoring=scoring, told=told))
        pace.finish(place)
    return Outcome(tuple(results), MappingProxyType(not_run), MappingProxyType(_left_out(exams)))


_ExamKey: TypeAlias = tuple[str, Setting, Given, int, int | None]


def _exam_key(trial: Trial) -> _ExamKey:
    return trial.data, trial.setting, trial.given, trial.k, trial.limit


def _load(trial: Trial, sources: Sources, settings: SystemSettings) -> Loaded:
    return sources.load(
        trial.data,
        trial.setting,
        given=trial.given,
        k=trial.k,
        max_new_tokens=settings.max_new_tokens,
        limit=trial.limit,
    )


def _refuse_twice(asked: Sequence[tuple[Trial, Exam]]) -> None:
    """Refuse a system that would stand twice in one place of a table, as with two limits.

    Raises:
        ConfigError: names it.
    """
    seen: dict[tuple[Group, str], Trial] = {}
    for trial, exam in asked:
        other = seen.setdefault((Group.of(exam), trial.label), trial)
        if other is not trial:
            raise ConfigError(
                f"{trial.label} is to be asked twice on {exam.data} {exam.setting}, given {exam.given}, k {exam.k}: "
                f"{_questions(other.limit)} of {other.data} and {_questions(trial.limit)} of {trial.data}; name it once"
            )


def _left_out(exams: Mapping[_ExamKey, Loaded]) -> dict[str, Mapping[str, int]]:
    """What was left out of each data set and setting; of each exam where they differ in it."""
    names = Names(loaded.exam for loaded in exams.values())
    by_data: dict[str, dict[str, Mapping[str, int]]] = {}
    for (_, setting, given, _, limit), loaded in exams.items():
        data = f"{names.data(loaded.exam)} {setting}"
        by_data.setdefault(data, {})[f"{data}, given {given}, {_questions(limit)}"] = loaded.left_out
    found: dict[str, Mapping[str, int]] = {}
    for data, own in by_data.items():
        first = next(iter(own.values()))
        found |= {data: first} if all(counts == first for counts in own.values()) else own
    return {name: counts for name, counts in found.items() if counts}


def _questions(limit: int | None) -> str:
    return "all questions" if limit is None else f"the first {limit} questions"


def _without_needless_rates(wanted: Sequence[Trial], builder: _Builder) -> list[Trial]:
    """The trials, each once, without a rate where it decides nothing."""
    free: dict[tuple[str, Given, int], bool] = {}
    for trial in wanted:
        key = (trial.system, trial.given, trial.k)
        if trial.rate is not None and key not in free:
            free[key] = builder.is_rate_free(trial, {other.rate for other in wanted})
    kept = (replace(trial, rate=None) if free.get((trial.system, trial.given, trial.k)) else trial for trial in wanted)
    return list(dict.fromkeys(kept))


class _Builder:
    """Makes the system of a trial; one that cannot be made is tried once.

    A system is made anew for each trial, which costs little: opened models stay on the settings' shelf.
    """

    def __init__(self, systems: Mapping[str, Build], settings: SystemSettings) -> None:
        self._systems = systems
        self._settings = settings
        self._failed: dict[tuple[str, int | None, Given], ClaraError] = {}

    def build(self, trial: Trial) -> System:
        kind = (trial.system, trial.rate, trial.given)
        if kind in self._failed:
            raise self._failed[kind]
        settings = replace(self._settings, k=trial.k, rate=trial.rate, given=trial.given)
        try:
            return self._systems[trial.system](settings)
        except ClaraError as error:
            self._failed[kind] = error
            raise

    def is_rate_free(self, trial: Trial, rates: set[int | None]) -> bool:
        """Whether a system has the same fingerprint at every rate: those asked for, and those the model serves."""
        served = getattr(self._settings.model, "rates", ())
        try:
            systems = [self.build(replace(trial, rate=rate)) for rate in {None, *rates, *served}]
        except ClaraError:
            return False  # it minds the rate, or cannot be built at all
        return len({system.fingerprint for system in systems}) == 1


@dataclass(slots=True)
class _Work:
    """One trial's questions, and what is known of their cost."""

    kind: tuple[str, int | None]
    total: int
    done: int = 0


@dataclass(slots=True)
class _Pace:
    """Counts questions, and tells the time left from the seconds a question of each system."""

    plan: list[tuple[str, int | None, int]]
    tell: Tell | None
    _work: list[_Work] = field(init=False)
    _seconds: dict[tuple[str, int | None], float] = field(default_factory=dict)
    _asked: dict[tuple[str, int | None], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._work = [_Work((system, rate), total) for system, rate, total in self.plan]

    def start(self, place: int, label: str) -> Callable[[int, int], None]:
        """What to call after each batch of a trial."""
        work = self._work[place]
        last = [time.monotonic(), 0.0]

        def told(asked: int, known: int) -> None:
            now = time.monotonic()
            self._seconds[work.kind] = self._seconds.get(work.kind, 0.0) + now - last[0]
            self._asked[work.kind] = self._asked.get(work.kind, 0) + asked - int(last[1])
            last[:] = [now, asked]
            work.done = asked + known
            self._say(label)

        return told

    def skip(self, place: int) -> None:
        """A trial that will not be run."""
        self._work[place].total = self._work[place].done = 0

    def finish(self, place: int) -> None:
        """A trial whose questions are all done."""
        self._work[place].done = self._work[place].total

    def _say(self, label: str) -> None:
        if self.tell is None:
            return
        done, total = sum(work.done for work in self._work), sum(work.total for work in self._work)
        self.tell(Step(label, done, total, self._left()))

    def _left(self) -> float | None:
        asked = sum(self._asked.values())
        if not asked:
            return None
        usual = sum(self._seconds.values()) / asked
        return sum(
            (work.total - work.done) * self._seconds[work.kind] / self._asked[work.kind]
            if self._asked.get(work.kind)
            else (work.total - work.done) * usual
            for work in self._work
        )
