"""Plain text, source code and Markdown.

Markdown stays as written: its marks tell a model what a heading or a list is.
"""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import PurePosixPath

from clara.ingest.decode import decode_text
from clara.ingest.document import Extract
from clara.ingest.location import markdown_headings, underlined_headings

_TITLE_WITHIN = 1 << 14  # characters: further down, a heading is a section's; some texts take the parser long
# Pandoc's rule: a line of --- before a blank line is a ruler.
_FRONT_MATTER = re.compile(r"(---|\+\+\+)[ \t]*\n(?![ \t]*\n)(.*?)^(?:\1|\.\.\.)[ \t]*$", re.DOTALL | re.MULTILINE)


def extract_plain(data: bytes, uri: str) -> Extract:
    """Read a plain text file; it states no title."""
    text = re.sub(r"\r\n?", "\n", decode_text(data, uri))
    return Extract(title="", text=text, metadata={"media_type": "text/plain"}, headings=underlined_headings(text))


def extract_code(data: bytes, uri: str) -> Extract:
    """Read source code, settings or a text without a suffix; the file's name is its title."""
    name = PurePosixPath(uri).name
    return Extract(title=name, text=decode_text(data, uri), metadata={"media_type": "text/plain"}, layout="code")


def extract_markdown(data: bytes, uri: str) -> Extract:
    """Read a Markdown file; the title in its front matter is its title, else its first level-1 heading.

    Both are looked for in its first pages only.
    """
    text = re.sub(r"\r\n?", "\n", decode_text(data, uri))
    head = text if len(text) <= _TITLE_WITHIN else text[:_TITLE_WITHIN].rpartition("\n")[0]
    metadata = {"media_type": "text/markdown"}
    return Extract(title=_title(head), text=text, metadata=metadata, headings=markdown_headings(text), layout="markup")


def _title(text: str) -> str:
    front = _FRONT_MATTER.match(text)
    settings = _settings(front[1], front[2]) if front else None
    if front is None or settings is None:
        return _first_heading(text)
    title = settings.get("title")
    return title if isinstance(title, str) and title.strip() else _first_heading(text[front.end() :])


def _settings(mark: str, text: str) -> dict[str, object] | None:
    """What a front matter says, empty where it is faulty; None for a text that only looks like one."""
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
