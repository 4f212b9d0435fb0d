"""MuSiQue, answerable and full: ``{"id", "question", "answer", "answer_aliases", "answerable", "paragraphs"}``.

In the full version half of the questions have lost a supporting paragraph: those are unanswerable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import Candidates, Question

KEYS = frozenset({"question", "paragraphs"})


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    found = Candidates(left_out)
    for item in fields.get(value, "paragraphs", list):
        paragraph = fields.typed(item, "paragraphs[]", dict)
        gold = fields.typed(paragraph.get("is_supporting", False), "is_supporting", bool)
        found.add(fields.get(paragraph, "title", str), fields.get(paragraph, "paragraph_text", str), gold=gold)
    answerable = fields.typed(value.get("answerable", True), "answerable", bool)
    aliases = fields.strings(value, "answer_aliases") if value.get("answer_aliases") is not None else []
    return Question(
        id=fields.identifier(value, "id"),
        source="musique",
        question=fields.get(value, "question", str),
        answers=fields.answers([fields.get(value, "answer", str), *aliases], left_out) if answerable else (),
        docs=tuple(found.docs),
        gold=tuple(found.gold),
    )
