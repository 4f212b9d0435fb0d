"""Similarity of a question's memory and a passage's: vector against vector, or late interaction of memory tokens.

Numpy only, for the store and for evaluation; ``model.losses`` has the similarities under gradient.
Shape letters: P passages, N memory tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clara.records import FloatArray, Memory, QueryMemory

_COVERAGE = 0.5
"""Share of a passage's score that is what it adds to the passages above it; chosen on training questions (LOG.md)."""
_SMALLEST = np.float32(1e-30)


@dataclass(frozen=True, slots=True)
class _Placed:
    """Which passage stands in a place of a ranking, and by what score; never above that of the passage before."""

    index: int
    score: float


def ranking(query: QueryMemory, passages: Sequence[Memory]) -> list[int]:
    """Indices of all passages, best first, of equals the first first; by ``covering`` for late interaction."""
    if query.centre is not None and passages:
        return [placed.index for placed in covering([token_matches(query, p.values) for p in passages], len(passages))]
    order: list[int] = np.argsort(-np.array(similarities(query, passages)), kind="stable").tolist()
    return order


def similarities(query: QueryMemory, passages: Iterable[Memory]) -> list[float]:
    """Score that ranks passages: late interaction if the question asks for it, else the cosine of both, flattened."""
    if query.centre is not None:
        return [late_interaction(query, passage.values) for passage in passages]
    vector = query.search_vector()
    return [float(vector @ passage.search_vector()) for passage in passages]


def late_interaction(query: QueryMemory, passage: FloatArray) -> float:
    """For each memory token of the question the best cosine among the passage's; their mean, weighted by length.

    ColBERT's operator (Khattab and Zaharia, arXiv 2004.12832) on memory tokens. The lengths of the question's tokens
    weigh: its projection makes rare directions long, and the model lengthens those that carry information. From -1 to
    1; 0 for a question of zeros.
    """
    return float(token_matches(query, passage).sum())


def token_matches(query: QueryMemory, passages: FloatArray) -> FloatArray:
    """Share of each memory token of the question in ``late_interaction``: of a passage [N], of several [P, N]."""
    centred = passages - (0 if query.centre is None else query.centre)
    lengths = np.sqrt(np.einsum("...nh,...nh->...n", centred, centred))
    products = centred @ query.values.T
    products /= np.maximum(lengths, _SMALLEST)[..., None]
    best: FloatArray = products.max(axis=-2)
    best /= np.maximum(np.linalg.norm(query.values, axis=1).sum(), _SMALLEST)
    return best


def covering(matches: Sequence[FloatArray], k: int) -> list[_Placed]:
    """Rank passages so that those on top match all of the question together, not each the same part of it.

    ``matches`` are of each passage, float32 [N] (``token_matches``). At most ``k`` places, best first, of equals the
    first first; the first's score is about its late interaction.

    What a set of passages is worth is, in equal shares, the sum of their late interactions and the late interaction of
    all their memory tokens as if of one passage. Each place goes to the passage that adds most to those above it. A
    question about two things then finds a passage on each, and a second copy of a passage counts half. Greedy choice of
    a submodular worth, as in maximal marginal relevance (Carbonell and Goldstein, 1998; Lin and Bilmes, 2011), per
    memory token of the question.
    """
    if not matches:
        return []
    each = np.stack(matches).astype(np.float64)  # [P, N]
    alone = each.sum(axis=1)
    covered = np.zeros(each.shape[1])
    left = np.ones(len(each), dtype=bool)
    placed: list[_Placed] = []
    for _ in range(min(k, len(each))):
        added = np.maximum(each - covered, 0).sum(axis=1)
        worth = np.where(left, (1 - _COVERAGE) * alone + _COVERAGE * added, -np.inf)
        index = int(worth.argmax())
        # Sums of floats may rise by a rounding error where the true worth cannot.
        score = min(float(worth[index]), placed[-1].score if placed else np.inf)
        placed.append(_Placed(index, score))
        covered, left[index] = np.maximum(covered, each[index]), False
    return placed
