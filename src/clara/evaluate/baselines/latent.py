"""System ``latent``: candidates ranked by query memory against document memory, by the checkpoint under test.

Its reasoner learnt from next-token prediction alone (clara.md section 5), that of ``supervised`` from labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clara.data import DocText
from clara.evaluate.baselines.composed import Composed, Ranking, digest, ranking_only
from clara.evaluate.baselines.folders import compressor_identity, rate_of
from clara.evaluate.isolation import Failure, each
from clara.evaluate.memories import MemoryBank, rank
from clara.evaluate.protocol import AnswerModel
from clara.evaluate.shelf import Shelf
from clara.evaluate.system import Ask, SystemSettings
from clara.ingest import split
from clara.records import Memory, QueryMemory


class DocumentMemories:
    """The memories of documents under one model and rate; a document longer than the window has several.

    Checkpoints with the same compressor share them.

    Args:
        model: makes them.
        rate: compression rate; None is the model's default.
        shelf: keeps them.
    """

    def __init__(self, model: AnswerModel, rate: int | None, shelf: Shelf) -> None:
        self._model = model
        self._rate = rate
        self._shelf = shelf
        self._maker = f"memory {compressor_identity(shelf, model)} {rate}"

    def of(self, docs: Sequence[DocText]) -> list[tuple[Memory, ...] | Failure]:
        """One tuple of memories a document, in order."""
        return [self._own(found) for found in self._shelf.derived(self._maker, docs, self._make)]

    def _own(self, found: tuple[Memory, ...] | Failure) -> tuple[Memory, ...] | Failure:
        """Memories marked as this model's, whichever checkpoint of the same compressor made them."""
        mark = self._model.fingerprint
        if isinstance(found, Failure) or all(memory.fingerprint == mark for memory in found):
            return found
        return tuple(replace(memory, fingerprint=mark) for memory in found)

    def _make(self, docs: Sequence[DocText]) -> list[tuple[Memory, ...] | Failure]:
        bank = MemoryBank(self._model, rate=self._rate, splitter=split)
        bank.fill(docs)
        return [bank.memories(doc) for doc in docs]


class Latent:
    """Ranks candidates by the cosine of memories."""

    def __init__(self, model: AnswerModel, rate: int | None, shelf: Shelf) -> None:
        self._model = model
        self._rate = rate
        self._memories = DocumentMemories(model, rate, shelf)
        self.fingerprint = digest({"latent": model.fingerprint, "rate": rate})

    def rank(self, asks: Sequence[Ask]) -> list[Ranking | Failure]:
        """All candidates, best first; a failure if any candidate has no memory, as none can be left out."""
        queries = each([ask.question for ask in asks], self._encode)
        docs = [doc for ask in asks for doc in ask.docs]
        memories = dict(zip(docs, self._memories.of(docs), strict=True))
        return [
            self._order(query, [memories[doc] for doc in ask.docs]) for query, ask in zip(queries, asks, strict=True)
        ]

    def _encode(self, questions: Sequence[str]) -> list[QueryMemory]:
        return self._model.encode_queries(questions, rate=self._rate)

    @staticmethod
    def _order(query: QueryMemory | Failure, docs: Sequence[tuple[Memory, ...] | Failure]) -> Ranking | Failure:
        if isinstance(query, Failure):
            return query
        windows: list[tuple[Memory, ...]] = []
        for found in docs:
            if isinstance(found, Failure):
                return found
            windows.append(found)
        return rank(query, windows)


def build(settings: SystemSettings) -> Composed:
    """System ``latent``: the checkpoint under test ranks, with the compressor's weights if it has no reasoner."""
    return ranking_only("latent", settings, Latent(settings.model, rate_of(settings, settings.model), settings.shelf))
