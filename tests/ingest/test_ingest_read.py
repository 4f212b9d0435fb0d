"""Reading files of each format: what comes out, and what is said when nothing can."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from pathlib import Path

import docx
import pytest
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from hypothesis import given, settings
from hypothesis import strategies as st
from pdf_files import make_pdf

from clara.errors import DocumentError
from clara.ingest import (
    DEFAULT_MAX_BYTES,
    SUPPORTED_SUFFIXES,
    LeftOut,
    Reader,
    Skipped,
    document_uri,
    find_files,
    make_document,
    read_file,
)
from clara.records import Document


def _write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return path


def _read(path: Path) -> Document:
    document, *left_out = read_file(path)
    assert isinstance(document, Document)
    assert all(isinstance(item, LeftOut) for item in left_out)
    return document


def _reason(path: Path, match: str, max_bytes: int = DEFAULT_MAX_BYTES) -> str:
    with pytest.raises(DocumentError, match=match) as caught:
        list(read_file(path, max_bytes=max_bytes))
    assert str(caught.value).startswith(f"{document_uri(path)}: ")
    return caught.value.reason


# Text


def test_plain_text(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.txt", b"One.\r\nTwo.\rThree.\n")
    document = _read(path)
    assert document.text == "One.\nTwo.\nThree.\n"
    assert document.title == ""
    assert document.uri == path.resolve().as_posix()
    assert document.metadata == {"media_type": "text/plain"}
    assert document.content_hash == hashlib.sha256(b"\0One.\nTwo.\nThree.\n").hexdigest()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark(tmp_path: Path, encoding: str) -> None:
    assert _read(_write(tmp_path, "a.txt", "Skłodowska 居里".encode(encoding))).text == "Skłodowska 居里"


@pytest.mark.parametrize("mark", ["utf-16-le", "utf-16-be"])
def test_both_byte_orders(tmp_path: Path, mark: str) -> None:
    assert _read(_write(tmp_path, "a.md", "\ufeffBee".encode(mark))).text == "Bee"


@pytest.mark.parametrize(
    ("data", "reason", "message"),
    [
        (b"", "empty", "is empty"),
        (b" \n\t", "empty", "only white space"),
        (b"\0" * 5000, "binary", "NUL byte at offset 0"),
        (b"Text, then \0", "binary", "NUL byte at offset 11"),
        ("Bee".encode("utf-16-le"), "binary", "without a byte order mark"),
        (b"\x01\x02\x03 abc", "binary", "control characters"),
        ("Café".encode("latin-1"), "encoding", "byte 0xE9 at offset 3; save it as UTF-8"),
        (b"\xff\xfe\x00\xd8", "encoding", "expected UTF-16"),
    ],
)
def test_what_is_not_text(tmp_path: Path, data: bytes, reason: str, message: str) -> None:
    for suffix in (".txt", ".md"):
        assert _reason(_write(tmp_path, f"a{suffix}", data), message) == reason


def test_too_large(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.txt", b"a" * 2**20)
    assert (
        _reason(
            path,
            r"has 1.0 MiB, the limit is 0.5 MiB; split it, or raise the limit \(clara index --max-file-mb\)",
            max_bytes=2**19,
        )
        == "too large"
    )
    assert len(list(read_file(path, max_bytes=2**20))) == 1


def test_default_limit_stops_a_200_mb_text_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)  # a sparse file: takes no space
    assert _reason(path, "has 200.0 MiB, the limit is 64.0 MiB") == "too large"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Honey bee #\n\nBees.", "Honey bee"),
        ("Intro\n\n  #  The   bee\n# Second", "The bee"),
        ("## Only second level\n", ""),
        ("#hashtag\n", ""),
        ("```sh\n# a comment\n```\n# Real\n", "Real"),
        ("~~~\n```\n# a comment\n~~~\n# Real\n", "Real"),
        ("#\n# Real", "Real"),
        ("# C#\n", "C#"),
        ("````\n```\n# a comment\n````\n# Real\n", "Real"),
        ("~~~~\n# a comment\n~~~\n# another\n~~~~~\n# Real\n", "Real"),
        ("<!--\n# hidden\n-->\n# Real\n", "Real"),
        ("> # Quoted\n\n# Real\n", "Real"),
        ("Real\n====\n\n# Later\n", "Real"),
        ("Only second level\n---\n", ""),
        ("---\ntitle: Real\n# a comment\n---\n\n# Later\n", "Real"),
        ("---\ntitle: >-\n  The\n  bee\n...\n", "The bee"),
        ("---\ntitle: 1984\n---\n", "1984"),
        ("---\nauthor: Fox\n# a comment\n---\n# Real\n", "Real"),
        ("---\ntitle: no: YAML\n# a comment\n---\n# Real\n", "Real"),
        ("---\ntitle: [a]\n---\n# Real\n", "Real"),
        ('+++\n# a comment\ntitle = "Real"\n+++\n', "Real"),
        ("---\n\n# Real\n\n---\n", "Real"),
        ("---\n# Real\nBees.\n---\n", "Real"),
        ("---\ntitle: Never closed\n", ""),
    ],
)
def test_markdown_title(tmp_path: Path, text: str, title: str) -> None:
    document = _read(_write(tmp_path, "a.md", text))
    assert document.title == title
    assert document.text.split() == text.split()


def test_markdown_front_matter_with_newlines_of_windows(tmp_path: Path) -> None:
    assert _read(_write(tmp_path, "a.md", "---\r\ntitle: 'Bees'\r\n---\r\nThey fly.\r\n")).title == "Bees"


@pytest.mark.parametrize("text", ["Bees fly.\n" * 2000 + "# A section\n", "# " + "Bees " * 5000])
def test_markdown_title_stands_at_the_top(tmp_path: Path, text: str) -> None:
    assert _read(_write(tmp_path, "a.md", text)).title == ""


# HTML

_MENU = "<nav><a href='/'>Home</a> <a href='/about'>About us</a></nav>"


def test_html_keeps_the_main_text(tmp_path: Path) -> None:
    page = (
        f"<html><head><title> Honey\n bee </title><script>var x = 1;</script></head><body>{_MENU}<article>"
        "<svg><title>drawing</title></svg><p>A colony has one queen and many thousands of workers.</p>"
        "<p>The workers gather nectar.</p><ul><li>honey</li><li>wax</li></ul></article></body></html>"
    )
    document = _read(_write(tmp_path, "a.html", page))
    assert document.title == "Honey bee"
    assert (
        document.text
        == "A colony has one queen and many thousands of workers.\n\nThe workers gather nectar.\n\n- honey\n- wax"
    )
    assert document.metadata == {"media_type": "text/html"}


@pytest.mark.parametrize(
    "page",
    [
        "<p>Bees fly.</p>",
        "Bees fly.",
        "<html><body>Bees fly.</body></html>",
        '<?xml version="1.0" encoding="UTF-8"?>\n<html lang="en"><body><p>Bees fly.</p></body></html>',
        "<html><body><div><span>Bees fly.</span></div></body></html>",
    ],
)
def test_small_and_odd_pages_keep_their_text(tmp_path: Path, page: str) -> None:
    document = _read(_write(tmp_path, "a.htm", page))
    assert document.text.strip() == "Bees fly."
    assert document.title == ""


@pytest.mark.parametrize(
    ("label", "encoding"),
    [
        ("iso-8859-1", "cp1252"),
        ("windows-1251", "cp1251"),
        ("Shift_JIS", "shift_jis"),
        ("x-sjis", "cp932"),
        ("iso-2022-jp", "iso2022_jp"),
        ("GB2312", "gbk"),
        ("tis-620", "cp874"),
    ],
)
def test_html_declared_encoding(tmp_path: Path, label: str, encoding: str) -> None:
    sentences = {"cp1252": "Café “crème”.", "cp1251": "Пчела летит.", "cp874": "ผึ้งบิน", "gbk": "朱镕基说蜜蜂。"}
    sentence = sentences.get(encoding, "蜂が飛ぶ。")
    page = f"<html><head><meta charset='{label}'><title>{sentence}</title></head><body><p>{sentence}</p></body></html>"
    document = _read(_write(tmp_path, "a.html", page.encode(encoding)))
    assert (document.title, document.text) == (sentence, sentence)


_PAGE = """<h1>Harbour</h1> <p>Ships land. <time>3 May</time> was the first day.</p> after a paragraph
<h2>Prices</h2> right after a heading<br>after a break <p>Ten euro.</p>
<div>in a box</div> after a box <div>before <p>In it.</p> behind</div>
<div><div><h3>Way</h3><p>Tram four.</p></div> <span>around <div>inside</div> over</span></div>
<details><summary>Is it open?</summary><p>It is.</p></details><details><summary>How long?</summary>All day.</details>
<figure class="wp-caption"><img src="a.png"><figcaption class="wp-caption-text">Old harbour.</figcaption></figure>
<ul><li>cod</li><li>herring</li></ul><table><tr><th>Pier</th><td>North</td></tr></table><blockquote>Ahoy.</blockquote>
<h2>Address</h2><address>Quay 1</address>"""


@pytest.mark.parametrize(
    "around",
    ["{}", "<div>{}</div>", "<section>{}</section>", "<main>{}</main>", "<article>{}</article>", "<form>{}</form>"],
)
@pytest.mark.parametrize("sentences", [1, 100])
def test_html_keeps_all_that_a_page_shows(tmp_path: Path, around: str, sentences: int) -> None:
    """Long or short, wherever on the page a text stands."""
    content = f"<p>{'Gulls cry. ' * sentences}</p>{_PAGE}"
    page = f"<html><body>{_MENU}{around.format(content)}<footer>Imprint</footer></body></html>"
    text = " ".join(_read(_write(tmp_path, "a.html", page)).text.split())
    shown = [part.strip() for part in re.split(r"<[^>]+>", content) if part.strip()]
    places = [text.find(part) for part in shown]
    assert [part for part, place in zip(shown, places, strict=True) if place < 0] == []
    assert places == sorted(places)
    assert "3 May was" in text
    assert "Imprint" in text
    assert "About us" not in text


def test_html_deep_parts(tmp_path: Path) -> None:
    page = "<html><body><h2>Deep</h2>{}<p>Bottom.</p>{}<p>After.</p></body></html>"
    deep = page.format("<div>" * 1000, "</div>" * 1000)
    assert _read(_write(tmp_path, "a.html", deep)).text == "## Deep\n\nBottom.\n\nAfter."
    deeper = page.format("<div>" * 3000, "</div>" * 3000)
    assert _reason(_write(tmp_path, "b.html", deeper), "too deep to be read to its end") == "broken"


def test_html_text_of_more_than_10_mb(tmp_path: Path) -> None:
    page = f"<html><body><p>Before.</p><p>{'gulls cry ' * 1_100_000}end</p><p>After.</p></body></html>"
    text = _read(_write(tmp_path, "a.html", page)).text
    assert text.startswith("Before.\n\ngulls")
    assert text.endswith("cry end\n\nAfter.")


def test_html_control_characters_do_not_cost_the_page(tmp_path: Path) -> None:
    page = "<html><body><p>Bees&#12;fly&#x1; to&#127; 7&#49;</p><div>and\x0cland</div></body></html>"
    assert _read(_write(tmp_path, "a.html", page)).text.split() == ["Bees", "fly", "to", "71", "and", "land"]


def test_html_that_declares_wrongly_is_read_as_utf_8(tmp_path: Path) -> None:
    page = "<html><head><meta charset='latin1'></head><body><p>Café crème.</p></body></html>"
    assert _read(_write(tmp_path, "a.html", page)).text == "Café crème."


def test_html_faults(tmp_path: Path) -> None:
    latin = "<html><body><p>Café</p></body></html>".encode("latin-1")
    assert _reason(_write(tmp_path, "a.html", latin), "expected UTF-8, found byte 0xE9") == "encoding"
    pseudo = b"<meta charset='punycode'>" + latin
    assert _reason(_write(tmp_path, "b.html", pseudo), "expected UTF-8") == "encoding"
    assert _reason(_write(tmp_path, "c.html", "<html><body></body></html>"), "shows no text") == "no text"
    assert _reason(_write(tmp_path, "d.html", b"<p>\0</p>"), "NUL") == "binary"


# PDF


def test_pdf_pages(tmp_path: Path) -> None:
    document = _read(
        _write(tmp_path, "a.pdf", make_pdf([["Bees fly.", "They pol-", "linate."], [], ["Page (three)."]]))
    )
    assert document.text == "Bees fly.\nThey pollinate.\n\nPage (three)."
    assert document.metadata == {"media_type": "application/pdf", "pages": "3", "pages_without_text": "1"}


def test_pdf_faults(tmp_path: Path) -> None:
    good = make_pdf([["Bees fly."]])
    assert _reason(_write(tmp_path, "a.pdf", b"%PDF-1.4 nothing"), "not a readable PDF") == "broken"
    assert _reason(_write(tmp_path, "b.pdf", good[: len(good) // 3]), "not a readable PDF") == "broken"
    secret = make_pdf([["Bees fly."]], password="honey")  # noqa: S106
    assert _reason(_write(tmp_path, "c.pdf", secret), "needs a password") == "encrypted"
    assert (
        _reason(_write(tmp_path, "d.pdf", make_pdf([[], []])), r"2 page\(s\) without text, so it is scanned")
        == "no text"
    )
    assert _reason(_write(tmp_path, "e.pdf", make_pdf([])), "not a readable PDF") == "broken"
    assert _reason(_write(tmp_path, "f.pdf", b""), "is empty") == "empty"


def test_pdf_with_one_bad_page_gives_the_others(tmp_path: Path) -> None:
    data = make_pdf([["Bees fly."], ["Lost."], ["Bees land."]])
    data = data.replace(b"6 0 obj\n<< /Type /Page ", b"6 0 obj\n<< /Type /Junk ")
    document, *skipped = read_file(_write(tmp_path, "a.pdf", data))
    assert isinstance(document, Document)
    assert document.text.startswith("Bees fly.")
    assert document.text.endswith("Bees land.")
    for item in skipped:
        assert isinstance(item, Skipped)
        assert item.uri.endswith("a.pdf#page=2")


# DOCX


def _docx(source: docx.document.Document) -> bytes:
    file = io.BytesIO()
    source.save(file)
    return file.getvalue()


def test_docx_paragraphs_and_tables_in_order(tmp_path: Path) -> None:
    source = docx.Document()
    source.core_properties.title = "Bees"
    source.add_paragraph("First.")
    table = source.add_table(rows=2, cols=2)
    for number, cell in enumerate(table._cells):
        cell.text = f"cell {number}"
    inner = table.cell(1, 1).add_table(rows=1, cols=1)
    inner.cell(0, 0).text = "inner"
    source.add_paragraph("Last\tline")
    document = _read(_write(tmp_path, "a.docx", _docx(source)))
    assert document.title == "Bees"
    assert document.text == "First.\n\ncell 0 | cell 1\ncell 2 | cell 3 inner\n\nLast\tline"


def test_docx_parts_that_python_docx_leaves_out(tmp_path: Path) -> None:
    source = docx.Document()
    source.core_properties.title = ""
    source.add_paragraph("A long title", style="Title")
    run = "<w:r><w:t>{}</w:t></w:r>"
    tracked = (
        f"<w:p {nsdecls('w')}><w:ins>{run.format('in')}</w:ins><!-- note -->"
        f"<w:del><w:r><w:delText>gone</w:delText></w:r></w:del><w:hyperlink>{run.format(' linked')}</w:hyperlink></w:p>"
    )
    control = f"<w:sdt {nsdecls('w')}><w:sdtContent><w:p>{run.format('field')}</w:p></w:sdtContent></w:sdt>"
    for xml in (tracked, control):
        source.element.body.insert_element_before(parse_xml(xml), "w:sectPr")
    path = _write(tmp_path, "a.docx", _docx(source))
    document, left_out = read_file(path)
    assert isinstance(document, Document)
    assert document.title == "A long title"
    assert document.text == "A long title\n\nin linked\n\nfield"
    assert left_out == LeftOut(document_uri(path), "deleted parts", 1)


def test_docx_title_without_properties(tmp_path: Path) -> None:
    """python-docx would give the title "Word Document"."""
    source = docx.Document()
    source.add_paragraph("Bees", style="Title")
    package = source.part.package
    (relation,) = [key for key, value in package.rels.items() if value.reltype == RELATIONSHIP_TYPE.CORE_PROPERTIES]
    del package.rels[relation]
    data = _docx(source)
    assert "docProps/core.xml" not in zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert _read(_write(tmp_path, "a.docx", data)).title == "Bees"


def test_docx_equations_and_symbols(tmp_path: Path) -> None:
    source = docx.Document()
    equation = f"<m:oMath {nsdecls('m')}><m:r><m:t>a=b</m:t></m:r></m:oMath>"
    area = source.add_paragraph("Area is ")
    area._p.append(parse_xml(equation))
    area.add_run(" metres")
    heat = source.add_paragraph("20")
    heat._p.append(parse_xml(f"<w:r {nsdecls('w')}><w:sym w:font='Symbol' w:char='F0B0'/></w:r>"))
    heat.add_run("C")
    source.element.body.insert_element_before(
        parse_xml(f"<m:oMathPara {nsdecls('m')}>{equation}</m:oMathPara>"), "w:sectPr"
    )
    assert _read(_write(tmp_path, "a.docx", _docx(source))).text == "Area is a=b metres\n\n20°C\n\na=b"


def test_docx_faults(tmp_path: Path) -> None:
    source = docx.Document()
    assert _reason(_write(tmp_path, "a.docx", _docx(source)), "is empty") == "empty"
    assert _reason(_write(tmp_path, "b.docx", b"PK\x03\x04 cut off"), "is damaged") == "broken"
    old = bytes.fromhex("D0CF11E0A1B11AE1") + b"\0" * 600
    assert _reason(_write(tmp_path, "c.docx", old), "save it as .docx without a password") == "encrypted"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    assert _reason(_write(tmp_path, "d.docx", file.getvalue()), "is damaged") == "broken"


def test_docx_that_unpacks_to_too_much(tmp_path: Path) -> None:
    source = docx.Document()
    source.add_paragraph("a" * 4_000_000)
    path = _write(tmp_path, "a.docx", _docx(source))
    assert path.stat().st_size < 2**20
    assert _reason(
        path,
        r"unpacks to \d MiB, more than the limit of 1 MiB; split it, or raise the limit \(clara index --max-file-mb\)",
        max_bytes=2**20,
    )


# JSON Lines


def test_jsonl_records_and_bad_lines(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"title": "Bees", "text": "They fly.\\r\\n", "id": 7}',
        b"",
        b'{"text": "No title."}',
        b"{not json",
        b'{"title": "No text"}',
        b'{"title": 3, "text": "x"}',
        b"[1, 2]",
        b'{"text": "caf\xe9"}',
        b'{"text": " "}',
        b'{"text": "nul \\u0000"}',
        b'{"text": "half \\ud800"}',
        b'{"text": ' + b"[" * 100_000,
        b'{"text": "last", "title": null}',
    ]
    path = _write(tmp_path, "a.jsonl", b"\r\n".join(lines))
    items = list(read_file(path))
    documents = [item for item in items if isinstance(item, Document)]
    assert [(d.uri.rpartition("#")[2], d.title, d.text) for d in documents] == [
        ("1", "Bees", "They fly.\n"),
        ("3", "", "No title."),
        ("13", "", "last"),
    ]
    skipped = {int(item.uri.rpartition("#")[2]): item for item in items if isinstance(item, Skipped)}
    assert sorted(skipped) == [4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert [item.reason for _, item in sorted(skipped.items())] == ["bad record"] * 4 + ["encoding"] + [
        "bad record"
    ] * 4
    for number, words in {
        4: "not JSON: Expecting property name enclosed in double quotes at column 2",
        5: "got an object with the keys title",
        6: '"title" must be a string, got 3',
        7: "got a list",
        8: "found byte 0xE9",
        9: "only white space",
        10: "NUL",
        11: "half a surrogate pair (U+D800)",
        12: "not usable JSON",
    }.items():
        assert words in skipped[number].message
        assert skipped[number].message.startswith(f"{document_uri(path)}#{number}: ")


def test_jsonl_limit_holds_for_a_line_not_the_file(tmp_path: Path) -> None:
    short, long = b'{"text": "short"}\n', b'{"text": "' + b"x" * 3_000_000 + b'"}\n'
    path = _write(tmp_path, "a.jsonl", short * 100 + long + short)
    items = list(read_file(path, max_bytes=1000))
    assert sum(isinstance(item, Document) for item in items) == 101
    (skipped,) = [item for item in items if isinstance(item, Skipped)]
    assert skipped.uri.endswith("#101")
    assert skipped.reason == "too large"
    assert len(list(read_file(_write(tmp_path, "b.jsonl", short), max_bytes=len(short)))) == 1


def test_jsonl_faults(tmp_path: Path) -> None:
    assert _reason(_write(tmp_path, "a.jsonl", b""), "is empty") == "empty"
    assert _reason(_write(tmp_path, "b.jsonl", b"\n \n"), "only blank lines") == "empty"
    assert _reason(_write(tmp_path, "c.jsonl", b"\0" * 100), "NUL") == "binary"
    assert _reason(_write(tmp_path, "d.jsonl", '{"text": "x"}'.encode("utf-16")), "is UTF-16") == "encoding"


# Any file


def test_file_matters(tmp_path: Path) -> None:
    assert _reason(tmp_path / "gone.txt", "cannot be read: No such file or directory") == "unreadable"
    (tmp_path / "folder.txt").mkdir()
    assert _reason(tmp_path / "folder.txt", "is not a regular file") == "unreadable"
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert _reason(tmp_path / "pipe.jsonl", "is not a regular file") == "unreadable"
    assert (
        _reason(_write(tmp_path, "a.png", b"x"), r"cannot read \.png; supported are \.csv .* and source code")
        == "unsupported"
    )


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.xls", "save it as .xlsx"),
        ("a.DOC", "save it as .docx"),
        ("a.txt.gz", "unpack it first"),
    ],
)
def test_a_format_that_is_nearly_read_comes_with_its_remedy(tmp_path: Path, name: str, remedy: str) -> None:
    path = _write(tmp_path, name, b"x")
    assert _reason(path, rf"cannot read \{path.suffix.lower()}; {remedy}\Z") == "unsupported"
    with Reader(find_files([tmp_path])) as reader:
        assert [skipped.message.endswith(remedy) for skipped in reader.report().skipped] == [True]


def test_a_text_without_a_suffix_has_headings(tmp_path: Path) -> None:
    text = b"NOTE:\r\n=====\r\nDrain it.\r\n\r\nSpeed\r\n-----\r\n7 bar\r\n"
    readme = _read(_write(tmp_path, "README", text))
    assert [(readme.text[heading.start :][:5], heading.text) for heading in readme.headings] == [
        ("NOTE:", "NOTE:"),
        ("Speed", "Speed"),
    ]
    assert _read(_write(tmp_path, "a.py", text)).headings == ()


def _rfc(pages: list[str]) -> bytes:
    """Pages as RFCs set them; the first has no header."""
    feet = [f"{page}\r\n\r\n\r\nCrocker                     [Page {number}]" for number, page in enumerate(pages, 1)]
    return "\r\n\f\r\nRFC 10   Host Software   April 1969\r\n\r\n\r\n".join(feet).encode()


def test_pages_of_a_text_are_read_as_one(tmp_path: Path) -> None:
    pages = ["1. Intro\r\n\r\nThe host sends", "four bits.", "The link is 12 bits.", "It\r\nends."]
    path = _write(tmp_path, "rfc10.txt", _rfc(pages) + b"\r\n\f\r\n")
    document, left_out = read_file(path)
    assert isinstance(document, Document)
    assert document.text == "1. Intro\n\nThe host sends\nfour bits.\n\nThe link is 12 bits.\n\nIt\nends."
    assert [document.text[start:][:3] for start in document.pages] == ["1. ", "fou", "The", "It\n"]
    assert left_out == LeftOut(document.uri, "page headers and footers", 7)


def test_a_page_with_nothing_but_running_lines_begins_where_the_next_one_does(tmp_path: Path) -> None:
    document = _read(_write(tmp_path, "rfc10.txt", _rfc(["It is", "", "short.", "", ""])))
    assert document.text == "It is\nshort."
    assert document.pages == (0, 6, 6, 12, 12)


def test_pages_of_a_pdf_are_read_as_one(tmp_path: Path) -> None:
    pages = [["Moles", "The mole digs"], ["long tunnels."], ["It eats worms and in-"], ["sects, no other insects."]]
    framed = [["Moles", *page, "Garden press", f"Page {number} of 4"] for number, page in enumerate(pages, 5)]
    framed[0].pop(0)
    document, left_out = read_file(_write(tmp_path, "moles.pdf", make_pdf(framed)))
    assert isinstance(document, Document)
    assert document.text == "Moles\nThe mole digs\nlong tunnels.\n\nIt eats worms and insects, no other insects."
    assert [document.text[start:][:4] for start in document.pages] == ["Mole", "long", "It e", "sect"]
    assert left_out == LeftOut(document.uri, "page headers and footers", 11)


def test_roman_page_numbers_before_the_first_chapter_are_left_out(tmp_path: Path) -> None:
    front = [["Preface", "i"], ["Thanks to", "- ii -"], ["all.", "iii"]]
    pages = [*front, *([f"Chapter {number}.", f"mix {number * 7} g", str(number)] for number in range(1, 10))]
    document, left_out = read_file(_write(tmp_path, "moles.pdf", make_pdf(pages)))
    assert isinstance(document, Document)
    assert document.text.startswith("Preface\n\nThanks to\nall.\n\nChapter 1.\nmix 7 g\n\nChapter 2.")
    assert left_out == LeftOut(document.uri, "page headers and footers", 12)


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("{}", ""),
        ("{}     The {kind} mole", ""),
        ("The {kind} mole   {} / 57", ""),
        ("Page {} of 57", ""),
        ("The mole     Seite {} von 57", ""),
        ("Chapter {}", "Chapter {}\n"),
        ("The {kind} mole, {}", "The {kind} mole, {}\n"),
    ],
)
def test_the_number_of_a_page_stands_apart(tmp_path: Path, header: str, kept: str) -> None:
    kinds = ["star", "hairy", "golden", "common"]
    pages = [f"{header.format(at, kind=kind)}\nIt is {kind}." for at, kind in enumerate(kinds, 21)]
    document = _read(_write(tmp_path, "moles.txt", "\f".join(pages).encode()))
    shown = [f"{kept.format(at, kind=kind)}It is {kind}." for at, kind in enumerate(kinds, 21)]
    assert [line for line in document.text.split("\n") if line] == "\n".join(shown).split("\n")


@pytest.mark.parametrize("section", ["Part {} ends", "Chapter {}\n\nIt weighs {} kg.", "The sum is\n\n{}{}"])
def test_form_feeds_between_sections_are_no_pages(tmp_path: Path, section: str) -> None:
    sections = [section.format(sign, sign) for sign in ("1", "3", "7", "20")]
    document = _read(_write(tmp_path, "news.txt", "\n\f\n".join(sections).encode()))
    assert [line for line in document.text.split("\n") if line] == [
        line for part in sections for line in part.split("\n") if line
    ]
    assert document.pages == ()


def test_uri_can_always_be_stored(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text("Text.", encoding="utf-8")
    uri = _read(path).uri
    uri.encode("utf-8")
    assert uri.endswith("/caf\\udce9.txt")


def test_hash_tells_title_from_text() -> None:
    hashes = {make_document("/a", title, text).content_hash for title, text in [("ab", "c"), ("a", "bc"), ("", "abc")]}
    assert len(hashes) == 3
    assert make_document("/b", "ab", "c").content_hash in hashes


@pytest.mark.parametrize("suffix", SUPPORTED_SUFFIXES)
@given(data=st.binary(max_size=2000))
@settings(max_examples=60, deadline=None)
def test_random_bytes_raise_nothing_else(tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes) -> None:
    path = _write(tmp_path_factory.getbasetemp(), f"random{suffix}", data)
    try:
        items = list(read_file(path))
    except DocumentError:
        return
    assert items
    for item in items:
        assert isinstance(item, Document | Skipped | LeftOut)


@pytest.mark.parametrize("suffix", [".pdf", ".docx", ".html", ".jsonl"])
@given(place=st.floats(0, 1), junk=st.binary(min_size=1, max_size=40), cut=st.booleans())
@settings(max_examples=60, deadline=None)
def test_damaged_files_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, place: float, junk: bytes, *, cut: bool
) -> None:
    data = _GOOD[suffix]
    at = int(place * len(data))
    path = _write(
        tmp_path_factory.getbasetemp(), f"damaged{suffix}", data[:at] + junk + (b"" if cut else data[at + 40 :])
    )
    try:
        for item in read_file(path):
            assert isinstance(item, Document | Skipped | LeftOut)
    except DocumentError as error:
        message = str(error)
        assert message.startswith(document_uri(path)), message


def _good_docx() -> bytes:
    source = docx.Document()
    source.add_paragraph("Bees fly.")
    return _docx(source)


_GOOD = {
    ".pdf": make_pdf([["Bees fly."], ["Bees land."]]),
    ".docx": _good_docx(),
    ".html": f"<html><head><title>Bees</title></head><body>{_MENU}<p>Bees fly.</p></body></html>".encode(),
    ".jsonl": b'{"title": "Bees", "text": "They fly."}\n' * 3,
}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[\n  {"text": "Bees"},\n  {"text": "Wax"}\n]\n', r"is a JSON array, .*; convert it: jq -c '\.\[\]'"),
        (b'\xef\xbb\xbf [{"text": "Bees"}, {"text": "Wax"}]', "is a JSON array"),
        (b'{"text": "Bees"}\r{"text": "Wax"}\r', r"has carriage returns \(CR\) for newlines"),
        (b'{\n  "text": "Bees"\n}\n', "is one JSON object over several lines"),
    ],
)
def test_json_of_another_shape_is_one_message(tmp_path: Path, data: bytes, message: str) -> None:
    assert _reason(_write(tmp_path, "a.jsonl", data), message) == "bad record"


def test_an_array_among_records_is_a_bad_line(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", b'[1, 2]\n{"text": "Bees"}\r\n')
    bad, document = read_file(path)
    assert isinstance(bad, Skipped)
    assert bad.uri.endswith("#1")
    assert isinstance(document, Document)


# Reports


def test_reader_reads_on_and_reports(tmp_path: Path) -> None:
    _write(tmp_path, "a.txt", "Bees fly.")
    _write(tmp_path, "b.txt", b"\0\0")
    _write(tmp_path, "c.jsonl", '{"text": "One."}\nbad\n{"text": "Two."}\n')
    _write(tmp_path, "d.pdf", b"junk")
    _write(tmp_path, "e.png", b"x")
    _write(tmp_path, "f.jsonl", "bad\n")
    _write(tmp_path, ".hidden.txt", "x")
    reader = Reader(find_files([tmp_path]))
    assert [document.text for document in reader.documents()] == ["Bees fly.", "One.", "Two."]
    report = reader.report()
    assert (report.files, report.documents, report.characters, report.hidden) == (2, 3, 17, 1)
    uri = document_uri(tmp_path)
    assert {reason: [skipped.uri for skipped in group] for reason, group in report.by_reason().items()} == {
        "unsupported": [f"{uri}/e.png"],
        "binary": [f"{uri}/b.txt"],
        "bad record": [f"{uri}/c.jsonl#2", f"{uri}/f.jsonl#1"],
        "broken": [f"{uri}/d.pdf"],
    }
    assert all(skipped.message.startswith(skipped.uri) for skipped in report.skipped)
