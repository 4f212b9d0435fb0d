"""Formats that are zip files of XML parts, bounded in what they unpack to; of them .epub and .pptx.

Presentations are read by python-pptx (extra ``formats``); of books nothing outside the package is loaded.
"""

from __future__ import annotations

import datetime
import io
import math
import posixpath
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from urllib.parse import unquote

import lxml.etree

from clara.ingest.document import Element, Extract, TextParts, fault, or_raise
from clara.ingest.docx_signs import equation_text
from clara.ingest.read_html import xhtml_page
from clara.ingest.read_tables import GridCell, grid
from clara.ingest.scripts import STRUCK, UNKNOWN, Script, fractions, numeral, set_beside, spelt, symbols, tail
from clara.records import Heading

_MOST_PARTS = 100_000
_OLD_OFFICE_FILE = bytes.fromhex("D0CF11E0A1B11AE1")  # a format before XML, or the container of an encrypted file

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_PAGES = frozenset(["application/xhtml+xml", "image/svg+xml", "text/html", "text/x-oeb1-document"])

_MC = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
# Kinds of graphics by what their names hold; charts of newer kinds are none for python-pptx.
_GRAPHICS = {"diagram": "diagrams (SmartArt)", "chart": "charts", "ole": "embedded objects"}
_FIRST_DAY, _FIRST_DAY_MAC = datetime.datetime(1899, 12, 30), datetime.datetime(1904, 1, 1)
_MOST_DAYS = 2_900_000  # to the year 9999
_LITERAL = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]')
_IN_DATES = re.compile("[yd]", re.IGNORECASE)

_MOST_STATED = 1000  # of anything that an element counts


@contextmanager
def open_package(data: bytes, uri: str, max_bytes: int) -> Iterator[zipfile.ZipFile]:
    """Open a package that unpacks to ``max_bytes`` at most."""
    if data.startswith(_OLD_OFFICE_FILE):
        raise fault(uri, "encrypted", "is encrypted, or of an older format by another name; save it without a password")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise fault(uri, "broken", f"is no zip file as its format is ({error}); save or download it again") from None
    with archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > max_bytes or len(entries) > _MOST_PARTS:
            sizes = f"{unpacked / 2**20:,.0f} MiB in {len(entries):,} parts"
            limit = f"more than the limit of {max_bytes / 2**20:,.0f} MiB; {or_raise('--max-file-mb')}"
            raise fault(uri, "too large", f"unpacks to {sizes}, {limit}")
        if any(entry.flag_bits & 1 for entry in entries):
            raise fault(uri, "encrypted", "needs a password; save a copy without one")
        yield archive


def xml_part(archive: zipfile.ZipFile, name: str) -> Element:
    """The tree of a part, or None where there is no such part.

    No entity is expanded and nothing outside is loaded.
    """
    try:
        data = archive.read(name)
    except KeyError:
        return None
    parser = lxml.etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    return lxml.etree.fromstring(data, parser)


def local_name(element: Element) -> str:
    """An element's name without its namespace; of what is no element, the empty string."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: Element, name: str) -> str:
    """An attribute by its name without a namespace, or the empty string."""
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def stated_title(part: Element) -> str:
    """The first title that a part of properties states, or the empty string."""
    elements = [] if part is None else part.iter()
    return next(("".join(element.itertext()) for element in elements if local_name(element) == "title"), "")


def extra_library(module: str, package: str, uri: str) -> Element:
    """A library of the extra ``formats``; a file whose format needs one that is missing cannot be read."""
    try:
        return import_module(module)
    except ImportError:
        detail = f"needs {package}; install it with: pip install 'clara-rag[formats]'"
        raise fault(uri, "unsupported", detail) from None


def linked(base: str, reference: str) -> str:
    """The part that a reference in the part ``base`` leads to."""
    target = unquote(reference.partition("#")[0])
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), target))


def _extract_epub(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a book: its chapters in reading order, each a page in XHTML."""
    with open_package(data, uri, max_bytes) as archive:
        name, package = _package(archive, uri)
        _refuse_protected(archive, name, package, uri)
        parts = TextParts()
        left_out = Counter[str]()
        for chapter, is_contents in dict.fromkeys(_chapters(name, package)):  # a book may list one twice
            if is_contents:
                left_out["menus"] += 1
                continue
            if chapter not in archive.namelist():
                left_out["chapters that are not in the file"] += 1
                continue
            page = xhtml_page(archive.read(chapter), f"{uri}#{chapter}", partial(_sheet, archive, chapter))
            if page.text:  # not a cover or another page of pictures
                left_out.update(page.left_out)
                parts.add(page.text, page.headings)
    text = parts.text()
    if not text:
        raise fault(uri, "no text", "shows no text, only pictures; run OCR on it first")
    return Extract(
        title=stated_title(package),
        text=text,
        metadata={"media_type": "application/epub+zip"},
        headings=tuple(parts.headings),
        left_out=left_out,
    )


