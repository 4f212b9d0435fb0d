"""Numbers of list items, clauses and headings, which a Word file does not keep as text but counts anew.

Knows numbering definitions and styles; which paragraph comes when is ``docx_text``'s work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from docx.oxml import OxmlElement
from docx.oxml.ns import nsmap, qn

_NAMES = {"w": nsmap["w"]}
_NOTHING = OxmlElement("w:abstractNum")
_LEVELS = 9
_PLACEHOLDER = re.compile(r"%([1-9])")
_ROMAN = [(1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl")]
_ROMAN += [(10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")]
_MOST_LETTERS = 26 * 20  # beyond, Word's own aaaa… says nothing


@dataclass(frozen=True, slots=True)
class _Level:
    """How one level of a list is numbered; ``restart`` is the level after which it begins anew, from 1, 0 for never."""

    start: int
    form: str
    text: str
    restart: int | None
    decimal: bool


class Styles:
    """Properties of paragraphs and characters, styles they are based on included."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - lxml elements have no type here
        self._styles = {style.get(qn("w:styleId")): style for style in root.iter(qn("w:style"))}
        self._found: dict[tuple[str | None, str], Any] = {}
        self._default = next(
            (
                name
                for name, style in self._styles.items()
                if style.get(qn("w:type")) == "paragraph" and style.get(qn("w:default")) in ("1", "true", "on")
            ),
            None,
        )

    def paragraph(self, properties: Any, path: str) -> Any:  # noqa: ANN401
        """A paragraph's property (``w:numPr``), its own or its style's; None where neither has it."""
        own = None if properties is None else properties.find(path, _NAMES)
        return own if own is not None else self._of(self.paragraph_style(properties), f"w:pPr/{path}")

    def run(self, properties: Any, path: str) -> Any:  # noqa: ANN401
        """A run's property (``w:vanish``), its own or its character style's."""
        if properties is None:
            return None
        own = properties.find(path, _NAMES)
        style = properties.find("w:rStyle", _NAMES)
        return own if own is not None or style is None else self._of(style.get(qn("w:val")), f"w:rPr/{path}")

    def paragraph_style(self, properties: Any) -> str | None:  # noqa: ANN401
        """The id of a paragraph's style."""
        style = None if properties is None else properties.find("w:pStyle", _NAMES)
        return self._default if style is None else style.get(qn("w:val"))

    def name(self, style: str | None) -> str:
        """A style's name in lower case, which is the same in every language of Word."""
        found = self._styles.get(style)
        named = None if found is None else found.find("w:name", _NAMES)
        return "" if named is None else (named.get(qn("w:val")) or "").lower()

    def numbering_of(self, style: str | None) -> Any:  # noqa: ANN401
        """The ``w:numPr`` of a style itself, or None."""
        return self._of(style, "w:pPr/w:numPr")

    def _of(self, style: str | None, path: str) -> Any:  # noqa: ANN401
        """A style's property; looked for once."""
        if (style, path) not in self._found:
            self._found[style, path] = self._search(style, path)
        return self._found[style, path]

    def _search(self, style: str | None, path: str) -> Any:  # noqa: ANN401
        seen = set()
        while style in self._styles and style not in seen:  # styles of a broken file may be based on each other
            seen.add(style)
            element = self._styles[style]
            found = element.find(path, _NAMES)
            if found is not None:
                return found
            based = element.find("w:basedOn", _NAMES)
            style = None if based is None else based.get(qn("w:val"))
        return None


