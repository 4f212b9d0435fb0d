"""A whole synthesis against a server that this project did not write: ``transformers serve``.

Runs where CLARA_SERVE_COMMAND names the command (``…/bin/transformers``) and CLARA_SERVE_MODEL a folder with a small
instruction model; the server's own packages are no dependency of this project. A small model answers badly: the point
is that nothing breaks, and that what is wrong is not written.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cases import write_passages

from clara.synth.run import SynthJob, synthesize
from clara.synth.settings import SynthSettings
from clara.synth.sources import read_sources

COMMAND, MODEL = os.environ.get("CLARA_SERVE_COMMAND", ""), os.environ.get("CLARA_SERVE_MODEL", "")


@contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [COMMAND, "serve", MODEL, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(300):
            assert process.poll() is None, (folder / "serve.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.skipif(not (COMMAND and MODEL), reason="CLARA_SERVE_COMMAND and CLARA_SERVE_MODEL are not set")
def test_transformers_serve(tmp_path: Path) -> None:
    sources = read_sources([write_passages(tmp_path / "in.jsonl", 2)], passage_words=190, min_passage_words=8)
    with transformers_serve(tmp_path) as url:
        settings = SynthSettings.model_validate(
            {
                "server": {"url": url, "model": MODEL, "concurrency": 2, "timeout_seconds": 600},
                "sampling": {"max_output_tokens": 160},
                "max_rounds": 2,
            }
        )
        report = synthesize(sources, settings, SynthJob(tmp_path / "out.jsonl"))
        assert report.unfinished == 0
        again = synthesize(
            sources, settings, SynthJob(tmp_path / "again.jsonl", cache=tmp_path / "out.jsonl.cache.sqlite3")
        )
    assert report.accepted + sum(report.dropped.values()) == 2
    assert report.run.spent.prompt > 1000, "the server counts tokens"
    assert (again.accepted, again.run.requests) == (report.accepted, 0)
    if report.accepted < 2:
        assert report.rejections, "a dropped passage says why"
    for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines():
        assert json.loads(line)["provenance"]["model"] == MODEL
