"""What the systems that answer from memories share: ``clara`` and its stages, and ``pisco``.

A checkpoint with a query reasoner ranks by it; one without is given BM25's order, as the paper gives a retriever's
order to the models of its compression tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from clara.evaluate.baselines.bm25 import Bm25
from clara.evaluate.baselines.composed import Composed, Context, Ranker, Ranking, Reading, digest
from clara.evaluate.baselines.folders import has_query_reasoner, identity, rate_of
from clara.evaluate.baselines.latent import DocumentMemories, Latent
from clara.evaluate.isolation import Failure
from clara.evaluate.protocol import AnswerModel
from clara.evaluate.system import Ask, SystemSettings
from clara.records import GenerationRequest, Memory


class MemoryContext:
    """Makes contexts of the documents' memories."""

    def __init__(self, memories: DocumentMemories, fingerprint: str) -> None:
        self._memories = memories
        self.fingerprint = fingerprint

    def contexts(self, asks: Sequence[Ask], used: Sequence[Ranking]) -> list[Context | Failure]:
        """The documents ``used``, in that order, every window of each."""
        chosen = [[ask.docs[index] for index in order] for ask, order in zip(asks, used, strict=True)]
        docs = [doc for row in chosen for doc in row]
        memories = dict(zip(docs, self._memories.of(docs), strict=True))
        return [self._context(ask, [memories[doc] for doc in row]) for ask, row in zip(asks, chosen, strict=True)]

    @staticmethod
    def _context(ask: Ask, docs: Sequence[tuple[Memory, ...] | Failure]) -> Context | Failure:
        whole: list[Memory] = []
        for found in docs:
            if isinstance(found, Failure):
                return found
            whole.extend(found)
        return Context(
            GenerationRequest(ask.question, memories=tuple(whole)),
            tokens=sum(len(memory.values) for memory in whole),
            source_tokens=sum(memory.token_count for memory in whole),
        )


def of_model(name: str, settings: SystemSettings, model: AnswerModel, *, words: bool = False) -> Composed:
    """A system that answers from a model's memories.

    Args:
        name: as in ``--system``.
        settings: of the run.
        model: compresses, ranks and answers.
        words: rank by BM25 even where the model has a query reasoner.

    Raises:
        ConfigError: the model does not serve the rate.
    """
    rate = rate_of(settings, model)
    latent = not words and has_query_reasoner(model)
    ranker: Ranker = Latent(model, rate, settings.shelf) if latent else Bm25(settings.shelf)
    memories = DocumentMemories(model, rate, settings.shelf)
    context = digest({"memory": model.fingerprint, "rate": rate})
    return Composed(name, settings, ranker, Reading(MemoryContext(memories, context), model, identity(settings, model)))
