"""Training records from plain text, without a language model: cloze, continuation, and unanswerable questions.

Made for technical text, whose numbers, options, identifiers and names a memory has to carry exactly, and which question
answering data sets do not hold. The answer stands in the passage verbatim, so nothing has to be verified. Beside
single passages stand questions over several, one of which holds the answer or none: the others are its neighbours in
the document and the nearest by BM25, as a search would return.

The same passages and settings give the same records. Restating needs no record: stage ``scp`` does it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from pydantic import Field

from clara import prompts
from clara.config import Settings
from clara.data.neighbours import WordIndex, holds_answer, key_of
from clara.data.records import DataRecord, DocText, MultiHop, PassageQA, QAPair
from clara.metrics import normalize_answer
from clara.synth.checks import sentences
from clara.synth.drafts import SourcePassage

_SOURCE = "automatic"
_SOURCE_SEVERAL = "automatic_several"
_SOURCE_NONE = "automatic_none"
"""Sources of the records, for ``mix``: one passage, several, several without the answer."""

_GAP = "____"

# Most telling first: what an earlier kind takes is not a gap of a later one.
_KINDS: Mapping[str, re.Pattern[str]] = {
    "option": re.compile(r"(?<![\w-])--[a-z][\w-]*[a-z0-9]|(?<![\w-])-[A-Za-z](?![\w-])"),
    "identifier": re.compile(
        r"(?<![\w./~-])(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[a-z]+(?:_[a-z0-9]+)+|[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+"
        r"|[a-z]+[A-Z]\w*|[A-Z][a-z]+[A-Z]\w*|~?(?:/[\w.-]*\w){2,})(?![\w/-])"
    ),
    "number": re.compile(r"(?<![\w.,/-])\d+(?:[.,]\d+)*(?![\w-]|[.,/]\d)"),
    "name": re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+(?: [A-Z][a-z]+){0,3}(?!\w)"),
}
_WORD = re.compile(r"\S+")
_EDGES = " \t`*\"'“”‘’"
_AROUND = 8
"""Words on either side of a gap: the whole sentence would be found by its words alone."""
_LEAST_WORDS = 5
_OPENING_WORDS = 6
_FOLLOWING_WORDS = 12
_LEAST_FOLLOWING = 3


class AutomaticSettings(Settings):
    """Settings of the tasks.

    Attributes:
        gaps: most gaps of a passage, of all kinds alike.
        follow: share of passages with a continuation question.
        several: share of passages that also give a question over several passages.
        unanswered: share of those without the passage that holds the answer.
        documents: passages of such a question.
        neighbours: most of them from the same document; the rest are the nearest by BM25.
        passage_words, min_passage_words: as those of ``read_sources``.
    """

    seed: int = Field(default=0, ge=0)
    gaps: int = Field(default=4, ge=1)
    follow: float = Field(default=0.5, ge=0, le=1)
    several: float = Field(default=0.6, ge=0, le=1)
    unanswered: float = Field(default=0.25, ge=0, le=1)
    documents: int = Field(default=5, ge=2)
    neighbours: int = Field(default=2, ge=0)
    passage_words: int = Field(default=120, ge=20)
    min_passage_words: int = Field(default=20, ge=1)


@dataclass(frozen=True, slots=True)
class _AutomaticRecords:
    """The records of some passages, in their order, tasks by kind, and the number of passages without any."""

    records: tuple[DataRecord, ...]
    tasks: Mapping[str, int] = field(default_factory=dict)
    without: int = 0


@dataclass(frozen=True, slots=True)
class _Task:
    kind: str
    pair: QAPair


def automatic_records(passages: Sequence[SourcePassage], settings: AutomaticSettings) -> _AutomaticRecords:
    """Make records of passages; neighbours in a document follow each other."""
    around = _Around(passages, settings)
    records: list[DataRecord] = []
    tasks: Counter[str] = Counter()
    without = 0
    for place, passage in enumerate(passages):
        rng = random.Random(f"{settings.seed}:{passage.id}")
        made = _tasks(passage, settings, rng)
        if not made:
            without += 1
            continue
        tasks.update(task.kind for task in made)
        pairs = tuple(task.pair for task in made)
        records.append(PassageQA(f"auto-{passage.id}", _SOURCE, passage.title, passage.text, pairs))
        if rng.random() < settings.several and (record := around.question(place, rng.choice(pairs), rng)) is not None:
            tasks[record.source.removeprefix(f"{_SOURCE}_")] += 1
            records.append(record)
    return _AutomaticRecords(tuple(records), dict(tasks), without)


def _tasks(passage: SourcePassage, settings: AutomaticSettings, rng: random.Random) -> list[_Task]:
    """Gaps of as many kinds as the passage has, and a continuation."""
    by_kind = {kind: list(tasks) for kind, tasks in groupby(_gaps(passage.text), key=lambda task: task.kind)}
    made: list[_Task] = []
    while by_kind and len(made) < settings.gaps:
        for kind in list(by_kind):
            made.append(by_kind[kind].pop(rng.randrange(len(by_kind[kind]))))
            if not by_kind[kind]:
                del by_kind[kind]
    made = made[: settings.gaps]
    if rng.random() < settings.follow and (following := list(_followings(passage.text))):
        made.append(rng.choice(following))
    return made


def _gaps(text: str) -> Iterator[_Task]:
    """Every gap of a text that has one filling, kind after kind."""
    lines = [line for part in sentences(text) for line in part.splitlines() if len(line.split()) >= _LEAST_WORDS]
    taken: dict[str, list[tuple[int, int]]] = {line: [] for line in lines}
    asked: set[str] = set()
    for kind, pattern in _KINDS.items():
        for line, spans in taken.items():
            for match in pattern.finditer(line):
                start, end = match.span()
                if any(start < there_end and there < end for there, there_end in spans):
                    continue
                spans.append((start, end))
                words = _around(line, start, end)
                # What surrounds the gap must not say what is in it, and must stand in the passage once.
                if words is None or match.group() in words or words in asked:
                    continue
                asked.add(words)
                yield _Task(kind, QAPair(prompts.CLOZE.format(kind=kind, words=words), (match.group(),)))


def _around(line: str, start: int, end: int) -> str | None:
    """A line with a gap, cut to some words on either side; None where too few are left."""
    before, after = line[:start], line[end:]
    firsts, lasts = list(_WORD.finditer(before))[-_AROUND:], list(_WORD.finditer(after))[:_AROUND]
    if len(firsts) + len(lasts) < _LEAST_WORDS - 1:
        return None
    left = before[firsts[0].start() :] if firsts else ""
    right = after[: lasts[-1].end()] if lasts else ""
    return f"{left}{_GAP}{right}".strip(_EDGES).replace('"', "'")


def _followings(text: str) -> Iterator[_Task]:
    """The first words of each long sentence, with their continuation, or some words of it."""
    for line in dict.fromkeys(line for part in sentences(text) for line in part.splitlines()):
        words = list(_WORD.finditer(line))
        if len(words) < _OPENING_WORDS + _LEAST_FOLLOWING or text.count(line) > 1:
            continue
        opening = line[: words[_OPENING_WORDS - 1].end()].strip(_EDGES).replace('"', "'")
        rest = line[words[_OPENING_WORDS].start() : words[min(len(words), _OPENING_WORDS + _FOLLOWING_WORDS) - 1].end()]
        if opening and rest.strip(_EDGES):
            yield _Task("follow", QAPair(prompts.WHAT_FOLLOWS.format(words=opening), (rest.strip(_EDGES + ".,;:"),)))


class _Around:
    """Passages to put beside one."""

    def __init__(self, passages: Sequence[SourcePassage], settings: AutomaticSettings) -> None:
        self._passages, self._settings = passages, settings
        self._keys = [key_of(passage.text) for passage in passages]
        self._index = WordIndex([f"{passage.title} {passage.text}" for passage in passages])

    def question(self, place: int, pair: QAPair, rng: random.Random) -> MultiHop | None:
        """A question about one passage over several; None where there are no others, or they may hold the answer."""
        settings, own = self._settings, self._passages[place]
        none = rng.random() < settings.unanswered
        others = self._others(place, pair, settings.documents - (not none))
        if not others or (none and not normalize_answer(pair.answers[0])):
            return None
        places = others if none else [place, *others]
        rng.shuffle(places)
        docs = tuple(DocText(self._passages[i].title, self._passages[i].text) for i in places)
        return MultiHop(
            id=f"auto-{own.id}-several",
            source=_SOURCE_NONE if none else _SOURCE_SEVERAL,
            question=pair.question,
            answers=(prompts.NO_ANSWER,) if none else pair.answers,
            docs=docs,
            gold=() if none else (places.index(place),),
        )

    def _others(self, place: int, pair: QAPair, count: int) -> list[int]:
        """Neighbours in the document, then the nearest by BM25, without those that hold the answer."""
        answer = normalize_answer(pair.answers[0])
        document, taken = self._passages[place].document, {self._keys[place]}
        beside = [i for i in (place + 1, place - 1) if 0 <= i < len(self._passages)]
        near = [i for i in beside if document and self._passages[i].document == document]
        ranked = self._index.ranked(f"{self._passages[place].title} {pair.question}").tolist()
        others: list[int] = []
        for i in [*near[: self._settings.neighbours], *ranked]:
            if len(others) == count:
                break
            if self._keys[i] not in taken and not self._holds(i, answer):
                taken.add(self._keys[i])
                others.append(i)
        return others

    def _holds(self, place: int, answer: str) -> bool:
        """The passage holds an answer, however short."""
        text = self._passages[place].text
        return holds_answer(text, [answer]) or f" {answer} " in f" {normalize_answer(text)} "
