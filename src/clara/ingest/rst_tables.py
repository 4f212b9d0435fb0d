"""Tables drawn with signs in reStructuredText: grid tables and simple tables as rows of cells."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice

_GRID = re.compile(r"\s*\+(?:[-=]+\+)+\s*")
_GRID_LINE = re.compile(r"\s*[|+].*[|+]\s*")
_SIMPLE = re.compile(r"\s*=+(?: +=+)+\s*")
_COLUMN = re.compile(r"=+")
_LONGEST = 2000  # lines looked at for a table's end


@dataclass(frozen=True, slots=True)
class _Rows:
    """A table.

    Attributes:
        rows: a line for each row.
        end: the line after it.
    """

    rows: list[str]
    end: int


def table_rows(lines: list[str], start: int) -> _Rows | None:
    """The table that begins at a line, or None."""
    if _GRID.fullmatch(lines[start]):
        return _grid(lines, start)
    return _simple(lines, start) if _SIMPLE.fullmatch(lines[start]) else None


def _grid(lines: list[str], start: int) -> _Rows:
    rows: list[str] = []
    cells: list[str] = []
    end = start
    while end < len(lines) and _GRID_LINE.fullmatch(lines[end]):
        line = lines[end].strip()
        if _GRID.fullmatch(line):
            rows += [" | ".join(cells)] if any(cells) else []
            cells = []
        else:
            parts = [part.strip() for part in line.strip("|").split("|")]
            cells = parts if len(parts) != len(cells) else _below(cells, parts)
        end += 1
    return _Rows(["", *rows, ""], end)


def _simple(lines: list[str], start: int) -> _Rows | None:
    """A table between lines of equals signs, each of which is a column; a row without a first cell goes on."""
    rules = (at for at in range(start + 1, min(len(lines), start + _LONGEST)) if _SIMPLE.fullmatch(lines[at]))
    end = next((at for at in islice(rules, 2) if at > start + 1 and _ends(lines, at)), None)  # below names, below rows
    if end is None:
        return None
    starts = [found.start() for found in _COLUMN.finditer(lines[start])]
    stops = [*starts[1:], None]
    rows: list[list[str]] = []
    for line in lines[start + 1 : end]:
        if not line.strip() or _SIMPLE.fullmatch(line) or not line.strip(" -"):
            continue
        cells = [line[left:right].strip() for left, right in zip(starts, stops, strict=True)]
        if rows and not cells[0]:
            rows[-1] = _below(rows[-1], cells)
        else:
            rows.append(cells)
    return _Rows(["", *(" | ".join(row) for row in rows), ""], end + 1)


def _ends(lines: list[str], at: int) -> bool:
    """Whether a rule is a table's last: below a row, with nothing below itself."""
    below = lines[at + 1].strip() if at + 1 < len(lines) else ""
    return not below and lines[at - 1].strip() != ""


def _below(cells: list[str], more: list[str]) -> list[str]:
    return [f"{cell} {other}".strip() for cell, other in zip(cells, more, strict=True)]
