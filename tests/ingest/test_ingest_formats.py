"""Formats beside text, web pages, PDF and Word: what comes out of each, and what is said when nothing can."""

from __future__ import annotations

import datetime
import io
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from email.message import EmailMessage
from pathlib import Path

import openpyxl
import pptx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odt_files import make_odt
from pptx.chart.data import CategoryChartData, XyChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from clara.errors import DocumentError
from clara.ingest import LeftOut, Reader, Skipped, document_uri, find_files, read_file
from clara.records import Document

# A picture of one point, as PNG.
_PIXEL = (
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360"
    "00000002000148afa4710000000049454e44ae426082"
)


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


@pytest.mark.parametrize("name", ["README.Debian", "INSTALL.unix", "faq.1st", "dnsmasq.conf.example"])
def test_texts_whose_suffix_is_no_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Bees fly.", "utf-8")
    (tmp_path / "README.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "honey.unix").write_text("Bees fly.", "utf-8")
    reader = Reader(find_files([tmp_path]))
    assert [document.text for document in reader.documents()] == ["Bees fly."]
    skipped = [each.uri.rpartition("/")[2] for each in reader.report().by_reason()["unsupported"]]
    assert skipped == ["README.gz", "honey.unix"]


def test_programs_without_a_suffix(tmp_path: Path) -> None:
    assert _reason(tmp_path, "prog", b"\x7fELF\0\0", "no text and of no known format; supported are") == "unsupported"
    assert _reason(tmp_path, "odd", _zipped({"a": "b"}), "no text and of no known format") == "unsupported"


def test_content_tells_the_format_of_a_file_by_another_name(tmp_path: Path) -> None:
    book = make_odt("<text:p>Bees fly.</text:p>")
    for name in ("a.docx", "a.pdf", "a.html", "a.csv"):
        assert _read(tmp_path, name, book)[0].text == "Bees fly."
    assert _read(tmp_path, "page.docx", b"<!doctype html><p>Bees fly.")[0].text == "Bees fly."
    assert _read(tmp_path, "about.md", b"A file with %PDF- in it")[0].text == "A file with %PDF- in it"
    assert _reason(tmp_path, "a.txt", book, r"is a \.odt by another name; rename it") == "unsupported"
    for name in ("a.txt", "letter"):
        assert (
            _reason(tmp_path, name, rb"{\rtf1 Bees}", r"is a \.rtf by another name; save it as \.docx") == "unsupported"
        )


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
        (
            "a.csv",
            "Name,Anna,\nTown,Graz,\nKind,Qty,Price\na,1,2.5\n",
            ["Name | Anna", "Town | Graz", "Kind: a | Qty: 1 | Price: 2.5"],
        ),
        ("a.csv", "Pump,bar,\nElder,16,\nCedar,18,old\n", ["Pump: Elder | bar: 16", "Pump: Cedar | bar: 18 | old"]),
        ("a.csv", "Name:,Anna\nBorn:,1990\n", ["Name: | Anna", "Born: | 1990"]),
        ("a.csv", "Pump,bar,bar\nCedar,18,19\n", ["Pump: Cedar | bar: 18 | bar: 19"]),
        ("a.csv", "mpg,cyl\nMazda RX4,21,6\n", ["Mazda RX4 | mpg: 21 | cyl: 6"]),
        ("a.csv", "Pump,bar,\nCedar,18,old\n", ["Pump: Cedar | bar: 18 | old"]),
    ],
)
def test_rows_name_their_columns(tmp_path: Path, name: str, data: str, rows: list[str]) -> None:
    document, _ = _read(tmp_path, name, data)
    assert document.text.split("\n\n") == rows
    assert document.title == "a"


_MERGED = (
    [("City", 2, 1), ("2023", 1, 2), ("2024", 1, 2)],
    [("Q1", 1, 1), ("Q2", 1, 1), ("Q1", 1, 1), ("Q2", 1, 1)],
    [("Graz", 2, 1), ("1", 1, 1), ("2", 1, 1), ("3", 1, 1), ("4", 1, 1)],
    [("5", 1, 2), ("7", 1, 1), ("8", 1, 1)],
    [("Linz", 1, 1), ("x", 2, 2), ("9", 1, 1), ("", 1, 1)],
    [("Wien", 1, 1), ("10", 1, 1), ("11", 1, 1)],
    [("Total", 1, 4), ("99", 1, 1)],
    [("as of May", 1, 5)],
)
"""Rows of a table: text of each cell, rows and columns that it reaches over."""
_MERGED_TEXT = """City | 2023 | 2023 | 2024 | 2024
City | Q1 | Q2 | Q1 | Q2
Graz | 1 | 2 | 3 | 4
Graz | 5 | 5 | 7 | 8
Linz | x | x | 9
Wien | x | x | 10 | 11
Total | | | | 99
as of May"""


