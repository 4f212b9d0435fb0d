"""Which parts of a web page its own style sheets hide for good, so that no reader sees them.

A script may show what a sheet hides, as those of tabs and of steps do; so may another rule, where a reader points or
ticks. Both are taken to do so: text that is read for nothing costs less than text that is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from clara.ingest.document import Element

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_BRACE = re.compile(r"([{}])")
_HIDES = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)
_SHOWS = re.compile(r"(?:display\s*:\s*+(?!none)|visibility\s*:\s*visible)", re.IGNORECASE)
_COMPOUND = re.compile(r"(?P<name>[a-z][a-z0-9]*|\*)?(?P<marks>(?:[.#][\w-]+)+)", re.IGNORECASE)  # div.wide, #note
_MARK = re.compile(r"[.#][\w-]+")
_DATA_SCRIPT = re.compile(r"application/(?:ld\+)?json|math/", re.IGNORECASE)


class StyleSheets:
    """The rules of a page's ``<style>`` elements that hide."""

    def __init__(self, root: Element) -> None:
        self._hiding: list[tuple[str, frozenset[str]]] = []  # element's name or "", classes and ids
        rules = [rule for sheet in root.iter("style") for rule in _rules(_COMMENT.sub("", "".join(sheet.itertext())))]
        hiding = [
            selectors for selectors, declarations, in_block in rules if _HIDES.search(declarations) and not in_block
        ]
        if not hiding or _has_scripts(root):
            return
        shown = {mark for selectors, words, _ in rules if _SHOWS.search(words) for mark in _MARK.findall(selectors)}
        for selector in ",".join(hiding).split(","):
            found = _COMPOUND.fullmatch(selector.strip())
            if found and shown.isdisjoint(marks := frozenset[str](_MARK.findall(found["marks"]))):
                self._hiding.append(((found["name"] or "").lower().strip("*"), marks))

    def hide(self, element: Element, name: str) -> bool:
        """True if a rule hides an element."""
        if not self._hiding or _SHOWS.search(element.get("style", "")):
            return False
        marks = {f".{each}" for each in element.get("class", "").split()} | {f"#{element.get('id', '')}"}
        return any(rule_marks <= marks and rule_name in ("", name) for rule_name, rule_marks in self._hiding)


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
