"""What happened to each source: read, or skipped and why. Records and the one place that words a fault.

Knows nothing of file formats: those are in the ``read_*`` modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clara.errors import DocumentError

Reason = Literal[
    "bad record",
    "binary",
    "broken",
    "empty",
    "encoding",
    "encrypted",
    "no text",
    "too large",
    "too slow",
    "unreadable",
    "unsupported",
]
TEXTLESS: frozenset[str] = frozenset({"empty", "no text"})
"""Reasons of sources that were read and hold nothing; the others could not be read."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A source, or a part of one, that did not become a document.

    Attributes:
        uri: the file, ``file.jsonl#3`` for line 3, or ``file.pdf#page=3`` for page 3.
        reason: the kind of fault, one of ``Reason``; reports group by it.
        message: a whole sentence that names the source, the fault and the remedy.
    """

    uri: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a document's text leaves out of its source: on purpose, or because the format's reader cannot give it.

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
    """What one reading of files and folders came to.

    Attributes:
        files: files that gave at least one document.
        documents: documents read; a JSON Lines file gives one for each record.
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

    def by_reason(self) -> dict[str, tuple[str, ...]]:
        """The skipped sources by kind of fault: reason to ``uri``s, both in the order found."""
        groups: dict[str, list[str]] = {}
        for skipped in self.skipped:
            groups.setdefault(skipped.reason, []).append(skipped.uri)
        return {reason: tuple(uris) for reason, uris in groups.items()}


def skip(uri: str, reason: Reason, detail: str) -> Skipped:
    """Word a skip: ``detail`` says what is wrong and what to do, without naming the source."""
    return Skipped(uri, reason, f"{uri}: {detail}")


def missing(uri: str, package: str) -> DocumentError:
    """Word the error for a format whose reader is not installed."""
    return fault(uri, "unsupported", f"needs {package}; install it with: pip install 'clara-rag[formats]'")


def fault(uri: str, reason: Reason, detail: str) -> DocumentError:
    """Word an error: ``detail`` says what is wrong and what to do, without naming the source."""
    return DocumentError(f"{uri}: {detail}", reason=reason)
