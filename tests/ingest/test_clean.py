"""What is done to every text: words joined, blanks squeezed, data left out; and places move along."""

from __future__ import annotations

import base64
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara.errors import DocumentError
from clara.ingest import LeftOut, read_file
from clara.ingest.clean import Layout, clean
from clara.records import Document

_DATA = base64.b64encode(bytes((place * place * 37 + place * 11) % 251 for place in range(3000))).decode("ascii")
_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def test_a_typeset_text() -> None:
    text = (
        "     The  harbour lantern  of  Tolvik  was in‐\n     vented in 1931 by the engineer Orla Finch‐\n"
        "     ley.  It is fuelled with rape‐seed oil and\n     was  decom‐\n     missioned when the pier was rebuilt.\n"
    )
    assert clean(text).text == (
        " The harbour lantern of Tolvik was invented in 1931 by the engineer Orla Finchley. It is fuelled with "
        "rape-seed oil and\n was decommissioned when the pier was rebuilt.\n"
    )


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("Infor-\n  mation is information.", "Information is information."),
        ("Use low-\nlevel or low-level calls.", "Use low-level or low-level calls."),
        ("The infor-\nmation is lost.", "The infor-\nmation is lost."),
        ("A re-\nform, to reform or to re-form.", "A re-\nform, to reform or to re-form."),
        ("Ein-\nund Ausgang, Einfuhr", "Ein-\nund Ausgang, Einfuhr"),
        ("Type x-\n1 for x1.", "Type x-\n1 for x1."),
    ],
)
def test_a_word_that_a_plain_hyphen_breaks_is_joined_where_the_document_tells(text: str, joined: str) -> None:
    assert clean(text).text == joined
    assert clean(text, "markup").text.replace("  ", "") == text.replace("  ", "")


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("Unter\u00adnehmen", "Unternehmen"),
        ("Unter\u00ad\n  nehmen", "Unternehmen"),
        ("rape‐seed, or rape‐\nseed", "rape-seed, or rape-seed"),
        ("the F‐\n16 of Jean‐\nPierre", "the F-16 of Jean-Pierre"),
        ("twenty‐\none", "twenty-one"),
        ("Ein‐\nund Ausgang", "Ein- und Ausgang"),
        ("a plain-\nhyphen", "a plain-\nhyphen"),
        ("g_file\u200b_new", "g_file_new"),
        ("E = \U0001d45a\U0001d450\u00b2 by o\ufb03ce \u2167", "E = mc\u00b2 by office \u2167"),
        ("ភាសា\u200bខ្មែរ", "ភាសា\u200bខ្មែរ"),
        ("\x1b[1mNAME\x1b[0m N\bNA\bA\x07", "NAME NA"),
    ],
)
def test_words(text: str, joined: str) -> None:
    assert clean(text).text == joined


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("prose", "a b\n c\td\n  e\n f\n\ng"),
        ("markup", "a b\n   c\td\n       e\n   f\n\ng"),
        ("code", "a   b\n   c \t d\n       e\n   f\n\n\n\ng"),
    ],
)
def test_blanks(layout: Layout, expected: str) -> None:
    assert clean("a   b  \n   c \t d\n       e\n   f\n\n \n\ng", layout).text == expected


def test_code_inside_markdown_keeps_its_blanks() -> None:
    text = "a  b\n```py\nx   = 1\n```\nc  d\n~~~\ny   = 2"
    assert clean(text, "markup").text == "a b\n```py\nx   = 1\n```\nc d\n~~~\ny   = 2"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"![Plan](data:image/png;base64,{_DATA}) after", "![Plan]() after"),
        (f"before {_DATA} after", "before after"),
        ("before\n" + "\n".join(textwrap.wrap(_DATA, 76)) + "\nafter", "before\n\nafter"),
        ("> " + "\n> ".join(textwrap.wrap(_DATA, 76)) + "\nafter", "\nafter"),
        (bytes(range(200)).hex() + " after", "after"),
    ],
)
def test_encoded_data_is_left_out(text: str, left: str) -> None:
    cleaned = clean(text, "markup")
    assert cleaned.text.split() == left.split()
    assert cleaned.left_out == {"runs of encoded data": 1}


@pytest.mark.parametrize(
    "text",
    [
        _HASH,
        f"{_HASH}\n" * 5,
        "/usr/share/doc/some-package/examples" * 8,
        "https://example.org/a/long-way/to-a/page?with=words&and=more" * 6,
        "supercalifragilistic" * 20,
        "donaudampfschifffahrtsgesellschaft" * 10,
        "长城始建于公元前七世纪" * 40,
        "one-word-of-many-joined-by-hyphens-" * 10,
    ],
)
def test_long_words_are_no_data(text: str) -> None:
    assert clean(text, "markup").left_out == {}


def test_a_file_of_nothing_but_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(_DATA)
    with pytest.raises(DocumentError, match="nothing but encoded data") as caught:
        list(read_file(tmp_path / "a.txt"))
    assert caught.value.reason == "no text"
    (tmp_path / "b.jsonl").write_text(f'{{"text": "A plan: {_DATA}"}}')
    document, left_out = read_file(tmp_path / "b.jsonl")
    assert isinstance(document, Document)
    assert document.text == "A plan:"
    assert left_out == LeftOut(document.uri, "runs of encoded data", 1)


_PIECES = [
    "word ",
    "in‐\n  ",
    "  ",
    "\n",
    "\n\n\n",
    "\t ",
    "\u00ad",
    "x\u200b",
    "```\n",
    "# Head\n",
    "\r\n",
    f" {_DATA} ",
]


@given(st.lists(st.sampled_from(_PIECES), max_size=40).map("".join), st.sampled_from(["prose", "markup", "code"]))
@settings(deadline=None)
def test_places_move_along(text: str, layout: Layout) -> None:
    """A place before a word is before that word afterwards, and cleaning twice changes nothing more."""
    places = [found.start() for found in re.finditer("word|Head", text)]
    cleaned = clean(text, layout, places)
    assert [cleaned.text[place : place + 4] for place in cleaned.places] == [
        text[place : place + 4] for place in places
    ]
    assert cleaned.text == clean(text, layout).text
    assert "  " not in cleaned.text.replace("\n ", "\n") or layout != "prose"


@pytest.mark.parametrize(
    "text", [" " * 10**6 + "x", " \n" * 10**6, "-" * 10**6, "ab-" * 10**6, "```\n" * 10**5, "> " * 10**6]
)
def test_hard_texts_take_no_longer(text: str) -> None:
    assert len(clean(text, "markup").text) <= len(text)


def test_leaders_of_a_table_of_contents_are_short() -> None:
    assert clean("Fonts . . . . . . . . . 46\nGd.......47\nWait...\n").text == "Fonts ... 46\nGd...47\nWait...\n"
    assert clean("....... ", "code").text == "......."


def test_text_struck_twice_is_text(tmp_path: Path) -> None:
    path = tmp_path / "manual.txt"
    path.write_bytes(b"N\x08NA\x08AM\x08ME\x08E _\x08l_\x08s lists files\n")
    document = next(read_file(path))
    assert isinstance(document, Document)
    assert document.text == "NAME ls lists files\n"
