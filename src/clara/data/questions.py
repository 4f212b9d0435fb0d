"""A question to be measured on, whatever public data set it comes from.

Wider than ``MultiHop``: a question may be unanswerable, may have no known answer (only its ranking is measured), and
may come without candidate documents, which then come from a corpus. How it stands in a file is ``formats``' matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clara.data.records import DocText, MultiHop, UnusableRecordError, check_gold


@dataclass(frozen=True, slots=True)
class GoldRef:
    """A supporting document that is not among a question's candidates.

    Attributes:
        title: of the document; may be empty.
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
        question: as asked.
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
    docs: tuple[DocText, ...]
    gold: tuple[int, ...]
    elsewhere: tuple[GoldRef, ...] = ()

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UnusableRecordError("empty question")
        if not all(answer.strip() for answer in self.answers or ()):
            raise UnusableRecordError("blank answer", f"question {self.question!r}")
        check_gold(self.gold, self.docs)

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
    """Gathers a question's candidate documents; an empty one that supports nothing is left out and counted.

    Attributes:
        docs: the documents so far.
        gold: indices of the supporting ones.
        left_out: reasons of what was left out, shared with the reader.
    """

    left_out: list[str]
    docs: list[DocText] = field(default_factory=list)
    gold: list[int] = field(default_factory=list)

    def add(self, title: str, text: str, *, gold: bool) -> None:
        """Add a document unless it is empty.

        Raises:
            UnusableRecordError: an empty document is gold; without it recall would count too few of them.
        """
        if not text.strip():
            if gold:
                raise UnusableRecordError("empty gold document", title)
            self.left_out.append("empty candidate document")
            return
        if gold:
            self.gold.append(len(self.docs))
        self.docs.append(DocText(title, text))
