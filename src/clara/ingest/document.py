r"""How every document is made, whatever its format: its uri, its cleaned text and title, its hash.

Decoding bytes is ``decode``'s work, taking a format apart that of the ``read_*`` modules.

What is done to the text of a file is ``clean``'s work; here newlines become ``\n``, and a byte order mark goes. Offsets
count the characters of the result, ``Document.text``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clara.ingest.clean import Layout
from clara.ingest.report import Skipped, fault
from clara.records import Document, Heading

_RECORD = re.compile(r"(.*\.jsonl)#\d+", re.IGNORECASE | re.DOTALL)
"""The uri of a record (``read_jsonl``); a name may hold any other mark."""


@dataclass(frozen=True, slots=True)
class Extract:
    r"""What a format's reader found in a file.

    Attributes:
        title: a title the source itself states, or the empty string.
        text: its plain text, not yet cleaned (``clean``).
        metadata: small facts (media type, page count).
        skipped: parts of the file that could not be read.
        pages: as in ``Document``; a text with pages or headings is given with its newlines as ``\n``.
        headings: as in ``Document``.
        left_out: what ``text`` leaves out, kind to how many (``LeftOut``).
        layout: what blanks in ``text`` mean.
    """

    title: str
    text: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    pages: tuple[int, ...] = ()
    headings: tuple[Heading, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    layout: Layout = "prose"


def document_uri(path: Path) -> str:
    r"""The name a file's documents have: its absolute path, symbolic links resolved, with forward slashes.

    Bytes of the name that are not UTF-8 are written as ``\udcXX``, so that the uri can be stored anywhere.
    """
    resolved = Path(os.path.realpath(path)).as_posix()
    return resolved.encode("utf-8", "backslashreplace").decode("utf-8")


def source_of(uri: str) -> str:
    """The uri of the file that a document comes from: a record's own file, else the document itself."""
    found = _RECORD.fullmatch(uri)
    return found[1] if found else uri


def make_document(
    uri: str,
    title: str,
    text: str,
    metadata: Mapping[str, str] | None = None,
    *,
    pages: tuple[int, ...] = (),
    headings: tuple[Heading, ...] = (),
) -> Document:
    r"""Make a document of a text.

    Args:
        uri: the document's name, unique in a store.
        title: its title or the empty string; white space in it is reduced to single spaces.
        text: its text; ``\r\n`` and ``\r`` become ``\n``, a leading byte order mark is dropped.
        metadata: small facts to keep with it.
        pages: as in ``Document``; for a text whose newlines are ``\n`` already.
        headings: likewise.

    Raises:
        DocumentError: the text holds nothing but white space, or characters that no file can hold as UTF-8.
    """
    text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    title = " ".join(title.split())
    if not text or text.isspace():
        raise fault(uri, "empty", "holds no text, only white space" if text else "is empty")
    if "\0" in text or "\0" in title:
        raise fault(uri, "binary", "holds NUL characters, so it is not text")
    try:
        content_hash = _content_hash(title, text)
    except UnicodeEncodeError as error:
        character = ord(error.object[error.start])
        raise fault(
            uri, "encoding", f"holds half a surrogate pair (U+{character:04X}), which is no character; write it again"
        ) from None
    return Document(uri, title, text, content_hash, dict(metadata or {}), pages, headings)


def _content_hash(title: str, text: str) -> str:
    """SHA-256 (hex) of title, NUL, text: neither holds a NUL, so no two documents give the same bytes."""
    digest = hashlib.sha256(title.encode("utf-8") + b"\0")
    step = 1 << 20  # characters: a copy of a 200 MB text as bytes is not needed
    for start in range(0, len(text), step):
        digest.update(text[start : start + step].encode("utf-8"))
    return digest.hexdigest()
