"""PDF files, by PDFium: the text of each page and the values of form fields; by ``ocr`` what scanned pages show.

PDFium gives runs of text with their places, turned so that the text of each line runs to the right and its next line
lies below, however the page and its text are turned. They become lines: superscripts are told, lines joined that PDFium
broke at one, columns drawn row by row put one after the other. The words that lines break are ``clean``'s work.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

import pypdfium2
import pypdfium2.raw as pdfium

from clara.ingest.clean import join_lines
from clara.ingest.document import Element, Extract, Skipped, TextParts, fault, skip
from clara.ingest.pages import headings_on, page_ranges, without_running_lines
from clara.ingest.scripts import fractions, subscript, superscript, with_accent
from clara.records import Heading

# All in sizes of the text around.
_SMALL = 0.85  # size of a superscript at most
_RAISED = (0.1, 0.75)  # by how much its baseline lies higher, or a subscript's lower
_LOWERED = (-0.6, -0.03)
_APART = 0.2  # rise or fall at least of a script as large as the text around, which touches it
_LONGEST_SCRIPT = 12  # characters
_SCRIPT = re.compile(r"(?=.*[\w+\-−*†‡§¶™®])\S+")
_BASE = re.compile(r"[\w)\].,;:!?}\"'”’»%°′″/⁄]\Z")  # what a script stands beside
_LONGEST_RUN = 500  # characters: a longer one, of a file made for it, would be copied at every character
_LEVEL = 0.15  # baselines of one line differ by less
_TOUCHES = 0.5  # gap between a word and its superscript at most
_BACKWARDS = -0.5  # overlap of two glyphs of a line at most
_SAME = 0.04  # by how much the edges of one font at one size differ at most
_SAME_LINE = 2.0  # gap at most between what PDFium calls two lines and the eye one
_WORD_GAP = 0.2  # a gap as wide as a space
_WIDE_GAP = 1.0  # a gap that no space makes
_NO_GAP = 0.03  # a gap that nobody sees, though the file has a space there
_UNSPACED = "\x1f"  # a gap as wide as a space without one
_SPACED_OUT = 0.25  # share of a run's characters behind such gaps at least where letters are set apart
_FULL_WIDTH = "\u2e80"  # from here on scripts without spaces between words
_GAP_TEXT = "   "  # which ``clean`` makes one
# Columns: least lines with text on both sides of the gutter, least words a line on each side, and least share of lines
# that go on in the middle of a sentence. A table's cells begin with capitals and digits.
_LEADING = 2.5  # from line to line at most
_LEAST_ROWS = 3
_LEAST_WORDS = 3
_LEAST_PROSE = 0.25
_OVERLAP = 0.15  # of a letter and its accent at least
_HYPHENS = "\ufffe\x02"  # PDFium's for a hyphen at a line's end, whose line break it drops
_HIDDEN = 0x02 | 0x20  # annotation flags: hidden, no view
_PASSWORD = 1 << 13  # flag of a text field
_CHECKS = (pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON)
_VALUES = (pdfium.FPDF_FORMFIELD_TEXTFIELD, pdfium.FPDF_FORMFIELD_COMBOBOX, pdfium.FPDF_FORMFIELD_LISTBOX)

# PDFium is not safe to call from two threads at once, and ``read_file`` may be called in several.
_PDFIUM = threading.Lock()
# Kind of what a document leaves out: its text is a reading of a picture, which may be wrong.
_BY_OCR = "page pictures, whose text OCR read"
_SCANNED = (
    "so it is scanned; run ocrmypdf on it first, or read it with clara index --ocr (pip install 'clara-rag[ocr]')"
)
_LOCKED = (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY)


@dataclass(slots=True)
class _Run:
    """Characters of one font and size side by side; ``bottom`` and ``top`` are the edges of their font's line.

    A space at the end of ``text`` stands behind it. ``size`` is in points as the page shows them.
    """

    text: str
    left: float
    right: float
    bottom: float
    top: float
    baseline: float
    size: float

    def takes(self, left: float, bottom: float, top: float) -> bool:
        """True if a character with these edges goes on with the run."""
        most = _SAME * self.size
        if abs(bottom - self.bottom) > most or abs(top - self.top) > most or len(self.text) >= _LONGEST_RUN:
            return False
        return _BACKWARDS * self.size < left - self.right < _WIDE_GAP * self.size


@dataclass(frozen=True, slots=True)
class _LinePart:
    """A stretch of a line without wide gaps; of a form field, ``baseline`` is its middle."""

    text: str
    left: float
    right: float
    baseline: float


@dataclass(slots=True)
class _Line:
    """A line of a page, its pieces in reading order."""

    pieces: list[_LinePart]
    baseline: float
    size: float


def _page_lines(found: Iterable[list[_Run]]) -> list[_Line]:
    """Lines of text from the runs between PDFium's line breaks."""
    result = []
    for line in _mended(found):
        runs = list(_from_right_to_left(line))
        main = _main(runs)
        pieces = [piece for part in _split_at_gaps(runs) if (piece := _piece(part)).text]
        if pieces:
            result.append(_Line(pieces, main.baseline, main.size))
    return result


