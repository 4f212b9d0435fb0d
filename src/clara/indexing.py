"""Files into a store: read, split, compressed, committed; changed ones again, gone ones removed.

Knows neither files' formats, nor tensors, nor tables; those are its rooms'. Answers are ``answering``'s.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from clara import prompts
from clara.errors import InputError, StoreError
from clara.index import DocumentEntry, IndexRow, LanceStore
from clara.ingest import (
    DEFAULT_LIMITS,
    DEFAULT_MAX_BYTES,
    TEXTLESS,
    FileListing,
    IngestReport,
    Reader,
    ReadLimits,
    document_uri,
    find_files,
    iter_passages,
    passage_metadata,
    source_of,
    text_share,
)
from clara.model import ClaraModel
from clara.records import Document, Memory, Passage

if TYPE_CHECKING:
    from clara.ray_engine import RayEngine

_PASSAGES_A_BATCH = 64  # passages compressed at once: enough to sort by length
_FIRST_BATCH = 8  # passages: within seconds a run shows that it can write, and how fast it goes
_COMMIT_SECONDS = 30.0
# What a kill costs at most, besides a batch: seconds of work, or so many bytes of memories held back. The first batch
# is stored at once.
_COMMIT_BYTES = 64 << 20
# Memories of documents that changed or went are kept up to this size, for the documents that hold their text now.
_KEPT_BYTES = 256 << 20
# What an estimate of the passages to come leans on before a run has seen more itself.
_PRIOR_BYTES = 1 << 16  # of each kind of files
_PRIOR_PASSAGES = 4
_CHARACTERS_A_TOKEN = 4  # of English


@dataclass(frozen=True, slots=True)
class AddProgress:
    """Progress of ``Clara.add``.

    Attributes:
        files: read so far, of ``files_total``.
        passages: compressed so far.
        passages_expected: about how many it will be at the end, by the bytes of the files that are left and what files
            of their kinds hold; None before the first. Files that turn out to be unchanged make it fewer.
        seconds: since the call.
    """

    files: int
    files_total: int
    passages: int
    passages_expected: int | None = None
    seconds: float = 0.0

    @property
    def passages_per_second(self) -> float:
        """Passages compressed a second, of the whole call."""
        return self.passages / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the time to the end; None before the first passage is compressed."""
        if not self.passages or self.passages_expected is None:
            return None
        return max(0.0, self.seconds * (self.passages_expected / self.passages - 1))


@dataclass(frozen=True, slots=True)
class AddReport:
    """Result of ``Clara.add``.

    Attributes:
        pruned: documents that were removed because their source is gone.
        reused: passages that took their memory from the store: moved, renamed or copied documents, and unchanged parts
            of changed ones.
        tokens: tokens of those compressed, titles included.
        ingest: what was read, and what was skipped and why.
    """

    added: int
    updated: int
    unchanged: int
    pruned: int
    passages: int
    reused: int
    tokens: int
    seconds: float
    ingest: IngestReport


@dataclass(slots=True)
class _Counts:
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    passages: int = 0
    reused: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the files, ``number`` 1 to ``count``, for a machine with a store of its own.

    A file's part follows from its path alone, so files that come or go move no others.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"a shard is I/N with I from 1 to N, as 1/4, got {self.number}/{self.count}")

    def holds(self, path: Path) -> bool:
        """True if a file belongs to this part."""
        return zlib.crc32(document_uri(path).encode("utf-8", "surrogateescape")) % self.count == self.number - 1


class Source(Protocol):
    """Source of a run's documents and of the memories of their passages."""

    def __enter__(self) -> Source: ...
    def __exit__(self, *_: object) -> None: ...

    def read(self, path: Path) -> Iterator[Document]:
        """The documents of the next file of the listing."""

    def compress(self, texts: Sequence[str]) -> list[Memory]:
        """Memories of texts of the documents read last."""

    def report(self) -> IngestReport:
        """Counts of what was read so far."""


