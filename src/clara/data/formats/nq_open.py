"""Natural Questions open, questions only: ``{"question", "answer": […]}`` a line. The documents come from a corpus.

Some copies hold one answer as a text in place of a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import Question

KEYS = frozenset({"question", "answer"})


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question; it has no identifier there, so the words of the question make one.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    question = fields.get(value, "question", str)
    alone = value.get("answer")
    named = [alone] if isinstance(alone, str) else fields.strings(value, "answer")
    return Question(
        id=fields.made_id(question),
        source="nq",
        question=question,
        answers=fields.answers(named, left_out),
        docs=(),
        gold=(),
    )
