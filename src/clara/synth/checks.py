"""The deterministic checks of pairs and paraphrases: no model, no server.

Each gives a fault with a named reason, in words that the language model can act on, or None. Language is told apart by
simple tests: letters in a script that the passage does not use and, for the languages whose commonest short words are
listed here, those words; a question is too short for many of them, but hardly any is without one of its own language.
Languages that share a script and are not listed are not told apart.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from clara.synth.drafts import DraftFault, Pair, SourcePassage
from clara.synth.settings import CheckSettings
from clara.synth.words import (
    content_stems,
    longest_common_run,
    names,
    numbers,
    share_found,
    stem,
    stems,
    words,
)

NUMBER_REASON = "number_not_in_passage"
_YES_NO = frozenset({"yes", "no"})
_SLACK = 10  # words: a paraphrase of a sentence of six easily has sixteen
_MOST_COPIED = 0.6  # of a short passage, where the allowed number of words would be all of it
_SHOWN = 8
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


def check_pair(
    pair: Pair, passage: SourcePassage, accepted: Sequence[Pair], settings: CheckSettings, *, inferred: bool = False
) -> DraftFault | None:
    """The first fault of a pair.

    Args:
        pair: the pair.
        passage: what it was written about.
        accepted: pairs of any kind that the passage already has.
        settings: limits.
        inferred: the answer may follow from the passage without standing in it ("24 years later").

    Returns:
        The fault, or None if every check passes.
    """
    return (
        _length(pair, settings)
        or _foreign(f"{pair.question} {pair.answer}", passage, settings)
        or _foreign_question(pair.question, passage)
        or _given_away(pair)
        or (None if inferred else _unknown_number(pair, passage))
        or check_duplicate(pair, accepted)
    )


def check_paraphrase(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    """The first fault of a paraphrase, as ``check_pair``."""
    return (
        _paraphrase_length(text, passage, settings)
        or _foreign(text, passage, settings)
        or check_copied(text, passage, settings)
        or _numbers_lost(text, passage, settings)
        or _number_invented(text, passage)
        or _names_lost(text, passage, settings)
    )


def check_duplicate(pair: Pair, accepted: Sequence[Pair]) -> DraftFault | None:
    """No accepted question of the same words, and none of the same stems with the same answer."""
    question, bag, answer = words(pair.question), sorted(set(stems(pair.question))), stems(pair.answer)
    for other in accepted:
        same_words = words(other.question) == question
        same_bag = sorted(set(stems(other.question))) == bag and stems(other.answer) == answer
        if same_words or same_bag:
            return DraftFault("duplicate_question", f"this question was asked already: {other.question}")
    return None


def check_copied(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    """The longest run of words that paraphrase and passage share stays short."""
    source, copy = words(passage.text), words(text)
    start, length = longest_common_run(source, copy)
    allowed = max(settings.common_run_words, int(settings.common_run_share * len(source)))
    if length <= min(allowed, _MOST_COPIED * len(source)):
        return None
    shown = " ".join(source[start : start + min(length, 12)])
    return DraftFault("paraphrase_is_copy", f"{length} words in a row are copied (“{shown} …”): reorder and reword")


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


def _length(pair: Pair, settings: CheckSettings) -> DraftFault | None:
    for name, text, (fewest, most) in (
        ("question", pair.question, settings.question_words),
        ("answer", pair.answer, settings.answer_words),
    ):
        count = len(words(text))
        if not fewest <= count <= most:
            return DraftFault("length", f"the {name} must have {fewest} to {most} words, it has {count}")
    return None


def _paraphrase_length(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    fewest, most = settings.paraphrase_share
    count, length = len(words(text)), len(words(passage.text))
    if fewest * length <= count <= most * length + _SLACK:
        return None
    return DraftFault(
        "length", f"the paraphrase has {count} words, the passage {length}: keep to about the same length"
    )


def _given_away(pair: Pair) -> DraftFault | None:
    """The answer's words do not stand in the question, except where the question offers a choice."""
    question, answer = words(pair.question), words(pair.answer)
    offers_choice = "or" in question or bool(_YES_NO & set(answer[:1]))
    if offers_choice or not content_stems(pair.answer) or not _contains_run(question, answer):
        return None
    return DraftFault("answer_in_question", f"the question contains its answer “{pair.answer}”")