class _Here(Reader):
    """This process, with the model that it has."""

    def __init__(
        self, listing: FileListing, model: ClaraModel, *, rate: int, max_bytes: int, limits: ReadLimits
    ) -> None:
        super().__init__(listing, max_bytes=max_bytes, limits=limits)
        self._model, self._rate = model, rate

    def __enter__(self) -> _Here:
        return self

    def compress(self, texts: Sequence[str]) -> list[Memory]:
        """Memories of texts."""
        return self._model.compress(texts, rate=self._rate)


class Indexer:
    """A run of ``Clara.add``, from files into the store."""

    def __init__(self, store: LanceStore, model: ClaraModel) -> None:
        self._store = store
        self._model = model
        self._counts = _Counts()
        self._batch = _Batch(store, self._counts)
        self._extent = _Extent((), 0, self._counts, None, window_tokens=model.window_tokens)
        self._sources: dict[str, str] = {}  # uri of a document in the store by its content hash

    def add(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        prune: bool,
        max_bytes: int | None,
        limits: ReadLimits | None,
        shard: Shard | None,
        engine: RayEngine | None,
        progress: Callable[[AddProgress], None] | None,
    ) -> AddReport:
        """Arguments, result and errors as ``Clara.add``."""
        started = time.perf_counter()
        roots = _checked_paths(paths)
        max_bytes = DEFAULT_MAX_BYTES if max_bytes is None else max_bytes
        listing = find_files(roots)
        if shard is not None:
            listing = replace(listing, files=tuple(path for path in listing.files if shard.holds(path)))
        extent = self._extent = _Extent(
            listing.files, max_bytes, self._counts, progress, window_tokens=self._model.window_tokens
        )
        counts, seen = self._counts, set[str]()
        self._store.begin()
        known = self._store.documents()
        self._sources = {entry.content_hash: entry.uri for entry in known.values()}
        with self._source(listing, engine, max_bytes=max_bytes, limits=limits or DEFAULT_LIMITS) as reader:
            self._batch.compress = reader.compress
            for number, path in enumerate(listing.files, start=1):
                for document in reader.read(path):
                    seen.add(document.uri)
                    self._take(document, known.get(document.uri))
                extent.end_file(number)
            self._batch.commit()
        extent.report()
        pruned = (
            self._prune(roots, seen, {document_uri(path) for path in listing.files}, reader.report()) if prune else 0
        )
        self._store.optimize()
        seconds = time.perf_counter() - started
        return AddReport(**asdict(counts), pruned=pruned, seconds=seconds, ingest=reader.report())

    def _source(self, listing: FileListing, engine: RayEngine | None, *, max_bytes: int, limits: ReadLimits) -> Source:
        rate = self._store.model.rate
        if engine is None:
            return _Here(listing, self._model, rate=rate, max_bytes=max_bytes, limits=limits)
        return engine.open(listing, self._model, rate=rate, known=self._sources, max_bytes=max_bytes, limits=limits)

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
        source = self._sources.get(document.content_hash)
        batch.reuse(stored if source is None else stored | self._store.passage_ids(source))
        total = 0
        for passage in iter_passages(document, self._model.token_spans, max_tokens=self._model.window_tokens):
            total += 1
            if passage.id not in stored:
                batch.add(passage, document)
                self._extent.take(document, passage)
        self._extent.end_document(document)
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
    """Remove documents by path, folder or uri, several or one; returns how many. Needs no model.

    Raises:
        InputError: a source is empty or names nothing in the store; nothing is removed then.
    """
    uris = {*store.documents(), *store.unfinished()}
    chosen: set[str] = set()
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    for source, path in zip(given, _checked_paths(given), strict=True):
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


