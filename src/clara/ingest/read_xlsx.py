"""Spreadsheets (.xlsx) as their sheets show them, row by row; cells are read by openpyxl (extra ``formats``).

Rows and columns count from 0 here, in the file from 1.
"""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import PurePosixPath

import lxml.etree

from clara.ingest.document import Element, Extract, TextParts
from clara.ingest.read_packages import attribute, extra_library, linked, local_name, open_package, xml_part
from clara.ingest.read_tables import REPEATED, row_texts
from clara.ingest.scripts import STRUCK, Script, fractions, spelt
from clara.records import Heading

_SHEET = re.compile(r"xl/worksheets/[^/]+\.xml")
_WITHOUT_VALUE = re.compile(rb"(?:</f>|<f[^>]*/>)\s*(?:<v\s*/>|<v></v>)?\s*</c>")
# What a workbook holds beside the cells: kind to the parts that hold it, and how one begins there.
_BESIDE_CELLS = {
    "comments": (re.compile(r"xl/comments[^/]*\.xml|xl/comments/[^/]+\.xml"), re.compile(rb"<(?:\w+:)?comment\s")),
    "charts": (re.compile(r"xl/charts/chart[^/]*\.xml"), re.compile(rb"<(?:\w+:)?chart>")),
    "text boxes": (re.compile(r"xl/drawings/drawing[^/]*\.xml"), re.compile(rb"<(?:\w+:)?txBody>")),
}
# A number's format: literal text (a currency, a unit) around digits; what follows a semicolon is for other numbers.
_FOR_AMOUNTS = re.compile(r'(?:"[^"]*"|\\.|[^;])*')
_FORMAT_PART = re.compile(
    r'(?P<digits>[#0?,.]+|General)|"(?P<quoted>[^"]*)"|\\(?P<escaped>.)|\[\$(?P<currency>[^\]-]*)[^\]]*\]'
    r"|(?P<plain>[$€£¥%\s])|[_*].|\[[A-Za-z]+\d*\]|(?P<other>.)",
    re.DOTALL,
)
_HOURS = re.compile(r"\[h+\]", re.IGNORECASE)
_ESCAPED = re.compile(r"_x000[9AD]_")  # a newline or tab, as some programs write them
_AMOUNT = re.compile(r"(?!(?:1[5-9]|20|21)\d\d$)[\d.,:%+\s€$£-]+")  # anything but a year
_WORKBOOK, _RELATIONS = "xl/workbook.xml", "xl/_rels/workbook.xml.rels"
_MOST_COLUMNS = 16_384  # of a sheet


@dataclass(frozen=True, slots=True)
class _Merged:
    """Cells that show the one at the upper left; the ends are not part of it."""

    row: int
    column: int
    end_row: int
    end_column: int


@dataclass(frozen=True, slots=True)
class _Marks:
    """What a sheet says beside the values of its cells; ``rich`` are texts in several fonts by row and column."""

    hidden_rows: set[int]
    hidden_columns: set[int]
    merged: list[_Merged]
    rich: dict[tuple[int, int], list[Element]]


@dataclass(frozen=True, slots=True)
class _SheetRow:
    """Texts of a row; ``wide`` are columns below a name that stands over several of them."""

    cells: list[str]
    wide: set[int]


