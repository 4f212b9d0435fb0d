"""Content of an index: passages with their memories, whose memories these are, and which documents are complete.

Also what a stored row is known by: its checksums, and the words that a text search compares. How a question becomes a
vector is ``model``'s business; when to add and remove is ``pipeline``'s.
Shape letters: R rows, N memory tokens, H hidden size of the backbone.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clara.errors import StoreError, StoreModelError
from clara.records import Memory, Passage, QueryMemory, QuerySpace

GROUPS: Mapping[str, tuple[str, ...]] = {
    "key_crc": ("id", "document", "content_hash"),
    "search_crc": ("id", "search"),
    "memory_crc": ("id", "memory"),
    "text_crc": ("id", "title", "text", "metadata", "start", "end", "token_count"),
}
"""The columns that each checksum of a row covers: those that are read together. ``lexical`` follows from title and
text."""

# Characters that are not seen and part a word in two or keep two spellings of it apart: soft hyphen, combining
# grapheme joiner, zero-width space, non-joiner and joiner, word joiner and invisible operators, byte order mark.
_INVISIBLE = re.compile("[\u00ad\u034f\u200b-\u200d\u2060-\u2064\ufeff]")
_CHUNK = re.compile(r"[^\s]*[^\x00-\x7f\s][^\s]*")
# Accents of Latin, Greek and Cyrillic (not of the letter short I), points of Hebrew, vowels and stretching of Arabic.
_MARKS = re.compile(
    "(?<![\u0418\u0438])\u0306|[\u0300-\u0305\u0307-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0610-\u061a\u0640\u064b-\u065f\u0670]"
)
_LATIN_MARKS = re.compile("(?<=[A-Za-z])[\u0300-\u036f]+")
# Letters that keyboards give two characters for: dotless i; kaf and yeh of Arabic and Persian.
_SAME_LETTER = str.maketrans("\u0131\u0643\u064a\u0649", "i\u06a9\u06cc\u06cc")
_HALF_WIDTH = re.compile("[\uff61-\uff9f]+")
# Thai, Lao, Burmese, Khmer, kana, Han and Hangul: words are part of longer runs, which dictionaries part by what is
# beside them. Pairs of characters are compared too, as search engines do.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]+")


@dataclass(frozen=True, slots=True)
class StoreModel:
    """The model whose memories an index holds.

    Attributes:
        fingerprint: as in ``Memory.fingerprint``.
        name: what loads the model again: the value of ``--model``.
        rate: compression rate of the memories.
        memory_tokens: N, memory tokens of a passage.
        width: H, hidden size of the backbone.
        query_space: what its questions are: ``mean``, one vector at each memory token (or late interaction, whose
            first stage is that); ``flat``, N vectors.
    """

    fingerprint: str
    name: str
    rate: int
    memory_tokens: int
    width: int
    query_space: QuerySpace = "flat"

    @property
    def values(self) -> int:
        """N * H: numbers in one memory, and in one search vector."""
        return self.memory_tokens * self.width

    def describe(self) -> str:
        """A line for messages: name, rate, shape and the start of the fingerprint."""
        return f"{self.name} at {self.rate}x [{self.memory_tokens}, {self.width}] (fingerprint {self.fingerprint[:12]})"

    def fits(self, other: StoreModel) -> bool:
        """True if memories of both can stand in one index; the name may differ (a folder moved)."""
        mine = (self.fingerprint, self.rate, self.memory_tokens, self.width)
        return mine == (other.fingerprint, other.rate, other.memory_tokens, other.width)

    def check_rows(self, rows: Sequence[IndexRow]) -> None:
        """Refuse memories that do not belong into an index of this model.

        Raises:
            StoreModelError: names the passage and both models.
        """
        for row in rows:
            memory = row.memory
            made = (memory.fingerprint, memory.rate, memory.values.shape)
            if made != (self.fingerprint, self.rate, (self.memory_tokens, self.width)):
                raise StoreModelError(
                    f"passage {row.passage.id}: this index holds memories of {self.describe()}, got one of "
                    f"fingerprint {memory.fingerprint[:12]} at {memory.rate}x {list(memory.values.shape)}; "
                    "compress it with the index's model or use another index"
                )

    def check_query(self, query: QueryMemory) -> None:
        """Refuse a question that cannot be compared with the memories of this model.

        Raises:
            StoreError: it was made by another model, has another shape, or is N vectors where one is expected.
        """
        if (query.fingerprint, query.values.shape) != (self.fingerprint, (self.memory_tokens, self.width)):
            raise StoreError(
                f"this index holds memories of {self.describe()}, got a question of fingerprint "
                f"{query.fingerprint[:12]} {list(query.values.shape)}; encode the question with the index's model and "
                "rate"
            )
        if self.query_space == "mean" and query.centre is None and (query.values != query.values[0]).any():
            raise StoreError(
                f"this index is searched by one vector a question, got {len(query.values)} different ones; "
                "encode the question with the index's model"
            )


@dataclass(frozen=True, slots=True, eq=False)
class IndexRow:
    """A passage with its memory, as it is stored.

    Attributes:
        content_hash: content hash of the document version the passage was cut from.
        metadata: small facts of the document.
    """

    passage: Passage
    memory: Memory
    content_hash: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """A document all of whose passages are in the index.

    Attributes:
        uri: the document's ``uri``.
        content_hash: the version that is in the index.
        passages: how many passages that version has; 0 for a document without text.
    """

    uri: str
    content_hash: str
    passages: int

    def check_complete(self, found: int) -> None:
        """Refuse to call the document complete where another number of its version's passages is in the index.

        Raises:
            StoreError: the numbers differ.
        """
        if found != self.passages:
            raise StoreError(
                f"{self.uri} has {self.passages} passages, but {found} of this version are in the index; "
                "add the missing ones before finishing the document"
            )


def checksums(columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], group: str) -> npt.NDArray[np.uint32]:
    """The checksum of each row: uint32 [R].

    A CRC-32 finds every change within 32 bits that follow each other, and all but one in four thousand million others;
    it is no protection against intent.

    Args:
        columns: by name, those of the group at least: strings, whole numbers, or an array [R, ...] of numbers.
        group: one of ``GROUPS``.
    """
    parts = [_parts(columns[name]) for name in GROUPS[group]]
    return np.fromiter(map(_checksum, *parts), dtype=np.uint32, count=len(parts[0]))


def damaged(columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]], group: str) -> npt.NDArray[np.bool_]:
    """Which rows are not what was written: bool [R]. ``columns`` hold the group's own column too."""
    different: npt.NDArray[np.bool_] = checksums(columns, group) != np.asarray(columns[group], dtype=np.uint32)
    return different


