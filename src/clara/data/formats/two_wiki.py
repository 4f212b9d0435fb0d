"""2WikiMultihopQA: HotpotQA's layout with the reasoning path in ``evidences``.

Other names of an answer, where the copy at hand holds them, are in ``answer_aliases``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clara.data.formats import fields, hotpotqa
from clara.data.questions import Question

KEYS = hotpotqa.KEYS | {"evidences"}


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    question = hotpotqa.parse(value, left_out, source="2wiki")
    if value.get("answer_aliases") is None:
        return question
    named = [*(question.answers or ()), *fields.strings(value, "answer_aliases")]
    return replace(question, answers=fields.answers(named, left_out))
