"""Orders scored passages: the best k with a fixed order of ties, and reciprocal rank fusion of two rankings.

Knows ids and scores, not where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from clara.records import FloatArray
from clara.similarity import covering

# Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning methods"
# (SIGIR 2009) use 60; so does LanceDB.
RRF_CONSTANT = 60


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage id with its score; higher is better.

    Attributes:
        id: the passage's.
        score: what it is ranked by.
        place: where its row lies in the table searched; -1 where that is of no use.
    """

    id: str
    score: float
    place: int = field(default=-1, compare=False)


def best(scored: Iterable[Ranked], k: int) -> list[Ranked]:
    """The ``k`` highest scores, falling; equal scores by id, so that no storage order shows through."""
    return sorted(scored, key=lambda item: (-item.score, item.id))[:k]


def best_together(matches: Mapping[str, FloatArray], k: int) -> list[Ranked]:
    """The best ``k`` by late interaction (``similarity.covering``), ties by id.

    Args:
        matches: of each passage by id, float32 [N] (``similarity.token_matches``).
        k: at least 1.
    """
    ids = sorted(matches)
    return [Ranked(ids[placed.index], placed.score) for placed in covering([matches[i] for i in ids], k)]


def fusion_depth(k: int) -> int:
    """How many passages of each ranking are fused for ``k`` results.

    Four times what is asked for lets a passage that is middling in both rankings overtake one that is good in only
    one; below 50 the rankings of small questions would hardly overlap.
    """
    return max(4 * k, 50)


def late_depth(k: int) -> int:
    """How many passages that are near as a whole late interaction puts in order, for ``k`` results.

    All of them in a small store; each costs a tenth of a millisecond.
    """
    return max(4 * k, 200)


def rescore_depth(k: int) -> int:
    """How many passages whose sketches are near are compared by their memories, for ``k`` results."""
    return max(20 * k, 500)


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[Ranked]], *, weights: Sequence[float] | None = None, constant: int = RRF_CONSTANT
) -> list[Ranked]:
    """Fuse rankings by the sum of weight / (constant + rank), rank counted from 1.

    Args:
        rankings: best first, each id at most once in each; an id missing from a ranking gets nothing from it.
        weights: one a ranking; 1 each when None.
        constant: dampens the difference between the first ranks.

    Returns:
        Every id of any ranking with its fused score, best first, ties by id.
    """
    # Summed per id in the order of the rankings: the same float whatever the order of ids.
    fused: dict[str, float] = {}
    places = {item.id: item.place for ranking in rankings for item in ranking}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, item in enumerate(ranking, start=1):
            fused[item.id] = fused.get(item.id, 0.0) + weight / (constant + rank)
    return best((Ranked(passage_id, score, places[passage_id]) for passage_id, score in fused.items()), len(fused))
