"""Answers by a language model behind a server: passages as numbered text, its reply as an ``Answer``'s parts.

The same record comes out as from a model of ours (``answering``). Knows hits and replies; finding is ``pipeline``'s
work, the connection ``llm``'s, every word of the prompt ``prompts``'.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator as Pieces
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clara import prompts
from clara.answering import NOT_FOUND, AnswerOptions, Found, citation, find_quote, passage_text, quote_of
from clara.errors import InputError, LLMError
from clara.ingest import sentence_around
from clara.records import Answer, Citation, Hit, Quote, Seconds, TokenCounts

if TYPE_CHECKING:
    from clara.llm import LLM, Reply

DEFAULT_TOKENS = 512
"""Longest answer: such a model answers in sentences, and may reason first."""

_CITED = re.compile(r"\s*[\[【]\s*(\d+(?:\s*[,;]\s*\d+)*)\s*[\]】]")
_WORDS = re.compile(r"\w+")
_THOUGHTS = "<think>"
_THOUGHTS_END = "</think>"


@dataclass(frozen=True, slots=True, eq=False)
class LLMReading:
    """Prompt of a language model for one question, and the answer made of its reply.

    It reads all passages found.

    Raises:
        InputError: an option that a model behind a server cannot follow.
    """

    question: str
    options: AnswerOptions
    found: Found

    def __post_init__(self) -> None:
        check_options(self.options)

    def citations(self) -> tuple[Citation, ...]:
        """The passages in their order; tokens are 0, because a server counts whole prompts alone."""
        return tuple(citation(hit, "text") for hit in self.found.hits)

    def ask(self, llm: LLM) -> Answer:
        """The whole answer; without a passage it is the phrase that says so, and nothing is asked.

        Raises:
            LLMError: the model cannot be asked.
        """
        started = time.perf_counter()
        reply = llm.reply(self.messages(), max_tokens=self.options.max_new_tokens) if self.found.hits else None
        text = "".join(without_thoughts([reply.text])) if reply is not None else NOT_FOUND
        return self.answer(text, reply, time.perf_counter() - started)

    def answer(self, text: str, reply: Reply | None, seconds: float) -> Answer:
        """The model's words, without thoughts, as an answer; ``reply`` is None where nothing was asked."""
        answered, found = not _is_not_found(text), self.found
        return Answer(
            text=text.strip() if answered else NOT_FOUND,
            citations=self.citations(),
            tokens=reply_tokens(reply),
            seconds=Seconds(found.search, found.query, seconds, found.search + found.query + seconds),
            context="text",
            finish_reason="length" if reply is not None and reply.finish_reason == "length" else "stop",
            quote=self.quote(text.strip()),
            answered=answered,
        )

    def quote(self, text: str) -> Quote | None:
        """Place of an answer: its own words, or else the most similar sentence of the first passage it cites."""
        if _is_not_found(text):
            return None
        hits = self.found.hits
        cited = [hit for number in _cited_numbers(text) for hit in hits[number - 1 : number]]
        bare = _CITED.sub("", text).strip().rstrip(".")
        quoted = find_quote(bare, self.question, cited or hits)
        if quoted is not None or not cited:
            return quoted
        first = next(m for m in _CITED.finditer(text) if any(0 < n <= len(hits) for n in _numbers(m)))
        return _most_like(text[: first.start()], cited[0])

    def messages(self) -> list[dict[str, str]]:
        """Messages to the model."""
        not_found = None if self.options.always_answer else NOT_FOUND
        return prompts.llm_answer_messages(self.question, [passage_text(hit) for hit in self.found.hits], not_found)