def _package(archive: zipfile.ZipFile, uri: str) -> tuple[str, Element]:
    """The part that lists the others, and its name."""
    container = xml_part(archive, _CONTAINER)
    roots = [] if container is None else [item for item in container.iter() if local_name(item) == "rootfile"]
    name = attribute(roots[0], "full-path") if roots else ""
    package = xml_part(archive, name)
    if package is None:
        raise fault(uri, "broken", "names no list of its chapters, so it is no EPUB; save or download it again")
    return name, package


def _chapters(name: str, package: Element) -> Iterator[tuple[str, bool]]:
    """Parts in reading order, and whether each is a table of contents for reading programs."""
    items = {attribute(item, "id"): item for item in package.iter() if local_name(item) == "item"}
    for entry in package.iter():
        item = items.get(attribute(entry, "idref")) if local_name(entry) == "itemref" else None
        if item is not None and attribute(item, "media-type") in _PAGES:
            yield linked(name, attribute(item, "href")), "nav" in attribute(item, "properties").split()


def _sheet(archive: zipfile.ZipFile, chapter: str, reference: str) -> bytes:
    """The style sheet that a chapter links; empty for other links."""
    name = linked(chapter, reference)
    return archive.read(name) if name.lower().endswith(".css") and name in archive.namelist() else b""


def _refuse_protected(archive: zipfile.ZipFile, name: str, package: Element, uri: str) -> None:
    """A book with rights management has its chapters encrypted; fonts alone may be scrambled in any."""
    encryption = xml_part(archive, _ENCRYPTION)
    if encryption is None:
        return
    hidden = {linked("", attribute(item, "URI")) for item in encryption.iter() if local_name(item) == "CipherReference"}
    if hidden & {chapter for chapter, _ in _chapters(name, package)}:
        raise fault(uri, "encrypted", "is protected by rights management; get a copy without it")


