"""Systems ``closed-book`` and ``closed-book-reader``: what the backbone knows by itself, asked without documents.

The floor of every comparison: the base weights zero-shot, and a reader trained to answer from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from clara.evaluate.baselines.composed import Composed, Context, Ranking, Reading, digest
from clara.evaluate.baselines.folders import base_identity, open_reader
from clara.evaluate.isolation import Failure
from clara.evaluate.system import Ask, SystemSettings
from clara.records import GenerationRequest


class NoContext:
    """Makes contexts of nothing."""

    fingerprint = "closed book"

    def contexts(self, asks: Sequence[Ask], used: Sequence[Ranking]) -> list[Context | Failure]:
        """The questions alone."""
        del used
        return [Context(GenerationRequest(ask.question, reader="base"), tokens=0) for ask in asks]


def build(settings: SystemSettings) -> Composed:
    """System ``closed-book``: the base weights."""
    weights = digest({"base": base_identity(settings.model)})
    return Composed("closed-book", settings, None, Reading(NoContext(), settings.model, weights, documents=False))


def build_reader(settings: SystemSettings) -> Composed:
    """System ``closed-book-reader``: the reader of option ``closed_book_reader``."""
    reader = open_reader(settings, "closed_book_reader", "none")
    reading = Reading(NoContext(), reader, reader.fingerprint, documents=False)
    return Composed("closed-book-reader", settings, None, reading)
