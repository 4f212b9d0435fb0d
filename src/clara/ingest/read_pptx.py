"""Presentations (.pptx), by python-pptx (extra ``formats``): slides as pages, with their tables, charts and notes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

from clara.ingest.document import Extract
from clara.ingest.packages import local_name, open_package
from clara.ingest.report import fault, missing
from clara.ingest.scripts import subscript, superscript
from clara.records import Heading


def extract_pptx(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a presentation; its title is the one among its properties.

    Raises:
        DocumentError: damaged, encrypted, too large when unpacked, without text, or python-pptx is not installed.
    """
    with open_package(data, uri, max_bytes):
        pass
    try:
        import pptx  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing(uri, "python-pptx") from None
    presentation = pptx.Presentation(io.BytesIO(data))
    left_out = Counter[str]()
    texts: list[str] = []
    pages: list[int] = []
    headings: list[Heading] = []
    length = 0
    for slide in presentation.slides:
        pages.append(length)
        title, text = _slide(slide, left_out)
        if not text:
            continue
        if title:
            headings.append(Heading(length, title))
        texts.append(text)
        length += len(text) + 2
    if not texts:
        raise fault(uri, "no text", f"{len(pages)} slide(s) without text, only pictures; run OCR on it first")
    return Extract(
        title=presentation.core_properties.title or (headings[0].text if headings else ""),
        text="\n\n".join(texts),
        metadata={"media_type": "application/vnd.openxmlformats-officedocument.presentationml.presentation"},
        pages=tuple(min(page, length - 2) for page in pages),
        headings=tuple(headings),
        left_out=left_out,
        layout="markup",
    )


def _slide(slide: Any, left_out: Counter[str]) -> tuple[str, str]:  # noqa: ANN401 - python-pptx has no types
    """A slide's title and its text, title included."""
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


def _shape(shape: Any, left_out: Counter[str]) -> Iterator[str]:  # noqa: ANN401
    if hasattr(shape, "shapes"):  # a group
        for inner in shape.shapes:
            yield from _shape(inner, left_out)
    elif getattr(shape, "has_table", False):
        rows = ([" ".join(_paragraphs(cell.text_frame)) for cell in row.cells] for row in shape.table.rows)
        yield "\n".join(" | ".join(" ".join(cell.split()) for cell in row) for row in rows)
    elif getattr(shape, "has_chart", False):
        yield "\n".join(_chart(shape.chart))
    elif shape.has_text_frame:
        yield "\n".join(_paragraphs(shape.text_frame))
    elif shape._element.xpath(".//a:graphicData[contains(@uri, 'diagram')]"):
        left_out["diagrams (SmartArt)"] += 1


def _chart(chart: Any) -> Iterator[str]:  # noqa: ANN401
    """A chart as a table: a row for each category, a column for each series."""
    if chart.has_title and chart.chart_title.has_text_frame:
        yield " ".join(_paragraphs(chart.chart_title.text_frame))
    for plot in chart.plots:
        series = list(plot.series)
        yield " | ".join(["", *(each.name or "" for each in series)]).strip()
        for number, category in enumerate(plot.categories):
            values = [each.values[number] if number < len(each.values) else None for each in series]
            yield " | ".join([str(category), *("" if value is None else f"{value:.15g}" for value in values)])


def _paragraphs(frame: Any) -> Iterator[str]:  # noqa: ANN401
    for paragraph in frame.paragraphs:
        text = _paragraph(paragraph._p)
        if text.strip():
            yield ("  " * (paragraph.level - 1) + "- " if paragraph.level else "") + text


def _paragraph(element: Any) -> str:  # noqa: ANN401
    """A paragraph's runs; raised and lowered ones keep numbers what they are."""
    text = ""
    for run in element:
        name = local_name(run)
        if name == "br":
            text += "\n"
        elif name in ("r", "fld"):
            words = "".join(part.text or "" for part in run if local_name(part) == "t")
            settings = next((part for part in run if local_name(part) == "rPr"), None)
            baseline = int(settings.get("baseline", "0").rstrip("%") or 0) if settings is not None else 0
            text += words if not baseline else (superscript if baseline > 0 else subscript)(text, words)
    return text