def _extract_xlsx(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a spreadsheet, sheet by sheet; its title is its own, else the file's name.

    Cells are read as they were stored when it was last saved, dates and per cents as they are shown. A merged cell
    stands in each row and column whose name or value it is. Hidden sheets, rows and columns are left out; rows and
    columns of an outline that is closed are not hidden: a click shows them.
    """
    openpyxl = extra_library("openpyxl", "openpyxl", uri)
    parts = TextParts()
    with open_package(data, uri, max_bytes) as archive:
        left_out = _beside_cells(archive)
        files = _sheet_files(archive)
        workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, rich_text=True)
        try:
            for sheet in workbook.worksheets:
                if sheet.sheet_state != "visible":
                    left_out["hidden sheets"] += 1
                    continue
                sheet.reset_dimensions()  # what the file says of them may be wrong
                marks = _marks(archive, files.get(sheet.title, ""), openpyxl)
                texts = _texts(sheet, marks, left_out)
                rows = _without_hidden(_with_merged(texts, marks.merged), marks, left_out)
                if lines := list(row_texts(_joined_names(rows))):
                    parts.add("\n\n".join([f"# {sheet.title}", *lines]), [Heading(0, sheet.title)])
            title = workbook.properties.title or PurePosixPath(uri).stem
        finally:
            workbook.close()
    return Extract(
        title=title,
        text=parts.text(),
        metadata={"media_type": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"},
        headings=tuple(parts.headings),
        left_out=+left_out,
    )


def _beside_cells(archive: zipfile.ZipFile) -> Counter[str]:
    """What a workbook holds that its cells do not show: kind to how many."""
    names = archive.namelist()
    found = Counter(
        {
            kind: sum(len(sign.findall(archive.read(name))) for name in names if where.fullmatch(name))
            for kind, (where, sign) in _BESIDE_CELLS.items()
        }
    )
    sheets = (archive.read(name) for name in names if _SHEET.fullmatch(name))
    found["formulas without a stored value"] = sum(len(_WITHOUT_VALUE.findall(sheet)) for sheet in sheets)
    return found


def _sheet_files(archive: zipfile.ZipFile) -> Mapping[str, str]:
    """The part of each sheet, by its title."""
    workbook, relations = xml_part(archive, _WORKBOOK), xml_part(archive, _RELATIONS)
    if workbook is None or relations is None:
        return {}
    targets = {attribute(each, "Id"): linked(_WORKBOOK, attribute(each, "Target")).lstrip("/") for each in relations}
    sheets = (element for element in workbook.iter() if local_name(element) == "sheet")
    return {attribute(sheet, "name"): targets.get(attribute(sheet, "id"), "") for sheet in sheets}


def _marks(archive: zipfile.ZipFile, part: str, openpyxl: Element) -> _Marks:
    """The marks of a sheet; none where its part is not found."""
    marks = _Marks(set(), set(), [], {})
    if part not in archive.namelist():
        return marks
    number = -1
    with archive.open(part) as file:
        tags = ("{*}row", "{*}col", "{*}mergeCell")
        for _, element in lxml.etree.iterparse(file, tag=tags, resolve_entities=False, no_network=True):
            name = local_name(element)
            hidden = element.get("hidden") in ("1", "true") and element.get("outlineLevel", "0") == "0"
            if name == "mergeCell":
                marks.merged.append(_merged(element.get("ref", ""), openpyxl))
            elif name == "col" and hidden:
                last = min(int(element.get("max", "0")), _MOST_COLUMNS)
                marks.hidden_columns.update(range(int(element.get("min", "1")) - 1, last))
            elif name == "row":
                number = int(float(element.get("r", number + 2))) - 1
                marks.hidden_rows.update([number] if hidden else [])
                for inline in element.iterfind("{*}c/{*}is"):
                    if inline.find("{*}r") is not None:  # openpyxl reads these without their fonts
                        column = _column(inline.getparent(), openpyxl)
                        marks.rich[number, column] = openpyxl.cell.rich_text.CellRichText.from_tree(inline)
                element.clear()
                while element.getprevious() is not None:  # rows that are done; a sheet may have a million
                    del element.getparent()[0]
    return marks


def _merged(reference: str, openpyxl: Element) -> _Merged:
    left, top, right, bottom = openpyxl.utils.range_boundaries(reference)
    return _Merged(top - 1, left - 1, bottom, right)


def _column(cell: Element, openpyxl: Element) -> int:
    if reference := cell.get("r"):
        return int(openpyxl.utils.cell.coordinate_to_tuple(reference)[1]) - 1
    return sum(1 for _ in cell.itersiblings(cell.tag, preceding=True))


def _texts(sheet: Element, marks: _Marks, left_out: Counter[str]) -> Iterator[list[str]]:
    for number, row in enumerate(sheet.iter_rows()):
        left_out["hidden cells"] += sum(cell.value is not None and _is_hidden(cell) for cell in row)
        yield [
            "" if cell.value is None or _is_hidden(cell) else _text(cell, marks.rich.get((number, column), cell.value))
            for column, cell in enumerate(row)
        ]


def _is_hidden(cell: Element) -> bool:
    """True if the format of a cell shows no number and no text."""
    return str(cell.number_format).replace(" ", "") == ";;;"


def _text(cell: Element, value: object) -> str:
    text = shown(value, cell.number_format)
    return f"{STRUCK}{text}{STRUCK}" if cell.font.strike and text.strip() and not isinstance(value, list) else text


def _with_merged(rows: Iterable[list[str]], merged: Sequence[_Merged]) -> Iterator[_SheetRow]:
    """The rows with the text of merged cells in each row that has values, and in the columns that need it."""
    begun: dict[int, list[_Merged]] = {}
    for each in merged:
        begun.setdefault(each.row, []).append(each)
    reaching: list[tuple[_Merged, str]] = []
    widest, before_names = 0, True
    for number, (row, below) in enumerate(pairwise(chain(rows, [[]]))):
        widest = max(widest, len(row), len(below))
        reaching = [(each, text) for each, text in reaching if each.end_row > number]
        for each in begun.get(number, ()):
            text = row[each.column] if each.column < len(row) else ""
            reaching += [(each, text)] if text and len(text) <= REPEATED else []
        cells, wide = [*row, *[""] * (widest - len(row))], set[int]()
        for each, text in reaching if any(row) else ():
            cells[each.column] = text
        filled = [column for column, text in enumerate(cells) if text]
        for each, text in reaching if len(filled) > 1 else ():
            divided = before_names and sum(map(bool, below[each.column : each.end_column])) > 1
            if divided or (len(filled) > 2 and each.column > filled[0]):
                columns = range(each.column, min(each.end_column, widest))
                cells[columns.start : columns.stop] = [text] * len(columns)
                wide.update(columns if divided else ())
        before_names = not filled or (before_names and (len(filled) < 2 or bool(wide)))
        yield _SheetRow(cells, wide)


def _without_hidden(rows: Iterable[_SheetRow], marks: _Marks, left_out: Counter[str]) -> Iterator[_SheetRow]:
    hidden_columns: set[int] = set()
    for number, row in enumerate(rows):
        if number in marks.hidden_rows:
            left_out["hidden rows"] += any(row.cells)
            continue
        for column in marks.hidden_columns:
            if column < len(row.cells) and row.cells[column]:
                hidden_columns.add(column)
                row.cells[column] = ""
        yield row
    left_out["hidden columns"] += len(hidden_columns)


def _joined_names(rows: Iterable[_SheetRow]) -> Iterator[list[str]]:
    """The rows; names below a name that stands over several columns are joined with it: 2023 Q1."""
    held: _SheetRow | None = None
    for row in rows:
        cells = row.cells
        if held is not None and _are_names_below(held, cells):
            pairs = zip(held.cells, [*cells, *[""] * len(held.cells)], strict=False)
            cells = [above if above == name else f"{above} {name}".strip() for above, name in pairs]
        elif held is not None:
            yield held.cells
        held = _SheetRow(cells, row.wide) if row.wide else None
        if held is None:
            yield cells
    if held is not None:
        yield held.cells


def _are_names_below(above: _SheetRow, cells: list[str]) -> bool:
    """True if a row goes on with the names of the one above: it has no values, and names what has no name there."""
    for column, (name, cell) in enumerate(zip(above.cells, cells, strict=False)):
        if column in above.wide and _AMOUNT.fullmatch(cell):
            return False
        if column not in above.wide and name and cell and name != cell:
            return False
    return True


def shown(value: object, number_format: str) -> str:
    """A value as people read it in a sheet, or in a chart of one."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return value.date().isoformat() if midnight else value.isoformat(" ", "minutes")
    if isinstance(value, datetime.timedelta) and _HOURS.search(number_format):
        minutes, seconds = divmod(round(value.total_seconds()), 60)
        return f"{minutes // 60}:{minutes % 60:02}" + (f":{seconds:02}" if seconds else "")
    if isinstance(value, int | float):
        return _number(value, number_format)
    return _rich(value) if isinstance(value, list) else _ESCAPED.sub("\n", str(value))


def _number(value: float, number_format: str) -> str:
    written = f"{value:.15g}" if isinstance(value, float) else str(value)  # the digits that spreadsheets keep
    parts = _FORMAT_PART.finditer(_FOR_AMOUNTS.match(number_format)[0])  # type: ignore[index] # it matches anything
    before, digits, after, percent = "", "", "", False
    for part in parts:
        if part["other"] or (part["digits"] and digits):  # a fraction, a condition, digits in groups of their own
            return written
        literal = part["quoted"] or part["escaped"] or part["currency"] or part["plain"] or ""
        percent = percent or part["plain"] == "%"
        digits = digits or part["digits"] or ""
        before, after = (before, after + literal) if digits else (before + literal, after)
    if not digits:
        return written
    if percent:
        written = f"{value:.{len(digits.partition('.')[2])}%}"[:-1]
    elif scaled := len(digits) - len(digits.rstrip(",")):  # 0.0, shows thousands
        written = f"{value / 1000**scaled:.15g}"
    zeros = len(digits) if not digits.strip("0") else 0  # 00042: a code, not an amount
    sign = "-" if before.strip() and written.startswith("-") else ""
    return f"{sign}{before}{written.removeprefix(sign).zfill(zeros)}{after}".strip()


def _rich(value: list[Element]) -> str:
    """A cell's text in several fonts: raised and lowered signs keep numbers what they are, struck text is marked."""
    pieces: list[str | Script] = []
    for part in value:
        words, font = _ESCAPED.sub("\n", str(part)), getattr(part, "font", None)
        place = getattr(font, "vertAlign", None)
        mark = STRUCK if getattr(font, "strike", None) and words.strip() else ""
        script = place in ("superscript", "subscript") and words
        pieces += [mark, Script(words, place == "superscript") if script else words, mark]
    return fractions(spelt(pieces))


READERS = {".xlsx": _extract_xlsx}
