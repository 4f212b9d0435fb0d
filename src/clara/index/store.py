"""The store on disk: a folder with a LanceDB table, a ledger of complete documents, a description and a write lock.

    store.json         whose memories these are, the codec, the format version     folder.py
    documents.sqlite   complete documents, promised deletions                      folder.py
    write.lock         held by the one process that writes                         folder.py
    passages.lance/    passages with their memories, indexes                       table.py
    codebook.npz       what a codec learnt, if it learns                           codecs.py
    search.faiss       a quantised copy of a large search column                   latent.py, quantised.py

What this file knows is the order of steps. A process may be killed between any two: every single step is atomic, a
document enters the ledger after its passages are in the table, and what is to be deleted is promised in the ledger in
the same step that makes it superfluous; the next writer keeps the promise. So the same calls made again end in the
same store. Searches see unfinished documents and passages that are about to go; both are whole passages.

Knows no files to index and no questions; that is ``pipeline``'s business.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from clara.errors import ConfigError, InputError, StoreError, StoreModelError, StoreNotFoundError
from clara.index.codecs import DEFAULT_CODEC, check_codec
from clara.index.folder import (
    SETTLED,
    Catalogue,
    Description,
    Ledger,
    WriteLock,
    complete_upgrade,
    read_description,
    store_folder,
    write_description,
)
from clara.index.latent import LatentSearch
from clara.index.ranking import Ranked, best, by_words, fusion_depth, reciprocal_rank_fusion
from clara.index.rows import DocumentEntry, IndexRow, StoreModel, is_lexical_text, lexical_text
from clara.index.table import Format, PassageTable
from clara.records import DocumentSize, Hit, QueryMemory, StoredText

_T = TypeVar("_T")

# A search column up to this size is compared whole: 29,000 passages of SmolLM2-135M, 9 ms of one core. Beyond, a
# quantised column is built and compared (``quantised``).
_EXACT_BYTES = 32 << 20

# A run leaves at most this share of the live bytes, or so many bytes, of old versions and deleted rows …
_WASTE_SHARE = 0.1
_WASTE_BYTES = 1 << 20
# … and at most so many files, or one for so many rows: each that a question reads memories from costs it 0.2 ms of CPU.
_FRAGMENTS = 32
_FRAGMENT_ROWS = 100_000
# While it runs, one for so many. Compacting rewrites every row, so a run that writes small commits does it after its
# rows have grown by a share, not after a number of commits.
_RUNNING_FRAGMENT_ROWS = 256
_COMMITS_A_CHECK = 32
# A store up to this size has its text index built anew after each run, which makes scores a function of the rows alone.
# Beyond, so many rows may wait outside of it; LanceDB reads them one by one.
_SMALL_ROWS = 20_000
_UNINDEXED_ROWS = 1000

# Passages read behind the last place of a text search, in the hope that what ties with it ends among them.
_TIES = 16

_DELETED = "deleted_rows"


class LanceStore:
    """Passages of documents with their memories, searched by memory, by words, or by both.

    The order of calls for one document: ``passage_ids`` tells what is there already, ``add`` brings the rest (in as
    many calls as wanted, several documents mixed), ``finish_documents`` makes it complete. Doing that again, or again
    from the start after the process was killed, ends in the same store. All searches order by falling score, equal
    scores by passage id, and find nothing in an empty store.

    Any number of processes may read; one writes, from its first change to ``optimize`` or ``close``. A store object
    may be used from several threads; they take turns.

    Latent search compares all passages while the search column is at most ``exact_bytes``; beyond, a quantised copy of
    it finds those that are compared by their memories. Text search leaves English stop words
    out and compares word stems, so a query of stop words alone finds nothing. After ``optimize`` the results of every
    exact search in a store of up to 20,000 passages depend on the passages alone, not on the order or the number of
    steps in which they came; before it, BM25 scores of older passages do not yet count the newer ones.

    Every row that is read is compared with its checksum; one that is damaged is an error, never a result.
    """

    def __init__(self, folder: Path, described: Description, *, exact_bytes: int) -> None:
        """Open what is there; use :meth:`create` or :meth:`open`."""
        self._folder = folder
        self._described = described
        self._model = described.model
        self._process = os.getpid()
        self._turn = threading.RLock()
        self._lock = WriteLock(folder)
        self._ledger = Ledger(folder)
        self._form = Format.of(folder, described.model, described.codec)
        self._table = PassageTable(folder, self._form)
        self._latent = LatentSearch(self._table, self._form.column, folder, exact_bytes=exact_bytes)
        self._catalogue: _Catalogued | None = None
        self._damaged: list[int] = []  # key checksums of the rows that the catalogue leaves out
        self._commits = 0

    @classmethod
    def create(
        cls, path: Path, model: StoreModel, *, codec: str | None = None, exact_bytes: int = _EXACT_BYTES
    ) -> LanceStore:
        """Make a store, or open it if it is there.

        Args:
            path: a folder that does not exist, is empty, is a store of the same model, or was left by a creation that
                was cut short.
            model: the model whose memories it is to hold.
            codec: one of ``codecs.CODECS``; fp16 when None. A store that is there keeps its own.
            exact_bytes: up to this size the search column is searched whole.

        Raises:
            StoreError: a file, a folder of something else, an address, another process is writing, or no room.
            StoreModelError: a store of another model.
            ConfigError: there is no such codec, or the store that is there has another.
        """
        check_codec(codec)
        folder = store_folder(path)
        complete_upgrade(folder)
        stored = read_description(folder)
        if stored is None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"the store {folder} cannot be created: {error}") from error
            with WriteLock(folder):
                stored = read_description(folder)  # another process may have been faster
                if stored is None:
                    write_description(folder, Description(model, codec or DEFAULT_CODEC))
        opened = cls.open(path, model, exact_bytes=exact_bytes)
        if codec is not None and codec != opened.codec:
            opened.close()
            raise ConfigError(
                f"the store {folder} holds memories as {opened.codec}, not {codec}; leave the codec out, or convert "
                f"the store without compressing anything again: clara upgrade {path} --codec {codec}"
            )
        return opened

    @classmethod
    def open(cls, path: Path, model: StoreModel | None, *, exact_bytes: int = _EXACT_BYTES) -> LanceStore:
        """Open a store; without a model it is taken as it is (``.model`` then names the model to load).

        Raises:
            StoreNotFoundError: no store there.
            StoreModelError: another model filled it; the message names both and the remedies.
            StoreError: a folder of something else, an address, a damaged store, or another format.
        """
        folder = store_folder(path)
        complete_upgrade(folder)
        stored = read_description(folder)
        if stored is None:
            raise StoreNotFoundError(f"there is no store at {folder}; make one with: clara index PATH --store {path}")
        if model is not None:
            _check_model(folder, stored.model, model)
        _complete_creation(folder, stored)
        return cls(folder, stored, exact_bytes=exact_bytes)

    def check_model(self, model: StoreModel) -> None:
        """Refuse another model than the one that filled the store (StoreModelError: names both and the remedies)."""
        _check_model(self._folder, self._model, model)

    def __enter__(self) -> LanceStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> StoreModel:
        """The model whose memories the store holds."""
        return self._model

    @property
    def codec(self) -> str:
        """Codec of memories."""
        return self._described.codec

    @property
    def memory_bytes(self) -> int:
        """Bytes of one stored memory."""
        return self._form.codec.memory_bytes

    def begin(self) -> None:
        """Take the write lock for a round of changes, which ``optimize`` ends, and finish what was cut short before.

        Raises:
            StoreError: another process is writing.
        """
        with self._writing():
            pass

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Add passages; one that is there already (same id) is replaced.

        Raises:
            StoreModelError: a memory of another model, rate or shape; nothing is added.
            StoreError: a value beyond fp16, or the store cannot be written.
        """
        self._model.check_rows(rows)
        unique = {row.passage.id: row for row in rows}
        with self._writing() as catalogue:
            if unique:
                self._form.codec.prepare(np.stack([row.memory.values for row in unique.values()]))
            known = [row for passage_id, row in unique.items() if passage_id in catalogue]
            new = [row for passage_id, row in unique.items() if passage_id not in catalogue]
            self._table.replace(known)
            self._table.append(new)
            for passage_id, row in unique.items():
                catalogue.put(passage_id, row.passage.document, row.content_hash)
            self._commits += 1
            if self._commits % _COMMITS_A_CHECK == 0 and self._scattered(_RUNNING_FRAGMENT_ROWS):
                self._table.compact()

    def passage_ids(self, uri: str) -> set[str]:
        """Ids of a document's passages, of every version."""
        with self._turn:
            return self._current().ids(uri)

    def finish_documents(self, entries: Sequence[DocumentEntry]) -> None:
        """Record documents, each uri once, as complete and drop their passages of other versions.

        Raises:
            StoreError: the store does not hold ``passages`` passages of one of them; none is recorded.
        """
        with self._writing() as catalogue:
            for entry in entries:
                entry.check_complete(catalogue.version_count(entry.uri, entry.content_hash))
            promises: dict[str, str | None] = {
                e.uri: e.content_hash for e in entries if catalogue.ids_except(e.uri, e.content_hash)
            }
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
        """Documents of which passages are in the store but which are not complete (indexing was cut short)."""
        with self._turn:
            return self._current().documents() - self.documents().keys()

    def remove(self, uris: Iterable[str]) -> int:
        """Remove documents, complete or not.

        Returns:
            The number of passages removed; an unknown uri counts nothing.
        """
        listed = sorted(set(uris))
        with self._writing() as catalogue:
            removed = sum(len(catalogue.ids(uri)) for uri in listed)
            self._ledger.forget(listed)
            self._keep(catalogue, dict.fromkeys(listed))
        return removed

    def count(self) -> int:
        """Number of passages."""
        return self._read(lambda _: self._table.count())

    def get(self, passage_ids: Sequence[str]) -> list[IndexRow]:
        """Passages by id, in the order asked for (StoreError: an id is not in the store)."""
        found = self._read(lambda _: self._table.rows_by_id(passage_ids))
        missing = [passage_id for passage_id in passage_ids if passage_id not in found]
        if missing:
            raise StoreError(f"the store {self._folder} has no passage {missing[0]} ({len(missing)} missing)")
        return [found[passage_id] for passage_id in passage_ids]

    def texts(self, uri: str) -> list[StoredText]:
        """The passages of a complete document in order, without their memories; none where it is not complete."""
        entry = self.documents().get(uri)
        return [] if entry is None else self._read(lambda _: self._table.texts(uri, entry.content_hash))

    def sizes(self) -> dict[str, DocumentSize]:
        """Size of each complete document that has a text, by uri."""
        entries = self.documents()
        sizes = self._read(lambda _: self._table.sizes())
        found = {uri: sizes.get((uri, entry.content_hash)) for uri, entry in entries.items()}
        return {uri: size for uri, size in found.items() if size is not None}

    def rows(self) -> Iterator[IndexRow]:
        """Every passage, in no particular order (StoreError: one is damaged)."""
        return self._table.all_rows()

    def search_latent(self, query: QueryMemory, k: int, *, within: Collection[str] | None = None) -> list[Hit]:
        """The ``k`` passages whose flattened memories have the highest cosine with ``query.search_vector()``.

        Where the question has a centre, the best :func:`clara.index.ranking.late_depth` of them are put in order anew
        by late interaction (:func:`clara.similarity.covering`), whose score they then have. A question of zeros has
        cosine 0 with everything. ``within``: uris of documents whose passages alone are found; None for all.

        Raises:
            StoreError: the question is of another shape or model.
            InputError: ``k`` is below 1.
        """
        _check_k(k)
        self._model.check_query(query)
        return self._read(lambda version: self._hits(self._latent.search(query, k, version=version, within=within)))

    def search_text(self, words: str, k: int, *, within: Collection[str] | None = None) -> list[Hit]:
        """The ``k`` passages with the highest BM25 score over title and text, of stems, words and neighbouring words.

        ``words`` are plain words: no character in them has a meaning of its own. Only passages that share a word with
        them are found. Stems choose ``fusion_depth(k)`` passages, which :func:`clara.index.ranking.by_words` puts in
        order. ``within`` as in :meth:`search_latent`.

        Raises:
            InputError: ``k`` is below 1.
        """
        _check_k(k)
        return self._read(lambda _: self._hits(self._rank_text(words, fusion_depth(k), within)[:k]))

    def search_hybrid(
        self,
        query: QueryMemory,
        words: str,
        k: int,
        *,
        latent_weight: float = 1.0,
        within: Collection[str] | None = None,
    ) -> list[Hit]:
        """Reciprocal rank fusion of both searches, each taken to :func:`clara.index.ranking.fusion_depth` passages.

        ``latent_weight`` is what a rank by memory counts beside 1 for a rank by words; the rest, errors too, as in
        :meth:`search_latent` and :meth:`search_text`.
        """
        _check_k(k)
        self._model.check_query(query)
        depth = fusion_depth(k)

        def search(version: int) -> list[Hit]:
            latent = self._latent.search(query, depth, version=version, within=within)
            rankings = (latent, self._rank_text(words, depth, within))
            return self._hits(reciprocal_rank_fusion(rankings, weights=(latent_weight, 1.0))[:k])

        return self._read(search)

    def damaged(self) -> list[tuple[str, str]]:
        """Id and document of every passage that is not what was written; reads the whole store."""
        return self._read(lambda _: list(self._table.damaged_rows()))

    def settled(self) -> bool:
        """True if no change, of this process or of one that was killed, waits for ``optimize``."""
        with self._turn:
            return not self._lock.is_locked and self._ledger.fact(SETTLED) == self._table.refresh()

    def optimize(self) -> None:
        """End a round of changes: compact if worth while, bring indexes up to date, let other processes write.

        Compacting needs room for the store once more until it is done, and memory for some thousands of rows. What
        other processes read of an older version meanwhile, they read again.
        """
        with self._writing():
            if self._ledger.fact(SETTLED) != self._table.refresh():
                compacted = self._wasteful() or self._scattered(_FRAGMENT_ROWS)
                if compacted:
                    self._table.compact()
                    self._ledger.remember(_DELETED, 0)
                self._build_indexes(anew=compacted)
                self._ledger.remember(SETTLED, self._table.refresh())
            self._table.drop_old_indexes()
        self._lock.release()

    def release(self) -> None:
        """Let other processes write although changes wait for ``optimize``, as after a call that failed."""
        with self._turn:
            self._lock.release()

    def close(self) -> None:
        """Give the write lock and all caches back."""
        if os.getpid() != self._process:
            return  # a forked copy: lock and table are the parent's
        with self._turn:
            self._latent.clear()
            self._lock.release()
            self._table.close()

    def _build_indexes(self, *, anew: bool) -> None:
        """Build what is missing or old: text index and, where the search column is large, its quantised copy.

        Compacting has brought a text index that was there up to date.
        """
        rows = self._table.count()
        waiting = self._table.unindexed("lexical")
        if waiting is None or rows <= _SMALL_ROWS or waiting > _UNINDEXED_ROWS:
            self._table.build_text_index()
        self._latent.bring_up_to_date(anew=anew)

    def _wasteful(self) -> bool:
        """True if old versions, leftovers and deleted rows take too much room."""
        live = self._table.live_bytes()
        deleted = (self._ledger.fact(_DELETED) or 0) * self._form.row_bytes
        waste = self._table.bytes_on_disk() - live + deleted
        return waste > max(_WASTE_BYTES, _WASTE_SHARE * live)

    def _scattered(self, fragment_rows: int) -> bool:
        """True if the rows lie in more files than a few, or than one for so many rows."""
        return self._table.fragments() > max(_FRAGMENTS, self._table.count() // fragment_rows)

    def _read(self, read: Callable[[int], _T]) -> _T:
        """A read of the newest version; repeated if a writer has deleted that version's files meanwhile."""
        with self._turn:
            version = self._table.refresh()
            while True:
                try:
                    return read(version)
                except StoreError:
                    before, version = version, self._table.refresh()
                    if version == before:
                        raise

    def _rank_text(self, words: str, depth: int, within: Collection[str] | None) -> list[Ranked]:
        """The best ``depth`` by BM25 of stems, ordered by all words (``ranking.by_words``).

        Asks for more until everything that ties with the last place has been seen.
        """
        question, limit = lexical_text(words), depth + _TIES
        while True:
            found = self._table.search_text(question, limit, within=within)
            ranked = best(found, depth)
            if len(found) < limit or min(item.score for item in found) < ranked[-1].score:
                return by_words(question, ranked)
            limit *= 4

    def _hits(self, ranked: Sequence[Ranked]) -> list[Hit]:
        """Ranked ids with their passages and memories; one that was found by other words than its own is damaged."""
        rows = self._table.rows([item.place for item in ranked])

        def whole(item: Ranked) -> bool:
            row = rows.get(item.id)
            return row is not None and (
                item.words is None or is_lexical_text(item.words, row.passage.text, row.passage.title)
            )

        lost = [item.id for item in ranked if not whole(item)]
        if lost:
            raise StoreError(f"passage {lost[0]} of the store {self._folder} is damaged on disk; see clara doctor")
        found = [(item.score, rows[item.id]) for item in ranked]
        return [Hit(row.passage, score, row.memory, row.metadata) for score, row in found]

    def _current(self) -> Catalogue:
        """The catalogue of the newest version; while the lock is held, nobody else makes a newer one."""
        if self._catalogue is None or not self._lock.is_locked:
            version = self._table.refresh()
            if self._catalogue is None or self._catalogue.version != version:
                self._catalogue = _Catalogued(self._read(lambda _: self._read_catalogue()), version)
        return self._catalogue.passages

    def _read_catalogue(self) -> Catalogue:
        """The catalogue of all rows that are whole; their keys are not held twice."""
        catalogue = Catalogue()
        self._damaged = []
        for key in self._table.keys():  # noqa: SIM118 - no dictionary
            if isinstance(key, int):
                self._damaged.append(key)
            else:
                catalogue.put(*key)
        return catalogue

    @contextmanager
    def _writing(self) -> Iterator[Catalogue]:
        """A change: takes the write lock if this store does not hold it yet, and keeps old promises first.

        Yields:
            The catalogue, which the change must bring up to date.
        """
        with self._turn:
            self._check_process()
            if not self._lock.is_locked:
                self._lock.acquire()
                try:
                    self._begin()
                except BaseException:
                    self._lock.release()
                    raise
            catalogue = self._current()
            self._catalogue = None  # if the change fails half-way, the catalogue is read again
            yield catalogue
            self._catalogue = _Catalogued(catalogue, self._table.refresh())

    def _begin(self) -> None:
        """Preparation of a writer before its first change: keep promises, and see to it that words can be searched."""
        if self._table.unindexed("lexical") is None:
            # An empty index is enough: LanceDB splits and scores new rows by the settings of the index there is.
            self._table.build_text_index()
        self._catalogue = None  # read anew with the lock held
        catalogue = self._current()
        if self._damaged:
            # Nobody can name them, so nobody else could remove them; their documents count as unfinished.
            self._table.delete(self._damaged, by="key_crc")
        self._keep(catalogue, self._ledger.promises())
        self._catalogue = _Catalogued(catalogue, self._table.refresh())

    def _check_process(self) -> None:
        """Refuse a copy of this store that ``fork`` made: its lock is the parent's."""
        if os.getpid() != self._process:
            raise StoreError(
                f"the store {self._folder} was opened before this process was forked; start the process with "
                'multiprocessing.get_context("spawn") and open the store in it'
            )

    def _keep(self, catalogue: Catalogue, promises: Mapping[str, str | None]) -> None:
        """Delete the passages that promises name, from table and catalogue, then strike the promises out."""
        if not promises:
            return
        doomed = sorted(set().union(*(catalogue.ids_except(uri, kept) for uri, kept in promises.items())))
        if doomed:
            self._table.delete(doomed)
            catalogue.drop(doomed)
            self._ledger.remember(_DELETED, (self._ledger.fact(_DELETED) or 0) + len(doomed))
        self._ledger.deleted(promises)


@dataclass(frozen=True, slots=True)
class _Catalogued:
    """A catalogue and the table's version that it is of."""

    passages: Catalogue
    version: int


def _check_k(k: int) -> None:
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}")


def _check_model(folder: Path, stored: StoreModel, wanted: StoreModel) -> None:
    """Refuse to use a store with another model than the one that filled it."""
    if not stored.fits(wanted):
        raise StoreModelError(
            f"the store {folder} holds memories of {stored.describe()}, but the model in use is {wanted.describe()}; "
            f"use --model {stored.name} at rate {stored.rate}, or index the documents again into another --store"
        )


def _complete_creation(folder: Path, described: Description) -> None:
    """Make what a store still lacks: nothing, unless its creation was cut short."""
    ledger = Ledger(folder)
    if ledger.exists() and PassageTable.exists(folder):
        return
    with WriteLock(folder):
        ledger.create()
        PassageTable.create(folder, Format.of(folder, described.model, described.codec))
