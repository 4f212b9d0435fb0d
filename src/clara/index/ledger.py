"""Which documents are complete in a store, and which deletions are promised but perhaps not done.

One small SQLite file beside the passages. It knows uris and content hashes, not passages; ``store`` compares the two.

A promise (``Stale``) is written in the same transaction as the change it follows from and struck out when the
passages are gone: whoever writes next after a kill carries it out, so no step between the two files can be lost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from clara.errors import StoreError
from clara.index.protocol import DocumentEntry

LEDGER_FILE = "documents.sqlite"

# One transaction: a ledger has all its tables or none.
_SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS documents (uri TEXT PRIMARY KEY, content_hash TEXT NOT NULL, passages INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS stale (uri TEXT PRIMARY KEY, keep_hash TEXT);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class Stale:
    """Passages of a document that are to be deleted.

    Attributes:
        uri: the document.
        keep_hash: the version to keep; ``None`` keeps none.
    """

    uri: str
    keep_hash: str | None


class Ledger:
    """The ledger file of one store.

    Every call opens the file anew, so calls may come from any thread; callers see to it that only one process writes.

    Args:
        folder: the store's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER_FILE

    def exists(self) -> bool:
        """Whether the file and its tables have been made."""
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

    def finish(self, entries: Iterable[DocumentEntry], promises: Iterable[Stale]) -> None:
        """Record documents as complete and, in the same step, promise deletions, in place of earlier promises."""
        entries = list(entries)
        with self._connection() as connection:
            connection.executemany("DELETE FROM stale WHERE uri = ?", [(e.uri,) for e in entries])
            connection.executemany(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)",
                [(e.uri, e.content_hash, e.passages) for e in entries],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO stale VALUES (?, ?)", [(promise.uri, promise.keep_hash) for promise in promises]
            )

    def forget(self, uris: Iterable[str]) -> None:
        """Strike documents out and promise to delete all their passages."""
        listed = [(uri,) for uri in uris]
        with self._connection() as connection:
            connection.executemany("DELETE FROM documents WHERE uri = ?", listed)
            connection.executemany("INSERT OR REPLACE INTO stale VALUES (?, NULL)", listed)

    def stale(self) -> list[Stale]:
        """Promised deletions."""
        with self._connection() as connection:
            return [Stale(uri, keep) for uri, keep in connection.execute("SELECT uri, keep_hash FROM stale")]

    def deleted(self, promises: Iterable[Stale]) -> None:
        """Strike out promises that have been kept."""
        with self._connection() as connection:
            connection.executemany("DELETE FROM stale WHERE uri = ?", [(promise.uri,) for promise in promises])

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
