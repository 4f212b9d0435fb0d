"""Signs that a Word file does not keep as text: equations, and characters that only their font's name explains.

Knows Office Math and the private code tables of a few fonts; where a sign stands in a document is ``read_docx``'s work.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from docx.oxml.ns import qn

_UNKNOWN = "\ufffd"  # shows that a sign stood here
_DELETED = frozenset([qn("w:del"), qn("w:moveFrom")])
_ATOM = re.compile(r"\w|[\d.,]+|\([^()]*\)")  # what needs no parentheses

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


def symbol_text(symbol: Any) -> str:  # noqa: ANN401 - lxml elements have no type here
    """The character of a ``w:sym``, or U+FFFD where that cannot be told."""
    try:
        code = int(symbol.get(qn("w:char"), ""), 16)
        table = _FONTS.get(symbol.get(qn("w:font"), "").lower())
        character = chr(code) if table is None else table.get(code & 0xFF, _UNKNOWN)
    except (ValueError, OverflowError):
        return _UNKNOWN
    shown = character.isprintable() or character.isspace()  # characters for private use are neither
    return character if shown else _UNKNOWN


def equation_text(element: Any) -> str:  # noqa: ANN401
    """An equation on one line, as people type it: ``x^2``, ``(a+b)/2``, ``√(x+1)``.

    Bare characters would change its value: a half would become 12.
    """
    if not isinstance(element.tag, str) or element.tag in _DELETED:
        return ""
    name = element.tag.rpartition("}")[2]
    if name == "t":
        return element.text or ""
    if name == "sym":
        return symbol_text(element)
    if name.endswith("Pr"):
        return ""
    return _FORMS.get(name, _joined)(element)


def _joined(element: Any) -> str:  # noqa: ANN401
    return "".join(map(equation_text, element))


def _fraction(element: Any) -> str:  # noqa: ANN401
    bar = "¦" if _setting(element, "type", "bar") == "noBar" else "/"  # ¦: a binomial coefficient, in Word's notation
    return f"{_grouped(element, 'num')}{bar}{_grouped(element, 'den')}"


def _root(element: Any) -> str:  # noqa: ANN401
    degree = _part(element, "deg")
    return f"√[{degree}]{_grouped(element, 'e')}" if degree else f"√{_grouped(element, 'e')}"


def _scripts(element: Any) -> str:  # noqa: ANN401
    """A base with what stands below and above it."""
    below = _grouped(element, "sub") or (_grouped(element, "lim") if element.tag == qn("m:limLow") else "")
    above = _grouped(element, "sup") or (_grouped(element, "lim") if element.tag == qn("m:limUpp") else "")
    return f"{_part(element, 'e')}{below and '_' + below}{above and '^' + above}"


def _sum(element: Any) -> str:  # noqa: ANN401
    """A sum, a product or an integral."""
    below, above = _grouped(element, "sub"), _grouped(element, "sup")
    sign = _setting(element, "chr", "∫")
    return f"{sign}{below and '_' + below}{above and '^' + above} {_part(element, 'e')}"


def _fenced(element: Any) -> str:  # noqa: ANN401
    inside = _setting(element, "sepChr", "|").join(equation_text(part) for part in element.findall(qn("m:e")))
    return f"{_setting(element, 'begChr', '(')}{inside}{_setting(element, 'endChr', ')')}"


def _function(element: Any) -> str:  # noqa: ANN401
    return f"{_part(element, 'fName')} {_part(element, 'e')}"


def _accented(element: Any) -> str:  # noqa: ANN401
    return f"{_part(element, 'e')}{_setting(element, 'chr', chr(0x302))}"


def _row(element: Any) -> str:  # noqa: ANN401
    return " ".join(equation_text(part) for part in element.findall(qn("m:e")))


def _rows(element: Any) -> str:  # noqa: ANN401
    """A matrix, or equations one below the other."""
    parts = element.findall(qn("m:mr")) or element.findall(qn("m:e"))
    return "; ".join(map(equation_text, parts))


_FORMS: dict[str, Callable[[Any], str]] = {
    "f": _fraction,
    "rad": _root,
    **dict.fromkeys(("sSub", "sSup", "sSubSup", "sPre", "limLow", "limUpp"), _scripts),
    "nary": _sum,
    "d": _fenced,
    "func": _function,
    "acc": _accented,
    "mr": _row,
    **dict.fromkeys(("m", "eqArr"), _rows),
}


def _part(element: Any, name: str) -> str:  # noqa: ANN401
    part = element.find(qn(f"m:{name}"))
    return "" if part is None else _joined(part)


def _grouped(element: Any, name: str) -> str:  # noqa: ANN401
    text = _part(element, name)
    return text if not text or _ATOM.fullmatch(text) else f"({text})"


def _setting(element: Any, name: str, default: str) -> str:  # noqa: ANN401
    """A form's own property, such as the bracket that opens it."""
    settings = element.find(f"*/{qn(f'm:{name}')}")
    return default if settings is None else str(settings.get(qn("m:val"), ""))
