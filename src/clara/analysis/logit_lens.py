"""The logit lens on memory vectors: words that they point at and the question does not contain (clara.md section 7).

``condense`` turns the top tokens of all vectors into a short list of words; ``lens_hits`` measures over a data set
whether those words are in the supporting passages. Knows tokens as text, no tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from clara.analysis.harness import AnalysisReport, AnalysisSettings, OnProgress, distractors, measure_questions
from clara.data import DataRecord, MultiHop
from clara.metrics import Interval
from clara.model.inspection import EncoderRole, Lens, Space
from clara.prompts import passage_text

if TYPE_CHECKING:
    from clara.model import ClaraModel
    from clara.model.inspection import Inspector

REFERENCES = (
    "What is it?",
    "Who was that?",
    "When did it happen?",
    "Where is this place?",
    "Which one had it first?",
    "How many were in it at that time?",
)
"""Questions about nothing: what the lens shows for these it shows for any text (articles, the tokens that stand for
the first position), so it says nothing of this one. Takes the place of a list of stop words, in any vocabulary."""

_EXAMPLES = 20
_STEM = 4
"""Letters from which a word of the text also hides its longer forms: league hides leagues."""


@dataclass(frozen=True, slots=True)
class LensWord:
    """A word that memory vectors point at; ``slots``: vectors with it among their top tokens."""

    word: str
    slots: int
    score: float


@dataclass(frozen=True, slots=True)
class LensView:
    """The lens of one text, and its words that are not in the text, those of most slots first."""

    lens: Lens
    words: tuple[LensWord, ...]


def view(
    insight: Inspector,
    text: str,
    *,
    role: EncoderRole,
    rate: int,
    space: Space = "hidden",
    top: int = 5,
) -> LensView:
    """Lens of a question or passage; that of ``REFERENCES`` is taken with the same options (``Inspector.lens``).

    Raises:
        InputError: the text is empty or too long.
        ConfigError: the rate is not served.
    """
    lens = insight.lens(text, role=role, rate=rate, space=space, top=top)
    common = common_words([insight.lens(other, role=role, rate=rate, space=space, top=top) for other in REFERENCES])
    return LensView(lens, condense(lens, text, common))


def common_words(lenses: Iterable[Lens]) -> frozenset[str]:
    """All words of lenses, in lower case."""
    return frozenset(_plain(item.token) for lens in lenses for slot in lens.slots for item in slot)


def condense(lens: Lens, text: str, common: frozenset[str]) -> tuple[LensWord, ...]:
    """The words of a lens that its text does not contain.

    Left out: words and parts of words of the text, and their longer forms; words of any text's lens (``common``); later
    pieces of words; tokens with fewer than two letters or digits.
    """
    lower = text.lower()
    stems = tuple(word for word in re.findall(r"\w+", lower) if len(word) >= _STEM)
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    scores: defaultdict[str, list[float]] = defaultdict(list)
    slots: defaultdict[str, set[int]] = defaultdict(set)
    for index, slot in enumerate(lens.slots):
        for item in slot:
            word = _plain(item.token)
            letters = sum(map(str.isalnum, word))
            if not item.begins_word or letters < 2 or word in lower or word in common or word.startswith(stems):
                continue
            spellings[word].append(item.token.strip())
            scores[word].append(item.score)
            slots[word].add(index)
    words = [
        LensWord(max(set(s), key=lambda x: (s.count(x), x)), len(slots[w]), max(scores[w]))
        for w, s in spellings.items()
    ]
    return tuple(sorted(words, key=lambda word: (-word.slots, -word.score, word.word)))


class LensSettings(AnalysisSettings):
    """``words``: condensed words a question that are looked up; ``top``: tokens a memory vector."""

    words: int = Field(default=10, ge=1)
    top: int = Field(default=5, ge=1)


_SILENT = "questions whose lens shows no word of its own"


@dataclass(frozen=True, slots=True)
class LensHits(AnalysisReport):
    """Mean share of a question's lens words in its gold passages, and in as many ``other`` candidates.

    ``examples``: the first questions with their words in gold passages.
    """

    gold: float
    other: float
    gold_ci95: Interval
    other_ci95: Interval
    examples: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Hits:
    question: str
    gold: float
    other: float
    words: tuple[str, ...]


def lens_hits(
    model: ClaraModel,
    records: Sequence[DataRecord],
    settings: LensSettings,
    on_progress: OnProgress | None = None,
) -> LensHits:
    """Look up the words of each question's lens in its gold passages, and in others for comparison."""
    insight, rng = model.inspector(), np.random.default_rng(settings.seed)
    rate = settings.rate or model.default_rate

    def lens(text: str) -> Lens:
        return insight.lens(text, role="query_reasoner", rate=rate, top=settings.top)

    common = frozenset[str]()

    def measure(_: int, question: MultiHop) -> _Hits | str:
        nonlocal common
        if not common:
            common = common_words(lens(text) for text in REFERENCES)
        words = [word.word.lower() for word in condense(lens(question.question), question.question, common)]
        words = words[: settings.words]
        if not words:
            return _SILENT
        texts = [_words(passage_text(question.docs[i].title, question.docs[i].text)) for i in question.gold]
        others = [_words(passage_text(d.title, d.text)) for d in distractors(question, len(question.gold), rng)]
        hits = tuple(word for word in words if any(word in text for text in texts))
        return _Hits(question.question, _share(words, texts), _share(words, others), hits)

    measured = measure_questions(records, settings.limit, measure, on_progress)
    if silent := measured.errors.pop(_SILENT, 0):
        measured.unusable[_SILENT] += silent
    return LensHits(
        **measured.facts(model),
        gold=measured.mean(lambda row: row.gold),
        other=measured.mean(lambda row: row.other),
        gold_ci95=measured.interval(lambda row: row.gold, settings.seed),
        other_ci95=measured.interval(lambda row: row.other, settings.seed),
        examples={row.question: row.words for row in measured.rows[:_EXAMPLES]},
    )


def _share(words: Sequence[str], texts: Sequence[frozenset[str]]) -> float:
    return sum(any(word in text for text in texts) for word in words) / len(words)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def _plain(token: str) -> str:
    return token.strip().lower()
