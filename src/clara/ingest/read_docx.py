"""Word files: header, body and footer, in that order, with notes, tables, text boxes and forms.

python-docx opens the package. The XML is walked here, because its ``paragraph.text`` leaves out tracked insertions,
form fields, equations, symbols and notes. Numbers of lists, equations and symbols are ``docx_signs``'s work.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import docx
from docx.opc.constants import CONTENT_TYPE, RELATIONSHIP_TYPE
from docx.oxml import parse_xml
from docx.oxml.ns import nsmap, qn

from clara.errors import DocumentError
from clara.ingest.decode import decode_text
from clara.ingest.document import Element, Extract, TextParts, fault, or_raise
from clara.ingest.docx_signs import Numbering, equation_text, is_on, symbol_text
from clara.ingest.read_tables import GridCell, grid
from clara.ingest.scripts import STRUCK, Script, fractions, roman, set_beside, spelt, symbols, tail
from clara.records import Heading

# Strict Open XML has other names for the same elements: purl.oclc.org/ooxml/wordprocessingml/main for
# schemas.openxmlformats.org/wordprocessingml/2006/main.
_STRICT = b"http://purl.oclc.org/ooxml/"
_STRICT_NAME = re.compile(rb"http://purl\.oclc\.org/ooxml/(\w+)/")
_TRANSITIONAL_NAME = rb"http://schemas.openxmlformats.org/\1/2006/"
# Documents with macros and templates hold the same parts; the macros are not looked at.
_OTHER_MAIN_TYPES = re.compile(
    rb"application/vnd\.ms-word\.(?:document|template)\.macroEnabled(?:Template)?\.main\+xml"
    rb"|application/vnd\.openxmlformats-officedocument\.wordprocessingml\.template\.main\+xml",
    re.IGNORECASE,
)
_MAIN_TYPE = CONTENT_TYPE.WML_DOCUMENT_MAIN.encode()
_TYPES = "[Content_Types].xml"
_OLD_OFFICE_FILE = bytes.fromhex("D0CF11E0A1B11AE1")  # a .doc, or the container of an encrypted .docx
_MEDIA_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_MOST_COLUMNS = 63  # of a table in Word
_TAKEN_IN_DEEPEST = 2  # files within files within the document


_W14 = "{http://schemas.microsoft.com/office/word/2010/wordml}"
_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_PARAGRAPH, _TABLE, _ROW, _CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
_CHARACTERS = {qn("w:tab"): "\t", qn("w:ptab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
# Properties hold tab stops, which have the tag of a tab; a fallback repeats, for old programs, what stands beside it.
_PASSED_OVER = frozenset([qn("w:pPr"), qn("w:rPr"), qn("w:sdtPr"), qn("w:tblPr"), qn("w:tcPr"), f"{_MC}Fallback"])
_COUNTED = {
    qn("w:del"): "deleted parts",
    qn("w:moveFrom"): "deleted parts",
    qn("w:commentReference"): "comments",
    qn("w:subDoc"): "subdocuments",
    qn("pic:pic"): "pictures",
    "{urn:schemas-microsoft-com:vml}imagedata": "pictures",
    "{urn:schemas-microsoft-com:vml}textpath": "words drawn as pictures (WordArt)",
    "{http://schemas.openxmlformats.org/drawingml/2006/chart}chart": "charts",
    "{http://schemas.openxmlformats.org/drawingml/2006/diagram}relIds": "diagrams",
    "{urn:schemas-microsoft-com:office:office}OLEObject": "embedded objects",
}
_HEADING_STYLES = {f"heading {level}": level for level in range(1, 10)}
_SCRIPTS = frozenset(["subscript", "superscript"])


def _extract_docx(data: bytes, uri: str, max_bytes: int, *, depth: int = 0) -> Extract:
    """Read a Word file; the title among its properties is its title, else a paragraph in the style "Title".

    A table gives one line for each row, cells divided by ``|``. Headings have the marks of Markdown, list items and
    clauses their numbers, notes stand behind the paragraph that refers to them as ``[1] …``. Each header stands once
    before the body, each footer once behind it. What a text cannot give (pictures, comments) is counted. ``depth`` is
    how many documents take this one in, one inside the other.
    """
    if data.startswith(_OLD_OFFICE_FILE):
        raise fault(uri, "encrypted", "is encrypted, or a .doc by another name; save it as .docx without a password")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max_bytes:
        sizes = f"{unpacked / 2**20:,.0f} MiB, more than the limit of {max_bytes / 2**20:,.0f} MiB"
        raise fault(uri, "too large", f"unpacks to {sizes}; {or_raise('--max-file-mb')}")
    source = docx.Document(io.BytesIO(_as_document(data)))

    def take_in(part: Element, reference: str) -> str:
        relation = part.rels.get(reference)
        text = ""
        if relation is not None and not relation.is_external:
            text = _taken_in(relation.target_part, uri, max_bytes, depth + 1)
        story.left_out["parts taken in from other files"] += not text
        return text

    story = _Story(source, take_in)
    headers, footers = (_referred(source, qn(f"w:{kind}Reference")) for kind in ("header", "footer"))
    text = TextParts()
    for block in [*_once(story, headers), *story.blocks(source.element.body), *_once(story, footers)]:
        if block.text.strip():
            heading = [Heading(0, " ".join(block.text.split()))] if block.level else []
            text.add(block.written(), heading)
    return Extract(
        _title(source),
        text.text(),
        {"media_type": _MEDIA_TYPE},
        headings=tuple(text.headings),
        left_out=+story.left_out,
        layout="prose",
    )


def _as_document(data: bytes) -> bytes:
    """The file as python-docx wants it: in Transitional names, and called a document."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        types = archive.read(_TYPES) if _TYPES in archive.namelist() else b""
        relations = archive.read("_rels/.rels") if "_rels/.rels" in archive.namelist() else b""
        strict = _STRICT in relations
        if not strict and not _OTHER_MAIN_TYPES.search(types):
            return data
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as copy:
            for entry in archive.infolist():
                part = archive.read(entry)
                if entry.filename == _TYPES:
                    part = _OTHER_MAIN_TYPES.sub(_MAIN_TYPE, part)
                elif strict and entry.filename.lower().endswith((".xml", ".rels")):
                    part = _STRICT_NAME.sub(_TRANSITIONAL_NAME, part)
                copy.writestr(entry.filename, part)
    return file.getvalue()


