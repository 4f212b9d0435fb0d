"""Contexts that a reader gets of the selected documents: memories, text, compressed text, or nothing.

Memories are made here for rankers and analyses too: documents are cut into windows and compressed through the run's
cache, each text once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from clara.data import DocText
from clara.errors import ConfigError, DocumentError, MemoryMismatchError
from clara.evaluate.cache import Cache, Failure, each_one, unwrap
from clara.evaluate.lingua import Shorten, TokenCounter, classifier_compressor, perplexity_compressor
from clara.evaluate.system import AnswerModel, Context, ContextMaker, Query, Ranking, SystemSettings, digest
from clara.evaluate.weights import base_folder, base_identity, hub_folder, manifest_of, rate_of, weights_hash
from clara.ingest import make_document
from clara.ingest.split import split
from clara.prompts import passage_text
from clara.records import GenerationRequest, Memory, QueryMemory
from clara.similarity import ranking

_Weights: TypeAlias = Literal["generator", "base"]

_LLMLINGUA2 = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"


def _windows(model: AnswerModel, cache: Cache, docs: Sequence[DocText]) -> list[tuple[str, ...] | Failure]:
    """Texts of each document's windows, in order."""

    def cut(doc: DocText) -> tuple[str, ...]:
        document = make_document(f"evaluation:{doc.title}", doc.title, doc.text)
        passages = split(document, model.token_spans, max_tokens=model.window_tokens)
        if not passages:
            raise DocumentError(f"the document titled {doc.title!r} gave no passage")
        return tuple(passage_text(passage.title, passage.text) for passage in passages)

    maker = f"windows {base_identity(model)} {model.window_tokens}"
    return cache.derived(maker, docs, lambda some: [cut(doc) for doc in some])


class DocumentMemories:
    """Memories of documents under one model and rate, one a window."""

    def __init__(self, model: AnswerModel, rate: int | None, cache: Cache) -> None:
        self._model = model
        self._rate = rate
        self._cache = cache
        # Checkpoints that differ in generator or query reasoner alone share it: their documents are compressed once.
        identity = cache.opened("compressor", model.name, lambda: getattr(model, "memory_fingerprint", None))
        self._maker = f"memory {identity or model.fingerprint} {rate}"

    def of(self, docs: Sequence[DocText]) -> list[tuple[Memory, ...] | Failure]:
        """The memories of each document, in order."""
        windows = _windows(self._model, self._cache, docs)
        distinct = {text for texts in windows if not isinstance(texts, Failure) for text in texts}
        # Texts of like length share a call, and the order does not depend on hashing.
        texts = sorted(distinct, key=lambda text: (len(text), text))
        made = dict(zip(texts, self._cache.derived(self._maker, texts, self._compress), strict=True))
        return each_one(lambda texts: self._joined(texts, made), windows)

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


def rank_documents(query: QueryMemory, docs: Sequence[Sequence[Memory]]) -> Ranking:
    """Indices of documents, given by the memories of their windows, by their best window (``similarity.ranking``).

    Equal documents stay in their own order.
    """
    owners = [index for index, windows in enumerate(docs) for _ in windows]
    order = ranking(query, [memory for windows in docs for memory in windows])
    return tuple(dict.fromkeys(owners[index] for index in order))


def make_context(name: str, reader: _Weights, settings: SystemSettings, model: AnswerModel) -> ContextMaker:
    """The context of a name: ``none``, ``text``, ``memory``, ``llmlingua`` or ``llmlingua2``; ``model`` makes memories.

    Raises:
        ConfigError: the model does not serve the rate, or comes from no checkpoint.
        ClaraError: an extra, a folder or the hub is missing.
    """
    if name in {"none", "text"}:
        return _text_context("text" if name == "text" else "closed book", settings.model, settings.cache, reader)
    if name == "memory":
        return _memory_context(model, rate_of(settings, model), settings.cache, reader)
    if name == "llmlingua2":
        folder = hub_folder(_LLMLINGUA2, settings.options.get("llmlingua2"), option="llmlingua2")
        shorten = settings.cache.opened("llmlingua2", str(folder), lambda: _llmlingua2(folder, settings))
        fingerprint = weights_hash(folder)
    else:
        fingerprint = base_identity(settings.model)
        shorten = settings.cache.opened(
            "llmlingua", fingerprint, lambda: perplexity_compressor(base_folder(settings), settings.device)
        )
    manifest = manifest_of(settings.model)
    if manifest is None:
        raise ConfigError(f"{settings.model.name} comes from no checkpoint: the size of its memories is not known")
    # The budget of shortened text is what the memories of a window take at the run's rate.
    target = manifest.compression.memory_tokens(rate_of(settings, settings.model))
    return _shortened_context(shorten, fingerprint, target=target, model=settings.model, cache=settings.cache)


