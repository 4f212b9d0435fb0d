"""Superscripts, subscripts, formulas and symbols in plain text, one rule for every format: a number keeps its value.

Bare characters would change it: 10 to the sixth would become 106, the year 2019 with note 1 the number 20191, and a
half 12. Knows characters, MathML and the code tables of a few fonts; how a format marks a superscript is its reader's
work.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

from clara.ingest.document import Element

_BASE = 24  # characters before a superscript that tell what it is
_ATOM = re.compile(r"[+\-−–]?(?:\w|[\d.,]+)|[+\-−–]|\([^()]*\)")  # what needs no parentheses
_MARKS = re.compile(r"\[?(\d{1,3}(?:\s?[,;–-]\s?\d{1,3})*)\]?")  # numbers of notes: 1, or 1,2, or 3–5
_ORDINAL = frozenset(["st", "nd", "rd", "th", "e", "er", "re", "ère", "ème", "o", "a", "os", "as", "ª", "º"])
# What is raised to a power: a ten, a number of up to three digits that is no part of a longer one, a unit or a
# variable of up to two letters, a short bracket, what counts bytes. A year, a price or a word has the number of a note.
_TEN = re.compile(r"(?<![\d.,])10\Z")
_POWER_BASE = re.compile(
    r"(?:(?<![\d.,])(?:\d{1,3}|(?<![Ii]n )(?:1000|1024|4096|8192))"
    r"|(?<![^\W\d_])(?:[^\W\d_]{1,2}|mol|min|sec|rad|bar|sinh?|cosh?|tanh?|cot)|\([\w\s+*/·−-]{1,12}\))\Z"
)
_FRACTION = re.compile(r"(?:(?<=\d)(?:\^(\d{1,3})|\[(\d{1,3})\])|(?<!\d)(\d{1,3}))\s?(?:/_|⁄_?)(\d{1,4})(?!\d)")
_ROMAN = [(1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl")]
_ROMAN += [(10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")]
_WORD_BASE = re.compile(r"[^\W\d_]{2}\Z")
_LETTER_MARK = re.compile(r"[a-z](?:\s?,\s?[a-z])*")  # of notes below tables
_MARKED_WORD = re.compile(r"[^\W\d_]{3}\Z")  # Dr, Sr and the like have ends that are set high
_TRADE_MARKS = {"TM": "™", "SM": "℠", "(R)": "®"}
_DEGREES = re.compile(r"\s?[CF](?![^\W_])")

# Of formulas.
_TERM = re.compile(r"[+\-−]?(?:\w|[\d.,]+)|\w+\(\w*\)|\([^()]*\)|\[[^\[\]]*\]")  # what needs no parentheses
_INVISIBLE = re.compile("[\u2061-\u2064]")  # function application, invisible times and the like
_NOT_SHOWN = frozenset(["annotation", "annotation-xml", "mphantom", "none"])
_SCRIPTED = frozenset(["mmultiscripts", "mover", "msub", "msubsup", "msup", "munder", "munderover"])
_SIGNS = frozenset(["mi", "mn", "mo"])
_SPACED = re.compile(r"([=<>≤≥≠≈≡→⇒∈])")


STRUCK = "~~"
"""Mark before and behind struck text."""


@dataclass(frozen=True, slots=True)
class Script:
    """A part of a line that stands raised, else lowered."""

    text: str
    raised: bool


UNKNOWN = "\ufffd"
"""Shows that a sign stood here."""

# The encoding of the font Symbol: www.unicode.org/Public/MAPPINGS/VENDORS/ADOBE/symbol.txt
_SYMBOL_FROM_20 = " !∀#∃%&∋()∗+,−./0123456789:;<=>?≅ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_‾αβχδεφγηιϕκλμνοπθρστυϖωξψζ{|}∼"
_SYMBOL_FROM_A0 = "€ϒ′≤⁄∞ƒ♣♦♥♠↔←↑→↓°±″≥×∝∂•÷≠≡≈…⏐⎯↵ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓◊⟨®©™∑⎛⎜⎝⎡⎢⎣⎧⎨⎩⎪\ufffd⟩∫⌠⎮⌡⎞⎟⎠⎤⎥⎦⎫⎬⎭"
_FONTS = {
    "symbol": dict(enumerate(_SYMBOL_FROM_20, 0x20)) | dict(enumerate(_SYMBOL_FROM_A0, 0xA0)),
    # What Word's AutoCorrect, its bullets and forms put into a text; the other pictures say next to nothing.
    "wingdings": {0x4A: "☺", 0x4B: "😐", 0x4C: "☹", 0x6C: "●", 0x6E: "■", 0x6F: "□", 0x9F: "•", 0xA7: "▪", 0xA8: "☐"}
    | {0xD8: "➢", 0xDF: "←", 0xE0: "→", 0xE1: "↑", 0xE2: "↓", 0xE7: "⇐", 0xE8: "⇒", 0xF3: "⇔"}
    | {0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑"},
    "wingdings 2": {0x4F: "✗", 0x50: "✓", 0x51: "☒", 0x52: "☑", 0x53: "☒", 0xA3: "☐"},
}


def symbols(text: str, font: str) -> str:
    """A text in a font whose characters are symbols, in Unicode; in any other font as it is."""
    table = _FONTS.get(font.strip().lower())
    return text if table is None else "".join(_symbol(character, table) for character in text)


def _symbol(character: str, table: dict[int, str]) -> str:
    code = ord(character)
    if code > 0xFF and not 0xF000 <= code <= 0xF0FF:  # for private use; else as programs show a byte of Windows
        code = (character.encode("cp1252", "ignore") or b" ")[0]
    return character if chr(code).isspace() else table.get(code & 0xFF, UNKNOWN)


def spelt(pieces: Iterable[str | Script]) -> str:
    """A line by its pieces; programs divide one script, or one struck text, into several."""
    line: list[str | Script] = []
    for piece in pieces:
        before = line[-1] if line else ""
        if piece == before == STRUCK:
            line.pop()
        elif isinstance(piece, Script) and isinstance(before, Script) and piece.raised == before.raised:
            line[-1] = Script(before.text + piece.text, piece.raised)
        elif piece:
            line.append(piece)
    text: list[str] = []
    for number, piece in enumerate(line):
        if isinstance(piece, str):
            text.append(piece)
            continue
        base = tail(text).replace(STRUCK, "")
        blank = piece.text[len(piece.text.rstrip()) :]
        follows = "".join(each for each in line[number + 1 : number + 2] if isinstance(each, str))
        text += [(superscript if piece.raised else subscript)(base, piece.text, blank or follows), blank]
    return "".join(text)


def tail(pieces: Sequence[str | Script]) -> str:
    """The end of a line in pieces, as far as a script or a formula behind it depends on it."""
    last = pieces[-_BASE:]
    return (spelt(last) if any(isinstance(piece, Script) for piece in last) else "".join(map(str, last)))[-_BASE:]


def superscript(before: str, script: str, after: str = "") -> str:
    """Spelling of a superscript behind the text before it, whose last characters are its base.

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
    if sign := _sign(base, script, after):
        return sign
    if _is_note(base, script):
        return f"[{_MARKS.fullmatch(script)[1]}]"  # type: ignore[index] # ``_is_note`` has matched it
    if not any(character.isalnum() or character in "+-−" for character in script) or _reads_on(base, script, after):
        return script
    return _apart(f"^{_grouped(script)}", after)


