"""Natural Questions with DPR's passages: training files (``positive_ctxs``) and retrieval results (``ctxs``).

In a training file the positive passages are gold and the hard negatives the other candidates; its random negatives
belong to other questions and are left aside. In a retrieval result the candidates come in the retriever's order; a
passage with ``has_answer`` contains an answer, which is DPR's own notion of a hit, and counts as gold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import Candidates, Question

_KEYS = frozenset({"question", "answers"})


def matches(value: Mapping[str, Any]) -> bool:
    """Whether a record is of this form."""
    return value.keys() >= _KEYS and ("positive_ctxs" in value or "ctxs" in value)


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    found = Candidates(left_out)
    if "ctxs" in value:
        for context in _contexts(value, "ctxs"):
            gold = fields.typed(context.get("has_answer", False), "has_answer", bool)
            found.add(str(context.get("title") or ""), fields.get(context, "text", str), gold=gold)
    else:
        for key in ("positive_ctxs", "hard_negative_ctxs"):
            for context in _contexts(value, key):
                text = fields.get(context, "text", str)
                found.add(str(context.get("title") or ""), text, gold=key == "positive_ctxs")
    question = fields.get(value, "question", str)
    own = value.get("id")
    return Question(
        id=str(own) if isinstance(own, str | int) else fields.made_id(question),
        source="nq",
        question=question,
        answers=fields.answers(fields.strings(value, "answers"), left_out),
        docs=tuple(found.docs),
        gold=tuple(found.gold),
    )


def _contexts(value: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [fields.typed(item, f"{key}[]", dict) for item in value.get(key) or []]
