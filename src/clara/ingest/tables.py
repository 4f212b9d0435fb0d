"""Rows of cells as text that can be read row by row: each value with the name of its column, where there are names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

_VALUE = re.compile(r"[^\W_]*\d[\d\s.,:/%+$€£¥()-]*[^\W\d_]?", re.UNICODE)  # a number, a date, a price, an amount
_YEAR = re.compile(r"(?:1[5-9]|20|21)\d\d")


def row_texts(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A line for each row that is not empty.

    The first row with more than one cell names the columns if it looks like names: different texts, no values (years
    may be names). A block of rows below an empty row may begin with names of its own.
    """
    names: list[str] = []
    block: list[list[str]] = []
    for row in rows:
        cells = [" ".join(cell.split()) for cell in row]
        if any(cells):
            block.append(cells)
            if len(block) == 2:
                names = _names(block, names)
                yield from _block_start(block, names)
            elif len(block) > 2:
                yield _line(cells, names)
            continue
        yield from (_line(cells, names) for cells in block[:1] if len(block) == 1)
        block = []
    if len(block) == 1:
        yield _line(block[0], names)


def _block_start(block: list[list[str]], names: list[str]) -> Iterator[str]:
    first, second = block
    if first != names:
        yield _line(first, names if _filled(first) > 1 else [])
    if _filled(first) < 2:  # a caption above the table
        block.pop(0)
        return
    yield _line(second, names)


def _names(block: list[list[str]], known: list[str]) -> list[str]:
    """The names of the columns of a block, by its first two rows."""
    first, second = block
    values_below = any(_is_value(cell) for cell in second)
    if not _are_names(first) or _filled(second) < 1 or len(first) < len(second):
        return known if len(known) >= len(first) else []
    if known and not values_below:
        return known  # a block of texts goes on with the names above
    return first


def _are_names(cells: list[str]) -> bool:
    filled = [cell for cell in cells if cell]
    if len(filled) < 2 or len(set(filled)) < len(filled) or any(len(cell) > 80 for cell in filled):
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