def _title(source: Element) -> str:
    """The title among the file's properties, else the first paragraph with text if its style is "Title"."""
    # Where a package has no properties, python-docx makes some up, with the title "Word Document".
    parts = {relation.reltype for relation in source.part.package.rels.values()}
    stated: str = source.core_properties.title.strip() if RELATIONSHIP_TYPE.CORE_PROPERTIES in parts else ""
    first = None if stated else next((each for each in source.paragraphs if each.text.strip()), None)
    if first is None or first.style is None or first.style.name != "Title":
        return stated
    return str(first.text)


def _part(source: Element, kind: str) -> Element:
    """The part of a kind (``RELATIONSHIP_TYPE``), or None."""
    relations = (rel for rel in source.part.rels.values() if rel.reltype == kind and not rel.is_external)
    relation = next(relations, None)
    return None if relation is None else relation.target_part


def _referred(source: Element, tag: str) -> list[Element]:
    """The headers or footers that sections refer to, each part once."""
    references = dict.fromkeys(element.get(qn("r:id")) for element in source.element.body.iter(tag))
    relations = (source.part.rels.get(reference) for reference in references if reference)
    return [relation.target_part for relation in relations if relation and not relation.is_external]


def _element(part: Element) -> Element:
    """The root of a part, or None; python-docx has parsed some kinds already."""
    if part is None:
        return None
    element = getattr(part, "element", None)
    return parse_xml(part.blob) if element is None else element


def _once(story: _Story, parts: Iterable[Element]) -> list[_Block]:
    """The paragraphs of headers or footers; sections repeat them."""
    return list(dict.fromkeys(_Block(block.text) for part in parts for block in story.within(part, _element(part))))


def _taken_in(part: Element, uri: str, max_bytes: int, depth: int) -> str:
    """The text of a file that a document takes in (``w:altChunk``); empty where its format is not read."""
    kind = part.content_type
    try:
        if kind in ("text/html", "application/xhtml+xml"):
            from clara.ingest import read_html  # noqa: PLC0415 - as in ``read``

            return read_html.READERS[".html"](part.blob, uri).text
        if kind.startswith("text/plain"):
            return decode_text(part.blob, uri)
        if "wordprocessingml" in kind and depth <= _TAKEN_IN_DEEPEST:
            return _extract_docx(part.blob, uri, max_bytes, depth=depth).text
    except DocumentError:
        return ""
    return ""


