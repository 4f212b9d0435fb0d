r"""Results of reading a file: a document, parts that were skipped, what its text leaves out; and the limits of it.

The one place that words a fault, and that makes a document, whatever its format. Offsets count the characters of
``Document.text``, whose newlines are ``\n``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from clara.errors import ConfigError, DocumentError
from clara.ingest.clean import Layout
from clara.records import Document, Heading

Element: TypeAlias = Any
"""An element of lxml, or a part of another library that has no types."""

_Reason = Literal[
    "bad record", "binary", "broken", "empty", "encoding", "encrypted", "no text", "too large", "too slow",
    "unreadable", "unsupported",
]  # fmt: skip
TEXTLESS: frozenset[str] = frozenset({"empty", "no text"})
"""Reasons of sources that were read and hold nothing; the others could not be read."""

_RECORD = re.compile(r"(.*\.jsonl)#\d+", re.IGNORECASE | re.DOTALL)  # a file's name may hold any other mark

# What grows more than this is no document: text that deflates a hundred times says the same again and again.
_GROWTH = 100  # characters a byte of the file
_GROWTH_FROM = 1_000_000  # characters: a small file may have a large font and little else

_SENTENCE_ENDS = ".:!?"

_LEAST_MEMORY_MB = 256  # the parsers' own code takes up to 100


@dataclass(frozen=True, slots=True)
class Skipped:
    """A source, or a part of one, that did not become a document.

    Attributes:
        uri: the file, ``file.jsonl#3`` for line 3, or ``file.pdf#page=3`` for page 3.
        reason: the kind of fault; reports group by it.
        message: a whole sentence that names the source, the fault and the remedy.
    """

    uri: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Content that a document's text leaves out: on purpose, or because the format's reader cannot give it.

    Attributes:
        uri: the document.
        kind: what it is, in the plural ("menus", "hidden parts"); reports count by it.
        count: how many.
    """

    uri: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Result of reading files and folders.

    Attributes:
        files: files that gave at least one document.
        documents: a JSON Lines file gives one for each record.
        characters: characters of their texts, titles not counted.
        hidden: hidden files and folders that were passed over (a hidden folder counts once).
        skipped: everything that was named or found and not read, in the order found.
        left_out: what the documents leave out of their sources: kind to how many.
    """

    files: int
    documents: int
    characters: int
    hidden: int
    skipped: tuple[Skipped, ...]
    left_out: Mapping[str, int]

    def by_reason(self) -> dict[str, list[Skipped]]:
        """What was skipped by kind of fault, both in the order found."""
        groups: dict[str, list[Skipped]] = {}
        for skipped in self.skipped:
            groups.setdefault(skipped.reason, []).append(skipped)
        return groups


def skip(uri: str, reason: _Reason, detail: str) -> Skipped:
    """Word a skip: ``detail`` says what is wrong and what to do, without naming the source."""
    return Skipped(uri, reason, f"{uri}: {detail}")


def or_raise(option: str) -> str:
    """The remedy for a file beyond a limit; who uploads it to a server cannot raise that."""
    return f"split it, or raise the limit (clara index {option})"


def fault(uri: str, reason: _Reason, detail: str) -> DocumentError:
    """Word an error, as ``skip`` does."""
    return DocumentError(f"{uri}: {detail}", reason=reason)


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Limits of reading one file; a file that needs more is skipped and named.

    Attributes:
        memory_mb: MiB that its parser may take, beside what the program itself takes.
        seconds: wall-clock seconds; for JSON Lines, of each record.
        characters: characters of a document's text.
        ocr: whether pages of PDFs that hold no text are read by OCR (the extra ``ocr``), within the same limits.
    """

    memory_mb: int = 2048
    seconds: int = 120
    characters: int = 64 * 2**20
    ocr: bool = False

    def __post_init__(self) -> None:
        least = {"memory_mb": _LEAST_MEMORY_MB, "seconds": 1, "characters": 1}
        faults = [
            f"{name} must be at least {bound}, got {getattr(self, name)}"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        if faults:
            raise ConfigError("limits of reading: " + "; ".join(faults))

    def check(self, document: Document, file_bytes: int) -> Document:
        """The document; ``DocumentError`` where its text is too long for the limit, or for its file."""
        length = len(document.text)
        if length > self.characters:
            detail = f"has {length:,} characters, the limit is {self.characters:,}; {or_raise('--max-characters')}"
            raise fault(document.uri, "too large", detail)
        if length > max(_GROWTH_FROM, _GROWTH * file_bytes):
            detail = (
                f"makes {length:,} characters of {file_bytes:,} bytes, as files do that are built to fill a disk; "
                "save its text as .txt if it is what you want"
            )
            raise fault(document.uri, "too large", detail)
        return document


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True, slots=True)
class Extract:
    r"""Content that a format's reader took from a file.

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
    metadata: Mapping[str, str]
    skipped: tuple[Skipped, ...] = ()
    pages: tuple[int, ...] = ()
    headings: tuple[Heading, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    layout: Layout = "markup"


class TextParts:
    """Puts parts together to a text, with a blank line between them.

    Attributes:
        starts: where each part begins; one without text begins where the next one does.
        headings: the headings in the parts.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.headings: list[Heading] = []
        self._texts: list[str] = []
        self._length = 0
        self._empty = 0  # parts without text at the end

    def add(self, text: str, headings: Iterable[Heading] = ()) -> None:
        """Add a part with its headings, whose places are its own."""
        self._add("\n\n", text)
        self.headings += [replace(heading, start=heading.start + self.starts[-1]) for heading in headings]

    def add_page(self, text: str) -> None:
        """Add a page of a text that is set in pages: a sentence that it goes on with goes on in the next line."""
        end = self._texts[-1].rstrip()[-1:] if self._texts else ""
        self._add("\n" if end not in _SENTENCE_ENDS and text.lstrip()[:1].islower() else "\n\n", text)

    def text(self) -> str:
        """The whole text."""
        return "".join(self._texts)

    def _add(self, gap: str, text: str) -> None:
        self._empty += 1
        self.starts.append(self._length)
        if not text:
            return
        if self._texts:
            self._texts.append(gap)
            self._length += len(gap)
        self.starts[-self._empty :] = [self._length] * self._empty
        self._empty = 0
        self._texts.append(text)
        self._length += len(text)


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
        title: may be empty; white space in it is reduced to single spaces.
        text: ``\r\n`` and ``\r`` become ``\n``, a leading byte order mark is dropped.
        metadata: small facts to keep with it.
        pages: as in ``Document``, like ``headings`` for a text whose newlines are ``\n`` already.
        headings: as in ``Document``.

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
        character = f"U+{ord(error.object[error.start]):04X}"
        detail = f"holds half a surrogate pair ({character}), which is no character; write it again"
        raise fault(uri, "encoding", detail) from None
    return Document(uri, title, text, content_hash, dict(metadata or {}), pages, headings)


def _content_hash(title: str, text: str) -> str:
    """SHA-256 (hex) of title, NUL, text: neither holds a NUL, so no two documents give the same bytes."""
    digest = hashlib.sha256(title.encode("utf-8") + b"\0")
    step = 1 << 20  # characters: a copy of a 200 MB text as bytes is not needed
    for start in range(0, len(text), step):
        digest.update(text[start : start + step].encode("utf-8"))
    return digest.hexdigest()
