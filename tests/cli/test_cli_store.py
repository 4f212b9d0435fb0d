"""index, info, search, remove: documents into the store, found there, and out again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from calling import Clara, on_a_terminal

from clara.cli.terminal import console
from clara.index import LanceStore

pytest_plugins = ["cli_fixtures"]

QUESTION = "Who was the first official world chess champion?"


def test_index_reports_in_json(clara: Clara, tiny_checkpoint: Path, filled: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(filled / "docs", docs)
    (docs / "broken.pdf").write_bytes(b"%PDF-1.7 nothing")
    (docs / "empty.txt").touch()
    (docs / ".hidden").touch()
    (docs / "photo.jpg").touch()
    (docs / "large.txt").write_text("word " * 5000)
    options = ("--store", tmp_path / "s", "--model", tiny_checkpoint, "--max-file-mb", 0.01, "--json")
    report = clara("index", docs, *options, "--rate", 16).json()
    assert {name: report[name] for name in ("added", "updated", "unchanged", "pruned", "hidden")} == {
        "added": 3,
        "updated": 0,
        "unchanged": 0,
        "pruned": 0,
        "hidden": 1,
    }
    assert {reason: [Path(item["uri"]).name for item in group] for reason, group in report["skipped"].items()} == {
        "broken": ["broken.pdf"],
        "empty": ["empty.txt"],
        "too large": ["large.txt"],
        "unsupported": ["photo.jpg"],
    }
    store = report["store"]
    assert (store["model"], store["rate"], store["documents"]) == (str(tiny_checkpoint), 16, 3)
    assert store["passages"] == report["passages"] > 3
    assert store["memory_bytes"] == store["passages"] * (64 // 16) * 32 * 2  # window / rate, width, fp16

    (docs / "chess.txt").write_text("Chess is a game.")
    (docs / "coffee.html").unlink()
    again = clara("index", docs, *options, "--prune").json()
    assert [again[name] for name in ("added", "updated", "unchanged", "pruned")] == [0, 1, 1, 1]
    refused = clara("index", docs, *options, "--rate", 4)
    assert refused.code == 2
    assert "16x" in refused.err


def test_index_keeps_to_the_limits_of_reading(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("Skerry Light was built in 1868, and it has 96 steps.")
    (docs / "b.md").write_text("It has 96 steps.")
    options = ("--store", tmp_path / "s", "--model", tiny_checkpoint, "--json")
    limits = ("--max-characters", 20, "--max-seconds", 60, "--max-memory-mb", 512)
    report = clara("index", docs, *options, *limits).json()
    assert report["added"] == 1
    (skipped,) = report["skipped"]["too large"]
    assert skipped["message"].endswith(
        "has 52 characters, the limit is 20; split it, or raise the limit (clara index --max-characters)"
    )
    assert clara("index", docs, *options).json()["added"] == 1
    assert "256" in clara("index", docs, *options, "--max-memory-mb", 1).err


def test_index_shows_a_report_to_people(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("# Skerry Light\n\nIt was built in 1868.")
    for number in range(12):
        (docs / f"empty{number:02}.txt").touch()
    called = clara("index", docs, "--store", tmp_path / "s", "--model", tiny_checkpoint)
    assert called.code == 0
    assert called.err == ""  # no bars where there is no terminal
    assert "1 added, 0 updated, 0 unchanged, 0 pruned" in called.out
    assert "skipped:   12 sources" in called.out
    assert called.out.count("empty0") == 10
    assert "and 2 more" in called.out


def test_index_says_what_documents_leave_out(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<nav>Menu</nav><p>Skerry Light was built in 1868.</p><p hidden>x</p>")
    options = ("--store", tmp_path / "s", "--model", tiny_checkpoint)
    assert "left out:  menus (1), hidden parts (1)" in clara("index", tmp_path / "a.html", *options).out
    (tmp_path / "b.html").write_text("<nav>Menu</nav><p>It has 96 steps.</p>")
    assert clara("index", tmp_path / "b.html", *options, "--json").json()["left_out"] == {"menus": 1}


def test_index_of_nothing_is_an_error(clara: Clara, tiny_checkpoint: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    options = ("--store", tmp_path / "s", "--model", tiny_checkpoint)
    nothing = clara("index", docs, *options)
    assert nothing.code == 2
    assert f"no document was found in {docs} (no files there)" in nothing.err
    (docs / "photo.jpg").touch()
    (docs / "empty.txt").touch()
    (docs / ".hidden").touch()
    skipped = clara("index", docs, *options, "--json")
    assert skipped.code == 2
    assert "(1 unsupported, 1 empty, 1 hidden); give files that are read" in skipped.err
    assert set(json.loads(skipped.out)["skipped"]) == {"unsupported", "empty"}
    (docs / "a.txt").write_text("Skerry Light was built in 1868.")
    assert clara("index", docs, *options).code == 0
    assert clara("index", docs, *options).code == 0  # unchanged is found
    (docs / "a.txt").unlink()
    assert clara("index", docs, *options, "--prune").code == 0  # it was asked to remove, and did


def test_index_shows_a_bar_on_a_terminal(
    clara: Clara, filled: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("index", filled / "docs", "--store", tmp_path / "s", "--model", tiny_checkpoint, "--json")
    live = on_a_terminal(monkeypatch, "stderr", *arguments)
    assert live.code == 0
    assert "passages" in live.out
    assert "22/22" in live.out
    assert "file 3 of 3" in live.out
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_a_terminal(monkeypatch, "stderr", *arguments)
    assert "\x1b[3" in live.out  # a colour
    assert "\x1b[3" not in plain.out
    assert clara("info", "--store", tmp_path / "s", "--json").json()["documents"] == 3


def test_info(clara: Clara, store: Path, tiny_checkpoint: Path) -> None:
    facts = clara("info", "--store", store, "--json").json()
    assert list(facts) == [
        *("store", "model", "fingerprint", "rate", "memory_tokens", "width", "codec"),
        *("documents", "unfinished", "passages", "memory_bytes", "bytes_on_disk"),
    ]
    assert (facts["model"], facts["rate"], facts["memory_tokens"], facts["width"]) == (str(tiny_checkpoint), 4, 16, 32)
    assert (facts["documents"], facts["unfinished"]) == (3, 0)
    assert facts["bytes_on_disk"] > facts["memory_bytes"] > 0
    listing = clara("info", "--store", store, "--documents", "--json").json()["listing"]
    assert sum(entry["passages"] for entry in listing) == facts["passages"]
    people = clara("info", "--store", store, "--documents")
    assert "4x: 16 memory tokens of width 32" in people.out
    assert all(entry["document"] in people.out for entry in listing)


@pytest.mark.parametrize("mode", ["latent", "text", "hybrid"])
def test_search(clara: Clara, store: Path, filled: Path, mode: str) -> None:
    found = clara("search", QUESTION, "--store", store, "--mode", mode, "--k", 3, "--json").json()
    assert len(found) == 3
    assert all(
        list(hit) == ["passage_id", "document", "start", "end", "score", "text", "page", "heading"] for hit in found
    )
    scores = [hit["score"] for hit in found]
    assert scores == sorted(scores, reverse=True)
    if mode == "text":
        assert found[0]["document"] == (filled / "docs" / "chess.txt").resolve().as_posix()
        text = (filled / "docs" / "chess.txt").read_text()
        assert found[0]["text"] == text[found[0]["start"] : found[0]["end"]]


def test_search_shows_a_table_with_names_as_they_are_typed_here(
    clara: Clara, store: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(filled)
    monkeypatch.setenv("CLARA_STORE", str(store))
    called = clara("search", QUESTION, "--mode", "text", "--k", 1)
    assert called.code == 0
    lines = called.out.splitlines()
    assert lines[0].split() == ["#", "score", "passage", "text"]
    assert lines[1].split()[2].startswith("docs/chess.txt:")
    nothing = clara("search", "xylograph zzz", "--mode", "text")
    assert nothing.out.startswith("no passage was found")
    assert clara("search", "xylograph zzz", "--mode", "text", "--json").json() == []


def test_remove(clara: Clara, filled: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(filled / "store", copy)
    chess = filled / "docs" / "chess.txt"
    refused = clara("remove", chess, "elsewhere.txt", "--store", copy)
    assert refused.code == 2
    assert "elsewhere.txt" in refused.err
    assert clara("info", "--store", copy, "--json").json()["documents"] == 3
    left = clara("remove", chess, "--store", copy, "--json").json()
    assert (left["removed"], left["documents"]) == (1, 2)
    assert chess.exists()
    assert clara("remove", filled / "docs", "--store", copy).out == "removed 2 documents; 0 documents left\n"
    assert clara("search", QUESTION, "--store", copy, "--mode", "text").code == 2


def test_shards_that_are_merged_are_the_store_of_one_process(
    clara: Clara, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    docs, alone = tmp_path / "docs", tmp_path / "alone"
    docs.mkdir()
    for number in range(24):  # a file's shard follows from its path, which differs from run to run
        (docs / f"{number}.txt").write_text(f"The copper tower of Karst {number} is {number} m high.\n" * (number + 1))
    clara("index", docs, "--store", alone, "--model", tiny_checkpoint)
    stores = [tmp_path / f"shard{number}" for number in (1, 2)]
    for number, store in enumerate(stores, start=1):
        call = ("index", docs, "--store", store, "--model", tiny_checkpoint)
        clara(*call, "--shard", f"{number}/2", "--json")
        assert clara(*call, "--shard", f"{number}/2", "--prune", "--json").json()["pruned"] == 0
    parts = [clara("info", "--store", store, "--json").json()["documents"] for store in stores]
    assert 0 < parts[0] < 24
    assert sum(parts) == 24
    out = tmp_path / "out"
    merged = clara("merge", *stores, "--store", out, "--json").json()
    whole = clara("info", "--store", alone, "--json").json()
    assert merged == {"store": str(out), "documents": 24, "passages": whole["passages"], "unchanged": 0}
    with LanceStore.open(out, None) as one, LanceStore.open(alone, None) as other:
        assert one.documents() == other.documents()
        for uri in one.documents():
            ids = sorted(one.passage_ids(uri))
            for left, right in zip(one.get(ids), other.get(ids), strict=True):
                assert (left.passage, left.content_hash, left.metadata) == (
                    right.passage,
                    right.content_hash,
                    right.metadata,
                )
                # A passage is compressed beside other ones in a shard, and sums of other shapes round in other ways.
                assert np.allclose(left.memory.values, right.memory.values, atol=2e-3)
    for mode in ("text", "latent", "hybrid"):
        hits, others = (
            clara("search", "tower", "--store", store, "--mode", mode, "--json").json() for store in (out, alone)
        )
        assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in others], abs=2e-3)
        if mode == "text":
            assert hits == others
    assert "0 documents with 0 passages brought over, 24 there already" in clara("merge", *stores, "--store", out).out
    assert "is one of the stores" in clara("merge", *stores, "--store", stores[0]).err
    for wrong in ("0/2", "3/2", "2", "a/b"):
        failed = clara("index", docs, "--store", out, "--shard", wrong)
        assert "a shard is I/N with I from 1 to N" in failed.err


@pytest.mark.parametrize("command", ["index", "remove", "synth"])
def test_an_empty_path_is_not_the_working_folder(
    command: str, clara: Clara, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(filled, tmp_path / "copy")
    monkeypatch.chdir(filled / "docs")
    options = ("--out", tmp_path / "records.jsonl") if command == "synth" else ("--store", tmp_path / "copy" / "store")
    called = clara(command, "", *options)
    assert called.code == 2
    assert "a path is empty; write . for the working folder" in called.err
    assert clara("info", "--store", tmp_path / "copy" / "store", "--json").json()["documents"] == 3


def test_tables_show_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console().print("deploy :rocket: [bold]now[/bold]")
    assert capsys.readouterr().out == "deploy :rocket: [bold]now[/bold]\n"


def test_a_store_of_another_model_is_refused(clara: Clara, tiny_checkpoint: Path, filled: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(filled / "store", copy)
    described = json.loads((copy / "store.json").read_text())
    described["model"]["fingerprint"] = "0123456789abcdef"
    (copy / "store.json").write_text(json.dumps(described))
    refused = clara("search", QUESTION, "--store", copy)
    assert refused.code == 2
    assert "index the documents again into another --store" in refused.err
    shutil.copytree(tiny_checkpoint, other)
    manifest = json.loads((other / "clara.json").read_text())
    (other / "clara.json").write_text(json.dumps({**manifest, "speed": 3}))
    refused = clara("search", QUESTION, "--store", filled / "store", "--model", other)
    assert refused.code == 2
    assert "speed" in refused.err


@pytest.mark.parametrize("damage", ["cut off", "gone", "overwritten", "manifest"])
def test_a_damaged_store_is_said_without_its_inner_files(
    clara: Clara, filled: Path, tmp_path: Path, damage: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(filled / "store", copy)
    for file in (copy / "passages.lance" / ("_versions" if damage == "manifest" else "data")).iterdir():
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:100] if damage == "cut off" else b"junk" * 100)
    called = clara("search", "chess", "--store", copy, "--mode", "text")
    assert (called.code, called.out) == (2, "")
    assert called.err.count("\n") == 1
    assert "index the documents again into another --store" in called.err
    for inner in ("passages.lance", ".lance", ".rs", "cargo", "rustc", "LanceError", "lance error"):
        assert inner not in called.err.replace(str(copy), ""), called.err
