"""Put a system through the questions of a data set, with a journal, and score what it replied.

Knows systems by their protocol only. An error in one question is kept as such and counted; what was answered before
is never asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from clara.data import Question
from clara.errors import ModelError, RecordError
from clara.evaluate.isolation import Failure, each
from clara.evaluate.journal import Journal, ask_hash, run_key
from clara.evaluate.system import Ask, Reply, System
from clara.evaluate.system_result import Given, Setting, Subject, SystemResult, score

Told: TypeAlias = Callable[[int, int], None]
"""Called with questions asked in this process and questions found in the journal, after each batch."""


@dataclass(frozen=True, slots=True)
class Exam:
    """Questions as every system of a comparison gets them.

    Attributes:
        data: the data set's name.
        data_sha256: of its file.
        setting: ``oracle`` or ``normal``.
        candidates: where the candidate documents came from.
        given: ``gold``: only the gold documents, in order; ``candidates``: all of them.
        questions: with their documents.
        k: documents in the prompt.
        max_new_tokens: longest answer.
    """

    data: str
    data_sha256: str
    setting: Setting
    candidates: str
    given: Given
    questions: tuple[Question, ...]
    k: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Scoring:
    """How replies are scored.

    Attributes:
        yes_no: HotpotQA's rule (``metrics.score_answer``).
        resamples: of the bootstrap.
        seed: of the bootstrap and of the permutation tests.
    """

    yes_no: bool = False
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are asked.

    Attributes:
        folder: of the journals.
        batch_size: questions asked, and kept, together: what a kill can lose.
        retry_errors: ask again what gave an error.
        origin: command, commit and machine, kept beside the replies.
        precision: of the base weights (``bf16``, ``int4``, …): replies in another are another run's.
        strict: a system that cannot be built ends the run; else it is left out, with the reason.
    """

    folder: Path
    batch_size: int = 8
    retry_errors: bool = False
    origin: Mapping[str, object] | None = None
    precision: str | None = None
    strict: bool = True


def askable(questions: Sequence[Question], given: Given) -> tuple[tuple[Question, ...], dict[str, int]]:
    """The questions that can be asked, and the others counted by reason.

    Raises:
        RecordError: none can be asked.
    """
    kept, left = [], dict[str, int]()
    for question in questions:
        if not question.docs:
            reason = "questions without candidate documents (give --corpus)"
        elif given == "gold" and not question.gold:
            reason = "questions without a gold document"
        else:
            kept.append(question)
            continue
        left[reason] = left.get(reason, 0) + 1
    if not kept:
        listed = ", ".join(f"{count} {reason}" for reason, count in left.items()) or "no question"
        raise RecordError(f"nothing to ask: {listed}")
    return tuple(kept), left


def to_ask(question: Question, given: Given) -> Ask:
    """What a system sees of a question."""
    docs = question.docs if given == "candidates" else tuple(question.docs[index] for index in sorted(question.gold))
    return Ask(question.id, question.question, docs)


def examine(
    system: System,
    exam: Exam,
    asking: Asking,
    *,
    rate: int | None = None,
    scoring: Scoring | None = None,
    told: Told | None = None,
) -> SystemResult:
    """Ask a system what its journal does not know yet, and score all its replies.

    Args:
        system: what is measured.
        exam: the questions.
        asking: how they are asked.
        rate: what the system was built with.
        scoring: how replies are scored.
        told: told after each batch.

    Raises:
        InputError: the journal cannot be used.
        ConfigError: the system's settings are wrong for every question alike.
    """
    scoring = scoring or Scoring()
    parts = {
        "data_sha256": exam.data_sha256,
        "data": exam.data,
        "setting": exam.setting,
        "candidates": exam.candidates,
        "given": exam.given,
        "system": system.name,
        "fingerprint": system.fingerprint,
        "precision": asking.precision,
        "rate": rate,
        "k": exam.k,
        "max_new_tokens": exam.max_new_tokens,
    }
    key = run_key(parts)
    asks = [to_ask(question, exam.given) for question in exam.questions]
    path = asking.folder / f"{key}.jsonl"
    with Journal(path, parts, origin=asking.origin, retry_errors=asking.retry_errors) as journal:
        missing = {name: ask for ask in asks if (name := ask_hash(ask)) not in journal.entries}
        left = list(missing.values())
        for start in range(0, len(left), asking.batch_size):
            batch = left[start : start + asking.batch_size]
            replies = each(batch, system.reply)
            journal.add(batch, [_checked(ask, reply) for ask, reply in zip(batch, replies, strict=True)])
            if told is not None:
                told(start + len(batch), len(asks) - len(left))
        origins = tuple(journal.origins)
        entries = [journal.entries[ask_hash(ask)] for ask in asks]
    subject = Subject(
        data=exam.data,
        data_sha256=exam.data_sha256,
        setting=exam.setting,
        candidates=exam.candidates,
        given=exam.given,
        system=system.name,
        fingerprint=system.fingerprint,
        rate=rate,
        k=exam.k,
        max_new_tokens=exam.max_new_tokens,
        key=key,
    )
    return score(
        subject,
        exam.questions,
        entries,
        origins=origins,
        yes_no=scoring.yes_no,
        resamples=scoring.resamples,
        seed=scoring.seed,
    )


def _checked(ask: Ask, reply: Reply | Failure) -> Reply | Failure:
    """The reply, or a failure where its indices are not those of the question's documents."""
    if isinstance(reply, Failure):
        return reply
    ranking = reply.ranking or ()
    if len(set(ranking)) != len(ranking) or not all(0 <= index < len(ask.docs) for index in (*ranking, *reply.used)):
        return Failure(ModelError(f"the system ranked or used documents that are not among {len(ask.docs)}"))
    return reply
