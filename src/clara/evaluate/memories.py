"""Document memories of one evaluation: each document compressed once, kept while a question still needs it.

Knows which documents are needed, not what for. At 4x a memory of SmolLM2-135M takes 150 kB, so the 6,000 documents of
300 questions would take a gigabyte if none were let go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from clara.data import DocText
from clara.errors import DocumentError, MemoryMismatchError
from clara.evaluate.isolation import Failure, each
from clara.evaluate.protocol import AnswerModel, Splitter
from clara.ingest import make_document
from clara.prompts import passage_text
from clara.records import Memory, QueryMemory
from clara.similarity import ranking

# Texts handed to the model in one call; it forms its own batches of them by length.
_TEXTS_A_CALL = 64


class MemoryBank:
    """Memories of documents, by document.

    Args:
        model: makes the memories.
        rate: compression rate, None for the model's default.
        splitter: cuts documents that are longer than the model's window.
        uses: each document as often as a question will use it.
    """

    def __init__(
        self, model: AnswerModel, *, rate: int | None, splitter: Splitter, uses: Iterable[DocText] = ()
    ) -> None:
        self._model = model
        self._rate = rate
        self._splitter = splitter
        self._uses = Counter(uses)
        self._kept: dict[DocText, tuple[Memory, ...] | Failure] = {}

    def __len__(self) -> int:
        """Documents kept."""
        return len(self._kept)

    def fill(self, docs: Iterable[DocText]) -> None:
        """Compress those of ``docs`` that are not kept yet; one that fails is kept as its failure."""
        missing = [doc for doc in dict.fromkeys(docs) if doc not in self._kept]
        windows = dict(zip(missing, each(missing, self._windows), strict=True))
        wanted = {text for texts in windows.values() if not isinstance(texts, Failure) for text in texts}
        # Like lengths share a call, and the order does not depend on hashing.
        texts = sorted(wanted, key=lambda text: (len(text), text))
        made: dict[str, Memory | Failure] = {}
        for start in range(0, len(texts), _TEXTS_A_CALL):
            call = texts[start : start + _TEXTS_A_CALL]
            made.update(zip(call, each(call, self._compress), strict=True))
        for doc, found in windows.items():
            self._kept[doc] = found if isinstance(found, Failure) else _together([made[text] for text in found])

    def memories(self, doc: DocText) -> tuple[Memory, ...] | Failure:
        """The memories of a document that ``fill`` was given, one a window, in order."""
        return self._kept[doc]

    def release(self, docs: Iterable[DocText]) -> None:
        """Say that a question is done with ``docs``; what no question will use again is let go."""
        for doc in docs:
            self._uses[doc] -= 1
            if self._uses[doc] <= 0:
                self._kept.pop(doc, None)

    def _windows(self, docs: Sequence[DocText]) -> list[tuple[str, ...]]:
        """The texts that the model reads of each document."""
        found = []
        for doc in docs:
            document = make_document(f"evaluation:{doc.title}", doc.title, doc.text)
            passages = self._splitter(document, self._model.token_spans, max_tokens=self._model.window_tokens)
            if not passages:
                raise DocumentError(f"the document titled {doc.title!r} gave no passage")
            found.append(tuple(passage_text(passage.title, passage.text) for passage in passages))
        return found

    def _compress(self, texts: Sequence[str]) -> list[Memory]:
        memories = self._model.compress(texts, rate=self._rate)
        for memory in memories:
            if memory.fingerprint != self._model.fingerprint:
                raise MemoryMismatchError(
                    f"expected memories of model {self._model.fingerprint}, got some of {memory.fingerprint}"
                )
        return memories


def rank(query: QueryMemory, docs: Sequence[Sequence[Memory]]) -> tuple[int, ...]:
    """Order documents by their first window in the order of all windows (``similarity.ranking``).

    Args:
        query: memory of the question, [N, H].
        docs: for each document the memories of its windows, each [N, H], at least one.

    Returns:
        Indices into ``docs``, best first; of equal documents the first comes first.
    """
    owners = [place for place, windows in enumerate(docs) for _ in windows]
    order = ranking(query, [memory for windows in docs for memory in windows])
    return tuple(dict.fromkeys(owners[index] for index in order))


def _together(memories: Sequence[Memory | Failure]) -> tuple[Memory, ...] | Failure:
    whole: list[Memory] = []
    for memory in memories:
        if isinstance(memory, Failure):
            return memory
        whole.append(memory)
    return tuple(whole)
