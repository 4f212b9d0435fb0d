"""PDF pages: superscripts, turned pages, hyphens at line ends, columns, form fields, pages that are pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from pdf_files import make_drawn_pdf

from clara.ingest import LeftOut, Skipped, document_uri, read_file
from clara.ingest.clean import join_lines
from clara.ingest.read_pdf import _page_lines, _Run
from clara.records import Document

_IMAGE = "q 500 0 0 700 40 40 cm BI /W 1 /H 1 /CS /G /BPC 8 ID \x7f EI Q"


def _document(folder: Path, data: bytes) -> tuple[Document, list[Skipped]]:
    path = folder / "a.pdf"
    path.write_bytes(data)
    document, *others = read_file(path)
    assert isinstance(document, Document)
    return document, [item for item in others if isinstance(item, Skipped)]


def _text(folder: Path, content: str, *, page: str = "", fields: tuple[str, ...] = ()) -> str:
    return _document(folder, make_drawn_pdf([content], page=page, fields=fields))[0].text


def _at(x: float, y: float, text: str, size: float = 11) -> str:
    return f"BT /F1 {size} Tf {x} {y} Td ({text}) Tj ET\n"


# Superscripts


def test_letters_beyond_the_first_plane_have_superscripts(tmp_path: Path) -> None:
    content = "BT /F1 11 Tf 72 760 Td (of m) Tj /F1 7 Tf 4 Ts (2) Tj /F1 11 Tf 0 Ts ( %) Tj ET"
    data = make_drawn_pdf([content], meanings={"m": "\U0001d465", "%": "\U0001f600"})
    assert _document(tmp_path, data)[0].text == "of x^2 \U0001f600"


def test_characters_without_a_meaning_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_drawn_pdf(["BT /F1 11 Tf 72 760 Td (10 m% deep %%) Tj ET"], meanings={"%": "\0"}))
    document, *others = read_file(path)
    assert isinstance(document, Document)
    assert document.text == "10 m deep"
    assert others == [LeftOut(document.uri, "characters without a meaning", 3)]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        # Drawn one after the other, as writers do: the place goes on where the last word ended.
        ("BT /F1 11 Tf 72 760 Td (about 10) Tj 5 Ts (6) Tj 0 Ts ( cells) Tj ET", "about 10^6 cells"),
        ("BT /F1 10 Tf 72 760 Td (x) Tj /F1 8 Tf -5 Ts (i) Tj 5 Ts (2) Tj /F1 10 Tf 0 Ts ( is) Tj ET", "x_i^2 is"),
        (
            "BT /F1 10 Tf 72 760 Td (3) Tj /F1 7 Tf 4 Ts (1) Tj /F1 10 Tf 0 Ts (/) Tj /F1 7 Tf -2 Ts (2) Tj "
            "/F1 10 Tf 0 Ts ( cups) Tj ET",
            "3 1/2 cups",
        ),
        ("BT /F1 11 Tf 72 760 Td (about 10) Tj /F1 7 Tf 4 Ts (6) Tj /F1 11 Tf 0 Ts ( cells) Tj ET", "about 10^6 cells"),
        ("BT /F1 11 Tf 72 760 Td (about 10) Tj /F1 7 Tf 4 Ts (-4) Tj /F1 11 Tf 0 Ts (.) Tj ET", "about 10^-4."),
        ("BT /F1 11 Tf 72 760 Td (in 2019) Tj /F1 7 Tf 4 Ts (1) Tj /F1 11 Tf 0 Ts ( only) Tj ET", "in 2019[1] only"),
        ("BT /F1 11 Tf 72 760 Td (CO) Tj /F1 7 Tf -2 Ts (2) Tj /F1 11 Tf 0 Ts ( is) Tj ET", "CO2 is"),
        ("BT /F1 11 Tf 72 760 Td (101) Tj /F1 7 Tf -2 Ts (2) Tj /F1 11 Tf 0 Ts ( is five) Tj ET", "101_2 is five"),
        # The size stands in the matrix, not in the font.
        (
            "BT /F1 1 Tf 11 0 0 11 72 760 Tm (per m) Tj 7 0 0 7 100.1 764 Tm (2) Tj 11 0 0 11 104 760 Tm ( or) Tj ET",
            "per m^2 or",
        ),
        # A note begins with its mark.
        ("BT /F1 6 Tf 72 764 Td (3) Tj /F1 9 Tf 4 -4 Td (See the annex.) Tj ET", "3 See the annex."),
        # Small words, capitals at the start of a chapter and lines in small print are no superscripts.
        ("BT /F1 11 Tf 72 760 Td (The ) Tj /F1 8 Tf (SMALL) Tj /F1 11 Tf ( word) Tj ET", "The SMALL word"),
        (_at(72, 700, "T", 60) + _at(112, 735, "he king went home that day.", 11), "T he king went home that day."),
        (_at(72, 760, "A line.") + _at(72, 748, "Small print below it.", 7), "A line.\nSmall print below it."),
    ],
)
def test_superscripts_keep_numbers_apart(tmp_path: Path, content: str, text: str) -> None:
    assert _text(tmp_path, content) == text


# Turned pages


_TABLE = [("Region", "Sales"), ("Graz", "451"), ("Linz", "388")]


def test_a_superscript_that_begins_what_pdfium_calls_a_line(tmp_path: Path) -> None:
    # As Chromium prints: each character is drawn by itself.
    content = (
        "BT /F1 11 Tf 72 760 Td (times 1) Tj 35.44 0 Td (0) Tj ET BT /F1 9.2 Tf 113.56 764.4 Td (6) Tj ET "
        "BT /F1 11 Tf 122.7 760 Td (m) Tj ET BT /F1 9.2 Tf 131.9 764.4 Td (3) Tj ET "
        "BT /F1 11 Tf 137 760 Td (/) Tj 3.06 0 Td (h) Tj ET"
    )
    assert _text(tmp_path, content) == "times 10^6 m^3/h"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("(see below an) Tj 3.2 Tc (yo) Tj 0 Tc [290 (ne else)] TJ", "see below any one else"),
        ("(see keys) Tj 3.2 Tc (s\\() Tj 0 Tc [290 (a\\))] TJ", "see keyss (a)"),
        ("[(see giv ) 278 (en, inv ) 280 (oked)] TJ", "see given, invoked"),
        ("3 Tc (WARNING) Tj", "WARNING"),
    ],
)
def test_spaces_stand_where_the_page_shows_them(tmp_path: Path, shown: str, text: str) -> None:
    # As groff writes: words are set apart without a space, and spaces that show nothing stand inside words.
    assert _text(tmp_path, f"BT /F1 11 Tf 72 760 Td {shown} ET") == text


def test_a_page_that_is_shown_turned(tmp_path: Path) -> None:
    turned = "".join(
        f"BT /F1 11 Tf 0 1 -1 0 {95 + 20 * row} {60 + 200 * column} Tm ({cell}) Tj ET\n"
        for row, cells in enumerate(_TABLE)
        for column, cell in enumerate(cells)
    )
    for page in ("/Rotate 90", ""):
        assert _text(tmp_path, turned, page=page) == "Region Sales\nGraz 451\nLinz 388"


def test_superscripts_on_a_turned_page(tmp_path: Path) -> None:
    content = (
        "BT /F1 11 Tf 0 1 -1 0 95 60 Tm (about 10) Tj /F1 7 Tf 4 Ts (6) Tj /F1 11 Tf 0 Ts ( cells) Tj ET\n"
        "BT /F1 11 Tf 0 1 -1 0 115 60 Tm (and more) Tj ET"
    )
    assert _text(tmp_path, content, page="/Rotate 90") == "about 10^6 cells\nand more"


def test_text_outside_the_visible_page_is_left_out(tmp_path: Path) -> None:
    content = _at(72, 760, "Seen.") + _at(72, 20, "Printer's mark.")
    assert _text(tmp_path, content, page="/CropBox [0 100 595 842]") == "Seen."


# Hyphens


@pytest.mark.parametrize(
    ("broken", "joined"),
    [
        ("infor-\nmation", "information"),
        ("infor\ufffemation", "information"),
        ("COVID-\n19", "COVID-19"),
        ("Jean\ufffePierre", "Jean-Pierre"),
        ("F-\n16", "F-16"),
        ("AB-\nCD", "AB-CD"),
        ("DNA-\nbased", "DNA-based"),
        ("X-\nray", "X-ray"),
        ("2019-\n2020", "2019-2020"),
        ("030-555-\n1234", "030-555-1234"),
        ("19-\nyear", "19-year"),
        ("state\ufffeof-the-art", "state-of-the-art"),
        ("state-of-\nthe-art", "state-of-the-art"),
        ("a state-\nof mind, state-of-the-art", "a state-of mind, state-of-the-art"),
        ("low-cost, high-level, low-\nlevel", "low-cost, high-level, low-level"),
        ("low-cost, high-level, high-\nlight, highlight", "low-cost, high-level, highlight, highlight"),
        ("low-cost, lo-\ncal", "low-cost, local"),
        ("twenty-\none", "twenty-one"),
        ("https://intranet.example/user-\nguide", "https://intranet.example/user-guide"),
        ("name@mail-\nserver.example", "name@mail-server.example"),
        ("a well-\nknown man", "a well-known man"),
        ("in the long-\nterm", "in the long-term"),
        ("user-\ndefined types", "user-defined types"),
        ("Self-\nsigned", "Self-signed"),
        ("runs on the web in web-\nbased tools", "runs on the web in web-based tools"),
        ("one thread, a thread-\nsafe call", "one thread, a thread-safe call"),
        ("runs in Web-\nsphere", "runs in Websphere"),
        (
            "high-\nest, long-\ner, hard-\nware, short-\nage, single-\nton",
            "highest, longer, hardware, shortage, singleton",
        ),
        (
            "in the in-\nformation and the un-\nknown over all, over-\ndefined",
            "in the information and the unknown over all, overdefined",
        ),
        ("und der Server-\nraum, der General-\ndirektor", "und der Serverraum, der Generaldirektor"),
        ("there-\nfore, how-\never, trans-\nformed, data-\nbase", "therefore, however, transformed, database"),
        ("price-\ndetermining and price-determining", "price-determining and price-determining"),
        ("non-\nlinear or nonlinear", "nonlinear or nonlinear"),
        ("Donau-\ndampf-\nschiff", "Donaudampfschiff"),
        ("Ein-\nund Ausgang", "Ein- und Ausgang"),
        ("a range -\nand more", "a range -\nand more"),
        ("-\nitem", "-\nitem"),
        ("page ends in a bro\ufffe", "page ends in a bro-"),
    ],
)
def test_hyphens_at_line_ends(broken: str, joined: str) -> None:
    assert join_lines([broken]) == [joined]


def test_another_page_tells_whose_a_hyphen_is() -> None:
    assert join_lines(["a well-\nknown man", "He is well-known."]) == ["a well-known man", "He is well-known."]
    assert join_lines(["a WELL-\nKNOWN man", "wellknown"])[0] == "a WELLKNOWN man"


def test_a_page_of_one_word_takes_no_time() -> None:
    assert join_lines(["a" * 200_000 + "-\n" + "b" * 200_000])[0] == "a" * 200_000 + "b" * 200_000


def test_hyphens_of_a_pdf(tmp_path: Path) -> None:
    lines = ["The COVID-", "19 clause of infor-", "mation; bye."]
    assert _text(tmp_path, "".join(_at(72, 760 - 14 * n, line) for n, line in enumerate(lines))) == (
        "The COVID-19 clause of information; bye."
    )


# Columns

_LEFT = [
    "The treaty was signed in",
    "the town of Lisbon by two",
    "ministers, in the presence of",
    "many of their coun-",
    "trymen.",
]
_RIGHT = [
    "The bridge has a span of",
    "four hundred metres and it",
    "was opened in the spring of",
    "the year 1932 by the two",
    "ministers.",
]


def _rows(left: list[str], right: list[str], *, gutter: float = 320) -> str:
    rows = zip(left, right, strict=True)
    return "".join(_at(72, 760 - 14 * n, a) + _at(gutter, 760 - 14 * n, b) for n, (a, b) in enumerate(rows))


def test_columns_that_are_drawn_row_by_row(tmp_path: Path) -> None:
    heading = _at(72, 790, "A heading that reaches over both of the columns of this page, from left to right")
    text = _text(tmp_path, heading + _rows(_LEFT, _RIGHT))
    left = "\n".join(_LEFT[:3]) + "\nmany of their countrymen."
    assert text.splitlines()[0].startswith("A heading")
    assert text.partition("\n")[2] == left + "\n" + "\n".join(_RIGHT)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (["Region North with Graz", "Region South with Linz", "Region East with Wels"], ["Sales of 451 tonnes"] * 3),
        (["item", "price", "sum"], ["one of many things", "two of many things", "all of many things"]),
        (["a b c", "d e f"], ["g h i", "j k l"]),
    ],
)
def test_a_table_is_read_row_by_row(tmp_path: Path, left: list[str], right: list[str]) -> None:
    rows = [f"{a} {b}" for a, b in zip(left, right, strict=True)]
    assert _text(tmp_path, _rows(left, right)) == "\n".join(rows)


# Form fields


def test_form_fields_stand_where_the_page_shows_them(tmp_path: Path) -> None:
    box = "/AP << /N << /Yes 10 0 R /Off 10 0 R >> >>"
    fields = (
        "/FT /Tx /T (n) /V (Ottilie Brandt) /Rect [120 756 300 770]",
        "/FT /Tx /T (empty) /Rect [120 706 300 720]",
        "/FT /Tx /T (secret) /V (hidden) /F 2 /Rect [120 656 300 670]",
        "/FT /Tx /T (key) /V (password) /Ff 8192 /Rect [120 656 300 670]",
        f"/FT /Btn /T (yes) /V /Yes /AS /Yes {box} /Rect [120 736 130 746]",
        f"/FT /Btn /T (no) /V /Off /AS /Off {box} /Rect [180 736 190 746]",
        "/FT /Ch /T (town) /V (Graz) /Opt [(Graz) (Linz)] /Ff 131072 /Rect [72 500 300 514]",
    )
    content = (
        _at(72, 760, "Name:")
        + _at(72, 738, "Smoker?")
        + _at(135, 738, "yes")
        + _at(195, 738, "no")
        + _at(72, 400, "Signed in Wels.")
    )
    assert _text(tmp_path, content, fields=fields) == (
        "Name: Ottilie Brandt\nSmoker? ☒ yes ☐ no\nGraz\nSigned in Wels."
    )


def test_a_form_whose_only_text_are_its_values(tmp_path: Path) -> None:
    field = "/FT /Tx /T (n) /V (Ottilie Brandt) /Rect [120 756 300 770]"
    assert _text(tmp_path, "", fields=(field,)) == "Ottilie Brandt"


# Pages without text


def test_pages_that_are_pictures_are_named(tmp_path: Path) -> None:
    pages = [_at(72, 760, "Cover."), _IMAGE, _IMAGE, "", _at(72, 760, "Text."), _IMAGE]
    document, (skipped,) = _document(tmp_path, make_drawn_pdf(pages))
    assert document.text == "Cover.\n\nText."
    assert document.pages == (0, 8, 8, 8, 8, 13)
    assert document.metadata["pages_without_text"] == "4"
    assert skipped.reason == "no text"
    assert skipped.uri == f"{document_uri(tmp_path)}/a.pdf#page=2-3,6"
    assert "3 of 6 pages hold no text: scanned? clara index --ocr reads them" in skipped.message


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (r"[(Hans Br\250) 333 (oker)] TJ", "Hans Bröker"),
        (r"[(Hans Bro) 450 (\250ker)] TJ", "Hans Bröker"),
        (r"[(\264) 333 (Epinal)] TJ", "Épinal"),
        (r"(it\264s) Tj", "it´s"),
        (r"[(a) 400 (x)] TJ", "ax"),
        (r"[(x\250) 333 (1)] TJ", "x¨1"),
    ],
)
def test_accents_that_are_drawn_over_their_letters(tmp_path: Path, shown: str, text: str) -> None:
    assert _text(tmp_path, f"BT /F1 12 Tf 72 700 Td {shown} ET") == text


# Bookmarks


def test_bookmarks_are_headings(tmp_path: Path) -> None:
    first = _at(72, 780, "Safety first.") + _at(72, 760, "1.1 Safe use of") + _at(72, 744, "the pump")
    first += _at(72, 728, "Keep it dry.") + _at(72, 712, "Compile options") + _at(72, 696, "2 Options")
    second = _at(72, 780, "None so far.") + _at(72, 760, "Appendix A Licence") + _at(72, 744, "Yours.")
    named = [
        (0, "Safe use of the pump"),
        (0, "Options"),
        (1, "A\ud800"),
        (1, "Copyright"),
        (1, "A. Licence"),
        (1, " \t"),
    ]
    document, _ = _document(tmp_path, make_drawn_pdf([first, second], bookmarks=named))
    shown = [(heading.text, document.text[heading.start :].split("\n")[0]) for heading in document.headings]
    assert shown == [
        ("Safe use of the pump", "1.1 Safe use of"),
        ("Options", "2 Options"),
        ("Copyright", "None so far."),  # where its page begins, which writes it nowhere
        ("A. Licence", "Appendix A Licence"),
    ]
    assert [document.text.index("None"), document.headings[2].start] == [document.pages[1]] * 2


# Text from right to left


def test_words_of_arabic_letters_that_are_drawn_from_left_to_right() -> None:
    # What PDFium gives of a line that Chromium printed: its second word as it is read, the others as they are drawn.
    drawn = [("\u0629", 113), ("\u062c", 118), ("\u0631\u062f ", 124), ("\u0644", 103), ("\u0643 ", 97), ("21 ", 85)]
    runs = [_Run(text, left, left + 5, 0, 10, 2, 10) for text, left in [*drawn, ("\u064a", 69), ("\u0641", 77)]]
    assert [piece.text for line in _page_lines([runs]) for piece in line.pieces] == [
        "\u062f\u0631\u062c\u0629 \u0644\u0643 21 \u0641\u064a"
    ]
