"""Texts of LibreOffice (.odt): headings, paragraphs, lists, tables and notes, as in the file's own order."""

from __future__ import annotations

import zipfile
from collections import Counter
from typing import Any

import lxml.etree

from clara.ingest.document import Extract
from clara.ingest.html_flow import Cell, Flow, Gap, Table
from clara.ingest.html_math import math_text
from clara.ingest.packages import attribute, linked, local_name, open_package, xml_part
from clara.ingest.report import fault
from clara.ingest.scripts import subscript, superscript

_LEFT_OUT = {
    "annotation": "comments",
    "ruby-text": "",  # how the characters beside it are read
    "sequence-decls": "",
    "tracked-changes": "deleted parts",
}
_MOST_REPEATED = 1000  # cells and blanks that one element stands for
_SUPER, _SUB, _HIDDEN = "super", "sub", "hidden"


def extract_odt(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a text document; its title is the one among its properties.

    Raises:
        DocumentError: damaged, encrypted, too large when unpacked, or without text.
    """
    with open_package(data, uri, max_bytes) as archive:
        manifest = xml_part(archive, "META-INF/manifest.xml")
        if manifest is not None and any(local_name(element) == "encryption-data" for element in manifest.iter()):
            raise fault(uri, "encrypted", "needs a password; save a copy without one")
        content = xml_part(archive, "content.xml")
        if content is None:
            raise fault(uri, "broken", "has no content, so it is no OpenDocument text; save or download it again")
        styles = xml_part(archive, "styles.xml")
        walk = _Text(content, _positions(*(part for part in (styles, content) if part is not None)), archive)
        title = _title(xml_part(archive, "meta.xml"))
    if styles is not None and (count := _page_parts(styles)):
        walk.left_out["page headers and footers"] = count
    text, headings = walk.flow.text()
    if not text:
        raise fault(uri, "no text", "shows no text")
    return Extract(
        title=title,
        text=text,
        metadata={"media_type": "application/vnd.oasis.opendocument.text"},
        headings=headings,
        left_out=walk.left_out,
        layout="markup",
    )


def _title(meta: Any) -> str:  # noqa: ANN401 - lxml elements have no type here
    titles = [] if meta is None else ["".join(item.itertext()) for item in meta.iter() if local_name(item) == "title"]
    return titles[0] if titles else ""


def _page_parts(styles: Any) -> int:  # noqa: ANN401
    parts = (part for part in styles.iter() if local_name(part) in ("header", "footer"))
    return sum(bool("".join(part.itertext()).strip()) for part in parts)


def _positions(*parts: Any) -> dict[str, str]:  # noqa: ANN401
    """Names of the styles that raise, lower or hide text."""
    found: dict[str, str] = {}
    for style in (element for part in parts for element in part.iter() if local_name(element) == "style"):
        for settings in style:
            place = attribute(settings, "text-position").split(" ")[0]
            if attribute(settings, "display") == "none":
                found[attribute(style, "name")] = _HIDDEN
            elif place in (_SUPER, _SUB):
                found[attribute(style, "name")] = place
            elif place.rstrip("%").lstrip("-").isdigit() and place not in ("0%", "-0%"):
                found[attribute(style, "name")] = _SUB if place.startswith("-") else _SUPER
    return found


class _Text:
    """One walk over a document's elements."""

    def __init__(self, root: Any, positions: dict[str, str], archive: zipfile.ZipFile) -> None:  # noqa: ANN401
        self.flow = Flow()
        self.left_out = Counter[str]()
        self._positions = positions
        self._archive = archive
        self._tables: list[Table] = []
        self._around: list[Flow] = []  # the flows around the open cells and notes
        self._lists: list[int | None] = []
        self._numbered = _numbered_levels(root)
        self._list_names: list[str] = []
        self._scripts: list[tuple[Any, tuple[int, int]]] = []
        self._notes: list[Flow] = []
        self._citation = ""
        body = next((element for element in root.iter() if local_name(element) == "body"), root)
        self._walk(body)

    def _walk(self, body: Any) -> None:  # noqa: ANN401
        walk = lxml.etree.iterwalk(body, events=("start", "end"))
        skipped: Any = None
        for event, element in walk:
            name = local_name(element)
            if event == "start":
                if self._is_left_out(element, name):
                    skipped = element
                    walk.skip_subtree()
                    continue
                self._open(element, name)
                self._add(element.text)
            else:
                if element is skipped:
                    skipped = None
                else:
                    self._close(element, name)
                self._add(element.tail)

    def _add(self, text: str | None) -> None:
        if text:
            self.flow.add(text)

    def _is_left_out(self, element: Any, name: str) -> bool:  # noqa: ANN401
        if not name:
            return True
        if name in _LEFT_OUT:
            if kind := _LEFT_OUT[name]:
                self.left_out[kind] += 1
            return True
        if self._positions.get(attribute(element, "style-name")) == _HIDDEN and name in ("span", "p", "h"):
            self.left_out["hidden parts"] += 1
            return True
        return self._is_replaced(element, name)

    def _is_replaced(self, element: Any, name: str) -> bool:  # noqa: ANN401
        if name in ("s", "tab"):
            self.flow.add(" ")
        elif name == "line-break":
            self.flow.end(Gap.LINE)
        elif name == "object":
            self._object(attribute(element, "href"))
        else:
            return name == "covered-table-cell"
        return True

    def _object(self, reference: str) -> None:
        """A formula is read; other objects are counted."""
        part = linked("content.xml", reference) + "/content.xml"
        root = xml_part(self._archive, part) if reference else None
        if root is None or local_name(root) != "math":
            self.left_out["embedded objects"] += 1
            return
        for element in root.iter(lxml.etree.Element):
            element.tag = local_name(element)
        self.flow.add(math_text(root))

    def _open(self, element: Any, name: str) -> None:  # noqa: ANN401
        if name == "h":
            self.flow.end(Gap.BLANK)
            level = attribute(element, "outline-level")
            self.flow.mark("#" * min(int(level) if level.isdigit() else 1, 6) + " ", "heading")
        elif name == "p":
            self.flow.end(Gap.LINE if self._lists or self._around else Gap.BLANK)
        elif name == "list":
            self._open_list(element)
        elif name == "list-item" and self._lists:
            self._item()
        elif name == "note-citation" or (name == "span" and self._positions.get(attribute(element, "style-name"))):
            self._scripts.append((element, self.flow.position()))
        elif name == "note-body":
            self._around.append(self.flow)
            self.flow = Flow()
            self.flow.mark(f"[{self._citation}] ", "item")
        else:
            self._open_table_part(name)

    def _close(self, element: Any, name: str) -> None:  # noqa: ANN401
        if name in ("h", "p"):
            self.flow.end(Gap.BLANK if name == "h" or not (self._lists or self._around) else Gap.LINE)
            self.flow.unmark()
            if not self._around:
                self._write_notes()
        elif name == "list" and self._lists:
            self._lists.pop()
            self._list_names.pop()
            self.flow.end(Gap.LINE if self._lists else Gap.BLANK)
        elif self._scripts and self._scripts[-1][0] is element:
            self._script(element, name)
        elif name == "note-body":
            self.flow.end()
            self._notes.append(self.flow)
            self.flow = self._around.pop()
        else:
            self._close_table_part(element, name)

    def _open_list(self, element: Any) -> None:  # noqa: ANN401
        self.flow.end(Gap.LINE if self._lists else Gap.BLANK)
        name = attribute(element, "style-name") or (self._list_names[-1] if self._list_names else "")
        self._list_names.append(name)
        start = self._numbered.get((name, len(self._list_names)))
        self._lists.append(start)

    def _item(self) -> None:
        indent = "  " * (len(self._lists) - 1)
        number = self._lists[-1]
        self.flow.mark(f"{indent}- " if number is None else f"{indent}{number}. ", "item")
        if number is not None:
            self._lists[-1] = number + 1

    def _script(self, element: Any, name: str) -> None:  # noqa: ANN401
        script = self.flow.cut(self._scripts.pop()[1])
        if not script or not script.strip():
            return
        if name == "note-citation":
            self._citation = script.strip()
            self.flow.add(f"[{self._citation}]")
            return
        raised = self._positions[attribute(element, "style-name")] == _SUPER
        self.flow.add((superscript if raised else subscript)(self.flow.tail(32), script, element.tail or ""))

    def _write_notes(self) -> None:
        """The notes of a paragraph behind it, each after its mark's number."""
        for note in self._notes:
            self.flow.extend(note.lines, Gap.BLANK)
            self.flow.end(Gap.BLANK)
        self._notes.clear()

    def _open_table_part(self, name: str) -> None:
        if name == "table":
            self.flow.end(Gap.BLANK)
            self._tables.append(Table(len(self._tables) + 1, layout=False))
        elif name == "table-row" and self._tables:
            self._tables[-1].rows.append([])
        elif name == "table-cell" and self._tables:
            self._around.append(self.flow)
            self.flow = Flow()

    def _close_table_part(self, element: Any, name: str) -> None:  # noqa: ANN401
        if name == "table-cell" and self._tables:
            self.flow.end()
            cell = Cell(
                self.flow.lines, _count(element, "number-rows-spanned"), _count(element, "number-columns-spanned")
            )
            self.flow = self._around.pop()
            self._tables[-1].add(cell)
        elif name == "table" and self._tables:
            self._tables.pop().write(self.flow)
            self.flow.end(Gap.BLANK)


def _numbered_levels(root: Any) -> dict[tuple[str, int], int]:  # noqa: ANN401
    """The levels of list styles that number their items, with the first number."""
    found: dict[tuple[str, int], int] = {}
    for style in (element for element in root.iter() if local_name(element) == "list-style"):
        for level in style:
            if local_name(level) == "list-level-style-number" and attribute(level, "num-format"):
                found[attribute(style, "name"), _count(level, "level")] = _count(level, "start-value")
    return found


def _count(element: Any, name: str) -> int:  # noqa: ANN401
    value = attribute(element, name)
    return min(int(value), _MOST_REPEATED) if value.isdecimal() and len(value) < 9 else 1
