"""Memories of documents: cut into windows, compressed through the run's cache, ranked by the best window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clara.data import DocText
from clara.errors import DocumentError, MemoryMismatchError
from clara.evaluate.cache import Cache
from clara.evaluate.failures import Failure, each, unwrap
from clara.evaluate.system import AnswerModel, Splitter
from clara.evaluate.weights import base_identity, compressor_identity
from clara.ingest import make_document
from clara.ingest.split import split
from clara.prompts import passage_text
from clara.records import Memory, QueryMemory
from clara.similarity import ranking


class Windows:
    """The texts that a model reads of a document, each at most one window long.

    Args:
        model: its tokenizer counts.
        cache: holds the texts.
        splitter: cuts documents that are longer than the model's window.
    """

    def __init__(self, model: AnswerModel, cache: Cache, splitter: Splitter = split) -> None:
        self._model = model
        self._cache = cache
        self._splitter = splitter
        self._maker = f"windows {base_identity(model)} {model.window_tokens} {splitter!r}"

    def of(self, docs: Sequence[DocText]) -> list[tuple[str, ...] | Failure]:
        """The windows of each document, in order."""
        return self._cache.derived(self._maker, docs, lambda some: [self._cut(doc) for doc in some])

    def _cut(self, doc: DocText) -> tuple[str, ...]:
        document = make_document(f"evaluation:{doc.title}", doc.title, doc.text)
        passages = self._splitter(document, self._model.token_spans, max_tokens=self._model.window_tokens)
        if not passages:
            raise DocumentError(f"the document titled {doc.title!r} gave no passage")
        return tuple(passage_text(passage.title, passage.text) for passage in passages)


class DocumentMemories:
    """Memories of documents under one model and rate, one a window. Checkpoints with the same compressor share them.

    Args:
        model: compresses.
        rate: compression rate; None is the model's default.
        cache: holds the memories.
        splitter: cuts documents that are longer than the model's window.
    """

    def __init__(self, model: AnswerModel, rate: int | None, cache: Cache, splitter: Splitter = split) -> None:
        self._model = model
        self._rate = rate
        self._cache = cache
        self._windows = Windows(model, cache, splitter)
        self._maker = f"memory {compressor_identity(cache, model)} {rate}"

    def of(self, docs: Sequence[DocText]) -> list[tuple[Memory, ...] | Failure]:
        """The memories of each document, in order."""
        windows = self._windows.of(docs)
        wanted = {text for found in windows if not isinstance(found, Failure) for text in found}
        # Texts of like length share a call, and the order does not depend on hashing.
        texts = sorted(wanted, key=lambda text: (len(text), text))
        made = dict(zip(texts, self._cache.derived(self._maker, texts, self._compress), strict=True))
        return each(windows, lambda some: [self._joined(found, made) for found in some])

    def _joined(self, windows: tuple[str, ...] | Failure, made: dict[str, Memory | Failure]) -> tuple[Memory, ...]:
        memories = unwrap(made[text] for text in unwrap([windows])[0])
        mark = self._model.fingerprint  # the cache may hold them from another checkpoint with the same compressor
        return tuple(m if m.fingerprint == mark else replace(m, fingerprint=mark) for m in memories)

    def _compress(self, texts: Sequence[str]) -> list[Memory]:
        memories = self._model.compress(texts, rate=self._rate)
        for memory in memories:
            if memory.fingerprint != self._model.fingerprint:
                raise MemoryMismatchError(
                    f"expected memories of model {self._model.fingerprint}, got some of {memory.fingerprint}"
                )
        return memories


def rank_documents(query: QueryMemory, docs: Sequence[Sequence[Memory]]) -> tuple[int, ...]:
    """Rank documents by their first window in the ranking of all windows (``similarity.ranking``).

    Args:
        query: memory of the question, [N, H].
        docs: for each document the memories of its windows, each [N, H], at least one.

    Returns:
        Indices into ``docs``, best first; of equal documents the first comes first.
    """
    owners = [place for place, windows in enumerate(docs) for _ in windows]
    order = ranking(query, [memory for windows in docs for memory in windows])
    return tuple(dict.fromkeys(owners[index] for index in order))
