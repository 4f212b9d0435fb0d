"""Tables as text that can be read row by row, each value with the name of its column: CSV, TSV and spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, takewhile
from pathlib import PurePosixPath

from clara.ingest.decode import decode_text
from clara.ingest.document import Extract

_VALUE = re.compile(r"[^\W_]*\d[\d\s.,:/%+$€£¥()-]*[^\W\d_]?", re.UNICODE)  # a number, a date, a price, an amount
_LONGEST_NAME = 80  # characters
_LONGEST_UNIT = 10
_DIGIT = re.compile(r"\d")
_IN_BRACKETS = re.compile(r"\((?![\d.,\s]+\))[^()]*\)|\[[^\[\]]*\]")  # no loss in accounts: (12)
_NOTE = re.compile(r"[*†‡§¹²³⁴]|[(\[]?\d[)\]]\s|\w+:\s")
_YEAR = re.compile(r"(?:1[5-9]|20|21)\d\d")

REPEATED = 100
"""Characters of a merged cell that stands in each row and column it reaches over."""
_MOST_COLUMNS = 1000  # that a cell reaches over, as in browsers

_DELIMITERS = ",;\t|"
_SAMPLE = 1 << 16  # characters that tell what divides the cells


@dataclass(frozen=True, slots=True)
class GridCell:
    """A cell of a table on one line, with the rows and columns that it reaches over."""

    text: str
    rows: int = 1
    columns: int = 1


@dataclass(frozen=True, slots=True)
class _GridPlace:
    """A cell in a row of the grid, begun there or above; columns from 0."""

    cell: GridCell
    column: int
    begins: bool

    @property
    def end(self) -> int:
        return self.column + min(max(self.cell.columns, 1), _MOST_COLUMNS)


def grid(rows: Sequence[Sequence[GridCell]]) -> list[list[str]]:
    """The rows of a table with each value in its column; empty cells at a row's end and empty columns are dropped.

    A column is where a cell begins. A merged cell stands in each row that it reaches over, and in each column below
    whose name values may stand: not where it has the row to itself or is the label or the one value of it, and not
    where it is long.
    """
    placed = _placed(rows)
    starts = sorted({each.column for row in placed for each in row})
    # What is repeated or left empty takes room: a table grows to a few times its size at most.
    room = 1000 + 4 * sum(len(cell.text) + 3 for row in rows for cell in row)
    written: list[list[str]] = []
    names = next((number for number, row in enumerate(placed) if _filled(row) > 1), 0)
    for number, row in enumerate(placed):
        repeated = _repeated(row, placed[number + 1] if number == names and number + 1 < len(placed) else [])
        cells: list[str] = []
        for each in row if any(each.begins and each.cell.text for each in row) else ():
            first, last = bisect_left(starts, each.column), bisect_left(starts, each.end)
            short = each.cell.text if len(each.cell.text) <= REPEATED and room > 0 else ""
            again = short if each.column in repeated else ""
            room -= 2 * max(0, first - len(cells)) + (len(again) + 2) * (last - first - 1) + len(short)
            cells += [""] * (first - len(cells) if room > 0 else 0)
            cells.append(each.cell.text if each.begins else short)
            cells += [again] * (last - first - 1 if room > 0 else 0)
        while cells and not cells[-1]:
            cells.pop()
        written.append(cells)
    used = {column for cells in written for column, text in enumerate(cells) if text}
    if len(used) < max(map(len, written), default=0):  # the others only keep columns apart
        written = [[text for column, text in enumerate(cells) if column in used] for cells in written]
    return written


def _placed(rows: Sequence[Sequence[GridCell]]) -> list[list[_GridPlace]]:
    """The cells of each row with their columns, those included that reach into it from above."""
    placed: list[list[_GridPlace]] = []
    room = 10_000 + 10 * sum(map(len, rows))  # for cells from above, lest a few reach over all of many rows
    reaching: dict[int, tuple[_GridPlace, int]] = {}  # by column, each with the rows left
    for row in rows:
        line = [_GridPlace(each.cell, each.column, begins=False) for each, _ in reaching.values()]
        left = {column: (each, count - 1) for column, (each, count) in reaching.items() if count > 1}
        ends = {each.column: each.end for each in line}
        column = 0
        for cell in row:
            while column in ends:
                column = ends[column]
            each = _GridPlace(cell, column, begins=True)
            line.append(each)
            if cell.rows > 1:
                left[column] = each, cell.rows - 1
            column = each.end
        placed.append(sorted(line, key=lambda each: each.column))
        room -= len(line)
        reaching = left if room > 0 else {}
    return placed


def _filled(row: list[_GridPlace]) -> int:
    return sum(bool(each.cell.text) for each in row)


def _repeated(row: list[_GridPlace], below: list[_GridPlace]) -> set[int]:
    """The columns of the cells whose text each column below needs; ``below`` is the row under the one with names.

    Of two cells the columns alone tell whose a value is, unless both are divided below.
    """
    starts = [each.column for each in below]
    divided = {each.column for each in row if bisect_right(starts, each.column) < bisect_left(starts, each.end)}
    among_several = {each.column for each in row if each.column > 0} | divided if _filled(row) > 2 else set()
    return among_several | (divided if len(divided) > 1 else set())


def row_texts(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A line for each row that is not empty.

    The first row with more than one cell names the columns if it looks like names: different texts, no values (years
    may be names). Rows below an empty row, or below some narrower ones, may begin with names of their own.
    """
    names: list[str] = []
    lines = ([" ".join(cell.split()) for cell in row] for row in rows)
    for block in (list(rows) for filled, rows in groupby(lines, any) if filled):
        captions = block[: _above_names(block)]
        yield from (_line(cells, []) for cells in captions)
        table = _with_units(block[len(captions) :])
        if table:
            names = _names(table, names)
            rows = table[1:] if table[0] == names else table
            notes = _notes_below(rows) if names else 0
            yield from (_line(cells, names) for cells in rows[: len(rows) - notes])
            yield from (_line(cells, []) for cells in rows[len(rows) - notes :])


