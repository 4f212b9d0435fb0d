"""Joins ingest, model and index: add, remove, search, ask.

Files are taken in by ``indexing``; formats, tensors and tables are their rooms'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Generator as Pieces
from contextlib import closing
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from clara.answering import (
    NOT_FOUND,
    AnswerKeywords,
    AnswerOptions,
    Reading,
    cite,
    cut_mark,
    find_quote,
    generate,
    passages_to_find,
    plan_readings,
    reranked,
)
from clara.errors import InputError, NothingFoundError, StoreError
from clara.index import LanceStore, StoreModel
from clara.model import ClaraModel
from clara.records import (
    Answer,
    Generation,
    Hit,
    Passage,
    Quote,
    SearchMode,
    Seconds,
    TokenCounts,
)

# What takes files in, and what answers through a server, is imported by the calls that do: asking is to start fast.
if TYPE_CHECKING:
    from clara.indexing import AddProgress, AddReport, Engine, Shard
    from clara.ingest import ReadLimits
    from clara.llm.client import LLM, Reply
    from clara.llm_answering import LLMReading

_DEFAULT_OPTIONS = AnswerOptions()
_LLM_PASSAGES = 5  # to find for a language model, where the user does not say


class Clara:
    """A store of compressed passages with the model that made them.

    Args:
        store: the store.
        model: the model that made them; it searches, and answers.
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
        if rate is None:
            rate = _served(model, _stored_rate(Path(path)))
        wanted = filled_by(model, rate)
        store = LanceStore.create(Path(path), wanted, codec=codec) if create else LanceStore.open(Path(path), wanted)
        return cls(store, model)

    @classmethod
    def of(cls, store: LanceStore, model: ClaraModel) -> Clara:
        """A store that is open already, with the model that filled it.

        Raises:
            StoreModelError: another model filled it.
        """
        store.check_model(filled_by(model, _served(model, store.model.rate)))
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
        engine: Engine | None = None,
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
            shard: take the files of this part alone; ``clara.index.merge`` joins the stores of all parts.
            engine: what reads and compresses, such as ``ray_engine.RayEngine``; this process when None.
            progress: told after each file and each commit.

        Raises:
            InputError: a path is empty or does not exist.
            StoreError: the store cannot be written.
        """
        from clara.indexing import Indexer, checked_paths  # noqa: PLC0415
        from clara.ingest import DEFAULT_LIMITS, DEFAULT_MAX_BYTES  # noqa: PLC0415

        try:
            return Indexer(self.store, self.model).add(
                checked_paths(paths),
                prune=prune,
                max_bytes=DEFAULT_MAX_BYTES if max_bytes is None else max_bytes,
                limits=limits or DEFAULT_LIMITS,
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
        """The text of a document as it was indexed: what offsets of passages, citations and quotes count in.

        Args:
            document: its uri, as citations give it.

        Raises:
            InputError: it is not in the store.
        """
        if document not in self.store.documents():
            raise InputError(f"there is no document {document} in the store; `clara info --documents` lists them")
        # Each character is in exactly one passage.
        return "".join(each.passage.text for each in self.store.texts(document))

    def search(
        self, question: str, k: int = 5, *, mode: SearchMode = "hybrid", latent_weight: float | None = None
    ) -> list[Hit]:
        """The ``k`` best passages for a question.

        Args:
            question: in words.
            k: at least 1; more than there are gives all.
            mode: ``latent`` by similarity of memories, ``text`` by BM25, ``hybrid`` by both.
            latent_weight: see ``AnswerOptions``.

        Raises:
            InputError: the question is empty, ``k`` is below 1, or there is no such mode.
            StoreError: the store is empty.
        """
        options = AnswerOptions(k=k, mode=mode, latent_weight=latent_weight)
        return self._search(question, k, options.mode, options.latent_weight).hits

    def ask(
        self,
        question: str,
        k: int | None = None,
        *,
        options: AnswerOptions = _DEFAULT_OPTIONS,
        **changes: Unpack[AnswerKeywords],
    ) -> Answer:
        """Answer a question from the best passages.

        Args:
            question: in words.
            k: passages to find; None for what measured best.
            options: how.
            changes: fields of ``options`` by name: mode, context, wording, max_new_tokens, always_answer,
                latent_weight, within, rerank.

        Raises:
            InputError: the question is empty, no passage was found, or an option cannot be.
            StoreError: the store is empty.
            LLMError: the model behind a server cannot be asked.
        """
        chosen = options.changed(k, **changes)
        if self.llm is not None:
            return _answered_by(self.llm, question, chosen, self._found(question, chosen))
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
            from clara.llm_answering import LLMReading  # noqa: PLC0415

            found = self._found(question, chosen)
            return LLMAnswerStream(LLMReading(question, tuple(found.hits), chosen), self.llm, found)
        return self._streamed(question, chosen)

    def _streamed(self, question: str, options: AnswerOptions) -> AnswerStream:
        started = time.perf_counter()
        found = self._found(question, options)
        readings = plan_readings(self.model, question, found.hits, options)
        return AnswerStream(self.model, readings, options, found, started)

    def _found(self, question: str, options: AnswerOptions) -> _Found:
        """What an answer is to be read from."""
        if options.context == "none":
            return _Found([], 0.0, 0.0)
        k = passages_to_find(self.model, options) if self.llm is None else options.k or _LLM_PASSAGES
        depth = options.rerank
        if depth is None:
            depth = 0 if self.llm is not None else self.model.reading.rerank
        found = self._search(question, max(k, depth), options.mode, options.latent_weight, options.within)
        if depth:
            started = time.perf_counter()
            hits = reranked(self.model, question, found.hits, depth)[:k]
            found = _Found(hits, found.query, found.search + time.perf_counter() - started)
        if not found.hits and self.llm is None:
            place = f" in {options.within}" if options.within is not None else ""
            raise NothingFoundError(
                f"no passage was found{place} by {options.mode} search; ask in other words, or use --mode hybrid"
            )
        return found

    def _search(
        self, question: str, k: int, mode: SearchMode, latent_weight: float | None = None, within: str | None = None
    ) -> _Found:
        if not isinstance(question, str):
            raise InputError(f"a question is a text, got {question!r}")
        if not question.strip():
            raise InputError("the question is empty")
        passages = self.store.count()
        if passages == 0:
            raise StoreError("the store is empty; add documents first: clara index PATH --store STORE")
        k = min(k, passages)
        started = time.perf_counter()
        inside = None if within is None else self._documents_of(within)
        if mode == "text":
            hits = self.store.search_text(question, k, within=inside)
            return _Found(hits, 0.0, time.perf_counter() - started)
        query = self.model.encode_queries([question], rate=self.rate)[0]
        encoded = time.perf_counter()
        if mode == "latent":
            hits = self.store.search_latent(query, k, within=inside)
        else:
            weight = self.model.latent_weight if latent_weight is None else latent_weight
            hits = self.store.search_hybrid(query, question, k, latent_weight=weight, within=inside)
        return _Found(hits, encoded - started, time.perf_counter() - encoded)

    def _documents_of(self, manual: str) -> set[str]:
        from clara.manuals import belongs_to  # noqa: PLC0415

        return {uri for uri in self.store.documents() if belongs_to(uri, manual)}


def _answered_by(llm: LLM, question: str, options: AnswerOptions, found: _Found) -> Answer:
    """The answer of a language model behind a server; without a passage, the phrase that says so."""
    from clara.llm_answering import LLMReading, without_thoughts  # noqa: PLC0415

    reading = LLMReading(question, tuple(found.hits), options)
    started = time.perf_counter()
    reply = reading.ask(llm) if reading.hits else None
    text = "".join(without_thoughts([reply.text])) if reply is not None else NOT_FOUND
    return _answer_of(reading, text, reply, found, time.perf_counter() - started)


def _answer_of(reading: LLMReading, text: str, reply: Reply | None, found: _Found, generate: float) -> Answer:
    """A language model's words as an answer; ``generate`` are the seconds that they took."""
    from clara.llm_answering import is_not_found, reply_tokens  # noqa: PLC0415

    answered = not is_not_found(text)
    return Answer(
        text=text.strip() if answered else NOT_FOUND,
        citations=reading.citations(),
        tokens=reply_tokens(reply),
        seconds=Seconds(found.search, found.query, generate, found.search + found.query + generate),
        context="text",
        finish_reason="length" if reply is not None and reply.finish_reason == "length" else "stop",
        quote=reading.quote(text.strip()),
        answered=answered,
    )