def _add_field(found: list[_Line], field: _LinePart) -> None:
    """Put a form field's value where the page shows it: into the line beside it, or as a line of its own."""
    beside = [line for line in found if -0.5 * line.size < field.baseline - line.baseline < line.size]
    if not beside:
        above = [number for number, line in enumerate(found) if line.baseline > field.baseline]
        found.insert(above[-1] + 1 if above else 0, _Line([field], field.baseline, 1.0))
        return
    line = min(beside, key=lambda line: min(abs(piece.right - field.left) for piece in line.pieces))
    before = sum(piece.left < field.left for piece in line.pieces)
    line.pieces.insert(before, field)


def _page_text(found: Sequence[_Line]) -> str:
    """The page's lines, columns that were drawn row by row one after the other."""
    rows: list[str] = []
    start = 0
    while start < len(found):
        stop, gutter = _columns(found, start)
        if stop > start:
            block = found[start:stop]
            for right in (False, True):
                rows += [piece.text for line in block for piece in line.pieces if (piece.left > gutter) is right]
            start = stop
        else:
            rows.append(_GAP_TEXT.join(piece.text for piece in found[start].pieces))
            start += 1
    return "\n".join(rows)


def _mended(found: Iterable[list[_Run]]) -> Iterator[list[_Run]]:
    """Lines joined again that PDFium broke before or after a superscript; empty ones go."""
    line: list[_Run] = []
    for runs in found:
        for run in runs:
            spaced_out = run.text.count(_UNSPACED) > _SPACED_OUT * len(run.text)
            run.text = run.text.replace(_UNSPACED, "" if spaced_out else " ")
        if not runs:
            continue
        if line and _goes_on(line, runs):
            if runs[0].left - line[-1].right > _WORD_GAP * runs[0].size and not line[-1].text.endswith(" "):
                line[-1].text += " "
            line.extend(runs)
            continue
        if line:
            yield line
        line = runs
    if line:
        yield line


def _from_right_to_left(runs: list[_Run]) -> Iterator[_Run]:
    """The runs, words of Arabic and Hebrew letters as they are read: PDFium leaves some as they are drawn."""
    for from_right, some in groupby(runs, _is_from_right):
        word: list[_Run] = []
        for run in some if from_right else ():
            word.append(run)
            if run.text.endswith(" "):
                yield from _word_from_right(word)
                word.clear()
        yield from _word_from_right(word) if from_right else some


def _is_from_right(run: _Run) -> bool:
    return all(unicodedata.bidirectional(letter) in ("R", "AL") for letter in run.text.rstrip())


def _word_from_right(word: list[_Run]) -> list[_Run]:
    ends = " " * any(run.text.endswith(" ") for run in word)
    for run in word:
        run.text = run.text.rstrip()[::-1]  # a run goes to the right
    word.sort(key=attrgetter("left"), reverse=True)
    if word:
        word[-1].text += ends
    return word


def _goes_on(line: list[_Run], runs: list[_Run]) -> bool:
    main, last = _main(line), line[-1]
    gap = (runs[0].left - last.right) / main.size
    if last.text.endswith("\ufffe") or gap < _BACKWARDS:
        return False
    if _is_level(_main(runs), main):
        return gap < _SAME_LINE
    return gap < _TOUCHES and all(_script(run, main) or _is_level(run, main) for run in runs)


def _is_level(run: _Run, beside: _Run) -> bool:
    return abs(run.baseline - beside.baseline) < _LEVEL * beside.size


