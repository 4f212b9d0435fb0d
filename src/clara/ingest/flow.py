"""Lines of text as they are gathered from a page: white space as browsers show it, blank lines, cells of tables.

Knows lines, not elements; those are the work of ``html_text`` and ``read_odt``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain, groupby
from typing import Literal

from clara.ingest.clean import BROKEN_AT_HYPHEN
from clara.ingest.read_tables import GridCell, grid
from clara.ingest.scripts import Script, fractions, spelt, tail
from clara.records import Heading

_BROKEN = re.compile("\u2010[ \\t]*\n\\s*")
_CHECK_MARKS = "☒☐ "
_LONG_CELL = (1000, 3)  # characters and lines from which a cell is a part of a page, not a value
_LARGE_TABLE = 20  # rows of a table inside a cell
_DEEPEST_VALUE = 4  # tables within tables; deeper ones lay out a page


class Gap(IntEnum):
    """Separator of a line from the one before."""

    NONE = 0
    LINE = 1
    BLANK = 2


@dataclass(frozen=True, slots=True)
class _FlowLine:
    """A line; ``gap`` separates it from the line before; the row of a table has ``cells`` and no text."""

    text: str
    gap: Gap
    kind: Literal["text", "heading", "item", "pre", "row"] = "text"
    cells: tuple[str, ...] = ()


class Flow:
    """A page's lines, or those of one cell."""

    def __init__(self) -> None:
        self.lines: list[_FlowLine] = []
        self._pieces: list[str | Script] = []
        self._gap = Gap.NONE
        self._marker = ""
        self._kind: Literal["text", "heading", "item", "pre"] = "text"

    def add(self, piece: str | Script) -> None:
        """More of the current line; its white space will be collapsed."""
        self._pieces.append(piece)

    def add_preformatted(self, text: str) -> None:
        """More text whose newlines and blanks count."""
        for number, part in enumerate(text.split("\n")):
            if number:
                empty = self.is_empty()
                self._end_line("pre")
                self._gap = Gap.BLANK if empty and self.lines else max(self._gap, Gap.LINE)
            self._pieces.append(part)

    def end(self, gap: Gap = Gap.LINE, *, preformatted: bool = False) -> None:
        """End the current line; at least ``gap`` comes before the next one."""
        self._end_line("pre" if preformatted else self._kind)
        self._gap = max(self._gap, gap)

    def mark(self, marker: str, kind: Literal["heading", "item"]) -> None:
        """Beginning of the next line."""
        self._marker, self._kind = marker, kind

    def unmark(self) -> None:
        """Forget a marker that no text followed."""
        self._marker, self._kind = "", "text"

    def position(self) -> tuple[int, int]:
        """A place in the current line, for ``cut``."""
        return len(self.lines), len(self._pieces)

    def cut(self, position: tuple[int, int]) -> str | None:
        """Take back what was added since; None if the line has ended meanwhile."""
        if position[0] != len(self.lines) or position[1] > len(self._pieces):
            return None
        taken = spelt(self._pieces[position[1] :])
        del self._pieces[position[1] :]
        return taken

    def tail(self) -> str:
        """The end of the current line so far, for ``set_beside``."""
        return tail(self._pieces)

    def is_empty(self) -> bool:
        """True if the current line says nothing yet."""
        return not spelt(self._pieces).strip()

    def extend(self, lines: list[_FlowLine], gap: Gap) -> None:
        """Whole lines, such as those of a cell."""
        self.end(gap)
        for line in lines:
            together = max(line.gap, self._gap)
            self.lines.append(line if together == line.gap else _FlowLine(line.text, together, line.kind, line.cells))
            self._gap = Gap.NONE

    def text(self) -> tuple[str, tuple[Heading, ...]]:
        """All lines, and which of them are headings."""
        self.end()
        parts: list[str] = []
        headings: list[Heading] = []
        length = 0
        for line in self.lines:
            parts.append("\n" * max(line.gap, Gap.LINE) if parts else "")
            length += len(parts[-1])
            if line.kind == "heading":
                headings.append(Heading(length, line.text.lstrip("# ")))
            parts.append(line.text if line.kind != "row" else " ".join(" | ".join(line.cells).split()))
            length += len(parts[-1])
        return "".join(parts), tuple(headings)

    def _end_line(self, kind: Literal["text", "heading", "item", "pre"]) -> None:
        joined = spelt(self._pieces)
        self._pieces.clear()
        whole = joined.rstrip() if kind == "pre" else " ".join(_BROKEN.sub(BROKEN_AT_HYPHEN, joined).split())
        text = fractions(whole)
        if not text.strip(_CHECK_MARKS):  # a check box without a word is a switch of the page itself
            return
        self.lines.append(_FlowLine(self._marker + text, self._gap, kind))
        self._gap = Gap.NONE
        self.unmark()


@dataclass(slots=True)
class Cell:
    """A cell of a table with what it holds."""

    lines: list[_FlowLine]
    rows: int = 1
    columns: int = 1

    def is_value(self) -> bool:
        """True if it reads as one value of a row, not as a part of the page."""
        kinds = [line.kind for line in self.lines]
        characters, count = _LONG_CELL
        long = len(self.lines) >= count and sum(len(line.text) for line in self.lines) > characters
        return not long and "heading" not in kinds and kinds.count("pre") < 2 and kinds.count("row") <= _LARGE_TABLE

    def value(self) -> str:
        """The cell on one line: rows of a table inside it as ``name: value``, divided by semicolons."""
        parts: list[str] = []
        before = "text"
        for line in self.lines:
            if parts:
                parts.append("; " if {line.kind, before} & {"row", "item"} else " ")
            first, *others = [cell for cell in line.cells if cell] or [line.text.strip().removeprefix("- ")]
            parts.append(f"{first}: {', '.join(others)}" if others else first)
            before = line.kind
        return " ".join("".join(parts).split())


@dataclass(slots=True)
class Table:
    """A table while it is read, the ``depth``-th inside another; the page may say that it only places things."""

    depth: int
    layout: bool
    rows: list[list[Cell]] = field(default_factory=list)

    def holds_values(self) -> bool:
        """True if its cells may be values; else they are parts of the page, written where they stand."""
        return not self.layout and self.depth <= _DEEPEST_VALUE

    def add(self, cell: Cell) -> None:
        """The next cell of the current row."""
        if not self.rows:
            self.rows.append([])
        self.rows[-1].append(cell)

    def write(self, flow: Flow) -> None:
        """A line for each row; a row that holds parts of a page gives their lines instead."""
        for are_values, rows in groupby(self.rows, lambda row: all(cell.is_value() for cell in row)):
            if not are_values:
                for cell in chain.from_iterable(rows):
                    flow.extend(cell.lines, Gap.LINE if len(cell.lines) < 2 else Gap.BLANK)
                continue
            for cells in grid([[GridCell(cell.value(), cell.rows, cell.columns) for cell in row] for row in rows]):
                if len(cells) == 1:
                    flow.extend([_FlowLine(cells[0], Gap.LINE)], Gap.LINE)
                elif cells:
                    flow.extend([_FlowLine("", Gap.LINE, "row", tuple(cells))], Gap.LINE)
