"""Whether a pronoun of an English question leads out of it, or stands for nothing, or for words of the question.

Knows one sentence; what a pronoun refers to in the conversation is ``conversation``'s business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from clara.english import NounPhrase, Word, is_plural, word_set

POSSESSIVES = frozenset({"its", "their", "his", "her"})
OF_THINGS = frozenset({"it", "its"})
OF_MANY = frozenset({"they", "them", "their", "theirs"})
OF_PERSONS = frozenset({"he", "she", "him", "her", "his", "hers"})
PRONOUNS = OF_THINGS | OF_MANY | OF_PERSONS
DEMONSTRATIVES = frozenset({"this", "that", "these", "those"})
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


def is_expletive(text: str, word: Word) -> bool:
    """Whether "it" stands for nothing: "is it possible to", "how long does it take to"."""
    return any(match.start("it") == word.start for pattern in _EXPLETIVE for match in pattern.finditer(text))


def is_small(words: Sequence[Word], place: int) -> bool:
    """Whether a word is written small, or opens the message; else it is part of a title, or IT."""
    opens = place == 0 or words[place - 1].kind in {"mark", "conjunction"}
    return words[place].text.islower() or (opens and words[place].text.istitle())


def said_before(words: Sequence[Word], phrases: Sequence[NounPhrase], place: int) -> bool:
    """Whether a pronoun refers to something in its own message: "how is the pump stopped before it overheats?"."""
    pronoun = words[place].lower
    boundary = max((at for at in range(1, place) if _divides(words, at)), default=None)
    if pronoun in POSSESSIVES or pronoun in OF_PERSONS:
        boundary = place
    if boundary is None:
        return False  # in one clause an object is another thing than the subject
    before = words[:boundary]
    phrases = [p for p in phrases if p.end <= before[-1].end] if before else []
    if pronoun in OF_PERSONS:
        named = any(p.named or p.head in PEOPLE for p in phrases)
        return named or _bare_subject(before) or _asks_for_a_person(words, place)
    if any(p.head not in PEOPLE | PAPERS for p in phrases) or _bare_subject(before):
        return True
    loose = {word.lower for word in before if word.kind == "word"} - _VERBS - PEOPLE - PAPERS
    if pronoun in OF_MANY:
        return any(is_plural(noun) for noun in loose) or _asks_for_a_person(words, place)
    return boundary < place and bool(loose)


def stands_alone(words: Sequence[Word], place: int) -> bool:
    """Whether "that" is a pronoun, neither a conjunction nor the article of a noun."""
    before = words[place - 1].kind if place else "mark"
    after = words[place + 1] if place + 1 < len(words) else None
    opens = before in {"mark", "be", "do", "have", "preposition", "conjunction"}
    if after is None or after.kind == "mark":
        return True
    if after.lower in {"of", "who", "which", "that", "one", "ones"}:
        return False
    if after.kind in {"be", "do", "have"}:
        return before in {"mark", "conjunction"}  # else it is relative: "a file that is"
    if after.kind in {"preposition", "adverb", "clitic", "conjunction"}:
        return opens
    if after.kind != "word":
        return False
    described = after.lower in DESCRIBED or after.lower.endswith(("ible", "able", "ful", "ous"))
    return (before == "be" and described) or (before == "do" and after.lower in _VERBS)


def _divides(words: Sequence[Word], place: int) -> bool:
    """Whether a clause ends before a word. A question word that opens the message divides nothing."""
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
    """Whether a subject without an article is among the words: "did ireland gain"."""
    return any(one.kind in {"do", "be", "have"} and other.kind == "word" for one, other in pairwise(words)) and words[
        -1
    ].kind not in {"do", "be", "have"}


def _asks_for_a_person(words: Sequence[Word], place: int) -> bool:
    """Whether the message asks who, or which coach, did something to what is his, hers or theirs."""
    opens = words[0].lower == "who" or (words[0].lower in {"which", "what"} and words[1].kind == "word")
    return opens and place > 1 and words[place - 1].kind not in {"be", "do", "have"}
