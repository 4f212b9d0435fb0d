"""Documents that are built to fill memory or disk, or to read other files: none does, and the run goes on."""

from __future__ import annotations

import io
import os
import time
import zipfile
from pathlib import Path

import pytest
import rooms  # noqa: F401 - sets the path of the next ones
from fuzz import packed
from odt_files import make_odt
from pdf_files import make_form_bomb, make_pdf

from clara.ingest import Reader, ReadLimits, find_files

SECRET = "open sesame"  # noqa: S105 - a word that no document may show
LAUGHS = "<!DOCTYPE a [<!ENTITY l0 'ha'>" + "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 10))
BODY = "<w:document xmlns:w='http://schemas.openxmlformats.org/wordprocessingml/2006/main'><w:body><w:p><w:r><w:t>"
TYPES = b"""<Types xmlns='http://schemas.openxmlformats.org/package/2006/content-types'><Default Extension='rels'
ContentType='application/vnd.openxmlformats-package.relationships+xml'/><Override PartName='/word/document.xml'
ContentType='application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml'/></Types>"""
RELATIONS = b"""<Relationships xmlns='http://schemas.openxmlformats.org/package/2006/relationships'>
<Relationship Id='r' Type='http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument'
Target='%s'/></Relationships>"""
EPUB = b"<container><rootfiles><rootfile full-path='%s'/></rootfiles></container>"
PACKAGE = b"""<package><manifest><item id='c' href='%s' media-type='application/xhtml+xml'/></manifest><spine>
<itemref idref='c'/></spine></package>"""


def _docx(document: str, target: str = "word/document.xml") -> bytes:
    parts = {
        "[Content_Types].xml": TYPES,
        "_rels/.rels": RELATIONS % target.encode(),
        "word/document.xml": document.encode(),
    }
    return packed(parts)


def _laughs(before: str, after: str, root: str) -> str:
    return f"{LAUGHS}]>".replace("DOCTYPE a", f"DOCTYPE {root}") + before + "&l9;" + after


def _outside(secret: Path, root: str, before: str, after: str) -> str:
    return f"<!DOCTYPE {root} [<!ENTITY x SYSTEM 'file://{secret}'>]>{before}&x;{after}"


def _grown(size: int) -> bytes:
    """A package whose one part unpacks to a thousand times its size."""
    data = packed({})
    path = Path("/tmp") / f"grown-{os.getpid()}.zip"  # noqa: S108 - removed below
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", TYPES)
        archive.writestr("_rels/.rels", RELATIONS % b"word/document.xml")
        archive.writestr("word/document.xml", BODY + "a" * size)
    data = path.read_bytes()
    path.unlink()
    return data


def _lying(data: bytes) -> bytes:
    """The same with sizes in its directory that say it is small."""
    made = bytearray(data)
    place = 0
    while (place := made.find(b"PK\x01\x02", place)) >= 0:
        made[place + 24 : place + 28] = (100).to_bytes(4, "little")
        place += 4
    return bytes(made)


def _laughing_odt() -> bytes:
    """An ODT file whose text is one entity that grows."""
    with zipfile.ZipFile(io.BytesIO(make_odt("<text:p>LAUGH</text:p>"))) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    root, _, content = parts["content.xml"].decode().rpartition("?>")
    declared = f"{root}?>" if root else ""
    doctype = f"{LAUGHS}]>".replace("DOCTYPE a", "DOCTYPE office:document-content")
    parts["content.xml"] = (declared + doctype + content.replace("LAUGH", "&l9;")).encode()
    return packed(parts)


def bombs(folder: Path, secret: Path) -> None:
    """Write one file of each kind."""
    end = "</w:t></w:r></w:p></w:body></w:document>"
    html = "<html><body><p>", "</p></body></html>"
    grown = _grown(300_000_000)
    files: dict[str, bytes] = {
        "forms.pdf": make_form_bomb(9),
        "grown.docx": grown,
        "lying.docx": _lying(grown),
        "grown.odt": grown,
        "grown.epub": grown,
        "grown.xlsx": grown,
        "grown.pptx": grown,
        "laughs.docx": _docx(_laughs(BODY, end, "w:document")),
        "laughs.xhtml": _laughs(*html, "html").encode(),
        "laughs.html": _laughs(*html, "html").encode(),
        "laughs.epub": packed(
            {
                "META-INF/container.xml": EPUB % b"a.opf",
                "a.opf": PACKAGE % b"c.xhtml",
                "c.xhtml": _laughs(*html, "html").encode(),
            }
        ),
        "outside.docx": _docx(_outside(secret, "w:document", BODY, end)),
        "outside.xhtml": _outside(secret, "html", *html).encode(),
        "outside.html": f"<p>x</p><iframe src='file://{secret}'></iframe><object data='{secret}'></object>".encode(),
        "traversal.docx": _docx(BODY + "x" + end, target=f"../../../../..{secret}"),
        "traversal.epub": packed(
            {"META-INF/container.xml": EPUB % b"a.opf", "a.opf": PACKAGE % f"../../../../..{secret}".encode()}
        ),
        "traversal2.epub": packed({"META-INF/container.xml": EPUB % f"../../../../..{secret}".encode()}),
        "nested.html": b"<div>" * 200_000 + b"x",
        "attributes.html": b"<p " + b" ".join(b"a%d=1" % n for n in range(100_000)) + b">x",
        "nested.rst": b"".join(b" " * n + b"* x\n\n" for n in range(2000)),
        "include.rst": f".. include:: {secret}\n\n.. csv-table::\n   :file: {secret}\n".encode(),
        "nested.jsonl": b'{"text": ' + b"[" * 200_000,
        "nested.eml": b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(500)),
    }
    files["laughs.odt"] = _laughing_odt()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "link.txt").symlink_to("link.txt")
    (folder / "device.txt").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "good.pdf").write_bytes(make_pdf([["Bees fly."]]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    made = tmp_path / "docs"
    made.mkdir()
    bombs(made, secret)
    return made


def test_no_bomb_goes_off(folder: Path) -> None:
    started = time.monotonic()
    limits = ReadLimits(memory_mb=512, seconds=10)
    with Reader(find_files([folder]), limits=limits) as reader:
        documents = list(reader.documents())
        report = reader.report()
    texts = {Path(document.uri).name: document.text for document in documents}
    assert texts["good.pdf"] == "Bees fly.", "the run goes on"
    assert [name for name, text in texts.items() if SECRET in text or "hahaha" in text] == []
    for name, text in texts.items():
        assert len(text) <= max(1000, (folder / name).stat().st_size), name
    named = {Path(skipped.uri.partition("#")[0]).name: skipped.reason for skipped in report.skipped}
    for name in ("forms.pdf", "grown.docx", "grown.odt", "grown.epub", "grown.xlsx", "grown.pptx", "attributes.html"):
        assert name in named, name
    assert len(texts) + len(named) >= 26, "each is read or named"
    assert time.monotonic() - started < 120
