"""A reply in another language than its passage.

Simple tests: letters in a script that the passage does not use, and, for the languages whose commonest short words
are listed here, those words; a question is too short for many of them, but hardly any is without one of its own
language. Languages that share a script and are not listed are not told apart.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

from clara.synth.drafts import Pair, SourcePassage
from clara.synth.settings import CheckSettings
from clara.synth.words import words

REASON = "wrong_language"
_LISTED = {
    "English": "the of and to in is was that for with as his her on by from which what who when how where did does are "
    "do no so an or it its they be were has have had not but if",
    "German": "der die das und ist war wie wer wann welche wurde mit von den dem nicht ein eine auf für im zu sich so "
    "wo warum welchem welchen welches",
    "French": "le la les des et est dans que qui pour une du avec sur par quel quelle était ses aux il elle ne pas on "
    "où quand combien pourquoi quels quelles",
    "Spanish": "el los las y es en que por para una del con su fue cuál qué quién cómo cuándo se lo al más no la "
    "dónde cuánto cuánta cuántos cuántas cuáles",
    "Italian": "il gli e è di che per una della con nel nella fu chi quale quando come sono dei delle si non più la "
    "dove quanti quante quali",
    "Portuguese": "o os as e é em que por para uma do da dos das com foi qual quem quando como não se ao mais seu "
    "onde quantos quantas quais",
    "Dutch": "de het een en van is in op te dat die met voor was wie wat wanneer welke werd niet zijn aan door naar of "
    "waar hoeveel waarom",
}
_TIMES_LISTED = Counter(word for listed in _LISTED.values() for word in listed.split())
# A word of two languages tells neither.
_COMMON = {
    language: frozenset(word for word in listed.split() if _TIMES_LISTED[word] == 1)
    for language, listed in _LISTED.items()
}
_OWN = {language: frozenset(listed.split()) for language, listed in _LISTED.items()}
_CLEAR_WORDS = 3  # different ones: "Rio de Janeiro, Porto de Galinhas" is not Dutch
_CLEAR_LEAD = 2.0


def check_pair(pair: Pair, passage: SourcePassage, settings: CheckSettings) -> str | None:
    """Question and answer together, and the question by its few words."""
    return _check(f"{pair.question} {pair.answer}", passage, settings) or _check_question(pair.question, passage)


def check_paraphrase(text: str, passage: SourcePassage, settings: CheckSettings) -> str | None:
    """The paraphrase."""
    return _check(text, passage, settings)


@lru_cache(maxsize=256)
def language_of(text: str) -> str | None:
    """The listed language whose common words ``text`` clearly uses most, or None."""
    counts = Counter(words(text))
    hits = sorted(
        ((sum(counts[word] for word in listed), len(listed & counts.keys()), name) for name, listed in _COMMON.items()),
        reverse=True,
    )
    (best, distinct, language), (second, _, _) = hits[0], hits[1]
    return language if distinct >= _CLEAR_WORDS and best >= _CLEAR_LEAD * second else None


def _check(text: str, passage: SourcePassage, settings: CheckSettings) -> str | None:
    known = _scripts(f"{passage.title} {passage.text}")
    found = _scripts(text)
    foreign = sum(count for script, count in found.items() if script not in known)
    if foreign > settings.foreign_letters * max(1, sum(found.values())):
        return "write in the language of the passage"
    wanted, got = language_of(passage.text), language_of(text)
    return _told(wanted, got) if wanted and got and wanted != got else None


def _check_question(question: str, passage: SourcePassage) -> str | None:
    """No word of a listed language in a question that has none of the passage's."""
    wanted, asked = language_of(passage.text), set(words(question))
    if wanted is None or asked & _OWN[wanted]:
        return None
    got = next((language for language, listed in _COMMON.items() if language != wanted and asked & listed), None)
    return _told(wanted, got) if got else None


def _told(wanted: str, got: str) -> str:
    return f"the passage is {wanted}, this is {got}: write in the language of the passage"


@lru_cache(maxsize=256)
def _scripts(text: str) -> Counter[str]:
    return Counter(_script(char) for char in text if char.isalpha())


@lru_cache(maxsize=8192)
def _script(char: str) -> str:
    """The script of a letter: the first word of its Unicode name, Japanese and Chinese signs taken together."""
    name = unicodedata.name(char, "UNKNOWN").split(maxsplit=1)[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "CJK") else name
