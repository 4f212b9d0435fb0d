"""Systems ``clara``, ``clara-bm25`` and one for each stage: CLaRa's own checkpoints, at any rate that they serve.

How they rank and what they read is in ``memory_systems``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from clara.evaluate.baselines.composed import Composed
from clara.evaluate.baselines.folders import open_checkpoint
from clara.evaluate.baselines.memory_systems import of_model
from clara.evaluate.system import Build, SystemSettings

STAGES = ("scp", "instruct", "end_to_end")
"""Stages with a system of their own; each is also the option that names its checkpoint."""


def build(settings: SystemSettings) -> Composed:
    """System ``clara``: the checkpoint under test."""
    return of_model("clara", settings, settings.model)


def build_by_words(settings: SystemSettings) -> Composed:
    """System ``clara-bm25``: its memories, in BM25's order."""
    return of_model("clara-bm25", settings, settings.model, words=True)


def build_stage(settings: SystemSettings, stage: str) -> Composed:
    """Systems ``clara-scp``, ``clara-instruct``, ``clara-end-to-end``: the checkpoint of the option of that name."""
    name = f"clara-{stage.replace('_', '-')}"
    return of_model(name, settings, open_checkpoint(settings, stage, stage, label=name))


SYSTEMS: Mapping[str, Build] = MappingProxyType(
    {"clara": build, "clara-bm25": build_by_words}
    | {f"clara-{stage.replace('_', '-')}": partial(build_stage, stage=stage) for stage in STAGES}
)