def _parts(column: Sequence[Any] | npt.NDArray[Any]) -> list[bytes | memoryview]:
    """A column as the bytes of each row."""
    if isinstance(column, np.ndarray) and column.ndim > 1:
        if not len(column):
            return []
        rows = np.ascontiguousarray(column).reshape(len(column), -1).view(np.uint8)
        return [row.data for row in rows]
    return [str(value).encode("utf-8", "surrogatepass") for value in column]


def _checksum(*parts: bytes | memoryview) -> int:
    """CRC-32 over parts, each with an end that none of them holds."""
    total = 0
    for part in parts:
        total = zlib.crc32(b"\0", zlib.crc32(part, total))
    return total


def lexical_text(text: str, title: str = "") -> str:
    """The words that a text search compares: the title, which often names what a passage is about, then the text.

    Composed (NFC), without invisible characters, half surrogate pairs replaced; behind them, what the index does not
    make by itself: words without the accents and points of other scripts than Latin, and pairs of characters of
    scripts that write no blanks or join particles to words. A question is a text without a title.
    """
    words = _composed(text, title)
    more = [] if words.isascii() else [each for chunk in _CHUNK.findall(words) for each in _other_words(chunk)]
    return "\n".join([words, " ".join(more)]) if more else words


def is_lexical_text(lexical: str, text: str, title: str) -> bool:
    """True if ``lexical`` is what a store holds of a text; older ones hold the words alone."""
    return lexical == lexical_text(text, title) or lexical == _composed(text, title)


def _composed(text: str, title: str) -> str:
    whole = (f"{title}\n{text}" if title else text).encode("utf-8", "replace").decode("utf-8")
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", whole))


def _other_words(chunk: str) -> Iterator[str]:
    """Other spellings by which a stretch without blanks is found; few have any."""
    parted = unicodedata.normalize("NFD", _HALF_WIDTH.sub(lambda kana: unicodedata.normalize("NFKC", kana[0]), chunk))
    bare = unicodedata.normalize("NFC", _MARKS.sub("", parted)).casefold().translate(_SAME_LETTER)
    by_itself = unicodedata.normalize("NFC", _LATIN_MARKS.sub("", parted)).lower()  # what the index makes of it
    if bare != by_itself or "\u0130" in chunk:
        yield bare
    for run in _UNSPACED.findall(bare):
        yield from (run[start : start + 2] for start in range(max(1, len(run) - 1)))
