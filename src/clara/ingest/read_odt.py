"""Texts of LibreOffice (.odt): headings, paragraphs, lists, tables and notes in the file's own order, numbered.

The package itself is ``read_packages``'s work.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from dataclasses import dataclass

import lxml.etree

from clara.ingest.document import Element, Extract, fault
from clara.ingest.flow import Cell, Flow, Gap, Table
from clara.ingest.read_packages import (
    attribute,
    linked,
    local_name,
    open_package,
    stated_count,
    stated_title,
    xml_part,
)
from clara.ingest.scripts import STRUCK, Script, math_text, numeral, set_beside, symbols

_LEFT_OUT = {
    "annotation": "comments",
    "control": "form fields",
    "hidden-text": "hidden parts",
    "image": "pictures",
    "index-title-template": "",  # what an index is made by
    "index-entry-span": "",
    "number": "",  # of a list or heading, as it was when last shown
    "ruby-text": "",  # how the characters beside it are read
    "sequence-decls": "",
    "tracked-changes": "deleted parts",
}
_MOST_REPEATED = 64  # cells or rows with text that one element stands for
# Notes, and what hangs on a paragraph: it stands behind it.
_BESIDE = frozenset(["custom-shape", "ellipse", "line", "note-body", "rect", "text-box"])
_STYLED = {"h": "paragraph", "p": "paragraph", "span": "text"}  # the family of the style of an element


def _extract_odt(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a text document; its title is the one among its properties."""
    with open_package(data, uri, max_bytes) as archive:
        manifest = xml_part(archive, "META-INF/manifest.xml")
        if manifest is not None and any(local_name(element) == "encryption-data" for element in manifest.iter()):
            raise fault(uri, "encrypted", "needs a password; save a copy without one")
        content = xml_part(archive, "content.xml")
        if content is None:
            raise fault(uri, "broken", "has no content, so it is no OpenDocument text; save or download it again")
        styles = xml_part(archive, "styles.xml")
        walk = _Text(content, [part for part in (styles, content) if part is not None], archive)
        title = stated_title(xml_part(archive, "meta.xml"))
    parts = [] if styles is None else [part for part in styles.iter() if local_name(part) in ("header", "footer")]
    if count := sum(bool("".join(part.itertext()).strip()) for part in parts):
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
    )


class _Looks:
    """What styles do to text, by the settings that they or the styles they are based on state."""

    def __init__(self, parts: list[Element]) -> None:
        styles = (element for part in parts for element in part.iter() if local_name(element) == "style")
        # Paragraphs and characters have names of their own; some programs do not say whose a style is.
        self._styles = {(attribute(style, "family"), attribute(style, "name")): style for style in styles}
        self._found: dict[tuple[str, str, str], str] = {}

    def script(self, element: Element) -> str:
        """``super`` or ``sub`` for what stands raised or lowered, else the empty string."""
        place = self._setting(element, "text-position").split(" ")[0]
        if place.rstrip("%").lstrip("-").strip("0").isdigit():
            return "sub" if place.startswith("-") else "super"
        return place if place in ("super", "sub") else ""

    def is_struck(self, element: Element) -> bool:
        return self._setting(element, "text-line-through-style") not in ("", "none")

    def font(self, element: Element) -> str:
        """The font of an element's own text, where it states one."""
        return "" if element is None else self._setting(element, "font-name")

    def is_hidden(self, element: Element) -> bool:
        return self._setting(element, "display") == "none"

    def _setting(self, element: Element, name: str) -> str:
        family, style = _STYLED.get(local_name(element), ""), attribute(element, "style-name")
        if not family or not style:
            return ""
        asked = family, style, name
        if asked not in self._found:
            self._found[asked] = self._stated(*asked)
        return self._found[asked]

    def _stated(self, family: str, style: str, name: str) -> str:
        seen: set[str] = set()
        while style not in seen:
            seen.add(style)  # styles of a broken file may be based on each other
            element = self._styles.get((family, style), self._styles.get(("", style)))
            if element is None:
                break
            if stated := next(filter(None, (attribute(settings, name) for settings in element)), ""):
                return stated
            style = attribute(element, "parent-style-name")
        return ""


