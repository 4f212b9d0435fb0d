"""A store's folder: created, opened, refused, locked, compacted, and kept readable by later versions."""

from __future__ import annotations

import json
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exact import ExactIndex
from filelock import FileLock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from index_rows import MODEL, digest, document, plain, question, row, values
from index_sequence import AFTER, BEFORE, bring_up_to_date, contents

from clara.errors import ConfigError, StoreError, StoreModelError, StoreNotFoundError
from clara.index import DocumentEntry, LanceStore, folder, store, table
from clara.index.codecs import CODECS
from clara.index.folder import Description, Ledger, write_description
from clara.index.rewrite import upgrade
from clara.index.table import PassageTable
from clara.records import DocumentSize

V1 = Path(__file__).with_name("store_v1")


def add_document(index: LanceStore | ExactIndex, uri: str, version: str, passages: int) -> None:
    index.add(document(uri, version, passages))
    index.finish_documents([DocumentEntry(uri, digest(uri, version), passages)])


class Histories(RuleBasedStateMachine):
    """Any sequence of calls leaves a store with what the oracle holds."""

    uris = st.sampled_from(["a", "b", "c d", "it's"])
    versions = st.sampled_from(["v1", "v2"])
    folder: Path
    names = iter(range(10**6))

    @initialize()
    def start(self) -> None:
        self.path = self.folder / str(next(self.names))
        self.store = LanceStore.create(self.path, MODEL)
        self.oracle = ExactIndex(MODEL)

    @rule(uri=uris, version=versions, passages=st.integers(0, 4))
    def add(self, uri: str, version: str, passages: int) -> None:
        rows = document(uri, version, passages)
        self.store.add(rows + rows[:1])
        self.oracle.add(rows)

    @rule(uri=uris, version=versions, passages=st.integers(0, 4))
    def finish(self, uri: str, version: str, passages: int) -> None:
        entry = DocumentEntry(uri, digest(uri, version), passages)
        outcomes = []
        for index in (self.store, self.oracle):
            try:
                index.finish_documents([entry])
                outcomes.append("finished")
            except StoreError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]

    @rule(listed=st.lists(uris, max_size=3))
    def remove(self, listed: list[str]) -> None:
        assert self.store.remove(listed) == self.oracle.remove(listed)

    @rule()
    def optimize(self) -> None:
        self.store.optimize()
        found, wanted = (index.search_text("karst ember", 9) for index in (self.store, self.oracle))
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in wanted], rel=1e-5)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = LanceStore.open(self.path, None)

    @invariant()
    def same(self) -> None:
        ids = {uri: self.oracle.passage_ids(uri) for uri in ("a", "b", "c d", "it's")}
        assert {uri: self.store.passage_ids(uri) for uri in ids} == ids
        listed = sorted(set().union(*ids.values()))
        assert plain(self.store.get(listed)) == plain(self.oracle.get(listed))
        assert self.store.count() == self.oracle.count()
        assert self.store.documents() == {
            uri: entry
            for uri, entry in self.oracle.documents().items()
            # A passage added to a version that was complete makes the store call it unfinished; the oracle is simpler.
            if sum(one.content_hash == entry.content_hash for one in self.oracle.get(sorted(ids[uri])))
            == entry.passages
        }
        query = question(values("question"))
        found, wanted = (index.search_latent(query, 6) for index in (self.store, self.oracle))
        assert [hit.passage for hit in found] == [hit.passage for hit in wanted]

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.path)


def test_any_history_leaves_what_the_oracle_holds(tmp_path: Path) -> None:
    class HistoriesHere(Histories):
        folder = tmp_path

    run_state_machine_as_test(HistoriesHere, settings=settings(max_examples=10, stateful_step_count=12, deadline=None))


