"""PDF files, by PDFium: the text of each page and the values of form fields. Knows no OCR: a scanned page has no text.

A page is ``pdf_page``'s work, the words that lines break are ``hyphens``'s.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pypdfium2
import pypdfium2.raw

from clara.ingest.document import Extract
from clara.ingest.hyphens import join_lines
from clara.ingest.pdf_page import read_page
from clara.ingest.report import Skipped, fault, skip

# PDFium is not safe to call from two threads at once, and ``read_file`` may be called in several.
_PDFIUM = threading.Lock()

_LOCKED = (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY)


@dataclass(slots=True)
class _Pages:
    """The pages of a file.

    Attributes:
        texts: their texts; empty for a page without.
        pictures: numbers, from 1, of those that show something and hold no text.
        skipped: those that cannot be read.
    """

    texts: list[str] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def extract_pdf(data: bytes, uri: str) -> Extract:
    """Read a PDF: the texts of its pages, a blank line between them.

    It gives no title: what the files state there is mostly their producer's file name. Characters without a meaning
    (NUL) are dropped. Pages that cannot be read, or show pictures alone, are skipped and named.

    Raises:
        DocumentError: broken, encrypted with a password, or without any text (scanned).
    """
    with _PDFIUM:
        pages = _read_pages(data, uri)
    texts = join_lines(pages.texts)
    if not any(character.isalnum() for text in texts for character in text):
        raise fault(
            uri, "no text", f"{len(texts)} page(s) without text, so it is scanned; run OCR on it first (e.g. ocrmypdf)"
        )
    metadata = {"media_type": "application/pdf", "pages": str(len(texts))}
    empty = sum(not text for text in texts) - len(pages.skipped)
    if empty:
        metadata["pages_without_text"] = str(empty)
    if pages.pictures:
        pages.skipped.append(_scanned(uri, pages.pictures, len(texts)))
    text, starts = _joined(texts)
    return Extract(title="", text=text, metadata=metadata, skipped=tuple(pages.skipped), pages=starts)


def _scanned(uri: str, numbers: list[int], count: int) -> Skipped:
    named = _ranges(numbers)
    return skip(
        f"{uri}#page={named}",
        "no text",
        f"{len(numbers)} of {count} pages hold no text: scanned? run OCR on the file (e.g. ocrmypdf --skip-text)",
    )


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as people write them: 2-5,7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


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
    text = "\n\n".join(parts)
    return text, tuple(min(start, len(text)) for start in starts)


def _read_pages(data: bytes, uri: str) -> _Pages:
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        # The code alone does not tell: PDFium may leave that of the file before.
        if error.err_code in _LOCKED and b"/Encrypt" in data:
            raise fault(uri, "encrypted", "needs a password; save a copy without one") from None
        raise fault(uri, "broken", "is not a readable PDF (PDFium refuses it); save or download it again") from None
    pages = _Pages()
    try:
        pdf.init_forms()
        for number in range(1, len(pdf) + 1):
            try:
                text, shows = read_page(pdf, number - 1)
            except pypdfium2.PdfiumError:
                text, shows = "", False
                pages.skipped.append(
                    skip(f"{uri}#page={number}", "broken", "this page cannot be read; save the PDF again")
                )
            pages.texts.append(text)
            if shows and not any(map(str.isalnum, text)):
                pages.pictures.append(number)
    finally:
        pdf.close()
    return pages
