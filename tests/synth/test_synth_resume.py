"""Killed at any moment and resumed: nothing asked again that was stored, no record lost, none doubled."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import killable
import pytest
from cases import knowledge, passage, write_passages
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clara.errors import SynthesisError
from clara.synth.client import _request_key
from clara.synth.drafts import SourcePassage
from clara.synth.output import _ACCEPTED, _DROPPED, Output, _read_lines
from clara.synth.run import SynthJob, synthesize
from clara.synth.settings import SynthSettings
from clara.synth.sources import Sources
from llm_server import LLMServer, serving

_PASSAGES = 24
_CONCURRENCY = 4
_KILLS = 5


def asked(llm: LLMServer, since: int) -> list[str]:
    """The cache keys of the requests from the ``since``-th on."""
    return [_request_key(call.body, call.body["seed"] + 1) for call in llm.calls[since:]]


def record(name: str, text: str = "x") -> dict[str, Any]:
    """An accepted record with what ``Output`` and the report need."""
    return {"id": name, "text": text, "qa": [], "complex_qa": [], "rounds": 1, "provenance": {"rejections": {}}}


def by_id(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records in a fixed order, without the time of writing."""
    bare = [{**record, "provenance": {**record["provenance"], "date": ""}} for record in records]
    return sorted(bare, key=lambda record: str(record["id"]))


