"""The store on disk: a folder with a LanceDB table, a ledger of complete documents, a description and a write lock.

    store.json         whose memories these are, and the format version     description.py
    passages.lance/    passages with their memories, indexes                table.py
    documents.sqlite   complete documents, promised deletions               ledger.py
    write.lock         held by the one process that writes

What this file knows is the order of steps. A process may be killed between any two: every single step is atomic, a
document enters the ledger after its passages are in the table, and what is to be deleted is promised in the ledger in
the same step that makes it superfluous; the next writer keeps the promise. So the same calls made again end in the
same store. Searches see unfinished documents and passages that are about to go; both are whole passages.

Knows no files to index and no questions; that is ``pipeline``'s business.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clara.errors import StoreError, StoreNotFoundError
from clara.index.catalogue import Catalogue, Place
from clara.index.description import LOCK_FILE, check_model, read_description, write_description
from clara.index.latent import LatentScan
from clara.index.ledger import Ledger, Stale
from clara.index.protocol import (
    DocumentEntry,
    IndexRow,
    StoreModel,
    check_complete,
    check_k,
    check_question,
    check_rows,
)
from clara.index.ranking import Ranked, best, fusion_depth, late_depth, reciprocal_rank_fusion
from clara.index.table import PassageTable
from clara.records import FloatArray, Hit, LateQuery

# Up to here every latent search is exact; above, an approximate index is built and used.
EXACT_ROWS = 100_000
# Memories kept in RAM between searches: 14,500 passages at 4x, 58,000 at 16x of SmolLM2-135M.
CACHE_BYTES = 1 << 30

# Seconds to wait for another writer: long enough for one that is closing, short enough for a user.
_LOCK_SECONDS = 2.0
# Compacting rewrites everything, so it waits until the folder is this much larger than its rows …
_WASTE_SHARE = 0.5
_WASTE_BYTES = 64 << 20
# … or until this many files make scans slow.
_FRAGMENTS = 128
# A row besides its memory: text twice, ids, and its share of the text index; only for the estimate of waste.
_TEXT_BYTES = 4096
# The approximate index is built anew when this share of rows is not in it; until then those are scanned.
_UNINDEXED_SHARE = 0.2

_TEXT_INDEX = "text_index_version"


class LanceStore:
    """A passage index in a folder; see :class:`clara.index.protocol.PassageIndex` for the methods' contracts.

    Any number of processes may read; one writes, from its first change to ``optimize`` or ``close``. A store object
    may be used from several threads; they take turns.

    Latent search is exact up to ``exact_rows`` passages. Text search leaves English stop words out and compares word
    stems, so a query of stop words alone finds nothing. After ``optimize`` the results of every exact search depend on
    the passages alone, not on the order or the number of steps in which they came; before it, BM25 scores of older
    passages do not yet count the newer ones.
    """

    def __init__(self, folder: Path, model: StoreModel, *, exact_rows: int, cache_bytes: int) -> None:
        """Open what is there; use :meth:`create` or :meth:`open`."""
        self._folder = folder
        self._model = model
        self._exact_rows = exact_rows
        self._turn = threading.RLock()
        self._lock = _write_lock(folder)
        self._ledger = Ledger(folder)
        self._table = PassageTable(folder, model)
        self._latent = LatentScan(self._table, cache_bytes=cache_bytes, row_bytes=2 * model.values)
        self._catalogue = Catalogue()
        self._catalogue_version = -1

    @classmethod
    def create(
        cls, path: Path, model: StoreModel, *, exact_rows: int = EXACT_ROWS, cache_bytes: int = CACHE_BYTES
    ) -> LanceStore:
        """Make a store, or open it if it is there.

        Args:
            path: a folder that does not exist, is empty, is a store of the same model, or was left by a creation
                that was cut short.
            model: the model whose memories it is to hold.
            exact_rows: up to this many passages latent search is exact.
            cache_bytes: memories up to this size stay in RAM between latent searches.

        Raises:
            StoreError: a file, a folder of something else, another process is writing, or no room.
            StoreModelError: a store of another model.
        """
        folder = Path(path).absolute()
        stored = read_description(folder)
        if stored is None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"the store {folder} cannot be created: {error}") from error
            with _held(_write_lock(folder), folder):
                stored = read_description(folder)  # another process may have been faster
                if stored is None:
                    write_description(folder, model)
        return cls.open(path, model, exact_rows=exact_rows, cache_bytes=cache_bytes)

    @classmethod
    def open(
        cls, path: Path, model: StoreModel | None, *, exact_rows: int = EXACT_ROWS, cache_bytes: int = CACHE_BYTES
    ) -> LanceStore:
        """Open a store.

        Args:
            path: its folder.
            model: the model in use; ``None`` takes the store as it is (``.model`` then names the model to load).
            exact_rows: as in :meth:`create`.
            cache_bytes: as in :meth:`create`.

        Raises:
            StoreNotFoundError: no store there.
            StoreModelError: a store of another model; the message names both and the remedies.
            StoreError: a folder of something else, a damaged store, or a newer format.
        """
        folder = Path(path).absolute()
        stored = read_description(folder)
        if stored is None:
            raise StoreNotFoundError(f"there is no store at {folder}; make one with: clara index PATH --store {path}")
        if model is not None:
            check_model(folder, stored, model)
        _complete_creation(folder, stored)
        return cls(folder, stored, exact_rows=exact_rows, cache_bytes=cache_bytes)

    def __enter__(self) -> LanceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> StoreModel:
        """The model whose memories the store holds."""
        return self._model

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Add or replace passages."""
        check_rows(self._model, rows)
        unique = {row.passage.id: row for row in rows}
        with self._writing() as catalogue:
            if unique:
                self._table.upsert(list(unique.values()))
            for passage_id, row in unique.items():
                catalogue.put(passage_id, Place(row.passage.document, row.content_hash))

    def passage_ids(self, uri: str) -> set[str]:
        """Ids of a document's passages, of every version."""
        with self._turn:
            return self._current().ids(uri)

    def finish_document(self, entry: DocumentEntry) -> None:
        """Record a document as complete and drop its other versions."""
        self.finish_documents([entry])

    def finish_documents(self, entries: Sequence[DocumentEntry]) -> None:
        """Record documents as complete and drop their other versions."""
        with self._writing() as catalogue:
            for entry in entries:
                check_complete(entry, catalogue.version_count(entry.uri, entry.content_hash))
            promises = [Stale(e.uri, e.content_hash) for e in entries if catalogue.ids_except(e.uri, e.content_hash)]
            self._ledger.finish(entries, promises)
            self._keep(catalogue, promises)

    def documents(self) -> dict[str, DocumentEntry]:
        """The complete documents by uri.

        An entry counts only if its passages are all there, so a table that lost rows (a folder copied in part, a
        machine that lost power) makes documents incomplete instead of wrong.
        """
        with self._turn:
            catalogue = self._current()
            return {
                uri: entry
                for uri, entry in self._ledger.complete().items()
                if catalogue.version_count(uri, entry.content_hash) == entry.passages
            }

    def unfinished(self) -> set[str]:
        """Documents with passages that are not complete."""
        with self._turn:
            return self._current().documents() - self.documents().keys()

    def remove(self, uris: Iterable[str]) -> int:
        """Remove documents; returns the number of passages removed."""
        listed = sorted(set(uris))
        with self._writing() as catalogue:
            removed = sum(len(catalogue.ids(uri)) for uri in listed)
            self._ledger.forget(listed)
            self._keep(catalogue, [Stale(uri, None) for uri in listed])
        return removed

    def count(self) -> int:
        """Number of passages."""
        with self._turn:
            self._table.refresh()
            return self._table.count()

    def get(self, passage_ids: Sequence[str]) -> list[IndexRow]:
        """Passages by id, in the order asked for."""
        with self._turn:
            self._table.refresh()
            found = self._table.rows(passage_ids)
        missing = [passage_id for passage_id in passage_ids if passage_id not in found]
        if missing:
            raise StoreError(f"the store {self._folder} has no passage {missing[0]} ({len(missing)} missing)")
        return [found[passage_id] for passage_id in passage_ids]

    def search_latent(self, vector: FloatArray, k: int, *, late: LateQuery | None = None) -> list[Hit]:
        """The ``k`` passages of highest cosine."""
        check_k(k)
        check_question(self._model, vector, late)
        with self._turn:
            return self._hits(self._rank_latent(vector, k, self._table.refresh(), late))

    def search_text(self, query: str, k: int) -> list[Hit]:
        """The ``k`` passages of highest BM25."""
        check_k(k)
        with self._turn:
            self._table.refresh()
            return self._hits(self._rank_text(query, k))

    def search_hybrid(
        self, vector: FloatArray, query: str, k: int, *, late: LateQuery | None = None, latent_weight: float = 1.0
    ) -> list[Hit]:
        """Reciprocal rank fusion of both searches."""
        check_k(k)
        check_question(self._model, vector, late)
        depth = fusion_depth(k)
        with self._turn:
            version = self._table.refresh()
            rankings = (self._rank_latent(vector, depth, version, late), self._rank_text(query, depth))
            return self._hits(reciprocal_rank_fusion(rankings, weights=(latent_weight, 1.0))[:k])

    def settled(self) -> bool:
        """Whether no change, of this process or of one that was killed, waits for ``optimize``."""
        with self._turn:
            return not self._lock.is_locked and self._ledger.fact(_TEXT_INDEX) == self._table.refresh()

    def optimize(self) -> None:
        """End a round of changes: compact if worth while, bring indexes up to date, let other processes write.

        Compacting needs room for the store once more, and memory for some thousands of rows. Versions of the last five
        minutes stay for a later call to delete, so that searches of other processes come to their end; one that reads
        an older version at that moment fails, and may be asked again.
        """
        with self._writing():
            rows = self._table.count()
            live = rows * (2 * self._model.values + _TEXT_BYTES)
            waste = self._table.bytes_on_disk() - live
            if waste > max(_WASTE_BYTES, _WASTE_SHARE * live) or self._table.fragments() > _FRAGMENTS:
                self._table.compact()
            if self._ledger.fact(_TEXT_INDEX) != self._table.refresh():
                self._table.build_text_index()
                self._index_memories(rows)
                self._ledger.remember(_TEXT_INDEX, self._table.refresh())
            self._catalogue_version = self._table.refresh()
        self._release()

    def keep_promises(self) -> None:
        """Delete what a call that was cut short had promised to delete: only then is ``passage_ids`` what will stay."""
        with self._turn:
            if self._ledger.stale():
                with self._writing() as catalogue:
                    self._keep(catalogue, self._ledger.stale())

    def release(self) -> None:
        """Let other processes write although changes wait for ``optimize``, as after a call that failed."""
        with self._turn:
            self._release()

    def close(self) -> None:
        """Give the write lock and all caches back."""
        with self._turn:
            self._latent.clear()
            self._release()
            self._table.close()

    def _index_memories(self, rows: int) -> None:
        """Build the approximate index where it is wanted and old or missing."""
        if rows <= self._exact_rows:
            return
        unindexed = self._table.unindexed("memory")
        if unindexed is None or unindexed > _UNINDEXED_SHARE * rows:
            self._table.build_vector_index()

    def _rank_latent(self, vector: FloatArray, k: int, version: int, late: LateQuery | None) -> list[Ranked]:
        """Best ``k`` by cosine, or by late interaction among those that are near by cosine."""
        if late is None:
            return self._rank_whole(vector, k, version)
        near = self._rank_whole(vector, late_depth(k), version)
        return self._latent.reorder([item.id for item in near], late, k)

    def _rank_whole(self, vector: FloatArray, k: int, version: int) -> list[Ranked]:
        """Best ``k`` by cosine: exact, or exact among what the approximate index hands over."""
        rows = self._table.count()
        if rows > self._exact_rows and self._table.unindexed("memory") is not None:
            return best(self._latent.score(self._table.nearest(vector, fusion_depth(k)), vector), k)
        return self._latent.search(vector, k, version=version, rows=rows)

    def _rank_text(self, query: str, k: int) -> list[Ranked]:
        """Best ``k`` by BM25: asks for more until everything that ties with the last place has been seen."""
        limit = fusion_depth(k)
        while True:
            found = self._table.search_text(query, limit)
            ranked = best(found, k)
            if len(found) < limit or min(item.score for item in found) < ranked[-1].score:
                return ranked
            limit *= 4

    def _hits(self, ranked: Sequence[Ranked]) -> list[Hit]:
        """Ranked ids with their passages and memories."""
        rows = self._table.rows([item.id for item in ranked])
        found = [(item.score, rows[item.id]) for item in ranked]
        return [Hit(row.passage, score, row.memory, row.metadata) for score, row in found]

    def _current(self) -> Catalogue:
        """The catalogue of the newest version."""
        version = self._table.refresh()
        if version != self._catalogue_version:
            self._catalogue = Catalogue(self._table.places())
            self._catalogue_version = version
        return self._catalogue

    @contextmanager
    def _writing(self) -> Iterator[Catalogue]:
        """One change: takes the write lock if this store does not hold it yet, and keeps old promises first.

        Yields:
            The catalogue, which the change must bring up to date.
        """
        with self._turn:
            if not self._lock.is_locked:
                _acquire(self._lock, self._folder)
                try:
                    self._begin()
                except BaseException:
                    self._release()
                    raise
            catalogue = self._current()
            self._catalogue_version = -1  # if the change fails half-way, the catalogue is read again
            yield catalogue
            self._catalogue_version = self._table.refresh()

    def _begin(self) -> None:
        """What a writer does before its first change: keep promises, and see to it that words can be searched."""
        if self._table.unindexed("lexical") is None:
            # An empty index is enough: LanceDB splits and scores new rows by the settings of the index there is.
            self._table.build_text_index()
        self._keep(self._current(), self._ledger.stale())
        self._catalogue_version = self._table.refresh()

    def _keep(self, catalogue: Catalogue, promises: Sequence[Stale]) -> None:
        """Delete the passages that promises name, from table and catalogue, then strike the promises out."""
        if not promises:
            return
        doomed = sorted(set().union(*(catalogue.ids_except(p.uri, p.keep_hash) for p in promises)))
        if doomed:
            self._table.delete(doomed)
            catalogue.drop(doomed)
        self._ledger.deleted(promises)

    def _release(self) -> None:
        """Let other processes write."""
        if self._lock.is_locked:
            self._lock.release()


def _write_lock(folder: Path) -> FileLock:
    """The write lock of a folder; any thread may take and release it."""
    return FileLock(folder / LOCK_FILE, timeout=_LOCK_SECONDS, thread_local=False)


def _acquire(lock: FileLock, folder: Path) -> None:
    """Take the write lock."""
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"another process is writing to the store {folder}; wait until it ends, or use another --store"
        ) from None
    except OSError as error:
        raise StoreError(f"the store {folder} cannot be written: {error}") from error


@contextmanager
def _held(lock: FileLock, folder: Path) -> Iterator[None]:
    """Hold a write lock for a while."""
    _acquire(lock, folder)
    try:
        yield
    finally:
        lock.release()


def _complete_creation(folder: Path, model: StoreModel) -> None:
    """Make what a store still lacks: nothing, unless its creation was cut short."""
    ledger = Ledger(folder)
    if ledger.exists() and PassageTable.exists(folder):
        return
    with _held(_write_lock(folder), folder):
        ledger.create()
        PassageTable.create(folder, model)
