"""A whole synthesis: passages in, finished lines out, stopped and resumed at will.

Opens the files and chooses the engine; how passages are finished is for ``engine_local`` and ``engine_ray``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clara.errors import SynthesisError
from clara.synth.cache import ReplyCache
from clara.synth.drafts import SourcePassage
from clara.synth.engine_local import Means, OnProgress, Progress, finish_passages
from clara.synth.output import Output, text_digest
from clara.synth.report import SynthReport, collect
from clara.synth.settings import SynthSettings
from clara.synth.sources import Sources
from clara.synth.templates import Templates, packaged_templates

__all__ = ["Engine", "Job", "OnProgress", "Progress", "synthesize"]

Engine = Literal["local", "ray"]


@dataclass(frozen=True, slots=True)
class Job:
    """Where a synthesis writes, and what it needs besides its settings.

    Attributes:
        output: accepted records (``*.jsonl``); ``<output>.dropped.jsonl`` beside it holds the dropped passages.
        resume: go on with an output that is there.
        cache: the reply cache; ``<output>.cache.sqlite3`` beside the output if None.
        api_key: the server's key.
        templates: the prompts; the packaged ones if None.
        on_progress: called after each reply and each finished passage.
        engine: ``local``: this process; ``ray``: workers of a Ray cluster (extra ``scale``).
        workers: number of Ray workers; they share the server's concurrency.
        ray_address: a cluster to join; empty for workers on this machine.
    """

    output: Path
    resume: bool = False
    cache: Path | None = None
    api_key: str = ""
    templates: Templates | None = None
    on_progress: OnProgress | None = None
    engine: Engine = "local"
    workers: int = 2
    ray_address: str = ""

    @property
    def cache_path(self) -> Path:
        """Where the replies are kept."""
        return self.cache or self.output.with_name(f"{self.output.name}.cache.sqlite3")


def synthesize(sources: Sources, settings: SynthSettings, job: Job) -> SynthReport:
    """Write a verified record for each passage (clara.md section 2).

    Interrupted anywhere, also by a kill, the same call with ``resume`` goes on: finished passages are left alone, and
    nothing is asked again that was answered and stored.

    Raises:
        SynthesisError: the output or the cache cannot be used, the server refuses everything.
        MissingExtraError: the engine is ``ray``, and Ray is not installed.
    """
    with Output(job.output, resume=job.resume) as output:
        todo = _unfinished(sources.passages, output)
        with ReplyCache(job.cache_path) as cache:
            templates = job.templates or packaged_templates()
            means = Means(settings, templates, job.api_key, cache.spent(), job.on_progress)
            if job.engine == "ray":
                # Imported here: Ray takes seconds, and is an extra.
                from clara.synth.engine_ray import finish_passages_on_ray  # noqa: PLC0415

                cluster = (job.workers, job.ray_address)
                figures = finish_passages_on_ray(todo, means, job.cache_path, output, *cluster)
            else:
                figures = finish_passages(todo, means, cache, output)
        return collect(
            output.path,
            output.dropped_path,
            passages=len(sources.passages),
            unfinished=len(todo) - figures.finished,
            skipped=sources.skipped,
            messages=sources.messages,
            run=figures,
        )


def _unfinished(passages: Sequence[SourcePassage], output: Output) -> list[SourcePassage]:
    finished = output.finished()
    for passage in passages:
        if finished.get(passage.id, same := text_digest(passage.text)) != same:
            raise SynthesisError(
                f"{output.path} was made from other passages: {passage.id!r} has another text there; "
                "choose another --out"
            )
    return [passage for passage in passages if passage.id not in finished]
