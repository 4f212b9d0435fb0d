"""Content of Word files that is not kept as text: equations, symbols, numbers of lists and clauses.

Knows Office Math, numbering definitions and styles; where a sign stands, and which paragraph comes when, is
``read_docx``'s work.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from docx.oxml import OxmlElement
from docx.oxml.ns import nsmap, qn

from clara.ingest.document import Element
from clara.ingest.scripts import UNKNOWN, joined, roman, symbols

_DELETED = frozenset([qn("w:del"), qn("w:moveFrom")])
_ATOM = re.compile(r"\w|[\d.,]+|\([^()]*\)")  # what needs no parentheses

_NAMES = {"w": nsmap["w"]}
_NOTHING = OxmlElement("w:abstractNum")
_LEVELS = 9
_PLACEHOLDER = re.compile(r"%([1-9])")
# Signs that count where letters do, each with the names that Word has for them; further on, digits stand.
_SIGNS = {
    "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳": ("decimalEnclosedCircle", "decimalEnclosedCircleChinese"),
    "甲乙丙丁戊己庚辛壬癸": ("ideographTraditional",),
    "가나다라마바사아자차카타파하": ("ganada",),
    "アイウエオカキクケコサシスセソタチツテト": ("aiueo", "aiueoFullWidth"),
    "イロハニホヘトチリヌルヲワカヨタレソツネ": ("iroha", "irohaFullWidth"),
    "абвгдежзиклмнопрстуфхцчшщыэюя": ("russianLower",),
    "АБВГДЕЖЗИКЛМНОПРСТУФХЦЧШЩЫЭЮЯ": ("russianUpper",),
    "أبتثجحخدذرزسشصضطظعغفقكلمنهوي": ("arabicAlpha",),
    "أبجدهوزحطيكلمنسعفصقرشتثخذضظغ": ("arabicAbjad",),
}
_SIGNS_OF = {name: signs for signs, names in _SIGNS.items() for name in names}
_HAN_COUNTING = re.compile(r"(?:chinese|japanese|taiwanese)Counting(?:Thousand)?")  # of this system up to 99
_HAN_DIGITS = "〇一二三四五六七八九"
_ORDINALS = {1: "st", 2: "nd", 3: "rd"}
_MOST_LETTERS = 26 * 20  # beyond, Word's own aaaa… says nothing


def symbol_text(symbol: Element) -> str:
    """The character of a ``w:sym``, or U+FFFD where that cannot be told."""
    try:
        character = symbols(chr(int(symbol.get(qn("w:char"), ""), 16)), symbol.get(qn("w:font"), ""))
    except (ValueError, OverflowError):
        return UNKNOWN
    shown = character.isprintable() or character.isspace()  # characters for private use are neither
    return character if shown else UNKNOWN


def equation_text(element: Element) -> str:
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
    return _FORMS[name](element) if name in _FORMS else _inside(element)


def _inside(element: Element) -> str:
    return joined((equation_text(part), part.tag != qn("m:r")) for part in element)


def _fraction(element: Element) -> str:
    bar = "¦" if _setting(element, "type", "bar") == "noBar" else "/"  # ¦: a binomial coefficient, in Word's notation
    return f"{_grouped(element, 'num')}{bar}{_grouped(element, 'den')}"


def _root(element: Element) -> str:
    degree = _part(element, "deg")
    return f"√[{degree}]{_grouped(element, 'e')}" if degree else f"√{_grouped(element, 'e')}"


def _scripts(element: Element) -> str:
    """A base with what stands below and above it."""
    below = _grouped(element, "sub") or (_grouped(element, "lim") if element.tag == qn("m:limLow") else "")
    above = _grouped(element, "sup") or (_grouped(element, "lim") if element.tag == qn("m:limUpp") else "")
    return f"{_part(element, 'e')}{below and '_' + below}{above and '^' + above}"


def _sum(element: Element) -> str:
    """A sum, a product or an integral."""
    below, above = _grouped(element, "sub"), _grouped(element, "sup")
    sign = _setting(element, "chr", "∫")
    return f"{sign}{below and '_' + below}{above and '^' + above} {_part(element, 'e')}"


def _fenced(element: Element) -> str:
    inside = _setting(element, "sepChr", "|").join(equation_text(part) for part in element.findall(qn("m:e")))
    return f"{_setting(element, 'begChr', '(')}{inside}{_setting(element, 'endChr', ')')}"


def _rows(element: Element) -> str:
    """A matrix, or equations one below the other."""
    parts = element.findall(qn("m:mr")) or element.findall(qn("m:e"))
    return "; ".join(map(equation_text, parts))


_FORMS: dict[str, Callable[[Element], str]] = {
    "f": _fraction,
    "rad": _root,
    **dict.fromkeys(("sSub", "sSup", "sSubSup", "sPre", "limLow", "limUpp"), _scripts),
    "nary": _sum,
    "d": _fenced,
    "func": lambda element: f"{_part(element, 'fName')} {_part(element, 'e')}",
    "acc": lambda element: f"{_part(element, 'e')}{_setting(element, 'chr', chr(0x302))}",
    "bar": lambda element: f"{_part(element, 'e')}{'‾' if _setting(element, 'pos', 'bot') == 'top' else '_'}",
    "mr": lambda element: " ".join(map(equation_text, element.findall(qn("m:e")))),
    **dict.fromkeys(("m", "eqArr"), _rows),
}


def _part(element: Element, name: str) -> str:
    part = element.find(qn(f"m:{name}"))
    return "" if part is None else _inside(part)


def _grouped(element: Element, name: str) -> str:
    text = _part(element, name)
    return text if not text or _ATOM.fullmatch(text) else f"({text})"


def _setting(element: Element, name: str, default: str) -> str:
    """A form's own property, such as the bracket that opens it."""
    settings = element.find(f"*/{qn(f'm:{name}')}")
    return default if settings is None else str(settings.get(qn("m:val"), ""))


