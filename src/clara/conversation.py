"""A follow-up made self-contained from the conversation, or a question to ask back.

``understand`` does it by rules, in three steps: what leaves out a verb takes it from the last question ("and the Birch
pump?"), a pronoun is replaced by what the last question is about ("when was it installed?"), and so is a noun with
less to it than there ("the pump"). What these cannot decide is asked back; nothing is guessed. The rules are for
English: any other language is taken as it stands. ``rewrite`` lets a language model do the same.

Knows questions and answers, not how either is found. One sentence of English is the business of ``english``, what a
client sends and which documents are one manual that of ``messages``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from clara import prompts
from clara.english import (
    DEMONSTRATIVES,
    DESCRIBED,
    PAPERS,
    PEOPLE,
    POSSESSIVES,
    PRONOUNS,
    NounPhrase,
    Sentence,
    Word,
    word_set,
)

if TYPE_CHECKING:
    from clara.llm import LLM

# Longer answers are sentences, whose names are not what the question was about.
_LONGEST_NAME = 8
_LONGEST_ANSWER = 4
_EARLIER_TURNS = 6  # that a language model reads
_REWRITE_TOKENS = 400

_ADVERBIAL = word_set("when where why how")
_VALUE_WORDS = word_set("do mean stand default value values type set")
_PLACES = word_set("in on at with during under after before since")
# What things have: "the default" is that of the topic, "the espresso" is another topic.
_ATTRIBUTES = word_set(
    "address age amount architect area argument author behaviour behavior capacity capital cause circumference code "
    "color colour composer condition consequence cost currency date day default deadline depth diameter difference "
    "director distance duration effect exception extension file flag flow folder format founder frequency function "
    "height inventor language length level licence license limit location maker manager manufacturer material maximum "
    "meaning method minimum name number option order origin owner parameter part path place population port power "
    "predecessor pressure price purpose range rate reason result river role rule shape size source speed state status "
    "successor supplier surface syntax team temperature time timeout title type unit use value version voltage volume "
    "warranty weight width year"
)

_LEAD = re.compile(
    r"(?P<joined>(?:(?:and|but|or|so|ok|okay|well|also|then)\b[,\s]*)*)"
    r"(?P<about>(?:what|how)\s+about\b|the\s+same\s+for\b|(?:those|that|the\s+ones?)\s+(?:of|for)\b|"
    r"(?:is|was|does|do|are)\s+(?:it|that|this|the\s+same)\s+(?:also\s+)?(?:the\s+same|so|true|apply|hold|valid)\s+"
    r"(?:for|to|of|with)\b)?\s*"
    r"(?:(?P<preposition>for|in|on|at|with|by|during|under|after|before|since|of|to|from)\s+)?"
    r"(?P<rest>.*?)(?:\s+then)?[\s?.!]*",
    re.IGNORECASE | re.DOTALL,
)
_BARE_QUESTION = re.compile(
    r"(?:(?:and|but|so)\s+)?(?P<asked>why(?:\s+(?:is\s+that|so|not(?:\s+\w+){0,3}))?|when|where|"
    r"how\s+many\s+(?:are|were)\s+(?:there|they)|how(?:\s+(?:often|long|far|big|deep|high|tall|old|so|come))?|since\s+when|what\s+for|"
    r"(?:(?:since|in|with|by|on|at|from|to|for|of|under)\s+)?(?:who|whose|whom|which|what|how\s+many|how\s+much)"
    r"(?:\s+[a-z]+)?)[\s?.!]*",
    re.IGNORECASE,
)
_MORE = re.compile(
    r"(?:(?:and|but|so)\s+)?(?:(?:please\s+)?(?:tell\s+me|say|explain)\s+more|more|go\s+on|explain(?:\s+that)?|"
    r"(?:please\s+)?(?:show|give)\s+(?:me\s+)?an\s+example|for\s+example|"
    r"(?:what|which|who|where)\s+(?:are\s+)?(?:the\s+)?others(?:\s+are\s+there)?|"
    r"(?:what|anything|who|where)\s+else|really|are\s+you\s+sure)[\s?.!]*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"\w[.!?:]\s")
_THANKS = 3  # words of another sentence that names nothing
_ASKED_BACK = re.compile(r"What does '(?P<word>[^']+)' refer to(?:: (?P<choices>.+))?\? Ask with its name\.")
_WHOLE = "Ask the whole question."


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of the conversation and what was said to it.

    Attributes:
        question: self-contained, as ``Understood`` has it; or as it was written, where it was asked back.
        answer: the answer, or the question that was asked back.
        document: uri of the document that the answer was taken from; empty where there is none.
    """

    question: str
    answer: str
    document: str = ""


