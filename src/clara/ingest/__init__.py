"""Files and folders to documents to passages. Knows formats and characters; tokens only through a function.

``find_files`` lists, ``read_file`` and ``Reader`` read, ``iter_passages`` cuts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clara.ingest.document import (
        DEFAULT_LIMITS,
        TEXTLESS,
        IngestReport,
        LeftOut,
        ReadLimits,
        Skipped,
        document_uri,
        make_document,
        source_of,
    )
    from clara.ingest.read import (
        DEFAULT_MAX_BYTES,
        SUPPORTED_SUFFIXES,
        FileListing,
        Reader,
        check_paths,
        find_files,
        read_file,
        text_share,
    )
    from clara.ingest.split import (
        Location,
        TokenSpans,
        iter_passages,
        location_of,
        page_breaks,
        passage_metadata,
        sentence_around,
    )

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
    "text_share",
]

_MODULES = ("split", "document", "read")  # in this order: an answer's place takes the first alone


def __getattr__(name: str) -> object:
    # The readers of formats are loaded by whoever reads files.
    if name in __all__:
        for module in map(import_module, (f"{__name__}.{module}" for module in _MODULES)):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'clara.ingest' has no attribute {name!r}")
