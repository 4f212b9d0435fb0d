"""Files become documents: finds them in folders, picks the reader by the suffix, turns every fault into a named one.

Each format's own matters are in ``read_*``. Those are imported when first needed: together their libraries take most of
a second to import, and most commands have no use for them.
"""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from clara.config import usable_cores
from clara.errors import DocumentError, InputError
from clara.ingest.clean import clean
from clara.ingest.document import (
    DEFAULT_LIMITS,
    Extract,
    IngestReport,
    LeftOut,
    ReadLimits,
    Skipped,
    document_uri,
    fault,
    make_document,
    or_raise,
    skip,
)
from clara.ingest.process import ReadingProcesses
from clara.ingest.read_text import read_jsonl
from clara.records import Document

# Which modules read which suffixes; ``READERS`` in each names the functions.
_MODULES = {
    "read_docx": ".docx",
    "read_html": ".eml .htm .html .xhtml",
    "read_odt": ".odt",
    "read_packages": ".epub .pptx",
    "read_pdf": ".pdf",
    "read_rst": ".rst",
    "read_tables": ".csv .tsv",
    "read_text": ".markdown .md .text .txt",
    "read_xlsx": ".xlsx",
}
_MODULE_OF = {suffix: module for module, suffixes in _MODULES.items() for suffix in suffixes.split()}
SUPPORTED_SUFFIXES = tuple(sorted([".jsonl", *_MODULE_OF]))
# fmt: off
# Source code, settings, logs, and marked-up texts without a reader of their own: text whose blanks count.
_CODE_SUFFIXES = (
    ".adoc", ".asciidoc", ".example", ".log", ".org", ".properties", ".sample",
    ".asm", ".awk", ".bash", ".bat", ".c", ".cc", ".cfg", ".clj", ".cmake", ".conf", ".cpp", ".cs", ".css", ".cu",
    ".cxx", ".dart", ".el", ".erl", ".ex", ".exs", ".f90", ".fish", ".fs", ".go", ".gradle", ".graphql", ".groovy",
    ".h", ".hpp", ".hs", ".ini", ".ipp", ".java", ".jl", ".js", ".jsx", ".kt", ".lisp", ".lua", ".m", ".mjs", ".mk",
    ".ml", ".nim", ".nix", ".pas", ".php", ".pl", ".pm", ".proto", ".ps1", ".py", ".pyi", ".r", ".rb", ".rs", ".sass",
    ".scala", ".scm", ".scss", ".sh", ".sql", ".swift", ".tcl", ".tex", ".tf", ".toml", ".ts", ".tsx", ".v", ".vb",
    ".vim", ".vue", ".yaml", ".yml", ".zig", ".zsh",
)
# fmt: on
# Names of documents whatever stands behind their dot: README.Debian, INSTALL.unix.
_READ_ME = frozenset(
    ["authors", "changelog", "changes", "copying", "faq", "hacking", "install", "license", "news", "notes", "readme"]
)
# A file without a suffix is told by what is in it.
_READ_SUFFIXES = frozenset(["", *SUPPORTED_SUFFIXES, *_CODE_SUFFIXES])

DEFAULT_MAX_BYTES = 64 * 2**20

_PACKAGES = frozenset([".docx", ".epub", ".odt", ".pptx", ".xlsx"])  # they unpack, so they are told how much they may
_CONTAINERS = _PACKAGES | {".pdf"}  # no text whatever their name
# Decoded and nothing more, which takes memory and time in proportion to the file, whose size is limited.
_PLAIN = frozenset([".txt", ".text", *_CODE_SUFFIXES])
# Characters a byte in manuals from ten Debian packages: 2,482 web pages, 15 PDFs, 2 books.
_TEXT_SHARE = {".epub": 1.3, ".htm": 0.4, ".html": 0.4, ".pdf": 0.5, ".xhtml": 0.4}
_SUPPORTED = f"supported are {' '.join(SUPPORTED_SUFFIXES)} and source code"
_SAVE_AS = {
    ".doc": ".docx", ".xls": ".xlsx", ".xlsb": ".xlsx", ".ods": ".xlsx", ".ppt": ".pptx", ".odp": ".pptx",
    ".rtf": ".docx", ".mobi": ".epub", ".azw3": ".epub", ".ps": ".pdf", ".djvu": ".pdf",
}  # fmt: skip
_PACKED = frozenset([".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"])

# Processes that read: a second one is worth its start (a quarter of a second of one core) from some files on.
_MOST_PROCESSES = 4
_FILES_A_PROCESS = 16
_SHOWN = 120  # characters of a parser's own message that are shown

