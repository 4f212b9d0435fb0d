"""Runs of text on a page to its lines: superscripts, lines that PDFium broke at one, columns drawn row by row.

Knows places, not PDFium. In every line text runs to the right.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from clara.ingest.scripts import subscript, superscript

# All in sizes of the text around.
_SMALL = 0.85  # size of a superscript at most
_RAISED = (0.1, 0.75)  # by how much its baseline lies higher, or a subscript's lower
_LOWERED = (-0.5, -0.03)
_LONGEST_SCRIPT = 12  # characters
_SCRIPT = re.compile(r"(?=.*[\w+\-−*†‡§¶™®])\S+")
_BASE = re.compile(r"[\w)\].,;:!?}\"'”’»%°′″]\Z")  # what a script stands beside
_LONGEST_RUN = 500  # characters: a longer one, of a file made for it, would be copied at every character
_LEVEL = 0.15  # baselines of one line differ by less
_TOUCHES = 0.5  # gap between a word and its superscript at most
_BACKWARDS = -0.5  # overlap of two glyphs of a line at most
_SAME = 0.04  # by how much the edges of one font at one size differ at most
_SAME_LINE = 2.0  # gap at most between what PDFium calls two lines and the eye one
_WORD_GAP = 0.2  # a gap as wide as a space
_WIDE_GAP = 1.0  # a gap that no space makes
# Columns: at least so many lines with text on both sides of the gutter, so many words a line on each side, and so
# large a share of lines that go on in the middle of a sentence. A table's cells begin with capitals and digits.
_LEADING = 2.5  # from line to line at most
_LEAST_ROWS = 3
_LEAST_WORDS = 3
_LEAST_PROSE = 0.25


@dataclass(slots=True)
class Run:
    """Characters of one font and size side by side.

    Attributes:
        text: what they say; a space at its end stands behind it.
        left: where they begin.
        right: where they end.
        bottom: lower edge of their font's line.
        top: upper edge of their font's line.
        baseline: height of their baseline.
        size: their point size as the page shows them.
    """

    text: str
    left: float
    right: float
    bottom: float
    top: float
    baseline: float
    size: float

    def takes(self, left: float, bottom: float, top: float) -> bool:
        """Whether a character with these edges goes on with the run."""
        most = _SAME * self.size
        if abs(bottom - self.bottom) > most or abs(top - self.top) > most or len(self.text) >= _LONGEST_RUN:
            return False
        return _BACKWARDS * self.size < left - self.right < _WIDE_GAP * self.size


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a line without wide gaps.

    Attributes:
        text: what it says.
        left: where it begins.
        right: where it ends.
        baseline: height of its baseline; of a form field, its middle.
    """

    text: str
    left: float
    right: float
    baseline: float


@dataclass(slots=True)
class Line:
    """A line of a page.

    Attributes:
        pieces: its pieces in reading order.
        baseline: height of its baseline.
        size: its point size.
    """

    pieces: list[Piece]
    baseline: float
    size: float

    @property
    def text(self) -> str:
        """The whole line."""
        return " ".join(piece.text for piece in self.pieces)


def lines(found: Iterable[list[Run]]) -> list[Line]:
    """Lines of text from the runs between PDFium's line breaks."""
    result = []
    for runs in _mended(found):
        main = _main(runs)
        pieces = [piece for part in _split_at_gaps(runs) if (piece := _piece(part)).text]
        if pieces:
            result.append(Line(pieces, main.baseline, main.size))
    return result


def add_field(found: list[Line], field: Piece) -> None:
    """Put a form field's value where the page shows it: into the line beside it, or as a line of its own."""
    beside = [line for line in found if -0.5 * line.size < field.baseline - line.baseline < line.size]
    if not beside:
        above = [number for number, line in enumerate(found) if line.baseline > field.baseline]
        found.insert(above[-1] + 1 if above else 0, Line([field], field.baseline, 1.0))
        return
    line = min(beside, key=lambda line: min(abs(piece.right - field.left) for piece in line.pieces))
    before = sum(piece.left < field.left for piece in line.pieces)
    line.pieces.insert(before, field)


def page_text(found: Sequence[Line]) -> str:
    """The page's lines, columns that were drawn row by row one after the other."""
    rows: list[str] = []
    start = 0
    while start < len(found):
        stop, gutter = _columns(found, start)
        if stop > start:
            block = found[start:stop]
            rows.extend(_side(block, gutter, right=False))
            rows.extend(_side(block, gutter, right=True))
            start = stop
        else:
            rows.append(found[start].text)
            start += 1
    return "\n".join(rows)


