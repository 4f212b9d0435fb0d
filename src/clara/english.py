"""English questions as far as a follow-up needs them: words, their closed classes, noun phrases, pronouns.

Word lists and a few rules, no dictionary. Knows one sentence; ``conversation`` knows what was said before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
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
    r"""|(?P<mark></\w+>|[^\w\s])"""  # the "/b" of "</b>" is no path
)
_IDENTIFIER = re.compile(r"-{1,2}\w.*|.*[_=@#\\/:+.()].*|(?=.*\d)(?=.*[^\W\d]).*|[a-z][^\W\d_]*[A-Z].*")
_NUMBER = re.compile(r"[\d.,:/-]+")

PRONOUNS: Mapping[str, str] = {
    **dict.fromkeys(("it", "its"), "thing"),
    **dict.fromkeys(("they", "them", "their", "theirs"), "many"),
    **dict.fromkeys(("he", "she", "him", "her", "his", "hers"), "person"),
}
"""Referents of pronouns: ``thing``, ``many`` or ``person``."""
POSSESSIVES = word_set("its their his her")
DEMONSTRATIVES = word_set("this that these those")
_NO_PHRASE_BEGINS_WITH = word_set("tell explain describe list show give thanks hello hi yes no help")
PEOPLE = word_set(
    "user operator owner author person man woman administrator maker inventor founder director president king queen "
    "composer manager mayor painter writer developer customer champion"
)
PAPERS = frozenset({"manual", "documentation", "document", "text", "book", "page", "guide", "handbook", "passage"})
_VERBS = word_set(
    "know say tell mean happen happens work works need needs do does see find use take make show matter matters apply "
    "applies change changes help helps differ cost costs include includes depend require explain install run start "
    "stop open close set"
)
DESCRIBED = frozenset({"possible", "true", "correct", "right", "wrong", "safe", "necessary", "so", "enough"})

_JUDGED = (
    r"(?:possible|impossible|necessary|required|needed|safe|unsafe|allowed|permitted|better|best|worse|worth|"
    r"recommended|advisable|advised|important|essential|true|common|normal|usual|customary|easy|easier|hard|harder|"
    r"difficult|useful|helpful|ok|okay|legal|illegal|enough|sufficient|likely|unlikely|good|bad|wise|fine|sensible|"
    r"dangerous|mandatory|compulsory|feasible|preferable|clear|known|said|believed|reported|assumed|sure|time|"
    r"forbidden|acceptable|reasonable|appropriate|practical|cheaper|faster)"
)
_COMPLEMENT = r"(?=.*\b(?:to|that|for|if|when|whether|how|why|\w+ing)\b)"
_EXPLETIVE = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:is|was|isn['’]t|wasn['’]t|be|been)\s+(?P<it>it)\s+(?:\w+\s+){{0,2}}?{_JUDGED}\b{_COMPLEMENT}",
        rf"\b(?:would|will|could|can|may|might|must|should)\s+(?P<it>it)\s+(?:\w+\s+)?be\s+{_JUDGED}\b{_COMPLEMENT}",
        rf"\b(?P<it>it)(?:\s+(?:is|was|will\s+be|would\s+be|may\s+be|has\s+been)|['’]s)\s+(?:\w+\s+)?{_JUDGED}\b"
        rf"{_COMPLEMENT}",
        rf"\b(?:make|makes|made|making|find|finds|found|consider|think)\s+(?P<it>it)\s+(?:\w+\s+)?{_JUDGED}\b",
        r"\b(?P<it>it)\s+(?:take|takes|took|taken|cost|costs|make\s+sense|help|hurt)\b.*\bto\b",
        r"\b(?P<it>it)\s+(?:called|mean|means|meant|matter|happen)\s+(?:when|if|that|to|for|in)\b",
        r"\b(?P<it>it)\s+(?:seems?|appears?|turns?\s+out|follows\s+that|rains?|snows?|raining|snowing|comes\s+to)\b",
        r"\b(?:what|who|why|how)\s+(?:is|was)\s+(?P<it>it)\s+(?:that|who|like\s+to)\b",
        r"\bis\s+(?P<it>it)\s+(?:that|because|the\s+case)\b",
        r"\b(?:what\s+time|how\s+late)\s+is\s+(?P<it>it)\b",
    )
]


@dataclass(frozen=True, slots=True)
class Word:
    """A word or mark of a sentence, which begins at character ``start``, and its class."""

    text: str
    start: int
    kind: _Kind

    @property
    def end(self) -> int:
        """Index one past its last character."""
        return self.start + len(self.text)

    @property
    def lower(self) -> str:
        """In lower case."""
        return self.text.lower()

    @property
    def singular(self) -> str:
        """A noun in lower case without the s of its plural."""
        noun = self.lower
        return noun[:-1] if len(noun) > 3 and noun.endswith("s") and not noun.endswith("ss") else noun

    @property
    def plural(self) -> bool:
        """True if a noun has the s of a plural."""
        return self.singular != self.lower


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """A noun phrase that names something: with an article, a name or an identifier in it.

    A chain ("the valve of the pump") is one phrase.
    """

    sentence: str
    words: tuple[Word, ...]

    @property
    def start(self) -> int:
        """Its first character in the sentence."""
        return self.words[0].start

    @property
    def end(self) -> int:
        """Index one past its last character."""
        return self.words[-1].end

    @property
    def text(self) -> str:
        """As written."""
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
        return last.singular if last.kind == "word" else ""

    @property
    def named(self) -> bool:
        """True if a name or an identifier is in it."""
        return self.has("name") or self.has("identifier")

    @property
    def article(self) -> bool:
        """True if it begins with an article or another determiner."""
        return self.words[0].kind == "determiner"

    def has(self, kind: _Kind) -> bool:
        """True if a word of a class is in it."""
        return any(word.kind == kind for word in self.words)


class Sentence:
    """A sentence taken apart: its words and marks.

    ``text`` is in English, or what is to be told from it. A ``quotation`` is a stretch of a text, whose first word is
    capital only if it is a name.
    """

    def __init__(self, text: str, *, quotation: bool = False) -> None:
        self.text = text
        self.words = _words_of(text, quotation=quotation)
        self.lowers = tuple(word.lower for word in self.words)

    @cached_property
    def phrases(self) -> list[NounPhrase]:
        """Its noun phrases that have an article, a name or an identifier, in order."""
        phrases: list[NounPhrase] = []
        words, place = self.words, 0
        while place < len(words):
            end = _run(words, place)
            if end == place:
                place += 1
                continue
            while self.lowers[end : end + 1] == ("of",) and (link := _run(words, end + 1, any_word=True)) > end + 1:
                end = link
            kept = _without_predicate(words, place, end)
            phrases.append(NounPhrase(self.text, tuple(words[place:kept])))
            place = end
        return phrases

    def is_english(self, but: Set[str] = frozenset()) -> bool:
        """True if it has a word that English alone has, some words not counted."""
        return any(word in _ENGLISH and word not in but for word in self.lowers)

    def is_phrase(self) -> bool:
        """True if it is a noun phrase by itself: no verb that can be told, no question word, no pronoun."""
        said = [word for word in self.words if word.kind not in {"mark", "clitic"}]
        kinds = {word.kind for word in said}
        outside = {"be", "do", "have", "question", "pronoun", "conjunction"}
        if not said or len(said) > _LONGEST_PHRASE or kinds & outside or {w.lower for w in said} & _FOREIGN:
            return [word.lower for word in said[1:]] == ["other", "one"]
        return said[0].lower not in _NO_PHRASE_BEGINS_WITH | DEMONSTRATIVES and kinds != {"adverb"}

    def asks_who(self) -> bool:
        """True if it asks for a person."""
        return any(word in {"who", "whose", "whom"} for word in self.lowers)

    def is_subject(self, phrase: NounPhrase) -> bool:
        """True if one of its noun phrases follows its verb's auxiliary, as subjects of questions do."""
        place = self.words.index(phrase.words[0])
        return place > 0 and self.words[place - 1].kind in {"be", "do", "have"}

    def is_small(self, place: int) -> bool:
        """True if a word is written small, or opens the sentence; else it is part of a title, or IT."""
        word = self.words[place].text
        opens = place == 0 or self.words[place - 1].kind in {"mark", "conjunction"}
        return word.islower() or (opens and word.istitle())

    def leads_out(self, place: int) -> bool:
        """True if a pronoun stands for something outside: neither for nothing nor for words of the sentence.

        For nothing: "is it possible to"; for its own words: "how is the pump stopped before it overheats?".
        """
        word = self.words[place]
        if word.lower == "it" and any(m.start("it") == word.start for e in _EXPLETIVE for m in e.finditer(self.text)):
            return False
        return not self._said_before(place)

    def _said_before(self, place: int) -> bool:
        words, pronoun = self.words, self.lowers[place]
        boundary = max((at for at in range(1, place) if _divides(words, at)), default=None)
        of_person = PRONOUNS[pronoun] == "person"
        if pronoun in POSSESSIVES or of_person:
            boundary = place
        if boundary is None:
            return False  # in one clause an object is another thing than the subject
        before = words[:boundary]
        phrases = [p for p in self.phrases if p.end <= before[-1].end] if before else []
        if of_person:
            named = any(p.named or p.head in PEOPLE for p in phrases)
            return named or _bare_subject(before) or _asks_for_a_person(words, place)
        if any(p.head not in PEOPLE | PAPERS for p in phrases) or _bare_subject(before):
            return True
        loose = [w for w in before if w.kind == "word" and w.lower not in _VERBS | PEOPLE | PAPERS]
        if PRONOUNS[pronoun] == "many":
            return any(noun.plural for noun in loose) or _asks_for_a_person(words, place)
        return boundary < place and bool(loose)

    def stands_alone(self, place: int) -> bool:
        """True if "that" is a pronoun, neither a conjunction nor the article of a noun."""
        before = self.words[place - 1].kind if place else "mark"
        after = self.words[place + 1] if place + 1 < len(self.words) else None
        if after is None or after.kind == "mark":
            return True
        if after.lower in {"of", "who", "which", "that", "one", "ones"}:
            return False
        if after.kind in {"be", "do", "have"}:
            return before in {"mark", "conjunction"}  # else it is relative: "a file that is"
        if after.kind in {"preposition", "adverb", "clitic", "conjunction"}:
            return before in {"mark", "be", "do", "have", "preposition", "conjunction"}
        if after.kind != "word":
            return False
        described = after.lower in DESCRIBED or after.lower.endswith(("ible", "able", "ful", "ous"))
        return (before == "be" and described) or (before == "do" and after.lower in _VERBS)


