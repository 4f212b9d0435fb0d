"""Finishes passages on the workers of a Ray cluster: the same lines as one process writes, in another order.

The workers ask and decide; this process alone writes, as chunks of passages come back. A killed run loses at most the
lines of the chunks under way, and none of their replies: those are in the cache. Workers on this machine share one
cache file; on another machine a worker keeps its own, under the same path.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clara.errors import MissingExtraError, SynthesisError
from clara.llm.client import Usage
from clara.synth.budget import price
from clara.synth.cache import ReplyCache
from clara.synth.drafts import SourcePassage
from clara.synth.engine_local import MOST_REFUSED, Means, Progress, Sink, finish_passages
from clara.synth.faults import NothingAnsweredError
from clara.synth.report import RunFigures, Stop
from clara.synth.settings import BudgetSettings, SynthSettings
from clara.synth.templates import Templates

try:
    import ray
    from ray.exceptions import RayError
except ImportError:
    raise MissingExtraError("ray", "scale") from None

_CHUNKS_A_WORKER = 4  # so that the last chunks end at about the same time
_MOST_IN_A_CHUNK = 64  # passages; their lines are written when all of them are finished


@dataclass
class _Collected:
    """A sink that keeps the lines, in the worker."""

    accepted: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def accept(self, record: Mapping[str, Any]) -> None:
        self.accepted.append(dict(record))

    def drop(self, record: Mapping[str, Any]) -> None:
        self.dropped.append(dict(record))


@dataclass(frozen=True)
class _Finished:
    """What a worker sends back: the lines of a chunk, its figures, and what ended it early.

    Attributes:
        lines: of finished passages.
        figures: of the chunk.
        fault: what ended it; empty if nothing did.
        refused: passages that the server refused without answering any other; ``fault`` is then its words.
    """

    lines: _Collected
    figures: RunFigures
    fault: str = ""
    refused: int = 0


def finish_passages_on_ray(
    todo: Sequence[SourcePassage], means: Means, cache: Path, sink: Sink, workers: int, address: str
) -> RunFigures:
    """Finish passages, or as many as budget and server allow.

    Args:
        todo: the passages.
        means: what they are finished with; each worker has its part of the concurrency and of the budget.
        cache: the reply cache, opened by every worker.
        sink: where finished lines go; only this process writes.
        workers: how many.
        address: a cluster to join; empty for workers on this machine.

    Raises:
        NothingAnsweredError: the server refuses passages and answers nothing; those are not finished.
        SynthesisError: the output or the cache cannot be used, the server refuses everything, Ray fails.
    """
    ours = not ray.is_initialized()
    if ours:
        place = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(log_to_driver=False, **place)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            where = f"no Ray cluster can be joined at {address}" if address else "Ray cannot be started here"
            raise SynthesisError(f"{where} ({error}); correct RAY_ADDRESS, or leave --engine ray out") from None
    try:
        return _Driver(means, cache, sink, workers, len(todo)).run(todo)
    finally:
        if ours:
            ray.shutdown()


class _Driver:
    """Hands out chunks, writes what comes back, keeps the budget."""

    def __init__(self, means: Means, cache: Path, sink: Sink, workers: int, total: int) -> None:
        self._means = means
        self._cache = cache
        self._sink = sink
        # Each worker asks at least once at a time: more of them would exceed the server's limit.
        self._workers = min(workers, means.settings.server.concurrency)
        self._total = total
        self._spent = means.spent
        self._task: Any = ray.remote(num_cpus=1)(_finish_chunk)
        self._shares: dict[Any, BudgetSettings] = {}  # of the chunks under way
        self._chunks: dict[Any, Sequence[SourcePassage]] = {}  # under way
        self._refused: list[Sequence[SourcePassage]] = []  # chunks of which nothing was answered
        self._refused_passages = 0
        self._refusal = ""
        self._requests = self._replies = self._finished = self._accepted = 0
        self._retried: Counter[str] = Counter()
        self._stopped: Stop = ""
        self._message = ""
        self._start = time.monotonic()

    def run(self, todo: Sequence[SourcePassage]) -> RunFigures:
        """Finish the passages."""
        size = max(1, min(_MOST_IN_A_CHUNK, len(todo) // (self._workers * _CHUNKS_A_WORKER)))
        chunks = [todo[i : i + size] for i in range(0, len(todo), size)]
        chunks.reverse()
        while chunks or self._shares:
            while chunks and self._goes_on and len(self._shares) < self._workers:
                self._hand_out(chunks.pop())
            if not self._shares:
                break
            (done,), _ = ray.wait(list(self._shares), num_returns=1)
            del self._shares[done]
            chunk = self._chunks.pop(done)
            try:
                finished = ray.get(done)
            except RayError as error:
                last = str(error).strip().splitlines()[-1]
                raise SynthesisError(f"a Ray worker failed: {last}; go on with --resume") from None
            self._take(chunk, finished)
            if self._replies:  # asked again, the passages that the server refuses are dropped
                chunks += self._refused
                self._refused = []
        if self._refused:
            raise NothingAnsweredError(self._refused_passages, self._refusal)
        return RunFigures(
            finished=self._finished,
            requests=self._requests,
            answered=self._replies,
            retried=dict(self._retried),
            spent=self._spent,
            spent_now=self._spent - self._means.spent,
            cost=price(self._spent, self._means.settings.budget),
            seconds=time.monotonic() - self._start,
            stopped=self._stopped,
            message=self._message,
        )

    @property
    def _goes_on(self) -> bool:
        """Whether further chunks may be handed out."""
        return not self._stopped and (self._replies > 0 or self._refused_passages < MOST_REFUSED)

    def _hand_out(self, chunk: Sequence[SourcePassage]) -> None:
        settings = self._means.settings
        share = _share(settings.budget, self._spent, list(self._shares.values()), self._workers - len(self._shares))
        if share is None:
            self._stopped, self._message = "budget", "the budget is spent"
            return
        server = settings.server.model_copy(
            update={"concurrency": max(1, settings.server.concurrency // self._workers)}
        )
        mine = settings.model_copy(update={"server": server, "budget": share})
        texts = dict(self._means.templates.texts)
        task = self._task.remote(list(chunk), mine, texts, self._means.api_key, self._cache, self._replies)
        self._shares[task], self._chunks[task] = share, chunk

    def _take(self, chunk: Sequence[SourcePassage], finished: _Finished) -> None:
        if finished.refused:
            # Lines that it has nevertheless came out of the cache; they will again.
            self._refused.append(chunk)
            self._refused_passages += finished.refused
            self._refusal = finished.fault
            return
        for record in finished.lines.accepted:
            self._sink.accept(record)
        for record in finished.lines.dropped:
            self._sink.drop(record)
        if finished.fault:
            raise SynthesisError(finished.fault)
        figures = finished.figures
        self._accepted += len(finished.lines.accepted)
        self._finished += len(finished.lines.accepted) + len(finished.lines.dropped)
        self._spent += figures.spent_now
        self._requests += figures.requests
        self._replies += figures.answered
        self._retried.update(figures.retried)
        if figures.stopped and not self._stopped:
            self._stopped, self._message = figures.stopped, figures.message
        if self._means.on_progress:
            cost = price(self._spent, self._means.settings.budget)
            seconds = time.monotonic() - self._start
            spent_now = self._spent - self._means.spent
            self._means.on_progress(Progress(self._total, self._finished, self._accepted, spent_now, cost, seconds))


def _share(
    budget: BudgetSettings, spent: Usage, under_way: Sequence[BudgetSettings], free: int
) -> BudgetSettings | None:
    """What the next chunk may spend: its part of what is neither spent nor promised; None if that is nothing."""
    changes: dict[str, Any] = {}
    if budget.max_tokens is not None:
        promised = sum(share.max_tokens or 0 for share in under_way)
        changes["max_tokens"] = (budget.max_tokens - spent.total - promised) // free
    if budget.max_cost is not None:
        promised_cost = sum(share.max_cost or 0.0 for share in under_way)
        changes["max_cost"] = (budget.max_cost - price(spent, budget) - promised_cost) / free
    if any(value <= 0 for value in changes.values()):
        return None
    return budget.model_copy(update=changes)


def _finish_chunk(
    chunk: list[SourcePassage],
    settings: SynthSettings,
    texts: dict[str, str],
    api_key: str,
    cache: Path,
    replied: int,
) -> _Finished:
    """Finish a chunk, in a worker; ``replied``: the server's replies so far, to all workers."""
    lines = _Collected()
    try:
        with ReplyCache(cache) as replies:
            means = Means(settings, Templates(texts), api_key, answered=replied > 0)
            figures = finish_passages(chunk, means, replies, lines)
    except NothingAnsweredError as error:
        return _Finished(lines, RunFigures(), error.words, error.passages)
    except SynthesisError as error:
        return _Finished(lines, RunFigures(), str(error))
    return _Finished(lines, replace(figures, retried=dict(figures.retried)))