def _llmlingua2(folder: Path, settings: SystemSettings) -> Shorten:
    from transformers import AutoTokenizer  # noqa: PLC0415 - slow

    tokenizer = AutoTokenizer.from_pretrained(base_folder(settings), local_files_only=True)
    return classifier_compressor(folder, TokenCounter(tokenizer), settings.device)


def _text_context(name: str, model: AnswerModel, cache: Cache, reader: _Weights) -> ContextMaker:
    """The documents' full text, titles before it; empty unless named ``text``."""

    def context(query: Query, used: Ranking) -> Context:
        docs = [query.docs[index] for index in used] if name == "text" else []
        texts = tuple(passage_text(doc.title, doc.text) for doc in docs)
        request = GenerationRequest(query.question, texts=texts, reader=reader)
        return Context(request, tokens=_tokens_of(model, cache, texts))

    return ContextMaker(name if reader == "base" else f"{name}, read by {reader}", partial(each_one, context))


def _memory_context(model: AnswerModel, rate: int, cache: Cache, reader: _Weights) -> ContextMaker:
    """Memories of every window of the documents."""
    memories = DocumentMemories(model, rate, cache)

    def make(queries: Sequence[Query], used: Sequence[Ranking]) -> list[Context | Failure]:
        pairs = zip(queries, used, strict=True)
        docs = list(dict.fromkeys(query.docs[index] for query, order in pairs for index in order))
        made = dict(zip(docs, memories.of(docs), strict=True))

        def context(query: Query, order: Ranking) -> Context:
            whole = tuple(memory for windows in unwrap(made[query.docs[i]] for i in order) for memory in windows)
            return Context(
                GenerationRequest(query.question, memories=whole, reader=reader),
                tokens=sum(len(memory.values) for memory in whole),
                source_tokens=sum(memory.token_count for memory in whole),
            )

        return each_one(context, queries, used)

    facts = {"memory": model.fingerprint, "rate": rate}
    return ContextMaker(digest(facts if reader == "generator" else {**facts, "reader": reader}), make)


def _shortened_context(
    shorten: Shorten, fingerprint: str, *, target: int, model: AnswerModel, cache: Cache
) -> ContextMaker:
    """Documents shortened as text, each window to ``target`` tokens; ``fingerprint`` is of the shortener's weights."""
    mark = digest({"compressor": fingerprint, "target": target})

    def context(query: Query, used: Ranking) -> Context:
        windows = [text for texts in unwrap(_windows(model, cache, [query.docs[i] for i in used])) for text in texts]
        made = cache.derived(f"shortened {mark}", windows, lambda some: [shorten(text, target) for text in some])
        texts = unwrap(made)
        return Context(
            # A text of which nothing was kept leaves no empty line in the prompt.
            GenerationRequest(query.question, texts=tuple(text for text in texts if text), reader="base"),
            tokens=_tokens_of(model, cache, texts),
            source_tokens=_tokens_of(model, cache, windows),
        )

    return ContextMaker(mark, partial(each_one, context))


def _tokens_of(model: AnswerModel, cache: Cache, texts: Sequence[str]) -> int:
    maker = f"tokens {base_identity(model)}"
    return sum(unwrap(cache.derived(maker, texts, lambda some: [len(model.token_spans(text)) for text in some])))