def is_foreign(words: Set[str]) -> bool:
    """True if a text's words, in small letters, are those of another language."""
    return not words.isdisjoint(_FOREIGN) and not words >= {"the", "of"}


def _words_of(sentence: str, *, quotation: bool) -> tuple[Word, ...]:
    matches = list(_TOKEN.finditer(sentence))
    kinds = [_kind(match) for match in matches]
    for place, match in enumerate(matches):
        if kinds[place] == "name" and not quotation and _opens(kinds, place):
            follows = kinds[place + 1 : place + 2]
            if match[0].istitle() and (follows not in (["name"], ["identifier"]) or match[0].lower() in _COMMANDS):
                kinds[place] = "adverb" if match[0].lower() in _COMMANDS else "word"
    return tuple(Word(match[0], match.start(), kind) for match, kind in zip(matches, kinds, strict=True))


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
    """True if a word opens a sentence, where any is capital."""
    return place == 0 or kinds[place - 1] == "mark" or (place == 1 and kinds[0] == "conjunction")


def _run(words: Sequence[Word], start: int, *, any_word: bool = False) -> int:
    """Index one past the last word of the noun phrase that begins at a word; ``start`` itself where none does."""
    place = start
    if words[place : place + 1] and words[place].lower in {"the", "a", "an"}:
        place += 1
    elif not (words[place : place + 1] and (words[place].kind in {"name", "identifier"} or any_word)):
        return start
    first = place
    bare = first == start  # a word with s behind a bare name is rather its verb: "PyEphem holds"
    while place < len(words) and (
        (words[place].kind == "word" and not (bare and place > first and words[place].plural))
        or words[place].kind in {"name", "identifier", "number"}
        or (words[place].kind == "clitic" and words[place].text[1:] == "s" and place > first)
    ):
        place += 1
    while place > first and words[place - 1].kind == "clitic":
        place -= 1
    return place if place > first else start