def test_create_opens_what_is_there_and_open_takes_its_model(tmp_path: Path) -> None:
    with LanceStore.create(tmp_path / "deep" / "store", MODEL) as made:
        add_document(made, "d", "v1", 2)
    with LanceStore.create(tmp_path / "deep" / "store", replace(MODEL, name="moved")) as again:
        assert again.count() == 2
        assert again.model == MODEL
    with LanceStore.open(tmp_path / "deep" / "store", None) as opened:
        assert opened.model == MODEL
        assert opened.documents() == {"d": DocumentEntry("d", digest("d", "v1"), 2)}


def test_a_removed_document_is_gone_until_it_is_finished_again(tmp_path: Path) -> None:
    with LanceStore.create(tmp_path / "store", MODEL) as index:
        add_document(index, "d", "v1", 2)
        add_document(index, "no text", "v1", 0)
        assert index.documents().keys() == {"d", "no text"}
        assert index.remove(["d", "no text", "unknown"]) == 2
        assert index.documents() == {}
        index.add(document("d", "v1", 2))
        assert (index.documents(), index.unfinished()) == ({}, {"d"})
        assert index.remove(index.unfinished()) == 2


def test_texts_and_sizes_are_of_the_complete_version(tmp_path: Path) -> None:
    with LanceStore.create(tmp_path / "store", MODEL) as index:
        add_document(index, "it's", "v1", 3)
        add_document(index, "other", "v1", 1)
        index.add(document("it's", "v2", 2))  # read again, and cut short
        index.add(document("half", "v1", 2))
        rows = document("it's", "v1", 3)
        texts = index.texts("it's")
        assert [each.passage for each in texts] == [each.passage for each in rows]
        assert [dict(each.metadata) for each in texts] == [{"version": "v1"}] * 3
        tokens = sum(each.memory.token_count for each in rows)
        assert index.sizes().keys() == {"it's", "other"}
        assert index.sizes()["it's"] == DocumentSize(characters=rows[-1].passage.end, tokens=tokens)
        assert (index.texts("half"), index.texts("unknown")) == ([], [])


@pytest.mark.parametrize(
    "other",
    [
        replace(MODEL, fingerprint="e" * 64, name="other"),
        replace(MODEL, rate=8),
        replace(MODEL, memory_tokens=8),
        replace(MODEL, width=32),
    ],
    ids=["fingerprint", "rate", "memory tokens", "width"],
)
def test_a_store_of_another_model_is_refused_with_the_remedy(other: object, tmp_path: Path) -> None:
    assert isinstance(other, type(MODEL))
    LanceStore.create(tmp_path / "store", MODEL).close()
    for way in (LanceStore.create, LanceStore.open):
        with pytest.raises(StoreModelError) as raised:
            way(tmp_path / "store", other)
        for part in (MODEL.describe(), other.describe(), "--model tiny", "another --store"):
            assert part in str(raised.value)


def test_no_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for empty in (tmp_path / "nothing", tmp_path / "empty"):
        with pytest.raises(StoreNotFoundError, match="clara index PATH --store"):
            LanceStore.open(empty, MODEL)
        assert not (tmp_path / "nothing").exists()


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    (tmp_path / "photos" / "two.jpg").write_text("x")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "store.json").write_text('{"format": "shop"}')
    for name, message in (("file", "is a file"), ("photos", "holds one.jpg and 1 more"), ("shop", "not describe")):
        before = sorted(tmp_path.rglob("*"))
        for way in (LanceStore.create, LanceStore.open):
            with pytest.raises(StoreError, match=message):
                way(tmp_path / name, MODEL)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(StoreError, match="cannot be read"):
        LanceStore.open(tmp_path / ("long" * 100), MODEL)  # the system refuses to look


