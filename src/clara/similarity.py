"""How near a question's memory is to a passage's: one vector against one, or memory token against memory tokens.

Numpy only, for the store and for evaluation; ``model.selection`` has the same under gradient.
Shape letters: P passages, N memory tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from clara.records import FloatArray, LateQuery, Memory

_SMALLEST = np.float32(1e-30)


def similarities(query: Memory, passages: Iterable[Memory]) -> list[float]:
    """What passages are ranked by: late interaction for a question that asks for it, else the cosine of both, flat."""
    late = query.late
    if late is not None:
        return late_scores(late, [passage.values for passage in passages])
    vector = query.search_vector()
    return [float(vector @ passage.search_vector()) for passage in passages]


def late_scores(query: LateQuery, passages: Sequence[FloatArray]) -> list[float]:
    """Late interaction of a question with each passage; with feedback, also of the best passages with each.

    Pseudo-relevance feedback (Rocchio, 1971; on token embeddings Wang et al., arXiv 2106.11251). The passages that a
    question finds first name what it does not, such as the person whose birthplace is asked for. Each of the first
    ``feedback.passages`` is then asked like a question, and a passage's score is the mean of what the question finds
    in it and what the one of them that suits it best finds. What was found first stays first.

    Args:
        query: the question.
        passages: float32 [N, H] each, all that compete: what is found first is found among them.

    Returns:
        One score a passage, from -1 to 1. Of equal scores the earlier passage counts as found first.
    """
    if not passages:
        return []
    directions = _directions(np.stack(passages), query.centre)
    scores = _found(query.tokens, directions)
    feedback = query.feedback
    if feedback is not None:
        first = np.argsort(-scores, kind="stable")[: feedback.passages]
        asking = [np.matmul(passages[i] - query.centre, feedback.projection.T, dtype=np.float32) for i in first]
        found = np.max([_found(tokens, directions) for tokens in asking], axis=0)
        found[first] = 1  # whatever its projection makes of its own cosines, a passage finds all of itself
        scores = (scores + found) / 2
    return [float(score) for score in scores]


def late_interaction(query: LateQuery, passage: FloatArray) -> float:
    """For each memory token of the question the best cosine among the passage's; their mean, weighted by length.

    ColBERT's operator (Khattab and Zaharia, arXiv 2004.12832) on memory tokens. The lengths of the question's tokens
    weigh: its projection makes rare directions long, and the model lengthens those that carry information.

    Args:
        query: the question; its feedback is not looked at, as one passage has no competitors.
        passage: float32 [N, H].

    Returns:
        From -1 to 1; 0 for a question of zeros.
    """
    return float(_found(query.tokens, _directions(passage[None], query.centre))[0])


def _directions(passages: FloatArray, centre: FloatArray) -> FloatArray:
    """Memory tokens [P, N, H] less what they have in common, at unit length; one that is nothing more stays zero."""
    centred = passages - centre
    centred /= np.maximum(np.linalg.norm(centred, axis=2, keepdims=True), _SMALLEST)
    return centred


def _found(tokens: FloatArray, directions: FloatArray) -> FloatArray:
    """Late interaction of the tokens [N, H] of one question with passages [P, N, H]: float32 [P]."""
    count, slots, width = directions.shape
    products = directions.reshape(count * slots, width) @ tokens.T
    best = products.reshape(count, slots, -1).max(axis=1).sum(axis=1)
    scores: FloatArray = best / np.maximum(np.linalg.norm(tokens, axis=1).sum(), _SMALLEST)
    return scores
