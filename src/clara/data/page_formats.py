"""Formats of questions with whole pages as their candidates: TriviaQA, and Natural Questions with its pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clara.data.parsing import field, gold_answers, identifier, strings, typed
from clara.data.records import Candidates, GoldRef, Question, UnusableRecordError
from clara.metrics import normalize_answer

_PAGES = (("entity_pages", "wiki_context"), ("search_results", "search_context"))
_YES_NO = {"YES": "yes", "NO": "no", 1: "yes", 0: "no"}  # words in Google's files, numbers of labels in the hub's


def is_triviaqa_hub(value: Mapping[str, Any]) -> bool:
    """Whether a record is a line of the hub's copies of TriviaQA."""
    answer = value.get("answer")
    return "question" in value and isinstance(answer, dict) and "value" in answer


def triviaqa_items(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any] | UnusableRecordError]:
    """Of an original file, ``{"Data": [{"Question", "Answer": {"Value", "Aliases"}, …}]}``, a record a question."""
    for item in field(document, "Data", list):
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


def parse_triviaqa(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """TriviaQA, a question a record with small keys, as in the hub's copies.

    These hold the texts of both kinds of page, ``entity_pages`` and ``search_results``; the original files keep them
    apart, so their questions only name Wikipedia articles. A page that holds an answer counts as gold: the data set's
    own distant supervision.
    """
    answer = field(value, "answer", dict)
    aliases = strings(answer, "aliases") if answer.get("aliases") is not None else []
    answers = gold_answers([field(answer, "value", str), *aliases], left_out)
    found = Candidates(left_out)
    titles = []
    normal = [text for text in map(normalize_answer, answers) if text]
    for key, texts in _PAGES:
        pages = typed(value.get(key) or {}, key, dict)
        named = pages.get("title") or []
        # Without context the lists of texts are empty, or hold empty texts.
        written = pages.get(texts) or [""] * len(named)
        if len(named) != len(written):
            raise UnusableRecordError(f"lists of different length in {key!r}", f"{len(named)} and {len(written)}")
        for title, text in zip(strings({key: named}, key), strings({key: written}, key), strict=True):
            if text.strip():
                plain = f" {normalize_answer(text)} "
                found.add(title, text, gold=any(f" {one} " in plain for one in normal))
            elif key == "entity_pages" and title.strip():
                titles.append(title)
    return Question(
        id=identifier(value, "question_id"),
        source="triviaqa",
        question=field(value, "question", str),
        answers=answers,
        docs=tuple(found.docs),
        gold=tuple(found.gold),
        elsewhere=tuple(GoldRef(title) for title in dict.fromkeys(titles)),
    )


def is_natural_questions(value: Mapping[str, Any]) -> bool:
    """Whether a record is of Natural Questions, in any of its copies."""
    return "annotations" in value and ("question_text" in value or isinstance(value.get("question"), dict))


def parse_natural_questions(value: Mapping[str, Any], left_out: list[str]) -> Question:
    """Natural Questions with its pages: Google's full and simplified files, and the hub's copies.

    Candidates are the top-level blocks of the page (``long_answer_candidates``), gold those that an annotator chose as
    the long answer. Answers are the annotators' short ones, yes and no among them. Where all chose a block and no short
    answer, the answer is not known as a phrase and only the ranking can be measured; where they chose nothing, there
    is none.
    """
    page = value.get("document")
    about = typed(page, "document", dict) if page is not None else value
    tokens = _tokens(value, about)
    annotations = list(_rows(field(value, "annotations", object), "annotations"))
    short = [text for one in annotations for text in _short(one, tokens)]
    chosen = {span for one in annotations if (span := _span(one.get("long_answer"))) is not None}
    found, spans = Candidates(left_out), set[tuple[int, int]]()
    for block in _rows(value.get("long_answer_candidates") or [], "long_answer_candidates"):
        span = _span(block)
        if span is None or span in spans or not (block.get("top_level", True) or span in chosen):
            continue
        spans.add(span)
        if text := _text(tokens, span):
            found.add(_page_title(about), text, gold=span in chosen)
        elif span in chosen:
            raise UnusableRecordError("empty gold document", str(span))
    asked = value["question_text"] if "question_text" in value else field(field(value, "question", dict), "text", str)
    if short:
        answers: tuple[str, ...] | None = gold_answers(short, left_out)
    else:
        answers = None if chosen else ()
    return Question(
        id=identifier(value, "example_id", "id"),
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
    return ["" if row.get("html_token", row.get("is_html")) else field(row, "token", str) for row in rows]


def _rows(listed: object, label: str) -> Iterator[Mapping[str, Any]]:
    """Records of a list, or of a mapping of lists of equal length (the hub's copies)."""
    if isinstance(listed, dict):
        columns = {key: typed(column, f"{label}.{key}", list) for key, column in listed.items()}
        if len({len(column) for column in columns.values()}) > 1:
            raise UnusableRecordError(f"lists of different length in {label!r}", str(list(columns)))
        names = list(columns)
        yield from (dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return
    for row in typed(listed, label, list):
        yield typed(row, f"{label}[]", dict)


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
        yield typed(text, "short_answers[].text", str)


def _text(tokens: Sequence[str], span: tuple[int, int]) -> str:
    return " ".join(token for token in tokens[span[0] : span[1]] if token.strip())


def _page_title(about: Mapping[str, Any]) -> str:
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