def test_an_address_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = Path("s3://bucket/store")  # which drops a slash
    for use in (
        lambda: LanceStore.create(address, MODEL),
        lambda: LanceStore.open(address, None),
        lambda: upgrade(address),
    ):
        with pytest.raises(StoreError, match=r"s3://bucket/store is no folder.* Index into a folder, copy it whole"):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, r"store format 3, this clara reads format 2; upgrade clara-rag"),
        ({"codec": "int8"}, r"its checksum does not fit"),
        ({"model": {"name": "tiny"}}, r"is damaged \(fingerprint: Field required; rate"),
        ({"model": None}, "is damaged"),
        (None, "is damaged"),
    ],
    ids=["newer", "another codec", "missing keys", "no model", "cut off"],
)
def test_a_description_that_cannot_be_used(change: dict[str, object] | None, message: str, tmp_path: Path) -> None:
    LanceStore.create(tmp_path / "store", MODEL).close()
    path = tmp_path / "store" / "store.json"
    text = path.read_text()
    path.write_text(text[:40] if change is None else json.dumps(json.loads(text) | change))
    for way in (LanceStore.create, LanceStore.open):
        with pytest.raises(StoreError, match=message):
            way(tmp_path / "store", MODEL)


def test_a_creation_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    stages = [tmp_path / name for name in ("locked", "draft", "described", "ledger", "folder")]
    for stage in stages:
        stage.mkdir()
        (stage / "write.lock").touch()
    (stages[1] / "store.json.draft").write_text('{"format":')
    for stage in stages[2:]:
        write_description(stage, Description(MODEL))
    for stage in stages[3:]:
        sqlite3.connect(stage / "documents.sqlite").close()  # makes a file without tables
        (stage / "documents.sqlite").touch()
    (stages[4] / "passages.lance" / "data").mkdir(parents=True)
    (stages[4] / "passages.lance" / "data" / "half.lance").write_bytes(b"half")
    for stage in stages:
        with LanceStore.create(stage, MODEL) as made:
            add_document(made, "d", "v1", 2)
            made.optimize()
            assert made.count() == len(made.search_latent(question(values("q")), 9)) == 2
    for stage in stages[2:]:
        shutil.rmtree(stage / "passages.lance")
        if stage.name == "folder":
            (stage / "passages.lance" / "_versions").mkdir(parents=True)
        with LanceStore.open(stage, None) as opened:
            assert (opened.count(), opened.documents()) == (0, {})  # not believed: its passages are gone


def test_one_process_writes_and_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_LOCK_SECONDS", 0.05)
    with LanceStore.create(tmp_path / "store", MODEL) as first, LanceStore.open(tmp_path / "store", MODEL) as second:
        add_document(first, "d", "v1", 1)
        for change in (
            lambda: second.add(document("e", "v1", 1)),
            lambda: second.remove(["d"]),
            lambda: second.finish_documents([]),
            second.optimize,
        ):
            with pytest.raises(StoreError, match="another process is writing to the store"):
                change()
        assert second.documents().keys() == {"d"}
        first.optimize()
        add_document(second, "e", "v1", 1)  # the first has ended its round
        assert first.documents().keys() == {"d", "e"}
        second.close()
        add_document(first, "f", "v1", 1)


def test_another_process_holds_the_lock(tmp_path: Path) -> None:
    LanceStore.create(tmp_path / "store", MODEL).close()
    program = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "store" / "write.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with LanceStore.open(tmp_path / "store", MODEL) as index:
            with pytest.raises(StoreError, match="another process is writing"):
                index.add(document("d", "v1", 1))
            other.kill()
            other.wait()
            index.add(document("d", "v1", 1))  # a dead process holds nothing
            assert index.count() == 1


def test_reading_a_half_made_store_waits_for_its_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_LOCK_SECONDS", 0.05)
    (tmp_path / "store").mkdir()
    write_description(tmp_path / "store", Description(MODEL))
    with (
        FileLock(tmp_path / "store" / "write.lock"),
        pytest.raises(StoreError, match="another process is writing"),
    ):
        LanceStore.open(tmp_path / "store", MODEL)
    LanceStore.open(tmp_path / "store", MODEL).close()


