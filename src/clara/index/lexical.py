"""The words that a text search compares: of passages and of questions, normalised alike."""

from __future__ import annotations

import re
import unicodedata

from clara.records import Passage

# Characters that are not seen and part a word in two or keep two spellings of it apart: soft hyphen, combining
# grapheme joiner, zero-width space, non-joiner and joiner, word joiner and invisible operators, byte order mark.
_INVISIBLE = re.compile("[\u00ad\u034f\u200b-\u200d\u2060-\u2064\ufeff]")


def lexical_text(passage: Passage) -> str:
    """The words a text search sees: the title, which often names what the passage is about, then the text."""
    return normalised(f"{passage.title}\n{passage.text}" if passage.title else passage.text)


def normalised(text: str) -> str:
    """A text as words are compared: composed (NFC), without invisible characters, half surrogate pairs replaced."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", whole))
