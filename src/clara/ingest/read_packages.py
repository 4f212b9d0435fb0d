"""Formats that are zip files of XML parts, bounded in what they unpack to: .epub, .odt, .pptx and .xlsx.

The last two are read by python-pptx and openpyxl (extra ``formats``); of the others nothing outside the package is
loaded. A text of LibreOffice gives headings, paragraphs, lists, tables and notes in the file's own order.
"""

from __future__ import annotations

import datetime
import io
import posixpath
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import PurePosixPath
from urllib.parse import unquote

import lxml.etree

from clara.ingest.document import Element, Extract, TextParts, fault
from clara.ingest.flow import Cell, Flow, Gap, Table
from clara.ingest.read_html import xhtml_page
from clara.ingest.read_tables import row_texts
from clara.ingest.scripts import math_text, subscript, superscript
from clara.records import Heading

_MOST_PARTS = 100_000
_OLD_OFFICE_FILE = bytes.fromhex("D0CF11E0A1B11AE1")  # a format before XML, or the container of an encrypted file

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_PAGES = frozenset(["application/xhtml+xml", "text/html"])

_SHEET = re.compile(r"xl/worksheets/[^/]+\.xml")
_WITHOUT_VALUE = re.compile(rb"(?:</f>|<f[^>]*/>)\s*(?:<v\s*/>|<v></v>)?\s*</c>")
_PERCENT = re.compile(r"0(?:\.(0+))?%")

_LEFT_OUT = {
    "annotation": "comments",
    "ruby-text": "",  # how the characters beside it are read
    "sequence-decls": "",
    "tracked-changes": "deleted parts",
}
_MOST_REPEATED = 1000  # cells and blanks that one element stands for
_SUPER, _SUB, _HIDDEN = "super", "sub", "hidden"


@contextmanager
def _open_package(data: bytes, uri: str, max_bytes: int) -> Iterator[zipfile.ZipFile]:
    """Open a package that unpacks to ``max_bytes`` at most."""
    if data.startswith(_OLD_OFFICE_FILE):
        raise fault(uri, "encrypted", "is encrypted, or of an older format by another name; save it without a password")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise fault(uri, "broken", f"is no zip file as its format is ({error}); save or download it again") from None
    with archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > max_bytes or len(entries) > _MOST_PARTS:
            sizes = f"{unpacked / 2**20:,.0f} MB in {len(entries):,} parts"
            limit = f"more than the limit of {max_bytes / 2**20:,.0f} MB; raise it with --max-file-mb"
            raise fault(uri, "too large", f"unpacks to {sizes}, {limit}")
        if any(entry.flag_bits & 1 for entry in entries):
            raise fault(uri, "encrypted", "needs a password; save a copy without one")
        yield archive


def _xml_part(archive: zipfile.ZipFile, name: str) -> Element:
    """The tree of a part, or None where there is no such part.

    No entity is expanded and nothing outside is loaded.
    """
    try:
        data = archive.read(name)
    except KeyError:
        return None
    parser = lxml.etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    return lxml.etree.fromstring(data, parser)


