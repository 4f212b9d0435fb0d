"""The two kinds of question-answering record, plain and checked when made.

``PassageQA`` is one passage with several pairs (stage ``scp``); ``MultiHop`` is one question over several documents
(stages ``instruct`` and ``end_to_end``, and evaluation). How they stand in a file is ``parsing``'s matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from clara.errors import RecordError
from clara.prompts import NO_ANSWER


class UnusableRecordError(RecordError):
    """A record that cannot be used.

    Attributes:
        reason: the kind of fault, the same words for each such record, so that faults can be counted.
        detail: what came, in this record.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class QAPair:
    """A question with its gold answers; the first is the reference, all count in scoring."""

    question: str
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_question(self.question, self.answers)


@dataclass(frozen=True, slots=True)
class DocText:
    """A titled text; the title may be empty, the text not."""

    title: str
    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UnusableRecordError("empty text", f"document titled {self.title!r}")


@dataclass(frozen=True, slots=True)
class PassageQA:
    """One passage with what is asked about it (clara.md section 2).

    Attributes:
        id: identifier within its source.
        source: the data set it comes from.
        title: may be empty.
        text: the passage.
        pairs: simple questions; empty for a plain passage.
        paraphrase: the passage in other words, or None.
        complex_pairs: questions that join several facts.
    """

    id: str
    source: str
    title: str
    text: str
    pairs: tuple[QAPair, ...]
    paraphrase: str | None = None
    complex_pairs: tuple[QAPair, ...] = ()

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UnusableRecordError("empty text", f"record {self.id!r}")
        if self.paraphrase is not None and not self.paraphrase.strip():
            raise UnusableRecordError("empty paraphrase", f"record {self.id!r}")

    @property
    def all_pairs(self) -> tuple[QAPair, ...]:
        """Everything that is asked about it, the simple questions first."""
        return self.pairs + self.complex_pairs


@dataclass(frozen=True, slots=True)
class MultiHop:
    """One question with candidate documents.

    Attributes:
        id: identifier within its source.
        source: the data set it comes from.
        question: the question.
        answers: gold answers; the first is the reference, all count in scoring. ``prompts.NO_ANSWER`` alone says that
            no document holds one.
        docs: candidate documents, at least one.
        gold: indices into ``docs`` of the documents that support the answer, each once; may be empty.
    """

    id: str
    source: str
    question: str
    answers: tuple[str, ...]
    docs: tuple[DocText, ...]
    gold: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_question(self.question, self.answers)
        if not self.docs:
            raise UnusableRecordError("no documents", f"record {self.id!r}")
        check_gold(self.gold, self.docs)

    @property
    def answerable(self) -> bool:
        """Whether the documents are said to hold an answer."""
        return self.answers != (NO_ANSWER,)


DataRecord: TypeAlias = PassageQA | MultiHop


def check_gold(gold: Sequence[int], docs: Sequence[DocText]) -> None:
    """Refuse indices of gold documents that name none, or one twice.

    Raises:
        UnusableRecordError: says which.
    """
    for index in gold:
        if not 0 <= index < len(docs):
            raise UnusableRecordError("gold index out of range", f"{index} of {len(docs)} documents")
    if len(set(gold)) != len(gold):
        raise UnusableRecordError("gold index repeated", str(list(gold)))


def _check_question(question: str, answers: Sequence[str]) -> None:
    if not question.strip():
        raise UnusableRecordError("empty question")
    if not answers:
        raise UnusableRecordError("no answers", f"question {question!r}")
    if not all(answer.strip() for answer in answers):
        raise UnusableRecordError("blank answer", f"question {question!r}")
