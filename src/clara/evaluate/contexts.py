"""Contexts: what a reader is given of the chosen documents (memories, text, shortened text, or nothing)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from clara.evaluate.cache import Cache
from clara.evaluate.failures import Failure, each, unwrap
from clara.evaluate.memories import DocumentMemories, Windows
from clara.evaluate.system import AnswerModel, Context, Query, Ranking, digest
from clara.evaluate.weights import base_identity
from clara.prompts import passage_text
from clara.records import GenerationRequest

Weights: TypeAlias = Literal["generator", "base"]
"""Which weights of the model under test read a context."""


def _chosen(queries: Sequence[Query], used: Sequence[Ranking]) -> list[tuple[Query, Ranking]]:
    return list(zip(queries, used, strict=True))


class NoContext:
    """Contexts of nothing."""

    def __init__(self, reader: Weights = "base") -> None:
        self._reader = reader
        self.fingerprint = "closed book" if reader == "base" else f"closed book, read by {reader}"

    def contexts(self, queries: Sequence[Query], used: Sequence[Ranking]) -> list[Context | Failure]:
        """The questions alone."""
        del used
        return [Context(GenerationRequest(query.question, reader=self._reader), tokens=0) for query in queries]


class TextContext:
    """Contexts of the documents' full text, titles before it.

    Args:
        model: its tokenizer counts.
        cache: holds the counts.
        reader: weights that read.
    """

    def __init__(self, model: AnswerModel, cache: Cache, reader: Weights = "base") -> None:
        self._model = model
        self._cache = cache
        self._reader = reader
        self.fingerprint = "text" if reader == "base" else f"text, read by {reader}"

    def contexts(self, queries: Sequence[Query], used: Sequence[Ranking]) -> list[Context | Failure]:
        """The documents ``used``, in that order."""
        return each(_chosen(queries, used), lambda some: [self._context(*pair) for pair in some])

    def _context(self, query: Query, used: Ranking) -> Context:
        texts = tuple(passage_text(query.docs[index].title, query.docs[index].text) for index in used)
        tokens = _tokens_of(self._model, self._cache, texts)
        return Context(GenerationRequest(query.question, texts=texts, reader=self._reader), tokens=tokens)


class MemoryContext:
    """Contexts of the documents' memories, every window of each.

    Args:
        model: compresses.
        rate: compression rate.
        cache: holds the memories.
        reader: weights that read.
    """

    def __init__(self, model: AnswerModel, rate: int, cache: Cache, reader: Weights = "generator") -> None:
        self._memories = DocumentMemories(model, rate, cache)
        self._reader = reader
        facts = {"memory": model.fingerprint, "rate": rate}
        self.fingerprint = digest(facts if reader == "generator" else {**facts, "reader": reader})

    def contexts(self, queries: Sequence[Query], used: Sequence[Ranking]) -> list[Context | Failure]:
        """The documents ``used``, in that order."""
        pairs = _chosen(queries, used)
        docs = list(dict.fromkeys(query.docs[index] for query, order in pairs for index in order))
        memories = dict(zip(docs, self._memories.of(docs), strict=True))

        def context(query: Query, order: Ranking) -> Context:
            windows = unwrap(memories[query.docs[index]] for index in order)
            whole = tuple(memory for found in windows for memory in found)
            return Context(
                GenerationRequest(query.question, memories=whole, reader=self._reader),
                tokens=sum(len(memory.values) for memory in whole),
                source_tokens=sum(memory.token_count for memory in whole),
            )

        return each(pairs, lambda some: [context(*pair) for pair in some])


class TextCompressor(Protocol):
    """Shortens a text."""

    def compress(self, text: str, target: int) -> str:
        """The text in about ``target`` tokens of the generator."""


class ShortenedContext:
    """Contexts of documents shortened as text to the tokens that their memories would take.

    Each window is shortened by itself, before the question comes.

    Args:
        compressor: shortens (``lingua``).
        fingerprint: of its weights.
        target: tokens that a window is shortened to.
        model: cuts documents into windows, and counts.
        cache: holds shortened windows.
    """

    def __init__(
        self, compressor: TextCompressor, fingerprint: str, *, target: int, model: AnswerModel, cache: Cache
    ) -> None:
        self._compressor = compressor
        self._target = target
        self._model = model
        self._cache = cache
        self._windows = Windows(model, cache)
        self.fingerprint = digest({"compressor": fingerprint, "target": target})

    def contexts(self, queries: Sequence[Query], used: Sequence[Ranking]) -> list[Context | Failure]:
        """The documents ``used``, in that order, shortened."""
        return each(_chosen(queries, used), lambda some: [self._context(*pair) for pair in some])

    def _context(self, query: Query, used: Ranking) -> Context:
        windows = [text for found in unwrap(self._windows.of([query.docs[i] for i in used])) for text in found]
        texts = unwrap(self._cache.derived(f"shortened {self.fingerprint}", windows, self._shorten))
        return Context(
            # A text of which nothing was kept leaves no empty line in the prompt.
            GenerationRequest(query.question, texts=tuple(text for text in texts if text), reader="base"),
            tokens=_tokens_of(self._model, self._cache, texts),
            source_tokens=_tokens_of(self._model, self._cache, windows),
        )

    def _shorten(self, texts: Sequence[str]) -> list[str]:
        return [self._compressor.compress(text, self._target) for text in texts]


def _tokens_of(model: AnswerModel, cache: Cache, texts: Sequence[str]) -> int:
    """Tokens of texts together, each text counted once a run."""
    maker = f"tokens {base_identity(model)}"
    return sum(unwrap(cache.derived(maker, texts, lambda some: [len(model.token_spans(text)) for text in some])))
