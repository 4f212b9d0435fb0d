"""The records that pass between rooms: plain, frozen, checked when made.

Arrays here are numpy; tensors stay inside ``model`` and ``train``. Nothing here reads a file or knows a model.
Shape letters: N memory tokens, H hidden size of the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from clara.errors import MemoryMismatchError, RecordError

FloatArray = npt.NDArray[np.float32]
ContextKind = Literal["memory", "text", "none"]
ContextChoice = Literal["auto", "memory", "text", "none"]
SearchMode = Literal["latent", "text", "hybrid"]
Wording = Literal["free", "quoted"]
QuerySpace = Literal["flat", "mean"]


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading, without the marks of its format, and the first character of its line in the document's text."""

    start: int
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A source document as plain text.

    Attributes:
        uri: where it came from: a path relative to nothing but the current machine, or ``file.jsonl#3`` for record 3.
        title: a title the source itself states, or the empty string.
        text: the plain text; all offsets count its characters (Unicode code points).
        content_hash: SHA-256 (hex) of title and text.
        metadata: small facts of the source (media type, page count, …).
        pages: first character of each page, ascending; empty for a format without pages. A page without text begins
            where the next one does.
    """

    uri: str
    title: str
    text: str
    content_hash: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    pages: tuple[int, ...] = ()
    headings: tuple[Heading, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A window of a document that becomes one memory.

    Attributes:
        id: stable identifier: first 16 hex digits of SHA-256 over uri, content hash and offsets.
        document: its document's ``uri``.
        title: the document's title and the heading that the passage stands under; the model reads it before the text.
        text: ``document.text[start:end]``, unchanged.
    """

    id: str
    document: str
    title: str
    text: str
    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end or self.end - self.start != len(self.text):
            raise RecordError(
                f"passage {self.id} of {self.document}: offsets {self.start}..{self.end} do not fit "
                f"a text of {len(self.text)} characters"
            )


@dataclass(frozen=True, slots=True)
class StoredText:
    """A stored passage without its memory; how many tokens its text has, and ``metadata`` as a ``Hit`` has it."""

    passage: Passage
    tokens: int
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DocumentSize:
    """Characters of a document's text, and tokens of its passages."""

    characters: int
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """A compressed text: N memory vectors, and which model made them.

    Attributes:
        values: float32 [N, H], finite, read-only.
        fingerprint: fingerprint of the model that made it; memories of two models cannot be mixed.
        rate: compression rate, window tokens / N.
        token_count: tokens of the text that was compressed.
    """

    values: FloatArray
    fingerprint: str
    rate: int
    token_count: int

    def __post_init__(self) -> None:
        _check_values(self.values)

    def search_vector(self) -> FloatArray:
        """The flattened memory at unit length: float32 [N * H] (clara.md section 5, ``vec``)."""
        return _unit(self.values.reshape(-1))


@dataclass(frozen=True, slots=True, eq=False)
class QueryMemory:
    """A question in the space of memories. Passages are compared with it; nothing is answered from it.

    Attributes:
        values, fingerprint, token_count: as of a ``Memory``.
        rate: of the memories that it is compared with.
        centre: float32 [H], what memory tokens of passages have in common, where passages are compared by late
            interaction; None where the question is compared as one vector.
    """

    values: FloatArray
    fingerprint: str
    rate: int
    token_count: int
    centre: FloatArray | None = None

    def __post_init__(self) -> None:
        _check_values(self.values)
        if self.centre is not None and (
            self.centre.shape != self.values.shape[1:] or not np.isfinite(self.centre).all()
        ):
            raise MemoryMismatchError(
                f"the centre of a question must be finite, [{self.values.shape[1]}], got {self.centre.shape}"
            )

    def search_vector(self) -> FloatArray:
        """Query vector for the cosine with flattened memories: float32 [N * H], of unit length.

        With late interaction each memory token is their mean: what finds the passages that late interaction then puts
        in order. Which token stands where says nothing about a passage.
        """
        if self.centre is None:
            return _unit(self.values.reshape(-1))
        return _unit(np.broadcast_to(self.values.mean(axis=0), self.values.shape).reshape(-1))


def _check_values(values: FloatArray) -> None:
    """Refuse what is no memory, and make the rest read-only."""
    if values.ndim != 2 or values.dtype != np.float32:
        raise MemoryMismatchError(f"memory values must be float32 [N, H], got {values.dtype} {values.shape}")
    if not np.isfinite(values).all():
        raise MemoryMismatchError("memory values must be finite; the model that made them is broken")
    values.flags.writeable = False


