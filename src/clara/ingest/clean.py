r"""Cleaning of every text before it becomes a document, whatever its format; ``Document.text`` is the result.

Newlines become ``\n``. Words that a line breaks are joined, soft hyphens and other marks that show nothing go, U+2010
becomes the hyphen that people type, letters of formulas and ligatures the letters that they are. Encoded data (base64
images) goes and is counted. Runs of blanks become one: they cost tokens and say nothing. Places in the text (its pages,
its headings) move along.

A hyphen at a line's end goes where it only breaks a word and stays where it is the word's own. Characters alone do not
tell ``infor-/mation`` from ``price-/determining``: the rest of the document does, and what stands on both sides. Where
both are silent, a few parts of English compounds do: ``well-/known``, ``web-/based``.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from clara.english import is_foreign, word_set

# A word broken at a line's end; U+FFFE is PDFium's mark for a hyphen whose line break it has dropped.
_BREAK = re.compile("(?<=[^\\W_])(?:\ufffe\n?|-\n)(?=[^\\W_])")
_MARK = re.compile("\ufffe\n?")
_REACH = 200  # characters looked at on both sides: the longest addresses
_WORD = r"[^\W_]+(?:-[^\W_]+)*"
_WORDS, _LAST_WORD = re.compile(_WORD), re.compile(rf"{_WORD}\Z")
_ADDRESS = re.compile(r"://|www\.|@|\w/\w")
_TENS = word_set("twenty thirty forty fifty sixty seventy eighty ninety")
_UNITS = word_set("one two three four five six seven eight nine")
_ORDINALS = word_set("first second third fourth fifth sixth seventh eighth ninth")
# What English compounds begin and end with that are written with a hyphen. A last part counts behind a word of the
# document; what few closed words have left behind a first part does not: high-/er, hard-/ware, single-/ton.
_FIRST_PARTS = word_set(
    "well long short high low self user full half real third single double two three four five six non end cross large "
    "small fast deep hard general cost client server command"
)
_LAST_PARTS = word_set(
    "based known defined specified supplied provided generated separated specific dependent independent oriented "
    "related driven level aware friendly compatible free safe agnostic sensitive insensitive readable source purpose "
    "dimensional threaded"
)
_PREFIXES = word_set("un re pre over under out in up down inter sub super mis dis de co")
_REST = re.compile(
    r"(?:er\w*|est|ly|ness|less|ful|ish|ing|ed|en\w{0,3}|age|able|it(?:y|ies)|is[mt]|istic|i[sz]\w*|ary|ton|ment|dom|"
    r"fold|teen|t[hy]|some|ward|most|hood|ship|ling|way|light|lighted|land|name|ware|cut|fall|hand|over|point|out|"
    r"space|coming|sense)s?\Z"
)
_SUSPENDED = word_set("und oder bis sowie and")  # what follows the hyphen of "Ein- und Ausgang"

Layout = Literal["prose", "markup", "code"]
"""Meaning of blanks: that lines are set in (prose); lists and code by their indentation (markup); all of it (code)."""

BROKEN_AT_HYPHEN = "\ufffe"
"""For readers that lose line breaks: stands for a hyphen (U+2010) at the end of a line; no character by Unicode."""

_BLANK = "[ \\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_NEWLINES = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
# What terminals and printers act on: colours, letters struck twice, other control characters.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[^\n]\x08|[\x01-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# Zero-width marks between ASCII letters; other scripts write them on purpose.
_INVISIBLE = re.compile(f"\u00ad(?:{_BLANK}*\n{_BLANK}*(?=[^\\W_]))?|[\u2060\ufeff]|(?<=[!-~])\u200b|\u200b(?=[!-~])")
_BROKEN = re.compile(f"(?<=[^\\W_])(?:\u2010{_BLANK}*\n{_BLANK}*|{BROKEN_AT_HYPHEN})(?=[^\\W_])")
_PLAINLY_BROKEN = re.compile(f"(?<=[^\\W\\d_])-{_BLANK}*\n{_BLANK}*(?=[^\\W\\d_])")
_HYPHEN = re.compile(f"[\u2010\u2011{BROKEN_AT_HYPHEN}]")
# Letters of formulas, bold and italic, and ligatures: other signs for letters that people type and look for.
_OTHER_LETTERS = re.compile("[\U0001d400-\U0001d7ff\ufb00-\ufb06]+")
_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*;base64,[A-Za-z0-9+/=_%-]*")
_CODED = "[A-Za-z0-9+/=_-]"
_LONG_RUN = re.compile(f"(?<!{_CODED}){_CODED}{{200,}}")
_LAST_LINE = f"(?:[ \\t>|]*(?=\\S*[A-Z])(?=\\S*[a-z])(?=\\S*[0-9=]){_CODED}+[ \\t]*$)"
_WRAPPED_RUN = re.compile(f"^(?:[ \\t>|]*{_CODED}{{40,}}[ \\t]*\n){{3,}}{_LAST_LINE}?", re.MULTILINE)
_SAMPLE = 4096  # characters of a run that tell whether it is language
_LONGEST_WORD = 40
_SPACES = re.compile(f"{_BLANK}{{2,}}|{_BLANK}(?=\n|\\Z)|(?:(?<=\n)|\\A){_BLANK}")
_INDENT = re.compile(f"^{_BLANK}*(?=\\S)", re.MULTILINE)
_LEADERS = re.compile(f"{_BLANK}?(?:\\.{_BLANK}?){{6,}}")  # dots that lead to the page number in a table of contents
_EMPTY_LINES = re.compile("\\A\n+|\n{3,}")
_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Cleaned:
    """A cleaned text, where the places asked for are now, and what was taken out: kind to how many."""

    text: str
    places: tuple[int, ...]
    left_out: dict[str, int]


def clean(text: str, layout: Layout = "prose", places: Sequence[int] = ()) -> _Cleaned:
    r"""The text with ``\n`` for newlines, no blanks at the ends of lines and no more than one empty line together.

    ``places`` are positions in it, ascending, which move along.
    """
    edited = _Edited(text.removeprefix("\ufeff"), [max(0, place - text.startswith("\ufeff")) for place in places])
    edited.replace(_NEWLINES, lambda _: "\n")
    edited.replace(_CONTROL, lambda _: "")
    edited.replace(_INVISIBLE, lambda _: "")
    if _BROKEN.search(edited.text):
        known = _whole_words([edited.text], _BROKEN)
        edited.replace(_BROKEN, lambda found: _broken_word(found, known))
    edited.replace(_HYPHEN, lambda _: "-")
    if layout == "prose" and _PLAINLY_BROKEN.search(edited.text):
        elsewhere = _whole_words([edited.text], _PLAINLY_BROKEN)
        edited.replace(_PLAINLY_BROKEN, lambda found: _plainly_broken_word(found, elsewhere))
    edited.replace(_OTHER_LETTERS, lambda found: unicodedata.normalize("NFKC", found[0]))
    edited.replace(_DATA_URI, edited.leave_out)
    for pattern in (_WRAPPED_RUN, _LONG_RUN):
        edited.replace(pattern, lambda found: edited.leave_out(found) if _is_encoded(found[0]) else found[0])
    if layout == "prose":
        edited.replace(_INDENT, _Levels().indent)
    if layout != "code":
        edited.replace(_LEADERS, lambda found: " ... " if found[0][0] != "." or found[0][-1] != "." else "...")
    _squeeze(edited, layout)
    if layout != "code":
        edited.replace(_EMPTY_LINES, lambda found: "\n\n" if found.start() else "")
    return _Cleaned(edited.text, tuple(edited.places), dict(edited.left_out))


class _Edited:
    """A text under work, with the places in it."""

    def __init__(self, text: str, places: list[int]) -> None:
        self.text = text
        self.places = places
        self.left_out = Counter[str]()

    def replace(self, pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str]) -> None:
        """As ``pattern.sub``; a place inside what is replaced moves to its beginning."""
        if not self.places:
            self.text = pattern.sub(replacement, self.text)
            return
        parts: list[str] = []
        starts, shifts = [0], [0]  # from each start on, the old text lies so much further right
        done = 0
        for found in pattern.finditer(self.text):
            new = replacement(found)
            if new == found[0]:
                continue
            parts += [self.text[done : found.start()], new]
            done = found.end()
            starts.append(done)
            shifts.append(shifts[-1] + len(found[0]) - len(new))
        if done:
            parts.append(self.text[done:])
            self.text = "".join(parts)
            self.places = [_moved(place, starts, shifts) for place in self.places]

    def leave_out(self, found: re.Match[str]) -> str:
        self.left_out["runs of encoded data"] += 1
        return "\n" if found[0].endswith("\n") else ""


def _moved(place: int, starts: list[int], shifts: list[int]) -> int:
    at = bisect_left(starts, place + 1) - 1
    moved = place - shifts[at]
    if at + 1 < len(starts):  # not beyond where the next replaced part begins to differ
        moved = min(moved, starts[at + 1] - shifts[at + 1])
    return moved


def _is_encoded(run: str) -> bool:
    """True if a run without blanks is data: letters and digits mixed as in no word, path or number."""
    sample = "".join(run[:_SAMPLE].split())
    upper, lower = sum(map(str.isupper, sample)), sum(map(str.islower, sample))
    digits = sum(map(str.isdigit, sample))
    vowels = sum(character in "aeiouyAEIOUY" for character in sample)
    if max(map(len, re.split(r"[-_/=+]+", sample))) <= _LONGEST_WORD and upper < 0.15 * len(sample):
        return False  # a path, or words joined by hyphens
    if "\n" in run:  # lines of digits and small letters may be a list of hashes, which people look for
        return upper > 0.1 * len(sample) and lower > 0.1 * len(sample)
    mixed = upper > 0.1 * len(sample) and lower > 0.1 * len(sample)
    return mixed or digits > 0.04 * len(sample) or vowels < 0.2 * len(sample)


class _Levels:
    """Indentation as a blank a level: how far a line is set in says nothing, further than which others does."""

    def __init__(self) -> None:
        self._widths = [0]

    def indent(self, found: re.Match[str]) -> str:
        width = len(found[0].expandtabs())
        while self._widths[-1] > width:
            self._widths.pop()
        if width > self._widths[-1]:
            self._widths.append(width)
        return " " * (len(self._widths) - 1)


def _squeeze(edited: _Edited, layout: Layout) -> None:
    """A run of blanks to one, or to a tab if there is one in it; none at the end of a line."""
    text = edited.text
    fences = [found.span() for found in _FENCED.finditer(text)] if layout == "markup" and "\n" in text else []
    edges = [edge for span in fences for edge in span]

    def squeezed(found: re.Match[str]) -> str:
        start, end = found.span()
        if end == len(text) or text[end] == "\n":
            return ""
        if start == 0 or text[start - 1] == "\n":
            return found[0]  # indentation is the layout's own matter
        if layout == "code" or bisect_left(edges, start) % 2:
            return found[0]
        return "\t" if "\t" in found[0] else " "

    edited.replace(_SPACES, squeezed)


def join_lines(pages: list[str]) -> list[str]:
    r"""Join the words that lines break in the pages of a document, which end lines with ``\n``.

    A word's own hyphen stays without the line break behind it, others are gone with it.
    """
    known = _whole_words(pages, _BREAK)
    return [_MARK.sub("-", _BREAK.sub(lambda found: _broken_word(found, known), page)) for page in pages]


def _whole_words(pages: Iterable[str], breaks: re.Pattern[str]) -> set[str]:
    """The words that no line breaks, in small letters: the others are no evidence.

    Of a compound also what it is made of, ``low-cost`` as ``low-`` and ``-cost``, and of ``state-of-the-art`` the
    compounds inside it.
    """
    whole = {word.lower() for page in pages for word in _unbroken(page.replace("\u2010", "-"), breaks)}
    return whole.union(*(_parts(word) for word in whole if "-" in word))


def _parts(compound: str) -> Iterator[str]:
    parts = compound.split("-")
    yield f"{parts[0]}-"
    yield f"-{parts[-1]}"
    for start in range(len(parts) - 1):
        yield from ("-".join(parts[start:end]) for end in range(start + 2, len(parts) + 1))


def _unbroken(page: str, breaks: re.Pattern[str]) -> Iterator[str]:
    parts = breaks.split(page)
    for number, part in enumerate(parts):
        words = _WORDS.findall(part)
        yield from words[number > 0 : len(words) - (number < len(parts) - 1)]


def _around(found: re.Match[str]) -> tuple[str, str]:
    """What stands before and behind a line break in a word, as far as the next blank."""
    left = found.string[max(0, found.start() - _REACH) : found.start()]
    right = found.string[found.end() : found.end() + _REACH]
    return left.replace("\u2010", "-").split()[-1], right.replace("\u2010", "-").split()[0]


def _plainly_broken_word(found: re.Match[str], known: set[str]) -> str:
    """As ``_broken_word`` where the hyphen may be anything: as it stands, unless the document tells."""
    left, right = _around(found)
    first, second = _LAST_WORD.findall(left)[0], _WORDS.findall(right)[0]
    joined, compound = (f"{first}{sign}{second}".lower() in known for sign in ("", "-"))
    if joined == compound:
        return found[0]
    return "" if joined else "-"


def _broken_word(found: re.Match[str], known: set[str]) -> str:
    """The sign between the parts of a word that a line breaks: ``found`` is the hyphen with the line break.

    On both sides of it the text has letters or digits; ``known`` are the ``_whole_words`` of the document.
    """
    left, right = _around(found)
    first, second = _LAST_WORD.findall(left)[0], _WORDS.findall(right)[0]
    if second in _SUSPENDED and second == right:
        return "- "
    if _ADDRESS.search(left) or f"{first}-{second}".lower() in known:
        return "-"
    if (first + second).lower() in known and not second[0].isdigit():
        return ""
    if f"{first}-".lower() in known and f"-{second}".lower() in known:
        return "-"  # low-/level, where the document writes low-cost and high-level
    return "-" if _is_own(first, second) or _is_compound(first.lower(), second.lower(), known) else ""


def _is_own(first: str, second: str) -> bool:
    """True if the hyphen is the word's own, by its parts alone."""
    if second[0].isupper() or second[0].isdigit() or first[-1].isdigit():
        return True
    if len(first) == 1 or first.isupper() or "-" in first + second:
        return True
    return first.lower() in _TENS and second.lower() in _UNITS | _ORDINALS


def _is_compound(first: str, second: str, known: set[str]) -> bool:
    """True if English writes the two with a hyphen, as far as a few words tell."""
    if first in _FIRST_PARTS:
        compound = not _REST.match(second)
    else:
        compound = second in _LAST_PARTS and first in known and first not in _PREFIXES
    return compound and not is_foreign(known)
