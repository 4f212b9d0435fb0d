"""Checks without a model: words of a text, deterministic checks of pairs and paraphrases, and the lexical judge.

Words, stems, numbers, names and sentences follow rules of thumb for English that do no harm elsewhere. Text without
spaces between words (Chinese, Japanese) is compared by character bigrams.

Each check gives a fault with a named reason, in words that the language model can act on, or None. A language is known
by letters in a script that the passage does not use and, for the languages listed here, by their commonest short words;
a question is too short for many of them, but hardly any is without one of its own language.

The lexical judge compares the content words of an item with those of the passage. It recognises items about another
passage, or made up from nothing; it cannot see that two right words stand in a wrong relation. docs/synth.md has its
measured accuracy.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import pairwise

from clara.synth.drafts import Draft, DraftFault, Pair, SourcePassage, Verdict
from clara.synth.settings import CheckSettings, LexicalSettings

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

_NUMBER_REASON = "number_not_in_passage"
_ANSWER_REASON = "answer_not_supported"
_QUESTION_REASON = "question_off_passage"
OFF_PASSAGE = frozenset({_NUMBER_REASON, _ANSWER_REASON, _QUESTION_REASON})
"""Reasons that mark a pair about something else."""
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
_TOUCHED = 0.5  # a sentence counts as covered when a pair holds this share of its content words, or its answer


def words(text: str) -> list[str]:
    """The words of ``text``, lower case, in order; numbers keep their points and commas."""
    split: list[str] = []
    # One spelling of accents: extracted text often has them as characters of their own, replies do not.
    for word in _WORD.findall(unicodedata.normalize("NFC", text).lower()):
        split.extend(_split_unspaced(word) if _UNSPACED.search(word) else [word])
    return split


def _stems(text: str) -> list[str]:
    """``words`` reduced so that inflected forms, and numbers however written, compare equal."""
    return [_stem(word) for word in words(text)]


def _content_stems(text: str) -> list[str]:
    """Stems of content words: no articles, pronouns, auxiliaries, question words, kana endings."""
    return [_stem(word) for word in words(text) if word not in _STOP_WORDS and not _HIRAGANA.search(word)]


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
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


def _numbers(text: str) -> set[str]:
    """The numbers that ``text`` writes with digits, in plain form (``1,000`` and ``1000`` are one number)."""
    return {_stem(word) for word in words(text) if word[0].isdigit() and _stem(word).replace(".", "").isdigit()}


def _names(text: str) -> set[str]:
    """Lower-case words that ``text`` capitalises inside a sentence: people, places, titles."""
    names: set[str] = set()
    for sentence in sentences(text):
        spelled = [match.group() for match in _WORD.finditer(sentence)]
        names.update(word.lower() for i, word in enumerate(spelled) if word[0].isupper() and (i > 0 or word.isupper()))
    return {word for word in names if len(word) > 1 and word not in _STOP_WORDS}


def sentences(text: str) -> list[str]:
    """The sentences of ``text``, stripped; cut after ``.``, ``!``, ``?`` and between paragraphs."""
    cuts = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    parts = (text[start:end].strip() for start, end in pairwise(cuts))
    return [part for part in parts if part]


def share_found(expected: Sequence[str], available: frozenset[str] | set[str]) -> float:
    """Share of ``expected`` that is in ``available``, between 0 and 1; 1 if nothing is expected."""
    return sum(word in available for word in expected) / len(expected) if expected else 1.0


def _split_unspaced(word: str) -> list[str]:
    """Bigrams of the parts of ``word`` written without spaces, the rest as it is."""
    parts: list[str] = []
    end = 0
    for match in _UNSPACED.finditer(word):
        parts.append(word[end : match.start()])
        run = match.group()
        parts.extend([run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)])
        end = match.end()
    parts.append(word[end:])
    return [part for part in parts if part]


def check_pair(
    pair: Pair, passage: SourcePassage, accepted: Sequence[Pair], settings: CheckSettings, *, inferred: bool = False
) -> DraftFault | None:
    """The first fault of a pair, or None; ``accepted`` are pairs of any kind that the passage already has.

    An ``inferred`` answer may follow from the passage without standing in it ("24 years later").
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
    """The first fault of a paraphrase, or None."""
    return (
        _paraphrase_length(text, passage, settings)
        or _foreign(text, passage, settings)
        or _check_copied(text, passage, settings)
        or _numbers_lost(text, passage, settings)
        or _number_invented(text, passage)
        or _names_lost(text, passage, settings)
    )


