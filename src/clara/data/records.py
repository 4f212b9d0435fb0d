"""Question-answering records, checked when made.

``PassageQA`` is one passage with several pairs (stage ``scp``); ``MultiHop`` one question over several documents
(stages ``instruct`` and ``end_to_end``). ``Question`` is a test question of any public data set, wider than
``MultiHop``: it may be unanswerable, may lack a known answer (only its ranking is measured), and may come without
candidate documents, which a corpus then provides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from clara.errors import RecordError
from clara.prompts import NO_ANSWER, passage_text


class UnusableRecordError(RecordError):
    """A record that cannot be used; ``reason`` has the same words for each of its kind, so that it can be counted."""

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
    """A passage with its questions (clara.md section 2): simple pairs, none in a plain passage.

    ``complex_pairs`` are questions that join several facts.
    """

    id: str
    source: str
    title: str
    text: str
    pairs: tuple[QAPair, ...]
    paraphrase: str | None = None
    complex_pairs: tuple[QAPair, ...] = ()
    gold: ClassVar[tuple[int, ...]] = (0,)

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UnusableRecordError("empty text", f"record {self.id!r}")
        if self.paraphrase is not None and not self.paraphrase.strip():
            raise UnusableRecordError("empty paraphrase", f"record {self.id!r}")

    @property
    def all_pairs(self) -> tuple[QAPair, ...]:
        """All pairs, the simple questions first."""
        return self.pairs + self.complex_pairs

    @property
    def docs(self) -> tuple[DocText, ...]:
        """The passage as a document."""
        return (DocText(self.title, self.text),)

    @property
    def passages(self) -> list[str]:
        """The passage as the compressor reads it."""
        return [passage_text(self.title, self.text)]


@dataclass(frozen=True, slots=True)
class MultiHop:
    """A question with candidate documents.

    Attributes:
        answers: gold answers; the first is the reference, all count in scoring. ``prompts.NO_ANSWER`` alone: no
            document holds one.
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
    def all_pairs(self) -> tuple[QAPair, ...]:
        """The one question with its answers."""
        return (QAPair(self.question, self.answers),)

    @property
    def passages(self) -> list[str]:
        """The documents as the compressor reads them."""
        return [passage_text(doc.title, doc.text) for doc in self.docs]

    @property
    def answerable(self) -> bool:
        """The documents hold an answer."""
        return self.answers != (NO_ANSWER,)


DataRecord: TypeAlias = PassageQA | MultiHop


@dataclass(frozen=True, slots=True)
class GoldRef:
    """A supporting document that is not among a question's candidates.

    Attributes:
        title: may be empty.
        text: None where only the title is known: any passage of that title then supports the answer.
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
    """A question with gold answers.

    Attributes:
        answers: gold answers, the first is the reference, all count; empty: the documents do not answer it; None:
            unknown, so that only a ranking can be measured.
        docs: candidate documents; empty where a corpus provides them.
        gold: indices into ``docs`` of the supporting documents, each once.
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
        """The documents do not answer it."""
        return self.answers == ()

    @classmethod
    def of(cls, record: MultiHop) -> Question:
        """Our own record as a question."""
        return cls(record.id, record.source, record.question, record.answers, record.docs, record.gold)

    def record(self) -> MultiHop:
        """The question as a training record; ``UnusableRecordError`` without known answer or documents."""
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

    An empty one that supports nothing is left out; the reason is added to the reader's ``left_out``.
    """

    left_out: list[str]
    docs: list[DocText] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)

    def add(self, title: str, text: str, *, gold: bool) -> None:
        """Add a document; an empty gold one is refused: without it recall would count too few."""
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
