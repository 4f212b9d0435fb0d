"""Hyphens at the ends of lines: those that only break a word go, those of the word itself stay.

Characters alone do not tell ``infor-/mation`` from ``price-/determining``: the rest of the document does, and what
stands on both sides. Where both are silent, a few parts of English compounds do: ``well-/known``, ``web-/based``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

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


def join_lines(pages: list[str]) -> list[str]:
    r"""Join the words that lines break.

    Args:
        pages: texts of a document's pages with ``\n`` at each line's end.

    Returns:
        The same texts: a word's own hyphen without the line break behind it, others gone with it.
    """
    known = whole_words(pages, _BREAK)
    return [_MARK.sub("-", _BREAK.sub(lambda found: broken_word(found.string, found, known), page)) for page in pages]


def whole_words(pages: Iterable[str], breaks: re.Pattern[str]) -> set[str]:
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


def broken_word(text: str, found: re.Match[str], known: set[str]) -> str:
    """What stands between the parts of a word that a line breaks.

    Args:
        text: the text, with letters or digits on both sides of the break.
        found: the hyphen with the line break.
        known: the ``whole_words`` of the document.
    """
    left = text[max(0, found.start() - _REACH) : found.start()].replace("\u2010", "-")
    right = text[found.end() : found.end() + _REACH].replace("\u2010", "-")
    return _hyphen(left.split()[-1], right.split()[0], known)


def _hyphen(left: str, right: str, known: set[str]) -> str:
    """What stands between the two parts of a broken word; ``left`` ends and ``right`` begins in letters or digits."""
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
    """Whether the hyphen is the word's own, by its parts alone."""
    if second[0].isupper() or second[0].isdigit() or first[-1].isdigit():
        return True
    if len(first) == 1 or first.isupper() or "-" in first + second:
        return True
    return first.lower() in _TENS and second.lower() in _UNITS | _ORDINALS


def _is_compound(first: str, second: str, known: set[str]) -> bool:
    """Whether English writes the two with a hyphen, as far as a few words tell."""
    if first in _FIRST_PARTS:
        compound = not _REST.match(second)
    else:
        compound = second in _LAST_PARTS and first in known and first not in _PREFIXES
    return compound and not is_foreign(known)
