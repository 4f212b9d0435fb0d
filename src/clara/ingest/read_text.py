"""Plain text, source code, Markdown, and JSON Lines.

Markdown stays as written: its marks tell a model what a heading or a list is. JSON Lines are read line by line from
disk, one document ``{"title": ..., "text": ...}`` a line: a wrong line is skipped and named, the rest goes on, and the
size limit holds for each line, because only a line is ever in memory. Other keys are not read.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO, Any

from clara.errors import DocumentError
from clara.ingest.clean import clean
from clara.ingest.decode import decode_text
from clara.ingest.document import Extract, LeftOut, Skipped, TextParts, fault, make_document, or_raise, skip
from clara.ingest.pages import without_running_lines
from clara.records import Document, Heading

_TITLE_WITHIN = 1 << 14  # characters: further down, a heading is a section's; some texts take the parser long
# Pandoc's rule: a line of --- before a blank line is a ruler.
_FRONT_MATTER = re.compile(r"(---|\+\+\+)[ \t]*\n(?![ \t]*\n)(.*?)^(?:\1|\.\.\.)[ \t]*$", re.DOTALL | re.MULTILINE)
_ATX = re.compile(r" {0,3}#{1,6}(?=[ \t]|\Z)")
_ATX_CLOSING = re.compile(r"(?:\A|[ \t])#+\Z")
# A line of --- may as well be a front matter's or a table's, unless one line of a paragraph's own stands above it.
_SETEXT = re.compile(r" {0,3}(?:=+|-{3,})[ \t]*")
_PARAGRAPH = re.compile(r" {0,3}[^\W\d_]")
_UNDERLINED = re.compile(
    r"^(?P<text>[^\W_][^\n]{0,118})\n(?P<line>(?P<sign>[=\-~^\"#*+`])(?P=sign){2,})[ \t]*$", re.MULTILINE
)
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<info>.*)")

# Of JSON Lines.
_HEAD = 1 << 13  # bytes looked at to tell text from data before any line is
_STEP = 1 << 20  # bytes read at a time to get past a line that is too long
_UTF8_MARK = b"\xef\xbb\xbf"
_NOT_UTF8_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CARRIAGE_RETURN = re.compile(rb"\r\s*[\[{]")
_SHOWN = 60  # characters of a wrong value shown in a message


def _lines(data: bytes, uri: str) -> str:
    """A file's text, its lines ended as here; ``clean`` would do that later, but headings are told by lines."""
    return re.sub(r"\r\n?", "\n", decode_text(data, uri))


def _extract_plain(data: bytes, uri: str) -> Extract:
    """Read a plain text file; it states no title. What runs around its pages, as in RFCs, is left out."""
    text = _lines(data, uri)
    pages, running = without_running_lines(text.rstrip("\f\n").split("\f"))
    parts = TextParts()
    if running:
        for page in pages:
            parts.add_page(page)
        text = parts.text()
    return Extract(
        title="",
        text=text,
        metadata={"media_type": "text/plain"},
        pages=tuple(parts.starts),
        headings=_underlined_headings(text),
        left_out={"page headers and footers": running} if running else {},
        layout="prose",
    )


def _extract_code(data: bytes, uri: str) -> Extract:
    """Read source code, settings or a text without a suffix; the file's name is its title.

    A README or FAQ without a suffix has headings as a plain text has; in source code, such lines are something else.
    """
    name = PurePosixPath(uri)
    text = _lines(data, uri)
    headings = () if name.suffix else _underlined_headings(text)
    return Extract(name.name, text, {"media_type": "text/plain"}, headings=headings, layout="code")


def _extract_markdown(data: bytes, uri: str) -> Extract:
    """Read a Markdown file; the title in its front matter is its title, else its first level-1 heading.

    Both are looked for in its first pages only.
    """
    text = _lines(data, uri)
    head = text if len(text) <= _TITLE_WITHIN else text[:_TITLE_WITHIN].rpartition("\n")[0]
    metadata = {"media_type": "text/markdown"}
    return Extract(title=_title(head), text=text, metadata=metadata, headings=markdown_headings(text))


def _title(text: str) -> str:
    front = _FRONT_MATTER.match(text)
    settings = _settings(front[1], front[2]) if front else None
    if front is None or settings is None:
        return _first_heading(text)
    title = settings.get("title")
    return title if isinstance(title, str) and title.strip() else _first_heading(text[front.end() :])


