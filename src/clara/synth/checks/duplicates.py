"""A question that was asked already, in the same words or the same words in another order."""

from __future__ import annotations

from collections.abc import Sequence

from clara.synth.drafts import Pair
from clara.synth.words import stems, words

REASON = "duplicate_question"


def check_pair(pair: Pair, accepted: Sequence[Pair]) -> str | None:
    """No accepted question of the same words, and none of the same stems with the same answer."""
    question, bag, answer = words(pair.question), sorted(set(stems(pair.question))), stems(pair.answer)
    for other in accepted:
        same_words = words(other.question) == question
        same_bag = sorted(set(stems(other.question))) == bag and stems(other.answer) == answer
        if same_words or same_bag:
            return f"this question was asked already: {other.question}"
    return None