@dataclass(frozen=True, slots=True)
class _Block:
    """A paragraph or a table; ``level`` is a heading's, from 1, and ``notes`` are those it refers to, each a line."""

    text: str
    level: int = 0
    notes: tuple[str, ...] = ()

    def written(self) -> str:
        """The block with its notes, a heading marked as in Markdown."""
        return "\n".join([f"{'#' * min(self.level, 6)} {self.text}" if self.level else self.text, *self.notes])


class _Story:
    """Walks parts of one document; ``take_in`` gives the text of a file that a part takes in, by its reference."""

    def __init__(self, source: Element, take_in: Callable[[Element, str], str]) -> None:
        self.left_out = Counter[str]()
        self._numbering = Numbering(source.styles.element, _element(_part(source, RELATIONSHIP_TYPE.NUMBERING)))
        self.styles = self._numbering.styles
        self._take_in = take_in
        self._part = source.part  # the one that is walked
        notes = {
            qn("w:footnoteReference"): _part(source, RELATIONSHIP_TYPE.FOOTNOTES),
            qn("w:endnoteReference"): _part(source, RELATIONSHIP_TYPE.ENDNOTES),
        }
        self._notes = {
            (tag, note.get(qn("w:id"))): (part, note)
            for tag, part in notes.items()
            if part is not None
            for note in _element(part)
        }
        self._told = Counter[str]()

    def within(self, part: Element, parent: Element) -> list[_Block]:
        """The blocks under an element of another part."""
        around, self._part = self._part, part
        found = list(self.blocks(parent))
        self._part = around
        return found

    def blocks(self, parent: Element) -> Iterator[_Block]:
        """Each paragraph and table under an element, content controls and the like looked into."""
        initial = ""
        for child in parent:
            if child.tag == _PARAGRAPH:
                if child.find("w:pPr/w:framePr[@w:dropCap]", nsmap) is not None:  # a large initial, with its word below
                    initial += "".join(block.text for block in self._paragraph(child))
                    continue
                yield from self._paragraph(child, initial)
                initial = ""
            elif child.tag == _TABLE:
                rows, notes = self._rows(child)
                yield _Block("\n".join(" | ".join(row) for row in rows if row), notes=tuple(notes))
            elif child.tag == qn("m:oMath"):
                yield _Block(equation_text(child))
            elif child.tag == qn("w:altChunk"):
                yield _Block(self._take_in(self._part, child.get(qn("r:id"), "")))
            elif self.enters(child):
                yield from self.blocks(child)
        if initial:
            yield _Block(initial)

    def enters(self, element: Element) -> bool:
        """True if an element's content is the document's; counts what is left out."""
        if element.tag in _COUNTED:
            self.left_out[_COUNTED[element.tag]] += 1
            return False
        if element.tag == qn("w:sdt") and is_on(element.find("w:sdtPr/w:showingPlcHdr", nsmap)):
            self.left_out["empty form fields"] += 1
            return False
        return isinstance(element.tag, str) and element.tag not in _PASSED_OVER

    def note(self, reference: Element) -> tuple[str, str]:
        """The mark of a note, empty where its own follows, and what it says; both empty for one that is not there."""
        note = self._notes.pop((reference.tag, reference.get(qn("w:id"))), None)  # once: a note may refer to itself
        if note is None:
            return "", ""
        has_own = reference.get(qn("w:customMarkFollows"), "0") in ("1", "true", "on")
        self._told[reference.tag] += not has_own
        number = self._told[reference.tag]
        mark = str(number) if reference.tag == qn("w:footnoteReference") else roman(number)
        return "" if has_own else mark, " ".join(" ".join(block.written() for block in self.within(*note)).split())

    def _paragraph(self, paragraph: Element, initial: str = "") -> Iterator[_Block]:
        """A paragraph behind its large initial, then those of the text boxes that hang on it."""
        properties = paragraph.find(qn("w:pPr"))
        content = _Content(self, self.styles.paragraph_style(properties))
        content.walk(paragraph)
        text = initial + content.text().strip("\n")
        label = ""
        if text.strip() or not is_on(paragraph.find("w:pPr/w:rPr/w:del", nsmap)):
            label = self._numbering.label(properties)
        if text.strip():
            yield _Block(f"{label} {text}" if label else text, self._level(properties), tuple(content.notes))
        yield from content.boxes

    def _level(self, properties: Element) -> int:
        named = self.styles.name(self.styles.paragraph_style(properties))
        if named in _HEADING_STYLES:
            return _HEADING_STYLES[named]
        outline = self.styles.paragraph(properties, "w:outlineLvl")
        value = "9" if outline is None else outline.get(qn("w:val"), "9")
        return int(value) + 1 if value in "012345678" and value else 0

    def _rows(self, table: Element) -> tuple[list[list[str]], list[str]]:
        """The cells of a table, as ``grid`` gives them; and the notes they refer to."""
        rows: list[list[GridCell]] = []
        notes: list[str] = []
        above: dict[int, str] = {}  # merged cells by their first column
        for row in table.iter(_ROW):
            if _owner(row, _TABLE) is not table:
                continue
            if kind := _kind_left_out(row):
                self.left_out[kind] += 1
                continue
            column = _columns(row, "w:trPr/w:gridBefore", 0)
            cells = [GridCell("")] * column
            for cell in row.iter(_CELL):
                if _owner(cell, _ROW) is not row:
                    continue
                merged = cell.find("w:tcPr/w:vMerge", nsmap)
                columns = _columns(cell, "w:tcPr/w:gridSpan", 1)
                if cells and _goes_on(cell.find("w:tcPr/w:hMerge", nsmap)):
                    cells[-1] = replace(cells[-1], columns=cells[-1].columns + columns)
                elif _goes_on(merged) and column in above:
                    cells.append(GridCell(above[column], columns=columns))
                else:
                    text, more = self._cell(cell)
                    cells.append(GridCell(text, columns=columns))
                    notes.extend(more)
                    above[column] = text if merged is not None else ""
                column += columns
            rows.append(cells)
        return grid(rows), notes

    def _cell(self, cell: Element) -> tuple[str, list[str]]:
        """A cell on one line; rows of a table inside it as ``name: value``, divided by semicolons."""
        blocks = list(self._of_cell(cell))
        text = " ".join(" ".join(block.text for block in blocks).split())
        return text, [note for block in blocks for note in block.notes]

    def _of_cell(self, parent: Element) -> Iterator[_Block]:
        """What stands in a cell, or in a content control or the like inside it."""
        for child in parent:
            if child.tag == _TABLE:
                rows, notes = self._rows(child)
                values = [[value for value in row if value] for row in rows]
                text = "; ".join(": ".join([row[0], ", ".join(row[1:])][: len(row)]) for row in values if row)
                yield _Block(text, notes=tuple(notes))
            elif child.tag in (_PARAGRAPH, qn("m:oMath"), qn("m:oMathPara"), qn("w:altChunk")):
                yield from self.blocks([child])
            elif self.enters(child):
                yield from self._of_cell(child)