class Numbering:
    """Counts the paragraphs of lists as they come.

    Args:
        root: the element of the numbering definitions, or None.
        styles: the document's styles.
    """

    def __init__(self, root: Any, styles: Styles) -> None:  # noqa: ANN401
        self._styles = styles
        self._abstract: dict[str, Any] = {}
        self._numbers: dict[str, Any] = {}
        if root is not None:
            self._abstract = {item.get(qn("w:abstractNumId")): item for item in root.findall(qn("w:abstractNum"))}
            self._numbers = {item.get(qn("w:numId")): item for item in root.findall(qn("w:num"))}
        self._levels: dict[str, tuple[str, list[_Level]]] = {}
        self._counts: dict[str, list[int | None]] = {}
        self._begun: set[str] = set()

    def label(self, properties: Any) -> str:  # noqa: ANN401
        """What stands before a paragraph: ``3.``, ``2.1``, ``(a)``, ``-`` for a bullet, or nothing. Counts it.

        Args:
            properties: the paragraph's ``w:pPr``, or None.
        """
        numbering = self._styles.paragraph(properties, "w:numPr")
        number = _value(numbering, "w:numId")
        if number is None or number == "0" or number not in self._numbers:
            return ""
        identity, levels = self._list(number)
        place = self._place(numbering, properties, levels, identity)
        if place >= len(levels):
            return ""
        self._count(number, identity, levels, place)
        return self._written(identity, levels, place)

    def _place(self, numbering: Any, properties: Any, levels: list[_Level], identity: str) -> int:  # noqa: ANN401
        """The level of a paragraph, from 0: said beside the list's number, or by the style that a level is tied to."""
        place = _value(numbering, "w:ilvl")
        if place is None:
            style = self._styles.paragraph_style(properties)
            tied = (
                level.get(qn("w:ilvl"))
                for level in self._definition(identity).findall(qn("w:lvl"))
                if _value(level, "w:pStyle") == style
            )
            place = next(tied, "0")
        return int(place) if place and place.isdigit() else len(levels)

    def _list(self, number: str) -> tuple[str, list[_Level]]:
        """The definition that a list's number stands for, and its levels with the number's own changes."""
        if number not in self._levels:
            item = self._numbers[number]
            identity = self._linked(_value(item, "w:abstractNumId") or "")
            levels = {level.get(qn("w:ilvl")): level for level in self._definition(identity).findall(qn("w:lvl"))}
            for change in item.findall(qn("w:lvlOverride")):
                own = change.find(qn("w:lvl"))
                if own is not None:
                    levels[change.get(qn("w:ilvl"))] = own
            self._levels[number] = identity, [_level(levels.get(str(place))) for place in range(_LEVELS)]
        return self._levels[number]

    def _definition(self, identity: str) -> Any:  # noqa: ANN401
        return self._abstract.get(identity, _NOTHING)

    def _linked(self, identity: str) -> str:
        """The definition itself where this one only names a list style."""
        style = _value(self._definition(identity), "w:numStyleLink")
        number = None if style is None else _value(self._styles.numbering_of(style), "w:numId")
        if number is None or number not in self._numbers:
            return identity
        return _value(self._numbers[number], "w:abstractNumId") or identity

    def _count(self, number: str, identity: str, levels: list[_Level], place: int) -> None:
        counts = self._counts.setdefault(identity, [None] * _LEVELS)
        if number not in self._begun:
            self._begun.add(number)
            for change in self._numbers[number].findall(qn("w:lvlOverride")):
                start, at = _value(change, "w:startOverride"), change.get(qn("w:ilvl"))
                if start is not None and at is not None and at.isdigit() and int(at) < _LEVELS:
                    counts[int(at)] = _integer(start, 1) - 1
        before = counts[place]
        counts[place] = levels[place].start if before is None else before + 1
        for above in range(place):
            if counts[above] is None:
                counts[above] = levels[above].start
        for below in range(place + 1, _LEVELS):
            restart = levels[below].restart
            if restart is None or place < restart:
                counts[below] = None

    def _written(self, identity: str, levels: list[_Level], place: int) -> str:
        level = levels[place]
        if level.form == "bullet":
            return "-"
        if level.form == "none":
            return _PLACEHOLDER.sub("", level.text).strip()

        def number(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            count = self._counts[identity][at]
            form = "decimal" if level.decimal else levels[at].form
            return _formatted(levels[at].start if count is None else count, form)

        return _PLACEHOLDER.sub(number, level.text).strip()


def _level(element: Any) -> _Level:  # noqa: ANN401
    if element is None:
        return _Level(1, "none", "", None, decimal=False)
    restart = _value(element, "w:lvlRestart")
    return _Level(
        start=_integer(_value(element, "w:start"), 0),
        form=_value(element, "w:numFmt") or "decimal",
        text=_value(element, "w:lvlText") or "",
        restart=None if restart is None else _integer(restart, 0),
        decimal=is_on(element.find(qn("w:isLgl"))),
    )


def _formatted(count: int, form: str) -> str:
    if form in ("upperLetter", "lowerLetter") and 0 < count <= _MOST_LETTERS:
        letters = chr(ord("a") + (count - 1) % 26) * ((count - 1) // 26 + 1)
        return letters.upper() if form == "upperLetter" else letters
    if form in ("upperRoman", "lowerRoman") and 0 < count < 4000:
        return roman(count).upper() if form == "upperRoman" else roman(count)
    if form == "decimalZero":
        return f"{count:02}"
    return "" if form in ("none", "bullet") else str(count)


def roman(count: int) -> str:
    """A number from 1 in small Roman numerals."""
    written = ""
    for value, letters in _ROMAN:
        written += letters * (count // value)
        count %= value
    return written


def is_on(element: Any) -> bool:  # noqa: ANN401
    """Whether a property that is there or not is there, and not switched off."""
    return element is not None and element.get(qn("w:val"), "true") not in ("0", "false", "off")


def _value(element: Any, path: str) -> str | None:  # noqa: ANN401
    found = None if element is None else element.find(path, _NAMES)
    return None if found is None else found.get(qn("w:val"))


def _integer(text: str | None, default: int) -> int:
    try:
        return int(text or default)
    except ValueError:
        return default
