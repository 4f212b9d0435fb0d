"""From a client's messages to a question: the last user message, made self-contained from those before it.

A client keeps its conversation itself and sends all of it. Its earlier messages become turns by the same rules, one
after another; the document that an earlier answer came from is not in them, so it is searched for again, where a
follow-up needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clara.conversation import AskBack, Turn, Understood, rewrite, understand
from clara.errors import NothingFoundError
from clara.manuals import manual_of
from clara.pipeline import Clara

if TYPE_CHECKING:
    from clara.llm.client import LLM

_TASK = "### Task:"
"""How chat clients begin what they ask beside the conversation: a title, tags, follow-up questions."""

_TURNS = 20  # earlier messages that are read: what a follow-up goes on with is never further back


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a conversation.

    Attributes:
        role: who said it.
        text: what.
    """

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a client asks.

    Attributes:
        message: the last user message, as it was written.
        turns: what was said before it, oldest first.
        is_task: whether it is a client's own task, which is answered without the documents.
    """

    message: str
    turns: tuple[Turn, ...] = ()
    is_task: bool = False

    def understood(self, llm: LLM | None = None) -> Understood | AskBack:
        """The message, self-contained; or what to ask back.

        Args:
            llm: what rewrites a follow-up; None for the rules.

        Raises:
            LLMError: it cannot be asked.
        """
        if self.is_task:
            return Understood(self.message)
        return understand(self.turns, self.message) if llm is None else rewrite(llm, self.turns, self.message)

    def manual(self, rag: Clara, understood: Understood) -> str | None:
        """The manual that a follow-up is answered from: that of the answer before it; None for any other question."""
        if not understood.made_from:
            return None
        document = _document_of(rag, understood.made_from, self.turns[-1].answer if self.turns else "")
        return manual_of(document, rag.store.documents()) if document else None


def conversation_of(messages: Sequence[Said]) -> Conversation | None:
    """The question of a conversation; None where no user message has a text."""
    asked = [i for i, said in enumerate(messages) if said.role == "user" and said.text.strip()]
    if not asked:
        return None
    message = messages[asked[-1]].text.strip()
    if message.startswith(_TASK):
        return Conversation(message, is_task=True)
    turns: list[Turn] = []
    for place, following in zip(asked[:-1][-_TURNS:], asked[1:][-_TURNS:], strict=True):
        answer = next((said.text for said in messages[place:following] if said.role == "assistant"), "")
        earlier = understand(turns, messages[place].text)
        turns.append(earlier.turn() if isinstance(earlier, AskBack) else earlier.turn(answer, ""))
    return Conversation(message, tuple(turns))


def _document_of(rag: Clara, question: str, answer: str) -> str:
    """The document that an earlier answer was taken from, as far as can be told; empty where nothing is found."""
    try:
        hits = rag.search(question, rag.model.default_k)
    except NothingFoundError:
        return ""
    said = [hit for hit in hits if answer.strip() and answer.strip() in hit.passage.text]
    return next((hit.passage.document for hit in said or hits), "")
