"""Superscripts and subscripts in plain text, one rule for every format: a number keeps its value.

Bare characters would change it: 10 to the sixth would become 106, and the year 2019 with note 1 the number 20191.
Knows characters only; how a format marks a superscript is the ``read_*`` modules' work.
"""

from __future__ import annotations

import re

_ATOM = re.compile(r"[+\-−–]?(?:\w|[\d.,]+)|[+\-−–]|\([^()]*\)")  # what needs no parentheses
_MARKS = re.compile(r"\[?(\d{1,3}(?:\s?[,;–-]\s?\d{1,3})*)\]?")  # numbers of notes: 1, or 1,2, or 3–5
_ORDINAL = frozenset(["st", "nd", "rd", "th", "e", "er", "re", "ère", "ème", "o", "a", "os", "as", "ª", "º"])
# What is raised to a power: a ten, a number of up to three digits that is no part of a longer one, a unit or a
# variable of up to two letters, a short bracket. A year, a price or a word has the number of a note.
_TEN = re.compile(r"(?<![\d.,])10\Z")
_POWER_BASE = re.compile(
    r"(?:(?<![\d.,])\d{1,3}|(?<![^\W\d_])(?:[^\W\d_]{1,2}|mol|min|sec|rad|bar)|\([\w\s+*/·−-]{1,12}\))\Z"
)
_WORD_BASE = re.compile(r"[^\W\d_]{2}\Z")


def superscript(before: str, script: str, after: str = "") -> str:
    """What a superscript adds to the text before it.

    Args:
        before: the text so far; its last characters are the base.
        script: the superscript.
        after: the text behind it; its first character decides whether a space is needed.

    Returns:
        ``^6`` for a power, ``[1]`` for the mark of a note, the script itself where it changes no number (``th``).
    """
    script = script.strip()
    if not script:
        return ""
    base = before[-24:]
    if not base or base[-1].isspace():
        # A mark that opens a note or stands alone; a number with white space before it is a number of its own.
        return script if not after[:1].isalnum() else f"{script} "
    if _is_note(base, script):
        return f"[{_MARKS.fullmatch(script)[1]}]"  # type: ignore[index] # ``_is_note`` has matched it
    if not any(character.isalnum() or character in "+-−" for character in script) or _reads_on(base, script):
        return script
    if (base[-1], script, after[:1]) == ("L", "A", "T"):  # the logo of LaTeX
        return script
    return _apart(f"^{_grouped(script)}", after)


def subscript(before: str, script: str, after: str = "") -> str:
    """What a subscript adds to the text before it.

    Returns:
        The script itself behind letters, as in CO2; ``_2`` behind a digit, ``_(i+1)`` for more than one sign.
    """
    script = script.strip()
    if not script:
        return ""
    base = before[-1:]
    if script.isdigit() and (base.isalpha() or base in ")]"):
        return script if not after[:1].isdigit() else f"_{script} "
    if not base or base.isspace():
        return script
    return _apart(f"_{_grouped(script)}", after)


def _is_note(base: str, script: str) -> bool:
    if _MARKS.fullmatch(script) is None:
        return False
    return _TEN.search(base) is None and _POWER_BASE.search(base) is None


def _reads_on(base: str, script: str) -> bool:
    """Whether a superscript is read as part of the word: 21st, Mlle."""
    if base[-1].isdigit():
        return script.lower() in _ORDINAL
    return script.isalpha() and base[-1].isalpha() and (len(script) > 1 or _WORD_BASE.search(base) is not None)


def _grouped(script: str) -> str:
    return script if _ATOM.fullmatch(script) else f"({script})"


def _apart(text: str, after: str) -> str:
    """A space where the next character would be read as part of the script."""
    return f"{text} " if after[:1].isalnum() and text[-1].isalnum() else text
