"""``--engine ray`` against the scripted server: the same records as one process writes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cases import knowledge, passage, write_passages

from clara.errors import SynthesisError
from clara.synth.report import SynthReport
from clara.synth.run import Job, synthesize
from clara.synth.settings import SynthSettings
from clara.synth.sources import read_sources
from llm_server import LLMServer, always, serving

# In a process of its own: Ray starts many, and this one may open no sockets but the test server's.
_CODE = """
import sys
from pathlib import Path
from clara.synth.run import Job, synthesize
from clara.synth.settings import SynthSettings
from clara.synth.sources import read_sources

passages, out, url, engine, budget, concurrency = sys.argv[1:]
sources = read_sources([Path(passages)], passage_words=190, min_passage_words=8)
server = {"url": url, "model": "scripted", "concurrency": int(concurrency)}
values = {"server": server, "sampling": {"max_output_tokens": 256}, "budget": {"max_tokens": int(budget) or None}}
job = Job(Path(out), resume=True, engine=engine, workers=2)
report = synthesize(sources, SynthSettings.model_validate(values), job)
print(report.accepted, report.unfinished, report.run.requests, report.run.spent.total, report.run.stopped or "-")
"""


def call(folder: Path, llm: LLMServer, engine: str, budget: int = 0, concurrency: int = 4) -> list[str]:
    files = [str(folder / "in.jsonl"), str(folder / f"{engine}.jsonl")]
    arguments = [*files, llm.url, engine, str(budget), str(concurrency)]
    done = subprocess.run([sys.executable, "-c", _CODE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-5:]


def lines(path: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    bare = [{**record, "provenance": {**record["provenance"], "date": ""}} for record in records]
    return sorted(bare, key=lambda record: str(record["id"]))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra scale)")
def test_a_cluster_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr("ray.init", refuse)
    sources = read_sources([write_passages(tmp_path / "in.jsonl", 1)], passage_words=190, min_passage_words=8)
    settings = SynthSettings.model_validate({"server": {"url": "http://127.0.0.1:9", "model": "m"}})
    job = Job(tmp_path / "out.jsonl", engine="ray", ray_address="ray://nowhere:1")
    with pytest.raises(SynthesisError, match=r"ray://nowhere:1.*RAY_ADDRESS"):
        synthesize(sources, settings, job)


@dataclass(eq=False)
class Task:
    """A Ray task that was done at once, in this process."""

    result: Any


@pytest.fixture
def one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray without its processes: what is handed out is done on the spot, and comes back in the same order."""

    class Function:
        def __init__(self, function: Callable[..., Any]) -> None:
            self._function = function

        def remote(self, *arguments: object) -> Task:
            return Task(self._function(*arguments))

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.remote", lambda **_: Function)
    monkeypatch.setattr("ray.wait", lambda tasks, **_: (tasks[:1], tasks[1:]))
    monkeypatch.setattr("ray.get", lambda task: task.result)


def run_chunks(folder: Path, llm: LLMServer, count: int) -> SynthReport:
    """A run over chunks of one passage each."""
    sources = read_sources([write_passages(folder / "in.jsonl", count)], passage_words=190, min_passage_words=8)
    settings = SynthSettings.model_validate({"server": {"url": llm.url, "model": "scripted", "concurrency": 2}})
    return synthesize(sources, settings, Job(folder / "out.jsonl", engine="ray", workers=2, resume=True))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra scale)")
@pytest.mark.usefixtures("one_after_another")
@pytest.mark.parametrize("count", [3, 8])
def test_a_server_that_refuses_every_chunk_ends_the_run_and_costs_no_passage(tmp_path: Path, count: int) -> None:
    llm = LLMServer(knowledge(count), script=always("400"))
    with serving(llm) as server:
        with pytest.raises(SynthesisError, match=r"every passage so far \([356]\) was refused.*scripted 400"):
            run_chunks(tmp_path, server, count)
        assert (tmp_path / "out.jsonl.dropped.jsonl").read_bytes() == b""
        llm.script = always("")
        report = run_chunks(tmp_path, server, count)
    assert (report.accepted, report.dropped, report.unfinished) == (count, {}, 0)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra scale)")
@pytest.mark.usefixtures("one_after_another")
def test_chunks_refused_before_the_first_reply_are_dropped_after_it(tmp_path: Path) -> None:
    refused = [passage(number).text for number in range(3)]
    llm = LLMServer(knowledge(6), script=lambda asked: "400" if any(text in asked.prompt for text in refused) else "")
    with serving(llm) as server:
        report = run_chunks(tmp_path, server, 6)
    assert (report.accepted, report.dropped, report.unfinished) == (3, {"request_refused": 3}, 0)
    dropped = lines(tmp_path / "out.jsonl.dropped.jsonl")
    assert [record["id"] for record in dropped] == ["case:0", "case:1", "case:2"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra scale)")
def test_ray_writes_what_one_process_writes(tmp_path: Path) -> None:
    known = knowledge(12)
    known[passage(3).text]["paraphrase"] = {"paraphrase": passage(3).text}
    write_passages(tmp_path / "in.jsonl", 12)
    with serving(LLMServer(known, tokens=(600, 200))) as llm:
        assert call(tmp_path, llm, "local")[:2] == ["11", "0"]
        alone = len(llm.calls)
        _, unfinished, _, spent, stopped = call(tmp_path, llm, "ray", 20_000)
        assert (unfinished != "0", stopped) == (True, "budget")
        assert 4_000 <= int(spent) <= 20_000, "the workers keep the budget together"
        llm.most_at_once = 0
        accepted, unfinished, _, spent, stopped = call(tmp_path, llm, "ray", concurrency=1)
        assert llm.most_at_once == 1, "two workers, one request at a time"
    assert (accepted, unfinished, stopped) == ("11", "0", "-")
    assert int(spent) == alone * 800, "what was stored is not asked again"
    assert lines(tmp_path / "ray.jsonl") == lines(tmp_path / "local.jsonl")
    assert lines(tmp_path / "ray.jsonl.dropped.jsonl") == lines(tmp_path / "local.jsonl.dropped.jsonl")
