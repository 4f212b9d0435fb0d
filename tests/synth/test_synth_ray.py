"""``--engine ray`` against the scripted server: the same records as one process writes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import knowledge, passage, write_passages
from llm_server import LLMServer, serving

from clara.errors import SynthesisError
from clara.synth.run import Job, synthesize
from clara.synth.settings import SynthSettings
from clara.synth.sources import read_sources

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
