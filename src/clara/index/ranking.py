"""Ranking of passages: search vectors, their products with a question's, ranks and their fusion.

What a question is compared with is a passage's flattened memory M [N, H], by cosine. A search column says the same, or
nearly, in fewer numbers:

- ``mean`` (H numbers), where questions are one vector m at each memory token, as with a projected mean or late
  interaction. The cosine of m, repeated N times, with M is ``(m / |m|) . (sqrt(N) mean(M) / |M|_F)``: the right-hand
  side is stored, and the order is the same.
- ``sketch`` (1,024 numbers), where they are N vectors: a random projection of M at unit length, which keeps cosines
  within about 0.03 (Johnson and Lindenstrauss). What it finds is scored again by the memories themselves. A memory of
  no more numbers than that is its own sketch.

Stored as fp16. Knows vectors, ids and scores, not where they come from.
Shape letters: R rows, N memory tokens, H hidden size, S numbers of a search vector.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from clara.index.rows import StoreModel
from clara.records import FloatArray, QueryMemory
from clara.similarity import covering

_HalfArray: TypeAlias = npt.NDArray[np.float16]

_SKETCH = 1024
# Each number of a memory is added to so many numbers of its sketch (Kane and Nelson, 2014: sparse projections).
_SPARSITY = 8
_SMALLEST = np.float32(1e-30)

# Bits of an fp16 moved into float32 fields are the number times 2^(15 - 127): the exponents' biases differ.
_BIAS = 127 - 15
# Sign bit and everything below the three bits that sign extension fills.
_FIELDS = np.int32(-0x70000001)
# The query carries most of the bias back, so that products stay far from float32's smallest numbers.
_QUERY_SHIFT = 100
# Numbers decoded and multiplied at a time. Half a megabyte stays in a core's cache, and OpenBLAS leaves a product of
# this size to one thread: with 16 rows of 36,864 its threads, waiting for each other on a busy machine, took ten times
# as long.
_BLOCK_VALUES = 1 << 17


# English words that no search is about (NLTK's 127). LanceDB's own list for this tokenizer is of all its languages
# together: it leaves out "dog", which is Danish for "though", and "cat".
STOP_WORDS = frozenset(
    (  # noqa: SIM905 - a list of words is read as one
        "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers "
        "herself it its itself they them their theirs themselves what which who whom this that these those am is are "
        "was were be been being have has had having do does did doing a an the and but if or because as until while of "
        "at by for with about against between into through during before after above below to from up down in out on "
        "off over under again further then once here there when where why how all any both each few more most other "
        "some such no nor not only own same so than too very s t can will just don should now"
    ).split()
)
_WORD = re.compile(r"[^\W_]+")
# Beside BM25 of stems, which counts 1. Fitted on 2,250 questions of recipes/data, each among its package's passages.
_WRITTEN_WEIGHT, _PAIRS_WEIGHT = 0.7, 0.6
# A second "default" in a passage says little. Lower than the usual 1.2 and 0.75, which rank the bed's passages worse.
_K1, _B = 0.4, 0.4

# Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods"
# (SIGIR 2009) use 60; so does LanceDB.
_RRF_CONSTANT = 60


class SearchColumn(Protocol):
    """Conversion of memories and questions to search vectors."""

    @property
    def width(self) -> int:
        """S."""
        ...

    @property
    def exact(self) -> bool:
        """True if dot products are the cosines themselves, but for fp16's rounding."""
        ...

    def passages(self, values: FloatArray) -> _HalfArray:
        """Search vectors of memories float32 [R, N, H]: fp16 [R, S], none longer than 1."""
        ...

    def query(self, query: QueryMemory) -> FloatArray:
        """The search vector of a question: float32 [S], of length 1, or 0 for a question of zeros."""
        ...


def search_column(model: StoreModel) -> SearchColumn:
    """The column for the questions of a model."""
    return _MeanColumn(model.width) if model.query_space == "mean" else _SketchColumn(model.values)


class _MeanColumn:
    """``sqrt(N) mean(M) / |M|_F`` of memories; of a question the mean of its memory tokens at unit length."""

    exact = True

    def __init__(self, width: int) -> None:
        self.width = width

    def passages(self, values: FloatArray) -> _HalfArray:
        lengths = np.sqrt(np.square(values).sum(axis=(1, 2), dtype=np.float64)).astype(np.float32)
        scale = np.float32(np.sqrt(values.shape[1])) / np.maximum(lengths, _SMALLEST)
        means: _HalfArray = (values.mean(axis=1) * scale[:, None]).astype(np.float16)
        return means

    def query(self, query: QueryMemory) -> FloatArray:
        return _unit(query.values.mean(axis=0, dtype=np.float64))