@dataclass(slots=True)
class _Content:
    """The text of one paragraph while it is walked, with its notes and what the text boxes say that hang on it."""

    story: _Story
    style: str | None
    notes: list[str] = field(default_factory=list)
    boxes: list[_Block] = field(default_factory=list)
    _pieces: list[str | Script] = field(default_factory=list)

    def text(self) -> str:
        return fractions(spelt(self._pieces))

    def walk(self, parent: Element) -> None:
        """Take what the elements under one say."""
        for element in parent:
            if element.tag == qn("w:r"):
                self._run(element)
            elif element.tag in (_PARAGRAPH, _TABLE):
                self.boxes.extend(self.story.blocks([element]))
            elif element.tag == qn("w:txbxContent"):
                self.boxes.extend(self.story.blocks(element))
            elif element.tag == qn("m:oMathPara"):
                for equation in element.iter(qn("m:oMath")):
                    self._add("\n" + equation_text(equation))
                self._add("\n")
            elif element.tag == qn("m:oMath"):
                self._add(set_beside(tail(self._pieces), equation_text(element)))
            elif element.tag == qn("w:sdt") and element.find(f"{qn('w:sdtPr')}/{_W14}checkbox") is not None:
                self._check_box(element)
            elif self.story.enters(element):
                self.walk(element)

    def _run(self, run: Element) -> None:
        properties = run.find(qn("w:rPr"))
        if is_on(self._setting(properties, "w:vanish")):
            self.story.left_out["hidden parts"] += any(True for _ in run.iter(qn("w:t")))
            return
        struck = any(is_on(self._setting(properties, name)) for name in ("w:strike", "w:dstrike"))
        mark = STRUCK if struck and any(True for _ in run.iter(qn("w:t"))) else ""
        self._add(mark)
        font = self._setting(properties, "w:rFonts")
        self._inside(run, self._place(properties), "" if font is None else font.get(qn("w:ascii"), ""))
        self._add(mark)

    def _place(self, properties: Element) -> str:
        """``superscript`` or ``subscript``, by a run's alignment or its position beside the line's; else empty."""
        place = self._setting(properties, "w:vertAlign")
        script = "" if place is None else place.get(qn("w:val"), "")
        moved = self._setting(properties, "w:position")
        points = "" if moved is None or script in _SCRIPTS else moved.get(qn("w:val"), "")
        if points.lstrip("-").strip("0").isdigit():
            script = "subscript" if points.startswith("-") else "superscript"
        return script if script in _SCRIPTS else ""

    def _setting(self, properties: Element, path: str) -> Element:
        """A run's property, its own, its character style's, or its paragraph's style's."""
        styles = self.story.styles
        found = styles.run(properties, path)
        return styles.of(self.style, f"w:rPr/{path}") if found is None else found

    def _inside(self, parent: Element, script: str, font: str) -> None:
        """The text of a run, or of an element in it."""
        for element in parent:
            tag = element.tag
            if tag == qn("w:t"):
                self._add(symbols(element.text or "", font), script)
            elif tag in _CHARACTERS:
                self._add(_CHARACTERS[tag])
            elif tag == qn("w:sym"):
                self._add(symbol_text(element), script)
            elif tag in (qn("w:footnoteReference"), qn("w:endnoteReference")):
                mark, text = self.story.note(element)
                if text:
                    self._add(f"[{mark}]" if mark else "")
                    own = "".join(sign.text or "" for sign in parent.iterfind(qn("w:t")))  # a mark that people typed
                    self.notes.append(f"[{mark}] {text}" if mark else f"{own} {text}")
            elif tag == qn("w:instrText"):
                drawn = (element.text or "").split(maxsplit=1)[:1] in (["EQ"], ["SYMBOL"])
                self.story.left_out["fields that draw signs"] += drawn
            elif tag == qn("w:fldChar"):
                self._add(_legacy_field(element))
            elif tag == qn("w:ruby"):
                self.story.left_out["readings of characters"] += 1
                base = element.find(qn("w:rubyBase"))
                self.walk(() if base is None else base)
            else:
                self.walk([element])

    def _check_box(self, control: Element) -> None:
        checked = control.find(f"{qn('w:sdtPr')}/{_W14}checkbox/{_W14}checked")
        on = checked is not None and checked.get(f"{_W14}val", "1") in ("1", "true", "on")
        self._add("☒" if on else "☐")

    def _add(self, text: str, script: str = "") -> None:
        if text:
            self._pieces.append(Script(text, script == "superscript") if script else text)


