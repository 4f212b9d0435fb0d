"""From passages found to an answer: what is read as text and what as memory, and where the quotation stands.

Knows hits and requests; finding is ``pipeline``'s and ``index``'s work, generating ``model``'s.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Generator as Pieces
from contextlib import closing
from dataclasses import astuple, dataclass, field, replace
from itertools import chain
from numbers import Integral
from typing import TypedDict, Unpack, get_args

from clara import prompts
from clara.errors import InputError
from clara.index import STOP_WORDS
from clara.ingest import location_of, sentence_around
from clara.model import ClaraModel
from clara.model.generator import sampling
from clara.model.prompting import BESIDE
from clara.records import (
    Answer,
    Citation,
    ContextChoice,
    ContextKind,
    Generation,
    GenerationRequest,
    Hit,
    Quote,
    SearchMode,
    Seconds,
    TokenCounts,
    Wording,
)

NOT_FOUND = "Not found in your documents."
"""The text of an answer that was withheld for want of evidence."""

_CUT = " …"  # stands behind a quotation that breaks off in mid-sentence
_WORDS = re.compile(r"[^\W_]+")
_ASKED = re.compile(
    r"\W*(?:(?:about|at|by|for|from|in|into|of|on|since|through|to|under|until|with)\s+)?"
    r"(?:how|what|when|where|which(?!\s+of\b)|who|whom|whose)\b",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"\b(?:among|between|either|or|out of|whether)\b", re.IGNORECASE)
_SENTENCE_WORDS = 6
_ENOUGH = 5  # passages, to say that what is in none of them is not in the documents
_NEAR = 150  # characters, about two lines: what an answer is about stands there
_STEM = 5  # characters: "installed" is "installation", and "pumps" is "pump"


def _check_choice(name: str, value: str, kind: object) -> None:
    """Refuse a value that a ``Literal`` does not have; a misspelt one must not pass for the default."""
    if value not in get_args(kind):
        raise InputError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")


@dataclass(frozen=True, slots=True)
class PassageFilter:
    """Passages that alone are found.

    Attributes:
        document: whether passages of a document, by its uri, may be among them.
        passage: whether one that was found is.
        least_score: those of a lower score are not.
    """

    document: Callable[[str], bool] = lambda _: True
    passage: Callable[[Hit], bool] = lambda _: True
    least_score: float = -math.inf

    def passes(self, hit: Hit) -> bool:
        """Whether a passage that was found is among them."""
        return hit.score >= self.least_score and self.passage(hit)


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Options of an answer.

    Attributes:
        k: passages to find; None for what measured best for the model and the context.
        mode: how they are found: ``latent`` by similarity of memories, ``text`` by BM25, ``hybrid`` by both.
        context: what is read of them: ``auto`` the best as text (where the model has a text reader, else memories),
            and the others as memories where its generator was trained to read both in one prompt;
            ``memory`` all as memories, ``text`` all as text, ``none`` nothing (no search then).
        wording: ``quoted``: the answer is a stretch of a passage, word for word, or yes or no; ``free``: any. None:
            as the checkpoint says where it reads with trained weights, else free.
        max_new_tokens: longest answer.
        always_answer: answer even where the evidence says that the documents hold no answer.
        latent_weight: what a rank by memory counts in hybrid search, beside 1 for a rank by words; None for the
            checkpoint's.
        within: the manual (``messages.manual_of``) whose passages alone are found; None for all.
        only: what else a passage must be; None for nothing.
        rerank: best passages found that are put in order by how likely the question is after the memory of each; 0
            leaves the order of the search; None as measured for the model.

    Raises:
        InputError: a choice that there is not, or a number that cannot be.
    """

    k: int | None = None
    mode: SearchMode = "hybrid"
    context: ContextChoice = "auto"
    wording: Wording | None = None
    max_new_tokens: int = 64
    always_answer: bool = False
    latent_weight: float | None = None
    within: str | None = None
    only: PassageFilter | None = None
    rerank: int | None = None

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, SearchMode)
        _check_choice("context", self.context, ContextChoice)
        if self.wording is not None:
            _check_choice("wording", self.wording, Wording)
        for name, least in (("k", 1), ("max_new_tokens", 1), ("rerank", 0)):
            number: object = getattr(self, name)
            if number is not None and (not isinstance(number, Integral) or int(number) < least):
                raise InputError(f"{name} must be a whole number of at least {least}, got {number!r}")
        if self.latent_weight is not None and not self.latent_weight >= 0:
            raise InputError(f"latent_weight must be at least 0, got {self.latent_weight}")

    def changed(self, k: int | None, **changes: Unpack[AnswerKeywords]) -> AnswerOptions:
        """These options with others in their place; ``k`` None leaves it."""
        return replace(self, **changes, **({} if k is None else {"k": k}))


