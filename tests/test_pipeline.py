"""From files to cited answers, with a tiny model and a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pypdfium2
import pytest
import torch

from clara import indexing
from clara.config import CompressionConfig
from clara.errors import ConfigError, InputError, StoreError, StoreModelError, StoreNotFoundError
from clara.index import store
from clara.index.store import LanceStore
from clara.index.table import PassageTable
from clara.indexing import AddProgress, AddReport
from clara.ingest import Location, document_uri, location_of, read_file
from clara.model import ClaraModel
from clara.model.create import Loaded
from clara.pipeline import Clara, split_text
from clara.prompts import passage_text
from clara.records import ContextKind, Document, SearchMode
from clara.samples import sample_folder

QUESTION = "How tall is the Eiffel Tower?"

Make = Callable[[CompressionConfig], Loaded]


@pytest.fixture(scope="module")
def filled(tiny_model: ClaraModel, tmp_path_factory: pytest.TempPathFactory) -> Clara:
    """A store of the sample documents; not to be changed."""
    rag = Clara.open(tmp_path_factory.mktemp("stores") / "samples", model=tiny_model)
    rag.add([sample_folder()])
    return rag


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "tower.txt").write_text("The tower is 330 metres high. " * 12)
    (folder / "bees.md").write_text("# Bees\n\nBees dance to show where nectar is.\n")
    (folder / "deep" / "print.txt").write_text("Gutenberg printed in Mainz.")
    lines = [{"title": "Volcano", "text": "Lava is hot."}, {"title": "Coffee", "text": "Coffee is brewed."}]
    (folder / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def contents(rag: Clara) -> dict[str, object]:
    """All that a store holds."""
    documents = rag.store.documents()
    ids = sorted(i for uri in [*documents, *rag.store.unfinished()] for i in rag.store.passage_ids(uri))
    rows = rag.store.get(ids)
    assert len(rows) == rag.store.count(), "no passage without a document"
    return {
        "documents": documents,
        "unfinished": rag.store.unfinished(),
        "rows": [(row.passage, row.memory.values.tolist(), row.content_hash, dict(row.metadata)) for row in rows],
    }


def counts(report: AddReport) -> tuple[int, int, int, int]:
    return report.added, report.updated, report.unchanged, report.pruned


def test_adding_touches_only_what_changed(docs: Path, tmp_path: Path, tiny_model: ClaraModel) -> None:
    told: list[AddProgress] = []
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        first = rag.add([docs], progress=told.append)
        assert counts(first) == (5, 0, 0, 0)
        assert first.passages == rag.store.count() > 5
        assert first.tokens > 5 * 3
        assert [Path(item.uri).name for item in first.ingest.skipped] == ["picture.png"]
        assert told[-1].files == told[-1].files_total == 4
        before = contents(rag)

        again = rag.add([docs])
        assert counts(again) == (0, 0, 5, 0)
        assert again.passages == 0
        assert contents(rag) == before

        (docs / "bees.md").write_text("# Bees\n\nBees sleep in winter.\n")
        (docs / "new.txt").write_text("Chess has sixty-four squares.")
        changed = rag.add([docs])
        assert counts(changed) == (1, 1, 4, 0)
        assert changed.passages == 2
        assert not any("nectar" in row[0].text for row in contents(rag)["rows"])  # type: ignore[attr-defined]

        (docs / "tower.txt").unlink()
        (docs / "more.jsonl").write_text(json.dumps({"title": "Volcano", "text": "Lava is hot."}) + "\n")
        assert counts(rag.add([docs])) == (0, 0, 4, 0)
        assert document_uri(docs / "tower.txt") in rag.store.documents(), "nothing goes unless asked"
        assert counts(rag.add([docs / "deep"], prune=True)) == (0, 0, 1, 0), "only what came from there"
        assert counts(rag.add([docs], prune=True)) == (0, 0, 4, 2)
        final = contents(rag)
    with Clara.open(tmp_path / "fresh", model=tiny_model) as fresh:
        fresh.add([docs])
        assert contents(fresh) == final, "as if it had been indexed just now"


def test_pruning_keeps_what_could_not_be_read_this_time(docs: Path, tmp_path: Path, tiny_model: ClaraModel) -> None:
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add([docs])
        before = contents(rag)
        (docs / "tower.txt").write_bytes(b"\0\0\0")
        (docs / "more.jsonl").write_bytes(b"\0" * 50)
        (docs / "bees.md").write_text("x" * 5000)
        report = rag.add([docs], prune=True, max_bytes=4000)
        assert report.pruned == 0
        assert len({item.uri.partition("#")[0] for item in report.ingest.skipped}) == 4
        assert contents(rag) == before


def test_pruning_leaves_records_of_a_file_that_was_not_read(tmp_path: Path, tiny_model: ClaraModel) -> None:
    (tmp_path / ".notes.jsonl").write_text(json.dumps({"title": "Bees", "text": "Bees dance."}) + "\n")
    (tmp_path / "tower.txt").write_text("The tower is 330 metres high.")
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add([tmp_path / ".notes.jsonl", tmp_path / "tower.txt"])
        before = contents(rag)
        report = rag.add([tmp_path / "tower.txt", tmp_path], prune=True)
        assert (report.pruned, report.ingest.hidden) == (0, 1)
        assert contents(rag) == before


def test_a_number_sign_in_a_name_is_part_of_the_name(tmp_path: Path, tiny_model: ClaraModel) -> None:
    for name in ("C", "C# notes", "C#"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"About {name}.")
    faq = tmp_path / "C# notes" / "faq.jsonl"
    faq.write_text("".join(json.dumps({"text": f"Answer {i}."}) + "\n" for i in range(3)))
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add([tmp_path])
        assert rag.remove([tmp_path / "C"]) == 1
        lines = faq.read_text().splitlines()
        faq.write_text("\n".join([lines[0], "{not JSON", lines[2]]))
        (tmp_path / "C# notes" / "a.txt").unlink()
        assert rag.add([tmp_path / "C# notes"], prune=True).pruned == 1, "the record that cannot be read stays"
        left = {document_uri(faq) + f"#{i}" for i in (1, 2, 3)} | {document_uri(tmp_path / "C#" / "a.txt")}
        assert set(rag.store.documents()) == left
        assert rag.remove([faq]) == 3


def test_a_removal_that_was_cut_short_does_not_take_what_is_added_again(
    docs: Path, tmp_path: Path, tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add([docs])
        before = contents(rag)
        with monkeypatch.context() as patched:
            patched.setattr(PassageTable, "delete", stop)
            with pytest.raises(KeyboardInterrupt):
                rag.remove([docs])
        with Clara.open(tmp_path / "store", model=tiny_model) as other:
            assert other.add([docs / "bees.md"]).added == 1, "the lock was given back; promises are kept first"
        again = rag.add([docs])
        assert (again.added, again.unchanged) == (4, 1)
        (tmp_path / "more.txt").write_text("One more.")
        rag.add([tmp_path / "more.txt"])
        rag.remove([tmp_path / "more.txt"])
        assert contents(rag) == before


def test_what_holds_no_text_any_more_is_pruned(tmp_path: Path, tiny_model: ClaraModel) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "tower.txt").write_text("The tower is 330 metres high.")
    (folder / "page.html").write_text("<p>Bees dance.</p>")
    (folder / "faq.jsonl").write_text('{"text": "Coffee."}\n{"text": "Tea."}\n')
    (folder / "mill.txt").write_text("A mill.")
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add([folder])
        assert len(rag.store.documents()) == 5
        (folder / "tower.txt").write_text("")
        (folder / "page.html").write_text("<script>bees()</script>")
        (folder / "faq.jsonl").write_text("\n")
        (folder / "mill.txt").write_bytes(b"A mill.\x00\x01\x02")
        assert rag.add([folder]).pruned == 0
        assert len(rag.store.documents()) == 5
        assert rag.add([folder], prune=True).pruned == 4
        assert list(rag.store.documents()) == [str(folder / "mill.txt")], "what cannot be read keeps what it had"


def test_what_moves_keeps_its_memories(tmp_path: Path, tiny_model: ClaraModel) -> None:
    """By its words: renamed files, records that others were put before, copies, and what an edit left as it was."""
    folder = tmp_path / "docs"
    folder.mkdir()
    records = [{"title": f"Tower {i}", "text": f"Tower {i} is {3 * i} metres high."} for i in range(9)]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "bees.txt").write_text("Bees dance to show where nectar is. " * 40)
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        first = rag.add([folder])
        assert (first.reused, first.added) == (0, 10)
        (folder / "bees.txt").rename(folder / "insects.txt")
        moved = rag.add([folder], prune=True)
        assert (moved.added, moved.pruned, moved.passages, moved.tokens) == (1, 1, 0, 0)
        assert moved.reused > 1
        new = {"title": "Mill", "text": "A mill grinds corn."}
        (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [new, *records]))
        shifted = rag.add([folder], prune=True)
        assert (shifted.passages, shifted.reused) == (1, 9)
        (folder / "copy.txt").write_text((folder / "insects.txt").read_text())
        copied = rag.add([folder])
        assert (copied.passages, copied.reused) == (0, moved.reused)
        (folder / "copy.txt").write_text((folder / "insects.txt").read_text() + "\n\n" + "A new end. " * 20)
        edited = rag.add([folder])
        assert edited.reused > 0
        assert 0 < edited.passages < moved.reused
        final = contents(rag)
    with Clara.open(tmp_path / "fresh", model=tiny_model) as fresh:
        fresh.add([folder])
        assert contents(fresh)["documents"] == final["documents"]
        rows = zip(contents(fresh)["rows"], final["rows"], strict=True)  # type: ignore[call-overload]
        for (passage, values, *rest), (other, stored, *others) in rows:
            assert (passage, rest) == (other, others)
            # A batch of other texts rounds otherwise, and so does fp16.
            np.testing.assert_allclose(np.asarray(values), np.asarray(stored), atol=0.02, rtol=0.01)


def test_a_run_leaves_no_second_copy_and_an_unchanged_one_touches_nothing(
    tmp_path: Path, tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_PASSAGES_A_BATCH", 4)
    monkeypatch.setattr(indexing, "_COMMIT_SECONDS", 0)
    monkeypatch.setattr(store, "_FRAGMENTS", 8)
    monkeypatch.setattr(store, "_COMMITS_A_CHECK", 4)  # compacts within the run, too
    monkeypatch.setattr(store, "_WASTE_BYTES", 0)
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(f"Tower {number} is {number * 3} metres high.")
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add([folder])
        table = rag.store._table
        assert table.fragments() <= 10
        # Besides the tenth, manifests, of which a busy machine leaves up to 75 kB: a second copy would be 150.
        assert table.bytes_on_disk() <= 1.1 * table.live_bytes() + 100 * 1024
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()}
    refreshed = 0
    refresh = PassageTable.refresh

    def counted(self: PassageTable) -> int:
        nonlocal refreshed
        refreshed += 1
        return refresh(self)

    monkeypatch.setattr(PassageTable, "refresh", counted)
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        assert rag.add([folder]).unchanged == 60
    assert refreshed < 10, "not once a document"
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert {path.name for path in files if files[path] != after.get(path)} <= {"write.lock"}


def test_an_update_that_was_cut_short_and_taken_back_leaves_nothing(
    tmp_path: Path, tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_COMMIT_SECONDS", 0)
    monkeypatch.setattr(indexing, "_PASSAGES_A_BATCH", 2)
    file = tmp_path / "tower.txt"
    file.write_text("The tower is 330 metres high.")
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add([file])
        before = contents(rag)
        file.write_text("Bees dance to show where nectar is. " * 40)

        def stop(_: AddProgress) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rag.add([file], progress=stop)
        assert rag.store.count() > 1, "some passages of the new version are stored"
    file.write_text("The tower is 330 metres high.")
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        report = rag.add([file])
        assert (report.unchanged, report.passages) == (1, 0)
        assert contents(rag) == before
        assert rag.search("bees nectar", mode="text") == []


def test_a_call_that_was_killed_before_the_indexes_is_finished_by_the_same_call(
    docs: Path, tmp_path: Path, tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Clara.open(tmp_path / "fresh", model=tiny_model) as rag:
        rag.add([docs])
        wanted = [(hit.passage.id, hit.score) for hit in rag.search("tower", mode="text")]

    def killed(_: LanceStore) -> None:
        raise KeyboardInterrupt

    with Clara.open(tmp_path / "killed", model=tiny_model) as rag:
        rag.add([docs / "bees.md"])
        with monkeypatch.context() as patched:
            patched.setattr(LanceStore, "optimize", killed)
            with pytest.raises(KeyboardInterrupt):
                rag.add([docs])
    with Clara.open(tmp_path / "killed", model=tiny_model) as rag:
        assert not rag.store.settled()
        assert rag.add([docs]).passages == 0
        assert rag.store.settled(), "and other processes may write"
        assert [(hit.passage.id, hit.score) for hit in rag.search("tower", mode="text")] == wanted


def test_choices_that_there_are_not(filled: Clara) -> None:
    calls: list[dict[str, Any]] = [{"mode": "latnet"}, {"context": "memories"}, {"wording": "quote"}]
    for wrong in calls:
        (name,) = wrong
        with pytest.raises(InputError, match=rf"{name} must be one of .*, got '{wrong[name]}'"):
            filled.ask(QUESTION, **wrong)
        with pytest.raises(InputError, match=rf"{name} must be one of"):
            filled.stream(QUESTION, **wrong)
    with pytest.raises(InputError, match="mode must be one of latent, text, hybrid, got 'latnet'"):
        filled.search(QUESTION, mode="latnet")  # type: ignore[arg-type]


def test_one_path_is_one_path(docs: Path, tmp_path: Path, tiny_model: ClaraModel) -> None:
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        assert rag.add(str(docs)).added == 5
        assert rag.remove(str(docs / "tower.txt")) == 1
        assert rag.add(docs / "tower.txt").added == 1


def test_a_call_that_failed_lets_others_write(
    docs: Path, tmp_path: Path, tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_COMMIT_SECONDS", 0)
    monkeypatch.setattr(indexing, "_PASSAGES_A_BATCH", 1)

    def stop(_: AddProgress) -> None:
        if rag.store._lock.is_locked:
            raise KeyboardInterrupt

    rag = Clara.open(tmp_path / "store", model=tiny_model)
    with pytest.raises(KeyboardInterrupt):
        rag.add([docs], progress=stop)
    with Clara.open(tmp_path / "store", model=tiny_model) as other:
        other.add([docs])
        assert len(other.store.documents()) == 5
    rag.close()
    with pytest.raises(StoreError, match="the store is closed; open it again"):
        rag.search("tower", mode="text")


def test_an_answer_says_whether_it_is_whole(filled: Clara) -> None:
    assert filled.ask(QUESTION, max_new_tokens=2).finish_reason == "length"


def test_removing(docs: Path, tmp_path: Path, tiny_model: ClaraModel) -> None:
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add([docs])
        with pytest.raises(InputError, match=r"nothing in the store comes from .*nothing"):
            rag.remove([docs / "tower.txt", docs / "nothing"])
        several: list[str | Path] = [docs / "tower.txt", ""]
        for empty in ("", several):
            with pytest.raises(InputError, match=r"a path is empty; write \. for the working folder"):
                rag.remove(empty)
            with pytest.raises(InputError, match="a path is empty"):
                rag.add(empty)
        assert len(rag.store.documents()) == 5, "nothing is removed then"
        uri = f"{document_uri(docs / 'more.jsonl')}#1"
        assert uri in rag.store.documents()
        assert rag.remove([uri]) == 1
        assert rag.remove([docs / "more.jsonl"]) == 1
        assert rag.remove([docs / "tower.txt", docs / "deep"]) == 2
        assert list(rag.store.documents()) == [document_uri(docs / "bees.md")]
        assert rag.remove([docs]) == 1
        assert rag.store.count() == 0


VICTIM = """
import sys
from clara import Clara, ClaraModel, indexing
indexing._PASSAGES_A_BATCH, indexing._COMMIT_SECONDS = 4, 0
store, checkpoint, docs = sys.argv[1:]
def tell(progress):
    print(progress.passages, flush=True)
