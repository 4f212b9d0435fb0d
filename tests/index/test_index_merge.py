"""Stores into one: whatever the parts and however often it is tried, the store that one process would have made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from index_rows import MODEL, WORDS, document, plain, row

from clara.errors import InputError, StoreError, StoreModelError
from clara.index import DocumentEntry, IndexRow, LanceStore, StoreModel, rewrite
from clara.index.rewrite import merge as bring
from clara.index.table import PassageTable


def filled(path: Path, documents: Sequence[list[IndexRow]], *, model: StoreModel = MODEL, codec: str = "fp16") -> Path:
    with LanceStore.create(path, model, codec=codec) as store:
        for rows in documents:
            store.add(rows)
            store.finish_documents([DocumentEntry(rows[0].passage.document, rows[0].content_hash, len(rows))])
        store.optimize()
    return path


def held(path: Path) -> tuple[object, ...]:
    """Documents, rows, and what a search for each word finds."""
    with LanceStore.open(path, None) as store:
        rows = sorted(store.rows(), key=lambda one: one.passage.id)
        found = [[(hit.passage.id, hit.score) for hit in store.search_text(word, 30)] for word in WORDS]
        return store.documents(), plain(rows), found


DOCUMENTS = [document(f"d{number}", "v1", 1 + number % 4) for number in range(12)]


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4"])
def test_parts_make_the_whole(codec: str, tmp_path: Path) -> None:
    parts = [filled(tmp_path / f"part{i}", DOCUMENTS[i::3], codec=codec) for i in range(3)]
    whole = filled(tmp_path / "whole", DOCUMENTS, codec=codec)
    told: list[tuple[int, int]] = []
    done = bring(parts, tmp_path / "out", progress=lambda *seen: told.append(seen))
    passages = sum(map(len, DOCUMENTS))
    assert (done.documents, done.passages, done.unchanged) == (12, passages, 0)
    assert told[-1] == (passages, passages)
    assert held(tmp_path / "out") == held(whole)
    assert bring(parts, tmp_path / "out").unchanged == 12


def test_a_merge_that_died_is_finished_by_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [filled(tmp_path / f"part{i}", DOCUMENTS[i::2]) for i in range(2)]
    whole = filled(tmp_path / "whole", DOCUMENTS)
    monkeypatch.setattr(rewrite, "_COMMIT_BYTES", 5 * 4 * MODEL.values)
    append, calls = PassageTable.append, 0

    def dying(self: PassageTable, rows: Sequence[IndexRow]) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        append(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(PassageTable, "append", dying)
        with pytest.raises(KeyboardInterrupt):
            bring(parts, tmp_path / "out")
    done = bring(parts, tmp_path / "out")
    assert 0 < done.unchanged < 12
    assert held(tmp_path / "out") == held(whole)


def test_the_last_version_of_a_document_stays(tmp_path: Path) -> None:
    new, empty = document("d1", "v2", 2), DocumentEntry("empty", "hash", 0)
    parts = [filled(tmp_path / "old", DOCUMENTS[:3]), filled(tmp_path / "new", [new])]
    with LanceStore.open(parts[0], None) as store:
        store.finish_documents([empty])
        store.optimize()
    assert bring(parts, tmp_path / "out").documents == 5
    with LanceStore.open(tmp_path / "out", None) as store:
        assert store.passage_ids("d1") == {one.passage.id for one in new}
        assert store.documents()["empty"] == empty


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    first = filled(tmp_path / "first", DOCUMENTS[:1])
    other = replace(MODEL, fingerprint="e" * 64)
    alien = filled(tmp_path / "alien", [[replace_model(DOCUMENTS[1][0], other)]], model=other)
    small = filled(tmp_path / "small", DOCUMENTS[1:2], codec="int8")
    cut = filled(tmp_path / "cut", DOCUMENTS[1:2])
    with LanceStore.open(cut, None) as store:
        store.add([row("half", "v1", 0)])
    out = tmp_path / "out"
    with pytest.raises(StoreModelError, match="fingerprint eeee"):
        bring([first, alien], out)
    with pytest.raises(StoreError, match=r"as int8, .* as fp16; .*clara upgrade .*small --codec fp16"):
        bring([first, small], out)
    with pytest.raises(StoreError, match=r"cut was cut short \(1 documents, half"):
        bring([first, cut], out)
    with pytest.raises(StoreError, match="there is no store"):
        bring([first, tmp_path / "none"], out)
    with pytest.raises(InputError, match="is one of the stores"):
        bring([first, cut], first)
    with pytest.raises(InputError, match="at least one store"):
        bring([], out)
    assert not out.exists()


def replace_model(one: IndexRow, model: StoreModel) -> IndexRow:
    return replace(one, memory=replace(one.memory, fingerprint=model.fingerprint))
