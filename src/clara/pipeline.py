"""Joins ingest, model and index: add, remove, search, ask.

Files are taken in by ``indexing``, answers are read by ``answering``; formats, tensors and tables are their rooms'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from clara.answering import (
    AnswerKeywords,
    AnswerOptions,
    AnswerStream,
    Found,
    PassageFilter,
    passages_to_find,
    reranked,
)
from clara.errors import InputError, NothingFoundError, StoreEmptyError
from clara.index import LanceStore, StoreModel
from clara.model import ClaraModel
from clara.records import Answer, Hit, Passage, SearchMode

# What takes files in, and what answers through a server, is imported by the calls that do: asking is to start fast.
if TYPE_CHECKING:
    from clara.indexing import AddProgress, AddReport, Shard
    from clara.ingest import ReadLimits
    from clara.llm import LLM
    from clara.llm_answering import LLMAnswerStream
    from clara.ray_engine import RayEngine

_DEFAULT_OPTIONS = AnswerOptions()
# Passages that are looked at for those that a filter passes: each brings its memory, up to 1 MB.
_MOST_LOOKED_AT = 1000
_LLM_PASSAGES = 5  # to find for a language model, where the user does not say


class Clara:
    """A store of compressed passages with the model that made them.

    Args:
        store: the passages.
        model: what made their memories; it searches, and answers.
        llm: a language model behind a server that answers in its place, from the passages' text; text search then
            needs no ``model``.
    """

    def __init__(self, store: LanceStore, model: ClaraModel, *, llm: LLM | None = None) -> None:
        self.store = store
        self.model = model
        self.llm = llm

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
        path = Path(path)
        if rate is None and (path / "store.json").exists():
            opened = cls.of(LanceStore.open(path, None), model)
            if codec is None:
                return opened
            opened.close()
            rate = opened.rate
        wanted = filled_by(model, model.default_rate if rate is None else rate)
        return cls(LanceStore.create(path, wanted, codec=codec) if create else LanceStore.open(path, wanted), model)

    @classmethod
    def of(cls, store: LanceStore, model: ClaraModel) -> Clara:
        """A store that is open already, with the model that filled it (StoreModelError: another model filled it)."""
        rate = store.model.rate
        # A store of a rate that the model does not serve is another's, and refused as such.
        store.check_model(filled_by(model, rate if rate in model.rates else model.default_rate))
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
        max_bytes: int | None = None,
        limits: ReadLimits | None = None,
        shard: Shard | None = None,
        engine: RayEngine | None = None,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> AddReport:
        """Index files and folders; what is in the store unchanged is not touched.

        A call that was killed is finished by the same call: the store ends as if nothing had happened.

        Args:
            paths: files and folders, read recursively; or one of them.
            prune: remove documents that came from these paths and are there no more, or hold no text any more.
            max_bytes: larger files are skipped and reported; ``ingest.DEFAULT_MAX_BYTES`` when None.
            limits: what reading one file may take; files that need more are skipped and reported.
                ``ingest.DEFAULT_LIMITS`` when None.
            shard: take the files of this part alone; ``clara.index.rewrite`` joins the stores of all parts.
            engine: a cluster that reads and compresses; this process when None.
            progress: told after each file and each commit.

        Raises:
            InputError: a path is empty or does not exist.
            StoreError: the store cannot be written.
        """
        from clara.indexing import Indexer  # noqa: PLC0415

        try:
            return Indexer(self.store, self.model).add(
                paths,
                prune=prune,
                max_bytes=max_bytes,
                limits=limits,
                shard=shard,
                engine=engine,
                progress=progress,
            )
        except BaseException:
            # Whoever comes next may write: what is stored so far is whole documents, and marked where not.
            self.store.release()
            raise

    def remove(self, sources: str | Path | Iterable[str | Path]) -> int:
        """Remove documents, see ``indexing.remove``."""
        from clara import indexing  # noqa: PLC0415

        return indexing.remove(self.store, sources)

    def document_text(self, document: str) -> str:
        """The text of a document, by its uri, as it was indexed: what offsets of passages and quotes count in.

        Raises:
            InputError: it is not in the store.
        """
        if document not in self.store.documents():
            raise InputError(f"there is no document {document} in the store; take a name from its list of documents")
        # Each character is in exactly one passage.
        return "".join(each.passage.text for each in self.store.texts(document))

    def search(
        self,
        question: str,
        k: int = 5,
        *,
        mode: SearchMode = "hybrid",
        latent_weight: float | None = None,
        only: PassageFilter | None = None,
    ) -> list[Hit]:
        """The ``k`` best passages for a question; options as those of ``AnswerOptions``.

        Raises:
            InputError: the question is empty, ``k`` is below 1, there is no such mode, or ``only`` fits so few
                passages that they would have to be looked for among too many.
            StoreEmptyError: the store holds no documents.
        """
        options = AnswerOptions(k=k, mode=mode, latent_weight=latent_weight, only=only)
        return self._search(question, k, options).hits

    def ask(
        self,
        question: str,
        k: int | None = None,
        *,
        options: AnswerOptions = _DEFAULT_OPTIONS,
        **changes: Unpack[AnswerKeywords],
    ) -> Answer:
        """Answer a question from the best ``k`` passages; None for what measured best for the model.

        ``changes`` are fields of ``options`` by name.

        Raises:
            InputError: the question is empty, no passage was found, or an option cannot be.
            StoreEmptyError: the store holds no documents.
            LLMError: the model behind a server cannot be asked.
        """
        chosen = options.changed(k, **changes)
        if self.llm is not None:
            from clara.llm_answering import LLMReading  # noqa: PLC0415

            return LLMReading(question, chosen, self._found(question, chosen)).ask(self.llm)
        return self._streamed(question, chosen).whole()

    def stream(
        self,
        question: str,
        k: int | None = None,
        *,
        options: AnswerOptions = _DEFAULT_OPTIONS,
        **changes: Unpack[AnswerKeywords],
    ) -> AnswerStream | LLMAnswerStream:
        """As ``ask``, with the text in pieces as it is generated.

        A quoted answer, and one that may be withheld, comes in one piece: it is judged whole.
        """
        chosen = options.changed(k, **changes)
        if self.llm is not None:
            from clara.llm_answering import LLMAnswerStream, LLMReading  # noqa: PLC0415

            return LLMAnswerStream(LLMReading(question, chosen, self._found(question, chosen)), self.llm)
        return self._streamed(question, chosen)

    def _streamed(self, question: str, options: AnswerOptions) -> AnswerStream:
        started = time.perf_counter()
        return AnswerStream(self.model, question, options, self._found(question, options), started)

    def _found(self, question: str, options: AnswerOptions) -> Found:
        """Passages for an answer."""
        if options.context == "none":
            return Found([], 0.0, 0.0)
        k = passages_to_find(self.model, options) if self.llm is None else options.k or _LLM_PASSAGES
        depth = options.rerank
        if depth is None:
            depth = 0 if self.llm is not None else self.model.reading.rerank
        found = self._search(question, max(k, depth), options)
        if depth:
            started = time.perf_counter()
            hits = reranked(self.model, question, found.hits, depth)[:k]
            found = Found(hits, found.query, found.search + time.perf_counter() - started)
        if not found.hits and self.llm is None:
            place = f" in {options.within}" if options.within is not None else ""
            raise NothingFoundError(
                f"no passage was found{place} by {options.mode} search; ask in other words, or use mode hybrid"
            )
        return found

    def _search(self, question: str, k: int, options: AnswerOptions) -> Found:
        if not isinstance(question, str):
            raise InputError(f"a question is a text, got {question!r}")
        if not question.strip():
            raise InputError("the question is empty")
        passages = self.store.count()
        if passages == 0:
            raise StoreEmptyError("the store is empty; add documents first")
        inside = self._inside(options)
        if inside is not None and not inside:
            return Found([], 0.0, 0.0)
        started = time.perf_counter()
        query = self.model.encode_queries([question], rate=self.rate)[0] if options.mode != "text" else None
        encoded = time.perf_counter()

        def best(depth: int) -> list[Hit]:
            depth = min(depth, passages)
            if query is None:
                return self.store.search_text(question, depth, within=inside)
            if options.mode == "latent":
                return self.store.search_latent(query, depth, within=inside)
            weight = self.model.latent_weight if options.latent_weight is None else options.latent_weight
            return self.store.search_hybrid(query, question, depth, latent_weight=weight, within=inside)

        hits = best(k) if options.only is None else self._passing(options.only, k, best)
        return Found(hits, encoded - started, time.perf_counter() - encoded)

    def _inside(self, options: AnswerOptions) -> set[str] | None:
        """The documents whose passages alone may be found; None for all."""
        if options.within is None and options.only is None:
            return None
        from clara.messages import belongs_to  # noqa: PLC0415

        within, only, documents = options.within, options.only, self.store.documents()
        inside = {
            uri
            for uri in documents
            if (within is None or belongs_to(uri, within)) and (only is None or only.document(uri))
        }
        return inside if len(inside) < len(documents) else None  # to search all is faster than to search each

    def _passing(self, only: PassageFilter, k: int, best: Callable[[int], list[Hit]]) -> list[Hit]:
        """The ``k`` best that pass; looks at more and more until there are so many."""
        depth = k
        while True:
            found = best(depth)
            kept = [hit for hit in found if only.passes(hit)]
            if len(kept) >= k or len(found) < depth or found[-1].score < only.least_score:
                return kept[:k]
            if depth >= _MOST_LOOKED_AT:
                raise InputError(
                    f"the filter passes {len(kept)} of the {depth:,} best passages, {k} were wanted; ask for fewer, or "
                    "name files in it"
                )
            depth = min(4 * depth, _MOST_LOOKED_AT)


def filled_by(model: ClaraModel, rate: int) -> StoreModel:
    """A store's record of the model that fills it at a rate."""
    return StoreModel(
        fingerprint=model.fingerprint,
        name=model.name,
        rate=rate,
        memory_tokens=model.memory_tokens(rate),
        width=model.width,
        query_space=model.query_space,
    )


def split_text(text: str, model: ClaraModel, *, title: str = "") -> list[Passage]:
    """Cut a text of any length into passages that ``model.compress`` takes (as ``prompts.passage_text``)."""
    from clara.ingest import iter_passages, make_document  # noqa: PLC0415

    document = make_document("text", title, text)
    return list(iter_passages(document, model.token_spans, max_tokens=model.window_tokens))
