"""What the memory vectors of a question say that the question does not (clara.md section 7, the logit lens).

``condense`` turns the top tokens of all slots into a short list of words; ``lens_hits`` measures over a data set
whether those words are in the supporting passages. Knows tokens as text, no tensors.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np
from pydantic import Field

from clara.data import DataRecord
from clara.evaluate.analysis.asking import AnalysisSettings, Progress, choose, counted, distractors
from clara.evaluate.analysis.insight import Insight
from clara.metrics import Interval, bootstrap_interval
from clara.model.inspection import EncoderRole, Lens, Space
from clara.prompts import passage_text

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

_STEM = 4
"""Letters from which a word of the text also hides its longer forms: league hides leagues."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word that memory vectors point at.

    Attributes:
        word: in its most frequent spelling.
        slots: memory vectors that have it among their top tokens.
        score: its best score.
    """

    word: str
    slots: int
    score: float


@dataclass(frozen=True, slots=True)
class LensView:
    """The lens of one text with its condensed view.

    Attributes:
        lens: top tokens a memory vector.
        words: words that are not in the text, those of most slots first.
    """

    lens: Lens
    words: tuple[Word, ...]


def view(
    insight: Insight,
    text: str,
    *,
    role: EncoderRole,
    rate: int,
    space: Space = "hidden",
    top: int = 5,
) -> LensView:
    """Look at a text; the references are looked at the same way.

    Args:
        insight: the model.
        text: a question or a passage.
        role: who reads it.
        rate: compression rate.
        space: see ``Inspector.lens``.
        top: tokens a memory vector.

    Raises:
        InputError: the text is empty or too long.
        ConfigError: the rate is not served.
    """
    lens = insight.lens(text, role=role, rate=rate, space=space, top=top)
    common = common_words([insight.lens(other, role=role, rate=rate, space=space, top=top) for other in REFERENCES])
    return LensView(lens, condense(lens, text, common))


def common_words(lenses: Iterable[Lens]) -> frozenset[str]:
    """All words, in lower case, that lenses show."""
    return frozenset(_plain(item.token) for lens in lenses for slot in lens.slots for item in slot)


def condense(lens: Lens, text: str, common: frozenset[str]) -> tuple[Word, ...]:
    """The words of a lens that its text does not hold.

    Left out: what is in the text as a whole or as a part of a word; longer forms of the text's words; what the lens
    shows for any text (``common``); later pieces of words; tokens with fewer than two letters or digits.

    Args:
        lens: of the text.
        text: what was read.
        common: from ``common_words``.

    Returns:
        Words by slots, then by score.
    """
    lower = text.lower()
    stems = tuple(word for word in re.findall(r"\w+", lower) if len(word) >= _STEM)
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    scores: defaultdict[str, list[float]] = defaultdict(list)
    places: defaultdict[str, set[int]] = defaultdict(set)
    for place, slot in enumerate(lens.slots):
        for item in slot:
            word = _plain(item.token)
            letters = sum(map(str.isalnum, word))
            if not item.begins_word or letters < 2 or word in lower or word in common or word.startswith(stems):
                continue
            spellings[word].append(item.token.strip())
            scores[word].append(item.score)
            places[word].add(place)
    words = [
        Word(max(set(s), key=lambda x: (s.count(x), x)), len(places[w]), max(scores[w])) for w, s in spellings.items()
    ]
    return tuple(sorted(words, key=lambda word: (-word.slots, -word.score, word.word)))


class LensSettings(AnalysisSettings):
    """Settings of ``lens_hits``.

    Attributes:
        words: condensed words a question that are looked up.
        top: tokens a memory vector.
    """

    words: int = Field(default=10, ge=1)
    top: int = Field(default=5, ge=1)


@dataclass(frozen=True, slots=True)
class LensHits:
    """How often the lens of a question names what is in its supporting passages.

    Attributes:
        model: its name.
        fingerprint: of the model.
        n: questions whose lens gave words.
        gold: mean share of a question's words that are in its gold passages.
        other: the same in as many passages that are not gold, of the same candidates.
        gold_ci95: bootstrap interval of ``gold``.
        other_ci95: of ``other``.
        unusable: questions left out, by reason.
        examples: the first questions with their words found in gold passages and nowhere in the question.
    """

    model: str
    fingerprint: str
    n: int
    gold: float
    other: float
    gold_ci95: Interval
    other_ci95: Interval
    unusable: Mapping[str, int]
    examples: Mapping[str, tuple[str, ...]]

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)


def lens_hits(
    insight: Insight,
    records: Sequence[DataRecord],
    settings: LensSettings,
    *,
    model: str,
    fingerprint: str,
    rate: int,
    progress: Progress | None = None,
) -> LensHits:
    """Look the words of each question's lens up in its gold passages, and in others for comparison.

    Args:
        insight: the model.
        records: questions with gold documents.
        settings: how many words.
        model: its name, for the record.
        fingerprint: likewise.
        rate: compression rate.
        progress: told after each question.

    Raises:
        RecordError: no question can be used.
    """
    chosen = choose(records, settings.limit)
    rng = np.random.default_rng(settings.seed)
    gold, other, examples = list[float](), list[float](), dict[str, tuple[str, ...]]()
    common = None
    for question in counted(chosen.questions, progress):
        how = {"role": "query_reasoner", "rate": rate, "top": settings.top}
        if common is None:
            common = common_words(insight.lens(text, **how) for text in REFERENCES)  # type: ignore[arg-type]
        lens = insight.lens(question.question, **how)  # type: ignore[arg-type]
        words = [word.word.lower() for word in condense(lens, question.question, common)][: settings.words]
        if not words:
            chosen.unusable["questions whose lens shows no word of its own"] += 1
            continue
        texts = [_words(passage_text(question.docs[i].title, question.docs[i].text)) for i in question.gold]
        others = [_words(passage_text(d.title, d.text)) for d in distractors(question, len(question.gold), rng)]
        gold.append(_share(words, texts))
        other.append(_share(words, others))
        examples[question.question] = tuple(word for word in words if any(word in text for text in texts))
    return LensHits(
        model=model,
        fingerprint=fingerprint,
        n=len(gold),
        gold=fmean(gold) if gold else 0.0,
        other=fmean(other) if other else 0.0,
        gold_ci95=bootstrap_interval(gold or [0.0], seed=settings.seed),
        other_ci95=bootstrap_interval(other or [0.0], seed=settings.seed),
        unusable=dict(chosen.unusable),
        examples=dict(list(examples.items())[:20]),
    )


def _share(words: Sequence[str], texts: Sequence[frozenset[str]]) -> float:
    return sum(any(word in text for text in texts) for word in words) / len(words)


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def _plain(token: str) -> str:
    return token.strip().lower()