class _Text:
    """A walk over a document's elements."""

    def __init__(self, root: Element, styled: list[Element], archive: zipfile.ZipFile) -> None:
        self.flow = Flow()
        self.left_out = Counter[str]()
        self._looks = _Looks(styled)
        self._archive = archive
        self._tables: list[Table] = []
        self._around: list[Flow] = []  # the flows around the open cells and notes
        self._lists: list[_List] = []
        self._numbered = _numbered_levels(*styled)
        self._ended: dict[tuple[str, int], int] = {}  # numbers with which lists of a style go on
        self._counts: list[int] = []  # of the headings so far, by level
        self._label = ""
        self._scripts: list[tuple[Element, tuple[int, int]]] = []
        self._struck: list[Element] = []  # the open elements whose text is struck
        self._notes: list[Flow] = []
        self._citation = ""
        body = next((element for element in root.iter() if local_name(element) == "body"), root)
        self._walk(body)
        self._write_notes()

    def _walk(self, body: Element) -> None:
        walk = lxml.etree.iterwalk(body, events=("start", "end"))
        skipped: Element = None
        for event, element in walk:
            name = local_name(element)
            if event == "start":
                if self._is_left_out(element, name):
                    skipped = element
                    walk.skip_subtree()
                    continue
                self._open(element, name)
                self.flow.add(symbols(element.text or "", self._looks.font(element)))
            else:
                if element is skipped:
                    skipped = None
                else:
                    self._close(element, name)
                self.flow.add(symbols(element.tail or "", self._looks.font(element.getparent())))

    def _is_left_out(self, element: Element, name: str) -> bool:
        if not name:
            return True
        if name in _LEFT_OUT:
            kind = _LEFT_OUT[name]
            if kind and "ObjectReplacements" not in attribute(element, "href"):  # a formula is shown as a picture too
                self.left_out[kind] += 1
            return True
        if self._is_hidden(element, name):
            self.left_out["hidden parts"] += 1
            return True
        return self._is_replaced(element, name)

    def _is_hidden(self, element: Element, name: str) -> bool:
        if name == "section":
            return attribute(element, "display") == "none"
        if name == "table-row":
            return attribute(element, "visibility") in ("collapse", "filter")
        if name == "p" and any(attribute(part, "is-hidden") == "true" for part in element if _is_condition(part)):
            return True
        return self._looks.is_hidden(element)

    def _is_replaced(self, element: Element, name: str) -> bool:
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
        self.flow.add(set_beside(self.flow.tail(), math_text(root)))

    def _open(self, element: Element, name: str) -> None:
        if name == "h":
            self.flow.end(Gap.BLANK)
            level = stated_count(element, "outline-level")
            self.flow.mark(f"{'#' * min(level, 6)} {self._heading_number(element, level)}", "heading")
        elif name == "p":
            self._label = ""
            self.flow.end(Gap.LINE if self._lists or self._around else Gap.BLANK)
        elif name == "list":
            self._open_list(element)
        elif name == "list-item" and self._lists:
            self._item(element)
        elif name in _BESIDE:
            self._around.append(self.flow)
            self.flow = Flow()
            if name == "note-body":
                self.flow.mark(f"[{self._citation}] ", "item")
        elif name == "desc":  # of a picture, behind its title
            self.flow.add(" ")
        else:
            self._open_table_part(name)
        if self._looks.is_struck(element):
            self.flow.add("" if self._struck else STRUCK)
            self._struck.append(element)
        if name == "note-citation" or (name == "span" and self._looks.script(element)):
            self._scripts.append((element, self.flow.position()))

    def _close(self, element: Element, name: str) -> None:
        if self._scripts and self._scripts[-1][0] is element:
            self._script(element, name)
        if self._struck and self._struck[-1] is element:
            self._struck.pop()
            self.flow.add("" if self._struck else STRUCK)
        if name in ("h", "p"):
            self.flow.end(Gap.BLANK if name == "h" or not (self._lists or self._around) else Gap.LINE)
            self.flow.unmark()
            if not self._around:
                self._write_notes()
        elif name == "list" and self._lists:
            ended = self._lists.pop()
            if ended.level is not None:
                self._ended[ended.name, len(self._lists) + 1] = ended.next
            self.flow.end(Gap.LINE if self._lists else Gap.BLANK)
        elif name in _BESIDE:
            self.flow.end()
            self._notes.append(self.flow)
            self.flow = self._around.pop()
        else:
            self._close_table_part(element, name)

    def _write_notes(self) -> None:
        """Notes and text boxes behind their paragraph, each after its mark's number."""
        for note in self._notes:
            self.flow.extend(note.lines, Gap.BLANK)
            self.flow.end(Gap.BLANK)
        self._notes.clear()

    def _open_list(self, element: Element) -> None:
        self.flow.end(Gap.LINE if self._lists else Gap.BLANK)
        name = attribute(element, "style-name") or (self._lists[-1].name if self._lists else "")
        depth = len(self._lists) + 1
        begun = _List(name, [self._numbered.get((name, level)) for level in range(1, depth + 1)])
        if attribute(element, "continue-numbering") == "true" or attribute(element, "continue-list"):
            begun.next = self._ended.get((name, depth), begun.next)
        self._lists.append(begun)

    def _item(self, element: Element) -> None:
        listed = self._lists[-1]
        if local_name(next(iter(element), element)) == "list":  # only a place for the list in it
            return
        listed.next = stated_count(element, "start-value", listed.next)
        listed.next += 1
        self._label = listed.label([each.next - 1 for each in self._lists])
        self.flow.mark(f"{'  ' * (len(self._lists) - 1)}{self._label or '-'} ", "item")

    def _heading_number(self, element: Element, level: int) -> str:
        """The number of a heading: of the list that it stands in, or of its own among headings."""
        label, self._label = self._label, ""
        style = self._numbered.get(("", level))
        if label or style is None or attribute(element, "is-list-header") == "true":
            return f"{label} " if label else ""
        counts = self._counts[:level] + [style.start - 1] * (level - len(self._counts))
        counts[-1] = stated_count(element, "start-value", counts[-1] + 1)
        self._counts = counts
        label = _List("", [self._numbered.get(("", each)) for each in range(1, level + 1)]).label(counts)
        return f"{label} " if label else ""

    def _script(self, element: Element, name: str) -> None:
        script = self.flow.cut(self._scripts.pop()[1])
        if not script or not script.strip():
            return
        if name == "note-citation":
            self._citation = script.strip()
            self.flow.add(f"[{self._citation}]")
            return
        self.flow.add(Script(script, raised=self._looks.script(element) == "super"))

    def _open_table_part(self, name: str) -> None:
        if name == "table":
            self.flow.end(Gap.BLANK)
            self._tables.append(Table(len(self._tables) + 1, layout=False))
        elif name == "table-row" and self._tables:
            self._tables[-1].rows.append([])
        elif name == "table-cell" and self._tables:
            self._around.append(self.flow)
            self.flow = Flow()

    def _close_table_part(self, element: Element, name: str) -> None:
        if name == "table-cell" and self._tables:
            self.flow.end()
            rows, columns = (
                stated_count(element, "number-rows-spanned"),
                stated_count(element, "number-columns-spanned"),
            )
            cell = Cell(self.flow.lines, rows, columns)
            last = element.getnext() is None and not cell.lines  # the empty rest of a sheet
            for _ in range(1 if last else _repeated(element, "number-columns-repeated")):
                self._tables[-1].add(cell)
            self.flow = self._around.pop()
        elif name == "table-row" and self._tables:
            row = self._tables[-1].rows[-1]
            if any(cell.lines for cell in row):
                self._tables[-1].rows += [row] * (_repeated(element, "number-rows-repeated") - 1)
        elif name == "table" and self._tables:
            self._tables.pop().write(self.flow)
            self.flow.end(Gap.BLANK)


