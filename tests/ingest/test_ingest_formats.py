"""Formats beside text, web pages, PDF and Word: what comes out of each, and what is said when nothing can."""

from __future__ import annotations

import datetime
import io
import sys
import zipfile
from collections.abc import Mapping
from email.message import EmailMessage
from pathlib import Path

import openpyxl
import pptx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odt_files import make_odt
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from clara.errors import DocumentError
from clara.ingest import LeftOut, Reader, Skipped, document_uri, find_files, read_file
from clara.records import Document


def _read(folder: Path, name: str, data: bytes | str) -> tuple[Document, Mapping[str, int]]:
    path = folder / name
    path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    document, *rest = read_file(path)
    assert isinstance(document, Document)
    for heading in document.headings:
        assert document.text[heading.start :].lstrip("# ").startswith(heading.text)
    return document, {item.kind: item.count for item in rest if isinstance(item, LeftOut)}


def _reason(folder: Path, name: str, data: bytes, match: str, max_bytes: int = 2**20) -> str:
    (folder / name).write_bytes(data)
    with pytest.raises(DocumentError, match=match) as caught:
        list(read_file(folder / name, max_bytes=max_bytes))
    return caught.value.reason


def _zipped(parts: Mapping[str, str | bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return file.getvalue()


# Text


def test_other_names_of_text_and_markdown(tmp_path: Path) -> None:
    assert _read(tmp_path, "a.text", "Bees  fly.")[0].text == "Bees fly."
    document, _ = _read(tmp_path, "a.MARKDOWN", "# Bees\n\nThey fly.")
    assert (document.title, document.metadata["media_type"]) == ("Bees", "text/markdown")


def test_source_code(tmp_path: Path) -> None:
    document, _ = _read(tmp_path, "pump.py", "def f():\n    return  1  \n\n\n\nx = 'a  b'\n")
    assert document.title == "pump.py"
    assert document.text == "def f():\n    return  1\n\n\n\nx = 'a  b'\n"


@pytest.mark.parametrize(
    ("name", "data", "media_type"),
    [
        ("Makefile", b"all:\n\tcc -o x\n", "text/plain"),
        ("page", b"\n<!DOCTYPE html>\n<p>Bees fly.", "text/html"),
        ("page2", b"<?xml version='1.0'?><!-- a --><html><body>Bees fly.</body></html>", "text/html"),
        ("book", make_odt("<text:p>Bees</text:p>"), "application/vnd.oasis.opendocument.text"),
        ("mail", b"Received: x\nFrom: a@x.org\nSubject: Bees\nMIME-Version: 1.0\n\nThey fly.", "message/rfc822"),
        ("letter", b"From: the queen\nTo: the bees\nDate: today\n\nFly.", "text/plain"),
    ],
)
def test_files_without_a_suffix_by_content(tmp_path: Path, name: str, data: bytes, media_type: str) -> None:
    document, _ = _read(tmp_path, name, data)
    assert document.metadata["media_type"] == media_type
    assert len(find_files([tmp_path]).files) == 1


def test_programs_without_a_suffix(tmp_path: Path) -> None:
    assert _reason(tmp_path, "prog", b"\x7fELF\0\0", "no text and of no known format; supported are") == "unsupported"
    assert _reason(tmp_path, "odd", _zipped({"a": "b"}), "no text and of no known format") == "unsupported"


# Tables


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("a.csv", "Pump,bar\nCedar,18\nElder,\n", ["Pump: Cedar | bar: 18", "Pump: Elder"]),
        ("a.csv", 'Pump;Note\r\nCedar;"opens; slowly\nthen"\r\n', ["Pump: Cedar | Note: opens; slowly then"]),
        ("a.csv", "sep=|\nPump|bar\nCedar|1,8\n", ["Pump: Cedar | bar: 1,8"]),
        ("a.csv", "name,town\nAnna,Graz\nBob,Linz\n", ["name: Anna | town: Graz", "name: Bob | town: Linz"]),
        ("a.csv", "Cedar,18\nElder,16\n", ["Cedar | 18", "Elder | 16"]),
        ("a.csv", ",2019,2020\nAustria,8.8,8.9\n", ["2019 | 2020", "Austria | 8.8 | 8.9"]),
        ("a.tsv", "Country\t2019\t2020\nAustria\t8.8\t8.9\n", ["Country: Austria | 2019: 8.8 | 2020: 8.9"]),
        ("a.csv", "Pumps of 2024\n\nPump,bar\nCedar,18\n", ["Pumps of 2024", "Pump: Cedar | bar: 18"]),
        ("a.csv", "just\nwords\n", ["just", "words"]),
        ("a.csv", "Pump,bar,bar\nCedar,18,19\n", ["Pump: Cedar | bar: 18 | bar: 19"]),
        ("a.csv", "mpg,cyl\nMazda RX4,21,6\n", ["Mazda RX4 | mpg: 21 | cyl: 6"]),
        ("a.csv", "Pump,bar,\nCedar,18,old\n", ["Pump: Cedar | bar: 18 | old"]),
    ],
)
def test_rows_name_their_columns(tmp_path: Path, name: str, data: str, rows: list[str]) -> None:
    document, _ = _read(tmp_path, name, data)
    assert document.text.split("\n\n") == rows
    assert document.title == "a"