def _kind_left_out(row: Element) -> str:
    """Why a table's row is not shown, or the empty string."""
    if row.find("w:trPr/w:del", nsmap) is not None:
        return "deleted parts"
    return "hidden parts" if is_on(row.find("w:trPr/w:hidden", nsmap)) else ""


def _goes_on(merged: Element) -> bool:
    """True if a cell belongs to the one above or before it, by its ``w:vMerge`` or ``w:hMerge``."""
    return merged is not None and merged.get(qn("w:val")) != "restart"


def _columns(element: Element, path: str, default: int) -> int:
    """A number of columns that a row or a cell states, in bounds that tables have."""
    found = element.find(path, nsmap)
    value = "" if found is None else found.get(qn("w:val"), "")
    return min(int(value), _MOST_COLUMNS) if value.isdecimal() and len(value) < 9 else default


def _legacy_field(character: Element) -> str:
    """The state of a check box or a list of an old form, which is kept with the field alone."""
    box = character.find("w:ffData/w:checkBox", nsmap)
    if box is not None:
        checked = box.find(qn("w:checked"))
        return "☒" if is_on(box.find(qn("w:default")) if checked is None else checked) else "☐"
    choices = character.find("w:ffData/w:ddList", nsmap)
    if choices is None:
        return ""
    entries = [entry.get(qn("w:val"), "") for entry in choices.findall(qn("w:listEntry"))]
    result = choices.find(qn("w:result"))
    chosen = "0" if result is None else result.get(qn("w:val"), "0")
    return entries[int(chosen)] if chosen.isdigit() and int(chosen) < len(entries) else ""


def _owner(element: Element, tag: str) -> Element:
    """The nearest enclosing element with that tag: rows of a table inside a cell are not the outer table's."""
    return next(element.iterancestors(tag))


READERS = {".docx": _extract_docx}