@dataclass(frozen=True, slots=True)
class _Level:
    """Numbering of a level of a list; ``restart`` is the level after which it begins anew, from 1, 0 for never."""

    start: int
    form: str
    text: str
    restart: int | None
    decimal: bool


class _WordStyles:
    """Properties of paragraphs and characters, styles they are based on included."""

    def __init__(self, root: Element) -> None:
        self._styles = {style.get(qn("w:styleId")): style for style in root.iter(qn("w:style"))}
        self._found: dict[tuple[str | None, str], Element] = {}
        paragraphs = {name: each for name, each in self._styles.items() if each.get(qn("w:type")) == "paragraph"}
        defaults = [name for name, each in paragraphs.items() if each.get(qn("w:default")) in ("1", "true", "on")]
        self._default = defaults[0] if defaults else None

    def paragraph(self, properties: Element, path: str) -> Element:
        """A paragraph's property (``w:numPr``), its own or its style's; None where neither has it."""
        own = None if properties is None else properties.find(path, _NAMES)
        return own if own is not None else self.of(self.paragraph_style(properties), f"w:pPr/{path}")

    def run(self, properties: Element, path: str) -> Element:
        """A run's property (``w:vanish``), its own or its character style's."""
        if properties is None:
            return None
        own = properties.find(path, _NAMES)
        style = properties.find("w:rStyle", _NAMES)
        return own if own is not None or style is None else self.of(style.get(qn("w:val")), f"w:rPr/{path}")

    def paragraph_style(self, properties: Element) -> str | None:
        """The id of a paragraph's style."""
        style = None if properties is None else properties.find("w:pStyle", _NAMES)
        return self._default if style is None else style.get(qn("w:val"))

    def name(self, style: str | None) -> str:
        """A style's name in lower case, which is the same in every language of Word."""
        return (_value(self._styles.get(style), "w:name") or "").lower()

    def of(self, style: str | None, path: str) -> Element:
        """A property of a style itself, by its path (``w:pPr/w:numPr``), or None; looked for once."""
        asked = style, path
        if asked in self._found:
            return self._found[asked]
        found, seen = None, set()
        while found is None and style in self._styles and style not in seen:
            seen.add(style)  # styles of a broken file may be based on each other
            found = self._styles[style].find(path, _NAMES)
            style = _value(self._styles[style], "w:basedOn")
        self._found[asked] = found
        return found


class Numbering:
    """Counts the paragraphs of lists as they come, by the elements of the styles and of the definitions, or None."""

    def __init__(self, styles: Element, root: Element) -> None:
        self.styles = _WordStyles(styles)
        self._abstract: dict[str, Element] = {}
        self._numbers: dict[str, Element] = {}
        if root is not None:
            self._abstract = {item.get(qn("w:abstractNumId")): item for item in root.findall(qn("w:abstractNum"))}
            self._numbers = {item.get(qn("w:numId")): item for item in root.findall(qn("w:num"))}
        self._levels: dict[str, tuple[str, list[_Level]]] = {}
        self._counts: dict[str, list[int | None]] = {}
        self._begun: set[str] = set()

    def label(self, properties: Element) -> str:
        """The mark before a paragraph with these properties: ``3.``, ``(a)``, ``-``, or nothing. Counts it."""
        numbering = self.styles.paragraph(properties, "w:numPr")
        number = _value(numbering, "w:numId")
        if number is None or number == "0" or number not in self._numbers:
            return ""
        identity, levels = self._list(number)
        place = self._place(numbering, properties, levels, identity)
        if place >= len(levels):
            return ""
        self._count(number, identity, levels, place)
        return self._written(identity, levels, place)

    def _place(self, numbering: Element, properties: Element, levels: list[_Level], identity: str) -> int:
        """The level of a paragraph, from 0: said beside the list's number, or by the style that a level is tied to."""
        place = _value(numbering, "w:ilvl")
        if place is None:
            style = self.styles.paragraph_style(properties)
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

    def _definition(self, identity: str) -> Element:
        return self._abstract.get(identity, _NOTHING)

    def _linked(self, identity: str) -> str:
        """The definition itself where this one only names a list style."""
        style = _value(self._definition(identity), "w:numStyleLink")
        number = None if style is None else _value(self.styles.of(style, "w:pPr/w:numPr"), "w:numId")
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


def _level(element: Element) -> _Level:
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
    return "" if form in ("none", "bullet") else _in_signs(count, form)


def _in_signs(count: int, form: str) -> str:
    """A number as other scripts count, or as an ordinal; in digits where the form is none of those."""
    signs = _SIGNS_OF.get(form, "")
    if 0 < count <= len(signs):
        return signs[count - 1]
    if form == "ordinal":
        return f"{count}{'th' if count % 100 in (11, 12, 13) else _ORDINALS.get(count % 10, 'th')}"
    if _HAN_COUNTING.fullmatch(form) is None or not 0 < count < 100:
        return str(count)
    tens, ones = divmod(count, 10)
    written = (_HAN_DIGITS[tens] if tens > 1 else "") + ("十" if tens else "")
    return written + (_HAN_DIGITS[ones] if ones else "")


def is_on(element: Element) -> bool:
    """True if a property that is there or not is there, and not switched off."""
    return element is not None and element.get(qn("w:val"), "true") not in ("0", "false", "off")


def _value(element: Element, path: str) -> str | None:
    found = None if element is None else element.find(path, _NAMES)
    return None if found is None else found.get(qn("w:val"))


def _integer(text: str | None, default: int) -> int:
    try:
        return int(text or default)
    except ValueError:
        return default