_ZIP, _PDF, _RTF = b"PK\x03\x04", b"%PDF-", rb"{\rtf"
_PDF_WITHIN = 1024  # bytes: PDF readers look as far for the mark
_PARTS = {"word/document.xml": ".docx", "ppt/presentation.xml": ".pptx", "xl/workbook.xml": ".xlsx"}
_MEDIA_TYPES = {b"application/epub+zip": ".epub", b"application/vnd.oasis.opendocument.text": ".odt"}
_WEB_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|<\?xml[^>]*>|<!--.*?-->)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S
)
_HEADER = re.compile(
    rb"^(Received|Return-Path|Message-ID|MIME-Version|From|To|Date|Subject): ", re.IGNORECASE | re.MULTILINE
)
_MESSAGE_WITHIN = 1 << 13  # bytes
_MESSAGE_HEADERS = 3  # of them; one at least that only mail programs write
_OF_PROGRAMS = frozenset([b"received", b"return-path", b"message-id", b"mime-version"])


@dataclass(frozen=True, slots=True)
class FileListing:
    """The files found, each once however many names lead to it.

    Attributes:
        files: files with a supported suffix or none, absolute, in the order of the paths given and by name within a
            folder.
        unsupported: files of other kinds, in the same order; named so that a report can name them.
        skipped: what could not be looked at: folders without permission, links to nothing.
        hidden: hidden files and folders passed over (a hidden folder counts once).
    """

    files: tuple[Path, ...]
    unsupported: tuple[Path, ...]
    skipped: tuple[Skipped, ...]
    hidden: int


def _suffix(path: Path) -> str:
    """The suffix in lower case; none where what stands behind the dot of a document's usual name says no format."""
    suffix = path.suffix.lower()
    said = suffix in _READ_SUFFIXES or suffix in _PACKED or suffix in _SAVE_AS
    return suffix if said or path.stem.lower() not in _READ_ME else ""


def find_files(paths: Sequence[Path]) -> FileListing:
    """List the files in files and folders, recursively.

    Names that begin with a dot are passed over inside folders and counted; one that is given itself is taken. Links
    are followed, each folder is visited once, so loops end.

    Raises:
        InputError: a given path does not exist; the message names all that do not.
    """
    check_paths(paths)
    walk = _Walk()
    for path in paths:
        walk.add(path.absolute())
    return FileListing(
        files=tuple(walk.files), unsupported=tuple(walk.unsupported), skipped=tuple(walk.skipped), hidden=walk.hidden
    )


def check_paths(paths: Sequence[Path]) -> None:
    """Make sure that all paths name something.

    Raises:
        InputError: a path does not exist or may not be looked at; the message names all that do not.
    """
    missing = [str(path) for path in paths if not os.path.exists(path)]  # noqa: PTH110 - Path.exists raises without permission
    if missing:
        raise InputError(f"no such file or folder: {', '.join(missing)}; check the spelling and the permissions")


class _Walk:
    """Collects as it goes; remembers where it has been."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.unsupported: list[Path] = []
        self.skipped: list[Skipped] = []
        self.hidden = 0
        self._seen: set[str] = set()

    def add(self, path: Path) -> None:
        pending = [(path, os.path.realpath(path))]  # a stack, not recursion: folders may nest deeper than Python does
        while pending:
            folder, real = pending.pop()
            entries = self._visit(folder, real)
            # Resolved step by step: resolving each whole path anew would cost its depth for every file.
            pending.extend(
                (entry, os.path.realpath(entry) if entry.is_symlink() else os.path.join(real, entry.name))  # noqa: PTH118
                for entry in reversed(entries)
            )

    def _visit(self, path: Path, real: str) -> list[Path]:
        """Take a file; return a folder's entries."""
        if real in self._seen:
            return []
        self._seen.add(real)
        try:
            mode = path.stat().st_mode
            # Names, not paths: a folder may hold millions.
            names = sorted(os.listdir(path)) if stat.S_ISDIR(mode) else []  # noqa: PTH208
        except OSError as error:
            self._skip(path, f"cannot be looked at: {error.strerror or error}")
            return []
        if stat.S_ISREG(mode):
            supported = _suffix(path) in _READ_SUFFIXES
            (self.files if supported else self.unsupported).append(path)
        elif not stat.S_ISDIR(mode):  # reading one may never end
            self._skip(path, "is a pipe, a device or a socket, not a regular file")
        visible = [name for name in names if not name.startswith(".")]
        self.hidden += len(names) - len(visible)
        return [path / name for name in visible]

    def _skip(self, path: Path, detail: str) -> None:
        # The path itself: where it leads nowhere, its target would mislead.
        name = path.name.encode("utf-8", "backslashreplace").decode("utf-8")
        self.skipped.append(skip(f"{document_uri(path.parent).rstrip('/')}/{name}", "unreadable", detail))