def _unit(flat: FloatArray) -> FloatArray:
    """A vector at unit length; one of zeros stays."""
    norm = float(np.linalg.norm(flat))
    return flat / norm if norm > 0 else flat.copy()


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """A search result.

    Attributes:
        score: cosine for ``latent``, or late interaction (half of it only what the hits above lack); BM25 for
            ``text``, reciprocal rank fusion for ``hybrid``; higher is better.
        metadata: small facts of its document, and where it stands in it (``ingest.location_of``).
    """

    passage: Passage
    score: float
    memory: Memory
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage found for an answer.

    Attributes:
        start, end: where it stands in the document's text, the end not included.
        score: see ``Hit``; only scores of one search and one mode can be compared.
        read_as: how the answer's model read it; None if it did not.
        tokens: positions of the prompt that it took; 0 where a server read it, which counts whole prompts alone.
        page: the page on which it begins, from 1; None for a format without pages.
        heading: the nearest heading above, or the empty string.
    """

    passage_id: str
    document: str
    start: int
    end: int
    score: float
    text: str
    read_as: ContextKind | None = None
    tokens: int = 0
    page: int | None = None
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Quote:
    """Place of an answer: its words, or the sentence that an answer in other words cites.

    Attributes:
        start, end: the answer, or that sentence, in the document's text, the end not included.
        sentence: the sentence that holds it.
        sentence_start: its first character in the document's text.
        page: the page, from 1; None for a format without pages.
        heading: the nearest heading above, or the empty string.
    """

    passage_id: str
    document: str
    start: int
    end: int
    sentence: str
    sentence_start: int
    page: int | None = None
    heading: str = ""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of one answer.

    Attributes:
        prompt: all positions the generator read, memory vectors included.
        memory: memory vectors among them.
        text_equivalent: positions the same prompt takes with the passages as text.
        generated: tokens generated, the end token not counted.
    """

    prompt: int
    memory: int
    text_equivalent: int
    generated: int


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall-clock seconds of the parts of one answer."""

    search: float
    query: float
    generate: float
    total: float


@dataclass(frozen=True, slots=True)
class Generation:
    """Output of the generator.

    Attributes:
        text: the answer, special tokens removed, stripped.
        token_ids: generated ids, without the end token.
        finish_reason: ``stop`` at an end token, ``length`` at ``max_new_tokens``.
        evidence: of a quoted answer. Of a model that learnt to say that there is no answer, the log-odds (nats) of
            the answer against beginning to say so; a reader that learnt to judge its answers adds a share of them to
            the log-odds that it is right. Of others, the mean natural logarithm, a token, of the share of
            probability that went to quotations before anything held it to them: near 0 where the model found its answer
            in the passages, far below where it would have said something else. None where it was not asked for; 0 for a
            free answer.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: TokenCounts
    finish_reason: Literal["stop", "length"]
    evidence: float | None = None


@dataclass(frozen=True, slots=True)
class AnswerSource:
    """Source of an answer: a passage, or the sentence that is quoted; ``document`` is a uri."""

    document: str
    start: int
    end: int
    text: str
    score: float
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with the passages found for it, best first.

    Attributes:
        context: what of the passages was to be read.
        finish_reason: ``stop`` for a whole answer, ``length`` for one that was cut off at ``max_new_tokens``.
        quote: where the answer stands; None where it stands nowhere.
        answered: false where the evidence says that the documents hold no answer; ``text`` says so then.
    """

    text: str
    citations: tuple[Citation, ...]
    tokens: TokenCounts
    seconds: Seconds
    context: ContextChoice
    finish_reason: Literal["stop", "length"] = "stop"
    quote: Quote | None = None
    answered: bool = True

    def sources(self) -> tuple[AnswerSource, ...]:
        """What the answer was taken from: where it is quoted from alone, else the passages that were read, in order.

        A language model numbers them so; what its answer cites stands in the place of that passage. None of an answer
        that was withheld.
        """
        quote, cited, sources = self.quote, self.citations if self.answered else (), []
        for each in cited:
            if quote is not None and each.passage_id == quote.passage_id:
                source = AnswerSource(quote.document, quote.start, quote.end, quote.sentence, each.score, quote.page)
                words = quote.sentence[quote.start - quote.sentence_start :][: quote.end - quote.start]
                if self.text.rstrip(" .…") == words.rstrip(" .…"):
                    return (source,)
                sources.append(source)
            elif each.read_as is not None:
                sources.append(AnswerSource(each.document, each.start, each.end, each.text, each.score, each.page))
        return tuple(sources)


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """A question for the generator.

    Attributes:
        memories: passages as memories, best first.
        texts: passages as text, best first; they stand before the memories.
        reader: which weights read the prompt: ``generator`` those trained on memories, ``text_reader`` those trained
            on text, ``base`` the backbone alone.
        quote_from: texts that the answer must be a stretch of, word for word, or "yes" or "no"; empty leaves it free.
            The model does not read them.
    """

    question: str
    memories: tuple[Memory, ...] = ()
    texts: tuple[str, ...] = ()
    reader: Literal["generator", "text_reader", "base"] = "generator"
    quote_from: tuple[str, ...] = ()
