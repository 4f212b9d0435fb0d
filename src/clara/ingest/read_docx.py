"""Word files: header, body and footer, in that order.

Opening is ``docx_package``'s work, what a part says ``docx_text``'s.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from typing import Any

from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml.ns import qn

from clara.errors import DocumentError
from clara.ingest.decode import decode_text
from clara.ingest.document import Extract
from clara.ingest.docx_package import Package
from clara.ingest.docx_text import Block, Story
from clara.ingest.report import fault
from clara.records import Heading

_OLD_OFFICE_FILE = bytes.fromhex("D0CF11E0A1B11AE1")  # a .doc, or the container of an encrypted .docx
_MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_TAKEN_IN_DEEPEST = 2  # files within files within the document


def extract_docx(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a Word file; the title among its properties is its title, else a paragraph in the style "Title".

    A table gives one line for each row, cells divided by ``|``. Headings have the marks of Markdown, list items and
    clauses their numbers, notes stand behind the paragraph that refers to them as ``[1] …``. Each header stands once
    before the body, each footer once behind it. What a text cannot give (pictures, comments) is counted.

    Raises:
        DocumentError: an old or encrypted file, or one that unpacks to more than ``max_bytes``.
    """
    return _extract(data, uri, max_bytes, depth=0)


def _extract(data: bytes, uri: str, max_bytes: int, *, depth: int) -> Extract:
    if data.startswith(_OLD_OFFICE_FILE):
        raise fault(uri, "encrypted", "is encrypted, or a .doc by another name; save it as .docx without a password")
    _check_size(data, uri, max_bytes)
    package = Package(data)

    def take_in(reference: str) -> str:
        kind, part = package.imported(reference)
        text = _taken_in(kind, part, uri, max_bytes, depth + 1)
        story.left_out["parts taken in from other files"] += not text
        return text

    notes = {
        qn("w:footnoteReference"): package.root(RELATIONSHIP_TYPE.FOOTNOTES),
        qn("w:endnoteReference"): package.root(RELATIONSHIP_TYPE.ENDNOTES),
    }
    story = Story(package.styles, package.root(RELATIONSHIP_TYPE.NUMBERING), notes, take_in)
    headers, footers = package.headers_and_footers()
    blocks = [*_once(story, headers), *story.blocks(package.body), *_once(story, footers)]
    text, headings = _joined(blocks)
    title = package.stated_title() or package.styled_title()
    return Extract(
        title,
        text,
        {"media_type": _MEDIA_TYPE},
        headings=headings,
        left_out={k: n for k, n in story.left_out.items() if n},
    )


def _check_size(data: bytes, uri: str, max_bytes: int) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max_bytes:
        raise fault(
            uri,
            "too large",
            f"unpacks to {unpacked / 2**20:,.0f} MB, more than the limit of {max_bytes / 2**20:,.0f} MB; "
            "raise it with --max-file-mb",
        )


def _once(story: Story, parts: Iterable[Any]) -> list[Block]:
    """The paragraphs of headers or footers; sections repeat them."""
    found = (Block(block.text) for part in parts for block in story.blocks(part))
    return list(dict.fromkeys(found))


def _joined(blocks: Iterable[Block]) -> tuple[str, tuple[Heading, ...]]:
    """The blocks with a blank line between them, and where the headings stand."""
    parts: list[str] = []
    headings: list[Heading] = []
    length = 0
    for block in blocks:
        if not block.text.strip():
            continue
        if block.level:
            headings.append(Heading(length, " ".join(block.text.split())))
        parts.append(block.written())
        length += len(parts[-1]) + 2
    return "\n\n".join(parts), tuple(headings)


def _taken_in(kind: str, part: bytes, uri: str, max_bytes: int, depth: int) -> str:
    """The text of a file that a document takes in (``w:altChunk``); empty where its format is not read."""
    try:
        if kind in ("text/html", "application/xhtml+xml"):
            from clara.ingest.read_html import extract_html  # noqa: PLC0415 - as in ``read``

            return extract_html(part, uri).text
        if kind.startswith("text/plain"):
            return decode_text(part, uri)
        if "wordprocessingml" in kind and depth <= _TAKEN_IN_DEEPEST:
            return _extract(part, uri, max_bytes, depth=depth).text
    except DocumentError:
        return ""
    return ""