@dataclass(frozen=True, slots=True)
class _NumberStyle:
    """Numbering of a level of lists or headings: ``shown`` is the number of levels in it."""

    form: str
    prefix: str
    suffix: str
    shown: int
    start: int


class _List:
    """An open list: its style's name, the styles of its level and those above, the number of its next item."""

    def __init__(self, name: str, levels: list[_NumberStyle | None]) -> None:
        self.name = name
        self.levels = levels
        self.level = levels[-1]
        self.next = self.level.start if self.level is not None else 1

    def label(self, counts: list[int]) -> str:
        """The number of an item, given the counts of its level and those above; the empty string for a bullet."""
        level = self.level
        if level is None:
            return ""
        shown = list(zip(self.levels, counts, strict=True))[-level.shown :]
        numbers = ".".join(numeral(count, each.form) for each, count in shown if each is not None)
        ends = level.prefix or level.suffix or not self.name  # a heading's number has no full stop of its own
        return f"{level.prefix}{numbers}{level.suffix if ends else '.'}"


def _numbered_levels(*parts: Element) -> dict[tuple[str, int], _NumberStyle]:
    """The levels of list styles that number their items, by the style's name; of headings the name is empty."""
    found: dict[tuple[str, int], _NumberStyle] = {}
    for style in (element for part in parts for element in part.iter()):
        if local_name(style) not in ("list-style", "outline-style"):
            continue
        name = attribute(style, "name") if local_name(style) == "list-style" else ""
        for level in style:
            if attribute(level, "num-format"):
                found[name, stated_count(level, "level")] = _NumberStyle(
                    attribute(level, "num-format"),
                    attribute(level, "num-prefix"),
                    attribute(level, "num-suffix"),
                    stated_count(level, "display-levels"),
                    stated_count(level, "start-value"),
                )
    return found


def _repeated(element: Element, name: str) -> int:
    return min(stated_count(element, name), _MOST_REPEATED)


def _is_condition(element: Element) -> bool:
    return local_name(element) == "hidden-paragraph"


READERS = {".odt": _extract_odt}
