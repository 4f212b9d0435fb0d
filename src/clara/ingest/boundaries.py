"""Where a text may be cut: ends of paragraphs, sentences, lines and words. Knows characters, not tokens.

One pass over the white space of a stretch finds and grades every cut; the cut comes after the white space, so that
the next window begins with a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_SPACE = re.compile(r"\s+")
# Chinese and Japanese write no space after a sentence.
_SPACELESS_END = re.compile(r"[。！？][”’」』）]{0,2}")
_SPACE_OR_SPACELESS_END = re.compile(f"{_SPACE.pattern}|{_SPACELESS_END.pattern}")
_SPACELESS_MARKS = "。！？"
_CLOSING = "\"'”’»)]*_"
_STOPS = ".!?…。！？"
_LAST_WORD = re.compile(r"[\w.]*$")
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")
_LAST_WORD_WITHIN = 16  # characters
# fmt: off
_ABBREVIATIONS = frozenset([
    "adj", "al", "approx", "apr", "aug", "bros", "ca", "capt", "cf", "ch", "co", "col", "corp", "dec", "dept", "dr",
    "ed", "eds", "eg", "esp", "est", "etc", "feb", "fig", "figs", "gen", "gov", "hon", "ie", "inc", "jan", "jr",
    "jul", "jun", "lt", "ltd", "maj", "mar", "mr", "mrs", "ms", "mt", "no", "nos", "nov", "oct", "op", "pp", "prof",
    "rep", "resp", "rev", "sen", "sep", "sept", "sgt", "sr", "st", "vol", "vols", "vs",
])
# fmt: on
_ITEM = re.compile(r"\s*(?:[-*+•‣◦#|]|\d{1,3}[.)])|[^\n]*\S \| \S")
_LONGEST_CLUSTER = 64  # characters looked back over for the start of a cluster: text of people has fewer


class Grade(IntEnum):
    """How good a place is to cut at; lower is better."""

    PARAGRAPH = 0
    SENTENCE = 1
    LINE = 2
    WORD = 3
    ANYWHERE = 4


@dataclass(frozen=True, slots=True)
class Cut:
    """A place to cut.

    Attributes:
        position: the first character of the right-hand side.
        grade: what ends before it.
    """

    position: int
    grade: Grade


def cuts(text: str, start: int, stop: int) -> Iterator[Cut]:
    """Every cut of ``text`` with ``start < position <= stop``, left to right, except cuts inside words.

    White space that goes on past ``stop`` is cut at ``stop``. A cut never leaves only white space on its left, back
    to ``start``.
    """
    solid = False  # anything but white space seen since ``start``
    before = start
    for match in _SPACE_OR_SPACELESS_END.finditer(text, start, stop):
        solid = solid or match.start() > before or match.group()[0] in _SPACELESS_MARKS
        before = match.end()
        if solid:
            yield Cut(match.end(), _grade(text, start, match.start(), match.end()))
    if before < stop < len(text) and text[stop].isspace():
        # The white space after the last word did not fit, the word did.
        end = _SPACE.match(text, stop, stop + 2)
        yield Cut(stop, _grade(text, start, stop, end.end() if end else stop))


def cluster_start(text: str, position: int, start: int) -> int:
    """The last place at or before ``position`` that does not part a letter from its accents, or an emoji's parts.

    Returns:
        A position > ``start``, with more than white space between the two if there is any; ``position`` itself where
        the cluster reaches back too far.
    """
    leading = _SPACE.match(text, start, position)
    floor = leading.end() if leading else start
    for candidate in range(position, max(floor, position - _LONGEST_CLUSTER), -1):
        if candidate >= len(text) or not _joined(text, candidate, floor):
            return candidate
    return position


def _grade(text: str, start: int, left: int, right: int) -> Grade:
    """Grade the cut whose white space is ``text[left:right]``."""
    newlines = text.count("\n", left, right)
    if newlines and text.startswith("#", text.rfind("\n", start, left) + 1 or start):
        return Grade.WORD  # a Markdown heading belongs to what follows it
    if newlines > 1:
        return Grade.PARAGRAPH
    if _sentence_ends(text, start, left, right):
        return Grade.SENTENCE
    return Grade.LINE if newlines else Grade.WORD


def _sentence_ends(text: str, start: int, left: int, right: int) -> bool:
    if text[left] in _SPACELESS_MARKS:  # the match is the mark itself, not white space
        return True
    tail = text[max(start, left - _LAST_WORD_WITHIN) : left].rstrip(_CLOSING)
    if not tail or tail[-1] not in _STOPS:
        return False
    if right < len(text) and text[right].islower():
        return False
    word = _LAST_WORD.search(tail.rstrip(_STOPS))
    last = word.group() if word and tail[-1] == "." else ""
    # An initial or "U.S."; the number of a list item.
    short = _INITIALS.fullmatch(last) is not None or (last.isdigit() and len(last) < 3)
    return not short and last.lower() not in _ABBREVIATIONS


def _joined(text: str, position: int, floor: int) -> bool:
    """Whether the characters on both sides of ``position`` make up one that people see."""
    left, right = text[position - 1], text[position]
    if right == "\u200d" or left == "\u200d" or unicodedata.category(right).startswith("M"):
        return True
    code = ord(right)
    if 0x1F3FB <= code <= 0x1F3FF or 0xE0020 <= code <= 0xE007F or 0x1160 <= code <= 0x11FF:
        return True  # skin tones, tag characters, Hangul vowels and finals
    if 0x1F1E6 <= code <= 0x1F1FF:  # flags: pairs of regional indicators
        count = 0
        while position - count > floor and 0x1F1E6 <= ord(text[position - 1 - count]) <= 0x1F1FF:
            count += 1
        return count % 2 == 1
    return False


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the sentence, or sentences, that hold ``text[start:end]`` begin and end, white space left out.

    A heading, a paragraph and a line of a list or table end a sentence, too.
    """
    first, last = 0, len(text)
    for cut in cuts(text, 0, len(text)):
        if cut.grade > Grade.SENTENCE and not _begins_item(text, cut.position):
            continue
        if cut.position <= start:
            first = cut.position
        elif cut.position >= end:
            last = cut.position
            break
    stretch = text[first:last]
    return first + len(stretch) - len(stretch.lstrip()), first + len(stretch.rstrip())


def _begins_item(text: str, position: int) -> bool:
    """Whether a line that is a list's item, a table's row or a heading begins or has just ended here."""
    if "\n" not in text[max(0, position - 1) : position]:
        return False
    before = text.rfind("\n", 0, position - 1) + 1
    return any(_ITEM.match(text, at) is not None for at in (position, before))