Clara.open(store, model=ClaraModel.load(checkpoint, dtype="fp32")).add([docs], progress=tell)
"""


def test_a_killed_add_is_finished_by_the_same_call(
    tiny_checkpoint: Path, tiny_model: ClaraModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for number in range(30):
        (docs / f"{number:02}.txt").write_text(f"Tower {number} is {number * 3} metres high. " * (1 + number % 9))
    arguments = [str(tmp_path / "killed"), str(tiny_checkpoint), str(docs)]
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", VICTIM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 12:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL

    monkeypatch.setattr(indexing, "_COMMIT_SECONDS", 0)
    monkeypatch.setattr(indexing, "_PASSAGES_A_BATCH", 4)
    with Clara.open(tmp_path / "undisturbed", model=tiny_model) as rag:
        whole = rag.add([docs])
        wanted = contents(rag)
    with Clara.open(tmp_path / "killed", model=tiny_model) as rag:
        assert 12 <= rag.store.count() < whole.passages
        report = rag.add([docs])
        assert 0 < report.passages <= whole.passages - 12, "what is stored is not compressed again"
        found = contents(rag)
    assert found["documents"] == wanted["documents"]
    assert found["unfinished"] == wanted["unfinished"] == set()
    for left, right in zip(found["rows"], wanted["rows"], strict=True):  # type: ignore[call-overload]
        assert (left[0], left[2:]) == (right[0], right[2:])
        # Other neighbours in a batch move a stored fp16 number by a rounding step at most.
        assert np.allclose(left[1], right[1], atol=2e-3)


@pytest.mark.parametrize("mode", get_args(SearchMode))
@pytest.mark.parametrize("context", get_args(ContextKind))
def test_asking(mode: SearchMode, context: ContextKind, filled: Clara) -> None:
    answer = filled.ask(QUESTION, k=3, mode=mode, context=context, max_new_tokens=6)
    assert answer.context == context
    assert answer.tokens.generated <= 6
    assert answer.seconds.total >= answer.seconds.generate > 0
    if context == "none":
        assert answer.citations == ()
        assert answer.seconds.search == answer.seconds.query == 0
    else:
        hits = filled.search(QUESTION, 3, mode=mode)
        assert [c.passage_id for c in answer.citations] == [hit.passage.id for hit in hits]
        assert [c.score for c in answer.citations] == sorted((hit.score for hit in hits), reverse=True)
        assert len(hits) == 3
    assert answer.tokens.memory == (3 * 16 if context == "memory" else 0)
    assert answer.tokens.text_equivalent >= answer.tokens.prompt
    stream = filled.stream(QUESTION, 3, mode=mode, context=context, max_new_tokens=6)
    assert stream.citations == answer.citations
    assert "".join(stream.pieces).strip() == answer.text


def test_contexts_give_other_answers(filled: Clara) -> None:
    answers = {filled.ask(QUESTION, context=context, max_new_tokens=6).text for context in get_args(ContextKind)}
    assert len(answers) == 3


@pytest.mark.parametrize("context", ["memory", "text"])
def test_a_quoted_answer_stands_in_a_cited_passage(context: ContextKind, filled: Clara) -> None:
    answer = filled.ask(QUESTION, k=2, context=context, wording="quoted", max_new_tokens=48)
    titles_and_texts = [passage_text(hit.passage.title, hit.passage.text) for hit in filled.search(QUESTION, 2)]
    assert any(answer.text in text for text in titles_and_texts) or answer.text.lower() in {"yes", "no"}
    free = filled.ask(QUESTION, k=2, context=context, wording="free", max_new_tokens=48)
    assert free.text != answer.text
    stream = filled.stream(QUESTION, 2, context=context, wording="quoted", max_new_tokens=48)
    assert "".join(stream.pieces).strip() == answer.text


def test_the_checkpoint_says_how_answers_from_memories_are_worded(
    filled: Clara, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: dict[ContextKind, str] = {}
    for context in get_args(ContextKind):
        plain[context] = filled.ask(QUESTION, context=context, max_new_tokens=8).text
    quoting = filled.model.manifest.model_copy(update={"wording": "quoted"})
    monkeypatch.setattr(filled.model, "manifest", quoting)
    for context, before in plain.items():
        after = filled.ask(QUESTION, context=context, max_new_tokens=8).text
        assert (after != before) == (context == "memory"), context
    assert filled.ask(QUESTION, wording="free", max_new_tokens=8).text == plain["memory"]
    with pytest.raises(InputError, match="nothing to quote"):
        filled.ask(QUESTION, context="none", wording="quoted")


def test_text_search_finds_the_words(filled: Clara) -> None:
    for mode in ("text", "hybrid"):
        best = filled.search("Gustave Eiffel tower Paris", 1, mode=mode)[0]
        assert best.passage.document.endswith("eiffel-tower.md")


def test_latent_search_finds_a_passage_by_its_own_words(filled: Clara) -> None:
    passage = filled.search("printing press", 1, mode="text")[0].passage
    hit = filled.search(passage_text(passage.title, passage.text), 1, mode="latent")[0]
    assert hit.passage == passage
    assert hit.score == pytest.approx(1, abs=1e-3), "the reasoner is the compressor so far"


def test_citations_point_into_the_source(filled: Clara) -> None:
    for question in (QUESTION, "Who invented the printing press?", "How do bees dance?"):
        for citation in filled.ask(question, k=4, max_new_tokens=1).citations:
            (document,) = read_file(Path(citation.document))
            assert isinstance(document, Document)
            assert document.text[citation.start : citation.end] == citation.text
            if citation.document.endswith(".txt"):
                assert Path(citation.document).read_text()[citation.start : citation.end] == citation.text


def test_a_hit_knows_its_page_or_its_heading(tiny_model: ClaraModel, tmp_path: Path) -> None:
    (tmp_path / "fees.md").write_text("# Fees\n\nTen euro.\n\n## Refunds\n\nNone are granted.\n")
    twice = pypdfium2.PdfDocument.new()
    with pypdfium2.PdfDocument(sample_folder() / "printing-press.pdf") as sample:
        for _ in range(2):
            twice.import_pages(sample)
    pages = tmp_path / "twice.pdf"
    twice.save(pages)
    twice.close()
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        rag.add([tmp_path / "fees.md", pages])
        (hit,) = (hit for hit in rag.search("granted", mode="text") if "granted" in hit.passage.text)
        offset = hit.passage.start + hit.passage.text.index("granted")
        assert location_of(hit.metadata, offset) == Location(None, "Refunds")
        (document,) = read_file(pages)
        assert isinstance(document, Document)
        first, second = document.pages
        assert document.text[second:] == document.text[first : second - 2]
        rows = rag.store.get(sorted(rag.store.passage_ids(document.uri)))
        (row,) = (row for row in rows if row.passage.start <= second < row.passage.end)
        assert location_of(row.metadata, second) == Location(2, "")
        assert {location_of(row.metadata, row.passage.start).page for row in rows} == {1, 2}


def test_questions_that_cannot_be_answered(filled: Clara, tmp_path: Path, tiny_model: ClaraModel) -> None:
    for context in get_args(ContextKind):
        with pytest.raises(InputError, match="question is empty"):
            filled.ask(" \n", context=context)
    with pytest.raises(InputError, match="k"):
        filled.search(QUESTION, 0)
    with pytest.raises(InputError, match="no passage was found by text search"):
        filled.ask("zzzzqqq", mode="text")
    with Clara.open(tmp_path / "empty", model=tiny_model) as rag:
        with pytest.raises(StoreError, match="the store is empty; add documents first"):
            rag.ask(QUESTION)
        assert rag.ask(QUESTION, context="none", max_new_tokens=2).citations == ()
        with pytest.raises(InputError, match="nowhere"):
            rag.add([tmp_path / "nowhere"])


def test_opening(tmp_path: Path, tiny_model: ClaraModel) -> None:
    with pytest.raises(StoreNotFoundError, match="none"):
        Clara.open(tmp_path / "none", model=tiny_model, create=False)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="not 8x"):
        Clara.open(tmp_path / "none", model=tiny_model, rate=8)
    with Clara.open(tmp_path / "store", model=tiny_model, rate=16) as rag:
        assert rag.rate == 16
    with Clara.open(tmp_path / "store", model=tiny_model, create=False) as rag:
        assert rag.rate == 16, "a store keeps its own rate"
    with pytest.raises(StoreModelError, match="at rate 16"):
        Clara.open(tmp_path / "store", model=tiny_model, rate=4)


@pytest.mark.parametrize("rates", [(4, 16), (8,)])
def test_a_store_of_another_model_is_refused(
    rates: tuple[int, ...], make_network: Make, tmp_path: Path, tiny_model: ClaraModel
) -> None:
    loaded = make_network(CompressionConfig(window_tokens=64, rates=rates))
    with torch.no_grad():
        loaded.network.adapters.parameters_of("compressor")[1].mul_(2)
    other = ClaraModel("other", loaded)
    with Clara.open(tmp_path / "store", model=tiny_model, rate=16) as rag:
        rag.add([sample_folder() / "chess.txt"])
    for create in (False, True):
        with pytest.raises(StoreModelError, match=r"--model .* or index the documents again into another --store"):
            Clara.open(tmp_path / "store", model=other, create=create)


def test_split_text_covers_the_text(tiny_model: ClaraModel) -> None:
    text = (sample_folder() / "volcano.txt").read_text(encoding="utf-8")
    passages = split_text(text, tiny_model, title="Volcanoes")
    assert len(passages) > 3
    assert "".join(passage.text for passage in passages) == text
    assert [passage.start for passage in passages[1:]] == [passage.end for passage in passages[:-1]]
    memories = tiny_model.compress([passage_text(passage.title, passage.text) for passage in passages])
    assert len(memories) == len(passages)
    assert split_text("short", tiny_model)[0].text == "short"


def test_a_k_beyond_the_store_is_all_and_wrong_types_are_said(filled: Clara) -> None:
    everything = filled.search(QUESTION, k=2**40, mode="hybrid")
    assert len(everything) == filled.store.count()
    assert filled.ask(QUESTION, k=2**70, max_new_tokens=1).citations
    wrong: Any
    for wrong in (2.5, "5", 0, -1):
        with pytest.raises(InputError, match="k must be a whole number of at least 1, got"):
            filled.search(QUESTION, k=wrong)
        with pytest.raises(InputError, match="max_new_tokens must be a whole number"):
            filled.ask(QUESTION, max_new_tokens=wrong)
    wrong = 5
    with pytest.raises(InputError, match="a question is a text, got 5"):
        filled.ask(wrong)
    with pytest.raises(InputError, match="a path is a text or a Path, got 5"):
        filled.add(wrong)


def test_progress_tells_how_many_passages_there_will_be(tmp_path: Path, tiny_model: ClaraModel) -> None:
    """About, while one long text, many records and files of several kinds are read; exactly at the end."""
    texts = [f"Sentence {n} of the story tells about the mill on the river. " for n in range(400)]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "long.txt").write_text("".join(texts), "utf-8")
    records = (json.dumps({"title": f"T{n}", "text": "".join(texts[4 * n : 4 * n + 4])}) for n in range(100))
    (tmp_path / "docs" / "many.jsonl").write_text("\n".join(records) + "\n", "utf-8")
    for n in range(20):
        (tmp_path / "docs" / f"page{n}.md").write_text("".join(texts[20 * n : 20 * n + 20]), "utf-8")
    told: list[AddProgress] = []
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        total = rag.add([tmp_path / "docs"], progress=told.append).passages
        compressing = [progress for progress in told if progress.passages]
        assert compressing[0].passages == 8, "the first commit comes soon"
        for progress in compressing:
            assert progress.passages_expected is not None
            assert 0.6 * total < progress.passages_expected < 1.6 * total, progress
            assert progress.seconds_left is not None
            assert progress.passages_per_second == progress.passages / progress.seconds
        assert told[-1].passages_expected == total
        assert [progress.passages for progress in told] == sorted(progress.passages for progress in told)
        told.clear()
        with (tmp_path / "docs" / "page3.md").open("a") as page:
            page.write("A last sentence about something else entirely. " * 60)
        rag.add([tmp_path / "docs"], progress=told.append)
        assert told[0].passages_expected is None, "what is unchanged says nothing of what is to do"
        assert told[-1].seconds_left is not None


def test_a_dense_page_at_first_does_not_mislead_the_progress(tmp_path: Path, tiny_model: ClaraModel) -> None:
    (tmp_path / "docs").mkdir()
    text = "".join(f"<p>Sentence {n} tells about the mill on the river.</p>\n" for n in range(60))
    (tmp_path / "docs" / "a.html").write_text(f"<body>{text}</body>", "utf-8")
    style = "<style>" + "p { margin: 0 1em 0 1em }\n" * 150 + "</style>"
    for n in range(30):
        page = f"<head>{style}</head><body><p>Page {n} tells about the mill.</p>{text[: 10 * len(text) // 60]}</body>"
        (tmp_path / "docs" / f"b{n:02}.html").write_text(page, "utf-8")
    told: list[AddProgress] = []
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        total = rag.add([tmp_path / "docs"], progress=told.append).passages
    first = next(progress.passages_expected for progress in told if progress.passages_expected)
    assert 0.4 * total < first < 2.5 * total
    assert told[-1].passages_expected == total


def test_the_first_passages_are_stored_at_once(tmp_path: Path, tiny_model: ClaraModel) -> None:
    (tmp_path / "long.txt").write_text("Sentence of the story about the mill on the river. " * 200, "utf-8")

    def stop(_: AddProgress) -> None:
        raise KeyboardInterrupt

    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        with pytest.raises(KeyboardInterrupt):
            rag.add([tmp_path / "long.txt"], progress=stop)
        assert rag.store.count() == 8


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are listed by Linux")
def test_a_store_that_grows_keeps_no_deleted_file_open(tiny_model: ClaraModel, tmp_path: Path) -> None:
    """LanceDB's cache of indexes does, until it is given up."""
    documents = tmp_path / "documents"
    documents.mkdir()
    with Clara.open(tmp_path / "store", model=tiny_model) as rag:
        for number in range(3):
            words = ". ".join(f"word{place} and word{place + number}" for place in range(800))
            (documents / f"{number}.txt").write_text(words)  # lists too long to be kept in line
            rag.add([documents])
            assert rag.search("word7 word8", k=9, mode="text")
        links = [os.readlink(path) for path in list(Path("/proc/self/fd").iterdir()) if os.path.lexists(path)]  # noqa: PTH115
    assert [name for name in links if name.startswith(str(tmp_path)) and name.endswith("(deleted)")] == []
