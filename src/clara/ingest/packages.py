"""Formats that are zip files of XML parts: bounds on what they unpack to, and nothing outside them is loaded."""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import lxml.etree

from clara.ingest.report import fault

_MOST_PARTS = 100_000
_OLD_OFFICE_FILE = bytes.fromhex("D0CF11E0A1B11AE1")  # a format before XML, or the container of an encrypted file


@contextmanager
def open_package(data: bytes, uri: str, max_bytes: int) -> Iterator[zipfile.ZipFile]:
    """Open a package.

    Raises:
        DocumentError: no zip file, encrypted, or one that unpacks to more than ``max_bytes``.
    """
    if data.startswith(_OLD_OFFICE_FILE):
        raise fault(uri, "encrypted", "is encrypted, or of an older format by another name; save it without a password")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        raise fault(uri, "broken", f"is no zip file as its format is ({error}); save or download it again") from None
    with archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > max_bytes or len(entries) > _MOST_PARTS:
            raise fault(
                uri,
                "too large",
                f"unpacks to {unpacked / 2**20:,.0f} MB in {len(entries):,} parts, more than the limit of "
                f"{max_bytes / 2**20:,.0f} MB; raise it with --max-file-mb",
            )
        if any(entry.flag_bits & 1 for entry in entries):
            raise fault(uri, "encrypted", "needs a password; save a copy without one")
        yield archive


def xml_part(archive: zipfile.ZipFile, name: str) -> Any:  # noqa: ANN401 - lxml elements have no type here
    """The tree of a part, or None where there is no such part.

    No entity is expanded and nothing outside is loaded.
    """
    try:
        data = archive.read(name)
    except KeyError:
        return None
    parser = lxml.etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
    return lxml.etree.fromstring(data, parser)


def local_name(element: Any) -> str:  # noqa: ANN401
    """An element's name without its namespace; of what is no element, the empty string."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: Any, name: str) -> str:  # noqa: ANN401
    """An attribute by its name without a namespace, or the empty string."""
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def linked(base: str, reference: str) -> str:
    """The part that a reference in the part ``base`` leads to."""
    target = unquote(reference.partition("#")[0])
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), target))
