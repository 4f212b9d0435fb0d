"""MathML as people type it on one line: ``x^2``, ``(a+b)/2``, ``√(x+1)``; bare characters would change its value.

Where a formula stands in a page is ``html_text``'s work.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_ATOM = re.compile(r"[+\-−]?(?:\w|[\d.,]+)|\w+\(\w*\)|\([^()]*\)|\[[^\[\]]*\]")  # what needs no parentheses
_INVISIBLE = re.compile("[\u2061-\u2064]")  # function application, invisible times and the like
_NOT_SHOWN = frozenset(["annotation", "annotation-xml", "mphantom", "mprescripts", "none"])
_SPACED = re.compile(r"([=<>≤≥≠≈≡→⇒∈])")


def math_text(element: Any) -> str:  # noqa: ANN401 - lxml elements have no type here
    """A ``<math>`` element as text."""
    try:
        text = _text(element)
    except RecursionError:
        text = "".join(element.itertext())
    return " ".join(_SPACED.sub(r" \1 ", text).split())


def _text(element: Any) -> str:  # noqa: ANN401
    if not isinstance(element.tag, str):
        return ""
    name = element.tag
    if name in _NOT_SHOWN:
        return ""
    parts = [part for part in (_text(child) for child in element) if part]
    if name in _FORMS:
        return _FORMS[name](parts)
    own = " ".join((element.text or "").split())
    if name == "mtext" and own:
        own = f" {own} "
    return _INVISIBLE.sub("", own) + "".join(parts)


def _grouped(text: str) -> str:
    return text if _ATOM.fullmatch(text) else f"({text})"


def _scripted(marks: str) -> Callable[[list[str]], str]:
    """Base and scripts; a script that a broken formula lacks adds nothing."""

    def form(parts: list[str]) -> str:
        base, *scripts = parts or [""]
        return base + "".join(mark + _grouped(script) for mark, script in zip(marks, scripts, strict=False))

    return form


def _fraction(parts: list[str]) -> str:
    return "/".join(map(_grouped, parts))


def _over(parts: list[str]) -> str:
    """A base with something above: an accent stays an accent, a limit becomes an exponent."""
    if len(parts) == 2 and len(parts[1]) == 1 and not parts[1].isalnum():
        return parts[0] + parts[1]
    return _scripted("^")(parts)


def _root(parts: list[str]) -> str:
    base, *degree = parts or [""]
    return f"√[{degree[0]}]{_grouped(base)}" if degree else f"√{_grouped(base)}"


_FORMS: dict[str, Callable[[list[str]], str]] = {
    "msup": _scripted("^"),
    "msub": _scripted("_"),
    "msubsup": _scripted("_^"),
    "munder": _scripted("_"),
    "mover": _over,
    "munderover": _scripted("_^"),
    "mmultiscripts": _scripted("_^"),
    "mfrac": _fraction,
    "msqrt": lambda parts: f"√{_grouped(''.join(parts))}",
    "mroot": _root,
    "mfenced": lambda parts: f"({', '.join(parts)})",
    "mtd": "".join,
    "mtr": ", ".join,
    "mtable": "; ".join,
}