def test_searching_while_another_writes_and_compacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_FRAGMENTS", 2)
    query = question(values("a", "v1", 0))
    with LanceStore.create(tmp_path / "store", MODEL) as writer, LanceStore.open(tmp_path / "store", MODEL) as reader:
        add_document(writer, "a", "v1", 1)
        writer.optimize()
        done = threading.Event()
        failures: list[BaseException] = []
        searches = 0

        def search() -> None:
            nonlocal searches
            try:
                while not done.is_set():
                    assert reader.search_latent(query, 3)[0].passage.document == "a"
                    assert reader.search_hybrid(query, "karst", 3)
                    assert "a" in reader.documents()
                    searches += 1
            except BaseException as error:  # noqa: BLE001 - handed to the main thread
                failures.append(error)

        thread = threading.Thread(target=search)
        thread.start()
        for version in ("v1", "v2", "v3", "v4"):
            for uri in ("b", "c", "d"):
                add_document(writer, uri, version, 2)
            writer.remove(["c"])
            writer.optimize()
        done.set()
        thread.join()
        assert not failures
        assert searches > 3
        assert reader.count() == 5


def test_compaction_keeps_every_row_and_gives_space_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, sizes, fragments = [], [], []
    for name, files in (("scattered", 128), ("compacted", 2)):
        monkeypatch.setattr(store, "_FRAGMENTS", files)
        with LanceStore.create(tmp_path / name, MODEL) as index:
            bring_up_to_date(index, BEFORE, batch=1)
            bring_up_to_date(index, AFTER, batch=1)
            found.append(contents(index))
            sizes.append(index._table.bytes_on_disk())
            fragments.append(index._table.fragments())
    assert fragments[1] <= 2 < fragments[0]
    assert found[0] == found[1]
    assert sizes[1] < sizes[0]


def test_a_run_leaves_few_files_and_indexes_words_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_COMMIT_BYTES", 1)
    monkeypatch.setattr(store, "_SMALL_ROWS", 0)
    rows = [row("towers", "v1", number, text=f"tower {number}") for number in range(40)]
    with LanceStore.create(tmp_path / "store", MODEL) as index:
        index.add(rows)
        index.finish_documents([DocumentEntry("towers", rows[0].content_hash, 40)])
        assert index._table.fragments() == 40
        with pytest.MonkeyPatch.context() as patched:
            patched.delattr(PassageTable, "build_text_index")
            index.optimize()
        assert index._table.fragments() <= store._FRAGMENTS
        assert index._table.unindexed("lexical") == 0
        assert {hit.passage.id for hit in index.search_text("towers", 40)} == {one.passage.id for one in rows}
        assert [hit.passage.text for hit in index.search_text("17", 1)] == ["tower 17"]


def test_optimize_does_nothing_when_nothing_changed(tmp_path: Path) -> None:
    with LanceStore.create(tmp_path / "store", MODEL) as index:
        bring_up_to_date(index, BEFORE)
    folder = tmp_path / "store" / "passages.lance"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with LanceStore.open(tmp_path / "store", MODEL) as index:
        bring_up_to_date(index, BEFORE)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond ``size``: as near to a full disk as a test without a disk of its own comes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_is_a_store_error_and_leaves_the_store_whole(tmp_path: Path) -> None:
    with LanceStore.create(tmp_path / "store", MODEL) as index:
        add_document(index, "a", "v1", 2)
        big = [row("b", "v1", number, text="word " * 5000) for number in range(20)]
        with largest_file(50_000), pytest.raises(StoreError, match="make room and run the same command again"):
            index.add(big)
        assert index.count() == 2
        with largest_file(2_000), pytest.raises(StoreError, match=r"cannot be used: .*make room"):
            index.finish_documents([DocumentEntry("a", digest("a", "v1"), 2)])
        index.add(big)
        index.finish_documents([DocumentEntry("b", big[0].content_hash, 20)])
        index.optimize()
        assert index.count() == 22
        assert index.documents().keys() == {"a", "b"}


