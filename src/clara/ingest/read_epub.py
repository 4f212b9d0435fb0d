"""Books (.epub): their chapters in reading order, each a page in XHTML."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from clara.ingest.document import Extract
from clara.ingest.packages import attribute, linked, local_name, open_package, xml_part
from clara.ingest.read_html import xhtml_page_of
from clara.ingest.report import fault
from clara.records import Heading

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_PAGES = frozenset(["application/xhtml+xml", "text/html"])


def extract_epub(data: bytes, uri: str, max_bytes: int) -> Extract:
    """Read a book; its title is its title.

    Raises:
        DocumentError: damaged, protected, too large when unpacked, or without text.
    """
    with open_package(data, uri, max_bytes) as archive:
        name, package = _package(archive, uri)
        _refuse_protected(archive, name, package, uri)
        texts: list[str] = []
        headings: list[Heading] = []
        left_out = Counter[str]()
        length = 0
        for chapter, is_contents in dict.fromkeys(_chapters(name, package)):  # a book may list one twice
            if is_contents:
                left_out["menus"] += 1
                continue
            if chapter not in archive.namelist():
                left_out["chapters that are not in the file"] += 1
                continue
            page = xhtml_page_of(archive.read(chapter), f"{uri}#{chapter}")
            if not page.text:
                continue  # a cover or another page of pictures
            headings += [replace(heading, start=heading.start + length) for heading in page.headings]
            left_out.update(page.left_out)
            texts.append(page.text)
            length += len(page.text) + 2
    if not texts:
        raise fault(uri, "no text", "shows no text, only pictures; run OCR on it first")
    titles = ["".join(element.itertext()) for element in package.iter() if local_name(element) == "title"]
    return Extract(
        title=titles[0] if titles else "",
        text="\n\n".join(texts),
        metadata={"media_type": "application/epub+zip"},
        headings=tuple(headings),
        left_out=left_out,
        layout="markup",
    )


def _package(archive: zipfile.ZipFile, uri: str) -> tuple[str, Any]:
    """The part that lists the others, and its name."""
    container = xml_part(archive, _CONTAINER)
    roots = [] if container is None else [item for item in container.iter() if local_name(item) == "rootfile"]
    name = attribute(roots[0], "full-path") if roots else ""
    package = xml_part(archive, name)
    if package is None:
        raise fault(uri, "broken", "names no list of its chapters, so it is no EPUB; save or download it again")
    return name, package


def _chapters(name: str, package: Any) -> Iterator[tuple[str, bool]]:  # noqa: ANN401 - lxml elements have no type here
    """Parts in reading order, and whether each is a table of contents for reading programs."""
    items = {attribute(item, "id"): item for item in package.iter() if local_name(item) == "item"}
    for entry in package.iter():
        item = items.get(attribute(entry, "idref")) if local_name(entry) == "itemref" else None
        if item is not None and attribute(item, "media-type") in _PAGES:
            yield linked(name, attribute(item, "href")), "nav" in attribute(item, "properties").split()


def _refuse_protected(archive: zipfile.ZipFile, name: str, package: Any, uri: str) -> None:  # noqa: ANN401
    """A book with rights management has its chapters encrypted; fonts alone may be scrambled in any."""
    encryption = xml_part(archive, _ENCRYPTION)
    if encryption is None:
        return
    hidden = {linked("", attribute(item, "URI")) for item in encryption.iter() if local_name(item) == "CipherReference"}
    if hidden & {chapter for chapter, _ in _chapters(name, package)}:
        raise fault(uri, "encrypted", "is protected by rights management; get a copy without it")
