"""Context-aware decoding (arXiv 2305.14739): what the model would say of no passage in particular counts against it.

The shorter a memory, the more an answer is what questions of its kind are answered with, whatever the passage says.
Taking a share of that off leaves what the passage adds. The blank that stands for "no passage in particular" is one
memory, all of whose tokens are the mean of passages' tokens; its prompt is decoded beside the request's own, with the
same tokens written after both.
Knows logits, not requests.
"""

from __future__ import annotations

from torch import Tensor


def contrasted(logits: Tensor, *, weight: float) -> Tensor:
    """Log-probabilities [V] after the passages less a share of those after the blank.

    Args:
        logits: [2, V], after the passages and after the blank.
        weight: what a log-probability given the blank counts against one given the passages.
    """
    scores = logits.log_softmax(dim=-1)
    return scores[0] - weight * scores[1]