def read_file(
    path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES, limits: ReadLimits = DEFAULT_LIMITS
) -> Iterator[Document | Skipped | LeftOut]:
    """Read one file in this process; ``Reader`` does it in another, where a file can do no harm.

    Args:
        path: a file with a suffix that is read, upper or lower case, or without one.
        max_bytes: largest file; for JSON Lines, longest line; for packages such as Word files, also their unpacked
            size.
        limits: of them, the characters and ``ocr``; time and memory can be kept only from outside.

    Yields:
        One document; for JSON Lines, one for each record. Parts that cannot be read (a line, a page) come as
        ``Skipped`` in their place, and what a document leaves out follows it as ``LeftOut``.

    Raises:
        DocumentError: while iterating: the file as a whole cannot be read. Nothing else is raised for what a file
            holds.
    """
    uri = document_uri(path)
    suffix = _suffix(path)
    if suffix not in _READ_SUFFIXES:
        raise fault(uri, "unsupported", _unsupported(suffix))
    with _faults_named(uri):
        if suffix == ".jsonl":
            _regular_size(path, uri)
            yield from read_jsonl(path, uri, max_bytes)
            return
        data = _load(path, uri, max_bytes)
        found = _extract(_format(suffix, data, uri), data, uri, max_bytes, ocr=limits.ocr)
        document, left_out = _document(found, uri)
        yield limits.check(document, len(data))
        yield from found.skipped
        for kind, number in left_out.items():
            yield LeftOut(uri, kind, number)


