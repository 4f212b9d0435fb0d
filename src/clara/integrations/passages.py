"""Content and metadata of a passage for every framework's retriever; knows no framework."""

from __future__ import annotations

import threading

from clara.ingest import location_of
from clara.pipeline import Clara
from clara.records import Hit, SearchMode

TURN = threading.Lock()
"""Frameworks search from several threads, and a large model switches its adapters: one at a time."""


def find(rag: Clara, question: str, k: int | None, mode: SearchMode) -> list[Hit]:
    """The best ``k`` passages; None for what measured best for the store's model. Raises what ``Clara.search`` does."""
    with TURN:
        return rag.search(question, k or rag.model.default_k, mode=mode)


def metadata(hit: Hit) -> dict[str, str | int | float]:
    """Place of a passage: ``document``, ``title``, ``start``, ``end``; ``page`` and ``heading`` where known."""
    passage, place = hit.passage, location_of(hit.metadata, hit.passage.start)
    known: dict[str, str | int | float] = {
        "document": passage.document,
        "title": passage.title,
        "start": passage.start,
        "end": passage.end,
    }
    if place.page is not None:
        known["page"] = place.page
    if place.heading:
        known["heading"] = place.heading
    return known
