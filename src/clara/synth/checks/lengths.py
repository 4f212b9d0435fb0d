"""Too short to say anything, or too long to be what was asked for."""

from __future__ import annotations

from clara.synth.drafts import Pair, SourcePassage
from clara.synth.settings import CheckSettings
from clara.synth.words import words

REASON = "length"
_SLACK = 10  # words: a sentence of six is easily put in sixteen


def check_pair(pair: Pair, passage: SourcePassage, settings: CheckSettings) -> str | None:  # noqa: ARG001
    """Question and answer within their numbers of words."""
    for name, text, (fewest, most) in (
        ("question", pair.question, settings.question_words),
        ("answer", pair.answer, settings.answer_words),
    ):
        count = len(words(text))
        if not fewest <= count <= most:
            return f"the {name} must have {fewest} to {most} words, it has {count}"
    return None


def check_paraphrase(text: str, passage: SourcePassage, settings: CheckSettings) -> str | None:
    """A paraphrase of about the passage's own length."""
    fewest, most = settings.paraphrase_share
    count, length = len(words(text)), len(words(passage.text))
    if not fewest * length <= count <= most * length + _SLACK:
        return f"the paraphrase has {count} words, the passage {length}: keep to about the same length"
    return None
