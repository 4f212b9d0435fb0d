"""From a client's messages to a question, and to the manual that a follow-up is answered from.

A client keeps its conversation itself and sends all of it. Its earlier messages become turns by the rules of
``conversation``, one after another; the document that an earlier answer came from is not in them, so it is searched for
again, where a follow-up needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os.path import commonpath
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from clara.conversation import AskBack, Turn, Understood, rewrite, understand
from clara.errors import NothingFoundError
from clara.ingest import source_of

if TYPE_CHECKING:
    from clara.llm import LLM
    from clara.pipeline import Clara

_TASK = "### Task:"
"""First words of client tasks beside the conversation: a title, tags, follow-up questions."""

_TURNS = 20  # earlier messages that are read: what a follow-up goes on with is never further back
_HTML = frozenset({".html", ".htm", ".xhtml"})


@dataclass(frozen=True, slots=True)
class Said:
    """A message of a conversation: whose, and its text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A client's request: the last user message, as it was written, and the turns before it, oldest first.

    ``is_task``: it is a client's own task, which is answered without the documents.
    """

    message: str
    turns: tuple[Turn, ...] = ()
    is_task: bool = False

    def understood(self, llm: LLM | None = None) -> Understood | AskBack:
        """The message, self-contained, or what to ask back; by the rules unless a language model is to rewrite it.

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
        answer = self.turns[-1].answer.strip() if self.turns else ""
        try:
            hits = rag.search(understood.made_from, rag.model.default_k)
        except NothingFoundError:
            return None
        said = [hit for hit in hits if answer and answer in hit.passage.text] or hits
        return manual_of(said[0].passage.document, rag.store.documents()) if said else None


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


def manual_of(document: str, documents: Collection[str]) -> str:
    """The manual that a document belongs to, among all documents of a store, by their uris.

    A follow-up may be answered from another page of the manual, and from no other one. Nothing in a store says what a
    manual is, so its folders are read as people lay them out:

    - records of one ``.jsonl`` file are one manual: the file;
    - pages of a folder are, where it holds ``index`` in their format or, for HTML, a second page; so is the folder
      above while it holds pages of the format likewise;
    - else the folders side by side below the deepest one that holds the whole store are a manual each;
    - else, in a flat folder, every file is its own.

    Returns:
        The uri of a file, or of a folder, which ends with a slash (``belongs_to``).
    """
    source = source_of(document)
    if source != document:
        return source
    sources = {PurePosixPath(source_of(uri)) for uri in documents}
    page = PurePosixPath(source)
    folder = page.parent
    if _holds_pages(folder, page.suffix.lower(), sources):
        while folder.parent != folder and _holds_pages(folder.parent, page.suffix.lower(), sources):
            folder = folder.parent
        return _as_folder(folder)
    above = PurePosixPath(commonpath([path.parent for path in sources | {page}]))
    below = page.relative_to(above).parts
    return _as_folder(above / below[0]) if len(below) > 1 else source


def belongs_to(document: str, manual: str) -> bool:
    """True if a document is part of a manual of ``manual_of``."""
    source = source_of(document)
    return source.startswith(manual) if manual.endswith("/") else source == manual


def _holds_pages(folder: PurePosixPath, suffix: str, sources: Collection[PurePosixPath]) -> bool:
    kinds = _HTML if suffix in _HTML else {suffix}
    pages = [path for path in sources if path.parent == folder and path.suffix.lower() in kinds]
    return len(pages) > 1 if suffix in _HTML else any(path.stem.lower() == "index" for path in pages)


def _as_folder(folder: PurePosixPath) -> str:
    return folder.as_posix().rstrip("/") + "/"
