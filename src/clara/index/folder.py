"""A store's folder: its write lock, what a creation that was cut short still lacks, and how an upgrade ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from clara.errors import StoreError
from clara.index.codecs import make_codec
from clara.index.codecs.residual import CODEBOOK_FILE
from clara.index.description import DESCRIPTION_FILE, LOCK_FILE, Description
from clara.index.latent import QUANTISED_FILE
from clara.index.ledger import Ledger
from clara.index.search_column import search_column
from clara.index.table import TABLE_FOLDER, Format, PassageTable

# Holds an upgraded store that is whole and has only to take its place; its own name while it is written is another.
READY = "upgrade.ready"

SETTLED = "text_index_version"
"""Fact of the ledger: the table's version after which ``optimize`` had nothing left to do."""

# Seconds to wait for another writer: long enough for one that is closing, short enough for a user.
_LOCK_SECONDS = 2.0


def write_lock(folder: Path) -> FileLock:
    """The write lock of a folder; any thread may take and release it."""
    return FileLock(folder / LOCK_FILE, timeout=_LOCK_SECONDS, thread_local=False)


def acquire(lock: FileLock, folder: Path) -> None:
    """Take a write lock.

    Raises:
        StoreError: another process holds it, or the folder cannot be written.
    """
    try:
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"another process is writing to the store {folder}; wait until it ends, or use another --store"
        ) from None
    except OSError as error:
        raise StoreError(f"the store {folder} cannot be written: {error}") from error


@contextmanager
def held(lock: FileLock, folder: Path) -> Iterator[None]:
    """Hold a write lock for a while."""
    acquire(lock, folder)
    try:
        yield
    finally:
        lock.release()


def make_format(folder: Path, described: Description) -> Format:
    """How the store of a folder writes its rows."""
    model = described.model
    codec = make_codec(described.codec, (model.memory_tokens, model.width), folder)
    return Format(model, codec, search_column(model))


def complete_creation(folder: Path, described: Description) -> None:
    """Make what a store still lacks: nothing, unless its creation was cut short."""
    ledger = Ledger(folder)
    if ledger.exists() and PassageTable.exists(folder):
        return
    with held(write_lock(folder), folder):
        ledger.create()
        PassageTable.create(folder, make_format(folder, described))


def complete_upgrade(folder: Path) -> None:
    """Put an upgraded store in the place of the old one, if there is one that has not got there yet.

    A kill between any two steps is harmless: the same steps are made again by whoever opens the store next.
    """
    try:
        if not (folder / READY).exists():
            return
    except OSError:
        return  # a folder that cannot be looked into; reading its description says so
    with held(write_lock(folder), folder):
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
        if (ready / DESCRIPTION_FILE).exists():
            (ready / DESCRIPTION_FILE).replace(folder / DESCRIPTION_FILE)
        shutil.rmtree(ready)
    except OSError as error:
        raise StoreError(
            f"the upgraded store {folder} cannot take its place: {error}; run clara upgrade again"
        ) from error
