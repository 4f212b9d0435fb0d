"""Natural Questions with its pages: Google's full and simplified files, and the hub's copies.

Candidates are the top-level blocks of the page (``long_answer_candidates``), gold those that an annotator chose as the
long answer. Answers are the annotators' short ones, yes and no among them. Where all chose a block and no short answer,
the answer is not known as a phrase and only the ranking can be measured; where they chose nothing, there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clara.data.formats import fields
from clara.data.questions import Candidates, Question
from clara.data.records import UnusableRecordError

_YES_NO = {"YES": "yes", "NO": "no", 1: "yes", 0: "no"}  # words in Google's files, numbers of labels in the hub's


def matches(value: Mapping[str, Any]) -> bool:
    """Whether a record is of this form."""
    return "annotations" in value and ("question_text" in value or isinstance(value.get("question"), dict))


def parse(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """One question.

    Raises:
        UnusableRecordError: the record cannot be used.
    """
    page = value.get("document")
    about = fields.typed(page, "document", dict) if page is not None else value
    tokens = _tokens(value, about)
    annotations = list(_rows(fields.get(value, "annotations", object), "annotations"))
    short = [text for one in annotations for text in _short(one, tokens)]
    chosen = {span for one in annotations if (span := _span(one.get("long_answer"))) is not None}
    found, spans = Candidates(left_out), set[tuple[int, int]]()
    for block in _rows(value.get("long_answer_candidates") or [], "long_answer_candidates"):
        span = _span(block)
        if span is None or span in spans or not (block.get("top_level", True) or span in chosen):
            continue
        spans.add(span)
        if text := _text(tokens, span):
            found.add(_title(about), text, gold=span in chosen)
        elif span in chosen:
            raise UnusableRecordError("empty gold document", str(span))
    asked = (
        value["question_text"]
        if "question_text" in value
        else fields.get(fields.get(value, "question", dict), "text", str)
    )
    if short:
        answers: tuple[str, ...] | None = fields.answers(short, left_out)
    else:
        answers = None if chosen else ()
    return Question(
        id=fields.identifier(value, "example_id", "id"),
        source="nq",
        question=asked,
        answers=answers,
        docs=tuple(found.docs),
        gold=tuple(found.gold),
    )


def _tokens(value: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """The words of the page by their places; marks of HTML are empty."""
    if isinstance(value.get("document_text"), str):  # simplified: words and marks between single spaces
        return ["" if part[:1] == "<" and part[-1:] == ">" else part for part in value["document_text"].split(" ")]
    listed = about.get("document_tokens", about.get("tokens"))
    if listed is None:
        return []
    rows = _rows(listed, "tokens")
    return ["" if row.get("html_token", row.get("is_html")) else fields.get(row, "token", str) for row in rows]


def _rows(listed: object, label: str) -> Iterator[Mapping[str, Any]]:
    """Records of a list, or of a mapping of lists of equal length (the hub's copies)."""
    if isinstance(listed, dict):
        columns = {key: fields.typed(column, f"{label}.{key}", list) for key, column in listed.items()}
        if len({len(column) for column in columns.values()}) > 1:
            raise UnusableRecordError(f"lists of different length in {label!r}", str(list(columns)))
        names = list(columns)
        yield from (dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return
    for row in fields.typed(listed, label, list):
        yield fields.typed(row, f"{label}[]", dict)


def _span(block: object) -> tuple[int, int] | None:
    """The places of a block's first word and of what follows its last; None where there is none."""
    if not isinstance(block, dict):
        return None
    start, end = block.get("start_token"), block.get("end_token")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        return None
    return start, end


def _short(annotation: Mapping[str, Any], tokens: Sequence[str]) -> Iterator[str]:
    said = annotation.get("yes_no_answer")
    if isinstance(said, str | int) and said in _YES_NO:
        yield _YES_NO[said]
    for answer in _rows(annotation.get("short_answers") or [], "short_answers"):
        span = _span(answer)
        text = answer.get("text") or (_text(tokens, span) if span is not None else "")
        yield fields.typed(text, "short_answers[].text", str)


def _text(tokens: Sequence[str], span: tuple[int, int]) -> str:
    return " ".join(token for token in tokens[span[0] : span[1]] if token.strip())


def _title(about: Mapping[str, Any]) -> str:
    """The page's title, else the one in its address."""
    named = about.get("document_title", about.get("title"))
    if isinstance(named, str):
        return named
    address = about.get("document_url", about.get("url"))
    if not isinstance(address, str):
        return ""
    try:
        return parse_qs(urlsplit(address).query).get("title", [""])[0].replace("_", " ")
    except ValueError:
        return ""
