"""Words, stems, numbers, names and sentences of a text: what the checks and the lexical judge compare.

Rules of thumb for English that do no harm elsewhere: no model, no dictionary, no network. Text without spaces
between words (Chinese, Japanese) is compared by pairs of characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:st|nd|rd|th|s)?")
_SENTENCE_END = re.compile(r"[.!?]+[\"”’')\]]*\s+|[。！？]+[」』）]*|\n\s*\n")
_UNSPACED = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]+")

_HIRAGANA = re.compile(r"[\u3041-\u309f]")  # particles and endings of Japanese, not its nouns and names

_LISTED_STOP_WORDS = """
    a an the of in on at to for from by with and or but nor is are was were be been being am do does did doing have has
    had having it its this that these those there their theirs them they he she his her hers him i me my we us our you
    your who whom whose which what when where why how much many as not no than then so such if into onto upon about
    also can could will would may might must shall should during after before between through over under again only
    own same other more most some any each both all very just s t d ll re ve m
"""
_STOP_WORDS = frozenset(_LISTED_STOP_WORDS.split())
_CARDINALS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {
    **{word: str(value) for value, word in enumerate(_CARDINALS.split())},
    **{word: str(value) for value, word in enumerate(_ORDINALS.split(), start=1)},
    **{word: str(10 * value) for value, word in enumerate(_TENS.split(), start=2)},
    "once": "1",
    "twice": "2",
}
# Longest first: only one ending is cut.
_ENDINGS = ("ations", "ation", "ingly", "ments", "edly", "ings", "ment", "ness", "ies", "ing", "ed", "es", "ly", "er",
            "or", "al", "s", "e", "y")  # fmt: skip
_LEAST_STEM = 3  # letters left when an ending is cut: "moved" and "moving" meet, "king" stays
_STEM_LETTERS = 6  # "compress", "compression" and "compressor" meet; unlike words of equal beginning rarely do


def words(text: str) -> list[str]:
    """The words of ``text``, lower case, in order; numbers keep their points and commas."""
    found: list[str] = []
    # One spelling of accents: extracted text often has them as characters of their own, replies do not.
    for match in _WORD.finditer(unicodedata.normalize("NFC", text).lower()):
        word = match.group()
        found.extend(_split_unspaced(word) if _UNSPACED.search(word) else [word])
    return found


def stems(text: str) -> list[str]:
    """``words`` reduced so that inflected forms, and numbers however written, compare equal."""
    return [stem(word) for word in words(text)]


def content_stems(text: str) -> list[str]:
    """``stems`` of the words that carry meaning: no articles, pronouns, auxiliaries, question words, kana endings."""
    return [stem(word) for word in words(text) if word not in _STOP_WORDS and not _HIRAGANA.search(word)]


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """A crude stem of one lower-case word; ``1,000`` gives ``1000``, ``15th`` 15, ``twelve`` 12."""
    if word in _NUMBER_WORDS:
        return _NUMBER_WORDS[word]
    if word[0].isdigit():
        plain = word.replace(",", "")
        match = _NUMBER.fullmatch(plain)
        return match.group(1) if match else plain
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _LEAST_STEM:
            word = word[: -len(ending)]
            break
    return word[:_STEM_LETTERS]


def numbers(text: str) -> set[str]:
    """The numbers that ``text`` writes with digits, in plain form (``1,000`` and ``1000`` are one number)."""
    return {stem(word) for word in words(text) if word[0].isdigit() and stem(word).replace(".", "").isdigit()}


def names(text: str) -> set[str]:
    """Lower-case words that ``text`` capitalises inside a sentence: people, places, titles."""
    found: set[str] = set()
    for sentence in sentences(text):
        spelled = [match.group() for match in _WORD.finditer(sentence)]
        found.update(
            word.lower() for place, word in enumerate(spelled) if word[0].isupper() and (place > 0 or word.isupper())
        )
    return {word for word in found if len(word) > 1 and word not in _STOP_WORDS}


def sentences(text: str) -> list[str]:
    """The sentences of ``text``, stripped; cut after ``.``, ``!``, ``?`` and between paragraphs."""
    cuts = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    parts = (text[start:end].strip() for start, end in pairwise(cuts))
    return [part for part in parts if part]


def share_found(wanted: Sequence[str], available: frozenset[str] | set[str]) -> float:
    """Share of ``wanted`` that is in ``available``, between 0 and 1; 1 if nothing is wanted."""
    return sum(word in available for word in wanted) / len(wanted) if wanted else 1.0


def longest_common_run(left: Sequence[str], right: Sequence[str]) -> tuple[int, int]:
    """The longest run of consecutive words in both.

    Returns:
        Where the run begins in ``left``, and its length in words; length 0 if nothing is shared.
    """
    places: dict[str, list[int]] = {}
    for j, word in enumerate(right):
        places.setdefault(word, []).append(j)
    best_end, best = 0, 0
    previous: dict[int, int] = {}  # by the place in ``right`` where a run ends, its length
    for i, word in enumerate(left, start=1):
        current = {j: previous.get(j - 1, 0) + 1 for j in places.get(word, ())}
        longest = max(current.values(), default=0)
        if longest > best:
            best_end, best = i, longest
        previous = current
    return best_end - best, best


def _split_unspaced(word: str) -> list[str]:
    """Pairs of neighbouring characters for the parts of ``word`` written without spaces, the rest as it is."""
    parts: list[str] = []
    end = 0
    for match in _UNSPACED.finditer(word):
        parts.append(word[end : match.start()])
        run = match.group()
        parts.extend([run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)])
        end = match.end()
    parts.append(word[end:])
    return [part for part in parts if part]
