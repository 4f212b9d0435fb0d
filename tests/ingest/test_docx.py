"""Word files: numbers, notes, tables, forms, headers, parts taken in, and what is left out and counted."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.opc.constants import CONTENT_TYPE, RELATIONSHIP_TYPE
from docx.opc.packuri import PackURI
from docx.opc.part import Part
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from clara.errors import DocumentError
from clara.ingest import LeftOut, Skipped, location_of, passage_metadata, read_file
from clara.records import Document, Heading, Passage

_NAMES = (
    nsdecls("w", "r", "pic", "m")
    + " xmlns:w14='http://schemas.microsoft.com/office/word/2010/wordml'"
    + " xmlns:mc='http://schemas.openxmlformats.org/markup-compatibility/2006'"
    + " xmlns:wps='http://schemas.microsoft.com/office/word/2010/wordprocessingShape'"
    + " xmlns:o='urn:schemas-microsoft-com:office:office'"
)


def _run(text: str, properties: str = "") -> str:
    return f"<w:r><w:rPr>{properties}</w:rPr><w:t xml:space='preserve'>{text}</w:t></w:r>"


def _p(content: str, properties: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr>{content}</w:p>"


def _file(*blocks: str, change: Callable[[Any], None] | None = None) -> bytes:
    """A Word file with the given blocks as its body."""
    source = docx.Document()
    source.core_properties.title = ""
    for element in list(parse_xml(f"<w:body {_NAMES}>{''.join(blocks)}</w:body>")):
        source.element.body.insert_element_before(element, "w:sectPr")
    if change is not None:
        change(source)
    file = io.BytesIO()
    source.save(file)
    return file.getvalue()


def _read(folder: Path, data: bytes) -> tuple[Document, Mapping[str, int]]:
    path = folder / "a.docx"
    path.write_bytes(data)
    document, *others = read_file(path)
    assert isinstance(document, Document)
    assert not [item for item in others if isinstance(item, Skipped)]
    return document, {item.kind: item.count for item in others if isinstance(item, LeftOut)}


def _text(folder: Path, *blocks: str, change: Callable[[Any], None] | None = None) -> str:
    return _read(folder, _file(*blocks, change=change))[0].text


def _part(source: Any, name: str, kind: str, relation: str, xml: str) -> str:  # noqa: ANN401 - python-docx is untyped
    """Add a part to a document; gives the reference to it."""
    part = Part(PackURI(f"/word/{name}"), kind, xml.encode(), source.part.package)
    return str(source.part.relate_to(part, relation))


def _sup(text: str) -> str:
    return _run(text, "<w:vertAlign w:val='superscript'/>")


def _sub(text: str) -> str:
    return _run(text, "<w:vertAlign w:val='subscript'/>")


# Superscripts


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        (_run("about 10") + _sup("6") + _run(" cells"), "about 10^6 cells"),
        (_run("10") + _sup("-") + _sup("4"), "10^-4"),
        (_run("in 2019") + _sup("1") + _run(" only"), "in 2019[1] only"),
        (_run("the 21") + _sup("st") + _run(" century"), "the 21st century"),
        (_run("CO") + _sub("2") + _run(" and 101") + _sub("2"), "CO2 and 101_2"),
        (_run("10") + _sup("6") + _run("8"), "10^6 8"),
        (_run("10") + _run("6", "<w:rStyle w:val='Raised'/>"), "10^6"),
        (_run("10") + _run("6", "<w:vertAlign w:val='baseline'/>"), "106"),
    ],
)
def test_superscripts_keep_numbers_apart(tmp_path: Path, runs: str, text: str) -> None:
    def style(source: Any) -> None:  # noqa: ANN401
        source.styles.element.append(
            parse_xml(
                f"<w:style {nsdecls('w')} w:type='character' w:styleId='Raised'><w:name w:val='raised'/>"
                "<w:rPr><w:vertAlign w:val='superscript'/></w:rPr></w:style>"
            )
        )

    assert _text(tmp_path, _p(runs), change=style) == text


# Numbers of lists and clauses


_CLAUSES = """<w:abstractNum w:abstractNumId='90'>
<w:lvl w:ilvl='0'><w:start w:val='1'/><w:numFmt w:val='upperRoman'/><w:lvlText w:val='Article %1'/></w:lvl>
<w:lvl w:ilvl='1'><w:start w:val='1'/><w:numFmt w:val='decimal'/><w:isLgl/><w:lvlText w:val='%1.%2'/></w:lvl>
<w:lvl w:ilvl='2'><w:start w:val='1'/><w:numFmt w:val='lowerLetter'/><w:lvlText w:val='(%3)'/></w:lvl>
</w:abstractNum>"""


def _numbered(source: Any, definitions: str) -> None:  # noqa: ANN401
    root = source.part.numbering_part.element
    for element in parse_xml(f"<w:numbering {nsdecls('w')}>{definitions}</w:numbering>"):
        if element.tag.endswith("abstractNum"):
            root.insert(0, element)
        else:
            root.append(element)


def _item(text: str, number: int, level: int | None = None) -> str:
    place = "" if level is None else f"<w:ilvl w:val='{level}'/>"
    return _p(_run(text), f"<w:numPr>{place}<w:numId w:val='{number}'/></w:numPr>")


def test_numbers_of_clauses(tmp_path: Path) -> None:
    levels = [0, 1, 1, 2, 2, 0, 1, 2, 1]
    blocks = [_item(f"clause {number}", 91, level) for number, level in enumerate(levels)]
    text = _text(
        tmp_path,
        *blocks,
        change=lambda source: _numbered(source, _CLAUSES + "<w:num w:numId='91'><w:abstractNumId w:val='90'/></w:num>"),
    )
    labels = [line.partition(" clause")[0] for line in text.split("\n\n")]
    assert labels == ["Article I", "1.1", "1.2", "(a)", "(b)", "Article II", "2.1", "(a)", "2.2"]


def test_a_list_that_begins_anew_and_one_that_goes_on(tmp_path: Path) -> None:
    def change(source: Any) -> None:  # noqa: ANN401
        restart = "<w:lvlOverride w:ilvl='0'><w:startOverride w:val='5'/></w:lvlOverride>"
        numbers = "".join(
            f"<w:num w:numId='{number}'><w:abstractNumId w:val='90'/>{more}</w:num>"
            for number, more in ((91, ""), (92, restart), (93, ""))
        )
        _numbered(source, _CLAUSES + numbers)

    items = [
        _item("a", 91, 0),
        _item("b", 91, 0),
        _item("c", 92, 0),
        _item("d", 92, 0),
        _item("e", 93, 0),
        _item("f", 0, 0),
    ]
    text = _text(tmp_path, *items, change=change)
    assert text.split("\n\n") == ["Article I a", "Article II b", "Article V c", "Article VI d", "Article VII e", "f"]


def test_lists_and_headings_by_style(tmp_path: Path) -> None:
    source = docx.Document()
    source.core_properties.title = ""
    for style, words in [
        ("Heading 1", "Scope"),
        ("Normal", "The rules hold."),
        ("List Number", "Shut the gate"),
        ("List Number", "Ring the bell"),
        ("List Bullet", "salt"),
        ("Heading 2", "Fees"),
        ("Normal", "Ten euro."),
    ]:
        source.add_paragraph(words, style=style)
    file = io.BytesIO()
    source.save(file)
    document, _ = _read(tmp_path, file.getvalue())
    assert document.text.split("\n\n") == [
        "# Scope",
        "The rules hold.",
        "1. Shut the gate",
        "2. Ring the bell",
        "- salt",
        "## Fees",
        "Ten euro.",
    ]
    assert document.headings == (Heading(0, "Scope"), Heading(document.text.index("## Fees"), "Fees"))
    passage = Passage("id", document.uri, "", document.text, 0, len(document.text))
    offset = document.text.index("Ten euro")
    assert location_of(passage_metadata(document, passage), offset).heading == "Fees"


# Notes


def test_notes_stand_behind_their_paragraph(tmp_path: Path) -> None:
    def notes(source: Any) -> None:  # noqa: ANN401
        for kind, note_type, relation in (
            ("footnote", CONTENT_TYPE.WML_FOOTNOTES, RELATIONSHIP_TYPE.FOOTNOTES),
            ("endnote", CONTENT_TYPE.WML_ENDNOTES, RELATIONSHIP_TYPE.ENDNOTES),
        ):
            told = ""
            for number in (2, 3):
                own = "<w:r><w:footnoteRef/></w:r>" + _run(f" {kind} {number}: 10") + _sup("6")
                itself = f"<w:r><w:{kind}Reference w:id='{number}'/></w:r>"
                told += f"<w:{kind} w:id='{number}'>{_p(own)}{_p(itself)}</w:{kind}>"
            _part(source, f"{kind}s.xml", note_type, relation, f"<w:{kind}s {nsdecls('w')}>{told}</w:{kind}s>")

    def mark(kind: str, number: int) -> str:
        return f"<w:r><w:{kind}Reference w:id='{number}'/></w:r>"

    cell = _p(_run("4 euro") + mark("footnote", 2))
    text = _text(
        tmp_path,
        _p(_run("Open daily") + mark("footnote", 3) + _run(".") + mark("endnote", 2) + mark("footnote", 99)),
        f"<w:tbl><w:tr><w:tc>{cell}</w:tc></w:tr></w:tbl>",
        change=notes,
    )
    assert text == ("Open daily[1].[i]\n[1] footnote 3: 10^6\n[i] endnote 2: 10^6\n\n4 euro[2]\n[2] footnote 2: 10^6")


# Tables


def _cells(*cells: str) -> str:
    return "<w:tr>" + "".join(f"<w:tc>{cell}</w:tc>" for cell in cells) + "</w:tr>"


def test_a_table_in_a_cell_keeps_its_rows(tmp_path: Path) -> None:
    inner = f"<w:tbl>{_cells(_p(_run('Day')), _p(_run('12.50')))}{_cells(_p(_run('Night')), _p(_run('9.75')))}</w:tbl>"
    outer = _cells(_p(_run("Outer")), _p(_run("4.20")))
    table = f"<w:tbl>{_cells(_p(_run('Inner')), _p(_run('rates')) + inner)}{outer}</w:tbl>"
    assert _text(tmp_path, table) == "Inner | rates Day: 12.50; Night: 9.75\nOuter | 4.20"


def test_merged_cells_stand_in_each_row_they_reach_over(tmp_path: Path) -> None:
    def cell(text: str, properties: str = "") -> str:
        return f"<w:tcPr>{properties}</w:tcPr>{_p(_run(text))}"

    rows = [
        _cells(cell("wide", "<w:gridSpan w:val='2'/>"), cell("Graz", "<w:vMerge w:val='restart'/>")),
        _cells(cell("a"), cell("b"), cell("", "<w:vMerge/>")),
        _cells(cell("c"), cell("d"), cell("Linz")),
        f"<w:tr><w:trPr><w:del w:id='1'/></w:trPr><w:tc>{_p(_run('gone'))}</w:tc></w:tr>",
    ]
    document, left_out = _read(tmp_path, _file(f"<w:tbl>{''.join(rows)}</w:tbl>"))
    assert document.text == "wide | | Graz\na | b | Graz\nc | d | Linz"
    assert left_out == {"deleted parts": 1}


def test_cells_merged_in_the_old_way(tmp_path: Path) -> None:
    def cell(text: str, merged: str) -> str:
        return f"<w:tcPr><w:hMerge w:val='{merged}'/></w:tcPr>{_p(_run(text))}"

    rows = _cells(cell("a", "restart"), cell("", "continue"), _p(_run("b"))) + _cells(*map(_p, map(_run, "123")))
    assert _text(tmp_path, f"<w:tbl>{rows}</w:tbl>") == "a | | b\n1 | 2 | 3"


_EQUATION = (
    "<m:oMath><m:sSup><m:e><m:r><m:t>{}</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>"
)
_CHUNK = "<w:altChunk r:id='rIdChunk'/>"


def _chunk(part: Any, content: str) -> None:  # noqa: ANN401
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/aFChunk"
    taken = Part(PackURI(f"/word/{len(content)}.txt"), "text/plain", content.encode(), part.package)
    part.rels.add_relationship(relation, taken, "rIdChunk")


_INNER = f"<w:tbl>{_cells(_p(_run('Day')), _p(_run('12.50')))}</w:tbl>"


def _control(content: str) -> str:
    return f"<w:sdt><w:sdtPr/><w:sdtContent>{content}</w:sdtContent></w:sdt>"


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        (f"<w:tbl>{_cells(_EQUATION.format('a') + _p(''), _p(_run('b')))}</w:tbl>", "a^2 | b"),
        (f"<w:tbl>{_cells(_CHUNK + _p(''), _p(_run('b')))}</w:tbl>", "Taken in. | b"),
        (f"<w:tbl>{_cells(_control(_EQUATION.format('a')) + _CHUNK)}</w:tbl>", "a^2 Taken in."),
        (f"<w:tbl>{_control(_cells(_EQUATION.format('a'), _p(_run('b'))))}</w:tbl>", "a^2 | b"),
        (
            f"<w:tbl><w:tr>{_control(f'<w:tc>{_CHUNK}</w:tc>')}<w:tc>{_p(_run('b'))}</w:tc></w:tr></w:tbl>",
            "Taken in. | b",
        ),
        (
            f"<w:tbl>{_cells(_p(_run('a')), f'<w:tbl>{_cells(_EQUATION.format(1), _CHUNK)}</w:tbl>')}</w:tbl>",
            "a | 1^2: Taken in.",
        ),
        (f"<w:tbl>{_cells(_p(_run('a')), _control(_INNER))}</w:tbl>", "a | Day: 12.50"),
        (
            _p(
                _run("Beside")
                + f"<w:r><w:pict><w:txbxContent>{_EQUATION.format('a')}{_CHUNK}</w:txbxContent></w:pict></w:r>"
            ),
            "Beside\n\na^2\n\nTaken in.",
        ),
        (
            _p(
                _run("so")
                + f"<m:oMathPara>{_EQUATION.format('a')}{_EQUATION.format('b')}</m:oMathPara>"
                + _run("holds")
            ),
            "so\na^2\nb^2\nholds",
        ),
    ],
)
def test_equations_and_parts_taken_in_stand_where_text_does(tmp_path: Path, blocks: str, text: str) -> None:
    document, left_out = _read(tmp_path, _file(blocks, change=lambda source: _chunk(source.part, "Taken in.")))
    assert (document.text, left_out) == (text, {})


def test_headers_and_notes_take_in_by_their_own_references(tmp_path: Path) -> None:
    def change(source: Any) -> None:  # noqa: ANN401
        header = source.sections[0].header
        header._element.extend(parse_xml(f"<w:hdr {_NAMES}>{_EQUATION.format('h')}{_CHUNK}</w:hdr>"))
        _chunk(header.part, "Of the header.")
        cell = f"<w:tbl>{_cells(_EQUATION.format('n'))}</w:tbl>"
        notes = f"<w:footnotes {_NAMES}><w:footnote w:id='2'>{cell}{_CHUNK}</w:footnote></w:footnotes>"
        _part(source, "footnotes.xml", CONTENT_TYPE.WML_FOOTNOTES, RELATIONSHIP_TYPE.FOOTNOTES, notes)
        notes_part = next(rel.target_part for rel in source.part.rels.values() if "footnotes" in rel.reltype)
        _chunk(notes_part, "Of a note.")
        _chunk(source.part, "Of the body.")

    mark = "<w:r><w:footnoteReference w:id='2'/></w:r>"
    assert _text(tmp_path, _p(_run("Text") + mark), _CHUNK, change=change) == (
        "h^2\n\nOf the header.\n\nText[1]\n[1] n^2 Of a note.\n\nOf the body."
    )


def test_notes_whose_marks_are_typed_count_for_nothing(tmp_path: Path) -> None:
    def add_notes(source: Any) -> None:  # noqa: ANN401 - as above
        notes = "".join(f"<w:footnote w:id='{number}'>{_p(_run(f'Note {number}.'))}</w:footnote>" for number in (2, 3))
        xml = f"<w:footnotes {_NAMES}>{notes}</w:footnotes>"
        _part(source, "footnotes.xml", CONTENT_TYPE.WML_FOOTNOTES, RELATIONSHIP_TYPE.FOOTNOTES, xml)

    typed = "<w:r><w:footnoteReference w:customMarkFollows='1' w:id='2'/><w:t>*</w:t></w:r>"
    content = _run("Pump") + typed + _run(" and valve") + "<w:r><w:footnoteReference w:id='3'/></w:r>"
    assert _text(tmp_path, _p(content), change=add_notes) == "Pump* and valve[1]\n* Note 2.\n[1] Note 3."


def test_fields_that_draw_signs_are_counted(tmp_path: Path) -> None:
    begin, end = (f"<w:r><w:fldChar w:fldCharType='{kind}'/></w:r>" for kind in ("begin", "end"))
    fields = "".join(
        f"{begin}<w:r><w:instrText xml:space='preserve'>{words}</w:instrText></w:r>{end}"
        for words in (" EQ \\f(1,2)", "SYMBOL 176", " PAGE ")
    )
    document, left_out = _read(tmp_path, _file(_p(_run("Half a cup") + fields)))
    assert document.text == "Half a cup"
    assert left_out == {"fields that draw signs": 2}


# Forms, ruby, hidden and deleted text, text boxes


def _field(data: str) -> str:
    return f"<w:r><w:fldChar w:fldCharType='begin'><w:ffData>{data}</w:ffData></w:fldChar></w:r>"


@pytest.mark.parametrize(
    ("content", "text", "kinds"),
    [
        (_run("Seen.") + _run(" Hidden.", "<w:vanish/>"), "Seen.", {"hidden parts": 1}),
        (_run("Seen.") + _run(" Too.", "<w:vanish w:val='0'/>"), "Seen. Too.", {}),
        (_run("a") + f"<w:del>{_run('b')}</w:del><w:moveFrom>{_run('c')}</w:moveFrom>", "a", {"deleted parts": 2}),
        (
            f"<w:r><w:ruby><w:rt>{_run('かんじ')}</w:rt><w:rubyBase>{_run('漢字')}</w:rubyBase></w:ruby></w:r>",
            "漢字",
            {"readings of characters": 1},
        ),
        (_field("<w:checkBox><w:default w:val='1'/></w:checkBox>") + _run(" on"), "☒ on", {}),
        (_field("<w:checkBox><w:default w:val='1'/><w:checked w:val='0'/></w:checkBox>") + _run(" off"), "☐ off", {}),
        (_field("<w:checkBox><w:checked/></w:checkBox>") + _run(" on"), "☒ on", {}),
        (
            _field("<w:ddList><w:result w:val='1'/><w:listEntry w:val='Graz'/><w:listEntry w:val='Linz'/></w:ddList>"),
            "Linz",
            {},
        ),
        (
            "<w:sdt><w:sdtPr><w14:checkbox><w14:checked w14:val='0'/></w14:checkbox></w:sdtPr>"
            f"<w:sdtContent>{_run('?')}</w:sdtContent></w:sdt>" + _run(" no"),
            "☐ no",
            {},
        ),
        (
            _run("Name:")
            + f"<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>{_run('Click')}</w:sdtContent></w:sdt>",
            "Name:",
            {"empty form fields": 1},
        ),
        (_run("a") + "<w:r><w:drawing><pic:pic/></w:drawing></w:r>", "a", {"pictures": 1}),
        (_run("a") + "<w:r><w:commentReference w:id='0'/></w:r>", "a", {"comments": 1}),
        (_run("a") + "<w:r><w:object><o:OLEObject/></w:object></w:r>", "a", {"embedded objects": 1}),
        (
            _run("a") + "<w:r><mc:AlternateContent><mc:Choice><wps:txbx>"
            f"<w:txbxContent>{_p(_run('in a box'))}</w:txbxContent></wps:txbx>"
            f"</mc:Choice><mc:Fallback><w:pict>{_run('in a box')}</w:pict></mc:Fallback></mc:AlternateContent></w:r>"
            + _run("b"),
            "ab\n\nin a box",
            {},
        ),
        (_run("\uf0fe", "<w:rFonts w:ascii='Wingdings'/>") + _run(" þ"), "☑ þ", {}),
        (_run("m", "<w:rFonts w:ascii='Symbol'/>") + _run("g"), "μg", {}),
        (_run("non") + "<w:r><w:noBreakHyphen/></w:r>" + _run("Euclidean"), "non-Euclidean", {}),
    ],
)
def test_what_a_paragraph_says(tmp_path: Path, content: str, text: str, kinds: dict[str, int]) -> None:
    document, left_out = _read(tmp_path, _file(_p(content)))
    assert (document.text, left_out) == (text, kinds)


# Headers, footers, other files


def test_headers_and_footers_stand_once(tmp_path: Path) -> None:
    def headers(source: Any) -> None:  # noqa: ANN401
        section = source.sections[0]
        section.header.paragraphs[0].text = "Lund and Sons"
        section.first_page_header.paragraphs[0].text = "Lund and Sons"
        section.footer.paragraphs[0].text = "contract 6602"

    assert _text(tmp_path, _p(_run("Body.")), change=headers) == "Lund and Sons\n\nBody.\n\ncontract 6602"
    assert _text(tmp_path, change=headers) == "Lund and Sons\n\ncontract 6602"


@pytest.mark.parametrize(
    ("name", "kind", "content", "text"),
    [
        ("a.html", "text/html", "<html><body><p>Taken 10<sup>6</sup> in.</p></body></html>", "Taken 10^6 in."),
        ("a.txt", "text/plain", "Taken in.", "Taken in."),
        ("a.rtf", "application/rtf", r"{\rtf1 no}", ""),
    ],
)
def test_parts_taken_in(tmp_path: Path, name: str, kind: str, content: str, text: str) -> None:
    def chunk(source: Any) -> None:  # noqa: ANN401
        relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/aFChunk"
        reference = _part(source, name, kind, relation, content)
        chunk = parse_xml(f"<w:altChunk {nsdecls('w', 'r')} r:id='{reference}'/>")
        source.element.body.insert_element_before(chunk, "w:sectPr")

    document, left_out = _read(tmp_path, _file(_p(_run("Body.")), change=chunk))
    assert document.text == f"Body.\n\n{text}".strip()
    assert left_out == ({} if text else {"parts taken in from other files": 1})


# Other kinds of Word files


def _renamed(data: bytes, replace: Callable[[bytes], bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(file, "w") as copy:
        for entry in archive.infolist():
            copy.writestr(entry.filename, replace(archive.read(entry)))
    return file.getvalue()


@pytest.mark.parametrize(
    "main",
    [
        b"application/vnd.ms-word.document.macroEnabled.main+xml",
        b"application/vnd.ms-word.template.macroEnabledTemplate.main+xml",
        b"application/vnd.openxmlformats-officedocument.wordprocessingml.template.main+xml",
    ],
)
def test_documents_with_macros_and_templates(tmp_path: Path, main: bytes) -> None:
    data = _file(_p(_run("Bees fly.")))
    assert (
        _read(tmp_path, _renamed(data, lambda part: part.replace(CONTENT_TYPE.WML_DOCUMENT_MAIN.encode(), main)))[
            0
        ].text
        == "Bees fly."
    )


def test_strict_open_xml(tmp_path: Path) -> None:
    def strict(part: bytes) -> bytes:
        for name in (b"wordprocessingml", b"officeDocument", b"drawingml"):
            part = part.replace(
                b"http://schemas.openxmlformats.org/" + name + b"/2006/", b"http://purl.oclc.org/ooxml/" + name + b"/"
            )
        return part

    source = docx.Document()
    source.core_properties.title = ""
    source.add_heading("Scope", 1)
    source.add_paragraph("Shut the gate", style="List Number")
    file = io.BytesIO()
    source.save(file)
    assert _read(tmp_path, _renamed(file.getvalue(), strict))[0].text == "# Scope\n\n1. Shut the gate"


def test_a_file_that_expands_is_refused(tmp_path: Path) -> None:
    def cell(text: str, merged: str) -> str:
        return f"<w:tc><w:tcPr><w:vMerge w:val='{merged}'/></w:tcPr>{_p(_run(text))}</w:tc>"

    rows = f"<w:tr>{cell('a ' * 5_000, 'restart')}</w:tr>" + f"<w:tr>{cell('', 'continue')}</w:tr>" * 800
    path = tmp_path / "a.docx"
    path.write_bytes(_file(f"<w:tbl>{rows}</w:tbl>"))
    with pytest.raises(DocumentError, match=r"makes 8,\d{3},\d{3} characters of \d\d,\d{3} bytes"):
        list(read_file(path))


def test_entities_that_expand_are_refused(tmp_path: Path) -> None:
    entities = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10 if n else 'ha'}'>" for n in range(10))

    def expanding(part: bytes) -> bytes:
        if b"<w:body>" not in part:
            return part
        body = part[part.index(b"<w:document") :].replace(b"Bees fly.", b"Bees &e9; fly.")
        return b"<?xml version='1.0'?><!DOCTYPE w:document [" + entities.encode() + b"]>" + body

    path = tmp_path / "a.docx"
    path.write_bytes(_renamed(_file(_p(_run("Bees fly."))), expanding))
    with pytest.raises(DocumentError, match="amplification"):
        list(read_file(path))


def test_a_style_based_on_itself_ends(tmp_path: Path) -> None:
    def loop(source: Any) -> None:  # noqa: ANN401
        source.styles.element.append(
            parse_xml(
                f"<w:style {nsdecls('w')} w:type='paragraph' w:styleId='Loop'><w:name w:val='loop'/>"
                "<w:basedOn w:val='Loop'/></w:style>"
            )
        )

    assert _text(tmp_path, _p(_run("Text."), "<w:pStyle w:val='Loop'/>"), change=loop) == "Text."


def test_a_document_of_pictures_alone_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_bytes(_file(_p("<w:r><w:drawing><pic:pic/></w:drawing></w:r>")))
    with pytest.raises(DocumentError, match="is empty"):
        list(read_file(path))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            _run("10") + _run("6", "<w:position w:val='12'/>") + _run(" of H") + _run("2", "<w:position w:val='-6'/>"),
            "10^6 of H2",
        ),
        (_run("old 1", "<w:strike/>") + _run("00", "<w:strike/>") + _run(" new 80"), "~~old 100~~ new 80"),
        (
            _run("3")
            + _run("1", "<w:vertAlign w:val='superscript'/>")
            + _run("/")
            + _run("2", "<w:vertAlign w:val='subscript'/>"),
            "3 1/2",
        ),
        (
            "<m:oMath><m:r><m:t>3</m:t></m:r><m:f><m:num><m:r><m:t>1</m:t></m:r></m:num>"
            "<m:den><m:r><m:t>2</m:t></m:r></m:den></m:f></m:oMath>",
            "3 1/2",
        ),
    ],
)
def test_what_is_seen_keeps_its_value(tmp_path: Path, content: str, text: str) -> None:
    assert _read(tmp_path, _file(_p(content)))[0].text == text


def test_paragraphs_hidden_or_struck_by_their_style(tmp_path: Path) -> None:
    def styles(source: Any) -> None:  # noqa: ANN401
        for name, settings in (("Hint", "<w:vanish/>"), ("Old", "<w:strike/>")):
            style = f"<w:name w:val='{name}'/><w:rPr>{settings}</w:rPr>"
            source.styles.element.append(
                parse_xml(f"<w:style {nsdecls('w')} w:type='paragraph' w:styleId='{name}'>{style}</w:style>")
            )

    hint = _p(_run("Fill in below."), "<w:pStyle w:val='Hint'/>")
    shown = _p(_run("Seen."), "<w:pStyle w:val='Hint'/>").replace("<w:rPr>", "<w:rPr><w:vanish w:val='0'/>")
    document, left_out = _read(
        tmp_path, _file(hint, shown, _p(_run("5 euro"), "<w:pStyle w:val='Old'/>"), change=styles)
    )
    assert (document.text, left_out) == ("Seen.\n\n~~5 euro~~", {"hidden parts": 1})


def test_large_initials_stay_with_their_word(tmp_path: Path) -> None:
    initial = _p(_run("O"), "<w:framePr w:dropCap='drop'/>")
    assert _read(tmp_path, _file(initial, _p(_run("nce upon a time"))))[0].text == "Once upon a time"


def test_hidden_rows_and_empty_columns_of_tables(tmp_path: Path) -> None:
    cells = "".join(f"<w:tc>{_p(_run(text))}</w:tc>" for text in ("a", "b"))
    hidden = f"<w:tr><w:trPr><w:hidden/></w:trPr>{cells}</w:tr>"
    later = f"<w:tr><w:trPr><w:gridBefore w:val='1'/></w:trPr><w:tc>{_p(_run('2'))}</w:tc></w:tr>"
    document, left_out = _read(tmp_path, _file(f"<w:tbl><w:tr>{cells}</w:tr>{hidden}{later}</w:tbl>"))
    assert (document.text, left_out) == ("a | b\n | 2", {"hidden parts": 1})