def check_duplicate(pair: Pair, accepted: Sequence[Pair]) -> DraftFault | None:
    """No accepted question of the same words, and none of the same stems with the same answer."""
    question, bag, answer = words(pair.question), sorted(set(_stems(pair.question))), _stems(pair.answer)
    for other in accepted:
        same_words = words(other.question) == question
        same_bag = sorted(set(_stems(other.question))) == bag and _stems(other.answer) == answer
        if same_words or same_bag:
            return DraftFault("duplicate_question", f"this question was asked already: {other.question}")
    return None


def _check_copied(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    """The longest run of words that paraphrase and passage share stays short."""
    source, copy = words(passage.text), words(text)
    run = SequenceMatcher(None, source, copy, autojunk=False).find_longest_match()
    allowed = max(settings.common_run_words, int(settings.common_run_share * len(source)))
    if run.size <= min(allowed, _MOST_COPIED * len(source)):
        return None
    shown = " ".join(source[run.a : run.a + min(run.size, 12)])
    return DraftFault("paraphrase_is_copy", f"{run.size} words in a row are copied (“{shown} …”): reorder and reword")


@lru_cache(maxsize=256)
def _language_of(text: str) -> str | None:
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
    if offers_choice or not _content_stems(pair.answer) or f" {' '.join(answer)} " not in f" {' '.join(question)} ":
        return None
    return DraftFault("answer_in_question", f"the question contains its answer “{pair.answer}”")


def _unknown_number(pair: Pair, passage: SourcePassage) -> DraftFault | None:
    """Every number of two or more digits in the answer is in the passage, its title or the question.

    One-digit numbers may be counts ("three of them"), and are left to the judge.
    """
    known = _stems_of(passage) | set(_stems(pair.question))
    invented = sorted(number for number in _numbers(pair.answer) - known if len(number) > 1)
    if not invented:
        return None
    return DraftFault(_NUMBER_REASON, f"the passage does not state the number {', '.join(invented)}")


def _numbers_lost(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    """Enough of the passage's numbers are kept, written as digits or words."""
    numbers, present = sorted(_numbers(passage.text)), set(_stems(text))
    if share_found(numbers, present) >= settings.numbers_kept:
        return None
    lost = [word for word in numbers if word not in present]
    return DraftFault("numbers_lost", f"these numbers of the passage are lost: {_listed(lost)}")


def _number_invented(text: str, passage: SourcePassage) -> DraftFault | None:
    """No number of two or more digits that the passage and its title do not have."""
    invented = sorted(word for word in _numbers(text) - _stems_of(passage) if len(word) > 1)
    if not invented:
        return None
    return DraftFault("number_invented", f"these numbers are not in the passage: {_listed(invented)}")


def _names_lost(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    """Enough of the words that the passage capitalises inside its sentences are kept."""
    names, present = sorted(_names(passage.text)), set(_stems(text))
    lost = [name for name in names if _stem(name) not in present]
    if len(lost) <= (1 - settings.names_kept) * len(names):
        return None
    return DraftFault("names_lost", f"these names of the passage are lost: {_listed(lost)}")


def _foreign(text: str, passage: SourcePassage, settings: CheckSettings) -> DraftFault | None:
    known, scripts = _scripts(f"{passage.title} {passage.text}"), _scripts(text)
    foreign = sum(count for script, count in scripts.items() if script not in known)
    if foreign > settings.foreign_letters * max(1, scripts.total()):
        return DraftFault("wrong_language", "write in the language of the passage")
    expected, got = _language_of(passage.text), _language_of(text)
    return _wrong_language(expected, got) if expected and got and expected != got else None


def _foreign_question(question: str, passage: SourcePassage) -> DraftFault | None:
    """No word of a listed language in a question that has none of the passage's."""
    expected, asked = _language_of(passage.text), set(words(question))
    if expected is None or asked & _OWN[expected]:
        return None
    got = next((language for language, listed in _COMMON.items() if language != expected and asked & listed), None)
    return _wrong_language(expected, got) if got else None


def _wrong_language(expected: str, got: str) -> DraftFault:
    detail = f"the passage is {expected}, this is {got}: write in the language of the passage"
    return DraftFault("wrong_language", detail)


@lru_cache(maxsize=256)
def _scripts(text: str) -> Counter[str]:
    return Counter(_script(char) for char in text if char.isalpha())


@lru_cache(maxsize=8192)
def _script(char: str) -> str:
    """The script of a letter: the first word of its Unicode name, Japanese and Chinese signs as one."""
    name = unicodedata.name(char, "UNKNOWN").split(maxsplit=1)[0].split("-")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "CJK") else name


def _listed(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (" …" if len(items) > _SHOWN else "")


@dataclass(frozen=True, slots=True)
class LexicalJudge:
    """Judges by shared content words (stems), after the checks."""

    settings: LexicalSettings

    def check_pair(self, pair: Pair, passage: SourcePassage, *, inferred: bool = False) -> DraftFault | None:
        """The fault of a pair that the passage does not support; ``inferred`` ones another judge reads too."""
        known = _stems_of(passage)
        asked = share_found(_content_stems(pair.question), known)
        if inferred and asked >= self.settings.inferred_support:
            return None
        if set(words(pair.answer)) <= _YES_NO:
            if asked >= self.settings.yes_no_support:
                return None
            return DraftFault(_QUESTION_REASON, "the question is not about this passage")
        # An answer of function words only ("his own") is compared whole.
        supported = share_found(_content_stems(pair.answer) or _stems(pair.answer), known)
        if supported < self.settings.answer_support:
            return DraftFault(_ANSWER_REASON, f"the passage does not state the answer “{pair.answer}”")
        if supported + asked < self.settings.joint_support:
            return DraftFault(_QUESTION_REASON, "question and answer are not about this passage")
        return None

    def check_paraphrase(self, text: str, passage: SourcePassage) -> DraftFault | None:
        """The fault of a text about something else than the passage."""
        kept = share_found(sorted(set(_content_stems(passage.text))), set(_stems(text)))
        if kept >= self.settings.paraphrase_support:
            return None
        return DraftFault("paraphrase_off_passage", "this says something else than the passage")

    def judge(self, passage: SourcePassage, draft: Draft) -> Verdict:
        """The verdict on a whole draft; ``missing`` holds the sentences that no pair touches."""
        wrong = []
        for letter, pairs in (("S", draft.simple), ("C", draft.complex)):
            for place, pair in enumerate(pairs, start=1):
                if fault := self.check_pair(pair, passage):
                    wrong.append(f"{letter}{place}: {fault.detail}")
        if draft.paraphrase and (fault := self.check_paraphrase(draft.paraphrase, passage)):
            wrong.append(f"P: {fault.detail}")
        parts = [part for part in sentences(passage.text) if _content_stems(part)]
        missing = tuple(part for part in parts if not _touched(part, draft))
        covered = len(parts) - len(missing) >= self.settings.coverage * len(parts)
        return Verdict(not wrong, covered, () if covered else missing, tuple(wrong))


@lru_cache(maxsize=256)
def _stems_of(passage: SourcePassage) -> frozenset[str]:
    return frozenset(_stems(passage.text)) | frozenset(_stems(passage.title))


def _touched(sentence: str, draft: Draft) -> bool:
    """A pair asks for something of this sentence."""
    content = _content_stems(sentence)
    known = set(content)
    for pair in (*draft.simple, *draft.complex):
        answer = _content_stems(pair.answer)
        if answer and share_found(answer, known) == 1.0 and known & set(_content_stems(pair.question)):
            return True
        if share_found(content, set(answer) | set(_content_stems(pair.question))) >= _TOUCHED:
            return True
    return False