def _local_name(element: Element) -> str:
    """An element's name without its namespace; of what is no element, the empty string."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _attribute(element: Element, name: str) -> str:
    """An attribute by its name without a namespace, or the empty string."""
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def _title(part: Element) -> str:
    """The first title that a part of properties states, or the empty string."""
    elements = [] if part is None else part.iter()
    return next(("".join(element.itertext()) for element in elements if _local_name(element) == "title"), "")


def _extra(module: str, package: str, uri: str) -> Element:
    """A library of the extra ``formats``; a file whose format needs one that is missing cannot be read."""
    try:
        return import_module(module)
    except ImportError:
        detail = f"needs {package}; install it with: pip install 'clara-rag[formats]'"
        raise fault(uri, "unsupported", detail) from None


def _linked(base: str, reference: str) -> str:
    """The part that a reference in the part ``base`` leads to."""
    target = unquote(reference.partition("#")[0])
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), target))


def _extract_epub(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a book: its chapters in reading order, each a page in XHTML."""
    with _open_package(data, uri, max_bytes) as archive:
        name, package = _package(archive, uri)
        _refuse_protected(archive, name, package, uri)
        parts = TextParts()
        left_out = Counter[str]()
        for chapter, is_contents in dict.fromkeys(_chapters(name, package)):  # a book may list one twice
            if is_contents:
                left_out["menus"] += 1
                continue
            if chapter not in archive.namelist():
                left_out["chapters that are not in the file"] += 1
                continue
            page = xhtml_page(archive.read(chapter), f"{uri}#{chapter}")
            if page.text:  # not a cover or another page of pictures
                left_out.update(page.left_out)
                parts.add(page.text, page.headings)
    text = parts.text()
    if not text:
        raise fault(uri, "no text", "shows no text, only pictures; run OCR on it first")
    return Extract(
        title=_title(package),
        text=text,
        metadata={"media_type": "application/epub+zip"},
        headings=tuple(parts.headings),
        left_out=left_out,
    )


def _package(archive: zipfile.ZipFile, uri: str) -> tuple[str, Element]:
    """The part that lists the others, and its name."""
    container = _xml_part(archive, _CONTAINER)
    roots = [] if container is None else [item for item in container.iter() if _local_name(item) == "rootfile"]
    name = _attribute(roots[0], "full-path") if roots else ""
    package = _xml_part(archive, name)
    if package is None:
        raise fault(uri, "broken", "names no list of its chapters, so it is no EPUB; save or download it again")
    return name, package


def _chapters(name: str, package: Element) -> Iterator[tuple[str, bool]]:
    """Parts in reading order, and whether each is a table of contents for reading programs."""
    items = {_attribute(item, "id"): item for item in package.iter() if _local_name(item) == "item"}
    for entry in package.iter():
        item = items.get(_attribute(entry, "idref")) if _local_name(entry) == "itemref" else None
        if item is not None and _attribute(item, "media-type") in _PAGES:
            yield _linked(name, _attribute(item, "href")), "nav" in _attribute(item, "properties").split()


def _refuse_protected(archive: zipfile.ZipFile, name: str, package: Element, uri: str) -> None:
    """A book with rights management has its chapters encrypted; fonts alone may be scrambled in any."""
    encryption = _xml_part(archive, _ENCRYPTION)
    if encryption is None:
        return
    hidden = {
        _linked("", _attribute(item, "URI")) for item in encryption.iter() if _local_name(item) == "CipherReference"
    }
    if hidden & {chapter for chapter, _ in _chapters(name, package)}:
        raise fault(uri, "encrypted", "is protected by rights management; get a copy without it")


