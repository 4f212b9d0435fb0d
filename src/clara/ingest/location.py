"""Where in its document a passage stands: page and heading, kept in the metadata that is stored with it.

``passage_metadata`` writes what ``location_of`` reads; nothing else knows the keys. All offsets are the document's,
as those of a ``Passage`` are.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clara.records import Document, Heading, Passage

_ATX = re.compile(r" {0,3}#{1,6}(?=[ \t]|\Z)")
_ATX_CLOSING = re.compile(r"(?:\A|[ \t])#+\Z")
_SETEXT = re.compile(r" {0,3}=+[ \t]*")  # a line of --- may as well be a ruler, a table's or a front matter's
_UNDERLINED = re.compile(
    r"^(?P<text>[^\W_][^\n]{0,118})\n(?P<line>(?P<sign>[=\-~^\"#*+`])(?P=sign){2,})[ \t]*$", re.MULTILINE
)
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<info>.*)")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a character of a document stands.

    Attributes:
        page: its page, from 1; None for a format without pages.
        heading: the nearest heading at or above it, or the empty string.
    """

    page: int | None
    heading: str


def passage_metadata(document: Document, passage: Passage) -> dict[str, str]:
    """A document's metadata with the passage's place in it.

    Returns:
        ``page``: page of the passage's first character; ``page_breaks``: first characters of the pages that begin
        inside it, divided by spaces; ``heading``: nearest heading at or above its first character; ``headings``: JSON
        ``[[first character, heading], ...]`` of those inside it. Each only where there is something to say.
    """
    metadata = dict(document.metadata)
    start, end = passage.start, passage.end
    if document.pages:
        page = max(1, bisect_right(document.pages, start))
        metadata["page"] = str(page)
        if breaks := document.pages[page : bisect_left(document.pages, end)]:
            metadata["page_breaks"] = " ".join(map(str, breaks))
    first = bisect_right(document.headings, start, key=_start)
    if first:
        metadata["heading"] = document.headings[first - 1].text
    if inside := document.headings[first : bisect_left(document.headings, end, key=_start)]:
        metadata["headings"] = json.dumps([[heading.start, heading.text] for heading in inside], ensure_ascii=False)
    return metadata


def _start(heading: Heading) -> int:
    return heading.start


def location_of(metadata: Mapping[str, str], offset: int) -> Location:
    """Where a character of a stored passage stands.

    Args:
        metadata: the passage's, as stored.
        offset: a character of the document, inside the passage.
    """
    page = int(metadata["page"]) if "page" in metadata else None
    if page is not None:
        page += sum(start <= offset for start in page_breaks(metadata))
    above = [text for start, text in json.loads(metadata.get("headings", "[]")) if start <= offset]
    return Location(page, above[-1] if above else metadata.get("heading", ""))


def page_breaks(metadata: Mapping[str, str]) -> list[int]:
    """First characters, in the document, of the pages that begin inside a stored passage."""
    return [int(start) for start in metadata.get("page_breaks", "").split()]


def underlined_headings(text: str) -> tuple[Heading, ...]:
    r"""Headings of a plain text whose newlines are ``\n``: lines of their own with a line of one sign below.

    As reStructuredText and many plain manuals write them; the line below is at least as long as the heading.
    """
    return tuple(
        Heading(match.start("text"), match["text"].strip())
        for match in _UNDERLINED.finditer(text)
        if len(match["line"]) >= len(match["text"].rstrip())
    )


def markdown_headings(text: str) -> tuple[Heading, ...]:
    r"""Headings of a Markdown text whose newlines are ``\n``; those in fenced code are none.

    A scan of its lines: a parser would take minutes for the largest files, and only the lines' places are wanted.
    """
    return tuple(_headings(text))


def _headings(text: str) -> Iterator[Heading]:
    fence = ""
    start = above_start = 0
    above = ""
    for line in text.split("\n"):
        if fence_line := _FENCE.fullmatch(line):
            fence = _next_fence(fence, fence_line["fence"], fence_line["info"])
        elif not fence:
            if atx := _ATX.match(line):
                if words := _ATX_CLOSING.sub("", line[atx.end() :].strip()).strip():
                    yield Heading(start, words)
            elif _SETEXT.fullmatch(line) and above.strip():
                yield Heading(above_start, above.strip())
        above, above_start = line, start
        start += len(line) + 1


def _next_fence(fence: str, marks: str, info: str) -> str:
    """The fence that is open after a line of fence marks: a closing one is as long at least and holds nothing else."""
    if not fence:
        return "" if marks[0] == "`" and "`" in info else marks
    closes = marks[0] == fence[0] and len(marks) >= len(fence) and not info.strip()
    return "" if closes else fence