def test_spreadsheet(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Pumps"
    day = datetime.datetime(2024, 5, 1)
    for row in (
        ["Pump list"],
        [],
        ["Pump", "bar", "Share", "Checked"],
        ["Cedar", 18, 0.125, day],
        ["Elder", 0.1 + 0.2],
    ):
        sheet.append(row)
    sheet["C4"].number_format = "0.0%"
    sheet.append(["Sum", "=B4+B5"])
    hidden = book.create_sheet("Secret")
    hidden.append(["a"])
    hidden.sheet_state = "hidden"
    book.create_sheet("Years").append(["Austria", 8.8])
    file = io.BytesIO()
    book.save(file)
    document, left_out = _read(tmp_path, "list.xlsx", file.getvalue())
    assert document.title == "list"
    assert document.text.split("\n\n") == [
        *["# Pumps", "Pump list", "Pump: Cedar | bar: 18 | Share: 12.5% | Checked: 2024-05-01"],
        *["Pump: Elder | bar: 0.3", "Pump: Sum", "# Years", "Austria | 8.8"],
    ]
    assert [heading.text for heading in document.headings] == ["Pumps", "Years"]
    assert left_out == {"hidden sheets": 1, "formulas without a stored value": 1}


# Presentations


def test_presentation(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Pumps"
    frame = slide.placeholders[1].text_frame
    frame.text = "Cells: 10"
    run = frame.paragraphs[0].add_run()
    run.text = "6"
    run.font._element.set("baseline", "30000")
    table = slide.shapes.add_table(1, 2, 0, 0, Inches(3), Inches(1)).table
    table.cell(0, 0).text, table.cell(0, 1).text = "Elder", "16 bar"
    slide.notes_slide.notes_text_frame.text = "Say hello."
    deck.slides.add_slide(deck.slide_layouts[6])
    hidden = deck.slides.add_slide(deck.slide_layouts[5])
    hidden.shapes.title.text = "Secret"
    hidden._element.set("show", "0")
    last = deck.slides.add_slide(deck.slide_layouts[5])
    last.shapes.title.text = "Sales"
    data = CategoryChartData()
    data.categories = ["East"]
    data.add_series("2023", (1.5,))
    last.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, 0, 0, Inches(3), Inches(2), data)
    file = io.BytesIO()
    deck.save(file)
    document, left_out = _read(tmp_path, "a.pptx", file.getvalue())
    assert document.text.split("\n\n") == [
        *["## Pumps", "Cells: 10^6", "Elder | 16 bar", "Notes: Say hello.", "## Sales", "| 2023\nEast | 1.5"]
    ]
    sales = document.text.index("## Sales")
    assert document.pages == (0, sales, sales, sales)
    assert left_out == {"hidden slides": 1}


# Books, letters, OpenDocument


def _book(**parts: str) -> bytes:
    def page(body: str) -> str:
        return f"<html xmlns='http://www.w3.org/1999/xhtml'><head><title/></head><body>{body}</body></html>"

    items = "".join(
        f"<item id='{name}' href='{name}%20x.xhtml' media-type='application/xhtml+xml'{extra}/>"
        for name, extra in (("nav", " properties='nav'"), ("two", ""), ("one", ""), ("gone", ""))
    )
    spine = "".join(f"<itemref idref='{name}'/>" for name in ("nav", "one", "two", "gone"))
    return _zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": "<container><rootfile full-path='OEBPS/a.opf'/></container>",
            "OEBPS/a.opf": f"<package><metadata><title>Bees</title></metadata><manifest>{items}</manifest>"
            f"<spine>{spine}</spine></package>",
            "OEBPS/nav x.xhtml": page("<h1>Contents</h1>"),
            "OEBPS/one x.xhtml": page("<h1>One</h1><p>10<sup>6</sup> bees.</p>"),
            "OEBPS/two x.xhtml": page("<h1>Two</h1><p hidden=''>x</p><p>Wax.</p>"),
            **parts,
        }
    )


