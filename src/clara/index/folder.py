"""A store's folder beside its table: what it says of itself, its write lock, and which documents it holds.

    store.json         ``Description``: format, codec, whose memories; written first, whole or not at all
    documents.sqlite   ``Ledger``: complete documents, and deletions that are promised but perhaps not done
    write.lock         ``WriteLock``
    upgrade.ready/     an upgraded store that is whole and has only to take the folder's place

Format 1 held memories as fp16 without checksums; ``rewrite.upgrade`` brings its stores to format 2. In what order
things happen is ``store``'s business.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from clara.errors import StoreError
from clara.index.codecs import CODEBOOK_FILE, CODECS, DEFAULT_CODEC
from clara.index.latent import QUANTISED_FILE
from clara.index.rows import DocumentEntry, StoreModel
from clara.index.table import TABLE_FOLDER

_FORMAT = "clara-store"
_FORMAT_VERSION = 2
_DESCRIPTION_FILE = "store.json"
_DRAFT_FILE = "store.json.draft"
_LEDGER_FILE = "documents.sqlite"
_LOCK_FILE = "write.lock"

READY = "upgrade.ready"
"""Holds an upgraded store; while that is written its folder has another name."""

SETTLED = "text_index_version"
"""Fact of the ledger: the table's version after which ``optimize`` had nothing left to do."""

# An address as pathlib leaves it: with one slash.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")

# Seconds to wait for another writer: long enough for one that is closing, short enough for a user.
_LOCK_SECONDS = 2.0

