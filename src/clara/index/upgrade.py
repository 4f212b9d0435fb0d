"""``clara upgrade``: a store's memories into today's format, or another codec, without compressing anything again.

The upgraded store is written beside the old one. When it is whole its folder gets the name that says so, in one step;
then it takes the old one's place (``folder.complete_upgrade``). Killed before that step, the store is what it was;
killed after, whoever opens it next finishes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lancedb
import numpy as np

from clara.errors import StoreError, StoreNotFoundError
from clara.index.description import Description, check_codec, read_description, write_description
from clara.index.folder import READY, held, make_format, take_place, write_lock
from clara.index.ledger import Ledger
from clara.index.protocol import IndexRow, StoreModel
from clara.index.store import LanceStore
from clara.index.table import TABLE, PassageTable, lance_errors
from clara.records import Memory, Passage, QuerySpace

_PARTIAL = "upgrade.partial"
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class _Upgrade:
    """What an upgrade did.

    Attributes:
        passages: passages rewritten; 0 if the store was as wanted.
        before: its description as it was.
        after: its description now.
    """

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
    folder = Path(path).absolute()
    if read_description(folder, older=True) is None:
        raise StoreNotFoundError(f"there is no store at {folder} to upgrade")
    with held(write_lock(folder), folder):
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
    form = make_format(partial, after)
    PassageTable.create(partial, form)
    table = PassageTable(partial, form)
    table.build_text_index()
    done, total = 0, sum(entry.passages for entry in Ledger(folder).complete().values())
    for rows in _batches(_old_rows(folder, before)):
        form.codec.prepare(np.stack([row.memory.values for row in rows]))
        table.append(rows)
        done += len(rows)
        if progress is not None:
            progress(done, total)
    table.close()
    write_description(partial, after)
    partial.rename(folder / READY)
    return done


def _batches(rows: Iterator[IndexRow]) -> Iterator[list[IndexRow]]:
    """Rows some at a time."""
    batch: list[IndexRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _old_rows(folder: Path, described: Description) -> Iterator[IndexRow]:
    """Every row of the store as it is."""
    if described.version == 1:
        return _format_1(folder, described.model)
    return PassageTable(folder, make_format(folder, described)).all_rows()


def _format_1(folder: Path, model: StoreModel) -> Iterator[IndexRow]:
    """Every row of a store of format 1: memories are lists of fp16, and nothing tells whether they are damaged."""
    names = ("id", "document", "title", "text", "start", "end")
    columns = [*names, "content_hash", "metadata", "token_count", "memory"]
    with lance_errors(f"reading the store {folder}"):
        table: Any = lancedb.connect(str(folder)).open_table(TABLE)
        for batch in table.search().select(columns).to_batches(_BATCH_ROWS):
            flat = batch.column("memory").flatten().to_numpy(zero_copy_only=True)
            memories = flat.reshape(-1, model.memory_tokens, model.width).astype(np.float32)
            for record, values in zip(batch.drop_columns(["memory"]).to_pylist(), memories, strict=True):
                memory = Memory(values.copy(), model.fingerprint, model.rate, record["token_count"])
                passage = Passage(**{name: record[name] for name in names})
                yield IndexRow(passage, memory, record["content_hash"], json.loads(record["metadata"]))