def _main(runs: list[_Run]) -> _Run:
    """A run of the line's main size and baseline."""
    counts = Counter[tuple[float, float]]()
    for run in runs:
        counts[_kind(run)] += len(run.text)
    most = max(counts.values())
    return next(run for run in runs if counts[_kind(run)] == most)


def _kind(run: _Run) -> tuple[float, float]:
    return round(run.size, 1), round(run.baseline, 1)


def _split_at_gaps(runs: list[_Run]) -> Iterator[list[_Run]]:
    part: list[_Run] = []
    for run in runs:
        if part and run.left - part[-1].right > _WIDE_GAP * run.size:
            yield part
            part = []
        part.append(run)
    yield part


def _piece(runs: list[_Run]) -> _LinePart:
    """A piece's text, its superscripts and subscripts spelt out."""
    text = ""
    base: _Run | None = None
    for number, run in enumerate(runs):
        after = runs[number + 1] if number + 1 < len(runs) else None
        kind = _script_kind(run, base or after, after, text.rstrip())
        if kind:
            bare = run.text.rstrip()
            spaces = run.text[len(bare) :]
            spell = superscript if kind > 0 else subscript
            if number and run.left - runs[number - 1].right < _LEVEL * run.size:
                text = text.rstrip()  # a space that PDFium sees where the line only goes up or down
            text += spell(text, bare, spaces + (after.text if after else "")) + spaces
        else:
            text += run.text
            base = run
    return _LinePart(fractions(text.strip()), runs[0].left, runs[-1].right, runs[0].baseline)


def _script_kind(run: _Run, beside: _Run | None, after: _Run | None, base_text: str) -> int:
    """1 for a superscript, -1 for a subscript, 0 for other text such as what stands beside a root's sign."""
    bare = run.text.rstrip()
    if beside is None or len(bare) > _LONGEST_SCRIPT or not _SCRIPT.fullmatch(bare):
        return 0
    if base_text and not _BASE.search(base_text):
        return 0
    goes_back = after is None or after.size > run.size or _script(after, beside) != 0 or _is_level(after, beside)
    return _script(run, beside) if goes_back else 0


def _script(run: _Run, base: _Run) -> int:
    rise = (run.baseline - base.baseline) / base.size
    if run.size > _SMALL * base.size and not _is_set_apart(run, base, rise):
        return 0
    if _RAISED[0] < rise < _RAISED[1]:
        return 1
    return -1 if _LOWERED[0] < rise < _LOWERED[1] else 0


def _is_set_apart(run: _Run, base: _Run, rise: float) -> bool:
    """True if a number as large as its base is raised or lowered, and no part of another line."""
    same = abs(run.size - base.size) < _LEVEL * base.size and run.text.strip().isdecimal()
    return same and abs(rise) >= _APART and abs(run.left - base.right) < _WORD_GAP * base.size


def _columns(found: Sequence[_Line], start: int) -> tuple[int, float]:
    """Where two columns end that begin at line ``start``, and the middle of their gutter; ``start`` where none do."""
    gutter = (-math.inf, math.inf)
    stop = start
    for line in found[start:]:
        narrower = _narrowed(gutter, line)
        if narrower is None or (stop > start and _apart(found[stop - 1], line)):
            break
        gutter = narrower
        stop += 1
    rows = [line.pieces for line in found[start:stop] if len(line.pieces) == 2]
    if len(rows) >= _LEAST_ROWS and all(_is_prose([row[side].text for row in rows]) for side in (0, 1)):
        return stop, (gutter[0] + gutter[1]) / 2
    return start, 0.0


def _narrowed(gutter: tuple[float, float], line: _Line) -> tuple[float, float] | None:
    """The rest of a gutter between two columns beside a line, or None where the line crosses it."""
    left, right = gutter
    first, last = line.pieces[0], line.pieces[-1]
    if len(line.pieces) == 2:
        choices = [(max(left, first.right), min(right, last.left))]
    elif len(line.pieces) == 1 and math.isfinite(left):  # of one column alone; such a line begins no columns
        choices = [(max(left, first.right), right), (left, min(right, first.left))]
    else:
        choices = []
    return next((choice for choice in choices if choice[1] - choice[0] > _WIDE_GAP * line.size), None)


