"""Files and folders to documents to passages. Knows formats and characters; tokens only through a function.

``find_files`` lists, ``read_file`` and ``Reader`` read, ``iter_passages`` and ``split`` cut.
"""

from __future__ import annotations

from clara.ingest.boundaries import sentence_around
from clara.ingest.document import document_uri, make_document, source_of
from clara.ingest.files import SUPPORTED_SUFFIXES, FileListing, check_paths, find_files
from clara.ingest.limits import DEFAULT_LIMITS, ReadLimits
from clara.ingest.location import Location, location_of, passage_metadata
from clara.ingest.read import DEFAULT_MAX_BYTES, Reader, read_file
from clara.ingest.report import TEXTLESS, IngestReport, LeftOut, Reason, Skipped
from clara.ingest.split import TokenSpans, iter_passages, split

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
    "passage_metadata",
    "read_file",
    "sentence_around",
    "source_of",
    "split",
]