class LLMAnswerStream:
    """``AnswerStream`` of a language model behind a server.

    Attributes:
        citations: the passages found.
        pieces: of the text.
    """

    def __init__(self, reading: LLMReading, llm: LLM) -> None:
        self.citations = reading.citations()
        self.pieces = self._said(llm)
        self._reading, self._text = reading, ""
        self._reply: Reply | None = None
        self._started = time.perf_counter()

    def whole(self) -> Answer:
        """The answer, when it is finished; tokens are the server's count where it counts a stream, else an estimate."""
        for _ in self.pieces:
            pass
        return self._reading.answer(self._text, self._reply, time.perf_counter() - self._started)

    def quote(self, _text: str | None = None) -> Quote | None:
        """Place of the answer, once all pieces have been read; its text need not be given."""
        return self._reading.quote(self._text.strip())

    def _said(self, llm: LLM) -> Pieces[str, None, None]:
        """The reply as it comes (LLMError: the model cannot be asked, or its reply breaks off)."""
        with closing(self._asked(llm)) as pieces:
            for piece in pieces:
                self._text += piece
                yield piece

    def _asked(self, llm: LLM) -> Pieces[str, None, None]:
        if not self._reading.found.hits:
            yield NOT_FOUND
            return
        longest = self._reading.options.max_new_tokens
        yield from without_thoughts(llm.stream(self._reading.messages(), max_tokens=longest, at_end=self._end))

    def _end(self, reply: Reply) -> None:
        self._reply = reply


def check_options(options: AnswerOptions) -> None:
    """Refuse what a model behind a server cannot do (InputError: names the option)."""
    if options.context not in {"auto", "text"}:
        raise InputError(
            f"a model behind a server reads passages as text; use context auto or text, not {options.context}"
        )
    if options.wording == "quoted":
        raise InputError("a model behind a server cannot be held to quotations; use wording free")


def reply_tokens(reply: Reply | None) -> TokenCounts:
    """The server's counts of a reply; it reads text alone. None counts nothing."""
    read, written = (reply.usage.prompt, reply.usage.completion) if reply is not None else (0, 0)
    return TokenCounts(prompt=read, memory=0, text_equivalent=read, generated=written)


def _is_not_found(text: str) -> bool:
    """True if a reply says that the passages hold no answer, whatever follows the phrase."""
    return text.strip("\"'“”* ").lower().startswith(NOT_FOUND.rstrip(".").lower())


def _cited_numbers(text: str) -> list[int]:
    """The numbers of passages in a reply, in their order, each once."""
    return list(dict.fromkeys(number for match in _CITED.finditer(text) for number in _numbers(match) if number > 0))


def without_thoughts(pieces: Iterable[str]) -> Iterator[str]:
    """A reply without the thoughts that a reasoning model begins with, where its server leaves them in.

    Raises:
        LLMError: the reply ends in the middle of them.
    """
    held = ""
    source = iter(pieces)
    for piece in source:
        held += piece
        begun = held.lstrip()
        if not _THOUGHTS.startswith(begun[: len(_THOUGHTS)]):
            break
        if _THOUGHTS_END in begun:
            held = begun.partition(_THOUGHTS_END)[2].lstrip()
            break
    else:
        if held.lstrip().startswith(_THOUGHTS):
            raise LLMError("the model's reply ends in its thoughts, before any answer; allow more new tokens")
    if held:
        yield held
    yield from source


def _numbers(match: re.Match[str]) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", match[1])]


def _most_like(statement: str, hit: Hit) -> Quote | None:
    """The sentence of a passage that shares most words with a statement; None where none shares one worth it."""
    said = _telling(statement)
    text = hit.passage.text
    best: tuple[int, int, int] | None = None
    place = 0
    while place < len(text):
        start, end = sentence_around(text, place, place + 1)
        shared = len(said & _telling(text[start:end]))
        if shared and (best is None or shared > best[0]):
            best = (shared, start, end)
        place = max(end, place + 1)
        place += len(text[place:]) - len(text[place:].lstrip())
    return None if best is None else quote_of(hit, best[1], best[2])


def _telling(text: str) -> set[str]:
    """Words that say something: numbers, and words of more than three letters."""
    return {word.lower() for word in _WORDS.findall(text) if len(word) > 3 or any(c.isdigit() for c in word)}
