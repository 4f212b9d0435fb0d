"""Word files: paragraphs and tables of the body, in order, by python-docx.

Headers, footers, footnotes and comments are not read. The body is walked by its XML, because python-docx's own
``paragraph.text`` leaves out tracked insertions, form fields, equations and symbols. What the last two say is
``docx_signs``'s work.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import docx
from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml.ns import qn

from clara.ingest.document import Extract
from clara.ingest.docx_signs import equation_text, symbol_text
from clara.ingest.report import fault

_OLD_OFFICE_FILE = bytes.fromhex("D0CF11E0A1B11AE1")  # a .doc, or the container of an encrypted .docx

_PARAGRAPH, _TABLE, _ROW, _CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
_TEXT_TAGS = {
    qn("w:tab"): "\t",
    qn("w:br"): "\n",
    qn("w:cr"): "\n",
    qn("w:noBreakHyphen"): "-",
}
_TEXT, _SYMBOL, _EQUATION = qn("w:t"), qn("w:sym"), qn("m:oMath")
# Deleted text is no longer the document's; a fallback repeats, for old programs, what stands beside it; properties
# hold tab stops, which have the tag of a tab.
_PASSED_OVER = frozenset(
    [
        qn("w:del"),
        qn("w:moveFrom"),
        qn("w:pPr"),
        qn("w:rPr"),
        "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
    ]
)


def extract_docx(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a Word file; the title among its properties is its title, else a paragraph in the style "Title".

    A table gives one line for each row, cells divided by ``|``.

    Raises:
        DocumentError: an old or encrypted file, or one that unpacks to more than ``max_bytes``.
    """
    if data.startswith(_OLD_OFFICE_FILE):
        raise fault(uri, "encrypted", "is encrypted, or a .doc by another name; save it as .docx without a password")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max_bytes:
        raise fault(
            uri,
            "too large",
            f"unpacks to {unpacked / 2**20:,.0f} MB, more than the limit of {max_bytes / 2**20:,.0f} MB; "
            "raise it with --max-file-mb",
        )
    source = docx.Document(io.BytesIO(data))
    blocks = [block for block in _blocks(source.element.body) if block.strip()]
    title = _stated_title(source) or _styled_title(source)
    media_type = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    return Extract(title=title, text="\n\n".join(blocks), metadata={"media_type": media_type})


def _stated_title(source: docx.document.Document) -> str:
    # Where a package has no properties, python-docx makes some up, with the title "Word Document".
    parts = {relation.reltype for relation in source.part.package.rels.values()}
    return source.core_properties.title.strip() if RELATIONSHIP_TYPE.CORE_PROPERTIES in parts else ""


def _styled_title(source: docx.document.Document) -> str:
    for paragraph in source.paragraphs:
        if paragraph.text.strip():  # only the first paragraph that holds text can be the document's title
            style = paragraph.style
            return paragraph.text if style is not None and style.name == "Title" else ""
    return ""


def _blocks(parent: Any) -> Iterator[str]:  # noqa: ANN401 - lxml elements have no type here
    """The text of each paragraph and table under ``parent``, content controls and the like looked into."""
    for child in parent:
        if child.tag == _PARAGRAPH:
            yield from _paragraph(child)
        elif child.tag == _TABLE:
            yield "\n".join(_row(row) for row in child.iter(_ROW) if _owner(row, _TABLE) is child)
        elif child.tag == _EQUATION:
            yield equation_text(child)
        elif child.tag not in _PASSED_OVER:
            yield from _blocks(child)


def _row(row: Any) -> str:  # noqa: ANN401
    cells = (cell for cell in row.iter(_CELL) if _owner(cell, _ROW) is row)
    return " | ".join(" ".join(" ".join(_blocks(cell)).split()) for cell in cells)


def _owner(element: Any, tag: str) -> Any:  # noqa: ANN401
    """The nearest enclosing element with that tag: rows of a table inside a cell are not the outer table's."""
    return next(element.iterancestors(tag))


def _paragraph(paragraph: Any) -> list[str]:  # noqa: ANN401
    """A paragraph's own text, then the paragraphs of the text boxes that hang on it."""
    own: list[str] = []
    boxes: list[str] = []
    pending = list(reversed(paragraph))
    while pending:
        element = pending.pop()
        if element.tag in _PASSED_OVER:
            continue
        if element.tag == _TEXT:
            own.append(element.text or "")
        elif element.tag in _TEXT_TAGS:
            own.append(_TEXT_TAGS[element.tag])
        elif element.tag == _SYMBOL:
            own.append(symbol_text(element))
        elif element.tag == _EQUATION:
            own.append(equation_text(element))
        elif element.tag in (_PARAGRAPH, _TABLE):
            boxes.extend(_blocks([element]))
        else:
            pending.extend(reversed(element))
    return ["".join(own), *boxes]