def in_one_go(folder: Path, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a run that nobody kills, of the same passages and replies."""
    with serving(LLMServer(known)) as llm:
        passages = write_passages(folder / "in.jsonl", len(known))
        killable.run(passages, folder / "out.jsonl", llm.url, _CONCURRENCY, resume=False)
    return list(_read_lines(folder / "out.jsonl", _ACCEPTED))


def test_killed_runs_lose_nothing_and_ask_nothing_twice(tmp_path: Path) -> None:
    known = knowledge(_PASSAGES)
    known[passage(3).text]["paraphrase"] = {"paraphrase": passage(3).text}  # one is dropped
    known[passage(5).text]["judge"] = [
        {"consistent": False, "covered": True, "wrong": ["S2: no"]},
        {"consistent": True, "covered": True},
    ]
    moments = random.Random(4)
    with serving(LLMServer(known, delay=0.02)) as llm:
        passages, out = write_passages(tmp_path / "in.jsonl", _PASSAGES), tmp_path / "out.jsonl"
        stored: list[set[str]] = []  # after each kill, and where the log stood
        marks: list[int] = []
        for kill in range(_KILLS):
            target = len(llm.calls) + moments.randint(5, 20)
            process = killable.start(passages, out, llm.url, _CONCURRENCY, resume=kill > 0)
            while len(llm.calls) < target:
                assert process.is_alive()
                time.sleep(0.002)
            time.sleep(moments.random() * 0.03)
            process.kill()
            process.join()
            with closing(sqlite3.connect(tmp_path / "out.jsonl.cache.sqlite3")) as cache:
                stored.append({key for (key,) in cache.execute("SELECT key FROM replies")})
            marks.append(len(llm.calls))
        killable.run(passages, out, llm.url, _CONCURRENCY, resume=True)
    for keys, mark in zip(stored, marks, strict=True):
        assert len(keys) > 0
        assert not keys & set(asked(llm, mark)), "what was stored is not asked again"
    everything = asked(llm, 0)
    assert len(everything) - len(set(everything)) <= _KILLS * _CONCURRENCY
    finished = list(_read_lines(tmp_path / "out.jsonl", _ACCEPTED))
    dropped = list(_read_lines(tmp_path / "out.jsonl.dropped.jsonl", _DROPPED))
    assert sorted(record["id"] for record in finished + dropped) == sorted(f"case:{n}" for n in range(_PASSAGES))
    assert [record["id"] for record in dropped] == ["case:3"]
    assert next(record for record in finished if record["id"] == "case:5")["rounds"] == 2
    (tmp_path / "whole").mkdir()
    undisturbed = in_one_go(tmp_path / "whole", known)
    assert by_id(finished) == by_id(undisturbed)


@given(cut=st.integers(min_value=0, max_value=400))
@hypothesis_settings(deadline=None, max_examples=40)
def test_a_torn_last_line_is_cut_wherever_it_was_torn(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "out.jsonl"
    lines = [record(f"a{n}", "süß\n" * n) for n in range(1, 4)]
    with Output(path, resume=False) as output:
        for line in lines:
            output.accept(line)
    whole = path.read_bytes()
    kept = whole[: max(0, len(whole) - cut)]
    path.write_bytes(kept)
    with Output(path, resume=True) as output:
        assert {line["id"] for line in _read_lines(path, _ACCEPTED)} == {
            f"a{n}" for n in range(1, 1 + kept.count(b"\n"))
        }
        output.accept(record("new"))
    assert [line["id"] for line in _read_lines(path, _ACCEPTED)][-1] == "new"
    assert path.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])


def test_an_output_that_is_there_needs_resume(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(path, resume=False) as output:
        output.accept(record("a"))
    with pytest.raises(SynthesisError, match="--resume"):
        Output(path, resume=False)
    with Output(path, resume=True) as output:
        assert {line["id"] for line in _read_lines(path, _ACCEPTED)} == {"a"}


def test_two_runs_cannot_write_one_output(tmp_path: Path) -> None:
    another = pytest.raises(SynthesisError, match="another run is writing")
    with Output(tmp_path / "out.jsonl", resume=False), another:
        Output(tmp_path / "out.jsonl", resume=True)
    Output(tmp_path / "out.jsonl", resume=True).close()


@pytest.mark.parametrize(
    "content",
    [
        b"a thesis without a line end",
        b"[1]\n",
        b'{"id": 3, "text": "x"}\n',
        b"no\n",
        b'{"id": "a", "source": "s", "title": "", "text": "a passage"}\n',
        b'{"id": "a", "source": "s", "title": "", "text": "a passage without a line end"}',
    ],
)
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(SynthesisError, match="another --out"), Output(path, resume=True) as output:
        output.unfinished([])
    assert path.read_bytes() == content


def test_a_changed_passage_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    in_one_go(tmp_path, knowledge(1))
    item = passage(0)
    changed = Sources((SourcePassage(item.id, "x", "", item.text + " And so on."),), {}, ())
    settings = SynthSettings.model_validate({"server": {"url": "http://127.0.0.1:9", "model": "m"}})
    with pytest.raises(SynthesisError, match="case:0"):
        synthesize(changed, settings, SynthJob(tmp_path / "out.jsonl", resume=True))
    assert len(list(_read_lines(tmp_path / "out.jsonl", _ACCEPTED))) == 1


@pytest.mark.parametrize(
    ("name", "lacking"), [("out.jsonl", "qa, complex_qa, rounds, provenance"), ("out.jsonl.dropped.jsonl", "dropped")]
)
def test_records_that_no_run_wrote_are_refused_before_the_first_request(
    tmp_path: Path, name: str, lacking: str
) -> None:
    passages = write_passages(tmp_path / "in.jsonl", 2)
    (tmp_path / name).write_bytes(passages.read_bytes())
    with serving(LLMServer(knowledge(2))) as llm, pytest.raises(SynthesisError, match=f"lacks {lacking}.*--out"):
        killable.run(passages, tmp_path / "out.jsonl", llm.url, _CONCURRENCY, resume=True)
    assert llm.calls == []
    assert (tmp_path / name).read_bytes() == passages.read_bytes()


def test_a_record_without_its_counted_rejections_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps({**record("a"), "provenance": {}}) + "\n", "utf-8")
    with pytest.raises(SynthesisError, match=r"lacks provenance\.rejections"):
        list(_read_lines(path, _ACCEPTED))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A write that stops half-way (here: a limit on the file's size) is taken back."""
    code = f"""
import resource, signal
from pathlib import Path
from clara.errors import SynthesisError
from clara.synth.output import Output
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Output(Path({str(tmp_path / "out.jsonl")!r}), resume=False) as output:
    output.accept({record("a", "x" * 20)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    try:
        output.accept({{"id": "b", "text": "y" * 1000}})
    except SynthesisError as error:
        assert "make room" in str(error), error
    else:
        raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
    assert [line["id"] for line in _read_lines(tmp_path / "out.jsonl", _ACCEPTED)] == ["a"]
