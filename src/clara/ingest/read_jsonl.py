"""JSON Lines: one document a line, ``{"title": ..., "text": ...}``, read line by line from disk.

A wrong line is skipped and named, the rest goes on. The title may be left out; other keys are not read. The size
limit holds for each line, not for the file, because only a line is ever in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from clara.errors import DocumentError
from clara.ingest.clean import clean
from clara.ingest.document import make_document
from clara.ingest.report import LeftOut, Skipped, fault, skip
from clara.records import Document

_HEAD = 1 << 13  # bytes looked at to tell text from data before any line is
_STEP = 1 << 20  # bytes read at a time to get past a line that is too long
_UTF8_MARK = b"\xef\xbb\xbf"
_NOT_UTF8_MARKS = (b"\xff\xfe", b"\xfe\xff")
_CARRIAGE_RETURN = re.compile(rb"\r\s*[\[{]")
_SHOWN = 60  # characters of a wrong value shown in a message


def read_jsonl(path: Path, uri: str, max_bytes: int) -> Iterator[Document | Skipped | LeftOut]:
    """Read a JSON Lines file.

    Args:
        path: the file.
        uri: its uri; line 3 becomes ``uri#3``.
        max_bytes: longest line.

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
    """What a file is that is JSON and not JSON Lines, or the empty string: one message instead of one a line."""
    head = head.removeprefix(_UTF8_MARK)
    if b"\n" not in head and _CARRIAGE_RETURN.search(head):
        return "has carriage returns (CR) for newlines, JSON Lines has LF; convert it: tr '\\r' '\\n' < OLD > NEW"
    first, _, rest = head.lstrip().partition(b"\n")
    if first.strip() == b"{":
        return "is one JSON object over several lines, not an object a line; convert it: jq -c . OLD > NEW"
    if first.startswith(b"[") and not (_is_json(first) and rest.strip()):
        return "is a JSON array, not an object a line; convert it: jq -c '.[]' OLD > NEW"
    return ""


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _items(file: IO[bytes], uri: str, max_bytes: int) -> Iterator[Document | Skipped | LeftOut]:
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            _pass_line(file, line)
            limit = f"{max_bytes / 2**20:,.0f} MB"
            yield skip(f"{uri}#{number}", "too large", f"a line longer than {limit}; raise it with --max-file-mb")
        elif line.strip():
            yield from _record(line, f"{uri}#{number}")


def _pass_line(file: IO[bytes], line: bytes) -> None:
    """Read on to the end of a line whose beginning was read."""
    while line and not line.endswith(b"\n"):
        line = file.readline(_STEP)


def _record(line: bytes, uri: str) -> Iterator[Document | Skipped | LeftOut]:
    record = _parsed(line, uri)
    if isinstance(record, Skipped):
        yield record
        return
    cleaned = clean(record["text"], "markup")
    try:
        yield make_document(
            uri, record.get("title") or "", cleaned.text or record["text"], {"media_type": "application/jsonl"}
        )
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
    if wrong := _wrong(record):
        return skip(uri, "bad record", wrong)
    fields: dict[str, Any] = record
    return fields


def _wrong(record: object) -> str:
    """What keeps a record from being a document, or the empty string."""
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        return f'expected {{"title": "...", "text": "..."}}, got {_shown(record)}'
    title = record.get("title")
    if title is not None and not isinstance(title, str):
        return f'"title" must be a string, got {_shown(title)}'
    return ""


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(sorted(map(str, value)))[:_SHOWN] or 'none'}"
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
