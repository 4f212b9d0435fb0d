"""What the parts of a Word file say: paragraphs with their numbers and notes, tables, text boxes, forms.

The XML is walked itself, because python-docx's own ``paragraph.text`` leaves out tracked insertions, form fields,
equations, symbols and notes. Numbers of lists are ``docx_numbering``'s work, equations and symbols ``docx_signs``'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from docx.oxml.ns import nsmap, qn

from clara.ingest.docx_numbering import Numbering, Styles, is_on, roman
from clara.ingest.docx_signs import equation_text, symbol_text
from clara.ingest.scripts import subscript, superscript

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
    "{http://schemas.openxmlformats.org/drawingml/2006/chart}chart": "charts",
    "{http://schemas.openxmlformats.org/drawingml/2006/diagram}relIds": "diagrams",
    "{urn:schemas-microsoft-com:office:office}OLEObject": "embedded objects",
}
_HEADING_STYLES = {f"heading {level}": level for level in range(1, 10)}
_BASE = 24  # characters of a paragraph looked back at for what a superscript stands on
_BEHIND = {"superscript": superscript, "subscript": subscript}


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph or a table.

    Attributes:
        text: what it says.
        level: of a heading, from 1; 0 for anything else.
        notes: the notes that it refers to, each a line.
    """

    text: str
    level: int = 0
    notes: tuple[str, ...] = ()

    def written(self) -> str:
        """The block with its notes, a heading marked as in Markdown."""
        return "\n".join([f"{'#' * min(self.level, 6)} {self.text}" if self.level else self.text, *self.notes])


class Story:
    """Walks parts of one document.

    Args:
        styles: the document's styles.
        numbering: the definitions of its lists, or None.
        notes: the elements of its footnotes and endnotes parts, by the tag that refers to them.
        take_in: gives the text of another file that the document takes in, by its reference.
    """

    def __init__(
        self,
        styles: Any,  # noqa: ANN401 - lxml elements have no type here
        numbering: Any,  # noqa: ANN401
        notes: dict[str, Any],
        take_in: Callable[[str], str],
    ) -> None:
        self.styles = Styles(styles)
        self.left_out = Counter[str]()
        self._numbering = Numbering(numbering, self.styles)
        self._take_in = take_in
        self._notes = {
            (tag, note.get(qn("w:id"))): note for tag, root in notes.items() if root is not None for note in root
        }
        self._told = Counter[str]()

    def blocks(self, parent: Any) -> Iterator[Block]:  # noqa: ANN401
        """Each paragraph and table under an element, content controls and the like looked into."""
        for child in parent:
            if child.tag == _PARAGRAPH:
                yield from self._paragraph(child)
            elif child.tag == _TABLE:
                yield self._table(child)
            elif child.tag == qn("m:oMath"):
                yield Block(equation_text(child))
            elif child.tag == qn("w:altChunk"):
                yield Block(self._take_in(child.get(qn("r:id"), "")))
            elif self.enters(child):
                yield from self.blocks(child)

    def enters(self, element: Any) -> bool:  # noqa: ANN401
        """Whether an element's content is the document's; counts what is left out."""
        if element.tag in _COUNTED:
            self.left_out[_COUNTED[element.tag]] += 1
            return False
        if element.tag == qn("w:sdt") and is_on(element.find("w:sdtPr/w:showingPlcHdr", nsmap)):
            self.left_out["empty form fields"] += 1
            return False
        return isinstance(element.tag, str) and element.tag not in _PASSED_OVER

    def note(self, reference: Any) -> tuple[str, str]:  # noqa: ANN401
        """The mark of a note that is referred to, and what it says; both empty for one that is not there."""
        note = self._notes.pop((reference.tag, reference.get(qn("w:id"))), None)  # once: a note may refer to itself
        if note is None:
            return "", ""
        self._told[reference.tag] += 1
        number = self._told[reference.tag]
        mark = str(number) if reference.tag == qn("w:footnoteReference") else roman(number)
        return mark, " ".join(" ".join(block.written() for block in self.blocks(note)).split())

    def _paragraph(self, paragraph: Any) -> Iterator[Block]:  # noqa: ANN401
        """A paragraph, then those of the text boxes that hang on it."""
        properties = paragraph.find(qn("w:pPr"))
        content = _Content(self)
        content.walk(paragraph)
        text = content.text().strip("\n")
        label = ""
        if text.strip() or not is_on(paragraph.find("w:pPr/w:rPr/w:del", nsmap)):
            label = self._numbering.label(properties)
        if text.strip():
            yield Block(f"{label} {text}" if label else text, self._level(properties), tuple(content.notes))
        yield from content.boxes

    def _level(self, properties: Any) -> int:  # noqa: ANN401
        named = self.styles.name(self.styles.paragraph_style(properties))
        if named in _HEADING_STYLES:
            return _HEADING_STYLES[named]
        outline = self.styles.paragraph(properties, "w:outlineLvl")
        value = "9" if outline is None else outline.get(qn("w:val"), "9")
        return int(value) + 1 if value in "012345678" and value else 0

    def _table(self, table: Any) -> Block:  # noqa: ANN401
        rows, notes = self._rows(table)
        return Block("\n".join(" | ".join(row) for row in rows), notes=tuple(notes))

    def _rows(self, table: Any) -> tuple[list[list[str]], list[str]]:  # noqa: ANN401
        """The cells of a table, a merged one in each row that it reaches over; and the notes they refer to."""
        rows: list[list[str]] = []
        notes: list[str] = []
        above: dict[int, str] = {}  # merged cells by their first column
        for row in table.iter(_ROW):
            if _owner(row, _TABLE) is not table:
                continue
            if row.find("w:trPr/w:del", nsmap) is not None:
                self.left_out["deleted parts"] += 1
                continue
            cells: list[str] = []
            column = 0
            for cell in row.iter(_CELL):
                if _owner(cell, _ROW) is not row:
                    continue
                merged = cell.find("w:tcPr/w:vMerge", nsmap)
                if merged is not None and merged.get(qn("w:val")) != "restart" and column in above:
                    cells.append(above[column])
                else:
                    text, more = self._cell(cell)
                    cells.append(text)
                    notes.extend(more)
                    above[column] = text if merged is not None else ""
                column += _span(cell)
            rows.append(cells)
        return rows, notes

    def _cell(self, cell: Any) -> tuple[str, list[str]]:  # noqa: ANN401
        """A cell on one line; rows of a table inside it as ``name: value``, divided by semicolons."""
        parts: list[str] = []
        notes: list[str] = []
        for child in cell:
            if child.tag == _TABLE:
                rows, more = self._rows(child)
                values = [[value for value in row if value] for row in rows]
                parts.append("; ".join(": ".join([row[0], ", ".join(row[1:])][: len(row)]) for row in values if row))
                notes.extend(more)
                continue
            for block in self._of_cell(child):
                parts.append(block.text)
                notes.extend(block.notes)
        return " ".join(" ".join(parts).split()), notes

    def _of_cell(self, child: Any) -> Iterator[Block]:  # noqa: ANN401
        if child.tag == _PARAGRAPH:
            yield from self._paragraph(child)
        elif self.enters(child):
            yield from self.blocks(child)


