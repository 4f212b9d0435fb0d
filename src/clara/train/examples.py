"""What the stages train on: texts to compress, targets to write from their memories, questions with candidates.

Knows words, not tokens. Which records become which examples is each stage's own decision.
"""

from __future__ import annotations

from dataclasses import dataclass

from clara import prompts


@dataclass(frozen=True, slots=True)
class Target:
    """One thing to write.

    Attributes:
        instruction: what follows the background in the prompt.
        reply: what is to be written.
        ends: whether the reply is whole, so that an end token follows it.
        weight: of each of its tokens in the loss.
        label_weights: of each of its labels apart, the end token's included; empty for ``weight`` alike.
    """

    instruction: str
    reply: str
    ends: bool = True
    weight: float = 1.0
    label_weights: tuple[float, ...] = ()


def is_question(target: Target) -> bool:
    """Whether a target answers a question, and does not restate."""
    return target.instruction.startswith(prompts.QUESTION)


@dataclass(frozen=True, slots=True)
class Example:
    """Texts and the targets to write from them; the targets do not see each other.

    Attributes:
        texts: passages as the compressor reads them, in the order of the prompt.
        targets: at least one.
        as_text: places of the passages that the generator reads as text; the others are read as memories.
    """

    texts: tuple[str, ...]
    targets: tuple[Target, ...]
    as_text: frozenset[int] = frozenset()

    @property
    def compressed(self) -> tuple[str, ...]:
        """The passages that need memories, in the order of the prompt."""
        return tuple(text for i, text in enumerate(self.texts) if i not in self.as_text)

    @property
    def length(self) -> int:
        """Letters that are read, for batches of like length."""
        return sum(map(len, self.texts))


@dataclass(frozen=True, slots=True)
class CandidateExample:
    """One question with the passages to choose from (stages ``end_to_end`` and ``retriever``).

    Attributes:
        question: as asked.
        reply: what is to be written; stage ``retriever`` does not read it.
        candidates: passages as the compressor reads them, in random order, each once.
        positives: indices of those that support the answer; stage ``end_to_end`` does not read them.
    """

    question: str
    reply: str
    candidates: tuple[str, ...]
    positives: tuple[int, ...]

    @property
    def compressed(self) -> tuple[str, ...]:
        """The passages that need memories."""
        return self.candidates

    @property
    def length(self) -> int:
        """Letters that are read beside memories, for batches of like length."""
        return len(self.question)
