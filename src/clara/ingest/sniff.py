"""What a file without a suffix is, by its first bytes and, for packages, by the names of their parts."""

from __future__ import annotations

import io
import re
import zipfile

_ZIP, _PDF = b"PK\x03\x04", b"%PDF-"
_PDF_WITHIN = 1024  # bytes: PDF readers look as far for the mark
_PARTS = {"word/document.xml": ".docx", "ppt/presentation.xml": ".pptx", "xl/workbook.xml": ".xlsx"}
_MEDIA_TYPES = {b"application/epub+zip": ".epub", b"application/vnd.oasis.opendocument.text": ".odt"}
_WEB_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|<\?xml[^>]*>|<!--.*?-->)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S
)
_HEADER = re.compile(
    rb"^(Received|Return-Path|Message-ID|MIME-Version|From|To|Date|Subject): ", re.IGNORECASE | re.MULTILINE
)
_MESSAGE_WITHIN = 1 << 13  # bytes
_MESSAGE_HEADERS = 3  # of them; one at least that only mail programs write
_OF_PROGRAMS = frozenset([b"received", b"return-path", b"message-id", b"mime-version"])


def suffix_of(data: bytes) -> str:
    """The suffix that the file should have; the empty string where its content is none of the formats'."""
    if data.startswith(_ZIP):
        return _package_suffix(data)
    if _PDF in data[:_PDF_WITHIN]:
        return ".pdf"
    head = data[:_MESSAGE_WITHIN]
    if _WEB_PAGE.match(head):
        return ".html"
    headers = {name.lower() for name in _HEADER.findall(head.partition(b"\n\n")[0].partition(b"\r\n\r\n")[0])}
    if len(headers) >= _MESSAGE_HEADERS and headers & _OF_PROGRAMS:
        return ".eml"
    return ""


def _package_suffix(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            stated = archive.open("mimetype").read(100) if "mimetype" in names else b""
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return ""
    return next((suffix for name, suffix in _PARTS.items() if name in names), _MEDIA_TYPES.get(stated.strip(), ""))
