"""SQuAD 1.1 and 2.0: ``{"data": [{"title", "paragraphs": [{"context", "qas": […]}]}]}``, and the hub's flat copies.

A question's one candidate is the paragraph it was asked about; more come from a corpus. ``is_impossible`` marks the
unanswerable questions of 2.0; their ``plausible_answers`` are wrong on purpose and not read. The hub's copies have one
question a line, ``{"id", "title", "context", "question", "answers": {"text": […]}}``, and no such mark: there, no text
means no answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import Question
from clara.data.records import DocText, UnusableRecordError

KEYS = frozenset({"data"})
HUB_KEYS = frozenset({"id", "title", "context", "question", "answers"})


def items(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | UnusableRecordError]:
    """One flat record a question: title, context, and the question's own fields; a fault in the place of what has it.

    Raises:
        UnusableRecordError: the document holds no articles.
    """
    for article in fields.get(document, "data", list):
        try:
            paragraphs = fields.get(fields.typed(article, "data[]", dict), "paragraphs", list)
        except UnusableRecordError as fault:
            yield fault
            continue
        for paragraph in paragraphs:
            yield from _questions(str(article.get("title", "")), paragraph)


def _questions(title: str, paragraph: object) -> Iterator[Mapping[str, Any] | UnusableRecordError]:
    try:
        owner = fields.typed(paragraph, "paragraphs[]", dict)
        questions = fields.get(owner, "qas", list)
    except UnusableRecordError as fault:
        yield fault
        return
    for question in questions:
        if isinstance(question, dict):
            yield {"title": title, "context": owner.get("context"), **question}
        else:
            yield UnusableRecordError("wrong type of 'qas[]'", str(question)[:60])


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    impossible = fields.typed(value.get("is_impossible", False), "is_impossible", bool)
    listed = value.get("answers") or []
    if isinstance(listed, dict):
        found = fields.strings(listed, "text")
        impossible = impossible or not found
    else:
        found = [fields.get(fields.typed(item, "answers[]", dict), "text", str) for item in listed]
    title = fields.get(value, "title", str).replace("_", " ")
    return Question(
        id=fields.identifier(value, "id"),
        source="squad",
        question=fields.get(value, "question", str),
        answers=() if impossible else fields.answers(found, left_out),
        docs=(DocText(title, fields.get(value, "context", str)),),
        gold=(0,),
    )