def test_a_store_of_format_1_is_upgraded_without_a_model(tmp_path: Path) -> None:
    """``make_store_v1.py`` wrote it; it holds ``AFTER`` and must go on saying so."""
    shutil.copytree(V1, tmp_path / "store")
    oracle = ExactIndex(MODEL)
    bring_up_to_date(oracle, AFTER)
    wanted = contents(oracle)
    for way in (LanceStore.create, LanceStore.open):
        with pytest.raises(StoreError, match=r"of format 1, this clara uses format 2; .*: clara upgrade .*store"):
            way(tmp_path / "store", MODEL)
    done = upgrade(tmp_path / "store")
    assert (done.passages, done.before.version, done.after.version) == (wanted["count"], 1, 2)
    assert upgrade(tmp_path / "store").passages == 0
    with LanceStore.open(tmp_path / "store", MODEL) as index:
        found = contents(index)
        for name in ("documents", "unfinished", "count", "rows"):
            assert found[name] == wanted[name], name
        assert len(index.search_text("copper karst loam", 9)) == len(oracle.search_text("copper karst loam", 9))
        assert index.damaged() == []
        bring_up_to_date(index, BEFORE)
        bring_up_to_date(oracle, BEFORE)
        assert contents(index)["rows"] == contents(oracle)["rows"]


@pytest.mark.parametrize("codec", CODECS)
def test_a_store_goes_from_codec_to_codec(codec: str, tmp_path: Path) -> None:
    with LanceStore.create(tmp_path / "store", MODEL) as index:
        bring_up_to_date(index, AFTER)
        before = contents(index)
    done = upgrade(tmp_path / "store", codec=codec)
    assert (done.before.codec, done.after.codec) == ("fp16", codec)
    with LanceStore.create(tmp_path / "store", MODEL, codec=codec) as index:
        after = contents(index)
        for name in ("documents", "unfinished", "count"):
            assert after[name] == before[name]
        assert index.codec == codec
    with pytest.raises(ConfigError, match=r"clara upgrade .* --codec"):
        LanceStore.create(tmp_path / "store", MODEL, codec="fp16" if codec != "fp16" else "int8")


def test_an_upgrade_may_die_before_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    with LanceStore.create(base, MODEL) as index:
        bring_up_to_date(index, AFTER)
        wanted, rows = contents(index)["rows"], index.count()

    class DeathError(Exception):
        """Stands for a kill."""

    died, death = True, 0
    while died:
        here = tmp_path / str(death)
        shutil.copytree(base, here)
        left, died = death, False

        def step(original: Callable[..., object]) -> Callable[..., object]:
            def run(*args: Any, **kwargs: Any) -> object:  # noqa: ANN401 - stands for any function
                nonlocal left, died
                if left == 0:
                    died = True
                    raise DeathError
                left -= 1
                return original(*args, **kwargs)

            return run

        with monkeypatch.context() as patched:
            for owner, name in ((PassageTable, "append"), (Path, "rename"), (Path, "replace"), (Ledger, "remember")):
                patched.setattr(owner, name, step(getattr(owner, name)))
            patched.setattr(shutil, "rmtree", step(shutil.rmtree))
            with suppress(DeathError):
                upgrade(here, codec="int8")
        with LanceStore.open(here, MODEL) as index:
            assert index.codec in {"fp16", "int8"}
            found = contents(index)["rows"]
            assert found == wanted or (index.codec == "int8" and index.count() == rows)
        upgrade(here, codec="int8")
        with LanceStore.open(here, MODEL) as index:
            assert (index.codec, index.settled()) == ("int8", True)
            assert sorted(path.name for path in here.iterdir()) == sorted(path.name for path in base.iterdir())
        death += 1
    assert death >= 8


def test_the_room_imports_no_torch() -> None:
    program = "import sys, clara.index; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
