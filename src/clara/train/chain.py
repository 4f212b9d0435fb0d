"""A recipe of several runs, each from the result of another: a base model in, a finished checkpoint out.

The ``[[chain]]`` entries are the runs in order. Their own ``settings`` override the recipe's table of their stage,
which overrides its top. Training is ``run``'s work, calibration ``clara.calibrate``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from clara.config import Settings, check
from clara.errors import ConfigError
from clara.train.stages import CALIBRATE, CHAIN, StageName, stage_of

if TYPE_CHECKING:
    from clara.train.stages.base import Stage

_RESULT = "checkpoint"
"""Folder of a chain that holds what its calibration made."""


class _Link(Settings):
    """An entry of ``[[chain]]``.

    Attributes:
        run: name of the run and of its folder.
        start: the run whose checkpoint it goes on from; None for a base model.
        teacher: the run of stage ``reader`` that teaches it.
        settings: of this run alone.
    """

    run: str = Field(pattern=r"^[\w-]+$")
    stage: StageName
    start: str | None = None
    teacher: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class Calibration(Settings):
    """The checkpoint to calibrate, of run ``of``, and the run of the reader that is attached to it."""

    of: str
    reader: str | None = None
    limit: int = Field(default=100, ge=2)


class _Chain(Settings):
    """A recipe's tables for a chain."""

    chain: tuple[_Link, ...] = Field(min_length=1)
    calibrate: Calibration | None = None

    @model_validator(mode="after")
    def _check_names(self) -> _Chain:
        before: list[str] = []
        for link in self.chain:
            for name in (link.start, link.teacher):
                if name is not None and name not in before:
                    raise ValueError(f"run {link.run} names {name!r}, which no run before it is; there are {before}")
            if link.run in (*before, _RESULT):
                raise ValueError(f"two runs are named {link.run!r}, or it is the name of the result")
            before.append(link.run)
        if self.calibrate is not None:
            for name in (self.calibrate.of, self.calibrate.reader):
                if name is not None and name not in before:
                    raise ValueError(f"calibrate names {name!r}, which no run is; there are {before}")
        return self


@dataclass(frozen=True, slots=True)
class _ChainRun:
    name: str
    stage: Stage
    out: Path

    @property
    def result(self) -> Path:
        """The checkpoint or reader that it writes."""
        return self.out / self.stage.writes


@dataclass(frozen=True, slots=True)
class Chain:
    """The runs in order, the calibration at the end, if any, and the folder of it all."""

    runs: tuple[_ChainRun, ...]
    calibration: Calibration | None
    out: Path

    def result_of(self, name: str) -> Path:
        """The output folder of a run."""
        return next(run.result for run in self.runs if run.name == name)

    @property
    def result(self) -> Path:
        """The calibrated checkpoint, or that of the last run."""
        return self.runs[-1].result if self.calibration is None else self.out / _RESULT


def chain_of(recipe: Mapping[str, Any], out: Path, *, source: str) -> Chain:
    """The runs of a recipe with folders in ``out``, their settings checked whole.

    Raises:
        ConfigError: there is no ``[[chain]]``, or a run has faults; names ``source``.
    """
    if CHAIN not in recipe:
        raise ConfigError(f"{source} has no [[{CHAIN}]]; name a stage, or write the runs into the recipe")
    read = check(_Chain, {key: recipe[key] for key in (CHAIN, CALIBRATE) if key in recipe}, source=source)
    plain = {key: value for key, value in recipe.items() if key not in (CHAIN, CALIBRATE)}
    made: dict[str, _ChainRun] = {}
    for link in read.chain:
        named = {"start": link.start, "teacher": link.teacher}
        given = {key: str(made[name].result) for key, name in named.items() if name is not None}
        stage = stage_of(link.stage, plain, source=f"{source}, {link.run}", own=link.settings | given)
        made[link.run] = _ChainRun(link.run, stage, out / link.run)
    return Chain(tuple(made.values()), read.calibrate, out)
