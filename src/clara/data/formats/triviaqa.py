"""TriviaQA: the original files, ``{"Data": [{"Question", "Answer": {"Value", "Aliases"}, …}]}``, and the hub's copies.

The hub's copies have one question a line with small keys, ``answer``, ``entity_pages`` and ``search_results``, and hold
the texts of both kinds of page; the original files keep them apart, so their questions only name Wikipedia articles.
A page that holds an answer counts as gold: the data set's own distant supervision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from clara.data.formats import fields
from clara.data.questions import Candidates, GoldRef, Question
from clara.data.records import UnusableRecordError
from clara.metrics import normalize_answer

KEYS = frozenset({"Data"})
_PAGES = (("entity_pages", "wiki_context"), ("search_results", "search_context"))


def hub_matches(value: Mapping[str, Any]) -> bool:
    """Whether a record is a line of the hub's copies."""
    answer = value.get("answer")
    return "question" in value and isinstance(answer, dict) and "value" in answer


def items(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | UnusableRecordError]:
    """The questions of an original file, with the keys of the hub's copies.

    Raises:
        UnusableRecordError: the document holds no list of questions.
    """
    for item in fields.get(document, "Data", list):
        answer = item.get("Answer") if isinstance(item, dict) else None
        if not isinstance(answer, dict):
            yield UnusableRecordError("wrong type of 'Data[]'", str(item)[:60])
            continue
        pages = item.get("EntityPages") or []
        yield {
            "question": item.get("Question"),
            "question_id": item.get("QuestionId"),
            "answer": {"value": answer.get("Value"), "aliases": answer.get("Aliases") or []},
            "entity_pages": {"title": [page.get("Title") for page in pages if isinstance(page, dict)]},
        }


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    answer = fields.get(value, "answer", dict)
    aliases = fields.strings(answer, "aliases") if answer.get("aliases") is not None else []
    answers = fields.answers([fields.get(answer, "value", str), *aliases], left_out)
    found = Candidates(left_out)
    titles = []
    normal = [text for text in map(normalize_answer, answers) if text]
    for key, texts in _PAGES:
        pages = fields.typed(value.get(key) or {}, key, dict)
        named = pages.get("title") or []
        # Without context the lists of texts are empty, or hold empty texts.
        written = pages.get(texts) or [""] * len(named)
        if len(named) != len(written):
            raise UnusableRecordError(f"lists of different length in {key!r}", f"{len(named)} and {len(written)}")
        for title, text in zip(fields.strings({key: named}, key), fields.strings({key: written}, key), strict=True):
            if text.strip():
                plain = f" {normalize_answer(text)} "
                found.add(title, text, gold=any(f" {one} " in plain for one in normal))
            elif key == "entity_pages" and title.strip():
                titles.append(title)
    return Question(
        id=fields.identifier(value, "question_id"),
        source="triviaqa",
        question=fields.get(value, "question", str),
        answers=answers,
        docs=tuple(found.docs),
        gold=tuple(found.gold),
        elsewhere=tuple(GoldRef(title) for title in dict.fromkeys(titles)),
    )
