"""Tables as text: CSV and TSV, each row a paragraph that names its columns."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from clara.ingest.decode import decode_text
from clara.ingest.document import Extract
from clara.ingest.tables import row_texts

_DELIMITERS = ",;\t|"
_SAMPLE = 1 << 16  # characters that tell what divides the cells


def extract_csv(data: bytes, uri: str) -> Extract:
    """Read a table whose cells are divided by commas, or by what its first rows show; its title is the file's name.

    Raises:
        DocumentError: as for plain text.
    """
    text = decode_text(data, uri)
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # Excel's own declaration
        return _extract(rest, first.strip()[4], uri, "text/csv")
    return _extract(text, _delimiter(text), uri, "text/csv")


def extract_tsv(data: bytes, uri: str) -> Extract:
    """Read a table whose cells are divided by tabs; its title is the file's name.

    Raises:
        DocumentError: as for plain text.
    """
    return _extract(decode_text(data, uri), "\t", uri, "text/tab-separated-values")


def _extract(text: str, delimiter: str, uri: str, media_type: str) -> Extract:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    rows = list(_rows(text, delimiter))
    if len(rows) > 1 and len(rows[0]) + 1 == len(rows[1]):
        rows[0].insert(0, "")  # R writes no name above the names of the rows
    return Extract(PurePosixPath(uri).stem, "\n\n".join(row_texts(rows)), {"media_type": media_type}, layout="markup")


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
