"""How near a question's memory is to a passage's: one vector against one, or memory token against memory tokens.

Numpy only, for the store and for evaluation; ``model.selection`` has the same under gradient.
Shape letters: N memory tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from clara.records import FloatArray, LateQuery, Memory

_SMALLEST = np.float32(1e-30)


def similarities(query: Memory, passages: Iterable[Memory]) -> list[float]:
    """What passages are ranked by: late interaction for a question that asks for it, else the cosine of both, flat."""
    late = query.late
    if late is not None:
        return [late_interaction(late, passage.values) for passage in passages]
    vector = query.search_vector()
    return [float(vector @ passage.search_vector()) for passage in passages]


def late_interaction(query: LateQuery, passage: FloatArray) -> float:
    """For each memory token of the question the best cosine among the passage's; their mean, weighted by length.

    ColBERT's operator (Khattab and Zaharia, arXiv 2004.12832) on memory tokens. The lengths of the question's tokens
    weigh: its projection makes rare directions long, and the model lengthens those that carry information.

    Args:
        query: the question.
        passage: float32 [N, H].

    Returns:
        From -1 to 1; 0 for a question of zeros.
    """
    centred = passage - query.centre
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), _SMALLEST)
    best = (query.tokens @ centred.T).max(axis=1).sum()
    return float(best / np.maximum(np.linalg.norm(query.tokens, axis=1).sum(), _SMALLEST))