def _apart(above: _Line, below: _Line) -> bool:
    """True if two lines are too far from each other, or too different, to be of one block."""
    return not 0 < above.baseline - below.baseline < _LEADING * above.size or above.size > below.size / _SMALL


def _is_prose(texts: Sequence[str]) -> bool:
    words = sum(len(text.split()) for text in texts)
    going_on = sum(text[:1].islower() for text in texts)
    return words >= _LEAST_WORDS * len(texts) and going_on >= _LEAST_PROSE * len(texts)


@dataclass(slots=True)
class _Pages:
    """The texts of a file's pages, empty for a page without; numbers, from 1, of those that are pictures."""

    texts: list[str] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)  # without text
    recognised: list[int] = field(default_factory=list)  # whose text is OCR's
    skipped: list[Skipped] = field(default_factory=list)
    bookmarks: list[tuple[int, str]] = field(default_factory=list)  # each with its page, from 0
    meaningless: int = 0  # characters


def _extract_pdf(data: bytes, uri: str, *, ocr: bool = False) -> Extract:
    """Read a PDF: the texts of its pages, a blank line between them.

    It gives no title: what the files state there is mostly their producer's file name. Characters without a meaning
    (NUL) are dropped and counted. Pages that cannot be read, or show pictures alone, are skipped and named.
    With ``ocr`` those that show pictures alone are read by OCR; the metadata and the report say which.
    """
    with _PDFIUM:
        pages = _read_pages(data, uri, ocr=ocr)
    texts = pages.texts
    if not any(character.isalnum() for text in texts for character in text):
        why = "in which OCR finds none" if ocr else _SCANNED
        raise fault(uri, "no text", f"{len(texts)} page(s) without text, {why}")
    metadata = {"media_type": "application/pdf", "pages": str(len(texts))}
    empty = sum(not text for text in texts) - len(pages.skipped)
    if empty:
        metadata["pages_without_text"] = str(empty)
    if pages.pictures:
        place = f"{uri}#page={page_ranges(pages.pictures)}"
        found = f"{len(pages.pictures)} of {len(texts)} pages hold no text: scanned?"
        pages.skipped.append(
            skip(place, "no text", f"{found} clara index --ocr reads them (pip install 'clara-rag[ocr]')")
        )
    shown, running = without_running_lines(texts)
    parts = TextParts()
    shown = join_lines(shown)
    for text in shown:
        parts.add_page(text)
    headings = [Heading(parts.starts[page] + at, words) for page, at, words in headings_on(shown, pages.bookmarks)]
    left_out = Counter({"page headers and footers": running, "characters without a meaning": pages.meaningless})
    if pages.recognised:
        metadata["pages_by_ocr"] = page_ranges(pages.recognised)
        left_out[_BY_OCR] = len(pages.recognised)
    return Extract(
        "",
        parts.text(),
        metadata,
        tuple(pages.skipped),
        tuple(parts.starts),
        tuple(sorted(headings, key=attrgetter("start"))),
        +left_out,
        layout="prose",
    )


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
                text, shows = _read_page(pdf, number - 1, pages)
            except pypdfium2.PdfiumError:
                text, shows = "", False
                detail = "this page cannot be read; save the PDF again"
                pages.skipped.append(skip(f"{uri}#page={number}", "broken", detail))
            if shows and not any(map(str.isalnum, text)):
                text = _seen(pdf, number, pages) if ocr else text
                if not text:
                    pages.pictures.append(number)
            pages.texts.append(text)
        pages.bookmarks = list(_bookmarks(pdf))
    finally:
        pdf.close()
    return pages


def _bookmarks(pdf: pypdfium2.PdfDocument) -> Iterator[tuple[int, str]]:
    """What the file's outline names, each with its page."""
    for bookmark in pdf.get_toc():
        target = bookmark.get_dest()
        page = None if target is None else target.get_index()
        with contextlib.suppress(UnicodeDecodeError):  # half a surrogate pair
            title = " ".join(bookmark.get_title().split())
            if page is not None and page < len(pdf) and title.isprintable() and any(map(str.isalnum, title)):
                yield page, title


def _seen(pdf: pypdfium2.PdfDocument, number: int, pages: _Pages) -> str:
    """The text that OCR reads on a page; empty for a picture without text."""
    from clara.ingest.ocr import recognised  # noqa: PLC0415 - an optional package behind it

    text = recognised(pdf[number - 1])
    if text:
        pages.recognised.append(number)
    return text


