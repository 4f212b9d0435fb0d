"""MRQA's shared task: a head, then ``{"context", "qas": [{"qid", "question", "answers", "detected_answers"}]}`` a line.

The context is the one document, with marks for titles and paragraphs, and those of HTML in Natural Questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import Question
from clara.data.records import DocText, UnusableRecordError

KEYS = frozenset({"context", "qas"})
_MARK = re.compile(r"\[(?:TLE|DOC|PAR|SEP)\]|</?[A-Z][A-Za-z]*[0-9]?>")


def items(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | UnusableRecordError]:
    """One record a question; the head holds none.

    Raises:
        UnusableRecordError: the line holds no questions.
    """
    if "header" in document:
        return
    for item in fields.get(document, "qas", list):
        if isinstance(item, dict):
            yield {**item, "context": document.get("context")}
        else:
            yield UnusableRecordError("wrong type of 'qas[]'", str(item)[:60])


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    detected = [fields.typed(item, "detected_answers[]", dict) for item in value.get("detected_answers") or []]
    named = [*fields.strings(value, "answers"), *(fields.get(item, "text", str) for item in detected)]
    text = " ".join(_MARK.sub(" ", fields.get(value, "context", str)).split())
    return Question(
        id=fields.identifier(value, "qid", "id"),
        source="mrqa",
        question=fields.get(value, "question", str),
        answers=fields.answers(named, left_out),
        docs=(DocText("", text),),
        gold=(0,),
    )
