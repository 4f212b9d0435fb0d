"""Superscripts, subscripts and formulas in plain text, one rule for every format: a number keeps its value.

Bare characters would change it: 10 to the sixth would become 106, the year 2019 with note 1 the number 20191, and a
half 12. Knows characters and MathML; how a format marks a superscript is its reader's work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from clara.ingest.document import Element

_BASE = 24  # characters before a superscript that tell what it is
_ATOM = re.compile(r"[+\-−–]?(?:\w|[\d.,]+)|[+\-−–]|\([^()]*\)")  # what needs no parentheses
_MARKS = re.compile(r"\[?(\d{1,3}(?:\s?[,;–-]\s?\d{1,3})*)\]?")  # numbers of notes: 1, or 1,2, or 3–5
_ORDINAL = frozenset(["st", "nd", "rd", "th", "e", "er", "re", "ère", "ème", "o", "a", "os", "as", "ª", "º"])
# What is raised to a power: a ten, a number of up to three digits that is no part of a longer one, a unit or a
# variable of up to two letters, a short bracket. A year, a price or a word has the number of a note.
_TEN = re.compile(r"(?<![\d.,])10\Z")
_POWER_BASE = re.compile(
    r"(?:(?<![\d.,])\d{1,3}|(?<![^\W\d_])(?:[^\W\d_]{1,2}|mol|min|sec|rad|bar)|\([\w\s+*/·−-]{1,12}\))\Z"
)
_ROMAN = [(1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl")]
_ROMAN += [(10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")]
_WORD_BASE = re.compile(r"[^\W\d_]{2}\Z")

# Of formulas.
_TERM = re.compile(r"[+\-−]?(?:\w|[\d.,]+)|\w+\(\w*\)|\([^()]*\)|\[[^\[\]]*\]")  # what needs no parentheses
_INVISIBLE = re.compile("[\u2061-\u2064]")  # function application, invisible times and the like
_NOT_SHOWN = frozenset(["annotation", "annotation-xml", "mphantom", "mprescripts", "none"])
_SPACED = re.compile(r"([=<>≤≥≠≈≡→⇒∈])")


def tail(pieces: Sequence[str]) -> str:
    """The end of a text in pieces, as far as a superscript behind it depends on it."""
    found = ""
    for piece in reversed(pieces):
        found = piece + found
        if len(found) >= _BASE:
            break
    return found[-_BASE:]


def superscript(before: str, script: str, after: str = "") -> str:
    """What a superscript adds to the text before it, whose last characters are its base.

    The first character ``after`` it decides whether a space is needed.

    Returns:
        ``^6`` for a power, ``[1]`` for the mark of a note, the script itself where it changes no number (``th``).
    """
    script = script.strip()
    if not script:
        return ""
    base = before[-_BASE:]
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


def math_text(element: Element) -> str:
    """A ``<math>`` element as text."""
    try:
        text = _formula(element)
    except RecursionError:
        text = "".join(element.itertext())
    return " ".join(_SPACED.sub(r" \1 ", text).split())


def _formula(element: Element) -> str:
    if not isinstance(element.tag, str):
        return ""
    name = element.tag
    if name in _NOT_SHOWN:
        return ""
    parts = [part for part in (_formula(child) for child in element) if part]
    if name in _FORMS:
        return _FORMS[name](parts)
    own = " ".join((element.text or "").split())
    if name == "mtext" and own:
        own = f" {own} "
    return _INVISIBLE.sub("", own) + "".join(parts)


def _grouped_term(text: str) -> str:
    return text if _TERM.fullmatch(text) else f"({text})"


def _scripted(marks: str) -> Callable[[list[str]], str]:
    """Base and scripts; a script that a broken formula lacks adds nothing."""

    def form(parts: list[str]) -> str:
        base, *scripts = parts or [""]
        return base + "".join(mark + _grouped_term(script) for mark, script in zip(marks, scripts, strict=False))

    return form


def _over(parts: list[str]) -> str:
    """A base with something above: an accent stays an accent, a limit becomes an exponent."""
    if len(parts) == 2 and len(parts[1]) == 1 and not parts[1].isalnum():
        return parts[0] + parts[1]
    return _scripted("^")(parts)


def _root_sign(parts: list[str]) -> str:
    base, *degree = parts or [""]
    return f"√[{degree[0]}]{_grouped_term(base)}" if degree else f"√{_grouped_term(base)}"


_FORMS: dict[str, Callable[[list[str]], str]] = {
    "msup": _scripted("^"),
    "msub": _scripted("_"),
    "msubsup": _scripted("_^"),
    "munder": _scripted("_"),
    "mover": _over,
    "munderover": _scripted("_^"),
    "mmultiscripts": _scripted("_^"),
    "mfrac": lambda parts: "/".join(map(_grouped_term, parts)),
    "msqrt": lambda parts: f"√{_grouped_term(''.join(parts))}",
    "mroot": _root_sign,
    "mfenced": lambda parts: f"({', '.join(parts)})",
    "mtd": "".join,
    "mtr": ", ".join,
    "mtable": "; ".join,
}


def roman(count: int) -> str:
    """A number from 1 in small Roman numerals."""
    written = ""
    for value, letters in _ROMAN:
        written += letters * (count // value)
        count %= value
    return written