class AnswerKeywords(TypedDict, total=False):
    """The fields of ``AnswerOptions`` but ``k``, as keywords of ``Clara.ask`` and ``Clara.stream``."""

    mode: SearchMode
    context: ContextChoice
    wording: Wording | None
    max_new_tokens: int
    always_answer: bool
    latent_weight: float | None
    within: str | None
    only: PassageFilter | None
    rerank: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Input of the model for one question.

    Attributes:
        request: for the model.
        hits: the passages found, best first.
        read_as: of each hit, how it is read; None for one that is not.
        lacks_name: whether the question names something that the passages do not hold.
    """

    request: GenerationRequest
    hits: Sequence[Hit]
    read_as: Sequence[ContextKind | None]
    lacks_name: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lacks_name", _lacks_name(self.request.question, self.hits))

    def judged(self, model: ClaraModel) -> bool:
        """True if the answer may be withheld."""
        return model.manifest.refuses or self.lacks_name or self.evidence_wanted(model) is not None

    def withheld(self, model: ClaraModel, generation: Generation, *, margin: float = 0.0) -> bool:
        """True if the evidence for a quoted answer is too weak, or the passages hold no answer.

        They hold none if the question names something that they do not, or if the model says so. ``margin`` is evidence
        wanted beyond the least.
        """
        if self.lacks_name or model.refused(generation):
            return True
        wanted, found = self.evidence_wanted(model), self.evidence(model, generation)
        return wanted is not None and found is not None and found < wanted + margin

    def evidence(self, model: ClaraModel, generation: Generation) -> float | None:
        """Evidence that the passages read hold the answer; None for a free answer, and where it was not scored.

        The sum of ``Generation.evidence`` and the weighted shares of the question's words that the passages have, and
        that stand near the quotation. Together they tell right answers from others better than each, and than
        retrieval scores (LOG.md, 2026-11-29 and 2026-11-30).
        """
        if generation.evidence is None or not self.request.quote_from:
            return None
        question, texts, rule = self.request.question, self.request.quote_from, model.reading
        covered = _covered(question, texts)
        around = _surroundings(generation.text, texts)
        near = max((_covered(question, [text]) for text in around), default=covered)  # yes and no stand nowhere
        return generation.evidence + rule.coverage_weight * covered + rule.nearness_weight * near

    def evidence_wanted(self, model: ClaraModel) -> float | None:
        """Evidence below which an answer is withheld; None withholds none."""
        if not self.request.quote_from:
            return None
        if "text" in self.read_as:
            if self.request.reader == "base" or self.request.reader != model.text_role:
                return None
            wanted = model.reading.text_evidence
            return 0.0 if wanted is None and model.manifest.refuses else wanted
        return model.reading.memory_evidence if "memory" in self.read_as else None

    def read(self) -> list[Hit]:
        """The hits that are read, best first."""
        return [hit for hit, how in zip(self.hits, self.read_as, strict=True) if how is not None]


@dataclass(frozen=True, slots=True)
class Found:
    """Hits, and the seconds that the query and the search took."""

    hits: list[Hit]
    query: float
    search: float


def passages_to_find(model: ClaraModel, options: AnswerOptions) -> int:
    """The number of passages to search for."""
    if options.k is not None:
        return options.k
    return {
        "auto": model.default_k,
        "memory": model.reading.memory_k or model.default_k,
        "text": model.reading.text_k or model.default_k,
        "none": 0,
    }[options.context]


def reranked(model: ClaraModel, question: str, hits: Sequence[Hit], depth: int) -> list[Hit]:
    """Hits whose first ``depth`` are put in order by how likely the question is after the memory of each."""
    if min(depth, len(hits)) < 2:
        return list(hits)
    scores = model.question_likelihoods(question, [hit.memory for hit in hits[:depth]])
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    return [*(hits[place] for place in order), *hits[depth:]]


def _tries(model: ClaraModel, hits: Sequence[Hit], options: AnswerOptions) -> int:
    """The number of readings, one after another, until an answer is not withheld."""
    goes_on = options.context == "auto" and model.reads_text and not model.mixed
    return max(1, min(model.reading.auto_tries, len(hits))) if goes_on else 1


def plan_reading(
    model: ClaraModel, question: str, hits: Sequence[Hit], options: AnswerOptions, *, first: int = 0
) -> Reading:
    """Decide what is read of the passages found, from the one in place ``first`` on, and build the model's request.

    Raises:
        InputError: nothing is read, so nothing can be quoted.
    """
    if options.context == "none":
        if options.wording == "quoted":
            raise InputError("without passages (context none) there is nothing to quote; use wording free")
        return Reading(GenerationRequest(question, reader="base"), hits, [None] * len(hits))
    as_text = options.context == "text" or (options.context == "auto" and model.reads_text)
    count = len(hits) if as_text else 0
    if options.context == "auto" and as_text:
        count = min(count, model.reading.auto_texts)
    texts = hits[first : first + count]
    rest = () if as_text and not (options.context == "auto" and model.mixed) else hits[first + count :]
    trained = not as_text or model.reads_text
    wording = options.wording or (model.wording if trained else "free")
    request = GenerationRequest(
        question,
        texts=tuple(map(passage_text, texts)),
        memories=tuple(hit.memory for hit in rest),
        reader=model.text_role if as_text else "generator",
        quote_from=tuple(map(passage_text, (*texts, *rest))) if wording == "quoted" else (),
    )
    read: list[ContextKind | None] = [None] * len(hits)
    for place in range(first, first + len(texts) + len(rest)):
        read[place] = "text" if place < first + len(texts) else "memory"
    return Reading(request, hits, read)


def _generate(model: ClaraModel, reading: Reading, options: AnswerOptions) -> Pieces[str, None, Generation]:
    """The model's answer in pieces (``ClaraModel.stream``), scored; returns it whole.

    A quotation that only repeats the question answers nothing: in its place the best one without it is taken, and its
    pieces follow. The evidence stays the first one's: what the repetition took was an inclination to quote as well.
    """
    chosen = sampling(max_new_tokens=options.max_new_tokens)
    made = yield from model.stream(reading.request, chosen, scored=True)
    if not reading.request.quote_from or not _repeats(reading.request.question, made.text):
        return made
    left = tuple(_without(made.text, text) for text in reading.request.quote_from)
    other = yield from model.stream(replace(reading.request, quote_from=left), chosen, scored=True)
    return replace(other, evidence=made.evidence)


def _repeats(question: str, answer: str) -> bool:
    """True if an answer to what, which, who, where, when or how has only words of the question.

    Of a choice ("the Alder or the Birch?") and of yes or no, the answer does stand in the question.
    """
    if not _ASKED.match(question) or _CHOICE.search(question):
        return False
    said = _words(answer)
    return bool(said) and said <= _words(question)


def _words(text: str) -> set[str]:
    return set(_WORDS.findall(text.lower()))


def _without(answer: str, text: str) -> str:
    """A text with a line's end in the place of an answer: no quotation goes across, and none begins with it."""
    return "\n".join(re.split(_whole(answer), text, flags=re.IGNORECASE))


