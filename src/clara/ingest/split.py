"""Documents to passages: windows of at most so many tokens, one after the other, that cover every character.

Knows tokens only through a function that gives their character spans. A window is cut at the end of a paragraph, a
sentence, a line or a word; a long text is cut stretch by stretch: time grows with its length, memory does not. Where a
passage stands (page, heading) is kept in the metadata that is stored with it: ``passage_metadata`` writes what
``location_of`` reads, nothing else knows the keys. All offsets are the document's.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from typing import NamedTuple

from clara.errors import ConfigError
from clara.prompts import passage_text
from clara.records import Document, Passage

_SPACE = re.compile(r"\s+")
# Chinese and Japanese write no space after a sentence.
_SPACELESS_END = re.compile(r"[。！？][”’」』）]{0,2}")
_SPACE_OR_SPACELESS_END = re.compile(f"{_SPACE.pattern}|{_SPACELESS_END.pattern}")
_SPACELESS_MARKS = "。！？"
_CLOSING = "\"'”’»)]*_"
_STOPS = ".!?…。！？"
_LAST_WORD = re.compile(r"[\w.]*$")
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")
_LAST_WORD_WITHIN = 16  # characters
# fmt: off
_ABBREVIATIONS = frozenset([
    "adj", "al", "approx", "apr", "aug", "bros", "ca", "capt", "cf", "ch", "co", "col", "corp", "dec", "dept", "dr",
    "ed", "eds", "eg", "esp", "est", "etc", "feb", "fig", "figs", "gen", "gov", "hon", "ie", "inc", "jan", "jr",
    "jul", "jun", "lt", "ltd", "maj", "mar", "mr", "mrs", "ms", "mt", "no", "nos", "nov", "oct", "op", "pp", "prof",
    "rep", "resp", "rev", "sen", "sep", "sept", "sgt", "sr", "st", "vol", "vols", "vs",
])
# fmt: on
_FIELD_OR_ROW = r":[^:\n]{1,60}:\s|[^\n]*\S \| \S"
_ITEM = re.compile(rf"\s*(?:[-*+•‣◦#|]|\d{{1,3}}[.)])|{_FIELD_OR_ROW}")
# In a text that is set in, a line that goes on with a sentence may begin with an option or a number: "-d", "18."
_SET_IN = re.compile(rf"[-*+]\s|[•‣◦]|{_FIELD_OR_ROW}")
_LONGEST_CLUSTER = 64  # characters looked back over for the start of a cluster: text of people has fewer

TokenSpans = Callable[[str], Sequence[tuple[int, int]]]
"""Character spans of the tokens of a text, no special tokens: ``[(start, end), ...]`` in order."""

_STRETCH = 64  # characters looked at ahead, a token of the window: words have 4 to 6, so some ten windows
_LEAST_STRETCH = 1024
_TINY = 0.25  # a last window below this share of a window is evened out with the one before, if a cut allows
_ATTEMPTS = 8  # shrinking by what the tokenizer reports; after that, by halves
_START = attrgetter("start")  # of a heading


class _Grade(IntEnum):
    """Cost of a cut at a place; lower is better."""

    PARAGRAPH = 0
    SENTENCE = 1
    LINE = 2
    WORD = 3
    ANYWHERE = 4


class _Cut(NamedTuple):
    """A place to cut: the first character of the right-hand side, and what ends before it."""

    position: int
    grade: _Grade


class _Stretch(NamedTuple):
    """A part of the text: one past its last character, and the first character of each token in the whole text."""

    end: int
    starts: list[int]


# Least share of the window that a cut of each grade must fill to be preferred to worse ones.
_LEAST_FILL = {_Grade.PARAGRAPH: 0.5, _Grade.SENTENCE: 0.125, _Grade.LINE: 0.5, _Grade.WORD: 0.125}


def split(document: Document, token_spans: TokenSpans, *, max_tokens: int = 256) -> list[Passage]:
    """Cut a document into passages; see ``iter_passages``."""
    return list(iter_passages(document, token_spans, max_tokens=max_tokens))


def iter_passages(document: Document, token_spans: TokenSpans, *, max_tokens: int = 256) -> Iterator[Passage]:
    """Cut a document into passages, in order.

    Each is as long as fits, cut at the end of a paragraph, else of a sentence, a line, a word, else between two
    characters. Each character of the document is in exactly one passage. A passage of only white space occurs only
    where a run of white space alone is longer than a window.

    Args:
        document: what to cut.
        token_spans: the model's tokenizer.
        max_tokens: most tokens of ``prompts.passage_text(title, text)``, which is what the model reads.

    Yields:
        Passages; their title is the document's and the heading that they stand under, cut to a quarter of
        ``max_tokens`` (left out where the window would not hold one character beside it).

    Raises:
        ConfigError: ``max_tokens`` does not hold a single character of the document.
    """
    splitter = _Splitter(document, token_spans, max_tokens)
    start = 0
    while start < len(document.text):
        passage = splitter.passage(start)
        yield passage
        start = passage.end


class _Splitter:
    """A document on its way through the tokenizer."""

    def __init__(self, document: Document, token_spans: TokenSpans, max_tokens: int) -> None:
        self._document = document
        self._text = document.text
        self._spans = token_spans
        self._max = max_tokens
        self._reach = max(_LEAST_STRETCH, _STRETCH * max_tokens)
        self._document_title = " ".join(document.title.split())
        self._titles: dict[str, tuple[str, int]] = {}
        self._title, self._title_tokens = "", 0  # of the window that is being cut
        self._stretch = _Stretch(0, [])

    def passage(self, start: int) -> Passage:
        """The passage that begins at ``start``."""
        self._title, self._title_tokens = self._titled(start)
        tokens = self._tokens_from(start)
        head = self._text[start : start + self._reach].lstrip()
        repeats = not head.startswith(self._title)
        budget = max(1, self._max - self._title_tokens * repeats)
        for title in dict.fromkeys([self._title, ""]):
            end = self._end(start, title, tokens, budget)
            if end is not None:
                identity = f"{self._document.uri}\n{self._document.content_hash}\n{start}-{end}"
                passage_id = hashlib.sha256(identity.encode("utf-8")).hexdigest()[:16]
                return Passage(passage_id, self._document.uri, title, self._text[start:end], start, end)
        raise ConfigError(
            f"windows of {self._max} tokens cannot hold the character {self._text[start]!r} of {self._document.uri}; "
            "raise window_tokens"
        )

    def _titled(self, start: int) -> tuple[str, int]:
        """Text read before the window that begins at ``start``, and its tokens: the title, and the heading above."""
        number = bisect_right(self._document.headings, start, key=_START)
        above = self._document.headings[number - 1] if number else None
        # A window that begins with its heading shows it.
        shown = above is None or not self._text[above.start : start].strip()
        heading = "" if above is None or shown else " ".join(above.text.split())
        if heading not in self._titles:
            parts = [self._document_title, heading if heading not in self._document_title else ""]
            title = self._cut_title(": ".join(part for part in parts if part))
            self._titles[heading] = title, len(self._spans(f"{title}\n")) if title else 0
        return self._titles[heading]

    def _cut_title(self, title: str) -> str:
        """The title at most a quarter of a window long, cut after a word where it has more than one."""
        most = max(1, self._max // 4)
        title = title[: self._reach]
        while title and len(spans := self._spans(title)) > most:
            limit = min(spans[most][0], len(title) - 1)
            if limit < 1:
                return ""
            words = [cut.position for cut in _cuts(title, 0, limit)]
            title = title[: words[-1] if words else _cluster_start(title, limit, 0)].rstrip()
        return title

    def _tokens_from(self, start: int) -> list[int]:
        """First characters of the tokens from ``start`` on: those of two windows at least, or to the text's end."""
        first = bisect_left(self._stretch.starts, start)
        known = len(self._stretch.starts) - first
        if start >= self._stretch.end or (self._stretch.end < len(self._text) and known <= 2 * self._max):
            end = min(start + self._reach, len(self._text))
            spans = self._spans(self._text[start:end])
            self._stretch = _Stretch(end, [start + span[0] for span in spans])
            first = 0
        return self._stretch.starts[first:]

    def _end(self, start: int, title: str, tokens: list[int], budget: int) -> int | None:
        """End of the window from ``start``, or None if not even one character fits."""
        limit = self._stretch.end if len(tokens) <= budget else max(tokens[budget], start + 1)
        for attempt in range(limit - start + _ATTEMPTS):
            end = self._cut(start, limit, tokens)
            fitting = self._fitting(start, end, title)
            if fitting >= end:
                return end
            if end == start + 1:
                return None
            halved = start + (end - start) // 2
            limit = max(start + 1, min(fitting, halved) if attempt >= _ATTEMPTS else fitting)
        return None

    def _fitting(self, start: int, end: int, title: str) -> int:
        """``end`` if the window fits; else where its first token too many begins, less than ``end``."""
        body = passage_text(title, self._text[start:end])
        spans = self._spans(body)
        if len(spans) <= self._max:
            return end
        offset = len(body) - (end - start)
        return min(start + spans[self._max][0] - offset, end - 1)

    def _cut(self, start: int, limit: int, tokens: list[int]) -> int:
        """The best end of a window from ``start`` that reaches at most to ``limit``."""
        text = self._text
        if limit >= len(text):
            return len(text)
        best = _last_good(text, start, limit)
        if self._stretch.end < len(text):
            return best.position
        rest = len(tokens) - bisect_left(tokens, best.position)
        if rest >= _TINY * self._max and not text[best.position :].isspace():
            return best.position
        return self._evened(start, limit, tokens, best)

    def _evened(self, start: int, limit: int, tokens: list[int], best: _Cut) -> int:
        """A cut near the middle of what is left, so that the last window is not tiny; no worse a cut than ``best``."""
        count = len(tokens)
        if not count:
            return best.position
        # What comes after the cut has to fit into one window too.
        low = tokens[max(count // 4, min(count - self._max + self._title_tokens, count - 1))]
        middle = tokens[count // 2]
        candidates = [cut for cut in _cuts(self._text, start, limit) if low <= cut.position < best.position]
        if not self._text[best.position :].isspace():
            candidates = [cut for cut in candidates if cut.grade <= best.grade]
        elif not candidates and low < best.position:  # one long word, then white space
            place = max(low, start + 1, min(middle, best.position - 1))
            candidates = [_Cut(_cluster_start(self._text, place, start), _Grade.ANYWHERE)]
        chosen = min(candidates, key=lambda cut: (cut.grade, abs(cut.position - middle)), default=best)
        return chosen.position


def _last_good(text: str, start: int, limit: int) -> _Cut:
    """The last cut of the best grade that fills enough of the window."""
    last = {cut.grade: cut for cut in _cuts(text, start, limit)}
    best: _Cut | None = None  # the last cut of this grade or a better one
    for grade, share in _LEAST_FILL.items():
        cut = last.get(grade)
        if cut is not None and (best is None or cut.position > best.position):
            best = cut
        if best is not None and best.position - start >= share * (limit - start):
            return best
    return _Cut(_cluster_start(text, limit, start), _Grade.ANYWHERE)


def _cuts(text: str, start: int, stop: int) -> Iterator[_Cut]:
    """Every cut of ``text`` with ``start < position <= stop``, left to right, except cuts inside words.

    White space that goes on past ``stop`` is cut at ``stop``. A cut never leaves only white space on its left, back
    to ``start``.
    """
    solid = False  # anything but white space seen since ``start``
    before = start
    for match in _SPACE_OR_SPACELESS_END.finditer(text, start, stop):
        solid = solid or match.start() > before or match.group()[0] in _SPACELESS_MARKS
        before = match.end()
        if solid:
            yield _Cut(match.end(), _grade(text, start, match.start(), match.end()))
    if before < stop < len(text) and text[stop].isspace():
        # The white space after the last word did not fit, the word did.
        end = _SPACE.match(text, stop, stop + 2)
        yield _Cut(stop, _grade(text, start, stop, end.end() if end else stop))


def _cluster_start(text: str, position: int, start: int) -> int:
    """The last place at or before ``position`` that does not part a letter from its accents, or an emoji's parts.

    Returns:
        A position > ``start``, with more than white space between the two if there is any; ``position`` itself where
        the cluster reaches back too far.
    """
    leading = _SPACE.match(text, start, position)
    floor = leading.end() if leading else start
    for candidate in range(position, max(floor, position - _LONGEST_CLUSTER), -1):
        if candidate >= len(text) or not _joined(text, candidate, floor):
            return candidate
    return position


def _grade(text: str, start: int, left: int, right: int) -> _Grade:
    """Grade the cut whose white space is ``text[left:right]``."""
    newlines = text.count("\n", left, right)
    if newlines and text.startswith("#", text.rfind("\n", start, left) + 1 or start):
        return _Grade.WORD  # a Markdown heading belongs to what follows it
    if newlines > 1:
        return _Grade.PARAGRAPH
    if _sentence_ends(text, start, left, right):
        return _Grade.SENTENCE
    return _Grade.LINE if newlines else _Grade.WORD


def _sentence_ends(text: str, start: int, left: int, right: int) -> bool:
    if text[left] in _SPACELESS_MARKS:  # the match is the mark itself, not white space
        return True
    tail = text[max(start, left - _LAST_WORD_WITHIN) : left].rstrip(_CLOSING)
    if not tail or tail[-1] not in _STOPS:
        return False
    if right < len(text) and text[right].islower():
        return False
    word = _LAST_WORD.search(tail.rstrip(_STOPS))
    last = word.group() if word and tail[-1] == "." else ""
    # An initial or "U.S."; the number of a list item.
    short = _INITIALS.fullmatch(last) is not None or (last.isdigit() and len(last) < 3)
    return not short and last.lower() not in _ABBREVIATIONS


def _joined(text: str, position: int, floor: int) -> bool:
    """True if the characters on both sides of ``position`` make up one that people see."""
    left, right = text[position - 1], text[position]
    if right == "\u200d" or left == "\u200d" or unicodedata.category(right).startswith("M"):
        return True
    code = ord(right)
    if 0x1F3FB <= code <= 0x1F3FF or 0xE0020 <= code <= 0xE007F or 0x1160 <= code <= 0x11FF:
        return True  # skin tones, tag characters, Hangul vowels and finals
    if 0x1F1E6 <= code <= 0x1F1FF:  # flags: pairs of regional indicators
        count = 0
        while position - count > floor and 0x1F1E6 <= ord(text[position - 1 - count]) <= 0x1F1FF:
            count += 1
        return count % 2 == 1
    return False


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the sentence, or sentences, that hold ``text[start:end]`` begin and end, white space left out.

    A heading, a paragraph and a line of a list or table end a sentence, too.
    """
    first, last = 0, len(text)
    for cut in _cuts(text, 0, len(text)):
        if cut.grade > _Grade.SENTENCE and not _begins_item(text, cut.position):
            continue
        if cut.position <= start:
            first = cut.position
        elif cut.position >= end:
            last = cut.position
            break
    stretch = text[first:last]
    return first + len(stretch) - len(stretch.lstrip()), first + len(stretch.rstrip())


def _begins_item(text: str, position: int) -> bool:
    """True if a line that is a list's item, a field, a table's row or a heading begins or has just ended here."""
    line = text.rfind("\n", 0, position) + 1
    if line < position:
        return not text[line:position].strip() and _SET_IN.match(text, position) is not None
    before = text.rfind("\n", 0, len(text[:position].rstrip())) + 1
    return any(_ITEM.match(text, at) is not None for at in (position, before))


@dataclass(frozen=True, slots=True)
class Location:
    """Where a character of a document stands.

    Attributes:
        page: from 1; None for a format without pages.
        heading: the nearest at or above it, or the empty string.
    """

    page: int | None
    heading: str


def passage_metadata(document: Document, passage: Passage) -> dict[str, str]:
    """A document's metadata with the passage's place in it.

    Returns:
        ``page``: page of the passage's first character; ``page_breaks``: first characters of the pages that begin
        inside it, divided by spaces; ``heading``: nearest heading at or above its first character; ``headings``: JSON
        ``[[first character, heading], ...]`` of those inside it. Each only where there is something to say.
    """
    metadata = dict(document.metadata)
    start, end = passage.start, passage.end
    if document.pages:
        page = max(1, bisect_right(document.pages, start))
        metadata["page"] = str(page)
        if breaks := document.pages[page : bisect_left(document.pages, end)]:
            metadata["page_breaks"] = " ".join(map(str, breaks))
    first = bisect_right(document.headings, start, key=_START)
    if first:
        metadata["heading"] = document.headings[first - 1].text
    if inside := document.headings[first : bisect_left(document.headings, end, key=_START)]:
        metadata["headings"] = json.dumps([[heading.start, heading.text] for heading in inside], ensure_ascii=False)
    return metadata


def location_of(metadata: Mapping[str, str], offset: int) -> Location:
    """Where a character of a stored passage stands; ``offset`` counts those of the document."""
    page = int(metadata["page"]) if "page" in metadata else None
    if page is not None:
        page += sum(start <= offset for start in page_breaks(metadata))
    above = [text for start, text in json.loads(metadata.get("headings", "[]")) if start <= offset]
    return Location(page, above[-1] if above else metadata.get("heading", ""))


def page_breaks(metadata: Mapping[str, str]) -> list[int]:
    """First characters, in the document, of the pages that begin inside a stored passage."""
    return [int(start) for start in metadata.get("page_breaks", "").split()]
