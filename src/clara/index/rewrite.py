"""Stores rewritten without compressing anything again: several into one, or one into another format or codec.

``merge``: documents come over whole and are recorded one batch after another, so a merge that was killed is finished by
the same call. What was compressed on several machines (``clara index --shard``) ends in the store that one would have
made.

``upgrade``: the new store is written beside the old one. When it is whole its folder gets the name that says so, in
one step; then it takes the old one's place (``folder.complete_upgrade``). Killed before that step, the store is what it
was; killed after, whoever opens it next finishes.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from clara.errors import InputError, StoreError, StoreNotFoundError
from clara.index.codecs import check_codec
from clara.index.folder import (
    READY,
    Description,
    Ledger,
    WriteLock,
    read_description,
    store_folder,
    take_place,
    write_description,
)
from clara.index.rows import DocumentEntry, IndexRow
from clara.index.store import LanceStore
from clara.index.table import Format, PassageTable, rows_of_format_1
from clara.records import QuerySpace

_COMMIT_BYTES = 64 << 20
_PARTIAL = "upgrade.partial"
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class _Merge:
    """Result of a merge; ``unchanged`` documents the store had already, or an earlier source has brought."""

    documents: int
    passages: int
    unchanged: int


def merge(sources: Sequence[Path], out: Path, *, progress: Callable[[int, int], None] | None = None) -> _Merge:
    """Bring the documents of stores of one model and codec into one, which is made if it is not there.

    Of a document that several hold in different versions, the last store's stays. ``progress`` is told how many
    passages have been brought over, of how many.

    Raises:
        InputError: no source, or ``out`` is one of them.
        StoreModelError: stores of different models; nothing is written then.
        StoreError: no store, one that cannot be read or whose indexing was cut short, or of another codec.
    """
    if not sources:
        raise InputError("name at least one store to merge")
    if Path(out).resolve() in {Path(source).resolve() for source in sources}:
        raise InputError(f"{out} is one of the stores to merge; name another --store")
    totals = _checked(sources)
    brought, passages, unchanged = 0, 0, 0
    with LanceStore.open(sources[0], None) as first:
        model, codec = first.model, first.codec
    with LanceStore.create(out, model, codec=codec) as store:
        store.begin()
        for source in sources:
            with LanceStore.open(source, model) as read:
                known = store.documents()
                wanted = {uri: entry for uri, entry in read.documents().items() if known.get(uri) != entry}
                unchanged += len(read.documents()) - len(wanted)
                for count in _bring(read, store, wanted):
                    passages += count
                    if progress is not None:
                        progress(passages, totals)
                brought += len(wanted)
        store.optimize()
    return _Merge(brought, passages, unchanged)


def _checked(sources: Sequence[Path]) -> int:
    """Passages of all stores; they must be of one model and codec, and whole."""
    total = 0
    with LanceStore.open(sources[0], None) as first:
        for source in sources:
            with LanceStore.open(source, None) as store:
                store.check_model(first.model)
                if store.codec != first.codec:
                    raise StoreError(
                        f"the store {source} holds memories as {store.codec}, {sources[0]} as {first.codec}; bring "
                        f"them to one codec first: clara upgrade {source} --codec {first.codec}"
                    )
                unfinished = store.unfinished()
                if unfinished:
                    raise StoreError(
                        f"indexing the store {source} was cut short ({len(unfinished)} documents, {min(unfinished)} "
                        "among them, are not whole); run its clara index again, then merge"
                    )
                total += store.count()
    return total


def _bring(read: LanceStore, store: LanceStore, wanted: Mapping[str, DocumentEntry]) -> Iterator[int]:
    """Bring documents over; yields the number of passages of each commit."""
    size = max(1, _COMMIT_BYTES // (4 * read.model.values))
    left = Counter({uri: entry.passages for uri, entry in wanted.items()})
    whole = [entry for entry in wanted.values() if not entry.passages]
    rows: list[IndexRow] = []
    for row in read.rows():
        entry = wanted.get(row.passage.document)
        if entry is None:
            continue
        rows.append(row)
        left[entry.uri] -= 1
        if not left[entry.uri]:
            whole.append(entry)
        if len(rows) == size:
            yield _commit(store, rows, whole)
            rows, whole = [], []
    yield _commit(store, rows, whole)


def _commit(store: LanceStore, rows: Sequence[IndexRow], whole: Sequence[DocumentEntry]) -> int:
    store.add(rows)
    store.finish_documents(whole)
    return len(rows)


@dataclass(frozen=True, slots=True)
class _Upgrade:
    """Passages rewritten, 0 if the store was as wanted, and its description before and after."""

    passages: int
    before: Description
    after: Description


def upgrade(
    path: Path,
    *,
    codec: str | None = None,
    query_space: QuerySpace | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> _Upgrade:
    """Bring a store to today's format; needs room for it once more until it is done.

    Args:
        path: the store's folder.
        codec: how memories are to be stored; as they are when None.
        query_space: what the questions of its model are, which decides by what passages are searched; when None as the
            store says, and ``flat``, which serves both, where it does not say.
        progress: told how many passages are rewritten, of how many.

    Raises:
        StoreNotFoundError: no store there.
        StoreError: it is damaged, or another process is writing.
        ConfigError: there is no such codec.
    """
    check_codec(codec)
    folder = store_folder(path)
    if read_description(folder, older=True) is None:
        raise StoreNotFoundError(f"there is no store at {folder} to upgrade")
    with WriteLock(folder):
        take_place(folder)
        before = read_description(folder, older=True)
        if before is None:
            raise StoreError(f"the store {folder} has been deleted meanwhile")
        model = replace(before.model, query_space=query_space or before.model.query_space)
        after = Description(model, codec or before.codec)
        passages = 0 if before == after else _write_beside(folder, before, after, progress)
        take_place(folder)
    with LanceStore.open(folder, None) as store:
        if not store.settled():
            store.begin()
            store.optimize()
    return _Upgrade(passages, before, after)


def _write_beside(
    folder: Path, before: Description, after: Description, progress: Callable[[int, int], None] | None
) -> int:
    """Write the upgraded store into a folder of the store's, whole or not at all; returns its passages."""
    partial = folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
    except OSError as error:
        raise StoreError(f"the store {folder} cannot be written: {error}") from error
    form = Format.of(partial, after.model, after.codec)
    PassageTable.create(partial, form)
    table = PassageTable(partial, form)
    table.build_text_index()
    done, total = 0, sum(entry.passages for entry in Ledger(folder).complete().values())
    left = _old_rows(folder, before)
    while rows := list(islice(left, _BATCH_ROWS)):
        form.codec.prepare(np.stack([row.memory.values for row in rows]))
        table.append(rows)
        done += len(rows)
        if progress is not None:
            progress(done, total)
    table.close()
    write_description(partial, after)
    partial.rename(folder / READY)
    return done


def _old_rows(folder: Path, described: Description) -> Iterator[IndexRow]:
    """Every row of the store as it is."""
    if described.version == 1:
        return rows_of_format_1(folder, described.model)
    return PassageTable(folder, Format.of(folder, described.model, described.codec)).all_rows()