def passage_text(hit: Hit) -> str:
    """The text a model reads of a hit."""
    return prompts.passage_text(hit.passage.title, hit.passage.text)


def _covered(question: str, texts: Sequence[str]) -> float:
    """Share of a question's words, stop words left out, that begin like a word of the texts; 1 where it has none."""
    asked = {_stem(word) for word in _WORDS.findall(question.lower()) if word not in STOP_WORDS}
    there = {_stem(word) for text in texts for word in _WORDS.findall(text.lower())}
    return len(asked & there) / len(asked) if asked else 1.0


def _surroundings(answer: str, texts: Sequence[str]) -> Iterator[str]:
    """The text around each place of an answer."""
    if answer:
        pattern = re.compile(_whole(answer))
        for text in texts:
            for match in pattern.finditer(text):
                yield text[max(0, match.start() - _NEAR) : match.end() + _NEAR]


def _lacks_name(question: str, hits: Sequence[Hit]) -> bool:
    """True if an English question names something that none of the passages holds, given enough passages.

    Of the bed's tuning half no answerable question lacks one among its best five passages by BM25, and one of 111
    among three (LOG.md, 2026-11-29), so fewer say nothing.
    """
    words = _WORDS.findall(question)
    names = {_stem(word.lower()) for word in words[1:] if word[0].isupper() and word.lower() not in STOP_WORDS}
    titled = sum(word[0].isupper() for word in words) > len(words) / 2  # then a capital says nothing
    if not names or titled or len(hits) < _ENOUGH or not _ASKED.match(question):
        return False
    return not names <= {_stem(word) for hit in hits for word in _words(passage_text(hit))}


def _stem(word: str) -> str:
    return word[:_STEM].rstrip("s")


def find_quote(answer: str, question: str, hits: Sequence[Hit]) -> Quote | None:
    """The place of an answer, word for word, in the passages read.

    Of several places the one whose sentence shares most words with the question, and of equals the first of the best
    passage. None for yes, no, and what stands in no passage's text (a title alone has no place in its document).
    """
    if not answer or answer in BESIDE:
        return None
    asked = _words(question)
    most = -1
    best: Quote | None = None
    for hit in hits:
        for match in re.finditer(_whole(answer), hit.passage.text):
            quote = quote_of(hit, *match.span())
            shared = len(asked & _words(quote.sentence))
            if shared > most:
                most, best = shared, quote
    return best


