"""Natural Questions open, questions only: ``{"question", "answer": […]}`` a line. The documents come from a corpus."""

from __future__ import annotations

import hashlib
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
    return Question(
        id=hashlib.sha256(question.encode()).hexdigest()[:16],
        source="nq",
        question=question,
        answers=fields.answers(fields.strings(value, "answer"), left_out),
        docs=(),
        gold=(),
    )
