"""Spreadsheets (.xlsx), by openpyxl (extra ``formats``): each row a paragraph that names its columns, by sheets."""

from __future__ import annotations

import datetime
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from clara.ingest.document import Extract
from clara.ingest.packages import open_package
from clara.ingest.report import missing
from clara.ingest.tables import row_texts
from clara.records import Heading

_SHEET = re.compile(r"xl/worksheets/[^/]+\.xml")
_WITHOUT_VALUE = re.compile(rb"(?:</f>|<f[^>]*/>)\s*(?:<v\s*/>|<v></v>)?\s*</c>")
_PERCENT = re.compile(r"0(?:\.(0+))?%")


def extract_xlsx(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a spreadsheet; its title is the one among its properties, else the file's name.

    Cells are read as they were stored when it was last saved, dates and per cents as they are shown.

    Raises:
        DocumentError: damaged, encrypted, too large when unpacked, or openpyxl is not installed.
    """
    with open_package(data, uri, max_bytes) as archive:
        sheets = [name for name in archive.namelist() if _SHEET.fullmatch(name)]
        without_value = sum(len(_WITHOUT_VALUE.findall(archive.read(name))) for name in sheets)
    try:
        import openpyxl  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing(uri, "openpyxl") from None
    left_out = Counter[str]()
    if without_value:
        left_out["formulas without a stored value"] = without_value
    workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    texts: list[str] = []
    headings: list[Heading] = []
    length = 0
    try:
        for sheet in workbook.worksheets:
            if sheet.sheet_state != "visible":
                left_out["hidden sheets"] += 1
                continue
            sheet.reset_dimensions()  # what the file says of them may be wrong
            if rows := list(row_texts(_rows(sheet))):
                headings.append(Heading(length, sheet.title))
                texts.append("\n\n".join([f"# {sheet.title}", *rows]))
                length += len(texts[-1]) + 2
        left_out["charts"] = len(workbook.chartsheets)
        title = workbook.properties.title or PurePosixPath(uri).stem
    finally:
        workbook.close()
    return Extract(
        title=title,
        text="\n\n".join(texts),
        metadata={"media_type": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"},
        headings=tuple(headings),
        left_out=+left_out,
        layout="markup",
    )


def _rows(sheet: Any) -> Iterator[list[str]]:  # noqa: ANN401 - openpyxl has no types
    for row in sheet.iter_rows():
        yield [_shown(cell.value, cell.number_format) if cell.value is not None else "" for cell in row]


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