@dataclass(frozen=True, slots=True)
class Understood:
    """A question that can be answered without the conversation.

    Attributes:
        made_from: the earlier question that completed it; empty for one that stands alone, which is as it was written.
        document: uri of the document whose manual (``messages.manual_of``) a follow-up stays within; empty without one.
    """

    question: str
    made_from: str = ""
    document: str = ""

    def turn(self, answer: str, document: str, *, answered: bool = True) -> Turn:
        """The turn that ends with an answer; one that was not answered keeps a follow-up with its manual."""
        return Turn(self.question, answer, document if answered else self.document)


@dataclass(frozen=True, slots=True)
class AskBack:
    """A question back to the user, whose message is ambiguous; ``document`` is for what the user says next."""

    question: str
    message: str = ""
    document: str = ""

    def turn(self) -> Turn:
        """The turn that ends with this question."""
        return Turn(self.message, self.question, self.document)


def understand(turns: Sequence[Turn], message: str) -> Understood | AskBack:
    """Make a message self-contained from the turns before it, by rules, or ask back.

    A message may also answer what was asked back in the last turn: "the Birch pump". Turns come oldest first; earlier
    messages of a conversation that is kept elsewhere become turns by this function, one after another.
    """
    text = message.strip()
    settled = [turn for turn in turns if not _ASKED_BACK.fullmatch(turn.answer) and not turn.answer.endswith(_WHOLE)]
    asked = _Message(text, settled)
    answer = _named_at_last(turns[-1], asked) if turns else None
    result = answer or next((found for rule in _RULES if (found := rule(asked)) is not None), None)
    if isinstance(result, AskBack):
        return replace(result, message=text, document=asked.last.document)
    return result or Understood(text)


def rewrite(llm: LLM, turns: Sequence[Turn], message: str) -> Understood | AskBack:
    """``understand`` by a language model; by rules where there is no earlier turn, or its reply says nothing.

    Raises:
        LLMError: it cannot be asked.
    """
    if not turns:
        return understand(turns, message)
    said = [(turn.question, turn.answer) for turn in turns[-_EARLIER_TURNS:]]
    reply = llm.reply(prompts.rewrite_messages(said, message.strip()), max_tokens=_REWRITE_TOKENS).text
    kind, _, question = reply.strip().partition(":")
    question = " ".join(question.split())
    last = turns[-1]
    match kind.strip().upper(), question:
        case prompts.STANDS_ALONE, _:
            return Understood(message.strip())
        case prompts.FOLLOWS, str() if question:
            return Understood(question, last.question, last.document)
        case prompts.UNCLEAR, str() if question:
            return AskBack(question, message.strip(), last.document)
    return understand(turns, message)