def _stored_rate(path: Path) -> int | None:
    """The rate of the store at ``path``, if there is one."""
    if not (path / "store.json").exists():
        return None
    with LanceStore.open(path, None) as store:
        return store.model.rate


def _served(model: ClaraModel, rate: int | None) -> int:
    """The rate, or the model's default: a store of a rate that it does not serve is another's, and refused as such."""
    return rate if rate is not None and rate in model.rates else model.default_rate


def filled_by(model: ClaraModel, rate: int) -> StoreModel:
    """What a store says of a model that fills it at a rate."""
    return StoreModel(
        fingerprint=model.fingerprint,
        name=model.name,
        rate=rate,
        memory_tokens=model.memory_tokens(rate),
        width=model.width,
        query_space=model.query_space,
    )


class AnswerStream:
    """A streamed answer: its citations at once, its text in pieces; close them to leave the rest.

    Attributes:
        citations: the passages found.
        pieces: of the text, one a token; an empty one where nothing can be shown yet.
        answer: the whole answer, once all pieces have been read.
    """

    def __init__(
        self, model: ClaraModel, readings: Iterator[Reading], options: AnswerOptions, found: _Found, started: float
    ) -> None:
        """Begin to answer.

        Args:
            model: what reads.
            readings: what it reads, one after another until an answer is not withheld.
            options: how.
            found: the passages, with the seconds that finding them took.
            started: when the question was asked, by ``time.perf_counter``.

        Raises:
            InputError: it cannot be read.
        """
        first = next(readings)
        self.citations = cite([first], model)
        self.answer: Answer | None = None
        self._model, self._options, self._found, self._started = model, options, found, started
        judged = first.request.refusing and first.judged(model)
        self._held_back = bool(first.request.quote_from) or judged
        self.pieces = self._shown(chain([first], readings))

    def quote(self, _text: str | None = None) -> Quote | None:
        """Where the answer stands word for word, once all pieces have been read; its text need not be given."""
        return None if self.answer is None else self.answer.quote

    def whole(self) -> Answer:
        """The answer, when it is finished."""
        for _ in self.pieces:
            pass
        assert self.answer is not None  # noqa: S101 - its pieces have been read
        return self.answer

    def _shown(self, readings: Iterable[Reading]) -> Pieces[str, None, None]:
        """The pieces of an answer with the mark of one that breaks off; all at once where it is judged whole.

        Closed with their reader.
        """
        before, read, counts = time.perf_counter(), list[Reading](), list[TokenCounts]()
        for reading in readings:
            made = generate(self._model, reading, self._options)
            generation = yield from _hidden(made) if self._held_back else made
            read.append(reading)
            counts.append(generation.tokens)
            answered = not (reading.request.refusing and reading.withheld(self._model, generation))
            if answered or reading.lacks_name:
                break
        self.citations = cite(read, self._model)
        now = time.perf_counter()
        quote = find_quote(generation.text, reading.request.question, reading.read()) if answered else None
        mark = cut_mark(quote, reading.request)
        text = generation.text + mark if answered else NOT_FOUND
        self.answer = Answer(
            text=text,
            citations=self.citations,
            tokens=_sum(counts),
            seconds=Seconds(
                search=self._found.search,
                query=self._found.query,
                generate=now - before,
                total=now - self._started,
            ),
            context=self._options.context,
            finish_reason=generation.finish_reason,
            quote=quote,
            answered=answered,
        )
        yield text if self._held_back else mark