def _mended(found: Iterable[list[Run]]) -> Iterator[list[Run]]:
    """Lines joined again that PDFium broke before or after a superscript; empty ones go."""
    line: list[Run] = []
    for runs in found:
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


def _goes_on(line: list[Run], runs: list[Run]) -> bool:
    main, last = _main(line), line[-1]
    gap = (runs[0].left - last.right) / main.size
    if last.text.endswith("\ufffe") or gap < _BACKWARDS:
        return False
    if abs(_main(runs).baseline - main.baseline) < _LEVEL * main.size:
        return gap < _SAME_LINE
    return gap < _TOUCHES and all(_script(run, main) for run in runs)


def _main(runs: list[Run]) -> Run:
    """A run of the line's main size and baseline."""
    counts = Counter[tuple[float, float]]()
    for run in runs:
        counts[_kind(run)] += len(run.text)
    most = max(counts.values())
    return next(run for run in runs if counts[_kind(run)] == most)


def _kind(run: Run) -> tuple[float, float]:
    return round(run.size, 1), round(run.baseline, 1)


def _split_at_gaps(runs: list[Run]) -> Iterator[list[Run]]:
    part: list[Run] = []
    for run in runs:
        if part and run.left - part[-1].right > _WIDE_GAP * run.size:
            yield part
            part = []
        part.append(run)
    yield part


def _piece(runs: list[Run]) -> Piece:
    """A piece's text, its superscripts and subscripts spelt out."""
    text = ""
    base: Run | None = None
    for number, run in enumerate(runs):
        after = runs[number + 1] if number + 1 < len(runs) else None
        kind = _script_kind(run, base or after, after, text.rstrip())
        if kind:
            bare = run.text.rstrip()
            spaces = run.text[len(bare) :]
            spell = superscript if kind > 0 else subscript
            text += spell(text, bare, spaces + (after.text if after else "")) + spaces
        else:
            text += run.text
            base = run
    return Piece(_characters(text).strip(), runs[0].left, runs[-1].right, runs[0].baseline)


def _script_kind(run: Run, beside: Run | None, after: Run | None, base_text: str) -> int:
    """1 for a superscript, -1 for a subscript, 0 for other text such as what stands beside a root's sign."""
    bare = run.text.rstrip()
    if beside is None or len(bare) > _LONGEST_SCRIPT or not _SCRIPT.fullmatch(bare):
        return 0
    if base_text and not _BASE.search(base_text):
        return 0
    goes_back = after is None or after.size > run.size or _script(after, beside) != 0
    return _script(run, beside) if goes_back else 0


def _script(run: Run, base: Run) -> int:
    if run.size > _SMALL * base.size:
        return 0
    rise = (run.baseline - base.baseline) / base.size
    if _RAISED[0] < rise < _RAISED[1]:
        return 1
    return -1 if _LOWERED[0] < rise < _LOWERED[1] else 0


def _characters(text: str) -> str:
    """Pairs of surrogates as the characters that they stand for."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return text


def _columns(found: Sequence[Line], start: int) -> tuple[int, float]:
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


def _narrowed(gutter: tuple[float, float], line: Line) -> tuple[float, float] | None:
    """What is left of a gutter between two columns beside a line, or None where the line crosses it."""
    left, right = gutter
    first, last = line.pieces[0], line.pieces[-1]
    if len(line.pieces) == 2:
        choices = [(max(left, first.right), min(right, last.left))]
    elif len(line.pieces) == 1 and math.isfinite(left):  # of one column alone; such a line begins no columns
        choices = [(max(left, first.right), right), (left, min(right, first.left))]
    else:
        choices = []
    return next((choice for choice in choices if choice[1] - choice[0] > _WIDE_GAP * line.size), None)


def _apart(above: Line, below: Line) -> bool:
    """Whether two lines are too far from each other, or too different, to be of one block."""
    return not 0 < above.baseline - below.baseline < _LEADING * above.size or above.size > below.size / _SMALL


def _is_prose(texts: Sequence[str]) -> bool:
    words = sum(len(text.split()) for text in texts)
    going_on = sum(text[:1].islower() for text in texts)
    return words >= _LEAST_WORDS * len(texts) and going_on >= _LEAST_PROSE * len(texts)


def _side(block: Sequence[Line], gutter: float, *, right: bool) -> list[str]:
    """The lines of one column."""
    return [piece.text for line in block for piece in line.pieces if (piece.left > gutter) is right]
