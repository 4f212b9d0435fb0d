"""Files and folders to documents to passages. Knows formats and characters; tokens only through a function.

``find_files`` lists, ``read_file`` and ``Reader`` read, ``iter_passages`` cuts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clara.ingest.boundaries import sentence_around
    from clara.ingest.document import document_uri, make_document, source_of
    from clara.ingest.files import SUPPORTED_SUFFIXES, FileListing, check_paths, find_files
    from clara.ingest.limits import DEFAULT_LIMITS, ReadLimits
    from clara.ingest.location import Location, location_of, page_breaks, passage_metadata
    from clara.ingest.read import DEFAULT_MAX_BYTES, Reader, read_file
    from clara.ingest.report import TEXTLESS, IngestReport, LeftOut, Reason, Skipped
    from clara.ingest.split import TokenSpans, iter_passages

__all__ = [
    "DEFAULT_LIMITS",
    "DEFAULT_MAX_BYTES",
    "SUPPORTED_SUFFIXES",
    "TEXTLESS",
    "FileListing",
    "IngestReport",
    "LeftOut",
    "Location",
    "ReadLimits",
    "Reader",
    "Reason",
    "Skipped",
    "TokenSpans",
    "check_paths",
    "document_uri",
    "find_files",
    "iter_passages",
    "location_of",
    "make_document",
    "page_breaks",
    "passage_metadata",
    "read_file",
    "sentence_around",
    "source_of",
]

_WHERE = {
    "DEFAULT_LIMITS": "limits",
    "DEFAULT_MAX_BYTES": "read",
    "SUPPORTED_SUFFIXES": "files",
    "TEXTLESS": "report",
    "FileListing": "files",
    "IngestReport": "report",
    "LeftOut": "report",
    "Location": "location",
    "ReadLimits": "limits",
    "Reader": "read",
    "Reason": "report",
    "Skipped": "report",
    "TokenSpans": "split",
    "check_paths": "files",
    "document_uri": "document",
    "find_files": "files",
    "iter_passages": "split",
    "location_of": "location",
    "make_document": "document",
    "page_breaks": "location",
    "passage_metadata": "location",
    "read_file": "read",
    "sentence_around": "boundaries",
    "source_of": "document",
}


def __getattr__(name: str) -> object:
    # An answer's place takes two of these files; the readers of formats are loaded by whoever reads files.
    if name in _WHERE:
        return getattr(import_module(f"clara.ingest.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'clara.ingest' has no attribute {name!r}")
