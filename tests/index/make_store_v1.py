"""Wrote ``store_v1``, the store of format 1 that every later version must load. Not run by the tests."""

from __future__ import annotations

from pathlib import Path

from index_rows import MODEL, digest, document
from index_sequence import AFTER, BEFORE

from clara.index import DocumentEntry, LanceStore

if __name__ == "__main__":
    corpus = {**AFTER, "goes": BEFORE["goes"]}
    with LanceStore.create(Path(__file__).with_name("store_v1"), MODEL) as store:
        store.add([row for uri, (version, count) in corpus.items() for row in document(uri, version, count)])
        store.finish_documents([DocumentEntry(u, digest(u, version), count) for u, (version, count) in corpus.items()])
        store.remove(["goes"])
        store.optimize()