def test_book(tmp_path: Path) -> None:
    document, left_out = _read(tmp_path, "a.epub", _book())
    assert document.title == "Bees"
    assert document.text == "# One\n\n10^6 bees.\n\n# Two\n\nWax."
    assert [heading.text for heading in document.headings] == ["One", "Two"]
    assert left_out == {"menus": 1, "hidden parts": 1, "chapters that are not in the file": 1}
    assert _read(tmp_path, "without a suffix", _book())[0].text == document.text


def test_protected_book(tmp_path: Path) -> None:
    rights = "<encryption><CipherReference URI='OEBPS/one%20x.xhtml'/></encryption>"
    data = _book(**{"META-INF/encryption.xml": rights})
    assert _reason(tmp_path, "a.epub", data, "rights management") == "encrypted"
    fonts = _book(**{"META-INF/encryption.xml": "<encryption><CipherReference URI='OEBPS/a.otf'/></encryption>"})
    assert _read(tmp_path, "b.epub", fonts)[0].title == "Bees"


def test_letter(tmp_path: Path) -> None:
    letter = EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = "Anna <a@x.org>", "b@x.org", "Prüfung der Pumpen"
    letter.set_content("Das Café öffnet  um neun.\n", charset="iso-8859-1")
    letter.add_alternative("<p>Das Café öffnet um neun.</p>", subtype="html")
    letter.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="plan.png")
    document, left_out = _read(tmp_path, "a.eml", letter.as_bytes())
    assert document.title == "Prüfung der Pumpen"
    assert document.text == (
        "From: Anna <a@x.org>\nTo: b@x.org\nSubject: Prüfung der Pumpen\nAttachment: plan.png\n\n"
        "Das Café öffnet um neun.\n"
    )
    assert left_out == {"attachments": 1}


def test_letter_in_html(tmp_path: Path) -> None:
    head = b"From: a@x.org\nSubject: Pumps\nMIME-Version: 1.0\nContent-Type: text/html; charset=windows-1251\n\n"
    document, _ = _read(tmp_path, "a.eml", head + "<p>Мост: 10<sup>6</sup></p>".encode("cp1251"))
    assert document.text.endswith("\n\nМост: 10^6")
    assert _reason(tmp_path, "b.eml", b"no headers at all", "is no message") == "broken"
    assert _reason(tmp_path, "c.eml", b"From: a\nSubject: b\n\n", "headers and no text") == "no text"


def test_opendocument(tmp_path: Path) -> None:
    styles = (
        '<style:style style:name="T1"><style:text-properties style:text-position="super 58%"/></style:style>'
        '<style:style style:name="T2"><style:text-properties text:display="none"/></style:style>'
        '<text:list-style style:name="L1"><text:list-level-style-number text:level="1" style:num-format="1"/>'
        "</text:list-style>"
    )
    note = (
        "<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>New.</text:p></text:note-body>"
        "</text:note>"
    )
    body = (
        '<text:tracked-changes>gone</text:tracked-changes><text:h text:outline-level="2">Pumps</text:h>'
        f'<text:p>Ten<text:s text:c="3"/>or 10<text:span text:style-name="T1">6</text:span>{note}.'
        '<text:span text:style-name="T2">secret</text:span> <text:ruby><text:ruby-base>漢字</text:ruby-base>'
        "<text:ruby-text>かんじ</text:ruby-text></text:ruby></text:p>"
        '<text:list text:style-name="L1"><text:list-item><text:p>one</text:p><text:list><text:list-item>'
        "<text:p>inner</text:p></text:list-item></text:list></text:list-item><text:list-item><text:p>two</text:p>"
        "</text:list-item></text:list><table:table><table:table-row><table:table-cell table:number-rows-spanned='2'>"
        "<text:p>A</text:p></table:table-cell><table:table-cell><text:p>1</text:p></table:table-cell></table:table-row>"
        "<table:table-row><table:covered-table-cell/><table:table-cell><text:p>2</text:p></table:table-cell>"
        "</table:table-row></table:table>"
        '<text:p><draw:frame><draw:object xlink:href="./Object 1"/></draw:frame></text:p>'
    )
    formula = "<math xmlns='http://www.w3.org/1998/Math/MathML'><msup><mi>c</mi><mn>2</mn></msup></math>"
    data = make_odt(body, styles=styles, title="All pumps", parts={"Object 1/content.xml": formula})
    document, left_out = _read(tmp_path, "a.odt", data)
    assert document.title == "All pumps"
    assert document.text == (
        "## Pumps\n\nTen or 10^6[1]. 漢字\n\n[1] New.\n\n1. one\n  - inner\n2. two\n\nA | 1\nA | 2\n\nc^2"
    )
    assert left_out == {"deleted parts": 1, "hidden parts": 1}


# reStructuredText