def _read_page(pdf: pypdfium2.PdfDocument, number: int, pages: _Pages) -> tuple[str, bool]:
    """The text of a page, form fields included, and whether it shows anything at all.

    Line ends keep their hyphens: ``join_lines`` needs the whole document to tell whose they are.
    """
    page = pdf[number]
    try:
        layer = page.get_textpage()
        try:
            characters = _Layer(layer, page.get_cropbox())
            found = _page_lines(characters.lines())
            pages.meaningless += characters.meaningless
        finally:
            layer.close()
        for field in _fields(page):
            _add_field(found, field)
        return _page_text(found), bool(found) or pdfium.FPDFPage_CountObjects(page) > 0
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
        self.meaningless = 0  # characters, for whose signs the file names no letters

    def lines(self) -> Iterator[list[_Run]]:
        """The runs between the line breaks that PDFium makes; what lies outside the visible page is left out."""
        line: list[_Run] = []
        unicode, raw = pdfium.FPDFText_GetUnicode, self._raw
        for index in range(self._count):
            character = chr(unicode(raw, index))
            if "\ud800" <= character < "\udc00":  # the first of a pair, which stands for one character
                pair = character + chr(unicode(raw, index + 1))
                character = pair.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")[:1]
            elif "\udc00" <= character < "\ue000":
                continue
            if character.isspace() or character == "\0":
                self.meaningless += character == "\0"
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

    def _take(self, index: int, character: str, line: list[_Run]) -> None:
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
        if line and left < line[-1].right - _OVERLAP * line[-1].size:
            character = _accented(line, character, left)
        if line and line[-1].takes(left, low, high):
            self._space(index, character, left, line[-1])
            line[-1].text += character
            line[-1].right = right
            return
        pdfium.FPDFText_GetCharOrigin(self._raw, index, self._x, self._y)
        baseline = self._turn.up(self._x.value, self._y.value)
        # Of fonts with larger signs, the box is higher than the size tells.
        pdfium.FPDFText_GetMatrix(self._raw, index, self._matrix)
        size = float(pdfium.FPDFText_GetFontSize(self._raw, index)) * math.hypot(self._matrix.c, self._matrix.d)
        line.append(_Run(character, left, right, low, high, baseline, size or high - low))

    def _space(self, index: int, character: str, left: float, run: _Run) -> None:
        """Let a run end as it looks in front of a character: files move words apart instead of writing a space."""
        gap = (left - run.right) / run.size
        if run.text.endswith(" "):
            if gap < _NO_GAP and not pdfium.FPDFText_IsGenerated(self._raw, index - 1):
                run.text = run.text[:-1]
        elif gap > _WORD_GAP and (character.isalnum() or character in "(“‘") and run.text[-1] < _FULL_WIDTH > character:
            run.text += _UNSPACED


def _accented(line: list[_Run], character: str, left: float) -> str:
    """A character that lies over the last one of a line: one letter, if either of the two is an accent.

    The last one goes then; ``left`` is where the character begins.
    """
    combined = with_accent(line[-1].text[-1:], character)
    if not combined:
        return character
    line[-1].text = line[-1].text[:-1]
    line[-1].right = min(line[-1].right, left)
    if not line[-1].text:
        line.pop()
    return combined


class _Turn:
    """Turns places by the angle of a line's text, clockwise in radians."""

    def __init__(self, angle: float) -> None:
        self._cos, self._sin = round(math.cos(angle), 6), round(math.sin(angle), 6)

    def up(self, x: float, y: float) -> float:
        return x * self._sin + y * self._cos

    def box(self, sides: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        if self._cos == 1:
            return sides
        x = [x * self._cos - y * self._sin for x, y in (sides[:2], sides[2:])]
        y = [self.up(*sides[:2]), self.up(*sides[2:])]
        return min(x), min(y), max(x), max(y)


def _fields(page: pypdfium2.PdfPage) -> Iterator[_LinePart]:
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
                yield _LinePart(text, box.left, box.right, (box.bottom + box.top) / 2)
        finally:
            pdfium.FPDFPage_CloseAnnot(note)


def _field_text(form: Element, note: Element) -> str:
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


READERS = {".pdf": _extract_pdf}