def _merged_page() -> str:
    cells = (
        "".join(f"<td rowspan={rows} colspan={columns}>{text}</td>" for text, rows, columns in row) for row in _MERGED
    )
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _merged_text() -> bytes:
    def cell(text: str, rows: int, columns: int) -> str:
        spans = f"table:number-rows-spanned='{rows}' table:number-columns-spanned='{columns}'"
        return f"<table:table-cell {spans}><text:p>{text}</text:p></table:table-cell>"

    rows = ("".join(cell(*each) for each in row) for row in _MERGED)
    lines = (f"<table:table-row>{row}</table:table-row>" for row in rows)
    return make_odt(f"<table:table>{''.join(lines)}</table:table>")


def _merged_slides() -> bytes:
    deck = pptx.Presentation()
    size = len(_MERGED), 5
    table = deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_table(*size, 0, 0, Inches(5), Inches(4)).table
    for number, row in enumerate(_MERGED):
        for text, rows, columns in row:
            first = next(cell for cell in table.rows[number].cells if not (cell.is_spanned or cell.text))
            first.text = text or " "
            place = list(table.iter_cells()).index(first) % 5
            if rows * columns > 1:
                first.merge(table.cell(number + rows - 1, place + columns - 1))
    file = io.BytesIO()
    deck.save(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "make"), [("a.html", _merged_page), ("a.odt", _merged_text), ("a.pptx", _merged_slides)]
)
def test_values_below_merged_cells_keep_their_columns(
    tmp_path: Path, name: str, make: Callable[[], str | bytes]
) -> None:
    assert _read(tmp_path, name, make())[0].text == _MERGED_TEXT


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ("<td>Name<td colspan=3>Anna Lund<tr><td>Town<td>Graz<td>Phone<td>12", ["Name | Anna Lund"]),
        ("<td colspan=99>Rates<tr><td>a<td>b", ["Rates", "a | b"]),
        (f"<td>a<td colspan=2>{'long ' * 30}<td>b<tr><td>1<td>2<td>3<td>4", [f"a | {'long ' * 30}| | b"]),
        ("<td rowspan=9>a<td>b<tr><tr><td>c", ["a | b", "a | c"]),
        ("<td><td colspan=2>x<td colspan=2>y<tr><td>k<td>1<td>2<td>3<td>4", ["| x | x | y | y"]),
        ("<td colspan=2>x<td>y<tr><td>1<td>2<td>3", ["x | | y", "1 | 2 | 3"]),
    ],
)
def test_merged_cells_are_not_repeated_for_nothing(tmp_path: Path, rows: str, lines: list[str]) -> None:
    assert _read(tmp_path, "a.html", f"<table><tr>{rows}</table>")[0].text.split("\n")[: len(lines)] == lines


def test_a_table_of_cells_that_reach_far_is_bounded(tmp_path: Path) -> None:
    page = "<tr>" + "<td rowspan=99999 colspan=900>a</td>" * 300 + "</tr>" + "<tr><td>b</td></tr>" * 3000
    assert len(_read(tmp_path, "a.html", f"<table>{page}</table>")[0].text) < 3 * len(page)


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


def test_style_sheets_of_a_book(tmp_path: Path) -> None:
    head = (
        "<head><link rel='stylesheet' href='../a%20b.css'/><link href='gone.css'/><link href='one%20x.xhtml'/></head>"
    )
    page = f"<html>{head}<body><p>10<span class='up'>6</span> <i class='no'>x</i>bees</p></body></html>"
    sheet = ".up { vertical-align: super }\n.no { display: none }"
    document, left_out = _read(tmp_path, "a.epub", _book(**{"OEBPS/one x.xhtml": page, "a b.css": sheet}))
    assert document.text.startswith("10^6 bees")
    assert left_out["hidden parts"] == 2


def test_pages_of_a_book_that_are_drawn(tmp_path: Path) -> None:
    book = _book(
        **{"OEBPS/two x.xhtml": "<svg xmlns='http://www.w3.org/2000/svg'><text>Wax</text><text>Honey</text></svg>"}
    )
    source = zipfile.ZipFile(io.BytesIO(book))
    parts = {name: source.read(name) for name in source.namelist()}
    old, new = b"two%20x.xhtml' media-type='application/xhtml+xml'", b"two%20x.xhtml' media-type='image/svg+xml'"
    parts["OEBPS/a.opf"] = parts["OEBPS/a.opf"].replace(old, new)
    assert _read(tmp_path, "a.epub", _zipped(parts))[0].text.endswith("bees.\n\nWax\nHoney")


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


