"""Documents to passages: windows of at most so many tokens, one after the other, that cover every character.

Knows tokens only through a function that gives their character spans; where a text may be cut is ``boundaries``'s
work. Works its way through a long text stretch by stretch: time grows with its length, memory does not.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from clara.errors import ConfigError
from clara.ingest.boundaries import Cut, Grade, cluster_start, cuts
from clara.prompts import passage_text
from clara.records import Document, Passage

TokenSpans = Callable[[str], Sequence[tuple[int, int]]]
"""Character spans of the tokens of a text, no special tokens: ``[(start, end), ...]`` in order."""

_STRETCH = 64  # characters looked at ahead, a token of the window: words have 4 to 6, so some ten windows
_LEAST_STRETCH = 1024
_TINY = 0.25  # a last window below this share of a window is evened out with the one before, if a cut allows
# Least share of the window that a cut of each grade must fill to be preferred to worse ones.
_LEAST_FILL = {Grade.PARAGRAPH: 0.5, Grade.SENTENCE: 0.125, Grade.LINE: 0.5, Grade.WORD: 0.125}
_ATTEMPTS = 8  # shrinking by what the tokenizer reports; after that, by halves


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
        window = splitter.window(start)
        yield _passage(document, window)
        start = window.end


@dataclass(frozen=True, slots=True)
class _Window:
    start: int
    end: int
    title: str


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A part of the text with the place of each of its tokens.

    Attributes:
        end: one past its last character.
        starts: first character of each token, in characters of the whole text.
    """

    end: int
    starts: list[int]


def _passage(document: Document, window: _Window) -> Passage:
    identity = f"{document.uri}\n{document.content_hash}\n{window.start}-{window.end}"
    return Passage(
        id=hashlib.sha256(identity.encode("utf-8")).hexdigest()[:16],
        document=document.uri,
        title=window.title,
        text=document.text[window.start : window.end],
        start=window.start,
        end=window.end,
    )


class _Splitter:
    """One document on its way through the tokenizer."""

    def __init__(self, document: Document, token_spans: TokenSpans, max_tokens: int) -> None:
        self._uri = document.uri
        self._text = document.text
        self._spans = token_spans
        self._max = max_tokens
        self._reach = max(_LEAST_STRETCH, _STRETCH * max_tokens)
        self._document_title = " ".join(document.title.split())
        self._headings = document.headings
        self._titles: dict[str, tuple[str, int]] = {}
        self._title, self._title_tokens = "", 0  # of the window that is being cut
        self._stretch = _Stretch(0, [])

    def window(self, start: int) -> _Window:
        """The window that begins at ``start``."""
        self._title, self._title_tokens = self._titled(start)
        tokens = self._tokens_from(start)
        head = self._text[start : start + self._reach].lstrip()
        repeats = not head.startswith(self._title)
        budget = max(1, self._max - self._title_tokens * repeats)
        for title in dict.fromkeys([self._title, ""]):
            end = self._end(start, title, tokens, budget)
            if end is not None:
                return _Window(start, end, title)
        raise ConfigError(
            f"windows of {self._max} tokens cannot hold the character {self._text[start]!r} of {self._uri}; "
            "raise window_tokens"
        )

    def _titled(self, start: int) -> tuple[str, int]:
        """What is read before the window that begins at ``start``, and its tokens: the title, and the heading above."""
        number = bisect_right(self._headings, start, key=lambda heading: heading.start)
        above = self._headings[number - 1] if number else None
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
            words = [cut.position for cut in cuts(title, 0, limit)]
            title = title[: words[-1] if words else cluster_start(title, limit, 0)].rstrip()
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

    def _evened(self, start: int, limit: int, tokens: list[int], best: Cut) -> int:
        """A cut near the middle of what is left, so that the last window is not tiny; no worse a cut than ``best``."""
        count = len(tokens)
        if not count:
            return best.position
        # What comes after the cut has to fit into one window too.
        low = tokens[max(count // 4, min(count - self._max + self._title_tokens, count - 1))]
        middle = tokens[count // 2]
        candidates = [cut for cut in cuts(self._text, start, limit) if low <= cut.position < best.position]
        if not self._text[best.position :].isspace():
            candidates = [cut for cut in candidates if cut.grade <= best.grade]
        elif not candidates and low < best.position:  # one long word, then white space
            place = max(low, start + 1, min(middle, best.position - 1))
            candidates = [Cut(cluster_start(self._text, place, start), Grade.ANYWHERE)]
        chosen = min(candidates, key=lambda cut: (cut.grade, abs(cut.position - middle)), default=best)
        return chosen.position


def _last_good(text: str, start: int, limit: int) -> Cut:
    """The last cut of the best grade that fills enough of the window."""
    last = {cut.grade: cut for cut in cuts(text, start, limit)}
    best: Cut | None = None  # the last cut of this grade or a better one
    for grade, share in _LEAST_FILL.items():
        cut = last.get(grade)
        if cut is not None and (best is None or cut.position > best.position):
            best = cut
        if best is not None and best.position - start >= share * (limit - start):
            return best
    return Cut(cluster_start(text, limit, start), Grade.ANYWHERE)
