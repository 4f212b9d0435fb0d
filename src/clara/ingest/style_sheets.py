"""What a web page's own style sheets do to its parts: which they hide for good, which they raise, strike or number.

A script may show what a sheet hides, as those of tabs and of steps do; so may another rule, where a reader points or
ticks. Both are taken to do so: text that is read for nothing costs less than text that is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clara.ingest.document import Element

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_BRACE = re.compile(r"([{}])")
_HIDES = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)
_SHOWS = re.compile(r"(?:display\s*:\s*+(?!none)|visibility\s*:\s*visible)", re.IGNORECASE)
# What ``html_text`` reads of a style; a part that ``top`` moves is a script only where it keeps its place in the line.
_TOLD = re.compile(
    r"\s*(?:vertical-align|text-decoration|white-space|(?:list-style|display)(?!.*none)|top)\b", re.IGNORECASE
)
_IN_ITS_LINE = re.compile(r"position\s*:\s*relative", re.IGNORECASE)
_COMPOUND = re.compile(r"(?P<name>[a-z][a-z0-9]*|\*)?(?P<marks>(?:[.#][\w-]+)+)", re.IGNORECASE)  # div.wide, #note
_MARK = re.compile(r"[.#][\w-]+")
_DATA_SCRIPT = re.compile(r"application/(?:ld\+)?json|math/", re.IGNORECASE)


class StyleSheets:
    """The rules of a page's ``<style>`` elements that hide, raise, strike or number."""

    def __init__(self, root: Element) -> None:
        self._hiding: list[_Selector] = []
        self._telling: dict[str, list[tuple[_Selector, str]]] = {}  # by one of the marks, for a sheet may be long
        rules = [rule for sheet in root.iter("style") for rule in _rules(_COMMENT.sub("", "".join(sheet.itertext())))]
        hiding: list[str] = []
        for selectors, declarations, in_block in rules:
            if in_block:
                continue
            told = _told(declarations)
            for selector in _selectors(selectors) if told else ():
                self._telling.setdefault(min(selector.marks), []).append((selector, told))
            if _HIDES.search(declarations):
                hiding.append(selectors)
        if not hiding or _has_scripts(root):
            return
        shown = {mark for selectors, words, _ in rules if _SHOWS.search(words) for mark in _MARK.findall(selectors)}
        self._hiding = [each for each in _selectors(",".join(hiding)) if shown.isdisjoint(each.marks)]

    def hide(self, element: Element, name: str) -> bool:
        """True if a rule hides an element."""
        if not self._hiding or _SHOWS.search(element.get("style", "")):
            return False
        marks = _marks(element)
        return any(each.matches(name, marks) for each in self._hiding)

    def told(self, element: Element, name: str) -> str:
        """What the rules tell of an element, as a style."""
        if not self._telling:
            return ""
        marks = _marks(element)
        rules = (rule for mark in marks for rule in self._telling.get(mark, ()))
        return ";".join(told for selector, told in rules if selector.matches(name, marks))


@dataclass(frozen=True, slots=True)
class _Selector:
    """The element's name or the empty string, and the classes and ids that it has."""

    name: str
    marks: frozenset[str]

    def matches(self, name: str, marks: set[str]) -> bool:
        return self.marks <= marks and self.name in ("", name)


def _selectors(text: str) -> Iterator[_Selector]:
    """The simple ones of a list of selectors."""
    for selector in text.split(","):
        if found := _COMPOUND.fullmatch(selector.strip()):
            yield _Selector((found["name"] or "").lower().strip("*"), frozenset(_MARK.findall(found["marks"])))


def _marks(element: Element) -> set[str]:
    return {f".{each}" for each in element.get("class", "").split()} | {f"#{element.get('id', '')}"}


def _told(declarations: str) -> str:
    """What declarations tell that changes a text's meaning."""
    in_line = _IN_ITS_LINE.search(declarations) is not None
    parts = (part.strip() for part in declarations.split(";") if _TOLD.match(part))
    return ";".join(part for part in parts if in_line or not part.lower().startswith("top"))


def _rules(sheet: str) -> Iterator[tuple[str, str, bool]]:
    """Selectors and declarations of each rule, and whether it holds only at times: on paper, on small screens."""
    around: list[str] = []
    words = ""
    for part in _BRACE.split(sheet):
        if part == "{":
            around.append(words.rpartition(";")[2].strip())
        elif part == "}":
            if around and not around[-1].startswith("@"):
                yield around[-1], words, any(outer.startswith("@") for outer in around)
            around[-1:] = []
        words = "" if part in ("{", "}") else part


def _has_scripts(root: Element) -> bool:
    scripts = (element for element in root.iter("script") if not _DATA_SCRIPT.match(element.get("type", "")))
    return next(scripts, None) is not None or any(
        attribute.startswith("on") for element in root.iter("*") for attribute in element.attrib
    )
