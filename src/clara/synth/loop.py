"""The rounds of one passage: draft, check, judge, ask again for what is missing or wrong, at most so many times.

Asks through ``draft`` and ``judges``, keeps its state in ``work``, writes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from clara.synth.draft import Drafter
from clara.synth.drafts import Draft, Fault, Rejection, SourcePassage, Verdict
from clara.synth.judges.lexical import LexicalJudge
from clara.synth.work import Work


class Judge(Protocol):
    """Whoever gives verdicts on drafts."""

    async def judge(self, passage: SourcePassage, draft: Draft, attempt: int) -> Verdict | Fault:
        """The verdict, or what is wrong with the judge's reply."""


@dataclass(frozen=True, slots=True)
class OfflineJudge:
    """The lexical judge where a judge is awaited."""

    lexical: LexicalJudge

    async def judge(self, passage: SourcePassage, draft: Draft, attempt: int) -> Verdict | Fault:  # noqa: ARG002
        """The lexical verdict; the same at each attempt."""
        return self.lexical.judge(passage, draft)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a passage ended.

    Attributes:
        draft: what was accepted; what there was at last if the passage is dropped.
        rounds: rounds taken.
        rejections: everything that was not taken, counted by reason.
        dropped: why the passage is dropped; empty if it is accepted.
    """

    draft: Draft
    rounds: int
    rejections: Mapping[str, int]
    dropped: str = ""


async def work_out(passage: SourcePassage, drafter: Drafter, judge: Judge, work: Work, max_rounds: int) -> Outcome:
    """Draft a passage until its judge is content, or the rounds are used up.

    Args:
        passage: what to write about.
        drafter: asks for drafts.
        judge: has the last word.
        work: the passage's empty state.
        max_rounds: rounds after which the passage is dropped.

    Raises:
        SynthesisError: the server gives no reply (see ``ChatClient.ask``); the passage is not finished.
    """
    for attempt in range(1, max_rounds + 1):
        await _ask_open(work, passage, drafter, attempt)
        if not work.ready:
            continue
        verdict = await judge.judge(passage, work.draft, attempt)
        if isinstance(verdict, Fault):
            work.note(Rejection("judge", "", verdict))
        elif verdict.passes:
            return Outcome(work.draft, attempt, dict(work.counted))
        else:
            work.apply(verdict)
    return Outcome(work.draft, max_rounds, dict(work.counted), work.shortcoming)


async def _ask_open(work: Work, passage: SourcePassage, drafter: Drafter, attempt: int) -> None:
    """Ask for everything that is still wanted, at once."""
    kinds = work.open_kinds()
    replies = await asyncio.gather(
        *(drafter.draft(kind, passage, work.feedback(kind), taken=work.pairs, attempt=attempt) for kind in kinds),
        return_exceptions=True,  # one fails: the others' replies are paid for, let them come in and be kept
    )
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    for kind, reply in zip(kinds, replies, strict=True):
        if not isinstance(reply, BaseException):
            work.take(kind, reply)
