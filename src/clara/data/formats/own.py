"""Our own records as questions: a question over candidate documents; passages ask no single question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara.data.parsing import parse as parse_record
from clara.data.questions import Question
from clara.data.records import MultiHop, UnusableRecordError

KEYS = frozenset({"question", "docs", "gold", "answers"})


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    parsed = parse_record(value)
    if not isinstance(parsed.record, MultiHop):
        raise UnusableRecordError("passage record, which asks no single question")
    left_out.extend(parsed.left_out)
    return Question.of(parsed.record)
