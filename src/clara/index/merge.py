"""``clara merge``: the documents of several stores in one, without compressing anything again.

Documents come over whole and are recorded one batch after another, so a merge that was killed is finished by the same
call. What was compressed on several machines (``clara index --shard``) ends in the store that one would have made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clara.errors import InputError, StoreError
from clara.index.description import check_model
from clara.index.protocol import DocumentEntry, IndexRow
from clara.index.store import LanceStore

_COMMIT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class _Merge:
    """What a merge did.

    Attributes:
        documents: documents brought over.
        passages: their passages.
        unchanged: documents that the store had already, or that an earlier store of the list has brought.
    """

    documents: int
    passages: int
    unchanged: int


def merge(sources: Sequence[Path], out: Path, *, progress: Callable[[int, int], None] | None = None) -> _Merge:
    """Bring the documents of stores into one, which is made if it is not there.

    Of a document that several hold in different versions, the last store's stays.

    Args:
        sources: folders of stores of one model and codec, at least one.
        out: the folder of the store that is to hold them all.
        progress: told how many passages have been brought over, of how many.

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
                check_model(Path(source), store.model, first.model)
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