class Reader:
    """Reads the files of a listing and keeps count; what cannot be read is noted, and the rest goes on.

    The listing's unsupported and unreadable entries open the report. Parsers run in processes of their own
    (``process``), which end with ``close`` or with the reader.
    """

    def __init__(
        self, listing: FileListing, *, max_bytes: int = DEFAULT_MAX_BYTES, limits: ReadLimits = DEFAULT_LIMITS
    ) -> None:
        self._listing = listing
        self._max_bytes = max_bytes
        self._limits = limits
        parsed = [path for path in listing.files if _suffix(path) not in _PLAIN]
        count = min(_MOST_PROCESSES, usable_cores(), 1 + len(parsed) // _FILES_A_PROCESS)
        self._processes = ReadingProcesses(parsed, count=count, max_bytes=max_bytes, limits=limits)
        self._files = self._documents = self._characters = 0
        self._skipped = list(listing.skipped)
        self._left_out = Counter[str]()
        for path in listing.unsupported:
            kind = _suffix(path) if path.suffix and path.is_file() else "what is no regular file"
            self._skipped.append(skip(document_uri(path), "unsupported", _unsupported(kind)))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that read, if there are any."""
        self._processes.close()

    def documents(self) -> Iterator[Document]:
        """Every document of every file, in the listing's order."""
        for path in self._listing.files:
            yield from self.read(path)

    def read(self, path: Path) -> Iterator[Document]:
        """The documents of one file of the listing; none if it cannot be read."""
        plain = _suffix(path) in _PLAIN
        items = read_file(path, max_bytes=self._max_bytes, limits=self._limits) if plain else self._processes.read(path)
        count = 0
        try:
            for item in items:
                if isinstance(item, Skipped):
                    self._skipped.append(item)
                    continue
                if isinstance(item, LeftOut):
                    self._left_out[item.kind] += item.count
                    continue
                count += 1
                self._documents += 1
                self._characters += len(item.text)
                yield item
        except DocumentError as error:
            # An error from a consumer of this generator cannot arrive here: only reading is inside.
            self._skipped.append(Skipped(document_uri(path), error.reason, str(error)))
        self._files += count > 0

    def report(self) -> IngestReport:
        """Counts of what was read so far."""
        return IngestReport(
            files=self._files,
            documents=self._documents,
            characters=self._characters,
            hidden=self._listing.hidden,
            skipped=tuple(self._skipped),
            left_out=dict(self._left_out),
        )


def text_share(suffix: str) -> float | None:
    """Characters of text that a byte of such a file usually holds; None where that was not measured."""
    return 1.0 if suffix in _PLAIN or suffix in (".md", ".markdown", ".rst") else _TEXT_SHARE.get(suffix)


def _unsupported(kind: str) -> str:
    """Why a file is not read, and what to do where that is known; ``kind`` is its suffix, or says what it is."""
    if kind in _PACKED:
        return f"cannot read {kind}; unpack it first"
    return f"cannot read {kind}; " + (f"save it as {_SAVE_AS[kind]}" if kind in _SAVE_AS else _SUPPORTED)


def _document(found: Extract, uri: str) -> tuple[Document, Counter[str]]:
    """The document of what a reader found, and what it leaves out."""
    places = sorted({*found.pages, *(heading.start for heading in found.headings)})
    cleaned = clean(found.text, found.layout, places)
    if cleaned.left_out and not cleaned.text:
        raise fault(uri, "no text", "holds nothing but encoded data (base64 or the like)")
    now_at = dict(zip(places, cleaned.places, strict=True))
    document = make_document(
        uri,
        found.title,
        cleaned.text or found.text,  # what is only white space is refused as that
        found.metadata,
        pages=tuple(now_at[page] for page in found.pages),
        headings=tuple(replace(heading, start=now_at[heading.start]) for heading in found.headings),
    )
    return document, Counter(found.left_out) + Counter(cleaned.left_out)


def _extract(suffix: str, data: bytes, uri: str, max_bytes: int, *, ocr: bool) -> Extract:
    """Content of a file; a package may unpack to ``max_bytes``."""
    if not suffix and b"\0" in data:
        detail = f"has no suffix, and its content is no text and of no known format; {_SUPPORTED}"
        raise fault(uri, "unsupported", detail)
    if suffix not in _MODULE_OF:
        suffix = ""  # source code
    readers = import_module(f"clara.ingest.{_MODULE_OF.get(suffix, 'read_text')}").READERS
    reader: Callable[..., Extract] = readers[suffix]
    if suffix in _PACKAGES:
        return reader(data, uri, max_bytes)
    return reader(data, uri, ocr=ocr) if suffix == ".pdf" else reader(data, uri)


def _format(suffix: str, data: bytes, uri: str) -> str:
    """The suffix by which a file is read: its content's where it has none, or one of another format."""
    told = _suffix_of(data)
    if told in _SAVE_AS:
        raise fault(uri, "unsupported", f"is a {told} by another name; save it as {_SAVE_AS[told]}")
    other = (told in _CONTAINERS and data.startswith((_ZIP, _PDF))) or (told and suffix in _CONTAINERS)
    if other and suffix in _PLAIN:  # parsers run in processes of their own
        raise fault(uri, "unsupported", f"is a {told} by another name; rename it")
    return told if other or not suffix else suffix


def _suffix_of(data: bytes) -> str:
    """The suffix that a file without one should have; the empty string where its content is none of the formats'."""
    if data.startswith(_ZIP):
        return _package_suffix(data)
    if _PDF in data[:_PDF_WITHIN]:
        return ".pdf"
    if data.startswith(_RTF):
        return ".rtf"
    head = data[:_MESSAGE_WITHIN]
    if _WEB_PAGE.match(head):
        return ".html"
    headers = {name.lower() for name in _HEADER.findall(head.partition(b"\n\n")[0].partition(b"\r\n\r\n")[0])}
    return ".eml" if len(headers) >= _MESSAGE_HEADERS and headers & _OF_PROGRAMS else ""


def _package_suffix(data: bytes) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            stated = archive.open("mimetype").read(100) if "mimetype" in names else b""
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return ""
    return next((suffix for name, suffix in _PARTS.items() if name in names), _MEDIA_TYPES.get(stated.strip(), ""))


def _load(path: Path, uri: str, max_bytes: int) -> bytes:
    size = _regular_size(path, uri)
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)  # not what ``size`` says: the file may grow meanwhile
    if len(data) > max_bytes:
        limit = f"the limit is {max_bytes / 2**20:,.1f} MiB; {or_raise('--max-file-mb')}"
        raise fault(uri, "too large", f"has {max(size, len(data)) / 2**20:,.1f} MiB, {limit}")
    if not data:
        raise fault(uri, "empty", "is empty")
    return data


def _regular_size(path: Path, uri: str) -> int:
    """Bytes of a regular file; a pipe or a device is refused, because reading one may never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise fault(uri, "unreadable", "is not a regular file")
    return status.st_size


@contextmanager
def _faults_named(uri: str) -> Iterator[None]:
    """Every exception becomes a DocumentError that names the file; a parser not installed is no fault of a file."""
    try:
        yield
    except (DocumentError, ImportError):
        raise
    except OSError as error:
        raise fault(uri, "unreadable", f"cannot be read: {error.strerror or error}") from error
    except MemoryError:
        detail = f"needs more memory than there is, or than the limit; {or_raise('--max-memory-mb')}"
        raise fault(uri, "too large", detail) from None
    except Exception as error:  # parsers of foreign formats raise anything for a broken file
        detail = " ".join(str(error).split())[:_SHOWN] or "no details"
        damage = f"is damaged ({type(error).__name__}: {detail}); save or download it again"
        raise fault(uri, "broken", damage) from error
