"""KILT: ``{"id", "input", "output": [{"answer", "provenance": [{"wikipedia_id", "title", …}]}]}`` a line.

Provenance names Wikipedia articles, not passages: they are references by title, to be found in a corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import GoldRef, Question

KEYS = frozenset({"input", "output"})


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    named: list[str] = []
    titles: dict[str, None] = {}
    for item in fields.get(value, "output", list):
        output = fields.typed(item, "output[]", dict)
        if isinstance(output.get("answer"), str):
            named.append(output["answer"])
        for source in output.get("provenance") or []:
            title = fields.typed(source, "provenance[]", dict).get("title")
            if isinstance(title, str) and title.strip():
                titles[title] = None
            else:
                left_out.append("provenance without a title")
    return Question(
        id=fields.identifier(value, "id"),
        source="kilt",
        question=fields.get(value, "input", str),
        answers=fields.answers(named, left_out),
        docs=(),
        gold=(),
        elsewhere=tuple(GoldRef(title) for title in titles),
    )
