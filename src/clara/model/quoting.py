"""Answers in the words of their sources: which tokens may follow, so that an answer is a stretch of a given text.

A memory token says what stands in a passage better than how it is spelt; the passage's text is at hand for citations
anyway. Held to it, the generator chooses where a quotation begins and ends, and names, numbers and dates come out as
they are in the source (LOG.md, 2026-11-26). No text is read by the model: its context stays the memories.
Knows texts and token ids, not models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import regex
import torch
from torch import Tensor

from clara.model.backbone import Tokenizer, encoded

if TYPE_CHECKING:
    from tokenizers import Encoding

LONGEST = 160
"""Characters of a quotation at most."""
BESIDE = ("yes", "no", "Yes", "No")
"""Answers that need not stand in a source."""

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
    """All that may be quoted from one place on.

    Attributes:
        ids: its tokens.
        piece: its text.
        encoding: places of the tokens in the text, which are looked up for the few that are begun.
    """

    ids: tuple[int, ...]
    piece: _Piece
    encoding: Encoding

    def begins(self, written: tuple[int, ...]) -> bool:
        """Whether it opens with these tokens."""
        return self.ids[: len(written)] == written

    def may_end(self, count: int) -> bool:
        """Whether a word ends with the first ``count`` tokens, and no token of the same character follows."""
        offsets = self.encoding.offsets
        end = offsets[count - 1][1]
        following = offsets[count][0] if count < len(offsets) else end
        return end in self.piece.ends and following >= end


class Quotations:
    """What may be quoted from some texts, within a line, from the beginning of a word to the end of one."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], *, beside: Sequence[str] = BESIDE) -> None:
        """Cut the texts up.

        Args:
            tokenizer: of the model that will answer; a fast one.
            texts: the sources.
            beside: answers that need not stand in them.
        """
        pieces = [*dict.fromkeys(piece for text in texts for piece in _pieces(text))]
        pieces += [_Piece(word, frozenset({len(word)})) for word in beside]
        made = encoded(tokenizer, [piece.text for piece in pieces])
        parts = zip(made.input_ids, pieces, made.encodings, strict=True)
        self._quotations = [_Quotation(tuple(ids), piece, encoding) for ids, piece, encoding in parts]

    def next_ids(self, written: Sequence[int]) -> set[int]:
        """Tokens that may follow those already written; those that end an answer are not among them."""
        done = tuple(written)
        return {one.ids[len(done)] for one in self._quotations if len(one.ids) > len(done) and one.begins(done)}

    def alternatives(self, answer: Sequence[int], *, end: int) -> list[set[int]] | None:
        """What could be quoted in the place of each token of an answer; None for an answer that is no quotation.

        Args:
            answer: its tokens, ``end`` last if it is whole.
            end: the token that ends an answer.
        """
        found = []
        for count, token in enumerate(answer):
            allowed = self.next_ids(answer[:count]) | ({end} if self.may_end(answer[:count]) else set())
            if token not in allowed:
                return None
            found.append(allowed)
        return found

    def may_end(self, written: Sequence[int]) -> bool:
        """Whether what is written is a whole quotation."""
        done = tuple(written)
        return bool(done) and any(one.may_end(len(done)) for one in self._quotations if one.begins(done))


@dataclass(frozen=True, slots=True)
class _Piece:
    """The text from one word on.

    Attributes:
        text: at most ``LONGEST`` characters, to the end of a word.
        ends: lengths at which a word ends.
    """

    text: str
    ends: frozenset[int]


def _pieces(text: str) -> Iterator[_Piece]:
    """A piece for each word of a text."""
    for line in text.splitlines():
        words = _words(line)
        for first, (start, _) in enumerate(words):
            ends = [end - start for _, end in words[first:] if end - start <= LONGEST]
            if ends:
                yield _Piece(line[start : start + ends[-1]], frozenset(ends))


def _words(line: str) -> list[tuple[int, int]]:
    """Start and end of each stretch of a line that is quoted whole; a number goes with its unit."""
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
    """Start and end of each word of a line, what stands around it left out."""
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


def quotes_only(scores: Tensor, written: Sequence[int], *, quotations: Quotations, stops: Sequence[int]) -> Tensor:
    """Scores [V] with all but the tokens that quotations allow after those written at minus infinity.

    Args:
        scores: [V].
        written: tokens of the answer so far.
        quotations: what it may be.
        stops: ids that end it.
    """
    allowed = sorted(quotations.next_ids(written))
    if quotations.may_end(written) or not allowed:  # nothing may follow an answer that has ended, too
        allowed += stops
    held = torch.full_like(scores, float("-inf"))
    held[allowed] = scores[allowed]
    return held
