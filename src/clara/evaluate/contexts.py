"""What a reader is given of the chosen documents: their memories, text, shortened text, or nothing.

Memories are made here for rankers and analyses too: documents are cut into windows and compressed through the run's
cache, each text once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from clara.data import DocText
from clara.errors import ConfigError, DocumentError, MemoryMismatchError
from clara.evaluate.cache import Cache, Failure, each, unwrap
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
    """The texts that a model reads of each document, in order, each at most one window long."""

    def cut(doc: DocText) -> tuple[str, ...]:
        document = make_document(f"evaluation:{doc.title}", doc.title, doc.text)
        passages = split(document, model.token_spans, max_tokens=model.window_tokens)
        if not passages:
            raise DocumentError(f"the document titled {doc.title!r} gave no passage")
        return tuple(passage_text(passage.title, passage.text) for passage in passages)

    maker = f"windows {base_identity(model)} {model.window_tokens}"
    return cache.derived(maker, docs, lambda some: [cut(doc) for doc in some])


class DocumentMemories:
    """Memories of documents under one model and rate, one a window. Checkpoints with the same compressor share them."""

    def __init__(self, model: AnswerModel, rate: int | None, cache: Cache) -> None:
        self._model = model
        self._rate = rate
        self._cache = cache
        self._maker = f"memory {_compressor_identity(cache, model)} {rate}"

    def of(self, docs: Sequence[DocText]) -> list[tuple[Memory, ...] | Failure]:
        """The memories of each document, in order."""
        windows = _windows(self._model, self._cache, docs)
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


def _compressor_identity(cache: Cache, model: AnswerModel) -> str:
    """Identity of all that decides a document's memory.

    Checkpoints that differ in generator or query reasoner alone share it, so the documents of a retriever trained on a
    frozen compressor are compressed already.
    """
    manifest = manifest_of(model)
    if manifest is None:
        return model.fingerprint

    def parts() -> str:
        # Slow to import, and a model is loaded already.
        import torch  # noqa: PLC0415
        from safetensors.torch import load_file  # noqa: PLC0415

        from clara.model import checkpoint  # noqa: PLC0415
        from clara.model.backbone import ADAPTER  # noqa: PLC0415
        from clara.model.clara_model import find_checkpoint  # noqa: PLC0415

        folder = find_checkpoint(model.name)
        files = (folder / "adapters" / "compressor" / ADAPTER, folder / checkpoint.MEMORY)
        if manifest.official is not None or not all(path.is_file() for path in files):
            return model.fingerprint
        found = hashlib.sha256(f"{manifest.base_identity} {manifest.compression.model_dump_json()}".encode())
        for path in files:
            for name, value in sorted(load_file(path).items()):
                if not name.startswith("query_"):  # of the memory table: the questions' read-out
                    found.update(f"{path.name}/{name} {value.dtype} {tuple(value.shape)};".encode())
                    found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    return cache.opened("compressor", model.name, parts)


def rank_documents(query: QueryMemory, docs: Sequence[Sequence[Memory]]) -> Ranking:
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


def make_context(name: str, reader: _Weights, settings: SystemSettings, model: AnswerModel) -> ContextMaker:
    """The context of a name: ``none``, ``text``, ``memory``, ``llmlingua`` or ``llmlingua2``.

    Args:
        name: of the context.
        reader: which weights of the model under test read it.
        settings: of the run.
        model: makes the memories.

    Raises:
        ConfigError: the model does not serve the rate, or comes from no checkpoint.
        ClaraError: an extra, a folder or the hub is missing.
    """
    if name == "none":
        return _no_context(reader)
    if name == "text":
        return _text_context(settings.model, settings.cache, reader)
    if name == "memory":
        return _memory_context(model, rate_of(settings, model), settings.cache, reader)
    shorten, fingerprint = _llmlingua2(settings) if name == "llmlingua2" else _llmlingua(settings)
    manifest = manifest_of(settings.model)
    if manifest is None:
        raise ConfigError(f"{settings.model.name} comes from no checkpoint: the size of its memories is not known")
    # The budget of shortened text is what the memories of a window take at the run's rate.
    target = manifest.compression.memory_tokens(rate_of(settings, settings.model))
    return _shortened_context(shorten, fingerprint, target=target, model=settings.model, cache=settings.cache)


def _llmlingua(settings: SystemSettings) -> tuple[Shorten, str]:
    """LLMLingua on the run's own base weights."""
    name = base_identity(settings.model)
    made = settings.cache.opened(
        "llmlingua", name, lambda: perplexity_compressor(base_folder(settings), settings.device)
    )
    return made, name


