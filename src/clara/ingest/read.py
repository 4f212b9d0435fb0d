"""A file becomes documents: picks the reader by the file's suffix, and turns every fault into a named one.

Finding files is ``files``' work, each format's own matters are in ``read_*``.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from clara.errors import DocumentError
from clara.ingest.clean import clean
from clara.ingest.document import Extract, document_uri, make_document
from clara.ingest.files import READ_SUFFIXES, FileListing
from clara.ingest.formats import PLAIN_SUFFIXES, SUPPORTED, extract
from clara.ingest.limits import DEFAULT_LIMITS, ReadLimits
from clara.ingest.process import ReadingProcesses
from clara.ingest.read_jsonl import read_jsonl
from clara.ingest.report import IngestReport, LeftOut, Skipped, fault, skip
from clara.records import Document

DEFAULT_MAX_BYTES = 64 * 2**20
# Processes that read: a second one is worth its start (a quarter of a second of one core) from some files on.
_MOST_PROCESSES = 4
_FILES_A_PROCESS = 16
_SHOWN = 120  # characters of a parser's own message that are shown


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
    suffix = path.suffix.lower()
    if suffix not in READ_SUFFIXES:
        raise fault(uri, "unsupported", f"cannot read {suffix}; {SUPPORTED}")
    with _faults_named(uri):
        if suffix == ".jsonl":
            _regular_size(path, uri)
            yield from read_jsonl(path, uri, max_bytes)
            return
        data = _load(path, uri, max_bytes)
        found = extract(suffix, data, uri, max_bytes, ocr=limits.ocr)
        document, left_out = _document(found, uri)
        yield limits.check(document, len(data))
        yield from found.skipped
        for kind, number in left_out.items():
            yield LeftOut(uri, kind, number)


class Reader:
    """Reads the files of a listing and keeps count; what cannot be read is noted, and the rest goes on.

    Parsers run in processes of their own (``process``), which end with ``close`` or with the reader.

    Args:
        listing: what ``find_files`` found; its unsupported and unreadable entries open the report.
        max_bytes: as for ``read_file``.
        limits: what reading one file may take.
    """

    def __init__(
        self, listing: FileListing, *, max_bytes: int = DEFAULT_MAX_BYTES, limits: ReadLimits = DEFAULT_LIMITS
    ) -> None:
        self._listing = listing
        self._max_bytes = max_bytes
        self._limits = limits
        parsed = [path for path in listing.files if not _is_plain(path)]
        count = min(_MOST_PROCESSES, _cores(), 1 + len(parsed) // _FILES_A_PROCESS)
        self._processes = ReadingProcesses(parsed, count=count, max_bytes=max_bytes, limits=limits)
        self._files = self._documents = self._characters = 0
        self._skipped = list(listing.skipped)
        self._left_out = Counter[str]()
        for path in listing.unsupported:
            kind = path.suffix.lower() if path.suffix and path.is_file() else "what is no regular file"
            self._skipped.append(skip(document_uri(path), "unsupported", f"cannot read {kind}; {SUPPORTED}"))

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
        count = 0
        try:
            for item in self._items(path):
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

    def _items(self, path: Path) -> Iterator[Document | Skipped | LeftOut]:
        if _is_plain(path):
            return read_file(path, max_bytes=self._max_bytes, limits=self._limits)
        return self._processes.read(path)

    def report(self) -> IngestReport:
        """What was read so far."""
        return IngestReport(
            files=self._files,
            documents=self._documents,
            characters=self._characters,
            hidden=self._listing.hidden,
            skipped=tuple(self._skipped),
            left_out=dict(self._left_out),
        )


def _is_plain(path: Path) -> bool:
    """Whether no parser looks at a file: decoding takes memory and time in proportion to its size, which is limited."""
    return path.suffix.lower() in PLAIN_SUFFIXES


def _cores() -> int:
    """Cores that this process may use; macOS does not say, and gives those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def _load(path: Path, uri: str, max_bytes: int) -> bytes:
    size = _regular_size(path, uri)
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)  # not what ``size`` says: the file may grow meanwhile
    if len(data) > max_bytes:
        raise fault(
            uri,
            "too large",
            f"has {max(size, len(data)) / 2**20:,.1f} MB, the limit is {max_bytes / 2**20:,.1f} MB; "
            "raise it with --max-file-mb",
        )
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
        raise fault(uri, "too large", "needs more memory than there is, or than --max-memory-mb allows") from None
    except Exception as error:  # parsers of foreign formats raise anything for a broken file
        detail = " ".join(str(error).split())[:_SHOWN] or "no details"
        raise fault(
            uri, "broken", f"is damaged ({type(error).__name__}: {detail}); save or download it again"
        ) from error