_RST = """.. _top:

==========
The Manual
==========

.. module:: foo

Intro to :class:`~foo.Baz`, ``x = *y*``, `the docs <http://x.org>`_,
10\\ :sup:`6` parts [1]_ and *emphasis* words_.

.. note:: Take care.

   It is hot::

       code   here

Usage
-----

.. code-block:: python
   :linenos:

   # no heading
   x = 1

.. versionadded:: 3.8
   The thing.

.. py:function:: foo(a)

   Does things.

+------+------+
| Pump | bar  |
+======+======+
| A    | 18   |
|      | max. |
+------+------+

===== =====
Pump  bar
===== =====
B     16
===== =====

.. image:: x.png
   :alt: A drawing

.. toctree::

   a

.. [1] The note.
.. comment
"""


def test_restructured_text(tmp_path: Path) -> None:
    document, left_out = _read(tmp_path, "a.rst", _RST)
    assert document.title == "The Manual"
    assert [heading.text for heading in document.headings] == ["The Manual", "Usage"]
    blocks = [" ".join(block.split()) for block in document.text.split("\n\n")]
    assert blocks == [
        *["# The Manual", "Intro to Baz, x = *y*, the docs, 10^6 parts[1] and emphasis words.", "Note: Take care."],
        *["It is hot:", "code here", "## Usage", "# no heading x = 1", "New in version 3.8 The thing."],
        *["function foo(a)", "Does things.", "Pump | bar A | 18 max.", "Pump | bar B | 16", "A drawing"],
        "[1] The note.",
    ]
    assert left_out == {"directives for programs": 2}


# Faults

_PACKAGES = [".epub", ".odt", ".pptx", ".xlsx"]


@pytest.mark.parametrize("suffix", _PACKAGES)
def test_packages_are_bounded(tmp_path: Path, suffix: str) -> None:
    bomb = _zipped({"xl/worksheets/sheet1.xml": b" " * 20_000_000})
    assert len(bomb) < 100_000
    match = "unpacks to 19 MB in 1 parts, more than the limit of 1 MB"
    assert _reason(tmp_path, f"a{suffix}", bomb, match, max_bytes=2**20) == "too large"
    assert _reason(tmp_path, f"b{suffix}", b"no zip", "no zip file") == "broken"
    assert _reason(tmp_path, f"c{suffix}", bytes.fromhex("D0CF11E0A1B11AE1"), "is encrypted") == "encrypted"
    assert _reason(tmp_path, f"d{suffix}", _zipped({"a": "b"}), f"d{suffix}: ") in ("broken", "no text")


@pytest.mark.parametrize(("suffix", "module"), [(".pptx", "pptx"), (".xlsx", "openpyxl")])
def test_a_reader_that_is_not_installed(
    tmp_path: Path, suffix: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    match = r"needs (?:python-pptx|openpyxl); install it with: pip install 'clara-rag\[formats\]'"
    assert _reason(tmp_path, f"a{suffix}", _zipped({"a": "b"}), match) == "unsupported"


def _sheet() -> bytes:
    book = openpyxl.Workbook()
    book.active.append(["Bees", "fly"])
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def _deck() -> bytes:
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = "Bees"
    file = io.BytesIO()
    deck.save(file)
    return file.getvalue()


_GOOD = {
    ".csv": b"Pump,bar\nCedar,18\n",
    ".eml": b"From: a@x.org\nSubject: Bees\nContent-Type: text/html\n\n<p>They fly.",
    ".epub": _book(),
    ".odt": make_odt("<text:p>Bees</text:p>"),
    ".pptx": _deck(),
    ".rst": _RST.encode(),
    ".xlsx": _sheet(),
    "": _book(),
}


@pytest.mark.parametrize("suffix", _GOOD)
@given(place=st.floats(0, 1), junk=st.binary(min_size=1, max_size=40), cut=st.booleans())
@settings(max_examples=30, deadline=None)
def test_damaged_files_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, place: float, junk: bytes, *, cut: bool
) -> None:
    data = _GOOD[suffix]
    at = int(place * len(data))
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(data[:at] + junk + (b"" if cut else data[at + 40 :]))
    try:
        for item in read_file(path):
            assert isinstance(item, Document | Skipped | LeftOut)
    except DocumentError as error:
        message = str(error)
        assert message.startswith(document_uri(path)), message


def test_all_formats_in_one_folder_in_the_other_process(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Pump,bar\nCedar,18\n")
    (tmp_path / "a.odt").write_bytes(make_odt("<text:p>Bees</text:p>"))
    (tmp_path / "a.rst").write_text("Bees\n====\n")
    (tmp_path / "a.xlsx").write_bytes(b"no zip")
    with Reader(find_files([tmp_path])) as reader:
        texts = [document.text for document in reader.documents()]
    assert texts == ["Pump: Cedar | bar: 18", "Bees", "# Bees"]
    assert [skipped.reason for skipped in reader.report().skipped] == ["broken"]
