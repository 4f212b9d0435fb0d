"""Which reader takes which format: a suffix to a function of a ``read_*`` module, imported when first needed.

Together the readers' libraries take most of a second to import, and most commands have no use for them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from clara.ingest.document import Extract
from clara.ingest.files import CODE_SUFFIXES, SUPPORTED_SUFFIXES
from clara.ingest.report import fault
from clara.ingest.sniff import suffix_of

PLAIN_SUFFIXES = frozenset([".txt", ".text", *CODE_SUFFIXES])
"""What is decoded and nothing more: takes memory and time in proportion to the file, whose size is limited."""

SUPPORTED = f"supported are {' '.join(SUPPORTED_SUFFIXES)} and source code"

_READERS = {
    ".csv": "read_csv.extract_csv",
    ".eml": "read_email.extract_email",
    ".htm": "read_html.extract_html",
    ".html": "read_html.extract_html",
    ".markdown": "read_text.extract_markdown",
    ".md": "read_text.extract_markdown",
    ".pdf": "read_pdf.extract_pdf",
    ".rst": "read_rst.extract_rst",
    ".text": "read_text.extract_plain",
    ".tsv": "read_csv.extract_tsv",
    ".txt": "read_text.extract_plain",
    ".xhtml": "read_html.extract_xhtml",
}
# These unpack, so they are told how much they may.
_PACKAGE_READERS = {
    ".docx": "read_docx.extract_docx",
    ".epub": "read_epub.extract_epub",
    ".odt": "read_odt.extract_odt",
    ".pptx": "read_pptx.extract_pptx",
    ".xlsx": "read_xlsx.extract_xlsx",
}


def extract(suffix: str, data: bytes, uri: str, max_bytes: int, *, ocr: bool = False) -> Extract:
    """Read a file's content.

    Args:
        suffix: the file's, in lower case; without one the content tells.
        data: its bytes.
        uri: its uri.
        max_bytes: most that a package may unpack to.
        ocr: as in ``ReadLimits``.

    Raises:
        DocumentError: the content cannot be read, or is of no known format.
    """
    suffix = suffix or suffix_of(data)
    if suffix in _PACKAGE_READERS:
        return _function(_PACKAGE_READERS[suffix])(data, uri, max_bytes)
    if suffix == ".pdf" and ocr:
        return _function(_READERS[suffix])(data, uri, ocr=True)
    if suffix in _READERS:
        return _function(_READERS[suffix])(data, uri)
    if not suffix and b"\0" in data:
        raise fault(
            uri, "unsupported", f"has no suffix, and its content is no text and of no known format; {SUPPORTED}"
        )
    return _function("read_text.extract_code")(data, uri)


def _function(name: str) -> Callable[..., Extract]:
    module, _, function = name.partition(".")
    found: Callable[..., Extract] = getattr(import_module(f"clara.ingest.{module}"), function)
    return found