def test_text_boxes_of_an_opendocument_text_stand_behind_their_paragraph(tmp_path: Path) -> None:
    box = "<draw:frame><draw:text-box><text:p>Box {}</text:p></draw:text-box></draw:frame>"
    font = '<style:text-properties style:font-name="Wingdings"/>'
    styles = f'<style:style style:name="W" style:family="text">{font}</style:style>'
    body = (
        "<text:table-of-content><text:table-of-content-source><text:index-title-template>Contents"
        "</text:index-title-template></text:table-of-content-source></text:table-of-content>"
        f'<text:h text:outline-level="1">{box.format(1)}Pumps</text:h>'
        f"<text:list><text:list-item><text:p>{box.format(2)}one</text:p></text:list-item></text:list>"
        f"<text:p>The pu{box.format(3)}mp <draw:custom-shape><text:p>Shape</text:p></draw:custom-shape>hums.</text:p>"
        '<text:p><text:span text:style-name="W">\uf0fe</text:span> <draw:frame><draw:image/>'
        "<draw:title>Plan</draw:title><draw:desc>of a pump</draw:desc></draw:frame></text:p>" + box.format(4)
    )
    document, left_out = _read(tmp_path, "a.odt", make_odt(body, styles=styles))
    assert document.text == (
        "# Pumps\n\nBox 1\n\n- one\n\nBox 2\n\nThe pump hums.\n\nBox 3\n\nShape\n\n☑ Plan of a pump\n\nBox 4"
    )
    assert left_out == {"pictures": 1}


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
    match = "unpacks to 19 MiB in 1 parts, more than the limit of 1 MiB"
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


def test_numbers_of_opendocument(tmp_path: Path) -> None:
    def listed(*items: str, more: str = "") -> str:
        inner = "".join(f"<text:list-item><text:p>{item}</text:p></text:list-item>" for item in items)
        return f"<text:list text:style-name='L1'{more}>{inner}</text:list>"

    level = "<text:list-level-style-number text:level='{}' style:num-format='{}' style:num-suffix='{}' {}/>"
    styles = f"<text:list-style style:name='L1'>{level.format(1, 'a', ')', '')}</text:list-style>"
    styles += f"<text:outline-style>{level.format(1, 1, '', '')}"
    styles += f"{level.format(2, 'I', '', 'text:display-levels=' + chr(39) + '2' + chr(39))}</text:outline-style>"
    body = (
        "<text:h text:outline-level='1'>Pumps</text:h><text:h text:outline-level='2'>Cedar</text:h>"
        + listed("x", "y")
        + "<text:p>then</text:p>"
        + listed("z", more=" text:continue-numbering='true'")
        + "<text:h text:outline-level='2'>Elder</text:h>"
        + listed("x").replace("list-item>", "list-item text:start-value='7'>", 1)
    )
    text = "# 1 Pumps\n\n## 1.I Cedar\n\na) x\nb) y\n\nthen\n\nc) z\n\n## 1.II Elder\n\ng) x"
    assert _read(tmp_path, "a.odt", make_odt(body, styles=styles))[0].text == text


def test_parts_of_opendocument(tmp_path: Path) -> None:
    style = "<style:style style:name='{}' style:family='text'><style:text-properties style:text-{}/></style:style>"
    styles = style.format("S", "position='super 58%'") + style.format("K", "line-through-style='solid'")
    cell = "<table:table-cell table:number-columns-repeated='{}'>{}</table:table-cell>"
    row = cell.format(1, "<text:p>a</text:p>") + cell.format(2, "") + cell.format(1, "<text:p>d</text:p>")
    full = "".join(cell.format(1, f"<text:p>{letter}</text:p>") for letter in "wxyz")
    rows = (
        f"<table:table-row>{row}</table:table-row><table:table-row>{full}</table:table-row>"
        f"<table:table-row table:visibility='collapse'>{row}</table:table-row>"
    )
    body = (
        "<text:p>10<text:span text:style-name='S'>6</text:span> <text:span text:style-name='K'>old</text:span></text:p>"
        f"<text:section text:display='none'><text:p>hidden</text:p></text:section><table:table>{rows}</table:table>"
        "<text:p>Agree <draw:control/><draw:image xlink:href='./ObjectReplacements/Object 1'/></text:p>"
        "<text:p><draw:image xlink:href='Pictures/1.png'/></text:p>"
    )
    document, left_out = _read(tmp_path, "a.odt", make_odt(body, styles=styles))
    assert document.text == "10^6 ~~old~~\n\na | | | d\nw | x | y | z\n\nAgree"
    assert left_out == {"hidden parts": 2, "form fields": 1, "pictures": 1}


def test_styles_of_opendocument_that_others_are_based_on(tmp_path: Path) -> None:
    styles = "".join(
        f"<style:style style:family='{family}' style:name='{name}' style:parent-style-name='{parent}'>"
        f"<style:text-properties {settings}/></style:style>"
        for family, name, parent, settings in (
            ("text", "Up", "", "style:text-position='super 58%'"),
            ("text", "Bold", "Up", "fo:font-weight='bold'"),
            ("text", "Level", "Up", "style:text-position='0% 100%'"),
            ("text", "Old", "", "style:text-line-through-style='solid'"),
            ("text", "OldUp", "Old", "style:text-position='33% 58%'"),
            ("text", "Gone", "Gone", "text:display='none'"),
            ("text", "GoneToo", "Gone", "fo:font-weight='bold'"),
            ("paragraph", "Old", "", ""),
            ("paragraph", "OldText", "", "style:text-line-through-style='solid'"),
        )
    )

    def span(name: str, text: str) -> str:
        return f"<text:span text:style-name='{name}'>{text}</text:span>"

    body = (
        f"<text:p>10{span('Up', '1')}{span('Bold', '2')}{span('Level', '5')} {span('Old', '10')}{span('OldUp', '6')}"
        f" seen{span('GoneToo', ' hidden')}</text:p><text:p text:style-name='Old'>stands</text:p>"
        "<text:p text:style-name='OldText'>out</text:p>"
    )
    document, left_out = _read(tmp_path, "a.odt", make_odt(body, styles=styles))
    assert document.text == "10^12 5 ~~10^6~~ seen\n\nstands\n\n~~out~~"
    assert left_out == {"hidden parts": 1}