@dataclass(slots=True)
class _Content:
    """The text of one paragraph while it is walked.

    Attributes:
        story: the document.
        notes: the notes referred to, each a line.
        boxes: what the text boxes say that hang on the paragraph.
    """

    story: Story
    notes: list[str] = field(default_factory=list)
    boxes: list[Block] = field(default_factory=list)
    _pieces: list[str] = field(default_factory=list)
    _script: tuple[str, str] = ("", "")  # a superscript or subscript whose end has not come

    def text(self) -> str:
        """All of it."""
        self._end_script("")
        return "".join(self._pieces)

    def walk(self, parent: Any) -> None:  # noqa: ANN401
        """Take what the elements under one say."""
        for element in parent:
            if element.tag == qn("w:r"):
                self._run(element)
            elif element.tag in (_PARAGRAPH, _TABLE):
                self.boxes.extend(self.story.blocks([element]))
            elif element.tag == qn("m:oMath"):
                self._add(equation_text(element))
            elif element.tag == qn("w:sdt") and element.find(f"{qn('w:sdtPr')}/{_W14}checkbox") is not None:
                self._check_box(element)
            elif self.story.enters(element):
                self.walk(element)

    def _run(self, run: Any) -> None:  # noqa: ANN401
        properties = run.find(qn("w:rPr"))
        if is_on(self.story.styles.run(properties, "w:vanish")):
            self.story.left_out["hidden parts"] += any(True for _ in run.iter(qn("w:t")))
            return
        place = self.story.styles.run(properties, "w:vertAlign")
        script = "" if place is None else place.get(qn("w:val"), "")
        self._inside(run, script if script in _BEHIND else "")

    def _inside(self, parent: Any, script: str) -> None:  # noqa: ANN401
        """What a run holds, or an element in it."""
        for element in parent:
            tag = element.tag
            if tag == qn("w:t"):
                self._add(element.text or "", script)
            elif tag in _CHARACTERS:
                self._add(_CHARACTERS[tag])
            elif tag == qn("w:sym"):
                self._add(symbol_text(element), script)
            elif tag in (qn("w:footnoteReference"), qn("w:endnoteReference")):
                self._note(element)
            elif tag == qn("w:fldChar"):
                self._add(_legacy_field(element))
            elif tag == qn("w:ruby"):
                self.story.left_out["readings of characters"] += 1
                self._wrapped(element.find(qn("w:rubyBase")))
            else:
                self._wrapped([element])

    def _wrapped(self, elements: Any) -> None:  # noqa: ANN401
        if elements is not None:
            self.walk(elements)

    def _note(self, reference: Any) -> None:  # noqa: ANN401
        mark, text = self.story.note(reference)
        if text:
            self._add(f"[{mark}]")
            self.notes.append(f"[{mark}] {text}")

    def _check_box(self, control: Any) -> None:  # noqa: ANN401
        checked = control.find(f"{qn('w:sdtPr')}/{_W14}checkbox/{_W14}checked")
        on = checked is not None and checked.get(f"{_W14}val", "1") in ("1", "true", "on")
        self._add("☒" if on else "☐")

    def _add(self, text: str, script: str = "") -> None:
        if not text:
            return
        if script and script == self._script[0]:
            self._script = script, self._script[1] + text
            return
        self._end_script(text)
        if script:
            self._script = script, text
        else:
            self._pieces.append(text)

    def _end_script(self, after: str) -> None:
        kind, written = self._script
        if kind:
            self._script = "", ""
            before = ""
            for piece in reversed(self._pieces):
                before = piece + before
                if len(before) >= _BASE:
                    break
            self._pieces.append(_BEHIND[kind](before, written, after))
            self._pieces.append(written[len(written.rstrip()) :])


def _legacy_field(character: Any) -> str:  # noqa: ANN401
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


def _owner(element: Any, tag: str) -> Any:  # noqa: ANN401
    """The nearest enclosing element with that tag: rows of a table inside a cell are not the outer table's."""
    return next(element.iterancestors(tag))


def _span(cell: Any) -> int:  # noqa: ANN401
    """How many columns a cell takes."""
    span = cell.find("w:tcPr/w:gridSpan", nsmap)
    value = "1" if span is None else span.get(qn("w:val"), "1")
    return int(value) if value.isdigit() else 1
