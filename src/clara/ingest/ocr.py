"""The text of a page's picture, by RapidOCR (extra ``ocr``), whose models lie in its package: nothing is downloaded.

Knows pictures, not documents: which pages are read here is ``read_pdf``'s matter.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from clara.errors import MissingExtraError
from clara.ingest.document import Element

_DOTS_PER_INCH = 200  # of a page's picture: what print of ten points is recognised at
_LONG_WORD = 11  # letters: the engine drops spaces between Latin words, and longer words are often several
_EASTERN = "\u2e80"  # from here on scripts that write no spaces
_SPACE = 0.22  # of a line's height: narrower gaps stand between letters
_SURE = 0.5  # RapidOCR's own threshold for what it believes to have read


def check_ocr() -> None:
    """Raise ``MissingExtraError`` where the engine is not installed."""
    if find_spec("rapidocr_onnxruntime") is None:
        raise MissingExtraError("rapidocr-onnxruntime", "ocr")


@cache
def _engine() -> Element:
    from rapidocr_onnxruntime import RapidOCR  # noqa: PLC0415 - an optional package, imported at its own door

    # One thread: files are read in parallel already.
    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)


def recognised(page: Element) -> str:
    """The lines of PDFium's page as a picture, from top to bottom, each from left to right."""
    picture = page.render(scale=_DOTS_PER_INCH / 72, rev_byteorder=True).to_numpy()[:, :, :3]  # [height, width, 3]
    found, _ = _engine()(picture)
    pieces = [_Slice.of(corners, text) for corners, text, sure in found or () if float(sure) >= _SURE]
    for piece in pieces:
        if any(len(word) > _LONG_WORD and max(word) < _EASTERN for word in piece.text.split()):
            piece.text = _word_by_word(picture, piece) or piece.text
    rows: list[list[_Slice]] = []
    for piece in sorted(pieces, key=lambda one: one.middle):
        if rows and piece.is_beside(rows[-1][-1]):
            rows[-1].append(piece)
        else:
            rows.append([piece])
    return "\n".join(" ".join(piece.text for piece in sorted(row, key=lambda one: one.left)) for row in rows)


def _word_by_word(picture: npt.NDArray[np.uint8], piece: _Slice) -> str:
    """A piece of a line cut at its blank columns, each part read by itself."""
    margin = 2
    left, top = max(0, int(piece.left) - margin), max(0, int(piece.top) - margin)
    line = picture[top : int(piece.bottom) + margin, left : int(piece.right) + margin]
    if line.size == 0:
        return ""
    grey = line.mean(axis=2)
    ink = np.flatnonzero((grey < (grey.min() + grey.max()) / 2).any(axis=0))
    if ink.size == 0:
        return ""
    ends = np.flatnonzero(np.diff(ink) > _SPACE * line.shape[0])
    starts = [int(ink[0]), *(int(ink[end + 1]) for end in ends)]
    stops = [*(int(ink[end]) for end in ends), int(ink[-1])]
    words: list[str] = []
    for start, stop in zip(starts, stops, strict=True):
        cut = np.pad(line[:, start : stop + 1], ((4, 4), (8, 8), (0, 0)), mode="edge")
        found, _ = _engine()(cut, use_det=False, use_cls=False)
        words.extend(text for text, _ in found or ())
    return " ".join(words)


class _Slice:
    """A piece of a line, where it stands."""

    def __init__(self, text: str, left: float, right: float, top: float, bottom: float) -> None:
        self.text, self.left, self.right, self.top, self.bottom = text, left, right, top, bottom
        self.middle = (top + bottom) / 2

    @classmethod
    def of(cls, corners: Element, text: str) -> _Slice:
        across, down = zip(*corners, strict=True)
        return cls(text, min(across), max(across), min(down), max(down))

    def is_beside(self, other: _Slice) -> bool:
        return other.top < self.middle < other.bottom
