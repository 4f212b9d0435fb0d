"""The stages by their names on the command line, and a recipe's settings given to one of them.

This is the only list. A stage is loaded when it is asked for: the command line shows the names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

if TYPE_CHECKING:
    from clara.train.stages.base import Stage

StageName = Literal["scp", "instruct", "end-to-end", "retriever", "reader"]
STAGES: tuple[StageName, ...] = get_args(StageName)

_FILES = {"end-to-end": "selecting", "retriever": "selecting"}
"""Modules of the classes not in ``writing``; ``end-to-end`` is ``EndToEndStage``, and so on."""

_TABLE = "stage"
"""Tables ``[stage.NAME]`` of a recipe hold settings of one stage."""

CHAIN, CALIBRATE = "chain", "calibrate"
"""Further tables of a recipe of several runs (``clara.train.chain``)."""

_SHARED = frozenset({"pairs", "restate", "documents", "distractors", "shared_distractors"})
"""Settings of examples, once in a recipe of several stages; a stage without use for one ignores it."""


def stage_class(name: str) -> type[Stage]:
    """The class of a stage, one of ``STAGES``."""
    module = import_module(f"{__name__}.{_FILES.get(name, 'writing')}")
    return cast("type[Stage]", getattr(module, "".join(part.title() for part in name.split("-")) + "Stage"))


def stage_of(name: str, recipe: Mapping[str, Any], *, source: str, own: Mapping[str, Any] | None = None) -> Stage:
    """A stage with the settings that a recipe, plain values as read from TOML, has for it.

    Settings stand at the top of a recipe; a table ``[stage.NAME]`` holds those of one stage, overrides the top and is
    ignored by other stages; ``own`` overrides both.

    Raises:
        ConfigError: names ``source`` and every fault: unknown settings, those of another stage, wrong values.
    """
    from clara.config import check  # noqa: PLC0415 - the command line shows the names without it

    kind = stage_class(name)
    tables = recipe.get(_TABLE, {})
    values = {key: value for key, value in recipe.items() if key != _TABLE}
    faults = list(_foreign(name, values))
    known = kind.Config.model_fields
    values = {key: value for key, value in values.items() if key in known or not _owners(key)}
    if isinstance(tables, Mapping) and all(isinstance(table, Mapping) for table in tables.values()):
        faults += [
            f"{_TABLE}.{one}: no such stage; there are {', '.join(STAGES)}" for one in tables if one not in STAGES
        ]
        values |= {**tables.get(name, {}), **(own or {})}
    else:
        faults.append(f"{_TABLE}: expected a table for each stage, [{_TABLE}.{name}]")
    return kind(check(kind.Config, values, source=source, faults=faults))


def _foreign(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Faults of settings at the top that only other stages read, unless they have their default."""
    known = stage_class(name).Config.model_fields
    for key, value in values.items():
        owners = _owners(key)
        if key in known or key in _SHARED or not owners:
            continue
        if value != stage_class(owners[0]).Config.model_fields[key].get_default(call_default_factory=True):
            yield f"{key} is set, but only stage {' and '.join(owners)} reads it; write it in [{_TABLE}.{owners[0]}]"


def _owners(key: str) -> list[str]:
    return [name for name in STAGES if key in stage_class(name).Config.model_fields]
