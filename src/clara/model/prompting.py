"""Token ids of prompts, with slots for memories, and constraints of extractive answers.

Prompts are the chat template around the words of ``prompts``. A user's text can never become a control token: it is
tokenised with special tokens split, and only the template's own text is tokenised with them.

Extractive decoding: the tokens that may follow so that an answer is a span of a given text. A memory token keeps the
meaning of a passage better than its spelling, so names, numbers and dates come out as in the source (LOG.md,
2026-11-26); the generator chooses where a quotation begins and ends. The model still reads memories alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import regex
import torch
from jinja2 import TemplateError
from torch import Tensor

from clara import prompts
from clara.model.backbone import Tokenizer, encoded, plain_ids, token_spans

if TYPE_CHECKING:
    from tokenizers import Encoding


_LONGEST = 160
"""Most characters of a quotation."""
BESIDE = ("yes", "no", "Yes", "No")
"""Answers that need no source."""

# Scripts without spaces are quoted character by character, a mark (vowel sign, tone) with the letter before it.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*")
# All else in runs without white space: an identifier, a path, a version or a date is never divided. A run may be
# divided at a dash, an ellipsis, a comma or semicolon that stands in no number, and between the years of a span.
_CHUNK = regex.compile(r"\S+")
_DIVIDER = regex.compile(
    r"[–—―…]+|(?<!\p{N})[,;]|[,;](?!\p{N})|(?<=(?<![\p{L}\p{N}.,-])\p{N}{4})-(?=\p{N}{4}(?![\p{L}\p{N}-]))"
)
# What a sentence puts around a word, and an author or a markup language.
_OPENING = regex.compile(r"""(?:[(\[{<"'“‘«„‚¿¡`|]|\*(?=[*\p{L}\p{N}]))+""")
_CLOSING = regex.compile(r"""[)\]}>"'”’»“‘.,;:!?`*|]+$""")
_BRACKETS = {")": "(", "]": "[", "}": "{", ">": "<"}
_WRITTEN = regex.compile(r"[\p{L}\p{N}]")
_NUMBER = regex.compile(r"[-−+±~<>≤≥]*\p{N}(?:[\p{N}.,]*\p{N})?")
# fmt: off
_UNITS = frozenset([  # as symbols; a unit that is a word of the language may be left out of an answer
    "%", "‰", "°", "°C", "°F", "K", "bar", "mbar", "Pa", "hPa", "kPa", "MPa", "psi", "atm", "nm", "µm", "mm", "cm",
    "m", "km", "ft", "mi", "px", "pt", "em", "dpi", "m²", "km²", "m³", "ha", "mg", "g", "kg", "t", "lb", "lbs", "oz",
    "ml", "mL", "cl", "dl", "l", "L", "ns", "µs", "us", "ms", "s", "sec", "min", "h", "hr", "hrs", "B", "kB", "KB",
    "MB", "GB", "TB", "PB", "KiB", "MiB", "GiB", "TiB", "kbit/s", "Mbit/s", "Gbit/s", "MB/s", "GB/s", "bps", "Mbps",
    "Gbps", "Hz", "kHz", "MHz", "GHz", "rpm", "dB", "V", "mV", "kV", "A", "mA", "W", "mW", "kW", "MW", "Wh", "kWh",
    "J", "kJ", "MJ", "cal", "kcal", "N", "Nm", "Ω", "km/h", "m/s", "mph",
])
# fmt: on


@dataclass(frozen=True, slots=True)
class _Quotation:
    """Everything that may be quoted from one place on, with its tokens and their character spans."""

    ids: tuple[int, ...]
    piece: _Piece
    encoding: Encoding

    def begins(self, written: tuple[int, ...]) -> bool:
        return self.ids[: len(written)] == written

    def may_end(self, count: int) -> bool:
        """A word ends with the first ``count`` tokens, and no token of the same character follows."""
        offsets = self.encoding.offsets
        end = offsets[count - 1][1]
        following = offsets[count][0] if count < len(offsets) else end
        return end in self.piece.ends and following >= end


class Quotations:
    """The spans of texts that may be quoted: within a line, from the beginning of a word to the end of one."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], *, beside: Sequence[str] = BESIDE) -> None:
        """Cut the texts up for a fast tokenizer; ``beside`` are further answers."""
        pieces = [*dict.fromkeys(piece for text in texts for piece in _pieces(text))]
        pieces += [_Piece(word, frozenset({len(word)})) for word in beside]
        made = encoded(tokenizer, [piece.text for piece in pieces])
        parts = zip(made.input_ids, pieces, made.encodings, strict=True)
        self._quotations = [_Quotation(tuple(ids), piece, encoding) for ids, piece, encoding in parts]

    def next_ids(self, written: Sequence[int]) -> set[int]:
        """Tokens that may follow those already written, without those that end an answer."""
        done = tuple(written)
        return {one.ids[len(done)] for one in self._quotations if len(one.ids) > len(done) and one.begins(done)}

    def alternatives(self, answer: Sequence[int], *, end: int) -> list[set[int]] | None:
        """The allowed tokens at each token of an answer, ``end`` last if it is whole; None if it is no quotation."""
        alternatives = []
        for count, token in enumerate(answer):
            allowed = self.next_ids(answer[:count]) | ({end} if self.may_end(answer[:count]) else set())
            if token not in allowed:
                return None
            alternatives.append(allowed)
        return alternatives

    def may_end(self, written: Sequence[int]) -> bool:
        """The written tokens are a whole quotation."""
        done = tuple(written)
        return bool(done) and any(one.may_end(len(done)) for one in self._quotations if one.begins(done))

    def only(self, scores: Tensor, written: Sequence[int], *, stops: Sequence[int]) -> Tensor:
        """Scores [V] with all but the tokens that may follow at minus infinity; ``stops`` end an answer."""
        allowed = sorted(self.next_ids(written))
        if self.may_end(written) or not allowed:  # nothing may follow an answer that has ended, too
            allowed += stops
        constrained = torch.full_like(scores, float("-inf"))
        constrained[allowed] = scores[allowed]
        return constrained


@dataclass(frozen=True, slots=True)
class _Piece:
    """The text from one word on, at most ``_LONGEST`` characters; ``ends`` are lengths at which a word ends."""

    text: str
    ends: frozenset[int]


def _pieces(text: str) -> Iterator[_Piece]:
    """A piece for each word of a text."""
    for line in text.splitlines():
        words = _words(line)
        for first, (start, _) in enumerate(words):
            ends = [end - start for _, end in words[first:] if end - start <= _LONGEST]
            if ends:
                yield _Piece(line[start : start + ends[-1]], frozenset(ends))


def _words(line: str) -> list[tuple[int, int]]:
    """Character spans that are quoted whole; a number goes with its unit."""
    words: list[tuple[int, int]] = []
    for start, end in _parts(line):
        before = words[-1] if words else None
        if (
            before is not None
            and line[start:end] in _UNITS
            and line[before[1] : start].isspace()
            and _NUMBER.fullmatch(line, *before)
        ):
            words[-1] = (before[0], end)
        else:
            words.append((start, end))
    return words


def _parts(line: str) -> Iterator[tuple[int, int]]:
    """Character spans of a line's words, without the punctuation around them."""
    for chunk in _CHUNK.finditer(line):
        at = chunk.start()
        borders = [*_DIVIDER.finditer(line, chunk.start(), chunk.end()), *_UNSPACED.finditer(line, *chunk.span())]
        for border in sorted(borders, key=lambda match: match.start()):
            yield from _stripped(line, at, border.start())
            if border.re is _UNSPACED:
                yield border.span()
            at = border.end()
        yield from _stripped(line, at, chunk.end())


def _stripped(line: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A word without the punctuation around it; nothing where there is nothing else."""
    opening = _OPENING.match(line, start, end)
    start = opening.end() if opening is not None else start
    while (closing := _CLOSING.search(line, start, end)) is not None:
        sign = line[end - 1]
        opener = _BRACKETS.get(sign)
        if opener is not None and opener in line[start : closing.start()]:
            break  # its own: f(x), a[0]
        end -= 1
    if _WRITTEN.search(line, start, end) is not None:
        yield start, end


BODY = "\ue000"
"""Stands for the user's message while the chat template is rendered; a private-use character no template contains."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the positions of memory vectors, in their order; there the pad id stands in."""

    ids: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The ids of a chat template around one user message."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Prompter:
    """Builds the generator's prompts for one tokenizer; ``markers`` counts the tokens that ``encoder_ids`` adds."""

    markers = 0

    def __init__(self, tokenizer: Tokenizer, *, refuses: bool = False) -> None:
        """Build prompts; ``refuses``: of a model that learnt to say that no passage holds the answer."""
        self._tokenizer = tokenizer
        self._refuses = refuses
        self._pad = int(tokenizer.pad_token_id)
        self.eos = int(tokenizer.eos_token_id)
        self._frames: dict[str, _Frame] = {}

    def plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""
        return plain_ids(self._tokenizer, text)

    def quotations(self, texts: Sequence[str], *, refusing: bool = False) -> Quotations:
        """Quotations of texts; ``refusing``: and the reply that there is no answer, where the model learns it."""
        beside = (*BESIDE, prompts.NO_ANSWER) if refusing and self._refuses else BESIDE
        return Quotations(self._tokenizer, texts, beside=beside)

    @property
    def refusal(self) -> int | None:
        """The first id of ``prompts.NO_ANSWER``, which no quotation is; None for a model that never says it."""
        return self.plain(prompts.NO_ANSWER)[0] if self._refuses else None

    @property
    def verdict(self) -> tuple[int, int]:
        """The ids of ``prompts.RIGHT`` and ``prompts.WRONG``, each a token."""
        return self.plain(prompts.RIGHT)[0], self.plain(prompts.WRONG)[0]

    def encoder_ids(self, text: str) -> list[int]:
        """Ids of a text for compressor and query reasoner, without memory tokens."""
        return self.plain(text)

    def window_ids(self, text: str, window: int) -> list[int]:
        """``encoder_ids`` cut to a window of so many tokens."""
        return self.encoder_ids(text)[: window + self.markers]

    def background(self, passages: Sequence[int | str]) -> Prompt:
        """The prompt up to the question; passages, best first, are texts, or numbers of slots for memory vectors."""
        ids, slots = list(self._frame(prompts.ANSWER_SYSTEM).before), list[int]()
        words = prompts.BACKGROUND  # what lies between memories is tokenised in one piece
        for passage in passages:
            if isinstance(passage, str):
                words += passage + prompts.SEPARATOR
                continue
            ids.extend(self.plain(words))
            slots.extend(range(len(ids), len(ids) + passage))
            ids.extend([self._pad] * passage)
            words = prompts.SEPARATOR
        return Prompt((*ids, *self.plain(words)), tuple(slots))

    def no_background(self) -> Prompt:
        """The closed-book prompt up to the question."""
        return Prompt(self._frame(prompts.CLOSED_BOOK_SYSTEM).before, ())

    def instruction(self, text: str) -> list[int]:
        """Ids that follow a background: the instruction or question, and the opening of the reply."""
        return [*self.plain(text), *self._frame(prompts.ANSWER_SYSTEM).after]

    def closed_instruction(self, text: str) -> list[int]:
        """Ids that follow ``no_background``."""
        return [*self.plain(text.lstrip()), *self._frame(prompts.CLOSED_BOOK_SYSTEM).after]

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of a text that has at most ``tokens`` tokens."""
        spans = token_spans(self._tokenizer, text)
        return text if len(spans) <= tokens else text[: spans[tokens - 1][1]]

    def question(self, question: str) -> list[int]:
        """``instruction`` for a question."""
        return self.instruction(prompts.QUESTION + question.strip())

    def from_passages(self, question: str, passages: Sequence[int | str]) -> Prompt:
        """The prompt for a question over passages as in ``background``; closed-book without them."""
        if not passages:
            return self.closed_book(question)
        background = self.background(passages)
        return Prompt((*background.ids, *self.question(question)), background.slots)

    def asked(self, question: str, memory_tokens: int) -> tuple[Prompt, int]:
        """A question as the reply to ``prompts.ASK_INSTRUCTION`` over one memory, and its number of tokens."""
        background, words = self.background([memory_tokens]), self.plain(question.strip())
        ids = (*background.ids, *self.instruction(prompts.ASK_INSTRUCTION), *words)
        return Prompt(ids, background.slots), len(words)

    def closed_book(self, question: str) -> Prompt:
        """The closed-book prompt for a question."""
        return Prompt((*self.no_background().ids, *self.closed_instruction(prompts.QUESTION + question.strip())), ())

    def _frame(self, system: str) -> _Frame:
        if system not in self._frames:
            before, after = self._render(system).split(BODY)
            ids = (tuple(encoded(self._tokenizer, text, special=True).input_ids) for text in (before, after))
            self._frames[system] = _Frame(*ids)
        return self._frames[system]

    def _render(self, system: str) -> str:
        if self._tokenizer.chat_template is None:
            return f"{self._tokenizer.bos_token or ''}{system}\n{BODY}\nAnswer:"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": BODY}]
        try:
            return self._apply(messages)
        except TemplateError:  # the template knows no system role (Mistral-7B-Instruct-v0.2)
            return self._apply([{"role": "user", "content": f"{system}\n{BODY}"}])

    def _apply(self, messages: list[dict[str, str]]) -> str:
        text: str = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text