def quote_of(hit: Hit, start: int, end: int) -> Quote:
    """Characters ``start`` to ``end`` of a passage found, with the sentence and the place that they stand in."""
    passage = hit.passage
    first, last = sentence_around(passage.text, start, end)
    place = location_of(hit.metadata, passage.start + start)
    return Quote(
        passage_id=passage.id,
        document=passage.document,
        start=passage.start + start,
        end=passage.start + end,
        sentence_start=passage.start + first,
        sentence=passage.text[first:last],
        page=place.page,
        heading=place.heading,
    )


def _cut_mark(quote: Quote | None, request: GenerationRequest) -> str:
    """Mark behind a quotation that begins as a sentence does and breaks off within it; empty for others.

    A name or a number at the beginning of a sentence is an answer; from six words on it is a sentence cut short.
    """
    if quote is None or not request.quote_from or quote.start != quote.sentence_start:
        return ""
    length = quote.end - quote.start
    said, rest = quote.sentence[:length], quote.sentence[length:]
    return _CUT if len(said.split()) >= _SENTENCE_WORDS and _WORDS.search(rest) is not None else ""


def _whole(answer: str) -> str:
    """The pattern of an answer in whole words."""
    before = r"(?<!\w)" if answer[0].isalnum() else ""
    after = r"(?!\w)" if answer[-1].isalnum() else ""
    return before + re.escape(answer) + after


def _cite(readings: Sequence[Reading], model: ClaraModel) -> tuple[Citation, ...]:
    """Citations of the passages found, in their order, with how each was read in some of the readings."""
    cited = []
    for place, hit in enumerate(readings[0].hits):
        how = next((reading.read_as[place] for reading in readings if reading.read_as[place] is not None), None)
        text = model.token_count(passage_text(hit)) if how == "text" else 0
        cited.append(citation(hit, how, len(hit.memory.values) if how == "memory" else text))
    return tuple(cited)


def citation(hit: Hit, read_as: ContextKind | None = None, tokens: int = 0) -> Citation:
    """The citation of a hit, with what the model read of it."""
    passage = hit.passage
    place = location_of(hit.metadata, passage.start)
    return Citation(
        passage_id=passage.id,
        document=passage.document,
        start=passage.start,
        end=passage.end,
        score=hit.score,
        text=passage.text,
        read_as=read_as,
        tokens=tokens,
        page=place.page,
        heading=place.heading,
    )


class AnswerStream:
    """A streamed answer: its citations at once, its text in pieces; close them to leave the rest.

    Attributes:
        citations: the passages found.
        pieces: of the text, one a token; an empty one where nothing can be shown yet.
        answer: the whole answer, once all pieces have been read.
    """

    def __init__(self, model: ClaraModel, question: str, options: AnswerOptions, found: Found, started: float) -> None:
        """Begin to answer; ``started`` is when the question was asked, by ``time.perf_counter``.

        Raises:
            InputError: it cannot be read.
        """
        tries = _tries(model, found.hits, options)
        first = plan_reading(model, question, found.hits, options)
        later = (plan_reading(model, question, found.hits, options, first=place) for place in range(1, tries))
        self.citations = _cite([first], model)
        self.answer: Answer | None = None
        self._model, self._options, self._found, self._started = model, options, found, started
        judged = first.judged(model) and not (options.always_answer and tries == 1)
        self._held_back = bool(first.request.quote_from) or judged
        self.pieces = self._shown(chain([first], later))

    def quote(self, _text: str | None = None) -> Quote | None:
        """The place of the answer, word for word, once all pieces have been read; its text need not be given."""
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
        before, read, written = time.perf_counter(), list[Reading](), list[Generation]()
        for reading in readings:
            made = _generate(self._model, reading, self._options)
            generation = yield from _hidden(made) if self._held_back else made
            read.append(reading)
            written.append(generation)
            near = reading.withheld(self._model, generation, margin=self._model.reading.margin)
            if reading.lacks_name or not near:
                break
        reading, generation = max(zip(read, written, strict=True), key=self._belief)
        answered = self._options.always_answer or not reading.withheld(self._model, generation)
        self.citations = _cite(read, self._model)
        now = time.perf_counter()
        quote = find_quote(generation.text, reading.request.question, reading.read()) if answered else None
        mark = _cut_mark(quote, reading.request)
        text = generation.text + mark if answered else NOT_FOUND
        self.answer = Answer(
            text=text,
            citations=self.citations,
            tokens=TokenCounts(*map(sum, zip(*(astuple(each.tokens) for each in written), strict=True))),
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

    def _belief(self, made: tuple[Reading, Generation]) -> float:
        """The evidence for one of several answers; where there is none, whether it is one at all."""
        reading, generation = made
        found = reading.evidence(self._model, generation)
        return found if found is not None else -float(self._model.refused(generation))


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