class _SketchColumn:
    """Random projections of flattened memories at unit length, the same on every machine."""

    exact = False

    def __init__(self, values: int) -> None:
        self._whole = values <= _SKETCH
        self.width = min(values, _SKETCH)
        self._values = values
        self._buckets = _SKETCH // _SPARSITY
        self._padded = -(-values // self._buckets) * self._buckets
        # Raw bits: what numpy draws from them may change with its version, and stored sketches could not be read then.
        raw = np.random.PCG64(1).random_raw((0 if self._whole else _SPARSITY, self._padded))
        self._orders = np.argsort(raw, axis=1, kind="stable")
        self._signs = np.where(raw & np.uint64(1), np.float32(1), np.float32(-1))

    def passages(self, values: FloatArray) -> _HalfArray:
        return np.stack([self._sketch(memory.reshape(-1)) for memory in values]).astype(np.float16)

    def query(self, query: QueryMemory) -> FloatArray:
        return self._sketch(query.search_vector())

    def _sketch(self, flat: FloatArray) -> FloatArray:
        """Each round puts every number, with a sign, into one of its buckets: [N * H] to [S]."""
        if self._whole:
            return _unit(flat.astype(np.float64))
        filled = np.pad(flat, (0, self._padded - self._values))
        rounds = zip(self._orders, self._signs, strict=True)
        sums = [(filled[order] * signs).reshape(self._buckets, -1).sum(axis=1) for order, signs in rounds]
        return _unit(np.concatenate(sums).astype(np.float64))


def _unit(vector: npt.NDArray[np.float64]) -> FloatArray:
    """A vector at unit length; one of zeros stays."""
    length = float(np.sqrt(np.sum(np.square(vector))))
    return (vector / length if length > 0 else vector).astype(np.float32)


def dot(stored: _HalfArray, query: FloatArray) -> FloatArray:
    """Dot products of stored vectors with one query, in float32.

    numpy turns fp16 into float32 one number at a time, which takes three times as long as the product itself on
    these widths. Here the bits are shifted into float32's fields as integers and the factor 2^112 that is missing
    then is given back through the query; this is exact for every finite fp16. Slow twin:
    ``stored.astype(np.float32) @ query``.

    Args:
        stored: fp16 [R, S], C-contiguous, finite.
        query: float32 [S], values within ±1 (a unit vector).

    Returns:
        float32 [R].
    """
    rows, width = stored.shape
    bits = stored.view(np.int16)
    scaled = query * np.float32(2.0**_QUERY_SHIFT)
    products = np.empty(rows, dtype=np.float32)
    block_rows = max(1, _BLOCK_VALUES // width)
    block = np.empty((min(rows, block_rows), width), dtype=np.int32)
    for start in range(0, rows, block_rows):
        part = bits[start : start + block_rows]
        fields = block[: len(part)]
        np.left_shift(part, 13, out=fields, dtype=np.int32)
        np.bitwise_and(fields, _FIELDS, out=fields)
        np.matmul(fields.view(np.float32), scaled, out=products[start : start + len(part)])
    products *= np.float32(2.0 ** (_BIAS - _QUERY_SHIFT))
    return products


def exact_dot(stored: npt.NDArray[np.floating], query: FloatArray) -> npt.NDArray[np.float64]:
    """Dot products [R] in float64, each of its row and the query alone.

    A matrix product's last digits depend on where the row lies among others. These do not: equal rows get equal
    scores, and a store gives the same scores whatever order it was written in.
    """
    products: npt.NDArray[np.float64] = np.sum(stored.astype(np.float64) * query.astype(np.float64), axis=1)
    return products


def cosines(values: FloatArray, query: FloatArray) -> npt.NDArray[np.float64]:
    """Cosines [R] of flattened memories [R, N * H] with one query [N * H], in float64; 0 where a length is 0."""
    lengths = np.sqrt(exact_dot(np.square(values, dtype=np.float64), np.ones_like(query)))
    lengths *= float(np.sqrt(np.sum(np.square(query, dtype=np.float64))))
    products = exact_dot(values, query)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage id with its score, higher is better.

    Attributes:
        place: of its row in the table; -1 where of no use.
        words: its text as ``rows.lexical_text`` makes it, where it was found by that.
    """

    id: str
    score: float
    place: int = field(default=-1, compare=False)
    words: str | None = field(default=None, compare=False, repr=False)


def best(scored: Iterable[Ranked], k: int) -> list[Ranked]:
    """The ``k`` highest scores, falling; equal scores by id, so that no storage order shows through."""
    return sorted(scored, key=lambda item: (-item.score, item.id))[:k]


def best_together(matches: Mapping[str, FloatArray], k: int) -> list[Ranked]:
    """The best ``k`` by late interaction (``similarity.covering``), ties by id.

    ``matches`` are of each passage by id, float32 [N] (``similarity.token_matches``).
    """
    ids = sorted(matches)
    return [Ranked(ids[placed.index], placed.score) for placed in covering([matches[i] for i in ids], k)]


def by_words(question: str, found: Sequence[Ranked]) -> list[Ranked]:
    """Order passages that BM25 of stems found by their words as they are written, and by those that stand side by side.

    Stems find ("installing" finds "installed"), but do not tell ``timeout`` from ``timed out``, nor the passage on the
    default branch from one in which both words occur somewhere. So two more BM25 scores are added: of the question's
    words unstemmed, and of its pairs of neighbouring words, at most one of them a stop word. Both count how rare a
    word or pair is among the passages found, which are all that have to be told apart.

    Args:
        question: as ``rows.lexical_text`` makes it.
        found: passages with BM25 of stems, and their words.

    Returns:
        The same passages with the sum, best first, ties by id.
    """
    if not found:
        return []
    asked = _WORD.findall(question.lower())
    written = {word for word in asked if word not in STOP_WORDS}
    pairs = {pair for pair in pairwise(asked) if not written.isdisjoint(pair)}
    words: list[Counter[Any]] = []
    neighbours: list[Counter[Any]] = []
    lengths = []
    for item in found:
        tokens = _WORD.findall((item.words or "").lower())
        words.append(Counter(word for word in tokens if word in written))
        neighbours.append(Counter(pair for pair in pairwise(tokens) if pair in pairs))
        lengths.append(len(tokens))
    more = _WRITTEN_WEIGHT * _bm25(words, lengths) + _PAIRS_WEIGHT * _bm25(neighbours, lengths)
    return best(
        (replace(item, score=item.score + float(added)) for item, added in zip(found, more, strict=True)), len(found)
    )


def _bm25(counts: Sequence[Counter[Any]], lengths: Sequence[int]) -> npt.NDArray[np.float64]:
    """BM25 [R] of passages, given how often each has each of the question's terms, and their lengths in words."""
    length = np.asarray(lengths, dtype=np.float64)
    norm = _K1 * (1 - _B + _B * length / max(length.mean(), 1.0))
    scores = np.zeros(len(counts))
    for term in sorted(set().union(*counts)):  # summed in one order: the same float at every run
        often = np.array([count[term] for count in counts], dtype=np.float64)
        having = np.count_nonzero(often)
        rarity = np.log1p((len(counts) - having + 0.5) / (having + 0.5))
        scores += rarity * often * (_K1 + 1) / (often + norm)
    return scores


def fusion_depth(k: int) -> int:
    """Number of passages of each ranking that are fused for ``k`` results.

    Four times what is asked for lets a passage that is middling in both rankings overtake one that is good in only
    one; below 50 the rankings of small questions would hardly overlap.
    """
    return max(4 * k, 50)


def late_depth(k: int) -> int:
    """Number of nearest passages that late interaction puts in order, for ``k`` results.

    All of them in a small store; each costs a tenth of a millisecond.
    """
    return max(4 * k, 200)


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[Ranked]], *, weights: Sequence[float] | None = None
) -> list[Ranked]:
    """Fuse rankings by the sum of weight / (60 + rank), rank counted from 1.

    Args:
        rankings: best first, each id at most once in each; an id missing from a ranking gets nothing from it.
        weights: one a ranking; 1 each when None.

    Returns:
        Every id of any ranking with its fused score, best first, ties by id.
    """
    # Summed per id in the order of the rankings: the same float whatever the order of ids.
    fused: dict[str, float] = {}
    items = {item.id: item for ranking in rankings for item in ranking}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, item in enumerate(ranking, start=1):
            fused[item.id] = fused.get(item.id, 0.0) + weight / (_RRF_CONSTANT + rank)
    return best((replace(items[passage_id], score=score) for passage_id, score in fused.items()), len(fused))