def _above_names(block: list[list[str]]) -> int:
    """How many rows of a block stand above a table: single cells, and a form that is narrower than the table.

    A note over merged cells may look as wide as the table, as its text stands in each column.
    """
    filled = [[cell for cell in cells if cell] for cells in block]
    widths = [len(cells) for cells in filled]
    apart = [sum(text != after for text, after in pairwise([*cells, ""])) for cells in filled]
    titles = next((number for number, count in enumerate(widths) if count > 1), len(block))
    for counts in (widths, apart):
        narrow = counts.index(max(counts))
        names, *below = block[narrow : narrow + 2]
        if narrow > titles + 1 and _are_names(names) and any(_is_value(cell) for row in below for cell in row):
            return narrow
    return titles


def _with_units(table: list[list[str]]) -> list[list[str]]:
    """The table with its second row joined to its first, where it holds the units of the columns."""
    if len(table) < 3 or not _are_names(table[0]):
        return table
    names, units, values = (dict(enumerate(cells)) for cells in table[:3])
    filled = {column: unit for column, unit in units.items() if unit}
    in_brackets = all(map(_IN_BRACKETS.fullmatch, filled.values()))
    above_values = all(_is_value(values.get(column, "")) for column in filled)
    short = not units.get(0) and all(len(unit) <= _LONGEST_UNIT and not _DIGIT.search(unit) for unit in filled.values())
    if not filled or not (in_brackets or (short and above_values)):
        return table
    joined = [f"{names.get(column, '')} {units.get(column, '')}".strip() for column in range(max(*names, *units) + 1)]
    return [joined, *table[2:]]


def _notes_below(rows: list[list[str]]) -> int:
    """How many rows at a table's end are notes: a text alone in the first column, longer than any above or marked."""
    alone = takewhile(lambda cells: cells[0] and not any(cells[1:]), reversed(rows))
    count = len(list(alone))
    longest = max((len(cells[0]) for cells in rows[: len(rows) - count]), default=0)
    notes = takewhile(
        lambda cells: len(cells[0]) > longest or _NOTE.match(cells[0]), reversed(rows[-count:] if count else [])
    )
    return len(list(notes)) if count < len(rows) else 0


def _names(table: list[list[str]], known: list[str]) -> list[str]:
    """The names of a table's columns, by its first two rows; where they name none, those of the table above."""
    first = table[0]
    if len(table) < 2 or not _are_names(first):
        return known if len(known) >= len(first) else []
    if any(map(_is_value, table[1])):
        return first
    # Texts alone: rows as those above, not names and rows.
    return known or (first if len(set(first)) == len(first) else [])


def _are_names(cells: list[str]) -> bool:
    filled = [cell for cell in cells if cell]
    if len(filled) < 2 or any(len(cell) > _LONGEST_NAME for cell in filled):
        return False
    if filled[0].endswith(":"):  # Name: Anna, in a form
        return False
    return not any(_is_value(cell) for cell in filled if not _YEAR.fullmatch(cell)) and not _YEAR.fullmatch(filled[0])


def _is_value(cell: str) -> bool:
    return _VALUE.fullmatch(cell) is not None


def _line(cells: list[str], names: list[str]) -> str:
    parts = []
    for number, cell in enumerate(cells):
        name = names[number] if number < len(names) else ""
        if cell:
            parts.append(f"{name}: {cell}" if name else cell)
    return " | ".join(parts)


def _extract_csv(data: bytes, uri: str) -> Extract:
    """Read a table whose cells are divided by commas, or by what its first rows show; its title is the file's name."""
    text = decode_text(data, uri)
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # Excel's own declaration
        return _extract(rest, first.strip()[4], uri, "text/csv")
    return _extract(text, _delimiter(text), uri, "text/csv")


def _extract_tsv(data: bytes, uri: str) -> Extract:
    """Read a table whose cells are divided by tabs; its title is the file's name."""
    return _extract(decode_text(data, uri), "\t", uri, "text/tab-separated-values")


def _extract(text: str, delimiter: str, uri: str, media_type: str) -> Extract:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    rows = list(_rows(text, delimiter))
    if len(rows) > 1 and len(rows[0]) + 1 == len(rows[1]):
        rows[0].insert(0, "")  # R writes no name above the names of the rows
    return Extract(PurePosixPath(uri).stem, "\n\n".join(row_texts(rows)), {"media_type": media_type})


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)


def _delimiter(text: str) -> str:
    """The delimiter by which most of the first rows have the same number of cells, more than one."""
    sample = text[:_SAMPLE]

    def agreement(delimiter: str) -> tuple[int, int]:
        widths = Counter(len(row) for row in _rows(sample, delimiter) if row)
        width, rows = max(widths.items(), key=lambda item: (item[0] > 1, item[1]), default=(1, 0))
        return (rows, width) if width > 1 else (0, 0)

    return max(_DELIMITERS, key=agreement)


READERS = {".csv": _extract_csv, ".tsv": _extract_tsv}