def _llmlingua2(settings: SystemSettings) -> tuple[Shorten, str]:
    """LLMLingua-2's published encoder, from the hub or the option ``llmlingua2``."""
    folder = hub_folder(_LLMLINGUA2, settings.options.get("llmlingua2"), option="llmlingua2")

    def load() -> Shorten:
        from transformers import AutoTokenizer  # noqa: PLC0415 - slow

        tokenizer = AutoTokenizer.from_pretrained(base_folder(settings), local_files_only=True)
        return classifier_compressor(folder, TokenCounter(tokenizer), settings.device)

    return settings.cache.opened("llmlingua2", str(folder), load), weights_hash(folder)


def _no_context(reader: _Weights) -> ContextMaker:

    def make(queries: Sequence[Query], _: Sequence[Ranking]) -> list[Context | Failure]:
        return [Context(GenerationRequest(query.question, reader=reader), tokens=0) for query in queries]

    return ContextMaker("closed book" if reader == "base" else f"closed book, read by {reader}", make)


def _text_context(model: AnswerModel, cache: Cache, reader: _Weights) -> ContextMaker:
    """The documents' full text, titles before it; the model's tokenizer counts."""

    def context(query: Query, used: Ranking) -> Context:
        texts = tuple(passage_text(query.docs[index].title, query.docs[index].text) for index in used)
        request = GenerationRequest(query.question, texts=texts, reader=reader)
        return Context(request, tokens=_tokens_of(model, cache, texts))

    return ContextMaker("text" if reader == "base" else f"text, read by {reader}", _one_by_one(context))


def _memory_context(model: AnswerModel, rate: int, cache: Cache, reader: _Weights) -> ContextMaker:
    """The documents' memories, every window of each."""
    memories = DocumentMemories(model, rate, cache)

    def make(queries: Sequence[Query], used: Sequence[Ranking]) -> list[Context | Failure]:
        pairs = list(zip(queries, used, strict=True))
        docs = list(dict.fromkeys(query.docs[index] for query, order in pairs for index in order))
        made = dict(zip(docs, memories.of(docs), strict=True))

        def context(query: Query, order: Ranking) -> Context:
            windows = unwrap(made[query.docs[index]] for index in order)
            whole = tuple(memory for found in windows for memory in found)
            return Context(
                GenerationRequest(query.question, memories=whole, reader=reader),
                tokens=sum(len(memory.values) for memory in whole),
                source_tokens=sum(memory.token_count for memory in whole),
            )

        return each(pairs, lambda some: [context(*pair) for pair in some])

    facts = {"memory": model.fingerprint, "rate": rate}
    return ContextMaker(digest(facts if reader == "generator" else {**facts, "reader": reader}), make)


def _shortened_context(
    shorten: Shorten, fingerprint: str, *, target: int, model: AnswerModel, cache: Cache
) -> ContextMaker:
    """Documents shortened as text to the tokens that their memories would take, each window by itself.

    Args:
        shorten: a text to about so many tokens of the generator (``lingua``).
        fingerprint: of its weights.
        target: tokens that a window is shortened to.
        model: cuts documents into windows, and counts.
        cache: holds shortened windows: they are made before the question comes.
    """
    mark = digest({"compressor": fingerprint, "target": target})

    def context(query: Query, used: Ranking) -> Context:
        windows = [text for found in unwrap(_windows(model, cache, [query.docs[i] for i in used])) for text in found]
        made = cache.derived(f"shortened {mark}", windows, lambda some: [shorten(text, target) for text in some])
        texts = unwrap(made)
        return Context(
            # A text of which nothing was kept leaves no empty line in the prompt.
            GenerationRequest(query.question, texts=tuple(text for text in texts if text), reader="base"),
            tokens=_tokens_of(model, cache, texts),
            source_tokens=_tokens_of(model, cache, windows),
        )

    return ContextMaker(mark, _one_by_one(context))


def _one_by_one(
    context: Callable[[Query, Ranking], Context],
) -> Callable[[Sequence[Query], Sequence[Ranking]], list[Context | Failure]]:
    def make(queries: Sequence[Query], used: Sequence[Ranking]) -> list[Context | Failure]:
        pairs = list(zip(queries, used, strict=True))
        return each(pairs, lambda some: [context(*pair) for pair in some])

    return make


def _tokens_of(model: AnswerModel, cache: Cache, texts: Sequence[str]) -> int:
    """Tokens of texts together, each text counted once a run."""
    maker = f"tokens {base_identity(model)}"
    return sum(unwrap(cache.derived(maker, texts, lambda some: [len(model.token_spans(text)) for text in some])))