def _extract_pptx(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a presentation by python-pptx: slides as pages, with their tables, charts and notes."""
    with _open_package(data, uri, max_bytes):
        pass
    pptx = _extra("pptx", "python-pptx", uri)
    presentation = pptx.Presentation(io.BytesIO(data))
    left_out = Counter[str]()
    parts = TextParts()
    for slide in presentation.slides:
        title, text = _slide(slide, left_out)
        parts.add(text, [Heading(0, title)] if title and text else [])
    text = parts.text()
    if not text:
        detail = f"{len(parts.starts)} slide(s) without text, only pictures; run OCR on it first"
        raise fault(uri, "no text", detail)
    return Extract(
        title=presentation.core_properties.title or (parts.headings[0].text if parts.headings else ""),
        text=text,
        metadata={"media_type": "application/vnd.openxmlformats-officedocument.presentationml.presentation"},
        pages=parts.pages(),
        headings=tuple(parts.headings),
        left_out=left_out,
    )


def _slide(slide: Element, left_out: Counter[str]) -> tuple[str, str]:
    """A slide's title and its text, title included."""
    if slide._element.get("show") in ("0", "false"):
        left_out["hidden slides"] += 1
        return "", ""
    heading = slide.shapes.title
    title = " ".join(" ".join(_paragraphs(heading.text_frame)).split()) if heading is not None else ""
    blocks = [f"## {title}"] if title else []
    for shape in slide.shapes:
        if heading is None or shape.shape_id != heading.shape_id:
            blocks.extend(_shape(shape, left_out))
    if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
        spoken = "\n".join(_paragraphs(notes))
        blocks.extend([f"Notes: {spoken}"] if spoken.strip() else [])
    return title, "\n\n".join(block for block in blocks if block.strip())


def _shape(shape: Element, left_out: Counter[str]) -> Iterator[str]:
    if hasattr(shape, "shapes"):  # a group
        for inner in shape.shapes:
            yield from _shape(inner, left_out)
    elif getattr(shape, "has_table", False):
        rows = ([" ".join(_paragraphs(cell.text_frame)) for cell in row.cells] for row in shape.table.rows)
        yield "\n".join(" | ".join(" ".join(cell.split()) for cell in row) for row in rows)
    elif getattr(shape, "has_chart", False):
        yield "\n".join(_chart(shape.chart))
    elif shape.has_text_frame:
        yield "\n".join(_paragraphs(shape.text_frame))
    elif shape._element.xpath(".//a:graphicData[contains(@uri, 'diagram')]"):
        left_out["diagrams (SmartArt)"] += 1


def _chart(chart: Element) -> Iterator[str]:
    """A chart as a table: a row for each category, a column for each series."""
    if chart.has_title and chart.chart_title.has_text_frame:
        yield " ".join(_paragraphs(chart.chart_title.text_frame))
    for plot in chart.plots:
        series = list(plot.series)
        yield " | ".join(["", *(each.name or "" for each in series)]).strip()
        for number, category in enumerate(plot.categories):
            values = [each.values[number] if number < len(each.values) else None for each in series]
            yield " | ".join([str(category), *("" if value is None else f"{value:.15g}" for value in values)])


def _paragraphs(frame: Element) -> Iterator[str]:
    for paragraph in frame.paragraphs:
        text = _paragraph(paragraph._p)
        if text.strip():
            yield ("  " * (paragraph.level - 1) + "- " if paragraph.level else "") + text


def _paragraph(element: Element) -> str:
    """A paragraph's runs; raised and lowered ones keep numbers what they are."""
    text = ""
    for run in element:
        name = _local_name(run)
        if name == "br":
            text += "\n"
        elif name in ("r", "fld"):
            words = "".join(part.text or "" for part in run if _local_name(part) == "t")
            settings = next((part for part in run if _local_name(part) == "rPr"), None)
            baseline = int(settings.get("baseline", "0").rstrip("%") or 0) if settings is not None else 0
            text += words if not baseline else (superscript if baseline > 0 else subscript)(text, words)
    return text


def _extract_xlsx(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a spreadsheet by openpyxl, sheet by sheet; its title is its own, else the file's name.

    Cells are read as they were stored when it was last saved, dates and per cents as they are shown.
    """
    with _open_package(data, uri, max_bytes) as archive:
        sheets = [name for name in archive.namelist() if _SHEET.fullmatch(name)]
        without_value = sum(len(_WITHOUT_VALUE.findall(archive.read(name))) for name in sheets)
    openpyxl = _extra("openpyxl", "openpyxl", uri)
    left_out = Counter[str]()
    if without_value:
        left_out["formulas without a stored value"] = without_value
    workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    parts = TextParts()
    try:
        for sheet in workbook.worksheets:
            if sheet.sheet_state != "visible":
                left_out["hidden sheets"] += 1
                continue
            sheet.reset_dimensions()  # what the file says of them may be wrong
            cells = (
                [_shown(cell.value, cell.number_format) if cell.value is not None else "" for cell in row]
                for row in sheet.iter_rows()
            )
            if rows := list(row_texts(cells)):
                parts.add("\n\n".join([f"# {sheet.title}", *rows]), [Heading(0, sheet.title)])
        left_out["charts"] = len(workbook.chartsheets)
        title = workbook.properties.title or PurePosixPath(uri).stem
    finally:
        workbook.close()
    return Extract(
        title=title,
        text=parts.text(),
        metadata={"media_type": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"},
        headings=tuple(parts.headings),
        left_out=+left_out,
    )


def _shown(value: object, number_format: str) -> str:
    """A value as people read it in the sheet."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat(" ", "minutes")
    if isinstance(value, int | float) and (percent := _PERCENT.search(number_format)):
        return f"{value:.{len(percent[1] or '')}%}"
    if isinstance(value, float):
        return f"{value:.15g}"  # the digits that spreadsheets keep
    return str(value)


def _extract_odt(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a text document; its title is the one among its properties."""
    with _open_package(data, uri, max_bytes) as archive:
        manifest = _xml_part(archive, "META-INF/manifest.xml")
        if manifest is not None and any(_local_name(element) == "encryption-data" for element in manifest.iter()):
            raise fault(uri, "encrypted", "needs a password; save a copy without one")
        content = _xml_part(archive, "content.xml")
        if content is None:
            raise fault(uri, "broken", "has no content, so it is no OpenDocument text; save or download it again")
        styles = _xml_part(archive, "styles.xml")
        walk = _Text(content, _positions(*(part for part in (styles, content) if part is not None)), archive)
        title = _title(_xml_part(archive, "meta.xml"))
    parts = [] if styles is None else [part for part in styles.iter() if _local_name(part) in ("header", "footer")]
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


def _positions(*parts: Element) -> dict[str, str]:
    """Names of the styles that raise, lower or hide text."""
    found: dict[str, str] = {}
    for style in (element for part in parts for element in part.iter() if _local_name(element) == "style"):
        for settings in style:
            place = _attribute(settings, "text-position").split(" ")[0]
            if _attribute(settings, "display") == "none":
                found[_attribute(style, "name")] = _HIDDEN
            elif place in (_SUPER, _SUB):
                found[_attribute(style, "name")] = place
            elif place.rstrip("%").lstrip("-").isdigit() and place not in ("0%", "-0%"):
                found[_attribute(style, "name")] = _SUB if place.startswith("-") else _SUPER
    return found


class _Text:
    """One walk over a document's elements."""

    def __init__(self, root: Element, positions: dict[str, str], archive: zipfile.ZipFile) -> None:
        self.flow = Flow()
        self.left_out = Counter[str]()
        self._positions = positions
        self._archive = archive
        self._tables: list[Table] = []
        self._around: list[Flow] = []  # the flows around the open cells and notes
        self._lists: list[int | None] = []
        self._numbered = _numbered_levels(root)
        self._list_names: list[str] = []
        self._scripts: list[tuple[Element, tuple[int, int]]] = []
        self._notes: list[Flow] = []
        self._citation = ""
        body = next((element for element in root.iter() if _local_name(element) == "body"), root)
        self._walk(body)

    def _walk(self, body: Element) -> None:
        walk = lxml.etree.iterwalk(body, events=("start", "end"))
        skipped: Element = None
        for event, element in walk:
            name = _local_name(element)
            if event == "start":
                if self._is_left_out(element, name):
                    skipped = element
                    walk.skip_subtree()
                    continue
                self._open(element, name)
                self.flow.add(element.text or "")
            else:
                if element is skipped:
                    skipped = None
                else:
                    self._close(element, name)
                self.flow.add(element.tail or "")

    def _is_left_out(self, element: Element, name: str) -> bool:
        if not name:
            return True
        if name in _LEFT_OUT:
            if kind := _LEFT_OUT[name]:
                self.left_out[kind] += 1
            return True
        if self._positions.get(_attribute(element, "style-name")) == _HIDDEN and name in ("span", "p", "h"):
            self.left_out["hidden parts"] += 1
            return True
        return self._is_replaced(element, name)

    def _is_replaced(self, element: Element, name: str) -> bool:
        if name in ("s", "tab"):
            self.flow.add(" ")
        elif name == "line-break":
            self.flow.end(Gap.LINE)
        elif name == "object":
            self._object(_attribute(element, "href"))
        else:
            return name == "covered-table-cell"
        return True

    def _object(self, reference: str) -> None:
        """A formula is read; other objects are counted."""
        part = _linked("content.xml", reference) + "/content.xml"
        root = _xml_part(self._archive, part) if reference else None
        if root is None or _local_name(root) != "math":
            self.left_out["embedded objects"] += 1
            return
        for element in root.iter(lxml.etree.Element):
            element.tag = _local_name(element)
        self.flow.add(math_text(root))

    def _open(self, element: Element, name: str) -> None:
        if name == "h":
            self.flow.end(Gap.BLANK)
            level = _attribute(element, "outline-level")
            self.flow.mark("#" * min(int(level) if level.isdigit() else 1, 6) + " ", "heading")
        elif name == "p":
            self.flow.end(Gap.LINE if self._lists or self._around else Gap.BLANK)
        elif name == "list":
            self._open_list(element)
        elif name == "list-item" and self._lists:
            self._item()
        elif name == "note-citation" or (name == "span" and self._positions.get(_attribute(element, "style-name"))):
            self._scripts.append((element, self.flow.position()))
        elif name == "note-body":
            self._around.append(self.flow)
            self.flow = Flow()
            self.flow.mark(f"[{self._citation}] ", "item")
        else:
            self._open_table_part(name)

    def _close(self, element: Element, name: str) -> None:
        if name in ("h", "p"):
            self.flow.end(Gap.BLANK if name == "h" or not (self._lists or self._around) else Gap.LINE)
            self.flow.unmark()
            if not self._around:
                for note in self._notes:  # behind their paragraph, each after its mark's number
                    self.flow.extend(note.lines, Gap.BLANK)
                    self.flow.end(Gap.BLANK)
                self._notes.clear()
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

    def _open_list(self, element: Element) -> None:
        self.flow.end(Gap.LINE if self._lists else Gap.BLANK)
        name = _attribute(element, "style-name") or (self._list_names[-1] if self._list_names else "")
        self._list_names.append(name)
        start = self._numbered.get((name, len(self._list_names)))
        self._lists.append(start)

    def _item(self) -> None:
        indent = "  " * (len(self._lists) - 1)
        number = self._lists[-1]
        self.flow.mark(f"{indent}- " if number is None else f"{indent}{number}. ", "item")
        if number is not None:
            self._lists[-1] = number + 1

    def _script(self, element: Element, name: str) -> None:
        script = self.flow.cut(self._scripts.pop()[1])
        if not script or not script.strip():
            return
        if name == "note-citation":
            self._citation = script.strip()
            self.flow.add(f"[{self._citation}]")
            return
        raised = self._positions[_attribute(element, "style-name")] == _SUPER
        self.flow.add((superscript if raised else subscript)(self.flow.tail(), script, element.tail or ""))

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
            rows, columns = _count(element, "number-rows-spanned"), _count(element, "number-columns-spanned")
            self._tables[-1].add(Cell(self.flow.lines, rows, columns))
            self.flow = self._around.pop()
        elif name == "table" and self._tables:
            self._tables.pop().write(self.flow)
            self.flow.end(Gap.BLANK)


def _numbered_levels(root: Element) -> dict[tuple[str, int], int]:
    """The levels of list styles that number their items, with the first number."""
    found: dict[tuple[str, int], int] = {}
    for style in (element for element in root.iter() if _local_name(element) == "list-style"):
        for level in style:
            if _local_name(level) == "list-level-style-number" and _attribute(level, "num-format"):
                found[_attribute(style, "name"), _count(level, "level")] = _count(level, "start-value")
    return found


def _count(element: Element, name: str) -> int:
    value = _attribute(element, name)
    return min(int(value), _MOST_REPEATED) if value.isdecimal() and len(value) < 9 else 1


READERS = {".epub": _extract_epub, ".odt": _extract_odt, ".pptx": _extract_pptx, ".xlsx": _extract_xlsx}
