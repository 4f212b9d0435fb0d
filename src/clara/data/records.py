"""The kinds of question-answering record, plain and checked when made.

``PassageQA`` is one passage with several pairs (stage ``scp``); ``MultiHop`` is one question over several documents
(stages ``instruct`` and ``end_to_end``). ``Question`` is one to be measured on, whatever public data set it comes from;
wider than ``MultiHop``: it may be unanswerable, may have no known answer (only its ranking is measured), and may come
without candidate documents, which then come from a corpus. How they stand in a file is for ``parsing`` and ``formats``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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
        _check_gold(self.gold, self.docs)

    @property
    def answerable(self) -> bool:
        """Whether the documents are said to hold an answer."""
        return self.answers != (NO_ANSWER,)


DataRecord: TypeAlias = PassageQA | MultiHop


@dataclass(frozen=True, slots=True)
class GoldRef:
    """A supporting document that is not among a question's candidates.

    Attributes:
        title: may be empty.
        text: its text, None where only the title is known: any passage of that title then supports the answer.
        id: its identifier in a corpus that the data set belongs to, or None.
    """

    title: str = ""
    text: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if not self.title and not self.text and not self.id:
            raise UnusableRecordError("empty reference to a supporting document")


@dataclass(frozen=True, slots=True)
class Question:
    """One question with gold answers.

    Attributes:
        id: identifier within its source.
        source: the data set it comes from.
        answers: gold answers, the first is the reference, all count; empty: the documents do not answer it; None: not
            known, so that only a ranking can be measured.
        docs: candidate documents; empty where they are to come from a corpus.
        gold: indices into ``docs`` of the supporting documents, each once.
        elsewhere: supporting documents that are not among ``docs``.
    """

    id: str
    source: str
    question: str
    answers: tuple[str, ...] | None
    docs: tuple[DocText, ...] = ()
    gold: tuple[int, ...] = ()
    elsewhere: tuple[GoldRef, ...] = ()

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UnusableRecordError("empty question")
        if not all(answer.strip() for answer in self.answers or ()):
            raise UnusableRecordError("blank answer", f"question {self.question!r}")
        _check_gold(self.gold, self.docs)

    @property
    def unanswerable(self) -> bool:
        """Whether the right reply is that there is no answer."""
        return self.answers == ()

    @classmethod
    def of(cls, record: MultiHop) -> Question:
        """Our own record as a question."""
        return cls(record.id, record.source, record.question, record.answers, record.docs, record.gold)

    def record(self) -> MultiHop:
        """The question as a record to train on.

        Raises:
            UnusableRecordError: it has no known answer, or no documents.
        """
        if self.unanswerable:
            raise UnusableRecordError("question without an answer", repr(self.question))
        if self.answers is None:
            raise UnusableRecordError("question whose answer is not known", repr(self.question))
        if not self.docs:
            raise UnusableRecordError("question without documents", repr(self.question))
        return MultiHop(self.id, self.source, self.question, self.answers, self.docs, self.gold)


@dataclass(slots=True)
class Candidates:
    """Gathers a question's candidate documents, and the indices of the supporting ones (``gold``).

    An empty one that supports nothing is left out; the reason is added to ``left_out``, which the reader shares.
    """

    left_out: list[str]
    docs: list[DocText] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)

    def add(self, title: str, text: str, *, gold: bool) -> None:
        """Add a document; an empty one that is gold is refused: without it recall would count too few of them."""
        if not text.strip():
            if gold:
                raise UnusableRecordError("empty gold document", title)
            self.left_out.append("empty candidate document")
            return
        if gold:
            self.gold.append(len(self.docs))
        self.docs.append(DocText(title, text))

    def question(
        self, identity: str, source: str, asked: str, answers: tuple[str, ...] | None, elsewhere: Iterable[GoldRef] = ()
    ) -> Question:
        """The question with these candidates."""
        return Question(identity, source, asked, answers, tuple(self.docs), tuple(self.gold), tuple(elsewhere))


def _check_gold(gold: Sequence[int], docs: Sequence[DocText]) -> None:
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
