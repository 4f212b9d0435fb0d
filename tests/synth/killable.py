"""A synthesis in a process of its own, started quickly, so that a test can kill it."""

from __future__ import annotations

import multiprocessing
from multiprocessing.process import BaseProcess
from pathlib import Path

from clara.synth.run import SynthJob, synthesize
from clara.synth.settings import SynthSettings
from clara.synth.sources import read_sources

# Each process is forked from a clean one that has the imports done: starting anew takes seconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["clara.synth.run"])


def run(passages: Path, out: Path, url: str, concurrency: int, *, resume: bool) -> None:
    """Synthesize; also called in the test's own process."""
    server = {"url": url, "model": "scripted", "concurrency": concurrency}
    sources = read_sources([passages], passage_words=190, min_passage_words=8)
    synthesize(sources, SynthSettings.model_validate({"server": server}), SynthJob(out, resume=resume))


def start(passages: Path, out: Path, url: str, concurrency: int, *, resume: bool) -> BaseProcess:
    """Start ``run`` in a process of its own."""
    process = _CONTEXT.Process(target=run, args=(passages, out, url, concurrency), kwargs={"resume": resume})
    process.start()
    return process