def _unknown_number(pair: Pair, passage: SourcePassage) -> DraftFault | None:
    """Every number of two or more digits in the answer is in the passage, its title or the question.

    One-digit numbers may be counts ("three of them"), and stay a matter for the judge.
    """
    known = set(stems(passage.text)) | set(stems(passage.title)) | set(stems(pair.question))
    invented = sorted(number for number in numbers(pair.answer) - known if len(number) > 1)
    return (
        DraftFault(NUMBER_REASON, f"the passage does not state the number {', '.join(invented)}") if invented else None
    )


def _numbers_lost(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    """Enough of the passage's numbers are kept, written as digits or words."""
    wanted, present = sorted(numbers(passage.text)), set(stems(text))
    if share_found(wanted, present) >= settings.numbers_kept:
        return None
    lost = [word for word in wanted if word not in present]
    return DraftFault("numbers_lost", f"these numbers of the passage are lost: {_listed(lost)}")


def _number_invented(text: str, passage: SourcePassage) -> DraftFault | None:
    """No number of two or more digits that the passage and its title do not have."""
    known = set(stems(passage.text)) | set(stems(passage.title))
    invented = sorted(word for word in numbers(text) - known if len(word) > 1)
    return (
        DraftFault("number_invented", f"these numbers are not in the passage: {_listed(invented)}")
        if invented
        else None
    )


def _names_lost(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    """Enough of the words that the passage capitalises inside its sentences are kept."""
    wanted, present = sorted(names(passage.text)), set(stems(text))
    lost = [name for name in wanted if stem(name) not in present]
    if len(lost) <= (1 - settings.names_kept) * len(wanted):
        return None
    return DraftFault("names_lost", f"these names of the passage are lost: {_listed(lost)}")


def _foreign(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    known = _scripts(f"{passage.title} {passage.text}")
    found = _scripts(text)
    foreign = sum(count for script, count in found.items() if script not in known)
    if foreign > settings.foreign_letters * max(1, sum(found.values())):
        return DraftFault("wrong_language", "write in the language of the passage")
    wanted, got = language_of(passage.text), language_of(text)
    return _wrong_language(wanted, got) if wanted and got and wanted != got else None


def _foreign_question(question: str, passage: SourcePassage) -> DraftFault | None:
    """No word of a listed language in a question that has none of the passage's."""
    wanted, asked = language_of(passage.text), set(words(question))
    if wanted is None or asked & _OWN[wanted]:
        return None
    got = next((language for language, listed in _COMMON.items() if language != wanted and asked & listed), None)
    return _wrong_language(wanted, got) if got else None


def _wrong_language(wanted: str, got: str) -> DraftFault:
    return DraftFault("wrong_language", f"the passage is {wanted}, this is {got}: write in the language of the passage")


@lru_cache(maxsize=256)
def _scripts(text: str) -> Counter[str]:
    return Counter(_script(char) for char in text if char.isalpha())


@lru_cache(maxsize=8192)
def _script(char: str) -> str:
    """The script of a letter: the first word of its Unicode name, Japanese and Chinese signs taken together."""
    name = unicodedata.name(char, "UNKNOWN").split(maxsplit=1)[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "CJK") else name


def _listed(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (" …" if len(items) > _SHOWN else "")


def _contains_run(text: Sequence[str], run: Sequence[str]) -> bool:
    """Whether ``run`` occurs in ``text`` as consecutive words."""
    width = len(run)
    return width > 0 and any(list(text[i : i + width]) == list(run) for i in range(len(text) - width + 1))
