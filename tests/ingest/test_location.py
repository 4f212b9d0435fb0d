"""Pages and headings: from a document through a stored passage's metadata to a character."""

from __future__ import annotations

import re
import time

import pytest

from clara.ingest import Location, location_of, make_document, page_breaks, passage_metadata, sentence_around
from clara.ingest.read_text import _underlined_headings, markdown_headings
from clara.ingest.split import split
from clara.prompts import passage_text
from clara.records import Document, Heading, Passage


def _passage(document: Document, start: int, end: int) -> Passage:
    return Passage("id", document.uri, document.title, document.text[start:end], start, end)


def test_every_character_of_every_passage_has_its_page() -> None:
    pages = ["first page", "", "third", "fourth page\n\nwith two paragraphs"]
    text, starts = "", []
    for page in pages:
        starts.append(len(text))
        text += f"{page}\n\n" if page else ""
    document = make_document("/a", "", text, {"media_type": "application/pdf"}, pages=tuple(starts))
    expected = {0: 1, text.index("third"): 3, text.index("fourth"): 4, len(text) - 1: 4, text.index("page\n"): 1}
    for size in (1, 3, 7, len(text)):
        for start in range(0, len(text), size):
            passage = _passage(document, start, min(start + size, len(text)))
            metadata = passage_metadata(document, passage)
            assert metadata["media_type"] == "application/pdf"
            for offset, number in expected.items():
                if passage.start <= offset < passage.end:
                    assert location_of(metadata, offset).page == number
            assert page_breaks(metadata) == [each for each in starts if passage.start < each < passage.end]


def test_headings_at_above_and_inside_a_passage() -> None:
    text = "Intro.\n# Fees\nTen euro.\n# Refunds\nNone.\n"
    document = make_document("/a", "", text, headings=markdown_headings(text))
    whole = passage_metadata(document, _passage(document, 0, len(text)))
    assert location_of(whole, 0) == Location(None, "")
    assert location_of(whole, text.index("Ten")) == Location(None, "Fees")
    assert location_of(whole, text.index("None")) == Location(None, "Refunds")
    start = text.index("# Refunds")
    assert passage_metadata(document, _passage(document, start, len(text))) == {"heading": "Refunds"}
    assert passage_metadata(document, _passage(document, start - 4, start)) == {"heading": "Fees"}


def test_many_headings_cost_a_passage_nothing() -> None:
    text = "# A heading\n" * 100_000
    document = make_document("/a", "", text, headings=markdown_headings(text), pages=tuple(range(0, len(text), 12)))
    started = time.process_time()
    for start in range(0, len(text), 1200):
        metadata = passage_metadata(document, _passage(document, start, start + 24))
        assert location_of(metadata, start + 12) == Location(start // 12 + 2, "A heading")
    assert time.process_time() - started < 5  # looking at all of them took minutes


def test_a_passage_of_a_store_without_places() -> None:
    assert location_of({"media_type": "text/plain"}, 7) == Location(None, "")


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("# One #\n\n## Two\n", [(0, "One"), (9, "Two")]),
        ("One\n===\nText\n---\n", [(0, "One")]),
        ("One\n===\n\nTwo\n---\nText\n\nover\ntwo lines\n---\n\n| a |\n---\n\n---\n", [(0, "One"), (9, "Two")]),
        ("```sh\n# comment\n```\n# Real\n", [(20, "Real")]),
        ("~~~\n```\n# a\n~~~ x\n# b\n~~~~\n# Real", [(27, "Real")]),
        ("``` a`b\n# Real\n", [(8, "Real")]),
        ("#hashtag\n#\n    # code\n", []),
        ("a\u2028# no line of its own\n", []),
        ("# C#\n", [(0, "C#")]),
    ],
)
def test_markdown_headings(text: str, headings: list[tuple[int, str]]) -> None:
    assert markdown_headings(text) == tuple(Heading(start, words) for start, words in headings)


def test_underlined_lines_of_a_plain_text_are_headings() -> None:
    text = (
        "Manual\n======\n\nSome text\nthat goes on.\n\nOptions\n-------\n-x\n---\n\na | b\n--\n\nToo long for it\n---\n"
    )
    assert [(heading.start, heading.text) for heading in _underlined_headings(text)] == [(0, "Manual"), (40, "Options")]


@pytest.mark.parametrize("gap", ["\n", "\n\n", "\n \n"])
def test_a_heading_is_no_part_of_the_sentence_below_it(gap: str) -> None:
    text = f"It is old.{gap}## 7 Mapfile{gap}The map has 3 parts. One is short."
    start = text.index("3 parts")
    first, last = sentence_around(text, start, start + 7)
    assert text[first:last] == "The map has 3 parts."
    start = text.index("Mapfile")
    first, last = sentence_around(text, start, start + 7)
    assert text[first:last] == "## 7 Mapfile"


def test_an_indented_item_and_a_field_are_no_part_of_their_neighbours_sentence() -> None:
    text = "The data has\n  two fields:\n  - alcohol\n  - ash, which\n    burns\n:Samples: 178\n:Classes: 3 in all"
    text += "\n\nStart it with\n  -d or wait for\n  18. It goes on."
    for quote, sentence in [
        ("alcohol", "- alcohol"),
        ("ash", "- ash, which\n    burns"),
        ("178", ":Samples: 178"),
        ("3", ":Classes: 3 in all"),
        ("two", "The data has\n  two fields:"),
        ("-d", "Start it with\n  -d or wait for\n  18. It goes on."),
    ]:
        start = text.index(quote)
        first, last = sentence_around(text, start, start + len(quote))
        assert text[first:last] == sentence


def test_a_passage_is_read_under_its_heading() -> None:
    text = "# Albania\n\n" + "Its capital is Tirana. " * 30 + "\n\n## Independence\n\n" + "It came in 1912. " * 30
    document = make_document("a.md", "Almanac", text, headings=markdown_headings(text))
    word = re.compile(r"\w+|[^\w\s]")
    passages = split(document, lambda part: [match.span() for match in word.finditer(part)], max_tokens=64)
    assert passages[0].title == "Almanac", "the passage begins with its heading"
    assert passages[1].title == "Almanac: Albania"
    assert passages[-1].title == "Almanac: Independence"
    assert all(len(word.findall(passage_text(p.title, p.text))) <= 64 for p in passages)
