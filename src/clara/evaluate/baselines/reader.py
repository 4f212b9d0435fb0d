"""Systems ``reader-*``: the best candidates as full text, read by a LoRA reader trained to do so (option ``reader``).

What ``full_text`` is with another reader: the same rankings, the same text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from clara.evaluate.baselines.composed import Composed, Reading
from clara.evaluate.baselines.folders import open_reader
from clara.evaluate.baselines.full_text import RANKERS, TextContext
from clara.evaluate.system import Build, SystemSettings


def build(settings: SystemSettings, ranking: str) -> Composed:
    """System ``reader-RANKING``."""
    reader = open_reader(settings, "reader", "text")
    reading = Reading(TextContext(settings.model, settings.shelf), reader, reader.fingerprint)
    return Composed(f"reader-{ranking}", settings, RANKERS[ranking](settings), reading)


SYSTEMS: Mapping[str, Build] = MappingProxyType({f"reader-{name}": partial(build, ranking=name) for name in RANKERS})
