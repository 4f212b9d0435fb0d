"""Tables as text that can be read row by row, each value with the name of its column: CSV, TSV and spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, takewhile
from pathlib import PurePosixPath

from clara.ingest.decode import decode_text
from clara.ingest.document import Extract

_VALUE = re.compile(r"[^\W_]*\d[\d\s.,:/%+$€£¥()-]*[^\W\d_]?", re.UNICODE)  # a number, a date, a price, an amount
_LONGEST_NAME = 80  # characters
_YEAR = re.compile(r"(?:1[5-9]|20|21)\d\d")

_DELIMITERS = ",;\t|"
_SAMPLE = 1 << 16  # characters that tell what divides the cells


def row_texts(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A line for each row that is not empty.

    The first row with more than one cell names the columns if it looks like names: different texts, no values (years
    may be names). Rows below an empty row may begin with names of their own.
    """
    names: list[str] = []
    lines = ([" ".join(cell.split()) for cell in row] for row in rows)
    for block in (list(rows) for filled, rows in groupby(lines, any) if filled):
        captions = list(takewhile(lambda cells: sum(map(bool, cells)) < 2, block))
        yield from (_line(cells, []) for cells in captions)
        table = block[len(captions) :]
        if table:
            names = _names(table, names)
            yield from (_line(cells, names) for cells in (table[1:] if table[0] == names else table))


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
