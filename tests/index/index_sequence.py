"""What ``pipeline`` does with an index for one folder, and everything an index holds as plain values.

Run as a program it is the victim of the kill test: it builds a store, and says ``ready`` before its first call.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from exact import PassageIndex
from index_rows import MODEL, digest, document, plain, question, values

from clara.index import DocumentEntry, LanceStore

# uri -> version and number of passages
Corpus = Mapping[str, tuple[str, int]]

FIRST: Corpus = {"one": ("v1", 2), "empty": ("v1", 0)}
BEFORE: Corpus = {"same": ("v1", 1), "grows": ("v1", 1), "shrinks": ("v1", 2), "goes": ("v1", 2), "empties": ("v1", 1)}
AFTER: Corpus = {
    "same": ("v1", 1),
    "grows": ("v2", 2),
    "shrinks": ("v2", 1),
    "empties": ("v2", 0),
    "it's \"odd\" \\ % ' OR 1=1 --": ("v1", 1),
}


def bring_up_to_date(index: PassageIndex, corpus: Corpus, *, batch: int = 2) -> None:
    """Make an index hold exactly ``corpus``; every call is one that a user's next run makes again."""
    done = index.documents()
    index.remove((done.keys() | index.unfinished()) - corpus.keys())
    for uri, (version, passages) in corpus.items():
        content_hash = digest(uri, version)
        if uri in done and done[uri].content_hash == content_hash:
            continue
        have = index.passage_ids(uri)
        rows = [row for row in document(uri, version, passages) if row.passage.id not in have]
        for start in range(0, len(rows), batch):
            index.add(rows[start : start + batch])
        index.finish_documents([DocumentEntry(uri, content_hash, passages)])
    index.optimize()


def contents(index: PassageIndex) -> dict[str, object]:
    """Every row, the ledger, and what searches find."""
    uris = sorted(index.documents().keys() | index.unfinished())
    ids = sorted(passage_id for uri in uris for passage_id in index.passage_ids(uri))
    query = question(values("question"))
    searches = {
        "latent": index.search_latent(query, 7),
        "text": index.search_text("copper karst loam", 7),
        "hybrid": index.search_hybrid(query, "copper karst loam", 7),
    }
    return {
        "documents": index.documents(),
        "unfinished": index.unfinished(),
        "count": index.count(),
        "rows": plain(index.get(ids)),
        "searches": {name: [(hit.passage.id, hit.score) for hit in hits] for name, hits in searches.items()},
    }


def check_invariants(folder: Path, *corpora: Corpus) -> None:
    """What must hold at any moment: a complete document has all passages of one version, and no others of it."""
    if not (folder / "store.json").exists():
        return
    with LanceStore.open(folder, MODEL) as reader:
        for uri, entry in reader.documents().items():
            versions = [corpus[uri] for corpus in corpora if uri in corpus]
            assert (entry.content_hash, entry.passages) in [(digest(uri, version), n) for version, n in versions]
            rows = reader.get(sorted(reader.passage_ids(uri)))
            assert sum(row.content_hash == entry.content_hash for row in rows) == entry.passages


def many(version: str, documents: int) -> Corpus:
    """A corpus for the kill test; a third of its documents differ from version to version, and some exist in one."""
    return {
        f"{'old' if version == 'v1' else 'new'}{number}" if number % 10 == 0 else f"doc{number}": (
            version if number % 3 == 0 else "v0",
            1 + (number * 7 + len(version)) % 4,
        )
        for number in range(documents)
    }


def index_twice(folder: Path, documents: int) -> None:
    """The calls of the kill test: a folder is indexed, changes, and is indexed again."""
    for version in ("v1", "v2"):
        with LanceStore.create(folder, MODEL) as store:
            bring_up_to_date(store, many(version, documents))


if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    index_twice(Path(sys.argv[1]), int(sys.argv[2]))
