"""PDF files, by PDFium: the text layer of each page. Knows no OCR: a scanned page has no text here."""

from __future__ import annotations

import re
import threading

import pypdfium2
import pypdfium2.raw

from clara.ingest.document import Extract
from clara.ingest.report import Skipped, fault, skip

# PDFium is not safe to call from two threads at once, and a server reads uploads in several.
_PDFIUM = threading.Lock()

_LOCKED = (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY)

# PDFium writes U+FFFE or U+0002 for a hyphen that breaks a word at a line's end: the word is joined again.
_BROKEN_WORD = re.compile(r"[\ufffe\x02](?:\r?\n)?")


def extract_pdf(data: bytes, uri: str) -> Extract:
    """Read a PDF: the texts of its pages, a blank line between them.

    It gives no title: what the files state there is mostly their producer's file name. Characters without a meaning
    (NUL) are dropped. Pages that cannot be read are skipped and named.

    Raises:
        DocumentError: broken, encrypted with a password, or without any text (scanned).
    """
    with _PDFIUM:
        pages, skipped = _page_texts(data, uri)
    if not any(character.isalnum() for text in pages for character in text):
        raise fault(
            uri, "no text", f"{len(pages)} page(s) without text, so it is scanned; run OCR on it first (e.g. ocrmypdf)"
        )
    empty = sum(not text for text in pages) - len(skipped)
    metadata = {"media_type": "application/pdf", "pages": str(len(pages))}
    if empty:
        metadata["pages_without_text"] = str(empty)
    text, starts = _joined(pages)
    return Extract(title="", text=text, metadata=metadata, skipped=tuple(skipped), pages=starts)


def _joined(pages: list[str]) -> tuple[str, tuple[int, ...]]:
    """The pages' texts with a blank line between them, and where each page begins."""
    parts: list[str] = []
    starts: list[int] = []
    length = 0
    for page in pages:
        starts.append(length)
        if page:
            parts.append(page)
            length += len(page) + 2
    return "\n\n".join(parts), tuple(starts)


def _page_texts(data: bytes, uri: str) -> tuple[list[str], list[Skipped]]:
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        # The code alone does not tell: PDFium may leave that of the file before.
        if error.err_code in _LOCKED and b"/Encrypt" in data:
            raise fault(uri, "encrypted", "needs a password; save a copy without one") from None
        raise fault(uri, "broken", "is not a readable PDF (PDFium refuses it); save or download it again") from None
    texts: list[str] = []
    skipped: list[Skipped] = []
    try:
        for number in range(len(pdf)):
            try:
                texts.append(_page_text(pdf, number))
            except pypdfium2.PdfiumError:
                texts.append("")
                page = f"{uri}#page={number + 1}"
                skipped.append(skip(page, "broken", "this page cannot be read; save the PDF again"))
    finally:
        pdf.close()
    return texts, skipped


def _page_text(pdf: pypdfium2.PdfDocument, number: int) -> str:
    page = pdf[number]
    try:
        layer = page.get_textpage()
        try:
            text = str(layer.get_text_bounded())
        finally:
            layer.close()
    finally:
        page.close()
    return _BROKEN_WORD.sub("", text).replace("\0", "").replace("\r\n", "\n").strip()