class _Message(Sentence):
    """A message and the turns before it that were answered; ``last`` is empty where there is none."""

    def __init__(self, text: str, turns: Sequence[Turn]) -> None:
        super().__init__(text)
        self.turns = turns
        self.last = turns[-1] if turns else Turn("", "")

    @cached_property
    def before(self) -> Sentence:
        """The last question."""
        return Sentence(self.last.question)

    def made(self, question: str) -> Understood:
        """A question made from the last one."""
        return Understood(question, self.last.question, self.last.document)

    def with_topic(self, word: Word, topics: Sequence[str]) -> Understood | AskBack:
        """The question with a word replaced by what it refers to; asked back unless that is one thing."""
        return self.made(_replaced(self.text, word, topics[0])) if len(topics) == 1 else _ask_back(word.text, topics)

    def span(self, place: int, count: int) -> Word:
        """Several words as one."""
        start, end = self.words[place].start, self.words[place + count - 1].end
        return Word(self.text[start:end], start, "pronoun")

    def find(self, *wanted: str) -> int | None:
        """Position of consecutive words."""
        starts = range(len(self.lowers))
        return next((at for at in starts if self.lowers[at : at + len(wanted)] == wanted), None)

    def topics(self, pronoun: str = "it", words: Sequence[Word] = ()) -> list[str]:
        """Referents of a pronoun in lower case: one if it is certain, several to choose from, or none.

        ``words`` are of the message, where a value may be meant.
        """
        question = self.before
        phrases = [p for p in question.phrases if p.head not in PAPERS]
        answers = _names_in(self.last.answer)
        kind = PRONOUNS[pronoun]
        if kind == "person":
            persons = [p for p in phrases if p.named and not p.head and not p.article]
            if question.asks_who() and answers:
                return _distinct(answers)
            return _distinct(persons) if len(persons) == 1 else []
        if kind == "many":
            many = [p for p in phrases if p.head and p.parts[0].words[-1].plural]
            if len(many) == 1:
                return _distinct(many)
            phrases = [p for p in phrases if not p.head]  # a firm or a team may be "they", a pump is not
        else:
            phrases = [thing for p in phrases if (thing := _thing_of(p)) is not None]
            answers = [] if question.asks_who() else answers
        valued = any(word.lower in _VALUE_WORDS for word in words)
        if not _asks_which(question):
            answers = [p for p in answers if p.has("identifier") and valued]
        return _distinct(_candidates(question, phrases, answers, valued=valued))


_Result = Understood | AskBack | None


def _named_at_last(turn: Turn, answer: _Message) -> Understood | None:
    """The message of the last turn, whose word was asked back, with what the user says that it refers to."""
    asked = _ASKED_BACK.fullmatch(turn.answer)
    if asked is None or not answer.is_phrase():
        return None
    name = _without_capital(answer.text.strip(" .!?"))
    for choice in (asked["choices"] or "").replace(" or ", ", ").split(", "):
        name = _meant_of(choice, answer.words) or name
    words = Sentence(turn.question).words
    phrase = asked["word"].split()
    for place, word in enumerate(words):
        if [each.text for each in words[place : place + len(phrase)]] == phrase:
            whole = Word(turn.question[word.start : words[place + len(phrase) - 1].end], word.start, word.kind)
            return answer.made(_replaced(turn.question, whole, name))
    return None


def _meant_of(choice: str, said: Sequence[Word]) -> str:
    """The part of a choice that words name ("the pump" that of "the valve of the Birch pump"); empty for none."""
    content = {word.lower for word in said if word.kind not in {"determiner", "mark"}}
    wholes = Sentence(choice, quotation=True).phrases
    parts = [*(part for whole in wholes for part in reversed(whole.parts)), *wholes]
    return next((p.text for p in parts if content and content <= {word.lower for word in p.words}), "")


def _bare_question(asked: _Message) -> _Result:
    """For "why?", "how many?": the last question is asked with it."""
    bare = _BARE_QUESTION.fullmatch(asked.text)
    if bare is None and not _MORE.fullmatch(asked.text):
        return None
    if bare is None or not asked.turns:
        return AskBack(f"{_with_capital(asked.text.strip(' .!?'))}? {_WHOLE}")
    word = " ".join(bare["asked"].split())
    question = asked.last.question.partition("? ")[0].rstrip("?") + "?"
    opening = Sentence(question).words[:2]
    adverbial = {word.lower(), *(each.lower for each in opening[:1])} <= _ADVERBIAL
    if adverbial and len(opening) == 2 and opening[1].kind in {"be", "do", "have"}:
        return asked.made(_with_capital(word) + question[opening[0].end :])
    return asked.made(f"{question} {_with_capital(word)}?")