# One transaction: a ledger has all its tables or none.
_SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS documents (uri TEXT PRIMARY KEY, content_hash TEXT NOT NULL, passages INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS stale (uri TEXT PRIMARY KEY, keep_hash TEXT);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
COMMIT;
"""


def store_folder(path: Path) -> Path:
    """The absolute folder of a store as it was named (StoreError: an address such as ``s3://bucket/store``)."""
    address = _ADDRESS.match(str(path))
    if address is not None:
        raise StoreError(
            f"{address[1]}://{address[2]} is no folder, and a store is one: its lock and ledger need this machine's "
            "file system. Index into a folder, copy it whole to where the address points, and copy it back to ask"
        )
    return Path(path).absolute()


class _Model(BaseModel):
    """The ``model`` object of ``store.json``."""

    model_config = ConfigDict(extra="forbid", strict=True)
    fingerprint: str
    name: str
    rate: int
    memory_tokens: int
    width: int
    query_space: Literal["flat", "mean"] = "flat"


@dataclass(frozen=True, slots=True)
class Description:
    """Description in ``store.json``: model of the memories, codec, version of the format."""

    model: StoreModel
    codec: str = DEFAULT_CODEC
    version: int = _FORMAT_VERSION


def read_description(folder: Path, *, older: bool = False) -> Description | None:
    """Description of the store in a folder.

    Args:
        folder: the store's.
        older: take a store of format 1 too, which can only be upgraded.

    Returns:
        ``None`` if the folder can become a store: it does not exist, is empty, or holds no more than what a creation
        leaves that was cut short.

    Raises:
        StoreError: a file, a folder of something else, a damaged description, or another format.
    """
    path = folder / _DESCRIPTION_FILE
    try:
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise StoreError(f"{folder} is a file; a store is a folder: name another --store")
        if not path.exists():
            _refuse_foreign(folder)
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the store {folder} cannot be read: {error}") from error
    described = _parse(text, path)
    if described.version != _FORMAT_VERSION and not older:
        raise StoreError(
            f"the store {folder} is of format {described.version}, this clara uses format {_FORMAT_VERSION}; "
            f"bring it there, without compressing anything again: clara upgrade {folder}"
        )
    return described


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder without a description that holds something else."""
    foreign = sorted({entry.name for entry in folder.iterdir()} - {_LOCK_FILE, _DRAFT_FILE})
    if foreign:
        raise StoreError(
            f"{folder} is not a clara store: it has no {_DESCRIPTION_FILE} but holds {foreign[0]}"
            f"{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}; name a new or empty folder as --store"
        )


def write_description(folder: Path, described: Description) -> None:
    """Make a folder a store of a model; atomic (StoreError: the folder cannot be written)."""
    content = {
        "format": _FORMAT,
        "version": _FORMAT_VERSION,
        "codec": described.codec,
        "model": asdict(described.model),
    }
    content["crc"] = _checksum(content)
    draft = folder / _DRAFT_FILE
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / _DESCRIPTION_FILE)
    except OSError as error:
        raise StoreError(f"the store {folder} cannot be written: {error}") from error


def _checksum(content: dict[str, Any]) -> int:
    """CRC-32 of all but itself."""
    rest = {name: value for name, value in content.items() if name != "crc"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _parse(text: str, path: Path) -> Description:
    """Fields of a description's text."""
    content: Any
    try:
        content = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); index the documents again into another --store") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise StoreError(f"{path} does not describe a clara store; name another folder as --store")
    version = content.get("version")
    if version not in (1, _FORMAT_VERSION):
        raise StoreError(
            f"{path} is of store format {version!r}, this clara reads format {_FORMAT_VERSION}; "
            "upgrade clara-rag, or index the documents again into another --store"
        )
    try:
        model = StoreModel(**_Model.model_validate(content.get("model")).model_dump())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise StoreError(f"{path} is damaged ({faults}); index the documents again into another --store") from None
    if version == 1:
        return Description(model, version=1)
    if content.get("codec") not in CODECS or content.get("crc") != _checksum(content):
        raise StoreError(
            f"{path} is damaged (its checksum does not fit); put it back from a copy of the store, or index the "
            "documents again into another --store"
        )
    return Description(model, content["codec"])


class WriteLock:
    """The write lock of a store's folder; any thread may take and release it. As a context it is held for a while."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / _LOCK_FILE, timeout=_LOCK_SECONDS, thread_local=False)

    @property
    def is_locked(self) -> bool:
        """True if this object holds it."""
        return bool(self._lock.is_locked)

    def acquire(self) -> None:
        """Take it (StoreError: another process holds it, or the folder cannot be written)."""
        try:
            self._lock.acquire()
        except Timeout:
            raise StoreError(
                f"another process is writing to the store {self._folder}; wait until it ends, or use another --store"
            ) from None
        except OSError as error:
            raise StoreError(f"the store {self._folder} cannot be written: {error}") from error

    def release(self) -> None:
        """Let other processes write; nothing happens if it is not held."""
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def complete_upgrade(folder: Path) -> None:
    """Put an upgraded store in the place of the old one, if there is one that has not got there yet.

    A kill between any two steps is harmless: the same steps are made again by whoever opens the store next.
    """
    try:
        if not (folder / READY).exists():
            return
    except OSError:
        return  # a folder that cannot be looked into; reading its description says so
    with WriteLock(folder):
        take_place(folder)


def take_place(folder: Path) -> None:
    """The steps of :func:`complete_upgrade`, for a caller that holds the lock."""
    ready = folder / READY
    if not ready.exists():
        return
    try:
        (folder / QUANTISED_FILE).unlink(missing_ok=True)  # of the old table's rows
        if (ready / TABLE_FOLDER).exists():
            shutil.rmtree(folder / TABLE_FOLDER, ignore_errors=True)
            (ready / TABLE_FOLDER).rename(folder / TABLE_FOLDER)
        if (ready / CODEBOOK_FILE).exists():
            (ready / CODEBOOK_FILE).replace(folder / CODEBOOK_FILE)
        Ledger(folder).remember(SETTLED, -1)
        if (ready / _DESCRIPTION_FILE).exists():
            (ready / _DESCRIPTION_FILE).replace(folder / _DESCRIPTION_FILE)
        shutil.rmtree(ready)
    except OSError as error:
        raise StoreError(
            f"the upgraded store {folder} cannot take its place: {error}; run clara upgrade again"
        ) from error


class Ledger:
    """Which documents are complete in a store, and which deletions are promised.

    A promise is the uri of a document whose passages are to be deleted, with the content hash of the version to keep
    (``None`` keeps none). It is written in the same transaction as the change it follows from and struck out when the
    passages are gone: whoever writes next after a kill carries it out, so no step between the two files can be lost.

    Every call opens the file anew, so calls may come from any thread; callers see to it that only one process writes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _LEDGER_FILE

    def exists(self) -> bool:
        """True if the file and its tables have been made."""
        if not self._path.exists():
            return False
        with self._connection() as connection:
            row = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'documents'").fetchone()
        return row is not None

    def create(self) -> None:
        """Make the file and its tables; nothing happens if they are there."""
        with self._connection() as connection:
            connection.executescript(_SCHEMA)

    def complete(self) -> dict[str, DocumentEntry]:
        """Documents recorded as complete, by uri."""
        with self._connection() as connection:
            rows = connection.execute("SELECT uri, content_hash, passages FROM documents").fetchall()
        return {uri: DocumentEntry(uri, content_hash, passages) for uri, content_hash, passages in rows}

    def finish(self, entries: Iterable[DocumentEntry], promises: Mapping[str, str | None]) -> None:
        """Record documents as complete and, in the same step, promise deletions, in place of earlier promises."""
        entries = list(entries)
        with self._connection() as connection:
            connection.executemany("DELETE FROM stale WHERE uri = ?", [(e.uri,) for e in entries])
            connection.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)",
                [(e.uri, e.content_hash, e.passages) for e in entries],
            )
            connection.executemany("INSERT OR REPLACE INTO stale VALUES (?, ?)", [*promises.items()])

    def forget(self, uris: Iterable[str]) -> None:
        """Strike documents out and promise to delete all their passages."""
        listed = [(uri,) for uri in uris]
        with self._connection() as connection:
            connection.executemany("DELETE FROM documents WHERE uri = ?", listed)
            connection.executemany("INSERT OR REPLACE INTO stale VALUES (?, NULL)", listed)

    def promises(self) -> dict[str, str | None]:
        """Promised deletions."""
        with self._connection() as connection:
            return dict(connection.execute("SELECT uri, keep_hash FROM stale").fetchall())

    def deleted(self, uris: Iterable[str]) -> None:
        """Strike out promises that have been kept."""
        with self._connection() as connection:
            connection.executemany("DELETE FROM stale WHERE uri = ?", [(uri,) for uri in uris])

    def fact(self, name: str) -> int | None:
        """A remembered number, ``None`` if there is none of that name."""
        with self._connection() as connection:
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def remember(self, name: str, value: int) -> None:
        """Keep a number under a name."""
        with self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are one transaction: kept at the end, dropped on an error."""
        try:
            with closing(sqlite3.connect(self._path, timeout=30.0)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise StoreError(
                f"the document ledger {self._path} cannot be used: {error}; if the disk is full, make room and run "
                "the same command again"
            ) from error


@dataclass(frozen=True, slots=True, eq=False)
class _Version:
    """A version of a document and its passages: one object for all of them, which a million passages notice."""

    document: str
    content_hash: str
    ids: set[str]


class Catalogue:
    """Which passages a store holds, by document and version: ids only, kept in memory between calls.

    Reading it from the table takes tens of milliseconds; indexing asks for every document.
    """

    def __init__(self) -> None:
        self._versions: dict[str, _Version] = {}
        self._documents: dict[str, dict[str, _Version]] = {}

    def __contains__(self, passage_id: str) -> bool:
        return passage_id in self._versions

    def put(self, passage_id: str, document: str, content_hash: str) -> None:
        """Add a passage, or move it if its id is known."""
        self.drop([passage_id])
        versions = self._documents.setdefault(document, {})
        version = versions.get(content_hash) or _Version(document, content_hash, set())
        versions[content_hash] = self._versions[passage_id] = version
        version.ids.add(passage_id)

    def drop(self, passage_ids: Iterable[str]) -> None:
        """Take passages out; unknown ids are passed over."""
        for passage_id in passage_ids:
            if passage_id not in self._versions:
                continue
            version = self._versions.pop(passage_id)
            version.ids.discard(passage_id)
            if not version.ids:
                del self._documents[version.document][version.content_hash]
            if not self._documents[version.document]:
                del self._documents[version.document]

    def documents(self) -> set[str]:
        """Documents with at least one passage."""
        return set(self._documents)

    def ids(self, document: str) -> set[str]:
        """Ids of all passages of a document."""
        return set().union(*(version.ids for version in self._documents.get(document, {}).values()))

    def ids_except(self, document: str, content_hash: str | None) -> set[str]:
        """Ids of a document's passages of every version but one; ``None`` excepts none."""
        versions = self._documents.get(document, {}).values()
        return set().union(*(version.ids for version in versions if version.content_hash != content_hash))

    def version_count(self, document: str, content_hash: str) -> int:
        """Number of passages of one version of a document."""
        version = self._documents.get(document, {}).get(content_hash)
        return 0 if version is None else len(version.ids)
