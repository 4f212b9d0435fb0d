"""FlashRAG: ``{"id", "question", "golden_answers": […], "metadata": {…}}`` a line, for some thirty data sets.

Of HotpotQA and 2WikiMultihopQA the metadata holds ``context`` and ``supporting_facts`` as the hub's copies do, of
MuSiQue ``paragraphs``; the others come without documents. A multiple-choice set names its answers by their places in
``choices``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clara.data.formats import fields, hotpotqa, musique
from clara.data.questions import Question
from clara.data.records import UnusableRecordError

KEYS = frozenset({"question", "golden_answers"})


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    answers = fields.answers(_answers(value), left_out)
    asked = fields.get(value, "question", str)
    plain = Question(_id(value, asked), "flashrag", asked, answers, docs=(), gold=())
    about = value.get("metadata")
    if not isinstance(about, dict):
        return plain
    known = {"id": plain.id, "question": asked, "answer": answers[0], **about}
    if known.keys() >= hotpotqa.KEYS:
        found = hotpotqa.parse(known, left_out, source="2wiki" if "evidences" in about else "hotpotqa")
    elif known.keys() >= musique.KEYS:
        found = musique.parse(known, left_out)
    else:
        return plain
    return replace(found, id=plain.id, question=asked, answers=answers)


def _id(value: Mapping[str, Any], asked: str) -> str:
    return fields.identifier(value, "id") if "id" in value else fields.made_id(asked)


def _answers(value: Mapping[str, Any]) -> list[str]:
    """The answers; a place in ``choices`` is the choice that stands there."""
    named = fields.get(value, "golden_answers", object)
    listed = named if isinstance(named, list) else [named]
    choices = value.get("choices")
    if not choices:
        return [fields.worded(item, "golden_answers") for item in listed]
    offered = fields.strings(value, "choices")
    places = [item for item in listed if isinstance(item, int) and not isinstance(item, bool)]
    if len(places) < len(listed) or not all(0 <= place < len(offered) for place in places):
        raise UnusableRecordError("answer is none of the choices", str(named)[:60])
    return [offered[place] for place in places]