def _extract_pptx(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a presentation by python-pptx: slides as pages, with their tables, charts and notes."""
    with open_package(data, uri, max_bytes):
        pass
    pptx = extra_library("pptx", "python-pptx", uri)
    presentation = pptx.Presentation(io.BytesIO(data))
    left_out = Counter[str]()
    parts = TextParts()
    for slide in presentation.slides:
        title, text = _slide(slide, left_out)
        parts.add(text, [Heading(0, title)] if title and text else [])
    text = parts.text()
    if not text:
        detail = f"{len(parts.starts)} slide(s) without text, only pictures; run OCR on it first"
        raise fault(uri, "no text", detail)
    return Extract(
        title=presentation.core_properties.title or (parts.headings[0].text if parts.headings else ""),
        text=text,
        metadata={"media_type": "application/vnd.openxmlformats-officedocument.presentationml.presentation"},
        pages=tuple(parts.starts),
        headings=tuple(parts.headings),
        left_out=left_out,
    )


def _slide(slide: Element, left_out: Counter[str]) -> tuple[str, str]:
    """A slide's title and its text, title included."""
    _choose(slide._element)
    if slide._element.get("show") in ("0", "false"):
        left_out["hidden slides"] += 1
        return "", ""
    heading = slide.shapes.title
    title = " ".join(" ".join(_paragraphs(heading.text_frame)).split()) if heading is not None else ""
    blocks = [f"## {title}"] if title else []
    for shape in slide.shapes:
        if heading is None or shape.shape_id != heading.shape_id:
            blocks.extend(_shape(shape, left_out))
    if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
        spoken = "\n".join(_paragraphs(notes))
        blocks.extend([f"Notes: {spoken}"] if spoken.strip() else [])
    return title, "\n\n".join(block for block in blocks if block.strip())


def _choose(tree: Element) -> None:
    """Put what PowerPoint shows in the place of each choice that a file leaves to programs: python-pptx sees none."""
    for choices in list(tree.iter(f"{_MC}AlternateContent")):
        for shape in reversed(choices.findall(f"{_MC}Choice[1]/*")):
            choices.addnext(shape)
        choices.getparent().remove(choices)


def _shape(shape: Element, left_out: Counter[str]) -> Iterator[str]:
    if shape._element.xpath("./*/p:cNvPr[@hidden='1' or @hidden='true']"):
        left_out["hidden parts"] += 1
    elif hasattr(shape, "shapes"):  # a group
        for inner in shape.shapes:
            yield from _shape(inner, left_out)
    elif getattr(shape, "has_table", False):
        rows = [[_table_cell(cell) for cell in row.cells if not cell.is_spanned] for row in shape.table.rows]
        yield "\n".join(" | ".join(row) for row in grid(rows) if row)
    elif getattr(shape, "has_chart", False):
        yield "\n".join(_chart(shape.chart))
    elif shape.has_text_frame:
        yield "\n".join(_paragraphs(shape.text_frame))
    else:
        left_out.update(filter(None, [_kind_left_out(shape)]))


def _table_cell(cell: Element) -> GridCell:
    text = " ".join(" ".join(_paragraphs(cell.text_frame)).split())
    return GridCell(text, cell.span_height, cell.span_width) if cell.is_merge_origin else GridCell(text)


def _kind_left_out(shape: Element) -> str:
    """What a shape without text is that a reader might miss; the empty string for lines and the like."""
    if local_name(shape._element) == "pic":
        return "pictures"
    uri = next(iter(shape._element.xpath(".//a:graphicData/@uri")), "")
    return next((kind for sign, kind in _GRAPHICS.items() if sign in uri), "")


def _chart(chart: Element) -> Iterator[str]:
    """A chart as a table below its titles: a row for each category, a column for each series."""
    for title in chart._element.iter("{*}title"):  # the axes' too
        yield " ".join(map(_paragraph, title.iter("{*}p")))
    first_day = _FIRST_DAY_MAC if chart._element.date_1904 else _FIRST_DAY
    for plot in chart.plots:
        series = list(plot.series)
        yield " | ".join(["", *(each.name or "" for each in series)]).strip()
        # Kept, for each is read from the chart anew.
        values = [(each.values, _format(each, "val") or "General") for each in series]
        categories = [" ".join(labels) for labels in plot.categories.flattened_labels]
        across = _across(series[0]) if series else {}
        code = _format(series[0], "cat") or _format(series[0], "xVal") if series else ""
        for number in range(max([len(categories), *(len(each) for each, _ in values)])):
            # The points of a scatter chart have a number of their own for each series instead.
            name = categories[number] if number < len(categories) else across.get(str(number), "")
            row = [_amount(each[number] if number < len(each) else None, form, first_day) for each, form in values]
            yield " | ".join([_amount(name, code, first_day), *row])


def _format(series: Element, name: str) -> str:
    """The format of a chart's numbers or categories; empty where it has none."""
    return next(iter(series._element.xpath(f"./c:{name}//c:formatCode/text()")), "")


def _amount(value: float | str | None, code: str, first_day: datetime.datetime) -> str:
    """A number of a chart as it shows it, dates as such."""
    from clara.ingest.read_xlsx import shown  # noqa: PLC0415 - it takes the package's parts from here

    try:
        number = float(value or "") if code else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        return "" if value is None else str(value)
    is_date = _IN_DATES.search(_LITERAL.sub("", code)) and abs(number) < _MOST_DAYS
    return shown(first_day + datetime.timedelta(number) if is_date else number, code)


def _across(series: Element) -> dict[str, str]:
    """The places of the points on the horizontal axis, by the number of each."""
    points = series._element.xpath("./c:xVal//c:pt[c:v]")
    return {point.get("idx"): str(point.find("{*}v").text) for point in reversed(points)}


def _paragraphs(frame: Element) -> Iterator[str]:
    counts: dict[int, tuple[Mapping[str, str], int]] = {}  # of numbered paragraphs, by level, each with its style
    for paragraph in frame.paragraphs:
        text = _paragraph(paragraph._p)
        if not text.strip():
            continue
        level = paragraph.level
        before = counts.get(level)
        counts = {above: count for above, count in counts.items() if above < level}
        numbered = paragraph._p.find("{*}pPr/{*}buAutoNum")
        mark = "- " if level else ""
        if numbered is not None:
            style = dict(numbered.attrib)
            count = before[1] + 1 if before is not None and before[0] == style else stated_count(numbered, "startAt")
            counts[level] = style, count
            mark = _numbered(count, numbered.get("type", ""))
        yield "  " * (level - 1) + mark + text


def _numbered(count: int, name: str) -> str:
    """The number of a paragraph in the style of a name: arabicPeriod, alphaLcParenR, romanUcParenBoth."""
    form = {"alphaLc": "a", "alphaUc": "A", "romanLc": "i", "romanUc": "I"}.get(name[:7], "1")
    before, after = ("(", ")") if name.endswith("Both") else ("", ")" if name.endswith("ParenR") else ".")
    return f"{before}{numeral(count, form)}{after} "


def _in_font(words: str, settings: Element) -> str:
    """The words of a run in Unicode, if its font is one of symbols.

    Words that are typed behind a symbol keep its font for symbols, which shows none of them.
    """
    if settings is None:
        return words
    latin, symbol = settings.find("{*}latin"), settings.find("{*}sym")
    if latin is not None:
        words = symbols(words, latin.get("typeface", ""))
    if symbol is None or len(words.strip()) != 1 or words.isascii():
        return words
    found = symbols(words, symbol.get("typeface", ""))
    return words if UNKNOWN in found else found


def _paragraph(element: Element) -> str:
    """A paragraph's runs; raised and lowered ones keep numbers what they are."""
    pieces: list[str | Script] = []
    for run in element:
        name = local_name(run)
        if name == "br":
            pieces.append("\n")
        elif name in ("r", "fld"):
            words = "".join(part.text or "" for part in run if local_name(part) == "t")
            settings = next((part for part in run if local_name(part) == "rPr"), None)
            words = _in_font(words, settings)
            baseline = int(settings.get("baseline", "0").rstrip("%") or 0) if settings is not None else 0
            struck = settings is not None and settings.get("strike", "noStrike") != "noStrike"
            mark = STRUCK if struck and words.strip() else ""
            pieces += [mark, Script(words, baseline > 0) if baseline and words else words, mark]
        else:
            for formula in run.iter("{http://schemas.openxmlformats.org/officeDocument/2006/math}oMath"):
                pieces.append(set_beside(tail(pieces), equation_text(formula)))
    return fractions(spelt(pieces))


def stated_count(element: Element, name: str, default: int = 1) -> int:
    """A whole number that an attribute states, in bounds; ``default`` where it states none."""
    value = attribute(element, name)
    return min(int(value), _MOST_STATED) if value.isdecimal() and len(value) < 9 else default


READERS = {".epub": _extract_epub, ".pptx": _extract_pptx}
