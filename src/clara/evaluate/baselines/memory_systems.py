"""Systems that answer from memories: ``clara`` and its stages, and ``pisco``.

A checkpoint with a query reasoner ranks by it; one without is given BM25's order, as the paper gives a retriever's
order to the models of its compression tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

from clara.errors import ConfigError
from clara.evaluate.baselines.bm25 import Bm25
from clara.evaluate.baselines.composed import Composed, Context, Ranker, Ranking, Reading, digest
from clara.evaluate.baselines.folders import has_query_reasoner, identity, open_checkpoint, rate_of
from clara.evaluate.baselines.latent import DocumentMemories, Latent
from clara.evaluate.isolation import Failure
from clara.evaluate.protocol import AnswerModel
from clara.evaluate.system import Ask, Build, SystemSettings
from clara.records import GenerationRequest, Memory

STAGES = ("scp", "instruct", "end_to_end")
"""Stages with a system of their own; each is also the option that names its checkpoint."""

PISCO_STAGE = "instruct"


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


def build_pisco(settings: SystemSettings) -> Composed:
    """System ``pisco``: the checkpoint of option ``pisco``, trained on a teacher's answers without SCP.

    Raises:
        ConfigError: the checkpoint went through another stage first, or did not learn from a teacher's answers.
    """
    model = open_checkpoint(settings, "pisco", PISCO_STAGE, label="pisco")
    trained = model.manifest.trained.get("config", {})
    start, targets = trained.get("start"), trained.get("targets")
    if start is not None or targets != "teacher":
        raise ConfigError(
            f"--option pisco={settings.options['pisco']} starts from {start or 'the base model'} and has targets "
            f"{targets!r}; PISCO starts from the base model and learns a teacher's answers (recipes/pisco-*.toml)"
        )
    return of_model("pisco", settings, model, words=True)


SYSTEMS: Mapping[str, Build] = MappingProxyType(
    {"clara": build, "clara-bm25": build_by_words, "pisco": build_pisco}
    | {f"clara-{stage.replace('_', '-')}": partial(build_stage, stage=stage) for stage in STAGES}
)
