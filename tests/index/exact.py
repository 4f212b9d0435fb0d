"""A passage index in memory, by the plainest means: the oracle that other indexes are tested against.

Not the place for speed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from clara.errors import InputError, StoreError
from clara.index import DocumentEntry, IndexRow, LanceStore, StoreModel
from clara.index.ranking import (
    STOP_WORDS,
    Ranked,
    best,
    best_together,
    fusion_depth,
    late_depth,
    reciprocal_rank_fusion,
)
from clara.index.rows import lexical_text
from clara.records import Hit, QueryMemory
from clara.similarity import token_matches

# Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009); LanceDB uses the same two.
_K1 = 1.2
_B = 0.75
_WORD = re.compile(r"[^\W_]+")


class ExactIndex:
    """A passage index that holds everything in dictionaries; as :class:`clara.index.LanceStore` does on disk.

    Memories are kept as given, not rounded to fp16. Text search has no stems: it finds by lower-case words as they are,
    stop words among them.

    Args:
        model: the model whose memories it holds.
    """

    def __init__(self, model: StoreModel) -> None:
        self._model = model
        self._rows: dict[str, IndexRow] = {}
        self._complete: dict[str, DocumentEntry] = {}

    @property
    def model(self) -> StoreModel:
        """The model whose memories the index holds."""
        return self._model

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Add or replace passages."""
        self._model.check_rows(rows)
        self._rows.update({row.passage.id: row for row in rows})

    def passage_ids(self, uri: str) -> set[str]:
        """Ids of a document's passages, of every version."""
        return {passage_id for passage_id, row in self._rows.items() if row.passage.document == uri}

    def finish_documents(self, entries: Sequence[DocumentEntry]) -> None:
        """Record documents as complete and drop their other versions."""
        kept = {}
        for entry in entries:
            kept[entry.uri] = {
                passage_id
                for passage_id in self.passage_ids(entry.uri)
                if self._rows[passage_id].content_hash == entry.content_hash
            }
            entry.check_complete(len(kept[entry.uri]))
        for entry in entries:
            for passage_id in self.passage_ids(entry.uri) - kept[entry.uri]:
                del self._rows[passage_id]
            self._complete[entry.uri] = entry

    def documents(self) -> dict[str, DocumentEntry]:
        """The complete documents by uri."""
        return dict(self._complete)

    def unfinished(self) -> set[str]:
        """Documents with passages that are not complete."""
        return {row.passage.document for row in self._rows.values()} - self._complete.keys()

    def remove(self, uris: Iterable[str]) -> int:
        """Remove documents; returns the number of passages removed."""
        listed = set(uris)
        doomed = [passage_id for uri in listed for passage_id in self.passage_ids(uri)]
        for passage_id in doomed:
            del self._rows[passage_id]
        for uri in listed:
            self._complete.pop(uri, None)
        return len(doomed)

    def count(self) -> int:
        """Number of passages."""
        return len(self._rows)

    def get(self, passage_ids: Sequence[str]) -> list[IndexRow]:
        """Passages by id, in the order asked for."""
        missing = [passage_id for passage_id in passage_ids if passage_id not in self._rows]
        if missing:
            raise StoreError(f"the index has no passage {missing[0]} ({len(missing)} missing)")
        return [self._rows[passage_id] for passage_id in passage_ids]

    def search_latent(self, query: QueryMemory, k: int, *, within: Collection[str] | None = None) -> list[Hit]:
        """The ``k`` passages of highest cosine, or highest late interaction among those of highest cosine."""
        _check_k(k)
        self._model.check_query(query)
        return self._hits(self._latent(query, k, within))

    def search_text(self, words: str, k: int, *, within: Collection[str] | None = None) -> list[Hit]:
        """The ``k`` passages of highest BM25, of three kinds."""
        _check_k(k)
        return self._hits(self._text(words, fusion_depth(k), within)[:k])

    def search_hybrid(
        self,
        query: QueryMemory,
        words: str,
        k: int,
        *,
        latent_weight: float = 1.0,
        within: Collection[str] | None = None,
    ) -> list[Hit]:
        """Reciprocal rank fusion of both searches."""
        _check_k(k)
        self._model.check_query(query)
        depth = fusion_depth(k)
        rankings = (self._latent(query, depth, within), self._text(words, depth, within))
        return self._hits(reciprocal_rank_fusion(rankings, weights=(latent_weight, 1.0))[:k])

    def settled(self) -> bool:
        """Always: there is nothing to do."""
        return True

    def optimize(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to give back."""

    def _inside(self, ranked: list[Ranked], within: Collection[str] | None) -> list[Ranked]:
        """Those of some documents."""
        return [item for item in ranked if within is None or self._rows[item.id].passage.document in within]

    def _latent(self, query: QueryMemory, k: int, within: Collection[str] | None) -> list[Ranked]:
        """Best ``k`` by memory."""
        scored = self._inside(self._cosines(query), within)
        if query.centre is None:
            return best(scored, k)
        near = best(scored, late_depth(k))
        return best_together({i.id: token_matches(query, self._rows[i.id].memory.values) for i in near}, k)

    def _cosines(self, asked: QueryMemory) -> list[Ranked]:
        """Every passage with its cosine, in float64."""
        query = asked.search_vector().astype(np.float64)
        scored = []
        for passage_id, row in self._rows.items():
            memory = row.memory.values.astype(np.float64).reshape(-1)
            lengths = float(np.linalg.norm(memory) * np.linalg.norm(query))
            scored.append(Ranked(passage_id, float(memory @ query) / lengths if lengths > 0 else 0.0))
        return scored

    def _text(self, query: str, depth: int, within: Collection[str] | None) -> list[Ranked]:
        """Best ``depth`` by words, then in order with BM25 of words and of pairs among these ``depth`` added."""
        found = best(self._inside(self._bm25(query), within), depth)
        texts = {item.id: _words(self._lexical(item.id)) for item in found}
        mean = sum(map(len, texts.values())) / max(len(texts), 1)
        asked = _words(lexical_text(query))
        singles = {(word,) for word in asked} - {(word,) for word in STOP_WORDS}
        scores = {item.id: item.score for item in found}
        pairs = {pair for pair in pairwise(asked) if not STOP_WORDS.issuperset(pair)}
        for terms, weight in ((singles, 0.7), (pairs, 0.6)):
            for term in terms:
                runs = {i: list(zip(*(text[n:] for n in range(len(term))), strict=False)) for i, text in texts.items()}
                often = {i: run.count(term) for i, run in runs.items() if term in run}
                idf = math.log(1 + (len(texts) - len(often) + 0.5) / (len(often) + 0.5))
                for i, count in often.items():
                    saturated = count * 1.4 / (count + 0.4 * (0.6 + 0.4 * len(texts[i]) / mean))
                    scores[i] += weight * idf * saturated
        return best((Ranked(passage_id, score) for passage_id, score in scores.items()), depth)

    def _lexical(self, passage_id: str) -> str:
        passage = self._rows[passage_id].passage
        return lexical_text(passage.text, passage.title)

    def _bm25(self, query: str) -> list[Ranked]:
        """Passages that share a word with the query, with the sum over its words of idf * saturated frequency.

        A word counts as often as it stands in the query. Passages without words are no part of the statistics, as in
        LanceDB.
        """
        every = {i: Counter(_words(self._lexical(i))) for i in self._rows}
        counts = {passage_id: words for passage_id, words in every.items() if words}
        lengths = {passage_id: words.total() for passage_id, words in counts.items()}
        mean = sum(lengths.values()) / len(lengths) if lengths else 0.0
        scores: dict[str, float] = {}
        for word in _words(lexical_text(query)):
            holders = [passage_id for passage_id, words in counts.items() if word in words]
            idf = math.log(1 + (len(counts) - len(holders) + 0.5) / (len(holders) + 0.5))
            for passage_id in holders:
                frequency = counts[passage_id][word]
                saturated = frequency * (_K1 + 1) / (frequency + _K1 * (1 - _B + _B * lengths[passage_id] / mean))
                scores[passage_id] = scores.get(passage_id, 0.0) + idf * saturated
        return [Ranked(passage_id, score) for passage_id, score in scores.items()]

    def _hits(self, ranked: Sequence[Ranked]) -> list[Hit]:
        """Ranked ids with their passages and memories."""
        found = [(item.score, self._rows[item.id]) for item in ranked]
        return [Hit(row.passage, score, row.memory, row.metadata) for score, row in found]


PassageIndex: TypeAlias = LanceStore | ExactIndex


def _check_k(k: int) -> None:
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")


def _words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return [match.group().lower() for match in _WORD.finditer(text)]