def _without_predicate(words: Sequence[Word], start: int, end: int) -> int:
    """End of a noun phrase that seems to reach as far as ``end``: its clause's verb, if lower-case, looks alike.

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


def _divides(words: Sequence[Word], place: int) -> bool:
    """True if a clause ends before a word. A question word that opens the message divides nothing."""
    word = words[place]
    if place == 0:
        return False
    if word.kind == "preposition" and words[place + 1].lower not in PRONOUNS:
        return word.lower in {"with", "without", "before", "after", "until", "since"} or words[
            place + 1
        ].lower.endswith("ing")
    return (
        word.kind in {"conjunction", "question"}
        or word.text in {",", ";", ":"}
        or word.lower in {"that", "before", "after", "until", "since", "than"}
    )


def _bare_subject(words: Sequence[Word]) -> bool:
    """True if a subject without an article is among the words: "did ireland gain"."""
    return any(one.kind in {"do", "be", "have"} and other.kind == "word" for one, other in pairwise(words)) and words[
        -1
    ].kind not in {"do", "be", "have"}


def _asks_for_a_person(words: Sequence[Word], place: int) -> bool:
    """True if the message asks who, or which coach, did something to what is his, hers or theirs."""
    opens = words[0].lower == "who" or (words[0].lower in {"which", "what"} and words[1].kind == "word")
    return opens and place > 1 and words[place - 1].kind not in {"be", "do", "have"}
