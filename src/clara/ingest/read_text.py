"""Plain text and Markdown. Markdown stays as written: its marks tell a model what a heading or a list is."""

from __future__ import annotations

import re

from clara.ingest.decode import decode_text
from clara.ingest.document import Extract

_FENCE = re.compile(r" {0,3}(```|~~~)")
_HEADING = re.compile(r" {0,3}#[ \t]+(.*)")
_CLOSING_MARKS = re.compile(r"(^|[ \t]+)#+[ \t]*$")


def extract_plain(data: bytes, uri: str) -> Extract:
    """Read a plain text file; it states no title."""
    return Extract(title="", text=decode_text(data, uri), metadata={"media_type": "text/plain"})


def extract_markdown(data: bytes, uri: str) -> Extract:
    """Read a Markdown file; its first ``# heading`` is its title."""
    text = decode_text(data, uri)
    return Extract(title=_first_heading(text), text=text, metadata={"media_type": "text/markdown"})


def _first_heading(text: str) -> str:
    """The first level-1 ATX heading that is not inside a fenced code block, or the empty string."""
    fence = ""
    for match in re.finditer(r"[^\n]+", text):
        line = match.group()
        mark = _FENCE.match(line)
        if mark and fence in ("", mark.group(1)):
            fence = "" if fence else mark.group(1)
            continue
        heading = None if fence else _HEADING.match(line)
        if heading:
            title = _CLOSING_MARKS.sub("", heading.group(1).strip()).strip()
            if title:
                return title
    return ""
