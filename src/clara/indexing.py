"""Files into a store: read, split, compressed, committed; changed ones again, gone ones removed.

Knows neither files' formats, nor tensors, nor tables; those are its rooms'. Answers are ``answering``'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clara import prompts
from clara.errors import InputError
from clara.index import DocumentEntry, IndexRow, LanceStore
from clara.ingest import (
    TEXTLESS,
    IngestReport,
    Reader,
    ReadLimits,
    document_uri,
    find_files,
    iter_passages,
    passage_metadata,
    source_of,
)
from clara.model import ClaraModel
from clara.records import Document, Passage

PASSAGES_A_COMMIT = 64
"""Passages compressed and stored at once: enough to sort by length, few enough that a kill costs little."""


@dataclass(frozen=True, slots=True)
class AddProgress:
    """How far ``Clara.add`` is.

    Attributes:
        files: files read so far.
        files_total: files to read.
        passages: passages compressed so far.
    """

    files: int
    files_total: int
    passages: int


@dataclass(frozen=True, slots=True)
class AddReport:
    """What ``Clara.add`` did.

    Attributes:
        added: documents that were not in the store.
        updated: documents whose content had changed.
        unchanged: documents that were left as they were.
        pruned: documents that were removed because their source is gone.
        passages: passages compressed.
        tokens: their tokens, titles included.
        seconds: wall-clock seconds of all of it.
        ingest: what was read, and what was skipped and why.
    """

    added: int
    updated: int
    unchanged: int
    pruned: int
    passages: int
    tokens: int
    seconds: float
    ingest: IngestReport


@dataclass(slots=True)
class _Counts:
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    passages: int = 0
    tokens: int = 0


class Indexer:
    """One run of ``Clara.add``: what it reads goes into the store."""

    def __init__(self, store: LanceStore, model: ClaraModel) -> None:
        self._store = store
        self._model = model
        self._counts = _Counts()
        self._batch = _Batch(store, model, self._counts)

    def add(
        self,
        roots: Sequence[Path],
        *,
        prune: bool,
        max_bytes: int,
        limits: ReadLimits,
        progress: Callable[[AddProgress], None] | None,
    ) -> AddReport:
        """Arguments, result and errors as ``Clara.add``."""
        started = time.perf_counter()
        listing = find_files(roots)
        counts, seen = self._counts, set[str]()
        self._store.keep_promises()
        known = self._store.documents()
        with Reader(listing, max_bytes=max_bytes, limits=limits) as reader:
            for number, path in enumerate(listing.files, start=1):
                for document in reader.read(path):
                    seen.add(document.uri)
                    self._take(document, known.get(document.uri))
                    if progress is not None:
                        progress(AddProgress(number - 1, len(listing.files), counts.passages))
                if progress is not None:
                    progress(AddProgress(number, len(listing.files), counts.passages))
        self._batch.flush()
        pruned = (
            self._prune(roots, seen, {document_uri(path) for path in listing.files}, reader.report()) if prune else 0
        )
        if not self._store.settled():
            self._store.optimize()
        return AddReport(
            added=counts.added,
            updated=counts.updated,
            unchanged=counts.unchanged,
            pruned=pruned,
            passages=counts.passages,
            tokens=counts.tokens,
            seconds=time.perf_counter() - started,
            ingest=reader.report(),
        )

    def _take(self, document: Document, known: DocumentEntry | None) -> None:
        batch, counts = self._batch, self._counts
        if known is not None and known.content_hash == document.content_hash:
            counts.unchanged += 1
            if len(self._store.passage_ids(document.uri)) != known.passages:
                batch.finish(known)  # an update that was cut short and then taken back left passages of its own
            return
        if known is None:
            counts.added += 1
        else:
            counts.updated += 1
        stored = self._store.passage_ids(document.uri)
        total = 0
        for passage in iter_passages(document, self._model.token_spans, max_tokens=self._model.window_tokens):
            total += 1
            if passage.id not in stored:
                batch.add(passage, document)
        batch.finish(DocumentEntry(document.uri, document.content_hash, total))

    def _prune(self, roots: Sequence[Path], seen: set[str], read: set[str], report: IngestReport) -> int:
        """Remove documents under ``roots`` that were not seen although they could have been: their file was read."""
        bases = [document_uri(root) for root in roots]
        textless = {item.uri for item in report.skipped if item.reason in TEXTLESS}
        skipped = {item.uri for item in report.skipped} - textless
        gone = []
        for uri in {*self._store.documents(), *self._store.unfinished()}:
            # A file that is there but could not be read keeps what it had; one that holds no text any more does not.
            if uri in seen or (_is_there(uri) and uri not in textless):
                continue
            source = source_of(uri)
            under = any(source == base or source.startswith(base.rstrip("/") + "/") for base in bases)
            # So does a record, if its file was not looked at or the record could not be read.
            unread = source not in read or not skipped.isdisjoint((source, uri))
            if under and not (unread and _is_there(source)):
                gone.append(uri)
        self._store.remove(gone)
        return len(gone)


def remove(store: LanceStore, sources: str | Path | Iterable[str | Path]) -> int:
    """Remove documents by path, folder or uri; several or one. Needs no model.

    Returns:
        The number of documents removed.

    Raises:
        InputError: a source is empty or names nothing in the store; nothing is removed then.
    """
    uris = {*store.documents(), *store.unfinished()}
    chosen: set[str] = set()
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    for source, path in zip(given, checked_paths(given), strict=True):
        base = str(source) if str(source) in uris else document_uri(path)
        found = {uri for uri in uris if base in (uri, source_of(uri)) or uri.startswith(base.rstrip("/") + "/")}
        if not found:
            raise InputError(f"nothing in the store comes from {source}; `clara info --documents` lists what is there")
        chosen |= found
    try:
        store.remove(chosen)
        store.optimize()
    except BaseException:
        store.release()  # what could not be deleted is promised, and whoever writes next deletes it
        raise
    return len(chosen)


@dataclass(slots=True)
class _Batch:
    """Passages on their way into the store."""

    store: LanceStore
    model: ClaraModel
    counts: _Counts
    passages: list[tuple[Passage, Document]] = field(default_factory=list)
    whole: list[DocumentEntry] = field(default_factory=list)

    def add(self, passage: Passage, document: Document) -> None:
        """Take a passage; a full batch is stored."""
        self.passages.append((passage, document))
        if len(self.passages) >= PASSAGES_A_COMMIT:
            self.flush()

    def finish(self, entry: DocumentEntry) -> None:
        """Note that all passages of a document have been taken."""
        self.whole.append(entry)
        if len(self.whole) >= PASSAGES_A_COMMIT:
            self.flush()

    def flush(self) -> None:
        """Compress and store what is held, then record the documents that are whole by now."""
        if self.passages:
            texts = [prompts.passage_text(passage.title, passage.text) for passage, _ in self.passages]
            memories = self.model.compress(texts, rate=self.store.model.rate)
            self.store.add(
                [
                    IndexRow(passage, memory, document.content_hash, passage_metadata(document, passage))
                    for (passage, document), memory in zip(self.passages, memories, strict=True)
                ]
            )
            self.counts.passages += len(memories)
            self.counts.tokens += sum(memory.token_count for memory in memories)
            self.passages.clear()
        if self.whole:
            self.store.finish_documents(self.whole)
            self.whole.clear()


def checked_paths(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Several paths or one, as paths; an empty string would become the working folder."""
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if "" in given:
        raise InputError("a path is empty; write . for the working folder")
    return [Path(path) for path in given]


def _is_there(path: str) -> bool:
    """Whether a path exists; one that may not be looked at counts as there."""
    try:
        return Path(path).exists()
    except OSError:
        return True
