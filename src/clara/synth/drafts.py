"""The small records that pass between the parts of this room: a passage, a pair, a rejection, a verdict.

Knows no server, no file and no rule; what is written to disk is made in ``output``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["simple_qa", "complex_qa", "paraphrase"]


@dataclass(frozen=True, slots=True)
class SourcePassage:
    """A passage to write questions about.

    Attributes:
        id: identifier, unique within a run; it names the record written.
        source: data set or file the passage comes from.
        title: title of its document, or the empty string.
        text: the passage.
        document: what its neighbours have in common; empty where it stands alone.
    """

    id: str
    source: str
    title: str
    text: str
    document: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One question with its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class DraftFault:
    """Why one thing is not taken.

    Attributes:
        reason: short fixed name that is counted, such as ``duplicate_question``.
        detail: the reason in words that the language model can act on.
    """

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """Something of a reply that was not taken.

    Attributes:
        kind: what was asked for; ``judge`` for the judge's own reply.
        item: the rejected text, as shown to the language model when it is asked again; empty for a whole reply.
        fault: why.
    """

    kind: Kind | Literal["judge"]
    item: str
    fault: DraftFault


@dataclass(frozen=True, slots=True)
class Draft:
    """All that a passage has so far."""

    simple: tuple[Pair, ...] = ()
    complex: tuple[Pair, ...] = ()
    paraphrase: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's opinion of a draft (the contract of the judge's reply).

    Attributes:
        consistent: everything stated is stated by the passage.
        covered: no salient fact of the passage is without a pair.
        missing: facts that no pair covers.
        wrong: items that the passage does not state, each beginning with its label (``S1``, ``C2``, ``P``).
    """

    consistent: bool
    covered: bool
    missing: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether the draft can be written as it is."""
        return self.consistent and self.covered and not (self.missing or self.wrong)
