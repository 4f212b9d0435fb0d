"""Finishes passages in this process: workers that share one client, stopped by a budget or a failing server.

Each decision about a passage is made in ``loop``; where a finished line goes is the sink's matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clara.errors import LLMError, LLMRefusedError, LLMUnavailableError, SynthesisError
from clara.llm.client import Usage
from clara.synth.budget import Budget
from clara.synth.cache import ReplyCache
from clara.synth.client import ChatClient
from clara.synth.draft import Drafter
from clara.synth.drafts import Draft, SourcePassage
from clara.synth.faults import BudgetSpentError, NothingAnsweredError
from clara.synth.judges.lexical import LexicalJudge
from clara.synth.judges.llm import LLMJudge
from clara.synth.loop import Judge, OfflineJudge, Outcome, work_out
from clara.synth.record import RecordMaker
from clara.synth.report import RunFigures, Stop
from clara.synth.settings import SynthSettings
from clara.synth.templates import Templates
from clara.synth.work import Work

REFUSED = "request_refused"
_UNAVAILABLE_IN_A_ROW = 5  # passages; a server that fails that often is down
MOST_REFUSED = 5  # passages, before any reply: the fault is not theirs


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands.

    Attributes:
        total: passages to do in this run.
        finished: passages accepted or dropped in this run.
        accepted: passages accepted in this run.
        spent: tokens of this run.
        cost: price of all that was spent, earlier runs included.
        seconds: since the start of this run.
    """

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


OnProgress = Callable[[Progress], None]


class Sink(Protocol):
    """Where finished lines go."""

    def accept(self, record: Mapping[str, Any]) -> None:
        """Take an accepted record."""

    def drop(self, record: Mapping[str, Any]) -> None:
        """Take a dropped passage."""


@dataclass(frozen=True, slots=True)
class Means:
    """What passages are finished with.

    Attributes:
        settings: of the run.
        templates: the prompts.
        api_key: the server's key.
        spent: tokens that count towards the budget already.
        on_progress: called after each reply and each finished passage.
        answered: whether the server has replied in this run already: what it refuses now is the passage's fault.
    """

    settings: SynthSettings
    templates: Templates
    api_key: str = ""
    spent: Usage = Usage()  # noqa: RUF009 - frozen, so it can be shared
    on_progress: OnProgress | None = None
    answered: bool = False


def finish_passages(todo: Sequence[SourcePassage], means: Means, cache: ReplyCache, sink: Sink) -> RunFigures:
    """Finish passages, or as many as budget and server allow.

    Raises:
        NothingAnsweredError: the server refuses passages and answers nothing; those are not finished.
        SynthesisError: the output or the cache cannot be used, the server refuses everything.
    """
    return asyncio.run(_Run(means, cache, sink).run(todo))


class _Run:
    """One run: its workers share the passages, the client and the counts."""

    def __init__(self, means: Means, cache: ReplyCache, sink: Sink) -> None:
        self._settings = means.settings
        self._means = means
        self._sink = sink
        self._cache = cache
        self._records = RecordMaker(means.settings, means.templates)
        self._budget = Budget(means.settings.budget, means.spent)
        self._total = self._finished = self._accepted = 0
        self._unavailable = 0  # passages in a row
        self._refused: list[SourcePassage] = []  # held back until a reply shows that the server works
        self._refusal = ""
        self._stopped: Stop = ""
        self._message = ""
        self._start = time.monotonic()

    async def run(self, todo: Sequence[SourcePassage]) -> RunFigures:
        """Finish the passages, or as many as can be."""
        self._total = len(todo)
        server, sampling = self._settings.server, self._settings.sampling
        async with ChatClient(
            server, sampling, self._cache, self._budget, api_key=self._means.api_key, on_reply=self._progress
        ) as client:
            drafter = Drafter(client, self._means.templates, self._settings)
            judge: Judge = OfflineJudge(LexicalJudge(self._settings.lexical))
            if self._settings.judge != "lexical":
                judge = LLMJudge(client, self._means.templates, sampling.judge_temperature)
            passages = iter(todo)
            workers = [self._worker(passages, client, drafter, judge) for _ in range(server.concurrency)]
            try:
                await _all_or_first_error(workers)
            except LLMUnavailableError as error:
                self._stop("server", str(error))
            except LLMError as error:
                raise SynthesisError(f"{error}; go on with --resume") from None
            self._settle_refused(answered=self._answered(client))
            self._progress()
            return RunFigures(
                finished=self._finished,
                requests=client.requests,
                answered=client.answered,
                retried=dict(client.retried),
                spent=self._budget.spent,
                spent_now=self._budget.spent - self._means.spent,
                cost=self._budget.cost,
                seconds=time.monotonic() - self._start,
                stopped=self._stopped,
                message=self._message,
            )

    async def _worker(
        self, passages: Iterator[SourcePassage], client: ChatClient, drafter: Drafter, judge: Judge
    ) -> None:
        """Take passages until there is none, or the run is stopped."""
        for passage in passages:
            if self._stopped:
                return
            try:
                work = Work(self._settings)
                outcome = await work_out(passage, drafter, judge, work, self._settings.max_rounds)
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
            if self._answered(client) or len(self._refused) >= MOST_REFUSED:
                self._settle_refused(answered=self._answered(client))

    def _answered(self, client: ChatClient) -> bool:
        return self._means.answered or client.answered > 0

    def _settle_refused(self, *, answered: bool) -> None:
        """Drop the refused passages if the server answers others; else its refusals say nothing of the passages.

        Raises:
            NothingAnsweredError: there are some, and it has answered nothing.
        """
        if self._refused and not answered:
            raise NothingAnsweredError(len(self._refused), self._refusal)
        refused, self._refused = self._refused, []
        for passage in refused:
            self._finish(passage, Outcome(Draft(), 0, {REFUSED: 1}, REFUSED))

    def _finish(self, passage: SourcePassage, outcome: Outcome) -> None:
        if outcome.dropped:
            self._sink.drop(self._records.dropped(passage, outcome))
        else:
            self._sink.accept(self._records.accepted(passage, outcome))
            self._accepted += 1
        self._finished += 1
        self._unavailable = 0
        self._progress()

    def _stop(self, why: Stop, message: str) -> None:
        if not self._stopped:
            self._stopped, self._message = why, message

    def _progress(self) -> None:
        if self._means.on_progress:
            self._means.on_progress(
                Progress(
                    total=self._total,
                    finished=self._finished,
                    accepted=self._accepted,
                    spent=self._budget.spent - self._means.spent,
                    cost=self._budget.cost,
                    seconds=time.monotonic() - self._start,
                )
            )


async def _all_or_first_error(jobs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run jobs together; the first that fails ends them all."""
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