class _Batch:
    """Passages on their way into the store: taken, given a memory, then committed with the documents that are whole.

    ``compress`` makes memories of texts; set before the first passage is taken.
    """

    compress: Callable[[Sequence[str]], list[Memory]]

    def __init__(self, store: LanceStore, counts: _Counts) -> None:
        self._store = store
        self._counts = counts
        self._taken: list[tuple[Passage, Document]] = []
        self._sources: set[str] = set()  # ids of passages whose memories may be wanted again
        self._kept: dict[str, Memory] = {}  # memories of the store by what was compressed, oldest first
        self._kept_bytes = 0
        self._rows: list[IndexRow] = []
        self._whole: list[DocumentEntry] = []
        self._due = 0.0
        self._size = min(_FIRST_BATCH, _PASSAGES_A_BATCH)

    def reuse(self, passage_ids: set[str]) -> None:
        """Name passages in the store whose memories fit passages that have the same text, of whatever document."""
        self._sources |= passage_ids

    def add(self, passage: Passage, document: Document) -> None:
        """Take a passage; a full batch gets its memories."""
        self._taken.append((passage, document))
        if len(self._taken) >= self._size:
            self._flush()
            self._size = _PASSAGES_A_BATCH

    def finish(self, entry: DocumentEntry) -> None:
        """Note that all passages of a document have been taken."""
        self._whole.append(entry)
        if len(self._whole) >= _PASSAGES_A_BATCH:
            self._flush()

    def commit(self) -> None:
        """Store what is held, then record the documents that are whole by now."""
        self._remember()
        if self._rows or self._whole:
            self._store.add(self._rows)
            self._store.finish_documents(self._whole)
        self._rows, self._whole = [], []
        self._due = time.monotonic() + _COMMIT_SECONDS

    def _flush(self) -> None:
        """Give memories to the passages taken; commit if that is due."""
        self._remember()
        held = len(self._rows) * 4 * self._store.model.values
        if time.monotonic() >= self._due or held >= _COMMIT_BYTES:
            self.commit()

    def _remember(self) -> None:
        """Memories of the passages taken: those of the same text, else made now."""
        self._keep()
        texts = [prompts.passage_text(passage.title, passage.text) for passage, _ in self._taken]
        new = [text for text in texts if text not in self._kept]
        made = self.compress(new) if new else []
        unused = iter(made)
        for text, (passage, document) in zip(texts, self._taken, strict=True):
            memory = self._kept[text] if text in self._kept else next(unused)
            self._rows.append(IndexRow(passage, memory, document.content_hash, passage_metadata(document, passage)))
        self._counts.passages += len(new)
        self._counts.reused += len(texts) - len(new)
        self._counts.tokens += sum(memory.token_count for memory in made)
        self._taken = []

    def _keep(self) -> None:
        """Read the memories that may be wanted again, before they are deleted."""
        wanted, self._sources = sorted(self._sources), set()
        try:
            rows = self._store.get(wanted) if wanted else []
        except StoreError:
            return  # a damaged row: its text is compressed again
        for row in rows:
            text = prompts.passage_text(row.passage.title, row.passage.text)
            if text not in self._kept:
                self._kept[text] = row.memory
                self._kept_bytes += row.memory.values.nbytes
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= self._kept.pop(next(iter(self._kept))).values.nbytes


@dataclass(slots=True)
class _Kind:
    """Files of one suffix: the bytes that are left of them, and what those gave that were new."""

    usual: float | None  # characters of text a byte
    left: float = 0.0
    bytes: float = 0.0
    characters: float = 0.0

    def expected(self, others: float) -> float:
        """Characters of the bytes that are left; ``others`` is how many a byte of other kinds gave."""
        prior = 0 if self.usual is None else _PRIOR_BYTES
        if not prior + self.bytes:
            return self.left * others
        return self.left * ((self.usual or 0.0) * prior + self.characters) / (prior + self.bytes)


