"""PopQA: ``{"id", "question", "possible_answers", "s_wiki_title", …}``, a line of JSON or of a table with a head.

``possible_answers`` is a list, or a list as JSON text. The documents come from a corpus; which of them support an
answer is not said (the questions were made from Wikidata).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import Question
from clara.data.records import UnusableRecordError

KEYS = frozenset({"question", "possible_answers"})


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    named = fields.get(value, "possible_answers", object)
    if isinstance(named, str):
        try:
            named = json.loads(named)
        except (ValueError, RecursionError):
            raise UnusableRecordError("wrong type of 'possible_answers'", named[:60]) from None
    listed = fields.typed(named, "possible_answers", list)
    return Question(
        id=fields.identifier(value, "id"),
        source="popqa",
        question=fields.get(value, "question", str),
        answers=fields.answers([fields.worded(item, "possible_answers") for item in listed], left_out),
        docs=(),
        gold=(),
    )