def _settings(mark: str, text: str) -> dict[str, object] | None:
    """Fields of a front matter, empty where it is faulty; None for a text that only looks like one."""
    import yaml  # noqa: PLC0415 - as in ``read``

    try:
        # The base loader leaves every value the string that was written: 1984 is a title too. It makes nothing else.
        found = tomllib.loads(text) if mark == "+++" else yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506
    except (tomllib.TOMLDecodeError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else None


def _first_heading(text: str) -> str:
    """The first level-1 heading that is no quotation's or list's, as written, or the empty string."""
    from markdown_it import MarkdownIt  # noqa: PLC0415 - as in ``read``

    blocks = MarkdownIt("commonmark").disable("inline").parse(text)
    for opening, inline in pairwise(blocks):
        if opening.type == "heading_open" and opening.tag == "h1" and opening.level == 0 and inline.content:
            return inline.content
    return ""


def _underlined_headings(text: str) -> tuple[Heading, ...]:
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
    headings: list[Heading] = []
    fence = above = before = ""
    start = above_start = 0
    for line in text.split("\n"):
        if fence_line := _FENCE.fullmatch(line):
            fence = _next_fence(fence, fence_line["fence"], fence_line["info"])
        elif not fence:
            if atx := _ATX.match(line):
                if words := _ATX_CLOSING.sub("", line[atx.end() :].strip()).strip():
                    headings.append(Heading(start, words))
            elif _SETEXT.fullmatch(line) and above.strip() and ("=" in line or _is_alone(above, before)):
                headings.append(Heading(above_start, above.strip()))
        before, above, above_start = above, line, start
        start += len(line) + 1
    return tuple(headings)


def _is_alone(line: str, before: str) -> bool:
    """True if a line begins a paragraph and is none of a table's or list's."""
    return not before.strip() and _PARAGRAPH.match(line) is not None


def _next_fence(fence: str, marks: str, info: str) -> str:
    """The fence that is open after a line of fence marks: a closing one is as long at least and holds nothing else."""
    if not fence:
        return "" if marks[0] == "`" and "`" in info else marks
    closes = marks[0] == fence[0] and len(marks) >= len(fence) and not info.strip()
    return "" if closes else fence


def read_jsonl(path: Path, uri: str, max_bytes: int) -> Iterator[Document | Skipped | LeftOut]:
    """Read JSON Lines, none longer than ``max_bytes``; line 3 becomes ``uri#3``.

    Yields:
        A document, or why there is none, for each line that is not blank; what a document leaves out follows it.

    Raises:
        DocumentError: the file is empty, binary, not UTF-8 by its byte order mark, or JSON of another shape.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if not head:
            raise fault(uri, "empty", "is empty")
        if head.startswith(_NOT_UTF8_MARKS):
            raise fault(uri, "encoding", "is UTF-16, JSON Lines is UTF-8; save it as UTF-8")
        if b"\0" in head:
            raise fault(uri, "binary", "expected JSON Lines, found NUL bytes")
        if other := _other_shape(head):
            raise fault(uri, "bad record", other)
        file.seek(len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0)
        seen = False
        for item in _items(file, uri, max_bytes):
            seen = True
            yield item
        if not seen:
            raise fault(uri, "empty", "holds no record, only blank lines")


def _other_shape(head: bytes) -> str:
    """Kind of a file that is JSON and not JSON Lines, or the empty string: one message instead of one a line."""
    head = head.removeprefix(_UTF8_MARK)
    if b"\n" not in head and _CARRIAGE_RETURN.search(head):
        return "has carriage returns (CR) for newlines, JSON Lines has LF; convert it: tr '\\r' '\\n' < OLD > NEW"
    first, _, rest = head.lstrip().partition(b"\n")
    if first.strip() == b"{":
        return "is one JSON object over several lines, not an object a line; convert it: jq -c . OLD > NEW"
    if not first.startswith(b"["):
        return ""
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        rest = b""
    return "" if rest.strip() else "is a JSON array, not an object a line; convert it: jq -c '.[]' OLD > NEW"


def _items(file: IO[bytes], uri: str, max_bytes: int) -> Iterator[Document | Skipped | LeftOut]:
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            while line and not line.endswith(b"\n"):  # on to its end
                line = file.readline(_STEP)
            limit = f"{max_bytes / 2**20:,.0f} MiB"
            yield skip(f"{uri}#{number}", "too large", f"a line longer than {limit}; {or_raise('--max-file-mb')}")
        elif line.strip():
            yield from _record(line, f"{uri}#{number}")


def _record(line: bytes, uri: str) -> Iterator[Document | Skipped | LeftOut]:
    record = _parsed(line, uri)
    if isinstance(record, Skipped):
        yield record
        return
    cleaned = clean(record["text"], "markup")
    text = cleaned.text or record["text"]
    try:
        yield make_document(uri, record.get("title") or "", text, {"media_type": "application/jsonl"})
    except DocumentError as error:
        yield Skipped(uri, "bad record", str(error))
        return
    for kind, count in cleaned.left_out.items():
        yield LeftOut(uri, kind, count)


def _parsed(line: bytes, uri: str) -> dict[str, Any] | Skipped:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return skip(uri, "encoding", f"expected UTF-8, found byte 0x{line[error.start]:02X} at offset {error.start}")
    except json.JSONDecodeError as error:
        return skip(uri, "bad record", f"not JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:  # nested too deep; a number of more digits than Python converts
        return skip(uri, "bad record", f"not usable JSON: {error}")
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return skip(uri, "bad record", f'expected {{"title": "...", "text": "..."}}, got {_shown(record)}')
    title = record.get("title")
    if title is not None and not isinstance(title, str):
        return skip(uri, "bad record", f'"title" must be a string, got {_shown(title)}')
    return record


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(sorted(map(str, value)))[:_SHOWN] or 'none'}"
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


READERS = {
    "": _extract_code,
    ".markdown": _extract_markdown,
    ".md": _extract_markdown,
    ".text": _extract_plain,
    ".txt": _extract_plain,
}
