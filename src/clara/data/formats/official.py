"""The evaluation JSON Lines of Apple's CLaRa code: ``{"question", "docs": [text, …], "gold_answer"}``.

``pos_index``, where it is given, holds the indices of the supporting documents. A document is one string there: its
title, if any, is the string's first line, and is left where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import Candidates, Question
from clara.data.records import UnusableRecordError

KEYS = frozenset({"question", "docs", "gold_answer"})


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    texts = fields.strings(value, "docs")
    positive = _indices(value.get("pos_index"), len(texts))
    found = Candidates(left_out)
    for index, text in enumerate(texts):
        found.add("", text, gold=index in positive)
    gold_answer = fields.get(value, "gold_answer", object)
    named = gold_answer if isinstance(gold_answer, list) else [gold_answer]
    question = fields.get(value, "question", str)
    own = value.get("id")
    return Question(
        id=str(own) if isinstance(own, str | int) else fields.made_id(question),
        source="official",
        question=question,
        answers=fields.answers([fields.worded(answer, "gold_answer") for answer in named], left_out),
        docs=tuple(found.docs),
        gold=tuple(found.gold),
    )


def _indices(value: object, count: int) -> set[int]:
    if value is None:
        return set()
    listed = value if isinstance(value, list) else [value]
    for index in listed:
        if not isinstance(index, int) or isinstance(index, bool):
            raise UnusableRecordError("wrong type of 'pos_index'", str(value)[:60])
        if not 0 <= index < count:
            raise UnusableRecordError("gold index out of range", f"{index} of {count} documents")
    return set(listed)
