"""What every compared system is: questions with candidate documents in, a ranking and an answer out.

The protocol only. Each system is a file of ``evaluate/baselines``; ``baselines.SYSTEMS`` names them for
``clara eval --system``. Knows no metric: scoring is the runner's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from clara.data import DocText
from clara.evaluate.isolation import Failure
from clara.evaluate.protocol import AnswerModel
from clara.evaluate.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Ask:
    """One question as a system sees it: nothing in it says which documents are gold, unless they are all given.

    Attributes:
        id: the record's identifier.
        question: as asked.
        docs: candidate documents, in the record's order.
    """

    id: str
    question: str
    docs: tuple[DocText, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a system made of a question.

    Attributes:
        text: the answer; None from a system that only ranks.
        ranking: indices into ``Ask.docs``, best first; None where the system does not rank.
        used: indices of the documents that the answer was made from, in prompt order.
        context_tokens: tokens or memory vectors of context that the generator read.
        first_token_seconds: from the question (documents already compressed or indexed where the system does that
            offline) to the first token, measured on this question alone; None where it was not timed.
        compressed_to: share of the documents' tokens that the context takes; None where nothing is compressed.
    """

    text: str | None
    ranking: tuple[int, ...] | None
    used: tuple[int, ...]
    context_tokens: int
    first_token_seconds: float | None = None
    compressed_to: float | None = None


class System(Protocol):
    """A way from a question and candidate documents to an answer."""

    @property
    def name(self) -> str:
        """As in ``--system`` and in tables."""

    @property
    def fingerprint(self) -> str:
        """Changes with the weights and settings that decide its replies; part of the key of resumed runs."""

    def reply(self, questions: Sequence[Ask]) -> list[Reply | Failure]:
        """One reply a question, in order; an error in one question is its ``Failure`` and no other's."""


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """What the command line fixes for all systems of a run.

    Attributes:
        k: documents in the prompt.
        rate: compression rate; None is the model's default.
        given: ``gold``: every document in ``Ask.docs`` is read, in order, none is ranked; ``candidates``: the system
            ranks and reads its best ``k``.
        max_new_tokens: longest answer.
        batch_size: questions generated together.
        model: the checkpoint under test, opened once and shared; its base weights are every system's backbone.
        options: of single systems, by name: folders of readers and checkpoints (``reader``, ``closed_book_reader``,
            ``dro``, ``pisco``, ``supervised``, …).
        cache: folder for downloaded and derived weights.
        device: for models that a system loads itself.
        timed: how many questions each system times singly: the first it is given.
        shelf: what the systems of a run share; one shelf for all of them.
        quoted: hold answers to the words of the documents that are read.
    """

    k: int
    rate: int | None
    given: Literal["gold", "candidates"]
    max_new_tokens: int
    batch_size: int
    model: AnswerModel
    cache: Path
    options: Mapping[str, Path] = field(default_factory=dict)
    device: str = "cpu"
    timed: int = 0
    shelf: Shelf = field(default_factory=Shelf)
    quoted: bool = False


Build: TypeAlias = Callable[[SystemSettings], System]
"""Makes a system; raises ClaraError, with the remedy, where what it needs (an extra, a folder) is not there."""