class _Extent:
    """Share of a run that is done, by the bytes of its files, and its listener."""

    def __init__(
        self,
        files: Sequence[Path],
        max_bytes: int,
        counts: _Counts,
        tell: Callable[[AddProgress], None] | None,
        *,
        window_tokens: int,
    ) -> None:
        self._sizes = [_size(path, max_bytes) for path in files]
        self._suffixes = [path.suffix.lower() for path in files]
        self._kinds = {suffix: _Kind(text_share(suffix)) for suffix in self._suffixes}
        for suffix, size in zip(self._suffixes, self._sizes, strict=True):
            self._kinds[suffix].left += size
        self._counts = counts
        self._tell = tell
        self._window_tokens = window_tokens
        self._files = 0
        self._taken = 0  # passages
        self._ended = 0  # characters of the documents of the file begun that are done
        self._share, self._characters = 0.0, 0  # of the file begun, as far as it has been taken
        self._told = 0  # passages compressed when somebody was told last
        self._started = time.perf_counter()

    def take(self, document: Document, passage: Passage) -> None:
        """Note that a passage was taken; tell if more have been compressed since."""
        self._taken += 1
        characters = self._ended + passage.end
        if source_of(document.uri) == document.uri:
            self._advance(passage.end / len(document.text), characters)
        else:  # a record of a file of many, whose text is most of the file
            self._advance(min(1.0, characters / max(1, self._sizes[self._files])), characters)
        if self._counts.passages != self._told:
            self.report()

    def end_document(self, document: Document) -> None:
        """Note that all passages of a document have been taken."""
        self._ended += len(document.text)

    def end_file(self, number: int) -> None:
        """Note that ``number`` files have been read."""
        if self._share:
            self._advance(1.0, self._ended)
        else:  # nothing in it was new
            self._kinds[self._suffixes[number - 1]].left -= self._sizes[number - 1]
        self._files, self._ended = number, 0
        self._share, self._characters = 0.0, 0
        self.report()

    def report(self) -> None:
        """Tell how far the run is."""
        if self._tell is None:
            return
        self._told = self._counts.passages
        seconds = time.perf_counter() - self._started
        self._tell(AddProgress(self._files, len(self._sizes), self._told, self._expected(), seconds))

    def _advance(self, share: float, characters: int) -> None:
        kind, step = self._kinds[self._suffixes[self._files]], share - self._share
        kind.left -= step * self._sizes[self._files]
        kind.bytes += step * self._sizes[self._files]
        kind.characters += characters - self._characters
        self._share, self._characters = share, characters

    def _expected(self) -> int | None:
        """Passages at the end: as many a character as so far, and a few as they usually are."""
        if not self._taken:
            return None
        kinds = self._kinds.values()
        characters = sum(kind.characters for kind in kinds)
        others = characters / max(1.0, sum(kind.bytes for kind in kinds))
        usual = _PRIOR_PASSAGES * _CHARACTERS_A_TOKEN * self._window_tokens
        a_character = (_PRIOR_PASSAGES + self._taken) / (usual + characters)
        return round(self._taken + a_character * max(0.0, sum(kind.expected(others) for kind in kinds)))


def _size(path: Path, most: int) -> int:
    """Bytes of a file; none where it will not be read."""
    try:
        size = path.stat().st_size
    except OSError:
        return 0
    return size if size <= most else 0


def _checked_paths(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Several paths or one, as paths; an empty string would become the working folder."""
    given = list(paths) if isinstance(paths, Iterable) and not isinstance(paths, str) else [paths]
    wrong = [path for path in given if not isinstance(path, str | Path)]
    if wrong:
        raise InputError(f"a path is a text or a Path, got {wrong[0]!r}")
    if "" in given:
        raise InputError("a path is empty; write . for the working folder")
    if any("\0" in str(path) for path in given):
        raise InputError("a path holds the character 0, which no path can")
    return [Path(path) for path in given]


def _is_there(path: str) -> bool:
    """True if a path exists; one without read permission counts as existing."""
    try:
        return Path(path).exists()
    except OSError:
        return True