def subscript(before: str, script: str, after: str = "") -> str:
    """Spelling of a subscript behind the text before it.

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


# Accents that fonts hold apart from their letters, as those of TeX do, and the combining characters they are.
_ACCENTS = {
    "`": "\u0300", "\u00b4": "\u0301", "\u02c6": "\u0302", "\u02dc": "\u0303", "\u00af": "\u0304", "\u02d8": "\u0306",
    "\u02d9": "\u0307", "\u00a8": "\u0308", "\u02da": "\u030a", "\u02dd": "\u030b", "\u02c7": "\u030c",
    "\u00b8": "\u0327",
}  # fmt: skip
_WITH_DOT = {"\u0131": "i", "\u0237": "j"}


def with_accent(letter: str, accent: str) -> str:
    """The letter with an accent that stands apart from it, whichever of the two comes first; else empty."""
    if letter in _ACCENTS:
        letter, accent = accent, letter
    combined = unicodedata.normalize("NFC", _WITH_DOT.get(letter, letter) + _ACCENTS.get(accent, ""))
    return combined if accent in _ACCENTS and letter.isalpha() and len(combined) == 1 else ""


def fractions(text: str) -> str:
    """A line whose fractions, set as a raised number over a lowered one, read as people type them: 3 1/2."""
    if "/_" not in text and "⁄" not in text:
        return text
    return _FRACTION.sub(lambda found: f"{_over_one(found[1] or found[2])}{found[3] or ''}/{found[4]}", text)


def _over_one(raised: str | None) -> str:
    """The numerator behind a whole number; without the space, 3 1/2 would be 31/2."""
    return f" {raised}" if raised else ""


def _sign(base: str, script: str, after: str) -> str:
    """The sign that letters set high stand for: of a trade mark, of degrees, of a note; else the empty string."""
    if script in _TRADE_MARKS and base[-1].isalnum():
        return _TRADE_MARKS[script]
    if script in ("o", "0") and base[-1].isdigit() and _DEGREES.match(after):
        return "°"
    marks = _LETTER_MARK.fullmatch(script) and _MARKED_WORD.search(base) and not after[:1].isalnum()
    if not marks:
        return ""
    return f"^{script}" if _POWER_BASE.search(base) else f"[{script}]"


def _is_note(base: str, script: str) -> bool:
    if _MARKS.fullmatch(script) is None:
        return False
    return _TEN.search(base) is None and _POWER_BASE.search(base) is None


def _reads_on(base: str, script: str, after: str) -> bool:
    """True if a superscript is read as part of the word: 21st, Mlle, and in the logo of LaTeX."""
    if (base[-1], script, after[:1]) == ("L", "A", "T"):
        return True
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
    children = [(_formula(child), child.tag not in _SIGNS) for child in element if child.tag != "mprescripts"]
    if name == "mfrac" and element.get("linethickness", "").startswith("0"):  # a binomial coefficient
        return "¦".join(_grouped_term(text) for text, _ in children)
    if name in _FORMS:
        return _FORMS[name]([text for text, _ in children if text or name in _SCRIPTED])  # a script may have no base
    own = " ".join((element.text or "").split())
    if name == "mtext" and own:
        own = f" {own} "
    return _INVISIBLE.sub("", own) + (" " if name == "mspace" else joined(children))


def set_beside(before: str, formula: str) -> str:
    """A formula behind the text before it, from which its first number stays apart."""
    return joined([(before, False), (formula, True)])[len(before) :]


def joined(parts: Iterable[tuple[str, bool]]) -> str:
    """Parts of a formula, of each whether it is more than a sign or number, with a space where two would run together.

    ``3`` before a half is ``3 1/2``, ``3`` behind a square ``x^2 3``.
    """
    text, was_form = "", False
    for part, is_form in parts:
        if text[-1:].isalnum() and part[:1].isalnum():
            numbers = text[-1].isdigit() and part[0].isdigit()
            text += " " if was_form or (is_form and numbers) else ""
        text += part
        was_form = is_form if part else was_form
    return text


def _grouped_term(text: str) -> str:
    return text if _TERM.fullmatch(text) else f"({text})"


def _scripted(marks: str) -> Callable[[list[str]], str]:
    """Base and scripts; a script that a broken formula lacks adds nothing."""

    def form(parts: list[str]) -> str:
        base, *scripts = parts or [""]
        return base + "".join(mark + _grouped_term(script) for mark, script in zip(cycle(marks), scripts) if script)

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


def _letters(count: int) -> str:
    """A number from 1 as lists count in letters: a to z, then aa."""
    written = ""
    while count > 0:
        count, place = divmod(count - 1, 26)
        written = chr(ord("a") + place) + written
    return written


def roman(count: int) -> str:
    """A number from 1 in small Roman numerals."""
    written = ""
    for value, letters in _ROMAN:
        written += letters * (count // value)
        count %= value
    return written


def numeral(count: int, form: str) -> str:
    """A number from 1 in a form of lists: ``a``, ``A``, ``i`` or ``I``; in digits for any other."""
    written = {"a": _letters, "i": roman}.get(form.lower(), str)(count)
    return written.upper() if form in ("A", "I") else written
