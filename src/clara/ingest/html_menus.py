"""Which parts of a page are navigation: what the page calls so, and boxes named like menus that hold little but links.

A class name alone says nothing: prose stands in boxes called "sidebar" or "related" too.
"""

from __future__ import annotations

import re
from typing import Any

import lxml.etree

_ROLES = frozenset(["doc-toc", "menu", "menubar", "navigation"])
_BOXES = frozenset(["aside", "div", "footer", "header", "ol", "p", "section", "span", "table", "td", "ul"])
_NAMED_LIKE_MENUS = re.compile(
    r"nav|menu|sidebar|breadcrumb|pagination|pager|toctree|skip|(?:^|[\W_])toc", re.IGNORECASE
)
_NAMED_LIKE_CONTENTS = re.compile(r"(?:^|[\W_])(?:toc|contents)(?:$|[\W_])", re.IGNORECASE)
_LINKED = 0.5  # share of a menu's characters that are links; a paragraph with a few links has a tenth
_STEPS = frozenset(["back", "contents", "forward", "home", "index", "next", "prev", "previous", "top", "up"])
_BAR = 300  # characters: more is no bar of steps to other pages
_MAIN = frozenset(["article", "main"])


class Menus:
    """A page's navigation.

    Args:
        root: the page's tree.
    """

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - lxml elements have no type here
        self._root = root
        self._counted: dict[Any, _Links] | None = None

    def has(self, element: Any, name: str) -> bool:  # noqa: ANN401
        """Whether an element is a menu."""
        if name == "nav" or element.get("role") in _ROLES:
            return True
        named = f"{element.get('class', '')} {element.get('id', '')}"
        if name not in _BOXES or len(named) < 3:
            return False
        links = self._links(element) if _NAMED_LIKE_MENUS.search(named) else None
        if links is not None and links.outside_main and links.are_most():
            return True
        if _NAMED_LIKE_CONTENTS.search(named):
            links = self._links(element)
            return links.are_most() and links.here == links.count
        return False

    def _links(self, element: Any) -> _Links:  # noqa: ANN401
        if self._counted is None:
            self._counted = _count_links(self._root)
        return self._counted.get(element, _Links(outside_main=False))


class _Links:
    """How much of an element is links."""

    __slots__ = ("characters", "count", "here", "linked", "outside_main", "steps")

    def __init__(self, *, outside_main: bool) -> None:
        self.characters = self.linked = self.count = self.here = self.steps = 0
        self.outside_main = outside_main

    def are_most(self) -> bool:
        bar = self.steps > 1 and self.characters <= _BAR
        return bar or (self.count > 1 and self.linked >= _LINKED * self.characters)

    def add(self, inner: _Links) -> None:
        self.characters += inner.characters
        self.linked += inner.linked
        self.count += inner.count
        self.here += inner.here
        self.steps += inner.steps


def _count_links(root: Any) -> dict[Any, _Links]:  # noqa: ANN401
    """Links of every box that has a name, in one pass over the page: menus nest in boxes that look like menus."""
    found: dict[Any, _Links] = {}
    open_elements: list[_Links] = []
    in_main = 0
    for event, element in lxml.etree.iterwalk(root, events=("start", "end")):
        main = element.tag in _MAIN or element.get("role") == "main"
        if event == "start":
            in_main += main
            links = _Links(outside_main=not in_main)
            links.characters = _length(element.text)
            open_elements.append(links)
            continue
        in_main -= main
        links = open_elements.pop()
        if element.tag == "a":
            links.linked = links.characters
            links.count += 1
            links.here += element.get("href", "").startswith("#")
            links.steps += (element.text or "").strip(" <>«»←→").lower() in _STEPS
        if element.get("class") or element.get("id"):
            found[element] = links
        if open_elements:
            open_elements[-1].add(links)
            open_elements[-1].characters += _length(element.tail)
    return found


def _length(text: str | None) -> int:
    return len("".join(text.split())) if text else 0
