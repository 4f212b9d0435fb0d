"""PDF files, by PDFium: the text of each page and the values of form fields; by ``ocr`` what scanned pages show.

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

_BY_OCR = "page pictures, whose text OCR read"
"""Kind of what a document leaves out: its text is a reading of a picture, which may be wrong."""

_SCANNED = "so it is scanned; --ocr reads it (pip install 'clara-rag[ocr]'), or run ocrmypdf on it first"

_LOCKED = (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY)


@dataclass(slots=True)
class _Pages:
    """The pages of a file.

    Attributes:
        texts: their texts; empty for a page without.
        pictures: numbers, from 1, of those that show something and hold no text.
        recognised: numbers of those whose text is OCR's.
        skipped: those that cannot be read.
    """

    texts: list[str] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    recognised: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def extract_pdf(data: bytes, uri: str, *, ocr: bool = False) -> Extract:
    """Read a PDF: the texts of its pages, a blank line between them.

    It gives no title: what the files state there is mostly their producer's file name. Characters without a meaning
    (NUL) are dropped. Pages that cannot be read, or show pictures alone, are skipped and named.

    Args:
        data: the file.
        uri: its uri.
        ocr: read pages that show pictures alone by OCR; the metadata and the report say which.

    Raises:
        DocumentError: broken, encrypted with a password, or without any text (scanned).
    """
    with _PDFIUM:
        pages = _read_pages(data, uri, ocr=ocr)
    texts = join_lines(pages.texts)
    if not any(character.isalnum() for text in texts for character in text):
        raise fault(
            uri, "no text", f"{len(texts)} page(s) without text, " + ("in which OCR finds none" if ocr else _SCANNED)
        )
    metadata = {"media_type": "application/pdf", "pages": str(len(texts))}
    empty = sum(not text for text in texts) - len(pages.skipped)
    if empty:
        metadata["pages_without_text"] = str(empty)
    if pages.pictures:
        pages.skipped.append(_scanned(uri, pages.pictures, len(texts)))
    text, starts = _joined(texts)
    left_out = {}
    if pages.recognised:
        metadata["pages_by_ocr"] = _ranges(pages.recognised)
        left_out[_BY_OCR] = len(pages.recognised)
    return Extract(
        title="", text=text, metadata=metadata, skipped=tuple(pages.skipped), pages=starts, left_out=left_out
    )


def _scanned(uri: str, numbers: list[int], count: int) -> Skipped:
    named = _ranges(numbers)
    return skip(
        f"{uri}#page={named}",
        "no text",
        f"{len(numbers)} of {count} pages hold no text: scanned? --ocr reads them (pip install 'clara-rag[ocr]')",
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


def _read_pages(data: bytes, uri: str, *, ocr: bool) -> _Pages:
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
            if shows and not any(map(str.isalnum, text)):
                text = _seen(pdf, number, pages) if ocr else text
                if not text:
                    pages.pictures.append(number)
            pages.texts.append(text)
    finally:
        pdf.close()
    return pages


def _seen(pdf: pypdfium2.PdfDocument, number: int, pages: _Pages) -> str:
    """What OCR reads on a page; nothing where it is a picture without text."""
    from clara.ingest.ocr import DOTS_PER_INCH, recognised  # noqa: PLC0415 - an optional package behind it

    page = pdf[number - 1]
    text = recognised(page.render(scale=DOTS_PER_INCH / 72, rev_byteorder=True).to_numpy()[:, :, :3])
    if text:
        pages.recognised.append(number)
    return text
