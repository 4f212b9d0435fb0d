"""Rows of cells as text that can be read row by row: each value with the name of its column, where there are names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, takewhile

_VALUE = re.compile(r"[^\W_]*\d[\d\s.,:/%+$€£¥()-]*[^\W\d_]?", re.UNICODE)  # a number, a date, a price, an amount
_LONGEST_NAME = 80  # characters
_YEAR = re.compile(r"(?:1[5-9]|20|21)\d\d")


def row_texts(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A line for each row that is not empty.

    The first row with more than one cell names the columns if it looks like names: different texts, no values (years
    may be names). Rows below an empty row may begin with names of their own.
    """
    names: list[str] = []
    for block in _blocks(rows):
        captions = list(takewhile(lambda cells: _filled(cells) < 2, block))
        yield from (_line(cells, []) for cells in captions)
        table = block[len(captions) :]
        if table:
            names = _names(table, names)
            yield from (_line(cells, names) for cells in (table[1:] if table[0] == names else table))


def _blocks(rows: Iterable[Sequence[str]]) -> Iterator[list[list[str]]]:
    """Rows between empty rows, each cell on one line."""
    cells = ([" ".join(cell.split()) for cell in row] for row in rows)
    return (list(block) for filled, block in groupby(cells, any) if filled)


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
    return not any(_is_value(cell) for cell in filled if not _YEAR.fullmatch(cell)) and not _YEAR.fullmatch(filled[0])


def _is_value(cell: str) -> bool:
    return _VALUE.fullmatch(cell) is not None


def _filled(cells: list[str]) -> int:
    return sum(map(bool, cells))


def _line(cells: list[str], names: list[str]) -> str:
    parts = []
    for number, cell in enumerate(cells):
        name = names[number] if number < len(names) else ""
        if cell:
            parts.append(f"{name}: {cell}" if name else cell)
    return " | ".join(parts)
