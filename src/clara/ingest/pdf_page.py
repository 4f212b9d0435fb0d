"""One page of a PDF as PDFium sees it: runs of text in reading order with their places, and the values of form fields.

What lines they make up is ``pdf_lines``'s work. Places are turned so that the text of each line runs to the right and
its next line lies below, however the page and its text are turned.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from clara.ingest.pdf_lines import Piece, Run, add_field, lines, page_text

_HYPHENS = "\ufffe\x02"  # what PDFium makes of a hyphen at a line's end, whose line break it drops
_HIDDEN = 0x02 | 0x20  # annotation flags: hidden, no view
_PASSWORD = 1 << 13  # flag of a text field
_CHECKS = (pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON)
_VALUES = (pdfium.FPDF_FORMFIELD_TEXTFIELD, pdfium.FPDF_FORMFIELD_COMBOBOX, pdfium.FPDF_FORMFIELD_LISTBOX)


def read_page(pdf: pypdfium2.PdfDocument, number: int) -> tuple[str, bool]:
    """The text of a page, form fields included, and whether it shows anything at all.

    Line ends keep their hyphens: ``hyphens.join_lines`` needs the whole document to tell whose they are.

    Raises:
        PdfiumError: PDFium cannot read the page.
    """
    page = pdf[number]
    try:
        layer = page.get_textpage()
        try:
            found = lines(_Layer(layer, page.get_cropbox()).lines())
        finally:
            layer.close()
        for field in _fields(page):
            add_field(found, field)
        return page_text(found), bool(found) or pdfium.FPDFPage_CountObjects(page) > 0
    finally:
        page.close()


class _Layer:
    """The text layer of a page.

    What PDFium says of a character costs more than what is done with it here, so that it is asked for little: a
    baseline only where a run of one font and size begins, an angle only where a line does.
    """

    def __init__(self, layer: pypdfium2.PdfTextPage, crop: tuple[float, ...]) -> None:
        self._raw = layer.raw
        self._count = layer.count_chars()
        self._crop = crop
        self._box = pdfium.FS_RECTF()
        self._matrix = pdfium.FS_MATRIX()
        self._x, self._y = ctypes.c_double(), ctypes.c_double()
        self._turn = _Turn(0.0)

    def lines(self) -> Iterator[list[Run]]:
        """The runs between the line breaks that PDFium makes; what lies outside the visible page is left out."""
        line: list[Run] = []
        unicode, raw = pdfium.FPDFText_GetUnicode, self._raw
        for index in range(self._count):
            character = chr(unicode(raw, index))
            if character.isspace() or character == "\0":
                if character in "\r\n":
                    yield line
                    line = []
                elif line:
                    line[-1].text += " "
            else:
                self._take(index, character, line)
                if character in _HYPHENS:
                    yield line
                    line = []
        yield line

    def _take(self, index: int, character: str, line: list[Run]) -> None:
        """Add a character to the last run of a line, or begin a run with it."""
        if not line:
            self._turn = _Turn(pdfium.FPDFText_GetCharAngle(self._raw, index))
        pdfium.FPDFText_GetLooseCharBox(self._raw, index, self._box)
        box = self._box
        sides = box.left, box.bottom, box.right, box.top
        crop = self._crop
        if sides[0] >= crop[2] or sides[2] <= crop[0] or sides[1] >= crop[3] or sides[3] <= crop[1]:
            return
        left, low, right, high = self._turn.box(sides)
        character = "\ufffe" if character in _HYPHENS else character
        if line and line[-1].takes(left, low, high):
            line[-1].text += character
            line[-1].right = right
            return
        pdfium.FPDFText_GetCharOrigin(self._raw, index, self._x, self._y)
        baseline = self._turn.up(self._x.value, self._y.value)
        line.append(Run(character, left, right, low, high, baseline, self._size(index) or high - low))

    def _size(self, index: int) -> float:
        """A character's point size: of fonts with larger signs, the box is higher than the size tells."""
        pdfium.FPDFText_GetMatrix(self._raw, index, self._matrix)
        return float(pdfium.FPDFText_GetFontSize(self._raw, index)) * math.hypot(self._matrix.c, self._matrix.d)


class _Turn:
    """Turns places by the angle of a line's text, clockwise in radians."""

    def __init__(self, angle: float) -> None:
        self._cos, self._sin = round(math.cos(angle), 6), round(math.sin(angle), 6)

    def up(self, x: float, y: float) -> float:
        """How high a place lies."""
        return x * self._sin + y * self._cos

    def box(self, sides: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Left, bottom, right and top of a box."""
        if self._cos == 1:
            return sides
        x = [x * self._cos - y * self._sin for x, y in (sides[:2], sides[2:])]
        y = [self.up(*sides[:2]), self.up(*sides[2:])]
        return min(x), min(y), max(x), max(y)


def _fields(page: pypdfium2.PdfPage) -> Iterator[Piece]:
    """Values of the form fields on a page, and marks for its check boxes and radio buttons."""
    form = page.formenv
    if form is None:
        return
    for number in range(pdfium.FPDFPage_GetAnnotCount(page)):
        note = pdfium.FPDFPage_GetAnnot(page, number)
        try:
            text = _field_text(form, note)
            if text:
                box = pdfium.FS_RECTF()
                pdfium.FPDFAnnot_GetRect(note, box)
                yield Piece(text, box.left, box.right, (box.bottom + box.top) / 2)
        finally:
            pdfium.FPDFPage_CloseAnnot(note)


def _field_text(form: Any, note: Any) -> str:  # noqa: ANN401 - PDFium's handles have no types
    if pdfium.FPDFAnnot_GetSubtype(note) != pdfium.FPDF_ANNOT_WIDGET or pdfium.FPDFAnnot_GetFlags(note) & _HIDDEN:
        return ""
    kind = pdfium.FPDFAnnot_GetFormFieldType(form, note)
    if kind in _CHECKS:
        return "☒" if pdfium.FPDFAnnot_IsChecked(form, note) else "☐"
    if kind not in _VALUES or pdfium.FPDFAnnot_GetFormFieldFlags(form, note) & _PASSWORD:
        return ""
    length = pdfium.FPDFAnnot_GetFormFieldValue(form, note, None, 0)
    value = (pdfium.FPDF_WCHAR * (length // 2))()
    pdfium.FPDFAnnot_GetFormFieldValue(form, note, value, length)
    return " ".join(bytes(value).decode("utf-16-le", "replace").rstrip("\0").split())
