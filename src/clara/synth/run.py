"""A synthesis: passages in, finished lines out, stopped and resumed at will.

Workers in this process share one client, limited by the server's concurrency; a budget or a failing server stops them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clara.errors import LLMError, LLMRefusedError, LLMUnavailableError, SynthesisError
from clara.llm import Usage
from clara.synth.client import Budget, BudgetSpentError, ChatClient, ReplyCache
from clara.synth.drafts import Draft, SourcePassage, Templates
from clara.synth.output import Output, RunFigures, SynthReport, record_of
from clara.synth.rounds import Drafter, Outcome
from clara.synth.settings import SynthSettings
from clara.synth.sources import Sources

_REFUSED = "request_refused"
_UNAVAILABLE_IN_A_ROW = 5  # passages; a server that fails that often is down
_MOST_REFUSED = 5  # passages, before any reply: the fault is not theirs


@dataclass(frozen=True, slots=True)
class SynthProgress:
    """Passages, tokens and seconds of this run; the cost includes earlier runs."""

    total: int
    finished: int
    accepted: int
    spent: Usage
    cost: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Prompt and completion tokens a second, of this run."""
        return self.spent.total / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimate of the time to the end, or None before the first passage is finished."""
        return self.seconds / self.finished * (self.total - self.finished) if self.finished else None


@dataclass(frozen=True, slots=True)
class SynthJob:
    """Output of a synthesis, and its parameters besides the settings.

    Attributes:
        output: accepted records (``*.jsonl``); ``<output>.dropped.jsonl`` beside it holds the dropped passages.
        resume: go on with an output that is there.
        cache: the reply cache; ``<output>.cache.sqlite3`` beside the output if None.
        templates: the prompts; the packaged ones if None.
        on_progress: called after each reply and each finished passage.
    """

    output: Path
    resume: bool = False
    cache: Path | None = None
    api_key: str = ""
    templates: Templates | None = None
    on_progress: Callable[[SynthProgress], None] | None = None


def synthesize(sources: Sources, settings: SynthSettings, job: SynthJob) -> SynthReport:
    """Write a verified record for each passage (clara.md section 2).

    Interrupted anywhere, also by a kill, the same call with ``resume`` goes on: finished passages and stored replies
    are not asked for again.

    Raises:
        SynthesisError: the output or the cache cannot be used, the server refuses everything.
    """
    with Output(job.output, resume=job.resume) as output:
        todo = output.unfinished(sources.passages)
        with ReplyCache(job.cache or job.output.with_name(f"{job.output.name}.cache.sqlite3")) as cache:
            figures = asyncio.run(_Synthesis(settings, job, cache, output).run(todo))
        return SynthReport.of(output, sources, figures, unfinished=len(todo) - figures.finished)


class _Synthesis:
    """A run, whose workers share the passages, the client and the counts."""

    def __init__(self, settings: SynthSettings, job: SynthJob, cache: ReplyCache, output: Output) -> None:
        self._settings, self._job, self._cache, self._output = settings, job, cache, output
        self._templates = job.templates or Templates.packaged()
        self._spent_before = cache.spent()
        self._budget = Budget(settings.budget, self._spent_before)
        self._total = self._finished = self._accepted = 0
        self._unavailable = 0  # passages in a row
        self._refused: list[SourcePassage] = []  # held back until a reply shows that the server works
        self._refusal = ""
        self._stopped: Literal["", "budget", "server"] = ""
        self._message = ""
        self._start = time.monotonic()

    async def run(self, todo: Sequence[SourcePassage]) -> RunFigures:
        """Finish the passages, or as many as budget and server allow."""
        self._total = len(todo)
        server, sampling = self._settings.server, self._settings.sampling
        async with ChatClient(
            server, sampling, self._cache, self._budget, api_key=self._job.api_key, on_reply=self._progress
        ) as client:
            drafter = Drafter(client, self._templates, self._settings)
            passages = iter(todo)
            workers = [self._worker(passages, client, drafter) for _ in range(server.concurrency)]
            try:
                await _all_or_first_error(workers)
            except LLMUnavailableError as error:
                self._stop("server", str(error))
            except LLMError as error:
                raise SynthesisError(f"{error}; go on with --resume") from None
            self._settle_refused(client)
            self._progress()
            return RunFigures(
                finished=self._finished,
                requests=client.llm.patience.requests,
                answered=client.answered,
                retried=dict(client.llm.patience.retried),
                spent=self._budget.spent,
                spent_now=self._budget.spent - self._spent_before,
                cost=self._budget.cost,
                seconds=time.monotonic() - self._start,
                stopped=self._stopped,
                message=self._message,
            )

    async def _worker(self, passages: Iterator[SourcePassage], client: ChatClient, drafter: Drafter) -> None:
        """Take passages until none is left, or the run is stopped."""
        for passage in passages:
            if self._stopped:
                return
            try:
                outcome = await drafter.work_out(passage)
            except BudgetSpentError as error:
                self._stop("budget", str(error))
                return
            except LLMUnavailableError:
                self._unavailable += 1
                if self._unavailable >= _UNAVAILABLE_IN_A_ROW or not client.answered:
                    raise
                continue
            except LLMRefusedError as error:
                self._refused.append(passage)
                self._refusal = str(error)
            else:
                self._finish(passage, outcome)
            if client.answered or len(self._refused) >= _MOST_REFUSED:
                self._settle_refused(client)

    def _settle_refused(self, client: ChatClient) -> None:
        """Drop the refused passages if the server answers others; else its refusals are not about them.

        Raises:
            SynthesisError: there are some, and it has answered nothing; they stay open.
        """
        if self._refused and not client.answered:
            raise SynthesisError(
                f"every passage so far ({len(self._refused)}) was refused: {self._refusal}; change the settings as the "
                "server asks, then go on with --resume"
            )
        refused, self._refused = self._refused, []
        for passage in refused:
            self._finish(passage, Outcome(Draft(), 0, {_REFUSED: 1}, _REFUSED))

    def _finish(self, passage: SourcePassage, outcome: Outcome) -> None:
        record = record_of(passage, outcome, self._settings, self._templates)
        if outcome.dropped:
            self._output.drop(record)
        else:
            self._output.accept(record)
            self._accepted += 1
        self._finished += 1
        self._unavailable = 0
        self._progress()

    def _stop(self, why: Literal["budget", "server"], message: str) -> None:
        if not self._stopped:
            self._stopped, self._message = why, message

    def _progress(self) -> None:
        if self._job.on_progress:
            self._job.on_progress(
                SynthProgress(
                    total=self._total,
                    finished=self._finished,
                    accepted=self._accepted,
                    spent=self._budget.spent - self._spent_before,
                    cost=self._budget.cost,
                    seconds=time.monotonic() - self._start,
                )
            )


async def _all_or_first_error(jobs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run jobs together; the first that fails cancels them all."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