def test_runs_of_presentations_keep_their_values(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    frame = deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame
    for text, baseline in (("10", "0"), ("1", "30000"), ("2", "30000"), ("5, a", "0"), ("1", "-25000"), ("1", "0")):
        run = frame.paragraphs[0].add_run()
        run.text = text
        run.font._element.set("baseline", baseline)
    file = io.BytesIO()
    deck.save(file)
    assert _read(tmp_path, "a.pptx", file.getvalue())[0].text == "10^12 5, a_1 1"


def test_numbered_paragraphs_of_presentations(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    frame = deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame
    for number, text in enumerate(("one", "two", "three")):
        paragraph = frame.paragraphs[0] if not number else frame.add_paragraph()
        paragraph.text = text
        style = {"type": "alphaLcParenR"} if number < 2 else {"type": "arabicPeriod", "startAt": "7"}
        properties = paragraph._p.get_or_add_pPr()
        properties.append(
            properties.makeelement("{http://schemas.openxmlformats.org/drawingml/2006/main}buAutoNum", style)
        )
    run = frame.paragraphs[0].add_run()
    run.text = " (old)"
    run.font._element.set("strike", "sngStrike")
    file = io.BytesIO()
    deck.save(file)
    assert _read(tmp_path, "a.pptx", file.getvalue())[0].text == "a) one~~ (old)~~\nb) two\n7. three"


def test_cells_as_they_are_shown(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    formats = {
        "00000": 42,
        '0" kg"': 5,
        "[$€-407]#,##0.00": 12.5,
        "[h]:mm": datetime.timedelta(hours=30),
        "0.0%": 0.125,
    }
    sheet.append(["x", "y", "z", "t", "p"])
    sheet.append(list(formats.values()))
    for cell, number_format in zip(sheet[2], formats, strict=True):
        cell.number_format = number_format
    sheet["A2"].comment = openpyxl.comments.Comment("seen by nobody", "me")
    file = io.BytesIO()
    book.save(file)
    document, left_out = _read(tmp_path, "a.xlsx", file.getvalue())
    assert document.text.endswith("x: 00042 | y: 5 kg | z: €12.5 | t: 30:00 | p: 12.5%")
    assert left_out == {"comments": 1}


_RUNS = (
    "<r><t>10</t></r><r><rPr><vertAlign val='superscript'/></rPr><t>1</t></r><r><rPr><b/><vertAlign val='superscript'/>"
    "</rPr><t>2</t></r><r><t xml:space='preserve'>5 for </t></r><r><rPr><strike/></rPr><t>old_x000D_ price</t></r>"
)


@pytest.mark.parametrize("reference", [" r='B2'", ""])
def test_texts_in_several_fonts_inside_a_cell(tmp_path: Path, reference: str) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Pump", "Cells"])
    sheet.append(["Cedar", "here"])
    sheet["A2"].font = openpyxl.styles.Font(strike=True)
    file = io.BytesIO()
    book.save(file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = "xl/worksheets/sheet1.xml"
    plain = b'<c r="B2" t="inlineStr"><is><t>here</t></is></c>'
    assert plain in parts[name]
    parts[name] = parts[name].replace(plain, f"<c{reference} t='inlineStr'><is>{_RUNS}</is></c>".encode())
    lines = _read(tmp_path, "a.xlsx", _zipped(parts))[0].text.split("\n\n")
    assert lines[-1].split(" | ")[0].endswith("~~Cedar~~")
    assert lines[-1].split(" | ")[1].endswith("10^12 5 for ~~old price~~")


def test_hidden_rows_and_columns_of_sheets(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (["Pump", "Cost", "bar", "kg"], ["Cedar", 700, 18, 5], ["Elder", 900, 16, 6], ["Maple", 800, 12, 7]):
        sheet.append(row)
    sheet.column_dimensions["B"].hidden = True
    sheet.column_dimensions["Z"].hidden = True
    sheet.row_dimensions[3].hidden = True
    sheet.row_dimensions[9].hidden = True
    sheet.row_dimensions.group(4, 4, hidden=True)
    sheet.column_dimensions.group("D", "D", hidden=True)
    book.create_sheet("Very").append(["a"])
    book["Very"].sheet_state = "veryHidden"
    file = io.BytesIO()
    book.save(file)
    document, left_out = _read(tmp_path, "a.xlsx", file.getvalue())
    assert document.text.split("\n\n")[1:] == ["Pump: Cedar | bar: 18 | kg: 5", "Pump: Maple | bar: 12 | kg: 7"]
    assert left_out == {"hidden columns": 1, "hidden rows": 1, "hidden sheets": 1}


def _merged_sheet(rows: Sequence[Sequence[object]], *merged: str) -> bytes:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for cells in merged:
        book.active.merge_cells(cells)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("rows", "merged", "lines"),
    [
        (
            [
                ["Towns"],
                ["City", "2023", None, "2024"],
                [None, "Q1", "Q2", "Q1", "Q2"],
                ["Graz", 1, 2, 3, 4],
                [None, 5, None, 7, 8],
                ["Total", None, None, None, 99],
            ],
            ["A1:E1", "A2:A3", "B2:C2", "D2:E2", "A4:A5", "B5:C5", "A6:D6"],
            [
                *["Towns", "City: Graz | 2023 Q1: 1 | 2023 Q2: 2 | 2024 Q1: 3 | 2024 Q2: 4"],
                *["City: Graz | 2023 Q1: 5 | 2023 Q2: 5 | 2024 Q1: 7 | 2024 Q2: 8", "City: Total | 2024 Q2: 99"],
            ],
        ),
        (
            [["Region", "Sales", None], ["East", 1, 2], ["West", 3, 4]],
            ["B1:C1"],
            ["Region: East | Sales: 1 | Sales: 2", "Region: West | Sales: 3 | Sales: 4"],
        ),
        (
            [["Pump", "bar", "kg"], ["A", 1, 2], ["B", "old"]],
            ["B3:C3"],
            ["Pump: A | bar: 1 | kg: 2", "Pump: B | bar: old"],
        ),
        (
            [
                *[["Lots of people"], ["put", "some", None, "notes"], ["or", "merge", None, "cells"]],
                *[["Name", "Born", "Age", "Kids"], ["Carrie Fisher", "1956-10-21", 60, 1]],
            ],
            ["B3:C3"],
            [
                *["Lots of people", "put | some | notes", "or | merge | merge | cells"],
                "Name: Carrie Fisher | Born: 1956-10-21 | Age: 60 | Kids: 1",
            ],
        ),
        ([["Pump", "bar"], ["A" * 101, 1], [None, 2]], ["A2:A3"], [f"Pump: {'A' * 101} | bar: 1", "bar: 2"]),
    ],
)
def test_merged_cells_of_sheets(tmp_path: Path, rows: list[list[object]], merged: list[str], lines: list[str]) -> None:
    text = _read(tmp_path, "a.xlsx", _merged_sheet(rows, *merged))[0].text
    assert text.split("\n\n")[1:] == lines


def test_raised_signs_in_cells(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet["A1"] = "shared text"
    file = io.BytesIO()
    book.save(file)
    strings = "<sst xmlns='http://schemas.openxmlformats.org/spreadsheetml/2006/main'>"
    strings += "<si><r><t>10</t></r><r><rPr><vertAlign val='superscript'/></rPr><t>6</t></r></si></sst>"
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["xl/sharedStrings.xml"] = strings.encode()
    name = "xl/worksheets/sheet1.xml"
    parts[name] = parts[name].replace(b't="inlineStr"><is><t>shared text</t></is>', b't="s"><v>0</v>')
    kind = b"application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    override = b'<Override PartName="/xl/sharedStrings.xml" ContentType="%s"/></Types>' % kind
    parts["[Content_Types].xml"] = parts["[Content_Types].xml"].replace(b"</Types>", override)
    assert _read(tmp_path, "a.xlsx", _zipped(parts))[0].text.endswith("10^6")


def test_letters_keep_all_their_text(tmp_path: Path) -> None:
    head = "From: a@x.org\nSubject: b\nMIME-Version: 1.0\nContent-Type: multipart/{}; boundary=X\n\n"
    part = "--X\nContent-Type: {}\n\n{}\n"
    empty = (
        head.format("alternative") + part.format("text/plain", "") + part.format("text/html", "<p>Bees <del>x</del>")
    )
    document, left_out = _read(tmp_path, "a.eml", empty + "--X--\n")
    assert (document.text.strip().splitlines()[-1], left_out) == ("Bees", {"deleted parts": 1})
    mixed = head.format("mixed") + part.format("text/plain", "Bees") + part.format("image/png", "x")
    document, left_out = _read(tmp_path, "b.eml", mixed + part.format("text/plain", "They fly.") + "--X--\n")
    assert document.text.split("\n\n")[1:] == ["Bees", "They fly."]
    assert left_out == {"attachments": 1}


def _multipart(kind: str, boundary: str, *parts: str) -> str:
    lines = "".join(f"--{boundary}\n{part}\n" for part in parts)
    return f"Content-Type: multipart/{kind}; boundary={boundary}\n\n{lines}--{boundary}--\n"


@pytest.mark.parametrize(
    ("parts", "blocks", "kinds"),
    [
        (  # what a mailing list adds below
            _multipart(
                "mixed", "A",
                _multipart("alternative", "B", "Content-Type: text/plain\n\nBees", "Content-Type: text/html\n\nBees"),
                "Content-Type: text/plain\n\nThe list's footer",
            ),
            ["Bees", "The list's footer"],
            {},
        ),
        (  # a page, a picture, a page
            _multipart(
                "mixed", "A",
                "Content-Type: text/html\n\n<p>First</p>",
                "Content-Type: image/png; name=a.png\n\nx",
                "Content-Type: text/html\n\n<p>Second</p>",
                "Content-Type: text/plain; name=b.txt\n\nattached",
            ),
            ["First", "Second"],
            {"attachments": 2},
        ),
        (  # what lies in a page is attached also where the plain text is read
            _multipart(
                "alternative", "A",
                "Content-Type: text/plain\n\nBees",
                _multipart("mixed", "B", "Content-Type: text/html\n\n<i>Bees</i>", "Content-Type: image/png\n\nx"),
            ),
            ["Bees"],
            {"attachments": 1},
        ),
        (
            _multipart(
                "mixed", "A",
                "Content-Type: text/plain\n\nSee below",
                "Content-Type: message/rfc822\n\nFrom: z@x.org\nSubject: Hive\nContent-Type: text/html\n\n<i>Wax</i>",
            ),
            ["See below", "From: z@x.org\nSubject: Hive", "Wax"],
            {},
        ),
        (
            _multipart("digest", "A", "\nFrom: y@x.org\n\none", "\nFrom: z@x.org\n\ntwo"),
            ["From: y@x.org", "one", "From: z@x.org", "two"],
            {},
        ),
    ],
)  # fmt: skip
def test_every_text_of_a_letter_is_read(tmp_path: Path, parts: str, blocks: list[str], kinds: dict[str, int]) -> None:
    document, left_out = _read(tmp_path, "a.eml", f"From: a@x.org\nMIME-Version: 1.0\n{parts}")
    assert [block.strip() for block in document.text.split("\n\n") if block.strip()][1:] == blocks
    assert left_out == kinds


def test_a_broken_part_of_a_letter_hides_no_other(tmp_path: Path) -> None:
    broken = "Content-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n=FC"
    alternative = _multipart("alternative", "B", "Content-Type: text/plain\n\nBees", broken)
    forwarded = f"Content-Type: message/rfc822\n\nFrom: z@x.org\nSubject: Hive\n{broken}"
    parts = _multipart("mixed", "A", alternative, forwarded)
    document, left_out = _read(tmp_path, "a.eml", f"From: a@x.org\nMIME-Version: 1.0\n{parts}")
    assert document.text.split() == ["From:", "a@x.org", "Attachment:", "Hive", "Bees"]
    assert left_out == {"attachments": 1}


def test_letters_within_letters_end(tmp_path: Path) -> None:
    letter = "From: z@x.org\n\nthe last"
    for number in range(9):
        letter = f"From: {number}@x.org\nMIME-Version: 1.0\nContent-Type: message/rfc822\n\n{letter}"
    document, left_out = _read(tmp_path, "a.eml", letter)
    assert document.text.count("From: ") == 6
    assert left_out == {"attachments": 1}


def test_books_without_the_pages_of_print(tmp_path: Path) -> None:
    body = "<p>the bees<span epub:type='pagebreak' id='p6'>6</span>wax <span role='doc-pagebreak'/>melts</p>"
    page = f"<html xmlns='http://www.w3.org/1999/xhtml' xmlns:epub='http://www.idpf.org/2007/ops'>{body}</html>"
    document, left_out = _read(tmp_path, "a.epub", _book(**{"OEBPS/one x.xhtml": page}))
    assert document.text.startswith("the beeswax melts")
    assert left_out["page numbers"] == 1


def test_symbols_scatter_charts_and_hidden_shapes_of_presentations(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    shapes = deck.slides.add_slide(deck.slide_layouts[6]).shapes
    paragraph = shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame.paragraphs[0]
    name = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
    for text, font in (("10 ", ""), ("\xe0", "sym"), (" caf\xe9 ", "sym"), ("\xfe", "latin")):
        run = paragraph.add_run()
        run.text = text
        if font:
            run.font._element.append(run.font._element.makeelement(f"{name}{font}", {"typeface": "Wingdings"}))
    hidden = shapes.add_textbox(0, 0, Inches(1), Inches(1))
    hidden.text_frame.text = "nobody sees"
    hidden._element.nvSpPr.cNvPr.set("hidden", "1")
    points = XyChartData()
    series = points.add_series("bar")
    series.add_data_point(1, 2)
    series.add_data_point(3, 4.5)
    shapes.add_chart(XL_CHART_TYPE.XY_SCATTER, 0, 0, Inches(3), Inches(2), points)
    file = io.BytesIO()
    deck.save(file)
    document, left_out = _read(tmp_path, "a.pptx", file.getvalue())
    assert document.text == "10 → café ☑\n\n| bar\n1 | 2\n3 | 4.5"
    assert left_out == {"hidden parts": 1}


def test_shapes_that_a_presentation_gives_in_two_ways(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    shapes = deck.slides.add_slide(deck.slide_layouts[6]).shapes
    box = shapes.add_textbox(0, 0, Inches(1), Inches(1))
    box.text_frame.text = "Flow of 5 l"
    name = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
    choices = box._element.makeelement(f"{name}AlternateContent")
    for choice in ("Choice", "Fallback"):
        choices.append(choices.makeelement(f"{name}{choice}"))
    box._element.addprevious(choices)
    choices[0].append(box._element)
    picture = io.BytesIO(bytes.fromhex(_PIXEL))
    shapes.add_picture(picture, 0, 0)
    file = io.BytesIO()
    deck.save(file)
    document, left_out = _read(tmp_path, "a.pptx", file.getvalue())
    assert document.text == "Flow of 5 l"
    assert left_out == {"pictures": 1}


def test_charts_with_dates_and_names_of_several_levels(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    shapes = deck.slides.add_slide(deck.slide_layouts[6]).shapes
    days, levels = CategoryChartData(number_format='0.0\\ "l"'), CategoryChartData(number_format="0%")
    days.categories = [datetime.date(2024, 1, 31)]
    days.add_series("Use", (1.5,))
    for year in ("2023", "2024"):
        levels.add_category(year).add_sub_category("H1")
    levels.add_series("Share", (0.25, None))
    chart = shapes.add_chart(XL_CHART_TYPE.LINE, 0, 0, Inches(3), Inches(2), days).chart
    chart.has_title = True
    chart.chart_title.text_frame.text = "Water"
    chart.value_axis.axis_title.text_frame.text = "a day"
    shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, 0, 0, Inches(3), Inches(2), levels)
    file = io.BytesIO()
    deck.save(file)
    text = _read(tmp_path, "a.pptx", file.getvalue())[0].text
    assert text == "Water\na day\n| Use\n2024-01-31 | 1.5 l\n\n| Share\n2023 H1 | 25%\n2024 H1 |"


@pytest.mark.parametrize(
    ("number_format", "text"),
    [
        ('#,##0.00\\ "€"', "-5.5 €"),
        ("#,##0.00\\ [$€-407]", "-5.5 €"),
        ('_-* #,##0.00\\ "CHF"_-;-* #,##0.00\\ "CHF"_-', "-5.5 CHF"),
        ('_($* #,##0.00_);_($* (#,##0.00);_($* "-"??_)', "-$5.5"),
        ("0.0\\ \\°\\C", "-5.5 °C"),
        ("0\\ %", "-550 %"),
        ("[Red]0.0", "-5.5"),
        ("000\\-0000", "-5.5"),
        ("# ?/?", "-5.5"),
        ('[>1]0.0 "big";0.0 "small"', "-5.5"),
        ("0.00E+00", "-5.5"),
        ("@", "-5.5"),
    ],
)
def test_units_of_numbers(tmp_path: Path, number_format: str, text: str) -> None:
    book = openpyxl.Workbook()
    book.active.append([-5.5])
    book.active["A1"].number_format = number_format
    file = io.BytesIO()
    book.save(file)
    assert _read(tmp_path, "a.xlsx", file.getvalue())[0].text == f"# Sheet\n\n{text}"


def test_formats_that_scale_or_hide_numbers(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["k", "m", "none"])
    book.active.append([1500, 2_500_000, 7])
    for cell, number_format in zip(book.active[2], ('0.0,"k"', "#,##0.0,,", ";;;"), strict=True):
        cell.number_format = number_format
    file = io.BytesIO()
    book.save(file)
    document, left_out = _read(tmp_path, "a.xlsx", file.getvalue())
    assert document.text.endswith("k: 1.5k | m: 2.5")
    assert left_out == {"hidden cells": 1}


_SPANS = """
+------+-------------+-------+
| City | 2023        | Total |
|      +------+------+       |
|      | Q1+- | Q2   |       |
+======+======+======+=======+
| Graz | 1    | 2    | 3     |
|      +------+------+-------+
|      | first half  | 7     |
+------+------+------+-------+
| 漢字 | 8    | 9    | 4     |
+------+------+------+-------+

=====  =====  =====  =====
City   Sums          Sold
-----  ------------  -----
name   Q1     Q2     all
=====  =====  =====  =====
Graz   1      2      3
       more
=====  =====  =====  =====
"""


def test_merged_cells_of_restructured_text(tmp_path: Path) -> None:
    assert _read(tmp_path, "a.rst", _SPANS)[0].text == (
        "City | 2023 | 2023 | Total\nCity | Q1+- | Q2 | Total\nGraz | 1 | 2 | 3\nGraz | first half | first half | 7\n"
        "漢字 | 8 | 9 | 4\n\nCity | Sums | Sums | Sold\nname | Q1 | Q2 | all\nGraz | 1 more | 2 | 3"
    )


def test_what_restructured_text_puts_in_place(tmp_path: Path) -> None:
    source = (
        ".. |copy| unicode:: 0xA9\n.. |name| replace:: Cedar *pump*\n   3000\n\n"
        "|name| |copy| |other|, 10\\ `6`:sup:, 10\\ :sup:`6`\\ 5\n\n"
        "#. one\n#. two\n\n3. c\n#. d\n\n.. csv-table:: Pumps\n   :header: Name, Weight\n\n   Cedar, 5\n"
    )
    text = _read(tmp_path, "a.rst", source)[0].text
    assert (
        text
        == "Cedar pump 3000 © other, 10^6, 10^6 5\n\n1. one\n2. two\n\n3. c\n4. d\n\nPumps\n\nName | Weight\nCedar | 5"
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            ".. list-table:: Pumps\n   :widths: 3\n      4\n\n   * - Pump\n     - *bar*\n   * - Cedar\n\n       (old)\n"
            "     - - 18\n       - 19\n   * -\n     - 7\n\nNext",
            "Pumps\n\nPump | bar\nCedar (old) | - 18 - 19\n | 7\n\nNext",
        ),
        (".. list-table::\n\n   no list\n\n   of lists", "no list\n\nof lists"),
        (
            '.. csv-table::\n   :header: "Name", Weight, "Price,\n     net"\n\n   "Cedar ""C""", 5, 7\n   Elder,\n',
            'Name | Weight | Price, net\nCedar "C" | 5 | 7\nElder',
        ),
        (".. csv-table::\n   :delim: ;\n\n   Cedar; 5", "Cedar | 5"),
        ('.. csv-table::\n\t:header: "Tap"\tSize\n\t:delim: tab\n\n\tpath top\t5', "Tap | Size\npath top | 5"),
        (".. grid-item-card:: First steps\n\n   Begin.", "First steps\n\nBegin."),
        (".. glossary::\n\n   mole\n      A digger.", "mole\n   A digger."),
        (".. dropdown:: Details (more)\n\n   Dig.", "Details (more)\n\nDig."),
        (".. class:: Mole(depth)\n\n   Digs.", "class Mole(depth)\n\nDigs."),
        (".. class:: wide\n\n   Digs.", "Digs."),
        (".. option:: --depth\n\n   Of it.", "option --depth\n\nOf it."),
        (".. jupyter-execute::\n\n   dig(1)", "    dig(1)"),
        (".. graphviz::\n\n   digraph { a -> b }\n\nText", "Text"),
        (".. versionremoved:: 3.2\n", "Removed in version 3.2"),
    ],
)
def test_directives_of_restructured_text(tmp_path: Path, source: str, text: str) -> None:
    assert _read(tmp_path, "a.rst", source)[0].text.strip("\n") == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("See `the\nmanual <http://x.org>`_ and ``a\nb``.", "See the\nmanual and a\nb."),
        ("It is *very\nsmall*, and :class:`the\nmole <Mole>`.", "It is very\nsmall, and the\nmole."),
        ("- one *star\n- two* stars", "- one *star\n- two* stars"),
        ('A "*" or [*] or *this*.', 'A "*" or [*] or this.'),
        ("By :pep:`8` and :RFC:`822`.", "By PEP 8 and RFC 822."),
        ("An _`inline target` here", "An inline target here"),
        (".. Note:: Dig.", "Note: Dig."),
    ],
)
def test_inline_marks_of_restructured_text(tmp_path: Path, source: str, text: str) -> None:
    assert _read(tmp_path, "a.rst", source)[0].text == text


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        (
            "Pump,bar,litres\nCedar,18,5\n*,,\n* without the valve,,",
            ["Pump: Cedar | bar: 18 | litres: 5", "*", "* without the valve"],
        ),
        (
            "Pump,bar\nCedar,18\nSource: the makers of the pumps,",
            ["Pump: Cedar | bar: 18", "Source: the makers of the pumps"],
        ),
        ("Pump,bar\nCedar,18\nElder,", ["Pump: Cedar | bar: 18", "Pump: Elder"]),
        ("Pump,Pressure,Flow\n,bar,l/min\nCedar,18,5", ["Pump: Cedar | Pressure bar: 18 | Flow l/min: 5"]),
        ("Pump,Pressure,Type\n,(bar),\nCedar,18,old", ["Pump: Cedar | Pressure (bar): 18 | Type: old"]),
        ("Year,Gain,Loss\n,(12),(13)\n2024,5,6", ["Gain: (12) | Loss: (13)", "Year: 2024 | Gain: 5 | Loss: 6"]),
        ("Pump,[bar],Type\n[name],[1],[2]\nCedar,18,old", ["Pump [name]: Cedar | [bar] [1]: 18 | Type [2]: old"]),
        (
            "Pump,Maker,bar\n,Ash,\nCedar,Birch,18",
            ["Maker: Ash", "Pump: Cedar | Maker: Birch | bar: 18"],
        ),
    ],
)
def test_units_below_names_and_notes_below_tables(tmp_path: Path, source: str, lines: list[str]) -> None:
    assert _read(tmp_path, "a.csv", source)[0].text.split("\n\n") == lines