def _like_the_last(asked: _Message) -> _Result:
    """For "and the Birch pump?", "in 1981?", "the default?": the last question with the like part replaced."""
    lead = _LEAD.fullmatch(asked.text)
    if lead is None or not lead["rest"]:
        return None
    rest = Sentence(_without_capital(lead["rest"]), quotation=True)
    if not rest.is_phrase():
        return None
    marked = lead["about"] or lead["joined"] or lead["preposition"] or rest.words[0].kind == "determiner"
    if not marked and len(rest.words) > 2:
        like = NounPhrase(rest.text, rest.words)
        if not any(_same_head(part, like) for part in _parts_of(asked.before)):
            return None  # words to search for, or no English
    if not asked.turns:
        return AskBack(f"What about {rest.text}? {_WHOLE}") if lead["about"] or lead["joined"] else None
    if not asked.before.is_english():
        return None
    if rest.text.lower() in {"the other one", "the other"}:
        rest = Sentence(_other(asked) or rest.text, quotation=True)
    first = rest.words[0]
    if first.lower in POSSESSIVES:
        question = _asks_for(rest.words[1:], f"the {rest.text[first.end :].strip()}", asked.topics(first.lower))
    else:
        question = _with_like_part(asked, rest, (lead["preposition"] or "").lower())
    return asked.made(question) if question else AskBack(f"What about {rest.text}? {_WHOLE}")


def _with_like_part(asked: _Message, rest: Sentence, preposition: str) -> str | None:
    """The last question about something else; None where nothing in it is surely its like."""
    question = asked.last.question
    if all(word.kind == "number" for word in rest.words):
        return _with_number(asked.before, rest.text, preposition)
    whole = [phrase for phrase in rest.phrases if phrase.text == rest.text]
    new = whole[0] if whole else NounPhrase(rest.text, rest.words)
    for like in (_same_head, _both_names, _both_identifiers):
        alike = {
            part.text: part
            for part in _parts_of(asked.before)
            if like(part, new) and (like is _same_head or _hangs_alike(question, part, preposition))
        }
        if len(alike) > 1:
            return None
        if alike:
            part = next(iter(alike.values()))
            return question[: part.start] + _fitted(part, new) + question[part.end :]
    if preposition in _PLACES and not new.named:
        return f"{question.rstrip(' ?.')} {preposition} {rest.text}?"
    topics = [] if preposition or new.named or new.head not in _ATTRIBUTES else asked.topics()
    return _asks_for(rest.words, rest.text if new.article else f"the {rest.text}", topics)


def _asks_for(words: Sequence[Word], what: str, topics: Sequence[str]) -> str | None:
    """The question what a thing of the topic is, where there is one topic."""
    if len(topics) != 1 or not words:
        return None
    return f"What {'are' if words[-1].plural else 'is'} {what} of {topics[0]}?"


def _hangs_alike(question: str, part: NounPhrase, preposition: str) -> bool:
    """True if a part of a question has the preposition that was said, if any; "for" goes with any."""
    return preposition in {"", "for"} or Sentence(question[: part.start]).lowers[-1:] == (preposition,)


def _parts_of(question: Sentence) -> list[NounPhrase]:
    return [part for phrase in question.phrases for part in phrase.parts]


def _with_number(question: Sentence, number: str, preposition: str) -> str | None:
    words, text = question.words, question.text
    numbers = [place for place, word in enumerate(words) if word.kind == "number"]
    after = [place for place in numbers if not preposition or (place and words[place - 1].lower == preposition)]
    if len(after) == 1:
        word = words[after[0]]
        return text[: word.start] + number + text[word.end :]
    return f"{text.rstrip(' ?.')} {preposition} {number}?" if preposition and not numbers else None


def _same_head(part: NounPhrase, new: NounPhrase) -> bool:
    return bool(new.head) and part.head == new.head and part.text.lower() != new.text.lower()


