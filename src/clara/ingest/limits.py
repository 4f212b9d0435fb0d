"""What reading one file may take. Knows no formats, and not how a limit is kept: that is ``worker``'s work."""

from __future__ import annotations

from dataclasses import dataclass

from clara.errors import ConfigError
from clara.ingest.report import fault
from clara.records import Document

# What grows more than this is no document: text that deflates a hundred times says the same again and again.
_GROWTH = 100  # characters a byte of the file
_GROWTH_FROM = 1_000_000  # characters: a small file may have a large font and little else

_LEAST_MEMORY_MB = 256  # the parsers' own code takes up to 100


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
        faults = [
            f"{name} must be at least {least}, got {value}"
            for name, value, least in (
                ("memory_mb", self.memory_mb, _LEAST_MEMORY_MB),
                ("seconds", self.seconds, 1),
                ("characters", self.characters, 1),
            )
            if value < least
        ]
        if faults:
            raise ConfigError("limits of reading: " + "; ".join(faults))

    def check(self, document: Document, file_bytes: int) -> Document:
        """The document, if its text is not too long for the limit or for its file.

        Raises:
            DocumentError: it is.
        """
        length = len(document.text)
        if length > self.characters:
            raise fault(
                document.uri,
                "too large",
                f"has {length:,} characters, the limit is {self.characters:,}; raise it with --max-characters",
            )
        if length > max(_GROWTH_FROM, _GROWTH * file_bytes):
            raise fault(
                document.uri,
                "too large",
                f"makes {length:,} characters of {file_bytes:,} bytes, as files do that are built to fill a disk; "
                "save its text as .txt if it is what you want",
            )
        return document


DEFAULT_LIMITS = ReadLimits()
