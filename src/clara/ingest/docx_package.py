"""The parts of a Word file by python-docx: opens what that refuses, and hands out parts by their relationships.

What a part says is ``docx_text``'s work.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

import docx
from docx.opc.constants import CONTENT_TYPE, RELATIONSHIP_TYPE
from docx.oxml import parse_xml
from docx.oxml.ns import qn

# Strict Open XML has other names for the same elements: purl.oclc.org/ooxml/wordprocessingml/main for
# schemas.openxmlformats.org/wordprocessingml/2006/main.
_STRICT = b"http://purl.oclc.org/ooxml/"
_STRICT_NAME = re.compile(rb"http://purl\.oclc\.org/ooxml/(\w+)/")
_TRANSITIONAL_NAME = rb"http://schemas.openxmlformats.org/\1/2006/"
# Documents with macros and templates hold the same parts; the macros are not looked at.
_OTHER_MAIN_TYPES = re.compile(
    rb"application/vnd\.ms-word\.(?:document|template)\.macroEnabled(?:Template)?\.main\+xml"
    rb"|application/vnd\.openxmlformats-officedocument\.wordprocessingml\.template\.main\+xml",
    re.IGNORECASE,
)
_MAIN_TYPE = CONTENT_TYPE.WML_DOCUMENT_MAIN.encode()
_TYPES = "[Content_Types].xml"


class Package:
    """An opened Word file.

    Args:
        data: the file.

    Raises:
        Exception: whatever python-docx raises for a broken file.
    """

    def __init__(self, data: bytes) -> None:
        self._source = docx.Document(io.BytesIO(_as_document(data)))
        self._main = self._source.part

    @property
    def body(self) -> Any:  # noqa: ANN401 - lxml elements have no type here
        """The body's element."""
        return self._source.element.body

    @property
    def styles(self) -> Any:  # noqa: ANN401
        """The element of the styles."""
        return self._source.styles.element

    def stated_title(self) -> str:
        """The title among the file's properties, or the empty string."""
        # Where a package has no properties, python-docx makes some up, with the title "Word Document".
        parts = {relation.reltype for relation in self._main.package.rels.values()}
        return self._source.core_properties.title.strip() if RELATIONSHIP_TYPE.CORE_PROPERTIES in parts else ""

    def styled_title(self) -> str:
        """The first paragraph if its style is "Title", or the empty string."""
        for paragraph in self._source.paragraphs:
            if paragraph.text.strip():  # only the first paragraph that holds text can be the document's title
                style = paragraph.style
                return paragraph.text if style is not None and style.name == "Title" else ""
        return ""

    def root(self, kind: str) -> Any:  # noqa: ANN401
        """The element of the part of a kind (``RELATIONSHIP_TYPE``), or None."""
        found = (rel for rel in self._main.rels.values() if rel.reltype == kind and not rel.is_external)
        relation = next(found, None)
        return None if relation is None else _element(relation.target_part)

    def headers_and_footers(self) -> tuple[list[Any], list[Any]]:
        """The elements of the headers and of the footers that sections refer to, each part once."""
        return self._referred(qn("w:headerReference")), self._referred(qn("w:footerReference"))

    def imported(self, reference: str) -> tuple[str, bytes]:
        """Content type and bytes of a part that the body takes in (``w:altChunk``); both empty if it is not there."""
        relation = self._main.rels.get(reference)
        if relation is None or relation.is_external:
            return "", b""
        return relation.target_part.content_type, relation.target_part.blob

    def _referred(self, tag: str) -> list[Any]:
        references = dict.fromkeys(element.get(qn("r:id")) for element in self.body.iter(tag))
        relations = (self._main.rels.get(reference) for reference in references if reference)
        return [_element(relation.target_part) for relation in relations if relation and not relation.is_external]


def _element(part: Any) -> Any:  # noqa: ANN401 - python-docx is untyped here
    """The root of a part; python-docx has parsed some kinds already."""
    element = getattr(part, "element", None)
    return parse_xml(part.blob) if element is None else element


def _as_document(data: bytes) -> bytes:
    """The file as python-docx wants it: in Transitional names, and called a document."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        types = archive.read(_TYPES) if _TYPES in archive.namelist() else b""
        relations = archive.read("_rels/.rels") if "_rels/.rels" in archive.namelist() else b""
        strict = _STRICT in relations
        if not strict and not _OTHER_MAIN_TYPES.search(types):
            return data
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as copy:
            for entry in archive.infolist():
                part = archive.read(entry)
                if entry.filename == _TYPES:
                    part = _OTHER_MAIN_TYPES.sub(_MAIN_TYPE, part)
                elif strict and entry.filename.lower().endswith((".xml", ".rels")):
                    part = _STRICT_NAME.sub(_TRANSITIONAL_NAME, part)
                copy.writestr(entry.filename, part)
    return file.getvalue()
