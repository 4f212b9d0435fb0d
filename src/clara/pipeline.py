"""Joins ingest, model and index: add, remove, search, ask.

Files are taken in by ``indexing``; formats, tensors and tables are their rooms'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Generator as Pieces
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from clara import indexing, prompts
from clara.errors import InputError, StoreError
from clara.index import LanceStore, StoreModel
from clara.indexing import AddProgress, AddReport, Indexer, checked_paths
from clara.ingest import DEFAULT_MAX_BYTES, iter_passages, make_document
from clara.model import ClaraModel
from clara.model.generator import sampling
from clara.records import (
    Answer,
    Citation,
    ContextKind,
    GenerationRequest,
    Hit,
    Passage,
    SearchMode,
    Seconds,
    Wording,
)


class Clara:
    """A store of compressed passages with the model that made them."""

    def __init__(self, store: LanceStore, model: ClaraModel) -> None:
        self.store = store
        self.model = model

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: ClaraModel,
        rate: int | None = None,
        codec: str | None = None,
        create: bool = True,
    ) -> Clara:
        """Open a store.

        Args:
            path: its folder.
            model: the model that filled it, or that is to fill it.
            rate: compression rate of a new store; the model's default when None. An existing store keeps its own.
            codec: how a new store keeps memories: ``fp16`` (when None), ``int8``, ``int4`` or ``residual``.
            create: make the store if there is none.

        Raises:
            StoreNotFoundError: no store there, and ``create`` is false.
            StoreModelError: another model, or another rate than the one asked for, filled it.
            StoreError: the folder is not a store, or cannot be read.
            ConfigError: the model does not serve the rate, there is no such codec, or the store has another.
        """
        if rate is None:
            rate = _stored_rate(Path(path))
            # A rate that this model does not serve is another model's store, and refused as such below.
            rate = rate if rate in model.rates else model.default_rate
        wanted = StoreModel(
            fingerprint=model.fingerprint,
            name=model.name,
            rate=rate,
            memory_tokens=model.memory_tokens(rate),
            width=model.width,
            query_space=model.query_space,
        )
        store = LanceStore.create(Path(path), wanted, codec=codec) if create else LanceStore.open(Path(path), wanted)
        return cls(store, model)

    def __enter__(self) -> Clara:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the store's locks back."""
        self.store.close()

    @property
    def rate(self) -> int:
        """Compression rate of the store."""
        return self.store.model.rate

    def add(
        self,
        paths: str | Path | Iterable[str | Path],
        *,
        prune: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> AddReport:
        """Index files and folders; what is in the store unchanged is not touched.

        A call that was killed is finished by the same call: the store ends as if nothing had happened.

        Args:
            paths: files and folders, read recursively; or one of them.
            prune: remove documents that came from these paths and are there no more, or hold no text any more.
            max_bytes: larger files are skipped and reported.
            progress: told after each file and each commit.

        Raises:
            InputError: a path is empty or does not exist.
            StoreError: the store cannot be written.
        """
        try:
            return Indexer(self.store, self.model).add(
                checked_paths(paths), prune=prune, max_bytes=max_bytes, progress=progress
            )
        except BaseException:
            # Whoever comes next may write: what is stored so far is whole documents, and marked where not.
            self.store.release()
            raise

    def remove(self, sources: str | Path | Iterable[str | Path]) -> int:
        """Remove documents, see ``indexing.remove``."""
        return indexing.remove(self.store, sources)

    def search(self, question: str, k: int = 5, *, mode: SearchMode = "hybrid") -> list[Hit]:
        """The ``k`` best passages for a question.

        Args:
            question: in words.
            k: at least 1.
            mode: ``latent`` by similarity of memories, ``text`` by BM25, ``hybrid`` by both.

        Raises:
            InputError: the question is empty or ``k`` is below 1.
            StoreError: the store is empty.
        """
        return self._search(question, k, mode).hits

    def ask(
        self,
        question: str,
        k: int = 5,
        *,
        mode: SearchMode = "hybrid",
        context: ContextKind = "memory",
        wording: Wording | None = None,
        max_new_tokens: int = 64,
    ) -> Answer:
        """Answer a question from the ``k`` best passages.

        Args:
            question: in words.
            k: passages to read.
            mode: how they are found, see ``search``.
            context: what the generator reads of them: their memories, their text, or nothing (no search then).
            wording: ``quoted``: the answer is a stretch of one of the passages, word for word, or yes or no; ``free``:
                any. None: from memories as the checkpoint says, else free.
            max_new_tokens: longest answer.

        Raises:
            InputError: the question is empty, or no passage was found.
            StoreError: the store is empty.
        """
        started = time.perf_counter()
        found = self._found(question, k, mode, context)
        before = time.perf_counter()
        request = self.request(question, found.hits, context, wording)
        generation = self.model.generate_many([request], max_new_tokens=max_new_tokens)[0]
        now = time.perf_counter()
        return Answer(
            text=generation.text,
            citations=cite(found.hits),
            tokens=generation.tokens,
            seconds=Seconds(search=found.search, query=found.query, generate=now - before, total=now - started),
            context=context,
            finish_reason=generation.finish_reason,
        )

    def stream(
        self,
        question: str,
        k: int = 5,
        *,
        mode: SearchMode = "hybrid",
        context: ContextKind = "memory",
        wording: Wording | None = None,
        max_new_tokens: int = 64,
    ) -> AnswerStream:
        """As ``ask``, with the text in pieces as it is generated."""
        found = self._found(question, k, mode, context)
        request = self.request(question, found.hits, context, wording)
        pieces = self.model.stream(request, sampling(max_new_tokens=max_new_tokens))
        return AnswerStream(citations=cite(found.hits), pieces=pieces)

    def request(
        self, question: str, hits: Sequence[Hit], context: ContextKind, wording: Wording | None = None
    ) -> GenerationRequest:
        """What the generator is asked; arguments as ``ask``.

        Text is read by the backbone without an adapter: the generator's adapter was trained on memories.

        Raises:
            InputError: nothing is given, so nothing can be quoted; or there is no such context or wording.
        """
        _check_choice("context", context, ContextKind)
        if wording is not None:
            _check_choice("wording", wording, Wording)
        texts = tuple(prompts.passage_text(hit.passage.title, hit.passage.text) for hit in hits)
        if context == "none":
            if wording == "quoted":
                raise InputError("without passages (context none) there is nothing to quote; use wording free")
            return GenerationRequest(question, reader="base")
        chosen = wording or (self.model.wording if context == "memory" else "free")
        quoted = texts if chosen == "quoted" else ()
        if context == "memory":
            return GenerationRequest(question, memories=tuple(hit.memory for hit in hits), quote_from=quoted)
        return GenerationRequest(question, texts=texts, reader="base", quote_from=quoted)

    def _found(self, question: str, k: int, mode: SearchMode, context: ContextKind) -> _Found:
        """What an answer is to be read from."""
        _check_choice("context", context, ContextKind)
        found = self._search(question, k, mode) if context != "none" else _Found([], 0.0, 0.0)
        if context != "none" and not found.hits:
            raise InputError(f"no passage was found by {mode} search; ask in other words, or use --mode hybrid")
        return found

    def _search(self, question: str, k: int, mode: SearchMode) -> _Found:
        _check_choice("mode", mode, SearchMode)
        if not question.strip():
            raise InputError("the question is empty")
        if self.store.count() == 0:
            raise StoreError("the store is empty; add documents first: clara index PATH --store STORE")
        started = time.perf_counter()
        if mode == "text":
            hits = self.store.search_text(question, k)
            return _Found(hits, 0.0, time.perf_counter() - started)
        query = self.model.encode_queries([question], rate=self.rate)[0]
        encoded = time.perf_counter()
        if mode == "latent":
            hits = self.store.search_latent(query, k)
        else:
            hits = self.store.search_hybrid(query, question, k, latent_weight=self.model.latent_weight)
        return _Found(hits, encoded - started, time.perf_counter() - encoded)


def _stored_rate(path: Path) -> int | None:
    """The rate of the store at ``path``, if there is one."""
    if not (path / "store.json").exists():
        return None
    with LanceStore.open(path, None) as store:
        return store.model.rate


@dataclass(frozen=True, slots=True)
class AnswerStream:
    """A streamed answer: its citations at once, its text in pieces; close them to leave the rest."""

    citations: tuple[Citation, ...]
    pieces: Pieces[str, None, None]


@dataclass(frozen=True, slots=True)
class _Found:
    """Hits, and the seconds that the query and the search took."""

    hits: list[Hit]
    query: float
    search: float


def cite(hits: Sequence[Hit]) -> tuple[Citation, ...]:
    """Citations of hits, in their order."""
    return tuple(
        Citation(
            passage_id=hit.passage.id,
            document=hit.passage.document,
            start=hit.passage.start,
            end=hit.passage.end,
            score=hit.score,
            text=hit.passage.text,
        )
        for hit in hits
    )


def _check_choice(name: str, value: str, kind: object) -> None:
    """Refuse a value that a ``Literal`` does not have; a misspelt one must not pass for the default."""
    if value not in get_args(kind):
        raise InputError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")


def split_text(text: str, model: ClaraModel, *, title: str = "") -> list[Passage]:
    """Cut a text of any length into passages that ``model.compress`` takes (as ``prompts.passage_text``)."""
    document = make_document("text", title, text)
    return list(iter_passages(document, model.token_spans, max_tokens=model.window_tokens))
