"""English questions as far as a follow-up needs them: words, their closed classes, noun phrases.

Word lists and a few rules, no dictionary. Knows one sentence; ``conversation`` knows what was said before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

_Kind = Literal[
    "question", "be", "do", "have", "determiner", "preposition", "conjunction", "pronoun", "adverb", "clitic", "mark",
    "identifier", "number", "name", "word",
]  # fmt: skip
"""``question`` is who, what, …; ``do`` also stands for can, will, must; ``clitic`` is 's, n't; ``word`` any other."""


def word_set(words: str) -> frozenset[str]:
    """The words of a list that is written in one string."""
    return frozenset(words.split())


_QUESTION_WORDS = word_set("who whom whose what which when where why how")
_CLASSES: tuple[tuple[_Kind, frozenset[str]], ...] = (
    ("question", _QUESTION_WORDS),
    ("be", word_set("is are was were be been being am isn aren wasn weren")),
    (
        "do",
        word_set(
            "do does did don doesn didn can could will would shall should may might must cannot couldn won wouldn "
            "shouldn"
        ),
    ),
    ("have", word_set("has have had hasn haven hadn")),
    ("pronoun", word_set("i you we me us it they them he she him hers theirs it itself themselves one ones")),
    (
        "determiner",
        word_set("the a an this that these those its their his her my your our another every each any some"),
    ),
    (
        "preposition",
        word_set(
            "of in on at to for from with by about into through during after before between under over without within "
            "as than like per via against near inside outside behind above below since until"
        ),
    ),
    ("conjunction", word_set("and or but if because while although though unless whether so once")),
    (
        "adverb",
        word_set(
            "not only also just still ever never often usually already there here then now again too much many more "
            "most less least very really exactly please yes no ok okay instead else both all"
        ),
    ),
)
_KINDS: dict[str, _Kind] = {word: kind for kind, words in reversed(_CLASSES) for word in words}
# Words of English alone: "in", "is" and "was" are also German, "he" Spanish, "on" French.
_ENGLISH = _QUESTION_WORDS | word_set(
    "the does did has have are were can should would could and of with from this that these it its they their there "
    "about is been"
)
_CALENDAR = word_set(
    "january february march april may june july august september october november december monday tuesday wednesday "
    "thursday friday saturday sunday"
)
_COMMANDS = word_set(
    "tell explain describe list name give show say define compare summarise summarize please find state mention ok "
    "okay yes no thanks thank hello hi sorry well"
)
_PARTICIPLES = word_set(
    "built made sunk found held kept written sold born known called begun broken bought brought caught chosen cut done "
    "drawn driven eaten fed given gone grown hidden hit hung laid led left lit lost meant met paid put read run seen "
    "sent set shown shut sold sung taken taught thrown told won worn wound"
)
_PREDICATES = word_set(
    "true false safe big large old new high tall long deep wide heavy loud loudest common good better"
)

# A verbless question of another language is not to be read as English.
_FOREIGN = word_set(
    "und oder y et ou och og der die das den dem des ein eine el los las le les il une por para pour für zu"
)
_LONGEST_PHRASE = 7  # words of a noun phrase that is a whole message

_TOKEN = re.compile(
    r"""(?P<quoted>`[^`\n]+`|"[^"\n]+"|“[^”\n]+”)"""
    r"""|(?P<clitic>['’](?:s|re|ll|ve|d|t|m)\b)"""
    r"""|(?P<word>--?\w[\w.=:/+-]*\w|[\w/~][\w./:@#+=\\-]*\w(?:\(\))?|\w)"""
    r"""|(?P<mark>[^\w\s])"""
)
_IDENTIFIER = re.compile(r"-{1,2}\w.*|.*[_=@#\\/:+.()].*|(?=.*\d)(?=.*[^\W\d]).*|[a-z][^\W\d_]*[A-Z].*")
_NUMBER = re.compile(r"[\d.,:/-]+")


@dataclass(frozen=True, slots=True)
class Word:
    """A word or mark of a sentence.

    Attributes:
        text: as written.
        start: its first character in the sentence.
        kind: its class.
    """

    text: str
    start: int
    kind: _Kind

    @property
    def end(self) -> int:
        """One past its last character."""
        return self.start + len(self.text)

    @property
    def lower(self) -> str:
        """The word in lower case."""
        return self.text.lower()


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """A noun phrase that names something: with an article, a name or an identifier in it.

    Attributes:
        sentence: the sentence it stands in.
        words: its words; a chain ("the valve of the pump") is one phrase.
    """

    sentence: str
    words: tuple[Word, ...]

    @property
    def start(self) -> int:
        """Its first character in the sentence."""
        return self.words[0].start

    @property
    def end(self) -> int:
        """One past its last character."""
        return self.words[-1].end

    @property
    def text(self) -> str:
        """The phrase as written."""
        return self.sentence[self.start : self.end]

    @property
    def parts(self) -> tuple[NounPhrase, ...]:
        """The links of a chain: "the valve" and "the pump"."""
        links: list[list[Word]] = [[]]
        for word in self.words:
            if word.lower == "of" and links[-1]:
                links.append([])
            else:
                links[-1].append(word)
        return tuple(NounPhrase(self.sentence, tuple(link)) for link in links if link)

    @property
    def head(self) -> str:
        """The common noun that says what it is, in the singular; empty for a name alone."""
        last = self.parts[0].words[-1]
        return singular(last.lower) if last.kind == "word" else ""

    @property
    def named(self) -> bool:
        """Whether a name or an identifier is in it."""
        return any(word.kind in {"name", "identifier"} for word in self.words)

    @property
    def article(self) -> bool:
        """Whether it begins with an article or another determiner."""
        return self.words[0].kind == "determiner"


def words_of(sentence: str, *, quotation: bool = False) -> tuple[Word, ...]:
    """The words and marks of a sentence.

    Args:
        sentence: in English, or what is to be told from it.
        quotation: a stretch of a text, whose first word is capital only if it is a name.
    """
    matches = list(_TOKEN.finditer(sentence))
    kinds = [_kind(match) for match in matches]
    for place, match in enumerate(matches):
        if kinds[place] == "name" and not quotation and _opens(kinds, place):
            follows = kinds[place + 1 : place + 2]
            if match[0].istitle() and (follows not in (["name"], ["identifier"]) or match[0].lower() in _COMMANDS):
                kinds[place] = "adverb" if match[0].lower() in _COMMANDS else "word"
    return tuple(Word(match[0], match.start(), kind) for match, kind in zip(matches, kinds, strict=True))


def noun_phrases(words: Sequence[Word], sentence: str) -> list[NounPhrase]:
    """The noun phrases of a sentence that have an article, a name or an identifier, in order."""
    phrases: list[NounPhrase] = []
    place = 0
    while place < len(words):
        last = _run(words, place)
        if last == place:
            place += 1
            continue
        end = last
        while (
            words[end : end + 1]
            and words[end].lower == "of"
            and (link := _run(words, end + 1, any_word=True)) > end + 1
        ):
            end = link
        kept = _without_predicate(words, place, end)
        phrases.append(NounPhrase(sentence, tuple(words[place:kept])))
        place = end
    return phrases


def singular(noun: str) -> str:
    """A noun without the s of its plural."""
    return noun[:-1] if len(noun) > 3 and noun.endswith("s") and not noun.endswith("ss") else noun


def is_english(words: Sequence[Word]) -> bool:
    """Whether a sentence has a word that English alone has."""
    return any(word.lower in _ENGLISH for word in words)


def is_foreign(words: Set[str]) -> bool:
    """Whether a text's words, in small letters, are those of another language."""
    return not words.isdisjoint(_FOREIGN) and not words >= {"the", "of"}


def is_phrase(words: Sequence[Word]) -> bool:
    """Whether words are a noun phrase by themselves: no verb that can be told, no question word, no pronoun."""
    said = [word for word in words if word.kind not in {"mark", "clitic"}]
    kinds = {word.kind for word in said}
    outside = {"be", "do", "have", "question", "pronoun", "conjunction"}
    if not said or len(said) > _LONGEST_PHRASE or kinds & outside or {w.lower for w in said} & (_FOREIGN):
        return said[-1].lower == "one" and len(said) == 3 and said[1].lower == "other" if said else False
    commands = {"tell", "explain", "describe", "list", "show", "give", "thanks", "hello", "hi", "yes", "no", "help"}
    return (
        said[0].lower not in commands
        and said[0].lower not in {"this", "that", "these", "those"}
        and kinds != {"adverb"}
    )


def is_plural(noun: str) -> bool:
    """Whether a noun has the s of a plural."""
    return singular(noun) != noun


def is_subject(words: Sequence[Word], phrase: NounPhrase) -> bool:
    """Whether a noun phrase follows its verb's auxiliary, as subjects of questions do."""
    place = words.index(phrase.words[0])
    return place > 0 and words[place - 1].kind in {"be", "do", "have"}


def follows_preposition(words: Sequence[Word], phrase: NounPhrase) -> bool:
    """Whether a noun phrase of a sentence hangs on a preposition."""
    place = words.index(phrase.words[0])
    return any(word.kind == "preposition" for word in words[max(0, place - 2) : place])


def without_capital(phrase: str) -> str:
    """A noun phrase as it stands inside a sentence."""
    return re.sub(r"^(?:The|An?)(?=\s)", lambda article: article[0].lower(), phrase)


def with_capital(text: str) -> str:
    """A text as a sentence begins."""
    return text[:1].upper() + text[1:]


def _kind(match: re.Match[str]) -> _Kind:
    text = match[0]
    if match.lastgroup in {"clitic", "mark"}:
        return "clitic" if match.lastgroup == "clitic" else "mark"
    if text.lower() in _KINDS and text != "IT":
        return _KINDS[text.lower()]
    if text.lower() in {"a.m", "p.m"} or _NUMBER.fullmatch(text) or text.lower() in _CALENDAR:
        return "number"
    if match.lastgroup == "quoted" or (_IDENTIFIER.fullmatch(text) and text.lower() != "and/or"):
        return "identifier"
    return "name" if text[0].isupper() else "word"


def _opens(kinds: Sequence[_Kind], place: int) -> bool:
    """Whether a word opens a sentence, where any is capital."""
    return place == 0 or kinds[place - 1] == "mark" or (place == 1 and kinds[0] == "conjunction")


def _run(words: Sequence[Word], start: int, *, any_word: bool = False) -> int:
    """One past the last word of the noun phrase that begins at a word; ``start`` itself where none does."""
    place = start
    if words[place : place + 1] and words[place].lower in {"the", "a", "an"}:
        place += 1
    elif not (words[place : place + 1] and (words[place].kind in {"name", "identifier"} or any_word)):
        return start
    first = place
    bare = first == start  # a word with s behind a bare name is rather its verb: "PyEphem holds"
    while place < len(words) and (
        (words[place].kind == "word" and not (bare and place > first and is_plural(words[place].lower)))
        or words[place].kind in {"name", "identifier", "number"}
        or (words[place].kind == "clitic" and words[place].text[1:] == "s" and place > first)
    ):
        place += 1
    while place > first and words[place - 1].kind == "clitic":
        place -= 1
    return place if place > first else start


def _without_predicate(words: Sequence[Word], start: int, end: int) -> int:
    """Where a noun phrase ends that seems to reach as far as ``end``: its clause's verb, if lower-case, looks alike.

    After "does" the verb follows the subject, after "is" a participle or an adjective may.
    """
    opens = max((place + 1 for place in range(start, end) if words[place].lower == "of"), default=start)
    content = [word for word in words[opens:end] if word.kind != "determiner"]
    last = words[end - 1]
    if len(content) < 2 or last.kind != "word":
        return end
    helper = words[start - 1].kind if start else "mark"
    described = last.lower.endswith(("ed", "ing", "able", "ible")) or last.lower in _PARTICIPLES | _PREDICATES
    if helper == "do" or described:
        return end - 1
    return end