def _both_names(part: NounPhrase, new: NounPhrase) -> bool:
    return not new.head and part.has("name") and new.has("name")


def _both_identifiers(part: NounPhrase, new: NounPhrase) -> bool:
    both = not new.head and part.has("identifier") and new.has("identifier")
    return both and part.text.startswith("-") == new.text.startswith("-")  # options go with options


def _fitted(part: NounPhrase, new: NounPhrase) -> str:
    """A noun phrase in the place of a part of a question: "Birch" in that of "the Alder pump" is "the Birch pump"."""
    if part.head and not new.head:
        names = [word for word in part.words if word.kind in {"name", "identifier"}]
        inner = new.sentence[new.words[1 if new.article else 0].start : new.end]
        return part.sentence[part.start : names[0].start] + inner + part.sentence[names[-1].end : part.end]
    if part.article and not new.article and new.head:
        return f"{part.words[0].text} {new.text}"
    return new.text


def _other_one(asked: _Message) -> _Result:
    """For "the other one", of two that the conversation was about."""
    place = asked.find("the", "other", "one")
    if place is None:
        return None
    other = _other(asked)
    return asked.with_topic(asked.span(place, 3), [other] if other else [])


def _other(asked: _Message) -> str:
    """The one of two named things in the conversation that the last question is not about; empty if unsure."""
    lasts = [phrase.parts[-1] for turn in asked.turns for phrase in Sentence(turn.question).phrases]
    named = {part.text.lower(): part.text for part in lasts if part.named}
    left = [text for key, text in named.items() if key not in asked.last.question.lower()]
    return left[0] if len(named) == 2 and len(left) == 1 else ""


def _pronoun(asked: _Message) -> _Result:
    """For "it", "its", "they", "she": what the last question is about, unless the message itself says it."""
    english = asked.is_english(but=PRONOUNS.keys())
    for place, word in enumerate(asked.words):
        kind = PRONOUNS.get(word.lower)
        known = kind is not None and (english or (kind == "thing" and len(asked.words) <= 3))
        if known and asked.is_small(place) and asked.leads_out(place):
            return asked.with_topic(word, asked.topics(word.lower, asked.words))
    return None


def _candidates(
    question: Sentence, phrases: Sequence[NounPhrase], answers: Sequence[NounPhrase], *, valued: bool
) -> list[NounPhrase]:
    """Topic of the last question, and its answer where that competes with it."""
    words = question.words
    named = [p for p in phrases if p.named]
    subject = next((p for p in phrases if question.is_subject(p)), None)
    if not named:
        said_of = subject is not None and words[words.index(subject.words[0]) - 1].kind == "be"
        if answers and said_of:  # "which pump is the loudest": the answer is the subject
            return list(answers)
        return [subject, *(p for p in answers if p.named)] if subject else [*phrases, *answers]
    if subject in named and all(_follows_preposition(words, p) for p in named if p is not subject):
        # A pronoun goes on with the subject; a code or an option is rather a value of it, a name is a rival.
        at = words.index(subject.words[0])
        if [word.kind for word in words[max(0, at - 2) : at]] == ["question", "be"]:
            return [subject]  # "what is the capital": the answer is another name of it
        return [subject, *(p for p in answers if valued or p.has("name"))]
    if len(named) == 1:
        named = _with_its_place(words, phrases, named[0], subject)
    return [*named, *answers]


def _follows_preposition(words: Sequence[Word], phrase: NounPhrase) -> bool:
    place = words.index(phrase.words[0])
    return any(word.kind == "preposition" for word in words[max(0, place - 2) : place])


