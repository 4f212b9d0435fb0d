"""Which documents of a store are one manual. Knows uris, not what stands in the documents."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

from clara.ingest import source_of

_HTML = frozenset({".html", ".htm", ".xhtml"})


def manual_of(document: str, documents: Collection[str]) -> str:
    """The manual that a document belongs to, among all documents of a store.

    A follow-up may be answered from another page of the manual, and from no other one. Nothing in a store says what
    a manual is, so its folders are read as people lay them out:

    - records of one ``.jsonl`` file are one manual: the file;
    - pages of a folder are, where it holds ``index`` in their format or, for HTML, a second page; so is the folder
      above while it holds pages of the format likewise;
    - else the folders side by side below the deepest one that holds the whole store are a manual each;
    - else, in a flat folder, every file is its own.

    Args:
        document: its uri.
        documents: the uris of the store.

    Returns:
        The uri of a file, or of a folder, which ends with a slash (``belongs_to``).
    """
    source = source_of(document)
    if source != document:
        return source
    sources = {PurePosixPath(source_of(uri)) for uri in documents}
    page = PurePosixPath(source)
    folder = page.parent
    if _holds_pages(folder, page.suffix.lower(), sources):
        while folder.parent != folder and _holds_pages(folder.parent, page.suffix.lower(), sources):
            folder = folder.parent
        return _as_folder(folder)
    above = _common_folder(sources | {page})
    below = page.relative_to(above).parts
    return _as_folder(above / below[0]) if len(below) > 1 else source


def belongs_to(document: str, manual: str) -> bool:
    """Whether a document is part of a manual of ``manual_of``."""
    source = source_of(document)
    return source.startswith(manual) if manual.endswith("/") else source == manual


def _holds_pages(folder: PurePosixPath, suffix: str, sources: Collection[PurePosixPath]) -> bool:
    kinds = _HTML if suffix in _HTML else {suffix}
    pages = [path for path in sources if path.parent == folder and path.suffix.lower() in kinds]
    return len(pages) > 1 if suffix in _HTML else any(path.stem.lower() == "index" for path in pages)


def _common_folder(sources: Collection[PurePosixPath]) -> PurePosixPath:
    first, last = min(sources).parent.parts, max(sources).parent.parts  # all others lie between them
    shared = [one for one, other in zip(first, last, strict=False) if one == other]
    differ = next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), None)
    return PurePosixPath(*(shared if differ is None else first[:differ]))


def _as_folder(folder: PurePosixPath) -> str:
    return folder.as_posix().rstrip("/") + "/"