def _sum(counts: Sequence[TokenCounts]) -> TokenCounts:
    """What several readings took together."""
    return TokenCounts(*(sum(each) for each in zip(*map(astuple, counts), strict=True)))


def _hidden(made: Pieces[str, None, Generation]) -> Pieces[str, None, Generation]:
    """An answer without its text: an empty piece a token."""
    with closing(made):
        while True:
            try:
                next(made)
            except StopIteration as end:
                generation: Generation = end.value
                return generation
            yield ""


class LLMAnswerStream:
    """``AnswerStream`` of a language model behind a server.

    Attributes:
        citations: the passages found.
        pieces: of the text.
    """

    def __init__(self, reading: LLMReading, llm: LLM, found: _Found) -> None:
        self.citations = reading.citations()
        self.pieces = self._said(reading.stream(llm, self._end))
        self._reading, self._found, self._text = reading, found, ""
        self._reply: Reply | None = None
        self._started = time.perf_counter()

    def whole(self) -> Answer:
        """The answer, when it is finished; tokens are the server's count where it counts a stream, else an estimate."""
        for _ in self.pieces:
            pass
        return _answer_of(self._reading, self._text, self._reply, self._found, time.perf_counter() - self._started)

    def _end(self, reply: Reply) -> None:
        self._reply = reply

    def quote(self, _text: str | None = None) -> Quote | None:
        """Where the answer stands, once all pieces have been read; its text need not be given."""
        return self._reading.quote(self._text.strip())

    def _said(self, pieces: Pieces[str, None, None]) -> Pieces[str, None, None]:
        with closing(pieces):
            for piece in pieces:
                self._text += piece
                yield piece


@dataclass(frozen=True, slots=True)
class _Found:
    """Hits, and the seconds that the query and the search took."""

    hits: list[Hit]
    query: float
    search: float


def split_text(text: str, model: ClaraModel, *, title: str = "") -> list[Passage]:
    """Cut a text of any length into passages that ``model.compress`` takes (as ``prompts.passage_text``)."""
    from clara.ingest import iter_passages, make_document  # noqa: PLC0415

    document = make_document("text", title, text)
    return list(iter_passages(document, model.token_spans, max_tokens=model.window_tokens))