def _with_its_place(
    words: Sequence[Word], phrases: Sequence[NounPhrase], named: NounPhrase, subject: NounPhrase | None
) -> list[NounPhrase]:
    """A name behind a preposition with what is there ("the tower in Paris"), or beside what else there is."""
    place = words.index(named.words[0])
    if place < 2 or words[place - 1].kind != "preposition" or words[place - 1].lower == "of":
        return [named]
    for phrase in phrases:
        if phrase.words[-1] == words[place - 2]:
            whole = tuple(words[words.index(phrase.words[0]) : place]) + named.words
            return [NounPhrase(phrase.sentence, whole)]
    if subject is not None:
        return [subject, named]
    start = place - 1
    while start and words[start - 1].kind == "word":
        start -= 1
    loose = place - 1 - start + (start > 0 and words[start - 1].kind == "pronoun")
    return [named] if loose < 3 else []  # "enable offline mode in": a thing without an article is there


def _thing_of(phrase: NounPhrase) -> NounPhrase | None:
    """A noun phrase as "it" can mean it: of "the author of the book" the book."""
    parts = phrase.parts
    if parts[0].words[-1].lower not in PEOPLE:
        return phrase
    rest = tuple(word for word in phrase.words if len(parts) > 1 and word.start >= parts[1].start)
    return NounPhrase(phrase.sentence, rest) if rest else None


def _asks_which(question: Sentence) -> bool:
    """True if a question asks for a thing by its kind or name, or for a person."""
    return question.asks_who() or any(
        word.lower in {"which", "what"} and after.kind in {"word", "be"} for word, after in pairwise(question.words)
    )


def _names_in(text: str) -> list[NounPhrase]:
    """The names in a short answer; a very short one that is no number is a name as a whole."""
    answer = Sentence(text, quotation=True)
    words = answer.words
    if not words or len(words) > _LONGEST_NAME or words[0].kind in {"adverb", "number"}:
        return []
    named = [p for p in answer.phrases if p.named]
    return named or [NounPhrase(text, words)] if len(words) <= _LONGEST_ANSWER else named


def _distinct(phrases: Sequence[NounPhrase]) -> list[str]:
    """Noun phrases as they are said again, each once."""
    texts = (re.sub(r"^(?:an?|the)(?=\s)", "the", p.text, flags=re.IGNORECASE) for p in phrases)
    return list({text.lower(): text for text in texts}.values())


def _place(asked: _Message) -> _Result:
    """For "there", unless as in "there is"."""
    for place, word in enumerate(asked.words):
        if word.lower != "there" or not asked.is_small(place) or not asked.is_english():
            continue
        near = [*asked.words[max(0, place - 1) : place], *asked.words[place + 1 : place + 2]]
        if any(w.kind in {"be", "do", "clitic"} or w.lower in {"exist", "exists", "seem", "seems"} for w in near):
            continue
        if any(p.end <= word.start and p.named for p in asked.phrases):
            continue
        topics = asked.topics()
        follows = place > 0 and asked.words[place - 1].kind == "preposition"
        return asked.with_topic(word, topics if follows or len(topics) != 1 else [f"in {topics[0]}"])
    return None


def _demonstrative(asked: _Message) -> _Result:
    """For "that" and "this": asked back by themselves; with the noun of the last question they stand for it."""
    if not asked.is_english(but=DEMONSTRATIVES):
        return None
    for place, word in enumerate(asked.words):
        if word.lower not in DEMONSTRATIVES:
            continue
        if asked.stands_alone(place):
            return _ask_back(word.text, asked.topics("it", asked.words) if asked.turns else ())
        found = _with_less(asked, asked.words[place + 1 : place + 2])
        if found:
            return asked.with_topic(asked.span(place, 2), found)
    return None


def _the_same(asked: _Message) -> _Result:
    """For "the same" without a noun: it is asked back."""
    place = asked.find("the", "same")
    if place is None or not asked.turns:
        return None
    after = asked.words[place + 2 : place + 3]
    if after and after[0].kind not in {"mark", "be", "do"} and after[0].lower not in DESCRIBED:
        return None
    return _ask_back(asked.span(place, 2).text)


