"""Systems ``text-*``: the best candidates as full text, read by the base weights zero-shot.

The ranking is BM25, MiniLM or BGE. With ``reader``, the ceiling that compression is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from clara.evaluate.baselines.bm25 import Bm25
from clara.evaluate.baselines.composed import Composed, Context, Ranker, Ranking, Reading, digest
from clara.evaluate.baselines.dense import Dense, bge, minilm
from clara.evaluate.baselines.folders import base_identity
from clara.evaluate.isolation import Failure, each
from clara.evaluate.protocol import AnswerModel
from clara.evaluate.shelf import Shelf
from clara.evaluate.system import Ask, Build, SystemSettings
from clara.prompts import passage_text
from clara.records import GenerationRequest

MakeRanker: TypeAlias = Callable[[SystemSettings], Ranker]

RANKERS: Mapping[str, MakeRanker] = MappingProxyType(
    {
        "bm25": lambda settings: Bm25(settings.shelf),
        "minilm": lambda settings: Dense(minilm(settings), settings.shelf),
        "bge": lambda settings: Dense(bge(settings), settings.shelf),
    }
)
"""Rankings of full text, by the second part of a system's name."""


class TextContext:
    """Makes contexts of the documents' own words, titles before them.

    Args:
        model: its tokenizer counts.
        shelf: keeps the counts.
    """

    fingerprint = "text"

    def __init__(self, model: AnswerModel, shelf: Shelf) -> None:
        self._model = model
        self._shelf = shelf

    def contexts(self, asks: Sequence[Ask], used: Sequence[Ranking]) -> list[Context | Failure]:
        """The documents ``used``, in that order."""
        pairs = list(zip(asks, used, strict=True))
        return each(pairs, lambda some: [self._context(ask, chosen) for ask, chosen in some])

    def _context(self, ask: Ask, chosen: Ranking) -> Context:
        docs = [ask.docs[index] for index in chosen]
        texts = tuple(passage_text(doc.title, doc.text) for doc in docs)
        tokens = sum(token_counts(self._model, self._shelf, texts))
        return Context(GenerationRequest(ask.question, texts=texts, reader="base"), tokens=tokens)


def token_counts(model: AnswerModel, shelf: Shelf, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, counted once a run."""
    counts: list[int] = []
    for found in shelf.derived(
        f"tokens {base_identity(model)}", texts, lambda some: [len(model.token_spans(text)) for text in some]
    ):
        if isinstance(found, Failure):
            raise found.error
        counts.append(found)
    return counts


def zero_shot(settings: SystemSettings, ranking: str) -> Composed:
    """System ``text-RANKING``: the base weights read."""
    weights = digest({"base": base_identity(settings.model)})
    reading = Reading(TextContext(settings.model, settings.shelf), settings.model, weights)
    return Composed(f"text-{ranking}", settings, RANKERS[ranking](settings), reading)


SYSTEMS: Mapping[str, Build] = MappingProxyType({f"text-{name}": partial(zero_shot, ranking=name) for name in RANKERS})
