"""The journal of replies: resumed after a kill, at every byte where the kill can cut it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from clara.data import DocText
from clara.errors import InputError
from clara.evaluate.cache import Failure
from clara.evaluate.journal import Entry, Journal, Provenance, query_hash
from clara.evaluate.system import Prediction, Query

KEY = {"data": "invented", "rate": 4}
ASKS = [Query(f"q{n}", f"Question {n}?", (DocText("", f"text {n}"),)) for n in range(3)]
REPLIES: list[Prediction | Failure] = [
    Prediction("an answer – é", (0,), (0,), 5, 0.5, 0.25),
    Failure(RuntimeError("out of memory\nsecond line")),
    Prediction(None, None, (), 0),
]


ORIGIN = Provenance(command="clara eval", model="bag", checkpoint="bag-1", seed=0, device="cpu")


def fill(path: Path) -> dict[str, Entry]:
    with Journal(path, KEY, origin=ORIGIN) as journal:
        journal.add(ASKS[:2], REPLIES[:2])
        journal.add(ASKS[2:], REPLIES[2:])
        return dict(journal.entries)


def test_entries_are_read_back_as_they_were_kept(tmp_path: Path) -> None:
    kept = fill(tmp_path / "j.jsonl")
    with Journal(tmp_path / "j.jsonl", KEY) as journal:
        assert journal.entries == kept
        assert journal.origins == [asdict(ORIGIN)]
    assert [kept[query_hash(ask)] for ask in ASKS] == [REPLIES[0], "RuntimeError: out of memory", REPLIES[2]]


def test_a_cut_at_any_byte_loses_only_what_came_after_it(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    kept = fill(path)
    content = path.read_bytes()
    for length in range(len(content) + 1):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(content[:length])
        whole = content[:length].count(b"\n")  # header, origin, three replies
        with Journal(cut, KEY) as journal:
            assert len(journal.entries) == max(0, whole - 2)
            missing = [ask for ask in ASKS if query_hash(ask) not in journal.entries]
            journal.add(missing, [REPLIES[ASKS.index(ask)] for ask in missing])
        with Journal(cut, KEY) as journal:
            assert journal.entries == kept


def test_errors_can_be_asked_again(tmp_path: Path) -> None:
    kept = fill(tmp_path / "j.jsonl")
    with Journal(tmp_path / "j.jsonl", KEY, retry_errors=True) as journal:
        assert journal.entries.keys() == kept.keys() - {query_hash(ASKS[1])}
        journal.add([ASKS[1]], [REPLIES[0]])
    with Journal(tmp_path / "j.jsonl", KEY) as journal:
        assert journal.entries[query_hash(ASKS[1])] == REPLIES[0]


def test_what_is_no_journal_of_this_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    fill(path)
    with pytest.raises(InputError, match="another run"):
        Journal(path, {**KEY, "rate": 16})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"not json\n" + lines[2])
    with pytest.raises(InputError, match=r"j.jsonl:2 is damaged"):
        Journal(path, KEY)
    path.write_bytes(lines[0] + json.dumps({"ask": "x"}).encode() + b"\n")
    with pytest.raises(InputError, match="no line of a journal"):
        Journal(path, KEY)
    path.write_bytes(b"".join(lines))
    with Journal(path, KEY), pytest.raises(InputError, match="another run is writing"):
        Journal(path, KEY)
    with Journal(path, KEY) as journal:
        assert len(journal.entries) == 3, "refusals leave no lock behind"


PROGRAM = """
import sys, time
from dataclasses import asdict
from pathlib import Path
from clara.data import DocText
from clara.evaluate.journal import Journal, query_hash
from clara.evaluate.system import Query, Prediction

path, log = Path(sys.argv[1]), Path(sys.argv[2])
asks = [Query(f"q{n}", f"Question {n}?", (DocText("", f"text {n}"),)) for n in range(40)]
with Journal(path, {"data": "invented"}) as journal:
    for ask in asks:
        if query_hash(ask) in journal.entries:
            continue
        time.sleep(0.02)
        journal.add([ask], [Prediction(f"answer {ask.id}", None, (), 0)])
        with log.open("a") as file:
            file.write(ask.id + "\\n")
"""


def test_kill_9_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    path, log = tmp_path / "j.jsonl", tmp_path / "asked.log"
    command = [sys.executable, "-c", PROGRAM, str(path), str(log)]
    process = subprocess.Popen(command)
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = log.read_text().splitlines()
    assert len(before) < 40, "the kill came in the middle"
    subprocess.run(command, check=True)
    asked = log.read_text().splitlines()
    # What was on disk but not yet in this test's own log is not asked again either: at most one id is missing in it.
    assert len(asked) == len(set(asked)) >= 39
    with Journal(path, {"data": "invented"}) as journal:
        assert len(journal.entries) == 40
        assert all(isinstance(entry, Prediction) for entry in journal.entries.values())