def _which_one(asked: _Message) -> _Result:
    """For "which one is the loudest?": one of what the last question is about."""
    for place, word in enumerate(asked.words):
        if word.lower not in {"one", "ones"} or place == 0:
            continue
        after = asked.words[place + 1 : place + 2]
        if after and (after[0].kind not in {"mark", "be", "do", "have", "preposition"} or after[0].lower == "of"):
            continue
        before = asked.lowers[place - 1]
        if before not in {"which", "that", "this", "another"} and not (place > 1 and asked.lowers[place - 2] == "the"):
            continue
        spans = ((each.start, word.start) for each in asked.words if each.kind != "mark")
        if sum(_SENTENCE_END.search(asked.text, min(s), max(s)) is not None for s in spans) > _THANKS:
            return None  # of what the message's other sentences name
        if before in {"this", "that"}:
            return asked.with_topic(asked.span(place - 1, 2), asked.topics())
        heads = {p.parts[-1].head for p in asked.before.phrases if p.named}
        if len(heads) == 1 and "" not in heads:
            noun = heads.pop()
            return asked.with_topic(word, [noun if word.lower == "one" else f"{noun}s"])
        return _ask_back(word.text)
    return None


def _same_noun(asked: _Message) -> _Result:
    """For "the pump", where the last question says which."""
    if any(p.named for p in asked.phrases) or not asked.is_english():
        return None
    for phrase in asked.phrases:
        if len(phrase.parts) > 1 or len(phrase.words) != 2 or phrase.words[0].lower != "the":
            continue
        found = _with_less(asked, phrase.words[1:])
        if found:
            return asked.with_topic(Word(phrase.text, phrase.start, "determiner"), found)
    return None


def _attribute(asked: _Message) -> _Result:
    """For "what is the default value?": that of what the last question is about."""
    opening = [word.kind for word in asked.words if word.kind not in {"mark", "word"}]
    if len(asked.phrases) != 1 or opening != ["question", "be", "determiner"]:
        return None
    phrase = asked.phrases[0]
    if phrase.head not in _ATTRIBUTES or phrase.end < max(w.end for w in asked.words if w.kind == "word"):
        return None
    topics = asked.topics()
    if len(topics) != 1:
        return None
    return asked.made(f"{asked.text[: phrase.end]} of {topics[0]}{asked.text[phrase.end :]}")


def _with_less(asked: _Message, noun: Sequence[Word]) -> list[str]:
    """Modifiers of this noun in the last question."""
    if not noun or noun[0].kind != "word":
        return []
    found: list[NounPhrase] = []
    for phrase in asked.before.phrases:
        for part in phrase.parts:
            if part.head == noun[0].singular and (len(part.words) > 2 or len(phrase.parts) > 1):
                tail = tuple(word for word in phrase.words if word.start >= part.start)
                found.append(NounPhrase(phrase.sentence, tail))
    return _distinct(found)


def _ask_back(word: str, choices: Sequence[str] = ()) -> AskBack:
    named = f": {' or '.join(choices)}" if len(choices) > 1 else ""
    return AskBack(f"What does '{word.lower()}' refer to{named}? Ask with its name.")


def _replaced(text: str, word: Word, topic: str) -> str:
    """A text with one word replaced; a possessive by a possessive."""
    after = Sentence(text[word.end :]).words[:1]
    owns = word.lower in POSSESSIVES and (word.lower != "her" or bool(after and after[0].kind != "mark"))
    if owns:
        topic += "'" if topic.endswith("s") else "'s"
    replaced = text[: word.start] + topic + text[word.end :]
    return _with_capital(replaced) if word.start == 0 else replaced


def _without_capital(phrase: str) -> str:
    """A noun phrase as it stands inside a sentence."""
    return re.sub(r"^(?:The|An?)(?=\s)", lambda article: article[0].lower(), phrase)


def _with_capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_RULES: tuple[Callable[[_Message], _Result], ...] = (
    _bare_question,
    _like_the_last,
    _other_one,
    _pronoun,
    _place,
    _demonstrative,
    _the_same,
    _which_one,
    _same_noun,
    _attribute,
)
